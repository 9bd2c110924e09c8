/*
 * endpoint_cache.h
 *	  The endpoints of this database and their keys, as of the current transaction.
 */
#ifndef BW_ENDPOINT_CACHE_H
#define BW_ENDPOINT_CACHE_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "utils/uuid.h"

#include "frame.h"
#include "signature.h"

typedef enum EndpointState
{
	ENDPOINT_ACTIVE,
	ENDPOINT_DISABLED,
	ENDPOINT_RETIRED
} EndpointState;

typedef struct EndpointKey
{
	pg_uuid_t	key_id;
	TimestampTz valid_until;	/* DT_NOEND when open */
	SignatureKey *key;			/* null when the secret is gone or unreadable */
	bool		unreadable;		/* there, but the master key is missing or another one */
	struct EndpointKey *next;
} EndpointKey;

typedef struct Endpoint
{
	char		path[FRAME_MAX_PATH + 1];	/* hash key; must be first */
	pg_uuid_t	endpoint_id;
	EndpointState state;
	int64		timestamp_tolerance;	/* microseconds */
	int8		live;			/* the rule: 1 live, 0 test, -1 none */
	bool		all_events;
	int			event_count;
	char	  **events;			/* event types and patterns */
	EndpointKey *keys;			/* newest first */
} Endpoint;

/*
 * Brings the cache up to date when it is not; to be called in a transaction,
 * before the look-ups below, whose results hold until the next call.
 */
extern void endpoint_cache_refresh(void);

/* Is there nothing to read anew?  Needs no transaction, and accepts pending invalidations. */
extern bool endpoint_cache_is_current(void);

/*
 * To be called when the settings have been read again.  Where a key could not be
 * opened the next refresh tries again; else a master key that would not open
 * them any more is reported.
 */
extern void endpoint_cache_follow_settings(void);

/* Counts how often the tables were read; what was made from the cache is stale when it has moved on. */
extern uint64 endpoint_cache_version(void);

/* The endpoint of a path (of any state), or null. */
extern const Endpoint *endpoint_cache_find(const char *path, Size length);

/* The endpoint with an id, or null. */
extern const Endpoint *endpoint_cache_find_id(const pg_uuid_t *endpoint_id);

/*
 * Does one of these event types and patterns match a type?  bare_mandate says that the type
 * comes from a v3 mandate body that names it without the prefix "mandate_".
 */
extern bool event_type_matches(char **filters, int count, const char *event_type, bool bare_mandate);

/* Does the endpoint want events of this type? */
extern bool endpoint_wants(const Endpoint *endpoint, const char *event_type, bool bare_mandate);

/* All paths that the gateway must know, in palloc'ed memory that points into the cache. */
extern PathEntry *endpoint_cache_paths(Size *count);

/* Makes every session read endpoints and keys anew once the current transaction has committed. */
extern void endpoint_cache_invalidate(void);

#endif							/* BW_ENDPOINT_CACHE_H */
