#!/usr/bin/env python3
"""What dm-log-writes recorded of a disk: the disk at every flush, and what a power cut between two flushes can leave of it.

    writes.py count LOG
    writes.py mark NAME TEXT

The kernel's recorder logs writes and trims when a flush has covered them, those with FUA when they are done, and marks where they
were made. So the disk that is made of all entries up to a flush is the least that may be there when that flush has been
answered, and the entries between two flushes are writes of which a power cut before the second may keep any part.

Log: a superblock in sector 0 (magic, version, entries, bytes of a sector), then of each entry one sector (sector, sectors, flags,
bytes of a mark, the mark) and, unless it is a trim, its data. All numbers are little-endian.
"""

import argparse
import collections
import fcntl
import os
import random
import struct
import sys

MAGIC = 0x6A736677736872
SUPER = struct.Struct("<QQQI")
ENTRY = struct.Struct("<QQQQ")
FLUSH, FUA, DISCARD, MARK = 1, 2, 4, 8

DM_TARGET_MSG = 0xC138FD0E
DM_IOCTL = struct.Struct("<3I7IQ128s129s7x")
DM_VERSION = (4, 0, 0)


class Entry:
    """One entry; `offset` and `length` in bytes of the disk, `data_at` where the log has its data."""

    def __init__(self, number, offset, length, flags, mark, data_at):
        self.number, self.offset, self.length, self.flags, self.mark, self.data_at = number, offset, length, flags, mark, data_at

    @property
    def is_barrier(self):
        """Whether the disk promised something here: a flush, or a write with FUA."""
        return bool(self.flags & (FLUSH | FUA))

    @property
    def changes(self):
        return self.length > 0 and not self.flags & MARK


class Log:
    """A log as a sequence of entries."""

    def __init__(self, path):
        self.file = os.open(path, os.O_RDONLY)
        magic, version, self.count, self.sector = SUPER.unpack(os.pread(self.file, SUPER.size, 0))
        if (magic, version) != (MAGIC, 1):
            sys.exit(f"{path}: no log of dm-log-writes")

    def __iter__(self):
        at = self.sector
        for number in range(self.count):
            header = os.pread(self.file, self.sector, at)
            sector, sectors, flags, data_bytes = ENTRY.unpack_from(header)
            at += self.sector
            mark = header[ENTRY.size : ENTRY.size + data_bytes].decode() if flags & MARK else ""
            yield Entry(number, sector * self.sector, sectors * self.sector, flags, mark, at)
            if not flags & DISCARD:
                at += sectors * self.sector

    def data(self, entry):
        return os.pread(self.file, entry.length, entry.data_at)


class Disk:
    """The disk that is made of a log, in a file. What a trim leaves is not promised: zeros, or what was there."""

    def __init__(self, path, size, log, seed):
        self.file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        os.ftruncate(self.file, size)
        self.log = log
        self.rng = random.Random(f"{seed}/disk")
        self.undo = None

    def apply(self, entry):
        if not entry.changes:
            return
        if entry.flags & DISCARD:
            if self.rng.random() < 0.5:
                self.put(entry.offset, bytes(entry.length))
        else:
            self.put(entry.offset, self.log.data(entry))

    def put(self, offset, data):
        if self.undo is not None:
            self.undo.append((offset, os.pread(self.file, len(data), offset)))
        os.pwrite(self.file, data, offset)

    def begin_crash(self):
        self.undo = []

    def end_crash(self):
        for offset, data in reversed(self.undo):
            os.pwrite(self.file, data, offset)
        self.undo = None

    def apply_part(self, entry, rng, manner):
        """As much of an entry as a power cut keeps; `manner` is how many survive, and how whole. What it did."""
        if not entry.changes:
            return "none"
        fate = rng.choices(("kept", "lost", "torn"), manner)[0]
        if entry.flags & (DISCARD | FUA):
            fate = "kept" if entry.flags & FUA or fate == "torn" else fate
        if fate == "kept":
            self.apply(entry)
        elif fate == "torn":
            data = self.log.data(entry)
            unit = self.log.sector
            sectors = range(0, entry.length, unit)
            if rng.random() < 0.5:
                cut = rng.choice(sectors)
                survivors = [at for at in sectors if (at < cut) == (cut % (2 * unit) == 0)]
            else:
                survivors = [at for at in sectors if rng.random() < 0.5]
            for at in survivors:
                self.put(entry.offset + at, data[at : at + unit])
        return fate


# How much a power cut keeps, drops and tears: mostly all, mostly nothing, half, torn.
MANNERS = ((9, 1, 0), (1, 9, 0), (1, 1, 0), (1, 1, 2))


def send_mark(name, text):
    """`dmsetup message NAME 0 mark TEXT`, without a process for each."""
    message = struct.pack("<Q", 0) + b"mark " + text.replace(" ", "\\ ").encode() + b"\0"
    size = DM_IOCTL.size + len(message)
    header = DM_IOCTL.pack(*DM_VERSION, size, DM_IOCTL.size, 0, 0, 0, 0, 0, 0, name.encode(), b"")
    with open("/dev/mapper/control", "rb") as control:
        fcntl.ioctl(control, DM_TARGET_MSG, bytearray(header + message))


def count(arguments):
    kinds = collections.Counter()
    for entry in Log(arguments.log):
        kind = [word for bit, word in ((FLUSH, "flush"), (FUA, "fua"), (DISCARD, "trim"), (MARK, "mark")) if entry.flags & bit]
        kinds["+".join(kind) or "write"] += 1
        kinds["bytes"] += entry.length * (not kind)
    print(", ".join(f"{number} {kind}" for kind, number in sorted(kinds.items())))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    verb = verbs.add_parser("count")
    verb.set_defaults(run=count)
    verb.add_argument("log")
    verb = verbs.add_parser("mark")
    verb.set_defaults(run=lambda arguments: send_mark(arguments.name, arguments.text))
    verb.add_argument("name")
    verb.add_argument("text")
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
