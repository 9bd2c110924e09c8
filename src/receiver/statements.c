/*
 * statements.c
 *	  Fixed SQL statements, and the roles that they run as.
 *
 * A receiver is connected as banked_webhooks_worker and inserts events as
 * that role, so that users' triggers run with its rights and have nothing
 * higher to go back to.  Keys, quarantine and the rest are out of that role's
 * reach: for those statements the session rises to the extension's owner and
 * comes down before any code of a user can run.  The functions receive() and
 * reprocess() go the other way, from whatever role called them to the worker,
 * under restrictions that keep triggers from leaving something behind that
 * would run as the caller (see watch.c too).
 *
 * The texts qualify every name, operators included where the session's own
 * search_path is in force: a search_path cannot redirect them.
 */
#include "postgres.h"

#include "access/genam.h"
#include "access/htup_details.h"
#include "access/table.h"
#include "catalog/namespace.h"
#include "catalog/pg_extension.h"
#include "catalog/pg_type.h"
#include "commands/extension.h"
#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/acl.h"
#include "utils/array.h"
#include "utils/builtins.h"
#include "utils/fmgroids.h"
#include "utils/guc.h"
#include "utils/lsyscache.h"
#include "utils/memutils.h"
#include "utils/queryenvironment.h"
#include "utils/tuplestore.h"

#include "settings.h"
#include "statements.h"

#define EXTENSION_NAME "banked_webhooks"
#define SCHEMA_NAME "banked"

int
statements_run(Statement *statement, Datum *values, const char *nulls, long max_rows)
{
	int			result;

	if (statement->plan == NULL)
	{
		SPIPlanPtr	plan = SPI_prepare(statement->sql, statement->nargs, statement->argtypes);

		if (plan == NULL)
			elog(ERROR, "could not prepare a statement: %s", SPI_result_code_string(SPI_result));
		if (SPI_keepplan(plan) != 0)
			elog(ERROR, "could not keep the plan of a statement");
		statement->plan = plan;
	}
	result = SPI_execute_plan(statement->plan, values, nulls, false, max_rows);
	if (result < 0)
		elog(ERROR, "could not execute a statement: %s", SPI_result_code_string(result));
	return result;
}

Datum
statements_result(uint64 row, int column, bool *isnull)
{
	return SPI_getbinval(SPI_tuptable->vals[row], SPI_tuptable->tupdesc, column, isnull);
}

char **
statements_texts(Datum array, int *count)
{
	Datum	   *elements;
	bool	   *nulls;
	int			element_count;
	char	  **texts;

	deconstruct_array(DatumGetArrayTypeP(array), TEXTOID, -1, false, TYPALIGN_INT,
					  &elements, &nulls, &element_count);
	texts = palloc(sizeof(char *) * Max(element_count, 1));
	*count = 0;
	for (int i = 0; i < element_count; i++)
	{
		if (!nulls[i])
			texts[(*count)++] = TextDatumGetCString(elements[i]);
	}
	return texts;
}

void
statements_register_rows(char *name, TupleDesc tupdesc, Tuplestorestate *store, int rows)
{
	EphemeralNamedRelation relation = palloc0(sizeof(EphemeralNamedRelationData));

	(void) SPI_unregister_relation(name);
	relation->md.name = name;
	relation->md.reliddesc = InvalidOid;
	relation->md.tupdesc = tupdesc;
	relation->md.enrtype = ENR_NAMED_TUPLESTORE;
	relation->md.enrtuples = rows;
	relation->reldata = store;
	if (SPI_register_relation(relation) < 0)
		elog(ERROR, "could not register the rows of a batch");
}

static Oid
extension_owner(void)
{
	Oid			extension = get_extension_oid(EXTENSION_NAME, true);
	Oid			owner = InvalidOid;
	Relation	relation;
	SysScanDesc scan;
	ScanKeyData key;
	HeapTuple	tuple;

	if (OidIsValid(extension))
	{
		relation = table_open(ExtensionRelationId, AccessShareLock);
		ScanKeyInit(&key, Anum_pg_extension_oid, BTEqualStrategyNumber, F_OIDEQ,
					ObjectIdGetDatum(extension));
		scan = systable_beginscan(relation, ExtensionOidIndexId, true, NULL, 1, &key);
		tuple = systable_getnext(scan);
		if (HeapTupleIsValid(tuple))
			owner = ((Form_pg_extension) GETSTRUCT(tuple))->extowner;
		systable_endscan(scan);
		table_close(relation, AccessShareLock);
	}
	if (!OidIsValid(owner))
		ereport(ERROR,
				(errcode(ERRCODE_OBJECT_NOT_IN_PREREQUISITE_STATE),
				 errmsg("extension \"%s\" does not exist in this database", EXTENSION_NAME)));
	return owner;
}

/* A session that is the role already, as a receiver is the worker, stays as it is. */
static void
become(Identity *before, Oid role, int restriction)
{
	GetUserIdAndSecContext(&before->user, &before->security_context);
	before->guc_level = NewGUCNestLevel();
	if (role != before->user)
		SetUserIdAndSecContext(role, before->security_context | SECURITY_LOCAL_USERID_CHANGE |
							   restriction);
}

void
statements_set(const char *name, const char *value)
{
	(void) set_config_option(name, value, PGC_SUSET, PGC_S_SESSION, GUC_ACTION_SAVE, true, 0, false);
}

void
statements_become_owner(Identity *before)
{
	become(before, extension_owner(), 0);
	statements_set("search_path", "pg_catalog, pg_temp");
	/* Where statistics lag, an estimate may be high enough to compile a statement that finds one row. */
	statements_set("jit", "off");
}

void
statements_become_worker(Identity *before)
{
	/* In the session of another role nothing may be left that runs later, as that role. */
	become(before, get_role_oid(WORKER_ROLE, false), SECURITY_RESTRICTED_OPERATION);
}

void
statements_restore(const Identity *before)
{
	AtEOXact_GUC(false, before->guc_level);
	SetUserIdAndSecContext(before->user, before->security_context);
}

bool
statements_extension_exists(void)
{
	return OidIsValid(get_extension_oid(EXTENSION_NAME, true));
}

Oid
statements_relation(const char *name)
{
	Oid			schema = get_namespace_oid(SCHEMA_NAME, true);

	return OidIsValid(schema) ? get_relname_relid(name, schema) : InvalidOid;
}

TupleDesc
statements_describe_rows(const StatementColumn *columns, int count)
{
	MemoryContext old = MemoryContextSwitchTo(TopMemoryContext);
	TupleDesc	descriptor = CreateTemplateTupleDesc(count);

	for (int i = 0; i < count; i++)
		TupleDescInitEntry(descriptor, i + 1, columns[i].name, columns[i].type, -1, 0);
	MemoryContextSwitchTo(old);
	return descriptor;
}

Datum
statements_clipped_text(const char *text, int size)
{
	return PointerGetDatum(cstring_to_text_with_len(text, pg_mbcliplen(text, strlen(text), size)));
}

Datum
statements_bytes(const void *bytes, Size length)
{
	bytea	   *result = palloc(length + VARHDRSZ);

	SET_VARSIZE(result, length + VARHDRSZ);
	memcpy(VARDATA(result), bytes, length);
	return PointerGetDatum(result);
}

void
statements_copy_digest(uint8 digest[SIGNATURE_SIZE], Datum value, bool isnull)
{
	memset(digest, 0, SIGNATURE_SIZE);
	if (!isnull)
	{
		bytea	   *bytes = DatumGetByteaPP(value);

		memcpy(digest, VARDATA_ANY(bytes), Min(VARSIZE_ANY_EXHDR(bytes), SIGNATURE_SIZE));
	}
}
