
# Test events: realistic bodies through the real listener, marked as tests, and their removal.

use strict;
use warnings;

use BankedWebhooks;
use BankedWebhooks::Api;
use BankedWebhooks::Certificates;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $authority = BankedWebhooks::Certificates->new;
my ($certificate, $certificate_key) = $authority->issue('receiver');
my $tls_port = PostgreSQL::Test::Cluster::get_free_port();
my $service = BankedWebhooks->new(conf => <<"CONF");
banked_webhooks.tls_port = $tls_port
banked_webhooks.tls_cert_file = '$certificate'
banked_webhooks.tls_key_file = '$certificate_key'
banked_webhooks.api_ca_file = '${\ $authority->ca}'
CONF
my $fields = "select status, outcome, answer, elapsed > '0', reason from banked.send_test_event";

$service->register('/hook', live => 'true');
ok_until(sub { $service->post('/hook', event('real', 'payment_sent')) == 200 }, 'an endpoint for live events');

is($service->sql("$fields('/hook', 'payment_sent')"), '200|stored|ok|t|', 'a test event is stored, whatever the live rule says');
is($service->sql(q(select event_type, resource_type, state, live, test, api_version, amount, currency from banked.history where test)),
	'payment_sent|payment|sent|f|t|v2|1050|GBP', 'as what it is');
is($service->sql(q(select event_id = resource_id, payload ->> 'banked_webhooks_test', banked.verify_event(event_id, event_type) from banked.events where test)),
	't|true|t', 'signed and marked');
is($service->sql(q(select event_id = (select e.event_id from banked.events e where test and reference = 'mine')
		from (select event_id from banked.send_test_event('/hook', 'payment_failed', '{"reference": "mine", "live": true, "banked_webhooks_test": false}')) t,
			lateral (select reference from banked.history h where h.event_id = t.event_id) r)),
	'', 'not seen by the statement itself');
is($service->sql(q(select live, test, reference from banked.history where event_type = 'payment_failed')), 'f|t|mine', 'overrides, but not of the marks');

# Every known type, in both versions.
$service->sql('delete from banked.events where test');
foreach my $version (qw(v2 v3))
{
	is( $service->sql("select count(*), count(*) filter (where status = 200 and outcome = 'stored') from unnest(banked._known_event_types()) t (type),
			lateral banked.send_test_event('/hook', t.type, version => '$version')"),
		'22|22', "all known types, $version");
}
is($service->sql(q(select api_version, count(*), count(distinct event_type), bool_and(test and not live), count(state), count(resource_id), count(resource_type)
		from banked.events where test group by 1 order by 1)),
	"v2|22|22|t|22|22|22\nv3|22|22|t|22|22|22", 'with all that a body says');
is($service->sql(q(select string_agg(distinct resource_type, ' ') from banked.events where test)), 'batch_payment mandate payment payout refund', 'resources');
is($service->sql(q(select status, outcome from banked.send_test_event('/hook', 'payment_sent', '{"id": "chosen", "data": {"amount": 7}}', 'v3'))), '200|stored', 'overrides in v3');
is($service->sql(q(select amount, currency, test from banked.history where event_id = 'chosen')), '7|GBP|t', 'reach the data');
is($service->sql(q(select status, outcome from banked.send_test_event('/hook', 'payment_sent', '{"id": "chosen", "data": {"amount": 8}}', 'v3'))), '200|changed', 'a known identity');

# Who may send one sees no key by it, whatever he has printed to him, even one that is stored in clear.
{
	my $sealed = $service->sql('select secret from banked.key_secrets');
	$service->sql("update banked.key_secrets set secret = '\\x00' || '$KEY'::bytea");
	my $admin = 'set client_min_messages = log; set debug_print_plan = on; set role banked_webhooks_admin;';
	my (undef, undef, $shown) = $service->node->psql('postgres', "$admin select from banked.send_test_event('/hook', 'payment_sent')");

	like($shown, qr/LOG:  plan:/, 'plans are printed to an admin');
	unlike($shown, forms_of($KEY), 'without the signing key');
	$service->sql("update banked.key_secrets set secret = '$sealed'");
}

# What else can become of it.
is($service->sql("$fields('/hook', 'payment_sent', '{\"id\": null}')"), '200|quarantined|ok|t|missing_identity: the body has no id of an event', 'quarantine, and why');
$service->register('/wants', events => q(array['payment_sent']));
ok_until(sub { $service->sql("select status from banked.send_test_event('/wants', 'payment_sent')") == 200 }, 'another endpoint');
is($service->sql("select status, outcome from banked.send_test_event('/wants', 'payment_failed')"), '200|unwanted', 'an unwanted type');
$service->sql(q(select banked.disable_endpoint('/wants')));
ok_until(sub { $service->sql("select status || outcome from banked.send_test_event('/wants', 'payment_sent')") eq '404rejected' }, 'a disabled endpoint');
$service->sql(q(create function public.refuse() returns trigger language plpgsql as 'begin raise ''no''; end'));
$service->sql(q(create trigger refuse before insert on banked.events for each row when (new.event_id = 'refused') execute function public.refuse()));
is($service->sql(q(select status, outcome, reason from banked.send_test_event('/hook', 'payment_sent', '{"id": "refused"}'))), '200|quarantined|trigger_error: no', 'a failing trigger');
$service->sql('drop trigger refuse on banked.events');

like($service->sql_error("$fields('/hook', 'nonsense')"), qr/22023: no test event of type 'nonsense' can be made/, 'no such type');
like($service->sql_error("$fields('/hook', 'payment_sent', '[]')"), qr/22023: overrides must be a JSON object/, 'no object');
like($service->sql_error("$fields('/hook', 'payment_sent', version => 'v4')"), qr/22023: version must be v2 or v3/, 'no such version');
like($service->sql_error("$fields('/nowhere', 'payment_sent')"), qr/42704: /, 'no such endpoint');
like($service->sql_error("$fields('/hook', 'payment_sent', base_url => 'http://127.0.0.1')"), qr/22023: base_url must be an https URL/, 'only https elsewhere');
like($service->sql_error("begin; select from banked.register_endpoint('/new'); $fields('/new', 'payment_sent')"), qr/55000: .*not committed yet/, 'not committed');
{
	my $free_port = PostgreSQL::Test::Cluster::get_free_port();
	$service->allow('https://127\.0\.0\.1');
	like($service->sql_error("$fields('/hook', 'payment_sent', base_url => 'https://127.0.0.1:$free_port')"), qr/WH001: /, 'nobody there');
	$service->sql('select banked.pause()');
	# Until its receiver is gone they are delivered, or meet a port that has just been closed.
	ok_until(sub { (eval { $service->sql_error("$fields('/hook', 'payment_sent')") } // '') =~ /55000: no receiver of this database listens/ }, 'a paused service');
	$service->sql('select banked.resume()');
	$service->wait_for_port($_) foreach $service->port, $tls_port;
}

# Over HTTPS, as Banked would come.
is($service->sql("select status, outcome from banked.send_test_event('/hook', 'payment_sent', base_url => 'https://localhost:$tls_port')"), '200|stored', 'over HTTPS');
{
	# A server of others', which has no such path.
	my $api = BankedWebhooks::Api->new;
	$service->sql("alter system set banked_webhooks.api_ca_file = '${\ $api->ca}'");
	$service->sql('select pg_reload_conf()');
	ok_until(sub { $service->sql("select status from banked.send_test_event('/hook', 'payment_sent', base_url => '${\ $api->url}/')") == 404 }, 'to a public URL');
	is(($api->requests)[-1], 'POST /hook', 'at the path');
}

# ---------------------------------------------------------------------------
# Removal
# ---------------------------------------------------------------------------

$service->sql(q(create function public.user_code() returns trigger language plpgsql as 'begin return old; end'));
$service->sql(q(create trigger user_code after delete on banked.events for each row execute function public.user_code()));
like($service->sql_error('select banked.purge_test_events()'), qr/55000: table "banked.events" has a trigger for DELETE, "user_code"/, 'never runs code of users');
$service->sql('drop trigger user_code on banked.events');
is($service->post('/hook', event('text', 'payment_sent', reference => '\"banked_webhooks_test\": true')), 200, 'an event that only speaks of the mark');
is($service->post('/hook', '{"banked_webhooks_test": true'), 200, 'and a broken body');
my $tests = $service->sql('select (select count(*) from banked.events where test) + (select count(*) from banked.event_revisions where test) + 2');
is($service->sql('select banked.purge_test_events()'), $tests, 'events, revisions and quarantine');
is($service->sql(q(select string_agg(event_id, ' ' order by seq) from banked.events)), 'real text', 'what is real stays');
is($service->sql(q(select count(*), max(reason) from banked.quarantine)), '1|invalid_json', 'in quarantine too');
is($service->sql('select banked.purge_test_events()'), 0, 'nothing is left');

$service->check_log;
done_testing();
