#!/bin/bash
# test: the crash checker itself: it passes what is right and names every kind of lost write
# limit: 60
#
# Before stamps.py may judge the volume it is judged: on a plain memory disk its checker must accept an undamaged state and an
# honest crash state, and must refuse a flushed write that went back, a later write without an earlier one, a trim undone, a
# block in the wrong place and a torn block.
set -euo pipefail
# shellcheck source=tests/device/lib.sh
source "$(dirname "$0")/lib.sh"

blocks=4096
copy=$WORK/undamaged

restore_disk() {
  dd if="$copy" of="$disk" bs=1M oflag=direct status=none
  rm -rf "$WORK/journal"
  cp -a "$WORK/journal.saved" "$WORK/journal"
}

expect_refusal() {
  local what=$1 pattern=$2
  shift 2
  expect_failure "$pattern" stamps check "$disk" "$WORK/journal" "$@"
  restore_disk
  say "refused: $what"
}

put_block() { dd if="$1" of="$disk" bs=4k skip="$2" seek="$3" count=1 oflag=direct conv=notrunc status=none; }

disk=$(make_null_disk plain 64 0)
stamps write "$disk" "$WORK/journal" --blocks $blocks --steps 30
stamps check "$disk" "$WORK/journal" --exact
dd if="$disk" of="$WORK/older" bs=1M count=16 iflag=direct status=none
stamps write "$disk" "$WORK/journal" --blocks $blocks --steps 60
dd if="$disk" of="$copy" bs=1M count=16 iflag=direct status=none
cp -a "$WORK/journal" "$WORK/journal.saved"

stamps check "$disk" "$WORK/journal" --exact
restore_disk
say "accepted: the undamaged state"

# The whole disk as it was before the generation: a prefix, but not one that holds what was flushed.
dd if="$WORK/older" of="$disk" bs=1M oflag=direct status=none
expect_refusal "everything since the last generation lost" 'was promised'

# One block back to what it held before the generation, while later writes are there.
first_difference=$({ cmp "$WORK/older" "$copy" || true; } | sed 's/.* byte \([0-9]*\).*/\1/')
changed=$(((first_difference - 1) / 4096))
put_block "$WORK/older" "$changed" "$changed"
expect_refusal "one flushed write went back" 'no prefix|was promised'

put_block /dev/zero 0 "$changed"
expect_refusal "one written block reads as zeros" 'no prefix|was promised|never written'

put_block "$copy" "$changed" $(((changed + 1) % blocks))
expect_refusal "a block in the wrong place" 'neither a stamp'

{
  dd if="$copy" bs=4k skip="$changed" count=1 status=none | head -c 2048
  head -c 2048 /dev/urandom
} >"$WORK/torn"
put_block "$WORK/torn" 0 "$changed"
expect_refusal "a torn block" 'neither a stamp'

# An honest crash: the writer got further than its last record.
head -n -2 "$WORK/journal.saved/progress" >"$WORK/journal/progress"
stamps check "$disk" "$WORK/journal"
say "accepted: more than was promised"
