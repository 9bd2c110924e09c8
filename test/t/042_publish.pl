
# An endpoint is published at Banked, in one call that can be made again: what
# is made there, rotation in two commits, failures in the middle, drift.

use strict;
use warnings;

use BankedWebhooks;
use BankedWebhooks::Api;
use PostgreSQL::Test::Utils;
use Test::More;

my $api = BankedWebhooks::Api->new;
my $service = BankedWebhooks->new(
	conf => "banked_webhooks.api_base_url = '${\ $api->url}'\nbanked_webhooks.api_ca_file = '${\ $api->ca}'");
my $url = 'https://shop.example/banked';
my $columns = q(select string_agg(kind || ' ' || action, ', ') from banked.publish_endpoint);

$service->allow('answered (?:GET|POST|PATCH|DELETE|/)', 'https://127\.0\.0\.1');
$service->sql("select banked.set_api_credentials(api_key => '$BankedWebhooks::Api::API_KEY', secret_key => '$BankedWebhooks::Api::SECRET_KEY')");

sub publish
{
	my ($arguments) = @_;
	return $service->sql("$columns($arguments)");
}

# Kind, URL, key and number of types of each webhook at Banked.
sub at_banked
{
	return join ', ', sort map {
		join ' ', ($_->{events}[0] =~ /^mandate_/ ? 'mandate' : 'payment'), $_->{target_url}, $_->{signature_key}, scalar @{ $_->{events} }
	} $api->webhooks;
}

sub drift { return $service->sql(q(select string_agg(concat_ws(' ', path, kind, problem), ', ' order by path, kind, problem) from banked.endpoint_drift())) }

# ---------------------------------------------------------------------------
# The two commits
# ---------------------------------------------------------------------------

like($service->sql_error("begin; select from banked.register_endpoint('/hook', signing_key => '$KEY'); $columns('/hook', '$url')"),
	qr/55000: the signing key of endpoint "\/hook" is not committed yet/, 'a key that is not committed');
like($service->sql_error("begin; savepoint a; select from banked.register_endpoint('/hook', signing_key => '$KEY'); release savepoint a; $columns('/hook', '$url')"),
	qr/55000: the signing key of endpoint "\/hook" is not committed yet/, 'nor in a subtransaction');
is(scalar $api->requests, 0, 'Banked is told nothing');
$service->register('/hook');
like($service->sql_error("$columns('/hook')"), qr/22023: public_url is needed/, 'no URL');
like($service->sql_error("$columns('/hook', 'http://shop.example/')"), qr/22023: public_url must be an https URL/, 'no https');
like($service->sql_error("$columns('/nowhere', '$url')"), qr/42704: endpoint "\/nowhere" does not exist/, 'no endpoint');
like($service->sql_error("$columns('/hook', '$url', 'sandbox')"), qr/42704: API credentials "sandbox" do not exist/, 'no credentials');
is(drift(), '/hook endpoint is not published', 'drift says so');

$service->sql(q(select from banked.register_endpoint('/none', events => array['nothing_*'])));
like($service->sql_error("$columns('/none', '$url')"), qr/55000: endpoint "\/none" wants no event type/, 'no types');
$service->sql(q(select banked.retire_endpoint('/none')));

is(publish("'/hook', '$url'"), 'payment created, mandate created', 'published');
is(at_banked(), "mandate $url $KEY 7, payment $url $KEY 15", 'payment and mandate types in separate webhooks');
is(drift(), '', 'no drift');
$api->next_requests();
is(publish("'/hook', '$url'"), 'payment unchanged, mandate unchanged', 'again: nothing to do');
is(join(', ', $api->requests), 'GET /v2/webhooks', 'and nothing is done');
is(publish("'/hook'"), 'payment unchanged, mandate unchanged', 'the URL is remembered');

like($service->sql_error("begin; select from banked.rotate_signing_key('/hook', '$OTHER_KEY'); $columns('/hook')"),
	qr/55000: .*not committed yet/, 'rotation and publication in one transaction are refused');
like(at_banked(), qr/$KEY.*$KEY/, 'Banked still has the old key');
$service->sql(q(select from banked.register_endpoint('/leak', events => array['payment_sent']); select from banked.rotate_signing_key('/leak')));
like($service->sql_error(q(begin; select banked.revoke_signing_key(key_id) from (select key_id from banked.signing_keys join banked.endpoints using (endpoint_id)
		where path = '/leak' order by valid_from desc limit 1) k; )
		. "$columns('/leak', 'https://shop.example/leak')"),
	qr/55000: .*not committed yet/, 'nor is another one published for one that is revoked in this transaction');
$service->sql(q(select banked.retire_endpoint('/leak')));
$service->sql("select from banked.rotate_signing_key('/hook', '$OTHER_KEY')");
is(drift(), '/hook mandate signing key differs, /hook payment signing key differs', 'after the first commit drift tells that the second is due');
ok_until(sub { $service->post('/hook', event('new', 'payment_sent'), key => $OTHER_KEY) == 200 }, 'the new key is good here');
is($service->post('/hook', event('old', 'payment_sent')), 200, 'and the old one');

# Banked cannot be reached, or fails in the middle: both keys are good, and calling again completes it.
$api->next_requests({ status => 503, body => '{"error": "unavailable"}' });
like($service->sql_error("$columns('/hook')"), qr/WH500: .*unavailable/, 'Banked fails at once');
like(at_banked(), qr/$KEY.*$KEY/, 'nothing changed there');
$api->next_requests(undef, undef, { status => 500, body => '{"error": "broken"}' });
like($service->sql_error("$columns('/hook')"), qr/WH500: .*broken/, 'it fails in the middle');
like(at_banked(), qr/^mandate $url $KEY 7, payment $url $OTHER_KEY 15$/, 'half is done there');
is($service->post('/hook', event('old2', 'payment_sent')), 200, 'the old key is good');
is($service->post('/hook', event('new2', 'payment_sent'), key => $OTHER_KEY), 200, 'and the new one');
$api->next_requests(undef, undef, { mode => 'close', apply => 1 });
like($service->sql_error("$columns('/hook')"), qr/WH004/, 'an answer that is lost');
is(publish("'/hook'"), 'payment updated, mandate updated', 'calling again completes it');
is(at_banked(), "mandate $url $OTHER_KEY 7, payment $url $OTHER_KEY 15", 'all is there');
is(drift(), '', 'no drift');

# ---------------------------------------------------------------------------
# A first publication that fails in the middle makes nothing twice
# ---------------------------------------------------------------------------

$service->register('/second', events => q(array['payment_sent', 'mandate_*', 'new_type']));
my $second = 'https://shop.example/second';
$api->next_requests(undef, { mode => 'close', apply => 1 });
like($service->sql_error("$columns('/second', '$second')"), qr/WH004/, 'the answer to the first POST is lost');
is($service->sql(q(select count(*) from banked.published_webhooks join banked.endpoints using (endpoint_id) where path = '/second')), 0, 'nothing is remembered');
$api->next_requests(undef, undef, { status => 500, body => '{}' });
like($service->sql_error("$columns('/second', '$second')"), qr/WH500/, 'then the second fails');
is(publish("'/second', '$second'"), 'payment updated, mandate created', 'what was made is found by its URL');
is(scalar(grep { $_->{target_url} eq $second } $api->webhooks), 2, 'nothing is there twice');
is(join(' ', sort map { @{ $_->{events} } } grep { $_->{target_url} eq $second } $api->webhooks),
	'mandate_active mandate_cancelled mandate_declined mandate_expired mandate_failed mandate_pending mandate_suspended new_type payment_sent',
	'patterns are spelt out, other types are passed on');

# The answers say less than one would like.
$api->control('/settings', { tell_id => JSON::PP::false(), tell_events => JSON::PP::false() });
$service->register('/third', events => q(array['payment_sent', 'mandate_active']));
is(publish("'/third', 'https://shop.example/third'"), 'payment created, mandate created', 'ids are found in the list');
is(publish("'/third'"), 'payment unchanged, mandate unchanged', 'and known again');
is($service->sql(q(select count(distinct webhook_id) from banked.published_webhooks join banked.endpoints using (endpoint_id) where path = '/third')), 2, 'one for each');
$api->control('/settings', { tell_id => JSON::PP::true(), tell_events => JSON::PP::true() });

# ---------------------------------------------------------------------------
# Changes, here and there
# ---------------------------------------------------------------------------

$service->sql(q(update banked.endpoints set events = array['payment_sent', 'payment_failed'] where path = '/third'));
like(drift(), qr/\/third mandate event types differ, \/third payment event types differ/, 'other types here');
is(publish("'/third'"), 'payment updated, mandate deleted', 'a kind that is not wanted is deleted');
is(publish("'/third', 'https://shop.example/moved'"), 'payment updated', 'another URL');
is(drift(), '', 'no drift');

my @webhooks = $api->webhooks;
{
	my ($moved) = grep { $_->{target_url} eq 'https://shop.example/moved' } @webhooks;
	my ($lost) = grep { $_->{target_url} eq $second && $_->{events}[0] =~ /mandate/ } @webhooks;
	my ($cut) = grep { $_->{target_url} eq $second && $_->{events}[0] !~ /mandate/ } @webhooks;

	$moved->{target_url} = 'https://elsewhere.example/';
	$cut->{events} = ['payment_sent'];
	$api->control('/webhooks', [ (grep { $_ != $lost } @webhooks), { id => 'foreign', target_url => $url, events => ['payment_sent'], signature_key => 'x' } ]);
}
is(drift(),
	'/hook webhook is not from here, /second mandate webhook is missing, /second payment event types differ, /third payment url differs',
	'what differs there');
is(publish("'/second'"), 'payment updated, mandate created', 'put right');
is(publish("'/third'"), 'payment updated', 'and here');
is(drift(), '/hook webhook is not from here', 'what is left');

# Two at once.
{
	my $session = $service->session;
	$session->query_safe("begin; $columns('/second')");
	like($service->sql_error("$columns('/second')"), qr/55P03: another session is publishing/, 'a second session is refused');
	like($service->sql_error("select from banked.unpublish_endpoint('/second')"), qr/55P03/, 'for the opposite too');
	is($service->sql("set lock_timeout = '20s'; select from banked.register_endpoint('/others'); select from banked.rotate_signing_key('/second');
		select banked.set_api_credentials('others', 'a', 'b'); select banked.retire_endpoint('/others'); select count(*) from banked.api_list_webhooks()") > 0, 1,
		'nothing else waits for it');
	is($service->sql("set lock_timeout = '20s'; select banked.rotate_master_key()"), 0, 'nor does who re-encrypts, with all who wait for that');
	$session->query_safe('commit');

	# What VACUUM and ANALYZE lock is no publication.
	$session->query_safe('begin; lock table banked.published_webhooks in share update exclusive mode');
	is(publish("'/second'"), 'payment updated, mandate updated', 'who has the lock of VACUUM keeps nobody from publishing');
	$session->query_safe("rollback; begin; $columns('/second')");
	is($service->sql("set lock_timeout = '20s'; vacuum analyze banked.published_webhooks; select 1"), 1, 'and publishing keeps nobody from it');
	like($service->sql_error("$columns('/second')"), qr/55P03: another session is publishing/, 'while a second session is still refused');
	$session->query_safe('commit');
	$session->quit;
}

# Sandbox and live, side by side.
$service->sql("select banked.set_api_credentials('sandbox', '$BankedWebhooks::Api::API_KEY', '$BankedWebhooks::Api::SECRET_KEY', auth => 'oauth')");
is(publish("'/third', 'https://sandbox.example/third', 'sandbox'"), 'payment created', 'other credentials: another webhook');
is($service->sql(q(select count(*) from banked.published_webhooks join banked.endpoints using (endpoint_id) where path = '/third')), 2, 'both are remembered');

# ---------------------------------------------------------------------------
# The end
# ---------------------------------------------------------------------------

my $unpublish = q(select string_agg(concat_ws(' ', kind, action), ', ') from banked.unpublish_endpoint);
like($service->sql("$unpublish('/hook')"), qr/^mandate deleted, payment deleted, deleted$/, 'unpublished, with what was left there for the URL');
is(scalar(grep { $_->{target_url} eq $url } $api->webhooks), 0, 'nothing is left');
is($service->sql("$unpublish('/hook')"), '', 'again: nothing to do');
is($service->sql(q(select state from banked.endpoints where path = '/hook')), 'active', 'the path is still served');
$api->next_requests(undef, undef, { status => 500, body => '{}' });
like($service->sql_error("$unpublish('/second', retire => true)"), qr/WH500/, 'a failure in the middle');
is($service->sql(q(select state from banked.endpoints where path = '/second')), 'active', 'does not retire the path');
is($service->sql("$unpublish('/second', retire => true)"), 'mandate was gone, payment deleted', 'calling again completes it');
is($service->sql(q(select state from banked.endpoints where path = '/second')), 'retired', 'and retires it');
like($service->sql_error("$columns('/second', '$second')"), qr/55000: endpoint "\/second" is retired/, 'a retired endpoint is not published');
$service->sql(q(select banked.revoke_signing_key(key_id) from banked.signing_keys join banked.endpoints using (endpoint_id) where path = '/third'));
like($service->sql_error("$columns('/third')"), qr/55000: endpoint "\/third" has no valid signing key/, 'nor one without a key');

# ---------------------------------------------------------------------------
# Under load
# ---------------------------------------------------------------------------

my $port = $service->port;
$api->control('/webhooks', []);
$service->register('/load', events => q(array['payment_sent']));
publish("'/load', 'https://shop.example/load'");
ok_until(sub { $service->post('/load', event('first', 'payment_sent')) == 200 }, 'an endpoint');
$api->control('/load', { url => "http://127.0.0.1:$port" });
sub received { return $service->sql(q(select count(*) from banked.events where event_id like 'load-%')) }
sub ok_received { my ($count, $name) = @_; my $before = received(); return ok_until(sub { received() >= $before + $count }, $name) }
ok_received(20, 'deliveries under the first key');
foreach my $round (1 .. 3)
{
	$service->sql(q(select from banked.rotate_signing_key('/load')));
	ok_received(5, "round $round: between the two commits");
	is(publish("'/load'"), 'payment updated', "round $round: published");
	ok_received(20, "round $round: deliveries under the next key");
}
my $result = $api->control('/load/stop', {});
is(join(', ', keys %{ $result->{statuses} }), '200', 'no delivery was refused');
is(scalar keys %{ $result->{keys} }, 4, 'under four keys');

$service->check_log;
done_testing();
