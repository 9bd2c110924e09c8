-- Who may do what: role by function and table.
\getenv srcdir PG_ABS_SRCDIR
\set setup :srcdir '/sql/setup.psql'
\set ECHO none
\i :setup
\set ECHO all
SET client_min_messages = error;
CREATE ROLE regress_webhooks_nobody;
CREATE ROLE regress_webhooks_reader IN ROLE banked_webhooks_reader;
CREATE ROLE regress_webhooks_admin IN ROLE banked_webhooks_admin;

SELECT r.rolname, r.rolcanlogin, r.rolinherit, r.rolconnlimit, a.rolpassword,
	   r.rolsuper OR r.rolcreaterole OR r.rolcreatedb OR r.rolreplication OR r.rolbypassrls AS powerful
FROM pg_roles AS r JOIN pg_authid AS a USING (oid) WHERE r.rolname LIKE 'banked%' ORDER BY 1;

--
-- Functions
--
SELECT p.oid::regprocedure AS function, p.prosecdef AS definer,
	   has_function_privilege('regress_webhooks_nobody', p.oid, 'EXECUTE') AS nobody,
	   has_function_privilege('banked_webhooks_worker', p.oid, 'EXECUTE') AS worker,
	   has_function_privilege('banked_webhooks_reader', p.oid, 'EXECUTE') AS reader,
	   has_function_privilege('banked_webhooks_admin', p.oid, 'EXECUTE') AS admin
FROM pg_proc AS p WHERE p.pronamespace = 'banked'::regnamespace
	AND (p.proname NOT LIKE '\_%' OR has_function_privilege('banked_webhooks_admin', p.oid, 'EXECUTE'))
ORDER BY p.oid::regprocedure::text COLLATE "C";
-- of the others none is for anybody
SELECT p.oid::regprocedure AS function FROM pg_proc AS p
	CROSS JOIN LATERAL aclexplode(coalesce(p.proacl, acldefault('f', p.proowner))) AS a
WHERE p.pronamespace = 'banked'::regnamespace AND p.proname LIKE '\_%' AND a.grantee <> p.proowner AND a.grantee <> 'banked_webhooks_admin'::regrole;

--
-- Tables, views and sequences: as letters, in the order SELECT, INSERT, UPDATE, DELETE, TRUNCATE, REFERENCES, TRIGGER, USAGE
--
CREATE FUNCTION test.privileges(role name, relation oid) RETURNS text LANGUAGE sql AS $$
	SELECT coalesce(string_agg(p.letter, '' ORDER BY p.place), '-')
	FROM (VALUES (1, 'SELECT', 'r'), (2, 'INSERT', 'a'), (3, 'UPDATE', 'w'), (4, 'DELETE', 'd'), (5, 'TRUNCATE', 'D'), (6, 'REFERENCES', 'x'),
				 (7, 'TRIGGER', 't'), (8, 'USAGE', 'U')) AS p (place, name, letter)
		JOIN pg_class AS c ON c.oid = relation
	WHERE CASE WHEN c.relkind = 'S' THEN p.name IN ('SELECT', 'UPDATE', 'USAGE') AND has_sequence_privilege(role, relation, p.name)
			   ELSE p.name <> 'USAGE' AND has_table_privilege(role, relation, p.name) END
$$;
SELECT c.relname, test.privileges('regress_webhooks_nobody', c.oid) AS nobody, test.privileges('banked_webhooks_worker', c.oid) AS worker,
	   test.privileges('banked_webhooks_reader', c.oid) AS reader, test.privileges('banked_webhooks_admin', c.oid) AS admin
FROM pg_class AS c WHERE c.relnamespace = 'banked'::regnamespace AND c.relkind IN ('r', 'v', 'S') ORDER BY 1;
SELECT r.role, has_schema_privilege(r.role, 'banked', 'USAGE') AS usage, has_schema_privilege(r.role, 'banked', 'CREATE') AS create
FROM unnest('{regress_webhooks_nobody,banked_webhooks_worker,banked_webhooks_reader,banked_webhooks_admin}'::name[]) AS r (role);

--
-- At work
--
SELECT outcome FROM test.deliver(test.v2('e1', 'payment_sent'));
SET ROLE regress_webhooks_reader;
SELECT count(*) FROM banked.history;
SELECT count(*) FROM banked.events_since(0);
SELECT banked.verify_event('e1', 'payment_sent'), (banked.event_proof('e1', 'payment_sent')).verified;
SELECT banked.verify_signature(banked.sign('x', 'any key'), 'x', 'any key');
SELECT secret FROM banked.key_secrets;
SELECT count(*) FROM banked.quarantine;
SELECT banked.receive('/banked', '', '');
SELECT banked.disable_endpoint('/banked');
SELECT banked.create_tables();
SELECT * FROM banked.receivers;
RESET ROLE;

SET ROLE regress_webhooks_admin;
SELECT endpoint_id IS NOT NULL AS registered FROM banked.register_endpoint('/theirs', signing_key => 'the key of theirs');
SELECT banked.register_endpoint('/file', signing_key_file => '/etc/hostname');
SELECT outcome FROM banked.receive('/theirs', banked.sign('{"id":"a1","webhook_event":"payment_sent"}', 'the key of theirs'), '{"id":"a1","webhook_event":"payment_sent"}');
SELECT outcome FROM banked.receive('/theirs', banked.sign('{"id":"a1"}', 'the key of theirs'), '{"id":"a1"}');
SELECT quarantine_id AS id FROM banked.quarantine \gset
SELECT outcome FROM banked.reprocess(:id, event_type => 'payment_failed');
SELECT signing_key IS NULL FROM banked.rotate_signing_key('/theirs', 'their second key');
SELECT banked.disable_endpoint('/theirs'), banked.enable_endpoint('/theirs'), banked.retire_endpoint('/theirs');
SELECT count(*) FROM banked.events_since(0);
SELECT count(*) > 0 AS logged FROM banked.audit_log;
SELECT count(*) FROM banked.receivers;
SELECT count(*) FROM banked.delivery_counts;
SELECT count(*) FROM banked.stats();
CREATE TRIGGER theirs BEFORE INSERT ON banked.events FOR EACH ROW EXECUTE FUNCTION suppress_redundant_updates_trigger();
-- but neither keys nor the rows themselves
SELECT secret FROM banked.key_secrets;
SELECT banked._generate_signing_key();
INSERT INTO banked.events DEFAULT VALUES;
UPDATE banked.endpoints SET state = 'active';
DELETE FROM banked.audit_log;
UPDATE banked.service_state SET floor_seq = 0;
SELECT setval('banked.events_seq_seq', 1);
DROP TRIGGER theirs ON banked.events;
RESET ROLE;
DROP TRIGGER theirs ON banked.events;

-- the log names who was logged in, and the role that was set
SELECT action, role = session_user AS logged_in, detail ->> 'set_role' AS set_role FROM banked.audit_log WHERE detail ->> 'set_role' IS NOT NULL ORDER BY at;
SET SESSION AUTHORIZATION regress_webhooks_admin;
SELECT banked.pause(), banked.resume();
RESET SESSION AUTHORIZATION;
SELECT action, role, detail FROM banked.audit_log ORDER BY at DESC LIMIT 2;

--
-- Those whom default privileges name get nothing
--
ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO regress_webhooks_nobody, PUBLIC;
ALTER DEFAULT PRIVILEGES GRANT ALL ON SEQUENCES TO regress_webhooks_nobody, PUBLIC;
ALTER DEFAULT PRIVILEGES GRANT ALL ON FUNCTIONS TO regress_webhooks_nobody, PUBLIC;
ALTER DEFAULT PRIVILEGES GRANT ALL ON SCHEMAS TO regress_webhooks_nobody;
DROP EXTENSION banked_webhooks CASCADE;
DROP SCHEMA banked CASCADE;
CREATE EXTENSION banked_webhooks;
SELECT FROM banked.register_endpoint('/banked');
SELECT c.relname FROM pg_class AS c WHERE c.relnamespace = 'banked'::regnamespace AND c.relkind IN ('r', 'v', 'S') AND test.privileges('regress_webhooks_nobody', c.oid) <> '-';
SELECT p.oid::regprocedure FROM pg_proc AS p WHERE p.pronamespace = 'banked'::regnamespace AND has_function_privilege('regress_webhooks_nobody', p.oid, 'EXECUTE');
SELECT has_schema_privilege('regress_webhooks_nobody', 'banked', 'CREATE');
ALTER DEFAULT PRIVILEGES REVOKE ALL ON TABLES FROM regress_webhooks_nobody, PUBLIC;
ALTER DEFAULT PRIVILEGES REVOKE ALL ON SEQUENCES FROM regress_webhooks_nobody, PUBLIC;
ALTER DEFAULT PRIVILEGES REVOKE ALL ON FUNCTIONS FROM regress_webhooks_nobody;
ALTER DEFAULT PRIVILEGES REVOKE ALL ON SCHEMAS FROM regress_webhooks_nobody;

DROP EXTENSION banked_webhooks CASCADE;
DROP SCHEMA banked, test CASCADE;
DROP ROLE regress_webhooks_nobody, regress_webhooks_reader, regress_webhooks_admin;
