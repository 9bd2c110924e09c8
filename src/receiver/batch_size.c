/*
 * batch_size.c
 *	  How much of what waits makes the next batch.
 *
 * Most senders wait for an answer before they send on.  A receiver that takes
 * all that waits takes turns with them: nobody sends while it stores, and when
 * it has answered, it has nothing to do until they have sent.  So a batch takes
 * half of what is in flight, and the gateway and the senders have the other
 * half to work on meanwhile.
 *
 * But a commit takes its time however small the batch is.  Where that is long
 * (a slow disk, a synchronous standby), dividing costs more than turns do: no
 * part is so small that it would be stored in less time than it commits.  Nor
 * in so little time that processes would wake each other for nothing.
 *
 * What else takes the same time for any batch (a trigger for each statement) is
 * not told apart from the work: where it takes many milliseconds, larger batches
 * would be better than these.
 *
 * All is counted in bytes on the link.  Nothing of PostgreSQL is used here.
 */
#include "batch_size.h"

/* What was in flight is forgotten by this part with each look. */
#define IN_FLIGHT_DECAY 16

/* Commits that stall now and then are not to count: it grows slowly, and shrinks fast. */
#define GROWTH 16
#define SHRINKAGE 4

/* Microseconds: what is stored in less time is not divided. */
#define QUICK 300

/* What it is before commits have proved quick, and more than it ever need be. */
#define WORTHWHILE_AT_FIRST (1024 * 1024)
#define WORTHWHILE_MAX 1e9

static size_t in_flight = 0;	/* most of late: what waited, and what was answered just before */
static size_t answered = 0;		/* just before */
static double worthwhile = WORTHWHILE_AT_FIRST; /* takes long enough to store */

size_t
batch_size_next(size_t waiting, bool was_idle)
{
	/* Else what was answered may be here again by now. */
	if (!was_idle)
		waiting += answered;
	in_flight -= in_flight / IN_FLIGHT_DECAY;
	if (in_flight < waiting)
		in_flight = waiting;
	return worthwhile > in_flight / 2 ? (size_t) worthwhile : in_flight / 2;
}

void
batch_size_learn(size_t taken, int64_t work_time, int64_t commit_time)
{
	double		long_enough = commit_time > QUICK ? commit_time : QUICK;
	double		seen = taken * long_enough / (work_time > 0 ? work_time : 1);

	if (seen > WORTHWHILE_MAX)
		seen = WORTHWHILE_MAX;
	worthwhile += (seen - worthwhile) / (seen > worthwhile ? GROWTH : SHRINKAGE);
	answered = taken;
}
