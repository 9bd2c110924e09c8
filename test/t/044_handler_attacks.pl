
# Handlers of users who make mistakes, or worse, and operators in trouble.

use strict;
use warnings;

use BankedWebhooks;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $service = BankedWebhooks->new(conf => <<'CONF');
banked_webhooks.handler_workers = 8
max_worker_processes = 20
max_prepared_transactions = 5
CONF
my $node = $service->node;

$service->register('/hook');
$service->sql(<<'SQL');
create role shop login connection limit 0;
create role other login connection limit 0;
grant banked_webhooks_admin, banked_webhooks_reader to shop, other;
create schema shop authorization shop;
set role shop;
grant usage on schema shop to public;
create table shop.log (id serial, handler text, event_id text, resource_id text, began timestamptz, ended timestamptz default clock_timestamp(), more text);
grant all on shop.log, shop.log_id_seq to public;
SQL

sub shop { my ($sql) = @_; return $service->sql("set role shop; $sql"); }

# A handler with a function of this body, for events whose type is its own.
sub handler
{
	my ($name, $body, $options) = @_;
	$options = $options ? ", $options" : '';
	shop(qq{create or replace function shop.$name(event banked.events) returns void language plpgsql as \$f\$
			declare began timestamptz := clock_timestamp();
			begin $body end \$f\$;
		select banked.subscribe('$name', 'shop.$name(banked.events)', array['payment_$name'] $options)});
}

# Events NAME-FIRST and following, in the transaction of a session; of one resource each unless said.
sub deliver
{
	my ($name, %more) = @_;
	my $first = $more{first} // 1;
	my $last = $first + ($more{count} // 1) - 1;
	my $resource = $more{resource} // 'i::text';
	my $reference = $more{reference} // '';
	my $query = qq{
		select count(r.status) from generate_series($first, $last) as i
			cross join lateral (select convert_to(jsonb_build_object('id', '$name-' || i, 'type', 'payment_$name', 'version', 'v3', 'data_version', 3,
				'data', jsonb_build_object('id', $resource, 'reference', '$reference'))::text, 'UTF8') as body) as b
			cross join lateral banked.receive('/hook', banked.sign(b.body, '$KEY'), b.body) as r};
	return $service->sql($query, $more{database});
}

sub ok_state
{
	my ($id, $state, $name, $limit) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $job = sub { $service->sql("select $_[0] from banked.jobs where event_id = '$id' order by job_id desc limit 1") };
	ok_until(sub { $job->('state') eq $state }, $name // "$id is $state", $limit) or diag $job->('jobs');
	return;
}

sub attempts
{
	my ($id) = @_;
	return $service->sql("select string_agg(concat_ws(' ', reason, sqlstate), ',' order by job_attempts.finished_at) from banked.job_attempts join banked.jobs using (job_id) where event_id = '$id'");
}

# A function that asks for this lock waits at the gate while it is closed, which it is while the session lives.
my $at_gate = 'perform pg_advisory_xact_lock_shared(7);';
sub close_gate { my $gate = $service->session; $gate->query_safe('select pg_advisory_lock(7)'); return $gate; }

# One may have ended by itself since it was listed.
$service->allow('is not a PostgreSQL backend process');
sub end_workers { return $service->sql(q(select count(pg_terminate_backend(pid)) from pg_stat_activity where backend_type = 'banked_webhooks handler')); }

my $started = $service->sql('select pg_conf_load_time(), pid from pg_stat_activity where backend_type = \'checkpointer\'');

# A function that is dropped between two jobs of a claim, before the second kind of row is asked for.
handler(vanishing => qq{
	if event.event_id = 'vanishing-100' then $at_gate end if;
	if event.event_id = 'vanishing-200' then drop function if exists shop.vanishing(banked.events); end if; },
	q{batch => 10, include_revisions => true, timeout => '1 h'});
foreach my $i (1, 10, 20, 30) { deliver('vanishing', first => $i, count => 3); ok_state('vanishing-' . ($i + 2), 'done'); }
my $gate = close_gate();
deliver('vanishing', first => 100);
ok_state('vanishing-100', 'running');
deliver('vanishing', first => 200);
deliver('vanishing', first => 200, reference => 'changed');
$gate->quit;
ok_until(sub { $service->sql(q(select state from banked.jobs where event_id = 'vanishing-200' and revision = 1)) eq 'dead' }, 'the job of a function that has just been dropped is dead');
is($service->sql('select pg_conf_load_time(), pid from pg_stat_activity where backend_type = \'checkpointer\''), $started, 'and the server has not crashed');

# Somebody's lock on a job that is due, and a rollback: nobody says so.
handler(locked => q{ raise 'no'; }, q{backoff => '3 s'});
deliver('locked');
ok_until(sub { attempts('locked-1') eq 'error P0001' }, 'a job that fails');
my $session = $service->session;
$session->query_safe(q(begin; select banked.retry(job_id) from banked.jobs where handler = 'locked'));
$service->sql(q(select pg_sleep(3.5)));
$session->query_safe('rollback');
ok_until(sub { attempts('locked-1') =~ /^error P0001,error P0001/ }, 'one that was locked when it was due gets its attempt', 20);
$session->quit;

# What is altered holds at once.
handler(rated => q{ null; }, q{rate => 0.01});
deliver('rated', count => 3);
ok_state('rated-1', 'done');
shop(q(select banked.alter_handler('rated', rate => 100)));
ok_until(sub { $service->count_jobs(rated => 'done') == 3 }, 'a higher rate holds at once');
handler(wide => q{ perform pg_sleep(0.2); insert into shop.log (handler, began) values ('wide', began); });
deliver('wide', count => 500);
ok_until(sub { $service->count_jobs(wide => 'running') > 2 }, 'several workers');
shop(q(select banked.alter_handler('wide', concurrency => 1)));
ok_until(sub { $service->count_jobs(wide => 'running') == 1 && $service->stat('handler_workers', { handler => 'wide', state => 'busy' }) <= 1 }, 'a lower concurrency holds soon');
handler(blocked => q{ if event.event_id = 'blocked-1' then raise 'no'; end if; }, q{ordered => true, backoff => '1 h'});
deliver('blocked', count => 2, resource => q('one'));
ok_until(sub { attempts('blocked-1') eq 'error P0001' }, 'an ordered job fails');
shop(q(select banked.alter_handler('blocked', ordered => false)));
ok_state('blocked-2', 'done', 'without the order, the next one runs at once');
shop(q(select banked.unsubscribe('wide')));

# Order: earlier events that come late by replay() do not run beside a later one.
handler(turns => qq{ if event.event_id = 'turns-102' then $at_gate end if; perform pg_sleep(0.2); insert into shop.log (handler, resource_id, began) values ('turns', event.resource_id, began); }, q{ordered => true, timeout => '1 h'});
deliver('turns', count => 30);
ok_until(sub { $service->sql(q(select count(distinct worker_pid) from banked.jobs where handler = 'turns')) > 2 }, 'several workers');
$gate = close_gate();
deliver('turns', first => $_, resource => q('same')) foreach 100 .. 102;
ok_state('turns-102', 'running', 'the last job of a resource runs');
shop(q(select banked.replay('turns', events => '{payment_turns}'))) foreach 1 .. 3;
$gate->quit;
ok_until(sub { $service->sql(q(select count(*) from banked.jobs where handler = 'turns' and order_key = 'same' and state in ('ready', 'running'))) == 0 }, 'all replayed');
is($service->sql(q(select max(n) from (select count(*) as n from shop.log as a join shop.log as b on b.handler = a.handler and b.resource_id = a.resource_id
	and b.began <= a.began and b.ended > a.began where a.handler = 'turns' group by a.id) as s)), 1, 'one at a time within a resource');
shop(q(select banked.unsubscribe('turns')));

# Jobs of a prepared transaction.
handler(prepared => q{ null; });
deliver('prepared');
$service->ok_all_done(prepared => 1);
$service->sql(q(begin; set local role shop; select banked.replay('prepared'); prepare transaction 'replay'));
ok_until(sub { $service->stat('handler_workers', { handler => 'prepared', state => 'busy' }) == 0 }, 'nothing to do');
$service->sql(q(commit prepared 'replay'));
$service->ok_all_done(prepared => 2, 20);

# A deferred trigger that does not end, in a batch.
shop(q{create table shop.slow (a int);
	create function shop.sleep() returns trigger language plpgsql as $f$ begin perform pg_sleep(100); return null; end $f$;
	create constraint trigger sleep after insert on shop.slow deferrable initially deferred for each row execute function shop.sleep()});
handler(batched => q{ if event.event_id ~ 'batched-1..' then insert into shop.slow values (1); end if; },
	q{batch => 10, timeout => '2 s', max_attempts => 1, concurrency => 1});
deliver('batched', count => 3);
$service->ok_all_done(batched => 3);
deliver('batched', first => 100, count => 2);
ok_state("batched-$_", 'dead', "batched-$_ is dead: a timeout at commit") foreach 100, 101;
is(attempts('batched-101'), 'timeout 57014', 'as such');

# Handlers that take themselves away, and names that come again.
handler(once => q{ perform banked.unsubscribe('once'); insert into shop.log (handler) values ('once'); });
deliver('once', count => 2);
ok_until(sub { $service->sql(q(select count(*) from shop.log where handler = 'once')) == 1 }, 'a handler that removes itself');
is($service->sql(q(select string_agg(state, ' ') from banked.jobs where handler = 'once')), 'done', 'has done one job, and leaves no other');
handler(taken => qq{ if event.event_id = 'taken-10' then $at_gate raise 'secret of the shop'; end if; insert into shop.log (handler, more) values ('taken', current_user); },
	q{batch => 4, concurrency => 1, timeout => '1 h'});
deliver('taken');
ok_state('taken-1', 'done');
$gate = close_gate();
deliver('taken', first => 10);
ok_state('taken-10', 'running');
$service->sql(q{create function public.taken(event banked.events) returns void language sql as $f$ insert into shop.log (handler, more) values ('taken', current_user) $f$;
	set role other; select banked.unsubscribe('taken'); select banked.subscribe('taken', 'public.taken(banked.events)', '{payment_nothing}')});
$gate->quit;
ok_until(sub { $service->sql(q(select count(*) from banked.jobs where handler = 'taken' and state <> 'done')) == 0 }, 'what the former handler of a name has begun ends with it');
is($service->sql(q(set role other; select count(*) from banked.failed_attempts where handler = 'taken')), 0, 'its errors are not for the next one');
is($service->sql(q(select count(*) from shop.log where handler = 'taken' and more = 'other')), 0, 'nor its jobs');

# Errors of any size; a body in a statement that is ended from outside.
handler(verbose => q{ raise exception '%', repeat(chr(228), 1000000); }, q{max_attempts => 1});
deliver('verbose');
ok_state('verbose-1', 'dead');
cmp_ok($service->sql(q(select octet_length(message) from banked.job_attempts join banked.jobs using (job_id) where handler = 'verbose')), '<=', 65536, 'an error is kept up to 64 kB');
handler(dynamic => q{ execute format('select pg_sleep(300), %L', event.payload); }, q{max_attempts => 1, timeout => '1 h'});
deliver('dynamic', reference => 'confidential');
ok_state('dynamic-1', 'running');
$service->allow('terminating background worker "banked_webhooks handler');
$service->sql(q(select pg_terminate_backend(worker_pid) from banked.jobs where event_id = 'dynamic-1'));
ok_state('dynamic-1', 'dead');
unlike($service->log_since, qr/confidential|pg_sleep/, 'the log shows no statement of a function');

# A column that somebody has added.
$service->sql('alter table banked.events add column note text');
handler(column => q{ insert into shop.log (handler, event_id, more) values ('column', event.event_id, event.revision); }, q{include_revisions => true, max_attempts => 1});
deliver('column');
deliver('column', reference => 'changed');
$service->ok_all_done(column => 2);
$service->sql('alter table banked.events drop column note');
deliver('column', reference => 'changed again');
$service->ok_all_done(column => 3);

# CREATE DATABASE in a function of the database's owner does not interrupt the service.
$service->sql('alter database postgres owner to shop');
my ($receiver) = $service->pids('receiver');
handler(copies => q{ create database copy template postgres; }, q{max_attempts => 1});
deliver('copies');
ok_state('copies-1', 'dead');
is(attempts('copies-1'), 'error 25001', 'it fails');
is(($service->pids('receiver'))[0], $receiver, 'the receiver is still the same');
$service->sql('alter database postgres owner to current_user');

# A failing DROP EXTENSION.
handler(stays => q{ null; });
like($service->sql_error('drop extension banked_webhooks'), qr/2BP01/, 'DROP EXTENSION fails for want of CASCADE');
deliver('stays');
ok_state('stays-1', 'done', 'handlers go on after it');
$service->sql('begin; drop extension banked_webhooks cascade; rollback');
deliver('stays', first => 2);
ok_state('stays-2', 'done', 'and after one that is rolled back');

# The role: with a setting for the role, as a superuser, renamed, without CONNECT, dropped while its job runs.
handler(role => q{ insert into shop.log (handler, more) values ('role', session_user || ' ' || current_user); });
$service->sql('create role boss; grant boss to shop; alter role shop set role = boss');
end_workers();
deliver('role', count => 2);
$service->ok_all_done(role => 2);
is($service->sql(q(select string_agg(more, ',') from shop.log where handler = 'role')), 'shop shop,shop shop', 'a setting of role does not change who it runs as');
$service->sql('alter role shop reset role');
handler(power => qq{ insert into shop.log (handler, more) select 'power', rolsuper from pg_roles where rolname = current_user; if event.event_id = 'power-10' then $at_gate end if; }, q{batch => 10, concurrency => 1, timeout => '1 h'});
foreach my $i (1 .. 3) { deliver('power', first => $i); ok_state("power-$i", 'done'); }
$gate = close_gate();
deliver('power', first => 10, count => 2);
ok_state('power-10', 'running');
$service->sql('alter role shop superuser');
ok_until(sub { $service->sql(q(select count(*) from banked.handlers where state = 'active' and role = 'shop')) == 0 }, 'a superuser\'s handlers are paused');
$gate->quit;
ok_until(sub { $service->count_jobs(power => 'running') == 0 }, 'the job that ran ends');
is($service->sql(q(select string_agg(distinct more, ' ') from shop.log where handler = 'power')), 'false', 'no function has run as a superuser');
$service->sql(q(alter role shop nosuperuser; select count(banked.resume_handler(handler)) from banked.handlers where problem is not null));
$service->sql('alter role shop rename to store; create role shop');
ok_until(sub { $service->sql(q(select role from banked.handlers where handler = 'power')) eq 'store' }, 'a renamed role is known by its new name, which a dump has');
$service->sql('drop role shop; alter role store rename to shop');
ok_until(sub { $service->sql(q(select role from banked.handlers where handler = 'power')) eq 'shop' }, 'and back');
deliver('role', first => 10);
ok_state('role-10', 'done');
$service->allow('permission denied for database');
$service->sql('revoke connect on database postgres from public');
end_workers();
ok_until(sub { $service->sql(q(select count(*) from banked.handlers where problem like '%may not connect%')) > 5 }, 'a role without CONNECT: its handlers are paused');
$service->sql(q(grant connect on database postgres to public; select count(banked.resume_handler(handler)) from banked.handlers where problem is not null));
$service->sql(q{create role guest login; grant banked_webhooks_admin, banked_webhooks_reader to guest;
	create function public.guests(event banked.events) returns void language plpgsql as $$ begin perform pg_advisory_xact_lock_shared(7); raise 'no'; end $$;
	set role guest; select banked.subscribe('guests', 'public.guests(banked.events)', array['payment_guests'], timeout => '1 h')});
$gate = close_gate();
deliver('guests');
ok_state('guests-1', 'running');
$service->sql('drop role guest');
$gate->quit;
ok_state('guests-1', 'dead', 'the job that ran when its role was dropped is dead');
is($service->sql(q(select attempts from banked.jobs where event_id = 'guests-1')), 1, '... when it fails');

# A worker that is to make room and does not keeps no other one's place.
$service->sql(q(select count(banked.unsubscribe(handler)) from banked.handlers; alter system set banked_webhooks.handler_workers = 2));
$node->reload;
handler(endless => q{ perform pg_sleep(3000); }, q{timeout => '1 h'});
handler(busy => q{ perform pg_sleep(0.05); });
deliver('endless');
ok_state('endless-1', 'running');
deliver('busy', count => 1500);
ok_state('busy-1', 'done');
$service->sql('select pg_sleep(1.2)');
handler(third => q{ null; });
deliver('third');
ok_state('third-1', 'done', 'a third handler gets a place, before the second has done all');
cmp_ok($service->count_jobs(busy => 'ready'), '>', 0, '(it has not)');
is($service->count_jobs(endless => 'running'), 1, 'while the first one still runs');
end_workers();
$service->sql(q(select count(banked.unsubscribe(handler)) from banked.handlers; alter system reset banked_webhooks.handler_workers));
$node->reload;

# Databases that come and go take their handlers with them; and many handlers share few workers.
$service->sql(q(alter system set banked_webhooks.databases = 'postgres, second'));
$node->reload;
foreach my $round (1, 2)
{
	$service->sql('create database second');
	$service->sql('alter database second set banked_webhooks.port = ' . PostgreSQL::Test::Cluster::get_free_port());
	$service->sql(qq{create extension banked_webhooks; select from banked.register_endpoint('/hook', signing_key => '$KEY');
		create function public.many(event banked.events) returns void language sql as 'select';
		set role shop; do \$\$ begin for i in 1 .. 150 loop perform banked.subscribe('h' || i, 'public.many(banked.events)', '{payment_many}'); end loop; end \$\$}, 'second');
	deliver('many', database => 'second');
	ok_until(sub { $service->sql(q(select count(*) from banked.jobs where state = 'done'), 'second') == 150 }, "150 handlers of a database, round $round");
	$service->sql('drop database second');
}

# Somebody's lock on the queue does not keep the server from stopping.
handler(quiet => q{ null; });
deliver('quiet');
ok_state('quiet-1', 'done');
$service->sql(q(begin; lock table banked.jobs; prepare transaction 'lock'));
shop(q(select banked.alter_handler('quiet', batch => 2)));
ok_until(sub { $service->sql(q(select count(*) from pg_stat_activity where backend_type = 'banked_webhooks handler' and wait_event_type = 'Lock')) > 0 }, 'a worker waits for a lock');
my $stop = time;
$node->stop('fast');
cmp_ok(time - $stop, '<', 10, 'a fast shutdown ends it');
$node->start;
$service->sql(q(rollback prepared 'lock'));
$service->wait_for_port;
deliver('quiet', first => 2);
ok_state('quiet-2', 'done');

$service->check_log;
done_testing();
