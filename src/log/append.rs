//! Placing entries and writing batches.

use std::future::poll_fn;
use std::task::Poll;
use std::time::Duration;

use super::limits::{BATCHES_IN_FLIGHT, LARGE_BATCH_BLOCKS, THROTTLE_STEP, THROTTLE_TICK};
use super::{Ack, Counters, Keep, Log, LogError, State};
use crate::format::{BLOCK_BYTES, BatchHeader, Block, Entry, Position, Superblock, SynchMark};
use crate::index::Mapping;
use crate::io::{Device, Platform};

/// What an appender found to do.
enum Next {
    Write(super::Closed),
    End,
}

impl<P: Platform> Log<P> {
    /// Waits until user data may be placed, and says how many of `want` blocks; they must be placed before anything is
    /// awaited.
    async fn reserve(&self, want: u32) -> Result<u32, LogError> {
        self.throttle(want).await;
        self.0.space.until(|| self.try_reserve(want)).await
    }

    fn try_reserve(&self, want: u32) -> Option<Result<u32, LogError>> {
        let mut state = self.0.state.borrow_mut();
        if let Err(error) = state.check() {
            return Some(Err(error));
        }
        if state.fail_waiting {
            return Some(Err(LogError::Closing));
        }
        if state.head.batch_room() == 0 {
            return None;
        }
        let volume = &self.0.volume;
        if state.cleaner.debt(state.head.used()) > super::limits::COPY_DEBT_BLOCKS {
            drop(state);
            self.0.clean.notify();
            return None;
        }
        let room = state.head.room(want, state.promise(volume));
        if room > 0 {
            return Some(Ok(room));
        }
        if state.stops_here(volume) {
            return None;
        }
        state.roll_wanted = true;
        drop(state);
        self.0.roll.notify();
        self.0.clean.notify();
        None
    }

    /// Writes `blocks` blocks from `block`, whose bytes are `data`; returns the position of the last batch they are in.
    pub async fn write(&self, block: Block, data: &crate::io::Buffer) -> Result<Position, LogError> {
        let blocks = (data.len() / BLOCK_BYTES) as u32;
        let (mut done, mut position) = (0, Position(0));
        while done < blocks {
            let count = self.reserve(blocks - done).await?;
            let from = done as usize * BLOCK_BYTES;
            let part = data.part(from, count as usize * BLOCK_BYTES);
            let may_close = {
                let mut state = self.0.state.borrow_mut();
                position = state.place_writes(block.plus(u64::from(done)), part.bytes());
                state.may_close_batch()
            };
            if may_close {
                self.0.work.notify();
            }
            done += count;
        }
        Ok(position)
    }

    /// Trims or zeroes `count` blocks from `block`; returns the position to wait for. A range where nothing is mapped is
    /// not logged: it waits only for what has been placed before it.
    pub async fn unmap(&self, block: Block, count: u32, zero: bool) -> Result<Position, LogError> {
        if self.0.state.borrow().index.is_unmapped(block, u64::from(count)) {
            let state = self.0.state.borrow();
            state.check()?;
            return Ok(state.head.position_to_await());
        }
        self.place_control(Entry::range(block, count, zero), Keep::Reserve).await
    }

    /// Places an entry without data that may use the room kept for control entries, down to what it must `keep`.
    pub(super) async fn place_control(&self, entry: Entry, keep: Keep) -> Result<Position, LogError> {
        self.control(0, 0, keep, || true, |state| state.place_without_data(entry)).await
    }

    /// Marks a synch point, unless nobody `wants` it any more when there is room for it: then the moment has passed. Returns
    /// it with its position as its number. Not yet durable.
    pub async fn mark(&self, label: String, info: String, wants: impl Fn() -> bool) -> Result<SynchMark, LogError> {
        // Others that wait see whether they are still wanted.
        self.0.space.notify();
        let bytes = SynchMark { point: 0, time_ns: 0, label: label.clone(), info: info.clone() }.encode().len();
        let time_ns = self.0.platform.wall_ns();
        self.control(1, bytes, Keep::Reserve, wants, move |state| {
            if state.head.open_has_synch() {
                return None;
            }
            let time_ns = time_ns.max(state.last_time_ns);
            let point = state.head.position().0;
            let mark = SynchMark { point, time_ns, label: label.clone(), info: info.clone() };
            state.head.place_synch(mark.clone());
            state.points.push(mark.clone());
            state.counters.overhead_blocks += 1;
            Some(mark)
        })
        .await
    }

    pub(super) async fn control<T>(
        &self,
        data: u32,
        synch_bytes: usize,
        keep: Keep,
        wants: impl Fn() -> bool,
        mut place: impl FnMut(&mut State) -> Option<T>,
    ) -> Result<T, LogError> {
        let placed = self
            .0
            .space
            .until(|| {
                let mut state = self.0.state.borrow_mut();
                if let Err(error) = state.check() {
                    return Some(Err(error));
                }
                if !wants() {
                    return Some(Err(LogError::Closing));
                }
                let promise = state.control_promise(&self.0.volume, keep);
                if state.head.batch_room() == 0 {
                    return None;
                }
                if state.head.room_for_control(data, synch_bytes, promise) {
                    return place(&mut state).map(Ok);
                }
                if state.fail_waiting && keep == Keep::Reserve {
                    return Some(Err(LogError::Closing));
                }
                state.roll_wanted = true;
                drop(state);
                self.0.roll.notify();
                self.0.clean.notify();
                None
            })
            .await?;
        self.0.work.notify();
        Ok(placed)
    }

    /// Waits until everything up to `position` has been written, in log order.
    pub async fn acknowledged(&self, position: Position) -> Result<(), LogError> {
        poll_fn(|context| {
            let mut state = self.0.state.borrow_mut();
            if state.completed >= position {
                return Poll::Ready(Ok(()));
            }
            if let Err(error @ LogError::Stopped(_)) = state.check() {
                return Poll::Ready(Err(error));
            }
            // The open batch has no acknowledgement yet: it gets one here and keeps it when it is closed.
            let rank = (position.0 - state.completed.0 - 1) as usize;
            while state.acks.len() <= rank {
                let wakers = state.spare_wakers.pop().unwrap_or_default();
                state.acks.push_back(Ack { ended: false, wakers });
            }
            let wakers = &mut state.acks[rank].wakers;
            if !wakers.iter().any(|waker| waker.will_wake(context.waker())) {
                wakers.push(context.waker().clone());
            }
            Poll::Pending
        })
        .await
    }

    /// Closes and writes batches, one at a time; as many of these run as batches may be in flight.
    pub(super) async fn append_batches(self) {
        loop {
            let at_once = self.0.work.until(|| self.0.state.borrow_mut().batch_to_close()).await;
            if !at_once {
                // Whatever is ready now joins the batch, unless it becomes large meanwhile: then another of these closes it.
                self.0.platform.settle().await;
                self.0.state.borrow_mut().gathered();
            }
            match self.next_batch() {
                None => {}
                Some(Next::End) => return,
                Some(Next::Write(closed)) => {
                    let blocks = (closed.bytes.len() / BLOCK_BYTES) as u32;
                    let result = self.0.device.write(closed.place.bytes(), closed.bytes).await;
                    {
                        let flight = &mut self.0.state.borrow_mut().flight;
                        (flight.batches, flight.blocks) = (flight.batches - 1, flight.blocks - blocks);
                    }
                    match result {
                        Ok(()) => self.batch_ended(closed.position),
                        Err(error) => {
                            let at = closed.place.bytes();
                            self.stop(&format!(
                                "writing the log at {at:#x} (position {}) failed: {error}",
                                closed.position
                            ));
                        }
                    }
                }
            }
        }
    }

    fn next_batch(&self) -> Option<Next> {
        let mut state = self.0.state.borrow_mut();
        if state.stopped.is_some() || (state.closing && !state.head.has_open()) {
            return Some(Next::End);
        }
        if !state.may_close_batch() {
            return None;
        }
        let closed = state.close_batch(&self.0.volume, self.0.platform.wall_ns());
        state.flight.batches += 1;
        state.flight.blocks += (closed.bytes.len() / BLOCK_BYTES) as u32;
        let roll = state.roll_wanted;
        drop(state);
        self.0.space.notify();
        self.0.clean.notify();
        if roll {
            self.0.roll.notify();
        }
        Some(Next::Write(closed))
    }

    fn batch_ended(&self, position: Position) {
        let mut state = self.0.state.borrow_mut();
        let rank = (position.0 - state.completed.0 - 1) as usize;
        state.acks[rank].ended = true;
        let mut rolled = false;
        while state.acks.front().is_some_and(|ack| ack.ended) {
            let Some(mut ack) = state.acks.pop_front() else { break };
            state.completed = state.completed.next();
            rolled |= state.completed == state.head.header.first_position;
            ack.wakers.drain(..).for_each(std::task::Waker::wake);
            if state.spare_wakers.len() < 8 {
                state.spare_wakers.push(ack.wakers);
            }
        }
        drop(state);
        self.0.work.notify();
        if rolled {
            // The roller flushes when the first batch of a segment is there: it frees the slot that left.
            self.0.roll.notify();
        }
    }

    /// Slows a user's write down so that its speed meets the store's before slots run out. Writes take turns, each behind
    /// the pause of those before it, so that many writers together are as slow as one.
    async fn throttle(&self, blocks: u32) {
        let (before, wake) = {
            let mut state = self.0.state.borrow_mut();
            let pause = state.pause(&self.0.volume, blocks);
            if pause.is_zero() {
                return;
            }
            let before = self.0.platform.elapsed();
            // A tick of credit for what was slept too long, and one of debt before it is worth sleeping.
            let turn = state.archive.turn.max(before.saturating_sub(THROTTLE_TICK)) + pause;
            state.archive.turn = turn;
            if turn <= before + THROTTLE_TICK {
                return;
            }
            (before, next_tick(turn))
        };
        while let Some(left) = self.held_back(before, wake, blocks) {
            self.0.platform.sleep(left.min(THROTTLE_STEP)).await;
        }
    }

    /// How long a write that has been held back since `before` must still wait for `wake`.
    fn held_back(&self, before: Duration, wake: Duration, blocks: u32) -> Option<Duration> {
        let now = self.0.platform.elapsed();
        let mut state = self.0.state.borrow_mut();
        let free = state.pause(&self.0.volume, blocks).is_zero() || state.ended() || state.fail_waiting;
        if free {
            state.archive.turn = now;
        } else if now < wake {
            return Some(wake - now);
        }
        state.counters.throttled += now.saturating_sub(before);
        None
    }
}

/// Writes that are held back go on at ticks, so that those that may go on at about the same time share a batch.
fn next_tick(turn: Duration) -> Duration {
    let ticks = turn.as_nanos().div_ceil(THROTTLE_TICK.as_nanos());
    THROTTLE_TICK * u32::try_from(ticks).unwrap_or(u32::MAX)
}

impl State {
    /// Whether the open batch is as large as everything in flight, or, when nothing is, as half of what there was lately: then the
    /// device works on that half while the other one is placed, and so from there on.
    fn batch_is_large(&self) -> bool {
        let enough = if self.flight.batches == 0 { self.flight.gathered / 2 } else { self.flight.blocks };
        self.head.open_blocks() >= LARGE_BATCH_BLOCKS.max(enough)
    }

    /// Everything that was ready has been placed.
    fn gathered(&mut self) {
        self.flight.gathering = false;
        self.flight.gathered = self.flight.blocks + self.head.open_blocks();
    }

    fn may_close_batch(&self) -> bool {
        let room = self.flight.batches < BATCHES_IN_FLIGHT;
        self.head.has_open() && (room || self.batch_is_large())
    }

    /// Whether to close the open batch at once, or to wait for what joins it, which one does at a time; when it may be closed, or
    /// there will be none any more.
    fn batch_to_close(&mut self) -> Option<bool> {
        let end = self.stopped.is_some() || (self.closing && !self.head.has_open());
        if end || (self.head.has_open() && self.batch_is_large()) {
            return Some(true);
        }
        if !self.may_close_batch() || self.flight.gathering {
            return None;
        }
        self.flight.gathering = true;
        Some(false)
    }

    fn place_writes(&mut self, block: Block, data: &[u8]) -> Position {
        for (rank, bytes) in data.chunks_exact(BLOCK_BYTES).enumerate() {
            let block = block.plus(rank as u64);
            let (place, crc) = self.head.place_data(bytes, |crc| Entry::write(block, crc));
            self.map(block, Mapping::At(place, crc));
        }
        self.counters.user_blocks += (data.len() / BLOCK_BYTES) as u64;
        self.head.position()
    }

    /// Switches the index and the counts to the newest place of a block.
    pub(super) fn map(&mut self, block: Block, to: Mapping) {
        self.table.add_live(to);
        let old = self.index.set(block, to);
        self.table.remove_live(old);
    }

    fn place_without_data(&mut self, entry: Entry) -> Option<Position> {
        use crate::format::EntryKind::{Trim, Zero};
        self.head.place(entry);
        if entry.kind().is_ok_and(|kind| matches!(kind, Trim | Zero)) {
            let Self { index, table, .. } = self;
            index.unmap(entry.block(), u64::from(entry.count()), |old| table.remove_live(old));
        }
        Some(self.head.position())
    }

    /// Closes the open batch: from here on its position is in flight.
    pub(super) fn close_batch(&mut self, volume: &Superblock, wall_ns: i64) -> super::Closed {
        let time_ns = wall_ns.max(self.last_time_ns);
        self.last_time_ns = time_ns;
        let durable_through = self.durable;
        self.recorded = durable_through;
        if self.head.position() == self.head.header.first_position {
            self.table.get_mut(self.head.slot).first_time_ns = time_ns;
        }
        if self.head.is_eventful() {
            self.eventful = self.head.position();
        }
        if self.head.changes() {
            self.changed = self.head.position();
        }
        let (archived_through, oldest_needed) = (self.archive.through, self.head.header.oldest_needed);
        let closed = self.head.close(volume, |head| BatchHeader {
            segment: head.header.segment,
            offset: head.offset(),
            position: head.position(),
            epoch: volume.epoch,
            wall_ns,
            time_ns,
            durable_through,
            oldest_needed,
            archived_through,
            volume_blocks: volume.geometry.volume_blocks,
            working_set: volume.geometry.working_set,
            predecessor: head.chain(),
        });
        self.claims.place(closed.position, archived_through);
        self.counters.overhead_blocks += 1;
        self.counters.batches += 1;
        let rank = (closed.position.0 - self.completed.0 - 1) as usize;
        if self.acks.len() <= rank {
            let wakers = self.spare_wakers.pop().unwrap_or_default();
            self.acks.push_back(Ack { ended: false, wakers });
        }
        closed
    }

    /// How long a write of `blocks` blocks is held back: nothing while half of the spare slots are free, then more and
    /// more, up to twice the time in which the archiver frees what the log takes for them, copies and all.
    pub(super) fn pause(&self, volume: &Superblock, blocks: u32) -> Duration {
        let geometry = &volume.geometry;
        let spare = (geometry.slots - geometry.working_set - 1) as f64;
        let free = self.table.free_slots() as f64;
        let low = (spare / 2.0).min(16.0);
        let seconds = self.seconds_a_segment();
        if free >= low || seconds == 0.0 || self.stopped.is_some() {
            return Duration::ZERO;
        }
        let shortage = 1.0 - free / low;
        let Counters { user_blocks, copied_blocks, overhead_blocks, .. } = self.counters;
        let logged = (user_blocks + copied_blocks + overhead_blocks) as f64 / user_blocks.max(1) as f64;
        let per_block = seconds / f64::from(geometry.segment_blocks) * logged.clamp(1.0, 8.0);
        let pause = per_block * f64::from(blocks) * shortage * shortage * 2.0;
        Duration::try_from_secs_f64(pause.min(seconds)).unwrap_or(THROTTLE_STEP)
    }
}
