/*
 * frame.c
 *	  The messages between the gateway and the receiver: buffers, encoders,
 *	  decoders.
 *
 * A frame is a header of FRAME_HEADER_SIZE bytes
 *
 *		uint32 length of the payload, uint8 version, uint8 type, uint16 zero
 *
 * and its payload.  Both are packed without padding; nothing in a buffer is
 * aligned, so every integer goes through memcpy.
 *
 * Encoders know the size of a frame before they write its first byte: they
 * ask for the whole room at once, and can fail only there.  Decoders walk the
 * payload with a Reader, whose every step is checked against what is left;
 * a step past the end turns it bad for good, so that one test at the end is
 * enough, and nothing is ever read outside of the payload.
 *
 * What must never happen here: trusting a length that came from the peer,
 * and growing a buffer over its limit.
 */
#ifndef _DEFAULT_SOURCE
#define _DEFAULT_SOURCE			/* explicit_bzero */
#endif

#include "frame.h"

#include <errno.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/types.h>

/* The first allocation of a buffer, and the least room that a read is tried with. */
#define BUFFER_FIRST_SIZE ((size_t) 64 * 1024)
#define BUFFER_READ_ROOM ((size_t) 16 * 1024)

#define ADDRESS_SIZE 17
#define ANSWER_SIZE 10
#define DELIVERY_FIXED_SIZE (8 + 8 + ADDRESS_SIZE + 2 + 2 + 4)
#define REJECTION_FIXED_SIZE (1 + ADDRESS_SIZE + 4 + 2)
#define STATUS_SIZE (4 + 4 + 8 + 8 + 8 + 1 + 8 * REJECTION_COUNT)
#define CONFIG_SIZE (8 + 4 + 4 + 4 + 8 + 4 + 4)

/* What is left of a payload. */
typedef struct Reader
{
	const uint8_t *at;
	size_t		left;
	bool		bad;			/* something was asked for that is not there */
} Reader;

static bool buffer_reserve(FrameBuffer *buffer, size_t room);
static uint8_t *put_header(FrameBuffer *buffer, FrameType type, size_t length);
static uint8_t *put_bytes(uint8_t *at, const void *bytes, size_t length);
static uint8_t *put_u8(uint8_t *at, uint8_t value);
static uint8_t *put_u16(uint8_t *at, uint16_t value);
static uint8_t *put_u32(uint8_t *at, uint32_t value);
static uint8_t *put_u64(uint8_t *at, uint64_t value);
static uint8_t *put_address(uint8_t *at, const FrameAddress *address);
static Reader read_payload(const Frame *frame);
static bool read_done(const Reader *reader);
static const uint8_t *read_bytes(Reader *reader, size_t length);
static uint8_t read_u8(Reader *reader);
static uint16_t read_u16(Reader *reader);
static uint32_t read_u32(Reader *reader);
static uint64_t read_u64(Reader *reader);
static void read_address(Reader *reader, FrameAddress *address);

/* frame_buffer_init makes an empty buffer that never holds more than limit bytes. */
void
frame_buffer_init(FrameBuffer *buffer, size_t limit)
{
	buffer->data = NULL;
	buffer->start = 0;
	buffer->end = 0;
	buffer->capacity = 0;
	buffer->limit = limit;
}

/* frame_buffer_free gives back the memory; the buffer is empty and usable afterwards. */
void
frame_buffer_free(FrameBuffer *buffer)
{
	free(buffer->data);
	frame_buffer_init(buffer, buffer->limit);
}

size_t
frame_buffer_length(const FrameBuffer *buffer)
{
	return buffer->end - buffer->start;
}

void
frame_buffer_compact(FrameBuffer *buffer, size_t keep)
{
	if (buffer->start == buffer->end && buffer->capacity > keep)
		frame_buffer_free(buffer);
}

void
frame_buffer_cleanse(FrameBuffer *buffer)
{
	if (buffer->data == NULL)
		return;
	explicit_bzero(buffer->data, buffer->start);
	explicit_bzero(buffer->data + buffer->end, buffer->capacity - buffer->end);
}

FrameIoResult
frame_buffer_read(FrameBuffer *buffer, int fd, size_t max)
{
	size_t		total = 0;

	while (total < max)
	{
		size_t		room;
		ssize_t		got;

		if (buffer->limit - frame_buffer_length(buffer) == 0)
			break;
		room = buffer->limit - frame_buffer_length(buffer);
		if (room > BUFFER_READ_ROOM)
			room = BUFFER_READ_ROOM;
		if (!buffer_reserve(buffer, room))
		{
			errno = ENOMEM;
			return FRAME_IO_ERROR;
		}

		/* all the room there is, not only what was asked for */
		room = buffer->capacity - buffer->end;
		if (room > max - total)
			room = max - total;

		got = recv(fd, buffer->data + buffer->end, room, MSG_DONTWAIT);
		if (got > 0)
		{
			buffer->end += (size_t) got;
			total += (size_t) got;
			if ((size_t) got < room)
				break;
		}
		else if (got == 0)
		{
			/* what was read before is to be looked at first */
			return total > 0 ? FRAME_IO_OK : FRAME_IO_CLOSED;
		}
		else if (errno == EINTR)
			continue;
		else if (errno == EAGAIN || errno == EWOULDBLOCK)
			break;
		else
			return total > 0 ? FRAME_IO_OK : FRAME_IO_ERROR;
	}
	return total > 0 ? FRAME_IO_OK : FRAME_IO_AGAIN;
}

FrameIoResult
frame_buffer_write(FrameBuffer *buffer, int fd)
{
	bool		moved = false;

	while (buffer->start < buffer->end)
	{
		ssize_t		sent;

		sent = send(fd, buffer->data + buffer->start, buffer->end - buffer->start,
					MSG_DONTWAIT | MSG_NOSIGNAL);
		if (sent >= 0)
		{
			buffer->start += (size_t) sent;
			moved = true;
		}
		else if (errno == EINTR)
			continue;
		else if (errno == EAGAIN || errno == EWOULDBLOCK)
			break;
		else if (errno == EPIPE || errno == ECONNRESET)
			return FRAME_IO_CLOSED;
		else
			return FRAME_IO_ERROR;
	}
	return moved ? FRAME_IO_OK : FRAME_IO_AGAIN;
}

FrameResult
frame_next(FrameBuffer *buffer, Frame *frame)
{
	size_t		available = frame_buffer_length(buffer);
	Reader		header;
	size_t		length;
	uint8_t		version;
	uint8_t		type;

	if (available < FRAME_HEADER_SIZE)
		return FRAME_INCOMPLETE;

	header.at = buffer->data + buffer->start;
	header.left = FRAME_HEADER_SIZE;
	header.bad = false;
	length = read_u32(&header);
	version = read_u8(&header);
	type = read_u8(&header);
	if (version != FRAME_VERSION || read_u16(&header) != 0 || length > FRAME_MAX_PAYLOAD)
		return FRAME_MALFORMED;

	/* A frame that the buffer could never hold would be waited for without end. */
	if (buffer->limit < FRAME_HEADER_SIZE + length)
		return FRAME_MALFORMED;
	if (available < FRAME_HEADER_SIZE + length)
		return FRAME_INCOMPLETE;

	frame->type = type;
	frame->payload = buffer->data + buffer->start + FRAME_HEADER_SIZE;
	frame->length = length;
	buffer->start += FRAME_HEADER_SIZE + length;
	return FRAME_COMPLETE;
}

bool
frame_put_hello(FrameBuffer *buffer)
{
	return put_header(buffer, FRAME_HELLO, 0) != NULL;
}

/* frame_put_delivery also refuses a path or a signature that a decoder would not accept. */
bool
frame_put_delivery(FrameBuffer *buffer, const DeliveryFrame *delivery)
{
	uint8_t    *at;

	if (delivery->path_length < 1 || delivery->path_length > FRAME_MAX_PATH ||
		delivery->signature_length < 1 || delivery->signature_length > FRAME_MAX_SIGNATURE ||
		delivery->body_length > FRAME_MAX_PAYLOAD)
		return false;

	at = put_header(buffer, FRAME_DELIVERY, DELIVERY_FIXED_SIZE + delivery->path_length +
					delivery->signature_length + delivery->body_length);
	if (at == NULL)
		return false;
	at = put_u64(at, delivery->number);
	at = put_u64(at, (uint64_t) delivery->arrived_at);
	at = put_address(at, &delivery->address);
	at = put_u16(at, (uint16_t) delivery->path_length);
	at = put_u16(at, (uint16_t) delivery->signature_length);
	at = put_u32(at, (uint32_t) delivery->body_length);
	at = put_bytes(at, delivery->path, delivery->path_length);
	at = put_bytes(at, delivery->signature, delivery->signature_length);
	put_bytes(at, delivery->body, delivery->body_length);
	return true;
}

/* frame_put_rejection keeps the first FRAME_MAX_PATH bytes of a longer path. */
bool
frame_put_rejection(FrameBuffer *buffer, const RejectionFrame *rejection)
{
	size_t		path_length = rejection->path_length;
	uint8_t    *at;

	if (path_length > FRAME_MAX_PATH)
		path_length = FRAME_MAX_PATH;
	at = put_header(buffer, FRAME_REJECTION, REJECTION_FIXED_SIZE + path_length);
	if (at == NULL)
		return false;
	at = put_u8(at, rejection->reason);
	at = put_address(at, &rejection->address);
	at = put_u32(at, rejection->count);
	at = put_u16(at, (uint16_t) path_length);
	put_bytes(at, rejection->path, path_length);
	return true;
}

bool
frame_put_status(FrameBuffer *buffer, const StatusFrame *status)
{
	uint8_t    *at = put_header(buffer, FRAME_STATUS, STATUS_SIZE);

	if (at == NULL)
		return false;
	at = put_u32(at, status->connections);
	at = put_u32(at, status->pending);
	at = put_u64(at, status->pending_size);
	at = put_u64(at, status->connections_total);
	at = put_u64(at, status->requests_total);
	at = put_u8(at, status->sandboxed ? 1 : 0);
	for (int i = 0; i < REJECTION_COUNT; i++)
		at = put_u64(at, status->rejections[i]);
	return true;
}

bool
frame_put_config(FrameBuffer *buffer, const ConfigFrame *config)
{
	uint8_t    *at = put_header(buffer, FRAME_CONFIG, CONFIG_SIZE);

	if (at == NULL)
		return false;
	at = put_u64(at, config->max_body_size);
	at = put_u32(at, config->max_header_size);
	at = put_u32(at, config->max_connections);
	at = put_u32(at, config->max_pending);
	at = put_u64(at, config->max_pending_size);
	at = put_u32(at, config->request_timeout);
	put_u32(at, config->answer_timeout);
	return true;
}

bool
frame_put_tls(FrameBuffer *buffer, const TlsFrame *tls)
{
	uint8_t    *at;

	if (tls->certificate_length < 1 || tls->certificate_length > FRAME_MAX_PEM ||
		tls->key_length < 1 || tls->key_length > FRAME_MAX_PEM)
		return false;
	at = put_header(buffer, FRAME_TLS, 4 + 4 + tls->certificate_length + tls->key_length);
	if (at == NULL)
		return false;
	at = put_u32(at, (uint32_t) tls->certificate_length);
	at = put_u32(at, (uint32_t) tls->key_length);
	at = put_bytes(at, tls->certificate, tls->certificate_length);
	put_bytes(at, tls->key, tls->key_length);
	return true;
}

bool
frame_put_paths(FrameBuffer *buffer, const PathEntry *paths, size_t count)
{
	size_t		length = 0;
	uint8_t    *at;

	for (size_t i = 0; i < count; i++)
	{
		if (paths[i].path_length < 1 || paths[i].path_length > FRAME_MAX_PATH)
			return false;
		length += 2 + paths[i].path_length;
	}

	at = put_header(buffer, FRAME_PATHS, length);
	if (at == NULL)
		return false;
	for (size_t i = 0; i < count; i++)
	{
		at = put_u8(at, paths[i].state);
		at = put_u8(at, (uint8_t) paths[i].path_length);
		at = put_bytes(at, paths[i].path, paths[i].path_length);
	}
	return true;
}

/* frame_put_answers refuses an empty list: a frame of no answers is malformed. */
bool
frame_put_answers(FrameBuffer *buffer, const AnswerEntry *answers, size_t count)
{
	uint8_t    *at;

	if (count < 1 || count > FRAME_MAX_PAYLOAD / ANSWER_SIZE)
		return false;
	at = put_header(buffer, FRAME_ANSWERS, count * ANSWER_SIZE);
	if (at == NULL)
		return false;
	for (size_t i = 0; i < count; i++)
	{
		at = put_u64(at, answers[i].number);
		at = put_u16(at, answers[i].status);
	}
	return true;
}

bool
frame_put_ping(FrameBuffer *buffer)
{
	return put_header(buffer, FRAME_PING, 0) != NULL;
}

bool
frame_put_drain(FrameBuffer *buffer)
{
	return put_header(buffer, FRAME_DRAIN, 0) != NULL;
}

bool
frame_get_delivery(const Frame *frame, DeliveryFrame *delivery)
{
	Reader		reader = read_payload(frame);

	delivery->number = read_u64(&reader);
	delivery->arrived_at = (int64_t) read_u64(&reader);
	read_address(&reader, &delivery->address);
	delivery->path_length = read_u16(&reader);
	delivery->signature_length = read_u16(&reader);
	delivery->body_length = read_u32(&reader);
	delivery->path = (const char *) read_bytes(&reader, delivery->path_length);
	delivery->signature = (const char *) read_bytes(&reader, delivery->signature_length);
	delivery->body = read_bytes(&reader, delivery->body_length);
	return read_done(&reader) &&
		delivery->path_length >= 1 && delivery->path_length <= FRAME_MAX_PATH &&
		delivery->signature_length >= 1 && delivery->signature_length <= FRAME_MAX_SIGNATURE;
}

bool
frame_get_rejection(const Frame *frame, RejectionFrame *rejection)
{
	Reader		reader = read_payload(frame);

	rejection->reason = read_u8(&reader);
	read_address(&reader, &rejection->address);
	rejection->count = read_u32(&reader);
	rejection->path_length = read_u16(&reader);
	rejection->path = (const char *) read_bytes(&reader, rejection->path_length);
	return read_done(&reader) &&
		rejection->reason < REJECTION_COUNT &&
		rejection->count >= 1 &&
		rejection->path_length <= FRAME_MAX_PATH;
}

bool
frame_get_status(const Frame *frame, StatusFrame *status)
{
	Reader		reader = read_payload(frame);
	uint8_t		sandboxed;

	status->connections = read_u32(&reader);
	status->pending = read_u32(&reader);
	status->pending_size = read_u64(&reader);
	status->connections_total = read_u64(&reader);
	status->requests_total = read_u64(&reader);
	sandboxed = read_u8(&reader);
	status->sandboxed = sandboxed == 1;
	for (int i = 0; i < REJECTION_COUNT; i++)
		status->rejections[i] = read_u64(&reader);
	return read_done(&reader) && sandboxed <= 1;
}

/* frame_get_config refuses a limit of zero: nothing could be served under it. */
bool
frame_get_config(const Frame *frame, ConfigFrame *config)
{
	Reader		reader = read_payload(frame);

	config->max_body_size = read_u64(&reader);
	config->max_header_size = read_u32(&reader);
	config->max_connections = read_u32(&reader);
	config->max_pending = read_u32(&reader);
	config->max_pending_size = read_u64(&reader);
	config->request_timeout = read_u32(&reader);
	config->answer_timeout = read_u32(&reader);
	return read_done(&reader) &&
		config->max_body_size > 0 && config->max_header_size > 0 &&
		config->max_connections > 0 && config->max_pending > 0 &&
		config->max_pending_size > 0 && config->request_timeout > 0 &&
		config->answer_timeout > 0;
}

bool
frame_get_tls(const Frame *frame, TlsFrame *tls)
{
	Reader		reader = read_payload(frame);

	tls->certificate_length = read_u32(&reader);
	tls->key_length = read_u32(&reader);
	tls->certificate = read_bytes(&reader, tls->certificate_length);
	tls->key = read_bytes(&reader, tls->key_length);
	return read_done(&reader) &&
		tls->certificate_length >= 1 && tls->certificate_length <= FRAME_MAX_PEM &&
		tls->key_length >= 1 && tls->key_length <= FRAME_MAX_PEM;
}

long
frame_get_path_count(const Frame *frame)
{
	PathEntry	entry;
	size_t		offset = 0;
	long		count = 0;

	while (frame_next_path(frame, &offset, &entry))
		count++;
	return offset == frame->length ? count : -1;
}

long
frame_get_answer_count(const Frame *frame)
{
	AnswerEntry entry;
	size_t		offset = 0;
	long		count = 0;

	while (frame_next_answer(frame, &offset, &entry))
		count++;
	return offset == frame->length && count > 0 ? count : -1;
}

/* frame_next_path stops, without moving on, at an entry that is malformed. */
bool
frame_next_path(const Frame *frame, size_t *offset, PathEntry *entry)
{
	Reader		reader;

	if (*offset >= frame->length)
		return false;
	reader.at = frame->payload + *offset;
	reader.left = frame->length - *offset;
	reader.bad = false;

	entry->state = read_u8(&reader);
	entry->path_length = read_u8(&reader);
	entry->path = (const char *) read_bytes(&reader, entry->path_length);
	if (reader.bad || entry->path_length < 1 ||
		(entry->state != PATH_ACTIVE && entry->state != PATH_RETIRED))
		return false;
	*offset = frame->length - reader.left;
	return true;
}

/* frame_next_answer stops, without moving on, at an entry that is malformed. */
bool
frame_next_answer(const Frame *frame, size_t *offset, AnswerEntry *entry)
{
	Reader		reader;

	if (*offset >= frame->length)
		return false;
	reader.at = frame->payload + *offset;
	reader.left = frame->length - *offset;
	reader.bad = false;

	entry->number = read_u64(&reader);
	entry->status = read_u16(&reader);
	if (reader.bad || entry->status < 200 || entry->status > 599)
		return false;
	*offset = frame->length - reader.left;
	return true;
}

const char *
frame_rejection_name(int reason)
{
	static const char *const names[REJECTION_COUNT] = {
		[REJECTION_FRAMING] = "framing",
		[REJECTION_TRANSFER_ENCODING] = "transfer_encoding",
		[REJECTION_URI_TOO_LONG] = "uri_too_long",
		[REJECTION_HEADERS_TOO_LARGE] = "headers_too_large",
		[REJECTION_UNKNOWN_PATH] = "unknown_path",
		[REJECTION_RETIRED] = "retired",
		[REJECTION_METHOD] = "method",
		[REJECTION_LENGTH_REQUIRED] = "length_required",
		[REJECTION_BODY_TOO_LARGE] = "body_too_large",
		[REJECTION_OVERLOADED] = "overloaded",
		[REJECTION_SIGNATURE_MISSING] = "signature_missing",
		[REJECTION_SIGNATURE_DOUBLED] = "signature_doubled",
		[REJECTION_SIGNATURE_MALFORMED] = "signature_malformed",
		[REJECTION_REQUEST_TIMEOUT] = "request_timeout",
		[REJECTION_ANSWER_TIMEOUT] = "answer_timeout",
		[REJECTION_LIBRARY] = "library",
		[REJECTION_SIGNATURE_WRONG] = "signature_wrong",
		[REJECTION_TIMESTAMP] = "timestamp",
		[REJECTION_NO_KEY] = "no_key",
	};

	if (reason < 0 || reason >= REJECTION_COUNT)
		return "unknown";
	return names[reason];
}

/*
 * buffer_reserve makes room for that many more bytes at the end: by moving
 * what is there to the front when half of the memory or more is free that
 * way, else by growing to twice the size, or to the limit.
 */
static bool
buffer_reserve(FrameBuffer *buffer, size_t room)
{
	size_t		length = frame_buffer_length(buffer);
	size_t		capacity;
	uint8_t    *data;

	if (length == 0)
		buffer->start = buffer->end = 0;
	if (room <= buffer->capacity - buffer->end)
		return true;
	if (room > buffer->limit - length)
		return false;

	if (buffer->start > 0 && length <= buffer->capacity / 2)
	{
		memmove(buffer->data, buffer->data + buffer->start, length);
		buffer->start = 0;
		buffer->end = length;
		if (room <= buffer->capacity - buffer->end)
			return true;
	}

	capacity = buffer->capacity > 0 ? buffer->capacity : BUFFER_FIRST_SIZE;
	while (capacity < length + room)
		capacity *= 2;
	if (capacity > buffer->limit)
		capacity = buffer->limit;

	if (buffer->start > 0)
	{
		memmove(buffer->data, buffer->data + buffer->start, length);
		buffer->start = 0;
		buffer->end = length;
	}
	data = realloc(buffer->data, capacity);
	if (data == NULL)
		return false;
	buffer->data = data;
	buffer->capacity = capacity;
	return true;
}

/* put_header appends the header and returns where the payload goes; null when there is no room for both. */
static uint8_t *
put_header(FrameBuffer *buffer, FrameType type, size_t length)
{
	uint8_t    *at;

	if (length > FRAME_MAX_PAYLOAD || !buffer_reserve(buffer, FRAME_HEADER_SIZE + length))
		return NULL;
	at = buffer->data + buffer->end;
	buffer->end += FRAME_HEADER_SIZE + length;
	at = put_u32(at, (uint32_t) length);
	at = put_u8(at, FRAME_VERSION);
	at = put_u8(at, (uint8_t) type);
	return put_u16(at, 0);
}

static uint8_t *
put_bytes(uint8_t *at, const void *bytes, size_t length)
{
	if (length > 0)
		memcpy(at, bytes, length);
	return at + length;
}

static uint8_t *
put_u8(uint8_t *at, uint8_t value)
{
	return put_bytes(at, &value, sizeof(value));
}

static uint8_t *
put_u16(uint8_t *at, uint16_t value)
{
	return put_bytes(at, &value, sizeof(value));
}

static uint8_t *
put_u32(uint8_t *at, uint32_t value)
{
	return put_bytes(at, &value, sizeof(value));
}

static uint8_t *
put_u64(uint8_t *at, uint64_t value)
{
	return put_bytes(at, &value, sizeof(value));
}

static uint8_t *
put_address(uint8_t *at, const FrameAddress *address)
{
	at = put_u8(at, address->family);
	return put_bytes(at, address->bytes, sizeof(address->bytes));
}

static Reader
read_payload(const Frame *frame)
{
	Reader		reader = {frame->payload, frame->length, false};

	return reader;
}

/* read_done: was everything there, and nothing more? */
static bool
read_done(const Reader *reader)
{
	return !reader->bad && reader->left == 0;
}

static const uint8_t *
read_bytes(Reader *reader, size_t length)
{
	const uint8_t *at = reader->at;

	if (reader->bad || length > reader->left)
	{
		reader->bad = true;
		return NULL;
	}
	reader->at += length;
	reader->left -= length;
	return at;
}

static uint8_t
read_u8(Reader *reader)
{
	const uint8_t *at = read_bytes(reader, 1);

	return at != NULL ? *at : 0;
}

static uint16_t
read_u16(Reader *reader)
{
	const uint8_t *at = read_bytes(reader, sizeof(uint16_t));
	uint16_t	value = 0;

	if (at != NULL)
		memcpy(&value, at, sizeof(value));
	return value;
}

static uint32_t
read_u32(Reader *reader)
{
	const uint8_t *at = read_bytes(reader, sizeof(uint32_t));
	uint32_t	value = 0;

	if (at != NULL)
		memcpy(&value, at, sizeof(value));
	return value;
}

static uint64_t
read_u64(Reader *reader)
{
	const uint8_t *at = read_bytes(reader, sizeof(uint64_t));
	uint64_t	value = 0;

	if (at != NULL)
		memcpy(&value, at, sizeof(value));
	return value;
}

static void
read_address(Reader *reader, FrameAddress *address)
{
	const uint8_t *bytes;

	address->family = read_u8(reader);
	bytes = read_bytes(reader, sizeof(address->bytes));
	if (bytes != NULL)
		memcpy(address->bytes, bytes, sizeof(address->bytes));
	else
		memset(address->bytes, 0, sizeof(address->bytes));
	if (address->family != 0 && address->family != 4 && address->family != 6)
		reader->bad = true;
}
