#!/bin/bash
# Inside the guest: salvol on DISK beside what people would use instead on RIVAL_DISK, one of equal size, under the same kernel. Lines of
# JSON to OUT.
#
# salvol is there all the time; each rival comes, is compared with it and goes. Each gives a place of 1 GiB that has been written once.
# The two are loaded in turns of a few seconds, since the machine's own speed changes by the minute: 4 KiB random writes and reads at depth 32,
# and writes with a flush behind each by one writer; then pgbench on ext4 on both, while a snapshot or a synch point is made every 5 s
# where that can be. A rival that this kernel does not have is left out.
set -euo pipefail

: "${DISK:?}" "${RIVAL_DISK:?}" "${OUT:?}" "${SALVOL:?}" "${RUBLK:?}" "${ROUNDS:=3}" "${SECONDS_EACH:=3}" "${PGBENCH:=0}"
: "${RIVALS:=raw rublk-loop rublk-null loop thin btrfs nilfs2}" "${PGBENCH_RIVALS:=raw rublk-loop loop thin}"
mountpoint=/run/bench
mkdir -p $mountpoint
export PGHOST=/run/postgres-socket
postgres=$(compgen -G '/usr/lib/postgresql/*/bin' | sort -V | tail -n 1 || true)
declare -A place port

# ---- Targets: start_NAME says where the place is, stop_NAME takes everything away -----------------------------------------------------

start_salvol() {
  "$SALVOL" create -q --force "$DISK" --backing none --name bench --size 1G >/dev/null
  place[salvol]=$("$SALVOL" attach "$DISK")
}
stop_salvol() { "$SALVOL" detach bench; }
mark_salvol() { "$SALVOL" synch bench --label "bench$1" >/dev/null; }

devices=0
rublk_add() {
  local number=$((90 + ++devices))
  "$RUBLK" add "$1" -n $number -d 128 "${@:2}" >/dev/null || return 1
  place[rublk-$1]=/dev/ublkb$number
  [[ -b /dev/ublkb$number ]]
}
# It may say that it failed, and have deleted the device all the same.
rublk_del() {
  "$RUBLK" del -n "${1#/dev/ublkb}" >/dev/null 2>&1 || true
  local tries=0
  while [[ -e $1 ]] && ((++tries < 50)); do sleep 0.2; done
  [[ ! -e $1 ]]
}
start_rublk-loop() { rublk_add loop -f "$RIVAL_DISK"; }
start_rublk-null() { rublk_add null; }
stop_rublk-loop() { rublk_del "${place[rublk-loop]}"; }
stop_rublk-null() { rublk_del "${place[rublk-null]}"; }

start_loop() { place[loop]=$(losetup --find --show --direct-io=on "$RIVAL_DISK"); }
stop_loop() { losetup -d "${place[loop]}"; }

start_raw() { place[raw]=$RIVAL_DISK; }
stop_raw() { :; }

# There is no udev in a guest.
dm_create() { dmsetup create --noudevsync --verifyudev "$@"; }

# Metadata in the first 64 MiB, data behind it.
start_thin() {
  local sectors
  sectors=$(blockdev --getsz "$RIVAL_DISK")
  dmsetup targets 2>/dev/null | grep -q '^thin-pool' || return 1
  dd if=/dev/zero of="$RIVAL_DISK" bs=1M count=1 oflag=direct status=none &&
    dm_create thin-meta --table "0 131072 linear $RIVAL_DISK 0" &&
    dm_create thin-data --table "0 $((sectors - 131072)) linear $RIVAL_DISK 131072" &&
    dm_create thin-pool --table \
      "0 $((sectors - 131072)) thin-pool /dev/mapper/thin-meta /dev/mapper/thin-data 128 0 1 skip_block_zeroing" &&
    dmsetup message thin-pool 0 "create_thin 0" &&
    dm_create thin --table "0 2097152 thin /dev/mapper/thin-pool 0" || return 1
  place[thin]=/dev/mapper/thin
}
stop_thin() { for name in thin thin-pool thin-data thin-meta; do dmsetup remove --retry $name; done; }
# A snapshot replaces the one before it, as a backup that is taken from it would let go of it.
mark_thin() {
  dmsetup suspend thin
  dmsetup message thin-pool 0 "create_snap $1 0"
  dmsetup resume thin
  [[ ! -s $mountpoint/snapshot ]] || dmsetup message thin-pool 0 "delete $(<$mountpoint/snapshot)"
  echo "$1" >$mountpoint/snapshot
}

# The server's last process may still be ending when pg_ctl has done.
unmount() {
  local tries=0
  until umount "$1" 2>/dev/null || ((++tries > 50)); do sleep 0.2; done
  ! mountpoint -q "$1"
}

start_file_system() {
  mkdir -p $mountpoint/"$1"
  "mkfs.$1" "${@:2}" "$RIVAL_DISK" >/dev/null 2>&1 || return 1
  mount -t "$1" "$RIVAL_DISK" $mountpoint/"$1" || return 1
  place[$1]=$mountpoint/$1/file
  fallocate -l 1G "${place[$1]}" 2>/dev/null || truncate -s 1G "${place[$1]}"
}
start_btrfs() { start_file_system btrfs -q -f; }
stop_btrfs() { unmount $mountpoint/btrfs; }
start_nilfs2() { start_file_system nilfs2 -q -f; }
stop_nilfs2() { unmount $mountpoint/nilfs2; }

# ---- Workloads ------------------------------------------------------------------------------------------------------------------------

fill() { [[ $1 == rublk-null ]] || dd if=/dev/urandom of="${place[$1]}" bs=1M count=1024 conv=notrunc oflag=direct status=none; }

cpu_ticks() { awk '/^cpu /{ print $2 + $3 + $4 + $7 + $8 }' /proc/stat; }

# load TARGET RIVAL ROUND WORKLOAD FIO-OPTION...
load() {
  local target=$1 rival=$2 round=$3 workload=$4 before result
  shift 4
  before=$(cpu_ticks)
  result=$(fio --name=load --filename="${place[$target]}" --direct=1 --ioengine=io_uring --bs=4k --time_based --runtime="$SECONDS_EACH" \
    --size=1G --norandommap --randrepeat=0 --buffer_compress_percentage=50 --output-format=json "$@")
  jq -c --arg target "$target" --arg rival "$rival" --arg workload "$workload" --argjson round "$round" \
    --argjson ticks $(($(cpu_ticks) - before)) '
    .jobs[0] | (if .read.total_ios > 0 then .read else .write end)
    | { section: "device", rival: $rival, target: $target, workload: $workload, round: $round, iops: (.iops | round),
        p50_us: (.clat_ns.percentile["50.000000"] / 1000), p99_us: (.clat_ns.percentile["99.000000"] / 1000),
        cpu_us: (if .total_ios > 0 then $ticks * 10000 / .total_ios else 0 end) }' <<<"$result" >>"$OUT"
}

# in_turns JOB RIVAL ARGUMENT...: the job on salvol and on the rival, ROUNDS times, each first in every other round.
in_turns() {
  local job=$1 rival=$2 round pair target
  for ((round = 1; round <= ROUNDS; round++)); do
    pair=(salvol "$rival")
    ((round % 2)) || pair=("$rival" salvol)
    for target in "${pair[@]}"; do $job "$target" "$rival" $round "${@:3}"; done
  done
}

loads() {
  fill "$1"
  in_turns load "$1" write --rw=randwrite --iodepth=32
  in_turns load "$1" read --rw=randread --iodepth=32
  [[ $1 == rublk-null ]] || in_turns load "$1" flush --rw=randwrite --iodepth=1 --fdatasync=1
}

as_postgres() { (cd / && setpriv --reuid=postgres --regid=postgres --init-groups env PATH="$postgres:$PATH" PGHOST=$PGHOST "$@"); }

# start_postgres TARGET PORT: a server and its tables on ext4 on the target's place.
start_postgres() {
  local target=$1 directory=$mountpoint/$1
  port[$target]=$2
  mkdir -p "$directory"
  mkfs.ext4 -q -F "${place[$target]}"
  mount "${place[$target]}" "$directory"
  install -d -o postgres "$directory/data" $PGHOST
  as_postgres initdb -k -A trust -D "$directory/data" >/dev/null
  as_postgres pg_ctl -w -D "$directory/data" -l "$directory/data/log" start >/dev/null \
    -o "-p $2 -k $PGHOST -c listen_addresses= -c shared_buffers=128MB -c max_wal_size=192MB -c min_wal_size=64MB"
  as_postgres createdb -p "$2" bench
  as_postgres pgbench -p "$2" -q -i -s 20 bench >/dev/null 2>&1
}

stop_postgres() {
  as_postgres pg_ctl -w -D "$mountpoint/$1/data" stop >/dev/null
  unmount "$mountpoint/$1"
}

# Marks the target every 5 s, for as long as there is $mountpoint/marking.
marks=0
keep_marking() {
  local tick
  for ((tick = 1; ; tick++)); do
    sleep 1
    [[ -e $mountpoint/marking ]] || return 0
    ((tick % 5)) || "mark_$1" $((marks + tick))
  done
}

# transactions TARGET RIVAL ROUND
transactions() {
  local target=$1 tps marker=
  as_postgres psql -q -p "${port[$target]}" -c checkpoint bench
  if declare -F "mark_$target" >/dev/null; then
    touch $mountpoint/marking
    keep_marking "$target" &
    marker=$!
  fi
  tps=$(as_postgres pgbench -p "${port[$target]}" -n -c 8 -j 2 -T "$PGBENCH" bench 2>/dev/null | sed -n 's/^tps = \([0-9.]*\).*/\1/p')
  if [[ -n $marker ]]; then
    rm $mountpoint/marking
    wait $marker
    marks=$((marks + 1000))
  fi
  echo "{\"section\":\"pgbench\",\"rival\":\"$2\",\"target\":\"$target\",\"round\":$3,\"tps\":$tps}" >>"$OUT"
}

with_pgbench() {
  start_postgres "$1" 5433
  in_turns transactions "$1"
  stop_postgres "$1"
}

# against JOB RIVAL...: the job with each rival in turn; one whose start fails is left out.
against() {
  local job=$1 rival
  for rival in "${@:2}"; do
    if "start_$rival"; then
      echo "  $job: salvol and $rival"
      $job "$rival"
      "stop_$rival"
    else
      echo "  $rival: not to be had here"
    fi
  done
}

start_salvol
fill salvol
# shellcheck disable=SC2086  # Lists of words.
against loads $RIVALS
if ((PGBENCH > 0)) && [[ -n $postgres ]]; then
  start_postgres salvol 5432
  # shellcheck disable=SC2086
  against with_pgbench $PGBENCH_RIVALS
  stop_postgres salvol
fi
stop_salvol
