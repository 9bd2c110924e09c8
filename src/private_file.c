/*
 * private_file.c
 *	  Files that hold a key which nobody else may know.
 */
#include "postgres.h"

#include <unistd.h>

#include "private_file.h"

const char *
private_file_problem(const struct stat *status)
{
	if (!S_ISREG(status->st_mode))
		return "it is not a regular file";
	if (status->st_uid != geteuid() && status->st_uid != 0)
		return "it must be owned by the database user or root";
	if ((status->st_uid == geteuid() && (status->st_mode & (S_IRWXG | S_IRWXO)) != 0) ||
		(status->st_uid == 0 && (status->st_mode & (S_IWGRP | S_IXGRP | S_IRWXO)) != 0))
		return "it has group or world access (permissions must be u=rw (0600) or less if it is owned by the database user, or u=rw,g=r (0640) or less if it is owned by root)";
	return NULL;
}
