//! Everything that appends: writes, discards, flushes, synch events, and the end of the volume.

use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};

use super::{Point, RequestError, Volume};
use crate::format::{ArchiveAt, Block, CleanClose, INFO_BYTES_MAX, LABEL_BYTES_MAX, Position};
use crate::io::{Buffer, Platform};

/// How long a volume that ends waits for the store to take the last changes.
const CLOSE_PATIENCE: Duration = Duration::from_secs(5);

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
        self.synch_while(label, info, || true).await
    }

    /// The same, unless nobody `wants` the point any more when there is room for its mark: a mark that comes later than
    /// whoever asked for it waited would be of another moment.
    ///
    /// # Errors
    /// As for [`Self::synch`].
    pub async fn synch_while(
        &self,
        label: String,
        info: String,
        wants: impl Fn() -> bool,
    ) -> Result<Point, RequestError> {
        let _inside = self.0.gate.enter().await?;
        self.mark(label, info, wants).await
    }

    /// The same, whether the gate is open or not.
    pub(super) async fn mark(
        &self,
        label: String,
        info: String,
        wants: impl Fn() -> bool,
    ) -> Result<Point, RequestError> {
        self.check_writable()?;
        for (what, text, limit) in [("label", &label, LABEL_BYTES_MAX), ("information", &info, INFO_BYTES_MAX)] {
            if text.len() > limit {
                let what = format!("the {what} has {} bytes, at most {limit} are kept", text.len());
                return Err(RequestError::Refused { what: Arc::from(what) });
            }
        }
        let mark = self.0.log.mark(label, info, wants).await?;
        self.0.log.acknowledged(Position(mark.point)).await?;
        self.flush().await?;
        self.0.log.want_archived(Position(mark.point));
        Ok(mark.into())
    }

    /// Waits until everything up to `position`, which is durable, can be restored from the archive alone: for as long as
    /// the store is away.
    ///
    /// # Errors
    /// When the volume archives nothing, or not before segments leave the working set, and when it ends before.
    pub async fn archived(&self, position: Position) -> Result<(), RequestError> {
        self.archived_while(position, || true).await
    }

    /// The same, for as long as somebody `wants` to know, which is looked at each time that the store fails.
    ///
    /// # Errors
    /// As for [`Self::archived`], and when nobody wants to know any more.
    pub async fn archived_while(&self, position: Position, wants: impl Fn() -> bool) -> Result<(), RequestError> {
        let volume = self.superblock();
        let refused = |what: &str| RequestError::Refused { what: Arc::from(what) };
        if !self.0.log.has_store() {
            return Err(refused("the volume keeps no archive (--backing none)"));
        }
        if volume.archive_at == ArchiveAt::Inactive {
            return Err(refused(
                "the volume archives segments only when they leave the working set (--archive-at inactive)",
            ));
        }
        Ok(self.0.log.archived(position, wants).await?)
    }

    /// Archives what is not archived yet, if the store works and is not long about it: detaching needs no store.
    async fn archive_the_rest(&self) {
        let log = &self.0.log;
        let works = log.archive_state(|archive| archive.trouble.is_none());
        if !works || log.archive_interval().is_none() || log.flush().await.is_err() {
            return;
        }
        let (archived, patience) = (self.archived(log.last_change()), log.platform().sleep(CLOSE_PATIENCE));
        if let Either::Right(_) = select(pin!(archived), pin!(patience)).await {
            log::warn!(
                "{}: closed with changes that are only on the primary: the store was not done with them within {} s",
                self.superblock().name,
                CLOSE_PATIENCE.as_secs()
            );
        }
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
        self.archive_the_rest().await;
        log.close().await?;
        let (position, checksum) = log.tail();
        let mut superblock = log.volume().clone();
        superblock.generation += 1;
        superblock.clean_close = Some(CleanClose { segment: log.current_segment(), position, checksum });
        let written = crate::log::scan::write_superblock(log.device(), &superblock).await;
        written.map_err(|error| RequestError::Stopped { cause: Arc::from(format!("writing the superblock: {error}")) })
    }
}
