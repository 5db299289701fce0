#!/bin/bash
# test: the primary loses its power 10 (KILLS) times, and what it had not flushed: the state is a prefix with all that was flushed
# limit: 300
# limit-each: KILLS 20
# run: ARCHIVE_AT=seal
# run-all: ARCHIVE_AT=inactive
#
# The primary is a memory disk with a volatile cache (null_blk): switched off, it forgets exactly the blocks that no flush has
# reached. The daemon is killed at the same moment, as a power cut would.
set -euo pipefail
# shellcheck source=tests/device/lib.sh
source "$(dirname "$0")/lib.sh"
# shellcheck source=tests/device/crash-story.sh
source "$here/crash-story.sh"

cuts=${KILLS:-10}

# First the power, then the daemon: what it still believes to have written is gone. The writers meet I/O errors and end; killing a
# shell in the middle of a fork would crash User-Mode Linux.
cut_power() {
  local pid
  pid=$(daemon_pid)
  set_null_disk_power cached 0
  kill -KILL "$pid" || true
  touch "$WORK/stop"
  wait_until 20 process_is_gone "$pid" || fail "the daemon hangs after the power cut"
}

# The dead volume's device is taken away, so that nothing of the page cache survives the "machine"; the mount holds it until then.
clear_the_machine() {
  timeout 60 "$SALVOL" detach vol --force >"$WORK/detach.log" 2>&1 &
  local detach=$!
  umount -l $mountpoint
  wait $detach || { cat "$WORK/detach.log"; fail "detach --force of the dead volume failed"; }
  local writer
  for writer in "${writers[@]}"; do
    wait_until 20 process_is_gone "$writer" || fail "a writer still waits for the device that was detached"
  done
  [[ ! -b $device ]] || fail "$device stays after detach --force"
  echo 3 >/proc/sys/vm/drop_caches
  set_null_disk_power cached 1
}

PRIMARY=$(make_null_disk cached 512 64)
make_crash_volume
check_after_crash
cut=0
while ((cut < cuts || $(logged_turns) < 10)); do
  cut=$((cut + 1))
  start_counting
  start_writers "$cut"
  sleep "$((2 + RANDOM % 3)).$((RANDOM % 10))"
  expect_writers_at_work
  add_logged
  cut_power
  clear_the_machine
  attach_volume
  say "  power cut $cut"
  check_after_crash
done
say "  the log turned over $(logged_turns) times in $cut lives"
expect_healthy_status
detach_volume
expect_clean_check
