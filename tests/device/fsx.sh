#!/bin/bash
# test: fsx compares 200 000 random reads, writes, mapped writes, trims and flushes with its model
# limit: 420
# needs: fsx
# run: ARCHIVE_AT=seal
# run-all: ARCHIVE_AT=inactive
set -euo pipefail
# shellcheck source=tests/device/lib.sh
source "$(dirname "$0")/lib.sh"

seed=${SEED:-$(date +%s)}
operations=$(long 200000 400000)

create_volume 64M --compression none
attach_volume
say "  seed $seed, $operations operations"
"$FSX" -f "$here/fsx.toml" -P "$WORK" -S "$seed" -N "$operations" "$device" || fail "fsx found a difference; run again with SEED=$seed"
expect_turns 10
expect_healthy_status
detach_volume
expect_clean_check
