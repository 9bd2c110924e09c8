
# Handlers and jobs in a dump: a restore brings them back, and runs nothing.

use strict;
use warnings;

use BankedWebhooks;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

my $service = BankedWebhooks->new(databases => 'postgres, restored');
my $node = $service->node;
my $directory = PostgreSQL::Test::Utils::tempdir;

$service->allow('database "restored" in banked_webhooks.databases', 'banked_webhooks starts paused');
$service->register('/hook');
$service->sql(<<'SQL');
create role shop login connection limit 0;
grant banked_webhooks_admin, banked_webhooks_reader to shop;
create schema shop authorization shop;
set role shop;
create table shop.log (event_id text);
create table shop.door (open boolean);
create function shop.handle(event banked.events) returns void language plpgsql as $$
begin
	if not exists (select from shop.door) then raise 'closed'; end if;
	insert into shop.log values (event.event_id);
end $$;
create function shop.stay(event banked.events) returns void language sql as 'select pg_sleep(3000)';
select banked.subscribe('shop', 'shop.handle(banked.events)', array['payment_sent'], max_attempts => 1);
select banked.subscribe('stay', 'shop.stay(banked.events)', array['payment_failed'], timeout => '1 h');
SQL
ok_until(sub { $service->post('/hook', event('a', 'payment_sent')) == 200 }, 'an event');
is($service->post('/hook', event('b', 'payment_failed')), 200, 'one whose handler stays');
ok_until(sub { $service->sql('select string_agg(state, $$ $$ order by handler) from banked.jobs') eq 'dead running' }, 'jobs of all kinds');
$service->sql(q{set role shop; select banked.pause_handler('shop')});
is($service->post('/hook', event('c', 'payment_sent')), 200, 'one that waits');
$service->sql(q{set role shop; select banked.alter_handler('shop', batch => 1)});

$node->command_ok([ 'pg_dump', '-Fc', '-f', "$directory/dump", $node->connstr('postgres') ], 'pg_dump');
my $port = PostgreSQL::Test::Cluster::get_free_port();
$service->sql("create database restored");
$service->sql("alter database restored set banked_webhooks.port = $port");
$node->command_ok([ 'pg_restore', '--exit-on-error', '-d', $node->connstr('restored'), "$directory/dump" ], 'pg_restore');
is($service->sql('select count(*) from banked.jobs', 'restored'), 3, 'jobs are restored');
is($service->sql('select count(*) from banked.job_attempts', 'restored'), 1, 'and attempts');
$service->sql('select banked.resume()', 'restored');
ok_until(sub { can_connect($port) }, 'resume() opens the database');
is($service->sql(q(select string_agg(handler || ' ' || state, ', ' order by handler) from banked.handlers), 'restored'), 'shop paused, stay paused', 'its handlers are paused');
is($service->sql(q(select problem from banked.handlers where handler = 'stay'), 'restored'), 'it was restored from a dump', 'and say why');
is($service->sql(q(select state || ' ' || attempts from banked.jobs where handler = 'stay'), 'restored'), 'ready 0', 'what ran when the dump was made is to run again');
is($service->sql(q(select count(*) from shop.log), 'restored'), 0, 'nothing has run');
$service->sql(q{set role shop; insert into shop.door values (true); select banked.resume_handler('shop'); select banked.retry('shop')}, 'restored');
ok_until(sub { $service->sql(q(select string_agg(event_id, ' ' order by event_id) from shop.log), 'restored') eq 'a c' }, 'resume_handler() and retry() run them');
is($service->sql(q(select count(*) from shop.log)), 0, 'in that database alone');

# The extension goes and comes back: handlers are where they were.
$service->sql(q{set role shop; insert into shop.door values (true); select banked.resume_handler('shop'); select banked.retry('shop')});
ok_until(sub { $service->sql('select count(*) from shop.log') == 2 }, 'here too');
$service->allow('terminating background worker "banked_webhooks handler');
$service->sql('drop extension banked_webhooks cascade');
ok_until(sub { $service->sql(q(select count(*) from pg_stat_activity where backend_type = 'banked_webhooks handler' and datname = 'postgres')) == 0 }, 'DROP EXTENSION ends a job, too');
$service->sql('create extension banked_webhooks');
ok_until(sub { $service->sql(q(select string_agg(state, ' ' order by handler) from banked.handlers)) eq 'active active' }, 'they are active after CREATE EXTENSION');
ok_until(sub { $service->sql(q(select attempts from banked.jobs where handler = 'stay' and state = 'running')) eq '1' }, 'and the job runs again');

# DROP DATABASE with workers in it.
$service->sql(q{alter database restored rename to restored_2});
$service->sql(q{drop database restored_2});
ok(1, 'ALTER DATABASE ... RENAME and DROP DATABASE work beside workers');
$node->stop('fast');
$service->check_log;
done_testing();
