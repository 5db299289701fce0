#!/usr/bin/env python3
"""Stamped blocks: a writer that promises, and a checker that finds every broken promise after a crash.

    stamps.py write DEVICE JOURNAL --blocks N [--first-block B] [--seconds S] [--steps S] [--until FILE] [--mark NAME]
    stamps.py check DEVICE JOURNAL [--exact] [--unreadable N [--trust]] [--promised STEP]

The writer works in numbered steps. One step is up to DEPTH concurrent writes of 1 to 64 blocks, or one trim, on disjoint random
ranges; the next step begins when all of it has been acknowledged. Every few steps it flushes (fsync, or one FUA write), and when
that returns it records the step in JOURNAL, which must lie on storage that survives the crash. All steps follow from the
journal's seed, so nothing else need be recorded.

What a block holds says who wrote it: its number, the generation and the step. Zeros mean trimmed, or never written. So after a
crash each block admits an interval of moments at which the volume can have stopped, and the state is a prefix of what was
written if and only if all these intervals have a moment in common. The checker finds it, and demands that it is not before the last
recorded flush; with --exact (no crash of the machine: only the daemon died) not before the last acknowledged step.

--unreadable: so many blocks may fail with an I/O error, of which nothing is known then. --promised: of a disk that has lied, no more than this.

After a successful check the journal holds what survived, as the start of the next generation. When a block was unreadable it stays as it is, and
nothing may be written before it is checked again; with --trust such blocks are taken for what they should be.
"""

import argparse
import concurrent.futures
import fcntl
import hashlib
import json
import mmap
import os
import random
import struct
import sys
import time

import writes

BLOCK = 4096
DEPTH = 8
LONGEST_WRITE = 64
LONGEST_TRIM = 512
STEPS_BETWEEN_FLUSHES = 16
MAGIC = b"STAMPED\n"
HEADER = struct.Struct("<8sQII")
BLKDISCARD = 0x1277
UNREADABLE = -1


class Journal:
    """A directory: `seed.json` (what is written, and from which state), `base` (that state) and `progress` (flushed steps)."""

    def __init__(self, path):
        self.path = path
        self.progress = None

    def file(self, name):
        return os.path.join(self.path, name)

    def create(self, first_block, blocks, seed):
        os.makedirs(self.path)
        self.save(first_block, blocks, 1, seed, [0] * blocks)

    def save(self, first_block, blocks, generation, seed, base):
        write_durably(self.file("base.new"), struct.pack(f"<{blocks}Q", *base))
        os.replace(self.file("base.new"), self.file("base"))
        write_durably(self.file("progress"), b"")
        settings = {"first_block": first_block, "blocks": blocks, "generation": generation, "seed": seed}
        write_durably(self.file("seed.json"), json.dumps(settings).encode())

    def load(self):
        with open(self.file("seed.json"), encoding="ascii") as settings:
            self.__dict__.update(json.load(settings))
        with open(self.file("base"), "rb") as base:
            self.base = list(struct.unpack(f"<{self.blocks}Q", base.read()))
        lines = [line for line in open(self.file("progress"), encoding="ascii") if line.endswith("\n")]
        self.flushed = max((int(line.split()[1]) for line in lines if line.startswith("flushed")), default=0)
        self.acknowledged = max((int(line.split()[1]) for line in lines), default=0)

    def record(self, what, step):
        if self.progress is None:
            self.progress = os.open(self.file("progress"), os.O_WRONLY | os.O_APPEND)
        os.write(self.progress, f"{what} {step}\n".encode())
        os.fdatasync(self.progress)


def write_durably(path, data):
    with open(path, "wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())


def steps(journal):
    """The steps of this generation, without end: (step, "write" or "trim", [(first, count)], flush kind or None)."""
    rng = random.Random(f"{journal.seed}/{journal.generation}")
    step = 0
    until_flush = 1
    while True:
        step += 1
        until_flush -= 1
        flush = None
        if until_flush == 0:
            flush = rng.choice(["fsync", "fsync", "fua"])
            until_flush = rng.randint(1, STEPS_BETWEEN_FLUSHES)
        if rng.random() < 0.08 and flush != "fua":
            yield step, "trim", [random_range(rng, journal.blocks, LONGEST_TRIM, [])], flush
            continue
        ranges = []
        for _ in range(1 if flush == "fua" else rng.randint(1, DEPTH)):
            ranges.append(random_range(rng, journal.blocks, LONGEST_WRITE, ranges))
        yield step, "write", ranges, flush


def random_range(rng, blocks, longest, taken):
    """A range that touches none of those taken. Half of the starts lie in an eighth of the blocks, so that some are hot."""
    while True:
        count = rng.choice([1, 1, 2, 8, rng.randint(1, longest), rng.randint(1, longest)])
        limit = blocks // 8 if rng.random() < 0.5 else blocks
        first = rng.randint(0, max(0, limit - count))
        if all(first + count <= other or other + length <= first for other, length in taken):
            return first, min(count, blocks - first)


def value(generation, step):
    return generation << 32 | step


def stamp(block, generation, step):
    """One block's contents; odd steps write what does not compress."""
    header = HEADER.pack(MAGIC, block, generation, step)
    if step % 2:
        return header + hashlib.shake_128(header).digest(BLOCK - HEADER.size)
    return header + (hashlib.sha256(header).digest() * (BLOCK // 32))[: BLOCK - HEADER.size]


def read_stamp(block, data):
    """The value of one block: 0 for zeros; None if it is neither zeros nor a whole stamp of this very block."""
    magic, number, generation, step = HEADER.unpack_from(data)
    if magic != MAGIC:
        return 0 if not any(data) else None
    return value(generation, step) if number == block and data == stamp(block, generation, step) else None


# ---- The writer -----------------------------------------------------------------------------------------------------------------


def write(arguments):
    journal = Journal(arguments.journal)
    if not os.path.exists(journal.path):
        journal.create(arguments.first_block, arguments.blocks, arguments.seed)
    journal.load()
    device = os.open(arguments.device, os.O_RDWR | os.O_DIRECT)
    pool = concurrent.futures.ThreadPoolExecutor(DEPTH)
    buffers = [mmap.mmap(-1, LONGEST_WRITE * BLOCK) for _ in range(DEPTH)]
    written = 0
    end = time.monotonic() + arguments.seconds
    for step, kind, ranges, flush in steps(journal):
        try:
            if kind == "trim":
                trim_range(device, journal, *ranges[0])
            else:
                flags = os.RWF_DSYNC if flush == "fua" else 0
                jobs = [
                    pool.submit(write_range, device, buffer, journal, step, first, count, flags)
                    for buffer, (first, count) in zip(buffers, ranges)
                ]
                written += sum(job.result() for job in jobs)
            if flush == "fsync":
                os.fsync(device)
        except OSError as error:
            fail(f"step {step} failed: {error}")
        if flush:
            if arguments.mark:
                writes.send_mark(arguments.mark, f"flushed {step}")
            journal.record("flushed", step)
        if time.monotonic() > end or step == arguments.steps or os.path.exists(arguments.until):
            journal.record("acknowledged", step)
            break
    print(f"wrote {written >> 20} MiB in {step} steps, generation {journal.generation}")


def trim_range(device, journal, first, count):
    offset = (journal.first_block + first) * BLOCK
    fcntl.ioctl(device, BLKDISCARD, struct.pack("<QQ", offset, count * BLOCK))


def write_range(device, buffer, journal, step, first, count, flags):
    length = count * BLOCK
    buffer[:length] = b"".join(stamp(first + index, journal.generation, step) for index in range(count))
    view = memoryview(buffer)[:length]
    done = os.pwritev(device, [view], (journal.first_block + first) * BLOCK, flags)
    if done != length:
        raise OSError(f"short write: {done} of {length} bytes")
    return done


# ---- The checker ----------------------------------------------------------------------------------------------------------------


def check(arguments):
    journal = Journal(arguments.journal)
    journal.load()
    values = read_values(arguments.device, journal, arguments.unreadable)
    unreadable = values.count(UNREADABLE)
    rotten = [block for block, found in enumerate(values) if found is None]
    if rotten:
        fail(f"{len(rotten)} blocks hold neither a stamp of their own nor zeros, the first is block {rotten[0]} of the region")
    last_needed = journal.acknowledged if arguments.exact else min(journal.flushed, arguments.promised)
    # The writer flushes at least every STEPS_BETWEEN_FLUSHES steps, and may have died before it recorded the last one.
    last_possible = journal.acknowledged + 2 * STEPS_BETWEEN_FLUSHES
    histories = histories_until(journal, last_possible)
    read = [index for index, found in enumerate(values) if found != UNREADABLE]
    all_values, all_histories = values, histories
    values, histories = [values[index] for index in read], [histories[index] for index in read]
    moment = common_moment(values, histories, last_possible)
    if moment is None:
        explain_no_moment(values, histories, last_possible)
    if moment < last_needed:
        lost = [block for block, found in enumerate(values) if last_at(histories[block], last_needed) > last_at(histories[block], moment)]
        fail(f"the state is that of step {moment}, but step {last_needed} was promised: {len(lost)} blocks went back, e.g. {lost[:5]}")
    if unreadable:
        print(f"{unreadable} of {journal.blocks} blocks are unreadable")
    if not unreadable or arguments.trust:
        base = [value_at(history, moment) if found == UNREADABLE else found for found, history in zip(all_values, all_histories)]
        journal.save(journal.first_block, journal.blocks, journal.generation + 1, journal.seed, base)
    print(f"generation {journal.generation}: everything up to step {moment}, nothing later; step {last_needed} was promised")


def read_values(path, journal, most_unreadable):
    device = os.open(path, os.O_RDONLY | os.O_DIRECT)
    chunk = 256
    buffer = mmap.mmap(-1, chunk * BLOCK)
    values = []
    for first in range(0, journal.blocks, chunk):
        count = min(chunk, journal.blocks - first)
        try:
            read_exactly(device, memoryview(buffer)[: count * BLOCK], journal.first_block + first)
            unreadable = set()
        except OSError:
            unreadable = {index for index in range(count) if not is_readable(device, buffer, index, journal.first_block + first + index)}
        for index in range(count):
            block = buffer[index * BLOCK : (index + 1) * BLOCK]
            values.append(UNREADABLE if index in unreadable else read_stamp(first + index, block))
        if values.count(UNREADABLE) > most_unreadable:
            fail(f"block {values.index(UNREADABLE)} of the region, and {values.count(UNREADABLE) - 1} more of the first {len(values)}, cannot be read")
    os.close(device)
    return values


def read_exactly(device, view, block):
    if os.preadv(device, [view], block * BLOCK) != len(view):
        fail(f"short read at block {block} of the device")


def is_readable(device, buffer, index, block):
    try:
        read_exactly(device, memoryview(buffer)[index * BLOCK : (index + 1) * BLOCK], block)
        return True
    except OSError:
        return False


def histories_until(journal, last):
    """For each block its values in order: [(step, value)], beginning with what the generation began with."""
    histories = [[(0, found)] for found in journal.base]
    for step, kind, ranges, _ in steps(journal):
        if step > last:
            return histories
        written = 0 if kind == "trim" else value(journal.generation, step)
        for first, count in ranges:
            for block in range(first, first + count):
                histories[block].append((step, written))
    return histories


def admitted_moments(found, history, last):
    """The moments at which the block can have held this value, as disjoint intervals.

    Moment m: everything of step m and before has happened, any part of step m + 1, and nothing later.
    """
    intervals = []
    for index, (step, written) in enumerate(history):
        if written != found:
            continue
        start = max(step - 1, 0)
        end = history[index + 1][0] - 1 if index + 1 < len(history) else last
        if intervals and intervals[-1][1] >= start:
            intervals[-1] = (intervals[-1][0], end)
        else:
            intervals.append((start, end))
    return intervals


def common_moment(values, histories, last):
    """The latest moment that every block admits, or None."""
    change = [0] * (last + 2)
    for found, history in zip(values, histories):
        for start, end in admitted_moments(found, history, last):
            change[start] += 1
            change[end + 1] -= 1
    admitting = 0
    latest = None
    for step in range(last + 1):
        admitting += change[step]
        if admitting == len(values):
            latest = step
    return latest


def last_at(history, moment):
    return max(step for step, _ in history if step <= moment)


def value_at(history, moment):
    return [written for step, written in history if step <= moment][-1]


def explain_no_moment(values, histories, last):
    foreign = [block for block, found in enumerate(values) if not admitted_moments(found, histories[block], last)]
    if foreign:
        fail(f"block {foreign[0]} of the region holds what was never written there in this generation ({len(foreign)} such blocks)")
    spans = [(admitted_moments(found, histories[block], last), block) for block, found in enumerate(values)]
    newest = max(spans, key=lambda span: span[0][0][0])
    oldest = min(spans, key=lambda span: span[0][-1][1])
    fail(
        f"the state is no prefix: block {newest[1]} holds step {newest[0][0][0]} or later, "
        f"block {oldest[1]} lost what step {oldest[0][-1][1]} wrote"
    )


def fail(message):
    print(f"stamps: {message}", file=sys.stderr)
    sys.exit(3)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    writer = verbs.add_parser("write")
    writer.set_defaults(run=write)
    writer.add_argument("--first-block", type=int, default=0)
    writer.add_argument("--blocks", type=int, required=True)
    writer.add_argument("--seconds", type=float, default=float("inf"))
    writer.add_argument("--steps", type=int, default=-1)
    writer.add_argument("--until", metavar="FILE", default="", help="stop when this file exists")
    writer.add_argument("--seed", type=int, default=1)
    writer.add_argument("--mark", metavar="NAME", help="note flushed steps in the log of this dm-log-writes as well")
    checker = verbs.add_parser("check")
    checker.set_defaults(run=check)
    checker.add_argument("--exact", action="store_true")
    checker.add_argument("--unreadable", type=int, default=0, metavar="N")
    checker.add_argument("--trust", action="store_true")
    checker.add_argument("--promised", type=float, default=float("inf"), metavar="STEP")
    for verb in (writer, checker):
        verb.add_argument("device")
        verb.add_argument("journal")
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
