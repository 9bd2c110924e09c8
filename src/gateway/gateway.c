/*
 * gateway.c
 *	  The event loop, and what the frames from the receiver do.
 *
 * One thread, one loop.  A turn: wait; take the receiver's frames and accept;
 * end what took too long; let the HTTP library work, which sends the answers
 * that came and completes requests; put those on the link and write it once.
 * So everything that became ready at the same time shares its system calls.
 *
 * Backpressure: deliveries stay in their queue while the link is full, and
 * while the queue is full requests get 503.  Frames are read whatever the
 * output does, so answers are never stuck behind deliveries.
 */
#include "gateway.h"

#include "clock.h"
#include "log.h"

#include <errno.h>
#include <limits.h>
#include <string.h>
#include <sys/epoll.h>
#include <unistd.h>

#define EVENTS_PER_TURN 64

static int	wait_timeout(const Gateway *gateway);
static void handle_event(Gateway *gateway, const struct epoll_event *event);
static void read_link(Gateway *gateway);
static void dispatch_frame(Gateway *gateway, const Frame *frame);
static bool dispatch_config(Gateway *gateway, const Frame *frame);
static bool dispatch_tls(Gateway *gateway, const Frame *frame);
static bool dispatch_paths(Gateway *gateway, const Frame *frame);
static bool dispatch_answers(Gateway *gateway, const Frame *frame);
static void start_drain(Gateway *gateway);
static void continue_drain(Gateway *gateway);
static void write_link(Gateway *gateway);
static bool put_status(Gateway *gateway);
static void finish(Gateway *gateway, int exit_status);

bool
gateway_init(Gateway *gateway, int link_fd, const int *listener_fds,
			 unsigned plain_count, unsigned count)
{
	gateway->epoll_fd = epoll_create1(EPOLL_CLOEXEC);
	if (gateway->epoll_fd < 0)
	{
		log_line("could not create an epoll descriptor: %s", strerror(errno));
		return false;
	}
	if (!link_init(&gateway->link, link_fd, gateway->epoll_fd))
	{
		log_line("could not use descriptor %d as the link: %s", link_fd, strerror(errno));
		return false;
	}
	listeners_init(&gateway->listeners, gateway->epoll_fd);
	for (unsigned i = 0; i < count; i++)
	{
		if (!listeners_add(&gateway->listeners, listener_fds[i], i >= plain_count))
		{
			log_line("could not use descriptor %d as a listening socket: %s",
					 listener_fds[i], strerror(errno));
			return false;
		}
	}
	if (!http_init(&gateway->http, gateway->epoll_fd, clock_monotonic_ms()))
		return false;

	if (!frame_put_hello(&gateway->link.out))
	{
		log_line("out of memory");
		return false;
	}
	return true;
}

int
gateway_run(Gateway *gateway)
{
	Http	   *http = &gateway->http;

	write_link(gateway);
	while (!gateway->finished)
	{
		struct epoll_event events[EVENTS_PER_TURN];
		int			count;

		count = epoll_wait(gateway->epoll_fd, events, EVENTS_PER_TURN, wait_timeout(gateway));
		if (count < 0 && errno != EINTR)
		{
			log_line("could not wait for events: %s", strerror(errno));
			finish(gateway, 1);
			break;
		}

		http->now = clock_monotonic_ms();
		for (int i = 0; i < count && !gateway->finished; i++)
			handle_event(gateway, &events[i]);
		if (gateway->finished)
			break;

		http_expire(http);
		http_run(http);
		if (http->draining)
			continue_drain(gateway);
		write_link(gateway);

		if (!listeners_watch(&gateway->listeners,
							 gateway->have_config && gateway->have_paths &&
							 !http->draining && http_has_room(http), http->now))
		{
			log_line("could not watch the listening sockets: %s", strerror(errno));
			finish(gateway, 1);
		}
	}

	listeners_close(&gateway->listeners);
	http_stop(http);
	link_free(&gateway->link);
	close(gateway->epoll_fd);
	return gateway->exit_status;
}

/* wait_timeout is the time until the nearest deadline, for epoll_wait. */
static int
wait_timeout(const Gateway *gateway)
{
	int64_t		deadline = http_deadline(&gateway->http);
	int64_t		timeout;

	deadline = clock_earlier(deadline, listeners_deadline(&gateway->listeners));
	deadline = clock_earlier(deadline, rejections_deadline(&gateway->http.rejections));
	if (gateway->http.draining)
		deadline = clock_earlier(deadline, gateway->drain_until);
	if (deadline < 0)
		return -1;

	/* The turn that ends here took some time as well, but less than a millisecond matters to no deadline. */
	timeout = deadline - gateway->http.now;
	if (timeout < 0)
		return 0;
	return timeout < INT_MAX ? (int) timeout : INT_MAX;
}

static void
handle_event(Gateway *gateway, const struct epoll_event *event)
{
	EventSource *source = event->data.ptr;

	switch (source->kind)
	{
		case EVENT_LINK:
			if (event->events & (EPOLLIN | EPOLLHUP | EPOLLERR))
				read_link(gateway);
			break;
		case EVENT_LISTENER:
		case EVENT_TLS_LISTENER:
			listeners_accept(&gateway->listeners, source, &gateway->http);
			break;
		case EVENT_HANDSHAKE:
			handshakes_continue(&gateway->http.handshakes, (Handshake *) source);
			break;
		case EVENT_LINGER:
			linger_read(&gateway->http.linger, (LingeringSocket *) source);
			break;
		case EVENT_HTTP:
			break;				/* http_run follows in any case */
	}
}

static void
read_link(Gateway *gateway)
{
	FrameIoResult io = link_read(&gateway->link);
	FrameResult result = FRAME_COMPLETE;
	Frame		frame;

	if (io == FRAME_IO_CLOSED)
	{
		/* The receiver ended, or does not want us any more. */
		finish(gateway, 0);
		return;
	}
	if (io == FRAME_IO_ERROR)
	{
		if (errno != ECONNRESET)
			log_line("could not read from the receiver: %s", strerror(errno));
		finish(gateway, errno == ECONNRESET ? 0 : 1);
		return;
	}

	while (!gateway->finished &&
		   (result = frame_next(&gateway->link.in, &frame)) == FRAME_COMPLETE)
		dispatch_frame(gateway, &frame);
	if (result == FRAME_MALFORMED)
	{
		log_line("the receiver sent a malformed frame");
		finish(gateway, 1);
	}
}

static void
dispatch_frame(Gateway *gateway, const Frame *frame)
{
	bool		proper = false;

	switch (frame->type)
	{
		case FRAME_CONFIG:
			proper = dispatch_config(gateway, frame);
			break;
		case FRAME_TLS:
			proper = dispatch_tls(gateway, frame);
			break;
		case FRAME_PATHS:
			proper = dispatch_paths(gateway, frame);
			break;
		case FRAME_ANSWERS:
			proper = dispatch_answers(gateway, frame);
			break;
		case FRAME_PING:
			proper = frame->length == 0;
			gateway->status_due = true;
			break;
		case FRAME_DRAIN:
			proper = frame->length == 0;
			if (proper)
				start_drain(gateway);
			break;
		default:
			break;
	}

	if (!proper)
	{
		log_line("the receiver sent a malformed frame of type %u", frame->type);
		finish(gateway, 1);
	}
}

static bool
dispatch_config(Gateway *gateway, const Frame *frame)
{
	ConfigFrame config;

	if (!frame_get_config(frame, &config))
		return false;
	if (http_configure(&gateway->http, &config))
		gateway->have_config = true;
	else
		finish(gateway, 1);
	return true;
}

/* dispatch_tls takes a certificate, and leaves nothing of its key in the buffer. */
static bool
dispatch_tls(Gateway *gateway, const Frame *frame)
{
	TlsFrame	tls;
	bool		proper = frame_get_tls(frame, &tls);

	if (proper)
		http_set_certificate(&gateway->http, &tls);
	frame_buffer_cleanse(&gateway->link.in);
	return proper;
}

static bool
dispatch_paths(Gateway *gateway, const Frame *frame)
{
	switch (paths_replace(&gateway->http.paths, frame))
	{
		case PATHS_OK:
			gateway->have_paths = true;
			return true;
		case PATHS_NO_MEMORY:
			/* Serving an old list would be wrong; a new gateway may find more memory. */
			log_line("out of memory");
			finish(gateway, 1);
			return true;
		case PATHS_MALFORMED:
			break;
	}
	return false;
}

static bool
dispatch_answers(Gateway *gateway, const Frame *frame)
{
	size_t		offset = 0;
	AnswerEntry answer;

	if (frame_get_answer_count(frame) < 0)
		return false;
	while (frame_next_answer(frame, &offset, &answer))
		http_answer(&gateway->http, answer.number, answer.status);
	return true;
}

/* start_drain closes the listening sockets at once, so that a successor of the receiver can bind. */
static void
start_drain(Gateway *gateway)
{
	if (gateway->http.draining)
		return;
	listeners_close(&gateway->listeners);
	gateway->drain_until = gateway->http.now + DRAIN_TIMEOUT;
	http_drain(&gateway->http);
}

/* continue_drain ends the process when nobody is left to answer, or time is over. */
static void
continue_drain(Gateway *gateway)
{
	if ((http_close_idle(&gateway->http) == 0 && gateway->http.linger.count == 0) ||
		gateway->http.now >= gateway->drain_until)
		finish(gateway, 0);
}

static void
write_link(Gateway *gateway)
{
	Link	   *link = &gateway->link;
	FrameIoResult result;

	if (gateway->status_due && !link_is_full(link) && put_status(gateway))
		gateway->status_due = false;
	deliveries_send(&gateway->http.deliveries, &link->out);
	if (!link_is_full(link))
		rejections_send(&gateway->http.rejections, &link->out, gateway->http.now);

	result = link_flush(link);
	if (result == FRAME_IO_CLOSED)
		finish(gateway, 0);
	else if (result == FRAME_IO_ERROR)
	{
		log_line("could not write to the receiver: %s", strerror(errno));
		finish(gateway, 1);
	}
}

static bool
put_status(Gateway *gateway)
{
	const Http *http = &gateway->http;
	StatusFrame status;

	status.connections = http->connections;
	status.pending = http->deliveries.pending;
	status.pending_size = http->deliveries.size;
	status.connections_total = http->connections_total;
	status.requests_total = http->requests_total;
	status.sandboxed = gateway->sandboxed;
	memcpy(status.rejections, http->rejections.totals, sizeof(status.rejections));
	return frame_put_status(&gateway->link.out, &status);
}

static void
finish(Gateway *gateway, int exit_status)
{
	gateway->finished = true;
	gateway->exit_status = exit_status;
}
