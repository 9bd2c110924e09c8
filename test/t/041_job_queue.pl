
# The queue itself: workers racing, order, rate, fairness, crashes, shutdowns, wake-ups.

use strict;
use warnings;

use BankedWebhooks;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $service = BankedWebhooks->new(conf => <<'CONF');
banked_webhooks.handler_workers = 4
max_worker_processes = 16
restart_after_crash = on
track_commit_timestamp = off
CONF
my $node = $service->node;

$service->register('/hook');
$service->sql(<<'SQL');
create role shop login connection limit 0;
grant banked_webhooks_admin, banked_webhooks_reader to shop;
create schema shop authorization shop;
set role shop;
create table shop.log (id serial, handler text, event_id text, resource_id text, began timestamptz, ended timestamptz);
create function shop.note(handler text, event banked.events, seconds float8) returns void language plpgsql as $$
declare began timestamptz := clock_timestamp();
begin
	perform pg_sleep(seconds);
	insert into shop.log (handler, event_id, resource_id, began, ended)
	values (handler, event.event_id, event.resource_id, began, clock_timestamp());
end $$;
SQL

sub shop { my ($sql) = @_; return $service->sql("set role shop; $sql"); }

sub handler
{
	my ($name, $seconds, $options) = @_;
	$options = $options ? ", $options" : '';
	shop(qq{create or replace function shop.$name(event banked.events) returns void language plpgsql as \$f\$ begin perform shop.note('$name', event, $seconds); end \$f\$;
		select banked.subscribe('$name', 'shop.$name(banked.events)', array['payment_$name'] $options)});
}

# One whose function waits at the gate before that, while the gate is closed; event 0 does not.
sub gated_handler
{
	my ($name, $seconds, $options) = @_;
	$options = join ', ', q(, timeout => '1 h'), $options // ();
	shop(qq{create or replace function shop.$name(event banked.events) returns void language plpgsql as \$f\$
		begin if event.event_id <> '$name-0' then perform pg_advisory_xact_lock_shared(7); end if; perform shop.note('$name', event, $seconds); end \$f\$;
		select banked.subscribe('$name', 'shop.$name(banked.events)', array['payment_$name'] $options)});
}

# The gate is closed while the session lives.
sub close_gate { my $gate = $service->session; $gate->query_safe('select pg_advisory_lock(7)'); return $gate; }

sub ok_at_gate
{
	my ($count, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok_until(sub { $service->sql(q(select count(*) from pg_stat_activity where backend_type = 'banked_webhooks handler' and wait_event = 'advisory')) >= $count }, $name);
}

sub deliver { my ($id, $name, %more) = @_; return $service->post('/hook', event($id, "payment_$name", %more)); }

# As many events at once as it takes: in the transaction of a session.
sub deliver_many
{
	my ($name, $count, $resource, $first) = @_;
	$resource //= 'i';
	$first //= 1;
	my $last = $first + $count - 1;
	$service->sql(qq{
		select count(r.status) from generate_series($first, $last) as i
			cross join lateral (select convert_to(jsonb_build_object('id', '$name-' || i, 'type', 'payment_$name', 'version', 'v3', 'data_version', 3,
				'data', jsonb_build_object('id', ($resource)::text))::text, 'UTF8') as body) as b
			cross join lateral banked.receive('/hook', banked.sign(b.body, '$KEY'), b.body) as r});
}

sub overlap
{
	my ($name) = @_;
	return $service->sql("select max(n) from (select count(*) as n from shop.log as a join shop.log as b on b.handler = a.handler and b.began <= a.began and b.ended > a.began where a.handler = '$name' group by a.id) as s");
}

# Wake-up: from the answer to the start of the function.
handler(quick => 0);
ok_until(sub { deliver('q0', 'quick') == 200 }, 'a delivery');
$service->ok_all_done(quick => 1);
my (@latencies, @answers);
foreach my $i (1 .. 40)
{
	my $sent = time;
	deliver("q$i", 'quick');
	my $answered = time;
	push @answers, 1000 * ($answered - $sent);
	wait_until(sub { $service->sql("select count(*) from shop.log where event_id = 'q$i'") });
	my $began = $service->sql("select extract(epoch from began) from shop.log where event_id = 'q$i'");
	push @latencies, 1000 * ($began - $answered);
}
@latencies = sort { $a <=> $b } @latencies;
@answers = sort { $a <=> $b } @answers;
# What a busy machine adds, it adds to deliveries too.
my $limit = $answers[20] > 2.5 ? 2 * $answers[20] : 5;
cmp_ok($latencies[20], '<', $limit, sprintf 'median from the answer to the start of the function: %.2f ms, where an answer takes %.2f ms', $latencies[20], $answers[20]);

# Nothing is due: nobody works.
ok_until(
	sub {
		my ($worker) = $service->pids('handler');
		my $switches = sub { (eval { slurp_file("/proc/$worker/status") } // '') =~ /^voluntary_ctxt_switches:\s+(\d+)/m ? $1 : undef };
		my $before = $switches->();
		$service->sql('select pg_sleep(1)');
		my $after = $switches->();
		return defined $before && defined $after && $after - $before < 3;
	},
	'an idle worker sleeps');

# Workers racing: each job once.
handler(race => 0);
deliver_many(race => 500);
$service->ok_all_done(race => 500);
is($service->sql(q(select count(*) || ' ' || count(distinct event_id) from shop.log where handler = 'race')), '500 500', 'each exactly once');
cmp_ok($service->sql(q(select count(distinct worker_pid) from banked.jobs where handler = 'race')), '>=', 1, 'by one worker or more');

# A slow handler has the workers that it may, and starves nobody.
my $gate = close_gate();
gated_handler(slow => 0.3);
# (It gets a further worker when its first one has come for the second time, and found more than it can take.)
deliver_many(slow => 12, undef, 0);
ok_at_gate(2, 'a slow handler is at work');
deliver('q100', 'quick');
ok_until(sub { $service->sql(q(select count(*) from shop.log where event_id = 'q100')) == 1 }, 'another one runs meanwhile');
handler(late => 0);
deliver('late-1', 'late');
ok_until(sub { $service->sql(q(select count(*) from shop.log where event_id = 'late-1')) == 1 }, 'and one that came later, too');
is($service->count_jobs(slow => 'done'), 1, '... while the slow one does not get on');
$gate->quit;
$service->ok_all_done(slow => 12);
cmp_ok(overlap('slow'), '>=', 2, 'more than one worker ran the slow one: ' . overlap('slow'));

# Concurrency.
handler(narrow => 0.05, 'concurrency => 1');
deliver_many(narrow => 8);
$service->ok_all_done(narrow => 8);
is(overlap('narrow'), 1, 'concurrency => 1: one at a time');

# Rate.
handler(rated => 0, 'rate => 10');
deliver_many(rated => 15);
$service->ok_all_done(rated => 15);
my $span = $service->sql(q(select extract(epoch from max(began) - min(began)) from shop.log where handler = 'rated'));
cmp_ok($span, '>=', 1.25, "rate => 10: 15 jobs take $span s");
cmp_ok($span, '<', 10, '... and not much longer');

# Order: within a resource, though some fail.
shop(q{create sequence shop.tries; create function shop.ordered(event banked.events) returns void language plpgsql as $f$
	begin
		if event.resource_id = '1' and event.event_id = 'ordered-4'
			and (nextval('shop.tries') < 3 or (select count(*) from shop.log where handler = 'ordered' and resource_id <> '1') < 20)
		then raise 'not yet'; end if;
		perform shop.note('ordered', event, 0.005 * random());
	end $f$;
	select banked.subscribe('ordered', 'shop.ordered(banked.events)', array['payment_ordered'], ordered => true, backoff => '150 ms', max_attempts => 100)});
deliver_many(ordered => 30, 'i % 3');
$service->ok_all_done(ordered => 30);
is($service->sql(q(select count(*) from (select split_part(event_id, '-', 2)::int as n, lag(split_part(event_id, '-', 2)::int) over (partition by resource_id order by began) as before from shop.log where handler = 'ordered') as s where before > n)),
	0, 'ordered: each resource in order of arrival');
is($service->sql(q(select max(began) filter (where resource_id <> '1') < min(began) filter (where event_id = 'ordered-4') from shop.log where handler = 'ordered')), 't', 'a failing one holds back its own resource alone');

# Batches: one transaction, one failure does not touch the others; an error at commit has all run alone.
shop(q{create table shop.deferred (event_id text unique deferrable initially deferred);
	create function shop.batched(event banked.events) returns void language plpgsql as $f$
	begin
		if event.event_id = 'batched-7' then raise 'not this one'; end if;
		if event.event_id in ('batched-12', 'batched-13') then insert into shop.deferred values ('same'); end if;
		perform shop.note('batched', event, 0);
	end $f$;
	select banked.subscribe('batched', 'shop.batched(banked.events)', array['payment_batched'], batch => 10, max_attempts => 1, concurrency => 1)});
shop(q{select banked.pause_handler('batched')});
deliver_many(batched => 40);
is($service->count_jobs(batched => 'ready'), 40, 'jobs wait while their handler is paused');
shop(q{select banked.resume_handler('batched')});
ok_until(sub { $service->count_jobs(batched => 'done') == 38 && $service->count_jobs(batched => 'dead') == 2 }, 'batch => 10: 38 done, 2 dead');
is($service->sql(q(select count(distinct event_id) || ' ' || count(*) from shop.log where handler = 'batched')), '38 38', 'each once');

# kill -9 in the middle of a function: the server restarts, nothing is half done, the job goes on.
$gate = close_gate();
gated_handler(killed => 0, q{backoff => '100 ms'});
deliver('killed-1', 'killed');
ok_at_gate(1, 'a job runs');
$service->allow('was terminated by signal 9', 'terminating connection because of crash', 'another server process exited abnormally', 'current transaction is aborted',
	'in the middle of its shutdown', 'the database system is (?:in recovery mode|not yet accepting connections|starting up)', 'terminating any other active');
my ($victim) = $service->sql(q(select worker_pid from banked.jobs where handler = 'killed'));
kill 'KILL', $victim;
ok_until(sub { $service->sql_if_up(q(select count(*) from banked.jobs where handler = 'killed' and state = 'done')) eq '1' }, 'its job is done after the restart');
$gate->quit;		# its connection has ended with the others
is($service->sql(q(select attempts from banked.jobs where handler = 'killed')), 2, 'in the second attempt');
is($service->sql(q(select reason from banked.job_attempts join banked.jobs using (job_id) where handler = 'killed')), 'crashed', 'the first has crashed');
is($service->sql(q(select count(*) from shop.log where handler = 'killed')), 1, 'it was done once');

# Where a worker had claimed several, nobody knows which one it was.
shop(q{create function shop.crowd(event banked.events) returns void language plpgsql as $f$
	begin
		if event.event_id = 'crowd-20' and not exists (select from banked.jobs where handler = 'crowd' and alone) then perform pg_sleep(3000); end if;
		perform shop.note('crowd', event, 0);
	end $f$;
	select banked.subscribe('crowd', 'shop.crowd(banked.events)', array['payment_crowd'], max_attempts => 1, concurrency => 1, batch => 8, timeout => '1 h')});
foreach my $count (2, 4, 8) { deliver_many(crowd => $count); $service->ok_all_done(crowd => $count); }
deliver_many(crowd => 24);
ok_until(sub { $service->sql(q(select count(*) > 1 and bool_or(event_id = 'crowd-20') from banked.jobs where handler = 'crowd' and state = 'running')) eq 't' }, 'a worker has claimed several jobs, and one of them does not end');
($victim) = $service->sql(q(select worker_pid from banked.jobs where event_id = 'crowd-20'));
kill 'KILL', $victim;
ok_until(sub { $service->sql_if_up(q(select count(*) from banked.jobs where handler = 'crowd' and state in ('done', 'dead'))) eq '24' }, 'all of them end after the restart');
is($service->count_jobs(crowd => 'dead'), 0, 'and none has lost its only attempt');

# A shutdown does not count.
$gate = close_gate();
gated_handler(patient => 0);
deliver('patient-1', 'patient');
ok_at_gate(1, 'a job runs');
$service->allow('terminating background worker "banked_webhooks handler', 'terminating connection due to administrator command');
$node->stop('fast');
$node->start;
$service->wait_for_port;
$gate->quit;
$service->ok_all_done(patient => 1);
is($service->sql(q(select attempts from banked.jobs where handler = 'patient')), 1, 'a fast shutdown in the middle of a job does not count');
is($service->sql(q(select count(*) from banked.job_attempts join banked.jobs using (job_id) where handler = 'patient')), 0, 'no failed attempt');

# pause() ends workers, a job included, and that does not count either.
$gate = close_gate();
deliver('patient-2', 'patient');
ok_at_gate(1, 'a job runs');
$service->sql('select banked.pause()');
ok_until(sub { !$service->pids('handler') }, 'pause() ends the handlers');
$gate->quit;
$service->sql('select banked.resume()');
$service->ok_all_done(patient => 2);
is($service->sql(q(select max(attempts) from banked.jobs where handler = 'patient')), 1, 'which does not count');

# The launcher is replaced: its workers end with it, and that does not count.
$gate = close_gate();
deliver('patient-3', 'patient');
ok_at_gate(1, 'a job runs');
my ($launcher) = $service->pids('launcher');
my ($worker) = $service->sql(q(select worker_pid from banked.jobs where handler = 'patient' and state = 'running'));
$service->sql("select pg_terminate_backend($launcher)");
ok_until(sub { !-e "/proc/$worker" }, 'the worker ends with the launcher');
$gate->quit;
$service->ok_all_done(patient => 3);
is($service->sql(q(select max(attempts) from banked.jobs where handler = 'patient')), 1, 'the end of the launcher does not count');

# One worker for all handlers: they take turns.
$service->sql(q(alter system set banked_webhooks.handler_workers = 1));
$node->reload;
ok_until(sub { (() = $service->pids('handler')) <= 1 }, 'handler_workers = 1: the others end');
handler(much => 0.3);
handler(little => 0);
shop(q{select banked.pause_handler('much'), banked.pause_handler('little')});
deliver_many(much => 8);
deliver_many(little => 2);
shop(q{select banked.resume_handler('much'), banked.resume_handler('little')});
$service->ok_all_done(much => 8);
$service->ok_all_done(little => 2);
is($service->sql(q(select (select min(began) from shop.log where handler = 'little') < (select max(began) from shop.log where handler = 'much'))), 't',
	'handler_workers = 1: a long queue does not keep the worker');
cmp_ok(scalar(() = $service->pids('handler')), '<=', 1, 'there is one worker');
$service->sql(q(alter system reset banked_webhooks.handler_workers));
$node->reload;

# A reload reaches a worker that has no pause.
shop(q{create table shop.setting (value text);
	create function shop.reloaded(event banked.events) returns void language plpgsql as $$
	begin perform pg_sleep(0.01); insert into shop.setting values (current_setting('work_mem')); end $$;
	select banked.subscribe('reloaded', 'shop.reloaded(banked.events)', array['payment_reloaded'], concurrency => 1)});
$service->sql(q(alter system set work_mem = '5MB'));
deliver_many(reloaded => 600);
ok_until(sub { $service->sql('select count(*) from shop.setting') > 0 }, 'a worker is at work on a long queue');
$node->reload;
ok_until(sub { $service->sql(q(select count(*) from shop.setting where value = '5MB')) > 0 }, 'a reload reaches it');
cmp_ok($service->count_jobs('reloaded', 'ready'), '>', 0, 'in the middle of the queue');
$service->ok_all_done(reloaded => 600, 60);
$service->sql('alter system reset work_mem');
$node->reload;

# Commands that need the database for themselves.
$service->sql('create database elsewhere');
is($service->sql('create database copy template postgres; drop database copy', 'elsewhere') // '', '', 'CREATE DATABASE ... TEMPLATE works beside workers');
ok_until(sub { $service->pids('handler') }, 'and they come back');

# The server has places for two workers, whatever handler_workers says: handlers take turns.
$service->allow('no background worker is free for handlers of webhooks');
$node->append_conf('postgresql.conf', 'max_worker_processes = 5');
$node->restart;
$service->wait_for_port;
deliver_many($_ => 5, undef, 10_001) foreach qw(quick much little reloaded);
ok_until(
	sub { $service->sql(q(select count(*) from banked.jobs where state in ('ready', 'running') and handler in ('quick', 'much', 'little', 'reloaded'))) == 0 },
	'four handlers with jobs on a server that has places for two of their workers', 60)
  or diag $service->sql('select * from banked.handler_status');
cmp_ok(scalar(() = $service->pids('handler')), '<=', 2, 'there are no more of them');

# Retention.
$service->sql(q(alter system set banked_webhooks.job_retention = -1));
$node->reload;
deliver('q200', 'quick');
ok_until(sub { $service->sql(q(select count(*) from banked.jobs where event_id = 'q200' and state = 'done')) == 1 }, 'jobs that are done are kept for ever');
$service->sql(q(alter system set banked_webhooks.job_retention = '1s'));
$node->reload;
ok_until(sub { $service->sql(q(select count(*) from banked.jobs where state = 'done')) == 0 }, 'jobs that are done are removed after their time');
cmp_ok($service->sql(q(select count(*) from banked.jobs)), '>', 0, 'dead ones stay');

# DROP EXTENSION.
$service->sql('drop extension banked_webhooks cascade');
ok_until(sub { !$service->pids('handler') }, 'DROP EXTENSION ends the workers');
is($service->sql(q(select count(*) > 0 from banked.handlers)), 't', 'and keeps the handlers');

$service->check_log;
done_testing();
