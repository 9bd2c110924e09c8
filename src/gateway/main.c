/*
 * main.c
 *	  The gateway: the program that speaks HTTP for a receiver.
 *
 *	  banked_webhooks_gateway --link=FD --http=FD[,FD...] [--https=FD[,FD...]]
 *		  [--parent=PID] [--no-sandbox]
 *
 * It is started by the receiver, with the listening sockets and one end of a
 * socket pair, and is of no use to anybody else.  It is a process of its own
 * because it reads what the Internet sends: should it crash, no session of
 * the database notices, since it is not attached to the server's shared
 * memory.  It has no database connection and no signing key, and decides
 * nothing about a delivery but whether it has the form of one.
 *
 * Words: a delivery is one HTTP request of the right form; the receiver is
 * the server's background worker that verifies, stores and answers; the link
 * is the socket between the two.
 *
 * Exit status: 0 when the receiver ended it or is gone, 1 when it could not
 * go on (the reason is in the server's log), 2 for wrong arguments.
 */
#include "gateway.h"
#include "log.h"
#include "sandbox.h"

#include <errno.h>
#include <getopt.h>
#include <limits.h>
#include <malloc.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

/* Allocations of this size and more are given back to the system when they are freed. */
#define LARGE_ALLOCATION (256 * 1024)

typedef struct Arguments
{
	int			link_fd;
	int			listener_fds[LISTENERS_MAX];
	unsigned	listener_count;
	unsigned	plain_count;	/* the first of them: those for HTTP */
	int			parent;			/* process id, or 0 */
	bool		no_sandbox;		/* without the filter of system calls */
} Arguments;

static bool parse_arguments(int argc, char **argv, Arguments *arguments);
static bool parse_listeners(const char *text, Arguments *arguments);
static bool parse_number(const char *text, char end, int *number, const char **rest);

/* Large, and used from the first to the last moment. */
static Gateway gateway;

int
main(int argc, char **argv)
{
	Arguments	arguments;

#ifdef M_MMAP_THRESHOLD
	/* A fixed threshold: the adaptive one would keep a burst of large bodies for ever. */
	mallopt(M_MMAP_THRESHOLD, LARGE_ALLOCATION);
#endif

	if (!parse_arguments(argc, argv, &arguments))
	{
		log_line("usage: --link=FD --http=FD[,FD...] [--https=FD[,FD...]] [--parent=PID] [--no-sandbox]; "
				 "this program is started by the database server");
		return 2;
	}

	switch (sandbox_follow_parent(arguments.parent))
	{
		case SANDBOX_OK:
			break;
		case SANDBOX_ORPHANED:
			return 0;
		case SANDBOX_FAILED:
			log_line("could not prepare signals: %s", strerror(errno));
			return 1;
	}

	if (!gateway_init(&gateway, arguments.link_fd, arguments.listener_fds,
					  arguments.plain_count, arguments.listener_count))
		return 1;

	if (sandbox_enter() != SANDBOX_OK)
	{
		log_line("could not give up privileges: %s", strerror(errno));
		return 1;
	}
	if (!arguments.no_sandbox)
	{
		/* The library asks for the time zone, which is a file, with each answer. */
		tzset();
		if (sandbox_filter_calls() != SANDBOX_OK)
		{
			log_line("could not put the filter of system calls in force: %s "
					 "(banked_webhooks.gateway_sandbox = off does without it)", strerror(errno));
			return 1;
		}
		gateway.sandboxed = true;
	}
	return gateway_run(&gateway);
}

static bool
parse_arguments(int argc, char **argv, Arguments *arguments)
{
	static const struct option options[] = {
		{"link", required_argument, NULL, 'l'},
		{"http", required_argument, NULL, 'h'},
		{"https", required_argument, NULL, 's'},
		{"parent", required_argument, NULL, 'p'},
		{"no-sandbox", no_argument, NULL, 'n'},
		{NULL, 0, NULL, 0}
	};
	const char *rest;
	int			option;

	arguments->link_fd = -1;
	arguments->listener_count = 0;
	arguments->plain_count = 0;
	arguments->parent = 0;
	arguments->no_sandbox = false;

	opterr = 0;
	while ((option = getopt_long(argc, argv, "", options, NULL)) != -1)
	{
		switch (option)
		{
			case 'l':
				if (!parse_number(optarg, '\0', &arguments->link_fd, &rest))
					return false;
				break;
			case 'h':
				/* HTTP comes first, once. */
				if (arguments->listener_count > 0 || !parse_listeners(optarg, arguments))
					return false;
				arguments->plain_count = arguments->listener_count;
				break;
			case 's':
				if (arguments->plain_count == 0 || !parse_listeners(optarg, arguments))
					return false;
				break;
			case 'p':
				if (!parse_number(optarg, '\0', &arguments->parent, &rest))
					return false;
				break;
			case 'n':
				arguments->no_sandbox = true;
				break;
			default:
				return false;
		}
	}
	return optind == argc && arguments->link_fd >= 0 && arguments->plain_count > 0;
}

static bool
parse_listeners(const char *text, Arguments *arguments)
{
	do
	{
		if (arguments->listener_count == LISTENERS_MAX ||
			!parse_number(text, ',', &arguments->listener_fds[arguments->listener_count], &text))
			return false;
		arguments->listener_count++;
	} while (text != NULL);
	return true;
}

/*
 * parse_number reads a decimal number that ends with the text or with the
 * given character; rest is then what follows, or null.
 */
static bool
parse_number(const char *text, char end, int *number, const char **rest)
{
	char	   *stop;
	long		value;

	if (*text < '0' || *text > '9')
		return false;
	errno = 0;
	value = strtol(text, &stop, 10);
	if (errno != 0 || value > INT_MAX || (*stop != '\0' && *stop != end))
		return false;
	*number = (int) value;
	*rest = *stop != '\0' ? stop + 1 : NULL;
	return true;
}
