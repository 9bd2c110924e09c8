/*
 * delivery.c
 *	  What can be said of a delivery once it is judged.
 */
#include "postgres.h"

#include "delivery.h"

void
delivery_to_quarantine(Delivery *delivery, QuarantineReason reason, int sqlstate,
					   const char *message)
{
	delivery->outcome = OUTCOME_QUARANTINED;
	delivery->reason = reason;
	delivery->sqlstate = sqlstate;
	delivery->message = message;
}

bool
delivery_was_refused(const Delivery *delivery)
{
	return delivery->judged == OUTCOME_REJECTED || delivery->judged == OUTCOME_UNAVAILABLE;
}

int
delivery_status(const Delivery *delivery)
{
	if (delivery->outcome == OUTCOME_UNAVAILABLE || delivery->outcome == OUTCOME_PENDING)
		return 503;
	if (delivery->outcome != OUTCOME_REJECTED)
		return 200;
	switch (delivery->rejection)
	{
		case REJECTION_UNKNOWN_PATH:
			return 404;
		case REJECTION_RETIRED:
			return 410;
		default:
			return 400;
	}
}

const char *
delivery_quarantine_reason(QuarantineReason reason)
{
	switch (reason)
	{
		case QUARANTINE_INVALID_JSON:
			return "invalid_json";
		case QUARANTINE_MISSING_IDENTITY:
			return "missing_identity";
		case QUARANTINE_IDENTITY_TOO_LONG:
			return "identity_too_long";
		case QUARANTINE_LIVE_MISMATCH:
			return "live_mismatch";
		case QUARANTINE_TRIGGER_ERROR:
			return "trigger_error";
		case QUARANTINE_TRIGGER_SUPPRESSED:
			return "trigger_suppressed";
		case QUARANTINE_TIMEOUT:
			return "timeout";
		case QUARANTINE_OUT_OF_MEMORY:
			return "out_of_memory";
	}
	return "unknown";			/* not reached */
}
