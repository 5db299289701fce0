#!/bin/bash
# test: the machine is killed 10 (KILLS) times while writing: the state is a prefix with all that was flushed, and fsck is clean
# limit: 300
# limit-each: KILLS 20
# where: host
#
# The host starts a guest on the same disks again and again and kills it with SIGKILL, at a random moment, while one
# writer stamps blocks and another writes files. What they were promised is recorded on the host.
set -euo pipefail
# shellcheck source=tests/device/lib.sh
source "$(dirname "$0")/lib.sh"

crashes=${KILLS:-10}

# ---- In the guest: check what the last crash left, then write until killed ----------------------------------------------------

live_until_killed() {
  local life=$1 last=${2:-}
  # shellcheck source=tests/device/crash-story.sh
  source "$here/crash-story.sh"
  if [[ $life == 1 ]]; then
    make_crash_volume
  else
    attach_volume
  fi
  check_after_crash
  expect_healthy_status
  if [[ $last == last ]]; then
    detach_volume
    expect_clean_check
    return
  fi
  start_counting
  start_writers "$life"
  touch "$WORK/writing-$life"
  while :; do
    sleep 0.2
    expect_writers_at_work
    logged=0
    add_logged
    echo "$logged $(status '.working_set_segments * .segment_size')" >"$WORK/logged.new"
    sync "$WORK/logged.new"
    mv "$WORK/logged.new" "$WORK/logged-$life"
  done
}

# ---- On the host: kill it -------------------------------------------------------------------------------------------------------

guest_is_writing_or_over() { [[ -e $WORK/writing-$1 ]] || process_is_gone "$2"; }

live_and_be_killed() {
  local life=$1 boot
  "$UML" -m 1G -d "$DISK" -p "$WORK/guest" bash "$here/guest-crash.sh" live "$life" &
  boot=$!
  wait_until 60 guest_is_writing_or_over "$life" $boot || { kill $boot; fail "life $life does not get to writing"; }
  sleep "$((2 + RANDOM % 3)).$((RANDOM % 10))"
  process_is_gone $boot && fail "life $life ended before it was killed"
  kill -KILL -- "-$(cat "$WORK/guest")"
  wait $boot || true
}

logged_turns_of_all_lives() {
  cat "$WORK"/logged-* 2>/dev/null | awk '{ logged += $1; set = $2 } END { print int(NR ? logged / set : 0) }'
}

main() {
  if [[ ${1:-} == live ]]; then
    live_until_killed "${@:2}"
    return
  fi
  [[ $KERNEL_KIND != native ]] || skip "only a guest can be killed"
  local life=0
  while ((life < crashes || $(logged_turns_of_all_lives) < 10)); do
    life=$((life + 1))
    live_and_be_killed "$life"
  done
  "$UML" -m 1G -d "$DISK" bash "$here/guest-crash.sh" live $((life + 1)) last
  say "  the log turned over $(logged_turns_of_all_lives) times in $life lives"
}

main "$@"
