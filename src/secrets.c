/*
 * secrets.c
 *	  Signing keys and API credentials at rest: sealed under the master key.
 *
 * See secrets.h for the format.  The master key is read from its file whenever
 * it is needed, which is seldom, and is cleansed afterwards: no process keeps it.
 */
#include "postgres.h"

#include <fcntl.h>
#include <unistd.h>

#include <openssl/crypto.h>
#include <openssl/evp.h>

#include "storage/fd.h"
#include "utils/builtins.h"

#include "private_file.h"
#include "secrets.h"

#define KIND_CLEAR 0
#define KIND_SEALED 1

#define NONCE_SIZE 12
#define TAG_SIZE 16
#define HEADER_SIZE (1 + SECRET_KEY_ID_SIZE)	/* kind and id of the master key */
#define SEALED_OVERHEAD (HEADER_SIZE + NONCE_SIZE + TAG_SIZE)

/* What is hashed before the master key to give its id. */
#define ID_LABEL "banked_webhooks master key id"

/* The value of a hexadecimal digit, -1 for any other character. */
static int
hex_digit(unsigned char c)
{
	if (c >= '0' && c <= '9')
		return c - '0';
	if (c >= 'a' && c <= 'f')
		return c - 'a' + 10;
	if (c >= 'A' && c <= 'F')
		return c - 'A' + 10;
	return -1;
}

/* Raw bytes, or digits with at most one end of line behind them. */
static bool
decode_master_key(const uint8 *text, Size length, uint8 *key)
{
	if (length == SECRET_MASTER_KEY_SIZE)
	{
		memcpy(key, text, SECRET_MASTER_KEY_SIZE);
		return true;
	}
	if (length > 2 * SECRET_MASTER_KEY_SIZE && text[length - 1] == '\n')
		length--;
	if (length > 2 * SECRET_MASTER_KEY_SIZE && text[length - 1] == '\r')
		length--;
	if (length != 2 * SECRET_MASTER_KEY_SIZE)
		return false;
	for (int i = 0; i < SECRET_MASTER_KEY_SIZE; i++)
	{
		int			high = hex_digit(text[2 * i]);
		int			low = hex_digit(text[2 * i + 1]);

		if (high < 0 || low < 0)
			return false;
		key[i] = (uint8) (high << 4 | low);
	}
	return true;
}

static void
compute_id(MasterKey *master)
{
	uint8		text[sizeof(ID_LABEL) + SECRET_MASTER_KEY_SIZE];
	uint8		digest[EVP_MAX_MD_SIZE];

	memcpy(text, ID_LABEL, sizeof(ID_LABEL));
	memcpy(text + sizeof(ID_LABEL), master->key, SECRET_MASTER_KEY_SIZE);
	if (EVP_Digest(text, sizeof(text), digest, NULL, EVP_sha256(), NULL) != 1)
		elog(ERROR, "could not compute a SHA-256");
	memcpy(master->id, digest, SECRET_KEY_ID_SIZE);
	OPENSSL_cleanse(text, sizeof(text));
	OPENSSL_cleanse(digest, sizeof(digest));
}

/* Reads at most size bytes of the file; -1 when it cannot be used, which is reported then. */
static ssize_t
read_master_key_file(const char *path, uint8 *text, Size size, int elevel)
{
	struct stat status;
	const char *problem;
	ssize_t		length = -1;
	int			file;

	/* Without waiting, should it be a pipe. */
	file = OpenTransientFile(path, O_RDONLY | O_NONBLOCK | PG_BINARY);
	if (file < 0 || fstat(file, &status) != 0)
		ereport(elevel,
				(errcode_for_file_access(),
				 errmsg("could not open master key file \"%s\": %m", path)));
	else if ((problem = private_file_problem(&status)) != NULL)
		ereport(elevel,
				(errcode(ERRCODE_CONFIG_FILE_ERROR),
				 errmsg("cannot use master key file \"%s\": %s", path, problem)));
	else if ((length = read(file, text, size)) < 0)
		ereport(elevel,
				(errcode_for_file_access(),
				 errmsg("could not read master key file \"%s\": %m", path)));
	if (file >= 0)
		CloseTransientFile(file);
	return length;
}

MasterKeyStatus
secrets_read_master_key(const char *path, MasterKey *master, int elevel)
{
	uint8		text[2 * SECRET_MASTER_KEY_SIZE + 3];
	ssize_t		length;
	bool		decoded;

	if (path == NULL || path[0] == '\0')
		return MASTER_KEY_NOT_SET;
	length = read_master_key_file(path, text, sizeof(text), elevel);
	if (length < 0)
		return MASTER_KEY_UNUSABLE;

	decoded = decode_master_key(text, length, master->key);
	OPENSSL_cleanse(text, sizeof(text));
	if (!decoded)
	{
		ereport(elevel,
				(errcode(ERRCODE_CONFIG_FILE_ERROR),
				 errmsg("master key file \"%s\" does not hold a master key", path),
				 errdetail("A master key is %d bytes, or twice as many hexadecimal digits.",
						   SECRET_MASTER_KEY_SIZE)));
		return MASTER_KEY_UNUSABLE;
	}
	compute_id(master);
	return MASTER_KEY_READ;
}

void
secrets_forget(MasterKey *master)
{
	OPENSSL_cleanse(master, sizeof(*master));
}

char *
secrets_key_context(const pg_uuid_t *key_id)
{
	return psprintf("key_secrets %s", DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(key_id))));
}

char *
secrets_credentials_context(const char *name)
{
	return psprintf("api_credentials %s", name);
}

/*
 * Runs AES-256-GCM over input, in one direction or the other.  header is the
 * beginning of the blob: kind, id, nonce, tag.
 */
static bool
run_cipher(bool sealing, const MasterKey *master, const char *context, uint8 *header,
		   const uint8 *input, Size length, uint8 *output)
{
	EVP_CIPHER_CTX *cipher = EVP_CIPHER_CTX_new();
	uint8	   *nonce = header + HEADER_SIZE;
	uint8	   *tag = nonce + NONCE_SIZE;
	int			written = 0;
	int			rest = 0;
	bool		done;

	if (cipher == NULL)
		return false;
	done = EVP_CipherInit_ex(cipher, EVP_aes_256_gcm(), NULL, master->key, nonce, sealing) == 1 &&
		EVP_CipherUpdate(cipher, NULL, &written, header, HEADER_SIZE) == 1 &&
		EVP_CipherUpdate(cipher, NULL, &written, (const uint8 *) context, strlen(context)) == 1 &&
		EVP_CipherUpdate(cipher, output, &written, input, length) == 1 &&
		(sealing || EVP_CIPHER_CTX_ctrl(cipher, EVP_CTRL_GCM_SET_TAG, TAG_SIZE, tag) == 1) &&
		EVP_CipherFinal_ex(cipher, output + written, &rest) == 1 &&
		(!sealing || EVP_CIPHER_CTX_ctrl(cipher, EVP_CTRL_GCM_GET_TAG, TAG_SIZE, tag) == 1);
	EVP_CIPHER_CTX_free(cipher);
	return done;
}

bytea *
secrets_seal(const MasterKey *master, const char *context, const void *secret, Size length)
{
	Size		overhead = master == NULL ? 1 : SEALED_OVERHEAD;
	bytea	   *blob = palloc(VARHDRSZ + overhead + length);
	uint8	   *data = (uint8 *) VARDATA(blob);

	Assert(length <= SECRET_MAX_SIZE);
	SET_VARSIZE(blob, VARHDRSZ + overhead + length);
	if (master == NULL)
	{
		data[0] = KIND_CLEAR;
		memcpy(data + 1, secret, length);
		return blob;
	}

	data[0] = KIND_SEALED;
	memcpy(data + 1, master->id, SECRET_KEY_ID_SIZE);
	if (!pg_strong_random(data + HEADER_SIZE, NONCE_SIZE))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not generate random bytes")));
	if (!run_cipher(true, master, context, data, secret, length, data + SEALED_OVERHEAD))
		ereport(ERROR,
				(errcode(ERRCODE_INTERNAL_ERROR),
				 errmsg("could not encrypt a secret")));
	return blob;
}

SecretStatus
secrets_open(const MasterKey *master, const char *context, const bytea *blob,
			 uint8 *buffer, Size *length)
{
	Size		size = VARSIZE_ANY_EXHDR(blob);
	uint8	   *data = (uint8 *) VARDATA_ANY(blob);

	if (size >= 1 && data[0] == KIND_CLEAR && size - 1 <= SECRET_MAX_SIZE)
	{
		memcpy(buffer, data + 1, size - 1);
		*length = size - 1;
		return SECRET_OK;
	}
	if (size < SEALED_OVERHEAD || data[0] != KIND_SEALED || size - SEALED_OVERHEAD > SECRET_MAX_SIZE)
		return SECRET_DAMAGED;
	if (master == NULL)
		return SECRET_NO_MASTER_KEY;
	if (!secrets_is_sealed_with(blob, master))
		return SECRET_OTHER_MASTER_KEY;
	if (!run_cipher(false, master, context, data, data + SEALED_OVERHEAD, size - SEALED_OVERHEAD, buffer))
	{
		OPENSSL_cleanse(buffer, size - SEALED_OVERHEAD);
		return SECRET_DAMAGED;
	}
	*length = size - SEALED_OVERHEAD;
	return SECRET_OK;
}

bool
secrets_is_sealed_with(const bytea *blob, const MasterKey *master)
{
	const uint8 *data = (const uint8 *) VARDATA_ANY(blob);

	return VARSIZE_ANY_EXHDR(blob) >= SEALED_OVERHEAD && data[0] == KIND_SEALED &&
		memcmp(data + 1, master->id, SECRET_KEY_ID_SIZE) == 0;
}

const char *
secrets_status_text(SecretStatus status)
{
	switch (status)
	{
		case SECRET_OK:
			return "can be read";
		case SECRET_NO_MASTER_KEY:
			return "is encrypted, and banked_webhooks.master_key_file gives no master key";
		case SECRET_OTHER_MASTER_KEY:
			return "is encrypted under another master key than the one in banked_webhooks.master_key_file";
		case SECRET_DAMAGED:
			return "is damaged, or belongs to another row";
	}
	return "cannot be read";	/* not reached */
}
