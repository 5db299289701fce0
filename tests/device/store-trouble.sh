#!/bin/bash
# test: the store is full, then gone, then back, under a verifying load: nobody gets an error, and all is archived in the end
# limit: 300
#
# The store has a file system of its own. A ballast file fills it up; then it is unmounted, and at last it comes back with room.
# fio writes and verifies all the time, with its latencies logged; readers, flushes and synch points go on while writers wait.
set -euo pipefail
# shellcheck source=tests/device/lib.sh
source "$(dirname "$0")/lib.sh"

# The store is in the memory of the guest, so the longer run writes slower.
phase=$(long 12 25)
rate=$(long 12m 5m)
mountpoint=/run/salvol-store
disk=$(make_null_disk store 900 0)

fill_up() { fallocate -l "$(($(df --output=avail -B1 $mountpoint | tail -n 1) - (4 << 20)))" $mountpoint/ballast; }
in_trouble() { [[ $(status '.archive.error // ""') != "" ]]; }
writers_wait() { [[ $(status .state) == waiting ]]; }
works_again() { [[ $(status '.archive.error // ""') == "" && $(status .archive.queue) == 0 ]]; }

# What must go on whatever the store does.
expect_service() {
  [[ -z ${KEEP:-} ]] || printf '%s=%s\n' $((SECONDS - began)) "$1" >>"$KEEP.marks"
  timeout 20 dd if="$device" of=/dev/null bs=1M count=8 iflag=direct status=none || fail "reads do not go on"
  timeout 20 /usr/bin/python3 -c "import os, sys; os.fsync(os.open(sys.argv[1], os.O_RDONLY))" "$device" || fail "FLUSH does not go on"
  timeout 20 "$SALVOL" synch vol --label "$1" >/dev/null || fail "synch does not go on"
  kill -0 $load || fail "the load ended: $(tail -n 20 "$WORK/fio.log")"
  say "  $1: $(status .state), $(status .archive.queue) segments queued, $(status '.archive.exposed_seconds | floor') s exposed: $(status '.archive.error // "no error"' | cut -c1-90)"
}

mkfs.ext4 -q -m 0 "$disk"
mkdir -p $mountpoint
mount "$disk" $mountpoint
STORE=$mountpoint/archive
create_volume 64M
attach_volume
fio --name=load --filename="$device" --direct=1 --ioengine=io_uring --iodepth=8 --rw=randwrite --bs=16k --size=64M --rate=$rate --time_based \
  --runtime=$((phase * 6)) --verify=crc32c --verify_backlog=64 --verify_fatal=1 --buffer_compress_percentage=50 --write_lat_log="$WORK/latency" \
  --log_avg_msec=200 --log_max_value=1 --eta=never --output="$WORK/fio.log" &
load=$!
began=$SECONDS
sleep "$phase"
in_trouble && fail "the store is in trouble before the trouble begins"
expect_service working

fill_up
wait_until 120 in_trouble || fail "a full store is no trouble?"
wait_until 120 writers_wait || fail "writers do not wait when no slot is left: $("$SALVOL" status vol)"
"$SALVOL" status vol | grep -E 'archive|state' | sed 's/^/    /'
expect_service full

umount $mountpoint
sleep "$((phase / 2))"
expect_service gone
[[ -z $(ls -A $mountpoint) ]] || fail "something was written under the mount point: $(ls -A $mountpoint)"

mount "$disk" $mountpoint
sleep 2
expect_service "back and full"
rm $mountpoint/ballast
wait_until 120 works_again || true
wait $load || { tail -n 20 "$WORK/fio.log"; fail "fio met an error"; }
wait_until 60 works_again || fail "not everything is archived: $("$SALVOL" status vol)"
expect_healthy_status
"$SALVOL" synch vol --label end --wait archived >/dev/null
for label in working full gone "back and full" end; do
  "$SALVOL" points "dir:$STORE" --json | jq -e --arg wanted "$label" 'any(.points[]; .label == $wanted)' >/dev/null || fail "the point '$label' is not in the archive"
done
"$SALVOL" -q restore "dir:$STORE" --at end --to "$WORK/restored" >/dev/null
cmp "$device" "$WORK/restored" || fail "the archive does not have what the device has"
detach_volume
# For `cargo bench --bench plot`.
[[ -z ${KEEP:-} ]] || cp "$WORK/latency_lat.1.log" "$KEEP.latency"
say "  longest waits in ms, in six parts of the run: $(awk -F, -v part=$((phase * 1000)) \
  '{ at = int($1 / part); if ($2 > most[at]) most[at] = $2 } END { for (at = 0; at < 6; at++) printf "%d ", most[at] / 1e6 }' "$WORK"/latency_lat.1.log)"
