/*
 * examine.h
 *	  Judges a delivery: is it authentic, and what does it carry?
 */
#ifndef BW_EXAMINE_H
#define BW_EXAMINE_H

#include "delivery.h"

/*
 * Judges a delivery: endpoint, signature, window, body, filter, live rule.
 * Afterwards its outcome is REJECTED or UNAVAILABLE (with the reason), UNWANTED,
 * QUARANTINED (to be stored there) or still PENDING (to be stored as an event).
 * The endpoint cache must have been refreshed in this transaction.  Allocates
 * in CurrentMemoryContext.  before, if not null, is one that was examined
 * before in the same context.
 */
extern void examine_delivery(Delivery *delivery, const Delivery *before);

/*
 * The second half of examine_delivery, for a delivery that is already known
 * to be authentic.  A body without identity gets the one given, if any.
 */
extern void examine_body(Delivery *delivery, const char *event_id, const char *event_type);

#endif							/* BW_EXAMINE_H */
