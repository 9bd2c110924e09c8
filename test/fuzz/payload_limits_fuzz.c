/*
 * payload_limits_fuzz.c
 *	  The scan of a body before PostgreSQL's JSON parser gets it.
 *
 * Its verdict must be that of a scan that goes byte by byte.
 */
#include "receiver/payload_limits.h"

#include <stdbool.h>

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

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	char	   *body = malloc(size > 0 ? size : 1);

	memcpy(body, data, size);
	FUZZ_CHECK((payload_scan_limits(body, size) == NULL) == is_within_limits(body, size));
	free(body);
	return 0;
}
