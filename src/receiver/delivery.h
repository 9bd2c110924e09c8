/*
 * delivery.h
 *	  One delivery on its way from bytes to a row.
 */
#ifndef BW_DELIVERY_H
#define BW_DELIVERY_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "utils/uuid.h"

#include "counters.h"
#include "frame.h"
#include "signature.h"

/* The longest event_id, event_type and resource_id, in bytes: they stand in indexes. */
#define IDENTITY_MAX 512

/* Why an authentic delivery could not become an event; texts in delivery_quarantine_reason. */
typedef enum QuarantineReason
{
	QUARANTINE_INVALID_JSON,
	QUARANTINE_MISSING_IDENTITY,
	QUARANTINE_IDENTITY_TOO_LONG,
	QUARANTINE_LIVE_MISMATCH,
	QUARANTINE_TRIGGER_ERROR,
	QUARANTINE_TRIGGER_SUPPRESSED,
	QUARANTINE_TIMEOUT,
	QUARANTINE_OUT_OF_MEMORY
} QuarantineReason;

typedef struct Delivery
{
	/* as it arrived; the bytes belong to whoever made the delivery */
	uint64		number;			/* of the gateway, 0 elsewhere */
	const char *path;
	Size		path_length;
	const char *signature_text;
	Size		signature_length;
	const char *body;
	Size		body_length;
	TimestampTz received_at;
	FrameAddress address;

	/* once it is known to be authentic */
	bool		authentic;
	pg_uuid_t	endpoint_id;
	bool		has_key_id;		/* false for some quarantined deliveries of older times */
	pg_uuid_t	key_id;
	TimestampTz signed_at;
	uint8		signature[SIGNATURE_SIZE];
	uint8		body_sha256[SIGNATURE_SIZE];

	/* from the body; texts are palloc'ed, null where the body says nothing */
	char	   *event_id;
	char	   *event_type;
	char	   *resource_id;
	char	   *resource_type;
	char	   *state;
	int8		live;			/* 1, 0, -1 unknown */
	bool		test;
	bool		v2;
	bool		bare_mandate;	/* see endpoint_wants */
	char	   *api_version;
	Datum		payload;		/* jsonb, palloc'ed; 0 until the body is read (see examine_unread) */

	/* what became of it */
	Outcome		judged;			/* the outcome that examine_delivery gave */
	Outcome		outcome;
	RejectionReason rejection;	/* for OUTCOME_REJECTED and OUTCOME_UNAVAILABLE */
	QuarantineReason reason;	/* for OUTCOME_QUARANTINED */
	int			sqlstate;		/* 0 when no error was raised */
	const char *message;		/* for the table alone: may quote the body */

	/* quarantine row that it was read from, 0 for a new delivery */
	int64		quarantine_id;

	/* working state of event_store.c */
	int64		seq;
	int			revision;
	const char *stored_id;		/* identity of the row that it became, null when none */
	const char *stored_type;
	struct Delivery *same_as;	/* an earlier one of the batch with the same endpoint, bytes and signature */
} Delivery;

/* Marks a delivery for quarantine.  message, null or not, must live as long as the delivery. */
extern void delivery_to_quarantine(Delivery *delivery, QuarantineReason reason, int sqlstate,
								   const char *message);

/* Did examine_delivery refuse it, for the reason in rejection? */
extern bool delivery_was_refused(const Delivery *delivery);

/* The HTTP status that a decided delivery is answered with. */
extern int	delivery_status(const Delivery *delivery);

/* "invalid_json", ...: the texts of banked.quarantine.reason. */
extern const char *delivery_quarantine_reason(QuarantineReason reason);

#endif							/* BW_DELIVERY_H */
