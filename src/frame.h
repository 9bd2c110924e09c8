/*
 * frame.h
 *	  The messages between the gateway and the receiver.
 *
 * The two processes share one stream socket and nothing else.  What crosses
 * it is a sequence of frames: a fixed header (length, version, type), then
 * that many bytes of payload.  Integers are in host byte order, since both
 * ends are built from one tree and run on one machine; the version is there
 * to catch an old gateway beside a new library.
 *
 * The receiver must treat what it reads as hostile: the gateway speaks to
 * the Internet and may have been taken over.  Every length is checked against
 * the bytes that are really there before anything is read, and a frame that
 * is not exactly as long as its contents is malformed.  Decoding allocates
 * nothing: what a decoded frame points at lives in the buffer that it was
 * decoded from, until the next frame_buffer_read or frame_buffer_compact.
 *
 * No postgres.h here: the gateway, the unit tests and the fuzzers build this
 * file without a server.
 */
#ifndef BW_FRAME_H
#define BW_FRAME_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define FRAME_VERSION 1
#define FRAME_HEADER_SIZE 8

/* The longest payload that either side accepts: a body at the upper bound of max_body_size, and room. */
#define FRAME_MAX_PAYLOAD ((size_t) 65 * 1024 * 1024)

/* The longest path of an endpoint, in bytes, and the longest signature header that the gateway passes on. */
#define FRAME_MAX_PATH 255
#define FRAME_MAX_SIGNATURE 128

/* The longest certificate chain, and the longest private key, as PEM text. */
#define FRAME_MAX_PEM ((size_t) 64 * 1024)

/*
 * Why a request got no event.  The gateway refuses with all but the last three
 * by itself; for those the receiver needs the keys.  UNKNOWN_PATH, RETIRED and
 * SIGNATURE_MALFORMED can be the receiver's too: it learns of a change before the
 * gateway does, and receive() goes without one.
 * The texts (frame_rejection_name) are what the table banked.rejections and
 * banked.stats() show.
 */
typedef enum RejectionReason
{
	REJECTION_FRAMING,			/* 400: bad framing, headers, version, Host */
	REJECTION_TRANSFER_ENCODING,	/* 411: any Transfer-Encoding */
	REJECTION_URI_TOO_LONG,		/* 414 */
	REJECTION_HEADERS_TOO_LARGE,	/* 431 */
	REJECTION_UNKNOWN_PATH,		/* 404 */
	REJECTION_RETIRED,			/* 410 */
	REJECTION_METHOD,			/* 405 */
	REJECTION_LENGTH_REQUIRED,	/* 411: POST without Content-Length */
	REJECTION_BODY_TOO_LARGE,	/* 413 */
	REJECTION_OVERLOADED,		/* 503: max_pending or max_pending_size reached, or draining */
	REJECTION_SIGNATURE_MISSING,	/* 400 */
	REJECTION_SIGNATURE_DOUBLED,	/* 400 */
	REJECTION_SIGNATURE_MALFORMED,	/* 400 */
	REJECTION_REQUEST_TIMEOUT,	/* closed without an answer */
	REJECTION_ANSWER_TIMEOUT,	/* 503: the receiver did not answer in time */
	REJECTION_LIBRARY,			/* answered by the HTTP library before our code ran */
	REJECTION_SIGNATURE_WRONG,	/* 400, receiver */
	REJECTION_TIMESTAMP,		/* 400, receiver: outside the window */
	REJECTION_NO_KEY			/* 503, receiver: no readable key */
} RejectionReason;

#define REJECTION_COUNT (REJECTION_NO_KEY + 1)

typedef enum FrameType
{
	/* gateway to receiver */
	FRAME_HELLO = 1,			/* the gateway is up and has taken over the sockets; no payload */
	FRAME_DELIVERY = 2,
	FRAME_REJECTION = 3,
	FRAME_STATUS = 4,
	/* receiver to gateway */
	FRAME_CONFIG = 16,
	FRAME_PATHS = 17,
	FRAME_ANSWERS = 18,
	FRAME_PING = 19,			/* asks for a status; no payload */
	FRAME_DRAIN = 20,			/* no payload */
	FRAME_TLS = 21
} FrameType;

/* A frame as it stands in a buffer. */
typedef struct Frame
{
	uint8_t		type;
	const uint8_t *payload;
	size_t		length;
} Frame;

/* A client's address.  family is 0 (unknown), 4 or 6; an IPv4 address fills the first four bytes. */
typedef struct FrameAddress
{
	uint8_t		family;
	uint8_t		bytes[16];
} FrameAddress;

/* A complete request for a known, active path with a well-formed signature header. */
typedef struct DeliveryFrame
{
	uint64_t	number;			/* names the request in the answer; never used twice by one gateway */
	int64_t		arrived_at;		/* when the body was complete, microseconds since the Unix epoch */
	FrameAddress address;
	const char *path;			/* not terminated */
	size_t		path_length;	/* 1 .. FRAME_MAX_PATH */
	const char *signature;		/* not terminated */
	size_t		signature_length;	/* 1 .. FRAME_MAX_SIGNATURE */
	const uint8_t *body;
	size_t		body_length;
} DeliveryFrame;

/* Requests that the gateway refused itself, for the rejection log; sent at a bounded rate. */
typedef struct RejectionFrame
{
	uint8_t		reason;			/* RejectionReason */
	FrameAddress address;
	const char *path;			/* raw, at most FRAME_MAX_PATH bytes of it, perhaps none */
	size_t		path_length;
	uint32_t	count;			/* how many like this one the frame stands for, at least 1 */
} RejectionFrame;

/* What the gateway knows of itself; the answer to a ping. */
typedef struct StatusFrame
{
	uint32_t	connections;	/* open now */
	uint32_t	pending;		/* deliveries sent to the receiver and not yet answered */
	uint64_t	pending_size;	/* bytes of bodies held for requests being read or pending */
	uint64_t	connections_total;
	uint64_t	requests_total;
	bool		sandboxed;		/* the system-call filter is in force */
	uint64_t	rejections[REJECTION_COUNT];	/* since the gateway started */
} StatusFrame;

/* Limits; sent first, and again whenever one changes. */
typedef struct ConfigFrame
{
	uint64_t	max_body_size;	/* bytes */
	uint32_t	max_header_size;	/* bytes of request line and headers; for connections opened from now on */
	uint32_t	max_connections;
	uint32_t	max_pending;	/* deliveries */
	uint64_t	max_pending_size;	/* bytes */
	uint32_t	request_timeout;	/* milliseconds for one whole request */
	uint32_t	answer_timeout; /* milliseconds from the end of the body to a 503 */
} ConfigFrame;

/* What HTTPS is served with, from now on; sent after FRAME_CONFIG. */
typedef struct TlsFrame
{
	const uint8_t *certificate; /* a chain as PEM text, not terminated */
	size_t		certificate_length; /* 1 .. FRAME_MAX_PEM */
	const uint8_t *key;			/* PEM text, not terminated */
	size_t		key_length;		/* 1 .. FRAME_MAX_PEM */
} TlsFrame;

typedef enum PathState
{
	PATH_ACTIVE = 1,
	PATH_RETIRED = 2
} PathState;

/* One known path.  A FRAME_PATHS holds the whole list and replaces the one before. */
typedef struct PathEntry
{
	uint8_t		state;			/* PathState */
	const char *path;			/* not terminated */
	size_t		path_length;	/* 1 .. FRAME_MAX_PATH */
} PathEntry;

/* One answer.  A FRAME_ANSWERS holds at least one. */
typedef struct AnswerEntry
{
	uint64_t	number;			/* of the delivery */
	uint16_t	status;			/* an HTTP status */
} AnswerEntry;

/*
 * A queue of bytes: written at the end, read at the start.  limit bounds its
 * size, and thereby what a fast writer can make a slow reader hold.
 */
typedef struct FrameBuffer
{
	uint8_t    *data;
	size_t		start;
	size_t		end;
	size_t		capacity;
	size_t		limit;
} FrameBuffer;

typedef enum FrameResult
{
	FRAME_INCOMPLETE,			/* more bytes are needed */
	FRAME_COMPLETE,				/* *frame is filled */
	FRAME_MALFORMED				/* the peer is broken or hostile: drop it */
} FrameResult;

typedef enum FrameIoResult
{
	FRAME_IO_OK,				/* something was moved */
	FRAME_IO_AGAIN,				/* nothing to do now: the socket would block, or the buffer is full (read) or empty (write) */
	FRAME_IO_CLOSED,			/* end of file */
	FRAME_IO_ERROR				/* errno is set */
} FrameIoResult;

/* Buffers.  Memory is malloc's; a failing allocation is reported, never fatal. */
extern void frame_buffer_init(FrameBuffer *buffer, size_t limit);
extern void frame_buffer_free(FrameBuffer *buffer);
extern size_t frame_buffer_length(const FrameBuffer *buffer);

/* Gives memory back after a burst: an empty buffer larger than keep bytes is freed. */
extern void frame_buffer_compact(FrameBuffer *buffer, size_t keep);

/* Overwrites what was taken off the buffer: for frames that held a secret. */
extern void frame_buffer_cleanse(FrameBuffer *buffer);

/*
 * Reads what the non-blocking socket has, at most about max bytes, into the buffer.
 * Pointers of frames decoded before are invalid afterwards.
 */
extern FrameIoResult frame_buffer_read(FrameBuffer *buffer, int fd, size_t max);

/* Writes as much of the buffer as the non-blocking socket takes, without SIGPIPE. */
extern FrameIoResult frame_buffer_write(FrameBuffer *buffer, int fd);

/*
 * Takes the next frame off the start of the buffer.  Its payload stays where
 * it is until the buffer is read into or compacted.
 */
extern FrameResult frame_next(FrameBuffer *buffer, Frame *frame);

/*
 * Encoders append one frame.  They return false, and leave the buffer as it
 * was, when the frame would exceed the buffer's limit or memory is short.
 */
extern bool frame_put_hello(FrameBuffer *buffer);
extern bool frame_put_delivery(FrameBuffer *buffer, const DeliveryFrame *delivery);
extern bool frame_put_rejection(FrameBuffer *buffer, const RejectionFrame *rejection);
extern bool frame_put_status(FrameBuffer *buffer, const StatusFrame *status);
extern bool frame_put_config(FrameBuffer *buffer, const ConfigFrame *config);
extern bool frame_put_tls(FrameBuffer *buffer, const TlsFrame *tls);
extern bool frame_put_paths(FrameBuffer *buffer, const PathEntry *paths, size_t count);
extern bool frame_put_answers(FrameBuffer *buffer, const AnswerEntry *answers, size_t count);
extern bool frame_put_ping(FrameBuffer *buffer);
extern bool frame_put_drain(FrameBuffer *buffer);

/*
 * Decoders return false when the payload is not exactly what its type says;
 * the caller has checked frame->type.  Values are checked too (lengths,
 * reason < REJECTION_COUNT, family 0, 4 or 6, path states, status 200 .. 599).
 */
extern bool frame_get_delivery(const Frame *frame, DeliveryFrame *delivery);
extern bool frame_get_rejection(const Frame *frame, RejectionFrame *rejection);
extern bool frame_get_status(const Frame *frame, StatusFrame *status);
extern bool frame_get_config(const Frame *frame, ConfigFrame *config);
extern bool frame_get_tls(const Frame *frame, TlsFrame *tls);

/* The number of entries, or -1 when malformed; every entry is checked. */
extern long frame_get_path_count(const Frame *frame);
extern long frame_get_answer_count(const Frame *frame);

/*
 * Iterate over a frame whose count was just taken: *offset starts at 0 and is
 * moved on; false at the end.
 */
extern bool frame_next_path(const Frame *frame, size_t *offset, PathEntry *entry);
extern bool frame_next_answer(const Frame *frame, size_t *offset, AnswerEntry *entry);

/* A short name in lower case with underscores ("unknown_path"), never null. */
extern const char *frame_rejection_name(int reason);

#endif							/* BW_FRAME_H */
