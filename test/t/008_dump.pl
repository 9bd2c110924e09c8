
# A dump carries everything but the keys, and a restore goes on from there.

use strict;
use warnings;

use BankedWebhooks;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $service = BankedWebhooks->new(databases => 'postgres, plain, custom', conf => "banked_webhooks.master_key_file = ''");
$service->allow('signing keys are stored as they are');
my $node = $service->node;
my $directory = PostgreSQL::Test::Utils::tempdir;
my @tables = qw(endpoints signing_keys events event_revisions quarantine rejections audit_log);

$service->allow('database "(?:plain|custom)" in banked_webhooks.databases');
$service->allow('banked_webhooks starts paused');

# Something of everything, and what users add.
$service->register('/hook', description => q('the shop'));
my $unknown = 0;
ok_until(
	sub {
		my $status = $service->post('/hook', event('a', 'payment_sent'));
		$unknown++ if $status == 404;
		return $status == 200;
	},
	'an event');
is($service->post('/hook', event('a', 'payment_sent', reference => 'Other')), 200, 'a revision');
is($service->post('/hook', payload('constructed-v3-refund_pending')), 200, 'a v3 event');
is($service->post('/hook', '{broken'), 200, 'something for the quarantine');
is($service->post('/hook', event('b', 'payment_sent'), key => $OTHER_KEY), 400, 'a rejection');
# (So is that of each attempt that came before the gateway knew the path.)
ok_until(
	sub { $service->sql('select coalesce(sum(count), 0) from banked.rejections') == $unknown + 1 },
	'... which is recorded');
$service->sql(<<'SQL');
create table public.paid (event_id text);
grant insert on public.paid to banked_webhooks_worker;
create function public.mark_paid() returns trigger language plpgsql as $$
begin
	insert into public.paid values (new.event_id);
	return null;
end $$;
create trigger mark_paid after insert on banked.events for each row
	when (new.event_type = 'payment_sent') execute function public.mark_paid();
create index by_state on banked.events (state);
SQL

# Every row of a table, as text.
sub contents
{
	my ($database, $table) = @_;
	return $service->sql("select t::text from banked.$table as t order by 1", $database);
}

my %before = map { $_ => contents('postgres', $_) } @tables;
my $last_seq = $service->sql('select last_value from banked.events_seq_seq');

$node->command_ok([ 'pg_dump', '-f', "$directory/plain.sql", $node->connstr('postgres') ], 'pg_dump, plain');
$node->command_ok([ 'pg_dump', '-Fc', '-f', "$directory/custom.dump", $node->connstr('postgres') ], 'pg_dump, custom');
my $plain = slurp_file("$directory/plain.sql");
unlike($plain, qr/$KEY/, 'the dump holds no key');
unlike($plain, qr/\Q${\ unpack('H*', $KEY)}\E/, 'nor its bytes');
unlike(slurp_file("$directory/custom.dump"), qr/$KEY/, 'nor does the other');

foreach my $database (qw(plain custom))
{
	my $port = PostgreSQL::Test::Cluster::get_free_port();

	$service->sql("create database $database");
	$service->sql("alter database $database set banked_webhooks.port = $port");
	if ($database eq 'plain')
	{
		$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', "$directory/plain.sql", '-d', $node->connstr($database) ],
			"$database: restored without an error");
	}
	else
	{
		$node->command_ok([ 'pg_restore', '--exit-on-error', '-d', $node->connstr($database), "$directory/custom.dump" ],
			"$database: restored without an error");
	}

	is(contents($database, $_), $before{$_}, "$database: $_") foreach @tables;
	is($service->sql('select last_value from banked.events_seq_seq', $database), $last_seq, "$database: the sequence");
	is($service->sql(q(select count(*) from pg_indexes where indexname = 'by_state'), $database), 1, "$database: the user's index");
	is($service->sql(q(select count(*) from pg_trigger where tgrelid = 'banked.events'::regclass and not tgisinternal), $database),
		2, "$database: the user's trigger and ours");
	is($service->sql('select count(*) from banked.key_secrets', $database), 0, "$database: no keys");

	# Paused until everything is in place.
	is($service->sql('select paused from banked.service_state', $database), 't', "$database: paused");
	ok(!can_connect($port), "$database: not served");
	$service->sql('select banked.resume()', $database);
	ok_until(sub { can_connect($port) }, "$database: resume() opens it");
	is($service->post_to($port, '/hook', event('c', 'payment_sent')), 503, "$database: no key yet");
	$service->sql("select banked.rotate_signing_key('/hook', signing_key => '$OTHER_KEY')", $database);
	ok_until(sub { $service->post_to($port, '/hook', event('c', 'payment_sent'), key => $OTHER_KEY) == 200 }, "$database: with a new key it stores");
	is($service->sql('select count(*) from public.paid where event_id = $$c$$', $database), 1, "$database: the user's trigger fires");
	is($service->post_to($port, '/hook', event('a', 'payment_sent'), key => $OTHER_KEY), 200, "$database: what was there before the dump");
	is($service->sql(q(select count(*) from banked.events where event_id = 'a'), $database), 1, "$database: is known");
	is($service->sql('select count(*) from banked.event_revisions', $database), 1, "$database: and no revision");
	ok_until(sub { $service->sql('select count(*) from banked.events_since(0)', $database) == 4 }, "$database: events_since shows old and new rows");
}

$service->check_log;
done_testing();
