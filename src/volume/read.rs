//! Reading: each block from its newest place, verified.
//!
//! Blocks whose segment is in memory are copied from there; the others are read from the primary straight into the
//! requester's buffer, neighbours together, and checked against the index's checksum. A read never waits for the
//! archiver, except when the primary has failed it and the archive may have the block.

use std::sync::Arc;

use futures_util::StreamExt;
use futures_util::stream;

use super::{RequestError, Volume};
use crate::format::{BLOCK_BYTES, Block, Place, Slot, block_crc};
use crate::index::Mapping;
use crate::io::{Buffer, Device, Platform};
use crate::log::limits::READS_IN_FLIGHT;

/// Neighbours on the primary that are neighbours in the request.
#[derive(Debug, Clone, Copy)]
struct Run {
    slot: Slot,
    place: Place,
    /// Rank in the request.
    first: u32,
    blocks: u32,
}

impl<P: Platform> Volume<P> {
    /// Fills `into` with the blocks from `block` on.
    pub(super) async fn read(&self, block: Block, into: &Buffer) -> Result<(), RequestError> {
        // One block, the most frequent request, allocates nothing.
        let (mut one, mut many) = ([0], Vec::new());
        let crcs = match into.len() / BLOCK_BYTES {
            1 => &mut one[..],
            blocks => {
                many.resize(blocks, 0);
                &mut many[..]
            }
        };
        let (earlier, last) = self.look_up(block, into, crcs)?;
        let crcs = &*crcs;
        let result = match last {
            None => Ok(()),
            Some(run) if earlier.is_empty() => self.read_run(block, run, crcs, into).await,
            last => {
                let reads = earlier.into_iter().chain(last).map(|run| self.read_run(block, run, crcs, into));
                let mut reads = stream::iter(reads).buffer_unordered(READS_IN_FLIGHT);
                let mut first_error = Ok(());
                while let Some(result) = reads.next().await {
                    first_error = first_error.and(result);
                }
                first_error
            }
        };
        self.0.read_bytes.set(self.0.read_bytes.get() + into.len() as u64);
        if result.is_err() {
            self.0.read_errors.set(self.0.read_errors.get() + 1);
        }
        result
    }

    /// Serves what is in memory or unmapped, and says what must be read, the last run apart; the slots that are read from are held.
    /// `crcs` gets the checksum of each block that has one.
    fn look_up(&self, block: Block, into: &Buffer, crcs: &mut [u32]) -> Result<(Vec<Run>, Option<Run>), RequestError> {
        let geometry = *self.geometry();
        let (mut earlier, mut last): (Vec<Run>, Option<Run>) = (Vec::new(), None);
        self.0.log.look(|index, table| {
            for (rank, wanted) in (0..).zip(crcs) {
                let target = into.part(rank as usize * BLOCK_BYTES, BLOCK_BYTES);
                let block = block.plus(u64::from(rank));
                let (place, crc) = match index.get(block) {
                    Mapping::Unmapped => {
                        target.zero();
                        continue;
                    }
                    Mapping::Lost(_) => {
                        for run in earlier.iter().chain(&last) {
                            table.get_mut(run.slot).readers -= 1;
                        }
                        return Err(RequestError::Lost { block });
                    }
                    Mapping::At(place, crc) => (place, crc),
                };
                *wanted = crc;
                let slot = geometry.slot_of(place);
                if let Some(image) = &table.get(slot).buffer {
                    let from = (place.0 - geometry.slot_place(slot).0) as usize * BLOCK_BYTES;
                    target.copy_from(0, image.part(from, BLOCK_BYTES).bytes());
                    // Memory is checked too: it may be what recovery read from the device.
                    if block_crc(target.bytes()) == crc {
                        continue;
                    }
                }
                match &mut last {
                    Some(run)
                        if run.slot == slot
                            && run.place.plus(run.blocks) == place
                            && run.first + run.blocks == rank =>
                    {
                        run.blocks += 1;
                    }
                    _ => {
                        table.get_mut(slot).readers += 1;
                        earlier.extend(last.replace(Run { slot, place, first: rank, blocks: 1 }));
                    }
                }
            }
            Ok(())
        })?;
        Ok((earlier, last))
    }

    async fn read_run(&self, block: Block, run: Run, crcs: &[u32], into: &Buffer) -> Result<(), RequestError> {
        let target = into.part(run.first as usize * BLOCK_BYTES, run.blocks as usize * BLOCK_BYTES);
        let read = self.0.log.device().read(run.place.bytes(), target.clone()).await;
        let mut outcome = Ok(());
        for rank in 0..run.blocks {
            let part = target.part(rank as usize * BLOCK_BYTES, BLOCK_BYTES);
            let (number, crc) = (run.first + rank, crcs[(run.first + rank) as usize]);
            if read.is_ok() && block_crc(part.bytes()) == crc {
                continue;
            }
            let block = block.plus(u64::from(number));
            let place = run.place.plus(rank);
            // One block may be bad where the run was read as one: try it alone, then the archive.
            let log = &self.0.log;
            let again = log.read_again(place, crc, &part).await;
            let whole = matches!(again, Ok(true)) || log.repair(block, place, crc, &part).await;
            if !whole {
                outcome = Err(match again {
                    Err(error) => RequestError::Unreadable { block, cause: Arc::new(error) },
                    Ok(_) => RequestError::Corrupt { block },
                });
            }
        }
        self.0.log.reader_left(run.slot);
        outcome
    }
}
