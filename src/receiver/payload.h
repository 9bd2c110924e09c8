/*
 * payload.h
 *	  Reads the identity and the columns of an event from a signed body.
 */
#ifndef BW_PAYLOAD_H
#define BW_PAYLOAD_H

#include "delivery.h"

/*
 * Parses the body of an authentic delivery and fills the delivery's fields.
 * Returns false, and marks the delivery for quarantine, when the body cannot
 * become an event.  Where the body itself names no id or type, event_id and
 * event_type stand in for it when they are not null.  Allocates in
 * CurrentMemoryContext; raises nothing for what a body holds.
 */
extern bool payload_read(Delivery *delivery, const char *event_id, const char *event_type);

/*
 * Fills event_id, event_type and v2 as payload_read would, without parsing the
 * body, so that it may still turn out to be no JSON.  Returns false where it
 * takes payload_read to tell them.  Allocates in CurrentMemoryContext.
 */
extern bool payload_read_identity(Delivery *delivery);

/*
 * Looks over bytes that claim to be JSON before PostgreSQL's parser does.
 * Returns null when it may parse them, else why not.  Says nothing about
 * whether they are JSON.
 */
extern const char *payload_check_limits(const char *body, Size length);

#endif							/* BW_PAYLOAD_H */
