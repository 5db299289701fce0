//! The log and its life: append, seal, clean, archive, recycle, and back again after a crash.
//!
//! One thread owns all of this, so state is reached by short borrows that no wait crosses. The story of an entry:
//!
//! 1. [`Log::reserve`] waits for room that nobody else was promised, then places the entry in the open batch of the
//!    [`head`]: a place, a copy of the data, the index. Placement order is log order is index order.
//! 2. [`append`] closes the open batch as soon as fewer than the allowed number are in flight, and writes it. Batches may
//!    end in any order; they are acknowledged in log order.
//! 3. [`flush`] makes durable what has ended; waiters share one flush.
//! 4. [`roll`] seals a full segment and starts the next, once the segment that leaves the working set is clean.
//! 5. [`clean`] copies forward, oldest first, by the [`plan`]'s pace.
//! 6. [`drain`] archives what is sealed and durable, and frees the slots that nobody needs any more; [`parts`] archives
//!    what is durable of the segment that is still open. [`agree`] sees to it that the archive is of the same past.
//! 7. [`scan`], [`tail`] and [`replay`] read it all back.
//!
//! **The index is switched at placement**, not at acknowledgement: what is placed is in memory, reads of it come from
//! there, and rule 6 (a copy never passes a newer entry) becomes one comparison. An unacknowledged write may thus be
//! read, as on any disk with a cache.

mod agree;
mod append;
mod claims;
mod clean;
mod drain;
mod flush;
mod head;
pub mod limits;
mod pace;
mod parts;
mod plan;
mod repair;
pub mod replay;
mod roll;
mod rollback;
pub mod scan;
mod table;
pub mod tail;
mod trouble;

use std::cell::RefCell;
use std::collections::VecDeque;
use std::rc::Rc;
use std::sync::Arc;
use std::task::Waker;
use std::time::Duration;

use crate::archive::{Fill, Packing, Store};
use crate::format::{BLOCK_BYTES, Checksum, Entry, Position, SegmentNumber, Superblock, SynchMark};
use crate::index::Index;
use crate::io::{Buffer, Platform, Signal};
pub use agree::{ArchiveEnds, ArchiveFound, Disagreement, WholeSegments, look_at_archive, tail_agrees};
use claims::Claims;
use clean::Cleaner;
pub use head::Closed;
use head::{Head, Promise};
use limits::{KEPT_AT_CLOSE, control_reserve};
pub use pace::Archiving;
use pace::{Ladder, Pace};
use parts::Parts;
pub use rollback::Rollback;
pub use table::{Life, SlotInfo, Table};
pub use trouble::Trouble;

/// Why the log does not take an entry.
#[derive(Debug, Clone, thiserror::Error)]
pub enum LogError {
    /// A write or flush failed; nothing more is written, so that what is there stays what it is.
    #[error("the log has stopped: {0}")]
    Stopped(Arc<str>),
    /// The volume is being closed, or detached by force.
    #[error("the volume is being detached")]
    Closing,
}

/// What a control entry leaves of the segment's room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Keep {
    /// The reserve, for entries that the volume's users ask for.
    Reserve,
    Blocks(u32),
}

/// What the log counts. Blocks of 4096 bytes.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Counters {
    pub user_blocks: u64,
    pub copied_blocks: u64,
    /// Segment headers, batch headers, synch marks and summaries.
    pub overhead_blocks: u64,
    pub lost_blocks: u64,
    /// Copies that were not made: a newer entry of the block came while it was being read.
    pub outrun_copies: u64,
    /// Blocks that the primary could not give back and the archive could.
    pub repaired_blocks: u64,
    pub batches: u64,
    pub archived_bytes: u64,
    pub archived_image_bytes: u64,
    pub throttled: Duration,
    pub cleaning_reads: u64,
}

/// A batch that has been closed and is not acknowledged yet.
#[derive(Debug, Default)]
struct Ack {
    ended: bool,
    wakers: Vec<Waker>,
}

#[derive(Debug, Default)]
struct Flushes {
    /// One more than have ended while one is running.
    started: u64,
    ended: u64,
    /// What was completed when the last one was submitted.
    through: Position,
}

/// How the archiver is doing.
#[derive(Debug, Default)]
pub struct ArchiveState {
    /// What keeps it from archiving.
    pub trouble: Option<Trouble>,
    pub options: Archiving,
    /// How the last segment was packed, or is being packed.
    pub packing: Option<Packing>,
    ladder: Ladder,
    pace: Pace,
    /// When the write that is held back last may go on.
    turn: Duration,
    /// Running average of the seconds that archiving a segment takes.
    pub segment_seconds: f64,
    /// Every segment up to here is archived.
    pub through: SegmentNumber,
    /// Synch points that need segments which have left the primary.
    pub points: u64,
    /// Whether the store is known to be of the same past as the primary, and to have what was put into it.
    pub agreed: bool,
    /// How often the store failed, since when it may be another.
    doubts: u64,
    /// When it was asked what it has before slots are freed, and has not answered yet.
    asked: Option<Duration>,
    /// How full the store was when something was put last, where it can be told.
    pub fill: Option<Fill>,
    pub(crate) parts: Parts,
}

/// What is being written.
#[derive(Debug, Default)]
struct InFlight {
    batches: usize,
    blocks: u32,
    /// Somebody waits for what joins the open batch.
    gathering: bool,
    /// Blocks in flight and in the open batch, when everything that was ready had been placed.
    gathered: u32,
}

struct State {
    index: Index,
    table: Table,
    head: Head,
    cleaner: Cleaner,
    /// Acknowledged through here, in log order.
    completed: Position,
    /// The batches after `completed` that have been closed.
    acks: VecDeque<Ack>,
    spare_wakers: Vec<Vec<Waker>>,
    flight: InFlight,
    durable: Position,
    /// The largest durability that a written header claims.
    recorded: Position,
    /// The last batch with anything in it but noops.
    eventful: Position,
    /// The last batch that changes the volume or marks a point.
    changed: Position,
    flushes: Flushes,
    last_time_ns: i64,
    /// Somebody waits for more room than the segment has.
    roll_wanted: bool,
    /// What is placed belongs to it.
    rollback: Option<Rollback>,
    stopped: Option<Arc<str>>,
    closing: bool,
    fail_waiting: bool,
    archive: ArchiveState,
    claims: Claims,
    counters: Counters,
    /// Synch points that the primary alone can restore, oldest first.
    points: Vec<SynchMark>,
    spare_buffer: Option<Buffer>,
    planning: bool,
}

/// A log, open for appending.
pub struct Log<P: Platform>(Rc<Core<P>>);

struct Core<P: Platform> {
    platform: P,
    device: P::Device,
    volume: Superblock,
    store: Option<Arc<dyn Store>>,
    state: RefCell<State>,
    /// The open batch has got entries, or a batch has ended.
    work: Signal,
    /// Room has appeared, or the reason to wait has gone.
    space: Signal,
    /// Something that the roller waits for has happened.
    roll: Signal,
    /// A flush has ended.
    flushed: Signal,
    /// The cleaner may go on.
    clean: Signal,
    /// The archiver may go on.
    drain: Signal,
    /// Something has been archived, or should be although its segment is open.
    parts: Signal,
}

impl<P: Platform> Clone for Log<P> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<P: Platform> Log<P> {
    /// The superblock that the log runs under.
    pub fn volume(&self) -> &Superblock {
        &self.0.volume
    }

    /// The platform, for reads of the log's places.
    pub fn platform(&self) -> &P {
        &self.0.platform
    }

    /// The primary.
    pub fn device(&self) -> &P::Device {
        &self.0.device
    }

    /// Looks at the index and the table.
    pub fn look<T>(&self, look: impl FnOnce(&Index, &mut Table) -> T) -> T {
        let mut state = self.0.state.borrow_mut();
        let State { index, table, .. } = &mut *state;
        look(index, table)
    }

    /// Starts the tasks that write, roll, clean, archive and keep house. They end when the log stops or has been closed.
    fn start(&self) {
        let platform = &self.0.platform;
        for _ in 0..limits::LARGE_BATCHES_IN_FLIGHT {
            platform.spawn_urgent(self.clone().append_batches());
        }
        platform.spawn(self.clone().roll_segments());
        platform.spawn(self.clone().place_copies());
        for _ in 0..limits::COPY_GROUPS_AHEAD / 2 {
            platform.spawn(self.clone().read_copies());
        }
        let archivers = self.0.state.borrow().archive.options.threads.max(1);
        for _ in 0..archivers {
            platform.spawn(self.clone().archive_segments());
        }
        platform.spawn(self.clone().archive_parts());
        platform.spawn(self.clone().record_when_idle());
    }

    /// Stops the log for good: the first failure is kept, everything that waits is told.
    pub(crate) fn stop(&self, cause: &str) {
        let mut state = self.0.state.borrow_mut();
        if state.stopped.is_none() {
            log::error!("{}: {cause}; the volume takes no more writes and goes on reading", self.0.volume.name);
            state.stopped = Some(Arc::from(cause));
        }
        let wakers: Vec<Waker> = state.acks.iter_mut().flat_map(|ack| ack.wakers.drain(..)).collect();
        drop(state);
        wakers.into_iter().for_each(Waker::wake);
        self.wake_everybody();
    }

    fn wake_everybody(&self) {
        for signal in
            [&self.0.work, &self.0.space, &self.0.roll, &self.0.flushed, &self.0.clean, &self.0.drain, &self.0.parts]
        {
            signal.notify();
        }
    }

    /// Whether writes have no slot to go on to.
    pub fn is_out_of_slots(&self) -> bool {
        let state = self.0.state.borrow();
        state.table.free_slots() == 0 || state.stops_here(&self.0.volume)
    }

    /// What has stopped the log.
    pub fn stopped(&self) -> Option<Arc<str>> {
        self.0.state.borrow().stopped.clone()
    }

    /// Fails the writes that wait for space, now and from now on.
    pub fn fail_waiting(&self) {
        self.0.state.borrow_mut().fail_waiting = true;
        self.0.space.notify();
    }

    /// Log positions: acknowledged through, durable through.
    pub fn positions(&self) -> (Position, Position) {
        let state = self.0.state.borrow();
        (state.completed, state.durable)
    }

    /// Whether there is anything to archive to.
    pub fn has_store(&self) -> bool {
        self.0.store.is_some()
    }

    /// The longest that a change waits to be archived with a part of its segment, while the store keeps up.
    pub fn archive_interval(&self) -> Option<Duration> {
        self.0.state.borrow().archive.options.interval
    }

    /// The last batch that changes the volume or marks a point.
    pub fn last_change(&self) -> Position {
        self.0.state.borrow().changed
    }

    /// The current segment's number.
    pub fn current_segment(&self) -> SegmentNumber {
        self.0.state.borrow().head.header.segment
    }

    /// The epoch of this opening.
    pub fn epoch(&self) -> u64 {
        self.0.volume.epoch
    }

    /// The last header's checksum and its position, for the record of a clean close.
    pub fn tail(&self) -> (Position, Checksum) {
        let state = self.0.state.borrow();
        (state.head.last_position(), state.head.chain())
    }

    pub fn counters(&self) -> Counters {
        self.0.state.borrow().counters
    }

    /// Looks at the archiver's state.
    pub fn archive_state<T>(&self, look: impl FnOnce(&ArchiveState) -> T) -> T {
        look(&self.0.state.borrow().archive)
    }

    /// Segments cleaned ahead of need. Off only to measure what it costs.
    pub fn set_planning(&self, on: bool) {
        self.0.state.borrow_mut().planning = on;
    }

    /// Ends the log: waits for what is under way, appends a close entry and flushes it.
    ///
    /// # Errors
    /// When the log has stopped: then it will be recovered, not continued, at the next open.
    pub async fn close(&self) -> Result<(), LogError> {
        self.0.state.borrow_mut().fail_waiting = true;
        self.0.space.notify();
        let placed = self.place_close().await;
        // At once, so that the close entry stays the last one.
        self.0.state.borrow_mut().closing = true;
        self.wake_everybody();
        self.acknowledged(placed?).await?;
        self.flush_everything().await
    }

    /// Without a free slot there may be no room left for a close entry: the superblock's record says the same, and the
    /// last blocks belong to the next opening.
    async fn place_close(&self) -> Result<Position, LogError> {
        if self.0.state.borrow().is_out_of_room(&self.0.volume) {
            return Ok(self.0.state.borrow().head.position_to_await());
        }
        self.place_control(Entry::close(), Keep::Blocks(KEPT_AT_CLOSE)).await
    }
}

impl State {
    /// The last position of a sealed segment, by the one behind it.
    fn end_of(&self, segment: SegmentNumber) -> Option<Position> {
        let next = self.table.slot_of(segment.plus(1))?;
        Some(self.table.get(next).first_position.previous())
    }

    fn check(&self) -> Result<(), LogError> {
        match &self.stopped {
            Some(cause) => Err(LogError::Stopped(Arc::clone(cause))),
            None if self.closing => Err(LogError::Closing),
            None => Ok(()),
        }
    }

    /// Whether the tasks of the log should end.
    fn ended(&self) -> bool {
        self.stopped.is_some() || self.closing
    }

    /// The segment that leaves the working set with this one.
    fn leaving(&self, volume: &Superblock) -> Option<SegmentNumber> {
        let segment = self.head.header.segment.0;
        segment.checked_sub(u64::from(volume.geometry.working_set)).filter(|number| *number > 0).map(SegmentNumber)
    }

    /// Live entries that must still be copied into the current segment.
    fn must_copy(&self, volume: &Superblock) -> u32 {
        self.leaving(volume).map_or(0, |segment| self.table.live_through(segment))
    }

    /// Room of the current segment that a user's write must leave.
    fn promise(&self, volume: &Superblock) -> Promise {
        // With no slot to go on to, synch events must find room for as long as the store is away.
        let last = self.table.free_slots() == 0 || self.stops_here(volume);
        let synchs = if last { volume.geometry.segment_blocks / 8 } else { 0 };
        Promise { copies: self.must_copy(volume), control: (self.reserve(volume) + 2).max(synchs) }
    }

    /// Whether writes wait in this segment rather than take the last slot: the copies that must go into the next one would
    /// leave synch events no room there, and they have some here.
    fn stops_here(&self, volume: &Superblock) -> bool {
        let geometry = &volume.geometry;
        let is_last = self.table.free_slots() == 1 && geometry.slots > geometry.working_set + 2;
        // Only what has begun lets the slot go that left the working set with it.
        if !is_last || self.head.last_position() < self.head.header.first_position {
            return false;
        }
        let leaving_next = self.leaving(volume).map_or(SegmentNumber(0), |segment| segment.plus(1));
        let copies = self.table.live_through(leaving_next);
        let next = Promise { copies, control: geometry.segment_blocks / 8 };
        let here = Promise { copies: self.must_copy(volume), control: 2 };
        !next.fits_alone(geometry) && self.head.room_for_control(1, BLOCK_BYTES, here)
    }

    /// Room of the current segment that copies, trims and synch events must leave: none while there is a slot to go on to,
    /// and within a segment slots only become more.
    fn reserve(&self, volume: &Superblock) -> u32 {
        if self.table.free_slots() > 0 { 0 } else { control_reserve(volume.geometry.segment_blocks) }
    }

    /// Room of the current segment that a control entry must leave: `keep` blocks for those that matter more.
    fn control_promise(&self, volume: &Superblock, keep: Keep) -> Promise {
        let control = match keep {
            Keep::Reserve => self.reserve(volume),
            Keep::Blocks(blocks) => blocks,
        };
        Promise { copies: self.must_copy(volume), control }
    }

    fn is_out_of_room(&self, volume: &Superblock) -> bool {
        self.table.free_slots() == 0
            && !self.head.room_for_control(0, 0, self.control_promise(volume, Keep::Blocks(KEPT_AT_CLOSE)))
    }
}
