//! The ring store's superblock, and the entries of its catalogue with their record headers. What parses them is private, so it is
//! compiled here once more.

#[path = "../../../src/archive/ring/entry.rs"]
#[allow(dead_code, reason = "compiled for its parser")]
mod entry;
#[path = "../../../src/archive/ring/superblock.rs"]
#[allow(dead_code, reason = "compiled for its parser")]
mod superblock;

use entry::{Entry, Extent, Record, blocks_for, looks_used};
use salvol::archive::ObjectName;
use salvol::format::*;
use superblock::{BLOCK_ENTRIES, ENTRY_BYTES, RingSuperblock};

use super::Target;
use super::seal::{clear, grown, plain, volume};
use super::walk::small;

pub const SUPERBLOCK: Target =
    Target { name: "ring_superblock", run: run_superblock, seeds: superblock_seeds, bytes_max: 1664, mutations: 4000 };
pub const ENTRY: Target =
    Target { name: "ring_entry", run: run_entry, seeds: entry_seeds, bytes_max: 168, mutations: 1000 };

const CHECKED: usize = BLOCK_BYTES - 16;
/// The volume's superblock in it, and where that one's checksum is.
const VOLUME: std::ops::Range<usize> = 256..2304;
const VOLUME_CHECKSUM: std::ops::Range<usize> = 2304..2320;

fn run_superblock(data: &[u8]) -> bool {
    assert!(data.len() == BLOCK_BYTES || RingSuperblock::parse(data).is_err());
    let mut block = grown(data, BLOCK_BYTES);
    let _ = RingSuperblock::parse(&block);
    seal(&mut block);
    let Ok(found) = RingSuperblock::parse(&block) else { return false };
    let [first, second] = found.catalogues();
    let blocks = found.catalogue_blocks();
    assert!(found.entries > 0 && found.entries == blocks * BLOCK_ENTRIES && found.entries <= u64::from(u32::MAX));
    assert!(first + blocks <= second && second + blocks < found.blocks, "parts that overlap");
    assert_eq!(found.data(), first + blocks..second);
    assert!(found.parts_blocks() <= second - (first + blocks) && found.blocks.checked_mul(4096).is_some());
    assert!(found.volume.geometry.check().is_ok());
    assert_eq!(RingSuperblock::parse(&found.encode()).as_ref(), Ok(&found));
    clear(&mut block, &[32..40, 96..256, VOLUME_CHECKSUM.end..CHECKED]);
    plain(&mut block, CHECKED);
    assert_eq!(RingSuperblock::parse(&block).as_ref(), Ok(&found), "what is not read says nothing");
    assert!(found.encode()[..256] == block[..256], "one superblock, two encodings");
    true
}

/// Puts both checksums right.
fn seal(block: &mut [u8]) {
    let mut volume = grown(&block[VOLUME], BLOCK_BYTES);
    plain(&mut volume, CHECKED);
    block[VOLUME_CHECKSUM].copy_from_slice(&volume[CHECKED..]);
    plain(block, CHECKED);
}

fn ring() -> &'static RingSuperblock {
    static RING: std::sync::OnceLock<RingSuperblock> = std::sync::OnceLock::new();
    RING.get_or_init(|| RingSuperblock::plan([9; 16], &small(), 512).unwrap())
}

fn superblock_seeds() -> Vec<Vec<u8>> {
    let larger = RingSuperblock::plan([8; 16], volume(), 100_000).unwrap();
    [ring().encode(), larger.encode()].iter().map(|block| block[..1600].to_vec()).collect()
}

/// Input: an entry's number in four bytes, then the entry.
fn run_entry(data: &[u8]) -> bool {
    let ring = ring();
    let (number, bytes) = data.split_at(data.len().min(4));
    let slot = u32::from_le_bytes(grown(number, 4).try_into().unwrap()) % ring.entries as u32;
    assert!(Entry::parse(bytes, ring, slot).is_none() || bytes.len() == ENTRY_BYTES);
    let mut bytes = grown(bytes, ENTRY_BYTES);
    let at = ENTRY_BYTES - 16;
    let sum = Checksum::keyed(&ring.volume.key, &[&ring.store, &slot.to_le_bytes(), &bytes[..at]]);
    bytes[at..].copy_from_slice(&sum.0);
    let _ = looks_used(&bytes);
    let block = record_header(ring, slot, &bytes);
    let first = u64::from_le_bytes(bytes[64..72].try_into().unwrap());
    let Some(entry) = Entry::parse(&bytes, ring, slot) else {
        assert!(Entry::parse_record(&block, ring, first).is_none());
        return false;
    };
    assert!(Entry::parse(&bytes, ring, slot + 1).is_none(), "an entry in the place of another");
    assert_eq!(Entry::parse(&entry.encode(ring, slot), ring, slot).as_ref(), Some(&entry));
    assert!(entry.sequence <= 1 << 62);
    let Some(record) = &entry.record else {
        assert!(entry.vacated == 0 || ring.data().contains(&entry.vacated));
        assert!(Entry::parse_record(&block, ring, first).is_none(), "a record of nothing");
        return true;
    };
    assert_eq!(record.blocks(), blocks_for(record.bytes));
    let data = ring.data();
    assert!(record.extents.iter().all(|extent| data.start <= extent.first && extent.end() <= data.end));
    assert_eq!(Entry::parse_record(&block, ring, record.header()), Some((slot, entry.clone())));
    assert!(Entry::parse_record(&block, ring, record.header() + 1).is_none());
    clear(&mut bytes, &[60..64, 64 + 12 * record.extents.len()..at]);
    assert!(entry.encode(ring, slot)[..at] == bytes[..at], "one entry, two encodings");
    true
}

fn record_header(ring: &RingSuperblock, slot: u32, entry: &[u8]) -> Vec<u8> {
    [&b"SALVOLRR"[..], &ring.store, &slot.to_le_bytes(), &[0; 4], entry].concat()
}

fn entry_seeds() -> Vec<Vec<u8>> {
    let name = ObjectName { history: volume().history, segment: SegmentNumber(9), epoch: 4, part: 0 };
    let from = ring().data().start;
    let extents = vec![Extent { first: from, blocks: 2 }, Extent { first: from + 9, blocks: 3 }];
    let record = Record { name, bytes: 4 * 4096 - 5, crc: 77, extents };
    let all = [Entry::free(0, 0), Entry::free(12, from), Entry::live(7, record)];
    all.iter().map(|entry| [&3_u32.to_le_bytes()[..], &entry.encode(ring(), 3)].concat()).collect()
}
