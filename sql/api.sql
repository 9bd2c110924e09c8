-- Credentials and calls of Banked's API, as far as they need no network.
\getenv srcdir PG_ABS_SRCDIR
\set setup :srcdir '/sql/setup.psql'
\set ECHO none
\i :setup
\set ECHO all
SET client_min_messages = error;
CREATE ROLE regress_webhooks_reader IN ROLE banked_webhooks_reader;
CREATE ROLE regress_webhooks_admin IN ROLE banked_webhooks_admin;

--
-- Credentials
--
SELECT f.arguments, test.attempt(format('SELECT banked.set_api_credentials(%s)', f.arguments))
FROM (VALUES ($$$$),
			 ($$NULL, 'a', 'b'$$),
			 ($$'', 'a', 'b'$$),
			 ($$'a name', 'a', 'b'$$),
			 ($$api_key => 'a'$$),
			 ($$secret_key => 'b'$$),
			 ($$api_key => '', secret_key => 'b'$$),
			 ($$api_key => 'a:b', secret_key => 'b'$$),
			 ($$api_key => 'a', secret_key => E'b\nX-Header: c'$$),
			 ($$api_key => 'a', secret_key => 'é'$$),
			 ($$api_key => 'a', secret_key => repeat('b', 2049)$$),
			 ($$api_key => 'a', secret_key => 'b', auth => NULL$$),
			 ($$api_key => 'a', secret_key => 'b', auth => 'digest'$$),
			 ($$api_key => 'a', secret_key => 'b', scope => 's'$$),
			 ($$api_key => 'a', secret_key => 'b', auth => 'oauth', scope => ' s'$$),
			 ($$api_key => 'a', secret_key => 'b', base_url => 'http://api.example'$$),
			 ($$api_key => 'a', secret_key => 'b', base_url => 'https://user@api.example'$$),
			 ($$api_key => 'a', secret_key => 'b', base_url => 'https://'$$),
			 ($$api_key => 'a', secret_key => 'b', base_url => 'https:///path'$$),
			 ($$api_key => 'a', secret_key => 'b', base_url => 'https://api.example/?x'$$),
			 ($$api_key => 'a', secret_key => 'b', base_url => 'https://api.example/#x'$$),
			 ($$api_key => 'a', secret_key => 'b', base_url => 'https://api.example/ x'$$),
			 ($$api_key => 'a', secret_key => 'b', api_version => 'v1'$$),
			 ($$api_key => 'a', secret_key => 'b', api_version => '3'$$),
			 ($$'sandbox', 'a', 'b', auth => 'oauth', scope => 'one two', base_url => 'https://api.example/x'$$)
	 ) AS f (arguments);
SELECT name, auth, scope, base_url, api_version, convert_from(substr(secret, 2), 'UTF8') AS clear, get_byte(secret, 0) AS kind
FROM banked.api_credentials ORDER BY name;
SELECT test.attempt($$SELECT banked.set_api_credentials('default', 'c', 'd')$$);
SELECT name, auth, api_version, convert_from(substr(secret, 2), 'UTF8') AS clear FROM banked.api_credentials WHERE name = 'default';
SELECT banked.drop_api_credentials('default');
SELECT test.attempt($$SELECT banked.drop_api_credentials('default')$$), test.attempt($$SELECT banked.drop_api_credentials(NULL)$$);
SELECT action, detail FROM banked.audit_log WHERE action LIKE '%api%' ORDER BY at;

--
-- Settings
--
SET banked_webhooks.api_base_url = 'http://api.example';
SET banked_webhooks.api_version = 'v4';
SET banked_webhooks.api_version = '3';
SHOW banked_webhooks.api_version;
RESET banked_webhooks.api_version;
SHOW banked_webhooks.api_base_url;

--
-- Calls that are refused before anything is sent
--
SELECT f.statement, test.attempt(f.statement)
FROM (VALUES ($$SELECT banked.api_list_webhooks('nobody')$$),
			 ($$SELECT banked.api_list_webhooks(NULL)$$),
			 ($$SELECT banked.api_create_webhook('http://a.example', 'the signing key', '{payment_sent}')$$),
			 ($$SELECT banked.api_create_webhook(NULL, 'the signing key', '{payment_sent}')$$),
			 ($$SELECT banked.api_create_webhook('https://a.example', NULL, '{payment_sent}')$$),
			 ($$SELECT banked.api_create_webhook('https://a.example', 'short', '{payment_sent}')$$),
			 ($$SELECT banked.api_create_webhook('https://a.example', 'the signing key', '{}')$$),
			 ($$SELECT banked.api_create_webhook('https://a.example', 'the signing key', NULL)$$),
			 ($$SELECT banked.api_create_webhook('https://a.example', 'the signing key', '{payment_*}')$$),
			 ($$SELECT banked.api_update_webhook('some-id')$$),
			 ($$SELECT banked.api_update_webhook(NULL, 'https://a.example')$$),
			 ($$SELECT banked.api_update_webhook('../x', 'https://a.example')$$),
			 ($$SELECT banked.api_update_webhook('..', 'https://a.example')$$),
			 ($$SELECT banked.api_update_webhook('a/b', 'https://a.example')$$),
			 ($$SELECT banked.api_delete_webhook('a b')$$),
			 ($$SELECT banked.publish_endpoint(NULL)$$),
			 ($$SELECT banked.publish_endpoint('/banked', 'https://a.example', NULL)$$),
			 ($$SELECT banked.unpublish_endpoint('/banked', credentials => NULL)$$),
			 ($$SELECT banked.publish_endpoint('/nowhere', 'https://a.example')$$),
			 ($$SELECT banked.publish_endpoint('/banked', 'https://a.example')$$),
			 ($$SELECT banked.publish_endpoint('/banked', 'ftp://a.example')$$),
			 ($$SELECT banked.unpublish_endpoint('/nowhere')$$),
			 ($$SELECT banked.endpoint_drift('nobody')$$),
			 ($$SELECT banked.send_test_event(NULL, 'payment_sent')$$),
			 ($$SELECT banked.send_test_event('/banked', NULL)$$),
			 ($$SELECT banked.send_test_event('/banked', 'payment_sent', NULL)$$),
			 ($$SELECT banked.send_test_event('/banked', 'payment_sent')$$),
			 ($$SELECT banked.rotate_signing_key('/banked', 'second key', signing_key_file => '/nowhere')$$),
			 ($$SELECT banked.rotate_master_key()$$)
	 ) AS f (statement);

--
-- What answers may look like
--
SELECT a.answer, w.* FROM (VALUES ('{"id": 7, "url": "https://u", "events": ["a", "b"], "secret": "x"}'::jsonb),
	('{"webhook": {"id": "i", "target_url": "https://t", "signature_key": "x", "events": [{"type": "a"}, {"name": "b"}, 3]}}'),
	('{"data": {"uuid": "u"}}'), ('{"status": "ok"}'), ('[]'), ('null'), (NULL)) AS a (answer) CROSS JOIN banked._webhook_of(a.answer) AS w;
SELECT a.answer, banked._without_secrets(a.answer)
FROM (VALUES ('[{"a": [{"Secret": {"b": 1}}, {"c": {"signing_key": "x", "secrets": 2}}]}, "secret"]'::jsonb), ('"secret"'), ('{"secret": 1}')) AS a (answer);
SELECT w.* FROM banked._webhooks_of('{"data": [{"id": "1"}, {"webhook": {"id": "2"}}], "next": null}') AS w;
SELECT test.attempt($$SELECT banked._webhooks_of('{"webhook": {}}')$$), test.attempt($$SELECT banked._webhooks_of('"text"')$$);
-- an endpoint's types
SELECT e.events, w.* FROM (VALUES (NULL::text[]), ('{payment_sent}'), ('{mandate_*,refund_sent,new_type}'), ('{payment_*,payment_sent}'), ('{nothing_*}'))
	AS e (events) CROSS JOIN banked._wanted_webhooks(e.events) AS w ORDER BY e.events NULLS FIRST, w.kind DESC;

--
-- Bodies of test events
--
SELECT t.type, t.version, b.body - '{id,created_at,sent_at,reference,payment_id}'::text[] #- '{data,id}' #- '{data,created_at}' #- '{data,reference}' #- '{data,payment_id}' AS body
FROM (VALUES ('payment_sent', 'v2'), ('mandate_active', 'v2'), ('batch_payment_failed', 'v2'), ('refund_pending', 'v3'), ('payout_sent', 'v3')) AS t (type, version)
	CROSS JOIN LATERAL (SELECT banked._test_body(t.type, t.version, '{}') AS body) AS b;

--
-- Who may
--
SET ROLE regress_webhooks_reader;
SELECT banked.api_list_webhooks();
SELECT banked.send_test_event('/banked', 'payment_sent');
SELECT secret FROM banked.api_credentials;
RESET ROLE;
SET ROLE regress_webhooks_admin;
SELECT banked.set_api_credentials('theirs', 'a', 'b');
SELECT banked.set_api_credentials('theirs', 'a', secret_key_file => '/etc/hostname');
SELECT banked.rotate_signing_key('/banked', signing_key_file => '/etc/hostname');
SELECT secret FROM banked.api_credentials;
SELECT banked._api_call('theirs', 'GET', '/webhooks', NULL, NULL, NULL);
SELECT banked._seal('a', 'b');
SELECT banked.rotate_master_key('/etc/shadow');
SET banked_webhooks.api_base_url = 'https://elsewhere.example';
SELECT count(*) FROM banked.published_webhooks;
RESET ROLE;

DROP EXTENSION banked_webhooks CASCADE;
DROP SCHEMA banked, test CASCADE;
DROP ROLE regress_webhooks_reader, regress_webhooks_admin;
