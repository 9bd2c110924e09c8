/*
 * unstoppable.h
 *	  Deliveries whose storing could not be cancelled.
 */
#ifndef BW_UNSTOPPABLE_H
#define BW_UNSTOPPABLE_H

#include "delivery.h"

/* To be called once, when the process has its slot. */
extern void unstoppable_init(void);

/* Says which deliveries the next transaction stores. */
extern void unstoppable_watch(Delivery **deliveries, int count);

/*
 * Are deliveries to be stored one by one, since one of an earlier batch, nobody
 * knows which, could not be cancelled?
 */
extern bool unstoppable_is_sought(void);

/* Could the storing of these bytes not be cancelled, some hours ago at most? */
extern bool unstoppable_is_known(const Delivery *delivery);

#endif							/* BW_UNSTOPPABLE_H */
