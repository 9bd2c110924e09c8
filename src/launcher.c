/*
 * launcher.c
 *	  The process that starts and stops receivers.
 *
 * It belongs to no database, so it blocks none, and it reads only shared
 * catalogs.  Each turn it compares what should run (the databases of the
 * setting, times the number of receivers) with what does (the slots) and takes
 * one step for each slot:
 *
 *	 idle	 -> starting  a receiver is wanted, nothing holds its database, it is
 *						  not parked and its time to start has come
 *	 starting -> running  the receiver has written its pid into the slot
 *	 running  -> stopping the database is held, or not to be served any more
 *	 any	 -> idle	  the postmaster says that the process has ended
 *
 * A receiver that finds no extension in its database, or a paused service,
 * parks: it writes the generation it saw into its slot and ends.  It is not
 * started again before the generation has moved on (see watch.c).  One that
 * ends for any other reason is started again at once if it had run for a
 * while, else after a pause that doubles.
 *
 * The launcher must never wait for anything but its latch: a DROP DATABASE
 * of any database waits until every process has handled its interrupts.
 */
#include "postgres.h"

#include "access/heapam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "access/tableam.h"
#include "access/xact.h"
#include "catalog/pg_database.h"
#include "miscadmin.h"
#include "pgstat.h"
#include "postmaster/bgworker.h"
#include "postmaster/interrupt.h"
#include "storage/ipc.h"
#include "utils/acl.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/snapmgr.h"
#include "utils/timestamp.h"
#include "utils/varlena.h"

#include "counters.h"
#include "handlers/dispatcher.h"
#include "launcher.h"
#include "settings.h"

/* A receiver that ran this long is started again at once, in milliseconds. */
#define SETTLED_AFTER 5000
#define FIRST_RESTART_DELAY 250
#define LAST_RESTART_DELAY 30000
#define NO_WORKER_RETRY 1000	/* when the server has no place for one more */

/* What the launcher knows of a slot besides what is shared. */
typedef struct Launch
{
	BackgroundWorkerHandle *handle; /* null when no process was started by this launcher */
	bool		stop_sent;
	int			failures;		/* ends in a row shortly after a start */
	TimestampTz started_at;
	TimestampTz start_after;	/* 0: no delay */
	bool		no_worker;		/* was free when it was to be started */
} Launch;


static Launch launches[MAX_SLOTS];
static bool report_unknown_databases = true;

/* What is missing, and whether that has been reported: never under the lock, since a log can make its writers wait. */
static bool no_slot = false;
static bool reported_no_slot = false;
static bool reported_no_worker = false;

void
launcher_init(void)
{
	BackgroundWorker worker = {0};

	if (IsBinaryUpgrade)
		return;

	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = 1;
	strlcpy(worker.bgw_library_name, "banked_webhooks", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "banked_webhooks_launcher_main", BGW_MAXLEN);
	strlcpy(worker.bgw_name, "banked_webhooks launcher", BGW_MAXLEN);
	strlcpy(worker.bgw_type, "banked_webhooks launcher", BGW_MAXLEN);
	RegisterBackgroundWorker(&worker);
}

/* Ends the receivers that this launcher started; its successor could not watch them. */
static void
launcher_exit(int code, Datum arg)
{
	for (int i = 0; i < MAX_SLOTS; i++)
	{
		if (launches[i].handle != NULL)
			TerminateBackgroundWorker(launches[i].handle);
	}
	dispatcher_exit();
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	shared_state->launcher_latch = NULL;
	LWLockRelease(shared_state->lock);
}

/* The names of the setting, palloc'ed. */
static List *
setting_names(void)
{
	List	   *names;

	if (!SplitIdentifierString(pstrdup(bw_databases), ',', &names))
		return NIL;				/* the setting's check hook has complained */
	return names;
}

static bool
list_has_name(List *names, const char *name)
{
	ListCell   *cell;

	foreach(cell, names)
	{
		if (strcmp(lfirst(cell), name) == 0)
			return true;
	}
	return false;
}

static void
report_unknown(List *names, List *known)
{
	ListCell   *cell;

	foreach(cell, names)
	{
		if (!list_has_name(known, lfirst(cell)))
			ereport(LOG,
					(errcode(ERRCODE_UNDEFINED_DATABASE),
					 errmsg("database \"%s\" in banked_webhooks.databases does not exist or does not allow connections",
							(char *) lfirst(cell))));
	}
}

/*
 * Lists the databases of the setting that exist, as OIDs.  Nothing is wanted
 * before some CREATE EXTENSION has made the worker's role.
 *
 * A process without a database can count on no index of a catalog, so this
 * scans pg_database as the autovacuum launcher does.
 */
static List *
read_wanted_databases(Oid *role)
{
	MemoryContext context = CurrentMemoryContext;
	MemoryContext old;
	List	   *names = setting_names();
	List	   *known = NIL;
	List	   *databases = NIL;
	Relation	relation;
	TableScanDesc scan;
	HeapTuple	tuple;

	StartTransactionCommand();
	(void) GetTransactionSnapshot();
	*role = get_role_oid(WORKER_ROLE, true);

	relation = table_open(DatabaseRelationId, AccessShareLock);
	scan = table_beginscan_catalog(relation, 0, NULL);
	old = MemoryContextSwitchTo(context);
	while ((tuple = heap_getnext(scan, ForwardScanDirection)) != NULL)
	{
		Form_pg_database database = (Form_pg_database) GETSTRUCT(tuple);

		if (!database->datallowconn || !list_has_name(names, NameStr(database->datname)))
			continue;
		known = lappend(known, pstrdup(NameStr(database->datname)));
		databases = lappend_oid(databases, database->oid);
	}
	MemoryContextSwitchTo(old);
	table_endscan(scan);
	table_close(relation, AccessShareLock);
	CommitTransactionCommand();
	MemoryContextSwitchTo(context);

	if (report_unknown_databases)
		report_unknown(names, known);
	report_unknown_databases = false;
	return OidIsValid(*role) ? databases : NIL;
}

static ReceiverSlot *
find_slot(Oid database, int number)
{
	for (int i = 0; i < MAX_SLOTS; i++)
	{
		ReceiverSlot *slot = &shared_state->slots[i];

		if (slot->used && slot->database == database && slot->number == number)
			return slot;
	}
	return NULL;
}

/* Gives a slot to every receiver that is wanted and has none yet.  Caller holds the lock. */
static void
allot_slots(List *databases, Oid role)
{
	ListCell   *cell;

	no_slot = false;
	foreach(cell, databases)
	{
		for (int number = 0; number < bw_receivers; number++)
		{
			Oid			database = lfirst_oid(cell);
			ReceiverSlot *slot = find_slot(database, number);

			for (int i = 0; slot == NULL && i < MAX_SLOTS; i++)
			{
				if (shared_state->slots[i].used)
					continue;
				slot = &shared_state->slots[i];
				slot->used = true;
				slot->database = database;
				slot->number = number;
				slot->parked_at = 0;
				slot->park_reason = PARK_NONE;
				memset(&launches[i], 0, sizeof(Launch));
			}
			if (slot != NULL)
				slot->role = role;
			else
				no_slot = true;
		}
	}
}

static bool
database_is_held(Oid database)
{
	for (int i = 0; i < MAX_HOLDS; i++)
	{
		if (shared_state->holds[i].database == database && !shared_state->holds[i].handlers_only)
			return true;
	}
	return false;
}

static void
reset_slot_process(ReceiverSlot *slot)
{
	slot->pid = 0;
	slot->latch = NULL;
	slot->starting = false;
	slot->gateway_pid = 0;
	slot->listening_since = 0;
	slot->port = 0;
	slot->tls_port = 0;
}

/* Takes note of a receiver that has ended and says when the next may start.  Caller holds the lock. */
static void
note_end(ReceiverSlot *slot, Launch *launch)
{
	TimestampTz now = GetCurrentTimestamp();

	if (slot->parked_at != 0 || slot->restarting || launch->stop_sent ||
		TimestampDifferenceExceeds(launch->started_at, now, SETTLED_AFTER))
	{
		launch->failures = 0;
		launch->start_after = 0;
	}
	else
	{
		int			delay = FIRST_RESTART_DELAY << Min(launch->failures, 10);

		launch->failures++;
		launch->start_after = TimestampTzPlusMilliseconds(now, Min(delay, LAST_RESTART_DELAY));
	}
	pfree(launch->handle);
	launch->handle = NULL;
	launch->stop_sent = false;
	reset_slot_process(slot);
	ConditionVariableBroadcast(&shared_state->receiver_gone);
}

static void
stop_receiver(ReceiverSlot *slot, Launch *launch)
{
	if (launch->stop_sent)
		return;
	launch->stop_sent = true;
	if (launch->handle != NULL)
		TerminateBackgroundWorker(launch->handle);
	else if (slot->pid != 0)
		kill(slot->pid, SIGTERM);	/* a launcher before this one started it */
}

static void
start_receiver(int index, ReceiverSlot *slot, Launch *launch)
{
	BackgroundWorker worker = {0};
	MemoryContext old;
	bool		registered;

	worker.bgw_flags = BGWORKER_SHMEM_ACCESS | BGWORKER_BACKEND_DATABASE_CONNECTION;
	worker.bgw_start_time = BgWorkerStart_RecoveryFinished;
	worker.bgw_restart_time = BGW_NEVER_RESTART;
	worker.bgw_notify_pid = MyProcPid;
	worker.bgw_main_arg = Int32GetDatum(index);
	strlcpy(worker.bgw_library_name, "banked_webhooks", BGW_MAXLEN);
	strlcpy(worker.bgw_function_name, "banked_webhooks_receiver_main", BGW_MAXLEN);
	snprintf(worker.bgw_name, BGW_MAXLEN, "banked_webhooks receiver for database %u",
			 slot->database);
	strlcpy(worker.bgw_type, "banked_webhooks receiver", BGW_MAXLEN);

	old = MemoryContextSwitchTo(TopMemoryContext);
	registered = RegisterDynamicBackgroundWorker(&worker, &launch->handle);
	MemoryContextSwitchTo(old);

	launch->started_at = GetCurrentTimestamp();
	launch->stop_sent = false;
	if (registered)
	{
		slot->starting = true;
		slot->restarting = false;
		slot->parked_at = 0;
		slot->park_reason = PARK_NONE;
		launch->no_worker = false;
		return;
	}

	launch->handle = NULL;
	launch->start_after = TimestampTzPlusMilliseconds(launch->started_at, NO_WORKER_RETRY);
	launch->no_worker = true;
}

/*
 * Takes the next step for one slot.  Returns the time of the next step that
 * no event will announce, or 0.  Caller holds the lock.
 */
static TimestampTz
advance_slot(int index, List *databases)
{
	ReceiverSlot *slot = &shared_state->slots[index];
	Launch	   *launch = &launches[index];
	bool		wanted;
	pid_t		pid;

	if (!slot->used)
		return 0;

	if (launch->handle != NULL &&
		GetBackgroundWorkerPid(launch->handle, &pid) == BGWH_STOPPED)
		note_end(slot, launch);

	wanted = list_member_oid(databases, slot->database) && slot->number < bw_receivers;

	if (launch->handle != NULL || slot->pid != 0)
	{
		if (!wanted || launch->handle == NULL || database_is_held(slot->database))
			stop_receiver(slot, launch);
		return 0;
	}

	if (!wanted)
	{
		counters_reset(slot);
		slot->used = false;
		launch->no_worker = false;
		return 0;
	}

	launch->stop_sent = false;
	if (database_is_held(slot->database) ||
		slot->parked_at == pg_atomic_read_u64(&shared_state->generation))
		return 0;
	if (launch->start_after > GetCurrentTimestamp())
		return launch->start_after;
	start_receiver(index, slot, launch);
	return launch->handle == NULL ? launch->start_after : 0;
}

static void
report_shortages(void)
{
	bool		no_worker = false;

	for (int i = 0; i < MAX_SLOTS; i++)
		no_worker |= launches[i].no_worker;
	if (no_slot && !reported_no_slot)
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("cannot run more than %d receivers of webhooks", MAX_SLOTS)));
	if (no_worker && !reported_no_worker)
		ereport(WARNING,
				(errcode(ERRCODE_CONFIGURATION_LIMIT_EXCEEDED),
				 errmsg("no background worker is free for receiving webhooks"),
				 errhint("Increase max_worker_processes (currently %d).", max_worker_processes)));
	reported_no_slot = no_slot;
	reported_no_worker = no_worker;
}

/* Takes one step for every slot; returns how long to wait for events, in milliseconds, or -1. */
static long
advance_all(void)
{
	Oid			role = InvalidOid;
	List	   *databases = read_wanted_databases(&role);
	TimestampTz wake_at = 0;
	TimestampTz dispatch_at;

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	allot_slots(databases, role);
	for (int i = 0; i < MAX_SLOTS; i++)
	{
		TimestampTz at = advance_slot(i, databases);

		if (at != 0 && (wake_at == 0 || at < wake_at))
			wake_at = at;
	}
	LWLockRelease(shared_state->lock);
	report_shortages();

	dispatch_at = dispatcher_advance();
	if (dispatch_at != 0 && (wake_at == 0 || dispatch_at < wake_at))
		wake_at = dispatch_at;
	if (wake_at == 0)
		return -1;
	return Max(TimestampDifferenceMilliseconds(GetCurrentTimestamp(), wake_at), 1);
}

void
banked_webhooks_launcher_main(Datum arg)
{
	MemoryContext turn_context;

	pqsignal(SIGHUP, SignalHandlerForConfigReload);
	pqsignal(SIGTERM, SignalHandlerForShutdownRequest);
	pqsignal(SIGINT, SIG_IGN);	/* a cancel would end it, and with it all receivers */
	BackgroundWorkerUnblockSignals();
	BackgroundWorkerInitializeConnection(NULL, NULL, 0);
	SetConfigOption("application_name", MyBgworkerEntry->bgw_type, PGC_USERSET, PGC_S_OVERRIDE);

	before_shmem_exit(launcher_exit, 0);
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	shared_state->launcher_latch = MyLatch;
	LWLockRelease(shared_state->lock);

	turn_context = AllocSetContextCreate(TopMemoryContext, "banked_webhooks launcher",
										 ALLOCSET_SMALL_SIZES);
	while (!ShutdownRequestPending)
	{
		long		timeout;

		MemoryContextSwitchTo(turn_context);
		timeout = advance_all();
		MemoryContextReset(turn_context);

		(void) WaitLatch(MyLatch,
						 WL_LATCH_SET | WL_EXIT_ON_PM_DEATH | (timeout >= 0 ? WL_TIMEOUT : 0),
						 timeout, PG_WAIT_EXTENSION);
		ResetLatch(MyLatch);
		CHECK_FOR_INTERRUPTS();
		if (ConfigReloadPending)
		{
			ConfigReloadPending = false;
			report_unknown_databases = true;
			ProcessConfigFile(PGC_SIGHUP);
		}
	}

	/* Not 0: the postmaster would not start a launcher again while it runs. */
	proc_exit(1);
}
