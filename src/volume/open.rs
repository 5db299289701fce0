//! Opening a volume: superblock, log, archive, and only then the epoch that makes it ours.

use std::cell::Cell;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};

use super::{Shared, Volume};
use crate::archive::{ArchivedSegment, ObjectName, Store};
use crate::format::{BLOCK_BYTES, Checksum, FormatError, Position, SegmentNumber, Superblock};
use crate::io::{Buffer, Device, Platform};
use crate::log::Log;
use crate::log::replay::ReplayError;
use crate::log::scan;

/// How long an opening waits for the store to say what it holds: a share that hangs must not keep the volume from its users.
const STORE_PATIENCE: Duration = Duration::from_secs(5);

/// How a volume is opened.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    pub read_only: bool,
    /// Goes on at this position although a later one was durable once.
    pub accept_loss: Option<Position>,
}

/// Why a volume cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("no salvol volume is here, neither at the start nor at the end: {0}")]
    NoSuperblock(FormatError),
    #[error("the volume needs {need} bytes of primary, and there are {have}")]
    Short { need: u64, have: u64 },
    #[error(
        "the archive is ahead of the primary: it holds segment {archived}, the primary's log ends in segment {tail}; the primary \
         lost durable data or was rolled back. Restore from the archive"
    )]
    ArchiveAhead { archived: SegmentNumber, tail: SegmentNumber },
    #[error("segment {segment} in the archive is not the one on the primary: one of them belongs to another past")]
    ArchiveDiffers { segment: SegmentNumber },
    #[error(transparent)]
    Replay(#[from] ReplayError),
    #[error("the primary: {0}")]
    Io(#[from] io::Error),
}

impl OpenError {
    /// Whether the reason is damage, rather than a mistake of the caller.
    pub fn is_corruption(&self) -> bool {
        match self {
            Self::ArchiveAhead { .. } | Self::ArchiveDiffers { .. } => true,
            Self::NoSuperblock(error) => matches!(error, FormatError::Checksum { .. } | FormatError::Field { .. }),
            Self::Replay(error) => !matches!(error, ReplayError::Io(_) | ReplayError::Log(_)),
            Self::Short { .. } | Self::Io(_) => false,
        }
    }
}

impl<P: Platform> Volume<P> {
    /// Opens the volume on `device`: reads the superblock, replays the log, begins a new epoch. `store` is where its
    /// segments go, `None` for `--backing none`.
    ///
    /// # Errors
    /// See [`OpenError`]; the primary is then as it was, but for a repaired superblock.
    pub async fn open(
        platform: P,
        device: P::Device,
        store: Option<Arc<dyn Store>>,
        options: OpenOptions,
    ) -> Result<Self, OpenError> {
        let (superblock, stale) = scan::superblock(&device).await?.map_err(OpenError::NoSuperblock)?;
        let need = superblock.geometry.primary_blocks * BLOCK_BYTES as u64;
        if device.bytes() < need {
            return Err(OpenError::Short { need, have: device.bytes() });
        }
        if stale && !options.read_only {
            log::warn!("{}: one of the two superblocks was damaged or old; it is written again", superblock.name);
            write_superblock(&device, &superblock).await?;
        }
        if let Some(store) = &store {
            compare_with_archive(&platform, &device, &superblock, Arc::clone(store)).await?;
        }
        let log = Log::open(platform, device, superblock, store, options.accept_loss, options.read_only).await?;
        if !options.read_only {
            let mut superblock = log.volume().clone();
            superblock.generation += 1;
            superblock.clean_close = None;
            if let Err(error) = write_superblock(log.device(), &superblock).await {
                log.stop(&format!("writing the superblock failed: {error}"));
                return Err(error.into());
            }
        }
        Ok(Self(Rc::new(Shared {
            log,
            read_only: options.read_only,
            closing: Cell::new(false),
            read_errors: Cell::new(0),
            read_bytes: Cell::new(0),
        })))
    }
}

/// Writes both superblocks, one after the other, each durable before the next.
pub(super) async fn write_superblock<D: Device>(device: &D, superblock: &Superblock) -> io::Result<()> {
    let block = Buffer::new(BLOCK_BYTES)?;
    block.copy_from(0, &superblock.encode());
    for offset in [0, superblock.geometry.copy_at()] {
        device.write(offset, block.clone()).await?;
        device.flush().await?;
    }
    Ok(())
}

/// Rule 10: the newest archived segment is on the primary, or older than what is there. A store that cannot be reached
/// delays archiving, not opening.
async fn compare_with_archive<P: Platform>(
    platform: &P,
    device: &P::Device,
    volume: &Superblock,
    store: Arc<dyn Store>,
) -> Result<(), OpenError> {
    let history = volume.history;
    let (shelf, known) = (Arc::clone(&store), volume.clone());
    let asked = platform.offload(move || -> Result<Option<(ObjectName, Checksum)>, String> {
        let list = shelf.list().map_err(|error| error.to_string())?;
        let newest = list.into_iter().map(|(name, _)| name).filter(|name| name.history == history).max();
        let Some(name) = newest else { return Ok(None) };
        let segment = ArchivedSegment::open(&shelf, &name, Some(&known)).map_err(|error| error.to_string())?;
        Ok(Some((name, segment.summary().last_checksum)))
    });
    let newest = match select(pin!(asked), pin!(platform.sleep(STORE_PATIENCE))).await {
        Either::Left((newest, _)) => newest,
        Either::Right(_) => Err(format!("it does not answer within {} s", STORE_PATIENCE.as_secs())),
    };
    let (name, checksum) = match newest {
        Ok(Some(newest)) => newest,
        Ok(None) => return Ok(()),
        Err(error) => {
            log::warn!("{}: attached without its store, segments wait on the primary: {error}", volume.name);
            return Ok(());
        }
    };
    let found = scan::headers(device, volume).await?.found;
    let newest = found.last().map_or(SegmentNumber(0), |found| found.header.segment);
    if name.segment > newest {
        return Err(OpenError::ArchiveAhead { archived: name.segment, tail: newest });
    }
    let here = found.iter().filter(|found| found.header.segment == name.segment);
    for found in here {
        let summary = scan::summary(device, volume, found.slot, name.segment).await;
        if summary.is_ok_and(|summary| summary.last_checksum == checksum) {
            return Ok(());
        }
    }
    if found.iter().any(|found| found.header.segment == name.segment) {
        return Err(OpenError::ArchiveDiffers { segment: name.segment });
    }
    Ok(())
}
