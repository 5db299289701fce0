#!/bin/bash
# test: fio writes, trims and verifies at every block size and depth while the log turns over ten times
# limit: 480
# run: ARCHIVE_AT=seal
# run: ARCHIVE_AT=inactive
#
# Each job writes every block of the volume once in random order and reads it all back against its checksum, or trims each range
# before it writes it. Afterwards the whole volume reads the same through a detach and attach.
set -euo pipefail
# shellcheck source=tests/device/lib.sh
source "$(dirname "$0")/lib.sh"

size=$(long 64M 128M)

verify=(--verify=crc32c --do_verify=1 --verify_fatal=1)

create_volume "$size"
attach_volume

for block_size in 4k 16k 64k 256k 1m; do
  for depth in 1 8 32 128; do
    fio_on_device --size="$size" "${verify[@]}" --name=verify --rw=randwrite --bs=$block_size --iodepth=$depth
    say "  $block_size, depth $depth: verified"
  done
done
for block_size in 4k 64k 1m; do
  fio_on_device --size="$size" "${verify[@]}" --name=verify --rw=randtrimwrite --bs=$block_size --iodepth=32
  say "  $block_size, each range trimmed before it is written: verified"
done

# One job verifies its half while another trims and a third flushes after each write in theirs.
half=$(($(numfmt --from=iec "$size") / 2))
quarter=$((half / 2))
fio_on_device \
  --name=verify "${verify[@]}" --rw=randwrite --bs=4k --iodepth=64 --size=$half \
  --name=trim --rw=randtrim --bs=64k --iodepth=4 --offset=$half --size=$quarter --io_size="$size" --norandommap=1 \
  --name=flush --rw=randwrite --bs=4k --iodepth=4 --fsync=4 --offset=$((half + quarter)) --size=$quarter --io_size=16M
say "  verifying beside trims and flushes: verified"

expect_turns 10
expect_healthy_status

before=$(sha256sum <"$device")
detach_volume
expect_clean_check
attach_volume
[[ $(sha256sum <"$device") == "$before" ]] || fail "the volume reads differently after detach and attach"
detach_volume
