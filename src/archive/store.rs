//! The store: where archive objects are kept. One trait for a directory, a ring on a device, an object store.

use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use crate::format::{COUNT_MAX, SegmentNumber, Uuid};

/// The name of an archive object. The order is that of the log, within a history.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct ObjectName {
    pub history: Uuid,
    pub segment: SegmentNumber,
    /// The epoch of the last batch in the object.
    pub epoch: u64,
    /// 0 for a whole segment; from 1 for the parts of one that is still open.
    pub part: u32,
}

impl ObjectName {
    /// Whether a log can have got there. Anybody can give a file a name, and epochs are counted on from those that there are: what is
    /// taken for one leaves room for as many again.
    pub fn is_possible(&self) -> bool {
        self.segment.0 <= COUNT_MAX / 2 && self.epoch <= COUNT_MAX / 2
    }
}

impl fmt::Display for ObjectName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{:016}.e{:08}.p{}", self.history, self.segment.0, self.epoch, self.part)
    }
}

/// Why a store did not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("{store}: {what}: {source}")]
    Io { store: String, what: String, source: std::io::Error },
    #[error("{store}: {what}")]
    Refused { store: String, what: String },
    #[error("{store}: there is no object {name}")]
    Missing { store: String, name: ObjectName },
    #[error(
        "{store}: object {name} is there already with other content; two volumes write to one store, or one was rolled back"
    )]
    Conflict { store: String, name: ObjectName },
}

impl StoreError {
    /// Whether a read failed with the error of a bad sector, and not with one of a device or a server that is away.
    pub(crate) fn is_bad_sector(&self) -> bool {
        matches!(self, Self::Io { source, .. } if source.raw_os_error() == Some(libc::EIO))
    }
}

/// How full a store is, in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Fill {
    pub used: u64,
    pub capacity: u64,
}

/// An object's length, and bytes of its two ends.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ends {
    pub bytes: u64,
    pub head: Vec<u8>,
    pub tail: Vec<u8>,
}

/// Says from which segment on somebody reads the past, who would miss what is expired.
pub type Lease = Arc<dyn Fn() -> Option<SegmentNumber> + Send + Sync>;

/// Keeps objects under names, durably. Called by archiver threads: every method may block.
pub trait Store: Send + Sync + 'static {
    /// Stores `bytes` under `name`, durable when it returns. The same bytes again are fine; other bytes are a `Conflict`.
    fn put(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), StoreError>;

    /// The bytes of `range` of an object, read past every cache where the store allows it; fewer when it ends before.
    fn get(&self, name: &ObjectName, range: Range<u64>) -> Result<Vec<u8>, StoreError>;

    /// Bytes of an object. A reader starts at the end, where the frame table is, so it needs to know where that is; a
    /// whole [`Self::list`] for one object would be out of proportion.
    fn length(&self, name: &ObjectName) -> Result<u64, StoreError>;

    /// The first `head` and the last `tail` bytes of an object, all of it when it has less: what a reader begins with.
    fn ends(&self, name: &ObjectName, head: u64, tail: u64) -> Result<Ends, StoreError> {
        let bytes = self.length(name)?;
        Ok(Ends { bytes, head: self.get(name, 0..head)?, tail: self.get(name, bytes.saturating_sub(tail)..bytes)? })
    }

    /// Every object with its length, in the order of the names.
    fn list(&self) -> Result<Vec<(ObjectName, u64)>, StoreError>;

    /// The same without the lengths, which a store may have to ask for one by one.
    fn names(&self) -> Result<Vec<ObjectName>, StoreError> {
        Ok(self.list()?.into_iter().map(|(name, _)| name).collect())
    }

    /// Removes an object; one that is not there is fine.
    fn delete(&self, name: &ObjectName) -> Result<(), StoreError>;

    /// How full the store is; `None` for one that cannot tell.
    fn fill(&self) -> Result<Option<Fill>, StoreError> {
        Ok(None)
    }

    /// What is damaged of the store itself, beside its objects. Never writes.
    fn audit(&self) -> Result<Vec<String>, StoreError> {
        Ok(Vec::new())
    }

    /// Tells the store which block device (`st_rdev`) it serves. A store that keeps its objects in a file system refuses
    /// every later `put` while that file system is on this device: the put would wait for the space that it is to free.
    fn forbid_device(&self, _device: u64) {}

    /// Tells a store that expires objects whom to ask before: from the segment that the answer names on none goes.
    fn lease(&self, _lease: Lease) {}

    /// The store's SPEC, for people.
    fn spec(&self) -> String;
}
