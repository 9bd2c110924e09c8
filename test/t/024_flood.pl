
# A flood of requests that are not authentic: good deliveries hardly notice, and
# what is recorded of it is bounded.

use strict;
use warnings;

use BankedWebhooks;
use BankedWebhooks::Processes qw(idle);
use Test::More;
use Time::HiRes qw(time usleep);

my $RATE = 500;					# requests per second
my $COUNT = 500;				# good deliveries for one measurement

# Commits go to disk, as they do where it matters.
my $service = BankedWebhooks->new(conf => "fsync = on\nbanked_webhooks.rejection_log_limit = 1000\n");
$service->register('/hook');
my $number = 0;
ok_until(sub { $service->post('/hook', event('first', 'payment_sent')) == 200 }, 'served');
my ($gateway) = $service->pids('gateway');
my ($receiver) = $service->pids('receiver');

# The 50th and 99th percentile of the time that a good delivery takes, in milliseconds.
sub measure
{
	my $connection = $service->connect;
	my @times;

	foreach (1 .. $COUNT)
	{
		my $request = request('/hook', event('event-' . ++$number, 'payment_sent'));
		my $start = time;
		$connection->send($request);
		my $response = $connection->receive or die 'no answer';
		push @times, 1000 * (time - $start);
		die "status $response->{status}" unless $response->{status} == 200;
	}
	@times = sort { $a <=> $b } @times;
	return @times[ int(0.5 * $COUNT), int(0.99 * $COUNT) ];
}

# A process that sends at the rate, evenly: unknown paths, bad framing, wrong
# signatures.  Several at once would delay what comes with them by the time of all.
sub start_flood
{
	my $pid = fork;
	die "could not fork: $!" unless defined $pid;
	return $pid if $pid;

	require POSIX;
	alarm 300;
	$SIG{ALRM} = $SIG{TERM} = sub { POSIX::_exit(0) };
	my @requests = (
		request('/nowhere', 'x'),
		"POST /hook HTTP/1.1\r\nHost: a\r\nX Y: 1\r\nContent-Length: 1\r\n\r\nx",
		request('/hook', event('forged', 'payment_sent'), key => 'not the key'));
	my ($start, $sent) = (time, 0);
	for (;;)
	{
		my $connection = $service->connect or next;
		$connection->send($requests[ $sent++ % @requests ]);
		$connection->receive(1);
		my $ahead = $sent / $RATE - (time - $start);
		usleep(1e6 * $ahead) if $ahead > 0;
	}
}

# Alternating, and up to twelve times, since the machine has other things to do.
my $best;
foreach (1 .. 12)
{
	last if defined $best && $best <= 2;
	my ($quiet_half, $quiet) = measure();
	my $flood = start_flood();
	usleep 100_000;
	my ($flooded_half, $flooded) = measure();
	kill 'TERM', $flood;
	waitpid $flood, 0;
	note sprintf 'median %.2f ms and 99th percentile %.2f ms without a flood, %.2f ms and %.2f ms in it', $quiet_half, $quiet, $flooded_half, $flooded;
	$best = $flooded / $quiet if !defined $best || $flooded / $quiet < $best;
}
cmp_ok($best, '<=', 2, 'the 99th percentile of good deliveries is at most twice what it was');

ok_until(sub { $service->stat('rejections') > 100 }, 'the flood was counted');
ok_until(sub { $service->sql('select coalesce(sum(count), 0) from banked.rejections') > 100 }, 'and recorded');
my ($rows, $counted) = split /\|/, $service->sql('select count(*), sum(count) from banked.rejections');
cmp_ok($rows, '<', $counted / 2, 'in fewer rows than there were requests') or diag "$rows rows for $counted requests";
is($service->sql('select count(*) from banked.events'), $number + 1, 'nothing of it was stored');
ok(idle($gateway, $receiver), 'both processes are idle');

# A lower limit holds for what is there, too.
sub limit
{
	my ($limit) = @_;
	$service->sql("alter system set banked_webhooks.rejection_log_limit = $limit");
	$service->node->reload;
	return;
}
my $newer = $service->sql('select received_at from banked.rejections order by 1 desc offset 1 limit 1');
cmp_ok($rows, '>', 2, 'there are more rows than a lower limit allows');
limit(2);
ok_until(sub { $service->sql('select count(*) from banked.rejections') == 2 }, 'a lower limit: those above it go, without another request');
is($service->sql("select min(received_at) >= '$newer' from banked.rejections"), 't', 'the newest stay');
limit(0);
ok_until(sub { $service->sql('select count(*) from banked.rejections') == 0 }, '0 keeps none');
is($service->post('/nowhere', 'x'), 404, 'a request that is refused');
ok(idle($gateway, $receiver), 'nobody is busy with that');
is($service->sql('select count(*) from banked.rejections'), 0, 'nothing is recorded');
limit(10);
is($service->post('/nowhere', 'x'), 404, 'another one, under a limit again');
ok_until(sub { $service->post('/nowhere', 'x') == 404 && $service->sql('select count(*) from banked.rejections') > 0 }, 'is recorded');
is(($service->pids('gateway'))[0], $gateway, 'the gateway is the same process');
$service->check_log;
done_testing();
