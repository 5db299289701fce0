//! Where the past is: a primary, its archive, or both; segments by number, and of several candidates the right one.
//!
//! A segment can be in a slot, in an object, in both, and, after a loss that was accepted, in more than one object. The
//! one whose last checksum is what the next segment names as its predecessor's is the one that counts. The segment that
//! was open last may be there in parts. Objects are of the volume's own history and of those it continues.

use std::cell::RefCell;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::digest::Digest;
use super::occupied::is_one_of;
use super::primary::View;
use super::scan::sound;
use super::{HistoryError, Segments};
use crate::archive::{
    ArchiveError, ArchivedSegment, Lineage, ObjectHeader, ObjectName, Spec, Store, StoreError, one_past, open_store,
    store_identity,
};
use crate::format::{Checksum, FormatError, Position, SegmentNumber, Slot, Summary, Superblock};
use crate::log::scan::ScanError;

/// Threads that read from a store.
const READERS: usize = 8;

/// A segment as it may be in the archive.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(super) enum Archived {
    Whole(ObjectName),
    /// All parts that there are of an open segment, in whatever order they belong.
    Parts(Vec<ObjectName>),
}

impl Archived {
    /// The epoch of its last batch.
    pub fn epoch(&self) -> u64 {
        match self {
            Self::Whole(name) => name.epoch,
            Self::Parts(names) => names.iter().map(|name| name.epoch).max().unwrap_or(0),
        }
    }
}

/// What there is of each segment in the archive, the likeliest first.
pub(super) type Objects = BTreeMap<SegmentNumber, Vec<Archived>>;

/// A volume's past, open for reading.
pub struct Source {
    volume: Superblock,
    pub(super) primary: Option<View>,
    pub(super) store: Option<Arc<dyn Store>>,
    objects: RefCell<Objects>,
    /// Summaries that a scan is about to ask for.
    expected: RefCell<HashMap<Archived, Arc<Summary>>>,
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
        Self::open_primary_with(path, None)
    }

    /// The same; the archive is open already when there is a `store`.
    ///
    /// # Errors
    /// As for [`Self::open_primary`].
    pub fn open_primary_with(path: &Path, store: Option<Arc<dyn Store>>) -> Result<Self, HistoryError> {
        let view = View::open(path)?;
        let volume = view.volume.clone();
        let store = Spec::parse(&volume.backing).map_err(HistoryError::from).and_then(|spec| {
            let store = store.map_or_else(|| open_store(&spec, Some(&volume)), |store| Ok(Some(store)))?;
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
        Ok(Self { volume, primary: Some(view), store, objects: RefCell::new(objects), expected: RefCell::default() })
    }

    /// What is on the primary at `path` itself, whatever its archive has.
    ///
    /// # Errors
    /// When there is no volume, or the primary cannot be read.
    pub fn open_primary_alone(path: &Path) -> Result<Self, HistoryError> {
        let view = View::open(path)?;
        Ok(Self {
            volume: view.volume.clone(),
            primary: Some(view),
            store: None,
            objects: RefCell::default(),
            expected: RefCell::default(),
        })
    }

    /// The past in the archive `spec` alone: the primary is gone. After rebuilds that of the newest history.
    ///
    /// # Errors
    /// When there is no archive, or it cannot be read.
    pub fn open_spec(spec: &Spec) -> Result<Self, HistoryError> {
        let mut volume = store_identity(spec)?;
        let store = open_store(spec, Some(&volume))?;
        if let Some(store) = &store {
            volume = Lineage::newest(store, volume)?;
        }
        Self::open_store(volume, store)
    }

    /// The past of `volume` in a store that is open.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub fn open_store(volume: Superblock, store: Option<Arc<dyn Store>>) -> Result<Self, HistoryError> {
        let objects = store.as_ref().map_or(Ok(BTreeMap::new()), |store| list(store, &volume, None))?;
        Ok(Self { volume, primary: None, store, objects: RefCell::new(objects), expected: RefCell::default() })
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

    /// Whether the archive has the whole `segment` whose last batch is of `epoch`, going by names alone.
    pub(super) fn has_whole(&self, segment: SegmentNumber, epoch: u64) -> bool {
        let whole = |archived: &Archived| matches!(archived, Archived::Whole(name) if name.epoch == epoch);
        self.objects.borrow().get(&segment).is_some_and(|found| found.iter().any(whole))
    }

    /// The last position of the segment of `digest` that the archive has: all of it, or what is in parts.
    pub(super) fn archived_to(&self, digest: &Digest) -> Position {
        if self.has_whole(digest.segment, digest.epoch) {
            return digest.last_position;
        }
        let parts = self.archived(digest.segment).into_iter().filter(|archived| matches!(archived, Archived::Parts(_)));
        let last = |parts| Some(self.open_archived(&parts).ok()?.summary().last_position());
        parts.filter_map(last).max().unwrap_or_default()
    }

    /// What the archive has of `segment`, the likeliest first.
    pub(super) fn archived(&self, segment: SegmentNumber) -> Vec<Archived> {
        self.objects.borrow().get(&segment).cloned().unwrap_or_default()
    }

    /// Whether nothing else is there that could be the segment of `summary`, going by names alone.
    pub(super) fn is_alone(&self, summary: &Summary) -> bool {
        let slots = self.primary.as_ref().and_then(|view| view.slots.found.get(&summary.segment)).map_or(0, Vec::len);
        slots <= 1 && self.archived(summary.segment).iter().all(|archived| archived.epoch() == summary.epoch)
    }

    /// Whether `segment` is in a slot of the primary.
    pub(super) fn is_here(&self, segment: SegmentNumber) -> bool {
        self.primary.as_ref().is_some_and(|view| view.slots.found.contains_key(&segment))
    }

    /// Whether writing to `path` would overwrite what is read from.
    pub fn reads_from(&self, path: &Path) -> bool {
        is_one_of(path, &self.places())
    }

    /// What is read: the primary, and the store's file, device or directory.
    pub(super) fn places(&self) -> Vec<PathBuf> {
        let store = self.store.as_ref().and_then(|store| match Spec::parse(&store.spec()) {
            Ok(Spec::File(path) | Spec::Device(path) | Spec::Directory(path)) => Some(path),
            _ => None,
        });
        self.primary.iter().map(|view| view.path.clone()).chain(store).collect()
    }

    /// Bytes that can be put into a store that expires its oldest objects, while those from `segment` on must stay. None for
    /// one that expires nothing.
    ///
    /// # Errors
    /// When the store cannot be asked.
    pub fn room_before(&self, segment: SegmentNumber) -> Result<Option<u64>, HistoryError> {
        let Some(store) = &self.store else { return Ok(None) };
        if !matches!(Spec::parse(&store.spec())?, Spec::File(_) | Spec::Device(_)) {
            return Ok(None);
        }
        let pins = self.pins()?;
        let may_go = |name: &ObjectName| (1..segment.0).contains(&name.segment.0) && !pins.keep(name.segment);
        let older = store.list()?.into_iter().filter(|(name, _)| may_go(name)).map(|(_, bytes)| bytes).sum();
        let free = store.fill()?.map_or(0, |fill| fill.capacity.saturating_sub(fill.used));
        Ok(Some(free.saturating_add(older)))
    }

    /// Lists the objects again: a running volume archives segments meanwhile.
    pub fn refresh(&self) -> Result<(), HistoryError> {
        if let Some(store) = &self.store {
            let tail = self.primary.as_ref().and_then(View::tail);
            *self.objects.borrow_mut() = list(store, &self.volume, tail)?;
        }
        Ok(())
    }

    /// Opens an archived segment, and checks that it is this volume's. Parts that were deleted since they were listed are
    /// looked for again: others, or the whole segment, have taken their place.
    pub(super) fn open_archived(&self, archived: &Archived) -> Result<ArchivedSegment, HistoryError> {
        match &self.store {
            Some(store) => match (open_in(store, &self.volume, archived), archived) {
                (
                    Err(HistoryError::DamagedObject {
                        segment,
                        source: ArchiveError::Store(StoreError::Missing { .. }),
                    }),
                    Archived::Parts(_),
                ) => {
                    self.refresh()?;
                    let gone = || HistoryError::Gone { position: Position(0), segment, archive: self.archive_word() };
                    let now = self.archived(segment).into_iter().find(|now| now != archived).ok_or_else(gone)?;
                    open_in(store, &self.volume, &now)
                }
                (opened, _) => opened,
            },
            None => {
                let store = self.volume.backing.clone();
                let what = "there is no archive".to_owned();
                Err(StoreError::Refused { store, what }.into())
            }
        }
    }

    /// Why `found`, an open segment in parts, does not go on to its end: a part behind its last one that is damaged, or
    /// the gap before one that is not.
    pub(super) fn cut_off(&self, found: &Located) -> Option<HistoryError> {
        let Located { summary, slot: None } = found else { return None };
        self.cut_off_behind(summary.segment, summary.last_checksum, summary.last_position())
    }

    /// The same, of the open `segment` in the archive whose last batch has this `checksum`, at the position `end`.
    pub(super) fn cut_off_behind(
        &self,
        segment: SegmentNumber,
        checksum: Checksum,
        end: Position,
    ) -> Option<HistoryError> {
        let store = self.store.as_ref()?;
        for archived in self.archived(segment) {
            let Archived::Parts(names) = &archived else { continue };
            let object = match self.open_archived(&archived) {
                Ok(object) if object.summary().last_checksum == checksum => object,
                Ok(_) => continue,
                Err(error) => return Some(error),
            };
            let of = |name: &ObjectName| (name.epoch, name.part);
            let last = of(&object.header().name);
            for name in names.iter().filter(|name| of(name) > last) {
                match open_in(store, &self.volume, &Archived::Whole(*name)) {
                    Ok(part) if part.summary().first_position > end.next() => {
                        let (position, archive) = (end.next(), self.archive_word());
                        return Some(HistoryError::Gone { position, segment, archive });
                    }
                    Ok(_) => {}
                    // Something else has taken its place since it was listed.
                    Err(HistoryError::DamagedObject {
                        source: ArchiveError::Store(StoreError::Missing { .. }),
                        ..
                    }) => {}
                    Err(error) => return Some(error),
                }
            }
        }
        None
    }

    /// What `read` makes of the objects of `segments` that are in no slot, a few at a time: a store may take its time for each.
    /// What cannot be read now is tried again by whoever wants it, who then says why.
    pub(super) fn read_together<T: Send + Sync>(
        &self,
        segments: &[SegmentNumber],
        read: impl Fn(&Arc<dyn Store>, &Archived) -> Option<T> + Sync,
    ) -> HashMap<Archived, Arc<T>> {
        let Some(store) = &self.store else { return HashMap::new() };
        let wanted: Vec<Archived> = segments
            .iter()
            .filter(|segment| !self.is_here(**segment))
            .flat_map(|segment| self.archived(*segment))
            .collect();
        let read = |wanted: &[Archived]| -> Vec<(Archived, Arc<T>)> {
            wanted.iter().filter_map(|archived| Some((archived.clone(), Arc::new(read(store, archived)?)))).collect()
        };
        std::thread::scope(|scope| {
            let share = wanted.len().div_ceil(READERS).max(1);
            let readers: Vec<_> = wanted.chunks(share).map(|wanted| scope.spawn(|| read(wanted))).collect();
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
        let if_sound = |summary: Arc<Summary>| Some(summary).filter(|summary| sound(summary, segment));
        let found = self.pick(
            segment,
            if_sound,
            |archived| {
                let expected = self.expected.borrow_mut().remove(archived);
                let summary = match expected {
                    Some(summary) => summary,
                    None => Arc::new(self.open_archived(archived)?.summary().clone()),
                };
                Ok(if_sound(summary))
            },
            |summary| successor.is_none_or(|checksum| checksum == summary.last_checksum),
        )?;
        Ok(found.map(|(summary, slot)| Located { summary, slot }))
    }

    /// Of all that could be `segment`, slots first, the first that `fits`, as `in_slot` makes it of the summary there or
    /// `in_archive` reads it; they say None of what is not sound.
    pub(super) fn pick<T>(
        &self,
        segment: SegmentNumber,
        in_slot: impl Fn(Arc<Summary>) -> Option<T>,
        in_archive: impl Fn(&Archived) -> Result<Option<T>, HistoryError>,
        fits: impl Fn(&T) -> bool,
    ) -> Result<Option<(T, Option<Slot>)>, HistoryError> {
        let mut trouble = None;
        if let Some(view) = &self.primary {
            for slot in view.slots.found.get(&segment).into_iter().flatten() {
                match view.summary(*slot, segment) {
                    Ok(summary) => match in_slot(summary).filter(&fits) {
                        Some(found) => return Ok(Some((found, Some(*slot)))),
                        None => trouble = Some(HistoryError::Chain { segment }),
                    },
                    Err(source) => trouble = self.slot_trouble(view, *slot, segment, source),
                }
            }
        }
        for archived in self.archived(segment) {
            match in_archive(&archived).map(|found| found.filter(&fits)) {
                Ok(Some(found)) => return Ok(Some((found, None))),
                Ok(None) => trouble = Some(HistoryError::Chain { segment }),
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

pub(super) fn open_in(
    store: &Arc<dyn Store>,
    volume: &Superblock,
    archived: &Archived,
) -> Result<ArchivedSegment, HistoryError> {
    let segment = match archived {
        Archived::Whole(name) => ArchivedSegment::open(store, name, Some(volume)),
        Archived::Parts(names) => ArchivedSegment::open_parts(store, names, Some(volume)),
    };
    let number = match archived {
        Archived::Whole(name) => name.segment,
        Archived::Parts(names) => names.first().map_or(SegmentNumber(0), |name| name.segment),
    };
    let segment = segment.map_err(|source| HistoryError::DamagedObject { segment: number, source })?;
    same_blocks(volume, segment.header())?;
    Ok(segment)
}

/// That a segment of an object has as many blocks as those of `volume`.
pub(super) fn same_blocks(volume: &Superblock, header: &ObjectHeader) -> Result<(), HistoryError> {
    let (here, there) = (volume.geometry.segment_blocks, header.volume.geometry.segment_blocks);
    if there == here {
        return Ok(());
    }
    let source = FormatError::Field { what: "archive object header", field: "segment blocks", value: u64::from(there) };
    let source = ArchiveError::Object { name: header.name, source: source.into() };
    Err(HistoryError::DamagedObject { segment: header.name.segment, source })
}

/// What there is of the volume's past, without that of a past that was given up, see [`one_past`].
pub(super) fn list(
    store: &Arc<dyn Store>,
    volume: &Superblock,
    tail: Option<(SegmentNumber, u64)>,
) -> Result<Objects, HistoryError> {
    let names = one_past(Lineage::read(store, volume)?.names, tail);
    let mut objects = Objects::new();
    for names in names.chunk_by(|a, b| a.segment == b.segment) {
        // The newest first.
        let (parts, whole): (Vec<_>, Vec<_>) = names.iter().rev().partition(|name| name.part > 0);
        let mut found: Vec<Archived> = whole.into_iter().map(Archived::Whole).collect();
        found.extend((!parts.is_empty()).then_some(Archived::Parts(parts)));
        objects.insert(names[0].segment, found);
    }
    Ok(objects)
}

impl Segments for Source {
    fn summary(&self, segment: SegmentNumber, successor: Option<Checksum>) -> Result<Arc<Summary>, HistoryError> {
        // What cannot be read may have been superseded since the objects were listed.
        if let Ok(Some(found)) = self.locate(segment, successor) {
            return Ok(found.summary);
        }
        self.refresh()?;
        let found = self.locate(segment, successor)?.map(|found| found.summary);
        let archive = self.archive_word();
        found.ok_or(HistoryError::Gone { position: Position(0), segment, archive })
    }

    fn expect(&self, segments: Range<u64>) {
        let segments: Vec<SegmentNumber> = segments.map(SegmentNumber).collect();
        let volume = &self.volume;
        let read =
            |store: &_, archived: &_| open_in(store, volume, archived).ok().map(|object| object.summary().clone());
        *self.expected.borrow_mut() = self.read_together(&segments, read);
    }
}
