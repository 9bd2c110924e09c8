/*
 * receiver.c
 *	  The background worker that verifies and stores deliveries.
 *
 * One receiver serves one database, connected as banked_webhooks_worker.  It
 * holds the listening sockets and has one child, the gateway, which speaks HTTP
 * and sends it deliveries.  Each turn of its loop it reads what the gateway
 * has sent, stores that or a part of it (batch_size.c) as one batch (batch.c),
 * answers, and notifies: batches grow with load by themselves, and there is no
 * timer.
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

#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "batch.h"
#include "batch_size.h"
#include "counters.h"
#include "endpoint_cache.h"
#include "gateway_link.h"
#include "gateway_process.h"
#include "handlers/scheduler.h"
#include "notify.h"
#include "quarantine.h"
#include "receiver.h"
#include "rejection_log.h"
#include "service.h"
#include "settings.h"
#include "tls_files.h"
#include "transaction.h"

/* Milliseconds. */
#define PING_AFTER 250			/* of silence */
#define STATUS_EVERY 1000		/* a gateway is asked what it counts, however much it says */
#define PING_TIMEOUT 500
#define LISTEN_RETRY 1000
#define GATEWAY_RETRY_FIRST 100
#define GATEWAY_RETRY_LAST 800	/* for one that worked */
#define GATEWAY_RETRY_NEVER_READY 10000 /* for one that does not even start */
#define GATEWAY_SETTLED_AFTER 1000
#define DRAIN_TIME 800
#define LOOK_RETRY 1000			/* when a look-up of the receiver's own failed */

/* Microseconds: a shorter wait is no more than a look. */
#define IDLE_AFTER 20

/* After a row of quarantine was tried again, for so many times as long as that took none is. */
#define RETRY_SHARE 4

/* Free memory that malloc may keep, in bytes. */
#define MALLOC_KEEP (16 * 1024 * 1024)

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
	TimestampTz retry_at;		/* when a row of quarantine is due: look then; a latch may mean sooner */
	TimestampTz retry_not_before;
	TimestampTz stats_at;		/* when to report statistics that were held back */
	TimestampTz refresh_at;		/* when to read the endpoints again after a failure */
	MemoryContext turn_context; /* reset each turn */
} Receiver;

static Receiver receiver = {.stats_at = DT_NOEND};

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

	service_connecting();
	BackgroundWorkerInitializeConnectionByOid(my_slot->database, my_slot->role, 0);
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

/* Brings the endpoint cache up to date, outside of a batch. */
static void
refresh_endpoints(void)
{
	receiver.refresh_at = 0;
	if (!batch_run(endpoint_cache_refresh))
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
	gateway_link_greet(receiver.listeners.tls_port != 0);
}

/*
 * PostgreSQL takes statistics once a second at most, by the end of the last
 * transaction; autovacuum must see the last ones of a burst too.  So those that
 * were held back are forced out when they are due: no transaction may follow.
 */
static void
report_stats(bool due)
{
	long		held_back = pgstat_report_stat(due);

	receiver.stats_at = held_back > 0 ? in_milliseconds(held_back) : DT_NOEND;
}

/* Stores the deliveries taken, answers them, and does what can wait until then. */
static void
run_batch(Delivery *deliveries, int count)
{
	bool		stored = false;

	pgstat_report_activity(STATE_RUNNING, "storing webhooks");
	batch_store(deliveries, count, gateway_link_answer);
	MemoryContextSwitchTo(receiver.turn_context);

	for (int i = 0; i < count; i++)
	{
		Delivery   *delivery = &deliveries[i];

		stored |= delivery->authentic;
		if (delivery_was_refused(delivery))
			rejection_log_add(delivery->rejection, &delivery->address, delivery->path,
							  delivery->path_length, 1);
	}
	notify_send_collected();
	if (stored)
		transaction_clean_session();
	report_stats(false);
	pgstat_report_activity(STATE_IDLE, NULL);
}

/*
 * Reads what the gateway has sent, and works off a batch of it.  waited is how
 * long there was nothing of it, in microseconds.
 */
static void
serve_gateway(bool link_readable, int64 waited)
{
	Counters   *counters = &my_slot->counters;
	uint64		store_time = pg_atomic_read_u64(&counters->store_time);
	uint64		commit_time = pg_atomic_read_u64(&counters->commit_time);
	Size		waiting;
	Delivery   *deliveries;
	int			count;

	/* Of one that has died, what came before is worked off first. */
	if (link_readable && !gateway_link_read() && !gateway_link_has_more())
	{
		replace_gateway(NULL);
		return;
	}
	waiting = gateway_link_waiting();
	if (!gateway_link_take(batch_size_next(waiting, waited >= IDLE_AFTER), BATCH_SIZE_MIN_COUNT,
						   &deliveries, &count))
	{
		replace_gateway("sent a malformed frame");
		return;
	}
	if (count > 0)
	{
		run_batch(deliveries, count);
		store_time = pg_atomic_read_u64(&counters->store_time) - store_time;
		commit_time = pg_atomic_read_u64(&counters->commit_time) - commit_time;
		batch_size_learn(waiting - gateway_link_waiting(), store_time - commit_time, commit_time);
	}
	gateway_link_compact();
}

/*
 * Pings a silent gateway, and replaces one that does not answer.  waited is how
 * long this turn has waited for it in vain, in microseconds; time that the
 * receiver spent otherwise says nothing about the gateway.  The answer tells
 * what the gateway has counted: a busy one is asked too.
 */
static void
watch_gateway(int64 waited)
{
	Gateway    *gateway = &receiver.gateway;
	TimestampTz now;

	if (gateway->ping_outstanding)
	{
		gateway->silence += waited;
		if (gateway->silence >= PING_TIMEOUT * 1000)
			replace_gateway("does not answer");
		return;
	}
	now = GetCurrentTimestamp();
	if (TimestampDifferenceExceeds(gateway->heard_at, now, PING_AFTER) ||
		TimestampDifferenceExceeds(gateway->pinged_at, now, STATUS_EVERY))
	{
		gateway->ping_outstanding = frame_put_ping(&gateway->out);
		gateway->pinged_at = now;
		gateway->silence = 0;
	}
}

static int64 due_retry;

static void
find_due_retry(void)
{
	due_retry = quarantine_next_attempt(&receiver.retry_at);
}

/* A row that cannot be tried now, since somebody has locked what it needs, makes room for the others. */
static void
postpone_retry(void)
{
	quarantine_postpone(due_retry);
}

static void
retry_quarantine(void)
{
	TimestampTz start = GetCurrentTimestamp();
	bool		tried;

	if (!batch_run(find_due_retry))
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
	transaction_clean_session();
	report_stats(false);
	pgstat_report_activity(STATE_IDLE, NULL);

	/* Deliveries come first: most of the time is theirs. */
	receiver.retry_at = tried || batch_run(postpone_retry) ? 0 : in_milliseconds(LOOK_RETRY);
	receiver.retry_not_before = GetCurrentTimestamp() +
		RETRY_SHARE * (GetCurrentTimestamp() - start);
}

static void
reload_settings(void)
{
	ConfigReloadPending = false;
	ProcessConfigFile(PGC_SIGHUP);
	endpoint_cache_follow_settings();
	gateway_link_follow_settings();
	if (tls_files_load() && receiver.gateway.pid != 0 && receiver.listeners.tls_port != 0)
		gateway_link_send_tls();
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
	if (service_is_to_check() && !service_check())
		return false;
	if (!endpoint_cache_is_current() && GetCurrentTimestamp() >= receiver.refresh_at)
		refresh_endpoints();
	if (receiver.listeners.count == 0 && GetCurrentTimestamp() >= receiver.listen_at)
		start_listening();
	if (receiver.listeners.count > 0 && receiver.gateway.pid == 0 &&
		GetCurrentTimestamp() >= receiver.gateway_at)
		start_gateway();
	gateway_link_follow_endpoints();
	if (my_slot->number == 0 && GetCurrentTimestamp() >= retry_time())
		retry_quarantine();
	if (GetCurrentTimestamp() >= rejection_log_due_at())
		rejection_log_write();
	if (GetCurrentTimestamp() >= receiver.stats_at)
		report_stats(true);
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
	TimestampTz until = earlier(earlier(rejection_log_due_at(), service_check_at()), receiver.stats_at);
	Gateway    *gateway = &receiver.gateway;

	if (receiver.refresh_at != 0)
		until = earlier(until, receiver.refresh_at);

	if (my_slot->number == 0)
		until = earlier(until, earlier(retry_time(), scheduler_due_at()));
	if (receiver.listeners.count == 0)
		until = earlier(until, receiver.listen_at);
	else if (gateway->pid == 0)
		until = earlier(until, receiver.gateway_at);
	else if (gateway_link_has_more())
		return 0;
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
	while (!transaction_shutdown_requested)
	{
		bool		link_readable;
		int64		waited;

		MemoryContextSwitchTo(receiver.turn_context);
		MemoryContextReset(receiver.turn_context);
		if (!do_what_is_due())
			return;
		gateway_link_flush();
		/* Handlers come last: the gateway has its news by now. */
		if (my_slot->number == 0)
			scheduler_run(service_generation());

		link_readable = wait_for_events(&waited);
		CHECK_FOR_INTERRUPTS();
		if ((link_readable || gateway_link_has_more()) && !transaction_shutdown_requested)
			serve_gateway(link_readable, waited);
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

	transaction_init();
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGPIPE, SIG_IGN);
	BackgroundWorkerUnblockSignals();

	attach(DatumGetInt32(arg));
	SetConfigOption("application_name", MyBgworkerEntry->bgw_type, PGC_USERSET, PGC_S_OVERRIDE);
	transaction_init_session();
	batch_init();
	gateway_init(&receiver.gateway);
	receiver.turn_context = AllocSetContextCreate(TopMemoryContext, "banked_webhooks batch",
												  ALLOCSET_DEFAULT_SIZES);
	pgstat_report_activity(STATE_IDLE, NULL);

	if (!service_check())
		proc_exit(0);
	gateway_link_init(&receiver.gateway);
	(void) tls_files_load();
	main_loop();
	listeners_close(&receiver.listeners);
	drain();
	proc_exit(0);
}
