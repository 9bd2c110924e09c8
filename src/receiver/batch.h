/*
 * batch.h
 *	  Stores the deliveries that wait, in as few transactions as they allow.
 */
#ifndef BW_BATCH_H
#define BW_BATCH_H

#include <signal.h>

#include "delivery.h"

/* SIGTERM has come: finish and leave. */
extern volatile sig_atomic_t batch_shutdown_requested;

/* Installs the signal handlers and timeouts of a receiver; called once, before the connection. */
extern void batch_init(void);

/* What can be done only after the connection. */
extern void batch_init_session(void);

/* Is told of deliveries as soon as their outcomes are final. */
typedef void (*BatchDecided) (Delivery **deliveries, int count);

/*
 * Judges and stores deliveries.  Each gets its final outcome, which is durable
 * where it is answered with 200, and is passed to decided once, outside of any
 * transaction.  Raises no error.  Allocates in CurrentMemoryContext, which must
 * outlive transactions.
 */
extern void batch_store(Delivery *deliveries, int count, BatchDecided decided);

/*
 * Tries a row of quarantine again.  False when nothing came of it: its attempt is
 * not due (any more), somebody else has it, or the database cannot store now.
 */
extern bool batch_retry(int64 quarantine_id);

/* Undoes what users' code may have left behind in the session; outside transactions. */
extern void batch_clean_session(void);

/*
 * Runs some work of the receiver's own in a transaction, bounded in time and in
 * its waits for locks.  False when it failed and was rolled back.
 */
extern bool batch_run(void (*work) (void));

#endif							/* BW_BATCH_H */
