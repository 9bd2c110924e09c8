/*
 * signature.h
 *	  Banked's signature: HMAC-SHA256 over "<timestamp>.<body>".
 *
 * The header banked-signature is "<unix seconds>.<64 lower-case hex digits>".
 * The signed text is the timestamp exactly as sent, a dot and the raw body;
 * the key is the endpoint's signing key as a byte string, never decoded.
 *
 * Comparison takes the same time wherever the first difference is, and key
 * material is cleansed before its memory is given back.  No postgres.h here:
 * the gateway checks the form of the header with signature_parse, and never
 * sees a key.
 */
#ifndef BW_SIGNATURE_H
#define BW_SIGNATURE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define SIGNATURE_SIZE 32		/* bytes of a SHA-256 digest */
#define SIGNATURE_MAX_TIMESTAMP 12	/* digits: seconds up to the year 33658 */
#define SIGNATURE_HEADER_SIZE (SIGNATURE_MAX_TIMESTAMP + 1 + 2 * SIGNATURE_SIZE + 1)

/* A header of the right form, taken apart. */
typedef struct SignatureHeader
{
	int64_t		timestamp;		/* seconds since the Unix epoch */
	const char *timestamp_text; /* as sent, inside the header */
	size_t		timestamp_length;
	uint8_t		digest[SIGNATURE_SIZE];
} SignatureHeader;

/* A signing key, ready for use. */
typedef struct SignatureKey SignatureKey;

/*
 * Takes a header apart.  False unless it is digits (1 to SIGNATURE_MAX_TIMESTAMP,
 * without a leading zero unless it is "0" alone, so that the signed text can be
 * rebuilt from the stored time), one dot and 64 lower-case hex digits, and nothing else.
 */
extern bool signature_parse(const char *header, size_t length, SignatureHeader *parsed);

/* Prepares a key; null when memory is short or OpenSSL fails.  The caller's bytes are not kept. */
extern SignatureKey *signature_key_create(const void *key, size_t length);

/* Cleanses and frees; null is allowed. */
extern void signature_key_free(SignatureKey *key);

/* Computes the digest of timestamp, dot and body; false when OpenSSL fails. */
extern bool signature_compute(SignatureKey *key, const char *timestamp, size_t timestamp_length,
							  const void *body, size_t body_length, uint8_t digest[SIGNATURE_SIZE]);

/* Does the header's digest belong to this body under this key?  False also when OpenSSL fails. */
extern bool signature_verify(SignatureKey *key, const SignatureHeader *header,
							 const void *body, size_t body_length);

/* Writes "<timestamp>.<hex>" and a terminating null into text; returns its length. */
extern size_t signature_format(int64_t timestamp, const uint8_t digest[SIGNATURE_SIZE],
							   char text[SIGNATURE_HEADER_SIZE]);

/* SHA-256 of a body; false when OpenSSL fails. */
extern bool signature_sha256(const void *body, size_t length, uint8_t digest[SIGNATURE_SIZE]);

#endif							/* BW_SIGNATURE_H */
