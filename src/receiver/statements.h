/*
 * statements.h
 *	  Fixed SQL statements, and the roles that they run as.
 */
#ifndef BW_STATEMENTS_H
#define BW_STATEMENTS_H

#include "postgres.h"

#include "executor/spi.h"

#include "signature.h"

#define STATEMENT_MAX_ARGS 16

/* A statement that is planned once per session.  Everything but plan is constant. */
typedef struct Statement
{
	const char *sql;
	int			nargs;
	Oid			argtypes[STATEMENT_MAX_ARGS];
	SPIPlanPtr	plan;
} Statement;

/* The state before statements_become_owner or statements_become_worker. */
typedef struct Identity
{
	Oid			user;
	int			security_context;
	int			guc_level;
} Identity;

/*
 * Runs a statement in the caller's SPI connection, planning it the first time.
 * nulls is as in SPI_execute_plan, null when no argument is.  Returns SPI's
 * result code, never an error code: it raises XX000 instead.
 */
extern int	statements_run(Statement *statement, Datum *values, const char *nulls, long max_rows);

/* A column, from 1, of a row of the last result, from 0. */
extern Datum statements_result(uint64 row, int column, bool *isnull);

/* The elements of a text[] that are not null, palloc'ed. */
extern char **statements_texts(Datum array, int *count);

/* Makes rows visible, under a name, to the statements of the current SPI connection. */
extern void statements_register_rows(char *name, TupleDesc tupdesc, Tuplestorestate *store, int rows);

/*
 * Rises to the owner of the extension, for the extension's own statements
 * alone: no code of a user may run before statements_restore.  search_path is
 * pg_catalog meanwhile.  After an error the end of the (sub)transaction restores
 * what was before.  Raises 55000 when the extension does not exist.
 */
extern void statements_become_owner(Identity *before);

/*
 * Becomes banked_webhooks_worker, as which events are inserted.  Settings that
 * a user's trigger changes are undone by statements_restore.  In a session that
 * is not the worker's own, deferred triggers and what else outlives a statement
 * are refused meanwhile (42501).  Raises 42704 when the role does not exist.
 */
extern void statements_become_worker(Identity *before);

/* Sets a setting until statements_restore, or the end of another level of settings. */
extern void statements_set(const char *name, const char *value);

/* Goes back to what was before. */
extern void statements_restore(const Identity *before);

/* A column of rows that are handed to a statement. */
typedef struct StatementColumn
{
	const char *name;
	Oid			type;
} StatementColumn;

/* The descriptor of such rows, which lives as long as the session. */
extern TupleDesc statements_describe_rows(const StatementColumn *columns, int count);

/* A text of at most so many bytes of another one, palloc'ed. */
extern Datum statements_clipped_text(const char *text, int size);

/* A bytea of some bytes, palloc'ed. */
extern Datum statements_bytes(const void *bytes, Size length);

/* Copies a digest out of a bytea; zeros where it is null or too short. */
extern void statements_copy_digest(uint8 digest[SIGNATURE_SIZE], Datum value, bool isnull);

/* Does the extension exist in this database?  Needs a transaction. */
extern bool statements_extension_exists(void);

/* The OID of a relation of schema banked, InvalidOid when there is none. */
extern Oid	statements_relation(const char *name);

#endif							/* BW_STATEMENTS_H */
