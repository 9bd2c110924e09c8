-- Signatures, and what they prove later.
\getenv srcdir PG_ABS_SRCDIR
\set setup :srcdir '/sql/setup.psql'
\set ECHO none
\i :setup
\set ECHO all
SET client_min_messages = error;

--
-- sign() and verify_signature()
--
-- the check value: what Banked's own SDK makes of its own fixture
\set key f063a7029d6b959d8cc11e23148a302929da113a6b0671238ab9d1bcfb63645a
SELECT pg_read_binary_file(:'srcdir' || '/test/payloads/sdk-banked-node-fixture_no_event_field.json') AS fixture \gset
SELECT banked.sign(:'fixture', :'key', to_timestamp(1700000000));
SELECT banked.verify_signature('1700000000.710098df00382cb83d34201697527f94f8517bc6a79cd2a7fd38a8f01656dcda', :'fixture', :'key');

-- an empty body, all bytes, a key longer than a block of SHA-256, a key outside ASCII (values of openssl dgst)
SELECT banked.sign('', 'key', to_timestamp(0));
SELECT banked.sign((SELECT string_agg(set_byte('\x00', 0, b), '' ORDER BY b) FROM generate_series(0, 255) AS b), 'key', to_timestamp(1));
SELECT banked.sign('body', repeat('k', 100), to_timestamp(1700000000));
SELECT banked.sign('body', 'Schlüssel', to_timestamp(1700000000));
-- seconds are cut off
SELECT banked.sign('body', 'key', to_timestamp(1700000000.999)) = banked.sign('body', 'key', to_timestamp(1700000000));
SELECT banked.sign('body', 'key') = banked.sign('body', 'key', now()) AS now_is_the_default;
SELECT banked.sign(NULL, 'key'), banked.sign('body', NULL), banked.verify_signature(NULL, 'body', 'key');
SELECT test.attempt($$SELECT banked.sign('body', 'key', '1969-12-31 23:59:59+00')$$);
SELECT test.attempt($$SELECT banked.sign('body', 'key', 'infinity')$$);
SELECT test.attempt($$SELECT banked.sign('body', '')$$);

SELECT split_part(banked.sign('body', 'key', to_timestamp(1700000000)), '.', 2) AS digest \gset
SELECT h.header, banked.verify_signature(h.header, 'body', 'key')
FROM (VALUES ('1700000000.' || :'digest'),
			 ('1700000001.' || :'digest'),
			 ('01700000000.' || :'digest'),
			 ('+1700000000.' || :'digest'),
			 ('1700000000.' || upper(:'digest')),
			 ('1700000000.' || left(:'digest', 63)),
			 ('1700000000.' || :'digest' || '0'),
			 (' 1700000000.' || :'digest'),
			 ('1700000000.' || :'digest' || E'\n'),
			 ('1700000000.0.' || :'digest'),
			 ('1700000000'), (''), ('.'), ('.' || :'digest'), (:'digest')) AS h (header);
SELECT banked.verify_signature('1700000000.' || :'digest', 'bodz', 'key') AS other_body,
	   banked.verify_signature('1700000000.' || :'digest', 'body', 'kez') AS other_key;
SELECT test.attempt($$SELECT banked.verify_signature('1700000000.0', 'body', '')$$);

--
-- verify_event() and event_proof()
--
SELECT d.* FROM generate_series(1, 5) AS n CROSS JOIN LATERAL test.deliver(test.v2('p' || n, 'payment_sent'), test.minute(n)) AS d;
CREATE VIEW test.proofs AS
	SELECT e.event_id, p.verified, p.key_id = k.key_id AS this_key, p.signed_at - test.minute(0) AS signed,
		   p.received_at - test.minute(0) AS received, p.body_sha256 = e.body_sha256 AS this_body, p.reason,
		   banked.verify_event(e.event_id, e.event_type)
	FROM banked.events AS e CROSS JOIN LATERAL banked.event_proof(e.event_id, e.event_type) AS p
		CROSS JOIN banked.signing_keys AS k
	ORDER BY e.event_id;
SELECT * FROM test.proofs;

UPDATE banked.events SET body = body || ' ' WHERE event_id = 'p2';
UPDATE banked.events SET body = body || ' ', body_sha256 = sha256(body || ' ') WHERE event_id = 'p3';
UPDATE banked.events SET body = NULL WHERE event_id = 'p4';
UPDATE banked.events SET signed_at = signed_at + interval '1 second' WHERE event_id = 'p5';
SELECT * FROM test.proofs;

-- without the key
SELECT banked.revoke_signing_key(key_id), banked.forget_signing_key(key_id) FROM banked.signing_keys;
SELECT event_id, verified, reason, verify_event FROM test.proofs;

SELECT f.statement, test.attempt(f.statement)
FROM (VALUES ($$SELECT banked.verify_event('p1', 'payment_failed')$$),
			 ($$SELECT banked.event_proof('p6', 'payment_sent')$$),
			 ($$SELECT banked.event_proof(NULL, 'payment_sent')$$)) AS f (statement);
