/*
 * http_fuzz.c
 *	  The gateway from the socket of a client to the link, and back.
 *
 * The input is what a client sends, after a byte of options: in how large
 * pieces, and what becomes of it.  Deliveries that come out are answered, or
 * run into their time-out.  When the client is gone nothing of it may be left.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "gateway/http.h"

#include <arpa/inet.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

#include "fuzz.h"

#define ANSWER 1				/* options: deliveries are answered */
#define HANG_UP 2				/* the client goes away before */
#define DRAIN_ANSWERS 4			/* it reads what it is sent */

static Http http;

static void
start(void)
{
	static const ConfigFrame config = {2000, 1024, 100, 10, 8000, 1000, 1000};
	static const PathEntry paths[] = {{PATH_ACTIVE, "/hook", 5}, {PATH_RETIRED, "/old", 4}};
	FrameBuffer buffer;
	Frame		frame;

	frame_buffer_init(&buffer, 1 << 20);
	FUZZ_CHECK(http_init(&http, epoll_create1(EPOLL_CLOEXEC), 1));
	FUZZ_CHECK(http_configure(&http, &config));
	FUZZ_CHECK(frame_put_paths(&buffer, paths, 2) && frame_next(&buffer, &frame) == FRAME_COMPLETE);
	FUZZ_CHECK(paths_replace(&http.paths, &frame) == PATHS_OK);
	frame_buffer_free(&buffer);
}

/* Takes what the gateway would send to the receiver, and answers it if so asked. */
static void
play_receiver(bool answer)
{
	FrameBuffer link;
	Frame		frame;
	DeliveryFrame delivery;

	frame_buffer_init(&link, 2 * FRAME_MAX_PAYLOAD);
	deliveries_send(&http.deliveries, &link);
	rejections_send(&http.rejections, &link, http.now);
	while (frame_next(&link, &frame) == FRAME_COMPLETE)
	{
		if (frame.type != FRAME_DELIVERY)
			continue;
		FUZZ_CHECK(frame_get_delivery(&frame, &delivery));
		FUZZ_CHECK(delivery.path_length == 5 && memcmp(delivery.path, "/hook", 5) == 0);
		FUZZ_CHECK(delivery.body_length <= http.config.max_body_size);
		if (answer)
			http_answer(&http, delivery.number, 200);
	}
	frame_buffer_free(&link);
}

static void
turn(uint8_t options, int client)
{
	char		sink[4096];

	http_expire(&http);
	http_run(&http);
	play_receiver((options & ANSWER) != 0);
	http_run(&http);
	if (client >= 0 && (options & DRAIN_ANSWERS))
		while (recv(client, sink, sizeof(sink), MSG_DONTWAIT) > 0)
			;
	http.now++;
}

/* Ends the connection, by the client or by its deadlines. */
static void
finish(uint8_t options, int client)
{
	for (int i = 0; i < 20 && http.connections > 0; i++)
	{
		if (i == 2 || (options & HANG_UP))
			shutdown(client, SHUT_RDWR);
		if (i >= 4)
			http.now += 1000;	/* every time-out passes */
		turn(options, client);
	}
	close(client);
	linger_close_all(&http.linger);
	FUZZ_CHECK(http.connections == 0);
	FUZZ_CHECK(http.deliveries.pending == 0 && http.deliveries.size == 0);
	FUZZ_CHECK(http.clients.first == NULL && http.waiting.first == NULL);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	Input		input = {data, size};
	uint8_t		options = input_byte(&input);
	size_t		piece = (options >> 3) * 16 + 1;
	struct sockaddr_in address = {.sin_family = AF_INET,.sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
	int			ends[2];

	if (http.now == 0)
		start();
	if (piece > 400)
		piece = 65536;
	FUZZ_CHECK(socketpair(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK, 0, ends) == 0);
	http_take_connection(&http, ends[0], (struct sockaddr *) &address, sizeof(address), false);
	while (input.left > 0)
	{
		size_t		length = piece < input.left ? piece : input.left;

		if (send(ends[1], input.at, length, MSG_NOSIGNAL | MSG_DONTWAIT) < 0)
			break;
		input.at += length;
		input.left -= length;
		turn(options, ends[1]);
	}
	finish(options, ends[1]);
	return 0;
}
