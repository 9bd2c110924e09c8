/*
 * batch_size_test.c
 *	  How much makes a batch: in a model of senders that wait for their answers,
 *	  a gateway that passes on one delivery at a time, and a receiver.
 *
 * All times are microseconds of the model: nothing here depends on the machine.
 */
#include "receiver/batch_size.h"

#include <stdbool.h>

#include "tap.h"

#define FRAME 1000				/* bytes of a delivery */
#define FIXED_TIME 40			/* of a batch, without its commit */
#define STORE_TIME 13			/* of a delivery */
#define TURN_TIME 16			/* of a delivery, from its sender's last answer, when nobody else is there */
#define MAX_SENDERS 1024

typedef struct Model
{
	int			senders;
	int			commit_time;
	int			turn;			/* so many deliveries the gateway passes on at once */
	int			stall_every;	/* so many batches have one commit that stalls; 0: none has */
	bool		takes_all;		/* whatever waits is a batch */
} Model;

typedef struct Result
{
	double		rate;			/* deliveries per millisecond */
	double		mean;			/* deliveries of a batch */
} Result;

/* Runs for so many batches, of which the first half is not measured. */
static Result
run(const Model *model, int batches)
{
	static int64_t arrivals[MAX_SENDERS];	/* a ring, in order */
	int			first = 0;
	int			in_ring = model->senders;
	int64_t		now = 0;
	int64_t		gateway_free = 0;
	int64_t		start = 0;
	int64_t		stored = 0;
	Result		result;

	for (int i = 0; i < model->senders; i++)
		arrivals[i] = 0;
	for (int batch = 0; batch < batches; batch++)
	{
		int			waiting = 0;
		int			count;
		bool		was_idle;
		int64_t		commit_time = model->commit_time;

		if (model->stall_every > 0 && batch % model->stall_every == 0)
			commit_time += 40000;
		if (batch == batches / 2)
		{
			start = now;
			stored = 0;
		}
		was_idle = arrivals[first] > now;
		if (was_idle)
			now = arrivals[first];
		while (waiting < in_ring && arrivals[(first + waiting) % MAX_SENDERS] <= now)
			waiting++;
		count = waiting;
		if (!model->takes_all)
		{
			size_t		size = batch_size_next((size_t) waiting * FRAME, was_idle);

			count = 0;
			while (count < waiting && (count < BATCH_SIZE_MIN_COUNT || (size_t) count * FRAME < size))
				count++;
			batch_size_learn((size_t) count * FRAME, FIXED_TIME + count * STORE_TIME, commit_time);
		}
		now += FIXED_TIME + count * STORE_TIME + commit_time;
		stored += count;
		first = (first + count) % MAX_SENDERS;
		in_ring -= count;
		/* The gateway passes on at once what it has read in one go. */
		for (int i = 0; i < count;)
		{
			int			turn = count - i < model->turn ? count - i : model->turn;

			gateway_free = (gateway_free > now ? gateway_free : now) + turn * TURN_TIME;
			for (; turn > 0; turn--, i++)
				arrivals[(first + in_ring++) % MAX_SENDERS] = gateway_free;
		}
	}
	result.rate = 1000.0 * (double) stored / (double) (now - start);
	result.mean = (double) stored / (batches - batches / 2);
	return result;
}

/* All came in one batch until now: so many times as fast as when all is taken. */
static void
compare(const char *what, Model model, double at_least, double at_most)
{
	Result		divided;
	Result		all;
	double		ratio;

	for (int i = 0; i < 200; i++)
		batch_size_learn(64 * FRAME, FIXED_TIME + 64 * STORE_TIME, model.commit_time);
	divided = run(&model, 4000);
	model.takes_all = true;
	all = run(&model, 4000);
	ratio = divided.rate / all.rate;
	TAP_OK(ratio >= at_least && ratio <= at_most,
	   "%s: %.1f deliveries/ms in batches of %.1f, %.1f/ms in batches of %.1f when all is taken", what,
	   divided.rate, divided.mean, all.rate, all.mean);
}

static void
learn_quick_commits(int batches)
{
	for (int i = 0; i < batches; i++)
		batch_size_learn(64 * FRAME, FIXED_TIME + 64 * STORE_TIME, 1);
}

int
main(void)
{
	TAP_OK(batch_size_next(64 * FRAME, true) >= 64 * FRAME, "nothing is divided before commits have proved quick");

	/* All wait for the gateway, the gateway for the receiver, and so on: the worst that could be. */
	compare("64 senders at once", (Model) {.senders = 64, .turn = 64, .commit_time = 150}, 1.3, 2);
	compare("64 senders at once, slow commits",
			(Model) {.senders = 64, .turn = 64, .commit_time = 5000}, 0.99, 1.01);
	compare("64 senders at once, quick commits again",
			(Model) {.senders = 64, .turn = 64, .commit_time = 150}, 1.3, 2);
	compare("64 senders at once, a commit stalls now and then",
			(Model) {.senders = 64, .turn = 64, .commit_time = 150, .stall_every = 200}, 1.3, 2);
	compare("64 senders at once, commits that take no time",
			(Model) {.senders = 64, .turn = 64, .commit_time = 0}, 1.3, 2);

	/* Where it makes no difference it must not harm. */
	compare("64 senders", (Model) {.senders = 64, .turn = 8, .commit_time = 150}, 0.99, 2);
	compare("1,000 senders", (Model) {.senders = 1000, .turn = 64, .commit_time = 150}, 0.99, 2);
	compare("8 senders", (Model) {.senders = 8, .turn = 8, .commit_time = 150}, 1, 1);
	compare("one sender", (Model) {.senders = 1, .turn = 1, .commit_time = 150}, 1, 1);

	/* What it has learnt is forgotten again. */
	learn_quick_commits(200);
	(void) batch_size_next(64 * FRAME, true);
	for (int i = 0; i < 200; i++)
		(void) batch_size_next(FRAME, true);
	TAP_OK(batch_size_next(FRAME, true) < 32 * FRAME, "64 deliveries that were in flight are not divided for ever");
	TAP_OK(batch_size_next(20 * FRAME, true) >= 20 * FRAME, "what is stored in no time is not divided");
	batch_size_learn(64 * FRAME, FIXED_TIME + 64 * STORE_TIME, 40000);
	learn_quick_commits(8);
	TAP_OK(batch_size_next(64 * FRAME, true) <= 64 * FRAME, "a commit that stalled is forgotten after a few quick ones");

	/* A time of 0, and far more than there could be. */
	batch_size_learn(FRAME, 0, 0);
	TAP_OK(batch_size_next(FRAME, true) < 1000 * FRAME, "a batch that took no time is no reason for large ones");
	batch_size_learn(FRAME, 0, INT64_MAX);
	TAP_OK(batch_size_next(FRAME, true) > FRAME, "nor are impossible times for empty ones");
	return tap_done();
}
