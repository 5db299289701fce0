#!/bin/bash
# test: every synch point comes back byte for byte: from the running volume, from the primary, and from the archive alone
# limit: 480
# run: ARCHIVE_AT=seal
# run: ARCHIVE_AT=inactive
#
# At each mark the whole device is copied beside it; the log turns over between the marks. The restores are compared with the copies.
set -euo pipefail
# shellcheck source=tests/device/lib.sh
source "$(dirname "$0")/lib.sh"

points=$(long 4 8)
size=64M

overwrite_some() {
  fio_on_device --size=$size --norandommap=1 --randseed=$RANDOM \
    --name=overwrite --rw=randwrite --bsrange=4k-64k --iodepth=16 --io_size=100M --buffer_compress_percentage=50 \
    --name=trim --rw=randtrim --bs=64k --iodepth=1 --io_size=8M
}

# Nothing writes while the mark is made, so the copy is what the point must be.
mark_and_copy() {
  "$SALVOL" synch vol --label "mark-$1" --json >"$WORK/point.json"
  [[ $(jq -r .label "$WORK/point.json") == "mark-$1" ]] || fail "synch reports another point: $(cat "$WORK/point.json")"
  dd if="$device" of="$WORK/mark-$1" bs=1M iflag=direct conv=sparse status=none
}

# restore_all FROM MINIMUM: each point that FROM still has, compared with its copy.
restore_all() {
  local source=$1 minimum=$2 label restored=0
  "$SALVOL" points "$source" --json >"$WORK/points.json"
  for label in $(jq -r '.points[].label // empty' "$WORK/points.json"); do
    "$SALVOL" restore "$source" --at "$label" --to "$WORK/restored" --json >"$WORK/restore.json" || fail "$label does not come back from $source"
    cmp "$WORK/restored" "$WORK/$label" || fail "$label from $source is not what it was"
    rm "$WORK/restored"
    restored=$((restored + 1))
  done
  say "  from $source: $restored of $points points, each byte the same"
  ((restored >= minimum)) || fail "only $restored points came back from $source, expected at least $minimum"
}

create_volume $size
attach_volume
for point in $(seq "$points"); do
  overwrite_some
  mark_and_copy "$point"
done
overwrite_some
say "  the log turned over $(($(log_turns) / 100)) times"

# The running volume is written while it is read from.
overwrite_some &
writer=$!
restore_all vol "$points"
wait $writer
expect_healthy_status

target=$(make_null_disk target 64 0)
"$SALVOL" restore vol --at mark-1 --to "$target" --force >/dev/null
cmp -n $((64 << 20)) "$target" "$WORK/mark-1" || fail "mark-1 restored to a block device is not what it was"
expect_failure 'no.*point|not found|restorable' "$SALVOL" restore vol --at no-such-mark --to "$WORK/restored"

# The newest point shall be in the archive too, where the archive is filled at seal.
nothing_waits() { [[ $(status .archive.queue) == 0 ]]; }
if [[ $ARCHIVE_AT == seal ]]; then wait_until 60 nothing_waits || fail "the archiver does not finish"; fi

detach_volume
expect_clean_check
restore_all "$PRIMARY" "$points"

# The primary is gone; the store is all there is.
dd if=/dev/zero of="$PRIMARY" bs=1M count=16 oflag=direct conv=notrunc status=none
if [[ $ARCHIVE_AT == seal ]]; then minimum=$points; else minimum=2; fi
restore_all "dir:$STORE" "$minimum"
