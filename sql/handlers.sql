-- Handlers: subscribing, privileges, which events make jobs, retry, replay, dry_run, views.
-- No worker runs here: jobs are made, and stay as they are.
\getenv srcdir PG_ABS_SRCDIR
\set setup :srcdir '/sql/setup.psql'
\set ECHO none
\i :setup
\set ECHO all
SET client_min_messages = error;
DROP ROLE IF EXISTS regress_webhooks_shop, regress_webhooks_other, regress_webhooks_nologin, regress_webhooks_plain;
CREATE ROLE regress_webhooks_shop LOGIN CONNECTION LIMIT 0;
CREATE ROLE regress_webhooks_other LOGIN CONNECTION LIMIT 0;
CREATE ROLE regress_webhooks_nologin;
CREATE ROLE regress_webhooks_plain LOGIN;
GRANT banked_webhooks_admin TO regress_webhooks_shop, regress_webhooks_nologin;
GRANT USAGE ON SCHEMA test TO regress_webhooks_plain;
RESET client_min_messages;

CREATE FUNCTION test.handle(event banked.events) RETURNS void LANGUAGE sql AS 'SELECT';
CREATE FUNCTION test.handle_too(event banked.events) RETURNS int LANGUAGE sql AS 'SELECT 1';
CREATE FUNCTION test.wrong_argument(event text) RETURNS void LANGUAGE sql AS 'SELECT';
CREATE FUNCTION test.two_arguments(event banked.events, more int) RETURNS void LANGUAGE sql AS 'SELECT';
CREATE FUNCTION test.returns_set(event banked.events) RETURNS SETOF int LANGUAGE sql AS 'SELECT 1';
CREATE PROCEDURE test.procedure(event banked.events) LANGUAGE sql AS 'SELECT';
CREATE FUNCTION test.private(event banked.events) RETURNS void LANGUAGE sql AS 'SELECT';
REVOKE EXECUTE ON FUNCTION test.private(banked.events) FROM PUBLIC;

--
-- Who may subscribe
--
SELECT test.attempt($$SELECT banked.subscribe('h', 'test.handle(banked.events)')$$);
SET ROLE regress_webhooks_nologin;
SELECT test.attempt($$SELECT banked.subscribe('h', 'test.handle(banked.events)')$$);
SET ROLE regress_webhooks_plain;
SELECT test.attempt($$SELECT banked.subscribe('h', 'test.handle(banked.events)')$$);
RESET ROLE;
-- a role that is no admin: the function must be granted, and reading events
GRANT USAGE ON SCHEMA banked TO regress_webhooks_plain;
GRANT EXECUTE ON FUNCTION banked.subscribe(text, regprocedure, text[], text, int, interval, interval, int, numeric, boolean, boolean, boolean, int),
	banked.pause_handler(text), banked.alter_handler(text, regprocedure, text[], int, interval, interval, int, numeric, boolean, boolean, boolean, int),
	banked.retry(text, text) TO regress_webhooks_plain;
SET ROLE regress_webhooks_plain;
SELECT test.attempt($$SELECT banked.subscribe('h', 'test.handle(banked.events)')$$);
RESET ROLE;
GRANT banked_webhooks_reader TO regress_webhooks_plain;
SET ROLE regress_webhooks_plain;
SELECT banked.subscribe('plain', 'test.handle(banked.events)', ARRAY['payment_*']);
RESET ROLE;

--
-- Arguments
--
SET ROLE regress_webhooks_shop;
SELECT banked.subscribe('shop', 'test.handle(banked.events)', ARRAY['payment_*', 'refund_sent'], endpoint => '/banked');
SELECT test.attempt($$SELECT banked.subscribe('shop', 'test.handle(banked.events)')$$);
SELECT test.attempt($$SELECT banked.subscribe('', 'test.handle(banked.events)')$$);
SELECT test.attempt($$SELECT banked.subscribe(NULL, 'test.handle(banked.events)')$$);
SELECT test.attempt($$SELECT banked.subscribe(repeat('x', 64), 'test.handle(banked.events)')$$);
SELECT test.attempt($$SELECT banked.subscribe('h', NULL)$$);
SELECT test.attempt($$SELECT banked.subscribe('h', 0)$$);
SELECT test.attempt($$SELECT banked.subscribe('h', 'test.wrong_argument(text)')$$);
SELECT test.attempt($$SELECT banked.subscribe('h', 'test.two_arguments(banked.events, int)')$$);
SELECT test.attempt($$SELECT banked.subscribe('h', 'test.returns_set(banked.events)')$$);
SELECT test.attempt($$SELECT banked.subscribe('h', 'test.procedure(banked.events)')$$);
SELECT test.attempt($$SELECT banked.subscribe('h', 'test.private(banked.events)')$$);
-- another role may have that schema next
RESET ROLE;
CREATE FUNCTION pg_temp.handle(event banked.events) RETURNS void LANGUAGE sql AS 'SELECT';
SET ROLE regress_webhooks_shop;
SELECT regexp_replace(test.attempt($$SELECT banked.subscribe('h', 'pg_temp.handle(banked.events)')$$), 'pg_temp_\d+', 'pg_temp');
SELECT regexp_replace(test.attempt($$SELECT banked.alter_handler('shop', function => 'pg_temp.handle(banked.events)')$$), 'pg_temp_\d+', 'pg_temp');
SELECT test.attempt($$SELECT banked.subscribe('h', 'test.handle(banked.events)', events => '{}')$$);
SELECT test.attempt($$SELECT banked.subscribe('h', 'test.handle(banked.events)', events => ARRAY['pay*ment'])$$);
SELECT test.attempt($$SELECT banked.subscribe('h', 'test.handle(banked.events)', events => (SELECT array_agg('payment_' || i) FROM generate_series(1, 1001) AS i))$$);
SELECT test.attempt($$SELECT banked.subscribe('h', 'test.handle(banked.events)', endpoint => '/nowhere')$$);
SELECT test.attempt($$SELECT banked.subscribe('h', 'test.handle(banked.events)', max_attempts => 0)$$);
SELECT test.attempt($$SELECT banked.subscribe('h', 'test.handle(banked.events)', backoff => '2 hours')$$);
SELECT test.attempt($$SELECT banked.subscribe('h', 'test.handle(banked.events)', timeout => '0')$$);
-- a millisecond for a comparison, 52 days in seconds: every event is held against it
SELECT test.attempt($$SELECT banked.subscribe('h', 'test.handle(banked.events)', timeout => '10 years -3600 days 1 ms')$$);
SELECT test.attempt($$SELECT banked.alter_handler('shop', timeout => '-10 years 3600 days 1 ms')$$);
SELECT test.attempt($$SELECT banked.subscribe('h', 'test.handle(banked.events)', concurrency => 0)$$);
SELECT test.attempt($$SELECT banked.subscribe('h', 'test.handle(banked.events)', rate => -1)$$);
SELECT test.attempt($$SELECT banked.subscribe('h', 'test.handle(banked.events)', batch => 65)$$);
SELECT test.attempt($$SELECT banked.subscribe('h', 'test.handle(banked.events)', ordered => NULL)$$);
-- mandates come again as revisions
SELECT banked.subscribe('mandates', 'test.handle_too(banked.events)', ARRAY['mandate_active']);
SELECT banked.subscribe('all', 'test.handle(banked.events)');
SELECT banked.subscribe('mandates too', 'test.handle_too(banked.events)', ARRAY['mand*'], include_revisions => true);
SELECT banked.unsubscribe('all');

--
-- Nobody's but one's own
--
SET ROLE regress_webhooks_plain;
SELECT test.attempt($$SELECT banked.pause_handler('shop')$$);
SELECT test.attempt($$SELECT banked.alter_handler('shop', batch => 2)$$);
SELECT banked.pause_handler('plain');
SELECT test.attempt($$SELECT banked._subscribe(10, 'h', 'test.handle(banked.events)', NULL, NULL, 1, '1 s', '1 s', NULL, NULL, false, false, false, 1)$$);
SELECT test.attempt($$INSERT INTO banked.handlers SELECT * FROM banked.handlers$$);
SELECT test.attempt($$UPDATE banked.jobs SET state = 'done'$$);
SELECT test.attempt($$SELECT * FROM banked.job_attempts$$);
-- an admin may do everything with them but give them another function
SET ROLE regress_webhooks_shop;
SELECT banked.resume_handler('plain');
SELECT test.attempt($$SELECT banked.alter_handler('plain', function => 'test.handle_too(banked.events)')$$);
SELECT banked.alter_handler('plain', max_attempts => 3, concurrency => 2, rate => 5, batch => 10);
SELECT banked.alter_handler('plain', concurrency => 0, rate => 0);
SELECT banked.alter_handler('shop', function => 'test.handle_too(banked.events)');
SELECT test.attempt($$SELECT banked.alter_handler('shop', batch => 0)$$);
SELECT test.attempt($$SELECT banked.alter_handler('nothing', batch => 1)$$);
RESET ROLE;
SELECT handler, function, role, events, max_attempts, concurrency, rate, batch, state FROM banked.handlers ORDER BY 1;

--
-- Which events make jobs
--
SELECT outcome FROM test.deliver(test.v2('e1', 'payment_sent'), test.minute(1));
SELECT outcome FROM test.deliver(test.v2('e1', 'payment_sent'), test.minute(1));
SELECT outcome FROM test.deliver(test.v2('e1', 'payment_sent', '{"amount": 5}'), test.minute(2));
SELECT outcome FROM test.deliver(test.v2('e2', 'refund_sent'), test.minute(3));
SELECT outcome FROM test.deliver(test.v2('e3', 'payout_sent'), test.minute(4));
SELECT outcome FROM test.deliver(test.v2('m1', 'mandate_active'), test.minute(5));
SELECT outcome FROM test.deliver(test.v2('m1', 'mandate_active', '{"amount": 5}'), test.minute(6));
SELECT outcome FROM test.deliver(test.v3('m2', 'active', '{"id": "mandate-2"}'), test.minute(7));
-- what is rolled back makes none
BEGIN;
SELECT outcome FROM test.deliver(test.v2('e4', 'payment_sent'), test.minute(8));
ROLLBACK;
SELECT handler, event_id, event_type, revision, state, attempts FROM banked.jobs ORDER BY handler, job_id;
-- a trigger that changes the identity
CREATE FUNCTION test.rename() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN new.event_type := 'payment_renamed'; RETURN new; END $$;
CREATE TRIGGER rename BEFORE INSERT ON banked.events FOR EACH ROW WHEN (new.event_type = 'payout_sent') EXECUTE FUNCTION test.rename();
SELECT outcome FROM test.deliver(test.v2('e5', 'payout_sent'), test.minute(9));
SELECT handler, event_id, event_type FROM banked.jobs WHERE event_id = 'e5' ORDER BY 1;

--
-- replay
--
SET ROLE regress_webhooks_shop;
SELECT banked.replay('shop');
SELECT banked.replay('shop', events => ARRAY['refund_*']);
SELECT banked.replay('shop', since => test.minute(3));
SELECT banked.replay('shop', until => test.minute(3));
SELECT banked.replay('mandates too');
SELECT banked.replay('mandates');
SELECT test.attempt($$SELECT banked.replay('nothing')$$);
SELECT test.attempt($$SELECT banked.replay('shop', events => '{}')$$);
RESET ROLE;

--
-- retry: as if workers had given up
--
UPDATE banked.jobs SET state = 'dead', attempts = 10, finished_at = now();
INSERT INTO banked.job_attempts (job_id, attempt, started_at, finished_at, reason, sqlstate, message)
SELECT job_id, 10, now(), now(), 'error', CASE WHEN event_id = 'e1' THEN '23505' ELSE 'P0001' END, 'secret of ' || event_id FROM banked.jobs;
SET ROLE regress_webhooks_plain;
SELECT test.attempt($$SELECT banked.retry('shop')$$);
SELECT test.attempt($$SELECT banked.retry()$$);
SELECT banked.retry(sqlstate => '23505');
-- errors are for the handler's role alone
SELECT DISTINCT handler, message FROM banked.failed_attempts ORDER BY 1, 2;
SET ROLE regress_webhooks_shop;
SELECT count(DISTINCT handler) FROM banked.failed_attempts;
SELECT banked.retry(sqlstate => '23505');
SELECT banked.retry('mandates', 'P0001');
SELECT banked.retry('shop');
SELECT test.attempt($$SELECT banked.retry(1000000)$$);
SELECT test.attempt($$SELECT banked.retry(NULL::bigint)$$);
SELECT test.attempt($$SELECT banked.retry(handler => 'nothing')$$);
RESET ROLE;
UPDATE banked.jobs SET state = 'done', finished_at = now(), started_at = now() WHERE handler = 'shop';
SELECT test.attempt((SELECT format('SELECT banked.retry(%s)', min(job_id)) FROM banked.jobs WHERE handler = 'shop')) ~ '^55000: job \d+ is done$' AS refused;
SELECT banked.retry(min(job_id)) FROM banked.jobs WHERE state = 'dead';
SELECT handler, ready, running, waiting_for_retry, dead, done_per_minute > 0 AS done FROM banked.handler_status ORDER BY 1;
SELECT handler, state, attempts, reason, sqlstate FROM banked.event_jobs WHERE event_id = 'm1' ORDER BY job_id;

--
-- dry_run
--
CREATE TABLE test.seen (event_id text UNIQUE DEFERRABLE INITIALLY DEFERRED);
CREATE FUNCTION test.see(event banked.events) RETURNS void LANGUAGE plpgsql AS $$
BEGIN
	IF event.event_id = 'e2' THEN
		RAISE EXCEPTION 'not this one' USING ERRCODE = '22000';
	END IF;
	INSERT INTO test.seen VALUES (left(event.event_id, 1));
END $$;
SELECT event_id, event_type, succeeded, sqlstate, message, duration >= '0' AS took FROM banked.dry_run('test.see(banked.events)', events => ARRAY['payment_*', 'refund_*', 'mandate_*']);
SELECT event_id, succeeded FROM banked.dry_run('test.see(banked.events)', test.minute(2), test.minute(4));
SELECT event_id, succeeded FROM banked.dry_run('test.see(banked.events)', max => 1);
SELECT count(*) FROM test.seen;
CREATE FUNCTION test.assert(event banked.events) RETURNS void LANGUAGE plpgsql AS $$ BEGIN ASSERT event.event_id <> 'e1', 'not e1'; END $$;
SELECT event_id, succeeded, sqlstate, message FROM banked.dry_run('test.assert(banked.events)', events => ARRAY['payment_*'], max => 2);
SELECT test.attempt($$SELECT banked.dry_run('test.wrong_argument(text)')$$);
SET ROLE regress_webhooks_shop;
SELECT test.attempt($$SELECT banked.dry_run('test.private(banked.events)')$$);
SELECT DISTINCT succeeded, sqlstate FROM banked.dry_run('test.see(banked.events)', max => 1);
RESET ROLE;
SET ROLE regress_webhooks_other;
SELECT test.attempt($$SELECT banked.dry_run('test.handle(banked.events)')$$);
RESET ROLE;

--
-- The end
--
SELECT banked.unsubscribe('mandates too');
SELECT test.attempt($$SELECT banked.unsubscribe('mandates too')$$);
SELECT test.attempt($$SELECT banked.unsubscribe(NULL)$$);
SELECT DISTINCT handler FROM banked.jobs ORDER BY 1;
-- what is left on record of another role's is no secret of the next one
SET ROLE regress_webhooks_shop;
SELECT banked.unsubscribe('shop');
RESET ROLE;
GRANT banked_webhooks_admin TO regress_webhooks_plain;
SET ROLE regress_webhooks_plain;
SELECT banked.subscribe('shop', 'test.handle(banked.events)', ARRAY['payment_*']);
SELECT count(*) FROM banked.failed_attempts WHERE handler = 'shop';
RESET ROLE;
SELECT state, count(*) > 0 AS some FROM banked.jobs WHERE handler = 'shop' GROUP BY 1;
SELECT action, detail ->> 'handler' AS handler FROM banked.audit_log WHERE detail ? 'handler' ORDER BY at LIMIT 5;
SET client_min_messages = error;
DROP OWNED BY regress_webhooks_shop, regress_webhooks_plain;
DROP ROLE regress_webhooks_shop, regress_webhooks_other, regress_webhooks_nologin, regress_webhooks_plain;
