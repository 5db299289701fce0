//! Why the past cannot be read.

use std::io;
use std::path::PathBuf;

use crate::archive::{ArchiveError, ObjectName, SpecError, StoreError};
use crate::format::{FormatError, Position, SegmentNumber};
use crate::io::PrimaryError;
use crate::log::scan::ScanError;

use super::TargetError;

/// Why the past cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum HistoryError {
    #[error("{path}: {source}")]
    Superblock { path: String, source: FormatError },
    #[error(transparent)]
    Primary(#[from] PrimaryError),
    #[error(transparent)]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Store(#[from] StoreError),
    /// Where the volume's histories fork.
    #[error(transparent)]
    Lineage(#[from] ArchiveError),
    #[error("the overlay: {0}")]
    Overlay(#[source] io::Error),
    #[error("reading the primary: {0}")]
    Io(#[from] io::Error),
    #[error(transparent)]
    Target(#[from] TargetError),
    #[error("interrupted")]
    Interrupted,
    /// A restore ended early, and the same one can go on.
    #[error("{source}\n{} keeps what is restored so far; the same command again goes on from there", kept.display())]
    Unfinished { source: Box<HistoryError>, kept: PathBuf },
    /// Nothing is called so, or was ever there.
    #[error("{what}")]
    NoPoint { what: String },
    /// No point could ever be called so.
    #[error("{what}")]
    NotAPoint { what: String },
    /// It may be in what could not be read.
    #[error("{what}; not everything could be read: {source}")]
    Unread { what: String, source: Box<HistoryError> },
    #[error(
        "the log on the primary seems to end in segment {segment}, and goes on: {what}. An older point or position can be asked for"
    )]
    CutShort { segment: SegmentNumber, what: String },
    /// It may be in a store that cannot be asked now.
    #[error("{what}; it may be in {store}, which cannot be reached")]
    Unreachable { what: String, store: String },
    /// It cannot be kept: what it needs is in old slots only.
    #[error(
        "position {position} needs segment {segment}, which is on the primary and not in the archive: it was pruned or has expired, and goes when \
         its slot is used again; or it is being archived, then try again"
    )]
    NotArchived { position: Position, segment: SegmentNumber },
    /// It was there, and what it needs has gone.
    #[error("position {position} can no longer be restored: segment {segment} is gone from the primary{archive}")]
    Gone { position: Position, segment: SegmentNumber, archive: &'static str },
    #[error(
        "segment {segment} was archived while the volume was being rebuilt: the old primary is still in use; detach it first. \
         Nothing was recorded, the volume is the old one's"
    )]
    InUse { segment: SegmentNumber },
    #[error(
        "{store}: another rebuild of this volume was faster, or the record of one is damaged: nothing was recorded"
    )]
    OtherRebuild { store: String },
    /// A rebuild would go on from before the newest that the archive has, and never come back.
    #[error(
        "the volume cannot go on from the newest segment in the archive, {newest}: {source}. It could go on from position {position} in \
         segment {segment}, and what is newer would be lost for good. Complete or repair the archive and try again, or give that up \
         with --accept-loss {position}"
    )]
    Loss { newest: SegmentNumber, position: Position, segment: SegmentNumber, source: Box<HistoryError> },
    #[error("{name}: the volume keeps no archive (--backing none): there is nothing to pin or to prune")]
    NoArchive { name: String },
    #[error("{what}: is not pinned; `salvol points` shows what is")]
    NotPinned { what: String },
    /// Nothing is pruned when it is not known what must stay.
    #[error(
        "the record of a pin is damaged, and what it keeps is not known: {source}. Nothing was pruned: pin again what it pinned, and \
         remove it with `salvol unpin`, by its name {name}"
    )]
    DamagedPin { name: ObjectName, source: Box<ArchiveError> },
    #[error(
        "a view of the past or a rollback reads segment {segment}, which would be removed: detach the view (`salvol list` shows it) \
         and try again"
    )]
    Leased { segment: SegmentNumber },
    #[error("the volume needs a primary of at least {need} bytes, and there are {have}")]
    TooSmall { need: u64, have: u64 },
    #[error("segment {segment} is damaged on the primary: {source}")]
    DamagedSlot { segment: SegmentNumber, source: ScanError },
    #[error("segment {segment} is damaged in the archive: {source}")]
    DamagedObject { segment: SegmentNumber, source: ArchiveError },
    #[error("segment {segment} does not continue the chain of checksums: it belongs to another past")]
    Chain { segment: SegmentNumber },
    #[error("segment {segment}: the copy of block {block} at position {position} differs from the version it copies")]
    Copy { segment: SegmentNumber, block: u64, position: Position },
    #[error("segment {segment}: block {block} is not of the volume, which had {blocks} blocks then")]
    Outside { segment: SegmentNumber, block: u64, blocks: u64 },
}

impl HistoryError {
    /// Whether the point is not there, or can no longer be restored.
    pub fn is_no_point(&self) -> bool {
        matches!(self, Self::NoPoint { .. } | Self::Gone { .. } | Self::NotArchived { .. })
    }

    /// Whether nothing could ever be called so: wrong usage.
    pub fn is_usage(&self) -> bool {
        matches!(self, Self::NotAPoint { .. })
    }

    /// An object that the store does not give is not known to be damaged.
    pub(super) fn plain(self) -> Self {
        match self {
            Self::DamagedObject { source: ArchiveError::Store(error), .. }
                if !matches!(error, StoreError::Missing { .. }) =>
            {
                error.into()
            }
            other => other,
        }
    }

    /// Whether the store failed, rather than what is in it.
    pub(super) fn is_of_store(&self) -> bool {
        let of_store = |error: &StoreError| !matches!(error, StoreError::Missing { .. });
        match self {
            Self::Store(error)
            | Self::Lineage(ArchiveError::Store(error))
            | Self::DamagedObject { source: ArchiveError::Store(error), .. } => of_store(error),
            _ => false,
        }
    }

    /// Whether the reason is damage, rather than a mistake of the caller or a device that fails.
    pub fn is_corruption(&self) -> bool {
        match self {
            Self::Superblock { source, .. } => {
                matches!(source, FormatError::Checksum { .. } | FormatError::Field { .. })
            }
            // The store failed, not what is in it.
            Self::DamagedObject { source: ArchiveError::Store(_), .. } | Self::Lineage(ArchiveError::Store(_)) => false,
            Self::Unread { source, .. } => source.is_corruption(),
            Self::DamagedSlot { .. }
            | Self::CutShort { .. }
            | Self::Loss { .. }
            | Self::Lineage(_)
            | Self::DamagedObject { .. }
            | Self::Chain { .. }
            | Self::Copy { .. }
            | Self::Outside { .. } => true,
            _ => false,
        }
    }
}
