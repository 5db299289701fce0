//! The store `dir:PATH`: a directory, one object a file.
//!
//! ```text
//! PATH/salvol-store                                     whose store this is: a line of text, the superblock
//! PATH/HISTORY-UUID/NNNNNNNNNNNNNNNN.eEEEEEEEE.pN.zst   segment, epoch and part of an object, in decimal
//! ```
//!
//! - An object's file is there whole or not at all, and is never replaced.
//! - An unmounted directory looks empty and writable. So the identity file is made once, at create, and every call
//!   looks for it first, in the very directory that it then works in.
//! - Every put checks that the directory is not on the volume's own device, where it would wait for itself.
//! - Several processes may have the store open; a file that one of them is writing is locked.

use std::collections::BTreeSet;
use std::fs;
use std::io;
use std::ops::Range;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use super::devices::rests_on;
use super::file::{Directory, is_temporary, read_small};
use super::{Ends, Fill, ObjectName, Store, StoreError, canonical};
use crate::format::{BLOCK_BYTES, SegmentNumber, Superblock, Uuid};

const IDENTITY: &str = "salvol-store";
/// The identity file's first line, for people; the superblock follows.
const IDENTITY_LINE: &[u8] = b"salvol store, version 1\n";
/// A put that finds its name taken compares piece by piece.
const COMPARE_BYTES: usize = 2 * 1024 * 1024;

/// A directory that keeps the objects of one volume.
pub struct DirectoryStore {
    location: Location,
    identity: Superblock,
    /// The volume's own device, 0 while it is not known.
    forbidden: AtomicU64,
    foreign_reported: AtomicBool,
    /// Whether leftovers have been removed; who only reads leaves them alone.
    swept: AtomicBool,
}

impl DirectoryStore {
    /// Makes `path` the store of `volume`: a new or an existing directory, or one that is that volume's store already.
    ///
    /// # Errors
    /// When it belongs to another volume, cannot be written, or has archives but nothing that says whose.
    pub fn create(path: &Path, volume: &Superblock) -> Result<Self, StoreError> {
        let location = Location(path.to_owned());
        let (root, identity) = location.prepare()?;
        if identity.is_none() {
            location.place_identity(&root, volume)?;
        }
        Self::open(path, Some(volume))
    }

    /// Makes sure that [`Self::create`] can make `path` the store of a new volume, and claims nothing: an empty directory
    /// is anybody's.
    ///
    /// # Errors
    /// When it belongs to a volume already, and as for [`Self::create`].
    pub fn prepare(path: &Path) -> Result<(), StoreError> {
        let location = Location(path.to_owned());
        match location.prepare()? {
            (_, None) => Ok(()),
            (_, Some(found)) => {
                let what = format!(
                    "the store belongs to volume {} ({}): give another directory, or remove this one first when nobody needs \
                     that archive",
                    found.uuid, found.name
                );
                Err(location.refused(what))
            }
        }
    }

    /// Opens the store at `path`; with `volume`, only that volume's.
    ///
    /// # Errors
    /// When there is none, or it belongs to another volume.
    pub fn open(path: &Path, volume: Option<&Superblock>) -> Result<Self, StoreError> {
        let location = Location(path.to_owned());
        let identity = location.identity(&location.root()?)?.ok_or_else(|| location.unmounted())?;
        if let Some(volume) = volume {
            location.check(&identity, volume)?;
        }
        let (foreign_reported, swept) = (AtomicBool::new(false), AtomicBool::new(false));
        Ok(Self { location, identity, forbidden: AtomicU64::new(0), foreign_reported, swept })
    }

    /// The volume that the store belongs to: identity, key and geometry as they were when the store was created.
    pub fn identity(&self) -> &Superblock {
        &self.identity
    }

    /// The directory, after checking that it is the store it was when it was opened.
    fn enter(&self) -> Result<Directory, StoreError> {
        let root = self.location.root()?;
        let found = self.location.identity(&root)?.ok_or_else(|| self.location.unmounted())?;
        self.location.check(&found, &self.identity)?;
        Ok(root)
    }

    /// The directory of a history, when there is one.
    fn history(&self, history: &Uuid) -> Result<Option<Directory>, StoreError> {
        self.history_in(&self.enter()?, history)
    }

    fn history_in(&self, root: &Directory, history: &Uuid) -> Result<Option<Directory>, StoreError> {
        match root.inner(&history.to_string()) {
            Ok(directory) => Ok(Some(directory)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.location.io(&format!("cannot open the history {history}"), error)),
        }
    }

    /// What `call` reads of the file of an object.
    fn read<T>(
        &self,
        name: &ObjectName,
        call: impl FnOnce(&Directory, &str) -> io::Result<T>,
    ) -> Result<T, StoreError> {
        let missing = || StoreError::Missing { store: self.spec(), name: *name };
        let directory = self.history(&name.history)?.ok_or_else(missing)?;
        call(&directory, &file_name(name)).map_err(|error| match error.kind() {
            io::ErrorKind::NotFound => missing(),
            _ => self.location.io(&format!("cannot read object {name}"), error),
        })
    }

    fn on_own_device(&self, root: &Directory) -> Result<(), StoreError> {
        let forbidden = self.forbidden.load(Ordering::Relaxed);
        let device = root.device().map_err(|error| self.location.io("cannot tell its device", error))?;
        if forbidden != 0 && rests_on(device, forbidden) {
            return Err(self.location.refused(
                "the directory is on the volume's own device: an archive there would be lost with the volume, and \
                 would wait for the space that it is to free; move it to another device",
            ));
        }
        Ok(())
    }

    /// Compares an object that is there with the bytes that were to be put. The same: makes it durable, since the put
    /// that placed it may have died before it had.
    fn compare(&self, directory: &Directory, name: &ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
        let file_name = file_name(name);
        let failed = |error| self.location.io(&format!("cannot read object {name}"), error);
        let conflict = || StoreError::Conflict { store: self.spec(), name: *name };
        let file = directory.file(&file_name).map_err(failed)?;
        file.sync_all().map_err(failed)?;
        if file.metadata().map_err(failed)?.len() != bytes.len() as u64 {
            return Err(conflict());
        }
        for (rank, piece) in bytes.chunks(COMPARE_BYTES).enumerate() {
            let at = (rank * COMPARE_BYTES) as u64;
            match directory.read(&file_name, at..at + piece.len() as u64).map_err(failed) {
                Ok(there) if there == piece => {}
                Ok(_) => return Err(conflict()),
                // Whoever reads all of it finds out whether it is this object or the store.
                Err(error) if error.is_bad_sector() => return Err(conflict()),
                Err(error) => return Err(error),
            }
        }
        directory.sync().map_err(failed)
    }

    /// Removes the unfinished files of processes that died.
    fn remove_leftovers(&self) -> Result<(), StoreError> {
        let root = self.enter()?;
        self.sweep(&root)?;
        for history in self.histories(&root)? {
            if let Some(directory) = self.history_in(&root, &history)? {
                self.sweep(&directory)?;
            }
        }
        Ok(())
    }

    fn sweep(&self, directory: &Directory) -> Result<(), StoreError> {
        for (name, _) in self.location.entries(directory)? {
            match directory.remove_leftover(&name) {
                Ok(true) => log::info!("{}: removed the unfinished {name}", self.spec()),
                Ok(false) => {}
                // Its writer was faster.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => log::warn!("{}: cannot remove the unfinished {name}: {error}", self.spec()),
            }
        }
        Ok(())
    }

    fn histories(&self, root: &Directory) -> Result<BTreeSet<Uuid>, StoreError> {
        let mut found = BTreeSet::new();
        for (name, entry) in self.location.entries(root)? {
            match (history_named(&name), entry.file_type()) {
                (Some(history), Ok(kind)) if kind.is_dir() => {
                    found.insert(history);
                }
                _ if name == IDENTITY || is_temporary(&name) => {}
                // A history that cannot be looked at is not one that is not there.
                (Some(_), Err(error)) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(self.location.io(&format!("cannot look at {name}"), error));
                }
                _ => self.report_foreign(&name),
            }
        }
        Ok(found)
    }

    /// What `take` makes of each object's name and file, in their order; of what is no file it makes None.
    fn each_object<T: Ord>(
        &self,
        take: impl Fn(ObjectName, &fs::DirEntry) -> io::Result<Option<T>>,
    ) -> Result<Vec<T>, StoreError> {
        let root = self.enter()?;
        let mut objects = Vec::new();
        for history in self.histories(&root)? {
            let Some(directory) = self.history_in(&root, &history)? else { continue };
            for (name, entry) in self.location.entries(&directory)? {
                match object_named(history, &name).map(|object| take(object, &entry)) {
                    Some(Ok(Some(object))) => objects.push(object),
                    // Deleted since the directory was read.
                    Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => {}
                    Some(Err(error)) => return Err(self.location.io(&format!("cannot look at {name}"), error)),
                    _ if is_temporary(&name) => {}
                    _ => self.report_foreign(&name),
                }
            }
        }
        objects.sort_unstable();
        Ok(objects)
    }

    fn report_foreign(&self, name: &str) {
        if !self.foreign_reported.swap(true, Ordering::Relaxed) {
            log::warn!("{}: {name} is none of ours and is ignored; so is every other such name", self.spec());
        }
    }
}

impl Store for DirectoryStore {
    fn put(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
        let root = self.enter()?;
        self.on_own_device(&root)?;
        if !self.swept.swap(true, Ordering::Relaxed) {
            self.remove_leftovers()?;
        }
        let failed = |error| self.location.io(&format!("cannot write object {name}"), error);
        let directory = root.inner_or_new(&name.history.to_string()).map_err(failed)?;
        let file_name = file_name(name);
        match directory.file(&file_name) {
            Ok(_) => return self.compare(&directory, name, bytes),
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
        }
        if directory.place(&file_name, bytes).map_err(failed)? {
            return Ok(());
        }
        self.compare(&directory, name, bytes)
    }

    fn get(&self, name: &ObjectName, range: Range<u64>) -> Result<Vec<u8>, StoreError> {
        self.read(name, |directory, file| directory.read(file, range.clone()))
    }

    fn ends(&self, name: &ObjectName, head: u64, tail: u64) -> Result<Ends, StoreError> {
        self.read(name, |directory, file| directory.read_ends(file, head, tail))
    }

    fn length(&self, name: &ObjectName) -> Result<u64, StoreError> {
        self.read(name, |directory, file| Ok(directory.file(file)?.metadata()?.len()))
    }

    fn list(&self) -> Result<Vec<(ObjectName, u64)>, StoreError> {
        self.each_object(|name, entry| {
            let metadata = entry.metadata()?;
            Ok(metadata.is_file().then_some((name, metadata.len())))
        })
    }

    fn names(&self) -> Result<Vec<ObjectName>, StoreError> {
        self.each_object(|name, entry| Ok(entry.file_type()?.is_file().then_some(name)))
    }

    fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        let Some(directory) = self.history(&name.history)? else {
            return Ok(());
        };
        let removed = directory.remove(&file_name(name)).and_then(|()| directory.sync());
        removed.map_err(|error| self.location.io(&format!("cannot delete object {name}"), error))
    }

    /// Of the file system that the directory is on, whatever else is there.
    fn fill(&self) -> Result<Option<Fill>, StoreError> {
        let (used, capacity) =
            self.enter()?.fill().map_err(|error| self.location.io("cannot tell how full it is", error))?;
        Ok(Some(Fill { used, capacity }))
    }

    fn forbid_device(&self, device: u64) {
        self.forbidden.store(device, Ordering::Relaxed);
    }

    fn spec(&self) -> String {
        self.location.spec()
    }
}

/// Where a store is, before anything is known of it.
struct Location(PathBuf);

impl Location {
    fn spec(&self) -> String {
        format!("dir:{}", self.0.display())
    }

    fn io(&self, what: &str, source: io::Error) -> StoreError {
        StoreError::Io { store: self.spec(), what: what.to_owned(), source }
    }

    fn refused(&self, what: impl Into<String>) -> StoreError {
        StoreError::Refused { store: self.spec(), what: what.into() }
    }

    fn unmounted(&self) -> StoreError {
        self.refused(format!(
            "the directory has no file {IDENTITY}: it is not a store, or the store's file system is not mounted"
        ))
    }

    fn root(&self) -> Result<Directory, StoreError> {
        Directory::open(&self.0).map_err(|error| self.io("cannot open the directory", error))
    }

    fn sync_parent(&self) -> io::Result<()> {
        match self.0.parent() {
            Some(parent) if parent.as_os_str().is_empty() => Directory::open(Path::new("."))?.sync(),
            Some(parent) => Directory::open(parent)?.sync(),
            None => Ok(()),
        }
    }

    /// Whose store this is, when it says so.
    fn identity(&self, root: &Directory) -> Result<Option<Superblock>, StoreError> {
        let bytes = match root.file(IDENTITY).and_then(|file| read_small(&file, 2 * BLOCK_BYTES as u64)) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(self.io(&format!("cannot read {IDENTITY}"), error)),
        };
        let Some(block) = bytes.strip_prefix(IDENTITY_LINE) else {
            return Err(self.refused(format!("its file {IDENTITY} is damaged, or of another version of salvol")));
        };
        let identity = Superblock::parse(block);
        identity.map(Some).map_err(|error| self.refused(format!("its file {IDENTITY} is damaged: {error}")))
    }

    /// Checks that the store of `found` is the one of `wanted`, in whatever history.
    fn check(&self, found: &Superblock, wanted: &Superblock) -> Result<(), StoreError> {
        if found.uuid != wanted.uuid {
            let (found, wanted) = (found.uuid, wanted.uuid);
            return Err(self.refused(format!("the store belongs to volume {found}, not to {wanted}")));
        }
        if found.key != wanted.key {
            let what = format!("the store belongs to a volume {} with another key", found.uuid);
            return Err(self.refused(what));
        }
        Ok(())
    }

    /// The directory, made if it is missing, and whose store it is; one in which a store can be.
    fn prepare(&self) -> Result<(Directory, Option<Superblock>), StoreError> {
        match fs::DirBuilder::new().mode(0o700).create(&self.0) {
            Ok(()) => self.sync_parent().map_err(|error| self.io("cannot make its name durable", error))?,
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(self.io("cannot make the directory", error)),
        }
        let root = self.root()?;
        let identity = self.identity(&root)?;
        if identity.is_none() && self.entries(&root)?.iter().any(|(name, _)| history_named(name).is_some()) {
            let what = format!("the directory has archives but no file {IDENTITY} that says whose they are");
            return Err(self.refused(what));
        }
        root.probe().map_err(|error| self.io("the directory cannot be written", error))?;
        Ok((root, identity))
    }

    fn place_identity(&self, root: &Directory, volume: &Superblock) -> Result<(), StoreError> {
        let bytes = [IDENTITY_LINE, &canonical(volume).encode()].concat();
        // If another process was faster, it is its store, which the caller then finds out.
        root.place(IDENTITY, &bytes).map(drop).map_err(|error| self.io(&format!("cannot make {IDENTITY}"), error))
    }

    fn entries(&self, directory: &Directory) -> Result<Vec<(String, fs::DirEntry)>, StoreError> {
        directory.entries().map_err(|error| self.io("cannot list the directory", error))
    }
}

fn file_name(name: &ObjectName) -> String {
    format!("{:016}.e{:08}.p{}.zst", name.segment.0, name.epoch, name.part)
}

/// The object whose file is called `name`: exactly as [`file_name`] spells it, of a segment and an epoch that a log can reach.
fn object_named(history: Uuid, name: &str) -> Option<ObjectName> {
    let (segment, rest) = name.strip_suffix(".zst")?.split_once(".e")?;
    let (epoch, part) = rest.split_once(".p")?;
    let segment = SegmentNumber(segment.parse().ok()?);
    let object = ObjectName { history, segment, epoch: epoch.parse().ok()?, part: part.parse().ok()? };
    (file_name(&object) == name && object.is_possible()).then_some(object)
}

fn history_named(name: &str) -> Option<Uuid> {
    Uuid::parse(name).filter(|history| history.to_string() == name)
}
