//! Walking a segment's batches: what is in a segment according to its headers, which are the truth.

use super::{
    BLOCK_BYTES, BatchHeader, BatchRecord, Checksum, EntryKind, FormatError, Offset, ParsedBatch, Position,
    SegmentHeader, SegmentNumber, Slot, Summary, Superblock, SynchMark, block_crc,
};

/// What a walk found.
#[derive(Debug, Clone)]
pub struct Walk {
    /// What the summary of these batches says, or would say. Without batches its `batches` are empty.
    pub summary: Summary,
    /// The first block behind the last valid batch.
    pub end: Offset,
    /// The header of the last valid batch.
    pub last: Option<BatchHeader>,
    /// The largest claim of durability in the headers walked, segment header included.
    pub durable_through: Position,
    /// Whether the last valid batch is nothing but an open entry.
    pub ends_with_open: bool,
}

/// Walks the batches of the segment in `image`, which starts with `header`'s block, as long as each continues the one
/// before: the validity rule of `docs/format.md`. Data is verified in the batches from position `data_from` on.
pub fn walk_segment(image: &[u8], volume: &Superblock, header: &SegmentHeader, data_from: Position) -> Walk {
    walk_run(image, Offset(0), volume, header, data_from)
}

/// The same for a run of a slot's blocks, `run`, from its block `first` on, which is the slot's first or that of a batch.
fn walk_run(run: &[u8], first: Offset, volume: &Superblock, header: &SegmentHeader, data_from: Position) -> Walk {
    let mut walk = Walk {
        summary: Summary::begin(header),
        end: Offset(first.0.max(1)),
        last: None,
        durable_through: header.durable_through,
        ends_with_open: false,
    };
    let blocks = first.0.saturating_add((run.len() / BLOCK_BYTES) as u32).min(volume.geometry.segment_blocks);
    while walk.end.0 < blocks {
        let rest = &run[(walk.end.0 - first.0) as usize * BLOCK_BYTES..];
        let Ok(batch) = BatchHeader::parse(rest, volume) else { break };
        if !walk.continued_by(&batch, header.segment) || walk.end.0 + batch.blocks() > blocks {
            break;
        }
        let data = &rest[BLOCK_BYTES..batch.blocks() as usize * BLOCK_BYTES];
        let Some(marks) = check_data(&batch, data, batch.header.position >= data_from) else { break };
        walk.take(&batch, marks);
    }
    walk
}

/// The summary that the headers in a whole, sealed segment's `image` make: for when the summary is rotten.
///
/// # Errors
/// When the segment header is not one, or no batch follows it.
pub fn summary_from_image(image: &[u8], volume: &Superblock) -> Result<Summary, FormatError> {
    let header = SegmentHeader::parse(image, volume)?;
    let walk = walk_segment(image, volume, &header, Position(u64::MAX));
    if walk.summary.batches.is_empty() {
        return Err(FormatError::Field { what: "segment", field: "batches", value: 0 });
    }
    Ok(walk.summary)
}

/// The same for a part of a segment: a run of its blocks from block `first` of the slot on.
///
/// # Errors
/// When no batch is there.
pub fn summary_from_run(run: &[u8], first: Offset, volume: &Superblock) -> Result<Summary, FormatError> {
    let at = if first.0 == 0 { BLOCK_BYTES } else { 0 };
    let batch = BatchHeader::parse(run.get(at..).unwrap_or_default(), volume)?;
    let header = SegmentHeader::of_first_batch(Slot(0), &batch.header);
    Ok(walk_run(run, first, volume, &header, Position(u64::MAX)).summary)
}

/// The synch marks in a batch's data, or nothing when a mark, or with `verify` any block, is not what its entry says.
fn check_data(batch: &ParsedBatch, data: &[u8], verify: bool) -> Option<Vec<SynchMark>> {
    let mut marks = Vec::new();
    let mut blocks = data.chunks_exact(BLOCK_BYTES);
    for entry in &batch.entries {
        let kind = entry.kind().ok()?;
        if !kind.has_data() {
            continue;
        }
        let block = blocks.next()?;
        let synch = kind == EntryKind::Synch;
        if (verify || synch) && block_crc(block) != entry.crc() {
            return None;
        }
        if synch {
            marks.push(SynchMark::parse(block).ok()?.0);
        }
    }
    Some(marks)
}

impl Walk {
    /// The position that the next batch would have.
    pub fn next_position(&self) -> Position {
        Position(self.summary.first_position.0 + self.summary.batches.len() as u64)
    }

    /// The checksum that the next batch would name.
    pub fn chain(&self) -> Checksum {
        self.summary.last_checksum
    }

    fn continued_by(&self, batch: &ParsedBatch, segment: SegmentNumber) -> bool {
        let header = &batch.header;
        header.segment == segment
            && header.offset == self.end
            && header.position == self.next_position()
            && header.epoch >= self.summary.epoch
            && header.predecessor == self.summary.last_checksum
    }

    fn take(&mut self, batch: &ParsedBatch, marks: Vec<SynchMark>) {
        let header = &batch.header;
        self.summary.batches.push(BatchRecord::new(
            header.offset,
            batch.entries.len(),
            batch.data_blocks,
            header.epoch,
            header.time_ns,
            header.wall_ns,
        ));
        self.summary.entries.extend_from_slice(&batch.entries);
        self.summary.synchs.extend(marks);
        self.summary.epoch = header.epoch;
        self.summary.last_checksum = batch.checksum;
        self.summary.volume_blocks = header.volume_blocks;
        self.durable_through = self.durable_through.max(header.durable_through);
        self.end = Offset(header.offset.0 + batch.blocks());
        self.ends_with_open =
            batch.entries.len() == 1 && batch.entries[0].kind().is_ok_and(|kind| kind == EntryKind::Open);
        self.last = Some(*header);
    }
}
