
# Handlers over real deliveries: what a function may do, and what becomes of its job.

use strict;
use warnings;

use BankedWebhooks;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

my $service = BankedWebhooks->new(conf => <<'CONF');
banked_webhooks.handler_workers = 6
max_worker_processes = 16
deadlock_timeout = 100ms
CONF
my $node = $service->node;

$service->register('/hook');
$service->sql(<<'SQL');
create role shop login connection limit 0;
grant banked_webhooks_admin, banked_webhooks_reader to shop;
create role shop_boss nologin;
grant shop_boss to shop;
alter role shop set application_name = 'the shop';
alter role shop set statement_timeout = '1h';
create schema shop authorization shop;
set role shop;
create table shop.log (id serial, handler text, event_id text, at timestamptz default clock_timestamp(), more text);
grant insert on shop.log to public;
SQL

# SQL as the role whose handlers these are.
sub shop { my ($sql) = @_; return $service->sql("set role shop; $sql"); }

# A handler with a function of this body, for events whose type is its own.
sub handler
{
	my ($name, $body, $options) = @_;
	$options = $options ? ", $options" : '';
	$body = "begin $body end" unless $body =~ /^\s*declare/;
	shop(qq{create or replace function shop.$name(event banked.events) returns void language plpgsql as \$f\$ $body \$f\$;
		select banked.subscribe('$name', 'shop.$name(banked.events)', array['payment_$name'] $options)});
}

sub deliver { my ($id, $name, %more) = @_; return $service->post('/hook', event($id, "payment_$name", %more)); }

sub job
{
	my ($id, $columns) = @_;
	$columns //= 'state';
	return $service->sql("select $columns from banked.jobs where event_id = '$id' order by job_id desc limit 1");
}

sub ok_state
{
	my ($id, $state, $name, $limit) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok_until(sub { job($id) eq $state }, $name // "$id is $state", $limit) or diag job($id, 'jobs');
	return;
}

sub attempts
{
	my ($id) = @_;
	return $service->sql("select string_agg(concat_ws(' ', reason, sqlstate), ',' order by job_attempts.finished_at) from banked.job_attempts join banked.jobs using (job_id) where event_id = '$id'");
}

# Success: the role, its settings, the row.
handler(good => q{
	insert into shop.log (handler, event_id, more) values ('good', event.event_id,
		concat_ws(' ', session_user, current_user, current_setting('application_name'), event.payload ->> 'currency', event.state)); });
ok_until(sub { deliver('g1', 'good') == 200 }, 'a delivery');
ok_state('g1', 'done');
is($service->sql(q(select more from shop.log where event_id = 'g1')), 'shop shop the shop GBP good', 'it ran as its role, with its settings');
is(job('g1', 'attempts'), 1, 'in one attempt');
is(deliver('g2', 'other'), 200, 'an event of another type');
is(job('g2', 'count(*) over ()'), '', 'makes no job');
is($service->post('/hook', event('g1', 'payment_good', reference => 'changed')), 200, 'a revision');
is($service->sql(q(select count(*) from banked.jobs where event_id = 'g1')), 1, 'makes none either');

# Failing, then mended: what it did is rolled back, and the error kept.
handler(broken => q{
	insert into shop.log (handler, event_id) values ('broken', event.event_id);
	raise exception 'no such customer' using errcode = '23503', detail = 'The customer is nobody.'; }, q{backoff => '20 ms', max_attempts => 3});
my $listener = $service->session;
$listener->query_safe('listen banked_webhooks');
is(deliver('b1', 'broken'), 200, 'a delivery that the handler fails for');
ok_state('b1', 'dead');
is(attempts('b1'), 'error 23503,error 23503,error 23503', 'each attempt is on record');
is($service->sql(q(select message || '/' || detail || '/' || (context like '%shop.broken%') from banked.job_attempts join banked.jobs using (job_id) where event_id = 'b1' limit 1)),
	'no such customer/The customer is nobody./true', 'with the error');
is($service->sql(q(select count(*) from shop.log where event_id = 'b1')), 0, 'nothing that it did is left');
is($service->sql(q(select bool_and(pause >= interval '20 ms' * 2 ^ n) from
	(select a.started_at - lag(a.finished_at) over w as pause, row_number() over w - 2 as n
	 from banked.job_attempts a join banked.jobs j using (job_id) where event_id = 'b1' window w as (order by a.finished_at)) as p where pause is not null)),
	't', 'the pause doubles');
my $heard = '';
ok_until(
	sub {
		$heard .= $listener->query_safe('select 1');
		return $heard =~ /Asynchronous notification "banked_webhooks" with payload "\{"job":\d+,"handler":"broken","event_id":"b1","event_type":"payment_broken"\}"/;
	},
	'a dead job is notified');
ok($service->wait_for_log(qr/job \d+ of handler "broken" is dead after 3 attempts \(error, SQLSTATE 23503\)/), 'the log says that it is dead');
unlike($service->log_since, qr/no such customer|The customer is nobody/, 'but not why: that may quote a body');
shop(q{create or replace function shop.broken(event banked.events) returns void language sql as $f$ insert into shop.log (handler, event_id) values ('mended', event.event_id) $f$});
is(shop(q{select banked.retry('broken')}), 1, 'retry() revives it');
ok_state('b1', 'done');
is($service->sql(q(select handler from shop.log where event_id = 'b1')), 'mended', 'the mended function has run');

# Time.
handler(slow => q{ perform pg_sleep(10); }, q{timeout => '100 ms', max_attempts => 1});
handler(stubborn => q{ loop begin perform pg_sleep(10); exception when query_canceled then null; end; end loop; }, q{timeout => '100 ms', max_attempts => 1});
handler(loops => q{ loop null; end loop; }, q{timeout => '100 ms', max_attempts => 1});
is(deliver($_ . '1', $_), 200, "a delivery for $_") foreach qw(slow stubborn loops);
ok_state('slow1', 'dead');
is(attempts('slow1'), 'timeout 57014', 'a timeout is told apart');
ok_until(sub { $service->stat('job_seconds', { handler => 'slow' }) >= 0.1 }, 'and its time is counted');
ok_state('loops1', 'dead');
is(attempts('loops1'), 'timeout 57014', 'an endless loop too');
ok_state('stubborn1', 'dead', 'one that catches its cancellation ends with its process');
like(attempts('stubborn1'), qr/^timeout/, '... as a timeout');
$service->allow('terminating background worker "banked_webhooks handler');
handler(cancelled => q{ perform pg_sleep(3000); }, q{max_attempts => 1, timeout => '1 h'});
is(deliver('cancelled1', 'cancelled'), 200, 'a delivery for a handler that is cancelled');
ok_state('cancelled1', 'running');
ok_until(sub { $service->sql(q(select pg_cancel_backend(pid) from pg_stat_activity where query like 'running job % of handler "cancelled"')) eq 't' }, 'pg_cancel_backend');
ok_state('cancelled1', 'dead');
is(attempts('cancelled1'), 'cancelled 57014', 'a cancelled attempt is told apart');

# It ends its own process.
handler(suicide => q{ insert into shop.log (handler) values ('suicide'); perform pg_terminate_backend(pg_backend_pid()); perform pg_sleep(1); }, q{backoff => '20 ms', max_attempts => 2});
is(deliver('s1', 'suicide'), 200, 'a delivery for one that ends its process');
ok_state('s1', 'dead', 'it dies of it');
is(attempts('s1'), 'crashed,crashed', '... after each of its attempts');
is($service->sql(q(select count(*) from shop.log where handler = 'suicide')), 0, 'and leaves nothing');
is(deliver('g3', 'good'), 200, 'others go on');
ok_state('g3', 'done');

# What it leaves behind in the session.
handler(dirty => q{
	declare
		c refcursor := 'held';
	begin
	insert into shop.log (handler, event_id, more) values ('dirty', event.event_id, concat_ws('/', current_user, current_setting('work_mem'),
		to_regclass('pg_temp.scratch'), (select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()),
		(select count(*) from pg_cursors where name = 'held' or is_holdable), (select count(*) from pg_prepared_statements where from_sql), nullif(current_setting('shop.x', true), '')));
	create temp table scratch (a int);
	insert into scratch values (1);
	perform pg_advisory_lock(42);
	open c for select 1;
	execute 'declare stays cursor with hold for select 1';
	execute 'prepare leftover as select 1';
	perform set_config('work_mem', '77MB', false);
	perform set_config('shop.x', 'secret', false);
	execute 'set role shop_boss';
	notify shop_channel;
	end; }, q{concurrency => 1});
is(deliver("d$_", 'dirty'), 200, "a delivery for one that leaves things behind") foreach 1 .. 3;
ok_state("d$_", 'done') foreach 1 .. 3;
is($service->sql(q(select count(distinct more) from shop.log where handler = 'dirty')), 1, 'no job finds what another one left')
  or diag $service->sql(q(select more from shop.log where handler = 'dirty'));
like($service->sql(q(select more from shop.log where event_id = 'd3')), qr{^shop/4MB/0/0/0}, 'nothing at all');

# A constraint that fails at commit.
shop(q{create table shop.parents (a int primary key); create table shop.children (a int references shop.parents deferrable initially deferred)});
handler(deferred => q{ insert into shop.children values (1); }, q{backoff => '20 ms', max_attempts => 2});
is(deliver('c1', 'deferred'), 200, 'a delivery for one that violates a deferred constraint');
ok_state('c1', 'dead');
is(attempts('c1'), 'error 23503,error 23503', 'the error at commit is the attempt\'s');
shop(q{insert into shop.parents values (1); select banked.retry(sqlstate => '23503')});
ok_state('c1', 'done', 'retry() by SQLSTATE');

# Two handlers that lock in opposite order.
shop(q{create table shop.accounts (id int primary key, n int default 0); insert into shop.accounts values (1), (2)});
handler(left => q{ update shop.accounts set n = n + 1 where id = 1; perform pg_sleep(0.05); update shop.accounts set n = n + 1 where id = 2; }, q{backoff => '5 ms', max_attempts => 100});
handler(right => q{ update shop.accounts set n = n + 1 where id = 2; perform pg_sleep(0.05); update shop.accounts set n = n + 1 where id = 1; }, q{backoff => '5 ms', max_attempts => 100});
foreach my $i (1 .. 5) { deliver("left$i", 'left'); deliver("right$i", 'right'); }
ok_until(sub { $service->sql(q(select count(*) from banked.jobs where handler in ('left', 'right') and state = 'done')) == 10 }, 'handlers that deadlock get through');
is($service->sql(q(select string_agg(n::text, ' ') from shop.accounts)), '10 10', 'each exactly once');

# A dropped function: dead at once, with a reason, and not again and again.
handler(vanishing => q{ null; });
shop(q{drop function shop.vanishing(banked.events)});
is(deliver('v1', 'vanishing'), 200, 'a delivery for a function that is gone');
ok_state('v1', 'dead');
is(job('v1', 'attempts'), 1, 'at the first attempt');
is($service->sql(q(select message from banked.job_attempts join banked.jobs using (job_id) where event_id = 'v1')), 'function shop.vanishing(banked.events) does not exist', 'with the reason');
shop(q{create function shop.vanishing(event banked.events) returns void language sql as 'select'; select banked.retry('vanishing')});
ok_state('v1', 'done', 'when it is there again, retry() helps');

# A dropped role.
$service->sql(q{create role guest login; grant banked_webhooks_admin, banked_webhooks_reader to guest;
	create function public.guests(event banked.events) returns void language plpgsql as $$ begin raise 'no'; end $$;
	set role guest; select banked.subscribe('guests', 'public.guests(banked.events)', array['payment_guests'], backoff => '1 h'); select banked.pause_handler('guests')});
is(deliver('r1', 'guests'), 200, 'a delivery for the handler of a guest');
is(deliver('r2', 'guests'), 200, 'and another one');
$service->sql(q{select banked.resume_handler('guests')});
ok_until(sub { attempts('r1') eq 'error P0001' && attempts('r2') eq 'error P0001' }, 'which fail');
$listener->query_safe('select 1');
$service->sql(q{drop role guest});
ok_state('r1', 'dead', 'its job is dead when the role is dropped');
$heard = '';
ok_until(
	sub {
		$heard .= $listener->query_safe('select 1');
		return 2 == grep { $heard =~ /"banked_webhooks" with payload "\{"job":\d+,"handler":"guests","event_id":"$_","event_type":"payment_guests"\}"/ } qw(r1 r2);
	},
	'which is notified, for each of them');
ok_until(sub { $service->stat('jobs', { handler => 'guests', outcome => 'dead' }) == 2 }, 'and counted');
like($service->sql(q(select problem from banked.handlers where handler = 'guests')), qr/role "guest" does not exist/, 'and the handler says why');
like($service->sql_error(q{select banked.resume_handler('guests')}), qr/55000/, 'it cannot be resumed');
is(() = $service->log_since =~ /handler "guests" is paused/g, 1, 'one line in the log');

# A role that becomes a superuser, or loses LOGIN.
$service->sql('alter role shop nologin');
ok_until(sub { $service->sql(q(select count(*) from banked.handlers where state = 'paused' and problem like '%no LOGIN%')) > 5 }, 'a role without LOGIN: its handlers are paused');
$service->sql('alter role shop login');
$service->sql(q(select count(banked.resume_handler(handler)) from banked.handlers where problem like '%LOGIN%'));
is(deliver('g4', 'good'), 200, 'resumed');
ok_state('g4', 'done');

# What people and monitoring see.
is($service->sql(q(select dead || ' ' || ready || ' ' || running from banked.handler_status where handler = 'slow')), '1 0 0', 'handler_status');
is($service->sql(q(select handler || ' ' || state || ' ' || attempts || ' ' || sqlstate from banked.event_jobs where event_id = 'slow1')), 'slow dead 1 57014', 'event_jobs');
ok_until(sub { $service->stat('jobs', { handler => 'good', outcome => 'done' }) >= 3 }, 'stats: done');
ok_until(sub { $service->stat('jobs', { handler => 'suicide', outcome => 'crashed' }) == 2 }, 'stats: crashed');

$service->check_log;
done_testing();
