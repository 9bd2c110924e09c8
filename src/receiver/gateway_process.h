/*
 * gateway_process.h
 *	  The gateway as a child process of the receiver.
 */
#ifndef BW_GATEWAY_PROCESS_H
#define BW_GATEWAY_PROCESS_H

#include "postgres.h"

#include "datatype/timestamp.h"

#include "frame.h"
#include "listeners.h"

typedef struct Gateway
{
	pid_t		pid;			/* 0: none runs */
	int			link;			/* the socket to it, -1 when none runs */
	FrameBuffer in;
	FrameBuffer out;
	bool		secret_sent;	/* out may still hold bytes of a private key that were sent */
	bool		ready;			/* it has said hello */
	bool		sandbox;		/* it was asked to confine itself */
	TimestampTz started_at;
	TimestampTz heard_at;		/* of the newest frame */
	TimestampTz pinged_at;
	bool		ping_outstanding;
	int64		silence;		/* microseconds waited for the answer to the ping: waited, not merely passed */
	uint64		rejections_seen[REJECTION_COUNT];	/* of those counted so far */
	uint64		connections_seen;
	uint64		requests_seen;
} Gateway;

/* To be called once, before any other: the gateway is killed and reaped when this process ends. */
extern void gateway_init(Gateway *gateway);

/* Starts a gateway on the listening sockets; false, with a log line, when it cannot be started. */
extern bool gateway_start(Gateway *gateway, const Listeners *listeners);

/* Kills and reaps it; returns a palloc'ed description of how it ended. */
extern char *gateway_stop(Gateway *gateway);

#endif							/* BW_GATEWAY_PROCESS_H */
