/*
 * deliveries.h
 *	  The deliveries on their way: their bodies, their numbers, and the bound
 *	  on how many and how large they are.
 *
 * A request whose body is complete becomes a delivery: it gets a number and
 * stands in a queue until the link has room, then its bytes are the
 * receiver's, and it waits for the answer under its number.
 *
 * The bound on bytes counts what bodies really hold: a body of up to
 * BODY_EAGER_SIZE is counted in full when it is announced, a longer one as
 * its bytes come in.  So a client that announces much and sends nothing takes
 * no room from the others, and a body of usual size that was let in is never
 * refused half-way.  Bytes stay counted until the answer, since the receiver
 * holds them meanwhile.
 */
#ifndef BW_GATEWAY_DELIVERIES_H
#define BW_GATEWAY_DELIVERIES_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../frame.h"
#include "connections.h"

#define BODY_EAGER_SIZE ((size_t) 16 * 1024)

/* Deliveries are put on the link only while less than this waits there. */
#define LINK_WATERMARK ((size_t) 256 * 1024)

#define DELIVERY_BUCKETS 4096	/* a power of two */

/* Starts as zeros. */
typedef struct Deliveries
{
	uint32_t	max_pending;
	uint64_t	max_size;		/* bytes */

	uint32_t	pending;		/* complete and not yet answered */
	uint64_t	size;			/* bytes counted, of bodies being read and of pending ones */
	uint64_t	last_number;
	Connection *first_unsent;
	Connection *last_unsent;
	Connection *buckets[DELIVERY_BUCKETS];	/* sent ones, by number */
} Deliveries;

/* Is there room for one more delivery with a body of that length? */
extern bool deliveries_have_room(const Deliveries *deliveries, uint64_t content_length);

/* Prepares for a body of content_length bytes; false when there is no room or no memory. */
extern bool deliveries_begin(Deliveries *deliveries, Connection *connection);

/* Appends to the body; false when there is no room or no memory (the body is then given up). */
extern bool deliveries_append(Deliveries *deliveries, Connection *connection,
							  const char *data, size_t length);

/* Makes the request a delivery and queues it; false when there are too many. */
extern bool deliveries_submit(Deliveries *deliveries, Connection *connection, int64_t arrived_at);

/* Moves queued deliveries into the buffer until it holds LINK_WATERMARK. */
extern void deliveries_send(Deliveries *deliveries, FrameBuffer *out);

/* The connection that waits for this answer; null when none does (any more). */
extern Connection *deliveries_find(const Deliveries *deliveries, uint64_t number);

/* Ends the delivery or the reading of its body: frees and uncounts whatever there is. */
extern void deliveries_forget(Deliveries *deliveries, Connection *connection);

#endif							/* BW_GATEWAY_DELIVERIES_H */
