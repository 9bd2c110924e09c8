/*
 * table_cache.h
 *	  What a session keeps of a table in memory, as of the current transaction.
 */
#ifndef BW_TABLE_CACHE_H
#define BW_TABLE_CACHE_H

#include "postgres.h"

/* What is constant comes first; all else begins as zeros. */
typedef struct TableCache
{
	const char *table;			/* of schema banked; triggers on it and its kin call table_cache_invalidate */
	void		(*reload) (void);	/* forgets what was kept and reads anew; relation is set by then */
	Oid			relation;		/* of the table when it was read last, InvalidOid when it did not exist */
	uint64		version;		/* counts the readings */
	bool		current;
	bool		invalidated;	/* while it is being read */
	bool		registered;
	MemoryContext context;		/* for what is kept; null before the first table_cache_clear */
} TableCache;

/* Reads the table if it may have changed; needs a transaction.  After an error it is read again next time. */
extern void table_cache_refresh(TableCache *cache);

/* Gives back all that is kept in the cache's context, which is there afterwards; for reload. */
extern void table_cache_clear(TableCache *cache);

/* Is nothing known of a change since the last reading? */
extern bool table_cache_is_current(const TableCache *cache);

/* Makes all sessions read the table anew after this transaction. */
extern void table_cache_invalidate(const TableCache *cache);

#endif							/* BW_TABLE_CACHE_H */
