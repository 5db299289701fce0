//! Bytes that nobody wrote, in every structure of a ring, also with checksums that are right: an error or an empty place,
//! never a panic, never bytes of another object.

use fastrand::Rng;

use super::faulty::{Fate, FaultyDisk};
use super::ring_crash::{TINY_BYTES, content, name, tiny};
use crate::archive::{RingStore, Store};
use crate::format::{BLOCK_BYTES, Checksum};

const STORE: [u8; 16] = [1; 16];
const ENTRY_BYTES: usize = 128;

/// A ring of the tiny volume with objects of several sizes, one of them in pieces, and entries that were freed.
fn ring() -> FaultyDisk {
    let disk = FaultyDisk::new(TINY_BYTES);
    let store = RingStore::create_on(disk.medium(), &tiny(), STORE).unwrap();
    for (segment, part, bytes) in [(1, 0, 36_000), (2, 0, 9000), (3, 0, 30_000), (4, 1, 5000), (4, 2, 100)] {
        let name = name(segment, part);
        store.put(&name, &content(&name, bytes, 0)).unwrap();
    }
    store.delete(&name(2, 0)).unwrap();
    disk
}

/// Changes a few bytes, to anything or to what is likely to hurt.
fn scramble(bytes: &mut [u8], rng: &mut Rng) {
    for _ in 0..rng.usize(1..4) {
        let (at, width) = (rng.usize(..bytes.len()), [1, 2, 4, 8][rng.usize(..4)]);
        let value = [0, u64::MAX, 1 << 62, 1 << 48, rng.u64(..200), rng.u64(..)][rng.usize(..6)].to_le_bytes();
        for (byte, value) in bytes[at / width * width..].iter_mut().zip(&value[..width]) {
            *byte = *value;
        }
    }
}

/// Whoever reads, and whoever writes, takes what is there.
fn use_it(disk: &FaultyDisk, context: &str) {
    let Ok(store) = RingStore::open_on(disk.medium(), None) else { return };
    for _ in 0..2 {
        for (name, bytes) in store.list().unwrap_or_default() {
            if let Ok(read) = store.get(&name, 0..u64::MAX)
                && bytes == read.len() as u64
                && bytes < TINY_BYTES as u64
            {
                let _ = store.get(&name, bytes / 2..bytes * 2);
            }
        }
        let _ = store.fill();
        let fresh = name(9, 0);
        if store.put(&fresh, &content(&fresh, 20_000, 0)).is_ok() {
            assert!(store.get(&fresh, 0..u64::MAX).unwrap() == content(&fresh, 20_000, 0), "{context}");
        }
        let _ = store.delete(&name(1, 0));
    }
}

#[test]
fn superblocks_of_anything_are_refused_or_used_as_they_say() {
    let disk = ring();
    for seed in 0..4000 {
        let mut rng = Rng::with_seed(seed);
        let hostile = disk.after_crash(Fate::Kept);
        hostile.alter(|bytes| {
            let mut block = bytes[..BLOCK_BYTES].to_vec();
            // The ring's own fields, or the volume's.
            let part = if rng.bool() { 0..128 } else { 0..BLOCK_BYTES - 16 };
            scramble(&mut block[part], &mut rng);
            if rng.u8(..4) > 0 {
                let checksum = Checksum::plain(&block[..BLOCK_BYTES - 16]);
                block[BLOCK_BYTES - 16..].copy_from_slice(&checksum.0);
            }
            bytes[..BLOCK_BYTES].copy_from_slice(&block);
            match rng.u8(..3) {
                0 => bytes[TINY_BYTES - BLOCK_BYTES..].copy_from_slice(&block),
                1 => bytes[TINY_BYTES - BLOCK_BYTES..].fill(0),
                _ => {}
            }
        });
        use_it(&hostile, &format!("seed {seed}"));
    }
}

#[test]
fn entries_and_record_headers_of_anything_are_errors_at_most() {
    let disk = ring();
    let key = tiny().key;
    let mut written = 0;
    for seed in 0..4000 {
        let mut rng = Rng::with_seed(seed);
        let hostile = disk.after_crash(Fate::Kept);
        hostile.alter(|bytes| {
            for _ in 0..rng.usize(1..4) {
                let slot = rng.u32(..6);
                let first = BLOCK_BYTES + slot as usize * ENTRY_BYTES;
                let second = TINY_BYTES - 3 * BLOCK_BYTES + slot as usize * ENTRY_BYTES;
                let mut entry = bytes[first..first + ENTRY_BYTES].to_vec();
                scramble(&mut entry[..ENTRY_BYTES - 16], &mut rng);
                if rng.u8(..4) > 0 {
                    let checked = &entry[..ENTRY_BYTES - 16];
                    let checksum = Checksum::keyed(&key, &[&STORE, &slot.to_le_bytes(), checked]);
                    entry[ENTRY_BYTES - 16..].copy_from_slice(&checksum.0);
                }
                let copies = rng.u8(1..8);
                // Record headers begin with 32 bytes of their own.
                let header = (3 + rng.usize(..TINY_BYTES / BLOCK_BYTES - 6)) * BLOCK_BYTES + 32;
                for (bit, at) in [first, second, header].into_iter().enumerate() {
                    if copies >> bit & 1 == 1 {
                        bytes[at..at + ENTRY_BYTES].copy_from_slice(&entry);
                    }
                }
                written += 1;
            }
        });
        use_it(&hostile, &format!("seed {seed}"));
    }
    assert!(written > 4000);
}

/// Zeros that cost nothing, with a checksum that is right: billions of entries, all of them damaged.
#[test]
fn a_superblock_with_more_entries_than_any_ring_has_is_refused() {
    let disk = ring();
    for (entries, fits) in [(1_u64 << 20, true), ((1 << 20) + 32, false), ((1 << 32) - 32, false)] {
        let hostile = disk.after_crash(Fate::Kept);
        hostile.alter(|bytes| {
            let catalogue = entries / 32;
            let blocks = 2 * catalogue + 2 + 106;
            let fields = [(56, blocks), (64, entries), (80, 1 + catalogue), (88, blocks - 1 - catalogue)];
            for (at, value) in fields {
                bytes[at..at + 8].copy_from_slice(&value.to_le_bytes());
            }
            let checksum = Checksum::plain(&bytes[..BLOCK_BYTES - 16]);
            bytes[BLOCK_BYTES - 16..BLOCK_BYTES].copy_from_slice(&checksum.0);
            bytes[TINY_BYTES - BLOCK_BYTES..].fill(0);
        });
        let refused = RingStore::open_on(hostile.medium(), None).err().unwrap().to_string();
        // A disk of so many blocks it has not, and that is all that is wrong with the first.
        assert_eq!(refused.contains("the rest is missing"), fits, "{refused}");
        assert_eq!(refused.contains("entries"), !fits, "{refused}");
    }
}
