/*
 * event_store.h
 *	  Turns judged deliveries into rows, in the caller's transaction.
 */
#ifndef BW_EVENT_STORE_H
#define BW_EVENT_STORE_H

#include "delivery.h"

/*
 * Will event_store_write look for repetitions first?  Then a body that is
 * stored already need not be parsed (identity_suffices of examine_delivery).
 */
extern bool event_store_expects_repetitions(void);

/*
 * Stores deliveries of which judged is PENDING or QUARANTINED and sets their
 * outcomes: events, revisions and repetitions, or rows of quarantine.  All or
 * nothing: an error leaves the outcomes undefined, and the caller must abort
 * the (sub)transaction.  What it raises is what the database or a user's
 * trigger raised.  Runs users' triggers as banked_webhooks_worker.
 */
extern void event_store_write(Delivery **deliveries, int count);

/*
 * Stores one delivery whose insertion as a new event has failed, unless it
 * would be a new event: returns false then, with nothing done.
 */
extern bool event_store_write_known(Delivery *delivery);

/*
 * Makes the commit of the current transaction wait for disk and standbys as the
 * commit of the rows that it found did, even if it has written nothing itself.
 * To be called where a 200 depends on it.
 */
extern void event_store_make_durable(void);

#endif							/* BW_EVENT_STORE_H */
