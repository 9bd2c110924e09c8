/*
 * link.c
 *	  The socket to the receiver, with a buffer for each direction.
 */
#include "link.h"

#include "deliveries.h"

#include <errno.h>
#include <fcntl.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

/* Bytes read in one turn of the loop. */
#define LINK_READ_SIZE ((size_t) 256 * 1024)

/* Memory that an empty buffer keeps. */
#define LINK_KEEP_SIZE ((size_t) 1024 * 1024)

/* Room for the watermark, then one delivery of any size, then small frames. */
#define LINK_OUT_LIMIT (LINK_WATERMARK + FRAME_HEADER_SIZE + FRAME_MAX_PAYLOAD + 64 * 1024)

bool
link_init(Link *link, int fd, int epoll_fd)
{
	int			type = 0;
	socklen_t	length = sizeof(type);

	if (getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) < 0)
		return false;
	if (type != SOCK_STREAM)
	{
		errno = EPROTOTYPE;
		return false;
	}
	if (fcntl(fd, F_SETFD, FD_CLOEXEC) < 0)
		return false;

	link->source.kind = EVENT_LINK;
	link->source.fd = fd;
	link->epoll_fd = epoll_fd;
	link->watches_output = false;
	frame_buffer_init(&link->in, FRAME_HEADER_SIZE + FRAME_MAX_PAYLOAD);
	frame_buffer_init(&link->out, LINK_OUT_LIMIT);
	return event_add(epoll_fd, &link->source, EPOLLIN) == 0;
}

FrameIoResult
link_read(Link *link)
{
	frame_buffer_compact(&link->in, LINK_KEEP_SIZE);
	return frame_buffer_read(&link->in, link->source.fd, LINK_READ_SIZE);
}

FrameIoResult
link_flush(Link *link)
{
	FrameIoResult result = FRAME_IO_AGAIN;
	bool		more;

	if (frame_buffer_length(&link->out) > 0)
		result = frame_buffer_write(&link->out, link->source.fd);
	if (result == FRAME_IO_CLOSED || result == FRAME_IO_ERROR)
		return result;

	more = frame_buffer_length(&link->out) > 0;
	if (!more)
		frame_buffer_compact(&link->out, LINK_KEEP_SIZE);
	if (more != link->watches_output)
	{
		if (event_change(link->epoll_fd, &link->source, more ? EPOLLIN | EPOLLOUT : EPOLLIN) < 0)
			return FRAME_IO_ERROR;
		link->watches_output = more;
	}
	return result;
}

bool
link_is_full(const Link *link)
{
	return frame_buffer_length(&link->out) >= LINK_WATERMARK;
}

void
link_free(Link *link)
{
	frame_buffer_free(&link->in);
	frame_buffer_free(&link->out);
	close(link->source.fd);
}
