/*
 * stats.c
 *	  banked.stats(): what the receivers of this database do and did.
 *
 * One row per figure: its name, its labels and its value.  Counters are
 * totals since the server started; times are in seconds, sizes in bytes.
 */
#include "postgres.h"

#include "fmgr.h"
#include "funcapi.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/json.h"
#include "utils/timestamp.h"

#include "counters.h"
#include "handlers/pool.h"

PG_FUNCTION_INFO_V1(banked_webhooks_stats);

typedef struct Output
{
	ReturnSetInfo *result;
	int			receiver;		/* that the figure is about */
	const char *handler;		/* if not null, about this handler */
} Output;

static void
put(Output *output, const char *metric, const char *label, const char *label_value, Datum value)
{
	Datum		values[3];
	bool		nulls[3] = {0};
	StringInfoData labels;

	initStringInfo(&labels);
	if (output->handler != NULL)
	{
		appendStringInfoString(&labels, "{\"handler\": ");
		escape_json(&labels, output->handler);
	}
	else
		appendStringInfo(&labels, "{\"receiver\": %d", output->receiver);
	if (label != NULL)
	{
		appendStringInfoString(&labels, ", ");
		escape_json(&labels, label);
		appendStringInfoString(&labels, ": ");
		escape_json(&labels, label_value);
	}
	appendStringInfoChar(&labels, '}');

	values[0] = CStringGetTextDatum(metric);
	values[1] = DirectFunctionCall1(jsonb_in, CStringGetDatum(labels.data));
	values[2] = value;
	tuplestore_putvalues(output->result->setResult, output->result->setDesc, values, nulls);
	pfree(labels.data);
}

static void
put_integer(Output *output, const char *metric, const char *label, const char *label_value,
			uint64 value)
{
	put(output, metric, label, label_value,
		DirectFunctionCall1(int8_numeric, Int64GetDatum((int64) value)));
}

static void
put_real(Output *output, const char *metric, double value)
{
	put(output, metric, NULL, NULL, DirectFunctionCall1(float8_numeric, Float8GetDatum(value)));
}

static double
unix_seconds(TimestampTz time)
{
	return (double) time / USECS_PER_SEC +
		(double) (POSTGRES_EPOCH_JDATE - UNIX_EPOCH_JDATE) * SECS_PER_DAY;
}

static void
put_processes(Output *output, const ReceiverSlot *slot)
{
	bool		listening = slot->pid != 0 && slot->listening_since != 0;

	put_integer(output, "receiver_pid", NULL, NULL, slot->pid);
	put_integer(output, "gateway_pid", NULL, NULL, slot->gateway_pid);
	put_integer(output, "listening", "addresses", listening ? slot->addresses : "", listening);
	put_integer(output, "port", NULL, NULL, listening ? slot->port : 0);
	put_integer(output, "tls_port", NULL, NULL, listening ? slot->tls_port : 0);
	if (slot->pid == 0 && slot->park_reason != PARK_NONE)
		put_integer(output, "parked", "reason",
					slot->park_reason == PARK_PAUSED ? "paused" : "no_extension", 1);
	if (slot->pid != 0)
		put_real(output, "started_at", unix_seconds(slot->started_at));
	if (listening)
		put_real(output, "listening_since", unix_seconds(slot->listening_since));
}

static void
put_counters(Output *output, Counters *counters)
{
	uint64		batches = pg_atomic_read_u64(&counters->batches);
	uint64		batched = pg_atomic_read_u64(&counters->batched);

	for (int i = OUTCOME_STORED; i < OUTCOME_COUNT; i++)
		put_integer(output, "deliveries", "outcome", counters_outcome_name(i),
					pg_atomic_read_u64(&counters->outcomes[i]));
	for (int i = 0; i < REJECTION_COUNT; i++)
		put_integer(output, "rejections", "reason", frame_rejection_name(i),
					pg_atomic_read_u64(&counters->rejections[i]));
	put_integer(output, "batches", NULL, NULL, batches);
	put_real(output, "batch_mean", batches == 0 ? 0 : (double) batched / batches);
	put_integer(output, "body_bytes", NULL, NULL, pg_atomic_read_u64(&counters->bytes));
	put_integer(output, "commits", NULL, NULL, pg_atomic_read_u64(&counters->commits));
	put_real(output, "commit_seconds",
			 (double) pg_atomic_read_u64(&counters->commit_time) / USECS_PER_SEC);
	put_real(output, "store_seconds",
			 (double) pg_atomic_read_u64(&counters->store_time) / USECS_PER_SEC);
	put_integer(output, "gateway_restarts", NULL, NULL,
				pg_atomic_read_u64(&counters->gateway_restarts));
	put_integer(output, "notifications", "outcome", "sent",
				pg_atomic_read_u64(&counters->notifications));
	put_integer(output, "notifications", "outcome", "skipped",
				pg_atomic_read_u64(&counters->notifications_skipped));
	put_integer(output, "gateway_sandboxed", NULL, NULL,
				pg_atomic_read_u64(&counters->sandboxed));
	put_integer(output, "connections", NULL, NULL, pg_atomic_read_u64(&counters->connections));
	put_integer(output, "connections_total", NULL, NULL,
				pg_atomic_read_u64(&counters->connections_total));
	put_integer(output, "requests_total", NULL, NULL,
				pg_atomic_read_u64(&counters->requests_total));
	put_integer(output, "pending", NULL, NULL, pg_atomic_read_u64(&counters->pending));
	put_integer(output, "pending_bytes", NULL, NULL, pg_atomic_read_u64(&counters->pending_size));
}

static void
put_handler(Output *output, const HandlerEntry *entry, int workers, int idle)
{
	output->handler = entry->name;
	put_integer(output, "jobs", "outcome", "done", entry->totals.done);
	put_integer(output, "jobs", "outcome", "failed", entry->totals.failed);
	put_integer(output, "jobs", "outcome", "crashed", entry->totals.crashed);
	put_integer(output, "jobs", "outcome", "dead", entry->totals.dead);
	put_real(output, "job_seconds", (double) entry->totals.run_time / USECS_PER_SEC);
	put_integer(output, "handler_workers", "state", "busy", workers - idle);
	put_integer(output, "handler_workers", "state", "idle", idle);
	output->handler = NULL;
}

static void
put_handlers(Output *output)
{
	for (int i = 0; i < MAX_HANDLERS; i++)
	{
		HandlerEntry entry;
		int			workers;
		int			idle = 0;

		LWLockAcquire(pool_state->lock, LW_SHARED);
		entry = pool_state->entries[i];
		workers = pool_count_workers(&pool_state->entries[i]);
		for (int k = 0; k < MAX_HANDLER_WORKERS; k++)
			idle += pool_state->workers[k].used && pool_state->workers[k].entry == i &&
				pool_state->workers[k].idle;
		LWLockRelease(pool_state->lock);
		if (entry.used && entry.database == MyDatabaseId)
			put_handler(output, &entry, workers, idle);
	}
}

/* How much each signing key is used: a key that is not any more can be revoked. */
static void
put_keys(Output *output, ReceiverSlot *copy)
{
	for (int i = 0; i < MAX_COUNTED_KEYS; i++)
	{
		KeyUse	   *use = &copy->keys[i];
		TimestampTz last_used = (TimestampTz) pg_atomic_read_u64(&use->last_used);
		char	   *key_id;

		if (last_used == 0)
			continue;
		key_id = DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&use->key_id)));
		put_integer(output, "key_deliveries", "key_id", key_id,
					pg_atomic_read_u64(&use->deliveries));
		put(output, "key_last_used", "key_id", key_id,
			DirectFunctionCall1(float8_numeric, Float8GetDatum(unix_seconds(last_used))));
	}
}

/*
 * banked_webhooks_stats() -> setof (metric text, labels jsonb, value numeric)
 */
Datum
banked_webhooks_stats(PG_FUNCTION_ARGS)
{
	ReceiverSlot *copy = palloc(sizeof(ReceiverSlot));
	Output		output;

	if (shared_state == NULL)
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("there are no statistics of webhooks, since none are received"),
				 errhint("Add banked_webhooks to shared_preload_libraries, set banked_webhooks.databases and restart the server.")));

	InitMaterializedSRF(fcinfo, 0);
	output.result = (ReturnSetInfo *) fcinfo->resultinfo;
	output.handler = NULL;
	for (int i = 0; i < MAX_SLOTS; i++)
	{
		ReceiverSlot *slot = &shared_state->slots[i];
		bool		mine;

		LWLockAcquire(shared_state->lock, LW_SHARED);
		mine = slot->used && slot->database == MyDatabaseId;
		*copy = *slot;
		LWLockRelease(shared_state->lock);
		if (!mine)
			continue;
		output.receiver = copy->number;
		put_processes(&output, copy);
		put_counters(&output, &slot->counters);
		put_keys(&output, copy);
	}
	put_handlers(&output);
	return (Datum) 0;
}
