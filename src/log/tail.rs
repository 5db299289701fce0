//! The end of a log: find it, and tell a torn tail from rot. Nothing is written.
//!
//! 1. Of all segments whose header is on the primary, the newest that begins at or before the largest durable position
//!    that any header claims is the *anchor*: everything before it is durable and is taken from summaries.
//! 2. From the anchor on, batches are walked by the validity rule, their data verified beyond what is durable, through
//!    the segments that continue the chain, up to the first batch that does not.
//! 3. If anything valid claims that this batch was durable, it is rot, and opening is refused; otherwise it is a torn
//!    tail, which is normal.

use super::LogError;
use super::scan::{self, Found, Headers, Hole, ScanError};
use crate::archive::Spec;
use crate::format::{
    BLOCK_BYTES, BatchHeader, Offset, Position, SegmentHeader, SegmentNumber, Slot, Summary, Superblock, Walk,
    walk_segment,
};
use crate::io::{Buffer, Device};

/// Why a log cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    #[error(
        "the volume has been used, but no segment of its log is on the primary: it was overwritten or is not the one"
    )]
    NoLog,
    #[error(
        "damage in the log: position {position} (segment {segment}, at {offset:#x}) was durable up to {durable} once and cannot \
         be read now; restore from the archive, or go on without what follows with --accept-loss {last}"
    )]
    Rot { position: Position, segment: SegmentNumber, offset: u64, durable: Position, last: Position },
    #[error(
        "reading the primary at {offset:#x}: {source}: what was durable once may be there; try again, or go on without it with \
         --accept-loss {last}"
    )]
    Unreadable { offset: u64, source: std::io::Error, last: Position },
    #[error("--accept-loss {given}: the last readable position is {last}; nothing was changed")]
    OtherLoss { given: Position, last: Position },
    #[error("segment {segment} is needed and is missing or damaged on the primary; restore from the archive")]
    Segment { segment: SegmentNumber },
    #[error("segment {segment}: a copy of block {block} differs from what it copies; restore from the archive")]
    Order { segment: SegmentNumber, block: u64 },
    #[error(transparent)]
    Scan(#[from] ScanError),
    #[error("the primary: {0}")]
    Io(#[from] std::io::Error),
    #[error(transparent)]
    Log(#[from] LogError),
}

impl ReplayError {
    /// The last position that `--accept-loss` could go on at.
    pub fn last_readable(&self) -> Option<Position> {
        match self {
            Self::Rot { last, .. } | Self::Unreadable { last, .. } | Self::OtherLoss { last, .. } => Some(*last),
            _ => None,
        }
    }
}

/// The end of a log as it was found.
pub struct Tail {
    /// Every segment header found, oldest first.
    pub found: Vec<Found>,
    /// The last segment, and what is in it.
    pub last: Found,
    pub walk: Walk,
    /// Whether the last segment has its summary: then the log goes on in another.
    pub sealed: bool,
    pub durable: Position,
    /// The bytes of the last segment.
    pub(super) image: Buffer,
    /// Segments before the last whose summary never reached the device.
    pub(super) unsealed: Vec<(Slot, Summary)>,
    /// Whether some of its bytes could not be read.
    pub(super) holed: bool,
    /// What could not be read where the log seems to end: it may go on there.
    pub(super) hidden: Option<(Slot, Hole)>,
}

impl Tail {
    /// The oldest segment that the tail needs.
    pub fn oldest_needed(&self) -> SegmentNumber {
        SegmentNumber(self.walk.summary.oldest_needed.0.max(1))
    }

    /// The bytes of the last segment.
    pub(super) fn image(&self) -> &[u8] {
        self.image.bytes()
    }

    /// The position of the last valid batch.
    pub fn position(&self) -> Position {
        self.walk.next_position().previous()
    }

    /// Every segment up to here is archived, as far as the headers say. The newest counts: it may say less than those before,
    /// see [`super::agree`].
    pub(super) fn archived_through(&self) -> SegmentNumber {
        self.walk.last.map_or(self.last.header.archived_through, |header| header.archived_through)
    }

    /// The segments that the tail needs, oldest first, without the last.
    pub fn needed(&self) -> Result<Vec<Found>, ReplayError> {
        let last = self.last.header.segment;
        let numbers = (self.oldest_needed().0..last.0).map(SegmentNumber);
        numbers
            .map(|segment| {
                let same = |found: &&Found| found.header.segment == segment;
                self.found.iter().rev().find(same).copied().ok_or(ReplayError::Segment { segment })
            })
            .collect()
    }
}

/// Finds the end of the log on `device`; `None` when nothing was ever logged.
pub async fn find_tail<D: Device>(
    device: &D,
    volume: &Superblock,
    accept_loss: Option<Position>,
) -> Result<Option<Tail>, ReplayError> {
    let Headers { found, unreadable } = scan::headers(device, volume).await?;
    if found.is_empty() {
        return if volume.epoch == 0 { Ok(None) } else { Err(ReplayError::NoLog) };
    }
    let closed = volume.clean_close.map_or(Position(0), |close| close.position);
    let claimed = found.iter().map(|found| found.header.durable_through).max().unwrap_or_default().max(closed);
    let anchor = found.iter().rev().find(|found| found.header.first_position <= claimed);
    let anchor = *anchor.or(found.first()).ok_or(ReplayError::NoLog)?;
    if anchor.header.first_position > claimed && anchor.header.first_position != Position(1) {
        return Err(ReplayError::Segment { segment: anchor.header.segment.minus(1) });
    }
    let mut tail = walk_from(device, volume, found, anchor, claimed).await?;
    let broken = tail.walk.next_position();
    let later = later_claims(device, volume, &tail).await?;
    tail.durable = tail.durable.max(later);
    if let Some(given) = accept_loss
        && given != broken.previous()
        && tail.durable >= broken
    {
        return Err(ReplayError::OtherLoss { given, last: broken.previous() });
    }
    let header = unreadable.into_iter().next().map(|(slot, source)| (slot, Hole { at: Offset(0), source }));
    if accept_loss.is_none()
        && (header.is_some() || tail.hidden.is_some())
        && !ends_as_closed(device, volume, &tail).await
        && let Some((slot, Hole { at, source })) = tail.hidden.take().or(header)
    {
        let offset = volume.geometry.slot_place(slot).plus(at.0).bytes();
        return Err(ReplayError::Unreadable { offset, source, last: broken.previous() });
    }
    if tail.durable >= broken && accept_loss.is_none() {
        let place = volume.geometry.slot_place(tail.last.slot).plus(tail.walk.end.0);
        return Err(ReplayError::Rot {
            position: broken,
            segment: tail.last.header.segment,
            offset: place.bytes(),
            durable: tail.durable,
            last: broken.previous(),
        });
    }
    tail.durable = tail.durable.min(broken.previous());
    // An open entry is not written over when it alone tells that there is a log, or when a torn header behind it claims it: a torn write in its
    // place would be taken for the end of everything, or for damage.
    tail.walk.ends_with_open &= tail.position() > Position(1) && later < tail.position();
    Ok(Some(tail))
}

/// Whether the log ends where it was closed, and every segment that it needs, or that waits for the archive, has been found: then
/// what cannot be read is none of them. A copy of the superblock that cannot be read, or differs, may be of a later opening.
async fn ends_as_closed<D: Device>(device: &D, volume: &Superblock, tail: &Tail) -> bool {
    let end = (tail.position(), tail.walk.chain());
    let waiting = match Spec::parse(&volume.backing) {
        Ok(Spec::None) => tail.oldest_needed(),
        _ => tail.oldest_needed().min(tail.archived_through().plus(1)),
    };
    let mut wanted = (waiting.0..=tail.last.header.segment.0).map(SegmentNumber);
    let found = |segment| tail.found.iter().any(|found| found.header.segment == segment);
    volume.clean_close.is_some_and(|close| (close.position, close.checksum) == end)
        && wanted.all(found)
        && matches!(scan::superblock(device).await, Ok(Ok((superblock, false))) if superblock == *volume)
}

/// Walks from `anchor` to the first batch that does not continue the chain.
async fn walk_from<D: Device>(
    device: &D,
    volume: &Superblock,
    found: Vec<Found>,
    anchor: Found,
    claimed: Position,
) -> Result<Tail, ReplayError> {
    let (mut last, mut durable, mut unsealed) = (anchor, claimed, Vec::new());
    let (mut image, mut holes) = image_of(device, volume, anchor).await?;
    let mut hidden = None;
    let mut walk = walk_durable(image.bytes(), volume, &anchor.header, &mut durable);
    let mut sealed = settle(&mut walk, image.bytes(), volume, &found, durable);
    // Nothing continues a segment that has no batch: a summary of it would be none.
    while !walk.summary.batches.is_empty() {
        let next = found.iter().rev().find(|next| continues(&walk, last.header.segment, &next.header)).copied();
        let Some(next) = next else { break };
        let (next_image, next_holes) = image_of(device, volume, next).await?;
        let mut next_walk = walk_durable(next_image.bytes(), volume, &next.header, &mut durable);
        let next_sealed = settle(&mut next_walk, next_image.bytes(), volume, &found, durable);
        if next_walk.summary.batches.is_empty() {
            // Only its header arrived: as if it had not been begun.
            hidden = hole_at_end(&next_walk, &next_image, next_holes, volume).map(|hole| (next.slot, hole));
            break;
        }
        if !sealed {
            unsealed.push((last.slot, walk.summary.clone()));
        }
        (last, walk, image, holes, sealed) = (next, next_walk, next_image, next_holes, next_sealed);
    }
    let holed = !holes.is_empty();
    if !sealed && hidden.is_none() {
        hidden = hole_at_end(&walk, &image, holes, volume).map(|hole| (last.slot, hole));
    }
    Ok(Tail { found, last, walk, sealed, durable, image, unsealed, holed, hidden })
}

/// A segment's bytes, with the header that it should have, and what of them cannot be read.
async fn image_of<D: Device>(device: &D, volume: &Superblock, found: Found) -> std::io::Result<(Buffer, Vec<Hole>)> {
    let (image, holes) = scan::image_with_holes(device, volume, found.slot).await?;
    if found.remade {
        image.part(0, BLOCK_BYTES).write(|block| found.header.encode(volume, block));
    }
    Ok((image, holes))
}

/// The hole that a walk ended at: in place of the next batch's header, or in its data. That is no torn tail: what was flushed may be there.
fn hole_at_end(walk: &Walk, image: &Buffer, holes: Vec<Hole>, volume: &Superblock) -> Option<Hole> {
    let end = walk.end;
    let hole = holes.into_iter().find(|hole| hole.at >= end)?;
    let rest = image.bytes().get(end.0 as usize * BLOCK_BYTES..)?;
    let blocks = match BatchHeader::parse(rest, volume) {
        Ok(next) if next.header.segment == walk.summary.segment && next.header.position == walk.next_position() => {
            next.blocks()
        }
        _ => 1,
    };
    (hole.at.0 < end.0 + blocks).then_some(hole)
}

/// Walks a segment, verifying only the data that no header in it claims to be durable: what was durable and is damaged now
/// fails when it is read, and fails nothing else. Raises `durable` to what its headers claim.
fn walk_durable(image: &[u8], volume: &Superblock, header: &SegmentHeader, durable: &mut Position) -> Walk {
    let claims = walk_segment(image, volume, header, Position(u64::MAX)).durable_through;
    *durable = claims.max(*durable);
    walk_segment(image, volume, header, durable.next())
}

/// Whether the segment is sealed behind what was walked. When all of it is durable its summary stands in for a header
/// that has rotted: the data may be whole. But a summary may also be that of a rejected tail, so something must continue
/// it: the next segment, or the record of a clean close.
fn settle(walk: &mut Walk, image: &[u8], volume: &Superblock, found: &[Found], durable: Position) -> bool {
    let Ok(summary) = scan::stored_in(image, volume) else { return false };
    if summary.segment != walk.summary.segment {
        return false;
    }
    let last = summary.last_position();
    if summary.last_checksum == walk.summary.last_checksum && last == walk.next_position().previous() {
        return true;
    }
    let closed =
        volume.clean_close.is_some_and(|close| (close.position, close.checksum) == (last, summary.last_checksum));
    let next = |next: &Found| {
        let header = &next.header;
        (header.segment, header.first_position) == (summary.segment.plus(1), last.next())
            && header.predecessor == summary.last_checksum
    };
    if last > durable || summary.first_position != walk.summary.first_position || !(closed || found.iter().any(next)) {
        return false;
    }
    log::warn!("segment {}: a batch header is damaged; its summary is whole", summary.segment);
    walk.end = Offset(volume.geometry.segment_blocks - summary.blocks());
    walk.summary = summary;
    walk.ends_with_open = false;
    true
}

fn continues(walk: &Walk, segment: SegmentNumber, next: &SegmentHeader) -> bool {
    next.segment == segment.plus(1)
        && next.first_position == walk.next_position()
        && next.predecessor == walk.chain()
        && next.epoch >= walk.summary.epoch
}

/// The largest durability that a valid header behind the break claims, if it belongs to this epoch or a later one.
async fn later_claims<D: Device>(device: &D, volume: &Superblock, tail: &Tail) -> Result<Position, ReplayError> {
    let epoch = tail.walk.summary.epoch;
    let mut claim = Position(0);
    let mut search = |image: &[u8], segment: SegmentNumber, from: u32| {
        for block in image[from as usize * BLOCK_BYTES..].chunks_exact(BLOCK_BYTES) {
            if BatchHeader::looks_like(block)
                && let Ok(batch) = BatchHeader::parse(block, volume)
                && batch.header.segment == segment
                && batch.header.epoch >= epoch
            {
                claim = claim.max(batch.header.durable_through);
            }
        }
    };
    let last = tail.last.header.segment;
    if !tail.sealed {
        search(tail.image.bytes(), last, tail.walk.end.0);
    }
    for later in tail.found.iter().filter(|found| found.header.segment > last && found.header.epoch >= epoch) {
        search(scan::image(device, volume, later.slot).await?.bytes(), later.header.segment, 1);
    }
    Ok(claim)
}
