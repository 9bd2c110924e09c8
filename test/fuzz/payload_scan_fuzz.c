/*
 * payload_scan_fuzz.c
 *	  What is told of a body without parsing it.
 *
 * The verdict about its limits must be that of a scan that goes byte by byte.
 * An identity must be the one that a parser finds, in all bodies that one
 * accepts.
 */
#include "receiver/payload_scan.h"

#include "fuzz.h"

#define MAX_EXPONENT 1000000

static bool
is_digit(char c)
{
	return c >= '0' && c <= '9';
}

/* Would a parser that goes byte by byte meet neither limit? */
static bool
is_within_limits(const char *body, size_t length)
{
	bool		in_string = false;
	int			nesting = 0;
	long		expansion = 0;

	for (size_t i = 0; i < length; i++)
	{
		char		c = body[i];
		char		before = i > 0 ? body[i - 1] : ' ';

		if (in_string)
		{
			if (c == '\\')
				i++;
			else if (c == '"')
				in_string = false;
		}
		else if (c == '"')
			in_string = true;
		else if (c == '{' || c == '[')
		{
			if (++nesting > PAYLOAD_MAX_NESTING)
				return false;
		}
		else if (c == '}' || c == ']')
			nesting--;
		else if ((c == 'e' || c == 'E') && (is_digit(before) || before == '.'))
		{
			long		exponent = 0;

			if (i + 1 < length && (body[i + 1] == '+' || body[i + 1] == '-'))
				i++;
			while (i + 1 < length && is_digit(body[i + 1]))
			{
				i++;
				if (exponent < MAX_EXPONENT)
					exponent = 10 * exponent + (body[i] - '0');
			}
			expansion += exponent;
			if (expansion > PAYLOAD_MAX_EXPANSION)
				return false;
		}
	}
	return true;
}

/* A parser by the book (RFC 8259), but for numbers and the characters of strings. */
typedef struct Parser
{
	const char *at;
	const char *end;
	int			nesting;
	/* the outermost object's members, without their quotation marks; null when they are no strings */
	PayloadText event_id;
	PayloadText webhook_event;
	PayloadText type;
	bool		has_data;
	bool		escaped_name;	/* one of its names has an escape */
} Parser;

static bool parse_value(Parser *parser);

static bool
parse_space(Parser *parser, char wanted)
{
	while (parser->at < parser->end && strchr(" \t\n\r", *parser->at) != NULL && *parser->at != '\0')
		parser->at++;
	if (wanted == '\0')
		return true;
	if (parser->at == parser->end || *parser->at != wanted)
		return false;
	parser->at++;
	return true;
}

static bool
parse_string(Parser *parser, PayloadText *text)
{
	if (parser->at == parser->end || *parser->at != '"')
		return false;
	text->start = ++parser->at;
	while (parser->at < parser->end && *parser->at != '"')
		parser->at += *parser->at == '\\' && parser->at + 1 < parser->end ? 2 : 1;
	text->length = (size_t) (parser->at - text->start);
	return parser->at++ < parser->end;
}

static bool
text_is(const PayloadText *text, const char *expected)
{
	return text->length == strlen(expected) && memcmp(text->start, expected, text->length) == 0;
}

static bool
parse_member(Parser *parser)
{
	static const PayloadText none = {NULL, 0};
	PayloadText name;
	PayloadText value = none;
	const char *start;

	if (!parse_string(parser, &name) || !parse_space(parser, ':'))
		return false;
	parse_space(parser, '\0');
	start = parser->at;
	if (!parse_value(parser))
		return false;
	if (parser->nesting > 1)
		return true;

	if (*start == '"')
	{
		value.start = start + 1;
		value.length = (size_t) (parser->at - start) - 2;
	}
	if (memchr(name.start, '\\', name.length) != NULL)
		parser->escaped_name = true;
	if (text_is(&name, "id"))
		parser->event_id = value;
	else if (text_is(&name, "webhook_event"))
		parser->webhook_event = value;
	else if (text_is(&name, "type"))
		parser->type = value;
	else if (text_is(&name, "data"))
		parser->has_data = *start == '{';
	return true;
}

/* Objects and arrays alike, from behind the opening character. */
static bool
parse_members(Parser *parser, char end, bool (*member) (Parser *parser))
{
	parser->nesting++;
	if (!parse_space(parser, end))
	{
		do
		{
			parse_space(parser, '\0');
			if (!member(parser))
				return false;
		} while (parse_space(parser, ','));
		if (!parse_space(parser, end))
			return false;
	}
	parser->nesting--;
	return true;
}

static bool
parse_value(Parser *parser)
{
	PayloadText text;

	parse_space(parser, '\0');
	if (parser->at == parser->end || parser->nesting > PAYLOAD_MAX_NESTING)
		return false;
	switch (*parser->at)
	{
		case '"':
			return parse_string(parser, &text);
		case '{':
			parser->at++;
			return parse_members(parser, '}', parse_member);
		case '[':
			parser->at++;
			return parse_members(parser, ']', parse_value);
	}
	text.start = parser->at;
	while (parser->at < parser->end &&
		   (is_digit(*parser->at) || (*parser->at >= 'a' && *parser->at <= 'z') ||
			*parser->at == '-' || *parser->at == '+' || *parser->at == '.' || *parser->at == 'E'))
		parser->at++;
	return parser->at > text.start;
}

static bool
same_text(const PayloadText *a, const PayloadText *b)
{
	return a->start == b->start && a->length == b->length;
}

/* If the body is JSON it has this identity. */
static void
check_identity(const char *body, size_t length, const PayloadIdentity *identity)
{
	Parser		parser = {.at = body, .end = body + length};

	if (!parse_value(&parser))
		return;
	parse_space(&parser, '\0');
	if (parser.at < parser.end)
		return;
	FUZZ_CHECK(!parser.escaped_name);
	FUZZ_CHECK(same_text(&identity->event_id, &parser.event_id) && parser.event_id.length > 0);
	FUZZ_CHECK(identity->v2 == (parser.webhook_event.start != NULL));
	if (identity->v2)
		FUZZ_CHECK(same_text(&identity->event_type, &parser.webhook_event));
	else
		FUZZ_CHECK(same_text(&identity->event_type, &parser.type) && parser.has_data);
	FUZZ_CHECK(identity->event_type.length > 0);
	for (size_t i = 0; i < identity->event_id.length; i++)
		FUZZ_CHECK(identity->event_id.start[i] >= ' ' && identity->event_id.start[i] <= '~' &&
				   identity->event_id.start[i] != '\\');
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char	   *body = malloc(size > 0 ? size : 1);
	PayloadIdentity identity;

	memcpy(body, data, size);
	FUZZ_CHECK((payload_scan_limits(body, size) == NULL) == is_within_limits(body, size));
	if (payload_scan_identity(body, size, &identity))
		check_identity(body, size, &identity);
	free(body);
	return 0;
}
