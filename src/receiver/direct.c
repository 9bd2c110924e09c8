/*
 * direct.c
 *	  Stores one delivery in the caller's transaction, without a receiver.
 *
 * banked.receive() and banked.reprocess() come here.  Where a receiver uses a
 * transaction of its own, this uses a subtransaction, so that a failing
 * trigger costs the caller nothing but the delivery's place in quarantine.
 * A cancellation is the exception: whether somebody cancelled the caller's
 * statement or a trigger raised 57014 of its own accord cannot be told here, and
 * the statement fails.
 */
#include "postgres.h"

#include "access/xact.h"
#include "executor/spi.h"
#include "utils/memutils.h"
#include "utils/resowner.h"

#include "direct.h"
#include "event_store.h"
#include "failure.h"
#include "quarantine.h"
#include "watch.h"

typedef void (*Step) (Delivery *delivery);

/*
 * Runs a step in a subtransaction.  Returns null when it succeeded, else its error.
 */
static ErrorData *
try_step(Step step, Delivery *delivery)
{
	MemoryContext context = CurrentMemoryContext;
	ResourceOwner owner = CurrentResourceOwner;
	ErrorData  *volatile error = NULL;
	const bool	guarded = watch_guards_session; /* a trigger may call receive() */

	BeginInternalSubTransaction(NULL);
	MemoryContextSwitchTo(context);
	PG_TRY();
	{
		watch_guards_session = true;
		step(delivery);
		watch_guards_session = guarded;
		ReleaseCurrentSubTransaction();
	}
	PG_CATCH();
	{
		watch_guards_session = guarded;
		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		RollbackAndReleaseCurrentSubTransaction();
	}
	PG_END_TRY();
	MemoryContextSwitchTo(context);
	CurrentResourceOwner = owner;

	if (error != NULL && failure_of_sqlstate(error->sqlerrcode) == FAILURE_CANCELLED)
		ReThrowError(error);
	return error;
}

static void
write_step(Delivery *delivery)
{
	event_store_write(&delivery, 1);
}

static void
known_step(Delivery *delivery)
{
	(void) event_store_write_known(delivery);
}

/* Fires what the caller's own statements have deferred, as the caller. */
static void
run_callers_deferred_triggers(void)
{
	SPI_connect();
	if (SPI_execute("SET CONSTRAINTS ALL IMMEDIATE", false, 0) < 0)
		elog(ERROR, "could not run deferred triggers");
	SPI_finish();
}

static void
store(Delivery *delivery)
{
	ErrorData  *error;
	Failure		failure;

	run_callers_deferred_triggers();

	error = try_step(write_step, delivery);
	if (error != NULL && failure_of_sqlstate(error->sqlerrcode) == FAILURE_LOCKED)
		error = try_step(write_step, delivery);
	if (error == NULL)
		return;

	failure = failure_of_sqlstate(error->sqlerrcode);
	if (failure == FAILURE_LOCKED || failure == FAILURE_TRANSIENT)
	{
		delivery->outcome = OUTCOME_UNAVAILABLE;
		return;
	}

	/* A trigger that fails for a known event has made nothing worse. */
	if (delivery->judged == OUTCOME_PENDING)
	{
		ErrorData  *second = try_step(known_step, delivery);

		if (second == NULL && delivery->outcome != OUTCOME_PENDING)
			return;
	}
	delivery_to_quarantine(delivery,
						   failure == FAILURE_OUT_OF_MEMORY ? QUARANTINE_OUT_OF_MEMORY :
						   QUARANTINE_TRIGGER_ERROR,
						   error->sqlerrcode, error->message);
	if (try_step(quarantine_put, delivery) != NULL)
		delivery->outcome = OUTCOME_UNAVAILABLE;
}

void
direct_store(Delivery *delivery)
{
	store(delivery);
	if (delivery_status(delivery) == 200)
		event_store_make_durable();
}
