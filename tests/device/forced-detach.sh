#!/bin/bash
# test: detach --force ends whoever waits for the volume: for a daemon killed a moment ago, for a store that is away
# limit: 240
# run: ARCHIVE_AT=seal
set -euo pipefail
# shellcheck source=tests/device/lib.sh
source "$(dirname "$0")/lib.sh"

start_writer() {
  fio --name=writer --filename="$device" --direct=1 --ioengine=io_uring --rw=randwrite --bs=16k --iodepth=32 --time_based --runtime=600 \
    --eta=never --output="$WORK/fio.log" 2>/dev/null &
  writer=$!
}

# Also the writers must be free: their requests fail, none waits for ever.
force_detach() {
  timeout 60 "$SALVOL" detach vol --force || fail "detach --force failed or hung"
  wait_until 20 process_is_gone $writer || fail "a writer still waits for the device that was detached"
  [[ ! -b $device ]] || fail "$device stays after detach --force"
}

create_volume 80M

# A killed daemon has a while of dying: it still takes connections, and answers nothing.
for kill in 1 2 3 4 5 6 7 8; do
  attach_volume
  start_writer
  sleep "0.$((RANDOM % 10))"
  kill -KILL "$(daemon_pid)"
  force_detach
done
say "  killed and detached by force $kill times"

attach_volume
mv "$STORE" "$STORE.away"
start_writer
wait_until 60 status '.segments.recycle == 0 and .archive.error != null' || fail "the writers do not run out of slots"
sleep 1
expect_failure 'in use: .*fio' timeout 60 "$SALVOL" detach vol
force_detach
say "  detached by force with the store away and $(grep -c . "$WORK/fio.log") lines of complaint by the writer"
mv "$STORE.away" "$STORE"

# With every tag at the daemon, only the block layer's timeout of 30 s tells the kernel that the daemon is dead.
use_all_tags_and_kill() {
  mv "$STORE" "$STORE.away"
  fio --name=flood --filename="$device" --direct=1 --ioengine=io_uring --rw=randwrite --bs=16k --iodepth=256 --time_based --runtime=600 \
    --eta=never --output="$WORK/fio.log" 2>/dev/null &
  writer=$!
  wait_until 60 status '.segments.recycle == 0 and .archive.error != null' || fail "the writers do not run out of slots"
  sleep 2
  kill -KILL "$(daemon_pid)"
  mv "$STORE.away" "$STORE"
}

say "a daemon killed with all its tags busy"
attach_volume
use_all_tags_and_kill
timeout 90 "$SALVOL" recover vol >/dev/null || fail "recover failed or hung"
wait_until 20 status '.user_bytes_written > 20000000' || fail "I/O does not go on after recover"
kill -0 $writer || fail "the writer failed when the daemon was killed"
force_detach
attach_volume
use_all_tags_and_kill
force_detach

say "a daemon that is told to end twice leaves its device to recover"
attach_volume
start_writer
sleep 1
pid=$(daemon_pid)
kill -TERM "$pid"
sleep 0.02
kill -TERM "$pid" 2>/dev/null || true
wait_until 20 process_is_gone "$pid" || fail "daemon $pid is still there 20 s after it was told to end"
timeout 60 "$SALVOL" recover vol >/dev/null || fail "the device of a daemon that was told to end twice cannot be recovered"
kill -0 $writer || fail "the writer failed when the daemon was told to end"
force_detach

say "a detach that comes after the signal"
attach_volume
start_writer
sleep 1
kill -TERM "$(daemon_pid)"
timeout 60 "$SALVOL" detach vol --force || force_detach
wait_until 20 process_is_gone $writer || fail "a writer still waits for the device that was detached"
! compgen -G '/dev/ublk[bc]*' >/dev/null || fail "the device stays after a signal and detach --force"

attach_volume
fio_on_device --name=alive --rw=randwrite --bs=16k --iodepth=8 --size=40M
expect_healthy_status
detach_volume
expect_clean_check
