/*
 * batch.h
 *	  Stores the deliveries that wait, in as few transactions as they allow.
 */
#ifndef BW_BATCH_H
#define BW_BATCH_H

#include "delivery.h"

/* Prepares the session; called once, after the connection. */
extern void batch_init(void);

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

/*
 * Runs some work of the receiver's own in a transaction, bounded in time and in
 * its waits for locks.  False when it failed and was rolled back.
 */
extern bool batch_run(void (*work) (void));

#endif							/* BW_BATCH_H */
