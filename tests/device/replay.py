#!/usr/bin/env python3
"""Replays what dm-log-writes recorded and has every state judged that a power cut can leave.

    replay.py volume LOG DIRECTORY --salvol PROGRAM --primary BYTES [--journal JOURNAL] [--recorded LOG] [--ext4]
    replay.py files LOG DIRECTORY --volume BYTES
        [--points N] [--crashes N] [--keep N] [--seed N] [--lose N] [--early]

`volume`: LOG is of a volume's primary. At each flush, `salvol check` must find no damage, and the volume at the position that it
names, by `salvol restore`, must be what the judges say, see judges.py. `files`: LOG is of a volume's device with ext4 on it.

At each flush that is judged, --crashes states are as well that a power cut before the next one can leave: of the writes in between
each is kept, lost or torn. --points: so many of the flushes, evenly spread. --keep: so many of the states are left in DIRECTORY as
N.primary, with N.sum, the SHA-256 of what the volume must read as. --lose: the N-th write behind the mark `begin` is not
replayed, as if the disk had lied about it; --early: each promise is heard when the one before was made. The judges must notice both.
"""

import argparse
import hashlib
import json
import math
import os
import random
import shutil
import subprocess
import sys
import time

import judges
import writes

BEGIN = "begin"


class Replay:
    """Goes through the log and judges."""

    def __init__(self, arguments):
        self.arguments = arguments
        self.log = writes.Log(arguments.log)
        os.makedirs(arguments.directory, exist_ok=True)
        self.image = self.file("image")
        self.disk = writes.Disk(self.image, arguments.size, self.log, arguments.seed)
        self.rng = random.Random(f"{arguments.seed}/crashes")
        self.judges = arguments.judges(arguments)
        self.flushes = self.states = self.expected = self.kept = self.lost = 0
        self.fates = {"kept": 0, "lost": 0, "torn": 0, "none": 0}

    def file(self, name):
        return os.path.join(self.arguments.directory, name)

    def run(self):
        intervals = self.intervals()
        flushes = len(intervals) - 1
        points = min(self.arguments.points, flushes)
        # Interval 0 ends with `begin`, which is judged like a flush.
        wanted = {0} | {point * flushes // points for point in range(1, points + 1)}
        self.expected = len(wanted) * (1 + self.arguments.crashes)
        for number, entries in enumerate(intervals):
            if number - 1 in wanted:
                self.crash(intervals, number)
            for entry in entries:
                self.take(entry)
            if number in wanted:
                self.flushes += number > 0
                self.judge(f"flush {number}", True)

    def hear(self, entries):
        for entry in entries:
            for judge in self.judges if entry.mark else ():
                judge.hear(entry.mark)

    def intervals(self):
        """The entries up to `begin`, then those up to each flush. What no flush covered is of no interval."""
        intervals, entries, begun, written = [], [], False, 0
        for entry in self.log:
            if entry.mark == BEGIN:
                begun = True
                intervals.append(entries)
                entries = []
            lose = begun and entry.changes and (written := written + 1) == self.arguments.lose
            if not lose:
                entries.append(entry)
            self.lost += lose
            if begun and entry.is_barrier:
                intervals.append(entries)
                entries = []
        if not begun:
            sys.exit(f"{self.arguments.log}: no mark '{BEGIN}'")
        if self.arguments.early:
            marks = [entry for entries in intervals for entry in entries if entry.mark]
            for mark, following in zip(marks, marks[1:]):
                mark.mark = following.mark
        return intervals

    def take(self, entry):
        self.hear([entry])
        self.disk.apply(entry)

    def crash(self, intervals, number):
        """States before the flush that ends this interval; what was promised until then is what the marks in it say too."""
        self.hear(intervals[number])
        for turn in range(self.arguments.crashes):
            self.disk.begin_crash()
            manner = self.rng.choice(writes.MANNERS)
            for entry in intervals[number]:
                if not entry.flags & writes.FLUSH:
                    self.fates[self.disk.apply_part(entry, self.rng, manner)] += 1
            self.judge(f"crash {turn + 1} before flush {number}", False)
            self.disk.end_crash()

    def keep_if_wanted(self, volume):
        """So many states are kept that those wanted are spread over all."""
        if self.kept < self.arguments.keep and self.states >= (self.kept + 0.5) * self.expected / self.arguments.keep:
            self.kept += 1
            subprocess.run(["cp", "--sparse=always", self.image, self.file(f"{self.kept}.primary")], check=True)
            with open(volume, "rb") as file, open(self.file(f"{self.kept}.sum"), "w", encoding="ascii") as found:
                found.write(hashlib.file_digest(file, "sha256").hexdigest())

    def judge(self, what, in_order):
        self.states += 1
        try:
            self.arguments.judge(self, in_order)
        except judges.Broken as broken:
            sys.exit(f"replay: {what}, seed {self.arguments.seed}: {broken}\n  the state is {self.image}")


def judge_volume(replay, in_order):
    out = replay.file("volume")
    report = json.loads(call(replay, "check", replay.image, "--json"))
    if not report["ok"]:
        raise judges.Broken(f"check finds {report['findings']}")
    if os.path.exists(out):
        os.unlink(out)
    call(replay, "-q", "restore", replay.image, "--at", str(report["position"]), "--to", out)
    replay.keep_if_wanted(out)
    for judge in replay.judges:
        judge.judge(out, in_order)


def call(replay, *command):
    done = subprocess.run([replay.arguments.salvol, *command], capture_output=True, text=True, check=False)
    if done.returncode:
        raise judges.Broken(f"salvol {' '.join(command)} ends with {done.returncode}: {(done.stdout + done.stderr).strip()}")
    return done.stdout


def judge_files(replay, in_order):
    out = replay.file("copy")
    shutil.copyfile(replay.image, out)
    for judge in replay.judges:
        judge.judge(out, in_order)


def judges_of_volume(arguments):
    found = []
    if arguments.journal:
        found.append(judges.Stamped(arguments.journal))
    if arguments.recorded:
        found.append(judges.Recorded(arguments.recorded))
    if arguments.ext4:
        found.append(judges.FileSystem())
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    verbs = parser.add_subparsers(required=True)
    volume = verbs.add_parser("volume")
    volume.set_defaults(judge=judge_volume, judges=judges_of_volume)
    volume.add_argument("--salvol", required=True)
    volume.add_argument("--primary", dest="size", type=int, required=True)
    volume.add_argument("--journal")
    volume.add_argument("--recorded")
    volume.add_argument("--ext4", action="store_true")
    files = verbs.add_parser("files")
    files.set_defaults(judge=judge_files, judges=lambda _: [judges.FileSystem()])
    files.add_argument("--volume", dest="size", type=int, required=True)
    for verb in (volume, files):
        verb.add_argument("log")
        verb.add_argument("directory")
        verb.add_argument("--points", type=int, default=10**9)
        verb.add_argument("--crashes", type=int, default=1)
        verb.add_argument("--keep", type=int, default=0)
        verb.add_argument("--seed", type=int, default=1)
        verb.add_argument("--lose", type=int, default=0)
        verb.add_argument("--early", action="store_true")
    arguments = parser.parse_args()
    started = time.monotonic()
    replay = Replay(arguments)
    replay.run()
    if arguments.lose and not replay.lost:
        sys.exit("replay: there are less writes than that")
    fates = replay.fates
    print(
        f"replayed {replay.flushes} flushes, judged {replay.states} states"
        f" ({fates['kept']} unflushed writes kept, {fates['lost']} lost, {fates['torn']} torn)"
        f" in {time.monotonic() - started:.0f} s"
    )


if __name__ == "__main__":
    main()
