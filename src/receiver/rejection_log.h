/*
 * rejection_log.h
 *	  The bounded record of what was refused, banked.rejections.
 */
#ifndef BW_REJECTION_LOG_H
#define BW_REJECTION_LOG_H

#include "postgres.h"

#include "datatype/timestamp.h"

#include "frame.h"

/* Takes note of count refused requests; path is raw and need not be terminated. */
extern void rejection_log_add(RejectionReason reason, const FrameAddress *address,
							  const char *path, Size path_length, uint32 count);

/* When the notes are to be written, or the table cut to a new limit; DT_NOEND when there is nothing to do. */
extern TimestampTz rejection_log_due_at(void);

/* Cuts the table and writes the notes to it, in a transaction of its own.  Never raises an error. */
extern void rejection_log_write(void);

#endif							/* BW_REJECTION_LOG_H */
