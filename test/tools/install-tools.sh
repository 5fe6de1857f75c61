#!/usr/bin/env bash
# Installs from Debian what the tests drive the pair with, and is missing: quick and silent if nothing is.
# A test whose tool is missing fails; none is ever skipped.
set -euo pipefail

# Where Debian keeps nbd-client; not in the PATH of everybody.
PATH=$PATH:/usr/sbin:/sbin

# The program, and the Debian package that has it.
TOOLS='
qemu-img             qemu-utils
qemu-io              qemu-utils
qemu-nbd             qemu-utils
qemu-storage-daemon  qemu-system-common
qemu-system-x86_64   qemu-system-x86
nbdinfo              libnbd-bin
nbdcopy              libnbd-bin
nbdfuse              libnbd-bin
fusermount3          fuse3
nbdkit               nbdkit
fio                  fio
nbd-client           nbd-client
nbd-server           nbd-server
openssl              openssl
busybox              busybox-static
mke2fs               e2fsprogs
socat                socat
'

# Prints the packages of the programs that are not there, each once.
missing_packages() {
  while read -r program package; do
    if [ -n "$program" ] && ! command -v "$program" >/dev/null; then echo "$package"; fi
  done <<<"$TOOLS" | sort -u | paste -sd ' '
}

fail() {
  echo "install-tools: $1; install the Debian packages $packages yourself and try again" >&2
  exit 1
}

# The guests' kernel is not installed but kept aside.
fetch_kernel() {
  bash "$(dirname "$0")/guest/fetch-kernel.sh"
}

packages=$(missing_packages)
if [ -z "$packages" ]; then
  fetch_kernel
  exit
fi

command -v apt-get >/dev/null || fail "there is no apt-get here"
as_root=()
if [ "$(id -u)" -ne 0 ]; then
  command -v sudo >/dev/null || fail "neither root nor sudo can be had"
  as_root=(sudo)
fi

echo "install-tools: the tests need $packages: installing with apt-get"
log=$(mktemp)
trap 'rm -f "$log"' EXIT
apt=("${as_root[@]}" env DEBIAN_FRONTEND=noninteractive apt-get -q -y -o DPkg::Lock::Timeout=300)
# One word for each package is meant.
# shellcheck disable=SC2086
if ! { "${apt[@]}" update && "${apt[@]}" install --no-install-recommends $packages; } >"$log" 2>&1; then
  tail -n 20 "$log" >&2
  fail "apt-get failed, see above"
fi

packages=$(missing_packages)
[ -z "$packages" ] || fail "apt-get succeeded, and yet programs are missing"

fetch_kernel
