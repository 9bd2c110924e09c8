
# Soak.pm
#	  Cycles of load, fault and judgement.
#
# A cycle starts clients (Load.pm), waits until they have been served, lets one
# thing go wrong at a random moment (Faults.pm), waits until the service is
# back, lets the clients finish, and judges: every 200 has its row, nothing is
# there twice, nothing that was there before is gone, the service came back in
# time, no process, socket, descriptor or memory was left behind, and the log
# holds nothing that the fault does not explain.
#
# What a cycle finds wrong are violations: texts, collected.  A cycle never
# waits without a limit, and a violation ends nothing but its cycle.

package BankedWebhooks::Soak;

use strict;
use warnings;

use BankedWebhooks;
use BankedWebhooks::Faults;
use BankedWebhooks::Load;
use Digest::SHA qw(sha256_hex);
use PostgreSQL::Test::Utils;
use Time::HiRes qw(time usleep);

# Seconds.
my $back_within = 5;
my $gone_within = 3;
my $finish_within = 15;

# What receiver and gateway may grow by while they live, and hold at all, in kB of anonymous memory.
my $growth_limit = 16 * 1024;
my $memory_limit = 128 * 1024;

# Descriptors of a receiver: those of files are PostgreSQL's cache; all others are constant.
my $file_limit = 250;

my $conf = <<'CONF';
fsync = on
restart_after_crash = on
max_wal_size = 256MB
checkpoint_timeout = 30s
banked_webhooks.store_lock_timeout = 300ms
CONF

# Options: clients, connections (of each), volume (a directory on a small file
# system of its own, or nothing), say (called with a line for each cycle).
sub new
{
	my ($class, %options) = @_;
	my $self = bless {
		clients     => 2,
		connections => 16,
		say         => sub { },
		%options,
		cycles       => 0,
		acknowledged => 0,
		lost         => 0,
		doubled      => 0,
		slowest_back => 0,
		violations   => [],
		directory    => PostgreSQL::Test::Utils::tempdir(),
		services     => 0,
	}, $class;
	return $self;
}

# A new server with an endpoint and no history; one receiver and two take turns.
sub begin_service
{
	my ($self, %options) = @_;
	my $receivers = 1 + ++$self->{services} % 2;
	my $service = BankedWebhooks->new(
		name => "soak$self->{services}",
		conf => $conf . "banked_webhooks.receivers = $receivers\n" . ($options{conf} // ''),
		init => $options{init} // {});
	$service->{receivers} = $receivers;
	$service->register('/hook');
	$service->wait_for_path('/hook', $receivers);
	$self->adopt($service);
	return $service;
}

# The service that clients and judgement turn to from now on.
sub adopt
{
	my ($self, $service) = @_;
	$self->{service} = $service;
	$self->{rows} = { history => 0, quarantine => 0 } unless $self->{keeps_rows};
	$self->{keeps_rows} = 0;
	$self->{processes} = {};
	$self->{log_mark} = 0;
	return;
}

# Ends a service and removes its files.  A server that was killed has left its
# shared memory behind, which only a later start on the same files removes.
sub end_service
{
	my ($self, $service) = @_;
	my $node = $service->node;
	if ($node->{_pid})
	{
		$node->stop('immediate', fail_ok => 1);
	}
	elsif (-f $node->data_dir . '/postmaster.pid')
	{
		unlink $node->data_dir . '/standby.signal';
		run_log([ 'postgres', '--single', '-D', $node->data_dir, 'postgres' ], '<', \'', '>&', \my $output);
	}
	$node->clean_node;
	return;
}

sub service { return $_[0]{service} }
sub load { return $_[0]{load} }
sub volume { return $_[0]{volume} }

sub violation
{
	my ($self, $text) = @_;
	my $line = "cycle $self->{cycles}, $self->{fault}: $text";
	push @{ $self->{violations} }, $line;
	$self->{say}->("VIOLATION: $line");
	return;
}

# Runs one cycle; false when something was wrong.
sub cycle
{
	my ($self, $name) = @_;
	my $fault = $BankedWebhooks::Faults::faults{$name};
	my $violations = @{ $self->{violations} };
	my $start = time;

	$self->{cycles}++;
	$self->{fault} = $name;
	$self->{back} = 0;
	$self->{prefix} = "c$self->{cycles}";
	$self->{allowed} = [ @BankedWebhooks::autovacuum, @{ $fault->{log} // [] } ];
	my $done = eval {
		$fault->{prepare}->($self) if $fault->{prepare};
		$self->{load} = $self->start_load;
		if (wait_until(sub { $self->load->acknowledged >= 100 }, 10))
		{
			usleep rand 400_000;
			$fault->{run}->($self);
			usleep 100_000 + rand 300_000;
		}
		else
		{
			$self->violation('the clients are not served');
		}
		$self->judge;
		$fault->{repair}->($self) if $fault->{repair};
		1;
	};
	$self->{load} = undef;
	unless ($done)
	{
		die $@ if $@ =~ /^interrupted|^a cycle ran longer/;
		$self->violation("died: $@");
		eval { $fault->{repair}->($self) } if $fault->{repair};
	}
	my $wrong = @{ $self->{violations} } - $violations;
	$self->{say}->(
		sprintf '%4d %-26s %6d acknowledged, %5d refused, %5d broken, back after %.2f s, took %.1f s%s',
		$self->{cycles}, $name, @{ $self->{last} // [ 0, 0, 0 ] },
		$self->{back}, time - $start, $wrong ? ", $wrong VIOLATIONS" : '');
	return $wrong == 0;
}

sub start_load
{
	my ($self) = @_;
	return BankedWebhooks::Load->new(
		path        => '/hook',
		key         => $KEY,
		ports       => [ $self->service->port, $self->{standby} ? $self->{standby}->port : () ],
		prefix      => $self->{prefix},
		clients     => $self->{clients},
		connections => $self->{connections},
		directory   => $self->{directory});
}

# The server is back: a delivery must be answered with 200 soon.
sub expect_service
{
	my ($self) = @_;
	my $start = time;
	my $attempt = 0;
	my $body = event("$self->{prefix}-probe-" . int(rand 1e9), 'payment_sent');
	my ($id) = $body =~ /"id":"(.*?)"/;
	my $served = wait_until(sub { ($self->service->post('/hook', $body, timeout => 2) // 0) == 200 }, 2 * $back_within);
	my $back = time - $start;

	$self->load->acknowledge('event', $id, 'payment_sent', sha256_hex($body)) if $served;
	$self->{back} = $back if $back > $self->{back};
	$self->{slowest_back} = $back if $back > $self->{slowest_back};
	$self->violation(sprintf 'no 200 within %d s of the server being back (%s %.1f s)',
		$back_within, $served ? 'but after' : 'nor within', $back)
	  if !$served || $back > $back_within;
	return $served;
}

# Waits until the server takes connections.
sub expect_server
{
	my ($self, $limit) = @_;
	my $up = wait_until(sub { $self->service->is_up }, $limit // 20);

	$self->violation('the server is not back') unless $up;
	return $up;
}

# ---------------------------------------------------------------------------
# Judgement
# ---------------------------------------------------------------------------

sub judge
{
	my ($self) = @_;
	my $load = $self->load;
	my $unfinished = $load->finish($finish_within);
	my %seen;

	$self->violation("$unfinished deliveries were not acknowledged within $finish_within s") if $unfinished;
	$seen{ (split / /)[0] }++ foreach @{ $load->{unexpected} };
	$self->violation("answers that a proper delivery never gets: $_, $seen{$_} times") foreach sort keys %seen;
	$self->{last} = [ $load->acknowledged, $load->count(503), $load->count(0) ];
	$self->{acknowledged} += $load->acknowledged;
	$self->judge_rows;
	$self->judge_processes;
	$self->judge_log;
	return;
}

# The rows of a query, as lists.
sub rows
{
	my ($self, $query) = @_;
	return map { [ split /\|/, $_, -1 ] } split /\n/, $self->service->sql($query);
}

sub judge_rows
{
	my ($self) = @_;
	my $prefix = $self->{prefix};
	my $condition = "where event_id >= '$prefix-' and event_id < '$prefix.'";
	my $columns = q(event_id, event_type, encode(body_sha256, 'hex'), seq);
	my (%stored, %quarantined, %seqs, $history, $quarantine);

	foreach my $row ($self->rows("select $columns from banked.events $condition union all select $columns from banked.event_revisions $condition"))
	{
		my ($id, $type, $sha256, $seq) = @$row;
		$stored{"$id $type $sha256"}++;
		$seqs{$seq}++;
		$history++;
	}
	foreach my $row ($self->rows(qq(select encode(body_sha256, 'hex'), reason from banked.quarantine where position('"$prefix-'::bytea in body) > 0)))
	{
		$quarantined{ $row->[0] }++;
		$quarantine++;
		$self->violation("a proper event is in quarantine: $row->[1]") if $row->[1] ne 'invalid_json';
	}

	my @lost = grep { !($_->[0] eq 'event' ? $stored{"$_->[1] $_->[2] $_->[3]"} : $quarantined{ $_->[3] }) }
	  @{ $self->load->{acknowledged} };
	my @doubled = grep { $stored{$_} > 1 } keys %stored;
	push @doubled, grep { $quarantined{$_} > 1 } keys %quarantined;
	$self->{lost} += @lost;
	$self->{doubled} += @doubled;
	$self->violation(scalar(@lost) . " lost, first: @{ $lost[0] }") if @lost;
	$self->violation(scalar(@doubled) . " doubled, first: $doubled[0]") if @doubled;
	$self->violation('a seq was given twice') if grep { $_ > 1 } values %seqs;
	$self->judge_totals($history // 0, $quarantine // 0);
	return;
}

# What earlier cycles have judged must still be there.
sub judge_totals
{
	my ($self, $history, $quarantine) = @_;
	my ($row) = $self->rows('select (select count(*) from banked.events) + (select count(*) from banked.event_revisions), (select count(*) from banked.quarantine)');
	my $rows = $self->{rows};

	$rows->{history} += $history;
	$rows->{quarantine} += $quarantine;
	$self->violation("$row->[0] rows of history where $rows->{history} were expected") if $row->[0] != $rows->{history};
	$self->violation("$row->[1] rows of quarantine where $rows->{quarantine} were expected") if $row->[1] != $rows->{quarantine};
	@$rows{qw(history quarantine)} = @$row;
	return;
}

sub judge_processes
{
	my ($self) = @_;
	my $service = $self->service;
	my (@receivers, @gateways);

	# One of several may still be on its way back when the others serve.
	wait_until(
		sub {
			@receivers = $service->pids('receiver');
			@gateways = $service->pids('gateway');
			return @receivers == $service->{receivers} && @gateways == $service->{receivers};
		},
		$back_within);
	$self->violation(@receivers . ' receivers and ' . @gateways . " gateways where $service->{receivers} of each were expected")
	  if @receivers != $service->{receivers} || @gateways != $service->{receivers};
	my $sockets;
	wait_until(sub { ($sockets = open_sockets($service->port)) == 0 }, $gone_within)
	  or $self->violation("$sockets connections are open that no client holds");
	wait_until(sub { !$self->orphans }, $gone_within)
	  or $self->violation('gateways without a receiver: ' . join ', ', $self->orphans);
	$self->judge_process('receiver', $_) foreach @receivers;
	$self->judge_process('gateway', $_) foreach @gateways;
	$self->judge_process('launcher', $_) foreach $service->pids('launcher');
	return;
}

# Memory and descriptors of one process, now and since it was first looked at.
sub judge_process
{
	my ($self, $kind, $pid) = @_;
	my $status = eval { slurp_file("/proc/$pid/status") } // return;
	my ($memory) = $status =~ /^RssAnon:\s+(\d+) kB/m;
	my ($descriptors) = $status =~ /^FDSize:\s+(\d+)/m;
	my $first = $self->{processes}{"$kind $pid"} //= { memory => $memory, descriptors => $descriptors };
	my @links = map { readlink // '' } glob "/proc/$pid/fd/*";    # the gateway does not show them
	my $files = grep { /^\// } @links;
	my $others = @links - $files;

	$self->{"most_$kind"} = $memory if $memory > ($self->{"most_$kind"} // 0);
	$self->violation("$kind has $memory kB, $first->{memory} kB at first")
	  if $memory > $memory_limit || $memory > $first->{memory} + $growth_limit;
	$self->violation("$kind has room for $descriptors descriptors, $first->{descriptors} at first")
	  if $kind eq 'gateway' && $descriptors > 2 * $first->{descriptors};
	$self->violation("$kind holds $files files") if $files > $file_limit;
	$self->{others}{$kind} //= $others if @links;
	$self->violation("$kind holds $others sockets and the like, once it was $self->{others}{$kind}: @{[ sort grep { !/^\// } @links ]}")
	  if @links && $others > $self->{others}{$kind};
	return;
}

# Connections to a port of 127.0.0.1 that are open at the server's end.
sub open_sockets
{
	my ($port) = @_;
	my $local = sprintf '%04X', $port;
	return scalar grep { /^\s*\d+: [0-9A-F]{8}:$local [0-9A-F:]+ (?:01|08)/ } split /\n/, slurp_file('/proc/net/tcp');
}

# Gateways that belonged to a receiver of this service and have lost it.
sub orphans
{
	my ($self) = @_;
	my %receivers = map { $_ => 1 } $self->service->log_since =~ /\[(\d+)\][^\n]*receiving webhooks on/g;
	my @orphans;

	foreach my $stat (glob '/proc/[0-9]*/stat')
	{
		open my $handle, '<', $stat or next;
		my $line = <$handle> // next;
		my ($pid, $state, $parent) = $line =~ /^(\d+) \(banked_webhooks\) (\w) (\d+)/ or next;
		my $command = eval { slurp_file("/proc/$pid/cmdline") } // next;
		my ($receiver) = $command =~ /--parent=(\d+)/ or next;
		push @orphans, $pid if $receivers{$receiver} && $parent != $receiver && $state ne 'Z';
	}
	return @orphans;
}

sub judge_log
{
	my ($self) = @_;
	my $text = $self->service->log_since($self->{log_mark});
	my $bad = qr/\b(?:WARNING|ERROR|FATAL|PANIC):  |TRAP: |was terminated by signal|exited with exit code (?![01]\b)/;
	my %lines;

	$self->{log_mark} += length $text;
	foreach my $line (grep { /$bad/ } split /\n/, $text)
	{
		next if grep { $line =~ $_ } @{ $self->{allowed} };
		$line =~ s/^.*?\[\d+\] //;
		$lines{$line}++;
	}
	$self->violation("in the log, $lines{$_} times: $_") foreach sort keys %lines;
	$self->violation('a signing key is in the log') if $text =~ /$KEY/;
	$self->violation('a body is in the log') if $text =~ /quick brown fox/;
	return;
}

# The sum of everything.
sub summary
{
	my ($self) = @_;
	return "soak: $self->{cycles} cycles, $self->{acknowledged} acknowledged, $self->{lost} lost, $self->{doubled} doubled";
}

1;
