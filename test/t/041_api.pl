
# Calls of Banked's API, against a server of its own that plays Banked: what
# is sent, what comes back as SQL, and every way in which a call can fail.

use strict;
use warnings;

use BankedWebhooks;
use BankedWebhooks::Api;
use MIME::Base64 qw(encode_base64);
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;
use Time::HiRes qw(time);

# Not to be heeded by the server.
$ENV{https_proxy} = 'http://127.0.0.1:1';
$ENV{no_proxy} = '*';

my $api = BankedWebhooks::Api->new;
my $service = BankedWebhooks->new(
	conf => "banked_webhooks.api_base_url = '${\ $api->url}'\nbanked_webhooks.api_ca_file = '${\ $api->ca}'\n"
	  . "log_min_messages = debug2\nlog_error_verbosity = verbose");
my ($api_key, $secret_key) = ($BankedWebhooks::Api::API_KEY, $BankedWebhooks::Api::SECRET_KEY);
my $file = $service->write_private_file('api.secret', "$secret_key\n");

$service->allow('answered (?:GET|POST|PATCH|DELETE|/)', 'https://127\.0\.0\.1');

sub set_credentials
{
	my ($more) = @_;
	$service->sql("select banked.set_api_credentials(api_key => '$api_key', secret_key_file => '$file'" . ($more // '') . ')');
	return;
}

# Makes one call meet a misbehaviour; returns the error.
sub error_of
{
	my ($misbehaviour, $query) = @_;
	$api->next_requests($misbehaviour);
	return $service->sql_error($query // 'select * from banked.api_list_webhooks()');
}

like($service->sql_error('select * from banked.api_list_webhooks()'), qr/42704: API credentials "default" do not exist/, 'no credentials');
set_credentials();

# ---------------------------------------------------------------------------
# Basic
# ---------------------------------------------------------------------------

is($service->sql('select count(*) from banked.api_list_webhooks()'), 0, 'nothing there');
my ($id) = split /\|/, $service->sql(
	"select webhook_id, url, event_types, webhook ->> 'target_url', webhook ? 'signature_key'
	 from banked.api_create_webhook('https://shop.example/hook', 'signing \"key\" é \\ 1', array['payment_sent', 'payment_failed'])");
is_deeply(
	[ $api->webhooks ],
	[ { id => $id, target_url => 'https://shop.example/hook', signature_key => qq(signing "key" \x{e9} \\ 1), events => [ 'payment_sent', 'payment_failed' ] } ],
	'a webhook is made as asked');
is($service->sql('select webhook_id, url, event_types, webhook ? $$signature_key$$ from banked.api_list_webhooks()'),
	"$id|https://shop.example/hook|{payment_sent,payment_failed}|f", 'it is listed, without its key');
$service->sql("select from banked.api_update_webhook('$id', events => array['payment_sent'])");
is(join(' ', map { "@{ $_->{events} } $_->{target_url}" } $api->webhooks), 'payment_sent https://shop.example/hook', 'only what is passed is changed');
$service->sql("select from banked.api_update_webhook('$id', signature_key => 'another key', target_url => 'https://shop.example/other')");
is(join(' ', map { "$_->{signature_key} $_->{target_url}" } $api->webhooks), 'another key https://shop.example/other', 'key and URL');
is($service->sql("select * from banked.api_delete_webhook('$id')"), "$id|", 'deleted');
is(scalar $api->webhooks, 0, 'gone');
is(join(', ', $api->requests),
	"GET /v2/webhooks, POST /v2/webhooks, GET /v2/webhooks, PATCH /v2/webhooks/$id, PATCH /v2/webhooks/$id, DELETE /v2/webhooks/$id", 'these were the calls');
is(scalar(grep { $_->{authorization} !~ /^Basic / } @{ $api->control('/requests') }), 0, 'each with its authorization');
is($service->sql(q(select count(*) from banked.audit_log where action like 'api\_%')), 4, 'changes are audited');

set_credentials(", api_version => '3'");
$api->next_requests();
$service->sql('select * from banked.api_list_webhooks()');
is(join(', ', $api->requests), 'GET /v3/webhooks', 'version 3 by the credentials');
set_credentials();
$service->sql(q(alter system set banked_webhooks.api_version = 'v3'; ));
$service->sql('select pg_reload_conf()');
ok_until(sub { $api->next_requests(); $service->sql('select * from banked.api_list_webhooks()'); join(', ', $api->requests) eq 'GET /v3/webhooks' }, 'or by the setting');
$service->sql('alter system reset banked_webhooks.api_version');
$service->sql('select pg_reload_conf()');

foreach my $wrap (qw(webhooks data items results))
{
	$api->control('/settings', { wrap => $wrap });
	is($service->sql('select count(*) from banked.api_list_webhooks()'), 0, "a list in $wrap");
}
$api->control('/settings', { wrap => undef });

# ---------------------------------------------------------------------------
# OAuth
# ---------------------------------------------------------------------------

set_credentials(", auth => 'oauth', scope => 'webhooks:read webhooks&write'");
my $list = 'select count(*) from banked.api_list_webhooks()';
$api->next_requests();
$service->sql("$list; $list; $list");
is(join(', ', $api->requests), 'POST /oauth/token, GET /v2/webhooks, GET /v2/webhooks, GET /v2/webhooks', 'one token serves a session');
{
	my ($token, $call) = @{ $api->control('/requests') };
	is($token->{body}, 'grant_type=client_credentials&scope=webhooks%3Aread%20webhooks%26write', 'the form');
	like($token->{authorization}, qr/^Basic /, 'the token is asked for with Basic');
	like($call->{authorization}, qr/^Bearer token-/, 'and then used');
}
$api->control('/settings', { expires_in => 1 });
$api->next_requests();
$service->sql("$list; select pg_sleep(0.6); $list");
is(join(', ', $api->requests), 'POST /oauth/token, GET /v2/webhooks, POST /oauth/token, GET /v2/webhooks', 'a new one before the old one expires');
$api->control('/settings', { expires_in => 7200 });
$api->next_requests(undef, undef, { status => 401, body => '{"error": "expired"}' });
$service->sql("$list; $list");
is(join(', ', $api->requests), 'POST /oauth/token, GET /v2/webhooks, GET /v2/webhooks, POST /oauth/token, GET /v2/webhooks',
	'one that is refused is replaced');
$api->next_requests(undef, { status => 401, body => '{"error": "expired"}' });
like($service->sql_error($list), qr/WH401: .*expired/, 'but not for ever');
$api->next_requests({ status => 200, body => '{"token": "x"}' });
like($service->sql_error($list), qr/WH005: Banked's answer to POST \/oauth\/token holds no access_token/, 'no token in the answer');
$api->control('/settings', { secret_key => 'other' });
like($service->sql_error($list), qr/WH401: Banked answered POST \/oauth\/token with status 401: invalid_client\nDETAIL:  wrong client\./, 'wrong secret');
$api->control('/settings', { secret_key => $secret_key });
{
	my $session = $service->session;
	$session->query_safe($list);
	$api->next_requests();
	set_credentials(", auth => 'oauth'");
	$session->query_safe($list);
	is(join(', ', $api->requests), 'POST /oauth/token, GET /v2/webhooks', 'other credentials: another token');
	$session->quit;
}
set_credentials();

# ---------------------------------------------------------------------------
# What Banked answers
# ---------------------------------------------------------------------------

foreach my $case (
	[ 400, 'WH400' ], [ 401, 'WH401' ], [ 403, 'WH401' ], [ 404, 'WH404' ], [ 409, 'WH400' ],
	[ 422, 'WH422' ], [ 429, 'WH429' ], [ 500, 'WH500' ], [ 502, 'WH500' ])
{
	my ($status, $sqlstate) = @$case;
	like(
		error_of({ status => $status, body => '{"error": "some_error", "error_description": "Some words\u000a of Banked"}' }),
		qr/$sqlstate: Banked answered GET \/v2\/webhooks with status $status: some_error\nDETAIL:  Some words  of Banked\./,
		"status $status: $sqlstate, with Banked's words");
}
like(error_of({ status => 429, body => '{}', headers => { 'Retry-After' => '120' } }), qr/WH429: .*\nHINT:  Try again after: 120\./, 'Retry-After');
like(error_of({ status => 500, body => '<html>' }), qr/WH500: Banked answered GET \/v2\/webhooks with status 500\n/, 'an error that is no JSON');
like(error_of({ status => 302, body => '', headers => { Location => 'https://127.0.0.1/' } }), qr/WH005: .*status 302\nDETAIL:  Redirects are not followed/, 'a redirect');
is(scalar $api->requests, 1, 'is not followed');
like(error_of({ status => 200, body => 'no JSON' }), qr/WH005: Banked's answer to GET \/v2\/webhooks is not JSON/, 'no JSON');
like(error_of({ status => 200, body => '[' x 10000 }), qr/WH005: .* is not JSON/, 'nested without end');
like(error_of({ status => 200, body => '{"a": 1}' }), qr/WH005: Banked's answer holds no list of webhooks/, 'no list');
like(error_of({ status => 200, body => '"' . 'x' x 1_100_000 . '"' }), qr/WH005: .*the answer is too large/, 'more than a megabyte');
like(error_of({ status => 200, body => '[]', headers => { 'X-Long' => 'x' x 150_000 } }), qr/WH005: .*the answer is too large/, 'a header that is too long');
like(error_of({ status => 200, body => '[]', headers => { map { ("X-$_" => 'x' x 60_000) } 1 .. 5 } }), qr/WH005: .*the answer is too large/, 'too many headers');
like(error_of({ mode => 'garbage' }), qr/WH005: GET https:\/\/127\.0\.0\.1:\d+: the answer cannot be used/, 'garbage');
like(error_of({ mode => 'endless' }), qr/WH005: .*the answer is too large/, 'an endless body');
like(error_of({ mode => 'close' }), qr/WH004: .*the connection ended before the answer did/, 'a connection that ends');
like(error_of({ mode => 'half' }), qr/WH004: .*the connection ended before the answer did/, 'in the middle of a body');
like(error_of({ status => 422, body => '{"error": "x"}' }, "select * from banked.api_create_webhook('https://a.example', 'the signing key', array['payment_sent'])"),
	qr/WH422: Banked answered POST/, 'a refused change');
like($service->sql_error("select * from banked.api_create_webhook('https://a.example', 'the signing key', array['payment_sent', 'mandate_active'])"),
	qr/WH422: .*invalid_request\nDETAIL:  mandate and payment events need separate webhooks/, "Banked's rules");
like($service->sql_error("select * from banked.api_delete_webhook('unknown')"), qr/WH404: .*no such webhook/s, 'an unknown id');

# Nothing is sent twice that was sent.
foreach my $mode (qw(close half garbage))
{
	error_of({ mode => $mode }, "select * from banked.api_create_webhook('https://a.example', 'the signing key', array['payment_sent'])");
	is(scalar $api->requests, 1, "a POST that meets $mode is not repeated");
}

# Secrets that an answer repeats are not shown.
{
	my $error = error_of({ mode => 'echo' }, "select * from banked.api_create_webhook('https://a.example', 'the-signing-key-to-hide', array['payment_sent'])");
	like($error, qr/WH400: Banked answered POST/, 'an answer that repeats secrets');
	unlike($error, qr/$secret_key|the-signing-key-to-hide.*DETAIL/s, 'is not quoted');
	unlike($error =~ s/^.*?ERROR//sr, qr/DETAIL/, 'at all');

	$error = error_of({ mode => 'echo_header' });
	like($error, qr/WH400: Banked answered GET/, 'one that repeats the authorization');
	unlike($error, qr/${\ encode_base64("$api_key:$secret_key", '')}/, 'is not quoted');
	set_credentials(", auth => 'oauth'");
	$api->next_requests(undef, { mode => 'echo_header' });
	$error = $service->sql_error($list);
	like($error, qr/WH400: Banked answered GET/, 'nor the token');
	unlike($error, qr/token-[0-9a-f]/, 'of OAuth');
	set_credentials();
	$api->next_requests({ status => 200, body => '[{"id": "a", "config": {"signature_key": "the-key", "secrets": [{"secret": "it"}]}}]' });
	is($service->sql('select webhook from banked.api_list_webhooks()'), '{"id": "a", "config": {"secrets": [{}]}}', 'and what is handed on holds none, however deep');
}

# An answer without contents is none to a question.
like(error_of({ status => 200, body => '' }), qr/WH005: .* is not JSON/, 'nothing is no list');
$api->next_requests({ status => 204, body => '' });
is($service->sql($list), 0, 'unless it says so');

# Nothing is done at Banked that could not be remembered here.
$api->next_requests();
like($service->sql_error("begin read only; select * from banked.api_create_webhook('https://a.example', 'the signing key', array['payment_sent'])"),
	qr/25006: cannot execute POST of Banked's API in a read-only transaction/, 'a change in a read-only transaction');
is(scalar $api->requests, 0, 'is not asked for');
is($service->sql("begin read only; $list"), scalar $api->webhooks, 'a list is read');

# ---------------------------------------------------------------------------
# No answer
# ---------------------------------------------------------------------------

my $free_port = PostgreSQL::Test::Cluster::get_free_port();
my $start = time;
like($service->sql_error("set banked_webhooks.api_base_url = 'https://127.0.0.1:$free_port'; $list"), qr/WH001: .*no connection/, 'nobody listens');
cmp_ok(time - $start, '>', 1, 'a GET is tried again');
my $delete = "set banked_webhooks.api_base_url = 'https://127.0.0.1:$free_port'; select banked.api_delete_webhook('x')";
like($service->sql_error($delete), qr/WH001: .*no connection/, 'a DELETE');
# One that is takes more than a second each time; a slow machine, not each time.
ok_until(sub { $start = time; $service->sql_error($delete); return time - $start < 1 }, 'is not');
like($service->sql_error("set banked_webhooks.api_base_url = 'https://name.invalid'; select banked.api_delete_webhook('x')"), qr/WH001: /, 'an unknown name');
like($service->sql_error("set banked_webhooks.api_proxy = 'http://127.0.0.1:$free_port'; select banked.api_delete_webhook('x')"), qr/WH001: /, 'a proxy that is not there');
like($service->sql_error("set banked_webhooks.api_proxy = 'http://127.0.0.1:$api->{control}'; select banked.api_delete_webhook('x')"), qr/WH001: /, 'a proxy that refuses');
like($service->sql_error("set banked_webhooks.api_ca_file = ''; $list"), qr/WH002: .*no trustworthy TLS connection/, 'an unknown CA');
{
	my $other = BankedWebhooks::Api->new(names => 'IP:127.0.0.2');
	like($service->sql_error("set banked_webhooks.api_ca_file = '${\ $other->ca}'; set banked_webhooks.api_base_url = '${\ $other->url}'; $list"),
		qr/WH002: .*no trustworthy TLS connection/, 'a certificate for another host');
	is(scalar $other->requests, 0, 'is told nothing');
}
{
	my $forger = BankedWebhooks::Api->new(names => 'email:a@example.com', common_name => "name\nLOG:  \e[31m\xff");
	like($service->sql_error("set banked_webhooks.api_ca_file = '${\ $forger->ca}'; set banked_webhooks.api_base_url = '${\ $forger->url}'; $list"),
		qr/WH002: .*\nDETAIL:  .*'name\?LOG:  \?\[31m\?+' does not match/, 'what a certificate says is shown on one line, in ASCII');
}
like($service->sql_error("set banked_webhooks.api_base_url = 'https://127.0.0.1:$api->{control}'; $list"), qr/WH00[24]: /, 'no TLS there');
like(error_of({ mode => 'silent' }, "set banked_webhooks.api_timeout = '3s'; $list"), qr/WH003: .*no answer in time/, 'silence');
ok_until(sub { $api->requests == 1 }, 'that was a call');

# PostgreSQL's own limits hold at once.
$api->next_requests({ mode => 'silent' });
$start = time;
like($service->sql_error("set statement_timeout = '3s'; $list"), qr/57014: canceling statement due to statement timeout/, 'statement_timeout');
cmp_ok(time - $start, '<', 15, 'at once');
ok_until(sub { $api->requests == 1 }, 'in the middle of a call');
{
	$api->next_requests({ mode => 'silent' });
	my $session = $service->session;
	my $pid = $session->query_safe('select pg_backend_pid()');

	$service->allow('canceling statement due to user request');
	$session->query_until(qr/sent/, "\\echo sent\n$list;\n\\echo ended\n");
	ok_until(sub { $api->requests == 1 }, 'a call waits');
	is($service->sql("select count(*) from pg_stat_activity where pid <> pg_backend_pid() and query ~ '$api_key|$secret_key'"), 0, 'no secret in pg_stat_activity');
	is( $service->sql("select count(*) from pg_locks where pid = $pid and mode not in ('AccessShareLock', 'ExclusiveLock')"), 0,
		'nothing is locked meanwhile');
	$start = time;
	$service->sql("select pg_cancel_backend($pid)");
	$session->query_until(qr/ended/, '');
	cmp_ok(time - $start, '<', 15, 'a cancelled query ends at once');
	$session->quit;
}

unlike($service->log_since, qr/$secret_key/, 'the secret key of the file is not in the log');
$service->check_log;
done_testing();
