#!/bin/bash
# test: any moment is a live device: read-only and writable views, from primary and store and from the store alone, while the log turns over
# limit: 400
set -euo pipefail
# shellcheck source=tests/device/lib.sh
source "$(dirname "$0")/lib.sh"

sum_direct() { dd if="$1" bs=1M iflag=direct status=none | sha256sum | cut -d' ' -f1; }
view_device() { "$SALVOL" list --json | jq -er --arg name "$1" '.volumes[] | select(.name == $name) | .device'; }
scribble() { # scribble SEED MIB: a random sequence of blocks over the device
  fio_on_device --name=scribble --rw=randwrite --bs=4k-64k --size="$2M" --io_size="$2M" --randseed="$1" --iodepth=8 --buffer_compress_percentage=50
}

create_volume 128M
attach_volume

say "five points, each with an image of its own"
declare -A image_sum
for round in 1 2 3 4 5; do
  scribble "$round" 40
  point=$("$SALVOL" synch vol --label "state-$round" --wait archived --json | jq -r .id)
  image_sum[$round]=$(sum_direct "$device")
done

say "each is a device at once, and they are equal bit for bit, all together"
for round in 1 2 3 4 5; do
  # The fastest of three: the stall of a busy machine is not the view's.
  for try in 1 2 3; do
    started=$(date +%s%N)
    view=$("$SALVOL" -q attach vol --at "state-$round")
    dd if="$view" of=/dev/null bs=4096 count=1 iflag=direct status=none
    millis=$((($(date +%s%N) - started) / 1000000))
    ((millis >= 3000 && try < 3)) || break
    say "  vol@state-$round: $millis ms, once more"
    "$SALVOL" -q detach "vol@state-$round"
  done
  say "  vol@state-$round is $view, first byte after $millis ms"
  ((millis < 3000)) || fail "the first byte took $millis ms"
done
for round in 1 2 3 4 5; do
  [[ $(sum_direct "$(view_device "vol@state-$round")") == "${image_sum[$round]}" ]] || fail "vol@state-$round differs"
done
expect_failure 'read-only|not permitted' dd if=/dev/zero of="$(view_device vol@state-1)" bs=4096 count=1 oflag=direct
[[ $("$SALVOL" status vol@state-2 --json | jq -r .state) == past ]] || fail "the status of a view says something else"
expect_failure 'attached already' "$SALVOL" attach vol --at state-2
expect_failure 'no points of its own' "$SALVOL" synch vol@state-1

say "they stay what they are while the volume goes on, and its log turns over under them"
turns_before=$(log_turns)
(
  for round in 1 2 3 4 5 6 7 8; do
    for number in 1 5; do
      [[ $(sum_direct "$(view_device "vol@state-$number")") == "${image_sum[$number]}" ]] || exit 1
    done
  done
) &
reader=$!
round=10
while (($(log_turns) - turns_before < $(long 300 800))); do
  round=$((round + 1))
  scribble $round 120
done
wait $reader || fail "a view changed under the readers"
expect_turns 3
for round in 1 2 3 4 5; do
  [[ $(sum_direct "$(view_device "vol@state-$round")") == "${image_sum[$round]}" ]] || fail "vol@state-$round differs after the turn-over"
done
[[ $("$SALVOL" status vol@state-1 --json | jq .read_errors) == 0 ]] || fail "a view had read errors"

say "a view whose daemon is killed is gone, and nobody else is"
pid=$("$SALVOL" list --json | jq -er '.volumes[] | select(.name == "vol@state-3") | .pid')
kill -KILL "$pid"
wait_until 20 process_is_gone "$pid" || fail "the daemon of a view is still there"
wait_until 40 "$SALVOL" -q attach vol --at state-3 || fail "a view cannot be made again after its daemon died"
[[ $(sum_direct "$(view_device vol@state-3)") == "${image_sum[3]}" ]] || fail "the view made again differs"
[[ $(sum_direct "$(view_device vol@state-4)") == "${image_sum[4]}" ]] || fail "another view suffered"
for round in 1 2 3 4 5; do "$SALVOL" detach "vol@state-$round"; done

say "a writable view is a disk of its own, and is discarded"
view=$("$SALVOL" -q attach vol --at state-2 --writable)
before=$(sum_direct "$device")
[[ $(sum_direct "$view") == "${image_sum[2]}" ]] || fail "the writable view does not begin with the point"
mkfs.ext4 -q "$view"
mkdir -p /run/salvol-view
mount "$view" /run/salvol-view
fio --directory=/run/salvol-view --name=verify --rw=randwrite --bs=4k --size=32M --verify=crc32c --ioengine=psync --fsync=32 \
  --eta=never --output="$WORK/fio.log" || { cat "$WORK/fio.log"; fail "fio on the writable view"; }
fstrim /run/salvol-view
umount /run/salvol-view
e2fsck -fn "$view" >/dev/null 2>&1 || fail "the file system in the writable view is not whole"
[[ $(sum_direct "$device") == "$before" ]] || fail "the volume changed"
"$SALVOL" detach vol@state-2
view=$("$SALVOL" -q attach vol --at state-2 --writable)
[[ $(sum_direct "$view") == "${image_sum[2]}" ]] || fail "something of the discarded view is left"
"$SALVOL" detach vol@state-2

say "an overlay that is kept is there the next time, also after its daemon was killed"
overlay=$WORK/overlay
view=$("$SALVOL" -q attach vol --at state-2 --writable --overlay "$overlay")
dd if=/dev/urandom of="$view" bs=1M count=20 seek=13 oflag=direct conv=fsync status=none
blkdiscard -z -o $((40 << 20)) -l $((1 << 20)) "$view"
sync "$view"
written=$(sum_direct "$view")
pid=$("$SALVOL" list --json | jq -er '.volumes[] | select(.name == "vol@state-2") | .pid')
kill -KILL "$pid"
wait_until 20 process_is_gone "$pid" || fail "the daemon of a view is still there"
wait_until 40 "$SALVOL" -q attach vol --at state-2 --writable --overlay "$overlay" || fail "no view with the overlay that was kept"
[[ $(sum_direct "$(view_device vol@state-2)") == "$written" ]] || fail "the overlay has lost what was flushed"
expect_failure 'in use by another view' "$SALVOL" -q attach vol --at p"${point#p}" --writable --overlay "$overlay"
"$SALVOL" detach vol@state-2
expect_failure 'another volume, history or point' "$SALVOL" -q attach vol --at state-3 --writable --overlay "$overlay"
echo "no overlay at all" >"$WORK/notes"
expect_failure 'no overlay' "$SALVOL" -q attach vol --at state-3 --writable --overlay "$WORK/notes"
[[ $(cat "$WORK/notes") == "no overlay at all" ]] || fail "a file that is no overlay was written to"

say "what is not there is said"
code=0
"$SALVOL" attach vol --at state-9 2>/dev/null || code=$?
[[ $code == 4 ]] || fail "a point that is not there gave exit code $code"
expect_failure 'itself a view' bash -c "'$SALVOL' -q attach vol --at state-1 && '$SALVOL' attach vol@state-1 --at latest"
"$SALVOL" detach vol@state-1

detach_volume
say "from a primary that nobody serves, and from the store alone"
view=$("$SALVOL" -q attach "$PRIMARY" --at state-4)
[[ $(sum_direct "$view") == "${image_sum[4]}" ]] || fail "the view of a detached volume differs"
# The volume can be attached beside it.
attach_volume
[[ $(sum_direct "$view") == "${image_sum[4]}" ]] || fail "the view differs when the volume is attached"
"$SALVOL" detach vol@state-4
detach_volume
dd if=/dev/zero of="$PRIMARY" bs=1M count=1 oflag=direct status=none
view=$("$SALVOL" -q attach "dir:$STORE" --at state-1)
[[ $(sum_direct "$view") == "${image_sum[1]}" ]] || fail "the view from the store alone differs"
"$SALVOL" detach vol@state-1
"$SALVOL" list --json | jq -e '.volumes == []' >/dev/null || fail "something is left: $("$SALVOL" list)"
