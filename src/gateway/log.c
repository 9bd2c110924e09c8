/*
 * log.c
 *	  Lines for the operator, on standard error.
 *
 * A line is formatted in one buffer and written by one call, so that lines of
 * several processes do not mix in the server's log.
 */
#include "log.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#define LOG_PREFIX "banked_webhooks gateway: "
#define LOG_LINE_SIZE 512

static void write_line(const char *format, va_list args, uint64_t suppressed)
			__attribute__((format(printf, 1, 0)));

void
log_line(const char *format,...)
{
	va_list		args;

	va_start(args, format);
	write_line(format, args, 0);
	va_end(args);
}

void
log_limited(LogLimit *limit, int64_t now, const char *format,...)
{
	va_list		args;

	if (now < limit->quiet_until)
	{
		limit->suppressed++;
		return;
	}

	va_start(args, format);
	write_line(format, args, limit->suppressed);
	va_end(args);
	limit->quiet_until = now + LOG_INTERVAL;
	limit->suppressed = 0;
}

static void
write_line(const char *format, va_list args, uint64_t suppressed)
{
	char		line[LOG_LINE_SIZE] = LOG_PREFIX;
	size_t		length = sizeof(LOG_PREFIX) - 1;
	ssize_t		written;

	vsnprintf(line + length, sizeof(line) - length, format, args);
	length = strlen(line);
	if (suppressed > 0 && length < sizeof(line))
	{
		snprintf(line + length, sizeof(line) - length, " (and %llu more like this)",
				 (unsigned long long) suppressed);
		length = strlen(line);
	}
	if (length > sizeof(line) - 2)
		length = sizeof(line) - 2;
	line[length++] = '\n';

	/* There is nobody to tell when the log cannot be written. */
	written = write(STDERR_FILENO, line, length);
	(void) written;
}
