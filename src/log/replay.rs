//! Opening a log: rebuild the index, begin a new epoch, behind what [`super::tail`] found.
//!
//! 1. What lies behind a torn tail is made unreadable, so that it can never be taken for a continuation.
//! 2. The entries of the segments that the tail needs are applied in log order.
//! 3. A batch with an open entry of a new epoch is written behind the last valid one, and flushed, before anything is
//!    served. Directly behind another open entry it takes its place, so that a crash loop eats no log.

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream;

use super::limits::{MISSING_LEAVE, READS_IN_FLIGHT};
use super::scan::{self, Found};
pub use super::tail::ReplayError;
use super::tail::Tail;
use super::{
    ArchiveState, Archiving, Claims, Core, Counters, Flushes, Head, Keep, Life, Log, Pace, Rollback, State, Table,
    WholeSegments,
};
use crate::archive::{Store, damaged_blocks};
use crate::format::{
    BLOCK_BYTES, BatchRecord, Checksum, Entry, EntryKind, Geometry, Offset, Position, SegmentHeader, SegmentNumber,
    Slot, Summary, Superblock,
};
use crate::index::{Index, Mapping};
use crate::io::{Buffer, Device, Platform, Signal};

/// How a log is opened.
#[derive(Debug, Clone)]
pub struct Opening {
    /// Nothing is written, and nothing can be appended.
    pub read_only: bool,
    /// What the store has, when it is known to be of the same past.
    pub agreed: Option<WholeSegments>,
    pub archiving: Archiving,
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
        spare_buffer: None,
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
