#!/bin/bash
# test: fsx compares 200 000 (FSX_THOUSANDS) random reads, writes, mapped writes, trims and flushes with its model
# limit: 420
# limit-each: FSX_THOUSANDS 3
# needs: fsx
# run: ARCHIVE_AT=seal
# run-all: ARCHIVE_AT=inactive
set -euo pipefail
# shellcheck source=tests/device/lib.sh
source "$(dirname "$0")/lib.sh"

seed=${SEED:-$(date +%s)}
thousands=${FSX_THOUSANDS:-$(long 200 400)}
bytes_max=${BYTES_MAX:-131072} # of one operation
# At a time: fsx does not give back all that it asks the system for.
piece=400

create_volume 64M --compression none
attach_volume
sed "s/^max = .*/max = $bytes_max/" "$here/fsx.toml" >"$WORK/fsx.toml"
# A long run would fill the host's disk.
while sleep 60; do "$SALVOL" -q prune vol --keep-for 5m >/dev/null || touch "$WORK/prune-failed"; done &
pruner=$!
for ((done = 0; done < thousands; done += piece)); do
  now=$((thousands - done < piece ? thousands - done : piece))
  say "  seed $seed, $now 000 operations of at most $bytes_max bytes, after $done 000"
  # It expects zeros.
  ((done == 0)) || blkdiscard -z "$device"
  "$FSX" -f "$WORK/fsx.toml" -P "$WORK" -S "$seed" -N "${now}000" "$device" || fail "fsx found a difference; run again with SEED=$seed"
  seed=$((seed + 1))
done
kill $pruner && wait $pruner || true
[[ ! -e $WORK/prune-failed ]] || fail "a prune failed"
expect_turns 10
expect_healthy_status
detach_volume
expect_clean_check
