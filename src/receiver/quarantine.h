/*
 * quarantine.h
 *	  Rows of banked.quarantine, in the caller's transaction.
 */
#ifndef BW_QUARANTINE_H
#define BW_QUARANTINE_H

#include "delivery.h"

/* Puts one delivery into quarantine, for the reason that it is marked with. */
extern void quarantine_put(Delivery *delivery);

/*
 * Reads a row of quarantine into a zeroed delivery, palloc'ed in
 * CurrentMemoryContext, and locks it.  False when there is no such row, or when it
 * is dismissed or locked by another session and only_due is true.
 */
extern bool quarantine_read(int64 quarantine_id, bool only_due, Delivery *delivery);

/*
 * The id of the row of quarantine whose automatic attempt is due, else 0 and
 * the time when the next one will be (DT_NOEND when none).
 */
extern int64 quarantine_next_attempt(TimestampTz *due_at);

/* Puts the attempt that is due off by a minute, without counting it; nothing when somebody is at work on the row. */
extern void quarantine_postpone(int64 quarantine_id);

/* Deletes a row that has become an event. */
extern void quarantine_remove(int64 quarantine_id);

#endif							/* BW_QUARANTINE_H */
