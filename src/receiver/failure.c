/*
 * failure.c
 *	  What an error says about the delivery that met it.
 *
 * An error that would be the same at every attempt is the delivery's own: it
 * is kept in quarantine and answered with 200, or Banked would send it in vain for
 * three weeks.  Only what may be different next time is answered with 503.
 */
#include "postgres.h"

#include "failure.h"

Failure
failure_of_sqlstate(int sqlstate)
{
	switch (sqlstate)
	{
		case ERRCODE_QUERY_CANCELED:
			return FAILURE_CANCELLED;
		case ERRCODE_OUT_OF_MEMORY:
			return FAILURE_OUT_OF_MEMORY;
		case ERRCODE_LOCK_NOT_AVAILABLE:
			return FAILURE_LOCKED;
		case ERRCODE_ADMIN_SHUTDOWN:
		case ERRCODE_CRASH_SHUTDOWN:
		case ERRCODE_CANNOT_CONNECT_NOW:
		case ERRCODE_DATABASE_DROPPED:
		case ERRCODE_IDLE_SESSION_TIMEOUT:
		case ERRCODE_READ_ONLY_SQL_TRANSACTION:
		case ERRCODE_DATA_CORRUPTED:
		case ERRCODE_INDEX_CORRUPTED:
			return FAILURE_TRANSIENT;
		default:
			break;
	}
	switch (ERRCODE_TO_CATEGORY(sqlstate))
	{
		case ERRCODE_TRANSACTION_ROLLBACK:
			return FAILURE_LOCKED;
		case ERRCODE_CONNECTION_EXCEPTION:
		case ERRCODE_INSUFFICIENT_RESOURCES:
		case ERRCODE_SYSTEM_ERROR:
			return FAILURE_TRANSIENT;
		default:
			return FAILURE_CONTENT;
	}
}
