
# Endpoints and keys as the receiver sees them: at once, and never too old a state.

use strict;
use warnings;

use BankedWebhooks;
use Test::More;
use Time::HiRes qw(time);

my $service = BankedWebhooks->new;
my $session = $service->session;
my $number = 0;

sub next_event { return event('event-' . ++$number, 'payment_sent', @_) }

# A change is in force within 100 ms of its commit: no delivery that is sent
# later is judged by what was before.  The clock starts when the session that
# committed has its answer, and is read when a delivery is sent.  One slow round
# of five is put down to the machine.
sub seen_within_100_ms
{
	my ($name, @rounds) = @_;
	my @times;

	foreach my $round (@rounds)
	{
		my ($query, $path, $status) = @$round;
		$session->query_safe($query);
		my $start = time;
		my $connection = $service->connect;
		my $last_old = 0;
		my $seen = wait_until(
			sub {
				$connection = $service->connect unless $connection && !$connection->{ended};
				my $sent = time - $start;
				$connection->send(request($path, next_event()));
				my $response = $connection->receive or return;
				$connection = undef if $response->{status} != 200;
				return 1 if $response->{status} == $status;
				$last_old = $sent;
				return 0;
			});
		push @times, $seen ? $last_old : 1e9;
	}
	@times = sort { $a <=> $b } @times;
	pop @times if @times >= 5;
	my $good = ok($times[-1] < 0.1, "$name: seen within 100 ms");
	diag join ' ', map { sprintf '%.0f ms', $_ * 1000 } @times unless $good;
	return;
}

seen_within_100_ms('register_endpoint',
	map { [ "select banked.register_endpoint('/new-$_', signing_key => '$KEY')", "/new-$_", 200 ] } 1 .. 5);
seen_within_100_ms('disable_endpoint', map { [ "select banked.disable_endpoint('/new-$_')", "/new-$_", 404 ] } 1 .. 5);
seen_within_100_ms('enable_endpoint',  map { [ "select banked.enable_endpoint('/new-$_')",  "/new-$_", 200 ] } 1 .. 5);
seen_within_100_ms('retire_endpoint',  map { [ "select banked.retire_endpoint('/new-$_')",  "/new-$_", 410 ] } 1 .. 5);
like($service->sql_error("select banked.enable_endpoint('/new-1')"),   qr/55000/, 'a retired endpoint cannot be enabled');
like($service->sql_error("select banked.register_endpoint('/new-1')"), qr/42710/, 'nor its path be registered again');

# Only what is committed counts.
$session->query_safe('begin');
$session->query_safe("select banked.register_endpoint('/later', signing_key => '$KEY')");
is($service->post('/later', next_event()), 404, 'an endpoint of an open transaction is unknown');
$session->query_safe('rollback');
is($service->post('/later', next_event()), 404, 'and after its rollback too');
$session->query_safe('begin');
$session->query_safe("select banked.register_endpoint('/later', signing_key => '$KEY')");
$session->query_safe('savepoint a');
$session->query_safe("select banked.disable_endpoint('/later')");
$session->query_safe('rollback to savepoint a');
$session->query_safe('commit');
ok_until(sub { $service->post('/later', next_event()) == 200 }, 'after its commit it is served, without what was rolled back');

# No delivery that begins after a commit is judged by what was before.
{
	my $wrong = 0;
	foreach my $round (1 .. 20)
	{
		$session->query_safe("select banked.disable_endpoint('/later')");
		my $old = $service->post('/later', next_event());
		$wrong++ if $old == 200;
		$session->query_safe("select banked.enable_endpoint('/later')");
		ok_until(sub { $service->post('/later', next_event()) == 200 }, "enabled, round $round");
	}
	is($wrong, 0, 'a disabled endpoint never stores');
}

# Several endpoints, each with its own key.
$service->register('/one');
$service->register('/two', key => $OTHER_KEY);
ok_until(sub { $service->post('/two', next_event(), key => $OTHER_KEY) == 200 }, 'the second has its key');
is($service->post('/one', next_event()), 200, 'and the first another');
is($service->post('/one', next_event(), key => $OTHER_KEY), 400, 'the keys are not mixed up');
is($service->post('/two', next_event()), 400, 'in neither direction');

# Rotation: both keys for a while, then the new one alone.
my $new_key = 'new-key-' . 'x' x 40;
$service->sql("select banked.rotate_signing_key('/one', signing_key => '$new_key', overlap => '1 day')");
ok_until(sub { $service->post('/one', next_event(), key => $new_key) == 200 }, 'the new key is in force');
is($service->post('/one', next_event()), 200, 'and the old one still is');
is($service->sql(q(select count(distinct key_id) from banked.events join banked.endpoints using (endpoint_id) where path = '/one')),
	2, 'the events tell which key it was');
$service->sql(q(select banked.revoke_signing_key(key_id) from banked.signing_keys
	join banked.endpoints using (endpoint_id) where path = '/one' and valid_until is not null));
ok_until(sub { $service->post('/one', next_event()) == 400 }, 'a revoked key is refused');
is($service->post('/one', next_event(), key => $new_key), 200, 'and the other is not');

# Without a readable key there is no judgement: Banked shall try again.
$service->sql(q(delete from banked.key_secrets using banked.signing_keys join banked.endpoints using (endpoint_id)
	where key_secrets.key_id = signing_keys.key_id and path = '/two'));
ok_until(sub { $service->post('/two', next_event(), key => $OTHER_KEY) == 503 }, 'no readable key: 503');
{
	my $response = $service->exchange(request('/two', next_event(), key => $OTHER_KEY));
	ok($response->{headers}{'retry-after'}, 'with Retry-After');
}
$service->sql("select banked.rotate_signing_key('/two', signing_key => '$OTHER_KEY')");
ok_until(sub { $service->post('/two', next_event(), key => $OTHER_KEY) == 200 }, 'until one is set');

# What an endpoint wants.
$service->register('/filtered', events => q(array['payment_sent', 'mandate_*']));
ok_until(sub { $service->post('/filtered', event('wanted', 'payment_sent')) == 200 }, 'a wanted type');
is($service->post('/filtered', event('unwanted', 'payment_failed')), 200, 'an unwanted type is answered with 200');
is($service->post('/filtered', event('wanted', 'mandate_active')), 200, 'a pattern');
is($service->post('/filtered', v3_event('bare', 'active')), 200, 'the bare type of a v3 mandate');
is($service->sql(q(select string_agg(event_id || ' ' || event_type, ', ' order by seq) from banked.events
	join banked.endpoints using (endpoint_id) where path = '/filtered')),
	'wanted payment_sent, wanted mandate_active', 'what is wanted is stored')
  or diag 'a bare type counts as a mandate only in data_version 1';
is($service->post('/filtered', payload('constructed-v3-mandate_active')), 200, 'the bare type of a v3 mandate, data_version 1');
is($service->sql(q(select event_type from banked.events where api_version = 'v3')), 'active', 'is taken for mandate_active, and stored as sent');
ok($service->stat('deliveries', { outcome => 'unwanted' }) >= 1, 'unwanted ones are counted');

$service->register('/live', live => 'true');
ok_until(sub { $service->post('/live', event('live', 'payment_sent')) == 200 }, 'a live event at an endpoint for live ones');
is($service->post('/live', event('test', 'payment_sent', live => \'false')), 200, 'a test event: 200');
is($service->sql(q(select reason from banked.quarantine)), 'live_mismatch', 'and quarantine');
is($service->sql(q(select event_id from banked.events join banked.endpoints using (endpoint_id) where path = '/live')),
	'live', 'not in events');

# The window is the endpoint's own.
$service->register('/strict', timestamp_tolerance => q('5 minutes'));
ok_until(sub { $service->post('/strict', next_event()) == 200 }, 'signed now');
{
	my $body = next_event();
	is($service->post('/strict', $body, at => int(time) - 600), 400, 'ten minutes are too many for this endpoint');
	is($service->post('/later',  $body, at => int(time) - 600), 200, 'and not for the other');
}

# Odd rows, from before the table had constraints: the other endpoints are served as ever.
$service->sql(q(alter table banked.endpoints drop constraint endpoints_path_check, drop constraint endpoints_timestamp_tolerance_check;
	insert into banked.endpoints (path, timestamp_tolerance)
	values ('', '1 day'), ('/long' || repeat('x', 300), '1 day'), ('/ever', '300000 years')));
$service->allow('rows of banked.endpoints violate constraint');
$service->register('/after');
ok_until(sub { $service->post('/after', next_event()) == 200 }, 'an endpoint that is registered beside odd ones is served');
is($service->post('/strict', next_event()), 200, 'and one of before');
is($service->post('/long' . 'x' x 250, next_event()), 404, 'a path that is too long has not become another one');
like($service->sql_error("update banked.endpoints set timestamp_tolerance = '300000 years' where path = '/after'"), qr/23514/, 'no more odd ones can be made');
$service->sql(q(select banked.disable_endpoint('/ever')));
ok(1, 'an odd one can be disabled');
like($service->sql_error(q(select banked.enable_endpoint('/ever'))), qr/55000: endpoint "\/ever" has a path or timestamp_tolerance that cannot be used/, 'but not enabled again');
$service->sql(q(select banked.retire_endpoint('/ever')));
ok_until(sub { $service->post('/ever', next_event()) == 410 }, 'and retired');

$session->quit;
$service->check_log;
done_testing();
