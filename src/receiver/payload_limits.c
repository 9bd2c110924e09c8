/*
 * payload_limits.c
 *	  What PostgreSQL's JSON parser does not bound by itself.
 */
#include "payload_limits.h"

#include <stdbool.h>
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
