/*
 * runner.h
 *	  Runs jobs in the session of a handler worker.
 */
#ifndef BW_RUNNER_H
#define BW_RUNNER_H

#include "job_queue.h"

typedef struct Runner
{
	/* set by the worker */
	const char *function;		/* that the handler names */
	Oid			function_oid;	/* InvalidOid when it does not exist */
	int			timeout;		/* of a job, milliseconds */
	MemoryContext context;		/* that jobs live in */

	/* for the worker */
	int			limit;			/* jobs that may be claimed at one time: less after failures */
	int64		run_time;		/* recent mean of a job, microseconds; 0: not known yet */
} Runner;

extern Runner runner;

/* Installs the handler of SIGINT; before the connection. */
extern void runner_init(void);

/* What can be done only after the connection. */
extern void runner_init_session(void);

/*
 * From the handler of SIGTERM: a job that runs ends with its process, and so
 * does a statement of the queue, which may wait for somebody's lock.
 */
extern void runner_terminate(void);

/* Between these the process may be ended anywhere; outside it is asked to leave. */
extern void runner_set_busy(bool value);

/*
 * Runs one of the jobs that this worker holds, in a transaction of its own,
 * and records how it ended.
 */
extern void runner_run(const Job *jobs, int index);

/*
 * Runs some of them in one transaction, each behind a savepoint.  False when
 * the transaction could not be committed: then nothing has been done.
 */
extern bool runner_run_together(const Job *jobs, int first, int count);

#endif							/* BW_RUNNER_H */
