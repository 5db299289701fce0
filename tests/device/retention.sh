#!/bin/bash
# test: prune and pin on a running volume: what is kept comes back, what a view reads stays, what is gone says what is near; a directory and a ring
# limit: 400
set -euo pipefail
# shellcheck source=tests/device/lib.sh
source "$(dirname "$0")/lib.sh"

sum_direct() { dd if="$1" bs=1M iflag=direct status=none | sha256sum | cut -d' ' -f1; }
view_device() { "$SALVOL" list --json | jq -er --arg name "$1" '.volumes[] | select(.name == $name) | .device'; }
scribble() { # scribble SEED MIB: a random sequence of blocks over the device
  fio_on_device --name=scribble --rw=randwrite --bs=16k-64k --size="$2M" --io_size="$2M" --randseed="$1" --iodepth=8 --buffer_compress_percentage=50
}

declare -A image_sum id
# mark N: the volume changes, and is point-N.
mark() {
  scribble "$1" 16
  id[$1]=$("$SALVOL" synch vol --label "point-$1" --wait archived --json | jq -r .id)
  image_sum[$1]=$(sum_direct "$device")
}

# expect_restores SOURCE N...: each of these points, bit for bit.
expect_restores() {
  local source=$1 number
  shift
  for number in "$@"; do
    "$SALVOL" -q restore "$source" --at "${id[$number]}" --to "$WORK/restored" --force >/dev/null || fail "point-$number is not restored from $source"
    [[ $(sha256sum <"$WORK/restored" | cut -d' ' -f1) == "${image_sum[$number]}" ]] || fail "point-$number from $source differs"
  done
  rm -f "$WORK/restored"
}

# expect_code CODE PATTERN COMMAND...
expect_code() {
  local wanted=$1 pattern=$2 output code=0
  shift 2
  output=$("$@" 2>&1) || code=$?
  [[ $code == "$wanted" ]] || fail "'$*' gave exit code $code, not $wanted: $output"
  grep -Eq "$pattern" <<<"$output" || fail "'$*' says something else than /$pattern/: $output"
  say "  exit code $code: $(head -n 1 <<<"$output")"
}

removed() { jq -er "$1" <<<"$report"; }
expect_no_trouble() { [[ $(status ".archive.error // \"\"") == "" ]]; }

say "--- a directory"
create_volume 32M
attach_volume
for number in 1 2 3 4 5 6 7 8; do mark $number; done
"$SALVOL" synch vol --label twice >/dev/null
scribble 90 4
"$SALVOL" synch vol --label twice >/dev/null
mark 9
mark 10

say "a label that was used twice names its candidates"
expect_code 4 'p[0-9]+ .*, p[0-9]+ ' "$SALVOL" restore vol --at twice --to "$WORK/nothing"

say "a target that is too small is refused"
small=$(make_null_disk small 16 0)
expect_code 1 'bytes' "$SALVOL" -q restore vol --at point-10 --to "$small" --force

say "a point is pinned, and twice is fine"
"$SALVOL" pin vol point-2
"$SALVOL" pin "$PRIMARY" point-2 | grep -q 'already' || fail "pinned twice, and it does not say so"
"$SALVOL" points vol | grep -q 'pinned *point-2' || fail "points do not show the pin"
expect_code 2 'only synch points' "$SALVOL" pin vol "$((${id[4]#p} - 1))"
expect_code 1 'not pinned' "$SALVOL" unpin vol point-3
expect_code 4 'nearest points' "$SALVOL" pin vol p1

say "a view of an old point is read, and the volume written, while all but two points are pruned"
view=$("$SALVOL" -q attach vol --at point-6)
expect_code 2 'view of the past' "$SALVOL" prune vol@point-6 --keep-points 2
(for _ in 1 2 3 4 5 6; do [[ $(sum_direct "$view") == "${image_sum[6]}" ]] || exit 1; done) &
reader=$!
(scribble 91 32) &
writer=$!
would=$("$SALVOL" prune vol --keep-points 2 --dry-run --json)
report=$("$SALVOL" prune vol --keep-points 2 --json)
say "  $(jq -c . <<<"$report")"
(($(removed .segments) > 0)) || fail "nothing was pruned"
[[ $(jq .dry_run <<<"$would") == true ]] || fail "a dry run says that it was none"
wait $reader || fail "the view changed, or failed"
wait $writer || fail "the writer failed"
[[ $(sum_direct "$view") == "${image_sum[6]}" ]] || fail "the view differs after the prune"
[[ $("$SALVOL" status vol@point-6 --json | jq .read_errors) == 0 ]] || fail "the view had read errors"
expect_restores vol 2 9 10
expect_restores "dir:$STORE" 2 6 9 10
"$SALVOL" -q verify vol >/dev/null || fail "verify finds fault: $("$SALVOL" -q verify vol)"

say "without the view its segments go with the next prune"
"$SALVOL" detach vol@point-6
report=$("$SALVOL" prune vol --keep-points 2 --json)
say "  $(jq -c . <<<"$report")"
(($(removed .segments) > 0)) || fail "what the view had leased stays for ever"
expect_restores vol 2 9 10
expect_restores "dir:$STORE" 2 9 10
expect_code 4 "nearest points are ${id[2]} .*before and p[0-9]+ .*after" "$SALVOL" restore "dir:$STORE" --at "${id[4]}" --to "$WORK/nothing"
expect_code 4 "nearest points are ${id[2]} .*before and p[0-9]+ .*after" "$SALVOL" attach "dir:$STORE" --at "${id[4]}"
expect_code 4 'no synch point is called so' "$SALVOL" restore vol --at point-5 --to "$WORK/nothing"
[[ ! -e $WORK/nothing ]] || fail "something was restored"
oldest=$("$SALVOL" points "dir:$STORE" --json | jq -r .oldest_restorable)
[[ $(removed .oldest_restorable) == "$oldest" ]] || fail "prune said $(removed .oldest_restorable), points say $oldest"
[[ ! $(status .oldest_restorable) > "$oldest" ]] || fail "the status says $(status .oldest_restorable), the archive has $oldest"
expect_healthy_status
"$SALVOL" -q verify vol >/dev/null || fail "verify finds fault: $("$SALVOL" -q verify vol)"
"$SALVOL" -q verify "dir:$STORE" >/dev/null || fail "verify finds fault: $("$SALVOL" -q verify "dir:$STORE")"

say "attached again, nothing is taken for lost; unpinned, the island goes"
detach_volume
attach_volume
scribble 92 8
"$SALVOL" synch vol --wait archived >/dev/null
! grep -q 'not in the store' /run/salvol/vol.log || fail "the daemon misses what was pruned: $(grep 'not in the store' /run/salvol/vol.log)"
report=$("$SALVOL" unpin vol point-2 --json)
(($(removed .segments) > 0)) || fail "the island stays: $report"
"$SALVOL" points vol --json | jq -e 'all(.points[]; .pinned | not)' >/dev/null || fail "something is still pinned"
expect_code 4 'older|no longer|gone' "$SALVOL" restore "dir:$STORE" --at "${id[2]}" --to "$WORK/nothing"
"$SALVOL" -q verify vol >/dev/null || fail "verify finds fault: $("$SALVOL" -q verify vol)"
detach_volume

say "--- a ring, its daemon running"
ring=$WORK/ring
"$SALVOL" create "$PRIMARY" --backing "file:$ring" --backing-size 120M --name vol --size 32M --utilisation 0.6 --spare 16 --segment-size 1M --force >/dev/null
attach_volume
for number in 1 2 3; do mark $number; done
"$SALVOL" pin vol point-1
view=$("$SALVOL" -q attach vol --at point-3)
turns_before=$(log_turns)
(while [[ ! -e $WORK/enough ]]; do [[ $(sum_direct "$view") == "${image_sum[3]}" ]] || exit 1; done) &
reader=$!
round=10
while (($(log_turns) - turns_before < 300)); do
  round=$((round + 1))
  scribble $round 20
done
touch "$WORK/enough"
wait $reader || fail "the view changed under the reader"
[[ $(sum_direct "$view") == "${image_sum[3]}" ]] || fail "the view differs after the turn-over"
say "  the log turned over $(($(log_turns) - turns_before)) hundredths under the view; the store: $(status '.archive.error // "no error"' | cut -c1-120)"
"$SALVOL" detach vol@point-3
while (($(log_turns) - turns_before < 500)); do
  round=$((round + 1))
  scribble $round 40
done
mark 4
expect_restores vol 1 4
expect_restores "file:$ring" 1
expect_code 4 'nearest points' "$SALVOL" restore vol --at "${id[3]}" --to "$WORK/nothing"
wait_until 30 expect_no_trouble || fail "the store is in trouble: $("$SALVOL" status vol)"
expect_healthy_status
report=$("$SALVOL" prune "file:$ring" --keep-points 1 --json)
say "  $(jq -c . <<<"$report")"
expect_restores vol 1 4
"$SALVOL" -q verify vol >/dev/null || fail "verify finds fault: $("$SALVOL" -q verify vol)"
"$SALVOL" unpin vol point-1
"$SALVOL" -q verify "file:$ring" >/dev/null || fail "verify finds fault: $("$SALVOL" -q verify "file:$ring")"
expect_healthy_status
detach_volume
expect_clean_check
