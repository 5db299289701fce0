//! The batch header: the block in front of a batch's data blocks.

use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::units::check_counts;
use super::{BLOCK_BYTES, Checksum, Entry, FormatError, Offset, Position, SegmentNumber, Superblock, Uuid};

/// Entries that a batch may have: as many as fit into the header's block, and few enough that a batch stays below 1 MiB.
pub const BATCH_ENTRIES_MAX: usize = 240;

const MAGIC: [u8; 8] = *b"SALVOLBA";
const WHAT: &str = "batch header";

/// What a batch header says beside its entries and the volume it belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BatchHeader {
    pub segment: SegmentNumber,
    pub offset: Offset,
    pub position: Position,
    pub epoch: u64,
    /// Wall-clock time as read, nanoseconds since 1970, UTC.
    pub wall_ns: i64,
    /// The same, but never before that of an earlier batch.
    pub time_ns: i64,
    /// Everything up to here was known to be durable when the header was written.
    pub durable_through: Position,
    pub oldest_needed: SegmentNumber,
    pub archived_through: SegmentNumber,
    /// Blocks of the volume from this batch on.
    pub volume_blocks: u64,
    pub working_set: u32,
    /// The checksum of the batch header at the position before.
    pub predecessor: Checksum,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Disk {
    magic: [u8; 8],
    volume: [u8; 16],
    history: [u8; 16],
    segment: U64,
    position: U64,
    epoch: U64,
    offset: U32,
    entries: U16,
    data_blocks: U16,
    wall_ns: I64,
    time_ns: I64,
    durable_through: U64,
    oldest_needed: U64,
    archived_through: U64,
    volume_blocks: U64,
    working_set: U32,
    ring: U16,
    flags: U16,
    predecessor: Checksum,
    checksum: Checksum,
}

const CHECKED: usize = 144;
const HEAD: usize = CHECKED + 16;
const _: () = assert!(size_of::<Disk>() == HEAD);
const _: () = assert!(std::mem::offset_of!(Disk, checksum) == CHECKED);
const _: () = assert!(HEAD + BATCH_ENTRIES_MAX * size_of::<Entry>() <= BLOCK_BYTES);

/// A batch header read back: its fields, its entries and its own checksum.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ParsedBatch {
    pub header: BatchHeader,
    pub entries: Vec<Entry>,
    pub data_blocks: u32,
    pub checksum: Checksum,
}

impl ParsedBatch {
    /// The blocks of the segment that the batch takes: its header and its data.
    pub fn blocks(&self) -> u32 {
        1 + self.data_blocks
    }
}

impl BatchHeader {
    /// Writes the header and `entries` to `block` and returns the header's checksum, which the next batch will name.
    ///
    /// # Panics
    /// When there are more than [`BATCH_ENTRIES_MAX`] entries.
    pub fn encode(&self, volume: &Superblock, entries: &[Entry], block: &mut [u8]) -> Checksum {
        assert!(entries.len() <= BATCH_ENTRIES_MAX);
        let data_blocks = entries.iter().filter(|entry| entry.kind().is_ok_and(|kind| kind.has_data())).count();
        let mut disk = Disk {
            magic: MAGIC,
            volume: volume.uuid.0,
            history: volume.history.0,
            segment: U64::new(self.segment.0),
            position: U64::new(self.position.0),
            epoch: U64::new(self.epoch),
            offset: U32::new(self.offset.0),
            entries: U16::new(entries.len() as u16),
            data_blocks: U16::new(data_blocks as u16),
            wall_ns: I64::new(self.wall_ns),
            time_ns: I64::new(self.time_ns),
            durable_through: U64::new(self.durable_through.0),
            oldest_needed: U64::new(self.oldest_needed.0),
            archived_through: U64::new(self.archived_through.0),
            volume_blocks: U64::new(self.volume_blocks),
            working_set: U32::new(self.working_set),
            ring: U16::new(0),
            flags: U16::new(0),
            predecessor: self.predecessor,
            checksum: Checksum::default(),
        };
        disk.checksum = Checksum::keyed(&volume.key, &[&disk.as_bytes()[..CHECKED], entries.as_bytes()]);
        let end = HEAD + size_of_val(entries);
        block[..HEAD].copy_from_slice(disk.as_bytes());
        block[HEAD..end].copy_from_slice(entries.as_bytes());
        block[end..BLOCK_BYTES].fill(0);
        disk.checksum
    }

    /// The checksums that the header in `block` names: that of the batch before, and its own. For headers made here:
    /// nothing is checked.
    pub fn chain_in(block: &[u8]) -> (Checksum, Checksum) {
        let checksum = |at: usize| {
            let mut checksum = Checksum::default();
            checksum.0.copy_from_slice(&block[at..at + 16]);
            checksum
        };
        (checksum(CHECKED - 16), checksum(CHECKED))
    }

    /// Whether `block` starts like a batch header. A cheap look before [`Self::parse`]; user data can look the same.
    pub fn looks_like(block: &[u8]) -> bool {
        block.starts_with(&MAGIC)
    }

    /// The batch header in `block`, checked against the volume's identity and geometry. That it continues the batch
    /// before, and that its data is whole, is for the reader to check: see the validity rule in `docs/format.md`.
    pub fn parse(block: &[u8], volume: &Superblock) -> Result<ParsedBatch, FormatError> {
        let short = FormatError::Length { what: WHAT, have: block.len(), need: BLOCK_BYTES };
        if block.len() < BLOCK_BYTES {
            return Err(short);
        }
        let Ok((disk, rest)) = Disk::ref_from_prefix(block) else {
            return Err(short);
        };
        if disk.magic != MAGIC {
            return Err(FormatError::Magic { what: WHAT });
        }
        let count = usize::from(disk.entries.get());
        let field = |field, value| Err(FormatError::Field { what: WHAT, field, value });
        if count > BATCH_ENTRIES_MAX {
            return field("entries", count as u64);
        }
        let listed = &rest[..count * size_of::<Entry>()];
        if disk.checksum != Checksum::keyed(&volume.key, &[&disk.as_bytes()[..CHECKED], listed]) {
            return Err(FormatError::Checksum { what: WHAT });
        }
        if disk.volume != volume.uuid.0 || !volume.is_own(Uuid(disk.history), Position(disk.position.get())) {
            return Err(FormatError::Identity { what: WHAT });
        }
        let Ok(entries) = <[Entry]>::ref_from_bytes(listed) else {
            return field("entries", count as u64);
        };
        if disk.volume_blocks.get() > volume.geometry.volume_blocks {
            return field("volume blocks", disk.volume_blocks.get());
        }
        let mut data_blocks = 0;
        for entry in entries {
            data_blocks += u32::from(entry.check(disk.volume_blocks.get())?.has_data());
        }
        if data_blocks != u32::from(disk.data_blocks.get()) {
            return field("data blocks", u64::from(disk.data_blocks.get()));
        }
        let counts = [("segment", disk.segment), ("position", disk.position), ("epoch", disk.epoch)];
        check_counts(WHAT, counts)?;
        let end = disk.offset.get().checked_add(1 + data_blocks);
        if disk.offset.get() == 0 || end.is_none_or(|end| end > volume.geometry.segment_blocks) {
            return field("offset", u64::from(disk.offset.get()));
        }
        let header = Self {
            segment: SegmentNumber(disk.segment.get()),
            offset: Offset(disk.offset.get()),
            position: Position(disk.position.get()),
            epoch: disk.epoch.get(),
            wall_ns: disk.wall_ns.get(),
            time_ns: disk.time_ns.get(),
            durable_through: Position(disk.durable_through.get()),
            oldest_needed: SegmentNumber(disk.oldest_needed.get()),
            archived_through: SegmentNumber(disk.archived_through.get()),
            volume_blocks: disk.volume_blocks.get(),
            working_set: disk.working_set.get(),
            predecessor: disk.predecessor,
        };
        Ok(ParsedBatch { header, entries: entries.to_vec(), data_blocks, checksum: disk.checksum })
    }
}
