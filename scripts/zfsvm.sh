#!/bin/bash
# Makes and runs the virtual machine with OpenZFS (testenv/zfsvm). What the machine
# lacks for it is installed if this is root on a Debian.
#
#	scripts/zfsvm.sh build              make it, unless it is there: about 7 minutes
#	scripts/zfsvm.sh test [package…]    run the tests that need OpenZFS in it, by default of all packages
#	                                    and of the machine itself
#	scripts/zfsvm.sh shell              a shell in it, beside a pool and an S3 server
#
# ZFS=2.1 takes that version instead of 2.3; other flags: ZFSVM_FLAGS="-memory 4096 -v". For more
# seeds of a test of random trees: ZFSVM_FLAGS="-run TestZFSRandom -arg -zfs-seeds=20", and its package.
set -euo pipefail
cd "$(dirname "$0")/.."
command -v go >/dev/null || PATH=$PATH:/usr/local/go/bin
export PATH

missing=()
command -v qemu-system-x86_64 >/dev/null || missing+=(qemu-system-x86)
command -v debootstrap >/dev/null || missing+=(debootstrap)
if [ ${#missing[@]} -gt 0 ]; then
	if [ "$(id -u)" -eq 0 ] && command -v apt-get >/dev/null; then
		echo "installing ${missing[*]}" >&2
		{ apt-get update && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends "${missing[@]}"; } >&2
	else
		echo "not installed, and not root on a Debian to do it: ${missing[*]}" >&2
	fi
fi

tmp=$(mktemp -d)
trap 'rm -rf "$tmp"' EXIT
go build -o "$tmp/zfsvm" ./testenv/zfsvm/cmd/zfsvm
# shellcheck disable=SC2206 # flags are words
flags=(-zfs "${ZFS:-2.3}" ${ZFSVM_FLAGS:-})
if [ "${1:-}" != test ]; then
	"$tmp/zfsvm" "${flags[@]}" "$@"
	exit
fi
shift
go build -o "$tmp/testsum" ./scripts/testsum
"$tmp/zfsvm" "${flags[@]}" build >/dev/null
{
	if [ $# -eq 0 ]; then # first those of the machine itself; testsum knows how they went
		go test -json -count 1 -tags zfsvm -run '^(TestVM|TestCancel|TestDiesWithParent)$' \
			./testenv/zfsvm -args -zfs "${ZFS:-2.3}" || true
	fi
	"$tmp/zfsvm" "${flags[@]}" test "$@"
} | "$tmp/testsum"
