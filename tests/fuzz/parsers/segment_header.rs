//! The segment header. Input: its 160 bytes, of which the checksum is put right.

use salvol::format::*;

use super::Target;
use super::seal::{clear, grown, keyed, volume};

pub const TARGET: Target = Target { name: "segment_header", run, seeds, bytes_max: 192, mutations: 4000 };

const CHECKED: usize = 144;
/// Reserved, and what is behind the header.
const UNREAD: [std::ops::Range<usize>; 2] = [128..136, CHECKED + 16..BLOCK_BYTES];

fn run(data: &[u8]) -> bool {
    let volume = volume();
    assert!(SegmentHeader::parse(data, volume).is_err(), "it is shorter than a block");
    let mut block = grown(data, BLOCK_BYTES);
    let _ = SegmentHeader::parse(&block, volume);
    keyed(&mut block, CHECKED);
    let forked = Superblock { history: Uuid([0x66; 16]), fork_position: Position(700), ..volume.clone() };
    if let Ok(header) = SegmentHeader::parse(&block, &forked) {
        assert!(header.first_position.0 <= 700 || block[24..40] == forked.history.0, "of a past that ended");
    }
    let Ok(header) = SegmentHeader::parse(&block, volume) else { return false };
    assert!(header.slot.0 < volume.geometry.slots && header.volume_blocks <= volume.geometry.volume_blocks);
    assert!(header.segment.0 > 0 && header.oldest_needed <= header.segment);
    assert!(header.segment.plus(u64::from(u32::MAX)).0 < u64::MAX && header.first_position.next().0 < u64::MAX);
    clear(&mut block, &UNREAD);
    keyed(&mut block, CHECKED);
    assert_eq!(SegmentHeader::parse(&block, volume), Ok(header), "what is not read says nothing");
    let mut encoded = vec![0xff; BLOCK_BYTES];
    header.encode(volume, &mut encoded);
    assert!(encoded == block, "one header, two encodings");
    true
}

pub fn example() -> SegmentHeader {
    SegmentHeader {
        segment: SegmentNumber(9),
        slot: Slot(2),
        epoch: 4,
        first_position: Position(700),
        predecessor: Checksum([0x44; 16]),
        oldest_needed: SegmentNumber(1),
        durable_through: Position(690),
        archived_through: SegmentNumber(7),
        volume_blocks: 200,
        working_set: 8,
        time_ns: 1_700_000_000_000_000_000,
    }
}

fn seeds() -> Vec<Vec<u8>> {
    let first = SegmentHeader { segment: SegmentNumber(1), first_position: Position(1), epoch: 1, ..example() };
    let other = Superblock { history: Uuid([0x55; 16]), ..volume().clone() };
    let encoded = |header: &SegmentHeader, volume| {
        let mut block = vec![0; BLOCK_BYTES];
        header.encode(volume, &mut block);
        block.truncate(CHECKED + 16);
        block
    };
    vec![encoded(&example(), volume()), encoded(&first, volume()), encoded(&example(), &other)]
}
