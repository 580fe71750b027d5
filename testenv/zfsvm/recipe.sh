#!/bin/bash
# Makes the directory $root a Debian with a kernel and OpenZFS, of which the image
# is packed. It runs as root, as the first process of namespaces of its own for
# processes and mounts: when it is killed, nothing of it goes on or stays mounted.
# Output is a log; what a person should see goes to descriptor 3.
#
#	root       directory to make, which is empty
#	suite      of Debian
#	zfs_suite  where OpenZFS comes from
#	mirror     of Debian's archive; security is that of its updates, if there is one
#	keyring    that the archive is signed with, if it is not the usual one
#	trusted    is "yes" where the machine's own sources are not checked
#	packages   to have beside kernel and OpenZFS
set -euo pipefail
export DEBIAN_FRONTEND=noninteractive LC_ALL=C
# shellcheck disable=SC2154 # all come from the environment
: "$root" "$suite" "$zfs_suite" "$mirror" "$security" "$keyring" "$trusted" "$packages"

say() { echo "$*" >&3; }
inside() {
	chroot "$root" /usr/bin/env -i PATH=/usr/sbin:/usr/bin:/sbin:/bin HOME=/root LC_ALL=C DEBIAN_FRONTEND=noninteractive \
		"http_proxy=${http_proxy:-}" "https_proxy=${https_proxy:-}" "no_proxy=${no_proxy:-}" "$@"
}
install() { inside apt-get install -y -q --no-install-recommends "$@"; }

mount --make-rprivate /
mount -t proc proc /proc # of this namespace

say "1/4 Debian $suite, about 1 min"
check=()
[ -z "$keyring" ] || check=(--keyring "$keyring")
[ "$trusted" != yes ] || check=(--no-check-gpg)
include=()
case $mirror in https:*) include=(--include=ca-certificates) ;; esac
if [ -z "${http_proxy:-}" ]; then # debootstrap fetches by wget, which does not read apt's settings
	eval "$(apt-config shell http_proxy Acquire::http::Proxy https_proxy Acquire::https::Proxy)"
	export http_proxy https_proxy
fi
debootstrap --variant=minbase "${check[@]}" "${include[@]}" "$suite" "$root" "$mirror"

mount -t proc proc "$root/proc"
cp /etc/hosts "$root/etc/hosts"
if [ -s /etc/ssl/certs/ca-certificates.crt ] && [ -d "$root/etc/ssl/certs" ]; then
	cp -L /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
fi
# How this machine fetches, it fetches there too: proxies, certificates, checks.
apt-config dump 'Acquire' | grep -E '^Acquire::(http|https|Retries|ForceIPv|Check-|Allow)' \
	>"$root/etc/apt/apt.conf.d/10host" || true
printf 'force-unsafe-io\npath-exclude=/usr/share/man/*\npath-exclude=/usr/share/locale/*\n' \
	>"$root/etc/dpkg/dpkg.cfg.d/10fast"
printf '#!/bin/sh\nexit 101\n' >"$root/usr/sbin/policy-rc.d" # start no services
chmod 755 "$root/usr/sbin/policy-rc.d"

options=
if [ "$trusted" = yes ]; then
	options='[trusted=yes] '
elif [ -n "$keyring" ]; then
	cp -L "$keyring" "$root/etc/apt/keyrings/host.${keyring##*.}"
	options="[signed-by=/etc/apt/keyrings/host.${keyring##*.}] "
fi
{
	echo "deb $options$mirror $suite main contrib"
	[ "$zfs_suite" = "$suite" ] || echo "deb $options$mirror $zfs_suite main contrib"
	[ -z "$security" ] || echo "deb $options$security $suite-security main contrib"
} >"$root/etc/apt/sources.list"
inside apt-get update -q

say "2/4 kernel and tools, about 1 min"
# shellcheck disable=SC2086 # a list
install linux-image-cloud-amd64 linux-headers-cloud-amd64 $packages

say "3/4 OpenZFS of $zfs_suite, compiled for that kernel: about 5 min"
install -t "$zfs_suite" zfs-dkms zfsutils-linux
