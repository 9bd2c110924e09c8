
# Processes.pm
#	  What the kernel says of processes: the time of the processor that they
#	  took, their memory, their open descriptors.

package BankedWebhooks::Processes;

use strict;
use warnings;

use Exporter 'import';
use PostgreSQL::Test::Utils qw(slurp_file);
use POSIX ();
use Time::HiRes qw(time);

our @EXPORT_OK = qw(processor_time share_of resident_size);

my $ticks_per_second = POSIX::sysconf(POSIX::_SC_CLK_TCK());

# Seconds of processor time that these processes have taken.
sub processor_time
{
	my (@pids) = @_;
	my $ticks = 0;

	foreach my $pid (@pids)
	{
		my @fields = split ' ', (slurp_file("/proc/$pid/stat") =~ /\) (.*)/s)[0];
		$ticks += $fields[11] + $fields[12];
	}
	return $ticks / $ticks_per_second;
}

# The share of one processor that they take while the code runs.
sub share_of
{
	my ($code, @pids) = @_;
	my ($before, $start) = (processor_time(@pids), time);

	$code->();
	return (processor_time(@pids) - $before) / (time - $start);
}

# Kilobytes.
sub resident_size
{
	my ($pid) = @_;
	return slurp_file("/proc/$pid/status") =~ /^VmRSS:\s*(\d+)/m ? $1 : 0;
}

1;
