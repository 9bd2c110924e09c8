-- What deliveries become: events, repetitions, revisions, and what they are not.
\getenv srcdir PG_ABS_SRCDIR
\set setup :srcdir '/sql/setup.psql'
\set ECHO none
\i :setup
\set ECHO all
SET client_min_messages = error;

--
-- Example bodies of both generations
--
SELECT f.name, d.* FROM unnest(ARRAY[
		'developer-partner-payment_pending', 'developer-partner-payment_sent', 'developer-partner-payment_failed',
		'docs-merchant-payout_pending', 'docs-merchant-payout_failed', 'docs-partner-payout_sent',
		'constructed-v3-payment_initiated', 'constructed-v3-refund_pending', 'constructed-v3-mandate_active',
		'sdk-banked-node-fixture_no_event_field']) WITH ORDINALITY AS f (name, place)
	CROSS JOIN LATERAL pg_read_binary_file(:'srcdir' || '/test/payloads/' || f.name || '.json') AS b (body)
	CROSS JOIN LATERAL test.deliver(b.body, test.minute(f.place::int)) AS d;
SELECT left(event_id, 8) AS event_id, event_type, left(resource_id, 8) AS resource_id, resource_type, state, live, test, api_version, revision
FROM banked.events ORDER BY seq;
-- the exact bytes, the same as jsonb, and what they came with
SELECT count(*), bool_and(sha256(body) = body_sha256) AS sha256, bool_and(convert_from(body, 'UTF8')::jsonb = payload) AS payload,
	   bool_and(banked.sign(body, 'the signing key', signed_at) = extract(epoch FROM signed_at)::bigint || '.' || encode(signature, 'hex')) AS signature,
	   bool_and(received_at = signed_at) AS times, bool_and(endpoint_id = (SELECT endpoint_id FROM banked.endpoints)) AS endpoint,
	   bool_and(key_id = (SELECT key_id FROM banked.signing_keys)) AS key
FROM banked.events;

--
-- Columns, from bodies that are unusual
--
SELECT b.n, d.outcome
FROM (VALUES
		(1, test.v2('c1', 'payment_sent', '{"webhook_type":null,"webook_type":"payment_session","state":"SENT"}')),
		(2, test.v2('c2', 'batch_payment_accepted', '{"webhook_type":null}')),
		(3, test.v2('c3', 'mandate_active', '{"live":null,"mode":"live"}')),
		(4, test.v2('c4', 'mandate_active', '{"live":null,"mode":"test"}')),
		(5, test.v2('c5', 'something_new_happened', '{"webhook_type":"novelty","state":7,"live":"yes"}')),
		(6, test.v2('c6', 'odd', '{"webhook_type":{"a":1},"state":null,"live":null}')),
		(7, test.v3('c7', 'payment_sent', '{"id":"r7","live":true,"status_details":{"status":"SENT"}}')),
		(8, test.v3('c8', 'batch_payment_failed', '{"id":"r8","mode":"test"}')),
		(9, test.v3('c9', 'active', '{"id":"r9","status_details":{"status":"ACTIVE"}}')),
		(10, test.v3('c10', 'payment_sent', '{}')),
		(11, test.v3('c11', 'payment_sent', '{"id":11,"status_details":"SENT","live":1}')),
		(12, '{"id":"c12","type":"payment_sent","version":"v4","data":{"id":"r12"}}'),
		(13, test.v2('c13', 'payment_sent', '{"type":"something else","data":{"id":"r13"}}'))
	) AS b (n, body)
	CROSS JOIN LATERAL test.deliver(b.body, test.minute(30 + b.n)) AS d
ORDER BY b.n;
SELECT event_id, event_type, resource_id, resource_type, state, live, api_version
FROM banked.events WHERE event_id LIKE 'c%' ORDER BY received_at;

--
-- Repetitions
--
-- as a retry that is not signed afresh, and as one that is
SELECT * FROM test.deliver(test.v2('c1', 'payment_sent', '{"webhook_type":null,"webook_type":"payment_session","state":"SENT"}'), test.minute(31));
SELECT * FROM test.deliver(test.v2('c1', 'payment_sent', '{"webhook_type":null,"webook_type":"payment_session","state":"SENT"}'), test.minute(50));
-- another type of the same resource is another event
SELECT * FROM test.deliver(test.v2('c1', 'payment_failed'), test.minute(51));
SELECT event_type, revision FROM banked.events WHERE event_id = 'c1' ORDER BY seq;
SELECT count(*) FROM banked.event_revisions;

--
-- A known identity with other bytes
--
SELECT * FROM test.deliver(test.v2('r1', 'payment_sent'), test.minute(60));
SELECT * FROM test.deliver(test.v2('r1', 'payment_sent', '{"amount":101}'), test.minute(61));
SELECT * FROM test.deliver(test.v2('r1', 'payment_sent') || ' ', test.minute(62));
-- all three again
SELECT d.outcome FROM unnest(ARRAY[test.v2('r1', 'payment_sent'), test.v2('r1', 'payment_sent', '{"amount":101}'), test.v2('r1', 'payment_sent') || ' ']) AS b (body)
	CROSS JOIN LATERAL test.deliver(b.body, test.minute(63)) AS d;
-- v3 as well
SELECT * FROM test.deliver(test.v3('r2', 'payment_sent', '{"id":"p2","amount":1}'), test.minute(64));
SELECT * FROM test.deliver(test.v3('r2', 'payment_sent', '{"id":"p2","amount":2}'), test.minute(65));
SELECT event_id, revision, kind, payload #>> '{amount}' AS amount, length(body) FROM banked.history WHERE event_id IN ('r1', 'r2') ORDER BY seq;

-- a redacted subscription sends the same identity as the full one, in either order
SELECT e.kind, d.outcome
FROM (VALUES (1, 'redacted'), (2, 'partner'), (3, 'redacted'), (4, 'partner')) AS e (place, kind)
	CROSS JOIN LATERAL (SELECT CASE e.kind
			WHEN 'partner' THEN test.v2('full', 'payment_sent', '{"payee":{"name":"Gerard Wiley"}}')
			ELSE test.v2('full', 'payment_sent') END) AS b (body)
	CROSS JOIN LATERAL test.deliver(b.body, test.minute(70 + e.place)) AS d
ORDER BY e.place;
SELECT d.outcome FROM unnest(ARRAY['{"payee":{"name":"Gerard Wiley"}}', '{}']::jsonb[]) WITH ORDINALITY AS b (more, place)
	CROSS JOIN LATERAL test.deliver(test.v2('full2', 'payment_sent', b.more), test.minute(80 + b.place::int)) AS d;
SELECT event_id, revision, kind, payload #>> '{payee,name}' AS payee FROM banked.history WHERE event_id LIKE 'full%' ORDER BY seq;

--
-- A mandate that becomes active again sends the same bytes again
--
SELECT m.place, m.type, m.at, d.outcome
FROM (VALUES (1, 'mandate_active', 100), (2, 'mandate_suspended', 101), (3, 'mandate_active', 102), (4, 'mandate_active', 102), (5, 'mandate_active', 103),
			 (6, 'mandate_suspended', 104), (7, 'mandate_active', 105), (8, 'mandate_active', 100), (9, 'mandate_suspended', 101)) AS m (place, type, at)
	CROSS JOIN LATERAL test.deliver(test.v2('m1', m.type), test.minute(m.at)) AS d
ORDER BY m.place;
SELECT event_type, revision, kind, received_at - test.minute(0) AS received FROM banked.history WHERE event_id = 'm1' ORDER BY seq;
-- a late retry of the first one, signed before the other one was: a repetition
SELECT outcome FROM test.deliver(test.v2('m2', 'mandate_active'), test.minute(110));
SELECT outcome FROM test.deliver(test.v2('m2', 'mandate_suspended'), test.minute(112));
SELECT r.outcome FROM convert_to(test.v2('m2', 'mandate_active'), 'UTF8') AS b (body)
	CROSS JOIN LATERAL banked.receive('/banked', banked.sign(b.body, 'the signing key', test.minute(111)), b.body, test.minute(113)) AS r;
-- in v3 an event has an id of its own, so there is no recurrence
SELECT m.place, d.outcome
FROM (VALUES (1, 'v1', 'active'), (2, 'v2', 'suspended'), (3, 'v1', 'active')) AS m (place, id, type)
	CROSS JOIN LATERAL test.deliver(test.v3(m.id, m.type, '{"id":"m3"}'), test.minute(120 + m.place)) AS d
ORDER BY m.place;

--
-- What is not an authentic delivery leaves nothing but its answer
--
CREATE TEMP TABLE before AS SELECT (SELECT count(*) FROM banked.history) AS history, (SELECT count(*) FROM banked.quarantine) AS quarantine;
SELECT s.what, r.*
FROM (SELECT test.v2('forged', 'payment_sent')::bytea) AS b (body)
	CROSS JOIN LATERAL (SELECT banked.sign(b.body, 'the signing key')) AS g (good)
	CROSS JOIN LATERAL (VALUES
		(1, 'no signature', NULL), (2, 'empty', ''), (3, 'other key', banked.sign(b.body, 'another signing key')),
		(4, 'other body', banked.sign(b.body || ' ', 'the signing key')), (5, 'no digest', split_part(g.good, '.', 1)),
		(6, 'upper case', upper(g.good)), (7, 'twice', g.good || ', ' || g.good), (8, 'other time', '1' || g.good),
		(9, 'too old', banked.sign(b.body, 'the signing key', now() - interval '23 days')),
		(10, 'in the future', banked.sign(b.body, 'the signing key', now() + interval '6 minutes')),
		(11, 'good, but empty body', g.good)) AS s (place, what, signature)
	CROSS JOIN LATERAL banked.receive('/banked', s.signature, CASE WHEN s.place = 11 THEN '' ELSE b.body END) AS r
ORDER BY s.place;
SELECT (SELECT count(*) FROM banked.history) = history AS history, (SELECT count(*) FROM banked.quarantine) = quarantine AS quarantine FROM before;

SELECT f.statement, test.attempt(f.statement)
FROM (VALUES ($$SELECT banked.receive(NULL, '', '')$$),
			 ($$SELECT banked.receive('/banked', '', NULL)$$),
			 ($$SELECT banked.receive('/banked', '', '', NULL)$$)) AS f (statement);

-- a transaction that fails stores nothing
BEGIN;
SELECT outcome FROM test.deliver(test.v2('undone', 'payment_sent'));
ROLLBACK;
SELECT outcome FROM test.deliver(test.v2('undone', 'payment_sent'));
