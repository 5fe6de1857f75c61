#!/usr/bin/env bash
# Puts a kernel for guests, and the modules that they may need, into node_modules/.cache: of Debian's package, not installed.
# Quick and silent if it is there.
set -euo pipefail
cd "$(dirname "$0")/../../.."

readonly META=linux-image-cloud-amd64
readonly CACHE=node_modules/.cache/nbd-replication
readonly KERNEL=$CACHE/guest-kernel

if [ -e "$KERNEL/vmlinuz" ]; then exit 0; fi

mkdir -p "$CACHE"
work=$(mktemp -d -p "$CACHE")
trap 'rm -rf "$work"' EXIT
log=$work/log

# The meta-package only names the package that has the kernel, and which one changes with each security update.
fetch() {
  package=$(apt-cache depends "$META" 2>>"$log" | sed -n 's/^ *Depends: \(linux-image-[0-9].*\)/\1/p' | head -n 1)
  [ -n "$package" ] && (cd "$work" && apt-get -q download "$package") >>"$log" 2>&1
}

update() {
  local as_root=()
  if [ "$(id -u)" -ne 0 ]; then as_root=(sudo); fi
  "${as_root[@]}" apt-get -q -o DPkg::Lock::Timeout=300 update >>"$log" 2>&1
}

echo "fetch-kernel: the guests of the tests need the kernel of $META: downloading with apt-get"
if ! fetch && ! { update && fetch; }; then
  cat "$log" >&2
  echo "fetch-kernel: apt-get could not download $META, see above; mend that and try again" >&2
  exit 1
fi

mkdir "$work/tree" "$work/kernel"
dpkg-deb --fsys-tarfile "$work"/linux-image-*.deb |
  tar -x -C "$work/tree" --wildcards './boot/vmlinuz-*' ./lib/modules/*/kernel/{drivers/{block,net,virtio},net/core}/'*'
mv "$work"/tree/lib/modules/*/kernel "$work/kernel/modules"
mv "$work"/tree/boot/vmlinuz-* "$work/kernel/vmlinuz"
# Whole or not at all; if another run was quicker, its kernel is as good.
mv -T "$work/kernel" "$KERNEL" 2>/dev/null || [ -e "$KERNEL/vmlinuz" ]
