
# Without shared_preload_libraries no worker runs: receive() and all that needs none work all the same.

use strict;
use warnings;

use BankedWebhooks;
use Test::More;

my $service = BankedWebhooks->new(extension => 0, conf => "shared_preload_libraries = ''\n");
my $body = event('pay-1', 'payment_sent');
my $bytes = 'decode(' . "'" . unpack('H*', $body) . "', 'hex')";

$service->allow('no webhooks are received until banked_webhooks is in shared_preload_libraries');
my $mark = $service->log_mark;
$service->sql('create extension banked_webhooks');
like($service->log_since($mark), qr/WARNING: .*shared_preload_libraries/, 'CREATE EXTENSION warns');
$service->register('/hook');
is($service->sql("select status, outcome from banked.receive('/hook', banked.sign($bytes, '$KEY'), $bytes)"), '200|stored', 'receive() stores');
is($service->sql("select status, outcome from banked.receive('/hook', banked.sign($bytes, '$KEY'), $bytes)"), '200|repetition', 'and knows what it has stored');
is($service->sql("select status, outcome from banked.receive('/hook', banked.sign($bytes, 'another key'), $bytes)"), '400|rejected', 'and what is forged');
is($service->sql(q(select banked.verify_event('pay-1', 'payment_sent'))), 't', 'verify_event');
is($service->sql('select count(*) from banked.events_since(0)'), 1, 'events_since');
is($service->sql(q(select signing_key is not null from banked.rotate_signing_key('/hook'))), 't', 'rotate_signing_key');
$service->sql('select banked.pause(); select banked.resume()');

# What needs a receiver says so.
like($service->sql_error('select * from banked.stats()'), qr/55000: .*shared_preload_libraries/s, 'stats');
like($service->sql_error(q(select * from banked.send_test_event('/hook', 'payment_sent'))), qr/55000: /, 'send_test_event to the receiver');
like($service->sql_error(q(select * from banked.send_test_event('/hook', 'payment_sent', base_url => 'https://127.0.0.1:1'))), qr/WH001: /,
	'send_test_event to another address gets as far as the network');

$service->check_log;
done_testing();
