/*
 * rejections.c
 *	  Counts refused requests, and reports them at a bounded rate.
 */
#include "rejections.h"

#include <string.h>

#define TOKEN_INTERVAL (1000 / REJECTIONS_PER_SECOND)

static bool same_address(const FrameAddress *a, const FrameAddress *b);

void
rejections_add(Rejections *rejections, RejectionReason reason, const FrameAddress *address,
			   const char *path, size_t path_length)
{
	WaitingRejection *waiting;

	rejections->totals[reason]++;

	for (size_t i = 0; i < rejections->waiting_count; i++)
	{
		waiting = &rejections->waiting[i];
		if (waiting->reason == reason && same_address(&waiting->address, address))
		{
			if (waiting->count < UINT32_MAX)
				waiting->count++;
			return;
		}
	}
	if (rejections->waiting_count == REJECTIONS_WAITING)
		return;

	if (path_length > FRAME_MAX_PATH)
		path_length = FRAME_MAX_PATH;
	waiting = &rejections->waiting[rejections->waiting_count++];
	waiting->address = *address;
	waiting->reason = (uint8_t) reason;
	waiting->count = 1;
	waiting->path_length = (uint8_t) path_length;
	if (path_length > 0)
		memcpy(waiting->path, path, path_length);
}

void
rejections_send(Rejections *rejections, FrameBuffer *out, int64_t now)
{
	size_t		sent = 0;
	int64_t		earned;

	if (rejections->waiting_count == 0)
		return;

	earned = (now - rejections->refilled_at) / TOKEN_INTERVAL;
	if (earned >= REJECTIONS_PER_SECOND - (int64_t) rejections->tokens)
	{
		rejections->tokens = REJECTIONS_PER_SECOND;
		rejections->refilled_at = now;
	}
	else
	{
		rejections->tokens += (unsigned) earned;
		rejections->refilled_at += earned * TOKEN_INTERVAL;
	}

	while (sent < rejections->waiting_count && rejections->tokens > 0)
	{
		WaitingRejection *waiting = &rejections->waiting[sent];
		RejectionFrame frame;

		frame.reason = waiting->reason;
		frame.address = waiting->address;
		frame.path = waiting->path;
		frame.path_length = waiting->path_length;
		frame.count = waiting->count;
		if (!frame_put_rejection(out, &frame))
			break;
		rejections->tokens--;
		sent++;
	}

	rejections->waiting_count -= sent;
	if (sent > 0 && rejections->waiting_count > 0)
		memmove(rejections->waiting, rejections->waiting + sent,
				rejections->waiting_count * sizeof(WaitingRejection));
}

int64_t
rejections_deadline(const Rejections *rejections)
{
	/* With tokens left it is the room in the buffer that is waited for, not the time. */
	if (rejections->waiting_count == 0 || rejections->tokens > 0)
		return -1;
	return rejections->refilled_at + TOKEN_INTERVAL;
}

static bool
same_address(const FrameAddress *a, const FrameAddress *b)
{
	return a->family == b->family && memcmp(a->bytes, b->bytes, sizeof(a->bytes)) == 0;
}
