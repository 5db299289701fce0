//! Rollback: the volume becomes what it was, by writing what differs.
//!
//! 1. The gate is closed: requests wait, those under way end.
//! 2. Everything is compared, so everything that will be needed has been read once before anything is changed.
//! 3. A synch point marks the volume as it is: with it the rollback can be undone.
//! 4. Between a begin and a commit entry the blocks that differ are written, or zeroed.
//!
//! After a crash in step 4 the next opening goes on with it before anybody can look (`history` takes a position in between
//! for the one before the begin). What has been written does not differ any more.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use futures_util::{StreamExt, TryStreamExt, stream};

use super::{Operation, Request, RequestError, Serve, Volume};
use crate::format::{BLOCK_BYTES, Block, Position, SegmentNumber};
use crate::io::{Buffer, Platform};
use crate::log::Rollback;

/// Blocks that are compared and written together.
const PIECE_BLOCKS: u64 = 64;
/// Pieces that are worked on at once.
const PIECES: usize = 8;

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
        Taken(self.clone())
    }
}

/// A lease, until it is dropped.
struct Taken(RollbackLease);

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.0.store(NOTHING, Ordering::SeqCst);
    }
}

/// One bit a block.
type Bits = Vec<u64>;

impl<P: Platform> Volume<P> {
    /// A rollback that a crash has interrupted: to be finished with [`Self::finish_rollback`] before anything is served.
    pub fn unfinished_rollback(&self) -> Option<Rollback> {
        self.log().rollback()
    }

    /// Makes the volume what `past` is, which is the volume at `moment` and needs nothing older than `needs_from`. `mark` is
    /// what to call the synch point that is marked before. Requests wait meanwhile.
    ///
    /// # Errors
    /// When the volume keeps no archive, which must have what the log overwrites midway. When the past cannot be read, nothing has been changed. When the log ends midway, or the past cannot be
    /// read a second time, requests fail until the rollback is finished: by another call, or by the next opening.
    pub async fn roll_back(
        &self,
        past: &impl Serve,
        to: Position,
        needs_from: SegmentNumber,
        mark: String,
    ) -> Result<RolledBack, RequestError> {
        self.check_writable()?;
        let refused = |what: &str| RequestError::Refused { what: Arc::from(what) };
        if !self.log().has_store() {
            return Err(refused(
                "the volume keeps no archive (--backing none): what a rollback needs could be overwritten by it",
            ));
        }
        let gate = self.0.gate.close().await;
        let _closed = gate.ok_or_else(|| refused("a rollback is under way already"))?;
        if let Some(unfinished) = self.unfinished_rollback() {
            let what = format!("a rollback to position {} has begun and must be finished before", unfinished.to);
            if unfinished.to != to {
                return Err(refused(&what));
            }
            return self.go_on(past, unfinished, needs_from).await;
        }
        let _lease = self.0.lease.take(needs_from);
        let differing = self.differing(past).await?;
        let before = self.mark(mark, format!("before a rollback to position {to}"), || true).await?;
        self.log().begin_rollback(to).await?;
        self.replace(past, &differing, before.position).await
    }

    /// Finishes a rollback that was interrupted; nobody may be served yet.
    ///
    /// # Errors
    /// As for [`Self::roll_back`].
    pub async fn finish_rollback(&self, past: &impl Serve, needs_from: SegmentNumber) -> Result<(), RequestError> {
        match self.unfinished_rollback() {
            Some(unfinished) => self.go_on(past, unfinished, needs_from).await.map(drop),
            None => Ok(()),
        }
    }

    /// Says from which segment on a rollback needs the archive, for as long as it does.
    pub fn rollback_lease(&self) -> RollbackLease {
        self.0.lease.clone()
    }

    async fn go_on(
        &self,
        past: &impl Serve,
        unfinished: Rollback,
        needs_from: SegmentNumber,
    ) -> Result<RolledBack, RequestError> {
        let _lease = self.0.lease.take(needs_from);
        let differing = self.differing(past).await?;
        // The mark is the batch before.
        self.replace(past, &differing, unfinished.begin.previous()).await
    }

    /// Writes the blocks that differ, and commits.
    async fn replace(&self, past: &impl Serve, differing: &Bits, before: Position) -> Result<RolledBack, RequestError> {
        let pieces =
            self.pieces().filter(|(first, blocks)| (*first..first + blocks).any(|block| has(differing, block)));
        let written = stream::iter(pieces)
            .map(|(first, blocks)| self.replace_piece(past, differing, first, blocks))
            .buffer_unordered(PIECES)
            .try_collect::<()>()
            .await;
        let committed = match written {
            Ok(()) => self.log().commit_rollback().await.map_err(RequestError::from),
            Err(error) => Err(error),
        };
        match committed {
            Ok(position) => {
                self.0.gate.mend();
                let blocks = differing.iter().map(|word| u64::from(word.count_ones())).sum();
                Ok(RolledBack { before, position, blocks })
            }
            Err(error) => {
                let what =
                    format!("a rollback ended midway ({error}): give it again, or detach and attach, to finish it");
                self.0.gate.break_down(Arc::from(what));
                Err(error)
            }
        }
    }

    async fn replace_piece(
        &self,
        past: &impl Serve,
        differing: &Bits,
        first: u64,
        blocks: u64,
    ) -> Result<(), RequestError> {
        let then = read_past(past, first, blocks).await?;
        let zeros = then.bytes().chunks(BLOCK_BYTES).map(is_zero).collect::<Vec<_>>();
        let kind = |rank: u64| has(differing, first + rank).then(|| zeros[rank as usize]);
        let mut rank = 0;
        while rank < blocks {
            let run = (rank..blocks).take_while(|next| kind(*next) == kind(rank)).count() as u64;
            let block = Block(first + rank);
            match kind(rank) {
                None => {}
                Some(true) => self.unmap(block, run as u32, true, false).await?,
                Some(false) => {
                    let data = then.part(rank as usize * BLOCK_BYTES, run as usize * BLOCK_BYTES);
                    self.write(block, &data, false).await?;
                }
            }
            rank += run;
        }
        Ok(())
    }

    /// The blocks of which past and present differ.
    async fn differing(&self, past: &impl Serve) -> Result<Bits, RequestError> {
        let found: Vec<(u64, u64)> = stream::iter(self.pieces())
            .map(|(first, blocks)| self.compare(past, first, blocks))
            .buffer_unordered(PIECES)
            .try_collect()
            .await?;
        let mut bits = vec![0; found.len()];
        for (first, differs) in found {
            bits[(first / PIECE_BLOCKS) as usize] = differs;
        }
        Ok(bits)
    }

    /// The first block of a piece, and a bit for each of its blocks that differ.
    async fn compare(&self, past: &impl Serve, first: u64, blocks: u64) -> Result<(u64, u64), RequestError> {
        let then = read_past(past, first, blocks).await?;
        let now = Buffer::new(blocks as usize * BLOCK_BYTES).map_err(|error| no_memory(&error))?;
        let mut differs = 0;
        // What cannot be read now differs.
        let whole = self.read(Block(first), &now).await.is_ok();
        for rank in 0..blocks {
            let at = rank as usize * BLOCK_BYTES;
            let (a, b) = (then.part(at, BLOCK_BYTES), now.part(at, BLOCK_BYTES));
            let readable = whole || self.read(Block(first + rank), &b).await.is_ok();
            if !readable || a.bytes() != b.bytes() {
                differs |= 1 << rank;
            }
        }
        Ok((first, differs))
    }

    /// First block and number of blocks of every piece.
    fn pieces(&self) -> impl Iterator<Item = (u64, u64)> + use<P> {
        let blocks = self.geometry().volume_blocks;
        (0..blocks).step_by(PIECE_BLOCKS as usize).map(move |first| (first, PIECE_BLOCKS.min(blocks - first)))
    }
}

fn has(bits: &Bits, block: u64) -> bool {
    bits[(block / PIECE_BLOCKS) as usize] >> (block % PIECE_BLOCKS) & 1 == 1
}

fn is_zero(block: &[u8]) -> bool {
    block.iter().all(|byte| *byte == 0)
}

fn no_memory(error: &std::io::Error) -> RequestError {
    RequestError::Refused { what: Arc::from(format!("no memory for a rollback: {error}")) }
}

async fn read_past(past: &impl Serve, first: u64, blocks: u64) -> Result<Buffer, RequestError> {
    let buffer = Buffer::new(blocks as usize * BLOCK_BYTES).map_err(|error| no_memory(&error))?;
    let block = Block(first);
    let request = Request { operation: Operation::Read, block, blocks: blocks as u32, buffer: buffer.clone() };
    past.serve(&request).await?;
    Ok(buffer)
}
