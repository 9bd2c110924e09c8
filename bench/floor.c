/*
 * floor.c
 *	  The least that a receiver of webhooks in C can do: libmicrohttpd reads the
 *	  body, the HMAC is checked, 200 is answered.  Nothing is stored.
 *
 *	floor PORT KEY
 *
 * What this takes of processor time per event, and what COPY of the same rows
 * takes, is what the extension is measured against.  One thread, the library's
 * own; the signature is checked by the extension's own code.
 */
#include "signature.h"

#include <arpa/inet.h>
#include <microhttpd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>

#define MAX_BODY 65536

typedef struct Request
{
	size_t		length;
	char		body[MAX_BODY];
} Request;

static SignatureKey *key;
static struct MHD_Response *empty_response;

static enum MHD_Result
answer(struct MHD_Connection *connection, const Request *request)
{
	const char *header = MHD_lookup_connection_value(connection, MHD_HEADER_KIND,
													 "banked-signature");
	SignatureHeader parsed;
	bool		authentic;

	authentic = header != NULL && request->length <= MAX_BODY &&
		signature_parse(header, strlen(header), &parsed) &&
		signature_verify(key, &parsed, request->body, request->length);
	return MHD_queue_response(connection, authentic ? 200 : 400, empty_response);
}

static enum MHD_Result
handle(void *cls, struct MHD_Connection *connection, const char *url, const char *method,
	   const char *version, const char *data, size_t *size, void **context)
{
	Request    *request = *context;

	(void) cls;
	(void) url;
	(void) method;
	(void) version;

	if (request == NULL)
	{
		request = malloc(sizeof(Request));
		if (request == NULL)
			return MHD_NO;
		request->length = 0;
		*context = request;
		return MHD_YES;
	}
	if (*size == 0)
		return answer(connection, request);
	if (request->length + *size <= MAX_BODY)
		memcpy(request->body + request->length, data, *size);
	request->length += *size;
	*size = 0;
	return MHD_YES;
}

static void
forget(void *cls, struct MHD_Connection *connection, void **context,
	   enum MHD_RequestTerminationCode code)
{
	(void) cls;
	(void) connection;
	(void) code;
	free(*context);
	*context = NULL;
}

int
main(int argc, char **argv)
{
	struct sockaddr_in address = {.sin_family = AF_INET};
	struct MHD_Daemon *daemon;
	sigset_t	ends;
	int			number;

	if (argc != 3)
	{
		fprintf(stderr, "usage: %s PORT KEY\n", argv[0]);
		return 2;
	}
	address.sin_port = htons((uint16_t) atoi(argv[1]));
	address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);

	/* Blocked before there is a second thread, so that only sigwait gets them. */
	sigemptyset(&ends);
	sigaddset(&ends, SIGINT);
	sigaddset(&ends, SIGTERM);
	sigprocmask(SIG_BLOCK, &ends, NULL);

	key = signature_key_create(argv[2], strlen(argv[2]));
	empty_response = MHD_create_response_from_buffer(0, "", MHD_RESPMEM_PERSISTENT);
	daemon = MHD_start_daemon(MHD_USE_EPOLL_INTERNAL_THREAD, 0, NULL, NULL, handle, NULL,
							  MHD_OPTION_SOCK_ADDR, (struct sockaddr *) &address,
							  MHD_OPTION_NOTIFY_COMPLETED, forget, NULL,
							  MHD_OPTION_END);
	if (key == NULL || empty_response == NULL || daemon == NULL)
	{
		fprintf(stderr, "%s: could not start\n", argv[0]);
		return 1;
	}
	puts("ready");
	fflush(stdout);
	sigwait(&ends, &number);

	MHD_stop_daemon(daemon);
	MHD_destroy_response(empty_response);
	signature_key_free(key);
	return 0;
}
