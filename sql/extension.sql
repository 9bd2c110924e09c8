-- The extension as such: its members, what outlives it, where it refuses to be.
\getenv srcdir PG_ABS_SRCDIR
\set setup :srcdir '/sql/setup.psql'
\set ECHO none
\i :setup
\set ECHO all
SET client_min_messages = error;

--
-- Members
--
-- only what may go with it: functions, views on functions, and its own two tables
CREATE VIEW test.members AS
	SELECT d.classid::regclass AS catalog, o.type, o.identity
	FROM pg_depend AS d JOIN pg_extension AS e ON d.refclassid = 'pg_extension'::regclass AND d.refobjid = e.oid AND d.deptype = 'e'
		CROSS JOIN LATERAL pg_identify_object(d.classid, d.objid, d.objsubid) AS o
	WHERE e.extname = 'banked_webhooks';
SELECT type, identity FROM test.members WHERE type <> 'function' ORDER BY 1, 2;
SELECT identity FROM test.members WHERE type = 'function' AND identity NOT LIKE 'banked.\_%' ORDER BY identity COLLATE "C";
SELECT extconfig::regclass[], extcondition FROM pg_extension WHERE extname = 'banked_webhooks';
-- all else is complete in a dump: no member, and no privileges that count as a member's
SELECT c.relname FROM pg_class AS c
WHERE c.relnamespace = 'banked'::regnamespace AND c.relkind IN ('r', 'S', 'v')
	AND NOT EXISTS (SELECT FROM pg_depend AS d WHERE d.classid = 'pg_class'::regclass AND d.objid = c.oid AND d.deptype = 'e')
	AND NOT EXISTS (SELECT FROM pg_init_privs AS p WHERE p.classoid = 'pg_class'::regclass AND p.objoid = c.oid)
ORDER BY 1;
SELECT count(*) FROM pg_init_privs WHERE objoid = 'banked'::regnamespace;
-- every object is described
SELECT identity FROM test.members AS m
WHERE obj_description(CASE m.type WHEN 'function' THEN m.identity::regprocedure::oid ELSE m.identity::regclass::oid END, m.catalog::name) IS NULL;
SELECT relname FROM pg_class WHERE relnamespace = 'banked'::regnamespace AND relkind IN ('r', 'v') AND obj_description(oid, 'pg_class') IS NULL;
SELECT a.attrelid::regclass, a.attname FROM pg_attribute AS a JOIN pg_class AS c ON c.oid = a.attrelid
WHERE c.relnamespace = 'banked'::regnamespace AND c.relkind IN ('r', 'v') AND a.attnum > 0 AND NOT a.attisdropped
	AND col_description(c.oid, a.attnum) IS NULL;
SELECT tgrelid::regclass, tgname FROM pg_trigger WHERE tgname LIKE 'banked%' AND obj_description(oid, 'pg_trigger') IS NULL;
SELECT rolname FROM pg_roles WHERE rolname LIKE 'banked%' AND shobj_description(oid, 'pg_authid') IS NULL;
-- what has a secret at hand is planned without its value
SELECT p.oid::regprocedure FROM pg_proc AS p
WHERE p.pronamespace = 'banked'::regnamespace AND p.prosecdef AND p.prosrc ~ '\m(signing_key|signature_key|secret|secret_key|key_from_file)\M'
	AND NOT coalesce(p.proconfig @> ARRAY['plan_cache_mode=force_generic_plan'], false)
ORDER BY 1;
-- what raises privileges fixes its search_path
SELECT p.oid::regprocedure FROM pg_proc AS p
WHERE p.pronamespace = 'banked'::regnamespace AND p.prosecdef AND NOT coalesce(p.proconfig @> ARRAY['search_path=pg_catalog, pg_temp'], false);

--
-- DROP and CREATE: the history stays, and goes on where it was
--
SELECT outcome FROM test.deliver(test.v2('e1', 'payment_sent'), test.minute(1));
CREATE FUNCTION test.users() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN new.state := 'seen'; RETURN new; END $$;
CREATE TRIGGER users BEFORE INSERT ON banked.events FOR EACH ROW EXECUTE FUNCTION test.users();
CREATE INDEX users ON banked.events (state);
CREATE VIEW test.triggers AS SELECT tgrelid::regclass AS relation, tgname FROM pg_trigger WHERE NOT tgisinternal ORDER BY tgrelid::regclass::text COLLATE "C", tgname;
SELECT * FROM test.triggers;
DROP EXTENSION banked_webhooks;
DROP EXTENSION banked_webhooks CASCADE;
SELECT * FROM test.triggers;
SELECT event_id, amount FROM banked.history;
SELECT path, state FROM banked.endpoints;
CREATE EXTENSION banked_webhooks;
SELECT * FROM test.triggers;
SELECT paused, floor_seq = (SELECT max(seq) FROM banked.events) AS floor FROM banked.service_state;
-- the keys are gone
SELECT status, outcome FROM banked.receive('/banked', banked.sign('{"id":"e2","webhook_event":"payment_sent"}', 'the signing key'), '{"id":"e2","webhook_event":"payment_sent"}');
SELECT signing_key FROM banked.rotate_signing_key('/banked', 'the signing key');
SELECT status, outcome FROM banked.receive('/banked', banked.sign('{"id":"e2","webhook_event":"payment_sent"}', 'the signing key'), '{"id":"e2","webhook_event":"payment_sent"}');
SELECT event_id, state FROM banked.events ORDER BY seq;
-- neither members nor init privileges now
SELECT type, identity FROM test.members WHERE type <> 'function' ORDER BY 1, 2;
SELECT objoid::regclass FROM pg_init_privs WHERE classoid = 'pg_class'::regclass AND objoid IN (SELECT oid FROM pg_class WHERE relnamespace = 'banked'::regnamespace) ORDER BY 1;

--
-- create_tables() repairs what is missing, and leaves alone what was changed on purpose
--
DROP TRIGGER banked_webhooks_notify ON banked.events;
DROP TRIGGER banked_webhooks_config_changed ON banked.signing_keys;
ALTER TABLE banked.quarantine DISABLE TRIGGER banked_webhooks_notify;
DROP VIEW banked.history;
REVOKE INSERT ON banked.event_revisions FROM banked_webhooks_worker;
REVOKE USAGE ON SEQUENCE banked.events_seq_seq FROM banked_webhooks_worker;
REVOKE SELECT ON banked.events FROM banked_webhooks_reader;
SET client_min_messages = notice;
SELECT banked.create_tables();
SELECT banked.create_tables();
SET client_min_messages = error;
SELECT relation, tgname FROM test.triggers WHERE tgname LIKE 'banked%';
SELECT tgenabled FROM pg_trigger WHERE tgrelid = 'banked.quarantine'::regclass AND NOT tgisinternal;
SELECT has_table_privilege('banked_webhooks_worker', 'banked.event_revisions', 'INSERT') AS worker_inserts,
	   has_sequence_privilege('banked_webhooks_worker', 'banked.events_seq_seq', 'USAGE') AS worker_counts,
	   has_table_privilege('banked_webhooks_reader', 'banked.events', 'SELECT') AS reader_reads;
SELECT event_id FROM banked.history ORDER BY seq;
DROP TABLE banked.events, banked.rejections CASCADE;
INSERT INTO banked.event_revisions (event_id, event_type, endpoint_id, body_sha256, signature, signed_at, received_at, seq, revision, kind)
SELECT 'e1', 't', endpoint_id, '', '', now(), now(), 41, 1, 'changed' FROM banked.endpoints;
SELECT banked.create_tables();
INSERT INTO banked.event_revisions (event_id, event_type, endpoint_id, body_sha256, signature, signed_at, received_at, revision, kind)
SELECT 'e1', 't', endpoint_id, '', '', now(), now(), 2, 'changed' FROM banked.endpoints RETURNING seq;
SELECT count(*) FROM banked.rejections;
-- whatever it mends, it sees by itself
CREATE FUNCTION test.mend(damage text, OUT complete boolean, OUT seen boolean, OUT mended boolean) LANGUAGE plpgsql AS $$
BEGIN
	complete := banked._tables_are_complete();
	EXECUTE damage;
	seen := NOT banked._tables_are_complete();
	PERFORM banked.create_tables();
	mended := banked._tables_are_complete();
	RAISE EXCEPTION SQLSTATE 'BW000';
EXCEPTION WHEN SQLSTATE 'BW000' THEN
	NULL;
END
$$;
CREATE VIEW test.damages AS
	SELECT format('DROP %s %s CASCADE', CASE c.relkind WHEN 'v' THEN 'VIEW' ELSE 'TABLE' END, c.oid::regclass) AS damage
	FROM unnest(banked._relation_names()) AS r (name) JOIN pg_class AS c ON c.oid = ('banked.' || r.name)::regclass
	WHERE c.relkind <> 'S'
	UNION ALL
	SELECT format('ALTER EXTENSION banked_webhooks ADD %s %s', CASE c.relkind WHEN 'v' THEN 'VIEW' WHEN 'S' THEN 'SEQUENCE' ELSE 'TABLE' END, c.oid::regclass)
	FROM unnest(banked._relation_names()) AS r (name) JOIN pg_class AS c ON c.oid = ('banked.' || r.name)::regclass
	UNION ALL
	SELECT format('UPDATE pg_class SET relacl = NULL WHERE oid = %L::regclass', c.oid::regclass)
	FROM unnest(banked._relation_names()) AS r (name) JOIN pg_class AS c ON c.oid = ('banked.' || r.name)::regclass
	WHERE c.relacl IS NOT NULL
	UNION ALL
	SELECT format('DROP TRIGGER %I ON %s', t.tgname, t.tgrelid::regclass) FROM pg_trigger AS t
	WHERE t.tgname LIKE 'banked%' AND t.tgrelid NOT IN ('banked.key_secrets'::regclass, 'banked.service_state'::regclass)
	UNION ALL
	SELECT format('ALTER TABLE %s DROP CONSTRAINT %I', c.conrelid::regclass, c.conname) FROM pg_constraint AS c
	WHERE c.conrelid = 'banked.endpoints'::regclass AND c.contype = 'c' AND c.conname <> 'endpoints_state_check'
	UNION ALL
	SELECT format('REVOKE %s FROM banked_webhooks_worker', r.privilege)
	FROM (VALUES ('INSERT ON banked.events'), ('SELECT ON banked.events'), ('INSERT ON banked.event_revisions'), ('SELECT ON banked.event_revisions'),
				 ('USAGE ON SEQUENCE banked.events_seq_seq')) AS r (privilege)
	UNION ALL
	VALUES ('ALTER TABLE banked.event_revisions ALTER seq DROP DEFAULT'),
		   ('ALTER SEQUENCE banked.events_seq_seq CACHE 10'),
		   ('ALTER SEQUENCE banked.events_seq_seq INCREMENT -1'),
		   ('ALTER SEQUENCE banked.events_seq_seq CYCLE'),
		   (format('REVOKE CONNECT ON DATABASE %I FROM PUBLIC, banked_webhooks_worker', current_database()));
SELECT count(*) FROM test.damages;
SELECT d.damage, m.* FROM test.damages AS d CROSS JOIN LATERAL test.mend(d.damage) AS m WHERE NOT (m.complete AND m.seen AND m.mended);
CREATE ROLE regress_webhooks_owner;
ALTER TABLE banked.endpoints OWNER TO regress_webhooks_owner;
SELECT test.attempt('SELECT banked.create_tables()');
ALTER TABLE banked.endpoints OWNER TO CURRENT_USER;

--
-- pause() and resume()
--
SELECT banked.pause();
SELECT paused FROM banked.service_state;
SELECT banked.pause();
SELECT banked.resume();
SELECT paused FROM banked.service_state;
SELECT banked.resume();
SELECT action FROM banked.audit_log ORDER BY at DESC LIMIT 3;
SELECT left(test.attempt('INSERT INTO banked.service_state (singleton, paused) VALUES (false, true)'), 5) AS only_one_row;

--
-- Where it starts paused: a schema without tables, as a dump's
--
-- Makes the extension anew, and tells whether it is paused.
CREATE FUNCTION test.start(before text) RETURNS boolean LANGUAGE plpgsql AS $$
BEGIN
	DROP EXTENSION IF EXISTS banked_webhooks CASCADE;
	DROP SCHEMA IF EXISTS banked CASCADE;
	EXECUTE before;
	CREATE EXTENSION banked_webhooks;
	RETURN (SELECT paused FROM banked.service_state);
END
$$;
SELECT test.start('');
-- in a subtransaction
BEGIN;
SAVEPOINT a;
SELECT test.start('');
RELEASE SAVEPOINT a;
SELECT paused FROM banked.service_state;
COMMIT;
DROP EXTENSION banked_webhooks CASCADE;
SELECT count(*) FROM pg_class WHERE relnamespace = 'banked'::regnamespace;
SET client_min_messages = warning;
-- as a dump is restored: statement by statement
CREATE EXTENSION IF NOT EXISTS banked_webhooks WITH SCHEMA banked;
SELECT paused FROM banked.service_state;
DROP EXTENSION banked_webhooks CASCADE;
DROP SCHEMA banked;
-- and in one transaction
BEGIN;
CREATE SCHEMA banked;
CREATE EXTENSION IF NOT EXISTS banked_webhooks WITH SCHEMA banked;
COMMIT;
SELECT paused FROM banked.service_state;
SET client_min_messages = error;

--
-- Where it refuses to be
--
DROP EXTENSION banked_webhooks;
DROP SCHEMA banked;
CREATE SCHEMA banked;
GRANT CREATE ON SCHEMA banked TO regress_webhooks_owner;
CREATE EXTENSION banked_webhooks;
REVOKE CREATE ON SCHEMA banked FROM regress_webhooks_owner;
GRANT CREATE ON SCHEMA banked TO PUBLIC;
CREATE EXTENSION banked_webhooks;
DROP SCHEMA banked;
SELECT b.before, test.attempt(format('SELECT test.start(%L)', b.before))
FROM (VALUES ('CREATE SCHEMA banked AUTHORIZATION regress_webhooks_owner'),
			 ('CREATE SCHEMA banked; CREATE TABLE banked.endpoints (); ALTER TABLE banked.endpoints OWNER TO regress_webhooks_owner'),
			 ('ALTER ROLE banked_webhooks_worker SUPERUSER CREATEDB CREATEROLE REPLICATION BYPASSRLS'),
			 ('ALTER ROLE banked_webhooks_worker NOLOGIN INHERIT CONNECTION LIMIT 1 PASSWORD ''x'''),
			 ('GRANT banked_webhooks_worker TO regress_webhooks_owner'),
			 ('GRANT regress_webhooks_owner TO banked_webhooks_worker'),
			 ('ALTER ROLE banked_webhooks_reader LOGIN'),
			 ('ALTER ROLE banked_webhooks_admin CREATEROLE')) AS b (before);
-- what is allowed
SELECT test.start('ALTER ROLE banked_webhooks_worker SET search_path = test; GRANT banked_webhooks_admin TO regress_webhooks_owner');
ALTER ROLE banked_webhooks_worker RESET ALL;
-- only a superuser creates it, and only in its schema
CREATE SCHEMA elsewhere;
DROP EXTENSION banked_webhooks CASCADE;
CREATE EXTENSION banked_webhooks SCHEMA elsewhere;
SET ROLE regress_webhooks_owner;
CREATE EXTENSION banked_webhooks;
RESET ROLE;

DROP SCHEMA banked, test, elsewhere CASCADE;
DROP ROLE regress_webhooks_owner;
-- in a database whose text is not UTF-8
\set before_database :DBNAME
CREATE DATABASE regress_webhooks_latin1 ENCODING 'LATIN1' LOCALE 'C' TEMPLATE template0;
\c regress_webhooks_latin1
CREATE EXTENSION banked_webhooks;
\c :before_database
DROP DATABASE regress_webhooks_latin1;
