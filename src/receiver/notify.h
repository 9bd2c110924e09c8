/*
 * notify.h
 *	  Notifications on channel banked_webhooks.
 */
#ifndef BW_NOTIFY_H
#define BW_NOTIFY_H

/* Notifies as the triggers do: unless that is off, and as far as the queue has room. */
extern void notify_payload(const char *payload);

/*
 * From now on this process only collects what its transactions would notify;
 * called once, by a receiver.
 */
extern void notify_collect(void);

/*
 * How much is collected now, and back to that: what an aborted transaction
 * would have notified is forgotten.
 */
extern int	notify_mark(void);
extern void notify_rewind(int mark);

/*
 * Sends what was collected since the last call, in a transaction of its own
 * that waits for no disk and no standby.  Never raises an error.
 */
extern void notify_send_collected(void);

#endif							/* BW_NOTIFY_H */
