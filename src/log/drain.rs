//! Draining: sealed segments go to the store, and slots that nobody needs become free.

use std::ops::Range;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};

use super::limits::{ARCHIVE_NAP, ARCHIVE_RETRY, READ_TRIES, STORE_PATIENCE};
use super::pace::Haste;
use super::trouble::{self, Say};
use super::{ArchiveState, Life, Log, State, scan};
use crate::archive::{ArchiveError, ArchiveJob, Archived, Extent, Packing, archive_segment, damaged_blocks};
use crate::format::{
    ArchiveAt, BLOCK_BYTES, BatchHeader, Offset, SegmentHeader, SegmentNumber, Slot, Summary, Superblock,
};
use crate::io::{Buffer, Device, Platform};

/// A segment that an archiver has taken.
struct Task {
    segment: SegmentNumber,
    slot: Slot,
    memory: Option<Buffer>,
    packing: Packing,
    /// See [`super::Pace::begin`].
    charged: u64,
}

/// What an archiver does next.
enum Next {
    End,
    /// The rate allows nothing for so long.
    Rest(Duration),
    Archive(Task),
}

impl<P: Platform> Log<P> {
    /// Archives one segment after the other, oldest first; as many of these run as the volume was opened with.
    pub(super) async fn archive_segments(self) {
        if self.0.store.is_none() {
            return;
        }
        let mut pause = ARCHIVE_RETRY.0;
        loop {
            let next = self
                .0
                .drain
                .until(|| self.0.state.borrow_mut().next_to_archive(&self.0.volume, || self.0.platform.elapsed()))
                .await;
            let task = match next {
                Next::End => return,
                Next::Rest(wait) => {
                    self.rest(wait, |_| false).await;
                    continue;
                }
                Next::Archive(task) => task,
            };
            let outline = Task { memory: None, ..task };
            let started = self.0.platform.elapsed();
            let result = self.archive(task).await;
            let took = self.0.platform.elapsed().saturating_sub(started);
            let failed = self.archived_whole(&outline, took, result);
            self.recycle();
            if !failed && self.0.state.borrow().waits_for_record(&self.0.volume) {
                // Nobody appends for want of a slot, and the slot wants a header that says it is archived.
                self.record_durable().await;
            }
            if failed {
                self.rest(pause, |state| state.archive.trouble.is_none()).await;
                pause = (pause * 2).min(ARCHIVE_RETRY.1);
            } else {
                pause = ARCHIVE_RETRY.0;
            }
        }
    }

    /// Sleeps for `pause`, or until the log ends or it is `over`.
    pub(super) async fn rest(&self, pause: Duration, over: impl Fn(&State) -> bool) {
        let until = self.0.platform.elapsed() + pause;
        loop {
            let left = until.saturating_sub(self.0.platform.elapsed());
            let awake = left.is_zero() || {
                let state = self.0.state.borrow();
                state.ended() || over(&state)
            };
            if awake {
                return;
            }
            self.0.platform.sleep(left.min(ARCHIVE_NAP)).await;
        }
    }

    async fn archive(&self, task: Task) -> Result<Archived, String> {
        self.agree().await?;
        let volume = &self.0.volume;
        let (image, summary) = match task.memory {
            Some(image) => {
                let summary = scan::summary_in(image.bytes(), volume, task.segment);
                (image, summary.map_err(|error| error.to_string())?)
            }
            None => self.read_image(task.segment, task.slot).await?,
        };
        if summary.segment != task.segment {
            return Err(format!("segment {} is not in its slot any more", task.segment));
        }
        clear_unused(&image, &summary);
        let job = ArchiveJob {
            store: self.0.store.clone().ok_or("no store")?,
            volume: volume.clone(),
            summary: Arc::new(summary),
            extent: Extent::WHOLE,
            image,
            packing: task.packing,
        };
        self.put(move || archive_segment(job)).await
    }

    /// Has the archiver do `put`, and look how full the store is.
    pub(super) async fn put(
        &self,
        put: impl FnOnce() -> Result<Archived, ArchiveError> + Send + 'static,
    ) -> Result<Archived, String> {
        let store = self.0.store.clone().ok_or("no store")?;
        let work = move || (put(), store.fill().ok().flatten());
        let (archived, fill) = self.0.platform.offload(work).await;
        let archive = &mut self.0.state.borrow_mut().archive;
        archive.fill = fill;
        if matches!(archived, Err(ArchiveError::Store(_))) {
            // It may come back as another, or as an older copy of itself.
            archive.doubts += 1;
            archive.agreed = false;
            archive.parts.doubt();
        }
        archived.map_err(|error| error.to_string())
    }

    /// The segment's bytes, read back from the primary and verified, and its summary. What cannot be read now may be readable in a moment, and
    /// is nowhere else: only what stays damaged is archived as it is.
    async fn read_image(&self, segment: SegmentNumber, slot: Slot) -> Result<(Buffer, Summary), String> {
        let volume = &self.0.volume;
        let (mut tries, mut before): (_, Option<(Buffer, Vec<scan::Hole>)>) = (1, None);
        loop {
            let read = scan::image_with_holes(&self.0.device, volume, slot).await;
            let (image, mut holes) = read.map_err(|error| error.to_string())?;
            if let Some((image_before, holes_before)) = before.take() {
                fill_holes(&image, &mut holes, &image_before, &holes_before);
            }
            let summary = scan::summary_in(image.bytes(), volume, segment).map_err(|error| error.to_string())?;
            let damaged = self.mend_image(&image, &summary, slot, &holes).await;
            let end = self.0.state.borrow().end_of(segment);
            let missing = end.map_or(0, |end| end.0.saturating_sub(summary.last_position().0));
            if damaged == 0 && missing == 0 {
                return Ok((image, summary));
            }
            if tries == READ_TRIES {
                log::error!(
                    "segment {segment}: {damaged} blocks and the headers of {missing} positions are damaged on the primary; \
                     archived as they are"
                );
                mend(&image, &summary, volume, slot);
                return Ok((image, summary));
            }
            self.rest(ARCHIVE_RETRY.0 * tries, |_| false).await;
            tries += 1;
            before = Some((image, holes));
        }
    }

    /// How much of `image`, of which `holes` could not be read, stays damaged when it is asked for again: blocks, and headers that could not be
    /// read.
    async fn mend_image(&self, image: &Buffer, summary: &Summary, slot: Slot, holes: &[scan::Hole]) -> usize {
        let damaged = damaged_blocks(image.bytes(), summary, Offset(0));
        let unused = unused(image, summary);
        let is_data = |at: Offset| damaged.binary_search_by_key(&at, |(offset, _)| *offset).is_ok();
        let headers = holes.iter().filter(|hole| !is_data(hole.at) && !unused.contains(&(hole.at.0 as usize))).count();
        headers + self.read_damaged(image, summary.segment, slot, damaged).await
    }

    /// Reads the `damaged` blocks of `image`, which begins with the slot, each by itself, and then from what the store has of the segment: that
    /// may have been put before the primary rotted. How many stay damaged.
    pub(super) async fn read_damaged(
        &self,
        image: &Buffer,
        segment: SegmentNumber,
        slot: Slot,
        damaged: Vec<(Offset, u32)>,
    ) -> usize {
        let part = |offset: Offset| image.part(offset.0 as usize * BLOCK_BYTES, BLOCK_BYTES);
        let mut left = Vec::new();
        for (offset, crc) in damaged {
            let place = self.0.volume.geometry.slot_place(slot).plus(offset.0);
            if !matches!(self.read_again(place, crc, &part(offset)).await, Ok(true)) {
                left.push((offset, crc));
            }
        }
        let count = left.len();
        let found = self.read_unrecorded(segment, left).await;
        found.iter().for_each(|(offset, bytes)| part(*offset).copy_from(0, bytes));
        count - found.len()
    }

    /// Takes the outcome of an archiving; whether it failed.
    fn archived_whole(&self, task: &Task, took: Duration, result: Result<Archived, String>) -> bool {
        let mut state = self.0.state.borrow_mut();
        let State { archive, table, counters, .. } = &mut *state;
        let info = table.get_mut(task.slot);
        info.archiving = false;
        archive.pace.end(task.charged, result.as_ref().ok().map(|archived| archived.object_bytes));
        let failed = result.is_err();
        let outcome = match result {
            Ok(archived) => {
                info.archived = true;
                counters.archived_bytes += archived.object_bytes;
                counters.archived_image_bytes += archived.image_bytes;
                archive.ladder.archived(task.packing, took);
                let average = &mut archive.segment_seconds;
                let took = took.as_secs_f64();
                *average = if *average == 0.0 { took } else { *average * 0.75 + took * 0.25 };
                state.note_archived_through();
                state.drop_buffers(self.0.volume.archive_at);
                Ok(())
            }
            Err(error) => Err(format!("segment {}: {error}", task.segment)),
        };
        drop(state);
        self.note_outcome(task.segment, outcome);
        self.0.parts.notify();
        failed
    }

    /// Notes whether something of `segment` could be archived, and logs what is worth it.
    pub(super) fn note_outcome(&self, segment: SegmentNumber, outcome: Result<(), String>) {
        let (now, wall_ns) = (self.0.platform.elapsed(), self.0.platform.wall_ns());
        let say = {
            let trouble = &mut self.0.state.borrow_mut().archive.trouble;
            match outcome {
                Ok(()) => trouble::succeeded(trouble, segment, now),
                Err(what) => trouble::failed(trouble, segment, what, now, wall_ns),
            }
        };
        self.tell(&say);
    }

    /// Logs how the store is doing.
    fn tell(&self, say: &Say) {
        let name = &self.0.volume.name;
        let queue = self.archive_queue().0;
        let what = self.archive_state(|archive| archive.trouble.as_ref().map(|trouble| trouble.what.clone()));
        let what = what.unwrap_or_default();
        match say {
            Say::Nothing => {}
            Say::Began => log::warn!("{name}: archiving fails and is tried again, {queue} segments wait: {what}"),
            Say::Lasts(since) => {
                log::warn!("{name}: archiving fails since {} s, {queue} segments wait: {what}", since.as_secs());
            }
            Say::Ended(lasted) => {
                log::warn!("{name}: archiving works again after {} s, {queue} segments wait", lasted.as_secs());
            }
        }
    }

    /// Frees the slots of segments that are inactive, archived and read by nobody, once a durable header says that they
    /// are not needed (rule 7). A store that has failed is asked first whether it still has them: when it answers, its word
    /// counts, and while it is away the last that is known.
    pub(super) fn recycle(&self) {
        let asks = {
            let mut state = self.0.state.borrow_mut();
            let doubts = self.0.store.is_some() && !state.archive.agreed && state.has_recyclable(&self.0.volume);
            let now = doubts.then(|| self.0.platform.elapsed());
            match (state.archive.asked, now) {
                (Some(asked), Some(now)) if now.saturating_sub(asked) < STORE_PATIENCE => return,
                (None, Some(now)) => {
                    state.archive.asked = Some(now);
                    true
                }
                _ => false,
            }
        };
        if !asks {
            return self.free_slots();
        }
        let log = self.clone();
        self.0.platform.spawn(async move {
            let mut agree = pin!(log.agree());
            let patience = log.0.platform.sleep(STORE_PATIENCE);
            if let Either::Right(_) = select(agree.as_mut(), pin!(patience)).await {
                log.free_slots();
                let _ = agree.await;
            }
            log.0.state.borrow_mut().archive.asked = None;
            log.free_slots();
        });
    }

    fn free_slots(&self) {
        let slots = {
            let mut state = self.0.state.borrow_mut();
            if state.ended() {
                return;
            }
            if self.0.store.is_none() {
                state.archive_nowhere();
            }
            let Some(through) = state.recyclable_through(&self.0.volume, self.0.store.is_some()) else { return };
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

/// The object is read by the summary in it, so that is written again where it is damaged; the segment's header too, as far as its
/// first batch knows it.
fn mend(image: &Buffer, summary: &Summary, volume: &Superblock, slot: Slot) {
    if scan::stored_in(image.bytes(), volume).is_ok_and(|stored| stored.segment == summary.segment) {
        return;
    }
    let bytes = summary.blocks() as usize * BLOCK_BYTES;
    image.part(image.len() - bytes, bytes).write(|out| summary.encode(volume, out));
    if SegmentHeader::parse(image.bytes(), volume).is_err()
        && let Ok(first) = BatchHeader::parse(&image.bytes()[BLOCK_BYTES..], volume)
    {
        let header = SegmentHeader::of_first_batch(slot, &first.header);
        image.part(0, BLOCK_BYTES).write(|block| header.encode(volume, block));
    }
}

/// What could not be read this time, but could the time before, is as it was then.
fn fill_holes(image: &Buffer, holes: &mut Vec<scan::Hole>, before: &Buffer, holes_before: &[scan::Hole]) {
    holes.retain(|hole| {
        let still = holes_before.iter().any(|other| other.at == hole.at);
        if !still {
            let at = hole.at.0 as usize * BLOCK_BYTES;
            image.copy_from(at, &before.bytes()[at..at + BLOCK_BYTES]);
        }
        still
    });
}

/// The blocks of a slot that hold nothing: behind the last batch, and before the summary.
fn unused(image: &Buffer, summary: &Summary) -> Range<usize> {
    let used = summary.batches.last().map_or(1, |batch| batch.offset().0 + 1 + batch.data_blocks()) as usize;
    used..image.len() / BLOCK_BYTES - summary.blocks() as usize
}

/// Unused places read as zeros in the archive, whatever an older tenant of the slot left there.
fn clear_unused(image: &Buffer, summary: &Summary) {
    let unused = unused(image, summary);
    image.part(unused.start * BLOCK_BYTES, unused.len() * BLOCK_BYTES).zero();
}

impl State {
    /// The oldest segment that may be archived and is not yet, nor with an archiver.
    fn next_to_archive(&mut self, volume: &Superblock, now: impl Fn() -> Duration) -> Option<Next> {
        if self.ended() {
            return Some(Next::End);
        }
        let eager = volume.archive_at == ArchiveAt::Seal;
        let may = |info: &super::SlotInfo| {
            let ready = info.durable && !info.archived && !info.archiving;
            ready && (eager || info.life == Life::Inactive) && info.life != Life::Current
        };
        // The first that may not go yet ends the look: of a working set as few are looked at as that takes.
        let left = self.not_archived_through().take_while(|(_, info)| eager || info.life != Life::Active);
        let mut waiting = left.filter(|(_, info)| may(info)).map(|(segment, _)| segment);
        let next = waiting.next()?;
        let behind = waiting.next().is_some();
        drop(waiting);
        let slot = self.table.slot_of(next)?;
        let now = now();
        let wait = self.archive.pace.wait(now);
        if !wait.is_zero() {
            return Some(Next::Rest(wait));
        }
        let haste = match behind {
            _ if !self.pause(volume, 1).is_zero() => Haste::Slowing,
            true => Haste::Behind,
            false => Haste::None(self.between_seals()),
        };
        let packing = self.archive.ladder.packing(volume.compression, haste);
        self.archive.packing = Some(packing);
        let charged = self.archive.pace.begin(now);
        let info = self.table.get_mut(slot);
        info.archiving = true;
        let memory = info.buffer.clone().filter(|_| !info.damaged);
        Some(Next::Archive(Task { segment: next, slot, memory, packing, charged }))
    }

    /// The time between the last two seals of this opening.
    fn between_seals(&self) -> Option<Duration> {
        let seals = self.table.segments().rev().map(|(_, info)| info.sealed_at);
        let mut seals = seals.filter(|sealed| !sealed.is_zero());
        Some(seals.next()?.saturating_sub(seals.next()?))
    }

    /// Seconds in which the archiver frees a segment when it is busy; 0 when that is not known yet.
    pub(super) fn seconds_a_segment(&self) -> f64 {
        let ArchiveState { segment_seconds, options, pace, .. } = &self.archive;
        (segment_seconds / options.threads.max(1) as f64).max(pace.seconds())
    }

    /// Whether a slot would be free if a durable header said that its segment is archived, and no append will say so
    /// because appends wait for a slot.
    pub(super) fn waits_for_record(&self, volume: &Superblock) -> bool {
        let through = self.unneeded_through(volume).unwrap_or_default().min(self.archive.through);
        let mut stuck = self.table.segments().filter(|(_, info)| info.life == Life::Inactive && info.archived);
        self.table.free_slots() <= 1 && stuck.any(|(segment, _)| self.claims.recorded() < segment && segment <= through)
    }

    /// Forgets the points for which a segment has left the primary: with a store they are in the archive, otherwise gone.
    fn forget_points(&mut self) {
        let Some((_, oldest)) = self.table.restorable_from() else { return };
        let first = oldest.first_position;
        let gone = self.points.partition_point(|mark| mark.point < first.0);
        self.points.drain(..gone);
        self.archive.points += gone as u64;
    }

    /// The segments behind those that are archived without a gap, oldest first.
    pub(super) fn not_archived_through(&self) -> impl Iterator<Item = (SegmentNumber, &super::SlotInfo)> {
        self.table.between(self.archive.through.plus(1), self.head.header.segment)
    }

    fn note_archived_through(&mut self) {
        let first_not = self.not_archived_through().find(|(_, info)| !info.archived).map(|(segment, _)| segment);
        let through = first_not.unwrap_or(self.head.header.segment).before();
        self.archive.through = self.archive.through.max(through);
    }

    /// Without a store "archived" means only that nothing keeps the segment.
    fn archive_nowhere(&mut self) {
        let durable = self.not_archived_through().filter(|(_, info)| info.durable).map(|(segment, _)| segment);
        for segment in durable.collect::<Vec<_>>() {
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

    /// The same, and with a store one that a durable header says is archived, as the next header will.
    fn recyclable_through(&self, volume: &Superblock, store: bool) -> Option<SegmentNumber> {
        let through = self.unneeded_through(volume)?;
        Some(if store { through.min(self.claims.recorded()).min(self.archive.through) } else { through })
    }

    /// Whether slots could be freed, as far as it is known what the store has.
    fn has_recyclable(&self, volume: &Superblock) -> bool {
        let Some(through) = self.recyclable_through(volume, true).filter(|_| !self.ended()) else { return false };
        let mut segments = self.table.segments().take_while(|(segment, _)| *segment <= through);
        segments.any(|(_, info)| info.is_recyclable())
    }
}
