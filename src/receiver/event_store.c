/*
 * event_store.c
 *	  Turns judged deliveries into rows, in the caller's transaction.
 *
 * One statement inserts all new events of a batch; what it did not insert is
 * looked up by a second one.  After a batch that was mostly repetitions the
 * look comes first, by identities that payload_scan.h tells; only what it leaves
 * is parsed and inserted.  The rule for a delivery of a known identity:
 *
 *	 signature and bytes of any stored row of the identity		repetition
 *	 bytes of a stored row, v2, and another event type of the
 *	   resource was stored after the identity's newest row,
 *	   signed earlier than this delivery						recurrence
 *	 bytes of a stored row otherwise							repetition
 *	 other bytes												changed
 *
 * "After" is by received_at, then seq.  New events are inserted sorted by
 * identity, so that two receivers that store the same ones wait for each other
 * and never in a circle; what is left is decided in the order of its arrival.
 * events is written before event_revisions, and that before quarantine.
 */
#include "postgres.h"

#include "access/xact.h"
#include "access/xlog.h"
#include "replication/message.h"
#include "replication/syncrep.h"

#include "event_rows.h"
#include "event_store.h"
#include "examine.h"
#include "quarantine.h"
#include "handlers/handler_cache.h"
#include "handlers/job_queue.h"
#include "statements.h"
#include "stored_rows.h"

/* Was the last batch mostly repetitions? */
static bool repetitions_first = false;

/*
 * Decides about a delivery and stores a revision if it is one; a delivery of a
 * new identity stays as it is.  Another session may take the revision's
 * number, or store the same bytes, meanwhile: look again then.  Returns the
 * rows of the event_id as they are afterwards.
 */
static StoredRow *
resolve_known(Delivery *delivery, StoredRow *rows)
{
	const StoredRow *newest = stored_rows_newest(delivery, rows);
	int			tried = 0;

	if (newest == NULL)
		return rows;
	while (newest != NULL)
	{
		Outcome		outcome = stored_rows_classify(delivery, rows, newest);
		int			revision = stored_rows_next_revision(delivery, rows);

		if (outcome == OUTCOME_REPETITION)
		{
			delivery->outcome = outcome;
			return rows;
		}
		/* Nobody has taken the number, and yet there is no row: a trigger's doing. */
		if (revision == tried)
			break;
		tried = revision;
		if (event_rows_insert_revision(delivery, revision, outcome))
		{
			delivery->outcome = outcome;
			return stored_rows_add(delivery, revision, rows);
		}
		rows = stored_rows_find(&delivery, 1)[0];
		newest = stored_rows_newest(delivery, rows);
	}
	delivery_to_quarantine(delivery, QUARANTINE_TRIGGER_SUPPRESSED, 0,
						   "the revision was not inserted, and no error was raised");
	return rows;
}

/* By arrival; two of one time by their places in memory, so that the order is always the same. */
static int
compare_times(const Delivery *left, const Delivery *right)
{
	if (left->received_at != right->received_at)
		return left->received_at < right->received_at ? -1 : 1;
	return left < right ? -1 : left > right;
}

static int
compare_arrivals(const void *a, const void *b)
{
	const Delivery *left = *(Delivery *const *) a;
	const Delivery *right = *(Delivery *const *) b;
	int			result = strcmp(left->event_id, right->event_id);

	return result != 0 ? result : compare_times(left, right);
}

/*
 * Decides about deliveries of identities that may be known, those of one
 * event_id in the order of their arrival: what one of them adds counts for the
 * next.  Those of new identities are moved to the front; returns their number.
 */
static int
resolve_all(Delivery **deliveries, int count)
{
	StoredRow **found;
	StoredRow  *rows = NULL;
	int			unknown = 0;

	qsort(deliveries, count, sizeof(Delivery *), compare_arrivals);
	found = stored_rows_find(deliveries, count);
	for (int i = 0; i < count; i++)
	{
		if (i == 0 || strcmp(deliveries[i - 1]->event_id, deliveries[i]->event_id) != 0)
			rows = found[i];
		rows = resolve_known(deliveries[i], rows);
	}
	for (int i = 0; i < count; i++)
	{
		if (deliveries[i]->outcome == OUTCOME_PENDING)
			deliveries[unknown++] = deliveries[i];
	}
	return unknown;
}

static bool
same_identity(const Delivery *a, const Delivery *b)
{
	return strcmp(a->event_id, b->event_id) == 0 && strcmp(a->event_type, b->event_type) == 0;
}

static int
compare_identities(const void *a, const void *b)
{
	const Delivery *left = *(Delivery *const *) a;
	const Delivery *right = *(Delivery *const *) b;
	int			result = strcmp(left->event_id, right->event_id);

	if (result == 0)
		result = strcmp(left->event_type, right->event_type);
	return result != 0 ? result : compare_times(left, right);
}

/* One of some deliveries of the same identity that has the same endpoint, bytes and signature, or null. */
static Delivery *
find_same(Delivery **candidates, int count, const Delivery *delivery)
{
	for (int i = 0; i < count; i++)
	{
		if (memcmp(&candidates[i]->endpoint_id, &delivery->endpoint_id, sizeof(pg_uuid_t)) == 0 &&
			memcmp(candidates[i]->signature, delivery->signature, SIGNATURE_SIZE) == 0 &&
			memcmp(candidates[i]->body_sha256, delivery->body_sha256, SIGNATURE_SIZE) == 0)
			return candidates[i];
	}
	return NULL;
}

/*
 * Sets aside deliveries that repeat an earlier one of the batch.  The others
 * are put into distinct, sorted by identity; returns their number.
 */
static int
set_repeats_aside(Delivery **deliveries, int count, Delivery **distinct)
{
	int			distinct_count = 0;
	int			group = 0;		/* where in distinct the current identity's deliveries begin */

	qsort(deliveries, count, sizeof(Delivery *), compare_identities);
	for (int i = 0; i < count; i++)
	{
		if (i == 0 || !same_identity(deliveries[i - 1], deliveries[i]))
			group = distinct_count;
		deliveries[i]->same_as = find_same(distinct + group, distinct_count - group, deliveries[i]);
		if (deliveries[i]->same_as == NULL)
			distinct[distinct_count++] = deliveries[i];
	}
	return distinct_count;
}

/* Are these deliveries of one event_id mere repetitions of stored rows, all of them? */
static bool
are_repetitions(Delivery **deliveries, int count, const StoredRow *rows)
{
	for (int i = 0; i < count; i++)
	{
		const StoredRow *newest = stored_rows_newest(deliveries[i], rows);

		if (newest == NULL ||
			stored_rows_classify(deliveries[i], rows, newest) != OUTCOME_REPETITION)
			return false;
	}
	return true;
}

/*
 * Decides about repetitions before anything is inserted.  All other deliveries
 * are moved to the front; returns their number.  So are the repetitions of an
 * event_id that has other deliveries in the batch, since what these become can
 * make a recurrence of them.
 */
static int
decide_repetitions(Delivery **deliveries, int count)
{
	StoredRow **found;
	int			left = 0;
	int			end;

	qsort(deliveries, count, sizeof(Delivery *), compare_arrivals);
	found = stored_rows_find(deliveries, count);
	for (int start = 0; start < count; start = end)
	{
		bool		known;

		for (end = start + 1; end < count; end++)
		{
			if (strcmp(deliveries[start]->event_id, deliveries[end]->event_id) != 0)
				break;
		}
		known = are_repetitions(deliveries + start, end - start, found[start]);
		for (int i = start; i < end; i++)
		{
			if (known)
				deliveries[i]->outcome = OUTCOME_REPETITION;
			else
				deliveries[left++] = deliveries[i];
		}
	}
	return left;
}

/*
 * Inserts the first delivery of each identity as a new event.  All that did
 * not become one are moved to the front; returns their number.
 */
static int
insert_firsts(Delivery **deliveries, int count)
{
	Delivery  **firsts = palloc(sizeof(Delivery *) * count);
	int			first_count = 0;
	int			left = 0;
	int			not_inserted;

	qsort(deliveries, count, sizeof(Delivery *), compare_identities);
	for (int i = 0; i < count; i++)
	{
		if (first_count == 0 || !same_identity(firsts[first_count - 1], deliveries[i]))
			firsts[first_count++] = deliveries[i];
		else
			deliveries[left++] = deliveries[i];
	}
	not_inserted = event_rows_insert(firsts, first_count);
	for (int i = 0; i < not_inserted; i++)
		deliveries[left++] = firsts[i];
	return left;
}

static bool
is_mostly_repetitions(Delivery **deliveries, int count)
{
	int			repetitions = 0;

	for (int i = 0; i < count; i++)
	{
		if (deliveries[i]->same_as != NULL || deliveries[i]->outcome == OUTCOME_REPETITION)
			repetitions++;
	}
	return repetitions > count / 2;
}

/* Reads what was left unread.  Those that can still become events are moved to the front; returns their number. */
static int
read_bodies(Delivery **deliveries, int count)
{
	int			left = 0;

	for (int i = 0; i < count; i++)
	{
		examine_unread(deliveries[i]);
		if (deliveries[i]->outcome == OUTCOME_PENDING)
			deliveries[left++] = deliveries[i];
	}
	return left;
}

/* Stores events.  deliveries is reordered. */
static void
write_events(Delivery **deliveries, int count)
{
	Delivery  **left = palloc(sizeof(Delivery *) * count);
	int			left_count = set_repeats_aside(deliveries, count, left);

	if (repetitions_first)
		left_count = decide_repetitions(left, left_count);
	left_count = read_bodies(left, left_count);
	if (left_count > 0)
		left_count = insert_firsts(left, left_count);
	if (left_count > 0)
		left_count = resolve_all(left, left_count);

	/* Neither inserted nor there: a trigger held it back, or another session deleted it. */
	if (left_count > 0)
		left_count = insert_firsts(left, left_count);
	if (left_count > 0)
		left_count = resolve_all(left, left_count);
	for (int i = 0; i < left_count; i++)
		delivery_to_quarantine(left[i], QUARANTINE_TRIGGER_SUPPRESSED, 0,
							   "the event was not inserted, and no error was raised");
	repetitions_first = is_mostly_repetitions(deliveries, count);
}

/* A delivery that repeats an earlier one of its batch shares its fate. */
static void
follow(Delivery *delivery)
{
	switch (delivery->same_as->outcome)
	{
		case OUTCOME_STORED:
		case OUTCOME_CHANGED:
		case OUTCOME_RECURRENCE:
			delivery->outcome = OUTCOME_REPETITION;
			break;
		default:
			delivery->outcome = delivery->same_as->outcome;
			delivery->reason = delivery->same_as->reason;
			break;
	}
}

/*
 * In a session that is not a receiver, deferred constraints and triggers must
 * run now: at its commit they would run as its own user.
 */
static void
run_deferred_triggers(void)
{
	if (my_slot == NULL && SPI_execute("SET CONSTRAINTS ALL IMMEDIATE", false, 0) < 0)
		elog(ERROR, "could not run deferred triggers");
}

static void
enqueue_jobs(Delivery **deliveries, int count)
{
	handler_cache_refresh();
	job_queue_enqueue(deliveries, count);
}

bool
event_store_expects_repetitions(void)
{
	return repetitions_first;
}

void
event_store_write(Delivery **deliveries, int count)
{
	Delivery  **events = palloc(sizeof(Delivery *) * count);
	int			event_count = 0;
	Identity	before;

	for (int i = 0; i < count; i++)
	{
		deliveries[i]->outcome = deliveries[i]->judged;
		deliveries[i]->same_as = NULL;
		deliveries[i]->stored_id = NULL;
		deliveries[i]->revision = 0;
		if (deliveries[i]->judged == OUTCOME_PENDING)
			events[event_count++] = deliveries[i];
	}

	SPI_connect();
	if (event_count > 0)
	{
		statements_become_worker(&before);
		write_events(events, event_count);
		run_deferred_triggers();
		statements_restore(&before);
		enqueue_jobs(events, event_count);
	}
	for (int i = 0; i < count; i++)
	{
		if (deliveries[i]->same_as != NULL)
			follow(deliveries[i]);
		else if (deliveries[i]->outcome == OUTCOME_QUARANTINED)
			quarantine_put(deliveries[i]);
		else if (deliveries[i]->quarantine_id != 0)
			quarantine_remove(deliveries[i]->quarantine_id);
	}
	SPI_finish();
}

bool
event_store_write_known(Delivery *delivery)
{
	StoredRow  *rows;
	Identity	before;

	if (delivery->judged != OUTCOME_PENDING)
		return false;
	delivery->outcome = OUTCOME_PENDING;
	delivery->same_as = NULL;
	delivery->stored_id = NULL;

	SPI_connect();
	statements_become_worker(&before);
	rows = stored_rows_find(&delivery, 1)[0];
	(void) resolve_known(delivery, rows);
	run_deferred_triggers();
	statements_restore(&before);
	enqueue_jobs(&delivery, 1);
	if (delivery->outcome == OUTCOME_QUARANTINED)
		quarantine_put(delivery);
	else if (delivery->outcome != OUTCOME_PENDING && delivery->quarantine_id != 0)
		quarantine_remove(delivery->quarantine_id);
	SPI_finish();
	return delivery->outcome != OUTCOME_PENDING;
}

/*
 * Is all that other transactions have written safe, here and on standbys?  A
 * wait for a standby may have been cut short, so with one it cannot be told.
 */
static bool
everything_is_durable(void)
{
	return SyncRepStandbyNames[0] == '\0' && !XLogNeedsFlush(GetXLogInsertRecPtr());
}

void
event_store_make_durable(void)
{
	/* A transaction that has an id, and no other WAL than of its commit, waits for nothing. */
	if (XactLastRecEnd != 0)
		(void) GetTopTransactionId();
	else if (TransactionIdIsValid(GetTopTransactionIdIfAny()) || !everything_is_durable())
	{
		(void) LogLogicalMessage("banked_webhooks", "", 0, true);
		(void) GetTopTransactionId();
	}
}
