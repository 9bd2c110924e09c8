
# Bodies made up to break what reads them: whatever is signed is stored or goes
# to quarantine, and gets 200.  They go through receive(), which is the
# receiver's own way, and a part of them by HTTP.  The seed is shown when
# something fails; BODIES_SEED takes it, BODIES says how many.

use strict;
use warnings;

use BankedWebhooks;
use PostgreSQL::Test::Utils;
use Test::More;

my $seed = $ENV{BODIES_SEED} // time;
my $count = $ENV{BODIES} // 4000;
my $chunk = 500;
srand $seed;

my $service = BankedWebhooks->new(conf => "banked_webhooks.max_body_size = 1MB\n");
$service->register('/hook');
ok_until(sub { $service->post('/hook', event('first', 'payment_sent')) == 200 }, 'served');

my @seeds = map { slurp_file($_) } glob 'test/payloads/*.json';
push @seeds, v3_event('v3', 'mandate_active', state => 'active'), event('v2', 'payment_sent', amount => \'1e5', text => '\\u00e9\\n');
@seeds = grep { length } @seeds;
my @pieces = (
	'{', '}', '[', ']', '"', ':', ',', '\\', '\\u0000', '\\ud800', '\\u12', 'null', 'true', '-', '0', '1e9', '1e70000', '1E-99999', '.5', '-0',
	'"id":', '"id":null,', '"webhook_event":', '"webhook_event":1,', '"type":"x",', '"data":[],', '"data":{},', '"live":"yes",', '"mode":1,', '"amount":1e400,',
	"\0", "\xff", "\xc3\x28", "\xf0\x9f\x98\x80", "\xed\xa0\x80", "\xef\xbb\xbf", ' ', "\t", "\n", '[' x 600, '{"a":' x 600, '9' x 2000, 'x' x 600, '"' . 'y' x 600 . '"');

sub mutate
{
	my ($body) = @_;
	foreach (1 .. 1 + int rand 4)
	{
		my $at = int rand(1 + length $body);
		my $kind = int rand 6;
		if    ($kind == 0) { substr $body, $at, int rand 20, '' }
		elsif ($kind == 1) { substr $body, $at, 0, $pieces[ rand @pieces ] }
		elsif ($kind == 2) { substr $body, $at, 1, chr int rand 256 if $at < length $body }
		elsif ($kind == 3) { substr $body, $at, 0, substr $body, int rand(1 + length $body), int rand 200 }
		elsif ($kind == 4) { $body = substr $body, 0, $at }
		else               { substr $body, $at, int rand 10, $pieces[ rand @pieces ] }
	}
	return $body;
}

$service->sql('create table bodies (n int primary key, body bytea not null)');
my %sum;
my $bad = '';
for (my $done = 0; $done < $count; $done += $chunk)
{
	my $rows = join ',', map { "($_, '\\x" . unpack('H*', mutate($seeds[ rand @seeds ])) . "')" } 1 .. $chunk;
	my $result = $service->sql(<<"SQL");
truncate bodies;
insert into bodies values $rows;
select r.status, r.outcome, count(*), min(n)
from bodies, lateral banked.receive('/hook', banked.sign(body, '$KEY'), body) as r group by 1, 2;
SQL
	foreach my $line (split /\n/, $result)
	{
		my ($status, $outcome, $n, $example) = split /\|/, $line;
		$sum{$outcome} += $n;
		$bad .= "$line: " . $service->sql("select encode(body, 'escape') from bodies where n = $example") . "\n"
		  if $status != 200 || $outcome !~ /^(?:stored|repetition|changed|recurrence|quarantined)$/;
	}
}
is($bad, '', 'every signed body gets 200 and is kept') or diag "BODIES_SEED=$seed";
note join ', ', map { "$_: $sum{$_}" } sort keys %sum;
cmp_ok($sum{$_} // 0, '>', 0, "some were $_") foreach qw(stored quarantined changed);
is($service->sql(q(select count(*) from banked.quarantine where reason not in ('invalid_json', 'missing_identity', 'identity_too_long'))), 0, 'with these reasons');
is($service->sql(q(select count(*) from (select payload::text::jsonb, payload ->> 'id' from banked.history) as h)) > 0, 1, 'what was stored can be read');

# By HTTP, many in one batch.
{
	my ($receiver) = $service->pids('receiver');
	my @lists = map { [ map { request('/hook', mutate($seeds[ rand @seeds ])) } 1 .. 50 ] } 1 .. 10;
	is(tally(exchange_all($service->port, @lists)), '200: 500', 'by HTTP, too') or diag "BODIES_SEED=$seed";

	# And all again, in batches of which most is repetitions: what is stored is not parsed then.
	my $rows = q(select count(*), max(seq) from banked.history);
	my $before = $service->sql($rows);
	my @repetitions = map { [ (request('/hook', event('first', 'payment_sent'))) x 100 ] } 1 .. 20;
	is(tally(exchange_all($service->port, @repetitions, @lists)), '200: 2500', 'and again, among repetitions') or diag "BODIES_SEED=$seed";
	is($service->sql($rows), $before, 'which stores no event twice') or diag "BODIES_SEED=$seed";
	is(($service->pids('receiver'))[0], $receiver, 'the receiver is the same process');
}
$service->check_log;
done_testing();
