//! An entry: one logged event, 16 bytes in a batch header and again in the summary.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{Block, FormatError, Position};

/// What an entry says. The numbers are the format; unused ones are reserved.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum EntryKind {
    /// A block as the user wrote it; one data block.
    Write = 1,
    /// The newest version of a block, copied forward by the cleaner; one data block.
    Copy = 2,
    /// A range that the user discarded; reads as zeros.
    Trim = 3,
    /// A range that the user zeroed; reads as zeros.
    Zero = 4,
    /// A block whose data could not be read when it was due to be copied; an I/O error until overwritten.
    Lost = 5,
    /// A synch point; one data block, a [`super::SynchMark`].
    Synch = 6,
    /// The volume was opened: the first batch of an epoch.
    Open = 7,
    /// The volume was closed cleanly.
    Close = 8,
    /// The volume returns to an earlier position: what follows up to the commit happens at once. Again at the start of each
    /// segment that begins before the commit.
    RollbackBegin = 9,
    /// The volume is what it was at that position.
    RollbackCommit = 10,
    /// Nothing happened; the batch carries only its header's claims.
    Noop = 11,
}

impl EntryKind {
    /// All of them, in the order of their numbers, which begin with 1.
    const ALL: [Self; 11] = {
        use EntryKind::*;
        [Write, Copy, Trim, Zero, Lost, Synch, Open, Close, RollbackBegin, RollbackCommit, Noop]
    };

    fn from_byte(byte: u8) -> Option<Self> {
        let kind = Self::ALL.get(usize::from(byte).wrapping_sub(1)).copied();
        kind.filter(|kind| *kind as u8 == byte)
    }

    /// Whether a data block of the batch belongs to the entry.
    pub fn has_data(self) -> bool {
        matches!(self, Self::Write | Self::Copy | Self::Synch)
    }

    /// The word for it in dumps.
    pub fn word(self) -> &'static str {
        match self {
            Self::Write => "write",
            Self::Copy => "copy",
            Self::Trim => "trim",
            Self::Zero => "zero",
            Self::Lost => "lost",
            Self::Synch => "synch",
            Self::Open => "open",
            Self::Close => "close",
            Self::RollbackBegin => "rollback-begin",
            Self::RollbackCommit => "rollback-commit",
            Self::Noop => "noop",
        }
    }
}

/// An entry as it is on disk.
#[derive(Clone, Copy, PartialEq, Eq, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Debug)]
#[repr(C)]
pub struct Entry {
    kind: u8,
    flags: u8,
    reserved: [u8; 2],
    value: U32,
    block: U64,
}

const _: () = assert!(size_of::<Entry>() == 16);

impl Entry {
    fn new(kind: EntryKind, block: u64, value: u32) -> Self {
        Self { kind: kind as u8, flags: 0, reserved: [0; 2], value: U32::new(value), block: U64::new(block) }
    }

    /// A write of `block`, whose data has the checksum `crc`.
    pub fn write(block: Block, crc: u32) -> Self {
        Self::new(EntryKind::Write, block.0, crc)
    }

    /// A copy of `block`, whose data has the checksum `crc`.
    pub fn copy(block: Block, crc: u32) -> Self {
        Self::new(EntryKind::Copy, block.0, crc)
    }

    /// A discard (`zero` false) or zeroing of `count` blocks from `block`.
    pub fn range(block: Block, count: u32, zero: bool) -> Self {
        Self::new(if zero { EntryKind::Zero } else { EntryKind::Trim }, block.0, count)
    }

    /// The loss of `block`.
    pub fn lost(block: Block) -> Self {
        Self::new(EntryKind::Lost, block.0, 0)
    }

    /// The synch point numbered `point`, whose mark has the checksum `crc`.
    pub fn synch(point: u64, crc: u32) -> Self {
        Self::new(EntryKind::Synch, point, crc)
    }

    /// The opening of `epoch`.
    pub fn open(epoch: u64) -> Self {
        Self::new(EntryKind::Open, epoch, 0)
    }

    /// A clean close.
    pub fn close() -> Self {
        Self::new(EntryKind::Close, 0, 0)
    }

    /// A rollback to the position `to`, which began `since` batches before this one.
    pub fn rollback_begin(to: Position, since: u32) -> Self {
        Self::new(EntryKind::RollbackBegin, to.0, since)
    }

    /// The end of the rollback to the position `to`.
    pub fn rollback_commit(to: Position) -> Self {
        Self::new(EntryKind::RollbackCommit, to.0, 0)
    }

    /// Nothing.
    pub fn noop() -> Self {
        Self::new(EntryKind::Noop, 0, 0)
    }

    /// What the entry says, or the error that its kind is not one of this version.
    pub fn kind(&self) -> Result<EntryKind, FormatError> {
        EntryKind::from_byte(self.kind).ok_or(FormatError::Field {
            what: "entry",
            field: "kind",
            value: u64::from(self.kind),
        })
    }

    /// The block written, copied or lost, or the first of the range; for a synch entry see [`Self::point`].
    pub fn block(&self) -> Block {
        Block(self.block.get())
    }

    /// The number of a synch entry's point.
    pub fn point(&self) -> u64 {
        self.block.get()
    }

    /// The position to which a rollback returns.
    pub fn rollback_to(&self) -> Position {
        Position(self.block.get())
    }

    /// How many batches before the entry's own the rollback began.
    pub fn rollback_since(&self) -> u32 {
        self.value.get()
    }

    /// CRC32C of the entry's data block.
    pub fn crc(&self) -> u32 {
        self.value.get()
    }

    /// The number of blocks in a trimmed or zeroed range.
    pub fn count(&self) -> u32 {
        self.value.get()
    }

    /// Checks the entry against a volume of `volume_blocks` blocks.
    pub(super) fn check(&self, volume_blocks: u64) -> Result<EntryKind, FormatError> {
        let kind = self.kind()?;
        let reach = match kind {
            EntryKind::Write | EntryKind::Copy | EntryKind::Lost => 1,
            EntryKind::Trim | EntryKind::Zero => u64::from(self.count()),
            _ => return Ok(kind),
        };
        match self.block.get().checked_add(reach) {
            Some(end) if end <= volume_blocks => Ok(kind),
            _ => Err(FormatError::Field { what: "entry", field: "block", value: self.block.get() }),
        }
    }
}
