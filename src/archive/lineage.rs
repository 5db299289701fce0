//! The lineage of a volume in its store: whose objects are its past.
//!
//! ```text
//! history A   1 ─────────────── F₁ ─ ─ ─ ─ ×     behind the fork: a past that nobody went on with
//! history B                     └──────── F₂ ─ ─ ×
//! history C                               └──────────▶ the volume now
//! ```
//!
//! Its own history, its parent's up to the fork, and so on. A primary that came back may have put objects before it was
//! refused; they have later segments, positions or epochs than the fork, and are none of the volume's.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use super::{ArchiveError, ForkRecord, OBJECT_HEADER_BYTES, ObjectError, ObjectHeader, ObjectName, Store, StoreError};
use crate::format::{Position, SegmentNumber, Superblock, Uuid};

/// Rebuilds that a volume may have behind it.
const HISTORIES_MAX: usize = 1024;

/// Objects in a store that are a volume's past.
pub struct Lineage {
    /// Without fork and pin records, in the order of the log; of one segment's the older epoch first, whatever the history.
    pub names: Vec<ObjectName>,
    /// The largest epoch of any object in the store, of the volume's past or not.
    pub epoch: u64,
}

/// How far an ancestor counts.
#[derive(Clone, Copy)]
struct Limit {
    segment: SegmentNumber,
    position: Position,
    epoch: u64,
}

impl Lineage {
    /// The past of `volume`, whose history may have ended in the meantime. A record that is damaged is a warning: what is
    /// older than its fork is left out.
    ///
    /// # Errors
    /// When the store fails, or the records lead in a circle.
    pub fn read(store: &Arc<dyn Store>, volume: &Superblock) -> Result<Self, ArchiveError> {
        let list = store.names()?;
        let epoch = list.iter().map(|name| name.epoch).max().unwrap_or(0);
        let limits = ancestors(store, volume, &list)?;
        let mut names: Vec<ObjectName> = Vec::new();
        for name in list.into_iter().filter(|name| name.segment.0 > 0) {
            let counts = name.history == volume.history
                || match limits.get(&name.history) {
                    Some(limit) => before_fork(store, &name, limit)?,
                    None => false,
                };
            if counts {
                names.push(name);
            }
        }
        names.sort_by_key(|name| (name.segment, name.epoch, name.part));
        Ok(Self { names, epoch })
    }

    /// The volume as it goes on: from `identity`, the store's first history, along the fork records to the newest.
    ///
    /// # Errors
    /// When the store fails, or a record on the way is damaged: what came after it must not be taken for nothing.
    pub fn newest(store: &Arc<dyn Store>, identity: Superblock) -> Result<Superblock, ArchiveError> {
        let mut volume = identity;
        let mut seen = BTreeSet::new();
        while let Some(record) = ForkRecord::read(store, volume.history, &volume)? {
            step(&mut seen, volume.history)?;
            volume = record.successor;
        }
        Ok(volume)
    }

    /// Makes sure that the history of `volume` is one that the store knows, and has not ended.
    ///
    /// # Errors
    /// [`ArchiveError::Superseded`], [`ArchiveError::Unrecorded`], and when the store fails.
    pub fn refuse_stranger(store: &Arc<dyn Store>, volume: &Superblock) -> Result<(), ArchiveError> {
        ForkRecord::refuse_superseded(store, volume)?;
        if volume.parent_history == Uuid::default() {
            return Ok(());
        }
        let (history, parent) = (volume.history, volume.parent_history);
        match ForkRecord::read(store, parent, volume) {
            Ok(Some(record)) if record.successor.history == history => Ok(()),
            Ok(Some(record)) => Err(ArchiveError::Superseded { history, fork: record.to_string() }),
            Ok(None) => Err(ArchiveError::Unrecorded { history, parent }),
            // Rot in the record of a fork that this primary itself remembers.
            Err(error @ ArchiveError::Object { .. }) => {
                log::warn!("{}: {error}", volume.name);
                Ok(())
            }
            Err(error) => Err(error),
        }
    }
}

/// Of `names`, in the order of a lineage, those of the newest past. Epochs only grow along the log: what is behind an object
/// of a larger epoch, or beside one as a whole segment, is of a past that was given up by `--accept-loss`. The primary's
/// last segment, `tail`, with its epoch, counts as well; the parts that it has in the archive may be older.
pub fn one_past(names: Vec<ObjectName>, tail: Option<(SegmentNumber, u64)>) -> Vec<ObjectName> {
    let mut newest: Vec<ObjectName> = Vec::new();
    let mut before = 0;
    for names in names.chunk_by(|a, b| a.segment == b.segment) {
        let largest = |of: fn(&ObjectName) -> bool| names.iter().filter(|name| of(name)).map(|name| name.epoch).max();
        let parts_from = before;
        let (_, epoch) = tail.filter(|(last, _)| *last <= names[0].segment).unwrap_or_default();
        let whole_from = before.max(epoch).max(largest(|name| name.part > 0).unwrap_or(0));
        newest.extend(names.iter().filter(|name| name.epoch >= if name.part > 0 { parts_from } else { whole_from }));
        before = whole_from.max(largest(|name| name.part == 0).unwrap_or(0));
    }
    newest
}

/// The ancestors of `volume`, and how far each counts: no further than those that came after it.
fn ancestors(
    store: &Arc<dyn Store>,
    volume: &Superblock,
    list: &[ObjectName],
) -> Result<BTreeMap<Uuid, Limit>, ArchiveError> {
    let mut forks: BTreeMap<Uuid, ForkRecord> = BTreeMap::new();
    for name in list.iter().filter(|name| ForkRecord::is_name(name)) {
        match ForkRecord::read(store, name.history, volume) {
            Ok(record) => forks.extend(record.map(|record| (record.successor.history, record))),
            Err(error @ ArchiveError::Object { .. }) => {
                log::warn!("{}: what is older than this fork is left out: {error}", volume.name);
            }
            Err(error) => return Err(error),
        }
    }
    let (mut limits, mut seen) = (BTreeMap::new(), BTreeSet::new());
    let mut limit = Limit { segment: SegmentNumber(u64::MAX), position: Position(u64::MAX), epoch: u64::MAX };
    let mut history = volume.history;
    while let Some(record) = forks.get(&history) {
        step(&mut seen, history)?;
        if record.position() < limit.position {
            (limit.segment, limit.position) = (record.segment, record.position());
        }
        limit.epoch = limit.epoch.min(record.epoch);
        history = record.parent();
        limits.insert(history, limit);
    }
    // Only in a circle is it its own ancestor.
    limits.remove(&volume.history).map_or(Ok(limits), |_| Err(circle(volume.history)))
}

/// The last position that counts of each history of the past of `volume`.
///
/// # Errors
/// When the store fails, or the records lead in a circle.
pub(super) fn lasts(
    store: &Arc<dyn Store>,
    volume: &Superblock,
    list: &[ObjectName],
) -> Result<BTreeMap<Uuid, Position>, ArchiveError> {
    let ancestors = ancestors(store, volume, list)?.into_iter().map(|(history, limit)| (history, limit.position));
    Ok(ancestors.chain([(volume.history, Position(u64::MAX))]).collect())
}

fn step(seen: &mut BTreeSet<Uuid>, history: Uuid) -> Result<(), ArchiveError> {
    if seen.insert(history) && seen.len() <= HISTORIES_MAX { Ok(()) } else { Err(circle(history)) }
}

fn circle(history: Uuid) -> ArchiveError {
    ArchiveError::object(&ForkRecord::name_of(history), ObjectError::Circle)
}

/// Whether an ancestor's object lies before the fork. In the segment of the fork that is for the object to say.
fn before_fork(store: &Arc<dyn Store>, name: &ObjectName, limit: &Limit) -> Result<bool, ArchiveError> {
    if name.segment != limit.segment || name.epoch > limit.epoch {
        return Ok(name.segment < limit.segment && name.epoch <= limit.epoch);
    }
    let head = match store.get(name, 0..OBJECT_HEADER_BYTES as u64) {
        Ok(head) => head,
        Err(StoreError::Missing { .. }) => return Ok(false),
        Err(error) => return Err(error.into()),
    };
    match ObjectHeader::parse(&head) {
        Ok(header) => Ok(header.last_position <= limit.position),
        Err(error) => {
            log::warn!("object {name}: {error}");
            Ok(false)
        }
    }
}
