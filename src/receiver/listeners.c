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

/* Claims the port for this database; returns the database that has it already, or InvalidOid. */
static Oid
claim_port(const Listeners *listeners)
{
	typedef struct Claim
	{
		Oid			database;
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
			slot->port == listeners->port)
		{
			claims[count].database = slot->database;
			memcpy(claims[count].addresses, slot->addresses, sizeof(slot->addresses));
			count++;
		}
	}
	my_slot->port = listeners->port;
	strlcpy(my_slot->addresses, listeners->addresses, sizeof(my_slot->addresses));
	LWLockRelease(shared_state->lock);

	for (int i = 0; i < count && !OidIsValid(owner); i++)
	{
		if (addresses_overlap(claims[i].addresses, listeners->addresses))
			owner = claims[i].database;
	}
	pfree(claims);
	return owner;
}

static void
release_port(void)
{
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	my_slot->port = 0;
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

/*
 * Opens the sockets of one entry of the list.  Names are not looked up, but
 * for localhost: that could take as long as a name server likes.
 */
static bool
open_address(Listeners *listeners, const char *name, char **problem)
{
	struct addrinfo hints = {0};
	struct addrinfo *found = NULL;
	bool		all = strcmp(name, "*") == 0;
	bool		opened = false;
	char		port[8];
	int			result;

	snprintf(port, sizeof(port), "%d", listeners->port);
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

		if (listeners->count == MAX_LISTENERS)
		{
			*problem = psprintf("banked_webhooks.listen_addresses names more than %d addresses",
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
		*problem = psprintf("could not listen on \"%s\", port %d: %s", name, listeners->port,
							strerror(errno));
		opened = false;
		break;
	}
	freeaddrinfo(found);
	if (!opened && *problem == NULL)
		*problem = psprintf("could not listen on \"%s\", port %d", name, listeners->port);
	return opened;
}

bool
listeners_open(Listeners *listeners, char **problem)
{
	List	   *names;
	ListCell   *cell;
	Oid			owner;

	*problem = NULL;
	listeners->count = 0;
	listeners->port = bw_port;
	strlcpy(listeners->addresses, bw_listen_addresses, sizeof(listeners->addresses));
	if (!SplitGUCList(pstrdup(bw_listen_addresses), ',', &names) || names == NIL)
	{
		*problem = pstrdup("banked_webhooks.listen_addresses names no address");
		return false;
	}

	owner = claim_port(listeners);
	if (OidIsValid(owner))
	{
		*problem = psprintf("port %d is used for webhooks of the database with OID %u",
							listeners->port, owner);
		release_port();
		return false;
	}
	foreach(cell, names)
	{
		if (!open_address(listeners, lfirst(cell), problem))
		{
			listeners_close(listeners);
			return false;
		}
	}
	return true;
}

void
listeners_close(Listeners *listeners)
{
	for (int i = 0; i < listeners->count; i++)
		close(listeners->fds[i]);
	listeners->count = 0;
	release_port();
}

bool
listeners_are_current(const Listeners *listeners)
{
	return listeners->port == bw_port && strcmp(listeners->addresses, bw_listen_addresses) == 0;
}
