/*
 * payload_scan.h
 *	  What can be told of a body without parsing it.
 *
 * Both functions look over bytes that claim to be JSON; neither says whether
 * they are.
 *
 * No postgres.h here: the fuzzers build this file without a server.
 */
#ifndef BW_PAYLOAD_SCAN_H
#define BW_PAYLOAD_SCAN_H

#include <stdbool.h>
#include <stddef.h>

#define PAYLOAD_MAX_NESTING 500
#define PAYLOAD_MAX_EXPANSION 65536 /* digits that exponents of one body may add */

/* A text within a body, between its quotation marks: printable ASCII without escapes, not empty. */
typedef struct PayloadText
{
	const char *start;			/* null: there is none */
	size_t		length;
} PayloadText;

typedef struct PayloadIdentity
{
	PayloadText event_id;
	PayloadText event_type;
	bool		v2;
} PayloadIdentity;

/*
 * What PostgreSQL's JSON parser does not bound by itself: nesting, which is
 * recursion there, and numbers such as 1e100000, a few bytes here that jsonb
 * would print as a hundred thousand.  Returns null when a parser may have the
 * body, else why not.
 */
extern const char *payload_scan_limits(const char *body, size_t length);

/*
 * The identity that payload_read would find in the body if it is JSON, as far
 * as it stands there plainly.  Returns false where it does not: what one needs
 * a parser for.
 */
extern bool payload_scan_identity(const char *body, size_t length, PayloadIdentity *identity);

#endif							/* BW_PAYLOAD_SCAN_H */
