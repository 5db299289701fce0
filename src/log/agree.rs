//! Whether archive and primary are of one past (rule 10): the newest that is archived must be on the primary, or older than
//! everything there. And whether the archive still has what was put into it: a store that was away may come back as an older
//! copy of itself, and then what it lacks is archived again while the primary has it (rule 7).
//!
//! Asked before the log is opened, and before anything is put into a store that was away then or has failed since.

use std::collections::BTreeSet;
use std::sync::Arc;

use super::scan::{self, ScanError};
use super::tail::Tail;
use super::{Life, Log, State};
use crate::archive::{
    ArchiveError, ArchivedSegment, Lineage, ObjectName, Pins, Store, is_unreadable, one_past, one_piece_from,
};
use crate::format::{
    BLOCK_BYTES, BatchHeader, BatchRecord, Checksum, Position, SegmentNumber, Slot, Summary, Superblock,
};
use crate::io::{Device, Platform};

/// The two ends of an archive.
#[derive(Debug, Clone, Copy)]
pub struct ArchiveEnds {
    /// The newest position that is archived, its segment, and the checksum of its batch header.
    pub segment: SegmentNumber,
    pub position: Position,
    pub checksum: Checksum,
    /// Time of the oldest position that the archive can restore; the end of time when there is none.
    pub from_ns: i64,
}

/// The segments of which the archive has a whole object.
#[derive(Debug, Clone, Default)]
pub struct WholeSegments {
    there: BTreeSet<SegmentNumber>,
    /// From here on none was expired or pruned.
    kept_from: SegmentNumber,
    /// Segments that pins keep before.
    pinned: BTreeSet<SegmentNumber>,
}

impl WholeSegments {
    /// Those of `names`, which the archive has, parts included.
    fn new(names: &[ObjectName], pins: &Pins, working_set: u32) -> Self {
        let there = names.iter().filter(|name| name.part == 0).map(|name| name.segment).collect();
        let kept_from = pins.kept_from(&names.iter().map(|name| name.segment).collect(), working_set);
        let windows = pins.records.iter().flat_map(|(_, record)| record.oldest_needed.0..=record.segment.0);
        Self { there, kept_from, pinned: windows.map(SegmentNumber).collect() }
    }

    /// Whether `segment`, which was archived, should be here and is not. A ring expires its oldest objects, and pruning removes
    /// them, but none of the working set's, to which `needed` segments belong, and none that is pinned.
    pub(super) fn lacks(&self, segment: SegmentNumber, needed: bool) -> bool {
        let may_have_gone = segment < self.kept_from && !self.pinned.contains(&segment);
        !self.there.contains(&segment) && (needed || !may_have_gone)
    }

    /// How many segments before `oldest` that were archived are not here, those that were expired or pruned left out.
    fn lost_before(&self, oldest: SegmentNumber) -> u64 {
        let first = self.kept_from.min(oldest);
        (oldest.0 - first.0).saturating_sub(self.there.range(first..oldest).count() as u64)
    }
}

/// What the archive has.
#[derive(Debug, Clone)]
pub struct ArchiveFound {
    /// None when it is empty.
    pub ends: Option<ArchiveEnds>,
    pub whole: WholeSegments,
}

/// How the archive is of another past than the primary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Disagreement {
    /// It holds positions that the primary has lost.
    Ahead { archived: SegmentNumber, position: Position },
    /// It holds other batches under the same numbers.
    Differs { segment: SegmentNumber },
}

/// Reads what the volume's archive has. May block.
///
/// What is damaged is nobody's past: the archiver puts it again, and what it held is judged by what came before.
///
/// # Errors
/// When the store fails, or holds something there that another salvol made.
pub fn look_at_archive(store: &Arc<dyn Store>, volume: &Superblock) -> Result<ArchiveFound, ArchiveError> {
    let given_up = |name: &ObjectName| volume.accepted_loss.is_some_and(|loss| loss.covers(name.segment, name.epoch));
    let names = Lineage::read(store, volume)?.names.into_iter().filter(|name| !given_up(name)).collect();
    let names = one_past(names, None);
    let objects: Vec<ObjectName> = names.iter().filter(|name| name.part == 0).copied().collect();
    let whole = WholeSegments::new(&names, &Pins::read(store, volume)?, volume.geometry.working_set);
    for segment in names.chunk_by(|a, b| a.segment == b.segment).rev() {
        if let Some(last) = newest_of(store, volume, segment)? {
            let summary = last.summary();
            let (segment, position, checksum) = (summary.segment, summary.last_position(), summary.last_checksum);
            let from_ns = restorable_from(store, volume, &objects, one_piece_from(&whole.there, whole.kept_from));
            return Ok(ArchiveFound { ends: Some(ArchiveEnds { segment, position, checksum, from_ns }), whole });
        }
    }
    Ok(ArchiveFound { ends: None, whole })
}

/// What the objects `names` of one segment have of it; none when all of them are damaged.
fn newest_of(
    store: &Arc<dyn Store>,
    volume: &Superblock,
    names: &[ObjectName],
) -> Result<Option<ArchivedSegment>, ArchiveError> {
    let (parts, whole): (Vec<_>, Vec<_>) = names.iter().partition(|name| name.part > 0);
    let open = |name: &ObjectName| ArchivedSegment::open(store, name, Some(volume));
    let is_damaged = |name: &ObjectName, error: &ArchiveError| {
        error.is_damage() || is_unreadable(store, name, error, || open(name).err())
    };
    for name in whole.iter().rev() {
        match open(name) {
            Ok(segment) => return Ok(Some(segment)),
            Err(error) if is_damaged(name, &error) => log::warn!("{}: {error}", volume.name),
            Err(error) => return Err(error),
        }
    }
    let damaged = |name: &&ObjectName| open(name).err().is_some_and(|error| is_damaged(name, &error));
    let parts: Vec<ObjectName> = parts.iter().filter(|name| !damaged(name)).copied().collect();
    if parts.is_empty() {
        return Ok(None);
    }
    match ArchivedSegment::open_parts(store, &parts, Some(volume)) {
        Ok(segment) => Ok(Some(segment)),
        Err(error) if error.is_damage() => {
            log::warn!("{}: {error}", volume.name);
            Ok(None)
        }
        Err(error) => Err(error),
    }
}

/// The time from which on all can be restored from the objects `whole`, which are in one piece behind `from`.
fn restorable_from(store: &Arc<dyn Store>, volume: &Superblock, whole: &[ObjectName], from: SegmentNumber) -> i64 {
    let Some(oldest) = whole.iter().find(|name| name.segment >= from) else { return i64::MAX };
    // W segments before it are needed as well, unless there never were any.
    let needs = if oldest.segment.0 == 1 { 0 } else { u64::from(volume.geometry.working_set) };
    let first = whole.iter().find(|name| name.segment == oldest.segment.plus(needs));
    match first.map(|name| ArchivedSegment::open(store, name, Some(volume))) {
        Some(Ok(segment)) => segment.summary().batches.first().map_or(i64::MAX, BatchRecord::time_ns),
        _ => i64::MAX,
    }
}

/// The last segment of a log: what it holds, and its bytes.
struct Last<'a> {
    summary: &'a Summary,
    image: &'a [u8],
}

impl Last<'_> {
    /// Whether the batch at `position`, which is not behind the last, is another than the one with `checksum`. Of a header
    /// that has rotted the next one knows; when that has rotted as well it is held against nobody.
    fn differs(&self, volume: &Superblock, position: Position, checksum: Checksum) -> bool {
        if position == self.summary.last_position() {
            return checksum != self.summary.last_checksum;
        }
        let rank = position.0.checked_sub(self.summary.first_position.0).map(|rank| rank as usize);
        let Some(rank) = rank.filter(|rank| *rank < self.summary.batches.len()) else { return true };
        let header = |rank: usize| {
            let batch = self.summary.batches.get(rank)?;
            BatchHeader::parse(&self.image[batch.offset().0 as usize * BLOCK_BYTES..], volume).ok()
        };
        let found = header(rank).map(|found| found.checksum);
        found.or_else(|| header(rank + 1).map(|next| next.header.predecessor)).is_some_and(|found| found != checksum)
    }

    /// The verdict as far as this segment can give it; none when the archive ends before.
    fn judge(&self, volume: &Superblock, ends: &ArchiveEnds) -> Option<Result<(), Disagreement>> {
        let ArchiveEnds { segment, position, checksum, .. } = *ends;
        if segment < self.summary.segment {
            return None;
        }
        if segment > self.summary.segment || position > self.summary.last_position() {
            return Some(Err(Disagreement::Ahead { archived: segment, position }));
        }
        let differs = self.differs(volume, position, checksum);
        Some(if differs { Err(Disagreement::Differs { segment }) } else { Ok(()) })
    }
}

/// Whether the log that ends in `tail` agrees with its archive.
pub async fn tail_agrees<D: Device>(
    device: &D,
    volume: &Superblock,
    tail: Option<&Tail>,
    ends: &ArchiveEnds,
) -> Result<(), Disagreement> {
    let Some(tail) = tail else {
        return Err(Disagreement::Ahead { archived: ends.segment, position: ends.position });
    };
    if let Some(verdict) = (Last { summary: &tail.walk.summary, image: tail.image() }).judge(volume, ends) {
        return verdict;
    }
    let slots = tail.found.iter().filter(|found| found.header.segment == ends.segment).map(|found| found.slot);
    sealed_agrees(device, volume, slots.collect(), ends).await
}

/// Whether one of `slots` holds the archive's newest segment; without slots it has left the primary. A slot that cannot be
/// read may hold it: damage is for those to report who need what is there.
async fn sealed_agrees<D: Device>(
    device: &D,
    volume: &Superblock,
    slots: Vec<Slot>,
    ends: &ArchiveEnds,
) -> Result<(), Disagreement> {
    let mut differs = false;
    for slot in slots {
        match holds(device, volume, slot, ends).await {
            Ok(true) => return Ok(()),
            Ok(false) => differs = true,
            Err(error) => {
                log::warn!("{}: cannot compare segment {} with the archive: {error}", volume.name, ends.segment);
                return Ok(());
            }
        }
    }
    if differs { Err(Disagreement::Differs { segment: ends.segment }) } else { Ok(()) }
}

/// Whether the sealed segment in `slot` has the archive's newest batch, which of parts may be one in the middle.
async fn holds<D: Device>(device: &D, volume: &Superblock, slot: Slot, ends: &ArchiveEnds) -> Result<bool, ScanError> {
    let summary = scan::summary(device, volume, slot, ends.segment).await?;
    if ends.position == summary.last_position() {
        return Ok(summary.last_checksum == ends.checksum);
    }
    if ends.position > summary.last_position() {
        // One that was made again from the headers ends before the first that has rotted.
        let stored = scan::stored_summary(device, volume, slot).await;
        return Ok(!stored.is_ok_and(|stored| stored.segment == ends.segment));
    }
    let image = scan::image(device, volume, slot).await;
    let offset = volume.geometry.slot_place(slot).bytes();
    let image = image.map_err(|source| ScanError::Io { offset, source })?;
    Ok(!Last { summary: &summary, image: image.bytes() }.differs(volume, ends.position, ends.checksum))
}

impl<P: Platform> Log<P> {
    /// Makes sure, once, that a store that was away when the log was opened, or has failed since, is of the same past and has
    /// what was put into it. Until then nothing may be put into it.
    pub(super) async fn agree(&self) -> Result<(), String> {
        let (agreed, doubts, claimed) = {
            let state = self.0.state.borrow();
            // What is archived from here on cannot be missing.
            (state.archive.agreed, state.archive.doubts, state.archived_segments())
        };
        let Some(store) = self.0.store.clone().filter(|_| !agreed) else { return Ok(()) };
        let volume = self.0.volume.clone();
        let look = move || {
            Lineage::refuse_stranger(&store, &volume)?;
            look_at_archive(&store, &volume)
        };
        let look = self.0.platform.offload(look).await;
        let ArchiveFound { ends, whole } = look.map_err(|error| error.to_string())?;
        let agrees = match ends {
            None => Ok(()),
            Some(ends) => self.agrees(&ends).await,
        };
        agrees.map_err(|found| match found {
            Disagreement::Ahead { archived, position } => format!(
                "the archive is ahead of the primary: it holds position {position} in segment {archived}: nothing more is archived; \
                 detach, and attach again to decide"
            ),
            Disagreement::Differs { segment } => format!(
                "segment {segment} in the archive is not the one on the primary: nothing more is archived; detach, and attach \
                 again to decide"
            ),
        })?;
        let mut state = self.0.state.borrow_mut();
        // It may have failed meanwhile.
        state.archive.agreed = state.archive.doubts == doubts;
        let missing: Vec<SegmentNumber> = claimed
            .into_iter()
            .filter(|(segment, needed)| whole.lacks(*segment, *needed))
            .map(|(name, _)| name)
            .collect();
        state.take_back(&missing);
        state.report_missing(&self.0.volume, missing.len(), &whole);
        drop(state);
        self.0.drain.notify();
        Ok(())
    }

    async fn agrees(&self, ends: &ArchiveEnds) -> Result<(), Disagreement> {
        let volume = &self.0.volume;
        let (verdict, slot) = {
            let state = self.0.state.borrow();
            let last = Last { summary: state.head.summary(), image: state.head.buffer().bytes() };
            (last.judge(volume, ends), state.table.slot_of(ends.segment))
        };
        match verdict {
            Some(verdict) => verdict,
            None => sealed_agrees(&self.0.device, volume, slot.into_iter().collect(), ends).await,
        }
    }
}

impl State {
    /// The segments on the primary that are archived, and whether the working set needs them.
    fn archived_segments(&self) -> Vec<(SegmentNumber, bool)> {
        let archived = self.table.segments().filter(|(_, info)| info.archived && !info.archiving);
        archived.map(|(segment, info)| (segment, info.life == Life::Active)).collect()
    }

    /// `segments`, which ascend, were archived and are not in the store any more: those that the primary still has are to be
    /// archived again, and until then none of their slots is reused.
    fn take_back(&mut self, segments: &[SegmentNumber]) {
        let mut first = None;
        for segment in segments {
            let Some(slot) = self.table.slot_of(*segment) else { continue };
            let info = self.table.get_mut(slot);
            if matches!(info.life, Life::Active | Life::Inactive) {
                info.archived = false;
                first = first.or(Some(*segment));
            }
        }
        let Some(first) = first else { return };
        let archive = &mut self.archive;
        archive.through = archive.through.min(first.before());
        archive.parts.go_back(archive.through);
    }

    /// Logs what the store lacks: so many segments that are archived again, and those that nobody has any more.
    pub(super) fn report_missing(&self, volume: &Superblock, again: usize, whole: &WholeSegments) {
        let name = &volume.name;
        if again > 0 {
            log::warn!(
                "{name}: {again} segments that were archived are not in the store: is it an older copy? They are archived again \
                 from the primary"
            );
        }
        let oldest = self.table.segments().next().map_or(self.head.header.segment, |(segment, _)| segment);
        let lost = whole.lost_before(oldest.min(self.archive.through.plus(1)));
        if lost > 0 {
            log::error!(
                "{name}: {lost} segments that were archived are not in the store, nor on the primary any more: what needs them \
                 cannot be restored from this store"
            );
        }
    }
}
