
# A new version of the extension, and a new cluster by pg_upgrade: the history, the
# keys and the service go along.

use strict;
use warnings;

use BankedWebhooks;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my @tables = qw(endpoints signing_keys key_secrets events event_revisions quarantine audit_log);

# A copy of the installation, to which a newer version is added.
my $stage = slurp_file($ENV{TEMP_CONFIG}) =~ /^extension_destdir = '(.*)'/m ? $1 : die 'no extension_destdir';
my $copy = PostgreSQL::Test::Utils::tempdir . '/stage';
my ($sharedir) = run_command([ 'pg_config', '--sharedir' ]);
my ($libdir) = run_command([ 'pg_config', '--pkglibdir' ]);
my $conf = "extension_destdir = '$copy'\ndynamic_library_path = '$copy$libdir:\$libdir'\n";
PostgreSQL::Test::Utils::system_or_bail('cp', '-R', $stage, $copy);
append_to_file("$copy$sharedir/extension/banked_webhooks--1.0--1.0.1.sql", <<'SQL');
\echo Use "ALTER EXTENSION banked_webhooks UPDATE" to load this file. \quit
CREATE FUNCTION banked._added_in_101() RETURNS int LANGUAGE sql IMMUTABLE AS 'SELECT 101';
-- as a version would that brings another table, or repairs one
DROP TRIGGER banked_webhooks_notify ON banked.events;
SELECT banked.create_tables();
SQL

my $old = BankedWebhooks->new(name => 'old', conf => $conf);
my $node = $old->node;
$old->register('/hook');
ok_until(sub { $old->post('/hook', event('a', 'payment_sent')) == 200 }, 'served');
is($old->post('/hook', event('a', 'payment_sent', reference => 'Other')), 200, 'a revision');
is($old->post('/hook', payload('constructed-v3-refund_pending')), 200, 'a v3 event');
is($old->post('/hook', '{broken'), 200, 'something for the quarantine');
$old->sql(<<'SQL');
create table public.seen (event_id text);
grant insert on public.seen to banked_webhooks_worker;
create function public.see() returns trigger language plpgsql as $$
begin insert into public.seen values (new.event_id); return null; end $$;
create trigger see after insert on banked.events for each row execute function public.see();
SQL

sub contents
{
	my ($service, $table) = @_;
	return $service->sql("select t::text from banked.$table as t order by 1");
}

# ALTER EXTENSION.
{
	my %before = map { $_ => contents($old, $_) } @tables;
	$old->sql(q(alter extension banked_webhooks update to '1.0.1'));
	is($old->sql(q(select extversion from pg_extension where extname = 'banked_webhooks')), '1.0.1', 'updated');
	is($old->sql('select banked._added_in_101()'), 101, 'to what the script says');
	is(contents($old, $_), $before{$_}, "$_ is as before") foreach @tables;
	is($old->sql(q(select count(*) from pg_trigger where tgrelid = 'banked.events'::regclass and tgname = 'banked_webhooks_notify')), 1,
		'create_tables() puts our trigger back');
	is( $old->sql(
			q(select count(*) from pg_depend d join pg_class c on c.oid = d.objid join pg_namespace n on n.oid = c.relnamespace
			where d.classid = 'pg_class'::regclass and d.deptype = 'e' and n.nspname = 'banked' and c.relname in ('events', 'event_revisions', 'endpoints', 'history'))
		),
		0,
		'the history has not become a member');
	ok_until(sub { $old->post('/hook', event('b', 'payment_sent')) == 200 }, 'the service goes on');
	is($old->sql(q(select count(*) from public.seen where event_id = 'b')), 1, "the user's trigger too");
	like($old->sql_error('alter extension banked_webhooks set schema public'), qr/0A000/, 'it stays in its schema');
	$old->sql('begin; drop extension banked_webhooks cascade; rollback');
	is($old->post('/hook', event('c', 'payment_sent')), 200, 'and what is rolled back changes nothing');
}

# pg_upgrade.
{
	my $new = BankedWebhooks->new(name => 'new', start => 0, conf => $conf);
	my %before = map { $_ => contents($old, $_) } @tables;
	my $since = $old->sql('select string_agg(event_id || seq, chr(32) order by seq) from banked.events_since(0)');
	my $last = $old->sql('select last_value from banked.events_seq_seq');
	my ($bindir) = run_command([ 'pg_config', '--bindir' ]);

	$node->stop;
	my $directory = PostgreSQL::Test::Utils::tempdir;
	chdir $directory or die "could not enter \"$directory\": $!";
	my @upgrade = (
		'pg_upgrade', '--no-sync',
		'-d', $node->data_dir, '-D', $new->node->data_dir,
		'-b', $bindir, '-B', $bindir,
		'-s', $new->node->host, '-p', $node->port, '-P', $new->node->port);
	command_ok([ @upgrade, '--check' ], 'pg_upgrade --check');
	command_ok(\@upgrade, 'pg_upgrade');
	chdir '/';

	# While it runs, nobody may be served.
	my @logs = map { slurp_file($_) } glob $new->node->data_dir . '/pg_upgrade_output.d/*/log/*.log';
	unlike(join('', @logs), qr/receiving webhooks on/, 'no port was opened meanwhile');

	$new->node->start;
	ok_until(sub { can_connect($new->port) }, 'the new cluster is served, without being told');
	is(contents($new, $_), $before{$_}, "$_ came along") foreach @tables;
	is($new->sql('select last_value from banked.events_seq_seq'), $last, 'the sequence');
	is($new->sql('select extversion from pg_extension where extname = $$banked_webhooks$$'), '1.0.1', 'the version');
	is($new->post('/hook', event('d', 'payment_sent')), 200, 'a new event, under the same key');
	is($new->sql(q(select count(*) from public.seen where event_id = 'd')), 1, "the user's trigger");
	is($new->post('/hook', event('b', 'payment_sent')), 200, 'an old one');
	is($new->sql('select count(*) from banked.events'), 5, 'is known');
	ok_until(
		sub {
			$new->sql('select string_agg(event_id || seq, chr(32) order by seq) from banked.events_since(0)') =~ /^\Q$since\E d\d+$/;
		},
		'events_since goes on');
	is($new->sql(q(select banked.verify_event('a', 'payment_sent'))), 't', 'the proof of an old event');
	$new->sql('drop extension banked_webhooks cascade');
	is($new->sql('select count(*) from banked.events'), 5, 'and the history still outlives the extension');
	$new->check_log;
}

$old->check_log;
done_testing();
