"""Who judges what a volume holds after a crash, for replay.py. A judge is told of each mark on the way, and of an image.

- `Stamped`: what stamps.py wrote must be a prefix, with everything that was flushed before the last mark.
- `Recorded`: of what any load wrote, each block holds what the recorder above the volume had of it at the last mark, or something newer.
- `FileSystem`: e2fsck replays the journal and finds nothing else to do.

Each fails with `Broken`. Of images that are judged in the order of the log, no block goes back.
"""

import bisect
import collections
import hashlib
import re
import subprocess

import stamps
import writes

BLOCK = stamps.BLOCK
ZEROS = bytes(BLOCK)


class Broken(Exception):
    """A promise that was not kept."""


def changed_blocks(image, before):
    """The blocks in which two images differ; all that hold anything when there is no image before."""
    before = before or bytes(len(image))
    for chunk in range(0, len(image), 64 * BLOCK):
        if image[chunk : chunk + 64 * BLOCK] == before[chunk : chunk + 64 * BLOCK]:
            continue
        for at in range(chunk, min(chunk + 64 * BLOCK, len(image)), BLOCK):
            if image[at : at + BLOCK] != before[at : at + BLOCK]:
                yield at // BLOCK


class Stamped:
    """The journal and the marks of one generation of stamps.py."""

    def __init__(self, journal):
        self.journal = stamps.Journal(journal)
        self.journal.load()
        self.last = self.journal.acknowledged + 2 * stamps.STEPS_BETWEEN_FLUSHES
        self.histories = stamps.histories_until(self.journal, self.last)
        self.promised = 0
        self.reached = 0
        self.image = None
        self.values = [0] * self.journal.blocks

    def hear(self, mark):
        if mark.startswith("flushed "):
            self.promised = int(mark.split()[1])

    def judge(self, path, in_order):
        with open(path, "rb") as file:
            image = file.read()
        for block in changed_blocks(image, self.image):
            self.values[block] = stamps.read_stamp(block, image[block * BLOCK : (block + 1) * BLOCK])
            if self.values[block] is None:
                self.image = None
                raise Broken(f"block {block} holds neither a stamp of its own nor zeros")
        self.image = image
        moment = stamps.common_moment(self.values, self.histories, self.last)
        if moment is None:
            raise Broken("the state is no prefix of what was written")
        if moment < self.promised:
            raise Broken(f"the state is that of step {moment}, but step {self.promised} was promised")
        if in_order:
            if moment < self.reached:
                raise Broken(f"the state went back from step {self.reached} to {moment}")
            self.reached = moment


class Recorded:
    """The versions of each block in the recorder's log, and up to where each mark promises them."""

    def __init__(self, log):
        log = writes.Log(log)
        self.versions = collections.defaultdict(lambda: [(-1, ZEROS)])
        self.floors = {}
        for entry in log:
            if entry.flags & writes.MARK:
                self.floors[entry.mark] = entry.number
            elif entry.changes:
                data = bytes(entry.length) if entry.flags & writes.DISCARD else log.data(entry)
                for at in range(0, entry.length, BLOCK):
                    self.versions[(entry.offset + at) // BLOCK].append((entry.number, digest(data[at : at + BLOCK])))
        self.written = sum(len(versions) for versions in self.versions.values())
        self.changed_underway = set()
        self.floor = -1
        self.image = None
        self.found = {}
        self.reached = {}

    def hear(self, mark):
        self.floor = self.floors.get(mark, self.floor)

    def judge(self, path, in_order):
        with open(path, "rb") as file:
            image = file.read()
        for block in changed_blocks(image, self.image):
            self.found[block] = digest(image[block * BLOCK : (block + 1) * BLOCK])
        self.image = image
        for block, found in self.found.items():
            if block not in self.versions and found != ZEROS:
                raise Broken(f"block {block} was never written and holds something")
        for block, versions in self.versions.items():
            self.judge_block(block, versions, self.found.get(block, ZEROS), in_order)

    def judge_block(self, block, versions, found, in_order):
        matching = [index for index, (_, content) in enumerate(versions) if content == found]
        needed = bisect.bisect_right(versions, (self.floor, b"\xff")) - 1
        if not matching:
            # A page of the page cache may change between the recorder and the volume. Then it is written again.
            self.changed_underway.add((block, found))
            if needed + 1 == len(versions) or len(self.changed_underway) > 2 + self.written // 500:
                raise Broken(f"block {block} holds what was never written there")
            self.reached[block] = max(self.reached.get(block, 0), needed)
            return
        if matching[-1] < needed:
            raise Broken(f"block {block} holds version {matching[-1]}, version {needed} was flushed (entry {versions[needed][0]})")
        if in_order:
            if matching[-1] < self.reached.get(block, 0):
                raise Broken(f"block {block} went back to version {matching[-1]}")
            self.reached[block] = matching[0]


def digest(data):
    return ZEROS if data == ZEROS else hashlib.blake2b(data, digest_size=16).digest()


class FileSystem:
    """ext4. What e2fsck may do is to replay the journal, and to finish what its orphan list says was being deleted. The free counts of
    the superblock are brought up to date by an unmount only, and nobody believes them before."""

    COUNTS = re.compile(r"Free (blocks|inodes) count wrong \(\d+, counted=\d+\)\.\nFix\? (yes|no)")
    FAULT = re.compile(r"\? (yes|no)|FIXED|UNEXPECTED|ILLEGAL|corrupt|inconsisten", re.IGNORECASE)

    def hear(self, mark):
        pass

    def judge(self, path, in_order):
        del in_order
        for options, most in (("-fy", 1), ("-fn", 0)):
            done = subprocess.run(["e2fsck", options, path], capture_output=True, text=True, check=False)
            said = done.stdout + done.stderr
            if done.returncode > most or self.FAULT.search(self.COUNTS.sub("", said)):
                raise Broken(f"e2fsck {options} ends with {done.returncode}: {said.strip()}")
