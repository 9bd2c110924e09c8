/*
 * listeners.c
 *	  The listening sockets of a receiver.
 *
 * The receiver holds them, not the gateway: when a gateway is replaced,
 * connections wait in the kernel's queue.  Several receivers of one database
 * share a port by SO_REUSEPORT.  That option would let receivers of two
 * databases share one too, each getting a part of the other's deliveries, so a port is
 * first claimed in shared memory.
 */
#include "postgres.h"

#include <arpa/inet.h>
#include <netdb.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <sys/socket.h>
#include <unistd.h>

#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "utils/varlena.h"

#include "counters.h"
#include "listeners.h"
#include "settings.h"

#define BACKLOG 1024

static bool
is_wildcard(const char *address)
{
	return strcmp(address, "*") == 0 || strcmp(address, "0.0.0.0") == 0 ||
		strcmp(address, "::") == 0;
}

/* Might two lists of addresses have one in common? */
static bool
addresses_overlap(const char *one, const char *other)
{
	List	   *left;
	List	   *right;
	ListCell   *l;
	ListCell   *r;

	if (!SplitGUCList(pstrdup(one), ',', &left) || !SplitGUCList(pstrdup(other), ',', &right))
		return true;
	foreach(l, left)
	{
		foreach(r, right)
		{
			if (is_wildcard(lfirst(l)) || is_wildcard(lfirst(r)) ||
				strcmp(lfirst(l), lfirst(r)) == 0)
				return true;
		}
	}
	return false;
}

/* The port that a slot has claimed and these listeners want, or 0. */
static int
common_port(const ReceiverSlot *slot, const Listeners *listeners)
{
	if (listeners->port == slot->port || listeners->port == slot->tls_port)
		return listeners->port;
	if (listeners->tls_port != 0 &&
		(listeners->tls_port == slot->port || listeners->tls_port == slot->tls_port))
		return listeners->tls_port;
	return 0;
}

/*
 * Claims the ports for this database; returns the database that has one of
 * them, *port, already, or InvalidOid.
 */
static Oid
claim_ports(const Listeners *listeners, int *port)
{
	typedef struct Claim
	{
		Oid			database;
		int			port;
		char		addresses[sizeof(my_slot->addresses)];
	} Claim;
	Claim	   *claims = palloc(sizeof(Claim) * MAX_SLOTS);
	int			count = 0;
	Oid			owner = InvalidOid;

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	for (int i = 0; i < MAX_SLOTS; i++)
	{
		ReceiverSlot *slot = &shared_state->slots[i];

		if (slot->used && slot->pid != 0 && slot->database != MyDatabaseId &&
			common_port(slot, listeners) != 0)
		{
			claims[count].port = common_port(slot, listeners);
			claims[count].database = slot->database;
			memcpy(claims[count].addresses, slot->addresses, sizeof(slot->addresses));
			count++;
		}
	}
	my_slot->port = listeners->port;
	my_slot->tls_port = listeners->tls_port;
	strlcpy(my_slot->addresses, listeners->addresses, sizeof(my_slot->addresses));
	LWLockRelease(shared_state->lock);

	for (int i = 0; i < count && !OidIsValid(owner); i++)
	{
		/* Shared sockets would not even notice that two names stand for one address. */
		if (listeners->shared || addresses_overlap(claims[i].addresses, listeners->addresses))
		{
			owner = claims[i].database;
			*port = claims[i].port;
		}
	}
	pfree(claims);
	return owner;
}

static void
release_ports(void)
{
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	my_slot->port = 0;
	my_slot->tls_port = 0;
	my_slot->listening_since = 0;
	LWLockRelease(shared_state->lock);
}

/* One socket for one address; -1 with errno set when it cannot be had. */
static int
open_socket(const struct addrinfo *address)
{
	int			fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);
	int			on = 1;

	if (fd < 0)
		return -1;
	if (setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on)) < 0 ||
		(bw_receivers > 1 && setsockopt(fd, SOL_SOCKET, SO_REUSEPORT, &on, sizeof(on)) < 0) ||
		(address->ai_family == AF_INET6 &&
		 setsockopt(fd, IPPROTO_IPV6, IPV6_V6ONLY, &on, sizeof(on)) < 0) ||
		bind(fd, address->ai_addr, address->ai_addrlen) < 0 ||
		listen(fd, BACKLOG) < 0)
	{
		int			save_errno = errno;

		close(fd);
		errno = save_errno;
		return -1;
	}
	return fd;
}

/* Is a socket open on this address already?  A list may name one twice, as "127.0.0.1, localhost" does. */
static bool
is_open(const Listeners *listeners, const struct addrinfo *address)
{
	for (int i = 0; i < listeners->count; i++)
	{
		struct sockaddr_storage bound;
		socklen_t	length = sizeof(bound);

		memset(&bound, 0, sizeof(bound));
		if (getsockname(listeners->fds[i], (struct sockaddr *) &bound, &length) == 0 &&
			length == address->ai_addrlen && memcmp(&bound, address->ai_addr, length) == 0)
			return true;
	}
	return false;
}

/*
 * Opens the sockets of one entry of the list.  Names are not looked up, but
 * for localhost: that could take as long as a name server likes.
 */
static bool
open_address(Listeners *listeners, const char *name, int port_number, char **problem)
{
	struct addrinfo hints = {0};
	struct addrinfo *found = NULL;
	bool		all = strcmp(name, "*") == 0;
	bool		opened = false;
	char		port[8];
	int			result;

	snprintf(port, sizeof(port), "%d", port_number);
	hints.ai_socktype = SOCK_STREAM;
	hints.ai_flags = AI_PASSIVE | AI_NUMERICSERV;
	if (!all && strcmp(name, "localhost") != 0)
		hints.ai_flags |= AI_NUMERICHOST;
	result = getaddrinfo(all ? NULL : name, port, &hints, &found);
	if (result != 0)
	{
		*problem = psprintf("\"%s\" in banked_webhooks.listen_addresses is not an address: %s",
							name, gai_strerror(result));
		return false;
	}

	for (struct addrinfo *address = found; address != NULL; address = address->ai_next)
	{
		int			fd;

		if (is_open(listeners, address))
		{
			opened = true;
			continue;
		}
		if (listeners->count == MAX_LISTENERS)
		{
			*problem = psprintf("banked_webhooks.listen_addresses names more addresses than the %d sockets that there can be",
								MAX_LISTENERS);
			opened = false;
			break;
		}
		fd = open_socket(address);
		if (fd >= 0)
		{
			listeners->fds[listeners->count++] = fd;
			opened = true;
			continue;
		}
		/* A host may have no IPv6: "*" and localhost are content with one family. */
		if ((errno == EAFNOSUPPORT || errno == EADDRNOTAVAIL) && (all || address->ai_next != NULL || opened))
			continue;
		*problem = psprintf("could not listen on \"%s\", port %d: %s", name, port_number,
							strerror(errno));
		opened = false;
		break;
	}
	freeaddrinfo(found);
	if (!opened && *problem == NULL)
		*problem = psprintf("could not listen on \"%s\", port %d", name, port_number);
	return opened;
}

/* Opens the sockets of all entries of the list. */
static bool
open_addresses(Listeners *listeners, List *names, int port, char **problem)
{
	ListCell   *cell;

	foreach(cell, names)
	{
		if (!open_address(listeners, lfirst(cell), port, problem))
			return false;
	}
	return true;
}

bool
listeners_open(Listeners *listeners, int tls_port, char **problem)
{
	List	   *names;
	Oid			owner;
	int			port;

	*problem = NULL;
	listeners->count = 0;
	listeners->port = bw_port;
	listeners->shared = bw_receivers > 1;
	listeners->tls_port = tls_port;
	strlcpy(listeners->addresses, bw_listen_addresses, sizeof(listeners->addresses));
	if (!SplitGUCList(pstrdup(bw_listen_addresses), ',', &names) || names == NIL)
	{
		*problem = pstrdup("banked_webhooks.listen_addresses names no address");
		return false;
	}

	if (tls_port == bw_port)
	{
		*problem = psprintf("banked_webhooks.port and banked_webhooks.tls_port are both %d", bw_port);
		return false;
	}

	owner = claim_ports(listeners, &port);
	if (OidIsValid(owner))
	{
		*problem = psprintf("port %d is used for webhooks of the database with OID %u",
							port, owner);
		release_ports();
		return false;
	}
	if (open_addresses(listeners, names, bw_port, problem))
	{
		listeners->plain_count = listeners->count;
		if (tls_port == 0 || open_addresses(listeners, names, tls_port, problem))
			return true;
	}
	listeners_close(listeners);
	return false;
}

void
listeners_close(Listeners *listeners)
{
	for (int i = 0; i < listeners->count; i++)
		close(listeners->fds[i]);
	listeners->count = 0;
	release_ports();
}

bool
listeners_are_listening(const Listeners *listeners)
{
	for (int i = 0; i < listeners->count; i++)
	{
		int			listening = 0;
		socklen_t	length = sizeof(listening);

		if (getsockopt(listeners->fds[i], SOL_SOCKET, SO_ACCEPTCONN, &listening, &length) < 0 ||
			!listening)
			return false;
	}
	return true;
}

bool
listeners_are_current(const Listeners *listeners, int tls_port)
{
	return listeners->port == bw_port && listeners->shared == (bw_receivers > 1) &&
		listeners->tls_port == tls_port && strcmp(listeners->addresses, bw_listen_addresses) == 0;
}
