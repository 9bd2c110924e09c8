/*
 * worker.c
 *	  The background worker that runs the jobs of one handler.
 *
 * It is connected as the role that subscribed the handler: its session is that
 * role's, with the role's settings, and there is nothing higher to go back to.
 * It claims jobs that are due (a committed transaction of its own), and runs
 * each in one transaction: the handler's function, then the job's completion.
 * When there is no more it waits for its latch, or for the next job that waits
 * for its retry.
 *
 * The function may raise, loop, ignore its cancellation, end the process, and
 * leave things behind in the session.  An error is recorded with the job.  A
 * process that ends in a job leaves the job in its slot of shared memory, and the
 * scheduler settles it.  The session is cleaned between jobs; what procedural
 * languages keep besides dies with the process, which serves no other handler and
 * no other function.
 *
 * No error of a function goes to the server's log: it may quote a body.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/prepare.h"
#include "commands/sequence.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "storage/lock.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/regproc.h"
#include "utils/resowner.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "counters.h"
#include "handler_cache.h"
#include "job_queue.h"
#include "pool.h"
#include "receiver/statements.h"
#include "worker.h"

/* How long a function that catches its cancellation is tolerated: so many further seconds. */
#define CANCEL_REPEATS 5

/* Several jobs are claimed at one time when they take less than this together, in microseconds. */
#define CLAIM_TIME 20000

/* Every so often a single job is claimed: those that must be alone get their turn. */
#define SINGLE_CLAIM_EVERY 16

/* A handler with a rate may make up for this much of being late, in microseconds. */
#define RATE_BURST 50000

/* A further worker of a handler ends when it had nothing to do for so long, in milliseconds. */
#define IDLE_TIME 10000

typedef struct Worker
{
	Handler		handler;		/* copy, as of the last claim; its texts are the cache's */
	char	   *function;		/* that this process serves; null before the first claim */
	Oid			function_oid;	/* InvalidOid when it does not exist */
	SPIPlanPtr	call_event;
	SPIPlanPtr	call_revision;
	MemoryContext claim_context;	/* reset with each claim */
	bool		leave;			/* nothing is left to do for this process */
	bool		found_nothing;	/* when it last looked for jobs */
	int			limit;			/* jobs of the next claim */
	int64		run_time;		/* recent mean of a job, microseconds */
	uint64		claims;
	TimestampTz due_at;			/* of the next job that waits, as of the last claim */
	TimestampTz idle_since;
	bool		had_backlog;
	bool		temp_used;		/* by a transaction since the session was cleaned */
} Worker;

static Worker state = {.limit = 1};

static volatile sig_atomic_t shutdown_requested = false;
static volatile sig_atomic_t in_job = false;
static volatile sig_atomic_t cancels = 0;
static volatile sig_atomic_t timer_fired = 0;
static TimeoutId job_timer;

static void
cancel_statement(void)
{
	InterruptPending = true;
	QueryCancelPending = true;
	SetLatch(MyLatch);
}

/* SIGTERM: shutdown, pg_terminate_backend, or the launcher.  A job ends with the process. */
static void
handle_terminate(SIGNAL_ARGS)
{
	int			save_errno = errno;

	shutdown_requested = true;
	if (in_job)
	{
		InterruptPending = true;
		ProcDiePending = true;
	}
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
	if (in_job)
		cancel_statement();
	errno = save_errno;
}

/* The job has had its time.  A function that catches the cancellation ends with the process at last. */
static void
handle_job_timer(void)
{
	timer_fired++;
	my_worker->timed_out = true;
	if (timer_fired > CANCEL_REPEATS)
		ProcDiePending = true;
	cancel_statement();
}

/* Just before the commit, when the last deferred trigger has run. */
static void
before_commit(XactEvent event, void *arg)
{
	if (event != XACT_EVENT_PRE_COMMIT)
		return;
	if (MyXactFlags & XACT_FLAGS_ACCESSEDTEMPNAMESPACE)
		state.temp_used = true;
	if (in_job)
	{
		disable_timeout(job_timer, false);
		CHECK_FOR_INTERRUPTS();
	}
}

static void
worker_exit(int code, Datum arg)
{
	LWLockAcquire(pool_state->lock, LW_EXCLUSIVE);
	my_worker->pid = 0;
	my_worker->latch = NULL;
	my_worker->idle = false;
	LWLockRelease(pool_state->lock);

	LWLockAcquire(shared_state->lock, LW_SHARED);
	counters_wake_launcher();
	LWLockRelease(shared_state->lock);
}

/* Takes over the slot that the launcher gave, and connects as the handler's role. */
static void
attach(int index)
{
	bool		expected;

	my_worker = &pool_state->workers[index];
	LWLockAcquire(pool_state->lock, LW_EXCLUSIVE);
	expected = my_worker->used && my_worker->starting;
	if (expected)
	{
		my_worker->pid = MyProcPid;
		my_worker->latch = MyLatch;
		my_worker->starting = false;
	}
	LWLockRelease(pool_state->lock);
	if (!expected)
		proc_exit(0);			/* the launcher that asked for it has gone */
	before_shmem_exit(worker_exit, 0);

	BackgroundWorkerInitializeConnectionByOid(my_worker->database, my_worker->role, 0);
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
	PushActiveSnapshot(GetTransactionSnapshot());
}

static void
end_transaction(void)
{
	PopActiveSnapshot();
	CommitTransactionCommand();
}

/* For transactions that only the queue is concerned by: they wait for no standby. */
static void
begin_queue_transaction(void)
{
	begin_transaction();
	(void) set_config_option("synchronous_commit", "local", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
}

/* Undoes what the function may have left behind in the session. */
static void
clean_session(void)
{
	SetConfigOption("role", "none", PGC_USERSET, PGC_S_SESSION);
	ResetAllOptions();
	LockReleaseAll(USER_LOCKMETHOD, true);
	DropAllPreparedStatements();
	PortalHashTableDeleteAll();
	ResetSequenceCaches();
	if (state.temp_used)
	{
		begin_queue_transaction();
		ResetTempTableNamespace();
		end_transaction();
		state.temp_used = false;
	}
}

/* Finds the function that the handler names; InvalidOid when there is none. */
static Oid
find_function(const char *text)
{
	LOCAL_FCINFO(fcinfo, 1);
	Identity	before;
	Datum		result;

	InitFunctionCallInfoData(*fcinfo, NULL, 1, InvalidOid, NULL, NULL);
	fcinfo->args[0].value = CStringGetTextDatum(text);
	fcinfo->args[0].isnull = false;
	statements_become_owner(&before);
	result = to_regprocedure(fcinfo);
	statements_restore(&before);
	return fcinfo->isnull ? InvalidOid : DatumGetObjectId(result);
}

/*
 * Brings what is known of the handler up to date.  False when this process has
 * nothing to do for it any more.
 */
static bool
read_handler(void)
{
	const Handler *found;

	if (!statements_extension_exists())
		return false;
	handler_cache_refresh();
	found = handler_cache_find(my_worker->name);
	if (found == NULL || !found->active || found->role != my_worker->role)
		return false;
	if (state.function == NULL)
		state.function = MemoryContextStrdup(TopMemoryContext, found->function);
	else if (strcmp(state.function, found->function) != 0)
		return false;
	state.handler = *found;
	state.function_oid = find_function(state.function);
	return true;
}

/* How many jobs may start now by the handler's rate; else *wait_until says when one may. */
static int
take_starts(int wanted, TimestampTz *wait_until)
{
	int64		interval = (int64) (USECS_PER_SEC / state.handler.rate);
	TimestampTz now = GetCurrentTimestamp();
	HandlerEntry *entry = &pool_state->entries[my_worker->entry];
	int			taken = 0;

	LWLockAcquire(pool_state->lock, LW_EXCLUSIVE);
	if (entry->next_start > now)
		*wait_until = entry->next_start;
	else
	{
		taken = Min(wanted, Max(1, (int) (RATE_BURST / Max(interval, 1))));
		entry->next_start = Max(entry->next_start, now - Min(interval, RATE_BURST)) + taken * interval;
	}
	LWLockRelease(pool_state->lock);
	return taken;
}

static void
give_back_starts(int count)
{
	int64		interval = (int64) (USECS_PER_SEC / state.handler.rate);

	LWLockAcquire(pool_state->lock, LW_EXCLUSIVE);
	pool_state->entries[my_worker->entry].next_start -= count * interval;
	LWLockRelease(pool_state->lock);
}

/* Writes the jobs down where they will be found if this process ends. */
static void
note_jobs(const Job *jobs, int count)
{
	LWLockAcquire(pool_state->lock, LW_EXCLUSIVE);
	my_worker->current = -1;
	my_worker->job_count = count;
	for (int i = 0; i < count; i++)
	{
		my_worker->jobs[i] = jobs[i].job_id;
		my_worker->attempts[i] = jobs[i].attempts;
	}
	LWLockRelease(pool_state->lock);
}

static void
note_current(int index)
{
	LWLockAcquire(pool_state->lock, LW_EXCLUSIVE);
	my_worker->current = index;
	my_worker->timed_out = false;
	LWLockRelease(pool_state->lock);
}

/* Jobs came while this worker looked, or others could share the work: says so to the launcher. */
static void
note_backlog(bool backlog)
{
	bool		wake = false;

	LWLockAcquire(pool_state->lock, LW_EXCLUSIVE);
	if (backlog && state.had_backlog)
	{
		HandlerEntry *entry = &pool_state->entries[my_worker->entry];

		wake = !entry->backlog && pool_count_workers(entry) < entry->max_workers;
		entry->backlog = true;
	}
	LWLockRelease(pool_state->lock);
	state.had_backlog = backlog;
	if (wake)
	{
		LWLockAcquire(shared_state->lock, LW_SHARED);
		counters_wake_launcher();
		LWLockRelease(shared_state->lock);
	}
}

static int
claim_limit(void)
{
	int			most = Max(state.handler.batch, 1);

	if (state.claims % SINGLE_CLAIM_EVERY == 0)
		return 1;
	if (state.run_time > 0)
		most = Max(most, (int) (CLAIM_TIME / state.run_time));
	return Min(Min(state.limit, most), MAX_CLAIM);
}

/*
 * Claims jobs, in a transaction of its own.  Returns their number, in
 * *jobs; 0 when nothing is due before state.due_at.
 */
static int
claim_jobs(Job *jobs)
{
	int			limit;
	int			count = 0;
	TimestampTz rate_wait = DT_NOEND;

	LWLockAcquire(pool_state->lock, LW_EXCLUSIVE);
	pool_state->entries[my_worker->entry].pending = false;
	LWLockRelease(pool_state->lock);

	MemoryContextReset(state.claim_context);
	begin_queue_transaction();
	MemoryContextSwitchTo(state.claim_context);
	if (!read_handler())
		state.leave = true;
	else
	{
		limit = claim_limit();
		if (state.handler.rate > 0)
			limit = take_starts(limit, &rate_wait);
		if (limit > 0)
		{
			count = job_queue_claim(&state.handler, limit, jobs);
			if (count == 0 && limit > 1)
				count = job_queue_claim(&state.handler, 1, jobs);
			note_jobs(jobs, count);
			if (state.handler.rate > 0 && count < limit)
				give_back_starts(limit - count);
		}
		if (count == 0)
			state.due_at = Min(job_queue_next_due(my_worker->name), rate_wait);
		else
			note_backlog(count == limit);
		state.claims++;
	}
	end_transaction();
	MemoryContextSwitchTo(state.claim_context);
	state.found_nothing = count == 0 && !state.leave;
	return count;
}

/* The statement that calls the function with a row of a table. */
static SPIPlanPtr
prepare_call(bool revision)
{
	Oid			argtypes[3] = {TEXTOID, TEXTOID, INT4OID};
	char	   *function;
	char	   *sql;
	SPIPlanPtr	plan;

	function = quote_qualified_identifier(get_namespace_name(get_func_namespace(state.function_oid)),
										  get_func_name(state.function_oid));
	if (revision)
		sql = psprintf("SELECT %s(ROW(r.event_id, r.event_type, r.endpoint_id, r.resource_id, r.resource_type, "
					   "r.state, r.live, r.test, r.api_version, r.payload, r.body, r.body_sha256, r.signature, "
					   "r.signed_at, r.key_id, r.received_at, r.seq, r.stored_by, r.revision)::banked.events) "
					   "FROM banked.event_revisions AS r WHERE r.event_id OPERATOR(pg_catalog.=) $1 "
					   "AND r.event_type OPERATOR(pg_catalog.=) $2 AND r.revision OPERATOR(pg_catalog.=) $3", function);
	else
		sql = psprintf("SELECT %s(e) FROM banked.events AS e WHERE e.event_id OPERATOR(pg_catalog.=) $1 "
					   "AND e.event_type OPERATOR(pg_catalog.=) $2", function);
	plan = SPI_prepare(sql, revision ? 3 : 2, argtypes);
	if (plan == NULL || SPI_keepplan(plan) != 0)
		elog(ERROR, "could not prepare the call of a handler");
	return plan;
}

/* Calls the function, as the session's role and with its settings. */
static void
call_function(const Job *job)
{
	SPIPlanPtr *plan = job->revision > 0 ? &state.call_revision : &state.call_event;
	Datum		values[3] = {CStringGetTextDatum(job->event_id), CStringGetTextDatum(job->event_type),
	Int32GetDatum(job->revision)};
	int			level;

	SPI_connect();
	if (*plan == NULL)
		*plan = prepare_call(job->revision > 0);
	level = NewGUCNestLevel();
	if (SPI_execute_plan(*plan, values, NULL, false, 0) != SPI_OK_SELECT)
		elog(ERROR, "could not call a handler");
	if (SPI_processed == 0)
		ereport(ERROR,
				(errcode(ERRCODE_NO_DATA_FOUND),
				 errmsg("the event does not exist any more, or row security hides it")));
	AtEOXact_GUC(false, level);
	SPI_finish();

	/* One that has caught its cancellation has failed nevertheless. */
	if (timer_fired > 0)
		ereport(ERROR,
				(errcode(ERRCODE_QUERY_CANCELED),
				 errmsg("canceling statement due to the handler's timeout")));
}

static void
start_job(const Job *job)
{
	char		activity[NAMEDATALEN * 2 + 64];

	snprintf(activity, sizeof(activity), "running job " INT64_FORMAT " of handler \"%s\"",
			 job->job_id, my_worker->name);
	pgstat_report_activity(STATE_RUNNING, activity);
	timer_fired = 0;
	QueryCancelPending = false;
	enable_timeout_every(job_timer,
						 TimestampTzPlusMilliseconds(GetCurrentTimestamp(), state.handler.timeout),
						 1000);
}

static void
describe_failure(JobFailure *failure, const ErrorData *error, int cancels_before)
{
	memset(failure, 0, sizeof(*failure));
	failure->reason = "error";
	failure->sqlstate = error->sqlerrcode;
	failure->message = error->message;
	failure->detail = error->detail;
	failure->context = error->context;
	if (error->sqlerrcode == ERRCODE_QUERY_CANCELED)
	{
		if (timer_fired > 0)
		{
			failure->reason = "timeout";
			failure->message = "the handler took longer than its timeout allows";
		}
		else if (cancels != cancels_before)
			failure->reason = "cancelled";
	}
}

static void
count_failure(const char *reason, bool dead)
{
	HandlerEntry *entry = &pool_state->entries[my_worker->entry];

	LWLockAcquire(pool_state->lock, LW_EXCLUSIVE);
	entry->totals.failed++;
	if (dead)
		entry->totals.dead++;
	LWLockRelease(pool_state->lock);
}

static void
record_failure(const Job *job, const JobFailure *failure)
{
	bool		dead;

	begin_queue_transaction();
	dead = job_queue_fail(job->job_id, job->attempts, failure);
	end_transaction();
	count_failure(failure->reason, dead);
	state.limit = 1;
	if (dead)
		ereport(LOG,
				(errmsg("job " INT64_FORMAT " of handler \"%s\" is dead after %d attempts (%s, SQLSTATE %s)",
						job->job_id, my_worker->name, job->attempts, failure->reason,
						unpack_sql_state(failure->sqlstate))));
}

/* Aborts after an error; what it was is palloc'ed in the claim's context. */
static ErrorData *
take_error(void)
{
	ErrorData  *error;

	HOLD_INTERRUPTS();
	disable_timeout(job_timer, false);
	MemoryContextSwitchTo(state.claim_context);
	error = CopyErrorData();
	AbortCurrentTransaction();
	FlushErrorState();
	QueryCancelPending = false;
	MemoryContextSwitchTo(state.claim_context);
	RESUME_INTERRUPTS();
	return error;
}

/* The function does not exist: no attempt can succeed until somebody makes it, and retry() says so. */
static bool
function_is_missing(JobFailure *failure)
{
	if (OidIsValid(state.function_oid))
		return false;
	memset(failure, 0, sizeof(*failure));
	failure->reason = "error";
	failure->sqlstate = ERRCODE_UNDEFINED_FUNCTION;
	failure->message = psprintf("function %s does not exist", state.function);
	failure->final = true;
	return true;
}

static void
count_done(int count, TimestampTz start)
{
	int64		time = GetCurrentTimestamp() - start;
	HandlerEntry *entry = &pool_state->entries[my_worker->entry];

	LWLockAcquire(pool_state->lock, LW_EXCLUSIVE);
	entry->totals.done += count;
	entry->totals.run_time += time;
	LWLockRelease(pool_state->lock);
	state.run_time = state.run_time == 0 ? time / count : (state.run_time * 3 + time / count) / 4;
	state.limit = Min(state.limit * 2, MAX_CLAIM);
}

/* Runs one job in a transaction of its own. */
static void
run_alone(const Job *job)
{
	TimestampTz start = GetCurrentTimestamp();
	int			cancels_before = cancels;
	ErrorData  *volatile error = NULL;
	JobFailure	failure;

	if (function_is_missing(&failure))
	{
		record_failure(job, &failure);
		return;
	}
	in_job = true;
	PG_TRY();
	{
		start_job(job);
		begin_transaction();
		call_function(job);
		job_queue_finish(job->job_id, job->attempts);
		end_transaction();
		MemoryContextSwitchTo(state.claim_context);
	}
	PG_CATCH();
	{
		error = take_error();
	}
	PG_END_TRY();
	in_job = false;
	disable_timeout(job_timer, false);
	QueryCancelPending = false;

	if (error == NULL)
		count_done(1, start);
	else
	{
		describe_failure(&failure, error, cancels_before);
		clean_session();
		record_failure(job, &failure);
	}
}

/* Runs a job of a batch in a subtransaction; returns its error, null when it succeeded. */
static ErrorData *
run_in_savepoint(const Job *job)
{
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;

	BeginInternalSubTransaction(NULL);
	PG_TRY();
	{
		start_job(job);
		call_function(job);
		job_queue_finish(job->job_id, job->attempts);
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		MemoryContextSwitchTo(state.claim_context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		QueryCancelPending = false;
	}
	PG_END_TRY();
	disable_timeout(job_timer, false);
	MemoryContextSwitchTo(state.claim_context);
	CurrentResourceOwner = owner;
	return error;
}

/*
 * Runs jobs in one transaction, each behind a savepoint.  False when the
 * transaction could not be committed: then nothing has been done.
 */
static bool
run_together(const Job *jobs, int first, int count)
{
	TimestampTz start = GetCurrentTimestamp();
	JobFailure *failures = palloc0(sizeof(JobFailure) * count);
	int			done = 0;
	volatile bool committed = false;

	in_job = true;
	PG_TRY();
	{
		begin_transaction();
		for (int i = 0; i < count; i++)
		{
			int			cancels_before = cancels;
			ErrorData  *error;

			note_current(first + i);
			error = run_in_savepoint(&jobs[first + i]);
			if (error != NULL)
				describe_failure(&failures[i], error, cancels_before);
			else
				done++;
		}
		end_transaction();
		MemoryContextSwitchTo(state.claim_context);
		committed = true;
	}
	PG_CATCH();
	{
		(void) take_error();
	}
	PG_END_TRY();
	in_job = false;
	QueryCancelPending = false;
	if (!committed)
		return false;

	if (done > 0)
		count_done(done, start);
	clean_session();
	for (int i = 0; i < count; i++)
	{
		if (failures[i].reason != NULL)
			record_failure(&jobs[first + i], &failures[i]);
	}
	return true;
}

static bool
must_leave(void)
{
	return shutdown_requested || state.leave || my_worker->yield;
}

/* Puts jobs back that were claimed and not begun. */
static void
release_jobs(const Job *jobs, int first, int count)
{
	if (first >= count)
		return;
	begin_queue_transaction();
	for (int i = first; i < count; i++)
		job_queue_release(jobs[i].job_id, jobs[i].attempts);
	end_transaction();
	pool_wake(my_worker->name, 1);
}

static void
run_jobs(const Job *jobs, int count)
{
	int			i = 0;

	while (i < count && !must_leave())
	{
		int			together = Min(Min(state.handler.batch, count - i), MAX_CLAIM);

		if (together < 2 || !OidIsValid(state.function_oid) || !run_together(jobs, i, together))
		{
			for (int k = 0; k < together && !must_leave(); k++)
			{
				note_current(i);
				run_alone(&jobs[i]);
				clean_session();
				i++;
			}
			continue;
		}
		i += together;
	}
	release_jobs(jobs, i, count);
	note_jobs(NULL, 0);
	(void) pgstat_report_stat(false);
}

/* Nothing is due: true when this worker may wait, false when jobs have come meanwhile. */
static bool
become_idle(void)
{
	HandlerEntry *entry = &pool_state->entries[my_worker->entry];
	bool		idle;

	LWLockAcquire(pool_state->lock, LW_EXCLUSIVE);
	idle = !entry->pending;
	entry->due_at = state.due_at;
	if (idle)
	{
		my_worker->idle = true;
		entry->backlog = false;
	}
	LWLockRelease(pool_state->lock);
	return idle;
}

/* A worker that is not its handler's only one ends after a while. */
static bool
has_been_idle_too_long(void)
{
	bool		others;

	if (!TimestampDifferenceExceeds(state.idle_since, GetCurrentTimestamp(), IDLE_TIME))
		return false;
	LWLockAcquire(pool_state->lock, LW_EXCLUSIVE);
	others = pool_count_workers(&pool_state->entries[my_worker->entry]) > 1;
	if (others)
		my_worker->yield = true;
	LWLockRelease(pool_state->lock);
	return others;
}

static void
wait_for_jobs(void)
{
	TimestampTz now = GetCurrentTimestamp();
	bool		is_only;
	long		timeout = -1;

	LWLockAcquire(pool_state->lock, LW_SHARED);
	is_only = pool_count_workers(&pool_state->entries[my_worker->entry]) <= 1;
	LWLockRelease(pool_state->lock);
	if (!is_only)
		timeout = IDLE_TIME;
	if (!TIMESTAMP_NOT_FINITE(state.due_at))
	{
		long		due_in = TimestampDifferenceMilliseconds(now, state.due_at);

		timeout = timeout < 0 ? due_in : Min(timeout, due_in);
	}

	pgstat_report_activity(STATE_IDLE, NULL);
	(void) pgstat_report_stat(true);
	(void) WaitLatch(MyLatch,
					 WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | (timeout >= 0 ? WL_TIMEOUT : 0),
					 timeout, PG_WAIT_EXTENSION);
	ResetLatch(MyLatch);
	CHECK_FOR_INTERRUPTS();
	if (ConfigReloadPending)
	{
		ConfigReloadPending = false;
		ProcessConfigFile(PGC_SIGHUP);
	}
	LWLockAcquire(pool_state->lock, LW_EXCLUSIVE);
	my_worker->idle = false;
	LWLockRelease(pool_state->lock);
}

static void
main_loop(void)
{
	Job			jobs[MAX_CLAIM];

	state.idle_since = GetCurrentTimestamp();
	while (!must_leave())
	{
		int			count = claim_jobs(jobs);

		if (count > 0)
		{
			run_jobs(jobs, count);
			state.idle_since = GetCurrentTimestamp();
		}
		else if (!must_leave() && become_idle())
		{
			if (has_been_idle_too_long())
				break;
			wait_for_jobs();
		}
		CHECK_FOR_INTERRUPTS();
	}
}

void
banked_webhooks_handler_main(Datum arg)
{
	pqsignal(SIGTERM, handle_terminate);
	pqsignal(SIGINT, handle_cancel);
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGPIPE, SIG_IGN);
	BackgroundWorkerUnblockSignals();

	attach(DatumGetInt32(arg));
	/* unless its role has a setting of its own */
	SetConfigOption("application_name", MyBgworkerEntry->bgw_type, PGC_USERSET, PGC_S_DYNAMIC_DEFAULT);
	job_timer = RegisterTimeout(USER_TIMEOUT, handle_job_timer);
	RegisterXactCallback(before_commit, NULL);
	state.claim_context = AllocSetContextCreate(TopMemoryContext, "banked_webhooks jobs",
												ALLOCSET_DEFAULT_SIZES);
	main_loop();

	LWLockAcquire(pool_state->lock, LW_EXCLUSIVE);
	my_worker->idle = false;
	my_worker->job_count = 0;
	my_worker->ended = true;
	LWLockRelease(pool_state->lock);
	/* Another one looks for what this one may leave. */
	if (!state.found_nothing)
		pool_wake(my_worker->name, 1);
	proc_exit(0);
}
