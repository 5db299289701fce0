# The device tests' own words. Each test is a story that runs in a guest (or on a host with ublk), as root, with
#   SALVOL   the program               PRIMARY  the primary: a disk of the guest, or a file
#   WORK     an empty directory, a host's file system under UML     STORE  a directory for the archive, not yet there
#   ARCHIVE_AT  seal or inactive       LONG     1 for the longer sizes          KEEP    a prefix for files that stay, if any
# shellcheck shell=bash

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cd "$WORK" || exit # what tools leave behind goes with it
ARCHIVE_AT=${ARCHIVE_AT:-seal}
LONG=${LONG:-0}
export PYTHONDONTWRITEBYTECODE=1
device=

say() { printf '%s\n' "$*"; }
# The daemon's log goes with the guest, so its end is shown, and all of it kept.
fail() {
  tail -n 20 /run/salvol/vol.log >&2 2>/dev/null || true
  [[ -z ${KEEP:-} ]] || cp /run/salvol/vol.log "$KEEP.daemon.log" 2>/dev/null || true
  printf 'FAILED: %s\n' "$*" >&2
  exit 1
}
# What each process of ours or of the database waits for, and since when, for a failure that may be one of waiting.
tell_processes() { ps -eo pid,ppid,stat,etime,time,wchan:24,args | grep -Ev ' \[|ps -eo| grep ' | cut -c1-150; }
skip() {
  printf 'SKIP: %s\n' "$*"
  exit 77
}

# long A B: A in the short run, B with --all.
long() { if [[ $LONG == 1 ]]; then echo "$2"; else echo "$1"; fi; }

# expect_failure PATTERN COMMAND...: it must fail, and its message must match; no hang, no panic.
expect_failure() {
  local pattern=$1 output code=0
  shift
  output=$("$@" 2>&1) || code=$?
  [[ $code != 0 ]] || fail "'$*' succeeded, a failure was expected ($pattern)"
  [[ $code -lt 124 || $code == 125 ]] || fail "'$*' ended with code $code: $output"
  grep -Eiq "$pattern" <<<"$output" || fail "'$*' failed with another message than /$pattern/: $output"
  ! grep -q 'panicked at' <<<"$output" || fail "'$*' panicked: $output"
  say "  refused as it should be: $(head -n 1 <<<"$output")"
}

# wait_until SECONDS COMMAND...: until it succeeds, at most that long; where everything is slow, $PATIENCE times as long.
wait_until() {
  local end=$((SECONDS + $1 * ${PATIENCE:-1}))
  shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < end)) || return 1
    sleep 0.1
  done
}

# ---- A volume -------------------------------------------------------------------------------------------------------------------

# create_volume SIZE [OPTION...]: with 1 MiB segments, so that a small volume has many and the log turns over quickly.
create_volume() {
  local size=$1
  shift
  "$SALVOL" create "$PRIMARY" --backing "dir:$STORE" --name vol --size "$size" --utilisation 0.6 --spare 16 --segment-size 1M --archive-at "$ARCHIVE_AT" \
    --force "$@"
}

# attach_volume: leaves /dev/ublkbN in $device.
attach_volume() {
  device=$("$SALVOL" attach "$PRIMARY")
  [[ -b $device ]] || fail "attach printed '$device', which is no block device"
}

detach_volume() {
  "$SALVOL" detach vol
  [[ ! -b $device ]] || fail "$device is still there after detach"
  device=
}

# status FIELD: one figure of the running volume, e.g. status .segments.active
status() { "$SALVOL" status vol --json | jq -er "$1"; }

daemon_pid() { "$SALVOL" list --json | jq -er '.volumes[] | select(.name == "vol") | .pid'; }

# SIGKILL to the daemon, and the device taken over. The daemon must really be gone: recover may not meet it half dead.
kill_daemon_and_recover() {
  kill_daemon
  timeout $((60 * ${PATIENCE:-1})) "$SALVOL" recover vol >/dev/null || fail "recover failed or hung"
}

kill_daemon() {
  local pid
  pid=$(daemon_pid)
  kill -KILL "$pid"
  wait_until 20 process_is_gone "$pid" || fail "daemon $pid is still there 20 s after SIGKILL"
}

# Gone, or a zombie with no thread left: the first thread of a killed process may be one long before the last has ended.
process_is_gone() { [[ ! -d /proc/$1 ]] || [[ $(cat /proc/"$1"/task/*/stat 2>/dev/null) =~ ^[0-9]+\ \(.*\)\ Z[^$'\n']*$ ]]; }

# The number of times the log has gone round the working set since attach, in hundredths.
log_turns() { status '(.log_bytes_written / (.working_set_segments * .segment_size) * 100 | floor)'; }

# What was logged over several lives of the daemon: call start_counting when one begins, add_logged before it ends.
logged=0
start_counting() { counted_from=$(status .log_bytes_written); }
add_logged() { logged=$((logged + $(status .log_bytes_written) - counted_from)); }
logged_turns() { echo $((logged / $(status '.working_set_segments * .segment_size'))); }

expect_turns() {
  local turns
  turns=$(log_turns)
  say "  the log turned over $((turns / 100)).$(printf %02d $((turns % 100))) times; write amplification $(status .write_amplification)"
  ((turns >= $1 * 100)) || fail "the log turned over $((turns / 100)) times only; $1 were wanted"
}

# Counters that must hold at any time, and the archive catching up.
expect_healthy_status() {
  local json
  json=$("$SALVOL" status vol --json)
  jq -e '.read_errors == 0 and (.archive.error == null) and .write_amplification >= 1
    and .log_bytes_written >= .user_bytes_written and .block_size == 4096' <<<"$json" >/dev/null ||
    fail "the status is not that of a healthy volume: $json"
}

expect_clean_check() {
  "$SALVOL" check "$PRIMARY" || fail "salvol check found fault with the primary"
}

# ---- Judges -----------------------------------------------------------------------------------------------------------------------

# fio_on_device OPTION...: options before the first --name hold for all jobs.
fio_on_device() {
  fio --filename="$device" --direct=1 --ioengine=io_uring --eta=never --output="$WORK/fio.log" "$@" || {
    tail -n 30 "$WORK/fio.log"
    fail "fio $*"
  }
}

# The stamping writer and its checker, with the system's own Python.
stamps() { /usr/bin/python3 "$here/stamps.py" "$@"; }

# ---- Applications and their points ------------------------------------------------------------------------------------------------

# A test of an application has so many points of it marked, and judges what is in each.
POINTS=${POINTS:-4}
journal=$WORK/journal
past=/run/salvol-past

# The clients of an application and their judge.
ledger() { /usr/bin/python3 "$here/ledger.py" "$@"; }

# start_clients KIND PLACE CLIENTS: they go on until stop_clients.
start_clients() {
  kind=$1
  ledger write "$kind" "$2" "$journal" --clients "$3" --until "$WORK/enough" &
  clients=$!
  wait_until 30 test -e "$journal/$3" || fail "the clients did not start"
}

stop_clients() {
  touch "$WORK/enough"
  wait $clients || fail "a client failed"
}

# start_agent OPTION...: an agent that marks $POINTS points; each of its lines gets the time at which it came.
start_agent() {
  ledger hear "$SALVOL" agent vol "$@" --rounds "$POINTS" >"$WORK/agent" 2>"$WORK/agent.log" &
  agent=$!
}

# turn_log_over DIRECTORY: a file is overwritten there, beside the agent, until the log has gone round, with --all once more than before.
turn_log_over() {
  local until
  until=$(long 100 $(($(log_turns) + 100)))
  while (($(log_turns) < until)); do
    nice dd if=/dev/urandom of="$1/filler" bs=1M count=32 conv=notrunc,fsync status=none
  done &
  turning=$!
}

is_under_load() { kill -0 $agent 2>/dev/null || kill -0 $turning 2>/dev/null; }
is_marked() { (($(wc -l <"$WORK/agent") >= $1)); }

# judge_points CHECK: calls `CHECK POINT` for the agent's points, while it goes on and the log goes round.
judged=0
judge_points() {
  while is_under_load; do
    if ((judged < POINTS)) && is_marked $((judged + 1)); then
      judge_next "$1"
    else
      sleep 0.2
    fi
  done
  wait $turning || fail "the log did not go round"
  wait $agent && is_marked "$POINTS" || fail "the agent marked less than $POINTS points: $(cat "$WORK/agent.log")"
  say "  $judged of $POINTS points were judged meanwhile"
}

# judge_other_points CHECK: those that nobody has judged yet.
judge_other_points() {
  while ((judged < POINTS)); do judge_next "$1"; done
  diff <("$SALVOL" points vol --json | jq -r '.points[] | .id + " at " + .time') <(sed 's/^[0-9]* //; s/,.*//' "$WORK/agent") ||
    fail "the points that there are, and those that the agent told of"
  say "  all $POINTS points judged, with $transactions transactions in them"
  tell_mean "milliseconds until attach --at gave a device" "$WORK/attach-ms"
}

judge_next() {
  judged=$((judged + 1))
  "$1" "$(point $judged 2)"
}

now_ms() { echo $(($(date +%s%N) / 1000000)); }

# tell_mean WHAT FILE: of the numbers in its lines.
tell_mean() { awk -v what="$1" '{ sum += $1; if ($1 > most) most = $1 } END { printf "  %s: mean %.0f, most %.0f\n", what, sum / NR, most }' "$2"; }

# point N FIELD: of the agent's N-th point, when it was heard of (1), what it is called (2), or when it was marked (4).
point() { sed -n "$1s/,.*//p" "$WORK/agent" | cut -d' ' -f"$2"; }

# judge_as N PLACE: whether what is open holds what it must at the agent's N-th point, by the clients' journals.
judge_as() {
  ledger judge "$kind" "$2" "$journal" --marked "$(point "$1" 4)" --heard "$(point "$1" 1)"
}

# judge_ledger PLACE: the same of the point that is being judged; leaves in $found what was found.
transactions=0
judge_ledger() {
  found=$(judge_as $judged "$1") || fail "$(point $judged 2) is not what was promised"
  transactions=$((transactions + ${found% *}))
  found="${found% *} transactions, ${found#* } of them not acknowledged before the mark"
}

# expect_judge_to_notice PLACE: a judge who takes the third point, which is open, for the last or the first finds fault with it.
expect_judge_to_notice() {
  expect_failure 'was acknowledged before the mark; only' judge_as "$POINTS" "$1"
  expect_failure 'was begun after the mark.*and is there' judge_as 1 "$1"
}

# open_past POINT [--writable]: the volume's file system as it was at the point, mounted at $past.
open_past() {
  local mode=ro started
  [[ ${2:-} != --writable ]] || mode=rw
  started=$(now_ms)
  view=$("$SALVOL" -q attach vol --at "$@")
  echo $(($(now_ms) - started)) >>"$WORK/attach-ms"
  mkdir -p $past
  mount -o $mode "$view" $past
}
close_past() {
  umount $past
  "$SALVOL" detach "$view"
}

# ---- PostgreSQL -------------------------------------------------------------------------------------------------------------------

postgres_programs=$(compgen -G '/usr/lib/postgresql/*/bin' | sort -V | tail -n 1 || true)

# PostgreSQL refuses to run as root.
as_postgres() {
  setpriv --reuid=postgres --regid=postgres --clear-groups env PATH="$postgres_programs:$PATH" HOME=/run PGHOST=/run/postgres-socket "$@"
}

# start_postgres DATA [SETTING...]: listens where PGPORT says.
start_postgres() {
  local data=$1 settings
  settings=$(printf ' -c %s' listen_addresses= unix_socket_directories=/run/postgres-socket "${@:2}")
  install -d -o postgres /run/postgres-socket
  as_postgres pg_ctl -D "$data" -w -t 120 -l "$data/server.log" -o "-p ${PGPORT:-5432}$settings" start >/dev/null ||
    { cat "$data/server.log"; fail "PostgreSQL did not start"; }
}
stop_postgres() {
  local pid
  pid=$(head -n 1 "$1/postmaster.pid")
  as_postgres pg_ctl -D "$1" -w -m fast stop >/dev/null
  # It removes its file a moment before it leaves the directory.
  wait_until 20 process_is_gone "$pid" || fail "PostgreSQL did not end"
}

check_postgres() {
  as_postgres pg_amcheck --heapallindexed --install-missing bench || fail "pg_amcheck found corruption $1"
  say "  pg_amcheck is clean $1"
}

# ---- Files of the host ------------------------------------------------------------------------------------------------------------

# memory_directory: a directory of the host for files that are used a lot and need not last, in memory where there is room.
memory_directory() {
  if [[ -w /dev/shm ]] && (($(df --output=avail -B1M /dev/shm | tail -n 1) > 4000)); then echo /dev/shm; else echo "$WORK"; fi
}

# ---- The end on a host ----------------------------------------------------------------------------------------------------------

# A guest takes everything with it; a host gets back what the test made on it, and keeps what it did not make.
tidy_host() {
  local disk device
  touch "$WORK/null-disks"
  jobs -p | xargs --no-run-if-empty kill 2>/dev/null || true
  while read -r disk; do
    device=$("$SALVOL" list --json | jq -r --arg primary "$disk" '.volumes[] | select(.primary == $primary) | .device')
    [[ -z $device ]] || umount --lazy --all-targets "$device" 2>/dev/null || true
    [[ -z $device ]] || timeout 60 "$SALVOL" detach "$device" --force || true
    umount --lazy --all-targets "$disk" 2>/dev/null || true
  done < <(readlink -f "$PRIMARY" && sed 's,^,/dev/,' "$WORK/null-disks")
  while read -r disk; do rmdir "/sys/kernel/config/nullb/$disk" || true; done <"$WORK/null-disks"
}
[[ ${KERNEL_KIND:-uml} != native ]] || trap tidy_host EXIT

# ---- Disks ----------------------------------------------------------------------------------------------------------------------

# make_null_disk NAME MIB CACHE_MIB: a memory disk whose cache is lost with its power; prints its path.
make_null_disk() {
  local config=/sys/kernel/config/nullb/$1
  [[ -d /sys/kernel/config/nullb ]] || skip "this kernel has no configurable null_blk"
  mkdir "$config"
  echo "$1" >>"$WORK/null-disks"
  echo 1 >"$config/memory_backed"
  echo 4096 >"$config/blocksize"
  echo "$2" >"$config/size"
  echo "$3" >"$config/cache_size"
  echo 1 >"$config/discard"
  echo 1 >"$config/power"
  wait_until 5 test -b "/dev/$1" || fail "null_blk made no /dev/$1"
  echo "/dev/$1"
}

set_null_disk_power() { echo "$2" >"/sys/kernel/config/nullb/$1/power"; }
