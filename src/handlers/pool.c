/*
 * pool.c
 *	  Shared memory of the handler workers, and wake-ups.
 *
 * See pool.h for what is in it and which lock guards what.
 */
#include "postgres.h"

#include "miscadmin.h"
#include "storage/ipc.h"
#include "storage/shmem.h"

#include "counters.h"
#include "pool.h"

PoolState  *pool_state = NULL;
HandlerWorker *my_worker = NULL;

static shmem_request_hook_type previous_shmem_request = NULL;
static shmem_startup_hook_type previous_shmem_startup = NULL;

static void
request_shared_memory(void)
{
	if (previous_shmem_request)
		previous_shmem_request();
	RequestAddinShmemSpace(MAXALIGN(sizeof(PoolState)));
	RequestNamedLWLockTranche("banked_webhooks_handlers", 1);
}

static void
start_shared_memory(void)
{
	bool		found;

	if (previous_shmem_startup)
		previous_shmem_startup();

	LWLockAcquire(AddinShmemInitLock, LW_EXCLUSIVE);
	pool_state = ShmemInitStruct("banked_webhooks handlers", sizeof(PoolState), &found);
	if (!found)
	{
		memset(pool_state, 0, sizeof(PoolState));
		pool_state->lock = &GetNamedLWLockTranche("banked_webhooks_handlers")->lock;
		pg_atomic_init_u64(&pool_state->settle_requests, 0);
		pg_atomic_init_u64(&pool_state->publish_requests, 0);
	}
	LWLockRelease(AddinShmemInitLock);
}

void
pool_init(void)
{
	previous_shmem_request = shmem_request_hook;
	shmem_request_hook = request_shared_memory;
	previous_shmem_startup = shmem_startup_hook;
	shmem_startup_hook = start_shared_memory;
}

HandlerEntry *
pool_find_entry(Oid database, const char *name)
{
	for (int i = 0; i < MAX_HANDLERS; i++)
	{
		HandlerEntry *entry = &pool_state->entries[i];

		if (entry->used && entry->database == database && strcmp(entry->name, name) == 0)
			return entry;
	}
	return NULL;
}

int
pool_count_workers(const HandlerEntry *entry)
{
	int			index = entry - pool_state->entries;
	int			count = 0;

	for (int i = 0; i < MAX_HANDLER_WORKERS; i++)
	{
		HandlerWorker *worker = &pool_state->workers[i];

		if (worker->used && worker->entry == index && worker->left == LEFT_NOTHING)
			count++;
	}
	return count;
}

bool
pool_database_is_busy(Oid database)
{
	bool		busy = false;

	LWLockAcquire(pool_state->lock, LW_SHARED);
	for (int i = 0; i < MAX_HANDLER_WORKERS; i++)
	{
		HandlerWorker *worker = &pool_state->workers[i];

		if (worker->used && worker->database == database &&
			(worker->starting || worker->pid != 0))
			busy = true;
	}
	LWLockRelease(pool_state->lock);
	return busy;
}

void
pool_wake(const char *name, int count)
{
	HandlerEntry *entry;
	bool		launch = false;

	if (pool_state == NULL)
		return;
	LWLockAcquire(pool_state->lock, LW_EXCLUSIVE);
	entry = pool_find_entry(MyDatabaseId, name);
	if (entry != NULL)
	{
		int			index = entry - pool_state->entries;

		entry->pending = true;
		launch = pool_count_workers(entry) == 0;
		for (int i = 0; i < MAX_HANDLER_WORKERS && count > 0; i++)
		{
			HandlerWorker *worker = &pool_state->workers[i];

			if (worker->used && worker->entry == index && worker->idle && worker->latch != NULL)
			{
				worker->idle = false;
				SetLatch(worker->latch);
				count--;
			}
		}
	}
	LWLockRelease(pool_state->lock);

	if (launch)
		counters_tell_launcher();
}
