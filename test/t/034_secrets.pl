
# No key that was generated or read from a file, and no body, is in the server's
# log or in pg_stat_statements, however much is logged.

use strict;
use warnings;

use BankedWebhooks;
use PostgreSQL::Test::Utils;
use Test::More;

my $service = BankedWebhooks->new(conf => <<'CONF');
shared_preload_libraries = 'banked_webhooks, pg_stat_statements'
pg_stat_statements.track = all
pg_stat_statements.track_utility = on
log_statement = all
log_min_duration_statement = 0
log_duration = on
log_min_messages = debug5
log_min_error_statement = debug5
log_error_verbosity = verbose
log_parameter_max_length = -1
log_parameter_max_length_on_error = -1
log_lock_waits = on
deadlock_timeout = 10ms
banked_webhooks.store_lock_timeout = 60s
banked_webhooks.store_timeout = 100s
CONF
my $node = $service->node;
my $payee = 'Jacqueline-de-la-Payee';
my %keys;

# Runs a query of ours whose result is a key; the query itself is logged, the result must not be.
sub secret { my ($name, $query) = @_; return $keys{$name} = $service->sql($query) }

my $key_file = PostgreSQL::Test::Utils::tempdir . '/key';
$keys{file} = $OTHER_KEY;
append_to_file($key_file, "$OTHER_KEY\n");
$service->sql('create extension pg_stat_statements');

secret('registered', q(select signing_key from banked.register_endpoint('/hook')));
like($keys{registered}, qr/^[0-9a-f]{64}$/, 'a generated key');
$service->sql("select banked.register_endpoint('/file', signing_key_file => '$key_file')");

sub deliver
{
	my ($id, %options) = @_;
	return $service->post($options{path} // '/hook', event($id, 'payment_sent', payee => $payee, %{ $options{fields} // {} }), key => $options{key} // $keys{registered});
}

ok_until(sub { deliver('first') == 200 }, 'served');
ok_until(sub { deliver('first', path => '/file', key => $keys{file}) == 200 }, 'under the key of a file');
secret('rotated', q(select signing_key from banked.rotate_signing_key('/hook')));
ok_until(sub { deliver('rotated', key => $keys{rotated}) == 200 }, 'under a rotated key');
is(deliver('old', key => $keys{registered}), 200, 'and the old one');
is(deliver('first', fields => { reference => 'changed' }), 200, 'a revision');
is(deliver('forged', key => $KEY), 400, 'a forged one');
is($service->post('/hook', qq({"id":"$payee" broken), key => $keys{registered}), 200, 'broken JSON');

# What quotes the row: a trigger's message, a constraint, a unique index, a
# foreign key, a failing cast in an index, all of them in DETAIL or CONTEXT.
$service->sql(<<'SQL');
create table public.payees (payee text primary key);
grant insert, select on public.payees to banked_webhooks_worker;
create function public.see() returns trigger language plpgsql as $$
begin
	if new.event_id = 'raise' then
		raise exception 'row %', new using detail = new.payload::text, hint = convert_from(new.body, 'UTF8');
	elsif new.event_id = 'warn' then
		raise warning 'payee %', md5(new.payload ->> 'payee');
	elsif new.event_id = 'unique' then
		insert into public.payees values (new.payload ->> 'payee'), (new.payload ->> 'payee');
	elsif new.event_id = 'dynamic' then
		execute format('select %s', new.payload ->> 'payee');
	elsif new.event_id = 'cast' then
		perform (new.payload ->> 'payee')::int;
	end if;
	return new;
end $$;
create trigger see before insert on banked.events for each row execute function public.see();
alter table banked.events add constraint not_this check (event_id <> 'constraint');
SQL
is(deliver($_), 200, "a row that fails: $_") foreach qw(raise unique dynamic cast constraint);
is(deliver('warn'), 200, 'a trigger that warns');
is($service->sql(q(select count(*) from banked.quarantine where reason = 'trigger_error')), 5, 'are in quarantine');
$service->sql('update banked.quarantine set next_attempt_at = now()');
$node->reload;
ok_until(sub { $service->sql('select count(*) from banked.quarantine where attempts > 0') == 5 }, 'and tried again');
$service->sql('select banked.reprocess(quarantine_id) from banked.quarantine');

# A batch that waits for a lock: log_lock_waits names the statement.
{
	my $locker = $service->session;
	$locker->query_safe('begin');
	$locker->query_safe('lock table banked.events in access exclusive mode');
	my $mark = $service->log_mark;
	my $connection = $service->connect;
	$connection->send(request('/hook', event('locked', 'payment_sent', payee => $payee), key => $keys{rotated}));
	ok($service->wait_for_log(qr/still waiting for/, $mark), 'a wait for a lock is logged');
	$locker->query_safe('rollback');
	$locker->quit;
	is(($connection->receive // {})->{status}, 200, 'then it is stored');
}

my $key_id = $service->sql(q(select key_id from banked.signing_keys order by valid_from limit 1));
$service->sql("select banked.verify_event('first', 'payment_sent'), banked.event_proof('first', 'payment_sent')");
$service->sql("select banked.revoke_signing_key('$key_id')");
$service->sql("select banked.forget_signing_key('$key_id')");
$node->restart;
$service->wait_for_port;

my $log = $service->log_since;
my $statements = $service->sql('select string_agg(query, chr(10)) from pg_stat_statements');
like($log, qr/DEBUG:/, 'everything is logged');
like($log, qr/statement: .*register_endpoint/, 'statements too');
like($statements, qr/INSERT INTO banked\.key_secrets/i, 'pg_stat_statements has seen our statements');
foreach my $name (sort keys %keys)
{
	my $forms = join '|', $keys{$name}, unpack('H*', $keys{$name});
	unlike($log, qr/$forms/i, "the key that was $name is not in the log");
	unlike($statements, qr/$forms/i, 'nor in pg_stat_statements');
}
my $forms = join '|', $payee, unpack('H*', $payee);
unlike($statements, qr/$forms/i, 'no body in pg_stat_statements');
my @lines = grep { /$forms/i } split /\n/, $log;
is(scalar @lines, 0, 'no body in the log') or diag join "\n", map { substr $_, 0, 300 } @lines[ 0 .. ($#lines < 10 ? $#lines : 10) ];

done_testing();
