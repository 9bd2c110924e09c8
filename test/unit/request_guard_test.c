/*
 * request_guard_test.c
 *	  The request guard: every answer that it gives, their precedence, and the
 *	  oddities that the HTTP library lets through.
 */
#include "gateway/request_guard.h"

#include <stdlib.h>
#include <string.h>

#include "tap.h"

#define HEX32 "00112233445566778899aabbccddeeff"
#define SIGNATURE "1700000000." HEX32 HEX32

/* A proper request; tests change what they are about. */
typedef struct Request
{
	const char *method;
	const char *target;
	const char *version;
	const char *headers[12];	/* "Name: value", up to the first null */
	uint64_t	header_size;
	GuardPath	path;
	bool		overloaded;
} Request;

static Request
proper(void)
{
	Request		request = {"POST", "/hook", "HTTP/1.1",
		{"Host: example.com", "Content-Length: 10", "Banked-Signature: " SIGNATURE},
	200, GUARD_PATH_ACTIVE, false};

	return request;
}

static void
show(RequestGuard *guard, const char *header, size_t length)
{
	const char *colon = memchr(header, ':', length);
	size_t		name_length = (size_t) (colon - header);
	size_t		skip = name_length + 1 < length && colon[1] == ' ' ? 2 : 1;
	size_t		value_length = length - name_length - skip;
	char	   *name = malloc(name_length + 1);
	char	   *value = malloc(value_length + 1);

	/* exact copies without a terminating null, for a memory checker */
	memcpy(name, header, name_length);
	memcpy(value, header + name_length + skip, value_length);
	name = realloc(name, name_length > 0 ? name_length : 1);
	value = realloc(value, value_length > 0 ? value_length : 1);
	guard_header(guard, name, name_length, value, value_length);
	free(name);
	free(value);
}

static GuardVerdict
decide(const Request *request, RequestGuard *guard)
{
	GuardContext context = {request->method, request->version, request->header_size, 16384, 1000,
	request->path, request->overloaded};

	guard_begin(guard, request->target, strlen(request->target));
	for (int i = 0; i < 12 && request->headers[i] != NULL; i++)
		show(guard, request->headers[i], strlen(request->headers[i]));
	return guard_decide(guard, &context);
}

static void
verdict_is(const Request *request, int status, int reason, const char *name)
{
	RequestGuard guard;
	GuardVerdict verdict = decide(request, &guard);

	if (!TAP_OK(verdict.status == status && (status == 0 || verdict.reason == reason),
				"%s: %d", name, status))
		printf("# got %d, %s\n", verdict.status, frame_rejection_name(verdict.reason));
}

/* A proper request with its header number i replaced, or dropped when null. */
static void
header_is(int i, const char *header, int status, int reason, const char *name)
{
	Request		request = proper();

	request.headers[i] = header;
	if (header == NULL)
	{
		request.headers[i] = request.headers[2];
		request.headers[2] = NULL;
	}
	verdict_is(&request, status, reason, name);
}

/* A proper request with one more header. */
static void
extra_is(const char *header, int status, int reason)
{
	header_is(3, header, status, reason, header);
}

static void
test_proper(void)
{
	Request		request = proper();
	RequestGuard guard;

	verdict_is(&request, 0, 0, "a proper request");
	decide(&request, &guard);
	TAP_OK(guard.content_length == 10 && guard.path_length == 5 &&
		   memcmp(guard.path, "/hook", 5) == 0 &&
		   guard.signature_length == strlen(SIGNATURE) &&
		   memcmp(guard.signature, SIGNATURE, strlen(SIGNATURE)) == 0, "what was seen of it");

	request.target = "/hook?a=b/%2f&c";
	verdict_is(&request, 0, 0, "with a query");
	decide(&request, &guard);
	TAP_IS(guard.path_length, 5, "the path ends before the query");
	request = proper();
	request.version = "HTTP/1.0";
	verdict_is(&request, 0, 0, "HTTP/1.0");
	request.headers[0] = "X: y";
	verdict_is(&request, 0, 0, "HTTP/1.0 without Host");

	header_is(0, "HOST: [::1]:8080", 0, 0, "names in upper case, an address as Host");
	header_is(0, "Host:", 0, 0, "an empty Host");
	header_is(1, "content-length: 0", 0, 0, "no body");
	header_is(1, "Content-Length: 0010", 0, 0, "leading zeros");
	header_is(1, "Content-Length: 1000", 0, 0, "a body at the limit");
	extra_is("X-Any: a\tb \xc3\xa4", 0, 0);
	extra_is("Upgrade: h2c", 0, 0);
	extra_is("Expect: 100-continue", 0, 0);
}

static void
test_framing(void)
{
	static const char *const lengths[] = {"Content-Length:", "Content-Length: +5",
		"Content-Length: -5", "Content-Length: 0x5", "Content-Length: 5,5",
		"Content-Length: 5 ", "Content-Length: 5 5", "Content-Length: 5.0",
		"Content-Length: 9223372036854775808", "Content-Length: 18446744073709551615",
		"Content-Length: 18446744073709551616", "Content-Length: 99999999999999999999999"};
	static const char *const targets[] = {"", "http://example.com/hook", "hook", "example.com:443",
		"/hook%00", "/hook?a=%00", "/ho ok", "/ho\tok", "/ho\rok", "/ho\x7fok", "*/", "\\hook"};
	static const char *const versions[] = {"", "HTTP/1.9", "http/1.1", "HTTP/2.0", "HTTP/0.9",
		"HTTP/1.1 ", "HTTP/1.10", "HTTP/11"};
	Request		request;
	RequestGuard guard;
	GuardContext context = {"POST", "HTTP/1.1", 200, 16384, 1000, GUARD_PATH_ACTIVE, false};

	for (size_t i = 0; i < sizeof(lengths) / sizeof(lengths[0]); i++)
		header_is(1, lengths[i], 400, REJECTION_FRAMING, lengths[i]);
	extra_is("Content-Length: 10", 400, REJECTION_FRAMING);
	extra_is("content-length: 11", 400, REJECTION_FRAMING);
	extra_is("Content-Length : 10", 400, REJECTION_FRAMING);
	extra_is("Content-Length\t: 10", 400, REJECTION_FRAMING);
	header_is(1, "Content-Length: 9223372036854775807", 413, REJECTION_BODY_TOO_LARGE,
			  "the largest number");

	header_is(0, NULL, 400, REJECTION_FRAMING, "no Host");
	extra_is("host: example.com", 400, REJECTION_FRAMING);
	header_is(0, "Host: a b", 400, REJECTION_FRAMING, "a Host with a space");
	header_is(0, "Host: a/b", 400, REJECTION_FRAMING, "a Host with a slash");
	header_is(0, "Host: a@b", 400, REJECTION_FRAMING, "a Host with a user");

	extra_is(": v", 400, REJECTION_FRAMING);
	extra_is("a b: v", 400, REJECTION_FRAMING);
	extra_is("a(b): v", 400, REJECTION_FRAMING);
	extra_is("\xc3\xa4: v", 400, REJECTION_FRAMING);
	extra_is("X: a\rb", 400, REJECTION_FRAMING);
	extra_is("X: a\nb", 400, REJECTION_FRAMING);
	extra_is("X: a\001b", 400, REJECTION_FRAMING);
	extra_is("X: a\177b", 400, REJECTION_FRAMING);
	guard_begin(&guard, "/hook", 5);
	show(&guard, "Host: x", 7);
	show(&guard, "Content-Length: 1", 17);
	show(&guard, "X: a\0b", 6);
	TAP_IS(guard_decide(&guard, &context).status, 400, "a null in a value: 400");

	for (size_t i = 0; i < sizeof(targets) / sizeof(targets[0]); i++)
	{
		request = proper();
		request.target = targets[i];
		verdict_is(&request, 400, REJECTION_FRAMING, targets[i]);
	}
	for (size_t i = 0; i < sizeof(versions) / sizeof(versions[0]); i++)
	{
		request = proper();
		request.version = versions[i];
		verdict_is(&request, 400, REJECTION_FRAMING, versions[i]);
	}
}

static void
test_other_answers(void)
{
	char		target[FRAME_MAX_PATH + 10];
	Request		request;

	extra_is("Transfer-Encoding: chunked", 411, REJECTION_TRANSFER_ENCODING);
	extra_is("transfer-encoding: identity", 411, REJECTION_TRANSFER_ENCODING);
	extra_is("Transfer-Encoding: \txchunked", 411, REJECTION_TRANSFER_ENCODING);
	extra_is("Transfer-Encoding:", 411, REJECTION_TRANSFER_ENCODING);
	header_is(1, "Transfer-Encoding: gzip, chunked", 411, REJECTION_TRANSFER_ENCODING,
			  "Transfer-Encoding alone");
	request = proper();
	request.headers[3] = request.headers[4] = "Transfer-Encoding: chunked";
	verdict_is(&request, 411, REJECTION_TRANSFER_ENCODING, "Transfer-Encoding twice");

	memset(target, 'a', sizeof(target));
	target[0] = '/';
	target[FRAME_MAX_PATH] = '\0';
	request = proper();
	request.target = target;
	verdict_is(&request, 0, 0, "the longest path");
	target[FRAME_MAX_PATH] = 'a';
	target[FRAME_MAX_PATH + 1] = '\0';
	verdict_is(&request, 414, REJECTION_URI_TOO_LONG, "a longer path");
	target[FRAME_MAX_PATH] = '?';
	verdict_is(&request, 0, 0, "the longest path and a query");
	request = proper();
	request.header_size = 16384;
	verdict_is(&request, 0, 0, "headers at the limit");
	request.header_size++;
	verdict_is(&request, 431, REJECTION_HEADERS_TOO_LARGE, "headers over it");

	request = proper();
	request.path = GUARD_PATH_UNKNOWN;
	verdict_is(&request, 404, REJECTION_UNKNOWN_PATH, "unknown path");
	request.path = GUARD_PATH_RETIRED;
	verdict_is(&request, 410, REJECTION_RETIRED, "retired");
	request = proper();
	request.method = "GET";
	verdict_is(&request, 405, REJECTION_METHOD, "GET");
	request.method = "post";
	verdict_is(&request, 405, REJECTION_METHOD, "post");
	request.method = "POSTS";
	verdict_is(&request, 405, REJECTION_METHOD, "POSTS");
	request = proper();
	request.method = "OPTIONS";
	request.target = "*";
	request.path = GUARD_PATH_UNKNOWN;
	verdict_is(&request, 404, REJECTION_UNKNOWN_PATH, "OPTIONS *");

	header_is(1, NULL, 411, REJECTION_LENGTH_REQUIRED, "no Content-Length");
	header_is(1, "Content-Length: 1001", 413, REJECTION_BODY_TOO_LARGE, "a body over the limit");
	request = proper();
	request.overloaded = true;
	verdict_is(&request, 503, REJECTION_OVERLOADED, "overloaded");
}

static void
test_signature(void)
{
	header_is(2, "X: y", 400, REJECTION_SIGNATURE_MISSING, "no signature");
	extra_is("banked-signature: " SIGNATURE, 400, REJECTION_SIGNATURE_DOUBLED);
	extra_is("BANKED-SIGNATURE: x", 400, REJECTION_SIGNATURE_DOUBLED);
	header_is(2, "Banked-Signature:", 400, REJECTION_SIGNATURE_MALFORMED, "empty");
	header_is(2, "Banked-Signature: " SIGNATURE " ", 400, REJECTION_SIGNATURE_MALFORMED, "padded");
	header_is(2, "Banked-Signature: " SIGNATURE "," SIGNATURE, 400, REJECTION_SIGNATURE_MALFORMED,
			  "two in one");
	header_is(2, "Banked-Signature: -1." HEX32 HEX32, 400, REJECTION_SIGNATURE_MALFORMED,
			  "a negative time");
	header_is(2, "Banked-Signature: 1." HEX32 "00112233445566778899AABBCCDDEEFF", 400,
			  REJECTION_SIGNATURE_MALFORMED, "upper case");
	header_is(2, "Banked-Signature: 1." HEX32, 400, REJECTION_SIGNATURE_MALFORMED, "too short");
	header_is(2, "Banked-Signature: 999999999999." HEX32 HEX32, 0, 0, "the longest");
}

/* Everything is wrong at first; one thing after the other is mended, and the next reason comes up. */
static void
test_precedence(void)
{
	char		target[FRAME_MAX_PATH + 10];
	Request		request = {"GET", target, "HTTP/1.1",
		{"Host: x", "Transfer-Encoding: chunked", "Banked-Signature: x", "Bad Name: v"},
	20000, GUARD_PATH_UNKNOWN, true};

	memset(target, 'a', sizeof(target));
	target[0] = '/';
	target[sizeof(target) - 1] = '\0';

	verdict_is(&request, 400, REJECTION_FRAMING, "precedence");
	request.headers[3] = NULL;
	verdict_is(&request, 411, REJECTION_TRANSFER_ENCODING, "precedence");
	request.headers[1] = "X: y";
	verdict_is(&request, 414, REJECTION_URI_TOO_LONG, "precedence");
	request.target = "/hook";
	verdict_is(&request, 431, REJECTION_HEADERS_TOO_LARGE, "precedence");
	request.header_size = 200;
	verdict_is(&request, 404, REJECTION_UNKNOWN_PATH, "precedence");
	request.path = GUARD_PATH_RETIRED;
	verdict_is(&request, 410, REJECTION_RETIRED, "precedence");
	request.path = GUARD_PATH_ACTIVE;
	verdict_is(&request, 405, REJECTION_METHOD, "precedence");
	request.method = "POST";
	verdict_is(&request, 411, REJECTION_LENGTH_REQUIRED, "precedence");
	request.headers[1] = "Content-Length: 1001";
	verdict_is(&request, 413, REJECTION_BODY_TOO_LARGE, "precedence");
	request.headers[1] = "Content-Length: 1000";
	verdict_is(&request, 503, REJECTION_OVERLOADED, "precedence");
	request.overloaded = false;
	verdict_is(&request, 400, REJECTION_SIGNATURE_MALFORMED, "precedence");
	request.headers[2] = "Banked-Signature: " SIGNATURE;
	verdict_is(&request, 0, 0, "precedence");
}

int
main(void)
{
	test_proper();
	test_framing();
	test_other_answers();
	test_signature();
	test_precedence();
	return tap_done();
}
