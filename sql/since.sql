-- events_since(): pages in the order of seq, over both tables, and never past a row that is not final.
-- (Rows of transactions that still run are the matter of the isolation specifications.)
\getenv srcdir PG_ABS_SRCDIR
\set setup :srcdir '/sql/setup.psql'
\set ECHO none
\i :setup
\set ECHO all
SET client_min_messages = error;

-- Events and revisions by turns, each in a transaction of its own.
SELECT d.outcome, count(*) FROM generate_series(1, 6) AS n CROSS JOIN LATERAL test.deliver(test.v2('e' || n / 2, 'payment_sent', jsonb_build_object('n', n)), test.minute(n)) AS d GROUP BY 1 ORDER BY 1;
-- seq has gaps
CREATE VIEW test.numbered AS SELECT event_id, revision, kind, row_number() OVER (ORDER BY seq) AS n, seq FROM banked.history;
SELECT n, event_id, revision, kind FROM test.numbered ORDER BY n;
CREATE FUNCTION test.page(after_n int, max_rows int) RETURNS text LANGUAGE sql AS $$
	SELECT coalesce(string_agg(m.n::text, ' ' ORDER BY s.place), 'nothing')
	FROM banked.events_since((SELECT coalesce(max(seq), 0) FROM test.numbered WHERE n <= after_n), max_rows)
		 WITH ORDINALITY AS s (event_id, event_type, endpoint_id, resource_id, resource_type, state, live, test, api_version, payload, body, body_sha256,
							   signature, signed_at, key_id, received_at, seq, stored_by, revision, kind, place)
		LEFT JOIN test.numbered AS m ON m.seq = s.seq
$$;
SELECT test.page(0, 1000) AS all, test.page(0, 2) AS first, test.page(2, 3) AS next, test.page(5, 3) AS last, test.page(6, 3) AS over, test.page(0, 0) AS none;
SELECT count(*) FROM banked.events_since(0);
SELECT count(*) FROM banked.events_since(NULL);
SELECT count(*) FROM banked.events_since(-5, 3);
SELECT count(*) FROM banked.events_since(9223372036854775807);
SELECT f.statement, test.attempt(f.statement)
FROM (VALUES ($$SELECT banked.events_since(0, -1)$$), ($$SELECT banked.events_since(0, NULL)$$)) AS f (statement);
-- the columns of the tables, whole
SELECT count(*) FROM (SELECT * FROM banked.events_since(0) EXCEPT (SELECT *, NULL FROM banked.events UNION ALL SELECT * FROM banked.event_revisions)) AS d;

-- a row of this transaction is visible, but not final
BEGIN;
SELECT outcome FROM test.deliver(test.v2('own', 'payment_sent'));
SELECT test.page(0, 1000);
COMMIT;
SELECT test.page(0, 1000);

--
-- Long histories with gaps: page after page, everything once
--
TRUNCATE banked.events, banked.event_revisions;
INSERT INTO banked.events (event_id, event_type, endpoint_id, body_sha256, signature, signed_at, received_at, seq)
SELECT 'e' || s, 't', gen_random_uuid(), '', '', now(), now(), s
FROM (SELECT s FROM generate_series(1, 3000) AS s WHERE s % 7 <> 0
	  UNION ALL SELECT 100000 + s FROM generate_series(1, 50) AS s
	  UNION ALL SELECT 4000000000 + s * 999 FROM generate_series(1, 500) AS s) AS g (s);
INSERT INTO banked.event_revisions (event_id, event_type, endpoint_id, body_sha256, signature, signed_at, received_at, seq, revision, kind)
SELECT 'e' || s, 't', gen_random_uuid(), '', '', now(), now(), s, 1, 'changed'
FROM (SELECT s FROM generate_series(7, 3000, 7) AS s UNION ALL SELECT 90000000000) AS g (s);
SELECT setval('banked.events_seq_seq', 90000000000);
CREATE FUNCTION test.walk(page_size int, OUT pages int, OUT rows bigint, OUT complete boolean, OUT ascending boolean) LANGUAGE plpgsql AS $$
DECLARE
	seen bigint[] := '{}';
	page bigint[];
BEGIN
	pages := 0;
	LOOP
		page := ARRAY(SELECT seq FROM banked.events_since(seen[array_upper(seen, 1)], page_size));
		EXIT WHEN page = '{}';
		pages := pages + 1;
		seen := seen || page;
	END LOOP;
	rows := cardinality(seen);
	complete := seen = ARRAY(SELECT seq FROM banked.history ORDER BY seq);
	ascending := seen = ARRAY(SELECT s FROM unnest(seen) AS s ORDER BY s);
END
$$;
SELECT p.size, w.* FROM (VALUES (40), (500), (1000), (100000)) AS p (size) CROSS JOIN LATERAL test.walk(p.size) AS w;
-- by the brin indexes, whatever the statistics say
BEGIN;
SELECT pg_stat_get_xact_numscans('banked.events'::regclass) AS sequential, pg_stat_get_xact_numscans('banked.events_seq_received_at_idx'::regclass) AS brin \gset before_
SELECT count(*) FROM banked.events_since(100, 10);
SELECT pg_stat_get_xact_numscans('banked.events'::regclass) - :before_sequential AS sequential, pg_stat_get_xact_numscans('banked.events_seq_received_at_idx'::regclass) - :before_brin > 0 AS brin;
COMMIT;

--
-- Rows of another cluster: final once they are declared so
--
UPDATE banked.events SET stored_by = '999999999999' WHERE seq > 2000;
SELECT count(*), max(seq) FROM banked.events_since(0, 10000);
SELECT count(*) FROM banked.events_since(2000, 10000);
SELECT banked.pause();
SELECT banked.resume();
SELECT floor_seq FROM banked.service_state;
SELECT count(*) FROM banked.events_since(0, 10000);
-- what is stored afterwards is judged again
INSERT INTO banked.events (event_id, event_type, endpoint_id, body_sha256, signature, signed_at, received_at, stored_by)
SELECT 'later', 't', gen_random_uuid(), '', '', now(), now(), '999999999999';
SELECT count(*) FROM banked.events_since(0, 10000);
-- a sequence that was left behind by a partial restore is brought forward
SELECT setval('banked.events_seq_seq', 10);
SELECT banked.pause();
SELECT banked.resume();
SELECT floor_seq, (SELECT max(seq) FROM banked.history), nextval('banked.events_seq_seq') FROM banked.service_state;
SELECT count(*) FROM banked.events_since(0, 10000);

-- before the first endpoint there is nothing
DROP EXTENSION banked_webhooks CASCADE;
DROP SCHEMA banked CASCADE;
CREATE EXTENSION banked_webhooks;
SELECT count(*) FROM banked.events_since(0);
