
# From CREATE EXTENSION to a stored event, over real HTTP.

use strict;
use warnings;

use BankedWebhooks;
use Digest::SHA qw(sha256_hex);
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $service = BankedWebhooks->new(extension => 0);
my $port = $service->port;

ok(!can_connect($port), 'nothing listens before the extension is created');
is(scalar $service->pids('launcher'), 1, 'the launcher runs');
is(scalar $service->pids('receiver'), 0, 'and no receiver');

# One slow attempt, or two, are put down to the machine.
my $served;
foreach (1 .. 3)
{
	$service->sql('create extension banked_webhooks');
	last if $served = wait_until(sub { can_connect($port) }, 1);
	$service->sql('drop extension banked_webhooks; drop schema if exists banked cascade');
	$service->wait_for_port_closed;
}
ok($served, 'created, and served within a second');

# Registered with a key made by the extension.
my ($endpoint, $key) = split /\|/, $service->sql("select * from banked.register_endpoint('/hook')");
like($endpoint, qr/^[0-9a-f-]{36}$/, 'an endpoint is registered');
like($key, qr/^[0-9a-f]{64}$/, 'and its key is shown');

my $body = payload('developer-partner-payment_sent');
my $at = int(time) - 5;
my $signature = sign($body, $key, $at);
my $response;
wait_until(sub {
	# The gateway learns of a path some milliseconds after its commit.
	$response = $service->exchange(request('/hook', $body, signature => $signature));
	return !$response || $response->{status} != 404;
});
is($response->{status}, 200, 'a signed delivery is answered with 200');
like($response->{body}, qr/\A[^\r\n]{1,80}\r?\n?\z/, 'in one short line');

is( $service->sql(
		q(select event_id, event_type, endpoint_id, resource_id, resource_type, state, live, test, api_version, revision from banked.events)),
	join('|', 'a6941fd1-f5cb-4948-814d-df03540149fb', 'payment_sent', $endpoint, 'a6941fd1-f5cb-4948-814d-df03540149fb',
		'payment', 'sent', 't', 'f', 'v2', 0),
	'the row tells what the body says');
is($service->sql(q(select encode(body, 'hex') from banked.events)), unpack('H*', $body), 'the bytes are kept exactly');
is($service->sql(q(select encode(body_sha256, 'hex') from banked.events)), sha256_hex($body), 'with their digest');
is($service->sql(q(select extract(epoch from signed_at)::bigint || '.' || encode(signature, 'hex') from banked.events)),
	$signature, 'and the signature');
is($service->sql(q(select received_at between now() - interval '1 minute' and now() from banked.events)), 't', 'and when it came');
is($service->sql(q(select payload = convert_from(body, 'UTF8')::jsonb from banked.events)), 't', 'the payload is the body as jsonb');
is($service->sql(q(select banked.verify_event('a6941fd1-f5cb-4948-814d-df03540149fb', 'payment_sent'))),
	't', 'the event can be verified later');
is($service->sql(q(select amount, currency, reference from banked.history)), '1|GBP|Illuminate', 'and read in the history');

# The other generation of bodies.
$body = payload('constructed-v3-refund_pending');
is($service->post('/hook', $body, key => $key), 200, 'a v3 body is stored');
is( $service->sql(q(select event_id, resource_id, resource_type, state, api_version from banked.events where event_type = 'refund_pending')),
	'3a7e0e66-3b15-496a-8948-458a0a50488e|0d4f6a0c-6f1e-4a3e-9d0b-0d6b7c2f9a11|refund|pending|v3',
	'with its own columns');

# One connection, several deliveries.
my $connection = $service->connect;
foreach my $type (qw(payment_initiated payment_pending payment_sent))
{
	$connection->send(request('/hook', event('keep-alive', $type), key => $key));
	my $answer = $connection->receive;
	is($answer && $answer->{status}, 200, "$type over the same connection");
}
is($service->sql(q(select string_agg(event_type, ' ' order by seq) from banked.events where event_id = 'keep-alive')),
	'payment_initiated payment_pending payment_sent', 'all are there, in order');

# The same again.
is($service->post('/hook', $body, key => $key), 200, 'a repetition is answered with 200');
is($service->sql('select count(*) from banked.events'), 5, 'and stored once');

# Authentic, but no event.
is($service->post('/hook', payload('sdk-banked-node-fixture_no_event_field'), key => $key), 200, 'a body without a type: 200');
is($service->post('/hook', '{"id": "broken', key => $key), 200, 'broken JSON: 200');
is($service->sql('select string_agg(reason, chr(32) order by quarantine_id) from banked.quarantine'),
	'missing_identity invalid_json', 'both are in quarantine, with the reason');

# Not authentic.
$body = event('forged', 'payment_sent');
is($service->post('/hook', $body, key => $OTHER_KEY), 400, 'a wrong key: 400');
is($service->post('/hook', "$body ", signature => sign($body, $key)), 400, 'a changed body: 400');
is($service->post('/nowhere', $body, key => $key), 404, 'an unknown path: 404');
is($service->sql(q(select count(*) from banked.events where event_id = 'forged')), 0, 'nothing of it is stored');
ok_until(
	sub {
		$service->sql(q(select coalesce(sum(count), 0) from banked.rejections
			where reason = 'signature_wrong' and path = '/hook' and remote_address = '127.0.0.1')) == 2;
	},
	'but the rejections are recorded');
ok_until(sub { $service->sql(q(select count(*) from banked.rejections where reason = 'unknown_path' and path = '/nowhere')) == 1 },
	'those by the gateway too');

# What the service says of itself.
is($service->stat('deliveries', { outcome => 'stored' }), 5, 'stats: stored');
is($service->stat('deliveries', { outcome => 'repetition' }), 1, 'stats: repetition');
is($service->stat('deliveries', { outcome => 'quarantined' }), 2, 'stats: quarantined');
is($service->stat('deliveries', { outcome => 'rejected' }), 2, 'stats: rejected');
ok($service->stat('batches') > 0, 'stats: batches');

# Autovacuum must see the work.
ok_until(sub { $service->sql(q(select n_tup_ins from pg_stat_all_tables where relid = 'banked.events'::regclass)) >= 5 },
	'the insertions are reported to the statistics');

# Several addresses.
$service->sql(q(alter system set banked_webhooks.listen_addresses = '127.0.0.1, 127.0.0.2'));
$service->node->reload;
ok_until(sub { can_connect($port, '127.0.0.2') }, 'a second address is listened on after a reload');
ok_until(sub { can_connect($port, '127.0.0.1') }, 'beside the first');

# A list that is as long as it may be; one more is refused.
{
	my $list = join ', ', map { "127.0.0.$_" } 1 .. 30;
	my $since = q(select listening_since from banked.receivers);

	$service->sql("alter system set banked_webhooks.listen_addresses = '$list'");
	$service->node->reload;
	ok_until(sub { $service->sql(q(select length(addresses) from banked.receivers)) == length $list }, 'a long list of addresses');
	ok_until(sub { can_connect($port) }, 'is listened on');
	my $before = $service->sql($since);
	$service->node->reload;
	$service->sql('select pg_sleep(0.3)');
	is($service->sql($since), $before, 'and stays when nothing has changed');
	like($service->sql_error(q(alter system set banked_webhooks.listen_addresses = ') . join(', ', ('127.0.0.1') x 100) . q(')),
		qr/22023.*DETAIL:  The list is longer than 1023 bytes\./s, 'a longer one is refused');
}
SKIP:
{
	skip 'no IPv6 here', 1 unless defined IO::Socket::IP->new(LocalHost => '::1', LocalPort => 0, Listen => 1);
	$service->sql(q(alter system set banked_webhooks.listen_addresses = 'localhost, ::1'));
	$service->node->reload;
	ok_until(sub { can_connect($port, '::1') }, 'IPv6 too');
}

$service->check_log;
done_testing();
