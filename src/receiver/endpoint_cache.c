/*
 * endpoint_cache.c
 *	  The endpoints of this database and their keys, as of the current transaction.
 *
 * A receiver looks up an endpoint for each delivery, so each session keeps
 * all of them in memory.  Triggers on the tables send a relcache invalidation
 * of banked.endpoints at commit; PostgreSQL hands it to every session at its next
 * transaction's start, at the latest.  A delivery is therefore never judged by
 * endpoints or keys older than the start of its batch, and a transaction that
 * changes them sees its own changes.
 *
 * Secrets are read as the extension's owner and live in this process's memory
 * alone, as keyed contexts of OpenSSL's, until the next reading.
 */
#include "postgres.h"

#include <openssl/crypto.h>

#include "utils/builtins.h"
#include "utils/hsearch.h"
#include "utils/lsyscache.h"
#include "utils/timestamp.h"

#include "endpoint_cache.h"
#include "secrets.h"
#include "settings.h"
#include "statements.h"
#include "table_cache.h"

/*
 * Constraints may have been dropped, or not be there yet: one odd row must do
 * the other endpoints no harm.  A path that no request can have is left out.
 */
#define PATH_IS_USABLE "octet_length(e.path) BETWEEN 1 AND " CppAsString2(FRAME_MAX_PATH)

static Statement read_endpoints = {
	.sql = "SELECT e.endpoint_id, e.path, e.events, e.live, e.state, "
	"(extract(epoch FROM least(greatest(e.timestamp_tolerance, '0'), '10 years')) * 1000000)::int8 "
	"FROM banked.endpoints e WHERE e.endpoint_id IS NOT NULL AND " PATH_IS_USABLE
};

static Statement read_keys = {
	.sql = "SELECT e.path, k.key_id, coalesce(k.valid_until, 'infinity'), s.secret "
	"FROM banked.signing_keys k JOIN banked.endpoints e USING (endpoint_id) "
	"LEFT JOIN banked.key_secrets s USING (key_id) WHERE k.key_id IS NOT NULL AND " PATH_IS_USABLE
	" ORDER BY k.valid_from"
};

static HTAB *endpoints = NULL;
static bool has_unreadable_keys = false;
static bool has_sealed_keys = false;
static uint8 master_id[SECRET_KEY_ID_SIZE]; /* of the master key that opened those */

static void reload(void);

static TableCache cache = {.table = "endpoints", .reload = reload};

static void
forget_everything(void)
{
	if (endpoints != NULL)
	{
		HASH_SEQ_STATUS status;
		Endpoint   *endpoint;

		hash_seq_init(&status, endpoints);
		while ((endpoint = hash_seq_search(&status)) != NULL)
		{
			for (EndpointKey *key = endpoint->keys; key != NULL; key = key->next)
			{
				signature_key_free(key->key);
				key->key = NULL;
			}
		}
	}
	endpoints = NULL;
	table_cache_clear(&cache);
}

static EndpointState
state_from_text(const char *text)
{
	if (strcmp(text, "active") == 0)
		return ENDPOINT_ACTIVE;
	if (strcmp(text, "retired") == 0)
		return ENDPOINT_RETIRED;
	return ENDPOINT_DISABLED;
}

static void
load_endpoints(void)
{
	(void) statements_run(&read_endpoints, NULL, NULL, 0);
	for (uint64 row = 0; row < SPI_processed; row++)
	{
		MemoryContext old;
		Endpoint   *endpoint;
		char		path[FRAME_MAX_PATH + 1] = {0};
		bool		isnull;
		bool		found;
		Datum		value;

		strlcpy(path, TextDatumGetCString(statements_result(row, 2, &isnull)), sizeof(path));
		endpoint = hash_search(endpoints, path, HASH_ENTER, &found);
		memset((char *) endpoint + sizeof(endpoint->path), 0,
			   sizeof(Endpoint) - sizeof(endpoint->path));

		endpoint->endpoint_id = *DatumGetUUIDP(statements_result(row, 1, &isnull));
		value = statements_result(row, 3, &isnull);
		endpoint->all_events = isnull;
		if (!isnull)
		{
			old = MemoryContextSwitchTo(cache.context);
			endpoint->events = statements_texts(value, &endpoint->event_count);
			MemoryContextSwitchTo(old);
		}
		value = statements_result(row, 4, &isnull);
		endpoint->live = isnull ? -1 : DatumGetBool(value);
		value = statements_result(row, 5, &isnull);
		endpoint->state = isnull ? ENDPOINT_DISABLED : state_from_text(TextDatumGetCString(value));
		value = statements_result(row, 6, &isnull);
		endpoint->timestamp_tolerance = isnull ? 0 : DatumGetInt64(value);
	}
}

/*
 * Opens the secret of a key.  One that does not open is left out, with a line
 * in the log: deliveries signed with it are answered with 503.  master is read
 * when it is first needed.
 */
static void
open_key(EndpointKey *key, bytea *blob, MasterKey *master, MasterKeyStatus *master_status)
{
	char	   *context = secrets_key_context(&key->key_id);
	uint8		secret[SECRET_MAX_SIZE];
	Size		length;
	SecretStatus status;

	status = secrets_open(*master_status == MASTER_KEY_READ ? master : NULL, context, blob, secret, &length);
	if (status == SECRET_NO_MASTER_KEY && *master_status == MASTER_KEY_NOT_SET)
	{
		*master_status = secrets_read_master_key(bw_master_key_file, master, LOG);
		if (*master_status == MASTER_KEY_NOT_SET)
			*master_status = MASTER_KEY_UNUSABLE;
		status = secrets_open(*master_status == MASTER_KEY_READ ? master : NULL, context, blob, secret, &length);
	}
	if (status == SECRET_OK)
	{
		key->key = signature_key_create(secret, length);
		OPENSSL_cleanse(secret, length);
		return;
	}
	key->unreadable = true;
	has_unreadable_keys = true;
	ereport(LOG,
			(errmsg("signing key %s %s; deliveries signed with it are answered with 503",
					DatumGetCString(DirectFunctionCall1(uuid_out, UUIDPGetDatum(&key->key_id))),
					secrets_status_text(status))));
}

static void
load_keys(void)
{
	MasterKey	master;
	MasterKeyStatus master_status = MASTER_KEY_NOT_SET;

	(void) statements_run(&read_keys, NULL, NULL, 0);
	for (uint64 row = 0; row < SPI_processed; row++)
	{
		Endpoint   *endpoint;
		EndpointKey *key;
		char		path[FRAME_MAX_PATH + 1] = {0};
		bool		isnull;
		Datum		secret;

		strlcpy(path, TextDatumGetCString(statements_result(row, 1, &isnull)), sizeof(path));
		endpoint = hash_search(endpoints, path, HASH_FIND, NULL);
		if (endpoint == NULL)
			continue;			/* both statements saw one snapshot only by luck */

		key = MemoryContextAllocZero(cache.context, sizeof(EndpointKey));
		key->next = endpoint->keys;
		endpoint->keys = key;
		key->key_id = *DatumGetUUIDP(statements_result(row, 2, &isnull));
		key->valid_until = DatumGetTimestampTz(statements_result(row, 3, &isnull));
		secret = statements_result(row, 4, &isnull);
		if (!isnull)
		{
			bytea	   *blob = DatumGetByteaPP(secret);

			open_key(key, blob, &master, &master_status);
			/* A clear one: in the copy that SPI made for this session. */
			OPENSSL_cleanse(VARDATA_ANY(blob), VARSIZE_ANY_EXHDR(blob));
		}
	}
	has_sealed_keys = master_status == MASTER_KEY_READ;
	if (has_sealed_keys)
		memcpy(master_id, master.id, SECRET_KEY_ID_SIZE);
	secrets_forget(&master);
}

/*
 * Reads the tables.  Before the first endpoint they do not exist.  After DROP
 * EXTENSION this raises an error: the endpoints are there, but not their keys,
 * and nobody must be told that there is no such path.
 */
static void
reload(void)
{
	Identity	before;
	HASHCTL		control = {0};

	forget_everything();
	has_unreadable_keys = false;
	has_sealed_keys = false;
	control.keysize = FRAME_MAX_PATH + 1;
	control.entrysize = sizeof(Endpoint);
	control.hcxt = cache.context;
	endpoints = hash_create("banked_webhooks endpoints", 64, &control,
							HASH_ELEM | HASH_BLOBS | HASH_CONTEXT);

	if (!OidIsValid(cache.relation))
		return;

	SPI_connect();
	statements_become_owner(&before);
	load_endpoints();
	if (OidIsValid(statements_relation("signing_keys")))
		load_keys();
	statements_restore(&before);
	SPI_finish();
}

void
endpoint_cache_refresh(void)
{
	table_cache_refresh(&cache);
}

bool
endpoint_cache_is_current(void)
{
	return table_cache_is_current(&cache);
}

void
endpoint_cache_follow_settings(void)
{
	MasterKey	master;
	MasterKeyStatus status;

	if (has_unreadable_keys)
	{
		cache.current = false;
		return;
	}
	if (!has_sealed_keys)
		return;

	/* Keys that are open stay so.  That the next receiver could not open them is to be known before it has to. */
	status = secrets_read_master_key(bw_master_key_file, &master, LOG);
	if (status == MASTER_KEY_NOT_SET)
		ereport(LOG,
				(errmsg("signing keys are encrypted, and banked_webhooks.master_key_file is not set"),
				 errhint("The keys in use stay in use until they are read again.")));
	else if (status == MASTER_KEY_READ && memcmp(master.id, master_id, SECRET_KEY_ID_SIZE) != 0)
		ereport(LOG,
				(errmsg("signing keys are encrypted under another master key than that in \"%s\"", bw_master_key_file),
				 errhint("Run banked.rotate_master_key() with the file of the old one: the keys in use stay in use until they are read again.")));
	secrets_forget(&master);
}

uint64
endpoint_cache_version(void)
{
	return cache.version;
}

const Endpoint *
endpoint_cache_find(const char *path, Size length)
{
	char		key[FRAME_MAX_PATH + 1] = {0};

	if (endpoints == NULL || length > FRAME_MAX_PATH)
		return NULL;
	memcpy(key, path, length);
	return hash_search(endpoints, key, HASH_FIND, NULL);
}

const Endpoint *
endpoint_cache_find_id(const pg_uuid_t *endpoint_id)
{
	HASH_SEQ_STATUS status;
	Endpoint   *endpoint;

	if (endpoints == NULL)
		return NULL;
	hash_seq_init(&status, endpoints);
	while ((endpoint = hash_seq_search(&status)) != NULL)
	{
		if (memcmp(&endpoint->endpoint_id, endpoint_id, sizeof(pg_uuid_t)) == 0)
		{
			hash_seq_term(&status);
			return endpoint;
		}
	}
	return NULL;
}

/* Does a type match an entry of the filter: equal, or equal up to a final asterisk? */
static bool
filter_matches(const char *filter, const char *event_type)
{
	Size		length = strlen(filter);

	if (length > 0 && filter[length - 1] == '*')
		return strncmp(filter, event_type, length - 1) == 0;
	return strcmp(filter, event_type) == 0;
}

bool
event_type_matches(char **filters, int count, const char *event_type, bool bare_mandate)
{
	char	   *full = NULL;

	if (bare_mandate)
		full = psprintf("mandate_%s", event_type);
	for (int i = 0; i < count; i++)
	{
		if (filter_matches(filters[i], event_type) ||
			(full != NULL && filter_matches(filters[i], full)))
			return true;
	}
	return false;
}

bool
endpoint_wants(const Endpoint *endpoint, const char *event_type, bool bare_mandate)
{
	return endpoint->all_events ||
		event_type_matches(endpoint->events, endpoint->event_count, event_type, bare_mandate);
}

PathEntry *
endpoint_cache_paths(Size *count)
{
	HASH_SEQ_STATUS status;
	Endpoint   *endpoint;
	PathEntry  *paths;

	*count = 0;
	paths = palloc(sizeof(PathEntry) * (endpoints == NULL ? 1 : hash_get_num_entries(endpoints) + 1));
	if (endpoints == NULL)
		return paths;

	hash_seq_init(&status, endpoints);
	while ((endpoint = hash_seq_search(&status)) != NULL)
	{
		PathEntry  *entry = &paths[*count];

		if (endpoint->state == ENDPOINT_DISABLED)
			continue;
		entry->state = endpoint->state == ENDPOINT_RETIRED ? PATH_RETIRED : PATH_ACTIVE;
		entry->path = endpoint->path;
		entry->path_length = strlen(endpoint->path);
		(*count)++;
	}
	return paths;
}

void
endpoint_cache_invalidate(void)
{
	table_cache_invalidate(&cache);
}
