/*
 * paths.c
 *	  The set of known paths, and which of them are retired.
 */
#include "paths.h"

#include <stdlib.h>
#include <string.h>

static PathSlot *find_slot(const Paths *paths, const char *path, size_t length);

PathsResult
paths_replace(Paths *paths, const Frame *frame)
{
	long		count = frame_get_path_count(frame);
	Paths		fresh = {NULL, 0, NULL};
	size_t		offset = 0;
	PathEntry	entry;

	if (count < 0)
		return PATHS_MALFORMED;

	fresh.slot_count = 16;
	while (fresh.slot_count < 2 * (size_t) count)
		fresh.slot_count *= 2;
	fresh.slots = calloc(fresh.slot_count, sizeof(PathSlot));
	fresh.text = malloc(frame->length + 1);
	if (fresh.slots == NULL || fresh.text == NULL)
	{
		paths_free(&fresh);
		return PATHS_NO_MEMORY;
	}
	if (frame->length > 0)
		memcpy(fresh.text, frame->payload, frame->length);

	while (frame_next_path(frame, &offset, &entry))
	{
		PathSlot   *slot = find_slot(&fresh, entry.path, entry.path_length);

		/* Should a path stand there twice, the last one counts. */
		slot->path = fresh.text + ((const uint8_t *) entry.path - frame->payload);
		slot->length = (uint8_t) entry.path_length;
		slot->state = entry.state;
	}

	paths_free(paths);
	*paths = fresh;
	return PATHS_OK;
}

GuardPath
paths_find(const Paths *paths, const char *path, size_t length)
{
	PathSlot   *slot;

	if (paths->slot_count == 0 || length < 1 || length > FRAME_MAX_PATH)
		return GUARD_PATH_UNKNOWN;
	slot = find_slot(paths, path, length);
	if (slot->path == NULL)
		return GUARD_PATH_UNKNOWN;
	return slot->state == PATH_RETIRED ? GUARD_PATH_RETIRED : GUARD_PATH_ACTIVE;
}

void
paths_free(Paths *paths)
{
	free(paths->slots);
	free(paths->text);
	paths->slots = NULL;
	paths->slot_count = 0;
	paths->text = NULL;
}

/* find_slot finds the slot of a path, or the free one where it would go; the hash is FNV-1a. */
static PathSlot *
find_slot(const Paths *paths, const char *path, size_t length)
{
	uint64_t	hash = UINT64_C(14695981039346656037);
	size_t		at;

	for (size_t i = 0; i < length; i++)
	{
		hash ^= (uint8_t) path[i];
		hash *= UINT64_C(1099511628211);
	}

	at = (size_t) (hash ^ hash >> 32) & (paths->slot_count - 1);
	while (paths->slots[at].path != NULL &&
		   (paths->slots[at].length != length ||
			memcmp(paths->slots[at].path, path, length) != 0))
		at = (at + 1) & (paths->slot_count - 1);
	return &paths->slots[at];
}
