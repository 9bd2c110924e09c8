
# Nothing that clients do makes us hold more than we said, or wait for ever.

use strict;
use warnings;

use BankedWebhooks;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $service = BankedWebhooks->new(conf => <<'CONF');
banked_webhooks.max_pending = 4
banked_webhooks.max_pending_size = 64kB
banked_webhooks.max_body_size = 60kB
banked_webhooks.max_connections = 40
banked_webhooks.answer_timeout = 6s
banked_webhooks.store_lock_timeout = 60s
banked_webhooks.store_timeout = 100s
CONF
my $port = $service->port;
my $number = 0;

sub next_event { return event('event-' . ++$number, 'payment_sent', @_) }

# Resident memory of a process, in kilobytes.
sub memory_of
{
	my ($pid) = @_;
	my ($kb) = slurp_file("/proc/$pid/status") =~ /^VmRSS:\s+(\d+) kB/m;
	return $kb;
}


# Does a receiver wait for a lock?
sub waits_for_lock
{
	return $service->sql(q(select count(*) from pg_stat_activity
		where backend_type = 'banked_webhooks receiver' and wait_event_type = 'Lock')) > 0;
}

$service->register('/hook');
ok_until(sub { $service->post('/hook', next_event()) == 200 }, 'served');
my ($gateway) = $service->pids('gateway');
my ($receiver) = $service->pids('receiver');

# More deliveries than may be pending, while none can be stored.
{
	my $locker = $service->session;
	$locker->query_safe('begin');
	$locker->query_safe('lock table banked.events in access exclusive mode');

	my @bodies = map { event("pending-$_", 'payment_sent') } 1 .. 12;
	my @clients = map { $service->connect } @bodies;
	my $start = time;
	$clients[$_]->send(request('/hook', $bodies[$_])) foreach 0 .. $#bodies;
	ok_until(\&waits_for_lock, 'a batch waits for a lock');

	# Whoever has no answer yet is pending.
	my %waiting = map { $_ => $clients[$_] } 0 .. $#clients;
	my @refused;
	wait_until(
		sub {
			foreach my $i (keys %waiting)
			{
				my $answer = $waiting{$i}->receive_some;
				next unless defined $answer;
				push @refused, $answer;
				delete $waiting{$i};
			}
			return @refused >= 8;
		});
	ok(time - $start < 5, 'max_pending: all but four of twelve are answered at once');
	is(tally(map { $_ ? $_->{status} : 0 } @refused), '503: 8', 'with 503');
	is(scalar(grep { $_ && $_->{headers}{'retry-after'} } @refused), 8, 'and Retry-After');
	is($service->post('/hook',    next_event(), signature => undef), 503, '503 before the signature');
	is($service->post('/nowhere', next_event()),                     404, '404 before 503');
	is($service->post('/hook',    'x' x 61441),                      413, '413 before 503');

	is(tally(map { my $answer = $_->receive; $answer ? $answer->{status} : 0 } values %waiting), '503: 4', 'answer_timeout: those four get 503 too');
	my $duration = time - $start;
	ok($duration > 5.5 && $duration < 20, 'after about answer_timeout') or diag $duration;
	$locker->query_safe('rollback');
	$locker->quit;
	is(tally(map { my $body = $_; wait_until(sub { $service->post('/hook', $body) == 200 }) } @bodies), '1: 12', 'when they come again they are taken');
	is($service->sql(q(select count(*) from banked.events where event_id like 'pending-%')), 12, 'and are there once');
	ok_until(sub { $service->stat('rejections', { reason => 'answer_timeout' }) >= 4 }, 'stats count answer_timeout');
	ok_until(sub { $service->stat('rejections', { reason => 'overloaded' }) >= 9 }, 'and overload');
}

# Bytes count too.
{
	my $locker = $service->session;
	$locker->query_safe('begin');
	$locker->query_safe('lock table banked.events in access exclusive mode');
	my $large = next_event(filler => 'x' x 40000);
	my $waiting = $service->connect;
	$waiting->send(request('/hook', $large));
	ok_until(\&waits_for_lock, 'a large delivery is pending');
	is($service->post('/hook', next_event(filler => 'x' x 40000)), 503, 'max_pending_size: another is answered with 503');
	$locker->query_safe('rollback');
	$locker->quit;
	is($waiting->receive->{status}, 200, 'the first is stored');
	is($service->post('/hook', next_event(filler => 'x' x 40000)), 200, 'and then there is room again');
}

# More connections than max_connections: everybody gets an answer.
{
	my @lists = map { [ request('/hook', next_event(), headers => ['Connection: close']) ] } 1 .. 120;
	my @statuses = map { @$_ } exchange_all($port, @lists);
	is(scalar(grep { $_ != 200 && $_ != 503 } @statuses), 0, '120 clients at once: 200 or 503 each') or diag tally(@statuses);
	my @idle = grep { defined } map { $service->connect } 1 .. 120;
	ok(@idle > 0, 'clients that say nothing');
	undef @idle;
	ok_until(sub { $service->post('/hook', next_event()) == 200 }, 'when they are gone all is as before');
}

# A client that sends and sends, and reads nothing.
{
	my $client = $service->connect;
	my $one = "GET /hook HTTP/1.1\r\nHost: a\r\n\r\n";
	my $before = memory_of($gateway);
	my $sent = 0;
	my $deadline = time + 1;
	while ($sent < 20_000_000 && time < $deadline)
	{
		my $count = syswrite $client->{socket}, $one x 1000;
		$sent += $count // 0;
		last unless defined $count || $!{EAGAIN};
	}
	note "$sent bytes sent";
	is($service->post('/hook', next_event()), 200, 'others are served beside a client that never reads');
	my $growth = memory_of($gateway) - $before;
	ok($growth < 20_000, 'the gateway holds nothing for it') or diag "$growth kB more";
	$client->reset;
}

# Noise.
{
	srand 42;
	foreach my $round (1 .. 150)
	{
		my $client = $service->connect or next;
		my $bytes = join '', map { chr int rand 256 } 1 .. 1 + rand 2000;
		$bytes = request('/hook', next_event()) if $round % 3 == 0;
		# A proper request with a few bytes changed.
		substr $bytes, rand length $bytes, 1, chr int rand 256 foreach 1 .. 3;
		$client->send($bytes);
		$client->receive_some if $round % 2;
		$round % 5 ? $client->close : $client->reset;
	}
	ok_until(sub { $service->post('/hook', next_event()) == 200 }, 'noise changes nothing');
}

# No memory is lost: the second ten thousand requests take no more than the first.
{
	my @growth;
	foreach my $round (1 .. 3)
	{
		my @lists = map { [ map { request($_ % 4 ? '/hook' : '/nowhere', $_ % 3 ? next_event() : '{broken ' . ++$number) } 1 .. 600 ] } 1 .. 4;
		exchange_all($port, @lists);
		push @growth, [ memory_of($gateway), memory_of($receiver) ];
	}
	note join ', ', map { "@$_" } @growth;
	ok($growth[2][0] - $growth[1][0] < 1000, 'the gateway does not grow');
	ok($growth[2][1] - $growth[1][1] < 2000, 'nor does the receiver');
}

is(($service->pids('gateway'))[0], $gateway, 'all this was one gateway');
is(($service->pids('receiver'))[0], $receiver, 'and one receiver');
ok($service->sql('select count(*) from banked.rejections') <= 10000, 'the record of rejections is bounded');

$service->check_log;
done_testing();
