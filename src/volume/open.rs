//! Opening a volume: superblock, log, archive, and only then the epoch that makes it ours.

use std::cell::Cell;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::{Either, select};

use super::{Shared, Volume};
use crate::archive::{ArchiveError, ArchivedSegment, ObjectName, Store};
use crate::format::{
    AcceptedLoss, BLOCK_BYTES, BatchRecord, Checksum, FormatError, Position, SegmentNumber, Superblock,
};
use crate::io::{Buffer, Device, Platform};
use crate::log::Log;
use crate::log::replay::{ReplayError, find_tail};
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
         lost durable data or was rolled back. Restore from the archive, or go on without what it is ahead with --accept-loss {last}"
    )]
    ArchiveAhead { archived: SegmentNumber, tail: SegmentNumber, last: Position },
    #[error(
        "segment {segment} in the archive is not the one on the primary: the primary lost durable data, or one of them belongs to \
         another past. Restore from the archive, or go on without what differs with --accept-loss {last}"
    )]
    ArchiveDiffers { segment: SegmentNumber, last: Position },
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
        let (mut superblock, stale) = scan::superblock(&device).await?.map_err(OpenError::NoSuperblock)?;
        let need = superblock.geometry.primary_blocks * BLOCK_BYTES as u64;
        if device.bytes() < need {
            return Err(OpenError::Short { need, have: device.bytes() });
        }
        if stale && !options.read_only {
            log::warn!("{}: one of the two superblocks was damaged or old; it is written again", superblock.name);
            write_superblock(&device, &superblock).await?;
        }
        if let (Some(position), Some(store)) = (options.accept_loss, &store) {
            accept_loss(&platform, &device, &mut superblock, Arc::clone(store), position).await?;
            if !options.read_only {
                write_superblock(&device, &superblock).await?;
            }
        }
        let archived_from_ns = match &store {
            Some(store) => compare_with_archive(&platform, &device, &superblock, Arc::clone(store)).await?,
            None => None,
        };
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
        let oldest = log.window().map_or(i64::MAX, |(oldest, _)| oldest);
        Ok(Self(Rc::new(Shared {
            archived_from_ns: archived_from_ns.map(|archived| archived.min(oldest)),
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

/// Asks the store something, for as long as [`STORE_PATIENCE`].
async fn ask<P: Platform, T: Send + 'static>(
    platform: &P,
    question: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    match select(pin!(platform.offload(question)), pin!(platform.sleep(STORE_PATIENCE))).await {
        Either::Left((answer, _)) => answer,
        Either::Right(_) => Err(format!("it does not answer within {} s", STORE_PATIENCE.as_secs())),
    }
}

/// Records in the superblock that the log ends at `position`, if it does, and that what the archive has behind it is given
/// up: neither this opening nor a later one holds it against the primary. The epochs that follow are above all of that.
async fn accept_loss<P: Platform>(
    platform: &P,
    device: &P::Device,
    superblock: &mut Superblock,
    store: Arc<dyn Store>,
    position: Position,
) -> Result<(), OpenError> {
    let tail = find_tail(device, superblock, Some(position)).await?;
    let Some(tail) = tail.filter(|tail| tail.position() == position) else { return Ok(()) };
    let history = superblock.history;
    let list = ask(platform, move || store.list().map_err(|error| error.to_string())).await;
    let names = list.inspect_err(|error| log::warn!("{}: {error}", superblock.name)).unwrap_or_default();
    let archived = names.iter().filter(|(name, _)| name.history == history).map(|(name, _)| name.epoch);
    let seen = tail.found.iter().map(|found| found.header.epoch).chain(archived).max().unwrap_or(0);
    superblock.epoch = superblock.epoch.max(seen).max(tail.walk.summary.epoch);
    superblock.generation += 1;
    let segment = tail.last.header.segment.plus(u64::from(tail.sealed));
    let before = superblock.accepted_loss.map_or(segment, |loss| loss.segment);
    superblock.accepted_loss = Some(AcceptedLoss { segment: segment.min(before), epoch: superblock.epoch });
    Ok(())
}

/// Rule 10: the newest archived segment is on the primary, or older than what is there. A store that cannot be reached
/// delays archiving, not opening. Gives the time from which the archive can restore, the end of time when it is empty;
/// none when it cannot be asked.
async fn compare_with_archive<P: Platform>(
    platform: &P,
    device: &P::Device,
    volume: &Superblock,
    store: Arc<dyn Store>,
) -> Result<Option<i64>, OpenError> {
    let known = volume.clone();
    let ends = ask(platform, move || ends_of_archive(&store, &known).map_err(|error| error.to_string())).await;
    let ArchiveEnds { name, checksum, from_ns } = match ends {
        Ok(Some(ends)) => ends,
        Ok(None) => return Ok(Some(i64::MAX)),
        Err(error) => {
            log::warn!("{}: attached without its store, segments wait on the primary: {error}", volume.name);
            return Ok(None);
        }
    };
    let found = scan::headers(device, volume).await?.found;
    let newest = found.last().map_or(SegmentNumber(0), |found| found.header.segment);
    if name.segment > newest {
        let last = last_position(device, volume).await?;
        return Err(OpenError::ArchiveAhead { archived: name.segment, tail: newest, last });
    }
    let here = found.iter().filter(|found| found.header.segment == name.segment);
    for found in here {
        let summary = scan::summary(device, volume, found.slot, name.segment).await;
        if summary.is_ok_and(|summary| summary.last_checksum == checksum) {
            return Ok(Some(from_ns));
        }
    }
    if found.iter().any(|found| found.header.segment == name.segment) {
        let last = last_position(device, volume).await?;
        return Err(OpenError::ArchiveDiffers { segment: name.segment, last });
    }
    Ok(Some(from_ns))
}

/// The last position on the primary. Damage there is the better reason to refuse it, and names the position itself.
async fn last_position<D: Device>(device: &D, volume: &Superblock) -> Result<Position, ReplayError> {
    Ok(find_tail(device, volume, None).await?.map_or(Position(0), |tail| tail.position()))
}

/// What opening wants to know of an archive.
struct ArchiveEnds {
    /// The newest object, and the last checksum of its segment.
    name: ObjectName,
    checksum: Checksum,
    /// Time of the oldest position that the archive can restore.
    from_ns: i64,
}

fn ends_of_archive(store: &Arc<dyn Store>, volume: &Superblock) -> Result<Option<ArchiveEnds>, ArchiveError> {
    let given_up = |name: &ObjectName| volume.accepted_loss.is_some_and(|loss| loss.covers(name.segment, name.epoch));
    let list = store.list()?.into_iter().map(|(name, _)| name);
    let names: Vec<ObjectName> = list.filter(|name| name.history == volume.history && !given_up(name)).collect();
    let (Some(oldest), Some(newest)) = (names.first(), names.last()) else { return Ok(None) };
    let checksum = ArchivedSegment::open(store, newest, Some(volume))?.summary().last_checksum;
    // W segments before it are needed as well, unless there never were any.
    let needs = if oldest.segment.0 == 1 { 0 } else { u64::from(volume.geometry.working_set) };
    let first = names.iter().find(|name| name.segment == oldest.segment.plus(needs));
    let from_ns = match first.map(|name| ArchivedSegment::open(store, name, Some(volume))) {
        Some(Ok(segment)) => segment.summary().batches.first().map_or(i64::MAX, BatchRecord::time_ns),
        _ => i64::MAX,
    };
    Ok(Some(ArchiveEnds { name: *newest, checksum, from_ns }))
}
