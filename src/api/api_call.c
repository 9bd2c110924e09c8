/*
 * api_call.c
 *	  One call of Banked's management API: credentials in, jsonb out.
 *
 * Secrets live in here alone.  API key and secret key are opened just before
 * a request and cleansed behind it; a signing key goes from its blob into the
 * body of the request; a token of OAuth stays in this session's memory until
 * shortly before it expires.  None of them can get into a message: what Banked says
 * is not shown where it repeats one of them.
 *
 * Tables are read before and after the waiting, and nothing is locked by it.
 */
#include "postgres.h"

#include <openssl/crypto.h>

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/pg_type.h"
#include "common/base64.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/uuid.h"

#include "api/http_client.h"
#include "receiver/payload.h"
#include "receiver/statements.h"
#include "secret_functions.h"
#include "secrets.h"
#include "settings.h"

PG_FUNCTION_INFO_V1(banked_webhooks_api_call);
PG_FUNCTION_INFO_V1(banked_webhooks_post_delivery);
PG_FUNCTION_INFO_V1(banked_webhooks_check_base_url);
PG_FUNCTION_INFO_V1(banked_webhooks_without_secrets);
PG_FUNCTION_INFO_V1(banked_webhooks_is_own_transaction);

/* Banked refused the call; see also http_client.h. */
#define ERRCODE_API_REFUSED MAKE_SQLSTATE('W', 'H', '4', '0', '0')
#define ERRCODE_API_NOT_AUTHORIZED MAKE_SQLSTATE('W', 'H', '4', '0', '1')	/* 401, 403 */
#define ERRCODE_API_NOT_FOUND MAKE_SQLSTATE('W', 'H', '4', '0', '4')
#define ERRCODE_API_UNPROCESSABLE MAKE_SQLSTATE('W', 'H', '4', '2', '2')
#define ERRCODE_API_TOO_MANY MAKE_SQLSTATE('W', 'H', '4', '2', '9')
#define ERRCODE_API_FAILED MAKE_SQLSTATE('W', 'H', '5', '0', '0')

#define MAX_SHOWN 400			/* bytes of a text of Banked's in a message */
#define DEFAULT_TOKEN_LIFE 300	/* seconds, where an answer does not say it */
#define TOKEN_MARGIN 60			/* seconds before its end that a token is not used any more */

/* A row of banked.api_credentials, in the caller's memory. */
typedef struct Credentials
{
	const char *name;
	bool		oauth;
	char	   *scope;			/* null when none */
	char	   *base_url;		/* without a slash at its end */
	const char *version;
	bytea	   *blob;
	uint8		secret[SECRET_MAX_SIZE];	/* API key, colon, secret key */
	Size		secret_length;
	char	   *signing_key;	/* of the body, null when none */
	char	   *authorization;	/* header of the request under way, null when none */
} Credentials;

/* A token of this session; in TopMemoryContext. */
typedef struct Token
{
	char	   *name;			/* of the credentials */
	char	   *base_url;
	char	   *scope;			/* "" when none */
	bytea	   *blob;			/* that it was given for: others are other credentials */
	char	   *token;
	TimestampTz expires_at;
} Token;

static List *tokens = NIL;

static Statement read_credentials = {
	.sql = "SELECT auth = 'oauth', scope, coalesce(base_url, current_setting('banked_webhooks.api_base_url')), "
	"coalesce(api_version, current_setting('banked_webhooks.api_version')), secret "
	"FROM banked.api_credentials WHERE name = $1",
	.nargs = 1,
	.argtypes = {TEXTOID}
};

static Statement read_signing_key = {
	.sql = "SELECT secret FROM banked.key_secrets WHERE key_id = $1",
	.nargs = 1,
	.argtypes = {UUIDOID}
};

/* ---------------------------------------------------------------------------
 * Secrets
 * ---------------------------------------------------------------------------
 */

static void
cleanse_text(char *text)
{
	if (text != NULL)
		OPENSSL_cleanse(text, strlen(text));
}

static void
forget_credentials(Credentials *credentials)
{
	OPENSSL_cleanse(credentials->secret, sizeof(credentials->secret));
	if (credentials->blob != NULL)
		OPENSSL_cleanse(VARDATA(credentials->blob), VARSIZE(credentials->blob) - VARHDRSZ);
	cleanse_text(credentials->signing_key);
	cleanse_text(credentials->authorization);
}

/* Reads one row's columns in the caller's memory; false when there is no row. */
static bool
read_row(Statement *statement, Datum key, MemoryContext context, char **texts, bytea **blob)
{
	bool		found;

	found = statements_run(statement, &key, NULL, 1) == SPI_OK_SELECT && SPI_processed == 1;
	if (found)
	{
		int			columns = SPI_tuptable->tupdesc->natts;
		MemoryContext old;
		bytea	   *original;
		bool		isnull;
		Datum		value;

		for (int i = 1; i < columns; i++)
		{
			char	   *text = SPI_getvalue(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, i);

			texts[i - 1] = text == NULL ? NULL : MemoryContextStrdup(context, text);
		}
		value = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, columns, &isnull);
		old = MemoryContextSwitchTo(context);
		*blob = DatumGetByteaPCopy(value);
		MemoryContextSwitchTo(old);
		/* A clear one: in the copy that SPI made for this session. */
		original = DatumGetByteaPP(value);
		OPENSSL_cleanse(VARDATA_ANY(original), VARSIZE_ANY_EXHDR(original));
	}
	return found;
}

static void
load_credentials(Credentials *credentials, const char *name, bool has_key, Datum key_id)
{
	MemoryContext context = CurrentMemoryContext;
	char	   *texts[4];
	bytea	   *key_blob = NULL;
	Identity	before;
	bool		found;
	bool		key_found = true;
	Size		length;

	SPI_connect();
	statements_become_owner(&before);
	found = read_row(&read_credentials, CStringGetTextDatum(name), context, texts, &credentials->blob);
	if (has_key)
		key_found = read_row(&read_signing_key, key_id, context, NULL, &key_blob);
	statements_restore(&before);
	SPI_finish();

	if (!found)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("API credentials \"%s\" do not exist", name),
				 errhint("Run SELECT banked.set_api_credentials().")));
	if (!key_found)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("the signing key to be sent to Banked is forgotten")));

	credentials->name = name;
	credentials->oauth = strcmp(texts[0], "t") == 0;
	credentials->scope = texts[1];
	credentials->base_url = texts[2];
	length = strlen(credentials->base_url);
	while (length > 0 && credentials->base_url[length - 1] == '/')
		credentials->base_url[--length] = '\0';
	credentials->version = texts[3];

	if (has_key)
	{
		length = secret_open_or_fail(secrets_key_context(DatumGetUUIDP(key_id)), key_blob, credentials->secret);
		credentials->signing_key = pnstrdup((char *) credentials->secret, length);
		OPENSSL_cleanse(VARDATA(key_blob), VARSIZE(key_blob) - VARHDRSZ);
	}
	credentials->secret_length =
		secret_open_or_fail(secrets_credentials_context(name), credentials->blob, credentials->secret);
}

static bool
contains(const char *text, Size length, const char *part, Size part_length)
{
	return part_length > 0 && memmem(text, length, part, part_length) != NULL;
}

/* Does a text of Banked's repeat something that must not be shown? */
static bool
repeats_secret(const Credentials *credentials, const char *text)
{
	const char *secret = (const char *) credentials->secret;
	const char *colon = memchr(secret, ':', credentials->secret_length);
	Size		length = strlen(text);

	if (colon != NULL &&
		(contains(text, length, secret, colon - secret) ||
		 contains(text, length, colon + 1, secret + credentials->secret_length - colon - 1)))
		return true;
	if (credentials->signing_key != NULL &&
		contains(text, length, credentials->signing_key, strlen(credentials->signing_key)))
		return true;
	if (credentials->authorization != NULL)
	{
		/* Behind "Authorization: " and the scheme. */
		const char *value = strchr(strchr(credentials->authorization, ' ') + 1, ' ') + 1;

		if (contains(text, length, value, strlen(value)))
			return true;
	}
	return false;
}

/* ---------------------------------------------------------------------------
 * Answers
 * ---------------------------------------------------------------------------
 */

/*
 * An answer as jsonb, or 0 when it is no JSON that can be kept.  As in
 * payload.c, jsonb_in touches nothing but memory, and so its errors need no
 * subtransaction.
 */
static Datum
parse_answer(const HttpAnswer *answer)
{
	MemoryContext context = CurrentMemoryContext;
	uint32		holdoff = InterruptHoldoffCount;
	volatile Datum result = 0;

	if (answer->body_length == 0 || payload_check_limits(answer->body, answer->body_length) != NULL)
		return 0;
	HOLD_INTERRUPTS();
	PG_TRY();
	{
		result = DirectFunctionCall1(jsonb_in, CStringGetDatum(answer->body));
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(context);
		FlushErrorState();
	}
	PG_END_TRY();
	InterruptHoldoffCount = holdoff;
	return result;
}

/* A text of an answer's top level, palloc'ed; null when there is none. */
static char *
answer_text(Datum answer, const char *key)
{
	Jsonb	   *jsonb;
	JsonbValue *value;

	if (answer == 0)
		return NULL;
	jsonb = DatumGetJsonbP(answer);
	if (!JB_ROOT_IS_OBJECT(jsonb))
		return NULL;
	value = getKeyJsonValueFromContainer(&jsonb->root, key, strlen(key), NULL);
	if (value == NULL)
		return NULL;
	if (value->type == jbvString)
		return pnstrdup(value->val.string.val, value->val.string.len);
	if (value->type == jbvNumeric)
		return DatumGetCString(DirectFunctionCall1(numeric_out, NumericGetDatum(value->val.numeric)));
	return NULL;
}

/* The same for a message: on one line, not too long, without secrets; else the replacement. */
static char *
shown_text(const Credentials *credentials, Datum answer, const char *key, const char *replacement)
{
	char	   *text = answer_text(answer, key);

	if (text == NULL || text[0] == '\0' || repeats_secret(credentials, text))
		return replacement == NULL ? NULL : pstrdup(replacement);
	text[pg_mbcliplen(text, strlen(text), MAX_SHOWN)] = '\0';
	for (char *p = text; *p != '\0'; p++)
	{
		if ((unsigned char) *p < ' ')
			*p = ' ';
	}
	return text;
}

static int
sqlstate_of_status(int status)
{
	switch (status)
	{
		case 401:
		case 403:
			return ERRCODE_API_NOT_AUTHORIZED;
		case 404:
			return ERRCODE_API_NOT_FOUND;
		case 422:
			return ERRCODE_API_UNPROCESSABLE;
		case 429:
			return ERRCODE_API_TOO_MANY;
		default:
			if (status >= 500)
				return ERRCODE_API_FAILED;
			return status >= 400 ? ERRCODE_API_REFUSED : ERRCODE_API_ANSWER_UNUSABLE;
	}
}

/* Raises the error of an answer that is no success. */
static void
report_status(const Credentials *credentials, const HttpRequest *request, const HttpAnswer *answer)
{
	Datum		json = parse_answer(answer);
	const char *path = request->url + strlen(credentials->base_url);
	char	   *error = shown_text(credentials, json, "error", NULL);
	char	   *detail = shown_text(credentials, json, "error_description", NULL);

	if (detail == NULL)
		detail = shown_text(credentials, json, "message", NULL);
	if (answer->status >= 300 && answer->status < 400)
		detail = pstrdup("Redirects are not followed");
	ereport(ERROR,
			(errcode(sqlstate_of_status(answer->status)),
			 error != NULL ?
			 errmsg("Banked answered %s %s with status %d: %s", request->method, path, answer->status, error) :
			 errmsg("Banked answered %s %s with status %d", request->method, path, answer->status),
			 detail != NULL ? errdetail("%s.", detail) : 0,
			 answer->retry_after != NULL ? errhint("Try again after: %s.", answer->retry_after) : 0));
}

/* ---------------------------------------------------------------------------
 * Authorization
 * ---------------------------------------------------------------------------
 */

/* What credentials->authorization was is cleansed. */
static void
authorize_by_secret(Credentials *credentials)
{
	static const char start[] = "Authorization: Basic ";
	int			room = pg_b64_enc_len(credentials->secret_length);
	char	   *header = palloc(sizeof(start) + room);
	int			length;

	cleanse_text(credentials->authorization);
	credentials->authorization = header;

	memcpy(header, start, sizeof(start));
	length = pg_b64_encode((const char *) credentials->secret, credentials->secret_length,
						   header + sizeof(start) - 1, room);
	if (length < 0)
		elog(ERROR, "could not encode API credentials");
	header[sizeof(start) - 1 + length] = '\0';
}

static void
authorize_by_token(Credentials *credentials, const Token *token)
{
	cleanse_text(credentials->authorization);
	credentials->authorization = psprintf("Authorization: Bearer %s", token->token);
}

static void
drop_token(Token *token)
{
	tokens = list_delete_ptr(tokens, token);
	cleanse_text(token->token);
	OPENSSL_cleanse(VARDATA(token->blob), VARSIZE(token->blob) - VARHDRSZ);
	pfree(token->token);
	pfree(token->blob);
	pfree(token->name);
	pfree(token->base_url);
	pfree(token->scope);
	pfree(token);
}

/* The token of these credentials that is still good, or null.  Others of the name are dropped. */
static Token *
find_token(const Credentials *credentials)
{
	const char *scope = credentials->scope == NULL ? "" : credentials->scope;
	ListCell   *cell;

	foreach(cell, tokens)
	{
		Token	   *token = lfirst(cell);

		if (strcmp(token->name, credentials->name) != 0)
			continue;
		if (token->expires_at > GetCurrentTimestamp() &&
			strcmp(token->base_url, credentials->base_url) == 0 &&
			strcmp(token->scope, scope) == 0 &&
			VARSIZE(token->blob) == VARSIZE(credentials->blob) &&
			memcmp(token->blob, credentials->blob, VARSIZE(token->blob)) == 0)
			return token;
		drop_token(token);
		return NULL;
	}
	return NULL;
}

/* A form's value: all but letters, digits and a few signs as %XX. */
static void
append_form_value(StringInfo form, const char *value)
{
	for (const char *p = value; *p != '\0'; p++)
	{
		if ((*p >= 'a' && *p <= 'z') || (*p >= 'A' && *p <= 'Z') || (*p >= '0' && *p <= '9') ||
			strchr("-._*", *p) != NULL)
			appendStringInfoChar(form, *p);
		else
			appendStringInfo(form, "%%%02X", (unsigned char) *p);
	}
}

static long
token_life(Datum answer)
{
	char	   *text = answer_text(answer, "expires_in");
	long		seconds = text == NULL ? DEFAULT_TOKEN_LIFE : strtol(text, NULL, 10);

	seconds = Min(Max(seconds, 0), SECS_PER_DAY);
	return seconds > 2 * TOKEN_MARGIN ? seconds - TOKEN_MARGIN : seconds / 2;
}

static Token *
fetch_token(Credentials *credentials)
{
	HttpRequest request = {.method = "POST"};
	HttpAnswer	answer;
	StringInfoData form;
	MemoryContext old;
	Datum		json;
	Token	   *token;
	char	   *text;

	initStringInfo(&form);
	appendStringInfoString(&form, "grant_type=client_credentials");
	if (credentials->scope != NULL)
	{
		appendStringInfoString(&form, "&scope=");
		append_form_value(&form, credentials->scope);
	}
	request.url = psprintf("%s/oauth/token", credentials->base_url);
	authorize_by_secret(credentials);
	request.headers = list_make3(credentials->authorization, "Content-Type: application/x-www-form-urlencoded",
								 "Accept: application/json");
	request.body = form.data;
	request.body_length = form.len;
	http_perform(&request, &answer);
	if (answer.status < 200 || answer.status > 299)
		report_status(credentials, &request, &answer);

	json = parse_answer(&answer);
	text = answer_text(json, "access_token");
	cleanse_text(answer.body);
	if (text == NULL || text[0] == '\0' || strpbrk(text, "\r\n") != NULL)
		ereport(ERROR,
				(errcode(ERRCODE_API_ANSWER_UNUSABLE),
				 errmsg("Banked's answer to POST /oauth/token holds no access_token")));

	old = MemoryContextSwitchTo(TopMemoryContext);
	token = palloc(sizeof(Token));
	token->name = pstrdup(credentials->name);
	token->base_url = pstrdup(credentials->base_url);
	token->scope = pstrdup(credentials->scope == NULL ? "" : credentials->scope);
	token->blob = palloc(VARSIZE(credentials->blob));
	memcpy(token->blob, credentials->blob, VARSIZE(credentials->blob));
	token->token = pstrdup(text);
	token->expires_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), token_life(json) * 1000);
	tokens = lappend(tokens, token);
	MemoryContextSwitchTo(old);

	cleanse_text(text);
	OPENSSL_cleanse(DatumGetPointer(json), VARSIZE(DatumGetPointer(json)));
	return token;
}

/* ---------------------------------------------------------------------------
 * Calls
 * ---------------------------------------------------------------------------
 */

/* The body of a request: what SQL made of it, and the signing key where there is one. */
static char *
make_body(const Credentials *credentials, const char *body)
{
	StringInfoData text;

	if (body == NULL || credentials->signing_key == NULL)
		return body == NULL ? NULL : pstrdup(body);
	if (body[0] != '{')
		elog(ERROR, "the body of a call is not an object");

	initStringInfo(&text);
	/* Room for every byte as an escape: no copy is left behind by growing. */
	enlargeStringInfo(&text, strlen(body) + 6 * strlen(credentials->signing_key) + 64);
	appendStringInfoString(&text, "{\"signature_key\": ");
	escape_json(&text, credentials->signing_key);
	if (body[1] != '}')
		appendStringInfoString(&text, ", ");
	appendStringInfoString(&text, body + 1);
	return text.data;
}

/* Sends the request with what authorizes it. */
static void
perform_authorized(Credentials *credentials, HttpRequest *request, HttpAnswer *answer)
{
	List	   *headers = request->headers;
	Token	   *token = NULL;
	bool		fresh = false;

	if (!credentials->oauth)
	{
		authorize_by_secret(credentials);
		request->headers = lcons(credentials->authorization, list_copy(headers));
		http_perform(request, answer);
		return;
	}

	/* A token that Banked no longer takes, for whatever reason, is replaced once. */
	for (;;)
	{
		token = find_token(credentials);
		if (token == NULL)
		{
			token = fetch_token(credentials);
			fresh = true;
		}
		authorize_by_token(credentials, token);
		request->headers = lcons(credentials->authorization, list_copy(headers));
		http_perform(request, answer);
		if (answer->status != 401)
			return;
		token = find_token(credentials);
		if (token != NULL)
			drop_token(token);
		if (fresh)
			return;
	}
}

/*
 * _api_call(credentials text, method text, path text, body jsonb, key_id uuid,
 * signing_key text) -> jsonb: the answer, null when it is empty.  The path
 * follows the version; the signing key, of key_id or given, is put into the body.
 */
Datum
banked_webhooks_api_call(PG_FUNCTION_ARGS)
{
	char	   *name;
	char	   *path;
	char	   *body = NULL;
	Credentials *credentials = palloc0(sizeof(Credentials));
	HttpRequest request = {0};
	HttpAnswer	answer = {0};
	char	   *volatile sent = NULL;
	Datum		json;

	if (PG_ARGISNULL(0))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("credentials must not be null")));
	if (PG_ARGISNULL(1) || PG_ARGISNULL(2))
		elog(ERROR, "method and path of a call must not be null");
	name = text_to_cstring(PG_GETARG_TEXT_PP(0));
	path = text_to_cstring(PG_GETARG_TEXT_PP(2));
	request.method = text_to_cstring(PG_GETARG_TEXT_PP(1));
	request.repeatable = strcmp(request.method, "GET") == 0;
	/* What Banked did could not be remembered. */
	if (!request.repeatable)
		PreventCommandIfReadOnly(psprintf("%s of Banked's API", request.method));
	if (!PG_ARGISNULL(3))
		body = JsonbToCString(NULL, &PG_GETARG_JSONB_P(3)->root, VARSIZE(PG_GETARG_JSONB_P(3)));

	PG_TRY();
	{
		load_credentials(credentials, name, !PG_ARGISNULL(4), PG_GETARG_DATUM(4));
		if (!PG_ARGISNULL(5))
			credentials->signing_key = text_to_cstring(PG_GETARG_TEXT_PP(5));
		request.url = psprintf("%s/%s%s", credentials->base_url, credentials->version, path);
		request.headers = list_make2("Accept: application/json", "Content-Type: application/json");
		sent = make_body(credentials, body);
		request.body = sent;
		request.body_length = sent == NULL ? 0 : strlen(sent);
		perform_authorized(credentials, &request, &answer);
		if (answer.status < 200 || answer.status > 299)
			report_status(credentials, &request, &answer);
		json = parse_answer(&answer);
		/* Who asks for something and gets nothing must not take it for an empty list. */
		if (json == 0 && (answer.body_length > 0 || (request.repeatable && answer.status != 204)))
			ereport(ERROR,
					(errcode(ERRCODE_API_ANSWER_UNUSABLE),
					 errmsg("Banked's answer to %s %s is not JSON", request.method,
							request.url + strlen(credentials->base_url))));
	}
	PG_FINALLY();
	{
		forget_credentials(credentials);
		cleanse_text(sent);
	}
	PG_END_TRY();

	if (json == 0)
		PG_RETURN_NULL();
	PG_RETURN_DATUM(json);
}

/*
 * _post_delivery(url text, signature text, body bytea, OUT status int, OUT answer text,
 * OUT elapsed interval): sends a delivery as Banked would.
 */
Datum
banked_webhooks_post_delivery(PG_FUNCTION_ARGS)
{
	bytea	   *body = PG_GETARG_BYTEA_PP(2);
	HttpRequest request = {.method = "POST", .allow_plain = true};
	HttpAnswer	answer;
	TupleDesc	tupdesc;
	Datum		values[3];
	bool		nulls[3] = {0};
	Interval   *elapsed = palloc0(sizeof(Interval));
	TimestampTz start;

	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	PreventCommandIfReadOnly("send_test_event()");

	request.url = text_to_cstring(PG_GETARG_TEXT_PP(0));
	request.headers = list_make2(psprintf("banked-signature: %s", text_to_cstring(PG_GETARG_TEXT_PP(1))),
								 "Content-Type: application/json");
	request.body = VARDATA_ANY(body);
	request.body_length = VARSIZE_ANY_EXHDR(body);
	start = GetCurrentTimestamp();
	http_perform(&request, &answer);
	elapsed->time = GetCurrentTimestamp() - start;

	while (answer.body_length > 0 && answer.body[answer.body_length - 1] == '\n')
		answer.body_length--;
	values[0] = Int32GetDatum(answer.status);
	if (pg_verify_mbstr(PG_UTF8, answer.body, answer.body_length, true))
		values[1] = PointerGetDatum(cstring_to_text_with_len(answer.body,
															 Min(answer.body_length, pg_mbcliplen(answer.body, answer.body_length, MAX_SHOWN))));
	else
		nulls[1] = true;
	values[2] = IntervalPGetDatum(elapsed);
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(tupdesc), values, nulls));
}

/* Is a member of an answer, by its name, a secret? */
static bool
is_secret_name(const JsonbValue *name)
{
	static const char *const names[] = {
		"client_secret", "secret", "secret_key", "signature_key", "signing_key", "signing_secret", "webhook_secret"
	};

	for (int i = 0; i < lengthof(names); i++)
	{
		if (name->val.string.len == strlen(names[i]) &&
			pg_strncasecmp(name->val.string.val, names[i], name->val.string.len) == 0)
			return true;
	}
	return false;
}

/* _without_secrets(answer jsonb) -> jsonb: without the members that are secrets, however deep */
Datum
banked_webhooks_without_secrets(PG_FUNCTION_ARGS)
{
	Jsonb	   *answer = PG_GETARG_JSONB_P(0);
	JsonbIterator *iterator;
	JsonbIteratorToken token;
	JsonbParseState *state = NULL;
	JsonbValue *result = NULL;
	JsonbValue	value;

	if (JB_ROOT_IS_SCALAR(answer))
		PG_RETURN_JSONB_P(answer);
	iterator = JsonbIteratorInit(&answer->root);
	while ((token = JsonbIteratorNext(&iterator, &value, false)) != WJB_DONE)
	{
		if (token == WJB_KEY && is_secret_name(&value))
			(void) JsonbIteratorNext(&iterator, &value, true);
		else
			result = pushJsonbValue(&state, token, token < WJB_BEGIN_ARRAY ? &value : NULL);
	}
	PG_RETURN_JSONB_P(JsonbValueToJsonb(result));
}

/* _check_base_url(url text) -> boolean: can it be where Banked's API is? */
Datum
banked_webhooks_check_base_url(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(settings_base_url_is_valid(text_to_cstring(PG_GETARG_TEXT_PP(0))));
}

/* _is_own_transaction(xid) -> boolean: has this transaction, not yet committed, written it? */
Datum
banked_webhooks_is_own_transaction(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(TransactionIdIsCurrentTransactionId(PG_GETARG_TRANSACTIONID(0)));
}
