/*
 * watch.h
 *	  Tells the extension's processes what other sessions commit.
 */
#ifndef BW_WATCH_H
#define BW_WATCH_H

/*
 * True while receive() or reprocess() runs users' triggers in the session of
 * whoever called it: what they left behind there would run as that role.
 */
extern bool watch_guards_session;

/* Installs the hooks; called once per process, when the library is loaded. */
extern void watch_init(void);

/*
 * To be called in a transaction that changed what the receivers of this
 * database work by (endpoints, keys): wakes them when it commits.
 */
extern void watch_config_changed(void);

/*
 * To be called in a transaction that changed whether this database is served
 * (extension, pause): wakes launcher and receivers when it commits.
 */
extern void watch_service_changed(void);

#endif							/* BW_WATCH_H */
