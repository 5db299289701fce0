#!/bin/bash
# test: the daemon is killed in the middle of putting an object: no part of one is ever taken for the whole, nothing is missing in the end
# limit: 120
# limit-each: KILLS 5
#
# The store is a directory on a disk that takes its time (dm-delay), so that objects are under way most of the time: an unfinished file there is
# the sign to kill. KILLS=2000 is a campaign. The writer waits for recover and goes on; every ten kills the archive is verified.
set -euo pipefail
# shellcheck source=tests/device/lib.sh
source "$(dirname "$0")/lib.sh"

kills=${KILLS:-20}
blocks=4096
disk=$(make_null_disk slow 900 0)
dmsetup create slow --noudevsync --verifyudev --table "0 $(blockdev --getsz "$disk") delay $disk 0 0 $disk 0 8"
mkfs.ext4 -q -m 0 /dev/mapper/slow
mkdir /run/store
mount /dev/mapper/slow /run/store
STORE=/run/store/archive

unfinished() { compgen -G "$STORE/*/.*.tmp" >/dev/null || compgen -G "$STORE/.*.tmp" >/dev/null; }
writer_went_on() { [[ $(wc -l <"$WORK/journal/progress") -gt $1 ]]; }

log_grew() { (($(status .user_bytes_written) > $1)); }

verify_archive() {
  "$SALVOL" -q verify "dir:$STORE" >"$WORK/verify.log" 2>&1 || fail "the archive is damaged after kill $killed: $(head -n 20 "$WORK/verify.log")"
}

"$SALVOL" create "$PRIMARY" --backing "dir:$STORE" --name vol --size 16M --utilisation 0.6 --spare 16 --segment-size 256K --force >/dev/null
attach_volume
stamps write "$device" "$WORK/journal" --blocks $blocks --until "$WORK/stop" &
writer=$!
wait_until 30 writer_went_on 2 || fail "the writer does not get going"

killed=0 midway=0
began=$SECONDS
while ((killed < kills)); do
  pid=$(daemon_pid)
  for _ in $(seq 200); do
    ! unfinished || break
    sleep 0.005
  done
  kill -KILL "$pid"
  wait_until 20 process_is_gone "$pid" || fail "daemon $pid is still there 20 s after SIGKILL"
  killed=$((killed + 1))
  ! unfinished || midway=$((midway + 1))
  timeout 60 "$SALVOL" recover vol >/dev/null || fail "recover failed or hung after kill $killed"
  kill -0 $writer || fail "the writer gave up at kill $killed"
  if ((killed % 10 == 0)); then
    # Writers are no faster than the store, but they go on.
    before=$(status .user_bytes_written)
    wait_until 60 log_grew "$before" || fail "I/O hangs after kill $killed: $("$SALVOL" status vol)"
    verify_archive
    # What is pruned between two looks keeps the store small.
    "$SALVOL" -q prune vol --keep-for 20s >/dev/null || fail "pruning fails after kill $killed"
  fi
done
touch "$WORK/stop"
wait $writer || fail "the writer failed"
say "  killed $killed times in $((SECONDS - began)) s, $midway of them with an object half put"
((midway > killed / 4)) || fail "the kills did not meet objects half put"

stamps check "$device" "$WORK/journal" --exact || fail "acknowledged writes were lost"
timeout 90 "$SALVOL" synch vol --label end --wait archived >/dev/null || fail "the archive does not catch up: $("$SALVOL" status vol)"
verify_archive
restored=$(make_null_disk restored 16 0)
"$SALVOL" -q restore "dir:$STORE" --at end --to "$restored" >/dev/null
cmp "$device" "$restored" || fail "the archive does not have what the device has"
! unfinished || fail "unfinished files are left in the store: $(ls -A "$STORE"/*)"
expect_healthy_status
detach_volume
expect_clean_check >/dev/null
