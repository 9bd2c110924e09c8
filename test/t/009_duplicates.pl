
# Exactly once: the same deliveries many times, at the same time, over many
# connections, to two receivers.

use strict;
use warnings;

use BankedWebhooks;
use List::Util qw(shuffle);
use Test::More;
use Time::HiRes qw(time);

my $service = BankedWebhooks->new(conf => <<'CONF');
banked_webhooks.receivers = 2
banked_webhooks.max_pending = 5000
CONF
my $port = $service->port;
$service->register('/hook');
ok_until(sub { $service->pids('receiver') == 2 && $service->pids('gateway') == 2 }, 'two receivers');
$service->wait_for_path('/hook', 2);
ok_until(sub { tally(map { $service->post('/hook', event('first', 'payment_sent')) } 1 .. 8) eq '200: 8' }, 'both serve');

srand 20240229;

# Unique events from 64 clients.
{
	my @lists = map {
		my $client = $_;
		[ map { request('/hook', event("unique-$client-$_", 'payment_sent', filler => 'x' x 500)) } 1 .. 50 ]
	} 1 .. 64;
	my $start = time;
	is(tally(exchange_all($port, @lists)), '200: 3200', '64 clients, 50 unique events each: no failure');
	note sprintf '%.0f per second', 3200 / (time - $start);
	is($service->sql(q(select count(*) from banked.events where event_id like 'unique-%')), 3200, 'every 200 has its row');
	is($service->sql('select count(*) from banked.event_revisions'), 0, 'and nothing else');
}

# The same few, byte for byte, from everybody.
{
	my @requests = map { request('/hook', event("same-$_", 'payment_sent')) } 1 .. 20;
	my @lists = map { [ shuffle @requests ] } 1 .. 64;
	is(tally(exchange_all($port, @lists)), '200: 1280', '20 events, each from 64 clients: 200 each');
	is($service->sql(q(select count(*) from banked.events where event_id like 'same-%')), 20, 'one row each');
	is($service->sql('select count(*) from banked.event_revisions'), 0, 'no revision');
	is($service->sql('select count(*) from banked.quarantine'), 0, 'no quarantine');
}

# Signed anew for each retry: other signatures, the same bytes.
{
	my $now = int time;
	my @lists = map {
		my $client = $_;
		[ shuffle map { request('/hook', event("resigned-$_", 'payment_sent'), at => $now - $client) } 1 .. 10 ]
	} 1 .. 32;
	is(tally(exchange_all($port, @lists)), '200: 320', '10 events, signed anew 32 times each');
	is($service->sql(q(select count(*) from banked.events where event_id like 'resigned-%')), 10, 'one row each');
	is($service->sql('select count(*) from banked.event_revisions'), 0, 'no revision');
}

# Known identities with other bytes: each version is kept once.
{
	my @requests = map { my $id = $_; map { request('/hook', event("versions-$id", 'payment_sent', reference => "version $_")) } 1 .. 4 } 1 .. 5;
	my @lists = map { [ shuffle @requests ] } 1 .. 16;
	is(tally(exchange_all($port, @lists)), '200: 320', '5 identities in 4 versions, each from 16 clients');
	is($service->sql(q(select count(*) from banked.events where event_id like 'versions-%')), 5, 'one event each');
	is($service->sql(q(select count(*) from banked.event_revisions where event_id like 'versions-%')), 15, 'three revisions each');
	is( $service->sql(q(select count(distinct (event_id, body_sha256)) from (
			select event_id, body_sha256 from banked.events union all select event_id, body_sha256 from banked.event_revisions) as t
			where event_id like 'versions-%')),
		20, 'of which no two are alike');
	is($service->sql(q(select string_agg(distinct kind, ' ') from banked.event_revisions)), 'changed', 'all are changes');
	is($service->sql(q(select bool_and(revisions = array[1, 2, 3]) from (
			select array_agg(revision order by revision) as revisions from banked.event_revisions group by event_id, event_type) as t)),
		't', 'numbered without gaps');
}

# A mandate that becomes active again with the same bytes.
{
	my $now = int time;
	my $active = event('mandate', 'mandate_active');
	my $suspended = event('mandate', 'mandate_suspended');
	is($service->post('/hook', $active,    at => $now - 100), 200, 'active');
	is($service->post('/hook', $suspended, at => $now - 50),  200, 'suspended');
	is($service->post('/hook', $active,    at => $now - 100), 200, 'a late retry of the first');
	is($service->sql(q(select count(*) from banked.event_revisions where event_id = 'mandate')), 0, 'is a repetition');
	is($service->post('/hook', $active, at => $now), 200, 'active again');
	is($service->sql(q(select string_agg(event_type || ' ' || kind || ' ' || revision, ', ') from banked.event_revisions where event_id = 'mandate')),
		'mandate_active recurrence 1', 'is a recurrence');
	is($service->post('/hook', $active, at => $now), 200, 'and its retry');
	is($service->sql(q(select count(*) from banked.event_revisions where event_id = 'mandate')), 1, 'a repetition');
}

# The same, while a trigger refuses it: the last delivery is what will be stored.
{
	my $now = int time;
	my $active = event('refused', 'mandate_active');
	my $row = q(select q.signed_at = to_timestamp(%d), e.path, count(*) over () from banked.quarantine as q join banked.endpoints as e using (endpoint_id));
	$service->sql(<<'SQL');
create function public.refuse() returns trigger language plpgsql as $$ begin raise exception 'not now'; end $$;
create trigger refuse before insert on banked.events for each row when (new.event_type = 'mandate_active' and new.event_id = 'refused') execute function public.refuse();
SQL
	is($service->post('/hook', $active, at => $now - 100), 200, 'active, but refused');
	is($service->post('/hook', event('refused', 'mandate_suspended'), at => $now - 50), 200, 'suspended');
	is($service->post('/hook', $active, at => $now), 200, 'active again, and refused');
	is($service->sql(sprintf $row, $now), 't|/hook|1', 'one row of quarantine, of the last delivery');
	is($service->post('/hook', $active, at => $now - 10), 200, 'one that was signed earlier');
	is($service->sql(sprintf $row, $now), 't|/hook|1', 'changes nothing');
	is($service->post('/hook', '{"id":"refused"}', at => $now - $_), 200, 'one without identity') foreach 20, 10;
	is($service->sql(q(select extract(epoch from signed_at)::bigint from banked.quarantine where reason = 'missing_identity')), $now - 20, 'stays the first');
	$service->sql(q(select banked.dismiss(quarantine_id, 'test') from banked.quarantine));
	is($service->post('/hook', $active, at => $now + 10), 200, 'one of which nothing is wanted');
	is($service->sql(sprintf "$row where reason <> 'missing_identity'", $now), 't|/hook|1', 'stays what it is');
	$service->sql('drop trigger refuse on banked.events');
	is($service->sql(q(select (banked.reprocess(quarantine_id)).outcome from banked.quarantine where reason <> 'missing_identity')), 'stored', 'the trigger is gone');
	is($service->sql(q(select string_agg(event_type, ', ' order by received_at) from banked.history where event_id = 'refused')),
		'mandate_suspended, mandate_active', 'the mandate is active');
	is($service->sql(q(select bool_and(banked.verify_event(event_id, event_type)) from banked.events where event_id = 'refused')), 't', 'and the signature is that of the row');
	$service->sql('delete from banked.quarantine');
}

# The quarantine holds each broken delivery once.
{
	my @lists = map { [ shuffle map { request('/hook', "{broken $_") } 1 .. 10 ] } 1 .. 32;
	is(tally(exchange_all($port, @lists)), '200: 320', '10 broken bodies, each from 32 clients');
	is($service->sql('select count(*) from banked.quarantine'), 10, 'one row each');
}

# received_at is strictly increasing per receiver, and seq unique.
is($service->sql('select count(*) = count(distinct seq) from (select seq from banked.events union all select seq from banked.event_revisions) as t'),
	't', 'no seq occurs twice');
ok_until(
	sub {
		$service->sql(q(select (select count(*) from banked.events_since(0, 100000)) =
			(select count(*) from banked.events) + (select count(*) from banked.event_revisions))) eq 't';
	},
	'events_since shows everything');
ok($service->sql(q(select bool_or(value > 1) from banked.stats() where metric = 'batch_mean')) eq 't', 'deliveries were stored in batches');

$service->allow('was put into quarantine');
$service->check_log;
done_testing();
