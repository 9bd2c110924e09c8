/*
 * paths.h
 *	  The set of known paths, and which of them are retired.
 *
 * It is replaced as a whole, by a frame from the receiver, and only looked up
 * in between.  Clients decide what is looked up but never what is stored.
 */
#ifndef BW_GATEWAY_PATHS_H
#define BW_GATEWAY_PATHS_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#include "../frame.h"
#include "request_guard.h"

typedef struct PathSlot
{
	const char *path;			/* inside text; null: the slot is free */
	uint8_t		length;
	uint8_t		state;			/* PathState */
} PathSlot;

/* An open hash table, at most half full; starts as zeros, which is an empty set. */
typedef struct Paths
{
	PathSlot   *slots;
	size_t		slot_count;		/* a power of two, or 0 */
	char	   *text;
} Paths;

typedef enum PathsResult
{
	PATHS_OK,
	PATHS_MALFORMED,			/* the set is unchanged */
	PATHS_NO_MEMORY				/* likewise */
} PathsResult;

/* Replaces the set by the one in a FRAME_PATHS. */
extern PathsResult paths_replace(Paths *paths, const Frame *frame);

/* Looks up a path, bytewise. */
extern GuardPath paths_find(const Paths *paths, const char *path, size_t length);

extern void paths_free(Paths *paths);

#endif							/* BW_GATEWAY_PATHS_H */
