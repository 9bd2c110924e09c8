/*
 * handler_cache.h
 *	  The handlers of this database, as of the current transaction.
 */
#ifndef BW_HANDLER_CACHE_H
#define BW_HANDLER_CACHE_H

#include "postgres.h"

#include "utils/uuid.h"

typedef struct Handler
{
	const char *name;
	Oid			role;
	const char *function;		/* as regprocedure prints it, schema-qualified */
	bool		active;
	int			event_count;	/* -1: all */
	char	  **events;			/* event types and patterns */
	bool		any_endpoint;
	pg_uuid_t	endpoint_id;
	int			timeout;		/* milliseconds */
	double		rate;			/* starts a second, 0: no limit */
	bool		ordered;
	bool		include_revisions;
	bool		include_tests;
	int			batch;
} Handler;

/*
 * Brings the cache up to date when it is not; to be called in a transaction,
 * before the look-ups below, whose results hold until the next call.
 */
extern void handler_cache_refresh(void);

/* Is there nothing to read anew?  Needs no transaction, and accepts pending invalidations. */
extern bool handler_cache_is_current(void);

/* Counts how often the table was read. */
extern uint64 handler_cache_version(void);

/* All handlers; *count says how many. */
extern const Handler *handler_cache_all(int *count);

/* The handler of a name, or null. */
extern const Handler *handler_cache_find(const char *name);

/* Makes every session read the handlers anew once the current transaction has committed. */
extern void handler_cache_invalidate(void);

#endif							/* BW_HANDLER_CACHE_H */
