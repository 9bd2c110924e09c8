/*
 * batch.c
 *	  Stores the deliveries that wait, in as few transactions as they allow.
 *
 * All deliveries of a batch are stored by one transaction with one commit.
 * When it fails, it is repeated with parts of the batch until the delivery
 * that made it fail is alone; the others are stored.  What becomes of the one
 * depends on the error (failure.h).
 *
 * A 200 is durable: a transaction that found only repetitions waits for disk
 * and standby as the first one's did (event_store.h), and a wait for a standby
 * that was cut short makes all its 200s 503s.
 *
 * Nothing that a user's trigger does may reach another delivery.  No error text
 * goes to the log: it may quote a body.
 */
#include "postgres.h"

#include "utils/timestamp.h"

#include "batch.h"
#include "endpoint_cache.h"
#include "event_rows.h"
#include "event_store.h"
#include "examine.h"
#include "failure.h"
#include "notify.h"
#include "quarantine.h"
#include "settings.h"
#include "transaction.h"
#include "unstoppable.h"

/* Into how many parts a batch that failed is cut. */
#define PARTS 8

/* After so many transient failures in a row the rest of a batch is not tried. */
#define MAX_TRANSIENT_FAILURES 8

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
	int64		lock_budget;	/* milliseconds that may still be spent waiting for locks */
	TransactionLimits limits;	/* of the next attempt */
	int			transient_failures; /* in a row */
	TransactionError error;		/* of the last attempt */
} Batch;

/* Deliveries on their way through a transaction. */
typedef struct Attempt
{
	Step		step;
	Delivery  **deliveries;
	int			count;
} Attempt;

static int	group_limit = PG_INT32_MAX; /* deliveries per transaction, lower after a timeout */
static TimestampTz cautious_until = 0;	/* first attempts get little time: there was a timeout */
static TimestampTz patient_from = 0;	/* when a slow delivery may have its full time again */

void
batch_init(void)
{
	unstoppable_init();
	event_rows_allow_optimism();
	notify_collect();
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
log_failure(const Batch *batch, int sqlstate, int count)
{
	if (!log_line_allowed())
		return;
	if (batch->decided == NULL)
		ereport(LOG,
				(errcode(sqlstate),
				 errmsg("could not try a delivery in quarantine again (SQLSTATE %s), putting it off",
						unpack_sql_state(sqlstate))));
	else
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

static void
take_step(void *argument)
{
	Attempt    *attempt = argument;
	Delivery  **deliveries = attempt->deliveries;

	/* Alone, perhaps after others have failed with it, an invalid body is not to depend on the events. */
	if (attempt->count == 1)
		examine_unread(deliveries[0]);
	switch (attempt->step)
	{
		case STEP_WRITE:
			event_store_write(deliveries, attempt->count);
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
	for (int i = 0; i < attempt->count; i++)
	{
		if (delivery_status(deliveries[i]) == 200)
		{
			event_store_make_durable();
			break;
		}
	}
}

/* One transaction.  True when it was committed; else batch says why not. */
static bool
attempt(Batch *batch, Step step, Delivery **deliveries, int count)
{
	Attempt		attempt = {.step = step, .deliveries = deliveries, .count = count};
	int			mark = notify_mark();
	TimestampTz start = GetCurrentTimestamp();
	bool		done;

	unstoppable_watch(deliveries, count);
	done = transaction_run(TRANSACTION_DELIVERIES, &batch->limits, take_step, &attempt,
						   &batch->error);
	if (!done)
		notify_rewind(mark);
	else if (transaction_was_cut_short(batch->limits.signals))
	{
		make_unavailable(deliveries, count);
		log_failure(batch, ERRCODE_QUERY_CANCELED, count);
	}

	if (batch->error.failure == FAILURE_LOCKED)
	{
		batch->lock_budget -= (GetCurrentTimestamp() - start) / 1000;
		batch->limits.lock_timeout = Max(batch->lock_budget / 4, 1);
	}
	if (batch->error.failure == FAILURE_TIMEOUT)
		cautious_until = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), CAUTIOUS_FOR);
	if (batch->error.failure == FAILURE_TRANSIENT)
		batch->transient_failures++;
	else if (batch->error.failure == FAILURE_NONE)
	{
		batch->transient_failures = 0;
		decide(batch, deliveries, count);
	}
	return done;
}

/* The same for deliveries as events; without care first where that is likely to do. */
static bool
attempt_write(Batch *batch, Delivery **deliveries, int count)
{
	return attempt(batch, STEP_WRITE, deliveries, count) ||
		(event_rows_were_too_optimistic(batch->error.sqlstate) &&
		 attempt(batch, STEP_WRITE, deliveries, count));
}

/* May nothing more be tried for this batch? */
static bool
must_give_up(const Batch *batch)
{
	return transaction_shutdown_requested || batch->error.failure == FAILURE_CANCELLED ||
		batch->transient_failures > MAX_TRANSIENT_FAILURES;
}

static void
give_up(Batch *batch, Delivery **deliveries, int count)
{
	make_unavailable(deliveries, count);
	log_failure(batch, batch->error.sqlstate, count);
	decide(batch, deliveries, count);
}

/* A delivery has failed alone: a known event after all, quarantine, or 503. */
static void
settle_alone(Batch *batch, Delivery *delivery)
{
	QuarantineReason reason = QUARANTINE_TRIGGER_ERROR;

	if (batch->error.failure == FAILURE_TIMEOUT)
	{
		reason = QUARANTINE_TIMEOUT;
		batch->error.message = "storing took longer than banked_webhooks.store_timeout allows";
	}
	else if (batch->error.failure == FAILURE_OUT_OF_MEMORY)
		reason = QUARANTINE_OUT_OF_MEMORY;
	else if (batch->error.failure != FAILURE_CONTENT)
	{
		give_up(batch, &delivery, 1);
		return;
	}

	if (delivery->judged == OUTCOME_PENDING)
	{
		delivery_to_quarantine(delivery, reason, batch->error.sqlstate, batch->error.message);
		if (attempt(batch, STEP_KNOWN, &delivery, 1))
		{
			if (delivery->outcome == OUTCOME_QUARANTINED)
				log_quarantine(delivery);
			return;
		}
		if (must_give_up(batch) || batch->error.failure == FAILURE_TRANSIENT ||
			batch->error.failure == FAILURE_LOCKED)
		{
			give_up(batch, &delivery, 1);
			return;
		}
		delivery_to_quarantine(delivery, reason, batch->error.sqlstate, batch->error.message);
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
	if (batch->error.failure == FAILURE_TIMEOUT && batch->limits.timeout < bw_store_timeout)
	{
		batch->suspects[batch->suspect_count++] = delivery;
		return;
	}
	if (batch->error.failure == FAILURE_LOCKED && !must_give_up(batch) &&
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

	if (batch->error.failure == FAILURE_TIMEOUT)
	{
		/* The others have waited long enough: find the slow one fast. */
		batch->limits.timeout = short_timeout();
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
	batch->limits.timeout = bw_store_timeout;
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
	batch->limits.signals = transaction_signals();
	batch->limits.timeout = GetCurrentTimestamp() < cautious_until ? short_timeout() : bw_store_timeout;
	batch->limits.lock_timeout = bw_store_lock_timeout;
	batch->lock_budget = 2 * (int64) bw_store_lock_timeout;
}

/* One that ended a receiver does not come near its trigger again for a while. */
static void
spare_unstoppable(Delivery *delivery)
{
	if (delivery->judged != OUTCOME_PENDING || !unstoppable_is_known(delivery))
		return;
	delivery_to_quarantine(delivery, QUARANTINE_TIMEOUT, ERRCODE_QUERY_CANCELED,
						   "code that runs while it is stored does not react to its cancellation");
	delivery->judged = OUTCOME_QUARANTINED;
}

/* Judges all deliveries. */
static void
examine_all(void *argument)
{
	Attempt    *attempt = argument;
	MemoryContext context = CurrentMemoryContext;

	endpoint_cache_refresh();
	MemoryContextSwitchTo(context);
	for (int i = 0; i < attempt->count; i++)
	{
		examine_delivery(attempt->deliveries[i], event_store_expects_repetitions());
		spare_unstoppable(attempt->deliveries[i]);
	}
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
		int			group = unstoppable_is_sought() ? 1 : Min(group_limit, count - i);

		if (i > 0 && must_give_up(batch))
		{
			give_up(batch, deliveries + i, count - i);
			return;
		}
		store(batch, deliveries + i, group);
		if (batch->error.failure == FAILURE_NONE && group == group_limit)
			group_limit = group_limit > PG_INT32_MAX / 2 ? PG_INT32_MAX : group_limit * 2;
		i += group;
	}
}

void
batch_store(Delivery *deliveries, int count, BatchDecided decided)
{
	Delivery  **all = palloc(sizeof(Delivery *) * count);
	Delivery  **members = palloc(sizeof(Delivery *) * count);
	Delivery  **others = palloc(sizeof(Delivery *) * count);
	int			member_count = 0;
	int			other_count = 0;
	Attempt		examination = {.deliveries = all, .count = count};
	TimestampTz start = GetCurrentTimestamp();
	Batch		batch;

	init_batch(&batch);
	batch.decided = decided;
	batch.suspects = palloc(sizeof(Delivery *) * count);
	for (int i = 0; i < count; i++)
		all[i] = &deliveries[i];
	if (!transaction_run(TRANSACTION_LEFT_OPEN, &batch.limits, examine_all, &examination, &batch.error))
		give_up(&batch, all, count);
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
			transaction_finish();
		decide(&batch, others, other_count);
		store_suspects(&batch);
	}
	COUNT(store_time, GetCurrentTimestamp() - start);
	count_outcomes(deliveries, count);
}

/* A row of quarantine that is tried again. */
typedef struct Retry
{
	int64		quarantine_id;
	Delivery   *delivery;
	bool		found;
} Retry;

static void
read_and_examine(void *argument)
{
	Retry	   *retry = argument;
	MemoryContext context = CurrentMemoryContext;

	endpoint_cache_refresh();
	MemoryContextSwitchTo(context);
	retry->found = quarantine_read(retry->quarantine_id, true, retry->delivery);
	if (retry->found)
	{
		examine_body(retry->delivery, NULL, NULL);
		spare_unstoppable(retry->delivery);
	}
}

bool
batch_retry(int64 quarantine_id)
{
	Delivery   *delivery = palloc0(sizeof(Delivery));
	Retry		retry = {.quarantine_id = quarantine_id, .delivery = delivery};
	Batch		batch;

	init_batch(&batch);
	batch.limits.timeout = bw_store_timeout;
	/* It can be put off, and deliveries wait meanwhile. */
	batch.limits.lock_timeout = Min(bw_store_lock_timeout, WORK_LOCK_TIMEOUT);
	batch.lock_budget = 0;
	if (!transaction_run(TRANSACTION_LEFT_OPEN, &batch.limits, read_and_examine, &retry, &batch.error))
		return false;
	if (!retry.found)
	{
		transaction_finish();
		return false;
	}
	if (delivery->judged == OUTCOME_UNWANTED)
	{
		/* Kept: it was wanted when it came. */
		delivery_to_quarantine(delivery, QUARANTINE_TRIGGER_ERROR, 0,
							   "the endpoint does not want events of this type any more");
		delivery->judged = OUTCOME_QUARANTINED;
	}
	store_alone(&batch, delivery);
	return delivery->outcome != OUTCOME_UNAVAILABLE;
}

typedef struct Work
{
	void		(*function) (void);
} Work;

static void
do_work(void *argument)
{
	((Work *) argument)->function();
}

bool
batch_run(void (*work) (void))
{
	Work		argument = {.function = work};
	TransactionLimits limits = {
		.lock_timeout = WORK_LOCK_TIMEOUT,
		.timeout = bw_store_timeout,
		.signals = transaction_signals()
	};
	TransactionError error;

	if (transaction_run(TRANSACTION_OWN_WORK, &limits, do_work, &argument, &error))
		return true;
	/* The work is the receiver's own: its errors quote nothing that came from outside. */
	if (!transaction_shutdown_requested && log_line_allowed())
		ereport(LOG,
				(errcode(error.sqlstate),
				 errmsg("receiver of webhooks: %s", error.message)));
	return false;
}
