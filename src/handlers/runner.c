/*
 * runner.c
 *	  Runs jobs in the session of a handler worker.
 *
 * Each job is one transaction: the handler's function, as the session's role,
 * then the job's completion, as the owner of the extension.  The function may
 * raise, loop, ignore its cancellation, end the process, and leave things behind
 * in the session.  An error is recorded with the job, in a transaction that
 * follows.  The session is cleaned after each job.
 *
 * No error of a function goes to the server's log: it may quote a body.
 */
#include "postgres.h"

#include "access/table.h"
#include "access/xact.h"
#include "catalog/namespace.h"
#include "catalog/pg_type.h"
#include "commands/sequence.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/resowner.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"

#include "pool.h"
#include "receiver/statements.h"
#include "receiver/transaction.h"
#include "runner.h"

Runner		runner = {.limit = 1};

static volatile sig_atomic_t in_job = false;	/* its function, and the commit: may be cancelled */
static volatile sig_atomic_t busy = false;	/* these, or the queue's own statements: SIGTERM ends them */
static volatile sig_atomic_t cancels = 0;
static volatile sig_atomic_t timer_fired = 0;
static TimeoutId job_timer;
static SPIPlanPtr call_event = NULL;
static SPIPlanPtr call_revision = NULL;
static emit_log_hook_type previous_emit_log = NULL;
static bool temp_used = false;	/* by a transaction since the session was cleaned */

void
runner_terminate(void)
{
	if (busy)
	{
		InterruptPending = true;
		ProcDiePending = true;
	}
}

void
runner_set_busy(bool value)
{
	busy = value;
}

/* SIGINT: pg_cancel_backend, or PostgreSQL's own lock timeout. */
static void
handle_cancel(SIGNAL_ARGS)
{
	int			save_errno = errno;

	if (!get_timeout_indicator(LOCK_TIMEOUT, false))
		cancels++;
	if (in_job)
		transaction_cancel_statement();
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
	transaction_cancel_statement();
}

/* Just before the commit, when the last deferred trigger has run. */
static void
before_commit(XactEvent event, void *arg)
{
	if (event != XACT_EVENT_PRE_COMMIT)
		return;
	if (MyXactFlags & XACT_FLAGS_ACCESSEDTEMPNAMESPACE)
		temp_used = true;
	if (in_job)
	{
		disable_timeout(job_timer, false);
		CHECK_FOR_INTERRUPTS();
	}
}

void
runner_init(void)
{
	pqsignal(SIGINT, handle_cancel);
}

/* The context of a message quotes statements, and one that the function has put together may hold a body. */
static void
hide_context(ErrorData *message)
{
	if (busy)
		message->hide_ctx = true;
	if (previous_emit_log)
		previous_emit_log(message);
}

void
runner_init_session(void)
{
	/* A setting of the role for it would hold until the session is cleaned for the first time. */
	SetConfigOption("role", "none", PGC_USERSET, PGC_S_SESSION);
	job_timer = RegisterTimeout(USER_TIMEOUT, handle_job_timer);
	RegisterXactCallback(before_commit, NULL);
	previous_emit_log = emit_log_hook;
	emit_log_hook = hide_context;
}

/* Undoes what the function may have left behind in the session. */
static void
clean_session(void)
{
	SetConfigOption("role", "none", PGC_USERSET, PGC_S_SESSION);
	transaction_clean_session();
	ResetSequenceCaches();
	if (temp_used)
	{
		job_queue_begin(true);
		ResetTempTableNamespace();
		job_queue_commit();
		temp_used = false;
	}
}

static void
note_current(int index)
{
	LWLockAcquire(pool_state->lock, LW_EXCLUSIVE);
	my_worker->current = index;
	my_worker->timed_out = false;
	LWLockRelease(pool_state->lock);
}

/*
 * A row of event_revisions as one of events, which may have columns of its own
 * since somebody has added them.
 */
static char *
revision_as_event(void)
{
	Relation	events = table_open(statements_relation("events"), AccessShareLock);
	Oid			revisions = statements_relation("event_revisions");
	StringInfoData row;

	initStringInfo(&row);
	for (int i = 0; i < RelationGetNumberOfAttributes(events); i++)
	{
		Form_pg_attribute column = TupleDescAttr(RelationGetDescr(events), i);
		AttrNumber	same = get_attnum(revisions, NameStr(column->attname));

		if (column->attisdropped)
			continue;
		appendStringInfoString(&row, row.len > 0 ? ", " : "ROW(");
		if (same != InvalidAttrNumber && get_atttype(revisions, same) == column->atttypid)
			appendStringInfo(&row, "r.%s", quote_identifier(NameStr(column->attname)));
		else
			appendStringInfoString(&row, "NULL");
	}
	appendStringInfoString(&row, ")::banked.events");
	table_close(events, NoLock);
	return row.data;
}

/* The statement that calls the function with a row of a table. */
static SPIPlanPtr
prepare_call(bool revision)
{
	Oid			argtypes[3] = {TEXTOID, TEXTOID, INT4OID};
	char	   *name = get_func_name(runner.function_oid);
	char	   *schema = get_namespace_name(get_func_namespace(runner.function_oid));
	char	   *function;
	char	   *sql;
	SPIPlanPtr	plan;

	/* It was there when the job was claimed. */
	if (name == NULL || schema == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_UNDEFINED_FUNCTION),
				 errmsg("function %s does not exist", runner.function)));
	function = quote_qualified_identifier(schema, name);
	if (revision)
		sql = psprintf("SELECT %s(%s) FROM banked.event_revisions AS r WHERE r.event_id OPERATOR(pg_catalog.=) $1 "
					   "AND r.event_type OPERATOR(pg_catalog.=) $2 AND r.revision OPERATOR(pg_catalog.=) $3",
					   function, revision_as_event());
	else
		sql = psprintf("SELECT %s(e) FROM banked.events AS e WHERE e.event_id OPERATOR(pg_catalog.=) $1 "
					   "AND e.event_type OPERATOR(pg_catalog.=) $2", function);
	plan = SPI_prepare(sql, revision ? 3 : 2, argtypes);
	if (plan == NULL || SPI_keepplan(plan) != 0)
		elog(ERROR, "could not prepare the call of a handler");
	return plan;
}

/* After a failure: the text of a plan may not fit the tables any more. */
static void
forget_plans(void)
{
	if (call_event != NULL)
		SPI_freeplan(call_event);
	if (call_revision != NULL)
		SPI_freeplan(call_revision);
	call_event = NULL;
	call_revision = NULL;
}

/* Calls the function, as the session's role and with its settings. */
static void
call_function(const Job *job)
{
	SPIPlanPtr *plan = job->revision > 0 ? &call_revision : &call_event;
	Datum		values[3] = {CStringGetTextDatum(job->event_id), CStringGetTextDatum(job->event_type),
	Int32GetDatum(job->revision)};
	int			level;

	/* Until the scheduler pauses the handler of a role that has become one. */
	if (superuser())
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("handlers do not run as superuser")));
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
start_timer(void)
{
	timer_fired = 0;
	transaction_forget_cancel();
	enable_timeout_every(job_timer,
						 TimestampTzPlusMilliseconds(GetCurrentTimestamp(), runner.timeout),
						 1000);
}

static void
start_job(const Job *job)
{
	char		activity[NAMEDATALEN * 2 + 64];

	snprintf(activity, sizeof(activity), "running job " INT64_FORMAT " of handler \"%s\"",
			 job->job_id, my_worker->name);
	start_timer();
	/* Whoever sees this may cancel it from now on. */
	pgstat_report_activity(STATE_RUNNING, activity);
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
count_failure(bool dead)
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

	forget_plans();
	job_queue_begin(true);
	dead = job_queue_fail(job->job_id, job->attempts, failure);
	job_queue_commit();
	count_failure(dead);
	runner.limit = 1;
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
	MemoryContextSwitchTo(runner.context);
	error = CopyErrorData();
	AbortCurrentTransaction();
	FlushErrorState();
	transaction_forget_cancel();
	MemoryContextSwitchTo(runner.context);
	RESUME_INTERRUPTS();
	return error;
}

/* The function does not exist: no attempt can succeed until somebody makes it, and retry() says so. */
static bool
function_is_missing(JobFailure *failure)
{
	if (OidIsValid(runner.function_oid))
		return false;
	memset(failure, 0, sizeof(*failure));
	failure->reason = "error";
	failure->sqlstate = ERRCODE_UNDEFINED_FUNCTION;
	failure->message = psprintf("function %s does not exist", runner.function);
	failure->final = true;
	return true;
}

/* Counts what attempts took, and how many of them succeeded. */
static void
count_attempts(int done, TimestampTz start)
{
	int64		time = GetCurrentTimestamp() - start;
	HandlerEntry *entry = &pool_state->entries[my_worker->entry];

	LWLockAcquire(pool_state->lock, LW_EXCLUSIVE);
	entry->totals.done += done;
	entry->totals.run_time += time;
	LWLockRelease(pool_state->lock);
	if (done == 0)
		return;
	runner.run_time = runner.run_time == 0 ? time / done : (runner.run_time * 3 + time / done) / 4;
	runner.limit = Min(runner.limit * 2, MAX_CLAIM);
}

void
runner_run(const Job *jobs, int index)
{
	const Job  *job = &jobs[index];
	TimestampTz start = GetCurrentTimestamp();
	int			cancels_before = cancels;
	ErrorData  *volatile error = NULL;
	JobFailure	failure;

	note_current(index);
	if (function_is_missing(&failure))
	{
		record_failure(job, &failure);
		return;
	}
	in_job = true;
	PG_TRY();
	{
		start_job(job);
		job_queue_begin(false);
		call_function(job);
		job_queue_finish(job->job_id, job->attempts);
		job_queue_commit();
		MemoryContextSwitchTo(runner.context);
	}
	PG_CATCH();
	{
		error = take_error();
	}
	PG_END_TRY();
	in_job = false;
	disable_timeout(job_timer, false);
	transaction_forget_cancel();

	clean_session();
	count_attempts(error == NULL ? 1 : 0, start);
	if (error != NULL)
	{
		describe_failure(&failure, error, cancels_before);
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
		MemoryContextSwitchTo(runner.context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
		transaction_forget_cancel();
	}
	PG_END_TRY();
	disable_timeout(job_timer, false);
	MemoryContextSwitchTo(runner.context);
	CurrentResourceOwner = owner;
	return error;
}

bool
runner_run_together(const Job *jobs, int first, int count)
{
	TimestampTz start = GetCurrentTimestamp();
	JobFailure *failures = palloc0(sizeof(JobFailure) * count);
	int			done = 0;
	volatile bool committed = false;

	in_job = true;
	PG_TRY();
	{
		job_queue_begin(false);
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
		start_timer();			/* for deferred triggers */
		job_queue_commit();
		MemoryContextSwitchTo(runner.context);
		committed = true;
	}
	PG_CATCH();
	{
		(void) take_error();
	}
	PG_END_TRY();
	in_job = false;
	transaction_forget_cancel();
	clean_session();
	count_attempts(committed ? done : 0, start);
	if (!committed)
		return false;

	for (int i = 0; i < count; i++)
	{
		if (failures[i].reason != NULL)
			record_failure(&jobs[first + i], &failures[i]);
	}
	return true;
}
