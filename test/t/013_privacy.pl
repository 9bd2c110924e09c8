
# No key and no body where they do not belong, whatever else is switched on.

use strict;
use warnings;

use BankedWebhooks;
use PostgreSQL::Test::Utils;
use Test::More;

my $service = BankedWebhooks->new(conf => <<'CONF');
shared_preload_libraries = 'banked_webhooks, pg_stat_statements'
pg_stat_statements.track = all
track_activity_query_size = 32kB
log_min_duration_statement = 0
log_min_error_statement = error
log_parameter_max_length_on_error = -1
log_error_verbosity = verbose
log_min_messages = debug1
CONF
my $secret_text = 'Jacqueline-de-la-Payee';

$service->sql('create extension pg_stat_statements');

# The key comes from where statements do not show it.
my $key_file = PostgreSQL::Test::Utils::tempdir . '/key';
append_to_file($key_file, "$KEY\n");
$service->sql("select banked.register_endpoint('/hook', signing_key_file => '$key_file')");
$service->sql(<<'SQL');
create function public.fail() returns trigger language plpgsql as $$
begin
	if new.event_id like 'raise%' then
		raise exception 'no: %', new.payload using detail = new.body::text, hint = convert_from(new.body, 'UTF8');
	end if;
	return new;
end $$;
create trigger fail before insert on banked.events for each row execute function public.fail();
alter table banked.events add constraint not_this check (event_id <> 'constraint');
SQL

sub deliver { my ($id, %options) = @_; return $service->post('/hook', event($id, 'payment_sent', payee => $secret_text), %options) }

ok_until(sub { deliver('first') == 200 }, 'served');
is(deliver('raise'), 200, 'a trigger that raises with the body in its message');
is(deliver('constraint'), 200, 'a constraint that fails: the server would show the row');
is($service->post('/hook', qq({"id":"broken $secret_text")), 200, 'broken JSON');
is($service->post('/hook', qq({"id":"a\\u0000$secret_text","webhook_event":"payment_sent"})), 200, 'a null character');
is($service->post('/hook', qq({"payee":"$secret_text"})), 200, 'no identity');
is(deliver('forged', key => $OTHER_KEY), 400, 'a wrong signature');
is(deliver('first'), 200, 'a repetition');
is($service->sql(q(select string_agg(reason || ' ' || coalesce(sqlstate, '-'), ', ' order by quarantine_id) from banked.quarantine)),
	'trigger_error P0001, trigger_error 23514, invalid_json 22P02, invalid_json 22P05, missing_identity -', 'what the quarantine knows')
  or diag $service->sql('select reason, sqlstate, message from banked.quarantine');
$service->sql('update banked.quarantine set next_attempt_at = now()');
$service->node->reload;
ok_until(sub { $service->sql('select count(*) from banked.quarantine where attempts > 0') == 2 }, 'automatic attempts');
$service->sql("select banked.reprocess(quarantine_id) from banked.quarantine");

my $log = $service->log_since;
unlike($log, qr/$secret_text/, 'no body in the log');
unlike($log, qr/$KEY|\Q${\ unpack('H*', $KEY)}\E/, 'no key in the log');
is($service->sql("select count(*) from pg_stat_activity where query like '%$secret_text%' and pid <> pg_backend_pid()"), 0, 'no body in pg_stat_activity');
is($service->sql("select count(*) from pg_stat_statements where query like '%' || '$secret_text' || '%' or query like '%' || '$KEY' || '%'"), 0,
	'neither in pg_stat_statements');
is($service->sql(q(select count(*) from banked.audit_log where detail::text like '%' || ) . "'$KEY'" . q( || '%')), 0, 'no key in the audit log');
is($service->sql("select count(*) from banked.rejections where rejections::text like '%$secret_text%'"), 0, 'no body among the rejections');

# Who may read what.
$service->sql('create role somebody login; create role analyst login in role banked_webhooks_reader');
foreach my $table (qw(key_secrets quarantine events endpoints audit_log))
{
	like($service->sql_error("set role somebody; select * from banked.$table"), qr/42501/, "nobody in particular reads $table");
}
is($service->sql("set role analyst; select count(*) from banked.history"), 1, 'a reader reads the history');
like($service->sql_error('set role analyst; select * from banked.key_secrets'), qr/42501/, 'and no keys');
like($service->sql_error('set role banked_webhooks_worker; select * from banked.key_secrets'), qr/42501/, 'nor does the worker role');
my ($status, $stdout, $stderr) = $service->node->psql('postgres', 'select 1', extra_params => [ '-U', 'banked_webhooks_worker' ]);
like($stderr, qr/too many connections for role/, 'nobody can log in as it');

done_testing();
