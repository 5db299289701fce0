//! The backward scan: the index of the volume at any position, from at most W+1 segments.
//!
//! Segments are read from the newest to the oldest that the newest names, batches behind the position are ignored, and of
//! each block the first entry met counts. What is asserted of each scan:
//!
//! 1. **Length.** It takes at most W+1 segments.
//! 2. **Chain.** Each segment's last checksum and position are those that the next one names.
//! 3. **Version order.** A copy has the checksum of the version that it copies (rule 6 of the design): a copy that had
//!    passed a newer entry would differ from the next older one.
//!
//! Nothing here does I/O: summaries come from a [`Segments`], so that the simulator checks every position with it.

use std::collections::BTreeMap;
use std::ops::Range;
use std::sync::Arc;

use super::HistoryError;
use crate::format::{
    Block, Checksum, Entry, EntryKind, Offset, Place, Position, SegmentNumber, Slot, Summary, Superblock,
};
use crate::index::{Index, Mapping};

/// Segments whose summaries are read together.
pub(super) const READ_AHEAD: u64 = 32;

/// Where summaries come from.
pub trait Segments {
    /// The summary of `segment`; when `successor` is given, of the candidate with which the chain goes on to the segment
    /// that names this checksum as its predecessor's.
    ///
    /// # Errors
    /// When there is none, or it is damaged.
    fn summary(&self, segment: SegmentNumber, successor: Option<Checksum>) -> Result<Arc<Summary>, HistoryError>;

    /// These will be asked for next, the last of them first.
    fn expect(&self, _segments: Range<u64>) {}
}

/// Summaries in memory, of which there is one for each segment.
impl Segments for BTreeMap<SegmentNumber, Arc<Summary>> {
    fn summary(&self, segment: SegmentNumber, successor: Option<Checksum>) -> Result<Arc<Summary>, HistoryError> {
        let gone = HistoryError::Gone { position: Position(0), segment, archive: "" };
        let summary = self.get(&segment).ok_or(gone)?;
        if successor.is_some_and(|checksum| checksum != summary.last_checksum) {
            return Err(HistoryError::Chain { segment });
        }
        Ok(Arc::clone(summary))
    }
}

/// Where a block was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Sited {
    /// Never written, trimmed or zeroed.
    Zeros,
    /// In this segment, at this offset, with this CRC32C.
    At(SegmentNumber, Offset, u32),
    /// Lost before; an I/O error until it is overwritten.
    Lost,
}

/// Stands in the index for "zeros, by an entry". No data block can be there: it is where the first segment of the scan
/// has its first batch header.
const ZEROS: Place = Place(1);

/// The index of a volume at a position.
pub struct PointIndex {
    /// Places are counted from the oldest segment that the scan may need.
    index: Index,
    base: SegmentNumber,
    segment_blocks: u32,
    position: Position,
    newest: SegmentNumber,
    /// The last checksum of each segment read, newest first.
    chain: Vec<(SegmentNumber, Checksum)>,
    /// The epoch of each.
    epochs: Vec<u64>,
    /// One bit a block: the place kept is a copy, and what it copied has not been met.
    unproven: Vec<u64>,
    segment_at: SegmentNumber,
    next: Option<(Checksum, Position)>,
}

/// The index of `volume` at `position`, which lies in `segment`.
///
/// # Errors
/// When a segment that it needs is missing or damaged, or the chain or the order of versions is broken.
///
/// # Panics
/// When a scan would take more than W+1 segments: headers that say so are refused before.
pub fn index_at(
    segments: &impl Segments,
    volume: &Superblock,
    segment: SegmentNumber,
    position: Position,
) -> Result<PointIndex, HistoryError> {
    let gone = |error| match error {
        HistoryError::Gone { segment, archive, .. } => HistoryError::Gone { position, segment, archive },
        other => other,
    };
    let newest = segments.summary(segment, None).map_err(gone)?;
    if position < newest.first_position || position > newest.last_position() {
        let what = format!("position {position} is not in segment {segment}");
        return Err(HistoryError::NoPoint { what });
    }
    let mut scan = PointIndex::begin(volume, &newest, position)?;
    scan.take(&newest)?;
    let oldest = oldest_needed(&newest);
    for number in (oldest.0..segment.0).rev() {
        if (segment.0 - number) % READ_AHEAD == 1 {
            segments.expect(number.saturating_sub(READ_AHEAD - 1).max(oldest.0)..number + 1);
        }
        let successor = scan.next.map(|(checksum, _)| checksum);
        let older = segments.summary(SegmentNumber(number), successor).map_err(gone)?;
        scan.take(&older)?;
    }
    assert!(scan.segments_read() <= volume.geometry.working_set + 1, "the scan is bounded by what headers may say");
    Ok(scan)
}

/// The oldest segment that any position in the segment of `summary` can need.
pub(super) fn oldest_needed(summary: &Summary) -> SegmentNumber {
    SegmentNumber(summary.oldest_needed.0.max(1))
}

/// Whether what a summary says can be counted with: positions do not overflow, and what it needs is not newer than itself. A
/// key of one's own signs anything.
pub(super) fn sound(summary: &Summary, segment: SegmentNumber) -> bool {
    let last = summary.first_position.0.checked_add(summary.batches.len() as u64);
    summary.segment == segment
        && oldest_needed(summary) <= segment
        && summary.first_position.0 > 0
        && !summary.batches.is_empty()
        && last.is_some_and(|last| last < u64::MAX)
}

impl PointIndex {
    /// A scan that begins in the segment of `newest`, from which nothing has been taken yet.
    pub(super) fn begin(volume: &Superblock, newest: &Summary, position: Position) -> Result<Self, HistoryError> {
        let segment = newest.segment;
        let base = oldest_needed(newest);
        if base > segment || segment.0 - base.0 > u64::from(volume.geometry.working_set) {
            return Err(HistoryError::Chain { segment });
        }
        // A key of one's own makes any header valid: what is allocated is bounded by what the geometry allows.
        let most = u64::from(volume.geometry.working_set) * u64::from(volume.geometry.segment_blocks);
        if newest.volume_blocks > most.max(volume.geometry.volume_blocks) {
            return Err(HistoryError::Outside { segment, block: newest.volume_blocks, blocks: most });
        }
        let blocks = newest.volume_blocks;
        Ok(Self {
            index: Index::new(blocks)?,
            base,
            segment_blocks: volume.geometry.segment_blocks,
            position,
            newest: segment,
            chain: Vec::new(),
            epochs: Vec::new(),
            unproven: vec![0; usize::try_from(blocks.div_ceil(64)).unwrap_or(0)],
            segment_at: segment.plus(1),
            next: None,
        })
    }

    /// Blocks of the volume at the position.
    pub fn blocks(&self) -> u64 {
        self.index.blocks()
    }

    /// The position that the index is of.
    pub fn position(&self) -> Position {
        self.position
    }

    /// The oldest and the newest segment of the scan.
    pub fn segments(&self) -> std::ops::RangeInclusive<u64> {
        self.base.0..=self.newest.0
    }

    /// How many segments were read.
    pub fn segments_read(&self) -> u32 {
        self.chain.len() as u32
    }

    /// The segments read, newest first, with the checksums that tell them from others of their number.
    pub(super) fn chain(&self) -> &[(SegmentNumber, Checksum)] {
        &self.chain
    }

    /// The epochs of the segments read, newest first.
    pub(super) fn epochs(&self) -> &[u64] {
        &self.epochs
    }

    /// Where `block` was.
    ///
    /// # Panics
    /// When it is not of the volume.
    pub fn get(&self, block: Block) -> Sited {
        match self.index.get(block) {
            Mapping::Unmapped | Mapping::At(ZEROS, _) => Sited::Zeros,
            Mapping::Lost(_) => Sited::Lost,
            Mapping::At(place, crc) => {
                let (segment, offset) = (place.0 / self.segment_blocks, place.0 % self.segment_blocks);
                Sited::At(self.base.plus(u64::from(segment)), Offset(offset), crc)
            }
        }
    }

    /// Whether any entry of the scan was about `block`.
    pub(super) fn is_known(&self, block: Block) -> bool {
        self.index.get(block) != Mapping::Unmapped
    }

    /// Takes the next older segment.
    pub(super) fn take(&mut self, summary: &Summary) -> Result<(), HistoryError> {
        let segment = summary.segment;
        if !sound(summary, segment) {
            return Err(HistoryError::Chain { segment });
        }
        let last = summary.last_position();
        let linked = self.next.is_none_or(|(checksum, first)| {
            checksum == summary.last_checksum && first == Position(last.0.saturating_add(1))
        });
        if !linked || segment.plus(1) != self.segment_at {
            return Err(HistoryError::Chain { segment });
        }
        self.segment_at = segment;
        self.next = Some((summary.predecessor, summary.first_position));
        self.chain.push((segment, summary.last_checksum));
        self.epochs.push(summary.epoch);
        for (position, batch, entries) in summary.walk().rev() {
            if position > self.position {
                continue;
            }
            let mut offset = batch.offset().plus(batch.data_blocks());
            for entry in entries.iter().rev() {
                let Ok(kind) = entry.kind() else { continue };
                self.take_entry(segment, position, entry, kind, offset)?;
                if kind.has_data() {
                    offset = Offset(offset.0 - 1);
                }
            }
        }
        Ok(())
    }

    fn take_entry(
        &mut self,
        segment: SegmentNumber,
        position: Position,
        entry: &Entry,
        kind: EntryKind,
        offset: Offset,
    ) -> Result<(), HistoryError> {
        let first = entry.block();
        let (count, to) = match kind {
            EntryKind::Write | EntryKind::Copy => (1, Some(entry.crc())),
            EntryKind::Lost => (1, None),
            EntryKind::Trim | EntryKind::Zero => (u64::from(entry.count()), None),
            _ => return Ok(()),
        };
        let end = first.0.saturating_add(count);
        if end > self.blocks() {
            return Err(HistoryError::Outside { segment, block: end - 1, blocks: self.blocks() });
        }
        for number in first.0..end {
            let block = Block(number);
            self.prove(block, to, kind).map_err(|()| HistoryError::Copy { segment, block: number, position })?;
            if self.is_known(block) || segment < self.base {
                continue;
            }
            let mapping = match (kind, to) {
                (EntryKind::Lost, _) => Mapping::Lost(Slot(0)),
                (_, Some(crc)) => Mapping::At(self.place(segment, offset), crc),
                (_, None) => Mapping::At(ZEROS, 0),
            };
            self.index.set(block, mapping);
            if kind == EntryKind::Copy {
                self.unproven[number as usize / 64] |= 1 << (number % 64);
            }
        }
        Ok(())
    }

    /// When the block kept is a copy, this next older entry must be the version that it copies.
    fn prove(&mut self, block: Block, crc: Option<u32>, kind: EntryKind) -> Result<(), ()> {
        let (word, bit) = (block.0 as usize / 64, 1 << (block.0 % 64));
        if self.unproven[word] & bit == 0 {
            return Ok(());
        }
        if kind != EntryKind::Copy {
            self.unproven[word] &= !bit;
        }
        match self.index.get(block) {
            Mapping::At(_, kept) if crc == Some(kept) => Ok(()),
            _ => Err(()),
        }
    }

    fn place(&self, segment: SegmentNumber, offset: Offset) -> Place {
        let rank = (segment.0 - self.base.0) as u32;
        Place(rank * self.segment_blocks + offset.0)
    }
}
