/*
 * tls_files.h
 *	  The certificate and the private key of HTTPS, as files.
 */
#ifndef BW_TLS_FILES_H
#define BW_TLS_FILES_H

#include "postgres.h"

#include "frame.h"

/*
 * Reads the files that the settings name.  When they cannot be used, says in
 * one line of the log which one and why, and keeps what was read before.
 * Returns true when there is another pair now than before.
 */
extern bool tls_files_load(void);

/* The port to serve HTTPS on: that of the setting, or 0 while there is no pair to serve it with. */
extern int	tls_files_port(void);

/* Appends the pair, which must be there, as a frame. */
extern bool tls_files_put(FrameBuffer *buffer);

#endif							/* BW_TLS_FILES_H */
