//! The fork record: a history ends here, that one continues it.
//!
//! A volume whose primary is lost goes on under a new history. The record says so in the store, under a name that only
//! the old history has: whoever still writes under that one, a primary that came back, finds it before each put. From
//! record to record a reader goes from the store's first history to the newest, and back.

use std::fmt;
use std::sync::Arc;

use zerocopy::little_endian::{I64, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{ArchiveError, ObjectName, Store, StoreError, canonical};
use crate::format::{BLOCK_BYTES, COUNT_MAX, Checksum, FormatError, Position, SegmentNumber, Superblock, Uuid};

/// Bytes of a fork record.
pub const FORK_RECORD_BYTES: usize = 4352;

const VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"SALVOLFK";
const WHAT: &str = "fork record";

/// Where a history ends, and what continues it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForkRecord {
    /// The volume as it goes on, canonical: its history, the parent that ends, the position of the fork.
    pub successor: Superblock,
    /// The segment of the fork position.
    pub segment: SegmentNumber,
    /// The checksum of the batch header at the fork position.
    pub checksum: Checksum,
    /// The largest epoch in the archive at that time.
    pub epoch: u64,
    /// When, nanoseconds since 1970, UTC.
    pub time_ns: i64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Disk {
    magic: [u8; 8],
    version: U32,
    reserved: U32,
    features_incompatible: U64,
    features_compatible: U64,
    parent: [u8; 16],
    segment: U64,
    position: U64,
    header: Checksum,
    epoch: U64,
    time_ns: I64,
    padding: [u8; 144],
    superblock: [u8; BLOCK_BYTES],
    checksum: Checksum,
}

const CHECKED: usize = FORK_RECORD_BYTES - 16;
const _: () = assert!(size_of::<Disk>() == FORK_RECORD_BYTES);
const _: () = assert!(std::mem::offset_of!(Disk, superblock) == 240);
const _: () = assert!(std::mem::offset_of!(Disk, checksum) == CHECKED);

impl ForkRecord {
    /// The name that the record of the fork of `history` has. No segment is called so: they count from 1.
    pub fn name_of(history: Uuid) -> ObjectName {
        ObjectName { history, ..ObjectName::default() }
    }

    /// Whether `name` is that of a record.
    pub fn is_name(name: &ObjectName) -> bool {
        *name == Self::name_of(name.history)
    }

    /// The record's name.
    pub fn name(&self) -> ObjectName {
        Self::name_of(self.parent())
    }

    /// The history that ends.
    pub fn parent(&self) -> Uuid {
        self.successor.parent_history
    }

    /// The last position of the parent that counts.
    pub fn position(&self) -> Position {
        self.successor.fork_position
    }

    /// The record as an object of the store.
    pub fn encode(&self) -> Vec<u8> {
        let successor = canonical(&self.successor);
        let mut disk = Disk {
            magic: MAGIC,
            version: U32::new(VERSION),
            reserved: U32::new(0),
            features_incompatible: U64::new(0),
            features_compatible: U64::new(0),
            parent: successor.parent_history.0,
            segment: U64::new(self.segment.0),
            position: U64::new(successor.fork_position.0),
            header: self.checksum,
            epoch: U64::new(self.epoch),
            time_ns: I64::new(self.time_ns),
            padding: [0; 144],
            superblock: successor.encode(),
            checksum: Checksum::default(),
        };
        disk.checksum = Checksum::keyed(&successor.key, &[&disk.as_bytes()[..CHECKED]]);
        disk.as_bytes().to_vec()
    }

    /// The record in `bytes`, when it is one of `volume`, in whatever history.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8], volume: &Superblock) -> Result<Self, FormatError> {
        let short = |_| FormatError::Length { what: WHAT, have: bytes.len(), need: FORK_RECORD_BYTES };
        let disk = Disk::ref_from_bytes(bytes).map_err(short)?;
        if disk.magic != MAGIC {
            return Err(FormatError::Magic { what: WHAT });
        }
        if disk.version.get() != VERSION {
            return Err(FormatError::Version { found: disk.version.get(), supported: VERSION });
        }
        if disk.checksum != Checksum::keyed(&volume.key, &[&bytes[..CHECKED]]) {
            return Err(FormatError::Checksum { what: WHAT });
        }
        if disk.features_incompatible.get() != 0 {
            return Err(FormatError::Features { bits: disk.features_incompatible.get() });
        }
        let successor = Superblock::parse(&disk.superblock)?;
        let same = successor.uuid == volume.uuid
            && successor.key == volume.key
            && successor.parent_history.0 == disk.parent
            && successor.history != successor.parent_history;
        if !same {
            return Err(FormatError::Identity { what: WHAT });
        }
        let field = |field, value| Err(FormatError::Field { what: WHAT, field, value });
        if disk.position.get() == 0 || disk.position.get() != successor.fork_position.0 {
            return field("fork position", disk.position.get());
        }
        if !(1..=COUNT_MAX).contains(&disk.segment.get()) {
            return field("segment", disk.segment.get());
        }
        if disk.epoch.get() > COUNT_MAX {
            return field("epoch", disk.epoch.get());
        }
        Ok(Self {
            successor,
            segment: SegmentNumber(disk.segment.get()),
            checksum: disk.header,
            epoch: disk.epoch.get(),
            time_ns: disk.time_ns.get(),
        })
    }

    /// The record of the fork of `history`, if it has one.
    ///
    /// # Errors
    /// When the store fails, or the record is damaged.
    pub fn read(store: &Arc<dyn Store>, history: Uuid, volume: &Superblock) -> Result<Option<Self>, ArchiveError> {
        let name = Self::name_of(history);
        let bytes = match store.get(&name, 0..FORK_RECORD_BYTES as u64 + 1) {
            Ok(bytes) => bytes,
            Err(StoreError::Missing { .. }) => return Ok(None),
            Err(error) => return Err(error.into()),
        };
        let record = Self::parse(&bytes, volume).map_err(|error| ArchiveError::object(&name, error))?;
        if record.parent() != history {
            return Err(ArchiveError::object(&name, FormatError::Identity { what: WHAT }));
        }
        Ok(Some(record))
    }

    /// Makes sure that no record says that the history of `volume` has ended: whoever writes under it asks before.
    ///
    /// # Errors
    /// [`ArchiveError::Superseded`], and when the store fails.
    pub fn refuse_superseded(store: &Arc<dyn Store>, volume: &Superblock) -> Result<(), ArchiveError> {
        match store.length(&Self::name_of(volume.history)) {
            Err(StoreError::Missing { .. }) => return Ok(()),
            Err(error) => return Err(error.into()),
            Ok(_) => {}
        }
        // Damaged or not, it is there.
        let fork = match Self::read(store, volume.history, volume) {
            Ok(None) => return Ok(()),
            Ok(Some(record)) => record.to_string(),
            Err(error) => format!("how, cannot be told ({error})"),
        };
        Err(ArchiveError::Superseded { history: volume.history, fork })
    }
}

/// For the sentence "it was rebuilt ...".
impl fmt::Display for ForkRecord {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let time = jiff::Timestamp::from_nanosecond(i128::from(self.time_ns));
        let time = time.map_or_else(|_| self.time_ns.to_string(), |time| time.to_string());
        write!(f, "history {} continues it from position {} since {time}", self.successor.history, self.position())
    }
}
