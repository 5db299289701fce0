#!/bin/bash
# Measures `salvol restore` from a dir: archive alone beside zstd on the same objects. Called by scripts/bench; alone:
#
#   SALVOL=target/release/salvol ENGINE='cargo bench -q --bench engine --' WORK=/var/tmp/restore-bench tests/bench/restore.sh
#
# The volume has 1 GiB, every block of it written, most of them at random and half compressible; its archive is made in
# process, without a kernel driver. Each round takes all three in turns, every object out of the page cache before each:
#
#   salvol   salvol restore dir:STORE --at NOW --to FILE: reads the W+1 newest objects, verifies every block, writes the
#            volume's bytes, and ends when they are durable
#   same     zstd -dc of the same W+1 objects to /dev/null, and then as many bytes as the volume has written and fdatasynced:
#            the same decoding and the same writing, without the knowledge of what goes where
#   images   zstd -dc of the same objects to a file, and fdatasync: also writes what is dead, 1/u times as much
#
# Prints a table of medians, and their ratios pair by pair.
set -euo pipefail

: "${SALVOL:?}" "${ENGINE:?}" "${WORK:?}"
rounds=${ROUNDS:-5}
working_set=128
mkdir -p "$WORK"
store=$WORK/store out=$WORK/out
trap 'rm -rf "$WORK/primary" "$store" "$out" "$WORK/.out.partial" "$WORK/bytes"' EXIT

$ENGINE --primary "$WORK/primary" --store "$store" --working-set $working_set --utilisation 0.5 --turns 1.5 --seconds 1 >/dev/null
rm -f "$WORK/primary"
mapfile -t objects < <(find "$store" -name '*.zst' | sort | tail -n $((working_set + 1)))
now=$(date -u +%FT%TZ)

# Reads go to the disk: salvol's always do.
forget() { for object in "${objects[@]}"; do dd if="$object" iflag=nocache count=0 status=none; done; rm -f "$out"; }
timed() {
  local start=$EPOCHREALTIME
  "$@" >&2
  awk -v a="$start" -v b="$EPOCHREALTIME" 'BEGIN { printf "%.3f\n", b - a }'
}
salvol() { "$SALVOL" --quiet restore "dir:$store" --at "$now" --to "$out"; }
same() { zstd -qdc "${objects[@]}" >/dev/null && dd if="$WORK/bytes" of="$out" bs=1M conv=fdatasync status=none; }
images() { zstd -qdc "${objects[@]}" >"$out" && sync -d "$out"; }
median() { sort -g | awk '{ all[NR] = $1 } END { printf "%.3f\n", (all[int((NR + 1) / 2)] + all[int(NR / 2) + 1]) / 2 }'; }

salvol >&2
mv "$out" "$WORK/bytes"
# Told to end half-way, it goes on and gives the same bytes.
if ! timeout -s INT "${INTERRUPT:-0.5}" "$SALVOL" --quiet restore "dir:$store" --at "$now" --to "$out" >&2; then
  salvol >&2
fi
cmp "$out" "$WORK/bytes"

for ((round = 0; round < rounds; round++)); do
  for what in salvol same images; do
    forget
    timed $what >>"$WORK/$what.txt"
  done
done
packed=$(cat "${objects[@]}" | wc -c)
echo "$((${#objects[@]})) objects, $((packed >> 20)) MiB; volume $(($(stat -c %s "$WORK/bytes") >> 20)) MiB; $rounds rounds, medians"
echo
echo "| | seconds | salvol takes, of its time |"
echo "|---|---|---|"
for what in salvol same images; do
  ratio=$(paste "$WORK/salvol.txt" "$WORK/$what.txt" | awk '{ print $1 / $2 }' | median)
  echo "| $what | $(median <"$WORK/$what.txt") | $ratio |"
done
rm -f "$WORK"/{salvol,same,images}.txt
