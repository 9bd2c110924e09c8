/*
 * request_guard_fuzz.c
 *	  The request guard, with lines of any bytes for target and headers.
 *
 * The input: a byte of context, then lines: method, target, version, and
 * headers whose first colon ends the name.
 */
#include "gateway/request_guard.h"

#include "fuzz.h"

#define MAX_BODY 1000

static char *
line_text(Input *input)
{
	size_t		length;
	char	   *line = input_until(input, '\n', &length);
	char	   *text = malloc(length + 1);

	memcpy(text, line, length);
	text[length] = '\0';
	free(line);
	return text;
}

static void
show_header(RequestGuard *guard, Input *input)
{
	size_t		length;
	char	   *line = input_until(input, '\n', &length);
	Input		parts = {(const uint8_t *) line, length};
	size_t		name_length;
	size_t		value_length;
	char	   *name = input_until(&parts, ':', &name_length);
	char	   *value = input_until(&parts, '\n', &value_length);

	guard_header(guard, name, name_length, value, value_length);
	free(value);
	free(name);
	free(line);
}

/* What must be true of a request whose body is read. */
static void
check_admitted(const RequestGuard *guard, const GuardContext *context)
{
	SignatureHeader parsed;

	FUZZ_CHECK(!guard->malformed && !guard->transfer_encoding && !guard->path_too_long);
	FUZZ_CHECK(guard->content_lengths == 1 && guard->content_length <= context->max_body_size);
	FUZZ_CHECK(guard->hosts <= 1 && guard->signatures == 1);
	FUZZ_CHECK(guard->path_length >= 1 && guard->path_length <= FRAME_MAX_PATH);
	FUZZ_CHECK(guard->signature_length >= 1 && guard->signature_length <= FRAME_MAX_SIGNATURE);
	FUZZ_CHECK(signature_parse(guard->signature, guard->signature_length, &parsed));
	FUZZ_CHECK(context->path == GUARD_PATH_ACTIVE && !context->overloaded);
	FUZZ_CHECK(strcmp(context->method, "POST") == 0);
	FUZZ_CHECK(context->header_size <= context->max_header_size);
}

int
LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
	Input		input = {data, size};
	uint8_t		flags = input_byte(&input);
	char	   *method = line_text(&input);
	size_t		target_length;
	char	   *target = input_until(&input, '\n', &target_length);
	char	   *version = line_text(&input);
	RequestGuard guard;
	GuardContext context;
	GuardVerdict verdict;

	guard_begin(&guard, target, target_length);
	while (input.left > 0)
		show_header(&guard, &input);

	context.method = method;
	context.version = version;
	context.header_size = flags & 1 ? 5000 : 100;
	context.max_header_size = 4096;
	context.max_body_size = MAX_BODY;
	context.path = flags & 2 ? GUARD_PATH_RETIRED : flags & 4 ? GUARD_PATH_UNKNOWN : GUARD_PATH_ACTIVE;
	context.overloaded = (flags & 8) != 0;
	verdict = guard_decide(&guard, &context);
	if (verdict.status == 0)
		check_admitted(&guard, &context);
	else
		FUZZ_CHECK(verdict.status >= 400 && verdict.status <= 503 &&
				   verdict.reason < REJECTION_COUNT);

	free(version);
	free(target);
	free(method);
	return 0;
}
