//! The superblock: the first block of the primary, and its copy, the last.
//!
//! It names the volume, fixes its geometry, keeps its secret, counts its epochs and remembers a clean close. Of two
//! readable copies the one with the larger generation counts; a damaged one is written again from the other.

use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::units::COUNT_MAX;
use super::{BLOCK_BYTES, Checksum, FormatError, Key, Place, Position, SegmentNumber, Slot, Uuid};

/// The format version that this salvol writes and reads.
pub const VERSION: u32 = 1;
/// Slots start here, 1 MiB into the primary.
pub const FIRST_SLOT_BLOCK: u32 = 256;
/// Bytes of UTF-8 that the volume's name may have.
pub const NAME_BYTES_MAX: usize = 64;
/// Bytes of UTF-8 that a store's SPEC may have.
pub const SPEC_BYTES_MAX: usize = 1024;

const MAGIC: [u8; 8] = *b"SALVOLSB";
const WHAT: &str = "superblock";
const SEGMENT_BLOCKS: std::ops::RangeInclusive<u32> = 8..=65536;

/// Whether `text` can be a volume's name: it names files and a device link, so it is one plain part of a path.
pub fn is_name(text: &str) -> bool {
    let fine = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    !text.is_empty() && text.len() <= NAME_BYTES_MAX && text.chars().all(fine) && !text.starts_with(['.', '-'])
}

/// When a segment is given to the archiver.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ArchiveAt {
    /// As soon as it is full, from memory.
    Seal,
    /// When it leaves the working set.
    Inactive,
}

/// How segments are compressed on their way to the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Compression {
    /// zstd, at a level that follows the queue.
    Auto,
    None,
    /// zstd at this level.
    Zstd(i8),
}

/// The sizes of a volume. Lengths are in blocks of 4096 bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Geometry {
    /// The primary, both superblocks included.
    pub primary_blocks: u64,
    pub volume_blocks: u64,
    /// A segment, its header and summary included.
    pub segment_blocks: u32,
    pub slots: u32,
    /// Segments of the working set, the current one included.
    pub working_set: u32,
}

impl Geometry {
    /// The first block of a slot.
    pub fn slot_place(&self, slot: Slot) -> Place {
        Place(FIRST_SLOT_BLOCK + slot.0 * self.segment_blocks)
    }

    /// The slot that holds `place`.
    pub fn slot_of(&self, place: Place) -> Slot {
        Slot((place.0 - FIRST_SLOT_BLOCK) / self.segment_blocks)
    }

    /// Bytes in a segment.
    pub fn segment_bytes(&self) -> usize {
        self.segment_blocks as usize * BLOCK_BYTES
    }

    /// The byte offset of the superblock's copy.
    pub fn copy_at(&self) -> u64 {
        (self.primary_blocks - 1) * BLOCK_BYTES as u64
    }

    /// Checks that the sizes fit together, so that nothing computed from them can overflow or leave the primary.
    pub fn check(&self) -> Result<(), FormatError> {
        let field = |field, value| Err(FormatError::Field { what: WHAT, field, value });
        if !SEGMENT_BLOCKS.contains(&self.segment_blocks) {
            return field("segment blocks", u64::from(self.segment_blocks));
        }
        if self.primary_blocks > u64::from(u32::MAX) {
            return field("primary blocks", self.primary_blocks);
        }
        let slots_end = u64::from(FIRST_SLOT_BLOCK) + u64::from(self.slots) * u64::from(self.segment_blocks);
        if slots_end >= self.primary_blocks {
            return field("slots", u64::from(self.slots));
        }
        if self.working_set < 2 || self.slots < 3 || self.working_set > self.slots - 2 {
            return field("working set", u64::from(self.working_set));
        }
        let places = u64::from(self.working_set) * u64::from(self.segment_blocks);
        if self.volume_blocks == 0 || self.volume_blocks >= places {
            return field("volume blocks", self.volume_blocks);
        }
        Ok(())
    }
}

/// What the superblock remembers of a clean close: the log ends exactly here, and all of it is durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CleanClose {
    pub segment: SegmentNumber,
    pub position: Position,
    /// The checksum of the last batch header.
    pub checksum: Checksum,
}

/// A loss that was accepted: the log went on without what the archive has from this segment on, of epochs up to this one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct AcceptedLoss {
    pub segment: SegmentNumber,
    pub epoch: u64,
}

impl AcceptedLoss {
    /// Whether an archived segment, whose last batch is of `epoch`, was given up.
    pub fn covers(&self, segment: SegmentNumber, epoch: u64) -> bool {
        segment >= self.segment && epoch <= self.epoch
    }
}

/// A volume's superblock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    pub uuid: Uuid,
    pub history: Uuid,
    /// The history this one continues, and where it forked; zero for a volume's first.
    pub parent_history: Uuid,
    pub fork_position: Position,
    pub key: Key,
    /// Grows with each write of the superblock.
    pub generation: u64,
    /// Grows with each opening of the volume for writing.
    pub epoch: u64,
    pub created_ns: i64,
    pub geometry: Geometry,
    pub archive_at: ArchiveAt,
    pub compression: Compression,
    pub clean_close: Option<CleanClose>,
    pub accepted_loss: Option<AcceptedLoss>,
    pub name: String,
    /// The store's SPEC as given at create, its path made absolute: `dir:/backup/db`, `none`.
    pub backing: String,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Disk {
    magic: [u8; 8],
    version: U32,
    block_bytes: U32,
    features_incompatible: U64,
    features_read_only_compatible: U64,
    features_compatible: U64,
    volume: [u8; 16],
    history: [u8; 16],
    key: [u8; 32],
    generation: U64,
    epoch: U64,
    created_ns: I64,
    primary_blocks: U64,
    volume_blocks: U64,
    segment_blocks: U32,
    slots: U32,
    working_set: U32,
    first_slot_block: U32,
    archive_at: u8,
    compression: u8,
    level: i8,
    rings: u8,
    cipher: U16,
    key_id: U16,
    close_segment: U64,
    close_position: U64,
    close_checksum: Checksum,
    parent_history: [u8; 16],
    fork_position: U64,
    name_bytes: U16,
    backing_bytes: U16,
    loss_segment: U64,
    loss_epoch: U64,
    reserved: [u8; 12],
    name: [u8; NAME_BYTES_MAX],
    backing: [u8; SPEC_BYTES_MAX],
    padding: [u8; PADDING],
    checksum: Checksum,
}

const PADDING: usize = BLOCK_BYTES - 16 - 256 - NAME_BYTES_MAX - SPEC_BYTES_MAX;
const CHECKED: usize = BLOCK_BYTES - 16;
const _: () = assert!(size_of::<Disk>() == BLOCK_BYTES);
const _: () = assert!(std::mem::offset_of!(Disk, name) == 256);
const _: () = assert!(std::mem::offset_of!(Disk, checksum) == CHECKED);

impl Superblock {
    /// A small volume of fixed identity, for examples and tests.
    pub fn example() -> Self {
        let geometry = Geometry {
            primary_blocks: u64::from(FIRST_SLOT_BLOCK) + 12 * 64 + 1,
            volume_blocks: 200,
            segment_blocks: 64,
            slots: 12,
            working_set: 8,
        };
        Self {
            uuid: Uuid([0x11; 16]),
            history: Uuid([0x22; 16]),
            parent_history: Uuid::default(),
            fork_position: Position(0),
            key: Key([0x33; 32]),
            generation: 1,
            epoch: 0,
            created_ns: 1_700_000_000_000_000_000,
            geometry,
            archive_at: ArchiveAt::Seal,
            compression: Compression::Auto,
            clean_close: None,
            accepted_loss: None,
            name: "example".to_owned(),
            backing: "dir:/backup/example".to_owned(),
        }
    }

    /// The superblock as a block.
    ///
    /// # Panics
    /// When name or backing are longer than their limits: create checks both.
    pub fn encode(&self) -> [u8; BLOCK_BYTES] {
        let close = self.clean_close.unwrap_or(CleanClose {
            segment: SegmentNumber(0),
            position: Position(0),
            checksum: Checksum::default(),
        });
        let (compression, level) = match self.compression {
            Compression::Auto => (0, 0),
            Compression::None => (1, 0),
            Compression::Zstd(level) => (2, level),
        };
        let geometry = &self.geometry;
        let mut disk = Disk {
            magic: MAGIC,
            version: U32::new(VERSION),
            block_bytes: U32::new(BLOCK_BYTES as u32),
            features_incompatible: U64::new(0),
            features_read_only_compatible: U64::new(0),
            features_compatible: U64::new(0),
            volume: self.uuid.0,
            history: self.history.0,
            key: self.key.0,
            generation: U64::new(self.generation),
            epoch: U64::new(self.epoch),
            created_ns: I64::new(self.created_ns),
            primary_blocks: U64::new(geometry.primary_blocks),
            volume_blocks: U64::new(geometry.volume_blocks),
            segment_blocks: U32::new(geometry.segment_blocks),
            slots: U32::new(geometry.slots),
            working_set: U32::new(geometry.working_set),
            first_slot_block: U32::new(FIRST_SLOT_BLOCK),
            archive_at: u8::from(self.archive_at == ArchiveAt::Inactive),
            compression,
            level,
            rings: 1,
            cipher: U16::new(0),
            key_id: U16::new(0),
            close_segment: U64::new(close.segment.0),
            close_position: U64::new(close.position.0),
            close_checksum: close.checksum,
            parent_history: self.parent_history.0,
            fork_position: U64::new(self.fork_position.0),
            name_bytes: U16::new(self.name.len() as u16),
            backing_bytes: U16::new(self.backing.len() as u16),
            loss_segment: U64::new(self.accepted_loss.map_or(0, |loss| loss.segment.0)),
            loss_epoch: U64::new(self.accepted_loss.map_or(0, |loss| loss.epoch)),
            reserved: [0; 12],
            name: [0; NAME_BYTES_MAX],
            backing: [0; SPEC_BYTES_MAX],
            padding: [0; PADDING],
            checksum: Checksum::default(),
        };
        disk.name[..self.name.len()].copy_from_slice(self.name.as_bytes());
        disk.backing[..self.backing.len()].copy_from_slice(self.backing.as_bytes());
        disk.checksum = Checksum::plain(&disk.as_bytes()[..CHECKED]);
        let mut block = [0; BLOCK_BYTES];
        block.copy_from_slice(disk.as_bytes());
        block
    }

    /// Whether `block` is this superblock but for what openings and closes write: then a write that a power cut tore may have made it so.
    pub fn may_be_torn(&self, block: &[u8]) -> bool {
        let own = self.encode();
        let (Ok(mut found), Ok(own)) = (Disk::read_from_bytes(block), Disk::ref_from_bytes(&own)) else { return false };
        (found.generation, found.epoch, found.checksum) = (own.generation, own.epoch, own.checksum);
        (found.close_segment, found.close_position) = (own.close_segment, own.close_position);
        (found.close_checksum, found.loss_segment, found.loss_epoch) =
            (own.close_checksum, own.loss_segment, own.loss_epoch);
        found.as_bytes() == own.as_bytes()
    }

    /// The superblock in `block`.
    ///
    /// # Errors
    /// [`FormatError::Magic`] when there is none, `Version` and `Features` when it is not for us, `Checksum` and
    /// `Field` when it is damaged.
    pub fn parse(block: &[u8]) -> Result<Self, FormatError> {
        let disk = Disk::ref_from_bytes(block).map_err(|_| FormatError::Length {
            what: WHAT,
            have: block.len(),
            need: BLOCK_BYTES,
        })?;
        if disk.magic != MAGIC {
            return Err(FormatError::Magic { what: WHAT });
        }
        if disk.checksum != Checksum::plain(&block[..CHECKED]) {
            return Err(FormatError::Checksum { what: WHAT });
        }
        if disk.version.get() != VERSION {
            return Err(FormatError::Version { found: disk.version.get(), supported: VERSION });
        }
        if disk.features_incompatible.get() != 0 || disk.features_read_only_compatible.get() != 0 {
            let bits = disk.features_incompatible.get() | disk.features_read_only_compatible.get();
            return Err(FormatError::Features { bits });
        }
        let field = |field, value| FormatError::Field { what: WHAT, field, value };
        if disk.block_bytes.get() as usize != BLOCK_BYTES {
            return Err(field("block bytes", u64::from(disk.block_bytes.get())));
        }
        if disk.first_slot_block.get() != FIRST_SLOT_BLOCK || disk.rings != 1 || disk.cipher.get() != 0 {
            return Err(field("first slot, rings or cipher", u64::from(disk.first_slot_block.get())));
        }
        let geometry = Geometry {
            primary_blocks: disk.primary_blocks.get(),
            volume_blocks: disk.volume_blocks.get(),
            segment_blocks: disk.segment_blocks.get(),
            slots: disk.slots.get(),
            working_set: disk.working_set.get(),
        };
        geometry.check()?;
        let counts = [
            ("generation", disk.generation),
            ("epoch", disk.epoch),
            ("close segment", disk.close_segment),
            ("close position", disk.close_position),
            ("fork position", disk.fork_position),
            ("lost segment", disk.loss_segment),
            ("lost epoch", disk.loss_epoch),
        ];
        if let Some((name, value)) = counts.iter().find(|(_, value)| value.get() > COUNT_MAX) {
            return Err(field(name, value.get()));
        }
        let text = |name, bytes: &[u8], count: u16| {
            let bytes = bytes.get(..usize::from(count)).ok_or(field(name, u64::from(count)))?;
            String::from_utf8(bytes.to_vec()).map_err(|_| field(name, u64::from(count)))
        };
        let name = text("name", &disk.name, disk.name_bytes.get())?;
        if !is_name(&name) {
            return Err(field("name", u64::from(disk.name_bytes.get())));
        }
        Ok(Self {
            uuid: Uuid(disk.volume),
            history: Uuid(disk.history),
            parent_history: Uuid(disk.parent_history),
            fork_position: Position(disk.fork_position.get()),
            key: Key(disk.key),
            generation: disk.generation.get(),
            epoch: disk.epoch.get(),
            created_ns: disk.created_ns.get(),
            geometry,
            archive_at: match disk.archive_at {
                0 => ArchiveAt::Seal,
                1 => ArchiveAt::Inactive,
                other => return Err(field("archive at", u64::from(other))),
            },
            compression: match disk.compression {
                0 => Compression::Auto,
                1 => Compression::None,
                2 => Compression::Zstd(disk.level),
                other => return Err(field("compression", u64::from(other))),
            },
            clean_close: (disk.close_position.get() != 0).then(|| CleanClose {
                segment: SegmentNumber(disk.close_segment.get()),
                position: Position(disk.close_position.get()),
                checksum: disk.close_checksum,
            }),
            accepted_loss: (disk.loss_segment.get() != 0).then(|| AcceptedLoss {
                segment: SegmentNumber(disk.loss_segment.get()),
                epoch: disk.loss_epoch.get(),
            }),
            name,
            backing: text("backing", &disk.backing, disk.backing_bytes.get())?,
        })
    }

    /// Whether what names `history`, and says nothing of positions behind `position`, can be of this volume's log. Up to
    /// the fork that may be any history that the volume had: who made it had the key, and the chain proves the rest.
    pub fn is_own(&self, history: Uuid, position: Position) -> bool {
        history == self.history || position <= self.fork_position
    }

    /// The better of the two copies, and whether the other one needs writing again.
    ///
    /// # Errors
    /// When neither is readable, what is wrong with the first; with the copy if the first has no magic but the copy has.
    pub fn choose(first: &[u8], copy: &[u8]) -> Result<(Self, bool), FormatError> {
        match (Self::parse(first), Self::parse(copy)) {
            (Ok(a), Ok(b)) if a.generation >= b.generation => {
                let stale = a != b;
                Ok((a, stale))
            }
            (Ok(_), Ok(b)) => Ok((b, true)),
            (Ok(one), Err(_)) | (Err(_), Ok(one)) => Ok((one, true)),
            (Err(FormatError::Magic { .. }), Err(error)) | (Err(error), Err(_)) => Err(error),
        }
    }
}
