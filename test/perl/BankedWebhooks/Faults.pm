
# Faults.pm
#	  What goes wrong in a cycle of the soak test (Soak.pm).
#
# A fault may prepare something before the load starts.  Then, under load, it
# does its damage, makes an end of it where that is not the service's own task,
# and expects the service back; after the judgement it may clean up.  log:
# what the server's log may say because of it.  needs: volume, for one that
# wants a small file system of its own.

package BankedWebhooks::Faults;

use strict;
use warnings;

use BankedWebhooks;
use File::Path ();
use POSIX qw(uname);
use PostgreSQL::Test::Utils;
use Time::HiRes qw(time usleep);

our %faults;

my @crash = (
	qr/was terminated by signal 9/,
	qr/exited with exit code 2/,
	qr/WARNING:  terminating connection because of crash of another server process/,
	qr/FATAL:  the database system is /);
my @restart = (qr/FATAL:  the database system is /, qr/FATAL:  terminating (?:connection|background worker)/);
my @killed = (@restart, qr/FATAL:  (?:postmaster exited|pre-existing shared memory block)/, qr/exited with exit code 2/);
my @terminated = (qr/FATAL:  terminating (?:background worker|connection) .* due to administrator command/);
my @replication = (
	qr/FATAL:  could not (?:connect to|receive data from|send data to|send end-of-streaming message to)/,
	qr/FATAL:  terminating walreceiver/,
	qr/WARNING:  canceling (?:the )?wait for synchronous replication/);

sub sql { my ($soak, $query) = @_; return $soak->service->sql($query) }

# Sends a signal to the first process of a kind; returns its pid.
sub signal
{
	my ($soak, $signal, $kind) = @_;
	my ($pid) = $soak->service->pids($kind);
	$soak->violation("there is no $kind") unless $pid;
	kill $signal, $pid if $pid;
	return $pid;
}

# Calls a function of the server on a process of a kind, again and again, whatever its pid is then.
sub call_repeatedly
{
	my ($soak, $function, $kind, $count, $pause) = @_;
	sql($soak, <<"SQL");
do \$\$
begin
	for i in 1 .. $count loop
		perform pg_stat_clear_snapshot();
		perform $function(pid) from pg_stat_activity where backend_type = 'banked_webhooks $kind';
		perform pg_sleep($pause);
	end loop;
end \$\$
SQL
	return;
}

# ---------------------------------------------------------------------------
# Our processes
# ---------------------------------------------------------------------------

$faults{gateway_kill} = {
	run => sub {
		my ($soak) = @_;
		foreach (1 .. 3)
		{
			signal($soak, 'KILL', 'gateway');
			$soak->expect_service;
		}
	},
};

$faults{gateway_stop} = {
	run => sub {
		my ($soak) = @_;
		my $pid = signal($soak, 'STOP', 'gateway');
		$soak->expect_service;

		# The other receiver may have served meanwhile.
		my $until = time + 2;
		usleep 20_000 while kill(0, $pid) && time < $until;
		kill 0, $pid and $soak->violation('a stopped gateway is still there');
	},
};

$faults{receiver_kill} = {
	log => \@crash,
	run => sub {
		my ($soak) = @_;
		signal($soak, 'KILL', 'receiver');
		usleep 100_000;
		$soak->expect_service if $soak->expect_server;
	},
};

# A receiver that stands still for a while, as on a machine without memory.
$faults{receiver_stop} = {
	run => sub {
		my ($soak) = @_;
		my $pid = signal($soak, 'STOP', 'receiver');
		usleep 1_500_000;
		kill 'CONT', $pid;
		$soak->expect_service;
	},
};

$faults{receiver_terminate} = {
	log => \@terminated,
	run => sub {
		my ($soak) = @_;
		call_repeatedly($soak, 'pg_terminate_backend', 'receiver', 1, 0);
		$soak->expect_service;
	},
};

# Ends soon after the start put the next start off: by 250 ms, then more.
$faults{receiver_terminate_often} = {
	log => \@terminated,
	run => sub {
		my ($soak) = @_;
		call_repeatedly($soak, 'pg_terminate_backend', 'receiver', 4, 0.1);
		$soak->expect_service;
	},
};

$faults{receiver_cancel} = {
	run => sub {
		my ($soak) = @_;
		call_repeatedly($soak, 'pg_cancel_backend', 'receiver', 50, 0.005);
		$soak->expect_service;
	},
};

$faults{launcher_terminate} = {
	log => \@terminated,
	run => sub {
		my ($soak) = @_;
		call_repeatedly($soak, 'pg_terminate_backend', 'launcher', 1, 0);
		wait_until(sub { $soak->service->pids('launcher') }, 5) or $soak->violation('no launcher');
		$soak->expect_service;
	},
};

$faults{launcher_cancel} = {
	run => sub {
		my ($soak) = @_;
		call_repeatedly($soak, 'pg_cancel_backend', 'launcher', 10, 0.01);
		$soak->expect_service;
	},
};

# ---------------------------------------------------------------------------
# The server
# ---------------------------------------------------------------------------

# Stops the server; what it leaves behind is a violation.
sub stop_server
{
	my ($soak, $mode) = @_;
	my $start = time;
	$soak->service->node->stop($mode);
	my $duration = time - $start;
	$soak->violation(sprintf '%s shutdown took %.1f s', $mode, $duration) if $duration > 5;
	return;
}

sub start_server
{
	my ($soak) = @_;
	$soak->service->node->start(fail_ok => 1) or die "the server does not start\n";
	return;
}

foreach my $mode (qw(fast smart immediate))
{
	$faults{"stop_$mode"} = {
		log => [ @crash, @restart ],
		run => sub {
			my ($soak) = @_;
			stop_server($soak, $mode);
			usleep rand 300_000;
			start_server($soak);
			$soak->expect_service;
		},
	};
}

# Kills the postmaster and waits until its children have noticed.
sub kill_server
{
	my ($soak) = @_;
	my $node = $soak->service->node;
	my $postmaster = $node->{_pid};
	my @children = split ' ', BankedWebhooks::slurp_children($postmaster);
	push @children, map { split ' ', BankedWebhooks::slurp_children($_) } @children;

	$node->kill9;
	wait_until(sub { !grep { is_running($_) } @children }, 5)
	  or $soak->violation('children outlive the postmaster: ' . join ', ', grep { is_running($_) } @children);
	# Until it is reaped its lock file counts.
	wait_until(sub { !kill 0, $postmaster }, 10);
	return;
}

sub is_running
{
	my ($pid) = @_;
	open my $handle, '<', "/proc/$pid/stat" or return 0;
	return (<$handle> // '') !~ /\) Z /;
}

$faults{postmaster_kill} = {
	log => \@killed,
	run => sub {
		my ($soak) = @_;
		kill_server($soak);
		start_server($soak);
		$soak->expect_service;
	},
};

# As in a container, where the postmaster is the parent of everything that has
# lost its own: an ended gateway must not look like a crashed server process.
$faults{subreaper} = {
	log => [ @restart, @terminated ],
	prepare => sub {
		my ($soak) = @_;
		$soak->service->node->stop;
		start_as_subreaper($soak);
		$soak->expect_server;
	},
	run => sub {
		my ($soak) = @_;
		my $bystander = $soak->service->session;
		my $pid = $bystander->query_safe('select pg_backend_pid()');

		signal($soak, 'KILL', 'gateway');
		$soak->expect_service;
		call_repeatedly($soak, 'pg_cancel_backend', 'receiver', 5, 0.01);
		call_repeatedly($soak, 'pg_terminate_backend', 'receiver', 2, 0.3);
		$soak->expect_service;
		$soak->violation('another session has noticed') if (eval { $bystander->query_safe('select pg_backend_pid()') } // '') ne $pid;
		$bystander->quit;
	},
	repair => sub {
		my ($soak) = @_;
		$soak->service->node->restart;
		$soak->service->wait_for_port;
	},
};

sub start_as_subreaper
{
	my ($soak) = @_;
	my $node = $soak->service->node;
	my ($bindir) = run_command([ 'pg_config', '--bindir' ]);
	my %prctl = (x86_64 => 157, aarch64 => 167);
	my $call = $prctl{ (uname())[4] } or die "the number of prctl on this machine is not known\n";

	my $pid = fork // die "could not fork: $!\n";
	if ($pid == 0)
	{
		POSIX::setsid();
		POSIX::dup2(POSIX::open('/dev/null', POSIX::O_RDONLY), 0);
		POSIX::dup2(POSIX::open($node->logfile, POSIX::O_WRONLY | POSIX::O_APPEND), $_) foreach 1, 2;
		$SIG{$_} = 'DEFAULT' foreach qw(ALRM INT TERM);
		# PR_SET_CHILD_SUBREAPER
		syscall($call, 36, 1, 0, 0, 0) == 0 && exec "$bindir/postgres", '-D', $node->data_dir;
		POSIX::_exit(1);
	}
	wait_until(sub { $soak->service->is_up }) or die "no server\n";
	$node->_update_pid(1);
	return;
}

# ---------------------------------------------------------------------------
# The database
# ---------------------------------------------------------------------------

# Expects that deliveries were refused since.
sub expect_refusals
{
	my ($soak, $before) = @_;
	wait_until(sub { refusals($soak) > $before }, 5) or $soak->violation('nothing was refused');
	return;
}

sub refusals { my ($soak) = @_; return $soak->service->stat('deliveries', { outcome => 'unavailable' }) }

$faults{lock} = {
	run => sub {
		my ($soak) = @_;
		my $before = refusals($soak);
		my $locker = $soak->service->session;
		$locker->query_safe('begin');
		$locker->query_safe('lock table banked.events in access exclusive mode');
		usleep 1_000_000;
		expect_refusals($soak, $before);
		$locker->query_safe('rollback');
		$locker->quit;
		$soak->expect_service;
	},
};

$faults{drop_extension} = {
	run => sub {
		my ($soak) = @_;
		sql($soak, 'drop extension banked_webhooks cascade');
		usleep rand 500_000;
		sql($soak, 'create extension banked_webhooks');
		usleep rand 500_000;
		sql($soak, "select banked.rotate_signing_key('/hook', signing_key => '$KEY')");
		$soak->expect_service;
	},
};

$faults{pause} = {
	run => sub {
		my ($soak) = @_;
		foreach (1 .. 2)
		{
			sql($soak, 'select banked.pause()');
			usleep rand 500_000;
			sql($soak, 'select banked.resume()');
			$soak->expect_service;
		}
	},
};

# Writes until a file system is full; returns the name of the file.
sub fill
{
	my ($soak) = @_;
	my $name = $soak->volume . '/filler';
	open my $handle, '>', $name or die "could not create \"$name\": $!\n";
	foreach my $size (1024 * 1024, 4096, 1)
	{
		1 while syswrite $handle, 'x' x $size;
	}
	close $handle;
	return $name;
}

my @full = (qr/No space left on device/, qr/could not (?:extend|write)/);

# An index that cannot grow is enough, and can be made whatever the table's size is.
$faults{table_full} = {
	needs => 'volume',
	log => \@full,
	prepare => sub {
		my ($soak) = @_;
		my $directory = $soak->volume . '/tablespace';
		File::Path::remove_tree($directory);
		mkdir $directory;
		sql($soak, "create tablespace small location '$directory'");
		sql($soak, 'create index small on banked.events (body_sha256) tablespace small');
	},
	run => sub {
		my ($soak) = @_;
		my $before = refusals($soak);
		my $filler = fill($soak);
		expect_refusals($soak, $before);
		unlink $filler;
		$soak->expect_service;
	},
	repair => sub {
		my ($soak) = @_;
		sql($soak, 'drop index banked.small');
		sql($soak, 'checkpoint');
		sql($soak, 'drop tablespace small');
	},
};

# No room for WAL is a PANIC: the server goes down, and comes back when there is.
$faults{wal_full} = {
	needs => 'volume',
	log => [ @full, @crash, @restart, qr/was terminated by signal 6/, qr/PANIC/, qr/exited with exit code 1/ ],
	prepare => sub {
		my ($soak) = @_;
		File::Path::remove_tree($soak->volume . '/pg_wal');
		move_wal($soak, $soak->service->node->data_dir . '/pg_wal', $soak->volume . '/pg_wal');
	},
	run => sub {
		my ($soak) = @_;
		my $node = $soak->service->node;
		my $mark = $soak->service->log_mark;
		my $filler = fill($soak);
		# Segments that are kept for reuse are used up first.
		wait_until(
			sub {
				$soak->service->sql_if_up('select pg_switch_wal()');
				$soak->service->log_since($mark) =~ /PANIC:/;
			},
			15) or $soak->violation('no PANIC');
		usleep 300_000;
		unlink $filler;
		# Depending on where it ran out of room the server has given up, or tries again by itself.
		unless (wait_until(sub { $soak->service->is_up }, 2))
		{
			$node->stop('immediate', fail_ok => 1);
			$node->_update_pid(-1);
			$node->start unless $node->{_pid};
		}
		$soak->expect_service if $soak->expect_server;
	},
	repair => sub { my ($soak) = @_; move_wal($soak, $soak->volume . '/pg_wal', $soak->service->node->data_dir . '/pg_wal') },
};

# Moves the WAL directory of the stopped server; a link stands in the data directory when it is elsewhere.
sub move_wal
{
	my ($soak, $from, $to) = @_;
	my $node = $soak->service->node;
	my $place = $node->data_dir . '/pg_wal';

	$node->stop;
	unlink $place if -l $place;
	PostgreSQL::Test::Utils::system_or_bail('mv', $from, $to);
	symlink $to, $place or die "could not make a link: $!\n" if $to ne $place;
	$node->start;
	$soak->service->wait_for_port;
	return;
}

# ---------------------------------------------------------------------------
# A synchronous standby
# ---------------------------------------------------------------------------

my @sync_log = (@crash, @killed, @terminated, @replication);

# A primary of its own with a synchronous standby.
sub prepare_pair
{
	my ($soak) = @_;
	$soak->{main} = $soak->{service};
	$soak->{main_state} = [ @$soak{qw(rows log_mark processes)} ];
	my $primary = $soak->begin_service(init => { allows_streaming => 1 }, conf => "max_worker_processes = 16\n");
	my $standby = $primary->new_standby('standby' . $soak->{services});
	$standby->{receivers} = $primary->{receivers};
	$standby->node->start;
	$primary->node->append_conf('postgresql.conf', "synchronous_standby_names = '*'\n");
	$primary->node->reload;
	wait_until(sub { $primary->sql(q(select count(*) from pg_stat_replication where sync_state = 'sync')) == 1 })
	  or die "the standby is not synchronous\n";
	$soak->{standby} = $standby;
	return;
}

sub repair_pair
{
	my ($soak) = @_;
	my %seen;
	$soak->end_service($_) foreach grep { $_ && !$seen{$_}++ } @$soak{qw(primary service standby)};
	$soak->{service} = $soak->{main};
	@$soak{qw(rows log_mark processes)} = @{ $soak->{main_state} };
	$soak->{primary} = $soak->{standby} = undef;
	return;
}

# The standby is out of reach: from now on no 200.
sub expect_silence
{
	my ($soak, $during) = @_;
	my $before;

	# What was replicated before may still be on its way to the clients.
	wait_until(
		sub {
			$before = $soak->load->acknowledged;
			usleep 500_000;
			return $soak->load->acknowledged == $before;
		},
		5);
	$during->();
	usleep 500_000;
	my $after = $soak->load->acknowledged;
	$soak->violation($after - $before . ' deliveries were acknowledged that no standby has') if $after > $before;
	return;
}

# The primary dies, and the standby takes its place; the clients find it.
sub fail_over
{
	my ($soak) = @_;
	my $standby = $soak->{standby};

	kill_server($soak) if $soak->service->node->{_pid};
	$soak->{primary} = $soak->service;
	$standby->node->{_pid} or $standby->node->start(fail_ok => 1) or die "the standby does not start\n";
	$standby->node->promote;
	$soak->{keeps_rows} = 1;
	$soak->adopt($standby);
	$soak->{standby} = undef;
	$soak->expect_service;
	return;
}

sub stop_standby { my ($soak, $mode) = @_; $soak->{standby}->node->stop($mode); return }

# The process of the standby that receives WAL.
sub walreceiver
{
	my ($soak) = @_;
	return $soak->{standby}->sql('select pid from pg_stat_wal_receiver');
}

sub sync_fault
{
	my ($name, $run) = @_;
	$faults{"sync_$name"} = { log => \@sync_log, prepare => \&prepare_pair, repair => \&repair_pair, run => $run };
	return;
}

sync_fault('promote', sub { fail_over($_[0]) });

# It goes and comes back.
sync_fault(
	'return',
	sub {
		my ($soak) = @_;
		stop_standby($soak, 'fast');
		expect_silence($soak, sub { });
		$soak->{standby}->node->start;
		$soak->expect_service;
	});

sync_fault(
	'cancel',
	sub {
		my ($soak) = @_;
		my $walreceiver = walreceiver($soak);
		kill 'STOP', $walreceiver;
		expect_silence($soak, sub { call_repeatedly($soak, 'pg_cancel_backend', 'receiver', 10, 0.05) });
		kill_server($soak);
		kill 'CONT', $walreceiver;
		fail_over($soak);
	});

sync_fault(
	'terminate',
	sub {
		my ($soak) = @_;
		stop_standby($soak, 'immediate');
		expect_silence($soak, sub { call_repeatedly($soak, 'pg_terminate_backend', 'receiver', 3, 0.3) });
		fail_over($soak);
	});

# The server goes down and comes back while its standby is away.
foreach my $mode (qw(fast immediate))
{
	sync_fault(
		"stop_$mode",
		sub {
			my ($soak) = @_;
			stop_standby($soak, 'immediate');
			expect_silence(
				$soak,
				sub {
					stop_server($soak, $mode);
					start_server($soak);
					$soak->service->wait_for_port;
				});
			fail_over($soak);
		});
}

sync_fault(
	'receiver_kill',
	sub {
		my ($soak) = @_;
		stop_standby($soak, 'immediate');
		expect_silence(
			$soak,
			sub {
				signal($soak, 'KILL', 'receiver');
				usleep 100_000;
				$soak->expect_server;
				$soak->service->wait_for_port;
			});
		fail_over($soak);
	});

sync_fault(
	'postmaster_kill',
	sub {
		my ($soak) = @_;
		stop_standby($soak, 'immediate');
		expect_silence($soak, sub { kill_server($soak) });
		fail_over($soak);
	});

1;
