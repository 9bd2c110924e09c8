/*
 * listeners.h
 *	  The listening sockets: inherited, watched while there is room, accepted
 *	  from.
 *
 * The sockets belong to the receiver, which bound them and keeps them; here
 * they are only watched.  While they are not, clients wait in the kernel's
 * queue.  When descriptors or memory run out, accepting pauses for a moment
 * instead of failing again at once.
 */
#ifndef BW_GATEWAY_LISTENERS_H
#define BW_GATEWAY_LISTENERS_H

#include <stdbool.h>
#include <stdint.h>

#include "events.h"
#include "http.h"
#include "log.h"

#define LISTENERS_MAX 64

/* Starts as zeros. */
typedef struct Listeners
{
	int			epoll_fd;
	unsigned	count;
	EventSource sources[LISTENERS_MAX];
	bool		watched;
	int64_t		paused_until;	/* monotonic milliseconds; -1: not paused */
	LogLimit	failures;
} Listeners;

extern void listeners_init(Listeners *listeners, int epoll_fd);

/* Takes an inherited listening socket, perhaps for HTTPS; false with errno when it is none. */
extern bool listeners_add(Listeners *listeners, int fd, bool tls);

/* Watches the sockets, or stops watching them; false with errno when that fails. */
extern bool listeners_watch(Listeners *listeners, bool wanted, int64_t now);

/* Accepts what waits at this one, and gives it to HTTP while that has room. */
extern void listeners_accept(Listeners *listeners, const EventSource *source, Http *http);

/* When a pause ends; -1 for none. */
extern int64_t listeners_deadline(const Listeners *listeners);

/* Closes our descriptors of them. */
extern void listeners_close(Listeners *listeners);

#endif							/* BW_GATEWAY_LISTENERS_H */
