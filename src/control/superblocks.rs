//! Both copies of the superblock of a primary that nobody serves.

use std::io;

use crate::format::{BLOCK_BYTES, FormatError, Superblock};
use crate::io::{Buffer, Device};
use crate::log::scan;

/// Why there is no superblock to go by.
#[derive(Debug, thiserror::Error)]
pub enum SuperblockError {
    #[error("not a salvol volume: neither the first block nor the last holds a superblock; `salvol create` makes one")]
    None,
    #[error("{0}")]
    OtherVersion(FormatError),
    #[error("both superblocks are damaged ({0}); `salvol rebuild` makes a new primary from the archive")]
    Damaged(FormatError),
    #[error("the superblock cannot be read: {0}")]
    Io(#[from] io::Error),
    #[error("the volume was made for {need} bytes, the primary has {have}: it was cut short")]
    CutShort { need: u64, have: u64 },
}

impl SuperblockError {
    /// Whether something is there and is damaged.
    pub fn is_corruption(&self) -> bool {
        matches!(self, Self::Damaged(_) | Self::CutShort { .. })
    }
}

/// The better copy of the superblock on `device`. A block that cannot be read counts as damaged.
///
/// # Errors
/// See [`SuperblockError`].
pub async fn read_superblock(device: &impl Device) -> Result<Superblock, SuperblockError> {
    let superblock = match scan::superblock(device).await? {
        Ok((superblock, _)) => superblock,
        Err(FormatError::Magic { .. } | FormatError::Length { .. }) => return Err(SuperblockError::None),
        Err(error @ (FormatError::Version { .. } | FormatError::Features { .. })) => {
            return Err(SuperblockError::OtherVersion(error));
        }
        Err(error) => return Err(SuperblockError::Damaged(error)),
    };
    let need = superblock.geometry.primary_blocks * BLOCK_BYTES as u64;
    let have = device.bytes();
    if need > have {
        return Err(SuperblockError::CutShort { need, have });
    }
    Ok(superblock)
}

/// Overwrites the copies of the superblock that are there with zeros, durably: the volume is gone. A block that is no
/// superblock is somebody's data: an image that was restored over the volume, say.
///
/// # Errors
/// The I/O error.
pub async fn wipe_superblocks(device: &impl Device, copy_at: u64) -> io::Result<()> {
    let block = Buffer::new(BLOCK_BYTES)?;
    for place in [0, copy_at] {
        let read = device.read(place, block.clone()).await;
        if read.is_err() || !matches!(Superblock::parse(block.bytes()), Err(FormatError::Magic { .. })) {
            block.zero();
            device.write(place, block.clone()).await?;
        }
    }
    device.flush().await
}
