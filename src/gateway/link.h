/*
 * link.h
 *	  The socket to the receiver, with a buffer for each direction.
 *
 * Output is collected during a turn of the event loop and written once at its
 * end; only what the socket does not take then waits for it to be writable.
 * Both buffers are bounded: see frame.h and LINK_WATERMARK.
 */
#ifndef BW_GATEWAY_LINK_H
#define BW_GATEWAY_LINK_H

#include <stdbool.h>

#include "../frame.h"
#include "events.h"

typedef struct Link
{
	EventSource source;			/* first */
	int			epoll_fd;
	FrameBuffer in;
	FrameBuffer out;
	bool		watches_output;
} Link;

/* Takes over a connected stream socket; false with errno when it cannot. */
extern bool link_init(Link *link, int fd, int epoll_fd);

/* Reads what there is, up to some bound, into the buffer. */
extern FrameIoResult link_read(Link *link);

/* Writes what the socket takes; FRAME_IO_AGAIN is no failure. */
extern FrameIoResult link_flush(Link *link);

/* Is there so much output waiting that nothing but what must be said should be added? */
extern bool link_is_full(const Link *link);

extern void link_free(Link *link);

#endif							/* BW_GATEWAY_LINK_H */
