/*
 * signature.c
 *	  Banked's signature: HMAC-SHA256 over "<timestamp>.<body>".
 *
 * Fetching an algorithm from OpenSSL costs more than the digest of a usual
 * body, so the algorithms are fetched once per process, and each key keeps a
 * context of its own that is only rewound for the next message: OpenSSL then
 * starts from the inner and outer state of the keyed hash that it has stored.
 *
 * A process that uses this file has one thread.  What must never happen here:
 * a comparison that ends at the first difference, and key material or a right
 * digest left in memory that was given back.
 */
#include "signature.h"

#include <openssl/core_names.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/params.h>
#include <stdlib.h>
#include <string.h>

struct SignatureKey
{
	EVP_MAC_CTX *context;		/* keyed; rewound before each use */
};

/* Fetched on first use, kept until the process ends. */
static EVP_MAC *hmac = NULL;
static EVP_MD *sha256 = NULL;
static EVP_MD_CTX *sha256_context = NULL;

static bool parse_timestamp(const char *text, size_t length, int64_t *timestamp);

/* One more than the value of each lower-case hex digit, 0 for any other character. */
static const uint8_t hex_value_plus_1[256] = {
	['0'] = 1, ['1'] = 2, ['2'] = 3, ['3'] = 4, ['4'] = 5, ['5'] = 6, ['6'] = 7, ['7'] = 8,
	['8'] = 9, ['9'] = 10, ['a'] = 11, ['b'] = 12, ['c'] = 13, ['d'] = 14, ['e'] = 15, ['f'] = 16,
};

bool
signature_parse(const char *header, size_t length, SignatureHeader *parsed)
{
	const char *dot;
	const char *hex;

	dot = length > 0 ? memchr(header, '.', length) : NULL;
	if (dot == NULL)
		return false;

	parsed->timestamp_text = header;
	parsed->timestamp_length = (size_t) (dot - header);
	if (!parse_timestamp(header, parsed->timestamp_length, &parsed->timestamp))
		return false;

	hex = dot + 1;
	if (length - parsed->timestamp_length - 1 != 2 * SIGNATURE_SIZE)
		return false;
	for (size_t i = 0; i < SIGNATURE_SIZE; i++)
	{
		unsigned int high = hex_value_plus_1[(unsigned char) hex[2 * i]];
		unsigned int low = hex_value_plus_1[(unsigned char) hex[2 * i + 1]];

		if (high == 0 || low == 0)
			return false;
		parsed->digest[i] = (uint8_t) ((high - 1) << 4 | (low - 1));
	}
	return true;
}

SignatureKey *
signature_key_create(const void *key, size_t length)
{
	static const unsigned char no_bytes[1] = {0};
	SignatureKey *result;
	OSSL_PARAM	params[2];

	if (hmac == NULL)
		hmac = EVP_MAC_fetch(NULL, OSSL_MAC_NAME_HMAC, NULL);
	if (hmac == NULL)
		return NULL;

	result = malloc(sizeof(SignatureKey));
	if (result == NULL)
		return NULL;
	result->context = EVP_MAC_CTX_new(hmac);
	if (result->context == NULL)
	{
		free(result);
		return NULL;
	}

	/* A null pointer would mean "the key that was set before", also for an empty key. */
	if (length == 0)
		key = no_bytes;
	params[0] = OSSL_PARAM_construct_utf8_string(OSSL_MAC_PARAM_DIGEST, (char *) "SHA256", 0);
	params[1] = OSSL_PARAM_construct_end();
	if (EVP_MAC_init(result->context, key, length, params) != 1)
	{
		signature_key_free(result);
		return NULL;
	}
	return result;
}

void
signature_key_free(SignatureKey *key)
{
	if (key == NULL)
		return;

	/* OpenSSL cleanses its copy of the key and the keyed states. */
	EVP_MAC_CTX_free(key->context);
	OPENSSL_cleanse(key, sizeof(SignatureKey));
	free(key);
}

bool
signature_compute(SignatureKey *key, const char *timestamp, size_t timestamp_length,
				  const void *body, size_t body_length, uint8_t digest[SIGNATURE_SIZE])
{
	size_t		written = 0;

	return EVP_MAC_init(key->context, NULL, 0, NULL) == 1 &&
		EVP_MAC_update(key->context, (const unsigned char *) timestamp, timestamp_length) == 1 &&
		EVP_MAC_update(key->context, (const unsigned char *) ".", 1) == 1 &&
		(body_length == 0 || EVP_MAC_update(key->context, body, body_length) == 1) &&
		EVP_MAC_final(key->context, digest, &written, SIGNATURE_SIZE) == 1 &&
		written == SIGNATURE_SIZE;
}

bool
signature_verify(SignatureKey *key, const SignatureHeader *header,
				 const void *body, size_t body_length)
{
	uint8_t		digest[SIGNATURE_SIZE];
	bool		equal;

	equal = signature_compute(key, header->timestamp_text, header->timestamp_length,
							  body, body_length, digest) &&
		CRYPTO_memcmp(digest, header->digest, SIGNATURE_SIZE) == 0;

	/* It is the signature that a forger of this body would like to know. */
	OPENSSL_cleanse(digest, sizeof(digest));
	return equal;
}

/*
 * signature_format returns 0 and leaves an empty text for a time that
 * signature_parse would not accept: before 1970 or of too many digits.
 */
size_t
signature_format(int64_t timestamp, const uint8_t digest[SIGNATURE_SIZE],
				 char text[SIGNATURE_HEADER_SIZE])
{
	static const char hex[] = "0123456789abcdef";
	char		digits[SIGNATURE_MAX_TIMESTAMP];
	size_t		count = 0;
	size_t		length = 0;

	text[0] = '\0';
	if (timestamp < 0)
		return 0;
	do
	{
		if (count == SIGNATURE_MAX_TIMESTAMP)
			return 0;
		digits[count++] = (char) ('0' + timestamp % 10);
		timestamp /= 10;
	} while (timestamp > 0);

	while (count > 0)
		text[length++] = digits[--count];
	text[length++] = '.';
	for (size_t i = 0; i < SIGNATURE_SIZE; i++)
	{
		text[length++] = hex[digest[i] >> 4];
		text[length++] = hex[digest[i] & 15];
	}
	text[length] = '\0';
	return length;
}

bool
signature_sha256(const void *body, size_t length, uint8_t digest[SIGNATURE_SIZE])
{
	unsigned int written = 0;

	if (sha256 == NULL)
		sha256 = EVP_MD_fetch(NULL, "SHA256", NULL);
	if (sha256_context == NULL)
		sha256_context = EVP_MD_CTX_new();
	if (sha256 == NULL || sha256_context == NULL)
		return false;
	return EVP_DigestInit_ex2(sha256_context, sha256, NULL) == 1 &&
		(length == 0 || EVP_DigestUpdate(sha256_context, body, length) == 1) &&
		EVP_DigestFinal_ex(sha256_context, digest, &written) == 1 &&
		written == SIGNATURE_SIZE;
}

static bool
parse_timestamp(const char *text, size_t length, int64_t *timestamp)
{
	int64_t		value = 0;

	if (length < 1 || length > SIGNATURE_MAX_TIMESTAMP)
		return false;
	if (text[0] == '0' && length > 1)
		return false;
	for (size_t i = 0; i < length; i++)
	{
		if (text[i] < '0' || text[i] > '9')
			return false;
		value = value * 10 + (text[i] - '0');
	}
	*timestamp = value;
	return true;
}
