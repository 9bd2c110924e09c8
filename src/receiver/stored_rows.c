/*
 * stored_rows.c
 *	  What is stored of an event already, and what a further delivery is by that.
 */
#include "postgres.h"

#include "catalog/pg_collation.h"
#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "statements.h"
#include "stored_rows.h"

/* Memory that the look-up's tuplestore may take before it goes to disk. */
#define STORE_MEMORY_KB (64 * 1024)

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
	statements_copy_digest(stored->body_sha256, value, isnull);
	value = SPI_getbinval(tuple, tupdesc, 5, &isnull);
	statements_copy_digest(stored->signature, value, isnull);
	stored->signed_at = DatumGetTimestampTz(SPI_getbinval(tuple, tupdesc, 6, &isnull));
	stored->received_at = DatumGetTimestampTz(SPI_getbinval(tuple, tupdesc, 7, &isnull));
	stored->seq = DatumGetInt64(SPI_getbinval(tuple, tupdesc, 8, &isnull));
	return stored;
}

/*
 * Looks up the stored rows of the event_ids of deliveries that are sorted by
 * it: an array of lists, palloc'ed, with the list of an event_id at its first
 * delivery.
 */
StoredRow **
stored_rows_find(Delivery **deliveries, int count)
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
	statements_register_rows("event_ids", event_ids_descriptor(), store, count);

	/*
	 * The tables grow faster than their statistics: only the key's index will
	 * do, and compiling would cost a hundred times the look-up.
	 */
	level = NewGUCNestLevel();
	statements_set("enable_seqscan", "off");
	statements_set("enable_hashjoin", "off");
	statements_set("enable_mergejoin", "off");
	statements_set("jit", "off");
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
const StoredRow *
stored_rows_newest(const Delivery *delivery, const StoredRow *rows)
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
Outcome
stored_rows_classify(const Delivery *delivery, const StoredRow *rows, const StoredRow *newest)
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

/* What a delivery looks like as a stored row. */
StoredRow *
stored_rows_add(const Delivery *delivery, int revision, StoredRow *next)
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

int
stored_rows_next_revision(const Delivery *delivery, const StoredRow *rows)
{
	int			revision = 1;

	for (const StoredRow *row = rows; row != NULL; row = row->next)
	{
		if (strcmp(row->event_type, delivery->event_type) == 0)
			revision = Max(revision, row->revision + 1);
	}
	return revision;
}
