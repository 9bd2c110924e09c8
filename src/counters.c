/*
 * counters.c
 *	  The extension's shared memory: its size, its start, and wake-ups.
 *
 * See counters.h for what is in it and which lock guards what.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/shmem.h"

#include "counters.h"

SharedState *shared_state = NULL;
ReceiverSlot *my_slot = NULL;

static shmem_request_hook_type previous_shmem_request = NULL;
static shmem_startup_hook_type previous_shmem_startup = NULL;

static const char *const outcome_names[OUTCOME_COUNT] = {
	[OUTCOME_PENDING] = "pending",
	[OUTCOME_STORED] = "stored",
	[OUTCOME_REPETITION] = "repetition",
	[OUTCOME_CHANGED] = "changed",
	[OUTCOME_RECURRENCE] = "recurrence",
	[OUTCOME_QUARANTINED] = "quarantined",
	[OUTCOME_UNWANTED] = "unwanted",
	[OUTCOME_REJECTED] = "rejected",
	[OUTCOME_UNAVAILABLE] = "unavailable",
};

static void
request_shared_memory(void)
{
	if (previous_shmem_request)
		previous_shmem_request();
	RequestAddinShmemSpace(MAXALIGN(sizeof(SharedState)));
	RequestNamedLWLockTranche("banked_webhooks", 1);
}

/* Counters holds nothing but 64-bit atomics. */
static pg_atomic_uint64 *
counters_as_array(Counters *counters)
{
	StaticAssertStmt(sizeof(Counters) % sizeof(pg_atomic_uint64) == 0,
					 "Counters must hold atomics alone");
	return (pg_atomic_uint64 *) counters;
}

static void
init_counters(ReceiverSlot *slot)
{
	pg_atomic_uint64 *counter = counters_as_array(&slot->counters);

	for (size_t i = 0; i < sizeof(Counters) / sizeof(pg_atomic_uint64); i++)
		pg_atomic_init_u64(&counter[i], 0);
	for (int i = 0; i < MAX_COUNTED_KEYS; i++)
	{
		pg_atomic_init_u64(&slot->keys[i].deliveries, 0);
		pg_atomic_init_u64(&slot->keys[i].last_used, 0);
	}
}

static void
start_shared_memory(void)
{
	bool		found;

	if (previous_shmem_startup)
		previous_shmem_startup();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	shared_state = ShmemInitStruct("banked_webhooks", sizeof(SharedState), &found);
	if (!found)
	{
		memset(shared_state, 0, sizeof(SharedState));
		shared_state->lock = &GetNamedLWLockTranche("banked_webhooks")->lock;
		ConditionVariableInit(&shared_state->receiver_gone);
		pg_atomic_init_u64(&shared_state->generation, 1);
		for (int i = 0; i < MAX_SLOTS; i++)
			init_counters(&shared_state->slots[i]);
	}
	LWLockRelease(AddinShmemInitLock);
}

void
counters_init(void)
{
	previous_shmem_request = shmem_request_hook;
	shmem_request_hook = request_shared_memory;
	previous_shmem_startup = shmem_startup_hook;
	shmem_startup_hook = start_shared_memory;
}

void
counters_wake_launcher(void)
{
	if (shared_state->launcher_latch != NULL)
		SetLatch(shared_state->launcher_latch);
}

void
counters_tell_launcher(void)
{
	LWLockAcquire(shared_state->lock, LW_SHARED);
	counters_wake_launcher();
	LWLockRelease(shared_state->lock);
}

bool
counters_database_is_served(Oid database)
{
	for (int i = 0; i < MAX_SLOTS; i++)
	{
		if (shared_state->slots[i].used && shared_state->slots[i].database == database)
			return true;
	}
	return false;
}

void
counters_wake_receivers(Oid database)
{
	for (int i = 0; i < MAX_SLOTS; i++)
	{
		ReceiverSlot *slot = &shared_state->slots[i];

		if (slot->used && slot->database == database && slot->latch != NULL)
			SetLatch(slot->latch);
	}
}

void
counters_reset(ReceiverSlot *slot)
{
	pg_atomic_uint64 *counter = counters_as_array(&slot->counters);

	for (size_t i = 0; i < sizeof(Counters) / sizeof(pg_atomic_uint64); i++)
		pg_atomic_write_u64(&counter[i], 0);
	memset(&slot->unstoppable, 0, sizeof(slot->unstoppable));
	for (int i = 0; i < MAX_COUNTED_KEYS; i++)
	{
		pg_atomic_write_u64(&slot->keys[i].deliveries, 0);
		pg_atomic_write_u64(&slot->keys[i].last_used, 0);
	}
}

/* The place where a key is counted, taking one for it where it has none. */
static KeyUse *
find_key_use(const pg_uuid_t *key_id)
{
	KeyUse	   *oldest = &my_slot->keys[0];

	for (int i = 0; i < MAX_COUNTED_KEYS; i++)
	{
		KeyUse	   *use = &my_slot->keys[i];
		uint64		last_used = pg_atomic_read_u64(&use->last_used);

		if (last_used != 0 && memcmp(&use->key_id, key_id, sizeof(pg_uuid_t)) == 0)
			return use;
		if (last_used < pg_atomic_read_u64(&oldest->last_used))
			oldest = use;
	}

	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	oldest->key_id = *key_id;
	pg_atomic_write_u64(&oldest->deliveries, 0);
	LWLockRelease(shared_state->lock);
	return oldest;
}

void
counters_count_key(const pg_uuid_t *key_id, TimestampTz received_at)
{
	KeyUse	   *use;

	if (my_slot == NULL)
		return;
	use = find_key_use(key_id);
	pg_atomic_write_u64(&use->deliveries, pg_atomic_read_u64(&use->deliveries) + 1);
	pg_atomic_write_u64(&use->last_used, (uint64) received_at);
}

const char *
counters_outcome_name(Outcome outcome)
{
	Assert(outcome >= 0 && outcome < OUTCOME_COUNT);
	return outcome_names[outcome];
}
