//! What every store promises, as one function that runs on each.

use super::faulty::FaultyDisk;
use super::{sample, volume};
use crate::archive::{DirectoryStore, MemoryStore, ObjectName, Packing, RingKind, RingStore, Store, StoreError};
use crate::format::{SegmentNumber, Uuid};

fn name(history: u8, segment: u64, epoch: u64) -> ObjectName {
    ObjectName { history: Uuid([history; 16]), segment: SegmentNumber(segment), epoch, part: 0 }
}

fn suite(store: &dyn Store) {
    assert!(store.list().unwrap().is_empty());
    let (a, b, c) = (name(1, 2, 1), name(1, 10, 1), name(2, 1, 123_456_789));
    let sample = sample(512, 1, Packing::Raw);
    let large = &sample.object[..];

    // Durable names in the order of the log, whatever the order of the puts.
    store.put(&c, b"third").unwrap();
    store.put(&b, large).unwrap();
    store.put(&a, b"").unwrap();
    let listed = vec![(a, 0), (b, large.len() as u64), (c, 5)];
    assert_eq!(store.list().unwrap(), listed);
    assert_eq!(store.length(&b).unwrap(), large.len() as u64);

    // Ranges, aligned or not, within, across and behind the end.
    let end = large.len() as u64;
    for range in
        [0..end, 0..1, 4095..4097, 4096..8192, 1..end - 1, end - 1..end + 100, end..end + 1, 5..5, 1 << 40..1 << 41]
    {
        let wanted = &large[range.start.min(end) as usize..range.end.min(end) as usize];
        assert!(store.get(&b, range.clone()).unwrap() == wanted, "{range:?}");
    }
    assert_eq!(store.get(&a, 0..10).unwrap(), b"");

    // Again is fine; other content is not, and changes nothing.
    store.put(&b, large).unwrap();
    let mut other = large.to_vec();
    other[400_000] ^= 1;
    assert!(matches!(store.put(&b, &other), Err(StoreError::Conflict { .. })));
    assert!(matches!(store.put(&b, &large[1..]), Err(StoreError::Conflict { .. })));
    assert!(store.get(&b, 0..end).unwrap() == large);

    // What is not there.
    let absent = [name(1, 3, 1), name(1, 2, 2), name(7, 2, 1)];
    for absent in absent {
        assert!(matches!(store.get(&absent, 0..1), Err(StoreError::Missing { .. })));
        assert!(matches!(store.length(&absent), Err(StoreError::Missing { .. })));
        store.delete(&absent).unwrap();
    }
    assert_eq!(store.list().unwrap(), listed);
    store.delete(&b).unwrap();
    store.delete(&b).unwrap();
    assert_eq!(store.list().unwrap(), vec![(a, 0), (c, 5)]);
    store.put(&b, &other).unwrap();
    assert!(store.get(&b, 0..end).unwrap() == other);
}

#[test]
fn memory() {
    let store = MemoryStore::new();
    suite(&store);
    assert_eq!(store.len(), 3);
    store.set_error(Some("the cable is out".to_owned()));
    assert!(store.list().unwrap_err().to_string().contains("the cable is out"));
    store.set_error(None);
    assert!(store.list().is_ok() && !store.is_empty());
}

#[test]
fn directory() {
    let scratch = tempfile::tempdir().unwrap();
    suite(&DirectoryStore::create(&scratch.path().join("store"), &volume(32)).unwrap());
}

#[test]
fn directory_on_a_file_system_in_memory() {
    // tmpfs may have no direct I/O: the other way to read past the cache.
    let scratch = tempfile::tempdir_in("/dev/shm").unwrap();
    suite(&DirectoryStore::create(&scratch.path().join("store"), &volume(32)).unwrap());
}

/// A ring in a file, as large as the suite needs.
fn ring_in(directory: &std::path::Path) -> RingStore {
    let path = directory.join("ring");
    std::fs::File::create(&path).unwrap().set_len(16 << 20).unwrap();
    RingStore::create(RingKind::File, &path, &volume(32)).unwrap()
}

#[test]
fn ring_in_a_file() {
    let scratch = tempfile::tempdir().unwrap();
    suite(&ring_in(scratch.path()));
}

#[test]
fn ring_in_a_file_in_memory() {
    let scratch = tempfile::tempdir_in("/dev/shm").unwrap();
    suite(&ring_in(scratch.path()));
}

#[test]
fn ring_on_a_simulated_device() {
    let disk = FaultyDisk::new(16 << 20);
    suite(&RingStore::create_on(disk.medium(), &volume(32), [7; 16]).unwrap());
}

#[test]
fn every_store_says_how_full_it_is() {
    let scratch = tempfile::tempdir().unwrap();
    let directory = DirectoryStore::create(&scratch.path().join("store"), &volume(32)).unwrap();
    for store in [&directory as &dyn Store, &ring_in(scratch.path())] {
        let fill = store.fill().unwrap().unwrap();
        assert!(fill.used <= fill.capacity && fill.capacity > 0, "{fill:?}");
    }
    assert!(MemoryStore::new().fill().unwrap().is_none());
}
