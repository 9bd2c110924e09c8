
# Certificates.pm
#	  A certificate authority of the tests' own, made by the openssl program.
#
# Each object has a directory: ca.pem is what clients trust; issue() makes a
# certificate for localhost and its key.

package BankedWebhooks::Certificates;

use strict;
use warnings;

use PostgreSQL::Test::Utils ();

# Makes an authority.
sub new
{
	my ($class, $name) = @_;
	my $self = bless { directory => PostgreSQL::Test::Utils::tempdir(), name => $name // 'authority' }, $class;

	$self->openssl(
		'req', '-x509', '-newkey', 'ec', '-pkeyopt', 'ec_paramgen_curve:P-256', '-nodes', '-days', 30,
		'-subj', "/CN=$self->{name}", '-addext', 'keyUsage=critical,keyCertSign',
		'-keyout', $self->path('ca.key'), '-out', $self->path('ca.pem'));
	return $self;
}

sub path
{
	my ($self, $file) = @_;
	return "$self->{directory}/$file";
}

sub ca { return $_[0]->path('ca.pem') }

# Makes a certificate for localhost and 127.0.0.1, or for the subject's names
# that are given, with this common name, and its key; kind is ec or rsa.
# Returns the paths of both.
sub issue
{
	my ($self, $name, $kind, $names) = @_;
	my ($certificate, $key) = map { $self->path("$name.$_") } qw(pem key);
	my @kind = ($kind // 'ec') eq 'rsa' ? ('rsa:2048') : ('ec', '-pkeyopt', 'ec_paramgen_curve:P-256');

	$self->openssl('req', '-new', '-newkey', @kind, '-nodes', '-subj', "/CN=$name", '-keyout', $key, '-out', $self->path('request'));
	open my $extensions, '>', $self->path('extensions') or die "could not write: $!";
	print $extensions 'subjectAltName=', $names // 'DNS:localhost,IP:127.0.0.1', "\n";
	close $extensions;
	$self->openssl(
		'x509', '-req', '-days', 30, '-in', $self->path('request'), '-extfile', $self->path('extensions'),
		'-CA', $self->ca, '-CAkey', $self->path('ca.key'), '-CAcreateserial', '-out', $certificate);
	chmod 0600, $key;
	return ($certificate, $key);
}

sub openssl
{
	my ($self, @arguments) = @_;
	my $output;

	IPC::Run::run([ 'openssl', @arguments ], '>&', \$output) or die "openssl @arguments: $output";
	return $output;
}

1;
