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
 * in CurrentMemoryContext.
 *
 * With identity_suffices a body whose identity is plain may be left unread: who
 * finds its bytes stored needs no more of it.  Such a delivery is PENDING without
 * a payload; to store it as an event takes examine_unread first.
 */
extern void examine_delivery(Delivery *delivery, bool identity_suffices);

/*
 * Reads the body of a delivery that was left unread, if it was: its outcome is
 * PENDING or QUARANTINED then.  Allocates where examine_delivery did.
 */
extern void examine_unread(Delivery *delivery);

/*
 * The second half of examine_delivery, for a delivery that is already known
 * to be authentic.  A body without identity gets the one given, if any.
 */
extern void examine_body(Delivery *delivery, const char *event_id, const char *event_type);

#endif							/* BW_EXAMINE_H */
