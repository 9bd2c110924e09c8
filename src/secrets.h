/*
 * secrets.h
 *	  Signing keys and API credentials at rest: sealed under the master key.
 *
 * Words: a secret is the plain bytes; a blob is what a table holds of it.  A
 * blob begins with one byte that tells its kind:
 *
 *	 0	clear: the secret follows as it is
 *	 1	sealed: id of the master key (8 bytes), nonce (12), tag (16), ciphertext
 *
 * Sealing is AES-256-GCM under the key in banked_webhooks.master_key_file,
 * with a random nonce.  Everything before the nonce, and the caller's context,
 * which names the row and column, is additional data: a blob that was put into
 * another place does not open there.  The id, the beginning of a hash of the
 * master key, tells a wrong master key from a damaged blob.
 *
 * No SQL here.  Nothing here puts a secret into a message.
 */
#ifndef BW_SECRETS_H
#define BW_SECRETS_H

#include "postgres.h"

#include "utils/uuid.h"

#define SECRET_MASTER_KEY_SIZE 32
#define SECRET_KEY_ID_SIZE 8
#define SECRET_MAX_SIZE 8192	/* of a plain secret, in bytes */

/* A master key in memory; to be cleansed by secrets_forget. */
typedef struct MasterKey
{
	uint8		id[SECRET_KEY_ID_SIZE];
	uint8		key[SECRET_MASTER_KEY_SIZE];
} MasterKey;

typedef enum SecretStatus
{
	SECRET_OK,
	SECRET_NO_MASTER_KEY,		/* sealed, and no master key is at hand */
	SECRET_OTHER_MASTER_KEY,	/* sealed under another one */
	SECRET_DAMAGED				/* changed, cut off, or moved from another row */
} SecretStatus;

/* What secrets_read_master_key says. */
typedef enum MasterKeyStatus
{
	MASTER_KEY_READ,
	MASTER_KEY_NOT_SET,			/* the name of the file is empty */
	MASTER_KEY_UNUSABLE			/* an error was reported at the level asked for */
} MasterKeyStatus;

/*
 * Reads a master key from a file, which must hold 32 bytes, or 64 hexadecimal
 * digits, and be as private as a TLS key of the server.  Problems are reported
 * at elevel (ERROR, or LOG to go on without); the file's contents never are.
 */
extern MasterKeyStatus secrets_read_master_key(const char *path, MasterKey *master, int elevel);

/* Cleanses a master key. */
extern void secrets_forget(MasterKey *master);

/*
 * The context of a signing key, and of API credentials, palloc'ed.  A blob opens
 * under the very bytes that it was sealed with: these never change.
 */
extern char *secrets_key_context(const pg_uuid_t *key_id);
extern char *secrets_credentials_context(const char *name);

/* Seals a secret in a palloc'ed blob; with a null master key the blob is clear. */
extern bytea *secrets_seal(const MasterKey *master, const char *context,
						   const void *secret, Size length);

/*
 * Opens a blob into buffer (SECRET_MAX_SIZE bytes, to be cleansed by the
 * caller); master is null when there is none.  Buffer and length are set only
 * with SECRET_OK.
 */
extern SecretStatus secrets_open(const MasterKey *master, const char *context, const bytea *blob,
								 uint8 *buffer, Size *length);

/* Is a blob sealed under this master key? */
extern bool secrets_is_sealed_with(const bytea *blob, const MasterKey *master);

/* What a status means, as the rest of a sentence that begins with the name of a secret. */
extern const char *secrets_status_text(SecretStatus status);

#endif							/* BW_SECRETS_H */
