/*
 * direct.h
 *	  Stores one delivery in the caller's transaction, without a receiver.
 */
#ifndef BW_DIRECT_H
#define BW_DIRECT_H

#include "delivery.h"

/*
 * Stores a judged delivery as a receiver would: event, revision, repetition
 * or row of quarantine, with its outcome set.  What a user's trigger raises is caught.  A
 * cancellation of the caller's statement is raised again.
 */
extern void direct_store(Delivery *delivery);

#endif							/* BW_DIRECT_H */
