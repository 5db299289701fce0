//! Where the past is: a primary, its archive, or both; segments by number, and of several candidates the right one.
//!
//! A segment can be in a slot, in an object, in both, and, after a loss that was accepted, in more than one object. The
//! one whose last checksum is what the next segment names as its predecessor's is the one that counts. Objects are of
//! the volume's own history.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;
use std::sync::Arc;

use super::primary::View;
use super::scan::sound;
use super::{HistoryError, Segments};
use crate::archive::{ArchivedSegment, ObjectName, Spec, Store, open_store, store_identity};
use crate::format::{Checksum, FormatError, Position, SegmentNumber, Slot, Summary, Superblock};
use crate::log::scan::ScanError;

/// Threads that read summaries from a store.
const READERS: usize = 8;

/// Summaries of objects, as far as they could be read.
pub(super) type Summaries = HashMap<ObjectName, Arc<Summary>>;

/// A volume's past, open for reading.
pub struct Source {
    volume: Superblock,
    pub(super) primary: Option<View>,
    pub(super) store: Option<Arc<dyn Store>>,
    objects: RefCell<BTreeMap<SegmentNumber, Vec<ObjectName>>>,
}

/// A segment's summary and where it was found.
pub(super) struct Located {
    pub summary: Arc<Summary>,
    pub slot: Option<Slot>,
}

impl Source {
    /// The past of the volume on the primary at `path`, which may be in use, and in its archive. An archive that cannot
    /// be reached is a warning.
    ///
    /// # Errors
    /// When there is no volume, or the primary cannot be read.
    pub fn open_primary(path: &Path) -> Result<Self, HistoryError> {
        let view = View::open(path)?;
        let volume = view.volume.clone();
        let store = Spec::parse(&volume.backing).map_err(HistoryError::from).and_then(|spec| {
            let store = open_store(&spec, Some(&volume))?;
            store.map(|store| list(&store, &volume, view.tail()).map(|objects| (store, objects))).transpose()
        });
        let (store, objects) = match store {
            Ok(Some((store, objects))) => (Some(store), objects),
            Ok(None) => (None, BTreeMap::new()),
            Err(error) => {
                log::warn!("{}: only what is on the primary is shown: {error}", path.display());
                (None, BTreeMap::new())
            }
        };
        Ok(Self { volume, primary: Some(view), store, objects: RefCell::new(objects) })
    }

    /// What is on the primary at `path` itself, whatever its archive has.
    ///
    /// # Errors
    /// When there is no volume, or the primary cannot be read.
    pub fn open_primary_alone(path: &Path) -> Result<Self, HistoryError> {
        let view = View::open(path)?;
        Ok(Self { volume: view.volume.clone(), primary: Some(view), store: None, objects: RefCell::default() })
    }

    /// The past in the archive `spec` alone: the primary is gone.
    ///
    /// # Errors
    /// When there is no archive, or it cannot be read.
    pub fn open_spec(spec: &Spec) -> Result<Self, HistoryError> {
        let volume = store_identity(spec)?;
        let store = open_store(spec, Some(&volume))?;
        Self::open_store(volume, store)
    }

    /// The past of `volume` in a store that is open.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub fn open_store(volume: Superblock, store: Option<Arc<dyn Store>>) -> Result<Self, HistoryError> {
        let objects = store.as_ref().map_or(Ok(BTreeMap::new()), |store| list(store, &volume, None))?;
        Ok(Self { volume, primary: None, store, objects: RefCell::new(objects) })
    }

    /// The volume: identity, key, geometry.
    pub fn volume(&self) -> &Superblock {
        &self.volume
    }

    /// Every segment that there is any trace of, oldest first.
    pub(super) fn numbers(&self) -> Vec<SegmentNumber> {
        let slots = self.primary.iter().flat_map(|view| view.slots.found.keys());
        let objects = self.objects.borrow();
        let numbers: BTreeSet<SegmentNumber> = slots.chain(objects.keys()).copied().collect();
        numbers.into_iter().collect()
    }

    /// The archive object of the segment that `summary` describes, by its name alone.
    pub(super) fn object_of(&self, summary: &Summary) -> Option<ObjectName> {
        let objects = self.objects.borrow();
        objects.get(&summary.segment)?.iter().find(|name| name.epoch == summary.epoch).copied()
    }

    /// The archive objects of `segment`.
    pub(super) fn objects_of(&self, segment: SegmentNumber) -> Vec<ObjectName> {
        self.objects.borrow().get(&segment).cloned().unwrap_or_default()
    }

    /// Where the primary is.
    pub fn primary_path(&self) -> Option<&Path> {
        self.primary.as_ref().map(|view| view.path.as_path())
    }

    /// Lists the objects again: a running volume archives segments meanwhile.
    pub(super) fn refresh(&self) -> Result<(), HistoryError> {
        if let Some(store) = &self.store {
            let tail = self.primary.as_ref().and_then(View::tail);
            *self.objects.borrow_mut() = list(store, &self.volume, tail)?;
        }
        Ok(())
    }

    /// Opens the object `name`, and checks that it is this volume's.
    pub(super) fn open_object(&self, name: &ObjectName) -> Result<ArchivedSegment, HistoryError> {
        let store = self.store.as_ref().ok_or(HistoryError::Gone {
            position: Position(0),
            segment: name.segment,
            archive: self.archive_word(),
        })?;
        open_in(store, &self.volume, name)
    }

    /// The summaries of the objects of `segments` that are in no slot, read a few at a time: a store may take its time for
    /// each.
    pub(super) fn summaries_of(&self, segments: &[SegmentNumber]) -> Summaries {
        let Some(store) = &self.store else { return Summaries::new() };
        let here = |segment: &&SegmentNumber| {
            self.primary.as_ref().is_some_and(|view| view.slots.found.contains_key(*segment))
        };
        let names: Vec<ObjectName> =
            segments.iter().filter(|segment| !here(segment)).flat_map(|segment| self.objects_of(*segment)).collect();
        let volume = &self.volume;
        // What cannot be read now is tried again by whoever wants it, who then says why.
        let read = |names: &[ObjectName]| -> Vec<(ObjectName, Arc<Summary>)> {
            let summary = |name| open_in(store, volume, name).map(|object| Arc::new(object.summary().clone()));
            names.iter().filter_map(|name| Some((*name, summary(name).ok()?))).collect()
        };
        std::thread::scope(|scope| {
            let share = names.len().div_ceil(READERS).max(1);
            let readers: Vec<_> = names.chunks(share).map(|names| scope.spawn(move || read(names))).collect();
            readers.into_iter().filter_map(|reader| reader.join().ok()).flatten().collect()
        })
    }

    /// What to say of the archive when a segment is in neither place.
    pub(super) fn archive_word(&self) -> &'static str {
        match (&self.store, &self.primary) {
            (Some(_), Some(_)) => " and is not in the archive",
            (Some(_), None) => " and from the archive",
            (None, _) if self.volume.backing == "none" => ", and the volume keeps no archive",
            (None, _) => "",
        }
    }

    /// What is not found may be in an archive that cannot be reached: then nobody knows that it is gone.
    pub(super) fn judged(&self, error: HistoryError) -> HistoryError {
        if self.store.is_none() && self.volume.backing != "none" && error.is_no_point() {
            return HistoryError::Unreachable { what: error.to_string(), store: self.volume.backing.clone() };
        }
        error
    }

    /// The summary of `segment`, from its slot or else from its object; with `successor` that of the right candidate.
    pub(super) fn locate(
        &self,
        segment: SegmentNumber,
        successor: Option<Checksum>,
    ) -> Result<Option<Located>, HistoryError> {
        self.locate_among(segment, successor, &Summaries::new())
    }

    /// The same; `read` has summaries of objects that have been read already.
    pub(super) fn locate_among(
        &self,
        segment: SegmentNumber,
        successor: Option<Checksum>,
        read: &Summaries,
    ) -> Result<Option<Located>, HistoryError> {
        let mut trouble = None;
        let fits = |summary: &Summary| successor.is_none_or(|checksum| checksum == summary.last_checksum);
        if let Some(view) = &self.primary {
            for slot in view.slots.found.get(&segment).into_iter().flatten() {
                match view.summary(*slot, segment) {
                    Ok(summary) if !sound(&summary, segment) => trouble = Some(HistoryError::Chain { segment }),
                    Ok(summary) if fits(&summary) => return Ok(Some(Located { summary, slot: Some(*slot) })),
                    Ok(_) => trouble = Some(HistoryError::Chain { segment }),
                    Err(source) => trouble = self.slot_trouble(view, *slot, segment, source),
                }
            }
        }
        for name in self.objects_of(segment) {
            let summary = match read.get(&name) {
                Some(summary) => Ok(Arc::clone(summary)),
                None => self.open_object(&name).map(|object| Arc::new(object.summary().clone())),
            };
            match summary {
                Ok(summary) if sound(&summary, segment) && fits(&summary) => {
                    return Ok(Some(Located { summary, slot: None }));
                }
                Ok(_) => trouble = Some(HistoryError::Chain { segment }),
                Err(error) => trouble = Some(error),
            }
        }
        trouble.map_or(Ok(None), Err)
    }

    /// Damage in a slot; a slot that holds another segment meanwhile is none.
    fn slot_trouble(&self, view: &View, slot: Slot, segment: SegmentNumber, source: ScanError) -> Option<HistoryError> {
        match view.holds(slot, segment) {
            Ok(false) => None,
            _ => Some(HistoryError::DamagedSlot { segment, source }),
        }
    }
}

fn open_in(store: &Arc<dyn Store>, volume: &Superblock, name: &ObjectName) -> Result<ArchivedSegment, HistoryError> {
    let segment = ArchivedSegment::open(store, name, Some(volume))
        .map_err(|source| HistoryError::DamagedObject { segment: name.segment, source })?;
    let (here, there) = (volume.geometry, segment.volume().geometry);
    if there.segment_blocks != here.segment_blocks {
        let source = FormatError::Field {
            what: "archive object header",
            field: "segment blocks",
            value: u64::from(there.segment_blocks),
        };
        let source = crate::archive::ArchiveError::Object { name: *name, source: source.into() };
        return Err(HistoryError::DamagedObject { segment: name.segment, source });
    }
    Ok(segment)
}

/// The objects of the volume's history, without those of a past that was given up: an older epoch behind a newer one, which
/// may be that of the primary's last segment, `tail`.
fn list(
    store: &Arc<dyn Store>,
    volume: &Superblock,
    tail: Option<(SegmentNumber, u64)>,
) -> Result<BTreeMap<SegmentNumber, Vec<ObjectName>>, HistoryError> {
    let list = store.list()?.into_iter().map(|(name, _)| name);
    let mut objects: BTreeMap<SegmentNumber, Vec<ObjectName>> = BTreeMap::new();
    for name in list.filter(|name| name.history == volume.history && name.part == 0) {
        objects.entry(name.segment).or_default().insert(0, name);
    }
    // Epochs only grow along the log.
    let mut before = 0;
    for (segment, names) in &mut objects {
        let (_, epoch) = tail.filter(|(last, _)| last <= segment).unwrap_or_default();
        before = epoch.max(before);
        names.retain(|name| name.epoch >= before);
        before = names.first().map_or(before, |name| name.epoch.max(before));
    }
    objects.retain(|_, names| !names.is_empty());
    Ok(objects)
}

impl Segments for Source {
    fn summary(&self, segment: SegmentNumber, successor: Option<Checksum>) -> Result<Arc<Summary>, HistoryError> {
        if let Some(found) = self.locate(segment, successor)? {
            return Ok(found.summary);
        }
        self.refresh()?;
        let found = self.locate(segment, successor)?.map(|found| found.summary);
        let archive = self.archive_word();
        found.ok_or(HistoryError::Gone { position: Position(0), segment, archive })
    }
}
