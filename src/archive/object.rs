//! The archive object: one segment, compressed, self-describing, readable block by block.
//!
//! ```text
//! skippable frame: object header | frame | frame | ... | frame of the summary | skippable frame: table, footer
//! ```
//!
//! Plain `zstd -d` skips the two skippable frames and gives exactly the image of the slot. `docs/format.md` is
//! normative.
//!
//! The bytes are a function of volume, image and packing, of nothing else: the same segment packed again alike is the
//! same object, and `put` is idempotent.

use zerocopy::little_endian::{I64, U16, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::frame::{FRAME_BYTES, Packer};
use super::{ArchiveError, Frame, FrameTable, ObjectName, Packing, canonical};
use crate::format::{
    BLOCK_BYTES, COUNT_MAX, Checksum, FormatError, Offset, Position, SegmentNumber, Summary, Superblock, Uuid,
    check_counts,
};

/// The magic number of the skippable frames: one of the sixteen that zstd leaves to its users.
pub(super) const SKIPPABLE: u32 = 0x184D_2A5A;
/// Bytes of a skippable frame before its content.
pub(super) const SKIPPABLE_HEAD: usize = 8;

/// Bytes of the object header with its skippable frame.
pub const OBJECT_HEADER_BYTES: usize = 4352;

const VERSION: u32 = 1;
const MAGIC: [u8; 8] = *b"SALVOLAO";
const WHAT: &str = "archive object header";

/// Which blocks of a segment's slot an image is: all of it, or a run of batches of a segment that is still open.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Extent {
    /// 0 for a whole segment, otherwise the part's number, from 1.
    pub part: u32,
    /// The slot's block that the image begins with: 0, the segment header, or that of a batch header.
    pub first: Offset,
}

impl Extent {
    /// A whole segment.
    pub const WHOLE: Self = Self { part: 0, first: Offset(0) };
}

/// What a list of points needs to know of an object's batches, so that it need not read their summary.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outline {
    /// The oldest segment that any position in the object can need; ≥ 1.
    pub oldest_needed: SegmentNumber,
    /// Times of the first and the last batch.
    pub first_time_ns: i64,
    pub last_time_ns: i64,
    /// How many synch points were marked.
    pub synchs: u32,
}

impl Outline {
    pub(crate) fn of(summary: &Summary) -> Self {
        Self {
            oldest_needed: SegmentNumber(summary.oldest_needed.0.max(1)),
            first_time_ns: summary.batches.first().map_or(0, |batch| batch.time_ns()),
            last_time_ns: summary.batches.last().map_or(0, |batch| batch.time_ns()),
            synchs: summary.synchs.len() as u32,
        }
    }
}

/// What an object says of its segment before the segment's own bytes begin.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ObjectHeader {
    /// The volume: identity, key and geometry. Generation, epoch and clean close are always empty.
    pub volume: Superblock,
    pub name: ObjectName,
    pub first_position: Position,
    pub last_position: Position,
    /// The checksum of the batch header before the first of the object.
    pub predecessor: Checksum,
    /// The checksum of the last batch header in the object.
    pub last_checksum: Checksum,
    /// The slot's block that the image begins with.
    pub first: Offset,
    /// Blocks of the image: all of the slot, or a part's run of batches and its summary.
    pub blocks: u32,
    /// None in objects of a salvol that did not write it yet.
    pub outline: Option<Outline>,
}

#[derive(Clone, Copy, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Disk {
    skippable: U32,
    skippable_bytes: U32,
    magic: [u8; 8],
    version: U32,
    part: U32,
    features_incompatible: U64,
    features_compatible: U64,
    history: [u8; 16],
    segment: U64,
    epoch: U64,
    first_position: U64,
    last_position: U64,
    predecessor: Checksum,
    last_checksum: Checksum,
    image_bytes: U64,
    cipher: U16,
    ring: U16,
    key_id: U32,
    first: U32,
    oldest_needed: U64,
    first_time_ns: I64,
    last_time_ns: I64,
    synchs: U32,
    reserved: [u8; 72],
    superblock: [u8; BLOCK_BYTES],
    checksum: Checksum,
}

const CHECKED: usize = OBJECT_HEADER_BYTES - 16;
const SKIPPABLE_BYTES: u32 = (OBJECT_HEADER_BYTES - SKIPPABLE_HEAD) as u32;
const _: () = assert!(size_of::<Disk>() == OBJECT_HEADER_BYTES);
const _: () = assert!(std::mem::offset_of!(Disk, superblock) == 240);
const _: () = assert!(std::mem::offset_of!(Disk, checksum) == CHECKED);

impl ObjectHeader {
    /// The header of the object with an image of `blocks` blocks: what `summary` describes, and the summary.
    pub fn new(volume: &Superblock, summary: &Summary, extent: Extent, blocks: u32) -> Self {
        let (history, segment, epoch) = (volume.history, summary.segment, summary.epoch);
        Self {
            volume: canonical(volume),
            name: ObjectName { history, segment, epoch, part: extent.part },
            first_position: summary.first_position,
            last_position: summary.last_position(),
            predecessor: summary.predecessor,
            last_checksum: summary.last_checksum,
            first: extent.first,
            blocks,
            outline: Some(Outline::of(summary)),
        }
    }

    /// Bytes of the image.
    pub fn image_bytes(&self) -> usize {
        self.blocks as usize * BLOCK_BYTES
    }

    /// The header as the first bytes of its object.
    pub fn encode(&self) -> [u8; OBJECT_HEADER_BYTES] {
        let none = Outline { oldest_needed: SegmentNumber(0), first_time_ns: 0, last_time_ns: 0, synchs: 0 };
        let outline = self.outline.unwrap_or(none);
        let mut disk = Disk {
            skippable: U32::new(SKIPPABLE),
            skippable_bytes: U32::new(SKIPPABLE_BYTES),
            magic: MAGIC,
            version: U32::new(VERSION),
            part: U32::new(self.name.part),
            features_incompatible: U64::new(0),
            features_compatible: U64::new(0),
            history: self.name.history.0,
            segment: U64::new(self.name.segment.0),
            epoch: U64::new(self.name.epoch),
            first_position: U64::new(self.first_position.0),
            last_position: U64::new(self.last_position.0),
            predecessor: self.predecessor,
            last_checksum: self.last_checksum,
            image_bytes: U64::new(self.image_bytes() as u64),
            cipher: U16::new(0),
            ring: U16::new(0),
            key_id: U32::new(0),
            first: U32::new(self.first.0),
            oldest_needed: U64::new(outline.oldest_needed.0),
            first_time_ns: I64::new(outline.first_time_ns),
            last_time_ns: I64::new(outline.last_time_ns),
            synchs: U32::new(outline.synchs),
            reserved: [0; 72],
            superblock: self.volume.encode(),
            checksum: Checksum::default(),
        };
        disk.checksum = Checksum::keyed(&self.volume.key, &[&disk.as_bytes()[..CHECKED]]);
        let mut bytes = [0; OBJECT_HEADER_BYTES];
        bytes.copy_from_slice(disk.as_bytes());
        bytes
    }

    /// The header at the start of an object.
    ///
    /// Its checksum is keyed by the key that it carries itself: that finds damage. That it is the volume's own key is
    /// for the reader to check, who has one to compare with, see [`Self::is_of`].
    pub fn parse(bytes: &[u8]) -> Result<Self, FormatError> {
        let short = |_| FormatError::Length { what: WHAT, have: bytes.len(), need: OBJECT_HEADER_BYTES };
        let disk = Disk::ref_from_bytes(bytes).map_err(short)?;
        if disk.magic != MAGIC || disk.skippable.get() != SKIPPABLE || disk.skippable_bytes.get() != SKIPPABLE_BYTES {
            return Err(FormatError::Magic { what: WHAT });
        }
        if disk.version.get() != VERSION {
            // A newer salvol's, unless only the number has rotted.
            let ours = Disk { version: U32::new(VERSION), ..*disk };
            return Err(match Self::parse(ours.as_bytes()) {
                Ok(_) => FormatError::Checksum { what: WHAT },
                Err(_) => FormatError::Version { found: disk.version.get(), supported: VERSION },
            });
        }
        let volume = Superblock::parse(&disk.superblock)?;
        if disk.checksum != Checksum::keyed(&volume.key, &[&bytes[..CHECKED]]) {
            return Err(FormatError::Checksum { what: WHAT });
        }
        if disk.features_incompatible.get() != 0 {
            return Err(FormatError::Features { bits: disk.features_incompatible.get() });
        }
        if disk.history != volume.history.0 {
            return Err(FormatError::Identity { what: WHAT });
        }
        let field = |field, value| Err(FormatError::Field { what: WHAT, field, value });
        let counts = [("segment", disk.segment), ("first position", disk.first_position), ("epoch", disk.epoch)];
        check_counts(WHAT, counts)?;
        let (geometry, first) = (&volume.geometry, Offset(disk.first.get()));
        let bytes = disk.image_bytes.get();
        let blocks = u32::try_from(bytes / BLOCK_BYTES as u64).unwrap_or(u32::MAX);
        let fits = match disk.part.get() {
            0 => first == Offset(0) && blocks == geometry.segment_blocks,
            // A batch and a summary at least, inside the slot.
            _ => blocks >= 2 && first.0.checked_add(blocks).is_some_and(|end| end <= geometry.segment_blocks),
        };
        if !fits || !bytes.is_multiple_of(BLOCK_BYTES as u64) {
            return field("image bytes", bytes);
        }
        if disk.cipher.get() != 0 || disk.ring.get() != 0 {
            return field("cipher or ring", u64::from(disk.cipher.get()) << 16 | u64::from(disk.ring.get()));
        }
        let (from, last) = (disk.first_position.get(), disk.last_position.get());
        if last < from - 1 || last > COUNT_MAX {
            return field("last position", last);
        }
        let oldest_needed = disk.oldest_needed.get();
        let outline = (oldest_needed > 0).then(|| Outline {
            oldest_needed: SegmentNumber(oldest_needed),
            first_time_ns: disk.first_time_ns.get(),
            last_time_ns: disk.last_time_ns.get(),
            synchs: disk.synchs.get(),
        });
        let name = ObjectName {
            history: Uuid(disk.history),
            segment: SegmentNumber(disk.segment.get()),
            epoch: disk.epoch.get(),
            part: disk.part.get(),
        };
        Ok(Self {
            volume,
            name,
            first_position: Position(from),
            last_position: Position(last),
            predecessor: disk.predecessor,
            last_checksum: disk.last_checksum,
            first,
            blocks,
            outline,
        })
    }

    /// Whether the object is one of `volume`, in whatever history.
    pub fn is_of(&self, volume: &Superblock) -> bool {
        self.volume.uuid == volume.uuid && self.volume.key == volume.key
    }

    /// Whether `summary` is the one of the header's segment.
    pub(crate) fn agrees(&self, summary: &Summary) -> bool {
        let last = summary.first_position.0.checked_add(summary.batches.len() as u64).map(|end| end.wrapping_sub(1));
        summary.segment == self.name.segment
            && summary.epoch == self.name.epoch
            && summary.first_position == self.first_position
            && last == Some(self.last_position.0)
            && summary.predecessor == self.predecessor
            && summary.last_checksum == self.last_checksum
            && self.outline.is_none_or(|outline| outline == Outline::of(summary))
    }
}

/// The archive object with this `image`: the whole slot of a segment with its summary at the end, or, for a part, a run of
/// its blocks and their summary, see [`Extent`].
///
/// # Errors
/// When the image cannot be one of `volume` with this summary, or zstd fails.
pub fn encode_object(
    volume: &Superblock,
    summary: &Summary,
    extent: Extent,
    image: &[u8],
    packing: Packing,
) -> Result<Vec<u8>, ArchiveError> {
    let slot = volume.geometry.segment_bytes();
    let need = if extent.part == 0 { slot } else { image.len().next_multiple_of(BLOCK_BYTES) };
    let (summary_blocks, first) = (summary.blocks(), extent.first.0 as usize * BLOCK_BYTES);
    let summary_bytes = summary_blocks as usize * BLOCK_BYTES;
    if image.len() != need || first.saturating_add(need) > slot || summary_bytes >= need {
        return Err(ArchiveError::Image { have: image.len(), need: slot, summary: summary_blocks });
    }
    let (data, tail) = image.split_at(need - summary_bytes);
    let header = ObjectHeader::new(volume, summary, extent, (need / BLOCK_BYTES) as u32);
    let mut packer = Packer::new(packing).map_err(ArchiveError::Compress)?;
    // Only pages that are touched cost memory, so a good ratio is not paid for.
    let mut out = Vec::with_capacity(need + OBJECT_HEADER_BYTES);
    out.extend_from_slice(&header.encode());
    let mut table = FrameTable::default();
    for raw in data.chunks(FRAME_BYTES).chain([tail]) {
        let at = out.len();
        packer.pack(raw, &mut out).map_err(ArchiveError::Compress)?;
        table.push(Frame::of(at, &out[at..], raw.len()));
    }
    table.encode(&header, &mut out);
    Ok(out)
}
