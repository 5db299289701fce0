#!/bin/bash
# test: SQLite under load with its agent: in every point both databases are whole, with every transaction committed before and none begun after
# limit: 150
# limit-point: 15
set -euo pipefail
# shellcheck source=tests/device/lib.sh
source "$(dirname "$0")/lib.sh"

mountpoint=/run/salvol-sqlite
databases=$mountpoint/databases

judge_point() {
  open_past "$1" --writable
  judge_ledger $past/databases
  say "  $1: $found"
  close_past
}

create_volume 256M
attach_volume
mkfs.ext4 -q "$device"
mkdir -p $mountpoint
mount "$device" $mountpoint
mkdir $databases

say "two databases, one transaction over both, one client after the other; the log goes round, and points are judged meanwhile"
start_clients sqlite $databases 3
start_agent sqlite $databases/ledger.db $databases/other.db --every 2s --label lite
turn_log_over $mountpoint
judge_points judge_point
stop_clients

say "the others afterwards"
judge_other_points judge_point

say "the judge notices what is not so"
open_past "$(point 3 2)" --writable
expect_judge_to_notice $past/databases
sqlite3 $past/databases/ledger.db 'DELETE FROM ledger WHERE client = 1 AND number = 1 AND line = 3'
expect_failure 'transaction 1 of client 1 is not whole' judge_as 3 $past/databases
close_past

umount $mountpoint
expect_healthy_status
expect_turns 1
detach_volume
expect_clean_check
