#!/bin/bash
# test: a primary that fails, lies, rots and has bad sectors: an error or right data, a stop that lasts, and everything back behind it
# limit: 240
# by-name: once in twenty runs a guest has stood still in it (docs/testing.md)
# run: ARCHIVE_AT=seal
# run-all: ARCHIVE_AT=inactive
#
# The kernel's own faulty disks are under the primary: dm-flakey (failing writes, dropped writes, corrupted reads), dm-dust (bad sectors) and
# fail_make_request. The judge is the stamping writer: each block is what it was promised to be, or cannot be read.
set -euo pipefail
# shellcheck source=tests/device/lib.sh
source "$(dirname "$0")/lib.sh"

disk=$PRIMARY
sectors=$(blockdev --getsz "$disk")
blocks=12288 # 48 MiB
volume=48M
journal=$WORK/journal

# disk_is TARGET ARGUMENT...: what is under the primary from now on; requests go on across the change.
disk_is() {
  local target=$1
  shift
  dmsetup load faulty --table "0 $sectors $target $disk 0 $*"
  dmsetup suspend --noflush --nolockfs faulty
  dmsetup resume --noudevsync faulty
}
disk_is_good() { disk_is linear ""; }
disk_is_flakey() { disk_is flakey "0 3600 $*"; }

start_writer() {
  rm -f "$WORK/stop"
  stamps write "$device" "$journal" --blocks $blocks --until "$WORK/stop" >"$WORK/writer.log" 2>&1 &
  writer=$!
  local lines
  lines=$({ cat "$journal/progress" 2>/dev/null || true; } | wc -l)
  wait_until 30 writer_went_on $((lines + ${1:-5})) || fail "the writer does not get going"
}
writer_went_on() { (($(wc -l <"$journal/progress") >= $1)); }
stop_writer() {
  touch "$WORK/stop"
  wait $writer || fail "the writer failed: $(cat "$WORK/writer.log")"
}

judge() { stamps check "$device" "$journal" "$@" | sed 's/^/  /' || fail "wrong data ${what:-}"; }

flush() { timeout 20 /usr/bin/python3 -c "import os, sys; os.fsync(os.open(sys.argv[1], os.O_RDWR))" "$device" 2>/dev/null; }
read_all() { timeout 60 dd if="$device" of=/dev/null bs=1M iflag=direct status=none; }

# Detaches whatever state it is in.
take_away() {
  timeout 60 "$SALVOL" detach vol ${1:-} >"$WORK/detach.log" 2>&1 || grep -q 'not closed cleanly' "$WORK/detach.log" || fail "detach: $(cat "$WORK/detach.log")"
  [[ ! -b $device ]] || fail "$device stays after detach"
}

# Detaching takes no longer than what waits for the archive.
detach_in_time() {
  timeout 60 "$SALVOL" detach vol || fail "no end of detaching: $(timeout 5 "$SALVOL" status vol --json | jq -c .archive)"
}

# ---- The disk takes no writes any more --------------------------------------------------------------------------------------------

fails_writes() {
  what="when the disk fails writes ($*)"
  say "$what"
  attach_volume
  start_writer
  "$@"
  wait_until 30 process_is_gone $writer || fail "the writer hangs $what"
  ! wait $writer || fail "the writer was told of no error $what"
  grep -q 'step [0-9]* failed' "$WORK/writer.log" || fail "the writer ended otherwise: $(cat "$WORK/writer.log")"
  [[ $(status .state) == stopped ]] || fail "the volume is $(status .state) $what"
  # Requests that fail are reads as well.
  [[ $1 == fail_requests ]] || read_all || fail "reads fail as well $what"
  disk_is_good
  stop_failing_requests
  # The kernel does not say again what it has lost; so neither a flush nor a write may succeed from now on.
  ! flush || fail "a flush succeeds after one had failed"
  ! dd if=/dev/zero of="$device" bs=4k count=1 seek=$((blocks - 1)) oflag=direct status=none 2>/dev/null || fail "a write succeeds after one had failed"
  [[ $(status .state) == stopped ]] || fail "the volume forgot that it had stopped"
  read_all || fail "reads fail when the disk is good again"
  take_away
  expect_clean_check >/dev/null
  attach_volume
  judge
  detach_volume
}

# The requests themselves, by the kernel's fault injection.
fail_requests() {
  local faults=/sys/kernel/debug/fail_make_request
  [[ -d $faults ]] || skip "this kernel has no fail_make_request"
  echo "$1" >$faults/probability
  echo 1 >$faults/interval
  echo -1 >$faults/times
  echo 0 >$faults/verbose
  echo 1 >"/sys/block/$(basename "$disk")/make-it-fail"
}
stop_failing_requests() { echo 0 >"/sys/block/$(basename "$disk")/make-it-fail"; }

# ---- The disk says that it writes -------------------------------------------------------------------------------------------------

# What was dropped is seen by whoever reads it, and by attach, for what came later says that it was durable.
drops_writes() {
  what="of a disk that drops writes"
  say "$what"
  attach_volume
  start_writer
  local promised
  promised=$(sed -n 's/^flushed //p' "$journal/progress" | tail -n 1)
  disk_is_flakey 1 drop_writes
  sleep 1
  disk_is_good
  local lines
  lines=$(wc -l <"$journal/progress")
  wait_until 30 eval "writer_went_on $((lines + 3)) || process_is_gone $writer"
  touch "$WORK/stop"
  wait $writer || true
  cp -r "$journal" "$WORK/journal.saved"
  judge --exact --unreadable $blocks
  # A segment of which the disk has dropped the beginning cannot be archived, which stops the archiver there and must be told.
  timeout 10 "$SALVOL" synch vol --label lies --wait archived >/dev/null || say "  $(status .archive.error) (archiving)"
  kill_daemon
  take_away --force
  if device=$("$SALVOL" attach "$PRIMARY" 2>"$WORK/refused"); then
    # Everything that was dropped has been cleaned away since, or is where nobody looks before he reads.
    judge --unreadable $blocks
    say "  attached as if nothing had been"
    detach_volume
  else
    say "  refused: $(head -n 1 "$WORK/refused" | cut -c1-160)"
    local position
    position=$(grep -o 'accept-loss [0-9]*' "$WORK/refused" | head -n 1 | cut -d' ' -f2 || true)
    if [[ -n $position ]]; then
      device=$("$SALVOL" attach "$PRIMARY" --accept-loss "$position") || fail "attach does not go on from the position that it names"
      judge --unreadable $blocks --promised "$promised"
      detach_volume
    else
      grep -q 'restore from the archive' "$WORK/refused" || fail "attach says nothing of what to do: $(cat "$WORK/refused")"
    fi
  fi
  # What the archive got from memory is right whatever the disk did; what it got from the disk was compared with its checksums.
  local restored
  restored=$(make_null_disk restored 48 0)
  if "$SALVOL" -q restore "dir:$STORE" --at lies --to "$restored" >/dev/null 2>"$WORK/refused"; then
    rm -rf "$journal"
    mv "$WORK/journal.saved" "$journal"
    stamps check "$restored" "$journal" --exact || fail "the archive has something else than what was written"
    say "  the archive has everything"
  else
    say "  the archive says what it has not: $(head -n 1 "$WORK/refused" | cut -c1-160)"
  fi
}

# Whatever the lies have left is given up.
start_afresh() {
  rm -rf "$STORE" "$journal"
  create_volume $volume >/dev/null
}

# ---- The disk reads what it likes -------------------------------------------------------------------------------------------------

# Each read is right or an error, and nothing is lost by it: everything is in the archive, and on the disk as well.
corrupts_reads() {
  what="when the disk corrupts reads ($*)"
  say "$what"
  attach_volume
  start_writer 20
  disk_is_flakey "$@"
  sleep 3
  stop_writer
  cp -r "$journal" "$WORK/journal.saved"
  judge --exact --unreadable $blocks
  disk_is_good
  rm -rf "$journal"
  mv "$WORK/journal.saved" "$journal"
  judge --exact
  detach_volume
}

# Attaching reads everything that matters. Each time it is right or refused, and what it refuses is whole on the next day.
attaches_under() {
  what="behind attaches under faults ($*)"
  say "$what"
  local attached=0 refused=0 turn
  for turn in $(seq "$(long 6 60)"); do
    if ((turn % 3 == 0)); then
      attach_volume
      start_writer 2
      kill_daemon
      take_away --force
      wait $writer || true
    fi
    "$@"
    if device=$(timeout 60 "$SALVOL" attach "$PRIMARY" 2>"$WORK/refused"); then
      attached=$((attached + 1))
      disk_is_good
      stop_failing_requests
      take_away
    else
      (($? != 124)) || fail "attach hangs $what"
      refused=$((refused + 1))
      disk_is_good
      stop_failing_requests
    fi
    attach_volume || fail "attach is refused $what: $(cat "$WORK/refused")"
    judge >"$WORK/judged"
    detach_volume
  done
  say "  $attached attached, $refused refused; the last: $(head -n 1 "$WORK/refused" | cut -c1-120)"
}

# ---- Bad sectors ------------------------------------------------------------------------------------------------------------------

# The log ends where a header of the segment that is still open cannot be read: attach names the sector, which becomes well.
attach_past_bad_sectors() {
  local healed block
  for healed in 0 1 2 3 4 5 6 7; do
    if device=$("$SALVOL" attach "$PRIMARY" 2>"$WORK/refused"); then
      say "  attached, $healed sectors of the open segment healed"
      return
    fi
    block=$(sed -n 's/.*reading the primary at \(0x[0-9a-f]*\): .*accept-loss.*/\1/p' "$WORK/refused")
    [[ -n $block ]] || fail "attach does not say what it cannot read: $(cat "$WORK/refused")"
    dmsetup message faulty 0 queryblock $((block / 4096)) | grep -q 'found in' || fail "attach names a good sector: $(cat "$WORK/refused")"
    dmsetup message faulty 0 removebadblock $((block / 4096))
  done
  fail "attach is refused again and again: $(cat "$WORK/refused")"
}

has_bad_sectors() {
  what="with bad sectors"
  say "$what"
  attach_volume
  start_writer 20
  stop_writer
  local bad=400 open=0 block
  if [[ $ARCHIVE_AT == seal ]]; then
    # All is in the archive, that of the segment that is still open in parts.
    "$SALVOL" synch vol --wait archived >/dev/null
  else
    # Nothing of the working set is in the archive.
    open=$bad
  fi
  detach_volume
  # Or the end of the log is a matter of what can be read.
  expect_clean_check >/dev/null
  disk_is dust 4096
  # Never both of the blocks that say which segment a slot holds: that is refused.
  for block in $(shuf -i 128-12928 -n $bad --random-source=<(yes)); do dmsetup message faulty 0 addbadblock $((block * 2)); done
  dmsetup message faulty 0 enable
  attach_past_bad_sectors
  cp -r "$journal" "$WORK/journal.saved"
  judge --exact --unreadable $open
  mv "$STORE" "$STORE.away"
  rm -rf "$journal"
  cp -r "$WORK/journal.saved" "$journal"
  judge --exact --unreadable $bad | tee "$WORK/judged"
  (($(sed -n 's/^ *\([0-9]*\) of .* unreadable/\1/p' "$WORK/judged") > 12)) || fail "no bad sector was met"
  mv "$STORE.away" "$STORE"
  rm -rf "$journal"
  mv "$WORK/journal.saved" "$journal"
  judge --exact --unreadable $open --trust
  # Bad sectors go when they are written, and the cleaner does not wait for them.
  start_writer 15
  stop_writer
  judge --exact --unreadable $open
  detach_in_time
  disk_is_good
  expect_clean_check >/dev/null
  # What was given up stays unreadable until it is overwritten, which the next story would take for its own.
  start_afresh
}

# STORY=has_bad_sectors, say, tells only that one.
story() {
  [[ ${STORY:-$1} == "$1" ]] || return 0
  local began=$SECONDS
  "$@"
  say "  $((SECONDS - began)) s"
}

dmsetup create faulty --noudevsync --verifyudev --table "0 $sectors linear $disk 0"
PRIMARY=/dev/mapper/faulty
start_afresh
story fails_writes disk_is_flakey 1 error_writes
story fails_writes fail_requests 100
story has_bad_sectors
story corrupts_reads 2 random_read_corrupt 300000000
story corrupts_reads 5 corrupt_bio_byte 224 r 7 0
story attaches_under disk_is_flakey 2 random_read_corrupt 100000000
story attaches_under fail_requests 20
story drops_writes
