//! A long archive is listed from the headers of its objects: no data is read, and summaries only where points were marked.
//!
//! `SALVOL_OBJECTS` says how many objects (`make listing OBJECTS=10000`).
#![allow(clippy::unwrap_used, reason = "a panic is the failure")]

use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use salvol::archive::{
    Extent, OBJECT_HEADER_BYTES, ObjectName, Packing, Spec, Store, StoreError, create_store, encode_object, open_store,
};
use salvol::format::*;
use salvol::history::Source;

const SEGMENT_BLOCKS: u32 = 64;
const WORKING_SET: u64 = 8;
const SECOND_NS: i64 = 1_000_000_000;

/// Counts the bytes that are read.
struct Counting(Arc<dyn Store>, AtomicU64);

impl Store for Counting {
    fn put(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
        self.0.put(name, bytes)
    }

    fn get(&self, name: &ObjectName, range: Range<u64>) -> Result<Vec<u8>, StoreError> {
        let bytes = self.0.get(name, range)?;
        self.1.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        Ok(bytes)
    }

    fn length(&self, name: &ObjectName) -> Result<u64, StoreError> {
        self.0.length(name)
    }

    fn list(&self) -> Result<Vec<(ObjectName, u64)>, StoreError> {
        self.0.list()
    }

    fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.0.delete(name)
    }

    fn spec(&self) -> String {
        self.0.spec()
    }
}

/// Segment `number` of a volume that writes a batch of data a second, with a mark in the last when it is `marked`.
fn object(volume: &Superblock, number: u64, marked: bool) -> (Summary, Vec<u8>) {
    let checksum = |number: u64| Checksum(u128::from(number).to_le_bytes());
    let batches = 10;
    let first = Position((number - 1) * batches + 1);
    let mut summary = Summary {
        segment: SegmentNumber(number),
        epoch: 1,
        first_position: first,
        oldest_needed: SegmentNumber(number.saturating_sub(WORKING_SET).max(1)),
        predecessor: checksum(number - 1),
        last_checksum: checksum(number),
        volume_blocks: volume.geometry.volume_blocks,
        batches: Vec::new(),
        entries: Vec::new(),
        synchs: Vec::new(),
    };
    for rank in 0..batches {
        let time = (first.0 + rank) as i64 * SECOND_NS;
        summary.batches.push(BatchRecord::new(Offset(1 + 6 * rank as u32), 5, 5, 1, time, time));
        summary.entries.extend((0..5).map(|block| Entry::write(Block(block), number as u32)));
    }
    if marked {
        let point = first.0 + batches - 1;
        let label = format!("day {number}");
        summary.synchs.push(SynchMark { point, time_ns: point as i64 * SECOND_NS, label, info: String::new() });
    }
    let mut image = vec![0; volume.geometry.segment_bytes()];
    let at = image.len() - summary.blocks() as usize * BLOCK_BYTES;
    fastrand::Rng::with_seed(number).fill(&mut image[BLOCK_BYTES..at]);
    summary.encode(volume, &mut image[at..]);
    let object = encode_object(volume, &summary, Extent::WHOLE, &image, Packing::Raw).unwrap();
    (summary, object)
}

#[test]
fn a_long_archive_is_listed_from_headers() {
    let objects = std::env::var("SALVOL_OBJECTS").map_or(200, |text| text.parse().unwrap());
    let directory = tempfile::Builder::new().prefix("salvol-listing-test").tempdir_in("/var/tmp").unwrap();
    let spec = Spec::Directory(directory.path().join("archive"));
    let mut volume = Superblock::example();
    volume.parent_history = Uuid::default();
    volume.fork_position = Position(0);
    volume.geometry.segment_blocks = SEGMENT_BLOCKS;
    volume.geometry.working_set = WORKING_SET as u32;
    volume.backing = spec.to_string();
    create_store(&spec, &volume).unwrap();
    let store = open_store(&spec, Some(&volume)).unwrap().unwrap();
    let is_marked = |number: u64| number % 10 == 3;
    let history = directory.path().join("archive").join(volume.history.to_string());
    for number in 1..=objects {
        let (summary, object) = object(&volume, number, is_marked(number));
        let name = ObjectName { history: volume.history, segment: summary.segment, epoch: 1, part: 0 };
        if number == 1 {
            store.put(&name, &object).unwrap();
        } else {
            // What a put makes, without waiting for the disk each time.
            std::fs::write(history.join(format!("{number:016}.e00000001.p0.zst")), &object).unwrap();
        }
    }

    let counting = Arc::new(Counting(store, AtomicU64::new(0)));
    let started = Instant::now();
    let source = Source::open_store(volume.clone(), Some(counting.clone())).unwrap();
    let listed = started.elapsed();
    let points = source.points().unwrap();
    println!("{objects} objects: {listed:.2?} to list their names, {:.2?} with the points", started.elapsed());

    let whole = |number: &u64| is_marked(*number);
    let expected: Vec<String> = (1..=objects).filter(whole).map(|number| format!("day {number}")).collect();
    assert_eq!(points.points.iter().map(|point| point.label.clone()).collect::<Vec<_>>(), expected);
    assert_eq!(points.oldest_restorable.unwrap(), "1970-01-01T00:00:01Z");
    let marked = expected.len() as u64;
    let head = OBJECT_HEADER_BYTES as u64;
    // Of a marked one also what every reader begins with, both ends, in which the summary is.
    let allowed = objects * head + marked * (head + 64 * 1024);
    let read = counting.1.load(Ordering::Relaxed);
    assert!(read <= allowed, "{read} bytes were read to list {objects} objects, {allowed} would have done");

    let started = Instant::now();
    let label = format!("day {}", objects / 2 / 10 * 10 + 3);
    assert!(source.resolve(&label).unwrap().mark.is_some());
    println!("a label is found in {:.2?}", started.elapsed());
}
