//! The primary: both superblocks, and every slot that holds a segment of the log.
//!
//! Its owner may be using it. A slot is looked at as a whole, and counts only when its header still is there behind the
//! reading; what is wrong is looked at again, because a segment may be about to leave its slot, or a write be under way.

use std::io;
use std::time::Duration;

use super::image::{Flaw, Image, Seen, inspect};
use super::{Kind, SegmentCopy, Survey};
use crate::format::{BLOCK_BYTES, BatchHeader, EntryKind, SegmentNumber, Slot, Superblock};
use crate::history::HistoryError;
use crate::history::primary::View;
use crate::io::Buffer;
use crate::log::limits::SCAN_BYTES;

/// Damage stays where it is through so many looks; what moves is somebody's work.
const LOOKS: u32 = 3;
const BETWEEN_LOOKS: Duration = Duration::from_millis(30);

/// Reads the whole primary.
pub(super) fn survey(survey: &mut Survey<'_>, view: &View) -> Result<(), HistoryError> {
    let image = Buffer::new(view.volume.geometry.segment_bytes())?;
    if let Some(trouble) = &view.slots.trouble
        && View::open(&view.path)?.slots.trouble.is_some()
    {
        let tail = view.tail().map(|(segment, _)| segment);
        survey.behind = Some((survey.sighted.len(), marked_behind(view, &image)?));
        survey.flaw(place_word(view, None), tail, Flaw::new(None, trouble));
    }
    for (which, at) in [("superblock", 0), ("copy of the superblock", view.volume.geometry.copy_at())] {
        survey.bytes += BLOCK_BYTES as u64;
        if let Some(what) = superblock(view, at) {
            survey.flaw(format!("{which} at {at:#x}"), None, Flaw::new(None, what));
        }
    }
    for segment in missing(view)? {
        let what = "the end of the log needs this segment and no slot has it: the volume cannot be attached";
        survey.harmless(place_word(view, None), Some(segment), Flaw::new(None, what));
    }
    // From the newest: what it says of the archive tells which slots are free to be discarded.
    for (segment, slots) in view.slots.found.iter().rev() {
        for slot in slots {
            let seen = settled(survey.archived_through, view, *slot, *segment, &image)?;
            survey.progress.add_bytes(image.len() as u64);
            survey.bytes += image.len() as u64;
            let Some(seen) = seen else { continue };
            survey.blocks += seen.blocks;
            survey.archived_through = survey.archived_through.max(seen.archived_through);
            let last = view.slots.tail.as_ref().filter(|tail| (tail.summary.segment, tail.slot) == (*segment, *slot));
            let summary = last.map(|tail| tail.summary.as_ref()).or(seen.summary.as_ref());
            survey.copies.push(SegmentCopy::new(*segment, summary, Kind::Slot));
            for mut flaw in seen.flaws {
                if is_free(survey.archived_through, view, *segment) {
                    flaw.what
                        .push_str("; the slot is free, and a power cut may have left part of a later segment in it");
                }
                let place = place_word(view, Some((*slot, flaw.offsets.as_ref().map_or(0, |offsets| offsets.start))));
                survey.flaw(place, Some(*segment), flaw);
            }
        }
    }
    Ok(())
}

fn place_word(view: &View, at: Option<(Slot, u32)>) -> String {
    match at {
        Some((slot, offset)) => {
            format!(
                "slot {slot} at {:#x}",
                view.volume.geometry.slot_place(slot).bytes() + u64::from(offset) * BLOCK_BYTES as u64
            )
        }
        None => "primary".to_owned(),
    }
}

/// The segments that opening the volume needs and no slot has. A volume that is in use may have gone on meanwhile.
fn missing(view: &View) -> Result<Vec<SegmentNumber>, HistoryError> {
    let of = |view: &View| -> Vec<SegmentNumber> {
        let Some(tail) = &view.slots.tail else { return Vec::new() };
        let needed = tail.summary.oldest_needed.0.max(1)..tail.summary.segment.0;
        needed.map(SegmentNumber).filter(|segment| !view.slots.found.contains_key(segment)).collect()
    };
    let mut missing = of(view);
    for _ in 1..LOOKS {
        if missing.is_empty() {
            break;
        }
        std::thread::sleep(BETWEEN_LOOKS);
        missing = of(&View::open(&view.path)?);
    }
    Ok(missing)
}

/// The synch points in batches that are whole and lie behind the end of the log.
fn marked_behind(view: &View, image: &Buffer) -> io::Result<Vec<u64>> {
    let tail = view.slots.tail.as_ref().map(|tail| (tail.summary.last_position(), tail.summary.epoch));
    let (last, epoch) = tail.unwrap_or_default();
    let mut points = Vec::new();
    for slot in (0..view.volume.geometry.slots).map(Slot) {
        read(view, slot, image)?;
        for block in image.bytes().chunks_exact(BLOCK_BYTES).filter(|block| BatchHeader::looks_like(block)) {
            let Ok(batch) = BatchHeader::parse(block, &view.volume) else { continue };
            if batch.header.position > last && batch.header.epoch >= epoch {
                let synchs = batch.entries.iter().filter(|entry| entry.kind() == Ok(EntryKind::Synch));
                points.extend(synchs.map(|entry| entry.point()));
            }
        }
    }
    Ok(points)
}

/// What is wrong with the superblock at byte `at`; an older one is as good, opening writes it again.
fn superblock(view: &View, at: u64) -> Option<String> {
    let mut what = None;
    for look in 0..LOOKS {
        if look > 0 {
            std::thread::sleep(BETWEEN_LOOKS);
        }
        match view.bench.block(at).map(|block| Superblock::parse(block.bytes())) {
            Ok(Ok(found)) if found.uuid == view.volume.uuid => return None,
            Ok(Ok(_)) => what = Some("it is another volume's".to_owned()),
            Ok(Err(error)) => what = Some(error.to_string()),
            Err(error) => what = Some(format!("cannot be read: {error}")),
        }
    }
    what
}

/// What the slot says once it says the same again; nothing when `segment` has left it, or may leave it any time.
fn settled(
    archived_through: SegmentNumber,
    view: &View,
    slot: Slot,
    segment: SegmentNumber,
    image: &Buffer,
) -> Result<Option<Seen>, HistoryError> {
    let mut seen = look(view, slot, segment, image)?;
    for _ in 1..LOOKS {
        if seen.as_ref().is_none_or(|seen| seen.flaws.is_empty()) {
            return Ok(seen);
        }
        std::thread::sleep(BETWEEN_LOOKS);
        let fresh = View::open(&view.path)?;
        if !fresh.slots.found.get(&segment).is_some_and(|slots| slots.contains(&slot)) {
            return Ok(None);
        }
        seen = look(&fresh, slot, segment, image)?;
        if seen.as_ref().is_some_and(|seen| seen.flaws.iter().any(|flaw| flaw.zeros))
            && is_free(archived_through.max(archive_reaches(&fresh)?), &fresh, segment)
        {
            log::info!("segment {segment} in slot {slot} is not needed there, and was discarded");
            return Ok(None);
        }
    }
    Ok(seen)
}

/// Whether the slots of `segment` may be used again: it has left the working set, and is archived if there is an archive.
fn is_free(archived_through: SegmentNumber, view: &View, segment: SegmentNumber) -> bool {
    let oldest = view.slots.tail.as_ref().map_or(SegmentNumber(0), |tail| tail.summary.oldest_needed);
    segment < oldest && (view.volume.backing == "none" || segment <= archived_through)
}

/// The newest segment that the end of the log says is archived.
fn archive_reaches(view: &View) -> Result<SegmentNumber, HistoryError> {
    let Some(tail) = &view.slots.tail else { return Ok(SegmentNumber(0)) };
    let image = Buffer::new(view.volume.geometry.segment_bytes())?;
    let seen = look(view, tail.slot, tail.summary.segment, &image)?;
    Ok(seen.map_or(SegmentNumber(0), |seen| seen.archived_through))
}

fn look(view: &View, slot: Slot, segment: SegmentNumber, image: &Buffer) -> Result<Option<Seen>, HistoryError> {
    let missing = read(view, slot, image)?;
    if !view.holds(slot, segment).unwrap_or(true) {
        return Ok(None);
    }
    let tail = view.slots.tail.as_ref();
    let looked_at = Image {
        bytes: image.bytes(),
        first: crate::format::Offset(0),
        volume: &view.volume,
        segment,
        open: tail.filter(|tail| (tail.summary.segment, tail.slot) == (segment, slot)).map(|tail| &*tail.summary),
        may_lack_summary: view.volume.clean_close.is_none()
            && tail.is_none_or(|tail| segment.plus(1) >= tail.summary.segment),
    };
    Ok(Some(inspect(&looked_at, missing)))
}

/// Fills `image` with the slot; what cannot be read becomes zeros and is returned.
fn read(view: &View, slot: Slot, image: &Buffer) -> io::Result<Vec<Flaw>> {
    let start = view.volume.geometry.slot_place(slot).bytes();
    let mut missing = Vec::new();
    for at in (0..image.len()).step_by(SCAN_BYTES) {
        let piece = image.part(at, SCAN_BYTES.min(image.len() - at));
        if view.bench.fill(start + at as u64, &piece).is_ok() {
            continue;
        }
        for inside in (0..piece.len()).step_by(BLOCK_BYTES) {
            let block = piece.part(inside, BLOCK_BYTES);
            if let Err(error) = view.bench.fill(start + (at + inside) as u64, &block) {
                block.zero();
                let offset = ((at + inside) / BLOCK_BYTES) as u32;
                missing.push(Flaw::new(Some(offset..offset + 1), format!("cannot be read: {error}")));
            }
        }
    }
    Ok(missing)
}
