
# A standby does not listen, and starts when it is promoted.

use strict;
use warnings;

use BankedWebhooks;
use Test::More;

my $primary = BankedWebhooks->new(
	name => 'primary',
	init => { allows_streaming => 1 },
	conf => "max_worker_processes = 16\n");
$primary->register('/hook');
ok_until(sub { $primary->post('/hook', event('a', 'payment_sent')) == 200 }, 'the primary serves');

my $standby = $primary->new_standby('standby');
$standby->node->start;
$primary->node->wait_for_catchup($standby->node);
is($standby->sql('select count(*) from banked.events'), 1, 'the standby has the event');
is($primary->post('/hook', event('b', 'payment_sent')), 200, 'another event');
$primary->node->wait_for_catchup($standby->node);
is($standby->sql('select count(*) from banked.events'), 2, 'which it gets too');
ok(!can_connect($standby->port), 'it does not listen');
is($standby->sql(q(select count(*) from pg_stat_activity where backend_type like 'banked%')), 0, 'and has no process of ours');
is($standby->sql('select count(*) from banked.history'), 2, 'the history can be read there');
like($standby->sql_error(q(select banked.pause())), qr/25006/, 'and not be changed');

# The receiver's own work waits for no standby: deliveries would wait with it.
$primary->sql(q(insert into banked.jobs (handler, event_id, event_type, revision, received_at, run_at, state, finished_at)
	values ('gone', 'a', 'payment_sent', 0, now(), now(), 'done', now() - interval '1 h')));
$primary->sql(q(alter system set synchronous_standby_names = 'nobody'));
$primary->node->reload;
$primary->sql('select pg_sleep(0.5)');	# until the checkpointer has told the others
$primary->sql(q(alter system set banked_webhooks.job_retention = '1s'));
$primary->node->reload;
ok_until(sub { $primary->sql('select count(*) from banked.jobs') == 0 }, 'a job is removed while commits wait for a standby that is away');
is($primary->post('/hook', event('old', 'payment_sent'), at => time - 90 * 86400), 400, 'and what needs no commit is answered');
$primary->sql(q(alter system reset synchronous_standby_names));
$primary->node->reload;

$standby->allow('could not (?:send end-of-streaming message to|connect to|receive data from) (?:the )?primary');
$primary->node->stop;
$standby->node->promote;
ok_until(sub { can_connect($standby->port) }, 'promoted, it listens');
is($standby->post('/hook', event('c', 'payment_sent')), 200, 'and stores, under the same key');
is($standby->post('/hook', event('b', 'payment_sent'), at => time - 10), 200, 'what came before the failover');
is($standby->sql('select count(*) from banked.events'), 3, 'is known');
ok_until(sub { $standby->sql('select count(*) from banked.events_since(0)') == 3 }, 'events_since goes on');

$primary->check_log;
$standby->check_log;
done_testing();
