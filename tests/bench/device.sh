#!/bin/bash
# Inside the guest: 4 KiB random writes and reads on salvol and on rublk's loop target, in turns, on the same disk.
# Prints table rows to $OUT.
set -euo pipefail

run() { # run DEVICE WORKLOAD
  fio --name=run --filename="$1" --direct=1 --ioengine=io_uring --rw="$2" --bs=4k --iodepth=32 --time_based \
    --runtime="$SECONDS_EACH" --ramp_time=1 --size=256M --output-format=json | jq ".jobs[0].${2#rand}.iops | round"
}

salvol_round() {
  "$SALVOL" create -q --force /dev/ubda --backing none --name bench --size 256M >/dev/null
  local device
  device=$("$SALVOL" attach /dev/ubda)
  dd if=/dev/zero of="$device" bs=1M count=256 oflag=direct status=none
  echo "$(run "$device" randwrite) $(run "$device" randread)"
  "$SALVOL" detach bench
}

loop_round() {
  "$RUBLK" add loop -f /dev/ubda -d 128 >/dev/null
  local device
  device=$(ls /dev/ublkb*)
  echo "$(run "$device" randwrite) $(run "$device" randread)"
  "$RUBLK" del -a >/dev/null
}

median() { sort -n | sed -n 2p; }

salvol=() loop=()
for _ in 1 2 3; do
  salvol+=("$(salvol_round)")
  loop+=("$(loop_round)")
done
column() { local number=$1; shift; printf '%s\n' "$@" | cut -d' ' -f"$number" | median; }
sw=$(column 1 "${salvol[@]}") sr=$(column 2 "${salvol[@]}") lw=$(column 1 "${loop[@]}") lr=$(column 2 "${loop[@]}")
{
  echo "| salvol | $sw | $sr |"
  echo "| rublk loop | $lw | $lr |"
  echo "| ratio | $(jq -n "$sw / $lw * 100 | round / 100") | $(jq -n "$sr / $lr * 100 | round / 100") |"
} >"$OUT"
