/*
 * listeners.h
 *	  The listening sockets of a receiver.
 */
#ifndef BW_LISTENERS_H
#define BW_LISTENERS_H

#include "postgres.h"

#include "settings.h"

#define MAX_LISTENERS 32

typedef struct Listeners
{
	int			count;			/* 0: not listening */
	int			plain_count;	/* the first of them: those for HTTP; the others are for HTTPS */
	int			fds[MAX_LISTENERS];
	int			port;			/* that they were opened for */
	int			tls_port;		/* likewise, 0 for none */
	char		addresses[MAX_ADDRESS_LIST];
	bool		shared;			/* with other receivers of the database */
} Listeners;

/*
 * Opens a socket for each address of the settings on the port of the settings,
 * and on tls_port unless that is 0, and claims the ports in shared memory.  Returns false, with nothing open and the reason in *problem
 * (palloc'ed), when one of them cannot be had.
 */
extern bool listeners_open(Listeners *listeners, int tls_port, char **problem);

extern void listeners_close(Listeners *listeners);

/* Do all of them still listen?  Whoever shares a socket can end that for all. */
extern bool listeners_are_listening(const Listeners *listeners);

/* Would listeners_open still open these sockets? */
extern bool listeners_are_current(const Listeners *listeners, int tls_port);

#endif							/* BW_LISTENERS_H */
