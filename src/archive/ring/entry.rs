//! An entry of the catalogue: an object and where it is; and the record header, the same entry in front of the object.
//!
//! The checksum of an entry covers the store and the entry's own number, so that an entry of a former store, or one that
//! was written to a wrong place, is none. It is keyed: the bytes of an object cannot imitate a record header.

use std::ops::Range;

use zerocopy::little_endian::{U16, U32, U64};
use zerocopy::{FromBytes, FromZeros, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::superblock::{ENTRY_BYTES, RingSuperblock};
use crate::archive::ObjectName;
use crate::format::{BLOCK_BYTES, Checksum, SegmentNumber, Uuid};

/// Pieces of an object at most.
pub(super) const EXTENTS_MAX: usize = 4;

const RECORD_MAGIC: [u8; 8] = *b"SALVOLRR";
const RECORD_BYTES: usize = 32 + ENTRY_BYTES;
const FREE: u16 = 1;
const LIVE: u16 = 2;
const CHECKED: usize = ENTRY_BYTES - 16;
/// Sequence numbers never get here.
const SEQUENCE_MAX: u64 = 1 << 62;

/// Consecutive blocks of the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Extent {
    pub(super) first: u64,
    pub(super) blocks: u32,
}

impl Extent {
    /// The block behind it.
    pub(super) fn end(&self) -> u64 {
        self.first + u64::from(self.blocks)
    }
}

/// An object that the ring holds.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) name: ObjectName,
    /// Bytes of the object.
    pub(super) bytes: u64,
    /// CRC32C of the object.
    pub(super) crc: u32,
    /// Its pieces, one to [`EXTENTS_MAX`]: the record header block, then the object, then zeros.
    pub(super) extents: Vec<Extent>,
}

impl Record {
    /// The block of the record header.
    pub(super) fn header(&self) -> u64 {
        self.extents[0].first
    }

    /// Blocks in all.
    pub(super) fn blocks(&self) -> u64 {
        self.extents.iter().map(|extent| u64::from(extent.blocks)).sum()
    }
}

/// What an entry of the catalogue says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Entry {
    /// Grows with each change of the catalogue. Of two copies the larger one counts.
    pub(super) sequence: u64,
    /// The object; `None` in an entry that is free.
    pub(super) record: Option<Record>,
    /// Of a free entry: the block of the record header that goes with it, 0 for none.
    pub(super) vacated: u64,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Clone, Copy)]
#[repr(C)]
struct Piece {
    first: U64,
    blocks: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Layout {
    state: U16,
    extents: U16,
    part: U32,
    sequence: U64,
    history: [u8; 16],
    segment: U64,
    epoch: U64,
    bytes: U64,
    crc: U32,
    reserved: [u8; 4],
    pieces: [Piece; EXTENTS_MAX],
    checksum: Checksum,
}

const _: () = assert!(size_of::<Layout>() == ENTRY_BYTES);
const _: () = assert!(std::mem::offset_of!(Layout, checksum) == CHECKED);

impl Entry {
    /// An entry that is free, and was that of the object whose record header is block `vacated`.
    pub(super) fn free(sequence: u64, vacated: u64) -> Self {
        Self { sequence, record: None, vacated }
    }

    /// The entry of an object.
    pub(super) fn live(sequence: u64, record: Record) -> Self {
        Self { sequence, record: Some(record), vacated: 0 }
    }

    /// The entry as number `slot` of the catalogue.
    pub(super) fn encode(&self, ring: &RingSuperblock, slot: u32) -> [u8; ENTRY_BYTES] {
        let mut layout = Layout::new_zeroed();
        layout.state = U16::new(FREE);
        layout.sequence = U64::new(self.sequence);
        layout.pieces[0].first = U64::new(self.vacated);
        if let Some(record) = &self.record {
            layout.state = U16::new(LIVE);
            layout.extents = U16::new(record.extents.len() as u16);
            layout.part = U32::new(record.name.part);
            layout.history = record.name.history.0;
            layout.segment = U64::new(record.name.segment.0);
            layout.epoch = U64::new(record.name.epoch);
            layout.bytes = U64::new(record.bytes);
            layout.crc = U32::new(record.crc);
            for (piece, extent) in layout.pieces.iter_mut().zip(&record.extents) {
                *piece = Piece { first: U64::new(extent.first), blocks: U32::new(extent.blocks) };
            }
        }
        layout.checksum = checksum(ring, slot, &layout.as_bytes()[..CHECKED]);
        let mut bytes = [0; ENTRY_BYTES];
        bytes.copy_from_slice(layout.as_bytes());
        bytes
    }

    /// Entry `slot` in its bytes; `None` when they are damaged.
    pub(super) fn parse(bytes: &[u8], ring: &RingSuperblock, slot: u32) -> Option<Self> {
        let layout = Layout::ref_from_bytes(bytes).ok()?;
        let sequence = layout.sequence.get();
        if layout.checksum != checksum(ring, slot, &bytes[..CHECKED]) || sequence > SEQUENCE_MAX {
            return None;
        }
        match layout.state.get() {
            FREE => {
                let vacated = layout.pieces[0].first.get();
                let fits = vacated == 0 || ring.data().contains(&vacated);
                return fits.then_some(Self { sequence, record: None, vacated });
            }
            LIVE => {}
            _ => return None,
        }
        let count = usize::from(layout.extents.get());
        let pieces = layout.pieces.get(..count)?;
        let extents: Vec<_> =
            pieces.iter().map(|piece| Extent { first: piece.first.get(), blocks: piece.blocks.get() }).collect();
        let record = Record {
            name: ObjectName {
                history: Uuid(layout.history),
                segment: SegmentNumber(layout.segment.get()),
                epoch: layout.epoch.get(),
                part: layout.part.get(),
            },
            bytes: layout.bytes.get(),
            crc: layout.crc.get(),
            extents,
        };
        (record.name.is_possible() && fits(&record, &ring.data())).then_some(Self {
            sequence,
            record: Some(record),
            vacated: 0,
        })
    }

    /// The record header of an object whose entry this is.
    pub(super) fn encode_record(&self, ring: &RingSuperblock, slot: u32) -> [u8; RECORD_BYTES] {
        let mut block = [0; RECORD_BYTES];
        block[..8].copy_from_slice(&RECORD_MAGIC);
        block[8..24].copy_from_slice(&ring.store);
        block[24..28].copy_from_slice(&slot.to_le_bytes());
        block[32..].copy_from_slice(&self.encode(ring, slot));
        block
    }

    /// The entry, and its number, in the record header that is block `at` of the disk.
    pub(super) fn parse_record(block: &[u8], ring: &RingSuperblock, at: u64) -> Option<(u32, Self)> {
        let (magic, rest) = block.split_first_chunk::<8>()?;
        let (store, rest) = rest.split_first_chunk::<16>()?;
        let (slot, rest) = rest.split_first_chunk::<4>()?;
        let slot = u32::from_le_bytes(*slot);
        if *magic != RECORD_MAGIC || *store != ring.store || u64::from(slot) >= ring.entries {
            return None;
        }
        let entry = Self::parse(rest.get(4..4 + ENTRY_BYTES)?, ring, slot)?;
        entry.record.as_ref().is_some_and(|record| record.header() == at).then_some((slot, entry))
    }
}

/// Whether the bytes look like an entry that was changed since its store was made, of a store whose key is not known.
pub(super) fn looks_used(bytes: &[u8]) -> bool {
    let Ok(layout) = Layout::ref_from_bytes(bytes) else { return false };
    let zeros = |range: Range<usize>| bytes[range].iter().all(|byte| *byte == 0);
    if !(1..=SEQUENCE_MAX).contains(&layout.sequence.get())
        || zeros(CHECKED..CHECKED + 8)
        || zeros(CHECKED + 8..ENTRY_BYTES)
    {
        return false;
    }
    match (layout.state.get(), usize::from(layout.extents.get())) {
        // All but the sequence and the block that it vacated.
        (FREE, 0) => zeros(4..8) && zeros(16..64) && zeros(72..CHECKED),
        (LIVE, count @ 1..=EXTENTS_MAX) => {
            let blocks = layout.pieces[..count].iter().map(|piece| u64::from(piece.blocks.get())).sum::<u64>();
            zeros(60..64) && zeros(64 + 12 * count..CHECKED) && blocks == blocks_for(layout.bytes.get())
        }
        _ => false,
    }
}

/// Whether the pieces of a record are inside `data` and are what its bytes need.
fn fits(record: &Record, data: &Range<u64>) -> bool {
    let inside = |extent: &Extent| {
        let end = extent.first.checked_add(u64::from(extent.blocks));
        extent.blocks > 0 && extent.first >= data.start && end.is_some_and(|end| end <= data.end)
    };
    !record.extents.is_empty() && record.extents.iter().all(inside) && record.blocks() == blocks_for(record.bytes)
}

/// Blocks of an object of so many bytes, the record header included.
pub(super) fn blocks_for(bytes: u64) -> u64 {
    1 + bytes.div_ceil(BLOCK_BYTES as u64)
}

fn checksum(ring: &RingSuperblock, slot: u32, bytes: &[u8]) -> Checksum {
    Checksum::keyed(&ring.volume.key, &[&ring.store, &slot.to_le_bytes(), bytes])
}
