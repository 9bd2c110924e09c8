/*
 * stored_rows.h
 *	  What is stored of an event already, and what a further delivery is by that.
 */
#ifndef BW_STORED_ROWS_H
#define BW_STORED_ROWS_H

#include "delivery.h"

/* A stored row of a delivery's event_id. */
typedef struct StoredRow
{
	char	   *event_type;
	int			revision;
	uint8		body_sha256[SIGNATURE_SIZE];
	uint8		signature[SIGNATURE_SIZE];
	TimestampTz signed_at;
	TimestampTz received_at;
	int64		seq;
	struct StoredRow *next;
} StoredRow;

/*
 * Looks up the stored rows of the event_ids of deliveries that are sorted by
 * it, as the worker's role and in the caller's SPI connection: an array of
 * lists, palloc'ed, with the list of an event_id at its first delivery.
 */
extern StoredRow **stored_rows_find(Delivery **deliveries, int count);

/* The newest row of a delivery's identity among those of its event_id, or null: the identity is new. */
extern const StoredRow *stored_rows_newest(const Delivery *delivery, const StoredRow *rows);

/*
 * What a delivery of a known identity is: REPETITION, CHANGED or RECURRENCE,
 * by the rule in event_store.c.  newest is what stored_rows_newest returned.
 */
extern Outcome stored_rows_classify(const Delivery *delivery, const StoredRow *rows,
									const StoredRow *newest);

/* The number of the next revision of a delivery's identity. */
extern int	stored_rows_next_revision(const Delivery *delivery, const StoredRow *rows);

/* Puts a delivery that has become a row in front of a list. */
extern StoredRow *stored_rows_add(const Delivery *delivery, int revision, StoredRow *next);

#endif							/* BW_STORED_ROWS_H */
