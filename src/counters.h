/*
 * counters.h
 *	  What the processes of the extension share: who runs, and what they did.
 *
 * Words: a slot stands for one receiver of one database, whether it runs or
 * not.  The launcher gives slots out and takes them back; the counters of a
 * slot outlive its receiver, so that a restart loses no figures.
 *
 * Locking: every plain field of SharedState and of its slots is read and
 * written under SharedState.lock.  Two exceptions: a slot's own receiver reads
 * number, role and database without it.  Number and database stay as they are
 * while it runs; role is a single word, and only another one when the role was
 * made anew.  And unstoppable belongs to the receiver whose pid stands in the
 * slot, which reads and writes it without the lock; the launcher clears it when
 * there is none.  Not under the lock are the counters, which are atomics with one
 * writer (the slot's receiver; which key a count of keys belongs to changes
 * under the lock), and generation, an atomic that anybody may increase.
 * Nothing is done under the lock that can wait or fail, but for the launcher's
 * registration of workers: who has one is to be known by the time it runs.  Only plain data,
 * latches, locks and atomics are here: no pointer to anything outside shared
 * memory.
 */
#ifndef BW_COUNTERS_H
#define BW_COUNTERS_H

#include "postgres.h"

#include "datatype/timestamp.h"
#include "port/atomics.h"
#include "storage/condition_variable.h"
#include "storage/latch.h"
#include "storage/lwlock.h"
#include "utils/uuid.h"

#include "frame.h"
#include "settings.h"
#include "signature.h"

#define MAX_SLOTS 64			/* receivers of all databases together */
#define MAX_UNSTOPPABLE 8		/* deliveries that a slot remembers, see Unstoppable */
#define MAX_COUNTED_KEYS 32		/* signing keys that a slot counts deliveries of */
#define MAX_HOLDS 16			/* commands that keep a database free of receivers at one time */

/* What became of a delivery that reached the receiver. */
typedef enum Outcome
{
	OUTCOME_PENDING,			/* not decided yet */
	OUTCOME_STORED,
	OUTCOME_REPETITION,
	OUTCOME_CHANGED,
	OUTCOME_RECURRENCE,
	OUTCOME_QUARANTINED,
	OUTCOME_UNWANTED,
	OUTCOME_REJECTED,
	OUTCOME_UNAVAILABLE
} Outcome;

#define OUTCOME_COUNT (OUTCOME_UNAVAILABLE + 1)

/* Why a receiver does not want to run until something changes. */
typedef enum ParkReason
{
	PARK_NONE,
	PARK_NO_EXTENSION,
	PARK_PAUSED
} ParkReason;

/* Totals of one slot since the server started. */
typedef struct Counters
{
	pg_atomic_uint64 outcomes[OUTCOME_COUNT];
	pg_atomic_uint64 rejections[REJECTION_COUNT];
	pg_atomic_uint64 batches;
	pg_atomic_uint64 batched;	/* deliveries in those batches */
	pg_atomic_uint64 bytes;		/* of bodies in those batches */
	pg_atomic_uint64 commits;	/* of batches, their parts and later attempts */
	pg_atomic_uint64 commit_time;	/* microseconds spent in those */
	pg_atomic_uint64 store_time;	/* microseconds from a batch's start to its last commit */
	pg_atomic_uint64 gateway_restarts;
	pg_atomic_uint64 notifications;
	pg_atomic_uint64 notifications_skipped;
	/* what the gateway last said of itself */
	pg_atomic_uint64 connections;
	pg_atomic_uint64 connections_total;
	pg_atomic_uint64 requests_total;
	pg_atomic_uint64 pending;
	pg_atomic_uint64 pending_size;
	pg_atomic_uint64 sandboxed;
} Counters;

/* How a signing key is used; free while last_used is 0. */
typedef struct KeyUse
{
	pg_uuid_t	key_id;
	pg_atomic_uint64 deliveries;	/* authentic ones, since the server started */
	pg_atomic_uint64 last_used; /* TimestampTz, arrival of the last one */
} KeyUse;

/* What a receiver that had to be ended leaves to the next one: see receiver/unstoppable.c. */
typedef struct Unstoppable
{
	TimestampTz sought_until;	/* 0: not sought */
	int			next;			/* to be overwritten */
	struct
	{
		TimestampTz noted_at;	/* 0: free */
		uint8		body_sha256[SIGNATURE_SIZE];
	}			noted[MAX_UNSTOPPABLE];
} Unstoppable;

typedef struct ReceiverSlot
{
	bool		used;			/* given out by the launcher */
	Oid			database;
	Oid			role;			/* banked_webhooks_worker */
	int			number;			/* 0 .. receivers - 1 within the database */

	pid_t		pid;			/* of the receiver, 0 when none runs */
	Latch	   *latch;			/* its latch, null when none runs */
	bool		starting;		/* registered with the postmaster, not running yet */
	bool		restarting;		/* ends in order to be started anew at once */
	pid_t		gateway_pid;	/* 0 when none runs */
	TimestampTz started_at;
	TimestampTz listening_since;	/* 0 when not listening */
	int			port;			/* claimed by the receiver, 0 when none */
	int			tls_port;		/* likewise, for HTTPS */
	char		addresses[MAX_ADDRESS_LIST];	/* the setting that the ports were claimed with */

	uint64		parked_at;		/* generation that the receiver gave up at */
	ParkReason	park_reason;	/* why, for stats() */

	Unstoppable unstoppable;
	Counters	counters;
	KeyUse		keys[MAX_COUNTED_KEYS]; /* those used last */
} ReceiverSlot;

/* A command that needs a database without receivers until its transaction ends. */
typedef struct DatabaseHold
{
	Oid			database;		/* InvalidOid when free */
	pid_t		pid;			/* the session that runs the command */
	bool		handlers_only;	/* receivers may stay */
} DatabaseHold;

typedef struct SharedState
{
	LWLock	   *lock;
	Latch	   *launcher_latch; /* null when no launcher runs */
	ConditionVariable receiver_gone;	/* broadcast when a receiver has really ended */

	/*
	 * Increased, after its commit, by whatever may let a parked receiver run
	 * or make a running one stop.
	 */
	pg_atomic_uint64 generation;

	DatabaseHold holds[MAX_HOLDS];
	ReceiverSlot slots[MAX_SLOTS];
} SharedState;

/* Null when the library is not in shared_preload_libraries. */
extern SharedState *shared_state;

/* The slot of this process, null outside receivers. */
extern ReceiverSlot *my_slot;

/* Asks for shared memory; only while preloaded libraries are loaded. */
extern void counters_init(void);

/* Wakes the launcher, if one runs; caller holds shared_state->lock in any mode. */
extern void counters_wake_launcher(void);

/* The same for callers that do not hold the lock. */
extern void counters_tell_launcher(void);

/* Has a database receivers, or will it have some?  Caller holds shared_state->lock in any mode. */
extern bool counters_database_is_served(Oid database);

/* Wakes all receivers of a database; caller holds shared_state->lock in any mode. */
extern void counters_wake_receivers(Oid database);

/* "stored", "repetition", ...: the texts that receive() and stats() show. */
extern const char *counters_outcome_name(Outcome outcome);

/* Forgets what a slot counted; caller holds shared_state->lock exclusively. */
extern void counters_reset(ReceiverSlot *slot);

/*
 * Counts an authentic delivery for its signing key, in place of the key that
 * was not used for the longest time when there is no room; does nothing
 * outside receivers.
 */
extern void counters_count_key(const pg_uuid_t *key_id, TimestampTz received_at);

/* Adds to a counter of this process's slot; does nothing outside receivers. */
#define COUNT(field, n) \
	do { \
		if (my_slot != NULL) \
			pg_atomic_write_u64(&my_slot->counters.field, \
								pg_atomic_read_u64(&my_slot->counters.field) + (n)); \
	} while (0)

#endif							/* BW_COUNTERS_H */
