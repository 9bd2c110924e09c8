/*
 * pool.h
 *	  The handler workers of all databases: who runs, for which handler, and who wants one.
 *
 * Words: an entry stands for one handler of one database, as its scheduler
 * (receiver number 0) published it.  A worker slot stands for one process, which
 * is a handler's for all its life.  The launcher gives slots out.  A process
 * that ends in the middle of jobs leaves them in its slot, which is free again
 * when the scheduler has settled them.
 *
 * Locking: everything in PoolState is read and written under PoolState.lock,
 * but for the requests, which are atomic, and timed_out, which its worker's timer sets.
 * Nothing is done under the lock that can wait or fail, but for the launcher's
 * registration of workers, and SharedState.lock is never taken while it is held.
 */
#ifndef BW_POOL_H
#define BW_POOL_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "port/atomics.h"
#include "storage/latch.h"
#include "storage/lwlock.h"

#define MAX_HANDLERS 256		/* of all databases together */
#define MAX_HANDLER_WORKERS 64
#define MAX_CLAIM 64			/* jobs that a worker holds at one time */
#define HANDLER_NAME_SIZE 64	/* bytes, with the final zero */

/* Totals of one handler since the server started. */
typedef struct HandlerTotals
{
	uint64		done;
	uint64		failed;			/* attempts, those that crashed or timed out included */
	uint64		crashed;
	uint64		dead;
	uint64		run_time;		/* microseconds in attempts, but for those that crashed */
} HandlerTotals;

typedef struct HandlerEntry
{
	bool		used;
	bool		active;			/* workers may run */
	bool		closed;			/* its database is not open: not active, whatever was published */
	bool		seen;			/* while the scheduler publishes */
	Oid			database;
	Oid			role;
	char		name[HANDLER_NAME_SIZE];
	int			max_workers;

	bool		pending;		/* jobs may be ready that no worker has looked for */
	bool		backlog;		/* a worker found more jobs than it could take */
	TimestampTz waiting_since;	/* pending and without a worker; 0 when not */
	TimestampTz due_at;			/* when the next job that waits is due, DT_NOEND when none does */
	TimestampTz next_start;		/* of a handler with a rate: not before */

	int			failures;		/* workers in a row that ended soon and badly */
	TimestampTz start_after;	/* 0: no delay */
	HandlerTotals totals;
} HandlerEntry;

/* What became of the jobs of a worker that has ended. */
typedef enum LeftBehind
{
	LEFT_NOTHING,
	LEFT_BY_CRASH,				/* counts as a failed attempt */
	LEFT_BY_STOP				/* it was told to end: does not count */
} LeftBehind;

typedef struct HandlerWorker
{
	bool		used;
	int			entry;
	Oid			database;
	Oid			role;
	char		name[HANDLER_NAME_SIZE];

	bool		starting;		/* registered with the postmaster, not running yet */
	pid_t		pid;			/* 0 when it does not run */
	Latch	   *latch;
	bool		idle;
	bool		yield;			/* to end after its current job */
	bool		stopped;		/* the launcher has sent SIGTERM */
	TimestampTz yield_at;		/* when it was asked to */
	bool		ended;			/* not in the middle of a job */
	TimestampTz started_at;

	int			job_count;
	int			current;		/* index of the job that runs, -1 before the first */
	int64		jobs[MAX_CLAIM];
	int			attempts[MAX_CLAIM];
	bool		timed_out;		/* the current job has had its time */
	LeftBehind	left;
} HandlerWorker;

typedef struct PoolState
{
	LWLock	   *lock;
	pg_atomic_uint64 settle_requests;	/* increased when a worker left jobs behind */
	pg_atomic_uint64 publish_requests;	/* increased when a worker could not begin */
	bool		starved;		/* some handler waits for a place: the launcher wants to know of idle workers */
	HandlerEntry entries[MAX_HANDLERS];
	HandlerWorker workers[MAX_HANDLER_WORKERS];
} PoolState;

/* Null when the library is not in shared_preload_libraries. */
extern PoolState *pool_state;

/* The slot of this process, null outside handler workers. */
extern HandlerWorker *my_worker;

/* Asks for shared memory; only while preloaded libraries are loaded. */
extern void pool_init(void);

/* The entry of a handler, or null; caller holds the lock. */
extern HandlerEntry *pool_find_entry(Oid database, const char *name);

/* How many workers an entry has, running or about to; caller holds the lock. */
extern int	pool_count_workers(const HandlerEntry *entry);

/* Do workers of a database run, or are they about to? */
extern bool pool_database_is_busy(Oid database);

/*
 * Jobs of a handler of this session's database have been committed: wakes as
 * many of its idle workers, or the launcher.  Raises no error.
 */
extern void pool_wake(const char *name, int count);

#endif							/* BW_POOL_H */
