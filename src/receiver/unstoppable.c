/*
 * unstoppable.c
 *	  Deliveries whose storing could not be cancelled.
 *
 * A trigger that catches its cancellation again and again is ended with the
 * receiver's process.  Nobody is left then to put the delivery into quarantine:
 * it would come again, and end the receiver again, until Banked gives up.  So
 * the process leaves word in its slot of shared memory.  If it was storing one
 * delivery, the next process puts that into quarantine at once; if it was
 * storing several, the next process stores them one by one for a while.
 */
#include "postgres.h"

#include "storage/ipc.h"
#include "utils/timestamp.h"

#include "transaction.h"
#include "unstoppable.h"

#define HOUR ((int64) 3600 * USECS_PER_SEC)

/* How long a delivery is known, and how long one is sought: Banked's first retries come within minutes. */
#define KNOWN_FOR (6 * HOUR)
#define SOUGHT_FOR (HOUR / 2)

static int	watched_count = 0;
static uint8 watched_sha256[SIGNATURE_SIZE];	/* of the only one */

static void
note_at_exit(int code, Datum arg)
{
	Unstoppable *unstoppable = &my_slot->unstoppable;

	if (!transaction_is_unstoppable())
		return;
	ereport(LOG,
			(errmsg("a receiver of webhooks ends, since code that runs while an event is stored does not react to its cancellation"),
			 errhint("Look for a trigger on banked.events or banked.event_revisions that catches query_canceled.")));
	if (watched_count == 1)
	{
		memcpy(unstoppable->noted[unstoppable->next].body_sha256, watched_sha256, SIGNATURE_SIZE);
		unstoppable->noted[unstoppable->next].noted_at = GetCurrentTimestamp();
		unstoppable->next = (unstoppable->next + 1) % MAX_UNSTOPPABLE;
		unstoppable->sought_until = 0;
	}
	else
		unstoppable->sought_until = GetCurrentTimestamp() + SOUGHT_FOR;
}

void
unstoppable_init(void)
{
	before_shmem_exit(note_at_exit, 0);
}

void
unstoppable_watch(Delivery **deliveries, int count)
{
	watched_count = count;
	if (count == 1)
		memcpy(watched_sha256, deliveries[0]->body_sha256, SIGNATURE_SIZE);
}

bool
unstoppable_is_sought(void)
{
	return my_slot->unstoppable.sought_until != 0 &&
		GetCurrentTimestamp() < my_slot->unstoppable.sought_until;
}

bool
unstoppable_is_known(const Delivery *delivery)
{
	for (int i = 0; i < MAX_UNSTOPPABLE; i++)
	{
		TimestampTz noted_at = my_slot->unstoppable.noted[i].noted_at;

		if (noted_at != 0 && GetCurrentTimestamp() < noted_at + KNOWN_FOR &&
			memcmp(my_slot->unstoppable.noted[i].body_sha256, delivery->body_sha256,
				   SIGNATURE_SIZE) == 0)
			return true;
	}
	return false;
}
