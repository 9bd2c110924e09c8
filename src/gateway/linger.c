/*
 * linger.c
 *	  Lets a client read its refusal while it still sends the body.
 */
#include "linger.h"

#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

static void close_lingering(Linger *linger, LingeringSocket *socket);

void
linger_init(Linger *linger, int epoll_fd)
{
	linger->epoll_fd = epoll_fd;
	linger->count = 0;
	linger->first = NULL;
	linger->last = NULL;
}

void
linger_add(Linger *linger, int fd, int64_t now)
{
	LingeringSocket *lingering;
	char		byte;

	/* A client that closed first has nothing more to say. */
	if (linger->count >= LINGER_MAX || recv(fd, &byte, 1, MSG_PEEK | MSG_DONTWAIT) == 0)
		return;

	lingering = malloc(sizeof(LingeringSocket));
	if (lingering == NULL)
		return;
	lingering->source.kind = EVENT_LINGER;
	lingering->source.fd = fcntl(fd, F_DUPFD_CLOEXEC, 0);
	if (lingering->source.fd < 0)
	{
		free(lingering);
		return;
	}
	if (event_add(linger->epoll_fd, &lingering->source, EPOLLIN) < 0)
	{
		close(lingering->source.fd);
		free(lingering);
		return;
	}
	shutdown(fd, SHUT_WR);

	lingering->until = now + LINGER_TIMEOUT;
	lingering->dropped = 0;
	lingering->previous = linger->last;
	lingering->next = NULL;
	if (linger->last != NULL)
		linger->last->next = lingering;
	else
		linger->first = lingering;
	linger->last = lingering;
	linger->count++;
}

void
linger_read(Linger *linger, LingeringSocket *socket)
{
	static char sink[64 * 1024];
	ssize_t		got = recv(socket->source.fd, sink, sizeof(sink), MSG_DONTWAIT);

	if (got > 0)
		socket->dropped += (uint64_t) got;
	else if (got == 0 || (errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR))
	{
		close_lingering(linger, socket);
		return;
	}
	if (socket->dropped > LINGER_MAX_BYTES)
		close_lingering(linger, socket);
}

void
linger_expire(Linger *linger, int64_t now)
{
	while (linger->first != NULL && linger->first->until <= now)
		close_lingering(linger, linger->first);
}

int64_t
linger_deadline(const Linger *linger)
{
	return linger->first != NULL ? linger->first->until : -1;
}

void
linger_close_all(Linger *linger)
{
	while (linger->first != NULL)
		close_lingering(linger, linger->first);
}

static void
close_lingering(Linger *linger, LingeringSocket *socket)
{
	if (socket->previous != NULL)
		socket->previous->next = socket->next;
	else
		linger->first = socket->next;
	if (socket->next != NULL)
		socket->next->previous = socket->previous;
	else
		linger->last = socket->previous;
	linger->count--;

	/* Closing one of two descriptors would leave the entry; here it is the last one. */
	event_remove(linger->epoll_fd, &socket->source);
	close(socket->source.fd);
	free(socket);
}
