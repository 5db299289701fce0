//! A block that a restore could not get.

use serde::Serialize;

/// A block that could not be restored, and where it should have been.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Damage {
    /// Block of the volume.
    pub block: u64,
    /// The log position that wrote or copied it; absent when the block was lost long before.
    pub position: Option<u64>,
    pub segment: Option<u64>,
    /// Offset of the block in its segment.
    pub offset: Option<u32>,
    /// Rank of its frame in the archive object, when it was looked for there.
    pub frame: Option<u32>,
    pub cause: String,
}

impl std::fmt::Display for Damage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "block {}", self.block)?;
        if let (Some(position), Some(segment), Some(offset)) = (self.position, self.segment, self.offset) {
            write!(f, " (position {position}, segment {segment}, offset {offset}")?;
            if let Some(frame) = self.frame {
                write!(f, ", frame {frame}")?;
            }
            f.write_str(")")?;
        }
        write!(f, ": {}", self.cause)
    }
}
