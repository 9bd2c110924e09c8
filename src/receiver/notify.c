/*
 * notify.c
 *	  Notifications on channel banked_webhooks.
 *
 * A statement trigger on events, event_revisions and quarantine says what
 * came.  In a receiver it only collects: a transaction that notifies holds a
 * lock of the whole cluster from just before its commit until after it, the
 * wait for disks and standbys included, and every other session's NOTIFY would
 * wait too.  After the events are safe the notifications go out in a
 * transaction of their own that waits for no disk and no standby.  In any other
 * session the trigger notifies in the session's transaction.
 *
 * Notifications are hints.  They never fail a delivery, and hardly keep the next
 * one waiting: with the queue more than half full, or while the NOTIFY of another
 * session waits for its standby, they are left out, and counted.
 */
#include "postgres.h"

#include "access/xact.h"
#include "commands/async.h"
#include "commands/trigger.h"
#include "executor/spi.h"
#include "executor/tuptable.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/guc.h"
#include "utils/json.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/rel.h"
#include "utils/timestamp.h"
#include "utils/tuplestore.h"

#include "counters.h"
#include "endpoint_cache.h"
#include "notify.h"
#include "settings.h"
#include "transaction.h"

#define CHANNEL "banked_webhooks"
#define MAX_PAYLOAD 7999		/* bytes; one more and NOTIFY raises an error */
#define MAX_QUEUE_USAGE 0.5

/* Milliseconds: of the wait for another session's NOTIFY, and of all before the commit, where that is. */
#define SEND_LOCK_TIMEOUT 200
#define SEND_TIMEOUT 1000

/* After they could not be sent, for so many times as long as that took none are. */
#define SEND_SHARE 10

PG_FUNCTION_INFO_V1(banked_webhooks_notify);

static MemoryContext collect_context = NULL;	/* not null: collect only */
static List *collected = NIL;	/* of char *, in collect_context */

static bool
queue_has_room(void)
{
	return DatumGetFloat8(DirectFunctionCall1(pg_notification_queue_usage, (Datum) 0)) <=
		MAX_QUEUE_USAGE;
}

/* The columns of the triggers' tables that notifications tell of. */
typedef enum ColumnId
{
	COLUMN_EVENT_ID,
	COLUMN_EVENT_TYPE,
	COLUMN_ENDPOINT_ID,
	COLUMN_RESOURCE_ID,
	COLUMN_SEQ,
	COLUMN_REVISION,
	COLUMN_QUARANTINE_ID,
	COLUMN_REASON,
	COLUMN_COUNT
} ColumnId;

static const char *const column_names[COLUMN_COUNT] = {
	[COLUMN_EVENT_ID] = "event_id",
	[COLUMN_EVENT_TYPE] = "event_type",
	[COLUMN_ENDPOINT_ID] = "endpoint_id",
	[COLUMN_RESOURCE_ID] = "resource_id",
	[COLUMN_SEQ] = "seq",
	[COLUMN_REVISION] = "revision",
	[COLUMN_QUARANTINE_ID] = "quarantine_id",
	[COLUMN_REASON] = "reason",
};

/* Where a table has a column, and how its values become text. */
typedef struct Column
{
	int			attnum;			/* 0: there is no such column */
	FmgrInfo	output;
} Column;

static void
find_columns(TupleDesc tupdesc, Column *columns)
{
	for (int i = 0; i < COLUMN_COUNT; i++)
	{
		Oid			output;
		bool		varlena;

		columns[i].attnum = Max(SPI_fnumber(tupdesc, column_names[i]), 0);
		if (columns[i].attnum == 0)
			continue;
		getTypeOutputInfo(TupleDescAttr(tupdesc, columns[i].attnum - 1)->atttypid, &output, &varlena);
		fmgr_info(output, &columns[i].output);
	}
}

/* The text of a column of a row, palloc'ed, or null; also null when there is no such column. */
static char *
column_text(TupleTableSlot *slot, Column *column)
{
	bool		isnull;
	Datum		value;

	if (column->attnum == 0)
		return NULL;
	value = slot_getattr(slot, column->attnum, &isnull);
	return isnull ? NULL : OutputFunctionCall(&column->output, value);
}

static void
append_text(StringInfo json, const char *key, const char *text)
{
	if (json->len > 1)
		appendStringInfoChar(json, ',');
	escape_json(json, key);
	appendStringInfoChar(json, ':');
	if (text == NULL)
		appendStringInfoString(json, "null");
	else
		escape_json(json, text);
}

static void
append_number(StringInfo json, const char *key, const char *number)
{
	appendStringInfo(json, "%s\"%s\":%s", json->len > 1 ? "," : "", key,
					 number == NULL ? "null" : number);
}

/* The path of the endpoint of a row, or null. */
static const char *
endpoint_path(TupleTableSlot *slot, const Column *column)
{
	bool		isnull = true;
	Datum		value = (Datum) 0;
	const Endpoint *endpoint = NULL;

	if (column->attnum > 0)
		value = slot_getattr(slot, column->attnum, &isnull);
	if (!isnull)
		endpoint = endpoint_cache_find_id(DatumGetUUIDP(value));
	return endpoint == NULL ? NULL : endpoint->path;
}

static char *
event_payload(TupleTableSlot *slot, Column *columns, bool with_resource)
{
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfoChar(&json, '{');
	append_text(&json, "event_id", column_text(slot, &columns[COLUMN_EVENT_ID]));
	append_text(&json, "event_type", column_text(slot, &columns[COLUMN_EVENT_TYPE]));
	append_text(&json, "endpoint", endpoint_path(slot, &columns[COLUMN_ENDPOINT_ID]));
	if (with_resource)
		append_text(&json, "resource_id", column_text(slot, &columns[COLUMN_RESOURCE_ID]));
	append_number(&json, "seq", column_text(slot, &columns[COLUMN_SEQ]));
	append_number(&json, "revision", column_text(slot, &columns[COLUMN_REVISION]));
	appendStringInfoChar(&json, '}');
	return json.data;
}

static char *
quarantine_payload(TupleTableSlot *slot, Column *columns)
{
	StringInfoData json;

	initStringInfo(&json);
	appendStringInfoChar(&json, '{');
	append_number(&json, "quarantine", column_text(slot, &columns[COLUMN_QUARANTINE_ID]));
	append_text(&json, "reason", column_text(slot, &columns[COLUMN_REASON]));
	appendStringInfoChar(&json, '}');
	return json.data;
}

static void
send_or_collect(const char *payload)
{
	if (strlen(payload) > MAX_PAYLOAD)
		return;

	if (collect_context != NULL)
	{
		MemoryContext old = MemoryContextSwitchTo(collect_context);

		collected = lappend(collected, pstrdup(payload));
		MemoryContextSwitchTo(old);
	}
	else
		Async_Notify(CHANNEL, payload);
}

static void
notify_row(TupleTableSlot *slot, Column *columns)
{
	char	   *payload;

	if (columns[COLUMN_QUARANTINE_ID].attnum > 0)
		payload = quarantine_payload(slot, columns);
	else
	{
		payload = event_payload(slot, columns, true);
		if (strlen(payload) > MAX_PAYLOAD)
			payload = event_payload(slot, columns, false);
	}
	send_or_collect(payload);
}

/*
 * banked_webhooks_notify() -- AFTER INSERT statement trigger with a transition
 * table of the new rows.
 */
Datum
banked_webhooks_notify(PG_FUNCTION_ARGS)
{
	TriggerData *trigger = (TriggerData *) fcinfo->context;
	Column		columns[COLUMN_COUNT];
	TupleTableSlot *slot;
	MemoryContext row_context;

	if (!CALLED_AS_TRIGGER(fcinfo) || !TRIGGER_FIRED_AFTER(trigger->tg_event) ||
		!TRIGGER_FIRED_BY_INSERT(trigger->tg_event) ||
		!TRIGGER_FIRED_FOR_STATEMENT(trigger->tg_event) || trigger->tg_newtable == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_E_R_I_E_TRIGGER_PROTOCOL_VIOLATED),
				 errmsg("%s must be an AFTER INSERT statement trigger with a new transition table",
						"banked._notify()")));

	if (!bw_notify || tuplestore_tuple_count(trigger->tg_newtable) == 0 ||
		(collect_context == NULL && !queue_has_room()))
		return PointerGetDatum(NULL);

	endpoint_cache_refresh();
	find_columns(RelationGetDescr(trigger->tg_relation), columns);
	slot = MakeSingleTupleTableSlot(RelationGetDescr(trigger->tg_relation),
									&TTSOpsMinimalTuple);
	row_context = AllocSetContextCreate(CurrentMemoryContext, "banked_webhooks notify",
										ALLOCSET_DEFAULT_SIZES);
	tuplestore_select_read_pointer(trigger->tg_newtable, 0);
	tuplestore_rescan(trigger->tg_newtable);
	while (tuplestore_gettupleslot(trigger->tg_newtable, true, false, slot))
	{
		MemoryContext old = MemoryContextSwitchTo(row_context);

		notify_row(slot, columns);
		MemoryContextSwitchTo(old);
		MemoryContextReset(row_context);
	}
	MemoryContextDelete(row_context);
	ExecDropSingleTupleTableSlot(slot);
	return PointerGetDatum(NULL);
}

void
notify_payload(const char *payload)
{
	if (bw_notify && (collect_context != NULL || queue_has_room()))
		send_or_collect(payload);
}

void
notify_collect(void)
{
	if (collect_context == NULL)
		collect_context = AllocSetContextCreate(TopMemoryContext, "banked_webhooks notifications",
												ALLOCSET_DEFAULT_SIZES);
}

int
notify_mark(void)
{
	return list_length(collected);
}

void
notify_rewind(int mark)
{
	collected = list_truncate(collected, mark);
}

/* In a transaction; *sent becomes false when there is no room. */
static void
send_all(void *sent)
{
	ListCell   *cell;

	(void) set_config_option("synchronous_commit", "off", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
	*(bool *) sent = queue_has_room();
	if (!*(bool *) sent)
		return;
	foreach(cell, collected)
		Async_Notify(CHANNEL, lfirst(cell));
}

/* Sends what was collected; false when it could not be, or not so soon after a failure. */
static bool
try_to_send(void)
{
	static TimestampTz not_before = 0;
	TimestampTz start = GetCurrentTimestamp();
	TransactionLimits limits = {
		.lock_timeout = SEND_LOCK_TIMEOUT,
		.timeout = SEND_TIMEOUT,
		.signals = transaction_signals()
	};
	TransactionError error;
	bool		sent = false;

	if (start < not_before)
		return false;
	if (transaction_run(TRANSACTION_OWN_WORK, &limits, send_all, &sent, &error))
		return sent;
	not_before = start + (1 + SEND_SHARE) * (GetCurrentTimestamp() - start);
	return false;
}

void
notify_send_collected(void)
{
	MemoryContext context = CurrentMemoryContext;

	if (collected == NIL)
	{
		MemoryContextReset(collect_context);	/* what was rewound is still there */
		return;
	}

	/* What could not be said is not lost: it stands in the tables. */
	if (try_to_send())
		COUNT(notifications, list_length(collected));
	else
		COUNT(notifications_skipped, list_length(collected));
	MemoryContextSwitchTo(context);
	collected = NIL;
	MemoryContextReset(collect_context);
}
