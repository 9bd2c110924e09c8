/*
 * events.h
 *	  What the event loop may be told about: the thing behind an epoll entry.
 *
 * Whatever registers a descriptor embeds an EventSource as its first field
 * and registers the address of that.
 */
#ifndef BW_GATEWAY_EVENTS_H
#define BW_GATEWAY_EVENTS_H

#include <stdint.h>

typedef enum EventKind
{
	EVENT_LINK,					/* the socket to the receiver */
	EVENT_LISTENER,				/* a listening socket */
	EVENT_TLS_LISTENER,			/* one for HTTPS */
	EVENT_HTTP,					/* the HTTP library has something to do */
	EVENT_HANDSHAKE,			/* a TLS handshake that waits for its client */
	EVENT_LINGER 			/* a closed connection whose client still sends */
} EventKind;

typedef struct EventSource
{
	EventKind	kind;
	int			fd;
} EventSource;

/* Adds, changes (0 events: keep, but report nothing but errors) and removes; 0, or -1 with errno. */
extern int	event_add(int epoll_fd, EventSource *source, uint32_t events);
extern int	event_change(int epoll_fd, EventSource *source, uint32_t events);
extern int	event_remove(int epoll_fd, EventSource *source);

#endif							/* BW_GATEWAY_EVENTS_H */
