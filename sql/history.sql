-- The view history: readable whatever a body holds.
\getenv srcdir PG_ABS_SRCDIR
\set setup :srcdir '/sql/setup.psql'
\set ECHO none
\i :setup
\set ECHO all
SET client_min_messages = error;

-- both generations, events and revisions
SELECT d.outcome FROM (VALUES
		(1, test.v2('v2', 'payment_sent', '{"amount":1250,"currency":"GBP","reference":"order 7","end_to_end_id":"e2e","sent_at":"2019-11-01 10:00:00 UTC","created_at":"2019-10-31 16:45:34 UTC"}')),
		(2, test.v2('v2', 'payment_sent', '{"amount":1250,"currency":"GBP","reference":null,"sent_at":null,"created_at":"2019-10-31 16:45:34 UTC"}')),
		(3, test.v3('v3', 'payment_sent', '{"id":"p","amount":990,"currency":"AUD","reference":"order 8","end_to_end_id":"e2e","created_at":"2025-05-22T10:26:55.815053234Z"}')),
		(4, test.v3('v3', 'payment_sent', '{"id":"p","amount":990,"currency":"AUD","created_at":"2025-05-22T10:26:55.815053234Z","updated_at":"2025-05-22T12:26:56+02:00"}')),
		(5, test.v3('empty', 'payment_sent', '{"id":"p"}'))
	) AS b (place, body)
	CROSS JOIN LATERAL test.deliver(b.body, test.minute(b.place)) AS d;
SELECT event_id, revision, kind, amount, currency, reference, end_to_end_id, occurred_at AT TIME ZONE 'UTC' AS occurred_at
FROM banked.history ORDER BY seq;

-- its columns: those of events, and its own
SELECT string_agg(a.attname || ' ' || format_type(a.atttypid, a.atttypmod), ', ' ORDER BY a.attnum) FILTER (WHERE e.attname IS NULL) AS own,
	   count(e.attname) = (SELECT count(*) FROM pg_attribute WHERE attrelid = 'banked.events'::regclass AND attnum > 0) AS all_of_events
FROM pg_attribute AS a LEFT JOIN pg_attribute AS e
	ON e.attrelid = 'banked.events'::regclass AND e.attname = a.attname AND e.atttypid = a.atttypid AND e.attnum = a.attnum
WHERE a.attrelid = 'banked.history'::regclass;

-- a row with any payload
CREATE FUNCTION test.put(payload jsonb) RETURNS void LANGUAGE sql AS $$
	TRUNCATE banked.events, banked.event_revisions;
	INSERT INTO banked.events (event_id, event_type, endpoint_id, payload, body_sha256, signature, signed_at, received_at)
	SELECT 'e', 't', endpoint_id, put.payload, '', '', now(), now() FROM banked.endpoints;
$$;
CREATE FUNCTION test.amount(payload jsonb) RETURNS bigint LANGUAGE plpgsql AS $$
BEGIN
	PERFORM test.put(payload);
	RETURN (SELECT amount FROM banked.history);
END
$$;
SELECT p.payload, test.amount(p.payload::jsonb)
FROM (VALUES ('{"amount":0}'), ('{"amount":-5}'), ('{"amount":12.0}'), ('{"amount":1.5}'), ('{"amount":"12"}'), ('{"amount":true}'), ('{"amount":null}'),
			 ('{"amount":{"value":1}}'), ('{"amount":[1]}'), ('{"amount":1e3}'), ('{"amount":9223372036854775807}'), ('{"amount":-9223372036854775808}'),
			 ('{"amount":9223372036854775808}'), ('{"amount":-9223372036854775809}'), ('{"amount":0.1e-400}'),
			 ('{"amount":"12","data":{"amount":3}}'), ('{"amount":4,"data":{"amount":3}}'), ('{"data":{"amount":3}}'), ('{"data":[3]}'), ('{"data":3}'),
			 ('[]'), ('7'), ('"amount"'), ('null')) AS p (payload);
SELECT test.amount('{"amount":1e400}') IS NULL AS too_large, test.amount(NULL) IS NULL AS erased;

CREATE FUNCTION test.occurred_at(payload jsonb) RETURNS text LANGUAGE plpgsql AS $$
BEGIN
	PERFORM test.put(payload);
	RETURN (SELECT to_char(occurred_at AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US') FROM banked.history);
END
$$;
SELECT t.time, test.occurred_at(jsonb_build_object('created_at', t.time))
FROM (VALUES ('2019-10-31 16:45:34 UTC'), ('2019-10-31 16:45:34UTC'), ('2019-10-31T16:45:34Z'), ('2019-10-31t16:45:34z'), ('2019-10-31T16:45:34.5Z'),
			 ('2019-10-31T16:45:34.123456789Z'), ('2019-12-31T23:59:59.999999999Z'), ('2016-12-31T23:59:60Z'),
			 ('2019-10-31T16:45:34+05:30'), ('2019-10-31T16:45:34-15:59'), ('2019-10-31T16:45:34+16:00'), ('2019-10-31T16:45:34-00:00'),
			 ('2019-01-31 00:00:00Z'), ('2019-04-30 00:00:00Z'), ('2019-04-31 00:00:00Z'), ('2019-02-28 00:00:00Z'), ('2019-02-29 00:00:00Z'),
			 ('2019-02-30 00:00:00Z'), ('2020-02-29 00:00:00Z'), ('2000-02-29 00:00:00Z'), ('2100-02-29 00:00:00Z'), ('2400-02-29 00:00:00Z'),
			 ('2019-13-01 00:00:00Z'), ('2019-00-01 00:00:00Z'), ('2019-01-00 00:00:00Z'), ('2019-01-32 00:00:00Z'), ('0000-01-01 00:00:00Z'), ('9999-01-01 00:00:00Z'),
			 ('2019-10-31T24:00:00Z'), ('2019-10-31T23:60:00Z'), ('2019-10-31T23:59:61Z'), ('2019-10-31T16:45:34'), ('2019-10-31T16:45Z'), ('2019-10-31'),
			 ('2019-10-31T16:45:34.Z'), ('2019-10-31T16:45:34.1234567890Z'), ('2019-10-31T16:45:34 Europe/Berlin'), ('2019-10-31T16:45:34 CET'),
			 (' 2019-10-31T16:45:34Z'), (E'2019-10-31T16:45:34Z\n'), ('now'), ('infinity'), ('epoch'), (''), ('1572540334')) AS t (time);
-- days of all months of a common and a leap year: exactly those of the calendar
SELECT y.year, count(test.occurred_at(jsonb_build_object('created_at', format('%s-%s-%sT00:00:00Z', y.year, to_char(m, 'FM00'), to_char(d, 'FM00'))))) AS days
FROM (VALUES (2023), (2024)) AS y (year) CROSS JOIN generate_series(0, 13) AS m CROSS JOIN generate_series(0, 32) AS d
GROUP BY y.year ORDER BY y.year;

-- the first that is a time
SELECT p.payload, left(test.occurred_at(p.payload::jsonb), 4) AS year
FROM (VALUES ('{"sent_at":"2001-01-01 00:00:00 UTC","created_at":"2002-01-01 00:00:00 UTC","data":{"updated_at":"2003-01-01T00:00:00Z","created_at":"2004-01-01T00:00:00Z"}}'),
			 ('{"sent_at":null,"created_at":"2002-01-01 00:00:00 UTC","data":{"updated_at":"2003-01-01T00:00:00Z"}}'),
			 ('{"sent_at":"soon","created_at":{"a":1},"data":{"updated_at":"2003-01-01T00:00:00Z","created_at":"2004-01-01T00:00:00Z"}}'),
			 ('{"sent_at":1,"created_at":[],"data":{"updated_at":true,"created_at":"2004-01-01T00:00:00Z"}}'),
			 ('{"data":"2004-01-01T00:00:00Z"}'), ('[]'), ('null')) AS p (payload);
-- whatever the session's settings
SET TimeZone = 'Asia/Kathmandu'; SET DateStyle = 'German, DMY'; SET IntervalStyle = 'sql_standard';
SELECT test.occurred_at('{"created_at":"2019-10-11 16:45:34 UTC"}');
RESET TimeZone; RESET DateStyle; RESET IntervalStyle;

-- other members may be anything
SELECT test.put('{"currency":{"a":1},"reference":[1,2],"end_to_end_id":7,"data":{"currency":"EUR"}}');
SELECT currency, reference, end_to_end_id FROM banked.history;

-- it needs nothing of the extension
DROP EXTENSION banked_webhooks CASCADE;
SELECT event_id, amount, currency FROM banked.history;
