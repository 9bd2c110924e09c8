/*
 * dispatcher.h
 *	  The launcher's part of running handlers: which workers there are.
 */
#ifndef BW_DISPATCHER_H
#define BW_DISPATCHER_H

#include "postgres.h"

#include "datatype/timestamp.h"

/*
 * Takes one step for every worker and every handler.  Returns the time of the
 * next step that no event will announce, or 0.
 */
extern TimestampTz dispatcher_advance(void);

/* Ends the workers that this launcher started; its successor could not watch them. */
extern void dispatcher_exit(void);

#endif							/* BW_DISPATCHER_H */
