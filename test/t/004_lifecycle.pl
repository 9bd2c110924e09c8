
# The service comes and goes with extension, databases, settings and pauses.

use strict;
use warnings;

use BankedWebhooks;
use IO::Socket::IP;
use PostgreSQL::Test::Cluster;
use Test::More;
use Time::HiRes qw(time);

my $service = BankedWebhooks->new(databases => 'postgres, second', conf => 'max_worker_processes = 16');
my $node = $service->node;
my $port = $service->port;
my $second_port = PostgreSQL::Test::Cluster::get_free_port();
my $number = 0;

# The databases of the setting need not exist: one line says so.
$service->allow('database "second" in banked_webhooks.databases does not exist');

sub deliver
{
	my (%options) = @_;
	return $service->post('/hook', event('event-' . ++$number, 'payment_sent'), %options);
}

sub served { return wait_until(sub { deliver() == 200 }) }

# Runs SQL and returns how long it took, in seconds.
sub duration
{
	my ($query) = @_;
	my $start = time;
	$service->sql($query);
	return time - $start;
}

$service->register('/hook');
ok(served(), 'served');

# A transaction that is rolled back changes nothing.
$service->sql("begin; drop extension banked_webhooks cascade; rollback");
is(deliver(), 200, 'DROP EXTENSION rolled back');

# Drop and create.
my $before = $service->sql('select count(*) from banked.events');
$service->sql('drop extension banked_webhooks cascade');
ok_until(sub { !can_connect($port) }, 'DROP EXTENSION closes the port');
ok_until(sub { !$service->pids('receiver') }, 'and ends the receiver');
is($service->sql('select count(*) from banked.events'), $before, 'the history stays');
is($service->sql(q(select count(*) from pg_roles where rolname like 'banked\_webhooks\_%')), 3, 'and the roles');
$service->sql('create extension banked_webhooks');
ok_until(sub { can_connect($port) }, 'created again, it is served within seconds', 5);
is(deliver(), 503, 'the keys are gone: 503');
$service->sql("select banked.rotate_signing_key('/hook', signing_key => '$KEY')");
ok(served(), 'until one is set: it goes on where it was');
is($service->sql(q(select count(*) from pg_trigger where tgname like 'banked_webhooks%' and tgrelid = 'banked.events'::regclass)),
	1, 'with its trigger');

# Restart.
$node->restart;
ok_until(sub { can_connect($port) }, 'served after a restart');
is(deliver(), 200, 'with the same key');

# A second database of the same server.
$service->sql('create database second');
$service->sql("alter database second set banked_webhooks.port = $second_port");
$service->sql('create extension banked_webhooks', 'second');
ok_until(sub { can_connect($second_port) }, 'a second database is served as soon as it has the extension');
$service->register('/second', database => 'second');

# Pause and resume; the second database shows when the launcher has done its work.
$service->sql('select banked.pause()');
ok_until(sub { !can_connect($port) }, 'pause() closes the port');
ok_until(sub { $service->sql("select count(*) from pg_stat_activity where datname = 'postgres' and backend_type like 'banked%'") == 0 },
	'and leaves the database');
$node->restart;
$service->wait_for_port($second_port);
ok(!can_connect($port), 'paused it stays after a restart');
$service->sql('select banked.resume()');
ok_until(sub { can_connect($port) }, 'resume() opens it');
is(deliver(), 200, 'and it stores');

# A port that somebody else has.
$service->sql('select banked.pause()');
$service->wait_for_port_closed;
my $squatter = IO::Socket::IP->new(LocalHost => '127.0.0.1', LocalPort => $port, Listen => 1, ReuseAddr => 1)
  or die "could not bind port $port: $!";
my $mark = $service->log_mark;
$service->allow("port $port|:$port|\"$port\"");
$service->sql('select banked.resume()');
my $line = qr/(?:LOG|WARNING):  .*\b$port\b.*/;
ok($service->wait_for_log($line, $mark), 'a port in use is reported');
# Several attempts are behind us when the second database has been stopped and started twice.
foreach (1 .. 2)
{
	$service->sql('select banked.pause()', 'second');
	$service->wait_for_port_closed($second_port);
	$service->sql('select banked.resume()', 'second');
	$service->wait_for_port($second_port);
}
my $text = $service->log_since($mark);
my $lines = () = $text =~ /$line/g;
is($lines, 1, 'in one line') or diag $text;
close $squatter;
ok(served(), 'and taken as soon as it is free');

# Settings by reload.
my $new_port = PostgreSQL::Test::Cluster::get_free_port();
$service->sql("alter system set banked_webhooks.port = $new_port");
$node->reload;
ok_until(sub { can_connect($new_port) }, 'another port by a reload');
ok_until(sub { !can_connect($port) }, 'and the old one is closed');
$service->sql('alter system reset banked_webhooks.port');
$service->sql("alter database postgres set banked_webhooks.port = $port");
$node->reload;
ok_until(sub { can_connect($port) }, "the database's own setting");
$service->sql('alter database postgres reset banked_webhooks.port');
ok(served(), 'and without it');
{
	# Changed while a receiver starts: connected, it cannot look at the service yet.
	my $locker = $service->session;
	my ($old) = $service->sql(q(select pid from pg_stat_activity where datname = 'postgres' and backend_type = 'banked_webhooks receiver'));
	my $start = $service->log_mark;
	$locker->query_safe('begin');
	$locker->query_safe('lock table banked.service_state in access exclusive mode');
	$service->allow('terminating (?:background worker|connection)');
	$service->sql("select pg_terminate_backend($old)");
	ok($service->wait_for_log(qr/receiver of webhooks: canceling statement due to lock timeout/, $start), 'a receiver starts');
	$service->sql("alter database postgres set banked_webhooks.port = $new_port");
	$locker->query_safe('commit');
	$locker->quit;
	ok_until(sub { can_connect($new_port) }, 'a setting that is changed meanwhile is followed');
	$service->sql('alter database postgres reset banked_webhooks.port');
	ok(served(), 'and its reset');
}
$service->sql('alter system set banked_webhooks.max_body_size = 1');
$node->reload;
ok_until(sub { $service->post('/hook', event('long', 'payment_sent', filler => 'x' x 2000)) == 413 }, 'a smaller max_body_size by a reload');
$service->sql('alter system reset banked_webhooks.max_body_size');
$service->sql('alter system set banked_webhooks.receivers = 2');
$node->reload;
ok_until(sub { $service->pids('receiver') == 4 }, 'two receivers for each database by a reload');
ok(served(), 'they serve');
$service->sql('alter system reset banked_webhooks.receivers');
$node->reload;
ok_until(sub { $service->pids('receiver') == 2 }, 'and one again');
ok(served(), 'which serves');

# Other databases do not notice us.
$service->sql('create database other');
{
	my $start = time;
	$service->sql('begin; alter database second rename to third; alter database postgres rename to fourth; rollback', 'other');
	ok(time - $start < 5, 'two served ones can be renamed in one transaction');
	ok_until(sub { can_connect($_) }, 'and are served again when it is rolled back') foreach $port, $second_port;
	ok(served(), 'with all they had');
}
ok(duration('drop database other') < 5, 'DROP DATABASE of another database does not wait');

# The served one can be copied, renamed and dropped.
$service->sql('create database copy template second');
ok(1, 'CREATE DATABASE ... TEMPLATE of a served database');
$service->wait_for_port($second_port);
ok_until(sub { $service->post_to($second_port, '/second', event('after-copy', 'payment_sent')) == 200 }, 'which is served again afterwards');
$service->sql('drop database copy');
$service->sql('alter database second rename to renamed');
ok_until(sub { !can_connect($second_port) }, 'renamed, it is not the served one any more');
$service->sql('alter database renamed rename to second');
ok_until(sub { can_connect($second_port) }, 'renamed back, it is');
{
	my $session = $service->session('second');
	$session->query_safe('select 1');
	$service->sql_error('drop database second');
	ok_until(sub { can_connect($second_port) }, 'a DROP DATABASE that fails lets the service come back');
	$session->quit;
}
ok(duration('drop database second') < 5, 'DROP DATABASE of a served database');
ok_until(sub { !can_connect($second_port) }, 'closes its port');
$service->sql('create database second');
$service->sql("alter database second set banked_webhooks.port = $second_port");
$service->sql('create extension banked_webhooks', 'second');
ok_until(sub { can_connect($second_port) }, 'a new one of that name is served');
ok(duration('drop database second with (force)') < 5, 'DROP DATABASE ... WITH (FORCE)');
ok_until(sub { !can_connect($second_port) }, 'closes its port too');
is(deliver(), 200, 'the first database is served all the time');

# The list of databases itself.
$service->sql("alter system set banked_webhooks.databases = ''");
$node->reload;
ok_until(sub { !can_connect($port) }, 'a database taken off the list is not served');
like($service->sql("select banked._service_warning()"), qr/banked_webhooks\.databases/, 'and the extension says what to set');
$service->sql('alter system reset banked_webhooks.databases');
$node->reload;
ok_until(sub { can_connect($port) }, 'put on again, it is');

# What ends a receiver from outside.
my ($receiver) = $service->pids('receiver');
$service->allow('terminating (?:background worker|connection)');
$service->sql("select pg_terminate_backend($receiver)");
ok_until(sub { my ($now) = $service->pids('receiver'); $now && $now != $receiver }, 'a terminated receiver is replaced');
ok(served(), 'and serves');
my ($launcher) = $service->pids('launcher');
$service->sql("select pg_terminate_backend($launcher)");
ok_until(sub { my ($now) = $service->pids('launcher'); $now && $now != $launcher }, 'a terminated launcher is replaced');
ok(served(), 'and all is served');

$service->check_log;
done_testing();
