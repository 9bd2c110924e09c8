/*
 * handler_cache.c
 *	  The handlers of this database, as of the current transaction.
 *
 * Every event that is stored is held against all handlers, so each session
 * that stores events keeps them in memory.  They are read anew as endpoints are
 * (endpoint_cache.c): a trigger sends a relcache invalidation of banked.handlers.
 */
#include "postgres.h"

#include "access/xact.h"
#include "utils/builtins.h"
#include "utils/inval.h"
#include "utils/memutils.h"

#include "handler_cache.h"
#include "receiver/statements.h"

static Statement read_handlers = {
	.sql = "SELECT handler, role_id, function, state = 'active', events, endpoint_id, "
	"(extract(epoch FROM timeout) * 1000)::int4, coalesce(rate, 0)::float8, ordered, "
	"include_revisions, include_tests, batch FROM banked.handlers ORDER BY handler"
};

static MemoryContext cache_context = NULL;	/* null until the first reading */
static Handler *handlers = NULL;
static int	handler_count = 0;
static bool current = false;
static bool invalidated = false;	/* while the table is being read */
static uint64 version = 0;
static bool callback_registered = false;
static Oid	handlers_relation = InvalidOid;

static void
relation_invalidated(Datum arg, Oid relation)
{
	if (relation == InvalidOid || relation == handlers_relation ||
		!OidIsValid(handlers_relation))
	{
		current = false;
		invalidated = true;
	}
}

static void
fill_handler(Handler *handler, int row)
{
	Datum		value;
	bool		isnull;

	handler->name = TextDatumGetCString(statements_result(row, 1, &isnull));
	handler->role = DatumGetObjectId(statements_result(row, 2, &isnull));
	handler->function = TextDatumGetCString(statements_result(row, 3, &isnull));
	handler->active = DatumGetBool(statements_result(row, 4, &isnull));
	handler->event_count = -1;
	value = statements_result(row, 5, &isnull);
	if (!isnull)
		handler->events = statements_texts(value, &handler->event_count);
	value = statements_result(row, 6, &handler->any_endpoint);
	if (!handler->any_endpoint)
		handler->endpoint_id = *DatumGetUUIDP(value);
	handler->timeout = DatumGetInt32(statements_result(row, 7, &isnull));
	handler->rate = DatumGetFloat8(statements_result(row, 8, &isnull));
	handler->ordered = DatumGetBool(statements_result(row, 9, &isnull));
	handler->include_revisions = DatumGetBool(statements_result(row, 10, &isnull));
	handler->include_tests = DatumGetBool(statements_result(row, 11, &isnull));
	handler->batch = DatumGetInt32(statements_result(row, 12, &isnull));
}

/* Reads the table, if it exists: before the first endpoint, and after DROP EXTENSION, it does not. */
static void
load(void)
{
	Identity	before;
	MemoryContext old;
	int			count;

	handlers_relation = statements_relation("handlers");
	if (!OidIsValid(handlers_relation) || !statements_extension_exists())
		return;

	SPI_connect();
	statements_become_owner(&before);
	(void) statements_run(&read_handlers, NULL, NULL, 0);
	count = (int) SPI_processed;
	old = MemoryContextSwitchTo(cache_context);
	handlers = palloc0(sizeof(Handler) * Max(count, 1));
	for (int row = 0; row < count; row++)
		fill_handler(&handlers[row], row);
	MemoryContextSwitchTo(old);
	statements_restore(&before);
	SPI_finish();
	handler_count = count;
}

void
handler_cache_refresh(void)
{
	if (!callback_registered)
	{
		CacheRegisterRelcacheCallback(relation_invalidated, (Datum) 0);
		callback_registered = true;
	}
	/* A transaction that holds its locks already accepts none by itself. */
	AcceptInvalidationMessages();
	if (current)
		return;

	/* An error below leaves the cache marked as not current. */
	handlers = NULL;
	handler_count = 0;
	if (cache_context != NULL)
		MemoryContextReset(cache_context);
	else
		cache_context = AllocSetContextCreate(CacheMemoryContext, "banked_webhooks handlers",
											  ALLOCSET_SMALL_SIZES);
	invalidated = false;
	load();
	/* What an old snapshot shows is good for this transaction alone. */
	current = !invalidated && !IsolationUsesXactSnapshot();
	version++;
}

bool
handler_cache_is_current(void)
{
	AcceptInvalidationMessages();
	return current;
}

uint64
handler_cache_version(void)
{
	return version;
}

const Handler *
handler_cache_all(int *count)
{
	*count = handler_count;
	return handlers;
}

const Handler *
handler_cache_find(const char *name)
{
	for (int i = 0; i < handler_count; i++)
	{
		if (strcmp(handlers[i].name, name) == 0)
			return &handlers[i];
	}
	return NULL;
}

void
handler_cache_invalidate(void)
{
	Oid			relation = statements_relation("handlers");

	if (OidIsValid(relation))
		CacheInvalidateRelcacheByRelid(relation);
}
