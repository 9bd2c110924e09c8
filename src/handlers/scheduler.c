/*
 * scheduler.c
 *	  What the first receiver of a database does for its handlers.
 *
 * It publishes the handlers to the launcher: which there are and as which role
 * they run.  It settles the jobs that workers left behind when they ended, and
 * removes jobs that were done long ago.  It runs nobody's function, and it is in
 * the way of no delivery: each piece of work is bounded.
 *
 * A job that is running and that no worker holds was left behind by a crash of
 * the whole server when the postmaster is the one that it was claimed under: it
 * counts as crashed, or a job that kills the server would do so for ever.
 * Where its worker had claimed several, nothing tells which of them it was: none
 * counts, and each is alone in its next attempt.
 * Under an earlier postmaster the server was shut down: it does not count.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "commands/dbcommands.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "storage/fd.h"
#include "utils/builtins.h"
#include "utils/pidfile.h"
#include "utils/timestamp.h"

#include "counters.h"
#include "handler_cache.h"
#include "job_queue.h"
#include "pool.h"
#include "receiver/batch.h"
#include "receiver/notify.h"
#include "receiver/statements.h"
#include "scheduler.h"
#include "settings.h"
#include "watch.h"

/* Milliseconds. */
#define RETRY_AFTER 1000		/* when a piece of work failed */
#define PURGE_PAUSE 200			/* between the steps of a removal */
#define PURGE_SELDOM 600000

/* Rows that one step removes or changes. */
#define STEP_ROWS 1000

static Statement read_handlers = {
	.sql = "SELECT h.handler, h.role_id, h.state = 'active', coalesce(h.concurrency, 0), r.oid IS NULL, "
	"CASE WHEN r.oid IS NULL THEN 'its role \"' || h.role || '\" does not exist any more' "
	"WHEN r.rolsuper THEN 'its role \"' || r.rolname || '\" is a superuser' "
	"WHEN NOT r.rolcanlogin AND current_setting('server_version_num')::int < 170000 "
	"THEN 'its role \"' || r.rolname || '\" has no LOGIN' "
	"WHEN NOT has_database_privilege(r.oid, d.oid, 'CONNECT') "
	"THEN 'its role \"' || r.rolname || '\" may not connect to the database' END, "
	"coalesce(h.role <> r.rolname, false) "
	"FROM banked.handlers AS h CROSS JOIN pg_database AS d LEFT JOIN pg_roles AS r ON r.oid = h.role_id "
	"WHERE d.datname = current_database()"
};

/* A dump names roles, not OIDs: another role may have the old name by then. */
static Statement rename_roles = {
	.sql = "UPDATE banked.handlers AS h SET role = r.rolname FROM pg_roles AS r "
	"WHERE r.oid = h.role_id AND h.role <> r.rolname"
};

static Statement pause_handler = {
	.sql = "UPDATE banked.handlers SET state = 'paused', problem = $2 WHERE handler = $1 AND state = 'active'",
	.nargs = 2,
	.argtypes = {TEXTOID, TEXTOID}
};

static Statement find_running = {
	.sql = "SELECT job_id, attempts, coalesce(server_started = pg_postmaster_start_time(), false), "
	"count(*) OVER (PARTITION BY worker_pid) = 1 FROM banked.jobs WHERE state = 'running'"
};

static Statement purge_jobs = {
	.sql = "WITH gone AS (DELETE FROM banked.jobs WHERE job_id IN ("
	"SELECT job_id FROM banked.jobs WHERE state = 'done' AND finished_at < $1 "
	"ORDER BY finished_at LIMIT $2) RETURNING job_id), "
	"attempts AS (DELETE FROM banked.job_attempts AS a USING gone AS g WHERE a.job_id = g.job_id) "
	"SELECT count(*) FROM gone",
	.nargs = 2,
	.argtypes = {TIMESTAMPTZOID, INT4OID}
};

static uint64 published_version = 0;
static uint64 published_generation = 0;
static uint64 published_requests = 0;
static bool published = false;
static bool reported_no_entry = false;
static TimestampTz publish_at = 0;	/* not before, after a failure */
static uint64 settled_requests = 0;
static bool settled = false;
static TimestampTz settle_at = 0;
static TimestampTz purge_at = 0;	/* DT_NOEND: jobs that are done are kept for ever */
static int	purge_retention = 0;	/* that purge_at was computed with */
static int64 purged;
static bool more_to_bury;

/* A handler as it is to be published. */
typedef struct PublishedHandler
{
	char		name[HANDLER_NAME_SIZE];
	Oid			role;
	bool		active;
	int			concurrency;
	const char *problem;		/* why it cannot run, null when it can */
	bool		role_is_gone;
	bool		role_is_renamed;
	int			buried;			/* jobs that are dead without their role */
} PublishedHandler;

/* False when there is no room for it. */
static bool
publish_entry(const PublishedHandler *publication)
{
	HandlerEntry *entry = pool_find_entry(MyDatabaseId, publication->name);

	for (int i = 0; entry == NULL && i < MAX_HANDLERS; i++)
	{
		if (pool_state->entries[i].used)
			continue;
		entry = &pool_state->entries[i];
		memset(entry, 0, sizeof(HandlerEntry));
		entry->used = true;
		entry->database = MyDatabaseId;
		entry->due_at = DT_NOEND;
		strlcpy(entry->name, publication->name, HANDLER_NAME_SIZE);
	}
	if (entry == NULL)
		return false;			/* subscribe() refuses more of one database */
	entry->seen = true;
	if (publication->active && !entry->active)
	{
		entry->failures = 0;
		entry->start_after = 0;
	}
	/* What it may run now may have been altered, or have come by COMMIT PREPARED, which tells no more. */
	entry->pending = publication->active;
	/* A worker that runs as another role notices and ends. */
	if (entry->role != publication->role)
		entry->start_after = 0;
	entry->role = publication->role;
	entry->active = publication->active;
	entry->max_workers = publication->concurrency > 0 ? publication->concurrency : MAX_HANDLER_WORKERS;
	entry->totals.dead += publication->buried;
	return true;
}

/* Makes the workers of this database look for jobs; caller holds the lock. */
static void
wake_workers(void)
{
	for (int i = 0; i < MAX_HANDLER_WORKERS; i++)
	{
		HandlerWorker *worker = &pool_state->workers[i];

		if (worker->used && worker->database == MyDatabaseId && worker->latch != NULL)
			SetLatch(worker->latch);
	}
}

static void
publish_all(const PublishedHandler *publications, int count)
{
	int			unpublished = 0;

	LWLockAcquire(pool_state->lock, LW_EXCLUSIVE);
	for (int i = 0; i < MAX_HANDLERS; i++)
	{
		if (pool_state->entries[i].used && pool_state->entries[i].database == MyDatabaseId)
			pool_state->entries[i].seen = false;
	}
	for (int i = 0; i < count; i++)
		unpublished += !publish_entry(&publications[i]);
	for (int i = 0; i < MAX_HANDLERS; i++)
	{
		HandlerEntry *entry = &pool_state->entries[i];

		if (entry->used && entry->database == MyDatabaseId && !entry->seen)
			entry->active = false;
	}
	wake_workers();
	LWLockRelease(pool_state->lock);

	if (unpublished > 0 && !reported_no_entry)
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("%d handlers of database \"%s\" do not run",
						unpublished, get_database_name(MyDatabaseId)),
				 errdetail("All databases of a server together can have %d handlers.", MAX_HANDLERS)));
	reported_no_entry = unpublished > 0;

	counters_tell_launcher();
}

/* What cannot run is paused, with the reason; without its role its jobs are dead. */
static void
stop_handler(PublishedHandler *publication)
{
	Datum		values[2] = {CStringGetTextDatum(publication->name), CStringGetTextDatum(publication->problem)};

	if (publication->role_is_gone)
	{
		publication->buried = job_queue_bury(publication->name, publication->problem, STEP_ROWS);
		if (publication->buried == STEP_ROWS)
		{
			more_to_bury = true;
			return;
		}
	}
	(void) statements_run(&pause_handler, values, NULL, 0);
	ereport(LOG,
			(errmsg("handler \"%s\" is paused: %s", publication->name, publication->problem)));
}

static void
read_publication(PublishedHandler *publication, int row)
{
	Datum		problem;
	bool		isnull;

	strlcpy(publication->name, TextDatumGetCString(statements_result(row, 1, &isnull)), HANDLER_NAME_SIZE);
	publication->role = DatumGetObjectId(statements_result(row, 2, &isnull));
	publication->active = DatumGetBool(statements_result(row, 3, &isnull));
	publication->concurrency = DatumGetInt32(statements_result(row, 4, &isnull));
	publication->role_is_gone = DatumGetBool(statements_result(row, 5, &isnull));
	problem = statements_result(row, 6, &isnull);
	publication->problem = isnull ? NULL : TextDatumGetCString(problem);
	publication->role_is_renamed = DatumGetBool(statements_result(row, 7, &isnull));
}

static void
publish(void)
{
	Identity	before;
	PublishedHandler *publications;
	int			count = 0;
	bool		renamed = false;

	more_to_bury = false;
	handler_cache_refresh();
	published_version = handler_cache_version();
	if (!OidIsValid(statements_relation("handlers")) || !statements_extension_exists())
	{
		publish_all(NULL, 0);
		return;
	}

	SPI_connect();
	statements_become_owner(&before);
	(void) statements_run(&read_handlers, NULL, NULL, 0);
	count = (int) SPI_processed;
	publications = palloc0(sizeof(PublishedHandler) * Max(count, 1));
	for (int i = 0; i < count; i++)
		read_publication(&publications[i], i);
	for (int i = 0; i < count; i++)
	{
		if (publications[i].problem != NULL && publications[i].active)
		{
			publications[i].active = false;
			stop_handler(&publications[i]);
		}
		renamed |= publications[i].role_is_renamed;
	}
	if (renamed)
		(void) statements_run(&rename_roles, NULL, NULL, 0);
	publish_all(publications, count);
	statements_restore(&before);
	SPI_finish();
}

/* Does some worker hold the job, or did it leave it behind? */
static bool
is_held(int64 job_id)
{
	bool		held = false;

	LWLockAcquire(pool_state->lock, LW_SHARED);
	for (int i = 0; i < MAX_HANDLER_WORKERS && !held; i++)
	{
		HandlerWorker *worker = &pool_state->workers[i];

		for (int k = 0; worker->used && worker->database == MyDatabaseId && k < worker->job_count; k++)
			held |= worker->jobs[k] == job_id;
	}
	LWLockRelease(pool_state->lock);
	return held;
}

static bool
fail_crashed(int64 job_id, int attempt, bool timed_out)
{
	JobFailure	failure = {0};

	failure.reason = timed_out ? "timeout" : "crashed";
	failure.sqlstate = timed_out ? ERRCODE_QUERY_CANCELED : 0;
	failure.message = timed_out ? "the handler took longer than its timeout allows, and ignored its cancellation"
		: "the process that ran the handler ended in the middle of the job";
	return job_queue_fail(job_id, attempt, &failure);
}

/* Settles the jobs of one worker that has ended. */
static void
settle_worker(const HandlerWorker *worker)
{
	bool		dead;

	for (int i = 0; i < worker->job_count; i++)
	{
		if (i != worker->current || worker->left == LEFT_BY_STOP)
		{
			job_queue_release(worker->jobs[i], worker->attempts[i], false);
			continue;
		}
		dead = fail_crashed(worker->jobs[i], worker->attempts[i], worker->timed_out);
		LWLockAcquire(pool_state->lock, LW_EXCLUSIVE);
		pool_state->entries[worker->entry].totals.failed++;
		pool_state->entries[worker->entry].totals.crashed++;
		if (dead)
			pool_state->entries[worker->entry].totals.dead++;
		LWLockRelease(pool_state->lock);
		ereport(LOG,
				(errmsg("job " INT64_FORMAT " of handler \"%s\" ended its process in attempt %d",
						worker->jobs[i], worker->name, worker->attempts[i])));
	}
	watch_jobs_ready(worker->name, worker->job_count);
}

/* Jobs that run nowhere; no worker of this server's life has left them. */
static void
settle_orphans(void)
{
	Identity	before;
	SPITupleTable *table;
	uint64		count;

	SPI_connect();
	statements_become_owner(&before);
	(void) statements_run(&find_running, NULL, NULL, 0);
	table = SPI_tuptable;
	count = SPI_processed;
	statements_restore(&before);
	for (uint64 i = 0; i < count; i++)
	{
		bool		isnull;
		int64		job_id = DatumGetInt64(SPI_getbinval(table->vals[i], table->tupdesc, 1, &isnull));
		int			attempt = DatumGetInt32(SPI_getbinval(table->vals[i], table->tupdesc, 2, &isnull));
		bool		same_server = DatumGetBool(SPI_getbinval(table->vals[i], table->tupdesc, 3, &isnull));
		bool		was_single = DatumGetBool(SPI_getbinval(table->vals[i], table->tupdesc, 4, &isnull));

		if (is_held(job_id))
			continue;
		if (same_server && was_single)
			(void) fail_crashed(job_id, attempt, false);
		else
			job_queue_release(job_id, attempt, same_server);
	}
	SPI_finish();
}

static bool settle_list[MAX_HANDLER_WORKERS];

static void
settle(void)
{
	HandlerWorker *copy = palloc(sizeof(HandlerWorker));

	memset(settle_list, 0, sizeof(settle_list));
	if (!OidIsValid(statements_relation("jobs")) || !statements_extension_exists())
		return;
	for (int i = 0; i < MAX_HANDLER_WORKERS; i++)
	{
		LWLockAcquire(pool_state->lock, LW_SHARED);
		*copy = pool_state->workers[i];
		LWLockRelease(pool_state->lock);
		if (!copy->used || copy->database != MyDatabaseId || copy->left == LEFT_NOTHING)
			continue;
		settle_worker(copy);
		settle_list[i] = true;
	}
	if (!settled)
		settle_orphans();
}

/* Gives the slots back whose jobs are settled now, and makes the handlers look for them. */
static void
free_settled(void)
{
	LWLockAcquire(pool_state->lock, LW_EXCLUSIVE);
	for (int i = 0; i < MAX_HANDLER_WORKERS; i++)
	{
		if (!settle_list[i])
			continue;
		pool_state->workers[i].used = false;
		pool_state->workers[i].left = LEFT_NOTHING;
	}
	for (int i = 0; i < MAX_HANDLERS; i++)
	{
		if (pool_state->entries[i].used && pool_state->entries[i].database == MyDatabaseId)
			pool_state->entries[i].pending = true;
	}
	wake_workers();
	LWLockRelease(pool_state->lock);

	counters_tell_launcher();
}

/* Is the postmaster about to end?  Then whoever ended was made to. */
static bool
server_is_stopping(void)
{
	char		line[MAXPGPATH];
	FILE	   *file = AllocateFile("postmaster.pid", "r");
	bool		stopping = false;

	if (file == NULL)
		return false;
	for (int i = 1; i <= LOCK_FILE_LINE_PM_STATUS && fgets(line, sizeof(line), file) != NULL; i++)
	{
		if (i == LOCK_FILE_LINE_PM_STATUS)
			stopping = strncmp(line, PM_STATUS_STOPPING, strlen(PM_STATUS_STOPPING)) == 0;
	}
	FreeFile(file);
	return stopping;
}

static void
purge(void)
{
	Datum		values[2] = {TimestampTzGetDatum(GetCurrentTimestamp() -
											 (int64) bw_job_retention * USECS_PER_SEC),
	Int32GetDatum(STEP_ROWS)};
	Identity	before;
	bool		isnull;

	purged = 0;
	if (!OidIsValid(statements_relation("jobs")) || !statements_extension_exists())
		return;
	SPI_connect();
	statements_become_owner(&before);
	(void) statements_run(&purge_jobs, values, NULL, 0);
	purged = DatumGetInt64(statements_result(0, 1, &isnull));
	statements_restore(&before);
	SPI_finish();
}

static bool
run_work(void (*work) (void))
{
	int			mark = notify_mark();

	if (batch_run(work))
	{
		notify_send_collected();
		return true;
	}
	notify_rewind(mark);
	return false;
}

static TimestampTz
in_milliseconds(int64 milliseconds)
{
	return TimestampTzPlusMilliseconds(GetCurrentTimestamp(), milliseconds);
}

static bool
publish_is_due(uint64 generation)
{
	return !published || generation != published_generation || !handler_cache_is_current() ||
		published_version != handler_cache_version() ||
		published_requests != pg_atomic_read_u64(&pool_state->publish_requests);
}

static bool
settle_is_due(void)
{
	return !settled || settled_requests != pg_atomic_read_u64(&pool_state->settle_requests);
}

void
scheduler_run(uint64 generation)
{
	TimestampTz now = GetCurrentTimestamp();

	if (now >= publish_at && publish_is_due(generation))
	{
		published_requests = pg_atomic_read_u64(&pool_state->publish_requests);
		published = run_work(publish) && !more_to_bury;
		published_generation = generation;
		publish_at = published ? 0 : in_milliseconds(more_to_bury ? PURGE_PAUSE : RETRY_AFTER);
	}
	if (now >= settle_at && settle_is_due() && !server_is_stopping())
	{
		uint64		requests = pg_atomic_read_u64(&pool_state->settle_requests);

		if (run_work(settle))
		{
			free_settled();
			settled = true;
			settled_requests = requests;
			settle_at = 0;
		}
		else
			settle_at = in_milliseconds(RETRY_AFTER);
	}
	if (now >= purge_at || purge_retention != bw_job_retention)
	{
		purge_retention = bw_job_retention;
		purge_at = DT_NOEND;
		if (bw_job_retention >= 0)
		{
			purged = 0;
			(void) run_work(purge);
			purge_at = in_milliseconds(purged == STEP_ROWS ? PURGE_PAUSE :
									   Max(1000, Min(PURGE_SELDOM, (int64) bw_job_retention * 100)));
		}
	}
}

TimestampTz
scheduler_due_at(void)
{
	TimestampTz due_at = purge_at;

	if (publish_at != 0)
		due_at = Min(due_at, publish_at);
	if (settle_at != 0)
		due_at = Min(due_at, settle_at);
	return due_at;
}
