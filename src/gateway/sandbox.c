/*
 * sandbox.c
 *	  Takes away from the process what it does not need.
 *
 * The filter of system calls has three answers.  What serving needs, as it
 * was measured over every path of the program, is allowed, where it matters
 * only with the arguments that serving needs.  What no library calls by itself, and
 * what somebody would call who has taken the program over (another program,
 * another process, a connection of its own), ends the process: the receiver
 * says so in the log and starts another one.  Everything else, opening files
 * above all, fails with EPERM, so that a library that only tries its luck
 * goes on.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE				/* F_DUPFD_CLOEXEC and rarer constants */
#endif

#include "sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <signal.h>
#include <stddef.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#include <seccomp.h>

/*
 * The kernel sends this when the parent dies.  It must be caught: where the
 * server is process 1, or adopts orphans, a child of a dead receiver that is
 * killed by a signal looks like a crashed session and restarts the cluster.
 */
#define PARENT_DIED_SIGNAL SIGUSR1

/* Calls that are allowed with any arguments. */
static const int allowed[] = {
	/* waiting */
	SCMP_SYS(epoll_create1), SCMP_SYS(epoll_ctl), SCMP_SYS(epoll_pwait), SCMP_SYS(epoll_wait),
	SCMP_SYS(eventfd2), SCMP_SYS(poll), SCMP_SYS(ppoll), SCMP_SYS(restart_syscall),
	/* sockets that exist */
	SCMP_SYS(accept4), SCMP_SYS(close), SCMP_SYS(getpeername), SCMP_SYS(getsockname),
	SCMP_SYS(getsockopt), SCMP_SYS(read), SCMP_SYS(readv), SCMP_SYS(recvfrom), SCMP_SYS(recvmsg),
	SCMP_SYS(sendmsg), SCMP_SYS(sendto), SCMP_SYS(shutdown), SCMP_SYS(write), SCMP_SYS(writev),
	/* memory */
	SCMP_SYS(brk), SCMP_SYS(futex), SCMP_SYS(madvise), SCMP_SYS(mremap), SCMP_SYS(munmap),
	/* time, chance, self */
	SCMP_SYS(clock_getres), SCMP_SYS(clock_gettime), SCMP_SYS(getpid), SCMP_SYS(getppid),
	SCMP_SYS(getrandom), SCMP_SYS(getrusage), SCMP_SYS(gettid), SCMP_SYS(gettimeofday),
	SCMP_SYS(time),
	/* signals and the end */
	SCMP_SYS(exit), SCMP_SYS(exit_group), SCMP_SYS(rt_sigaction), SCMP_SYS(rt_sigprocmask),
	SCMP_SYS(rt_sigreturn), SCMP_SYS(sigaltstack)
};

/* Calls that end the process. */
static const int deadly[] = {
	/* other programs and processes */
	SCMP_SYS(clone), SCMP_SYS(clone3), SCMP_SYS(execve), SCMP_SYS(execveat), SCMP_SYS(fork),
	SCMP_SYS(pidfd_getfd), SCMP_SYS(pidfd_open), SCMP_SYS(pidfd_send_signal),
	SCMP_SYS(process_madvise), SCMP_SYS(process_vm_readv), SCMP_SYS(process_vm_writev),
	SCMP_SYS(ptrace), SCMP_SYS(vfork),
	/* connections that nobody made to us */
	SCMP_SYS(bind), SCMP_SYS(connect), SCMP_SYS(listen), SCMP_SYS(socket), SCMP_SYS(socketpair),
	/* the kernel */
	SCMP_SYS(add_key), SCMP_SYS(bpf), SCMP_SYS(chroot), SCMP_SYS(delete_module),
	SCMP_SYS(finit_module), SCMP_SYS(init_module), SCMP_SYS(io_uring_enter),
	SCMP_SYS(io_uring_register), SCMP_SYS(io_uring_setup), SCMP_SYS(kexec_file_load),
	SCMP_SYS(kexec_load), SCMP_SYS(keyctl), SCMP_SYS(memfd_create), SCMP_SYS(memfd_secret),
	SCMP_SYS(mount), SCMP_SYS(perf_event_open), SCMP_SYS(pivot_root), SCMP_SYS(request_key),
	SCMP_SYS(setns), SCMP_SYS(umount2), SCMP_SYS(unshare), SCMP_SYS(userfaultfd)
};

#define LENGTH_OF(array) (sizeof(array) / sizeof((array)[0]))

static bool limit_resource(int resource, rlim_t value);
static bool limit_files(void);
static int	add_rules(scmp_filter_ctx filter);
static int	add_argument_rules(scmp_filter_ctx filter);
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

	if (!limit_resource(RLIMIT_CORE, 0) || !limit_resource(RLIMIT_NPROC, 0) ||
		!limit_resource(RLIMIT_MEMLOCK, 0) || !limit_resource(RLIMIT_MSGQUEUE, 0) ||
		!limit_files())
		return SANDBOX_FAILED;
	if (prctl(PR_SET_DUMPABLE, 0, 0, 0, 0) < 0)
		return SANDBOX_FAILED;
	if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0)
		return SANDBOX_FAILED;
	if (chdir("/") < 0)
		return SANDBOX_FAILED;
	return SANDBOX_OK;
}

SandboxResult
sandbox_filter_calls(void)
{
	scmp_filter_ctx filter = seccomp_init(SCMP_ACT_ERRNO(EPERM));
	int			result;

	if (filter == NULL)
	{
		errno = ENOMEM;
		return SANDBOX_FAILED;
	}

	/* Calls of another architecture's interface have other numbers: no rule here would mean them. */
	result = seccomp_attr_set(filter, SCMP_FLTATR_ACT_BADARCH, SCMP_ACT_KILL_PROCESS);
	if (result == 0)
		result = add_rules(filter);
	if (result == 0)
		result = add_argument_rules(filter);
	if (result == 0)
		result = seccomp_load(filter);
	seccomp_release(filter);
	if (result < 0)
	{
		errno = -result;
		return SANDBOX_FAILED;
	}
	return SANDBOX_OK;
}

static bool
limit_resource(int resource, rlim_t value)
{
	struct rlimit limit;

	limit.rlim_cur = limit.rlim_max = value;
	return setrlimit((__rlimit_resource_t) resource, &limit) == 0;
}

/* limit_files forbids files to grow, unless the log is one: then no file can be opened anyway. */
static bool
limit_files(void)
{
	for (int fd = STDOUT_FILENO; fd <= STDERR_FILENO; fd++)
	{
		struct stat status;

		if (fstat(fd, &status) == 0 && S_ISREG(status.st_mode))
			return true;
	}
	return limit_resource(RLIMIT_FSIZE, 0);
}

/* add_rules adds the calls that need no look at their arguments; 0, or a negative errno. */
static int
add_rules(scmp_filter_ctx filter)
{
	int			result = 0;

	for (size_t i = 0; i < LENGTH_OF(allowed) && result == 0; i++)
		result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, allowed[i], 0);
	for (size_t i = 0; i < LENGTH_OF(deadly) && result == 0; i++)
		result = seccomp_rule_add(filter, SCMP_ACT_KILL_PROCESS, deadly[i], 0);
	return result;
}

/*
 * add_argument_rules adds the calls that are allowed for one purpose: no
 * memory becomes code, descriptors send no signals, options of sockets are
 * those of TCP, limits are read only, and signals go to ourselves (abort).
 */
static int
add_argument_rules(scmp_filter_ctx filter)
{
	static const int file_commands[] = {F_DUPFD_CLOEXEC, F_GETFD, F_GETFL, F_SETFD, F_SETFL};
	const scmp_datum_t self = (scmp_datum_t) getpid();
	int			result = 0;

	for (size_t i = 0; i < LENGTH_OF(file_commands) && result == 0; i++)
		result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(fcntl), 1,
								  SCMP_A1(SCMP_CMP_EQ, (scmp_datum_t) file_commands[i]));
	if (result == 0)
		result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mmap), 1,
								  SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
	if (result == 0)
		result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(mprotect), 1,
								  SCMP_A2(SCMP_CMP_MASKED_EQ, PROT_EXEC, 0));
	if (result == 0)
		result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(setsockopt), 1,
								  SCMP_A1(SCMP_CMP_EQ, IPPROTO_TCP));
	if (result == 0)
		result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(prlimit64), 2,
								  SCMP_A0(SCMP_CMP_EQ, 0), SCMP_A2(SCMP_CMP_EQ, 0));
	if (result == 0)
		result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(getrlimit), 0);
	if (result == 0)
		result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(tgkill), 1,
								  SCMP_A0(SCMP_CMP_EQ, self));
	if (result == 0)
		result = seccomp_rule_add(filter, SCMP_ACT_ALLOW, SCMP_SYS(kill), 1,
								  SCMP_A0(SCMP_CMP_EQ, self));
	return result;
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
