
# BankedWebhooks.pm
#	  What the TAP tests need to play Banked and to watch the server.
#
# A service is a server of PostgreSQL::Test::Cluster with the extension
# preloaded, and a free port for HTTP.  Requests go over plain sockets, byte by
# byte as the test says.  Tests wait for conditions, with a limit; none of them
# judges by having slept.
#
# At its end a test calls check_log: the server's log may hold no WARNING,
# ERROR, FATAL or PANIC but those that the test names, and never a signing key.

package BankedWebhooks;

use strict;
use warnings;

use Carp;
use Digest::SHA qw(hmac_sha256_hex);
use Exporter 'import';
use File::Basename qw(dirname);
use IO::Socket::IP;
use IPC::Run;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time usleep);

use BankedWebhooks::Connection;

our @EXPORT = qw(sign event v3_event payload request wait_until ok_until can_connect
  exchange_all tally forms_of $KEY $OTHER_KEY);

our $KEY = 'f063a7029d6b959d8cc11e23148a302929da113a6b0671238ab9d1bcfb63645a';
our $OTHER_KEY = '0b1946d1c2b6f06cf9f6b44b4e8a9d4e4a49c65d4ad8e9b2e6f5d6ec7fbd1c33';

# Nothing that a test waits for may take longer than this, in seconds.
our $patience = $PostgreSQL::Test::Utils::timeout_default;

# A file of tests that hangs ends here, with its servers.
my $file_limit = 600;
$SIG{ALRM} = sub { die "this file ran longer than $file_limit seconds\n" };
$SIG{INT} = $SIG{TERM} = sub { die "interrupted\n" };
alarm $file_limit;

# What the log may always hold, since autovacuum comes when it likes: it gives
# way to a command that wants its lock, and to a shutdown.
our @autovacuum = (
	qr/ERROR:  (?:\w{5}: )?canceling autovacuum task/,
	qr/FATAL:  (?:\w{5}: )?terminating autovacuum process due to administrator command/);

# ---------------------------------------------------------------------------
# Deliveries
# ---------------------------------------------------------------------------

# The value of the header banked-signature.
sub sign
{
	my ($body, $key, $at) = @_;
	$key //= $KEY;
	$at //= int time;
	return "$at." . hmac_sha256_hex("$at.$body", $key);
}

# What a secret may look like in a log or in a message: as it is, in hexadecimal,
# or, as a plan is printed by debug_print_plan, byte by byte in decimal and broken into lines anywhere.
sub forms_of
{
	my ($secret) = @_;
	my $decimal = join '\s+', map { join '\s*', split // } unpack 'C*', $secret;
	my $text = join '|', quotemeta $secret, unpack('H*', $secret), $decimal;
	return qr/$text/;
}

# A v2 body: the resource itself.
sub event
{
	my ($id, $type, %fields) = @_;
	my ($resource) = $type =~ /^(payment|mandate|payout|refund|batch_payment)_/;
	my ($state) = $type =~ /_([a-z]+)$/;
	my %known = (
		id            => $id,
		webhook_event => $type,
		webhook_type  => ($resource // 'payment') eq 'payment' ? 'payment_session' : $resource,
		state         => $state // 'sent',
		live          => \'true',
		amount        => \100,
		currency      => 'GBP',
		reference     => 'Illuminate',
		created_at    => '2019-10-31 16:45:34 UTC');
	return json({ %known, %fields });
}

# A v3 body: an envelope around the resource.
sub v3_event
{
	my ($id, $type, %data) = @_;
	my $data = json({ id => "resource-of-$id", amount => \100, currency => 'GBP', %data });
	return qq({"id":"$id","type":"$type","version":"v3","data_version":3,"data":$data});
}

# Enough of JSON for bodies: values are strings, or references to what is taken as it stands.
sub json
{
	my ($fields) = @_;
	return '{'
	  . join(',', map { qq("$_":) . (ref $fields->{$_} ? ${ $fields->{$_} } : qq("$fields->{$_}")) } sort keys %$fields)
	  . '}';
}

# An example body of test/payloads.
sub payload
{
	my ($name) = @_;
	return slurp_file(dirname(__FILE__) . "/../payloads/$name.json");
}

# The bytes of a POST.  Options: key, at, signature (undef for none), and
# headers, a list of lines that follow the usual ones.
sub request
{
	my ($path, $body, %options) = @_;
	my $signature =
	  exists $options{signature} ? $options{signature} : sign($body, $options{key}, $options{at});
	my @lines = (
		"POST $path HTTP/1.1",
		'Host: 127.0.0.1',
		'Content-Type: application/json',
		'Content-Length: ' . length $body,
		defined $signature ? "banked-signature: $signature" : (),
		@{ $options{headers} // [] });
	return join("\r\n", @lines, '', '') . $body;
}

# Sends the requests of each list over a connection of its own, all connections
# at once, each request when the one before it was answered.  Returns the
# statuses, one list per connection, 0 where the connection ended instead.
sub exchange_all
{
	my ($port, @requests) = @_;
	my @lists = map { [@$_] } @requests;
	my @connections = map { BankedWebhooks::Connection->new($port) } @lists;
	my @statuses = map { [] } @lists;
	my %open;

	foreach my $i (0 .. $#lists)
	{
		next unless @{ $lists[$i] };
		$open{ $connections[$i]->fileno } = $i;
		$connections[$i]->send(shift @{ $lists[$i] });
	}
	my $deadline = time + $patience;
	while (%open && time < $deadline)
	{
		my $readable = '';
		vec($readable, $_, 1) = 1 foreach keys %open;
		select $readable, undef, undef, $deadline - time;
		foreach my $fileno (grep { vec $readable, $_, 1 } keys %open)
		{
			my $i = $open{$fileno};
			my $response = $connections[$i]->receive_some;
			next unless defined $response;
			push @{ $statuses[$i] }, $response ? $response->{status} : 0;
			if ($response && @{ $lists[$i] })
			{
				$connections[$i]->send(shift @{ $lists[$i] });
			}
			else
			{
				delete $open{$fileno};
			}
		}
	}
	push @{ $statuses[$_] }, 0 foreach values %open;
	return @statuses;
}

# How often each value occurs, as "200: 5, 503: 1".
sub tally
{
	my (@values) = @_;
	my %count;
	$count{ $_ // 'none' }++ foreach map { ref $_ ? @$_ : $_ } @values;
	return join ', ', map { "$_: $count{$_}" } sort keys %count;
}

# ---------------------------------------------------------------------------
# Waiting
# ---------------------------------------------------------------------------

# Calls the condition until it is true or the limit (seconds) has passed.
# Returns its value.
sub wait_until
{
	my ($condition, $limit) = @_;
	my $deadline = time + ($limit // $patience);

	for (;;)
	{
		my $value = $condition->();
		return $value if $value || time >= $deadline;
		usleep 5_000;
	}
}

# The same as a test of its own, which says how long it took.
sub ok_until
{
	my ($condition, $name, $limit) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $start = time;
	my $value = wait_until($condition, $limit);
	my $good = ok($value, $name);

	diag sprintf 'not so after %.2f s', time - $start unless $good;
	return $value;
}

sub can_connect
{
	my ($port, $address) = @_;
	my $socket = IO::Socket::IP->new(PeerHost => $address // '127.0.0.1', PeerPort => $port, Timeout => 5);
	return defined $socket;
}

# ---------------------------------------------------------------------------
# Services
# ---------------------------------------------------------------------------

# Makes a server.  Options: name; databases (the setting; default postgres);
# conf (further lines of postgresql.conf); init (parameters of
# PostgreSQL::Test::Cluster's init); extension and start, 0 to leave out.
sub new
{
	my ($class, %options) = @_;
	my $node = PostgreSQL::Test::Cluster->new($options{name} // 'main');
	my $self = bless {
		node    => $node,
		port    => PostgreSQL::Test::Cluster::get_free_port(),
		allowed => [@autovacuum],
	}, $class;

	$node->init(extra => [ '--no-sync', '--locale=C', '--encoding=UTF8' ], %{ $options{init} // {} });
	$self->write_private_file('master.key', '00112233445566778899aabbccddeeff' x 2);
	$self->configure($options{databases} // 'postgres', $options{conf} // '');
	if ($options{start} // 1)
	{
		$node->start;
		if ($options{extension} // 1)
		{
			$self->sql('create extension banked_webhooks');
			$self->wait_for_port;
		}
	}
	return $self;
}

sub configure
{
	my ($self, $databases, $more) = @_;

	# What the framework logs for its own purposes holds keys and bodies.
	$self->node->append_conf('postgresql.conf', <<"CONF");
log_statement = none
log_min_error_statement = panic
log_autovacuum_min_duration = -1
log_checkpoints = off
max_connections = 100
shared_buffers = 32MB
banked_webhooks.databases = '$databases'
banked_webhooks.listen_addresses = '127.0.0.1'
banked_webhooks.master_key_file = 'master.key'
banked_webhooks.port = $self->{port}
$more
CONF
	return;
}

# Writes a file in the server's data directory that is its user's alone; returns its path.
sub write_private_file
{
	my ($self, $name, $content) = @_;
	my $path = $self->node->data_dir . "/$name";

	unlink $path;
	PostgreSQL::Test::Utils::append_to_file($path, $content);
	chmod 0600, $path or croak "could not change the mode of $path: $!";
	return $path;
}

# A service for a standby of this one, on a port of its own; not started.
sub new_standby
{
	my ($self, $name) = @_;
	my $node = PostgreSQL::Test::Cluster->new($name);
	my $standby = bless {
		node    => $node,
		port    => PostgreSQL::Test::Cluster::get_free_port(),
		allowed => [@autovacuum],
	}, ref $self;

	$self->node->backup("for_$name");
	$node->init_from_backup($self->node, "for_$name", has_streaming => 1);
	# The copy of a backup has other permissions.
	$standby->write_private_file('master.key', slurp_file($self->node->data_dir . '/master.key'));
	$node->append_conf('postgresql.conf', "banked_webhooks.port = $standby->{port}\n");
	return $standby;
}

sub node { return $_[0]{node} }
sub port { return $_[0]{port} }

# Runs SQL as superuser; dies when it fails.
sub sql
{
	my ($self, $query, $database) = @_;
	return $self->node->safe_psql($database // 'postgres', $query);
}

# What a query gives while the server may be restarting; the empty string when
# it gives nothing.  (psql that gets no connection may be gone before it was
# told what to ask: then writing to it fails.)
sub sql_if_up
{
	my ($self, $query) = @_;
	my ($status, $result) = eval { $self->node->psql('postgres', $query) };
	return $result // '';
}

# Does the server take a connection?
sub is_up { return $_[0]->sql_if_up('select 1') eq '1' }

# Runs SQL that must fail; returns what psql says, SQLSTATE included.  The
# server's log may then hold the error.
sub sql_error
{
	my ($self, $query, $database) = @_;
	my ($status, $stdout, $stderr) =
	  $self->node->psql($database // 'postgres', "\\set VERBOSITY verbose\n$query", on_error_stop => 1);

	croak "no error from: $query" if $status == 0;
	$self->allow(quotemeta $1) if $stderr =~ /(?:ERROR|FATAL):\s+(?:\w{5}: )?(.*)/;
	return $stderr;
}

# A psql session that stays.
sub session
{
	my ($self, $database, %options) = @_;
	my $session = $self->node->background_psql($database // 'postgres', on_error_stop => 0, %options);
	$session->set_query_timer_restart;
	return $session;
}

# Registers an endpoint under $KEY.  Further arguments go to register_endpoint,
# as SQL text.  The gateway learns of it a moment after: the first delivery is
# to be repeated until it is taken.
sub register
{
	my ($self, $path, %arguments) = @_;
	my $database = delete $arguments{database};
	my $key = delete $arguments{key} // $KEY;
	my $more = join '', map { ", $_ => $arguments{$_}" } sort keys %arguments;

	return $self->sql("select endpoint_id from banked.register_endpoint('$path', signing_key => '$key'$more)", $database);
}

sub connect
{
	my ($self, %options) = @_;
	return BankedWebhooks::Connection->new($self->port, %options);
}

# One POST over a connection of its own.  Returns the status, 0 without an
# answer.  Options: those of request, and timeout, the longest wait for the answer.
sub post
{
	my ($self, $path, $body, %options) = @_;
	my $response = $self->exchange(request($path, $body, %options), timeout => $options{timeout});
	return $response ? $response->{status} : 0;
}

# The same to another port, where another database is served.
sub post_to
{
	my ($self, $port, $path, $body, %options) = @_;
	local $self->{port} = $port;
	return $self->post($path, $body, %options);
}

# Sends these bytes and reads one answer: a hash of status, headers and body, or
# nothing when the connection ends or stays silent.
sub exchange
{
	my ($self, $bytes, %options) = @_;
	my $connection = $self->connect(%options) or return;
	$connection->send($bytes);
	return $connection->receive;
}

# The sum of a metric of banked.stats() over all rows whose labels contain these.
sub stat
{
	my ($self, $metric, $labels, $database) = @_;
	my $condition = $labels ? "and labels @> '" . json($labels) . "'" : '';
	return $self->sql("select coalesce(sum(value), 0) from banked.stats() where metric = '$metric' $condition", $database);
}

# The jobs of a handler that are in a state.
sub count_jobs
{
	my ($self, $handler, $state) = @_;
	return $self->sql("select count(*) from banked.jobs where handler = '$handler' and state = '$state'");
}

# Waits until a handler has done so many jobs, and reports that as a test.
sub ok_all_done
{
	my ($self, $handler, $count, $limit) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	ok_until(sub { $self->count_jobs($handler, 'done') == $count }, "all $count jobs of $handler are done", $limit)
	  or diag $self->sql("select * from banked.handler_status where handler = '$handler'");
	return;
}

# Waits until what was answered is counted: that follows the answer, and a
# receiver is not idle before.
sub wait_until_counted
{
	my ($self, $database) = @_;
	my $busy = q(select count(*) from pg_stat_activity where backend_type = 'banked_webhooks receiver' and state <> 'idle');
	wait_until(sub { $self->sql($busy, $database) == 0 }) or die "a receiver does not become idle\n" . $self->log_tail;
	return;
}

# The pids of the processes of one kind: launcher, receiver, gateway.
sub pids
{
	my ($self, $kind) = @_;
	if ($kind eq 'gateway')
	{
		my @gateways;
		foreach my $receiver ($self->pids('receiver'))
		{
			push @gateways, split ' ', slurp_children($receiver);
		}
		return @gateways;
	}
	return split /\n/, $self->sql("select pid from pg_stat_activity where backend_type = 'banked_webhooks $kind' order by 1");
}

sub slurp_children
{
	my ($pid) = @_;
	open my $handle, '<', "/proc/$pid/task/$pid/children" or return '';
	return <$handle> // '';
}

# Sends deliveries until one waits for a synchronous standby: the process that
# makes commits wait for one reads its settings in its own time.  The code makes
# a body from a number.  Returns the connection on which the answer is still to
# come, and the body; nothing when no delivery waited.
sub send_until_it_waits_for_standby
{
	my ($self, $path, $make_body) = @_;
	my $number = 0;
	my ($connection, $body);

	wait_until(
		sub {
			$connection = $self->connect or return 0;
			$body = $make_body->(++$number);
			$connection->send(request($path, $body));
			my ($answered, $waits);
			wait_until(sub { $answered = defined $connection->receive_some; return $answered || ($waits = $self->waits_for_standby) });
			return !$answered && $waits;
		}) or return;
	return ($connection, $body);
}

# Does a receiver wait for a standby, with a batch of deliveries?
sub waits_for_standby
{
	my ($self) = @_;
	return $self->sql(
		q(select count(*) from pg_stat_activity
		where backend_type = 'banked_webhooks receiver' and query = 'storing webhooks' and state = 'active' and wait_event = 'SyncRep')) > 0;
}

sub wait_for_port
{
	my ($self, $port) = @_;
	$port //= $self->port;
	wait_until(sub { can_connect($port) }) or die "nothing listens on port $port\n" . $self->log_tail;
	return;
}

# Waits until every one of several gateways knows the path: until so many
# requests without a signature in a row, which any of them may get, are refused for that.
sub wait_for_path
{
	my ($self, $path, $receivers) = @_;
	my $known = sub { $self->post($path, 'x', signature => undef) == 400 };
	wait_until(sub { !grep { !$known->() } 1 .. 16 * $receivers }) or die "path \"$path\" is not known\n" . $self->log_tail;
	return;
}

sub wait_for_port_closed
{
	my ($self, $port) = @_;
	$port //= $self->port;
	wait_until(sub { !can_connect($port) }) or die "port $port is still open\n" . $self->log_tail;
	return;
}

# ---------------------------------------------------------------------------
# The server's log
# ---------------------------------------------------------------------------

# Where the log ends now, for log_since.
sub log_mark
{
	my ($self) = @_;
	return -s $self->node->logfile;
}

sub log_since
{
	my ($self, $mark) = @_;
	return slurp_file($self->node->logfile, $mark // 0);
}

sub log_tail
{
	my ($self) = @_;
	my @lines = split /^/, $self->log_since;
	return join '', @lines > 30 ? @lines[ -30 .. -1 ] : @lines;
}

# Waits for a line in the log; returns the text since the mark, or nothing.
sub wait_for_log
{
	my ($self, $pattern, $mark, $limit) = @_;
	return wait_until(
		sub {
			my $text = $self->log_since($mark);
			return $text =~ $pattern ? $text : undef;
		},
		$limit);
}

# Lets the log hold lines that match.
sub allow
{
	my ($self, @patterns) = @_;
	push @{ $self->{allowed} }, map { qr/$_/ } @patterns;
	return;
}

# Tests that nothing went wrong that the test did not provoke.
sub check_log
{
	my ($self) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $log = $self->log_since;
	my $bad = qr/\b(?:WARNING|ERROR|FATAL|PANIC):  |TRAP: |was terminated by signal|exited with exit code (?![01]\b)/;
	my @lines = grep { /$bad/ } split /\n/, $log;

	foreach my $allowed (@{ $self->{allowed} })
	{
		@lines = grep { !/$allowed/ } @lines;
	}
	is(join("\n", @lines), '', 'nothing unexpected in the log of ' . $self->node->name);
	ok($log !~ /$KEY|$OTHER_KEY/, 'no signing key in the log of ' . $self->node->name);
	return;
}

1;
