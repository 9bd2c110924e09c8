/*
 * log.h
 *	  Lines for the operator, on standard error.
 *
 * Standard error is the database server's log.  The gateway writes there only
 * what an operator must know, never what a client sent, and never at a rate
 * that a client decides: whatever can repeat goes through log_limited.
 */
#ifndef BW_GATEWAY_LOG_H
#define BW_GATEWAY_LOG_H

#include <stdint.h>

/* The least time between two lines of one kind, in milliseconds. */
#define LOG_INTERVAL 60000

/* One kind of line; starts as zeros. */
typedef struct LogLimit
{
	int64_t		quiet_until;	/* monotonic milliseconds */
	uint64_t	suppressed;		/* lines that were not written meanwhile */
} LogLimit;

/* Writes one line, with the program's name in front. */
extern void log_line(const char *format,...) __attribute__((format(printf, 1, 2)));

/* Likewise, unless a line of this kind was written within LOG_INTERVAL. */
extern void log_limited(LogLimit *limit, int64_t now, const char *format,...)
			__attribute__((format(printf, 3, 4)));

#endif							/* BW_GATEWAY_LOG_H */
