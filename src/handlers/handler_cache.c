/*
 * handler_cache.c
 *	  The handlers of this database, as of the current transaction.
 *
 * Every event that is stored is held against all handlers, so each session
 * that stores events keeps them in memory, and follows the table as it follows
 * that of the endpoints (receiver/table_cache.c).
 */
#include "postgres.h"

#include "utils/builtins.h"

#include "handler_cache.h"
#include "receiver/statements.h"
#include "receiver/table_cache.h"

static Statement read_handlers = {
	.sql = "SELECT handler, role_id, function, state = 'active', events, endpoint_id, "
	"(extract(epoch FROM timeout) * 1000)::int4, coalesce(rate, 0)::float8, ordered, "
	"include_revisions, include_tests, batch FROM banked.handlers ORDER BY handler"
};

static Handler *handlers = NULL;
static int	handler_count = 0;

static void reload(void);

static TableCache cache = {.table = "handlers", .reload = reload};

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

/* The table does not exist before the first endpoint, nor is it of use after DROP EXTENSION. */
static void
reload(void)
{
	Identity	before;
	MemoryContext old;
	int			count;

	handlers = NULL;
	handler_count = 0;
	table_cache_clear(&cache);
	if (!OidIsValid(cache.relation) || !statements_extension_exists())
		return;

	SPI_connect();
	statements_become_owner(&before);
	(void) statements_run(&read_handlers, NULL, NULL, 0);
	count = (int) SPI_processed;
	old = MemoryContextSwitchTo(cache.context);
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
	table_cache_refresh(&cache);
}

bool
handler_cache_is_current(void)
{
	return table_cache_is_current(&cache);
}

uint64
handler_cache_version(void)
{
	return cache.version;
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
	table_cache_invalidate(&cache);
}
