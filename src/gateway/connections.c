/*
 * connections.c
 *	  The open connections, the one request that each may have, and since when
 *	  they wait for what.
 */
#include "connections.h"

#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

static void set_address(FrameAddress *result, const struct sockaddr *address);

Connection *
connection_create(const struct sockaddr *address)
{
	Connection *connection = calloc(1, sizeof(Connection));

	if (connection == NULL)
		return NULL;
	connection->fd = -1;
	connection->phase = PHASE_IDLE;
	if (address != NULL)
		set_address(&connection->address, address);
	return connection;
}

void
connection_free(Connection *connection)
{
	connection_unlist(connection);
	free(connection);
}

void
connection_wait(Connection *connection, ConnectionList *list, int64_t now)
{
	connection_unlist(connection);
	connection->list = list;
	connection->since = now;
	connection->previous = list->last;
	connection->next = NULL;
	if (list->last != NULL)
		list->last->next = connection;
	else
		list->first = connection;
	list->last = connection;
}

void
connection_unlist(Connection *connection)
{
	ConnectionList *list = connection->list;

	if (list == NULL)
		return;
	if (connection->previous != NULL)
		connection->previous->next = connection->next;
	else
		list->first = connection->next;
	if (connection->next != NULL)
		connection->next->previous = connection->previous;
	else
		list->last = connection->previous;
	connection->list = NULL;
}

Connection *
connections_expired(const ConnectionList *list, int64_t timeout, int64_t now)
{
	if (list->first == NULL || now - list->first->since < timeout)
		return NULL;
	return list->first;
}

int64_t
connections_deadline(const ConnectionList *list, int64_t timeout)
{
	return list->first != NULL ? list->first->since + timeout : -1;
}

/* set_address shows an IPv4 client of an IPv6 socket as what it is. */
static void
set_address(FrameAddress *result, const struct sockaddr *address)
{
	if (address->sa_family == AF_INET)
	{
		struct sockaddr_in in;

		memcpy(&in, address, sizeof(in));
		result->family = 4;
		memcpy(result->bytes, &in.sin_addr, 4);
	}
	else if (address->sa_family == AF_INET6)
	{
		struct sockaddr_in6 in6;

		memcpy(&in6, address, sizeof(in6));
		if (IN6_IS_ADDR_V4MAPPED(&in6.sin6_addr))
		{
			result->family = 4;
			memcpy(result->bytes, in6.sin6_addr.s6_addr + 12, 4);
		}
		else
		{
			result->family = 6;
			memcpy(result->bytes, &in6.sin6_addr, 16);
		}
	}
}
