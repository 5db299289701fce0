# One life of a volume between two crashes, shared by the tests that kill the guest and that cut the power. Sourced.
#
# The volume holds an ext4 file system in its first 48 MiB and the stamping writer's region behind it. After each crash the
# stamps must be those of a moment not before the last recorded flush, every file that was fsynced before the crash must be
# there, whole, and e2fsck must find nothing.
# shellcheck shell=bash disable=SC2154

file_blocks=12288
region=12288
mountpoint=/run/salvol-crash
JOURNAL=$WORK/journal
promises=$WORK/promises

make_crash_volume() {
  create_volume 96M
  attach_volume
  mkfs.ext4 -q -b 4096 "$device" $file_blocks
  : >"$promises"
}

# Writes one file after the other, fsyncs it, and only then notes it (durably, on the host): "+ SUM NAME". To make room it takes
# back the promise for the file of 40 files ago, "- NAME", before it deletes it.
write_files_forever() {
  local life=$1 number=0 file older sum
  cd $mountpoint || return
  while [[ ! -e $WORK/stop ]]; do
    number=$((number + 1))
    file=life$life.$number
    older=life$life.$((number - 40))
    head -c $((1000 + RANDOM * 8)) /dev/urandom >new
    sync new
    mv new "$file"
    sync .
    sum=$(sha256sum "$file")
    promise "+ $sum"
    if [[ -e $older ]]; then
      promise "- $older"
      rm "$older"
    fi
    sleep 0.2 # most of the guest's time belongs to the stamping writer
  done
}

promise() {
  printf '%s\n' "$1" >>"$promises"
  sync "$promises"
}

# The promises in force, as sha256sum wants them; a last line without its end was never made.
promised_files() {
  { cat "$promises"; printf '?'; } | sed '$d' |
    awk '$1 == "+" { sum[$3] = $2 } $1 == "-" { delete sum[$2] } END { for (file in sum) print sum[file] "  " file }'
}

# What must be true after a crash.
check_after_crash() {
  if [[ -e $JOURNAL ]]; then
    stamps check "$device" "$JOURNAL" || fail "the state after the crash is not a prefix with everything flushed"
  fi
  mkdir -p $mountpoint
  mount "$device" $mountpoint || fail "the file system cannot be mounted after the crash"
  promised_files >"$WORK/manifest"
  (cd $mountpoint && { [[ ! -s $WORK/manifest ]] || sha256sum --quiet --strict -c "$WORK/manifest"; }) ||
    fail "a file that was fsynced is not there or not whole"
  umount $mountpoint
  e2fsck -fn "$device" >"$WORK/fsck.log" 2>&1 || { cat "$WORK/fsck.log"; fail "e2fsck found errors"; }
  say "  $(wc -l <"$WORK/manifest") fsynced files are whole, e2fsck is clean"
}

# The files of the life before go, so that the file system never fills up.
make_room() {
  : >"$promises"
  sync "$promises"
  rm -f $mountpoint/life*
}

# Writers run in the background until the end comes, or until $WORK/stop exists; their process ids are in $writers.
start_writers() {
  rm -f "$WORK/stop"
  mount "$device" $mountpoint
  make_room
  stamps write "$device" "$JOURNAL" --first-block $file_blocks --blocks $region --until "$WORK/stop" &
  writers=($!)
  wait_until 30 test -s "$JOURNAL/progress" || fail "the writer does not get going"
  write_files_forever "$1" &
  writers+=($!)
}

expect_writers_at_work() {
  local writer
  for writer in "${writers[@]}"; do
    kill -0 "$writer" 2>/dev/null || fail "a writer gave up before the crash"
  done
}
