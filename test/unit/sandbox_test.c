/*
 * sandbox_test.c
 *	  The sandbox: each thing that the gateway must not be able to do is tried
 *	  in a child of its own that has entered it, and so is what it must.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "gateway/sandbox.h"

#include <errno.h>
#include <fcntl.h>
#include <linux/io_uring.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <pthread.h>
#include <sched.h>
#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/ptrace.h>
#include <sys/random.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "tap.h"

/* Tries something; the result and errno are those of the system call. */
typedef long (*Attempt) (void);

/* Made before the sandbox is entered, for calls that need a descriptor. */
static int	ends[2];
static int	listener;
static char scratch[4096];

/* Other programs and processes. */
static long
try_execve(void)
{
	char	   *argv[] = {"true", NULL};

	return execve("/bin/true", argv, NULL);
}

static long
try_execveat(void)
{
	char	   *argv[] = {"true", NULL};

	return syscall(SYS_execveat, AT_FDCWD, "/bin/true", argv, NULL, 0);
}

static long
try_fork(void)
{
	return fork();
}

static long
try_raw_fork(void)
{
#ifdef SYS_fork
	return syscall(SYS_fork);
#else
	return syscall(SYS_clone, SIGCHLD, 0, 0, 0, 0);
#endif
}

static long
try_vfork(void)
{
#ifdef SYS_vfork
	return syscall(SYS_vfork);
#else
	return syscall(SYS_clone, CLONE_VFORK | SIGCHLD, 0, 0, 0, 0);
#endif
}

static long
try_clone3(void)
{
	return syscall(SYS_clone3, NULL, 0);
}

static void *
thread(void *argument)
{
	return argument;
}

static long
try_thread(void)
{
	pthread_t	id;
	int			result = pthread_create(&id, NULL, thread, NULL);

	errno = result;
	return result == 0 ? 0 : -1;
}

static long
try_system(void)
{
	return system("true") == 0 ? 0 : -1;
}

static long
try_ptrace(void)
{
	return ptrace(PTRACE_ATTACH, getppid(), NULL, NULL);
}

static long
try_read_of_parent(void)
{
	struct iovec here = {scratch, sizeof(scratch)};
	struct iovec there = {scratch, sizeof(scratch)};

	return process_vm_readv(getppid(), &here, 1, &there, 1, 0);
}

static long
try_write_to_parent(void)
{
	struct iovec here = {scratch, sizeof(scratch)};
	struct iovec there = {scratch, sizeof(scratch)};

	return process_vm_writev(getppid(), &here, 1, &there, 1, 0);
}

static long
try_kill_parent(void)
{
	return kill(getppid(), 0);
}

static long
try_kill_group(void)
{
	return kill(0, 0);
}

static long
try_tgkill_parent(void)
{
	return syscall(SYS_tgkill, getppid(), getppid(), 0);
}

static long
try_queue_signal(void)
{
	union sigval value = {0};

	return sigqueue(getppid(), 0, value);
}

static long
try_pidfd(void)
{
	return syscall(SYS_pidfd_open, getppid(), 0);
}

/* Files. */
static long
try_open_to_read(void)
{
	return open("/etc/passwd", O_RDONLY);
}

static long
try_open_to_write(void)
{
	return open("/dev/null", O_WRONLY);
}

static long
try_create(void)
{
	return open("/tmp", O_TMPFILE | O_WRONLY, 0600);
}

static long
try_openat2(void)
{
	return syscall(SYS_openat2, AT_FDCWD, "/etc/passwd", NULL, 0);
}

static long
try_unlink(void)
{
	return unlink("/nowhere/at/all");
}

static long
try_rename(void)
{
	return rename("/nowhere/at/all", "/nowhere/else");
}

static long
try_mkdir(void)
{
	return mkdir("/nowhere/at/all", 0700);
}

static long
try_chmod(void)
{
	return chmod("/nowhere/at/all", 0700);
}

static long
try_truncate(void)
{
	return truncate("/nowhere/at/all", 0);
}

static long
try_readlink(void)
{
	return readlink("/proc/self/exe", scratch, sizeof(scratch));
}

static long
try_chdir(void)
{
	return chdir("/tmp");
}

static long
try_chroot(void)
{
	return chroot("/tmp");
}

static long
try_memfd(void)
{
	return memfd_create("x", 0);
}

/* Connections. */
static long
try_socket(void)
{
	return socket(AF_INET, SOCK_STREAM, 0);
}

static long
try_unix_socket(void)
{
	return socket(AF_UNIX, SOCK_STREAM, 0);
}

static long
try_connect(void)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons(9)};

	return connect(ends[0], (struct sockaddr *) &address, sizeof(address));
}

static long
try_bind(void)
{
	struct sockaddr_in address = {.sin_family = AF_INET};

	return bind(ends[0], (struct sockaddr *) &address, sizeof(address));
}

static long
try_listen(void)
{
	return listen(ends[0], 1);
}

static long
try_socketpair(void)
{
	int			pair[2];

	return socketpair(AF_UNIX, SOCK_STREAM, 0, pair);
}

static long
try_setsockopt(void)
{
	int			on = 1;

	return setsockopt(ends[0], SOL_SOCKET, SO_KEEPALIVE, &on, sizeof(on));
}

static long
try_owner_of_descriptor(void)
{
	return fcntl(ends[0], F_SETOWN, getppid());
}

/* The kernel. */
static long
try_mount(void)
{
	return syscall(SYS_mount, "none", "/tmp", "tmpfs", 0, NULL);
}

static long
try_unshare(void)
{
	return unshare(CLONE_NEWUSER);
}

static long
try_bpf(void)
{
	return syscall(SYS_bpf, 0, NULL, 0);
}

static long
try_io_uring(void)
{
	struct io_uring_params parameters;

	memset(&parameters, 0, sizeof(parameters));
	return syscall(SYS_io_uring_setup, 1, &parameters);
}

static long
try_perf(void)
{
	return syscall(SYS_perf_event_open, NULL, 0, -1, -1, 0);
}

static long
try_keyctl(void)
{
	return syscall(SYS_keyctl, 0, 0, 0, 0, 0);
}

static long
try_userfaultfd(void)
{
	return syscall(SYS_userfaultfd, 0);
}

static long
try_code_from_mmap(void)
{
	void	   *memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE | PROT_EXEC,
							  MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return memory == MAP_FAILED ? -1 : 0;
}

static long
try_code_from_mprotect(void)
{
	void	   *memory = mmap(NULL, 4096, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);

	return mprotect(memory, 4096, PROT_READ | PROT_EXEC);
}

static long
try_raise_limit(void)
{
	struct rlimit limit = {0, 0};

	return setrlimit(RLIMIT_NOFILE, &limit);
}

static long
try_limit_of_parent(void)
{
	struct rlimit limit;

	return syscall(SYS_prlimit64, getppid(), RLIMIT_NOFILE, NULL, &limit);
}

static long
try_dumpable(void)
{
	return prctl(PR_SET_DUMPABLE, 1, 0, 0, 0);
}

static long
try_identity(void)
{
	return setuid(getuid());
}

static long
try_unknown_call(void)
{
	return syscall(100000);
}

/* What serving needs. */
static long
try_socket_work(void)
{
	int			on = 1;
	int			type;
	socklen_t	length = sizeof(type);
	struct iovec part = {scratch, 4};
	struct msghdr message = {.msg_iov = &part, .msg_iovlen = 1};

	if (send(ends[0], "abcd", 4, MSG_NOSIGNAL) != 4 || recv(ends[1], scratch, 4, 0) != 4 ||
		sendmsg(ends[0], &message, MSG_NOSIGNAL) != 4 || read(ends[1], scratch, 4) != 4 ||
		getsockopt(ends[0], SOL_SOCKET, SO_TYPE, &type, &length) < 0 ||
		setsockopt(listener, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on)) < 0 ||
		fcntl(ends[0], F_SETFL, fcntl(ends[0], F_GETFL) | O_NONBLOCK) < 0 ||
		fcntl(ends[0], F_DUPFD_CLOEXEC, 0) < 0)
		return -1;
	if (accept4(listener, NULL, NULL, SOCK_NONBLOCK) >= 0 || errno != EAGAIN)
		return -1;
	return shutdown(ends[0], SHUT_RDWR) == 0 ? close(ends[0]) : -1;
}

static long
try_memory(void)
{
	for (size_t size = 16; size < (size_t) 64 * 1024 * 1024; size *= 4)
	{
		char	   *memory = malloc(size);

		if (memory == NULL)
			return -1;
		memset(memory, 1, size);
		memory = realloc(memory, 3 * size);
		if (memory == NULL)
			return -1;
		free(memory);
	}
	return 0;
}

static long
try_waiting(void)
{
	int			epoll = epoll_create1(EPOLL_CLOEXEC);
	struct epoll_event event = {.events = EPOLLIN};

	if (epoll < 0 || epoll_ctl(epoll, EPOLL_CTL_ADD, ends[0], &event) < 0)
		return -1;
	return epoll_wait(epoll, &event, 1, 1);
}

static long
try_chance(void)
{
	return getrandom(scratch, 32, 0) == 32 ? 0 : -1;
}

static long
try_limits(void)
{
	struct rlimit limit;

	return getrlimit(RLIMIT_NOFILE, &limit);
}

static long
try_log(void)
{
	return write(STDERR_FILENO, "# a line of a sandboxed process\n", 32) == 32 ? 0 : -1;
}

/* What the limits and privileges do without the filter. */
static long
check_state(void)
{
	struct rlimit limit;

	if (prctl(PR_GET_DUMPABLE, 0, 0, 0, 0) != 0 || prctl(PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0) != 1)
		return -1;
	if (getcwd(scratch, sizeof(scratch)) == NULL || strcmp(scratch, "/") != 0)
		return -1;
	if (getrlimit(RLIMIT_CORE, &limit) < 0 || limit.rlim_max != 0 ||
		getrlimit(RLIMIT_NPROC, &limit) < 0 || limit.rlim_max != 0)
		return -1;
	return getrlimit(RLIMIT_NOFILE, &limit) == 0 && limit.rlim_cur == limit.rlim_max ? 0 : -1;
}

static long
check_growth(void)
{
	int			fd = open("/tmp", O_TMPFILE | O_WRONLY, 0600);

	signal(SIGXFSZ, SIG_IGN);
	return fd < 0 ? 0 : write(fd, "x", 1);
}

/* Runs an attempt in a child; returns its wait status. */
static int
run(Attempt attempt, bool filter, bool log_is_file)
{
	pid_t		pid;
	int			status;

	fflush(stdout);
	pid = fork();
	if (pid == 0)
	{
		long		result;

		dup2(open("/dev/null", O_WRONLY), STDOUT_FILENO);
		dup2(log_is_file ? fileno(tmpfile()) : STDOUT_FILENO, STDERR_FILENO);
		if (sandbox_enter() != SANDBOX_OK || (filter && sandbox_filter_calls() != SANDBOX_OK))
			_exit(100);
		errno = 0;
		result = attempt();
		_exit(result < 0 ? errno : 0);
	}
	waitpid(pid, &status, 0);
	return status;
}

static void
ends_the_process(Attempt attempt, const char *name)
{
	int			status = run(attempt, true, false);

	if (!TAP_OK(WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS, "ends the process: %s", name))
		printf("# wait status %#x\n", status);
}

static void
is_refused(Attempt attempt, const char *name)
{
	int			status = run(attempt, true, false);

	if (!TAP_OK(WIFEXITED(status) && WEXITSTATUS(status) == EPERM, "is refused: %s", name))
		printf("# wait status %#x\n", status);
}

static void
works(Attempt attempt, const char *name)
{
	int			status = run(attempt, true, false);

	if (!TAP_OK(status == 0, "works: %s", name))
		printf("# wait status %#x\n", status);
}

static void
test_deadly(void)
{
	ends_the_process(try_execve, "execve");
	ends_the_process(try_execveat, "execveat");
	ends_the_process(try_fork, "fork");
	ends_the_process(try_raw_fork, "fork by number");
	ends_the_process(try_vfork, "vfork");
	ends_the_process(try_clone3, "clone3");
	ends_the_process(try_thread, "a thread");
	ends_the_process(try_system, "system");
	ends_the_process(try_ptrace, "ptrace");
	ends_the_process(try_read_of_parent, "reading the memory of another process");
	ends_the_process(try_write_to_parent, "writing to the memory of another process");
	ends_the_process(try_pidfd, "pidfd_open");
	ends_the_process(try_memfd, "memfd_create");
	ends_the_process(try_socket, "socket");
	ends_the_process(try_unix_socket, "a Unix socket");
	ends_the_process(try_socketpair, "socketpair");
	ends_the_process(try_connect, "connect");
	ends_the_process(try_bind, "bind");
	ends_the_process(try_listen, "listen");
	ends_the_process(try_mount, "mount");
	ends_the_process(try_chroot, "chroot");
	ends_the_process(try_unshare, "unshare");
	ends_the_process(try_bpf, "bpf");
	ends_the_process(try_io_uring, "io_uring_setup");
	ends_the_process(try_perf, "perf_event_open");
	ends_the_process(try_keyctl, "keyctl");
	ends_the_process(try_userfaultfd, "userfaultfd");
}

static void
test_refused(void)
{
	is_refused(try_open_to_read, "opening a file to read");
	is_refused(try_open_to_write, "opening a file to write");
	is_refused(try_create, "making a file");
	is_refused(try_openat2, "openat2");
	is_refused(try_unlink, "unlink");
	is_refused(try_rename, "rename");
	is_refused(try_mkdir, "mkdir");
	is_refused(try_chmod, "chmod");
	is_refused(try_truncate, "truncate");
	is_refused(try_readlink, "readlink");
	is_refused(try_chdir, "chdir");
	is_refused(try_kill_parent, "a signal to another process");
	is_refused(try_kill_group, "a signal to the group");
	is_refused(try_tgkill_parent, "a signal to another thread");
	is_refused(try_queue_signal, "sigqueue");
	is_refused(try_setsockopt, "options of sockets that are not TCP's");
	is_refused(try_owner_of_descriptor, "F_SETOWN");
	is_refused(try_code_from_mmap, "executable memory by mmap");
	is_refused(try_code_from_mprotect, "executable memory by mprotect");
	is_refused(try_raise_limit, "changing a limit");
	is_refused(try_limit_of_parent, "limits of another process");
	is_refused(try_dumpable, "prctl");
	is_refused(try_identity, "setuid");
	is_refused(try_unknown_call, "a call that nobody knows");
}

static void
test_limits(void)
{
	int			status;

	TAP_IS(run(check_state, false, false), 0, "directory, limits and privileges are what they should be");
	status = run(check_growth, false, false);
	TAP_IS(WEXITSTATUS(status), EFBIG, "no file can grow");
	TAP_IS(run(try_log, true, true), 0, "a log that is a file can");
	if (geteuid() != 0)
	{
		status = run(try_fork, false, false);
		TAP_IS(WEXITSTATUS(status), EAGAIN, "no process can be made, even without the filter");
	}
}

static bool
make_descriptors(void)
{
	struct sockaddr_in address = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};

	listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
	return listener >= 0 && bind(listener, (struct sockaddr *) &address, sizeof(address)) == 0 &&
		listen(listener, 1) == 0 && socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0;
}

int
main(void)
{
	TAP_OK(make_descriptors(), "descriptors");
	test_deadly();
	test_refused();
	test_limits();
	works(try_socket_work, "sockets that are there already");
	works(try_memory, "memory");
	works(try_waiting, "epoll");
	works(try_chance, "getrandom");
	works(try_limits, "reading a limit");
	works(try_log, "a line in the log");
	return tap_done();
}
