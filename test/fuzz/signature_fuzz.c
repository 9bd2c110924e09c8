/*
 * signature_fuzz.c
 *	  The value of the header banked-signature, of any bytes.
 *
 * The input is a header and, after a line feed, a body.  A header that is
 * accepted must be the only spelling of what was read from it.
 */
#include "signature.h"

#include "fuzz.h"

static const char key_text[] = "0123456789abcdef";

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	static SignatureKey *key;
	Input		input = {data, size};
	size_t		length;
	char	   *header = input_until(&input, '\n', &length);
	char	   *body = malloc(input.left > 0 ? input.left : 1);
	SignatureHeader parsed;
	char		text[SIGNATURE_HEADER_SIZE];
	uint8_t		digest[SIGNATURE_SIZE];

	memcpy(body, input.at, input.left);
	if (key == NULL)
		key = signature_key_create(key_text, sizeof(key_text) - 1);

	if (signature_parse(header, length, &parsed))
	{
		FUZZ_CHECK(parsed.timestamp >= 0 && parsed.timestamp_length <= SIGNATURE_MAX_TIMESTAMP);
		FUZZ_CHECK(signature_format(parsed.timestamp, parsed.digest, text) == length);
		FUZZ_CHECK(memcmp(text, header, length) == 0);

		/* The proper signature is accepted, and no other. */
		FUZZ_CHECK(signature_compute(key, parsed.timestamp_text, parsed.timestamp_length,
									 body, input.left, digest));
		FUZZ_CHECK(signature_verify(key, &parsed, body, input.left) ==
				   (memcmp(digest, parsed.digest, sizeof(digest)) == 0));
		memcpy(parsed.digest, digest, sizeof(digest));
		FUZZ_CHECK(signature_verify(key, &parsed, body, input.left));
	}
	free(body);
	free(header);
	return 0;
}
