//! The worked examples of the document are what the encoder writes.

use super::faulty::FaultyDisk;
use super::ring_crash::{TINY_BYTES, name, tiny};
use super::volume;
use crate::archive::{Extent, OBJECT_HEADER_BYTES, Packing, RingStore, Store, encode_object};
use crate::format::{BLOCK_BYTES, BatchRecord, Checksum, Entry, Offset, Position, SegmentNumber, Summary};

/// Hex lines of sixteen bytes, runs of equal lines as one `*`, as `hexdump -C` shows them.
fn dump(bytes: &[u8], from: usize) -> String {
    let mut lines = Vec::new();
    let mut last: &[u8] = &[];
    for (rank, row) in bytes.chunks(16).enumerate() {
        if row == last {
            if lines.last().is_none_or(|line| line != "*") {
                lines.push("*".to_owned());
            }
            continue;
        }
        last = row;
        let hex: Vec<_> = row.iter().map(|byte| format!("{byte:02x}")).collect();
        lines.push(format!("{:06x}  {}", from + rank * 16, hex.join(" ")));
    }
    lines.join("\n")
}

/// The object of a segment of 64 blocks, zeros but for its summary: one batch with one entry that says nothing.
fn example() -> Vec<u8> {
    let volume = volume(64);
    let summary = Summary {
        segment: SegmentNumber(3),
        epoch: 2,
        first_position: Position(1000),
        oldest_needed: SegmentNumber(1),
        predecessor: Checksum([0x44; 16]),
        last_checksum: Checksum([0x55; 16]),
        volume_blocks: volume.geometry.volume_blocks,
        batches: vec![BatchRecord::new(Offset(1), 1, 0, 2, 41, 40)],
        entries: vec![Entry::noop()],
        synchs: Vec::new(),
    };
    let mut image = vec![0; volume.geometry.segment_bytes()];
    let at = image.len() - BLOCK_BYTES;
    summary.encode(&volume, &mut image[at..]);
    encode_object(&volume, &summary, Extent::WHOLE, &image, Packing::Raw).unwrap()
}

#[test]
fn the_worked_example_is_true() {
    let document = include_str!("../../../docs/format.md");
    let object = example();
    let table = object.len() - 3 * 12 - 56 - 8;
    let wanted = [
        dump(&object[..OBJECT_HEADER_BYTES], 0),
        dump(&object[OBJECT_HEADER_BYTES..OBJECT_HEADER_BYTES + 16], OBJECT_HEADER_BYTES),
        dump(&object[table..], table),
    ];
    let missing: Vec<_> = wanted.into_iter().filter(|block| !document.contains(block)).collect();
    assert!(missing.is_empty(), "docs/format.md lacks:\n{}", missing.join("\n\n"));
}

#[test]
fn the_worked_example_of_the_ring_is_true() {
    let document = include_str!("../../../docs/format.md");
    let disk = FaultyDisk::new(TINY_BYTES);
    let store = RingStore::create_on(disk.medium(), &tiny(), [0x66; 16]).unwrap();
    store.put(&name(3, 0), b"object").unwrap();
    store.put(&name(2, 0), b"gone").unwrap();
    store.delete(&name(2, 0)).unwrap();
    let mut wanted = Vec::new();
    disk.alter(|bytes| {
        let second = TINY_BYTES - 3 * BLOCK_BYTES;
        assert_eq!(bytes[BLOCK_BYTES..3 * BLOCK_BYTES], bytes[second..second + 2 * BLOCK_BYTES]);
        assert_eq!(bytes[..BLOCK_BYTES], bytes[TINY_BYTES - BLOCK_BYTES..]);
        wanted = vec![
            dump(&bytes[..BLOCK_BYTES], 0),
            dump(&bytes[BLOCK_BYTES..BLOCK_BYTES + 256], BLOCK_BYTES),
            dump(&bytes[3 * BLOCK_BYTES..3 * BLOCK_BYTES + 160], 3 * BLOCK_BYTES),
        ];
    });
    let missing: Vec<_> = wanted.into_iter().filter(|block| !document.contains(block)).collect();
    assert!(missing.is_empty(), "docs/format.md lacks:\n{}", missing.join("\n\n"));
}
