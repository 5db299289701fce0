#!/bin/bash
# test: the daemon is killed 20 (KILLS) times under verifying I/O: recover loses nothing that was acknowledged, and no I/O hangs
# limit: 300
# limit-each: KILLS 5
# run: ARCHIVE_AT=seal
# run-all: ARCHIVE_AT=inactive
#
# Two judges at once: fio, whose every block must verify although its daemon died again and again, and the stamping writer,
# whose last acknowledged step must be there.
set -euo pipefail
# shellcheck source=tests/device/lib.sh
source "$(dirname "$0")/lib.sh"

kills=${KILLS:-20}
region=8192 # blocks of each judge: 32 MiB

# A read whose answer the daemon is giving at the moment it is killed may fail in the driver: to hand the bytes over it pins the
# daemon's pages, and User-Mode Linux pins none for a process that is about to die. Such an error is not salvol's, which tells every
# request that it fails, and nothing is lost: the judge begins again.
failed_in_the_driver() {
  [[ $KERNEL_KIND == uml ]] && grep -q 'Input/output error: read' "$WORK/fio.log" "$WORK/fio.err" &&
    ! grep -q 'request failed' /run/salvol/vol.log
}

verify_until_stopped() {
  while [[ ! -e $WORK/stop ]]; do
    fio --filename="$device" --direct=1 --ioengine=io_uring --eta=never --output="$WORK/fio.log" --name=verify --rw=randwrite \
      --bsrange=4k-256k --iodepth=32 --size=$((region * 4096)) --verify=crc32c --verify_fatal=1 --verify_state_save=0 2>"$WORK/fio.err" ||
      { cat "$WORK/fio.err" && failed_in_the_driver && say "  a read failed in the driver as the daemon died"; } || return 1
  done
}

# I/O goes on when the writer has recorded more flushes than it had.
writer_went_on() { [[ $(wc -l <"$WORK/journal/progress") -gt $1 ]]; }

create_volume 80M
attach_volume
start_counting

verify_until_stopped &
verifier=$!
stamps write "$device" "$WORK/journal" --first-block $region --blocks $region --until "$WORK/stop" &
writer=$!
wait_until 30 writer_went_on 2 || fail "the writer does not get going"

killed=0
began=$SECONDS
while ((killed < kills || $(logged_turns) < 10)); do
  if ((kills > 20)); then sleep "0.$((RANDOM % 3))"; else sleep "$((RANDOM % 2)).$((RANDOM % 10))"; fi
  kill -0 $verifier || fail "fio gave up before kill $killed"
  kill -0 $writer || fail "the writer gave up before kill $killed"
  before=$(wc -l <"$WORK/journal/progress")
  add_logged
  kill_daemon_and_recover
  start_counting
  killed=$((killed + 1))
  wait_until 30 writer_went_on $((before + 2)) || fail "I/O hangs after kill $killed"
done
say "  killed and recovered $killed times in $((SECONDS - began)) s, the log turned over $(logged_turns) times"

touch "$WORK/stop"
wait $verifier || fail "fio found wrong data"
wait $writer || fail "the writer failed"
stamps check "$device" "$WORK/journal" --exact || fail "acknowledged writes were lost"

expect_healthy_status
detach_volume
expect_clean_check
attach_volume
stamps check "$device" "$WORK/journal" --exact || fail "acknowledged writes were lost at attach"
detach_volume
