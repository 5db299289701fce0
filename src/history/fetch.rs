//! Blocks out of one segment, each verified: from its slot in sequential pieces, what is not there from the archive.
//!
//! The slot may get another segment at any time. A piece counts only if its blocks have the checksums that the entries
//! say; the slot's header, read behind each piece, tells rot from reuse, and ends the reading of a slot that has gone.

use std::sync::Arc;

use super::primary::View;
use super::source::{Archived, Located};
use super::{Damage, HistoryError, PointIndex, Sited, Source};
use crate::archive::{ArchiveError, ArchivedSegment, FRAME_BYTES};
use crate::format::{BLOCK_BYTES, Block, Offset, Position, SegmentNumber, Slot, Summary, block_crc};
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

/// The blocks whose newest version at the index's position is in the segment of `summary`, in the order of offsets.
pub(super) fn wants(index: &PointIndex, summary: &Summary) -> Vec<Want> {
    let mut wants = Vec::new();
    for (position, batch, entries) in summary.walk().take_while(|(position, ..)| *position <= index.position()) {
        let mut offset = batch.offset();
        for entry in entries {
            if entry.kind().is_ok_and(|kind| kind.has_data()) {
                offset = offset.plus(1);
                let (block, crc) = (entry.block(), entry.crc());
                // The entry of a synch point has a number there that may be any block's; its place is none's.
                if block.0 < index.blocks() && index.get(block) == Sited::At(summary.segment, offset, crc) {
                    wants.push(Want { offset, block, crc, position });
                }
            }
        }
    }
    wants
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
    let names = objects(source, located)?;
    if names.is_empty() && located.slot.is_none_or(|slot| !still_there(source, slot, segment)) {
        return Err(HistoryError::Gone { position: missing[0].position, segment, archive: source.archive_word() });
    }
    let cause: Arc<str> = "damaged on the primary, and the segment is not in the archive".into();
    let missing = missing.into_iter().map(|want| Missing { want, cause: Arc::clone(&cause) }).collect();
    let missing = from_objects(&|archived| source.open_archived(archived), &names, missing, &mut fetched, deliver)?;
    fetched.damaged = missing.iter().map(|missing| missing.damage(segment, !names.is_empty())).collect();
    Ok(fetched)
}

/// Fetches out of the archive alone, for a thread that has no more of the source than its store: of the objects `names`
/// the one that `fits` has the segment's summary, and `wants` are made from that. `None` when there is no such object, or
/// none can be opened; then the source knows why.
pub(super) fn fetch_archived(
    open: &Open<'_>,
    names: &[Archived],
    segment: SegmentNumber,
    fits: impl Fn(&Summary) -> bool,
    wants: impl FnOnce(&Summary) -> Vec<Want>,
    deliver: &mut Deliver<'_>,
) -> Result<Option<Fetched>, HistoryError> {
    let found = names.iter().find_map(|name| {
        let object = open(name).ok().filter(|object| fits(object.summary()))?;
        Some((name.clone(), object))
    });
    let Some((found, object)) = found else { return Ok(None) };
    let wants = wants(object.summary());
    let mut fetched = Fetched::default();
    let missing = from_object(object, &wants, deliver)?;
    fetched.from_archive = (wants.len() - missing.len()) as u64;
    let others: Vec<Archived> = names.iter().filter(|name| **name != found).cloned().collect();
    let missing = from_objects(open, &others, missing, &mut fetched, deliver)?;
    fetched.damaged = missing.iter().map(|missing| missing.damage(segment, true)).collect();
    Ok(Some(fetched))
}

/// A block that did not arrive, and why.
pub(super) struct Missing {
    pub want: Want,
    pub cause: Arc<str>,
}

impl Missing {
    fn damage(&self, segment: SegmentNumber, archived: bool) -> Damage {
        let want = &self.want;
        Damage {
            block: want.block.0,
            position: Some(want.position.0),
            segment: Some(segment.0),
            offset: Some(want.offset.0),
            frame: archived.then_some(want.offset.0 / FRAME_BLOCKS),
            cause: self.cause.to_string(),
        }
    }
}

/// Opens an object.
pub(super) type Open<'a> = dyn Fn(&Archived) -> Result<ArchivedSegment, HistoryError> + 'a;

/// Fetches what is `missing` out of the objects, one after the other. What none of them has is damaged.
fn from_objects(
    open: &Open<'_>,
    names: &[Archived],
    mut missing: Vec<Missing>,
    fetched: &mut Fetched,
    deliver: &mut Deliver<'_>,
) -> Result<Vec<Missing>, HistoryError> {
    for name in names {
        if missing.is_empty() {
            break;
        }
        match open(name) {
            Ok(object) => {
                let wants: Vec<Want> = missing.iter().map(|missing| missing.want).collect();
                missing = from_object(object, &wants, deliver)?;
                fetched.from_archive += (wants.len() - missing.len()) as u64;
            }
            Err(HistoryError::DamagedObject { source: ArchiveError::Store(error), .. }) => return Err(error.into()),
            Err(error) => {
                let cause: Arc<str> = error.to_string().into();
                missing.iter_mut().for_each(|missing| missing.cause = Arc::clone(&cause));
            }
        }
    }
    Ok(missing)
}

fn still_there(source: &Source, slot: Slot, segment: SegmentNumber) -> bool {
    source.primary.as_ref().is_some_and(|view| view.holds(slot, segment).unwrap_or(true))
}

/// What may hold the segment in the archive, the likeliest first. The current segment of a running volume may have been
/// archived since it was looked at, under the epoch of a batch that is newer.
pub(super) fn objects(source: &Source, located: &Located) -> Result<Vec<Archived>, HistoryError> {
    let summary = &located.summary;
    if !source.has_whole(summary.segment, summary.epoch) {
        source.refresh()?;
    }
    let mut objects = source.archived(summary.segment);
    objects.sort_by_key(|archived| (matches!(archived, Archived::Parts(_)), archived.epoch().abs_diff(summary.epoch)));
    Ok(objects)
}

/// Delivers what the slot has of `wants`, and returns the others.
pub(super) fn from_slot(
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

/// Delivers what the object has of `wants`, frame by frame; returns the others, each with what is wrong with it.
pub(super) fn from_object(
    mut object: ArchivedSegment,
    wants: &[Want],
    deliver: &mut Deliver<'_>,
) -> Result<Vec<Missing>, HistoryError> {
    let rotten: Arc<str> = "does not match its checksum in the archive: it was damaged before it was archived".into();
    let mut missing = Vec::new();
    let offsets: Vec<Offset> = wants.iter().map(|want| want.offset).collect();
    object.read_blocks(&offsets, |range, frame| {
        let mut arrived = Vec::with_capacity(range.len());
        let mut miss = |want: &Want, cause: &Arc<str>| missing.push(Missing { want: *want, cause: Arc::clone(cause) });
        match frame {
            Ok((first, raw)) => {
                for want in &wants[range] {
                    let at = (want.offset.0 - first.0) as usize * BLOCK_BYTES;
                    match raw.get(at..at + BLOCK_BYTES) {
                        Some(data) if block_crc(data) == want.crc => arrived.push((want.block, data)),
                        _ => miss(want, &rotten),
                    }
                }
            }
            Err(error) => {
                let cause: Arc<str> = error.to_string().into();
                wants[range].iter().for_each(|want| miss(want, &cause));
            }
        }
        deliver(&mut arrived)
    })?;
    Ok(missing)
}
