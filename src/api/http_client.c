/*
 * http_client.c
 *	  One HTTP request of the calling session, interruptible at any time.
 *
 * libcurl's multi interface does the work, and PostgreSQL does the waiting:
 * on libcurl's sockets, its timer and the process's latch, so that a cancelled
 * query, statement_timeout and a shutdown end the request at once.
 *
 * Two worlds meet here, and must not mix.  libcurl knows no longjmp: none of
 * its callbacks raises an error, they only note things in a Transfer, which is
 * malloc'ed like all else that libcurl holds; all of it is freed on every way out.
 * PostgreSQL knows no threads: the thread in which libcurl looks up names is
 * started with all signals blocked, so that no handler runs in it.
 *
 * Certificates are always verified, no redirect is followed, no proxy but the
 * one that is set is used, and the size of an answer is bounded.
 */
#include "postgres.h"

#include <ctype.h>
#include <signal.h>

#include <curl/curl.h>
#include <openssl/crypto.h>

#include "miscadmin.h"
#include "storage/latch.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "api/http_client.h"
#include "settings.h"

#define MAX_SOCKETS 16			/* that one transfer may wait for */
#define MAX_HEADERS (256 * 1024)	/* bytes of an answer's headers */
#define ATTEMPTS 3				/* of a repeatable request, while no connection comes about */
#define FIRST_PAUSE 200			/* ms between the first two, then five times as long */
#define LONGEST_WAIT 1000		/* ms; libcurl is asked at least so often what it wants */

typedef struct Transfer
{
	CURLM	   *multi;
	CURL	   *easy;
	struct curl_slist *headers;
	WaitEventSet *wait_set;

	/* what libcurl wants to wait for */
	curl_socket_t sockets[MAX_SOCKETS];
	int			socket_wants[MAX_SOCKETS];	/* CURL_POLL_IN and so on */
	int			socket_count;
	bool		too_many_sockets;
	TimestampTz timer;			/* 0 when none is set */

	/* what came */
	char	   *body;			/* malloc'ed */
	size_t		body_length;
	size_t		headers_length;
	char		retry_after[64];
	bool		too_large;
	bool		out_of_memory;
	char		error[CURL_ERROR_SIZE];
} Transfer;

static int
socket_callback(CURL *easy, curl_socket_t socket, int wants, void *user, void *unused)
{
	Transfer   *transfer = user;
	int			i = 0;

	while (i < transfer->socket_count && transfer->sockets[i] != socket)
		i++;
	if (wants == CURL_POLL_REMOVE)
	{
		if (i < transfer->socket_count)
		{
			transfer->socket_count--;
			transfer->sockets[i] = transfer->sockets[transfer->socket_count];
			transfer->socket_wants[i] = transfer->socket_wants[transfer->socket_count];
		}
		return 0;
	}
	if (i == MAX_SOCKETS)
	{
		transfer->too_many_sockets = true;
		return 0;
	}
	if (i == transfer->socket_count)
		transfer->socket_count++;
	transfer->sockets[i] = socket;
	transfer->socket_wants[i] = wants;
	return 0;
}

static int
timer_callback(CURLM *multi, long timeout, void *user)
{
	Transfer   *transfer = user;

	transfer->timer = timeout < 0 ? 0 : TimestampTzPlusMilliseconds(GetCurrentTimestamp(), timeout);
	return 0;
}

/* Returns less than it was given when the transfer is to be given up. */
static size_t
body_callback(char *data, size_t unit, size_t count, void *user)
{
	Transfer   *transfer = user;
	size_t		length = unit * count;
	char	   *grown;

	if (length > HTTP_MAX_ANSWER - transfer->body_length)
	{
		transfer->too_large = true;
		return 0;
	}
	grown = realloc(transfer->body, transfer->body_length + length + 1);
	if (grown == NULL)
	{
		transfer->out_of_memory = true;
		return 0;
	}
	transfer->body = grown;
	memcpy(transfer->body + transfer->body_length, data, length);
	transfer->body_length += length;
	transfer->body[transfer->body_length] = '\0';
	return length;
}

static size_t
header_callback(char *data, size_t unit, size_t count, void *user)
{
	static const char name[] = "retry-after:";
	Transfer   *transfer = user;
	size_t		length = unit * count;

	transfer->headers_length += length;
	if (transfer->headers_length > MAX_HEADERS)
	{
		transfer->too_large = true;
		return 0;
	}
	if (length > sizeof(name) - 1 && pg_strncasecmp(data, name, sizeof(name) - 1) == 0)
	{
		size_t		from = sizeof(name) - 1;
		size_t		to = length;
		size_t		kept = 0;

		while (from < to && (data[from] == ' ' || data[from] == '\t'))
			from++;
		/* Only what a number or a date is made of. */
		while (from < to && kept < sizeof(transfer->retry_after) - 1 &&
			   (isalnum((unsigned char) data[from]) || strchr(" ,:-", data[from]) != NULL) && data[from] != '\0')
			transfer->retry_after[kept++] = data[from++];
		transfer->retry_after[kept] = '\0';
	}
	return length;
}

/* Calls libcurl with all signals blocked, for the sake of the threads it may start. */
static CURLMcode
drive(Transfer *transfer, curl_socket_t socket, int events)
{
	sigset_t	all;
	sigset_t	before;
	CURLMcode	result;
	int			running;

	sigfillset(&all);
	sigprocmask(SIG_SETMASK, &all, &before);
	result = curl_multi_socket_action(transfer->multi, socket, events, &running);
	sigprocmask(SIG_SETMASK, &before, NULL);
	return result;
}

static void
out_of_memory(void)
{
	ereport(ERROR,
			(errcode(ERRCODE_OUT_OF_MEMORY),
			 errmsg("out of memory"),
			 errdetail("Failed in libcurl.")));
}

#define SET(option, value) \
	do { \
		if (curl_easy_setopt(transfer->easy, option, value) != CURLE_OK) \
			elog(ERROR, "libcurl refuses option %s", #option); \
	} while (0)

static void
set_options(Transfer *transfer, const HttpRequest *request)
{
	ListCell   *cell;

	SET(CURLOPT_URL, request->url);
	SET(CURLOPT_PROTOCOLS_STR, request->allow_plain ? "http,https" : "https");
	SET(CURLOPT_CUSTOMREQUEST, request->method);
	if (request->body != NULL)
	{
		SET(CURLOPT_POST, 1L);
		SET(CURLOPT_POSTFIELDSIZE_LARGE, (curl_off_t) request->body_length);
		SET(CURLOPT_POSTFIELDS, request->body);
	}
	foreach(cell, request->headers)
	{
		struct curl_slist *grown = curl_slist_append(transfer->headers, lfirst(cell));

		if (grown == NULL)
			out_of_memory();
		transfer->headers = grown;
	}
	SET(CURLOPT_HTTPHEADER, transfer->headers);
	SET(CURLOPT_USERAGENT, "banked_webhooks");

	SET(CURLOPT_HTTP_VERSION, (long) CURL_HTTP_VERSION_1_1);
	SET(CURLOPT_SSLVERSION, (long) CURL_SSLVERSION_TLSv1_2);
	SET(CURLOPT_SSL_VERIFYPEER, 1L);
	SET(CURLOPT_SSL_VERIFYHOST, 2L);
	if (bw_api_ca_file[0] != '\0')
	{
		SET(CURLOPT_CAINFO, bw_api_ca_file);
		/* Or the system's directory would be trusted besides. */
		SET(CURLOPT_CAPATH, NULL);
	}
	SET(CURLOPT_FOLLOWLOCATION, 0L);
	/* Empty: none, whatever the environment says.  What goes to a receiver by http: needs none. */
	SET(CURLOPT_PROXY, strncmp(request->url, "https:", 6) == 0 ? bw_api_proxy : "");
	/* Nor does the environment's no_proxy lead past it. */
	SET(CURLOPT_NOPROXY, "");

	SET(CURLOPT_NOSIGNAL, 1L);
	/* A look-up of a name that hangs is left behind when the transfer ends. */
	SET(CURLOPT_QUICK_EXIT, 1L);
	SET(CURLOPT_CONNECTTIMEOUT_MS, (long) bw_api_connect_timeout);
	SET(CURLOPT_TIMEOUT_MS, (long) bw_api_timeout);

	SET(CURLOPT_ERRORBUFFER, transfer->error);
	SET(CURLOPT_WRITEFUNCTION, body_callback);
	SET(CURLOPT_WRITEDATA, transfer);
	SET(CURLOPT_HEADERFUNCTION, header_callback);
	SET(CURLOPT_HEADERDATA, transfer);
}

static void
start(Transfer *transfer, const HttpRequest *request)
{
	static bool initialized = false;

	if (!initialized && curl_global_init(CURL_GLOBAL_DEFAULT) != CURLE_OK)
		elog(ERROR, "could not initialize libcurl");
	initialized = true;

	transfer->multi = curl_multi_init();
	transfer->easy = curl_easy_init();
	if (transfer->multi == NULL || transfer->easy == NULL)
		out_of_memory();
	set_options(transfer, request);
	if (curl_multi_setopt(transfer->multi, CURLMOPT_SOCKETFUNCTION, socket_callback) != CURLM_OK ||
		curl_multi_setopt(transfer->multi, CURLMOPT_SOCKETDATA, transfer) != CURLM_OK ||
		curl_multi_setopt(transfer->multi, CURLMOPT_TIMERFUNCTION, timer_callback) != CURLM_OK ||
		curl_multi_setopt(transfer->multi, CURLMOPT_TIMERDATA, transfer) != CURLM_OK ||
		curl_multi_add_handle(transfer->multi, transfer->easy) != CURLM_OK)
		elog(ERROR, "could not start a transfer of libcurl");
}

/* Frees everything; headers held credentials. */
static void
finish(Transfer *transfer)
{
	if (transfer->wait_set != NULL)
		FreeWaitEventSet(transfer->wait_set);
	if (transfer->multi != NULL && transfer->easy != NULL)
		curl_multi_remove_handle(transfer->multi, transfer->easy);
	if (transfer->easy != NULL)
		curl_easy_cleanup(transfer->easy);
	if (transfer->multi != NULL)
		curl_multi_cleanup(transfer->multi);
	for (struct curl_slist *header = transfer->headers; header != NULL; header = header->next)
		OPENSSL_cleanse(header->data, strlen(header->data));
	curl_slist_free_all(transfer->headers);
	if (transfer->body != NULL)
	{
		OPENSSL_cleanse(transfer->body, transfer->body_length);
		free(transfer->body);
	}
	OPENSSL_cleanse(transfer, sizeof(*transfer));
	free(transfer);
}

/* Waits until libcurl has something to do, and lets it.  Interrupts are honoured here. */
static void
wait_and_drive(Transfer *transfer)
{
	WaitEvent	events[MAX_SOCKETS + 2];
	TimestampTz now = GetCurrentTimestamp();
	long		timeout = LONGEST_WAIT;
	int			count;

	if (transfer->timer != 0)
		timeout = Min(timeout, TimestampDifferenceMilliseconds(now, transfer->timer));

	transfer->wait_set = CreateWaitEventSet(CurrentMemoryContext, transfer->socket_count + 2);
	AddWaitEventToSet(transfer->wait_set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(transfer->wait_set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	for (int i = 0; i < transfer->socket_count; i++)
	{
		int			wants = transfer->socket_wants[i];

		AddWaitEventToSet(transfer->wait_set,
						  ((wants & CURL_POLL_IN) ? WL_SOCKET_READABLE : 0) |
						  ((wants & CURL_POLL_OUT) ? WL_SOCKET_WRITEABLE : 0),
						  transfer->sockets[i], NULL, NULL);
	}
	count = WaitEventSetWait(transfer->wait_set, timeout, events, lengthof(events), PG_WAIT_EXTENSION);
	FreeWaitEventSet(transfer->wait_set);
	transfer->wait_set = NULL;

	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();

	for (int i = 0; i < count; i++)
	{
		if (events[i].events & (WL_SOCKET_READABLE | WL_SOCKET_WRITEABLE))
			(void) drive(transfer, events[i].fd,
						 ((events[i].events & WL_SOCKET_READABLE) ? CURL_CSELECT_IN : 0) |
						 ((events[i].events & WL_SOCKET_WRITEABLE) ? CURL_CSELECT_OUT : 0));
	}
	if (count == 0 || (transfer->timer != 0 && GetCurrentTimestamp() >= transfer->timer))
		(void) drive(transfer, CURL_SOCKET_TIMEOUT, 0);
}

/* Runs the transfer to its end; returns libcurl's verdict. */
static CURLcode
run(Transfer *transfer)
{
	CURLMsg    *message;
	int			left;

	if (drive(transfer, CURL_SOCKET_TIMEOUT, 0) != CURLM_OK)
		elog(ERROR, "could not run a transfer of libcurl");
	for (;;)
	{
		while ((message = curl_multi_info_read(transfer->multi, &left)) != NULL)
		{
			if (message->msg == CURLMSG_DONE)
				return message->data.result;
		}
		if (transfer->too_many_sockets)
			elog(ERROR, "libcurl waits for more than %d sockets", MAX_SOCKETS);
		wait_and_drive(transfer);
	}
}

static int
sqlstate_of(const Transfer *transfer, CURLcode result)
{
	long		connects = 0;

	switch (result)
	{
		case CURLE_URL_MALFORMAT:
			return ERRCODE_INVALID_PARAMETER_VALUE;
		case CURLE_COULDNT_RESOLVE_PROXY:
		case CURLE_COULDNT_RESOLVE_HOST:
		case CURLE_COULDNT_CONNECT:
		case CURLE_PROXY:
			return ERRCODE_API_UNREACHABLE;
		case CURLE_SSL_CONNECT_ERROR:
		case CURLE_PEER_FAILED_VERIFICATION:
		case CURLE_SSL_CERTPROBLEM:
		case CURLE_SSL_CIPHER:
		case CURLE_SSL_CACERT_BADFILE:
		case CURLE_SSL_ISSUER_ERROR:
		case CURLE_SSL_INVALIDCERTSTATUS:
			return ERRCODE_API_CERTIFICATE;
		case CURLE_OPERATION_TIMEDOUT:
			return ERRCODE_API_TIMEOUT;
		case CURLE_SEND_ERROR:
		case CURLE_RECV_ERROR:
		case CURLE_GOT_NOTHING:
		case CURLE_PARTIAL_FILE:
			/* A proxy that refuses to connect looks so too. */
			(void) curl_easy_getinfo(transfer->easy, CURLINFO_HTTP_CONNECTCODE, &connects);
			if (connects >= 300)
				return ERRCODE_API_UNREACHABLE;
			return ERRCODE_API_CONNECTION_LOST;
		default:
			return ERRCODE_API_ANSWER_UNUSABLE;
	}
}

static const char *
failure_text(int sqlstate)
{
	switch (sqlstate)
	{
		case ERRCODE_INVALID_PARAMETER_VALUE:
			return "the URL cannot be used";
		case ERRCODE_API_UNREACHABLE:
			return "no connection";
		case ERRCODE_API_CERTIFICATE:
			return "no trustworthy TLS connection";
		case ERRCODE_API_TIMEOUT:
			return "no answer in time";
		case ERRCODE_API_CONNECTION_LOST:
			return "the connection ended before the answer did";
		default:
			return "the answer cannot be used";
	}
}

/* scheme://host:port, for messages. */
static char *
server_of(const char *url)
{
	const char *host = strstr(url, "://");

	return pnstrdup(url, host == NULL ? strlen(url) : (host - url) + 3 + strcspn(host + 3, "/?#"));
}

/* What libcurl says of a failure.  It quotes the server, which may say anything. */
static char *
reason_of(const Transfer *transfer, CURLcode result)
{
	char	   *reason = pstrdup(transfer->error[0] != '\0' ? transfer->error : curl_easy_strerror(result));

	for (char *p = reason; *p != '\0'; p++)
	{
		if (*p < ' ' || *p > '~')
			*p = '?';
	}
	return reason;
}

/*
 * Has more come than is read?  libcurl has a limit of its own for a line of the
 * headers, and takes one that is longer for a lack of memory.
 */
static bool
is_too_large(const Transfer *transfer, CURLcode result)
{
	return transfer->too_large ||
		(result == CURLE_OUT_OF_MEMORY && transfer->headers_length > 0 && !transfer->out_of_memory);
}

/* Raises the error of a transfer that failed. */
static void
report(const Transfer *transfer, const HttpRequest *request, CURLcode result)
{
	int			sqlstate = sqlstate_of(transfer, result);

	if (is_too_large(transfer, result))
		ereport(ERROR,
				(errcode(ERRCODE_API_ANSWER_UNUSABLE),
				 errmsg("%s %s: the answer is too large", request->method, server_of(request->url)),
				 errdetail("At most %d kB of a body are read, %d kB of headers, and of one header what libcurl takes.",
						   HTTP_MAX_ANSWER / 1024, MAX_HEADERS / 1024)));
	if (transfer->out_of_memory || result == CURLE_OUT_OF_MEMORY)
		out_of_memory();
	ereport(ERROR,
			(errcode(sqlstate),
			 errmsg("%s %s: %s", request->method, server_of(request->url), failure_text(sqlstate)),
			 errdetail("%s.", reason_of(transfer, result))));
}

static void
take_answer(Transfer *transfer, HttpAnswer *answer)
{
	long		status = 0;

	(void) curl_easy_getinfo(transfer->easy, CURLINFO_RESPONSE_CODE, &status);
	answer->status = (int) status;
	answer->body_length = transfer->body_length;
	answer->body = palloc(transfer->body_length + 1);
	if (transfer->body_length > 0)
		memcpy(answer->body, transfer->body, transfer->body_length);
	answer->body[transfer->body_length] = '\0';
	answer->retry_after = transfer->retry_after[0] != '\0' ? pstrdup(transfer->retry_after) : NULL;
}

/* One attempt.  False when no connection came about and another attempt is allowed. */
static bool
attempt(const HttpRequest *request, HttpAnswer *answer, bool last)
{
	Transfer   *transfer = calloc(1, sizeof(Transfer));
	volatile bool done = true;

	if (transfer == NULL)
		out_of_memory();
	PG_TRY();
	{
		CURLcode	result;

		start(transfer, request);
		result = run(transfer);
		if (result == CURLE_OK)
			take_answer(transfer, answer);
		else if (!last && sqlstate_of(transfer, result) == ERRCODE_API_UNREACHABLE)
			done = false;
		else
			report(transfer, request, result);
	}
	PG_FINALLY();
	{
		finish(transfer);
	}
	PG_END_TRY();
	return done;
}

static void
pause_for(long milliseconds)
{
	TimestampTz end = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), milliseconds);
	long		left;

	while ((left = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), end)) > 0)
	{
		(void) WaitLatch(MyLatch, WL_LATCH_SET | WL_TIMEOUT | WL_EXIT_ON_PM_DEATH, left, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
	}
}

void
http_perform(const HttpRequest *request, HttpAnswer *answer)
{
	int			attempts = request->repeatable ? ATTEMPTS : 1;
	long		pause = FIRST_PAUSE;

	memset(answer, 0, sizeof(*answer));
	for (int i = 1; !attempt(request, answer, i == attempts); i++)
	{
		pause_for(pause);
		pause *= 5;
	}
}
