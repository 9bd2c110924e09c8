/*
 * worker.c
 *	  The background worker that runs the jobs of one handler.
 *
 * It is connected as the role that subscribed the handler: its session is that
 * role's, with the role's settings, and there is nothing higher to go back to.
 * It claims jobs that are due, in a committed transaction of its own, runs them
 * (runner.c), and when there are no more it waits for its latch, or for the next
 * job that waits for its retry.
 *
 * A process that ends in a job leaves the job in its slot of shared memory,
 * where the scheduler finds it.  What procedural languages keep in the session
 * dies with the process, which serves no other handler and no other function.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/regproc.h"
#include "utils/timestamp.h"

#include "counters.h"
#include "handler_cache.h"
#include "job_queue.h"
#include "pool.h"
#include "receiver/statements.h"
#include "runner.h"
#include "worker.h"

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
	MemoryContext claim_context;	/* reset with each claim */
	bool		leave;			/* nothing is left to do for this process */
	bool		found_nothing;	/* when it last looked for jobs */
	uint64		claims;
	TimestampTz due_at;			/* of the next job that waits, as of the last claim */
	TimestampTz idle_since;
	bool		had_backlog;
} Worker;

static Worker state;

static volatile sig_atomic_t shutdown_requested = false;

static void
worker_exit(int code, Datum arg)
{
	LWLockAcquire(pool_state->lock, LW_EXCLUSIVE);
	my_worker->pid = 0;
	my_worker->latch = NULL;
	my_worker->idle = false;
	LWLockRelease(pool_state->lock);

	counters_tell_launcher();
}

/* SIGTERM: shutdown, pg_terminate_backend, or the launcher. */
static void
handle_terminate(SIGNAL_ARGS)
{
	int			save_errno = errno;

	shutdown_requested = true;
	runner_terminate();
	SetLatch(MyLatch);
	errno = save_errno;
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

	/* The scheduler pauses the handler of a role that has become a superuser. */
	if (!statements_extension_exists() || superuser())
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
	runner.function = state.function;
	runner.function_oid = find_function(state.function);
	runner.timeout = found->timeout;
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
	/* A start that was put off by a lower rate than the present one. */
	entry->next_start = Min(entry->next_start, now + Max(interval, RATE_BURST));
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
		counters_tell_launcher();
}

static int
claim_limit(void)
{
	int			most = Max(state.handler.batch, 1);

	if (state.claims % SINGLE_CLAIM_EVERY == 0)
		return 1;
	if (runner.run_time > 0)
		most = Max(most, (int) (CLAIM_TIME / runner.run_time));
	return Min(Min(runner.limit, most), MAX_CLAIM);
}

/*
 * Claims jobs, in a transaction of its own.  Returns their number, in
 * *jobs; 0 when nothing is due before state.due_at.
 */
static int
claim_jobs(Job *jobs)
{
	int			limit = 0;
	int			count = 0;
	TimestampTz now = GetCurrentTimestamp();
	TimestampTz rate_wait = DT_NOEND;

	LWLockAcquire(pool_state->lock, LW_EXCLUSIVE);
	pool_state->entries[my_worker->entry].pending = false;
	LWLockRelease(pool_state->lock);

	MemoryContextReset(state.claim_context);
	job_queue_begin(true);
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
			count = job_queue_claim(&state.handler, now, limit, jobs);
			if (count == 0 && limit > 1)
				count = job_queue_claim(&state.handler, now, 1, jobs);
			note_jobs(jobs, count);
			if (state.handler.rate > 0 && count < limit)
				give_back_starts(limit - count);
		}
		if (count == 0)
			state.due_at = limit == 0 ? rate_wait : job_queue_next_due(&state.handler, now);
		else
			note_backlog(count == limit);
		state.claims++;
	}
	job_queue_commit();
	MemoryContextSwitchTo(state.claim_context);
	state.found_nothing = count == 0 && !state.leave;
	return count;
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
	job_queue_begin(true);
	for (int i = first; i < count; i++)
		job_queue_release(jobs[i].job_id, jobs[i].attempts, false);
	job_queue_commit();
	pool_wake(my_worker->name, 1);
}

static void
run_jobs(const Job *jobs, int count)
{
	int			i = 0;

	while (i < count && !must_leave())
	{
		int			together = Min(Min(state.handler.batch, count - i), MAX_CLAIM);

		if (together < 2 || !OidIsValid(runner.function_oid) || !runner_run_together(jobs, i, together))
		{
			for (int k = 0; k < together && !must_leave(); k++)
			{
				runner_run(jobs, i++);
			}
			continue;
		}
		i += together;
	}
	/* Whoever is told to end now must not wait for a lock: the rest stays in the slot. */
	if (!shutdown_requested || i >= count)
	{
		release_jobs(jobs, i, count);
		note_jobs(NULL, 0);
	}
	(void) pgstat_report_stat(false);
}

/* Nothing is due: true when this worker may wait, false when jobs have come meanwhile. */
static bool
become_idle(void)
{
	HandlerEntry *entry = &pool_state->entries[my_worker->entry];
	bool		idle;
	bool		wanted;

	LWLockAcquire(pool_state->lock, LW_EXCLUSIVE);
	idle = !entry->pending;
	wanted = idle && pool_state->starved;
	entry->due_at = state.due_at;
	if (idle)
	{
		my_worker->idle = true;
		entry->backlog = false;
	}
	LWLockRelease(pool_state->lock);
	if (wanted)
		counters_tell_launcher();
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
	LWLockAcquire(pool_state->lock, LW_EXCLUSIVE);
	my_worker->idle = false;
	LWLockRelease(pool_state->lock);
}

static void
follow_reload(void)
{
	if (!ConfigReloadPending)
		return;
	ConfigReloadPending = false;
	ProcessConfigFile(PGC_SIGHUP);
}

static void
main_loop(void)
{
	Job			jobs[MAX_CLAIM];

	state.idle_since = GetCurrentTimestamp();
	while (!must_leave())
	{
		int			count = 0;

		follow_reload();
		/* From here SIGTERM ends the process; one that came before is seen by must_leave. */
		runner_set_busy(true);
		if (!must_leave())
			count = claim_jobs(jobs);
		if (count > 0)
			run_jobs(jobs, count);
		runner_set_busy(false);

		if (count > 0)
			state.idle_since = GetCurrentTimestamp();
		else if (!must_leave() && become_idle())
		{
			if (has_been_idle_too_long())
				break;
			wait_for_jobs();
		}
		if (!must_leave())
			CHECK_FOR_INTERRUPTS();
	}
}

void
banked_webhooks_handler_main(Datum arg)
{
	pqsignal(SIGTERM, handle_terminate);
	runner_init();
	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGPIPE, SIG_IGN);
	BackgroundWorkerUnblockSignals();

	attach(DatumGetInt32(arg));
	/* unless its role has a setting of its own */
	SetConfigOption("application_name", MyBgworkerEntry->bgw_type, PGC_USERSET, PGC_S_DYNAMIC_DEFAULT);
	runner_init_session();
	state.claim_context = AllocSetContextCreate(TopMemoryContext, "banked_webhooks jobs",
												ALLOCSET_DEFAULT_SIZES);
	runner.context = state.claim_context;
	main_loop();

	LWLockAcquire(pool_state->lock, LW_EXCLUSIVE);
	my_worker->idle = false;
	my_worker->current = -1;
	my_worker->ended = true;
	LWLockRelease(pool_state->lock);
	/* Another one looks for what this one may leave. */
	if (!state.found_nothing)
		pool_wake(my_worker->name, 1);
	proc_exit(0);
}
