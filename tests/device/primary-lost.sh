#!/bin/bash
# test: the primary is lost in the middle of work, again and again: restored from the archive alone, rebuilt, and gone on with
# limit: 400
# run: KIND=dir
# run-all: LOSSES=20 KIND=file
# run-all: KIND=dev
#
# The primary is a file that is taken away at a random moment, together with the daemon. Half of the lives mark points and wait until
# they are archived; the others leave it to --archive-interval. What comes back must be a state of the past, not before the last
# promise; what is lost is measured. Then a new primary is rebuilt and the work goes on; the old one is refused when it comes back.
set -euo pipefail
# shellcheck source=tests/device/lib.sh
source "$(dirname "$0")/lib.sh"

LOSSES=${LOSSES:-6}
KIND=${KIND:-dir}
interval=2
blocks=6144
disk=/run/salvol-disk
journal=$WORK/journal
promises=$WORK/promises

losses() { /usr/bin/python3 "$here/losses.py" "$@"; }

# Marks points, and notes each with the writes that were acknowledged before, when it is said to be archived.
mark_forever() {
  local before id
  while [[ ! -e $WORK/stop ]]; do
    before=$(losses acknowledged "$journal")
    id=$("$SALVOL" synch vol --wait archived --json | jq -er .id) || return 0
    printf '%s %s\n' "$id" "$before" >>"$promises"
    sleep 0.3
  done
}

# restore POINT AT-LEAST DIED-AT: from the archive alone, judged; the judge's words are in $WORK/judged.
restore_and_judge() {
  "$SALVOL" -q restore "$backing" --at "$1" --to "$WORK/restored" --force --json >"$WORK/restore.json" || fail "$1 does not come back"
  losses judge "$WORK/restored" "$journal" --blocks $blocks --at-least "$2" --died-at "$3" >"$WORK/judged" ||
    fail "what came back at $1 is no state of the past, or an old one"
}

live() {
  local life=$1 marker=
  rm -f "$WORK/stop"
  : >"$promises"
  device=$("$SALVOL" attach "$primary" --archive-interval ${interval}s)
  # A slow writer in the lives without marks: its segments take longer to fill than the interval.
  local pause=0.01
  ((life % 2)) || pause=0.4
  losses write "$device" "$journal" --blocks $blocks --until "$WORK/stop" --pause $pause &
  local writer=$!
  if ((life % 2)); then
    mark_forever 2>/dev/null &
    marker=$!
  fi
  sleep "$((interval + 1 + RANDOM % 3)).$((RANDOM % 10))"
  kill -0 $writer || fail "the writer ended before the primary was lost"
  local pid
  pid=$(daemon_pid)
  kill -KILL "$pid"
  died=$(date +%s.%N)
  mv "$primary" "$disk/lost-$life"
  touch "$WORK/stop"
  wait_until 20 process_is_gone "$pid" || fail "daemon $pid hangs"
  timeout 60 "$SALVOL" -q detach vol --force >/dev/null || fail "detach --force of the dead volume failed"
  wait $writer $marker 2>/dev/null || true
}

check_what_is_left() {
  local life=$1 promised=0 id before
  "$SALVOL" points "$backing" --json >"$WORK/points.json"
  while read -r id before; do
    jq -e --arg id "$id" 'any(.points[]; .id == $id)' "$WORK/points.json" >/dev/null || fail "$id was archived, and is gone"
    promised=$before
  done <"$promises"
  if [[ -s $promises ]]; then
    read -r id before < <(shuf -n 1 "$promises")
    restore_and_judge "$id" "$before" 0
  fi
  restore_and_judge "$(date -u -d '1 hour' +%FT%TZ)" "$promised" "$died"
  printf '  life %s: %s points promised, lost %s s, %s KiB\n' "$life" "$(wc -l <"$promises")" \
    "$(jq .lost_seconds "$WORK/judged")" "$(jq '.lost_bytes / 1024' "$WORK/judged")"
  jq -r .lost_seconds "$WORK/judged" >>"$WORK/lost-seconds"
}

rebuild() {
  local life=$1
  primary=$disk/primary-$life
  "$SALVOL" -q rebuild "$primary" --from "$backing" >/dev/null || fail "rebuild failed"
  device=$("$SALVOL" attach "$primary" --read-only)
  cmp "$device" "$WORK/restored" || fail "the rebuilt volume is not what the archive restores"
  "$SALVOL" detach vol
  expect_failure 'rebuilt|continue' "$SALVOL" attach "$disk/lost-$life"
  rm -f "$disk/lost-$((life - 1))"
}

mkfs.ext4 -q "$PRIMARY"
mkdir -p $disk
mount "$PRIMARY" $disk
case $KIND in
  dir) backing=dir:$STORE ;;
  # A ring wants direct I/O, which the host's directory does not have here.
  file) backing=file:$disk/archive ;;
  dev) backing=dev:$(make_null_disk archive 512 0) ;;
esac
primary=$disk/primary-0
size=()
[[ $KIND != file ]] || size=(--backing-size 512M)
"$SALVOL" -q create "$primary" --backing "$backing" "${size[@]}" --name vol --size $((blocks * 4))K --utilisation 0.6 --spare 16 --segment-size 1M
for life in $(seq "$LOSSES"); do
  live "$life"
  check_what_is_left "$life"
  rebuild "$life"
done
# Every point of every history is still there.
say "  $("$SALVOL" points "$backing" --json | jq '.points | length') points over $((LOSSES + 1)) histories; seconds lost, sorted:" \
  "$(sort -n "$WORK/lost-seconds" | xargs)"
# A part is begun every interval; it takes its time to be put, read back and compared.
awk -v most=$((interval + 4)) '$1 > most { exit 1 }' "$WORK/lost-seconds" || fail "more was lost than the interval explains"
umount $disk
