/*
 * secret_functions.h
 *	  Opening a secret of a table, for code that runs as the extension's owner,
 *	  and preparing a signing key.
 */
#ifndef BW_SECRET_FUNCTIONS_H
#define BW_SECRET_FUNCTIONS_H

#include "postgres.h"

#include "signature.h"

/*
 * Opens a blob into buffer (SECRET_MAX_SIZE bytes, to be cleansed by the
 * caller) and returns the length.  Raises 55000 when no master key is set or it
 * is another one; 58P01 when its file is missing, 42501 or 58030 when it cannot
 * be read, F0000 when it is unusable; XX001 when the blob is damaged.  Nothing
 * of the secret is in the buffer then.
 */
extern Size secret_open_or_fail(const char *context, const bytea *blob, uint8 *buffer);

/* A signing key, prepared for use; raises 53200 when memory is short or OpenSSL fails. */
extern SignatureKey *secret_prepare_signing_key(const void *bytes, Size length);

/* The header for a body at a Unix time; frees the key.  Raises XX000 when OpenSSL fails. */
extern text *secret_sign(SignatureKey *key, int64 seconds, const bytea *body);

#endif							/* BW_SECRET_FUNCTIONS_H */
