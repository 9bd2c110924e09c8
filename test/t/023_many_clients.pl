
# Clients in numbers: slow ones of every kind at once, the same delivery a
# thousand times at once, connections to the limit, descriptors to the limit.
# Good deliveries get their 200 in normal time meanwhile and afterwards.

use strict;
use warnings;

use BankedWebhooks;
use BankedWebhooks::Certificates;
use BankedWebhooks::Processes qw(idle resident_size share_of);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Socket qw(SOL_SOCKET SO_RCVBUF);
use Test::More;
use Time::HiRes qw(time);

my $EACH = 500;

# As many descriptors as this process may have.
{
	chomp(my $machine = `uname -m`);
	my $prlimit = { x86_64 => 302, aarch64 => 261 }->{$machine};
	my $RLIMIT_NOFILE = 7;
	chomp(my $hard = `sh -c "ulimit -H -n"`);
	$hard = 20000 if $hard eq 'unlimited' || $hard > 20000;
	my $limit = pack 'QQ', $hard, $hard;
	syscall $prlimit, 0, $RLIMIT_NOFILE, $limit, 0 if $prlimit && $hard =~ /^\d+$/;
	chomp(my $now = `sh -c "ulimit -n"`);
	my $possible = int(($now - 200) / 8);
	if ($possible < $EACH)
	{
		diag "the limit of open files, $now, permits only $possible clients of each kind";
		$EACH = $possible;
	}
}

my ($cert_file, $key_file) = BankedWebhooks::Certificates->new->issue('server');
my $tls_port = PostgreSQL::Test::Cluster::get_free_port();
my $service = BankedWebhooks->new(conf => <<"CONF");
banked_webhooks.tls_port = $tls_port
banked_webhooks.tls_cert_file = '$cert_file'
banked_webhooks.tls_key_file = '$key_file'
banked_webhooks.max_connections = 5000
banked_webhooks.request_timeout = 15s
CONF
$service->register('/hook');
my $number = 0;
sub fresh { return event('event-' . ++$number, 'payment_sent') }
sub good { return $service->post('/hook', fresh()) == 200 }
ok_until(\&good, 'served');
my ($gateway) = $service->pids('gateway');
my ($receiver) = $service->pids('receiver');

# Good deliveries one after the other; none may take long.
sub good_ones
{
	my ($count, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $longest = 0;
	my $good = 0;

	foreach (1 .. $count)
	{
		my $start = time;
		$good++ if good();
		my $time = time - $start;
		$longest = $time if $time > $longest;
	}
	is($good, $count, "$name: $count good deliveries are stored");
	ok($longest < 5, '... each in normal time') or diag "longest: $longest s";
	return;
}

# 500 of each at once.
{
	my $memory = resident_size($gateway);
	my $request = request('/hook', event('slow', 'payment_sent'));
	my (@headers, @bodies, @handshakes, @readers);

	foreach (1 .. $EACH)
	{
		push @headers, $service->connect;
		$headers[-1]->send("POST /hook HTTP/1.1\r\nHost: a\r\n");
		push @bodies, $service->connect;
		$bodies[-1]->send(substr $request, 0, -20);
		push @handshakes, BankedWebhooks::Connection->new($tls_port);
		$handshakes[-1]->send("\x16\x03\x01\x02\x00\x01\x00\x01");
		push @readers, $service->connect;
		$readers[-1]{socket}->setsockopt(SOL_SOCKET, SO_RCVBUF, 2048);
		$readers[-1]->send($request x 4);
	}
	# A few that never read and ask for more than any buffer of the kernel holds.
	my @greedy = map { $service->connect } 1 .. 3;
	$_->{socket}->setsockopt(SOL_SOCKET, SO_RCVBUF, 2048) foreach @greedy;
	foreach my $connection (@greedy)
	{
		my $bytes = $request x 4000;
		while (length $bytes)
		{
			my $sent = syswrite $connection->{socket}, $bytes;
			last unless defined $sent;
			substr $bytes, 0, $sent, '';
		}
	}
	my @all = (@headers, @bodies, @handshakes, @readers, @greedy);
	ok_until(sub { $service->stat('connections') >= 3.9 * $EACH }, 4 * $EACH . ' slow clients are connected');
	my $share = share_of(sub { good_ones(20, 'slow clients') }, $gateway);
	cmp_ok($share, '<', 0.5, '... and the gateway is not busy with them');

	# A header, a byte of a body, and a byte of a handshake more: none of that buys time.
	$_->send("X: y\r\n") foreach @headers;
	$_->send('x') foreach @bodies, @handshakes;
	good_ones(20, 'slow clients that send a little');
	ok_until(sub { $service->stat('connections') == 0 }, 'all of them are closed at request_timeout');
	good_ones(20, 'afterwards');
	my $still_open = grep { !$_->wait_for_end } @headers, @bodies, @handshakes;
	is($still_open, 0, 'every client has noticed');
	is((grep { length $_->remaining } @headers, @bodies, @handshakes), 0, 'and got no answer');
	undef @all;
	ok(idle($gateway, $receiver), 'both processes are idle');
	is($service->sql(q(select count(*) from banked.events where event_id = 'slow')), 1, 'what the slow readers sent is stored, once');

	# The answers that they got are those that the kernel took.
	my $growth = resident_size($gateway) - $memory;
	cmp_ok($growth, '<', 100 * 1024, 'memory of the gateway has not grown much') or diag "$growth kB";
	is(($service->pids('gateway'))[0], $gateway, 'the gateway is the same process');
}

# Connections to the limit.
$service->sql("alter system set banked_webhooks.max_connections = 40");
$service->sql('select pg_reload_conf()');
{
	my @held;
	ok_until(sub {
		# Those that were too many, or too long here, have been closed.
		@held = grep { !$_->wait_for_end(0.0001) } @held;
		push @held, map { $service->connect } 1 .. 40 - @held;
		return $service->stat('connections') >= 40;
	}, 'as many connections as may be');
	ok_until(sub { $service->post('/hook', fresh()) == 503 }, 'one more gets 503');

	# Far more than that wait in the kernel, and are served when there is room.
	my $body = fresh();
	my @waiting = map { $service->connect } 1 .. 100;
	$_->send(request('/hook', $body)) foreach @waiting;
	$_->close foreach @held;
	my @statuses = map { my $response = $_->receive; $response ? $response->{status} : 0 } @waiting;
	like(tally(@statuses), qr/\A(?:200: \d+(?:, 503: \d+)?|503: 100)\z/, 'a hundred more get 503 or, when there is room, 200') or diag tally(@statuses);
	$_->close foreach @waiting;
	ok_until(\&good, 'served when they are gone');
	ok(idle($gateway, $receiver), 'both processes are idle');
}
$service->check_log;
$service->node->stop;

# The same delivery 1,000 times at once, over several receivers.
my $several = BankedWebhooks->new(name => 'several', conf => "banked_webhooks.receivers = 3\nbanked_webhooks.max_connections = 2000\nbanked_webhooks.request_timeout = 100s\n");
$several->register('/hook');
ok_until(sub { $several->pids('gateway') == 3 }, 'three gateways');
$several->wait_for_path('/hook', 3);
ok_until(sub { $several->post('/hook', event('first', 'payment_sent')) == 200 }, 'three receivers serve');
{
	my $request = request('/hook', event('same', 'payment_sent'));
	my $count = 2 * $EACH;
	my @connections = map { $several->connect } 1 .. $count;
	$_->send(substr $request, 0, -1) foreach @connections;
	$_->send(substr $request, -1) foreach @connections;
	my @statuses = map { my $response = $_->receive; $response ? $response->{status} : 0 } @connections;
	is(tally(@statuses), "200: $count", "the same delivery $count times at once: each gets its 200");
	is($several->sql(q(select count(*), max(revision) from banked.events where event_id = 'same')), '1|0', 'it is stored once');
	is($several->sql('select count(*) from banked.event_revisions'), 0, '... as no revision');
	ok_until(sub { $several->stat('deliveries', { outcome => 'repetition' }) == $count - 1 }, 'the others were repetitions');
	ok_until(sub {
		$several->sql(q(select count(*) from banked.stats() where metric = 'requests_total' and value > 0)) == 3;
	}, 'all receivers took part');
}
$several->check_log;
$several->node->stop;

# Few descriptors: the gateway takes fewer connections, and says so.
my $poor = BankedWebhooks->new(name => 'poor', extension => 0, start => 0);
{
	my $node = $poor->node;
	my $command = join ' ', 'ulimit -n 440; exec pg_ctl -w -D', $node->data_dir, '-l', $node->logfile, '-o --cluster-name=poor start >/dev/null';
	is(system('bash', '-c', $command), 0, 'a server with few descriptors');
	$node->_update_pid(1);
	$poor->sql('create extension banked_webhooks');
	$poor->wait_for_port;
	$poor->register('/hook');
	ok_until(sub { $poor->post('/hook', event('first', 'payment_sent')) == 200 }, 'serves');
	my $log = $poor->log_since;
	is(scalar(() = $log =~ /max_connections is reduced from 1000 to \d+: the limit of open files is 440/g), 1, 'one line says that connections are fewer');
	my ($limit) = $log =~ /reduced from 1000 to (\d+)/;
	my ($gateway) = $poor->pids('gateway');
	my ($receiver) = $poor->pids('receiver');
	my @held = map { $poor->connect } 1 .. 200;
	ok_until(sub { $poor->stat('connections') > $limit }, 'more clients than it can serve');
	ok(idle($gateway, $receiver), '... do not make it spin');
	$_->close foreach @held;
	ok_until(sub { $poor->post('/hook', event('second', 'payment_sent')) == 200 }, 'served when they are gone');
	is(($poor->pids('gateway'))[0], $gateway, 'by the same process');
	$poor->check_log;
	$node->stop;
}
done_testing();
