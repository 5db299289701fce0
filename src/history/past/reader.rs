//! Blocks of the past, for threads that may wait: from the primary while the segment is in its slot, otherwise out of a
//! frame in the archive. Every block is verified by its CRC32C, wherever it comes from.
//!
//! A segment leaves the primary only when it is archived, so a slot that has another tenant is looked for in the store,
//! and never again in the slot. What a store has is listed when it is first needed, and again when something is not found.

use std::collections::BTreeMap;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::archive::{ArchivedSegment, ObjectName, PatientStore, Spec, Store};
use crate::format::{BLOCK_BYTES, Block, Offset, SegmentHeader, SegmentNumber, Slot, Superblock, block_crc};
use crate::history::source::{Archived, Objects, list, open_in};
use crate::history::{HistoryError, PointIndex, Source};
use crate::io::{Buffer, Primary};
use crate::volume::RequestError;

/// Archive objects that are kept open, each with its frame table and the frame that was decoded last: some 200 KiB.
const OPEN_MAX: usize = 64;
/// A store is listed again this often at most.
const LIST_PAUSE: Duration = Duration::from_secs(1);

/// A block that is wanted.
#[derive(Debug, Clone, Copy)]
pub(super) struct Want {
    pub block: Block,
    /// Where it goes in the buffer, in blocks.
    pub to: u32,
    pub segment: SegmentNumber,
    pub offset: Offset,
    pub crc: u32,
}

/// Where the segments of a point are.
pub(super) struct Reader {
    volume: Superblock,
    primary: Option<Primary>,
    /// Of segments that were on the primary: the slot, and whether it has another tenant by now.
    slots: BTreeMap<SegmentNumber, (Slot, AtomicBool)>,
    /// The epochs of the segments.
    epochs: BTreeMap<SegmentNumber, u64>,
    store: Option<Arc<dyn Store>>,
    objects: Mutex<(Objects, Option<Instant>)>,
    open: Mutex<OpenObjects>,
}

type Shared = Arc<Mutex<ArchivedSegment>>;

/// Objects in use, the one used last at the end.
#[derive(Default)]
struct OpenObjects(Vec<(Archived, Shared)>);

impl Reader {
    /// Whoever reads the segments of `index` when `source` itself is gone.
    pub(super) fn new(source: &Source, index: &PointIndex) -> Result<Self, HistoryError> {
        let chain = index.chain();
        let mut slots = BTreeMap::new();
        let primary = match &source.primary {
            None => None,
            Some(view) => {
                for (segment, checksum) in chain {
                    let slot = match view.slots.found.get(segment).map_or(&[][..], Vec::as_slice) {
                        // Slots of a tail that was discarded may have the same number.
                        [first, _, ..] => {
                            let located = source.locate(*segment, Some(*checksum)).ok().flatten();
                            located.and_then(|located| located.slot).or(Some(*first))
                        }
                        found => found.first().copied(),
                    };
                    slots.extend(slot.map(|slot| (*segment, (slot, AtomicBool::new(false)))));
                }
                Some(Primary::look(&view.path).map_err(|error| HistoryError::Io(io::Error::other(error)))?)
            }
        };
        let volume = source.volume().clone();
        // One that is away now, or later for a while, is used when it is there.
        let spec = source.store.as_ref().map_or_else(|| volume.backing.clone(), |store| store.spec());
        let store = PatientStore::new(Spec::parse(&spec)?, volume.clone());
        let store = store.map(|store| Arc::new(store) as Arc<dyn Store>);
        let (objects, open) = (Mutex::default(), Mutex::default());
        let epochs = chain.iter().map(|(segment, _)| *segment).zip(index.epochs().iter().copied()).collect();
        Ok(Self { volume, primary, slots, epochs, store, objects, open })
    }

    /// Fills the places of `buffer` that `wants` name.
    pub(super) fn read(&self, wants: &[Want], buffer: &Buffer) -> Result<(), RequestError> {
        for of_segment in wants.chunk_by(|a, b| a.segment == b.segment) {
            let missing = self.read_slot(of_segment, buffer)?;
            if !missing.is_empty() {
                self.read_store(&missing, buffer)?;
            }
        }
        Ok(())
    }

    /// Reads what the slot has; gives what it has not.
    fn read_slot(&self, wants: &[Want], buffer: &Buffer) -> Result<Vec<Want>, RequestError> {
        let segment = wants[0].segment;
        let (Some(primary), Some((slot, gone))) = (&self.primary, self.slots.get(&segment)) else {
            return Ok(wants.to_vec());
        };
        if gone.load(Ordering::Relaxed) {
            return Ok(wants.to_vec());
        }
        let start = self.volume.geometry.slot_place(*slot);
        let mut missing = Vec::new();
        for run in wants.chunk_by(|a, b| b.offset.0 == a.offset.0 + 1 && b.to == a.to + 1) {
            let place = start.plus(run[0].offset.0).bytes();
            let into = buffer.part(run[0].to as usize * BLOCK_BYTES, run.len() * BLOCK_BYTES);
            if let Err(error) = primary.read_at(place, &into) {
                log::warn!("{}: reading at {place:#x}: {error}", primary.path().display());
                missing.extend_from_slice(run);
                continue;
            }
            let bytes = into.bytes();
            let wrong = run.iter().zip(bytes.chunks(BLOCK_BYTES)).filter(|(want, data)| block_crc(data) != want.crc);
            missing.extend(wrong.map(|(want, _)| *want));
        }
        if !missing.is_empty() && !self.holds(primary, *slot, segment) {
            gone.store(true, Ordering::Relaxed);
        }
        Ok(missing)
    }

    /// Whether the slot's header is that of the segment still.
    fn holds(&self, primary: &Primary, slot: Slot, segment: SegmentNumber) -> bool {
        let header = Buffer::new(BLOCK_BYTES).and_then(|block| {
            primary.read_at(self.volume.geometry.slot_place(slot).bytes(), &block)?;
            Ok(SegmentHeader::parse(block.bytes(), &self.volume))
        });
        // A header that cannot be read says nothing: then each block is tried.
        !matches!(header, Ok(Ok(header)) if header.segment != segment)
    }

    fn read_store(&self, wants: &[Want], buffer: &Buffer) -> Result<(), RequestError> {
        let mut cause = None;
        for fresh in [false, true] {
            let objects = match self.objects_of(wants[0].segment, fresh) {
                Ok(objects) => objects,
                Err(error) => return Err(unreadable(wants[0].block, &error.to_string())),
            };
            for archived in objects {
                match self.read_object(&archived, wants, buffer) {
                    Ok(()) => return Ok(()),
                    Err(error) => {
                        // It may have been put again, packed in another way.
                        lock(&self.open).forget(&archived);
                        cause = Some(error);
                    }
                }
            }
        }
        let nowhere = || {
            let what = format!("segment {} is neither on the primary nor in the archive", wants[0].segment);
            (wants[0].block, what)
        };
        let (block, what) = cause.unwrap_or_else(nowhere);
        Err(unreadable(block, &what))
    }

    /// Reads all `wants` out of one object; otherwise which block is not there, and why.
    fn read_object(&self, archived: &Archived, wants: &[Want], buffer: &Buffer) -> Result<(), (Block, String)> {
        let object = self.opened(archived).map_err(|error| (wants[0].block, error.to_string()))?;
        let mut object = lock(&object);
        for want in wants {
            let into = buffer.part(want.to as usize * BLOCK_BYTES, BLOCK_BYTES);
            let read = into.write(|bytes| object.read_block(want.offset, bytes));
            read.map_err(|error| (want.block, error.to_string()))?;
            if block_crc(into.bytes()) != want.crc {
                return Err((want.block, format!("does not match its checksum in segment {}", want.segment)));
            }
        }
        Ok(())
    }

    /// What the store has of a segment; `fresh` when what is known is not enough.
    fn objects_of(&self, segment: SegmentNumber, fresh: bool) -> Result<Vec<Archived>, HistoryError> {
        let Some(store) = &self.store else { return Ok(Vec::new()) };
        let mut known = lock(&self.objects);
        let (objects, listed) = &mut *known;
        if fresh || listed.is_none() {
            // What is not in a list of a moment ago may have been put since.
            let since = listed.map_or(LIST_PAUSE, |listed| listed.elapsed());
            std::thread::sleep(LIST_PAUSE.saturating_sub(since));
            let began = Instant::now();
            *objects = list(store, &self.volume, None)?;
            *listed = Some(began);
        }
        let found = objects.get(&segment).cloned().unwrap_or_default();
        match self.epochs.get(&segment) {
            // One that has left the primary since: it is known what it is called.
            Some(epoch) if found.is_empty() && !fresh && self.slots.contains_key(&segment) => {
                let name = ObjectName { history: self.volume.history, segment, epoch: *epoch, part: 0 };
                Ok(vec![Archived::Whole(name)])
            }
            _ => Ok(found),
        }
    }

    fn opened(&self, archived: &Archived) -> Result<Shared, HistoryError> {
        if let Some(object) = lock(&self.open).take(archived) {
            return Ok(object);
        }
        let Some(store) = &self.store else { return Err(HistoryError::Io(io::ErrorKind::NotFound.into())) };
        let object = Arc::new(Mutex::new(open_in(store, &self.volume, archived)?));
        lock(&self.open).keep(archived.clone(), Arc::clone(&object));
        Ok(object)
    }
}

impl OpenObjects {
    fn take(&mut self, archived: &Archived) -> Option<Shared> {
        let at = self.0.iter().position(|(name, _)| name == archived)?;
        let found = self.0.remove(at);
        let object = Arc::clone(&found.1);
        self.0.push(found);
        Some(object)
    }

    fn forget(&mut self, archived: &Archived) {
        self.0.retain(|(name, _)| name != archived);
    }

    fn keep(&mut self, archived: Archived, object: Shared) {
        if self.0.len() >= OPEN_MAX {
            self.0.remove(0);
        }
        self.0.push((archived, object));
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn unreadable(block: Block, what: &str) -> RequestError {
    RequestError::Unreadable { block, cause: Arc::new(io::Error::other(what.to_owned())) }
}
