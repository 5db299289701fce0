//! Reading a log at rest: which segments are on the primary, and what is in them.

use std::io;

use futures_util::StreamExt;
use futures_util::stream;

use super::limits::{READS_IN_FLIGHT, SCAN_BYTES};
use crate::format::{
    BLOCK_BYTES, BatchHeader, Entry, EntryKind, FormatError, Geometry, Offset, SegmentHeader, SegmentNumber, Slot,
    Summary, SummaryTrailer, Superblock, summary_from_image,
};
use crate::index::Mapping;
use crate::io::{Buffer, Device};

/// Why a segment cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum ScanError {
    #[error("reading the primary at {offset:#x}: {source}")]
    Io { offset: u64, source: io::Error },
    #[error("segment {segment} at {offset:#x}: {source}")]
    Format { segment: SegmentNumber, offset: u64, source: FormatError },
}

/// Reads both superblocks and chooses; also says whether one needs writing again.
///
/// # Errors
/// `Ok(Err)` when neither is a superblock of ours; `Err` when the device cannot be read.
pub async fn superblock<D: Device>(device: &D) -> io::Result<Result<(Superblock, bool), FormatError>> {
    let block = Buffer::new(2 * BLOCK_BYTES)?;
    let (first, copy) = (block.part(0, BLOCK_BYTES), block.part(BLOCK_BYTES, BLOCK_BYTES));
    if device.bytes() < 2 * BLOCK_BYTES as u64 {
        return Ok(Err(FormatError::Magic { what: "superblock" }));
    }
    let last = device.bytes() / BLOCK_BYTES as u64 - 1;
    let head = device.read(0, first.clone()).await;
    // The copy is the last block of the primary as it was created, which may have grown since.
    let known = Superblock::parse(first.bytes()).map_or(last, |volume| volume.geometry.primary_blocks - 1);
    let tail = device.read(known.min(last) * BLOCK_BYTES as u64, copy.clone()).await;
    if head.is_err() && tail.is_err() {
        head?;
    }
    Ok(Superblock::choose(first.bytes(), copy.bytes()))
}

/// Writes both superblocks, one after the other, each durable before the next. The one that is damaged or older goes first: a power cut may
/// tear what is being written, and the other must be whole then.
///
/// # Errors
/// The I/O error.
pub async fn write_superblock<D: Device>(device: &D, superblock: &Superblock) -> io::Result<()> {
    let block = Buffer::new(BLOCK_BYTES)?;
    let mut places = [0, superblock.geometry.copy_at()];
    let mut generations = [None; 2];
    for (place, generation) in places.iter().zip(&mut generations) {
        let found = device.read(*place, block.clone()).await.ok().and_then(|()| Superblock::parse(block.bytes()).ok());
        *generation = found.filter(|found| found.uuid == superblock.uuid).map(|found| found.generation);
    }
    if generations[1] < generations[0] {
        places.reverse();
    }
    block.copy_from(0, &superblock.encode());
    for offset in places {
        device.write(offset, block.clone()).await?;
        device.flush().await?;
    }
    Ok(())
}

/// A slot that holds a segment of this volume and history, which may be old.
#[derive(Debug, Clone, Copy)]
pub struct Found {
    pub slot: Slot,
    pub header: SegmentHeader,
    /// The header's own block is damaged: it was made again from the first batch, which says the same.
    pub remade: bool,
}

/// What the slots of a primary hold.
#[derive(Debug, Default)]
pub struct Headers {
    /// In the order of segment and epoch.
    pub found: Vec<Found>,
    /// Slots whose first blocks cannot be read: they may hold anything.
    pub unreadable: Vec<(Slot, io::Error)>,
}

/// Looks at the start of every slot.
///
/// # Errors
/// When there is no memory; a slot that cannot be read is in the answer.
pub async fn headers<D: Device>(device: &D, volume: &Superblock) -> io::Result<Headers> {
    let starts = Buffer::new(READS_IN_FLIGHT * START_BLOCKS * BLOCK_BYTES)?;
    let mut headers = Headers::default();
    let slots: Vec<u32> = (0..volume.geometry.slots).collect();
    for chunk in slots.chunks(READS_IN_FLIGHT) {
        let reads = chunk.iter().enumerate().map(|(rank, slot)| {
            let start = starts.part(rank * START_BLOCKS * BLOCK_BYTES, START_BLOCKS * BLOCK_BYTES);
            async move { (Slot(*slot), header(device, volume, Slot(*slot), start).await) }
        });
        let mut reads = stream::iter(reads).buffer_unordered(READS_IN_FLIGHT);
        while let Some((slot, header)) = reads.next().await {
            match header {
                Ok(header) => headers.found.extend(header),
                Err(error) => headers.unreadable.push((slot, error)),
            }
        }
    }
    headers.found.sort_by_key(|found| (found.header.segment, found.header.epoch));
    Ok(headers)
}

/// The header and the first batch of a slot: either says what segment it is.
const START_BLOCKS: usize = 2;

async fn header<D: Device>(device: &D, volume: &Superblock, slot: Slot, start: Buffer) -> io::Result<Option<Found>> {
    let place = volume.geometry.slot_place(slot);
    let [header, batch] = [0, 1].map(|rank| start.part(rank * BLOCK_BYTES, BLOCK_BYTES));
    let mut unreadable = None;
    if device.read(place.bytes(), start.clone()).await.is_err() {
        for (rank, block) in [&header, &batch].into_iter().enumerate() {
            let offset = place.plus(rank as u32).bytes();
            if let Err(error) = device.read(offset, block.clone()).await {
                log::warn!("reading the primary at {offset:#x}: {error}");
                block.zero();
                unreadable = Some(error);
            }
        }
    }
    if let Ok(header) = SegmentHeader::parse(header.bytes(), volume)
        && header.slot == slot
    {
        return Ok(Some(Found { slot, header, remade: false }));
    }
    if let Ok(batch) = BatchHeader::parse(batch.bytes(), volume)
        && batch.header.offset == Offset(1)
    {
        log::warn!(
            "segment {}: its header at {:#x} is damaged; its first batch is whole",
            batch.header.segment,
            place.bytes()
        );
        return Ok(Some(Found { slot, header: SegmentHeader::of_first_batch(slot, &batch.header), remade: true }));
    }
    unreadable.map_or(Ok(None), Err)
}

/// The summary of `segment` in `slot`; made again from the batch headers when it is rotten, or never reached the device.
pub async fn summary<D: Device>(
    device: &D,
    volume: &Superblock,
    slot: Slot,
    segment: SegmentNumber,
) -> Result<Summary, ScanError> {
    Ok(summary_or_remade(device, volume, slot, segment).await?.0)
}

/// The same, and whether it was made again.
pub async fn summary_or_remade<D: Device>(
    device: &D,
    volume: &Superblock,
    slot: Slot,
    segment: SegmentNumber,
) -> Result<(Summary, bool), ScanError> {
    if let Ok(summary) = stored_summary(device, volume, slot).await
        && summary.segment == segment
    {
        return Ok((summary, false));
    }
    let offset = volume.geometry.slot_place(slot).bytes();
    let format = |source| ScanError::Format { segment, offset, source };
    let bytes = image(device, volume, slot).await.map_err(|source| ScanError::Io { offset, source })?;
    let summary = summary_from_image(bytes.bytes(), volume).map_err(format)?;
    if summary.segment != segment {
        return Err(format(FormatError::Identity { what: "segment" }));
    }
    log::warn!("segment {segment}: its summary is damaged; its headers are whole");
    Ok((summary, true))
}

/// The summary as it was written at the end of the slot, when it is there and whole.
pub async fn stored_summary<D: Device>(device: &D, volume: &Superblock, slot: Slot) -> Result<Summary, ScanError> {
    let geometry = &volume.geometry;
    let end = geometry.slot_place(slot).bytes() + geometry.segment_bytes() as u64;
    let read = async |blocks: u32| {
        let bytes = blocks as usize * BLOCK_BYTES;
        let offset = end - bytes as u64;
        let buffer = Buffer::new(bytes).map_err(|source| ScanError::Io { offset, source })?;
        device.read(offset, buffer.clone()).await.map_err(|source| ScanError::Io { offset, source })?;
        Ok(buffer)
    };
    let format = |source| ScanError::Format { segment: SegmentNumber(0), offset: end, source };
    let last = read(1).await?;
    let trailer = SummaryTrailer::peek(last.bytes(), volume).map_err(format)?;
    let all = if trailer.blocks == 1 { last } else { read(trailer.blocks).await? };
    Summary::parse(all.bytes(), volume).map_err(format)
}

/// The summary as it was written at the end of a slot's bytes, whichever segment's it is.
pub fn stored_in(image: &[u8], volume: &Superblock) -> Result<Summary, FormatError> {
    let trailer = SummaryTrailer::peek(&image[image.len() - BLOCK_BYTES..], volume)?;
    let from = image.len().checked_sub(trailer.blocks as usize * BLOCK_BYTES).unwrap_or(image.len());
    Summary::parse(&image[from..], volume)
}

/// The summary in the bytes of `segment`, or what its headers say: the summary may be that of the slot's last tenant.
pub fn summary_in(image: &[u8], volume: &Superblock, segment: SegmentNumber) -> Result<Summary, FormatError> {
    match stored_in(image, volume) {
        Ok(stored) if stored.segment == segment => Ok(stored),
        _ => summary_from_image(image, volume),
    }
}

/// The entries of the segment in `slot`, in log order, each with what it makes of its block: a place, or lost; those that
/// are about no block, or about many, come as unmapped.
pub fn mappings<'a>(
    summary: &'a Summary,
    geometry: &Geometry,
    slot: Slot,
) -> impl Iterator<Item = (&'a Entry, EntryKind, Mapping)> {
    let first = geometry.slot_place(slot);
    summary.walk().flat_map(move |(_, batch, entries)| {
        let mut place = first.plus(batch.offset().0);
        entries.iter().filter_map(move |entry| {
            let kind = entry.kind().ok()?;
            if kind.has_data() {
                place = place.plus(1);
            }
            let mapping = match kind {
                EntryKind::Write | EntryKind::Copy => Mapping::At(place, entry.crc()),
                EntryKind::Lost => Mapping::Lost(slot),
                _ => Mapping::Unmapped,
            };
            Some((entry, kind, mapping))
        })
    })
}

/// A block of a slot that cannot be read.
#[derive(Debug)]
pub struct Hole {
    pub at: Offset,
    pub source: io::Error,
}

/// All bytes of a slot. Blocks that cannot be read are zeros, which no check takes for something else.
pub async fn image<D: Device>(device: &D, volume: &Superblock, slot: Slot) -> io::Result<Buffer> {
    Ok(image_with_holes(device, volume, slot).await?.0)
}

/// The same, and the blocks that cannot be read, twice.
pub async fn image_with_holes<D: Device>(
    device: &D,
    volume: &Superblock,
    slot: Slot,
) -> io::Result<(Buffer, Vec<Hole>)> {
    let mut holes = Vec::new();
    let image = Buffer::new(volume.geometry.segment_bytes())?;
    let start = volume.geometry.slot_place(slot).bytes();
    for at in (0..image.len()).step_by(SCAN_BYTES) {
        let piece = image.part(at, SCAN_BYTES.min(image.len() - at));
        if device.read(start + at as u64, piece.clone()).await.is_ok() {
            continue;
        }
        for inside in (0..piece.len()).step_by(BLOCK_BYTES) {
            let block = piece.part(inside, BLOCK_BYTES);
            let offset = start + (at + inside) as u64;
            if let Err(source) = device.read(offset, block.clone()).await {
                log::warn!("reading the primary at {offset:#x}: {source}");
                block.zero();
                holes.push(Hole { at: Offset(((at + inside) / BLOCK_BYTES) as u32), source });
            }
        }
    }
    Ok((image, holes))
}
