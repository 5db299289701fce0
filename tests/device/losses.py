#!/usr/bin/env python3
"""What a lost disk takes with it: a writer that notes when each write was acknowledged, and a judge of what came back.

    losses.py write DEVICE JOURNAL --blocks N --until FILE [--pause SECONDS]
    losses.py judge IMAGE JOURNAL --blocks N [--at-least WRITE] [--died-at SECONDS]
    losses.py acknowledged JOURNAL

Write number W goes to block W % N, one after the other, with direct I/O; JOURNAL, on storage that survives, gets the time at which
it was acknowledged. The image is right if and only if there is a last write L such that every block holds the newest write up
to L that went to it: the judge finds L, or fails. It prints L, what was acknowledged and is lost, in bytes, and how long before
the death the oldest of it had been acknowledged. Afterwards the journal ends at L, and the next writer goes on from there.
"""

import argparse
import hashlib
import json
import mmap
import os
import struct
import sys
import time

BLOCK = 4096
HEAD = struct.Struct("<8sQQ")
TIME = struct.Struct("<d")
MAGIC = b"LOSSES\r\n"


def content(number, blocks):
    # Half of it compresses.
    noise = hashlib.sha256(struct.pack("<Q", number)).digest() * 64
    return (HEAD.pack(MAGIC, number % blocks, number) + noise).ljust(BLOCK, b"\0")[:BLOCK]


def acknowledged(journal):
    """Writes are numbered from 1; entry 0 of the journal is unused."""
    return max(0, (os.path.getsize(journal) // TIME.size if os.path.exists(journal) else 0) - 1)


def write(arguments):
    device = os.open(arguments.device, os.O_RDWR | os.O_DIRECT)
    journal = os.open(arguments.journal, os.O_RDWR | os.O_CREAT, 0o600)
    number = acknowledged(arguments.journal)
    block = mmap.mmap(-1, BLOCK)
    while not os.path.exists(arguments.until):
        for _ in range(16):
            number += 1
            block[:] = content(number, arguments.blocks)
            try:
                os.pwrite(device, block, number % arguments.blocks * BLOCK)
            except OSError:
                return  # its disk is lost
            os.pwrite(journal, TIME.pack(time.time()), number * TIME.size)
        time.sleep(arguments.pause)


def judge(arguments):
    blocks = arguments.blocks
    found = {}
    with open(arguments.image, "rb") as image:
        for place in range(blocks):
            data = image.read(BLOCK)
            if data == bytes(BLOCK):
                continue
            _, _, number = HEAD.unpack_from(data)
            if number % blocks != place or data != content(number, blocks):
                sys.exit(f"block {place} holds bytes that nobody wrote to it")
            found[place] = number
    last = max(found.values(), default=0)
    for place in range(blocks):
        newest = last - (last - place) % blocks
        if found.get(place, 0) != max(newest, 0):
            sys.exit(f"block {place} holds write {found.get(place, 0)}, not {newest}: no state after write {last}")
    if last < arguments.at_least:
        sys.exit(f"write {arguments.at_least} was promised, the last one that came back is {last}")
    done = acknowledged(arguments.journal)
    lost_seconds = 0.0
    with open(arguments.journal, "r+b") as journal:
        if done > last and arguments.died_at:
            journal.seek((last + 1) * TIME.size)
            lost_seconds = max(0.0, arguments.died_at - TIME.unpack(journal.read(TIME.size))[0])
        if arguments.died_at:
            # A write that was under way may have arrived without having been acknowledged.
            journal.truncate((last + 1) * TIME.size)
    lost = max(0, done - last)
    print(json.dumps({"last": last, "lost_bytes": lost * BLOCK, "lost_seconds": round(lost_seconds, 2)}))


def main():
    parser = argparse.ArgumentParser()
    verbs = parser.add_subparsers(dest="verb", required=True)
    writing = verbs.add_parser("write")
    writing.add_argument("device")
    writing.add_argument("journal")
    writing.add_argument("--blocks", type=int, required=True)
    writing.add_argument("--until", required=True)
    writing.add_argument("--pause", type=float, default=0.01, help="seconds between sixteen writes and the next")
    judging = verbs.add_parser("judge")
    judging.add_argument("image")
    judging.add_argument("journal")
    judging.add_argument("--blocks", type=int, required=True)
    judging.add_argument("--at-least", type=int, default=0)
    judging.add_argument("--died-at", type=float, default=0.0)
    counting = verbs.add_parser("acknowledged")
    counting.add_argument("journal")
    arguments = parser.parse_args()
    if arguments.verb == "write":
        write(arguments)
    elif arguments.verb == "judge":
        judge(arguments)
    else:
        print(acknowledged(arguments.journal))


main()
