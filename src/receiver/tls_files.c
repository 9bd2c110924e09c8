/*
 * tls_files.c
 *	  The certificate and the private key of HTTPS, as files.
 *
 * The receiver reads and checks them, and sends their text to the gateway,
 * which can open no file.  A pair is used only as a whole, and only when both
 * can be read, have the form that they should, and belong together.  One that
 * does not leaves the pair before it in use; it is kept here, too, for a
 * gateway that must be started again meanwhile.
 *
 * The key is in the memory of this process alone (as signing keys are),
 * never in a message, and overwritten where it is no longer needed.
 */
#include "postgres.h"

#include <fcntl.h>
#include <sys/stat.h>
#include <unistd.h>

#include <openssl/crypto.h>
#include <openssl/err.h>
#include <openssl/evp.h>
#include <openssl/pem.h>
#include <openssl/x509.h>

#include "utils/memutils.h"

#include "counters.h"
#include "private_file.h"
#include "settings.h"
#include "tls_files.h"

/* The text of a file. */
typedef struct PemText
{
	char	   *bytes;			/* FRAME_MAX_PEM bytes in TopMemoryContext, or null */
	Size		length;
} PemText;

typedef struct Pair
{
	PemText		certificate;
	PemText		key;
} Pair;

/* What HTTPS is served with. */
static Pair current;

static void
free_text(PemText *text)
{
	if (text->bytes == NULL)
		return;
	OPENSSL_cleanse(text->bytes, FRAME_MAX_PEM);
	pfree(text->bytes);
	text->bytes = NULL;
	text->length = 0;
}

static void
free_pair(Pair *pair)
{
	free_text(&pair->certificate);
	free_text(&pair->key);
}

static bool
texts_are_equal(const PemText *one, const PemText *other)
{
	return one->bytes != NULL && other->bytes != NULL && one->length == other->length &&
		memcmp(one->bytes, other->bytes, one->length) == 0;
}

/* Reads an open file; returns null or what is wrong with it. */
static const char *
read_text(int fd, PemText *text)
{
	text->bytes = MemoryContextAlloc(TopMemoryContext, FRAME_MAX_PEM);
	text->length = 0;
	for (;;)
	{
		ssize_t		n = read(fd, text->bytes + text->length, FRAME_MAX_PEM - text->length);

		if (n < 0 && errno == EINTR)
			continue;
		if (n < 0)
			return psprintf("could not read it: %m");
		if (n == 0)
			break;
		text->length += n;
		if (text->length == FRAME_MAX_PEM)
			return psprintf("it has %d bytes or more", (int) FRAME_MAX_PEM);
	}
	return text->length == 0 ? "it is empty" : NULL;
}

/* Reads a file; returns null or what is wrong with it. */
static const char *
read_file(const char *path, bool is_key, PemText *text)
{
	const char *problem = NULL;
	struct stat status;
	int			fd;

	/* Not to wait for the other end of a pipe, should it be one. */
	fd = open(path, O_RDONLY | O_NONBLOCK | O_CLOEXEC);
	if (fd < 0)
		return psprintf("could not open it: %m");
	if (fstat(fd, &status) < 0)
		problem = psprintf("could not stat it: %m");
	else if (is_key)
		problem = private_file_problem(&status);
	else if (!S_ISREG(status.st_mode))
		problem = "it is not a regular file";
	if (problem == NULL)
		problem = read_text(fd, text);
	close(fd);
	return problem;
}

/* Nobody is there to be asked for a passphrase; notes that one was wanted. */
static int
refuse_passphrase(char *buffer, int size, int writing, void *asked)
{
	*(bool *) asked = true;
	return -1;
}

static const char *
openssl_problem(const char *what)
{
	const char *reason = ERR_reason_error_string(ERR_peek_last_error());

	return psprintf("it holds no %s in PEM format%s%s", what, reason != NULL ? ": " : "",
					reason != NULL ? reason : "");
}

static X509 *
parse_certificate(const PemText *text, const char **problem)
{
	BIO		   *bio = BIO_new_mem_buf(text->bytes, (int) text->length);
	X509	   *certificate = bio != NULL ? PEM_read_bio_X509(bio, NULL, NULL, NULL) : NULL;

	if (certificate == NULL)
		*problem = openssl_problem("certificate");
	BIO_free(bio);
	return certificate;
}

static EVP_PKEY *
parse_key(const PemText *text, const char **problem)
{
	bool		asked = false;
	BIO		   *bio = BIO_new_mem_buf(text->bytes, (int) text->length);
	EVP_PKEY   *key = bio != NULL ?
		PEM_read_bio_PrivateKey(bio, NULL, refuse_passphrase, &asked) : NULL;

	if (key == NULL)
		*problem = asked ? "it is protected by a passphrase" : openssl_problem("private key");
	BIO_free(bio);
	return key;
}

static char *
end_of_validity(X509 *certificate)
{
	BIO		   *bio = BIO_new(BIO_s_mem());
	char	   *text = NULL;
	long		length;
	char	   *result = pstrdup("an unknown time");

	if (bio != NULL && ASN1_TIME_print(bio, X509_get0_notAfter(certificate)) == 1 &&
		(length = BIO_get_mem_data(bio, &text)) > 0)
		result = pnstrdup(text, length);
	BIO_free(bio);
	return result;
}

/*
 * Reads and checks both files.  Returns null and the end of the certificate's
 * validity, or which file is wrong and why.
 */
static const char *
read_pair(Pair *pair, char **valid_until)
{
	X509	   *certificate = NULL;
	EVP_PKEY   *key = NULL;
	const char *problem;
	const char *wrong = bw_tls_cert_file;
	bool		is_key = false;

	if (bw_tls_cert_file[0] == '\0' || bw_tls_key_file[0] == '\0')
		return psprintf("%s is not set", bw_tls_cert_file[0] == '\0' ?
						"banked_webhooks.tls_cert_file" : "banked_webhooks.tls_key_file");

	ERR_clear_error();
	problem = read_file(bw_tls_cert_file, false, &pair->certificate);
	if (problem == NULL)
		certificate = parse_certificate(&pair->certificate, &problem);
	if (problem == NULL)
	{
		is_key = true;
		wrong = bw_tls_key_file;
		problem = read_file(bw_tls_key_file, true, &pair->key);
	}
	if (problem == NULL)
		key = parse_key(&pair->key, &problem);
	if (problem == NULL && X509_check_private_key(certificate, key) != 1)
		problem = psprintf("it does not belong to the certificate in \"%s\"", bw_tls_cert_file);
	if (problem == NULL)
		*valid_until = end_of_validity(certificate);
	X509_free(certificate);
	EVP_PKEY_free(key);
	ERR_clear_error();
	return problem == NULL ? NULL :
		psprintf("TLS %s file \"%s\": %s", is_key ? "key" : "certificate", wrong, problem);
}

/* Several receivers of a database read the same files: one of them speaks. */
static bool
is_speaker(void)
{
	return my_slot->number == 0;
}

bool
tls_files_load(void)
{
	Pair		pair = {{NULL}};
	const char *problem;
	char	   *valid_until = NULL;

	if (bw_tls_port == 0)
	{
		free_pair(&current);
		return false;
	}
	problem = read_pair(&pair, &valid_until);
	if (problem != NULL)
	{
		free_pair(&pair);
		if (is_speaker())
			ereport(LOG,
					(errcode(ERRCODE_CONFIG_FILE_ERROR),
					 current.key.bytes != NULL ?
					 errmsg("keeping the TLS certificate of webhooks as it was: %s", problem) :
					 errmsg("webhooks are not received by HTTPS: %s", problem)));
		return false;
	}
	if (texts_are_equal(&pair.certificate, &current.certificate) &&
		texts_are_equal(&pair.key, &current.key))
	{
		free_pair(&pair);
		return false;
	}
	free_pair(&current);
	current = pair;
	if (is_speaker())
		ereport(LOG,
				(errmsg("loaded the TLS certificate of webhooks from \"%s\", valid until %s",
						bw_tls_cert_file, valid_until)));
	return true;
}

int
tls_files_port(void)
{
	return current.key.bytes != NULL ? bw_tls_port : 0;
}

bool
tls_files_put(FrameBuffer *buffer)
{
	TlsFrame	frame;

	frame.certificate = (const uint8_t *) current.certificate.bytes;
	frame.certificate_length = current.certificate.length;
	frame.key = (const uint8_t *) current.key.bytes;
	frame.key_length = current.key.length;
	return frame_put_tls(buffer, &frame);
}
