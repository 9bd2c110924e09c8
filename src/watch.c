/*
 * watch.c
 *	  Tells the extension's processes what other sessions commit.
 *
 * Three sources: our own triggers and functions call watch_config_changed and
 * watch_service_changed; PostgreSQL's object access hook reports extensions,
 * roles and databases that come, change or go, by whatever route; and the
 * utility hook reports what that hook does not show.  All of them only mark the
 * transaction.  Latches are set after its commit, so that whoever wakes up sees
 * the change.
 *
 * The utility hook has a second task.  A connected receiver would make DROP
 * DATABASE, ALTER DATABASE ... RENAME or SET TABLESPACE and CREATE DATABASE
 * ... TEMPLATE fail.  Before such a command on a served database the session
 * takes a hold: the launcher ends the receivers and starts none until the
 * transaction has ended, one way or the other.
 *
 * Nothing here may raise an error after a transaction has committed.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "access/xact.h"
#include "catalog/objectaccess.h"
#include "catalog/pg_authid.h"
#include "catalog/pg_database.h"
#include "catalog/pg_db_role_setting.h"
#include "catalog/pg_extension.h"
#include "commands/dbcommands.h"
#include "commands/defrem.h"
#include "commands/extension.h"
#include "miscadmin.h"
#include "storage/ipc.h"
#include "tcop/utility.h"
#include "utils/acl.h"
#include "utils/resowner.h"
#include "utils/syscache.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "counters.h"
#include "handlers/pool.h"
#include "settings.h"
#include "watch.h"

/* How long a command waits for the receivers to end before it goes on without, in milliseconds. */
#define HOLD_TIMEOUT 10000

/* The handlers that a transaction makes jobs for. */
#define MAX_READY MAX_HANDLERS

typedef struct ReadyJobs
{
	char		handler[HANDLER_NAME_SIZE];
	int			count;
} ReadyJobs;

static object_access_hook_type previous_object_access = NULL;
static ProcessUtility_hook_type previous_process_utility = NULL;

/* What the current transaction did. */
static bool config_changed = false;
static bool service_changed = false;
static ReadyJobs ready_jobs[MAX_READY];
static int	ready_count = 0;
static bool holds_taken = false;
static bool exit_callback_registered = false;

bool		watch_guards_session = false;

/* Gives the session's holds back; after the end of a transaction and at exit. */
static void
release_holds(void)
{
	if (!holds_taken)
		return;
	holds_taken = false;
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	for (int i = 0; i < MAX_HOLDS; i++)
	{
		if (shared_state->holds[i].pid == MyProcPid)
			memset(&shared_state->holds[i], 0, sizeof(DatabaseHold));
	}
	counters_wake_launcher();
	LWLockRelease(shared_state->lock);
}

static void
release_holds_at_exit(int code, Datum arg)
{
	release_holds();
}

static void
publish_changes(void)
{
	LWLockAcquire(shared_state->lock, LW_SHARED);
	if (service_changed)
	{
		pg_atomic_fetch_add_u64(&shared_state->generation, 1);
		counters_wake_launcher();
	}
	if (OidIsValid(MyDatabaseId))
		counters_wake_receivers(MyDatabaseId);
	LWLockRelease(shared_state->lock);
}

/*
 * The end of a transaction, or of its preparation.  Callbacks of transactions
 * would come too early: the invalidations that others must have seen, before they look,
 * are sent after those, and before the resources of this phase are released.
 */
static void
transaction_ended(ResourceReleasePhase phase, bool isCommit, bool isTopLevel, void *arg)
{
	if (phase != RESOURCE_RELEASE_AFTER_LOCKS || !isTopLevel || shared_state == NULL)
		return;
	if (isCommit && (config_changed || service_changed))
		publish_changes();
	for (int i = 0; isCommit && i < ready_count; i++)
		pool_wake(ready_jobs[i].handler, ready_jobs[i].count);
	config_changed = false;
	service_changed = false;
	ready_count = 0;
	release_holds();
}

static void
object_accessed(ObjectAccessType access, Oid classId, Oid objectId, int subId, void *arg)
{
	if (previous_object_access)
		previous_object_access(access, classId, objectId, subId, arg);

	if (access != OAT_POST_CREATE && access != OAT_DROP && access != OAT_POST_ALTER)
		return;
	if (classId == ExtensionRelationId || classId == AuthIdRelationId ||
		classId == DatabaseRelationId || classId == DbRoleSettingRelationId)
		watch_service_changed();
}

/* Do receivers of the database run, or are they about to?  Caller holds the lock. */
static bool
database_has_receivers(Oid database)
{
	for (int i = 0; i < MAX_SLOTS; i++)
	{
		ReceiverSlot *slot = &shared_state->slots[i];

		if (slot->used && slot->database == database &&
			(slot->pid != 0 || slot->starting))
			return true;
	}
	return false;
}

/* The session's hold on a database, else a free one, else null.  Caller holds the lock. */
static DatabaseHold *
find_hold(Oid database)
{
	DatabaseHold *found = NULL;

	for (int i = 0; i < MAX_HOLDS; i++)
	{
		DatabaseHold *hold = &shared_state->holds[i];

		if (hold->pid == MyProcPid && hold->database == database)
			return hold;
		if (found == NULL && !OidIsValid(hold->database))
			found = hold;
	}
	return found;
}

/* Takes a hold on a served database; returns false when there is nothing to hold. */
static bool
take_hold(Oid database, bool handlers_only)
{
	DatabaseHold *hold = NULL;

	if (!exit_callback_registered)
	{
		before_shmem_exit(release_holds_at_exit, 0);
		exit_callback_registered = true;
	}

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	if (counters_database_is_served(database))
		hold = find_hold(database);
	if (hold != NULL)
	{
		hold->handlers_only = handlers_only && (hold->handlers_only || !OidIsValid(hold->database));
		hold->database = database;
		hold->pid = MyProcPid;
		holds_taken = true;
		counters_wake_launcher();
	}
	LWLockRelease(shared_state->lock);
	return hold != NULL;
}

/* Keeps a database free of receivers until this transaction ends. */
static void
hold_database(Oid database, bool handlers_only)
{
	TimestampTz give_up;
	bool		running;

	if (!take_hold(database, handlers_only))
		return;

	give_up = TimestampTzPlusMilliseconds(GetCurrentTimestamp(), HOLD_TIMEOUT);
	ConditionVariablePrepareToSleep(&shared_state->receiver_gone);
	for (;;)
	{
		LWLockAcquire(shared_state->lock, LW_SHARED);
		running = !handlers_only && database_has_receivers(database);
		LWLockRelease(shared_state->lock);
		running = running || pool_database_is_busy(database);
		if (!running || GetCurrentTimestamp() >= give_up)
			break;
		ConditionVariableTimedSleep(&shared_state->receiver_gone, 1000, PG_WAIT_EXTENSION);
	}
	ConditionVariableCancelSleep();
}

/* May the user copy a database that he does not own?  As createdb() has it. */
static bool
may_copy(Oid database)
{
	bool		result = false;
	HeapTuple	tuple;

	if (superuser())
		return true;
	tuple = SearchSysCache1(DATABASEOID, ObjectIdGetDatum(database));
	if (HeapTupleIsValid(tuple))
	{
		result = ((Form_pg_database) GETSTRUCT(tuple))->datistemplate;
		ReleaseSysCache(tuple);
	}
	if (!result)
		return false;
	tuple = SearchSysCache1(AUTHOID, ObjectIdGetDatum(GetUserId()));
	result = false;
	if (HeapTupleIsValid(tuple))
	{
		result = ((Form_pg_authid) GETSTRUCT(tuple))->rolcreatedb;
		ReleaseSysCache(tuple);
	}
	return result;
}

static const char *
template_of(CreatedbStmt *stmt)
{
	ListCell   *cell;

	foreach(cell, stmt->options)
	{
		DefElem    *option = lfirst_node(DefElem, cell);

		if (strcmp(option->defname, "template") == 0 && option->arg != NULL)
			return defGetString(option);
	}
	return "template1";
}

static bool
moves_tablespace(AlterDatabaseStmt *stmt)
{
	ListCell   *cell;

	foreach(cell, stmt->options)
	{
		if (strcmp(lfirst_node(DefElem, cell)->defname, "tablespace") == 0)
			return true;
	}
	return false;
}

/*
 * Does the command drop our extension, by a user who may?  It takes locks that
 * a handler's transaction would keep from it for as long as its function runs.
 */
static bool
drops_extension(DropStmt *stmt)
{
	ListCell   *cell;

	if (stmt->removeType != OBJECT_EXTENSION)
		return false;
	foreach(cell, stmt->objects)
	{
		Oid			extension;

		if (strcmp(strVal(lfirst(cell)), "banked_webhooks") != 0)
			continue;
		extension = get_extension_oid("banked_webhooks", true);
		return OidIsValid(extension) && pg_extension_ownercheck(extension, GetUserId());
	}
	return false;
}

/*
 * Takes a hold when the command needs a database without other sessions and
 * the user may run it: nobody can interrupt the service by commands that fail
 * for want of privilege, or because they stand in a transaction block or in a
 * function.  From a handler that would be for ever: the hold ends its worker,
 * and the job, which does not count as failed, begins again.
 */
static void
hold_for_command(Node *command, bool alone)
{
	const char *name = NULL;
	bool		copies = false;
	Oid			database;

	switch (nodeTag(command))
	{
		case T_DropdbStmt:
			if (alone)
				name = castNode(DropdbStmt, command)->dbname;
			break;
		case T_RenameStmt:
			if (castNode(RenameStmt, command)->renameType == OBJECT_DATABASE)
				name = castNode(RenameStmt, command)->subname;
			break;
		case T_AlterDatabaseStmt:
			if (alone && moves_tablespace(castNode(AlterDatabaseStmt, command)))
				name = castNode(AlterDatabaseStmt, command)->dbname;
			break;
		case T_CreatedbStmt:
			if (alone)
				name = template_of(castNode(CreatedbStmt, command));
			copies = true;
			break;
		case T_DropStmt:
			if (drops_extension(castNode(DropStmt, command)))
				hold_database(MyDatabaseId, true);
			break;
		default:
			break;
	}
	if (name == NULL)
		return;

	database = get_database_oid(name, true);
	if (!OidIsValid(database) || (database == MyDatabaseId && !copies))
		return;
	if (pg_database_ownercheck(database, GetUserId()) ||
		(copies && may_copy(database)))
		hold_database(database, false);
}

/*
 * May a trigger run this command in the session of receive()'s caller?  Not
 * what makes, changes or drops objects: those in pg_temp would be found by the
 * caller's later statements before his own.  Tables cannot be temporary there
 * (see statements_become_worker).
 */
static bool
leaves_nothing_behind(Node *command)
{
	switch (nodeTag(command))
	{
		case T_CallStmt:
		case T_ConstraintsSetStmt:
		case T_CopyStmt:
		case T_CreateStmt:
		case T_CreateTableAsStmt:
		case T_DeclareCursorStmt:
		case T_DoStmt:
		case T_ExplainStmt:
		case T_FetchStmt:
		case T_IndexStmt:
		case T_LockStmt:
		case T_NotifyStmt:
		case T_RefreshMatViewStmt:
		case T_TruncateStmt:
		case T_VariableSetStmt:
		case T_VariableShowStmt:
			return true;
		default:
			return false;
	}
}

/* Refuses to users' triggers what would act later, on other deliveries or as another role. */
static void
refuse_to_triggers(Node *command)
{
	if (watch_guards_session && !leaves_nothing_behind(command))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("cannot execute %s in a trigger while a webhook is stored in the session of another role",
						GetCommandTagName(CreateCommandTag(command)))));

	/*
	 * A role may alter itself, and the worker's settings hold for all
	 * receivers.  Nothing but users' triggers acts as the worker, perhaps
	 * later by a function that one of them has made.
	 */
	if ((IsA(command, AlterRoleStmt) || IsA(command, AlterRoleSetStmt) || IsA(command, DropOwnedStmt)) &&
		IsTransactionState() && GetUserId() == get_role_oid(WORKER_ROLE, true))
		ereport(ERROR,
				(errcode(ERRCODE_INSUFFICIENT_PRIVILEGE),
				 errmsg("role \"%s\" cannot alter itself", WORKER_ROLE)));
}

/* Does the command change what receivers do, in a way that nothing but itself tells? */
static bool
changes_service(Node *command)
{
	switch (nodeTag(command))
	{
		case T_TransactionStmt:
			/* The marks of the prepared transaction are gone: assume the most. */
			return castNode(TransactionStmt, command)->kind == TRANS_STMT_COMMIT_PREPARED;
		case T_AlterDatabaseSetStmt:
		case T_AlterRoleSetStmt:
			/* Where a receiver listens may be another place now. */
			return true;
		default:
			return false;
	}
}

/* The command may be freed when it has run: a ROLLBACK ends what its plan was kept for. */
static void
process_utility(PlannedStmt *pstmt, const char *queryString, bool readOnlyTree,
				ProcessUtilityContext context, ParamListInfo params,
				QueryEnvironment *queryEnv, DestReceiver *dest, QueryCompletion *qc)
{
	Node	   *command = pstmt->utilityStmt;
	bool		changes = changes_service(command);

	refuse_to_triggers(command);
	if (shared_state != NULL)
		hold_for_command(command, context == PROCESS_UTILITY_TOPLEVEL && !IsTransactionBlock());

	if (previous_process_utility)
		previous_process_utility(pstmt, queryString, readOnlyTree, context,
								 params, queryEnv, dest, qc);
	else
		standard_ProcessUtility(pstmt, queryString, readOnlyTree, context,
								params, queryEnv, dest, qc);
	if (changes)
		watch_service_changed();
}

void
watch_init(void)
{
	RegisterResourceReleaseCallback(transaction_ended, NULL);
	previous_object_access = object_access_hook;
	object_access_hook = object_accessed;
	previous_process_utility = ProcessUtility_hook;
	ProcessUtility_hook = process_utility;
}

void
watch_config_changed(void)
{
	config_changed = true;
}

void
watch_service_changed(void)
{
	service_changed = true;
}

void
watch_jobs_ready(const char *handler, int count)
{
	for (int i = 0; i < ready_count; i++)
	{
		if (strcmp(ready_jobs[i].handler, handler) == 0)
		{
			ready_jobs[i].count += count;
			return;
		}
	}
	if (ready_count == MAX_READY)
		return;					/* more than can have workers */
	strlcpy(ready_jobs[ready_count].handler, handler, HANDLER_NAME_SIZE);
	ready_jobs[ready_count++].count = count;
}
