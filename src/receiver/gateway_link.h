/*
 * gateway_link.h
 *	  What goes over the link between a receiver and its gateway.
 *
 * What is sent waits in the gateway's buffer for gateway_link_flush, but for
 * answers, which are written at once as far as the link takes them.
 */
#ifndef BW_GATEWAY_LINK_H
#define BW_GATEWAY_LINK_H

#include "delivery.h"
#include "gateway_process.h"

/* To be called once; gateway must live as long as the process. */
extern void gateway_link_init(Gateway *gateway);

/* Tells a gateway that has just been started all that it must know. */
extern void gateway_link_greet(bool with_tls);

/* Sends the pair for HTTPS, which must be there. */
extern void gateway_link_send_tls(void);

/* After settings have changed: sends those that are the gateway's. */
extern void gateway_link_follow_settings(void);

/* Sends the paths when they are others than those sent last. */
extern void gateway_link_follow_endpoints(void);

/* Answers deliveries that gateway_link_take has returned. */
extern void gateway_link_answer(Delivery **deliveries, int count);

/* Writes what waits, as far as the link takes it. */
extern void gateway_link_flush(void);

/* Reads what there is; false when the link has ended. */
extern bool gateway_link_read(void);

/* Returns how many bytes were read and wait to be taken. */
extern Size gateway_link_waiting(void);

/*
 * Works off what was read, and returns the deliveries: at most
 * banked_webhooks.max_batch, no further one beyond max_batch_size, and none
 * beyond size bytes when there are min_count.  They are valid until the next
 * gateway_link_read.  False when the gateway has sent what it must not.
 */
extern bool gateway_link_take(Size size, int min_count, Delivery **deliveries, int *count);

/* Did the last gateway_link_take leave something that could be taken now? */
extern bool gateway_link_has_more(void);

/* Gives back memory of buffers that were large; no delivery may be in use. */
extern void gateway_link_compact(void);

#endif							/* BW_GATEWAY_LINK_H */
