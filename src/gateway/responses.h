/*
 * responses.h
 *	  The answers, prepared once: status, one short line of text, headers.
 *
 * The library counts references, so one response serves any number of
 * requests at once.  Nothing in an answer depends on what the client sent,
 * and a 400 does not say what was wrong: that would help a forger more than
 * anybody else.
 */
#ifndef BW_GATEWAY_RESPONSES_H
#define BW_GATEWAY_RESPONSES_H

#include <stdbool.h>

struct MHD_Response;

/* Enough for the answers that the table in responses.c has texts for. */
#define RESPONSE_COUNT 11

/* Starts as zeros. */
typedef struct Responses
{
	struct MHD_Response *kept[RESPONSE_COUNT];	/* the connection stays open */
	struct MHD_Response *closing[RESPONSE_COUNT];	/* with "Connection: close" */
} Responses;

/* Prepares all of them; false when memory is short. */
extern bool responses_create(Responses *responses);

extern void responses_free(Responses *responses);

/* The response to send with that status; there is one for any status. */
extern struct MHD_Response *responses_find(const Responses *responses, unsigned status, bool keep);

#endif							/* BW_GATEWAY_RESPONSES_H */
