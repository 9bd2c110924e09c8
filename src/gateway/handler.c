/*
 * handler.c
 *	  What the HTTP library calls: a connection opens, a request goes through
 *	  its phases (see connections.h), a connection closes.
 *
 * The library calls handler_request once when the headers are complete, again
 * for each piece of the body, and once more, without data, when the body is
 * complete.  An answer queued in the first of these calls is sent without
 * reading the body, and the connection is closed after it.  In the last one
 * the request becomes a delivery and the connection is suspended; resumed, the
 * library makes that call again, and now the answer is there.
 *
 * What must never happen here: waiting, and an answer 200 that did not come
 * from the receiver.
 */
#include "handler.h"

#include "clock.h"

#include <string.h>

static enum MHD_Result admit_request(Connection *connection, const char *method,
									 const char *version);
static enum MHD_Result take_body(Connection *connection, const char *data, size_t *size);
static enum MHD_Result submit_request(Connection *connection);
static enum MHD_Result refuse_request(Connection *connection, uint16_t status,
									  RejectionReason reason, bool keep);
static enum MHD_Result queue_answer(Connection *connection, bool keep);
static enum MHD_Result show_header(void *cls, enum MHD_ValueKind kind, const char *name,
								   size_t name_length, const char *value, size_t value_length);
static void open_connection(HttpDaemon *daemon, struct MHD_Connection *mhd, void **context);
static void start_tls(Connection *connection);
static void close_connection(Connection *connection);

enum MHD_Result
handler_request(void *cls, struct MHD_Connection *mhd, const char *url, const char *method,
				const char *version, const char *upload_data, size_t *upload_data_size,
				void **request)
{
	Connection *connection = *request;

	(void) cls;
	(void) mhd;
	(void) url;

	if (connection == NULL)
		return MHD_NO;			/* there was no memory for it */

	switch (connection->phase)
	{
		case PHASE_HEADERS:
			return admit_request(connection, method, version);
		case PHASE_BODY:
		case PHASE_DISCARD:
			if (*upload_data_size > 0)
				return take_body(connection, upload_data, upload_data_size);
			return submit_request(connection);
		case PHASE_ANSWERED:
			return queue_answer(connection, true);
		case PHASE_WAITING:
		case PHASE_SENDING:
			return MHD_YES;
		case PHASE_IDLE:
		case PHASE_CLOSING:
			break;
	}
	return MHD_NO;
}

/*
 * handler_request_line begins a request.  The first one's time runs from the
 * opening of the connection, that of a later one from its request line: until
 * then the pause before it counts.
 */
void *
handler_request_line(void *cls, const char *target, struct MHD_Connection *mhd)
{
	HttpDaemon *daemon = cls;
	const union MHD_ConnectionInfo *info;
	Connection *connection;

	info = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
	connection = info != NULL ? info->socket_context : NULL;
	if (connection == NULL || connection->phase == PHASE_CLOSING)
		return connection;

	daemon->http->requests_total++;
	guard_begin(&connection->guard, target, strlen(target));
	connection->phase = PHASE_HEADERS;
	if (connection->used)
		connection_wait(connection, &daemon->http->clients, daemon->http->now);
	connection->used = true;
	return connection;
}

/* handler_completed ends a request, well or badly; the connection may go on to the next one. */
void
handler_completed(void *cls, struct MHD_Connection *mhd, void **request,
				  enum MHD_RequestTerminationCode code)
{
	HttpDaemon *daemon = cls;
	Connection *connection = *request;

	(void) mhd;
	(void) code;

	if (connection == NULL)
		return;
	deliveries_forget(&daemon->http->deliveries, connection);
	if (connection->phase != PHASE_CLOSING)
	{
		connection->phase = PHASE_IDLE;
		connection_wait(connection, &daemon->http->clients, daemon->http->now);
	}
	*request = NULL;
}

void
handler_connection(void *cls, struct MHD_Connection *mhd, void **context,
				   enum MHD_ConnectionNotificationCode code)
{
	if (code == MHD_CONNECTION_NOTIFY_STARTED)
		open_connection(cls, mhd, context);
	else if (*context != NULL)
	{
		close_connection(*context);
		*context = NULL;
	}
}

void
handler_answer(Http *http, Connection *connection, uint16_t status)
{
	deliveries_forget(&http->deliveries, connection);
	connection->phase = PHASE_ANSWERED;
	connection->status = status;
	connection_wait(connection, &http->clients, http->now);
	MHD_resume_connection(connection->mhd);
}

/* admit_request asks the guard, and prepares for the body if it lets the request pass. */
static enum MHD_Result
admit_request(Connection *connection, const char *method, const char *version)
{
	Http	   *http = connection->daemon->http;
	RequestGuard *guard = &connection->guard;
	const union MHD_ConnectionInfo *info;
	GuardContext context;
	GuardVerdict verdict;

	MHD_get_connection_values_n(connection->mhd, MHD_HEADER_KIND, show_header, guard);
	info = MHD_get_connection_info(connection->mhd, MHD_CONNECTION_INFO_REQUEST_HEADER_SIZE);

	context.method = method;
	context.version = version;
	context.header_size = info != NULL ? info->header_size : 0;
	context.max_header_size = http->config.max_header_size;
	context.max_body_size = http->config.max_body_size;
	context.path = paths_find(&http->paths, guard->path, guard->path_length);
	context.overloaded = http->draining || connection->surplus ||
		!deliveries_have_room(&http->deliveries, guard->content_length);

	verdict = guard_decide(guard, &context);
	if (verdict.status != 0)
		return refuse_request(connection, verdict.status, verdict.reason, false);
	if (!deliveries_begin(&http->deliveries, connection))
		return refuse_request(connection, 503, REJECTION_OVERLOADED, false);
	connection->phase = PHASE_BODY;
	return MHD_YES;
}

/*
 * take_body keeps a piece of the body.  The library cannot answer in the
 * middle of one, so when there is no more room the rest is read and dropped.
 */
static enum MHD_Result
take_body(Connection *connection, const char *data, size_t *size)
{
	Http	   *http = connection->daemon->http;

	if (connection->phase == PHASE_BODY &&
		!deliveries_append(&http->deliveries, connection, data, *size))
		connection->phase = PHASE_DISCARD;
	*size = 0;
	return MHD_YES;
}

/* submit_request hands the complete request to the receiver. */
static enum MHD_Result
submit_request(Connection *connection)
{
	Http	   *http = connection->daemon->http;

	if (connection->phase == PHASE_DISCARD || http->draining)
		return refuse_request(connection, 503, REJECTION_OVERLOADED, true);

	/* Fewer bytes than announced never get here; if they ever do, they are no delivery. */
	if (connection->body_length != connection->guard.content_length)
		return MHD_NO;

	if (!deliveries_submit(&http->deliveries, connection, clock_wall_us()))
		return refuse_request(connection, 503, REJECTION_OVERLOADED, true);
	connection->phase = PHASE_WAITING;
	connection_wait(connection, &http->waiting, http->now);
	MHD_suspend_connection(connection->mhd);
	return MHD_YES;
}

/* refuse_request answers without the receiver; keep says whether the body was read to its end. */
static enum MHD_Result
refuse_request(Connection *connection, uint16_t status, RejectionReason reason, bool keep)
{
	Http	   *http = connection->daemon->http;

	rejections_add(&http->rejections, reason, &connection->address,
				   connection->guard.path, connection->guard.path_length);
	deliveries_forget(&http->deliveries, connection);
	connection->status = status;
	connection->refused = !keep;
	connection_wait(connection, &http->clients, http->now);
	return queue_answer(connection, keep);
}

static enum MHD_Result
queue_answer(Connection *connection, bool keep)
{
	Http	   *http = connection->daemon->http;

	if (http->draining || connection->daemon->retiring || connection->surplus)
		keep = false;
	connection->phase = PHASE_SENDING;
	return MHD_queue_response(connection->mhd, connection->status,
							  responses_find(&http->responses, connection->status, keep));
}

static enum MHD_Result
show_header(void *cls, enum MHD_ValueKind kind, const char *name, size_t name_length,
			const char *value, size_t value_length)
{
	(void) kind;
	guard_header(cls, name, name_length, value != NULL ? value : "", value_length);
	return MHD_YES;
}

/*
 * open_connection cannot refuse: without memory the context stays null, the
 * socket is shut down, and the library closes the connection by itself.
 */
static void
open_connection(HttpDaemon *daemon, struct MHD_Connection *mhd, void **context)
{
	Http	   *http = daemon->http;
	const union MHD_ConnectionInfo *info;
	Connection *connection;
	int			fd;

	info = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CONNECTION_FD);
	fd = info != NULL ? info->connect_fd : -1;
	info = MHD_get_connection_info(mhd, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
	connection = connection_create(info != NULL ? info->client_addr : NULL);
	*context = connection;
	if (connection == NULL)
	{
		shutdown(fd, SHUT_RDWR);
		return;
	}

	connection->mhd = mhd;
	connection->daemon = daemon;
	connection->fd = fd;
	connection->surplus = http->connections >= http->soft_limit;
	if (daemon->tls)
		start_tls(connection);
	connection_wait(connection, &http->clients, http->now);
	daemon->connections++;
	http->connections++;
	http->connections_total++;
}

/* start_tls gives the connection, before its handshake, the certificate that there is now. */
static void
start_tls(Connection *connection)
{
	Http	   *http = connection->daemon->http;
	const union MHD_ConnectionInfo *info;

	info = MHD_get_connection_info(connection->mhd, MHD_CONNECTION_INFO_GNUTLS_SESSION);
	if (info == NULL)
		return;
	connection->certificate = tls_certificate_offer(http->certificate, info->tls_session);
	handshakes_begin(&http->handshakes, connection, info->tls_session);
}

/*
 * close_connection forgets the connection.  Its socket is still open here: one
 * that was answered early, by us or by the library, is left to linger.
 */
static void
close_connection(Connection *connection)
{
	HttpDaemon *daemon = connection->daemon;
	Http	   *http = daemon->http;

	if (!handshakes_end(&http->handshakes, connection) &&
		connection->phase != PHASE_CLOSING &&
		(connection->refused || connection->phase == PHASE_HEADERS || !connection->used))
		linger_add(&http->linger, connection->fd, http->now);

	deliveries_forget(&http->deliveries, connection);
	if (connection->certificate != NULL)
		tls_certificate_release(connection->certificate);
	daemon->connections--;
	http->connections--;
	connection_free(connection);
}
