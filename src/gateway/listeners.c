/*
 * listeners.c
 *	  The listening sockets: inherited, watched while there is room, accepted
 *	  from.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE				/* accept4 */
#endif

#include "listeners.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

/* Connections accepted from one socket in one turn of the loop. */
#define ACCEPT_BATCH 64

/* Milliseconds without accepting after descriptors or memory ran out. */
#define ACCEPT_PAUSE 100

void
listeners_init(Listeners *listeners, int epoll_fd)
{
	listeners->epoll_fd = epoll_fd;
	listeners->count = 0;
	listeners->watched = false;
	listeners->paused_until = -1;
}

bool
listeners_add(Listeners *listeners, int fd, bool tls)
{
	int			accepting = 0;
	socklen_t	length = sizeof(accepting);
	int			flags;
	EventSource *source;

	if (listeners->count == LISTENERS_MAX)
	{
		errno = EMFILE;
		return false;
	}
	if (getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &accepting, &length) < 0)
		return false;
	if (!accepting)
	{
		errno = EINVAL;
		return false;
	}

	/* Another process may take the connection that we were told of: never block for it. */
	flags = fcntl(fd, F_GETFL);
	if (flags < 0 || fcntl(fd, F_SETFL, flags | O_NONBLOCK) < 0 ||
		fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
		return false;

	source = &listeners->sources[listeners->count];
	source->kind = tls ? EVENT_TLS_LISTENER : EVENT_LISTENER;
	source->fd = fd;
	listeners->count++;
	return true;
}

bool
listeners_watch(Listeners *listeners, bool wanted, int64_t now)
{
	if (listeners->paused_until >= 0)
	{
		if (now < listeners->paused_until)
			wanted = false;
		else
			listeners->paused_until = -1;
	}
	if (wanted == listeners->watched)
		return true;

	for (unsigned i = 0; i < listeners->count; i++)
	{
		EventSource *source = &listeners->sources[i];

		if ((wanted ? event_add(listeners->epoll_fd, source, EPOLLIN)
			 : event_remove(listeners->epoll_fd, source)) < 0)
			return false;
	}
	listeners->watched = wanted;
	return true;
}

void
listeners_accept(Listeners *listeners, const EventSource *source, Http *http)
{
	for (int i = 0; i < ACCEPT_BATCH && http_has_room(http); i++)
	{
		struct sockaddr_storage address;
		socklen_t	length = sizeof(address);
		int			fd;

		memset(&address, 0, sizeof(address));
		fd = accept4(source->fd, (struct sockaddr *) &address, &length,
					 SOCK_NONBLOCK | SOCK_CLOEXEC);
		if (fd >= 0)
		{
			if (length > sizeof(address))
				length = sizeof(address);
			http_take_connection(http, fd, (struct sockaddr *) &address, length,
								 source->kind == EVENT_TLS_LISTENER);
		}
		else if (errno == EAGAIN || errno == EWOULDBLOCK)
			return;
		else if (errno == EMFILE || errno == ENFILE || errno == ENOBUFS || errno == ENOMEM)
		{
			log_limited(&listeners->failures, http->now,
						"could not accept a connection: %s", strerror(errno));
			listeners->paused_until = http->now + ACCEPT_PAUSE;
			return;
		}

		/* Anything else is about this one connection, which is gone. */
	}
}

int64_t
listeners_deadline(const Listeners *listeners)
{
	return listeners->paused_until;
}

void
listeners_close(Listeners *listeners)
{
	listeners_watch(listeners, false, 0);
	for (unsigned i = 0; i < listeners->count; i++)
		close(listeners->sources[i].fd);
	listeners->count = 0;
	listeners->paused_until = -1;
}
