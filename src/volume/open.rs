//! Opening a volume: superblock, log, archive, and only then the epoch that makes it ours.

use std::cell::Cell;
use std::io;
use std::pin::pin;
use std::rc::Rc;
use std::sync::Arc;

use futures_util::future::{Either, select};

use super::{Shared, Volume};
use crate::archive::{ArchiveError, Lineage, Store};
use crate::format::{AcceptedLoss, BLOCK_BYTES, FormatError, Position, SegmentNumber, Superblock};
use crate::io::{Device, Platform};
use crate::log::limits::STORE_PATIENCE;
use crate::log::replay::{Opening, ReplayError};
use crate::log::tail::{Tail, find_tail};
use crate::log::{ArchiveFound, Archiving, Disagreement, Log, WholeSegments, look_at_archive, scan, tail_agrees};

/// How a volume is opened.
#[derive(Debug, Clone, Default)]
pub struct OpenOptions {
    pub read_only: bool,
    /// Goes on at this position although a later one was durable once.
    pub accept_loss: Option<Position>,
    pub archiving: Archiving,
}

/// Why a volume cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    #[error("no salvol volume is here, neither at the start nor at the end: {0}")]
    NoSuperblock(FormatError),
    #[error("the volume needs {need} bytes of primary, and there are {have}")]
    Short { need: u64, have: u64 },
    #[error(
        "the archive is ahead of the primary: it holds position {position} in segment {archived}, the primary's log ends at {last}; \
         the primary lost durable data or was rolled back. Restore from the archive, or go on without what it is ahead with \
         --accept-loss {last}"
    )]
    ArchiveAhead { archived: SegmentNumber, position: Position, last: Position },
    #[error(
        "segment {segment} in the archive is not the one on the primary: the primary lost durable data, or one of them belongs to \
         another past. Restore from the archive, or go on without what differs with --accept-loss {last}"
    )]
    ArchiveDiffers { segment: SegmentNumber, last: Position },
    #[error(
        "segment {segment} in the archive is not the one on the primary, which has gone on since: the primary was rolled back, and \
         written to while its store was away. That is no loss that can be accepted. Restore from the archive, or continue it on \
         another primary with `salvol rebuild`; while the store is away this primary can be attached, to copy what it has"
    )]
    ArchiveApart { segment: SegmentNumber },
    /// Another primary continues the volume, or the store knows nothing of this one.
    #[error(transparent)]
    Superseded(ArchiveError),
    #[error(transparent)]
    Replay(#[from] ReplayError),
    #[error("the primary: {0}")]
    Io(#[from] io::Error),
}

impl OpenError {
    /// Whether the reason is damage, rather than a mistake of the caller.
    pub fn is_corruption(&self) -> bool {
        match self {
            Self::ArchiveAhead { .. } | Self::ArchiveDiffers { .. } | Self::ArchiveApart { .. } => true,
            Self::NoSuperblock(error) => matches!(error, FormatError::Checksum { .. } | FormatError::Field { .. }),
            Self::Replay(error) => !matches!(error, ReplayError::Io(_) | ReplayError::Log(_)),
            Self::Short { .. } | Self::Superseded(_) | Self::Io(_) => false,
        }
    }
}

impl<P: Platform> Volume<P> {
    /// Opens the volume on `device`: reads the superblock, replays the log, begins a new epoch. `store` is where its
    /// segments go, `None` for `--backing none`.
    ///
    /// # Errors
    /// See [`OpenError`]; the primary is then as it was.
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
            // Not before the log has been found: what is there may be somebody else's by now, a restored disk for one.
            log::warn!(
                "{}: one of the two superblocks is damaged or old; it is written when the log is valid",
                superblock.name
            );
        }
        let answers = match &store {
            Some(store) => refuse_stranger(&platform, &superblock, Arc::clone(store)).await?,
            None => false,
        };
        let tail = find_tail(&device, &superblock, options.accept_loss).await?;
        let accepts = match (options.accept_loss, &store, &tail) {
            (Some(position), Some(store), Some(tail)) if tail.position() == position => {
                accept_loss(&platform, &mut superblock, Arc::clone(store), tail).await;
                true
            }
            _ => false,
        };
        let archive = match &store {
            Some(store) if answers => {
                compare_with_archive(&platform, &device, &superblock, Arc::clone(store), &tail).await?
            }
            _ => None,
        };
        // Not before all of it is known to be acceptable.
        if accepts && !options.read_only {
            scan::write_superblock(&device, &superblock).await?;
        }
        let (archived_from_ns, agreed) = archive.unzip();
        let opening = Opening { read_only: options.read_only, agreed, archiving: options.archiving };
        let log = Log::open(platform, device, superblock, store, tail, opening).await?;
        if !options.read_only {
            let mut superblock = log.volume().clone();
            superblock.generation += 1;
            superblock.clean_close = None;
            if let Err(error) = scan::write_superblock(log.device(), &superblock).await {
                log.stop(&format!("writing the superblock failed: {error}"));
                return Err(error.into());
            }
        }
        let oldest = log.window().map_or(i64::MAX, |(oldest, _)| oldest);
        Ok(Self(Rc::new(Shared {
            archived_from_ns: Cell::new(archived_from_ns.map(|archived| archived.min(oldest))),
            log,
            read_only: options.read_only,
            closing: Cell::new(false),
            gate: super::Gate::default(),
            lease: super::RollbackLease::default(),
            read_errors: Cell::new(0),
            read_bytes: Cell::new(0),
        })))
    }
}

/// Asks the store something, for as long as [`STORE_PATIENCE`].
async fn ask<P: Platform, T: Send + 'static>(
    platform: &P,
    question: impl FnOnce() -> Result<T, String> + Send + 'static,
) -> Result<T, String> {
    match select(pin!(platform.offload_urgent(question)), pin!(platform.sleep(STORE_PATIENCE))).await {
        Either::Left((answer, _)) => answer,
        Either::Right(_) => Err(format!("it does not answer within {} s", STORE_PATIENCE.as_secs())),
    }
}

/// Refuses a primary that another one continues. A store that cannot be asked refuses it at the first put. Says whether the
/// store answers.
async fn refuse_stranger<P: Platform>(
    platform: &P,
    volume: &Superblock,
    store: Arc<dyn Store>,
) -> Result<bool, OpenError> {
    let known = volume.clone();
    let answer = ask(platform, move || Ok(Lineage::refuse_stranger(&store, &known))).await;
    let trouble = match answer {
        Ok(Ok(())) => return Ok(true),
        Ok(Err(error @ (ArchiveError::Superseded { .. } | ArchiveError::Unrecorded { .. }))) => {
            return Err(OpenError::Superseded(error));
        }
        Ok(Err(error)) => error.to_string(),
        Err(error) => error,
    };
    log::warn!("{}: attached without its store, segments wait on the primary: {trouble}", volume.name);
    Ok(false)
}

/// Records in the superblock that the log ends with `tail`, and that what the archive has behind it is given up: neither
/// this opening nor a later one holds it against the primary. The epochs that follow are above all of that.
async fn accept_loss<P: Platform>(platform: &P, superblock: &mut Superblock, store: Arc<dyn Store>, tail: &Tail) {
    let history = superblock.history;
    let list = ask(platform, move || store.list().map_err(|error| error.to_string())).await;
    let names = list.inspect_err(|error| log::warn!("{}: {error}", superblock.name)).unwrap_or_default();
    let archived = names.iter().filter(|(name, _)| name.history == history).map(|(name, _)| name.epoch);
    let seen = tail.found.iter().map(|found| found.header.epoch).chain(archived).max().unwrap_or(0);
    superblock.epoch = superblock.epoch.max(seen).max(tail.walk.summary.epoch);
    superblock.generation += 1;
    superblock.accepted_loss = Some(loss_behind(tail, superblock, superblock.epoch));
}

/// What is given up when the log ends with `tail`: the archive's objects from its last segment on, up to `epoch`.
fn loss_behind(tail: &Tail, superblock: &Superblock, epoch: u64) -> AcceptedLoss {
    let segment = tail.last.header.segment.plus(u64::from(tail.sealed));
    let before = superblock.accepted_loss.map_or(segment, |loss| loss.segment);
    AcceptedLoss { segment: segment.min(before), epoch }
}

/// The segment in which archive and primary differ even when everything behind `tail` is given up: the sealed segments of the
/// primary can be put neither in the place of the archive's nor under larger epochs, which their headers do not have.
async fn apart<P: Platform>(
    platform: &P,
    device: &P::Device,
    volume: &Superblock,
    store: Arc<dyn Store>,
    tail: &Tail,
) -> Option<SegmentNumber> {
    let accepted = Superblock { accepted_loss: Some(loss_behind(tail, volume, u64::MAX)), ..volume.clone() };
    let known = accepted.clone();
    let found = ask(platform, move || look_at_archive(&store, &known).map_err(|error| error.to_string())).await;
    let ends = found.ok()?.ends?;
    tail_agrees(device, &accepted, Some(tail), &ends).await.err().map(|_| ends.segment)
}

/// Rule 10, see [`crate::log::tail_agrees`]. A store that cannot be reached delays archiving, not opening. Gives the time
/// from which the archive can restore, the end of time when it is empty, and what it has; none when it cannot be asked.
async fn compare_with_archive<P: Platform>(
    platform: &P,
    device: &P::Device,
    volume: &Superblock,
    store: Arc<dyn Store>,
    tail: &Option<Tail>,
) -> Result<Option<(i64, WholeSegments)>, OpenError> {
    let (known, asked) = (volume.clone(), Arc::clone(&store));
    let found = ask(platform, move || look_at_archive(&asked, &known).map_err(|error| error.to_string())).await;
    let (ends, whole) = match found {
        Ok(ArchiveFound { ends: Some(ends), whole }) => (ends, whole),
        Ok(ArchiveFound { ends: None, whole }) => return Ok(Some((i64::MAX, whole))),
        Err(error) => {
            log::warn!("{}: attached without its store, segments wait on the primary: {error}", volume.name);
            return Ok(None);
        }
    };
    let last = tail.as_ref().map_or(Position(0), Tail::position);
    let Err(found) = tail_agrees(device, volume, tail.as_ref(), &ends).await else {
        return Ok(Some((ends.from_ns, whole)));
    };
    if let Some(tail) = tail
        && let Some(segment) = apart(platform, device, volume, store, tail).await
    {
        return Err(OpenError::ArchiveApart { segment });
    }
    Err(match found {
        Disagreement::Ahead { archived, position } => OpenError::ArchiveAhead { archived, position, last },
        Disagreement::Differs { segment } => OpenError::ArchiveDiffers { segment, last },
    })
}
