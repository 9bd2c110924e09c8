
# Notifications: one for each event, after its commit, and never an obstacle.

use strict;
use warnings;

use BankedWebhooks;
use Test::More;
use Time::HiRes qw(time);

# Waiting for a standby takes senders of WAL.
my $service = BankedWebhooks->new(conf => "wal_level = replica\nmax_wal_senders = 2\n");
$service->register('/hook');
ok_until(sub { $service->post('/hook', event('first', 'payment_sent')) == 200 }, 'served');

my $listener = $service->session;
$listener->query_safe('listen banked_webhooks');
my $received = '';

# psql shows notifications when a command of its own has ended.
sub notified
{
	my ($pattern) = @_;
	return wait_until(
		sub {
			$received .= $listener->query_safe('select') . "\n";
			return $received =~ $pattern;
		});
}

sub payloads
{
	my @payloads = $received =~ /with payload "(.*)" received/g;
	return @payloads;
}

is($service->post('/hook', event('a', 'payment_sent')), 200, 'an event');
ok(notified(qr/"event_id": ?"a"/), 'is notified');
my ($payload) = grep { /"a"/ } payloads();
is( $service->sql(qq(select p ->> 'event_id', p ->> 'event_type', p ->> 'endpoint', p ->> 'resource_id',
		(p ->> 'seq')::bigint = (select seq from banked.events where event_id = 'a'), p ->> 'revision'
		from (select '$payload'::jsonb) as t (p))),
	'a|payment_sent|/hook|a|t|0', 'with what it is');

$received = '';
is($service->post('/hook', event('a', 'payment_sent', reference => 'Other')), 200, 'a revision');
ok(notified(qr/"revision": ?1/), 'is notified');
$received = '';
is($service->post('/hook', '{broken'), 200, 'a broken body');
ok(notified(qr/"quarantine": ?\d+, ?"reason": ?"invalid_json"/), 'is notified');

# A repetition is nothing new.
$received = '';
is($service->post('/hook', event('a', 'payment_sent'), at => int(time) - 3), 200, 'a repetition');
is($service->post('/hook', event('b', 'payment_sent')), 200, 'and something new');
ok(notified(qr/"event_id": ?"b"/), 'the new one is notified');
is(scalar(payloads()), 1, 'the repetition is not');

# Many at once: one each.
$received = '';
my @lists = map { my $client = $_; [ map { request('/hook', event("many-$client-$_", 'payment_sent')) } 1 .. 10 ] } 1 .. 10;
is(tally(exchange_all($service->port, @lists)), '200: 100', 'a hundred events');
ok(wait_until(sub { $received .= $listener->query_safe('select') . "\n"; return scalar(payloads()) >= 100 }), 'are notified');
my %distinct = map { /"event_id": ?"([^"]+)"/; ($1 => 1) } payloads();
is(scalar(payloads()) . ' ' . keys %distinct, '100 100', 'once each');

# receive() notifies in the caller's transaction.
$received = '';
my $signature = sign('{"id":"by-hand","webhook_event":"payment_sent"}');
$service->sql(qq(begin; select banked.receive('/hook', '$signature', '{"id":"by-hand","webhook_event":"payment_sent"}'); rollback));
$service->sql(qq(select banked.receive('/hook', '$signature', '{"id":"by-hand","webhook_event":"payment_sent"}')));
ok(notified(qr/"by-hand"/), 'receive() notifies');
is(scalar(grep { /by-hand/ } payloads()), 1, 'when it commits, and only then');

# An event that is too long for a payload loses its resource_id first.
$received = '';
is($service->post('/hook', v3_event('v3', 'payment_sent', id => 'r' x 400)), 200, 'a long resource_id');
ok(notified(qr/"event_id": ?"v3"/), 'is notified');

# Switched off: the setting, then the trigger.
$received = '';
$service->sql('alter system set banked_webhooks.notify = off');
$service->node->reload;
ok_until(sub { $service->sql('show banked_webhooks.notify') eq 'off' }, 'notify = off');
ok_until(
	sub {
		$received = '';
		my $id = 'quiet-' . time;
		$service->post('/hook', event($id, 'payment_sent')) == 200 or return;
		# Our own notification comes after whatever the event sent.
		$service->sql("notify banked_webhooks, 'marker $id'");
		notified(qr/marker $id/);
		return $received !~ /"event_id": ?"$id"/;
	},
	'silences it');
$service->sql('alter system reset banked_webhooks.notify');
$service->node->reload;
ok_until(
	sub {
		$received = '';
		my $id = 'loud-' . time;
		$service->post('/hook', event($id, 'payment_sent')) == 200 or return;
		$service->sql("notify banked_webhooks, 'marker $id'");
		notified(qr/marker $id/);
		return $received =~ /"event_id": ?"$id"/;
	},
	'switched on again');
$service->sql('alter table banked.events disable trigger banked_webhooks_notify');
$received = '';
is($service->post('/hook', event('disabled', 'payment_sent')), 200, 'the trigger disabled: stored');
$service->sql("notify banked_webhooks, 'after disabled'");
ok(notified(qr/after disabled/), 'the listener hears others');
unlike($received, qr/"event_id": ?"disabled"/, 'and nothing of the event');
$service->sql('alter table banked.events enable trigger banked_webhooks_notify');

# A listener that never reads.
my $deaf = $service->session;
$deaf->query_safe('listen banked_webhooks');
$deaf->query_safe('begin');
$deaf->query_safe('select 1');
@lists = map { my $client = $_; [ map { request('/hook', event("deaf-$client-$_", 'payment_sent')) } 1 .. 50 ] } 1 .. 10;
is(tally(exchange_all($service->port, @lists)), '200: 500', 'a listener in an open transaction is no obstacle');
$deaf->query_safe('commit');
$service->allow('connection to client lost');	# psql may go with notifications on their way to it
$deaf->quit;

# A batch that waits for a standby keeps nobody else from notifying.
$service->sql(q(alter system set synchronous_standby_names = 'nobody'));
$service->node->reload;
my ($connection) = $service->send_until_it_waits_for_standby('/hook', sub { event('unreplicated-' . $_[0], 'payment_sent') });
ok($connection, 'a synchronous standby that does not come: a batch waits for it');
my $start = time;
$service->sql(q(set synchronous_commit = local; notify something));
ok(time - $start < 10, 'another session notifies meanwhile');
ok(!defined $connection->receive(0.1), 'the delivery has no answer yet');
$service->sql(q(alter system reset synchronous_standby_names));
$service->node->reload;
my $answer = $connection->receive;
is($answer && $answer->{status}, 200, 'it gets it when the wait is over');

# Nor does another session that notifies and waits for its standby keep deliveries from being stored.
$service->sql(q(alter role banked_webhooks_worker set synchronous_commit = local; create table public.mine (id int)));
my ($old_receiver) = $service->pids('receiver');
$service->sql("select pg_terminate_backend($old_receiver)");
ok_until(sub { my ($now) = $service->pids('receiver'); $now && $now != $old_receiver }, 'a new receiver');
ok_until(sub { $service->post('/hook', event('local', 'payment_sent')) == 200 }, 'which waits for no standby');
$service->sql(q(alter system set synchronous_standby_names = 'nobody'));
$service->node->reload;
my $waiting = $service->session;
my $waits = q(select pid from pg_stat_activity where wait_event = 'SyncRep');
# Nobody waits before the checkpointer has seen the setting.
ok_until(
	sub {
		$waiting->query_until(qr/begun/, "\\echo begun\nbegin; insert into public.mine values (1); notify something; commit;\n");
		return wait_until(sub { $service->sql($waits) ne '' }, 1);
	},
	'a session that notifies waits for its standby');
$start = time;
is(tally(map { $service->post('/hook', event("meanwhile-$_", 'payment_sent')) } 1 .. 5), '200: 5', 'deliveries are stored meanwhile');
ok(time - $start < 10, 'and answered in time');
ok_until(sub { $service->stat('notifications', { outcome => 'skipped' }) >= 5 }, 'their notifications are left out');
$service->sql(qq(select pg_cancel_backend(($waits))));
ok_until(sub { $service->sql($waits) eq '' }, 'the wait is over');
$service->allow('canceling wait for synchronous replication', 'might not have been replicated');
$waiting->quit;
$service->sql(q(set synchronous_commit = local; alter system reset synchronous_standby_names));
$service->node->reload;
$received = '';
my $events = 0;
ok_until(
	sub {
		$service->post('/hook', event('after-' . ++$events, 'payment_sent'));
		$received .= $listener->query_safe('select') . "\n";
		return $received =~ /"event_id": ?"after-/;
	},
	'later events are notified again');

$listener->quit;
$service->check_log;
done_testing();
