
# HTTPS: a real client that verifies the chain, versions, renewal of the
# certificate without a connection noticing, and files that cannot be used.

use strict;
use warnings;

use BankedWebhooks;
use BankedWebhooks::Certificates;
use BankedWebhooks::Processes qw(share_of);
use File::Copy qw(copy);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use POSIX ();

my $authority = BankedWebhooks::Certificates->new;
my $stranger = BankedWebhooks::Certificates->new('stranger');
my ($first, $first_key) = $authority->issue('first');
my ($second, $second_key) = $authority->issue('second', 'rsa');
my ($cert_file, $key_file) = map { $authority->path("used.$_") } qw(pem key);

my $tls_port = PostgreSQL::Test::Cluster::get_free_port();
my $service = BankedWebhooks->new(conf => <<"CONF");
banked_webhooks.tls_port = $tls_port
banked_webhooks.tls_cert_file = '$cert_file'
banked_webhooks.tls_key_file = '$key_file'
banked_webhooks.request_timeout = 100s
CONF
my $number = 0;
my $stored = 0;

sub put_file
{
	my ($from, $to, $mode) = @_;
	unlink $to;
	copy($from, $to) or die "could not copy: $!";
	chmod $mode // 0600, $to;
	return;
}

sub put_pair { put_file($_[0], $cert_file); put_file($_[1], $key_file); return }
sub reload { $service->sql('select pg_reload_conf()'); return }

# Delivers by curl, which verifies certificate and name.  Returns the status, or curl's message.
sub deliver
{
	my (%options) = @_;
	my $body = $options{body} // event('event-' . ++$number, 'payment_sent');
	my $file = $authority->path('body');
	open my $handle, '>', $file or die "could not write: $!";
	print $handle $body;
	close $handle;
	my ($out, $err) = ('', '');
	IPC::Run::run(
		[
			'curl', '--silent', '--show-error', '--max-time', 60,
			'--cacert', $options{ca} // $authority->ca,
			'--output', '/dev/null', '--write-out', '%{http_code}',
			'--header', 'banked-signature: ' . sign($body), '--data-binary', "\@$file",
			@{ $options{with} // [] },
			'https://localhost:' . ($options{port} // $tls_port) . ($options{path} // '/hook')
		],
		'>', \$out, '2>', \$err, IPC::Run::timeout(100));
	$stored++ if $out eq '200';
	return $out eq '000' ? $err : $out;
}

# The common name of the certificate that new connections get, and how the handshake ended.
sub handshake
{
	my (@with) = @_;
	my $output = '';
	IPC::Run::run([ 'openssl', 's_client', '-connect', "127.0.0.1:$tls_port", @with ],
		'<', \'', '>&', \$output, IPC::Run::timeout(100));
	my ($name) = $output =~ /^subject=CN = (\w+)/m;
	return ($name // 'none', $output);
}

# A TLS connection that stays: the openssl program with pipes.
sub open_connection
{
	my %connection = (in => '', out => '', err => '');
	$connection{run} = IPC::Run::start(
		[ 'openssl', 's_client', '-quiet', '-connect', "127.0.0.1:$tls_port", '-CAfile', $authority->ca ],
		'<', \$connection{in}, '>', \$connection{out}, '2>', \$connection{err}, IPC::Run::timeout(300));
	return \%connection;
}

sub exchange_over
{
	my ($connection, $bytes) = @_;
	$connection->{out} = '';
	$connection->{in} .= $bytes;
	$connection->{run}->pump while $connection->{out} !~ /\r\n\r\n\w/ && $connection->{run}->pumpable;
	my ($status) = $connection->{out} =~ m{\AHTTP/1.1 (\d+)};
	$stored++ if ($status // '') eq '200';
	return $status;
}

$service->allow('HTTPS', 'TLS certificate');

# Without usable files there is HTTP, and a line that says what is wrong.
my $log = $service->wait_for_log(qr/webhooks are not received by HTTPS: /, 0);
is(scalar(() = $log =~ /HTTPS/g), 1, 'one line says that HTTPS is not served');
like($log, qr/HTTPS: TLS certificate file "\Q$cert_file\E": could not open it: No such file or directory/, '... and why');
ok(!can_connect($tls_port), 'its port is closed');
$service->register('/hook');
ok_until(sub { $service->post('/hook', event('plain', 'payment_sent')) == 200 }, 'HTTP is served');
$stored++;
is($service->stat('tls_port'), 0, 'stats says so');

# With them there are both.
put_pair($first, $first_key);
my $mark = $service->log_mark;
reload();
$service->wait_for_port($tls_port);
like($service->log_since($mark), qr/loaded the TLS certificate of webhooks from "\Q$cert_file\E", valid until \w{3} /, 'the log says what was loaded');
is(deliver(), 200, 'a delivery by HTTPS, from a client that verifies chain and name');
is($service->post('/hook', event('beside', 'payment_sent')), 200, 'and HTTP beside it');
$stored++;
is($service->stat('tls_port'), $tls_port, 'stats tells the port');
is($service->sql('select tls_port from banked.receivers'), $tls_port, 'and so does the view');
ok_until(sub { $service->stat('gateway_sandboxed') == 1 }, 'all that in the sandbox');

# Versions.
is(deliver(with => [ '--tlsv1.2', '--tls-max', '1.2' ]), 200, 'TLS 1.2');
is(deliver(with => ['--tlsv1.3']), 200, 'TLS 1.3');
foreach my $version ('1', '1_1')
{
	# The library closes the connection without an alert.
	my (undef, $output) = handshake("-tls$version", '-cipher', 'ALL:@SECLEVEL=0');
	like($output, qr/has read 0 bytes and written 1\d\d bytes.*Cipher is \(NONE\)/s, "TLS $version is refused by the server");
}
like((handshake('-tls1_2', '-cipher', 'ALL:@SECLEVEL=0'))[1], qr/Cipher is ECDHE/, '(TLS 1.2 is not, asked in the same way)');
like((handshake('-tls1_2', '-cipher', 'kRSA:DHE'))[1], qr/has read 0 bytes.*Cipher is \(NONE\)/s, 'no cipher without forward secrecy');
like(deliver(ca => $stranger->ca), qr/certificate/, 'a client that trusts another authority goes away');
like(deliver(with => [ '--resolve', "example.com:$tls_port:127.0.0.1", '--connect-to', 'localhost::example.com:' ], path => '/nowhere'), qr/404/, '(the name is what the client asked for)');

# The same answers as by HTTP.
is(deliver(path => '/nowhere'), 404, 'an unknown path');
is(deliver(with => [ '--request', 'PUT' ]), 405, 'another method');
is(deliver(with => [ '--header', 'Transfer-Encoding: chunked' ]), 411, 'Transfer-Encoding');
is(deliver(body => 'x' x (5 * 1024 * 1024)), 413, '413, read by a client that sends 5 MB');
is(deliver(body => event('large', 'payment_sent', filler => 'x' x 3_000_000)), 200, 'a body of 3 MB');

# Renewal.
{
	my $kept = open_connection();
	is(exchange_over($kept, request('/hook', event('kept-1', 'payment_sent'))), 200, 'a connection that is kept');
	is((handshake())[0], 'first', 'new connections get the first certificate');
	my ($gateway) = $service->pids('gateway');

	put_pair($second, $second_key);
	reload();
	ok_until(sub { (handshake())[0] eq 'second' }, 'renewed, they get the second');
	is(exchange_over($kept, request('/hook', event('kept-2', 'payment_sent'))), 200, 'the connection goes on');
	is(deliver(), 200, 'the new certificate serves');
	is(($service->pids('gateway'))[0], $gateway, 'by the same process');

	# In the middle of a request.
	my $body = event('kept-3', 'payment_sent');
	my $bytes = request('/hook', $body);
	$kept->{in} .= substr $bytes, 0, 60;
	$kept->{run}->pump_nb;
	put_pair($first, $first_key);
	reload();
	ok_until(sub { (handshake())[0] eq 'first' }, 'renewed again');
	is(exchange_over($kept, substr $bytes, 60), 200, 'in the middle of a request, too');
	$kept->{run}->kill_kill;
}
$mark = $service->log_mark;
reload();
is((handshake())[0], 'first', 'a reload without a change');
is(deliver(), 200, '... serves');
unlike($service->log_since($mark), qr/TLS/, '... and says nothing');

# Files that cannot be used: one line each, and the certificate stays.
my @bad = (
	[ 'a key of another certificate', sub { put_pair($second, $first_key) },
		qr/TLS key file "\Q$key_file\E": it does not belong to the certificate in "\Q$cert_file\E"/ ],
	[ 'no certificate', sub { unlink $cert_file }, qr/TLS certificate file "\Q$cert_file\E": could not open it: No such file or directory/ ],
	[ 'no key', sub { put_pair($first, $first_key); unlink $key_file }, qr/TLS key file "\Q$key_file\E": could not open it: No such/ ],
	[ 'a directory', sub { put_pair($first, $first_key); unlink $key_file; mkdir $key_file }, qr/TLS key file "\Q$key_file\E": it is not a regular file/ ],
	[ 'a pipe', sub { rmdir $key_file; POSIX::mkfifo($key_file, 0600) }, qr/TLS key file "\Q$key_file\E": it is not a regular file/ ],
	[ 'something else', sub { put_pair(__FILE__, $first_key) }, qr/TLS certificate file "\Q$cert_file\E": it holds no certificate in PEM format: no start line/ ],
	[ 'an empty key', sub { put_pair($first, '/dev/null') }, qr/TLS key file "\Q$key_file\E": it is empty/ ],
	[ 'the certificate as key', sub { put_pair($first, $first) }, qr/TLS key file "\Q$key_file\E": it holds no private key in PEM format/ ],
	[ 'a key that others may read', sub { put_pair($first, $first_key); chmod 0640, $key_file }, qr/TLS key file "\Q$key_file\E": it has group or world access/ ],
	[ 'a key with a passphrase', sub {
			put_pair($first, $first_key);
			$authority->openssl('ec', '-in', $first_key, '-aes128', '-passout', 'pass:secret', '-out', $key_file);
			chmod 0600, $key_file;
		}, qr/TLS key file "\Q$key_file\E": it is protected by a passphrase/ ]);
foreach my $case (@bad)
{
	my ($name, $make, $pattern) = @$case;
	$make->();
	$mark = $service->log_mark;
	reload();
	my $text = $service->wait_for_log(qr/TLS certificate of webhooks/, $mark);
	like($text, qr/keeping the TLS certificate of webhooks as it was: $pattern/, "$name: one line says which file and why");
	is(deliver(), 200, '... the certificate before is served');
}
{
	my $text = $service->log_since;
	my @lines = grep { /TLS certificate of webhooks as/ } split /\n/, $text;
	is(scalar @lines, scalar @bad, 'one line for each');
}

# The gateway is gone while the files are unusable: the receiver still has the pair.
$service->allow('gateway of webhooks');
my ($gateway) = $service->pids('gateway');
kill 'KILL', $gateway;
ok_until(sub { deliver() eq '200' }, 'another gateway serves the certificate, too');

# No port any more.
put_pair($second, $second_key);
reload();
ok_until(sub { (handshake())[0] eq 'second' }, 'usable again');
$service->sql("alter system set banked_webhooks.tls_port = 0");
reload();
$service->wait_for_port_closed($tls_port);
ok_until(sub { $service->post('/hook', event('after', 'payment_sent')) == 200 }, 'HTTP goes on');
$stored++;
$service->sql("alter system set banked_webhooks.tls_port = " . $service->port);
reload();
ok($service->wait_for_log(qr/cannot receive webhooks: banked_webhooks.port and banked_webhooks.tls_port are both/), 'two settings of one port are told');
$service->sql("alter system reset banked_webhooks.tls_port");
reload();
$service->wait_for_port($tls_port);
is(deliver(), 200, 'and back');

# Handshakes that never end, and what is no TLS.
{
	$service->sql("alter system set banked_webhooks.request_timeout = '1500ms'");
	reload();
	my @stalled = map { BankedWebhooks::Connection->new($tls_port) } 1 .. 3;
	$stalled[1]->send("\x16\x03\x01\x02\x00\x01\x00");
	$stalled[2]->send("POST /hook HTTP/1.1\r\nHost: a\r\n\r\n");
	my $share = share_of(sub { $stalled[1]->wait_for_end(0.7) }, $service->pids('gateway'), $service->pids('receiver'));
	ok($share < 0.3, 'meanwhile nobody is busy') or diag "share of a processor: $share";
	foreach my $i (0 .. 2)
	{
		ok($stalled[$i]->wait_for_end, ('nothing', 'half a ClientHello', 'plain HTTP')[$i] . ' is closed at request_timeout or before');
	}
	is(deliver(), 200, 'served afterwards');
}

is($service->sql('select count(*) from banked.events'), $stored, 'what was answered with 200 is stored, and nothing else');
unlike($service->log_since, qr/PRIVATE KEY/, 'no key in the log');
$service->check_log;
done_testing();
