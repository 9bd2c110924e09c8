
# The gateway under valgrind: no invalid access, no use of what was never
# written, nothing lost.  The test plays the receiver, since a program that is
# so much slower would miss the receiver's deadlines.

use strict;
use warnings;

use BankedWebhooks;
use BankedWebhooks::Certificates;
use IO::Socket::IP;
use PostgreSQL::Test::Utils;
use POSIX ();
use Socket;
use Test::More;
use Time::HiRes qw(time);

plan skip_all => 'valgrind is not installed' if system('sh', '-c', 'valgrind --version >/dev/null 2>&1') != 0;

my %TYPE = (hello => 1, delivery => 2, rejection => 3, status => 4, config => 16, paths => 17, answers => 18, ping => 19, drain => 20, tls => 21);
my ($stage, $lib) = slurp_file($ENV{TEMP_CONFIG}) =~ m{extension_destdir = '(.*)'\ndynamic_library_path = '\1([^:]*):};
my $directory = PostgreSQL::Test::Utils::tempdir;
my $authority = BankedWebhooks::Certificates->new;
my @pairs = map { [ map { slurp_file($_) } $authority->issue($_) ] } qw(first second);

my @listeners = map { IO::Socket::IP->new(LocalHost => '127.0.0.1', LocalPort => 0, Listen => 100) } 1 .. 2;
my ($port, $tls_port) = map { $_->sockport } @listeners;
socketpair my $link, my $far, AF_UNIX, SOCK_STREAM, PF_UNSPEC or die "socketpair: $!";

my $pid = fork;
die "could not fork: $!" unless defined $pid;
if ($pid == 0)
{
	my @inherited = map { POSIX::dup2(fileno $_, 10 + fileno $_); 10 + fileno $_ } $far, @listeners;
	open STDERR, '>', "$directory/stderr";
	open STDIN, '<', '/dev/null';
	POSIX::dup2($inherited[$_], 3 + $_) foreach 0 .. 2;
	POSIX::close($_) foreach 6 .. 9;
	$^F = 100;
	exec 'valgrind', '--quiet', '--leak-check=full', '--errors-for-leak-kinds=definite', '--error-exitcode=9',
	  "--log-file=$directory/valgrind", "$stage$lib/banked_webhooks_gateway", '--link=3', '--http=4', '--https=5', '--no-sandbox'
	  or POSIX::_exit(127);
}
close $far;
$link->blocking(0);

# The receiver's side of the link.
my ($in, %seen) = ('');

sub put
{
	my ($type, $payload) = @_;
	my $bytes = pack('LCCS', length $payload, 1, $TYPE{$type}, 0) . $payload;
	while (length $bytes)
	{
		my $sent = syswrite $link, $bytes;
		substr $bytes, 0, $sent, '' if defined $sent;
		take();
	}
	return;
}

# Under valgrind, on a busy machine, nothing has to be fast but what is to meet its deadline.
sub put_config
{
	my ($header_size, $timeout) = @_;
	put('config', pack 'QLLLQLL', 65536, $header_size, 50, 100, 1 << 20, $timeout // 100_000, $timeout // 100_000);
	return;
}
sub put_pair { my ($pair) = @_; put('tls', pack('LL', map { length } @$pair) . join '', @$pair); return }

# Takes the frames that have come; every other delivery but those to /later gets its answer at once.
sub take
{
	sysread $link, $in, 65536, length $in;
	while (length $in >= 8)
	{
		my ($length, $version, $type) = unpack 'LCC', $in;
		last if length $in < 8 + $length;
		my $payload = substr $in, 8, $length;
		substr $in, 0, 8 + $length, '';
		$seen{$type}++;
		next unless $type == $TYPE{delivery};
		my $number = unpack 'Q', $payload;
		next if $payload =~ m{/later};
		put('answers', pack 'QS', $number, $payload =~ /wrong/ ? 400 : 200);
	}
	return;
}

sub until_true
{
	my ($condition, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	return ok_until(sub { take(); return $condition->() }, $name, 120);
}

# Sends bytes and returns the statuses until the connection ends or as many as wanted have come.
sub statuses
{
	my ($bytes, $wanted) = @_;
	my $connection = BankedWebhooks::Connection->new($port);
	my @got;
	$connection->send($bytes);
	wait_until(sub {
			take();
			my $response = $connection->receive_some;
			push @got, $response ? $response->{status} : 'end' if defined $response;
			return @got && ($got[-1] eq 'end' || @got >= $wanted);
		}, 120);
	$connection->close;
	return "@got";
}

# A request by HTTPS.
sub secure
{
	my (@with) = @_;
	my ($out, $err) = ('', '');
	my $curl = IPC::Run::start(
		[ 'curl', '--silent', '--show-error', '--max-time', 100, '--cacert', $authority->ca, '--output', '/dev/null', '--write-out', '%{http_code}',
			'--header', 'banked-signature: ' . sign('x'), '--data-binary', 'x', @with, "https://localhost:$tls_port/hook" ],
		'<', \undef, '>', \$out, '2>', \$err);
	while ($curl->pumpable) { $curl->pump_nb; take(); select undef, undef, undef, 0.002 }
	$curl->finish;
	return $out eq '000' ? $err : $out;
}

until_true(sub { $seen{ $TYPE{hello} } }, 'the gateway says hello');
put_config(4096);
put_pair($pairs[0]);
put('paths', pack 'CC/a*CC/a*CC/a*', 1, '/hook', 1, '/later', 2, '/old');
put('ping', '');
until_true(sub { $seen{ $TYPE{status} } }, 'it answers a ping');

is(statuses(request('/hook', event('a', 'payment_sent')) x 5, 5), '200 200 200 200 200', 'deliveries');
is(statuses(request('/hook', 'wrong') . request('/hook', 'x' x 60000) . request('/hook', ''), 3), '400 200 200', 'a wrong one, a large one and an empty one');
is(statuses(request('/nowhere', 'x'), 1), 404, 'an unknown path');
is(statuses(request('/old', 'x'), 1), 410, 'a retired one');
is(statuses(request('/hook', 'x' x 70000), 1), 413, 'a large body');
is(statuses("POST /hook HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n5;" . 'x' x 60000, 1), 411, 'chunked');
is(statuses("POST /hook HTTP/1.1\r\nHost: a\r\nX Y: 1\r\n\r\n", 1), 400, 'a malformed header');
is(statuses("POST /hook HTTP/1.1\r\nHost: a\r\nX: " . 'a' x 40000 . "\r\n\r\n", 1), 431, 'a long header');
is(statuses('POST /' . 'a' x 40000 . " HTTP/1.1\r\nHost: a\r\n\r\n", 1), 414, 'a long path');
is(statuses("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 1), 505, 'an h2 preface');
statuses(join('', map { chr } 0 .. 255) x 10 . "\r\n\r\n", 1);

is(secure(), 200, 'HTTPS');
is(secure('--tls-max', '1.2'), 200, 'TLS 1.2');
put_pair($pairs[1]);
is(secure(), 200, 'a new certificate');
put_pair([ $pairs[0][0], $pairs[1][1] ]);
put_pair([ 'no certificate', 'no key' ]);
is(secure(), 200, 'two that cannot be used');
put_config(8192);
is(secure(), 200, 'other limits');
is(statuses(request('/hook', 'x'), 1), 200, 'for HTTP, too');

# Many at once: surplus ones, resets, deadlines, and some that are waiting when it drains.
put_config(8192, 3000);
{
	my @many = map { BankedWebhooks::Connection->new($port) } 1 .. 80;
	$_->send(substr request('/hook', 'x'), 0, -1) foreach @many;
	take();
	$_->reset foreach @many[ 0 .. 20 ];
	my @tls = map { BankedWebhooks::Connection->new($tls_port) } 1 .. 5;
	$_->send("\x16\x03\x01\x02\x00\x01") foreach @tls;
	until_true(sub { !grep { !$_->wait_for_end(0.001) } @many[ 21 .. 50 ], @tls }, 'clients that do not finish are closed');
	$_->close foreach @many[ 21 .. 79 ], @tls;
}
is(statuses(request('/later', 'x'), 1), 503, 'a delivery that nobody answers');
put_config(8192);
my @late = map { BankedWebhooks::Connection->new($_) } $port, $port, $tls_port;
$late[0]->send(request('/later', 'y'));
my $deliveries = $seen{ $TYPE{delivery} };
until_true(sub { $seen{ $TYPE{delivery} } > $deliveries }, 'one is waiting');
put('drain', '');
my $response;
until_true(sub { $response = $late[0]->receive_some; defined $response }, 'drained');
is($response ? $response->{status} : 'end', 503, '... with 503');
until_true(sub { waitpid($pid, POSIX::WNOHANG()) == $pid }, 'it ends');
is($? >> 8, 0, 'with status 0');
is(slurp_file("$directory/valgrind"), '', 'valgrind has nothing to say');
my $stderr = slurp_file("$directory/stderr");
is(scalar(() = $stderr =~ /could not use the TLS certificate and its key: .*; the certificate before is kept/g), 2, 'the log says what could not be used') or diag $stderr;
cmp_ok($seen{ $TYPE{rejection} }, '>=', 5, 'rejections were reported');
done_testing();
