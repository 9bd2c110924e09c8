
# Every answer of the HTTP side, and which comes first when several would do.

use strict;
use warnings;

use BankedWebhooks;
use Test::More;

my $service = BankedWebhooks->new(conf => <<'CONF');
banked_webhooks.max_body_size = 64kB
banked_webhooks.max_header_size = 4kB
banked_webhooks.request_timeout = 4s
CONF
$service->register('/hook');
$service->register('/disabled');
$service->register('/retired');
$service->sql("select banked.disable_endpoint('/disabled'), banked.retire_endpoint('/retired')");
ok_until(sub { $service->post('/retired', event('first', 'payment_sent')) == 410 }, 'endpoints are known');

my ($gateway) = $service->pids('gateway');
my $number = 0;
my $stored = 0;

# A request from parts.  Options: method, target, version, lines (headers), body.
sub raw
{
	my (%part) = @_;
	my $body = $part{body} // '';
	return join("\r\n",
		($part{method} // 'POST') . ' ' . ($part{target} // '/hook') . ' ' . ($part{version} // 'HTTP/1.1'),
		@{ $part{lines} }, '', '') . $body;
}

# A proper request, changed: each option replaces the header of its name, a
# list gives it several times, undef leaves it out; extra holds further lines.
sub changed
{
	my (%change) = @_;
	my $body = delete $change{body} // event('event-' . ++$number, 'payment_sent');
	my %header = (
		'Host'             => '127.0.0.1',
		'Content-Length'   => length $body,
		'banked-signature' => sign($body));
	my @lines;

	foreach my $name ('Host', 'Content-Length', 'banked-signature')
	{
		my $value = exists $change{$name} ? delete $change{$name} : $header{$name};
		push @lines, map { "$name: $_" } ref $value ? @$value : defined $value ? $value : ();
	}
	push @lines, @{ delete $change{extra} // [] };
	return raw(%change, lines => \@lines, body => $body);
}

# Sends a request and tests its status.
sub answers
{
	my ($status, $bytes, $name) = @_;
	local $Test::Builder::Level = $Test::Builder::Level + 1;
	my $response = $service->exchange($bytes);

	is($response ? $response->{status} : 'no answer', $status, "$status: $name");
	$stored++ if $response && $response->{status} == 200;
	if ($response && $status != 200 && $response->{body} !~ /\A(?:<html>|HTTP)/)
	{
		# (What the library answers by itself is a page of its own, and libmicrohttpd
		# 0.9.75 sends the head of some of them twice.)
		diag "body: $response->{body}" unless like($response->{body}, qr/\A[^\r\n]{1,200}\r?\n?\z/, '... in one line');
	}
	return $response;
}

# 200
answers(200, changed(), 'a proper request');
answers(200, changed(version => 'HTTP/1.0', Host => undef), 'HTTP/1.0');
answers(200, changed(target => '/hook?from=here'), 'the query is not looked at');
answers(200, changed(extra => [ 'X-Empty:', "X-Tab:\ta", 'Accept: */*', 'X-Latin: ' . "\xe9" ]), 'other headers');
{
	my $body = event('upper-case', 'payment_sent');
	answers(200, raw(lines => [ 'HOST: a', 'CONTENT-LENGTH: ' . length $body, 'BANKED-SIGNATURE: ' . sign($body) ], body => $body),
		'names of headers in upper case');
}
answers(200, changed(Host => ''), 'an empty Host');
answers(200, changed('banked-signature' => sign(event('late', 'payment_sent'), undef, time - 21 * 86400), body => event('late', 'payment_sent')),
	'signed three weeks ago');
answers(200, changed('banked-signature' => sign(event('early', 'payment_sent'), undef, time + 240), body => event('early', 'payment_sent')),
	'signed four minutes ahead');
{
	my $padded = event('padded', 'payment_sent', filler => 'x' x 60000);
	$padded .= ' ' x (65536 - length $padded);
	answers(200, changed(body => $padded), 'a body of exactly max_body_size');
}

# 400: framing
answers(400, changed('Content-Length' => $_->[1]), "Content-Length $_->[0]")
  foreach (
	[ 'doubled',              [ 5, 5 ] ],
	[ 'in conflict',          [ 5, 6 ] ],
	[ 'with a sign',          '+5' ],
	[ 'negative',             '-5' ],
	[ 'as a list',            '5, 5' ],
	[ 'with a space',         '5 5' ],
	[ 'in hexadecimal',       '0x5' ],
	[ 'empty',                '' ],
	[ 'a word',               'five' ],
	[ 'above 2^63 - 1',       '9223372036854775808' ]);
answers(400, changed('Content-Length' => undef, extra => ['Content-Length : 5']), 'a space before the colon');
answers(400, changed(extra => ["X\x01Y: 1"]), 'a control character in a name');
answers(400, changed(extra => ['X Y: 1']), 'a space in a name');
answers(400, changed(extra => ['X(Y): 1']), 'a parenthesis in a name');
answers(400, changed(extra => ["X: a\x01b"]), 'a control character in a value');
answers(400, changed(extra => ["X: a\x7fb"]), 'a DEL in a value');
answers(400, changed(extra => ["X: a\rb"]), 'a bare CR in a value');
answers(400, changed(version => $_), $_) foreach ('HTTP/1.9', 'HTTP/1.2');
answers(400, changed(Host => undef), 'no Host');
answers(400, changed(Host => [ 'a', 'a' ]), 'two Hosts');
answers(400, changed(Host => 'a b'), 'a space in Host');
answers(400, changed(target => 'http://127.0.0.1/hook'), 'an absolute URL');
answers(400, changed(target => '/hook%00'), 'an encoded null');
answers(400, changed(target => 'hook'), 'a target without slash');

# 400: signature
my @refused;
my $at = time;
my $digits = 'ab' x 32;
push @refused, answers(400, changed('banked-signature' => $_->[1]), "signature $_->[0]")
  foreach (
	[ 'missing',               undef ],
	[ 'doubled',               [ "$at.$digits", "$at.$digits" ] ],
	[ 'empty',                 '' ],
	[ 'without time',          $digits ],
	[ 'with an empty time',    ".$digits" ],
	[ 'with a signed time',    "+$at.$digits" ],
	[ 'with a leading zero',   "0$at.$digits" ],
	[ 'with a time of a word', "now.$digits" ],
	[ 'with a fraction',       "$at.5.$digits" ],
	[ 'in upper case',         "$at." . uc $digits ],
	[ 'too short',             "$at." . substr $digits, 1 ],
	[ 'too long',              "$at.${digits}a" ],
	[ 'not hexadecimal',       "$at." . 'g' x 64 ],
	[ 'with a prefix',         "sha256=$at.$digits" ],
	[ 'wrong',                 "$at.$digits" ],
	[ 'of time 0',             "0.$digits" ]);
{
	my $body = event('window', 'payment_sent');
	push @refused,
	  answers(400, changed(body => $body, 'banked-signature' => sign($body, undef, time - 23 * 86400)), 'signed 23 days ago'),
	  answers(400, changed(body => $body, 'banked-signature' => sign($body, undef, time + 600)), 'signed ten minutes ahead'),
	  answers(400, changed(body => $body, 'banked-signature' => sign($body, $OTHER_KEY)), 'signed with another key');
	my %texts = map { $_->{body} => 1 } grep { $_ } @refused;
	is(scalar keys %texts, 1, 'all of these answers are the same: nothing tells a forger what was wrong');
}

# 404, 410, 405
answers(404, changed(target => $_), "path $_")
  foreach ('/', '/nowhere', '/hook/', '//hook', '/HOOK', '/%68ook', '/./hook', '/disabled', '/hook;x', '/hook/../hook');
answers(410, changed(target => '/retired'), 'a retired endpoint');
foreach my $method (qw(GET PUT DELETE PATCH BREW))
{
	my $response = answers(405, changed(method => $method), $method);
	is($response && $response->{headers}{allow}, 'POST', '... with Allow: POST');
}

# 411, 413, 414, 431
answers(411, changed('Content-Length' => undef, body => ''), 'POST without Content-Length');
answers(411, changed('Content-Length' => undef, extra => ["Transfer-Encoding: $_"], body => "0\r\n\r\n"), "Transfer-Encoding: $_")
  foreach ('chunked', 'gzip, chunked', 'identity', 'CHUNKED', '');
answers(411, changed(extra => ['Transfer-Encoding: chunked']), 'Transfer-Encoding beside Content-Length');
answers(413, changed('Content-Length' => 65537, body => ''), 'a body over the limit, before it is sent');
answers(413, changed('Content-Length' => '9223372036854775807', body => ''), 'a body of 2^63 - 1 bytes');
answers(414, changed(target => '/' . 'a' x 255), 'a path of 256 bytes');
answers(404, changed(target => '/' . 'a' x 254), 'a path of 255 bytes is only unknown');
{
	my $response = $service->exchange(changed(target => '/hook?' . 'a' x 8000));
	like($response && $response->{status}, qr/^(?:414|431)$/, '414 or 431: a query longer than max_header_size');
	$response = $service->exchange(changed(extra => [ 'X: ' . 'a' x 8000 ]));
	is($response && $response->{status}, 431, '431: headers longer than max_header_size');
	$response = $service->exchange(changed(extra => [ map { "X-$_: " . 'a' x 100 } 1 .. 60 ]));
	is($response && $response->{status}, 431, '431: too many headers');
}

# What the library answers before our code runs.
foreach my $case (
	[ 'HTTP/2.0',           changed(version => 'HTTP/2.0') ],
	[ 'the preface of h2',  "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n" ],
	[ 'HTTP/0.9',           changed(version => 'HTTP/0.9') ])
{
	my $response = $service->exchange($case->[1]);
	like($response && $response->{status}, qr/^(?:400|505)$/, "refused: $case->[0]");
}
{
	my $response = $service->exchange(changed('Content-Length' => '18446744073709551616', body => ''));
	like($response && $response->{status}, qr/^(?:400|413)$/, 'refused: Content-Length 2^64');
}

# Precedence, each pair of neighbours.
my $long = '/' . 'a' x 300;
answers(400, changed(extra => [ 'Transfer-Encoding: chunked', 'X Y: 1' ]), 'framing before Transfer-Encoding');
answers(400, changed(target => $long, Host => undef), 'framing before a long path');
answers(400, changed(target => '/nowhere', 'Content-Length' => [ 1, 2 ]), 'framing before an unknown path');
answers(411, changed(target => $long, extra => ['Transfer-Encoding: chunked']), 'Transfer-Encoding before 414');
answers(411, changed(target => '/nowhere', extra => ['Transfer-Encoding: chunked']), 'Transfer-Encoding before 404');
answers(414, changed(target => $long, method => 'GET'), '414 before 404 and 405');
answers(404, changed(target => '/nowhere', method => 'GET'), '404 before 405');
answers(410, changed(target => '/retired', method => 'GET'), '410 before 405');
answers(410, changed(target => '/retired', 'Content-Length' => undef, body => ''), '410 before 411');
answers(405, changed(method => 'PUT', 'Content-Length' => undef, body => ''), '405 before 411');
answers(405, changed(method => 'PUT', 'Content-Length' => 65537, body => ''), '405 before 413');
answers(411, changed('Content-Length' => undef, 'banked-signature' => undef, body => ''), '411 before the signature');
answers(413, changed('Content-Length' => 65537, 'banked-signature' => undef, body => ''), '413 before the signature');

# Connections
{
	my $connection = $service->connect;
	$connection->send(changed() . changed());
	my @both = map { $connection->receive } 1 .. 2;
	is(tally(map { $_ ? $_->{status} : 0 } @both), '200: 2', 'two requests sent at once');
	$stored += 2;
	$connection->send(changed(extra => ['Connection: close']));
	is($connection->receive->{status}, 200, 'Connection: close is answered');
	ok($connection->wait_for_end, 'and obeyed');
	$stored++;
}
{
	my $connection = $service->connect;
	$connection->send(changed());
	$connection->shutdown_write;
	is($connection->receive->{status}, 200, 'a client that has closed its side gets its answer');
	$stored++;
}
{
	my $body = event('continued', 'payment_sent');
	my $connection = $service->connect;
	$connection->send(raw(lines => [ 'Host: a', 'Content-Length: ' . length $body, 'banked-signature: ' . sign($body), 'Expect: 100-continue' ]));
	is($connection->receive->{status}, 100, 'Expect: 100-continue is answered');
	$connection->send($body);
	is($connection->receive->{status}, 200, 'and then the request');
	$stored++;

	my $refused = $service->exchange(
		raw(lines => [ 'Host: a', 'Content-Length: 65537', 'banked-signature: ' . sign($body), 'Expect: 100-continue' ]));
	is($refused->{status}, 413, 'a body that is too long is not asked for');
}
{
	# Byte by byte, in time.
	my $connection = $service->connect;
	my $bytes = changed();
	foreach my $chunk (unpack '(a37)*', $bytes)
	{
		$connection->send($chunk);
	}
	is($connection->receive->{status}, 200, 'a request in small pieces');
	$stored++;
}

# Clients that never finish, and those that go away.
{
	my %partial = (
		'nothing'          => '',
		'half a line'      => 'POST /ho',
		'half the headers' => "POST /hook HTTP/1.1\r\nHost: a\r\nX: ",
		'half a body'      => substr(changed(), 0, -10));
	my %clients = map { $_ => $service->connect } keys %partial;

	$clients{$_}->send($partial{$_}) foreach keys %partial;
	foreach my $name (sort keys %clients)
	{
		ok($clients{$name}->wait_for_end, "closed at request_timeout: $name");
		is($clients{$name}->remaining, '', '... without an answer');
	}
}
{
	my $connection = $service->connect;
	my $drip = sub { $connection->send("X: y\r\n"); return $connection->receive_some };
	$connection->send("POST /hook HTTP/1.1\r\nHost: a\r\n");
	ok_until(sub { defined $drip->() }, 'a client that sends a little for ever is closed too');
}
{
	my @connections = map { $service->connect } 1 .. 50;
	my $partial = substr changed(), 0, -10;
	$_->send($partial) foreach @connections;
	$_->reset foreach @connections;
	answers(200, changed(), 'after fifty clients went away in the middle of a body');
}

is($service->sql('select count(*) from banked.events'), $stored, 'what was answered with 200 is stored, and nothing else');
is($service->sql('select count(*) from banked.quarantine'), 0, 'nothing went to quarantine');
is(($service->pids('gateway'))[0], $gateway, 'the gateway is still the same process');

foreach my $reason (
	qw(framing transfer_encoding uri_too_long unknown_path retired method length_required body_too_large
	signature_missing signature_doubled signature_malformed signature_wrong timestamp request_timeout))
{
	ok_until(sub { $service->stat('rejections', { reason => $reason }) > 0 }, "stats count $reason");
}

$service->check_log;
done_testing();
