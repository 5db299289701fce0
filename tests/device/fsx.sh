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

cat >"$WORK/fsx.toml" <<'TOML'
flen = 67108864
blockmode = true
nosizechecks = true
nomsyncafterwrite = true

[opsize]
max = 131072
align = 4096

[weights]
close_open = 0
truncate = 0
posix_fallocate = 0
invalidate = 1
read = 10
write = 20
mapread = 5
mapwrite = 5
fsync = 0.3
fdatasync = 0.3
punch_hole = 5
sendfile = 2
posix_fadvise = 1
copy_file_range = 0
TOML

create_volume 64M --compression none
attach_volume
say "  seed $seed, $operations operations"
"$FSX" -f "$WORK/fsx.toml" -P "$WORK" -S "$seed" -N "$operations" "$device" || fail "fsx found a difference; run again with SEED=$seed"
expect_turns 10
expect_healthy_status
detach_volume
expect_clean_check
