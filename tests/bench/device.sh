#!/bin/bash
# Inside the guest: salvol beside what people would use instead, on the same disk DISK under the same kernel, in turns. Lines of JSON to OUT.
#
# Each target gives a place of 1 GiB that has been written once. 4 KiB random writes and reads at depth 32, and writes with a flush behind
# each by one writer; then pgbench on ext4 on it, while a snapshot or a synch point is made every 5 s where that can be.
# A target that this kernel does not have is left out.
set -euo pipefail

: "${DISK:?}" "${OUT:?}" "${SALVOL:?}" "${RUBLK:?}" "${ROUNDS:=3}" "${SECONDS_EACH:=4}" "${PGBENCH:=0}"
mountpoint=/run/bench
export PGHOST=/run/postgres-socket
postgres=$(compgen -G '/usr/lib/postgresql/*/bin' | sort -V | tail -n 1 || true)
mkdir -p $mountpoint

# ---- Targets: start_NAME leaves the place in $place, stop_NAME takes everything away --------------------------------------------------

start_salvol() {
  "$SALVOL" create -q --force "$DISK" --backing none --name bench --size 1G >/dev/null
  place=$("$SALVOL" attach "$DISK")
}
stop_salvol() { "$SALVOL" detach bench; }
mark_salvol() { "$SALVOL" synch bench --label "bench$1" >/dev/null; }

start_rublk-loop() {
  "$RUBLK" add loop -f "$DISK" -d 128 >/dev/null
  place=$(compgen -G '/dev/ublkb*')
}
stop_rublk-loop() { "$RUBLK" del -a >/dev/null; }

start_rublk-null() {
  "$RUBLK" add null -d 128 >/dev/null
  place=$(compgen -G '/dev/ublkb*')
}
stop_rublk-null() { "$RUBLK" del -a >/dev/null; }

start_loop() { place=$(losetup --find --show --direct-io=on "$DISK"); }
stop_loop() { losetup -d "$place"; }

start_raw() { place=$DISK; }
stop_raw() { :; }

# There is no udev in a guest.
dm_create() { dmsetup create --noudevsync --verifyudev "$@"; }

# Metadata in the first 64 MiB, data behind it.
start_thin() {
  local sectors
  sectors=$(blockdev --getsz "$DISK")
  dd if=/dev/zero of="$DISK" bs=1M count=1 oflag=direct status=none
  dm_create thin-meta --table "0 131072 linear $DISK 0"
  dm_create thin-data --table "0 $((sectors - 131072)) linear $DISK 131072"
  dm_create thin-pool --table "0 $((sectors - 131072)) thin-pool /dev/mapper/thin-meta /dev/mapper/thin-data 128 0 1 skip_block_zeroing"
  dmsetup message thin-pool 0 "create_thin 0"
  dm_create thin --table "0 2097152 thin /dev/mapper/thin-pool 0"
  place=/dev/mapper/thin
}
stop_thin() { for name in thin thin-pool thin-data thin-meta; do dmsetup remove --retry $name; done; }
# A snapshot replaces the one before it, as a backup that is taken from it would let go of it.
mark_thin() {
  dmsetup suspend thin
  dmsetup message thin-pool 0 "create_snap $1 0"
  dmsetup resume thin
  [[ $1 == 1 ]] || dmsetup message thin-pool 0 "delete $(($1 - 1))"
}

start_file_system() {
  "mkfs.$1" "${@:2}" "$DISK" >/dev/null 2>&1
  mount -t "$1" "$DISK" $mountpoint
  place=$mountpoint/file
  fallocate -l 1G $place 2>/dev/null || truncate -s 1G $place
}
start_btrfs() { start_file_system btrfs -q -f; }
stop_btrfs() { umount $mountpoint; }
start_nilfs2() { start_file_system nilfs2 -q -f; }
stop_nilfs2() { umount $mountpoint; }

# ---- Workloads ------------------------------------------------------------------------------------------------------------------------

cpu_ticks() { awk '/^cpu /{ print $2 + $3 + $4 + $7 + $8 }' /proc/stat; }

# load TARGET ROUND WORKLOAD FIO-OPTION...
load() {
  local target=$1 round=$2 workload=$3 before result
  shift 3
  before=$(cpu_ticks)
  result=$(fio --name=load --filename="$place" --direct=1 --ioengine=io_uring --bs=4k --time_based --runtime="$SECONDS_EACH" --ramp_time=1 \
    --size=1G --norandommap --buffer_compress_percentage=50 --output-format=json "$@")
  jq -c --arg target "$target" --arg workload "$workload" --argjson round "$round" --argjson ticks $(($(cpu_ticks) - before)) '
    .jobs[0] | (if .read.total_ios > 0 then .read else .write end)
    | { section: "device", target: $target, workload: $workload, round: $round, iops: (.iops | round),
        p50_us: (.clat_ns.percentile["50.000000"] / 1000), p99_us: (.clat_ns.percentile["99.000000"] / 1000),
        cpu_us: (if .iops > 0 then $ticks * 10000 / (.iops * '"$((SECONDS_EACH + 1))"') else 0 end) }' <<<"$result" >>"$OUT"
}

loads() {
  local target=$1 round=$2
  [[ $target == rublk-null ]] || dd if=/dev/urandom of="$place" bs=1M count=1024 conv=notrunc oflag=direct status=none
  load "$target" "$round" write --rw=randwrite --iodepth=32
  load "$target" "$round" read --rw=randread --iodepth=32
  [[ $target == rublk-null ]] || load "$target" "$round" flush --rw=randwrite --iodepth=1 --fdatasync=1
}

as_postgres() { (cd / && setpriv --reuid=postgres --regid=postgres --init-groups env PATH="$postgres:$PATH" PGHOST=$PGHOST "$@"); }

pgbench_on() {
  local target=$1 round=$2 tps marker=
  mkfs.ext4 -q -F "$place"
  mount "$place" $mountpoint
  install -d -o postgres $mountpoint/data $PGHOST
  as_postgres initdb -k -A trust -D $mountpoint/data >/dev/null
  as_postgres pg_ctl -w -D $mountpoint/data -l $mountpoint/data/log -o "-k $PGHOST -c listen_addresses= -c shared_buffers=128MB" start >/dev/null
  as_postgres createdb bench
  as_postgres pgbench -q -i -s 20 bench >/dev/null 2>&1
  if declare -F "mark_$target" >/dev/null; then
    (
      turn=0
      while sleep 5; do "mark_$target" $((++turn)); done
    ) &
    marker=$!
  fi
  tps=$(as_postgres pgbench -c 8 -j 2 -T "$PGBENCH" bench | sed -n 's/^tps = \([0-9.]*\).*/\1/p')
  if [[ -n $marker ]]; then
    kill $marker
    wait $marker 2>/dev/null || true
  fi
  as_postgres pg_ctl -w -D $mountpoint/data stop >/dev/null
  umount $mountpoint
  echo "{\"section\":\"pgbench\",\"target\":\"$target\",\"round\":$round,\"tps\":$tps}" >>"$OUT"
}

# on TARGET JOB ROUND
on() {
  if ! "start_$1"; then
    echo "  $1: not to be had here"
    return
  fi
  "$2" "$1" "$3"
  "stop_$1"
}

for ((round = 1; round <= ROUNDS; round++)); do
  for target in raw salvol rublk-loop rublk-null loop thin btrfs nilfs2; do
    echo "  round $round: $target"
    on $target loads "$round"
  done
done
if ((PGBENCH > 0)) && [[ -n $postgres ]]; then
  for ((round = 1; round <= ROUNDS; round++)); do
    for target in raw salvol rublk-loop loop thin; do
      echo "  round $round: pgbench on $target"
      on $target pgbench_on "$round"
    done
  done
fi
