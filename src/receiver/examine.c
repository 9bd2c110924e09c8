/*
 * examine.c
 *	  Judges a delivery: is it authentic, and what does it carry?
 *
 * The order matters.  Nothing looks at a body before its HMAC has been found
 * right under a key of the endpoint; until then it is a string of bytes from
 * a stranger.  An authentic delivery is never turned away: what cannot become
 * an event is marked for quarantine, with the reason.
 */
#include "postgres.h"

#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "endpoint_cache.h"
#include "examine.h"
#include "payload.h"

/* How far a signature's time may lie in the future. */
#define MAX_CLOCK_SKEW (5 * USECS_PER_MINUTE)

static void
reject(Delivery *delivery, RejectionReason reason)
{
	delivery->outcome = OUTCOME_REJECTED;
	delivery->rejection = reason;
}

/* Seconds since the Unix epoch as PostgreSQL counts time. */
static TimestampTz
timestamp_from_unix(int64 seconds)
{
	return (seconds - ((POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * (int64) SECS_PER_DAY)) *
		USECS_PER_SEC;
}

static bool
in_window(const Endpoint *endpoint, TimestampTz signed_at, TimestampTz received_at)
{
	int64		age = received_at - signed_at;

	return age <= endpoint->timestamp_tolerance && age >= -MAX_CLOCK_SKEW;
}

/*
 * Tries every key that is valid; sets key_id.  *usable tells whether a failure
 * is final: there was a key, and none that may have signed it was unreadable.
 */
static bool
verify_with_keys(Delivery *delivery, const Endpoint *endpoint, const SignatureHeader *header,
				 bool *usable)
{
	bool		unreadable = false;

	*usable = false;
	for (EndpointKey *key = endpoint->keys; key != NULL; key = key->next)
	{
		if (key->valid_until <= delivery->received_at)
			continue;
		if (key->unreadable)
			unreadable = true;
		if (key->key == NULL)
			continue;
		*usable = true;
		if (signature_verify(key->key, header, delivery->body, delivery->body_length))
		{
			delivery->key_id = key->key_id;
			delivery->has_key_id = true;
			return true;
		}
	}
	if (unreadable)
		*usable = false;
	return false;
}

/* Endpoint and signature; true when the delivery is authentic. */
static bool
authenticate(Delivery *delivery, const Endpoint **found)
{
	const Endpoint *endpoint = endpoint_cache_find(delivery->path, delivery->path_length);
	SignatureHeader header;
	bool		usable;

	*found = endpoint;
	if (endpoint == NULL || endpoint->state == ENDPOINT_DISABLED)
	{
		reject(delivery, REJECTION_UNKNOWN_PATH);
		return false;
	}
	if (endpoint->state == ENDPOINT_RETIRED)
	{
		reject(delivery, REJECTION_RETIRED);
		return false;
	}
	delivery->endpoint_id = endpoint->endpoint_id;

	if (!signature_parse(delivery->signature_text, delivery->signature_length, &header))
	{
		reject(delivery, REJECTION_SIGNATURE_MALFORMED);
		return false;
	}
	delivery->signed_at = timestamp_from_unix(header.timestamp);
	memcpy(delivery->signature, header.digest, SIGNATURE_SIZE);

	if (!verify_with_keys(delivery, endpoint, &header, &usable))
	{
		if (usable)
			reject(delivery, REJECTION_SIGNATURE_WRONG);
		else
		{
			delivery->outcome = OUTCOME_UNAVAILABLE;
			delivery->rejection = REJECTION_NO_KEY;
		}
		return false;
	}
	if (!in_window(endpoint, delivery->signed_at, delivery->received_at))
	{
		reject(delivery, REJECTION_TIMESTAMP);
		return false;
	}
	return true;
}

/* Can apply_rules do anything? */
static bool
has_rules(const Endpoint *endpoint)
{
	return !endpoint->all_events || endpoint->live >= 0;
}

static void
apply_rules(Delivery *delivery, const Endpoint *endpoint)
{
	if (!endpoint_wants(endpoint, delivery->event_type, delivery->bare_mandate))
		delivery->outcome = OUTCOME_UNWANTED;
	else if (endpoint->live >= 0 && delivery->live >= 0 && !delivery->test &&
			 endpoint->live != delivery->live)
		delivery_to_quarantine(delivery, QUARANTINE_LIVE_MISMATCH, 0,
							   delivery->live ? "a live event came to an endpoint for test events"
							   : "a test event came to an endpoint for live events");
}

void
examine_delivery(Delivery *delivery, bool identity_suffices)
{
	const Endpoint *endpoint;

	delivery->outcome = OUTCOME_PENDING;
	if (!authenticate(delivery, &endpoint))
	{
		delivery->judged = delivery->outcome;
		return;
	}

	delivery->authentic = true;
	if (!signature_sha256(delivery->body, delivery->body_length, delivery->body_sha256))
		elog(ERROR, "could not compute the SHA-256 of a body");
	if (!(identity_suffices && !has_rules(endpoint) && payload_read_identity(delivery)) &&
		payload_read(delivery, NULL, NULL))
		apply_rules(delivery, endpoint);
	delivery->judged = delivery->outcome;
}

void
examine_unread(Delivery *delivery)
{
	MemoryContext old;

	/* One that is not pending may have been sent to quarantine for what it is known to do. */
	if (delivery->judged != OUTCOME_PENDING || delivery->payload != 0)
		return;
	/* An attempt to store it may fail, and the next one finds it read. */
	old = MemoryContextSwitchTo(GetMemoryChunkContext(delivery->event_id));
	delivery->outcome = OUTCOME_PENDING;
	(void) payload_read(delivery, NULL, NULL);
	delivery->judged = delivery->outcome;
	MemoryContextSwitchTo(old);
}

void
examine_body(Delivery *delivery, const char *event_id, const char *event_type)
{
	const Endpoint *endpoint = endpoint_cache_find_id(&delivery->endpoint_id);

	delivery->outcome = OUTCOME_PENDING;
	if (payload_read(delivery, event_id, event_type) && endpoint != NULL)
		apply_rules(delivery, endpoint);
	delivery->judged = delivery->outcome;
}
