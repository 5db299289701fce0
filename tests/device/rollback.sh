#!/bin/bash
# test: a volume goes back to a point, and forward again; killed midway it is finished before anybody sees it
# limit: 400
set -euo pipefail
# shellcheck source=tests/device/lib.sh
source "$(dirname "$0")/lib.sh"

sum_direct() { dd if="$device" bs=1M iflag=direct status=none | sha256sum | cut -d' ' -f1; }
sum_cached() { sha256sum <"$device" | cut -d' ' -f1; }
scribble() { # scribble SEED MIB
  fio_on_device --name=scribble --rw=randwrite --bs=4k-64k --size="$2M" --io_size="$2M" --randseed="$1" --iodepth=8 --buffer_compress_percentage=50
}

rolls_back() { [[ $(status .state) == rolling-back ]]; }

create_volume 64M
attach_volume
mkfs.ext4 -q -F "$device"
mkdir -p "$WORK/mnt"
mount "$device" "$WORK/mnt"
echo "what everybody needs" >"$WORK/mnt/file"
"$SALVOL" synch vol --label good --freeze "$WORK/mnt" >/dev/null

say "in use it stays what it is, and says who uses it"
expect_failure 'mounted at' "$SALVOL" rollback vol --to good
# The daemon sees for itself: whoever may write to its socket need not have looked.
ask() { /usr/bin/python3 -c 'import socket, sys
s = socket.socket(socket.AF_UNIX)
s.connect("/run/salvol/vol.sock")
s.sendall(sys.argv[1].encode() + b"\n")
print(s.makefile().readline())' "$1"; }
[[ $(ask '{"command":"rollback","to":"good"}') == *'"error"'*"mounted at $WORK/mnt"* ]] || fail "the daemon rolls a mounted volume back"
rm "$WORK/mnt/file"
umount "$WORK/mnt"
sleep 600 <"$device" &
holder=$!
expect_failure "open in process $holder" "$SALVOL" rollback vol --to good
kill "$holder" && wait "$holder" || true
expect_failure 'no synch point' "$SALVOL" rollback vol --to nobody

say "a file that was deleted is back, and gone again when that is undone"
before=$(sum_direct)
undo=$("$SALVOL" rollback vol --to good --json | jq -r .before)
mount -o ro "$device" "$WORK/mnt"
[[ $(cat "$WORK/mnt/file") == "what everybody needs" ]] || fail "the file is not back"
umount "$WORK/mnt"
"$SALVOL" rollback vol --to "$undo" >/dev/null
[[ $(sum_direct) == "$before" && $(sum_cached) == "$before" ]] || fail "undoing the rollback gave something else"

say "points of a log that has turned over since"
declare -A sum
for round in 1 2 3 4; do
  scribble "$round" 50
  "$SALVOL" synch vol --label "state-$round" --wait archived >/dev/null
  sum[$round]=$(sum_direct)
done
for round in $(seq 10 $(long 13 18)); do scribble "$round" 60; done
for round in 2 4 1 3; do
  sum_cached >/dev/null
  started=$(date +%s%N)
  "$SALVOL" -q rollback vol --to "state-$round" >/dev/null
  millis=$((($(date +%s%N) - started) / 1000000))
  [[ $(sum_direct) == "${sum[$round]}" && $(sum_cached) == "${sum[$round]}" ]] || fail "it is not state-$round"
done
say "  the last took $millis ms"

say "killed midway, it is what it was or what it is to be, and never anything else"
current=${sum[3]}
midway=0
kill=0
# At any moment of a rollback, however long one takes here; some of them compare only, and are over.
until ((kill >= $(long 5 10) && midway > 0)); do
  kill=$((kill + 1))
  ((kill <= 40)) || fail "no kill of 40 was midway"
  round=$((kill % 4 + 1))
  "$SALVOL" -q rollback vol --to "state-$round" &>/dev/null &
  roller=$!
  wait_until 60 rolls_back || fail "the rollback does not begin"
  sleep "$(awk -v "ms=$((RANDOM % millis))" 'BEGIN { print ms / 1000 }')"
  kill_daemon_and_recover
  wait "$roller" || true
  now=$(sum_direct)
  [[ $now == "$current" || $now == "${sum[$round]}" ]] || fail "after kill $kill it is neither what it was nor state-$round"
  if grep -q 'was interrupted; it is finished now' /run/salvol/vol.log; then midway=$((midway + 1)); fi
  : >/run/salvol/vol.log
  current=$now
done
"$SALVOL" -q rollback vol --to state-1 >/dev/null
[[ $(sum_direct) == "${sum[1]}" ]] || fail "after the kills it does not become state-1"
say "  $midway rollbacks were finished after a kill"
for round in 1 2 3 4; do
  "$SALVOL" -q restore vol --at "state-$round" --to "$WORK/restored" >/dev/null
  [[ $(sha256sum <"$WORK/restored" | cut -d' ' -f1) == "${sum[$round]}" ]] || fail "state-$round does not come back any more"
  rm "$WORK/restored"
done
expect_healthy_status
detach_volume
expect_clean_check

say "from a ring that is full, which keeps what a rollback needs"
"$SALVOL" create "$PRIMARY" --backing "file:$WORK/ring" --backing-size "$(long 200M 300M)" --name vol --size 32M --segment-size 1M --utilisation 0.6 --force >/dev/null
attach_volume
"$SALVOL" synch vol --label too-old >/dev/null
round=20
until [[ $("$SALVOL" points vol --json | jq '[.points[] | select(.label == "too-old")] | length') == 0 ]]; do
  round=$((round + 1))
  ((round < 60)) || fail "the ring expires nothing"
  scribble "$round" 30
  "$SALVOL" synch vol --label "ring-$round" --wait archived >/dev/null
  sum[ring-$round]=$(sum_direct)
done
code=0
"$SALVOL" rollback vol --to too-old 2>"$WORK/error" || code=$?
[[ $code == 4 ]] || fail "a point that has expired gave exit code $code: $(cat "$WORK/error")"
gone=0
for number in $(seq $((round - 1)) -1 $((round - 3))) $round; do
  if "$SALVOL" -q rollback vol --to "ring-$number" 2>"$WORK/error"; then
    [[ $(sum_direct) == "${sum[ring-$number]}" ]] || fail "it is not ring-$number"
  else
    gone=$((gone + 1))
    say "  ring-$number: $(head -n 1 "$WORK/error")"
  fi
done
((gone < 2)) || fail "$gone of 4 rollbacks were refused"
scribble 99 30
expect_healthy_status
detach_volume
expect_clean_check

say "without an archive there is no rollback"
"$SALVOL" create "$PRIMARY" --backing none --name vol --size 64M --segment-size 1M --force >/dev/null
attach_volume
scribble 1 10
"$SALVOL" synch vol --label here >/dev/null
expect_failure 'keeps no archive' "$SALVOL" rollback vol --to here
detach_volume
