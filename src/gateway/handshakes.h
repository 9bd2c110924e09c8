/*
 * handshakes.h
 *	  TLS connections whose handshake is not complete.
 *
 * The HTTP library polls a handshake that waits for its client without a
 * pause: one client that stops in the middle of it would take all of a
 * processor, and so would each client that is far away.  So a connection is
 * suspended in the library whenever its handshake waits ("parked"), its
 * socket is watched by our own loop, and it is resumed when the socket is
 * ready.  "Active" are the handshakes that the library works on.
 *
 * A connection that is to be closed must be resumed first, or the library
 * never looks at it again.
 */
#ifndef BW_GATEWAY_HANDSHAKES_H
#define BW_GATEWAY_HANDSHAKES_H

#include <gnutls/gnutls.h>

#include "connections.h"
#include "events.h"

/* Starts as zeros, but for the descriptor. */
typedef struct Handshakes
{
	int			epoll_fd;
	Handshake  *active;
	Handshake  *parked;
} Handshakes;

/* A TLS connection was opened. */
extern void handshakes_begin(Handshakes *handshakes, Connection *connection,
							 gnutls_session_t session);

/* The socket of a parked one is ready: lets the library go on with it. */
extern void handshakes_continue(Handshakes *handshakes, Handshake *handshake);

/* Resumes it if it is parked. */
extern void handshakes_resume(Handshakes *handshakes, Connection *connection);

/* After the library has worked: forgets those that are complete, and parks the others. */
extern void handshakes_review(Handshakes *handshakes);

/* Forgets it, since the connection is closed; was it incomplete? */
extern bool handshakes_end(Handshakes *handshakes, Connection *connection);

#endif							/* BW_GATEWAY_HANDSHAKES_H */
