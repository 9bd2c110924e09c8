/*
 * deliveries.c
 *	  The deliveries on their way: their bodies, their numbers, and the bound
 *	  on how many and how large they are.
 *
 * Numbers count up and are never reused, so that an answer that comes too
 * late finds nothing; counting up also spreads them evenly over the buckets.
 */
#include "deliveries.h"

#include <stdlib.h>
#include <string.h>

static bool grow_body(Deliveries *deliveries, Connection *connection, size_t capacity);
static void free_body(Connection *connection);
static void queue_push(Deliveries *deliveries, Connection *connection);
static void queue_remove(Deliveries *deliveries, Connection *connection);
static Connection **bucket_of(Deliveries *deliveries, uint64_t number);

bool
deliveries_have_room(const Deliveries *deliveries, uint64_t content_length)
{
	return deliveries->pending < deliveries->max_pending &&
		deliveries->size < deliveries->max_size &&
		content_length <= deliveries->max_size - deliveries->size;
}

bool
deliveries_begin(Deliveries *deliveries, Connection *connection)
{
	size_t		length = (size_t) connection->guard.content_length;

	if (length == 0)
		return true;
	return grow_body(deliveries, connection, length < BODY_EAGER_SIZE ? length : BODY_EAGER_SIZE);
}

bool
deliveries_append(Deliveries *deliveries, Connection *connection, const char *data, size_t length)
{
	size_t		needed = connection->body_length + length;

	if (needed > connection->guard.content_length)
		return false;
	if (needed > connection->body_capacity)
	{
		size_t		capacity = 2 * connection->body_capacity;

		if (capacity < needed)
			capacity = needed;
		if (capacity > connection->guard.content_length)
			capacity = (size_t) connection->guard.content_length;
		if (!grow_body(deliveries, connection, capacity))
		{
			deliveries_forget(deliveries, connection);
			return false;
		}
	}
	memcpy(connection->body + connection->body_length, data, length);
	connection->body_length = needed;
	return true;
}

bool
deliveries_submit(Deliveries *deliveries, Connection *connection, int64_t arrived_at)
{
	if (deliveries->pending >= deliveries->max_pending)
	{
		deliveries_forget(deliveries, connection);
		return false;
	}
	deliveries->pending++;
	connection->number = ++deliveries->last_number;
	connection->arrived_at = arrived_at;
	queue_push(deliveries, connection);
	return true;
}

void
deliveries_send(Deliveries *deliveries, FrameBuffer *out)
{
	while (deliveries->first_unsent != NULL && frame_buffer_length(out) < LINK_WATERMARK)
	{
		Connection *connection = deliveries->first_unsent;
		Connection **bucket;
		DeliveryFrame frame;

		frame.number = connection->number;
		frame.arrived_at = connection->arrived_at;
		frame.address = connection->address;
		frame.path = connection->guard.path;
		frame.path_length = connection->guard.path_length;
		frame.signature = connection->guard.signature;
		frame.signature_length = connection->guard.signature_length;
		frame.body = connection->body;
		frame.body_length = connection->body_length;

		/* Short of memory: it stays queued until there is some, or its time is over. */
		if (!frame_put_delivery(out, &frame))
			break;

		queue_remove(deliveries, connection);
		free_body(connection);
		bucket = bucket_of(deliveries, connection->number);
		connection->next_in_bucket = *bucket;
		*bucket = connection;
	}
}

Connection *
deliveries_find(const Deliveries *deliveries, uint64_t number)
{
	Connection *connection = deliveries->buckets[number & (DELIVERY_BUCKETS - 1)];

	while (connection != NULL && connection->number != number)
		connection = connection->next_in_bucket;
	return connection;
}

void
deliveries_forget(Deliveries *deliveries, Connection *connection)
{
	if (connection->number != 0)
	{
		if (connection->unsent)
			queue_remove(deliveries, connection);
		else
		{
			Connection **link = bucket_of(deliveries, connection->number);

			while (*link != connection)
				link = &(*link)->next_in_bucket;
			*link = connection->next_in_bucket;
		}
		connection->number = 0;
		deliveries->pending--;
	}
	free_body(connection);
	connection->body_length = 0;
	deliveries->size -= connection->reserved;
	connection->reserved = 0;
}

/* grow_body counts the growth before it allocates it. */
static bool
grow_body(Deliveries *deliveries, Connection *connection, size_t capacity)
{
	size_t		growth = capacity - connection->body_capacity;
	uint8_t    *body;

	if (deliveries->size >= deliveries->max_size ||
		growth > deliveries->max_size - deliveries->size)
		return false;
	body = realloc(connection->body, capacity);
	if (body == NULL)
		return false;
	connection->body = body;
	connection->body_capacity = capacity;
	connection->reserved += growth;
	deliveries->size += growth;
	return true;
}

static void
free_body(Connection *connection)
{
	free(connection->body);
	connection->body = NULL;
	connection->body_capacity = 0;
}

static void
queue_push(Deliveries *deliveries, Connection *connection)
{
	connection->unsent = true;
	connection->previous_unsent = deliveries->last_unsent;
	connection->next_unsent = NULL;
	if (deliveries->last_unsent != NULL)
		deliveries->last_unsent->next_unsent = connection;
	else
		deliveries->first_unsent = connection;
	deliveries->last_unsent = connection;
}

static void
queue_remove(Deliveries *deliveries, Connection *connection)
{
	connection->unsent = false;
	if (connection->previous_unsent != NULL)
		connection->previous_unsent->next_unsent = connection->next_unsent;
	else
		deliveries->first_unsent = connection->next_unsent;
	if (connection->next_unsent != NULL)
		connection->next_unsent->previous_unsent = connection->previous_unsent;
	else
		deliveries->last_unsent = connection->previous_unsent;
}

static Connection **
bucket_of(Deliveries *deliveries, uint64_t number)
{
	return &deliveries->buckets[number & (DELIVERY_BUCKETS - 1)];
}
