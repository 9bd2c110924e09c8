/*
 * http.c
 *	  HTTP: the library's daemons, deadlines, draining.
 */
#include "http.h"

#include "clock.h"
#include "handler.h"

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/resource.h>
#include <unistd.h>

/*
 * What the library needs of a connection's memory besides the request's line
 * and headers: the list of headers, a piece of the body, the answer's headers.
 */
#define CONNECTION_MEMORY(header_size) ((size_t) (header_size) + 16 * 1024)

/* Connections over max_connections that are accepted in order to answer 503. */
#define HEADROOM(max_connections) ((max_connections) / 8 + 16)

/* Descriptors that are not client connections: standard streams, link, listeners, epoll, lingering. */
#define OTHER_DESCRIPTORS (LINGER_MAX + 128)

static HttpDaemon *serving_daemon(const Http *http, bool tls);
static bool start_daemon(Http *http, bool tls);
static struct MHD_Daemon *start_library(Http *http, HttpDaemon *daemon);
static void stop_daemon(Http *http, HttpDaemon *daemon);
static void set_connection_limits(Http *http);
static void count_expired(Http *http, const Connection *connection);
static void close_client(Http *http, Connection *connection);
static void library_message(void *cls, const char *format, va_list args)
			__attribute__((format(printf, 2, 0)));
static void library_panic(void *cls, const char *file, unsigned int line, const char *reason);

/* The library's last message, for the case that something fails afterwards. */
static char last_message[256] = "no reason given";

bool
http_init(Http *http, int epoll_fd, int64_t now)
{
	http->epoll_fd = epoll_fd;
	http->now = now;
	http->handshakes.epoll_fd = epoll_fd;
	linger_init(&http->linger, epoll_fd);
	MHD_set_panic_func(library_panic, NULL);
	if (!responses_create(&http->responses))
	{
		log_line("could not prepare the HTTP answers: out of memory");
		return false;
	}
	return true;
}

bool
http_configure(Http *http, const ConfigFrame *config)
{
	bool		fresh = http->daemons == NULL ||
		config->max_header_size != http->config.max_header_size ||
		config->request_timeout != http->config.request_timeout;

	http->config = *config;

	/* Any body of a permitted size must be able to pass, if it comes alone. */
	http->deliveries.max_pending = config->max_pending;
	http->deliveries.max_size = config->max_pending_size > config->max_body_size ?
		config->max_pending_size : config->max_body_size;
	set_connection_limits(http);

	if (!fresh)
		return true;
	if (http->certificate != NULL)
		(void) start_daemon(http, true);
	return start_daemon(http, false);
}

void
http_set_certificate(Http *http, const TlsFrame *frame)
{
	const char *problem;
	TlsCertificate *certificate = tls_certificate_create(frame, &problem);

	if (certificate == NULL)
	{
		log_line("could not use the TLS certificate and its key: %s%s", problem,
				 http->certificate != NULL ? "; the certificate before is kept" : "");
		return;
	}
	if (http->certificate != NULL)
		tls_certificate_release(http->certificate);
	http->certificate = certificate;
	if (http->daemons != NULL && serving_daemon(http, true) == NULL)
		(void) start_daemon(http, true);
}

void
http_take_connection(Http *http, int fd, const struct sockaddr *address, socklen_t address_length,
					 bool tls)
{
	HttpDaemon *daemon = serving_daemon(http, tls);

	if (daemon == NULL)
	{
		/* No certificate: the reason is in the log. */
		close(fd);
		return;
	}
	/* The library closes the socket if it fails. */
	if (MHD_add_connection(daemon->mhd, fd, address, address_length) != MHD_YES)
		log_limited(&http->connection_failures, http->now,
					"could not serve a connection: %s", strerror(errno));
}

bool
http_has_room(const Http *http)
{
	return http->connections < http->hard_limit;
}

void
http_answer(Http *http, uint64_t number, uint16_t status)
{
	Connection *connection = deliveries_find(&http->deliveries, number);

	if (connection != NULL)
		handler_answer(http, connection, status);
}

void
http_expire(Http *http)
{
	Connection *connection;

	while ((connection = connections_expired(&http->waiting, http->config.answer_timeout,
											 http->now)) != NULL)
	{
		rejections_add(&http->rejections, REJECTION_ANSWER_TIMEOUT, &connection->address,
					   connection->guard.path, connection->guard.path_length);
		handler_answer(http, connection, 503);
	}
	while ((connection = connections_expired(&http->clients, http->config.request_timeout,
											 http->now)) != NULL)
	{
		count_expired(http, connection);
		close_client(http, connection);
	}
	linger_expire(&http->linger, http->now);
}

void
http_run(Http *http)
{
	HttpDaemon **link;

	for (HttpDaemon *daemon = http->daemons; daemon != NULL; daemon = daemon->next)
		MHD_run(daemon->mhd);
	handshakes_review(&http->handshakes);

	link = &http->daemons;
	while (*link != NULL)
	{
		HttpDaemon *daemon = *link;

		if (daemon->retiring && daemon->connections == 0)
		{
			*link = daemon->next;
			stop_daemon(http, daemon);
		}
		else
			link = &daemon->next;
	}
}

int64_t
http_deadline(const Http *http)
{
	int64_t		result;

	result = connections_deadline(&http->clients, http->config.request_timeout);
	result = clock_earlier(result, connections_deadline(&http->waiting,
														http->config.answer_timeout));
	result = clock_earlier(result, linger_deadline(&http->linger));
	for (HttpDaemon *daemon = http->daemons; daemon != NULL; daemon = daemon->next)
	{
		MHD_UNSIGNED_LONG_LONG timeout;

		if (MHD_get_timeout(daemon->mhd, &timeout) == MHD_YES)
			result = clock_earlier(result, http->now + (int64_t) timeout);
	}
	return result;
}

void
http_drain(Http *http)
{
	http->draining = true;
	while (http->waiting.first != NULL)
		handler_answer(http, http->waiting.first, 503);
}

uint32_t
http_close_idle(Http *http)
{
	Connection *next;

	for (Connection *connection = http->clients.first; connection != NULL; connection = next)
	{
		next = connection->next;
		if (connection->phase == PHASE_IDLE)
			close_client(http, connection);
	}
	return http->connections;
}

void
http_stop(Http *http)
{
	/* A daemon with suspended connections cannot be stopped. */
	http_drain(http);
	http_close_idle(http);
	http_run(http);
	while (http->daemons != NULL)
	{
		HttpDaemon *daemon = http->daemons;

		http->daemons = daemon->next;
		stop_daemon(http, daemon);
	}
	if (http->certificate != NULL)
		tls_certificate_release(http->certificate);
	http->certificate = NULL;
	linger_close_all(&http->linger);
	responses_free(&http->responses);
	paths_free(&http->paths);
}

static HttpDaemon *
serving_daemon(const Http *http, bool tls)
{
	HttpDaemon *daemon = http->daemons;

	while (daemon != NULL && (daemon->retiring || daemon->tls != tls))
		daemon = daemon->next;
	return daemon;
}

/*
 * start_daemon starts a library daemon for the connections from now on, and
 * retires the present one of its kind: its idle connections are closed, the
 * others after their present request.
 */
static bool
start_daemon(Http *http, bool tls)
{
	HttpDaemon *before = serving_daemon(http, tls);
	HttpDaemon *daemon = calloc(1, sizeof(HttpDaemon));
	const union MHD_DaemonInfo *info;

	if (daemon == NULL)
	{
		log_line("could not start the HTTP service: out of memory");
		return false;
	}
	daemon->http = http;
	daemon->tls = tls;
	daemon->mhd = start_library(http, daemon);
	if (daemon->mhd == NULL)
	{
		log_line("could not start the %s service: %s", tls ? "HTTPS" : "HTTP", last_message);
		free(daemon);
		return false;
	}
	info = MHD_get_daemon_info(daemon->mhd, MHD_DAEMON_INFO_EPOLL_FD);
	daemon->source.kind = EVENT_HTTP;
	daemon->source.fd = info != NULL ? info->epoll_fd : -1;
	if (event_add(http->epoll_fd, &daemon->source, EPOLLIN) < 0)
	{
		log_line("could not watch the HTTP service: %s", strerror(errno));
		MHD_stop_daemon(daemon->mhd);
		free(daemon);
		return false;
	}

	if (before != NULL)
	{
		before->retiring = true;
		http_close_idle(http);
	}
	daemon->next = http->daemons;
	http->daemons = daemon;
	return true;
}

/*
 * start_library starts the library's part of a daemon.  Its own time-out is a
 * second line behind our deadlines.
 */
static struct MHD_Daemon *
start_library(Http *http, HttpDaemon *daemon)
{
	struct MHD_OptionItem plain[] = {
		{MHD_OPTION_END, 0, NULL}
	};
	struct MHD_OptionItem tls[] = {
		{MHD_OPTION_HTTPS_PRIORITIES, 0, (void *) (uintptr_t) TLS_PRIORITIES},
		{MHD_OPTION_HTTPS_CERT_CALLBACK2, 0, (void *) (uintptr_t) tls_no_certificate},
		{MHD_OPTION_END, 0, NULL}
	};

	return MHD_start_daemon(MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_NO_LISTEN_SOCKET |
							MHD_USE_ERROR_LOG | (daemon->tls ? MHD_USE_TLS : 0),
							0, NULL, NULL, handler_request, daemon,
							MHD_OPTION_EXTERNAL_LOGGER, library_message, http,
							MHD_OPTION_SIGPIPE_HANDLED_BY_APP, 1,
							MHD_OPTION_CONNECTION_LIMIT, 1000000U,
							MHD_OPTION_CONNECTION_MEMORY_LIMIT,
							CONNECTION_MEMORY(http->config.max_header_size),
							MHD_OPTION_CONNECTION_TIMEOUT,
							(unsigned) (2 * (http->config.request_timeout / 1000) + 10),
							MHD_OPTION_URI_LOG_CALLBACK, handler_request_line, daemon,
							MHD_OPTION_NOTIFY_COMPLETED, handler_completed, daemon,
							MHD_OPTION_NOTIFY_CONNECTION, handler_connection, daemon,
							MHD_OPTION_ARRAY, daemon->tls ? tls : plain,
							MHD_OPTION_END);
}

static void
stop_daemon(Http *http, HttpDaemon *daemon)
{
	event_remove(http->epoll_fd, &daemon->source);
	MHD_stop_daemon(daemon->mhd);
	free(daemon);
}

/* set_connection_limits keeps max_connections and its headroom within the descriptors that there are. */
static void
set_connection_limits(Http *http)
{
	struct rlimit limit;
	uint64_t	wanted = http->config.max_connections;
	uint64_t	total = wanted + HEADROOM(wanted);

	if (getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur != RLIM_INFINITY)
	{
		uint64_t	available = limit.rlim_cur > OTHER_DESCRIPTORS + 2 * HEADROOM(0) ?
			limit.rlim_cur - OTHER_DESCRIPTORS : 2 * HEADROOM(0);

		if (total > available)
		{
			total = available;
			wanted = total - HEADROOM(total) > 0 ? total - HEADROOM(total) : 1;
			log_line("max_connections is reduced from %u to %u: the limit of open files is %llu",
					 http->config.max_connections, (unsigned) wanted,
					 (unsigned long long) limit.rlim_cur);
		}
	}
	http->soft_limit = (uint32_t) wanted;
	http->hard_limit = total > UINT32_MAX ? UINT32_MAX : (uint32_t) total;
}

/*
 * count_expired counts a request that did not come to its end in time.  A
 * pause between two requests, and an answer that is not fetched, are none.
 */
static void
count_expired(Http *http, const Connection *connection)
{
	switch (connection->phase)
	{
		case PHASE_IDLE:
			if (connection->used)
				return;
			break;
		case PHASE_HEADERS:
		case PHASE_BODY:
		case PHASE_DISCARD:
			break;
		case PHASE_WAITING:
		case PHASE_ANSWERED:
		case PHASE_SENDING:
		case PHASE_CLOSING:
			return;
	}
	rejections_add(&http->rejections, REJECTION_REQUEST_TIMEOUT, &connection->address,
				   connection->guard.path, connection->guard.path_length);
}

/*
 * close_client closes the connection by shutting its socket down: the library
 * sees an end of file, whatever state it thinks the connection is in.
 */
static void
close_client(Http *http, Connection *connection)
{
	connection_unlist(connection);
	deliveries_forget(&http->deliveries, connection);
	handshakes_resume(&http->handshakes, connection);
	connection->phase = PHASE_CLOSING;
	shutdown(connection->fd, SHUT_RDWR);
}

/*
 * library_message gets what the library would write to standard error.  Most
 * of it is about clients and is no news; the answers that it gives without
 * asking us are counted, by the number in the message.
 */
static void
library_message(void *cls, const char *format, va_list args)
{
	static const char answered[] = "Error processing request (HTTP response code is ";
	static const FrameAddress unknown = {0, {0}};
	Http	   *http = cls;
	size_t		length;

	vsnprintf(last_message, sizeof(last_message), format, args);
	length = strlen(last_message);
	while (length > 0 && last_message[length - 1] == '\n')
		last_message[--length] = '\0';

	if (strncmp(last_message, answered, sizeof(answered) - 1) == 0)
	{
		long		status = strtol(last_message + sizeof(answered) - 1, NULL, 10);
		RejectionReason reason = status == 414 ? REJECTION_URI_TOO_LONG :
			status == 431 ? REJECTION_HEADERS_TOO_LARGE : REJECTION_LIBRARY;

		rejections_add(&http->rejections, reason, &unknown, NULL, 0);
	}
}

/* library_panic must not return; the receiver starts another gateway. */
static void
library_panic(void *cls, const char *file, unsigned int line, const char *reason)
{
	(void) cls;
	log_line("the HTTP library gave up at %s:%u: %s", file, line, reason != NULL ? reason : "");
	_exit(1);
}
