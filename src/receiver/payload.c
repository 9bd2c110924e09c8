/*
 * payload.c
 *	  Reads the identity and the columns of an event from a signed body.
 *
 * Banked sends two generations of bodies.  In v2 the body is the resource
 * itself, with the event's type in webhook_event, and the resource's id is the id of all its
 * events.  In v3 an envelope {id, type, version, data_version, data} carries
 * the event's own id and, in data, the resource.  The list of types is open.
 *
 * The body is signed, but that proves only who sent it.  PostgreSQL's JSON
 * parser gets it after a look at what it does not bound by itself: bytes that
 * are not UTF-8, nesting, and the size of numbers (payload_scan.h).
 */
#include "postgres.h"

#include "mb/pg_wchar.h"
#include "miscadmin.h"
#include "utils/builtins.h"
#include "utils/fmgrprotos.h"
#include "utils/jsonb.h"
#include "utils/memutils.h"

#include "payload.h"
#include "payload_scan.h"

const char *
payload_check_limits(const char *body, Size length)
{
	if (memchr(body, '\0', length) != NULL)
		return "the body contains a zero byte";
	if (!pg_verify_mbstr(PG_UTF8, body, length, true))
		return "the body is not valid UTF-8";
	return payload_scan_limits(body, length);
}

/*
 * Runs PostgreSQL's parser.  Returns false, with the reason in the delivery,
 * when it does not accept the body.  No subtransaction is needed to go on
 * after its errors: jsonb_in touches nothing but memory.
 */
static bool
parse_json(Delivery *delivery)
{
	MemoryContext context = CurrentMemoryContext;
	uint32		holdoff = InterruptHoldoffCount;
	char	   *text = palloc(delivery->body_length + 1);
	volatile bool parsed = false;

	memcpy(text, delivery->body, delivery->body_length);
	text[delivery->body_length] = '\0';

	/* A cancel must not look like an error of the body. */
	HOLD_INTERRUPTS();
	PG_TRY();
	{
		delivery->payload = DirectFunctionCall1(jsonb_in, CStringGetDatum(text));
		parsed = true;
	}
	PG_CATCH();
	{
		ErrorData  *error;

		MemoryContextSwitchTo(context);
		error = CopyErrorData();
		FlushErrorState();
		if (error->sqlerrcode == ERRCODE_OUT_OF_MEMORY)
			delivery_to_quarantine(delivery, QUARANTINE_OUT_OF_MEMORY, error->sqlerrcode,
								   pstrdup(error->message));
		else
			delivery_to_quarantine(delivery, QUARANTINE_INVALID_JSON, error->sqlerrcode,
								   pstrdup(error->message));
		FreeErrorData(error);
	}
	PG_END_TRY();
	InterruptHoldoffCount = holdoff;
	pfree(text);
	return parsed;
}

/* The value of a key of an object, or null. */
static JsonbValue *
get_key(JsonbContainer *object, const char *key)
{
	if (object == NULL || !JsonContainerIsObject(object))
		return NULL;
	return getKeyJsonValueFromContainer(object, key, strlen(key), NULL);
}

/* A key's text, palloc'ed, or null when it is missing, no string or empty. */
static char *
get_text(JsonbContainer *object, const char *key)
{
	JsonbValue *value = get_key(object, key);

	if (value == NULL || value->type != jbvString || value->val.string.len == 0)
		return NULL;
	return pnstrdup(value->val.string.val, value->val.string.len);
}

static JsonbContainer *
get_object(JsonbContainer *object, const char *key)
{
	JsonbValue *value = get_key(object, key);

	if (value == NULL || value->type != jbvBinary ||
		!JsonContainerIsObject(value->val.binary.data))
		return NULL;
	return value->val.binary.data;
}

/* live: true or false where the object says so by "live" or "mode", else -1. */
static int8
get_live(JsonbContainer *object)
{
	JsonbValue *live = get_key(object, "live");
	char	   *mode;

	if (live != NULL && live->type == jbvBool)
		return live->val.boolean ? 1 : 0;
	mode = get_text(object, "mode");
	if (mode == NULL)
		return -1;
	return pg_strcasecmp(mode, "live") == 0 ? 1 : 0;
}

static char *
lower_case(char *text)
{
	if (text == NULL)
		return NULL;
	for (char *p = text; *p != '\0'; p++)
		*p = pg_ascii_tolower((unsigned char) *p);
	return text;
}

/*
 * The type of resource that an event type speaks of: what stands before its
 * last underscore.  Null when there is none.
 */
static char *
resource_type_of_event(const char *event_type)
{
	const char *underscore = strrchr(event_type, '_');

	if (underscore == NULL || underscore == event_type)
		return NULL;
	return pnstrdup(event_type, underscore - event_type);
}

static char *
normal_resource_type(char *type)
{
	if (type != NULL && strcmp(type, "payment_session") == 0)
		return pstrdup("payment");
	return type;
}

static void
read_v2(Delivery *delivery, JsonbContainer *body)
{
	char	   *type = get_text(body, "webhook_type");

	if (type == NULL)
		type = get_text(body, "webook_type");	/* as part of the documentation spells it */
	if (type == NULL && delivery->event_type != NULL)
		type = resource_type_of_event(delivery->event_type);

	delivery->v2 = true;
	delivery->api_version = pstrdup("v2");
	delivery->resource_id = get_text(body, "id");
	delivery->resource_type = normal_resource_type(lower_case(type));
	delivery->state = lower_case(get_text(body, "state"));
	delivery->live = get_live(body);
}

/* The documented v3 mandate says "active" where the other bodies say "payment_sent". */
static bool
is_bare_mandate(Delivery *delivery, JsonbContainer *body)
{
	JsonbValue *version = get_key(body, "data_version");

	return strchr(delivery->event_type, '_') == NULL &&
		version != NULL && version->type == jbvNumeric &&
		DatumGetBool(DirectFunctionCall2(numeric_eq, NumericGetDatum(version->val.numeric),
										 DirectFunctionCall1(int4_numeric, Int32GetDatum(1))));
}

static void
read_v3(Delivery *delivery, JsonbContainer *body, JsonbContainer *data)
{
	char	   *version = get_text(body, "version");
	char	   *type = resource_type_of_event(delivery->event_type);

	if (is_bare_mandate(delivery, body))
	{
		delivery->bare_mandate = true;
		type = pstrdup("mandate");
	}

	delivery->v2 = false;
	delivery->api_version = version != NULL ? version : pstrdup("v3");
	delivery->resource_id = get_text(data, "id");
	delivery->resource_type = normal_resource_type(lower_case(type));
	delivery->state = lower_case(get_text(get_object(data, "status_details"), "status"));
	delivery->live = get_live(data);
}

static bool
too_long(const char *text)
{
	return text != NULL && strlen(text) > IDENTITY_MAX;
}

/* Fills the delivery from the parsed body; false when it is marked for quarantine. */
static bool
read_columns(Delivery *delivery, JsonbContainer *body, const char *event_id,
			 const char *event_type)
{
	JsonbContainer *data = get_object(body, "data");
	JsonbValue *test = get_key(body, "banked_webhooks_test");

	delivery->event_id = get_text(body, "id");
	delivery->event_type = get_text(body, "webhook_event");
	if (delivery->event_type != NULL || get_text(body, "type") == NULL ||
		(data == NULL && get_text(body, "version") == NULL))
	{
		if (delivery->event_type == NULL && event_type != NULL)
			delivery->event_type = pstrdup(event_type);
		read_v2(delivery, body);
	}
	else
	{
		delivery->event_type = get_text(body, "type");
		read_v3(delivery, body, data);
	}
	if (delivery->event_id == NULL && event_id != NULL)
		delivery->event_id = pstrdup(event_id);
	delivery->test = test != NULL && test->type == jbvBool && test->val.boolean &&
		delivery->live == 0;

	if (delivery->event_id == NULL || delivery->event_type == NULL)
	{
		delivery_to_quarantine(delivery, QUARANTINE_MISSING_IDENTITY, 0,
							   delivery->event_id == NULL ? "the body has no id of an event"
							   : "the body has no type of an event");
		return false;
	}
	if (too_long(delivery->event_id) || too_long(delivery->event_type) ||
		too_long(delivery->resource_id))
	{
		delivery_to_quarantine(delivery, QUARANTINE_IDENTITY_TOO_LONG, 0,
							   psprintf("an id or type of the body is longer than %d bytes",
										IDENTITY_MAX));
		return false;
	}
	return true;
}

bool
payload_read_identity(Delivery *delivery)
{
	PayloadIdentity identity;

	if (!payload_scan_identity(delivery->body, delivery->body_length, &identity) ||
		identity.event_id.length > IDENTITY_MAX || identity.event_type.length > IDENTITY_MAX)
		return false;
	delivery->event_id = pnstrdup(identity.event_id.start, identity.event_id.length);
	delivery->event_type = pnstrdup(identity.event_type.start, identity.event_type.length);
	delivery->v2 = identity.v2;
	return true;
}

bool
payload_read(Delivery *delivery, const char *event_id, const char *event_type)
{
	const char *problem = payload_check_limits(delivery->body, delivery->body_length);
	Jsonb	   *body;

	if (problem != NULL)
	{
		delivery_to_quarantine(delivery, QUARANTINE_INVALID_JSON,
							   ERRCODE_INVALID_TEXT_REPRESENTATION, problem);
		return false;
	}
	if (!parse_json(delivery))
		return false;
	body = DatumGetJsonbP(delivery->payload);
	if (!JB_ROOT_IS_OBJECT(body))
	{
		delivery_to_quarantine(delivery, QUARANTINE_MISSING_IDENTITY, 0,
							   "the body is not an object");
		return false;
	}
	return read_columns(delivery, &body->root, event_id, event_type);
}
