
# Connection.pm
#	  One connection of an HTTP client that sends exactly what it is told.
#
# It reads answers as strictly as a careful client: status line, headers, a body
# of Content-Length bytes, and nothing that was not asked for.

package BankedWebhooks::Connection;

use strict;
use warnings;

use Carp;
use Errno qw(EAGAIN EINTR EWOULDBLOCK);
use IO::Socket::IP;
use PostgreSQL::Test::Utils ();
use Socket qw(IPPROTO_TCP TCP_NODELAY SHUT_WR SOL_SOCKET SO_LINGER);
use Time::HiRes qw(time);

# Connects, or returns nothing.  Options: address; timeout, the longest wait for an answer in seconds.
sub new
{
	my ($class, $port, %options) = @_;
	my $socket = IO::Socket::IP->new(
		PeerHost => $options{address} // '127.0.0.1',
		PeerPort => $port,
		Timeout  => 10) or return;

	$socket->setsockopt(IPPROTO_TCP, TCP_NODELAY, 1);
	$socket->blocking(0);
	return bless {
		socket  => $socket,
		timeout => $options{timeout} // $PostgreSQL::Test::Utils::timeout_default,
		buffer  => '',
		ended   => 0,
	}, $class;
}

sub fileno { return $_[0]{socket}->fileno }

# Sends all of the bytes.  What the peer no longer takes is dropped: its answer tells.
sub send
{
	my ($self, $bytes) = @_;
	my $deadline = time + $self->{timeout};

	while (length $bytes)
	{
		my $sent = syswrite $self->{socket}, $bytes;
		if (defined $sent)
		{
			substr $bytes, 0, $sent, '';
		}
		elsif ($!{EAGAIN} || $!{EWOULDBLOCK} || $!{EINTR})
		{
			$self->wait_for('write', $deadline - time) or return 0;
			$self->read_some;
		}
		else
		{
			return 0;
		}
	}
	return 1;
}

# Reads one answer; nothing when the connection ends first or the time is over.
sub receive
{
	my ($self, $timeout) = @_;
	my $deadline = time + ($timeout // $self->{timeout});

	for (;;)
	{
		my $response = $self->take_response;
		return $response if $response;
		return if $self->{ended};
		$self->wait_for('read', $deadline - time) or return;
		$self->read_some;
	}
}

# For callers with a select of their own: reads what there is.  An answer, 0
# when the connection has ended, undef when more must come.
sub receive_some
{
	my ($self) = @_;
	$self->read_some;
	my $response = $self->take_response;
	return $response if $response;
	return $self->{ended} ? 0 : undef;
}

# Waits until the peer has closed the connection; false when it did not in time.
# Whatever it sent before is in what remains.
sub wait_for_end
{
	my ($self, $timeout) = @_;
	my $deadline = time + ($timeout // $self->{timeout});

	until ($self->{ended})
	{
		$self->wait_for('read', $deadline - time) or return 0;
		$self->read_some;
	}
	return 1;
}

# Bytes that were received and not yet taken as an answer.
sub remaining { return $_[0]{buffer} }

sub shutdown_write { shutdown $_[0]{socket}, SHUT_WR; return }

sub close { CORE::close $_[0]{socket}; return }

# Closes with a reset instead of an orderly end.
sub reset
{
	my ($self) = @_;
	$self->{socket}->setsockopt(SOL_SOCKET, SO_LINGER, pack('ii', 1, 0));
	CORE::close $self->{socket};
	return;
}

sub wait_for
{
	my ($self, $what, $timeout) = @_;
	my $bits = '';

	return 0 if $timeout <= 0;
	vec($bits, $self->fileno, 1) = 1;
	return $what eq 'read'
	  ? select($bits, undef, undef, $timeout)
	  : select(undef, $bits, undef, $timeout);
}

sub read_some
{
	my ($self) = @_;
	my $count = sysread $self->{socket}, $self->{buffer}, 65536, length $self->{buffer};

	if (!defined $count)
	{
		$self->{ended} = 1 unless $!{EAGAIN} || $!{EWOULDBLOCK} || $!{EINTR};
	}
	elsif ($count == 0)
	{
		$self->{ended} = 1;
	}
	return;
}

# Takes an answer off the buffer when a whole one is there.
sub take_response
{
	my ($self) = @_;
	my ($head) = $self->{buffer} =~ /\A(.*?\r\n\r\n)/s or return;
	my ($status, $lines) = $head =~ m{\AHTTP/1\.[01] (\d{3})[^\r\n]*\r\n(.*)\r\n\z}s
	  or croak "not an answer of HTTP: $head";
	my %headers;

	foreach my $line (split /\r\n/, $lines)
	{
		my ($name, $value) = $line =~ /\A([^:\s]+):\s*(.*?)\s*\z/ or croak "not a header: $line";
		$headers{ lc $name } = $value;
	}
	my $length = $headers{'content-length'} // 0;
	return if length $self->{buffer} < length($head) + $length;
	my $body = substr $self->{buffer}, length $head, $length;
	substr $self->{buffer}, 0, length($head) + $length, '';
	return { status => $status, headers => \%headers, body => $body };
}

1;
