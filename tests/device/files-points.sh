#!/bin/bash
# test: a frozen ext4 under load: in every point it needs no journal replay, fsck is clean, and files are as they were at one moment
# limit: 150
# limit-point: 10
set -euo pipefail
# shellcheck source=tests/device/lib.sh
source "$(dirname "$0")/lib.sh"

mountpoint=/run/salvol-files
directory=$mountpoint/files

needs_replay() { dumpe2fs -h "$1" 2>/dev/null | grep -q needs_recovery; }

judge_point() {
  open_past "$1"
  ! needs_replay "$view" || fail "$1 needs journal replay"
  e2fsck -fn "$view" >"$WORK/fsck" 2>&1 || { cat "$WORK/fsck"; fail "$1 is not clean"; }
  judge_ledger $past/files
  say "  $1: $found"
  close_past
}

create_volume 256M
attach_volume
mkfs.ext4 -q "$device"
mkdir -p $mountpoint
mount "$device" $mountpoint
mkdir $directory

say "files are written, renamed and removed, half of them with fsync; the log goes round, and points are judged meanwhile"
start_clients files $directory 4
start_agent fs $mountpoint --every 2s --label frozen
turn_log_over $mountpoint
judge_points judge_point
stop_clients

say "the others afterwards"
judge_other_points judge_point

say "the judge notices what is not so"
open_past "$(point 3 2)"
expect_judge_to_notice $past/files
close_past
point=$("$SALVOL" synch vol --json | jq -r .id)
view=$("$SALVOL" -q attach vol --at "$point")
needs_replay "$view" || fail "a point without a freeze needs no journal replay either"
"$SALVOL" detach "$view"

umount $mountpoint
expect_healthy_status
expect_turns 1
detach_volume
expect_clean_check
