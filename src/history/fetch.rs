//! Blocks out of one segment, each verified: from its slot in sequential pieces, what is not there from the archive.
//!
//! The slot may get another segment at any time. A piece counts only if its blocks have the checksums that the entries
//! say; the slot's header, read behind each piece, tells rot from reuse, and ends the reading of a slot that has gone.

use super::primary::View;
use super::source::Located;
use super::{Damage, HistoryError, Source};
use crate::archive::{ArchiveError, ArchivedSegment, FRAME_BYTES, ObjectName};
use crate::format::{BLOCK_BYTES, Block, Offset, Position, SegmentNumber, Slot, block_crc};
use crate::io::Buffer;
use crate::log::limits::SCAN_BYTES;

/// A block that is wanted out of a segment.
#[derive(Debug, Clone, Copy)]
pub(super) struct Want {
    pub offset: Offset,
    pub block: Block,
    pub crc: u32,
    pub position: Position,
}

/// What a segment gave.
#[derive(Debug, Default)]
pub(super) struct Fetched {
    pub from_primary: u64,
    pub from_archive: u64,
    pub damaged: Vec<Damage>,
}

/// Blocks that arrived, with their bytes.
pub(super) type Arrived<'a> = [(Block, &'a [u8])];

/// Takes blocks that have arrived; their order is that of the log.
pub(super) type Deliver<'a> = dyn FnMut(&mut Arrived<'_>) -> Result<(), HistoryError> + 'a;

const PIECE_BLOCKS: u32 = (SCAN_BYTES / BLOCK_BYTES) as u32;
const FRAME_BLOCKS: u32 = (FRAME_BYTES / BLOCK_BYTES) as u32;

/// Fetches `wants`, which are in the order of their offsets, out of the segment that was `located`.
pub(super) fn fetch(
    source: &Source,
    located: &Located,
    wants: Vec<Want>,
    deliver: &mut Deliver<'_>,
) -> Result<Fetched, HistoryError> {
    let segment = located.summary.segment;
    let mut fetched = Fetched::default();
    let mut missing = wants;
    if let (Some(view), Some(slot)) = (&source.primary, located.slot) {
        let wanted = missing.len();
        missing = from_slot(view, slot, segment, &missing, deliver)?;
        fetched.from_primary = (wanted - missing.len()) as u64;
    }
    if missing.is_empty() {
        return Ok(fetched);
    }
    let wanted = missing.len();
    let mut cause = "damaged on the primary, and the segment is not in the archive".to_owned();
    let mut tried = false;
    for name in objects(source, located)? {
        if missing.is_empty() {
            break;
        }
        tried = true;
        match source.open_object(&name) {
            Ok(object) => (missing, cause) = from_object(object, &missing, deliver)?,
            Err(HistoryError::DamagedObject { source: ArchiveError::Store(error), .. }) => return Err(error.into()),
            Err(error) => cause = error.to_string(),
        }
    }
    if !tried && located.slot.is_none_or(|slot| !still_there(source, slot, segment)) {
        return Err(HistoryError::Gone { position: missing[0].position, segment, archive: source.archive_word() });
    }
    fetched.from_archive = (wanted - missing.len()) as u64;
    fetched.damaged = missing.iter().map(|want| damage(want, segment, tried, &cause)).collect();
    Ok(fetched)
}

fn damage(want: &Want, segment: SegmentNumber, archived: bool, cause: &str) -> Damage {
    Damage {
        block: want.block.0,
        position: Some(want.position.0),
        segment: Some(segment.0),
        offset: Some(want.offset.0),
        frame: archived.then_some(want.offset.0 / FRAME_BLOCKS),
        cause: cause.to_owned(),
    }
}

fn still_there(source: &Source, slot: Slot, segment: SegmentNumber) -> bool {
    source.primary.as_ref().is_some_and(|view| view.holds(slot, segment).unwrap_or(true))
}

/// The objects that may hold the segment, the likeliest first. The current segment of a running volume may have been
/// archived since it was looked at, under the epoch of a batch that is newer.
fn objects(source: &Source, located: &Located) -> Result<Vec<ObjectName>, HistoryError> {
    let summary = &located.summary;
    if source.object_of(summary).is_none() {
        source.refresh()?;
    }
    let mut names = source.objects_of(summary.segment);
    names.sort_by_key(|name| name.epoch.abs_diff(summary.epoch));
    Ok(names)
}

/// Delivers what the slot has of `wants`, and returns the others.
fn from_slot(
    view: &View,
    slot: Slot,
    segment: SegmentNumber,
    wants: &[Want],
    deliver: &mut Deliver<'_>,
) -> Result<Vec<Want>, HistoryError> {
    let start = view.volume.geometry.slot_place(slot);
    let piece = Buffer::new(SCAN_BYTES)?;
    let mut missing = Vec::new();
    let mut rest = wants;
    while let Some(first) = rest.first() {
        let (now, later) = rest.split_at(rest.partition_point(|want| want.offset.0 < first.offset.0 + PIECE_BLOCKS));
        let blocks = now.last().map_or(1, |last| last.offset.0 - first.offset.0 + 1);
        let into = piece.part(0, blocks as usize * BLOCK_BYTES);
        let read = view.read(start.plus(first.offset.0), &into);
        if !view.holds(slot, segment).unwrap_or(false) {
            // Rot in the header, or another tenant: the blocks' own checksums decide, and the archive has the rest.
            log::info!("segment {segment} is no longer in its slot");
            missing.extend_from_slice(rest);
            return Ok(missing);
        }
        let bytes = into.bytes();
        let mut arrived = Vec::new();
        for want in now {
            let at = (want.offset.0 - first.offset.0) as usize * BLOCK_BYTES;
            let data = &bytes[at..at + BLOCK_BYTES];
            if read && block_crc(data) == want.crc {
                arrived.push((want.block, data));
            } else {
                missing.push(*want);
            }
        }
        deliver(&mut arrived)?;
        rest = later;
    }
    Ok(missing)
}

/// Delivers what the object has of `wants`; returns the others, and what is wrong with them.
fn from_object(
    mut object: ArchivedSegment,
    wants: &[Want],
    deliver: &mut Deliver<'_>,
) -> Result<(Vec<Want>, String), HistoryError> {
    let mut cause = "does not match its checksum in the archive: it was damaged before it was archived".to_owned();
    let mut missing = Vec::new();
    // Many blocks come cheaper with the frames fetched together; after damage, frame by frame.
    if wants.len() as u32 >= object.volume().geometry.segment_blocks / 8
        && let Ok(image) = object.read_image()
    {
        let mut arrived = Vec::new();
        for want in wants {
            let at = want.offset.0 as usize * BLOCK_BYTES;
            match image.get(at..at + BLOCK_BYTES) {
                Some(data) if block_crc(data) == want.crc => arrived.push((want.block, data)),
                _ => missing.push(*want),
            }
        }
        deliver(&mut arrived)?;
        return Ok((missing, cause));
    }
    let mut data = vec![0; BLOCK_BYTES];
    let mut bad_frame = None;
    for want in wants {
        let frame = want.offset.0 / FRAME_BLOCKS;
        if bad_frame == Some(frame) {
            missing.push(*want);
            continue;
        }
        match object.read_block(want.offset, &mut data) {
            Ok(()) if block_crc(&data) == want.crc => deliver(&mut [(want.block, &data[..])])?,
            Ok(()) => missing.push(*want),
            Err(ArchiveError::Store(error)) => return Err(error.into()),
            Err(error) => {
                cause = error.to_string();
                bad_frame = Some(frame);
                missing.push(*want);
            }
        }
    }
    Ok((missing, cause))
}
