/*
 * quarantine.c
 *	  Rows of banked.quarantine, in the caller's transaction.
 *
 * Authentic deliveries that could not become an event are kept here, with the
 * reason.  No user's trigger is on this table: its rows are written with the rights
 * of the extension's owner.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/timestamp.h"

#include "quarantine.h"
#include "statements.h"

/*
 * The same bytes are kept once.  A recurrence of them stands for the earlier
 * delivery too: of a mandate that became active, was suspended and is active
 * again, the last must not be what gets lost.
 */
static Statement insert_quarantine = {
	.sql = "INSERT INTO banked.quarantine (endpoint_id, received_at, signed_at, key_id, signature, "
	"body, body_sha256, reason, sqlstate, message, next_attempt_at) "
	"VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, "
	"CASE WHEN $8 = 'trigger_error' THEN clock_timestamp() + interval '1 minute' END) "
	"ON CONFLICT (endpoint_id, body_sha256) DO UPDATE SET received_at = excluded.received_at, "
	"signed_at = excluded.signed_at, key_id = excluded.key_id, signature = excluded.signature "
	"WHERE $11 AND quarantine.signed_at < excluded.signed_at AND quarantine.dismissed_at IS NULL",
	.nargs = 11,
	.argtypes = {UUIDOID, TIMESTAMPTZOID, TIMESTAMPTZOID, UUIDOID, BYTEAOID,
	BYTEAOID, BYTEAOID, TEXTOID, TEXTOID, TEXTOID, BOOLOID}
};

/* When to look again for rows that are due and locked, all of them, in milliseconds. */
#define LOCKED_RETRY 1000

/* The longest message that is kept, in bytes: one of a trigger may quote a whole body. */
#define MAX_MESSAGE 8192

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
	.sql = "SELECT min(next_attempt_at) FROM banked.quarantine WHERE " CAN_BE_TRIED
};

/* The lock makes it a row that nobody else is at work on; it is taken again to read the row. */
static Statement find_due_attempt = {
	.sql = "SELECT quarantine_id FROM banked.quarantine "
	"WHERE " CAN_BE_TRIED " AND next_attempt_at <= clock_timestamp() "
	"ORDER BY next_attempt_at LIMIT 1 FOR UPDATE SKIP LOCKED"
};

static Statement postpone_attempt = {
	.sql = "UPDATE banked.quarantine SET next_attempt_at = clock_timestamp() + interval '1 minute' "
	"WHERE quarantine_id IN (SELECT quarantine_id FROM banked.quarantine "
	"WHERE quarantine_id = $1 AND next_attempt_at <= clock_timestamp() FOR UPDATE SKIP LOCKED)",
	.nargs = 1,
	.argtypes = {INT8OID}
};

/* Runs a statement that has the row's id as its argument. */
static void
change_row(Statement *statement, int64 quarantine_id)
{
	Identity	before;
	Datum		value = Int64GetDatum(quarantine_id);

	SPI_connect();
	statements_become_owner(&before);
	(void) statements_run(statement, &value, NULL, 0);
	statements_restore(&before);
	SPI_finish();
}

void
quarantine_remove(int64 quarantine_id)
{
	change_row(&delete_quarantine, quarantine_id);
}

void
quarantine_postpone(int64 quarantine_id)
{
	change_row(&postpone_attempt, quarantine_id);
}

static char
null_flag(bool isnull)
{
	return isnull ? 'n' : ' ';
}

/* In v2 the resource's id is that of all its events, and one of them may come again with the same bytes. */
static bool
may_recur(const Delivery *delivery)
{
	return delivery->v2 && delivery->event_id != NULL && delivery->event_type != NULL;
}

void
quarantine_put(Delivery *delivery)
{
	const char *reason = delivery_quarantine_reason(delivery->reason);
	const char *sqlstate = delivery->sqlstate == 0 ? NULL : unpack_sql_state(delivery->sqlstate);
	Datum		values[11] = {0};
	char		nulls[12] = "           ";
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
		values[4] = statements_bytes(delivery->signature, SIGNATURE_SIZE);
		values[5] = statements_bytes(delivery->body, delivery->body_length);
		values[6] = statements_bytes(delivery->body_sha256, SIGNATURE_SIZE);
		values[7] = CStringGetTextDatum(reason);
		nulls[8] = null_flag(sqlstate == NULL);
		values[8] = sqlstate == NULL ? (Datum) 0 : CStringGetTextDatum(sqlstate);
		nulls[9] = null_flag(delivery->message == NULL);
		values[9] = delivery->message == NULL ? (Datum) 0 :
			statements_clipped_text(delivery->message, MAX_MESSAGE);
		values[10] = BoolGetDatum(may_recur(delivery));
		(void) statements_run(&insert_quarantine, values, nulls, 0);
	}
	else
	{
		values[0] = Int64GetDatum(delivery->quarantine_id);
		values[1] = CStringGetTextDatum(reason);
		nulls[2] = null_flag(sqlstate == NULL);
		values[2] = sqlstate == NULL ? (Datum) 0 : CStringGetTextDatum(sqlstate);
		nulls[3] = null_flag(delivery->message == NULL);
		values[3] = delivery->message == NULL ? (Datum) 0 :
			statements_clipped_text(delivery->message, MAX_MESSAGE);
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
	statements_copy_digest(delivery->signature, value, isnull);
	body = DatumGetByteaPCopy(SPI_getbinval(tuple, tupdesc, 6, &isnull));
	delivery->body = VARDATA(body);
	delivery->body_length = VARSIZE(body) - VARHDRSZ;
	value = SPI_getbinval(tuple, tupdesc, 7, &isnull);
	statements_copy_digest(delivery->body_sha256, value, isnull);
	MemoryContextSwitchTo(old);
}

bool
quarantine_read(int64 quarantine_id, bool only_due, Delivery *delivery)
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
quarantine_next_attempt(TimestampTz *due_at)
{
	TimestampTz now = GetCurrentTimestamp();
	Identity	before;
	int64		quarantine_id = 0;
	Datum		value;
	bool		isnull;

	*due_at = DT_NOEND;
	if (!OidIsValid(statements_relation("quarantine")) || !statements_extension_exists())
		return 0;

	SPI_connect();
	statements_become_owner(&before);
	(void) statements_run(&find_next_attempt, NULL, NULL, 0);
	value = statements_result(0, 1, &isnull);
	if (!isnull)
		*due_at = DatumGetTimestampTz(value);
	if (*due_at <= now)
	{
		(void) statements_run(&find_due_attempt, NULL, NULL, 0);
		if (SPI_processed == 1)
			quarantine_id = DatumGetInt64(statements_result(0, 1, &isnull));
		else
			*due_at = TimestampTzPlusMilliseconds(now, LOCKED_RETRY);
	}
	statements_restore(&before);
	SPI_finish();
	return quarantine_id;
}
