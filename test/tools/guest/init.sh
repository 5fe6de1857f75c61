#!/bin/busybox sh
# The first program of a guest: attaches its disk, does the job that the kernel's command line names, and powers off.
#
#   disk=virtio                      /dev/vda, QEMU is the NBD client
#   disk=nbd port=PORT               /dev/nbd0, the guest's kernel is: nbd-client to the host (10.0.2.2)
#   nbd_options=...                  options of nbd-client
#   job=append                       makes ext4, then appends records without end, each with fsync
#   job=recover                      mounts (which replays the journal), prints all records, checks the file system
#
# What the test is to know stands on the console as lines "@WORD ..."; the kernel keeps silent but for a panic.

/bin/busybox --install -s /bin
mount -t proc proc /proc
mount -t sysfs sysfs /sys
mount -t devtmpfs devtmpfs /dev
exec </dev/console >/dev/console 2>&1

say() {
  echo "@$*"
}

# What was said last may be on its way yet: stty waits until it has left.
off() {
  stty echo
  poweroff -f
}

fail() {
  dmesg | tail -n 40
  say failed "$*"
  off
}

while read -r module; do
  insmod "/modules/$module.ko" || fail "insmod $module"
done </modules/order

attach_virtio() {
  device=/dev/vda
  [ -b $device ] || fail "no $device"
}

attach_nbd() {
  device=/dev/nbd0
  ip link set lo up
  ip link set eth0 up && ip addr add 10.0.2.15/24 dev eth0 || fail "no network"
  # Over TLS a part of it stays, whose last words are not to run into ours.
  # shellcheck disable=SC2086
  /programs/nbd-client $nbd_options -N disk0 10.0.2.2 "$port" $device >/tmp/nbd-client 2>&1 ||
    fail "nbd-client: $(tail -n 1 /tmp/nbd-client)"
  # Without netlink it returns before the kernel has the device's size.
  for _ in $(seq 200); do
    [ "$(cat /sys/block/nbd0/size)" = 0 ] || return 0
    usleep 50000
  done
  fail "$device stays empty"
}

# Tells the host that the guest runs on: it may change at any time without the guest's knowing, as after a migration.
host() {
  cat /sys/block/vda/serial 2>/dev/null || echo none
}

# A record is a line: number, host, content, checksum of all before it.
record() {
  body="$1 $(host) $(head -c 96 /dev/urandom | base64 -w 0)"
  sum=$(echo -n "$body" | sha256sum)
  echo "$body ${sum%% *}"
}

append() {
  /programs/mke2fs -q -F -t ext4 "$device" || fail "mke2fs"
  mount -t ext4 "$device" /mnt || fail "mount"
  number=1
  while record $number | dd of=/mnt/records oflag=append conv=notrunc,fsync 2>/tmp/dd; do
    say acknowledged "$number $(host)"
    number=$((number + 1))
  done
  fail "record $number: $(tail -n 1 /tmp/dd)"
}

recover() {
  mount -t ext4 "$device" /mnt || fail "mount"
  dmesg | grep EXT4-fs | sed 's/^.*EXT4-fs/@kernel EXT4-fs/'
  sed 's/^/@record /' /mnt/records || fail "no records"
  umount /mnt || fail "umount"
  /programs/e2fsck -fn "$device" || fail "e2fsck ended with $?"
  dmesg | grep -E 'I/O error|EXT4-fs (error|warning)' && fail "the kernel met errors"
  say clean
}

say booted
"attach_$disk"
say attached
"$job"
off
