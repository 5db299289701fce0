//! A volume as it was, served like a volume: the index at a point, blocks fetched when they are asked for, and, for one that
//! may be written to, an overlay over it.
//!
//! The volume itself goes on meanwhile, on its own primary and in its store. What the past needs of them stays: slots are
//! reused only when their segments are archived, and a store that expires objects keeps those that a view has leased.

mod overlay;
mod reader;

use std::cell::Cell;
use std::path::PathBuf;
use std::rc::Rc;
use std::sync::Arc;

use overlay::Overlay;
use reader::{Reader, Want};

use super::{HistoryError, Moment, PointIndex, Sited, Source, index_at, rfc3339};
use crate::format::{BLOCK_BYTES, Block, Offset, SegmentNumber, Superblock};
use crate::io::{Buffer, Platform};
use crate::volume::{Aim, Operation, Recall, Request, RequestError, Serve, Status};

/// Where what is written to a past goes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Writable {
    /// Nothing can be written.
    No,
    /// Into a file without a name in this directory, gone with whoever serves it.
    Discarded(PathBuf),
    /// Into this file, which is made, or goes on with what it has of the same point.
    Kept(PathBuf),
}

/// A volume at a moment, for whoever serves it: index and reader, on no thread in particular.
pub struct Scene {
    volume: Superblock,
    moment: Moment,
    index: PointIndex,
    reader: Arc<Reader>,
}

impl Scene {
    /// The volume of `source` at `moment`. Reads the summaries of at most W + 1 segments.
    ///
    /// # Errors
    /// When the moment cannot be restored.
    pub fn new(source: &Source, moment: Moment) -> Result<Self, HistoryError> {
        let index = index_at(source, source.volume(), moment.segment, moment.position)?;
        let reader = Arc::new(Reader::new(source, &index)?);
        Ok(Self { volume: source.volume().clone(), moment, index, reader })
    }

    /// The moment, for a volume that is to return to it. What room the store has is not known, see [`Source::room_before`].
    pub fn aim(&self) -> Aim {
        Aim {
            to: self.moment.position,
            needs_from: self.oldest_needed(),
            name: self.moment.name(),
            is_point: self.moment.mark.is_some(),
            room: None,
        }
    }

    /// The oldest segment that it may read.
    pub fn oldest_needed(&self) -> SegmentNumber {
        self.index.chain().last().map_or(self.moment.segment, |(segment, _)| *segment)
    }
}

/// A volume at a moment; clones are the same.
pub struct Past<P: Platform>(Rc<Shared<P>>);

struct Shared<P: Platform> {
    platform: P,
    scene: Scene,
    overlay: Option<Overlay>,
    name: String,
    backing: String,
    read_errors: Cell<u64>,
    read_bytes: Cell<u64>,
    written_bytes: Cell<u64>,
}

impl<P: Platform> Clone for Past<P> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<P: Platform> Past<P> {
    /// The volume of `scene`, called `name`.
    ///
    /// # Errors
    /// When the overlay cannot be used.
    pub fn open(platform: P, scene: Scene, writable: &Writable, name: String) -> Result<Self, HistoryError> {
        let Scene { volume, moment, index, .. } = &scene;
        let overlay = Overlay::open(writable, volume, moment, index.blocks()).map_err(HistoryError::Overlay)?;
        let backing = volume.backing.clone();
        Ok(Self(Rc::new(Shared {
            platform,
            scene,
            overlay,
            name,
            backing,
            read_errors: Cell::new(0),
            read_bytes: Cell::new(0),
            written_bytes: Cell::new(0),
        })))
    }

    /// The volume: identity, geometry.
    pub fn superblock(&self) -> &Superblock {
        &self.0.scene.volume
    }

    /// Blocks of the volume at the moment.
    pub fn blocks(&self) -> u64 {
        self.0.scene.index.blocks()
    }

    /// The oldest segment that it may read.
    pub fn oldest_needed(&self) -> SegmentNumber {
        self.0.scene.oldest_needed()
    }

    /// How it is now, in the words of a volume.
    pub fn status(&self) -> Status {
        let Shared { scene: Scene { volume, moment, index, .. }, overlay, .. } = &*self.0;
        let time = rfc3339(moment.time_ns);
        Status {
            name: self.0.name.clone(),
            uuid: volume.uuid.to_string(),
            state: if overlay.is_some() { "past, writable" } else { "past" }.to_owned(),
            size_bytes: index.blocks() * BLOCK_BYTES as u64,
            block_size: BLOCK_BYTES as u64,
            segment_size: volume.geometry.segment_bytes() as u64,
            working_set_segments: u64::from(volume.geometry.working_set),
            archive: crate::volume::ArchiveStatus { store: self.0.backing.clone(), ..Default::default() },
            at: Some(moment.to_string()),
            user_bytes_read: self.0.read_bytes.get(),
            user_bytes_written: self.0.written_bytes.get(),
            oldest_restorable: Some(time.clone()),
            newest_restorable: Some(time),
            position: moment.position.0,
            durable_position: moment.position.0,
            current_segment: moment.segment.0,
            read_errors: self.0.read_errors.get(),
            ..Status::default()
        }
    }

    /// Makes durable what was written, if it is kept.
    ///
    /// # Errors
    /// When that fails.
    pub async fn close(&self) -> Result<(), RequestError> {
        self.flush().await
    }

    /// Fills `buffer` with `blocks`, one after the other.
    async fn gather(&self, blocks: impl Iterator<Item = Block>, buffer: &Buffer) -> Result<(), RequestError> {
        let (mut wants, mut written) = (Vec::new(), Vec::new());
        for (to, block) in (0..).zip(blocks) {
            let place = || buffer.part(to as usize * BLOCK_BYTES, BLOCK_BYTES);
            match self.0.overlay.as_ref().map_or(overlay::Has::Nothing, |overlay| overlay.has(block)) {
                overlay::Has::Zeros => place().zero(),
                overlay::Has::Data => written.push((block, to)),
                overlay::Has::Damaged => return Err(Overlay::damaged(block)),
                overlay::Has::Nothing => match self.0.scene.index.get(block) {
                    Sited::Zeros => place().zero(),
                    Sited::Lost => return Err(RequestError::Lost { block }),
                    Sited::At(segment, offset, crc) => wants.push(Want { block, to, segment, offset, crc }),
                },
            }
        }
        if let Some(overlay) = &self.0.overlay {
            overlay.read(&self.0.platform, written, buffer).await?;
        }
        if wants.is_empty() {
            return Ok(());
        }
        // Blocks of one segment together, however they are mixed.
        wants.sort_by_key(|want| (want.segment, want.offset.0));
        let (reader, buffer) = (Arc::clone(&self.0.scene.reader), buffer.clone());
        self.0.platform.offload_urgent(move || reader.read(&wants, &buffer)).await
    }

    async fn flush(&self) -> Result<(), RequestError> {
        match &self.0.overlay {
            Some(overlay) => overlay.flush(&self.0.platform).await,
            None => Ok(()),
        }
    }

    fn writable(&self) -> Result<&Overlay, RequestError> {
        self.0.overlay.as_ref().ok_or(RequestError::ReadOnly)
    }
}

impl<P: Platform> Recall for Past<P> {
    fn order(&self) -> Vec<u32> {
        let index = &self.0.scene.index;
        let place = |block: &u32| match index.get(Block(u64::from(*block))) {
            Sited::At(segment, offset, _) => (segment.0, offset.0),
            Sited::Zeros | Sited::Lost => (0, 0),
        };
        let mut blocks: Vec<u32> = (0..u32::try_from(index.blocks()).unwrap_or(u32::MAX)).collect();
        blocks.sort_unstable_by_key(|block| (place(block), *block));
        blocks
    }

    fn site(&self, block: Block) -> Option<(SegmentNumber, Offset)> {
        match self.0.scene.index.get(block) {
            Sited::At(segment, offset, _) => Some((segment, offset)),
            Sited::Zeros | Sited::Lost => None,
        }
    }

    async fn recall(&self, blocks: &[Block], into: &Buffer) -> Result<(), RequestError> {
        self.gather(blocks.iter().copied(), into).await
    }
}

impl<P: Platform> Serve for Past<P> {
    async fn serve(&self, request: &Request) -> Result<(), RequestError> {
        let Request { operation, block, blocks, buffer } = request;
        if *operation == Operation::Flush {
            return self.flush().await;
        }
        RequestError::check_range(*block, *blocks, self.blocks())?;
        let platform = &self.0.platform;
        let bytes = u64::from(*blocks) * BLOCK_BYTES as u64;
        let fua = match operation {
            Operation::Read => {
                let range = block.0..block.0 + u64::from(*blocks);
                let read = self.gather(range.map(Block), buffer).await;
                match &read {
                    Ok(()) => self.0.read_bytes.set(self.0.read_bytes.get() + bytes),
                    Err(_) => self.0.read_errors.set(self.0.read_errors.get() + 1),
                }
                return read;
            }
            Operation::Write { fua } => {
                self.writable()?.write(platform, *block, buffer).await?;
                *fua
            }
            Operation::Discard => {
                self.writable()?.zero(*block, *blocks);
                false
            }
            Operation::WriteZeroes { fua } => {
                self.writable()?.zero(*block, *blocks);
                *fua
            }
            Operation::Flush => false,
        };
        self.0.written_bytes.set(self.0.written_bytes.get() + bytes);
        if fua { self.flush().await } else { Ok(()) }
    }
}
