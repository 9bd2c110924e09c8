/*
 * request_guard.c
 *	  Decides from a request's line and headers whether its body is wanted.
 */
#include "request_guard.h"

#include <string.h>
#include <strings.h>

static bool target_is_proper(const char *target, size_t length);
static bool name_is_token(const char *name, size_t length);
static bool value_is_proper(const char *value, size_t length);
static bool host_is_proper(const char *value, size_t length);
static bool name_is(const char *name, size_t length, const char *expected);
static bool parse_content_length(const char *value, size_t length, uint64_t *result);
static bool is_letter_or_digit(unsigned char c);
static GuardVerdict refuse(uint16_t status, RejectionReason reason);

void
guard_begin(RequestGuard *guard, const char *target, size_t length)
{
	const char *query = length > 0 ? memchr(target, '?', length) : NULL;
	size_t		path_length = query != NULL ? (size_t) (query - target) : length;

	guard->malformed = !target_is_proper(target, length);
	guard->transfer_encoding = false;
	guard->path_too_long = path_length > FRAME_MAX_PATH;
	guard->signature_malformed = false;
	guard->hosts = 0;
	guard->content_lengths = 0;
	guard->signatures = 0;
	guard->content_length = 0;
	guard->signature_length = 0;

	if (path_length > FRAME_MAX_PATH)
		path_length = FRAME_MAX_PATH;
	guard->path_length = path_length;
	if (path_length > 0)
		memcpy(guard->path, target, path_length);
}

void
guard_header(RequestGuard *guard, const char *name, size_t name_length,
			 const char *value, size_t value_length)
{
	if (!name_is_token(name, name_length) || !value_is_proper(value, value_length))
	{
		guard->malformed = true;
		return;
	}

	if (name_is(name, name_length, "content-length"))
	{
		if (++guard->content_lengths > 1 ||
			!parse_content_length(value, value_length, &guard->content_length))
			guard->malformed = true;
	}
	else if (name_is(name, name_length, "transfer-encoding"))
		guard->transfer_encoding = true;
	else if (name_is(name, name_length, "host"))
	{
		if (++guard->hosts > 1 || !host_is_proper(value, value_length))
			guard->malformed = true;
	}
	else if (name_is(name, name_length, "banked-signature"))
	{
		SignatureHeader parsed;

		if (++guard->signatures > 1)
			return;
		if (signature_parse(value, value_length, &parsed) &&
			value_length <= sizeof(guard->signature))
		{
			memcpy(guard->signature, value, value_length);
			guard->signature_length = value_length;
		}
		else
			guard->signature_malformed = true;
	}
}

GuardVerdict
guard_decide(const RequestGuard *guard, const GuardContext *context)
{
	const GuardVerdict admitted = {0, 0};
	bool		http_1_1 = strcmp(context->version, "HTTP/1.1") == 0;

	if (guard->malformed)
		return refuse(400, REJECTION_FRAMING);
	if (!http_1_1 && strcmp(context->version, "HTTP/1.0") != 0)
		return refuse(400, REJECTION_FRAMING);
	if (http_1_1 && guard->hosts == 0)
		return refuse(400, REJECTION_FRAMING);

	if (guard->transfer_encoding)
		return refuse(411, REJECTION_TRANSFER_ENCODING);
	if (guard->path_too_long)
		return refuse(414, REJECTION_URI_TOO_LONG);
	if (context->header_size > context->max_header_size)
		return refuse(431, REJECTION_HEADERS_TOO_LARGE);

	if (context->path == GUARD_PATH_UNKNOWN)
		return refuse(404, REJECTION_UNKNOWN_PATH);
	if (context->path == GUARD_PATH_RETIRED)
		return refuse(410, REJECTION_RETIRED);
	if (strcmp(context->method, "POST") != 0)
		return refuse(405, REJECTION_METHOD);

	if (guard->content_lengths == 0)
		return refuse(411, REJECTION_LENGTH_REQUIRED);
	if (guard->content_length > context->max_body_size)
		return refuse(413, REJECTION_BODY_TOO_LARGE);
	if (context->overloaded)
		return refuse(503, REJECTION_OVERLOADED);

	if (guard->signatures == 0)
		return refuse(400, REJECTION_SIGNATURE_MISSING);
	if (guard->signatures > 1)
		return refuse(400, REJECTION_SIGNATURE_DOUBLED);
	if (guard->signature_malformed)
		return refuse(400, REJECTION_SIGNATURE_MALFORMED);
	return admitted;
}

/*
 * target_is_proper accepts the origin form only ("/path?query"), and the "*"
 * of OPTIONS, which then is an unknown path.  An encoded null is refused
 * wherever it stands, since programs in C end there.
 */
static bool
target_is_proper(const char *target, size_t length)
{
	if (length < 1)
		return false;
	if (target[0] != '/' && !(length == 1 && target[0] == '*'))
		return false;
	for (size_t i = 0; i < length; i++)
	{
		unsigned char c = (unsigned char) target[i];

		if (c <= 0x20 || c == 0x7f)
			return false;
		if (c == '%' && length - i >= 3 && target[i + 1] == '0' && target[i + 2] == '0')
			return false;
	}
	return true;
}

static bool
name_is_token(const char *name, size_t length)
{
	static const char punctuation[] = "!#$%&'*+-.^_`|~";

	if (length < 1)
		return false;
	for (size_t i = 0; i < length; i++)
	{
		unsigned char c = (unsigned char) name[i];

		if (!is_letter_or_digit(c) && memchr(punctuation, c, sizeof(punctuation) - 1) == NULL)
			return false;
	}
	return true;
}

/* value_is_proper refuses control characters other than the tab. */
static bool
value_is_proper(const char *value, size_t length)
{
	for (size_t i = 0; i < length; i++)
	{
		unsigned char c = (unsigned char) value[i];

		if ((c < 0x20 && c != '\t') || c == 0x7f)
			return false;
	}
	return true;
}

/*
 * host_is_proper accepts what may stand in a host name, an address and a
 * port.  An empty value is what a client sends that has no name for the
 * server.
 */
static bool
host_is_proper(const char *value, size_t length)
{
	static const char punctuation[] = "-._~%!$&'()*+,;=:[]";

	for (size_t i = 0; i < length; i++)
	{
		unsigned char c = (unsigned char) value[i];

		if (!is_letter_or_digit(c) && memchr(punctuation, c, sizeof(punctuation) - 1) == NULL)
			return false;
	}
	return true;
}

/* name_is compares without regard to the case of ASCII letters; expected is lower case. */
static bool
name_is(const char *name, size_t length, const char *expected)
{
	return strlen(expected) == length && strncasecmp(name, expected, length) == 0;
}

/* parse_content_length accepts digits only, and values up to 2^63 - 1. */
static bool
parse_content_length(const char *value, size_t length, uint64_t *result)
{
	uint64_t	number = 0;

	if (length < 1)
		return false;
	for (size_t i = 0; i < length; i++)
	{
		uint64_t	digit;

		if (value[i] < '0' || value[i] > '9')
			return false;
		digit = (uint64_t) (value[i] - '0');
		if (number > ((uint64_t) INT64_MAX - digit) / 10)
			return false;
		number = number * 10 + digit;
	}
	*result = number;
	return true;
}

static bool
is_letter_or_digit(unsigned char c)
{
	return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9');
}

static GuardVerdict
refuse(uint16_t status, RejectionReason reason)
{
	GuardVerdict verdict;

	verdict.status = status;
	verdict.reason = (uint8_t) reason;
	return verdict;
}
