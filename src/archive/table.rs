//! The frame table and the footer: the end of an archive object, from which a reader finds every block in it.

use zerocopy::little_endian::{U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::frame::{FRAME_BYTES, stored_bytes};
use super::object::{SKIPPABLE, SKIPPABLE_HEAD};
use super::{OBJECT_HEADER_BYTES, ObjectHeader};
use crate::format::{BLOCK_BYTES, Checksum, FormatError, Offset, block_crc};

const MAGIC: [u8; 8] = *b"SALVOLAF";
const WHAT: &str = "archive object footer";
const TABLE: &str = "archive object frame table";

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Record {
    bytes: U32,
    raw_bytes: U32,
    crc: U32,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Footer {
    magic: [u8; 8],
    frames: U32,
    summary_frame: U32,
    table_offset: U64,
    /// The checksum of the object's header: the two ends belong together.
    header: Checksum,
    checksum: Checksum,
}

const RECORD: usize = 12;
const FOOTER: usize = 56;
const CHECKED: usize = FOOTER - 16;
const _: () = assert!(size_of::<Record>() == RECORD);
const _: () = assert!(size_of::<Footer>() == FOOTER);
const _: () = assert!(std::mem::offset_of!(Footer, checksum) == CHECKED);

/// A frame of an object: where it is there, and what it is of the image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame {
    /// Its first byte in the object.
    pub at: u64,
    /// Its length in the object.
    pub bytes: usize,
    /// Its first byte in the image.
    pub raw_at: usize,
    /// Its length in the image.
    pub raw_bytes: usize,
    /// CRC32C of its bytes in the object.
    pub crc: u32,
}

impl Frame {
    /// The frame `bytes`, which starts at byte `at` of its object and decodes to `raw_bytes`.
    pub(super) fn of(at: usize, bytes: &[u8], raw_bytes: usize) -> Self {
        Self { at: at as u64, bytes: bytes.len(), raw_at: 0, raw_bytes, crc: block_crc(bytes) }
    }

    /// Where the object goes on behind the frame.
    pub fn end(&self) -> u64 {
        self.at + self.bytes as u64
    }
}

/// All frames of an object, in the order of the image; the last one is the summary's.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FrameTable(Vec<Frame>);

impl FrameTable {
    pub(super) fn push(&mut self, frame: Frame) {
        let raw_at = self.0.last().map_or(0, |last| last.raw_at + last.raw_bytes);
        self.0.push(Frame { raw_at, ..frame });
    }

    /// The frames.
    pub fn frames(&self) -> &[Frame] {
        &self.0
    }

    /// The rank of the frame that holds the block at `offset` of the image.
    pub fn frame_of(&self, offset: Offset) -> usize {
        // Frames of the data are all of one length, but for the last, which the summary's follows.
        let (at, summary) = (offset.0 as usize * BLOCK_BYTES, self.0.len() - 1);
        if at >= self.0[summary].raw_at { summary } else { at / FRAME_BYTES }
    }

    /// Bytes at the end of an object of this volume that hold its table for certain.
    pub(super) fn tail_bytes_max(header: &ObjectHeader) -> usize {
        bytes_of(Self::frames_max(header))
    }

    fn frames_max(header: &ObjectHeader) -> usize {
        header.image_bytes().div_ceil(FRAME_BYTES) + 1
    }

    /// Appends table and footer to `out`, the object so far.
    pub(super) fn encode(&self, header: &ObjectHeader, out: &mut Vec<u8>) {
        let word = |value: usize| U32::new(u32::try_from(value).expect("a segment has at most 256 MiB"));
        out.extend_from_slice(&SKIPPABLE.to_le_bytes());
        out.extend_from_slice(word(self.0.len() * RECORD + FOOTER).as_bytes());
        let table_offset = out.len();
        for frame in &self.0 {
            let record =
                Record { bytes: word(frame.bytes), raw_bytes: word(frame.raw_bytes), crc: U32::new(frame.crc) };
            out.extend_from_slice(record.as_bytes());
        }
        let mut footer = Footer {
            magic: MAGIC,
            frames: word(self.0.len()),
            summary_frame: word(self.0.len() - 1),
            table_offset: U64::new(table_offset as u64),
            header: header_checksum(header),
            checksum: Checksum::default(),
        };
        let checked = [&out[table_offset..], &footer.as_bytes()[..CHECKED]];
        footer.checksum = Checksum::keyed(&header.volume.key, &checked);
        out.extend_from_slice(footer.as_bytes());
    }

    /// The table in `tail`, the last bytes of an object of `object_bytes` bytes that starts with `header`.
    pub(super) fn parse(tail: &[u8], object_bytes: u64, header: &ObjectHeader) -> Result<Self, FormatError> {
        let short = |need| FormatError::Length { what: WHAT, have: tail.len(), need };
        let (before, footer) = Footer::ref_from_suffix(tail).map_err(|_| short(FOOTER))?;
        if footer.magic != MAGIC {
            return Err(FormatError::Magic { what: WHAT });
        }
        let field = |field, value| Err(FormatError::Field { what: WHAT, field, value });
        let frames = footer.frames.get() as usize;
        if !(2..=Self::frames_max(header)).contains(&frames) {
            return field("frames", frames as u64);
        }
        let table_bytes = frames * RECORD;
        let head_bytes = SKIPPABLE_HEAD + table_bytes;
        let Some(start) = before.len().checked_sub(head_bytes) else {
            return Err(short(head_bytes + FOOTER));
        };
        let (head, table) = before[start..].split_at(SKIPPABLE_HEAD);
        let checked = [table, &footer.as_bytes()[..CHECKED]];
        if footer.checksum != Checksum::keyed(&header.volume.key, &checked) {
            return Err(FormatError::Checksum { what: WHAT });
        }
        if footer.header != header_checksum(header) {
            return Err(FormatError::Identity { what: WHAT });
        }
        if footer.summary_frame.get() as usize != frames - 1 {
            return field("summary frame", u64::from(footer.summary_frame.get()));
        }
        let skippable = U32::new((table_bytes + FOOTER) as u32);
        if head[..4] != SKIPPABLE.to_le_bytes() || head[4..] != *skippable.as_bytes() {
            return Err(FormatError::Magic { what: TABLE });
        }
        if object_bytes.checked_sub((table_bytes + FOOTER) as u64) != Some(footer.table_offset.get()) {
            return field("table offset", footer.table_offset.get());
        }
        let records = <[Record]>::ref_from_bytes(table).map_err(|_| short(head_bytes + FOOTER))?;
        Self::checked(records, footer.table_offset.get(), header)
    }

    /// The frames of `records`, when they are exactly the image, and in the object exactly what is between header and
    /// table. So nothing that is later computed from them can overflow, and no buffer is larger than it has to be.
    fn checked(records: &[Record], table_offset: u64, header: &ObjectHeader) -> Result<Self, FormatError> {
        let field = |field, value| Err(FormatError::Field { what: TABLE, field, value });
        let mut table = Self(Vec::with_capacity(records.len()));
        let mut at = OBJECT_HEADER_BYTES as u64;
        for (rank, record) in records.iter().enumerate() {
            let (bytes, raw_bytes) = (record.bytes.get() as usize, record.raw_bytes.get() as usize);
            let fits = match records.len() - rank {
                1 => raw_bytes < header.image_bytes(),
                2 => raw_bytes <= FRAME_BYTES,
                _ => raw_bytes == FRAME_BYTES,
            };
            if !fits || raw_bytes == 0 || !raw_bytes.is_multiple_of(BLOCK_BYTES) {
                return field("raw bytes", raw_bytes as u64);
            }
            if bytes == 0 || bytes > stored_bytes(raw_bytes) {
                return field("bytes", bytes as u64);
            }
            table.push(Frame { at, bytes, raw_at: 0, raw_bytes, crc: record.crc.get() });
            at += bytes as u64;
        }
        let raw_end = table.0.last().map_or(0, |last| last.raw_at + last.raw_bytes);
        if raw_end != header.image_bytes() {
            return field("raw bytes in all", raw_end as u64);
        }
        if at + SKIPPABLE_HEAD as u64 != table_offset {
            return field("bytes in all", at);
        }
        Ok(table)
    }
}

/// Bytes of table and footer of so many frames.
pub(super) fn bytes_of(frames: usize) -> usize {
    frames * RECORD + SKIPPABLE_HEAD + FOOTER
}

/// The checksum that ends the header's bytes.
fn header_checksum(header: &ObjectHeader) -> Checksum {
    let mut sum = Checksum::default();
    sum.0.copy_from_slice(&header.encode()[OBJECT_HEADER_BYTES - 16..]);
    sum
}
