//! A log as text, and as JSON: superblock, segment headers, batches, entries, marks, summaries.
//!
//! What is shown are the bytes as they are, also those that recovery would not take: each batch that continues the chain
//! of its segment, why the walk ended where it did, and whether the summary agrees. The worked examples of
//! `docs/format.md` are held against this text. The volume's key is not shown.

use std::ops::Range;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;

use super::text::rfc3339;
use super::{HistoryError, Source};
use crate::archive::{ArchivedSegment, OBJECT_HEADER_BYTES, ObjectHeader, ObjectName, Store, StoreError};
use crate::format::{
    BLOCK_BYTES, BatchHeader, Checksum, EntryKind, FormatError, Offset, ParsedBatch, Position, SegmentHeader,
    SegmentNumber, Slot, Summary, SummaryTrailer, Superblock, SynchMark, block_crc,
};
use crate::log::scan;

/// A part of a dump.
#[derive(Debug, Clone, PartialEq, Serialize)]
#[serde(tag = "part", rename_all = "lowercase")]
pub enum DumpSection {
    Superblock(Box<SuperblockDump>),
    /// A slot without a segment of this volume.
    Empty {
        slot: u32,
        offset: u64,
        why: String,
    },
    Segment(Box<SegmentDump>),
}

/// A superblock.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SuperblockDump {
    /// Where it is: a byte offset of the primary, or the store.
    pub at: String,
    pub name: String,
    pub volume: String,
    pub history: String,
    pub parent_history: String,
    pub fork_position: u64,
    pub generation: u64,
    pub epoch: u64,
    pub created: String,
    pub primary_blocks: u64,
    pub volume_blocks: u64,
    pub segment_blocks: u32,
    pub slots: u32,
    pub working_set: u32,
    pub archive_at: String,
    pub compression: String,
    pub backing: String,
    /// Segment, position and checksum of a clean close.
    pub clean_close: Option<(u64, u64, String)>,
    /// Segment and epoch of a loss that was accepted.
    pub accepted_loss: Option<(u64, u64)>,
}

/// A segment and everything in it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SegmentDump {
    /// `slot 3 at 0x300000`, or the name of the object.
    pub at: String,
    pub segment: u64,
    pub slot: u32,
    pub epoch: u64,
    pub first_position: u64,
    pub predecessor: String,
    pub oldest_needed: u64,
    pub durable_through: u64,
    pub archived_through: u64,
    pub volume_blocks: u64,
    pub working_set: u32,
    pub time: String,
    pub batches: Vec<BatchDump>,
    /// The first block behind the last batch, and why the walk ended there.
    pub end: u32,
    pub end_why: String,
    pub summary: SummaryDump,
}

/// A batch.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct BatchDump {
    pub position: u64,
    pub offset: u32,
    pub epoch: u64,
    pub time: String,
    pub wall: String,
    pub durable_through: u64,
    pub oldest_needed: u64,
    pub archived_through: u64,
    pub volume_blocks: u64,
    pub working_set: u32,
    pub data_blocks: u32,
    pub predecessor: String,
    pub checksum: String,
    pub entries: Vec<EntryDump>,
}

/// An entry.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct EntryDump {
    pub kind: &'static str,
    /// First block of the volume, number of the point, or epoch.
    pub block: u64,
    /// Blocks of a range.
    pub count: Option<u32>,
    /// CRC32C of the data, and where it is in the segment.
    pub crc: Option<String>,
    pub offset: Option<u32>,
    /// Whether the data has this checksum.
    pub damaged: bool,
    /// Label, information and time of a synch point.
    pub label: Option<String>,
    pub info: Option<String>,
    pub time: Option<String>,
}

/// A summary.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct SummaryDump {
    pub present: bool,
    /// Why there is none, or in what it differs from the headers.
    pub note: String,
    pub blocks: u32,
    pub epoch: u64,
    pub first_position: u64,
    pub batches: u64,
    pub entries: u64,
    pub synchs: u64,
    pub last_checksum: String,
}

/// Takes a part of a dump.
pub type TakeSection<'a> = dyn FnMut(DumpSection) -> Result<(), HistoryError> + 'a;

/// Dumps the log of `source`: the slots of the primary in their order, or the objects of an archive in theirs. With
/// `only`, nothing but that segment.
///
/// # Errors
/// When a slot or an object cannot be read at all.
pub fn dump(source: &Source, only: Option<SegmentNumber>, take: &mut TakeSection<'_>) -> Result<(), HistoryError> {
    if source.primary.is_some() { dump_primary(source, only, take) } else { dump_archive(source, only, take) }
}

fn dump_primary(source: &Source, only: Option<SegmentNumber>, take: &mut TakeSection<'_>) -> Result<(), HistoryError> {
    let Some(view) = &source.primary else { return Ok(()) };
    let volume = source.volume();
    if only.is_none() {
        for at in [0, volume.geometry.copy_at()] {
            match view.bench.block(at).map(|block| Superblock::parse(block.bytes())) {
                Ok(Ok(superblock)) => take(superblock_section(&superblock, format!("{at:#x}")))?,
                Ok(Err(error)) => log::warn!("superblock at {at:#x}: {error}"),
                Err(error) => log::warn!("superblock at {at:#x}: {error}"),
            }
        }
    }
    for slot in (0..volume.geometry.slots).map(Slot) {
        let offset = volume.geometry.slot_place(slot).bytes();
        let header = view.bench.block(offset).map(|block| SegmentHeader::parse(block.bytes(), volume));
        let why = match header {
            Ok(Ok(header)) if only.is_some_and(|only| only != header.segment) => continue,
            Ok(Ok(_)) => {
                let (device, known) = (view.bench.device.clone(), volume.clone());
                let image = view.bench.wait(async move { scan::image(&device, &known, slot).await })??;
                let at = format!("slot {slot} at {offset:#x}");
                match segment_dump(image.bytes(), Offset(0), volume, at) {
                    Ok(dumped) => {
                        take(DumpSection::Segment(Box::new(dumped)))?;
                        continue;
                    }
                    Err(error) => error.to_string(),
                }
            }
            Ok(Err(error)) => error.to_string(),
            Err(error) => error.to_string(),
        };
        if only.is_none() {
            take(DumpSection::Empty { slot: slot.0, offset, why })?;
        }
    }
    Ok(())
}

fn dump_archive(source: &Source, only: Option<SegmentNumber>, take: &mut TakeSection<'_>) -> Result<(), HistoryError> {
    if only.is_none() {
        let at = source.store.as_ref().map_or_else(String::new, |store| store.spec());
        take(superblock_section(source.volume(), at))?;
    }
    for segment in source.numbers() {
        if only.is_some_and(|only| only != segment) {
            continue;
        }
        for archived in source.archived(segment) {
            let dumped = source.open_archived(&archived).and_then(object_dump);
            match dumped {
                Ok(dumped) => take(DumpSection::Segment(Box::new(dumped)))?,
                Err(error @ HistoryError::Store(_)) => return Err(error),
                Err(error) => log::warn!("{error}"),
            }
        }
    }
    Ok(())
}

/// Dumps the archive object in the file at `path`, wherever it comes from.
///
/// # Errors
/// When it is none, or is damaged.
pub fn dump_object(path: &Path, take: &mut TakeSection<'_>) -> Result<(), HistoryError> {
    let store: Arc<dyn Store> = Arc::new(OneFile(path.to_owned()));
    let head = store.get(&NOBODY, 0..OBJECT_HEADER_BYTES as u64)?;
    let header = ObjectHeader::parse(&head)
        .map_err(|source| HistoryError::Superblock { path: path.display().to_string(), source })?;
    let segment = header.name.segment;
    let object = ArchivedSegment::open(&store, &header.name, None)
        .map_err(|source| HistoryError::DamagedObject { segment, source })?;
    take(superblock_section(object.volume(), path.display().to_string()))?;
    take(DumpSection::Segment(Box::new(object_dump(object)?)))
}

fn object_dump(mut object: ArchivedSegment) -> Result<SegmentDump, HistoryError> {
    let (name, volume) = (object.header().name, object.volume().clone());
    let damaged = |source| HistoryError::DamagedObject { segment: name.segment, source };
    let image = object.read_image().map_err(damaged)?;
    let at = format!("object {name} of {} bytes", object.object_bytes());
    segment_dump(&image, object.start(), &volume, at).map_err(|error| {
        damaged(crate::archive::ArchiveError::Object { name, source: crate::archive::ObjectError::Format(error) })
    })
}

const NOBODY: ObjectName =
    ObjectName { history: crate::format::Uuid([0; 16]), segment: SegmentNumber(0), epoch: 0, part: 0 };

/// A store of one object: a file that somebody has copied.
struct OneFile(std::path::PathBuf);

impl OneFile {
    fn io(&self, what: &str) -> impl FnOnce(std::io::Error) -> StoreError {
        let (store, what) = (self.spec(), what.to_owned());
        move |source| StoreError::Io { store, what, source }
    }

    fn refused(&self) -> StoreError {
        StoreError::Refused { store: self.spec(), what: "is only read".to_owned() }
    }
}

impl Store for OneFile {
    fn put(&self, _: &ObjectName, _: &[u8]) -> Result<(), StoreError> {
        Err(self.refused())
    }

    fn get(&self, name: &ObjectName, range: Range<u64>) -> Result<Vec<u8>, StoreError> {
        use std::os::unix::fs::FileExt;
        let length = self.length(name)?;
        let (start, end) = (range.start.min(length), range.end.min(length));
        let mut bytes = vec![0; usize::try_from(end.saturating_sub(start)).unwrap_or(0)];
        let file = std::fs::File::open(&self.0).map_err(self.io("cannot be opened"))?;
        file.read_exact_at(&mut bytes, start).map_err(self.io("cannot be read"))?;
        Ok(bytes)
    }

    fn length(&self, _: &ObjectName) -> Result<u64, StoreError> {
        std::fs::metadata(&self.0).map(|found| found.len()).map_err(self.io("cannot be opened"))
    }

    fn list(&self) -> Result<Vec<(ObjectName, u64)>, StoreError> {
        Err(self.refused())
    }

    fn delete(&self, _: &ObjectName) -> Result<(), StoreError> {
        Err(self.refused())
    }

    fn spec(&self) -> String {
        self.0.display().to_string()
    }
}

/// A superblock as a part of a dump.
pub fn superblock_section(superblock: &Superblock, at: String) -> DumpSection {
    let geometry = &superblock.geometry;
    DumpSection::Superblock(Box::new(SuperblockDump {
        at,
        name: superblock.name.clone(),
        volume: superblock.uuid.to_string(),
        history: superblock.history.to_string(),
        parent_history: superblock.parent_history.to_string(),
        fork_position: superblock.fork_position.0,
        generation: superblock.generation,
        epoch: superblock.epoch,
        created: rfc3339(superblock.created_ns),
        primary_blocks: geometry.primary_blocks,
        volume_blocks: geometry.volume_blocks,
        segment_blocks: geometry.segment_blocks,
        slots: geometry.slots,
        working_set: geometry.working_set,
        archive_at: format!("{:?}", superblock.archive_at).to_lowercase(),
        compression: match superblock.compression {
            crate::format::Compression::Auto => "auto".to_owned(),
            crate::format::Compression::None => "none".to_owned(),
            crate::format::Compression::Zstd(level) => format!("zstd:{level}"),
        },
        backing: superblock.backing.clone(),
        clean_close: superblock
            .clean_close
            .map(|close| (close.segment.0, close.position.0, close.checksum.to_string())),
        accepted_loss: superblock.accepted_loss.map(|loss| (loss.segment.0, loss.epoch)),
    }))
}

/// The segment in `image`, a whole slot, or of a part alone what is from block `first` on.
fn segment_dump(image: &[u8], first: Offset, volume: &Superblock, at: String) -> Result<SegmentDump, FormatError> {
    let header = match first {
        Offset(0) => SegmentHeader::parse(image, volume)?,
        Offset(first) => {
            let batch = BatchHeader::parse(&image[first as usize * BLOCK_BYTES..], volume)?;
            SegmentHeader::of_first_batch(Slot(0), &batch.header)
        }
    };
    let mut batches = Vec::new();
    let (mut end, mut chain, mut next, mut epoch) =
        (Offset(first.0.max(1)), header.predecessor, header.first_position, header.epoch);
    let end_why = loop {
        let Some(rest) = image.get(end.0 as usize * BLOCK_BYTES..).filter(|rest| rest.len() >= BLOCK_BYTES) else {
            break "the segment is full".to_owned();
        };
        let batch = match BatchHeader::parse(rest, volume) {
            Ok(batch) => batch,
            Err(FormatError::Magic { .. }) => break "no batch header".to_owned(),
            Err(error) => break error.to_string(),
        };
        let is_next = batch.header.segment == header.segment
            && batch.header.offset == end
            && batch.header.position == next
            && batch.header.epoch >= epoch
            && batch.header.predecessor == chain;
        let data = rest.get(BLOCK_BYTES..batch.blocks() as usize * BLOCK_BYTES);
        let Some(data) = data.filter(|_| is_next) else {
            break format!("a batch header (position {}) that does not continue the chain", batch.header.position);
        };
        let Some(following) = next.0.checked_add(1) else { break "positions end".to_owned() };
        (end, chain, epoch) = (end.plus(batch.blocks()), batch.checksum, batch.header.epoch);
        next = Position(following);
        batches.push(batch_dump(&batch, data));
    };
    Ok(SegmentDump {
        at,
        segment: header.segment.0,
        slot: header.slot.0,
        epoch: header.epoch,
        first_position: header.first_position.0,
        predecessor: header.predecessor.to_string(),
        oldest_needed: header.oldest_needed.0,
        durable_through: header.durable_through.0,
        archived_through: header.archived_through.0,
        volume_blocks: header.volume_blocks,
        working_set: header.working_set,
        time: rfc3339(header.time_ns),
        summary: summary_dump(image, volume, &header, chain, &batches),
        batches,
        end: end.0,
        end_why,
    })
}

fn batch_dump(batch: &ParsedBatch, data: &[u8]) -> BatchDump {
    let header = &batch.header;
    let mut blocks = data.chunks_exact(BLOCK_BYTES);
    let mut offset = header.offset.0;
    let entries = batch.entries.iter().filter_map(|entry| {
        let kind = entry.kind().ok()?;
        let mut dumped = EntryDump {
            kind: kind.word(),
            block: entry.block().0,
            count: matches!(kind, EntryKind::Trim | EntryKind::Zero | EntryKind::RollbackBegin).then(|| entry.count()),
            crc: None,
            offset: None,
            damaged: false,
            label: None,
            info: None,
            time: None,
        };
        if kind.has_data() {
            offset += 1;
            let block = blocks.next().unwrap_or_default();
            dumped.crc = Some(format!("{:08x}", entry.crc()));
            dumped.offset = Some(offset);
            dumped.damaged = block_crc(block) != entry.crc();
            if kind == EntryKind::Synch
                && let Ok((SynchMark { label, info, time_ns, .. }, _)) = SynchMark::parse(block)
            {
                (dumped.label, dumped.info, dumped.time) = (Some(label), Some(info), Some(rfc3339(time_ns)));
            }
        }
        Some(dumped)
    });
    BatchDump {
        entries: entries.collect(),
        position: header.position.0,
        offset: header.offset.0,
        epoch: header.epoch,
        time: rfc3339(header.time_ns),
        wall: rfc3339(header.wall_ns),
        durable_through: header.durable_through.0,
        oldest_needed: header.oldest_needed.0,
        archived_through: header.archived_through.0,
        volume_blocks: header.volume_blocks,
        working_set: header.working_set,
        data_blocks: batch.data_blocks,
        predecessor: header.predecessor.to_string(),
        checksum: batch.checksum.to_string(),
    }
}

fn summary_dump(
    image: &[u8],
    volume: &Superblock,
    header: &SegmentHeader,
    chain: Checksum,
    batches: &[BatchDump],
) -> SummaryDump {
    let last = &image[image.len() - BLOCK_BYTES..];
    let parsed = SummaryTrailer::peek(last, volume).and_then(|trailer| {
        let from = image.len().saturating_sub(trailer.blocks as usize * BLOCK_BYTES);
        Summary::parse(&image[from..], volume).map(|summary| (summary, trailer.blocks))
    });
    let absent = |note: String| SummaryDump {
        present: false,
        note,
        blocks: 0,
        epoch: 0,
        first_position: 0,
        batches: 0,
        entries: 0,
        synchs: 0,
        last_checksum: String::new(),
    };
    match parsed {
        Err(FormatError::Magic { .. }) => absent("none: the segment is not sealed".to_owned()),
        Err(error) => absent(error.to_string()),
        Ok((summary, _)) if summary.segment != header.segment => {
            absent(format!("none: that of segment {}, an older tenant, is still there", summary.segment))
        }
        Ok((summary, blocks)) => {
            let agrees = summary.last_checksum == chain && summary.batches.len() == batches.len();
            SummaryDump {
                present: true,
                note: if agrees { "agrees with the headers" } else { "differs from the headers" }.to_owned(),
                blocks,
                epoch: summary.epoch,
                first_position: summary.first_position.0,
                batches: summary.batches.len() as u64,
                entries: summary.entries.len() as u64,
                synchs: summary.synchs.len() as u64,
                last_checksum: summary.last_checksum.to_string(),
            }
        }
    }
}
