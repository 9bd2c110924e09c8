/*
 * signature_test.c
 *	  Signatures: published vectors, the value for the SDK's fixture, and
 *	  headers that are almost right.
 *
 * The argument is the directory of the example bodies.
 */
#include "signature.h"

#include <stdlib.h>
#include <string.h>

#include "tap.h"

#define FIXTURE "sdk-banked-node-fixture_no_event_field.json"

/*
 * The signed text always has a dot in it, and the data of most vectors of RFC
 * 4231 has none.  So HMAC is written down once more here, from its definition,
 * on signature_sha256; that is held against the RFC's vectors, and
 * signature_compute against that.
 */
static void
reference_hmac(const void *key, size_t key_length, const void *data, size_t length,
			   uint8_t digest[SIGNATURE_SIZE])
{
	uint8_t		block[64] = {0};
	uint8_t    *inner = malloc(64 + length);
	uint8_t		outer[64 + SIGNATURE_SIZE];

	if (key_length > sizeof(block))
		signature_sha256(key, key_length, block);
	else if (key_length > 0)
		memcpy(block, key, key_length);
	for (int i = 0; i < 64; i++)
	{
		inner[i] = block[i] ^ 0x36;
		outer[i] = block[i] ^ 0x5c;
	}
	memcpy(inner + 64, data, length);
	signature_sha256(inner, 64 + length, outer + 64);
	signature_sha256(outer, sizeof(outer), digest);
	free(inner);
}

static bool
digest_is(const uint8_t digest[SIGNATURE_SIZE], const char *expected)
{
	char		hex[2 * SIGNATURE_SIZE + 1];

	for (int i = 0; i < SIGNATURE_SIZE; i++)
		snprintf(hex + 2 * i, 3, "%02x", digest[i]);
	if (strncmp(hex, expected, strlen(expected)) == 0)
		return true;
	printf("# got %s\n", hex);
	return false;
}

static void
test_rfc4231(void)
{
	static const char data6[] = "Test Using Larger Than Block-Size Key - Hash Key First";
	static const char data7[] = "This is a test using a larger than block-size key and a larger "
		"than block-size data. The key needs to be hashed before being used by the HMAC algorithm.";
	const char *dot = strchr(data7, '.');
	uint8_t		key[131];
	uint8_t		data[50];
	uint8_t		digest[SIGNATURE_SIZE];
	SignatureKey *ready;

	memset(key, 0x0b, 20);
	reference_hmac(key, 20, "Hi There", 8, digest);
	TAP_OK(digest_is(digest, "b0344c61d8db38535ca8afceaf0bf12b881dc200c9833da726e9376c2e32cff7"),
		   "RFC 4231 case 1");
	reference_hmac("Jefe", 4, "what do ya want for nothing?", 28, digest);
	TAP_OK(digest_is(digest, "5bdcc146bf60754e6a042426089575c75a003f089d2739839dec58b964ec3843"),
		   "RFC 4231 case 2");
	memset(key, 0xaa, 20);
	memset(data, 0xdd, 50);
	reference_hmac(key, 20, data, 50, digest);
	TAP_OK(digest_is(digest, "773ea91e36800e46854db8ebd09181a72959098b3ef8c122d9635514ced565fe"),
		   "RFC 4231 case 3");
	for (int i = 0; i < 25; i++)
		key[i] = (uint8_t) (i + 1);
	memset(data, 0xcd, 50);
	reference_hmac(key, 25, data, 50, digest);
	TAP_OK(digest_is(digest, "82558a389a443c0ea4cc819899f2083a85f0faa3e578f8077a2e3ff46729665b"),
		   "RFC 4231 case 4");
	memset(key, 0x0c, 20);
	reference_hmac(key, 20, "Test With Truncation", 20, digest);
	TAP_OK(digest_is(digest, "a3b6167473100ee06e0c796c2955552b"), "RFC 4231 case 5");
	memset(key, 0xaa, 131);
	reference_hmac(key, 131, data6, sizeof(data6) - 1, digest);
	TAP_OK(digest_is(digest, "60e431591ee0b67f0d8a26aacbf5b77f8e0bc6213728c5140546040f0ee37f54"),
		   "RFC 4231 case 6");

	/* the one with a dot in its data goes through the interface itself */
	ready = signature_key_create(key, 131);
	TAP_OK(ready != NULL &&
		   signature_compute(ready, data7, (size_t) (dot - data7), dot + 1, strlen(dot + 1), digest) &&
		   digest_is(digest, "9b09ffa71b942fcb27635fbcd5b0e944bfdc63644f0713938a7f51535c3a35e2"),
		   "RFC 4231 case 7");
	signature_key_free(ready);
}

/* Keys and bodies of many lengths, each key used several times. */
static void
test_against_reference(void)
{
	uint8_t		bytes[600];
	unsigned	seed = 1;
	int			wrong = 0;

	for (size_t i = 0; i < sizeof(bytes); i++)
	{
		seed = seed * 1103515245 + 12345;
		bytes[i] = (uint8_t) (seed >> 16);
	}
	for (size_t key_length = 0; key_length <= 140; key_length++)
	{
		SignatureKey *key = signature_key_create(bytes, key_length);

		for (size_t length = 0; length <= 300; length += 37)
		{
			uint8_t		text[400] = "1700000000.";
			uint8_t		expected[SIGNATURE_SIZE];
			uint8_t		digest[SIGNATURE_SIZE];

			memcpy(text + 11, bytes + 200, length);
			reference_hmac(bytes, key_length, text, 11 + length, expected);
			if (key == NULL ||
				!signature_compute(key, "1700000000", 10, bytes + 200, length, digest) ||
				memcmp(digest, expected, SIGNATURE_SIZE) != 0)
				wrong++;
		}
		signature_key_free(key);
	}
	TAP_IS(wrong, 0, "keys of 0 to 140 bytes, nine messages each");
}

static void
test_fixture(const char *directory)
{
	static const char key_text[] =
		"f063a7029d6b959d8cc11e23148a302929da113a6b0671238ab9d1bcfb63645a";
	static const char header[] =
		"1700000000.710098df00382cb83d34201697527f94f8517bc6a79cd2a7fd38a8f01656dcda";
	char		name[1024];
	char		body[4096];
	char		text[SIGNATURE_HEADER_SIZE];
	uint8_t		digest[SIGNATURE_SIZE];
	SignatureHeader parsed;
	SignatureKey *key = signature_key_create(key_text, strlen(key_text));
	SignatureKey *other = signature_key_create(key_text, strlen(key_text) - 1);
	FILE	   *file;
	size_t		length = 0;

	snprintf(name, sizeof(name), "%s/%s", directory, FIXTURE);
	file = fopen(name, "rb");
	if (file != NULL)
	{
		length = fread(body, 1, sizeof(body), file);
		fclose(file);
	}
	TAP_IS(length, 647, "the fixture is there");
	TAP_OK(signature_parse(header, strlen(header), &parsed) && parsed.timestamp == 1700000000 &&
		   parsed.timestamp_length == 10, "its header is taken apart");
	TAP_OK(signature_verify(key, &parsed, body, length), "its signature is right");
	TAP_OK(signature_verify(key, &parsed, body, length), "and still is, with the same key");
	TAP_OK(!signature_verify(other, &parsed, body, length), "not with another key");
	TAP_OK(!signature_verify(key, &parsed, body, length - 1), "not for a byte less");
	body[100] ^= 1;
	TAP_OK(!signature_verify(key, &parsed, body, length), "not for another bit");
	body[100] ^= 1;

	for (int i = 0, wrong = 0; i < 8 * SIGNATURE_SIZE; i++)
	{
		parsed.digest[i / 8] ^= (uint8_t) (1 << i % 8);
		wrong += signature_verify(key, &parsed, body, length) ? 1 : 0;
		parsed.digest[i / 8] ^= (uint8_t) (1 << i % 8);
		if (i == 8 * SIGNATURE_SIZE - 1)
			TAP_IS(wrong, 0, "not for any bit of the digest");
	}

	TAP_OK(signature_compute(key, "1700000000", 10, body, length, digest) &&
		   signature_format(1700000000, digest, text) == strlen(header) &&
		   strcmp(text, header) == 0, "computing and formatting gives the header");
	TAP_OK(signature_verify(key, &parsed, body, length), "another message in between does no harm");
	signature_key_free(key);
	signature_key_free(other);
	signature_key_free(NULL);
}

static void
test_header(void)
{
	static const char hex[] = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff";
	static const struct
	{
		const char *before;
		bool		accepted;
	}			cases[] = {
		{"1700000000.", true},
		{"0.", true},
		{"1.", true},
		{"999999999999.", true},
		{"1000000000000.", false},
		{"18446744073709551616.", false},
		{"01.", false},
		{"00.", false},
		{".", false},
		{"", false},
		{"-1.", false},
		{"+1.", false},
		{" 1.", false},
		{"1 .", false},
		{"1e9.", false},
		{"0x1.", false},
		{"1..", false},
		{"1.0.", false},
		{"1,", false},
		{"\xd9\xa1.", false},
		{"t=1.", false},
	};
	static const char *const endings[] = {"", " ", "0", "00", "\n", ",", "."};
	char		text[200];
	SignatureHeader parsed;
	size_t		length;

	for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++)
	{
		length = (size_t) snprintf(text, sizeof(text), "%s%s", cases[i].before, hex);
		TAP_IS(signature_parse(text, length, &parsed), cases[i].accepted,
			   "timestamp \"%s\"", cases[i].before);
	}
	for (size_t i = 0; i < sizeof(endings) / sizeof(endings[0]); i++)
	{
		length = (size_t) snprintf(text, sizeof(text), "1.%s%s", hex, endings[i]);
		TAP_IS(signature_parse(text, length, &parsed), i == 0, "ending %d", (int) i);
	}

	length = (size_t) snprintf(text, sizeof(text), "1.%s", hex);
	TAP_OK(signature_parse(text, length, &parsed) && parsed.digest[0] == 0 &&
		   parsed.digest[1] == 0x11 && parsed.digest[31] == 0xff, "digits become bytes");
	for (size_t cut = 0; cut < length; cut++)
	{
		char	   *copy = malloc(cut > 0 ? cut : 1);

		memcpy(copy, text, cut);
		if (signature_parse(copy, cut, &parsed))
			TAP_OK(false, "cut to %d bytes", (int) cut);
		free(copy);
	}
	for (int c = 0; c < 256; c++)
	{
		bool		digit = (c >= '0' && c <= '9') || (c >= 'a' && c <= 'f');

		text[40] = (char) c;
		if (signature_parse(text, length, &parsed) != digit)
			TAP_OK(false, "byte %d as a digit", c);
	}
	TAP_OK(true, "cut short, and every byte as a digit");
}

static void
test_format(void)
{
	uint8_t		digest[SIGNATURE_SIZE] = {0};
	char		text[SIGNATURE_HEADER_SIZE];

	TAP_IS(signature_format(0, digest, text), 66, "time 0");
	TAP_IS(signature_format(INT64_C(999999999999), digest, text), SIGNATURE_HEADER_SIZE - 1,
		   "the latest time fits");
	TAP_IS(signature_format(INT64_C(1000000000000), digest, text), 0, "a later one is refused");
	TAP_IS(signature_format(-1, digest, text), 0, "a time before 1970 is refused");
	TAP_IS(text[0], 0, "with an empty text");
}

int
main(int argc, char **argv)
{
	uint8_t		digest[SIGNATURE_SIZE];

	TAP_OK(signature_sha256("abc", 3, digest) &&
		   digest_is(digest, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"),
		   "SHA-256 of abc");
	TAP_OK(signature_sha256(NULL, 0, digest) &&
		   digest_is(digest, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"),
		   "SHA-256 of nothing");
	test_rfc4231();
	test_against_reference();
	test_fixture(argc > 1 ? argv[1] : "test/payloads");
	test_header();
	test_format();
	return tap_done();
}
