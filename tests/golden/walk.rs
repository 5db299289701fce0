//! Where the walk along a segment's batches ends: the validity rule of `docs/format.md`, a condition at a time.

use salvol::format::*;

use super::{batch_header, mark, padded, segment_header};

/// A segment of three batches, at offsets 1, 2 and 5, whose headers `change` may make others before they are signed.
fn segment(change: impl Fn(usize, &mut BatchHeader)) -> Vec<u8> {
    let volume = Superblock::example();
    let mut image = vec![0; volume.geometry.segment_bytes()];
    segment_header().encode(&volume, &mut image[..BLOCK_BYTES]);
    let (data, synch) = (vec![0x5a; BLOCK_BYTES], padded(&mark().encode()));
    let second = vec![Entry::write(Block(17), block_crc(&data)), Entry::synch(701, block_crc(&synch))];
    let batches =
        [(1, vec![Entry::open(4)], vec![]), (2, second, [data, synch].concat()), (5, vec![Entry::noop()], vec![])];
    let mut predecessor = segment_header().predecessor;
    for (rank, (offset, entries, data)) in batches.into_iter().enumerate() {
        let position = Position(700 + rank as u64);
        let mut header = BatchHeader { offset: Offset(offset), position, predecessor, ..batch_header() };
        change(rank, &mut header);
        let at = offset as usize * BLOCK_BYTES;
        predecessor = header.encode(&volume, &entries, &mut image[at..at + BLOCK_BYTES]);
        image[at + BLOCK_BYTES..][..data.len()].copy_from_slice(&data);
    }
    image
}

fn walked(image: &[u8], data_from: u64) -> Walk {
    walk_segment(image, &Superblock::example(), &segment_header(), Position(data_from))
}

#[test]
fn batches_that_continue_each_other_are_the_segment() {
    let image = segment(|_, _| {});
    let walk = walked(&image, 0);
    let (_, last) = BatchHeader::chain_in(&image[5 * BLOCK_BYTES..]);
    assert_eq!((walk.end, walk.next_position(), walk.chain()), (Offset(6), Position(703), last));
    assert_eq!((walk.summary.batches.len(), walk.summary.entries.len(), walk.summary.synchs), (3, 4, vec![mark()]));
    assert_eq!(walk.last.map(|last| last.position), Some(Position(702)));
    assert_eq!((walk.durable_through, walk.ends_with_open), (Position(699), false));
    let first = walked(&image[..2 * BLOCK_BYTES], 0);
    assert_eq!((first.end, first.ends_with_open), (Offset(2), true));
    let none = walked(&image[..BLOCK_BYTES], 0);
    assert_eq!(
        (none.end, none.chain(), none.durable_through),
        (Offset(1), segment_header().predecessor, Position(690))
    );
    assert!(none.last.is_none() && none.summary.batches.is_empty());
}

#[test]
fn a_batch_that_does_not_continue_the_one_before_ends_it() {
    type Change = fn(&mut BatchHeader);
    let changes: [(Change, u32); 7] = [
        (|header| header.segment = SegmentNumber(8), 2),
        (|header| header.offset = Offset(3), 2),
        (|header| header.position = Position(702), 2),
        (|header| header.epoch = 3, 2),
        (|header| header.predecessor = Checksum([0x44; 16]), 2),
        // Of what comes after a later epoch all must be of it.
        (|header| header.epoch = 5, 5),
        (|header| header.durable_through = Position(1), 6),
    ];
    for (rank, (change, end)) in changes.into_iter().enumerate() {
        let image = segment(|at, header| {
            if at == 1 {
                change(header)
            }
        });
        assert_eq!(walked(&image, 0).end, Offset(end), "change {rank}");
    }
    let image = segment(|at, header| header.epoch += at as u64);
    assert_eq!((walked(&image, 0).end, walked(&image, 0).summary.epoch), (Offset(6), 6));
}

/// What a synch mark says goes into the summary, so it is verified in any case.
#[test]
fn rotten_data_ends_it_where_data_is_verified() {
    for (block, data_from, end) in [(3, 701, 2), (3, 702, 6), (4, 701, 2), (4, 702, 2)] {
        let mut image = segment(|_, _| {});
        image[block * BLOCK_BYTES] ^= 1;
        assert_eq!(walked(&image, data_from).end, Offset(end), "block {block}, from {data_from} on");
    }
}

#[test]
fn a_batch_that_is_cut_is_none() {
    let (image, volume) = (segment(|_, _| {}), Superblock::example());
    for (end, batches) in [(2, 1), (3, 1), (4, 1), (5, 2), (6, 3)] {
        for first in [0, 1] {
            let run = &image[first * BLOCK_BYTES..end * BLOCK_BYTES];
            let found = summary_from_run(run, Offset(first as u32), &volume).unwrap();
            assert_eq!(found.batches.len(), batches, "blocks {first} to {end}");
        }
    }
    assert!(summary_from_run(&image[..BLOCK_BYTES], Offset(0), &volume).is_err());
    assert_eq!(summary_from_image(&image, &volume).unwrap(), walked(&image, 0).summary);
    let empty = [&image[..BLOCK_BYTES], &vec![0; BLOCK_BYTES]].concat();
    assert!(matches!(summary_from_image(&empty, &volume), Err(FormatError::Field { field: "batches", .. })));
}
