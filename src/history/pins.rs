//! Pins: synch points that stay when what is around them is pruned, or expired by a ring that is full.
//!
//! A pin is made in this order: the point is looked for, the record is put, and the point is looked for again. Whoever removes
//! segments meanwhile has either seen the record, or has removed what the second look misses; then there is no pin.
//!
//! A pin goes the other way round: first the segments that only it keeps, the oldest first, then the record. What is
//! interrupted midway is gone on with by the same command.

use std::collections::BTreeSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::point::PointInfo;
use super::prune::under_way;
use super::text::{parse_time, rfc3339};
use super::{HistoryError, Moment, Source, index_at};
use crate::archive::{
    ArchiveError, Lineage, ObjectError, ObjectName, PinRecord, Pins, Store, StoreError, one_piece_from,
};
use crate::format::{FormatError, Position, SegmentNumber, Superblock};

/// How often a name that was free turns out to be taken before that is given up.
const NAMES: usize = 16;

/// Says from which segment on somebody reads the past, as [`Lease`](crate::archive::Lease) does.
pub type Leased<'a> = dyn Fn() -> Option<SegmentNumber> + 'a;

/// What came of a pin.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct Pinned {
    pub id: String,
    pub label: String,
    /// RFC 3339.
    pub time: String,
    pub position: u64,
    /// Segments that stay for it.
    pub segments: u64,
    /// Whether it had been pinned before.
    pub already: bool,
}

/// What came of an unpin.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct Unpinned {
    /// The point, or the name of a record that was damaged.
    pub id: String,
    /// What was removed since nothing else needs it.
    pub segments: u64,
    pub objects: u64,
    pub bytes: u64,
}

impl Source {
    /// The store, or why there is none.
    pub(super) fn archive(&self) -> Result<&Arc<dyn Store>, HistoryError> {
        if self.volume().backing == "none" {
            return Err(HistoryError::NoArchive { name: self.volume().name.clone() });
        }
        super::verify::reachable(self)?;
        self.store.as_ref().ok_or_else(|| HistoryError::NoArchive { name: self.volume().name.clone() })
    }

    /// What is pinned of the volume's past.
    pub(super) fn pins(&self) -> Result<Pins, HistoryError> {
        let read = self.store.as_ref().map(|store| Pins::read(store, self.volume()));
        read.unwrap_or_else(|| Ok(Pins::default())).map_err(|error| match error {
            ArchiveError::Store(error) => error.into(),
            other => other.into(),
        })
    }

    /// Says of each point whether it is pinned.
    pub(super) fn mark_pinned(&self, points: &mut [PointInfo]) -> Result<(), HistoryError> {
        let pins = self.pins()?;
        for (name, error) in &pins.damaged {
            log::warn!("what the pin {name} keeps is not known: {error}");
        }
        for point in points {
            let time_ns = parse_time(&point.time).unwrap_or_default();
            point.pinned = pins.of(Position(point.position), time_ns).is_some();
        }
        Ok(())
    }

    /// What has gone on purpose. Without an archive nothing does.
    pub(super) fn let_go(&self) -> Result<LetGo, HistoryError> {
        let pins = self.pins()?;
        let kept_from = pins.kept_from(&self.archived_segments(), self.volume().geometry.working_set);
        Ok(LetGo { pins, kept_from })
    }

    /// Every segment of which the archive has something.
    pub(super) fn archived_segments(&self) -> BTreeSet<SegmentNumber> {
        self.numbers().into_iter().filter(|segment| !self.archived(*segment).is_empty()).collect()
    }
}

/// What of a past has gone on purpose.
pub(super) struct LetGo {
    pins: Pins,
    /// From here on nothing has.
    kept_from: SegmentNumber,
}

impl LetGo {
    /// Whether `segment`, which is not there, has been pruned or expired: it is older than what is kept in one piece, and no
    /// pin keeps it.
    pub(super) fn has(&self, segment: SegmentNumber) -> bool {
        segment < self.kept_from && !self.pins.keep(segment)
    }

    /// The segments that pins need.
    pub(super) fn pinned(&self) -> impl Iterator<Item = SegmentNumber> {
        self.pins.records.iter().flat_map(|(_, record)| (record.oldest_needed.0..=record.segment.0).map(SegmentNumber))
    }

    /// The points that are pinned and need `segment`.
    pub(super) fn pinned_over(&self, segment: SegmentNumber) -> impl Iterator<Item = u64> {
        let over = self.pins.records.iter().filter(move |(_, record)| record.window().contains(&segment));
        over.map(|(_, record)| record.position.0)
    }
}

/// Pins the synch point `moment` of `source`: no pruning and no ring removes it from now on. `time_ns` is now.
///
/// # Errors
/// When it is no synch point, can no longer be restored, or the store takes nothing.
pub fn pin(source: &Source, moment: &Moment, time_ns: i64) -> Result<Pinned, HistoryError> {
    let store = source.archive()?;
    let Some(mark) = &moment.mark else { return Err(no_mark(moment)) };
    let window = needed(source, moment)?;
    let mut pinned = Pinned {
        id: moment.name(),
        label: mark.label.clone(),
        time: rfc3339(mark.time_ns),
        position: moment.position.0,
        segments: window.len() as u64,
        already: true,
    };
    let pins = source.pins()?;
    if pins.of(moment.position, mark.time_ns).is_some() {
        return Ok(pinned);
    }
    pinned.already = false;
    let volume = source.volume();
    Lineage::refuse_stranger(store, volume)?;
    let record = PinRecord {
        history: volume.history,
        position: moment.position,
        point_time_ns: mark.time_ns,
        segment: moment.segment,
        oldest_needed: window.first().copied().unwrap_or(moment.segment),
        time_ns,
    };
    let name = put(store, &record, pins.free_name(volume.history), volume)?;
    source.refresh()?;
    match needed(source, moment) {
        Ok(_) => Ok(pinned),
        Err(error) => {
            store.delete(&name)?;
            Err(error)
        }
    }
}

/// Whether `moment` of `source` can be pinned.
///
/// # Errors
/// As for [`pin`].
pub fn check_pin(source: &Source, moment: &Moment) -> Result<(), HistoryError> {
    source.archive()?;
    if moment.mark.is_none() {
        return Err(no_mark(moment));
    }
    needed(source, moment).map(drop)
}

fn no_mark(moment: &Moment) -> HistoryError {
    HistoryError::NotAPoint { what: format!("{moment}: only synch points can be pinned; `salvol points` lists them") }
}

/// Puts the record under `name` or the next one that is free, and reads it back.
fn put(
    store: &Arc<dyn Store>,
    record: &PinRecord,
    mut name: ObjectName,
    volume: &Superblock,
) -> Result<ObjectName, HistoryError> {
    let bytes = record.encode(volume);
    for _ in 1..NAMES {
        match store.put(&name, &bytes) {
            Err(StoreError::Conflict { .. }) => name.part = name.part.saturating_add(1),
            other => {
                other?;
                break;
            }
        }
    }
    if PinRecord::read(store, &name, volume)? == Some(*record) {
        return Ok(name);
    }
    let error = FormatError::Checksum { what: "pin record as it reads back" };
    Err(ArchiveError::Object { name, source: ObjectError::Format(error) }.into())
}

/// The segments that restoring `moment` reads, oldest first; all of them are there, and in the archive, or still to come there. What
/// has left it may be in slots that nobody has used again, and would not stay.
fn needed(source: &Source, moment: &Moment) -> Result<Vec<SegmentNumber>, HistoryError> {
    let index = index_at(source, source.volume(), moment.segment, moment.position);
    let index = index.map_err(|error| source.judged(error.plain()))?;
    let needed: Vec<SegmentNumber> = index.chain().iter().rev().map(|(segment, _)| *segment).collect();
    let archived = source.archived_segments();
    let newest = archived.last().copied().unwrap_or_default();
    match needed.iter().find(|segment| **segment < newest && !archived.contains(segment)) {
        Some(segment) => Err(HistoryError::NotArchived { position: moment.position, segment: *segment }),
        None => Ok(needed),
    }
}

/// What `text` names among the pins of `source`: the id of a point, or the name of a record that is damaged.
///
/// # Errors
/// When nothing of the kind is pinned, or there is no such point.
pub fn pinned_as(source: &Source, text: &str) -> Result<String, HistoryError> {
    source.archive()?;
    let pins = source.pins()?;
    if let Some((name, _)) = pins.damaged.iter().find(|(name, _)| name.to_string() == text) {
        return Ok(name.to_string());
    }
    let all = || pins.records.iter().chain(&pins.left_behind).map(|(_, record)| record.position);
    // What a pin is of may be gone: its id and its position are enough.
    let number = text.strip_prefix('p').unwrap_or(text).parse().ok().map(Position);
    if let Some(position) = number.filter(|position| all().any(|pinned| pinned == *position)) {
        return Ok(format!("p{position}"));
    }
    let moment = source.resolve(text)?;
    match all().any(|pinned| pinned == moment.position) {
        true => Ok(format!("p{}", moment.position)),
        false => Err(HistoryError::NotPinned { what: moment.to_string() }),
    }
}

/// Removes the pin of `id`, which [`pinned_as`] gave, and the segments that only it kept.
///
/// # Errors
/// When nothing of the kind is pinned, somebody reads what would go, or the store fails.
pub fn unpin(source: &Source, id: &str, leased: &Leased<'_>) -> Result<Unpinned, HistoryError> {
    let store = source.archive()?;
    Lineage::refuse_stranger(store, source.volume())?;
    // Others may have pruned while this waited for its turn.
    source.refresh()?;
    let mut pins = source.pins()?;
    let under_way = under_way(source)?;
    let leased = || [leased(), under_way].into_iter().flatten().min();
    let is_its = |name: &ObjectName, record: &PinRecord| {
        name.to_string() == id || id.strip_prefix('p') == Some(record.position.to_string().as_str())
    };
    let mut gone: Vec<ObjectName> = Vec::new();
    for records in [&mut pins.records, &mut pins.left_behind] {
        gone.extend(records.iter().filter(|(name, record)| is_its(name, record)).map(|(name, _)| *name));
    }
    gone.extend(pins.damaged.iter().map(|(name, _)| *name).filter(|name| name.to_string() == id));
    if gone.is_empty() {
        return Err(HistoryError::NotPinned { what: id.to_owned() });
    }
    let archived = source.archived_segments();
    let kept_from = one_piece_from(&archived, pins.kept_from(&archived, source.volume().geometry.working_set));
    let (its, others): (Vec<_>, Vec<_>) = pins.records.drain(..).partition(|(name, _)| gone.contains(name));
    pins.records = others;
    let only_its = |segment: SegmentNumber| {
        segment < kept_from && its.iter().any(|(_, record)| record.window().contains(&segment)) && !pins.keep(segment)
    };
    let mut unpinned = Unpinned { id: id.to_owned(), ..Unpinned::default() };
    // What a damaged record keeps may be any of it.
    let is_known = pins.damaged.iter().all(|(name, _)| gone.contains(name));
    if is_known {
        let removal = Removal::of(store, only_its)?;
        if let (Some(from), Some(newest)) = (leased(), removal.newest())
            && from <= newest
        {
            return Err(HistoryError::Leased { segment: from });
        }
        removal.remove(store, &leased)?;
        (unpinned.segments, unpinned.objects, unpinned.bytes) = removal.sizes();
    }
    gone.iter().try_for_each(|name| store.delete(name))?;
    source.refresh()?;
    Ok(unpinned)
}

/// Objects that are to be removed.
pub(super) struct Removal(Vec<(ObjectName, u64)>);

impl Removal {
    /// All objects of the segments that may go, of whatever past, oldest first.
    pub(super) fn of(store: &Arc<dyn Store>, may_go: impl Fn(SegmentNumber) -> bool) -> Result<Self, HistoryError> {
        let mut objects = store.list()?;
        // Segment 0 has the records of forks and pins.
        objects.retain(|(name, _)| name.segment.0 > 0 && may_go(name.segment));
        objects.sort_unstable_by_key(|(name, _)| (name.segment, *name));
        Ok(Self(objects))
    }

    pub(super) fn newest(&self) -> Option<SegmentNumber> {
        self.0.last().map(|(name, _)| name.segment)
    }

    /// Segments, objects and bytes.
    pub(super) fn sizes(&self) -> (u64, u64, u64) {
        let segments: BTreeSet<SegmentNumber> = self.0.iter().map(|(name, _)| name.segment).collect();
        (segments.len() as u64, self.0.len() as u64, self.0.iter().map(|(_, bytes)| bytes).sum())
    }

    /// Removes them. What is left at any moment is one piece, as far as it was.
    pub(super) fn remove(&self, store: &Arc<dyn Store>, leased: &Leased<'_>) -> Result<(), HistoryError> {
        for objects in self.0.chunk_by(|(a, _), (b, _)| a.segment == b.segment) {
            // A view may have begun meanwhile.
            let segment = objects[0].0.segment;
            if leased().is_some_and(|from| from <= segment) {
                return Err(HistoryError::Leased { segment });
            }
            objects.iter().try_for_each(|(name, _)| store.delete(name))?;
        }
        Ok(())
    }
}
