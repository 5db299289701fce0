#!/bin/bash
# test: what must not be done is refused with a reason: attach twice, mounted or foreign disks, detach in use, not root
# limit: 90
set -euo pipefail
# shellcheck source=tests/device/lib.sh
source "$(dirname "$0")/lib.sh"

mountpoint=/run/salvol-mounted
mkdir -p $mountpoint

create() { "$SALVOL" create "$@" </dev/null; }
no_devices() { ! compgen -G '/dev/ublk[bc]*' >/dev/null; }

say "a PRIMARY that is not there, too small, not a disk"
expect_failure 'no such|not found|does not exist' "$SALVOL" attach /dev/no-such-disk
tiny=$(make_null_disk tiny 2 0)
expect_failure 'small|fit|space' create "$tiny" --backing "dir:$STORE"
# Only User-Mode Linux shows the host's files without O_DIRECT.
[[ $KERNEL_KIND != uml ]] || expect_failure 'O_DIRECT|direct' create "$WORK/primary" --backing "dir:$STORE" --size 64M

say "a PRIMARY that holds a file system, also a mounted one"
disk=$(make_null_disk filesystem 512 0)
mkfs.ext4 -q "$disk"
expect_failure 'ext4|file system' create "$disk" --backing "dir:$STORE" --size 64M
mount "$disk" $mountpoint
expect_failure 'mount' create "$disk" --backing "dir:$STORE" --size 64M
expect_failure 'mount|in use|busy' create "$disk" --backing "dir:$STORE" --size 64M --force
umount $mountpoint
expect_failure 'no salvol|not a salvol|superblock' "$SALVOL" attach "$disk"
no_devices || fail "a refused attach left a device behind"

say "attach twice"
create_volume 128M
expect_failure 'salvol volume|--force' create "$PRIMARY" --backing "dir:$STORE.other" --size 64M
attach_volume
expect_failure 'already|in use|attached|held|running' "$SALVOL" attach "$PRIMARY"
expect_failure 'in use|attached|held|running' create "$PRIMARY" --backing "dir:$STORE.other" --size 64M --force
status .state >/dev/null || fail "the first attach suffered from the second"

say "a store of another volume"
other=$(make_null_disk other 512 0)
expect_failure 'another volume|belongs|other volume' create "$other" --backing "dir:$STORE" --size 64M

say "detach in use"
mkfs.ext4 -q "$device"
mount "$device" $mountpoint
expect_failure "mount.*$mountpoint|$mountpoint" "$SALVOL" detach vol
echo "still here" >$mountpoint/file
sync -f $mountpoint
[[ $(cat $mountpoint/file) == "still here" ]] || fail "the refused detach did something"

say "not root"
expect_failure 'root|permission|privilege' setpriv --reuid=65534 --regid=65534 --clear-groups "$SALVOL" attach "$PRIMARY"
expect_failure 'root|permission|privilege' setpriv --reuid=65534 --regid=65534 --clear-groups "$SALVOL" detach vol
umount $mountpoint

say "names and points that are not there"
expect_failure 'no volume|not found|no such|not attached|unknown' "$SALVOL" detach nobody
expect_failure 'no volume|not found|no such|not attached|unknown' "$SALVOL" status nobody
detach_volume
no_devices || fail "devices are left at the end"
