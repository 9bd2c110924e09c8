/*
 * payload_limits.h
 *	  What PostgreSQL's JSON parser does not bound by itself.
 *
 * Nesting, which is recursion there, and numbers such as 1e100000: a few bytes
 * here that jsonb would print as a hundred thousand.
 *
 * No postgres.h here: the fuzzers build this file without a server.
 */
#ifndef BW_PAYLOAD_LIMITS_H
#define BW_PAYLOAD_LIMITS_H

#include <stddef.h>

#define PAYLOAD_MAX_NESTING 500
#define PAYLOAD_MAX_EXPANSION 65536 /* digits that exponents of one body may add */

/*
 * Looks over bytes that claim to be JSON.  Returns null when a parser may have
 * them, else why not.  Says nothing about whether they are JSON.
 */
extern const char *payload_scan_limits(const char *body, size_t length);

#endif							/* BW_PAYLOAD_LIMITS_H */
