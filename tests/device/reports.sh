#!/bin/bash
# test: list, status and features tell what is there; a daemon that fails before its device is live leaves nothing behind
# limit: 90
set -euo pipefail
# shellcheck source=tests/device/lib.sh
source "$(dirname "$0")/lib.sh"

volumes() { "$SALVOL" list --json | jq '.volumes | length'; }
no_devices() { ! compgen -G '/dev/ublk[bc]*' >/dev/null; }

"$SALVOL" features || fail "features failed"
[[ $(volumes) == 0 ]] || fail "list shows volumes where none runs"

create_volume 128M
attach_volume
[[ $(readlink -f /dev/salvol/vol) == "$device" ]] || fail "/dev/salvol/vol does not lead to $device"
"$SALVOL" list | grep -q "$device" || fail "list does not show $device"
"$SALVOL" list --json | jq -e --arg device "$device" --arg primary "$PRIMARY" '.volumes == [.volumes[0]] and (.volumes[0] |
  .name == "vol" and .device == $device and .primary == $primary and (.uuid | length) > 30 and .pid > 1 and .state != null)' >/dev/null ||
  fail "list --json: $("$SALVOL" list --json)"

"$SALVOL" status vol | head -n 20
for field in name uuid device state size_bytes block_size segment_size working_set_segments segments.current segments.active \
  segments.inactive segments.archived segments.recycle archive.queue archive.lag_bytes archive.lag_seconds archive.store \
  write_amplification user_bytes_written log_bytes_written bytes_archived compression_ratio points throttled_seconds read_errors; do
  "$SALVOL" status vol --json | jq -e "(.$field | type) != \"null\"" >/dev/null || fail "status --json has no $field"
done

say "what the kernel was told: size, cache, FUA, discard"
queue=/sys/block/${device#/dev/}/queue
[[ $(blockdev --getsize64 "$device") == $((128 << 20)) ]] || fail "the device has another size than the volume"
[[ $(cat "$queue/logical_block_size") == 4096 ]] || fail "logical block size $(cat "$queue/logical_block_size")"
[[ $(cat "$queue/write_cache") == "write back" ]] || fail "no volatile cache is advertised, so nobody would flush"
[[ $(cat "$queue/fua") == 1 ]] || fail "no FUA"
[[ $(cat "$queue/discard_max_bytes") -gt 0 ]] || fail "no discard"
[[ $(cat "$queue/write_zeroes_max_bytes") -gt 0 ]] || fail "no write-zeroes"

say "an unwritten volume reads as zeros, a trimmed block too"
cmp -n $((128 << 20)) "$device" /dev/zero
head -c 1M /dev/urandom | dd of="$device" bs=1M oflag=direct status=none
blkdiscard -o 0 -l 1M "$device"
dd if="$device" bs=1M count=1 iflag=direct status=none | cmp -n $((1 << 20)) - /dev/zero
dd if=/dev/urandom of="$device" bs=1M count=1 oflag=direct status=none
blkdiscard -z -o 0 -l 512K "$device"
dd if="$device" bs=512K count=1 iflag=direct status=none | cmp -n $((512 << 10)) - /dev/zero

detach_volume
[[ $(volumes) == 0 && ! -e /dev/salvol/vol ]] || fail "the detached volume is still listed"
no_devices || fail "devices are left after detach"

say "a failure before the device is live leaves nothing behind"
"$SALVOL" attach "$PRIMARY" --foreground --background-child | true || true
no_devices || fail "attach made a device although nobody waits for it"
dd if=/dev/zero of="$PRIMARY" bs=1M count="$(($(blockdev --getsize64 "$PRIMARY" 2>/dev/null || stat -c %s "$PRIMARY") >> 20))" \
  oflag=direct conv=notrunc status=none
expect_failure 'superblock|no salvol|not a salvol' "$SALVOL" attach "$PRIMARY"
no_devices || fail "a failed attach left a device behind"
[[ $(volumes) == 0 ]] || fail "a failed attach left a volume in the list"
STORE=$STORE-again # a store belongs to one volume
create_volume 128M
attach_volume
taken=${device#/dev/ublkb}
other=$(make_null_disk other 512 0)
"$SALVOL" create "$other" --backing "dir:$STORE.other" --name other --size 64M --segment-size 1M >/dev/null
expect_failure 'exist|in use|taken|busy' "$SALVOL" attach "$other" --id "$taken"
[[ $(volumes) == 1 ]] || fail "a failed attach left a volume in the list"
status .state >/dev/null || fail "the volume whose id was asked for suffered"

say "a device whose daemon died is taken over with its own primary only"
kill_daemon
cp /run/salvol/vol.json "$WORK/vol.json"
jq --arg other "$other" '.primary = $other' "$WORK/vol.json" >/run/salvol/vol.json
expect_failure 'holds the volume other' "$SALVOL" recover vol
cp "$WORK/vol.json" /run/salvol/vol.json
"$SALVOL" recover vol >/dev/null || fail "a failed recover left nothing to recover"

say "a device that no run file tells of"
expect_failure 'not attached|no such volume' "$SALVOL" detach /dev/ublkb9
mv /run/salvol/vol.json "$WORK/vol.json"
expect_failure 'serves it' "$SALVOL" detach "$device" --force
mv "$WORK/vol.json" /run/salvol/vol.json
kill_daemon
rm /run/salvol/vol.json
"$SALVOL" detach "$device" --force || fail "a device without a run file stays"
no_devices || fail "a device without a run file stays"

say "two at once: one number, one name"
one_of_two() {
  local succeeded=0 first second
  "$@" "$PRIMARY" >/dev/null 2>"$WORK/first" &
  first=$!
  "$@" "$other" >/dev/null 2>"$WORK/second" &
  second=$!
  ! wait $first || succeeded=$((succeeded + 1))
  ! wait $second || succeeded=$((succeeded + 1))
  [[ $succeeded == 1 && $(volumes) == 1 ]] || fail "of two, $succeeded were attached, $(volumes) are there: $(cat "$WORK/first" "$WORK/second")"
  say "  refused as it should be: $(cat "$WORK/first" "$WORK/second")"
  [[ $("$SALVOL" list --json | jq -r '.volumes[0].state') == live ]] || fail "the one that was attached is not served"
  "$SALVOL" detach --all
  no_devices || fail "devices are left after detach"
}
one_of_two "$SALVOL" attach --id 7
"$SALVOL" create "$other" --backing "dir:$STORE.same" --name vol --size 64M --segment-size 1M --force >/dev/null
one_of_two "$SALVOL" attach
