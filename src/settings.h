/*
 * settings.h
 *	  Every setting of the extension, as PostgreSQL keeps it.
 *
 * The variables are written by PostgreSQL's configuration machinery alone.
 * Their units are those of the definitions in settings.c, repeated here.
 */
#ifndef BW_SETTINGS_H
#define BW_SETTINGS_H

typedef enum ApiVersion
{
	API_VERSION_2,
	API_VERSION_3
} ApiVersion;

/* Bytes that bw_listen_addresses has at most, with the end of the text. */
#define MAX_ADDRESS_LIST 1024

/* The role that receivers connect as, and users' triggers run as. */
#define WORKER_ROLE "banked_webhooks_worker"

extern int	bw_answer_timeout;	/* ms */
extern char *bw_api_base_url;
extern char *bw_api_ca_file;
extern int	bw_api_connect_timeout; /* ms */
extern char *bw_api_proxy;
extern int	bw_api_timeout;		/* ms */
extern int	bw_api_version;		/* ApiVersion */
extern char *bw_databases;		/* list of names */
extern bool bw_gateway_sandbox;
extern int	bw_handler_workers;
extern int	bw_job_retention;	/* s */
extern char *bw_listen_addresses;	/* list of addresses */
extern char *bw_master_key_file;
extern int	bw_max_batch;		/* deliveries */
extern int	bw_max_batch_size;	/* kB */
extern int	bw_max_body_size;	/* kB */
extern int	bw_max_connections;
extern int	bw_max_header_size; /* kB */
extern int	bw_max_pending;		/* deliveries */
extern int	bw_max_pending_size;	/* kB */
extern bool bw_notify;
extern int	bw_port;
extern int	bw_receivers;
extern int	bw_rejection_log_limit; /* rows */
extern int	bw_request_timeout; /* ms */
extern int	bw_store_lock_timeout;	/* ms */
extern int	bw_store_timeout;	/* ms */
extern char *bw_tls_cert_file;
extern char *bw_tls_key_file;
extern int	bw_tls_port;		/* 0: no HTTPS */

extern void settings_init(void);

/* Can it stand before the path of a call of Banked's API? */
extern bool settings_base_url_is_valid(const char *url);

#endif							/* BW_SETTINGS_H */
