
# What a batch does with events that are known, with new ones, and with both
# together: the ways of event_store.c and event_rows.c.

use strict;
use warnings;

use BankedWebhooks;
use Test::More;
use Time::HiRes qw(time);

my $service = BankedWebhooks->new(conf => <<'CONF');
banked_webhooks.store_lock_timeout = 60s
banked_webhooks.store_timeout = 120s
banked_webhooks.answer_timeout = 120s
autovacuum = off
CONF
my $port = $service->port;
my $now = int time;
my $blockers = 0;
my $took;						# the last batches, seconds

sub outcomes { return map { $_ => $service->stat('deliveries', { outcome => $_ }) } qw(stored repetition changed recurrence quarantined) }

sub waits_for_lock
{
	return $service->sql(q(select count(*) from pg_stat_activity
		where backend_type = 'banked_webhooks receiver' and wait_event_type = 'Lock')) > 0;
}

# Stores deliveries, [body, options...] (a path may be one), in one batch and in this order of
# arrival: they wait while another one, which is known or not, is held back by
# a lock.  Returns what became of them, as "200: 3; stored: 2, repetition: 1".
sub store_together { return store_in_batches(1, @_) }

sub store_in_batches
{
	my ($expected, $known, @deliveries) = @_;
	my $held_back = $known ? event('first', 'payment_sent') : event('blocker-' . ++$blockers, 'payment_sent');
	my $locker = $service->session;
	$service->wait_until_counted;
	my %before = outcomes();
	my $batches = $service->stat('batches');
	my (@clients, %became);

	$locker->query_safe('begin');
	$locker->query_safe('lock table banked.events in access exclusive mode');
	my $blocker = $service->connect;
	$blocker->send(request('/hook', $held_back));
	wait_until(\&waits_for_lock) or die 'the receiver does not wait';
	foreach my $delivery (@deliveries)
	{
		my ($body, %options) = @$delivery;
		my $path = delete $options{path} // '/hook';
		push @clients, $service->connect;
		$clients[-1]->send(request($path, $body, %options));
		# The gateway has taken that one when it answers this.
		die 'no answer' unless $service->post('/nowhere', '') == 404;
	}
	my $start = time;
	$locker->query_safe('rollback');
	die 'the one that was held back was refused' unless $blocker->receive->{status} == 200;
	my $statuses = tally(map { $_->receive->{status} } @clients);
	$took = time - $start;
	$locker->quit;
	$service->wait_until_counted;
	is($service->stat('batches'), $batches + 1 + $expected, "batches: $expected");
	my %after = outcomes();
	$after{ $known ? 'repetition' : 'stored' }--;
	my @changes = map { $after{$_} == $before{$_} ? () : "$_: " . ($after{$_} - $before{$_}) } qw(stored repetition changed recurrence quarantined);
	return "$statuses; " . join ', ', @changes;
}

# How often an identity stands in the tables.
sub rows
{
	my ($id) = @_;
	return $service->sql("select (select count(*) from banked.events where event_id = '$id') || '+' || (select count(*) from banked.event_revisions where event_id = '$id')");
}

$service->register('/hook');
ok_until(sub { $service->post('/hook', event('first', 'payment_sent')) == 200 }, 'served');

# ---------------------------------------------------------------------------
# Repetitions are looked for first after a batch of them
# ---------------------------------------------------------------------------

foreach my $first ('insertion', 'look')
{
	my $mandate = "mandate-$first";
	my $known = event("known-$first", 'payment_sent');
	is($service->post('/hook', $known, at => $now - 100), 200, "$first first: a known event");
	is($service->post('/hook', event($mandate, 'mandate_active'), at => $now - 100), 200, 'and a mandate');
	is( store_together($first eq 'look',
			[ event($mandate, 'mandate_active'), at => $now ],
			[ $known, at => $now - 100 ],
			[ event("new-$first", 'payment_sent') ],
			[ $known, at => $now - 50 ],
			[ event($mandate, 'mandate_suspended'), at => $now - 50 ],
			[ event("known-$first", 'payment_sent', reference => 'another') ],
			[ event("new-$first", 'payment_sent', reference => 'another') ],
			[ qq({"no identity": "$first"}) ]),
		'200: 8; stored: 2, repetition: 2, changed: 2, recurrence: 1, quarantined: 1', 'each is what it is');
	is(rows("new-$first"), '1+1', 'a new event, and its change');
	is(rows("known-$first"), '1+1', 'a known one, and its change');
	is(rows($mandate), '2+1', 'a mandate that was suspended and is active again');
	is( store_together($first eq 'look',
			[ $known, at => $now - 100 ],
			[ event($mandate, 'mandate_active'), at => $now ],
			[ event($mandate, 'mandate_suspended'), at => $now - 50 ]),
		'200: 3; repetition: 3', 'and all again');
}

# ---------------------------------------------------------------------------
# A look takes the identity from a body that it does not parse
# ---------------------------------------------------------------------------

foreach my $first ('insertion', 'look')
{
	my $id = "plain-$first";
	my $v3 = v3_event("v3-$first", 'payment_sent');
	is($service->post('/hook', event($id, 'payment_sent')), 200, "$first first: an event");
	is($service->post('/hook', $v3), 200, 'and one of v3');
	is( store_together($first eq 'look',
			[ $v3, at => $now - 10 ],
			[ event($id, 'payment_sent') =~ s/"id"/"\\u0069d"/r ],
			[ event('another', 'payment_sent') =~ s/\}$/,"id":"$id"}/r ],
			[ event("another-$first", 'payment_sent', more => \qq({"id":"$id"})) ],
			[ event($id, 'payment_sent') . '}' ],
			[ event($id, 'payment_sent') =~ s/\}$//r ],
			[ event($id, 'payment_sent', amount => \'1e100000') ],
			[ event($id, 'payment_sent', reference => "\xff") ],
			[ event($id . 'x' x 600, 'payment_sent') ]),
		'200: 9; stored: 1, repetition: 1, changed: 2, quarantined: 5', 'each is what a parser makes of it');
	is(rows($id) . ' ' . rows("another-$first") . ' ' . rows("v3-$first"), '1+2 1+0 1+0', 'and stands where it should');
}

# The same bytes at two endpoints are two rows of quarantine.
$service->register('/twin');
ok_until(sub { $service->post('/twin', event('first', 'payment_sent')) == 200 }, 'served');
foreach my $first ('insertion', 'look')
{
	my $body = event("broken-$first", 'payment_sent', amount => \'1e100000');
	is( store_together($first eq 'look',
			[ $body, at => $now ],
			[ $body, at => $now, path => '/twin' ],
			[ $body, at => $now ]),
		'200: 3; quarantined: 3', "$first first: a broken body at two endpoints");
	is($service->sql("select count(distinct endpoint_id) || ' of ' || count(*) from banked.quarantine where encode(body, 'escape') like '%broken-$first%'"), '2 of 2', 'is kept for each');
}

# What happens to the events is nothing to an invalid body.
{
	my $body = event('broken', 'payment_sent', amount => \'1e100000');
	my $locker = $service->session;
	is($service->post('/hook', event('first', 'payment_sent')), 200, 'after a repetition');
	$locker->query_safe('begin');
	$locker->query_safe('lock table banked.events in access exclusive mode');
	is($service->post('/hook', $body, at => $now), 200, 'an invalid body, while events is locked');
	$locker->query_safe('rollback');
	$locker->quit;

	$service->sql('revoke select on banked.event_revisions from banked_webhooks_worker');
	is( store_together(1,
			[ event('first', 'payment_sent') ],
			[ event('broken too', 'payment_sent', amount => \'1e100000') ],
			[ event('first', 'payment_sent') . '}' ]),
		'200: 3; repetition: -1, quarantined: 4', 'while the look for known events fails, also for the one that was held back');
	$service->sql('grant select on banked.event_revisions to banked_webhooks_worker');
	is($service->sql(q(select string_agg(reason, ' ' order by quarantine_id) from (select * from banked.quarantine order by quarantine_id desc limit 4) as last)),
		'invalid_json trigger_error invalid_json invalid_json', 'each has its own reason');
	is($service->sql(q(select banked.reprocess(quarantine_id) from banked.quarantine where reason = 'trigger_error')), '(200,repetition,first,payment_sent)', 'the repetition is one again');
}

# A batch that fails after bodies were read is stored all the same.
$service->sql(<<'SQL');
create function public.object() returns trigger language plpgsql as $$ begin raise exception 'at the commit'; end $$;
create constraint trigger object after insert on banked.events deferrable initially deferred
	for each row when (new.resource_id like 'objectionable%') execute function public.object();
SQL
foreach my $first ('insertion', 'look')
{
	is( store_together($first eq 'look',
			[ event('first', 'payment_sent') ],
			[ event("fine-$first", 'payment_sent', more => 'x' x 5000) ],
			[ event("objectionable-$first", 'payment_sent') ],
			[ event("fine-$first", 'payment_sent', more => 'y' x 5000) ],
			[ v3_event("fine-v3-$first", 'payment_sent') ]),
		'200: 5; stored: 2, repetition: 1, changed: 1, quarantined: 1', "$first first: a trigger that raises at the commit");
	is(rows("fine-$first") . ' ' . rows("fine-v3-$first") . ' ' . rows("objectionable-$first"), '1+1 1+0 0+0', 'spoils nothing else');
	is($service->sql("select bool_and(payload = convert_from(body, 'UTF8')::jsonb) from banked.history where event_id like 'fine%'"), 't', 'nor a payload');
}
$service->sql('drop trigger object on banked.events');
$service->sql('delete from banked.quarantine');

# What endpoints refuse they refuse whatever came before.
$service->register('/test', live => 'false');
$service->register('/refunds', events => q(array['refund_*']));
ok_until(sub { $service->post('/refunds', event('refund', 'refund_sent')) == 200 }, 'served');
foreach my $look (0, 1)
{
	my $known = event('first', 'payment_sent');
	is($service->post('/hook', $look ? $known : event('not a repetition', 'payment_sent')), 200, $look ? 'after a repetition' : 'after an event');
	$service->wait_until_counted;
	my %before = map { $_ => $service->stat('deliveries', { outcome => $_ }) } qw(unwanted quarantined);
	is($service->post($look ? '/test' : '/refunds', $known), 200, 'a known event at another endpoint');
	is($service->post('/hook', $known), 200, 'repeated');
	is($service->post($look ? '/refunds' : '/test', $known), 200, 'and at a third');
	$service->wait_until_counted;
	is($service->stat('deliveries', { outcome => $_ }), $before{$_} + 1, $_) foreach qw(unwanted quarantined);
}

# ---------------------------------------------------------------------------
# Repetitions alone write nothing, and are as durable as what they repeat
# ---------------------------------------------------------------------------

{
	my $position = "select pg_current_wal_insert_lsn()";
	my $body = event('first', 'payment_sent');
	my $before;
	# The server itself writes now and then.
	ok_until(
		sub {
			$service->sql('select txid_current()');
			$before = $service->sql($position);
			return 0 if grep { $service->post('/hook', $body) != 200 } 1 .. 20;
			return $service->sql($position) eq $before;
		},
		'repetitions write nothing');

	# An event that was committed asynchronously, and nobody who flushes it.
	my $walwriter = $service->sql(q(select pid from pg_stat_activity where backend_type = 'walwriter'));
	kill 'STOP', $walwriter;
	my $late = event('late', 'payment_sent');
	my $signature = sign($late);
	my $committed = $service->sql("set synchronous_commit = off;
		select outcome from banked.receive('/hook', '$signature', convert_to('$late', 'UTF8')); select pg_current_wal_insert_lsn()");
	$committed =~ s/^stored\n// or die $committed;
	is($service->post('/hook', $late), 200, 'a repetition of what is not durable yet');
	is($service->sql("select pg_current_wal_flush_lsn() >= '$committed'"), 't', 'has made it durable');
	kill 'CONT', $walwriter;
	is(rows('late'), '1+0', 'once');
}

# ---------------------------------------------------------------------------
# Insertions without a look for known events
# ---------------------------------------------------------------------------

# Until it has met no known event for a while a receiver is careful.
sub lull_into_optimism
{
	my ($name) = @_;
	my @requests = map { request('/hook', event("$name-$_", 'payment_sent')) } 1 .. 70;
	is(tally(exchange_all($port, \@requests)), '200: 70', 'seventy new events, one after the other');
	return;
}


lull_into_optimism('a');
is( store_together(0,
		[ event('new-1', 'payment_sent') ],
		[ event('a-1', 'payment_sent') ],
		[ event('a-2', 'payment_sent', reference => 'another') ],
		[ event('new-2', 'payment_sent') ],
		[ 'broken' ]),
	'200: 5; stored: 2, repetition: 1, changed: 1, quarantined: 1', 'known ones among new ones');
is(rows('new-1') . ' ' . rows('new-2') . ' ' . rows('a-1') . ' ' . rows('a-2'), '1+0 1+0 1+0 1+1', 'each once');

lull_into_optimism('b');
is($service->post('/hook', event('b-1', 'payment_sent')), 200, 'a repetition alone');
is($service->post('/hook', event('b-1', 'payment_sent', reference => 'another')), 200, 'and a change');
is(rows('b-1'), '1+1', 'each once');

# A trigger's own unique violation is its own.
$service->sql(<<'SQL');
create table public.orders (event_id text primary key);
grant insert, select on public.orders to banked_webhooks_worker;
create function public.take() returns trigger language plpgsql as $$
begin
	insert into public.orders values (new.payload ->> 'reference');
	return null;
end $$;
create trigger take after insert on banked.events for each row when (new.event_id like 'order%') execute function public.take();
SQL
lull_into_optimism('c');
is( store_together(0,
		[ event('order-1', 'payment_sent', reference => 'one') ],
		[ event('order-2', 'payment_sent', reference => 'two') ],
		[ event('order-3', 'payment_sent', reference => 'one') ],
		[ event('c-1',     'payment_sent') ],
		[ event('new-3',   'payment_sent') ]),
	'200: 5; stored: 3, repetition: 1, quarantined: 1', 'a trigger that fails for one');
is($service->sql("select reason, sqlstate from banked.quarantine where reason <> 'invalid_json' and sqlstate is not null"), 'trigger_error|23505', 'which is in quarantine');
is($service->sql('select string_agg(event_id, $$ $$ order by event_id) from public.orders'), 'one two', 'the others are stored');

# ---------------------------------------------------------------------------
# The same bytes one after the other
# ---------------------------------------------------------------------------

is( store_together(0,
		[ event('twin', 'payment_sent', reference => 'one') ],
		[ event('twin', 'payment_sent', reference => 'one'), at => $now - 10 ],
		[ event('twin', 'payment_sent', reference => 'two') ],
		[ event('twin', 'payment_sent', reference => 'two') ],
		[ event('twin', 'payment_sent', reference => 'one') ],
		['{"twin": '],
		['{"twin": '],
		[ event('twin-3', 'payment_sent'), signature => sign('another body') ],
		[ event('twin-3', 'payment_sent') ],
		[ event('twin-2', 'payment_sent') ],
		[ event('twin-2', 'payment_sent'), signature => sign('another body') ],
		[ event('twin-2', 'payment_sent'), at => $now - 3 ]),
	'200: 10, 400: 2; stored: 3, repetition: 4, changed: 1, quarantined: 2', 'each is what it is');
is(rows('twin') . ' ' . rows('twin-2') . ' ' . rows('twin-3'), '1+1 1+0 1+0', 'once each');
is( $service->sql(q(
	select count(*) from
		(select payload, body, body_sha256 from banked.events union all
		 select payload, body, body_sha256 from banked.event_revisions) as rows
	where payload is distinct from convert_from(body, 'UTF8')::jsonb or body_sha256 <> sha256(body))),
	0, 'every payload is that of its body');

# ---------------------------------------------------------------------------
# More than a batch may hold
# ---------------------------------------------------------------------------

# What is left waits for no timer and for no other delivery.
$service->sql('alter system set banked_webhooks.max_batch = 1');
$service->sql('select pg_reload_conf()');
is(store_in_batches(60, 0, map { [ event("divided-$_", 'payment_sent') ] } 1 .. 60), '200: 60; stored: 60', 'none is left over');
cmp_ok($took, '<', 4, 'in seconds');
is(join(' ', map { rows("divided-$_") } 1 .. 60), join(' ', ('1+0') x 60), 'each once');

$service->allow('was put into quarantine');
$service->check_log;
done_testing();
