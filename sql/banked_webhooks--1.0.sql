/*
 * banked_webhooks--1.0.sql
 *	  Roles, functions and the extension's own tables.
 *
 * History must outlive the extension, and pg_dump must carry the triggers and
 * indexes that users put on it, which it leaves out for members of an
 * extension.  So this script makes only what may go with DROP EXTENSION:
 * functions, views on functions, and the tables that hold signing keys and
 * the state of the service.  All other tables are made by create_tables(),
 * are members of nothing and depend on nothing here but for our triggers.
 *
 * Functions that raise privileges (SECURITY DEFINER) belong to the superuser
 * who created the extension.  Each fixes its search_path, and nothing that
 * they read or write can be made by anybody else.  Signing keys and bodies
 * appear in no message: they are checked here before they reach a statement
 * whose failure would print its row.  A plan made for the values of its
 * parameters shows them: to auto_explain's log, and by debug_print_plan, which
 * everybody may set, to the caller.  So functions that have a secret in a
 * variable, or pass it on, set plan_cache_mode = force_generic_plan.
 *
 * Names that begin with an underscore are for the extension's own use.
 */

-- complain if script is sourced in psql, rather than via CREATE EXTENSION
\echo Use "CREATE EXTENSION banked_webhooks" to load this file. \quit

-- What stands in a schema "banked" of before must not answer to an unqualified name below.
SET LOCAL search_path = pg_catalog, pg_temp;


--
-- Where the extension may be created
--

DO $check$
DECLARE
	stranger name;
BEGIN
	IF getdatabaseencoding() <> 'UTF8' THEN
		RAISE EXCEPTION USING
			ERRCODE = 'feature_not_supported',
			MESSAGE = format('banked_webhooks needs a database with encoding UTF8, and this one has %s', getdatabaseencoding()),
			DETAIL = 'Webhooks are JSON in UTF-8, and text from them is stored as it came.';
	END IF;

	SELECT r.rolname INTO stranger
	FROM pg_namespace AS n JOIN pg_roles AS r ON r.oid = n.nspowner
	WHERE n.nspname = 'banked' AND r.rolname <> current_user AND NOT r.rolsuper;
	IF FOUND THEN
		RAISE EXCEPTION USING
			ERRCODE = 'object_not_in_prerequisite_state',
			MESSAGE = format('schema "banked" belongs to role "%s"', stranger),
			DETAIL = 'The extension runs with the rights of a superuser in this schema, so nobody else may own it.',
			HINT = 'Rename the schema, or give it to the role that creates the extension.';
	END IF;

	SELECT coalesce(r.rolname, 'PUBLIC') INTO stranger
	FROM pg_namespace AS n
		CROSS JOIN aclexplode(n.nspacl) AS a
		LEFT JOIN pg_roles AS r ON r.oid = a.grantee
	WHERE n.nspname = 'banked' AND a.privilege_type = 'CREATE'
		AND r.rolname IS DISTINCT FROM current_user AND r.rolsuper IS NOT TRUE
		AND n.xmin <> (SELECT e.xmin FROM pg_extension AS e WHERE e.extname = 'banked_webhooks')
	LIMIT 1;
	IF FOUND THEN
		RAISE EXCEPTION USING
			ERRCODE = 'object_not_in_prerequisite_state',
			MESSAGE = format('role "%s" may create objects in schema "banked"', stranger),
			HINT = 'REVOKE CREATE ON SCHEMA banked from it.';
	END IF;
END
$check$;

CREATE FUNCTION banked._check_owners()
RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	foreign_object record;
BEGIN
	SELECT o.kind, o.name, r.rolname AS owner INTO foreign_object
	FROM (SELECT 'function' AS kind, p.oid::regprocedure::text AS name, p.proowner AS owner
		  FROM pg_proc AS p WHERE p.pronamespace = 'banked'::regnamespace
		  UNION ALL
		  SELECT 'operator', o.oid::regoperator::text, o.oprowner
		  FROM pg_operator AS o WHERE o.oprnamespace = 'banked'::regnamespace
		  UNION ALL
		  SELECT 'type', t.oid::regtype::text, t.typowner
		  FROM pg_type AS t WHERE t.typnamespace = 'banked'::regnamespace AND t.typrelid = 0 AND t.typelem = 0
		  UNION ALL
		  SELECT 'relation', c.oid::regclass::text, c.relowner
		  FROM pg_class AS c WHERE c.relnamespace = 'banked'::regnamespace AND c.relkind NOT IN ('i', 'I')) AS o
		JOIN pg_roles AS r ON r.oid = o.owner
	WHERE NOT r.rolsuper
	ORDER BY 1, 2
	LIMIT 1;
	IF FOUND THEN
		RAISE EXCEPTION USING
			ERRCODE = 'object_not_in_prerequisite_state',
			MESSAGE = format('%s %s belongs to role "%s", which is no superuser', foreign_object.kind, foreign_object.name, foreign_object.owner),
			DETAIL = 'The extension works with the rights of a superuser in schema "banked", and would run what its owner puts there.',
			HINT = 'Drop it, or give it to the owner of the extension.';
	END IF;
END
$$;
COMMENT ON FUNCTION banked._check_owners() IS 'raises 55000 when something in schema banked belongs to somebody who is no superuser';

SELECT banked._check_owners();


-- The schema outlives the extension, and whoever made it may have described it.
DO $describe$
BEGIN
	IF obj_description('banked'::regnamespace, 'pg_namespace') IS NULL THEN
		COMMENT ON SCHEMA banked IS 'Banked''s webhooks: their history, and the extension that receives them';
	END IF;
END
$describe$;


--
-- Roles
--
-- Roles belong to the whole cluster: another database may have made them
-- already, or does so at this moment.  They outlive the extension, since
-- privileges on the history are granted to them.
--

DO $roles$
DECLARE
	wanted record;
	present record;
	problems text;
BEGIN
	FOR wanted IN
		SELECT w.name, w.is_worker, w.options, w.description
		FROM (VALUES
			('banked_webhooks_reader', false, 'NOLOGIN',
			 'may read the history of Banked''s webhooks, and no secrets'),
			('banked_webhooks_admin', false, 'NOLOGIN',
			 'may configure the receiving of Banked''s webhooks'),
			('banked_webhooks_worker', true, 'LOGIN NOINHERIT CONNECTION LIMIT 0 PASSWORD NULL',
			 'stores Banked''s webhooks; users'' triggers on them run as this role; no client can log in as it')
		) AS w (name, is_worker, options, description)
	LOOP
		IF NOT EXISTS (SELECT FROM pg_roles WHERE rolname = wanted.name) THEN
			BEGIN
				EXECUTE format('CREATE ROLE %I %s', wanted.name, wanted.options);
				EXECUTE format('COMMENT ON ROLE %I IS %L', wanted.name, wanted.description);
			EXCEPTION
				WHEN duplicate_object OR unique_violation THEN
					NULL;		-- made meanwhile for another database
			END;
		END IF;

		SELECT * INTO STRICT present FROM pg_authid WHERE rolname = wanted.name;
		problems := concat_ws(', ',
			CASE WHEN present.rolsuper THEN 'SUPERUSER' END,
			CASE WHEN present.rolcreaterole THEN 'CREATEROLE' END,
			CASE WHEN present.rolcreatedb THEN 'CREATEDB' END,
			CASE WHEN present.rolreplication THEN 'REPLICATION' END,
			CASE WHEN present.rolbypassrls THEN 'BYPASSRLS' END,
			CASE WHEN present.rolcanlogin AND NOT wanted.is_worker THEN 'LOGIN' END);
		IF wanted.is_worker THEN
			problems := concat_ws(', ', nullif(problems, ''),
				CASE WHEN NOT present.rolcanlogin THEN 'NOLOGIN' END,
				CASE WHEN present.rolinherit THEN 'INHERIT' END,
				CASE WHEN present.rolconnlimit <> 0 THEN 'a connection limit other than 0' END,
				CASE WHEN present.rolpassword IS NOT NULL THEN 'a password' END,
				CASE WHEN EXISTS (SELECT FROM pg_auth_members AS m WHERE m.roleid = present.oid) THEN 'members' END,
				CASE WHEN EXISTS (SELECT FROM pg_auth_members AS m WHERE m.member = present.oid) THEN 'memberships in other roles' END);
		END IF;
		IF problems <> '' THEN
			RAISE EXCEPTION USING
				ERRCODE = 'object_not_in_prerequisite_state',
				MESSAGE = format('role "%s" exists with attributes that it must not have', wanted.name),
				DETAIL = format('It has: %s.', problems),
				HINT = format('Take them away (ALTER ROLE, REVOKE), or drop the role: CREATE EXTENSION makes it with these options: %s.', wanted.options);
		END IF;
	END LOOP;
END
$roles$;


--
-- The extension's own tables.  They go with it, and pg_dump leaves them out,
-- but for encrypted secrets.
--

CREATE TABLE banked.key_secrets (
	key_id uuid PRIMARY KEY,
	secret bytea NOT NULL CHECK (octet_length(secret) > 0)
);
COMMENT ON TABLE banked.key_secrets IS
	'the signing keys themselves, for the owner alone; what else is known of a key stands in signing_keys';
COMMENT ON COLUMN banked.key_secrets.key_id IS 'the key in signing_keys';
COMMENT ON COLUMN banked.key_secrets.secret IS
	'a byte 0 and the key as the byte string that signs; or a byte 1 and what banked_webhooks.master_key_file''s key makes of it';

-- Encrypted secrets are dumped, clear ones are not.
SELECT pg_extension_config_dump('banked.key_secrets', 'WHERE get_byte(secret, 0) = 1');

CREATE TABLE banked.api_credentials (
	name text COLLATE "C" PRIMARY KEY,
	auth text NOT NULL CHECK (auth IN ('basic', 'oauth')),
	scope text,
	base_url text,
	api_version text CHECK (api_version IN ('v2', 'v3')),
	secret bytea NOT NULL CHECK (octet_length(secret) > 0),
	changed_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE banked.api_credentials IS
	'how to call Banked''s API, for the owner alone; changed by set_api_credentials()';
COMMENT ON COLUMN banked.api_credentials.name IS 'what the functions argument credentials says';
COMMENT ON COLUMN banked.api_credentials.auth IS 'basic: with each call; oauth: for a token, which is used until shortly before it expires';
COMMENT ON COLUMN banked.api_credentials.scope IS 'of the token; null: Banked''s default';
COMMENT ON COLUMN banked.api_credentials.base_url IS 'null: banked_webhooks.api_base_url';
COMMENT ON COLUMN banked.api_credentials.api_version IS 'null: banked_webhooks.api_version';
COMMENT ON COLUMN banked.api_credentials.secret IS 'API key and secret key, as key_secrets.secret holds a signing key';
COMMENT ON COLUMN banked.api_credentials.changed_at IS 'when set_api_credentials() last stored them';

-- A second call in the same SELECT would fail.
SELECT pg_extension_config_dump('banked.api_credentials', 'WHERE get_byte(secret, 0) = 1');

CREATE TABLE banked.service_state (
	singleton boolean PRIMARY KEY DEFAULT true CHECK (singleton),
	paused boolean NOT NULL,
	restored boolean NOT NULL DEFAULT false,
	floor_seq bigint NOT NULL DEFAULT 0,
	changed_at timestamptz NOT NULL DEFAULT now()
);
COMMENT ON TABLE banked.service_state IS 'one row: whether this database receives webhooks';
COMMENT ON COLUMN banked.service_state.singleton IS 'always true: there is one row';
COMMENT ON COLUMN banked.service_state.paused IS 'no receiver runs until resume()';
COMMENT ON COLUMN banked.service_state.restored IS
	'the tables come from a dump, and nobody has called resume() yet: handlers will be paused then';
COMMENT ON COLUMN banked.service_state.floor_seq IS
	'all rows of the history up to this seq are final, whatever their stored_by says: it may come from another cluster';
COMMENT ON COLUMN banked.service_state.changed_at IS 'when pause() or resume() last changed it';

CREATE FUNCTION banked._table_names()
RETURNS text[]
LANGUAGE sql IMMUTABLE
BEGIN ATOMIC
	SELECT ARRAY['endpoints', 'signing_keys', 'published_webhooks', 'events', 'event_revisions',
				 'quarantine', 'rejections', 'audit_log',
				 'handlers', 'jobs', 'job_attempts'];
END;
COMMENT ON FUNCTION banked._table_names() IS 'the tables that create_tables() makes';

CREATE FUNCTION banked._relation_names()
RETURNS text[]
LANGUAGE sql IMMUTABLE
BEGIN ATOMIC
	SELECT banked._table_names() || ARRAY['events_seq_seq', 'quarantine_quarantine_id_seq', 'history',
										  'jobs_job_id_seq', 'handler_status', 'event_jobs', 'failed_attempts'];
END;
COMMENT ON FUNCTION banked._relation_names() IS 'the same with their sequences and the view on them';

/*
 * A dump brings the schema first, then CREATE EXTENSION, then the tables.
 * Webhooks that arrived in between would collide with the rows to come, so a
 * service whose schema was there before this command starts paused, unless
 * its tables are there too: then the extension was only dropped for a while.
 *
 * Before this command means: the schema's row was not written by this
 * transaction (its subtransactions have ids of their own, which follow the
 * transaction's), or, for a dump restored in a single transaction, the
 * command has a SCHEMA clause, as pg_dump writes it; that clause demands that
 * the schema exists.
 */
DO $state$
DECLARE
	own_xid bigint := pg_current_xact_id()::text::bigint;
	xids_ahead bigint;
	schema_is_new boolean := false;
	tables_exist boolean := EXISTS (SELECT FROM unnest(banked._table_names()) AS t (name)
									WHERE to_regclass('banked.' || t.name) IS NOT NULL);
	starts_paused boolean;
BEGIN
	SELECT (n.xmin::text::bigint - own_xid) & 4294967295 INTO STRICT xids_ahead
	FROM pg_namespace AS n WHERE n.nspname = 'banked';
	IF xids_ahead < 2147483648 THEN
		BEGIN
			schema_is_new := pg_xact_status((own_xid + xids_ahead)::text::xid8) = 'in progress';
		EXCEPTION
			WHEN invalid_parameter_value THEN
				NULL;			-- not assigned yet, so what was read is an old row's xid of before the last wraparound
		END;
	END IF;
	IF current_query() ~* '\mcreate\s+extension\s+(if\s+not\s+exists\s+)?"?banked_webhooks"?\s+(with\s+)?schema\M' THEN
		schema_is_new := false;
	END IF;

	starts_paused := NOT schema_is_new AND NOT tables_exist;
	INSERT INTO banked.service_state (paused, restored) VALUES (starts_paused, starts_paused);
	IF starts_paused THEN
		RAISE WARNING USING
			MESSAGE = 'banked_webhooks starts paused, since schema "banked" existed before the extension',
			HINT = 'This is meant for the restore of a dump. Run SELECT banked.resume() when everything is in place.';
	END IF;
END
$state$;


--
-- Functions in C
--

CREATE FUNCTION banked.sign(body bytea, signing_key text, at timestamptz DEFAULT now())
RETURNS text
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'banked_webhooks_sign';
COMMENT ON FUNCTION banked.sign(bytea, text, timestamptz) IS
	'the header banked-signature for a body: <unix seconds>.<HMAC-SHA256 in hexadecimal>; the key is used as the byte string that it is; 22023: time before 1970 or key empty';

CREATE FUNCTION banked.verify_signature(header text, body bytea, signing_key text)
RETURNS boolean
LANGUAGE c IMMUTABLE STRICT PARALLEL SAFE
AS 'MODULE_PATHNAME', 'banked_webhooks_verify_signature';
COMMENT ON FUNCTION banked.verify_signature(text, bytea, text) IS
	'whether a header banked-signature is well-formed and belongs to a body under a key; the age of its time is not looked at; 22023: key empty';

CREATE FUNCTION banked.receive(path text, signature text, body bytea, received_at timestamptz DEFAULT now(),
							   OUT status int, OUT outcome text, OUT event_id text, OUT event_type text)
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'banked_webhooks_receive';
COMMENT ON FUNCTION banked.receive(text, text, bytea, timestamptz) IS
	'receives a delivery in this transaction, without HTTP: path of the endpoint, value of the header banked-signature, body, time of arrival (the signature''s time is compared with it); returns the HTTP status that the sender should get and stored, repetition, changed, recurrence, quarantined, unwanted, rejected or unavailable; 22023: path, body or received_at is null, or received_at infinite';

CREATE FUNCTION banked.reprocess(quarantine_id bigint, event_id text DEFAULT NULL, event_type text DEFAULT NULL,
								 OUT status int, OUT outcome text, OUT event_id text, OUT event_type text)
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'banked_webhooks_reprocess';
COMMENT ON FUNCTION banked.reprocess(bigint, text, text) IS
	'tries once more to make an event of a row of quarantine, which is deleted if that succeeds; event_id and event_type are used where the body has none; returns what receive() returns; 22023: quarantine_id is null; 42704: no such row';

CREATE FUNCTION banked.stats()
RETURNS TABLE (metric text, labels jsonb, value numeric)
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'banked_webhooks_stats';
COMMENT ON FUNCTION banked.stats() IS
	'what the receivers and handlers of this database did since the server started; labels tell what a value belongs to; 55000: banked_webhooks is not in shared_preload_libraries';

-- Views for people on stats().  They raise what it raises.
CREATE VIEW banked.receivers AS
SELECT (s.labels ->> 'receiver')::int AS receiver,
	   nullif(max(s.value) FILTER (WHERE s.metric = 'receiver_pid'), 0)::int AS receiver_pid,
	   nullif(max(s.value) FILTER (WHERE s.metric = 'gateway_pid'), 0)::int AS gateway_pid,
	   max(s.labels ->> 'addresses') FILTER (WHERE s.metric = 'listening' AND s.value = 1) AS addresses,
	   nullif(max(s.value) FILTER (WHERE s.metric = 'port'), 0)::int AS port,
	   nullif(max(s.value) FILTER (WHERE s.metric = 'tls_port'), 0)::int AS tls_port,
	   to_timestamp((max(s.value) FILTER (WHERE s.metric = 'listening_since'))::float8) AS listening_since,
	   (max(s.value) FILTER (WHERE s.metric = 'gateway_sandboxed')) = 1 AS gateway_sandboxed,
	   max(s.value) FILTER (WHERE s.metric = 'connections')::bigint AS connections,
	   max(s.value) FILTER (WHERE s.metric = 'pending')::bigint AS pending,
	   max(s.value) FILTER (WHERE s.metric = 'batches')::bigint AS batches,
	   round(max(s.value) FILTER (WHERE s.metric = 'batch_mean'), 1) AS batch_mean,
	   round(1000 * max(s.value) FILTER (WHERE s.metric = 'commit_seconds')
			 / nullif(max(s.value) FILTER (WHERE s.metric = 'commits'), 0), 3) AS commit_mean_ms,
	   max(s.value) FILTER (WHERE s.metric = 'gateway_restarts')::bigint AS gateway_restarts
FROM banked.stats() AS s
WHERE s.labels ? 'receiver'
GROUP BY 1;
COMMENT ON VIEW banked.receivers IS
	'the receivers of this database: processes, where they listen and since when, what they hold now, and their batches since the server started; 55000: banked_webhooks is not in shared_preload_libraries';
COMMENT ON COLUMN banked.receivers.receiver IS 'number of the receiver, from 0';
COMMENT ON COLUMN banked.receivers.receiver_pid IS 'its process; null while none runs';
COMMENT ON COLUMN banked.receivers.gateway_pid IS 'the process that speaks HTTP for it';
COMMENT ON COLUMN banked.receivers.addresses IS 'where it listens; null while it does not';
COMMENT ON COLUMN banked.receivers.port IS 'for HTTP';
COMMENT ON COLUMN banked.receivers.tls_port IS 'for HTTPS; null when it is off';
COMMENT ON COLUMN banked.receivers.listening_since IS 'when it began to listen';
COMMENT ON COLUMN banked.receivers.gateway_sandboxed IS 'whether the filter of system calls is in force';
COMMENT ON COLUMN banked.receivers.connections IS 'open connections';
COMMENT ON COLUMN banked.receivers.pending IS 'deliveries that wait to be stored';
COMMENT ON COLUMN banked.receivers.batches IS 'how often waiting deliveries were taken to be stored together';
COMMENT ON COLUMN banked.receivers.batch_mean IS 'how many they were on the average';
COMMENT ON COLUMN banked.receivers.commit_mean_ms IS 'what a commit took on the average, in milliseconds';
COMMENT ON COLUMN banked.receivers.gateway_restarts IS 'gateways that were replaced';

CREATE VIEW banked.delivery_counts AS
SELECT s.metric AS kind, coalesce(s.labels ->> 'outcome', s.labels ->> 'reason') AS name, sum(s.value)::bigint AS count
FROM banked.stats() AS s
WHERE s.metric IN ('deliveries', 'rejections')
GROUP BY 1, 2
HAVING sum(s.value) > 0;
COMMENT ON VIEW banked.delivery_counts IS
	'what became of deliveries (by outcome) and why requests were rejected (by reason), counted over all receivers of this database since the server started; 55000: banked_webhooks is not in shared_preload_libraries';
COMMENT ON COLUMN banked.delivery_counts.kind IS 'deliveries or rejections';
COMMENT ON COLUMN banked.delivery_counts.name IS 'outcome of a delivery, as of receive(), or reason of a rejection';
COMMENT ON COLUMN banked.delivery_counts.count IS 'how many';

CREATE VIEW banked.signing_key_use AS
SELECT (s.labels ->> 'key_id')::uuid AS key_id,
	   sum(s.value) FILTER (WHERE s.metric = 'key_deliveries')::bigint AS deliveries,
	   to_timestamp((max(s.value) FILTER (WHERE s.metric = 'key_last_used'))::float8) AS last_used
FROM banked.stats() AS s
WHERE s.metric IN ('key_deliveries', 'key_last_used')
GROUP BY 1;
COMMENT ON VIEW banked.signing_key_use IS
	'authentic deliveries under each signing key since the server started, and when the last one arrived: an old key that is not used any more can be revoked; the 32 keys of each receiver that were used last; 55000: banked_webhooks is not in shared_preload_libraries';
COMMENT ON COLUMN banked.signing_key_use.key_id IS 'the key in signing_keys';
COMMENT ON COLUMN banked.signing_key_use.deliveries IS 'authentic ones under it';
COMMENT ON COLUMN banked.signing_key_use.last_used IS 'when the last of them arrived';

CREATE FUNCTION banked._generate_signing_key()
RETURNS text
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'banked_webhooks_generate_key';
COMMENT ON FUNCTION banked._generate_signing_key() IS '32 bytes from the strong random source, in hexadecimal';

CREATE FUNCTION banked._seal(secret text, context text)
RETURNS bytea
LANGUAGE c VOLATILE STRICT
AS 'MODULE_PATHNAME', 'banked_webhooks_seal';
COMMENT ON FUNCTION banked._seal(text, text) IS
	'what a table holds of a secret: encrypted under the master key, or clear when none is set; context names row and column and is needed to open it; F0000: the master key''s file is unusable; 58P01: there is none';

CREATE FUNCTION banked._reseal(blob bytea, context text, old_key_file text)
RETURNS bytea
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'banked_webhooks_reseal';
COMMENT ON FUNCTION banked._reseal(bytea, text, text) IS
	'the same secret under the present master key, null when it is so already; 55000: no master key is set, or the secret is encrypted under neither it nor the old one; XX001: damaged';

CREATE FUNCTION banked._is_secret(blob bytea, context text, secret text)
RETURNS boolean
LANGUAGE c VOLATILE STRICT
AS 'MODULE_PATHNAME', 'banked_webhooks_is_secret';
COMMENT ON FUNCTION banked._is_secret(bytea, text, text) IS
	'whether a row of key_secrets or api_credentials holds this; false when it cannot be opened';

CREATE FUNCTION banked._sign_with(secret bytea, context text, body bytea, at bigint)
RETURNS text
LANGUAGE c VOLATILE STRICT
AS 'MODULE_PATHNAME', 'banked_webhooks_sign_with';
COMMENT ON FUNCTION banked._sign_with(bytea, text, bytea, bigint) IS
	'the header banked-signature under a key of key_secrets, for a Unix time; 55000: the master key is missing or another one; XX001: the secret is damaged';

CREATE FUNCTION banked._verify_with(secret bytea, context text, header text, body bytea)
RETURNS boolean
LANGUAGE c VOLATILE STRICT
AS 'MODULE_PATHNAME', 'banked_webhooks_verify_with';
COMMENT ON FUNCTION banked._verify_with(bytea, text, text, bytea) IS
	'verify_signature() under a key of key_secrets; raises what _sign_with() raises';

CREATE FUNCTION banked._key_context(key_id uuid)
RETURNS text
LANGUAGE c IMMUTABLE STRICT
AS 'MODULE_PATHNAME', 'banked_webhooks_key_context';
COMMENT ON FUNCTION banked._key_context(uuid) IS 'names a signing key''s row for the functions that seal and open';

CREATE FUNCTION banked._credentials_context(name text)
RETURNS text
LANGUAGE c IMMUTABLE STRICT
AS 'MODULE_PATHNAME', 'banked_webhooks_credentials_context';
COMMENT ON FUNCTION banked._credentials_context(text) IS 'the same for a row of api_credentials';

CREATE FUNCTION banked._api_call(credentials text, method text, path text, body jsonb, key_id uuid, signing_key text)
RETURNS jsonb
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'banked_webhooks_api_call';
COMMENT ON FUNCTION banked._api_call(text, text, text, jsonb, uuid, text) IS
	'one call of Banked''s API: the answer, null when it is empty; the path follows the version; the key of key_id, or signing_key, becomes signature_key of the body';

CREATE FUNCTION banked._post_delivery(url text, signature text, body bytea,
									  OUT status int, OUT answer text, OUT elapsed interval)
LANGUAGE c VOLATILE STRICT
AS 'MODULE_PATHNAME', 'banked_webhooks_post_delivery';
COMMENT ON FUNCTION banked._post_delivery(text, text, bytea) IS 'sends a delivery as Banked would';

CREATE FUNCTION banked._without_secrets(answer jsonb)
RETURNS jsonb
LANGUAGE c IMMUTABLE STRICT
AS 'MODULE_PATHNAME', 'banked_webhooks_without_secrets';
COMMENT ON FUNCTION banked._without_secrets(jsonb) IS
	'an answer of Banked''s without the members that are, by their names, keys and secrets, however deep they are in it';

CREATE FUNCTION banked._check_base_url(url text)
RETURNS boolean
LANGUAGE c IMMUTABLE STRICT
AS 'MODULE_PATHNAME', 'banked_webhooks_check_base_url';
COMMENT ON FUNCTION banked._check_base_url(text) IS 'whether a text is an https URL without user, query and fragment';

CREATE FUNCTION banked._is_own_transaction(xid)
RETURNS boolean
LANGUAGE c STABLE STRICT
AS 'MODULE_PATHNAME', 'banked_webhooks_is_own_transaction';
COMMENT ON FUNCTION banked._is_own_transaction(xid) IS
	'whether this transaction has written a row with this xmin, so that it is not committed yet';

CREATE FUNCTION banked._read_key_file(path text)
RETURNS text
LANGUAGE c VOLATILE STRICT
AS 'MODULE_PATHNAME', 'banked_webhooks_read_key_file';
COMMENT ON FUNCTION banked._read_key_file(text) IS
	'the key in a file of the server, without a final newline; the caller must be allowed to read server files (pg_read_server_files), else 42501; 58P01: no such file; 42809: it is no regular file; 22023: it holds no text';

CREATE FUNCTION banked._service_warning()
RETURNS text
LANGUAGE c STABLE
AS 'MODULE_PATHNAME', 'banked_webhooks_service_warning';
COMMENT ON FUNCTION banked._service_warning() IS
	'null when this database is going to be served, else a sentence that says what to set';

CREATE FUNCTION banked._config_changed()
RETURNS trigger
LANGUAGE c
AS 'MODULE_PATHNAME', 'banked_webhooks_config_changed';
COMMENT ON FUNCTION banked._config_changed() IS
	'makes every session read endpoints, keys and state anew, and wakes the receivers, once the transaction has committed';

CREATE FUNCTION banked._notify()
RETURNS trigger
LANGUAGE c
AS 'MODULE_PATHNAME', 'banked_webhooks_notify';
COMMENT ON FUNCTION banked._notify() IS 'notifies channel banked_webhooks of new rows';

CREATE TRIGGER banked_webhooks_config_changed
	AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON banked.key_secrets
	FOR EACH STATEMENT EXECUTE FUNCTION banked._config_changed();
ALTER TABLE banked.key_secrets ENABLE ALWAYS TRIGGER banked_webhooks_config_changed;
COMMENT ON TRIGGER banked_webhooks_config_changed ON banked.key_secrets IS
	'lets the receivers know';

CREATE TRIGGER banked_webhooks_config_changed
	AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON banked.service_state
	FOR EACH STATEMENT EXECUTE FUNCTION banked._config_changed();
ALTER TABLE banked.service_state ENABLE ALWAYS TRIGGER banked_webhooks_config_changed;
COMMENT ON TRIGGER banked_webhooks_config_changed ON banked.service_state IS
	'lets the receivers know';


--
-- Tables of configuration and history.  Each function makes what is missing.
--

-- The bounds that register_endpoint() checks: the owner may change a row without it.
-- Without a backslash they mean the same to every session and in every dump.
-- An odd row of before can be disabled and retired all the same.
CREATE FUNCTION banked._missing_endpoint_checks()
RETURNS TABLE (name name, condition text)
LANGUAGE sql STABLE
BEGIN ATOMIC
	SELECT c.name, c.condition
	FROM (VALUES
		('endpoints_path_check',
		 $c$state <> 'active' OR octet_length(path) <= 255 AND path ~ '^/' AND path !~ '[^!-~]|[?#%]|//|/[.]{1,2}(/|$)' AND strpos(path, chr(92)) = 0$c$),
		('endpoints_timestamp_tolerance_check',
		 $c$state <> 'active' OR timestamp_tolerance BETWEEN '1 microsecond' AND '10 years'$c$)
	) AS c (name, condition)
	WHERE NOT EXISTS (SELECT FROM pg_constraint AS p
					  WHERE p.conrelid = to_regclass('banked.endpoints') AND p.conname = c.name);
END;
COMMENT ON FUNCTION banked._missing_endpoint_checks() IS 'those constraints of endpoints that are not there';

/*
 * Rows of before that violate a constraint do not keep it from those to come:
 * they stay as they are, and the receivers make of them what they can.
 */
CREATE FUNCTION banked._create_endpoint_checks()
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	missing record;
	violating text;
BEGIN
	FOR missing IN SELECT c.name, c.condition FROM banked._missing_endpoint_checks() AS c LOOP
		EXECUTE format('SELECT string_agg(quote_nullable(path), %L ORDER BY path) FROM banked.endpoints WHERE NOT (%s)',
					   ', ', missing.condition) INTO violating;
		BEGIN
			EXECUTE format('ALTER TABLE banked.endpoints ADD CONSTRAINT %I CHECK (%s)%s', missing.name, missing.condition,
						   CASE WHEN violating IS NOT NULL THEN ' NOT VALID' END);
		EXCEPTION
			-- A query that reads the table is calling, and the next call makes it; or an old snapshot does not show it.
			WHEN object_in_use OR duplicate_object THEN
				CONTINUE;
		END;
		IF violating IS NOT NULL THEN
			RAISE WARNING USING
				MESSAGE = format('rows of banked.endpoints violate constraint "%s"', missing.name),
				DETAIL = format('Their paths are: %s.', violating),
				HINT = format('Correct them, then run ALTER TABLE banked.endpoints VALIDATE CONSTRAINT %I.', missing.name);
		END IF;
	END LOOP;
END
$$;
COMMENT ON FUNCTION banked._create_endpoint_checks() IS 'makes the constraints of endpoints that are missing';

CREATE FUNCTION banked._create_endpoint_tables()
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	IF to_regclass('banked.endpoints') IS NULL THEN
		CREATE TABLE banked.endpoints (
			endpoint_id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
			path text COLLATE "C" NOT NULL UNIQUE,
			events text[],
			timestamp_tolerance interval NOT NULL,
			live boolean,
			description text,
			state text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'disabled', 'retired')),
			created_at timestamptz NOT NULL DEFAULT now()
		);
		COMMENT ON TABLE banked.endpoints IS
			'paths that receive webhooks; changed by register_endpoint() and its like';
		COMMENT ON COLUMN banked.endpoints.endpoint_id IS 'what keys, events and quarantine refer to';
		COMMENT ON COLUMN banked.endpoints.path IS 'path of the URL, compared byte by byte';
		COMMENT ON COLUMN banked.endpoints.events IS
			'event types to store, a final * stands for any rest; null: all';
		COMMENT ON COLUMN banked.endpoints.timestamp_tolerance IS
			'how old the time of a signature may be; it must outlast Banked''s last retry, about 21 days after the first try';
		COMMENT ON COLUMN banked.endpoints.live IS
			'true: live events alone, false: test events alone; others go to quarantine; null: both';
		COMMENT ON COLUMN banked.endpoints.description IS 'for people';
		COMMENT ON COLUMN banked.endpoints.state IS
			'active; disabled (answers 404); retired (answers 410 for ever, which ends Banked''s retries)';
		COMMENT ON COLUMN banked.endpoints.created_at IS 'when it was registered';
	END IF;
	PERFORM banked._create_endpoint_checks();

	IF to_regclass('banked.signing_keys') IS NULL THEN
		CREATE TABLE banked.signing_keys (
			key_id uuid PRIMARY KEY DEFAULT gen_random_uuid(),
			endpoint_id uuid NOT NULL REFERENCES banked.endpoints,
			valid_from timestamptz NOT NULL DEFAULT now(),
			valid_until timestamptz
		);
		COMMENT ON TABLE banked.signing_keys IS
			'what is known of the signing keys of endpoints, but not the keys';
		COMMENT ON COLUMN banked.signing_keys.key_id IS 'what events and quarantine refer to; not derived from the key';
		COMMENT ON COLUMN banked.signing_keys.endpoint_id IS 'the endpoint whose deliveries it signs';
		COMMENT ON COLUMN banked.signing_keys.valid_from IS 'when it was set';
		COMMENT ON COLUMN banked.signing_keys.valid_until IS
			'deliveries that arrive later are not accepted under this key; null: no end';
	END IF;
END
$$;
COMMENT ON FUNCTION banked._create_endpoint_tables() IS 'makes endpoints and signing_keys where they are missing';

CREATE FUNCTION banked._comment_event_columns(relation regclass)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	commented record;
BEGIN
	FOR commented IN
		SELECT c.name, c.description
		FROM (VALUES
			('event_id', 'in v2 the id of the resource, in v3 the id of the event'),
			('event_type', 'as sent: payment_sent, mandate_active, ...; with event_id the identity of an event'),
			('endpoint_id', 'the endpoint that received it'),
			('resource_id', 'the payment, mandate, payout, refund or batch payment'),
			('resource_type', 'payment, mandate, payout, refund, batch_payment, ...'),
			('state', 'of the resource, in lower case'),
			('live', 'null when the body does not say'),
			('test', 'made by this extension for a test'),
			('api_version', 'generation of the body: v2, v3'),
			('payload', 'the body as jsonb'),
			('body', 'the exact bytes that were signed; null once erased'),
			('body_sha256', 'SHA-256 of the bytes that were signed'),
			('signature', 'the HMAC-SHA256 that came with them'),
			('signed_at', 'the time that was signed with them'),
			('key_id', 'the key of signing_keys under which the signature was found right'),
			('received_at', 'arrival of the delivery; strictly increasing per receiver'),
			('seq', 'one sequence for events and revisions, with gaps; rows become visible in another order: read on with events_since(), not with seq > max(seq)'),
			('stored_by', 'no transaction older than this one can add a lower seq; see events_since()'),
			('revision', '0 in events, then 1, 2, ... in event_revisions')
		) AS c (name, description)
	LOOP
		EXECUTE format('COMMENT ON COLUMN %s.%I IS %L', relation, commented.name, commented.description);
	END LOOP;
END
$$;
COMMENT ON FUNCTION banked._comment_event_columns(regclass) IS 'describes the columns that events, event_revisions and history share';

-- events_since() counts on each seq being greater than all that were taken before.
CREATE FUNCTION banked._seq_is_fit()
RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	RETURN NOT EXISTS (SELECT FROM pg_sequence AS s WHERE s.seqrelid = to_regclass('banked.events_seq_seq')
					   AND (s.seqcache <> 1 OR s.seqincrement < 1 OR s.seqcycle));
END
$$;
COMMENT ON FUNCTION banked._seq_is_fit() IS 'whether the sequence of events and revisions ascends, without a cache';

-- The default is missing at first, and after DROP TABLE events CASCADE.
CREATE FUNCTION banked._revisions_take_seq()
RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	RETURN EXISTS (SELECT FROM pg_attribute AS a
				   WHERE a.attrelid = to_regclass('banked.event_revisions') AND a.attname = 'seq' AND a.atthasdef);
END
$$;
COMMENT ON FUNCTION banked._revisions_take_seq() IS 'whether event_revisions has a default for seq';

CREATE FUNCTION banked._create_event_tables()
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	IF to_regclass('banked.events') IS NULL THEN
		CREATE TABLE banked.events (
			event_id text COLLATE "C",
			event_type text COLLATE "C",
			endpoint_id uuid NOT NULL,
			resource_id text,
			resource_type text,
			state text,
			live boolean,
			test boolean NOT NULL DEFAULT false,
			api_version text,
			payload jsonb,
			body bytea,
			body_sha256 bytea NOT NULL,
			signature bytea NOT NULL,
			signed_at timestamptz NOT NULL,
			key_id uuid,
			received_at timestamptz NOT NULL,
			seq bigint GENERATED BY DEFAULT AS IDENTITY (SEQUENCE NAME banked.events_seq_seq),
			stored_by xid8 NOT NULL DEFAULT pg_current_xact_id(),
			revision int NOT NULL DEFAULT 0,
			PRIMARY KEY (event_id, event_type)
		);
		-- Where the server has it, lz4 costs a fraction of what pglz does.
		IF EXISTS (SELECT FROM pg_settings WHERE name = 'default_toast_compression' AND 'lz4' = ANY (enumvals)) THEN
			ALTER TABLE banked.events
				ALTER COLUMN payload SET COMPRESSION lz4,
				ALTER COLUMN body SET COMPRESSION lz4;
		END IF;
		CREATE INDEX ON banked.events USING brin (seq, received_at)
			WITH (pages_per_range = 2048, autosummarize = on);
		CREATE INDEX ON banked.events (resource_id) WHERE api_version = 'v3';
		COMMENT ON TABLE banked.events IS
			'Banked''s webhooks, each event once; inserted as banked_webhooks_worker, and so users'' triggers run as that role';
		COMMENT ON SEQUENCE banked.events_seq_seq IS
			'for events.seq and event_revisions.seq; it must have no cache, or events_since() would miss rows';
		PERFORM banked._comment_event_columns('banked.events'::regclass);
	END IF;

	IF to_regclass('banked.event_revisions') IS NULL THEN
		CREATE TABLE banked.event_revisions (
			LIKE banked.events INCLUDING COMPRESSION,
			kind text NOT NULL CHECK (kind IN ('changed', 'recurrence')),
			PRIMARY KEY (event_id, event_type, revision)
		);
		ALTER TABLE banked.event_revisions
			ALTER COLUMN test SET DEFAULT false,
			ALTER COLUMN stored_by SET DEFAULT pg_current_xact_id();
		CREATE INDEX ON banked.event_revisions USING brin (seq, received_at)
			WITH (pages_per_range = 2048, autosummarize = on);
		CREATE INDEX ON banked.event_revisions (resource_id) WHERE api_version = 'v3';
		COMMENT ON TABLE banked.event_revisions IS
			'authentic deliveries of an event that stands in events already, and not mere repetitions of it';
		PERFORM banked._comment_event_columns('banked.event_revisions'::regclass);
		COMMENT ON COLUMN banked.event_revisions.kind IS
			'changed: other bytes; recurrence: the same event of a resource again, after another one (a mandate that became active again)';
	END IF;

	IF NOT banked._seq_is_fit() THEN
		ALTER SEQUENCE banked.events_seq_seq CACHE 1 INCREMENT 1 NO CYCLE;
	END IF;
	IF NOT banked._revisions_take_seq() THEN
		ALTER TABLE banked.event_revisions ALTER COLUMN seq SET DEFAULT nextval('banked.events_seq_seq');
		PERFORM setval('banked.events_seq_seq'::regclass, max(r.seq)) FROM banked.event_revisions AS r;
	END IF;
END
$$;
COMMENT ON FUNCTION banked._create_event_tables() IS 'makes events and event_revisions where they are missing';

CREATE FUNCTION banked._create_operation_tables()
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	IF to_regclass('banked.quarantine') IS NULL THEN
		CREATE TABLE banked.quarantine (
			quarantine_id bigint GENERATED ALWAYS AS IDENTITY
				(SEQUENCE NAME banked.quarantine_quarantine_id_seq) PRIMARY KEY,
			endpoint_id uuid NOT NULL,
			received_at timestamptz NOT NULL,
			signed_at timestamptz,
			key_id uuid,
			signature bytea,
			body bytea,
			body_sha256 bytea NOT NULL,
			reason text NOT NULL,
			sqlstate text,
			message text,
			attempts int NOT NULL DEFAULT 0,
			next_attempt_at timestamptz,
			dismissed_at timestamptz,
			note text,
			UNIQUE (endpoint_id, body_sha256)
		);
		CREATE INDEX ON banked.quarantine (next_attempt_at) WHERE next_attempt_at IS NOT NULL;
		COMMENT ON TABLE banked.quarantine IS
			'authentic deliveries that could not become an event yet; see reprocess() and dismiss()';
		COMMENT ON SEQUENCE banked.quarantine_quarantine_id_seq IS 'for quarantine.quarantine_id';
		COMMENT ON COLUMN banked.quarantine.quarantine_id IS 'for reprocess() and dismiss()';
		COMMENT ON COLUMN banked.quarantine.endpoint_id IS 'the endpoint that received it';
		COMMENT ON COLUMN banked.quarantine.received_at IS 'arrival of the delivery; when a v2 event comes again with the same bytes, of the last';
		COMMENT ON COLUMN banked.quarantine.signed_at IS 'the time that was signed with the body';
		COMMENT ON COLUMN banked.quarantine.key_id IS 'the key of signing_keys under which the signature was found right';
		COMMENT ON COLUMN banked.quarantine.signature IS 'the HMAC-SHA256 that came with the body';
		COMMENT ON COLUMN banked.quarantine.body IS 'the exact bytes that were signed; null once erased';
		COMMENT ON COLUMN banked.quarantine.body_sha256 IS
			'SHA-256 of the bytes that were signed; the same bytes are kept once for an endpoint';
		COMMENT ON COLUMN banked.quarantine.reason IS
			'invalid_json, missing_identity, identity_too_long, live_mismatch, trigger_error, trigger_suppressed, timeout, out_of_memory';
		COMMENT ON COLUMN banked.quarantine.sqlstate IS 'of the error that kept it from becoming an event, if it was one';
		COMMENT ON COLUMN banked.quarantine.message IS 'of that error, its first 8 kB; may quote the body';
		COMMENT ON COLUMN banked.quarantine.attempts IS 'how often it was tried again';
		COMMENT ON COLUMN banked.quarantine.next_attempt_at IS
			'when it will be tried again by itself; null: not before reprocess()';
		COMMENT ON COLUMN banked.quarantine.dismissed_at IS 'when somebody decided that nothing is to be done';
		COMMENT ON COLUMN banked.quarantine.note IS 'why';
	END IF;

	IF to_regclass('banked.rejections') IS NULL THEN
		CREATE TABLE banked.rejections (
			received_at timestamptz NOT NULL,
			remote_address inet,
			path text,
			reason text NOT NULL,
			count bigint NOT NULL DEFAULT 1
		);
		COMMENT ON TABLE banked.rejections IS
			'requests that were no authentic deliveries, without their bodies; the newest banked_webhooks.rejection_log_limit rows';
		COMMENT ON COLUMN banked.rejections.received_at IS 'when the first of them was refused';
		COMMENT ON COLUMN banked.rejections.remote_address IS 'of the other end of the connection, which may be a proxy';
		COMMENT ON COLUMN banked.rejections.path IS 'as requested, perhaps of no endpoint; what is not visible ASCII stands as ?';
		COMMENT ON COLUMN banked.rejections.reason IS 'as in stats(): signature_wrong, timestamp, unknown_path, ...';
		COMMENT ON COLUMN banked.rejections.count IS 'how many like this one the row stands for';
	END IF;

	IF to_regclass('banked.audit_log') IS NULL THEN
		CREATE TABLE banked.audit_log (
			at timestamptz NOT NULL DEFAULT clock_timestamp(),
			role text NOT NULL,
			action text NOT NULL,
			detail jsonb
		);
		COMMENT ON TABLE banked.audit_log IS 'who changed configuration or history, and how';
		COMMENT ON COLUMN banked.audit_log.at IS 'when it was done, not when it was committed';
		COMMENT ON COLUMN banked.audit_log.role IS 'the role that was logged in; detail has set_role where another one was in force';
		COMMENT ON COLUMN banked.audit_log.action IS 'name of the function';
		COMMENT ON COLUMN banked.audit_log.detail IS 'its arguments and results, without keys';
	END IF;
END
$$;
COMMENT ON FUNCTION banked._create_operation_tables() IS
	'makes quarantine, rejections and audit_log where they are missing';

CREATE FUNCTION banked._create_handler_tables()
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	IF to_regclass('banked.handlers') IS NULL THEN
		CREATE TABLE banked.handlers (
			handler text COLLATE "C" PRIMARY KEY,
			function text NOT NULL,
			role name NOT NULL,
			role_id oid NOT NULL,
			events text[],
			endpoint_id uuid,
			max_attempts int NOT NULL,
			backoff interval NOT NULL,
			timeout interval NOT NULL,
			concurrency int,
			rate numeric,
			ordered boolean NOT NULL,
			include_revisions boolean NOT NULL,
			include_tests boolean NOT NULL,
			batch int NOT NULL,
			state text NOT NULL DEFAULT 'active' CHECK (state IN ('active', 'paused')),
			problem text,
			created_at timestamptz NOT NULL DEFAULT now()
		);
		COMMENT ON TABLE banked.handlers IS
			'functions that run for events; changed by subscribe() and its like';
		COMMENT ON COLUMN banked.handlers.handler IS 'its name';
		COMMENT ON COLUMN banked.handlers.function IS 'with its argument, as regprocedure prints it';
		COMMENT ON COLUMN banked.handlers.role IS 'the role that subscribed it, and that it runs as';
		COMMENT ON COLUMN banked.handlers.role_id IS 'the OID of that role';
		COMMENT ON COLUMN banked.handlers.events IS 'event types, a final * stands for any rest; null: all';
		COMMENT ON COLUMN banked.handlers.endpoint_id IS 'of this endpoint alone; null: of all';
		COMMENT ON COLUMN banked.handlers.max_attempts IS 'after so many failed attempts a job is dead';
		COMMENT ON COLUMN banked.handlers.backoff IS 'pause after the first failed attempt; it doubles with each, up to an hour';
		COMMENT ON COLUMN banked.handlers.timeout IS 'longest time of an attempt';
		COMMENT ON COLUMN banked.handlers.concurrency IS 'most jobs at one time; null: as many as there are workers';
		COMMENT ON COLUMN banked.handlers.rate IS 'most jobs that begin in a second; null: no limit';
		COMMENT ON COLUMN banked.handlers.ordered IS 'jobs of one resource run one at a time, in order of arrival';
		COMMENT ON COLUMN banked.handlers.batch IS 'most jobs in one transaction';
		COMMENT ON COLUMN banked.handlers.include_revisions IS 'it runs for revisions too';
		COMMENT ON COLUMN banked.handlers.include_tests IS 'it runs for test events too';
		COMMENT ON COLUMN banked.handlers.state IS 'active or paused; jobs are made for both';
		COMMENT ON COLUMN banked.handlers.problem IS 'why the extension paused it';
		COMMENT ON COLUMN banked.handlers.created_at IS 'when it was subscribed';
	END IF;

	IF to_regclass('banked.jobs') IS NULL THEN
		CREATE TABLE banked.jobs (
			job_id bigint GENERATED ALWAYS AS IDENTITY (SEQUENCE NAME banked.jobs_job_id_seq) PRIMARY KEY,
			handler text COLLATE "C" NOT NULL,
			event_id text COLLATE "C" NOT NULL,
			event_type text COLLATE "C" NOT NULL,
			revision int NOT NULL DEFAULT 0,
			order_key text COLLATE "C",
			received_at timestamptz NOT NULL,
			state text NOT NULL DEFAULT 'ready' CHECK (state IN ('ready', 'running', 'done', 'dead')),
			attempts int NOT NULL DEFAULT 0,
			alone boolean NOT NULL DEFAULT false,
			run_at timestamptz NOT NULL,
			started_at timestamptz,
			finished_at timestamptz,
			worker_pid int,
			server_started timestamptz
		) WITH (fillfactor = 80, autovacuum_vacuum_scale_factor = 0.02, autovacuum_vacuum_threshold = 1000,
				autovacuum_vacuum_insert_scale_factor = 0.05, autovacuum_analyze_scale_factor = 0.05,
				autovacuum_vacuum_cost_delay = 0);
		CREATE INDEX jobs_ready ON banked.jobs (handler, run_at) WHERE state = 'ready';
		CREATE INDEX jobs_running ON banked.jobs (handler) WHERE state = 'running';
		CREATE INDEX jobs_order ON banked.jobs (handler, order_key, received_at, job_id)
			WHERE order_key IS NOT NULL AND state IN ('ready', 'running');
		CREATE INDEX jobs_done ON banked.jobs (finished_at) WHERE state = 'done';
		CREATE INDEX jobs_dead ON banked.jobs (handler) WHERE state = 'dead';
		CREATE INDEX jobs_event ON banked.jobs (event_id, event_type);
		COMMENT ON TABLE banked.jobs IS
			'one event for one handler; those that are done are removed after banked_webhooks.job_retention';
		COMMENT ON COLUMN banked.jobs.job_id IS 'for retry()';
		COMMENT ON COLUMN banked.jobs.handler IS 'whose job it is';
		COMMENT ON COLUMN banked.jobs.event_id IS 'of the event';
		COMMENT ON COLUMN banked.jobs.event_type IS 'of the event';
		COMMENT ON COLUMN banked.jobs.revision IS '0 for the event itself';
		COMMENT ON COLUMN banked.jobs.order_key IS 'the resource, where the handler is ordered';
		COMMENT ON COLUMN banked.jobs.received_at IS 'of the event';
		COMMENT ON COLUMN banked.jobs.state IS 'ready (to run at run_at), running, done, or dead (no attempt is left)';
		COMMENT ON COLUMN banked.jobs.attempts IS 'those that began, since the last retry()';
		COMMENT ON COLUMN banked.jobs.alone IS 'its last attempt ended its process, or may have: no other job is claimed with it';
		COMMENT ON COLUMN banked.jobs.run_at IS 'not before; infinity: it runs, and its handler has been removed meanwhile';
		COMMENT ON COLUMN banked.jobs.started_at IS 'when the last attempt began';
		COMMENT ON COLUMN banked.jobs.finished_at IS 'when it ended';
		COMMENT ON COLUMN banked.jobs.worker_pid IS 'the process that last ran it';
		COMMENT ON COLUMN banked.jobs.server_started IS 'when that process''s server was started';
	END IF;

	IF to_regclass('banked.job_attempts') IS NULL THEN
		CREATE TABLE banked.job_attempts (
			job_id bigint NOT NULL,
			attempt int NOT NULL,
			started_at timestamptz,
			finished_at timestamptz NOT NULL,
			reason text NOT NULL CHECK (reason IN ('error', 'timeout', 'cancelled', 'crashed')),
			sqlstate text,
			message text,
			detail text,
			context text
		);
		CREATE INDEX job_attempts_job ON banked.job_attempts (job_id, finished_at);
		COMMENT ON TABLE banked.job_attempts IS
			'attempts that failed, with errors that may quote what the handler worked on; see failed_attempts';
		COMMENT ON COLUMN banked.job_attempts.job_id IS 'the job in jobs';
		COMMENT ON COLUMN banked.job_attempts.attempt IS 'which one of the job, from 1';
		COMMENT ON COLUMN banked.job_attempts.started_at IS 'when it began';
		COMMENT ON COLUMN banked.job_attempts.finished_at IS 'when it failed';
		COMMENT ON COLUMN banked.job_attempts.reason IS
			'error, timeout, cancelled (by pg_cancel_backend), or crashed (its process ended)';
		COMMENT ON COLUMN banked.job_attempts.sqlstate IS 'of the error';
		COMMENT ON COLUMN banked.job_attempts.message IS 'of the error; may quote the event';
		COMMENT ON COLUMN banked.job_attempts.detail IS 'of the error; may quote the event';
		COMMENT ON COLUMN banked.job_attempts.context IS 'of the error: where in the function';
	END IF;
END
$$;
COMMENT ON FUNCTION banked._create_handler_tables() IS 'makes handlers, jobs and job_attempts where they are missing';

CREATE FUNCTION banked._create_handler_views()
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	IF to_regclass('banked.handler_status') IS NULL THEN
		CREATE VIEW banked.handler_status AS
		SELECT h.handler, h.function, pg_get_userbyid(h.role_id) AS role, h.state, h.problem,
			   coalesce(j.ready, 0) AS ready, coalesce(j.running, 0) AS running,
			   coalesce(j.waiting_for_retry, 0) AS waiting_for_retry, coalesce(j.dead, 0) AS dead,
			   j.oldest_waiting, coalesce(j.done_per_minute, 0) AS done_per_minute, j.run_time_median, j.run_time_p99
		FROM banked.handlers AS h
			LEFT JOIN (SELECT k.handler,
							  count(*) FILTER (WHERE k.state = 'ready' AND k.run_at <= clock_timestamp()) AS ready,
							  count(*) FILTER (WHERE k.state = 'running') AS running,
							  count(*) FILTER (WHERE k.state = 'ready' AND k.run_at > clock_timestamp()) AS waiting_for_retry,
							  count(*) FILTER (WHERE k.state = 'dead') AS dead,
							  clock_timestamp() - min(k.run_at) FILTER (WHERE k.state = 'ready' AND k.run_at <= clock_timestamp()) AS oldest_waiting,
							  count(*) FILTER (WHERE k.state = 'done' AND k.finished_at > clock_timestamp() - interval '1 minute') AS done_per_minute,
							  percentile_cont(0.5) WITHIN GROUP (ORDER BY k.finished_at - k.started_at) FILTER (WHERE k.state = 'done') AS run_time_median,
							  percentile_cont(0.99) WITHIN GROUP (ORDER BY k.finished_at - k.started_at) FILTER (WHERE k.state = 'done') AS run_time_p99
					   FROM banked.jobs AS k
					   GROUP BY 1) AS j USING (handler);
		COMMENT ON VIEW banked.handler_status IS
			'for each handler: its jobs by state, how long the oldest that is due waits, how many were done in the last minute, and how long those on record ran';
		COMMENT ON COLUMN banked.handler_status.handler IS 'its name';
		COMMENT ON COLUMN banked.handler_status.function IS 'what it runs';
		COMMENT ON COLUMN banked.handler_status.role IS 'that it runs as';
		COMMENT ON COLUMN banked.handler_status.state IS 'active or paused';
		COMMENT ON COLUMN banked.handler_status.problem IS 'why the extension paused it';
		COMMENT ON COLUMN banked.handler_status.ready IS 'jobs that are due';
		COMMENT ON COLUMN banked.handler_status.running IS 'jobs that run';
		COMMENT ON COLUMN banked.handler_status.waiting_for_retry IS 'jobs whose next attempt is not due yet';
		COMMENT ON COLUMN banked.handler_status.dead IS 'jobs that have no attempt left';
		COMMENT ON COLUMN banked.handler_status.oldest_waiting IS 'how long the oldest of those that are due has been so';
		COMMENT ON COLUMN banked.handler_status.done_per_minute IS 'jobs that ended well in the last minute';
		COMMENT ON COLUMN banked.handler_status.run_time_median IS 'of the last attempts of jobs that are done';
		COMMENT ON COLUMN banked.handler_status.run_time_p99 IS 'the time that 99 of 100 of them did not exceed';
	END IF;

	IF to_regclass('banked.event_jobs') IS NULL THEN
		CREATE VIEW banked.event_jobs AS
		SELECT j.event_id, j.event_type, j.revision, j.handler, j.job_id, j.state, j.attempts, j.received_at,
			   j.started_at, j.finished_at, CASE WHEN j.state = 'ready' THEN j.run_at END AS next_attempt_at,
			   a.reason, a.sqlstate
		FROM banked.jobs AS j
			LEFT JOIN LATERAL (SELECT f.reason, f.sqlstate FROM banked.job_attempts AS f
							   WHERE f.job_id = j.job_id ORDER BY f.finished_at DESC LIMIT 1) AS a ON j.state <> 'done';
		COMMENT ON VIEW banked.event_jobs IS
			'for each event: what each handler did with it, when and in how many attempts, and why it is not done';
		COMMENT ON COLUMN banked.event_jobs.event_id IS 'of the event';
		COMMENT ON COLUMN banked.event_jobs.event_type IS 'of the event';
		COMMENT ON COLUMN banked.event_jobs.revision IS '0 for the event itself';
		COMMENT ON COLUMN banked.event_jobs.handler IS 'whose job it is';
		COMMENT ON COLUMN banked.event_jobs.job_id IS 'for retry()';
		COMMENT ON COLUMN banked.event_jobs.state IS 'ready, running, done, or dead (no attempt is left)';
		COMMENT ON COLUMN banked.event_jobs.attempts IS 'those that began, since the last retry()';
		COMMENT ON COLUMN banked.event_jobs.received_at IS 'arrival of the event';
		COMMENT ON COLUMN banked.event_jobs.started_at IS 'when the last attempt began';
		COMMENT ON COLUMN banked.event_jobs.finished_at IS 'when it ended';
		COMMENT ON COLUMN banked.event_jobs.next_attempt_at IS 'not before; null when none is to come or it runs';
		COMMENT ON COLUMN banked.event_jobs.reason IS 'why the last attempt failed: error, timeout, cancelled, crashed';
		COMMENT ON COLUMN banked.event_jobs.sqlstate IS 'of the error that it failed with';
	END IF;

	IF to_regclass('banked.failed_attempts') IS NULL THEN
		CREATE VIEW banked.failed_attempts WITH (security_barrier) AS
		SELECT j.handler, j.event_id, j.event_type, j.revision, a.job_id, a.attempt, a.started_at, a.finished_at,
			   a.reason, a.sqlstate, a.message, a.detail, a.context
		FROM banked.job_attempts AS a
			JOIN banked.jobs AS j USING (job_id)
			JOIN banked.handlers AS h USING (handler)
		WHERE pg_has_role(h.role_id, 'USAGE');
		COMMENT ON VIEW banked.failed_attempts IS
			'failed attempts with their errors, of the handlers whose role the reader is or has the rights of';
		COMMENT ON COLUMN banked.failed_attempts.handler IS 'whose attempt it was';
		COMMENT ON COLUMN banked.failed_attempts.event_id IS 'of the event';
		COMMENT ON COLUMN banked.failed_attempts.event_type IS 'of the event';
		COMMENT ON COLUMN banked.failed_attempts.revision IS '0 for the event itself';
		COMMENT ON COLUMN banked.failed_attempts.job_id IS 'for retry()';
		COMMENT ON COLUMN banked.failed_attempts.attempt IS 'which one of the job, from 1';
		COMMENT ON COLUMN banked.failed_attempts.started_at IS 'when it began';
		COMMENT ON COLUMN banked.failed_attempts.finished_at IS 'when it failed';
		COMMENT ON COLUMN banked.failed_attempts.reason IS 'error, timeout, cancelled or crashed';
		COMMENT ON COLUMN banked.failed_attempts.sqlstate IS 'of the error';
		COMMENT ON COLUMN banked.failed_attempts.message IS 'of the error; may quote the event';
		COMMENT ON COLUMN banked.failed_attempts.detail IS 'of the error; may quote the event';
		COMMENT ON COLUMN banked.failed_attempts.context IS 'of the error: where in the function';
	END IF;
END
$$;
COMMENT ON FUNCTION banked._create_handler_views() IS 'makes the views on handlers and jobs where they are missing';

/*
 * Amounts are taken where they are whole numbers that fit, times where they
 * are valid ones with a time zone.  What a body holds besides is no error
 * here: the view must be readable whatever was sent.
 */
CREATE FUNCTION banked._create_history_view()
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	IF to_regclass('banked.history') IS NOT NULL THEN
		RETURN;
	END IF;

	CREATE VIEW banked.history AS
	SELECT h.*,
		   (SELECT n.value::bigint
			FROM unnest(ARRAY[h.payload -> 'amount', h.payload #> '{data,amount}'])
				WITH ORDINALITY AS n (value, place)
			WHERE CASE WHEN jsonb_typeof(n.value) = 'number'
					   THEN n.value::numeric BETWEEN -9223372036854775808 AND 9223372036854775807
							AND n.value::numeric % 1 = 0
				  END
			ORDER BY n.place
			LIMIT 1) AS amount,
		   coalesce(h.payload ->> 'currency', h.payload #>> '{data,currency}') AS currency,
		   coalesce(h.payload ->> 'reference', h.payload #>> '{data,reference}') AS reference,
		   coalesce(h.payload ->> 'end_to_end_id', h.payload #>> '{data,end_to_end_id}') AS end_to_end_id,
		   (SELECT regexp_replace(t.value, ' ?(UTC|Z)$', '+00', 'i')::timestamptz
			FROM unnest(ARRAY[h.payload ->> 'sent_at', h.payload ->> 'created_at',
							  h.payload #>> '{data,updated_at}', h.payload #>> '{data,created_at}'])
				WITH ORDINALITY AS t (value, place)
			WHERE t.value ~* ('^('
				-- a day: any month's first 28, the rest of the longer months, a leap day
				'[12]\d{3}-(0[1-9]|1[0-2])-(0[1-9]|1\d|2[0-8])'
				'|[12]\d{3}-(0[13-9]|1[0-2])-(29|30)'
				'|[12]\d{3}-(0[13578]|1[02])-31'
				'|([12]\d(0[48]|[2468][048]|[13579][26])|(1[26]|2[048])00)-02-29'
				-- a time of day, down to nanoseconds
				')[T ]([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d{1,9})?'
				-- a time zone
				'( ?UTC| ?Z|[-+](0\d|1[0-5]):[0-5]\d)$')
			ORDER BY t.place
			LIMIT 1) AS occurred_at
	FROM (SELECT e.event_id, e.event_type, e.endpoint_id, e.resource_id, e.resource_type,
				 e.state, e.live, e.test, e.api_version, e.payload, e.body, e.body_sha256,
				 e.signature, e.signed_at, e.key_id, e.received_at, e.seq, e.stored_by,
				 e.revision, NULL::text AS kind
		  FROM banked.events AS e
		  UNION ALL
		  SELECT r.event_id, r.event_type, r.endpoint_id, r.resource_id, r.resource_type,
				 r.state, r.live, r.test, r.api_version, r.payload, r.body, r.body_sha256,
				 r.signature, r.signed_at, r.key_id, r.received_at, r.seq, r.stored_by,
				 r.revision, r.kind
		  FROM banked.event_revisions AS r) AS h;
	COMMENT ON VIEW banked.history IS
		'events and their revisions, with what both generations of bodies say of amount, times and references';
	PERFORM banked._comment_event_columns('banked.history'::regclass);
	COMMENT ON COLUMN banked.history.kind IS 'changed or recurrence for a revision; null for the event itself';
	COMMENT ON COLUMN banked.history.amount IS 'in minor units of the currency; null where the body has no whole number';
	COMMENT ON COLUMN banked.history.currency IS 'of the body, or of its data';
	COMMENT ON COLUMN banked.history.reference IS 'of the body, or of its data';
	COMMENT ON COLUMN banked.history.end_to_end_id IS 'of the body, or of its data';
	COMMENT ON COLUMN banked.history.occurred_at IS
		'sent_at or created_at of the body, or updated_at or created_at of its data: the first that is a time';
END
$$;
COMMENT ON FUNCTION banked._create_history_view() IS 'makes the view history where it is missing';

CREATE FUNCTION banked._missing_triggers()
RETURNS TABLE (name name, relation text, clauses text, description text)
LANGUAGE sql STABLE
BEGIN ATOMIC
	SELECT t.name, t.relation, t.clauses, t.description
	FROM (VALUES
		('banked_webhooks_config_changed', 'banked.endpoints',
		 'AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON banked.endpoints FOR EACH STATEMENT EXECUTE FUNCTION banked._config_changed()',
		 'lets the receivers know'),
		('banked_webhooks_config_changed', 'banked.signing_keys',
		 'AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON banked.signing_keys FOR EACH STATEMENT EXECUTE FUNCTION banked._config_changed()',
		 'lets the receivers know'),
		('banked_webhooks_config_changed', 'banked.handlers',
		 'AFTER INSERT OR UPDATE OR DELETE OR TRUNCATE ON banked.handlers FOR EACH STATEMENT EXECUTE FUNCTION banked._config_changed()',
		 'lets the receivers know'),
		('banked_webhooks_notify', 'banked.events',
		 'AFTER INSERT ON banked.events REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION banked._notify()',
		 'notifies channel banked_webhooks'),
		('banked_webhooks_notify', 'banked.event_revisions',
		 'AFTER INSERT ON banked.event_revisions REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION banked._notify()',
		 'notifies channel banked_webhooks'),
		('banked_webhooks_notify', 'banked.quarantine',
		 'AFTER INSERT ON banked.quarantine REFERENCING NEW TABLE AS new_rows FOR EACH STATEMENT EXECUTE FUNCTION banked._notify()',
		 'notifies channel banked_webhooks'),
		('banked_webhooks_config_changed', 'banked.quarantine',
		 'AFTER INSERT OR UPDATE ON banked.quarantine FOR EACH STATEMENT EXECUTE FUNCTION banked._config_changed()',
		 'lets the receivers know when to try again')
	) AS t (name, relation, clauses, description)
	WHERE NOT EXISTS (SELECT FROM pg_trigger AS p
					  WHERE p.tgrelid = to_regclass(t.relation) AND p.tgname = t.name);
END;
COMMENT ON FUNCTION banked._missing_triggers() IS 'those of the extension''s triggers on the history that are not there';

CREATE FUNCTION banked._create_triggers()
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	missing record;
BEGIN
	FOR missing IN SELECT t.name, t.relation, t.clauses, t.description FROM banked._missing_triggers() AS t LOOP
		-- OR REPLACE: the snapshot of a REPEATABLE READ transaction may be too old to show it
		EXECUTE format('CREATE OR REPLACE TRIGGER %I %s', missing.name, missing.clauses);
		EXECUTE format('COMMENT ON TRIGGER %I ON %s IS %L', missing.name, missing.relation, missing.description);
		-- A revoked key must end whatever session_replication_role is.
		IF missing.name = 'banked_webhooks_config_changed' THEN
			EXECUTE format('ALTER TABLE %s ENABLE ALWAYS TRIGGER %I', missing.relation, missing.name);
		END IF;
	END LOOP;
END
$$;
COMMENT ON FUNCTION banked._create_triggers() IS
	'makes those of the extension''s triggers that are missing; DROP EXTENSION removes them';

/*
 * ALTER DEFAULT PRIVILEGES may have given somebody rights on what was just
 * made: those who may read all tables must not read keys.
 */
CREATE FUNCTION banked._strip_privileges(relation regclass)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	grantee text;
BEGIN
	FOR grantee IN
		SELECT DISTINCT CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END
		FROM pg_class AS c CROSS JOIN aclexplode(c.relacl) AS a
		WHERE c.oid = relation AND a.grantee <> c.relowner
	LOOP
		EXECUTE format('REVOKE ALL ON %s FROM %s', relation, grantee);
	END LOOP;
END
$$;
COMMENT ON FUNCTION banked._strip_privileges(regclass) IS 'leaves all privileges on a relation to its owner alone';

CREATE FUNCTION banked._granted_privileges()
RETURNS TABLE (relation text, privileges text, roles text)
LANGUAGE sql IMMUTABLE
BEGIN ATOMIC
	SELECT g.relation, g.privileges, g.roles
	FROM (VALUES
		('endpoints', 'SELECT', 'banked_webhooks_reader, banked_webhooks_admin'),
		('signing_keys', 'SELECT', 'banked_webhooks_admin'),
		('published_webhooks', 'SELECT', 'banked_webhooks_admin'),
		('events', 'SELECT', 'banked_webhooks_reader, banked_webhooks_admin'),
		('events', 'TRIGGER', 'banked_webhooks_admin'),
		('events_seq_seq', 'SELECT', 'banked_webhooks_reader, banked_webhooks_admin'),
		('event_revisions', 'SELECT', 'banked_webhooks_reader, banked_webhooks_admin'),
		('event_revisions', 'TRIGGER', 'banked_webhooks_admin'),
		('history', 'SELECT', 'banked_webhooks_reader, banked_webhooks_admin'),
		('quarantine', 'SELECT', 'banked_webhooks_admin'),
		('rejections', 'SELECT', 'banked_webhooks_admin'),
		('audit_log', 'SELECT', 'banked_webhooks_admin'),
		('handlers', 'SELECT', 'banked_webhooks_reader, banked_webhooks_admin'),
		('jobs', 'SELECT', 'banked_webhooks_reader, banked_webhooks_admin'),
		('handler_status', 'SELECT', 'banked_webhooks_reader, banked_webhooks_admin'),
		('event_jobs', 'SELECT', 'banked_webhooks_reader, banked_webhooks_admin'),
		('failed_attempts', 'SELECT', 'banked_webhooks_reader, banked_webhooks_admin')
	) AS g (relation, privileges, roles);
END;
COMMENT ON FUNCTION banked._granted_privileges() IS 'what readers and admins may do with which relations';

CREATE FUNCTION banked._bare_relations()
RETURNS text[]
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	RETURN ARRAY(SELECT r.name
				 FROM unnest(banked._relation_names()) AS r (name)
					 LEFT JOIN pg_class AS c ON c.oid = to_regclass('banked.' || r.name)
				 WHERE c.oid IS NULL
					 OR (c.relacl IS NULL AND r.name IN (SELECT g.relation FROM banked._granted_privileges() AS g)));
END
$$;
COMMENT ON FUNCTION banked._bare_relations() IS
	'relations that are missing, or were restored without the privileges that are due on them';

-- Without these nothing can be stored.
CREATE FUNCTION banked._worker_may_store()
RETURNS boolean
LANGUAGE sql STABLE
RETURN has_table_privilege('banked_webhooks_worker', 'banked.events', 'INSERT')
	AND has_table_privilege('banked_webhooks_worker', 'banked.events', 'SELECT')
	AND has_table_privilege('banked_webhooks_worker', 'banked.event_revisions', 'INSERT')
	AND has_table_privilege('banked_webhooks_worker', 'banked.event_revisions', 'SELECT')
	AND has_sequence_privilege('banked_webhooks_worker', 'banked.events_seq_seq', 'USAGE');
COMMENT ON FUNCTION banked._worker_may_store() IS 'whether the receivers'' role may write the history';

CREATE FUNCTION banked._worker_may_connect()
RETURNS boolean
LANGUAGE sql STABLE
RETURN has_database_privilege('banked_webhooks_worker', current_database(), 'CONNECT');
COMMENT ON FUNCTION banked._worker_may_connect() IS 'whether the receivers'' role may connect to this database';

CREATE FUNCTION banked._grant_privileges(relations text[])
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	granted record;
BEGIN
	PERFORM banked._strip_privileges(('banked.' || r.name)::regclass) FROM unnest(relations) AS r (name);
	FOR granted IN
		SELECT g.relation, g.privileges, g.roles FROM banked._granted_privileges() AS g
		WHERE g.relation = ANY (relations)
	LOOP
		EXECUTE format('GRANT %s ON banked.%I TO %s', granted.privileges, granted.relation, granted.roles);
	END LOOP;

	IF NOT banked._worker_may_connect() THEN
		EXECUTE format('GRANT CONNECT ON DATABASE %I TO banked_webhooks_worker', current_database());
	END IF;
	IF NOT banked._worker_may_store() THEN
		GRANT INSERT, SELECT ON banked.events, banked.event_revisions TO banked_webhooks_worker;
		GRANT USAGE ON SEQUENCE banked.events_seq_seq TO banked_webhooks_worker;
	END IF;
END
$$;
COMMENT ON FUNCTION banked._grant_privileges(text[]) IS
	'grants what the extension''s roles need on relations that have no privileges yet, and on others what the receivers cannot do without';

/*
 * Called inside the script of an extension, ours or another one that
 * registers its endpoint, CREATE makes members of that extension, and GRANT
 * records privileges that pg_dump then leaves out.
 */
CREATE FUNCTION banked._bound_relations()
RETURNS TABLE (relation regclass, type text, extension name)
LANGUAGE sql STABLE
BEGIN ATOMIC
	SELECT c.oid::regclass, CASE c.relkind WHEN 'S' THEN 'SEQUENCE' WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END, e.extname
	FROM unnest(banked._relation_names()) AS r (name)
		JOIN pg_class AS c ON c.oid = to_regclass('banked.' || r.name)
		LEFT JOIN pg_depend AS d ON d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e'
		LEFT JOIN pg_extension AS e ON e.oid = d.refobjid
	WHERE e.oid IS NOT NULL
		OR EXISTS (SELECT FROM pg_init_privs AS p WHERE p.classoid = 'pg_class'::regclass AND p.objoid = c.oid);
END;
COMMENT ON FUNCTION banked._bound_relations() IS
	'tables and their like that are members of an extension, or whose privileges count as a member''s';

-- ALTER EXTENSION ... DROP undoes both.
CREATE FUNCTION banked._release_from_extensions()
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	bound record;
BEGIN
	FOR bound IN SELECT b.relation, b.type, b.extension FROM banked._bound_relations() AS b LOOP
		IF bound.extension IS NULL THEN
			EXECUTE format('ALTER EXTENSION banked_webhooks ADD %s %s', bound.type, bound.relation);
		END IF;
		EXECUTE format('ALTER EXTENSION %I DROP %s %s', coalesce(bound.extension, 'banked_webhooks'), bound.type, bound.relation);
	END LOOP;
END
$$;
COMMENT ON FUNCTION banked._release_from_extensions() IS
	'makes the tables members of no extension, so that they outlive it and pg_dump takes all of them';

CREATE FUNCTION banked._tables_are_complete()
RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	-- What is asked of relations would fail where they are missing.
	RETURN CASE
		WHEN banked._bare_relations() <> '{}' THEN false
		ELSE banked._seq_is_fit() AND banked._revisions_take_seq()
			AND banked._worker_may_connect() AND banked._worker_may_store()
			AND NOT EXISTS (SELECT FROM banked._missing_endpoint_checks())
			AND NOT EXISTS (SELECT FROM banked._missing_triggers())
			AND NOT EXISTS (SELECT FROM banked._bound_relations())
	END;
END
$$;
COMMENT ON FUNCTION banked._tables_are_complete() IS
	'whether create_tables() has nothing to do: whatever it mends is looked for here, by the same functions';

/*
 * The lock is held until the end of the caller's transaction, which may stay
 * open for long and must not keep others from their work: it is taken only where
 * there is something to do.
 */
CREATE FUNCTION banked.create_tables()
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	bare text[];
BEGIN
	PERFORM banked._check_owners();
	IF banked._tables_are_complete() THEN
		RETURN;
	END IF;

	-- One at a time, by a lock that nobody else can take; behind a pause() or resume() that is not committed, which may come here next.
	PERFORM FROM banked.service_state FOR NO KEY UPDATE;
	LOCK TABLE banked.key_secrets IN SHARE UPDATE EXCLUSIVE MODE;
	PERFORM banked._check_owners();
	bare := banked._bare_relations();
	PERFORM banked._create_endpoint_tables();
	PERFORM banked._create_publication_table();
	PERFORM banked._create_event_tables();
	PERFORM banked._create_operation_tables();
	PERFORM banked._create_handler_tables();
	PERFORM banked._create_history_view();
	PERFORM banked._create_handler_views();
	PERFORM banked._create_triggers();
	PERFORM banked._grant_privileges(bare);
	PERFORM banked._release_from_extensions();
END
$$;
COMMENT ON FUNCTION banked.create_tables() IS
	'makes the tables of configuration and history, and what is missing of their constraints, triggers and privileges; register_endpoint() and its like call it by themselves; 55000: something in schema banked belongs to somebody who is no superuser';


--
-- Arguments, the audit log and other things that the functions below share
--

CREATE FUNCTION banked._audit(action text, detail jsonb)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	set_role text := current_setting('role');
BEGIN
	IF set_role NOT IN ('none', session_user) THEN
		detail := detail || jsonb_build_object('set_role', set_role);
	END IF;
	INSERT INTO banked.audit_log (role, action, detail)
	VALUES (session_user, action, detail);
END
$$;
COMMENT ON FUNCTION banked._audit(text, jsonb) IS 'writes a row of audit_log for the role that is logged in';

CREATE FUNCTION banked._warn_if_not_served()
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	warning text := banked._service_warning();
BEGIN
	IF warning IS NOT NULL THEN
		RAISE WARNING '%', warning;
	END IF;
END
$$;
COMMENT ON FUNCTION banked._warn_if_not_served() IS 'raises a WARNING when no receiver is going to serve this database';

-- A constraint of endpoints says the same (_missing_endpoint_checks); it cannot call this, since the table outlives the extension.
CREATE FUNCTION banked._check_path(path text)
RETURNS void
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	problem text := CASE
		WHEN path IS NULL THEN 'It is null.'
		WHEN octet_length(path) > 255 THEN 'It is longer than 255 bytes.'
		WHEN path !~ '^/' THEN 'It does not begin with "/".'
		WHEN path ~ '[^\x21-\x7e]' THEN 'It contains a space, a control character or a character outside ASCII.'
		WHEN path ~ '[?#]' THEN 'It contains "?" or "#".'
		WHEN path ~ '[\\%]' THEN 'It contains "\" or "%"; paths are compared byte by byte, and nothing is decoded.'
		WHEN path ~ '//' THEN 'It contains "//".'
		WHEN path ~ '/\.{1,2}(/|$)' THEN 'It contains a segment "." or "..".'
	END;
BEGIN
	IF problem IS NOT NULL THEN
		RAISE EXCEPTION USING
			ERRCODE = 'invalid_parameter_value',
			MESSAGE = 'invalid path of an endpoint',
			DETAIL = problem,
			HINT = 'A path is what follows the host in the URL, such as /banked/payments.';
	END IF;
END
$$;
COMMENT ON FUNCTION banked._check_path(text) IS 'raises 22023 when a text cannot be the path of an endpoint';

CREATE FUNCTION banked._check_events(events text[])
RETURNS void
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	problem text := CASE
		WHEN events IS NULL THEN NULL
		WHEN cardinality(events) = 0 THEN 'It is empty.'
		WHEN cardinality(events) > 1000 THEN 'It has more than 1000 elements.'
		WHEN array_ndims(events) <> 1 THEN 'It has more than one dimension.'
		WHEN array_position(events, NULL) IS NOT NULL THEN 'It contains a null.'
		WHEN EXISTS (SELECT FROM unnest(events) AS e (type) WHERE e.type = '') THEN 'It contains an empty text.'
		WHEN EXISTS (SELECT FROM unnest(events) AS e (type) WHERE octet_length(e.type) > 512) THEN
			'It contains a text longer than 512 bytes.'
		WHEN EXISTS (SELECT FROM unnest(events) AS e (type) WHERE e.type ~ '\*.') THEN
			'It contains a "*" that is not the last character.'
		WHEN (SELECT count(DISTINCT e.type) FROM unnest(events) AS e (type)) <> cardinality(events) THEN
			'It contains a type twice.'
	END;
BEGIN
	IF problem IS NOT NULL THEN
		RAISE EXCEPTION USING
			ERRCODE = 'invalid_parameter_value',
			MESSAGE = 'invalid list of event types',
			DETAIL = problem,
			HINT = 'List types (payment_sent) or beginnings of types (payment_*); null stands for all.';
	END IF;
END
$$;
COMMENT ON FUNCTION banked._check_events(text[]) IS 'raises 22023 when an array cannot be the filter of an endpoint';

CREATE FUNCTION banked._check_signing_key(signing_key text)
RETURNS void
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	problem text := CASE
		WHEN octet_length(signing_key) < 8 THEN 'It is shorter than 8 bytes.'
		WHEN octet_length(signing_key) > 1024 THEN 'It is longer than 1024 bytes.'
		WHEN signing_key ~ '[\x01-\x1f\x7f]' THEN 'It contains a control character, such as the end of a line.'
	END;
BEGIN
	IF problem IS NOT NULL THEN
		RAISE EXCEPTION USING
			ERRCODE = 'invalid_parameter_value',
			MESSAGE = 'invalid signing key',
			DETAIL = problem;
	END IF;
END
$$;
COMMENT ON FUNCTION banked._check_signing_key(text) IS
	'raises 22023, without the key, when a text cannot be a signing key; null can';

CREATE FUNCTION banked._check_duration(name text, value interval, least_value interval)
RETURNS void
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	IF value IS NULL OR value < least_value OR value > interval '10 years' THEN
		RAISE EXCEPTION USING
			ERRCODE = 'invalid_parameter_value',
			MESSAGE = format('invalid %s', name),
			DETAIL = CASE
				WHEN value IS NULL THEN 'It is null.'
				WHEN value > interval '10 years' THEN 'It is longer than 10 years.'
				WHEN least_value > interval '0' THEN 'It is not positive.'
				ELSE 'It is negative.'
			END;
	END IF;
END
$$;
COMMENT ON FUNCTION banked._check_duration(text, interval, interval) IS
	'raises 22023 when an argument is null, below a least value or over ten years';

CREATE FUNCTION banked._lock_endpoint(path text, OUT endpoint_id uuid, OUT state text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	PERFORM banked.create_tables();
	SELECT e.endpoint_id, e.state INTO endpoint_id, state
	FROM banked.endpoints AS e
	WHERE e.path = _lock_endpoint.path
	FOR NO KEY UPDATE;
	IF NOT FOUND THEN
		RAISE EXCEPTION USING
			ERRCODE = CASE WHEN path IS NULL THEN 'invalid_parameter_value' ELSE 'undefined_object' END,
			MESSAGE = CASE WHEN path IS NULL THEN 'path must not be null'
						   ELSE format('endpoint "%s" does not exist', path) END;
	END IF;
END
$$;
COMMENT ON FUNCTION banked._lock_endpoint(text) IS
	'the endpoint of a path, locked against concurrent changes; 42704: there is none; 22023: path is null';

CREATE FUNCTION banked._lock_signing_key(key_id uuid, OUT path text, OUT valid_until timestamptz)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	PERFORM banked.create_tables();
	SELECT e.path, k.valid_until INTO path, valid_until
	FROM banked.signing_keys AS k JOIN banked.endpoints AS e ON e.endpoint_id = k.endpoint_id
	WHERE k.key_id = _lock_signing_key.key_id
	FOR NO KEY UPDATE OF k;
	IF NOT FOUND THEN
		RAISE EXCEPTION USING
			ERRCODE = CASE WHEN key_id IS NULL THEN 'invalid_parameter_value' ELSE 'undefined_object' END,
			MESSAGE = CASE WHEN key_id IS NULL THEN 'key_id must not be null'
						   ELSE format('signing key "%s" does not exist', key_id) END;
	END IF;
END
$$;
COMMENT ON FUNCTION banked._lock_signing_key(uuid) IS
	'what is known of a key, locked against concurrent changes; 42704: there is none; 22023: key_id is null';

/*
 * Both tables are locked, so that no transaction holds a lower seq that it has
 * not committed yet, and the sequence is ahead of all rows.
 */
CREATE FUNCTION banked._store_floor()
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off		-- the brin indexes show at once that nothing lies beyond
AS $$
DECLARE
	last_seq bigint;
	beyond bigint;
BEGIN
	-- One after the other: of two that share the lock of the tables neither could store an event afterwards.
	PERFORM FROM banked.service_state FOR NO KEY UPDATE;
	LOCK TABLE banked.events, banked.event_revisions IN SHARE MODE;
	SELECT CASE WHEN s.is_called THEN s.last_value ELSE 0 END INTO STRICT last_seq
	FROM banked.events_seq_seq AS s;

	-- rows that were restored without their sequence
	SELECT max(r.seq) INTO beyond
	FROM (SELECT e.seq FROM banked.events AS e WHERE e.seq > last_seq
		  UNION ALL
		  SELECT v.seq FROM banked.event_revisions AS v WHERE v.seq > last_seq) AS r;
	IF beyond IS NOT NULL THEN
		PERFORM setval('banked.events_seq_seq'::regclass, beyond);
	END IF;

	UPDATE banked.service_state SET floor_seq = coalesce(beyond, last_seq);
END
$$;
COMMENT ON FUNCTION banked._store_floor() IS
	'declares all rows of the history final, after waiting for those who are writing it';

/*
 * A setting that is lost, or that a session has not got (see README, "Where no
 * worker can run"), must not end encryption unnoticed.
 */
CREATE FUNCTION banked._refuse_new_clear_secrets()
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	IF (EXISTS (SELECT FROM banked.key_secrets AS s WHERE get_byte(s.secret, 0) = 0 AND banked._is_own_transaction(s.xmin))
		OR EXISTS (SELECT FROM banked.api_credentials AS c WHERE get_byte(c.secret, 0) = 0 AND banked._is_own_transaction(c.xmin)))
		AND (EXISTS (SELECT FROM banked.key_secrets AS s WHERE get_byte(s.secret, 0) = 1)
			 OR EXISTS (SELECT FROM banked.api_credentials AS c WHERE get_byte(c.secret, 0) = 1)) THEN
		RAISE EXCEPTION USING
			ERRCODE = 'object_not_in_prerequisite_state',
			MESSAGE = 'banked_webhooks.master_key_file is not set, and other secrets are encrypted',
			DETAIL = 'This one would be stored as it is.',
			HINT = 'Set it to the file with the master key, or with a new one, and reload the configuration.';
	END IF;
END
$$;
COMMENT ON FUNCTION banked._refuse_new_clear_secrets() IS
	'raises 55000 when this transaction has stored a secret as it is, though others are encrypted';

CREATE FUNCTION banked._add_signing_key(endpoint_id uuid, signing_key text, OUT key_id uuid, OUT generated_key text)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	PERFORM banked._check_signing_key(signing_key);

	-- The first key since the extension was created: the history is of before, perhaps of another cluster.
	IF NOT EXISTS (SELECT FROM banked.key_secrets) THEN
		PERFORM banked._store_floor();
	END IF;

	IF signing_key IS NULL THEN
		generated_key := banked._generate_signing_key();
	END IF;
	INSERT INTO banked.signing_keys AS k (endpoint_id)
	VALUES (_add_signing_key.endpoint_id)
	RETURNING k.key_id INTO key_id;
	INSERT INTO banked.key_secrets (key_id, secret)
	VALUES (_add_signing_key.key_id,
			banked._seal(coalesce(signing_key, generated_key), banked._key_context(_add_signing_key.key_id)));
	PERFORM banked._refuse_new_clear_secrets();
END
$$;
COMMENT ON FUNCTION banked._add_signing_key(uuid, text) IS
	'gives an endpoint a key, a new one when none is passed in; returns it only then; 22023: unusable key';


--
-- Endpoints
--

CREATE FUNCTION banked._register_endpoint(path text, events text[], signing_key text, key_from_file text,
										  timestamp_tolerance interval, live boolean, description text,
										  OUT endpoint_id uuid, OUT generated_key text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
	new_key_id uuid;
BEGIN
	PERFORM banked._check_path(path);
	PERFORM banked._check_events(events);
	PERFORM banked._check_duration('timestamp_tolerance', timestamp_tolerance, interval '1 microsecond');
	IF signing_key IS NOT NULL AND key_from_file IS NOT NULL THEN
		RAISE EXCEPTION USING
			ERRCODE = 'invalid_parameter_value',
			MESSAGE = 'signing_key and signing_key_file exclude each other';
	END IF;

	PERFORM banked.create_tables();
	INSERT INTO banked.endpoints AS e (path, events, timestamp_tolerance, live, description)
	VALUES (path, events, timestamp_tolerance, live, description)
	ON CONFLICT DO NOTHING
	RETURNING e.endpoint_id INTO endpoint_id;
	IF NOT FOUND THEN
		RAISE EXCEPTION USING
			ERRCODE = 'duplicate_object',
			MESSAGE = format('endpoint "%s" already exists', path),
			DETAIL = (SELECT format('It is %s.', e.state) FROM banked.endpoints AS e WHERE e.path = _register_endpoint.path);
	END IF;

	SELECT k.key_id, k.generated_key INTO new_key_id, generated_key
	FROM banked._add_signing_key(endpoint_id, coalesce(signing_key, key_from_file)) AS k;
	PERFORM banked._audit('register_endpoint', jsonb_build_object(
		'path', path, 'endpoint_id', endpoint_id, 'key_id', new_key_id, 'events', events,
		'timestamp_tolerance', timestamp_tolerance, 'live', live, 'description', description));
	PERFORM banked._warn_if_not_served();

	-- Once: for the first of them.
	IF (SELECT count(*) FROM (SELECT FROM banked.key_secrets AS s WHERE get_byte(s.secret, 0) = 0 LIMIT 2) AS clear) = 1
		AND (SELECT get_byte(s.secret, 0) = 0 FROM banked.key_secrets AS s WHERE s.key_id = new_key_id) THEN
		RAISE WARNING USING
			MESSAGE = 'signing keys are stored as they are, readable by the owner of the extension and in copies of the data directory',
			HINT = 'To have them encrypted, set banked_webhooks.master_key_file, reload the configuration and run SELECT banked.rotate_master_key().';
	END IF;
END
$$;
COMMENT ON FUNCTION banked._register_endpoint(text, text[], text, text, interval, boolean, text) IS
	'register_endpoint() behind the reading of the file';

-- Not SECURITY DEFINER: the file is read with the rights of the caller.
CREATE FUNCTION banked.register_endpoint(path text, events text[] DEFAULT NULL, signing_key text DEFAULT NULL,
										 timestamp_tolerance interval DEFAULT '22 days', live boolean DEFAULT NULL,
										 description text DEFAULT NULL, signing_key_file text DEFAULT NULL,
										 OUT endpoint_id uuid, OUT signing_key text)
LANGUAGE sql VOLATILE
BEGIN ATOMIC
	SELECT r.endpoint_id, r.generated_key
	FROM banked._register_endpoint(path, events, signing_key, banked._read_key_file(signing_key_file),
								   timestamp_tolerance, live, description) AS r;
END;
COMMENT ON FUNCTION banked.register_endpoint(text, text[], text, interval, boolean, text, text) IS
	'makes a path receive webhooks: event types to store (payment_sent, payment_*; null: all), signing key of 8 to 1024 bytes or the server''s file that holds it (neither: a new key, which is returned this once), greatest age of a signature (it must outlast Banked''s retries, 21 days), live events (true) or test events (false) alone; 22023: unusable argument; 42710: the path is registered already, or was and is retired; 55000: other secrets are encrypted, and no master key is set; 42501: the file may not be read; 58P01: there is no such file';

CREATE FUNCTION banked._set_endpoint_state(action text, path text, new_state text)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	endpoint record;
BEGIN
	SELECT e.endpoint_id, e.state INTO STRICT endpoint FROM banked._lock_endpoint(path) AS e;
	IF endpoint.state = new_state THEN
		RETURN;
	END IF;
	IF endpoint.state = 'retired' THEN
		RAISE EXCEPTION USING
			ERRCODE = 'object_not_in_prerequisite_state',
			MESSAGE = format('endpoint "%s" is retired', path),
			DETAIL = 'Retiring is final: Banked was told to stop sending to this path.',
			HINT = 'Register another path.';
	END IF;
	BEGIN
		UPDATE banked.endpoints AS e SET state = new_state WHERE e.endpoint_id = endpoint.endpoint_id;
	EXCEPTION
		WHEN check_violation THEN
			RAISE EXCEPTION USING
				ERRCODE = 'object_not_in_prerequisite_state',
				MESSAGE = format('endpoint "%s" has a path or timestamp_tolerance that cannot be used', path),
				HINT = 'Correct its row in banked.endpoints.';
	END;
	PERFORM banked._audit(action, jsonb_build_object('path', path, 'endpoint_id', endpoint.endpoint_id));
END
$$;
COMMENT ON FUNCTION banked._set_endpoint_state(text, text, text) IS 'what disable_endpoint() and its like have in common';

CREATE FUNCTION banked.disable_endpoint(path text)
RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
	SELECT banked._set_endpoint_state('disable_endpoint', path, 'disabled');
END;
COMMENT ON FUNCTION banked.disable_endpoint(text) IS
	'makes a path answer 404, so that Banked tries again later, until enable_endpoint(); 42704: no such endpoint; 55000: it is retired';

CREATE FUNCTION banked.enable_endpoint(path text)
RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
	SELECT banked._set_endpoint_state('enable_endpoint', path, 'active');
END;
COMMENT ON FUNCTION banked.enable_endpoint(text) IS
	'makes a disabled path receive webhooks again; 42704: no such endpoint; 55000: it is retired, or its row was given values that cannot be used';

CREATE FUNCTION banked.retire_endpoint(path text)
RETURNS void
LANGUAGE sql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
	SELECT banked._set_endpoint_state('retire_endpoint', path, 'retired');
END;
COMMENT ON FUNCTION banked.retire_endpoint(text) IS
	'makes a path answer 410 for ever, which ends Banked''s retries; the path cannot be enabled or registered again; 42704: no such endpoint';


--
-- Signing keys
--

CREATE FUNCTION banked._rotate_signing_key(path text, signing_key text, key_from_file text, overlap interval,
										   OUT key_id uuid, OUT generated_key text)
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
	endpoint record;
BEGIN
	IF signing_key IS NOT NULL AND key_from_file IS NOT NULL THEN
		RAISE EXCEPTION USING
			ERRCODE = 'invalid_parameter_value',
			MESSAGE = 'signing_key and signing_key_file exclude each other';
	END IF;
	PERFORM banked._check_duration('overlap', overlap, interval '0');
	SELECT e.endpoint_id, e.state INTO STRICT endpoint FROM banked._lock_endpoint(path) AS e;
	IF endpoint.state = 'retired' THEN
		RAISE EXCEPTION USING
			ERRCODE = 'object_not_in_prerequisite_state',
			MESSAGE = format('endpoint "%s" is retired', path);
	END IF;
	IF EXISTS (SELECT FROM banked.signing_keys AS k JOIN banked.key_secrets AS s ON s.key_id = k.key_id
			   WHERE k.endpoint_id = endpoint.endpoint_id AND k.valid_until IS NULL
				   AND banked._is_secret(s.secret, banked._key_context(k.key_id), coalesce(signing_key, key_from_file))) THEN
		RAISE EXCEPTION USING
			ERRCODE = 'duplicate_object',
			MESSAGE = format('this is the signing key of endpoint "%s" already', path),
			HINT = 'Give another one, or none to have one generated.';
	END IF;

	UPDATE banked.signing_keys AS k
	SET valid_until = now() + overlap
	WHERE k.endpoint_id = endpoint.endpoint_id
		AND (k.valid_until IS NULL OR k.valid_until > now() + overlap);
	SELECT k.key_id, k.generated_key INTO key_id, generated_key
	FROM banked._add_signing_key(endpoint.endpoint_id, coalesce(signing_key, key_from_file)) AS k;
	PERFORM banked._audit('rotate_signing_key', jsonb_build_object(
		'path', path, 'endpoint_id', endpoint.endpoint_id, 'key_id', key_id, 'overlap', overlap));
END
$$;
COMMENT ON FUNCTION banked._rotate_signing_key(text, text, text, interval) IS
	'rotate_signing_key() behind the reading of the file';

-- Not SECURITY DEFINER: the file is read with the rights of the caller.
CREATE FUNCTION banked.rotate_signing_key(path text, signing_key text DEFAULT NULL, overlap interval DEFAULT '22 days',
										  signing_key_file text DEFAULT NULL,
										  OUT key_id uuid, OUT signing_key text)
LANGUAGE sql VOLATILE
BEGIN ATOMIC
	SELECT r.key_id, r.generated_key
	FROM banked._rotate_signing_key(path, signing_key, banked._read_key_file(signing_key_file), overlap) AS r;
END;
COMMENT ON FUNCTION banked.rotate_signing_key(text, text, interval, text) IS
	'gives an endpoint one more key, passed or in a file of the server (neither: a new one, which is returned this once); older keys stay valid for the overlap, which must outlast the retries of deliveries signed with them; 22023: unusable argument; 42704: no such endpoint; 42710: it is the endpoint''s newest key already; 55000: it is retired, or other secrets are encrypted and no master key is set; 42501: the file may not be read; 58P01: there is no such file';

CREATE FUNCTION banked.revoke_signing_key(key_id uuid)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	key record;
BEGIN
	SELECT k.path, k.valid_until INTO STRICT key FROM banked._lock_signing_key(key_id) AS k;
	IF key.valid_until <= now() THEN
		RETURN;
	END IF;
	UPDATE banked.signing_keys AS k SET valid_until = now() WHERE k.key_id = revoke_signing_key.key_id;
	PERFORM banked._audit('revoke_signing_key', jsonb_build_object('path', key.path, 'key_id', key_id));
END
$$;
COMMENT ON FUNCTION banked.revoke_signing_key(uuid) IS
	'ends a key at once; what was signed with it can still be verified, until forget_signing_key(); 42704: no such key';

CREATE FUNCTION banked.forget_signing_key(key_id uuid)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	key record;
BEGIN
	SELECT k.path, k.valid_until INTO STRICT key FROM banked._lock_signing_key(key_id) AS k;
	IF key.valid_until IS NULL OR key.valid_until > now() THEN
		RAISE EXCEPTION USING
			ERRCODE = 'object_not_in_prerequisite_state',
			MESSAGE = format('signing key "%s" is still valid', key_id),
			HINT = 'Run SELECT banked.revoke_signing_key() before.';
	END IF;
	DELETE FROM banked.key_secrets AS s WHERE s.key_id = forget_signing_key.key_id;
	IF FOUND THEN
		PERFORM banked._audit('forget_signing_key', jsonb_build_object('path', key.path, 'key_id', key_id));
	END IF;
END
$$;
COMMENT ON FUNCTION banked.forget_signing_key(uuid) IS
	'deletes a key that has ended; events signed with it can no longer be verified; 42704: no such key; 55000: it is still valid';

CREATE FUNCTION banked.rotate_master_key(old_key_file text DEFAULT NULL)
RETURNS bigint
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
	changed bigint := 0;
	secret record;
	new_blob bytea;
BEGIN
	PERFORM banked.create_tables();
	LOCK TABLE banked.key_secrets, banked.api_credentials IN SHARE ROW EXCLUSIVE MODE;
	FOR secret IN
		SELECT s.key_id, s.secret FROM banked.key_secrets AS s
	LOOP
		new_blob := banked._reseal(secret.secret, banked._key_context(secret.key_id), old_key_file);
		IF new_blob IS NOT NULL THEN
			UPDATE banked.key_secrets AS s SET secret = new_blob WHERE s.key_id = secret.key_id;
			changed := changed + 1;
		END IF;
	END LOOP;
	FOR secret IN
		SELECT c.name, c.secret FROM banked.api_credentials AS c
	LOOP
		new_blob := banked._reseal(secret.secret, banked._credentials_context(secret.name), old_key_file);
		IF new_blob IS NOT NULL THEN
			UPDATE banked.api_credentials AS c SET secret = new_blob WHERE c.name = secret.name;
			changed := changed + 1;
		END IF;
	END LOOP;
	PERFORM banked._audit('rotate_master_key', jsonb_build_object('secrets', changed));
	RETURN changed;
END
$$;
COMMENT ON FUNCTION banked.rotate_master_key(text) IS
	'encrypts all signing keys and API credentials under the key in banked_webhooks.master_key_file, those that are clear and those that are encrypted under the key in old_key_file; returns how many were changed; all or none; 55000: no master key is set, it is the one in old_key_file, or a secret is encrypted under another one; F0000: a file is unusable; 58P01: there is no such file; XX001: a secret is damaged';


--
-- Banked's management API
--
-- These functions belong to a superuser and wait for the network.  They take
-- no lock that anybody else could wait for before they are done with it: what
-- they remember is written last.
--

CREATE FUNCTION banked._check_https_url(name text, url text)
RETURNS void
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	IF url IS NULL OR NOT banked._check_base_url(url) OR octet_length(url) > 2048 THEN
		RAISE EXCEPTION USING
			ERRCODE = 'invalid_parameter_value',
			MESSAGE = format('%s must be an https URL', name),
			DETAIL = 'It begins with https:// and a host, and holds no user, space, query or fragment.';
	END IF;
END
$$;
COMMENT ON FUNCTION banked._check_https_url(text, text) IS 'raises 22023 when an argument is no https URL';

CREATE FUNCTION banked._check_api_secret(name text, value text)
RETURNS void
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	problem text := CASE
		WHEN value IS NULL THEN 'It is null.'
		WHEN value = '' THEN 'It is empty.'
		WHEN octet_length(value) > 2048 THEN 'It is longer than 2048 bytes.'
		WHEN value ~ '[^\x21-\x7e]' THEN 'It contains a space, a control character or a character outside ASCII.'
		WHEN name = 'api_key' AND value ~ ':' THEN 'It contains a colon.'
	END;
BEGIN
	IF problem IS NOT NULL THEN
		RAISE EXCEPTION USING
			ERRCODE = 'invalid_parameter_value',
			MESSAGE = format('invalid %s', name),
			DETAIL = problem;
	END IF;
END
$$;
COMMENT ON FUNCTION banked._check_api_secret(text, text) IS
	'raises 22023, without the text, when it cannot be a part of API credentials';

CREATE FUNCTION banked._set_api_credentials(name text, api_key text, secret_key text, key_from_file text,
											auth text, scope text, base_url text, api_version text)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
	version text := lower(api_version);
BEGIN
	IF name IS NULL OR name !~ '^[A-Za-z0-9_.-]{1,63}$' THEN
		RAISE EXCEPTION USING
			ERRCODE = 'invalid_parameter_value',
			MESSAGE = 'invalid name of API credentials',
			DETAIL = 'A name is 1 to 63 letters, digits, "_", "." and "-".';
	END IF;
	IF secret_key IS NOT NULL AND key_from_file IS NOT NULL THEN
		RAISE EXCEPTION USING
			ERRCODE = 'invalid_parameter_value',
			MESSAGE = 'secret_key and secret_key_file exclude each other';
	END IF;
	PERFORM banked._check_api_secret('api_key', api_key);
	PERFORM banked._check_api_secret('secret_key', coalesce(secret_key, key_from_file));
	IF auth IS NULL OR auth NOT IN ('basic', 'oauth') THEN
		RAISE EXCEPTION USING
			ERRCODE = 'invalid_parameter_value',
			MESSAGE = 'auth must be basic or oauth';
	END IF;
	IF scope IS NOT NULL AND (auth = 'basic' OR scope !~ '^[\x21-\x7e]+( [\x21-\x7e]+)*$' OR octet_length(scope) > 1024) THEN
		RAISE EXCEPTION USING
			ERRCODE = 'invalid_parameter_value',
			MESSAGE = 'invalid scope',
			DETAIL = 'A scope is words with single spaces between them, and goes with auth oauth.';
	END IF;
	IF base_url IS NOT NULL THEN
		PERFORM banked._check_https_url('base_url', base_url);
	END IF;
	IF version IS NOT NULL THEN
		version := CASE version WHEN '2' THEN 'v2' WHEN '3' THEN 'v3' ELSE version END;
		IF version NOT IN ('v2', 'v3') THEN
			RAISE EXCEPTION USING
				ERRCODE = 'invalid_parameter_value',
				MESSAGE = 'api_version must be v2 or v3';
		END IF;
	END IF;

	PERFORM banked.create_tables();
	INSERT INTO banked.api_credentials AS c (name, auth, scope, base_url, api_version, secret)
	VALUES (name, auth, scope, base_url, version,
			banked._seal(api_key || ':' || coalesce(secret_key, key_from_file), banked._credentials_context(name)))
	ON CONFLICT ON CONSTRAINT api_credentials_pkey DO UPDATE
	SET auth = excluded.auth, scope = excluded.scope, base_url = excluded.base_url,
		api_version = excluded.api_version, secret = excluded.secret, changed_at = now();
	PERFORM banked._refuse_new_clear_secrets();
	PERFORM banked._audit('set_api_credentials', jsonb_build_object(
		'name', name, 'auth', auth, 'scope', scope, 'base_url', base_url, 'api_version', version));
END
$$;
COMMENT ON FUNCTION banked._set_api_credentials(text, text, text, text, text, text, text, text) IS
	'set_api_credentials() behind the reading of the file';

-- Not SECURITY DEFINER: the file is read with the rights of the caller.
CREATE FUNCTION banked.set_api_credentials(name text DEFAULT 'default', api_key text DEFAULT NULL, secret_key text DEFAULT NULL,
										   secret_key_file text DEFAULT NULL, auth text DEFAULT 'basic', scope text DEFAULT NULL,
										   base_url text DEFAULT NULL, api_version text DEFAULT NULL)
RETURNS void
LANGUAGE plpgsql VOLATILE SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
	PERFORM banked._set_api_credentials(name, api_key, secret_key, banked._read_key_file(secret_key_file),
										auth, scope, base_url, api_version);
END
$$;
COMMENT ON FUNCTION banked.set_api_credentials(text, text, text, text, text, text, text, text) IS
	'stores, in place of those of the name, what Banked''s console shows as API key and secret key (or the server''s file that holds the latter); auth basic, or oauth with a scope; base_url and api_version (v2, v3) instead of the settings; 22023: unusable argument; 55000: other secrets are encrypted, and no master key is set; 42501: the file may not be read; 58P01: there is no such file';

CREATE FUNCTION banked.drop_api_credentials(name text)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	PERFORM banked.create_tables();
	DELETE FROM banked.api_credentials AS c WHERE c.name = drop_api_credentials.name;
	IF NOT FOUND THEN
		RAISE EXCEPTION USING
			ERRCODE = 'undefined_object',
			MESSAGE = format('API credentials %s do not exist', coalesce('"' || name || '"', 'null'));
	END IF;
	PERFORM banked._audit('drop_api_credentials', jsonb_build_object('name', name));
END
$$;
COMMENT ON FUNCTION banked.drop_api_credentials(text) IS 'forgets API credentials; 42704: there are none of that name';

/*
 * Banked does not document its answers: what a webhook is called in them is
 * looked for under the names that are usual, and the rest is handed on as it is, but
 * for secrets.
 */
CREATE FUNCTION banked._webhook_of(answer jsonb, OUT webhook_id text, OUT target_url text, OUT events text[], OUT webhook jsonb)
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	webhook := banked._without_secrets(answer);
	IF jsonb_typeof(answer) <> 'object' THEN
		RETURN;
	END IF;
	webhook := coalesce(CASE WHEN NOT webhook ? 'id' AND jsonb_typeof(webhook -> 'webhook') = 'object' THEN webhook -> 'webhook' END,
						CASE WHEN NOT webhook ? 'id' AND jsonb_typeof(webhook -> 'data') = 'object' THEN webhook -> 'data' END,
						webhook);
	webhook_id := coalesce(webhook ->> 'id', webhook ->> 'webhook_id', webhook ->> 'uuid');
	target_url := coalesce(webhook ->> 'target_url', webhook ->> 'url');
	IF jsonb_typeof(webhook -> 'events') = 'array' THEN
		events := ARRAY(SELECT CASE jsonb_typeof(e.event)
								   WHEN 'string' THEN e.event #>> '{}'
								   WHEN 'object' THEN coalesce(e.event ->> 'type', e.event ->> 'name', e.event ->> 'event')
							   END
						FROM jsonb_array_elements(webhook -> 'events') WITH ORDINALITY AS e (event, place)
						ORDER BY e.place);
	END IF;
END
$$;
COMMENT ON FUNCTION banked._webhook_of(jsonb) IS 'what an answer of Banked''s says of one webhook, without secrets';

CREATE FUNCTION banked._webhooks_of(answer jsonb)
RETURNS TABLE (webhook_id text, target_url text, events text[], webhook jsonb)
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	list jsonb := CASE jsonb_typeof(answer)
		WHEN 'array' THEN answer
		WHEN 'object' THEN (SELECT answer -> k.name
							FROM unnest('{webhooks,data,items,results}'::text[]) WITH ORDINALITY AS k (name, place)
							WHERE jsonb_typeof(answer -> k.name) = 'array'
							ORDER BY k.place
							LIMIT 1)
	END;
BEGIN
	IF answer IS NOT NULL AND list IS NULL THEN
		RAISE EXCEPTION USING
			ERRCODE = 'WH005',
			MESSAGE = 'Banked''s answer holds no list of webhooks',
			HINT = 'The version of the API may be another one: see banked_webhooks.api_version.';
	END IF;
	RETURN QUERY
		SELECT w.webhook_id, w.target_url, w.events, w.webhook
		FROM jsonb_array_elements(list) WITH ORDINALITY AS e (element, place)
			CROSS JOIN LATERAL banked._webhook_of(e.element) AS w
		ORDER BY e.place;
END
$$;
COMMENT ON FUNCTION banked._webhooks_of(jsonb) IS 'what an answer of Banked''s says of its webhooks; WH005: it holds no list';

CREATE FUNCTION banked._check_webhook_id(id text)
RETURNS void
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	-- It becomes a part of a URL.
	IF id IS NULL OR id !~ '^[A-Za-z0-9_~-][A-Za-z0-9._~-]{0,254}$' THEN
		RAISE EXCEPTION USING
			ERRCODE = 'invalid_parameter_value',
			MESSAGE = 'invalid id of a webhook';
	END IF;
END
$$;
COMMENT ON FUNCTION banked._check_webhook_id(text) IS 'raises 22023 when a text cannot be an id that Banked gave';

CREATE FUNCTION banked._check_webhook_events(events text[])
RETURNS void
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	PERFORM banked._check_events(events);
	IF EXISTS (SELECT FROM unnest(events) AS e (type) WHERE e.type ~ '\*') THEN
		RAISE EXCEPTION USING
			ERRCODE = 'invalid_parameter_value',
			MESSAGE = 'invalid list of event types',
			DETAIL = 'Banked knows no patterns.';
	END IF;
END
$$;
COMMENT ON FUNCTION banked._check_webhook_events(text[]) IS 'raises 22023 when an array cannot be the event types of a webhook at Banked';

CREATE FUNCTION banked.api_list_webhooks(credentials text DEFAULT 'default')
RETURNS TABLE (webhook_id text, url text, event_types text[], webhook jsonb)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	PERFORM banked._check_owners();
	RETURN QUERY SELECT w.webhook_id, w.target_url, w.events, w.webhook
		FROM banked._webhooks_of(banked._api_call(credentials, 'GET', '/webhooks', NULL, NULL, NULL)) AS w;
END
$$;
COMMENT ON FUNCTION banked.api_list_webhooks(text) IS
	'the webhooks that Banked has for these credentials; webhook is its answer, without secrets; 42704: no such credentials; 55000: they are encrypted under a master key that is not there; WH...: the call failed (each class of failure has its own SQLSTATE)';

CREATE FUNCTION banked.api_create_webhook(target_url text, signature_key text, events text[], credentials text DEFAULT 'default')
RETURNS TABLE (webhook_id text, url text, event_types text[], webhook jsonb)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
	PERFORM banked._check_owners();
	PERFORM banked._check_https_url('target_url', target_url);
	PERFORM banked._check_signing_key(coalesce(signature_key, ''));
	PERFORM banked._check_webhook_events(coalesce(events, '{}'));
	RETURN QUERY SELECT w.webhook_id, w.target_url, w.events, w.webhook
		FROM banked._webhook_of(banked._api_call(credentials, 'POST', '/webhooks',
			jsonb_build_object('target_url', api_create_webhook.target_url, 'events', api_create_webhook.events),
			NULL, signature_key)) AS w;
	PERFORM banked.create_tables();
	PERFORM banked._audit('api_create_webhook', jsonb_build_object(
		'credentials', credentials, 'target_url', api_create_webhook.target_url, 'events', api_create_webhook.events));
END
$$;
COMMENT ON FUNCTION banked.api_create_webhook(text, text, text[], text) IS
	'makes Banked send events of some types to a URL, signed with a key; payment and mandate types need separate webhooks; 22023: unusable argument; otherwise as api_list_webhooks()';

CREATE FUNCTION banked.api_update_webhook(id text, target_url text DEFAULT NULL, signature_key text DEFAULT NULL,
										  events text[] DEFAULT NULL, credentials text DEFAULT 'default')
RETURNS TABLE (webhook_id text, url text, event_types text[], webhook jsonb)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
AS $$
BEGIN
	PERFORM banked._check_owners();
	PERFORM banked._check_webhook_id(id);
	IF num_nonnulls(target_url, signature_key, events) = 0 THEN
		RAISE EXCEPTION USING
			ERRCODE = 'invalid_parameter_value',
			MESSAGE = 'nothing to update',
			HINT = 'Pass target_url, signature_key or events.';
	END IF;
	IF target_url IS NOT NULL THEN
		PERFORM banked._check_https_url('target_url', target_url);
	END IF;
	PERFORM banked._check_signing_key(signature_key);
	PERFORM banked._check_webhook_events(events);
	RETURN QUERY SELECT w.webhook_id, w.target_url, w.events, w.webhook
		FROM banked._webhook_of(banked._api_call(credentials, 'PATCH', '/webhooks/' || id,
			jsonb_strip_nulls(jsonb_build_object('target_url', api_update_webhook.target_url, 'events', api_update_webhook.events)),
			NULL, signature_key)) AS w;
	PERFORM banked.create_tables();
	PERFORM banked._audit('api_update_webhook', jsonb_build_object(
		'credentials', credentials, 'id', id, 'target_url', api_update_webhook.target_url, 'events', api_update_webhook.events,
		'signature_key', CASE WHEN signature_key IS NOT NULL THEN 'changed' END));
END
$$;
COMMENT ON FUNCTION banked.api_update_webhook(text, text, text, text[], text) IS
	'changes what is passed of a webhook at Banked; 22023: unusable argument; WH404: Banked has no such webhook; otherwise as api_list_webhooks()';

CREATE FUNCTION banked.api_delete_webhook(id text, credentials text DEFAULT 'default')
RETURNS TABLE (webhook_id text, webhook jsonb)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	PERFORM banked._check_owners();
	PERFORM banked._check_webhook_id(id);
	RETURN QUERY SELECT id, w.webhook
		FROM banked._webhook_of(banked._api_call(credentials, 'DELETE', '/webhooks/' || id, NULL, NULL, NULL)) AS w;
	PERFORM banked.create_tables();
	PERFORM banked._audit('api_delete_webhook', jsonb_build_object('credentials', credentials, 'id', id));
END
$$;
COMMENT ON FUNCTION banked.api_delete_webhook(text, text) IS
	'makes Banked forget a webhook; webhook is its answer, null when that is empty; 22023: unusable id; WH404: Banked has no such webhook; otherwise as api_list_webhooks()';


--
-- Publishing: Banked is made to deliver to an endpoint
--

CREATE FUNCTION banked._create_publication_table()
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	IF to_regclass('banked.published_webhooks') IS NULL THEN
		CREATE TABLE banked.published_webhooks (
			endpoint_id uuid NOT NULL REFERENCES banked.endpoints,
			credentials text COLLATE "C",
			kind text CHECK (kind IN ('payment', 'mandate')),
			webhook_id text NOT NULL,
			target_url text NOT NULL,
			events text[] NOT NULL,
			key_id uuid NOT NULL,
			published_at timestamptz NOT NULL DEFAULT now(),
			PRIMARY KEY (endpoint_id, credentials, kind)
		);
		COMMENT ON TABLE banked.published_webhooks IS
			'what publish_endpoint() told Banked, and under which ids Banked keeps it';
		COMMENT ON COLUMN banked.published_webhooks.endpoint_id IS 'the endpoint that Banked delivers to';
		COMMENT ON COLUMN banked.published_webhooks.credentials IS 'the API credentials it was published with';
		COMMENT ON COLUMN banked.published_webhooks.kind IS
			'mandate: types of mandates; payment: all others; Banked takes them in separate webhooks alone';
		COMMENT ON COLUMN banked.published_webhooks.webhook_id IS 'the id that Banked gave';
		COMMENT ON COLUMN banked.published_webhooks.target_url IS 'where Banked delivers';
		COMMENT ON COLUMN banked.published_webhooks.events IS 'the event types that it delivers there';
		COMMENT ON COLUMN banked.published_webhooks.key_id IS 'the signing key that Banked was told';
		COMMENT ON COLUMN banked.published_webhooks.published_at IS 'when Banked was last told something new';
	END IF;
END
$$;
COMMENT ON FUNCTION banked._create_publication_table() IS 'makes published_webhooks where it is missing';

CREATE FUNCTION banked._known_event_types()
RETURNS text[]
LANGUAGE sql IMMUTABLE
RETURN ARRAY['payment_initiated', 'payment_pending', 'payment_sent', 'payment_failed', 'payment_canceled',
			 'mandate_pending', 'mandate_active', 'mandate_declined', 'mandate_suspended', 'mandate_cancelled',
			 'mandate_expired', 'mandate_failed',
			 'payout_pending', 'payout_sent', 'payout_failed', 'payout_canceled',
			 'refund_pending', 'refund_sent', 'refund_failed', 'refund_canceled',
			 'batch_payment_accepted', 'batch_payment_failed'];
COMMENT ON FUNCTION banked._known_event_types() IS
	'the event types that Banked documents: what patterns and "all" stand for when an endpoint is published';

CREATE FUNCTION banked._webhook_kind(event_type text)
RETURNS text
LANGUAGE sql IMMUTABLE
RETURN CASE WHEN event_type LIKE 'mandate\_%' THEN 'mandate' ELSE 'payment' END;
COMMENT ON FUNCTION banked._webhook_kind(text) IS 'in which of the two webhooks of an endpoint a type belongs';

CREATE FUNCTION banked._wanted_webhooks(events text[])
RETURNS TABLE (kind text, events text[])
LANGUAGE sql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
	SELECT banked._webhook_kind(t.type), array_agg(t.type ORDER BY t.place, t.type)
	FROM (SELECT w.type, min(w.place) AS place
		  FROM (SELECT k.type, k.place
				FROM unnest(banked._known_event_types()) WITH ORDINALITY AS k (type, place)
				WHERE $1 IS NULL
					OR EXISTS (SELECT FROM unnest($1) AS f (filter)
							   WHERE f.filter LIKE '%*' AND starts_with(k.type, rtrim(f.filter, '*')))
				UNION ALL
				SELECT f.filter, coalesce(array_position(banked._known_event_types(), f.filter), 1000)
				FROM unnest($1) AS f (filter)
				WHERE f.filter NOT LIKE '%*') AS w (type, place)
		  GROUP BY w.type) AS t
	GROUP BY 1
	ORDER BY 1 DESC
$$;
COMMENT ON FUNCTION banked._wanted_webhooks(text[]) IS
	'the webhooks that an endpoint with these event types needs at Banked: patterns are spelt out';

CREATE FUNCTION banked._signing_key_to_publish(endpoint_id uuid, OUT key_id uuid, OUT is_committed boolean)
LANGUAGE sql STABLE SET search_path = pg_catalog, pg_temp
AS $$
	SELECT k.key_id, NOT (banked._is_own_transaction(s.xmin)
						  OR EXISTS (SELECT FROM banked.signing_keys AS c
									 WHERE c.endpoint_id = $1 AND banked._is_own_transaction(c.xmin)))
	FROM banked.signing_keys AS k JOIN banked.key_secrets AS s ON s.key_id = k.key_id
	WHERE k.endpoint_id = $1 AND (k.valid_until IS NULL OR k.valid_until > now())
	ORDER BY k.valid_until DESC NULLS FIRST, k.valid_from DESC
	LIMIT 1
$$;
COMMENT ON FUNCTION banked._signing_key_to_publish(uuid) IS
	'the key of an endpoint that stays valid for longest, and whether all that makes it so is committed: it itself, and what became of the others';

CREATE FUNCTION banked._find_publishable(path text, OUT endpoint_id uuid, OUT state text, OUT events text[])
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	PERFORM banked._check_owners();
	IF path IS NULL THEN
		RAISE EXCEPTION USING
			ERRCODE = 'invalid_parameter_value',
			MESSAGE = 'path must not be null';
	END IF;
	-- Its lock would be held as long as the network takes.
	IF to_regclass('banked.published_webhooks') IS NULL THEN
		PERFORM banked.create_tables();
	END IF;
	SELECT e.endpoint_id, e.state, e.events INTO endpoint_id, state, events
	FROM banked.endpoints AS e WHERE e.path = _find_publishable.path;
	IF NOT FOUND THEN
		RAISE EXCEPTION USING
			ERRCODE = 'undefined_object',
			MESSAGE = format('endpoint "%s" does not exist', path);
	END IF;
END
$$;
COMMENT ON FUNCTION banked._find_publishable(text) IS
	'the endpoint of a path, not locked; 42704: there is none; 22023: path is null';

CREATE FUNCTION banked._lock_publication()
RETURNS boolean
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'banked_webhooks_lock_publication';
COMMENT ON FUNCTION banked._lock_publication() IS
	'takes the lock of publications until the end of the transaction; false when another one has it';

/*
 * Two sessions that publish one endpoint would make two webhooks: the second
 * fails at once.  Nobody else can take this lock, and nothing waits for it.
 * It is taken first: what is read before it may be out of date when it is had.
 */
CREATE FUNCTION banked._claim_publication()
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	PERFORM banked._check_owners();
	-- Its lock would be held as long as the network takes.
	IF to_regclass('banked.published_webhooks') IS NULL THEN
		PERFORM banked.create_tables();
	END IF;
	IF NOT banked._lock_publication() THEN
		RAISE EXCEPTION USING
			ERRCODE = 'lock_not_available',
			MESSAGE = 'another session is publishing or unpublishing an endpoint',
			HINT = 'Try again when its transaction has ended.';
	END IF;
END
$$;
COMMENT ON FUNCTION banked._claim_publication() IS
	'keeps others from publishing until the end of the transaction; 55P03: somebody does';

/*
 * What is at Banked decides, not what is remembered: a call that failed in the middle
 * may have made webhooks that nobody could remember.  So the list is read
 * first, webhooks are recognized by their id or by this very URL, and what is
 * right already is left as it is.
 */
CREATE FUNCTION banked.publish_endpoint(path text, public_url text DEFAULT NULL, credentials text DEFAULT 'default')
RETURNS TABLE (kind text, action text, webhook_id text, url text, event_types text[])
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	endpoint record;
	key record;
	wanted record;
	remembered record;
	present jsonb;
	found_id text;
	match record;
	answer record;
	taken text[] := '{}';
	done jsonb[] := '{}';
	forgotten text[] := '{}';
BEGIN
	IF public_url IS NOT NULL THEN
		PERFORM banked._check_https_url('public_url', public_url);
	END IF;
	PERFORM banked._claim_publication();
	SELECT e.endpoint_id, e.state, e.events INTO STRICT endpoint FROM banked._find_publishable(path) AS e;
	IF endpoint.state <> 'active' THEN
		RAISE EXCEPTION USING
			ERRCODE = 'object_not_in_prerequisite_state',
			MESSAGE = format('endpoint "%s" is %s', path, endpoint.state);
	END IF;
	IF NOT EXISTS (SELECT FROM banked._wanted_webhooks(endpoint.events)) THEN
		RAISE EXCEPTION USING
			ERRCODE = 'object_not_in_prerequisite_state',
			MESSAGE = format('endpoint "%s" wants no event type that Banked documents', path),
			DETAIL = 'Its patterns fit none of them.';
	END IF;
	SELECT k.key_id, k.is_committed INTO key FROM banked._signing_key_to_publish(endpoint.endpoint_id) AS k;
	IF key.key_id IS NULL THEN
		RAISE EXCEPTION USING
			ERRCODE = 'object_not_in_prerequisite_state',
			MESSAGE = format('endpoint "%s" has no valid signing key', path),
			HINT = 'Run SELECT banked.rotate_signing_key() and commit.';
	END IF;
	IF NOT key.is_committed THEN
		RAISE EXCEPTION USING
			ERRCODE = 'object_not_in_prerequisite_state',
			MESSAGE = format('the signing key of endpoint "%s" is not committed yet', path),
			DETAIL = 'If this transaction were rolled back, Banked would sign with a key that nobody has, or not with the newest.',
			HINT = 'Commit, then run SELECT banked.publish_endpoint() again.';
	END IF;
	IF public_url IS NULL THEN
		SELECT p.target_url INTO public_url FROM banked.published_webhooks AS p
		WHERE p.endpoint_id = endpoint.endpoint_id AND p.credentials = publish_endpoint.credentials
		ORDER BY p.published_at DESC LIMIT 1;
		IF NOT FOUND THEN
			RAISE EXCEPTION USING
				ERRCODE = 'invalid_parameter_value',
				MESSAGE = 'public_url is needed when an endpoint is published for the first time',
				HINT = format('It is the https URL at which Banked reaches path "%s" of this server.', path);
		END IF;
	END IF;

	present := (SELECT coalesce(jsonb_agg(to_jsonb(w)), '[]')
				FROM banked._webhooks_of(banked._api_call(credentials, 'GET', '/webhooks', NULL, NULL, NULL)) AS w);
	taken := ARRAY(SELECT p.webhook_id FROM banked.published_webhooks AS p
				   WHERE NOT (p.endpoint_id = endpoint.endpoint_id AND p.credentials = publish_endpoint.credentials));

	FOR wanted IN SELECT w.kind, w.events FROM banked._wanted_webhooks(endpoint.events) AS w LOOP
		SELECT p.webhook_id, p.target_url, p.events, p.key_id INTO remembered
		FROM banked.published_webhooks AS p
		WHERE p.endpoint_id = endpoint.endpoint_id AND p.credentials = publish_endpoint.credentials AND p.kind = wanted.kind;

		-- The one that is remembered, else one for this URL, with types of this kind or none that are told.
		SELECT w.webhook_id, w.target_url, w.events INTO match
		FROM jsonb_to_recordset(present) AS w (webhook_id text, target_url text, events text[])
		WHERE w.webhook_id IS NOT NULL AND w.webhook_id <> ALL (taken)
			AND (w.webhook_id = remembered.webhook_id
				 OR (w.target_url = public_url
					 AND NOT EXISTS (SELECT FROM banked.published_webhooks AS p
									 WHERE p.endpoint_id = endpoint.endpoint_id AND p.webhook_id = w.webhook_id AND p.kind <> wanted.kind)
					 AND (w.events IS NULL OR w.events = '{}'
						  OR EXISTS (SELECT FROM unnest(w.events) AS e (type) WHERE banked._webhook_kind(e.type) = wanted.kind))))
		ORDER BY (w.webhook_id = remembered.webhook_id) DESC NULLS LAST
		LIMIT 1;
		found_id := match.webhook_id;

		IF found_id IS NULL THEN
			SELECT w.webhook_id INTO found_id
			FROM banked._webhook_of(banked._api_call(credentials, 'POST', '/webhooks',
				jsonb_build_object('target_url', public_url, 'events', wanted.events), key.key_id, NULL)) AS w;
			IF found_id IS NULL THEN
				-- Its answer does not tell; the list does.
				SELECT w.webhook_id INTO found_id
				FROM banked._webhooks_of(banked._api_call(credentials, 'GET', '/webhooks', NULL, NULL, NULL)) AS w
				WHERE w.target_url = public_url AND w.webhook_id IS NOT NULL AND w.webhook_id <> ALL (taken)
					AND NOT EXISTS (SELECT FROM jsonb_array_elements(present) AS b (webhook) WHERE b.webhook ->> 'webhook_id' = w.webhook_id)
				LIMIT 1;
			END IF;
			IF found_id IS NULL THEN
				RAISE EXCEPTION USING
					ERRCODE = 'WH005',
					MESSAGE = 'Banked does not tell the id of the webhook that it has made',
					HINT = 'See SELECT * FROM banked.api_list_webhooks().';
			END IF;
			action := 'created';
		ELSIF remembered.webhook_id = found_id AND remembered.key_id = key.key_id
			AND remembered.target_url = public_url AND coalesce(match.target_url, public_url) = public_url
			AND remembered.events = wanted.events
			AND (match.events IS NULL OR (match.events @> wanted.events AND match.events <@ wanted.events)) THEN
			action := 'unchanged';
		ELSE
			PERFORM banked._check_webhook_id(found_id);
			PERFORM banked._api_call(credentials, 'PATCH', '/webhooks/' || found_id,
				jsonb_build_object('target_url', public_url, 'events', wanted.events), key.key_id, NULL);
			action := 'updated';
		END IF;
		taken := taken || found_id;
		done := done || jsonb_build_object('kind', wanted.kind, 'action', action, 'webhook_id', found_id, 'events', wanted.events);
	END LOOP;

	-- Webhooks of a kind that is not wanted any more.
	FOR remembered IN
		SELECT p.kind, p.webhook_id, p.events FROM banked.published_webhooks AS p
		WHERE p.endpoint_id = endpoint.endpoint_id AND p.credentials = publish_endpoint.credentials
			AND NOT EXISTS (SELECT FROM unnest(done) AS d (webhook) WHERE d.webhook ->> 'kind' = p.kind)
	LOOP
		PERFORM banked._delete_webhook(remembered.webhook_id, credentials);
		forgotten := forgotten || remembered.kind;
		done := done || jsonb_build_object('kind', remembered.kind, 'action', 'deleted', 'webhook_id', remembered.webhook_id, 'events', remembered.events);
	END LOOP;

	DELETE FROM banked.published_webhooks AS p
	WHERE p.endpoint_id = endpoint.endpoint_id AND p.credentials = publish_endpoint.credentials AND p.kind = ANY (forgotten);
	INSERT INTO banked.published_webhooks AS p (endpoint_id, credentials, kind, webhook_id, target_url, events, key_id)
	SELECT endpoint.endpoint_id, publish_endpoint.credentials, d.kind, d.webhook_id, public_url, d.events, key.key_id
	FROM unnest(done) AS u (webhook)
		CROSS JOIN LATERAL jsonb_to_record(u.webhook) AS d (kind text, action text, webhook_id text, events text[])
	WHERE d.action <> 'deleted'
	ON CONFLICT ON CONSTRAINT published_webhooks_pkey DO UPDATE
	SET webhook_id = excluded.webhook_id, target_url = excluded.target_url, events = excluded.events,
		key_id = excluded.key_id, published_at = excluded.published_at
	WHERE (p.webhook_id, p.target_url, p.events, p.key_id)
		IS DISTINCT FROM (excluded.webhook_id, excluded.target_url, excluded.events, excluded.key_id);
	PERFORM banked._audit('publish_endpoint', jsonb_build_object(
		'path', path, 'endpoint_id', endpoint.endpoint_id, 'credentials', credentials, 'public_url', public_url,
		'key_id', key.key_id, 'webhooks', to_jsonb(done)));
	RETURN QUERY SELECT d.kind, d.action, d.webhook_id, public_url, d.events
		FROM unnest(done) WITH ORDINALITY AS u (webhook, place)
			CROSS JOIN LATERAL jsonb_to_record(u.webhook) AS d (kind text, action text, webhook_id text, events text[])
		ORDER BY u.place;
END
$$;
COMMENT ON FUNCTION banked.publish_endpoint(text, text, text) IS
	'makes Banked deliver the endpoint''s event types to the https URL that leads to it, signed with its newest key: makes the webhooks, or brings those that are there for this URL up to date; calling again completes what failed in the middle; without public_url the one of before; 22023: unusable argument; 42704: no such endpoint or credentials; 55000: the endpoint is not active, or its key is not committed yet or not readable; 55P03: another session is at it; WH...: the call failed';

CREATE FUNCTION banked._delete_webhook(webhook_id text, credentials text)
RETURNS boolean
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	PERFORM banked._check_webhook_id(webhook_id);
	PERFORM banked._api_call(credentials, 'DELETE', '/webhooks/' || webhook_id, NULL, NULL, NULL);
	RETURN true;
EXCEPTION
	WHEN SQLSTATE 'WH404' THEN
		RETURN false;
END
$$;
COMMENT ON FUNCTION banked._delete_webhook(text, text) IS 'deletes a webhook at Banked; false when Banked has none of that id';

CREATE FUNCTION banked.unpublish_endpoint(path text, retire boolean DEFAULT false, credentials text DEFAULT 'default')
RETURNS TABLE (kind text, action text, webhook_id text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	endpoint record;
	doomed record;
	deleted text[] := '{}';
BEGIN
	IF credentials IS NULL THEN
		RAISE EXCEPTION USING
			ERRCODE = 'invalid_parameter_value',
			MESSAGE = 'credentials must not be null';
	END IF;
	PERFORM banked._claim_publication();
	SELECT e.endpoint_id, e.state INTO STRICT endpoint FROM banked._find_publishable(path) AS e;

	-- Those that are remembered, and what a call that failed has left at Banked for the same URL.
	FOR doomed IN
		SELECT w.kind, w.webhook_id
		FROM (SELECT p.kind, p.webhook_id, 1 AS place FROM banked.published_webhooks AS p
			  WHERE p.endpoint_id = endpoint.endpoint_id AND p.credentials = unpublish_endpoint.credentials
			  UNION ALL
			  SELECT NULL, l.webhook_id, 2
			  FROM banked._webhooks_of(banked._api_call(credentials, 'GET', '/webhooks', NULL, NULL, NULL)) AS l
			  WHERE l.target_url IN (SELECT p.target_url FROM banked.published_webhooks AS p
									 WHERE p.endpoint_id = endpoint.endpoint_id AND p.credentials = unpublish_endpoint.credentials)
				AND l.webhook_id IS NOT NULL
				AND NOT EXISTS (SELECT FROM banked.published_webhooks AS p WHERE p.webhook_id = l.webhook_id)) AS w
		ORDER BY w.place, w.kind
	LOOP
		kind := doomed.kind;
		webhook_id := doomed.webhook_id;
		action := CASE WHEN banked._delete_webhook(doomed.webhook_id, credentials) THEN 'deleted' ELSE 'was gone' END;
		deleted := deleted || doomed.webhook_id;
		RETURN NEXT;
	END LOOP;

	DELETE FROM banked.published_webhooks AS p
	WHERE p.endpoint_id = endpoint.endpoint_id AND p.credentials = unpublish_endpoint.credentials;
	PERFORM banked._audit('unpublish_endpoint', jsonb_build_object(
		'path', path, 'endpoint_id', endpoint.endpoint_id, 'credentials', credentials, 'webhooks', to_jsonb(deleted)));
	IF retire THEN
		PERFORM banked._set_endpoint_state('retire_endpoint', path, 'retired');
	END IF;
END
$$;
COMMENT ON FUNCTION banked.unpublish_endpoint(text, boolean, text) IS
	'deletes at Banked what publish_endpoint() made there, and retires the path here on request; calling again completes what failed in the middle; 42704: no such endpoint or credentials; 55P03: another session is at it; WH...: the call failed';

CREATE FUNCTION banked.endpoint_drift(credentials text DEFAULT 'default')
RETURNS TABLE (path text, kind text, webhook_id text, problem text, here jsonb, at_banked jsonb)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	present jsonb;
BEGIN
	PERFORM banked._check_owners();
	IF to_regclass('banked.published_webhooks') IS NULL THEN
		PERFORM banked.create_tables();
	END IF;
	present := (SELECT coalesce(jsonb_agg(to_jsonb(w)), '[]')
				FROM banked._webhooks_of(banked._api_call(credentials, 'GET', '/webhooks', NULL, NULL, NULL)) AS w);
	RETURN QUERY
		WITH there AS MATERIALIZED (
			SELECT w.webhook_id, w.target_url, w.events, w.webhook
			FROM jsonb_to_recordset(present) AS w (webhook_id text, target_url text, events text[], webhook jsonb)
		), published AS MATERIALIZED (
			SELECT e.path, e.state, p.kind, p.webhook_id, p.target_url, p.key_id, w.events AS wanted,
				   t.webhook_id IS NOT NULL AS is_there, t.target_url AS their_url, t.events AS their_events,
				   k.key_id AS newest_key
			FROM banked.published_webhooks AS p
				JOIN banked.endpoints AS e ON e.endpoint_id = p.endpoint_id
				LEFT JOIN there AS t ON t.webhook_id = p.webhook_id
				LEFT JOIN LATERAL banked._wanted_webhooks(e.events) AS w ON w.kind = p.kind
				LEFT JOIN LATERAL banked._signing_key_to_publish(e.endpoint_id) AS k ON true
			WHERE p.credentials = endpoint_drift.credentials
		)
		SELECT p.path, p.kind, p.webhook_id, d.problem, d.here, d.at_banked
		FROM published AS p
			CROSS JOIN LATERAL (VALUES
				(p.state <> 'active', 'endpoint is not active', to_jsonb(p.state), NULL),
				(NOT p.is_there, 'webhook is missing', to_jsonb(p.target_url), NULL),
				(p.their_url <> p.target_url, 'url differs', to_jsonb(p.target_url), to_jsonb(p.their_url)),
				(p.wanted IS NULL OR NOT (p.their_events @> p.wanted AND p.their_events <@ p.wanted),
				 'event types differ', to_jsonb(p.wanted), to_jsonb(p.their_events)),
				(p.newest_key IS DISTINCT FROM p.key_id, 'signing key differs', to_jsonb(p.newest_key), to_jsonb(p.key_id))
			) AS d (applies, problem, here, at_banked)
		WHERE d.applies
		UNION ALL
		SELECT e.path, w.kind, NULL, 'webhook is not published', to_jsonb(w.events), NULL
		FROM banked.endpoints AS e CROSS JOIN LATERAL banked._wanted_webhooks(e.events) AS w
		WHERE e.state = 'active'
			AND EXISTS (SELECT FROM banked.published_webhooks AS p
						WHERE p.endpoint_id = e.endpoint_id AND p.credentials = endpoint_drift.credentials)
			AND NOT EXISTS (SELECT FROM banked.published_webhooks AS p
							WHERE p.endpoint_id = e.endpoint_id AND p.credentials = endpoint_drift.credentials AND p.kind = w.kind)
		UNION ALL
		SELECT e.path, NULL, NULL, 'endpoint is not published', NULL, NULL
		FROM banked.endpoints AS e
		WHERE e.state = 'active' AND NOT EXISTS (SELECT FROM banked.published_webhooks AS p WHERE p.endpoint_id = e.endpoint_id)
		UNION ALL
		SELECT (SELECT min(p.path) FROM published AS p WHERE p.target_url = t.target_url), NULL, t.webhook_id,
			   'webhook is not from here', NULL, t.webhook
		FROM there AS t
		WHERE NOT EXISTS (SELECT FROM banked.published_webhooks AS p WHERE p.webhook_id = t.webhook_id)
		ORDER BY 1 NULLS LAST, 2 NULLS LAST, 4, 3;
END
$$;
COMMENT ON FUNCTION banked.endpoint_drift(text) IS
	'compares what Banked has under these credentials with what is registered here: a row for each difference, none when all is as it should be; the key that Banked signs with is the one that it was told last; otherwise as api_list_webhooks()';


--
-- Test events
--

CREATE FUNCTION banked._test_body(event_type text, version text, overrides jsonb)
RETURNS jsonb
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	parts text[] := regexp_match(event_type, '^(batch_payment|[a-z]+)_([a-z]+)$');
	resource text := parts[1];
	id text := gen_random_uuid();
	at text := to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS') || ' UTC';
	body jsonb;
	data jsonb;
BEGIN
	IF parts IS NULL THEN
		RAISE EXCEPTION USING
			ERRCODE = 'invalid_parameter_value',
			MESSAGE = format('no test event of type %s can be made', quote_nullable(event_type)),
			DETAIL = 'A type is a resource and a state, such as payment_sent.';
	END IF;
	data := jsonb_build_object('amount', 1050, 'currency', 'GBP', 'reference', 'TEST-' || upper(left(id, 8)), 'end_to_end_id', NULL,
							   'payee', jsonb_build_object('name', 'Example Shop', 'account_number', '12345678', 'sort_code', '123456'));
	CASE resource
		WHEN 'mandate' THEN
			data := data - '{amount,end_to_end_id}'::text[] || jsonb_build_object('maximum_amount', 5000, 'frequency', 'monthly');
		WHEN 'batch_payment' THEN
			data := data - '{end_to_end_id,payee}'::text[] || jsonb_build_object('number_of_payments', 3, 'amount', 3150);
		WHEN 'refund' THEN
			data := data || jsonb_build_object('payment_id', gen_random_uuid(), 'amount', 500);
		WHEN 'payment' THEN
			data := data || jsonb_build_object('payer', jsonb_build_object('name', 'Example Customer', 'account_number', '87654321', 'sort_code', '654321'),
				'line_items', jsonb_build_array(jsonb_build_object('name', 'Candle', 'description', NULL, 'amount', 1050, 'currency', 'GBP', 'quantity', 1)));
		ELSE
			NULL;
	END CASE;

	IF version = 'v2' THEN
		body := data || jsonb_build_object(
			'id', id, 'webhook_event', event_type, 'webhook_type', CASE resource WHEN 'payment' THEN 'payment_session' ELSE resource END,
			'state', parts[2], 'created_at', at, 'sent_at', CASE parts[2] WHEN 'sent' THEN at END)
			|| overrides || jsonb_build_object('live', false);
		IF resource = 'mandate' THEN
			body := body || jsonb_build_object('mode', 'test');
		END IF;
	ELSE
		data := data || jsonb_build_object(
			'id', gen_random_uuid(), 'created_at', to_char(now() AT TIME ZONE 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'),
			'status_details', jsonb_build_object('status', upper(parts[2])));
		body := jsonb_build_object('id', id, 'type', event_type, 'version', 'v3', 'data_version', 3) || overrides;
		IF jsonb_typeof(overrides -> 'data') IS DISTINCT FROM 'object' THEN
			overrides := overrides || '{"data": {}}';
		END IF;
		body := body || jsonb_build_object('data', data || (overrides -> 'data') || jsonb_build_object('live', false));
	END IF;
	RETURN body || jsonb_build_object('banked_webhooks_test', true);
END
$$;
COMMENT ON FUNCTION banked._test_body(text, text, jsonb) IS
	'a body as Banked sends it for an event type, marked as a test; members of overrides replace the usual ones, in v3 those of its data too; 22023: no body can be made for the type';

CREATE FUNCTION banked._listener_url()
RETURNS text
LANGUAGE plpgsql VOLATILE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	address text;
	port bigint;
BEGIN
	SELECT trim(BOTH ' "' FROM split_part(r.addresses, ',', 1)), r.port INTO address, port
	FROM banked.receivers AS r
	WHERE r.port IS NOT NULL AND r.addresses <> ''
	ORDER BY r.receiver
	LIMIT 1;
	IF NOT FOUND THEN
		RAISE EXCEPTION USING
			ERRCODE = 'object_not_in_prerequisite_state',
			MESSAGE = 'no receiver of this database listens',
			HINT = 'See SELECT * FROM banked.receivers and the server''s log.';
	END IF;
	address := CASE WHEN address IN ('*', '0.0.0.0') THEN '127.0.0.1' WHEN address = '::' THEN '::1' ELSE address END;
	RETURN format(CASE WHEN address ~ ':' THEN 'http://[%s]:%s' ELSE 'http://%s:%s' END, address, port);
END
$$;
COMMENT ON FUNCTION banked._listener_url() IS 'where a receiver of this database listens; 55000: none does';

/*
 * The receiver stores the event in a transaction of its own: what it stored
 * is looked up by statements with snapshots of their own, which a transaction
 * in REPEATABLE READ has not.
 */
CREATE FUNCTION banked.send_test_event(path text, event_type text, overrides jsonb DEFAULT '{}', version text DEFAULT NULL,
									   base_url text DEFAULT NULL,
									   OUT status int, OUT answer text, OUT elapsed interval, OUT event_id text,
									   OUT outcome text, OUT reason text)
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
	endpoint record;
	key record;
	secret bytea;
	test_body bytea;
	content jsonb;
BEGIN
	version := lower(coalesce(version, current_setting('banked_webhooks.api_version', true), 'v2'));
	version := CASE version WHEN '2' THEN 'v2' WHEN '3' THEN 'v3' ELSE version END;
	IF version NOT IN ('v2', 'v3') THEN
		RAISE EXCEPTION USING
			ERRCODE = 'invalid_parameter_value',
			MESSAGE = 'version must be v2 or v3';
	END IF;
	IF jsonb_typeof(overrides) IS DISTINCT FROM 'object' THEN
		RAISE EXCEPTION USING
			ERRCODE = 'invalid_parameter_value',
			MESSAGE = 'overrides must be a JSON object';
	END IF;
	IF base_url IS NOT NULL THEN
		PERFORM banked._check_https_url('base_url', base_url);
	END IF;
	content := banked._test_body(event_type, version, overrides);
	SELECT e.endpoint_id, e.state INTO STRICT endpoint FROM banked._find_publishable(path) AS e;
	SELECT k.key_id, k.is_committed INTO key FROM banked._signing_key_to_publish(endpoint.endpoint_id) AS k;
	IF key.key_id IS NULL OR NOT key.is_committed THEN
		RAISE EXCEPTION USING
			ERRCODE = 'object_not_in_prerequisite_state',
			MESSAGE = CASE WHEN key.key_id IS NULL THEN format('endpoint "%s" has no valid signing key', path)
						   ELSE format('the signing key of endpoint "%s" is not committed yet', path) END;
	END IF;
	SELECT s.secret INTO STRICT secret FROM banked.key_secrets AS s WHERE s.key_id = key.key_id;
	test_body := convert_to(content::text, 'UTF8');
	event_id := content ->> 'id';

	SELECT p.status, p.answer, p.elapsed INTO STRICT status, answer, elapsed
	FROM banked._post_delivery(
		rtrim(coalesce(base_url, banked._listener_url()), '/') || path,
		banked._sign_with(secret, banked._key_context(key.key_id), test_body, floor(extract(epoch FROM clock_timestamp()))::bigint),
		test_body) AS p;

	outcome := CASE
		WHEN EXISTS (SELECT FROM banked.events AS e
					 WHERE e.event_id = content ->> 'id' AND e.body_sha256 = sha256(test_body)) THEN 'stored'
		WHEN EXISTS (SELECT FROM banked.event_revisions AS r
					 WHERE r.event_id = content ->> 'id' AND r.body_sha256 = sha256(test_body)) THEN 'changed'
	END;
	IF outcome IS NULL THEN
		SELECT 'quarantined', concat_ws(': ', q.reason, q.message) INTO outcome, reason
		FROM banked.quarantine AS q
		WHERE q.endpoint_id = endpoint.endpoint_id AND q.body_sha256 = sha256(test_body);
	END IF;
	outcome := coalesce(outcome, CASE
		WHEN status = 200 AND current_setting('transaction_isolation') = 'read committed' THEN 'unwanted'
		WHEN status = 503 THEN 'unavailable'
		WHEN status <> 200 THEN 'rejected'
	END);
	PERFORM banked._audit('send_test_event', jsonb_build_object(
		'path', path, 'event_type', event_type, 'event_id', event_id, 'status', status, 'outcome', outcome));
END
$$;
COMMENT ON FUNCTION banked.send_test_event(text, text, jsonb, text, text) IS
	'signs a realistic event with the endpoint''s key and delivers it over HTTP to the receiver of this database, or by base_url as Banked would; the event is marked as a test (events.test) and not live; members of overrides replace the usual ones; version v2 or v3 of the body, or banked_webhooks.api_version; outcome as of receive(), reason of quarantine; 22023: unusable argument; 42704: no such endpoint; 55000: nothing listens, or no key that is committed; WH...: no answer';

CREATE FUNCTION banked._is_test_body(body bytea)
RETURNS boolean
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	RETURN coalesce(convert_from(body, 'UTF8')::jsonb @> '{"banked_webhooks_test": true}', false);
EXCEPTION
	WHEN data_exception OR program_limit_exceeded OR statement_too_complex THEN
		RETURN false;
END
$$;
COMMENT ON FUNCTION banked._is_test_body(bytea) IS 'whether a body is one of send_test_event()';

-- A user's trigger would run with the rights of the extension's owner: there must be none.
CREATE FUNCTION banked._check_no_delete_triggers(relation regclass)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	trigger_name name;
BEGIN
	SELECT t.tgname INTO trigger_name FROM pg_trigger AS t
	WHERE t.tgrelid = relation AND NOT t.tgisinternal AND t.tgtype & 8 <> 0 AND t.tgenabled <> 'D'
	LIMIT 1;
	IF FOUND THEN
		RAISE EXCEPTION USING
			ERRCODE = 'object_not_in_prerequisite_state',
			MESSAGE = format('table "%s" has a trigger for DELETE, "%s"', relation, trigger_name),
			DETAIL = 'It would run with the rights of a superuser.',
			HINT = 'Drop it, or disable it for the time being.';
	END IF;
END
$$;
COMMENT ON FUNCTION banked._check_no_delete_triggers(regclass) IS 'raises 55000 when deleting from a table would run code of a user';

CREATE FUNCTION banked.purge_test_events()
RETURNS bigint
LANGUAGE plpgsql VOLATILE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	removed bigint := 0;
	count bigint;
BEGIN
	PERFORM banked.create_tables();
	-- No trigger can be made from here on.
	LOCK TABLE banked.events, banked.event_revisions, banked.quarantine IN ROW EXCLUSIVE MODE;
	PERFORM banked._check_no_delete_triggers('banked.events'::regclass);
	PERFORM banked._check_no_delete_triggers('banked.event_revisions'::regclass);
	DELETE FROM banked.event_revisions AS r WHERE r.test;
	GET DIAGNOSTICS count = ROW_COUNT;
	removed := removed + count;
	DELETE FROM banked.events AS e WHERE e.test;
	GET DIAGNOSTICS count = ROW_COUNT;
	removed := removed + count;
	DELETE FROM banked.quarantine AS q
	WHERE CASE WHEN position('"banked_webhooks_test"'::bytea IN q.body) > 0 THEN banked._is_test_body(q.body) END;
	GET DIAGNOSTICS count = ROW_COUNT;
	removed := removed + count;
	IF removed > 0 THEN
		PERFORM banked._audit('purge_test_events', jsonb_build_object('removed', removed));
	END IF;
	RETURN removed;
END
$$;
COMMENT ON FUNCTION banked.purge_test_events() IS
	'removes all that send_test_event() has brought into events, event_revisions and quarantine; returns how many rows; 55000: a user''s trigger for DELETE is on one of them';


--
-- The service
--

CREATE FUNCTION banked.pause()
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	-- No tables are made for a pause that is there already: a dump may be about to bring them.
	IF (SELECT s.paused FROM banked.service_state AS s) THEN
		RETURN;
	END IF;
	-- First, as in resume(): whoever has its lock may wait for the row.
	PERFORM banked.create_tables();
	UPDATE banked.service_state SET paused = true, changed_at = now() WHERE NOT paused;
	IF FOUND THEN
		PERFORM banked._audit('pause'::text, '{}'::jsonb);
	END IF;
END
$$;
COMMENT ON FUNCTION banked.pause() IS
	'makes the receivers close their port and leave the database, until resume(), also across restarts';

CREATE FUNCTION banked._pause_restored_handlers()
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	UPDATE banked.handlers AS h
	SET state = 'paused', problem = 'it was restored from a dump',
		role_id = coalesce((SELECT r.oid FROM pg_roles AS r WHERE r.rolname = h.role), 0);
	-- what ran when the dump was made
	DELETE FROM banked.jobs AS j WHERE j.state = 'running' AND j.run_at = 'infinity';
	UPDATE banked.jobs AS j SET state = 'ready', attempts = j.attempts - 1 WHERE j.state = 'running';
END
$$;
COMMENT ON FUNCTION banked._pause_restored_handlers() IS
	'pauses the handlers of a dump, and finds their roles in this cluster';

CREATE FUNCTION banked.resume()
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	from_dump boolean := (SELECT s.restored FROM banked.service_state AS s);
BEGIN
	PERFORM banked.create_tables();
	UPDATE banked.service_state SET paused = false, restored = false, changed_at = now() WHERE paused;
	IF FOUND THEN
		IF from_dump THEN
			PERFORM banked._pause_restored_handlers();
		END IF;
		PERFORM banked._store_floor();
		PERFORM banked._audit('resume'::text, '{}'::jsonb);
	END IF;
	PERFORM banked._warn_if_not_served();
END
$$;
COMMENT ON FUNCTION banked.resume() IS
	'lets the receivers come back after pause() or the restore of a dump; waits for transactions that are storing events';


--
-- History
--

CREATE FUNCTION banked.dismiss(quarantine_id bigint, note text)
RETURNS void
LANGUAGE plpgsql SECURITY DEFINER SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	IF note IS NULL OR note !~ '\S' THEN
		RAISE EXCEPTION USING
			ERRCODE = 'invalid_parameter_value',
			MESSAGE = 'note must not be empty',
			HINT = 'Say why nothing is to be done about the delivery.';
	END IF;
	PERFORM banked.create_tables();
	UPDATE banked.quarantine AS q
	SET dismissed_at = coalesce(q.dismissed_at, now()), note = dismiss.note, next_attempt_at = NULL
	WHERE q.quarantine_id = dismiss.quarantine_id;
	IF NOT FOUND THEN
		RAISE EXCEPTION USING
			ERRCODE = 'undefined_object',
			MESSAGE = format('row %s of quarantine does not exist', coalesce(quarantine_id::text, 'null'));
	END IF;
	PERFORM banked._audit('dismiss', jsonb_build_object('quarantine_id', quarantine_id, 'note', note));
END
$$;
COMMENT ON FUNCTION banked.dismiss(bigint, text) IS
	'notes that nothing is to be done about a row of quarantine, and why; it is not tried again by itself, but reprocess() still works; 22023: empty note; 42704: no such row';

CREATE FUNCTION banked.event_proof(event_id text, event_type text,
								   OUT verified boolean, OUT key_id uuid, OUT signed_at timestamptz,
								   OUT received_at timestamptz, OUT body_sha256 bytea, OUT reason text)
LANGUAGE plpgsql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp SET plan_cache_mode = force_generic_plan
AS $$
DECLARE
	body bytea;
	signature bytea;
	secret bytea;
BEGIN
	IF NOT (SELECT r.rolsuper FROM pg_class AS c JOIN pg_roles AS r ON r.oid = c.relowner
			WHERE c.oid = to_regclass('banked.events')) THEN
		PERFORM banked._check_owners();		-- which tells
	END IF;
	IF to_regclass('banked.events') IS NOT NULL THEN
		SELECT e.key_id, e.signed_at, e.received_at, e.body_sha256, e.body, e.signature, s.secret
		INTO key_id, signed_at, received_at, body_sha256, body, signature, secret
		FROM banked.events AS e LEFT JOIN banked.key_secrets AS s ON s.key_id = e.key_id
		WHERE e.event_id = event_proof.event_id AND e.event_type = event_proof.event_type;
	END IF;
	IF signed_at IS NULL THEN
		RAISE EXCEPTION USING
			ERRCODE = 'undefined_object',
			MESSAGE = format('event (%s, %s) does not exist', quote_nullable(event_id), quote_nullable(event_type));
	END IF;

	reason := CASE
		WHEN body IS NULL THEN 'body_erased'
		WHEN sha256(body) <> body_sha256 THEN 'body_changed'
		WHEN secret IS NULL THEN 'key_forgotten'
		WHEN NOT banked._verify_with(secret, banked._key_context(key_id),
									 extract(epoch FROM signed_at)::bigint || '.' || encode(signature, 'hex'),
									 body) THEN 'signature_wrong'
	END;
	verified := CASE
		WHEN reason IS NULL THEN true
		WHEN reason IN ('body_changed', 'signature_wrong') THEN false
	END;
END
$$;
COMMENT ON FUNCTION banked.event_proof(text, text) IS
	'whether the stored bytes of an event still bear the signature that they came with, with the key and the times; reason: null when verified, body_changed or signature_wrong when not, body_erased or key_forgotten when it cannot be told (verified is null); 42704: no such event; 55000: the key is encrypted under a master key that is not there';

CREATE FUNCTION banked.verify_event(event_id text, event_type text)
RETURNS boolean
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, pg_temp
BEGIN ATOMIC
	SELECT p.verified FROM banked.event_proof(event_id, event_type) AS p;
END;
COMMENT ON FUNCTION banked.verify_event(text, text) IS
	'whether the stored bytes of an event still bear the signature that they came with; null when the bytes are erased or the key is forgotten; 42704: no such event';

/*
 * A row is final when no transaction that still runs can add a lower seq.
 * stored_by is the newest transaction that had an id when the row's seq was
 * taken; whoever took a lower seq had an id before.  So once every
 * transaction up to stored_by has ended, all lower rows are either visible
 * to this snapshot or never will be.
 *
 * seq has no btree.  The function goes through it in windows, which the brin
 * indexes serve: it steps over gaps with windows that double, and halves one
 * that turns out not to be empty, so that it never sorts much more than a page.
 */
CREATE FUNCTION banked.events_since(after_seq bigint, max_rows int DEFAULT 1000)
RETURNS TABLE (event_id text, event_type text, endpoint_id uuid, resource_id text, resource_type text,
			   state text, live boolean, test boolean, api_version text, payload jsonb, body bytea,
			   body_sha256 bytea, signature bytea, signed_at timestamptz, key_id uuid,
			   received_at timestamptz, seq bigint, stored_by xid8, revision int, kind text)
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
SET enable_seqscan = off		-- statistics lag behind the end of a growing table
SET jit = off					-- it would take longer than the query
AS $$
#variable_conflict use_column
DECLARE
	page bigint := greatest(max_rows, 100);		-- the narrowest window that is worth a query
	width bigint := page;
	growing boolean := true;
	low bigint := greatest(after_seq, 0);		-- everything up to here is done; null counts as 0
	high bigint;
	last_seq bigint;
	floor_seq bigint;
	horizon xid8 := pg_snapshot_xmin(pg_current_snapshot());
	unfinal_seq bigint;
	wanted bigint := max_rows;
	found_rows bigint;
BEGIN
	IF max_rows IS NULL OR max_rows < 0 THEN
		RAISE EXCEPTION USING
			ERRCODE = 'invalid_parameter_value',
			MESSAGE = 'max_rows must be a number of rows';
	END IF;
	IF to_regclass('banked.events') IS NULL THEN
		RETURN;
	END IF;
	SELECT s.last_value INTO STRICT last_seq FROM banked.events_seq_seq AS s;
	SELECT s.floor_seq INTO STRICT floor_seq FROM banked.service_state AS s;
	IF floor_seq > last_seq THEN
		floor_seq := 0;			-- the sequence was started anew: the floor is of before
	END IF;

	WHILE low < last_seq AND wanted > 0 LOOP
		high := least(low + width, last_seq);

		IF NOT EXISTS (SELECT FROM banked.events AS e WHERE e.seq > low AND e.seq <= high)
			AND NOT EXISTS (SELECT FROM banked.event_revisions AS r WHERE r.seq > low AND r.seq <= high) THEN
			low := high;
			IF growing THEN
				width := width * 2;
			END IF;
			CONTINUE;
		END IF;
		IF width > page THEN
			width := greatest(width / 2, page);
			growing := false;
			CONTINUE;
		END IF;

		SELECT min(u.seq) INTO unfinal_seq
		FROM (SELECT e.seq FROM banked.events AS e
			  WHERE e.seq > low AND e.seq <= high AND e.seq > floor_seq AND e.stored_by >= horizon
			  UNION ALL
			  SELECT r.seq FROM banked.event_revisions AS r
			  WHERE r.seq > low AND r.seq <= high AND r.seq > floor_seq AND r.stored_by >= horizon) AS u;

		RETURN QUERY
			SELECT e.event_id, e.event_type, e.endpoint_id, e.resource_id, e.resource_type,
				   e.state, e.live, e.test, e.api_version, e.payload, e.body, e.body_sha256,
				   e.signature, e.signed_at, e.key_id, e.received_at, e.seq, e.stored_by,
				   e.revision, NULL::text
			FROM banked.events AS e
			WHERE e.seq > low AND e.seq <= high AND (unfinal_seq IS NULL OR e.seq < unfinal_seq)
			UNION ALL
			SELECT r.event_id, r.event_type, r.endpoint_id, r.resource_id, r.resource_type,
				   r.state, r.live, r.test, r.api_version, r.payload, r.body, r.body_sha256,
				   r.signature, r.signed_at, r.key_id, r.received_at, r.seq, r.stored_by,
				   r.revision, r.kind
			FROM banked.event_revisions AS r
			WHERE r.seq > low AND r.seq <= high AND (unfinal_seq IS NULL OR r.seq < unfinal_seq)
			ORDER BY 17
			LIMIT wanted;
		EXIT WHEN unfinal_seq IS NOT NULL;

		GET DIAGNOSTICS found_rows = ROW_COUNT;
		wanted := wanted - found_rows;
		low := high;
		growing := true;
	END LOOP;
END
$$;
COMMENT ON FUNCTION banked.events_since(bigint, int) IS
	'events and revisions with a greater seq, ascending, at most max_rows; stops before any row that a running transaction may yet precede, so that who goes on from the last seq misses nothing; kind is null for events; null or 0: from the beginning; 22023: max_rows null or negative';


--
-- Handlers
--
-- Who may do what is decided by the role that calls.  In a function that
-- raises privileges SQL cannot tell it, so the functions that users call are
-- C, take note of the role, rise to the extension's owner, and call the one of
-- the same name with an underscore, with the role in front.
--

CREATE FUNCTION banked._jobs_ready(handler text, count bigint)
RETURNS void
LANGUAGE c VOLATILE STRICT
AS 'MODULE_PATHNAME', 'banked_webhooks_jobs_ready';
COMMENT ON FUNCTION banked._jobs_ready(text, bigint) IS
	'wakes workers of a handler once the transaction has committed';

CREATE FUNCTION banked._event_matches(filter text[], event_type text, bare_mandate boolean)
RETURNS boolean
LANGUAGE sql IMMUTABLE
BEGIN ATOMIC
	SELECT filter IS NULL OR EXISTS (
		SELECT FROM unnest(filter) AS f (pattern)
			CROSS JOIN unnest(ARRAY[event_type, CASE WHEN bare_mandate THEN 'mandate_' || event_type END]) AS t (name)
		WHERE CASE WHEN right(f.pattern, 1) = '*' THEN starts_with(t.name, left(f.pattern, -1)) ELSE t.name = f.pattern END);
END;
COMMENT ON FUNCTION banked._event_matches(text[], text, boolean) IS
	'whether one of the event types and patterns matches a type; null matches all; bare_mandate: the type lacks its prefix mandate_';

CREATE FUNCTION banked._is_bare_mandate(event_type text, payload jsonb)
RETURNS boolean
LANGUAGE sql IMMUTABLE
BEGIN ATOMIC
	SELECT strpos(event_type, '_') = 0 AND coalesce(payload -> 'data_version' = '1', false);
END;
COMMENT ON FUNCTION banked._is_bare_mandate(text, jsonb) IS
	'whether a type is that of a v3 mandate, which lacks its prefix mandate_';

CREATE FUNCTION banked._check_handler_numbers(max_attempts int, backoff interval, timeout interval,
											  concurrency int, rate numeric, batch int)
RETURNS void
LANGUAGE plpgsql IMMUTABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	problem text := CASE
		WHEN coalesce(max_attempts NOT BETWEEN 1 AND 1000, true) THEN 'max_attempts is not between 1 and 1000.'
		-- in seconds, as they are used: intervals of years and days compare in another way
		WHEN coalesce(extract(epoch FROM backoff) NOT BETWEEN 0 AND 3600, true) THEN 'backoff is not between 0 and an hour.'
		WHEN coalesce(extract(epoch FROM timeout) NOT BETWEEN 0.001 AND 86400, true) THEN 'timeout is not between a millisecond and a day.'
		WHEN concurrency NOT BETWEEN 1 AND 64 THEN 'concurrency is not between 1 and 64.'
		WHEN rate NOT BETWEEN 0.0001 AND 100000 THEN 'rate is not between 0.0001 and 100000 jobs a second.'
		WHEN coalesce(batch NOT BETWEEN 1 AND 64, true) THEN 'batch is not between 1 and 64.'
	END;
BEGIN
	IF problem IS NOT NULL THEN
		RAISE EXCEPTION USING
			ERRCODE = 'invalid_parameter_value',
			MESSAGE = 'invalid limits of a handler',
			DETAIL = problem;
	END IF;
END
$$;
COMMENT ON FUNCTION banked._check_handler_numbers(int, interval, interval, int, numeric, int) IS
	'raises 22023 when a number or duration of a handler is out of range';

CREATE FUNCTION banked._check_handler_function(caller oid, function regprocedure)
RETURNS text
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	subject record;
BEGIN
	IF function IS NULL THEN
		RAISE EXCEPTION USING
			ERRCODE = 'invalid_parameter_value',
			MESSAGE = 'function must not be null';
	END IF;
	SELECT p.oid::regprocedure::text AS name, p.prokind, p.proretset, p.pronargs, p.proargtypes[0] AS argument
	INTO subject
	FROM pg_proc AS p WHERE p.oid = function;
	IF NOT FOUND THEN
		RAISE EXCEPTION USING
			ERRCODE = 'undefined_function',
			MESSAGE = format('function with OID %s does not exist', function::oid);
	END IF;
	IF subject.prokind <> 'f' OR subject.proretset OR subject.pronargs <> 1
		OR subject.argument <> 'banked.events'::regtype THEN
		RAISE EXCEPTION USING
			ERRCODE = 'invalid_function_definition',
			MESSAGE = format('function %s cannot be a handler', subject.name),
			DETAIL = 'A handler is a function of one argument of type banked.events that returns no set.',
			HINT = 'CREATE FUNCTION ...(event banked.events) RETURNS void';
	END IF;
	IF NOT has_function_privilege(caller, function, 'EXECUTE') THEN
		RAISE EXCEPTION USING
			ERRCODE = 'insufficient_privilege',
			MESSAGE = format('permission denied for function %s', subject.name);
	END IF;
	RETURN subject.name;
END
$$;
COMMENT ON FUNCTION banked._check_handler_function(oid, regprocedure) IS
	'the name of a function that a role can subscribe; 42P13: wrong signature; 42501: no EXECUTE privilege; 22023: null';

CREATE FUNCTION banked._check_handler_lasts(function regprocedure)
RETURNS void
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	IF EXISTS (SELECT FROM pg_proc AS p JOIN pg_namespace AS n ON n.oid = p.pronamespace
			   WHERE p.oid = function AND n.nspname LIKE 'pg\_temp\_%') THEN
		RAISE EXCEPTION USING
			ERRCODE = 'invalid_function_definition',
			MESSAGE = format('function %s is temporary', function),
			DETAIL = 'It ends with the session, and another session of another role may make one of the same name.';
	END IF;
END
$$;
COMMENT ON FUNCTION banked._check_handler_lasts(regprocedure) IS
	'raises 42P13 when a function is temporary';

CREATE FUNCTION banked._check_handler_role(caller oid)
RETURNS name
LANGUAGE plpgsql STABLE SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	role record;
BEGIN
	SELECT r.rolname, r.rolsuper, r.rolcanlogin INTO STRICT role FROM pg_roles AS r WHERE r.oid = caller;
	IF role.rolsuper THEN
		RAISE EXCEPTION USING
			ERRCODE = 'insufficient_privilege',
			MESSAGE = 'superusers cannot subscribe handlers',
			DETAIL = 'A handler runs with all rights of the role that subscribed it, on data from outside.',
			HINT = 'SET ROLE to the role that the handler is to run as.';
	END IF;
	IF NOT role.rolcanlogin AND current_setting('server_version_num')::int < 170000 THEN
		RAISE EXCEPTION USING
			ERRCODE = 'insufficient_privilege',
			MESSAGE = format('role "%s" cannot subscribe handlers, since it has no LOGIN', role.rolname),
			DETAIL = 'A handler runs in a session of the role that subscribed it.',
			HINT = format('ALTER ROLE %I LOGIN CONNECTION LIMIT 0 lets its handlers run, and keeps clients out.', role.rolname);
	END IF;
	IF NOT (has_table_privilege(caller, 'banked.events', 'SELECT')
			AND has_table_privilege(caller, 'banked.event_revisions', 'SELECT')) THEN
		RAISE EXCEPTION USING
			ERRCODE = 'insufficient_privilege',
			MESSAGE = format('role "%s" may not read events', role.rolname),
			HINT = format('GRANT banked_webhooks_reader TO %I.', role.rolname);
	END IF;
	RETURN role.rolname;
END
$$;
COMMENT ON FUNCTION banked._check_handler_role(oid) IS
	'the name of a role that handlers can run as; 42501: superuser, no LOGIN, or no right to read events';

CREATE FUNCTION banked._warn_of_revisions(events text[], include_revisions boolean)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	IF NOT include_revisions
		AND (events IS NULL OR EXISTS (SELECT FROM unnest(events) AS e (type)
									   WHERE e.type LIKE 'mandate\_%'
										   OR right(e.type, 1) = '*' AND starts_with('mandate_', left(e.type, -1)))) THEN
		RAISE NOTICE USING
			MESSAGE = 'revisions of mandate events will not reach this handler',
			DETAIL = 'A mandate that is suspended and becomes active again sends a second mandate_active with the same id, which is stored as a revision.',
			HINT = 'Subscribe with include_revisions => true to be told of it.';
	END IF;
END
$$;
COMMENT ON FUNCTION banked._warn_of_revisions(text[], boolean) IS
	'raises a NOTICE when a handler of mandate events leaves out revisions';

CREATE FUNCTION banked._forget_jobs(handler text)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	-- The next handler of this name may be another role's, which must not see them.
	DELETE FROM banked.job_attempts AS a USING banked.jobs AS j
	WHERE a.job_id = j.job_id AND j.handler = _forget_jobs.handler;
	DELETE FROM banked.jobs AS j WHERE j.handler = _forget_jobs.handler AND j.state IN ('ready', 'dead');
	-- Those may yet be done, but never begin again.
	UPDATE banked.jobs AS j SET run_at = 'infinity' WHERE j.handler = _forget_jobs.handler AND j.state = 'running';
END
$$;
COMMENT ON FUNCTION banked._forget_jobs(text) IS
	'removes the jobs of a handler that are not done, and all errors on record; those that run end, one way or the other';

CREATE FUNCTION banked._subscribe(caller oid, handler text, function regprocedure, events text[], endpoint text,
								  max_attempts int, backoff interval, timeout interval, concurrency int, rate numeric,
								  ordered boolean, include_revisions boolean, include_tests boolean, batch int)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	role name;
	function_name text;
	endpoint_id uuid;
BEGIN
	IF coalesce(octet_length(handler) NOT BETWEEN 1 AND 63 OR handler ~ '[\x01-\x1f\x7f]', true) THEN
		RAISE EXCEPTION USING
			ERRCODE = 'invalid_parameter_value',
			MESSAGE = 'invalid name of a handler',
			DETAIL = 'A name has 1 to 63 bytes and no control characters.';
	END IF;
	PERFORM banked._check_events(events);
	PERFORM banked._check_handler_numbers(max_attempts, backoff, timeout, concurrency, rate, batch);
	IF ordered IS NULL OR include_revisions IS NULL OR include_tests IS NULL THEN
		RAISE EXCEPTION USING
			ERRCODE = 'invalid_parameter_value',
			MESSAGE = 'ordered, include_revisions and include_tests must not be null';
	END IF;

	PERFORM banked.create_tables();
	role := banked._check_handler_role(caller);
	function_name := banked._check_handler_function(caller, function);
	PERFORM banked._check_handler_lasts(function);
	IF endpoint IS NOT NULL THEN
		SELECT e.endpoint_id INTO endpoint_id FROM banked.endpoints AS e WHERE e.path = endpoint;
		IF NOT FOUND THEN
			RAISE EXCEPTION USING
				ERRCODE = 'undefined_object',
				MESSAGE = format('endpoint "%s" does not exist', endpoint);
		END IF;
	END IF;
	IF (SELECT count(*) FROM banked.handlers) >= 200 THEN
		RAISE EXCEPTION USING
			ERRCODE = 'configuration_limit_exceeded',
			MESSAGE = 'a database cannot have more than 200 handlers';
	END IF;

	INSERT INTO banked.handlers AS h (handler, function, role, role_id, events, endpoint_id, max_attempts, backoff, timeout,
									  concurrency, rate, ordered, include_revisions, include_tests, batch)
	VALUES (handler, function_name, role, caller, events, endpoint_id, max_attempts,
			make_interval(secs => extract(epoch FROM backoff)), make_interval(secs => extract(epoch FROM timeout)),
			concurrency, rate, ordered, include_revisions, include_tests, batch)
	ON CONFLICT DO NOTHING;
	IF NOT FOUND THEN
		RAISE EXCEPTION USING
			ERRCODE = 'duplicate_object',
			MESSAGE = format('handler "%s" already exists', handler);
	END IF;
	-- what was made for a handler of this name while that was being removed
	PERFORM banked._forget_jobs(handler);
	PERFORM banked._audit('subscribe', jsonb_build_object('handler', handler, 'function', function_name, 'role', role,
														  'events', events, 'endpoint', endpoint));
	PERFORM banked._warn_of_revisions(events, include_revisions);
	PERFORM banked._warn_if_not_served();
END
$$;
COMMENT ON FUNCTION banked._subscribe(oid, text, regprocedure, text[], text, int, interval, interval, int, numeric, boolean, boolean, boolean, int) IS
	'subscribe() for a role';

CREATE FUNCTION banked.subscribe(handler text, function regprocedure, events text[] DEFAULT NULL, endpoint text DEFAULT NULL,
								 max_attempts int DEFAULT 10, backoff interval DEFAULT '5 s', timeout interval DEFAULT '30 s',
								 concurrency int DEFAULT NULL, rate numeric DEFAULT NULL, ordered boolean DEFAULT false,
								 include_revisions boolean DEFAULT false, include_tests boolean DEFAULT false, batch int DEFAULT 1)
RETURNS void
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'banked_webhooks_as_owner';
COMMENT ON FUNCTION banked.subscribe(text, regprocedure, text[], text, int, interval, interval, int, numeric, boolean, boolean, boolean, int) IS
	'makes a function of one argument of type banked.events run for each event from now on, in a background worker, as the role that calls this: event types (payment_sent, payment_*; null: all), path of the endpoint (null: all), attempts before a job is dead, pause after the first failure (it doubles, up to an hour), longest time of an attempt, most jobs at one time (null: no limit of its own), most jobs a second, whether jobs of one resource run one at a time in order of arrival, whether revisions and test events count, jobs in one transaction; 22023: unusable argument; 42P13: wrong signature, or a temporary function; 42501: superuser, role without LOGIN or without the right to read events, function not executable; 42704: no such endpoint; 42710: the handler exists';

CREATE FUNCTION banked._lock_handler(caller oid, handler text, OUT role_id oid, OUT state text, OUT ordered boolean)
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	PERFORM banked.create_tables();
	SELECT h.role_id, h.state, h.ordered INTO role_id, state, ordered
	FROM banked.handlers AS h
	WHERE h.handler = _lock_handler.handler
	FOR NO KEY UPDATE;
	IF NOT FOUND THEN
		RAISE EXCEPTION USING
			ERRCODE = CASE WHEN handler IS NULL THEN 'invalid_parameter_value' ELSE 'undefined_object' END,
			MESSAGE = CASE WHEN handler IS NULL THEN 'handler must not be null'
						   ELSE format('handler "%s" does not exist', handler) END;
	END IF;
	IF NOT (pg_has_role(caller, 'banked_webhooks_admin', 'USAGE') OR banked._runs_as(caller, role_id)) THEN
		RAISE EXCEPTION USING
			ERRCODE = 'insufficient_privilege',
			MESSAGE = format('handler "%s" belongs to another role', handler);
	END IF;
END
$$;
COMMENT ON FUNCTION banked._lock_handler(oid, text) IS
	'a handler, locked against concurrent changes; 42704: there is none; 42501: the role is neither its own nor an admin; 22023: handler is null';

CREATE FUNCTION banked._runs_as(caller oid, role_id oid)
RETURNS boolean
LANGUAGE sql STABLE
BEGIN ATOMIC
	SELECT coalesce((SELECT pg_has_role(caller, r.oid, 'USAGE') FROM pg_roles AS r WHERE r.oid = role_id),
					(SELECT c.rolsuper FROM pg_roles AS c WHERE c.oid = caller), false);
END;
COMMENT ON FUNCTION banked._runs_as(oid, oid) IS
	'whether a role has the rights of another one, which may have been dropped';

CREATE FUNCTION banked._unsubscribe(caller oid, handler text)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	PERFORM banked._lock_handler(caller, handler);
	DELETE FROM banked.handlers AS h WHERE h.handler = _unsubscribe.handler;
	PERFORM banked._forget_jobs(handler);
	PERFORM banked._audit('unsubscribe', jsonb_build_object('handler', handler));
END
$$;
COMMENT ON FUNCTION banked._unsubscribe(oid, text) IS 'unsubscribe() for a role';

CREATE FUNCTION banked.unsubscribe(handler text)
RETURNS void
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'banked_webhooks_as_owner';
COMMENT ON FUNCTION banked.unsubscribe(text) IS
	'removes a handler with its jobs that have not run or are dead, and its errors; a job that runs may finish; what it has done stays on record; 42704: no such handler; 42501: it belongs to another role';

CREATE FUNCTION banked._pause_handler(caller oid, handler text)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
BEGIN
	PERFORM banked._lock_handler(caller, handler);
	UPDATE banked.handlers AS h SET state = 'paused', problem = NULL
	WHERE h.handler = _pause_handler.handler AND h.state = 'active';
	IF FOUND THEN
		PERFORM banked._audit('pause_handler', jsonb_build_object('handler', handler));
	END IF;
END
$$;
COMMENT ON FUNCTION banked._pause_handler(oid, text) IS 'pause_handler() for a role';

CREATE FUNCTION banked.pause_handler(handler text)
RETURNS void
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'banked_webhooks_as_owner';
COMMENT ON FUNCTION banked.pause_handler(text) IS
	'lets a handler finish the jobs that run and begin no others until resume_handler(); events keep making jobs; 42704: no such handler; 42501: it belongs to another role';

CREATE FUNCTION banked._resume_handler(caller oid, handler text)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	locked record;
BEGIN
	SELECT h.role_id, h.state INTO STRICT locked FROM banked._lock_handler(caller, handler) AS h;
	IF locked.state = 'active' THEN
		RETURN;
	END IF;
	IF NOT EXISTS (SELECT FROM pg_roles AS r WHERE r.oid = locked.role_id) THEN
		RAISE EXCEPTION USING
			ERRCODE = 'object_not_in_prerequisite_state',
			MESSAGE = format('the role of handler "%s" does not exist any more', handler),
			HINT = 'Run SELECT banked.unsubscribe(), and subscribe the function as another role.';
	END IF;
	PERFORM banked._check_handler_role(locked.role_id);
	UPDATE banked.handlers AS h SET state = 'active', problem = NULL WHERE h.handler = _resume_handler.handler;
	PERFORM banked._audit('resume_handler', jsonb_build_object('handler', handler));
END
$$;
COMMENT ON FUNCTION banked._resume_handler(oid, text) IS 'resume_handler() for a role';

CREATE FUNCTION banked.resume_handler(handler text)
RETURNS void
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'banked_webhooks_as_owner';
COMMENT ON FUNCTION banked.resume_handler(text) IS
	'lets a paused handler run its jobs again; 42704: no such handler; 42501: it belongs to another role, or its role cannot run it; 55000: its role does not exist any more';

CREATE FUNCTION banked._alter_handler(caller oid, handler text, function regprocedure, events text[],
									  max_attempts int, backoff interval, timeout interval, concurrency int, rate numeric,
									  ordered boolean, include_revisions boolean, include_tests boolean, batch int)
RETURNS void
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	locked record;
	changed record;
	function_name text;
BEGIN
	SELECT h.role_id, h.ordered INTO STRICT locked FROM banked._lock_handler(caller, handler) AS h;
	IF function IS NOT NULL THEN
		IF caller <> locked.role_id THEN
			RAISE EXCEPTION USING
				ERRCODE = 'insufficient_privilege',
				MESSAGE = format('only the role that handler "%s" runs as can give it another function', handler);
		END IF;
		function_name := banked._check_handler_function(caller, function);
		PERFORM banked._check_handler_lasts(function);
	END IF;
	PERFORM banked._check_events(events);
	UPDATE banked.handlers AS h
	SET function = coalesce(function_name, h.function),
		events = coalesce(_alter_handler.events, h.events),
		max_attempts = coalesce(_alter_handler.max_attempts, h.max_attempts),
		backoff = coalesce(make_interval(secs => extract(epoch FROM _alter_handler.backoff)), h.backoff),
		timeout = coalesce(make_interval(secs => extract(epoch FROM _alter_handler.timeout)), h.timeout),
		concurrency = nullif(coalesce(_alter_handler.concurrency, h.concurrency), 0),
		rate = nullif(coalesce(_alter_handler.rate, h.rate), 0),
		ordered = coalesce(_alter_handler.ordered, h.ordered),
		include_revisions = coalesce(_alter_handler.include_revisions, h.include_revisions),
		include_tests = coalesce(_alter_handler.include_tests, h.include_tests),
		batch = coalesce(_alter_handler.batch, h.batch)
	WHERE h.handler = _alter_handler.handler
	RETURNING h.* INTO STRICT changed;
	PERFORM banked._check_handler_numbers(changed.max_attempts, changed.backoff, changed.timeout,
										  changed.concurrency, changed.rate, changed.batch);
	IF changed.ordered <> locked.ordered THEN
		UPDATE banked.jobs AS j
		SET order_key = CASE WHEN changed.ordered THEN
			(SELECT e.resource_id FROM banked.events AS e WHERE e.event_id = j.event_id AND e.event_type = j.event_type) END
		WHERE j.handler = _alter_handler.handler AND j.state <> 'done';
	END IF;
	PERFORM banked._audit('alter_handler', to_jsonb(changed));
END
$$;
COMMENT ON FUNCTION banked._alter_handler(oid, text, regprocedure, text[], int, interval, interval, int, numeric, boolean, boolean, boolean, int) IS
	'alter_handler() for a role';

CREATE FUNCTION banked.alter_handler(handler text, function regprocedure DEFAULT NULL, events text[] DEFAULT NULL,
									 max_attempts int DEFAULT NULL, backoff interval DEFAULT NULL, timeout interval DEFAULT NULL,
									 concurrency int DEFAULT NULL, rate numeric DEFAULT NULL, ordered boolean DEFAULT NULL,
									 include_revisions boolean DEFAULT NULL, include_tests boolean DEFAULT NULL, batch int DEFAULT NULL)
RETURNS void
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'banked_webhooks_as_owner';
COMMENT ON FUNCTION banked.alter_handler(text, regprocedure, text[], int, interval, interval, int, numeric, boolean, boolean, boolean, int) IS
	'changes what is not null: see subscribe(); events => ''{*}'' stands for all, and concurrency and rate => 0 for no limit; 22023: unusable argument; 42704: no such handler; 42501: it belongs to another role, and only that role can change its function';

CREATE FUNCTION banked._retry(caller oid, job_id bigint)
RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	job record;
BEGIN
	PERFORM banked.create_tables();
	SELECT j.handler INTO job FROM banked.jobs AS j WHERE j.job_id = _retry.job_id;
	IF FOUND THEN
		-- A handler is locked before its jobs, by all who lock both.
		PERFORM banked._lock_handler(caller, job.handler);
		SELECT j.handler, j.state INTO job FROM banked.jobs AS j WHERE j.job_id = _retry.job_id FOR UPDATE;
	END IF;
	IF NOT FOUND THEN
		RAISE EXCEPTION USING
			ERRCODE = CASE WHEN job_id IS NULL THEN 'invalid_parameter_value' ELSE 'undefined_object' END,
			MESSAGE = CASE WHEN job_id IS NULL THEN 'job_id must not be null'
						   ELSE format('job %s does not exist', job_id) END;
	END IF;
	IF job.state NOT IN ('dead', 'ready') THEN
		RAISE EXCEPTION USING
			ERRCODE = 'object_not_in_prerequisite_state',
			MESSAGE = format('job %s is %s', job_id, job.state);
	END IF;
	UPDATE banked.jobs AS j
	SET state = 'ready', attempts = CASE WHEN j.state = 'dead' THEN 0 ELSE j.attempts END,
		run_at = clock_timestamp(), finished_at = NULL
	WHERE j.job_id = _retry.job_id;
	PERFORM banked._jobs_ready(job.handler, 1);
	PERFORM banked._audit('retry', jsonb_build_object('job_id', job_id));
	RETURN 1;
END
$$;
COMMENT ON FUNCTION banked._retry(oid, bigint) IS 'retry() of one job, for a role';

CREATE FUNCTION banked.retry(job_id bigint)
RETURNS bigint
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'banked_webhooks_as_owner';
COMMENT ON FUNCTION banked.retry(bigint) IS
	'makes a dead job run again, with all its attempts before it, or one that waits for its next attempt run now; returns 1; 42704: no such job; 42501: its handler belongs to another role; 55000: it is running or done';

CREATE FUNCTION banked._retry(caller oid, handler text, sqlstate text)
RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	revived record;
	total bigint := 0;
BEGIN
	IF handler IS NULL AND sqlstate IS NULL THEN
		RAISE EXCEPTION USING
			ERRCODE = 'invalid_parameter_value',
			MESSAGE = 'handler and sqlstate must not both be null';
	END IF;
	IF handler IS NOT NULL THEN
		PERFORM banked._lock_handler(caller, handler);
	ELSE
		PERFORM banked.create_tables();
		PERFORM FROM banked.handlers AS h
		WHERE EXISTS (SELECT FROM banked.jobs AS j WHERE j.handler = h.handler AND j.state = 'dead')
			AND (pg_has_role(caller, 'banked_webhooks_admin', 'USAGE') OR banked._runs_as(caller, h.role_id))
		ORDER BY h.handler
		FOR NO KEY UPDATE;
	END IF;
	FOR revived IN
		WITH ready AS (
			UPDATE banked.jobs AS j
			SET state = 'ready', attempts = 0, run_at = clock_timestamp(), finished_at = NULL
			FROM banked.handlers AS h
			WHERE j.state = 'dead' AND h.handler = j.handler
				AND (_retry.handler IS NULL OR j.handler = _retry.handler)
				AND (_retry.sqlstate IS NULL OR _retry.sqlstate = (
					SELECT a.sqlstate FROM banked.job_attempts AS a
					WHERE a.job_id = j.job_id ORDER BY a.finished_at DESC LIMIT 1))
				AND (pg_has_role(caller, 'banked_webhooks_admin', 'USAGE') OR banked._runs_as(caller, h.role_id))
			RETURNING j.handler)
		SELECT r.handler, count(*) AS jobs FROM ready AS r GROUP BY 1
	LOOP
		PERFORM banked._jobs_ready(revived.handler, revived.jobs);
		total := total + revived.jobs;
	END LOOP;
	PERFORM banked._audit('retry', jsonb_build_object('handler', handler, 'sqlstate', sqlstate, 'jobs', total));
	RETURN total;
END
$$;
COMMENT ON FUNCTION banked._retry(oid, text, text) IS 'retry() of many jobs, for a role';

CREATE FUNCTION banked.retry(handler text DEFAULT NULL, sqlstate text DEFAULT NULL)
RETURNS bigint
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'banked_webhooks_as_owner';
COMMENT ON FUNCTION banked.retry(text, text) IS
	'makes dead jobs run again, with all their attempts before them: those of a handler, those whose last attempt failed with a SQLSTATE, or both; returns how many; 42704: no such handler; 42501: it belongs to another role; 22023: both are null';

CREATE FUNCTION banked._replay(caller oid, handler text, since timestamptz, until timestamptz, events text[])
RETURNS bigint
LANGUAGE plpgsql SET search_path = pg_catalog, pg_temp
AS $$
DECLARE
	target record;
	total bigint;
BEGIN
	PERFORM banked._check_events(events);
	PERFORM banked._lock_handler(caller, handler);
	SELECT h.* INTO STRICT target FROM banked.handlers AS h WHERE h.handler = _replay.handler;
	INSERT INTO banked.jobs (handler, event_id, event_type, revision, order_key, received_at, run_at)
	SELECT target.handler, e.event_id, e.event_type, e.revision,
		   CASE WHEN target.ordered THEN e.resource_id END, e.received_at, clock_timestamp()
	FROM (SELECT v.event_id, v.event_type, v.endpoint_id, v.resource_id, v.test, v.payload, v.received_at, v.seq, v.revision
		  FROM banked.events AS v
		  UNION ALL
		  SELECT r.event_id, r.event_type, r.endpoint_id, r.resource_id, r.test, r.payload, r.received_at, r.seq, r.revision
		  FROM banked.event_revisions AS r
		  WHERE target.include_revisions) AS e
	WHERE (since IS NULL OR e.received_at >= since) AND (until IS NULL OR e.received_at < until)
		AND (target.endpoint_id IS NULL OR e.endpoint_id = target.endpoint_id)
		AND (target.include_tests OR NOT e.test)
		AND banked._event_matches(target.events, e.event_type, banked._is_bare_mandate(e.event_type, e.payload))
		AND banked._event_matches(_replay.events, e.event_type, banked._is_bare_mandate(e.event_type, e.payload))
	ORDER BY e.received_at, e.seq;
	GET DIAGNOSTICS total = ROW_COUNT;
	IF total > 0 THEN
		PERFORM banked._jobs_ready(handler, total);
	END IF;
	PERFORM banked._audit('replay', jsonb_build_object('handler', handler, 'since', since, 'until', until,
													   'events', events, 'jobs', total));
	RETURN total;
END
$$;
COMMENT ON FUNCTION banked._replay(oid, text, timestamptz, timestamptz, text[]) IS 'replay() for a role';

CREATE FUNCTION banked.replay(handler text, since timestamptz DEFAULT NULL, until timestamptz DEFAULT NULL, events text[] DEFAULT NULL)
RETURNS bigint
LANGUAGE c VOLATILE
AS 'MODULE_PATHNAME', 'banked_webhooks_as_owner';
COMMENT ON FUNCTION banked.replay(text, timestamptz, timestamptz, text[]) IS
	'makes jobs of a handler from the history: events that it is subscribed to, received since (included) and until (not), of these types; it does not matter whether it has run for them before; returns how many; 42704: no such handler; 42501: it belongs to another role; 22023: unusable event types';

/*
 * Runs as the caller, names included: what the function sees of settings is
 * what it would see in a session of the caller.  The results survive the
 * rollback in variables.
 */
CREATE FUNCTION banked.dry_run(function regprocedure, since timestamptz DEFAULT NULL, until timestamptz DEFAULT NULL,
							   events text[] DEFAULT NULL, max int DEFAULT 100)
RETURNS TABLE (event_id text, event_type text, succeeded boolean, sqlstate text, message text, duration interval)
LANGUAGE plpgsql VOLATILE
AS $$
#variable_conflict use_column
DECLARE
	call text;
	event record;
	started timestamptz;
	event_ids text[] := '{}';
	event_types text[] := '{}';
	sqlstates text[] := '{}';
	messages text[] := '{}';
	durations interval[] := '{}';
	failed_state text;
	failed_message text;
BEGIN
	PERFORM banked._check_events(events);
	PERFORM banked._check_handler_function(session.oid, function)
	FROM pg_catalog.pg_roles AS session WHERE session.rolname OPERATOR(pg_catalog.=) current_user;
	SELECT pg_catalog.format('SELECT %I.%I(e) FROM banked.events AS e WHERE e.event_id OPERATOR(pg_catalog.=) $1 AND e.event_type OPERATOR(pg_catalog.=) $2', n.nspname, p.proname)
	INTO STRICT call
	FROM pg_catalog.pg_proc AS p JOIN pg_catalog.pg_namespace AS n ON n.oid OPERATOR(pg_catalog.=) p.pronamespace
	WHERE p.oid OPERATOR(pg_catalog.=) function;

	BEGIN
		FOR event IN
			SELECT e.event_id, e.event_type FROM banked.events AS e
			WHERE (since IS NULL OR e.received_at OPERATOR(pg_catalog.>=) since)
				AND (until IS NULL OR e.received_at OPERATOR(pg_catalog.<) until)
				AND banked._event_matches(dry_run.events, e.event_type, banked._is_bare_mandate(e.event_type, e.payload))
			ORDER BY e.received_at
			LIMIT max
		LOOP
			started := pg_catalog.clock_timestamp();
			failed_state := NULL;
			failed_message := NULL;
			BEGIN
				EXECUTE call USING event.event_id, event.event_type;
				SET CONSTRAINTS ALL IMMEDIATE;
			EXCEPTION WHEN OTHERS OR assert_failure THEN
				failed_state := SQLSTATE;
				failed_message := SQLERRM;
			END;
			event_ids := pg_catalog.array_append(event_ids, event.event_id);
			event_types := pg_catalog.array_append(event_types, event.event_type);
			sqlstates := pg_catalog.array_append(sqlstates, failed_state);
			messages := pg_catalog.array_append(messages, failed_message);
			durations := pg_catalog.array_append(durations, pg_catalog.clock_timestamp() OPERATOR(pg_catalog.-) started);
		END LOOP;
		RAISE EXCEPTION SQLSTATE 'BW000';
	EXCEPTION WHEN SQLSTATE 'BW000' THEN
		NULL;					-- everything is undone
	END;

	RETURN QUERY
		SELECT r.event_id, r.event_type, r.sqlstate IS NULL, r.sqlstate, r.message, r.duration
		FROM ROWS FROM (pg_catalog.unnest(event_ids), pg_catalog.unnest(event_types), pg_catalog.unnest(sqlstates),
						pg_catalog.unnest(messages), pg_catalog.unnest(durations))
			AS r (event_id, event_type, sqlstate, message, duration);
END
$$;
COMMENT ON FUNCTION banked.dry_run(regprocedure, timestamptz, timestamptz, text[], int) IS
	'runs a function for events of the history, oldest first, as the caller and one after the other, tells for each whether it succeeded or with what error, and rolls back everything that it did in the database; 42P13: wrong signature; 42501: the caller may not run it or not read events; 22023: unusable event types';


--
-- Privileges
--

-- Nothing is for PUBLIC, nor for those whom ALTER DEFAULT PRIVILEGES names.
DO $strip$
DECLARE
	granted record;
BEGIN
	FOR granted IN
		SELECT p.oid::regprocedure AS function,
			   CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END AS grantee
		FROM pg_extension AS e
			JOIN pg_depend AS d ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid
				AND d.classid = 'pg_proc'::regclass AND d.deptype = 'e'
			JOIN pg_proc AS p ON p.oid = d.objid
			CROSS JOIN aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a
		WHERE e.extname = 'banked_webhooks' AND a.grantee <> p.proowner
	LOOP
		EXECUTE format('REVOKE ALL ON FUNCTION %s FROM %s', granted.function, granted.grantee);
	END LOOP;

	FOR granted IN
		SELECT CASE WHEN a.grantee = 0 THEN 'PUBLIC' ELSE a.grantee::regrole::text END AS grantee
		FROM pg_namespace AS n CROSS JOIN aclexplode(n.nspacl) AS a
		WHERE n.nspname = 'banked' AND a.grantee <> n.nspowner AND a.privilege_type = 'CREATE'
	LOOP
		EXECUTE format('REVOKE CREATE ON SCHEMA banked FROM %s', granted.grantee);
	END LOOP;

	PERFORM banked._strip_privileges('banked.key_secrets'::regclass);
	PERFORM banked._strip_privileges('banked.api_credentials'::regclass);
	PERFORM banked._strip_privileges('banked.service_state'::regclass);
	PERFORM banked._strip_privileges('banked.receivers'::regclass);
	PERFORM banked._strip_privileges('banked.delivery_counts'::regclass);
	PERFORM banked._strip_privileges('banked.signing_key_use'::regclass);
END
$strip$;

GRANT USAGE ON SCHEMA banked TO banked_webhooks_reader, banked_webhooks_admin, banked_webhooks_worker;
-- PUBLIC may have lost it
DO $connect$
BEGIN
	EXECUTE format('GRANT CONNECT ON DATABASE %I TO banked_webhooks_worker', current_database());
END
$connect$;
-- The schema outlives the extension, and pg_dump would leave these privileges out as if it did not.
DELETE FROM pg_init_privs WHERE classoid = 'pg_namespace'::regclass AND objoid = 'banked'::regnamespace;

-- events_since() reads it
GRANT SELECT ON banked.service_state TO banked_webhooks_reader, banked_webhooks_admin;

GRANT SELECT ON banked.receivers, banked.delivery_counts, banked.signing_key_use TO banked_webhooks_admin;

GRANT EXECUTE ON FUNCTION
	banked.sign(bytea, text, timestamptz),
	banked.verify_signature(text, bytea, text),
	banked.verify_event(text, text),
	banked.event_proof(text, text),
	banked.events_since(bigint, int),
	banked.dry_run(regprocedure, timestamptz, timestamptz, text[], int),
	banked._check_events(text[]),
	banked._check_handler_function(oid, regprocedure),
	banked._event_matches(text[], text, boolean),
	banked._is_bare_mandate(text, jsonb)
TO banked_webhooks_reader, banked_webhooks_admin;

GRANT EXECUTE ON FUNCTION
	banked.create_tables(),
	banked.register_endpoint(text, text[], text, interval, boolean, text, text),
	banked._register_endpoint(text, text[], text, text, interval, boolean, text),
	banked._read_key_file(text),
	banked.disable_endpoint(text),
	banked.enable_endpoint(text),
	banked.retire_endpoint(text),
	banked.rotate_signing_key(text, text, interval, text),
	banked._rotate_signing_key(text, text, text, interval),
	banked.revoke_signing_key(uuid),
	banked.forget_signing_key(uuid),
	banked.set_api_credentials(text, text, text, text, text, text, text, text),
	banked._set_api_credentials(text, text, text, text, text, text, text, text),
	banked.drop_api_credentials(text),
	banked.api_list_webhooks(text),
	banked.api_create_webhook(text, text, text[], text),
	banked.api_update_webhook(text, text, text, text[], text),
	banked.api_delete_webhook(text, text),
	banked.publish_endpoint(text, text, text),
	banked.unpublish_endpoint(text, boolean, text),
	banked.endpoint_drift(text),
	banked.send_test_event(text, text, jsonb, text, text),
	banked.purge_test_events(),
	banked.receive(text, text, bytea, timestamptz),
	banked.reprocess(bigint, text, text),
	banked.dismiss(bigint, text),
	banked.subscribe(text, regprocedure, text[], text, int, interval, interval, int, numeric, boolean, boolean, boolean, int),
	banked.unsubscribe(text),
	banked.pause_handler(text),
	banked.resume_handler(text),
	banked.alter_handler(text, regprocedure, text[], int, interval, interval, int, numeric, boolean, boolean, boolean, int),
	banked.retry(bigint),
	banked.retry(text, text),
	banked.replay(text, timestamptz, timestamptz, text[]),
	banked.stats(),
	banked.pause(),
	banked.resume()
TO banked_webhooks_admin;


--
-- The history of before, if there is one: our triggers went with the extension
--

DO $history$
BEGIN
	IF EXISTS (SELECT FROM unnest(banked._table_names()) AS t (name)
			   WHERE to_regclass('banked.' || t.name) IS NOT NULL) THEN
		PERFORM banked.create_tables();
		PERFORM banked._store_floor();
	END IF;
	PERFORM banked._warn_if_not_served();
END
$history$;
