//! What can be wrong with an archive object, and why archiving or reading one failed.

use super::{ObjectName, StoreError};
use crate::format::{FormatError, Offset, Uuid};

/// Why bytes are not the archive object, or the part of it, that they should be. One variant a check.
#[derive(Debug, thiserror::Error)]
pub enum ObjectError {
    /// Header, frame table, footer or summary.
    #[error(transparent)]
    Format(#[from] FormatError),
    #[error("frame {frame} at {at:#x}: {have} bytes, expected {need}: the object is cut short")]
    Short { frame: usize, at: u64, have: usize, need: usize },
    #[error("frame {frame} at {at:#x}: CRC32C is {found:#010x}, the frame table says {expected:#010x}")]
    Checksum { frame: usize, at: u64, found: u32, expected: u32 },
    #[error("frame {frame} at {at:#x}: zstd cannot decode it: {source}")]
    Decode { frame: usize, at: u64, source: std::io::Error },
    #[error("frame {frame} at {at:#x}: decodes to {have} bytes, the frame table says {need}")]
    Decoded { frame: usize, at: u64, have: usize, need: usize },
    #[error("the header says segment, positions or checksums that its summary does not have")]
    Summary,
    #[error("block {offset} is damaged in it, and whole on the primary")]
    Block { offset: Offset },
    #[error("no part of this open segment begins it: its first part is missing or damaged")]
    Parts,
    #[error("the fork records of this store lead in a circle, or there are too many")]
    Circle,
    #[error("is the object of another segment: its header says {found}")]
    Name { found: ObjectName },
}

/// Why a segment was not archived, or not read from its archive object.
#[derive(Debug, thiserror::Error)]
pub enum ArchiveError {
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("object {name}: {source}")]
    Object { name: ObjectName, source: ObjectError },
    #[error("object {name} belongs to volume {found}, not to {expected} (or to one with another key)")]
    Volume { name: ObjectName, found: Uuid, expected: Uuid },
    #[error("object {name}: offset {offset} is not in a segment of {blocks} blocks")]
    Offset { name: ObjectName, offset: Offset, blocks: u32 },
    #[error("object {name}: a buffer of {have} bytes, the segment has {need}")]
    Buffer { name: ObjectName, have: usize, need: usize },
    #[error(
        "object {name} reads back, but byte {at:#x} of the segment differs: the store does not keep what it is given"
    )]
    Differs { name: ObjectName, at: usize },
    #[error("object {name} is in the store already, and is not this segment: {source}")]
    Conflict { name: ObjectName, source: Box<ArchiveError> },
    #[error("segment of {have} bytes with a summary of {summary} blocks is not one of this volume ({need} bytes)")]
    Image { have: usize, need: usize, summary: u32 },
    #[error(
        "the volume was rebuilt from its archive: {fork}. This primary, of history {history}, is the old one, and the store \
         takes nothing more of it: detach it; `salvol destroy` frees it"
    )]
    Superseded { history: Uuid, fork: String },
    #[error(
        "history {history} of this primary is not in its store, which has no record that it continues {parent}: it is the store \
         of another time. Restore the store, or rebuild the primary from it with `salvol rebuild`"
    )]
    Unrecorded { history: Uuid, parent: Uuid },
    #[error("zstd cannot compress a segment: {0}")]
    Compress(std::io::Error),
    #[error("no memory for the decoded segment: {0}")]
    Memory(std::io::Error),
}

impl ArchiveError {
    /// Whether the object is damaged, and not another salvol's or another segment's.
    pub fn is_damage(&self) -> bool {
        let Self::Object { source, .. } = self else { return false };
        !matches!(
            source,
            ObjectError::Format(
                FormatError::Version { .. } | FormatError::Features { .. } | FormatError::Identity { .. }
            ) | ObjectError::Circle
                | ObjectError::Name { .. }
        )
    }

    pub(super) fn object(name: &ObjectName, source: impl Into<ObjectError>) -> Self {
        Self::Object { name: *name, source: source.into() }
    }
}
