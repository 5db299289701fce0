//! Reading a log at rest: which segments are on the primary, and what is in them.

use std::io;

use futures_util::StreamExt;
use futures_util::stream;

use super::limits::{READS_IN_FLIGHT, SCAN_BYTES};
use crate::format::{
    BLOCK_BYTES, FormatError, SegmentHeader, SegmentNumber, Slot, Summary, SummaryTrailer, Superblock,
    summary_from_image,
};
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

/// A slot that holds a segment header of this volume and history. What it heads may be old.
#[derive(Debug, Clone, Copy)]
pub struct Found {
    pub slot: Slot,
    pub header: SegmentHeader,
}

/// Looks at the first block of every slot. A block that cannot be read counts as one that is no header.
pub async fn headers<D: Device>(device: &D, volume: &Superblock) -> io::Result<Vec<Found>> {
    let blocks = Buffer::new(READS_IN_FLIGHT * BLOCK_BYTES)?;
    let mut found = Vec::new();
    let slots: Vec<u32> = (0..volume.geometry.slots).collect();
    for chunk in slots.chunks(READS_IN_FLIGHT) {
        let reads = chunk.iter().enumerate().map(|(rank, slot)| {
            let block = blocks.part(rank * BLOCK_BYTES, BLOCK_BYTES);
            async move {
                let slot = Slot(*slot);
                let place = volume.geometry.slot_place(slot);
                if let Err(error) = device.read(place.bytes(), block.clone()).await {
                    log::warn!("reading the primary at {:#x}: {error}", place.bytes());
                    return None;
                }
                let header = SegmentHeader::parse(block.bytes(), volume).ok()?;
                (header.slot == slot).then_some(Found { slot, header })
            }
        });
        let mut reads = stream::iter(reads).buffer_unordered(READS_IN_FLIGHT);
        while let Some(header) = reads.next().await {
            found.extend(header);
        }
    }
    found.sort_by_key(|found| (found.header.segment, found.header.epoch));
    Ok(found)
}

/// The summary of `segment` in `slot`; made again from the batch headers when it is rotten.
pub async fn summary<D: Device>(
    device: &D,
    volume: &Superblock,
    slot: Slot,
    segment: SegmentNumber,
) -> Result<Summary, ScanError> {
    if let Ok(summary) = stored_summary(device, volume, slot).await
        && summary.segment == segment
    {
        return Ok(summary);
    }
    let offset = volume.geometry.slot_place(slot).bytes();
    let format = |source| ScanError::Format { segment, offset, source };
    let bytes = image(device, volume, slot).await.map_err(|source| ScanError::Io { offset, source })?;
    let summary = summary_from_image(bytes.bytes(), volume).map_err(format)?;
    if summary.segment != segment {
        return Err(format(FormatError::Identity { what: "segment" }));
    }
    log::warn!("segment {segment}: its summary is damaged; its headers are whole");
    Ok(summary)
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

/// The summary in a segment's bytes, or what its headers say.
pub fn summary_in(image: &[u8], volume: &Superblock) -> Result<Summary, FormatError> {
    let last = &image[image.len() - BLOCK_BYTES..];
    let stored = SummaryTrailer::peek(last, volume).and_then(|trailer| {
        let from = image.len().checked_sub(trailer.blocks as usize * BLOCK_BYTES).unwrap_or(image.len());
        Summary::parse(&image[from..], volume)
    });
    stored.or_else(|_| summary_from_image(image, volume))
}

/// All bytes of a slot. Blocks that cannot be read are zeros, which no check takes for something else.
pub async fn image<D: Device>(device: &D, volume: &Superblock, slot: Slot) -> io::Result<Buffer> {
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
            if let Err(error) = device.read(offset, block.clone()).await {
                log::warn!("reading the primary at {offset:#x}: {error}");
                block.zero();
            }
        }
    }
    Ok(image)
}
