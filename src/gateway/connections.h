/*
 * connections.h
 *	  The open connections, the one request that each may have, and since when
 *	  they wait for what.
 *
 * HTTP/1.1 has one request at a time per connection, so the request lives in
 * the connection and costs no allocation.  Its phases:
 *
 *		IDLE		no request line yet: a new connection, or one kept alive
 *		HEADERS		the request line was read
 *		BODY		the guard let it pass, the body is being read
 *		DISCARD		no room for the body any more: read, dropped, then 503
 *		WAITING		handed to the receiver; the library has it suspended
 *		ANSWERED	the status is known, the library is resumed and will ask for it
 *		SENDING		a response was queued
 *		CLOSING		its deadline passed and its socket was shut down
 *
 * A connection is in one of two lists, by what it waits for: the client
 * (whole request within request_timeout, likewise the response and the pause
 * until the next request), or the receiver (answer_timeout).  A list is in
 * order of the moments at which the waiting began, so the first is always the
 * next to expire, even after the timeout was changed.  A connection in phase
 * CLOSING is in neither list.
 */
#ifndef BW_GATEWAY_CONNECTIONS_H
#define BW_GATEWAY_CONNECTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/socket.h>

#include <gnutls/gnutls.h>

#include "../frame.h"
#include "events.h"
#include "request_guard.h"

struct MHD_Connection;
struct HttpDaemon;
struct TlsCertificate;

typedef enum RequestPhase
{
	PHASE_IDLE,
	PHASE_HEADERS,
	PHASE_BODY,
	PHASE_DISCARD,
	PHASE_WAITING,
	PHASE_ANSWERED,
	PHASE_SENDING,
	PHASE_CLOSING
} RequestPhase;

typedef struct Connection Connection;

typedef enum HandshakeState
{
	HANDSHAKE_NONE,				/* complete, or no TLS */
	HANDSHAKE_ACTIVE,
	HANDSHAKE_PARKED
} HandshakeState;

/* See handshakes.h. */
typedef struct Handshake
{
	EventSource source;			/* first */
	Connection *connection;
	gnutls_session_t session;
	HandshakeState state;
	struct Handshake *previous;
	struct Handshake *next;
} Handshake;

typedef struct ConnectionList
{
	Connection *first;
	Connection *last;
} ConnectionList;

struct Connection
{
	struct MHD_Connection *mhd;
	struct HttpDaemon *daemon;
	struct TlsCertificate *certificate; /* that it was opened under; null without TLS */
	Handshake	handshake;
	int			fd;
	FrameAddress address;

	ConnectionList *list;		/* the one that it is in, or null */
	Connection *previous;
	Connection *next;
	int64_t		since;			/* monotonic milliseconds: when the present waiting began */

	bool		surplus;		/* over max_connections: its request gets 503 */
	bool		refused;		/* answered before its body was read: linger at the end */
	bool		used;			/* had a request before */

	/* the request */
	RequestPhase phase;
	uint16_t	status;			/* the answer, from ANSWERED on */
	RequestGuard guard;
	uint8_t    *body;
	size_t		body_length;	/* received so far */
	size_t		body_capacity;
	size_t		reserved;		/* bytes counted in Deliveries.size for it */

	/* the delivery; see deliveries.h */
	uint64_t	number;			/* 0: none */
	int64_t		arrived_at;		/* microseconds since the Unix epoch */
	Connection *next_in_bucket;
	bool		unsent;
	Connection *previous_unsent;
	Connection *next_unsent;
};

/* Makes a connection of the address that the socket was accepted from; null when memory is short. */
extern Connection *connection_create(const struct sockaddr *address);

/* Takes the connection out of its list and frees it; its body must be gone. */
extern void connection_free(Connection *connection);

/* Puts the connection at the end of a list, out of the one where it was, as waiting from now on. */
extern void connection_wait(Connection *connection, ConnectionList *list, int64_t now);

/* Takes the connection out of its list, if it is in one. */
extern void connection_unlist(Connection *connection);

/* The first connection of the list if it has waited for timeout milliseconds or longer, else null. */
extern Connection *connections_expired(const ConnectionList *list, int64_t timeout, int64_t now);

/* When the first connection of the list expires; -1 for never. */
extern int64_t connections_deadline(const ConnectionList *list, int64_t timeout);

#endif							/* BW_GATEWAY_CONNECTIONS_H */
