//! Opening a log: find its tail, tell a torn one from rot, rebuild the index, begin a new epoch.
//!
//! 1. Of all segments whose header is on the primary, the newest that begins at or before the largest durable position
//!    that any header claims is the *anchor*: everything before it is durable and is taken from summaries.
//! 2. From the anchor on, batches are walked by the validity rule, their data verified beyond what is durable, through
//!    the segments that continue the chain, up to the first batch that does not.
//! 3. If anything valid claims that this batch was durable, it is rot, and opening is refused; otherwise it is a torn
//!    tail, which is normal. What lies behind it is made unreadable, so that it can never be taken for a continuation.
//! 4. The entries of the segments that the tail needs are applied in log order.
//! 5. A batch with an open entry of a new epoch is written behind the last valid one, and flushed, before anything is
//!    served. Directly behind another open entry it takes its place, so that a crash loop eats no log.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream;

use super::limits::{MISSING_LEAVE, READS_IN_FLIGHT};
use super::scan::{self, Found, Headers, Hole, ScanError};
use super::{
    ArchiveState, Archiving, Claims, Core, Counters, Flushes, Head, Keep, Life, Log, LogError, Pace, Rollback, State,
    Table, WholeSegments,
};
use crate::archive::{Spec, Store, damaged_blocks};
use crate::format::{
    BLOCK_BYTES, BatchHeader, BatchRecord, Checksum, Entry, EntryKind, Geometry, Offset, Position, SegmentHeader,
    SegmentNumber, Slot, Summary, Superblock, Walk, walk_segment,
};
use crate::index::{Index, Mapping};
use crate::io::{Buffer, Device, Platform, Signal};

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

/// How a log is opened.
#[derive(Debug, Clone)]
pub struct Opening {
    /// Nothing is written, and nothing can be appended.
    pub read_only: bool,
    /// What the store has, when it is known to be of the same past.
    pub agreed: Option<WholeSegments>,
    pub archiving: Archiving,
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
    image: Buffer,
    /// Segments before the last whose summary never reached the device.
    unsealed: Vec<(Slot, Summary)>,
    /// Whether some of its bytes could not be read.
    holed: bool,
    /// What could not be read where the log seems to end: it may go on there.
    hidden: Option<(Slot, Hole)>,
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
    fn archived_through(&self) -> SegmentNumber {
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

/// Which segments are archived: those up to `through`, but for those that the store, when it was asked, does not have. Without
/// a store all are.
struct ArchivedOnes {
    through: SegmentNumber,
    whole: Option<WholeSegments>,
}

impl ArchivedOnes {
    /// Whether `segment` is archived, which is of the working set when it is `needed`.
    fn has(&self, segment: SegmentNumber, needed: bool) -> bool {
        segment <= self.through && !self.whole.as_ref().is_some_and(|whole| whole.lacks(segment, needed))
    }
}

/// Entries between one whose word of the index is fetched and the one that is being applied: each is a cache miss.
const LOOK_AHEAD: usize = 24;

/// What replay rebuilds.
struct Rebuilt {
    index: Index,
    table: Table,
    points: Vec<crate::format::SynchMark>,
    last_time_ns: i64,
}

impl Rebuilt {
    /// Applies the entries of the segment in `slot`, in log order.
    fn apply(&mut self, summary: &Summary, geometry: &Geometry, slot: Slot) -> Result<(), ReplayError> {
        for (rank, (entry, kind, mapping)) in scan::mappings(summary, geometry, slot).enumerate() {
            if let Some(later) = summary.entries.get(rank + LOOK_AHEAD) {
                self.index.prefetch(later.block());
            }
            let block = entry.block();
            match kind {
                EntryKind::Trim | EntryKind::Zero => {
                    let Self { index, table, .. } = self;
                    index.unmap(block, u64::from(entry.count()), |old| table.remove_live(old));
                }
                EntryKind::Copy if matches!(self.index.get(block), Mapping::At(_, crc) if crc != entry.crc()) => {
                    return Err(ReplayError::Order { segment: summary.segment, block: block.0 });
                }
                EntryKind::Write | EntryKind::Copy | EntryKind::Lost => {
                    self.table.add_live(mapping);
                    let old = self.index.set(block, mapping);
                    self.table.remove_live(old);
                }
                _ => {}
            }
        }
        let newest = summary.batches.last().map_or(i64::MIN, BatchRecord::time_ns);
        self.last_time_ns = self.last_time_ns.max(newest);
        self.points.extend(summary.synchs.iter().cloned());
        Ok(())
    }
}

impl<P: Platform> Log<P> {
    /// Opens the log of `volume` on `device`, which ends in `tail`.
    ///
    /// # Errors
    /// See [`ReplayError`]; nothing has been changed then, unless the device failed.
    pub async fn open(
        platform: P,
        device: P::Device,
        mut volume: Superblock,
        store: Option<Arc<dyn Store>>,
        tail: Option<Tail>,
        options: Opening,
    ) -> Result<Self, ReplayError> {
        let seen = tail.iter().flat_map(|tail| &tail.found).map(|found| found.header.epoch).max().unwrap_or(0);
        let walked = tail.as_ref().map_or(0, |tail| tail.walk.summary.epoch);
        let before = volume.epoch;
        volume.epoch = before.max(seen).max(walked) + 1;
        let mut state = match tail {
            None => fresh(&volume, platform.wall_ns())?,
            Some(tail) => {
                if !options.read_only {
                    bury(&device, &volume, &tail).await?;
                }
                let replaces = tail.walk.ends_with_open;
                let through = if store.is_some() { tail.archived_through() } else { SegmentNumber(u64::MAX) };
                let archived = ArchivedOnes { through, whole: options.agreed.clone() };
                let (state, lacking) = rebuild(&device, &volume, tail, &archived, platform.wall_ns()).await?;
                if replaces && !options.read_only {
                    disclaim(&device, &mut volume, before).await?;
                }
                for (slot, summary) in lacking.iter().filter(|_| !options.read_only) {
                    // All was read without it, so one that cannot be written keeps nobody from the volume.
                    if let Err(error) = write_summary(&device, &volume, *slot, summary).await {
                        log::warn!("segment {}: its summary cannot be written again: {error}", summary.segment);
                    }
                }
                state
            }
        };
        (state.archive.agreed, state.archive.options) = (options.agreed.is_some(), options.archiving);
        state.archive.pace = Pace::new(options.archiving.rate);
        let log = Self(Rc::new(Core {
            platform,
            device,
            volume,
            store,
            state: RefCell::new(state),
            work: Signal::default(),
            space: Signal::default(),
            roll: Signal::default(),
            flushed: Signal::default(),
            clean: Signal::default(),
            drain: Signal::default(),
            parts: Signal::default(),
        }));
        if options.read_only {
            return Ok(log);
        }
        log.0.state.borrow_mut().plan_cleaning(&log.0.volume);
        log.start();
        let opened = log.place_control(Entry::open(log.0.volume.epoch), Keep::Blocks(0)).await?;
        log.acknowledged(opened).await?;
        log.flush_everything().await?;
        Ok(log)
    }
}

/// The state of a log before its first entry.
fn fresh(volume: &Superblock, wall_ns: i64) -> Result<State, ReplayError> {
    let mut table = Table::new(volume.geometry);
    let index = Index::new(volume.geometry.volume_blocks)?;
    let head = begin(volume, &mut table, SegmentNumber(1), Position(1), Checksum::default(), Position(0), wall_ns)?;
    state(index, table, head, Position(0), SegmentNumber(0), Vec::new(), wall_ns)
}

fn begin(
    volume: &Superblock,
    table: &mut Table,
    segment: SegmentNumber,
    first_position: Position,
    predecessor: Checksum,
    durable_through: Position,
    time_ns: i64,
) -> Result<Head, ReplayError> {
    if table.free_slots() == 0 {
        return Err(ReplayError::Segment { segment });
    }
    let header = SegmentHeader {
        segment,
        slot: table.start(segment, first_position),
        epoch: volume.epoch,
        first_position,
        predecessor,
        oldest_needed: segment.minus(u64::from(volume.geometry.working_set)),
        durable_through,
        archived_through: SegmentNumber(0),
        volume_blocks: volume.geometry.volume_blocks,
        working_set: volume.geometry.working_set,
        time_ns,
    };
    Ok(Head::new(volume, header, Buffer::new(volume.geometry.segment_bytes())?, None))
}

fn state(
    index: Index,
    mut table: Table,
    head: Head,
    durable: Position,
    archived: SegmentNumber,
    points: Vec<crate::format::SynchMark>,
    last_time_ns: i64,
) -> Result<State, ReplayError> {
    let completed = head.last_position();
    let changed = head.last_change_until(completed).unwrap_or(head.header.first_position.previous());
    table.get_mut(head.slot).buffer = Some(head.buffer().clone());
    // An open entry that is about to be replaced is durable, and gone.
    let durable = durable.min(completed);
    Ok(State {
        index,
        table,
        head,
        cleaner: super::Cleaner::new()?,
        completed,
        acks: VecDeque::new(),
        spare_wakers: Vec::new(),
        flight: super::InFlight::default(),
        durable,
        recorded: durable,
        eventful: durable,
        changed,
        flushes: Flushes::default(),
        last_time_ns,
        roll_wanted: false,
        rollback: None,
        stopped: None,
        closing: false,
        fail_waiting: false,
        archive: ArchiveState { through: archived, ..ArchiveState::default() },
        claims: Claims::default(),
        counters: Counters::default(),
        points,
        spare_buffers: Vec::new(),
        planning: true,
    })
}

/// Makes what was rejected unreadable for good, and writes the summaries that a crash kept from the device.
async fn bury<D: Device>(device: &D, volume: &Superblock, tail: &Tail) -> Result<(), ReplayError> {
    // What was read may still be on its way to the medium, and slots that it does not need are about to be used.
    device.flush().await?;
    let (zeros, block) = (Buffer::new(BLOCK_BYTES)?, Buffer::new(BLOCK_BYTES)?);
    let last = tail.last.header.segment;
    for found in &tail.found {
        let start = volume.geometry.slot_place(found.slot);
        if found.header.segment > last || (found.header.segment == last && found.slot != tail.last.slot) {
            // The header, the first batch, which says the same, and the summary.
            for offset in [0, 1, volume.geometry.segment_blocks - 1] {
                device.write(start.plus(offset).bytes(), zeros.clone()).await?;
            }
        } else if found.remade {
            block.write(|block| found.header.encode(volume, block));
            device.write(start.bytes(), block.clone()).await?;
        }
    }
    if !tail.sealed {
        // The segment may have been sealed in a tail that was rejected; it will be sealed again, with another summary.
        let trailer = volume.geometry.slot_place(tail.last.slot).plus(volume.geometry.segment_blocks - 1);
        if tail.walk.end.0 < volume.geometry.segment_blocks {
            device.write(trailer.bytes(), zeros.clone()).await?;
        }
    }
    if let Some((slot, hole)) = &tail.hidden {
        // It was given up; a sector that is written can be read again, and nobody is asked a second time.
        device.write(volume.geometry.slot_place(*slot).plus(hole.at.0).bytes(), zeros.clone()).await?;
    }
    for (slot, summary) in &tail.unsealed {
        write_summary(device, volume, *slot, summary).await?;
    }
    Ok(())
}

/// Lets nothing claim the open entry that the log ends with, since another takes its place, which a power cut may tear: neither the record of a
/// clean close nor, by its flush, a header that has been buried. The superblock keeps its epoch until the log has the new one.
async fn disclaim<D: Device>(device: &D, volume: &mut Superblock, epoch: u64) -> std::io::Result<()> {
    volume.generation += 1;
    volume.clean_close = None;
    scan::write_superblock(device, &Superblock { epoch, ..volume.clone() }).await
}

async fn write_summary<D: Device>(
    device: &D,
    volume: &Superblock,
    slot: Slot,
    summary: &Summary,
) -> std::io::Result<()> {
    let bytes = Buffer::new(summary.blocks() as usize * BLOCK_BYTES)?;
    bytes.write(|out| summary.encode(volume, out));
    let first = volume.geometry.segment_blocks - summary.blocks();
    device.write(volume.geometry.slot_place(slot).plus(first).bytes(), bytes).await
}

/// Rebuilds index, counts and head from the segments that the tail needs. Also returns the summaries that their slots lack: one rots, or was
/// on its way when a flush made the next segment's first batches durable, and the power went.
///
/// Segments that are `archived` are in the archive, or there is no archive to wait for.
async fn rebuild<D: Device>(
    device: &D,
    volume: &Superblock,
    tail: Tail,
    archived: &ArchivedOnes,
    wall_ns: i64,
) -> Result<(State, Vec<(Slot, Summary)>), ReplayError> {
    let mut rebuilt = Rebuilt {
        index: Index::new(volume.geometry.volume_blocks)?,
        table: Table::new(volume.geometry),
        points: Vec::new(),
        last_time_ns: wall_ns,
    };
    adopt_old(&mut rebuilt.table, &tail, archived);
    let needed = tail.needed()?;
    let summaries = needed.iter().map(async |found| {
        let segment = found.header.segment;
        let held = tail.unsealed.iter().find(|(slot, _)| *slot == found.slot).map(|(_, summary)| summary.clone());
        let (summary, remade) = match held {
            Some(summary) => (Ok(summary), false),
            None => scan::summary_or_remade(device, volume, found.slot, segment)
                .await
                .map_or_else(|error| (Err(error), false), |(summary, remade)| (Ok(summary), remade)),
        };
        let summary = summary.map_err(|error| {
            log::error!("{error}");
            ReplayError::Segment { segment }
        });
        (*found, summary, remade)
    });
    let mut summaries = stream::iter(summaries).buffered(READS_IN_FLIGHT);
    let (mut before, mut lacking): (Option<Summary>, _) = (None, Vec::new());
    while let Some((found, summary, remade)) = summaries.next().await {
        let summary = summary?;
        linked(before.as_ref(), &summary)?;
        if remade {
            lacking.push((found.slot, summary.clone()));
        }
        adopt(&mut rebuilt.table, found, &summary, archived.has(found.header.segment, true));
        rebuilt.apply(&summary, &volume.geometry, found.slot)?;
        before = Some(summary);
    }
    drop(summaries);
    linked(before.as_ref(), &tail.walk.summary)?;
    let head = continue_head(volume, &mut rebuilt, &tail, wall_ns, archived)?;
    adopt_missing(device, volume, &mut rebuilt.table, &tail, archived).await;
    let Rebuilt { index, table, points, last_time_ns } = rebuilt;
    let open = head.header.segment;
    let rollback = Rollback::at(&tail.walk.summary, tail.walk.summary.last_position());
    let archived_or_missing = archived.through.min(open.before());
    let missing = || table.segments().filter(|(segment, info)| *segment <= archived_or_missing && !info.archived);
    let through = missing().next().map_or(archived_or_missing, |(segment, _)| segment.before());
    let again = missing().count();
    let mut state = state(index, table, head, tail.durable, through, points, last_time_ns)?;
    let damaged = tail.holed || !damaged_blocks(tail.image(), &tail.walk.summary, Offset(0)).is_empty();
    state.table.get_mut(state.head.slot).damaged = damaged;
    state.eventful = state.completed;
    state.rollback = rollback;
    if state.head.last_position() < state.head.header.first_position {
        // A segment that begins in a rollback says so.
        state.note_rollback();
    }
    if let Some(whole) = &archived.whole {
        state.report_missing(volume, again, whole);
    }
    Ok((state, lacking))
}

/// The head of the log behind `tail`: the last segment continued, or, when it was sealed, the next one begun.
fn continue_head(
    volume: &Superblock,
    rebuilt: &mut Rebuilt,
    tail: &Tail,
    wall_ns: i64,
    archived: &ArchivedOnes,
) -> Result<Head, ReplayError> {
    let (summary, last) = (&tail.walk.summary, tail.last);
    if tail.sealed {
        adopt(&mut rebuilt.table, last, summary, archived.has(last.header.segment, true));
        rebuilt.apply(summary, &volume.geometry, last.slot)?;
        // What left the working set with it was clean before it was sealed.
        let left = last.header.segment.0.saturating_sub(u64::from(volume.geometry.working_set));
        if rebuilt.table.live_through(SegmentNumber(left)) > 0 {
            return Err(ReplayError::Segment { segment: SegmentNumber(left) });
        }
        rebuilt.table.leave_working_set(SegmentNumber(left));
        let next = last.header.segment.plus(1);
        let first = tail.walk.next_position();
        return begin(volume, &mut rebuilt.table, next, first, summary.last_checksum, tail.durable, wall_ns);
    }
    let info_first = last.header.first_position;
    rebuilt.table.adopt(last.slot, last.header.segment, Life::Current, info_first);
    rebuilt.table.get_mut(last.slot).first_time_ns = first_time(summary);
    rebuilt.apply(summary, &volume.geometry, last.slot)?;
    let mut summary = summary.clone();
    let mut end = tail.walk.end;
    if tail.walk.ends_with_open
        && let (Some(header), Some(record)) = (tail.walk.last, summary.batches.pop())
    {
        // A new open entry takes the place of the one that nothing followed.
        summary.entries.truncate(summary.entries.len() - record.entries());
        (summary.last_checksum, end) = (header.predecessor, record.offset());
    }
    let begun = !summary.batches.is_empty();
    let found = begun.then_some((summary, end));
    Ok(Head::new(volume, last.header, tail.image.clone(), found))
}

fn adopt(table: &mut Table, found: Found, summary: &Summary, archived: bool) {
    table.adopt(found.slot, summary.segment, Life::Active, summary.first_position);
    let info = table.get_mut(found.slot);
    (info.epoch, info.last_position) = (summary.epoch, summary.last_position());
    (info.sealed, info.archived) = (true, archived);
    info.first_time_ns = first_time(summary);
}

fn first_time(summary: &Summary) -> i64 {
    summary.batches.first().map_or(i64::MAX, |batch| batch.time_ns())
}

/// Segments older than the tail needs: inactive, waiting for the archiver. Archived ones are nobody's, their slots free.
fn adopt_old(table: &mut Table, tail: &Tail, archived: &ArchivedOnes) {
    let oldest = tail.oldest_needed();
    for found in tail.found.iter().filter(|found| found.header.segment < oldest) {
        if found.header.segment > archived.through && table.slot_of(found.header.segment).is_none() {
            adopt_inactive(table, found);
        }
    }
}

fn adopt_inactive(table: &mut Table, found: &Found) {
    table.adopt(found.slot, found.header.segment, Life::Inactive, found.header.first_position);
    let info = table.get_mut(found.slot);
    info.epoch = found.header.epoch;
    info.last_position = found.header.first_position;
    (info.sealed, info.durable) = (true, true);
    info.first_time_ns = found.header.time_ns;
}

/// Segments whose slots were free, since they were archived, and that the store has lost: while their slots have not been
/// written to they are archived again, the newest first, since the volume wants room as well.
async fn adopt_missing<D: Device>(
    device: &D,
    volume: &Superblock,
    table: &mut Table,
    tail: &Tail,
    archived: &ArchivedOnes,
) {
    let oldest = tail.oldest_needed();
    for found in tail.found.iter().rev().filter(|found| found.header.segment < oldest) {
        let segment = found.header.segment;
        let missing = segment <= archived.through && !archived.has(segment, false) && table.slot_of(segment).is_none();
        if missing
            && table.free_slots() > MISSING_LEAVE
            && table.get(found.slot).life == Life::Recycle
            && scan::summary(device, volume, found.slot, segment).await.is_ok()
        {
            adopt_inactive(table, found);
        }
    }
}

fn linked(before: Option<&Summary>, next: &Summary) -> Result<(), ReplayError> {
    match before {
        Some(before)
            if before.last_checksum != next.predecessor || before.last_position().next() != next.first_position =>
        {
            Err(ReplayError::Segment { segment: before.segment })
        }
        _ => Ok(()),
    }
}
