//! Which store: the SPEC that a user writes and the superblock keeps.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use super::{DirectoryStore, Provision, RingKind, RingStore, Store, StoreError};
use crate::format::Superblock;

/// A store as a user names it. Never guessed from what is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spec {
    /// No archive: a log-structured disk that keeps no history.
    None,
    /// One object a file.
    Directory(PathBuf),
    /// A ring of objects in a regular file.
    File(PathBuf),
    /// A ring of objects on a block device.
    Device(PathBuf),
}

/// Why a text is not the SPEC of a store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    #[error("{0}: stores of this kind are not in this version; use dir:PATH, file:PATH or dev:PATH")]
    NotYet(String),
    #[error("{0}: the path is missing, as in dir:/backup/db")]
    NoPath(String),
    #[error("{0:?} names no store: use dir:PATH, file:PATH, dev:PATH, or none for no archive (s3: is planned)")]
    Unknown(String),
}

impl Spec {
    /// The store that `text` names.
    ///
    /// # Errors
    /// When it names none that this version has.
    pub fn parse(text: &str) -> Result<Self, SpecError> {
        match text.split_once(':') {
            None if text == "none" => Ok(Self::None),
            Some(("dir" | "file" | "dev", "")) => Err(SpecError::NoPath(text.to_owned())),
            Some(("dir", path)) => Ok(Self::Directory(PathBuf::from(path))),
            Some(("file", path)) => Ok(Self::File(PathBuf::from(path))),
            Some(("dev", path)) => Ok(Self::Device(PathBuf::from(path))),
            Some(("s3", _)) => Err(SpecError::NotYet(text.to_owned())),
            _ => Err(SpecError::Unknown(text.to_owned())),
        }
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Directory(path) => write!(f, "dir:{}", path.display()),
            Self::File(path) => write!(f, "file:{}", path.display()),
            Self::Device(path) => write!(f, "dev:{}", path.display()),
        }
    }
}

/// Makes the store of a new volume, or takes one that is that volume's already; `None` for [`Spec::None`].
///
/// # Errors
/// When it cannot be written, or belongs to another volume.
pub fn create_store(spec: &Spec, volume: &Superblock) -> Result<Option<Arc<dyn Store>>, StoreError> {
    Ok(match spec {
        Spec::None => None,
        Spec::Directory(path) => Some(Arc::new(DirectoryStore::create(path, volume)?)),
        Spec::File(path) => Some(Arc::new(RingStore::create(RingKind::File, path, volume)?)),
        Spec::Device(path) => Some(Arc::new(RingStore::create(RingKind::Device, path, volume)?)),
    })
}

/// Makes sure that [`create_store`] can make a store for a new volume there, and claims nothing yet. A directory or file
/// that is missing is made.
///
/// # Errors
/// When it cannot be written, belongs to a volume already, or does not do for the volume.
pub fn prepare_store(spec: &Spec, provision: &Provision) -> Result<(), StoreError> {
    match spec {
        Spec::None => Ok(()),
        Spec::Directory(path) => DirectoryStore::prepare(path),
        Spec::File(path) => RingStore::prepare(RingKind::File, path, provision),
        Spec::Device(path) => RingStore::prepare(RingKind::Device, path, provision),
    }
}

/// Opens a store that was created before; with `volume`, only that volume's.
///
/// # Errors
/// When there is no store, for example because its file system is not mounted, or it belongs to another volume.
pub fn open_store(spec: &Spec, volume: Option<&Superblock>) -> Result<Option<Arc<dyn Store>>, StoreError> {
    Ok(match spec {
        Spec::None => None,
        Spec::Directory(path) => Some(Arc::new(DirectoryStore::open(path, volume)?)),
        Spec::File(path) => Some(Arc::new(RingStore::open(RingKind::File, path, volume)?)),
        Spec::Device(path) => Some(Arc::new(RingStore::open(RingKind::Device, path, volume)?)),
    })
}

/// The volume that a store belongs to: identity, key and geometry, enough to restore from the archive alone.
///
/// # Errors
/// As for [`open_store`], and for [`Spec::None`].
pub fn store_identity(spec: &Spec) -> Result<Superblock, StoreError> {
    let ring = |kind, path| RingStore::open(kind, path, None).map(|store| store.identity().clone());
    match spec {
        Spec::None => Err(StoreError::Refused { store: spec.to_string(), what: "there is no archive".to_owned() }),
        Spec::Directory(path) => DirectoryStore::open(path, None).map(|store| store.identity().clone()),
        Spec::File(path) => ring(RingKind::File, path),
        Spec::Device(path) => ring(RingKind::Device, path),
    }
}
