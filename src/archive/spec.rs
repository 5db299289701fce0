//! Which store: the SPEC that a user writes and the superblock keeps.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::{DirectoryStore, Store, StoreError};
use crate::format::Superblock;

/// A store as a user names it. Never guessed from what is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Spec {
    /// No archive: a log-structured disk that keeps no history.
    None,
    /// One object a file.
    Directory(PathBuf),
}

/// Why a text is not the SPEC of a store.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SpecError {
    #[error("{0}: stores of this kind are not in this version; use dir:PATH")]
    NotYet(String),
    #[error("{0}: the path is missing, as in dir:/backup/db")]
    NoPath(String),
    #[error("{0:?} names no store: use dir:PATH, or none for no archive (file:, dev: and s3: are planned)")]
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
            Some(("dir", "")) => Err(SpecError::NoPath(text.to_owned())),
            Some(("dir", path)) => Ok(Self::Directory(PathBuf::from(path))),
            Some(("file" | "dev" | "s3", _)) => Err(SpecError::NotYet(text.to_owned())),
            _ => Err(SpecError::Unknown(text.to_owned())),
        }
    }
}

impl fmt::Display for Spec {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("none"),
            Self::Directory(path) => write!(f, "dir:{}", path.display()),
        }
    }
}

/// Makes the store of a new volume, or takes one that is that volume's already; `None` for [`Spec::None`].
///
/// # Errors
/// When it cannot be written, or belongs to another volume.
pub fn create_store(spec: &Spec, volume: &Superblock) -> Result<Option<Arc<dyn Store>>, StoreError> {
    with_directory(spec, |path| DirectoryStore::create(path, volume))
}

/// Makes sure that [`create_store`] can make a store for a new volume there, and claims nothing yet.
///
/// # Errors
/// When it cannot be written, or belongs to a volume already.
pub fn prepare_store(spec: &Spec) -> Result<(), StoreError> {
    match spec {
        Spec::None => Ok(()),
        Spec::Directory(path) => DirectoryStore::prepare(path),
    }
}

/// Opens a store that was created before; with `volume`, only that volume's.
///
/// # Errors
/// When there is no store, for example because its file system is not mounted, or it belongs to another volume.
pub fn open_store(spec: &Spec, volume: Option<&Superblock>) -> Result<Option<Arc<dyn Store>>, StoreError> {
    with_directory(spec, |path| DirectoryStore::open(path, volume))
}

/// The volume that a store belongs to: identity, key and geometry, enough to restore from the archive alone.
///
/// # Errors
/// As for [`open_store`], and for [`Spec::None`].
pub fn store_identity(spec: &Spec) -> Result<Superblock, StoreError> {
    match spec {
        Spec::None => Err(StoreError::Refused { store: spec.to_string(), what: "there is no archive".to_owned() }),
        Spec::Directory(path) => DirectoryStore::open(path, None).map(|store| store.identity().clone()),
    }
}

fn with_directory(
    spec: &Spec,
    open: impl FnOnce(&Path) -> Result<DirectoryStore, StoreError>,
) -> Result<Option<Arc<dyn Store>>, StoreError> {
    match spec {
        Spec::None => Ok(None),
        Spec::Directory(path) => Ok(Some(Arc::new(open(path)?))),
    }
}
