//! From one segment to the next: seal the full one, start another, and see to it that the one before is durable.

use super::limits::SEALED_BUFFERS;
use super::plan::{copy_share, user_floor};
use super::{Head, Life, Log, State};
use crate::format::{ArchiveAt, Place, Position, SegmentHeader, SegmentNumber, Slot, Superblock};
use crate::io::{Buffer, Device, Platform};

struct Sealed {
    slot: Slot,
    place: Place,
    summary: Buffer,
    next_first: Position,
}

impl<P: Platform> Log<P> {
    /// Rolls whenever somebody has no room and the segment that leaves the working set is clean.
    pub(super) async fn roll_segments(self) {
        loop {
            let ready = |state: &State| state.may_roll(&self.0.volume) || state.ended();
            self.0.roll.until(|| ready(&self.0.state.borrow()).then_some(())).await;
            if self.0.state.borrow().ended() {
                return;
            }
            let Some(sealed) = self.roll() else { continue };
            if let Err(error) = self.0.device.write(sealed.place.bytes(), sealed.summary).await {
                return self.stop(&format!("writing a summary at {:#x} failed: {error}", sealed.place.bytes()));
            }
            self.0.state.borrow_mut().table.get_mut(sealed.slot).sealed = true;
            // One flush a segment: it makes the sealed one durable for the archiver, and, once the next one's first
            // batch is there, allows the slot that left the working set to be used again. It also bounds what recovery
            // must read and verify to two segments.
            let begun = |state: &State| state.completed >= sealed.next_first || state.ended();
            self.0.roll.until(|| begun(&self.0.state.borrow()).then_some(())).await;
            if self.flush_everything().await.is_err() {
                return;
            }
        }
    }

    fn roll(&self) -> Option<Sealed> {
        let mut state = self.0.state.borrow_mut();
        let buffer = match state.spare_buffer.take() {
            Some(buffer) => Ok(buffer),
            None => Buffer::new(self.0.volume.geometry.segment_bytes()),
        };
        let buffer = match buffer {
            Ok(buffer) => buffer,
            Err(error) => {
                drop(state);
                self.stop(&format!("no memory for a segment: {error}"));
                return None;
            }
        };
        let sealed = state.roll(&self.0.volume, buffer, self.0.platform.wall_ns(), self.0.platform.elapsed());
        drop(state);
        self.wake_everybody();
        Some(sealed)
    }
}

impl State {
    fn may_roll(&self, volume: &Superblock) -> bool {
        let free = self.table.free_slots() > 0 && !self.stops_here(volume);
        self.roll_wanted && !self.head.has_open() && free && self.must_copy(volume) == 0
    }

    fn roll(&mut self, volume: &Superblock, buffer: Buffer, wall_ns: i64, now: std::time::Duration) -> Sealed {
        let segment = self.head.header.segment.plus(1);
        let next_first = self.head.position();
        let leaving = self.leaving(volume);
        let slot = self.table.start(segment, next_first);
        self.table.get_mut(slot).buffer = Some(buffer.clone());
        let header = SegmentHeader {
            segment,
            slot,
            epoch: volume.epoch,
            first_position: next_first,
            predecessor: self.head.chain(),
            oldest_needed: segment.minus(u64::from(volume.geometry.working_set)),
            durable_through: self.durable,
            archived_through: self.archive.through,
            volume_blocks: volume.geometry.volume_blocks,
            working_set: volume.geometry.working_set,
            time_ns: wall_ns.max(self.last_time_ns),
        };
        self.archive.parts.roll(&self.head);
        let full = std::mem::replace(&mut self.head, Head::new(volume, header, buffer, None));
        let old = full.slot;
        self.table.seal(old, volume.epoch, next_first.previous(), now);
        let (summary, place, bytes, memory) = full.seal(volume);
        self.table.get_mut(old).epoch = summary.epoch;
        self.counters.overhead_blocks += 1 + u64::from(summary.blocks());
        self.table.get_mut(old).buffer = Some(memory);
        if let Some(leaving) = leaving {
            self.table.leave_working_set(leaving);
        }
        self.roll_wanted = false;
        self.note_rollback();
        self.drop_buffers(volume.archive_at);
        self.plan_cleaning(volume);
        Sealed { slot: old, place, summary: bytes, next_first }
    }

    /// Lets go of the memory of sealed segments that nobody needs, or that are too many.
    pub(super) fn drop_buffers(&mut self, archive_at: ArchiveAt) {
        // Behind a queue, others take the place of those that are sealed now before an archiver gets to them.
        let soon = SEALED_BUFFERS + self.archive.options.threads;
        let behind = self.not_archived_through().filter(|(_, info)| !info.archived).nth(soon).is_some();
        let keep = if archive_at == ArchiveAt::Seal && !behind { SEALED_BUFFERS } else { 1 };
        let held: Vec<Slot> = self
            .table
            .segments()
            .rev()
            .filter(|(_, info)| info.life != Life::Current && info.buffer.is_some())
            .filter_map(|(segment, _)| self.table.slot_of(segment))
            .collect();
        for (rank, slot) in held.into_iter().enumerate() {
            let info = self.table.get_mut(slot);
            // The newest may still be on its way to the device, and reads of it come from memory.
            let unneeded = rank >= keep || (rank > 0 && info.archived);
            if unneeded
                && let Some(buffer) = info.buffer.take()
                && buffer.is_unique()
            {
                self.spare_buffer = Some(buffer);
            }
        }
    }

    /// Sets the cleaner's pace for the segment that begins.
    pub(super) fn plan_cleaning(&mut self, volume: &Superblock) {
        let geometry = &volume.geometry;
        let head = self.head.header.segment;
        let first = self.leaving(volume);
        let capacity = f64::from(geometry.segment_blocks) * 0.98;
        let utilisation =
            geometry.volume_blocks as f64 / (f64::from(geometry.working_set) * f64::from(geometry.segment_blocks));
        let need = |segment: u64| {
            let live = self.table.slot_of(SegmentNumber(segment)).map_or(0, |slot| self.table.get(slot).live);
            f64::from(live) * (1.0 + 1.0 / 32.0)
        };
        let oldest = head.0 as i64 - i64::from(geometry.working_set);
        let numbers = (oldest..head.0 as i64).map(|number| u64::try_from(number).unwrap_or(0));
        let due = first.map_or(0.0, |segment| need(segment.0)) / capacity;
        let share = copy_share(numbers.map(need), capacity, user_floor(utilisation)).max(due.min(1.0));
        let ahead = self.planning && share > due + 0.005;
        let reach = if ahead { u64::from(geometry.working_set / 2) } else { 0 };
        let limit = first.map_or(SegmentNumber(0), |segment| segment);
        let limit = if ahead { SegmentNumber((oldest.max(0) as u64 + reach).min(head.0 - 1)) } else { limit };
        self.cleaner.begin_segment(if ahead { share } else { due.min(1.0) }, limit);
    }
}
