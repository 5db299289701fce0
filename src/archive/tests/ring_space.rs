//! Room in a ring that is used for years: whole segments, and the parts that come and go between them.

use std::collections::HashMap;
use std::io;
use std::sync::{Arc, Mutex};

use fastrand::Rng;

use super::ring_crash::name;
use crate::archive::ring::{Disk, Medium};
use crate::archive::{OBJECT_HEADER_BYTES, RingStore, Store, StoreError, object_bytes_max};
use crate::format::{BLOCK_BYTES, Geometry, Superblock};
use crate::io::Buffer;
use crate::log::limits::PARTS_MAX;

/// A disk that keeps only the blocks that are not zeros: so objects of zeros cost nothing.
#[derive(Clone)]
struct Sparse {
    blocks: u64,
    written: Arc<Mutex<HashMap<u64, Vec<u8>>>>,
}

impl Disk for Sparse {
    fn read_at(&self, offset: u64, buffer: &Buffer) -> io::Result<()> {
        let written = self.written.lock().unwrap();
        buffer.zero();
        for rank in 0..buffer.len() / BLOCK_BYTES {
            if let Some(bytes) = written.get(&(offset / BLOCK_BYTES as u64 + rank as u64)) {
                buffer.copy_from(rank * BLOCK_BYTES, bytes);
            }
        }
        Ok(())
    }

    fn write_at(&self, offset: u64, buffer: &Buffer) -> io::Result<()> {
        let mut written = self.written.lock().unwrap();
        for (rank, bytes) in buffer.bytes().chunks(BLOCK_BYTES).enumerate() {
            let at = offset / BLOCK_BYTES as u64 + rank as u64;
            assert!(at < self.blocks);
            if bytes.iter().all(|byte| *byte == 0) {
                written.remove(&at);
            } else {
                written.insert(at, bytes.to_vec());
            }
        }
        Ok(())
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.blocks * BLOCK_BYTES as u64
    }

    fn device(&self) -> Option<u64> {
        None
    }
}

impl Medium for Sparse {
    fn look(&self) -> Result<Arc<dyn Disk>, StoreError> {
        Ok(Arc::new(self.clone()))
    }

    fn own(&self) -> Result<Arc<dyn Disk>, StoreError> {
        Ok(Arc::new(self.clone()))
    }

    fn spec(&self) -> String {
        "simulated".to_owned()
    }
}

fn wide(segment_blocks: u32, working_set: u32) -> Superblock {
    let slots = working_set + 4;
    let geometry = Geometry {
        primary_blocks: 512 + u64::from(slots) * u64::from(segment_blocks),
        volume_blocks: 10,
        segment_blocks,
        slots,
        working_set,
    };
    Superblock { geometry, ..super::volume(segment_blocks) }
}

/// The smallest ring of the volume, as the refusal of a smaller one says.
fn smallest(volume: &Superblock) -> RingStore {
    let mut blocks = 1;
    loop {
        let disk = Sparse { blocks, written: Arc::default() };
        let refused = match RingStore::create_on(Box::new(disk), volume, [1; 16]) {
            Ok(store) => return store,
            Err(error) => error.to_string(),
        };
        let bytes = refused.rsplit("takes ").next().and_then(|rest| rest.strip_suffix(" bytes"));
        blocks = bytes.unwrap().parse::<u64>().unwrap() / BLOCK_BYTES as u64;
    }
}

/// How well what is written compresses.
#[derive(Debug, Clone, Copy)]
enum Data {
    Random,
    Varied,
    /// One segment well, the next not at all.
    Mixed,
    /// For a long time well, then for a long time not at all.
    Changing,
}

/// A daemon: puts parts of the open segment, merges them when they are many, puts the segment, deletes its parts.
struct Daemon<'a> {
    store: &'a RingStore,
    bytes_max: usize,
    segment_blocks: usize,
    rng: Rng,
    operations: u64,
}

impl Daemon<'_> {
    fn object(&self, log_blocks: usize, percent: usize) -> usize {
        // The summary, a table, and with what does not compress what zstd adds.
        let packed = (log_blocks + 1) * BLOCK_BYTES * percent / 100;
        (OBJECT_HEADER_BYTES + packed + 128 + log_blocks).min(self.bytes_max)
    }

    fn put(&mut self, segment: u64, part: u32, bytes: usize) {
        self.operations += 1;
        let put = self.store.put(&name(segment, part), &vec![0; bytes]);
        put.unwrap_or_else(|error| panic!("after {} changes: {error}", self.operations));
    }

    fn delete(&mut self, segment: u64, parts: &mut Vec<u32>) {
        for part in parts.drain(..) {
            self.operations += 1;
            self.store.delete(&name(segment, part)).unwrap();
        }
    }

    /// The parts of a segment while it is open; returns those that are there when it is sealed.
    fn parts(&mut self, segment: u64, percent: usize) -> Vec<u32> {
        let idle = self.rng.u8(..3) == 0;
        let count = self.rng.usize(0..if idle { 100 } else { 4 });
        let (mut parts, mut held) = (Vec::new(), 0);
        for part in 1..=count as u32 {
            let run = self.rng.usize(2..(self.segment_blocks / count.max(2)).max(3));
            held += run;
            if held > self.segment_blocks {
                break;
            }
            let merges = parts.len() >= PARTS_MAX;
            self.put(segment, part, self.object(if merges { held } else { run }, percent));
            if merges {
                self.delete(segment, &mut parts);
            }
            parts.push(part);
        }
        parts
    }

    fn live(&mut self, data: Data, changes: u64) {
        let mut next = 1;
        for turn in 0.. {
            if self.operations > changes {
                return;
            }
            // Segments that threads archive together are there in any order.
            let mut together: Vec<u64> = (next..next + self.rng.u64(1..=4)).collect();
            next += together.len() as u64;
            let percent = match data {
                Data::Random => 100,
                Data::Varied => self.rng.usize(3..100),
                Data::Mixed => [100, 10][self.rng.usize(..2)],
                Data::Changing if turn % 200 < 100 => self.rng.usize(1..40),
                Data::Changing => 100,
            };
            let open = together[0];
            let mut parts = self.parts(open, percent);
            self.rng.shuffle(&mut together);
            for segment in together {
                let bytes = if percent == 100 { self.bytes_max } else { self.object(self.segment_blocks, percent) };
                self.put(segment, 0, bytes);
            }
            self.delete(open, &mut parts);
        }
    }
}

/// The size that a refusal names is enough for ever, whatever comes and goes: a segment that found no room would never
/// find any, since nothing else makes room, and the volume's writers would wait for it.
#[test]
fn the_smallest_ring_takes_parts_and_segments_for_ever() {
    for (segment_blocks, working_set) in [(64, 8), (256, 8), (64, 128)] {
        for data in [Data::Random, Data::Varied, Data::Mixed, Data::Changing] {
            let volume = wide(segment_blocks, working_set);
            let store = smallest(&volume);
            let bytes_max = object_bytes_max(volume.geometry.segment_bytes()) as usize;
            let (rng, segment_blocks) = (Rng::with_seed(1), segment_blocks as usize);
            let mut daemon = Daemon { store: &store, bytes_max, segment_blocks, rng, operations: 0 };
            daemon.live(data, 10_000);
            let fill = store.fill().unwrap().unwrap();
            assert!(fill.used <= fill.capacity);
        }
    }
}
