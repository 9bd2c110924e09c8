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
#include "catalog/pg_collation.h"
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
#include "statements.h"

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

static const struct
{
	const char *name;
	Oid			type;
}			new_columns[NEW_COLUMNS] = {
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
	"ON CONFLICT DO NOTHING RETURNING seq"
};

static Statement insert_revision = {
	.sql = "INSERT INTO banked.event_revisions (" COMMON_COLUMNS ", kind) "
	"SELECT " COMMON_COLUMNS ", kind FROM new_events "
	"ON CONFLICT DO NOTHING RETURNING seq"
};

/*
 * All stored rows of some event_ids: those of the same event type, and those of
 * other types too, which in v2 are events of the same resource.
 */
#define STORED_ROWS(table) \
	"SELECT t.event_type, t.revision, t.body_sha256, t.signature, t.signed_at, t.received_at, t.seq " \
	"FROM banked." table " t WHERE t.event_id OPERATOR(pg_catalog.=) i.event_id"

static Statement find_stored = {
	.sql = "SELECT i.ordinal, s.event_type, s.revision, s.body_sha256, s.signature, s.signed_at, "
	"s.received_at, s.seq FROM event_ids i CROSS JOIN LATERAL ("
	STORED_ROWS("events") " UNION ALL " STORED_ROWS("event_revisions") ") s"
};

static Statement insert_quarantine = {
	.sql = "INSERT INTO banked.quarantine (endpoint_id, received_at, signed_at, key_id, signature, "
	"body, body_sha256, reason, sqlstate, message, next_attempt_at) "
	"VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, "
	"CASE WHEN $8 = 'trigger_error' THEN clock_timestamp() + interval '1 minute' END) "
	"ON CONFLICT DO NOTHING",
	.nargs = 10,
	.argtypes = {UUIDOID, TIMESTAMPTZOID, TIMESTAMPTZOID, UUIDOID, BYTEAOID,
	BYTEAOID, BYTEAOID, TEXTOID, TEXTOID, TEXTOID}
};

/* A further attempt has failed: the pause doubles, up to an hour. */
static Statement update_quarantine = {
	.sql = "UPDATE banked.quarantine SET reason = $2, sqlstate = $3, message = $4, "
	"attempts = attempts + 1, next_attempt_at = CASE WHEN $2 = 'trigger_error' THEN "
	"clock_timestamp() + least(interval '1 minute' * 2 ^ least(attempts + 1, 10), interval '1 hour') END "
	"WHERE quarantine_id = $1",
	.nargs = 4,
	.argtypes = {INT8OID, TEXTOID, TEXTOID, TEXTOID}
};

static Statement delete_quarantine = {
	.sql = "DELETE FROM banked.quarantine WHERE quarantine_id = $1",
	.nargs = 1,
	.argtypes = {INT8OID}
};

#define QUARANTINE_COLUMNS \
	"endpoint_id, received_at, signed_at, key_id, signature, body, body_sha256"

static Statement read_quarantine = {
	.sql = "SELECT " QUARANTINE_COLUMNS " FROM banked.quarantine "
	"WHERE quarantine_id = $1 FOR UPDATE",
	.nargs = 1,
	.argtypes = {INT8OID}
};

/* Somebody may have erased the bytes of a row: nothing is left to be tried then. */
#define CAN_BE_TRIED \
	"reason = 'trigger_error' AND dismissed_at IS NULL " \
	"AND body IS NOT NULL AND signature IS NOT NULL AND signed_at IS NOT NULL"

static Statement read_due_quarantine = {
	.sql = "SELECT " QUARANTINE_COLUMNS " FROM banked.quarantine "
	"WHERE quarantine_id = $1 AND " CAN_BE_TRIED " "
	"AND next_attempt_at <= clock_timestamp() FOR UPDATE SKIP LOCKED",
	.nargs = 1,
	.argtypes = {INT8OID}
};

static Statement find_next_attempt = {
	.sql = "SELECT quarantine_id, next_attempt_at FROM banked.quarantine "
	"WHERE " CAN_BE_TRIED " AND next_attempt_at IS NOT NULL "
	"ORDER BY next_attempt_at LIMIT 1 FOR UPDATE SKIP LOCKED"
};

/* A stored row of a delivery's event_id. */
typedef struct StoredRow
{
	char	   *event_type;
	int			revision;
	uint8		body_sha256[SIGNATURE_SIZE];
	uint8		signature[SIGNATURE_SIZE];
	TimestampTz signed_at;
	TimestampTz received_at;
	int64		seq;
	struct StoredRow *next;
} StoredRow;

static Datum
bytes_datum(const void *bytes, Size length)
{
	bytea	   *result = palloc(length + VARHDRSZ);

	SET_VARSIZE(result, length + VARHDRSZ);
	memcpy(VARDATA(result), bytes, length);
	return PointerGetDatum(result);
}

static void
set_text(Datum *values, bool *nulls, int column, const char *text)
{
	nulls[column] = (text == NULL);
	if (text != NULL)
		values[column] = CStringGetTextDatum(text);
}

/* Makes a tuplestore visible to the statements of the current SPI connection. */
static void
register_store(char *name, TupleDesc tupdesc, Tuplestorestate *store, int rows)
{
	EphemeralNamedRelation relation = palloc0(sizeof(EphemeralNamedRelationData));

	(void) SPI_unregister_relation(name);
	relation->md.name = name;
	relation->md.reliddesc = InvalidOid;
	relation->md.tupdesc = tupdesc;
	relation->md.enrtype = ENR_NAMED_TUPLESTORE;
	relation->md.enrtuples = rows;
	relation->reldata = store;
	if (SPI_register_relation(relation) < 0)
		elog(ERROR, "could not register the rows of a batch");
}

static TupleDesc
new_events_descriptor(void)
{
	static TupleDesc descriptor = NULL;

	if (descriptor == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
		TupleDesc	built = CreateTemplateTupleDesc(NEW_COLUMNS);

		for (int i = 0; i < NEW_COLUMNS; i++)
			TupleDescInitEntry(built, i + 1, new_columns[i].name, new_columns[i].type, -1, 0);
		descriptor = built;
		MemoryContextSwitchTo(old);
	}
	return descriptor;
}

static TupleDesc
event_ids_descriptor(void)
{
	static TupleDesc descriptor = NULL;

	if (descriptor == NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
		TupleDesc	built = CreateTemplateTupleDesc(2);

		TupleDescInitEntry(built, 1, "ordinal", INT4OID, -1, 0);
		TupleDescInitEntry(built, 2, "event_id", TEXTOID, -1, 0);
		TupleDescInitEntryCollation(built, 2, C_COLLATION_OID);
		descriptor = built;
		MemoryContextSwitchTo(old);
	}
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
	values[NEW_BODY] = bytes_datum(d->body, d->body_length);
	values[NEW_BODY_SHA256] = bytes_datum(d->body_sha256, SIGNATURE_SIZE);
	values[NEW_SIGNATURE] = bytes_datum(d->signature, SIGNATURE_SIZE);
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
compare_seq(const void *a, const void *b)
{
	int64		left = *(const int64 *) a;
	int64		right = *(const int64 *) b;

	return left < right ? -1 : left > right;
}

/* Did the last INSERT ... RETURNING seq return this one?  seqs is sorted. */
static bool
was_returned(const int64 *seqs, uint64 count, int64 seq)
{
	return count > 0 && bsearch(&seq, seqs, count, sizeof(int64), compare_seq) != NULL;
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
	int64	   *seqs;
	uint64		returned;
	int			left = 0;

	for (int i = 0; i < count; i++)
		put_event(store, deliveries[i], stored_by, 0, NULL);
	register_store("new_events", new_events_descriptor(), store, count);
	(void) statements_run(&insert_events, NULL, NULL, 0);
	tuplestore_end(store);

	returned = SPI_processed;
	seqs = palloc(sizeof(int64) * (returned + 1));
	for (uint64 row = 0; row < returned; row++)
		seqs[row] = result_int64(row, 1);
	SPI_freetuptable(SPI_tuptable);
	qsort(seqs, returned, sizeof(int64), compare_seq);

	for (int i = 0; i < count; i++)
	{
		if (was_returned(seqs, returned, deliveries[i]->seq))
			deliveries[i]->outcome = OUTCOME_STORED;
		else
			deliveries[left++] = deliveries[i];
	}
	pfree(seqs);
	return left;
}

static void
copy_digest(uint8 digest[SIGNATURE_SIZE], Datum value, bool isnull)
{
	memset(digest, 0, SIGNATURE_SIZE);
	if (!isnull)
	{
		bytea	   *bytes = DatumGetByteaPP(value);

		memcpy(digest, VARDATA_ANY(bytes), Min(VARSIZE_ANY_EXHDR(bytes), SIGNATURE_SIZE));
	}
}

static StoredRow *
stored_row_from_result(uint64 row)
{
	HeapTuple	tuple = SPI_tuptable->vals[row];
	TupleDesc	tupdesc = SPI_tuptable->tupdesc;
	StoredRow  *stored = palloc0(sizeof(StoredRow));
	Datum		value;
	bool		isnull;

	stored->event_type = TextDatumGetCString(SPI_getbinval(tuple, tupdesc, 2, &isnull));
	stored->revision = DatumGetInt32(SPI_getbinval(tuple, tupdesc, 3, &isnull));
	value = SPI_getbinval(tuple, tupdesc, 4, &isnull);
	copy_digest(stored->body_sha256, value, isnull);
	value = SPI_getbinval(tuple, tupdesc, 5, &isnull);
	copy_digest(stored->signature, value, isnull);
	stored->signed_at = DatumGetTimestampTz(SPI_getbinval(tuple, tupdesc, 6, &isnull));
	stored->received_at = DatumGetTimestampTz(SPI_getbinval(tuple, tupdesc, 7, &isnull));
	stored->seq = DatumGetInt64(SPI_getbinval(tuple, tupdesc, 8, &isnull));
	return stored;
}

static void
set_for_statement(const char *name, const char *value)
{
	(void) set_config_option(name, value, PGC_SUSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
}

/*
 * Looks up the stored rows of the event_ids of deliveries that are sorted by
 * it: an array of lists, palloc'ed, with the list of an event_id at its first
 * delivery.
 */
static StoredRow **
find_rows(Delivery **deliveries, int count)
{
	Tuplestorestate *store = tuplestore_begin_heap(false, false, STORE_MEMORY_KB);
	StoredRow **rows = palloc0(sizeof(StoredRow *) * count);
	int			level;

	for (int i = 0; i < count; i++)
	{
		Datum		values[2];
		bool		nulls[2] = {0};

		if (i > 0 && strcmp(deliveries[i - 1]->event_id, deliveries[i]->event_id) == 0)
			continue;
		values[0] = Int32GetDatum(i);
		values[1] = CStringGetTextDatum(deliveries[i]->event_id);
		tuplestore_putvalues(store, event_ids_descriptor(), values, nulls);
	}
	register_store("event_ids", event_ids_descriptor(), store, count);

	/* The tables grow faster than their statistics: only the key's index will do. */
	level = NewGUCNestLevel();
	set_for_statement("enable_seqscan", "off");
	set_for_statement("enable_hashjoin", "off");
	set_for_statement("enable_mergejoin", "off");
	(void) statements_run(&find_stored, NULL, NULL, 0);
	AtEOXact_GUC(false, level);
	tuplestore_end(store);

	for (uint64 row = 0; row < SPI_processed; row++)
	{
		bool		isnull;
		int			ordinal = DatumGetInt32(SPI_getbinval(SPI_tuptable->vals[row],
														  SPI_tuptable->tupdesc, 1, &isnull));
		StoredRow  *stored = stored_row_from_result(row);

		stored->next = rows[ordinal];
		rows[ordinal] = stored;
	}
	SPI_freetuptable(SPI_tuptable);
	return rows;
}

/* Was row a stored after row b? */
static bool
stored_after(const StoredRow *a, const StoredRow *b)
{
	return a->received_at > b->received_at ||
		(a->received_at == b->received_at && a->seq > b->seq);
}

/* The newest row of a delivery's identity among those of its event_id, or null: the identity is new. */
static const StoredRow *
newest_of_identity(const Delivery *delivery, const StoredRow *rows)
{
	const StoredRow *newest = NULL;

	for (const StoredRow *row = rows; row != NULL; row = row->next)
	{
		if (strcmp(row->event_type, delivery->event_type) == 0 &&
			(newest == NULL || stored_after(row, newest)))
			newest = row;
	}
	return newest;
}

/* Was another event type of the resource stored after that, signed before this delivery? */
static bool
other_type_stored_since(const Delivery *delivery, const StoredRow *rows, const StoredRow *newest)
{
	for (const StoredRow *row = rows; row != NULL; row = row->next)
	{
		if (strcmp(row->event_type, delivery->event_type) != 0 &&
			stored_after(row, newest) && row->signed_at < delivery->signed_at)
			return true;
	}
	return false;
}

/*
 * What a delivery of a known identity is, given the stored rows of its
 * event_id and the newest of the identity: see the file's header.
 */
static Outcome
classify(const Delivery *delivery, const StoredRow *rows, const StoredRow *newest)
{
	bool		same_body = false;

	for (const StoredRow *row = rows; row != NULL; row = row->next)
	{
		if (strcmp(row->event_type, delivery->event_type) != 0 ||
			memcmp(row->body_sha256, delivery->body_sha256, SIGNATURE_SIZE) != 0)
			continue;
		same_body = true;
		if (memcmp(row->signature, delivery->signature, SIGNATURE_SIZE) == 0)
			return OUTCOME_REPETITION;
	}
	if (!same_body)
		return OUTCOME_CHANGED;
	if (delivery->v2 && other_type_stored_since(delivery, rows, newest))
		return OUTCOME_RECURRENCE;
	return OUTCOME_REPETITION;
}

/* Inserts one revision under a number; false when it did not become a row. */
static bool
try_revision(Delivery *delivery, int revision, Outcome kind)
{
	Tuplestorestate *store = tuplestore_begin_heap(false, false, STORE_MEMORY_KB);
	FullTransactionId stored_by = take_seqs(&delivery, 1);

	put_event(store, delivery, stored_by, revision, counters_outcome_name(kind));
	register_store("new_events", new_events_descriptor(), store, 1);
	(void) statements_run(&insert_revision, NULL, NULL, 0);
	tuplestore_end(store);
	SPI_freetuptable(SPI_tuptable);
	return SPI_processed == 1;
}

/* What a delivery looks like as a stored row. */
static StoredRow *
stored_row_from_delivery(const Delivery *delivery, int revision, StoredRow *next)
{
	StoredRow  *stored = palloc0(sizeof(StoredRow));

	stored->event_type = delivery->event_type;
	stored->revision = revision;
	stored->signed_at = delivery->signed_at;
	memcpy(stored->body_sha256, delivery->body_sha256, SIGNATURE_SIZE);
	memcpy(stored->signature, delivery->signature, SIGNATURE_SIZE);
	stored->received_at = delivery->received_at;
	stored->seq = delivery->seq;
	stored->next = next;
	return stored;
}

static int
next_revision(const Delivery *delivery, const StoredRow *rows)
{
	int			revision = 1;

	for (const StoredRow *row = rows; row != NULL; row = row->next)
	{
		if (strcmp(row->event_type, delivery->event_type) == 0)
			revision = Max(revision, row->revision + 1);
	}
	return revision;
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
	const StoredRow *newest = newest_of_identity(delivery, rows);
	int			tried = 0;

	if (newest == NULL)
		return rows;
	while (newest != NULL)
	{
		Outcome		outcome = classify(delivery, rows, newest);
		int			revision = next_revision(delivery, rows);

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
			return stored_row_from_delivery(delivery, revision, rows);
		}
		rows = find_rows(&delivery, 1)[0];
		newest = newest_of_identity(delivery, rows);
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
	found = find_rows(deliveries, count);
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
remove_from_quarantine(int64 quarantine_id)
{
	Identity	before;
	Datum		value = Int64GetDatum(quarantine_id);

	statements_become_owner(&before);
	(void) statements_run(&delete_quarantine, &value, NULL, 0);
	statements_restore(&before);
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
	}
	for (int i = 0; i < count; i++)
	{
		if (deliveries[i]->same_as != NULL)
			follow(deliveries[i]);
		else if (deliveries[i]->outcome == OUTCOME_QUARANTINED)
			event_store_quarantine(deliveries[i]);
		else if (deliveries[i]->quarantine_id != 0)
			remove_from_quarantine(deliveries[i]->quarantine_id);
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

	SPI_connect();
	statements_become_worker(&before);
	rows = find_rows(&delivery, 1)[0];
	(void) resolve_known(delivery, rows);
	run_deferred_triggers();
	statements_restore(&before);
	if (delivery->outcome == OUTCOME_QUARANTINED)
		event_store_quarantine(delivery);
	else if (delivery->outcome != OUTCOME_PENDING && delivery->quarantine_id != 0)
		remove_from_quarantine(delivery->quarantine_id);
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

static char
null_flag(bool isnull)
{
	return isnull ? 'n' : ' ';
}

void
event_store_quarantine(Delivery *delivery)
{
	const char *reason = delivery_quarantine_reason(delivery->reason);
	const char *sqlstate = delivery->sqlstate == 0 ? NULL : unpack_sql_state(delivery->sqlstate);
	Datum		values[10] = {0};
	char		nulls[11] = "          ";
	Identity	before;

	SPI_connect();
	statements_become_owner(&before);
	if (delivery->quarantine_id == 0)
	{
		values[0] = UUIDPGetDatum(&delivery->endpoint_id);
		values[1] = TimestampTzGetDatum(delivery->received_at);
		values[2] = TimestampTzGetDatum(delivery->signed_at);
		nulls[3] = null_flag(!delivery->has_key_id);
		values[3] = UUIDPGetDatum(&delivery->key_id);
		values[4] = bytes_datum(delivery->signature, SIGNATURE_SIZE);
		values[5] = bytes_datum(delivery->body, delivery->body_length);
		values[6] = bytes_datum(delivery->body_sha256, SIGNATURE_SIZE);
		values[7] = CStringGetTextDatum(reason);
		nulls[8] = null_flag(sqlstate == NULL);
		values[8] = sqlstate == NULL ? (Datum) 0 : CStringGetTextDatum(sqlstate);
		nulls[9] = null_flag(delivery->message == NULL);
		values[9] = delivery->message == NULL ? (Datum) 0 : CStringGetTextDatum(delivery->message);
		(void) statements_run(&insert_quarantine, values, nulls, 0);
	}
	else
	{
		values[0] = Int64GetDatum(delivery->quarantine_id);
		values[1] = CStringGetTextDatum(reason);
		nulls[2] = null_flag(sqlstate == NULL);
		values[2] = sqlstate == NULL ? (Datum) 0 : CStringGetTextDatum(sqlstate);
		nulls[3] = null_flag(delivery->message == NULL);
		values[3] = delivery->message == NULL ? (Datum) 0 : CStringGetTextDatum(delivery->message);
		(void) statements_run(&update_quarantine, values, nulls, 0);
	}
	statements_restore(&before);
	SPI_finish();
	delivery->outcome = OUTCOME_QUARANTINED;
}

static void
copy_row_of_quarantine(Delivery *delivery, MemoryContext context)
{
	HeapTuple	tuple = SPI_tuptable->vals[0];
	TupleDesc	tupdesc = SPI_tuptable->tupdesc;
	MemoryContext old = MemoryContextSwitchTo(context);
	Datum		value;
	bool		isnull;
	bytea	   *body;

	for (int column = 1; column <= tupdesc->natts; column++)
	{
		(void) SPI_getbinval(tuple, tupdesc, column, &isnull);
		if (isnull && strcmp(SPI_fname(tupdesc, column), "key_id") != 0)
			ereport(ERROR,
					(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
					 errmsg("the delivery in quarantine is not complete any more"),
					 errdetail("Its %s has been erased.", SPI_fname(tupdesc, column))));
	}

	delivery->authentic = true;
	delivery->endpoint_id = *DatumGetUUIDP(SPI_getbinval(tuple, tupdesc, 1, &isnull));
	delivery->received_at = DatumGetTimestampTz(SPI_getbinval(tuple, tupdesc, 2, &isnull));
	delivery->signed_at = DatumGetTimestampTz(SPI_getbinval(tuple, tupdesc, 3, &isnull));
	value = SPI_getbinval(tuple, tupdesc, 4, &isnull);
	delivery->has_key_id = !isnull;
	if (!isnull)
		delivery->key_id = *DatumGetUUIDP(value);
	value = SPI_getbinval(tuple, tupdesc, 5, &isnull);
	copy_digest(delivery->signature, value, isnull);
	body = DatumGetByteaPCopy(SPI_getbinval(tuple, tupdesc, 6, &isnull));
	delivery->body = VARDATA(body);
	delivery->body_length = VARSIZE(body) - VARHDRSZ;
	value = SPI_getbinval(tuple, tupdesc, 7, &isnull);
	copy_digest(delivery->body_sha256, value, isnull);
	MemoryContextSwitchTo(old);
}

bool
event_store_read_quarantine(int64 quarantine_id, bool only_due, Delivery *delivery)
{
	MemoryContext context = CurrentMemoryContext;
	Datum		value = Int64GetDatum(quarantine_id);
	Identity	before;
	bool		found;

	SPI_connect();
	statements_become_owner(&before);
	(void) statements_run(only_due ? &read_due_quarantine : &read_quarantine, &value, NULL, 0);
	found = SPI_processed == 1;
	if (found)
	{
		copy_row_of_quarantine(delivery, context);
		delivery->quarantine_id = quarantine_id;
	}
	statements_restore(&before);
	SPI_finish();
	return found;
}

int64
event_store_next_attempt(TimestampTz *due_at)
{
	Identity	before;
	int64		quarantine_id = 0;

	*due_at = DT_NOEND;
	if (!OidIsValid(statements_relation("quarantine")) || !statements_extension_exists())
		return 0;

	SPI_connect();
	statements_become_owner(&before);
	(void) statements_run(&find_next_attempt, NULL, NULL, 0);
	if (SPI_processed == 1)
	{
		bool		isnull;

		*due_at = DatumGetTimestampTz(SPI_getbinval(SPI_tuptable->vals[0], SPI_tuptable->tupdesc,
													2, &isnull));
		if (*due_at <= GetCurrentTimestamp())
			quarantine_id = result_int64(0, 1);
	}
	statements_restore(&before);
	SPI_finish();
	return quarantine_id;
}
