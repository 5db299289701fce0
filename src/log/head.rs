//! The head of the log: the current segment in memory, and the batch that is being built at its end.
//!
//! ```text
//! | segment header | closed batches ... | open batch: header, data ... | promised | unused | summary |
//! 0                                     used                        used+1+data
//! ```
//!
//! Pure memory: nothing here waits or does I/O. An entry gets its place in the open batch and its data is copied there,
//! once, with its checksum; closing the batch writes its header in front. What is *promised* is room that only the
//! copies of the segment being cleaned may use, and a little that only synch, open and close may.

use super::limits::COPY_GROUP_BLOCKS;
use crate::format::{
    BATCH_ENTRIES_MAX, BLOCK_BYTES, BatchHeader, BatchRecord, Checksum, Entry, EntryKind, Geometry, Offset, Place,
    Position, SegmentHeader, Slot, Summary, Superblock, SynchMark, block_crc, summary_blocks,
};
use crate::io::Buffer;

/// Room that is kept for copies and control entries.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Promise {
    /// Blocks that must still be copied into this segment.
    pub copies: u32,
    /// Blocks that only control entries may use.
    pub control: u32,
}

impl Promise {
    /// Batches that the copies may need, packed in groups with one split each.
    fn batches(self) -> u32 {
        if self.copies == 0 { 0 } else { 2 * self.copies.div_ceil(COPY_GROUP_BLOCKS as u32) + 2 }
    }

    /// Whether it fits into a segment that has nothing else.
    pub fn fits_alone(self, geometry: &Geometry) -> bool {
        let (batches, entries) = (self.batches() + self.control, self.copies + self.control);
        let blocks = 1 + self.copies + batches;
        blocks + summary_blocks(batches as usize, entries as usize, 0) <= geometry.segment_blocks
    }
}

/// A batch that has been closed: what to write, and where.
#[derive(Debug)]
pub struct Closed {
    pub position: Position,
    pub place: Place,
    pub bytes: Buffer,
    pub checksum: Checksum,
}

/// Whether anybody but the log itself wants to know of the entry.
fn is_change(entry: &Entry) -> bool {
    entry.kind().is_ok_and(|kind| !matches!(kind, EntryKind::Noop | EntryKind::Open | EntryKind::Close))
}

/// The current segment.
#[derive(Debug)]
pub struct Head {
    pub slot: Slot,
    pub header: SegmentHeader,
    geometry: Geometry,
    buffer: Buffer,
    used: u32,
    header_written: bool,
    summary: Summary,
    synch_bytes: usize,
    open: Vec<Entry>,
    open_data: u32,
    open_has_synch: bool,
}

impl Head {
    /// An empty segment in `buffer`, or, with `found`, the segment as it was found there, to be continued at `used`.
    pub fn new(volume: &Superblock, header: SegmentHeader, buffer: Buffer, found: Option<(Summary, Offset)>) -> Self {
        let header_written = found.is_some();
        let (summary, used) = found.unwrap_or_else(|| {
            buffer.part(0, BLOCK_BYTES).write(|block| header.encode(volume, block));
            (Summary::begin(&header), Offset(1))
        });
        let synch_bytes = summary.synchs.iter().map(|mark| mark.encode().len()).sum();
        Self {
            slot: header.slot,
            header,
            geometry: volume.geometry,
            buffer,
            used: used.0,
            header_written,
            summary,
            synch_bytes,
            open: Vec::with_capacity(BATCH_ENTRIES_MAX),
            open_data: 0,
            open_has_synch: false,
        }
    }

    /// Blocks placed so far, the open batch included.
    pub fn used(&self) -> u32 {
        self.used + self.open_blocks()
    }

    /// Whether the open batch has entries.
    pub fn has_open(&self) -> bool {
        !self.open.is_empty()
    }

    /// Whether the open batch has data.
    pub fn has_open_data(&self) -> bool {
        self.open_data > 0
    }

    /// Blocks that the open batch would have if it were closed now.
    pub fn open_blocks(&self) -> u32 {
        if self.open.is_empty() { 0 } else { 1 + self.open_data }
    }

    /// Whether the open batch has a synch entry; a second one waits for the next batch, since a point is named by its
    /// position.
    pub fn open_has_synch(&self) -> bool {
        self.open_has_synch
    }

    /// Whether the open batch says more than that nothing happened.
    pub fn is_eventful(&self) -> bool {
        self.open.iter().any(|entry| entry.kind().is_ok_and(|kind| kind != EntryKind::Noop))
    }

    /// Whether the open batch changes the volume or marks a point.
    pub fn changes(&self) -> bool {
        self.open.iter().any(is_change)
    }

    /// The last closed batch, up to position `until`, that changes the volume or marks a point.
    pub fn last_change_until(&self, until: Position) -> Option<Position> {
        let mut batches = self.summary.walk().rev().skip_while(|(position, ..)| *position > until);
        batches.find(|(.., entries)| entries.iter().any(is_change)).map(|(position, ..)| position)
    }

    /// The time of the first closed batch behind `position` that changes the volume or marks a point.
    pub fn first_change_after(&self, position: Position) -> Option<i64> {
        let mut later = self.summary.walk().skip_while(|(at, ..)| *at <= position);
        later.find(|(.., entries)| entries.iter().any(is_change)).map(|(_, batch, _)| batch.time_ns())
    }

    /// The last closed batch, up to position `until`, that no later opening replaces.
    pub fn last_settled_until(&self, until: Position) -> Option<Position> {
        let batches = self.summary.walk().rev().skip_while(|(position, ..)| *position > until);
        let is_open = |entry: &Entry| entry.kind().is_ok_and(|kind| kind == EntryKind::Open);
        let mut settled = batches.filter(|(.., entries)| !(entries.len() == 1 && is_open(&entries[0])));
        settled.next().map(|(position, ..)| position)
    }

    /// What the closed batches say.
    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// The position of the open batch.
    pub fn position(&self) -> Position {
        Position(self.header.first_position.0 + self.summary.batches.len() as u64)
    }

    /// The position of the last closed batch.
    pub fn last_position(&self) -> Position {
        self.position().previous()
    }

    /// The position that is reached when everything placed so far has been written.
    pub fn position_to_await(&self) -> Position {
        if self.has_open() { self.position() } else { self.last_position() }
    }

    /// The checksum that the next batch names.
    pub fn chain(&self) -> Checksum {
        self.summary.last_checksum
    }

    /// The segment's memory.
    pub fn buffer(&self) -> &Buffer {
        &self.buffer
    }

    /// Entries that the open batch has room for.
    pub fn batch_room(&self) -> usize {
        BATCH_ENTRIES_MAX - self.open.len()
    }

    /// How many of `want` more data entries fit into the open batch while the promise is kept.
    pub fn room(&self, want: u32, promise: Promise) -> u32 {
        let mut count = want.min(self.batch_room() as u32);
        while count > 0 && !self.fits(count, count, 0, promise) {
            // Exact but for the summary's growth, which a few rounds settle.
            count = count.saturating_sub(self.excess(count, count, 0, promise).max(1));
        }
        count
    }

    /// Whether one more entry fits, with `data` blocks and `synch_bytes` in the summary.
    pub fn room_for_control(&self, data: u32, synch_bytes: usize, promise: Promise) -> bool {
        self.batch_room() > 0 && self.fits(data, 1, synch_bytes, promise)
    }

    /// Whether what is promised fits when it is packed in groups.
    pub fn fits_loosely(&self, promise: Promise) -> bool {
        self.fits(0, 0, 0, promise)
    }

    fn fits(&self, data: u32, entries: u32, synch_bytes: usize, promise: Promise) -> bool {
        self.excess(data, entries, synch_bytes, promise) == 0
    }

    fn excess(&self, data: u32, entries: u32, synch_bytes: usize, promise: Promise) -> u32 {
        let opens = u32::from(self.open.is_empty() && entries > 0);
        let batches = promise.batches();
        let blocks = self.used() + opens + data + promise.copies + batches + promise.control;
        // One batch more for the open one, and one for each pair of control blocks.
        let summary = summary_blocks(
            self.summary.batches.len() + 1 + batches as usize + promise.control as usize,
            self.summary.entries.len()
                + self.open.len()
                + entries as usize
                + (promise.copies + promise.control) as usize,
            self.synch_bytes + synch_bytes,
        );
        (blocks + summary).saturating_sub(self.geometry.segment_blocks)
    }

    /// Places an entry that has no data.
    pub fn place(&mut self, entry: Entry) {
        assert!(self.batch_room() > 0);
        self.open.push(entry);
    }

    /// Copies `data`, a block, into the open batch under the entry that `make` makes of its checksum.
    pub fn place_data(&mut self, data: &[u8], make: impl FnOnce(u32) -> Entry) -> (Place, u32) {
        let crc = block_crc(data);
        (self.place_known(data, make(crc)), crc)
    }

    /// Copies `data`, a block, into the open batch under `entry`, which has its checksum.
    pub fn place_known(&mut self, data: &[u8], entry: Entry) -> Place {
        assert!(self.batch_room() > 0 && data.len() == BLOCK_BYTES);
        let offset = self.used + 1 + self.open_data;
        self.buffer.copy_from(offset as usize * BLOCK_BYTES, data);
        self.open.push(entry);
        self.open_data += 1;
        self.geometry.slot_place(self.slot).plus(offset)
    }

    /// Places a synch mark.
    pub fn place_synch(&mut self, mark: SynchMark) {
        let encoded = mark.encode();
        let mut block = [0; BLOCK_BYTES];
        block[..encoded.len()].copy_from_slice(&encoded);
        self.place_data(&block, |crc| Entry::synch(mark.point, crc));
        self.open_has_synch = true;
        self.synch_bytes += encoded.len();
        self.summary.synchs.push(mark);
    }

    /// Closes the open batch under a header that `make` makes: it knows time and durability.
    pub fn close(&mut self, volume: &Superblock, make: impl FnOnce(&Self) -> BatchHeader) -> Closed {
        assert!(self.has_open());
        let header = make(self);
        let offset = self.used as usize * BLOCK_BYTES;
        let blocks = 1 + self.open_data;
        let checksum = self.buffer.part(offset, BLOCK_BYTES).write(|block| header.encode(volume, &self.open, block));
        self.summary.batches.push(BatchRecord::new(
            header.offset,
            self.open.len(),
            self.open_data,
            header.epoch,
            header.time_ns,
            header.wall_ns,
        ));
        self.summary.entries.append(&mut self.open);
        (self.summary.epoch, self.summary.last_checksum) = (header.epoch, checksum);
        // The segment header goes with the first batch, in one write.
        let from = if std::mem::replace(&mut self.header_written, true) { self.used } else { 0 };
        let end = self.used + blocks;
        let closed = Closed {
            position: header.position,
            place: self.geometry.slot_place(self.slot).plus(from),
            bytes: self.buffer.part(from as usize * BLOCK_BYTES, (end - from) as usize * BLOCK_BYTES),
            checksum,
        };
        (self.used, self.open_data, self.open_has_synch) = (end, 0, false);
        closed
    }

    /// The offset at which the open batch starts.
    pub fn offset(&self) -> Offset {
        Offset(self.used)
    }

    /// Ends the segment: zeroes what is unused, writes the summary to the end; returns it with its place and bytes.
    pub fn seal(self, volume: &Superblock) -> (Summary, Place, Buffer, Buffer) {
        assert!(!self.has_open());
        let blocks = self.summary.blocks();
        let first = self.geometry.segment_blocks - blocks;
        assert!(self.used <= first, "admission kept room for the summary");
        let unused = (first - self.used) as usize * BLOCK_BYTES;
        self.buffer.part(self.used as usize * BLOCK_BYTES, unused).zero();
        let bytes = self.buffer.part(first as usize * BLOCK_BYTES, blocks as usize * BLOCK_BYTES);
        bytes.write(|out| self.summary.encode(volume, out));
        (self.summary, self.geometry.slot_place(self.slot).plus(first), bytes, self.buffer)
    }
}
