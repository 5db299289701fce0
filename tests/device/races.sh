#!/bin/bash
# test: what two processors show: contended blocks, a daemon killed under it, a control socket that is asked by many, views and devices that come and go
# limit: 300
# limit-each: RACES 60
# by-name: User-Mode Linux has one processor: KERNEL=qemu scripts/test races
#
# RACES (default 3) is how often the daemon is killed, and twice as often the device is attached and detached while others open it; each of six
# processes makes 300 contending requests for each. Judges: contend.py of the blocks that all want, stamps.py and fio of those that one has for itself.
set -euo pipefail
# shellcheck source=tests/device/lib.sh
source "$(dirname "$0")/lib.sh"

races=${RACES:-3}
contended=1024          # blocks from 0 on: 4 MiB
stamped=8192            # the first block of the stamps, 4096 in number
verified=$((64 << 20))  # the first byte of fio's, 16 MiB in number

contend() { /usr/bin/python3 "$here/contend.py" "$@" --blocks $contended; }

# ---- Those who write ------------------------------------------------------------------------------------------------------------

verify_until_stopped() {
  while [[ ! -e $1/stop ]]; do
    fio --filename="$device" --direct=1 --ioengine=io_uring --eta=never --output="$1/fio.log" --name=verify --rw=randwrite --bsrange=4k-128k \
      --iodepth=64 --offset=$verified --size=16M --verify=crc32c --verify_fatal=1 --verify_state_save=0 || return 1
  done
}

# start_load DIRECTORY [OPTION...]: everything that writes, until DIRECTORY/stop; the options are those of contend.py.
start_load() {
  mkdir "$1"
  # The judge knows of zeros only that were there before.
  blkdiscard --offset 0 --length $((contended * 4096)) "$device"
  contend run "$device" "$1/contended" --processes 6 --until "$1/stop" --seed "$RANDOM" "${@:2}" &
  load=($!)
  stamps write "$device" "$WORK/journal" --first-block $stamped --blocks 4096 --until "$1/stop" &
  load+=($!)
  verify_until_stopped "$1" &
  load+=($!)
}

load_is_at_work() { [[ -s $1/contended/6 && $(wc -l <"$WORK/journal/progress") -gt 2 ]]; }

expect_load_at_work() {
  local process
  for process in "${load[@]}"; do kill -0 "$process" 2>/dev/null || fail "one of the load gave up"; done
}

# stop_and_judge DIRECTORY [--killed]
stop_and_judge() {
  local process directory=$1
  shift
  touch "$directory/stop"
  for process in "${load[@]}"; do wait "$process" || fail "one of the load failed"; done
  contend judge "$device" "$directory/contended" "$@" || fail "the contended blocks are not what was written"
  stamps check "$device" "$WORK/journal" --exact || fail "acknowledged writes were lost"
}

# ---- Those who ask --------------------------------------------------------------------------------------------------------------

# repeat FILE COMMAND...: until FILE exists; how often goes to FILE.COMMAND.
repeat() {
  local until=$1 times=0
  shift
  while [[ ! -e $until ]]; do
    "$@" || return 1
    times=$((times + 1))
  done
  echo $times >"$until.$1"
}

ask_status() { "$SALVOL" status vol --json >/dev/null && "$SALVOL" list --json >/dev/null; }
ask_synch() { "$SALVOL" -q synch vol --label "point-$RANDOM$RANDOM" >/dev/null; }
ask_points() { "$SALVOL" points vol --json >/dev/null; }
ask_verify() { "$SALVOL" verify vol >"$WORK/verified" || { cat "$WORK/verified" && return 1; }; }

# What is pinned can be let go of.
ask_pin() {
  local id
  id=$("$SALVOL" synch vol --wait archived --json | jq -r .id) || return 1
  "$SALVOL" -q pin vol "$id" >/dev/null && "$SALVOL" -q unpin vol "$id" >/dev/null
}

# A view is the same however often it is read, and goes when it is told to.
view_a_point() {
  local id view sum again
  id=$("$SALVOL" synch vol --json | jq -r .id) || return 1
  view=$("$SALVOL" -q attach vol --at "$id" "$@") || return 1
  sum=$(dd if="$view" bs=1M count=4 iflag=direct status=none | sha256sum)
  again=$(dd if="$view" bs=1M count=4 iflag=direct status=none | sha256sum)
  [[ $sum == "$again" ]] || { say "$view changed" && return 1; }
  [[ $# == 0 ]] || dd if=/dev/urandom of="$view" bs=4k count=64 oflag=direct status=none || return 1
  "$SALVOL" -q detach "$view"
}
view_read_only() { view_a_point; }
view_writable() { view_a_point --writable; }

start_asking() {
  asking=()
  local question
  for question in ask_status ask_synch ask_points ask_verify ask_pin view_read_only view_writable; do
    repeat "$1/stop" $question >"$1/$question.log" 2>&1 &
    asking+=($!)
  done
}

end_of_asking() {
  local process
  for process in "${asking[@]}"; do wait "$process" || fail "a question failed: $(tail -qn 2 "$1"/*_*.log)"; done
  say "  meanwhile $(for count in "$1"/stop.*; do echo "${count##*.} $(cat "$count"),"; done | tr '_\n' '  ')"
}

# ---- Those who open -------------------------------------------------------------------------------------------------------------

# The device may not be there, or may be going: only to hang, or to read something else, is wrong.
open_again_and_again() {
  while [[ ! -e $WORK/opened ]]; do
    dd if=/dev/ublkb0 of="$WORK/seen.$1" bs=64k count=16 iflag=direct status=none 2>/dev/null || continue
    [[ $(stat -c %s "$WORK/seen.$1") == 1048576 ]] || continue
    cmp -s "$WORK/seen.$1" "$WORK/expected" || { say "another content at an attach" && return 1; }
    echo >>"$WORK/seen"
  done
}

# A detach is refused while somebody has the device open, and succeeds in the end.
detach_despite_openers() {
  local output
  until output=$(timeout 120 "$SALVOL" detach vol 2>&1); do
    grep -q 'in use' <<<"$output" || fail "detach: $output"
    refused=$((refused + 1))
  done
}

attach_and_detach_while_opened() {
  local round opener openers=() refused=0
  dd if="$device" of="$WORK/expected" bs=64k count=16 iflag=direct status=none
  for opener in 1 2 3; do
    open_again_and_again $opener &
    openers+=($!)
  done
  for ((round = 0; round < 2 * races; round++)); do
    detach_despite_openers
    [[ ! -b $device ]] || fail "$device is still there after detach"
    attach_volume
  done
  touch "$WORK/opened"
  for opener in "${openers[@]}"; do wait "$opener" || fail "a device that was opened while it came and went"; done
  say "  $round times detached, $refused times refused, read $(wc -l <"$WORK/seen") times"
}

# ---- The story ------------------------------------------------------------------------------------------------------------------

(($(nproc) > 1)) || skip "one processor shows no race"

create_volume 96M
attach_volume

say "many on the same blocks, and many who ask"
start_load "$WORK/asked" --requests $((races * 300))
start_asking "$WORK/asked"
wait "${load[0]}" || fail "one of the contenders failed"
load=("${load[@]:1}")
stop_and_judge "$WORK/asked"
end_of_asking "$WORK/asked"
expect_healthy_status

say "the daemon dies under it"
start_load "$WORK/killed"
wait_until 120 load_is_at_work "$WORK/killed" || fail "the load does not get going"
for ((round = 0; round < races; round++)); do
  sleep "$((3 + RANDOM % 5)).$((RANDOM % 10))"
  expect_load_at_work
  kill_daemon_and_recover
done
sleep 5
expect_load_at_work
stop_and_judge "$WORK/killed" --killed
say "  killed and recovered $races times"

say "the device comes and goes while it is opened"
attach_and_detach_while_opened
stamps check "$device" "$WORK/journal" --exact || fail "acknowledged writes were lost by attach and detach"

say "the judge is judged"
dd if=/dev/zero of="$device" bs=4096 count=64 oflag=direct status=none
expect_failure 'is lost|had seen' contend judge "$device" "$WORK/killed/contended" --killed

expect_healthy_status
detach_volume
expect_clean_check
"$SALVOL" -q verify "$PRIMARY" >/dev/null || fail "verify found fault"
