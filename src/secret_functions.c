/*
 * secret_functions.c
 *	  Sealing, opening and using secrets in SQL, for the extension's own functions.
 *
 * None of these is granted to anybody: the functions that call them belong to
 * the extension's owner.  A plain secret goes in where a user passes one; it
 * never comes out: what a secret is needed for (verifying, signing) is done in
 * here.
 */
#include "postgres.h"

#include <openssl/crypto.h>

#include "fmgr.h"
#include "miscadmin.h"
#include "catalog/pg_authid.h"
#include "utils/acl.h"
#include "utils/builtins.h"

#include "secret_functions.h"
#include "secrets.h"
#include "settings.h"
#include "signature.h"

PG_FUNCTION_INFO_V1(banked_webhooks_key_context);
PG_FUNCTION_INFO_V1(banked_webhooks_credentials_context);
PG_FUNCTION_INFO_V1(banked_webhooks_seal);
PG_FUNCTION_INFO_V1(banked_webhooks_reseal);
PG_FUNCTION_INFO_V1(banked_webhooks_is_secret);
PG_FUNCTION_INFO_V1(banked_webhooks_sign_with);
PG_FUNCTION_INFO_V1(banked_webhooks_verify_with);

Size
secret_open_or_fail(const char *context, const bytea *blob, uint8 *buffer)
{
	MasterKey	master;
	MasterKeyStatus read;
	SecretStatus status;
	Size		length = 0;

	/* A clear one opens whatever the setting says. */
	status = secrets_open(NULL, context, blob, buffer, &length);
	if (status == SECRET_NO_MASTER_KEY)
	{
		read = secrets_read_master_key(bw_master_key_file, &master, ERROR);
		status = secrets_open(read == MASTER_KEY_READ ? &master : NULL, context, blob, buffer, &length);
		secrets_forget(&master);
	}
	if (status != SECRET_OK)
		ereport(ERROR,
				(errcode(status == SECRET_DAMAGED ? ERRCODE_DATA_CORRUPTED :
						 ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("secret \"%s\" %s", context, secrets_status_text(status)),
				 status == SECRET_OTHER_MASTER_KEY ?
				 errhint("Let the setting name the file with the right master key, or run SELECT banked.rotate_master_key('FILE') with the file of the old one.") :
				 status == SECRET_NO_MASTER_KEY ?
				 errhint("Set banked_webhooks.master_key_file to the file with the master key and reload the configuration.") :
				 errhint("Set the secret anew.")));
	return length;
}

/* _key_context(key_id uuid) -> text */
Datum
banked_webhooks_key_context(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text(secrets_key_context(PG_GETARG_UUID_P(0))));
}

/* _credentials_context(name text) -> text */
Datum
banked_webhooks_credentials_context(PG_FUNCTION_ARGS)
{
	PG_RETURN_TEXT_P(cstring_to_text(secrets_credentials_context(text_to_cstring(PG_GETARG_TEXT_PP(0)))));
}

/* _seal(secret text, context text) -> bytea: under the master key, or clear when none is set */
Datum
banked_webhooks_seal(PG_FUNCTION_ARGS)
{
	text	   *secret = PG_GETARG_TEXT_PP(0);
	char	   *context = text_to_cstring(PG_GETARG_TEXT_PP(1));
	MasterKey	master;
	MasterKeyStatus read;
	bytea	   *blob;

	if (VARSIZE_ANY_EXHDR(secret) > SECRET_MAX_SIZE)
		ereport(ERROR,
				(errcode(ERRCODE_INVALID_PARAMETER_VALUE),
				 errmsg("a secret must not be longer than %d bytes", SECRET_MAX_SIZE)));
	read = secrets_read_master_key(bw_master_key_file, &master, ERROR);
	blob = secrets_seal(read == MASTER_KEY_READ ? &master : NULL, context,
						VARDATA_ANY(secret), VARSIZE_ANY_EXHDR(secret));
	secrets_forget(&master);
	PG_RETURN_BYTEA_P(blob);
}

/*
 * _reseal(blob bytea, context text, old_key_file text) -> bytea: the same
 * secret under the present master key; null when it is sealed so already.
 */
Datum
banked_webhooks_reseal(PG_FUNCTION_ARGS)
{
	bytea	   *blob;
	char	   *context;
	MasterKey	master;
	MasterKey	old_master;
	MasterKeyStatus read_old = MASTER_KEY_NOT_SET;
	SecretStatus status;
	uint8		buffer[SECRET_MAX_SIZE];
	Size		length = 0;
	bytea	   *result = NULL;

	if (PG_ARGISNULL(0) || PG_ARGISNULL(1))
		PG_RETURN_NULL();
	blob = PG_GETARG_BYTEA_PP(0);
	context = text_to_cstring(PG_GETARG_TEXT_PP(1));
	if (secrets_read_master_key(bw_master_key_file, &master, ERROR) != MASTER_KEY_READ)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("banked_webhooks.master_key_file is not set"),
				 errhint("Set it to the file with the new master key and reload the configuration.")));
	PG_TRY();
	{
		if (!PG_ARGISNULL(2))
			read_old = secrets_read_master_key(text_to_cstring(PG_GETARG_TEXT_PP(2)), &old_master, ERROR);
		/* Else a session that has not got the new setting yet would find nothing to do. */
		if (read_old == MASTER_KEY_READ && memcmp(old_master.id, master.id, SECRET_KEY_ID_SIZE) == 0)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("the old master key is the one in force"),
					 errdetail("banked_webhooks.master_key_file is \"%s\" in this session.", bw_master_key_file),
					 errhint("Set it to the file with the new master key, reload the configuration, and connect anew.")));
		if (secrets_is_sealed_with(blob, &master))
			status = secrets_open(&master, context, blob, buffer, &length);
		else
		{
			status = secrets_open(read_old == MASTER_KEY_READ ? &old_master : NULL, context, blob, buffer, &length);
			if (status == SECRET_OK)
				result = secrets_seal(&master, context, buffer, length);
		}
	}
	PG_FINALLY();
	{
		OPENSSL_cleanse(buffer, sizeof(buffer));
		secrets_forget(&master);
		secrets_forget(&old_master);
	}
	PG_END_TRY();

	if (status == SECRET_DAMAGED)
		ereport(ERROR,
				(errcode(ERRCODE_DATA_CORRUPTED),
				 errmsg("secret \"%s\" %s", context, secrets_status_text(status)),
				 errhint("Set it anew, or forget it.")));
	if (status != SECRET_OK)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("secret \"%s\" is encrypted under another master key", context),
				 errhint("Pass the name of the file with the old master key.")));
	if (result == NULL)
		PG_RETURN_NULL();
	PG_RETURN_BYTEA_P(result);
}

static SignatureKey *
key_or_fail(SignatureKey *key)
{
	if (key == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OUT_OF_MEMORY),
				 errmsg("could not prepare a signing key")));
	return key;
}

SignatureKey *
secret_prepare_signing_key(const void *bytes, Size length)
{
	return key_or_fail(signature_key_create(bytes, length));
}

/* The prepared signing key in a blob; raises what secret_open_or_fail raises. */
static SignatureKey *
open_signing_key(const char *context, const bytea *blob)
{
	uint8		buffer[SECRET_MAX_SIZE];
	Size		length = secret_open_or_fail(context, blob, buffer);
	SignatureKey *key = signature_key_create(buffer, length);

	OPENSSL_cleanse(buffer, sizeof(buffer));
	return key_or_fail(key);
}

text *
secret_sign(SignatureKey *key, int64 seconds, const bytea *body)
{
	char		timestamp[24];
	char		header[SIGNATURE_HEADER_SIZE];
	uint8		digest[SIGNATURE_SIZE];
	bool		done;

	snprintf(timestamp, sizeof(timestamp), INT64_FORMAT, seconds);
	done = signature_compute(key, timestamp, strlen(timestamp), VARDATA_ANY(body),
							 VARSIZE_ANY_EXHDR(body), digest);
	signature_key_free(key);
	if (!done)
		elog(ERROR, "could not compute a signature");
	(void) signature_format(seconds, digest, header);
	return cstring_to_text(header);
}

/* _is_secret(blob bytea, context text, secret text) -> boolean: does the blob hold this?  No when it cannot be opened */
Datum
banked_webhooks_is_secret(PG_FUNCTION_ARGS)
{
	bytea	   *blob = PG_GETARG_BYTEA_PP(0);
	char	   *context = text_to_cstring(PG_GETARG_TEXT_PP(1));
	text	   *secret = PG_GETARG_TEXT_PP(2);
	MasterKey	master;
	MasterKeyStatus master_status = secrets_read_master_key(bw_master_key_file, &master, DEBUG1);
	uint8		buffer[SECRET_MAX_SIZE];
	Size		length = 0;
	bool		result;

	result = secrets_open(master_status == MASTER_KEY_READ ? &master : NULL, context, blob, buffer, &length) == SECRET_OK &&
		length == VARSIZE_ANY_EXHDR(secret) && CRYPTO_memcmp(buffer, VARDATA_ANY(secret), length) == 0;
	OPENSSL_cleanse(buffer, sizeof(buffer));
	secrets_forget(&master);
	PG_RETURN_BOOL(result);
}

/* _sign_with(secret bytea, context text, body bytea, at bigint) -> text: the header */
Datum
banked_webhooks_sign_with(PG_FUNCTION_ARGS)
{
	bytea	   *body = PG_GETARG_BYTEA_PP(2);
	SignatureKey *key = open_signing_key(text_to_cstring(PG_GETARG_TEXT_PP(1)), PG_GETARG_BYTEA_PP(0));

	PG_RETURN_TEXT_P(secret_sign(key, PG_GETARG_INT64(3), body));
}

/* _verify_with(secret bytea, context text, header text, body bytea) -> boolean */
Datum
banked_webhooks_verify_with(PG_FUNCTION_ARGS)
{
	text	   *header = PG_GETARG_TEXT_PP(2);
	bytea	   *body = PG_GETARG_BYTEA_PP(3);
	SignatureHeader parsed;
	SignatureKey *key;
	bool		good;

	if (!signature_parse(VARDATA_ANY(header), VARSIZE_ANY_EXHDR(header), &parsed))
		PG_RETURN_BOOL(false);
	key = open_signing_key(text_to_cstring(PG_GETARG_TEXT_PP(1)), PG_GETARG_BYTEA_PP(0));
	good = signature_verify(key, &parsed, VARDATA_ANY(body), VARSIZE_ANY_EXHDR(body));
	signature_key_free(key);
	PG_RETURN_BOOL(good);
}
