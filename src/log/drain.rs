//! Draining: sealed segments go to the store, and slots that nobody needs become free.

use std::sync::Arc;
use std::time::Duration;

use super::limits::ARCHIVE_RETRY;
use super::{Life, Log, State, scan};
use crate::archive::{ArchiveJob, Archived, Packing, archive_segment};
use crate::format::{ArchiveAt, BLOCK_BYTES, SegmentNumber, Slot, Summary, Superblock, block_crc};
use crate::io::{Buffer, Device, Platform};

/// A segment that an archiver has taken.
struct Task {
    segment: SegmentNumber,
    slot: Slot,
    memory: Option<Buffer>,
    queue: usize,
}

impl<P: Platform> Log<P> {
    /// Archives one segment after the other, oldest first; a few of these run.
    pub(super) async fn archive_segments(self) {
        if self.0.store.is_none() {
            return;
        }
        let mut pause = ARCHIVE_RETRY.0;
        loop {
            let next = self
                .0
                .drain
                .until(|| {
                    let mut state = self.0.state.borrow_mut();
                    if state.ended() { Some(None) } else { state.next_to_archive(&self.0.volume).map(Some) }
                })
                .await;
            let Some(task) = next else { return };
            let (segment, slot) = (task.segment, task.slot);
            let started = self.0.platform.elapsed();
            let result = self.archive(task).await;
            let took = self.0.platform.elapsed().saturating_sub(started);
            let failed = self.archived(segment, slot, took, result);
            self.recycle();
            if !failed && self.0.state.borrow().waits_for_record(&self.0.volume) {
                // Nobody appends for want of a slot, and the slot wants a header that says it is archived.
                self.record_durable().await;
            }
            if failed {
                self.0.platform.sleep(pause).await;
                pause = (pause * 2).min(ARCHIVE_RETRY.1);
            } else {
                pause = ARCHIVE_RETRY.0;
            }
        }
    }

    async fn archive(&self, task: Task) -> Result<Archived, String> {
        let volume = &self.0.volume;
        let image = match task.memory {
            Some(image) => image,
            None => self.read_image(task.slot).await?,
        };
        let summary = scan::summary_in(image.bytes(), volume).map_err(|error| error.to_string())?;
        if summary.segment != task.segment {
            return Err(format!("segment {} is not in its slot any more", task.segment));
        }
        clear_unused(&image, &summary);
        let job = ArchiveJob {
            store: self.0.store.clone().ok_or("no store")?,
            volume: volume.clone(),
            summary: Arc::new(summary),
            image,
            packing: Packing::choose(volume.compression, task.queue),
        };
        self.0.platform.offload(move || archive_segment(job)).await.map_err(|error| error.to_string())
    }

    /// The segment's bytes, read back from the primary and verified.
    async fn read_image(&self, slot: Slot) -> Result<Buffer, String> {
        let volume = &self.0.volume;
        let image = scan::image(&self.0.device, volume, slot).await.map_err(|error| error.to_string())?;
        let summary = scan::summary_in(image.bytes(), volume).map_err(|error| error.to_string())?;
        let damaged = damaged_blocks(image.bytes(), &summary);
        if damaged > 0 {
            log::error!(
                "segment {}: {damaged} blocks are damaged on the primary; archived as they are",
                summary.segment
            );
        }
        Ok(image)
    }

    /// Takes the outcome of an archiving; whether it failed.
    fn archived(&self, segment: SegmentNumber, slot: Slot, took: Duration, result: Result<Archived, String>) -> bool {
        let now = self.0.platform.elapsed();
        let mut state = self.0.state.borrow_mut();
        let archive_at = self.0.volume.archive_at;
        let info = state.table.get_mut(slot);
        info.archiving = false;
        match result {
            Ok(archived) => {
                info.archived = true;
                state.counters.archived_bytes += archived.object_bytes;
                state.counters.archived_image_bytes += archived.image_bytes;
                let average = &mut state.archive.segment_seconds;
                let took = took.as_secs_f64();
                *average = if *average == 0.0 { took } else { *average * 0.75 + took * 0.25 };
                if let Some((_, since)) = state.archive.error.take() {
                    let gone = now.saturating_sub(since).as_secs();
                    log::warn!("{}: the store works again after {gone} s", self.0.volume.name);
                }
                state.note_archived_through();
                state.drop_buffers(archive_at);
                false
            }
            Err(error) => {
                if state.archive.error.as_ref().is_none_or(|(known, _)| *known != error) {
                    log::warn!("{}: segment {segment} cannot be archived, will try again: {error}", self.0.volume.name);
                }
                let since = state.archive.error.as_ref().map_or(now, |(_, since)| *since);
                state.archive.error = Some((error, since));
                true
            }
        }
    }

    /// Frees the slots of segments that are inactive, archived and read by nobody, once a durable header says that they
    /// are not needed (rule 7).
    pub(super) fn recycle(&self) {
        let slots = {
            let mut state = self.0.state.borrow_mut();
            if state.ended() {
                return;
            }
            if self.0.store.is_none() {
                state.archive_nowhere();
            }
            let Some(mut through) = state.unneeded_through(&self.0.volume) else { return };
            if self.0.store.is_some() {
                through = through.min(state.archive.recorded);
            }
            state.table.take_recyclable(through)
        };
        for slot in slots {
            let log = self.clone();
            self.0.platform.spawn(async move {
                let geometry = &log.0.volume.geometry;
                let start = geometry.slot_place(slot).bytes();
                // Best effort: a device that cannot discard keeps old bytes, which no reader takes for new ones.
                let _ = log.0.device.discard(start, geometry.segment_bytes() as u64).await;
                log.0.state.borrow_mut().table.recycle(slot);
                log.0.state.borrow_mut().forget_points();
                log.0.roll.notify();
                log.0.space.notify();
            });
        }
    }

    /// Synch points that can be restored: of those on the primary when the log was opened, and marked since.
    pub fn points(&self) -> u64 {
        let mut state = self.0.state.borrow_mut();
        state.forget_points();
        let archived = if self.0.store.is_some() { state.archive.points } else { 0 };
        archived + state.points.len() as u64
    }

    /// The times of the oldest and the newest batch that can be restored from the primary alone.
    pub fn window(&self) -> Option<(i64, i64)> {
        let state = self.0.state.borrow();
        let (_, oldest) = state.table.restorable_from()?;
        Some((oldest.first_time_ns.min(state.last_time_ns), state.last_time_ns))
    }

    /// Segments that wait for the archiver or are with it, and the age of the oldest.
    pub fn archive_queue(&self) -> (u64, Duration) {
        let now = self.0.platform.elapsed();
        let state = self.0.state.borrow();
        if self.0.store.is_none() {
            return (0, Duration::ZERO);
        }
        let eager = self.0.volume.archive_at == ArchiveAt::Seal;
        let waits = |info: &super::SlotInfo| match info.life {
            Life::Active => eager && !info.archived,
            Life::Inactive => !info.archived,
            _ => false,
        };
        let waiting = state.table.segments().filter(|(_, info)| waits(info));
        let ages = waiting.map(|(_, info)| now.saturating_sub(info.sealed_at));
        ages.fold((0, Duration::ZERO), |(count, oldest), age| (count + 1, oldest.max(age)))
    }

    /// Whether writers are being slowed down now.
    pub fn is_throttling(&self) -> bool {
        self.0.state.borrow().pause(&self.0.volume, 32) > Duration::ZERO
    }

    /// A read of the slot has ended.
    pub fn reader_left(&self, slot: Slot) {
        let leaving = {
            let mut state = self.0.state.borrow_mut();
            let info = state.table.get_mut(slot);
            info.readers -= 1;
            info.readers == 0 && info.life == Life::Inactive
        };
        if leaving {
            self.recycle();
        }
    }
}

/// Unused places read as zeros in the archive, whatever an older tenant of the slot left there.
fn clear_unused(image: &Buffer, summary: &Summary) {
    let used = summary.batches.last().map_or(1, |batch| batch.offset().0 + 1 + batch.data_blocks()) as usize;
    let end = image.len() / BLOCK_BYTES - summary.blocks() as usize;
    if used < end {
        image.part(used * BLOCK_BYTES, (end - used) * BLOCK_BYTES).zero();
    }
}

fn damaged_blocks(image: &[u8], summary: &Summary) -> usize {
    let data = |at: u32| &image[at as usize * BLOCK_BYTES..(at as usize + 1) * BLOCK_BYTES];
    let batches = summary.walk().map(|(_, batch, entries)| {
        let with_data = entries.iter().filter(|entry| entry.kind().is_ok_and(|kind| kind.has_data()));
        let wrong = |(rank, entry): &(usize, &crate::format::Entry)| {
            block_crc(data(batch.offset().0 + 1 + *rank as u32)) != entry.crc()
        };
        with_data.enumerate().filter(wrong).count()
    });
    batches.sum()
}

impl State {
    /// The oldest segment that may be archived and is not yet, nor with an archiver.
    fn next_to_archive(&mut self, volume: &Superblock) -> Option<Task> {
        let eager = volume.archive_at == ArchiveAt::Seal;
        let may = |info: &super::SlotInfo| {
            info.durable && !info.archived && (eager || info.life == Life::Inactive) && info.life != Life::Current
        };
        let waiting: Vec<SegmentNumber> =
            self.table.segments().filter(|(_, info)| may(info)).map(|(segment, _)| segment).collect();
        let next = waiting
            .iter()
            .copied()
            .find(|segment| self.table.slot_of(*segment).is_some_and(|slot| !self.table.get(slot).archiving))?;
        let slot = self.table.slot_of(next)?;
        let info = self.table.get_mut(slot);
        info.archiving = true;
        Some(Task { segment: next, slot, memory: info.buffer.clone(), queue: waiting.len() })
    }

    /// Whether a slot would be free if a durable header said that its segment is archived, and no append will say so
    /// because appends wait for a slot.
    pub(super) fn waits_for_record(&self, volume: &Superblock) -> bool {
        let through = self.unneeded_through(volume).unwrap_or_default().min(self.archive.through);
        let mut stuck = self.table.segments().filter(|(_, info)| info.life == Life::Inactive && info.archived);
        self.table.free_slots() <= 1 && stuck.any(|(segment, _)| self.archive.recorded < segment && segment <= through)
    }

    /// Forgets the points for which a segment has left the primary: with a store they are in the archive, otherwise gone.
    fn forget_points(&mut self) {
        let Some((_, oldest)) = self.table.restorable_from() else { return };
        let first = oldest.first_position;
        let gone = self.points.partition_point(|mark| mark.point < first.0);
        self.points.drain(..gone);
        self.archive.points += gone as u64;
    }

    fn note_archived_through(&mut self) {
        let first_not = self.table.segments().find(|(_, info)| !info.archived).map(|(segment, _)| segment);
        let through = first_not.map_or(self.head.header.segment, |segment| segment).0.saturating_sub(1);
        self.archive.through = self.archive.through.max(SegmentNumber(through));
    }

    /// Without a store "archived" means only that nothing keeps the segment.
    fn archive_nowhere(&mut self) {
        let durable: Vec<SegmentNumber> =
            self.table.segments().filter(|(_, info)| info.durable).map(|(segment, _)| segment).collect();
        for segment in durable {
            if let Some(slot) = self.table.slot_of(segment) {
                self.table.get_mut(slot).archived = true;
            }
        }
        self.note_archived_through();
    }

    /// The newest segment that no durable header needs: segment t is needed until the first batch of t + W + 1 is
    /// durable, whose header says so.
    fn unneeded_through(&self, volume: &Superblock) -> Option<SegmentNumber> {
        let head = self.head.header.segment.0;
        let begun = if self.durable >= self.head.header.first_position { head } else { head - 1 };
        begun.checked_sub(u64::from(volume.geometry.working_set) + 1).filter(|number| *number > 0).map(SegmentNumber)
    }
}
