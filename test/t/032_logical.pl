
# Logical replication: a subscriber gets the history, serves nothing, and can
# take over.

use strict;
use warnings;

use BankedWebhooks;
use Test::More;

my $publisher = BankedWebhooks->new(name => 'publisher', init => { allows_streaming => 'logical' }, conf => 'max_worker_processes = 16');
my $subscriber = BankedWebhooks->new(name => 'subscriber', conf => 'max_worker_processes = 16', start => 0);
my $source = $publisher->node->connstr('postgres');

$publisher->register('/hook');
ok_until(sub { $publisher->post('/hook', event('before', 'payment_sent')) == 200 }, 'an event');
$publisher->sql('create publication history for table banked.endpoints, banked.events, banked.event_revisions');

# The subscriber makes the tables itself, and is paused: it only reads.
$subscriber->node->start;
$subscriber->sql('create extension banked_webhooks');
$subscriber->wait_for_port;
$subscriber->sql('select banked.create_tables()');
$subscriber->sql('select banked.pause()');
$subscriber->wait_for_port_closed;
$subscriber->sql("create subscription history connection \$\$$source\$\$ publication history");
$publisher->node->wait_for_catchup('history');
ok_until(sub { $subscriber->sql('select count(*) from banked.events') == 1 }, 'the subscriber gets what was there');

my $connection = $publisher->connect;
foreach my $number (1 .. 50)
{
	$connection->send(request('/hook', event("event-$number", 'payment_sent')));
	my $response = $connection->receive;
	$response && $response->{status} == 200 or die 'not stored';
}
is($publisher->post('/hook', event('before', 'payment_sent', reference => 'Other')), 200, 'and a revision');
is($publisher->post('/hook', event('event-7', 'payment_sent')), 200, 'a repetition');
$publisher->node->wait_for_catchup('history');
my $columns = 'event_id, event_type, seq, revision, body_sha256, received_at, stored_by, payload';
is($subscriber->sql("select $columns from banked.history order by seq"), $publisher->sql("select $columns from banked.history order by seq"),
	'fifty events and a revision are the same at both ends');
is($subscriber->sql(q(select count(*) from pg_stat_activity where backend_type = 'banked_webhooks receiver')), 0, 'the subscriber has no receiver');
ok(!can_connect($subscriber->port), 'and does not listen');

# Such a burst is over before the statistics take all of it, and nothing follows it; autovacuum must see it all the same.
ok_until(sub { $publisher->sql(q(select n_tup_ins from pg_stat_all_tables where relid = 'banked.events'::regclass)) >= 51 },
	'all insertions are reported to the statistics');

# It takes over.
my $last = $publisher->sql('select max(seq) from banked.history');
$publisher->node->stop;
$subscriber->allow('could not (?:connect to the publisher|receive data from WAL stream|send end-of-streaming message)|logical replication (?:worker|apply)');
$publisher->allow('the database system is shutting down|terminating connection due to administrator command');
$subscriber->sql('alter subscription history disable');
$subscriber->sql('alter subscription history set (slot_name = none)');
$subscriber->sql('drop subscription history');
$subscriber->sql('select banked.resume()');
ok_until(sub { can_connect($subscriber->port) }, 'resume() opens its port');
is($subscriber->sql('select count(*) from banked.events_since(0)'), 52, 'events_since shows everything that was replicated');
is($subscriber->post('/hook', event('after', 'payment_sent')), 503, 'the keys stay where they are');
$subscriber->sql("select banked.rotate_signing_key('/hook', signing_key => '$KEY')");
ok_until(sub { $subscriber->post('/hook', event('after', 'payment_sent')) == 200 }, 'with one of its own it stores');
is($subscriber->post('/hook', event('event-7', 'payment_sent')), 200, 'what it got as a subscriber');
is($subscriber->sql(q(select count(*) from banked.history where event_id = 'event-7')), 1, 'is known');
ok_until(sub { $subscriber->sql("select string_agg(event_id, ' ') from banked.events_since($last)") eq 'after' },
	'a consumer goes on with the seq that it had');

$subscriber->check_log;
$publisher->check_log;
done_testing();
