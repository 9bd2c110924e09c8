
# Processes.pm
#	  What the kernel says of processes: the time of the processor that they
#	  took, and their memory.

package BankedWebhooks::Processes;

use strict;
use warnings;

use Exporter 'import';
use PostgreSQL::Test::Utils qw(slurp_file);
use POSIX ();
use Time::HiRes qw(time usleep);

our @EXPORT_OK = qw(idle processor_time resident_size share_of);

my $ticks_per_second = POSIX::sysconf(POSIX::_SC_CLK_TCK());

# Seconds of processor time that these processes have taken: to the microsecond
# where the kernel keeps such figures, else to the tick of its clock.
sub processor_time
{
	my (@pids) = @_;
	my $seconds = 0;

	foreach my $pid (@pids)
	{
		if (open my $handle, '<', "/proc/$pid/schedstat")
		{
			$seconds += (split ' ', <$handle>)[0] / 1e9;
			next;
		}
		my @fields = split ' ', (slurp_file("/proc/$pid/stat") =~ /\) (.*)/s)[0];
		$seconds += ($fields[11] + $fields[12]) / $ticks_per_second;
	}
	return $seconds;
}

# The share of one processor that they take while the code runs.
sub share_of
{
	my ($code, @pids) = @_;
	my ($before, $start) = (processor_time(@pids), time);

	$code->();
	return (processor_time(@pids) - $before) / (time - $start);
}

# Are they idle, soon?  Looks at several short stretches of time, one of which
# must pass without a twentieth of it being used.
sub idle
{
	my (@pids) = @_;

	foreach (1 .. 40)
	{
		return 1 if share_of(sub { usleep 30_000 }, @pids) < 0.05;
	}
	return 0;
}

# Kilobytes.
sub resident_size
{
	my ($pid) = @_;
	return slurp_file("/proc/$pid/status") =~ /^VmRSS:\s*(\d+)/m ? $1 : 0;
}

1;
