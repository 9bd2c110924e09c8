/*
 * frame_fuzz.c
 *	  The frames, as both sides decode them.
 *
 * The input is what a peer sends: it goes into a buffer in pieces, and every
 * frame is decoded by the decoder of its type and acted on where that is
 * possible here.  What a decoder accepts is encoded again and must give the
 * same bytes.
 */
#include "frame.h"
#include "gateway/paths.h"

#include "fuzz.h"

/* Small enough that its limit is met. */
#define BUFFER_LIMIT ((size_t) 200 * 1024)

static FrameBuffer again;

/* The bytes that were encoded again must be those that were decoded. */
static void
check_same(const Frame *frame, bool encoded)
{
	Frame		copy;

	FUZZ_CHECK(encoded);
	FUZZ_CHECK(frame_next(&again, &copy) == FRAME_COMPLETE);
	FUZZ_CHECK(copy.type == frame->type && copy.length == frame->length);
	FUZZ_CHECK(copy.length == 0 || memcmp(copy.payload, frame->payload, copy.length) == 0);
}

static void
decode_paths(const Frame *frame)
{
	static Paths paths;
	long		count = frame_get_path_count(frame);
	PathsResult result = paths_replace(&paths, frame);
	size_t		offset = 0;
	PathEntry	entry;
	PathEntry  *entries;
	long		seen = 0;

	FUZZ_CHECK((count < 0) == (result == PATHS_MALFORMED));
	if (count < 0)
		return;
	entries = malloc((size_t) (count + 1) * sizeof(PathEntry));
	while (frame_next_path(frame, &offset, &entry))
	{
		FUZZ_CHECK(paths_find(&paths, entry.path, entry.path_length) != GUARD_PATH_UNKNOWN);
		entries[seen++] = entry;
	}
	FUZZ_CHECK(seen == count);
	check_same(frame, frame_put_paths(&again, entries, (size_t) count));
	free(entries);
}

static void
decode_answers(const Frame *frame)
{
	long		count = frame_get_answer_count(frame);
	size_t		offset = 0;
	AnswerEntry *answers;
	long		seen = 0;

	if (count < 0)
		return;
	answers = malloc((size_t) count * sizeof(AnswerEntry));
	while (frame_next_answer(frame, &offset, &answers[seen < count ? seen : 0]))
	{
		FUZZ_CHECK(seen < count);
		FUZZ_CHECK(answers[seen].status >= 200 && answers[seen].status <= 599);
		seen++;
	}
	FUZZ_CHECK(seen == count);
	check_same(frame, frame_put_answers(&again, answers, (size_t) count));
	free(answers);
}

/* From the gateway. */
static void
decode_as_receiver(const Frame *frame)
{
	DeliveryFrame delivery;
	RejectionFrame rejection;
	StatusFrame status;

	if (frame->type == FRAME_DELIVERY && frame_get_delivery(frame, &delivery))
		check_same(frame, frame_put_delivery(&again, &delivery));
	if (frame->type == FRAME_REJECTION && frame_get_rejection(frame, &rejection))
	{
		FUZZ_CHECK(frame_rejection_name(rejection.reason) != NULL);
		check_same(frame, frame_put_rejection(&again, &rejection));
	}
	if (frame->type == FRAME_STATUS && frame_get_status(frame, &status))
		check_same(frame, frame_put_status(&again, &status));
}

/* From the receiver. */
static void
decode_as_gateway(const Frame *frame)
{
	ConfigFrame config;
	TlsFrame	tls;

	if (frame->type == FRAME_CONFIG && frame_get_config(frame, &config))
		check_same(frame, frame_put_config(&again, &config));
	if (frame->type == FRAME_TLS && frame_get_tls(frame, &tls))
		check_same(frame, frame_put_tls(&again, &tls));
	if (frame->type == FRAME_PATHS)
		decode_paths(frame);
	if (frame->type == FRAME_ANSWERS)
		decode_answers(frame);
}

/* Decodes from an exact copy of the payload. */
static void
decode(const Frame *frame)
{
	uint8_t    *payload = malloc(frame->length > 0 ? frame->length : 1);
	Frame		copy = *frame;

	memcpy(payload, frame->payload, frame->length);
	copy.payload = payload;
	decode_as_receiver(&copy);
	decode_as_gateway(&copy);
	free(payload);
}

/* Puts bytes at the end of a buffer, as a read from a socket does; how many were there room for? */
static size_t
receive(FrameBuffer *buffer, const uint8_t *bytes, size_t length)
{
	size_t		held = frame_buffer_length(buffer);

	if (length > buffer->limit - held)
		length = buffer->limit - held;
	if (buffer->start > 0)
		memmove(buffer->data, buffer->data + buffer->start, held);
	if (held + length > buffer->capacity)
	{
		buffer->capacity = held + length;
		buffer->data = realloc(buffer->data, buffer->capacity);
	}
	if (length > 0)
		memcpy(buffer->data + held, bytes, length);
	buffer->start = 0;
	buffer->end = held + length;
	return length;
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	Input		input = {data, size};
	size_t		piece = (size_t) input_byte(&input) + 1;
	FrameBuffer buffer;
	FrameResult result = FRAME_INCOMPLETE;
	Frame		frame;

	if (again.limit == 0)
		frame_buffer_init(&again, 2 * FRAME_MAX_PAYLOAD);
	frame_buffer_init(&buffer, BUFFER_LIMIT);
	while (input.left > 0 && result != FRAME_MALFORMED)
	{
		size_t		taken = receive(&buffer, input.at, piece < input.left ? piece : input.left);

		/* A buffer that is full of an incomplete frame would never go on. */
		FUZZ_CHECK(taken > 0);
		input.at += taken;
		input.left -= taken;
		while ((result = frame_next(&buffer, &frame)) == FRAME_COMPLETE)
			decode(&frame);
		frame_buffer_cleanse(&buffer);
		frame_buffer_compact(&buffer, 64);
	}
	frame_buffer_free(&buffer);
	return 0;
}
