
# A short run of the soak test (make soak): load, faults, and what must hold after them.

use strict;
use warnings;

use BankedWebhooks;
use BankedWebhooks::Soak;
use Test::More;
use Time::HiRes qw(time);

my $soak = BankedWebhooks::Soak->new(clients => 2, connections => 8, say => sub { note $_[0] });
my $start = time;
my $limit = 25;

# The most telling ones first: a slow machine gets to some, and not to the last.
my $at_least = 4;
my @faults = qw(sync_cancel postmaster_kill receiver_cancel gateway_stop drop_extension subreaper
  receiver_kill lock stop_fast receiver_terminate launcher_terminate stop_immediate);

my $service = $soak->begin_service;
foreach my $fault (@faults)
{
	last if $soak->{cycles} >= $at_least && time - $start > $limit;
	my $first = @{ $soak->{violations} };
	ok($soak->cycle($fault), $fault) or diag join "\n", @{ $soak->{violations} }[ $first .. $#{ $soak->{violations} } ];
}
cmp_ok($soak->{acknowledged}, '>', 100 * $soak->{cycles}, 'there was load');
note $soak->summary;
done_testing();
