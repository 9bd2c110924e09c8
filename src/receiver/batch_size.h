/*
 * batch_size.h
 *	  How much of what waits makes the next batch.
 */
#ifndef BW_BATCH_SIZE_H
#define BW_BATCH_SIZE_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A batch is not divided for less than so many deliveries in each part. */
#define BATCH_SIZE_MIN_COUNT 16

/*
 * Returns after how many bytes the next batch should end when so many wait,
 * given that it has BATCH_SIZE_MIN_COUNT deliveries.  was_idle: nothing waited
 * when the batch before it was answered.
 */
extern size_t batch_size_next(size_t waiting, bool was_idle);

/*
 * To be told of each batch that was stored: its bytes, and how many
 * microseconds its commits and everything else took.
 */
extern void batch_size_learn(size_t taken, int64_t work_time, int64_t commit_time);

#endif							/* BW_BATCH_SIZE_H */
