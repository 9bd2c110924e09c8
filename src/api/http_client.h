/*
 * http_client.h
 *	  One HTTP request of the calling session, interruptible at any time.
 */
#ifndef BW_HTTP_CLIENT_H
#define BW_HTTP_CLIENT_H

#include "postgres.h"

#include "nodes/pg_list.h"

/* The classes of failure, each with its own SQLSTATE; documented in docs/banked-api.md. */
#define ERRCODE_API_UNREACHABLE MAKE_SQLSTATE('W', 'H', '0', '0', '1')	/* name, connection, proxy */
#define ERRCODE_API_CERTIFICATE MAKE_SQLSTATE('W', 'H', '0', '0', '2')	/* TLS failed */
#define ERRCODE_API_TIMEOUT MAKE_SQLSTATE('W', 'H', '0', '0', '3')
#define ERRCODE_API_CONNECTION_LOST MAKE_SQLSTATE('W', 'H', '0', '0', '4')	/* before a whole answer */
#define ERRCODE_API_ANSWER_UNUSABLE MAKE_SQLSTATE('W', 'H', '0', '0', '5')

/* The largest answer that is read, in bytes. */
#define HTTP_MAX_ANSWER (1024 * 1024)

typedef struct HttpRequest
{
	const char *method;
	const char *url;
	List	   *headers;		/* of char *, "Name: value" */
	const char *body;			/* null when there is none */
	Size		body_length;
	bool		allow_plain;	/* http: is allowed besides https: */
	bool		repeatable;		/* may be tried again while no connection comes about */
} HttpRequest;

typedef struct HttpAnswer
{
	int			status;
	char	   *body;			/* palloc'ed, with a null behind it */
	Size		body_length;
	char	   *retry_after;	/* palloc'ed, null when the answer has no such header */
} HttpAnswer;

/*
 * Sends a request and waits for the whole answer, whatever its status.
 * Raises WH001 to WH005 when there is none, and what a cancelled query or a
 * timeout of PostgreSQL's raises, at once.  Follows no redirect.
 */
extern void http_perform(const HttpRequest *request, HttpAnswer *answer);

#endif							/* BW_HTTP_CLIENT_H */
