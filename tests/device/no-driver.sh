#!/bin/bash
# test: without the ublk driver attach says how to get it, and leaves nothing behind
# limit: 30
# where: host
set -euo pipefail
# shellcheck source=tests/device/lib.sh
source "$(dirname "$0")/lib.sh"

[[ ! -e /dev/ublk-control ]] || skip "this machine has the ublk driver"

"$SALVOL" create "$WORK/primary" --backing "dir:$STORE" --name no-driver --size 64M --segment-size 1M >/dev/null
expect_failure 'ublk_drv|modprobe' "$SALVOL" attach "$WORK/primary"
"$SALVOL" features >"$WORK/features" 2>&1 || true
grep -Eiq 'ublk_drv|modprobe|no ublk' "$WORK/features" || fail "features does not say that the driver is missing: $(cat "$WORK/features")"
"$SALVOL" check "$WORK/primary" || fail "the refused attach left the primary damaged"
