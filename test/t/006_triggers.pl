
# Users' triggers: they run in the transaction that stores, as the worker role,
# and what one does to its event is no other event's business.

use strict;
use warnings;

use BankedWebhooks;
use Test::More;
use Time::HiRes qw(time);

my $service = BankedWebhooks->new(conf => <<'CONF');
banked_webhooks.store_lock_timeout = 300ms
banked_webhooks.store_timeout = 4s
CONF
$service->register('/hook');
$service->sql(<<'SQL');
create table public.seen (event_id text, who text, session_who text, durable text);
grant insert, select on public.seen to banked_webhooks_worker;
create function public.see() returns trigger language plpgsql as $$
begin
	if new.event_id like 'fail%' then
		raise exception 'order of % is unknown', new.event_id using errcode = 'P0042';
	end if;
	if new.event_id like 'loop%' then
		loop end loop;
	end if;
	if new.event_id like 'stubborn%' then
		loop
			begin
				perform pg_sleep(60);
			exception when query_canceled then null;
			end;
		end loop;
	end if;
	if new.event_id like 'talkative%' then
		raise exception '%', repeat(U&'\00e9', 100000);
	end if;
	if new.event_id like 'wait%' then
		perform pg_advisory_xact_lock(42);
	end if;
	if new.event_id like 'suppress%' then
		return null;
	end if;
	if new.event_id like 'asynchronous%' then
		perform set_config('synchronous_commit', 'off', false);
	end if;
	if new.event_id like 'escape%' then
		begin
			execute 'reset role';
			execute 'set session authorization default';
		exception when others then null;
		end;
	end if;
	if new.event_id like 'temporary%' then
		create temporary table if not exists scratch (a int) on commit drop;
		insert into scratch values (1);
	end if;
	if new.event_id like 'change%' then
		new.state := 'changed by a trigger';
	end if;
	insert into public.seen values (new.event_id, current_user, session_user, current_setting('synchronous_commit'));
	return new;
end $$;
create trigger see before insert on banked.events for each row execute function public.see();
SQL

sub deliver { my ($id, %options) = @_; return $service->post('/hook', event($id, 'payment_sent'), %options) }
sub is_event { my ($id) = @_; return $service->sql("select count(*) from banked.events where event_id = '$id'") }
sub quarantine { my ($id) = @_;
	return $service->sql("select reason, sqlstate, message from banked.quarantine where convert_from(body, 'UTF8') like '%\"$id\"%'") }

# Makes the next attempts due now, and the receiver look at them.
sub try_now
{
	$service->sql('update banked.quarantine set next_attempt_at = now()');
	$service->node->reload;
	return;
}

# Sends deliveries over connections of their own at one time; returns the
# statuses by id.  Those that arrive while a batch runs make up the next one.
sub deliver_together
{
	my (@ids) = @_;
	my @lists = map { [ request('/hook', event($_, 'payment_sent')) ] } @ids;
	my @statuses = exchange_all($service->port, @lists);
	return map { $ids[$_] => $statuses[$_][0] } 0 .. $#ids;
}

ok_until(sub { deliver('first') == 200 }, 'served');
is($service->sql("select who, session_who from public.seen where event_id = 'first'"),
	'banked_webhooks_worker|banked_webhooks_worker', 'a trigger runs as the worker role, and the session is its too');

# One that raises.
is(deliver('fail-1'), 200, 'a trigger that raises: 200');
is(is_event('fail-1'), 0, 'no event');
is(quarantine('fail-1'), 'trigger_error|P0042|order of fail-1 is unknown', 'but quarantine, with what it said');
{
	my %status = deliver_together(map { ("good-$_", "fail-together-$_") } 1 .. 20);
	is(tally(values %status), '200: 40', 'forty at once, half of which fail: 200 each');
	is($service->sql(q(select count(*) from banked.events where event_id like 'good-%')), 20, 'the good ones are stored');
	is($service->sql(q(select count(*) from banked.quarantine where reason = 'trigger_error')), 21, 'the others are in quarantine');
}
is(deliver('fail-1'), 200, 'the same again: 200');
is($service->sql(q(select count(*) from banked.quarantine where reason = 'trigger_error')), 21, 'and no second row');

# Mended: by hand, and by itself.
$service->sql('alter table banked.events disable trigger see');
is($service->sql(q(select (banked.reprocess(quarantine_id)).outcome from banked.quarantine where convert_from(body, 'UTF8') like '%"fail-1"%')),
	'stored', 'reprocess() brings it in');
is(is_event('fail-1'), 1, 'it is an event');
is(quarantine('fail-1'), '', 'and not in quarantine any more');
is( $service->sql(q(select bool_and(next_attempt_at > received_at and next_attempt_at <= received_at + interval '1 hour 1 minute') from banked.quarantine)),
	't', 'the others wait for their next attempt');
try_now();
ok_until(sub { $service->sql('select count(*) from banked.quarantine') == 0 }, 'they are tried again');
is($service->sql(q(select count(*) from banked.events where event_id like 'fail-together-%')), 20, 'and become events');
$service->sql('alter table banked.events enable trigger see');

# An attempt that fails puts the next one off.
is(deliver('fail-2'), 200, 'another that fails');
try_now();
ok_until(sub { $service->sql('select count(*) from banked.quarantine where attempts >= 1 and next_attempt_at > now()') == 1 },
	'it fails again, and is put off');
$service->node->reload;
$service->sql('select pg_sleep(0.3)');
is($service->sql('select count(*) from banked.quarantine where xmax <> 0'), 0, 'a row that is not due is looked at, and not written to');
$service->sql(q(select banked.dismiss(quarantine_id, 'not ours') from banked.quarantine));
is($service->sql('select note from banked.quarantine where dismissed_at is not null'), 'not ours', 'until somebody dismisses it');

# One that runs for ever.
{
	my $start = time;
	is(deliver('loop'), 200, 'a trigger that never ends: 200');
	ok(time - $start < 30, 'after store_timeout');
	like(quarantine('loop'), qr/^timeout\|/, 'and quarantine');
}

# One that says much.
is(deliver('talkative'), 200, 'a trigger with a long message: 200');
is($service->sql(q(select octet_length(message), message = repeat(U&'\00e9', 4096) from banked.quarantine where convert_from(body, 'UTF8') like '%"talkative"%')),
	'8192|t', 'of which the beginning is kept');

# One that catches its cancellation: nothing but the end of the process stops it.
{
	my $mark = $service->log_mark;
	$service->allow('receiver of webhooks ends|does not react to its cancellation|terminating background worker');
	my %status = deliver_together('stubborn', 'near-stubborn-1', 'near-stubborn-2');
	ok_until(sub { deliver('stubborn') == 200 }, 'a trigger that catches its cancellation: 200 in the end');
	is(quarantine('stubborn'), 'timeout|57014|code that runs while it is stored does not react to its cancellation', 'and quarantine');
	my $ended = () = $service->log_since($mark) =~ /a receiver of webhooks ends, since/g;
	ok($ended <= 2, 'two receivers at most had to end');
	is(tally(map { deliver("near-stubborn-$_") } 1, 2), '200: 2', 'others are stored');
	my ($receiver) = $service->pids('receiver');
	is(deliver('stubborn'), 200, 'once known it is no further trouble');
	is(tally(map { deliver($_) } 'near-stubborn-1', 'stubborn'), '200: 2', 'nor after a repetition');
	is(($service->pids('receiver'))[0], $receiver, 'for the same process');
}

# One that waits for a lock.
{
	my $locker = $service->session;
	$locker->query_safe('begin');
	$locker->query_safe('select pg_advisory_xact_lock(42)');
	my $start = time;
	my %status = deliver_together('wait-1', map { "behind-$_" } 1 .. 60);
	is(tally(map { $status{"behind-$_"} } 1 .. 60), '200: 60', 'those behind a trigger that waits for a lock are stored');
	is($status{'wait-1'}, 503, 'its own is to come again: 503');
	ok(time - $start < 10, 'in about two store_lock_timeouts, and not in one for each');
	is(is_event('wait-1') . quarantine('wait-1'), '0', 'neither event nor quarantine');
	my $response = $service->exchange(request('/hook', event('wait-1', 'payment_sent')));
	ok($response->{headers}{'retry-after'}, 'the 503 has Retry-After');
	$locker->query_safe('commit');
	$locker->quit;
	is(deliver('wait-1'), 200, 'once the lock is free it is stored');
}

# In quarantine it is not in the way of others.
{
	my $mark = $service->log_mark;
	my $locker = $service->session;
	$service->allow('could not try a delivery in quarantine again');
	$service->sql(q(create function public.refuse() returns trigger language plpgsql as 'begin raise exception $$not today$$; end';
		create trigger refuse before insert on banked.events for each row execute function public.refuse()));
	is(tally(map { deliver($_) } 'wait-2', 'mended'), '200: 2', 'two whose trigger fails');
	$service->sql('drop trigger refuse on banked.events');
	$locker->query_safe('begin');
	$locker->query_safe('select pg_advisory_xact_lock(42)');
	$service->sql(q(update banked.quarantine set next_attempt_at = now() - case when convert_from(body, 'UTF8') like '%"wait-2"%' then interval '1 h' else '0' end
		where message = 'not today'));
	$service->node->reload;
	ok_until(sub { is_event('mended') == 1 }, 'the second is tried again while the first one waits for a lock');
	ok_until(sub { $service->sql(q(select attempts, next_attempt_at > now() + interval '30 s' from banked.quarantine where message = 'not today')) eq '0|t' },
		'which is put off, without an attempt that counts');
	$service->wait_for_log(qr/could not try a delivery in quarantine again \(SQLSTATE 55P03\), putting it off/, $mark);
	unlike($service->log_since($mark), qr/answering 503/, 'and says so: nobody was answered');
	$locker->query_safe('commit');
	$locker->quit;
	try_now();
	ok_until(sub { is_event('wait-2') == 1 }, 'once the lock is free it becomes an event');
	$service->sql('drop function public.refuse()');
}

# The table itself is locked.
{
	my $locker = $service->session;
	$locker->query_safe('begin');
	$locker->query_safe('lock table banked.events in access exclusive mode');
	my $start = time;
	is(deliver('locked-out'), 503, 'the table is locked: 503');
	ok(time - $start < 10, 'in time');
	$locker->query_safe('rollback');
	$locker->quit;
	is(deliver('locked-out'), 200, 'and then stored');
}

# What a trigger may do, and what it cannot.
is(deliver('suppress'), 200, 'a trigger that suppresses the row: 200');
like(quarantine('suppress'), qr/^trigger_suppressed\|/, 'quarantine');
is(deliver('change'), 200, 'a trigger that changes the row');
is($service->sql(q(select state from banked.events where event_id = 'change')), 'changed by a trigger', 'its change is stored');
is(deliver('change'), 200, 'the same delivery again');
is($service->sql('select count(*) from banked.event_revisions'), 0, 'is a repetition all the same');
is(deliver('temporary'), 200, 'a temporary table');
is(is_event('temporary'), 1, 'is no obstacle');
is(deliver('temporary-2'), 200, 'a second time');
is(deliver('asynchronous'), 200, 'a trigger that switches synchronous_commit off');
is(deliver('after-asynchronous'), 200, 'has no effect');
is($service->sql(q(select durable from public.seen where event_id = 'after-asynchronous')),
	$service->sql('show synchronous_commit'), 'on later batches');
is(deliver('escape'), 200, 'RESET ROLE');
is($service->sql(q(select who, session_who from public.seen where event_id = 'escape')),
	'banked_webhooks_worker|banked_webhooks_worker', 'leads nowhere');

# Deferred triggers, and deferred foreign keys behind a trigger.
$service->sql(<<'SQL');
create table public.parent (id text primary key);
create table public.child (id text references public.parent deferrable initially deferred);
create table public.deferred_seen (who text);
grant insert, select on public.parent, public.child, public.deferred_seen to banked_webhooks_worker;
insert into public.parent values ('with-parent');
create function public.add_child() returns trigger language plpgsql as $$
begin
	if new.event_id like '%-parent' then
		insert into public.child values (new.event_id);
	end if;
	return null;
end $$;
create trigger add_child after insert on banked.events for each row execute function public.add_child();
create function public.deferred() returns trigger language plpgsql as $$
begin
	insert into public.deferred_seen values (current_user);
	return null;
end $$;
create constraint trigger deferred after insert on banked.events deferrable initially deferred
	for each row execute function public.deferred();
SQL
{
	my %status = deliver_together('with-parent', 'without-parent', map { "beside-$_" } 1 .. 5);
	is(tally(values %status), '200: 7', 'a deferred constraint fails at commit: 200 each');
	is(is_event('with-parent'), 1, 'the one that holds is stored');
	like(quarantine('without-parent'), qr/^trigger_error\|23503\|/, 'the other is in quarantine');
	is($service->sql(q(select count(*) from banked.events where event_id like 'beside-%')), 5, 'and the rest are stored');
	is($service->sql('select string_agg(distinct who, chr(32)) from public.deferred_seen'),
		'banked_webhooks_worker', 'a deferred trigger runs as the worker role');
}

# An index expression is evaluated by whoever inserts.
$service->sql(<<'SQL');
create function public.spy(text) returns text language plpgsql immutable as $$
begin
	raise exception 'in an index: % %', current_user, session_user;
end $$;
create index spy on banked.events (public.spy(event_type)) where event_id like 'spied%';
SQL
is(deliver('spied'), 200, 'an index expression that raises: 200');
like(quarantine('spied'), qr/^trigger_error\|P0001\|in an index: banked_webhooks_worker banked_webhooks_worker$/, 'it runs as the worker role');
$service->sql('drop index banked.spy');

# Triggers at statement level see the batch.
$service->sql(<<'SQL');
create table public.statements (rows bigint);
grant insert on public.statements to banked_webhooks_worker;
create function public.count_rows() returns trigger language plpgsql as $$
begin
	insert into public.statements select count(*) from new_rows;
	return null;
end $$;
create trigger count_rows after insert on banked.events referencing new table as new_rows
	for each statement execute function public.count_rows();
SQL
deliver_together(map { "statement-$_" } 1 .. 30);
is($service->sql('select sum(rows) from public.statements'), 30, 'a trigger at statement level sees every row once');

# Revisions have triggers too.
$service->sql(<<'SQL');
create function public.fail_revision() returns trigger language plpgsql as $$
begin raise exception 'no revisions here'; end $$;
create trigger fail_revision before insert on banked.event_revisions for each row execute function public.fail_revision();
SQL
is($service->post('/hook', event('first', 'payment_sent', reference => 'Other')), 200, 'a trigger on event_revisions that raises: 200');
is($service->sql(q(select count(*) from banked.quarantine where message = 'no revisions here')), 1, 'and quarantine');
$service->sql('drop trigger fail_revision on banked.event_revisions');
is($service->sql(q(select (banked.reprocess(quarantine_id)).outcome from banked.quarantine where message = 'no revisions here')),
	'changed', 'reprocessed, it is a revision');

# What was told to the triggers must not be told to the log.
unlike($service->log_since, qr/order of fail|Illuminate|Failing row/, 'no message of a trigger and no body in the log');
is($service->stat('gateway_restarts'), 0, 'the gateway ran all the time');

$service->check_log;
done_testing();
