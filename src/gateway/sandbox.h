/*
 * sandbox.h
 *	  Takes away from the process what it does not need.
 *
 * The gateway is the program that the Internet talks to, so whoever takes it
 * over should find as little as possible: no way to more privileges, no core
 * file with bodies in it, no tracing by others of the same user, no working
 * directory, no life after its receiver, and of the system calls none but
 * those that serving takes: no other program, no process, no file, no
 * connection of its own.
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

/* Gives up privileges and resources. */
extern SandboxResult sandbox_enter(void);

/* Puts the filter of system calls in force; after sandbox_enter, and nothing can be opened afterwards. */
extern SandboxResult sandbox_filter_calls(void);

#endif							/* BW_GATEWAY_SANDBOX_H */
