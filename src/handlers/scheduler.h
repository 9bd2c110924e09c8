/*
 * scheduler.h
 *	  What the first receiver of a database does for its handlers.
 */
#ifndef BW_SCHEDULER_H
#define BW_SCHEDULER_H

#include "postgres.h"

#include "datatype/timestamp.h"

/*
 * Does what is due: publishes the handlers, settles the jobs of workers that
 * ended, removes old jobs.  generation is the one that the service was last
 * checked at.  Outside of transactions; raises no error.
 */
extern void scheduler_run(uint64 generation);

/* When to call scheduler_run again, if nothing wakes the receiver before. */
extern TimestampTz scheduler_due_at(void);

#endif							/* BW_SCHEDULER_H */
