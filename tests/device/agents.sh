#!/bin/bash
# test: freezes, hooks and agents: what is refused, what the status tells, and nobody stays frozen or locked
# limit: 300
set -euo pipefail
# shellcheck source=tests/device/lib.sh
source "$(dirname "$0")/lib.sh"

mountpoint=/run/salvol-agents
image=$WORK/image

# Whether the file system takes writes: thawing one that is not frozen is an error.
is_thawed() { ! fsfreeze --unfreeze $mountpoint 2>/dev/null; }
point_info() { "$SALVOL" points vol --json | jq -er --arg id "$1" '.points[] | select(.id == $id) | .info'; }

create_volume 256M
attach_volume
mkfs.ext4 -q "$device"
mkdir -p $mountpoint
mount "$device" $mountpoint

say "a frozen file system is whole in the point, with nothing to replay"
write_files() {
  local number=0
  while [[ ! -e $WORK/enough ]]; do
    number=$((number + 1))
    head -c $((RANDOM * 3)) /dev/urandom >"$mountpoint/file-$((number % 50))"
  done
}
write_files &
writer=$!
sleep 1
point=$("$SALVOL" synch vol --freeze $mountpoint --label frozen --json | jq -r .id)
"$SALVOL" -q restore vol --at "$point" --to "$image" >/dev/null
! dumpe2fs -h "$image" 2>/dev/null | grep -q needs_recovery || fail "$point needs journal replay"
e2fsck -fn "$image" >"$WORK/fsck" 2>&1 || { cat "$WORK/fsck"; fail "$point is not clean"; }
[[ $(point_info "$point") == "frozen $mountpoint" ]] || fail "the point does not say what was frozen"

say "what must not be frozen is refused"
expect_failure 'mounted there' "$SALVOL" synch vol --freeze /run
expect_failure 'mounted there' "$SALVOL" synch vol --freeze $mountpoint/lost+found
expect_failure 'no such file' "$SALVOL" synch vol --freeze /run/nowhere
mkdir $mountpoint/store
mount --bind $mountpoint/store "$STORE"
expect_failure 'store .* is on it' "$SALVOL" synch vol --freeze $mountpoint
umount "$STORE"
fsfreeze --freeze $mountpoint
expect_failure 'frozen already' "$SALVOL" synch vol --freeze $mountpoint
fsfreeze --unfreeze $mountpoint
touch "$WORK/enough"
wait $writer

say "whoever dies, and whatever hangs, the file system is thawed"
daemon=$(daemon_pid)
sync -f $mountpoint
# A helper alone: nobody tells it anything, so it is late.
mkfifo "$WORK/silence"
sleep 60 >"$WORK/silence" &
silence=$!
[[ $("$SALVOL" freeze-helper --limit 1s -- $mountpoint <"$WORK/silence" | tail -n 1) == late ]] || fail "the helper was not late"
is_thawed || fail "frozen after the limit"
kill $silence
# A daemon that answers what the state is, and never that a point is marked: the file system stays frozen meanwhile.
silent_daemon() {
  rm -rf "$WORK/run" && mkdir "$WORK/run"
  cp /run/salvol/vol.json "$WORK/run/vol.json"
  "$SALVOL" status vol --json | jq -c '{ok: .}' >"$WORK/status"
  /usr/bin/python3 - "$WORK/run" "$WORK/status" <<'PYTHON' &
import fcntl, socket, sys, time
run, status = sys.argv[1:]
lock = open(run + "/vol.lock", "a")
fcntl.flock(lock, fcntl.LOCK_EX)
listener = socket.socket(socket.AF_UNIX)
listener.bind(run + "/vol.sock")
listener.listen()
stream = listener.accept()[0].makefile("rw")
stream.readline()
stream.write(open(status).read())
stream.flush()
stream.readline()
open(run + "/asked", "w").close()
time.sleep(60)
PYTHON
  silent=$!
  wait_until 10 test -S "$WORK/run/vol.sock"
}
for victim in nobody marker helper; do
  silent_daemon
  SALVOL_RUN_DIR=$WORK/run "$SALVOL" synch vol --freeze $mountpoint --freeze-limit 3s >"$WORK/synch" 2>&1 &
  marker=$!
  wait_until 10 test -e "$WORK/run/asked" || fail "nothing was asked: $(cat "$WORK/synch")"
  case $victim in
    marker) kill -KILL $marker ;;
    helper) pkill -KILL -f "freeze-helper.*$mountpoint" ;;
  esac
  code=0
  wait $marker 2>/dev/null || code=$?
  [[ $code != 0 ]] || fail "a synch without an answer succeeded"
  # The helper of a marker that died has a moment to notice.
  wait_until 2 is_thawed || fail "still frozen after the death of $victim"
  kill $silent
  wait $silent 2>/dev/null || true
done
# Signals that end others do not end the helper.
mkfifo "$WORK/held"
sleep 60 >"$WORK/held" &
silence=$!
"$SALVOL" freeze-helper --limit 20s -- $mountpoint <"$WORK/held" >"$WORK/said" &
helper=$!
wait_until 10 grep -q frozen "$WORK/said" || fail "nothing was frozen"
kill -INT $helper && kill -TERM $helper && kill -HUP $helper
sleep 0.3
[[ $(cat "$WORK/said") == frozen ]] || fail "a signal ended the freeze"
kill $silence
wait $helper
[[ $(tail -n 1 "$WORK/said") == thawed ]] && is_thawed || fail "it did not thaw at the end of its input"
touch $mountpoint/still-writable
sync -f $mountpoint

say "hooks: told the facts, limited, and the one for afterwards always runs"
"$SALVOL" synch vol --label hooked --before 'test -b "$SALVOL_DEVICE" && test "$SALVOL_LABEL" = hooked && test -z "$SALVOL_POINT"' \
  --after 'echo "$SALVOL_NAME $SALVOL_POINT $SALVOL_POSITION $SALVOL_TIME" >'"$WORK/after" >/dev/null
grep -Eq '^vol p[0-9]+ [0-9]+ 20' "$WORK/after" || fail "--after was told $(cat "$WORK/after")"
points_before=$("$SALVOL" points vol --json | jq '.points | length')
expect_failure 'before.*within 300ms' "$SALVOL" synch vol --before 'sleep 60' --hook-limit 300ms --after "touch $WORK/after-anyway"
expect_failure 'before.*exit status: 7' "$SALVOL" synch vol --before 'exit 7'
[[ -e $WORK/after-anyway ]] || fail "--after did not run"
points_before=$((points_before + 1))
"$SALVOL" synch vol --before 'sleep 1' --after "touch $WORK/after-signal" >/dev/null 2>&1 &
marker=$!
sleep 0.3
kill -TERM $marker
! wait $marker 2>/dev/null || fail "a signal was lost"
[[ -e $WORK/after-signal ]] || fail "--after did not run because of a signal"
[[ $("$SALVOL" points vol --json | jq '.points | length') == "$points_before" ]] || fail "a point was marked although --before failed"

say "an agent that runs a command, and what the status says of it when that fails"
"$SALVOL" agent vol exec 'echo generation 17' --rounds 2 --every 200ms --label nightly >"$WORK/agent"
[[ $(wc -l <"$WORK/agent") == 2 ]] || fail "two rounds marked $(cat "$WORK/agent")"
[[ $(point_info "$(tail -n 1 "$WORK/agent" | cut -d' ' -f1)") == "generation 17" ]] || fail "the command's words are not in the point"
expect_failure 'exit status: 9.*no quorum' "$SALVOL" agent vol exec 'echo no quorum >&2; exit 9' --rounds 2 --every 200ms
status '.agents[] | select(.name | startswith("exec echo no")) | .failures == 2 and (.error | contains("no quorum"))' >/dev/null ||
  fail "the status does not tell: $("$SALVOL" status vol --json | jq -c .agents)"
"$SALVOL" status vol | grep -q 'agent .*FAILS' || fail "the status for people does not tell"
expect_failure 'no such volume' "$SALVOL" agent nobody exec true --rounds 1

say "SQLite: a lock that is not to be had, and a database that is not there"
database=$mountpoint/accounts.db
sqlite3 $database "CREATE TABLE log (id INTEGER PRIMARY KEY);"
(echo 'BEGIN IMMEDIATE;' && sleep 3) | sqlite3 $database &
sleep 0.5
expect_failure 'lock is not to be had within 1s' "$SALVOL" agent vol sqlite $database --limit 1s --rounds 1
wait
expect_failure 'no such file' "$SALVOL" agent vol sqlite $mountpoint/nothing.db --rounds 1
[[ ! -e $mountpoint/nothing.db ]] || fail "a database was made"

say "an agent goes on after its volume was away"
"$SALVOL" agent vol exec true --every 300ms >"$WORK/agent" 2>"$WORK/agent.log" &
agent=$!
wait_until 10 grep -q '^p' "$WORK/agent"
kill_daemon_and_recover
marked=$(wc -l <"$WORK/agent")
wait_until 20 bash -c "[[ \$(wc -l <'$WORK/agent') -gt $((marked + 1)) ]]" || fail "the agent did not go on: $(cat "$WORK/agent.log")"
kill $agent
wait $agent 2>/dev/null || true

umount $mountpoint
detach_volume
expect_clean_check
