/*
 * event_rows.h
 *	  Inserts rows into events and event_revisions.
 *
 * All functions run as the worker's role, in the caller's SPI connection, and
 * raise what the database or a user's trigger raises.
 */
#ifndef BW_EVENT_ROWS_H
#define BW_EVENT_ROWS_H

#include "delivery.h"

/*
 * Inserts deliveries, sorted by identity, as new events.  Those that became
 * rows get outcome STORED; the others are moved to the front of the array, in
 * their order, and their number is returned.
 */
extern int	event_rows_insert(Delivery **deliveries, int count);

/* Inserts one revision under a number; false when it did not become a row. */
extern bool event_rows_insert_revision(Delivery *delivery, int revision, Outcome kind);

/* In this session a known event may make an insertion fail: see below. */
extern void event_rows_allow_optimism(void);

/*
 * Did a transaction fail with this SQLSTATE because it inserted without a look
 * for known events?  Then it is to be repeated: the next insertion is careful.
 */
extern bool event_rows_were_too_optimistic(int sqlstate);

#endif							/* BW_EVENT_ROWS_H */
