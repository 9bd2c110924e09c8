/*
 * table_cache.c
 *	  What a session keeps of a table in memory, as of the current transaction.
 *
 * Whatever changes the table sends a relcache invalidation of it, which all
 * sessions get with the commit.  So a cache that was brought up to date within a
 * transaction is as good as the table, and nobody polls.
 */
#include "postgres.h"

#include "access/xact.h"
#include "utils/inval.h"
#include "utils/memutils.h"

#include "statements.h"
#include "table_cache.h"

static void
relation_invalidated(Datum arg, Oid relation)
{
	TableCache *cache = (TableCache *) DatumGetPointer(arg);

	if (relation == InvalidOid || relation == cache->relation || !OidIsValid(cache->relation))
	{
		cache->current = false;
		cache->invalidated = true;
	}
}

void
table_cache_refresh(TableCache *cache)
{
	if (!cache->registered)
	{
		CacheRegisterRelcacheCallback(relation_invalidated, PointerGetDatum(cache));
		cache->registered = true;
	}
	/* A transaction that holds its locks already accepts none by itself. */
	AcceptInvalidationMessages();
	if (cache->current)
		return;

	/* An error below leaves the cache marked as not current. */
	cache->invalidated = false;
	cache->relation = statements_relation(cache->table);
	cache->reload();
	/* What an old snapshot shows is good for this transaction alone. */
	cache->current = !cache->invalidated && !IsolationUsesXactSnapshot();
	cache->version++;
}

void
table_cache_clear(TableCache *cache)
{
	if (cache->context != NULL)
		MemoryContextReset(cache->context);
	else
	{
		cache->context = AllocSetContextCreate(CacheMemoryContext, "banked_webhooks table cache",
											   ALLOCSET_SMALL_SIZES);
		MemoryContextSetIdentifier(cache->context, cache->table);
	}
}

bool
table_cache_is_current(const TableCache *cache)
{
	AcceptInvalidationMessages();
	return cache->current;
}

void
table_cache_invalidate(const TableCache *cache)
{
	Oid			relation = statements_relation(cache->table);

	if (OidIsValid(relation))
		CacheInvalidateRelcacheByRelid(relation);
}
