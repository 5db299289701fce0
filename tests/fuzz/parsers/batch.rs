//! The batch header with its entries. Input: the beginning of its block, of which the checksum is put right.

use salvol::format::*;

use super::Target;
use super::seal::{clear, grown, half, volume};

pub const TARGET: Target = Target { name: "batch", run, seeds, bytes_max: BLOCK_BYTES, mutations: 4000 };

pub const CHECKED: usize = 144;
pub const HEAD: usize = CHECKED + 16;
const ENTRY: usize = 16;

/// Puts the right checksum into a block with a batch header, unless it has more entries than fit.
pub fn seal(block: &mut [u8]) {
    let end = HEAD + half(block, 68) * ENTRY;
    if end <= BLOCK_BYTES {
        let sum = Checksum::keyed(&volume().key, &[&block[..CHECKED], &block[HEAD..end]]);
        block[CHECKED..HEAD].copy_from_slice(&sum.0);
    }
}

fn run(data: &[u8]) -> bool {
    let volume = volume();
    let mut block = grown(data, BLOCK_BYTES);
    let _ = BatchHeader::parse(data, volume);
    let _ = BatchHeader::parse(&block, volume);
    seal(&mut block);
    let forked = Superblock { history: Uuid([0x66; 16]), fork_position: Position(700), ..volume.clone() };
    if let Ok(batch) = BatchHeader::parse(&block, &forked) {
        assert!(batch.header.position.0 <= 700 || block[24..40] == forked.history.0, "of a past that ended");
    }
    let Ok(batch) = BatchHeader::parse(&block, volume) else { return false };
    check(&batch, volume);
    assert!(BatchHeader::looks_like(&block));
    // The ring's number, flags, and what is behind the entries.
    clear(&mut block, &[124..128, HEAD + batch.entries.len() * ENTRY..BLOCK_BYTES]);
    seal(&mut block);
    let again = BatchHeader::parse(&block, volume).expect("what is not read says nothing");
    assert_eq!((again.header, &again.entries), (batch.header, &batch.entries));
    let mut encoded = vec![0xff; BLOCK_BYTES];
    let checksum = batch.header.encode(volume, &batch.entries, &mut encoded);
    assert!(encoded == block, "one batch, two encodings");
    assert_eq!(BatchHeader::chain_in(&block), (batch.header.predecessor, checksum));
    assert_eq!(again.checksum, checksum);
    true
}

/// What everything else counts on.
fn check(batch: &ParsedBatch, volume: &Superblock) {
    let (header, blocks) = (&batch.header, header_blocks(batch));
    assert!(batch.entries.len() <= BATCH_ENTRIES_MAX && batch.blocks() == blocks);
    assert!(header.offset.0 > 0 && header.offset.0 + blocks <= volume.geometry.segment_blocks);
    assert!(header.volume_blocks <= volume.geometry.volume_blocks);
    for entry in &batch.entries {
        let reach = match entry.kind().expect("only known kinds are taken") {
            EntryKind::Write | EntryKind::Copy | EntryKind::Lost => 1,
            EntryKind::Trim | EntryKind::Zero => u64::from(entry.count()),
            _ => continue,
        };
        assert!(entry.block().plus(reach).0 <= header.volume_blocks, "an entry beyond the volume");
    }
    let header = SegmentHeader::of_first_batch(Slot(0), header);
    assert!(header.first_position.next() > header.first_position && header.segment.plus(1) > header.segment);
}

fn header_blocks(batch: &ParsedBatch) -> u32 {
    1 + batch.entries.iter().filter(|entry| entry.kind().unwrap().has_data()).count() as u32
}

pub fn example() -> BatchHeader {
    BatchHeader {
        segment: SegmentNumber(9),
        offset: Offset(1),
        position: Position(700),
        epoch: 4,
        wall_ns: 1_700_000_000_123_456_789,
        time_ns: 1_700_000_000_123_456_789,
        durable_through: Position(699),
        oldest_needed: SegmentNumber(1),
        archived_through: SegmentNumber(7),
        volume_blocks: 200,
        working_set: 8,
        predecessor: Checksum([0x44; 16]),
    }
}

/// Entries of every kind, in batches as they occur.
pub fn kinds() -> Vec<Vec<Entry>> {
    vec![
        vec![Entry::open(4)],
        vec![Entry::write(Block(17), 5), Entry::copy(Block(5), 6), Entry::range(Block(100), 20, false)],
        vec![Entry::range(Block(0), 200, true), Entry::lost(Block(9))],
        vec![Entry::synch(700, 7)],
        vec![Entry::rollback_begin(Position(650), 3), Entry::rollback_commit(Position(650))],
        vec![Entry::noop(), Entry::close()],
    ]
}

fn seeds() -> Vec<Vec<u8>> {
    let full = vec![Entry::range(Block(3), 1, false); BATCH_ENTRIES_MAX];
    let encoded = |entries: Vec<Entry>| {
        let mut block = vec![0; BLOCK_BYTES];
        example().encode(volume(), &entries, &mut block);
        block.truncate(HEAD + entries.len() * ENTRY);
        block
    };
    kinds().into_iter().chain([full, Vec::new()]).map(encoded).collect()
}
