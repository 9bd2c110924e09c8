/*
 * gateway_state_test.c
 *	  What the gateway keeps in memory: known paths, refusals waiting to be
 *	  reported, deliveries and their bounds, connections and their deadlines.
 */
#include "gateway/connections.h"
#include "gateway/deliveries.h"
#include "gateway/paths.h"
#include "gateway/rejections.h"

#include <netinet/in.h>
#include <stdlib.h>
#include <string.h>

#include "tap.h"

static Deliveries deliveries;
static Rejections rejections;

static void
test_paths(void)
{
	enum {COUNT = 3000};
	static char text[COUNT][16];
	static PathEntry entries[COUNT];
	FrameBuffer buffer;
	Frame		frame;
	Paths		paths = {NULL, 0, NULL};
	int			wrong = 0;

	TAP_IS(paths_find(&paths, "/a", 2), GUARD_PATH_UNKNOWN, "paths: an empty set");
	for (int i = 0; i < COUNT; i++)
	{
		entries[i].path_length = (size_t) snprintf(text[i], sizeof(text[i]), "/p/%d", i);
		entries[i].path = text[i];
		entries[i].state = i % 2 ? PATH_RETIRED : PATH_ACTIVE;
	}
	frame_buffer_init(&buffer, 1 << 20);
	frame_put_paths(&buffer, entries, COUNT);
	frame_next(&buffer, &frame);
	TAP_IS(paths_replace(&paths, &frame), PATHS_OK, "paths: replaced");
	frame_buffer_free(&buffer);
	for (int i = 0; i < COUNT; i++)
	{
		GuardPath	expected = i % 2 ? GUARD_PATH_RETIRED : GUARD_PATH_ACTIVE;

		if (paths_find(&paths, text[i], strlen(text[i])) != expected)
			wrong++;
	}
	TAP_IS(wrong, 0, "paths: all found");
	TAP_IS(paths_find(&paths, "/p/3000", 7), GUARD_PATH_UNKNOWN, "paths: unknown");
	TAP_IS(paths_find(&paths, "/P/1", 4), GUARD_PATH_UNKNOWN, "paths: case matters");
	TAP_IS(paths_find(&paths, "", 0), GUARD_PATH_UNKNOWN, "paths: no path");

	frame.payload = (const uint8_t *) "\3\1/";
	frame.length = 3;
	TAP_IS(paths_replace(&paths, &frame), PATHS_MALFORMED, "paths: malformed");
	TAP_IS(paths_find(&paths, "/p/0", 4), GUARD_PATH_ACTIVE, "paths: unchanged then");
	frame.length = 0;
	TAP_IS(paths_replace(&paths, &frame), PATHS_OK, "paths: an empty list");
	TAP_IS(paths_find(&paths, "/p/0", 4), GUARD_PATH_UNKNOWN, "paths: nothing left");
	paths_free(&paths);
}

/* drain_rejections counts the frames in the buffer and what they stand for. */
static unsigned
drain_rejections(FrameBuffer *buffer, unsigned *sum)
{
	Frame		frame;
	RejectionFrame rejection;
	unsigned	frames = 0;

	*sum = 0;
	while (frame_next(buffer, &frame) == FRAME_COMPLETE)
	{
		frames++;
		if (frame_get_rejection(&frame, &rejection))
			*sum += rejection.count;
	}
	return frames;
}

static void
test_rejections(void)
{
	FrameAddress address = {4, {127, 0, 0, 1}};
	FrameBuffer buffer;
	unsigned	sum;
	int64_t		now = 1000000;

	frame_buffer_init(&buffer, 1 << 20);
	for (int i = 0; i < 1000; i++)
		rejections_add(&rejections, REJECTION_METHOD, &address, "/a", 2);
	rejections_add(&rejections, REJECTION_RETIRED, &address, "/b", 2);
	rejections_send(&rejections, &buffer, now);
	TAP_IS(drain_rejections(&buffer, &sum), 2, "rejections: folded by reason and address");
	TAP_IS(sum, 1001, "rejections: none lost");
	TAP_IS(rejections.totals[REJECTION_METHOD], 1000, "rejections: counted");
	TAP_IS(rejections_deadline(&rejections), -1, "rejections: nothing waits");

	for (int i = 0; i < 100; i++)
	{
		address.bytes[3] = (uint8_t) i;
		rejections_add(&rejections, REJECTION_METHOD, &address, NULL, 0);
	}
	rejections_send(&rejections, &buffer, now);
	TAP_IS(drain_rejections(&buffer, &sum), REJECTIONS_PER_SECOND - 2, "rejections: a burst is bounded");
	TAP_IS(rejections.totals[REJECTION_METHOD], 1100, "rejections: counted nevertheless");
	TAP_IS(rejections_deadline(&rejections), now + 1000 / REJECTIONS_PER_SECOND,
		   "rejections: the rest waits");
	rejections_send(&rejections, &buffer, now + 100);
	TAP_IS(drain_rejections(&buffer, &sum), 2, "rejections: at the rate");
	rejections_send(&rejections, &buffer, now + 100000);
	TAP_IS(drain_rejections(&buffer, &sum), REJECTIONS_PER_SECOND, "rejections: not more after a pause");
	rejections_send(&rejections, &buffer, now + 200000);
	rejections_send(&rejections, &buffer, now + 300000);
	TAP_IS(drain_rejections(&buffer, &sum), REJECTIONS_WAITING - 40,
		   "rejections: no more than there was room for");
	frame_buffer_free(&buffer);
}

static Connection *
connection_with_body(size_t length)
{
	Connection *connection = connection_create(NULL);

	guard_begin(&connection->guard, "/hook", 5);
	connection->guard.content_length = length;
	memcpy(connection->guard.signature, "s", 1);
	connection->guard.signature_length = 1;
	return connection;
}

static bool
append(Connection *connection, size_t length)
{
	static char bytes[100000];

	return deliveries_append(&deliveries, connection, bytes, length);
}

static void
test_deliveries(void)
{
	Connection *a = connection_with_body(1000);
	Connection *b = connection_with_body(50000);
	Connection *c = connection_with_body(0);
	FrameBuffer buffer;
	Frame		frame;
	DeliveryFrame delivery;

	deliveries.max_pending = 2;
	deliveries.max_size = 60000;
	frame_buffer_init(&buffer, 1 << 20);

	TAP_OK(deliveries_begin(&deliveries, a) && deliveries.size == 1000, "a usual body is reserved");
	TAP_OK(deliveries_have_room(&deliveries, 59000) && !deliveries_have_room(&deliveries, 59001),
		   "room for what is left");
	TAP_OK(deliveries_begin(&deliveries, b) && deliveries.size == 1000 + BODY_EAGER_SIZE,
		   "of a long one only a part");
	TAP_OK(append(a, 400) && append(a, 600) && !append(a, 1), "no more than announced");
	TAP_OK(append(b, 30000) && append(b, 20000), "a long body grows");
	TAP_IS(deliveries.size, 51000, "up to its length");
	TAP_OK(deliveries_submit(&deliveries, b, 1) && deliveries_submit(&deliveries, a, 2), "submitted");
	TAP_OK(!deliveries_have_room(&deliveries, 1), "max_pending is reached");
	TAP_OK(deliveries_begin(&deliveries, c) && !deliveries_submit(&deliveries, c, 3),
		   "one more is refused");

	TAP_OK(deliveries_find(&deliveries, b->number) == NULL, "not sent yet");
	deliveries_send(&deliveries, &buffer);
	TAP_OK(deliveries_find(&deliveries, b->number) == b &&
		   deliveries_find(&deliveries, a->number) == a &&
		   deliveries_find(&deliveries, 99) == NULL, "sent, and found by number");
	TAP_IS(deliveries.size, 51000, "sent bytes stay counted");
	TAP_OK(frame_next(&buffer, &frame) == FRAME_COMPLETE && frame_get_delivery(&frame, &delivery) &&
		   delivery.number == b->number && delivery.body_length == 50000 && delivery.arrived_at == 1,
		   "first come, first sent");
	TAP_OK(frame_next(&buffer, &frame) == FRAME_COMPLETE && frame_get_delivery(&frame, &delivery) &&
		   delivery.number == a->number, "then the other");

	deliveries_forget(&deliveries, b);
	TAP_OK(deliveries.size == 1000 && deliveries.pending == 1 &&
		   deliveries_find(&deliveries, 1) == NULL, "answered");
	deliveries_forget(&deliveries, b);
	TAP_IS(deliveries.pending, 1, "forgetting twice does no harm");
	deliveries_forget(&deliveries, a);

	/* a long body that finds no room half-way */
	a->guard.content_length = 40000;
	b->guard.content_length = 40000;
	TAP_OK(deliveries_begin(&deliveries, a) && deliveries_begin(&deliveries, b), "two long ones");
	TAP_OK(append(a, 40000) && !append(b, 40000), "the second finds no room");
	TAP_IS(deliveries.size, 40000, "and gives up what it had");

	/* forgotten before it was sent */
	TAP_OK(deliveries_submit(&deliveries, a, 4), "submitted");
	deliveries_forget(&deliveries, a);
	deliveries_send(&deliveries, &buffer);
	TAP_IS(frame_buffer_length(&buffer), 0, "a forgotten delivery is not sent");
	TAP_OK(deliveries.size == 0 && deliveries.pending == 0, "nothing is counted in the end");

	connection_free(a);
	connection_free(b);
	connection_free(c);
	frame_buffer_free(&buffer);
}

static void
test_connections(void)
{
	ConnectionList clients = {NULL, NULL};
	ConnectionList waiting = {NULL, NULL};
	struct sockaddr_in in = {0};
	struct sockaddr_in6 in6 = {0};
	Connection *a;
	Connection *b;

	in.sin_family = AF_INET;
	in.sin_addr.s_addr = htonl(0x7f000001);
	in6.sin6_family = AF_INET6;
	in6.sin6_addr.s6_addr[10] = in6.sin6_addr.s6_addr[11] = 0xff;
	in6.sin6_addr.s6_addr[12] = 10;
	a = connection_create((struct sockaddr *) &in);
	b = connection_create((struct sockaddr *) &in6);
	TAP_OK(a->address.family == 4 && a->address.bytes[0] == 127, "an IPv4 address");
	TAP_OK(b->address.family == 4 && b->address.bytes[0] == 10, "an IPv4 address in IPv6");

	connection_wait(a, &clients, 100);
	connection_wait(b, &clients, 200);
	TAP_IS(connections_deadline(&clients, 50), 150, "the oldest expires first");
	TAP_OK(connections_expired(&clients, 50, 149) == NULL &&
		   connections_expired(&clients, 50, 150) == a, "at its time");
	connection_wait(a, &clients, 300);
	TAP_OK(connections_expired(&clients, 50, 1000) == b, "waiting anew goes to the end");
	connection_wait(b, &waiting, 400);
	TAP_OK(clients.first == a && clients.last == a && waiting.first == b, "from one list to the other");
	connection_free(a);
	connection_free(b);
	TAP_OK(clients.first == NULL && clients.last == NULL && waiting.first == NULL, "freed");
	TAP_IS(connections_deadline(&clients, 50), -1, "nobody expires");

	in6.sin6_addr.s6_addr[0] = 0x20;
	a = connection_create((struct sockaddr *) &in6);
	TAP_OK(a->address.family == 6 && a->address.bytes[0] == 0x20, "an IPv6 address");
	connection_free(a);
}

int
main(void)
{
	test_paths();
	test_rejections();
	test_deliveries();
	test_connections();
	return tap_done();
}
