/*
 * job_queue.c
 *	  The table banked.jobs: what may happen to a job.
 *
 *	 (none)	 -> ready	 an event came, or replay()
 *	 ready	 -> running	 a worker claims it; committed before its function runs
 *	 running -> done	 in the transaction of the function
 *	 running -> ready	 the attempt failed and others are left, or it did not take place
 *	 running -> dead	 the last attempt failed
 *	 ready	 -> dead	 the role of its handler has been dropped
 *	 running -> (none)	 it did not end well, and unsubscribe() has removed the handler meanwhile
 *	 dead	 -> ready	 retry()
 *
 * An attempt owns its job while the job is running and bears its number of
 * attempts; whoever comes late finds another number, and changes nothing.  So
 * the completion of an attempt that was given up, rolls back its function.
 *
 * The statements are planned as the table grows and shrinks by orders of
 * magnitude, and statistics lag behind: only index scans are allowed to them.
 */
#include "postgres.h"

#include "catalog/pg_class.h"
#include "catalog/pg_type.h"
#include "common/hashfn.h"
#include "miscadmin.h"
#include "storage/lmgr.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "job_queue.h"
#include "receiver/endpoint_cache.h"
#include "receiver/notify.h"
#include "receiver/statements.h"
#include "receiver/transaction.h"
#include "watch.h"

/* What is kept of each text of an error, in bytes. */
#define ERROR_TEXT_SIZE 65536

/* The columns of the tuplestore new_jobs. */
enum
{
	NEW_HANDLER,
	NEW_EVENT_ID,
	NEW_EVENT_TYPE,
	NEW_REVISION,
	NEW_ORDER_KEY,
	NEW_RECEIVED_AT,
	NEW_COLUMNS
};

static const StatementColumn new_columns[NEW_COLUMNS] = {
	[NEW_HANDLER] = {"handler", TEXTOID},
	[NEW_EVENT_ID] = {"event_id", TEXTOID},
	[NEW_EVENT_TYPE] = {"event_type", TEXTOID},
	[NEW_REVISION] = {"revision", INT4OID},
	[NEW_ORDER_KEY] = {"order_key", TEXTOID},
	[NEW_RECEIVED_AT] = {"received_at", TIMESTAMPTZOID},
};

static Statement insert_jobs = {
	.sql = "INSERT INTO banked.jobs (handler, event_id, event_type, revision, order_key, received_at, run_at) "
	"SELECT handler, event_id, event_type, revision, order_key, received_at, clock_timestamp() "
	"FROM new_jobs"
};

#define CLAIM(condition) \
	"UPDATE banked.jobs AS j SET state = 'running', attempts = j.attempts + 1, " \
	"started_at = clock_timestamp(), worker_pid = pg_backend_pid(), server_started = pg_postmaster_start_time() " \
	"FROM (SELECT r.job_id FROM banked.jobs AS r " \
	"WHERE r.handler = $1 AND r.state = 'ready' AND r.run_at <= $2 AND (NOT r.alone OR $3 = 1)" condition \
	" ORDER BY r.run_at LIMIT $3 FOR UPDATE SKIP LOCKED) AS c " \
	"WHERE j.job_id = c.job_id " \
	"RETURNING j.job_id, j.event_id, j.event_type, j.revision, j.attempts, j.alone, j.run_at"

static Statement claim = {
	.sql = CLAIM(""),
	.nargs = 3,
	.argtypes = {TEXTOID, TIMESTAMPTZOID, INT4OID}
};

/*
 * One after the other within a resource, in order of arrival.  A later one may
 * run already where an earlier one came by replay() or retry().
 */
#define IN_TURN \
	" AND NOT EXISTS (SELECT FROM banked.jobs AS p " \
	"WHERE p.handler = r.handler AND p.order_key = r.order_key " \
	"AND p.state IN ('ready', 'running') AND p.order_key IS NOT NULL " \
	"AND (p.received_at, p.job_id) < (r.received_at, r.job_id))" \
	" AND NOT EXISTS (SELECT FROM banked.jobs AS q " \
	"WHERE q.handler = r.handler AND q.order_key = r.order_key " \
	"AND q.state = 'running' AND q.order_key IS NOT NULL)"

static Statement claim_ordered = {
	.sql = CLAIM(IN_TURN),
	.nargs = 3,
	.argtypes = {TEXTOID, TIMESTAMPTZOID, INT4OID}
};

/* A job that is due and was not claimed is locked, by somebody who may yet roll back. */
#define NEXT_DUE(condition) \
	"SELECT least((SELECT min(run_at) FROM banked.jobs WHERE handler = $1 AND state = 'ready' AND run_at > $2), " \
	"(SELECT clock_timestamp() + interval '1 s' FROM banked.jobs AS r " \
	"WHERE r.handler = $1 AND r.state = 'ready' AND r.run_at <= $2" condition " LIMIT 1))"

static Statement next_due = {
	.sql = NEXT_DUE(""),
	.nargs = 2,
	.argtypes = {TEXTOID, TIMESTAMPTZOID}
};

static Statement next_due_ordered = {
	.sql = NEXT_DUE(IN_TURN),
	.nargs = 2,
	.argtypes = {TEXTOID, TIMESTAMPTZOID}
};

static Statement finish = {
	.sql = "UPDATE banked.jobs SET state = 'done', finished_at = clock_timestamp(), alone = false "
	"WHERE job_id = $1 AND state = 'running' AND attempts = $2",
	.nargs = 2,
	.argtypes = {INT8OID, INT4OID}
};

/* unsubscribe() marks a job that runs by run_at. */
#define REMOVE_ORPHAN \
	"DELETE FROM banked.jobs WHERE job_id = $1 AND state = 'running' AND attempts = $2 AND run_at = 'infinity'"

/*
 * The pause doubles with each attempt, up to an hour; up to a quarter more, so
 * that jobs that failed together do not come back together.  A job whose handler
 * has been removed meanwhile goes the way of those that had not begun.
 */
static Statement fail = {
	.sql = "WITH removed AS (" REMOVE_ORPHAN "), failed AS ("
	"UPDATE banked.jobs AS j SET "
	"state = CASE WHEN $8 OR h.role_is_gone OR j.attempts >= coalesce(h.max_attempts, 0) THEN 'dead' ELSE 'ready' END, "
	"run_at = clock_timestamp() + least(h.backoff * 2 ^ least(j.attempts - 1, 20) * (1 + random() / 4), interval '1 hour'), "
	"finished_at = clock_timestamp(), alone = ($3 = 'crashed') "
	"FROM (SELECT r.job_id, s.max_attempts, coalesce(s.backoff, interval '0') AS backoff, "
	"NOT EXISTS (SELECT FROM pg_roles AS o WHERE o.oid = s.role_id) AS role_is_gone "
	"FROM banked.jobs AS r LEFT JOIN banked.handlers AS s ON s.handler = r.handler "
	"WHERE r.job_id = $1 AND r.run_at < 'infinity') AS h "
	"WHERE j.job_id = h.job_id AND j.state = 'running' AND j.attempts = $2 "
	"RETURNING j.job_id, j.handler, j.event_id, j.event_type, j.state, j.attempts, j.started_at, j.finished_at), "
	"recorded AS ("
	"INSERT INTO banked.job_attempts (job_id, attempt, started_at, finished_at, reason, sqlstate, message, detail, context) "
	"SELECT job_id, attempts, started_at, finished_at, $3, $4, $5, $6, $7 FROM failed) "
	"SELECT handler, event_id, event_type, state = 'dead' FROM failed",
	.nargs = 8,
	.argtypes = {INT8OID, INT4OID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, TEXTOID, BOOLOID}
};

static Statement release = {
	.sql = "WITH removed AS (" REMOVE_ORPHAN ") "
	"UPDATE banked.jobs SET state = 'ready', attempts = attempts - 1, alone = alone OR $3 "
	"WHERE job_id = $1 AND state = 'running' AND attempts = $2 AND run_at < 'infinity'",
	.nargs = 3,
	.argtypes = {INT8OID, INT4OID, BOOLOID}
};

static Statement bury = {
	.sql = "WITH dead AS (UPDATE banked.jobs AS j SET state = 'dead', finished_at = clock_timestamp() "
	"FROM (SELECT r.job_id FROM banked.jobs AS r WHERE r.handler = $1 AND r.state = 'ready' LIMIT $3 "
	"FOR UPDATE SKIP LOCKED) AS c WHERE j.job_id = c.job_id RETURNING j.job_id, j.event_id, j.event_type, j.attempts), "
	"recorded AS ("
	"INSERT INTO banked.job_attempts (job_id, attempt, started_at, finished_at, reason, sqlstate, message) "
	"SELECT job_id, attempts + 1, clock_timestamp(), clock_timestamp(), 'error', '42704', $2 FROM dead) "
	"SELECT job_id, event_id, event_type FROM dead",
	.nargs = 3,
	.argtypes = {TEXTOID, TEXTOID, INT4OID}
};

void
job_queue_begin(bool own)
{
	transaction_begin();
	if (own)
	{
		(void) set_config_option("synchronous_commit", "local", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_LOCAL, true, 0, false);
		(void) set_config_option("lock_timeout", "0", PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_LOCAL, true, 0, false);
	}
}

void
job_queue_commit(void)
{
	transaction_end();
}

/* Rises to the owner, with nothing but index scans allowed. */
static void
begin_statement(Identity *before)
{
	SPI_connect();
	statements_become_owner(before);
	statements_set("enable_seqscan", "off");
	statements_set("enable_bitmapscan", "off");
	statements_set("enable_hashjoin", "off");
	statements_set("enable_mergejoin", "off");
	statements_set("enable_sort", "off");
}

static void
end_statement(const Identity *before)
{
	statements_restore(before);
	SPI_finish();
}

static bool
wants(const Handler *handler, const Delivery *delivery)
{
	if (!handler->include_revisions && delivery->outcome != OUTCOME_STORED)
		return false;
	if (!handler->include_tests && delivery->test)
		return false;
	if (!handler->any_endpoint &&
		memcmp(&handler->endpoint_id, &delivery->endpoint_id, sizeof(pg_uuid_t)) != 0)
		return false;
	return handler->event_count < 0 ||
		event_type_matches(handler->events, handler->event_count, delivery->stored_type,
						   delivery->bare_mandate);
}

static TupleDesc
new_jobs_descriptor(void)
{
	static TupleDesc descriptor = NULL;

	if (descriptor == NULL)
		descriptor = statements_describe_rows(new_columns, NEW_COLUMNS);
	return descriptor;
}

static void
put_job(Tuplestorestate *store, const Handler *handler, const Delivery *delivery)
{
	Datum		values[NEW_COLUMNS] = {0};
	bool		nulls[NEW_COLUMNS] = {0};

	values[NEW_HANDLER] = CStringGetTextDatum(handler->name);
	values[NEW_EVENT_ID] = CStringGetTextDatum(delivery->stored_id);
	values[NEW_EVENT_TYPE] = CStringGetTextDatum(delivery->stored_type);
	values[NEW_REVISION] = Int32GetDatum(delivery->revision);
	nulls[NEW_ORDER_KEY] = !handler->ordered || delivery->resource_id == NULL;
	if (!nulls[NEW_ORDER_KEY])
		values[NEW_ORDER_KEY] = CStringGetTextDatum(delivery->resource_id);
	values[NEW_RECEIVED_AT] = TimestampTzGetDatum(delivery->received_at);
	tuplestore_putvalues(store, new_jobs_descriptor(), values, nulls);
}

static int
compare_arrivals(const void *a, const void *b)
{
	const Delivery *left = *(Delivery *const *) a;
	const Delivery *right = *(Delivery *const *) b;

	return left->received_at < right->received_at ? -1 : left->received_at > right->received_at;
}

static bool
became_row(const Delivery *delivery)
{
	return delivery->same_as == NULL && delivery->stored_id != NULL &&
		(delivery->outcome == OUTCOME_STORED || delivery->outcome == OUTCOME_CHANGED ||
		 delivery->outcome == OUTCOME_RECURRENCE);
}

void
job_queue_enqueue(Delivery **deliveries, int count)
{
	int			handler_count;
	const Handler *handlers = handler_cache_all(&handler_count);
	Delivery  **arrivals;
	Tuplestorestate *store = NULL;
	int			jobs = 0;
	Identity	before;

	if (handler_count == 0)
		return;
	arrivals = palloc(sizeof(Delivery *) * count);
	memcpy(arrivals, deliveries, sizeof(Delivery *) * count);
	qsort(arrivals, count, sizeof(Delivery *), compare_arrivals);

	for (int i = 0; i < handler_count; i++)
	{
		int			wanted = 0;

		for (int k = 0; k < count; k++)
		{
			if (!became_row(arrivals[k]) || !wants(&handlers[i], arrivals[k]))
				continue;
			if (store == NULL)
				store = tuplestore_begin_heap(false, false, work_mem);
			put_job(store, &handlers[i], arrivals[k]);
			wanted++;
		}
		if (wanted > 0)
			watch_jobs_ready(handlers[i].name, wanted);
		jobs += wanted;
	}
	if (jobs == 0)
		return;

	SPI_connect();
	statements_become_owner(&before);
	statements_register_rows("new_jobs", new_jobs_descriptor(), store, jobs);
	(void) statements_run(&insert_jobs, NULL, NULL, 0);
	statements_restore(&before);
	SPI_finish();
	tuplestore_end(store);
}

static int
compare_jobs(const void *a, const void *b)
{
	const Job  *left = a;
	const Job  *right = b;

	return left->job_id < right->job_id ? -1 : left->job_id > right->job_id;
}

/*
 * Two workers that claim at one time would not see each other's job of the same
 * resource.  No statement of SQL takes such a lock.
 */
static void
lock_order(const Handler *handler)
{
	uint32		hash = hash_bytes((const unsigned char *) handler->name, strlen(handler->name));

	LockDatabaseObject(RelationRelationId, statements_relation("jobs"), (uint16) hash, ExclusiveLock);
}

int
job_queue_claim(const Handler *handler, TimestampTz now, int limit, Job *jobs)
{
	MemoryContext context = CurrentMemoryContext;
	Datum		values[3];
	Identity	before;
	int			count;

	if (handler->ordered)
		lock_order(handler);
	begin_statement(&before);
	values[0] = CStringGetTextDatum(handler->name);
	values[1] = TimestampTzGetDatum(now);
	values[2] = Int32GetDatum(limit);
	(void) statements_run(handler->ordered ? &claim_ordered : &claim, values, NULL, 0);
	count = (int) SPI_processed;
	for (int i = 0; i < count; i++)
	{
		Job		   *job = &jobs[i];
		MemoryContext old;
		bool		isnull;

		job->job_id = DatumGetInt64(statements_result(i, 1, &isnull));
		job->revision = DatumGetInt32(statements_result(i, 4, &isnull));
		job->attempts = DatumGetInt32(statements_result(i, 5, &isnull));
		job->alone = DatumGetBool(statements_result(i, 6, &isnull));
		old = MemoryContextSwitchTo(context);
		job->event_id = TextDatumGetCString(statements_result(i, 2, &isnull));
		job->event_type = TextDatumGetCString(statements_result(i, 3, &isnull));
		MemoryContextSwitchTo(old);
	}
	end_statement(&before);
	qsort(jobs, count, sizeof(Job), compare_jobs);
	return count;
}

TimestampTz
job_queue_next_due(const Handler *handler, TimestampTz now)
{
	Datum		values[2];
	Identity	before;
	TimestampTz due_at;
	bool		isnull;

	begin_statement(&before);
	values[0] = CStringGetTextDatum(handler->name);
	values[1] = TimestampTzGetDatum(now);
	(void) statements_run(handler->ordered ? &next_due_ordered : &next_due, values, NULL, 0);
	due_at = DatumGetTimestampTz(statements_result(0, 1, &isnull));
	if (isnull)
		due_at = DT_NOEND;
	end_statement(&before);
	return due_at;
}

void
job_queue_finish(int64 job_id, int attempt)
{
	Datum		values[2] = {Int64GetDatum(job_id), Int32GetDatum(attempt)};
	Identity	before;
	uint64		changed;

	begin_statement(&before);
	(void) statements_run(&finish, values, NULL, 0);
	changed = SPI_processed;
	end_statement(&before);
	if (changed != 1)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("job " INT64_FORMAT " is not running its attempt %d any more", job_id, attempt)));
}

static void
notify_dead(int64 job_id, const char *handler, const char *event_id, const char *event_type)
{
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfo(&json, "{\"job\":" INT64_FORMAT ",\"handler\":", job_id);
	escape_json(&json, handler);
	appendStringInfoString(&json, ",\"event_id\":");
	escape_json(&json, event_id);
	appendStringInfoString(&json, ",\"event_type\":");
	escape_json(&json, event_type);
	appendStringInfoChar(&json, '}');
	notify_payload(json.data);
	pfree(json.data);
}

static void
set_text(Datum *values, char *nulls, int argument, const char *text)
{
	nulls[argument] = text == NULL ? 'n' : ' ';
	if (text != NULL)
		values[argument] = statements_clipped_text(text, ERROR_TEXT_SIZE);
}

bool
job_queue_fail(int64 job_id, int attempt, const JobFailure *failure)
{
	Datum		values[8] = {0};
	char		nulls[9] = "        ";
	Identity	before;
	bool		dead = false;
	bool		isnull;

	begin_statement(&before);
	values[0] = Int64GetDatum(job_id);
	values[1] = Int32GetDatum(attempt);
	set_text(values, nulls, 2, failure->reason);
	set_text(values, nulls, 3, failure->sqlstate == 0 ? NULL : unpack_sql_state(failure->sqlstate));
	set_text(values, nulls, 4, failure->message);
	set_text(values, nulls, 5, failure->detail);
	set_text(values, nulls, 6, failure->context);
	values[7] = BoolGetDatum(failure->final);
	(void) statements_run(&fail, values, nulls, 0);
	if (SPI_processed == 1)
	{
		dead = DatumGetBool(statements_result(0, 4, &isnull));
		if (dead)
			notify_dead(job_id, TextDatumGetCString(statements_result(0, 1, &isnull)),
						TextDatumGetCString(statements_result(0, 2, &isnull)),
						TextDatumGetCString(statements_result(0, 3, &isnull)));
	}
	end_statement(&before);
	return dead;
}

int
job_queue_bury(const char *handler, const char *reason, int limit)
{
	Datum		values[3] = {CStringGetTextDatum(handler), CStringGetTextDatum(reason), Int32GetDatum(limit)};
	Identity	before;
	int			count;
	bool		isnull;

	begin_statement(&before);
	(void) statements_run(&bury, values, NULL, 0);
	count = (int) SPI_processed;
	for (int i = 0; i < count; i++)
		notify_dead(DatumGetInt64(statements_result(i, 1, &isnull)), handler,
					TextDatumGetCString(statements_result(i, 2, &isnull)),
					TextDatumGetCString(statements_result(i, 3, &isnull)));
	end_statement(&before);
	return count;
}

void
job_queue_release(int64 job_id, int attempt, bool suspect)
{
	Datum		values[3] = {Int64GetDatum(job_id), Int32GetDatum(attempt), BoolGetDatum(suspect)};
	Identity	before;

	begin_statement(&before);
	(void) statements_run(&release, values, NULL, 0);
	end_statement(&before);
}
