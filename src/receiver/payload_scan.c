/*
 * payload_scan.c
 *	  What can be told of a body without parsing it.
 */
#include "payload_scan.h"

#include <string.h>

#define MAX_EXPONENT 1000000	/* where counting an exponent stops */

/* The digits that an exponent at p (behind the e) adds; *p is moved behind it. */
static long
read_exponent(const char **p, const char *end)
{
	long		exponent = 0;

	if (*p < end && (**p == '+' || **p == '-'))
		(*p)++;
	while (*p < end && **p >= '0' && **p <= '9')
	{
		if (exponent < MAX_EXPONENT)
			exponent = exponent * 10 + (**p - '0');
		(*p)++;
	}
	return exponent;
}

/*
 * Moves p, which stands behind an opening quotation mark, behind the closing
 * one: the first that an even number of backslashes precedes.
 */
static const char *
skip_string(const char *p, const char *end)
{
	const char *start = p;
	const char *quote;

	while ((quote = memchr(p, '"', (size_t) (end - p))) != NULL)
	{
		const char *backslash = quote;

		while (backslash > start && backslash[-1] == '\\')
			backslash--;
		if ((quote - backslash) % 2 == 0)
			return quote + 1;
		p = quote + 1;
	}
	return end;
}

const char *
payload_scan_limits(const char *body, size_t length)
{
	/* Outside strings, where something may have to be done. */
	static const bool stops[256] = {
		['"'] = true, ['{'] = true, ['['] = true, ['}'] = true, [']'] = true,
		['e'] = true, ['E'] = true
	};
	const char *p = body;
	const char *end = body + length;
	int			nesting = 0;
	long		expansion = 0;

	for (;;)
	{
		char		before;
		char		c;

		while (p < end && !stops[(unsigned char) *p])
			p++;
		if (p >= end)
			return NULL;
		before = p > body ? p[-1] : ' ';
		c = *p++;

		if (c == '"')
			p = skip_string(p, end);
		else if (c == '{' || c == '[')
		{
			if (++nesting > PAYLOAD_MAX_NESTING)
				return "the body is nested too deeply";
		}
		else if (c == '}' || c == ']')
			nesting--;
		else if ((before >= '0' && before <= '9') || before == '.')
		{
			expansion += read_exponent(&p, end);
			if (expansion > PAYLOAD_MAX_EXPANSION)
				return "the numbers of the body would take too many digits";
		}
	}
}

static const char *
skip_space(const char *p, const char *end)
{
	while (p < end && (*p == ' ' || *p == '\t' || *p == '\n' || *p == '\r'))
		p++;
	return p;
}

/* The string whose opening quotation mark stands at p; false where it is not a plain one. */
static bool
read_plain(const char *p, const char *end, PayloadText *text)
{
	text->start = ++p;
	while (p < end && *p >= ' ' && *p <= '~' && *p != '"' && *p != '\\')
		p++;
	text->length = (size_t) (p - text->start);
	return p < end && *p == '"' && text->length > 0;
}

static bool
is_key(const PayloadText *key, const char *name)
{
	return key->length == strlen(name) && memcmp(key->start, name, key->length) == 0;
}

/* What makes an identity, of v2 or v3. */
typedef struct Members
{
	PayloadText id;
	PayloadText webhook_event;
	PayloadText type;
	bool		has_data;		/* an object */
} Members;

/* Takes what stands at value if the key is one of the members; false when it is not plain. */
static bool
take_member(Members *members, const PayloadText *key, const char *value, const char *end)
{
	PayloadText *wanted = NULL;

	if (is_key(key, "id"))
		wanted = &members->id;
	else if (is_key(key, "webhook_event"))
		wanted = &members->webhook_event;
	else if (is_key(key, "type"))
		wanted = &members->type;
	else if (is_key(key, "data"))
		members->has_data = value < end && *value == '{';
	return wanted == NULL || (value < end && *value == '"' && read_plain(value, end, wanted));
}

/*
 * Of the members of the outermost object only the names and the values of a
 * few are looked at.  As in jsonb, the last of several with one name counts.
 */
bool
payload_scan_identity(const char *body, size_t length, PayloadIdentity *identity)
{
	const char *end = body + length;
	const char *p = skip_space(body, end);
	Members		members = {0};
	int			nesting = 0;

	if (p >= end || *p != '{')
		return false;
	while (p < end)
	{
		const char *start = p;

		switch (*p++)
		{
			case '{':
			case '[':
				nesting++;
				break;
			case '}':
			case ']':
				nesting--;
				break;
			case '"':
				p = skip_string(p, end);
				if (nesting == 1)
				{
					const char *value = skip_space(p, end);
					PayloadText name;

					if (value >= end || *value != ':')
						break;
					/* A name with an escape may be any. */
					if (!read_plain(start, end, &name) ||
						!take_member(&members, &name, skip_space(value + 1, end), end))
						return false;
				}
				break;
		}
	}

	identity->v2 = members.webhook_event.start != NULL;
	identity->event_id = members.id;
	identity->event_type = identity->v2 ? members.webhook_event : members.type;
	return identity->event_id.start != NULL && identity->event_type.start != NULL &&
		(identity->v2 || members.has_data);
}
