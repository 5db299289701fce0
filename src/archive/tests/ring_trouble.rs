//! A ring on a disk with blocks that cannot be read, on one that has grown, and beside a writer that is in the middle of it.

use std::collections::BTreeSet;
use std::io;
use std::sync::{Arc, Mutex};

use super::faulty::{Fate, FaultyDisk};
use super::ring_crash::{TINY_BYTES, content, name, tiny};
use crate::archive::ring::{Disk, Medium};
use crate::archive::{ForkRecord, ObjectName, RingStore, Store, StoreError};
use crate::format::{BLOCK_BYTES, Checksum, Position, SegmentNumber, Superblock, Uuid};
use crate::io::Buffer;

type Hook = Box<dyn FnOnce() + Send>;

/// A disk of a size of its own. A block in `bad` cannot be read until it is written; `hook` runs in the middle of a read of
/// several blocks at its offset.
#[derive(Clone)]
struct Bad {
    inner: FaultyDisk,
    bytes: u64,
    bad: Arc<Mutex<BTreeSet<u64>>>,
    hook: Arc<Mutex<Option<(u64, Hook)>>>,
}

impl Bad {
    fn new(inner: &FaultyDisk, bytes: usize) -> Self {
        Self { inner: inner.clone(), bytes: bytes as u64, bad: Arc::default(), hook: Arc::default() }
    }

    fn medium(&self) -> Box<dyn Medium> {
        Box::new(self.clone())
    }
}

fn blocks(offset: u64, buffer: &Buffer) -> std::ops::Range<u64> {
    let block = BLOCK_BYTES as u64;
    offset / block..(offset + buffer.len() as u64) / block
}

impl Disk for Bad {
    fn read_at(&self, offset: u64, buffer: &Buffer) -> io::Result<()> {
        if self.bad.lock().unwrap().iter().any(|at| blocks(offset, buffer).contains(at)) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        let hook = self.hook.lock().unwrap().take_if(|(at, _)| *at == offset && buffer.len() > BLOCK_BYTES);
        let Some((_, hook)) = hook else {
            return self.inner.read_at(offset, buffer);
        };
        self.inner.read_at(offset, &buffer.part(0, BLOCK_BYTES))?;
        hook();
        self.inner.read_at(offset + BLOCK_BYTES as u64, &buffer.part(BLOCK_BYTES, buffer.len() - BLOCK_BYTES))
    }

    fn write_at(&self, offset: u64, buffer: &Buffer) -> io::Result<()> {
        self.bad.lock().unwrap().retain(|at| !blocks(offset, buffer).contains(at));
        self.inner.write_at(offset, buffer)
    }

    fn sync(&self) -> io::Result<()> {
        self.inner.sync()
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn device(&self) -> Option<u64> {
        None
    }
}

impl Medium for Bad {
    fn look(&self) -> Result<Arc<dyn Disk>, StoreError> {
        Ok(Arc::new(self.clone()))
    }

    fn own(&self) -> Result<Arc<dyn Disk>, StoreError> {
        Ok(Arc::new(self.clone()))
    }

    fn spec(&self) -> String {
        "bad".to_owned()
    }
}

fn ring() -> (Bad, RingStore) {
    let disk = Bad::new(&FaultyDisk::new(TINY_BYTES), TINY_BYTES);
    let store = RingStore::create_on(disk.medium(), &tiny(), [1; 16]).unwrap();
    (disk, store)
}

fn put(store: &dyn Store, segment: u64, part: u32, bytes: usize) -> Result<(), StoreError> {
    let name = name(segment, part);
    store.put(&name, &content(&name, bytes, 0))
}

#[test]
fn a_record_header_that_cannot_be_read_stops_nothing() {
    let (disk, store) = ring();
    for segment in 1..=4 {
        put(&store, segment, 0, 36_000).unwrap();
    }
    // The record header of segment 1, which is to be erased.
    disk.bad.lock().unwrap().insert(3);
    put(&store, 5, 0, 36_000).unwrap();
    assert!(disk.bad.lock().unwrap().is_empty());
    // Now it is segment 5's. The entry that was segment 1's is written again, and what it vacated is not looked for there.
    drop(store);
    disk.bad.lock().unwrap().insert(3);
    disk.inner.alter(|bytes| bytes[BLOCK_BYTES] ^= 1);
    let store = RingStore::open_on(disk.medium(), Some(&tiny())).unwrap();
    store.delete(&name(999, 0)).unwrap();
    assert!(disk.bad.lock().unwrap().contains(&3), "a block of an object was overwritten");
    let segment = name(5, 0);
    assert!(store.get(&segment, 0..u64::MAX).unwrap() == content(&segment, 36_000, 0));
    disk.inner.alter(|bytes| assert_eq!(bytes[BLOCK_BYTES], 1, "the entry is free, and written again"));
}

#[test]
fn what_the_volume_can_be_rebuilt_from_stays_after_a_rebuild() {
    let (_, store) = ring();
    let volume = tiny();
    for (segment, bytes) in [(5, 4000), (6, 4000), (7, 4000), (8, 36_000), (9, 36_000), (10, 36_000)] {
        put(&store, segment, 0, bytes).unwrap();
    }
    let history = Uuid([0x77; 16]);
    let successor = Superblock { history, parent_history: volume.history, fork_position: Position(700), ..volume };
    let record = ForkRecord { successor, segment: SegmentNumber(7), checksum: Checksum([1; 16]), epoch: 1, time_ns: 0 };
    store.put(&record.name(), &record.encode()).unwrap();
    let child = |segment| ObjectName { history, segment: SegmentNumber(segment), epoch: 2, part: 0 };
    for segment in 8..=10 {
        let child = child(segment);
        store.put(&child, &content(&child, 40_000, 0)).unwrap();
        let there: Vec<_> = store.list().unwrap().into_iter().map(|(name, _)| name).collect();
        let kept = (6..=7).map(|segment| name(segment, 0)).filter(|name| name.segment.0 + 2 >= segment);
        let kept: Vec<_> = kept.chain([record.name(), child]).collect();
        assert!(kept.iter().all(|name| there.contains(name)), "{there:?}");
    }
}

#[test]
fn a_reader_beside_a_writer_finds_no_damage() {
    let (disk, store) = ring();
    let store = Arc::new(store);
    for part in 1..=32 {
        put(&*store, 1, part, 0).unwrap();
    }
    let reader = RingStore::open_on(disk.medium(), Some(&tiny())).unwrap();
    // An object goes and another one gets its place, both between two blocks of the catalogue.
    let writer = Arc::clone(&store);
    let hook: Hook = Box::new(move || {
        writer.delete(&name(1, 1)).unwrap();
        put(&*writer, 1, 33, 4096).unwrap();
        put(&*writer, 1, 34, 0).unwrap();
    });
    *disk.hook.lock().unwrap() = Some((BLOCK_BYTES as u64, hook));
    reader.list().unwrap();
    assert!(disk.hook.lock().unwrap().is_none());
    assert_eq!(reader.list().unwrap(), store.list().unwrap());
}

/// An object whose entry and record header were both lost was put again elsewhere; then the header can be read again, and
/// the entry is lost again.
#[test]
fn the_older_of_two_that_have_one_name_leaves_no_record_header() {
    let (disk, store) = ring();
    put(&store, 1, 0, 4000).unwrap();
    put(&store, 2, 0, 4000).unwrap();
    store.delete(&name(1, 0)).unwrap();
    drop(store);
    // Two blocks for each: the record header of segment 2, and entry 1 in both copies of the catalogue.
    let header = 5 * BLOCK_BYTES..6 * BLOCK_BYTES;
    let entries = [BLOCK_BYTES + 128, TINY_BYTES - 3 * BLOCK_BYTES + 128];
    let lose = |bytes: &mut [u8]| entries.iter().for_each(|at| bytes[*at..at + 128].fill(0));
    let mut old = Vec::new();
    disk.inner.alter(|bytes| {
        old = bytes[header.clone()].to_vec();
        bytes[header.clone()].fill(0);
        lose(bytes);
    });
    let store = RingStore::open_on(disk.medium(), None).unwrap();
    put(&store, 2, 0, 4000).unwrap();
    drop(store);
    disk.inner.alter(|bytes| {
        assert_eq!(old[..8], *b"SALVOLRR");
        assert_eq!(bytes[3 * BLOCK_BYTES..][..8], *b"SALVOLRR", "it is at another place now");
        bytes[header.clone()].copy_from_slice(&old);
        lose(bytes);
    });
    let store = RingStore::open_on(disk.medium(), None).unwrap();
    store.delete(&name(2, 0)).unwrap();
    drop(store);
    disk.inner.alter(lose);
    assert_eq!(RingStore::open_on(disk.medium(), None).unwrap().list().unwrap(), [], "it was deleted and is back");
}

#[test]
fn one_superblock_is_enough_on_a_disk_that_has_grown() {
    let inner = FaultyDisk::new(3 * TINY_BYTES);
    let store = RingStore::create_on(Bad::new(&inner, TINY_BYTES).medium(), &tiny(), [1; 16]).unwrap();
    put(&store, 1, 0, 1000).unwrap();
    drop(store);
    let grown = Bad::new(&inner, 2 * TINY_BYTES);
    let open = |disk: &Bad| RingStore::open_on(disk.medium(), Some(&tiny()));
    open(&grown).unwrap();
    // Before any writer has seen it as large as that.
    inner.alter(|bytes| bytes[..BLOCK_BYTES].fill(0));
    let store = open(&grown).unwrap();
    put(&store, 2, 0, 1000).unwrap();
    drop(store);
    // It was written again, and to the end of the disk too: neither of the others is needed.
    inner.alter(|bytes| {
        assert_eq!(bytes[..BLOCK_BYTES], bytes[2 * TINY_BYTES - BLOCK_BYTES..2 * TINY_BYTES]);
        bytes[..BLOCK_BYTES].fill(0);
        bytes[TINY_BYTES - BLOCK_BYTES..TINY_BYTES].fill(0);
    });
    let store = open(&grown).unwrap();
    put(&store, 3, 0, 1000).unwrap();
    assert_eq!(store.list().unwrap().len(), 3);
    // A writer has put all of them right; what is larger still gets another one.
    let larger = Bad::new(&inner, 3 * TINY_BYTES);
    put(&open(&larger).unwrap(), 4, 0, 1000).unwrap();
    inner.alter(|bytes| {
        for at in [TINY_BYTES, 2 * TINY_BYTES, 3 * TINY_BYTES] {
            assert_eq!(bytes[..BLOCK_BYTES], bytes[at - BLOCK_BYTES..at], "the copy that ends at {at}");
        }
    });
}

#[test]
fn where_a_store_was_none_is_made() {
    let (disk, store) = ring();
    drop(store);
    let erase = |bytes: &mut [u8]| {
        bytes[..BLOCK_BYTES].fill(0);
        bytes[TINY_BYTES - BLOCK_BYTES..].fill(0);
    };
    // Nothing is lost with a store in which nothing ever was.
    disk.inner.alter(erase);
    let store = RingStore::create_on(disk.medium(), &tiny(), [2; 16]).unwrap();
    put(&store, 1, 0, 1000).unwrap();
    drop(store);
    for empty in [false, true] {
        if empty {
            RingStore::open_on(disk.medium(), None).unwrap().delete(&name(1, 0)).unwrap();
        }
        let kept = Bad::new(&disk.inner.after_crash(Fate::Kept), TINY_BYTES);
        kept.inner.alter(erase);
        let error = RingStore::create_on(kept.medium(), &tiny(), [3; 16]).err().unwrap().to_string();
        assert!(error.contains("no superblock of it is found") && error.contains("blkdiscard"), "{error}");
        kept.inner.alter(|bytes| assert!(bytes[..BLOCK_BYTES].iter().all(|byte| *byte == 0)));
    }
}
