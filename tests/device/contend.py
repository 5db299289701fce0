#!/usr/bin/env python3
"""Contended blocks: processes that write, read, discard, zero and flush the same blocks at once, and a judge of what they saw.

    contend.py run DEVICE JOURNAL --blocks N [--processes P] [--requests N] [--until FILE] [--seed S]
    contend.py judge DEVICE JOURNAL --blocks N [--killed]

Every write has contents of its own (a stamp of stamps.py: block, process, number) and every request is recorded with the times
between which it ran. Nobody can say in which order requests took effect that ran at the same time, but of requests one of which ended before
the other began it is known. So the judge demands of each block of each read, and of the device's state at the end:

- it is zeros, or a whole stamp of this very block: blocks are never torn;
- what it holds was written by a request that had begun when the read ended;
- no other request that changed the block began after that one had ended, and ended before the read began;
- a later read never sees an older write than an earlier one had seen (not with --killed: a write that was not acknowledged may be gone for
  a moment when the daemon died).
"""

import argparse
import bisect
import collections
import fcntl
import itertools
import mmap
import os
import random
import struct
import sys
import time

import stamps

BLOCK = stamps.BLOCK
BLKZEROOUT = 0x127F
LONGEST = 32
# What was done to how many blocks from where, from when to when; of a read one such record for each block, with what it held.
RECORD = struct.Struct("<cIIQQQ")


def run(arguments):
    os.makedirs(arguments.journal)
    children = []
    for process in range(1, arguments.processes + 1):
        child = os.fork()
        if child == 0:
            try:
                contend(arguments, process)
            except OSError as error:
                print(f"contend: process {process}: {error}", file=sys.stderr)
                os._exit(3)
            os._exit(0)
        children.append(child)
    failed = sum(os.waitpid(child, 0)[1] != 0 for child in children)
    if failed:
        fail(f"{failed} processes met an error")


def contend(arguments, process):
    rng = random.Random(f"{arguments.seed}/{process}")
    device = os.open(arguments.device, os.O_RDWR | os.O_DIRECT)
    buffer = mmap.mmap(-1, LONGEST * BLOCK)
    number = 0
    records = open(os.path.join(arguments.journal, str(process)), "wb", buffering=1 << 14)
    for _ in itertools.takewhile(lambda done: not os.path.exists(arguments.until), range(arguments.requests)):
        count = rng.choice([1, 1, 1, 2, 8, rng.randint(1, LONGEST)])
        # Half of the requests meet in a sixteenth of the blocks.
        limit = arguments.blocks // 16 if rng.random() < 0.5 else arguments.blocks
        first = rng.randint(0, max(0, limit - count))
        kind = rng.choices("wurdzf", [40, 5, 35, 8, 8, 4])[0]
        view = memoryview(buffer)[: count * BLOCK]
        if kind in "wu":
            number += 1
            view[:] = b"".join(stamps.stamp(block, process, number) for block in range(first, first + count))
        began = time.monotonic_ns()
        if kind in "wu":
            done = os.pwritev(device, [view], first * BLOCK, os.RWF_DSYNC if kind == "u" else 0)
        elif kind == "r":
            done = os.preadv(device, [view], first * BLOCK)
        elif kind == "f":
            os.fdatasync(device)
        else:
            fcntl.ioctl(device, stamps.BLKDISCARD if kind == "d" else BLKZEROOUT, struct.pack("<QQ", first * BLOCK, count * BLOCK))
        ended = time.monotonic_ns()
        if kind in "wur" and done != len(view):
            raise OSError(f"{done} of {len(view)} bytes at block {first}")
        if kind == "r":
            for index in range(count):
                found = stamps.read_stamp(first + index, view[index * BLOCK : (index + 1) * BLOCK].tobytes())
                if found is None:
                    raise OSError(f"block {first + index} is torn, or another's")
                records.write(RECORD.pack(b"r", first + index, 1, began, ended, found))
        elif kind != "f":
            records.write(RECORD.pack(b"w", first, count, began, ended, stamps.value(process, number) if kind in "wu" else 0))
    records.close()


# ---- The judge --------------------------------------------------------------------------------------------------------------------


class Largest:
    """Of pairs (key, number): the largest number of those with a key up to, or below, a given one."""

    def __init__(self, pairs):
        pairs = sorted(pairs)
        self.keys = [key for key, _ in pairs]
        self.numbers = list(itertools.accumulate((number for _, number in pairs), max))

    def of(self, count):
        return self.numbers[count - 1] if count else -1

    def up_to(self, key):
        return self.of(bisect.bisect_right(self.keys, key))

    def below(self, key):
        return self.of(bisect.bisect_left(self.keys, key))


def judge(arguments):
    changes = collections.defaultdict(list)
    reads = collections.defaultdict(list)
    requests = 0
    for name in os.listdir(arguments.journal):
        with open(os.path.join(arguments.journal, name), "rb") as file:
            for kind, first, count, began, ended, value in RECORD.iter_unpack(file.read()):
                requests += kind == b"w"
                for block in range(first, first + count):
                    (changes if kind == b"w" else reads)[block].append((began, ended, value))
    now = time.monotonic_ns()
    journal = argparse.Namespace(first_block=0, blocks=arguments.blocks)
    for block, value in enumerate(stamps.read_values(arguments.device, journal, 0)):
        reads[block].append((now, now, value))
    for block, seen in reads.items():
        judge_block(block, changes[block], seen, arguments.killed)
    print(f"{requests} changing requests, {sum(map(len, reads.values()))} blocks read: each held what it may")


def judge_block(block, changes, reads, killed):
    # Zeros were there before anything.
    zeros = Largest([(began, ended) for began, ended, value in changes if value == 0] + [(0, 0)])
    written = {value: (began, ended) for began, ended, value in changes if value}
    over = Largest([(ended, began) for began, ended, _ in changes])
    seen = Largest([(ended, written[value][0]) for _, ended, value in reads if value and value in written])
    for began, ended, value in reads:
        if value is None:
            fail(f"block {block} is torn, or another's")
        if value and value not in written:
            fail(f"block {block} holds {value:#x}, which nobody wrote")
        if value and written[value][0] > ended:
            fail(f"block {block} held {value:#x} before it was written")
        # Of all requests that can have left zeros, the one that ended last.
        last = written[value][1] if value else zeros.up_to(ended)
        if over.below(began) > last:
            fail(f"block {block} holds {value:#x} at {began}, which ended at {last}: what began at {over.below(began)}, and had ended, is lost")
        if not killed and seen.below(began) > last:
            fail(f"block {block} holds {value:#x} at {began}, though a read before had seen what began at {seen.below(began)}")


def fail(message):
    print(f"contend: {message}", file=sys.stderr)
    sys.exit(3)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    runner = verbs.add_parser("run")
    runner.set_defaults(run=run)
    runner.add_argument("--processes", type=int, default=6)
    runner.add_argument("--requests", type=int, default=1 << 30, metavar="N", help="of each process")
    runner.add_argument("--until", metavar="FILE", default="", help="stop when this file exists")
    runner.add_argument("--seed", type=int, default=1)
    judging = verbs.add_parser("judge")
    judging.set_defaults(run=judge)
    judging.add_argument("--killed", action="store_true")
    for verb in (runner, judging):
        verb.add_argument("device")
        verb.add_argument("journal")
        verb.add_argument("--blocks", type=int, required=True)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
