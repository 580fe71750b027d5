#!/bin/bash
# Measures what ZFS costs. In the virtual machine with OpenZFS it makes a dataset of small
# files, keeps it with secrate snap, edits 10 files, keeps it again, and times that beside
# zfs send of the same change; the machine is emulated and slow, so that only the ratio
# means something. The streams of both snapshots it brings into a history with secrate
# ingest on this machine, with cold caches. Then it measures the parser alone, on streams in
# memory.
#
#   FILES=100000   how many small files
#   SIZE=5500      of so many bytes each, 24000 at most
#   DISK=4096      MiB of the disk for them
#   SNAP=1         whether secrate snap is measured in the machine, where 100,000 files take two
#                  minutes
#   ROUNDS=3       how often the increment is ingested, each time into a history that has
#                  the full one; the median counts
#
# It needs root to drop caches. The machine is made if it is missing: see scripts/zfsvm.sh.
# Everything is made below TMPDIR (/tmp) and taken away at the end. The table goes to
# stdout, what is being done to stderr.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v go >/dev/null || PATH=$PATH:/usr/local/go/bin
export PATH LC_ALL=C
FILES=${FILES:-100000} SIZE=${SIZE:-5500} DISK=${DISK:-4096} SNAP=${SNAP:-1} ROUNDS=${ROUNDS:-3}

fail() {
	printf 'bench-zfs: %s\n' "$*" >&2
	exit 1
}
say() { printf '%5d s  %s\n' "$SECONDS" "$*" >&2; }
[ "$(id -u)" -eq 0 ] || fail "cold caches take root"
[ -x bin/secrate ] || fail "bin/secrate is missing: make"
[ -x /usr/bin/time ] || fail "not installed: time"

work=$(mktemp -d "${TMPDIR:-/tmp}/secrate-bench-zfs-XXXXXX")
trap 'rm -rf "$work"' EXIT

# In the guest: stdout is a tar of the two streams, all else is said on stderr. Its shell is
# busybox, and slow: awk makes the files.
record='set -e
exec 3>&1 1>&2
zpool create -O compression=lz4 -O atime=off tank /dev/vda1
zfs create tank/d
awk -v N='$FILES' "BEGIN {
	srand(7)
	for (k = 0; k < 6000; k++) base = base sprintf(\"%x \", int(rand() * 65536))
	for (d = 0; d < 500; d++) system(sprintf(\"mkdir /tank/d/%03d\", d))
	for (i = 0; i < N; i++) {
		f = sprintf(\"/tank/d/%03d/f%06d\", i % 500, i)
		print i, substr(base, 1 + i % 8000, '$SIZE') > f
		close(f)
	}
}"
sync
zfs snapshot tank/d@1
now() { cut -d" " -f1 /proc/uptime; }
mkdir -p /tmp/o
export SECRATE_CONFIG=/root/config.toml SECRATE_STATE=/root/state
if [ '$SNAP' = 1 ]; then
	secrate init --classic --repo /root/repo --identity-out /root/key >/dev/null
	secrate source add d tank/d
	t=$(now)
	secrate snap --json --progress none >/tmp/o/snap1
	echo "$t $(now)" >/tmp/o/snap1.time
fi
i=0
while [ $i -lt 10 ]; do
	n=$(((i * 9973 + 7) % '$FILES'))
	echo "one more line $i" >>"/tank/d/$(printf %03d $((n % 500)))/f$(printf %06d $n)"
	i=$((i + 1))
done
zfs snapshot tank/d@2
cd /tmp/o
zfs send -L -e -i @1 tank/d@2 >/dev/null
t=$(now)
zfs send -L -e -i @1 tank/d@2 >/dev/null
echo "$t $(now)" >send.time
if [ '$SNAP' = 1 ]; then
	t=$(now)
	secrate snap --json --progress none >snap2
	echo "$t $(now)" >snap2.time
fi
zfs send -L -e -c tank/d@1 >full
zfs send -L -e -c -i @1 tank/d@2 >inc
tar c * >&3'
say "recording a dataset of $FILES files in the virtual machine: some minutes"
CGO_ENABLED=0 go build -trimpath -o "$work/secrate" ./cmd/secrate
ZFSVM_FLAGS="-memory 6144 -disk $DISK -file $work/secrate:/usr/local/bin/secrate" scripts/zfsvm.sh run /bin/sh -c "$record" >"$work/streams.tar"
tar x -C "$work" -f "$work/streams.tar"
rm "$work/streams.tar"

export SECRATE_CONFIG=$work/config.toml SECRATE_STATE=$work/state
unset SECRATE_IDENTITY
# ingest NAME STREAM prints seconds, MiB of memory, bytes uploaded and objects.
ingest() {
	sync
	echo 3 >/proc/sys/vm/drop_caches
	/usr/bin/time -o "$work/time" -f '%e %M' bin/secrate ingest "$1" --json --progress none <"$work/$2" >"$work/out"
	read -r seconds kib <"$work/time"
	printf '%s %d %s %s\n' "$seconds" $((kib / 1024)) "$(sed 's/.*"uploaded_bytes":\([0-9]*\).*/\1/' "$work/out")" \
		"$(sed 's/.*"objects":\([0-9]*\).*/\1/' "$work/out")"
}
bin/secrate init --classic --repo "$work/repo" --identity-out "$work/key" >/dev/null
for ((r = 1; r <= ROUNDS; r++)); do
	bin/secrate source add "d$r" --mode stream >/dev/null
	say "round $r"
	ingest "d$r" full >>"$work/full.txt"
	ingest "d$r" inc >>"$work/inc.txt"
done
median() { sort -n "$1" | awk '{ line[NR] = $0 } END { print line[int((NR + 1) / 2)] }'; }
read -r full_s full_m full_b full_o <<<"$(head -1 "$work/full.txt")"
read -r inc_s inc_m inc_b inc_o <<<"$(median "$work/inc.txt")"

say "the parser alone"
go test ./sendstream/zfs -run '^$' -bench . -benchtime 2s >"$work/bench.txt"

printf '### %s, %s cores, streams of OpenZFS by secrate ingest, cold caches\n\n' "$(date +%F)" "$(nproc)"
printf '| work | figure | |\n|---|---|---:|\n'
printf '| full stream, %s files, %s bytes | time (s) | %s |\n' "$FILES" "$(stat -c %s "$work/full")" "$full_s"
printf '| | peak memory (MiB) | %s |\n| | uploaded (bytes) | %s |\n| | objects | %s |\n' "$full_m" "$full_b" "$full_o"
printf '| increment, 10 files edited, %s bytes | time (s) | %s |\n' "$(stat -c %s "$work/inc")" "$inc_s"
printf '| | peak memory (MiB) | %s |\n| | uploaded (bytes) | %s |\n| | objects | %s |\n' "$inc_m" "$inc_b" "$inc_o"
took() { awk '{ printf "%.2f", $2 - $1 }' "$work/$1.time"; }
of() { sed "s/.*\"$2\":\([0-9]*\).*/\1/" "$work/$1"; }
[ "$SNAP" = 1 ] || { echo && exit; }
printf '| secrate snap in the machine | first snapshot (s) | %s |\n' "$(took snap1)"
printf '| | the same increment (s) | %s |\n| | zfs send of it (s) | %s |\n' "$(took snap2)" "$(took send)"
printf '| | uploaded (bytes) | %s |\n| | objects | %s |\n\n' "$(of snap2 uploaded_bytes)" "$(of snap2 objects)"
grep -E '^Benchmark' "$work/bench.txt"
