//! The bytes on the primary and in the archive, and nothing else: no I/O, no state.
//!
//! `docs/format.md` is normative; this module is its encoder and parser, and a test holds the worked examples of the
//! document against both. Every structure is little-endian with a fixed layout whose size is asserted when it is
//! compiled. A `parse` checks everything it can see and its error names the check that failed.
//!
//! ```text
//! primary:  superblock | slot 0 | slot 1 | ... | slot n-1 | superblock (copy)
//! slot:     segment header | batch | batch | ... | (unused) | summary
//! batch:    batch header with its entries | data block | data block | ...
//! ```

mod batch;
mod checksum;
mod entry;
mod segment;
mod summary;
mod superblock;
mod synch;
mod units;
mod walk;

pub use batch::{BATCH_ENTRIES_MAX, BatchHeader, ParsedBatch};
pub use checksum::{Checksum, Key, block_crc};
pub use entry::{Entry, EntryKind};
pub use segment::SegmentHeader;
pub use summary::{BatchRecord, SUMMARY_TRAILER_BYTES, Summary, SummaryTrailer, summary_blocks};
pub use superblock::{
    AcceptedLoss, ArchiveAt, CleanClose, Compression, FIRST_SLOT_BLOCK, Geometry, NAME_BYTES_MAX, SPEC_BYTES_MAX,
    Superblock, VERSION, is_name,
};
pub use synch::{INFO_BYTES_MAX, LABEL_BYTES_MAX, SynchMark};
pub use units::{Block, Offset, Place, Position, SegmentNumber, Slot, Uuid};
pub(crate) use units::{COUNT_MAX, check_counts};
pub use walk::{Walk, summary_from_image, summary_from_run, walk_segment};

/// Bytes in a block of the volume, and the unit of every I/O on the primary.
pub const BLOCK_BYTES: usize = 4096;

/// Why bytes are not the structure they were expected to be. One variant a check.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FormatError {
    #[error("{what}: {have} bytes, expected {need}")]
    Length { what: &'static str, have: usize, need: usize },
    #[error("{what}: no magic, these bytes are something else")]
    Magic { what: &'static str },
    #[error("format version {found} is not the version {supported} that this salvol reads")]
    Version { found: u32, supported: u32 },
    #[error("the volume uses features that this salvol does not know (bits {bits:#x}); use a newer salvol")]
    Features { bits: u64 },
    #[error("{what}: checksum does not match, the bytes are damaged")]
    Checksum { what: &'static str },
    #[error("{what}: belongs to another volume or history")]
    Identity { what: &'static str },
    #[error("{what}: field {field} holds {value}, which cannot be")]
    Field { what: &'static str, field: &'static str, value: u64 },
}
