/*
 * service.h
 *	  Whether this receiver is still wanted, and as what it runs.
 */
#ifndef BW_SERVICE_H
#define BW_SERVICE_H

#include "postgres.h"

#include "datatype/timestamp.h"

/* This session is about to connect: what is changed from now on, it may not have got. */
extern void service_connecting(void);

/* Is it time to look?  To be asked each turn. */
extern bool service_is_to_check(void);

/* When it will be time though nothing happens; DT_NOEND for never. */
extern TimestampTz service_check_at(void);

/*
 * Looks at the database.  False when this receiver is to end: its slot says
 * then why, and what the launcher is to do.  True too when the look failed.
 */
extern bool service_check(void);

/* The generation that was looked at last. */
extern uint64 service_generation(void);

#endif							/* BW_SERVICE_H */
