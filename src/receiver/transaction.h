/*
 * transaction.h
 *	  One transaction of a receiver.
 */
#ifndef BW_TRANSACTION_H
#define BW_TRANSACTION_H

#include "postgres.h"

#include <signal.h>

#include "failure.h"

/* How long code that catches its cancellation is tolerated: so many further seconds. */
#define CANCEL_REPEATS 5

/* SIGTERM has come: finish and leave. */
extern volatile sig_atomic_t transaction_shutdown_requested;

/* Installs the signal handlers of a receiver; called once, before the connection. */
extern void transaction_init(void);

/* What can be done only after the connection. */
extern void transaction_init_session(void);

/* Begins a transaction, read committed and read-write whatever the defaults are, with a snapshot. */
extern void transaction_begin(void);

/* Commits what transaction_begin has begun. */
extern void transaction_end(void);

typedef enum TransactionUse
{
	TRANSACTION_LEFT_OPEN,		/* stays open: the next one goes on in it */
	TRANSACTION_OWN_WORK,		/* no 200 depends on it, and no code of a user runs in it */
	TRANSACTION_DELIVERIES		/* what it stores is answered with 200 */
} TransactionUse;

typedef struct TransactionLimits
{
	int			lock_timeout;	/* of each wait for a lock, milliseconds */
	int			timeout;		/* of the whole, milliseconds */
	int			signals;		/* what transaction_signals said when the batch began */
} TransactionLimits;

typedef struct TransactionError
{
	Failure		failure;		/* FAILURE_NONE after success */
	int			sqlstate;
	const char *message;		/* palloc'ed in the caller's context; may quote a body */
} TransactionError;

/*
 * Runs work in a transaction, read committed and read-write whatever the
 * defaults are, and commits.  False, with *error filled in, when an error was
 * raised: all is rolled back then.  Raises none itself.
 *
 * work runs in the caller's memory context where the transaction is left open or
 * was, else in the transaction's.
 */
extern bool transaction_run(TransactionUse use, const TransactionLimits *limits,
							void (*work) (void *argument), void *argument,
							TransactionError *error);

/* Ends a transaction that was left open, when nothing goes on in it. */
extern void transaction_finish(void);

/* How many signals have come that may cut a commit short. */
extern int	transaction_signals(void);

/*
 * May the wait for a standby of the last transaction of deliveries have been
 * cut short?  PostgreSQL reports such a commit as done.  signals: what
 * transaction_signals said when the batch began.
 */
extern bool transaction_was_cut_short(int signals);

/* Does the running transaction go on after repeated cancellations, so that the process is ended? */
extern bool transaction_is_unstoppable(void);

/* From a handler of a signal: cancels the statement that runs. */
extern void transaction_cancel_statement(void);

/* Drops a cancellation that came too late, so that it meets no other statement and explains no later one. */
extern void transaction_forget_cancel(void);

/* Undoes what users' code may have left behind in the session; outside transactions. */
extern void transaction_clean_session(void);

#endif							/* BW_TRANSACTION_H */
