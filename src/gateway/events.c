/*
 * events.c
 *	  What the event loop may be told about: the thing behind an epoll entry.
 */
#include "events.h"

#include <stddef.h>
#include <sys/epoll.h>

int
event_add(int epoll_fd, EventSource *source, uint32_t events)
{
	struct epoll_event event;

	event.events = events;
	event.data.ptr = source;
	return epoll_ctl(epoll_fd, EPOLL_CTL_ADD, source->fd, &event);
}

int
event_change(int epoll_fd, EventSource *source, uint32_t events)
{
	struct epoll_event event;

	event.events = events;
	event.data.ptr = source;
	return epoll_ctl(epoll_fd, EPOLL_CTL_MOD, source->fd, &event);
}

int
event_remove(int epoll_fd, EventSource *source)
{
	return epoll_ctl(epoll_fd, EPOLL_CTL_DEL, source->fd, NULL);
}
