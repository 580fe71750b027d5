#!/bin/bash
# Measures secrate beside restic and borg, in one run, on the same data, each with a
# local repository of its own, with cold caches before every step; then says which
# of the figures that secrate is to reach were reached.
#
#   FILES=100000   how many small files the first tree has
#   ROUNDS=3       how often the short steps are repeated; the median counts
#   QUICK=1        small sizes, to see in some minutes that all of it works
#   ONLY="a b c d e f"  which parts: small files, a large image, a tree of programs; a file of
#                  a directory that is scanned, beside rdiff; scans of an ordinary directory on
#                  ext4; the daemon
#   SCAN=1000000   how many files part e has; with FLAT=1 also as many in one directory
#   DIRS=100000    how many directories part f has
#   TOOLS="secrate restic borg"
#
# It needs root, for the Btrfs volume on a loop device and to drop caches. Everything
# is made below TMPDIR (/tmp) and taken away at the end, also after Ctrl-C. The
# tables go to stdout, what is being done to stderr.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v go >/dev/null || PATH=$PATH:/usr/local/go/bin
export PATH LC_ALL=C

if [ -n "${QUICK:-}" ]; then
	FILES=${FILES:-3000} SCAN=${SCAN:-30000} DIRS=${DIRS:-3000} IMAGE=${IMAGE:-64} ROUNDS=${ROUNDS:-1}
fi
FILES=${FILES:-100000} SCAN=${SCAN:-1000000} DIRS=${DIRS:-100000} IMAGE=${IMAGE:-1024} ROUNDS=${ROUNDS:-3} ONLY=${ONLY:-a b c d e f}
read -ra tools <<<"${TOOLS:-secrate restic borg}"

fail() {
	printf 'bench: %s\n' "$*" >&2
	exit 1
}
say() { printf '%5d s  %s\n' "$SECONDS" "$*" >&2; }

# rdiff is to be compared with: where it is missing and cannot be had, part d is left out.
if [[ " $ONLY " = *" d "* ]] && ! command -v rdiff >/dev/null &&
	! { command -v apt-get >/dev/null && apt-get install -y --no-install-recommends rdiff; } >&2; then
	say "rdiff is missing: no part d"
	ONLY=" $ONLY " ONLY=${ONLY/ d / }
fi

[ "$(id -u)" -eq 0 ] || fail "a Btrfs volume and cold caches take root"
[ -x bin/secrate ] || fail "bin/secrate is missing: make"

declare -A package=([mkfs.btrfs]=btrfs-progs [restic]=restic [borg]=borgbackup [/usr/bin/time]=time)
missing=()
for c in mkfs.btrfs /usr/bin/time "${tools[@]}"; do
	[ "$c" = secrate ] || command -v "$c" >/dev/null || missing+=("${package[$c]}")
done
if [ ${#missing[@]} -gt 0 ]; then
	command -v apt-get >/dev/null || fail "not installed: ${missing[*]}"
	say "apt-get install ${missing[*]}"
	{ apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"; } >&2
fi

# ---- A directory, a volume, and the end of both ---------------------------------

work=$(mktemp -d "${TMPDIR:-/tmp}/secrate-bench-XXXXXX")
mnt=$work/mnt ext=$work/ext children=()
cleanup() {
	local status=$?
	trap - EXIT
	for pid in "${children[@]+"${children[@]}"}"; do
		kill "$pid" 2>/dev/null || true
		wait "$pid" 2>/dev/null || true
	done
	for m in "$mnt" "$ext"; do
		if mountpoint -q "$m"; then
			umount "$m" 2>/dev/null || umount -l "$m"
		fi
	done
	rm -rf --one-file-system "$work"
	exit "$status"
}
trap cleanup EXIT
trap 'exit 130' INT
trap 'exit 143' TERM HUP

# Small files take 7 kB each, twice with a restored tree; three repositories hold half.
need=$((FILES * 7 / 1000 * 4 + IMAGE * 5 + 2500))
# Of the tiny ones a block each, twice, and what two repositories and the catalog have of them.
[[ " $ONLY " != *" f "* ]] || need=$((need + DIRS * 6 / 1000))
[[ " $ONLY " != *" e "* ]] || need=$((need + SCAN * 13 / 1000))
free=$(df -Pk "$work" | awk 'NR == 2 { print int($4 / 1024) }')
[ "$free" -ge "$need" ] || fail "$work has $free MiB free, some $need are needed; set TMPDIR to another place"

# What is measured is what was there at the start, whoever builds in the meantime.
cp bin/secrate "$work/secrate"
go build -buildvcs=false -trimpath -o "$work/benchdata" ./scripts/benchdata
benchdata() { "$work/benchdata" "$@"; }
[[ " ${tools[*]} $ONLY " != *" secrate "*" a "* ]] || go build -buildvcs=false -trimpath -o "$work/s3serve" ./testenv/s3test/s3serve
mkdir "$mnt"
truncate -s $((need * 2))M "$work/volume"
mkfs.btrfs -q "$work/volume" >/dev/null 2>&1
mount -o loop,noatime "$work/volume" "$mnt"

# ---- The tools ------------------------------------------------------------------

# Nothing of the user's is read or written: no configuration, no cache, no keys.
user_home=$HOME
export HOME=$work/home
export RESTIC_PASSWORD=bench BORG_PASSPHRASE=bench BORG_RELOCATED_REPO_ACCESS_IS_OK=yes
mkdir -p "$HOME"
unset SECRATE_IDENTITY RESTIC_REPOSITORY RESTIC_PASSWORD_FILE BORG_REPO

# begin PART makes empty repositories for a part of the benchmark, whose tree is the
# subvolume $src, or what there is at $ext.
begin() {
	part=$1 src=$mnt/$1 base=$work/$1
	mkdir "$base"
	if [ -d "$ext/$1" ]; then
		src=$ext/$1
	else
		btrfs subvolume create "$src" >/dev/null
	fi
	bare=$base/bare number=0
	for t in "${tools[@]}"; do
		case $t in
		secrate)
			export SECRATE_CONFIG=$base/config.toml SECRATE_STATE=$base/state
			"$work/secrate" init --classic --repo "$base/secrate" --identity-out "$base/key" >/dev/null
			"$work/secrate" source add src "$src" >/dev/null
			;;
		restic) restic -q init --repository-version 2 -r "$base/restic" >/dev/null ;;
		borg)
			export BORG_BASE_DIR=$base/borg-home
			borg init --encryption repokey-blake2 "$base/borg" >/dev/null 2>&1
			;;
		esac
	done
}
end() { # takes away what a part has left, so that the next has room
	local d
	for d in "$src"/.secrate/* "$src"/.secrate "$src"; do
		# The root of a subvolume has inode 256.
		[ "$(stat -c %i "$d" 2>/dev/null)" != 256 ] || btrfs subvolume delete "$d" >/dev/null
	done
	rm -rf "$base"
	btrfs subvolume sync "$mnt" >/dev/null
}

backup() { # tool: the command that records a state, in "${cmd[@]}"
	case $1 in
	secrate) cmd=("$work/secrate" --progress none snap src) ;;
	restic) cmd=(restic -q -r "$base/restic" --cache-dir "$base/restic-cache" backup --exclude .secrate "$src") ;;
	borg) cmd=(borg create --compression zstd,3 --exclude '*/.secrate' "$base/borg::$number" "$src") ;;
	esac
}
restore() { # tool, directory, path in the tree or nothing: as on a machine that has no cache and no state
	local path=${3:+/$3}
	rm -rf "$bare"
	mkdir -p "$bare" "$2"
	case $1 in
	secrate) cmd=(env "SECRATE_STATE=$bare/state" "SECRATE_CONFIG=$bare/config" "$work/secrate" --progress none restore
		--repo "$base/secrate" --identity "$base/key" --at latest --to "$2" "src${3:+:$3}") ;;
	restic) cmd=(restic -q -r "$base/restic" --cache-dir "$bare/cache" restore latest --target "$2" --include "$src$path") ;;
	borg) cmd=(env -C "$2" "BORG_BASE_DIR=$bare/borg" borg extract "$base/borg::$number" "${src#/}$path") ;;
	esac
}
list() { # tool, directory in the tree
	rm -rf "$bare"
	mkdir -p "$bare"
	case $1 in
	secrate) cmd=(env "SECRATE_STATE=$bare/state" "SECRATE_CONFIG=$bare/config" "$work/secrate" ls
		--repo "$base/secrate" --identity "$base/key" "src:$2") ;;
	restic) cmd=(restic -q -r "$base/restic" --cache-dir "$bare/cache" ls latest "$src/$2") ;;
	borg) cmd=(env "BORG_BASE_DIR=$bare/borg" borg list "$base/borg::$number" "${src#/}/$2") ;;
	esac
}

# ---- Measuring --------------------------------------------------------------------

# A result is a line of "work|figure|unit|tool|value" in $results. Of several values
# for one the median counts, of memory the greatest.
results=$work/results
: >"$results"
record() { printf '%s|%s|%s|%s|%s\n' "$@" >>"$results"; }

size() { find "$1" -type f -printf '%s\n' 2>/dev/null | awk '{ n += $1 } END { printf "%.0f %d\n", n, NR }'; }

timed() { # work, figure, tool: runs "${cmd[@]}" with cold caches, but if warm is set
	if [ -z "${warm:-}" ]; then
		sync
		echo 3 >/proc/sys/vm/drop_caches
	fi
	/usr/bin/time -q -f '%e %M' -o "$work/time" "${cmd[@]}" >"$work/out" 2>&1 ||
		fail "$3, $1: ${cmd[*]}"$'\n'"$(tail -20 "$work/out")"
	local seconds kib
	read -r seconds kib <"$work/time"
	record "$1" "$2" s "$3" "$seconds"
	record "peak memory" "$part: ${4:-$2}" MiB "$3" "$((kib / 1024))"
}
measure() { # work: every tool records the present state of the tree
	local t before after
	number=$((number + 1))
	for t in "${tools[@]}"; do
		say "$1: $t"
		before=$(size "$base/$t")
		backup "$t"
		timed "$1" "${2:-time}" "$t" "${3:-increments}"
		after=$(size "$base/$t")
		if [ "${3:-}" = first ]; then
			record "$1" repository MB "$t" "$(awk -v n="${after% *}" 'BEGIN { printf "%.1f", n / 1e6 }')"
		elif [ "${3:-}" != nothing ]; then
			record "$1" uploaded bytes "$t" $((${after% *} - ${before% *}))
			record "$1" objects "" "$t" $((${after#* } - ${before#* }))
		fi
	done
}
first() { measure "$1" "first snapshot" first; }
all() { # work: every tool restores everything; what secrate restored is compared
	local t to=$mnt/restored
	for t in "${tools[@]}"; do
		say "$1, restore everything: $t"
		restore "$t" "$to"
		timed "$1" "restore of everything" "$t" restore
		if [ "$t" = secrate ]; then
			diff -r --no-dereference --exclude .secrate "$src" "$to" >"$work/diff" 2>&1 ||
				fail "$1: what was restored differs:"$'\n'"$(head "$work/diff")"
		fi
		rm -rf "$to"
	done
}

# ---- The parts ---------------------------------------------------------------------

say "$(nproc) cores; ${tools[*]}; $FILES files, an image of $IMAGE MiB"

if [[ " $ONLY " = *" a "* ]]; then
	begin a
	say "making $FILES small files"
	benchdata small "$src" "$FILES"
	name="$FILES small files"
	first "$name"
	for r in $(seq "$ROUNDS"); do
		measure "nothing changed" time nothing
		benchdata edit "$src" 10 "$r"
		measure "10 files edited"
	done
	benchdata insert "$src" 200 11
	benchdata rename "$src" 50 13
	measure "a line inserted in 200 files (in place), 50 renamed"
	benchdata save "$src" 200 17
	benchdata rename "$src" 50 19
	measure "a line inserted in 200 files (saved as editors do), 50 renamed"
	dir=$src/d000
	[ -d "$src/d001" ] && dir=$src/d001
	n=$(find "$dir" -type f | wc -l)
	mv "$dir" "$dir-renamed"
	measure "a directory of $n files renamed"
	all "$name"
	some=$(cd "$src" && find d000* -type f | sort | sed -n 42p)
	for t in "${tools[@]}"; do
		say "restore of one file: $t"
		restore "$t" "$mnt/one" "$some"
		timed "$name" "restore of one file" "$t" restore
		find "$mnt/one" -type f -exec cmp -s "$src/$some" {} \; -print | grep -q . || fail "$t: $some is not what it was"
		rm -rf "$mnt/one"
		say "ls on a bare machine: $t"
		list "$t" "$(dirname "$some")"
		timed "$name" "ls of a directory, bare machine" "$t" restore
	done

	# The same from an S3 server, with a counter of requests before it.
	if [[ " ${tools[*]} " = *" secrate "* ]]; then
		say "counting GETs: an S3 server (its first build takes minutes)"
		: >"$work/s3.env"
		HOME=$user_home "$work/s3serve" -dir "$work/s3" >"$work/s3.env" 2>"$work/s3.log" &
		children+=($!)
		until grep -q SECRATE_DEMO_URL "$work/s3.env"; do
			kill -0 "${children[0]}" 2>/dev/null || fail "the S3 server: $(cat "$work/s3.log")"
			sleep 0.2
		done
		# shellcheck disable=SC1091 # written by s3serve
		. "$work/s3.env"
		mkdir -p "$work/s3/data/secrate-test"
		cp -a "$base/secrate" "$work/s3/data/secrate-test/bench"
		endpoint=$(sed 's/.*endpoint=\([^&]*\).*/\1/; s/%3A/:/g; s/%2F/\//g' <<<"$SECRATE_DEMO_URL")
		"$work/benchdata" count "$endpoint" "$work/requests" >"$work/counter" &
		children+=($!)
		until [ -s "$work/counter" ]; do sleep 0.1; done
		url="s3://secrate-test/bench?endpoint=$(cat "$work/counter")&region=us-east-1"
		gets() { grep -c "^GET .*/bench/$1" "$work/requests" || true; }
		: >"$work/requests"
		"$work/secrate" ls --repo "$url" --identity "$base/key" "src:$(dirname "$some")" >/dev/null
		record "$name" "ls on a bare machine: GETs of data" "" secrate "$(gets packs/)"
		record "$name" "ls on a bare machine: GETs of metadata" "" secrate "$(gets meta)"
		: >"$work/requests"
		"$work/secrate" --progress none restore --repo "$url" --identity "$base/key" --at latest --to "$work/one" "src:$some" >/dev/null
		cmp -s "$src/$some" "$work/one/$(basename "$some")" || fail "from S3: $some is not what it was"
		record "$name" "one file restored: GETs of data" "" secrate "$(gets packs/)"
		for pid in "${children[@]}"; do
			kill "$pid" && wait "$pid" 2>/dev/null || true
		done
		children=()
		rm -rf "$work/s3"
	fi
	end
fi

if [[ " $ONLY " = *" b "* ]]; then
	begin b
	say "making an image of $IMAGE MiB"
	benchdata image "$src/image" "$IMAGE"
	name="image of $IMAGE MiB"
	first "$name"
	benchdata byte "$src/image"
	measure "1 byte changed in the image"
	benchdata scatter "$src/image" 100
	measure "100 writes of 64 random bytes in the image"
	all "$name"
	end
fi

if [[ " $ONLY " = *" c "* ]]; then
	begin c
	trees=(/usr/lib/python3 /usr/share/doc /usr/share/perl /usr/lib/git-core /usr/include)
	[ -z "${QUICK:-}" ] || trees=(/usr/share/perl /usr/lib/git-core)
	for d in "${trees[@]}"; do
		[ ! -d "$d" ] || cp -a "$d" "$src/"
	done
	name="programs and documents, $(size "$src" | awk '{ printf "%.0f MB", $1 / 1e6 }')"
	first "$name"
	all "$name"
	end
fi

# A row of part d: work, figure, secrate, rdiff, and what rdiff is to be multiplied with to be
# the most that secrate may have.
rolled() { printf '%s|%s|%s|%s|%s\n' "$@" >>"$work/rolling"; }
clock() { # command: runs it with cold caches and leaves its seconds in $seconds, its peak in $kib
	sync
	echo 3 >/proc/sys/vm/drop_caches
	/usr/bin/time -q -f '%e %M' -o "$work/time" "$@" >"$work/out" 2>&1 || fail "$*"$'\n'"$(tail -20 "$work/out")"
	read -r seconds kib <"$work/time"
}
median() { sort -n | awk '{ v[NR] = $1 } END { print v[int((NR + 1) / 2)] }'; }

if [[ " $ONLY " = *" d "* ]]; then
	base=$work/d
	mkdir "$base" "$base/src"
	export SECRATE_CONFIG=$base/config.toml SECRATE_STATE=$base/state
	"$work/secrate" init --classic --repo "$base/secrate" --identity-out "$base/key" >/dev/null
	"$work/secrate" source add src "$base/src" >/dev/null
	say "making a dump of $IMAGE MiB"
	benchdata dump "$base/src/dump" "$IMAGE"
	block=4096 # as package rolling chooses it
	while [ $((block * block)) -lt $((IMAGE << 20)) ]; do block=$((block * 2)); done
	snap=("$work/secrate" --progress none snap src)
	say "first snapshot"
	clock "${snap[@]}"
	rolled "a dump of $IMAGE MiB" "first snapshot (s)" "$seconds" - -
	for lines in 1 100; do
		name="a line inserted at the front"
		[ $lines = 1 ] || name="$lines lines inserted, spread over it"
		for r in $(seq "$ROUNDS"); do
			say "$name, round $r"
			ln "$base/src/dump" "$base/old"
			cp "$base/src/dump" "$base/src/dump~"
			benchdata lines "$base/src/dump~" $lines
			mv "$base/src/dump~" "$base/src/dump"
			before=$(size "$base/secrate")
			clock "${snap[@]}"
			after=$(size "$base/secrate")
			echo "$seconds" >>"$base/s$lines"
			echo $((kib / 1024)) >>"$base/m$lines"
			echo $((${after% *} - ${before% *})) >>"$base/u$lines"
			rm -f "$base/sig" "$base/delta"
			clock rdiff -b "$block" signature "$base/old" "$base/sig"
			once=$seconds
			clock rdiff -b "$block" delta "$base/sig" "$base/src/dump" "$base/delta"
			awk -v a="$once" -v b="$seconds" 'BEGIN { print a + b }' >>"$base/rs$lines"
			stat -c %s "$base/delta" >>"$base/rd$lines"
			stat -c %s "$base/sig" >>"$base/rg$lines"
			rm "$base/old"
		done
		rolled "$name" "uploaded, beside rdiff's delta (bytes)" "$(median <"$base/u$lines")" "$(median <"$base/rd$lines")" 1.5
		rolled "$name" "the same, beside its signature, too" "$(median <"$base/u$lines")" \
			$(($(median <"$base/rd$lines") + $(median <"$base/rg$lines"))) 1.5
		rolled "$name" "secrate snap, beside signature and delta (s)" "$(median <"$base/s$lines")" "$(median <"$base/rs$lines")" 1
		rolled "$name" "peak memory (MiB)" "$(sort -n "$base/m$lines" | tail -1)" - -
	done
	"$work/secrate" --progress none restore --identity "$base/key" --at latest --to "$base/restored" src >/dev/null
	cmp "$base/src/dump" "$base/restored/dump" || fail "what was restored of the dump differs"
	rm -rf "$base"
	printf '### Rolling deltas: %s, %s, blocks of %s bytes, cold caches\n\n' "$(date -u +%Y-%m-%d)" "$(rdiff --version | sed -n 's/^rdiff (\(.*\))/\1/p')" "$block"
	printf '| work | figure | secrate | rdiff | |\n|---|---|---:|---:|---|\n'
	awk -F '|' '{ printf "| %s | %s | %s | %s | %s |\n", $1, $2, $3, $4, $5 == "-" ? "" : "at most " $5 " times: " ($3 <= $4 * $5 ? "met" : "**not met**") }' "$work/rolling"
	echo
fi

if [[ " $ONLY " = *" e "* ]]; then
	number=0
	mkdir "$ext"
	truncate -s $((SCAN * 9 / 1000 + 1000))M "$work/ext4"
	mkfs.ext4 -q -F -N $((SCAN * 2 + SCAN / 10)) "$work/ext4"
	mount -o loop,noatime "$work/ext4" "$ext"
	scan() { # figure, tool
		say "$what, $1: $2"
		number=$((number + 1))
		backup "$2"
		timed "$what" "$1" "$2"
	}
	for part in deep ${FLAT:+flat}; do
		src=$ext/$part base=$work/$part what="$SCAN files, a hundred in a directory"
		[ "$part" = deep ] || what="$SCAN files in one directory"
		mkdir "$src"
		say "making $what"
		benchdata "$([ "$part" = deep ] && echo tiny || echo flat)" "$src" "$SCAN"
		begin "$part"
		for t in "${tools[@]}"; do
			scan "first snapshot" "$t"
			scan "nothing changed, cold caches" "$t"
			find "$src" -size +1G # brings all inodes back
			warm=1
			for _ in $(seq "$ROUNDS"); do
				scan "nothing changed, warm caches" "$t"
			done
			warm=
		done
		find "$src" -type f -delete
		for t in "${tools[@]}"; do
			scan "all files deleted" "$t"
		done
		rm -rf "$base"
	done
	umount "$ext"
fi

# The daemon of part f, which watches $base/src, and what it used until now.
cpu() { awk '{ print $14 + $15 }' "/proc/$daemon/stat"; } # clock ticks, 100 a second
resident() { awk '/^VmRSS/ { print int($2 / 1024) }' "/proc/$daemon/status"; }
told() { "$work/secrate" status --json | grep -q "$1"; }
snapshots() { find "$base/secrate/meta" -type f | wc -l; }

if [[ " $ONLY " = *" f "* ]]; then
	base=$work/f
	mkdir -p "$base" "$ext"
	rm -f "$work/ext4"
	truncate -s $((DIRS * 6 / 1000 + 200))M "$work/ext4"
	mkfs.ext4 -q -F -N $((DIRS + DIRS / 10 + 1000)) "$work/ext4"
	mount -o loop,noatime "$work/ext4" "$ext"
	say "making $DIRS directories"
	mkdir "$ext/src"
	(cd "$ext/src" && seq "$((DIRS / 100))" | xargs -I{} sh -c 'mkdir {} && cd {} && mkdir $(seq 99)')
	export SECRATE_CONFIG=$base/config.toml SECRATE_STATE=$base/state
	"$work/secrate" init --classic --repo "$base/secrate" --identity-out "$base/key" >/dev/null
	"$work/secrate" source add src "$ext/src" --mode files --watch --settle 1s --schedule none >/dev/null
	"$work/secrate" daemon >"$base/log" 2>&1 &
	daemon=$!
	children+=("$daemon")
	say "watching begins"
	until told '"watching":true' && told '"waiting":0' && ! told '"oldest"' && [ "$(snapshots)" -gt 0 ]; do
		kill -0 "$daemon" || fail "$(cat "$base/log")"
		sleep 0.5
	done
	watched=$("$work/secrate" status --json | sed -n 's/.*"directories":\([0-9]*\).*/\1/p')
	say "$watched directories are watched; idle for a minute"
	sleep 60 # what was begun comes to rest
	before=$(cpu)
	sleep 60
	after=$(cpu)
	idle=$(resident)
	for r in $(seq "$((ROUNDS * 3))"); do
		n=$(snapshots)
		began=$(date +%s%N)
		echo "$r" >"$ext/src/1/1/file"
		until [ "$(snapshots)" -ge $((n + 1)) ]; do sleep 0.01; done
		echo $((($(date +%s%N) - began) / 1000000)) >>"$base/latency"
		sleep 2
	done
	kill "$daemon"
	wait "$daemon" || true
	umount "$ext"
	printf '### The daemon: %s, %s directories watched on ext4, settle time 1 s\n\n| figure | | |\n|---|---:|---|\n' "$(date -u +%Y-%m-%d)" "$watched"
	awk -v t="$((after - before))" 'BEGIN { printf "| processor when idle (%% of a core, a minute) | %.3f | under 0.1: %s |\n", t / 60, t / 60 < 0.1 ? "met" : "**not met**" }'
	printf '| memory when idle (MiB) | %s | at most 60: %s |\n' "$idle" "$([ "$idle" -le 60 ] && echo met || echo '**not met**')"
	worst=$(sort -n "$base/latency" | tail -1)
	printf '| from a change to its manifest in the repository (ms), median and worst of %s | %s, %s | at most 3000: %s |\n\n' "$((ROUNDS * 3))" \
		"$(median <"$base/latency")" "$worst" "$([ "$worst" -le 3000 ] && echo met || echo '**not met**')"
	rm -rf "$base"
fi

# ---- The tables --------------------------------------------------------------------

[ -s "$results" ] || exit 0

printf '### %s\n\n' "$(date -u +%Y-%m-%d), $(nproc) cores, Btrfs on a loop device, cold caches, local repositories"
printf 'secrate %s' "$("$work/secrate" version | sed -n '1s/^secrate \([^,]*\).*/\1/p')"
[[ " ${tools[*]} " != *" restic "* ]] || printf ', %s' "$(restic version | cut -d' ' -f1,2)"
[[ " ${tools[*]} " != *" borg "* ]] || printf ', %s (zstd,3)' "$(borg --version)"
printf '. secrate with one X25519 recipient. Times are medians of %s where a step is repeated.\n' "$ROUNDS"
printf 'ratio: the best of the others by secrate; more than 1 means that secrate needs less.\n\n'
[ -z "${QUICK:-}" ] || printf 'QUICK: the sizes are too small for the figures to mean much.\n\n'

awk -F '|' -v files="$FILES" -v image="$IMAGE" '
	# The median of what was measured, or the greatest of memory.
	function value(key, tool,    n, i, j, t, v) {
		n = split(seen[key, tool], v, " ")
		for (i = 2; i <= n; i++)
			for (j = i; j > 1 && v[j] + 0 < v[j-1] + 0; j--) { t = v[j]; v[j] = v[j-1]; v[j-1] = t }
		return n == 0 ? "" : v[key ~ /^peak memory/ ? n : int((n + 1) / 2)]
	}
	function best(key,    r, b) {
		r = value(key, "restic"); b = value(key, "borg")
		if (r == "") return b
		return b == "" || r + 0 < b + 0 ? r : b
	}
	function group(n,    s) { # 12345678 as 12,345,678
		if (n !~ /^-?[0-9]+$/) return n
		while (length(n) > 3) { s = "," substr(n, length(n) - 2) s; n = substr(n, 1, length(n) - 3) }
		return n s
	}
	function cell(v) { return v == "" ? "-" : group(v) }
	function over(a, b) { return a == "" || b == "" ? "" : b + 0 == 0 ? "-" : sprintf("%.*f", a / b < 10 ? 2 : 0, a / b) }
	function target(what, got, limit, least, unit) {
		if (got == "" || got == "-") { printf "| %s | not measured | |\n", what; return }
		printf "| %s | %s%s | %s |\n", what, group(got), unit, (least ? got + 0 >= limit : got + 0 <= limit) ? "met" : "**not met**"
	}
	{
		key = $1 "|" $2 "|" $3
		if (!(key in known)) { known[key]; order[++keys] = key }
		seen[key, $4] = seen[key, $4] " " $5
		if ($2 == "first snapshot" && $3 == "s") work[++works] = $1
		if ($1 ~ /^a directory of/) renamed = $1
		if ($1 ~ /^programs/) programs = $1
	}
	END {
		print "| work | figure | secrate | restic | borg | ratio |"
		print "|---|---|---:|---:|---:|---:|"
		for (pass = 0; pass < 2; pass++)
			for (i = 1; i <= keys; i++) {
				key = order[i]
				if ((key ~ /^peak memory/) != pass) continue
				split(key, k, "|")
				printf "| %s | %s%s | %s | %s | %s | %s |\n", k[1], k[2], k[3] == "" ? "" : " (" k[3] ")",
					cell(value(key, "secrate")), cell(value(key, "restic")), cell(value(key, "borg")), over(best(key), value(key, "secrate"))
			}
		print ""
		print "| to be reached | measured | |"
		print "|---|---:|---|"
		small = files " small files"
		e = "10 files edited|"
		times = files >= 1000000 ? 50 : 10
		target("10 files edited: at least " times " times faster than restic", over(value(e "time|s", "restic"), value(e "time|s", "secrate")), times, 1, " times")
		target("10 files edited: at most 16 KiB uploaded", value(e "uploaded|bytes", "secrate"), 16384, 0, " bytes")
		target("10 files edited: in at most 4 objects", value(e "objects|", "secrate"), 4, 0, "")
		target("1 byte changed in the image: at most 2 KiB uploaded", value("1 byte changed in the image|uploaded|bytes", "secrate"), 2048, 0, " bytes")
		target("100 writes of 64 random bytes: at most 16 KiB", value("100 writes of 64 random bytes in the image|uploaded|bytes", "secrate"), 16384, 0, " bytes")
		for (i = 1; i <= keys; i++)
			if (order[i] ~ /^a line inserted.*uploaded/) {
				split(order[i], k, "|")
				target(k[1] ": at most 48 KiB", value(order[i], "secrate"), 49152, 0, " bytes")
			}
		target(renamed ": at most 2 KiB", value(renamed "|uploaded|bytes", "secrate"), 2048, 0, " bytes")
		n = 0; split("", done)
		for (i = 1; i <= works; i++) {
			if (work[i] in done) continue
			done[work[i]]
			key = work[i] "|first snapshot|s"
			target("first snapshot, " work[i] ": not slower than the faster of the others", over(best(key), value(key, "secrate")), 1, 1, " times as fast")
		}
		key = programs "|repository|MB"
		target("repository, " programs ": at least 10 % smaller than the smallest of the others",
			best(key) == "" ? "" : sprintf("%.1f", 100 - 100 * value(key, "secrate") / best(key)), 10, 1, " % smaller")
		split("", done)
		for (i = 1; i <= works; i++) {
			if (work[i] in done) continue
			done[work[i]]
			key = work[i] "|restore of everything|s"
			if (key in known) target("restore of everything, " work[i] ": not slower than restic", over(value(key, "restic"), value(key, "secrate")), 1, 1, " times as fast")
		}
		split("", done)
		for (i = 1; i <= works; i++) {
			key = work[i] "|nothing changed, warm caches|s"
			if ((key in known) && !(key in done))
				target("scan of " work[i] ", nothing changed: at least 3 times faster than restic", over(value(key, "restic"), value(key, "secrate")), 3, 1, " times")
			done[key]
		}
		target("one file restored: at most 3 GETs of data", value(small "|one file restored: GETs of data|", "secrate"), 3, 0, "")
		target("ls on a bare machine: reads metadata only, GETs of data", value(small "|ls on a bare machine: GETs of data|", "secrate"), 0, 0, "")
		peak = ""
		for (i = 1; i <= keys; i++)
			if (order[i] ~ /^peak memory/ && value(order[i], "secrate") + 0 > peak + 0) peak = value(order[i], "secrate")
		target("peak memory over all (" files " files; the target is for 1,000,000): at most 200 MiB", peak, 200, 0, " MiB")
	}' "$results"
say "done"
