-- Authentic deliveries that cannot become events: kept, and brought in later.
\getenv srcdir PG_ABS_SRCDIR
\set setup :srcdir '/sql/setup.psql'
\set ECHO none
\i :setup
\set ECHO all
SET client_min_messages = error;

CREATE TABLE test.bodies (place int PRIMARY KEY, what text, body bytea);
INSERT INTO test.bodies VALUES
	(1, 'empty', ''),
	(2, 'no JSON', 'payment_sent'),
	(3, 'trailing comma', '{"id":"j3","webhook_event":"payment_sent",}'),
	(4, 'comment', E'{"id":"j4", // see below\n"webhook_event":"payment_sent"}'),
	(5, 'cut off', '{"id":"j5","webhook_event":"payment_s'),
	(6, 'two values', '{"id":"j6","webhook_event":"payment_sent"} {}'),
	(7, 'zero byte', '{"id":"j7","webhook_event":"payment_sent"}\000'),
	(8, 'escaped zero', convert_to('{"id":"j8","webhook_event":"payment_sent","x":"\u0000"}', 'UTF8')),
	(9, 'lone surrogate', convert_to('{"id":"j9","webhook_event":"payment_sent","x":"\ud800"}', 'UTF8')),
	(10, 'invalid UTF-8', '{"id":"j10","webhook_event":"payment_sent","x":"\377"}'),
	(11, 'overlong UTF-8', '{"id":"j11","webhook_event":"payment_sent","x":"\300\257"}'),
	(12, 'nested brackets', convert_to(repeat('[', 100000), 'UTF8')),
	(13, 'nested objects', convert_to(repeat('{"a":', 100000) || '1' || repeat('}', 100000), 'UTF8')),
	(14, 'huge exponent', '{"id":"j14","webhook_event":"payment_sent","x":1e100000}'),
	(15, 'exponents beyond counting', '{"id":"j15","webhook_event":"payment_sent","x":-1E+99999999999999999999}'),
	(16, 'many exponents', convert_to('{"id":"j16","webhook_event":"payment_sent","x":[' || repeat('1e9999,', 100) || '1]}', 'UTF8')),
	(17, 'byte order mark', '\357\273\277{"id":"j17","webhook_event":"payment_sent"}'),
	(20, 'array', '[]'),
	(21, 'number', '7'),
	(22, 'null', 'null'),
	(23, 'nothing in it', '{}'),
	(24, 'no type', '{"id":"i24"}'),
	(25, 'no id', '{"webhook_event":"payment_sent"}'),
	(26, 'empty id', '{"id":"","webhook_event":"payment_sent"}'),
	(27, 'id is a number', '{"id":27,"webhook_event":"payment_sent"}'),
	(28, 'type is an object', '{"id":"i28","webhook_event":{"a":1}}'),
	(29, 'v3 without data', '{"id":"i29","type":"payment_sent","version":"v3"}'),
	(30, 'v3 without id', '{"type":"payment_sent","version":"v3","data":{"id":"p"}}'),
	(40, 'id of 513 bytes', convert_to(test.v2(repeat('i', 513), 'payment_sent'), 'UTF8')),
	(41, 'type of 513 bytes', convert_to(test.v2('l41', repeat('t', 513)), 'UTF8')),
	(42, 'resource of 513 bytes', convert_to(test.v3('l42', 'payment_sent', jsonb_build_object('id', repeat('r', 513))), 'UTF8')),
	(43, '512 bytes, in UTF-8', convert_to(test.v2(repeat('é', 256), 'payment_sent'), 'UTF8')),
	(44, 'what is allowed', convert_to('{"id":"ok","webhook_event":"payment_sent","x":[1e300,"\ud83d\ude00",' || repeat('[', 400) || repeat(']', 400) || ']}', 'UTF8'));
SELECT b.what, d.status, d.outcome
FROM test.bodies AS b CROSS JOIN LATERAL test.deliver(b.body, test.minute(b.place)) AS d
ORDER BY b.place;
-- one row each, with everything that the delivery had
SELECT b.what, q.reason, q.sqlstate, left(q.message, 60) AS message, q.attempts, q.next_attempt_at,
	   q.body = b.body AND q.body_sha256 = sha256(b.body) AND q.signed_at = test.minute(b.place) AND q.received_at = test.minute(b.place)
	   AND banked.sign(b.body, 'the signing key', q.signed_at) = extract(epoch FROM q.signed_at)::bigint || '.' || encode(q.signature, 'hex')
	   AND q.key_id = (SELECT key_id FROM banked.signing_keys) AND q.endpoint_id = (SELECT endpoint_id FROM banked.endpoints) AS complete
FROM banked.quarantine AS q LEFT JOIN test.bodies AS b ON q.body_sha256 = sha256(b.body) ORDER BY b.place;
SELECT left(event_id, 4) AS event_id, octet_length(event_id), event_type FROM banked.events ORDER BY seq;

-- the same bytes again: still one row
SELECT status, outcome FROM test.bodies AS b CROSS JOIN LATERAL test.deliver(b.body, test.minute(90)) WHERE b.place IN (2, 24);
SELECT count(*) FROM banked.quarantine;

--
-- reprocess(): with an identity that the body does not have
--
CREATE FUNCTION test.quarantined(place int) RETURNS bigint LANGUAGE sql STABLE AS $$
	SELECT q.quarantine_id FROM banked.quarantine AS q JOIN test.bodies AS b ON q.body_sha256 = sha256(b.body) WHERE b.place = $1
$$;
SELECT * FROM banked.reprocess(test.quarantined(24));
SELECT reason, attempts FROM banked.quarantine WHERE quarantine_id = test.quarantined(24);
SELECT * FROM banked.reprocess(test.quarantined(24), event_type => 'payment_initiated');
SELECT test.quarantined(24) AS gone;
SELECT event_id, event_type, resource_id, resource_type, api_version, convert_from(body, 'UTF8'), received_at - test.minute(0) AS received, banked.verify_event(event_id, event_type)
FROM banked.events WHERE event_id = 'i24';
SELECT * FROM banked.reprocess(test.quarantined(25), event_id => 'given');
SELECT * FROM banked.reprocess(test.quarantined(23), 'given', 'payment_failed');
-- what the body says wins
SELECT * FROM banked.reprocess(test.quarantined(28), 'other', 'payment_sent');
-- no identity can be given to what is no JSON, nor one that is too long
SELECT * FROM banked.reprocess(test.quarantined(2), 'given', 'payment_sent');
SELECT status, outcome FROM banked.reprocess(test.quarantined(26), repeat('i', 513));
SELECT reason, attempts FROM banked.quarantine WHERE quarantine_id IN (test.quarantined(2), test.quarantined(26)) ORDER BY reason;
-- the event is there already: with these bytes, with others
SELECT outcome FROM test.deliver('{"id":"i24"}', test.minute(91));
SELECT * FROM banked.reprocess(test.quarantined(24), event_type => 'payment_initiated');
SELECT outcome FROM test.deliver('{"id":"i24", "again":true}', test.minute(92));
SELECT quarantine_id AS id FROM banked.quarantine WHERE body = '{"id":"i24", "again":true}' \gset
SELECT * FROM banked.reprocess(:id, event_type => 'payment_initiated');

-- the rule live of the endpoint, until it is lifted
SELECT FROM banked.register_endpoint('/test', NULL, 'the signing key', live => false);
SELECT outcome FROM test.deliver(test.v2('l1', 'payment_sent'), path => '/test');
SELECT quarantine_id AS id, reason, message FROM banked.quarantine WHERE reason = 'live_mismatch' \gset
SELECT :'reason' AS reason, :'message' AS message;
SELECT * FROM banked.reprocess(:id);
UPDATE banked.endpoints SET live = NULL;
SELECT * FROM banked.reprocess(:id);

SELECT test.attempt('SELECT banked.reprocess(0)');
SELECT test.attempt('SELECT banked.reprocess(NULL)');

--
-- dismiss()
--
SELECT test.quarantined(7) AS id \gset
SELECT banked.dismiss(:id, 'a test of the sender''s');
SELECT dismissed_at IS NOT NULL AS dismissed, note, attempts FROM banked.quarantine WHERE quarantine_id = :id;
SELECT dismissed_at AS before FROM banked.quarantine WHERE quarantine_id = :id \gset
SELECT banked.dismiss(:id, 'a test of theirs');
SELECT dismissed_at = :'before' AS as_before, note FROM banked.quarantine WHERE quarantine_id = :id;
SELECT f.statement, test.attempt(f.statement)
FROM (VALUES ($$SELECT banked.dismiss(0, 'why')$$), ($$SELECT banked.dismiss(NULL, 'why')$$),
			 ($$SELECT banked.dismiss(1, NULL)$$), ($$SELECT banked.dismiss(1, E' \t')$$)) AS f (statement);

SELECT action, detail - 'quarantine_id' AS detail FROM banked.audit_log WHERE action IN ('dismiss', 'reprocess') ORDER BY at;
