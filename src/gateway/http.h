/*
 * http.h
 *	  HTTP: the library's daemon, the life of a connection, the answers.
 *
 * The library runs without a thread and without a listening socket: accepted
 * sockets are given to it, its epoll descriptor is one of those that our loop
 * waits for, and http_run lets it work.  Its callbacks do nothing but move
 * bytes and states in memory.
 *
 * The memory of a connection is bounded when the library's daemon is started.
 * So when that limit changes a further daemon is started for new connections,
 * and the old one lives until its last connection is closed.  HTTPS has a
 * daemon of its own; a new certificate needs no other one, since it is
 * given to each connection when that is opened (see tls.h).
 *
 * What must never happen here: a connection without a deadline (the library
 * has none for a suspended one, and only an idle time-out for the others),
 * and a library daemon stopped while a connection is suspended (it aborts).
 */
#ifndef BW_GATEWAY_HTTP_H
#define BW_GATEWAY_HTTP_H

#include <stdbool.h>
#include <stdint.h>
#include <sys/socket.h>

#include "../frame.h"
#include "connections.h"
#include "deliveries.h"
#include "events.h"
#include "handshakes.h"
#include "linger.h"
#include "log.h"
#include "paths.h"
#include "rejections.h"
#include "responses.h"
#include "tls.h"

struct MHD_Daemon;
struct Http;

typedef struct HttpDaemon
{
	EventSource source;			/* first */
	struct Http *http;
	struct HttpDaemon *next;	/* an older one */
	struct MHD_Daemon *mhd;
	uint32_t	connections;
	bool		tls;
	bool		retiring;		/* takes no connection any more */
} HttpDaemon;

typedef struct Http
{
	int			epoll_fd;
	int64_t		now;			/* of this turn of the loop, monotonic milliseconds */
	ConfigFrame config;
	bool		draining;		/* every request gets 503 */

	HttpDaemon *daemons;		/* those that take connections, and retiring ones */
	TlsCertificate *certificate;	/* null: HTTPS is not served */
	Responses	responses;
	Paths		paths;
	Deliveries	deliveries;
	Rejections	rejections;
	Handshakes	handshakes;
	Linger		linger;

	ConnectionList clients;		/* those that wait for the client */
	ConnectionList waiting;		/* those that wait for the receiver */
	uint32_t	connections;
	uint32_t	soft_limit;		/* connections over it get 503 */
	uint32_t	hard_limit;		/* no connection is accepted over it */

	uint64_t	connections_total;
	uint64_t	requests_total;
	LogLimit	connection_failures;
} Http;

/* Prepares a zeroed Http; false, after logging why, when it cannot. */
extern bool http_init(Http *http, int epoll_fd, int64_t now);

/* Applies limits, now or for later connections; false, after logging why, when it cannot serve under them. */
extern bool http_configure(Http *http, const ConfigFrame *config);

/* Serves HTTPS with this from now on; when it cannot it logs why, and goes on as before. */
extern void http_set_certificate(Http *http, const TlsFrame *frame);

/* Takes an accepted, non-blocking socket, perhaps for HTTPS; closes it when it cannot. */
extern void http_take_connection(Http *http, int fd, const struct sockaddr *address,
								 socklen_t address_length, bool tls);

/* Is there room for another connection? */
extern bool http_has_room(const Http *http);

/* The receiver's answer to a delivery; ignored when nobody waits for it.  http_run sends it. */
extern void http_answer(Http *http, uint64_t number, uint16_t status);

/* Ends what took too long. */
extern void http_expire(Http *http);

/* Lets the library work. */
extern void http_run(Http *http);

/* When http_expire or http_run has something to do without an event; -1 for never. */
extern int64_t http_deadline(const Http *http);

/* From now on everything gets 503, and what waits gets it at once. */
extern void http_drain(Http *http);

/* Closes the connections that have no request; how many are left? */
extern uint32_t http_close_idle(Http *http);

/* Closes everything. */
extern void http_stop(Http *http);

#endif							/* BW_GATEWAY_HTTP_H */
