/*
 * job_queue.h
 *	  The table banked.jobs: what may happen to a job.
 *
 * Every statement here works in the caller's transaction, and rises to the
 * owner of the extension for itself alone.
 */
#ifndef BW_JOB_QUEUE_H
#define BW_JOB_QUEUE_H

#include "handler_cache.h"
#include "receiver/delivery.h"

typedef struct Job
{
	int64		job_id;
	char	   *event_id;
	char	   *event_type;
	int			revision;
	int			attempts;		/* this one included */
	bool		alone;			/* its last attempt ended its worker, or may have */
} Job;

/* Why an attempt failed; texts may be null. */
typedef struct JobFailure
{
	const char *reason;			/* error, timeout, cancelled, crashed */
	int			sqlstate;		/* 0: none */
	const char *message;
	const char *detail;
	const char *context;
	bool		final;			/* no further attempt can help */
} JobFailure;

/*
 * Begins a transaction of a worker: read committed and read-write, whatever
 * the session's defaults are.  One that only the queue is concerned by, its own,
 * waits for no standby, and for locks as long as it takes.
 */
extern void job_queue_begin(bool own);
extern void job_queue_commit(void);

/*
 * Makes the jobs of deliveries that have just become rows, and has their
 * handlers woken when the transaction commits.
 */
extern void job_queue_enqueue(Delivery **deliveries, int count);

/*
 * Takes up to limit jobs that are due by now, palloc'ed in CurrentMemoryContext;
 * returns their number.  A job that must be alone comes only to a limit of 1.
 */
extern int	job_queue_claim(const Handler *handler, TimestampTz now, int limit, Job *jobs);

/*
 * When to look again, after a claim at that time that found nothing: when the
 * first job is due; in a second while a job is locked that is due already;
 * DT_NOEND when nothing waits.
 */
extern TimestampTz job_queue_next_due(const Handler *handler, TimestampTz now);

/* The job is done.  Raises 55000 when it is not this attempt's any more. */
extern void job_queue_finish(int64 job_id, int attempt);

/*
 * The attempt failed: a further one is due later, or the job is dead, which
 * is notified.  Returns whether it is dead; does nothing when the attempt has been
 * settled already.
 */
extern bool job_queue_fail(int64 job_id, int attempt, const JobFailure *failure);

/*
 * Up to limit jobs of a handler that wait are dead, for this reason, and are
 * notified.  Returns how many.
 */
extern int	job_queue_bury(const char *handler, const char *reason, int limit);

/*
 * The attempt did not take place, as far as is known: the job is ready again, and
 * nothing is counted.  One that is suspected of having ended the server will be alone.
 */
extern void job_queue_release(int64 job_id, int attempt, bool suspect);

#endif							/* BW_JOB_QUEUE_H */
