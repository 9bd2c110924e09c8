/*
 * private_file.h
 *	  Files that hold a key which nobody else may know.
 */
#ifndef BW_PRIVATE_FILE_H
#define BW_PRIVATE_FILE_H

#include "postgres.h"

#include <sys/stat.h>

/*
 * Is a file with this status as private as the server demands of its own key
 * (ssl_key_file)?  Returns null, or what is wrong: a clause about "it", with
 * static storage.
 */
extern const char *private_file_problem(const struct stat *status);

#endif							/* BW_PRIVATE_FILE_H */
