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
operations=${FSX_THOUSANDS:-$(long 200 400)}000
bytes_max=${BYTES_MAX:-131072} # of one operation

create_volume 64M --compression none
attach_volume
say "  seed $seed, $operations operations of at most $bytes_max bytes"
sed "s/^max = .*/max = $bytes_max/" "$here/fsx.toml" >"$WORK/fsx.toml"
# A long run would fill the host's disk.
while sleep 60; do "$SALVOL" -q prune vol --keep-for 5m >/dev/null || touch "$WORK/prune-failed"; done &
pruner=$!
"$FSX" -f "$WORK/fsx.toml" -P "$WORK" -S "$seed" -N "$operations" "$device" || fail "fsx found a difference; run again with SEED=$seed"
kill $pruner && wait $pruner || true
[[ ! -e $WORK/prune-failed ]] || fail "a prune failed"
expect_turns $((operations >= 200000 && bytes_max >= 65536 ? 10 : 0))
expect_healthy_status
detach_volume
expect_clean_check
