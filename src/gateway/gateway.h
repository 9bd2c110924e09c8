/*
 * gateway.h
 *	  The event loop, and what the frames from the receiver do.
 */
#ifndef BW_GATEWAY_GATEWAY_H
#define BW_GATEWAY_GATEWAY_H

#include <stdbool.h>
#include <stdint.h>

#include "../frame.h"
#include "http.h"
#include "link.h"
#include "listeners.h"

/* Milliseconds that a drain may take. */
#define DRAIN_TIMEOUT 500

/* Starts as zeros. */
typedef struct Gateway
{
	int			epoll_fd;
	Link		link;
	Listeners	listeners;
	Http		http;

	bool		sandboxed;		/* the filter of system calls is in force */
	bool		have_config;	/* nothing is accepted before both were received */
	bool		have_paths;
	bool		status_due;		/* a ping is to be answered */
	int64_t		drain_until;	/* monotonic milliseconds; meaningful while http.draining */

	bool		finished;
	int			exit_status;
} Gateway;

/*
 * Takes over the link and the listening sockets, of which those from
 * plain_count on are for HTTPS; false, after logging why, when it cannot.
 */
extern bool gateway_init(Gateway *gateway, int link_fd, const int *listener_fds,
						 unsigned plain_count, unsigned count);

/* Serves until the receiver ends it; returns the exit status. */
extern int	gateway_run(Gateway *gateway);

#endif							/* BW_GATEWAY_GATEWAY_H */
