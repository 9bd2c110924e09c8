/*
 * tls.c
 *	  The certificate that HTTPS is served with, and its key.
 */
#include "tls.h"

#include <stdlib.h>

struct TlsCertificate
{
	gnutls_certificate_credentials_t credentials;
	unsigned	holders;
};

TlsCertificate *
tls_certificate_create(const TlsFrame *frame, const char **problem)
{
	/* The library takes the text as not const, but only reads it. */
	gnutls_datum_t chain = {(unsigned char *) (uintptr_t) frame->certificate,
	(unsigned) frame->certificate_length};
	gnutls_datum_t key = {(unsigned char *) (uintptr_t) frame->key, (unsigned) frame->key_length};
	TlsCertificate *certificate = malloc(sizeof(TlsCertificate));
	int			result;

	if (certificate == NULL)
	{
		*problem = "out of memory";
		return NULL;
	}
	certificate->holders = 1;
	result = gnutls_certificate_allocate_credentials(&certificate->credentials);
	if (result == 0)
	{
		/* This refuses a key of another certificate, too. */
		result = gnutls_certificate_set_x509_key_mem2(certificate->credentials, &chain, &key,
													  GNUTLS_X509_FMT_PEM, NULL, 0);
		if (result >= 0)
			return certificate;
		gnutls_certificate_free_credentials(certificate->credentials);
	}
	free(certificate);
	*problem = gnutls_strerror(result);
	return NULL;
}

TlsCertificate *
tls_certificate_offer(TlsCertificate *certificate, gnutls_session_t session)
{
	if (gnutls_credentials_set(session, GNUTLS_CRD_CERTIFICATE, certificate->credentials) < 0)
		return NULL;
	certificate->holders++;
	return certificate;
}

void
tls_certificate_release(TlsCertificate *certificate)
{
	if (--certificate->holders > 0)
		return;
	gnutls_certificate_free_credentials(certificate->credentials);
	free(certificate);
}

int
tls_no_certificate(gnutls_session_t session, const struct gnutls_cert_retr_st *info,
				   gnutls_pcert_st **certificates, unsigned *count,
				   gnutls_ocsp_data_st **ocsp, unsigned *ocsp_count,
				   gnutls_privkey_t *key, unsigned *flags)
{
	(void) session;
	(void) info;
	(void) certificates;
	(void) count;
	(void) ocsp;
	(void) ocsp_count;
	(void) key;
	(void) flags;
	return -1;
}
