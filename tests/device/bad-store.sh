#!/bin/bash
# test: a store whose disk fails, lies, corrupts and fails requests: the application gets no error, and in the end the archive has everything
# limit: 240
# run: STORE_KIND=dev
# run-all: STORE_KIND=dir
#
# The store is a ring on a raw disk, or a directory of an ext4 file system, and the kernel's faulty disks are under it. The stamping writer goes on
# all the while. What was put while the disk lied must not count as archived: it is put again.
set -euo pipefail
# shellcheck source=tests/device/lib.sh
source "$(dirname "$0")/lib.sh"

blocks=8192 # 32 MiB
kind=${STORE_KIND:-dev}
disk=$(make_null_disk store 600 0)
sectors=$(blockdev --getsz "$disk")

disk_is() {
  local target=$1
  shift
  dmsetup load store --table "0 $sectors $target $disk 0 $*"
  dmsetup suspend --noflush --nolockfs store
  dmsetup resume --noudevsync store
}

in_trouble() { [[ $(status '.archive.error // ""') != "" ]]; }
works_again() { [[ $(status '.archive.error // ""') == "" ]] && (($(status .bytes_archived) > $1)); }
log_grew() { (($(status .log_bytes_written) > $1)); }

# suffer WHAT FEATURES: the store's disk has the fault for a while, under a load.
suffer() {
  local what=$1
  shift
  disk_is flakey 0 3600 "$@"
  wait_until 30 in_trouble || fail "a store that $what is no trouble?"
  kill -0 $writer || fail "the writer failed when the store $what: $(cat "$WORK/writer.log")"
  timeout 20 "$SALVOL" synch vol --label "$what" >/dev/null || fail "synch does not go on when the store $what"
  say "  a store that $what: $(status '.archive.error // "and worked again meanwhile"' | cut -c1-120)"
  disk_is linear ""
  wait_until 90 works_again $(($(status .bytes_archived) + (2 << 20))) || fail "nothing is archived behind a store that $what: $("$SALVOL" status vol)"
  kill -0 $writer || fail "the writer failed behind a store that $what: $(cat "$WORK/writer.log")"
}

dmsetup create store --noudevsync --verifyudev --table "0 $sectors linear $disk 0"
case $kind in
  dev) spec=dev:/dev/mapper/store ;;
  dir)
    mkfs.ext4 -q -m 0 /dev/mapper/store
    mkdir /run/store
    # A file system that has met an error would be read-only from then on, for good.
    mount -o errors=continue,data_err=ignore /dev/mapper/store /run/store
    spec=dir:/run/store/archive
    ;;
esac
"$SALVOL" create "$PRIMARY" --backing $spec --name vol --size 32M --utilisation 0.6 --spare 48 --segment-size 512K --compression none --force >/dev/null
attach_volume
# The log goes on slowly, so that the spare slots outlast the faults.
{
  while [[ ! -e $WORK/stop ]]; do
    stamps write "$device" "$WORK/journal" --blocks $blocks --seconds 1 || break
    sleep 0.5
    stamps check "$device" "$WORK/journal" --exact || break
  done
} >"$WORK/writer.log" 2>&1 &
writer=$!
wait_until 30 log_grew 2000000 || fail "the writer does not get going"

suffer "corrupts what is written" 5 corrupt_bio_byte 3000 w 42 0
suffer "corrupts what is read" 2 random_read_corrupt 400000000
[[ $kind == dir ]] || suffer "drops what is written" 1 drop_writes
[[ $kind == dir ]] || suffer "fails what is written" 1 error_writes
[[ $kind == dir ]] || suffer "fails what is read" 1 error_reads
[[ $kind == dir ]] || suffer "fails everything" ""

touch "$WORK/stop"
wait $writer || fail "the writer failed: $(tail -n 3 "$WORK/writer.log")"
! grep -q 'failed\|error' "$WORK/writer.log" || fail "the application met an error: $(grep 'failed\|error' "$WORK/writer.log")"
"$SALVOL" synch vol --label end --wait archived >/dev/null
expect_healthy_status
"$SALVOL" -q verify $spec >"$WORK/verify.log" 2>&1 || fail "the archive is damaged: $(head -n 20 "$WORK/verify.log")"
restored=$(make_null_disk restored 32 0)
"$SALVOL" -q restore $spec --at end --to "$restored" >/dev/null
cmp "$device" "$restored" || fail "the archive does not have what the device has"
say "  $(grep -c generation "$WORK/writer.log") times everything was as it was promised; the archive has it all"
detach_volume
