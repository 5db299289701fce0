#!/bin/bash
# test: what dm-log-writes recorded below a loaded volume is replayed to each flush, and to power cuts between: a prefix, always
# limit: 300
# limit-each: REPLAY_POINTS 6
# where: host
# run: LOAD=stamps
# run-all: LOAD=files
# run-all: LOAD=fsx
# run-all: LOAD=postgres
#
# In a guest the volume's primary is a disk whose every write the kernel records, and so is the volume's own device. The records are replayed on the
# host: at each of REPLAY_POINTS flushes, and at as many random power cuts before the next one (REPLAY_CRASHES for each), salvol check must find
# no damage and what salvol restore gives must be what was promised by then. Some of these primaries are attached, in another guest: what recovery
# makes of them must be the same. A file system on the volume must be clean in each of these states, and in each state of the volume's
# own device. When one recording has too few flushes there are more, each with another seed.
set -euo pipefail
# shellcheck source=tests/device/lib.sh
source "$(dirname "$0")/lib.sh"

first_disk=$PRIMARY

LOAD=${LOAD:-stamps}
points=${REPLAY_POINTS:-$(long 50 400)}
crashes=${REPLAY_CRASHES:-1}
seed=${SEED:-1}

case $LOAD in
  stamps) volume=16M primary=64M steps=400 ;; # the log turns over three times
  fsx) volume=16M primary=64M ;;
  files) volume=48M primary=160M ;;
  postgres) volume=192M primary=512M ;;
esac

segments=(1M 256K 512K)
segment=${segments[seed % 3]}

replay() { /usr/bin/python3 "$here/replay.py" "$@"; }

# ---- In the guest: record -------------------------------------------------------------------------------------------------------

# record_disk NAME DISK LOG: /dev/mapper/NAME is the disk, and its writes are recorded.
record_disk() { dmsetup create "$1" --noudevsync --verifyudev --table "0 $(blockdev --getsz "$2") log-writes $2 $3"; }

mark() { /usr/bin/python3 "$here/writes.py" mark "$1" "$2"; }

# What the upper log has before this mark was acknowledged before the lower one got it.
mark_both() {
  mark upper "$1"
  mark lower "$1"
}

mark_both_forever() {
  local number=0
  while [[ ! -e $WORK/enough ]]; do
    number=$((number + 1))
    mark_both "moment $number"
    sleep 0.1
  done
}

load_stamps() { stamps write "$device" "$WORK/journal" --blocks $(($(numfmt --from=iec $volume) / 4096)) --steps $steps --seed "$seed" --mark lower; }

load_fsx() {
  # The recorder has no write-zeroes, by which fsx punches holes.
  sed "s/^flen = .*/flen = $(numfmt --from=iec $volume)/; s/^punch_hole = .*/punch_hole = 0/" "$here/fsx.toml" >"$WORK/fsx.toml"
  "$FSX" -f "$WORK/fsx.toml" -P "$WORK" -S "$seed" -N 6000 /dev/mapper/upper
}

load_files() {
  mkfs.ext4 -q -b 4096 -E nodiscard /dev/mapper/upper
  mark_both begin
  mkdir /run/files
  mount -o discard /dev/mapper/upper /run/files
  mkdir /run/files/ledger
  ledger write files /run/files/ledger "$WORK/ledger" --clients 4 --until "$WORK/enough" &
  local clients=$!
  fio --name=sync --directory=/run/files --rw=randwrite --bsrange=4k-64k --size=4M --fsync=8 --time_based --runtime=12 --randseed="$seed" --eta=never --output=/dev/null &
  for turn in 1 2 3 4 5 6; do
    cp -r /usr/share/perl5 "/run/files/tree$turn" 2>/dev/null || cp -r /usr/share/doc/bash "/run/files/tree$turn"
    sleep 1
    rm -rf "/run/files/tree$((turn - 1))"
    sync -f /run/files
  done
  wait $!
  touch "$WORK/enough"
  wait $clients
  umount /run/files
}

load_postgres() {
  mkfs.ext4 -q -E nodiscard /dev/mapper/upper
  mark_both begin
  mkdir /run/files
  mount -o discard /dev/mapper/upper /run/files
  install -d -o postgres /run/files/data
  as_postgres initdb -k -A trust --wal-segsize=1 -D /run/files/data >/dev/null
  start_postgres /run/files/data max_wal_size=16MB min_wal_size=4MB
  as_postgres createdb bench
  as_postgres pgbench -q -i -s 2 bench 2>/dev/null
  as_postgres pgbench -c 4 -j 2 -T 20 --random-seed="$seed" bench >"$WORK/pgbench.log" 2>&1 || { cat "$WORK/pgbench.log"; fail "pgbench failed"; }
  stop_postgres /run/files/data
  umount /run/files
}

record() {
  record_disk lower "$PRIMARY" "${PRIMARY%a}b"
  PRIMARY=/dev/mapper/lower
  "$SALVOL" -q create "$PRIMARY" --backing "$1" --name vol --size $volume --utilisation 0.6 --spare 8 --segment-size $segment --force >/dev/null
  attach_volume
  if [[ $LOAD == stamps ]]; then
    mark lower begin
    load_stamps
  else
    record_disk upper "$device" "${first_disk%a}c"
    [[ $LOAD != fsx ]] || mark_both begin
    mark_both_forever &
    "load_$LOAD"
    touch "$WORK/enough"
    wait
    mark_both end
    dmsetup remove upper
  fi
  say "  the log turned over $(log_turns) hundredths, $(status .user_bytes_written) bytes written by $LOAD, seed $seed"
  detach_volume
  local dead
  dead=$(dmsetup status lower upper 2>/dev/null | grep logging_disabled || true)
  [[ -z $dead ]] || fail "the record has a gap: $dead"
  dmsetup remove lower
}

# ---- In the guest: attach what was kept -----------------------------------------------------------------------------------------

# What recovery makes of a primary is what restore made of it, and is there after another attach.
attach_kept() {
  local disk=0 kept letters=abcdefghijklmnop
  for kept in "$@"; do
    PRIMARY=${first_disk%a}${letters:disk:1}
    attach_volume
    [[ $(sha256sum <"$device") == "$(cat "$kept.sum")  -" ]] || fail "$(basename "$kept"): attach makes something else of it than restore does"
    detach_volume
    "$SALVOL" -q check "$PRIMARY" >/dev/null || fail "$(basename "$kept"): salvol check finds fault behind recovery"
    disk=$((disk + 1))
  done
}

# ---- On the host ----------------------------------------------------------------------------------------------------------------

# Records a load; the archive, if there is one, is out of reach from then on: it is ahead of all states that are replayed.
make_record() {
  rm -rf "${disks:?}"/* "$WORK/journal" "$WORK/enough" "$WORK/ledger"
  truncate -s $primary "$disks/primary"
  truncate -s 4G "$disks/lower"
  truncate -s 4G "$disks/upper"
  # Everything that may differ from one recording to the next: where the archive is, how long the segments are, and all the load does.
  local backing=none
  ((seed % 2)) || backing=dir:$STORE
  rm -rf "$STORE" "$STORE.away"
  SEED=$seed LOAD=$LOAD "$UML" -m 1G -d "$disks/primary" -d "$disks/lower" -d "$disks/upper" bash "$here/replay.sh" record $backing ||
    fail "nothing was recorded"
  [[ ! -d $STORE ]] || mv "$STORE" "$STORE.away"
  judge_options=(--salvol "$SALVOL" --primary "$(numfmt --from=iec $primary)" --seed "$seed")
  case $LOAD in
    stamps) judge_options+=(--journal "$WORK/journal") ;;
    fsx) judge_options+=(--recorded "$disks/upper") ;;
    *) judge_options+=(--recorded "$disks/upper" --ext4) ;;
  esac
}

# A judge that cannot fail is worth nothing: it must when one write is lost that a flush had covered, or when a flush had come too late.
expect_judges_to_notice() {
  local lie
  for lie in "--lose 50" "--lose 120" --early; do
    # shellcheck disable=SC2086 # the lie is words
    if replay volume "$disks/lower" "$disks/lie" "${judge_options[@]}" --crashes 0 $lie >"$WORK/lie.log" 2>&1; then
      fail "no judge notices $lie"
    fi
    grep '^replay: ' "$WORK/lie.log" | sed "s/^replay: \(.*\), seed.*\(salvol check\|block\|the state\)/  $lie is noticed at \1: \2/" | cut -c1-120 ||
      fail "the judges of $lie end with: $(cat "$WORK/lie.log")"
  done
  rm -rf "$disks/lie"
}

judge_record() {
  local most=$1 keep=$2
  replay volume "$disks/lower" "$disks/states" "${judge_options[@]}" --points "$most" --crashes "$crashes" --keep "$keep" >"$WORK/replay.log" ||
    fail "a state is not what was promised"
  sed 's/^/  /' "$WORK/replay.log"
  judged=$((judged + $(sed 's/replayed \([0-9]*\) .*/\1/' "$WORK/replay.log")))
  local kept=("$disks"/states/*.primary) options=() file
  for file in "${kept[@]}"; do options+=(-d "$file"); done
  kept=("${kept[@]%.primary}")
  mkdir -p "$WORK/kept"
  cp "$disks"/states/*.sum "$WORK/kept"
  "$UML" -m 1G "${options[@]}" bash "$here/replay.sh" attach "${kept[@]/#"$disks/states"/$WORK/kept}" ||
    fail "a state cannot be attached as it should"
  attached=$((attached + ${#kept[@]}))
  if [[ $LOAD == files || $LOAD == postgres ]]; then
    replay files "$disks/upper" "$disks/upper-states" --volume "$(numfmt --from=iec $volume)" --points "$most" --crashes "$crashes" --seed "$seed" |
      sed 's/^/  above the volume: /' || fail "the file system is damaged by what the volume promised"
  fi
}

main() {
  if [[ ${1:-} == record ]]; then
    record "$2"
    return
  elif [[ ${1:-} == attach ]]; then
    attach_kept "${@:2}"
    return
  fi
  [[ $KERNEL_KIND != native ]] || skip "the records are made in guests"
  disks=$(mktemp -d "$(memory_directory)/salvol-replay.XXXXXX")
  trap '[[ -n ${SALVOL_TEST_KEEP:-} ]] || rm -rf "$disks"' EXIT
  judged=0 attached=0
  while ((judged < points)); do
    make_record
    ((judged > 0)) || expect_judges_to_notice
    judge_record $((points - judged)) "$(((points - judged) > 300 ? 12 : 4))"
    seed=$((seed + 1))
  done
  say "  $judged flushes replayed and judged, $attached of the states attached"
}

main "$@"
