/*
 * tap.h
 *	  The Test Anything Protocol for tests in C, as far as these need it.
 *
 * Each test program is one file: checks by TAP_OK and TAP_IS, then
 * "return tap_done();", which prints the plan.
 */
#ifndef BW_TEST_TAP_H
#define BW_TEST_TAP_H

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>

static int	tap_count = 0;
static int	tap_failures = 0;

/* Reports one check; the name is a format. */
static inline bool __attribute__((format(printf, 4, 5)))
tap_report(bool passed, const char *file, int line, const char *format,...)
{
	va_list		args;

	tap_count++;
	printf("%s %d - ", passed ? "ok" : "not ok", tap_count);
	va_start(args, format);
	vprintf(format, args);
	va_end(args);
	printf("\n");
	if (!passed)
	{
		tap_failures++;
		printf("# failed at %s:%d\n", file, line);
	}
	return passed;
}

static inline int
tap_done(void)
{
	printf("1..%d\n", tap_count);
	return tap_failures > 0 ? 1 : 0;
}

#define TAP_OK(condition, ...) tap_report((condition), __FILE__, __LINE__, __VA_ARGS__)

/* Compares two integers and shows them when they differ. */
#define TAP_IS(actual, expected, ...) \
	do { \
		long long	tap_actual = (long long) (actual); \
		long long	tap_expected = (long long) (expected); \
		if (!tap_report(tap_actual == tap_expected, __FILE__, __LINE__, __VA_ARGS__)) \
			printf("# got %lld, expected %lld\n", tap_actual, tap_expected); \
	} while (0)

#endif							/* BW_TEST_TAP_H */
