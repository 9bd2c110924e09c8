-- Endpoints: registering, their rules, their states.
\getenv srcdir PG_ABS_SRCDIR
\set setup :srcdir '/sql/setup.psql'
\set ECHO none
\i :setup
\set ECHO all
SET client_min_messages = error;

--
-- Paths
--
SELECT p.path, test.attempt(format('SELECT endpoint_id IS NOT NULL FROM banked.register_endpoint(%L)', p.path))
FROM (VALUES ('/'), ('/a'), ('/a/b.c/..d/...'), ('/a/'), ('/A'), ('/!$&''()*+,;=:@-._~'), ('/"[]{}|^`<>'),
			 (''), ('a'), (NULL), ('/a?b'), ('/a#b'), ('/a b'), (E'/a\tb'), (E'/a\n'), ('/a\b'), ('/a%20b'),
			 ('/ä'), ('/a//b'), ('//'), ('/.'), ('/..'), ('/./a'), ('/a/../b'), ('/a/..'), ('http://host/a')
	 ) AS p (path);

SELECT length(p.path), test.attempt(format('SELECT endpoint_id IS NOT NULL FROM banked.register_endpoint(%L)', p.path))
FROM (SELECT '/' || repeat('x', n) FROM (VALUES (254), (255)) AS v (n)) AS p (path);

-- a path is registered once
SELECT test.attempt($$SELECT banked.register_endpoint('/banked')$$);

--
-- Other arguments
--
SELECT e.events, test.attempt(format('SELECT signing_key IS NOT NULL FROM banked.register_endpoint(%L, %L::text[])',
									 '/events-' || row_number() OVER (), e.events))
FROM (VALUES (NULL), ('{payment_sent}'), ('{payment_*,refund_sent}'), ('{*}'), ('{ünknown}'),
			 ('{}'), ('{payment_sent,NULL}'), ('{""}'), ('{payment_sent,payment_sent}'), ('{pay*_sent}'), ('{**}'),
			 ('{{a,b},{c,d}}')
	 ) AS e (events);

SELECT test.attempt(format('SELECT signing_key IS NOT NULL FROM banked.register_endpoint(%L, ARRAY[repeat(%L, %s)])',
						   '/long-' || n, 'e', n))
FROM (VALUES (512), (513)) AS v (n);

SELECT t.tolerance, test.attempt(format('SELECT signing_key IS NOT NULL FROM banked.register_endpoint(%L, timestamp_tolerance => %L)',
										'/tolerance-' || row_number() OVER (), t.tolerance))
FROM (VALUES ('1 second'), ('10 years'), ('0'), ('-1 day'), ('10 years 1 second'), (NULL)) AS t (tolerance);

-- a key of one's own is not returned; a new one is, and no error shows a key
SELECT k.key, test.attempt(format('SELECT coalesce(signing_key, %L) FROM banked.register_endpoint(%L, signing_key => %L)',
								  'not shown', '/key-' || row_number() OVER (), k.key))
FROM (VALUES ('12345678'), ('Schlüssel'), ('1234567'), (''), (E'12345678\n'), (E'1234\x015678')) AS k (key);
SELECT n, test.attempt(format('SELECT signing_key IS NULL FROM banked.register_endpoint(%L, signing_key => repeat(%L, %s))',
							  '/long-key-' || n, 'k', n))
FROM (VALUES (1024), (1025)) AS v (n);
SELECT signing_key ~ '^[0-9a-f]{64}$' AS generated FROM banked.register_endpoint('/generated-key');

-- or from a file of the server
\set key_file :srcdir '/test/payloads/README.md'
SELECT test.attempt(format('SELECT banked.register_endpoint(%L, signing_key_file => %L)', '/file', '/nonexistent/key')) ~ '^58P01: .*No such file' AS missing;
SELECT test.attempt(format('SELECT banked.register_endpoint(%L, signing_key => %L, signing_key_file => %L)', '/file', 'one key too many', :'key_file')) AS both;
SELECT current_setting('data_directory') || '/signing_key' AS key_file \gset
COPY (SELECT 'the key in the file') TO :'key_file';
SELECT signing_key FROM banked.register_endpoint('/file', signing_key_file => :'key_file');
SELECT outcome FROM test.deliver(test.v2('p1', 'payment_sent'), path => '/file', signing_key => 'the key in the file');

--
-- What deliveries see of it
--
SELECT FROM banked.register_endpoint('/some', '{payment_sent,refund_*,mandate_active}', 'the signing key');
SELECT t.type, d.status, d.outcome
FROM (VALUES ('payment_sent'), ('payment_sent_late'), ('payment_failed'), ('refund_pending'), ('refund_'), ('refund'), ('REFUND_sent')) AS t (type)
	CROSS JOIN LATERAL test.deliver(test.v2('some', t.type), path => '/some') AS d;
-- a v3 mandate names its event without the prefix
SELECT t.type, d.status, d.outcome
FROM (VALUES ('active'), ('expired'), ('mandate_active')) AS t (type)
	CROSS JOIN LATERAL test.deliver(test.v3('some-' || t.type, t.type, '{"id":"m1"}'), path => '/some') AS d;
-- what is not wanted is not stored
SELECT event_type FROM banked.events WHERE event_id LIKE 'some%' ORDER BY event_type;

SELECT FROM banked.register_endpoint('/live', '{payment_*}', 'the signing key', live => true);
SELECT FROM banked.register_endpoint('/test', NULL, 'the signing key', live => false);
SELECT p.path, b.more, d.status, d.outcome
FROM (VALUES ('/live'), ('/test')) AS p (path)
	CROSS JOIN (VALUES (1, '{"live":true}'), (2, '{"live":false}'), (3, '{"live":null}'), (4, '{"live":null,"mode":"live"}'), (5, '{"live":null,"mode":"test"}')) AS b (n, more)
	CROSS JOIN LATERAL test.deliver(test.v2(p.path || b.n, 'payment_sent', b.more::jsonb), path => p.path) AS d
ORDER BY p.path, b.n;
-- unwanted comes first
SELECT status, outcome FROM test.deliver(test.v2('p1', 'refund_sent', '{"live":false}'), path => '/live');
SELECT e.path, q.reason, count(*) FROM banked.quarantine AS q JOIN banked.endpoints AS e USING (endpoint_id) GROUP BY 1, 2 ORDER BY 1, 2;

-- the window of a signature's time, and the future
SELECT FROM banked.register_endpoint('/window', signing_key => 'the signing key', timestamp_tolerance => '1 hour');
SELECT a.age, r.status, r.outcome
FROM (VALUES (interval '59 minutes'), ('61 minutes'), ('-4 minutes'), ('-6 minutes')) AS a (age)
	CROSS JOIN LATERAL (SELECT convert_to(test.v2('window' || a.age, 'payment_sent'), 'UTF8')) AS b (body)
	CROSS JOIN LATERAL banked.receive('/window', banked.sign(b.body, 'the signing key', now() - a.age), b.body) AS r
ORDER BY a.age;
-- relative to received_at, which may be long ago
SELECT status, outcome FROM test.deliver(test.v2('archived', 'payment_sent'), '2019-10-31 16:45:34+00', '/window');

--
-- States
--
CREATE FUNCTION test.state(path text, OUT state text, OUT status int) LANGUAGE sql AS $$
	SELECT e.state, d.status FROM banked.endpoints AS e, test.deliver(test.v2('s', 'payment_sent'), path => path) AS d WHERE e.path = $1
$$;
SELECT * FROM test.state('/banked');
SELECT banked.disable_endpoint('/banked');
SELECT * FROM test.state('/banked');
SELECT banked.disable_endpoint('/banked');
SELECT banked.enable_endpoint('/banked');
SELECT * FROM test.state('/banked');
SELECT banked.retire_endpoint('/banked');
SELECT * FROM test.state('/banked');
SELECT banked.retire_endpoint('/banked');
SELECT f.statement, test.attempt(f.statement)
FROM (VALUES ($$SELECT banked.enable_endpoint('/banked')$$),
			 ($$SELECT banked.disable_endpoint('/banked')$$),
			 ($$SELECT banked.rotate_signing_key('/banked')$$),
			 ($$SELECT banked.register_endpoint('/banked')$$),
			 ($$SELECT banked.enable_endpoint('/unknown')$$),
			 ($$SELECT banked.disable_endpoint('/unknown')$$),
			 ($$SELECT banked.retire_endpoint('/unknown')$$),
			 ($$SELECT banked.retire_endpoint(NULL)$$)
	 ) AS f (statement);
SELECT status FROM test.deliver(test.v2('s', 'payment_sent'), path => '/unknown');
-- paths are compared byte by byte
SELECT p.path, d.status FROM (VALUES ('/some'), ('/some/'), ('/Some'), ('/some?x'), ('')) AS p (path)
	CROSS JOIN LATERAL test.deliver(test.v2('p', 'payment_sent'), path => p.path) AS d;

--
-- Rows that the owner writes
--
SELECT FROM banked.register_endpoint('/row', signing_key => 'the signing key');
SELECT u.assignment, split_part(test.attempt(format('UPDATE banked.endpoints SET %s WHERE path = %L RETURNING true', u.assignment, '/row')), ' [', 1) AS attempt
FROM (VALUES ($$timestamp_tolerance = '10 years'$$), ($$timestamp_tolerance = '1 microsecond'$$), ($$timestamp_tolerance = '22 days'$$),
			 ($$timestamp_tolerance = '300000 years'$$), ($$timestamp_tolerance = '10 years 1 second'$$), ($$timestamp_tolerance = '0'$$),
			 ($$timestamp_tolerance = '-1 day'$$), ($$timestamp_tolerance = NULL$$),
			 ($$path = ''$$), ($$path = 'a'$$), ($$path = '/a?b'$$), ($$path = '/a#b'$$), ($$path = '/a b'$$), ($$path = E'/a\n'$$), ($$path = '/a\b'$$),
			 ($$path = '/a%20b'$$), ($$path = '/ä'$$), ($$path = '/a//b'$$), ($$path = '/./a'$$), ($$path = '/a/..'$$),
			 ($$path = '/' || repeat('x', 255)$$)
	 ) AS u (assignment);
-- odd ones that are there nevertheless do no harm to others, and do not become others
ALTER TABLE banked.endpoints DROP CONSTRAINT endpoints_path_check, DROP CONSTRAINT endpoints_timestamp_tolerance_check,
	ALTER timestamp_tolerance DROP NOT NULL;
INSERT INTO banked.endpoints (path, timestamp_tolerance)
VALUES ('', '1 day'), ('/' || repeat('x', 254) || 'y', '1 day'), ('/odd/ever', '300000 years'), ('/odd/negative', '-300000 years'), ('/odd/null', NULL);
SELECT status, outcome FROM test.deliver(test.v2('row', 'payment_sent'), path => '/row');
-- (the constraints come back, for what comes from then on)
SET client_min_messages = warning;
\set VERBOSITY terse
SELECT count(banked.rotate_signing_key(path, signing_key => 'the signing key')) FROM banked.endpoints WHERE path LIKE '/odd%' OR length(path) = 255;
SELECT banked.create_tables();
\set VERBOSITY default
SET client_min_messages = error;
SELECT conname, convalidated FROM pg_constraint WHERE conrelid = 'banked.endpoints'::regclass AND contype = 'c' ORDER BY 1;
SELECT outcome FROM test.deliver(test.v2('long', 'payment_sent'), path => '/' || repeat('x', 254));
SELECT length(p.path) FROM banked.events AS e JOIN banked.endpoints AS p USING (endpoint_id) WHERE e.event_id = 'long';
SELECT p.path, a.age, r.status
FROM (VALUES ('/odd/ever'), ('/odd/negative'), ('/odd/null')) AS p (path)
	CROSS JOIN (VALUES (interval '9 years'), (interval '1 minute')) AS a (age)
	CROSS JOIN LATERAL (SELECT convert_to(test.v2(p.path || a.age, 'payment_sent'), 'UTF8')) AS b (body)
	CROSS JOIN LATERAL banked.receive(p.path, banked.sign(b.body, 'the signing key', now() - a.age), b.body) AS r
ORDER BY p.path, a.age;
SELECT split_part(test.attempt($$UPDATE banked.endpoints SET description = 'x' WHERE path = ''$$), ' [', 1) AS attempt;
DELETE FROM banked.signing_keys USING banked.endpoints AS e WHERE signing_keys.endpoint_id = e.endpoint_id AND e.path LIKE '/odd%';
DELETE FROM banked.endpoints WHERE path = '' OR path LIKE '/odd%' OR length(path) > 255;
ALTER TABLE banked.endpoints VALIDATE CONSTRAINT endpoints_path_check, VALIDATE CONSTRAINT endpoints_timestamp_tolerance_check,
	ALTER timestamp_tolerance SET NOT NULL;

-- who did what; what changed nothing is not there
SELECT action, detail - ARRAY['endpoint_id', 'key_id'] AS detail, detail ? 'endpoint_id' AS has_endpoint_id
FROM banked.audit_log
WHERE detail ->> 'path' IN ('/banked', '/live') ORDER BY at;
