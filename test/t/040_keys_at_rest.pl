
# Keys at rest: what the tables and a dump hold, a wrong, missing or damaged
# master key, its rotation, and that no secret ever reaches the log.

use strict;
use warnings;

use POSIX ();

use BankedWebhooks;
use PostgreSQL::Test::Cluster;
use PostgreSQL::Test::Utils;
use Test::More;

# Everything that can be logged is; what the tests pass in themselves is looked for elsewhere.
my $service = BankedWebhooks->new(
	databases => 'postgres, restored',
	conf      => "shared_preload_libraries = 'banked_webhooks, auto_explain'\nauto_explain.log_min_duration = 0\n"
	  . "auto_explain.log_nested_statements = on\nauto_explain.log_verbose = on\nlog_min_messages = debug5\nlog_error_verbosity = verbose\nlog_duration = on\n"
	  . "log_parameter_max_length = -1\nlog_parameter_max_length_on_error = -1\n"
	  . "debug_print_parse = on\ndebug_print_rewritten = on\ndebug_print_plan = on\nlog_statement = all\nlog_min_error_statement = debug5");
my $node = $service->node;
my $master = slurp_file($node->data_dir . '/master.key');
my @secrets = ($master, pack 'H*', $master);
my $number = 0;

sub next_event { return event('event-' . ++$number, 'payment_sent') }

sub deliver
{
	my ($path, $key) = @_;
	return $service->post($path, next_event(), key => $key);
}

sub set_master_key_file
{
	my ($name) = @_;
	$service->sql("alter system set banked_webhooks.master_key_file = '$name'");
	$service->sql('select pg_reload_conf()');
	return;
}

# ---------------------------------------------------------------------------
# What is stored
# ---------------------------------------------------------------------------

my ($generated, $rotated, $from_file) = (undef, undef, 'key-from-a-file-' . 'q' x 40);
my $key_file = $service->write_private_file('signing.key', "$from_file\n");

$generated = $service->sql(q(select signing_key from banked.register_endpoint('/hook')));
like($generated, qr/^[0-9a-f]{64}$/, 'a generated key is returned');
$service->sql("select from banked.register_endpoint('/file', signing_key_file => '$key_file')");
push @secrets, $generated, $from_file;
{
	# A file that cannot be read as a key: nothing of it is shown.
	my $hidden = 'hidden-part-of-a-key';
	my $file = $service->write_private_file('latin1.key', "abc\xe9\xff$hidden\n");
	my $quoted = qr/0xe9|\xe9|$hidden/;

	push @secrets, $hidden;
	like($service->sql_error("select banked.rotate_signing_key('/hook', signing_key_file => '$file')"), qr/22023: file ".*" does not hold a key/, 'no UTF-8');
	unlike($service->log_since, $quoted, 'is not quoted');
	like($service->sql_error("select banked.rotate_signing_key('/hook', signing_key_file => '${\ $service->write_private_file('null.key', qq(a key\0with a null))}')"),
		qr/22023: file ".*" does not hold a key/, 'a null byte');
	like($service->sql_error("select banked.rotate_signing_key('/hook', signing_key_file => '${\ $service->write_private_file('short.key', 'short')}')"),
		qr/22023: invalid signing key\nDETAIL:  It is shorter than 8 bytes/, 'too short for a signing key');
	$service->sql("select banked.set_api_credentials('short', 'some-api-key', secret_key_file => '${\ $service->write_private_file('short.key', 'short')}')");
	$service->sql(q(select banked.drop_api_credentials('short')));
	like($service->sql_error("select banked.set_api_credentials('x', 'some-api-key', secret_key_file => '${\ $service->write_private_file('lines.key', qq(one\ntwo))}')"),
		qr/22023: invalid secret_key\nDETAIL:  It contains a space, a control character/, 'two lines');
	$service->write_private_file('pipe.key', '');
	unlink $node->data_dir . '/pipe.key';
	POSIX::mkfifo($node->data_dir . '/pipe.key', 0600) or die "mkfifo: $!";
	like($service->sql_error("select banked.rotate_signing_key('/hook', signing_key_file => '$_')"), qr/42809: ".*" is not a regular file/, "$_: no regular file")
	  foreach 'pipe.key', 'base', '/dev/zero';
}
ok_until(sub { deliver('/hook', $generated) == 200 }, 'the receiver has it');
ok_until(sub { deliver('/file', $from_file) == 200 }, 'and the one of the file');

is($service->sql('select count(*), count(*) filter (where get_byte(secret, 0) = 1) from banked.key_secrets'), '2|2', 'both are encrypted');
unlike($service->sql('select secret from banked.key_secrets'), qr/${\ unpack 'H*', $from_file}/, 'and not there in clear');
is($service->sql('select count(distinct substr(secret, 2, 8)), count(distinct substr(secret, 10, 12)) from banked.key_secrets'), '1|2',
	'one master key, a nonce for each');
is($service->sql(q(select bool_and(banked.verify_event(event_id, event_type)) from banked.events)), 't', 'verify_event opens them');

$service->sql("select banked.set_api_credentials(api_key => 'some-api-key', secret_key_file => '$key_file')");
is($service->sql('select get_byte(secret, 0) from banked.api_credentials'), 1, 'API credentials are encrypted');

# Rotation: both keys; counted per key.
$rotated = $service->sql(q(select signing_key from banked.rotate_signing_key('/hook')));
push @secrets, $rotated;
ok_until(sub { deliver('/hook', $rotated) == 200 }, 'rotated');
is(deliver('/hook', $generated), 200, 'the old key is still good');
ok_until(
	sub {
		$service->sql(q(select count(*) from banked.signing_key_use join banked.signing_keys using (key_id)
			join banked.endpoints using (endpoint_id)
			where path = '/hook' and deliveries > 0 and last_used > now() - interval '1 minute')) == 2;
	},
	'deliveries are counted for each key');
ok_until(
	sub {
		$service->sql(q(select bool_and(difference = 0) from (select u.deliveries - count(*) as difference
			from banked.signing_key_use u join banked.events e using (key_id) group by key_id, u.deliveries) as d)) eq 't';
	},
	'and all of them');

# ---------------------------------------------------------------------------
# A dump and its restore
# ---------------------------------------------------------------------------

my $dump = PostgreSQL::Test::Utils::tempdir . '/dump.sql';
my $other_port = PostgreSQL::Test::Cluster::get_free_port();
$service->allow('banked_webhooks starts paused');
$node->command_ok([ 'pg_dump', '-f', $dump, $node->connstr('postgres') ], 'pg_dump');
{
	my $text = slurp_file($dump);
	unlike($text, qr/$_|${\ unpack 'H*', $_}/, 'the dump holds no key') foreach $generated, $rotated, $from_file;
}
$service->sql('create database restored');
$service->sql("alter database restored set banked_webhooks.port = $other_port");
$node->command_ok([ 'psql', '-X', '-q', '-v', 'ON_ERROR_STOP=1', '-f', $dump, '-d', $node->connstr('restored') ], 'restored');
is($service->sql('select count(*) from banked.key_secrets', 'restored'), 3, 'with its keys');
is($service->sql('select count(*) from banked.api_credentials', 'restored'), 1, 'and credentials');
$service->sql('select banked.resume()', 'restored');
ok_until(sub { can_connect($other_port) && $service->post_to($other_port, '/hook', next_event(), key => $rotated) == 200 },
	'under the same master key it goes on at once');
is($service->sql(q(select bool_and(banked.verify_event(event_id, event_type)) from banked.events), 'restored'), 't', 'and verifies what was there');
$service->sql('drop database restored with (force)');

# ---------------------------------------------------------------------------
# A master key that is another one, unusable or missing
# ---------------------------------------------------------------------------

my $blobs = $service->sql('select key_id, secret from banked.key_secrets order by 1');
my $new_master = 'f' x 63 . 'e';
push @secrets, $new_master;

sub check_refusal
{
	my ($file, $line, $sqlstate, $message) = @_;
	my $mark = $service->log_mark;

	set_master_key_file($file);
	# Receivers go on with the keys that they have opened, until they must read them anew.
	is(deliver('/hook', $rotated), 200, "$line: deliveries go on");
	$service->sql(q(update banked.endpoints set description = 'read anew'));
	ok_until(sub { deliver('/hook', $rotated) == 503 }, "$line: 503 once keys are read anew");
	like($service->log_since($mark), qr/$message/, "$line: the log says why");
	like($service->sql_error(q(select banked.verify_event('event-1', 'payment_sent'))), qr/$sqlstate: .*$message/, "$line: functions say why");
	like($service->sql_error(q(select banked.api_list_webhooks())), qr/$sqlstate: /, "$line: so does the API");
	is($service->sql('select key_id, secret from banked.key_secrets order by 1'), $blobs, "$line: nothing is overwritten");
	return;
}

sub check_recovery
{
	my ($line) = @_;
	set_master_key_file('master.key');
	ok_until(sub { deliver('/hook', $rotated) == 200 }, "$line: served again once it is right");
	return;
}

$service->allow('master key file');
$service->write_private_file('new.key', "$new_master\n");
check_refusal('new.key', 'another one', '55000', 'is encrypted under another master key');
check_recovery('another one');
check_refusal('', 'none', '55000', 'banked_webhooks.master_key_file gives no master key');
check_recovery('none');
check_refusal('missing.key', 'no file', '58P01', 'could not open master key file "missing.key"');
check_recovery('no file');
$service->write_private_file('short.key', 'too short');
check_refusal('short.key', 'too short', 'F0000', 'does not hold a master key');
like($service->sql_error(q(select banked.register_endpoint('/unusable'))), qr/F0000: .*does not hold a master key/, 'no new key is stored then');
check_recovery('too short');
chmod 0644, $service->write_private_file('open.key', $master);
check_refusal('open.key', 'readable by others', 'F0000', 'has group or world access');
check_recovery('readable by others');
# It opens, looks private, and has nothing to read at its beginning.
check_refusal('/proc/self/mem', 'unreadable', '58030', 'could not read master key file "/proc/self/mem": Input/output error');
check_recovery('unreadable');
$service->write_private_file('raw.key', pack 'H*', $master);
set_master_key_file('raw.key');
is($service->sql(q(select banked.verify_event('event-1', 'payment_sent'))), 't', 'the same as 32 bytes');
set_master_key_file('master.key');

# ---------------------------------------------------------------------------
# Damage
# ---------------------------------------------------------------------------

my $broken = qr/XX001: .*is damaged, or belongs to another row/;
$service->allow('is damaged, or belongs to another row');
foreach my $case (
	[ 'swapped', q(update banked.key_secrets k set secret = o.secret from banked.key_secrets o where k.key_id <> o.key_id) ],
	[ 'changed', q(update banked.key_secrets set secret = set_byte(secret, 40, 255 - get_byte(secret, 40))) ],
	[ 'with another nonce', q(update banked.key_secrets set secret = set_byte(secret, 10, 255 - get_byte(secret, 10))) ],
	[ 'cut off', q(update banked.key_secrets set secret = substr(secret, 1, length(secret) - 1)) ],
	[ 'almost empty', q(update banked.key_secrets set secret = '\x01') ],
	[ 'of an unknown kind', q(update banked.key_secrets set secret = '\x02' || substr(secret, 2)) ])
{
	my ($name, $statement) = @$case;
	my $error = $service->sql_error("begin; $statement; select banked.verify_event('event-1', 'payment_sent');");
	like($error, $broken, "$name: a clear error");
	like($service->sql_error("begin; $statement; select banked.rotate_master_key();"), $broken, "$name: not re-encrypted either");
}
like($service->sql_error(q(update banked.key_secrets set secret = '')), qr/23514: /, 'one that is empty would keep pg_dump from dumping any');
$service->sql(q(create table saved as select * from banked.key_secrets));
$service->sql(q(update banked.key_secrets set secret = set_byte(secret, 40, 255 - get_byte(secret, 40))));
ok_until(sub { deliver('/hook', $rotated) == 503 }, 'damaged: 503');
$service->sql(q(update banked.key_secrets k set secret = s.secret from saved s where s.key_id = k.key_id; drop table saved));
ok_until(sub { deliver('/hook', $rotated) == 200 }, 'repaired: 200');

# ---------------------------------------------------------------------------
# What was sealed long ago
# ---------------------------------------------------------------------------

# Under this master key, for a key of this id and credentials of this name.
{
	my ($key_id, $old_key, $old_credentials) = ('0f8fad5b-d9cb-469f-a165-70867728950e', 'a-signing-key-sealed-long-ago', 'an-api-key:a-secret-key');
	my $sealed_key = '\x01c9c14bdbc1009e473327b8984238ff2ed71f12fa2f39fa4aadbb98f61cbeadc53ef5bcfd971b4205351e4bf366cb57c7b54863b9f1f3324d75bc8d422e38409d0e';
	my $sealed_credentials = '\x01c9c14bdbc1009e47bad1f807cd87de92aeae1718a56782dde6f2d7ba40216845ee23cd5f3085afee33669bee0ed6e6f2d16fec6e60cc5419ddf8d3';

	push @secrets, $old_key, split /:/, $old_credentials;
	$service->allow('https://127\.0\.0\.1');
	is($service->sql("select banked._key_context('$key_id'), banked._credentials_context('old')"), "key_secrets $key_id|api_credentials old", 'contexts stay what they are');
	$service->sql(qq(
		insert into banked.signing_keys (key_id, endpoint_id) select '$key_id', endpoint_id from banked.endpoints where path = '/hook';
		insert into banked.key_secrets values ('$key_id', '$sealed_key');
		insert into banked.api_credentials (name, auth, base_url, secret) values ('old', 'basic', 'https://127.0.0.1:1', '$sealed_credentials')));
	ok_until(sub { deliver('/hook', $old_key) == 200 }, 'the receiver opens a key');
	is($service->sql("select bool_and(banked.verify_event(event_id, event_type)) from banked.events where key_id = '$key_id'"), 't', 'so does verify_event');
	like($service->sql_error("select banked._api_call('old', 'POST', 'webhooks', '{}', '$key_id', null)"), qr/WH001/, 'so does the API, and credentials: the call gets as far as the network');
	$service->sql("delete from banked.key_secrets where key_id = '$key_id'; delete from banked.api_credentials where name = 'old'; delete from banked.signing_keys where key_id = '$key_id'");
}

# ---------------------------------------------------------------------------
# Rotation of the master key
# ---------------------------------------------------------------------------

is($service->sql('select banked.rotate_master_key()'), 0, 'nothing to re-encrypt');
{
	my $mark = $service->log_mark;
	my $message = 'signing keys are encrypted under another master key than that in "new.key"';
	$service->allow($message);
	set_master_key_file('new.key');
	ok($service->wait_for_log(qr/$message/, $mark), 'a reload with another master key: the log says that keys are to be re-encrypted');
}
like($service->sql_error('select banked.rotate_master_key()'), qr/55000: .*is encrypted under another master key/, 'without the old key: refused');
is($service->sql('select key_id, secret from banked.key_secrets order by 1'), $blobs, 'and nothing is changed');
is($service->sql("select banked.rotate_master_key('master.key')"), 4, 'with it: all secrets');
ok_until(sub { deliver('/hook', $rotated) == 200 }, 'deliveries go on');
is(deliver('/file', $from_file), 200, 'for every endpoint');
is($service->sql(q(select banked.verify_event('event-1', 'payment_sent'))), 't', 'what was stored before verifies');
is($service->sql("select banked.rotate_master_key('master.key')"), 0, 'again: nothing left to do');
like($service->sql_error("select banked.rotate_master_key('new.key')"), qr/55000: .*the old master key is the one in force/, 'the new one for the old one: refused');

# A file that went, while all keys are open.
{
	my $mark = $service->log_mark;
	my $message = 'could not open master key file "gone.key"';
	$service->allow($message);
	set_master_key_file('gone.key');
	ok($service->wait_for_log(qr/$message/, $mark), 'a setting that the next receiver could not use is reported at once');
	is(deliver('/hook', $rotated), 200, 'this one goes on');
	$mark = $service->log_mark;
	set_master_key_file('new.key');
	$service->wait_for_log(qr/received SIGHUP/, $mark);
	$service->sql('select pg_sleep(0.2)');
	unlike($service->log_since($mark), qr/signing keys are encrypted/, 'with the right one there is nothing to say');
}

# No way back by accident.
$service->allow('signing keys are encrypted, and banked_webhooks.master_key_file is not set');
set_master_key_file('');
my $refusal = qr/55000: banked_webhooks.master_key_file is not set, and other secrets are encrypted/;
like($service->sql_error(q(select banked.register_endpoint('/clear'))), $refusal, 'where secrets are encrypted none is stored as it is');
like($service->sql_error(q(select banked.rotate_signing_key('/hook'))), $refusal, 'no other key of an endpoint');
like($service->sql_error(q(select banked.set_api_credentials('clear', 'a', 'b'))), $refusal, 'nor credentials');

# From clear to encrypted.
$service->sql(q(create table saved_keys as select * from banked.key_secrets; create table saved_credentials as select * from banked.api_credentials));
$service->sql('delete from banked.key_secrets; delete from banked.api_credentials');
$service->allow('signing keys are stored as they are');
my $clear = $service->sql(q(select signing_key from banked.register_endpoint('/clear')));
push @secrets, $clear;
like($service->log_since, qr/WARNING:  01000: signing keys are stored as they are/, 'a WARNING for the first clear key');
my $mark = $service->log_mark;
push @secrets, $service->sql(q(select signing_key from banked.register_endpoint('/clear2')));
unlike($service->log_since($mark), qr/stored as they are/, 'and for no other');
is($service->sql('select count(*) from banked.key_secrets where get_byte(secret, 0) = 0'), 2, 'they are stored as they are');
push @secrets, $service->sql(q(select signing_key from banked.rotate_signing_key('/clear2', overlap => '0')));
ok_until(sub { $service->sql(q(select outcome from banked.send_test_event('/clear2', 'payment_sent'))) eq 'stored' }, 'and used');
is($service->sql(q(select bool_and(banked.verify_event(event_id, event_type)) from banked.events where test)), 't', 'to verify too');
$service->sql("select from banked.rotate_signing_key('/clear2', signing_key_file => '$key_file')");
$service->sql("select banked.set_api_credentials('clear', 'some-api-key', secret_key_file => '$key_file')");
$node->command_ok([ 'pg_dump', '-f', $dump, $node->connstr('postgres') ], 'pg_dump');
unlike(slurp_file($dump), qr/${\ unpack 'H*', $clear}/, 'clear ones are not dumped');
like($service->sql_error('select banked.rotate_master_key()'), qr/55000: banked_webhooks.master_key_file is not set/, 'nothing to encrypt with');
set_master_key_file('new.key');
$service->sql(q(insert into banked.key_secrets table saved_keys; insert into banked.api_credentials table saved_credentials));
is($service->sql('select banked.rotate_master_key()'), 5, 'encrypted later');
ok_until(sub { deliver('/clear', $clear) == 200 }, 'and in use');
is($service->sql('select count(*) from banked.key_secrets where get_byte(secret, 0) = 0'), 0, 'none is clear any more');

# ---------------------------------------------------------------------------
# No secret in the log, nor in what other sessions can see
# ---------------------------------------------------------------------------

my $log = $service->log_since;
cmp_ok(length $log, '>', 1_000_000, 'the log is verbose');
foreach my $i (0 .. $#secrets)
{
	my $shown = $log =~ forms_of($secrets[$i]);

	ok(!$shown, "secret $i, generated or read from a file, is not in it") or diag substr $log, $-[0] - 500, 700;
}
is($service->sql(q(select count(*) from banked.audit_log where detail::text ~ ') . join('|', grep { /^[\w-]+$/ } @secrets) . q(')), 0, 'nor in audit_log');

$service->check_log;
done_testing();
