/*
 * handler.h
 *	  What the HTTP library calls: a connection opens, a request goes through
 *	  its phases (see connections.h), a connection closes.
 */
#ifndef BW_GATEWAY_HANDLER_H
#define BW_GATEWAY_HANDLER_H

#include <microhttpd.h>

#include "http.h"

/* cls of all of these is the HttpDaemon. */
extern enum MHD_Result handler_request(void *cls, struct MHD_Connection *mhd, const char *url,
									   const char *method, const char *version,
									   const char *upload_data, size_t *upload_data_size,
									   void **request);
extern void *handler_request_line(void *cls, const char *target, struct MHD_Connection *mhd);
extern void handler_completed(void *cls, struct MHD_Connection *mhd, void **request,
							  enum MHD_RequestTerminationCode code);
extern void handler_connection(void *cls, struct MHD_Connection *mhd, void **context,
							   enum MHD_ConnectionNotificationCode code);

/* Sets the answer to a waiting request and lets the library go on with it. */
extern void handler_answer(Http *http, Connection *connection, uint16_t status);

#endif							/* BW_GATEWAY_HANDLER_H */
