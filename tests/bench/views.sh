#!/bin/bash
# Inside the guest: seconds from `attach --at` to the first byte, of points that need SEGMENTS + 1 segments of 1 MiB. Prints
# table rows to $OUT.
set -euo pipefail

mkdir -p "$WORK"
cd "$WORK"
store=dir:$WORK/store
"$SALVOL" create -q --force "$DISK" --backing "$store" --name bench --working-set "$SEGMENTS" --spare 16 --segment-size 1M >/dev/null
device=$("$SALVOL" attach "$DISK")
bytes=$(blockdev --getsize64 "$device")
scribble() { # scribble RW BYTES
  fio --name=scribble --filename="$device" --direct=1 --ioengine=io_uring --rw="$1" --bs=64k --iodepth=16 --size="$bytes" --io_size="$2" \
    --buffer_compress_percentage=80 --output-format=terse >/dev/null
}
scribble write "$bytes"
scribble randwrite "$bytes"
"$SALVOL" synch bench --label archived --wait archived >/dev/null
scribble randwrite $((bytes * 2))
"$SALVOL" synch bench --label here --wait archived >/dev/null

# first_byte SOURCE POINT WHERE: the median of three, by id.
first_byte() {
  local id view started row
  row=$("$SALVOL" points "$1" --json | jq -c --arg wanted "$2" '.points[] | select(.label == $wanted)')
  id=$(jq -r .id <<<"$row")
  for _ in 1 2 3; do
    started=$EPOCHREALTIME
    view=$("$SALVOL" -q attach "$1" --at "$id")
    dd if="$view" of=/dev/null bs=4096 count=1 skip=777 iflag=direct status=none
    awk -v a="$started" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.2f\n", b - a }'
    "$SALVOL" detach "bench@$id"
  done | sort -g | sed -n 2p >median
  echo "| $3 | $(jq .segments <<<"$row") | $(cat median) |" >>"$OUT"
}
first_byte bench here "a running volume, the segments on the primary"
first_byte bench archived "a running volume, the segments in a \`dir:\` store"
"$SALVOL" detach bench
first_byte "$store" archived "the store alone"
