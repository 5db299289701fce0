//! The image of a segment held against itself, byte by byte: header, batch chain, data, marks, summary.
//!
//! What readers go by is the summary, so that is what the batches are walked by; where it is damaged, the headers say
//! what there is, as far as they are whole. Everything else in the image must say the same.

use std::ops::Range;

use crate::format::{
    BLOCK_BYTES, BatchHeader, BatchRecord, Block, Checksum, Entry, EntryKind, Offset, Position, SegmentHeader,
    SegmentNumber, Summary, SummaryTrailer, Superblock, SynchMark, block_crc, summary_from_run,
};
use crate::history::scan::sound;

/// Blocks of a slot, from a copy of its segment.
pub(super) struct Image<'a> {
    pub bytes: &'a [u8],
    /// The slot's block that it begins with.
    pub first: Offset,
    pub volume: &'a Superblock,
    pub segment: SegmentNumber,
    /// The summary of a segment that is still open; of others it is at the end of the image.
    pub open: Option<&'a Summary>,
    /// A crash may have kept the summary from the device.
    pub may_lack_summary: bool,
}

/// A block of the volume whose bytes in this copy are not what its entry says.
#[derive(Debug, Clone, Copy)]
pub(super) struct Hurt {
    pub offset: Offset,
    pub block: Block,
    pub crc: u32,
    pub position: Position,
}

/// Something that is wrong with a copy.
#[derive(Debug, Clone)]
pub(super) struct Flaw {
    /// Blocks of the slot.
    pub offsets: Option<Range<u32>>,
    pub frame: Option<u32>,
    pub positions: Option<(Position, Position)>,
    pub what: String,
    pub hurts: Vec<Hurt>,
    /// One of the blocks was read and holds nothing but zeros: a slot that is free may have been discarded in part.
    pub zeros: bool,
}

impl Flaw {
    pub fn new(offsets: Option<Range<u32>>, what: impl ToString) -> Self {
        Self { offsets, frame: None, positions: None, what: what.to_string(), hurts: Vec::new(), zeros: false }
    }

    fn reach(&mut self, position: Position) {
        let (first, last) = self.positions.unwrap_or((position, position));
        self.positions = Some((first.min(position), last.max(position)));
    }
}

/// What an image says.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// What the batches were walked by.
    pub summary: Option<Summary>,
    pub flaws: Vec<Flaw>,
    /// Data blocks that were held against their checksums.
    pub blocks: u64,
    /// The largest claim of what is archived.
    pub archived_through: SegmentNumber,
}

/// Looks at all of `image`. `missing` are the parts of it that could not be got.
pub(super) fn inspect(image: &Image<'_>, missing: Vec<Flaw>) -> Seen {
    let mut look = Look { image, known: missing.len(), seen: Seen { flaws: missing, ..Seen::default() } };
    let header = look.header();
    let stored = match image.open {
        Some(summary) => Some(summary.clone()),
        None => look.stored_summary(),
    };
    let summary = stored.or_else(|| summary_from_run(image.bytes, image.first, image.volume).ok());
    let summary = summary.filter(|summary| sound(summary, image.segment));
    match &summary {
        Some(summary) => look.batches(summary, header),
        None => look.flaw(None, "neither its summary nor its batches can be read"),
    }
    look.seen.summary = summary;
    look.seen
}

struct Look<'a> {
    image: &'a Image<'a>,
    /// So many of the flaws are of what is missing.
    known: usize,
    seen: Seen,
}

impl Look<'_> {
    fn block(&self, offset: Offset) -> &[u8] {
        let at = offset.0.checked_sub(self.image.first.0).map_or(usize::MAX, |rank| rank as usize);
        let bytes = at.checked_mul(BLOCK_BYTES).and_then(|at| self.image.bytes.get(at..)?.get(..BLOCK_BYTES));
        bytes.unwrap_or_default()
    }

    /// What is known to be wrong with the block at `offset`, which could not be got.
    fn missing(&mut self, offset: Offset) -> Option<&mut Flaw> {
        let inside = |flaw: &&mut Flaw| flaw.offsets.as_ref().is_some_and(|offsets| offsets.contains(&offset.0));
        self.seen.flaws[..self.known].iter_mut().find(inside)
    }

    fn flaw(&mut self, at: Option<Offset>, what: impl ToString) {
        let mut flaw = Flaw::new(at.map(|offset| offset.0..offset.0.saturating_add(1)), what);
        flaw.zeros = at.is_some_and(|offset| is_zeros(self.block(offset)));
        self.seen.flaws.push(flaw);
    }

    fn header(&mut self) -> Option<SegmentHeader> {
        if self.image.first != Offset(0) || self.missing(Offset(0)).is_some() {
            return None;
        }
        match SegmentHeader::parse(self.block(Offset(0)), self.image.volume) {
            Ok(header) => return Some(header),
            Err(error) => self.flaw(Some(Offset(0)), error),
        }
        None
    }

    fn stored_summary(&mut self) -> Option<Summary> {
        let (bytes, volume) = (self.image.bytes, self.image.volume);
        let last = bytes.len().checked_sub(BLOCK_BYTES)?;
        let at = Offset(self.image.first.0.saturating_add((last / BLOCK_BYTES) as u32));
        let stored = SummaryTrailer::peek(&bytes[last..], volume).and_then(|trailer| {
            let from = bytes.len().saturating_sub(trailer.blocks as usize * BLOCK_BYTES);
            Summary::parse(&bytes[from..], volume)
        });
        match stored {
            Ok(summary) if sound(&summary, self.image.segment) => return Some(summary),
            _ if self.image.may_lack_summary || self.missing(at).is_some() => {}
            Ok(_) => self.flaw(Some(at), "the summary is another segment's"),
            Err(error) => self.flaw(Some(at), error),
        }
        None
    }

    /// Holds every batch against what `summary` says of it, and against the batch before.
    fn batches(&mut self, summary: &Summary, header: Option<SegmentHeader>) {
        if let Some(header) = header {
            let says = (header.segment, header.first_position, header.predecessor, header.oldest_needed);
            if says != (summary.segment, summary.first_position, summary.predecessor, summary.oldest_needed) {
                self.flaw(Some(Offset(0)), "segment header and summary do not belong together");
            }
        }
        let mut chain = Some(summary.predecessor);
        for (position, record, entries) in summary.walk() {
            let mut offset = record.offset();
            chain = match self.missing(offset) {
                Some(flaw) => {
                    flaw.reach(position);
                    None
                }
                None => match self.batch(summary.segment, position, record, entries, chain) {
                    Ok(checksum) => Some(checksum),
                    Err(what) => {
                        self.flaw(Some(offset), what);
                        self.seen.flaws.iter_mut().rev().take(1).for_each(|flaw| flaw.reach(position));
                        None
                    }
                },
            };
            for entry in entries {
                if let Ok(kind) = entry.kind()
                    && kind.has_data()
                {
                    offset = offset.plus(1);
                    self.data(summary, position, offset, entry, kind);
                }
            }
        }
        if chain.is_some_and(|checksum| checksum != summary.last_checksum) {
            self.flaw(None, "its last batch has another checksum than the summary says");
        }
    }

    fn batch(
        &mut self,
        segment: SegmentNumber,
        position: Position,
        record: &BatchRecord,
        entries: &[Entry],
        chain: Option<Checksum>,
    ) -> Result<Checksum, String> {
        let batch = BatchHeader::parse(self.block(record.offset()), self.image.volume);
        let batch = batch.map_err(|error| error.to_string())?;
        let header = &batch.header;
        let agrees = (header.segment, header.position, header.offset) == (segment, position, record.offset())
            && (header.epoch, header.time_ns, header.wall_ns) == (record.epoch(), record.time_ns(), record.wall_ns())
            && batch.data_blocks == record.data_blocks()
            && batch.entries == entries;
        if !agrees {
            return Err("the batch header is not what the summary says".to_owned());
        }
        self.seen.archived_through = self.seen.archived_through.max(header.archived_through);
        match chain {
            Some(before) if before != header.predecessor => {
                Err("the batch does not continue the one before it".to_owned())
            }
            _ => Ok(batch.checksum),
        }
    }

    fn data(&mut self, summary: &Summary, position: Position, offset: Offset, entry: &Entry, kind: EntryKind) {
        self.seen.blocks += 1;
        // A mark is no block of the volume, and is in the summary as well.
        let block = (kind != EntryKind::Synch).then(|| entry.block());
        let hurt = block.map(|block| Hurt { offset, block, crc: entry.crc(), position });
        if let Some(flaw) = self.missing(offset) {
            flaw.hurts.extend(hurt);
            return flaw.reach(position);
        }
        let (bytes, first) = (self.block(offset), self.known);
        if block_crc(bytes) == entry.crc() && bytes.len() == BLOCK_BYTES {
            let marked = |mark: &SynchMark| summary.synchs.iter().any(|known| known == mark);
            if kind == EntryKind::Synch && !SynchMark::parse(bytes).is_ok_and(|(mark, _)| marked(&mark)) {
                self.flaw(Some(offset), "the synch mark is not the one that the summary has");
            }
            return;
        }
        let zeros = is_zeros(bytes);
        let what = if hurt.is_some() { "the data" } else { "the synch mark" };
        let what = format!("{what} does not match its checksum");
        let last = self.seen.flaws[first..].last_mut();
        let goes_on = |flaw: &&mut Flaw| {
            flaw.what == what && flaw.offsets.as_ref().is_some_and(|offsets| offsets.end == offset.0)
        };
        let flaw = match last.filter(goes_on) {
            Some(flaw) => flaw,
            None => {
                self.seen.flaws.push(Flaw::new(Some(offset.0..offset.0), what));
                let last = self.seen.flaws.len() - 1;
                &mut self.seen.flaws[last]
            }
        };
        flaw.offsets = flaw.offsets.take().map(|offsets| offsets.start..offset.0 + 1);
        flaw.zeros |= zeros;
        flaw.hurts.extend(hurt);
        flaw.reach(position);
    }
}

fn is_zeros(bytes: &[u8]) -> bool {
    bytes.iter().all(|byte| *byte == 0)
}
