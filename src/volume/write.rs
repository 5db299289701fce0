//! Everything that appends: writes, discards, flushes, synch events, and the end of the volume.

use std::sync::Arc;

use super::{Point, RequestError, Volume};
use crate::format::{Block, CleanClose, INFO_BYTES_MAX, LABEL_BYTES_MAX};
use crate::io::{Buffer, Platform};

impl<P: Platform> Volume<P> {
    /// Writes the blocks in `data` from `block` on; with `fua` they are durable when it ends.
    pub(super) async fn write(&self, block: Block, data: &Buffer, fua: bool) -> Result<(), RequestError> {
        self.check_writable()?;
        let position = self.0.log.write(block, data).await?;
        self.0.log.acknowledged(position).await?;
        if fua { self.flush().await } else { Ok(()) }
    }

    /// Discards or zeroes blocks: either way they read as zeros.
    pub(super) async fn unmap(&self, block: Block, blocks: u32, zero: bool, fua: bool) -> Result<(), RequestError> {
        self.check_writable()?;
        let position = self.0.log.unmap(block, blocks, zero).await?;
        self.0.log.acknowledged(position).await?;
        if fua { self.flush().await } else { Ok(()) }
    }

    /// Makes everything acknowledged so far durable.
    pub(super) async fn flush(&self) -> Result<(), RequestError> {
        if self.0.read_only {
            return Ok(());
        }
        Ok(self.0.log.flush().await?)
    }

    /// Marks a synch point, which covers every write acknowledged before the call; durable when it returns.
    ///
    /// # Errors
    /// When label or information is too long, or the log takes nothing more.
    pub async fn synch(&self, label: String, info: String) -> Result<Point, RequestError> {
        self.check_writable()?;
        for (what, text, limit) in [("label", &label, LABEL_BYTES_MAX), ("information", &info, INFO_BYTES_MAX)] {
            if text.len() > limit {
                let what = format!("the {what} has {} bytes, at most {limit} are kept", text.len());
                return Err(RequestError::Refused { what: Arc::from(what) });
            }
        }
        let mark = self.0.log.mark(label, info).await?;
        self.0.log.acknowledged(crate::format::Position(mark.point)).await?;
        self.flush().await?;
        Ok(mark.into())
    }

    /// Ends the volume: waits for what is under way, appends the close entry, flushes, records the clean close.
    ///
    /// # Errors
    /// When the log has stopped or the device fails: then the next open recovers.
    pub async fn close(&self) -> Result<(), RequestError> {
        if self.0.read_only || self.0.closing.replace(true) {
            return Ok(());
        }
        let log = &self.0.log;
        log.close().await?;
        let (position, checksum) = log.tail();
        let mut superblock = log.volume().clone();
        superblock.generation += 1;
        superblock.clean_close = Some(CleanClose { segment: log.current_segment(), position, checksum });
        let written = super::open::write_superblock(log.device(), &superblock).await;
        written.map_err(|error| RequestError::Stopped { cause: Arc::from(format!("writing the superblock: {error}")) })
    }
}
