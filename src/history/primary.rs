//! A primary that is looked at, whoever owns it: reads wait here, on a ring of their own.
//!
//! The owner may be using it. What is read is therefore taken for nothing but what its checksums prove, and a segment
//! that has left its slot meanwhile must be in the archive.

use std::cell::RefCell;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;

use super::HistoryError;
use super::slots::Slots;
use crate::format::{BLOCK_BYTES, BatchHeader, Offset, Place, SegmentHeader, SegmentNumber, Slot, Summary, Superblock};
use crate::io::{Bench, Buffer, Device, Primary};
use crate::log::scan::{self, ScanError};

/// A primary and what was found on it.
pub(super) struct View {
    pub path: PathBuf,
    pub bench: Bench,
    pub volume: Superblock,
    pub slots: Rc<Slots>,
    scratch: RefCell<Option<Buffer>>,
}

impl View {
    /// Opens the primary at `path` to look at it.
    pub(super) fn open(path: &Path) -> Result<Self, HistoryError> {
        let bench = Bench::new(Primary::look(path)?)?;
        let device = bench.device.clone();
        let (volume, _) = bench
            .wait(async move { scan::superblock(&device).await })??
            .map_err(|source| HistoryError::Superblock { path: path.display().to_string(), source })?;
        let need = volume.geometry.primary_blocks * BLOCK_BYTES as u64;
        if bench.device.bytes() < need {
            let have = bench.device.bytes();
            log::warn!("{}: the volume was made for {need} bytes, and there are {have}", path.display());
        }
        let look = Slots::find(bench.platform.clone(), bench.device.clone(), volume.clone());
        let slots = Rc::new(bench.wait(look)??);
        if let Some(trouble) = &slots.trouble {
            log::warn!("{}: {trouble}", path.display());
        }
        Ok(Self { path: path.to_owned(), bench, volume, slots, scratch: RefCell::default() })
    }

    /// The last segment, and the epoch of its last batch.
    pub(super) fn tail(&self) -> Option<(SegmentNumber, u64)> {
        self.slots.tail.as_ref().map(|tail| (tail.summary.segment, tail.summary.epoch))
    }

    /// The summary of `segment` in `slot`.
    pub(super) fn summary(&self, slot: Slot, segment: SegmentNumber) -> Result<Arc<Summary>, ScanError> {
        let (device, volume, slots) = (self.bench.device.clone(), self.volume.clone(), Rc::clone(&self.slots));
        let read = self.bench.wait(async move { slots.summary(&device, &volume, slot, segment).await });
        read.unwrap_or_else(|source| {
            Err(ScanError::Io { offset: self.volume.geometry.slot_place(slot).bytes(), source })
        })
    }

    /// Whether `slot` holds `segment` now. A header that has rotted, or is another slot's, is stood in for by the first batch.
    pub(super) fn holds(&self, slot: Slot, segment: SegmentNumber) -> io::Result<bool> {
        let scratch = self.scratch.borrow_mut().take();
        let block = scratch.map_or_else(|| Buffer::new(BLOCK_BYTES), Ok)?;
        let place = self.volume.geometry.slot_place(slot);
        let read = self.bench.fill(place.bytes(), &block);
        let found = match SegmentHeader::parse(block.bytes(), &self.volume) {
            Ok(header) if read.is_ok() && header.slot == slot => header.segment,
            _ => {
                self.bench.fill(place.plus(1).bytes(), &block)?;
                let first = BatchHeader::parse(block.bytes(), &self.volume).map(|batch| batch.header);
                first.ok().filter(|first| first.offset == Offset(1)).map_or(SegmentNumber(0), |first| first.segment)
            }
        };
        *self.scratch.borrow_mut() = Some(block);
        Ok(found == segment)
    }

    /// Fills `into` from `place`; a block that cannot be read becomes zeros, which no checksum takes for another block's
    /// data. Says whether anything was read.
    pub(super) fn read(&self, place: Place, into: &Buffer) -> bool {
        if self.bench.fill(place.bytes(), into).is_ok() {
            return true;
        }
        let mut any = false;
        for at in (0..into.len()).step_by(BLOCK_BYTES) {
            let block = into.part(at, BLOCK_BYTES);
            match self.bench.fill(place.bytes() + at as u64, &block) {
                Ok(()) => any = true,
                Err(error) => {
                    log::warn!("{}: reading at {:#x}: {error}", self.path.display(), place.bytes() + at as u64);
                    block.zero();
                }
            }
        }
        any
    }
}
