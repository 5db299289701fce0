#!/bin/bash
# test: PostgreSQL under pgbench with its agent: a server starts on every point, pg_amcheck is clean, and what it holds is what was committed before
# limit: 300
# limit-point: 60
# needs: postgres
set -euo pipefail
# shellcheck source=tests/device/lib.sh
source "$(dirname "$0")/lib.sh"

mountpoint=/run/salvol-postgres
data=$mountpoint/data
of_bench="host=/run/postgres-socket user=postgres dbname=bench"

# pgbench's own rule: what was added to accounts, tellers and branches is what the history says.
BALANCED="SELECT a = t AND t = b AND b = h FROM (SELECT sum(abalance) AS a FROM pgbench_accounts) AS accounts,
  (SELECT sum(tbalance) AS t FROM pgbench_tellers) AS tellers, (SELECT sum(bbalance) AS b FROM pgbench_branches) AS branches,
  (SELECT coalesce(sum(delta), 0) AS h FROM pgbench_history) AS history"

expect_balance() { [[ $(psql -X -At -d "$of_bench" -c "$BALANCED") == t ]] || { say "the balances of pgbench do not agree" && return 1; }; }

# In the short run the load leaves the judge some of the only processor that User-Mode Linux has.
load() {
  while [[ ! -e $WORK/enough ]]; do
    as_postgres pgbench -n -c 8 -j 2 -T 15 $(long "-R 20" "") bench >"$WORK/pgbench.log" 2>&1 || { cat "$WORK/pgbench.log"; fail "pgbench failed"; }
    sed -n 's/^tps = \([0-9]*\).*/\1/p' "$WORK/pgbench.log" >>"$WORK/tps"
  done
}

# A second server, on a writable view of the point.
open_server() {
  export PGPORT=5433
  open_past "$1" --writable
  rm $past/data/postmaster.pid
  start_postgres $past/data
}
close_server() {
  stop_postgres $past/data
  close_past
  unset PGPORT
}

judge_point() {
  local started taken
  started=$(now_ms)
  open_server "$1"
  taken=$(($(now_ms) - started))
  echo $taken >>"$WORK/server-ms"
  judge_ledger "$of_bench"
  expect_balance || fail "$1 is not what pgbench did"
  check_postgres "in $1, whose server answered $taken ms after attach began; $found"
  close_server
}

create_volume $(long 384M 1G) --compression zstd:1
attach_volume
mkfs.ext4 -q "$device"
mkdir -p $mountpoint
mount "$device" $mountpoint
install -d -o postgres $data
as_postgres initdb -k -A trust -D $data >/dev/null
# Checkpoints as often as a busy server has them, so that points lie before, in and behind some.
start_postgres $data checkpoint_timeout=30s max_wal_size=64MB
as_postgres createdb bench
as_postgres pgbench -q -i -s 5 bench 2>/dev/null
psql -X -q -d "$of_bench" -c CHECKPOINT

say "pgbench and a ledger; the log goes round, and points are judged meanwhile"
load &
load=$!
start_clients postgres "$of_bench" 3
start_agent postgres "$of_bench" --every 5s --label pg
turn_log_over $mountpoint
judge_points judge_point
stop_clients
wait $load
stop_postgres $data

say "the others afterwards"
judge_other_points judge_point
tell_mean "milliseconds until a server answered on it" "$WORK/server-ms"
tell_mean "transactions of pgbench a second, beside the ledger, the agent and the judge" "$WORK/tps"

say "the judge notices what is not so"
open_server "$(point 3 2)"
expect_judge_to_notice "$of_bench"
psql -X -q -d "$of_bench" -c 'DELETE FROM ledger WHERE client = 1 AND number = 1 AND line = 3' -c 'UPDATE pgbench_tellers SET tbalance = tbalance + 1 WHERE tid = 1'
expect_failure 'transaction 1 of client 1 is not whole' judge_as 3 "$of_bench"
expect_failure 'do not agree' expect_balance
close_server

umount $mountpoint
expect_healthy_status
expect_turns 1
detach_volume
expect_clean_check
