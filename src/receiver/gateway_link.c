/*
 * gateway_link.c
 *	  What goes over the link between a receiver and its gateway.
 *
 * Down to the gateway go limits, paths, the pair for HTTPS, and answers; up come
 * deliveries, rejections, and what it has counted.  A frame of a delivery
 * stays where it was read until the batch is answered: a Delivery points into it.
 *
 * The gateway is not trusted.  What is no frame, or none of a gateway's, is
 * reported to the caller, who replaces it; times and totals that it tells are
 * taken only where they can be true.
 */
#include "postgres.h"

#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "counters.h"
#include "endpoint_cache.h"
#include "gateway_link.h"
#include "rejection_log.h"
#include "settings.h"
#include "tls_files.h"

/* An arrival that the gateway reports is believed when it is no older than this. */
#define MAX_ARRIVAL_AGE (60 * USECS_PER_SEC)

/* Buffers that grew beyond this are given back when they are empty. */
#define KEEP_BUFFER (1024 * 1024)

/* No version of the endpoint cache: the list of paths could not be put into a frame. */
#define NO_PATHS PG_UINT64_MAX

static Gateway *gateway;
static ConfigFrame sent_config;
static uint64 sent_paths;		/* version of the endpoint cache, or NO_PATHS */
static TimestampTz last_received_at = 0;
static Delivery *deliveries = NULL; /* room for max_batch of them */
static int	delivery_room = 0;
static bool has_more = false;	/* what was read holds frames that were not taken */

/* Makes room for max_batch deliveries. */
static void
fit_delivery_room(void)
{
	if (delivery_room == bw_max_batch)
		return;
	if (deliveries != NULL)
		pfree(deliveries);
	deliveries = MemoryContextAlloc(TopMemoryContext, sizeof(Delivery) * bw_max_batch);
	delivery_room = bw_max_batch;
}

void
gateway_link_init(Gateway *the_gateway)
{
	gateway = the_gateway;
	fit_delivery_room();
}

/* ---------------------------------------------------------------------------
 * Down
 * ------------------------------------------------------------------------ */

static ConfigFrame
current_config(void)
{
	ConfigFrame config;

	memset(&config, 0, sizeof(config));
	config.max_body_size = (uint64) bw_max_body_size * 1024;
	config.max_header_size = bw_max_header_size * 1024;
	config.max_connections = bw_max_connections;
	config.max_pending = bw_max_pending;
	config.max_pending_size = Max((uint64) bw_max_pending_size * 1024, config.max_body_size);
	config.request_timeout = bw_request_timeout;
	config.answer_timeout = bw_answer_timeout;
	return config;
}

static void
send_config(void)
{
	sent_config = current_config();
	(void) frame_put_config(&gateway->out, &sent_config);
}

static void
send_paths(void)
{
	Size		count;
	PathEntry  *paths = endpoint_cache_paths(&count);

	sent_paths = frame_put_paths(&gateway->out, paths, count) ? endpoint_cache_version() : NO_PATHS;
}

void
gateway_link_send_tls(void)
{
	gateway->secret_sent = tls_files_put(&gateway->out);
}

void
gateway_link_greet(bool with_tls)
{
	has_more = false;
	send_config();
	if (with_tls)
		gateway_link_send_tls();
	send_paths();
}

void
gateway_link_follow_settings(void)
{
	ConfigFrame config = current_config();

	fit_delivery_room();
	if (gateway->pid != 0 && memcmp(&config, &sent_config, sizeof(config)) != 0)
		send_config();
}

void
gateway_link_follow_endpoints(void)
{
	if (gateway->pid != 0 && sent_paths != endpoint_cache_version())
		send_paths();
}

void
gateway_link_answer(Delivery **answered, int count)
{
	AnswerEntry *answers = palloc(sizeof(AnswerEntry) * count);

	for (int i = 0; i < count; i++)
	{
		answers[i].number = answered[i]->number;
		answers[i].status = delivery_status(answered[i]);
	}
	(void) frame_put_answers(&gateway->out, answers, count);
	(void) frame_buffer_write(&gateway->out, gateway->link);
	pfree(answers);
}

void
gateway_link_flush(void)
{
	if (gateway->pid == 0)
		return;
	(void) frame_buffer_write(&gateway->out, gateway->link);
	if (gateway->secret_sent && frame_buffer_length(&gateway->out) == 0)
	{
		frame_buffer_cleanse(&gateway->out);
		gateway->secret_sent = false;
	}
}

/* ---------------------------------------------------------------------------
 * Up
 * ------------------------------------------------------------------------ */

/*
 * The arrival of a delivery as PostgreSQL counts time: what the gateway says
 * where that can be, and later than any before.
 */
static TimestampTz
arrival_time(int64 unix_microseconds, TimestampTz now)
{
	TimestampTz arrived = unix_microseconds -
		(POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * USECS_PER_DAY;

	if (unix_microseconds <= 0 || arrived > now || arrived < now - MAX_ARRIVAL_AGE)
		arrived = now;
	if (arrived <= last_received_at)
		arrived = last_received_at + 1;
	last_received_at = arrived;
	return arrived;
}

static void
add_delivery(int index, const DeliveryFrame *frame, TimestampTz now)
{
	Delivery   *delivery = &deliveries[index];

	memset(delivery, 0, sizeof(*delivery));
	delivery->number = frame->number;
	delivery->path = frame->path;
	delivery->path_length = frame->path_length;
	delivery->signature_text = frame->signature;
	delivery->signature_length = frame->signature_length;
	delivery->body = (const char *) frame->body;
	delivery->body_length = frame->body_length;
	delivery->address = frame->address;
	delivery->received_at = arrival_time(frame->arrived_at, now);
}

/* Adds what a total has grown by since it was last seen. */
#define COUNT_GROWTH(counter, total, seen) \
	do { \
		if ((total) > (seen)) \
			COUNT(counter, (total) - (seen)); \
		(seen) = (total); \
	} while (0)

static void
take_status(const StatusFrame *status)
{
	pg_atomic_write_u64(&my_slot->counters.connections, status->connections);
	pg_atomic_write_u64(&my_slot->counters.pending, status->pending);
	pg_atomic_write_u64(&my_slot->counters.pending_size, status->pending_size);
	pg_atomic_write_u64(&my_slot->counters.sandboxed, status->sandboxed ? 1 : 0);
	COUNT_GROWTH(connections_total, status->connections_total, gateway->connections_seen);
	COUNT_GROWTH(requests_total, status->requests_total, gateway->requests_seen);
	for (int i = 0; i < REJECTION_COUNT; i++)
		COUNT_GROWTH(rejections[i], status->rejections[i], gateway->rejections_seen[i]);
}

/* Takes one frame; false when it is not one that a gateway sends. */
static bool
take_frame(const Frame *frame, int *delivery_count, TimestampTz now)
{
	DeliveryFrame delivery;
	RejectionFrame rejection;
	StatusFrame status;

	switch (frame->type)
	{
		case FRAME_HELLO:
			gateway->ready = frame->length == 0;
			return gateway->ready;
		case FRAME_DELIVERY:
			if (!frame_get_delivery(frame, &delivery))
				return false;
			add_delivery((*delivery_count)++, &delivery, now);
			return true;
		case FRAME_STATUS:
			if (!frame_get_status(frame, &status))
				return false;
			take_status(&status);
			return true;
		case FRAME_REJECTION:
			if (!frame_get_rejection(frame, &rejection))
				return false;
			rejection_log_add(rejection.reason, &rejection.address, rejection.path,
							  rejection.path_length, rejection.count);
			return true;
		default:
			return false;
	}
}

bool
gateway_link_read(void)
{
	switch (frame_buffer_read(&gateway->in, gateway->link, (Size) bw_max_batch_size * 1024))
	{
		case FRAME_IO_OK:
			gateway->heard_at = GetCurrentTimestamp();
			return true;
		case FRAME_IO_AGAIN:
			return true;
		default:
			return false;
	}
}

Size
gateway_link_waiting(void)
{
	return frame_buffer_length(&gateway->in);
}

bool
gateway_link_take(Size size, int min_count, Delivery **batch, int *count)
{
	TimestampTz now = GetCurrentTimestamp();
	Size		waiting = gateway_link_waiting();
	Frame		frame;

	*batch = deliveries;
	*count = 0;
	has_more = false;
	while (*count < delivery_room)
	{
		Size		taken = waiting - gateway_link_waiting();

		if (taken >= (Size) bw_max_batch_size * 1024 || (taken >= size && *count >= min_count))
			break;
		switch (frame_next(&gateway->in, &frame))
		{
			case FRAME_INCOMPLETE:
				return true;
			case FRAME_MALFORMED:
				return false;
			case FRAME_COMPLETE:
				gateway->ping_outstanding = false;
				if (!take_frame(&frame, count, now))
					return false;
				break;
		}
	}
	has_more = gateway_link_waiting() > 0;
	return true;
}

bool
gateway_link_has_more(void)
{
	return has_more;
}

void
gateway_link_compact(void)
{
	frame_buffer_compact(&gateway->in, KEEP_BUFFER);
	frame_buffer_compact(&gateway->out, KEEP_BUFFER);
}
