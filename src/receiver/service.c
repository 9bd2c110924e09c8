/*
 * service.c
 *	  Whether this receiver is still wanted, and as what it runs.
 *
 * The answer stands in the database, where nothing tells a receiver that it
 * has changed but a generation (see watch.c) that pause() and resume() increase,
 * and commands on extensions, roles, databases and their settings.  So the
 * receiver looks there once for each generation, and leaves when the extension
 * is gone, when the service is paused, or when ALTER DATABASE or ALTER ROLE have
 * given it other settings: these can only be had by connecting anew.
 */
#include "postgres.h"

#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/memutils.h"
#include "utils/timestamp.h"

#include "batch.h"
#include "counters.h"
#include "service.h"
#include "statements.h"

/* When to look again after a look that failed, in milliseconds. */
#define LOOK_RETRY 1000

static uint64 checked_generation = 0;
static uint64 connected_generation = 0; /* before this session got its settings */
static TimestampTz check_at = DT_NOEND; /* when to look again regardless */
static char *database_settings = NULL;	/* see read_database_settings */

static Statement read_paused = {
	.sql = "SELECT paused FROM banked.service_state"
};

/* What ALTER DATABASE and ALTER ROLE ... SET have set for this session: it can only be read at connect. */
static Statement read_database_settings = {
	.sql = "SELECT coalesce(string_agg(setdatabase || ':' || setrole || ':' || setconfig::text, ';' "
	"ORDER BY setdatabase, setrole), '') FROM pg_db_role_setting "
	"WHERE setdatabase IN (0, $1) AND setrole IN (0, $2)",
	.nargs = 2,
	.argtypes = {OIDOID, OIDOID}
};

/* Ends this process until the generation moves on. */
static void
park(ParkReason reason)
{
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	my_slot->parked_at = checked_generation;
	my_slot->park_reason = reason;
	LWLockRelease(shared_state->lock);
}

static bool
is_paused(void)
{
	bool		isnull;

	if (!OidIsValid(statements_relation("service_state")))
		return false;
	(void) statements_run(&read_paused, NULL, NULL, 1);
	return SPI_processed == 1 &&
		DatumGetBool(statements_result(0, 1, &isnull));
}

static char *
get_database_settings(void)
{
	Datum		values[2] = {ObjectIdGetDatum(MyDatabaseId), ObjectIdGetDatum(my_slot->role)};
	bool		isnull;
	Datum		settings;

	(void) statements_run(&read_database_settings, values, NULL, 1);
	settings = statements_result(0, 1, &isnull);
	return MemoryContextStrdup(TopMemoryContext, TextDatumGetCString(settings));
}

/* What a look at the database says about this receiver. */
static struct
{
	ParkReason	park;
	char	   *settings;
}			seen;

static void
look_at_service(void)
{
	Identity	before;

	seen.park = PARK_NONE;
	seen.settings = NULL;
	if (!statements_extension_exists())
	{
		seen.park = PARK_NO_EXTENSION;
		return;
	}
	SPI_connect();
	statements_become_owner(&before);
	if (is_paused())
		seen.park = PARK_PAUSED;
	seen.settings = get_database_settings();
	statements_restore(&before);
	SPI_finish();
}

bool
service_is_to_check(void)
{
	return checked_generation != pg_atomic_read_u64(&shared_state->generation) ||
		GetCurrentTimestamp() >= check_at;
}

TimestampTz
service_check_at(void)
{
	return check_at;
}

uint64
service_generation(void)
{
	return checked_generation;
}

void
service_connecting(void)
{
	connected_generation = pg_atomic_read_u64(&shared_state->generation);
}

bool
service_check(void)
{
	bool		unchanged;

	checked_generation = pg_atomic_read_u64(&shared_state->generation);
	check_at = DT_NOEND;
	if (!batch_run(look_at_service))
	{
		check_at = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), LOOK_RETRY);
		return true;
	}
	if (seen.park != PARK_NONE)
	{
		park(seen.park);
		return false;
	}
	if (database_settings == NULL && checked_generation == connected_generation)
	{
		database_settings = seen.settings;
		return true;
	}
	/* Those of the first look are the session's own only when nothing was changed since it connected. */
	unchanged = database_settings != NULL && strcmp(seen.settings, database_settings) == 0;
	pfree(seen.settings);
	if (!unchanged)
	{
		LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
		my_slot->restarting = true;
		LWLockRelease(shared_state->lock);
	}
	return unchanged;
}
