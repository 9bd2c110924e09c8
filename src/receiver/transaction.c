/*
 * transaction.c
 *	  One transaction of a receiver.
 *
 * Users' triggers run in it.  They can raise, loop, wait, change settings and
 * catch cancellations, and the receiver must get out all the same: a timer
 * cancels what takes too long, again and again, and ends the process at last.
 *
 * A signal that cancels a statement is taken only while a transaction runs
 * whose work may be cancelled.  At the commit of deliveries none may be
 * pending, since it would cut the wait for a standby short; one that comes
 * during the wait is counted, so that the caller sees it.  There, after the last
 * deferred trigger, synchronous_commit is forced to the server's value, at least
 * "local".  Work of the receiver's own waits for no standby: deliveries would
 * wait with it.
 */
#include "postgres.h"

#include "access/xact.h"
#include "catalog/namespace.h"
#include "commands/prepare.h"
#include "miscadmin.h"
#include "storage/lock.h"
#include "storage/proc.h"
#include "utils/guc.h"
#include "utils/memutils.h"
#include "utils/portal.h"
#include "utils/snapmgr.h"
#include "utils/timeout.h"
#include "utils/timestamp.h"
#include "utils/wait_event.h"

#include "counters.h"
#include "transaction.h"

volatile sig_atomic_t transaction_shutdown_requested = false;

static volatile sig_atomic_t cancellable = false;	/* a transaction runs that signals may cancel */
static volatile sig_atomic_t committing = false;	/* deliveries: no lock timeout explains a signal now */
static volatile sig_atomic_t signals = 0;	/* that may have cut a commit short */
static volatile sig_atomic_t timer_fired = 0;
static volatile sig_atomic_t timer_found_lock_wait = false;

static TimeoutId timer;
static bool left_open = false;	/* by the last transaction_run */
static bool serves_deliveries = false;	/* the running one's commit lets 200s out */
static int	commit_level = SYNCHRONOUS_COMMIT_LOCAL_FLUSH;	/* of deliveries, in the running one */

void
transaction_cancel_statement(void)
{
	InterruptPending = true;
	QueryCancelPending = true;
	SetLatch(MyLatch);
}

/* SIGTERM: shutdown, pg_terminate_backend, or the launcher. */
static void
handle_terminate(SIGNAL_ARGS)
{
	int			save_errno = errno;

	transaction_shutdown_requested = true;
	signals++;
	if (cancellable)
		transaction_cancel_statement();
	SetLatch(MyLatch);
	errno = save_errno;
}

/* SIGINT: pg_cancel_backend, or PostgreSQL's own lock timeout. */
static void
handle_cancel(SIGNAL_ARGS)
{
	int			save_errno = errno;

	if (committing || !get_timeout_indicator(LOCK_TIMEOUT, false))
		signals++;
	if (cancellable)
		transaction_cancel_statement();
	errno = save_errno;
}

/*
 * The transaction takes too long.  Code that catches the cancellation is cancelled
 * again every second, and ended with the process at last.
 */
static void
handle_timer(void)
{
	uint32		wait_event = my_wait_event_info ? *my_wait_event_info : 0;

	if (timer_fired == 0)
		timer_found_lock_wait = (wait_event & 0xFF000000) == PG_WAIT_LOCK;
	timer_fired++;
	if (timer_fired > CANCEL_REPEATS)
		ProcDiePending = true;
	transaction_cancel_statement();
}

static const char *
commit_level_name(int level)
{
	switch (level)
	{
		case SYNCHRONOUS_COMMIT_REMOTE_WRITE:
			return "remote_write";
		case SYNCHRONOUS_COMMIT_REMOTE_FLUSH:
			return "on";
		case SYNCHRONOUS_COMMIT_REMOTE_APPLY:
			return "remote_apply";
		default:
			return "local";
	}
}

/* Just before the commit, when the last deferred trigger has run. */
static void
before_commit(XactEvent event, void *arg)
{
	int			level = serves_deliveries ? commit_level :
	Min(synchronous_commit, SYNCHRONOUS_COMMIT_LOCAL_FLUSH);

	if (event != XACT_EVENT_PRE_COMMIT || !cancellable)
		return;
	disable_timeout(timer, false);
	/* A cancel that is pending now would cut the wait for a standby short. */
	CHECK_FOR_INTERRUPTS();
	committing = serves_deliveries;
	if (synchronous_commit != level)
		(void) set_config_option("synchronous_commit", commit_level_name(level),
								 PGC_USERSET, PGC_S_SESSION, GUC_ACTION_LOCAL, true, 0, false);
}

void
transaction_init(void)
{
	pqsignal(SIGTERM, handle_terminate);
	pqsignal(SIGINT, handle_cancel);
}

void
transaction_init_session(void)
{
	timer = RegisterTimeout(USER_TIMEOUT, handle_timer);
	RegisterXactCallback(before_commit, NULL);
}

int
transaction_signals(void)
{
	return signals;
}

bool
transaction_is_unstoppable(void)
{
	return cancellable && timer_fired > CANCEL_REPEATS;
}

bool
transaction_was_cut_short(int signals_before)
{
	/* ProcDiePending: PostgreSQL ends the wait by itself when the postmaster has died. */
	return commit_level > SYNCHRONOUS_COMMIT_LOCAL_FLUSH &&
		(signals != signals_before || ProcDiePending);
}

void
transaction_begin(void)
{
	SetCurrentStatementStartTimestamp();
	StartTransactionCommand();
	XactIsoLevel = XACT_READ_COMMITTED;
	XactReadOnly = false;
	XactDeferrable = false;
	commit_level = Max(synchronous_commit, SYNCHRONOUS_COMMIT_LOCAL_FLUSH);
	PushActiveSnapshot(GetTransactionSnapshot());	/* SPI insists on one */
}

void
transaction_end(void)
{
	PopActiveSnapshot();
	CommitTransactionCommand();
}

static void
start_timer(int timeout)
{
	timer_fired = 0;
	timer_found_lock_wait = false;
	enable_timeout_every(timer, TimestampTzPlusMilliseconds(GetCurrentTimestamp(), timeout),
						 1000);
}

/*
 * A lock timeout that fired when the lock was just granted would else be taken
 * for the reason of the next cancellation.
 */
void
transaction_forget_cancel(void)
{
	QueryCancelPending = false;
	(void) get_timeout_indicator(LOCK_TIMEOUT, true);
}

static void
stop_timer(void)
{
	disable_timeout(timer, false);
	transaction_forget_cancel();
}

/*
 * Before a transaction it becomes the session's default: then there is no
 * setting to undo at its end, for which PostgreSQL would look through all there
 * are.  Within one it overrides what users' code may have left in the session.
 */
static void
set_lock_timeout(int timeout, bool in_transaction)
{
	char		value[16];

	if (LockTimeout == timeout)
		return;
	snprintf(value, sizeof(value), "%d", timeout);
	if (in_transaction)
		(void) set_config_option("lock_timeout", value, PGC_USERSET, PGC_S_SESSION,
								 GUC_ACTION_LOCAL, true, 0, false);
	else
		SetConfigOption("lock_timeout", value, PGC_USERSET, PGC_S_OVERRIDE);
}

static void
commit(TransactionUse use)
{
	TimestampTz start = GetCurrentTimestamp();

	transaction_end();
	if (use == TRANSACTION_DELIVERIES)
	{
		COUNT(commits, 1);
		COUNT(commit_time, GetCurrentTimestamp() - start);
	}
}

static Failure
failure_of(int sqlstate, int signals_before)
{
	if (sqlstate != ERRCODE_QUERY_CANCELED || signals != signals_before)
		return failure_of_sqlstate(sqlstate);
	if (timer_fired > 0)
		return timer_found_lock_wait ? FAILURE_LOCKED : FAILURE_TIMEOUT;
	return FAILURE_CONTENT;		/* raised by a trigger of its own accord */
}

/* Aborts after an error and tells what it was. */
static void
take_error(int signals_before, MemoryContext context, TransactionError *error)
{
	ErrorData  *data;

	MemoryContextSwitchTo(context);
	HOLD_INTERRUPTS();
	disable_timeout(timer, false);
	data = CopyErrorData();
	AbortCurrentTransaction();
	FlushErrorState();
	transaction_forget_cancel();
	RESUME_INTERRUPTS();

	MemoryContextSwitchTo(context);
	error->sqlstate = data->sqlerrcode;
	error->message = data->message;
	error->failure = failure_of(data->sqlerrcode, signals_before);
}

bool
transaction_run(TransactionUse use, const TransactionLimits *limits,
				void (*work) (void *argument), void *argument, TransactionError *error)
{
	MemoryContext context = CurrentMemoryContext;
	bool		goes_on = left_open;
	volatile bool done = false;

	error->failure = FAILURE_NONE;
	left_open = false;
	cancellable = true;
	serves_deliveries = (use == TRANSACTION_DELIVERIES);
	PG_TRY();
	{
		if (!goes_on)
		{
			/* A deferred trigger of the transaction before may have left settings. */
			if (serves_deliveries)
				ResetAllOptions();
			set_lock_timeout(limits->lock_timeout, false);
			transaction_begin();
		}
		set_lock_timeout(limits->lock_timeout, true);
		start_timer(limits->timeout);
		if (serves_deliveries)
			ResetTempTableNamespace();
		if (goes_on || use == TRANSACTION_LEFT_OPEN)
			MemoryContextSwitchTo(context);
		work(argument);
		MemoryContextSwitchTo(context);
		if (use == TRANSACTION_LEFT_OPEN)
			left_open = true;
		else
		{
			commit(use);
			MemoryContextSwitchTo(context);
			stop_timer();
		}
		done = true;
	}
	PG_CATCH();
	{
		take_error(limits->signals, context, error);
	}
	PG_END_TRY();
	cancellable = false;
	committing = false;
	serves_deliveries = false;
	return done;
}

void
transaction_finish(void)
{
	MemoryContext context = CurrentMemoryContext;

	left_open = false;
	stop_timer();
	transaction_end();
	MemoryContextSwitchTo(context);
}

void
transaction_clean_session(void)
{
	ResetAllOptions();
	LockReleaseAll(USER_LOCKMETHOD, true);
	DropAllPreparedStatements();
	PortalHashTableDeleteAll();
}
