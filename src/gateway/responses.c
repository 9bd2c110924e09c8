/*
 * responses.c
 *	  The answers, prepared once: status, one short line of text, headers.
 */
#include "responses.h"

#include <stddef.h>
#include <string.h>

#include <microhttpd.h>

/* Seconds; Banked has a schedule of its own, but proxies and people read it. */
#define RETRY_AFTER "5"

typedef struct ResponseText
{
	unsigned	status;			/* 0: any other */
	const char *line;
	const char *header;			/* a further header, or null */
	const char *value;
} ResponseText;

static const ResponseText texts[RESPONSE_COUNT] = {
	{200, "ok\n", NULL, NULL},
	{400, "bad request\n", NULL, NULL},
	{404, "not found\n", NULL, NULL},
	{405, "method not allowed\n", MHD_HTTP_HEADER_ALLOW, MHD_HTTP_METHOD_POST},
	{410, "gone\n", NULL, NULL},
	{411, "length required\n", NULL, NULL},
	{413, "content too large\n", NULL, NULL},
	{414, "uri too long\n", NULL, NULL},
	{431, "request header fields too large\n", NULL, NULL},
	{503, "service unavailable\n", MHD_HTTP_HEADER_RETRY_AFTER, RETRY_AFTER},
	{0, "request not accepted\n", NULL, NULL}
};

static struct MHD_Response *create_response(const ResponseText *text, bool keep);

bool
responses_create(Responses *responses)
{
	for (int i = 0; i < RESPONSE_COUNT; i++)
	{
		responses->kept[i] = create_response(&texts[i], true);
		responses->closing[i] = create_response(&texts[i], false);
		if (responses->kept[i] == NULL || responses->closing[i] == NULL)
			return false;
	}
	return true;
}

void
responses_free(Responses *responses)
{
	for (int i = 0; i < RESPONSE_COUNT; i++)
	{
		if (responses->kept[i] != NULL)
			MHD_destroy_response(responses->kept[i]);
		if (responses->closing[i] != NULL)
			MHD_destroy_response(responses->closing[i]);
		responses->kept[i] = responses->closing[i] = NULL;
	}
}

struct MHD_Response *
responses_find(const Responses *responses, unsigned status, bool keep)
{
	int			i = 0;

	while (texts[i].status != status && texts[i].status != 0)
		i++;
	return keep ? responses->kept[i] : responses->closing[i];
}

static struct MHD_Response *
create_response(const ResponseText *text, bool keep)
{
	struct MHD_Response *response;

	/* The library takes the text as not const, but only reads it. */
	response = MHD_create_response_from_buffer(strlen(text->line), (void *) (uintptr_t) text->line,
											   MHD_RESPMEM_PERSISTENT);
	if (response == NULL)
		return NULL;
	if (MHD_add_response_header(response, MHD_HTTP_HEADER_CONTENT_TYPE, "text/plain") != MHD_YES ||
		(text->header != NULL &&
		 MHD_add_response_header(response, text->header, text->value) != MHD_YES) ||
		(!keep &&
		 MHD_add_response_header(response, MHD_HTTP_HEADER_CONNECTION, "close") != MHD_YES))
	{
		MHD_destroy_response(response);
		return NULL;
	}
	return response;
}
