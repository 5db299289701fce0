//! Every limit of the format from both sides: the last number that can be is taken, the first that cannot is refused, by the name of
//! its field, behind a checksum that is right.

use salvol::format::*;

use super::{batch_header, entries, mark, segment_header, summary};

/// What a `parse` says: nothing, or the name of the field that it refuses.
fn refused<T>(parsed: Result<T, FormatError>) -> Option<&'static str> {
    match parsed {
        Ok(_) => None,
        Err(FormatError::Field { field, .. }) => Some(field),
        Err(other) => panic!("{other}"),
    }
}

/// The example with `bytes` at `at`, signed again.
fn superblock_with(at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut block = Superblock::example().encode().to_vec();
    block[at..at + bytes.len()].copy_from_slice(bytes);
    let sum = Checksum::plain(&block[..BLOCK_BYTES - 16]);
    block[BLOCK_BYTES - 16..].copy_from_slice(&sum.0);
    block
}

/// A segment header of `volume` with `bytes` at `at`, signed again.
fn segment_with(volume: &Superblock, at: usize, bytes: &[u8]) -> Vec<u8> {
    let mut block = vec![0; BLOCK_BYTES];
    segment_header().encode(volume, &mut block);
    block[at..at + bytes.len()].copy_from_slice(bytes);
    let sum = Checksum::keyed(&volume.key, &[&block[..144]]);
    block[144..160].copy_from_slice(&sum.0);
    block
}

/// The batch header `header` with `entries`, and `bytes` at `at`, signed again.
fn batch_with(header: BatchHeader, entries: &[Entry], at: usize, bytes: &[u8]) -> Vec<u8> {
    let volume = Superblock::example();
    let mut block = vec![0; BLOCK_BYTES];
    header.encode(&volume, entries, &mut block);
    block[at..at + bytes.len()].copy_from_slice(bytes);
    let end = 160 + entries.len() * 16;
    let sum = Checksum::keyed(&volume.key, &[&block[..144], &block[160..end]]);
    block[144..160].copy_from_slice(&sum.0);
    block
}

#[test]
fn sizes_of_a_volume_fit_together() {
    let fine = Superblock::example().geometry;
    let (small, large) = (
        Geometry { segment_blocks: 8, volume_blocks: 63, ..fine },
        Geometry { segment_blocks: 65536, primary_blocks: 256 + 12 * 65536 + 1, ..fine },
    );
    let of_a_working_set = Geometry { volume_blocks: 100, ..fine };
    let taken = [
        fine,
        small,
        large,
        Geometry { primary_blocks: u64::from(u32::MAX), ..fine },
        Geometry { working_set: 2, ..of_a_working_set },
        Geometry { working_set: 10, ..fine },
        Geometry { slots: 4, working_set: 2, ..of_a_working_set },
        Geometry { volume_blocks: 1, ..fine },
        Geometry { volume_blocks: 8 * 64 - 1, ..fine },
    ];
    let refusals = [
        (Geometry { segment_blocks: 7, volume_blocks: 50, ..fine }, "segment blocks"),
        (Geometry { segment_blocks: 65537, primary_blocks: 256 + 12 * 65537 + 1, ..fine }, "segment blocks"),
        (Geometry { primary_blocks: 1 << 32, ..fine }, "primary blocks"),
        (Geometry { primary_blocks: 256 + 12 * 64, ..fine }, "slots"),
        (Geometry { slots: u32::MAX, ..large }, "slots"),
        (Geometry { working_set: 1, volume_blocks: 50, ..fine }, "working set"),
        (Geometry { working_set: 11, ..fine }, "working set"),
        (Geometry { slots: 3, working_set: 2, ..of_a_working_set }, "working set"),
        (Geometry { slots: 1, working_set: 2, ..of_a_working_set }, "working set"),
        (Geometry { slots: 0, working_set: 2, ..of_a_working_set }, "working set"),
        (Geometry { volume_blocks: 0, ..fine }, "volume blocks"),
        (Geometry { volume_blocks: 8 * 64, ..fine }, "volume blocks"),
    ];
    let all = taken.map(|geometry| (geometry, None)).into_iter();
    for (geometry, field) in all.chain(refusals.map(|(geometry, field)| (geometry, Some(field)))) {
        let volume = Superblock { geometry, ..Superblock::example() };
        assert_eq!(refused(geometry.check()), field, "{geometry:?}");
        assert_eq!(refused(Superblock::parse(&volume.encode())), field, "{geometry:?}");
    }
}

#[test]
fn where_slots_are() {
    let geometry = Superblock::example().geometry;
    for slot in [0, 1, 11] {
        let first = 256 + slot * 64;
        assert_eq!(geometry.slot_place(Slot(slot)), Place(first));
        assert_eq!([first, first + 63].map(|place| geometry.slot_of(Place(place))), [Slot(slot); 2]);
    }
    assert_eq!(geometry.segment_bytes(), 64 * 4096);
    assert_eq!(geometry.copy_at(), (256 + 12 * 64) * 4096);
    assert_eq!((Place(300).bytes(), Place(300).plus(3)), (300 * 4096, Place(303)));
    assert_eq!((Block(7).plus(2), SegmentNumber(9).plus(2)), (Block(9), SegmentNumber(11)));
    assert_eq!([2, 8, 9].map(|count| SegmentNumber(9).minus(count).0), [7, 1, 1], "the first segment is 1");
    assert_eq!([0, 1, 2].map(|position| Position(position).previous()), [Position(0), Position(0), Position(1)]);
}

/// Of two copies that cannot be read the error says which is wrong: a primary without any superblock is none of ours.
#[test]
fn which_copy_counts() {
    let (fine, other, none) = (superblock_with(0, &[]), superblock_with(8, &[2]), vec![0; BLOCK_BYTES]);
    let mut damaged = fine.clone();
    damaged[300] ^= 1;
    let error = |first: &[u8], copy: &[u8]| Superblock::choose(first, copy).unwrap_err();
    assert!(matches!(error(&none, &none), FormatError::Magic { .. }));
    assert!(matches!(error(&none, &damaged), FormatError::Checksum { .. }));
    assert!(matches!(error(&damaged, &none), FormatError::Checksum { .. }));
    assert!(matches!(error(&other, &damaged), FormatError::Version { .. }));
    assert_eq!(Superblock::choose(&fine, &fine), Ok((Superblock::example(), false)));
    assert_eq!(Superblock::choose(&none, &fine), Ok((Superblock::example(), true)));
    assert_eq!(Superblock::choose(&fine, &damaged), Ok((Superblock::example(), true)));
}

#[test]
fn what_an_accepted_loss_covers() {
    let loss = AcceptedLoss { segment: SegmentNumber(8), epoch: 3 };
    let covers = |segment, epoch| loss.covers(SegmentNumber(segment), epoch);
    assert!(covers(8, 3) && covers(9, 1) && !covers(7, 3) && !covers(8, 4));
}

/// Whoever has a volume's key can sign its headers, so no message shows it.
#[test]
fn names_are_shown_and_the_key_is_not() {
    let volume = Superblock::example();
    let shown = format!("{volume:?}");
    assert!(shown.contains("key: Key(..)") && !shown.contains("51, 51") && !shown.contains("3333"), "{shown}");
    assert_eq!(volume.uuid.to_string(), "11111111-1111-1111-1111-111111111111");
    assert_eq!((Uuid::parse(&volume.uuid.to_string()), Uuid::parse("example")), (Some(volume.uuid), None));
    assert_eq!(Uuid::from_random([0xff; 16]).to_string(), "ffffffff-ffff-4fff-bfff-ffffffffffff");
    assert_eq!(format!("{:?} {:?}", volume.uuid, Checksum([0xa5; 16])), format!("{} {}", volume.uuid, "a5".repeat(16)));
}

#[test]
fn a_superblock_of_another_salvol_is_named() {
    for version in [0_u32, 2] {
        let found = Superblock::parse(&superblock_with(8, &version.to_le_bytes()));
        assert_eq!(found, Err(FormatError::Version { found: version, supported: 1 }));
    }
    for (incompatible, read_only) in [(1_u64, 0_u64), (0, 2), (5, 6)] {
        let bytes = [incompatible.to_le_bytes(), read_only.to_le_bytes()].concat();
        let found = Superblock::parse(&superblock_with(16, &bytes));
        assert_eq!(found, Err(FormatError::Features { bits: incompatible | read_only }));
    }
    assert_eq!(Superblock::parse(&superblock_with(32, &[0xff; 8])), Ok(Superblock::example()), "compatible features");
}

#[test]
fn fields_of_a_superblock() {
    let short = Superblock::parse(&superblock_with(0, &[])[1..]);
    assert_eq!(short, Err(FormatError::Length { what: "superblock", have: BLOCK_BYTES - 1, need: BLOCK_BYTES }));
    for (at, bytes, field) in [
        (12, &512_u32.to_le_bytes()[..], "block bytes"),
        (156, &257_u32.to_le_bytes()[..], "first slot, rings or cipher"),
        (163, &[2][..], "first slot, rings or cipher"),
        (164, &[1][..], "first slot, rings or cipher"),
        (160, &[2][..], "archive at"),
        (161, &[3][..], "compression"),
        (224, &[65][..], "name"),
        (226, &1025_u16.to_le_bytes()[..], "backing"),
        (320, &[0xff][..], "backing"),
    ] {
        assert_eq!(refused(Superblock::parse(&superblock_with(at, bytes))), Some(field), "{field} at {at}");
    }
    for (at, field) in [
        (104, "generation"),
        (112, "epoch"),
        (168, "close segment"),
        (176, "close position"),
        (216, "fork position"),
        (228, "lost segment"),
        (236, "lost epoch"),
    ] {
        let with = |count: u64| refused(Superblock::parse(&superblock_with(at, &count.to_le_bytes())));
        assert_eq!([with(1 << 62), with((1 << 62) + 1)], [None, Some(field)]);
    }
    let longest = Superblock { name: "n".repeat(64), backing: "b".repeat(1024), ..Superblock::example() };
    assert_eq!(Superblock::parse(&longest.encode()), Ok(longest));
    assert!(is_name("Z_.-9") && is_name(&"n".repeat(64)) && !is_name(&"n".repeat(65)));
}

#[test]
fn fields_of_a_segment_header() {
    let volume = Superblock::example();
    let with = |at, bytes: &[u8]| refused(SegmentHeader::parse(&segment_with(&volume, at, bytes), &volume));
    for (at, most, field) in [(120, 11_u32, "slot"), (104, 200, "volume blocks"), (80, 9, "oldest needed")] {
        assert_eq!(with(at, &most.to_le_bytes()), None, "{field}");
        assert_eq!(with(at, &(most + 1).to_le_bytes()), Some(field));
    }
    assert_eq!([with(112, &[63]), with(112, &[65])], [Some("segment blocks"); 2]);
    assert_eq!([with(124, &[1]), with(126, &[1])], [Some("ring or cipher"); 2]);
    let refusal = SegmentHeader::parse(&segment_with(&volume, 124, &[1, 0, 2, 0]), &volume);
    assert!(matches!(refusal, Err(FormatError::Field { value: 0x1_0002, .. })), "{refusal:?}");
    let short = SegmentHeader::parse(&segment_with(&volume, 0, &[])[1..], &volume);
    assert!(matches!(short, Err(FormatError::Length { .. })));
}

#[test]
fn fields_of_a_batch_header() {
    let volume = Superblock::example();
    let parse = |block: &[u8]| refused(BatchHeader::parse(block, &volume));
    let with = |header, entries: &[Entry]| parse(&batch_with(header, entries, 0, &[]));
    let (header, three) = (batch_header(), entries());
    assert_eq!(with(BatchHeader { volume_blocks: 201, ..header }, &[]), Some("volume blocks"));
    assert_eq!(parse(&batch_with(header, &three, 70, &[2])), Some("data blocks"));
    for (offset, field) in
        [(0, Some("offset")), (1, None), (60, None), (61, Some("offset")), (u32::MAX, Some("offset"))]
    {
        assert_eq!(with(BatchHeader { offset: Offset(offset), ..header }, &three), field, "{offset}");
    }
    assert_eq!(with(header, &[Entry::noop(); BATCH_ENTRIES_MAX]), None);
    assert_eq!(parse(&batch_with(header, &[], 68, &[241])), Some("entries"));
    assert!(BatchHeader::looks_like(&batch_with(header, &[], 0, &[])));
    assert!(!BatchHeader::looks_like(&segment_with(&volume, 0, &[])));
    let short = BatchHeader::parse(&batch_with(header, &three, 0, &[])[1..], &volume);
    assert!(matches!(short, Err(FormatError::Length { .. })));
}

/// Of a volume of 200 blocks.
#[test]
fn entries_stay_inside_the_volume() {
    let parse =
        |entry| refused(BatchHeader::parse(&batch_with(batch_header(), &[entry], 0, &[]), &Superblock::example()));
    for entry in [Entry::write, Entry::copy, |block, _| Entry::lost(block)] {
        assert_eq!(
            [199, 200, u64::MAX].map(|block| parse(entry(Block(block), 7))),
            [None, Some("block"), Some("block")]
        );
    }
    for zero in [false, true] {
        let range = |block, count| parse(Entry::range(Block(block), count, zero));
        assert_eq!([range(0, 200), range(150, 50), range(200, 0)], [None; 3]);
        assert_eq!([range(0, 201), range(150, 51), range(u64::MAX, u32::MAX)], [Some("block"); 3]);
    }
    // What is about no block has other numbers there.
    let others = [Entry::synch(900, 0), Entry::open(900), Entry::rollback_begin(Position(900), 3)];
    assert_eq!(others.map(parse), [None; 3]);
    for kind in [0_u8, 12, 255] {
        let block = batch_with(batch_header(), &[Entry::noop()], 160, &[kind]);
        assert_eq!(refused(BatchHeader::parse(&block, &Superblock::example())), Some("kind"));
    }
}

#[test]
fn what_entries_say() {
    let (volume, text) = (Superblock::example(), std::fs::read_to_string(super::document()).unwrap());
    for kind in 1_u8..=11 {
        // The header counts a data block for it or none.
        let like = if matches!(kind, 1 | 2 | 6) { Entry::write(Block(0), 0) } else { Entry::noop() };
        let block = batch_with(batch_header(), &[like], 160, &[kind]);
        let word = BatchHeader::parse(&block, &volume).unwrap().entries[0].kind().unwrap().word();
        assert!(text.contains(&format!("\n| {kind} | {word} |")), "{kind} is {word}");
    }
    let (write, range) = (Entry::write(Block(17), 5), Entry::range(Block(100), 20, true));
    assert_eq!((write.block(), write.crc()), (Block(17), 5));
    assert_eq!((range.block(), range.count()), (Block(100), 20));
    assert_eq!((Entry::synch(700, 6).point(), Entry::synch(700, 6).crc()), (700, 6));
    let begin = Entry::rollback_begin(Position(650), 3);
    assert_eq!((begin.rollback_to(), begin.rollback_since()), (Position(650), 3));
}

#[test]
fn batches_of_a_summary_account_for_its_entries() {
    let volume = Superblock::example();
    let parse = |summary: &Summary| {
        let mut bytes = vec![0; summary.blocks() as usize * BLOCK_BYTES];
        summary.encode(&volume, &mut bytes);
        refused(Summary::parse(&bytes, &volume))
    };
    let fine = summary(Checksum::default());
    // So many entries and data blocks at an offset.
    let batches = |batches: &[(u32, usize, u32)]| Summary {
        batches: batches
            .iter()
            .map(|(at, entries, data)| BatchRecord::new(Offset(*at), *entries, *data, 4, 0, 0))
            .collect(),
        ..fine.clone()
    };
    for (listed, field) in [
        (&[(1, 4, 3)][..], None),
        (&[(60, 4, 3)][..], None),
        (&[(1, 2, 2), (4, 2, 1)][..], None),
        (&[(1, 2, 2), (9, 2, 1)][..], None),
        (&[(0, 4, 3)][..], Some("offset")),
        (&[(61, 4, 3)][..], Some("offset")),
        (&[(u32::MAX, 4, 3)][..], Some("offset")),
        (&[(1, 2, 2), (3, 2, 1)][..], Some("offset")),
        (&[(9, 2, 2), (1, 2, 1)][..], Some("offset")),
        (&[(1, 4, 2)][..], Some("data blocks")),
        (&[(1, 3, 2)][..], Some("entries")),
        (&[(1, 5, 3)][..], Some("entries")),
        (&[(1, 2, 2), (4, 3, 1)][..], Some("entries")),
        (&[][..], Some("batches")),
    ] {
        assert_eq!(parse(&batches(listed)), field, "{listed:?}");
    }
    let many =
        |count: usize| Summary { entries: vec![Entry::noop(); count], synchs: Vec::new(), ..batches(&[(1, count, 0)]) };
    assert_eq!([parse(&many(BATCH_ENTRIES_MAX)), parse(&many(BATCH_ENTRIES_MAX + 1))], [None, Some("entries")]);
    let eight = SynchMark { label: "four".to_owned(), info: "four".to_owned(), ..mark() };
    let full = Summary { synchs: vec![eight], ..many(BATCH_ENTRIES_MAX) };
    assert_eq!((full.blocks(), parse(&full)), (1, None), "not a byte is left");
    let long =
        Summary { entries: vec![Entry::noop(); 300], synchs: Vec::new(), ..batches(&[(1, 150, 0), (2, 150, 0)]) };
    assert_eq!((long.blocks(), parse(&long)), (2, None));
    assert_eq!(parse(&Summary { volume_blocks: 201, ..fine.clone() }), Some("volume blocks"));
    assert_eq!(parse(&Summary { volume_blocks: 119, ..fine }), Some("block"), "an entry beyond the volume");
}

/// The same in three parts, put together again.
#[test]
fn a_summary_is_the_sum_of_its_parts() {
    let link = |rank: u8| Checksum([rank; 16]);
    let record = |at, entries, data, epoch| BatchRecord::new(Offset(at), entries, data, epoch, 8, 9);
    let (batches, listed) = ([record(1, 2, 2, 4), record(4, 1, 0, 4), record(5, 1, 1, 5)], entries());
    let synchs = vec![SynchMark { point: 702, ..mark() }];
    let whole = Summary { epoch: 5, predecessor: link(0), batches: batches.to_vec(), synchs, ..summary(link(3)) };
    let part = |rank: usize, at, epoch| {
        let made = whole.part(rank..rank + 1, link(rank as u8), link(rank as u8 + 1));
        let said = Summary {
            epoch,
            first_position: Position(700 + rank as u64),
            predecessor: link(rank as u8),
            last_checksum: link(rank as u8 + 1),
            batches: vec![batches[rank]],
            entries: listed[at..at + batches[rank].entries()].to_vec(),
            synchs: if rank == 2 { whole.synchs.clone() } else { Vec::new() },
            ..whole.clone()
        };
        assert_eq!(made, said);
        made
    };
    let mut sum = part(0, 0, 4);
    sum.append(part(1, 2, 4));
    sum.append(part(2, 3, 5));
    assert_eq!(sum, whole);
    assert_eq!((whole.last_position(), sum.part(0..2, link(0), link(2)).entries.len()), (Position(702), 3));
    let [first, last] = [batches[0], batches[2]];
    assert_eq!((first.offset(), first.entries(), first.data_blocks()), (Offset(1), 2, 2));
    assert_eq!((last.epoch(), last.time_ns(), last.wall_ns()), (5, 8, 9));
    assert_eq!([1, 2, 3, 4].map(|at| first.holds_data_at(Offset(at))), [false, true, true, false]);
}

/// A trailer says how much to read before anything of it is verified.
#[test]
fn a_summary_is_shorter_than_its_slot() {
    let volume = Superblock::example();
    let summary = summary(Checksum::default());
    let mut bytes = vec![0; BLOCK_BYTES];
    summary.encode(&volume, &mut bytes);
    let at = BLOCK_BYTES - SUMMARY_TRAILER_BYTES + 96;
    for (blocks, field) in [(0_u32, Some("blocks")), (1, None), (63, None), (64, Some("blocks"))] {
        bytes[at..at + 4].copy_from_slice(&blocks.to_le_bytes());
        let found = SummaryTrailer::peek(&bytes, &volume);
        assert_eq!(
            found.as_ref().ok(),
            field.is_none().then_some(&SummaryTrailer { segment: summary.segment, blocks })
        );
        assert_eq!(refused(found), field);
    }
    let short = SummaryTrailer::peek(&bytes[BLOCK_BYTES - SUMMARY_TRAILER_BYTES + 1..], &volume);
    assert!(matches!(short, Err(FormatError::Length { .. })));
    assert_eq!(
        [(0, 0, 0), (1, 1, 2), (100, 44, 8), (100, 44, 9)].map(|(b, e, s)| summary_blocks(b, e, s)),
        [1, 1, 1, 2]
    );
}

#[test]
fn texts_of_a_synch_mark() {
    let longest = SynchMark { label: "l".repeat(255), info: "i".repeat(2048), ..mark() };
    let bytes = longest.encode();
    assert_eq!(SynchMark::parse(&bytes), Ok((longest, 32 + 255 + 2048)));
    let with = |at: usize, count: u16| {
        let mut bytes = bytes.clone();
        bytes.resize(BLOCK_BYTES, b' ');
        bytes[at..at + 2].copy_from_slice(&count.to_le_bytes());
        refused(SynchMark::parse(&bytes))
    };
    assert_eq!([with(24, 255), with(24, 256)], [None, Some("label length")]);
    assert_eq!([with(26, 2048), with(26, 2049)], [None, Some("information length")]);
    assert_eq!(refused(SynchMark::parse(&bytes[..bytes.len() - 1])), Some("information length"));
    assert!(matches!(SynchMark::parse(&bytes[..31]), Err(FormatError::Length { .. })));
    for at in [32, 32 + 255] {
        let mut damaged = bytes.clone();
        damaged[at] = 0xff;
        assert_eq!(refused(SynchMark::parse(&damaged)), Some("text"));
    }
}
