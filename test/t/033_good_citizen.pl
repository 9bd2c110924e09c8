
# The server's own means see us, bound us and rule us as they do everything else.

use strict;
use warnings;

use BankedWebhooks;
use PostgreSQL::Test::Cluster;
use Test::More;

my $service = BankedWebhooks->new(
	databases => 'postgres, second',
	extension => 0,
	conf      => <<'CONF');
max_worker_processes = 2
autovacuum_naptime = 1s
autovacuum_vacuum_insert_threshold = 100
autovacuum_vacuum_insert_scale_factor = 0
autovacuum_analyze_threshold = 100
banked_webhooks.store_lock_timeout = 60s
banked_webhooks.store_timeout = 100s
CONF
my $node = $service->node;
my $port = $service->port;
my $second_port = PostgreSQL::Test::Cluster::get_free_port();
$service->allow('database "second" in banked_webhooks.databases does not exist');
$service->allow('FATAL:  database \d+ does not exist');	# autovacuum's, of one that was just dropped

# One worker belongs to PostgreSQL's logical replication, one to the launcher: none is left.
{
	my $message = qr/WARNING:  no background worker is free for receiving webhooks/;
	$service->allow($message);
	$service->sql('create extension banked_webhooks');
	my $text = $service->wait_for_log($message, 0);
	ok($text, 'too few worker processes: the log says so');
	like($text // '', qr/HINT:  Increase max_worker_processes \(currently 2\)/, 'and what to do');
	foreach my $number (1 .. 3)
	{
		my $mark = $service->log_mark;
		$node->reload;
		$service->wait_for_log(qr/received SIGHUP/, $mark);
		$service->sql("alter database postgres set banked_webhooks.port = $port");
		$service->sql('select pg_sleep(0.2)');
	}
	my $count = () = $service->log_since =~ /$message/g;
	is($count, 1, 'once, however often there is a reason to look again');
	$node->append_conf('postgresql.conf', 'max_worker_processes = 8');
	$node->restart;
	$service->wait_for_port;
	ok(1, 'with more of them it is served');
	$service->sql('alter database postgres reset banked_webhooks.port');
}
$service->register('/hook');
ok_until(sub { $service->post('/hook', event('first', 'payment_sent')) == 200 }, 'and stores');

# Even the launcher has no place: PostgreSQL's own message, and a server that works.
{
	$node->append_conf('postgresql.conf', 'max_worker_processes = 1');
	my $mark = $service->log_mark;
	$node->restart;
	my $count = () = $service->log_since($mark) =~ /too many background workers/g;
	is($count, 1, 'no place for the launcher: one line');
	is($service->sql('select 1'), 1, 'and the server works');
	ok(!can_connect($port), 'without us');
	$node->append_conf('postgresql.conf', 'max_worker_processes = 8');
	$node->restart;
	$service->wait_for_port;
}

# What pg_stat_activity shows.
sub activity
{
	my ($kind, $columns) = @_;
	return $service->sql("select $columns from pg_stat_activity where backend_type = 'banked_webhooks $kind'");
}
ok_until(sub { activity('receiver', 'state') eq 'idle' }, 'pg_stat_activity: a receiver without work is idle');
# (It wakes up several times a second, and may be seen at that.)
ok_until(sub { activity('receiver', 'datname, usename, wait_event_type, wait_event') eq 'postgres|banked_webhooks_worker|Extension|Extension' },
	'in its database, as its role, waiting');
is(activity('receiver', 'application_name'), 'banked_webhooks receiver', 'with a name');
ok_until(sub { activity('receiver', 'backend_xmin is null and backend_xid is null and xact_start is null') eq 't' }, 'in no transaction');
ok_until(sub { activity('launcher', 'datname is null, application_name, wait_event_type, wait_event') eq 't|banked_webhooks launcher|Extension|Extension' },
	'the launcher waits too');
{
	my $locker = $service->session;
	$locker->query_safe('begin');
	$locker->query_safe('lock table banked.events in access exclusive mode');
	my $connection = $service->connect;
	$connection->send(request('/hook', event('locked', 'payment_sent')));
	ok_until(sub { activity('receiver', 'state, query, wait_event_type, wait_event') eq 'active|storing webhooks|Lock|relation' },
		'what a batch waits for');
	$locker->query_safe('rollback');
	$locker->quit;
	is(($connection->receive // {})->{status}, 200, 'and then is done');
}

# Two databases on one port.
{
	my $mark = $service->log_mark;
	my $owner = $service->sql(q(select oid from pg_database where datname = 'postgres'));
	my $line = qr/LOG:  cannot receive webhooks: port $port is used for webhooks of the database/;
	$service->sql('create database second');
	$service->sql('create extension banked_webhooks', 'second');
	my $text = $service->wait_for_log($line, $mark);
	ok($text, 'a second database on the same port: the log says so');
	like($text // '', qr/database (?:with OID $owner|"postgres")/, 'and which database has it');
	is($service->post('/hook', event('shared', 'payment_sent')), 200, 'the first goes on');
	my $attempts = $service->log_mark;
	$service->register('/second', database => 'second');
	$service->sql('select pg_sleep(2.5)');
	my $count = () = $service->log_since($mark) =~ /$line/g;
	is($count, 1, 'in one line, however often it is tried');
	$service->sql('select banked.pause()');
	ok_until(sub { $service->post('/second', event('second', 'payment_sent')) == 200 }, 'once the first is paused the second takes the port');
	$service->sql("alter database second set banked_webhooks.port = $second_port");
	ok_until(sub { can_connect($second_port) }, 'with a port of its own');
	$service->sql('select banked.resume()');
	$service->wait_for_port;
	ok_until(sub { $service->post('/hook', event('own-port', 'payment_sent')) == 200 }, 'both are served');
	is($service->post_to($second_port, '/second', event('own-port', 'payment_sent')), 200, 'each on its own');
	$service->sql('drop database second');
}

# Settings are the administrator's.
$service->sql('create role somebody login createdb');
$service->sql('create database own owner somebody');
foreach my $setting (split /\n/, $service->sql(q(select name || ' ' || setting from pg_settings where name like 'banked\_webhooks.%' order by name)))
{
	my ($name, $value) = split / /, $setting, 2;
	like($service->sql_error("set role somebody; set $name = '$value'"), qr/42501|55P02/, "$name: not for everybody");
}
foreach my $command ('alter database own', 'alter role somebody', 'alter role somebody in database own')
{
	like($service->sql_error("set session authorization somebody; $command set banked_webhooks.port = 1"), qr/42501/, "nor by $command");
}
like($service->sql_error(q(set session authorization somebody; alter system set banked_webhooks.databases = 'own')), qr/42501/, 'nor by alter system');

# Autovacuum sees what comes.
{
	my @lists = map { my $list = $_; [ map { request('/hook', event("many-$list-$_", 'payment_sent')) } 1 .. 30 ] } 1 .. 10;
	is(tally(exchange_all($port, @lists)), '200: 300', 'three hundred events');
	ok_until(sub { $service->sql(q(select autovacuum_count > 0 from pg_stat_all_tables where relid = 'banked.events'::regclass)) eq 't' },
		'are vacuumed by autovacuum');
	ok_until(sub { $service->sql(q(select autoanalyze_count > 0 from pg_stat_all_tables where relid = 'banked.events'::regclass)) eq 't' },
		'and analysed');
	ok($service->sql(q(select reltuples from pg_class where oid = 'banked.events'::regclass)) > 0, 'so that the planner knows them');
}

$service->check_log;
done_testing();
