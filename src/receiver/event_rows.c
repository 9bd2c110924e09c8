/*
 * event_rows.c
 *	  Inserts rows into events and event_revisions.
 *
 * One statement inserts all new events of a batch.  The careful one has
 * ON CONFLICT DO NOTHING, which looks into each unique index before it
 * inserts, and leaves out what is known.  Almost all events are new: while the
 * last insertions met none that was known, a receiver does without, and the
 * first conflict raises 23505, upon which the batch is stored again with care.
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
#include "catalog/dependency.h"
#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/tuplestore.h"
#include "utils/xid8.h"

#include "event_rows.h"
#include "statements.h"

/* Memory that a tuplestore may take before it goes to disk: a batch is bounded elsewhere. */
#define STORE_MEMORY_KB (1024 * 1024)

/* So many insertions after one that met a known event are careful. */
#define CAREFUL_INSERTIONS 64

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

#define RETURNED_COLUMNS "seq, event_id, event_type"

#define INSERT_EVENTS \
	"INSERT INTO banked.events (" COMMON_COLUMNS ") SELECT " COMMON_COLUMNS " FROM new_events "

static Statement insert_events_carefully = {
	.sql = INSERT_EVENTS "ON CONFLICT DO NOTHING RETURNING " RETURNED_COLUMNS
};

static Statement insert_events_optimistically = {
	.sql = INSERT_EVENTS "RETURNING " RETURNED_COLUMNS
};

static Statement insert_revision = {
	.sql = "INSERT INTO banked.event_revisions (" COMMON_COLUMNS ", kind) "
	"SELECT " COMMON_COLUMNS ", kind FROM new_events "
	"ON CONFLICT DO NOTHING RETURNING " RETURNED_COLUMNS
};

static bool optimism_allowed = false;
static int	careful_insertions = CAREFUL_INSERTIONS;	/* so many are left */
static bool was_optimistic = false; /* the last insertion */

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

	return DatumGetInt64(statements_result(row, column, &isnull));
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

int
event_rows_insert(Delivery **deliveries, int count)
{
	Tuplestorestate *store = tuplestore_begin_heap(false, false, STORE_MEMORY_KB);
	FullTransactionId stored_by = take_seqs(deliveries, count);
	ReturnedRow *rows;
	uint64		returned;
	int			left = 0;

	for (int i = 0; i < count; i++)
		put_event(store, deliveries[i], stored_by, 0, NULL);
	statements_register_rows("new_events", new_events_descriptor(), store, count);
	was_optimistic = optimism_allowed && careful_insertions == 0;
	(void) statements_run(was_optimistic ? &insert_events_optimistically : &insert_events_carefully,
						  NULL, NULL, 0);
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

	if (left > 0)
		careful_insertions = CAREFUL_INSERTIONS;
	else if (careful_insertions > 0)
		careful_insertions--;
	return left;
}

bool
event_rows_insert_revision(Delivery *delivery, int revision, Outcome kind)
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

void
event_rows_allow_optimism(void)
{
	optimism_allowed = true;
}

bool
event_rows_were_too_optimistic(int sqlstate)
{
	if (!was_optimistic || sqlstate != ERRCODE_UNIQUE_VIOLATION)
		return false;
	was_optimistic = false;
	careful_insertions = CAREFUL_INSERTIONS;
	return true;
}
