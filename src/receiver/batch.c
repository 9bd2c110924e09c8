/*
 * batch.c
 *	  Stores the deliveries that wait, in as few transactions as they allow.
 *
 * All deliveries of a batch are stored by one transaction with one commit.
 * When it fails, it is repeated with parts of the batch until the delivery
 * that made it fail is alone; the others are stored.  What becomes of the one
 * depends on the error (failure.h).
 *
 * A 200 is durable.  synchronous_commit is forced to the server's value, at
 * least "local", after the last deferred trigger; a transaction that found
 * only repetitions waits for disk and standby as the first one's did; and a
 * wait for a standby that was cut short by a signal makes all its 200s 503s,
 * since PostgreSQL reports such a commit as done.
 *
 * Users' triggers run in here.  They can raise, loop, wait, change settings,
 * catch cancellations and leave things behind in the session, and nothing of
 * that may reach another delivery.  No error text goes to the log: it may
 * quote a body.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "commands/prepare.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "batch.h"
#include "endpoint_cache.h"
#include "event_rows.h"
#include "event_store.h"
#include "examine.h"
#include "failure.h"
#include "notify.h"
#include "quarantine.h"
#include "settings.h"

/* Into how many parts a batch that failed is cut. */
#define PARTS 8

/* After so many transient failures in a row the rest of a batch is not tried. */
#define MAX_TRANSIENT_FAILURES 8

/* How long code that catches its cancellation is tolerated: so many further seconds. */
#define CANCEL_REPEATS 5

/* How long the next batches are stored with caution after a timeout, in milliseconds. */
#define CAUTIOUS_FOR 60000

/* How long work that is not a delivery's may wait for a lock, in milliseconds: deliveries wait meanwhile. */
#define WORK_LOCK_TIMEOUT 200

/* Log lines about deliveries and failures, at most so many a second. */
#define LOG_LINES_PER_SECOND 10

/* What a transaction does with its deliveries. */
typedef enum Step
{
	STEP_WRITE,					/* store them */
	STEP_KNOWN,					/* one that failed: a revision or repetition, else quarantine */
	STEP_QUARANTINE				/* one that failed: quarantine */
} Step;

typedef struct Batch
{
	BatchDecided decided;		/* null when nobody waits */
	Delivery  **suspects;		/* alone, and still too slow for a first attempt: last of all */
	int			suspect_count;
	int			signals_before; /* cancels, when the batch began */
	bool		in_transaction; /* the first attempt uses the transaction that judged them */
	int64		lock_budget;	/* milliseconds that may still be spent waiting for locks */
	int			lock_timeout;	/* of the next attempt, milliseconds */
	int			timeout;		/* of the next attempt, milliseconds */
	int			transient_failures; /* in a row */
	Failure		failure;		/* of the last attempt */
	int			sqlstate;
	const char *message;
} Batch;

volatile sig_atomic_t batch_shutdown_requested = false;

static volatile sig_atomic_t storing = false;	/* a transaction that may be cancelled runs */
static bool stores_deliveries = false;	/* its commit lets 200s out */
static volatile sig_atomic_t cancels = 0;	/* signals that may have cut a commit short */
static volatile sig_atomic_t timer_fired = 0;
static volatile sig_atomic_t timer_found_lock_wait = false;

static TimeoutId store_timer;
static int	commit_level = SYNCHRONOUS_COMMIT_LOCAL_FLUSH;	/* of the running transaction */
static int	group_limit = PG_INT32_MAX; /* deliveries per transaction, lower after a timeout */
static TimestampTz cautious_until = 0;	/* first attempts get little time: there was a timeout */
static TimestampTz patient_from = 0;	/* when a slow delivery may have its full time again */

static void
cancel_statement(void)
{
	InterruptPending = true;
	QueryCancelPending = true;
	SetLatch(MyLatch);
}

/* SIGTERM: shutdown, pg_terminate_backend, or the launcher. */
static void
handle_terminate(SIGNAL_ARGS)
{
	int			save_errno = errno;

	batch_shutdown_requested = true;
	cancels++;
	if (storing)
		cancel_statement();
	SetLatch(MyLatch);
	errno = save_errno;
}

/* SIGINT: pg_cancel_backend, or PostgreSQL's own lock timeout. */
static void
handle_cancel(SIGNAL_ARGS)
{
	int			save_errno = errno;

	if (!get_timeout_indicator(LOCK_TIMEOUT, false))
		cancels++;
	if (storing)
		cancel_statement();
	errno = save_errno;
}

/*
 * The batch takes too long.  Code that catches the cancellation is cancelled
 * again every second, and ended with the process at last.
 */
static void
handle_store_timer(void)
{
	uint32		wait_event = my_wait_event_info ? *my_wait_event_info : 0;

	if (timer_fired == 0)
		timer_found_lock_wait = (wait_event & 0xFF000000) == PG_WAIT_LOCK;
	timer_fired++;
	if (timer_fired > CANCEL_REPEATS)
		ProcDiePending = true;
	cancel_statement();
}

static const char *
commit_level_name(int level)
{
	switch (level)
	{
		case SYNCHRONOUS_COMMIT_REMOTE_WRITE:
			return "remote_write";
		case SYNCHRONOUS_COMMIT_REMOTE_FLUSH:
			return "on";
		case SYNCHRONOUS_COMMIT_REMOTE_APPLY:
			return "remote_apply";
		default:
			return "local";
	}
}

/* Just before the commit, when the last deferred trigger has run. */
static void
before_commit(XactEvent event, void *arg)
{
	if (event != XACT_EVENT_PRE_COMMIT || !storing)
		return;
	disable_timeout(store_timer, false);
	/* A cancel that is pending now would cut the wait for a standby short. */
	CHECK_FOR_INTERRUPTS();
	if (stores_deliveries && synchronous_commit != commit_level)
		(void) set_config_option("synchronous_commit", commit_level_name(commit_level),
								 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
}

void
batch_init(void)
{
	pqsignal(SIGTERM, handle_terminate);
	pqsignal(SIGINT, handle_cancel);
}

void
batch_init_session(void)
{
	store_timer = RegisterTimeout(USER_TIMEOUT, handle_store_timer);
	RegisterXactCallback(before_commit, NULL);
	event_rows_allow_optimism();
	notify_collect();
}

/* Read committed and read-write, whatever the defaults are. */
static void
begin_transaction(void)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	XactIsoLevel = XACT_READ_COMMITTED;
	XactReadOnly = false;
	XactDeferrable = false;
	commit_level = Max(synchronous_commit, SYNCHRONOUS_COMMIT_LOCAL_FLUSH);
	PushActiveSnapshot(GetTransactionSnapshot());	/* SPI insists on one */
}

static void
end_transaction(void)
{
	PopActiveSnapshot();
	CommitTransactionCommand();
}

static void
start_store_timer(int timeout)
{
	timer_fired = 0;
	timer_found_lock_wait = false;
	enable_timeout_every(store_timer, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), timeout),
						 1000);
}

static void
stop_store_timer(void)
{
	disable_timeout(store_timer, false);
	QueryCancelPending = false;
}

static void
set_lock_timeout(int timeout)
{
	char		value[16];

	snprintf(value, sizeof(value), "%d", timeout);
	(void) set_config_option("lock_timeout", value, PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
}

static bool
log_line_allowed(void)
{
	static TimestampTz second = 0;
	static int	lines = 0;
	TimestampTz now = GetCurrentTimestamp();

	if (TimestampDifferenceExceeds(second, now, 1000))
	{
		second = now;
		lines = 0;
	}
	return lines++ < LOG_LINES_PER_SECOND;
}

static void
log_failure(int sqlstate, int count)
{
	if (log_line_allowed())
		ereport(LOG,
				(errcode(sqlstate),
				 errmsg_plural("could not store %d delivery of a webhook (SQLSTATE %s), answering 503",
							   "could not store %d deliveries of webhooks (SQLSTATE %s), answering 503",
							   count, count, unpack_sql_state(sqlstate))));
}

static void
log_quarantine(const Delivery *delivery)
{
	if (delivery->quarantine_id == 0 && log_line_allowed())
		ereport(LOG,
				(errmsg("event \"%s\" of type \"%s\" was put into quarantine: %s (SQLSTATE %s)",
						delivery->event_id ? delivery->event_id : "",
						delivery->event_type ? delivery->event_type : "",
						delivery_quarantine_reason(delivery->reason),
						delivery->sqlstate ? unpack_sql_state(delivery->sqlstate) : "00000")));
}

static Failure
failure_of(const Batch *batch, int sqlstate)
{
	if (sqlstate != ERRCODE_QUERY_CANCELED || cancels != batch->signals_before)
		return failure_of_sqlstate(sqlstate);
	if (timer_fired > 0)
		return timer_found_lock_wait ? FAILURE_LOCKED : FAILURE_TIMEOUT;
	return FAILURE_CONTENT;		/* raised by a trigger of its own accord */
}

static bool
answers_200(const Delivery *delivery)
{
	return delivery_status(delivery) == 200;
}

static void
make_unavailable(Delivery **deliveries, int count)
{
	for (int i = 0; i < count; i++)
		deliveries[i]->outcome = OUTCOME_UNAVAILABLE;
}

static void
decide(Batch *batch, Delivery **deliveries, int count)
{
	if (batch->decided != NULL && count > 0)
		batch->decided(deliveries, count);
}

/* Commits; when a signal may have cut short the wait for a standby, all is 503. */
static void
commit(const Batch *batch, Delivery **deliveries, int count)
{
	bool		waits = commit_level > SYNCHRONOUS_COMMIT_LOCAL_FLUSH;
	TimestampTz start = GetCurrentTimestamp();

	for (int i = 0; i < count; i++)
	{
		if (answers_200(deliveries[i]))
		{
			event_store_make_durable();
			break;
		}
	}
	end_transaction();
	COUNT(commits, 1);
	COUNT(commit_time, GetCurrentTimestamp() - start);

	/* ProcDiePending: PostgreSQL ends the wait by itself when the postmaster has died. */
	if (waits && (cancels != batch->signals_before || ProcDiePending))
	{
		make_unavailable(deliveries, count);
		log_failure(ERRCODE_QUERY_CANCELED, count);
	}
}

static void
take_step(Step step, Delivery **deliveries, int count)
{
	switch (step)
	{
		case STEP_WRITE:
			event_store_write(deliveries, count);
			break;
		case STEP_KNOWN:
			{
				Delivery   *delivery = deliveries[0];
				QuarantineReason reason = delivery->reason;
				int			sqlstate = delivery->sqlstate;
				const char *message = delivery->message;

				if (!event_store_write_known(delivery))
				{
					delivery_to_quarantine(delivery, reason, sqlstate, message);
					quarantine_put(delivery);
				}
				break;
			}
		case STEP_QUARANTINE:
			quarantine_put(deliveries[0]);
			break;
	}
}

/* Aborts after an error and takes note of it. */
static void
note_failure(Batch *batch, MemoryContext context)
{
	ErrorData  *error;

	MemoryContextSwitchTo(context);
	HOLD_INTERRUPTS();
	disable_timeout(store_timer, false);
	error = CopyErrorData();
	AbortCurrentTransaction();
	FlushErrorState();
	QueryCancelPending = false;
	RESUME_INTERRUPTS();

	MemoryContextSwitchTo(context);
	batch->sqlstate = error->sqlerrcode;
	batch->message = error->message;
	batch->failure = failure_of(batch, error->sqlerrcode);
}

/* One transaction.  True when it was committed; else batch says why not. */
static bool
attempt(Batch *batch, Step step, Delivery **deliveries, int count)
{
	MemoryContext context = CurrentMemoryContext;
	int			mark = notify_mark();
	TimestampTz start = GetCurrentTimestamp();

	batch->failure = FAILURE_NONE;
	storing = true;
	stores_deliveries = true;
	PG_TRY();
	{
		if (!batch->in_transaction)
		{
			/* A deferred trigger of the transaction before may have left settings. */
			ResetAllOptions();
			begin_transaction();
		}
		batch->in_transaction = false;
		set_lock_timeout(batch->lock_timeout);
		start_store_timer(batch->timeout);
		ResetTempTableNamespace();
		take_step(step, deliveries, count);
		MemoryContextSwitchTo(context);
		commit(batch, deliveries, count);
		MemoryContextSwitchTo(context);
		stop_store_timer();
	}
	PG_CATCH();
	{
		note_failure(batch, context);
		notify_rewind(mark);
	}
	PG_END_TRY();
	storing = false;
	stores_deliveries = false;

	if (batch->failure == FAILURE_LOCKED)
	{
		batch->lock_budget -= (GetCurrentTimestamp() - start) / 1000;
		batch->lock_timeout = Max(batch->lock_budget / 4, 1);
	}
	if (batch->failure == FAILURE_TIMEOUT)
		cautious_until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), CAUTIOUS_FOR);
	if (batch->failure == FAILURE_TRANSIENT)
		batch->transient_failures++;
	else if (batch->failure == FAILURE_NONE)
	{
		batch->transient_failures = 0;
		decide(batch, deliveries, count);
	}
	return batch->failure == FAILURE_NONE;
}

/* The same for deliveries as events; without care first where that is likely to do. */
static bool
attempt_write(Batch *batch, Delivery **deliveries, int count)
{
	return attempt(batch, STEP_WRITE, deliveries, count) ||
		(event_rows_were_too_optimistic(batch->sqlstate) &&
		 attempt(batch, STEP_WRITE, deliveries, count));
}

/* May nothing more be tried for this batch? */
static bool
must_give_up(const Batch *batch)
{
	return batch_shutdown_requested || batch->failure == FAILURE_CANCELLED ||
		batch->transient_failures > MAX_TRANSIENT_FAILURES;
}

static void
give_up(Batch *batch, Delivery **deliveries, int count)
{
	make_unavailable(deliveries, count);
	log_failure(batch->sqlstate, count);
	decide(batch, deliveries, count);
}

/* A delivery has failed alone: a known event after all, quarantine, or 503. */
static void
settle_alone(Batch *batch, Delivery *delivery)
{
	QuarantineReason reason = QUARANTINE_TRIGGER_ERROR;

	if (batch->failure == FAILURE_TIMEOUT)
	{
		reason = QUARANTINE_TIMEOUT;
		batch->message = "storing took longer than banked_webhooks.store_timeout allows";
	}
	else if (batch->failure == FAILURE_OUT_OF_MEMORY)
		reason = QUARANTINE_OUT_OF_MEMORY;
	else if (batch->failure != FAILURE_CONTENT)
	{
		give_up(batch, &delivery, 1);
		return;
	}

	if (delivery->judged == OUTCOME_PENDING)
	{
		delivery_to_quarantine(delivery, reason, batch->sqlstate, batch->message);
		if (attempt(batch, STEP_KNOWN, &delivery, 1))
		{
			if (delivery->outcome == OUTCOME_QUARANTINED)
				log_quarantine(delivery);
			return;
		}
		if (must_give_up(batch) || batch->failure == FAILURE_TRANSIENT ||
			batch->failure == FAILURE_LOCKED)
		{
			give_up(batch, &delivery, 1);
			return;
		}
		delivery_to_quarantine(delivery, reason, batch->sqlstate, batch->message);
	}
	if (attempt(batch, STEP_QUARANTINE, &delivery, 1))
		log_quarantine(delivery);
	else
		give_up(batch, &delivery, 1);
}

static int
short_timeout(void)
{
	return Max(bw_store_timeout / 16, 50);
}

/* Stores one delivery that is alone in its batch, or has been left alone by store. */
static void
store_alone(Batch *batch, Delivery *delivery)
{
	if (attempt_write(batch, &delivery, 1))
		return;
	if (batch->failure == FAILURE_TIMEOUT && batch->timeout < bw_store_timeout)
	{
		batch->suspects[batch->suspect_count++] = delivery;
		return;
	}
	if (batch->failure == FAILURE_LOCKED && !must_give_up(batch) &&
		attempt_write(batch, &delivery, 1))
		return;
	if (must_give_up(batch))
		give_up(batch, &delivery, 1);
	else
		settle_alone(batch, delivery);
}

/* Stores deliveries, in as many transactions as it takes. */
static void
store(Batch *batch, Delivery **deliveries, int count)
{
	int			part;

	if (count == 1)
	{
		store_alone(batch, deliveries[0]);
		return;
	}
	if (attempt_write(batch, deliveries, count))
		return;

	if (batch->failure == FAILURE_TIMEOUT)
	{
		/* The others have waited long enough: find the slow one fast. */
		batch->timeout = short_timeout();
		group_limit = Max(count / PARTS, 1);
	}
	part = (count + PARTS - 1) / PARTS;
	for (int i = 0; i < count; i += part)
	{
		if (must_give_up(batch))
		{
			give_up(batch, deliveries + i, count - i);
			return;
		}
		store(batch, deliveries + i, Min(part, count - i));
	}
}

/*
 * Gives a suspect its full time, but no more than a third of all time to
 * suspects: the others are answered with 503, and come again.
 */
static void
store_suspects(Batch *batch)
{
	batch->timeout = bw_store_timeout;
	for (int i = 0; i < batch->suspect_count; i++)
	{
		Delivery   *delivery = batch->suspects[i];
		TimestampTz start = GetCurrentTimestamp();

		if (must_give_up(batch) || start < patient_from)
			give_up(batch, &delivery, 1);
		else
		{
			store_alone(batch, delivery);
			patient_from = GetCurrentTimestamp() + 2 * (GetCurrentTimestamp() - start);
		}
	}
}

static void
init_batch(Batch *batch)
{
	memset(batch, 0, sizeof(*batch));
	batch->signals_before = cancels;
	batch->timeout = GetCurrentTimestamp() < cautious_until ? short_timeout() : bw_store_timeout;
	batch->lock_timeout = bw_store_lock_timeout;
	batch->lock_budget = 2 * (int64) bw_store_lock_timeout;
}

/* Judges all deliveries, in a transaction that is left open.  False when that failed. */
static bool
examine_all(Batch *batch, Delivery *deliveries, int count)
{
	MemoryContext context = CurrentMemoryContext;
	volatile bool done = false;

	storing = true;
	PG_TRY();
	{
		begin_transaction();
		set_lock_timeout(batch->lock_timeout);
		start_store_timer(batch->timeout);
		endpoint_cache_refresh();
		MemoryContextSwitchTo(context);
		for (int i = 0; i < count; i++)
			examine_delivery(&deliveries[i]);
		batch->in_transaction = true;
		done = true;
	}
	PG_CATCH();
	{
		note_failure(batch, context);
	}
	PG_END_TRY();
	storing = false;
	return done;
}

static void
count_outcomes(const Delivery *deliveries, int count)
{
	uint64		bytes = 0;

	for (int i = 0; i < count; i++)
	{
		COUNT(outcomes[deliveries[i].outcome], 1);
		if (delivery_was_refused(&deliveries[i]))
			COUNT(rejections[deliveries[i].rejection], 1);
		if (deliveries[i].authentic && deliveries[i].has_key_id)
			counters_count_key(&deliveries[i].key_id, deliveries[i].received_at);
		bytes += deliveries[i].body_length;
	}
	COUNT(batches, 1);
	COUNT(batched, count);
	COUNT(bytes, bytes);
}

/* Stores the given deliveries in groups that were small enough before. */
static void
store_in_groups(Batch *batch, Delivery **deliveries, int count)
{
	for (int i = 0; i < count;)
	{
		int			group = Min(group_limit, count - i);

		if (i > 0 && must_give_up(batch))
		{
			give_up(batch, deliveries + i, count - i);
			return;
		}
		store(batch, deliveries + i, group);
		if (batch->failure == FAILURE_NONE && group == group_limit)
			group_limit = group_limit > PG_INT32_MAX / 2 ? PG_INT32_MAX : group_limit * 2;
		i += group;
	}
}

void
batch_store(Delivery *deliveries, int count, BatchDecided decided)
{
	Delivery  **members = palloc(sizeof(Delivery *) * count);
	Delivery  **others = palloc(sizeof(Delivery *) * count);
	int			member_count = 0;
	int			other_count = 0;
	TimestampTz start = GetCurrentTimestamp();
	Batch		batch;

	init_batch(&batch);
	batch.decided = decided;
	batch.suspects = palloc(sizeof(Delivery *) * count);
	if (!examine_all(&batch, deliveries, count))
	{
		for (int i = 0; i < count; i++)
			members[i] = &deliveries[i];
		give_up(&batch, members, count);
	}
	else
	{
		for (int i = 0; i < count; i++)
		{
			if (deliveries[i].judged == OUTCOME_PENDING ||
				deliveries[i].judged == OUTCOME_QUARANTINED)
				members[member_count++] = &deliveries[i];
			else
				others[other_count++] = &deliveries[i];
		}
		if (member_count > 0)
			store_in_groups(&batch, members, member_count);
		else
		{
			stop_store_timer();
			end_transaction();
		}
		decide(&batch, others, other_count);
		store_suspects(&batch);
	}
	COUNT(store_time, GetCurrentTimestamp() - start);
	count_outcomes(deliveries, count);
}

bool
batch_retry(int64 quarantine_id)
{
	MemoryContext context = CurrentMemoryContext;
	Delivery   *delivery = palloc0(sizeof(Delivery));
	volatile bool found = false;
	Batch		batch;

	init_batch(&batch);
	batch.timeout = bw_store_timeout;
	storing = true;
	PG_TRY();
	{
		begin_transaction();
		set_lock_timeout(batch.lock_timeout);
		start_store_timer(batch.timeout);
		endpoint_cache_refresh();
		MemoryContextSwitchTo(context);
		found = quarantine_read(quarantine_id, true, delivery);
		if (found)
		{
			examine_body(delivery, NULL, NULL);
			batch.in_transaction = true;
		}
		else
		{
			stop_store_timer();
			end_transaction();
		}
	}
	PG_CATCH();
	{
		note_failure(&batch, context);
		found = false;
	}
	PG_END_TRY();
	storing = false;
	MemoryContextSwitchTo(context);

	if (found)
	{
		if (delivery->judged == OUTCOME_UNWANTED)
		{
			/* Kept: it was wanted when it came. */
			delivery_to_quarantine(delivery, QUARANTINE_TRIGGER_ERROR, 0,
								   "the endpoint does not want events of this type any more");
			delivery->judged = OUTCOME_QUARANTINED;
		}
		store_alone(&batch, delivery);
		COUNT(outcomes[delivery->outcome], 1);
	}
	return found && delivery->outcome != OUTCOME_UNAVAILABLE;
}

bool
batch_run(void (*work) (void))
{
	MemoryContext context = CurrentMemoryContext;
	Batch		batch;
	volatile bool done = false;

	init_batch(&batch);
	storing = true;
	PG_TRY();
	{
		begin_transaction();
		set_lock_timeout(WORK_LOCK_TIMEOUT);
		start_store_timer(bw_store_timeout);
		work();
		end_transaction();
		stop_store_timer();
		done = true;
	}
	PG_CATCH();
	{
		note_failure(&batch, context);
		/* The work is the receiver's own: its errors quote nothing that came from outside. */
		if (!batch_shutdown_requested && log_line_allowed())
			ereport(LOG,
					(errcode(batch.sqlstate),
					 errmsg("receiver of webhooks: %s", batch.message)));
	}
	PG_END_TRY();
	storing = false;
	MemoryContextSwitchTo(context);
	return done;
}

void
batch_clean_session(void)
{
	ResetAllOptions();
	LockReleaseAll(USER_LOCKMETHOD, true);
	DropAllPreparedStatements();
	PortalHashTableDeleteAll();
}
