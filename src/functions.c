/*
 * functions.c
 *	  The functions that SQL calls, thin: arguments in, result out.
 *
 * Their SQL names, arguments and errors are documented where they are
 * created, in the extension's script.  None of them needs a receiver, or the
 * library in shared_preload_libraries.
 */
#include "postgres.h"

#include <fcntl.h>
#include <math.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/crypto.h>

#include "catalog/pg_authid.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "funcapi.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "storage/lmgr.h"
#include "utils/acl.h"
#include "utils/builtins.h"
#include "utils/rel.h"
#include "utils/timestamp.h"
#include "utils/varlena.h"

#include "counters.h"
#include "handlers/handler_cache.h"
#include "receiver/delivery.h"
#include "receiver/direct.h"
#include "receiver/endpoint_cache.h"
#include "receiver/event_store.h"
#include "receiver/examine.h"
#include "receiver/quarantine.h"
#include "receiver/statements.h"
#include "secret_functions.h"
#include "settings.h"
#include "signature.h"
#include "watch.h"

#define GENERATED_KEY_BYTES 32
#define MAX_KEY_FILE_LENGTH 2048	/* without the end of the line */

PG_FUNCTION_INFO_V1(banked_webhooks_sign);
PG_FUNCTION_INFO_V1(banked_webhooks_verify_signature);
PG_FUNCTION_INFO_V1(banked_webhooks_receive);
PG_FUNCTION_INFO_V1(banked_webhooks_reprocess);
PG_FUNCTION_INFO_V1(banked_webhooks_generate_key);
PG_FUNCTION_INFO_V1(banked_webhooks_read_key_file);
PG_FUNCTION_INFO_V1(banked_webhooks_config_changed);
PG_FUNCTION_INFO_V1(banked_webhooks_service_warning);
PG_FUNCTION_INFO_V1(banked_webhooks_lock_publication);

static Statement write_audit = {
	.sql = "SELECT banked._audit('reprocess', jsonb_build_object('quarantine_id', $1, 'outcome', $2))",
	.nargs = 2,
	.argtypes = {INT8OID, TEXTOID}
};

static void
refuse_null(FunctionCallInfo fcinfo, int argument, const char *name)
{
	if (PG_ARGISNULL(argument))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must not be null", name)));
}

static void
refuse_empty(const char *value, const char *name)
{
	if (value != NULL && value[0] == '\0')
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("argument \"%s\" must not be empty", name)));
}

/* A prepared key from an SQL argument; raises 22023 for an empty one. */
static SignatureKey *
key_from_text(text *key)
{
	if (VARSIZE_ANY_EXHDR(key) == 0)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("signing key must not be empty")));
	return secret_prepare_signing_key(VARDATA_ANY(key), VARSIZE_ANY_EXHDR(key));
}

/* sign(body bytea, signing_key text, at timestamptz) -> text */
Datum
banked_webhooks_sign(PG_FUNCTION_ARGS)
{
	bytea	   *body = PG_GETARG_BYTEA_PP(0);
	TimestampTz at = PG_GETARG_TIMESTAMPTZ(2);
	char		timestamp[24];
	int64		seconds;

	if (TIMESTAMP_NOT_FINITE(at))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the time of a signature must be finite")));
	seconds = (int64) floor((double) at / USECS_PER_SEC) +
		(POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * (int64) SECS_PER_DAY;
	snprintf(timestamp, sizeof(timestamp), INT64_FORMAT, seconds);
	if (seconds < 0 || strlen(timestamp) > SIGNATURE_MAX_TIMESTAMP)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("the time of a signature must not be before 1970 or after 33658")));

	PG_RETURN_TEXT_P(secret_sign(key_from_text(PG_GETARG_TEXT_PP(1)), seconds, body));
}

/* verify_signature(header text, body bytea, signing_key text) -> boolean */
Datum
banked_webhooks_verify_signature(PG_FUNCTION_ARGS)
{
	text	   *header = PG_GETARG_TEXT_PP(0);
	bytea	   *body = PG_GETARG_BYTEA_PP(1);
	SignatureKey *key = key_from_text(PG_GETARG_TEXT_PP(2));
	SignatureHeader parsed;
	bool		result;

	result = signature_parse(VARDATA_ANY(header), VARSIZE_ANY_EXHDR(header), &parsed) &&
		signature_verify(key, &parsed, VARDATA_ANY(body), VARSIZE_ANY_EXHDR(body));
	signature_key_free(key);
	PG_RETURN_BOOL(result);
}

/* (status int, outcome text, event_id text, event_type text) of a decided delivery */
static Datum
delivery_result(FunctionCallInfo fcinfo, const Delivery *delivery)
{
	TupleDesc	tupdesc;
	Datum		values[4];
	bool		nulls[4] = {0};
	bool		show = delivery->authentic;

	if (get_call_result_type(fcinfo, NULL, &tupdesc) != TYPEFUNC_COMPOSITE)
		elog(ERROR, "return type must be a row type");
	values[0] = Int32GetDatum(delivery_status(delivery));
	values[1] = CStringGetTextDatum(counters_outcome_name(delivery->outcome));
	nulls[2] = !show || delivery->event_id == NULL;
	values[2] = nulls[2] ? (Datum) 0 : CStringGetTextDatum(delivery->event_id);
	nulls[3] = !show || delivery->event_type == NULL;
	values[3] = nulls[3] ? (Datum) 0 : CStringGetTextDatum(delivery->event_type);
	return HeapTupleGetDatum(heap_form_tuple(BlessTupleDesc(tupdesc), values, nulls));
}

/* receive(path text, signature text, body bytea, received_at timestamptz) -> row */
Datum
banked_webhooks_receive(PG_FUNCTION_ARGS)
{
	Delivery	delivery = {0};
	text	   *path;
	text	   *signature;
	bytea	   *body;

	refuse_null(fcinfo, 0, "path");
	refuse_null(fcinfo, 2, "body");
	refuse_null(fcinfo, 3, "received_at");
	path = PG_GETARG_TEXT_PP(0);
	signature = PG_ARGISNULL(1) ? cstring_to_text("") : PG_GETARG_TEXT_PP(1);
	body = PG_GETARG_BYTEA_PP(2);

	delivery.path = VARDATA_ANY(path);
	delivery.path_length = VARSIZE_ANY_EXHDR(path);
	delivery.signature_text = VARDATA_ANY(signature);
	delivery.signature_length = VARSIZE_ANY_EXHDR(signature);
	delivery.body = VARDATA_ANY(body);
	delivery.body_length = VARSIZE_ANY_EXHDR(body);
	delivery.received_at = PG_GETARG_TIMESTAMPTZ(3);
	if (TIMESTAMP_NOT_FINITE(delivery.received_at))
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("received_at must be finite")));

	endpoint_cache_refresh();
	examine_delivery(&delivery, false);
	if (delivery.judged == OUTCOME_PENDING || delivery.judged == OUTCOME_QUARANTINED)
		direct_store(&delivery);
	return delivery_result(fcinfo, &delivery);
}

static void
audit_reprocess(int64 quarantine_id, const Delivery *delivery)
{
	Datum		values[2];
	Identity	before;

	values[0] = Int64GetDatum(quarantine_id);
	values[1] = CStringGetTextDatum(counters_outcome_name(delivery->outcome));
	SPI_connect();
	statements_become_owner(&before);
	(void) statements_run(&write_audit, values, NULL, 0);
	statements_restore(&before);
	SPI_finish();
}

/* reprocess(quarantine_id bigint, event_id text, event_type text) -> row */
Datum
banked_webhooks_reprocess(PG_FUNCTION_ARGS)
{
	Delivery	delivery = {0};
	int64		quarantine_id;
	char	   *event_id = PG_ARGISNULL(1) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(1));
	char	   *event_type = PG_ARGISNULL(2) ? NULL : text_to_cstring(PG_GETARG_TEXT_PP(2));

	refuse_null(fcinfo, 0, "quarantine_id");
	refuse_empty(event_id, "event_id");
	refuse_empty(event_type, "event_type");
	quarantine_id = PG_GETARG_INT64(0);
	if (!quarantine_read(quarantine_id, false, &delivery))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_OBJECT),
				 errmsg("quarantine holds no delivery " INT64_FORMAT, quarantine_id)));

	endpoint_cache_refresh();
	examine_body(&delivery, event_id, event_type);
	if (delivery.judged == OUTCOME_PENDING || delivery.judged == OUTCOME_QUARANTINED)
		direct_store(&delivery);
	audit_reprocess(quarantine_id, &delivery);
	return delivery_result(fcinfo, &delivery);
}

/* _generate_signing_key() -> text: 32 random bytes as hex */
Datum
banked_webhooks_generate_key(PG_FUNCTION_ARGS)
{
	uint8		bytes[GENERATED_KEY_BYTES];
	char		hex[2 * GENERATED_KEY_BYTES + 1];
	text	   *result;

	if (!pg_strong_random(bytes, sizeof(bytes)))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate random bytes")));
	(void) hex_encode((char *) bytes, sizeof(bytes), hex);
	result = cstring_to_text_with_len(hex, 2 * GENERATED_KEY_BYTES);
	explicit_bzero(bytes, sizeof(bytes));
	explicit_bzero(hex, sizeof(hex));
	PG_RETURN_TEXT_P(result);
}

/*
 * _read_key_file(path text) -> text, without one final newline.  Whether it is
 * long enough and so on is for the function to judge that wants the key.
 */
Datum
banked_webhooks_read_key_file(PG_FUNCTION_ARGS)
{
	char	   *path = text_to_cstring(PG_GETARG_TEXT_PP(0));
	char		buffer[MAX_KEY_FILE_LENGTH + 3];
	struct stat status;
	int			file;
	ssize_t		length;
	text	   *result = NULL;

	if (!has_privs_of_role(GetUserId(), ROLE_PG_READ_SERVER_FILES))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("permission denied to read a key from a file of the server"),
				 errdetail("Only roles with privileges of \"pg_read_server_files\" may do that.")));

	/* Without waiting, should it be a pipe. */
	file = OpenTransientFile(path, O_RDONLY | O_NONBLOCK | PG_BINARY);
	if (file < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not open file \"%s\" for reading: %m", path)));
	if (fstat(file, &status) == 0 && !S_ISREG(status.st_mode))
		ereport(ERROR,
				(errcode(ERRCODE_WRONG_OBJECT_TYPE),
				 errmsg("\"%s\" is not a regular file", path)));
	length = read(file, buffer, sizeof(buffer));
	if (length < 0)
		ereport(ERROR,
				(errcode_for_file_access(),
				 errmsg("could not read file \"%s\": %m", path)));
	CloseTransientFile(file);

	if (length > 0 && buffer[length - 1] == '\n')
		length--;
	if (length > 0 && buffer[length - 1] == '\r')
		length--;
	/* A message of the server's own about its encoding would quote it. */
	if (length > 0 && length <= MAX_KEY_FILE_LENGTH && pg_verifymbstr(buffer, length, true))
		result = cstring_to_text_with_len(buffer, length);
	OPENSSL_cleanse(buffer, sizeof(buffer));
	if (result == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("file \"%s\" does not hold a key", path),
				 errdetail("A key is text in UTF-8, of at most %d bytes.", MAX_KEY_FILE_LENGTH)));
	PG_RETURN_TEXT_P(result);
}

/*
 * _config_changed() -- statement trigger on the tables that receivers work
 * by: makes every session read endpoints and keys anew, and wakes receivers.
 */
Datum
banked_webhooks_config_changed(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	const char *table;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_FOR_STATEMENT(trigger->tg_event))
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("%s must be a statement trigger", "banked._config_changed()")));

	table = RelationGetRelationName(trigger->tg_relation);
	if (strcmp(table, "service_state") == 0)
		watch_service_changed();
	else
	{
		if (strcmp(table, "handlers") == 0)
			handler_cache_invalidate();
		else if (strcmp(table, "quarantine") != 0)
			endpoint_cache_invalidate();
		watch_config_changed();
	}
	return PointerGetDatum(NULL);
}

/* _service_warning() -> text: what to set so that this database is served, or null */
Datum
banked_webhooks_service_warning(PG_FUNCTION_ARGS)
{
	char	   *database;
	List	   *names;
	ListCell   *cell;

	if (shared_state == NULL)
		PG_RETURN_TEXT_P(cstring_to_text("no webhooks are received until banked_webhooks is in shared_preload_libraries, "
										 "this database in banked_webhooks.databases, and the server restarted"));

	database = get_database_name(MyDatabaseId);
	if (SplitIdentifierString(pstrdup(bw_databases), ',', &names))
	{
		foreach(cell, names)
		{
			if (strcmp(lfirst(cell), database) == 0)
				PG_RETURN_NULL();
		}
	}
	PG_RETURN_TEXT_P(cstring_to_text(psprintf("no webhooks are received in this database until %s is in banked_webhooks.databases "
											  "and the configuration is reloaded",
											  quote_identifier(database))));
}

/*
 * _lock_publication() -> boolean: false when another transaction has the lock.
 * No statement of SQL takes such a one: VACUUM and its like take locks of the
 * table itself.
 */
Datum
banked_webhooks_lock_publication(PG_FUNCTION_ARGS)
{
	PG_RETURN_BOOL(ConditionalLockDatabaseObject(RelationRelationId, statements_relation("published_webhooks"),
												 0, ExclusiveLock));
}
