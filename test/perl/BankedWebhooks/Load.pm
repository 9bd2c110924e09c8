
# Load.pm
#	  Clients that play Banked at full load and keep a ledger of every 200.
#
# Each client is a process with some keep-alive connections.  On each it sends
# one delivery after the other, and the same one again until it is answered
# with 200: after a 503, a reset, a refused connection or a silence.  Most
# deliveries are new events of both generations; some repeat what was
# acknowledged or is on its way on another connection, some change an event's
# bytes, some are no JSON.
#
# What was acknowledged stands in the client's ledger before the client does
# anything else, one line per 200.  The parent reads the ledgers; it never
# waits for a client without a limit.

package BankedWebhooks::Load;

use strict;
use warnings;

use Digest::SHA qw(hmac_sha256_hex sha256_hex);
use Errno qw(EAGAIN EINTR EWOULDBLOCK);
use POSIX ();
use Socket qw(IPPROTO_TCP PF_INET SOCK_STREAM TCP_NODELAY inet_aton pack_sockaddr_in);
use Time::HiRes qw(time usleep);

# Seconds: without an answer a delivery is sent again; a client never lives longer.
my $silence = 4;
my $client_limit = 120;

# Starts clients.  Options: path and key of the endpoint; ports, tried in turn
# when one refuses; prefix of all event ids; clients; connections of each;
# directory for the ledgers.
sub new
{
	my ($class, %options) = @_;
	my $self = bless { clients => [], acknowledged => [], unexpected => [], summaries => [] }, $class;

	foreach my $number (1 .. $options{clients})
	{
		my $ledger = "$options{directory}/$options{prefix}.$number";
		pipe my $reader, my $writer or die "could not make a pipe: $!\n";
		my $pid = fork;
		die "could not fork: $!\n" unless defined $pid;
		if ($pid == 0)
		{
			$SIG{$_} = 'DEFAULT' foreach qw(ALRM INT TERM);
			$SIG{PIPE} = 'IGNORE';
			alarm $client_limit;
			close $writer;
			my $done = eval { run_client({ %options, number => $number, ledger => $ledger, control => $reader }); 1 };
			print STDERR "client: $@" unless $done;
			POSIX::_exit($done ? 0 : 1);
		}
		close $reader;
		push @{ $self->{clients} }, { pid => $pid, ledger => $ledger, control => $writer, offset => 0 };
	}
	return $self;
}

# Reads what the ledgers have got since the last time; returns the number of 200s so far.
sub acknowledged
{
	my ($self) = @_;
	foreach my $client (@{ $self->{clients} })
	{
		open my $handle, '<', $client->{ledger} or next;
		seek $handle, $client->{offset}, 0;
		while (my $line = <$handle>)
		{
			last unless $line =~ /\n\z/;
			$client->{offset} += length $line;
			chomp $line;
			my ($status, @fields) = split / /, $line;
			if ($status eq 'end')
			{
				push @{ $self->{summaries} }, {@fields};
			}
			elsif ($status eq '200')
			{
				push @{ $self->{acknowledged} }, \@fields;
			}
			else
			{
				push @{ $self->{unexpected} }, $line;
			}
		}
		close $handle;
	}
	return scalar @{ $self->{acknowledged} };
}

# Takes note of a 200 that somebody else got.
sub acknowledge
{
	my ($self, @fields) = @_;
	push @{ $self->{acknowledged} }, \@fields;
	return;
}

# Lets the clients send what they have begun until all of it is acknowledged,
# and end.  Returns the number of deliveries that were not within the limit.
sub finish
{
	my ($self, $limit) = @_;
	my $deadline = time + $limit;
	my $unfinished = 0;

	close $_->{control} foreach @{ $self->{clients} };
	foreach my $client (@{ $self->{clients} })
	{
		my $ended = 0;
		until ($ended = waitpid $client->{pid}, POSIX::WNOHANG())
		{
			last if time > $deadline;
			usleep 5_000;
		}
		if (!$ended)
		{
			kill 'TERM', $client->{pid};
			waitpid $client->{pid}, 0;
		}
		$client->{pid} = 0;
	}
	$self->acknowledged;
	$unfinished += $_->{outstanding} foreach @{ $self->{summaries} };
	$unfinished++ while $unfinished + @{ $self->{summaries} } < @{ $self->{clients} };
	return $unfinished;
}

# How often a status was received, over all clients that have ended.
sub count
{
	my ($self, $status) = @_;
	my $sum = 0;
	$sum += $_->{$status} // 0 foreach @{ $self->{summaries} };
	return $sum;
}

sub DESTROY
{
	my ($self) = @_;
	local $?;
	foreach my $client (grep { $_->{pid} } @{ $self->{clients} })
	{
		kill 'KILL', $client->{pid};
		waitpid $client->{pid}, 0;
	}
	return;
}

# ---------------------------------------------------------------------------
# A client
# ---------------------------------------------------------------------------

sub run_client
{
	my ($o) = @_;
	my $parent = getppid;
	my $control = fileno $o->{control};
	my @slots = map { {} } 1 .. $o->{connections};
	my $finishing = 0;

	$o->{count} = 0;
	$o->{recent} = [];
	$o->{statuses} = {};
	open $o->{out}, '>>', $o->{ledger} or die "could not open \"$o->{ledger}\": $!\n";
	until ($finishing && !grep { $_->{delivery} } @slots)
	{
		my $now = time;
		my $bits = '';

		last if getppid != $parent;
		vec($bits, $control, 1) = 1 unless $finishing;
		foreach my $slot (@slots)
		{
			$slot->{delivery} //= next_delivery($o, \@slots) unless $finishing;
			next unless $slot->{delivery};
			retry($o, $slot, 0) if $slot->{sent} && $now - $slot->{sent} > $silence;
			send_delivery($o, $slot) if !$slot->{sent} && $now >= ($slot->{not_before} // 0);
			vec($bits, fileno $slot->{socket}, 1) = 1 if $slot->{sent};
		}
		next unless select($bits, undef, undef, 0.02) > 0;
		$finishing = 1 if vec($bits, $control, 1);
		foreach my $slot (@slots)
		{
			receive($o, $slot) if $slot->{sent} && vec($bits, fileno $slot->{socket}, 1);
		}
	}
	my $outstanding = grep { $_->{delivery} } @slots;
	note($o, join ' ', 'end', 'outstanding', $outstanding, %{ $o->{statuses} });
	return;
}

sub note
{
	my ($o, $line) = @_;
	my $written = syswrite $o->{out}, "$line\n";
	die "could not write to \"$o->{ledger}\": $!\n" unless defined $written && $written == 1 + length $line;
	return;
}

my $filler = 'The quick brown fox jumps over the lazy dog. ' x 10;

# What to send next.
sub next_delivery
{
	my ($o, $slots) = @_;
	my $recent = $o->{recent};
	my $dice = rand;

	if ($dice < 0.12 && @$recent)
	{
		my $old = $recent->[ rand @$recent ];
		return { %$old, $dice < 0.04 ? () : signed($o, $old->{body}) } if $dice < 0.06;
		return delivery($o, $old->{id}, $old->{type}, "changed-" . ++$o->{count});
	}
	if ($dice < 0.15)
	{
		my $other = $slots->[ rand @$slots ]{delivery};
		return {%$other} if $other;
	}
	my $id = "$o->{prefix}-$o->{number}-" . ++$o->{count};
	if ($dice < 0.17)
	{
		my $body = qq({"id":"$id", broken);
		return { kind => 'quarantine', id => $id, type => '-', body => $body, sha256 => sha256_hex($body), signed($o, $body) };
	}
	return delivery($o, $id, (qw(payment_sent payment_pending payout_sent refund_failed))[ rand 4 ], 'first');
}

sub delivery
{
	my ($o, $id, $type, $reference) = @_;
	my $body =
	  $type =~ /^pay/
	  ? qq({"id":"$id","webhook_event":"$type","webhook_type":"payment_session","state":"sent","live":true,)
	  . qq("amount":100,"currency":"GBP","reference":"$reference","created_at":"2019-10-31 16:45:34 UTC","note":"$filler"})
	  : qq({"id":"$id","type":"$type","version":"v3","data_version":3,"data":{"id":"r-$id","amount":100,)
	  . qq("currency":"GBP","reference":"$reference","note":"$filler"}});
	return { kind => 'event', id => $id, type => $type, body => $body, sha256 => sha256_hex($body), signed($o, $body) };
}

sub signed
{
	my ($o, $body) = @_;
	my $at = int time;
	return (signature => "$at." . hmac_sha256_hex("$at.$body", $o->{key}));
}

# The delivery is to be sent again: after a pause, on a new connection unless the old one is sound.
sub retry
{
	my ($o, $slot, $sound) = @_;
	my $delivery = $slot->{delivery};

	unless ($sound)
	{
		close $slot->{socket} if $slot->{socket};
		delete $slot->{socket};
		$o->{statuses}{0}++;
	}
	%$delivery = (%$delivery, signed($o, $delivery->{body})) if rand() < 0.5;
	$slot->{sent} = 0;
	$slot->{not_before} = time + 0.01 + rand 0.03;
	return;
}

sub send_delivery
{
	my ($o, $slot) = @_;
	my $delivery = $slot->{delivery};

	$slot->{socket} //= connect_to($o) or return retry($o, $slot, 0);
	my $request = "POST $o->{path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\n"
	  . 'Content-Length: ' . length($delivery->{body}) . "\r\nbanked-signature: $delivery->{signature}\r\n\r\n$delivery->{body}";
	my $sent = syswrite $slot->{socket}, $request;

	# A request is smaller than the kernel's buffer: what it does not take whole is a broken connection.
	return retry($o, $slot, 0) unless defined $sent && $sent == length $request;
	$slot->{sent} = time;
	$slot->{buffer} = '';
	return;
}

sub connect_to
{
	my ($o) = @_;
	socket my $socket, PF_INET, SOCK_STREAM, 0 or die "could not make a socket: $!\n";
	if (connect $socket, pack_sockaddr_in($o->{ports}[0], inet_aton('127.0.0.1')))
	{
		setsockopt $socket, IPPROTO_TCP, TCP_NODELAY, 1;
		$socket->blocking(0);
		return $socket;
	}
	push @{ $o->{ports} }, shift @{ $o->{ports} };
	return;
}

sub receive
{
	my ($o, $slot) = @_;
	my $delivery = $slot->{delivery};
	my $count = sysread $slot->{socket}, $slot->{buffer}, 65536, length $slot->{buffer};

	return if !defined $count && ($!{EAGAIN} || $!{EWOULDBLOCK} || $!{EINTR});
	return retry($o, $slot, 0) unless $count;
	return unless $slot->{buffer} =~ /\AHTTP\/1\.[01] (\d{3})(.*?)\r\n\r\n/s;
	my ($status, $headers, $end) = ($1, $2, $+[0]);
	my ($length) = $headers =~ /\r\ncontent-length: *(\d+)/i;
	return if length($slot->{buffer}) < $end + ($length // 0);

	$o->{statuses}{$status}++;
	if ($status ne '200')
	{
		note($o, "$status $delivery->{id} $delivery->{type}") if $status ne '503';
		return retry($o, $slot, $headers !~ /\r\nconnection: *close/i);
	}
	note($o, "200 $delivery->{kind} $delivery->{id} $delivery->{type} $delivery->{sha256}");
	if ($delivery->{kind} eq 'event')
	{
		push @{ $o->{recent} }, $delivery;
		shift @{ $o->{recent} } if @{ $o->{recent} } > 200;
	}
	$slot->{delivery} = undef;
	$slot->{sent} = $slot->{not_before} = 0;
	if ($headers =~ /\r\nconnection: *close/i)
	{
		close $slot->{socket};
		delete $slot->{socket};
	}
	return;
}

1;
