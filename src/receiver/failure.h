/*
 * failure.h
 *	  What an error says about the delivery that met it.
 */
#ifndef BW_FAILURE_H
#define BW_FAILURE_H

typedef enum Failure
{
	FAILURE_NONE,
	FAILURE_CONTENT,			/* the delivery's own doing: quarantine */
	FAILURE_LOCKED,				/* a lock, or a serialization failure: once more, then 503 */
	FAILURE_TRANSIENT,			/* the database cannot store now: 503 */
	FAILURE_TIMEOUT,			/* took too long without waiting for a lock: quarantine */
	FAILURE_OUT_OF_MEMORY,		/* alone: quarantine */
	FAILURE_CANCELLED			/* by somebody from outside: 503 */
} Failure;

/*
 * Classifies an error by its SQLSTATE.  ERRCODE_QUERY_CANCELED counts as
 * cancelled from outside; a caller that knows better must look first.
 */
extern Failure failure_of_sqlstate(int sqlstate);

#endif							/* BW_FAILURE_H */
