/*
 * payload_scan_test.c
 *	  The identity of a body that is not parsed: where it stands plainly, and
 *	  where it takes a parser to tell it.
 */
#include "receiver/payload_scan.h"

#include <stdlib.h>
#include <string.h>

#include "tap.h"

static bool
is_text(const PayloadText *text, const char *expected)
{
	return text->length == strlen(expected) && memcmp(text->start, expected, text->length) == 0;
}

static bool
scan(const char *body, char **copy, PayloadIdentity *identity)
{
	size_t		length = strlen(body);

	/* exactly as long as the body, for a memory checker */
	*copy = malloc(length > 0 ? length : 1);
	memcpy(*copy, body, length);
	return payload_scan_identity(*copy, length, identity);
}

static void
expect(const char *body, const char *event_id, const char *event_type, bool v2)
{
	char	   *copy;
	PayloadIdentity identity;

	TAP_OK(scan(body, &copy, &identity) && is_text(&identity.event_id, event_id) &&
		   is_text(&identity.event_type, event_type) && identity.v2 == v2,
		   "%s, %s, %s: %s", event_id, event_type, v2 ? "v2" : "v3", body);
	free(copy);
}

static void
expect_none(const char *body)
{
	char	   *copy;
	PayloadIdentity identity;

	TAP_OK(!scan(body, &copy, &identity), "not without a parser: %s", body);
	free(copy);
}

int
main(void)
{
	expect("{\"id\":\"a\",\"webhook_event\":\"t\"}", "a", "t", true);
	expect(" \t\r\n{ \"webhook_event\"\n:\t\"t\" , \"id\" : \"a b\" } ", "a b", "t", true);
	expect("{\"id\":\"a\",\"type\":\"t\",\"data\":{}}", "a", "t", false);
	expect("{\"id\":\"a\",\"type\":\"t\",\"data\": {\"id\":\"b\",\"type\":\"u\"}}", "a", "t", false);
	expect("{\"id\":\"a\",\"type\":\"u\",\"data\":{},\"webhook_event\":\"t\"}", "a", "t", true);

	/* Members of other objects are not meant, nor values that look like names. */
	expect("{\"x\":{\"id\":\"b\"},\"id\":\"a\",\"y\":[{\"id\":\"c\"}],\"webhook_event\":\"t\"}", "a", "t", true);
	expect("{\"x\":\"id\",\"id\":\"a\",\"y\":\"\\\"id\\\":\",\"webhook_event\":\"t\"}", "a", "t", true);
	expect("{\"x\":\"\\\\\",\"id\":\"a\",\"webhook_event\":\"t\",\"ids\":\"b\",\"i\":\"c\"}", "a", "t", true);
	expect("{\"x\":[\"id\",\"}\",\"{\"],\"id\":\"a\",\"webhook_event\":\"t\"}", "a", "t", true);

	/* The last of several counts. */
	expect("{\"id\":\"b\",\"id\":\"a\",\"webhook_event\":\"u\",\"webhook_event\":\"t\"}", "a", "t", true);
	expect("{\"id\":\"a\",\"type\":\"t\",\"data\":[],\"data\":{}}", "a", "t", false);
	expect_none("{\"id\":\"a\",\"type\":\"t\",\"data\":{},\"data\":null}");

	/* A body without one. */
	expect_none("");
	expect_none("{");
	expect_none("{}");
	expect_none("[{\"id\":\"a\",\"webhook_event\":\"t\"}]");
	expect_none("\"id\":\"a\",\"webhook_event\":\"t\"");
	expect_none("{\"id\":\"a\"}");
	expect_none("{\"webhook_event\":\"t\"}");
	expect_none("{\"id\":\"a\",\"type\":\"t\"}");
	expect_none("{\"id\":\"a\",\"type\":\"t\",\"version\":\"v3\"}");
	expect_none("{\"id\":\"a\",\"data\":{}}");
	expect_none("{\"x\":{\"id\":\"a\",\"webhook_event\":\"t\"}}");

	/* No string, an empty one, an escape, something beyond ASCII, the end. */
	expect_none("{\"id\":1,\"webhook_event\":\"t\"}");
	expect_none("{\"id\":null,\"webhook_event\":\"t\"}");
	expect_none("{\"id\":\"a\",\"webhook_event\":null,\"type\":\"t\",\"data\":{}}");
	expect_none("{\"id\":\"a\",\"webhook_event\":\"t\",\"id\":{}}");
	expect_none("{\"id\":\"\",\"webhook_event\":\"t\"}");
	expect_none("{\"id\":\"a\",\"webhook_event\":\"\"}");
	expect_none("{\"id\":\"a\\u0062\",\"webhook_event\":\"t\"}");
	expect_none("{\"id\":\"\xc3\xa4\",\"webhook_event\":\"t\"}");
	expect_none("{\"id\":\"a\n\",\"webhook_event\":\"t\"}");
	expect_none("{\"id\":\"a\",\"webhook_event\":\"t\",\"\\u0069d\":\"b\"}");
	expect_none("{\"webhook_event\":\"t\",\"id\":\"a");
	expect_none("{\"webhook_event\":\"t\",\"id\":");
	expect_none("{\"webhook_event\":\"t\",\"id\"");

	return tap_done();
}
