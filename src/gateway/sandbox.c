/*
 * sandbox.c
 *	  Takes away from the process what it does not need.
 */
#include "sandbox.h"

#include <errno.h>
#include <signal.h>
#include <stddef.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <unistd.h>

/*
 * The kernel sends this when the parent dies.  It must be caught: where the
 * server is process 1, or adopts orphans, a child of a dead receiver that is
 * killed by a signal looks like a crashed session and restarts the cluster.
 */
#define PARENT_DIED_SIGNAL SIGUSR1

static bool set_handler(int signal_number, void (*handler) (int));
static void leave(int signal_number);

/*
 * sandbox_follow_parent: SIGINT and SIGTERM reach us when the server's
 * processes are signalled as a group; the end is told over the link.
 * parent is 0 when unknown.
 */
SandboxResult
sandbox_follow_parent(pid_t parent)
{
	sigset_t	none;

	if (!set_handler(SIGINT, SIG_IGN) || !set_handler(SIGTERM, SIG_IGN) ||
		!set_handler(SIGHUP, SIG_IGN) || !set_handler(SIGPIPE, SIG_IGN) ||
		!set_handler(PARENT_DIED_SIGNAL, leave))
		return SANDBOX_FAILED;
	sigemptyset(&none);
	if (sigprocmask(SIG_SETMASK, &none, NULL) < 0)
		return SANDBOX_FAILED;

	if (prctl(PR_SET_PDEATHSIG, PARENT_DIED_SIGNAL) < 0)
		return SANDBOX_FAILED;

	/* It may have died before the kernel was told to tell. */
	if (parent != 0 && getppid() != parent)
		return SANDBOX_ORPHANED;
	return SANDBOX_OK;
}

SandboxResult
sandbox_enter(void)
{
	struct rlimit limit;

	/* As many connections as the administrator permits: the limits of our own are lower. */
	if (getrlimit(RLIMIT_NOFILE, &limit) < 0)
		return SANDBOX_FAILED;
	limit.rlim_cur = limit.rlim_max;
	if (setrlimit(RLIMIT_NOFILE, &limit) < 0)
		return SANDBOX_FAILED;

	limit.rlim_cur = limit.rlim_max = 0;
	if (setrlimit(RLIMIT_CORE, &limit) < 0)
		return SANDBOX_FAILED;
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
		return SANDBOX_FAILED;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return SANDBOX_FAILED;
	if (chdir("/") < 0)
		return SANDBOX_FAILED;
	return SANDBOX_OK;
}

static bool
set_handler(int signal_number, void (*handler) (int))
{
	struct sigaction action = {0};

	action.sa_handler = handler;
	sigemptyset(&action.sa_mask);
	return sigaction(signal_number, &action, NULL) == 0;
}

static void
leave(int signal_number)
{
	(void) signal_number;
	_exit(0);
}
