/*
 * clock.h
 *	  The two clocks of the gateway.
 *
 * Deadlines are kept on the monotonic clock in milliseconds, read once per
 * turn of the event loop and handed down as "now".  Only the arrival of a
 * delivery, which ends up in a table, is taken from the wall clock.
 */
#ifndef BW_GATEWAY_CLOCK_H
#define BW_GATEWAY_CLOCK_H

#include <stdint.h>
#include <time.h>

/* Milliseconds since some fixed moment. */
static inline int64_t
clock_monotonic_ms(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_MONOTONIC, &ts);
	return (int64_t) ts.tv_sec * 1000 + ts.tv_nsec / 1000000;
}

/* Microseconds since the Unix epoch. */
static inline int64_t
clock_wall_us(void)
{
	struct timespec ts;

	clock_gettime(CLOCK_REALTIME, &ts);
	return (int64_t) ts.tv_sec * 1000000 + ts.tv_nsec / 1000;
}

/* The nearer of two deadlines, either of which may be -1 (none). */
static inline int64_t
clock_earlier(int64_t a, int64_t b)
{
	if (a < 0)
		return b;
	if (b < 0)
		return a;
	return a < b ? a : b;
}

#endif							/* BW_GATEWAY_CLOCK_H */
