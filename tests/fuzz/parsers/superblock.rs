//! The superblock. Input: its beginning; zeros follow, and the right checksum.

use salvol::format::*;
use salvol::history::superblock_section;

use super::Target;
use super::seal::{clear, grown, half, plain};

pub const TARGET: Target = Target { name: "superblock", run, seeds, bytes_max: 1400, mutations: 4000 };

const CHECKED: usize = BLOCK_BYTES - 16;
/// Reserved, compatible features, padding.
const UNREAD: [std::ops::Range<usize>; 4] = [32..40, 166..168, 244..256, 1344..CHECKED];

fn run(data: &[u8]) -> bool {
    assert!(data.len() == BLOCK_BYTES || Superblock::parse(data).is_err());
    let mut block = grown(data, BLOCK_BYTES);
    let _ = Superblock::parse(&block);
    plain(&mut block, CHECKED);
    let Ok(found) = Superblock::parse(&block) else { return false };
    check(&found);
    assert_eq!(Superblock::parse(&found.encode()).as_ref(), Ok(&found));
    unread_as_zeros(&mut block);
    assert_eq!(Superblock::parse(&block).as_ref(), Ok(&found), "what is not read says nothing");
    assert!(found.encode()[..] == block[..], "one superblock, two encodings");
    chosen(&found, &block);
    true
}

/// What everything else counts on.
fn check(found: &Superblock) {
    let geometry = &found.geometry;
    let last = geometry.slot_place(Slot(geometry.slots - 1));
    let end = u64::from(last.0) + u64::from(geometry.segment_blocks);
    assert!(end < geometry.primary_blocks, "a slot beyond the primary");
    assert_eq!(geometry.slot_of(last), Slot(geometry.slots - 1));
    assert!(geometry.volume_blocks < u64::from(geometry.working_set) * u64::from(geometry.segment_blocks));
    assert!(geometry.segment_bytes() <= 256 << 20 && geometry.copy_at() < 1 << 44);
    assert!(is_name(&found.name) && found.backing.len() <= SPEC_BYTES_MAX);
    serde_json::to_string(&superblock_section(found, String::new())).unwrap();
}

/// Makes zeros of all that no parser reads.
fn unread_as_zeros(block: &mut [u8]) {
    clear(block, &UNREAD);
    let (name_end, backing_end) = (256 + half(block, 224), 320 + half(block, 226));
    clear(block, &[name_end..320, backing_end..1344]);
    if block[161] != 2 {
        block[162] = 0;
    }
    if block[176..184] == [0; 8] {
        clear(block, &[168..176, 184..200]);
    }
    if block[228..236] == [0; 8] {
        block[236..244].fill(0);
    }
    plain(block, CHECKED);
}

/// Of two copies the newer one counts; a damaged one never.
fn chosen(found: &Superblock, block: &[u8]) {
    let other = Superblock { generation: 9, ..Superblock::example() };
    let newer = if found.generation >= 9 { found } else { &other };
    let (one, stale) = Superblock::choose(block, &other.encode()).unwrap();
    assert!(one == *newer && stale == (one != other || *found != other));
    assert_eq!(Superblock::choose(&other.encode(), block).unwrap().0.generation, newer.generation);
    let mut damaged = block.to_vec();
    damaged[CHECKED] ^= 1;
    assert_eq!(Superblock::choose(&damaged, &other.encode()).unwrap(), (other, true));
}

fn seeds() -> Vec<Vec<u8>> {
    let volume = Superblock::example();
    let closed = CleanClose { segment: SegmentNumber(9), position: Position(700), checksum: Checksum([7; 16]) };
    let all = [
        volume.clone(),
        Superblock {
            parent_history: Uuid([0x55; 16]),
            fork_position: Position(700),
            clean_close: Some(closed),
            accepted_loss: Some(AcceptedLoss { segment: SegmentNumber(8), epoch: 3 }),
            compression: Compression::Zstd(7),
            archive_at: ArchiveAt::Inactive,
            epoch: 4,
            generation: 12,
            ..volume.clone()
        },
        Superblock { compression: Compression::None, backing: "none".to_owned(), name: "a".to_owned(), ..volume },
    ];
    all.iter().map(|superblock| superblock.encode()[..1344].to_vec()).collect()
}
