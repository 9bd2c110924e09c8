/*
 * banked_webhooks.c
 *	  What happens when the library is loaded, and nothing else.
 *
 * In shared_preload_libraries the library asks for shared memory, registers
 * the launcher and installs its hooks.  Loaded later, by the first call of one
 * of its functions, it only defines its settings and installs the hooks that
 * those functions rely on: they work, but no webhook is received.
 */
#include "postgres.h"

#include "fmgr.h"
#include "miscadmin.h"

#include "counters.h"
#include "launcher.h"
#include "settings.h"
#include "watch.h"

PG_MODULE_MAGIC;

void		_PG_init(void);

void
_PG_init(void)
{
	settings_init();
	watch_init();

	if (!process_shared_preload_libraries_in_progress)
		return;

	counters_init();
	launcher_init();
}
