/*
 * tls.h
 *	  The certificate that HTTPS is served with, and its key.
 *
 * Both come from the receiver, as PEM text; no file is opened here.  The HTTP
 * library does the rest of TLS, but it knows one certificate for the life of
 * a daemon.  So it gets none: each connection is given the present one when
 * it is opened, and holds on to it until it is closed.  A new certificate
 * serves the next connection and disturbs none that is open.
 */
#ifndef BW_GATEWAY_TLS_H
#define BW_GATEWAY_TLS_H

#include <gnutls/abstract.h>
#include <gnutls/gnutls.h>

#include "../frame.h"

/* TLS 1.2 and 1.3, with forward secrecy in either. */
#define TLS_PRIORITIES "NORMAL:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2:-RSA:-DHE-RSA"

typedef struct TlsCertificate TlsCertificate;

/* Makes one, held once; null, with the reason in *problem, when it cannot be used. */
extern TlsCertificate *tls_certificate_create(const TlsFrame *frame, const char **problem);

/* Lets a new session offer it to its client; returns what is to be released at the session's end. */
extern TlsCertificate *tls_certificate_offer(TlsCertificate *certificate, gnutls_session_t session);

/* Lets go of it; the last one frees it. */
extern void tls_certificate_release(TlsCertificate *certificate);

/* For the library, which asks this for a session that was offered none: there is none. */
extern int	tls_no_certificate(gnutls_session_t session, const struct gnutls_cert_retr_st *info,
							   gnutls_pcert_st **certificates, unsigned *count,
							   gnutls_ocsp_data_st **ocsp, unsigned *ocsp_count,
							   gnutls_privkey_t *key, unsigned *flags);

#endif							/* BW_GATEWAY_TLS_H */
