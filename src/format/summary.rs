//! The summary: everything a full segment's batch headers say, in one run of blocks at the end of its slot, so that a
//! scan reads no data. It is a cache of the headers: a rotten one is made again from them.
//!
//! ```text
//! batch records | entries | synch marks | zeros ... | trailer (the slot's last 184 bytes)
//! ```

use std::ops::Range;

use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::units::{COUNT_MAX, check_counts};
use super::{
    BATCH_ENTRIES_MAX, BLOCK_BYTES, Checksum, Entry, FormatError, Offset, Position, SegmentHeader, SegmentNumber,
    Superblock, SynchMark, Uuid,
};

const MAGIC: [u8; 8] = *b"SALVOLSM";
const WHAT: &str = "summary";

/// One batch in the summary. Its position is the first position of the segment plus its rank.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Debug)]
#[repr(C)]
pub struct BatchRecord {
    offset: U32,
    entries: U16,
    data_blocks: U16,
    epoch: U64,
    time_ns: I64,
    wall_ns: I64,
}

const _: () = assert!(size_of::<BatchRecord>() == 32);

impl BatchRecord {
    /// The record of a batch at `offset`.
    pub fn new(offset: Offset, entries: usize, data_blocks: u32, epoch: u64, time_ns: i64, wall_ns: i64) -> Self {
        Self {
            offset: U32::new(offset.0),
            entries: U16::new(entries as u16),
            data_blocks: U16::new(data_blocks as u16),
            epoch: U64::new(epoch),
            time_ns: I64::new(time_ns),
            wall_ns: I64::new(wall_ns),
        }
    }

    pub fn offset(&self) -> Offset {
        Offset(self.offset.get())
    }

    pub fn entries(&self) -> usize {
        usize::from(self.entries.get())
    }

    pub fn data_blocks(&self) -> u32 {
        u32::from(self.data_blocks.get())
    }

    /// Whether `offset` is that of one of its data blocks.
    pub fn holds_data_at(&self, offset: Offset) -> bool {
        (1..=self.data_blocks()).contains(&offset.0.wrapping_sub(self.offset().0))
    }

    pub fn epoch(&self) -> u64 {
        self.epoch.get()
    }

    /// Wall-clock time that never goes backward, nanoseconds since 1970.
    pub fn time_ns(&self) -> i64 {
        self.time_ns.get()
    }

    /// Wall-clock time as read.
    pub fn wall_ns(&self) -> i64 {
        self.wall_ns.get()
    }
}

/// What a segment holds, without its data.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Summary {
    pub segment: SegmentNumber,
    /// The epoch of the segment's last batch.
    pub epoch: u64,
    pub first_position: Position,
    pub oldest_needed: SegmentNumber,
    /// The checksum of the batch header before the segment's first.
    pub predecessor: Checksum,
    /// The checksum of the segment's last batch header.
    pub last_checksum: Checksum,
    pub volume_blocks: u64,
    pub batches: Vec<BatchRecord>,
    /// The entries of all batches, in log order.
    pub entries: Vec<Entry>,
    pub synchs: Vec<SynchMark>,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Disk {
    magic: [u8; 8],
    volume: [u8; 16],
    history: [u8; 16],
    segment: U64,
    epoch: U64,
    first_position: U64,
    oldest_needed: U64,
    volume_blocks: U64,
    batches: U32,
    entries: U32,
    synchs: U32,
    synch_bytes: U32,
    blocks: U32,
    ring: U16,
    flags: U16,
    predecessor: Checksum,
    last_checksum: Checksum,
    reserved: [u8; 32],
    checksum: Checksum,
}

/// Bytes of the trailer.
pub const SUMMARY_TRAILER_BYTES: usize = 184;
const CHECKED: usize = SUMMARY_TRAILER_BYTES - 16;
const _: () = assert!(size_of::<Disk>() == SUMMARY_TRAILER_BYTES);
const _: () = assert!(std::mem::offset_of!(Disk, checksum) == CHECKED);

/// Blocks that the summary of so many batches, entries and bytes of synch marks takes.
pub fn summary_blocks(batches: usize, entries: usize, synch_bytes: usize) -> u32 {
    let bytes = batches * size_of::<BatchRecord>() + entries * size_of::<Entry>() + synch_bytes + SUMMARY_TRAILER_BYTES;
    bytes.div_ceil(BLOCK_BYTES) as u32
}

/// What the last block of a slot says of the summary that ends in it; not yet verified.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SummaryTrailer {
    pub segment: SegmentNumber,
    /// Blocks of the summary, at most a segment.
    pub blocks: u32,
}

impl SummaryTrailer {
    /// The trailer in the last block of a slot, to know how much to read before [`Summary::parse`].
    pub fn peek(last_block: &[u8], volume: &Superblock) -> Result<Self, FormatError> {
        let disk = disk(last_block)?;
        if !disk.is_of(volume) {
            return Err(FormatError::Identity { what: WHAT });
        }
        let blocks = disk.blocks.get();
        if blocks == 0 || blocks >= volume.geometry.segment_blocks {
            return Err(FormatError::Field { what: WHAT, field: "blocks", value: u64::from(blocks) });
        }
        Ok(Self { segment: SegmentNumber(disk.segment.get()), blocks })
    }
}

impl Disk {
    fn is_of(&self, volume: &Superblock) -> bool {
        let last = self.first_position.get().saturating_add(u64::from(self.batches.get())).saturating_sub(1);
        self.volume == volume.uuid.0 && volume.is_own(Uuid(self.history), Position(last))
    }
}

fn disk(bytes: &[u8]) -> Result<&Disk, FormatError> {
    let (_, disk) = Disk::ref_from_suffix(bytes).map_err(|_| FormatError::Length {
        what: WHAT,
        have: bytes.len(),
        need: SUMMARY_TRAILER_BYTES,
    })?;
    if disk.magic != MAGIC {
        return Err(FormatError::Magic { what: WHAT });
    }
    Ok(disk)
}

impl Summary {
    /// The summary of a segment that has its header and nothing else yet.
    pub fn begin(header: &SegmentHeader) -> Self {
        Self {
            segment: header.segment,
            epoch: header.epoch,
            first_position: header.first_position,
            oldest_needed: header.oldest_needed,
            predecessor: header.predecessor,
            last_checksum: header.predecessor,
            volume_blocks: header.volume_blocks,
            batches: Vec::new(),
            entries: Vec::new(),
            synchs: Vec::new(),
        }
    }

    /// Position of the segment's last batch; the one before its first when it has none.
    pub fn last_position(&self) -> Position {
        Position(self.first_position.0 + self.batches.len() as u64 - 1)
    }

    /// The batches with their positions and their entries, in log order.
    pub fn walk(&self) -> impl DoubleEndedIterator<Item = (Position, &BatchRecord, &[Entry])> {
        let mut end = 0;
        let ends: Vec<usize> = self
            .batches
            .iter()
            .map(|batch| {
                end += batch.entries();
                end
            })
            .collect();
        self.batches.iter().enumerate().map(move |(rank, batch)| {
            let entries = &self.entries[ends[rank] - batch.entries()..ends[rank]];
            (Position(self.first_position.0 + rank as u64), batch, entries)
        })
    }

    /// What this says of the batches of those ranks, of which the last has `last_checksum`. `predecessor` is the checksum
    /// of the batch before the first of them.
    ///
    /// # Panics
    /// When there are no such batches.
    pub fn part(&self, ranks: Range<usize>, predecessor: Checksum, last_checksum: Checksum) -> Self {
        let batches = &self.batches[ranks.clone()];
        let entries = |batches: &[BatchRecord]| batches.iter().map(BatchRecord::entries).sum::<usize>();
        let first = entries(&self.batches[..ranks.start]);
        let positions = ranks.start as u64..ranks.end as u64;
        let within = |mark: &&SynchMark| positions.contains(&mark.point.wrapping_sub(self.first_position.0));
        Self {
            epoch: batches[batches.len() - 1].epoch(),
            first_position: Position(self.first_position.0 + ranks.start as u64),
            predecessor,
            last_checksum,
            batches: batches.to_vec(),
            entries: self.entries[first..first + entries(batches)].to_vec(),
            synchs: self.synchs.iter().filter(within).cloned().collect(),
            ..*self
        }
    }

    /// Appends what `next`, the next part of the same segment, says.
    pub fn append(&mut self, next: Self) {
        (self.epoch, self.last_checksum, self.volume_blocks) = (next.epoch, next.last_checksum, next.volume_blocks);
        self.batches.extend(next.batches);
        self.entries.extend(next.entries);
        self.synchs.extend(next.synchs);
    }

    fn synch_bytes(&self) -> Vec<u8> {
        self.synchs.iter().flat_map(SynchMark::encode).collect()
    }

    /// Blocks that [`Self::encode`] fills.
    pub fn blocks(&self) -> u32 {
        summary_blocks(self.batches.len(), self.entries.len(), self.synch_bytes().len())
    }

    /// Writes the summary to `out`, the last [`Self::blocks`] blocks of the slot.
    pub fn encode(&self, volume: &Superblock, out: &mut [u8]) {
        let synchs = self.synch_bytes();
        let blocks = out.len() / BLOCK_BYTES;
        assert_eq!(blocks, self.blocks() as usize);
        let mut disk = Disk {
            magic: MAGIC,
            volume: volume.uuid.0,
            history: volume.history.0,
            segment: U64::new(self.segment.0),
            epoch: U64::new(self.epoch),
            first_position: U64::new(self.first_position.0),
            oldest_needed: U64::new(self.oldest_needed.0),
            volume_blocks: U64::new(self.volume_blocks),
            batches: U32::new(self.batches.len() as u32),
            entries: U32::new(self.entries.len() as u32),
            synchs: U32::new(self.synchs.len() as u32),
            synch_bytes: U32::new(synchs.len() as u32),
            blocks: U32::new(blocks as u32),
            ring: U16::new(0),
            flags: U16::new(0),
            predecessor: self.predecessor,
            last_checksum: self.last_checksum,
            reserved: [0; 32],
            checksum: Checksum::default(),
        };
        out.fill(0);
        let mut at = 0;
        for part in [self.batches.as_bytes(), self.entries.as_bytes(), &synchs] {
            out[at..at + part.len()].copy_from_slice(part);
            at += part.len();
        }
        let (body, trailer) = out.split_at_mut(blocks * BLOCK_BYTES - SUMMARY_TRAILER_BYTES);
        disk.checksum = Checksum::keyed(&volume.key, &[body, &disk.as_bytes()[..CHECKED]]);
        trailer.copy_from_slice(disk.as_bytes());
    }

    /// The summary in `bytes`, which end where the slot ends and start where the trailer says.
    pub fn parse(bytes: &[u8], volume: &Superblock) -> Result<Self, FormatError> {
        let disk = disk(bytes)?;
        let body = &bytes[..bytes.len() - SUMMARY_TRAILER_BYTES];
        if disk.checksum != Checksum::keyed(&volume.key, &[body, &disk.as_bytes()[..CHECKED]]) {
            return Err(FormatError::Checksum { what: WHAT });
        }
        if !disk.is_of(volume) {
            return Err(FormatError::Identity { what: WHAT });
        }
        let field = |field, value| FormatError::Field { what: WHAT, field, value };
        let numbers = [("segment", disk.segment), ("first position", disk.first_position), ("epoch", disk.epoch)];
        check_counts(WHAT, numbers)?;
        let counts = [disk.batches.get(), disk.entries.get(), disk.synchs.get(), disk.synch_bytes.get()];
        let [batches, entries, synchs, synch_bytes] = counts.map(|count| count as usize);
        let batch_bytes = batches * size_of::<BatchRecord>();
        let entry_bytes = entries * size_of::<Entry>();
        if batches == 0 || batch_bytes + entry_bytes + synch_bytes > body.len() {
            return Err(field("batches", batches as u64));
        }
        let list = <[BatchRecord]>::ref_from_bytes(&body[..batch_bytes]).map_err(|_| field("batches", 0))?;
        let listed = <[Entry]>::ref_from_bytes(&body[batch_bytes..batch_bytes + entry_bytes])
            .map_err(|_| field("entries", 0))?;
        let mut marks = Vec::new();
        let mut rest = &body[batch_bytes + entry_bytes..batch_bytes + entry_bytes + synch_bytes];
        for _ in 0..synchs {
            let (mark, used) = SynchMark::parse(rest)?;
            marks.push(mark);
            rest = &rest[used..];
        }
        if disk.volume_blocks.get() > volume.geometry.volume_blocks {
            return Err(FormatError::Field { what: WHAT, field: "volume blocks", value: disk.volume_blocks.get() });
        }
        let summary = Self {
            segment: SegmentNumber(disk.segment.get()),
            epoch: disk.epoch.get(),
            first_position: Position(disk.first_position.get()),
            oldest_needed: SegmentNumber(disk.oldest_needed.get()),
            predecessor: disk.predecessor,
            last_checksum: disk.last_checksum,
            volume_blocks: disk.volume_blocks.get(),
            batches: list.to_vec(),
            entries: listed.to_vec(),
            synchs: marks,
        };
        summary.check(volume.geometry.segment_blocks)?;
        Ok(summary)
    }

    /// Checks that batches follow each other without overlap, stay in the segment and account for all entries.
    fn check(&self, segment_blocks: u32) -> Result<(), FormatError> {
        let field = |field, value| Err(FormatError::Field { what: WHAT, field, value });
        let (mut next, mut listed) = (1, 0);
        for batch in &self.batches {
            let end = batch.offset().0.checked_add(1 + batch.data_blocks());
            match end {
                Some(end) if batch.offset().0 >= next && end <= segment_blocks => next = end,
                _ => return field("offset", u64::from(batch.offset().0)),
            }
            if batch.entries() > BATCH_ENTRIES_MAX || listed + batch.entries() > self.entries.len() {
                return field("entries", batch.entries() as u64);
            }
            let mut data = 0;
            for entry in &self.entries[listed..listed + batch.entries()] {
                data += u32::from(entry.check(self.volume_blocks)?.has_data());
            }
            if data != batch.data_blocks() {
                return field("data blocks", u64::from(batch.data_blocks()));
            }
            listed += batch.entries();
        }
        if listed != self.entries.len() {
            return field("entries", self.entries.len() as u64);
        }
        // Else the header of the archive's object could be written and not be read.
        match self.last_position().0 {
            last if last > COUNT_MAX => field("last position", last),
            _ => Ok(()),
        }
    }
}
