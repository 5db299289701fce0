//! What a ring needs of the file or device beneath it, and how it is opened: the seam for a simulated disk.

use std::io;
use std::sync::Arc;

use crate::archive::StoreError;
use crate::format::BLOCK_BYTES;
use crate::io::Buffer;

/// An open file or device. Offsets and lengths are whole blocks; a short transfer is an error.
pub(crate) trait Disk: Send + Sync + 'static {
    /// Fills `buffer` from byte `offset`, past every cache where that is possible.
    fn read_at(&self, offset: u64, buffer: &Buffer) -> io::Result<()>;

    /// Writes all of `buffer` at byte `offset`. Volatile until a [`Self::sync`] that was started after it ended.
    fn write_at(&self, offset: u64, buffer: &Buffer) -> io::Result<()>;

    /// Makes every write that has ended durable.
    fn sync(&self) -> io::Result<()>;

    /// Its bytes, whole blocks.
    fn bytes(&self) -> u64;

    /// The block device that the bytes are on, when that is known.
    fn device(&self) -> Option<u64>;

    /// What happened to it when its path does not lead to it any more.
    fn displaced(&self) -> io::Result<Option<Displaced>> {
        Ok(None)
    }
}

/// Why nobody who goes by the path finds what is written to an open file or device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Displaced {
    Removed,
    Replaced,
}

/// Where a ring is: opens its disk.
pub(crate) trait Medium: Send + Sync + 'static {
    /// Opens the disk for reading, whoever writes to it.
    fn look(&self) -> Result<Arc<dyn Disk>, StoreError>;

    /// Opens the disk for its one writer and takes the lock, which lasts as long as the disk is open.
    fn own(&self) -> Result<Arc<dyn Disk>, StoreError>;

    /// The store's SPEC.
    fn spec(&self) -> String;
}

/// Bytes of a block, as offsets are counted.
pub(super) const BLOCK: u64 = BLOCK_BYTES as u64;

/// Block `block` of the disk.
pub(super) fn read_block(disk: &dyn Disk, block: u64) -> io::Result<Buffer> {
    let buffer = Buffer::new(BLOCK_BYTES)?;
    disk.read_at(block * BLOCK, &buffer)?;
    Ok(buffer)
}

/// Writes `bytes`, at most a block, to block `block`, zeros behind them.
pub(super) fn write_block(disk: &dyn Disk, block: u64, bytes: &[u8]) -> io::Result<()> {
    let buffer = Buffer::new(BLOCK_BYTES)?;
    buffer.copy_from(0, bytes);
    disk.write_at(block * BLOCK, &buffer)
}
