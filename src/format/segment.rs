//! The segment header: the first block of a slot.

use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::units::check_counts;
use super::{
    BLOCK_BYTES, BatchHeader, Checksum, FormatError, Geometry, Key, Position, SegmentNumber, Slot, Superblock, Uuid,
};

const MAGIC: [u8; 8] = *b"SALVOLSG";
const WHAT: &str = "segment header";

/// What a segment header says beside the volume it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SegmentHeader {
    pub segment: SegmentNumber,
    pub slot: Slot,
    /// The epoch in which the segment was started.
    pub epoch: u64,
    /// The position of the segment's first batch.
    pub first_position: Position,
    /// The checksum of the batch header before `first_position`, wherever it is.
    pub predecessor: Checksum,
    /// The oldest segment that a reader of any position in this segment can need.
    pub oldest_needed: SegmentNumber,
    /// Everything up to here was known to be durable when the header was written.
    pub durable_through: Position,
    /// Every segment up to here was known to be archived when the header was written.
    pub archived_through: SegmentNumber,
    pub volume_blocks: u64,
    pub working_set: u32,
    /// Wall-clock time, nanoseconds since 1970, UTC.
    pub time_ns: i64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Disk {
    magic: [u8; 8],
    volume: [u8; 16],
    history: [u8; 16],
    segment: U64,
    epoch: U64,
    first_position: U64,
    predecessor: Checksum,
    oldest_needed: U64,
    durable_through: U64,
    archived_through: U64,
    volume_blocks: U64,
    segment_blocks: U32,
    working_set: U32,
    slot: U32,
    ring: U16,
    cipher: U16,
    key_id: U32,
    flags: U32,
    time_ns: I64,
    checksum: Checksum,
}

const CHECKED: usize = 144;
const _: () = assert!(size_of::<Disk>() == CHECKED + 16);
const _: () = assert!(std::mem::offset_of!(Disk, checksum) == CHECKED);
const _: () = assert!(std::mem::offset_of!(Disk, predecessor) == 64);

impl SegmentHeader {
    /// The header of the segment in `slot` whose first batch has this `header`: it repeats all that matters.
    pub fn of_first_batch(slot: Slot, header: &BatchHeader) -> Self {
        Self {
            segment: header.segment,
            slot,
            epoch: header.epoch,
            first_position: header.position,
            predecessor: header.predecessor,
            oldest_needed: header.oldest_needed,
            durable_through: header.durable_through,
            archived_through: header.archived_through,
            volume_blocks: header.volume_blocks,
            working_set: header.working_set,
            time_ns: header.time_ns,
        }
    }

    /// The header as the first block of its slot.
    pub fn encode(&self, volume: &Superblock, block: &mut [u8]) {
        let geometry = &volume.geometry;
        let mut disk = Disk {
            magic: MAGIC,
            volume: volume.uuid.0,
            history: volume.history.0,
            segment: U64::new(self.segment.0),
            epoch: U64::new(self.epoch),
            first_position: U64::new(self.first_position.0),
            predecessor: self.predecessor,
            oldest_needed: U64::new(self.oldest_needed.0),
            durable_through: U64::new(self.durable_through.0),
            archived_through: U64::new(self.archived_through.0),
            volume_blocks: U64::new(self.volume_blocks),
            segment_blocks: U32::new(geometry.segment_blocks),
            working_set: U32::new(self.working_set),
            slot: U32::new(self.slot.0),
            ring: U16::new(0),
            cipher: U16::new(0),
            key_id: U32::new(0),
            flags: U32::new(0),
            time_ns: I64::new(self.time_ns),
            checksum: Checksum::default(),
        };
        disk.checksum = Checksum::keyed(&volume.key, &[&disk.as_bytes()[..CHECKED]]);
        block.fill(0);
        block[..size_of::<Disk>()].copy_from_slice(disk.as_bytes());
    }

    /// The header in `block`, checked against the volume's identity and geometry.
    pub fn parse(block: &[u8], volume: &Superblock) -> Result<Self, FormatError> {
        let disk = Self::checked(block, &volume.key)?;
        let first = Position(disk.first_position.get());
        if disk.volume != volume.uuid.0 || !volume.is_own(Uuid(disk.history), first) {
            return Err(FormatError::Identity { what: WHAT });
        }
        Self::fields(disk, &volume.geometry)
    }

    fn checked<'a>(block: &'a [u8], key: &Key) -> Result<&'a Disk, FormatError> {
        if block.len() < BLOCK_BYTES {
            return Err(FormatError::Length { what: WHAT, have: block.len(), need: BLOCK_BYTES });
        }
        let Ok((disk, _)) = Disk::ref_from_prefix(block) else {
            return Err(FormatError::Length { what: WHAT, have: block.len(), need: BLOCK_BYTES });
        };
        if disk.magic != MAGIC {
            return Err(FormatError::Magic { what: WHAT });
        }
        if disk.checksum != Checksum::keyed(key, &[&disk.as_bytes()[..CHECKED]]) {
            return Err(FormatError::Checksum { what: WHAT });
        }
        Ok(disk)
    }

    fn fields(disk: &Disk, geometry: &Geometry) -> Result<Self, FormatError> {
        let field = |field, value| Err(FormatError::Field { what: WHAT, field, value });
        let counts = [("segment", disk.segment), ("first position", disk.first_position), ("epoch", disk.epoch)];
        check_counts(WHAT, counts)?;
        if disk.segment_blocks.get() != geometry.segment_blocks {
            return field("segment blocks", u64::from(disk.segment_blocks.get()));
        }
        if disk.slot.get() >= geometry.slots {
            return field("slot", u64::from(disk.slot.get()));
        }
        if disk.volume_blocks.get() > geometry.volume_blocks {
            return field("volume blocks", disk.volume_blocks.get());
        }
        if disk.oldest_needed.get() > disk.segment.get() {
            return field("oldest needed", disk.oldest_needed.get());
        }
        if disk.ring.get() != 0 || disk.cipher.get() != 0 {
            return field("ring or cipher", u64::from(disk.ring.get()) << 16 | u64::from(disk.cipher.get()));
        }
        Ok(Self {
            segment: SegmentNumber(disk.segment.get()),
            slot: Slot(disk.slot.get()),
            epoch: disk.epoch.get(),
            first_position: Position(disk.first_position.get()),
            predecessor: disk.predecessor,
            oldest_needed: SegmentNumber(disk.oldest_needed.get()),
            durable_through: Position(disk.durable_through.get()),
            archived_through: SegmentNumber(disk.archived_through.get()),
            volume_blocks: disk.volume_blocks.get(),
            working_set: disk.working_set.get(),
            time_ns: disk.time_ns.get(),
        })
    }
}
