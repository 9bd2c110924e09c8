/*
 * linger.h
 *	  Lets a client read its refusal while it still sends the body.
 *
 * A socket that is closed with unread bytes resets the connection, and the
 * reset can overtake the answer: a client that sends 5 MB would see "connection
 * reset" instead of 413.  So a connection that was refused before its body is
 * kept a little, half closed, and what comes in is dropped, until the client
 * closes too.  How many, how long and how much is bounded; beyond that they
 * are just closed.
 */
#ifndef BW_GATEWAY_LINGER_H
#define BW_GATEWAY_LINGER_H

#include <stdbool.h>
#include <stdint.h>

#include "events.h"

#define LINGER_MAX 256			/* connections */
#define LINGER_TIMEOUT 5000		/* milliseconds for each */
#define LINGER_MAX_BYTES ((uint64_t) 64 * 1024 * 1024)	/* dropped for each */

typedef struct LingeringSocket
{
	EventSource source;			/* first */
	struct LingeringSocket *previous;
	struct LingeringSocket *next;
	int64_t		until;			/* monotonic milliseconds */
	uint64_t	dropped;		/* bytes */
} LingeringSocket;

/* In order of age. */
typedef struct Linger
{
	int			epoll_fd;
	unsigned	count;
	LingeringSocket *first;
	LingeringSocket *last;
} Linger;

extern void linger_init(Linger *linger, int epoll_fd);

/* Keeps a duplicate of the socket, which the caller is about to close. */
extern void linger_add(Linger *linger, int fd, int64_t now);

/* Drops what came in; the socket may be gone afterwards. */
extern void linger_read(Linger *linger, LingeringSocket *socket);

/* Closes those whose time is over. */
extern void linger_expire(Linger *linger, int64_t now);

/* When linger_expire has something to do; -1 for never. */
extern int64_t linger_deadline(const Linger *linger);

extern void linger_close_all(Linger *linger);

#endif							/* BW_GATEWAY_LINGER_H */
