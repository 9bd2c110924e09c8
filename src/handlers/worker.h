/*
 * worker.h
 *	  The background worker that runs the jobs of one handler.
 */
#ifndef BW_HANDLER_WORKER_H
#define BW_HANDLER_WORKER_H

extern PGDLLEXPORT void banked_webhooks_handler_main(Datum arg);

#endif							/* BW_HANDLER_WORKER_H */
