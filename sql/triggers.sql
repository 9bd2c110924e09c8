-- Users' triggers on events: what they may do, as whom, and what their failures cost.
\getenv srcdir PG_ABS_SRCDIR
\set setup :srcdir '/sql/setup.psql'
\set ECHO none
\i :setup
\set ECHO all
SET client_min_messages = error;

CREATE TABLE test.seen (place int GENERATED ALWAYS AS IDENTITY, what text, who name, event_id text);
GRANT INSERT, SELECT ON test.seen TO banked_webhooks_worker;
-- Makes a trigger function of a body.
CREATE FUNCTION test.make(body text) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	EXECUTE format('CREATE OR REPLACE FUNCTION test.react() RETURNS trigger LANGUAGE plpgsql AS %L', 'BEGIN ' || body || ' RETURN new; END');
END
$$;
CREATE FUNCTION test.note() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
	INSERT INTO test.seen (what, who, event_id)
	VALUES (concat_ws(' ', TG_TABLE_NAME, TG_WHEN, TG_LEVEL, TG_ARGV[0]), current_user, CASE WHEN TG_LEVEL = 'ROW' THEN new.event_id END);
	RETURN new;
END
$$;

--
-- They run as the worker, whoever receives, and see everything of the delivery
--
CREATE TRIGGER a BEFORE INSERT ON banked.events FOR EACH ROW EXECUTE FUNCTION test.note();
CREATE TRIGGER b AFTER INSERT ON banked.events FOR EACH ROW EXECUTE FUNCTION test.note();
CREATE TRIGGER c AFTER INSERT ON banked.events FOR EACH STATEMENT EXECUTE FUNCTION test.note();
CREATE CONSTRAINT TRIGGER d AFTER INSERT ON banked.events DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION test.note('deferred');
CREATE TRIGGER e AFTER INSERT ON banked.event_revisions FOR EACH ROW EXECUTE FUNCTION test.note();
CREATE CONSTRAINT TRIGGER f AFTER INSERT ON banked.event_revisions DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION test.note('deferred');
SELECT outcome FROM test.deliver(test.v2('e1', 'payment_sent'));
SELECT outcome FROM test.deliver(test.v2('e1', 'payment_sent', '{"amount":2}'));
CREATE ROLE regress_webhooks_admin IN ROLE banked_webhooks_admin;
SET ROLE regress_webhooks_admin;
SELECT status, outcome FROM banked.receive('/banked', banked.sign('{"id":"e2","webhook_event":"payment_sent"}', 'the signing key'), '{"id":"e2","webhook_event":"payment_sent"}');
-- afterwards everything is as before
SELECT current_user;
RESET ROLE;
SELECT what, who, event_id FROM test.seen ORDER BY place;
DROP TRIGGER a ON banked.events; DROP TRIGGER b ON banked.events; DROP TRIGGER c ON banked.events; DROP TRIGGER d ON banked.events;
DROP TRIGGER e ON banked.event_revisions; DROP TRIGGER f ON banked.event_revisions;
TRUNCATE test.seen;

--
-- No way up from there: the error keeps the event out, and says what was tried
--
SELECT test.make('');
CREATE TRIGGER react BEFORE INSERT ON banked.events FOR EACH ROW EXECUTE FUNCTION test.react();
CREATE VIEW test.result AS SELECT convert_from(body, 'UTF8')::jsonb ->> 'id' AS event_id, reason, sqlstate, message FROM banked.quarantine ORDER BY quarantine_id;
CREATE ROLE regress_webhooks_target;
CREATE TABLE test.attempts (place int PRIMARY KEY, body text);
INSERT INTO test.attempts VALUES
	(1, 'RESET ROLE;'),
	(2, 'SET ROLE NONE;'),
	(3, 'RESET SESSION AUTHORIZATION;'),
	(4, 'SET SESSION AUTHORIZATION DEFAULT;'),
	(5, 'SET LOCAL ROLE regress_webhooks_target;'),
	(6, 'PERFORM set_config(''role'', ''none'', false);'),
	(7, 'RESET ALL;'),
	(8, 'ALTER ROLE banked_webhooks_worker SUPERUSER;'),
	(9, 'GRANT banked_webhooks_admin TO banked_webhooks_worker;'),
	(10, 'PERFORM secret FROM banked.key_secrets;'),
	(11, 'PERFORM FROM banked.signing_keys;'),
	(12, 'PERFORM FROM banked.quarantine;'),
	(13, 'PERFORM banked.pause();'),
	(14, 'PERFORM banked.receive(''/banked'', '''', '''');'),
	(15, 'PERFORM pg_read_file(''PG_VERSION'');'),
	(16, 'UPDATE banked.events SET event_id = event_id;'),
	(17, 'DELETE FROM banked.events;'),
	(18, 'COPY test.seen TO PROGRAM ''true'';'),
	(19, 'CREATE TABLE banked.mine ();'),
	(20, 'ALTER TABLE banked.events DISABLE TRIGGER ALL;');
DO $$
DECLARE
	attempt record;
BEGIN
	FOR attempt IN SELECT * FROM test.attempts ORDER BY place LOOP
		PERFORM test.make(attempt.body || ' INSERT INTO test.seen (what, who) VALUES (' || quote_literal(attempt.body) || ', current_user);');
		PERFORM test.deliver(test.v2('up' || attempt.place, 'payment_sent'));
	END LOOP;
END
$$;
SELECT * FROM test.result;
SELECT what, who FROM test.seen ORDER BY place;
TRUNCATE banked.quarantine, test.seen;
SELECT rolsuper, rolconnlimit FROM pg_roles WHERE rolname = 'banked_webhooks_worker';

-- deferred triggers cannot wait for a better time, even if they ask for it
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON banked.events DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION test.note('late');
SELECT test.make('SET CONSTRAINTS ALL DEFERRED;');
BEGIN;
SELECT outcome FROM test.deliver(test.v2('late1', 'payment_sent'));
SELECT what, who, event_id FROM test.seen ORDER BY place;
COMMIT;
SELECT what, who, event_id FROM test.seen ORDER BY place;
TRUNCATE test.seen;
TRUNCATE banked.quarantine;
-- nor can those that the caller's own statements left, which are the caller's
SELECT test.make('');
CREATE TABLE test.own (event_id text);
CREATE CONSTRAINT TRIGGER late AFTER INSERT ON test.own DEFERRABLE INITIALLY DEFERRED FOR EACH ROW EXECUTE FUNCTION test.note('own');
GRANT ALL ON test.own, test.seen TO regress_webhooks_admin;
GRANT EXECUTE ON FUNCTION test.deliver(text, timestamptz, text, text) TO regress_webhooks_admin;
SET ROLE regress_webhooks_admin;
BEGIN;
INSERT INTO test.own VALUES ('own');
SELECT outcome FROM test.deliver(test.v2('late2', 'payment_sent'));
COMMIT;
RESET ROLE;
SELECT what, who, event_id FROM test.seen ORDER BY place;
TRUNCATE test.seen;
DROP TRIGGER late ON banked.events;
-- index expressions
SELECT test.make('');
CREATE FUNCTION test.spy() RETURNS void LANGUAGE sql AS $$ INSERT INTO test.seen (what, who) VALUES ('index', current_user) $$;
CREATE FUNCTION test.indexed(text) RETURNS text LANGUAGE plpgsql IMMUTABLE AS $$ BEGIN PERFORM test.spy(); RETURN $1; END $$;
CREATE INDEX seen_by_index ON banked.events (test.indexed(state));
TRUNCATE test.seen;
SELECT outcome FROM test.deliver(test.v2('index', 'payment_sent'));
SELECT DISTINCT what, who FROM test.seen;
DROP INDEX banked.seen_by_index;
TRUNCATE test.seen;

--
-- One that raises: quarantine, with the reason; the next deliveries are stored
--
CREATE TABLE test.orders (reference text PRIMARY KEY, paid boolean NOT NULL DEFAULT false);
CREATE FUNCTION test.pay() RETURNS trigger LANGUAGE plpgsql SECURITY DEFINER AS $$
BEGIN
	UPDATE test.orders SET paid = true WHERE reference = new.payload ->> 'reference';
	IF NOT FOUND THEN RAISE EXCEPTION 'no order %', new.payload ->> 'reference' USING ERRCODE = 'no_data_found'; END IF;
	RETURN new;
END
$$;
CREATE TRIGGER pay AFTER INSERT ON banked.events FOR EACH ROW WHEN (new.event_type = 'payment_sent') EXECUTE FUNCTION test.pay();
INSERT INTO test.orders VALUES ('A');
SELECT d.event_id, d.status, d.outcome FROM unnest('{A,B}'::text[]) AS r (reference) CROSS JOIN LATERAL test.deliver(test.v2('order' || r.reference, 'payment_sent', jsonb_build_object('reference', r.reference))) AS d;
SELECT * FROM test.result;
SELECT attempts, next_attempt_at > now() AND next_attempt_at <= now() + interval '1 hour' AS retried_within_the_hour FROM banked.quarantine;
-- a repetition of a stored event is one, whatever triggers say
SELECT outcome FROM test.deliver(test.v2('orderA', 'payment_sent', '{"reference":"A"}'), now() - interval '1 minute');
-- not mended yet, and mended
SELECT quarantine_id AS id FROM banked.quarantine \gset
SELECT * FROM banked.reprocess(:id);
SELECT attempts, reason FROM banked.quarantine;
INSERT INTO test.orders VALUES ('B');
SELECT * FROM banked.reprocess(:id);
SELECT count(*) FROM banked.quarantine;
SELECT * FROM test.orders ORDER BY reference;
DROP TRIGGER pay ON banked.events;

--
-- A trigger that fails for a known event changes nothing, and one that has failed leaves nothing behind
--
SELECT test.make('INSERT INTO test.seen (what) VALUES (''left behind''); RAISE EXCEPTION ''no'';');
SELECT outcome FROM test.deliver(test.v2('orderA', 'payment_sent', '{"reference":"A"}'), now() - interval '2 minutes');
SELECT outcome FROM test.deliver(test.v2('orderA', 'payment_sent', '{"reference":"changed"}'));
SELECT outcome FROM test.deliver(test.v2('new', 'payment_sent'));
SELECT count(*) FROM test.seen;
SELECT event_id, reason, sqlstate, message FROM test.result;
TRUNCATE banked.quarantine;
-- on revisions as well
SELECT test.make('');
CREATE TRIGGER react BEFORE INSERT ON banked.event_revisions FOR EACH ROW EXECUTE FUNCTION test.react();
SELECT test.make('IF TG_TABLE_NAME = ''event_revisions'' THEN RAISE EXCEPTION ''no revisions''; END IF;');
SELECT outcome FROM test.deliver(test.v2('orderA', 'payment_sent', '{"reference":"once more"}'));
SELECT * FROM test.result;
TRUNCATE banked.quarantine;

--
-- One that suppresses the row, or changes it
--
SELECT test.make('IF new.event_id LIKE ''no%'' THEN RETURN NULL; END IF;');
SELECT d.event_id, d.status, d.outcome FROM unnest('{no1,yes1}'::text[]) AS i (id) CROSS JOIN LATERAL test.deliver(test.v2(i.id, 'payment_sent')) AS d;
SELECT outcome FROM test.deliver(test.v2('yes1', 'payment_sent', '{"amount":7}'));
SELECT * FROM test.result;
TRUNCATE banked.quarantine;
SELECT test.make('new.state := ''changed by a trigger''; new.payload := new.payload - ''amount'';');
SELECT outcome FROM test.deliver(test.v2('changed1', 'payment_sent'));
SELECT state, payload ? 'amount' AS amount, convert_from(body, 'UTF8')::jsonb ? 'amount' AS amount_in_body, banked.verify_event(event_id, event_type) FROM banked.events WHERE event_id = 'changed1';
-- to another identity: the row is where the trigger put it
SELECT test.make('new.event_id := ''renamed '' || new.event_id;');
SELECT outcome FROM test.deliver(test.v2('changed2', 'payment_sent'));
SELECT event_id FROM banked.events WHERE event_id LIKE '%changed2';
SELECT test.make('new.seq := 0; new.revision := NULL;');
SELECT outcome FROM test.deliver(test.v2('changed3', 'payment_sent'));
SELECT event_id, reason, sqlstate FROM test.result;
TRUNCATE banked.quarantine;

--
-- As in any session: temporary tables, deferred foreign keys, settings
--
GRANT TEMP ON DATABASE :DBNAME TO banked_webhooks_worker;
SELECT test.make('CREATE TEMP TABLE scratch (a int) ON COMMIT DROP; INSERT INTO scratch VALUES (1); DROP TABLE scratch;');
SELECT outcome FROM test.deliver(test.v2('temporary', 'payment_sent'));
-- (receive() has made all constraints of its transaction immediate: deferred ones are checked at once)
CREATE TABLE test.parents (id text PRIMARY KEY);
CREATE TABLE test.children (id text REFERENCES test.parents DEFERRABLE INITIALLY DEFERRED);
GRANT INSERT ON test.parents, test.children TO banked_webhooks_worker;
SELECT test.make('INSERT INTO test.children VALUES (new.event_id); INSERT INTO test.parents VALUES (new.event_id);');
SELECT outcome FROM test.deliver(test.v2('deferred1', 'payment_sent'));
SELECT test.make('INSERT INTO test.parents VALUES (new.event_id); INSERT INTO test.children VALUES (new.event_id);');
SELECT outcome FROM test.deliver(test.v2('deferred2', 'payment_sent'));
SELECT event_id, reason, sqlstate FROM test.result;
SELECT id FROM test.children ORDER BY id;
TRUNCATE banked.quarantine;
SELECT test.make('PERFORM set_config(''search_path'', ''test'', false), set_config(''synchronous_commit'', ''off'', false), set_config(''work_mem'', ''1MB'', false);');
SELECT outcome FROM test.deliver(test.v2('settings', 'payment_sent'));
SELECT name, setting FROM pg_settings WHERE name IN ('search_path', 'synchronous_commit', 'work_mem') ORDER BY name;

--
-- Nothing stays in the session of receive()'s caller, where it would run as that role
--
SELECT test.make('EXECUTE ''DECLARE held CURSOR WITH HOLD FOR SELECT 1'';');
SELECT outcome FROM test.deliver(test.v2('left1', 'payment_sent'));
SELECT test.make('EXECUTE ''CREATE TEMP VIEW pg_user AS SELECT 1 AS a'';');
SELECT outcome FROM test.deliver(test.v2('left2', 'payment_sent'));
SELECT test.make('EXECUTE ''CREATE DOMAIN pg_temp.date AS text'';');
SELECT outcome FROM test.deliver(test.v2('left3', 'payment_sent'));
SELECT test.make('EXECUTE ''PREPARE later AS SELECT 1'';');
SELECT outcome FROM test.deliver(test.v2('left4', 'payment_sent'));
SELECT test.make('EXECUTE ''LISTEN left_behind'';');
SELECT outcome FROM test.deliver(test.v2('left5', 'payment_sent'));
SELECT test.make('EXECUTE ''ALTER ROLE CURRENT_USER SET synchronous_commit = off'';');
SELECT outcome FROM test.deliver(test.v2('left6', 'payment_sent'));
SELECT test.make('EXECUTE ''SET CONSTRAINTS ALL DEFERRED''; INSERT INTO test.children VALUES (new.event_id); INSERT INTO test.parents VALUES (new.event_id);');
SELECT outcome FROM test.deliver(test.v2('left7', 'payment_sent'));
SELECT event_id, reason, sqlstate, message FROM test.result ORDER BY event_id;
SELECT count(*) FROM pg_cursors WHERE is_holdable;
SELECT count(*) FROM pg_prepared_statements WHERE name = 'later';
SELECT count(*) FROM pg_listening_channels();

-- bytes that somebody has erased from quarantine cannot be tried again
UPDATE banked.quarantine SET body = NULL;
SELECT banked.reprocess(min(quarantine_id)) FROM banked.quarantine;
TRUNCATE banked.quarantine;

DROP TRIGGER react ON banked.events; DROP TRIGGER react ON banked.event_revisions;
DROP SCHEMA test CASCADE;
DROP ROLE regress_webhooks_admin, regress_webhooks_target;
