/*
 * rejection_log.c
 *	  The bounded record of what was refused, banked.rejections.
 *
 * Strangers decide how often something is refused, so nothing here grows with
 * it: like refusals are folded, at most MAX_NOTES are kept, they are written once a
 * second, and the table is cut back to its limit before it would exceed it,
 * and when the limit is lowered.  What finds no room is still counted (stats()).
 */
#include "postgres.h"

#include <arpa/inet.h>

#include "catalog/pg_type.h"
#include "utils/builtins.h"
#include "utils/guc.h"
#include "utils/timestamp.h"

#include "batch.h"
#include "rejection_log.h"
#include "settings.h"
#include "statements.h"

#define MAX_NOTES 64
#define WRITE_INTERVAL 1000		/* milliseconds */

typedef struct Note
{
	TimestampTz at;
	RejectionReason reason;
	FrameAddress address;
	char		path[FRAME_MAX_PATH + 1];
	uint64		count;
} Note;

static Note notes[MAX_NOTES];
static int	note_count = 0;
static TimestampTz written_at = 0;
static int64 known_rows = -1;	/* in the table, -1: not counted yet */
static int	kept_limit = -1;	/* that the table has last been seen to keep to; -1: none */

static Statement count_rows = {
	.sql = "SELECT count(*) FROM banked.rejections"
};

static Statement delete_oldest = {
	.sql = "DELETE FROM banked.rejections WHERE ctid = ANY (ARRAY("
	"SELECT ctid FROM banked.rejections ORDER BY received_at DESC OFFSET $1))",
	.nargs = 1,
	.argtypes = {INT8OID}
};

static Statement insert_rejection = {
	.sql = "INSERT INTO banked.rejections (received_at, remote_address, path, reason, count) "
	"VALUES ($1, $2::inet, $3, $4, $5)",
	.nargs = 5,
	.argtypes = {TIMESTAMPTZOID, TEXTOID, TEXTOID, TEXTOID, INT8OID}
};

/* Copies a path of a stranger: printable ASCII stays, everything else becomes '?'. */
static void
copy_path(char *target, const char *path, Size length)
{
	Size		i;

	for (i = 0; i < length && i < FRAME_MAX_PATH; i++)
		target[i] = (path[i] > 0x20 && path[i] < 0x7f) ? path[i] : '?';
	target[i] = '\0';
}

void
rejection_log_add(RejectionReason reason, const FrameAddress *address, const char *path,
				  Size path_length, uint32 count)
{
	Note		note = {0};

	if (bw_rejection_log_limit == 0)
		return;
	copy_path(note.path, path, path_length);
	note.reason = reason;
	note.address = *address;
	for (int i = 0; i < note_count; i++)
	{
		if (notes[i].reason == reason &&
			memcmp(&notes[i].address, address, sizeof(*address)) == 0 &&
			strcmp(notes[i].path, note.path) == 0)
		{
			notes[i].count += count;
			return;
		}
	}
	if (note_count == MAX_NOTES)
		return;
	note.at = GetCurrentTimestamp();
	note.count = count;
	notes[note_count++] = note;
}

TimestampTz
rejection_log_due_at(void)
{
	if (note_count == 0 && kept_limit == bw_rejection_log_limit)
		return DT_NOEND;
	return TimestampTzPlusMilliseconds(written_at, WRITE_INTERVAL);
}

/* Makes room in the table for the notes. */
static void
trim_table(void)
{
	bool		isnull;
	int64		keep = bw_rejection_log_limit;
	Datum		value;

	if (known_rows < 0 || bw_receivers > 1)	/* others write, too */
	{
		(void) statements_run(&count_rows, NULL, NULL, 0);
		known_rows = DatumGetInt64(statements_result(0, 1, &isnull));
	}
	if (known_rows + note_count <= bw_rejection_log_limit)
		return;
	/* A tenth more than needed, so that this is rare. */
	if (note_count > 0)
		keep = Max(keep - keep / 10 - note_count, 0);
	value = Int64GetDatum(keep);
	(void) statements_run(&delete_oldest, &value, NULL, 0);
	known_rows = keep;
}

static void
insert_notes(void)
{
	int			skip = Max(note_count - bw_rejection_log_limit, 0);

	for (int i = skip; i < note_count; i++)
	{
		Note	   *note = &notes[i];
		char		address[INET6_ADDRSTRLEN];
		Datum		values[5];
		char		nulls[6] = "     ";

		values[0] = TimestampTzGetDatum(note->at);
		if (note->address.family == 0 ||
			inet_ntop(note->address.family == 4 ? AF_INET : AF_INET6, note->address.bytes,
					  address, sizeof(address)) == NULL)
			nulls[1] = 'n';
		values[1] = nulls[1] == 'n' ? (Datum) 0 : CStringGetTextDatum(address);
		values[2] = CStringGetTextDatum(note->path);
		values[3] = CStringGetTextDatum(frame_rejection_name(note->reason));
		values[4] = Int64GetDatum(note->count);
		(void) statements_run(&insert_rejection, values, nulls, 0);
		known_rows++;
	}
}

static void
write_notes(void)
{
	Identity	before;

	(void) set_config_option("synchronous_commit", "off", PGC_USERSET, PGC_S_SESSION,
							 GUC_ACTION_LOCAL, true, 0, false);
	if (!OidIsValid(statements_relation("rejections")) || !statements_extension_exists())
		return;
	SPI_connect();
	statements_become_owner(&before);
	trim_table();
	insert_notes();
	statements_restore(&before);
	SPI_finish();
}

void
rejection_log_write(void)
{
	written_at = GetCurrentTimestamp();
	/* The record is a convenience: what cannot be written is dropped. */
	if (batch_run(write_notes))
		kept_limit = bw_rejection_log_limit;
	else
		known_rows = -1;
	note_count = 0;
}
