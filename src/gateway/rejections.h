/*
 * rejections.h
 *	  Counts refused requests, and reports them at a bounded rate.
 *
 * Every refusal is counted by its reason.  The receiver is told of each as
 * well, for the table of rejections, but a flood must not become a flood on
 * the link: refusals with the same reason and address are folded while they
 * wait, frames leave at REJECTIONS_PER_SECOND, and when more kinds wait than
 * there is room for, the newest are counted only.
 */
#ifndef BW_GATEWAY_REJECTIONS_H
#define BW_GATEWAY_REJECTIONS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../frame.h"

#define REJECTIONS_PER_SECOND 20
#define REJECTIONS_WAITING 64

typedef struct WaitingRejection
{
	FrameAddress address;
	uint8_t		reason;
	uint8_t		path_length;
	uint32_t	count;
	char		path[FRAME_MAX_PATH];	/* of the first one */
} WaitingRejection;

/* Starts as zeros. */
typedef struct Rejections
{
	uint64_t	totals[REJECTION_COUNT];
	unsigned	tokens;			/* frames that may leave now */
	int64_t		refilled_at;	/* monotonic milliseconds */
	size_t		waiting_count;
	WaitingRejection waiting[REJECTIONS_WAITING];
} Rejections;

/* Counts one refusal and lets it wait; path may be null when the length is 0. */
extern void rejections_add(Rejections *rejections, RejectionReason reason,
						   const FrameAddress *address, const char *path, size_t path_length);

/* Appends the frames that may leave now. */
extern void rejections_send(Rejections *rejections, FrameBuffer *out, int64_t now);

/* When time alone lets a further frame leave; -1 for never. */
extern int64_t rejections_deadline(const Rejections *rejections);

#endif							/* BW_GATEWAY_REJECTIONS_H */
