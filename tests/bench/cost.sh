#!/bin/bash
# What one 4 KiB write and one 4 KiB read cost the engine, counted and not timed: instructions by callgrind, as the difference of two runs.
# Called by scripts/bench; alone: ENGINE=target/release/deps/engine-… FILE=/var/tmp/primary tests/bench/cost.sh. Lines of JSON.
set -euo pipefail
: "${ENGINE:?}" "${FILE:?}"

# Small enough for an emulated processor: 64 segments of 1 MiB.
engine() { "$@" --primary "$FILE" --working-set 48 --spare 16 --segment-blocks 256 --utilisation 0.5 --turns 0 --depth 32; }

# instructions WORKLOAD REQUESTS
instructions() {
  engine valgrind --tool=callgrind --callgrind-out-file=/dev/null "$ENGINE" --workload "$1" --requests "$2" 2>&1 >/dev/null |
    sed -n 's/.*Collected : \([0-9]*\).*/\1/p'
}

for workload in overwrite read; do
  few=$(instructions $workload 20000)
  many=$(instructions $workload 60000)
  line=$(engine "$ENGINE" --workload $workload --requests 200000)
  jq -c --argjson instructions $(((many - few) / 40000)) \
    '{ section: "cost", workload, instructions: $instructions, allocations, cpu_us }' <<<"$line"
done
rm -f "$FILE"
