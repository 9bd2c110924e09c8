/*
 * settings.c
 *	  Every setting of the extension, in alphabetical order.
 *
 * A setting that says where a database is served is PGC_SUSET, so that it can
 * be set per database (ALTER DATABASE ... SET); the receiver that serves the
 * database starts again when it changes.  So is one for calls of Banked's API,
 * which are made in the callers' sessions: a database or a session may have its
 * own.  All others are PGC_SIGHUP and take effect at the next reload.
 */
#include "postgres.h"

#include <limits.h>

#include "utils/guc.h"
#include "utils/varlena.h"

#include "settings.h"

int			bw_answer_timeout = 30000;
char	   *bw_api_base_url = NULL;
char	   *bw_api_ca_file = NULL;
int			bw_api_connect_timeout = 10000;
char	   *bw_api_proxy = NULL;
int			bw_api_timeout = 30000;
int			bw_api_version = API_VERSION_2;
char	   *bw_databases = NULL;
bool		bw_gateway_sandbox = true;
int			bw_handler_workers = 4;
int			bw_job_retention = 7 * 24 * 3600;
char	   *bw_listen_addresses = NULL;
char	   *bw_master_key_file = NULL;
int			bw_max_batch = 1000;
int			bw_max_batch_size = 8 * 1024;
int			bw_max_body_size = 4 * 1024;
int			bw_max_connections = 1000;
int			bw_max_header_size = 16;
int			bw_max_pending = 1000;
int			bw_max_pending_size = 64 * 1024;
bool		bw_notify = true;
int			bw_port = 8080;
int			bw_receivers = 1;
int			bw_rejection_log_limit = 10000;
int			bw_request_timeout = 10000;
int			bw_store_lock_timeout = 2000;
int			bw_store_timeout = 10000;
char	   *bw_tls_cert_file = NULL;
char	   *bw_tls_key_file = NULL;
int			bw_tls_port = 0;

static const struct config_enum_entry api_versions[] = {
	{"v2", API_VERSION_2, false},
	{"v3", API_VERSION_3, false},
	{"2", API_VERSION_2, true},
	{"3", API_VERSION_3, true},
	{NULL, 0, false}
};

/* Accepts what can be put before the path of a call: https, a host, nothing that hides something. */
static bool
check_base_url(char **newval, void **extra, GucSource source)
{
	if (settings_base_url_is_valid(*newval))
		return true;
	GUC_check_errdetail("It must begin with https:// and hold neither a user, a query nor a fragment.");
	return false;
}

bool
settings_base_url_is_valid(const char *url)
{
	static const char scheme[] = "https://";

	if (strncmp(url, scheme, sizeof(scheme) - 1) != 0 || url[sizeof(scheme) - 1] == '\0' ||
		url[sizeof(scheme) - 1] == '/')
		return false;
	for (const char *p = url; *p != '\0'; p++)
	{
		if (*p <= ' ' || *p > '~' || strchr("@?#\\", *p) != NULL)
			return false;
	}
	return true;
}

/* Accepts a list of names, each perhaps quoted, as search_path does. */
static bool
check_name_list(char **newval, void **extra, GucSource source)
{
	char	   *copy = pstrdup(*newval);
	List	   *names;
	bool		valid = SplitIdentifierString(copy, ',', &names);

	if (!valid)
		GUC_check_errdetail("List syntax is invalid.");
	list_free(names);
	pfree(copy);
	return valid;
}

/* Accepts a list of host names and addresses, as listen_addresses does, that fits into a slot. */
static bool
check_address_list(char **newval, void **extra, GucSource source)
{
	char	   *copy = pstrdup(*newval);
	List	   *addresses;
	bool		valid = SplitGUCList(copy, ',', &addresses);

	if (!valid)
		GUC_check_errdetail("List syntax is invalid.");
	else if (strlen(*newval) >= MAX_ADDRESS_LIST)
	{
		GUC_check_errdetail("The list is longer than %d bytes.", MAX_ADDRESS_LIST - 1);
		valid = false;
	}
	list_free(addresses);
	pfree(copy);
	return valid;
}

static void
define_int(const char *name, const char *description, const char *detail, int *variable,
		   int min, int max, GucContext context, int flags)
{
	DefineCustomIntVariable(name, description, detail, variable, *variable, min, max,
							context, flags, NULL, NULL, NULL);
}

/*
 * Defines the settings.  Called once in every process that loads the library.
 */
void
settings_init(void)
{
	define_int("banked_webhooks.answer_timeout",
			   "Time after which a delivery that is not yet stored is answered with 503.",
			   "The delivery may still be stored; when it comes again it is a repetition.",
			   &bw_answer_timeout, 1000, 600000, PGC_SIGHUP, GUC_UNIT_MS);
	DefineCustomStringVariable("banked_webhooks.api_base_url",
							   "Where Banked's API is.",
							   "Credentials may name another place.",
							   &bw_api_base_url, "https://api.banked.com", PGC_SUSET, 0,
							   check_base_url, NULL, NULL);
	DefineCustomStringVariable("banked_webhooks.api_ca_file",
							   "File with the certificates that calls of Banked's API trust.",
							   "Empty: those that the system trusts.",
							   &bw_api_ca_file, "", PGC_SUSET, 0, NULL, NULL, NULL);
	define_int("banked_webhooks.api_connect_timeout",
			   "Time in which a connection to Banked's API must come about.",
			   NULL,
			   &bw_api_connect_timeout, 100, 600000, PGC_SUSET, GUC_UNIT_MS);
	DefineCustomStringVariable("banked_webhooks.api_proxy",
							   "Proxy for calls of Banked's API, as http://host:port.",
							   "Empty: none. The environment's proxies are not used.",
							   &bw_api_proxy, "", PGC_SUSET, GUC_SUPERUSER_ONLY, NULL, NULL, NULL);
	define_int("banked_webhooks.api_timeout",
			   "Time in which a call of Banked's API must be answered.",
			   NULL,
			   &bw_api_timeout, 100, 600000, PGC_SUSET, GUC_UNIT_MS);
	DefineCustomEnumVariable("banked_webhooks.api_version",
							 "Version of Banked's API.",
							 "Credentials may name another one.",
							 &bw_api_version, API_VERSION_2, api_versions, PGC_SUSET, 0,
							 NULL, NULL, NULL);
	DefineCustomStringVariable("banked_webhooks.databases",
							   "Databases that receive webhooks, a list separated by commas.",
							   "The extension must be created in each. Nothing is served while the list is empty.",
							   &bw_databases, "", PGC_SIGHUP, GUC_LIST_INPUT,
							   check_name_list, NULL, NULL);
	DefineCustomBoolVariable("banked_webhooks.gateway_sandbox",
							 "Forbids the gateway every system call but those that serving takes.",
							 "When it is changed, gateways are replaced.",
							 &bw_gateway_sandbox, true, PGC_SIGHUP, 0, NULL, NULL, NULL);
	define_int("banked_webhooks.handler_workers",
			   "Most processes that run handlers, for all databases together; 0 runs none.",
			   "Each takes one of max_worker_processes.",
			   &bw_handler_workers, 0, 64, PGC_SIGHUP, 0);
	define_int("banked_webhooks.job_retention",
			   "Time for which jobs that are done stay in banked.jobs.",
			   "-1 keeps them for ever.",
			   &bw_job_retention, -1, INT_MAX, PGC_SIGHUP, GUC_UNIT_S);
	DefineCustomStringVariable("banked_webhooks.listen_addresses",
							   "Addresses to listen on for webhooks, a list separated by commas.",
							   "\"*\" stands for all addresses. Can be set per database.",
							   &bw_listen_addresses, "127.0.0.1", PGC_SUSET, GUC_LIST_INPUT,
							   check_address_list, NULL, NULL);
	DefineCustomStringVariable("banked_webhooks.master_key_file",
							   "File with the key under which signing keys and API credentials are encrypted.",
							   "It holds 32 bytes, or 64 hexadecimal digits, and is as private as a TLS key. Without it they are stored as they are.",
							   &bw_master_key_file, "", PGC_SIGHUP, GUC_SUPERUSER_ONLY,
							   NULL, NULL, NULL);
	define_int("banked_webhooks.max_batch",
			   "Most deliveries that are stored in one transaction.",
			   NULL,
			   &bw_max_batch, 1, 10000, PGC_SIGHUP, 0);
	define_int("banked_webhooks.max_batch_size",
			   "Most bytes of deliveries that are stored in one transaction.",
			   "A single larger delivery is a batch of its own.",
			   &bw_max_batch_size, 64, 256 * 1024, PGC_SIGHUP, GUC_UNIT_KB);
	define_int("banked_webhooks.max_body_size",
			   "Largest body of a delivery; a larger one is answered with 413.",
			   NULL,
			   &bw_max_body_size, 1, 64 * 1024, PGC_SIGHUP, GUC_UNIT_KB);
	define_int("banked_webhooks.max_connections",
			   "Most HTTP connections of one receiver.",
			   "Further ones are answered with 503, or wait.",
			   &bw_max_connections, 1, 60000, PGC_SIGHUP, 0);
	define_int("banked_webhooks.max_header_size",
			   "Largest request line with headers; larger ones are answered with 414 or 431.",
			   NULL,
			   &bw_max_header_size, 2, 1024, PGC_SIGHUP, GUC_UNIT_KB);
	define_int("banked_webhooks.max_pending",
			   "Most deliveries of one receiver that wait to be stored; further ones are answered with 503.",
			   NULL,
			   &bw_max_pending, 1, 60000, PGC_SIGHUP, 0);
	define_int("banked_webhooks.max_pending_size",
			   "Most bytes of bodies that one receiver holds; further deliveries are answered with 503.",
			   "At least one body of max_body_size always fits.",
			   &bw_max_pending_size, 64, 4 * 1024 * 1024 - 1, PGC_SIGHUP, GUC_UNIT_KB);
	DefineCustomBoolVariable("banked_webhooks.notify",
							 "Sends a notification on channel banked_webhooks for each event.",
							 NULL,
							 &bw_notify, true, PGC_SIGHUP, 0, NULL, NULL, NULL);
	define_int("banked_webhooks.port",
			   "TCP port to listen on for webhooks.",
			   "Can be set per database.",
			   &bw_port, 1, 65535, PGC_SUSET, 0);
	define_int("banked_webhooks.receivers",
			   "Receivers for each database; they share the port.",
			   NULL,
			   &bw_receivers, 1, 16, PGC_SIGHUP, 0);
	define_int("banked_webhooks.rejection_log_limit",
			   "Most rows that are kept in banked.rejections; 0 keeps none.",
			   NULL,
			   &bw_rejection_log_limit, 0, 1000000, PGC_SIGHUP, 0);
	define_int("banked_webhooks.request_timeout",
			   "Time in which a request must be complete, or its connection is closed.",
			   "An idle connection is closed after the same time.",
			   &bw_request_timeout, 100, 600000, PGC_SIGHUP, GUC_UNIT_MS);
	define_int("banked_webhooks.store_lock_timeout",
			   "Longest wait for a lock while a batch is stored.",
			   "Deliveries that still cannot be stored are answered with 503.",
			   &bw_store_lock_timeout, 10, 60000, PGC_SIGHUP, GUC_UNIT_MS);
	define_int("banked_webhooks.store_timeout",
			   "Longest time in which a batch is stored.",
			   "A delivery that takes longer by itself, without waiting for a lock, goes to banked.quarantine.",
			   &bw_store_timeout, 100, 600000, PGC_SIGHUP, GUC_UNIT_MS);
	DefineCustomStringVariable("banked_webhooks.tls_cert_file",
							   "File with the certificate for HTTPS, and those that lead to its authority, in PEM format.",
							   "It is read again at every reload. A relative path starts at the data directory.",
							   &bw_tls_cert_file, "", PGC_SIGHUP, 0, NULL, NULL, NULL);
	DefineCustomStringVariable("banked_webhooks.tls_key_file",
							   "File with the private key of the certificate for HTTPS, in PEM format.",
							   "Its permissions must be those that ssl_key_file requires.",
							   &bw_tls_key_file, "", PGC_SIGHUP, 0, NULL, NULL, NULL);
	define_int("banked_webhooks.tls_port",
			   "TCP port to listen on for webhooks by HTTPS; 0 does not.",
			   "Can be set per database. It is served beside the port for HTTP.",
			   &bw_tls_port, 0, 65535, PGC_SUSET, 0);

	MarkGUCPrefixReserved("banked_webhooks");
}
