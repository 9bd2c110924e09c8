/*
 * handshakes.c
 *	  TLS connections whose handshake is not complete.
 */
#include "handshakes.h"

#include <microhttpd.h>
#include <sys/epoll.h>

static void park(Handshakes *handshakes, Handshake *handshake);
static bool is_complete(gnutls_session_t session);
static void move(Handshake *handshake, Handshake **from, Handshake **to);

void
handshakes_begin(Handshakes *handshakes, Connection *connection, gnutls_session_t session)
{
	Handshake  *handshake = &connection->handshake;

	handshake->source.kind = EVENT_HANDSHAKE;
	handshake->source.fd = connection->fd;
	handshake->connection = connection;
	handshake->session = session;
	handshake->state = HANDSHAKE_ACTIVE;
	move(handshake, NULL, &handshakes->active);
}

void
handshakes_continue(Handshakes *handshakes, Handshake *handshake)
{
	/* It may have been resumed since the event was reported. */
	if (handshake->state != HANDSHAKE_PARKED)
		return;
	event_remove(handshakes->epoll_fd, &handshake->source);
	handshake->state = HANDSHAKE_ACTIVE;
	move(handshake, &handshakes->parked, &handshakes->active);
	MHD_resume_connection(handshake->connection->mhd);
}

void
handshakes_resume(Handshakes *handshakes, Connection *connection)
{
	handshakes_continue(handshakes, &connection->handshake);
}

void
handshakes_review(Handshakes *handshakes)
{
	Handshake  *next;

	for (Handshake *handshake = handshakes->active; handshake != NULL; handshake = next)
	{
		next = handshake->next;
		if (is_complete(handshake->session))
		{
			handshake->state = HANDSHAKE_NONE;
			move(handshake, &handshakes->active, NULL);
		}
		else if (handshake->connection->phase != PHASE_CLOSING)
			park(handshakes, handshake);
	}
}

bool
handshakes_end(Handshakes *handshakes, Connection *connection)
{
	Handshake  *handshake = &connection->handshake;

	switch (handshake->state)
	{
		case HANDSHAKE_NONE:
			return false;
		case HANDSHAKE_ACTIVE:
			move(handshake, &handshakes->active, NULL);
			break;
		case HANDSHAKE_PARKED:
			event_remove(handshakes->epoll_fd, &handshake->source);
			move(handshake, &handshakes->parked, NULL);
			break;
	}
	handshake->state = HANDSHAKE_NONE;
	return true;
}

/* park suspends what waits for its socket; the library goes on with it when it cannot be watched. */
static void
park(Handshakes *handshakes, Handshake *handshake)
{
	bool		writes = gnutls_record_get_direction(handshake->session) != 0;

	if (event_add(handshakes->epoll_fd, &handshake->source, writes ? EPOLLOUT : EPOLLIN) < 0)
		return;
	handshake->state = HANDSHAKE_PARKED;
	move(handshake, &handshakes->active, &handshakes->parked);
	MHD_suspend_connection(handshake->connection->mhd);
}

/* is_complete uses that a session can be described from then on. */
static bool
is_complete(gnutls_session_t session)
{
	char	   *description = gnutls_session_get_desc(session);

	if (description == NULL)
		return false;
	gnutls_free(description);
	return true;
}

/* move takes a handshake out of a list and puts it into another one; either may be null. */
static void
move(Handshake *handshake, Handshake **from, Handshake **to)
{
	if (from != NULL)
	{
		if (handshake->previous != NULL)
			handshake->previous->next = handshake->next;
		else
			*from = handshake->next;
		if (handshake->next != NULL)
			handshake->next->previous = handshake->previous;
	}
	handshake->previous = NULL;
	handshake->next = NULL;
	if (to != NULL)
	{
		handshake->next = *to;
		if (*to != NULL)
			(*to)->previous = handshake;
		*to = handshake;
	}
}
