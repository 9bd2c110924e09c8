/*
 * sandbox.h
 *	  Takes away from the process what it does not need.
 *
 * The gateway is the program that the Internet talks to, so whoever takes it
 * over should find as little as possible: no way to more privileges, no core
 * file with bodies in it, no tracing by others of the same user, no working
 * directory, and no life after its receiver.  A filter of system calls would
 * be put in force at the end of sandbox_enter, after everything was opened.
 */
#ifndef BW_GATEWAY_SANDBOX_H
#define BW_GATEWAY_SANDBOX_H

#include <stdbool.h>
#include <sys/types.h>

typedef enum SandboxResult
{
	SANDBOX_OK,
	SANDBOX_ORPHANED,			/* the parent is gone already: leave */
	SANDBOX_FAILED				/* errno is set */
} SandboxResult;

/* Ignores what is meant for the database server, and leaves with status 0 when the parent dies. */
extern SandboxResult sandbox_follow_parent(pid_t parent);

/* Gives up the rest. */
extern SandboxResult sandbox_enter(void);

#endif							/* BW_GATEWAY_SANDBOX_H */
