/*
 * frame_test.c
 *	  Frames: every type there and back, cut short at every byte, with every
 *	  value out of range, and random bytes.
 *
 * Payloads are decoded from allocations of exactly their size, so that a
 * memory checker sees any read past the end.
 */
#include "frame.h"

#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include "tap.h"

typedef bool (*PutFunction) (FrameBuffer *buffer);

static const FrameAddress address = {6, {0x20, 1, 0xd, 0xb8, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}};

static bool
put_hello(FrameBuffer *buffer)
{
	return frame_put_hello(buffer);
}

static bool
put_delivery(FrameBuffer *buffer)
{
	DeliveryFrame delivery = {UINT64_C(1) << 40, INT64_C(1700000000123456), {6, {0}},
		"/hook", 5, "1.ab", 4, (const uint8_t *) "{\0}", 3};

	delivery.address = address;
	return frame_put_delivery(buffer, &delivery);
}

static bool
put_rejection(FrameBuffer *buffer)
{
	RejectionFrame rejection = {REJECTION_NO_KEY, {6, {0}}, "/x", 2, 17};

	rejection.address = address;
	return frame_put_rejection(buffer, &rejection);
}

static bool
put_status(FrameBuffer *buffer)
{
	StatusFrame status = {1, 2, 3, 4, 5, true, {0}};

	for (int i = 0; i < REJECTION_COUNT; i++)
		status.rejections[i] = 100 + (uint64_t) i;
	return frame_put_status(buffer, &status);
}

static bool
put_config(FrameBuffer *buffer)
{
	ConfigFrame config = {1, 2, 3, 4, 5, 6, 7};

	return frame_put_config(buffer, &config);
}

static bool
put_tls(FrameBuffer *buffer)
{
	TlsFrame	tls = {(const uint8_t *) "chain", 5, (const uint8_t *) "secret", 6};

	return frame_put_tls(buffer, &tls);
}

static bool
put_paths(FrameBuffer *buffer)
{
	PathEntry	paths[2] = {{PATH_ACTIVE, "/a", 2}, {PATH_RETIRED, "/bc", 3}};

	return frame_put_paths(buffer, paths, 2);
}

static bool
put_answers(FrameBuffer *buffer)
{
	AnswerEntry answers[2] = {{1, 200}, {UINT64_MAX, 599}};

	return frame_put_answers(buffer, answers, 2);
}

static bool
put_ping(FrameBuffer *buffer)
{
	return frame_put_ping(buffer);
}

static bool
put_drain(FrameBuffer *buffer)
{
	return frame_put_drain(buffer);
}

static const struct
{
	const char *name;
	FrameType	type;
	PutFunction put;
}			kinds[] = {
	{"hello", FRAME_HELLO, put_hello},
	{"delivery", FRAME_DELIVERY, put_delivery},
	{"rejection", FRAME_REJECTION, put_rejection},
	{"status", FRAME_STATUS, put_status},
	{"config", FRAME_CONFIG, put_config},
	{"tls", FRAME_TLS, put_tls},
	{"paths", FRAME_PATHS, put_paths},
	{"answers", FRAME_ANSWERS, put_answers},
	{"ping", FRAME_PING, put_ping},
	{"drain", FRAME_DRAIN, put_drain},
};

#define KIND_COUNT (sizeof(kinds) / sizeof(kinds[0]))

/* decode runs the decoder of the frame's type. */
static bool
decode(const Frame *frame)
{
	DeliveryFrame delivery;
	RejectionFrame rejection;
	StatusFrame status;
	ConfigFrame config;
	TlsFrame	tls;

	switch (frame->type)
	{
		case FRAME_DELIVERY:
			return frame_get_delivery(frame, &delivery);
		case FRAME_REJECTION:
			return frame_get_rejection(frame, &rejection);
		case FRAME_STATUS:
			return frame_get_status(frame, &status);
		case FRAME_CONFIG:
			return frame_get_config(frame, &config);
		case FRAME_TLS:
			return frame_get_tls(frame, &tls);
		case FRAME_PATHS:
			return frame_get_path_count(frame) >= 0;
		case FRAME_ANSWERS:
			return frame_get_answer_count(frame) >= 0;
		case FRAME_HELLO:
		case FRAME_PING:
		case FRAME_DRAIN:
			return frame->length == 0;
		default:
			return false;
	}
}

/* decode_copy decodes the first length bytes of a payload, or more with zeros behind, from an exact copy. */
static bool
decode_copy(const Frame *frame, size_t length)
{
	uint8_t    *copy = malloc(length > 0 ? length : 1);
	Frame		cut = *frame;
	bool		result;

	memset(copy, 0, length);
	memcpy(copy, frame->payload, length < frame->length ? length : frame->length);
	cut.payload = copy;
	cut.length = length;
	result = decode(&cut);
	free(copy);
	return result;
}

static void
take(FrameBuffer *buffer, PutFunction put, Frame *frame)
{
	frame_buffer_free(buffer);
	put(buffer);
	frame_next(buffer, frame);
}

/* test_secret takes a frame with a private key off the buffer, which then forgets it. */
static void
test_secret(FrameBuffer *buffer)
{
	TlsFrame	tls;
	Frame		frame;

	take(buffer, put_tls, &frame);
	TAP_OK(frame_get_tls(&frame, &tls) &&
		   tls.certificate_length == 5 && memcmp(tls.certificate, "chain", 5) == 0 &&
		   tls.key_length == 6 && memcmp(tls.key, "secret", 6) == 0, "tls: contents");
	put_ping(buffer);
	frame_buffer_cleanse(buffer);
	TAP_OK(tls.key[0] == 0 && memcmp(tls.key, tls.key + 1, 5) == 0, "tls: the key is overwritten");
	TAP_OK(frame_next(buffer, &frame) == FRAME_COMPLETE && frame.type == FRAME_PING,
		   "tls: the next frame is not");
}

static void
test_contents(void)
{
	FrameBuffer buffer;
	Frame		frame;
	DeliveryFrame delivery;
	RejectionFrame rejection;
	StatusFrame status;
	ConfigFrame config;
	PathEntry	path;
	AnswerEntry answer;
	size_t		offset = 0;

	frame_buffer_init(&buffer, 1 << 20);
	take(&buffer, put_delivery, &frame);
	TAP_OK(frame_get_delivery(&frame, &delivery) &&
		   delivery.number == UINT64_C(1) << 40 &&
		   delivery.arrived_at == INT64_C(1700000000123456) &&
		   memcmp(&delivery.address, &address, sizeof(address)) == 0 &&
		   delivery.path_length == 5 && memcmp(delivery.path, "/hook", 5) == 0 &&
		   delivery.signature_length == 4 && memcmp(delivery.signature, "1.ab", 4) == 0 &&
		   delivery.body_length == 3 && memcmp(delivery.body, "{\0}", 3) == 0,
		   "delivery: contents");

	take(&buffer, put_rejection, &frame);
	TAP_OK(frame_get_rejection(&frame, &rejection) &&
		   rejection.reason == REJECTION_NO_KEY && rejection.count == 17 &&
		   memcmp(&rejection.address, &address, sizeof(address)) == 0 &&
		   rejection.path_length == 2 && memcmp(rejection.path, "/x", 2) == 0,
		   "rejection: contents");

	take(&buffer, put_status, &frame);
	TAP_OK(frame_get_status(&frame, &status) &&
		   status.connections == 1 && status.pending == 2 &&
		   status.pending_size == 3 && status.connections_total == 4 &&
		   status.requests_total == 5 && status.sandboxed &&
		   status.rejections[0] == 100 &&
		   status.rejections[REJECTION_COUNT - 1] == 100 + REJECTION_COUNT - 1,
		   "status: contents");

	take(&buffer, put_config, &frame);
	TAP_OK(frame_get_config(&frame, &config) &&
		   config.max_body_size == 1 && config.max_header_size == 2 &&
		   config.max_connections == 3 && config.max_pending == 4 &&
		   config.max_pending_size == 5 && config.request_timeout == 6 &&
		   config.answer_timeout == 7, "config: contents");

	test_secret(&buffer);

	take(&buffer, put_paths, &frame);
	TAP_IS(frame_get_path_count(&frame), 2, "paths: count");
	TAP_OK(frame_next_path(&frame, &offset, &path) && path.state == PATH_ACTIVE &&
		   path.path_length == 2 && memcmp(path.path, "/a", 2) == 0, "paths: first");
	TAP_OK(frame_next_path(&frame, &offset, &path) && path.state == PATH_RETIRED &&
		   path.path_length == 3 && memcmp(path.path, "/bc", 3) == 0, "paths: second");
	TAP_OK(!frame_next_path(&frame, &offset, &path), "paths: end");

	take(&buffer, put_answers, &frame);
	offset = 0;
	TAP_IS(frame_get_answer_count(&frame), 2, "answers: count");
	TAP_OK(frame_next_answer(&frame, &offset, &answer) && answer.number == 1 &&
		   answer.status == 200, "answers: first");
	TAP_OK(frame_next_answer(&frame, &offset, &answer) && answer.number == UINT64_MAX &&
		   answer.status == 599, "answers: second");
	TAP_OK(!frame_next_answer(&frame, &offset, &answer), "answers: end");
	frame_buffer_free(&buffer);
}

/* Every payload is accepted at its own length and at no other, except that a list may end after an entry. */
static void
test_truncation(void)
{
	for (size_t k = 0; k < KIND_COUNT; k++)
	{
		FrameBuffer buffer;
		Frame		frame;
		int			accepted = 0;

		frame_buffer_init(&buffer, 1 << 20);
		TAP_OK(kinds[k].put(&buffer) && frame_next(&buffer, &frame) == FRAME_COMPLETE &&
			   frame.type == kinds[k].type, "%s: framed", kinds[k].name);
		TAP_OK(decode_copy(&frame, frame.length), "%s: decoded", kinds[k].name);
		for (size_t length = 0; length < frame.length; length++)
			accepted += decode_copy(&frame, length) ? 1 : 0;
		TAP_IS(accepted, kinds[k].type == FRAME_PATHS ? 2 : kinds[k].type == FRAME_ANSWERS ? 1 : 0,
			   "%s: cut short is malformed", kinds[k].name);
		TAP_OK(!decode_copy(&frame, frame.length + 1), "%s: a byte more is malformed",
			   kinds[k].name);
		frame_buffer_free(&buffer);
	}
}

/* A frame arrives byte by byte, through a socket. */
static void
test_arrival(void)
{
	for (size_t k = 0; k < KIND_COUNT; k++)
	{
		FrameBuffer out;
		FrameBuffer in;
		Frame		frame;
		int			fds[2];
		int			incomplete = 0;
		size_t		total;

		frame_buffer_init(&out, 1 << 20);
		frame_buffer_init(&in, 1 << 20);
		if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) < 0)
			abort();
		kinds[k].put(&out);
		total = frame_buffer_length(&out);
		for (size_t i = 0; i < total; i++)
		{
			if (frame_next(&in, &frame) == FRAME_INCOMPLETE)
				incomplete++;
			if (send(fds[0], out.data + out.start + i, 1, 0) != 1 ||
				frame_buffer_read(&in, fds[1], 4096) != FRAME_IO_OK)
				abort();
		}
		TAP_OK(incomplete == (int) total && frame_next(&in, &frame) == FRAME_COMPLETE &&
			   decode(&frame), "%s: byte by byte", kinds[k].name);
		TAP_OK(frame_next(&in, &frame) == FRAME_INCOMPLETE, "%s: nothing more", kinds[k].name);
		close(fds[0]);
		close(fds[1]);
		frame_buffer_free(&in);
		frame_buffer_free(&out);
	}
}

/* set_payload makes a frame of one kind and overwrites one byte of its payload. */
static bool
decode_with(PutFunction put, size_t offset, uint8_t value)
{
	FrameBuffer buffer;
	Frame		frame;
	bool		result;

	frame_buffer_init(&buffer, 1 << 20);
	put(&buffer);
	buffer.data[buffer.start + FRAME_HEADER_SIZE + offset] = value;
	frame_next(&buffer, &frame);
	result = decode_copy(&frame, frame.length);
	frame_buffer_free(&buffer);
	return result;
}

static void
test_values(void)
{
	FrameBuffer buffer;
	DeliveryFrame delivery = {1, 1, {0, {0}}, "/", 1, "s", 1, NULL, 0};
	RejectionFrame rejection = {0, {0, {0}}, NULL, 0, 1};
	char		long_path[FRAME_MAX_PATH + 1];
	PathEntry	path = {PATH_ACTIVE, long_path, 0};
	Frame		frame;

	TAP_OK(!decode_with(put_delivery, 16, 5), "address family 5");
	TAP_OK(decode_with(put_delivery, 16, 0), "address family 0");
	TAP_OK(!decode_with(put_delivery, 33, 0), "delivery without path");
	TAP_OK(!decode_with(put_delivery, 34, 255), "path length beyond the frame");
	TAP_OK(!decode_with(put_delivery, 40, 255), "body length beyond the frame");
	TAP_OK(!decode_with(put_rejection, 0, REJECTION_COUNT), "unknown reason");
	TAP_OK(!decode_with(put_rejection, 18, 0), "rejection of none");
	TAP_OK(!decode_with(put_status, 32, 2), "a boolean of 2");
	TAP_OK(!decode_with(put_config, 0, 0), "max_body_size 0");
	TAP_OK(!decode_with(put_config, 32, 0), "answer_timeout 0");
	TAP_OK(!decode_with(put_tls, 0, 0), "no certificate");
	TAP_OK(!decode_with(put_tls, 4, 0), "no private key");
	TAP_OK(!decode_with(put_tls, 6, 1), "a private key beyond the frame");
	TAP_OK(!decode_with(put_paths, 0, 0), "path state 0");
	TAP_OK(!decode_with(put_paths, 0, 3), "path state 3");
	TAP_OK(!decode_with(put_paths, 1, 0), "empty path");
	TAP_OK(!decode_with(put_answers, 8, 199), "status 199");
	TAP_OK(!decode_with(put_answers, 19, 3), "status 855");

	memset(long_path, 'a', sizeof(long_path));
	frame_buffer_init(&buffer, 1 << 20);
	delivery.path = long_path;
	delivery.path_length = sizeof(long_path);
	TAP_OK(!frame_put_delivery(&buffer, &delivery), "delivery with too long a path");
	delivery.path_length = FRAME_MAX_PATH;
	delivery.signature_length = FRAME_MAX_SIGNATURE + 1;
	TAP_OK(!frame_put_delivery(&buffer, &delivery), "delivery with too long a signature");
	path.path_length = sizeof(long_path);
	TAP_OK(!frame_put_paths(&buffer, &path, 1), "list with too long a path");
	TAP_OK(!frame_put_answers(&buffer, NULL, 0), "answers of none");
	TAP_IS(frame_buffer_length(&buffer), 0, "a refused frame leaves nothing");

	rejection.path = long_path;
	rejection.path_length = sizeof(long_path);
	TAP_OK(frame_put_rejection(&buffer, &rejection) &&
		   frame_next(&buffer, &frame) == FRAME_COMPLETE &&
		   frame_get_rejection(&frame, &rejection) && rejection.path_length == FRAME_MAX_PATH,
		   "a rejected path is shortened");
	TAP_OK(frame_put_paths(&buffer, NULL, 0) && frame_next(&buffer, &frame) == FRAME_COMPLETE &&
		   frame_get_path_count(&frame) == 0, "a list of no paths");
	frame_buffer_free(&buffer);
}

static FrameResult
next_of(const uint8_t header[FRAME_HEADER_SIZE], size_t limit)
{
	FrameBuffer buffer;
	Frame		frame;
	FrameResult result;

	frame_buffer_init(&buffer, limit);
	buffer.data = malloc(FRAME_HEADER_SIZE);
	memcpy(buffer.data, header, FRAME_HEADER_SIZE);
	buffer.capacity = buffer.end = FRAME_HEADER_SIZE;
	result = frame_next(&buffer, &frame);
	frame_buffer_free(&buffer);
	return result;
}

static void
test_header(void)
{
	uint8_t		header[FRAME_HEADER_SIZE] = {0, 0, 0, 0, FRAME_VERSION, FRAME_DRAIN, 0, 0};
	uint32_t	length = FRAME_MAX_PAYLOAD;

	TAP_IS(next_of(header, 1 << 20), FRAME_COMPLETE, "header: proper");
	header[4]++;
	TAP_IS(next_of(header, 1 << 20), FRAME_MALFORMED, "header: other version");
	header[4]--;
	header[7] = 1;
	TAP_IS(next_of(header, 1 << 20), FRAME_MALFORMED, "header: reserved bits");
	header[7] = 0;
	memcpy(header, &length, sizeof(length));
	TAP_IS(next_of(header, 2 * FRAME_MAX_PAYLOAD), FRAME_INCOMPLETE, "header: longest");
	TAP_IS(next_of(header, FRAME_MAX_PAYLOAD), FRAME_MALFORMED, "header: longer than the buffer may be");
	length++;
	memcpy(header, &length, sizeof(length));
	TAP_IS(next_of(header, 2 * FRAME_MAX_PAYLOAD), FRAME_MALFORMED, "header: too long");
}

static void
test_limits(void)
{
	FrameBuffer buffer;
	Frame		frame;
	int			count = 0;
	int			taken = 0;
	int			fds[2];
	char		bytes[4096];
	size_t		size = 0;

	frame_buffer_init(&buffer, 1000);
	while (put_ping(&buffer))
		count++;
	TAP_IS(count, 1000 / FRAME_HEADER_SIZE, "as many frames as the limit permits");
	TAP_OK(frame_next(&buffer, &frame) == FRAME_COMPLETE && put_ping(&buffer),
		   "room again after one was taken");
	while (frame_next(&buffer, &frame) == FRAME_COMPLETE)
		taken++;
	TAP_IS(taken, count, "none lost");
	frame_buffer_compact(&buffer, 2000);
	TAP_OK(buffer.data != NULL, "a small buffer is kept");
	frame_buffer_compact(&buffer, 10);
	TAP_OK(buffer.data == NULL && put_ping(&buffer), "a large one is freed, and usable");

	/* reading stops at the limit, and says so */
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) < 0)
		abort();
	memset(bytes, 0, sizeof(bytes));
	if (send(fds[0], bytes, sizeof(bytes), 0) != (ssize_t) sizeof(bytes))
		abort();
	frame_buffer_free(&buffer);
	TAP_IS(frame_buffer_read(&buffer, fds[1], 100), FRAME_IO_OK, "read some");
	TAP_IS(frame_buffer_length(&buffer), 100, "at most what was asked for");
	while (frame_buffer_read(&buffer, fds[1], 4096) == FRAME_IO_OK)
		size = frame_buffer_length(&buffer);
	TAP_IS(size, 1000, "read up to the limit");
	TAP_IS(frame_buffer_read(&buffer, fds[1], 4096), FRAME_IO_AGAIN, "full");

	frame_buffer_free(&buffer);
	while (frame_buffer_read(&buffer, fds[1], 4096) == FRAME_IO_OK)
		frame_buffer_free(&buffer);
	close(fds[0]);
	TAP_IS(frame_buffer_read(&buffer, fds[1], 4096), FRAME_IO_CLOSED, "end of file");
	put_ping(&buffer);
	TAP_IS(frame_buffer_write(&buffer, fds[1]), FRAME_IO_CLOSED, "writing to nobody");
	close(fds[1]);
	TAP_IS(frame_buffer_write(&buffer, fds[1]), FRAME_IO_ERROR, "writing to a closed descriptor");
	TAP_IS(frame_buffer_read(&buffer, fds[1], 10), FRAME_IO_ERROR, "reading from one");
	frame_buffer_free(&buffer);
}

/* Much output through a small socket buffer comes out as it went in. */
static void
test_flow(void)
{
	FrameBuffer out;
	FrameBuffer in;
	Frame		frame;
	AnswerEntry sent = {0, 200};
	AnswerEntry answer;
	uint64_t	received = 0;
	bool		in_order = true;
	int			fds[2];

	frame_buffer_init(&out, 100000);
	frame_buffer_init(&in, 70000);
	if (socketpair(AF_UNIX, SOCK_STREAM, 0, fds) < 0)
		abort();
	while (received < 100000)
	{
		while (sent.number < 100000 && frame_put_answers(&out, &sent, 1))
			sent.number++;
		frame_buffer_write(&out, fds[0]);
		frame_buffer_read(&in, fds[1], 1 + (size_t) (received % 50000));
		while (frame_next(&in, &frame) == FRAME_COMPLETE)
		{
			size_t		offset = 0;

			if (!frame_next_answer(&frame, &offset, &answer) || answer.number != received)
				in_order = false;
			received++;
		}
		if (!in_order)
			break;
	}
	TAP_OK(in_order, "100000 frames in order");
	close(fds[0]);
	close(fds[1]);
	frame_buffer_free(&in);
	frame_buffer_free(&out);
}

/* Random payloads, and proper ones with random changes, are decoded or refused; a memory checker judges. */
static void
test_garbage(void)
{
	unsigned	seed = 20240101;
	int			accepted = 0;

	for (int round = 0; round < 200000; round++)
	{
		FrameBuffer buffer;
		Frame		frame;
		size_t		k;

		seed = seed * 1103515245 + 12345;
		k = (seed >> 16) % KIND_COUNT;
		frame_buffer_init(&buffer, 1 << 20);
		kinds[k].put(&buffer);
		frame_next(&buffer, &frame);
		for (int changes = 0; changes < 1 + round % 4 && frame.length > 0; changes++)
		{
			uint8_t    *payload = buffer.data + FRAME_HEADER_SIZE;

			seed = seed * 1103515245 + 12345;
			payload[(seed >> 8) % frame.length] = (uint8_t) (seed >> 24);
		}
		seed = seed * 1103515245 + 12345;
		accepted += decode_copy(&frame, (seed >> 16) % (2 * frame.length + 2)) ? 1 : 0;
		frame_buffer_free(&buffer);
	}
	TAP_OK(accepted > 0 && accepted < 200000, "random changes: some pass, most do not");
}

int
main(void)
{
	test_contents();
	test_truncation();
	test_arrival();
	test_values();
	test_header();
	test_limits();
	test_flow();
	test_garbage();

	for (int i = 0; i < REJECTION_COUNT; i++)
		for (int j = 0; j < i; j++)
			if (frame_rejection_name(i)[0] == '\0' ||
				strcmp(frame_rejection_name(i), frame_rejection_name(j)) == 0)
				TAP_OK(false, "reason %d has a name of its own", i);
	TAP_OK(strcmp(frame_rejection_name(-1), "unknown") == 0 &&
		   strcmp(frame_rejection_name(REJECTION_COUNT), "unknown") == 0 &&
		   strcmp(frame_rejection_name(REJECTION_UNKNOWN_PATH), "unknown_path") == 0,
		   "names of reasons");
	return tap_done();
}
