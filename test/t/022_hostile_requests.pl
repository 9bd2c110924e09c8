
# Hostile requests, beside those of 002_http: each gets its answer, and after
# each the next good delivery gets its 200 in normal time and both processes are
# idle.

use strict;
use warnings;

use BankedWebhooks;
use BankedWebhooks::Processes qw(idle);
use Test::More;
use Time::HiRes qw(time);

my $service = BankedWebhooks->new(conf => <<'CONF');
banked_webhooks.max_body_size = 64kB
banked_webhooks.request_timeout = 8s
banked_webhooks.store_lock_timeout = 60s
banked_webhooks.store_timeout = 100s
CONF
$service->register('/hook');
my $number = 0;
my $stored = 0;

sub fresh { return event('event-' . ++$number, 'payment_sent') }
ok_until(sub { $service->post('/hook', event('first', 'payment_sent')) == 200 }, 'served');

my ($gateway) = $service->pids('gateway');
my ($receiver) = $service->pids('receiver');

# A request from its line, its headers (those of a proper one where none are given) and its body.
sub raw
{
	my ($line, $headers, $body) = @_;
	$body //= fresh();
	$headers //= [];
	return join("\r\n", $line, @$headers, '', '') . $body;
}

# A proper POST with further headers.
sub with
{
	my (@headers) = @_;
	my $body = fresh();
	return raw('POST /hook HTTP/1.1', [ proper($body), @headers ], $body);
}

sub proper
{
	my ($body) = @_;
	return ('Host: a', 'Content-Length: ' . length $body, 'banked-signature: ' . sign($body));
}

# A POST whose headers are these, where {length} and {signature} stand for the proper values.
sub only
{
	my ($line, @headers) = @_;
	my $body = fresh();
	my ($length, $signature) = (length $body, sign($body));
	s/\{length\}/$length/, s/\{signature\}/$signature/ foreach @headers;
	return raw($line // 'POST /hook HTTP/1.1', \@headers, $body);
}

sub signed_as
{
	my ($value) = @_;
	return only(undef, 'Host: a', 'Content-Length: {length}', "banked-signature: $value");
}

# Sends the bytes on a connection of their own and tests the answers, a list of
# statuses; 'end' stands for the end of the connection.
sub answers
{
	my ($expected, $bytes, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $connection = $service->connect;
	my @expected = split ' ', $expected;
	my @got;

	$connection->send($bytes);
	foreach (@expected)
	{
		my $response = $connection->receive;
		push @got, $response ? $response->{status} : $connection->wait_for_end(0) ? 'end' : 'silence';
	}
	like("@got", qr/\A$expected\z/, "$name: $expected");
	$stored += grep { $_ eq '200' } @got;
	$connection->close;
	still_good($name);
	return;
}

sub still_good
{
	my ($name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $start = time;
	my $status = $service->post('/hook', fresh());
	my $time = time - $start;

	$stored++ if $status == 200;
	ok($status == 200 && $time < 5, "... a good delivery is stored afterwards") or diag "status $status after $time s";
	ok(idle($gateway, $receiver), '... and both processes are idle') or diag $name;
	return;
}
$stored++;

# Lengths and codings.
answers('400', only(undef, 'Host: a', 'Content-Length: 18446744073709551615', 'banked-signature: {signature}'), 'Content-Length 2^64-1');
answers('413', only(undef, 'Host: a', 'Content-Length: 18446744073709551616', 'banked-signature: {signature}'), 'Content-Length 2^64');
answers('400', only(undef, 'Host: a', 'Content-Length: 5,5', 'banked-signature: {signature}'), 'Content-Length 5,5');
answers('400', only(undef, 'Host: a', 'Content-Length: {length}', 'content-length: {length}', 'banked-signature: {signature}'), 'Content-Length twice, the same');
answers('411', with("Transfer-Encoding:\tchunked"), 'Transfer-Encoding after a tab');
answers('411', with('Transfer-Encoding: xchunked'), 'Transfer-Encoding xchunked');
answers('411', with('Transfer-Encoding: chunked', 'Transfer-Encoding: identity'), 'Transfer-Encoding twice');
answers('400', with('Transfer-Encoding : chunked'), 'Transfer-Encoding with a space before the colon');
answers('411 end', raw('POST /hook HTTP/1.1', [ 'Host: a', 'Transfer-Encoding: chunked' ], '5;' . 'x' x 60000), 'a chunk extension of 60 kB');
answers('411 end', raw('POST /hook HTTP/1.1', [ 'Host: a', 'Transfer-Encoding: chunked' ], 'f' x 60000), 'a chunk size of 60 kB');
{
	my $body = fresh();
	answers('400 end', raw('POST /hook HTTP/1.1', [ 'Host: a', 'Content-Length: ' . (length($body) - 1), 'banked-signature: ' . sign($body) ], $body),
		'one byte more than Content-Length');
	answers('end', raw('POST /hook HTTP/1.1', [ 'Host: a', 'Content-Length: ' . (length($body) + 1), 'banked-signature: ' . sign($body) ], $body),
		'one byte less than Content-Length');
}

# Names and values.
answers('400', with('X'), 'a line without colon');
answers('400', with("X\0: y"), 'NUL in a name');
answers('400', with("X\rY: y"), 'CR in a name');
answers('400', only(undef, ' X: y', 'Host: a', 'Content-Length: {length}', 'banked-signature: {signature}'), 'a fold before the first header');
answers('4\d\d end', only(undef, 'Host: a', ': v', 'Content-Length: {length}', 'banked-signature: {signature}'), 'an empty header name');
answers('4\d\d end', with(': v'), 'an empty header name after all others');
answers('431', with('X: ' . 'a' x 40000), 'a header of 40 kB');
answers('431', with('a' x 40000 . ': 1'), 'a header name of 40 kB');
answers('431', with(map { "X-$_: 1" } 1 .. 1000), '1,000 headers');
answers('431', with(map { 'X: 1' } 1 .. 10000), '10,000 headers');

# What the library hides from us: an answer, whichever it is (docs/http-parsing.md).
answers('(?:200|4\d\d)', $$_[1], $$_[0]) foreach (
	[ 'a folded value',                 with("X: y\r\n z") ],
	[ 'a folded Content-Length',        only(undef, 'Host: a', "Content: 5\r\n -Length: {length}", 'banked-signature: {signature}') ],
	[ 'a value on the next line',       only(undef, 'Host: a', "Content-Length:\r\n {length}", 'banked-signature: {signature}') ],
	[ 'Transfer-Encoding on the next line', with("Transfer-Encoding:\r\n chunked") ],
	[ 'NUL in a value',                 with("X: a\0b") ],
	[ 'NUL after the signature',        signed_as("{signature}\0a") ],
	[ 'NUL in the target',              only("POST /hook\0a HTTP/1.1", 'Host: a', 'Content-Length: {length}', 'banked-signature: {signature}') ],
	[ 'one bare LF',                    with("X: y\nZ: y") ],
	[ 'nothing but bare LF',            do { my ($head, $body) = split /\r\n\r\n/, with(), 2; $head =~ s/\r\n/\n/g; "$head\n\n$body" } ],
	[ 'an empty line before the request', "\r\n\r\n" . with() ]);

# Request lines.
sub line { return only($_[0], 'Host: a', 'Content-Length: {length}', 'banked-signature: {signature}') }
answers('404', line('POST /%2fhook HTTP/1.1'), 'an encoded slash');
answers('404', line('POST /hook%2F HTTP/1.1'), 'an encoded slash at the end');
answers('400', line('POST %2Fhook HTTP/1.1'), 'an encoded slash instead of the slash');
answers('404', line('POST /hook#a HTTP/1.1'), 'a fragment');
answers('404', line("POST /hook\xff HTTP/1.1"), 'a byte above 127');
answers('400', line("POST /hook\x01 HTTP/1.1"), 'a control character');
answers('400', line('POST /hook http/1.1'), 'http in lower case');
answers('400', line('POST /hook HTTP/1.10'), 'HTTP/1.10');
answers('400', line('POST /hook HTTP/1.'), 'HTTP/1.');
answers('400', line('POST /hook'), 'no version');
answers('400', "GET /hook\r\n\r\n", 'HTTP/0.9');
answers('505', "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\4\0\0\0\0\0", 'an h2 preface');
answers('200', with('Connection: Upgrade, HTTP2-Settings', 'Upgrade: h2c', 'HTTP2-Settings: AAMAAABkAAQAAP__'), 'Upgrade: h2c is not taken up');
answers('(?:400|end)', line("POST\t/hook\tHTTP/1.1"), 'tabs in the request line');
answers('(?:400|end)', line(' /hook HTTP/1.1'), 'no method');
answers('414', line('POST /' . 'a' x 40000 . ' HTTP/1.1'), 'a path of 40 kB');
answers('414', line('POST /hook?' . 'a' x 40000 . ' HTTP/1.1'), 'a query of 40 kB');
answers('4(?:14|31)', line('a' x 40000 . ' /hook HTTP/1.1'), 'a method of 40 kB');
answers('405', line("$_ /hook HTTP/1.1"), $_) foreach qw(CONNECT TRACE OPTIONS post);
{
	# The length in the answer is that of a body which does not come.
	my $connection = $service->connect;
	$connection->send(line('HEAD /hook HTTP/1.1'));
	ok($connection->wait_for_end, 'HEAD is answered');
	like($connection->remaining, qr/\AHTTP\/1\.1 405 .*\r\n\r\n\z/s, '... by 405, without a body');
	still_good('HEAD');
}
answers('404', only('OPTIONS * HTTP/1.1', 'Host: a'), 'OPTIONS *');
answers('400', only('CONNECT a:443 HTTP/1.1', 'Host: a'), 'CONNECT to a host');
answers('400', join('', map { chr } 0 .. 255) x 10 . "\r\n\r\n", 'every byte there is');
answers('(?:400|end)', "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" . 'x' x 508, 'a ClientHello');

# Bodies at the limit.
foreach my $expect ([], ['Expect: 100-continue'])
{
	my $name = @$expect ? 'with Expect' : 'without Expect';
	my $continue = @$expect ? '100 ' : '';
	my $body = event('limit-' . @$expect, 'payment_sent');
	$body .= ' ' x (65536 - length $body);
	answers("${continue}200", raw('POST /hook HTTP/1.1', [ proper($body), @$expect ], $body), "a body at the limit, $name");
	$body .= ' ';
	answers('413', raw('POST /hook HTTP/1.1', [ proper($body), @$expect ], $body), "one byte more, $name");
}
answers('200', with('Expect: something'), 'an expectation that nobody knows');

# Pipelined.
answers('200 400 end', with() . with('X Y: 1') . with(), 'three at once, the one in the middle malformed');
answers('200 400 200', with() . signed_as(sign('other')) . with(), 'three at once, the one in the middle with a wrong signature');
answers('200 404 end', with() . line('POST /nowhere HTTP/1.1') . with(), 'three at once, the one in the middle to nowhere');
answers(join(' ', (200) x 50), join('', map { with() } 1 .. 50), 'fifty at once');

# Signatures and their times.
my ($at, $digits) = (int time, 'ab' x 32);
answers('400', signed_as($$_[1]), "a signature $$_[0]") foreach (
	[ 'with a space inside',   "$at. $digits" ],
	[ 'with a space after it', "$at.$digits " ],
	[ 'with a comma after it', "$at.$digits," ],
	[ 'in mixed case',         "$at." . 'aB' x 32 ],
	[ 'of 63 digits and a g',  "$at." . 'a' x 63 . 'g' ],
	[ 'of odd length',         "$at." . 'a' x 63 ],
	[ 'with two dots',         "$at..$digits" ],
	[ 'with a negative time',  "-5.$digits" ],
	[ 'with an exponent',      "1e9.$digits" ],
	[ 'with a time in hex',    "0x5.$digits" ],
	[ 'with a time of 25 digits', '9' x 25 . ".$digits" ],
	[ 'with the time 2^63',    "9223372036854775808.$digits" ],
	[ 'with the time 2^63 - 1', "9223372036854775807.$digits" ],
	[ 'with an empty time',    ".$digits" ],
	[ 'repeated 150 times',    join ',', ("$at.$digits") x 150 ]);
answers('400', only(undef, 'Host: a', 'Content-Length: {length}', map { 'banked-signature: {signature}' } 1 .. 100), 'a hundred signatures');
answers('431', signed_as(join ',', ("$at.$digits") x 1000), 'a thousand signatures in one header');
{
	my $window = 22 * 86400;
	foreach my $case ([ 200, 10 - $window, 'at the start of the window' ], [ 400, -10 - $window, 'before it' ], [ 200, 290, 'at its end' ], [ 400, 310, 'after it' ])
	{
		my ($status, $offset, $name) = @$case;
		my $body = fresh();
		my $time = int(time) + $offset;
		answers($status, raw('POST /hook HTTP/1.1', [ 'Host: a', 'Content-Length: ' . length $body, 'banked-signature: ' . sign($body, undef, $time) ], $body), "signed $name");
	}
}

# Clients that go away.
{
	# In the middle of the commit: a lock holds the insert up.
	my $session = $service->session;
	$session->query_safe('begin');
	$session->query_safe('lock table banked.events in share mode');
	my @bodies = map { event("reset-$_", 'payment_sent') } 1 .. 5;
	my @connections = map { $service->connect } @bodies;
	$connections[$_]->send(request('/hook', $bodies[$_])) foreach 0 .. $#bodies;
	ok_until(sub { $service->sql(q(select count(*) from pg_locks where relation = 'banked.events'::regclass and not granted)) > 0 }, 'deliveries are being stored');
	$_->reset foreach @connections[ 0 .. 3 ];
	$connections[4]->shutdown_write;
	$session->query_safe('commit');
	$session->quit;
	my $response = $connections[4]->receive;
	ok(!$response || $response->{status} == 200, 'half-closed while it is stored: 200 or no answer');
	ok_until(sub { $service->sql(q(select count(*) from banked.events where event_id like 'reset-%')) == 5 }, 'reset while they are stored: they are stored');
	$stored += 5;
	still_good('reset');
	ok_until(sub { $service->stat('pending') == 0 && $service->stat('connections') == 0 }, 'nothing of them is left');
}

is($service->sql('select count(*) from banked.events'), $stored, 'what was answered with 200 is stored, and nothing else');
is($service->sql('select count(*) from banked.quarantine'), 0, 'nothing went to quarantine');
is(($service->pids('gateway'))[0], $gateway, 'the gateway is the same process');
is(($service->pids('receiver'))[0], $receiver, 'and so is the receiver');
$service->check_log;
done_testing();
