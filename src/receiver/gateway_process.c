/*
 * gateway_process.c
 *	  The gateway as a child process of the receiver.
 *
 * A child of a backend is a dangerous thing.  Between fork and exec it is a
 * copy of a process that is attached to shared memory, with that process's
 * signal handlers: it must neither run one of them nor call anything of
 * PostgreSQL's, and it leaves by _exit alone.  So all signals are blocked around the fork,
 * and the child only makes a session of its own (a cancel is sent to the
 * receiver's process group), restores default dispositions, arranges its
 * descriptors and execs.
 *
 * A gateway that outlived its receiver would be inherited by the postmaster
 * where that is PID 1 or a subreaper; if it died by a signal there, the
 * postmaster would take it for a crashed server process and restart everything.  So an
 * exit callback kills and reaps it, and the gateway itself leaves with status
 * 0 when the link or its parent goes away.
 *
 * The program is found beside this library, never by PATH or by a setting.
 */
#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif

#include "postgres.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <signal.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "miscadmin.h"
#include "storage/ipc.h"
#include "utils/timestamp.h"

#include "counters.h"
#include "gateway_process.h"
#include "settings.h"

#define PROGRAM "banked_webhooks_gateway"

/* Descriptors of the gateway: 0 to 2, the link, the listening sockets. */
#define LINK_FD 3
#define FIRST_LISTENER_FD 4

/* Everything the child needs, prepared before the fork. */
typedef struct Child
{
	char		program[MAXPGPATH];
	char		http[MAX_LISTENERS * 4 + 16];
	char		https[MAX_LISTENERS * 4 + 16];	/* empty: none */
	char		parent[32];
	char		no_sandbox[16]; /* --no-sandbox, or empty */
	int			null_fd;
	int			count;
	int			fds[MAX_LISTENERS + 1]; /* the link, then the listening sockets */
} Child;

static Gateway *reap_at_exit = NULL;

static void
gateway_exit(int code, Datum arg)
{
	if (reap_at_exit->pid != 0)
		pfree(gateway_stop(reap_at_exit));
}

void
gateway_init(Gateway *gateway)
{
	memset(gateway, 0, sizeof(*gateway));
	gateway->link = -1;
	frame_buffer_init(&gateway->in, 2 * FRAME_MAX_PAYLOAD);
	frame_buffer_init(&gateway->out, 2 * FRAME_MAX_PAYLOAD);
	reap_at_exit = gateway;
	before_shmem_exit(gateway_exit, 0);
}

/* Fills in program; false when the library's own place cannot be told. */
static bool
find_program(Child *child)
{
	Dl_info		info;
	char	   *slash;

	if (dladdr(&reap_at_exit, &info) == 0 || info.dli_fname == NULL)
		return false;
	strlcpy(child->program, info.dli_fname, sizeof(child->program));
	slash = strrchr(child->program, '/');
	if (slash == NULL)
		return false;
	slash[1] = '\0';
	return strlcat(child->program, PROGRAM, sizeof(child->program)) < sizeof(child->program);
}

/* Adds a descriptor to an option that lists them. */
static void
add_descriptor(char *option, Size size, const char *name, int fd)
{
	Size		length = strlen(option);

	snprintf(option + length, size - length, "%s%d", length == 0 ? name : ",", fd);
}

static bool
prepare_child(Child *child, int link, const Listeners *listeners)
{
	if (!find_program(child))
	{
		errno = ENOENT;
		return false;
	}
	child->null_fd = open("/dev/null", O_RDWR | O_CLOEXEC);
	if (child->null_fd < 0)
		return false;

	child->fds[0] = link;
	child->count = 1;
	for (int i = 0; i < listeners->count; i++)
	{
		child->fds[child->count++] = listeners->fds[i];
		if (i < listeners->plain_count)
			add_descriptor(child->http, sizeof(child->http), "--http=", FIRST_LISTENER_FD + i);
		else
			add_descriptor(child->https, sizeof(child->https), "--https=", FIRST_LISTENER_FD + i);
	}
	snprintf(child->parent, sizeof(child->parent), "--parent=%d", (int) getpid());
	if (!bw_gateway_sandbox)
		strlcpy(child->no_sandbox, "--no-sandbox", sizeof(child->no_sandbox));
	return true;
}

/* The child between fork and exec: see the file's header for what it may do. */
static void
run_child(Child *child)
{
	char	   *argv[] = {PROGRAM, "--link=3", child->http, child->parent, NULL, NULL, NULL};
	int			argc = 4;
	char	   *envp[] = {NULL};
	struct sigaction action;
	sigset_t	none;

	if (child->https[0] != '\0')
		argv[argc++] = child->https;
	if (child->no_sandbox[0] != '\0')
		argv[argc++] = child->no_sandbox;

	(void) setsid();

	memset(&action, 0, sizeof(action));
	action.sa_handler = SIG_DFL;
	for (int i = 1; i < NSIG; i++)
		(void) sigaction(i, &action, NULL);

	if (dup2(child->null_fd, 0) < 0 || dup2(2, 1) < 0)
		_exit(126);
	/* First out of the way of the numbers that they are to get. */
	for (int i = 0; i < child->count; i++)
	{
		child->fds[i] = fcntl(child->fds[i], F_DUPFD, FIRST_LISTENER_FD + MAX_LISTENERS);
		if (child->fds[i] < 0)
			_exit(126);
	}
	for (int i = 0; i < child->count; i++)
	{
		if (dup2(child->fds[i], LINK_FD + i) < 0)
			_exit(126);
	}
	if (close_range(LINK_FD + child->count, ~0U, 0) < 0)
		_exit(126);

	sigemptyset(&none);
	(void) sigprocmask(SIG_SETMASK, &none, NULL);
	(void) execve(child->program, argv, envp);
	_exit(127);
}

static pid_t
fork_child(Child *child)
{
	sigset_t	all;
	sigset_t	before;
	pid_t		pid;

	sigfillset(&all);
	(void) sigprocmask(SIG_SETMASK, &all, &before);
	pid = fork();
	if (pid == 0)
		run_child(child);
	(void) sigprocmask(SIG_SETMASK, &before, NULL);
	return pid;
}

static void
set_slot_gateway(pid_t pid)
{
	LWLockAcquire(shared_state->lock, LW_EXCLUSIVE);
	my_slot->gateway_pid = pid;
	LWLockRelease(shared_state->lock);
}

bool
gateway_start(Gateway *gateway, const Listeners *listeners)
{
	Child	   *child = palloc0(sizeof(Child));
	int			ends[2];
	pid_t		pid;
	int			save_errno;

	if (socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0, ends) < 0)
	{
		ereport(LOG,
				(errcode_for_socket_access(),
				 errmsg("could not create a socket for the gateway of webhooks: %m")));
		return false;
	}
	child->null_fd = -1;
	pid = prepare_child(child, ends[1], listeners) ? fork_child(child) : -1;
	save_errno = errno;
	close(ends[1]);
	if (child->null_fd >= 0)
		close(child->null_fd);
	if (pid < 0)
	{
		close(ends[0]);
		errno = save_errno;
		ereport(LOG,
				(errmsg("could not start the gateway of webhooks \"%s\": %m", child->program)));
		pfree(child);
		return false;
	}
	pfree(child);

	gateway->pid = pid;
	gateway->link = ends[0];
	gateway->secret_sent = false;
	gateway->ready = false;
	gateway->sandbox = bw_gateway_sandbox;
	gateway->started_at = gateway->heard_at = gateway->pinged_at = GetCurrentTimestamp();
	gateway->ping_outstanding = false;
	gateway->connections_seen = gateway->requests_seen = 0;
	memset(gateway->rejections_seen, 0, sizeof(gateway->rejections_seen));
	set_slot_gateway(pid);
	return true;
}

char *
gateway_stop(Gateway *gateway)
{
	pid_t		pid = gateway->pid;
	int			status = 0;
	pid_t		reaped;

	/* It may have ended by itself: then this tells how. */
	reaped = waitpid(pid, &status, WNOHANG);
	if (reaped == 0)
	{
		(void) kill(pid, SIGKILL);
		do
			reaped = waitpid(pid, &status, 0);
		while (reaped < 0 && errno == EINTR);
	}
	gateway->pid = 0;
	if (gateway->link >= 0)
		close(gateway->link);
	gateway->link = -1;
	gateway->ready = false;
	frame_buffer_free(&gateway->in);
	frame_buffer_free(&gateway->out);
	frame_buffer_init(&gateway->in, 2 * FRAME_MAX_PAYLOAD);
	frame_buffer_init(&gateway->out, 2 * FRAME_MAX_PAYLOAD);
	set_slot_gateway(0);
	pg_atomic_write_u64(&my_slot->counters.connections, 0);
	pg_atomic_write_u64(&my_slot->counters.pending, 0);
	pg_atomic_write_u64(&my_slot->counters.pending_size, 0);
	pg_atomic_write_u64(&my_slot->counters.sandboxed, 0);

	if (reaped == pid && WIFEXITED(status))
		return psprintf("exited with status %d", WEXITSTATUS(status));
	if (reaped == pid && WIFSIGNALED(status) && WTERMSIG(status) == SIGSYS)
		return pstrdup("made a forbidden system call and was ended for that");
	if (reaped == pid && WIFSIGNALED(status))
		return psprintf("was ended by signal %d", WTERMSIG(status));
	return pstrdup("is gone");
}
