/*
 * receiver.c
 *	  The background worker that verifies and stores deliveries.
 *
 * One receiver serves one database, connected as banked_webhooks_worker.  It
 * holds the listening sockets and has one child, the gateway, which speaks HTTP
 * and sends it deliveries.  Each turn of its loop it reads what the gateway
 * has sent, stores that as one batch (batch.c), answers, and notifies: the
 * batch is whatever came while the one before was stored, so it grows with load
 * by itself, and there is no timer.
 *
 * The gateway speaks to the Internet and is not trusted.  It is replaced when
 * it dies, when it sends what is not a frame, and when it does not answer a
 * ping; no other process notices.
 *
 * Between batches the receiver never waits for anything but its latch, its
 * socket and its timers, and is in no transaction.  Errors that are expected
 * are caught where they happen; any other ends the process, and the launcher
 * starts a new one.
 */
#include "postgres.h"

#include <malloc.h>

#include "access/xact.h"
#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "batch.h"
#include "counters.h"
#include "endpoint_cache.h"
#include "event_store.h"
#include "gateway_process.h"
#include "handlers/scheduler.h"
#include "notify.h"
#include "quarantine.h"
#include "receiver.h"
#include "rejection_log.h"
#include "settings.h"
#include "statements.h"
#include "tls_files.h"

/* Milliseconds. */
#define PING_AFTER 250			/* of silence */
#define PING_TIMEOUT 500
#define LISTEN_RETRY 1000
#define GATEWAY_RETRY_FIRST 100
#define GATEWAY_RETRY_LAST 800	/* for one that worked */
#define GATEWAY_RETRY_NEVER_READY 10000 /* for one that does not even start */
#define GATEWAY_SETTLED_AFTER 1000
#define DRAIN_TIME 800
#define LOOK_LOCK_TIMEOUT 200	/* for the receiver's own look-ups */
#define LOOK_RETRY 1000			/* when one of them failed */

/* After a row of quarantine was tried again, for so many times as long as that took none is. */
#define RETRY_SHARE 4

/* An arrival that the gateway reports is believed when it is no older than this. */
#define MAX_ARRIVAL_AGE (60 * USECS_PER_SEC)

/* Free memory that malloc may keep, in bytes. */
#define MALLOC_KEEP (16 * 1024 * 1024)

/* Buffers that grew beyond this are given back when they are empty. */
#define KEEP_BUFFER (1024 * 1024)

typedef struct Receiver
{
	Listeners	listeners;
	TimestampTz listen_at;		/* when to try to listen */
	char	   *listen_problem; /* that was reported last, null after success */
	int			listen_failures;	/* in a row */
	Gateway		gateway;
	TimestampTz gateway_at;		/* when to start a gateway */
	int			gateway_failures;	/* gateways in a row that ended soon */
	WaitEventSet *wait_set;		/* null: to be made anew */
	int			link_position;	/* of the link in it */
	bool		link_writable_wanted;
	uint64		generation;		/* that the service was last checked at */
	TimestampTz check_at;		/* when to check again regardless */
	char	   *database_settings;	/* see read_database_settings */
	TimestampTz last_received_at;
	TimestampTz retry_at;		/* when a row of quarantine is due: look then; a latch may mean sooner */
	TimestampTz retry_not_before;
	TimestampTz stats_at;		/* when to report statistics that were held back */
	TimestampTz refresh_at;		/* when to read the endpoints again after a failure */
	uint64		paths_version;	/* of the endpoint cache, as the gateway has it */
	MemoryContext turn_context; /* reset each turn */
	Delivery   *deliveries;		/* room for max_batch of them */
	int			delivery_room;
	ConfigFrame config;			/* as the gateway has it */
} Receiver;

static Receiver receiver = {.stats_at = DT_NOEND};

static Statement read_paused = {
	.sql = "SELECT paused FROM banked.service_state"
};

/* What ALTER DATABASE and ALTER ROLE ... SET have set for this session: it can only be read at connect. */
static Statement read_database_settings = {
	.sql = "SELECT coalesce(string_agg(setdatabase || ':' || setrole || ':' || setconfig::text, ';' "
	"ORDER BY setdatabase, setrole), '') FROM pg_db_role_setting "
	"WHERE setdatabase IN (0, $1) AND setrole IN (0, $2)",
	.nargs = 2,
	.argtypes = {OIDOID, OIDOID}
};

static TimestampTz
in_milliseconds(int milliseconds)
{
	return TimestampTzPlusMilliseconds(GetCurrentTimestamp(), milliseconds);
}

static void
receiver_exit(int code, Datum arg)
{
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	my_slot->pid = 0;
	my_slot->latch = NULL;
	my_slot->listening_since = 0;
	my_slot->port = 0;
	my_slot->tls_port = 0;
	counters_wake_launcher();
	LWLockRelease(shared_state->lock);
}

/* Takes over the slot that the launcher gave, and connects. */
static void
attach(int index)
{
	my_slot = &shared_state->slots[index];
	before_shmem_exit(receiver_exit, 0);
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	my_slot->pid = MyProcPid;
	my_slot->latch = MyLatch;
	my_slot->starting = false;
	my_slot->started_at = GetCurrentTimestamp();
	LWLockRelease(shared_state->lock);

	BackgroundWorkerInitializeConnectionByOid(my_slot->database, my_slot->role, 0);
}

/* Ends this process until the generation moves on. */
static void
park(ParkReason reason)
{
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	my_slot->parked_at = receiver.generation;
	my_slot->park_reason = reason;
	LWLockRelease(shared_state->lock);
}

static bool
is_paused(void)
{
	bool		isnull;

	if (!OidIsValid(statements_relation("service_state")))
		return false;
	(void) statements_run(&read_paused, NULL, NULL, 1);
	return SPI_processed == 1 &&
		DatumGetBool(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull));
}

static char *
get_database_settings(void)
{
	Datum		values[2] = {ObjectIdGetDatum(MyDatabaseId), ObjectIdGetDatum(my_slot->role)};
	bool		isnull;
	Datum		settings;

	(void) statements_run(&read_database_settings, values, NULL, 1);
	settings = SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc, 1, &isnull);
	return MemoryContextStrdup(TopMemoryContext, TextDatumGetCString(settings));
}

/* What a look at the database says about this receiver. */
static struct
{
	ParkReason	park;
	char	   *settings;
}			service;

static void
look_at_service(void)
{
	Identity	before;

	service.park = PARK_NONE;
	service.settings = NULL;
	if (!statements_extension_exists())
	{
		service.park = PARK_NO_EXTENSION;
		return;
	}
	SPI_connect();
	statements_become_owner(&before);
	if (is_paused())
		service.park = PARK_PAUSED;
	service.settings = get_database_settings();
	statements_restore(&before);
	SPI_finish();
}

/*
 * Is this receiver still to run as it does?  When not it has parked, or is
 * to be started again with the settings that its database has now.
 */
static bool
check_service(void)
{
	bool		unchanged;

	receiver.generation = pg_atomic_read_u64(&shared_state->generation);
	receiver.check_at = DT_NOEND;
	if (!batch_run(look_at_service, LOOK_LOCK_TIMEOUT))
	{
		receiver.check_at = in_milliseconds(LOOK_RETRY);
		return true;
	}
	if (service.park != PARK_NONE)
	{
		park(service.park);
		return false;
	}
	if (receiver.database_settings == NULL)
	{
		receiver.database_settings = service.settings;
		return true;
	}
	unchanged = strcmp(service.settings, receiver.database_settings) == 0;
	pfree(service.settings);
	if (!unchanged)
	{
		LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
		my_slot->restarting = true;
		LWLockRelease(shared_state->lock);
	}
	return unchanged;
}

static void
note_listening(void)
{
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	my_slot->listening_since = GetCurrentTimestamp();
	LWLockRelease(shared_state->lock);
}

static void
forget_listen_problem(void)
{
	receiver.listen_failures = 0;
	if (receiver.listen_problem != NULL)
		pfree(receiver.listen_problem);
	receiver.listen_problem = NULL;
}

/*
 * One line for each problem that is not the last one again.  A second receiver
 * of a database fails once in the normal course of things: the first one must
 * open its sockets anew before they can be shared.
 */
static void
report_listen_problem(const char *problem)
{
	if (receiver.listen_failures++ == 0 && my_slot->number > 0)
		return;
	if (receiver.listen_problem != NULL && strcmp(receiver.listen_problem, problem) == 0)
		return;
	ereport(LOG,
			(errcode(ERRCODE_OBJECT_IN_USE),
			 errmsg("cannot receive webhooks: %s", problem),
			 errhint("This is tried again until it succeeds.")));
	if (receiver.listen_problem != NULL)
		pfree(receiver.listen_problem);
	receiver.listen_problem = MemoryContextStrdup(TopMemoryContext, problem);
}

/* Opens the sockets, or says once why it cannot and tries again later. */
static void
start_listening(void)
{
	char	   *problem = NULL;

	if (listeners_open(&receiver.listeners, tls_files_port(), &problem))
	{
		note_listening();
		forget_listen_problem();
		receiver.gateway_at = 0;
		ereport(LOG,
				(receiver.listeners.tls_port == 0 ?
				 errmsg("receiving webhooks on \"%s\", port %d",
						receiver.listeners.addresses, receiver.listeners.port) :
				 errmsg("receiving webhooks on \"%s\", port %d, and by HTTPS on port %d",
						receiver.listeners.addresses, receiver.listeners.port,
						receiver.listeners.tls_port)));
		return;
	}
	report_listen_problem(problem);
	receiver.listen_at = in_milliseconds(LISTEN_RETRY);
}

static void
forget_wait_set(void)
{
	if (receiver.wait_set != NULL)
		FreeWaitEventSet(receiver.wait_set);
	receiver.wait_set = NULL;
}

/* A gateway has ended or could not be started: says when the next one is. */
static void
schedule_gateway(bool settled, bool was_ready)
{
	int			delay;

	receiver.gateway_failures = settled ? 0 : receiver.gateway_failures + 1;
	delay = GATEWAY_RETRY_FIRST << Min(Max(receiver.gateway_failures - 3, 0), 10);
	receiver.gateway_at = receiver.gateway_failures <= 2 ? 0 :
		in_milliseconds(Min(delay, was_ready ? GATEWAY_RETRY_LAST : GATEWAY_RETRY_NEVER_READY));
}

/* Says in one line why the gateway is replaced, and arranges for that. */
static void
replace_gateway(const char *reason)
{
	Gateway    *gateway = &receiver.gateway;
	pid_t		pid = gateway->pid;
	bool		was_ready = gateway->ready;
	bool		settled = TimestampDifferenceExceeds(gateway->started_at, GetCurrentTimestamp(),
													 GATEWAY_SETTLED_AFTER);
	char	   *end;

	forget_wait_set();
	end = gateway_stop(gateway);
	COUNT(gateway_restarts, 1);
	ereport(LOG,
			(errmsg("gateway of webhooks (PID %d) %s, starting another one",
					(int) pid, reason != NULL ? reason : end)));

	schedule_gateway(settled, was_ready);

	/* It shared the sockets, and may have been made to shut them down. */
	if (!listeners_are_listening(&receiver.listeners))
	{
		listeners_close(&receiver.listeners);
		receiver.listen_at = 0;
	}
}

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
send_config(bool always)
{
	ConfigFrame config = current_config();

	if (!always && memcmp(&config, &receiver.config, sizeof(config)) == 0)
		return;
	receiver.config = config;
	(void) frame_put_config(&receiver.gateway.out, &config);
}

/* Sends what HTTPS is served with, when it is served. */
static void
send_tls(void)
{
	if (receiver.listeners.tls_port != 0)
		receiver.gateway.secret_sent = tls_files_put(&receiver.gateway.out);
}

/* Writes to the gateway what it takes now. */
static void
flush_gateway(void)
{
	Gateway    *gateway = &receiver.gateway;

	(void) frame_buffer_write(&gateway->out, gateway->link);
	if (gateway->secret_sent && frame_buffer_length(&gateway->out) == 0)
	{
		frame_buffer_cleanse(&gateway->out);
		gateway->secret_sent = false;
	}
}

static void
send_paths(void)
{
	Size		count;
	PathEntry  *paths = endpoint_cache_paths(&count);

	(void) frame_put_paths(&receiver.gateway.out, paths, count);
	receiver.paths_version = endpoint_cache_version();
}

/* Brings the endpoint cache up to date, outside of a batch. */
static void
refresh_endpoints(void)
{
	receiver.refresh_at = 0;
	if (!batch_run(endpoint_cache_refresh, LOOK_LOCK_TIMEOUT))
		receiver.refresh_at = in_milliseconds(LOOK_RETRY);
}

static void
start_gateway(void)
{
	if (!gateway_start(&receiver.gateway, &receiver.listeners))
	{
		schedule_gateway(false, false);
		return;
	}
	send_config(true);
	send_tls();
	send_paths();
}

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
	if (arrived <= receiver.last_received_at)
		arrived = receiver.last_received_at + 1;
	receiver.last_received_at = arrived;
	return arrived;
}

static void
add_delivery(int index, const DeliveryFrame *frame, TimestampTz now)
{
	Delivery   *delivery = &receiver.deliveries[index];

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
	Gateway    *gateway = &receiver.gateway;

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
take_frame(const Frame *frame, int *delivery_count, Size *delivery_bytes, TimestampTz now)
{
	DeliveryFrame delivery;
	RejectionFrame rejection;
	StatusFrame status;
	HelloFrame	hello;

	switch (frame->type)
	{
		case FRAME_HELLO:
			receiver.gateway.ready = frame_get_hello(frame, &hello);
			return receiver.gateway.ready;
		case FRAME_DELIVERY:
			if (!frame_get_delivery(frame, &delivery))
				return false;
			add_delivery((*delivery_count)++, &delivery, now);
			*delivery_bytes += delivery.body_length;
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

/*
 * Takes frames off the buffer until it holds no complete one or the batch is
 * full.  Returns false when the gateway has sent something else.
 */
static bool
take_frames(int *delivery_count)
{
	TimestampTz now = GetCurrentTimestamp();
	Size		bytes = 0;
	Frame		frame;

	*delivery_count = 0;
	while (*delivery_count < receiver.delivery_room &&
		   bytes < (Size) bw_max_batch_size * 1024)
	{
		switch (frame_next(&receiver.gateway.in, &frame))
		{
			case FRAME_INCOMPLETE:
				return true;
			case FRAME_MALFORMED:
				return false;
			case FRAME_COMPLETE:
				receiver.gateway.ping_outstanding = false;
				if (!take_frame(&frame, delivery_count, &bytes, now))
					return false;
				break;
		}
	}
	return true;
}

/* PostgreSQL takes statistics once a second at most; autovacuum must see the last ones of a burst too. */
static void
report_stats(void)
{
	long		held_back = pgstat_report_stat(false);

	receiver.stats_at = held_back > 0 ? in_milliseconds(held_back) : DT_NOEND;
}

static void
send_answers(Delivery **deliveries, int count)
{
	AnswerEntry *answers = palloc(sizeof(AnswerEntry) * count);

	for (int i = 0; i < count; i++)
	{
		answers[i].number = deliveries[i]->number;
		answers[i].status = delivery_status(deliveries[i]);
	}
	(void) frame_put_answers(&receiver.gateway.out, answers, count);
	(void) frame_buffer_write(&receiver.gateway.out, receiver.gateway.link);
	pfree(answers);
}

/* Stores the deliveries taken, answers them, and does what can wait until then. */
static void
run_batch(int count)
{
	bool		stored = false;

	pgstat_report_activity(STATE_RUNNING, "storing webhooks");
	batch_store(receiver.deliveries, count, send_answers);
	MemoryContextSwitchTo(receiver.turn_context);

	for (int i = 0; i < count; i++)
	{
		Delivery   *delivery = &receiver.deliveries[i];

		stored |= delivery->authentic;
		if (delivery_was_refused(delivery))
			rejection_log_add(delivery->rejection, &delivery->address, delivery->path,
							  delivery->path_length, 1);
	}
	notify_send_collected();
	if (stored)
		batch_clean_session();
	report_stats();
	pgstat_report_activity(STATE_IDLE, NULL);
}

/* Makes room for max_batch deliveries. */
static void
fit_delivery_room(void)
{
	if (receiver.delivery_room == bw_max_batch)
		return;
	if (receiver.deliveries != NULL)
		pfree(receiver.deliveries);
	receiver.deliveries = MemoryContextAlloc(TopMemoryContext, sizeof(Delivery) * bw_max_batch);
	receiver.delivery_room = bw_max_batch;
}

/* Reads what the gateway has sent and works it off. */
static void
serve_gateway(void)
{
	Gateway    *gateway = &receiver.gateway;
	FrameIoResult io;
	int			count;

	io = frame_buffer_read(&gateway->in, gateway->link, (Size) bw_max_batch_size * 1024);
	if (io == FRAME_IO_CLOSED || io == FRAME_IO_ERROR)
	{
		replace_gateway(NULL);
		return;
	}
	if (io == FRAME_IO_OK)
	{
		gateway->heard_at = GetCurrentTimestamp();
	}
	do
	{
		if (!take_frames(&count))
		{
			replace_gateway("sent a malformed frame");
			return;
		}
		if (count > 0)
		{
			run_batch(count);
			MemoryContextReset(receiver.turn_context);
		}
		CHECK_FOR_INTERRUPTS();
	} while (count > 0 && !batch_shutdown_requested);
	frame_buffer_compact(&gateway->in, KEEP_BUFFER);
	frame_buffer_compact(&gateway->out, KEEP_BUFFER);
}

/*
 * Pings a silent gateway, and replaces one that does not answer.  waited is how
 * long this turn has waited for it in vain, in microseconds; time that the
 * receiver spent otherwise says nothing about the gateway.
 */
static void
watch_gateway(int64 waited)
{
	Gateway    *gateway = &receiver.gateway;

	if (gateway->ping_outstanding)
	{
		gateway->silence += waited;
		if (gateway->silence >= PING_TIMEOUT * 1000)
			replace_gateway("does not answer");
	}
	else if (TimestampDifferenceExceeds(gateway->heard_at, GetCurrentTimestamp(), PING_AFTER))
	{
		gateway->ping_outstanding = frame_put_ping(&gateway->out, ++gateway->pings);
		gateway->silence = 0;
	}
}

static int64 due_retry;

static void
find_due_retry(void)
{
	due_retry = quarantine_next_attempt(&receiver.retry_at);
}

static void
retry_quarantine(void)
{
	TimestampTz start = GetCurrentTimestamp();
	bool		tried;

	if (!batch_run(find_due_retry, LOOK_LOCK_TIMEOUT))
	{
		receiver.retry_at = in_milliseconds(LOOK_RETRY);
		return;
	}
	if (due_retry == 0)
		return;

	pgstat_report_activity(STATE_RUNNING, "trying quarantined webhooks again");
	tried = batch_retry(due_retry);
	MemoryContextSwitchTo(receiver.turn_context);
	notify_send_collected();
	batch_clean_session();
	report_stats();
	pgstat_report_activity(STATE_IDLE, NULL);

	/* Deliveries come first: most of the time is theirs. */
	receiver.retry_at = tried ? 0 : in_milliseconds(LOOK_RETRY);
	receiver.retry_not_before = GetCurrentTimestamp() +
		RETRY_SHARE * (GetCurrentTimestamp() - start);
}

static void
reload_settings(void)
{
	ConfigReloadPending = false;
	ProcessConfigFile(PGC_SIGHUP);
	fit_delivery_room();
	endpoint_cache_retry_unreadable();
	if (receiver.gateway.pid != 0)
		send_config(false);
	if (tls_files_load() && receiver.gateway.pid != 0)
		send_tls();
}

/*
 * Lets the gateway answer what it still can: what was stored by its status,
 * everything else by 503.
 */
static void
drain(void)
{
	Gateway    *gateway = &receiver.gateway;
	TimestampTz until = in_milliseconds(DRAIN_TIME);
	char		discarded[8192];
	bool		told;

	if (gateway->pid == 0)
		return;
	told = frame_put_drain(&gateway->out);
	while (told)
	{
		int			events = WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | WL_TIMEOUT | WL_SOCKET_READABLE;
		long		timeout = TimestampDifferenceMilliseconds(GetCurrentTimestamp(), until);
		ssize_t		n;

		(void) frame_buffer_write(&gateway->out, gateway->link);
		if (timeout <= 0)
			break;
		if (frame_buffer_length(&gateway->out) > 0)
			events |= WL_SOCKET_WRITEABLE;
		(void) WaitLatchOrSocket(MyLatch, events, gateway->link, timeout, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();

		/* What it sends now gets no answer of ours: it answers 503 itself. */
		do
			n = recv(gateway->link, discarded, sizeof(discarded), 0);
		while (n > 0 && GetCurrentTimestamp() < until);
		if (n == 0 || (n < 0 && errno != EAGAIN && errno != EWOULDBLOCK && errno != EINTR))
			break;
	}
	forget_wait_set();
	pfree(gateway_stop(gateway));
}

/* Ends a gateway that was started under another setting: the loop starts one under this. */
static void
follow_sandbox_setting(void)
{
	if (receiver.gateway.pid == 0 || receiver.gateway.sandbox == bw_gateway_sandbox)
		return;
	drain();
	receiver.gateway_at = 0;
}

/* Stops listening when the settings name other addresses now: the loop opens them. */
static void
follow_listen_settings(void)
{
	receiver.listen_at = 0;
	if (receiver.listeners.count == 0 || listeners_are_current(&receiver.listeners, tls_files_port()))
		return;
	drain();
	listeners_close(&receiver.listeners);
}

static TimestampTz
retry_time(void)
{
	return Max(receiver.retry_at, receiver.retry_not_before);
}

/* Everything that is due by now.  False when the receiver is to end. */
static bool
do_what_is_due(void)
{
	if (ConfigReloadPending)
	{
		reload_settings();
		follow_listen_settings();
		follow_sandbox_setting();
	}
	if ((receiver.generation != pg_atomic_read_u64(&shared_state->generation) ||
		 GetCurrentTimestamp() >= receiver.check_at) && !check_service())
		return false;
	if (!endpoint_cache_is_current() && GetCurrentTimestamp() >= receiver.refresh_at)
		refresh_endpoints();
	if (receiver.listeners.count == 0 && GetCurrentTimestamp() >= receiver.listen_at)
		start_listening();
	if (receiver.listeners.count > 0 && receiver.gateway.pid == 0 &&
		GetCurrentTimestamp() >= receiver.gateway_at)
		start_gateway();
	if (receiver.gateway.pid != 0 && receiver.paths_version != endpoint_cache_version())
		send_paths();
	if (my_slot->number == 0 && GetCurrentTimestamp() >= retry_time())
		retry_quarantine();
	if (GetCurrentTimestamp() >= rejection_log_due_at())
		rejection_log_write();
	if (GetCurrentTimestamp() >= receiver.stats_at)
		report_stats();
	MemoryContextSwitchTo(receiver.turn_context);
	return true;
}

static TimestampTz
earlier(TimestampTz a, TimestampTz b)
{
	return a < b ? a : b;
}

/* How long to wait when nothing happens, in milliseconds. */
static long
wait_time(void)
{
	TimestampTz until = earlier(earlier(rejection_log_due_at(), receiver.check_at), receiver.stats_at);
	Gateway    *gateway = &receiver.gateway;

	if (receiver.refresh_at != 0)
		until = earlier(until, receiver.refresh_at);

	if (my_slot->number == 0)
		until = earlier(until, earlier(retry_time(), scheduler_due_at()));
	if (receiver.listeners.count == 0)
		until = earlier(until, receiver.listen_at);
	else if (gateway->pid == 0)
		until = earlier(until, receiver.gateway_at);
	else if (gateway->ping_outstanding)
		until = earlier(until, in_milliseconds(PING_TIMEOUT + 1 - gateway->silence / 1000));
	else
		until = earlier(until, TimestampTzPlusMilliseconds(gateway->heard_at, PING_AFTER + 1));

	if (TIMESTAMP_NOT_FINITE(until))
		return -1;
	return TimestampDifferenceMilliseconds(GetCurrentTimestamp(), until);
}

static void
make_wait_set(void)
{
	receiver.wait_set = CreateWaitEventSet(TopMemoryContext, 3);
	AddWaitEventToSet(receiver.wait_set, WL_LATCH_SET, PGINVALID_SOCKET, MyLatch, NULL);
	AddWaitEventToSet(receiver.wait_set, WL_EXIT_ON_PM_DEATH, PGINVALID_SOCKET, NULL, NULL);
	receiver.link_position = -1;
	receiver.link_writable_wanted = false;
	if (receiver.gateway.pid != 0)
		receiver.link_position = AddWaitEventToSet(receiver.wait_set, WL_SOCKET_READABLE,
												   receiver.gateway.link, NULL, NULL);
}

/*
 * Waits for latch, link and timers.  Returns whether the link can be read;
 * *waited says how many microseconds that took.
 */
static bool
wait_for_events(int64 *waited)
{
	WaitEvent	events[3];
	bool		link_readable = false;
	TimestampTz start;
	bool		writable_wanted = receiver.gateway.pid != 0 &&
	frame_buffer_length(&receiver.gateway.out) > 0;
	int			count;

	if (receiver.wait_set != NULL && (receiver.link_position >= 0) != (receiver.gateway.pid != 0))
		forget_wait_set();
	if (receiver.wait_set == NULL)
		make_wait_set();
	if (receiver.link_position >= 0 && writable_wanted != receiver.link_writable_wanted)
	{
		ModifyWaitEvent(receiver.wait_set, receiver.link_position,
						WL_SOCKET_READABLE | (writable_wanted ? WL_SOCKET_WRITEABLE : 0), NULL);
		receiver.link_writable_wanted = writable_wanted;
	}

	start = GetCurrentTimestamp();
	count = WaitEventSetWait(receiver.wait_set, wait_time(), events, lengthof(events),
							 PG_WAIT_EXTENSION);
	*waited = GetCurrentTimestamp() - start;
	for (int i = 0; i < count; i++)
	{
		if (events[i].events & WL_LATCH_SET)
		{
			ResetLatch(MyLatch);
			receiver.retry_at = 0;
		}
		if (events[i].events & WL_SOCKET_READABLE)
			link_readable = true;
	}
	return link_readable;
}

static void
main_loop(void)
{
	while (!batch_shutdown_requested)
	{
		bool		link_readable;
		int64		waited;

		MemoryContextSwitchTo(receiver.turn_context);
		MemoryContextReset(receiver.turn_context);
		if (!do_what_is_due())
			return;
		if (receiver.gateway.pid != 0)
			flush_gateway();
		/* Handlers come last: the gateway has its news by now. */
		if (my_slot->number == 0)
			scheduler_run(receiver.generation);

		link_readable = wait_for_events(&waited);
		CHECK_FOR_INTERRUPTS();
		if (link_readable && !batch_shutdown_requested)
			serve_gateway();
		if (receiver.gateway.pid != 0)
			watch_gateway(waited);
	}
}

void
banked_webhooks_receiver_main(Datum arg)
{
	/* A batch takes and gives back some megabytes: not from and to the system each time. */
	(void) mallopt(M_TRIM_THRESHOLD, MALLOC_KEEP);
	(void) mallopt(M_MMAP_THRESHOLD, MALLOC_KEEP);
	(void) mallopt(M_TOP_PAD, 1024 * 1024);

	batch_init();
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGPIPE, SIG_IGN);
	BackgroundWorkerUnblockSignals();

	attach(DatumGetInt32(arg));
	SetConfigOption("application_name", MyBgworkerEntry->bgw_type, PGC_USERSET, PGC_S_OVERRIDE);
	batch_init_session();
	gateway_init(&receiver.gateway);
	receiver.turn_context = AllocSetContextCreate(TopMemoryContext, "banked_webhooks batch",
												  ALLOCSET_DEFAULT_SIZES);
	pgstat_report_activity(STATE_IDLE, NULL);

	if (!check_service())
		proc_exit(0);
	fit_delivery_room();
	(void) tls_files_load();
	main_loop();
	listeners_close(&receiver.listeners);
	drain();
	proc_exit(0);
}
