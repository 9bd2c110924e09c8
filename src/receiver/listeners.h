/*
 * listeners.h
 *	  The listening sockets of a receiver.
 */
#ifndef BW_LISTENERS_H
#define BW_LISTENERS_H

#include "postgres.h"

#define MAX_LISTENERS 16

typedef struct Listeners
{
	int			count;			/* 0: not listening */
	int			fds[MAX_LISTENERS];
	int			port;			/* that they were opened for */
	char		addresses[256];
} Listeners;

/*
 * Opens a socket for each address of the settings and claims the port in
 * shared memory.  Returns false, with nothing open and the reason in *problem
 * (palloc'ed), when one of them cannot be had.
 */
extern bool listeners_open(Listeners *listeners, char **problem);

extern void listeners_close(Listeners *listeners);

/* Do the settings still ask for these sockets? */
extern bool listeners_are_current(const Listeners *listeners);

#endif							/* BW_LISTENERS_H */
