
# The gateway may die, hang or lie: it is replaced, and nobody else notices.

use strict;
use warnings;

use BankedWebhooks;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

my $service = BankedWebhooks->new;
my $node = $service->node;
my $number = 0;

sub deliver { return $service->post('/hook', event('event-' . ++$number, 'payment_sent')) }
sub served { return wait_until(sub { deliver() == 200 }) }

# The gateway's pid when it is another one than before.
sub replaced
{
	my ($old) = @_;
	my @now = grep { $_ != $old } $service->pids('gateway');
	return @now ? $now[0] : undef;
}

sub lines_of { my ($text) = @_; return grep { /gateway/ } split /\n/, $text }

$service->register('/hook');
ok(served(), 'served');

# A session that is open all the time, with an open transaction: it would be
# ended by a crash of any process that is attached to shared memory.
my $witness = $service->session;
my $backend = $witness->query_safe('select pg_backend_pid()');
$witness->query_safe('begin');
$witness->query_safe('create temporary table witness (a int)');
my ($receiver) = $service->pids('receiver');
$service->allow('gateway');

# What it counts is told while it is busy too: it is never silent here for long enough to be asked why.
{
	my $before = $service->stat('requests_total');
	my $sent = 0;
	my $start = time;
	while (time - $start < 2.5)
	{
		deliver();
		$sent++;
		select undef, undef, undef, 0.05;
	}
	cmp_ok($service->stat('requests_total') - $before, '>', $sent / 3, "stats: requests of a gateway that had $sent without a pause");
	is($service->stat('gateway_sandboxed'), 1, 'and its sandbox');
}

sub nobody_noticed
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	is($witness->query_safe('select pg_backend_pid()'), $backend, "$name: the other session goes on");
	is(($service->pids('receiver'))[0], $receiver, "$name: the receiver is the same");
	return;
}

# It is a process of its own.
my ($gateway) = $service->pids('gateway');
ok($gateway, 'the gateway runs');
is($service->stat('gateway_pid'), $gateway, 'stats tells its pid');
{
	my ($session_of_gateway) = slurp_file("/proc/$gateway/stat") =~ /\) \S \d+ \d+ (\d+) /;
	is($session_of_gateway, $gateway, 'it is a session of its own, out of reach of signals to the group of its receiver');
	unlike(slurp_file("/proc/$gateway/cmdline"), qr/$KEY/, 'its command line holds no key');
	ok(!open(my $memory, '<', "/proc/$gateway/mem"), 'its memory cannot be read by other processes of the same user');
}

# Killed.
my $waiting = $service->connect;
my $mark = $service->log_mark;
$waiting->send("POST /hook HTTP/1.1\r\nHost: a\r\n");
ok_until(sub { $service->stat('connections') >= 1 }, 'a client is in the middle of its request');
kill 'KILL', $gateway;
ok_until(sub { replaced($gateway) }, 'killed, it is replaced within seconds', 5);
ok(served(), 'the new one serves');
ok($waiting->wait_for_end, 'connections of the old one are reset');
nobody_noticed('kill -9');
is(scalar(lines_of($service->log_since($mark))), 1, 'one line in the log') or diag $service->log_since($mark);
is($service->stat('gateway_restarts'), 1, 'stats counts the restart');

# Hanging.  A stopped process keeps its sockets: only the heartbeat tells.
($gateway) = $service->pids('gateway');
$mark = $service->log_mark;
kill 'STOP', $gateway;
ok_until(sub { replaced($gateway) }, 'stopped, it is replaced within seconds', 5);
ok(!-e "/proc/$gateway", 'and the old one is gone, not a zombie');
ok(served(), 'the new one serves');
nobody_noticed('SIGSTOP');
is(scalar(lines_of($service->log_since($mark))), 1, 'one line in the log') or diag $service->log_since($mark);

# Signals that are meant for others.
($gateway) = $service->pids('gateway');
kill $_, $gateway foreach qw(INT TERM HUP);
is(deliver(), 200, 'SIGINT, SIGTERM and SIGHUP change nothing');
$service->sql("select pg_cancel_backend($receiver)");
is(deliver(), 200, 'nor does pg_cancel_backend of the receiver');
is(($service->pids('gateway'))[0], $gateway, 'it is still the same process');
nobody_noticed('signals');

# Terminated with its receiver.
$service->allow('terminating (?:background worker|connection)');
$service->sql("select pg_terminate_backend($receiver)");
ok_until(sub { !-e "/proc/$gateway" }, 'it ends with its receiver');
ok(served(), 'both are replaced');
is($witness->query_safe('select pg_backend_pid()'), $backend, 'the other session goes on');
$witness->query_safe('commit');
$witness->quit;

# Several deaths in a row, under load.
{
	my @lists = map { my $client = $_; [ map { request('/hook', event("load-$client-$_", 'payment_sent')) } 1 .. 40 ] } 1 .. 8;
	my $killer = fork;
	die "could not fork: $!" unless defined $killer;
	if ($killer == 0)
	{
		# A plain process: none of the test's handlers.
		require POSIX;
		alarm 0;
		foreach (1 .. 3)
		{
			my ($victim) = grep { $_ } split ' ', BankedWebhooks::slurp_children(($service->pids('receiver'))[0] // 0);
			kill 'KILL', $victim if $victim;
			select undef, undef, undef, 0.2;
		}
		POSIX::_exit(0);
	}
	my @statuses = exchange_all($service->port, @lists);
	waitpid $killer, 0;
	ok(served(), 'served after three deaths under load');
	my $good = grep { $_ == 200 } map { @$_ } @statuses;
	my $rows = $service->sql(q(select count(*) from banked.events where event_id like 'load-%'));
	ok($rows >= $good, 'every 200 has its row') or diag "$good times 200, $rows rows";
}
$service->check_log;
$node->stop;

# The postmaster as the one who inherits orphans, as in a container, where it
# is process 1.  A child of a backend that dies unreaped would be taken for a
# crashed server process, and the whole cluster be restarted.
SKIP:
{
	chomp(my $machine = `uname -m`);
	my $prctl = { x86_64 => 157, aarch64 => 167 }->{$machine};
	skip "the number of prctl on $machine is not known here", 4 unless $prctl;

	my $pid = fork;
	die "could not fork: $!" unless defined $pid;
	if ($pid == 0)
	{
		my $PR_SET_CHILD_SUBREAPER = 36;
		syscall $prctl, $PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0;
		open STDOUT, '>>', $node->logfile;
		open STDERR, '>&', \*STDOUT;
		exec 'postgres', '-D', $node->data_dir;
		exit 127;
	}
	$service->allow('the database system is starting up');
	ok_until(sub { $node->raw_connect_works && $service->is_up }, 'the server runs as a subreaper');
	$node->_update_pid(1);
	ok(served(), 'and serves');
	my $session = $service->session;
	my $same = $session->query_safe('select pg_backend_pid()');
	foreach my $round (1 .. 3)
	{
		my ($old) = $service->pids('receiver');
		$service->sql("select pg_terminate_backend($old)");
		ok_until(sub { my ($now) = $service->pids('receiver'); $now && $now != $old && served() }, "receiver terminated, round $round");
	}
	($gateway) = $service->pids('gateway');
	kill 'KILL', $gateway;
	ok_until(sub { replaced($gateway) }, 'gateway killed');
	ok(served(), 'served');
	is($session->query_safe('select pg_backend_pid()'), $same, 'no other session notices');
	unlike($service->log_since, qr/terminating any other active server processes/, 'nothing was taken for a crash');
	$session->quit;
	$node->stop;
	waitpid $pid, 0;
}

# A gateway that lies: a copy of the installation in which another program has
# its place, which sends what is no frame the first time, and is the real one
# from then on.
{
	my $copy = PostgreSQL::Test::Utils::tempdir;
	my ($stage, $lib) = slurp_file($ENV{TEMP_CONFIG}) =~ m{extension_destdir = '(.*)'\ndynamic_library_path = '\1([^:]*):};
	system_or_bail('cp', '-a', "$stage/.", $copy);
	rename "$copy$lib/banked_webhooks_gateway", "$copy$lib/real_gateway" or die "could not rename: $!";
	open my $fake, '>', "$copy$lib/banked_webhooks_gateway" or die "could not write: $!";
	print $fake <<"PERL";
#!/usr/bin/perl
if (mkdir '$copy/lied')
{
	open my \$list, '>', '$copy/inherited';
	print \$list map { "\$_ " . readlink("/proc/self/fd/\$_") . "\\n" } grep { \$_ ne fileno \$list } 0 .. 200;
	print \$list map { "\$_=\$ENV{\$_}\\n" } keys %ENV;
	close \$list;
	open my \$link, '>&=', 3;
	syswrite \$link, "this is no frame at all, but bytes of a taken-over program";
	sleep 60;
}
exec '$copy$lib/real_gateway', \@ARGV;
PERL
	close $fake;
	chmod 0755, "$copy$lib/banked_webhooks_gateway";
	$node->append_conf('postgresql.conf', "extension_destdir = '$copy'\ndynamic_library_path = '$copy$lib:\$libdir'");
	$mark = $service->log_mark;
	$node->start;
	ok(served(), 'a gateway that sends no frames is replaced by one that does');
	ok(-d "$copy/lied", '(it did)');
	my @inherited = split /\n/, slurp_file("$copy/inherited");
	my @open = grep { /^\d+ ./ } @inherited;
	my @sockets = grep { /^\d+ socket:/ } @open;
	is(scalar @sockets, 2, 'it inherits the link and the listening socket') or diag join "\n", @open;
	is("@{[ grep { !/^[012] / && !/ socket:/ && !m{/real_gateway|/banked_webhooks_gateway$} } @open ]}", '', 'and no file of the server');
	unlike(join("\n", @inherited), qr/$KEY/, 'nor a key');
	my @lines = lines_of($service->log_since($mark));
	is(scalar @lines, 1, 'one line says so') or diag join "\n", @lines;
}

$service->check_log;
done_testing();
