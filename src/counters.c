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

static void
init_counters(Counters *counters)
{
	/* Counters holds nothing but 64-bit atomics */
	pg_atomic_uint64 *counter = (pg_atomic_uint64 *) counters;

	StaticAssertStmt(sizeof(Counters) % sizeof(pg_atomic_uint64) == 0,
					 "Counters must hold atomics alone");
	for (size_t i = 0; i < sizeof(Counters) / sizeof(pg_atomic_uint64); i++)
		pg_atomic_init_u64(&counter[i], 0);
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
			init_counters(&shared_state->slots[i].counters);
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
counters_wake_receivers(Oid database)
{
	for (int i = 0; i < MAX_SLOTS; i++)
	{
		ReceiverSlot *slot = &shared_state->slots[i];

		if (slot->used && slot->database == database && slot->latch != NULL)
			SetLatch(slot->latch);
	}
}

const char *
counters_outcome_name(Outcome outcome)
{
	Assert(outcome >= 0 && outcome < OUTCOME_COUNT);
	return outcome_names[outcome];
}
