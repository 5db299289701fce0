#!/bin/bash
# test: PostgreSQL with checksums runs pgbench beside its agent, loses its daemon once, and pg_amcheck finds nothing, nor in points restored
# limit: 420
# needs: postgres
# run-all: ARCHIVE_AT=seal
set -euo pipefail
# shellcheck source=tests/device/lib.sh
source "$(dirname "$0")/lib.sh"

mountpoint=/run/salvol-postgres
data=$mountpoint/data

create_volume 1G
attach_volume
mkfs.ext4 -q "$device"
mkdir -p $mountpoint
mount "$device" $mountpoint
install -d -o postgres $data

as_postgres initdb -k -A trust -D $data >/dev/null
start_postgres $data
as_postgres createdb bench
as_postgres pgbench -q -i -s 15 bench 2>/dev/null
"$SALVOL" agent vol postgres "host=/run/postgres-socket user=postgres dbname=bench" --every 5s --label pg >"$WORK/agent" 2>"$WORK/agent.log" &
agent=$!
as_postgres pgbench -c 8 -j 2 -T 40 bench >"$WORK/pgbench.log" 2>&1 || { cat "$WORK/pgbench.log"; fail "pgbench failed"; }
say "  $(grep '^tps' "$WORK/pgbench.log")"
processes=$(tell_processes)
kill $agent
wait $agent 2>/dev/null || true
marked=$(grep -c 'wal=.*system=.*version=' "$WORK/agent") || fail "the agent marked nothing: $(cat "$WORK/agent.log")"
say "  the agent marked $marked points in 40 s; the last: $(tail -n 1 "$WORK/agent")"
((marked >= 7)) || fail "the agent was to mark every 5 s; the processes then:
$processes
$(cat "$WORK/agent" "$WORK/agent.log")"
check_postgres "after pgbench"

# The daemon dies under load: PostgreSQL may wait, it may not notice.
as_postgres pgbench -c 8 -j 2 -T 20 bench >"$WORK/pgbench.log" 2>&1 &
load=$!
sleep 5
kill_daemon_and_recover
wait $load || { cat "$WORK/pgbench.log"; fail "pgbench failed when the daemon died"; }
check_postgres "after the daemon died under pgbench"

stop_postgres $data
as_postgres pg_checksums --check -D $data >/dev/null || fail "pg_checksums found a bad page"
umount $mountpoint
detach_volume
attach_volume
mount "$device" $mountpoint
start_postgres $data
check_postgres "after detach and attach"
stop_postgres $data
expect_healthy_status
umount $mountpoint
e2fsck -fn "$device" >/dev/null 2>&1 || fail "e2fsck found errors"
detach_volume
