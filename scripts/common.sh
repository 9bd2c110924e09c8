# common.sh
#	  What the demo and the tests share: a copy of the tree in a place of the
#	  calling user's own, built there, and programs run there by a user that
#	  PostgreSQL accepts.
#
# Root is not such a user.  For root the copy belongs to postgres and
# everything in it runs as postgres, who cannot read root's home: hence the
# copy.  Nothing of the caller's environment reaches the programs but what
# as_owner names, so that PGHOST, PGOPTIONS, LANG and the like change nothing.
#
# Nothing here touches an installed server or its files.

set -euo pipefail
umask 022

checkout=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd -P)

if [ "$(id -u)" -eq 0 ]
then
	owner=postgres
else
	owner=$(id -un)
fi

fail()
{
	printf '%s\n' "$*" >&2
	exit 1
}

# Runs a command as the owner of the private directory, in a clean environment.
as_owner()
{
	local become=() keep=() name

	[ "$(id -u)" -ne 0 ] || become=(runuser -u "$owner" --)
	for name in TERM BODIES BODIES_SEED CC COPT CURL_CFLAGS CURL_LIBS PG_CONFIG PG_TEST_EXTRA PG_TEST_NOCLEAN PG_TEST_TIMEOUT_DEFAULT
	do
		[ -z "${!name:-}" ] || keep+=("$name=${!name}")
	done
	"${become[@]}" env -i \
		PATH="${bindir:+$bindir:}/usr/bin:/bin:/usr/sbin:/sbin:$PATH" \
		HOME="$private" LANG=C.UTF-8 LC_ALL=C.UTF-8 TZ=UTC "${keep[@]}" "$@"
}

# Sets private to a directory that nobody but the calling user (root: and
# postgres) writes to, where programs may be executed, with a path short enough
# for a socket's.
find_private_directory()
{
	local parent

	cd /
	for parent in "${TMPDIR:-}" /var/tmp /tmp
	do
		private=${parent%/}/banked_webhooks-$(id -u)
		if [[ $parent == /* ]] && [ ${#parent} -le 40 ] && make_private_directory
		then
			return
		fi
	done
	fail "no place for a private server: neither \$TMPDIR, /var/tmp nor /tmp lets $owner run programs in a directory of $(id -un)'s own."
}

make_private_directory()
{
	local probe=$private/probe.$$ usable=false

	mkdir "$private" 2>/dev/null || { [ ! -L "$private" ] && [ -d "$private" ] && [ -O "$private" ]; } || return 1
	if [ "$owner" = postgres ]
	then
		chmod 755 "$private"
	else
		chmod 700 "$private"
	fi
	printf '#!/bin/sh\nexit 0\n' >"$probe" && chmod 755 "$probe" || return 1
	! as_owner "$probe" 2>/dev/null || usable=true
	rm -f "$probe"
	$usable
}

# Sees to it that the compiler finds libcurl's headers.  Where their package
# cannot be installed beside the libcurl that is there (scripts/install-packages
# changes none), they are taken out of it: they fit every libcurl.so.4 from theirs on.
provide_libcurl()
{
	local directory=$private/libcurl

	if [ -n "${CURL_LIBS:-}" ] || pkg-config --exists libcurl || ! command -v dpkg-deb >/dev/null
	then
		return 0
	fi
	if [ ! -e "$directory/done" ]
	then
		rm -rf "$directory"
		mkdir "$directory"
		(
			cd "$directory"
			apt-get download --quiet=2 libcurl4-openssl-dev 2>download.log && dpkg-deb --extract ./*.deb .
		) || fail "the headers of libcurl are missing: $(tail -n 1 "$directory/download.log")"
		touch "$directory/done"
	fi
	export CURL_CFLAGS CURL_LIBS
	CURL_CFLAGS="-isystem $(dirname "$(dirname "$(find "$directory/usr/include" -path '*/curl/curl.h')")")"
	CURL_LIBS=-l:libcurl.so.4
}

# Copies the tree, without what is ignored, to a new directory of the owner's.
copy_tree()
{
	local copy=$1

	mkdir "$copy"
	(
		cd "$checkout"
		list_files | while IFS= read -r -d '' file
		do
			# A tracked file may have been deleted.
			[ ! -e "$file" ] || printf '%s\0' "$file"
		done | tar --create --null --no-recursion --files-from=- --file=-
	) | tar --extract --file=- --directory="$copy" --no-same-owner
	give_to_owner "$copy"
}

list_files()
{
	if [ -e .git ] && command -v git >/dev/null
	then
		git -c safe.directory='*' ls-files -z --cached --others --exclude-standard
	else
		find . -type f ! -name '*.o' ! -name '*.so' ! -path './build/*' -print0
	fi
}

give_to_owner()
{
	[ "$owner" != postgres ] || chown -R postgres:postgres "$@"
}

# Builds a copy and stages it.  Sets pg_config, bindir, pkglibdir; what make says goes to the log.
build()
{
	local copy=$1 stage=$2 log=$3

	provide_libcurl
	pg_config=$(as_owner make --silent --no-print-directory -C "$copy" show-pg_config) || exit 1
	bindir=$("$pg_config" --bindir)
	pkglibdir=$("$pg_config" --pkglibdir)
	as_owner "$bindir/postgres" --describe-config | grep '^extension_destdir' >/dev/null ||
		fail "the PostgreSQL in $bindir has no setting extension_destdir (it is not Debian's): a private server cannot be given an extension that is not installed."
	as_owner make --no-print-directory -C "$copy" -j"$(nproc)" install DESTDIR="$stage" >"$log" 2>&1
}

# Prints the settings by which a server finds the staged files.
stage_settings()
{
	local stage=$1

	cat <<-EOF
		extension_destdir = '$stage'
		dynamic_library_path = '$stage$pkglibdir:\$libdir'
		shared_preload_libraries = 'banked_webhooks'
	EOF
}
