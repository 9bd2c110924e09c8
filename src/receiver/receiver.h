/*
 * receiver.h
 *	  The background worker that verifies and stores deliveries.
 */
#ifndef BW_RECEIVER_H
#define BW_RECEIVER_H

#include "postgres.h"

extern PGDLLEXPORT void banked_webhooks_receiver_main(Datum arg);

#endif							/* BW_RECEIVER_H */
