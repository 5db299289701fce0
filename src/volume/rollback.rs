//! Rollback: the volume becomes what it was, by writing what differs.
//!
//! 1. The gate is closed: requests wait, those under way end.
//! 2. Everything is compared, so everything that will be needed has been read once before anything is changed.
//! 3. A synch point marks the volume as it is: with it the rollback can be undone.
//! 4. Between a begin and a commit entry the blocks that differ are written, or zeroed.
//!
//! After a crash in step 4 the next opening goes on with it before anybody can look (`history` takes a position in between
//! for the one before the begin). What has been written does not differ any more.

use std::cell::Cell;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::future::join_all;
use futures_util::{StreamExt, stream};

use super::{RequestError, Volume};
use crate::format::{BLOCK_BYTES, Block, Offset, Position, SegmentNumber, block_crc};
use crate::index::Mapping;
use crate::io::{Buffer, Platform};
use crate::log::Rollback;

/// Blocks that are compared and written together.
const PIECE_BLOCKS: usize = 64;
/// Pieces that are worked on at once.
const PIECES: usize = 8;

/// A volume as it was, for whoever wants all of it.
pub trait Recall {
    /// The numbers of all blocks, in the order in which they are read fastest.
    fn order(&self) -> Vec<u32>;

    /// Where the block is in the log, when it has data.
    fn site(&self, block: Block) -> Option<(SegmentNumber, Offset)>;

    /// Fills `into` with `blocks`, one after the other.
    ///
    /// # Errors
    /// See [`RequestError`].
    fn recall(&self, blocks: &[Block], into: &Buffer) -> impl Future<Output = Result<(), RequestError>>;
}

/// Where a rollback goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Aim {
    pub to: Position,
    /// The oldest segment that reading the past needs.
    pub needs_from: SegmentNumber,
    /// What to call it.
    pub name: String,
    /// Whether it is a synch point, so that the volume is as consistent afterwards.
    pub is_point: bool,
    /// Bytes that can be archived without expiring what is needed, when the store expires anything.
    pub room: Option<u64>,
}

/// What a rollback did.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RolledBack {
    /// The synch point that marks the volume as it was before.
    pub before: Position,
    /// The position from which the volume is what it was then.
    pub position: Position,
    /// Blocks that differed.
    pub blocks: u64,
}

/// From which segment on a rollback needs the archive: for the store's thread.
#[derive(Debug, Clone)]
pub struct RollbackLease(Arc<AtomicU64>);

/// No segment has this number.
const NOTHING: u64 = u64::MAX;

impl Default for RollbackLease {
    fn default() -> Self {
        Self(Arc::new(AtomicU64::new(NOTHING)))
    }
}

impl RollbackLease {
    /// The segment; none while nothing is rolled back.
    pub fn needs_from(&self) -> Option<SegmentNumber> {
        Some(self.0.load(Ordering::SeqCst)).filter(|number| *number != NOTHING).map(SegmentNumber)
    }

    fn take(&self, from: SegmentNumber) -> Taken {
        self.0.store(from.0, Ordering::SeqCst);
        Taken { lease: self.clone(), kept: false }
    }
}

/// A lease, until it is dropped; or, when it is kept, until the process ends.
struct Taken {
    lease: RollbackLease,
    kept: bool,
}

impl Taken {
    /// The rollback has not ended: neither does the lease, before the process does.
    fn keep(mut self) {
        self.kept = true;
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        if !self.kept {
            self.lease.0.store(NOTHING, Ordering::SeqCst);
        }
    }
}

impl<P: Platform> Volume<P> {
    /// A rollback that a crash has interrupted: to be finished with [`Self::finish_rollback`] before anything is served.
    pub fn unfinished_rollback(&self) -> Option<Rollback> {
        self.log().rollback()
    }

    /// Makes the volume what `past` is, which is the volume at `aim`. Requests wait meanwhile.
    ///
    /// # Errors
    /// When the store does not keep what the log overwrites midway, or the past cannot be read: nothing has been changed. When
    /// the log ends midway, or the past cannot be read a second time, requests fail until the rollback is finished: by another
    /// call, or by the next opening.
    pub async fn roll_back(&self, past: &impl Recall, aim: &Aim) -> Result<RolledBack, RequestError> {
        self.check_can_roll_back()?;
        let gate = self.0.gate.close().await;
        let _closed = gate.ok_or_else(|| refused("a rollback is under way already".to_owned()))?;
        if let Some(unfinished) = self.unfinished_rollback() {
            if unfinished.to != aim.to {
                let to = unfinished.to;
                return Err(refused(format!("a rollback to position {to} has begun and must be finished before")));
            }
            return self.go_on(past, aim, unfinished).await;
        }
        let lease = self.0.lease.take(aim.needs_from);
        let pieces = self.differing(past).await?;
        self.check_room(&pieces, aim)?;
        let to = aim.to;
        let before = format!("before rollback to {}", aim.name);
        let before = self.mark(before, format!("before a rollback to position {to}"), || true).await?;
        self.check_can_roll_back()?;
        self.log().begin_rollback(to).await?;
        self.replace(past, aim, pieces, before.position, lease).await
    }

    /// Finishes a rollback that was interrupted; nobody may be served yet.
    ///
    /// # Errors
    /// As for [`Self::roll_back`].
    pub async fn finish_rollback(&self, past: &impl Recall, aim: &Aim) -> Result<(), RequestError> {
        match self.unfinished_rollback() {
            Some(unfinished) => self.go_on(past, aim, unfinished).await.map(drop),
            None => Ok(()),
        }
    }

    /// Says from which segment on a rollback needs the archive, for as long as it does.
    pub fn rollback_lease(&self) -> RollbackLease {
        self.0.lease.clone()
    }

    async fn go_on(&self, past: &impl Recall, aim: &Aim, unfinished: Rollback) -> Result<RolledBack, RequestError> {
        let lease = self.0.lease.take(aim.needs_from);
        let pieces = match self.differing(past).await {
            Ok(pieces) => pieces,
            Err(error) => {
                lease.keep();
                return Err(error);
            }
        };
        self.replace(past, aim, pieces, unfinished.begin.previous(), lease).await
    }

    /// A rollback that has begun must be able to go on.
    fn check_can_roll_back(&self) -> Result<(), RequestError> {
        self.check_writable()?;
        if !self.log().has_store() {
            let what = "the volume keeps no archive (--backing none): what a rollback needs could be overwritten by it";
            return Err(refused(what.to_owned()));
        }
        match self.log().archive_state(|archive| archive.trouble.as_ref().map(|trouble| trouble.what.clone())) {
            Some(trouble) => Err(refused(format!("the store must work, for what the rollback writes: {trouble}"))),
            None => Ok(()),
        }
    }

    /// A store that expires what is old must have room for what the rollback archives, beside what it needs.
    fn check_room(&self, pieces: &[Vec<Block>], aim: &Aim) -> Result<(), RequestError> {
        let Some(room) = aim.room else { return Ok(()) };
        let blocks: usize = pieces.iter().map(Vec::len).sum();
        let counters = self.log().counters();
        let logged = counters.user_blocks + counters.copied_blocks + counters.overhead_blocks;
        // Half more than what such writes have made the log grow by so far, and never less than twice their size.
        let growth = (logged as f64 / counters.user_blocks.max(1) as f64 * 1.5).clamp(2.0, 12.0);
        let need = (blocks * BLOCK_BYTES) as f64 * growth + 2.0 * self.geometry().segment_bytes() as f64;
        if need <= room as f64 {
            return Ok(());
        }
        Err(refused(format!(
            "{blocks} blocks differ; archiving them may take {need:.0} bytes of the store, which can give {room} without expiring what \
             the rollback needs: restore that moment elsewhere, or choose a later one"
        )))
    }

    /// Writes the blocks that differ, and commits.
    async fn replace(
        &self,
        past: &impl Recall,
        aim: &Aim,
        pieces: Vec<Vec<Block>>,
        before: Position,
        lease: Taken,
    ) -> Result<RolledBack, RequestError> {
        let blocks = pieces.iter().map(|piece| piece.len() as u64).sum();
        let written = each(pieces, |piece| async move { self.replace_piece(past, &piece).await }).await;
        let committed = match written {
            Ok(_) => self.log().commit_rollback().await.map_err(RequestError::from),
            Err(error) => Err(error),
        };
        match committed {
            Ok(position) => {
                self.0.gate.mend();
                if aim.is_point {
                    // So the newest point is the one that the volume is at. It is at it without that, too.
                    let label = format!("after rollback to {}", aim.name);
                    if let Err(error) = self.mark(label, String::new(), || true).await {
                        log::warn!("{}: no point after the rollback: {error}", self.superblock().name);
                    }
                }
                Ok(RolledBack { before, position, blocks })
            }
            Err(error) => {
                let what =
                    format!("a rollback ended midway ({error}): give it again, or detach and attach, to finish it");
                self.0.gate.break_down(Arc::from(what));
                lease.keep();
                Err(error)
            }
        }
    }

    async fn replace_piece(&self, past: &impl Recall, blocks: &[Block]) -> Result<(), RequestError> {
        let then = memory(blocks.len())?;
        past.recall(blocks, &then).await?;
        let data = |rank: usize| then.part(rank * BLOCK_BYTES, BLOCK_BYTES);
        let ranks: Vec<(usize, bool)> = (0..blocks.len()).map(|rank| (rank, is_zero(data(rank).bytes()))).collect();
        for run in ranks.chunk_by(|a, b| blocks[b.0].0 == blocks[a.0].0 + 1 && a.1 == b.1) {
            let (rank, zeros) = run[0];
            if zeros {
                self.unmap(blocks[rank], run.len() as u32, true, false).await?;
            } else {
                self.write(blocks[rank], &then.part(rank * BLOCK_BYTES, run.len() * BLOCK_BYTES), false).await?;
            }
        }
        Ok(())
    }

    /// The blocks of which past and present differ, some at a time.
    async fn differing(&self, past: &impl Recall) -> Result<Vec<Vec<Block>>, RequestError> {
        let order = past.order();
        if order.len() as u64 != self.geometry().volume_blocks {
            let what = format!("the volume had {} blocks then, and has {}", order.len(), self.geometry().volume_blocks);
            return Err(refused(what));
        }
        let mut pieces = each(order.chunks(PIECE_BLOCKS), |piece| self.compare(past, piece)).await?;
        pieces.retain(|blocks| !blocks.is_empty());
        Ok(pieces)
    }

    /// Those of the blocks that differ. All of these have been read.
    async fn compare(&self, past: &impl Recall, numbers: &[u32]) -> Result<Vec<Block>, RequestError> {
        let blocks = numbers.iter().map(|number| Block(u64::from(*number)));
        let moved: Vec<Block> = blocks.filter(|block| !self.is_at(*block, past.site(*block))).collect();
        if moved.is_empty() {
            return Ok(moved);
        }
        let then = memory(moved.len())?;
        past.recall(&moved, &then).await?;
        let same = join_all(moved.iter().enumerate().map(|(rank, block)| {
            let then = then.part(rank * BLOCK_BYTES, BLOCK_BYTES);
            async move { self.holds(*block, &then).await }
        }));
        let same: Vec<bool> = same.await.into_iter().collect::<Result<_, _>>()?;
        Ok(moved.into_iter().zip(same).filter(|(_, same)| !same).map(|(block, _)| block).collect())
    }

    /// Whether the block's newest place is this one.
    fn is_at(&self, block: Block, site: Option<(SegmentNumber, Offset)>) -> bool {
        let Some((segment, offset)) = site else { return false };
        let geometry = *self.geometry();
        self.log().look(|index, table| match index.get(block) {
            Mapping::At(place, _) => {
                let slot = geometry.slot_of(place);
                table.get(slot).segment == segment && place == geometry.slot_place(slot).plus(offset.0)
            }
            _ => false,
        })
    }

    /// Whether the block reads as `then`. What cannot be read does not.
    async fn holds(&self, block: Block, then: &Buffer) -> Result<bool, RequestError> {
        let crc = block_crc(then.bytes());
        let may = self.log().look(|index, _| match index.get(block) {
            Mapping::Unmapped => Some(is_zero(then.bytes())),
            Mapping::At(_, now) if now == crc => None,
            Mapping::At(..) | Mapping::Lost(_) => Some(false),
        });
        if let Some(certain) = may {
            return Ok(certain);
        }
        // A checksum of 32 bits is not enough to be sure of that many blocks.
        let now = memory(1)?;
        Ok(self.read(block, &now).await.is_ok() && now.bytes() == then.bytes())
    }
}

/// What `work` makes of each of `pieces`, in their order. After the first error no more are begun; those under way end, since
/// a read that is dropped would hold its slot for ever.
async fn each<I, T, F: Future<Output = Result<T, RequestError>>>(
    pieces: impl IntoIterator<Item = I>,
    work: impl Fn(I) -> F,
) -> Result<Vec<T>, RequestError> {
    let failed = Cell::new(false);
    let (work, failed) = (&work, &failed);
    let one = |piece| async move {
        if failed.get() {
            return None;
        }
        let result = work(piece).await;
        failed.set(failed.get() || result.is_err());
        Some(result)
    };
    let results: Vec<_> = stream::iter(pieces).map(one).buffered(PIECES).collect().await;
    results.into_iter().flatten().collect()
}

fn refused(what: String) -> RequestError {
    RequestError::Refused { what: Arc::from(what) }
}

fn is_zero(block: &[u8]) -> bool {
    block.iter().all(|byte| *byte == 0)
}

fn memory(blocks: usize) -> Result<Buffer, RequestError> {
    Buffer::new(blocks * BLOCK_BYTES).map_err(|error| refused(format!("no memory for a rollback: {error}")))
}
