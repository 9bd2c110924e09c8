/*
 * request_guard.h
 *	  Decides from a request's line and headers whether its body is wanted.
 *
 * The HTTP library is lenient: it takes doubled and conflicting lengths, names
 * that are no tokens, several hosts, any HTTP/1.x.  Whatever two programs on
 * the way could read differently is refused here, before the body is read.
 *
 * Pure functions over bytes: no socket, no library, no clock, no memory.  A
 * guard is begun with the target of the request line, is shown each header,
 * and then decides, with the precedence that README documents: framing 400,
 * Transfer-Encoding 411, 414, 431, path 404 and 410, method 405, no
 * Content-Length 411, body size 413, overload 503, signature 400.
 *
 * A guard must never let a request pass that it did not understand in full.
 */
#ifndef BW_GATEWAY_REQUEST_GUARD_H
#define BW_GATEWAY_REQUEST_GUARD_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../frame.h"
#include "../signature.h"

/* What the list of endpoints says of a path. */
typedef enum GuardPath
{
	GUARD_PATH_UNKNOWN,
	GUARD_PATH_ACTIVE,
	GUARD_PATH_RETIRED
} GuardPath;

/* What was seen of one request. */
typedef struct RequestGuard
{
	bool		malformed;		/* not a proper request: 400 whatever else it says */
	bool		transfer_encoding;
	bool		path_too_long;
	bool		signature_malformed;
	unsigned	hosts;			/* how many of each of these headers there are */
	unsigned	content_lengths;
	unsigned	signatures;
	uint64_t	content_length; /* valid when content_lengths is 1 and the guard decided for the request */
	size_t		path_length;	/* of the target before '?', at most FRAME_MAX_PATH */
	size_t		signature_length;
	char		path[FRAME_MAX_PATH];
	char		signature[SIGNATURE_HEADER_SIZE];
} RequestGuard;

/* What is known besides the headers when the guard decides. */
typedef struct GuardContext
{
	const char *method;			/* terminated, as sent */
	const char *version;		/* terminated, as sent: "HTTP/1.1" */
	uint64_t	header_size;	/* bytes of request line and headers */
	uint64_t	max_header_size;
	uint64_t	max_body_size;
	GuardPath	path;
	bool		overloaded;		/* no room for one more delivery of this length */
} GuardContext;

typedef struct GuardVerdict
{
	uint16_t	status;			/* 0: read the body; else the HTTP status to refuse with */
	uint8_t		reason;			/* RejectionReason, when refused */
} GuardVerdict;

/* Begins a request with its target, exactly as it stands in the request line. */
extern void guard_begin(RequestGuard *guard, const char *target, size_t length);

/* Shows one header; neither part needs a terminating null. */
extern void guard_header(RequestGuard *guard, const char *name, size_t name_length,
						 const char *value, size_t value_length);

/* Decides, once all headers were shown. */
extern GuardVerdict guard_decide(const RequestGuard *guard, const GuardContext *context);

#endif							/* BW_GATEWAY_REQUEST_GUARD_H */
