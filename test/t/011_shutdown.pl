
# The server stops as fast as ever, and every answer that was given is true.

use strict;
use warnings;

use BankedWebhooks;
use Test::More;
use Time::HiRes qw(time usleep);

# Waiting for a standby takes senders of WAL.
my $service = BankedWebhooks->new(conf => <<'CONF');
wal_level = replica
max_wal_senders = 2
max_prepared_transactions = 1
banked_webhooks.store_lock_timeout = 30s
banked_webhooks.store_timeout = 60s
CONF
my $node = $service->node;
my $round = 0;

$service->allow('terminating (?:background worker|connection)|canceling (?:statement|wait)');
$service->register('/hook');
ok_until(sub { $service->post('/hook', event('first', 'payment_sent')) == 200 }, 'served');

# Sends from 16 clients in another process until the server is gone.  Its
# output names the events that were answered with 200.
sub start_load
{
	my ($prefix) = @_;
	pipe my $reader, my $writer or die "could not make a pipe: $!";
	my $pid = fork;
	die "could not fork: $!" unless defined $pid;
	if ($pid == 0)
	{
		require POSIX;
		close $reader;
		alarm 300;
		$SIG{ALRM} = 'DEFAULT';
		my %statuses;
		my @connections = map { $service->connect } 1 .. 16;
		my @sent = map { '' } @connections;
		my $number = 0;
		while (grep { $_ } @connections)
		{
			foreach my $i (grep { $connections[$_] } 0 .. $#connections)
			{
				if (!$sent[$i])
				{
					$sent[$i] = "$prefix-" . ++$number;
					$connections[$i]->send(request('/hook', event($sent[$i], 'payment_sent')));
				}
				my $response = $connections[$i]->receive_some;
				next unless defined $response;
				my $status = $response ? $response->{status} : 0;
				syswrite $writer, "$sent[$i] $status\n";
				$sent[$i] = '';
				$connections[$i] = undef if $status != 200;
			}
			usleep 200;
		}
		POSIX::_exit(0);
	}
	close $writer;
	return { pid => $pid, reader => $reader };
}

# Stops the server under load and starts it again; tests that what was
# answered with 200 is there.
sub stop_under_load
{
	my ($mode, $limit) = @_;
	my $prefix = 'load-' . ++$round;
	my $load = start_load($prefix);

	ok_until(sub { $service->sql(qq(select count(*) from banked.events where event_id like '$prefix-%')) > 200 }, "$mode: under load");
	my $start = time;
	$node->stop($mode);
	my $duration = time - $start;
	ok($duration < $limit, "$mode shutdown in under $limit s") or diag sprintf '%.1f s', $duration;
	my $reader = $load->{reader};
	my @answers = map { [split] } <$reader>;
	waitpid $load->{pid}, 0;
	note tally(map { $_->[1] } @answers);
	$node->start;
	$service->wait_for_port;
	my %stored = map { $_ => 1 } split /\n/, $service->sql(qq(select event_id from banked.events where event_id like '$prefix-%'));
	my @lost = grep { $_->[1] == 200 && !$stored{ $_->[0] } } @answers;
	is(scalar @lost, 0, "$mode: every 200 has its row");
	is(scalar(grep { $_->[1] !~ /^(?:200|503|0)$/ } @answers), 0, "$mode: nothing but 200, 503 and closed connections");
	return;
}

stop_under_load('fast', 5);
stop_under_load('fast', 5);
# An immediate shutdown loses what fsync = off has not written, but the
# operating system has it: only a crash of that would lose it.
stop_under_load('immediate', 5);

# Smart shutdown waits for sessions; ours are none.
{
	my $start = time;
	$node->stop('smart');
	ok(time - $start < 5, 'smart shutdown does not wait for us');
	$node->start;
	$service->wait_for_port;
}

# While a batch waits for a lock, held by a prepared transaction, which no shutdown ends.
{
	$service->sql(q(begin; lock table banked.events in exclusive mode; prepare transaction 'holder'));
	my $connection = $service->connect;
	$connection->send(request('/hook', event('behind-a-lock', 'payment_sent')));
	ok_until(sub { $service->sql(q(select count(*) from pg_stat_activity where wait_event_type = 'Lock' and backend_type like 'banked%')) > 0 },
		'a batch waits for a lock');
	my $start = time;
	$node->stop('fast');
	ok(time - $start < 5, 'fast shutdown in under 5 s');
	my $response = $connection->receive;
	is($response && $response->{status}, 503, 'the delivery is answered with 503');
	$node->start;
	$service->sql(q(rollback prepared 'holder'));
	ok_until(sub { $service->post('/hook', event('behind-a-lock', 'payment_sent')) == 200 }, 'and stored when it comes again');
}

# While a commit waits for a standby.
{
	$service->sql(q(alter system set synchronous_standby_names = 'nobody'));
	$node->reload;
	my ($connection, $body) = $service->send_until_it_waits_for_standby('/hook', sub { event("unreplicated-$_[0]", 'payment_sent') });
	ok($connection, 'a synchronous standby that does not come: a batch waits for it');
	my $start = time;
	$node->stop('fast');
	ok(time - $start < 5, 'fast shutdown in under 5 s');
	my $response = $connection->receive;
	is($response && $response->{status}, 503, 'the delivery is answered with 503');
	$node->start;
	$service->wait_for_port;

	# The row is there, but not replicated: a repetition must not be told otherwise.
	($connection) = $service->send_until_it_waits_for_standby('/hook', sub { $body });
	ok($connection, 'its repetition waits too');
	my ($receiver) = $service->pids('receiver');
	$service->sql("select pg_cancel_backend($receiver)");
	$response = $connection->receive;
	is($response && $response->{status}, 503, 'a cancelled wait is answered with 503');

	# Most repetitions write nothing to the WAL by themselves, not even for a sequence: they must wait all the same.
	foreach my $number (2, 3)
	{
		$connection = $service->connect;
		$connection->send(request('/hook', $body));
		ok_until(sub { $service->waits_for_standby }, "so does repetition $number");
		$service->sql("select pg_cancel_backend($receiver)");
		$response = $connection->receive;
		is($response && $response->{status}, 503, 'and its cancelled wait is answered with 503');
	}
	$service->sql(q(alter system reset synchronous_standby_names));
	$node->reload;
	ok_until(sub { $service->post('/hook', $body) == 200 }, 'and with 200 once it is safe');
}

$service->check_log;
done_testing();
