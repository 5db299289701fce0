//! The pin record: a synch point that no policy removes.
//!
//! A small object of segment 0, beside the fork record, so every store can keep it. It says which segments the point needs;
//! pruning, and a ring that is full, leave those alone for as long as the record is there. What is between them and the rest
//! of the archive may go, so what is kept is no longer in one piece:
//!
//! ```text
//! segments   5 ──── 13           20 ─────────────── 41
//!            an island           the chain that ends now
//!            pinned                └── kept from here
//! ```

use std::collections::BTreeSet;
use std::ops::RangeInclusive;
use std::sync::Arc;

use zerocopy::little_endian::{I64, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{ArchiveError, ObjectName, Store, StoreError};
use crate::format::{Checksum, FormatError, Position, SegmentNumber, Superblock, Uuid, check_counts};

/// Bytes of a pin record.
pub const PIN_RECORD_BYTES: usize = 256;

const VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"SALVOLPN";
const WHAT: &str = "pin record";

/// A synch point that is kept, and what it needs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PinRecord {
    /// The volume's history when the point was pinned; the point may be an ancestor's.
    pub history: Uuid,
    /// The point: its position, and the time of its mark. A position may be used twice, see `--accept-loss`.
    pub position: Position,
    pub point_time_ns: i64,
    /// The segment of the point, and the oldest one that it needs.
    pub segment: SegmentNumber,
    pub oldest_needed: SegmentNumber,
    /// When it was pinned, nanoseconds since 1970, UTC.
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
    volume: [u8; 16],
    history: [u8; 16],
    position: U64,
    segment: U64,
    oldest_needed: U64,
    point_time_ns: I64,
    time_ns: I64,
    padding: [u8; 136],
    checksum: Checksum,
}

const CHECKED: usize = PIN_RECORD_BYTES - 16;
const _: () = assert!(size_of::<Disk>() == PIN_RECORD_BYTES);
const _: () = assert!(std::mem::offset_of!(Disk, padding) == 104);
const _: () = assert!(std::mem::offset_of!(Disk, checksum) == CHECKED);

impl PinRecord {
    /// The name of the record with this number, from 1, of those that `history` has.
    pub fn name_of(history: Uuid, number: u32) -> ObjectName {
        ObjectName { history, part: number, ..ObjectName::default() }
    }

    /// Whether `name` is that of a record.
    pub fn is_name(name: &ObjectName) -> bool {
        name.part > 0 && *name == Self::name_of(name.history, name.part)
    }

    /// The segments that it keeps.
    pub fn window(&self) -> RangeInclusive<SegmentNumber> {
        self.oldest_needed..=self.segment
    }

    /// The record as an object of the store.
    pub fn encode(&self, volume: &Superblock) -> Vec<u8> {
        let mut disk = Disk {
            magic: MAGIC,
            version: U32::new(VERSION),
            reserved: U32::new(0),
            features_incompatible: U64::new(0),
            features_compatible: U64::new(0),
            volume: volume.uuid.0,
            history: self.history.0,
            position: U64::new(self.position.0),
            segment: U64::new(self.segment.0),
            oldest_needed: U64::new(self.oldest_needed.0),
            point_time_ns: I64::new(self.point_time_ns),
            time_ns: I64::new(self.time_ns),
            padding: [0; 136],
            checksum: Checksum::default(),
        };
        disk.checksum = Checksum::keyed(&volume.key, &[&disk.as_bytes()[..CHECKED]]);
        disk.as_bytes().to_vec()
    }

    /// The record in `bytes`, when it is one of `volume`, in whatever history.
    ///
    /// # Errors
    /// What is wrong with it.
    pub fn parse(bytes: &[u8], volume: &Superblock) -> Result<Self, FormatError> {
        let short = |_| FormatError::Length { what: WHAT, have: bytes.len(), need: PIN_RECORD_BYTES };
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
        if disk.volume != volume.uuid.0 {
            return Err(FormatError::Identity { what: WHAT });
        }
        let counts =
            [("position", disk.position), ("segment", disk.segment), ("oldest needed segment", disk.oldest_needed)];
        check_counts(WHAT, counts)?;
        // What it keeps is bounded by what a scan may need.
        let (segment, oldest) = (disk.segment.get(), disk.oldest_needed.get());
        if oldest > segment || segment - oldest > u64::from(volume.geometry.working_set) {
            return Err(FormatError::Field { what: WHAT, field: "oldest needed segment", value: oldest });
        }
        Ok(Self {
            history: Uuid(disk.history),
            position: Position(disk.position.get()),
            point_time_ns: disk.point_time_ns.get(),
            segment: SegmentNumber(segment),
            oldest_needed: SegmentNumber(oldest),
            time_ns: disk.time_ns.get(),
        })
    }

    /// The record in `bytes`, which the store has under `name`.
    ///
    /// # Errors
    /// What is wrong with it.
    pub(super) fn parse_named(name: &ObjectName, bytes: &[u8], volume: &Superblock) -> Result<Self, ArchiveError> {
        match Self::parse(bytes, volume) {
            Ok(record) if record.history == name.history => Ok(record),
            Ok(_) => Err(ArchiveError::object(name, FormatError::Identity { what: WHAT })),
            Err(error) => Err(ArchiveError::object(name, error)),
        }
    }

    /// The record that the store has under `name`, if there is one.
    ///
    /// # Errors
    /// When the store fails, or the record is damaged.
    pub fn read(store: &Arc<dyn Store>, name: &ObjectName, volume: &Superblock) -> Result<Option<Self>, ArchiveError> {
        match store.get(name, 0..PIN_RECORD_BYTES as u64 + 1) {
            Ok(bytes) => Self::parse_named(name, &bytes, volume).map(Some),
            Err(StoreError::Missing { .. }) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// The oldest of `archived` that is in one piece with `from`.
pub fn one_piece_from(archived: &BTreeSet<SegmentNumber>, from: SegmentNumber) -> SegmentNumber {
    let mut oldest = from;
    while oldest.0 > 1 && archived.contains(&oldest.minus(1)) {
        oldest = oldest.minus(1);
    }
    oldest
}

/// The pins in a store that are of a volume's past.
#[derive(Debug, Default)]
pub struct Pins {
    pub records: Vec<(ObjectName, PinRecord)>,
    /// Those of points that a fork has left behind: they keep nothing.
    pub left_behind: Vec<(ObjectName, PinRecord)>,
    /// Those that are damaged. What they keep is not known.
    pub damaged: Vec<(ObjectName, ArchiveError)>,
    /// The largest number of any, by history.
    numbers: Vec<(Uuid, u32)>,
}

impl Pins {
    /// The pins of the past of `volume`.
    ///
    /// # Errors
    /// When the store fails. A record on a bad sector is a damaged one.
    pub fn read(store: &Arc<dyn Store>, volume: &Superblock) -> Result<Self, ArchiveError> {
        let list = store.names()?;
        let mut pins = Self::default();
        if !list.iter().any(PinRecord::is_name) {
            return Ok(pins);
        }
        let lasts = super::lineage::lasts(store, volume, &list)?;
        for name in list.iter().filter(|name| PinRecord::is_name(name)) {
            pins.numbers.push((name.history, name.part));
            match PinRecord::read(store, name, volume) {
                Ok(None) => {}
                Ok(Some(record)) => match lasts.get(&name.history) {
                    Some(last) if record.position > *last => pins.left_behind.push((*name, record)),
                    // Of a history that is not known to belong here: the record of its fork may be what is damaged.
                    _ => pins.records.push((*name, record)),
                },
                Err(ArchiveError::Store(error)) if !error.is_bad_sector() => return Err(error.into()),
                Err(error) => pins.damaged.push((*name, error)),
            }
        }
        Ok(pins)
    }

    /// The pin of the point at `position` whose mark has this time.
    pub fn of(&self, position: Position, point_time_ns: i64) -> Option<&ObjectName> {
        let is_it = |record: &PinRecord| record.position == position && record.point_time_ns == point_time_ns;
        self.records.iter().find(|(_, record)| is_it(record)).map(|(name, _)| name)
    }

    /// Whether a pin keeps `segment`.
    pub fn keep(&self, segment: SegmentNumber) -> bool {
        self.records.iter().any(|(_, record)| record.window().contains(&segment))
    }

    /// A name that no record of `history` has.
    pub fn free_name(&self, history: Uuid) -> ObjectName {
        let last = self.numbers.iter().filter(|(of, _)| *of == history).map(|(_, number)| *number).max();
        PinRecord::name_of(history, last.unwrap_or(0).saturating_add(1))
    }

    /// The oldest of `archived` from which on nothing is let go: the first that no pin keeps, and no newer one than the newest
    /// needs, which is never let go. What is missing before it, and is kept by no pin, has gone on purpose. With a record that is
    /// damaged it is not known which islands are pinned: then all of them are.
    pub fn kept_from(&self, archived: &BTreeSet<SegmentNumber>, working_set: u32) -> SegmentNumber {
        let Some(newest) = archived.last() else { return SegmentNumber(1) };
        let needed = newest.minus(u64::from(working_set));
        if !self.damaged.is_empty() {
            return one_piece_from(archived, needed);
        }
        archived.iter().find(|segment| !self.keep(**segment)).map_or(needed, |first| needed.min(*first))
    }
}
