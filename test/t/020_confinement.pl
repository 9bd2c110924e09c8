
# The gateway can do nothing but its job: what the kernel says of the running
# process, and the setting that takes the filter away.  (That each forbidden
# thing is refused is tried in test/unit/sandbox_test.c, in the same sandbox.)

use strict;
use warnings;

use BankedWebhooks;
use PostgreSQL::Test::Utils;
use Test::More;

my $service = BankedWebhooks->new;
my $number = 0;

sub deliver { return $service->post('/hook', event('event-' . ++$number, 'payment_sent')) }

# What /proc says of the gateway, as a hash.
sub status_of
{
	my ($pid) = @_;
	return map { /^(\w+):\s*(.*)/ ? ($1 => $2) : () } split /\n/, slurp_file("/proc/$pid/status");
}

sub gateway_other_than
{
	my ($old) = @_;
	return wait_until(sub { my ($now) = $service->pids('gateway'); $now && $now != $old ? $now : 0 });
}

$service->register('/hook');
ok_until(sub { deliver() == 200 }, 'served');
$service->allow('gateway of webhooks');

my ($gateway) = $service->pids('gateway');
my %status = status_of($gateway);
is($status{Seccomp}, 2, 'a filter of system calls is in force');
is($status{NoNewPrivs}, 1, 'no new privileges');
is($status{Threads}, 1, 'one thread');
{
	my %limit = map { /^(Max [a-z ]+?)\s{2,}(\S+)\s+(\S+)/ ? ($1 => "$2 $3") : () } split /\n/, slurp_file("/proc/$gateway/limits");
	is($limit{'Max core file size'}, '0 0', 'no core files');
	is($limit{'Max processes'}, '0 0', 'no processes');
	is($limit{'Max locked memory'}, '0 0', 'no locked memory');
	my ($soft, $hard) = split ' ', $limit{'Max open files'};
	is($soft, $hard, 'as many connections as the administrator permits');
}

# Not dumpable: others of the same user, as this test is, see nothing of it.
SKIP:
{
	skip 'root sees everything', 4 if $> == 0;
	ok(!defined readlink("/proc/$gateway/$_"), "$_ cannot be read by others of the same user") foreach qw(cwd exe);
	ok(!opendir(my $directory, "/proc/$gateway/fd"), 'nor its descriptors');
	ok(!open(my $environment, '<', "/proc/$gateway/environ"), 'nor its environment');
}

ok_until(sub { $service->stat('gateway_sandboxed') == 1 }, 'stats says that it is sandboxed');
is($service->sql('select gateway_sandboxed from banked.receivers'), 't', 'and so does the view');

# Off and on again: the gateway is replaced, and no delivery is lost.
my $held = $service->connect;
$held->send(request('/hook', event('before', 'payment_sent')));
is($held->receive->{status}, 200, 'a connection is open');
$service->sql('alter system set banked_webhooks.gateway_sandbox = off');
$service->sql('select pg_reload_conf()');
my $bare = gateway_other_than($gateway);
ok($bare, 'switched off, the gateway is replaced');
ok($held->wait_for_end, 'the connections of the old one are closed in order');
is($held->remaining, '', '... without an answer that nobody asked for');
ok_until(sub { deliver() == 200 }, 'served');
%status = status_of($bare);
is($status{Seccomp}, 0, 'without a filter');
is($status{NoNewPrivs}, 1, 'still no new privileges');
ok_until(sub { $service->stat('gateway_pid') == $bare && $service->stat('gateway_sandboxed') == 0 }, 'stats says so');
is($service->stat('gateway_restarts'), 0, 'that was no failure');

$service->sql('alter system reset banked_webhooks.gateway_sandbox');
$service->sql('select pg_reload_conf()');
$gateway = gateway_other_than($bare);
ok_until(sub { deliver() == 200 }, 'served');
%status = status_of($gateway);
is($status{Seccomp}, 2, 'switched on, there is a filter again');

# What the kernel does to a gateway that tries something is told in the log.
my $mark = $service->log_mark;
kill 'SYS', $gateway;
ok(gateway_other_than($gateway), 'a gateway that made a forbidden call is replaced');
my @lines = grep { /gateway/ } split /\n/, $service->log_since($mark);
is(scalar @lines, 1, 'one line') or diag join "\n", @lines;
like($lines[0], qr/made a forbidden system call and was ended for that, starting another one/, 'says why');
ok_until(sub { deliver() == 200 }, 'served');

# Nobody but superusers decides about it.
$service->sql('create role somebody');
like($service->sql_error('set role somebody; set banked_webhooks.gateway_sandbox = off'),
	qr/cannot be changed now/, 'no session can change it');

$service->check_log;
done_testing();
