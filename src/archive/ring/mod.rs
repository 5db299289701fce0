//! The stores `file:PATH` and `dev:PATH`: a ring of objects on one file or one block device.
//!
//! ```text
//! superblock | catalogue | objects ........................................ | catalogue copy | superblock copy
//!                          record header | object | zeros | record header | object ...
//! ```
//!
//! - A put writes the object, makes it durable, and then makes its entry (`catalogue.rs` has the order and what follows
//!   from it). It is there when the entry is, whole.
//! - When there is no room, a put expires the oldest objects first (`expiry.rs`), never those of the newest segments, from
//!   which the volume can be rebuilt, nor what is pinned. Their entries are gone, durably, before their place is written to.
//! - One process writes and holds the lock from its first put or delete on; any number read. After reading an object they
//!   look whether it is still where it was, so that nobody takes half-overwritten bytes for an object.
//! - After any error the writer believes nothing that it knew, and reads the catalogue again.
//!
//! ```text
//! disk.rs        what is needed of file or device     space.rs   free blocks        catalogue.rs  who is where
//! medium.rs      the real one                         room.rs    who gets which     rescue.rs     found again by record headers
//! superblock.rs  entry.rs   the bytes                 content.rs an object's bytes  writer.rs     put and delete
//! identity.rs    whose ring it is                     expiry.rs  who goes first    audit.rs      what is damaged of it
//! ```

mod audit;
mod catalogue;
mod content;
mod disk;
mod entry;
mod expiry;
mod identity;
mod medium;
mod rescue;
mod room;
mod space;
mod superblock;
mod writer;

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use catalogue::{Held, Objects};
use disk::{BLOCK, Displaced};
pub(super) use disk::{Disk, Medium};
use expiry::{Forks, Pinned, victims};
use identity::{Said, Unfit, check, find, format, lacking, superblock, write_again};
use medium::Place;
pub use medium::{Provision, RingKind};
use rescue::Rescued;
pub(crate) use superblock::RING_PARTS;
use superblock::RingSuperblock;
use writer::{Plan, Writer};

use super::devices::rests_on;
use super::{Fill, ForkRecord, Lease, ObjectName, PIN_RECORD_BYTES, PinRecord, Store, StoreError};
use crate::format::{SegmentNumber, Superblock};

/// How often a reader starts again when what it read moved meanwhile.
const LOOKS: usize = 3;
/// How long an audit waits before it looks again.
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);
/// Bytes compared at a time when a put finds its name taken.
const COMPARE_BYTES: usize = 2 * 1024 * 1024;

/// A ring that keeps the objects of one volume.
pub struct RingStore {
    medium: Box<dyn Medium>,
    ring: RingSuperblock,
    /// For reading.
    disk: Arc<dyn Disk>,
    /// What is known of the catalogue; the truth while `settled`.
    objects: Mutex<Objects>,
    /// Whether this process is the writer, and knows what is on the disk.
    settled: AtomicBool,
    writing: Mutex<Writing>,
    /// The volume's own device, 0 while it is not known.
    forbidden: AtomicU64,
    /// Whom to ask before anything is expired.
    lease: Mutex<Option<Lease>>,
    /// What the pin records say, each with the sequence number of its entry; none of one that is damaged.
    pins: Mutex<BTreeMap<ObjectName, (u64, Option<PinRecord>)>>,
}

/// What whoever writes, or reads the catalogue again, holds.
#[derive(Default)]
struct Writing {
    /// The disk, opened for writing and locked.
    disk: Option<Arc<dyn Disk>>,
    writer: Option<Writer>,
    rescued: Rescued,
}

impl RingStore {
    /// Makes the file or device at `path` the store of `volume`, or takes one that is that volume's already.
    ///
    /// # Errors
    /// When it belongs to another volume, is too small, or cannot be written.
    pub fn create(kind: RingKind, path: &Path, volume: &Superblock) -> Result<Self, StoreError> {
        Self::create_on(Box::new(Place::new(kind, path)), volume, uuid::Uuid::new_v4().into_bytes())
    }

    /// Opens the store at `path`; with `volume`, only that volume's.
    ///
    /// # Errors
    /// When there is none, or it belongs to another volume.
    pub fn open(kind: RingKind, path: &Path, volume: Option<&Superblock>) -> Result<Self, StoreError> {
        Self::open_on(Box::new(Place::new(kind, path)), volume)
    }

    /// Makes sure that [`Self::create`] can make `path` the store of a new volume. A file that is missing is made.
    ///
    /// # Errors
    /// When it holds a store or a volume already, is too small, or is the volume's own primary.
    pub fn prepare(kind: RingKind, path: &Path, provision: &Provision) -> Result<(), StoreError> {
        Place::new(kind, path).prepare(provision)
    }

    /// What the file or device at `path` holds of a ring, as a phrase.
    pub fn recognise(path: &Path) -> Option<String> {
        let kind = if path.is_file() { RingKind::File } else { RingKind::Device };
        match superblock(&Place::new(kind, path).look().ok()?) {
            Ok(found) => Some(format!("the archive of volume {} ({})", found.volume.name, found.volume.uuid)),
            Err(Unfit::None | Unfit::Unreadable(_)) => None,
            Err(Unfit::Lost | Unfit::Damaged(_) | Unfit::Short { .. } | Unfit::Two) => {
                Some("a damaged salvol archive".to_owned())
            }
        }
    }

    /// The volume that the store belongs to: identity, key and geometry as they were when the store was created.
    pub fn identity(&self) -> &Superblock {
        &self.ring.volume
    }

    pub(super) fn create_on(medium: Box<dyn Medium>, volume: &Superblock, store: [u8; 16]) -> Result<Self, StoreError> {
        let said = Said(medium.spec());
        let disk = medium.own()?;
        match find(&disk) {
            Ok(found) => check(&said, &found.volume, volume)?,
            Err(Unfit::None) => {
                let ring = RingSuperblock::plan(store, volume, disk.bytes() / BLOCK)
                    .map_err(|need| said.too_small(disk.bytes(), need))?;
                format(&disk, &ring).map_err(|error| said.io("cannot make the store", error))?;
            }
            Err(unfit) => return Err(said.unfit(unfit)),
        }
        drop(disk);
        Self::open_on(medium, Some(volume))
    }

    pub(super) fn open_on(medium: Box<dyn Medium>, volume: Option<&Superblock>) -> Result<Self, StoreError> {
        let said = Said(medium.spec());
        let disk = medium.look()?;
        let ring = find(&disk).map_err(|unfit| said.unfit(unfit))?;
        if let Some(volume) = volume {
            check(&said, &ring.volume, volume)?;
        }
        let store = Self {
            medium,
            ring,
            disk,
            objects: Mutex::default(),
            settled: AtomicBool::new(false),
            writing: Mutex::default(),
            forbidden: AtomicU64::new(0),
            lease: Mutex::default(),
            pins: Mutex::default(),
        };
        store.refresh()?;
        Ok(store)
    }

    fn said(&self) -> Said {
        Said(self.medium.spec())
    }

    fn io(&self, what: &str, source: io::Error) -> StoreError {
        self.said().io(what, source)
    }

    fn missing(&self, name: &ObjectName) -> StoreError {
        StoreError::Missing { store: self.spec(), name: *name }
    }

    /// The objects, as this process knows them. Nobody does I/O while he holds this.
    fn objects(&self) -> MutexGuard<'_, Objects> {
        // A panic of another thread leaves the map whole: each change of it is one call.
        self.objects.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn writing(&self) -> MutexGuard<'_, Writing> {
        let mut writing = self.writing.lock().unwrap_or_else(|poisoned| {
            self.settled.store(false, Ordering::Release);
            self.writing.clear_poison();
            poisoned.into_inner()
        });
        if !self.settled.load(Ordering::Acquire) {
            writing.writer = None;
        }
        writing
    }

    /// Reads the catalogue again, unless this process is the one that writes it.
    fn refresh(&self) -> Result<(), StoreError> {
        if self.settled.load(Ordering::Acquire) {
            return Ok(());
        }
        let mut writing = self.writing();
        if writing.writer.is_none() {
            let mut load = || writer::load(&self.disk, &self.ring, false, &mut writing.rescued);
            let mut loaded = load();
            for _ in 1..LOOKS {
                if loaded.is_ok() {
                    break;
                }
                // What a writer was changing meanwhile may have looked like damage.
                loaded = load();
            }
            *self.objects() = loaded.map_err(|error| self.io("cannot read the catalogue", error))?.objects;
        }
        Ok(())
    }

    /// The object `name`, if there is one now.
    fn look_up(&self, name: &ObjectName) -> Result<Held, StoreError> {
        let known = self.objects().get(name).cloned();
        if let Some(held) = known {
            return Ok(held);
        }
        self.refresh()?;
        self.objects().get(name).cloned().ok_or_else(|| self.missing(name))
    }

    /// Whether `held` was still where it is said to be at some time after this was called.
    fn is_current(&self, held: &Held) -> io::Result<bool> {
        if self.settled.load(Ordering::Acquire) {
            let same = self.objects().get(&held.record.name) == Some(held);
            // What was known while it was the truth.
            if self.settled.load(Ordering::Acquire) {
                return Ok(same);
            }
        }
        catalogue::is_current(&self.disk, &self.ring, held)
    }

    /// Calls `look` with the object `name`; again, when the object moved meanwhile.
    fn with_object<T>(&self, name: &ObjectName, mut look: impl FnMut(&Held) -> io::Result<T>) -> Result<T, StoreError> {
        let failed = |error| self.io(&format!("cannot read object {name}"), error);
        for _ in 0..LOOKS {
            let held = self.look_up(name)?;
            let result = look(&held);
            if self.is_current(&held).map_err(failed)? {
                return result.map_err(failed);
            }
            let mut objects = self.objects();
            if objects.get(name) == Some(&held) {
                objects.remove(name);
            }
        }
        Err(self.missing(name))
    }

    /// The disk to write to, everything on it settled.
    fn enter<'a>(&self, writing: &'a mut Writing) -> Result<(Arc<dyn Disk>, &'a mut Writer), StoreError> {
        let disk = match &writing.disk {
            Some(disk) => Arc::clone(disk),
            None => Arc::clone(writing.disk.insert(self.own()?)),
        };
        self.refuse_own_device(&disk)?;
        self.refuse_displaced(&disk)?;
        let writer = match &mut writing.writer {
            Some(writer) => writer,
            unsettled => {
                let settled = Writer::settle(&disk, &self.ring);
                let (writer, objects) = settled.map_err(|error| self.io("cannot settle the catalogue", error))?;
                *self.objects() = objects;
                self.settled.store(true, Ordering::Release);
                unsettled.insert(writer)
            }
        };
        Ok((disk, writer))
    }

    /// Opens the disk for writing, after checking that it is the store that was opened.
    fn own(&self) -> Result<Arc<dyn Disk>, StoreError> {
        let said = self.said();
        let disk = self.medium.own()?;
        if find(&disk).map_err(|unfit| said.unfit(unfit))? != self.ring {
            return Err(said.refused("is another store now than when it was opened"));
        }
        for block in lacking(&disk, &self.ring) {
            write_again(&disk, &self.ring, block, &said);
        }
        Ok(disk)
    }

    fn refuse_own_device(&self, disk: &Arc<dyn Disk>) -> Result<(), StoreError> {
        let forbidden = self.forbidden.load(Ordering::Relaxed);
        if forbidden != 0 && disk.device().is_some_and(|device| rests_on(device, forbidden)) {
            return Err(self.said().refused(
                "is on the volume's own device: an archive there would be lost with the volume, and would wait for the \
                 space that it is to free; move it to another device",
            ));
        }
        Ok(())
    }

    /// Makes sure that what is written can be found by the path, and is what is read: an open file outlives its name.
    fn refuse_displaced(&self, disk: &Arc<dyn Disk>) -> Result<(), StoreError> {
        for disk in [disk, &self.disk] {
            let what = match disk.displaced().map_err(|error| self.io("cannot look at it", error))? {
                None => continue,
                Some(Displaced::Removed) => "was removed or moved away",
                Some(Displaced::Replaced) => "was replaced by another one under its name",
            };
            return Err(self.said().refused(format!(
                "{what} while it was open: an object written there would be lost; put it back, or a copy of it"
            )));
        }
        Ok(())
    }

    /// Lets go of what is known after a change that failed.
    fn unsettle(&self, writing: &mut Writing) {
        self.settled.store(false, Ordering::Release);
        writing.writer = None;
    }

    /// Deletes objects, of which nobody takes bytes any more when their places are free.
    fn remove(&self, disk: &Arc<dyn Disk>, writer: &mut Writer, gone: &[Held]) -> io::Result<()> {
        let mut objects = self.objects();
        for held in gone {
            objects.remove(&held.record.name);
        }
        drop(objects);
        writer.remove(disk, &self.ring, gone)
    }

    /// Compares an object that is there with the bytes that were to be put, and makes sure that it is durable.
    fn compare(&self, disk: &Arc<dyn Disk>, held: &Held, bytes: &[u8]) -> Result<(), StoreError> {
        let name = held.record.name;
        let failed = |error| self.io(&format!("cannot read object {name}"), error);
        let conflict = || StoreError::Conflict { store: self.spec(), name };
        if held.record.bytes != bytes.len() as u64 {
            return Err(conflict());
        }
        for (rank, piece) in bytes.chunks(COMPARE_BYTES).enumerate() {
            let at = (rank * COMPARE_BYTES) as u64;
            match content::read(&**disk, &held.record, at..at + piece.len() as u64).map_err(failed) {
                Ok(there) if there == piece => {}
                Ok(_) => return Err(conflict()),
                // Whoever reads all of it finds out whether it is this object or the disk.
                Err(error) if error.is_bad_sector() => return Err(conflict()),
                Err(error) => return Err(error),
            }
        }
        disk.sync().map_err(failed)
    }

    fn full(&self, disk: &Arc<dyn Disk>, writer: &Writer, name: &ObjectName, bytes: &[u8]) -> StoreError {
        let (used, capacity) = writer.fill();
        if let Some(from) = self.leased_from() {
            return self.said().refused(format!(
                "the store is full: {} of {} bytes are used, and what could be expired is read by a view of the past, which needs \
                 segment {from} and all that are newer; nothing was lost; detach the view (`salvol list` shows it), or move the \
                 archive to a larger device or file",
                used * BLOCK,
                capacity * BLOCK
            ));
        }
        let pins = self.held_back(disk, name, bytes);
        if !pins.is_empty() {
            return self.said().refused(format!(
                "the store is full: {} of {} bytes are used, and what could be expired is pinned, by {}; nothing was lost; \
                 `salvol unpin` one of them, or move the archive to a larger device or file",
                used * BLOCK,
                capacity * BLOCK,
                pins.join(", ")
            ));
        }
        self.said().refused(format!(
            "the store is full: {} of {} bytes are used, and object {name} of {} bytes does not fit without expiring \
             one of the newest {} segments, which are never expired; nothing was lost; move the archive to a larger \
             device or file",
            used * BLOCK,
            capacity * BLOCK,
            bytes.len(),
            u64::from(self.ring.volume.geometry.working_set) + 1
        ))
    }

    /// The pins that keep what would be expired without them.
    fn held_back(&self, disk: &Arc<dyn Disk>, name: &ObjectName, bytes: &[u8]) -> Vec<String> {
        let (forks, pinned) = (self.forks(disk), self.pinned(disk, name, bytes).unwrap_or_default());
        let objects = self.objects();
        let names: Vec<_> = objects.iter().map(|(name, held)| (*name, held.sequence)).collect();
        drop(objects);
        let victims = victims(&names, &forks, &Pinned::default(), self.ring.volume.geometry.working_set);
        pinned.keepers(&forks, &victims).map(|record| format!("p{}", record.position)).collect()
    }

    /// The segment from which on somebody reads the past.
    fn leased_from(&self) -> Option<SegmentNumber> {
        let lease = self.lease.lock().unwrap_or_else(PoisonError::into_inner).clone();
        lease.and_then(|lease| lease())
    }

    /// Where the object goes, and what goes for it; `None` when there is no room. Only when something has to go, the fork and pin
    /// records are read.
    fn plan(
        &self,
        disk: &Arc<dyn Disk>,
        writer: &Writer,
        name: &ObjectName,
        bytes: &[u8],
    ) -> Result<Option<Plan>, StoreError> {
        let leased = self.leased_from();
        let plan_with = |forks: &Forks, pinned: &Pinned| {
            writer.plan(&self.ring, &self.objects(), (forks, pinned), leased, name, bytes)
        };
        let plan = plan_with(&Forks::new(), &Pinned::default());
        if plan.as_ref().is_some_and(|plan| plan.expired.is_empty()) {
            return Ok(plan);
        }
        let pinned = self.pinned(disk, name, bytes)?;
        let forks = self.forks(disk);
        let is_plain = forks.is_empty() && pinned.records.is_empty() && !pinned.unknown;
        Ok(if is_plain { plan } else { plan_with(&forks, &pinned) })
    }

    fn forks(&self, disk: &Arc<dyn Disk>) -> Forks {
        writer::forks(disk, &self.ring, &self.records(ForkRecord::is_name))
    }

    fn records(&self, is_one: fn(&ObjectName) -> bool) -> Vec<Held> {
        self.objects().values().filter(|held| is_one(&held.record.name)).cloned().collect()
    }

    /// What the pin records say, the one that is being put included: nothing goes for it that it pins.
    fn pinned(&self, disk: &Arc<dyn Disk>, name: &ObjectName, bytes: &[u8]) -> Result<Pinned, StoreError> {
        let records = self.records(PinRecord::is_name);
        let mut known = self.pins.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|name, (sequence, _)| {
            records.iter().any(|held| held.record.name == *name && held.sequence == *sequence)
        });
        for held in &records {
            let name = held.record.name;
            if known.contains_key(&name) {
                continue;
            }
            let parsed = match content::read(&**disk, &held.record, 0..PIN_RECORD_BYTES as u64 + 1) {
                Ok(bytes) => {
                    PinRecord::parse_named(&name, &bytes, &self.ring.volume).map_err(|error| error.to_string())
                }
                Err(error) => {
                    let error = self.io(&format!("cannot read the pin record {name}"), error);
                    // Of one on a bad sector nothing more will be known. Another error passes: until then nothing goes.
                    if !error.is_bad_sector() {
                        return Err(error);
                    }
                    Err(error.to_string())
                }
            };
            if let Err(error) = &parsed {
                log::error!(
                    "{}: {error}: what it pins may be expired; `salvol unpin` with its name removes it",
                    self.spec()
                );
            }
            known.insert(name, (held.sequence, parsed.ok()));
        }
        let put =
            PinRecord::is_name(name).then(|| PinRecord::parse_named(name, bytes, &self.ring.volume).ok()).flatten();
        let unknown = known.values().any(|(_, record)| record.is_none());
        Ok(Pinned { records: known.values().filter_map(|(_, record)| *record).chain(put).collect(), unknown })
    }

    /// Makes room for the object and writes it.
    fn place(&self, disk: &Arc<dyn Disk>, writer: &mut Writer, plan: Plan, bytes: &[u8]) -> io::Result<Held> {
        if !plan.expired.is_empty() {
            for held in &plan.expired {
                log::info!("{}: object {} is expired: its place is needed", self.spec(), held.record.name);
            }
            self.remove(disk, writer, &plan.expired)?;
        }
        writer.place(disk, &self.ring, plan, bytes)
    }
}

impl Store for RingStore {
    fn put(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
        let mut writing = self.writing();
        let (disk, writer) = self.enter(&mut writing)?;
        let there = self.objects().get(name).cloned();
        if let Some(held) = there {
            return self.compare(&disk, &held, bytes);
        }
        let plan = self.plan(&disk, writer, name, bytes)?.ok_or_else(|| self.full(&disk, writer, name, bytes))?;
        match self.place(&disk, writer, plan, bytes) {
            Ok(held) => {
                self.objects().insert(*name, held);
                Ok(())
            }
            Err(error) => {
                self.unsettle(&mut writing);
                Err(self.io(&format!("cannot write object {name}"), error))
            }
        }
    }

    fn get(&self, name: &ObjectName, range: Range<u64>) -> Result<Vec<u8>, StoreError> {
        self.with_object(name, |held| content::read(&*self.disk, &held.record, range.clone()))
    }

    fn length(&self, name: &ObjectName) -> Result<u64, StoreError> {
        self.with_object(name, |held| Ok(held.record.bytes))
    }

    fn list(&self) -> Result<Vec<(ObjectName, u64)>, StoreError> {
        self.refresh()?;
        Ok(self.objects().iter().map(|(name, held)| (*name, held.record.bytes)).collect())
    }

    fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        let mut writing = self.writing();
        let (disk, writer) = self.enter(&mut writing)?;
        let Some(held) = self.objects().get(name).cloned() else {
            return Ok(());
        };
        self.remove(&disk, writer, &[held]).map_err(|error| {
            self.unsettle(&mut writing);
            self.io(&format!("cannot delete object {name}"), error)
        })
    }

    fn fill(&self) -> Result<Option<Fill>, StoreError> {
        self.refresh()?;
        let used: u64 = self.objects().values().map(|held| held.record.blocks()).sum();
        let data = self.ring.data();
        Ok(Some(Fill { used: used * BLOCK, capacity: (data.end - data.start) * BLOCK }))
    }

    fn audit(&self) -> Result<Vec<String>, StoreError> {
        let look = || audit::look(&self.disk, &self.ring).map_err(|error| self.io("cannot read the catalogue", error));
        let mut wrong = look()?;
        for _ in 1..LOOKS {
            if wrong.is_empty() {
                break;
            }
            // Damage stays where it is; what moves is the writer's work.
            std::thread::sleep(BETWEEN_LOOKS);
            let now = look()?;
            wrong.retain(|what| now.contains(what));
        }
        Ok(wrong.into_iter().collect())
    }

    fn forbid_device(&self, device: u64) {
        self.forbidden.store(device, Ordering::Relaxed);
    }

    fn lease(&self, lease: Lease) {
        *self.lease.lock().unwrap_or_else(PoisonError::into_inner) = Some(lease);
    }

    fn spec(&self) -> String {
        self.medium.spec()
    }
}
