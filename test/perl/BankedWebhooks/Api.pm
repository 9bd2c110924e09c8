# Api.pm
#	  Banked's management API for tests: test/api/banked_api.py, with certificates of an own CA.

package BankedWebhooks::Api;

use strict;
use warnings;

use File::Basename qw(dirname);
use HTTP::Tiny;
use IPC::Open2;
use JSON::PP;

use BankedWebhooks::Certificates;

our $API_KEY = 'api-key-of-tests';
our $SECRET_KEY = 'secret-key-of-tests';

# Starts it.  Options, of its certificate: names that it is for, as of a subjectAltName; common_name.
sub new
{
	my ($class, %options) = @_;
	my $self = bless { authority => BankedWebhooks::Certificates->new('authority of the API') }, $class;
	my ($certificate, $key) = $self->{authority}->issue($options{common_name} // 'API', 'ec', $options{names});

	$self->{pid} = open2(
		$self->{out}, $self->{in}, '/usr/bin/python3', dirname(__FILE__) . '/../../api/banked_api.py',
		'--cert', $certificate, '--key', $key,
		'--api-key', $API_KEY, '--secret-key', $SECRET_KEY);
	readline($self->{out}) =~ /^HTTPS (\d+) CONTROL (\d+)$/ or die "the API does not start\n";
	@$self{qw(port control)} = ($1, $2);
	return $self;
}

sub DESTROY
{
	my ($self) = @_;
	local $?;
	if ($self->{pid})
	{
		close $self->{in};
		waitpid $self->{pid}, 0;
	}
	return;
}

sub url { return "https://127.0.0.1:$_[0]{port}" }
sub ca { return $_[0]{authority}->ca }

# Talks to its control port; content, where there is any, is posted.
sub control
{
	my ($self, $path, $content) = @_;
	my $url = "http://127.0.0.1:$self->{control}$path";
	my $http = HTTP::Tiny->new(timeout => 30);
	my $answer =
	  defined $content
	  ? $http->post($url, { content => JSON::PP->new->allow_nonref->encode($content) })
	  : $http->get($url);

	die "control of the API: $answer->{status} $answer->{content}\n" unless $answer->{success};
	return JSON::PP->new->allow_nonref->decode($answer->{content});
}

# What the next requests meet.
sub next_requests { my ($self, @what) = @_; return $self->control('/next', \@what) }

# What came in since the last next_requests, as "METHOD path".
sub requests { return map { "$_->{method} $_->{path}" } @{ $_[0]->control('/requests') } }

sub webhooks { return @{ $_[0]->control('/webhooks') } }

1;
