//! The ring's own superblock: whose store this is, and where its parts are. First and last block of the
//! ring, and last block of a disk that has grown.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::archive::{canonical, object_bytes_max};
use crate::format::{BLOCK_BYTES, Checksum, FormatError, Geometry, Superblock};

const MAGIC: [u8; 8] = *b"SALVOLRS";
const VERSION: u32 = 1;
const WHAT: &str = "ring superblock";
/// Bytes of an entry of the catalogue. Four are a sector of 512 bytes, and none lies across two.
pub(super) const ENTRY_BYTES: usize = 128;
/// Entries in a block of the catalogue.
pub(super) const BLOCK_ENTRIES: u64 = (BLOCK_BYTES / ENTRY_BYTES) as u64;
/// Entries for each segment that the ring holds uncompressed: objects may be smaller, and those of open segments are.
const ENTRIES_A_SEGMENT: u64 = 4;
/// Entries of a catalogue at least for each segment that is never expired, parts included.
const ENTRIES_A_KEPT_SEGMENT: u64 = 8;
/// Parts that there are at a time at most: those that are held by one more, and that.
pub(crate) const RING_PARTS: u64 = 34;
/// Blocks that a part takes beside its run of the segment: record header, object header, summary, frame table, and what does
/// not fill a block.
const PART_BLOCKS: u64 = 5;
/// Entries of a catalogue at most: 128 MiB of them.
const ENTRIES_MAX: u64 = 1 << 20;
/// The part of the volume's superblock that says something; what follows is padding.
const VOLUME_BYTES: usize = 2048;
const CHECKED: usize = BLOCK_BYTES - 16;
/// Blocks of a disk at most: nothing computed from block numbers overflows.
const BLOCKS_MAX: u64 = 1 << 48;

/// A ring's superblock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct RingSuperblock {
    /// Random, made with the store: no entry or record of another store that was here is taken for one of this.
    pub(super) store: [u8; 16],
    /// The volume that the store belongs to, canonical.
    pub(super) volume: Superblock,
    /// Blocks of the disk, both superblocks included.
    pub(super) blocks: u64,
    /// Entries of the catalogue, a whole number of blocks.
    pub(super) entries: u64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Layout {
    magic: [u8; 8],
    version: U32,
    block_bytes: U32,
    features_incompatible: U64,
    features_read_only_compatible: U64,
    features_compatible: U64,
    store: [u8; 16],
    blocks: U64,
    entries: U64,
    first_catalogue: U64,
    first_data: U64,
    second_catalogue: U64,
    reserved: [u8; 160],
    volume: [u8; VOLUME_BYTES],
    volume_checksum: [u8; 16],
    padding: [u8; CHECKED - 256 - VOLUME_BYTES - 16],
    checksum: Checksum,
}

const _: () = assert!(size_of::<Layout>() == BLOCK_BYTES);
const _: () = assert!(std::mem::offset_of!(Layout, volume) == 256);
const _: () = assert!(std::mem::offset_of!(Layout, checksum) == CHECKED);

impl RingSuperblock {
    /// The superblock of a new ring on a disk of so many blocks; `Err` says how many blocks it needs at least.
    pub(super) fn plan(store: [u8; 16], volume: &Superblock, blocks: u64) -> Result<Self, u64> {
        let entries = Self::entries_for(&volume.geometry, blocks)?;
        Ok(Self { store, volume: canonical(volume), blocks, entries })
    }

    /// Entries of the catalogue of a ring of so many blocks; `Err` says how many blocks it needs at least.
    pub(super) fn entries_for(geometry: &Geometry, blocks: u64) -> Result<u64, u64> {
        let kept = u64::from(geometry.working_set) + 2;
        let segments = (blocks / u64::from(geometry.segment_blocks)).max(1);
        let least = kept * ENTRIES_A_KEPT_SEGMENT;
        let entries = (segments * ENTRIES_A_SEGMENT).max(least).next_multiple_of(BLOCK_ENTRIES);
        let entries = entries.min(entries_max(geometry));
        let need = kept * object_blocks_max(geometry) + parts_blocks_max(geometry) + 2 + 2 * entries / BLOCK_ENTRIES;
        if blocks < need || blocks > BLOCKS_MAX {
            return Err(need);
        }
        Ok(entries)
    }

    /// Blocks of one copy of the catalogue.
    pub(super) fn catalogue_blocks(&self) -> u64 {
        self.entries / BLOCK_ENTRIES
    }

    /// The first blocks of the two copies of the catalogue.
    pub(super) fn catalogues(&self) -> [u64; 2] {
        [1, self.blocks - 1 - self.catalogue_blocks()]
    }

    /// The blocks in which objects are.
    pub(super) fn data(&self) -> std::ops::Range<u64> {
        let [first, second] = self.catalogues();
        first + self.catalogue_blocks()..second
    }

    /// Blocks at the end of the data that are for parts: what they take at most, when that leaves room for the segments
    /// that are never expired and one more.
    pub(super) fn parts_blocks(&self) -> u64 {
        let (geometry, data) = (&self.volume.geometry, self.data());
        let kept = (u64::from(geometry.working_set) + 2) * object_blocks_max(geometry);
        parts_blocks_max(geometry).min((data.end - data.start).saturating_sub(kept))
    }

    /// The superblock as a block.
    pub(super) fn encode(&self) -> [u8; BLOCK_BYTES] {
        let volume = self.volume.encode();
        let [first, second] = self.catalogues();
        let mut layout = Layout {
            magic: MAGIC,
            version: U32::new(VERSION),
            block_bytes: U32::new(BLOCK_BYTES as u32),
            features_incompatible: U64::new(0),
            features_read_only_compatible: U64::new(0),
            features_compatible: U64::new(0),
            store: self.store,
            blocks: U64::new(self.blocks),
            entries: U64::new(self.entries),
            first_catalogue: U64::new(first),
            first_data: U64::new(self.data().start),
            second_catalogue: U64::new(second),
            reserved: [0; 160],
            volume: [0; VOLUME_BYTES],
            volume_checksum: [0; 16],
            padding: [0; CHECKED - 256 - VOLUME_BYTES - 16],
            checksum: Checksum::default(),
        };
        layout.volume.copy_from_slice(&volume[..VOLUME_BYTES]);
        layout.volume_checksum.copy_from_slice(&volume[CHECKED..]);
        layout.checksum = Checksum::plain(&layout.as_bytes()[..CHECKED]);
        let mut block = [0; BLOCK_BYTES];
        block.copy_from_slice(layout.as_bytes());
        block
    }

    /// The superblock in `block`.
    ///
    /// # Errors
    /// [`FormatError::Magic`] when there is none, and as for [`Superblock::parse`].
    pub(super) fn parse(block: &[u8]) -> Result<Self, FormatError> {
        let length = FormatError::Length { what: WHAT, have: block.len(), need: BLOCK_BYTES };
        let layout = Layout::ref_from_bytes(block).map_err(|_| length)?;
        if layout.magic != MAGIC {
            return Err(FormatError::Magic { what: WHAT });
        }
        if layout.checksum != Checksum::plain(&block[..CHECKED]) {
            return Err(FormatError::Checksum { what: WHAT });
        }
        if layout.version.get() != VERSION {
            return Err(FormatError::Version { found: layout.version.get(), supported: VERSION });
        }
        let bits = layout.features_incompatible.get() | layout.features_read_only_compatible.get();
        if bits != 0 {
            return Err(FormatError::Features { bits });
        }
        let field = |field, value: u64| FormatError::Field { what: WHAT, field, value };
        if layout.block_bytes.get() as usize != BLOCK_BYTES {
            return Err(field("block bytes", u64::from(layout.block_bytes.get())));
        }
        let mut volume = [0; BLOCK_BYTES];
        volume[..VOLUME_BYTES].copy_from_slice(&layout.volume);
        volume[CHECKED..].copy_from_slice(&layout.volume_checksum);
        let volume = Superblock::parse(&volume)?;
        let (blocks, entries) = (layout.blocks.get(), layout.entries.get());
        let most = entries_max(&volume.geometry).min(u64::from(u32::MAX));
        if entries == 0 || entries > most || !entries.is_multiple_of(BLOCK_ENTRIES) {
            return Err(field("entries", entries));
        }
        // Room for what is never expired: so a large working set, and many entries for it, take a large disk.
        let kept = (u64::from(volume.geometry.working_set) + 2) * object_blocks_max(&volume.geometry);
        if blocks > BLOCKS_MAX || blocks < 2 + 2 * (entries / BLOCK_ENTRIES) + kept {
            return Err(field("blocks", blocks));
        }
        let found = Self { store: layout.store, volume, blocks, entries };
        let [first, second] = found.catalogues();
        let places = [
            ("first catalogue", layout.first_catalogue, first),
            ("first data", layout.first_data, found.data().start),
            ("second catalogue", layout.second_catalogue, second),
        ];
        match places.into_iter().find(|(_, found, expected)| found.get() != *expected) {
            Some((name, found, _)) => Err(field(name, found.get())),
            None => Ok(found),
        }
    }
}

/// Entries of the catalogue of a volume's ring at most, however large it is. More are no ring's: whoever reads a superblock
/// that says so would read, and remember, what somebody made up.
fn entries_max(geometry: &Geometry) -> u64 {
    let least = (u64::from(geometry.working_set) + 2) * ENTRIES_A_KEPT_SEGMENT;
    ENTRIES_MAX.max(least).next_multiple_of(BLOCK_ENTRIES)
}

/// Blocks that an object of a segment takes when nothing compresses, its record header included.
pub(super) fn object_blocks_max(geometry: &Geometry) -> u64 {
    1 + object_bytes_max(geometry.segment_bytes()).div_ceil(BLOCK_BYTES as u64)
}

/// Blocks that the parts of an open segment take at most: all of it twice, while one part that holds what the others hold
/// is put, and what each part takes beside.
fn parts_blocks_max(geometry: &Geometry) -> u64 {
    // None is less than a block of the segment.
    let parts = RING_PARTS.min(u64::from(geometry.segment_blocks));
    2 * object_blocks_max(geometry) + parts * PART_BLOCKS
}
