/*
 * event_store.c
 *	  Turns judged deliveries into rows, in the caller's transaction.
 *
 * One statement inserts all new events of a batch; what it did not insert is
 * looked up by a second one.  The rule for a delivery of a known identity:
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
 *
 * seq: the transaction takes its id before it takes any seq, and stored_by is
 * the newest transaction id that had been given out when seq was taken.  So
 * when no transaction up to stored_by runs any more, nothing with a lower seq
 * can appear (see banked.events_since).
 *
 * The rows go into the statements as a named tuplestore.  Which delivery
 * became a row is told by RETURNING seq: a user's trigger may change all other
 * columns.
 */
#include "postgres.h"

#include "access/transam.h"
#include "access/xact.h"
#include "access/xlog.h"
#include "catalog/dependency.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "miscadmin.h"
#include "replication/message.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"
#include "utils/xid8.h"

#include "event_store.h"
#include "quarantine.h"
#include "handlers/handler_cache.h"
#include "handlers/job_queue.h"
#include "statements.h"
#include "stored_rows.h"

/* Memory that a tuplestore may take before it goes to disk: a batch is bounded elsewhere. */
#define STORE_MEMORY_KB (1024 * 1024)

/* The columns of the tuplestore new_events. */
enum
{
	NEW_EVENT_ID,
	NEW_EVENT_TYPE,
	NEW_ENDPOINT_ID,
	NEW_RESOURCE_ID,
	NEW_RESOURCE_TYPE,
	NEW_STATE,
	NEW_LIVE,
	NEW_TEST,
	NEW_API_VERSION,
	NEW_PAYLOAD,
	NEW_BODY,
	NEW_BODY_SHA256,
	NEW_SIGNATURE,
	NEW_SIGNED_AT,
	NEW_KEY_ID,
	NEW_RECEIVED_AT,
	NEW_SEQ,
	NEW_STORED_BY,
	NEW_REVISION,
	NEW_KIND,
	NEW_COLUMNS
};

static const StatementColumn new_columns[NEW_COLUMNS] = {
	[NEW_EVENT_ID] = {"event_id", TEXTOID},
	[NEW_EVENT_TYPE] = {"event_type", TEXTOID},
	[NEW_ENDPOINT_ID] = {"endpoint_id", UUIDOID},
	[NEW_RESOURCE_ID] = {"resource_id", TEXTOID},
	[NEW_RESOURCE_TYPE] = {"resource_type", TEXTOID},
	[NEW_STATE] = {"state", TEXTOID},
	[NEW_LIVE] = {"live", BOOLOID},
	[NEW_TEST] = {"test", BOOLOID},
	[NEW_API_VERSION] = {"api_version", TEXTOID},
	[NEW_PAYLOAD] = {"payload", JSONBOID},
	[NEW_BODY] = {"body", BYTEAOID},
	[NEW_BODY_SHA256] = {"body_sha256", BYTEAOID},
	[NEW_SIGNATURE] = {"signature", BYTEAOID},
	[NEW_SIGNED_AT] = {"signed_at", TIMESTAMPTZOID},
	[NEW_KEY_ID] = {"key_id", UUIDOID},
	[NEW_RECEIVED_AT] = {"received_at", TIMESTAMPTZOID},
	[NEW_SEQ] = {"seq", INT8OID},
	[NEW_STORED_BY] = {"stored_by", XID8OID},
	[NEW_REVISION] = {"revision", INT4OID},
	[NEW_KIND] = {"kind", TEXTOID},
};

#define COMMON_COLUMNS \
	"event_id, event_type, endpoint_id, resource_id, resource_type, state, live, test, " \
	"api_version, payload, body, body_sha256, signature, signed_at, key_id, received_at, " \
	"seq, stored_by, revision"

static Statement insert_events = {
	.sql = "INSERT INTO banked.events (" COMMON_COLUMNS ") "
	"SELECT " COMMON_COLUMNS " FROM new_events "
	"ON CONFLICT DO NOTHING RETURNING seq, event_id, event_type"
};

static Statement insert_revision = {
	.sql = "INSERT INTO banked.event_revisions (" COMMON_COLUMNS ", kind) "
	"SELECT " COMMON_COLUMNS ", kind FROM new_events "
	"ON CONFLICT DO NOTHING RETURNING seq, event_id, event_type"
};

/* A row that an INSERT has made: a user's trigger may have changed its identity. */
typedef struct ReturnedRow
{
	int64		seq;
	char	   *event_id;
	char	   *event_type;
} ReturnedRow;

static void
set_text(Datum *values, bool *nulls, int column, const char *text)
{
	nulls[column] = (text == NULL);
	if (text != NULL)
		values[column] = CStringGetTextDatum(text);
}

static TupleDesc
new_events_descriptor(void)
{
	static TupleDesc descriptor = NULL;

	if (descriptor == NULL)
		descriptor = statements_describe_rows(new_columns, NEW_COLUMNS);
	return descriptor;
}

/*
 * The sequence that serves events and event_revisions.  Locks events as its
 * insertion will: who locks the table against writers waits for everybody that
 * has taken a seq.
 */
static Oid
seq_sequence(void)
{
	static Oid	known_events = InvalidOid;
	static Oid	known_sequence = InvalidOid;
	Oid			events = statements_relation("events");

	if (!OidIsValid(events))
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_TABLE),
				 errmsg("table \"banked.events\" does not exist"),
				 errhint("Call banked.create_tables().")));
	LockRelationOid(events, RowExclusiveLock);
	if (events != known_events || get_rel_relkind(known_sequence) != RELKIND_SEQUENCE)
	{
		known_sequence = getIdentitySequence(events, get_attnum(events, "seq"), false);
		known_events = events;
	}
	return known_sequence;
}

/* Gives each delivery its seq; returns what stored_by must be for all of them. */
static FullTransactionId
take_seqs(Delivery **deliveries, int count)
{
	Oid			sequence = seq_sequence();
	FullTransactionId newest;

	(void) GetTopTransactionId();
	for (int i = 0; i < count; i++)
		deliveries[i]->seq = nextval_internal(sequence, false);
	newest = ReadNextFullTransactionId();
	FullTransactionIdRetreat(&newest);
	return newest;
}

static void
put_event(Tuplestorestate *store, Delivery *d, FullTransactionId stored_by, int revision,
		  const char *kind)
{
	Datum		values[NEW_COLUMNS] = {0};
	bool		nulls[NEW_COLUMNS] = {0};

	set_text(values, nulls, NEW_EVENT_ID, d->event_id);
	set_text(values, nulls, NEW_EVENT_TYPE, d->event_type);
	values[NEW_ENDPOINT_ID] = UUIDPGetDatum(&d->endpoint_id);
	set_text(values, nulls, NEW_RESOURCE_ID, d->resource_id);
	set_text(values, nulls, NEW_RESOURCE_TYPE, d->resource_type);
	set_text(values, nulls, NEW_STATE, d->state);
	nulls[NEW_LIVE] = (d->live < 0);
	values[NEW_LIVE] = BoolGetDatum(d->live > 0);
	values[NEW_TEST] = BoolGetDatum(d->test);
	set_text(values, nulls, NEW_API_VERSION, d->api_version);
	values[NEW_PAYLOAD] = d->payload;
	values[NEW_BODY] = statements_bytes(d->body, d->body_length);
	values[NEW_BODY_SHA256] = statements_bytes(d->body_sha256, SIGNATURE_SIZE);
	values[NEW_SIGNATURE] = statements_bytes(d->signature, SIGNATURE_SIZE);
	values[NEW_SIGNED_AT] = TimestampTzGetDatum(d->signed_at);
	nulls[NEW_KEY_ID] = !d->has_key_id;
	values[NEW_KEY_ID] = UUIDPGetDatum(&d->key_id);
	values[NEW_RECEIVED_AT] = TimestampTzGetDatum(d->received_at);
	values[NEW_SEQ] = Int64GetDatum(d->seq);
	values[NEW_STORED_BY] = FullTransactionIdGetDatum(stored_by);
	values[NEW_REVISION] = Int32GetDatum(revision);
	set_text(values, nulls, NEW_KIND, kind);
	tuplestore_putvalues(store, new_events_descriptor(), values, nulls);
}

/* The n-th bigint column of row row of the last result. */
static int64
result_int64(uint64 row, int column)
{
	bool		isnull;

	return DatumGetInt64(SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc,
									   column, &isnull));
}

static int
compare_returned(const void *a, const void *b)
{
	int64		left = ((const ReturnedRow *) a)->seq;
	int64		right = ((const ReturnedRow *) b)->seq;

	return left < right ? -1 : left > right;
}

/* What the last INSERT returned, sorted by seq and palloc'ed. */
static ReturnedRow *
take_returned(uint64 *count)
{
	ReturnedRow *rows = palloc(sizeof(ReturnedRow) * (SPI_processed + 1));

	*count = SPI_processed;
	for (uint64 i = 0; i < *count; i++)
	{
		rows[i].seq = result_int64(i, 1);
		rows[i].event_id = SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 2);
		rows[i].event_type = SPI_getvalue(SPI_tuptable->vals[i], SPI_tuptable->tupdesc, 3);
	}
	SPI_freetuptable(SPI_tuptable);
	qsort(rows, *count, sizeof(ReturnedRow), compare_returned);
	return rows;
}

/* Did the delivery become one of these rows?  Then it is told as which. */
static bool
was_returned(const ReturnedRow *rows, uint64 count, Delivery *delivery)
{
	ReturnedRow key = {.seq = delivery->seq};
	const ReturnedRow *row = count == 0 ? NULL :
	bsearch(&key, rows, count, sizeof(ReturnedRow), compare_returned);

	if (row == NULL)
		return false;
	delivery->stored_id = row->event_id;
	delivery->stored_type = row->event_type;
	return true;
}

/*
 * Inserts deliveries as new events.  Those that became rows get outcome
 * STORED; the others are moved to the front of the array, in their order, and
 * their number is returned.
 */
static int
insert_new(Delivery **deliveries, int count)
{
	Tuplestorestate *store = tuplestore_begin_heap(false, false, STORE_MEMORY_KB);
	FullTransactionId stored_by = take_seqs(deliveries, count);
	ReturnedRow *rows;
	uint64		returned;
	int			left = 0;

	for (int i = 0; i < count; i++)
		put_event(store, deliveries[i], stored_by, 0, NULL);
	statements_register_rows("new_events", new_events_descriptor(), store, count);
	(void) statements_run(&insert_events, NULL, NULL, 0);
	tuplestore_end(store);

	rows = take_returned(&returned);
	for (int i = 0; i < count; i++)
	{
		if (was_returned(rows, returned, deliveries[i]))
			deliveries[i]->outcome = OUTCOME_STORED;
		else
			deliveries[left++] = deliveries[i];
	}
	pfree(rows);
	return left;
}

/* Inserts one revision under a number; false when it did not become a row. */
static bool
try_revision(Delivery *delivery, int revision, Outcome kind)
{
	Tuplestorestate *store = tuplestore_begin_heap(false, false, STORE_MEMORY_KB);
	FullTransactionId stored_by = take_seqs(&delivery, 1);
	ReturnedRow *rows;
	uint64		returned;

	put_event(store, delivery, stored_by, revision, counters_outcome_name(kind));
	statements_register_rows("new_events", new_events_descriptor(), store, 1);
	(void) statements_run(&insert_revision, NULL, NULL, 0);
	tuplestore_end(store);
	rows = take_returned(&returned);
	delivery->revision = revision;
	return was_returned(rows, returned, delivery);
}

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
		if (try_revision(delivery, revision, outcome))
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

static int
compare_arrivals(const void *a, const void *b)
{
	const Delivery *left = *(Delivery *const *) a;
	const Delivery *right = *(Delivery *const *) b;
	int			result = strcmp(left->event_id, right->event_id);

	if (result == 0)
		result = left->received_at < right->received_at ? -1 : left->received_at > right->received_at;
	if (result == 0)
		result = left < right ? -1 : left > right;
	return result;
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
	if (result == 0)
		result = left->received_at < right->received_at ? -1 : left->received_at > right->received_at;
	if (result == 0)
		result = left < right ? -1 : left > right;
	return result;
}

/* One of some deliveries of the same identity that has the same bytes and signature, or null. */
static Delivery *
find_same(Delivery **candidates, int count, const Delivery *delivery)
{
	for (int i = 0; i < count; i++)
	{
		if (memcmp(candidates[i]->signature, delivery->signature, SIGNATURE_SIZE) == 0 &&
			memcmp(candidates[i]->body_sha256, delivery->body_sha256, SIGNATURE_SIZE) == 0)
			return candidates[i];
	}
	return NULL;
}

/*
 * Stores events: the first delivery of each identity by one INSERT, then, one
 * after the other, what is left.  deliveries is reordered.
 */
static void
write_events(Delivery **deliveries, int count)
{
	Delivery  **firsts = palloc(sizeof(Delivery *) * count);
	Delivery  **rest = palloc(sizeof(Delivery *) * count);
	int			first_count = 0;
	int			rest_count = 0;
	int			group = 0;		/* where in rest the current identity's deliveries begin */
	int			left;

	qsort(deliveries, count, sizeof(Delivery *), compare_identities);
	for (int i = 0; i < count; i++)
	{
		Delivery   *delivery = deliveries[i];

		if (i == 0 || !same_identity(deliveries[i - 1], delivery))
		{
			firsts[first_count++] = delivery;
			group = rest_count;
			continue;
		}
		delivery->same_as = find_same(&firsts[first_count - 1], 1, delivery);
		if (delivery->same_as == NULL)
			delivery->same_as = find_same(rest + group, rest_count - group, delivery);
		if (delivery->same_as == NULL)
			rest[rest_count++] = delivery;
	}

	left = insert_new(firsts, first_count);
	for (int i = 0; i < left; i++)
		rest[rest_count++] = firsts[i];
	if (rest_count == 0)
		return;
	left = resolve_all(rest, rest_count);

	/* Neither inserted nor there: a trigger held it back, or another session deleted it. */
	if (left > 0)
	{
		qsort(rest, left, sizeof(Delivery *), compare_identities);
		left = insert_new(rest, left);
	}
	if (left > 0)
		left = resolve_all(rest, left);
	for (int i = 0; i < left; i++)
		delivery_to_quarantine(rest[i], QUARANTINE_TRIGGER_SUPPRESSED, 0,
							   "the event was not inserted, and no error was raised");
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

void
event_store_make_durable(void)
{
	/* A transaction that has an id, and no other WAL than of its commit, waits for nothing. */
	if (XactLastRecEnd == 0)
		(void) LogLogicalMessage("banked_webhooks", "", 0, true);
	(void) GetTopTransactionId();
}
