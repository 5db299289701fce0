#!/bin/bash
# test: a file system with a real tree of files survives remount, detach and attach
# limit: 300
# run: FS=ext4
# run-all: FS=xfs
# run-all: FS=ext4 ARCHIVE_AT=inactive
#
# Real files are copied in, a part is deleted (with online discard) and copied again until the log has turned over; then every
# checksum must hold after a remount, and again after the daemon has left and come back, and the file system's own checker must
# find nothing.
set -euo pipefail
# shellcheck source=tests/device/lib.sh
source "$(dirname "$0")/lib.sh"

FS=${FS:-ext4}
mountpoint=/run/salvol-files

make_file_system() {
  case $FS in
    ext4) mkfs.ext4 -q -E nodiscard "$device" ;;
    xfs) mkfs.xfs -q -f "$device" ;;
  esac
}

mount_files() {
  mkdir -p $mountpoint
  mount -t "$FS" -o discard "$device" $mountpoint
}

check_file_system() {
  case $FS in
    ext4) e2fsck -fn "$device" >"$WORK/fsck.log" 2>&1 || { cat "$WORK/fsck.log"; fail "e2fsck found errors"; } ;;
    xfs) xfs_repair -n "$device" >"$WORK/fsck.log" 2>&1 || { cat "$WORK/fsck.log"; fail "xfs_repair found errors"; } ;;
  esac
  say "  $FS is clean by its own checker"
}

# The real files: headers and locale data, whatever this system has of them, up to 80 MB.
list_source_files() {
  find /usr/include /usr/share/doc /usr/lib/python3* -xdev -type f -size -2M -printf '%s %p\n' 2>/dev/null |
    awk '{ total += $1; if (total > 80e6 || NR > 4000) exit; print $2 }' || true
}

copy_files() { mkdir -p "$1" && xargs -d '\n' -a "$WORK/files" cp --parents -t "$1" 2>/dev/null; }

compare_manifest() {
  (cd $mountpoint && sha256sum --quiet -c "$WORK/manifest") || fail "files differ $1"
  say "  $(wc -l <"$WORK/manifest") files are the same $1"
}

list_source_files >"$WORK/files"
create_volume "$(long 384M 1G)"
attach_volume
make_file_system
mount_files
copy_files $mountpoint/tree
rounds=$(long 3 12)
for _ in $(seq "$rounds"); do
  copy_files $mountpoint/churn
  sync -f $mountpoint
  rm -rf $mountpoint/churn
done
say "  $rounds rounds of copying and deleting"
copy_files $mountpoint/second
(cd $mountpoint && find . -type f -print0 | xargs -0 sha256sum) >"$WORK/manifest"

umount $mountpoint
mount_files
compare_manifest "after a remount"
umount $mountpoint
check_file_system

expect_healthy_status
detach_volume
expect_clean_check
attach_volume
mount_files
compare_manifest "after detach and attach"
umount $mountpoint
check_file_system
detach_volume
