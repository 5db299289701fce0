//! What a ring does when it is full, when it rots, and when several have it open.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use fastrand::Rng;

use super::faulty::{FaultyDisk, SECTOR};
use super::ring_crash::{TINY_BYTES, content, name, tiny};
use crate::archive::ring::Disk;
use crate::archive::{PinRecord, Provision, RingKind, RingStore, Spec, Store, StoreError, open_store, prepare_store};
use crate::format::{Geometry, Key, Position, SegmentNumber, Superblock, Uuid};

fn ring() -> (FaultyDisk, RingStore) {
    let disk = FaultyDisk::new(TINY_BYTES);
    let store = RingStore::create_on(disk.medium(), &tiny(), [1; 16]).unwrap();
    (disk, store)
}

fn put(store: &dyn Store, segment: u64, part: u32, bytes: usize) -> Result<(), StoreError> {
    let name = name(segment, part);
    store.put(&name, &content(&name, bytes, 0))
}

fn segments(store: &dyn Store) -> Vec<(u64, u32)> {
    store.list().unwrap().iter().map(|(name, _)| (name.segment.0, name.part)).collect()
}

fn text<T>(result: Result<T, StoreError>) -> String {
    result.err().expect("is refused").to_string()
}

#[test]
fn the_oldest_go_and_the_newest_stay_until_it_is_full() {
    let (_, store) = ring();
    for segment in 1..=20 {
        put(&store, segment, 0, 36_000).unwrap();
        let all = segments(&store);
        assert_eq!(all.len(), 4.min(segment as usize), "{all:?}");
        assert_eq!(all.last(), Some(&(segment, 0)));
    }
    // Parts have room of their own, and beyond it take the room of what is older than the newest three, and no more.
    let parts = 1..=6;
    for part in parts.clone() {
        put(&store, 21, part, 30_000).unwrap();
        assert_eq!(segments(&store)[..4], [(17, 0), (18, 0), (19, 0), (20, 0)]);
    }
    put(&store, 21, 7, 30_000).unwrap();
    put(&store, 21, 8, 30_000).unwrap();
    let there: Vec<_> = [(19, 0), (20, 0)].into_iter().chain((1..=8).map(|part| (21, part))).collect();
    assert_eq!(segments(&store), there);
    // None takes the last room that the segment itself may need.
    let full = text(put(&store, 21, 9, 40_000));
    assert!(full.contains("full") && full.contains("newest 3 segments") && full.contains("larger"), "{full}");
    assert_eq!(segments(&store), there, "nothing is expired for nothing");
    for &(segment, part) in &there {
        let name = name(segment, part);
        let bytes = if part == 0 { 36_000 } else { 30_000 };
        assert!(store.get(&name, 0..u64::MAX).unwrap() == content(&name, bytes, 0));
    }
    let fill = store.fill().unwrap().unwrap();
    assert_eq!((fill.used, fill.capacity), ((2 * 10 + 8 * 9) * 4096, 106 * 4096));
    put(&store, 21, 0, 36_000).unwrap();
    assert_eq!(segments(&store).len(), there.len() + 1);
    parts.for_each(|part| store.delete(&name(21, part)).unwrap());
    assert!(text(put(&store, 22, 0, 500_000)).contains("full"));
}

#[test]
fn what_somebody_reads_is_not_expired() {
    let (_, store) = ring();
    for segment in 1..=4 {
        put(&store, segment, 0, 36_000).unwrap();
    }
    let from = Arc::new(AtomicU64::new(2));
    let asked = Arc::clone(&from);
    store.lease(Arc::new(move || Some(SegmentNumber(asked.load(Ordering::Relaxed))).filter(|from| from.0 > 0)));
    // The first may go, no other.
    put(&store, 5, 0, 36_000).unwrap();
    // There is some room that parts could have had.
    let (last, full) = (6..20).find_map(|segment| Some((segment, put(&store, segment, 0, 36_000).err()?))).unwrap();
    let full = full.to_string();
    assert!(full.contains("view of the past") && full.contains("segment 2"), "{full}");
    let there: Vec<_> = (2..last).map(|segment| (segment, 0)).collect();
    assert_eq!(segments(&store), there);
    from.store(0, Ordering::Relaxed);
    put(&store, last, 0, 36_000).unwrap();
    assert!(segments(&store).len() <= there.len() && segments(&store).last() == Some(&(last, 0)));
}

/// Pins the segments `oldest` to `segment`.
fn put_pin(store: &RingStore, number: u32, oldest: u64, segment: u64) -> Result<(), StoreError> {
    let history = name(segment, 0).history;
    let record = PinRecord {
        history,
        position: Position(100 * segment),
        point_time_ns: 5,
        segment: SegmentNumber(segment),
        oldest_needed: SegmentNumber(oldest),
        time_ns: 6,
    };
    store.put(&PinRecord::name_of(history, number), &record.encode(&tiny()))
}

fn wholes(store: &dyn Store) -> Vec<u64> {
    segments(store).into_iter().filter(|(segment, _)| *segment > 0).map(|(segment, _)| segment).collect()
}

/// Whether segment 1 is there, and then the newest up to `last`, no more than there is room for.
fn is_island_and_newest(store: &dyn Store, last: u64) -> bool {
    let there = wholes(store);
    let newest = &there[1..];
    there[0] == 1
        && newest.last() == Some(&last)
        && newest.windows(2).all(|pair| pair[1] == pair[0] + 1)
        && newest.len() <= 4
}

#[test]
fn what_is_pinned_is_not_expired_and_the_rest_is() {
    let (disk, store) = ring();
    put(&store, 1, 0, 36_000).unwrap();
    put(&store, 2, 0, 36_000).unwrap();
    put_pin(&store, 1, 1, 1).unwrap();
    (3..=10).for_each(|segment| put(&store, segment, 0, 36_000).unwrap());
    assert!(is_island_and_newest(&store, 10), "{:?}", wholes(&store));
    drop(store);
    // Whoever opens it next reads the record.
    let store = RingStore::open_on(disk.medium(), Some(&tiny())).unwrap();
    (11..=13).for_each(|segment| put(&store, segment, 0, 36_000).unwrap());
    assert!(is_island_and_newest(&store, 13), "{:?}", wholes(&store));
    // The pins are what there is no room for.
    let (mut last, mut pins) = (13, 1);
    let full = loop {
        pins += 1;
        let pinned = put_pin(&store, pins, last - 2, last);
        let full = pinned.err().or_else(|| {
            (0..3).find_map(|_| {
                last += 1;
                put(&store, last, 0, 36_000).err()
            })
        });
        match full {
            Some(full) => break full.to_string(),
            None => assert!(last < 50, "the ring never fills"),
        }
    };
    assert!(full.contains("pinned, by p100, p1300") && full.contains("salvol unpin"), "{full}");
    assert!([1, 11, 12, 13].iter().all(|pinned| wholes(&store).contains(pinned)));
    (2..=pins).for_each(|number| store.delete(&PinRecord::name_of(name(1, 0).history, number)).unwrap());
    (last..last + 6).for_each(|segment| put(&store, segment, 0, 36_000).unwrap());
    assert!(is_island_and_newest(&store, last + 5), "{:?}", wholes(&store));
}

#[test]
fn a_pin_that_is_damaged_keeps_its_island_and_stops_nothing() {
    let (disk, store) = ring();
    put(&store, 1, 0, 36_000).unwrap();
    put_pin(&store, 1, 1, 1).unwrap();
    (2..=8).for_each(|segment| put(&store, segment, 0, 36_000).unwrap());
    drop(store);
    disk.alter(|bytes| {
        let at = bytes.windows(8).position(|window| window == b"SALVOLPN").unwrap();
        bytes[at + 70] ^= 1;
    });
    let store = RingStore::open_on(disk.medium(), Some(&tiny())).unwrap();
    (9..=20).for_each(|segment| put(&store, segment, 0, 36_000).unwrap());
    assert!(is_island_and_newest(&store, 20), "{:?}", wholes(&store));
    store.delete(&PinRecord::name_of(name(1, 0).history, 1)).unwrap();
    (21..=22).for_each(|segment| put(&store, segment, 0, 36_000).unwrap());
    assert!(!wholes(&store).contains(&1), "{:?}", wholes(&store));
}

#[test]
fn nothing_is_expired_for_a_pin_that_it_keeps() {
    let (_, store) = ring();
    (1..=4).for_each(|segment| put(&store, segment, 0, 36_000).unwrap());
    // No room but that of the oldest is left.
    let parts = (1..20).find(|part| put(&store, 5, *part, 30_000).is_err()).unwrap();
    let oldest = wholes(&store)[0];
    let more = (1..200).take_while(|number| put_pin(&store, *number, oldest, oldest).is_ok()).count();
    assert!(parts > 1 && more < 199);
    assert_eq!(wholes(&store)[0], oldest);
}

#[test]
fn a_catalogue_without_a_free_entry_expires_too() {
    let (_, store) = ring();
    for part in 1..=63 {
        put(&store, 1, part, 0).unwrap();
    }
    // The last entry is not for a part.
    assert!(text(put(&store, 1, 64, 0)).contains("full"));
    put(&store, 9, 0, 5).unwrap();
    assert_eq!(store.list().unwrap().len(), 64);
    put(&store, 9, 1, 5).unwrap();
    assert_eq!(segments(&store)[0], (1, 3));
    assert_eq!(store.list().unwrap().len(), 63);
}

/// The guarantee of the smallest size: with what compresses badly, and pieces here and there, a segment always fits.
#[test]
fn the_smallest_ring_never_gets_stuck() {
    for seed in 0..20 {
        let (_, store) = ring();
        let mut rng = Rng::with_seed(seed);
        for segment in 1..150 {
            let bytes = if rng.bool() { rng.usize(30_000..36_900) } else { rng.usize(1..36_900) };
            put(&store, segment, 0, bytes).unwrap();
            let newest = name(segment, 0);
            assert!(store.get(&newest, 0..u64::MAX).unwrap() == content(&newest, bytes, 0));
            assert!(store.list().unwrap().len() as u64 >= segment.min(3));
        }
    }
}

#[test]
fn rot_in_one_place_loses_nothing() {
    let (disk, store) = ring();
    for (segment, bytes) in [(1, 36_000), (2, 100), (3, 30_000), (4, 36_000), (5, 36_000), (6, 20_000)] {
        put(&store, segment, 0, bytes).unwrap();
    }
    store.delete(&name(5, 0)).unwrap();
    let wanted = store.list().unwrap();
    let contents: Vec<_> = wanted.iter().map(|(name, _)| store.get(name, 0..u64::MAX).unwrap()).collect();
    drop(store);
    let blocks = TINY_BYTES / 4096;
    let sectors_of = |block: usize| block * 8..(block + 1) * 8;
    let single: Vec<Vec<usize>> =
        [0, 1, blocks - 3, blocks - 1].into_iter().flat_map(sectors_of).map(|sector| vec![sector]).collect();
    // Both copies of some entries: the record headers are left. And both copies of all of them.
    let double = (0..8).map(|rank| vec![8 + rank, (blocks - 3) * 8 + rank]);
    let all = [sectors_of(1).chain(sectors_of(blocks - 3)).collect::<Vec<_>>()];
    let mut rng = Rng::with_seed(1);
    for sectors in single.into_iter().chain(double).chain(all) {
        for kind in 0..4 {
            let rotten = disk.after_crash(super::faulty::Fate::Kept);
            rotten.alter(|bytes| {
                for sector in &sectors {
                    let sector = &mut bytes[sector * SECTOR..(sector + 1) * SECTOR];
                    match kind {
                        0 => sector.fill(0),
                        1 => rng.fill(sector),
                        2 => sector[rng.usize(..SECTOR)] ^= 1 << rng.u8(..8),
                        _ => sector.rotate_left(128),
                    }
                }
            });
            let context = format!("sectors {sectors:?}, kind {kind}");
            let check = |store: &RingStore| {
                assert_eq!(store.list().unwrap(), wanted, "{context}");
                for ((name, _), content) in wanted.iter().zip(&contents) {
                    assert!(store.get(name, 0..u64::MAX).unwrap() == *content, "{context}");
                }
            };
            check(&RingStore::open_on(rotten.medium(), None).unwrap());
            // A writer writes it again: then the other copies may go.
            let store = RingStore::open_on(rotten.medium(), None).unwrap();
            store.delete(&name(999, 0)).unwrap();
            check(&store);
            rotten.alter(|bytes| bytes[(blocks - 3) * 4096..].fill(0));
            check(&RingStore::open_on(rotten.medium(), None).unwrap());
            put(&store, 7, 0, 36_000).unwrap();
            assert_eq!(RingStore::open_on(rotten.medium(), None).unwrap().list().unwrap(), store.list().unwrap());
        }
    }
}

#[test]
fn without_superblocks_there_is_no_store_and_nothing_is_made() {
    let (disk, store) = ring();
    put(&store, 1, 0, 100).unwrap();
    disk.alter(|bytes| {
        bytes[100] ^= 1;
        bytes[TINY_BYTES - 100] ^= 1;
    });
    assert!(text(RingStore::open_on(disk.medium(), None)).contains("both of whose superblocks are damaged"));
    assert!(text(RingStore::create_on(disk.medium(), &tiny(), [2; 16])).contains("damaged"));
    disk.alter(|bytes| {
        bytes[..4096].fill(0);
        bytes[TINY_BYTES - 4096..].fill(7);
    });
    assert!(text(RingStore::open_on(disk.medium(), None)).contains("there was a store"));
    assert!(text(RingStore::create_on(disk.medium(), &tiny(), [2; 16])).contains("there was a store"));
    disk.alter(|bytes| bytes[4096..8192].fill(0));
    assert!(text(RingStore::open_on(disk.medium(), None)).contains("there is no store"));
}

#[test]
fn what_a_former_store_left_is_not_taken_for_an_object() {
    let (disk, store) = ring();
    for segment in 1..=4 {
        put(&store, segment, 0, 30_000).unwrap();
    }
    disk.alter(|bytes| {
        bytes[..8192].fill(0);
        bytes[TINY_BYTES - 4096..].fill(0);
    });
    let store = RingStore::create_on(disk.medium(), &tiny(), [2; 16]).unwrap();
    // Damaged in both copies: the record headers of the former store are still there.
    disk.alter(|bytes| {
        bytes[4096..12288].fill(0);
        bytes[TINY_BYTES - 12288..TINY_BYTES - 4096].fill(0);
    });
    assert!(RingStore::open_on(disk.medium(), None).unwrap().list().unwrap().is_empty());
    assert!(store.list().unwrap().is_empty());
}

#[test]
fn a_reader_sees_what_is_put_and_never_bytes_of_another() {
    let (disk, writer) = ring();
    let reader = RingStore::open_on(disk.medium(), None).unwrap();
    put(&writer, 1, 0, 36_000).unwrap();
    assert_eq!(reader.length(&name(1, 0)).unwrap(), 36_000);
    put(&writer, 2, 0, 10).unwrap();
    assert_eq!(reader.list().unwrap().len(), 2);
    let (done, newest, seen) = (AtomicBool::new(false), AtomicU64::new(2), AtomicU64::new(0));
    std::thread::scope(|scope| {
        // Another process, as far as it knows, and a thread of the writer's.
        for store in [&reader, &writer] {
            let (done, newest, seen) = (&done, &newest, &seen);
            scope.spawn(move || {
                let mut rng = Rng::with_seed(3);
                while !done.load(Ordering::Relaxed) {
                    let newest = newest.load(Ordering::Relaxed);
                    let name = name(newest.saturating_sub(rng.u64(..6)).max(1), 0);
                    match store.get(&name, 0..u64::MAX) {
                        Ok(bytes) => {
                            assert!(bytes == content(&name, bytes.len(), 0), "bytes of {name}");
                            seen.fetch_add(1, Ordering::Relaxed);
                        }
                        Err(StoreError::Missing { .. }) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
        for segment in 3..600 {
            put(&writer, segment, 0, 36_000 - (segment % 7) as usize * 4000).unwrap();
            newest.store(segment, Ordering::Relaxed);
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(seen.into_inner() > 100);
}

#[test]
fn an_audit_beside_a_writer_raises_no_alarm() {
    let (disk, writer) = ring();
    let reader = RingStore::open_on(disk.medium(), None).unwrap();
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for segment in (1..).take_while(|_| !done.load(Ordering::Relaxed)) {
                put(&writer, segment, 1, 100).unwrap();
                put(&writer, segment, 0, 30_000).unwrap();
                writer.delete(&name(segment, 1)).unwrap();
            }
        });
        for _ in 0..20 {
            let wrong = reader.audit();
            done.fetch_or(wrong.as_ref().map_or(true, |wrong| !wrong.is_empty()), Ordering::Relaxed);
            assert_eq!(wrong.unwrap(), [""; 0]);
        }
        done.store(true, Ordering::Relaxed);
    });
    disk.alter(|bytes| bytes[5000] ^= 1);
    assert_eq!(
        reader.audit().unwrap(),
        ["the first copy of the store's catalogue, in block 1: 1 of 32 entries are damaged"]
    );
}

#[test]
fn a_store_belongs_to_one_volume_and_must_hold_it() {
    let (disk, _) = ring();
    let other = Superblock { uuid: Uuid([0x99; 16]), ..tiny() };
    let rekeyed = Superblock { key: Key([1; 32]), ..tiny() };
    assert!(text(RingStore::create_on(disk.medium(), &other, [2; 16])).contains("belongs to volume"));
    assert!(text(RingStore::open_on(disk.medium(), Some(&rekeyed))).contains("another key"));
    let forked = Superblock { history: Uuid([5; 16]), ..tiny() };
    assert!(RingStore::create_on(disk.medium(), &forked, [2; 16]).is_ok());
    let small = FaultyDisk::new(TINY_BYTES - 4096);
    let refused = text(RingStore::create_on(small.medium(), &tiny(), [1; 16]));
    assert!(refused.contains("too small") && refused.contains(&TINY_BYTES.to_string()), "{refused}");
    assert!(small.writes() == 0 && small.bytes() < TINY_BYTES as u64);
}

fn provision<'a>(geometry: &'a Geometry, primary: &'a Path, bytes: Option<u64>) -> Provision<'a> {
    Provision { geometry, primary, bytes, force: false }
}

#[test]
fn a_file_is_made_with_a_size_and_claimed_once() {
    let scratch = tempfile::tempdir().unwrap();
    let (path, primary) = (scratch.path().join("ring"), scratch.path().join("primary"));
    fs::write(&primary, [0; 8192]).unwrap();
    let (volume, spec) = (tiny(), Spec::File(path.clone()));
    let prepare = |bytes| prepare_store(&spec, &provision(&volume.geometry, &primary, bytes));
    assert!(text(prepare(None)).contains("--backing-size"));
    assert!(text(prepare(Some(40_960))).contains("too small") && !path.exists());
    let size = TINY_BYTES as u64 + 4096;
    prepare(Some(size + 100)).unwrap();
    assert_eq!(fs::metadata(&path).unwrap().len(), size);
    prepare(None).unwrap();
    assert!(text(prepare(Some(size + 4096))).contains("--backing-size must be that"));
    assert!(text(open_store(&spec, None).map(drop)).contains("there is no store"));
    let store = RingStore::create(RingKind::File, &path, &volume).unwrap();
    put(&store, 1, 0, 30_000).unwrap();
    drop(store);
    assert!(text(prepare(None)).contains("belongs to volume"));
    let itself = Spec::File(primary.clone());
    let itself = prepare_store(&itself, &provision(&volume.geometry, &primary, None));
    assert!(text(itself).contains("own primary"));
    // A volume on it is not overwritten, unless that was said.
    fs::write(&path, vec![0; size as usize]).unwrap();
    OpenOptions::new().write(true).open(&path).unwrap().write_all_at(&volume.encode(), 0).unwrap();
    assert!(text(prepare(None)).contains("--force"));
    let forced = Provision { force: true, ..provision(&volume.geometry, &primary, None) };
    prepare_store(&spec, &forced).unwrap();
    for (kind, path, what) in
        [(RingKind::Device, path.as_path(), "not a block device"), (RingKind::File, scratch.path(), "regular file")]
    {
        assert!(text(RingStore::open(kind, path, None)).contains(what));
    }
}

#[test]
fn a_file_has_one_writer_and_keeps_off_the_volumes_device() {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("ring");
    fs::File::create(&path).unwrap().set_len(TINY_BYTES as u64).unwrap();
    let volume = tiny();
    let first = RingStore::create(RingKind::File, &path, &volume).unwrap();
    let second = RingStore::open(RingKind::File, &path, Some(&volume)).unwrap();
    put(&first, 1, 0, 30_000).unwrap();
    assert!(text(put(&second, 2, 0, 10)).contains("in use"));
    assert!(text(second.delete(&name(1, 0))).contains("in use"));
    assert_eq!(segments(&second), [(1, 0)]);
    // A writer that is ending is waited for.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            std::thread::sleep(std::time::Duration::from_millis(100));
            drop(first);
        });
        put(&second, 2, 0, 10).unwrap();
    });
    second.forbid_device(std::os::unix::fs::MetadataExt::dev(&fs::metadata(&path).unwrap()));
    assert!(text(put(&second, 3, 0, 10)).contains("own device"));
    assert_eq!(second.spec(), format!("file:{}", path.display()));
    assert!(RingStore::recognise(&path).unwrap().contains(&volume.uuid.to_string()));
    // Another store under the same path is not this one.
    drop(second);
    let other = Superblock { uuid: Uuid([0x99; 16]), ..tiny() };
    let reader = RingStore::open(RingKind::File, &path, Some(&volume)).unwrap();
    fs::rename(&path, scratch.path().join("away")).unwrap();
    fs::File::create(&path).unwrap().set_len(TINY_BYTES as u64).unwrap();
    RingStore::create(RingKind::File, &path, &other).unwrap();
    assert!(text(put(&reader, 3, 0, 10)).contains("another store"));
    assert_eq!(segments(&reader), [(1, 0), (2, 0)]);
    let store: Arc<dyn Store> = Arc::new(reader);
    assert_eq!(store.length(&name(1, 0)).unwrap(), 30_000);
}

#[test]
fn a_file_that_was_removed_or_replaced_is_no_store() {
    let scratch = tempfile::tempdir().unwrap();
    let (path, away) = (scratch.path().join("ring"), scratch.path().join("away"));
    fs::write(&path, vec![0; TINY_BYTES]).unwrap();
    let store = RingStore::create(RingKind::File, &path, &tiny()).unwrap();
    put(&store, 1, 0, 1000).unwrap();
    let reader = RingStore::open(RingKind::File, &path, Some(&tiny())).unwrap();
    fs::rename(&path, &away).unwrap();
    for refused in [text(put(&store, 2, 0, 1000)), text(store.delete(&name(1, 0)))] {
        assert!(refused.contains("removed") && refused.contains("put it back"), "{refused}");
    }
    // Neither where it was read from nor where it is written to: also when the bytes are the same.
    fs::copy(&away, &path).unwrap();
    for store in [&store, &reader] {
        let refused = text(put(store, 2, 0, 1000));
        assert!(refused.contains("replaced"), "{refused}");
    }
    fs::rename(&away, &path).unwrap();
    put(&store, 2, 0, 1000).unwrap();
    assert_eq!(segments(&store), [(1, 0), (2, 0)]);
}
