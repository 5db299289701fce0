//! Parts: what is durable of the segment that is still open goes to the store at every synch point, and at least once an
//! interval while there are changes. So losing the primary loses seconds, not a segment.
//!
//! A part is a run of whole batches, taken from the segment's memory, all of them durable on the primary: the archive never
//! runs ahead. Parts follow each other; when they have become many, one more holds all that they hold and they are deleted.
//! When the segment has been sealed it is archived whole, and then its parts are deleted. While earlier segments still
//! wait for the store there are no parts: they would be of no use.

use std::collections::BTreeSet;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};

use super::limits::{ARCHIVE_RETRY, PARTS_MAX};
use super::pace::at_once;
use super::{Head, Log, LogError, State};
use crate::archive::{
    ArchiveError, ArchiveJob, Archived, ArchivedSegment, Extent, Lineage, ObjectName, Packing, Store, StoreError,
    archive_segment, audit_object, damaged_blocks, is_unreadable,
};
use crate::format::{
    ArchiveAt, BLOCK_BYTES, BatchHeader, BatchRecord, Checksum, Offset, Position, SegmentNumber, Summary, Superblock,
};
use crate::io::{Buffer, Platform};

/// The parts of the current segment that are in the store.
#[derive(Debug, Default)]
pub(crate) struct Parts {
    /// Whether the store has been asked what an earlier opening left there.
    known: bool,
    /// In their order, each where the one before ends.
    names: Vec<ObjectName>,
    /// The last batch in them; 0 without parts.
    through: Position,
    /// The number of the next one.
    next: u32,
    /// Something up to here should be archived at once.
    wanted: Position,
    /// Parts of segments that are sealed: to be deleted when those are archived whole.
    superseded: BTreeSet<ObjectName>,
    /// Parts that something else in the store stands for: to be deleted.
    obsolete: BTreeSet<ObjectName>,
    /// After deleting has failed: when it is tried again, and how long to wait after the next failure.
    delete_again: Option<(Duration, Duration)>,
    /// How far the parts of the segment sealed last go: they are good for that until they are deleted.
    sealed: Option<Sealed>,
}

/// A sealed segment, and what is in the store of it.
#[derive(Debug, Clone, Copy)]
struct Sealed {
    segment: SegmentNumber,
    through: Position,
    /// Time of its first change that is in no part.
    since: Option<i64>,
}

impl Parts {
    /// The segment in `head` is being sealed, the next one begins.
    pub(super) fn roll(&mut self, head: &Head) {
        let (segment, through) = (head.header.segment, self.through);
        // Of an older segment that is not archived yet nothing is known to be in parts.
        self.sealed = (through > Position(0))
            .then(|| Sealed { segment, through, since: head.first_change_after(through) })
            .or(self.sealed);
        self.superseded.extend(self.names.drain(..));
        (self.through, self.next) = (Position(0), 0);
    }

    /// What the store has of parts has to be asked again.
    pub(super) fn doubt(&mut self) {
        self.known = false;
    }

    /// Only segments up to `through` are archived whole: the parts of later ones are not to be deleted yet, and what was
    /// known of them is not any more.
    pub(super) fn go_back(&mut self, through: SegmentNumber) {
        let obsolete = std::mem::take(&mut self.obsolete);
        self.superseded.extend(obsolete.iter().filter(|name| name.segment > through));
        self.obsolete = obsolete.into_iter().filter(|name| name.segment <= through).collect();
        self.sealed = None;
        self.known = false;
    }

    /// Every segment up to `through` is archived whole, and stands for its parts.
    fn release(&mut self, through: SegmentNumber) {
        let (gone, kept): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.superseded).into_iter().partition(|name| name.segment <= through);
        self.obsolete.extend(gone);
        self.superseded = kept.into_iter().collect();
    }

    /// Whether there is something to delete, and it is time to.
    fn may_delete(&self, now: Duration) -> bool {
        !self.obsolete.is_empty() && self.delete_again.is_none_or(|(at, _)| at <= now)
    }

    /// When a delete that failed is tried again, if it still has to be.
    fn next_delete(&self) -> Option<Duration> {
        self.delete_again.filter(|_| !self.obsolete.is_empty()).map(|(at, _)| at)
    }
}

/// The number under which it is noted that parts cannot be deleted: no segment's, since it keeps none from being archived.
const DELETING: SegmentNumber = SegmentNumber(0);

/// A part that is to be archived.
struct Cut {
    summary: Summary,
    extent: Extent,
    /// The run of blocks, in the segment's memory.
    run: Buffer,
    /// It holds what all the other parts hold.
    merges: bool,
}

/// What there is to do.
enum Due {
    Part,
    Delete,
    End,
}

/// What an earlier opening left in the store.
struct Left {
    /// Parts of older segments.
    older: Vec<ObjectName>,
    /// The chain of the current segment's, and where it ends.
    chain: Vec<ObjectName>,
    end: Option<(Position, Checksum)>,
    /// Parts of it that are not in the chain: damaged, or held by one that merged them.
    others: Vec<ObjectName>,
}

impl<P: Platform> Log<P> {
    /// Archives parts until the log ends.
    pub(super) async fn archive_parts(self) {
        let Some(interval) = self.archive_interval().filter(|_| self.archives_parts()) else { return };
        let elapsed = || self.0.platform.elapsed();
        let (mut next, mut pause) = (elapsed() + interval, ARCHIVE_RETRY.0);
        loop {
            let again = self.0.state.borrow().archive.parts.next_delete().map_or(next, |at| at.min(next));
            let rest = self.0.platform.sleep(again.saturating_sub(elapsed()));
            let (due, asked) = match select(pin!(self.0.parts.until(|| self.due())), pin!(rest)).await {
                Either::Left((due, _)) => (due, true),
                Either::Right(_) if elapsed() < next => continue,
                Either::Right(_) => (Due::Part, false),
            };
            let done = match due {
                Due::End => return,
                Due::Delete => {
                    self.delete_obsolete().await;
                    continue;
                }
                Due::Part => {
                    next = elapsed() + interval;
                    self.archive_part().await
                }
            };
            match done {
                Ok(progress) => {
                    self.note_outcome(self.current_segment(), Ok(()));
                    pause = ARCHIVE_RETRY.0;
                    if asked && !progress {
                        // Who looked again at once would never let go of the thread.
                        self.rest(pause, |_| false).await;
                    }
                }
                Err(error) => {
                    // What was put may be there all the same: its name is taken.
                    self.0.state.borrow_mut().archive.parts.doubt();
                    let what = format!("the open segment: {error}");
                    self.note_outcome(self.current_segment(), Err(what));
                    // Those who wait look whether anybody still wants to know.
                    self.0.parts.notify();
                    self.rest(pause, |_| false).await;
                    pause = (pause * 2).min(ARCHIVE_RETRY.1);
                    next = elapsed();
                }
            }
        }
    }

    /// Whether the volume archives as soon as it can: parts of the newest segment are of no use without all that is older.
    pub(super) fn archives_parts(&self) -> bool {
        self.0.store.is_some() && self.0.volume.archive_at == ArchiveAt::Seal
    }

    fn due(&self) -> Option<Due> {
        let mut state = self.0.state.borrow_mut();
        if state.ended() {
            return Some(Due::End);
        }
        let through = state.archive.through;
        let parts = &mut state.archive.parts;
        parts.release(through);
        if parts.may_delete(self.0.platform.elapsed()) {
            return Some(Due::Delete);
        }
        let wanted = parts.wanted;
        let ready = wanted <= state.durable && state.may_archive_part() && state.archived_position() < wanted;
        ready.then_some(Due::Part)
    }

    /// Archives what is durable of the current segment and not archived yet, if there is anything that anybody would miss.
    /// Says whether it did.
    async fn archive_part(&self) -> Result<bool, String> {
        let (due, flush) = {
            let state = self.0.state.borrow();
            let asks = !state.archive.parts.known && state.archive.parts.through > Position(0);
            let due = state.may_archive_part() && (asks || state.archived_position() < state.changed);
            (due, state.durable < state.changed)
        };
        if !due || flush && self.flush().await.is_err() {
            return Ok(false);
        }
        self.agree().await?;
        self.know_parts().await?;
        if self.0.state.borrow().wants_epoch(&self.0.volume) {
            self.record_durable().await;
        }
        let Some(cut) = self.0.state.borrow().cut(&self.0.volume) else { return Ok(false) };
        let last = cut.summary.last_position();
        let merged = cut.merges;
        if merged {
            self.mend(&cut).await;
        }
        let (store, volume) = (self.0.store.clone().ok_or("no store")?, self.0.volume.clone());
        // What matters is to have it there soon.
        let packing = at_once(volume.compression);
        let archived = self.put(move || archive_cut(store, volume, cut, packing)).await?;
        {
            let mut state = self.0.state.borrow_mut();
            state.archive.pace.owe(self.0.platform.elapsed(), archived.object_bytes);
            state.counters.archived_bytes += archived.object_bytes;
            state.counters.archived_image_bytes += archived.image_bytes;
            state.take_part(archived.name, last, merged);
        }
        self.0.parts.notify();
        // The store works: what it did not delete before it may delete now.
        self.delete_obsolete().await;
        Ok(true)
    }

    /// The segment's memory may lack what an opening could not read, and the parts that this one takes the place of have it.
    async fn mend(&self, cut: &Cut) {
        let (segment, slot, damaged) = {
            let state = self.0.state.borrow();
            (state.head.header.segment, state.head.slot, state.table.get(state.head.slot).damaged)
        };
        if segment == cut.summary.segment && damaged {
            let damaged = damaged_blocks(cut.run.bytes(), &cut.summary, cut.extent.first);
            self.read_damaged(&cut.run, segment, slot, damaged).await;
        }
    }

    /// Deletes parts that something else stands for; those of an ancestor stay. When that fails it is tried again later, at
    /// a pace of its own: they do no harm but take up room, and parts to come must not wait for it.
    async fn delete_obsolete(&self) {
        let history = self.0.volume.history;
        let names = {
            let parts = &mut self.0.state.borrow_mut().archive.parts;
            parts.obsolete.retain(|name| name.history == history);
            parts.obsolete.clone()
        };
        let Some(store) = self.0.store.clone().filter(|_| !names.is_empty()) else { return };
        let deleting = names.clone();
        let deleted = self.0.platform.offload(move || deleting.iter().try_for_each(|name| store.delete(name))).await;
        let now = self.0.platform.elapsed();
        let outcome = {
            let parts = &mut self.0.state.borrow_mut().archive.parts;
            match deleted {
                Ok(()) => {
                    parts.obsolete.retain(|name| !names.contains(name));
                    parts.delete_again = None;
                    Ok(())
                }
                Err(error) => {
                    let pause = parts.delete_again.map_or(ARCHIVE_RETRY.0, |(_, pause)| pause);
                    parts.delete_again = Some((now + pause, (pause * 2).min(ARCHIVE_RETRY.1)));
                    Err(format!("parts that are not needed any more stay: {error}"))
                }
            }
        };
        self.note_outcome(DELETING, outcome);
    }

    /// Asks the store, once, which parts an earlier opening left.
    async fn know_parts(&self) -> Result<(), String> {
        if self.0.state.borrow().archive.parts.known {
            return Ok(());
        }
        let current = self.current_segment();
        let (store, volume) = (self.0.store.clone().ok_or("no store")?, self.0.volume.clone());
        let left = self.0.platform.offload(move || left_in(&store, &volume, current)).await;
        let left = left.map_err(|error| error.to_string())?;
        self.0.state.borrow_mut().adopt_parts(left, current)
    }

    /// Every position up to which the archive alone can restore the volume, as far as this opening knows.
    pub fn archived_position(&self) -> Position {
        self.0.state.borrow().safe_position()
    }

    /// Asks for everything up to `position`, which is durable, to be archived at once.
    pub fn want_archived(&self, position: Position) {
        let mut state = self.0.state.borrow_mut();
        state.archive.parts.wanted = state.archive.parts.wanted.max(position);
        drop(state);
        self.0.parts.notify();
    }

    /// Waits until everything up to `position` is safe in the store, for as long as somebody still `wants` to know.
    ///
    /// # Errors
    /// When the log ends before, or nobody wants to know any more.
    pub async fn archived(&self, position: Position, wants: impl Fn() -> bool) -> Result<(), LogError> {
        self.want_archived(position);
        self.0
            .parts
            .until(|| {
                let state = self.0.state.borrow();
                if state.archived_position() >= position {
                    return Some(Ok(()));
                }
                let ended = state.check().err();
                ended.or_else(|| (!wants()).then_some(LogError::Closing)).map(Err)
            })
            .await
    }

    /// How long the oldest change that is not archived has been there: what losing the primary now would lose.
    pub fn exposed(&self) -> Duration {
        let now = self.0.platform.wall_ns();
        let since = self.0.state.borrow().exposed_since().filter(|_| self.0.store.is_some());
        since
            .map_or(Duration::ZERO, |since| Duration::from_nanos(u64::try_from(now.saturating_sub(since)).unwrap_or(0)))
    }
}

/// Packs, puts, reads back and compares a part.
fn archive_cut(
    store: Arc<dyn Store>,
    volume: Superblock,
    cut: Cut,
    packing: Packing,
) -> Result<Archived, ArchiveError> {
    let Cut { summary, extent, run, .. } = cut;
    let summary_bytes = summary.blocks() as usize * BLOCK_BYTES;
    let image = Buffer::new(run.len() + summary_bytes).map_err(ArchiveError::Memory)?;
    image.copy_from(0, run.bytes());
    image.part(run.len(), summary_bytes).write(|out| summary.encode(&volume, out));
    archive_segment(ArchiveJob { store, volume, summary: Arc::new(summary), extent, image, packing })
}

/// The parts in the store that are of the volume's past, while `current` is its current segment.
fn left_in(store: &Arc<dyn Store>, volume: &Superblock, current: SegmentNumber) -> Result<Left, ArchiveError> {
    let given_up = |name: &ObjectName| volume.accepted_loss.is_some_and(|loss| loss.covers(name.segment, name.epoch));
    let names = Lineage::read(store, volume)?.names.into_iter();
    let parts = names.filter(|name| name.part > 0 && name.segment <= current && !given_up(name));
    let (mut others, mut older): (Vec<_>, Vec<_>) = parts.partition(|name| name.segment == current);
    // An ancestor's stay: they are its end.
    older.retain(|name| name.history == volume.history);
    let mut left = Left { older, chain: Vec::new(), end: None, others: Vec::new() };
    let mut whole = Vec::new();
    for name in &others {
        if is_whole(store, volume, name)? {
            whole.push(*name);
        }
    }
    match ArchivedSegment::open_parts(store, &whole, Some(volume)) {
        Ok(segment) => {
            let summary = segment.summary();
            left.end = Some((summary.last_position(), summary.last_checksum));
            left.chain = segment.names();
        }
        Err(ArchiveError::Object { .. }) => {}
        Err(error) => return Err(error),
    }
    others.retain(|name| name.history == volume.history && !left.chain.contains(name));
    left.others = others;
    Ok(left)
}

/// Whether every byte of a part comes back. One that was put and never read back may be anything.
fn is_whole(store: &Arc<dyn Store>, volume: &Superblock, name: &ObjectName) -> Result<bool, ArchiveError> {
    let read = || match audit_object(store, name, volume, &mut Vec::new()) {
        Ok(audit) => audit.bad.into_iter().next().map(|bad| bad.error),
        Err(error) => Some(error),
    };
    let Some(error) = read() else { return Ok(true) };
    let unreadable = is_unreadable(store, name, &error, read);
    match error {
        error if unreadable || matches!(error, ArchiveError::Object { .. }) => {
            log::warn!("{}: {error}; what it held is put again", volume.name);
            if (unreadable || error.is_damage()) && name.history == volume.history {
                // A reader might take it for what other parts have whole.
                store.delete(name)?;
            }
            Ok(false)
        }
        ArchiveError::Store(StoreError::Missing { .. }) => Ok(false),
        error => Err(error),
    }
}

impl State {
    /// Parts are of use when everything older is archived.
    fn may_archive_part(&self) -> bool {
        self.archive.through.plus(1) == self.head.header.segment
    }

    /// The last position up to which everything is archived.
    fn archived_position(&self) -> Position {
        let next = self.archive.through.plus(1);
        if next == self.head.header.segment {
            return self.archive.parts.through.max(self.head.header.first_position.previous());
        }
        self.table.slot_of(next).map_or(Position(0), |slot| self.table.get(slot).first_position.previous())
    }

    /// The same, with what parts of a sealed segment are good for until it is archived whole. Who waits waits for that, so
    /// that a volume that ends leaves no parts of it.
    fn safe_position(&self) -> Position {
        let next = self.archive.through.plus(1);
        let sealed = self.archive.parts.sealed.filter(|sealed| sealed.segment == next);
        sealed.map_or(Position(0), |sealed| sealed.through).max(self.archived_position())
    }

    /// Time of the oldest change that is not archived.
    fn exposed_since(&self) -> Option<i64> {
        let archived = self.safe_position();
        if self.changed <= archived {
            return None;
        }
        if !self.may_archive_part() {
            let next = self.archive.through.plus(1);
            let sealed = self.archive.parts.sealed.filter(|sealed| sealed.segment == next);
            let segment = match sealed {
                Some(Sealed { since: Some(since), .. }) => return Some(since),
                Some(_) if next.plus(1) == self.head.header.segment => return self.head.first_change_after(archived),
                Some(_) => next.plus(1),
                None => next,
            };
            return Some(self.table.get(self.table.slot_of(segment)?).first_time_ns);
        }
        self.head.first_change_after(archived)
    }

    /// The checksums in the header of the current segment's batch of that rank: its predecessor's and its own.
    fn chain_at(&self, batch: &BatchRecord) -> (Checksum, Checksum) {
        let at = batch.offset().0 as usize * BLOCK_BYTES;
        BatchHeader::chain_in(self.head.buffer().part(at, BLOCK_BYTES).bytes())
    }

    /// The last durable change, when it is not archived.
    fn change_to_archive(&self) -> Option<Position> {
        let last = self.head.last_change_until(self.durable).filter(|last| *last > self.archived_position());
        last.filter(|_| self.may_archive_part())
    }

    /// Whether a part that ends at `position` would be taken for one of a past that was given up.
    fn would_be_given_up(&self, volume: &Superblock, position: Position) -> bool {
        let summary = self.head.summary();
        let batch = &summary.batches[(position.0 - summary.first_position.0) as usize];
        volume.accepted_loss.is_some_and(|loss| loss.covers(summary.segment, batch.epoch()))
    }

    /// Where the next part ends: with a change; when that is of an epoch that was given up, with a later batch that is not.
    fn part_end(&self, volume: &Superblock) -> Option<Position> {
        let change = self.change_to_archive()?;
        if !self.would_be_given_up(volume, change) {
            return Some(change);
        }
        self.head.last_settled_until(self.durable).filter(|last| !self.would_be_given_up(volume, *last))
    }

    /// Whether there is a change to archive, and no batch behind it that could end its part: then a noop has to.
    fn wants_epoch(&self, volume: &Superblock) -> bool {
        self.change_to_archive().is_some() && self.part_end(volume).is_none()
    }

    /// The next part: from the end of the last one to [`Self::part_end`]; none when there is no change.
    fn cut(&self, volume: &Superblock) -> Option<Cut> {
        let last = self.part_end(volume)?;
        let (summary, parts) = (self.head.summary(), &self.archive.parts);
        let rank = |position: Position| (position.0 - summary.first_position.0) as usize;
        let merges = parts.names.len() >= PARTS_MAX;
        let from = if merges || parts.names.is_empty() { 0 } else { rank(parts.through.next()) };
        let ranks = from..rank(last) + 1;
        let (first, end) = (&summary.batches[ranks.start], &summary.batches[ranks.end - 1]);
        let summary = summary.part(ranks.clone(), self.chain_at(first).0, self.chain_at(end).1);
        // The segment header goes with the first batch.
        let first = if ranks.start == 0 { Offset(0) } else { first.offset() };
        let blocks = end.offset().0 + 1 + end.data_blocks() - first.0;
        let run = self.head.buffer().part(first.0 as usize * BLOCK_BYTES, blocks as usize * BLOCK_BYTES);
        Some(Cut { summary, extent: Extent { part: parts.next + 1, first }, run, merges })
    }

    /// A part has been archived.
    fn take_part(&mut self, name: ObjectName, last: Position, merges: bool) {
        let current = self.head.header.segment;
        let parts = &mut self.archive.parts;
        if name.segment != current {
            // Sealed meanwhile.
            parts.superseded.insert(name);
            return;
        }
        if merges {
            parts.obsolete.extend(parts.names.drain(..));
        }
        parts.names.push(name);
        (parts.through, parts.next) = (last, name.part);
    }

    /// Goes on with the parts that an earlier opening left when `current` was the current segment.
    fn adopt_parts(&mut self, left: Left, current: SegmentNumber) -> Result<(), String> {
        if self.head.header.segment != current {
            // Sealed meanwhile: the segment goes to the store whole.
            let Left { older, chain, others, .. } = left;
            self.archive.parts.superseded.extend([older, chain, others].concat());
            self.archive.parts.known = true;
            return Ok(());
        }
        // Without a chain nothing of the segment is archived, whatever was put: the store was exchanged, or lost it.
        let mut through = Position(0);
        if let Some((position, checksum)) = left.end {
            let rank = position.0.checked_sub(self.head.header.first_position.0);
            let batch = rank.and_then(|rank| self.head.summary().batches.get(rank as usize));
            if batch.is_none_or(|batch| self.chain_at(batch).1 != checksum) {
                return Err(format!("the archive has parts of segment {current} that are not on the primary"));
            }
            through = position;
        }
        self.archive.parts.through = through;
        // The store may be an older copy of itself, in which they stand for themselves.
        self.archive.parts.obsolete.retain(|name| !left.chain.contains(name));
        self.archive.parts.superseded.retain(|name| !left.chain.contains(name));
        let numbers = left.chain.iter().chain(&left.others).map(|name| name.part);
        self.archive.parts.next = numbers.max().unwrap_or(0);
        self.archive.parts.names = left.chain;
        self.archive.parts.superseded.extend([left.older, left.others].concat());
        self.archive.parts.known = true;
        Ok(())
    }
}
