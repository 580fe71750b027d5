#!/bin/bash
# Shows secrate at work: a Btrfs volume on a loop device, an S3 server on this
# machine, snapshots while files change, then the loss of the machine and three
# restores, each compared with a copy that was kept of that state.
#
# It needs Go, and root for the volume: for that part it calls sudo. Where there is
# none, or with VOLUME=directory, an ordinary directory and a repository in another
# do instead. Everything is made in a directory of its own below TMPDIR (/tmp) and
# taken away at the end, also after Ctrl-C. The exit status is 0 only if every
# comparison was equal.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v go >/dev/null || PATH=$PATH:/usr/local/go/bin
export PATH

bold='' plain=''
if [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; then bold=$'\e[1m' plain=$'\e[0m'; fi
title() { printf '\n%s%s%s\n' "$bold" "$*" "$plain"; }
say() { printf '  %s\n' "$@" | sed 's/ *$//'; }
fail() {
	printf '\n%sFAILED: %s%s\n' "$bold" "$*" "$plain" >&2
	exit 1
}

# ---- Volume, server and directory go when this process does -------------------

work=${SECRATE_DEMO_DIR:-} server= volume=${VOLUME:-btrfs}
[ "$volume" = btrfs ] || [ "$volume" = directory ] || fail "VOLUME=$volume: want btrfs or directory"
cleanup() {
	local status=$?
	trap - EXIT
	if [ -n "$server" ]; then
		kill "$server" 2>/dev/null || true
		wait "$server" 2>/dev/null || true
	fi
	if [ -n "$work" ]; then
		if mountpoint -q "$work/mnt"; then
			umount "$work/mnt" 2>/dev/null || umount -l "$work/mnt"
		fi
		rm -rf --one-file-system "$work"
	fi
	exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

serve() { # starts the S3 server and sets $server; what to set is then in $work/s3.env
	: >"$work/s3.env"
	"$work/s3serve" -dir "$work/s3" >"$work/s3.env" 2>"$work/s3.log" &
	server=$!
	local waited=0 said=
	until grep -q SECRATE_DEMO_URL "$work/s3.env"; do
		kill -0 "$server" 2>/dev/null || fail "the S3 server: $(cat "$work/s3.log")"
		if [ -z "$said" ] && grep -q building "$work/s3.log"; then
			say "The S3 server is versitygw. It is built from source, once: some minutes."
			said=1
		fi
		sleep 0.2
		waited=$((waited + 1))
		if [ -n "$said" ] && [ $((waited % 50)) -eq 0 ]; then
			if [ -t 1 ]; then printf '\r  … %d s' $((waited / 5)); else say "… $((waited / 5)) s"; fi
		fi
	done
	[ -z "$said" ] || [ ! -t 1 ] || printf '\r'
}

# ---- What needs no root: building ---------------------------------------------

if [ -z "$work" ]; then
	command -v go >/dev/null || fail "Go is needed to build secrate: https://go.dev/doc/install"
	title "secrate: a demonstration"
	say "Everything happens in a temporary directory and is removed at the end."
	work=$(mktemp -d "${TMPDIR:-/tmp}/secrate-demo-XXXXXX")
	free=$(df -Pk "$work" | awk 'NR == 2 { print int($4 / 1024) }')
	[ "$free" -ge 4000 ] || fail "$work has $free MiB free, 4000 are needed; set TMPDIR to another place"
	say "Building secrate …"
	make -s build >"$work/build.log" 2>&1 || fail "make build: $(cat "$work/build.log")"
	cp bin/secrate "$work/secrate"
	go build -buildvcs=false -trimpath -o "$work/s3serve" ./testenv/s3test/s3serve
	go build -buildvcs=false -trimpath -o "$work/benchdata" ./scripts/benchdata
	if [ "$volume" = btrfs ] && [ "$(id -u)" -ne 0 ] && ! command -v sudo >/dev/null; then
		say "A Btrfs volume takes root, and there is no sudo: this will be an ordinary directory."
		volume=directory
	fi
	if [ "$volume" = btrfs ] && [ "$(id -u)" -ne 0 ]; then
		serve # builds the server as you, so that nothing of root's is left in your caches
		kill "$server" && wait "$server" 2>/dev/null || true
		server=
		rm -rf "$work/s3"
		say "The volume needs root: sudo may ask for your password."
		trap - EXIT
		exec sudo env "PATH=$PATH" "GOFLAGS=-buildvcs=false" "XDG_CACHE_HOME=${XDG_CACHE_HOME:-$HOME/.cache}" \
			"SECRATE_DEMO_DIR=$work" "$0"
	fi
fi

# ---- What needs root: the volume ----------------------------------------------

home=$work/mnt/home
mkdir "$work/mnt"
if [ "$volume" = directory ]; then
	mkdir "$home"
	SECRATE_DEMO_URL=$work/s3/data/secrate-test/demo
	say "An ordinary directory is kept, in a repository in another directory."
else
	if ! command -v mkfs.btrfs >/dev/null; then
		command -v apt-get >/dev/null || fail "mkfs.btrfs is missing: install btrfs-progs"
		say "Installing btrfs-progs by apt-get …"
		{ apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends btrfs-progs; } \
			>"$work/apt.log" 2>&1 || fail "apt-get: $(tail -5 "$work/apt.log")"
	fi
	serve
	# shellcheck disable=SC1091 # written by s3serve
	. "$work/s3.env"
	truncate -s 8G "$work/volume"
	mkfs.btrfs -q "$work/volume" >"$work/mkfs.log" 2>&1 || fail "mkfs.btrfs: $(cat "$work/mkfs.log")"
	mount -o loop,noatime "$work/volume" "$work/mnt" ||
		fail "cannot mount a loop device; in a container it must be allowed to (docker run --privileged)"
	btrfs subvolume create "$home" >/dev/null
	say "A Btrfs volume is mounted, and an S3 server (versitygw) answers on 127.0.0.1."
fi
mkdir "$work/mnt/kept" "$work/mnt/restored"

export SECRATE_CONFIG=$work/config.toml SECRATE_STATE=$work/state
unset SECRATE_IDENTITY
secrate() { "$work/secrate" --progress none "$@"; }

title "1  A repository and a source"
say '$ secrate init --repo "$REPO" --identity-out stick/secrate.key'
say '$ secrate source add home /home'
mkdir "$work/stick"
key=$work/stick/secrate.key
secrate init --repo "$SECRATE_DEMO_URL" --identity-out "$key" >"$work/init.log" || fail "secrate init"
secrate source add home "$home" >>"$work/init.log" || fail "secrate source add"
say "The identity is post-quantum, the default (age1pq1…), and is kept elsewhere:" \
	"this machine only writes, and cannot read back what it has uploaded."

# ---- The story ----------------------------------------------------------------

now() { date -u +%Y-%m-%dT%H:%M:%S.%3NZ; }
human() { # bytes as a person reads them
	awk -v n="$1" 'BEGIN {
		split("B KiB MiB GiB", unit); u = 1
		while (n >= 1000 && u < 4) { n /= 1024; u++ }
		printf (u == 1 || n >= 99.95) ? "%.0f %s" : "%.1f %s", n, unit[u] }'
}
group() { printf '%s' "$1" | sed ':a; s/\B[0-9]\{3\}\>/,&/; ta'; } # 2000 as 2,000
stored() { # what lies on the server: bytes and objects
	find "$work/s3/data/secrate-test/demo" -type f -printf '%s\n' | awk '{ n += $1 } END { printf "%.0f %d\n", n, NR }'
}
field() { sed -n "s/.*\"$1\":\"\{0,1\}\([^,\"}]*\).*/\1/p" <<<"$2" | head -1; }

# listing of a tree: of each entry name, kind, mode, owner, size, time to the ns, link
# count and link target. Directories have no size of their own, and on other file
# systems than Btrfs another link count.
listing() {
	(cd "$1" && find . -name .secrate -prune -o \
		\( -type d -printf '%p\t%y %m %U:%G %T@\0' \) -o \
		-printf '%p\t%y %m %U:%G %s %T@ %n %l\0' | LC_ALL=C sort -z)
}
keep() { # keeps a copy and a listing of the present state, under the name $1
	mkdir "$work/mnt/kept/$1"
	find "$home" -mindepth 1 -maxdepth 1 ! -name .secrate \
		-exec cp -a --reflink=auto -t "$work/mnt/kept/$1" {} +
	listing "$home" >"$work/$1.listing"
}

total_up=0 total_objects=0
declare -A at # when each state had been committed
snap() { # number, what was done, files, bytes changed
	local before after json start took up objects
	sync
	before=$(stored) start=$(date +%s%N)
	json=$(secrate snap --json home) || fail "secrate snap, after: $2"
	took=$((($(date +%s%N) - start) / 1000000))
	after=$(stored)
	up=$(field uploaded_bytes "$json") objects=$(field objects "$json")
	up=${up:-0} objects=${objects:-0}
	[ "$after" = "$((${before% *} + up)) $((${before#* } + objects))" ] ||
		fail "secrate says $up bytes in $objects objects; on the server it was $before, and is $after"
	printf '  %2s  %-32s %6s %8s %9s %7s %5s\n' "$1" "$2" "$(group "$3")" "$(human "$4")" "$(human "$up")" "$objects" \
		"$(awk -v ms="$took" 'BEGIN { printf "%.1f", ms / 1000 }')"
	total_up=$((total_up + up)) total_objects=$((total_objects + objects))
	at[$1]=$(now)
	sleep 0.01 # so that the next one is after it in milliseconds too
}

title "2  Snapshots while files change"
mkdir "$home/documents"
for d in /usr/share/doc /usr/include; do
	[ ! -d "$d" ] || cp -a "$d" "$home/documents/"
done
if [ "$(find "$home/documents" -type f | wc -l)" -lt 2000 ]; then
	cp -a "$(go env GOROOT)/src" "$home/documents/go" # a Debian without documentation
fi
chmod -R u+w "$home/documents"
mkdir "$home/photos"
i=0
while [ $i -lt 2000 ]; do
	i=$((i + 1))
	printf 'photo %d: %s\n' "$i" "$RANDOM$RANDOM$RANDOM" >"$home/photos/IMG_$(printf %04d "$i").xmp"
done
"$work/benchdata" image "$home/vm.img" 256
ln "$home/photos/IMG_0001.xmp" "$home/first.xmp"
ln -s photos "$home/latest"
chmod 4711 "$home/first.xmp"
[ "$(id -u)" -ne 0 ] || chown 1234:5678 "$home/photos/IMG_0003.xmp"
touch -d '1999-12-31 23:59:59.123456789' "$home/photos/IMG_0004.xmp"
printf 'not UTF-8\n' >"$home/documents/"$'caf\xe9 \n.txt'

count=$(find "$home" -type f | wc -l)
bytes=$(find "$home" -type f -printf '%s\n' | awk '{ n += $1 } END { printf "%.0f", n }')
printf '\n  %-37s %s\n' '' '---- changed --- ---- uploaded ---  time'
printf '  %2s  %-32s %6s %8s %9s %7s %5s\n' '#' 'what was done' files bytes bytes objects s
snap 1 'everything is new' "$count" "$bytes"
keep monday

"$work/benchdata" byte "$home/vm.img"
snap 2 'one byte of a 256 MiB VM image' 1 1

# Text files of some size; half of them are saved as editors do, by a new file that is
# renamed over the old one.
line='This line was inserted while nobody was looking.'
find "$home/documents" -type f -size +3k -size -200k -links 1 -print0 | LC_ALL=C sort -z |
	{ xargs -0 grep -IlZ . 2>/dev/null || true; } | head -z -n 100 >"$work/edited" || true
edited=0
while IFS= read -r -d '' f; do
	edited=$((edited + 1))
	if [ $((edited % 2)) -eq 0 ]; then
		sed -i "20i $line" "$f"
	else
		sed "20i $line" "$f" >"$work/edit" && cat "$work/edit" >"$f"
	fi
done <"$work/edited"
[ "$edited" -eq 100 ] || fail "only $edited files to insert a line in"
snap 3 'a line inserted in 100 documents' 100 $((100 * (${#line} + 1)))

mv "$home/photos" "$home/holiday"
snap 4 'a directory of 2,000 renamed' 2000 0
keep tuesday

cp --reflink=never "$home/vm.img" "$home/vm-copy.img"
snap 5 'the VM image copied' 1 $((256 << 20))

find "$home/holiday" -name 'IMG_0[5-9]*' -delete
rm "$home/latest"
snap 6 '500 files and a link deleted' 501 0

"$work/benchdata" scatter "$home/vm.img" 100
snap 7 '100 writes of 64 bytes in it' 1 6400
keep wednesday
snap 8 'nothing' 0 0
at[7]=${at[8]}
say "" "$(human "$total_up") in $total_objects objects; what is stored adds up to the same."
phrase='inserted while nobody'
if grep -rqF -e "$phrase" -e IMG_0001 -e documents "$work/s3/data"; then
	fail "plain text on the server"
fi
say "No name and no content of a file is to be found in what is stored."
[ "$volume" = directory ] || say "Most of what 2 cost is the key of its pack, sealed for the identity."
[ "$volume" = btrfs ] || say "Without snapshots there are no old bytes to compare with, but sums of them. Of what" \
	"does not compress, as this image, they are made at its first change, of 1 MiB."

# ---- The machine is lost --------------------------------------------------------

title "3  The machine is lost"
for d in "$home"/.secrate/* "$home"/.secrate "$home"; do
	# The root of a subvolume has inode 256.
	[ "$volume" = directory ] || [ "$(stat -c %i "$d" 2>/dev/null)" != 256 ] || btrfs subvolume delete "$d" >/dev/null
done
[ "$volume" = btrfs ] || rm -r "$home"
rm -rf "$SECRATE_STATE" "$SECRATE_CONFIG"
say "Its files, its configuration and its state are deleted. What is left is the" \
	"identity on the stick and the address. All that follows uses these alone."
# A bare machine: an environment with nothing in it but the way to the server.
mkdir "$work/bare"
export SECRATE_CONFIG=$work/bare/config.toml SECRATE_STATE=$work/bare/state
bare=(--repo "$SECRATE_DEMO_URL" --identity "$key")

title "4  Restored at three times, compared with copies kept of each state"
say '$ secrate restore --repo "$REPO" --identity stick/secrate.key \' \
	'      --at T --to DIR home' ''
printf '  %-34s %8s %9s   %-14s %5s\n' 'T' entries bytes 'compared' s
restore() { # name of the kept state, number of the snapshot
	local to=$work/mnt/restored/$1 start took entries size
	start=$(date +%s%N)
	secrate restore "${bare[@]}" --at "${at[$2]}" --to "$to" home >"$work/restore.log" ||
		fail "secrate restore --at ${at[$2]}"
	took=$((($(date +%s%N) - start) / 1000000))
	diff -r --no-dereference "$work/mnt/kept/$1" "$to" >"$work/diff" ||
		fail "$1: contents differ:"$'\n'"$(head -20 "$work/diff")"
	listing "$to" >"$work/restored.listing"
	cmp -s "$work/$1.listing" "$work/restored.listing" ||
		fail "$1: names, modes, owners or times differ:"$'\n'"$(diff <(tr '\0' '\n' <"$work/$1.listing") \
			<(tr '\0' '\n' <"$work/restored.listing") | head -20)"
	entries=$(tr -dc '\0' <"$work/restored.listing" | wc -c)
	size=$(find "$to" -type f -printf '%s\n' | awk '{ n += $1 } END { printf "%.0f", n }')
	printf '  %-34s %8s %9s   %-14s %5s\n' "${at[$2]} (#$2)" "$(group "$entries")" "$(human "$size")" 'equal in all' \
		"$(awk -v ms="$took" 'BEGIN { printf "%.1f", ms / 1000 }')"
	rm -rf "$to"
}
restore monday 1
restore tuesday 4
restore wednesday 7
say "" "Equal: every byte (diff -r); every name, kind, mode, owner, size, link and" \
	"time to the nanosecond (find -printf)."

title "5  Looking into the past"
show() { # runs and shows a command, lines cut to the width of a page
	say "\$ secrate $1"
	shift
	"$work/secrate" --progress none "$@" >"$work/out" || fail "secrate $*"
	cut -c 1-76 "$work/out" | sed 's/^/  /'
}
show 'ls home --at "#1"' ls home --at '#1' "${bare[@]}"
say ''
show 'ls home --at latest' ls home --at latest "${bare[@]}"
say ''
show 'cat home:photos/IMG_0600.xmp --at "#1"' cat home:photos/IMG_0600.xmp --at '#1' "${bare[@]}"
cmp -s "$work/out" "$work/mnt/kept/monday/photos/IMG_0600.xmp" || fail "secrate cat: not what was kept"
say ''
show 'verify --read-data --identity stick/secrate.key' verify --read-data "${bare[@]}"
[ -z "$(ls -A "$work/bare")" ] || fail "the bare machine was written to: $(ls -A "$work/bare")"

title "All equal: three states restored byte for byte, after $SECONDS s in all."
