/*
 * dispatcher.c
 *	  The launcher's part of running handlers: which workers there are.
 *
 * banked_webhooks.handler_workers bounds the workers of all handlers together.
 * Free places go, in this order,
 *
 *	 1. to handlers without a worker that have jobs, the one that waits longest first;
 *	 2. to handlers without a worker, so that an event finds one awake;
 *	 3. to handlers whose workers have more jobs than they can take, up to their
 *		concurrency; but the last place stays free while some handler has no worker.
 *
 * When a handler of the first kind finds no place, a worker is told to make
 * room after its current job: an idle one, else one of the handler that has most,
 * else the one that has run longest.  So a slow handler starves no other.  One of
 * the third kind gets the place of an idle worker that is not its handler's only one.
 *
 * Workers end for good with what they serve: a database that is held, paused or
 * not served any more gets their SIGTERM; a handler that is paused or gone lets
 * them finish their current job.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "postmaster/bgworker.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "counters.h"
#include "dispatcher.h"
#include "pool.h"
#include "settings.h"

/* Milliseconds. */
#define FIRST_RESTART_DELAY 250 /* for workers that end as soon as they have begun */
#define LAST_RESTART_DELAY 30000
#define NO_WORKER_RETRY 1000	/* when the server has no place for one more */
#define LONG_RUN 1000			/* a worker that ran so long makes room for a handler without one */
#define START_TIMEOUT 5000		/* for a worker that an earlier launcher asked for */

static BackgroundWorkerHandle *handles[MAX_HANDLER_WORKERS];
static bool no_worker = false;	/* was free, when one was last wanted */
static bool reported_no_worker = false;
static TimestampTz register_after = 0;

/* The next step that no event will announce. */
static TimestampTz next_step;

/* Is there something for the schedulers? */
static bool wake_needed;

static void
step_at(TimestampTz time)
{
	if (next_step == 0 || time < next_step)
		next_step = time;
}

/* May handlers of the database run?  Caller holds shared_state->lock. */
static bool
database_is_open(Oid database)
{
	for (int i = 0; i < MAX_HOLDS; i++)
	{
		if (shared_state->holds[i].database == database)
			return false;
	}
	for (int i = 0; i < MAX_SLOTS; i++)
	{
		ReceiverSlot *slot = &shared_state->slots[i];

		if (slot->used && slot->database == database && slot->number == 0)
			return slot->park_reason == PARK_NONE;
	}
	return false;
}

/* What each entry and each worker must know of its database. */
typedef struct Databases
{
	bool		entries_open[MAX_HANDLERS];
	bool		entries_served[MAX_HANDLERS];
	bool		workers_open[MAX_HANDLER_WORKERS];
	bool		workers_served[MAX_HANDLER_WORKERS];
} Databases;

static void
find_databases(Databases *databases)
{
	Oid			entry_databases[MAX_HANDLERS];
	Oid			worker_databases[MAX_HANDLER_WORKERS];

	LWLockAcquire(pool_state->lock, LW_SHARED);
	for (int i = 0; i < MAX_HANDLERS; i++)
		entry_databases[i] = pool_state->entries[i].used ? pool_state->entries[i].database : InvalidOid;
	for (int i = 0; i < MAX_HANDLER_WORKERS; i++)
		worker_databases[i] = pool_state->workers[i].used ? pool_state->workers[i].database : InvalidOid;
	LWLockRelease(pool_state->lock);

	LWLockAcquire(shared_state->lock, LW_SHARED);
	for (int i = 0; i < MAX_HANDLERS; i++)
	{
		databases->entries_open[i] = OidIsValid(entry_databases[i]) && database_is_open(entry_databases[i]);
		databases->entries_served[i] = OidIsValid(entry_databases[i]) && counters_database_is_served(entry_databases[i]);
	}
	for (int i = 0; i < MAX_HANDLER_WORKERS; i++)
	{
		databases->workers_open[i] = OidIsValid(worker_databases[i]) && database_is_open(worker_databases[i]);
		databases->workers_served[i] = OidIsValid(worker_databases[i]) && counters_database_is_served(worker_databases[i]);
	}
	LWLockRelease(shared_state->lock);
}

/* A worker's process has ended. */
static void
note_end(int index)
{
	HandlerWorker *worker = &pool_state->workers[index];
	HandlerEntry *entry = &pool_state->entries[worker->entry];
	bool		left_jobs = worker->job_count > 0;
	bool		was_useful = worker->ended &&
	(worker->yield || TimestampDifferenceExceeds(worker->started_at, GetCurrentTimestamp(), FIRST_RESTART_DELAY));

	if (handles[index] != NULL)
		pfree(handles[index]);
	handles[index] = NULL;
	worker->pid = 0;
	worker->latch = NULL;
	worker->starting = false;
	worker->idle = false;
	register_after = 0;			/* its place is free */

	if (was_useful || worker->stopped || left_jobs)
		entry->failures = 0;
	else
	{
		int			delay = FIRST_RESTART_DELAY << Min(entry->failures, 10);

		/* Its role may have lost what it needs, which nobody else tells the scheduler. */
		pg_atomic_fetch_add_u64(&pool_state->publish_requests, 1);
		wake_needed = true;
		entry->failures++;
		entry->start_after = TimestampTzPlusMilliseconds(GetCurrentTimestamp(),
														 Min(delay, LAST_RESTART_DELAY));
	}
	if (left_jobs)
	{
		worker->left = worker->stopped ? LEFT_BY_STOP : LEFT_BY_CRASH;
		pg_atomic_fetch_add_u64(&pool_state->settle_requests, 1);
		wake_needed = true;
	}
	else
		worker->used = false;
}

static bool
has_ended(int index)
{
	HandlerWorker *worker = &pool_state->workers[index];
	pid_t		pid;

	if (!worker->used || worker->left != LEFT_NOTHING)
		return false;
	if (handles[index] != NULL)
		return GetBackgroundWorkerPid(handles[index], &pid) == BGWH_STOPPED;
	/* Of an earlier launcher: it clears its pid, and may never have started. */
	return worker->pid == 0 &&
		(!worker->starting ||
		 TimestampDifferenceExceeds(worker->started_at, GetCurrentTimestamp(), START_TIMEOUT));
}

static void
stop_worker(int index)
{
	HandlerWorker *worker = &pool_state->workers[index];

	if (worker->stopped)
		return;
	worker->stopped = true;
	worker->yield_at = GetCurrentTimestamp();
	if (handles[index] != NULL)
		TerminateBackgroundWorker(handles[index]);
	else if (worker->pid != 0)
		kill(worker->pid, SIGTERM);
}

static void
ask_to_yield(HandlerWorker *worker)
{
	worker->yield = true;
	worker->yield_at = GetCurrentTimestamp();
	if (worker->latch != NULL)
		SetLatch(worker->latch);
}

static bool
is_running(const HandlerWorker *worker)
{
	return worker->used && worker->left == LEFT_NOTHING;
}

/* The handlers of a database that is held or paused do not run; afterwards they are published anew. */
static void
follow_database(HandlerEntry *entry, bool open, bool served)
{
	if (!entry->used)
		return;
	if (!open)
	{
		entry->active = false;
		entry->closed = true;
	}
	else if (entry->closed)
	{
		entry->closed = false;
		pg_atomic_fetch_add_u64(&pool_state->publish_requests, 1);
		wake_needed = true;
	}
	/* Dropped, perhaps: no scheduler of it will say that its handlers are gone. */
	if (!served)
		entry->seen = false;
}

/* More workers than the handler may have: its concurrency has been lowered. */
static void
end_surplus(const HandlerEntry *entry)
{
	int			index = entry - pool_state->entries;
	int			staying = 0;

	for (int i = 0; i < MAX_HANDLER_WORKERS; i++)
	{
		HandlerWorker *worker = &pool_state->workers[i];

		if (!is_running(worker) || worker->entry != index || worker->yield)
			continue;
		if (++staying > entry->max_workers)
			ask_to_yield(worker);
	}
}

/* Follows processes that ended, and ends those that have nothing to run any more. */
static void
advance_workers(const Databases *databases)
{
	for (int i = 0; i < MAX_HANDLERS; i++)
		follow_database(&pool_state->entries[i], databases->entries_open[i], databases->entries_served[i]);
	for (int i = 0; i < MAX_HANDLER_WORKERS; i++)
	{
		HandlerWorker *worker = &pool_state->workers[i];

		if (has_ended(i))
			note_end(i);
		/* Nobody will settle its jobs; a scheduler that comes finds them in the table. */
		if (worker->used && worker->left != LEFT_NOTHING && !databases->workers_served[i])
			worker->used = false;
		if (!is_running(worker))
			continue;
		if (!databases->workers_open[i] || (handles[i] == NULL && worker->pid != 0))
			stop_worker(i);
		else if (!pool_state->entries[worker->entry].active && !worker->yield)
			ask_to_yield(worker);
	}
	for (int i = 0; i < MAX_HANDLERS; i++)
	{
		HandlerEntry *entry = &pool_state->entries[i];
		bool		occupied = false;

		for (int k = 0; k < MAX_HANDLER_WORKERS; k++)
			occupied |= pool_state->workers[k].used && pool_state->workers[k].entry == i;
		if (entry->used && entry->active)
			end_surplus(entry);
		if (entry->used && !entry->seen && !entry->active && !occupied)
			entry->used = false;
	}
}

static void
start_worker(HandlerEntry *entry)
{
	BackgroundWorker process = {0};
	HandlerWorker *worker = NULL;
	MemoryContext old;
	bool		registered;
	int			index;

	for (index = 0; index < MAX_HANDLER_WORKERS; index++)
	{
		worker = &pool_state->workers[index];
		if (!worker->used)
			break;
	}
	if (index == MAX_HANDLER_WORKERS)
		return;

	memset(worker, 0, sizeof(HandlerWorker));
	worker->entry = entry - pool_state->entries;
	worker->database = entry->database;
	worker->role = entry->role;
	strlcpy(worker->name, entry->name, HANDLER_NAME_SIZE);
	worker->started_at = GetCurrentTimestamp();

	process.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	process.bgw_start_time = BgWorkerStart_RecoveryFinished;
	process.bgw_restart_time = BGW_NEVER_RESTART;
	process.bgw_notify_pid = MyProcPid;
	process.bgw_main_arg = Int32GetDatum(index);
	strlcpy(process.bgw_library_name, "banked_webhooks", BGW_MAXLEN);
	strlcpy(process.bgw_function_name, "banked_webhooks_handler_main", BGW_MAXLEN);
	snprintf(process.bgw_name, BGW_MAXLEN, "banked_webhooks handler \"%s\"", entry->name);
	strlcpy(process.bgw_type, "banked_webhooks handler", BGW_MAXLEN);

	old = MemoryContextSwitchTo(TopMemoryContext);
	registered = RegisterDynamicBackgroundWorker(&process, &handles[index]);
	MemoryContextSwitchTo(old);
	if (registered)
	{
		worker->used = true;
		worker->starting = true;
		entry->waiting_since = 0;
		no_worker = false;
		return;
	}

	handles[index] = NULL;
	register_after = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), NO_WORKER_RETRY);
	no_worker = true;
}

static bool
has_jobs(const HandlerEntry *entry, TimestampTz now)
{
	return entry->pending || entry->due_at <= now;
}

/* May a worker of this handler be started now? */
static bool
may_start(const HandlerEntry *entry, TimestampTz now)
{
	if (!entry->used || !entry->active)
		return false;
	if (entry->start_after > now)
	{
		step_at(entry->start_after);
		return false;
	}
	return true;
}

/* The handler that gets the next free place, or null; *starved says that it has jobs and no worker. */
static HandlerEntry *
choose_entry(int free_places, TimestampTz now, bool *starved)
{
	HandlerEntry *waiting = NULL;
	HandlerEntry *resident = NULL;
	HandlerEntry *backlog = NULL;
	int			backlog_workers = 0;
	bool		unserved = false;

	for (int i = 0; i < MAX_HANDLERS; i++)
	{
		HandlerEntry *entry = &pool_state->entries[i];
		int			workers;

		if (!may_start(entry, now))
		{
			unserved |= entry->used && entry->active;
			continue;
		}
		workers = pool_count_workers(entry);
		if (workers == 0 && has_jobs(entry, now))
		{
			if (entry->waiting_since == 0)
				entry->waiting_since = now;
			if (waiting == NULL || entry->waiting_since < waiting->waiting_since)
				waiting = entry;
		}
		else if (workers == 0)
		{
			resident = entry;
			if (!TIMESTAMP_NOT_FINITE(entry->due_at))
				step_at(entry->due_at);
		}
		else if (entry->backlog && workers < entry->max_workers &&
				 (backlog == NULL || workers < backlog_workers))
		{
			backlog = entry;
			backlog_workers = workers;
		}
	}
	*starved = waiting != NULL;
	if (waiting != NULL)
		return waiting;
	if (resident != NULL)
		return resident;
	return free_places > 1 || !unserved ? backlog : NULL;
}

/*
 * A worker that can make room, or null: for a handler without one any worker,
 * for a further worker of a handler only a further one of another that is idle.
 */
static HandlerWorker *
choose_victim(bool starved, TimestampTz now)
{
	HandlerWorker *idle_further = NULL;
	HandlerWorker *idle = NULL;
	HandlerWorker *further = NULL;
	HandlerWorker *longest = NULL;
	int			most = 1;

	for (int i = 0; i < MAX_HANDLER_WORKERS; i++)
	{
		HandlerWorker *worker = &pool_state->workers[i];
		HandlerEntry *entry = &pool_state->entries[worker->entry];
		int			workers;

		if (!is_running(worker))
			continue;
		if (worker->yield || worker->stopped)
		{
			/* Room is being made already, but for a long job nobody waits. */
			if (!TimestampDifferenceExceeds(worker->yield_at, now, LONG_RUN))
				return NULL;
			continue;
		}
		if (worker->starting)
			continue;
		workers = pool_count_workers(entry);
		if (worker->idle && !entry->pending)
		{
			idle = worker;
			if (workers > 1)
				idle_further = worker;
		}
		if (workers > most)
		{
			most = workers;
			further = worker;
		}
		if (TimestampDifferenceExceeds(worker->started_at, now, LONG_RUN) &&
			(longest == NULL || worker->started_at < longest->started_at))
			longest = worker;
	}
	if (idle_further != NULL || !starved)
		return idle_further;
	if (idle != NULL)
		return idle;
	return further != NULL ? further : longest;
}

static void
advance_entries(void)
{
	TimestampTz now = GetCurrentTimestamp();
	int			running = 0;

	for (int i = 0; i < MAX_HANDLER_WORKERS; i++)
	{
		if (!is_running(&pool_state->workers[i]))
			continue;
		running++;
		if (running > bw_handler_workers && !pool_state->workers[i].yield)
			ask_to_yield(&pool_state->workers[i]);
	}
	pool_state->starved = false;
	for (;;)
	{
		bool		starved;
		/* The server may have fewer: those that run must make room for others all the same. */
		bool		server_is_full = register_after > now;
		int			free_places = server_is_full ? 0 : bw_handler_workers - running;
		HandlerEntry *entry = choose_entry(free_places, now, &starved);

		if (entry == NULL || bw_handler_workers == 0)
			return;
		if (free_places <= 0)
		{
			HandlerWorker *victim = choose_victim(starved, now);

			if (victim != NULL)
				ask_to_yield(victim);
			pool_state->starved = starved;
			if (starved)
				step_at(TimestampTzPlusMilliseconds(now, LONG_RUN));
			if (server_is_full)
				step_at(starved ? register_after : TimestampTzPlusMilliseconds(now, LAST_RESTART_DELAY));
			return;
		}
		entry->backlog = false;
		start_worker(entry);
		if (register_after <= now)
			running++;
	}
}

static void
wake_schedulers(void)
{
	LWLockAcquire(shared_state->lock, LW_SHARED);
	for (int i = 0; i < MAX_SLOTS; i++)
	{
		ReceiverSlot *slot = &shared_state->slots[i];

		if (slot->used && slot->number == 0 && slot->latch != NULL)
			SetLatch(slot->latch);
	}
	LWLockRelease(shared_state->lock);
}

static void
report_shortage(void)
{
	if (no_worker && !reported_no_worker)
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("no background worker is free for handlers of webhooks"),
				 errhint("Increase max_worker_processes (currently %d).", max_worker_processes)));
	reported_no_worker = no_worker;
}

TimestampTz
dispatcher_advance(void)
{
	Databases	databases;

	next_step = 0;
	wake_needed = false;
	find_databases(&databases);
	LWLockAcquire(pool_state->lock, LW_EXCLUSIVE);
	advance_workers(&databases);
	advance_entries();
	LWLockRelease(pool_state->lock);
	report_shortage();
	if (wake_needed)
		wake_schedulers();
	ConditionVariableBroadcast(&shared_state->receiver_gone);
	return next_step;
}

void
dispatcher_exit(void)
{
	LWLockAcquire(pool_state->lock, LW_EXCLUSIVE);
	for (int i = 0; i < MAX_HANDLER_WORKERS; i++)
	{
		if (is_running(&pool_state->workers[i]))
			stop_worker(i);
	}
	LWLockRelease(pool_state->lock);
}
