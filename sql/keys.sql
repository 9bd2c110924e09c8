-- Signing keys: several at once, rotating, revoking, forgetting.
\getenv srcdir PG_ABS_SRCDIR
\set setup :srcdir '/sql/setup.psql'
\set ECHO none
\i :setup
\set ECHO all
SET client_min_messages = error;

-- Which keys does the endpoint accept now?
CREATE FUNCTION test.accepted(VARIADIC keys text[]) RETURNS text LANGUAGE sql AS $$
	SELECT string_agg(k.key || ': ' || d.status || ' ' || d.outcome, ', ' ORDER BY k.place)
	FROM unnest(keys) WITH ORDINALITY AS k (key, place)
		CROSS JOIN LATERAL test.deliver(test.v2('k' || k.key, 'payment_sent'), signing_key => k.key) AS d
$$;
-- What is known of its keys, oldest first?
CREATE VIEW test.keys AS
	SELECT row_number() OVER (ORDER BY k.valid_until NULLS LAST, k.valid_from) AS n,
		   k.valid_until - now() AS ends_in, s.secret IS NOT NULL AS has_secret
	FROM banked.signing_keys AS k LEFT JOIN banked.key_secrets AS s USING (key_id);

SELECT * FROM test.keys;
SELECT test.accepted('the signing key', 'second key');

-- the old key stays valid for the overlap
BEGIN;
SELECT key_id IS NOT NULL AS has_id, signing_key FROM banked.rotate_signing_key('/banked', 'second key', '2 days');
SELECT * FROM test.keys;
COMMIT;
SELECT test.accepted('the signing key', 'second key');
-- both ends move to now, and not back again
BEGIN;
SELECT signing_key IS NULL FROM banked.rotate_signing_key('/banked', 'third key', '1 hour');
SELECT * FROM test.keys;
SELECT signing_key IS NULL FROM banked.rotate_signing_key('/banked', 'fourth key');
SELECT * FROM test.keys;
SELECT test.accepted('the signing key', 'second key', 'third key', 'fourth key');
SELECT banked.rotate_signing_key('/banked', 'fourth key');
ROLLBACK;
-- without an overlap
BEGIN;
SELECT signing_key IS NULL FROM banked.rotate_signing_key('/banked', 'third key', '0');
SELECT * FROM test.keys;
SELECT test.accepted('the signing key', 'second key', 'third key');
ROLLBACK;
SELECT test.accepted('the signing key', 'second key', 'third key');

-- a new key is returned once, and stored as what it is
BEGIN;
SELECT signing_key AS generated FROM banked.rotate_signing_key('/banked') \gset
SELECT :'generated' ~ '^[0-9a-f]{64}$' AS is_hexadecimal;
SELECT status, outcome FROM test.deliver(test.v2('generated', 'payment_sent'), signing_key => :'generated');
SELECT count(*) FROM banked.key_secrets WHERE secret = '\x00' || convert_to(:'generated', 'UTF8');
ROLLBACK;

SELECT f.statement, test.attempt(f.statement)
FROM (VALUES ($$SELECT banked.rotate_signing_key('/unknown')$$),
			 ($$SELECT banked.rotate_signing_key(NULL)$$),
			 ($$SELECT banked.rotate_signing_key('/banked', '')$$),
			 ($$SELECT banked.rotate_signing_key('/banked', 'a key', '-1 second')$$),
			 ($$SELECT banked.rotate_signing_key('/banked', 'a key', NULL)$$),
			 ($$SELECT banked.rotate_signing_key('/banked', 'long key', '11 years')$$),
			 ($$SELECT banked.revoke_signing_key('00000000-0000-0000-0000-000000000000')$$),
			 ($$SELECT banked.revoke_signing_key(NULL)$$),
			 ($$SELECT banked.forget_signing_key('00000000-0000-0000-0000-000000000000')$$),
			 ($$SELECT banked.forget_signing_key(NULL)$$)
	 ) AS f (statement);

--
-- Revoking ends a key at once; what it signed can be verified until it is forgotten
--
SELECT key_id AS second_key FROM banked.events WHERE event_id = 'ksecond key' \gset
SELECT regexp_replace(test.attempt(format('SELECT banked.forget_signing_key(%L)', :'second_key')), :'second_key', '...');
SELECT banked.revoke_signing_key(:'second_key');
SELECT banked.revoke_signing_key(:'second_key');
SELECT test.accepted('the signing key', 'second key');
SELECT banked.verify_event('ksecond key', 'payment_sent');
SELECT banked.forget_signing_key(:'second_key');
SELECT banked.forget_signing_key(:'second_key');
SELECT banked.verify_event('ksecond key', 'payment_sent');
SELECT n, has_secret FROM test.keys ORDER BY n;

-- no key at all: not now, rather than forged
SELECT banked.revoke_signing_key(key_id) FROM banked.signing_keys;
SELECT status, outcome FROM test.deliver(test.v2('nokey', 'payment_sent'));
-- nor one that somebody took away
SELECT signing_key IS NULL FROM banked.rotate_signing_key('/banked', 'fifth key');
DELETE FROM banked.key_secrets;
SELECT status, outcome FROM test.deliver(test.v2('nokey', 'payment_sent'), signing_key => 'fifth key');
SELECT signing_key IS NULL FROM banked.rotate_signing_key('/banked', 'sixth key');
SELECT status, outcome FROM test.deliver(test.v2('nokey', 'payment_sent'), signing_key => 'sixth key');

-- the log holds no key
SELECT action, detail - ARRAY['endpoint_id', 'key_id'] AS detail, detail ? 'key_id' AS has_key_id FROM banked.audit_log ORDER BY at;
