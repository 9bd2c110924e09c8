/*
 * control.c
 *	  The SQL functions about handlers, as far as SQL cannot do them.
 *
 * Who may subscribe, alter or retry depends on the role that calls, and the
 * tables belong to the owner of the extension.  Inside a SECURITY DEFINER
 * function nothing tells the role that called it, and a role that is passed as
 * an argument could be anybody's.  So the functions that users call are this
 * one: it takes note of the role, rises, and calls the function of the same name
 * with an underscore, which nobody else may execute.
 */
#include "postgres.h"

#include "access/htup_details.h"
#include "catalog/pg_proc.h"
#include "catalog/pg_type.h"
#include "executor/spi.h"
#include "fmgr.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/lsyscache.h"
#include "utils/syscache.h"

#include "receiver/statements.h"
#include "watch.h"

PG_FUNCTION_INFO_V1(banked_webhooks_as_owner);
PG_FUNCTION_INFO_V1(banked_webhooks_jobs_ready);

/* The statement that calls the inner function; argtypes get the types of its arguments. */
static char *
inner_call(Oid function, int nargs, Oid *argtypes)
{
	HeapTuple	tuple = SearchSysCache1(PROCOID, ObjectIdGetDatum(function));
	Form_pg_proc form;
	StringInfoData sql;

	if (!HeapTupleIsValid(tuple))
		elog(ERROR, "cache lookup failed for function %u", function);
	form = (Form_pg_proc) GETSTRUCT(tuple);
	initStringInfo(&sql);
	appendStringInfo(&sql, "SELECT banked.%s($1", quote_identifier(psprintf("_%s", NameStr(form->proname))));
	argtypes[0] = OIDOID;
	for (int i = 0; i < nargs; i++)
	{
		argtypes[i + 1] = form->proargtypes.values[i];
		appendStringInfo(&sql, ", $%d", i + 2);
	}
	appendStringInfoChar(&sql, ')');
	ReleaseSysCache(tuple);
	return sql.data;
}

/*
 * NAME(...) calls banked._NAME(role that called, ...) as the extension's
 * owner, and returns what that returns.
 */
Datum
banked_webhooks_as_owner(PG_FUNCTION_ARGS)
{
	int			nargs = PG_NARGS();
	Oid			argtypes[FUNC_MAX_ARGS];
	Datum		values[FUNC_MAX_ARGS];
	char		nulls[FUNC_MAX_ARGS];
	char	   *sql = inner_call(fcinfo->flinfo->fn_oid, nargs, argtypes);
	Identity	before;
	Datum		result;
	bool		isnull;

	values[0] = ObjectIdGetDatum(GetUserId());
	nulls[0] = ' ';
	for (int i = 0; i < nargs; i++)
	{
		values[i + 1] = PG_ARGISNULL(i) ? (Datum) 0 : PG_GETARG_DATUM(i);
		nulls[i + 1] = PG_ARGISNULL(i) ? 'n' : ' ';
	}

	SPI_connect();
	statements_become_owner(&before);
	if (SPI_execute_with_args(sql, nargs + 1, argtypes, values, nulls, false, 1) != SPI_OK_SELECT ||
		SPI_processed != 1)
		elog(ERROR, "could not call a function of the extension");
	/* void, or a number that is passed by value */
	result = statements_result(0, 1, &isnull);
	statements_restore(&before);
	SPI_finish();

	if (isnull || get_func_rettype(fcinfo->flinfo->fn_oid) == VOIDOID)
		PG_RETURN_VOID();
	PG_RETURN_DATUM(result);
}

/* _jobs_ready(handler text, count bigint) */
Datum
banked_webhooks_jobs_ready(PG_FUNCTION_ARGS)
{
	watch_jobs_ready(text_to_cstring(PG_GETARG_TEXT_PP(0)), (int) Min(PG_GETARG_INT64(1), PG_INT32_MAX));
	PG_RETURN_VOID();
}
