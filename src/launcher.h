/*
 * launcher.h
 *	  The process that starts and stops receivers.
 */
#ifndef BW_LAUNCHER_H
#define BW_LAUNCHER_H

/* Registers the launcher with the postmaster; only while preloaded libraries are loaded. */
extern void launcher_init(void);

extern PGDLLEXPORT void banked_webhooks_launcher_main(Datum arg);

#endif							/* BW_LAUNCHER_H */
