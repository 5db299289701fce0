//! A segment as it lies in a slot: its header, batches that continue each other, their data, its summary. Input: sections.
//!
//! ```text
//! control, then what is changed of the segment header | what is changed of the summary | batch | batch | ...
//! batch: control, length of what is changed, what is changed of its header, entries
//! ```
//!
//! What is changed is a mask over a structure that is right, so nothing of zeros; checksums are put right behind it, and the data
//! is what the entries say. The bits of `control` leave such a step out.

use salvol::format::*;

use super::seal::{Sections, volume, xor};
use super::{Target, batch, mark, segment_header, summary};

pub const TARGET: Target = Target { name: "walk", run, seeds, bytes_max: 2048, mutations: 1000 };

/// There is a summary.
const SEALED: u8 = 1;
/// The checksum of a batch header is not put right.
const UNSIGNED: u8 = 2;
/// The data is not what the entries say.
const ROTTEN: u8 = 4;

/// A volume with segments of 64 KiB.
pub fn small() -> Superblock {
    let geometry =
        Geometry { primary_blocks: 256 + 6 * 16 + 1, volume_blocks: 30, segment_blocks: 16, slots: 6, working_set: 3 };
    Superblock { geometry, backing: "none".to_owned(), ..volume().clone() }
}

/// Where a segment begins in the log.
#[derive(Clone, Copy)]
pub struct Start {
    pub segment: SegmentNumber,
    pub position: Position,
    pub predecessor: Checksum,
    pub slot: Slot,
}

impl Start {
    pub const FIRST: Self =
        Self { segment: SegmentNumber(1), position: Position(1), predecessor: Checksum([0; 16]), slot: Slot(0) };
}

/// A segment that an input describes.
pub struct Built {
    pub image: Vec<u8>,
    pub header: SegmentHeader,
    pub walk: Walk,
    /// Where the next segment begins.
    pub next: Start,
}

/// The segment of `small()` that the sections describe.
pub fn build(start: Start, sections: &mut Sections<'_>) -> Built {
    let small = small();
    let (control, header_mask) = sections.next().split_first().map_or((0, &[][..]), |(first, rest)| (*first, rest));
    let summary_mask = sections.next();
    let header = SegmentHeader {
        segment: start.segment,
        slot: start.slot,
        first_position: start.position,
        predecessor: start.predecessor,
        durable_through: start.position.previous(),
        archived_through: SegmentNumber(0),
        volume_blocks: 30,
        working_set: 3,
        ..segment_header::example()
    };
    let mut image = vec![0; small.geometry.segment_bytes()];
    header.encode(&small, &mut image[..BLOCK_BYTES]);
    xor(&mut image[..144], header_mask);
    super::seal::keyed(&mut image[..BLOCK_BYTES], 144);
    let mut link = (Offset(1), start.position, start.predecessor);
    while let Some(block) = Some(sections.next()).filter(|section| !section.is_empty()) {
        if link.0.0 >= small.geometry.segment_blocks {
            break;
        }
        place(&mut image, &header, &mut link, block);
    }
    let header = SegmentHeader::parse(&image, &small).unwrap_or(header);
    let walk = walk_segment(&image, &small, &header, Position(0));
    if control & SEALED != 0 && !walk.summary.batches.is_empty() {
        let blocks = walk.summary.blocks() as usize;
        let at = image.len().saturating_sub(blocks * BLOCK_BYTES);
        if at >= walk.end.0 as usize * BLOCK_BYTES {
            walk.summary.encode(&small, &mut image[at..]);
            let trailer = image.len() - SUMMARY_TRAILER_BYTES;
            xor(&mut image[trailer..], summary_mask);
            summary::seal(&mut image[at..]);
        }
    }
    let next = Start {
        segment: start.segment.plus(1),
        position: walk.next_position(),
        predecessor: walk.chain(),
        slot: Slot(start.slot.0 + 1),
    };
    Built { image, header, walk, next }
}

/// Puts a batch behind the last one.
fn place(image: &mut [u8], header: &SegmentHeader, link: &mut (Offset, Position, Checksum), section: &[u8]) {
    let (control, rest) = (section[0], &section[1..]);
    let masked = rest.first().map_or(0, |length| usize::from(*length)).min(rest.len().saturating_sub(1));
    let (mask, listed) = rest.get(1..).unwrap_or_default().split_at(masked);
    let (offset, position, predecessor) = *link;
    let room = (image.len() / BLOCK_BYTES) as u32 - offset.0 - 1;
    let zeros = block_crc(&[0; BLOCK_BYTES]);
    let (mut entries, mut data) = (Vec::new(), Vec::new());
    for bytes in listed.chunks_exact(16).take(BATCH_ENTRIES_MAX) {
        let mut entry = bytes.to_vec();
        let has_data = matches!(entry[0], 1 | 2 | 6);
        if has_data && data.len() as u32 == room {
            break;
        }
        if has_data {
            let mut block = vec![0; BLOCK_BYTES];
            if entry[0] == 6 {
                let mark = SynchMark { point: position.0, ..mark::example() }.encode();
                block[..mark.len()].copy_from_slice(&mark);
            }
            if control & ROTTEN == 0 {
                let crc = if entry[0] == 6 { block_crc(&block) } else { zeros };
                entry[4..8].copy_from_slice(&crc.to_le_bytes());
            }
            data.push(block);
        }
        entries.push(entry);
    }
    let template = BatchHeader {
        segment: header.segment,
        offset,
        position,
        durable_through: position.previous(),
        archived_through: SegmentNumber(0),
        volume_blocks: 30,
        working_set: 3,
        predecessor,
        ..batch::example()
    };
    let at = offset.0 as usize * BLOCK_BYTES;
    let block = &mut image[at..at + BLOCK_BYTES];
    template.encode(&small(), &[], block);
    block[68..70].copy_from_slice(&(entries.len() as u16).to_le_bytes());
    block[70..72].copy_from_slice(&(data.len() as u16).to_le_bytes());
    block[batch::HEAD..][..entries.len() * 16].copy_from_slice(&entries.concat());
    xor(&mut block[..batch::CHECKED], mask);
    if control & UNSIGNED == 0 {
        batch::seal(block);
    }
    let (_, checksum) = BatchHeader::chain_in(block);
    for (rank, block) in data.iter().enumerate() {
        image[at + (1 + rank) * BLOCK_BYTES..][..BLOCK_BYTES].copy_from_slice(block);
    }
    *link = (offset.plus(1 + data.len() as u32), position.next(), checksum);
}

fn run(data: &[u8]) -> bool {
    let small = small();
    let Built { image, header, walk, .. } =
        build(Start { segment: SegmentNumber(9), position: Position(700), ..Start::FIRST }, &mut Sections(data));
    assert!((1..=small.geometry.segment_blocks).contains(&walk.end.0));
    let batches = &walk.summary.batches;
    assert_eq!(walk.next_position().0, header.first_position.0 + batches.len() as u64);
    if let Some(last) = &walk.last {
        assert_eq!((last.position, walk.summary.epoch), (walk.summary.last_position(), last.epoch));
        summary::check(&walk.summary, &small);
        readable(&walk.summary, &small);
        assert_eq!(summary_from_image(&image, &small).is_ok(), SegmentHeader::parse(&image, &small).is_ok());
    }
    // From any batch on, the run goes as far as the whole, or further: nothing is before it that it must continue.
    for record in batches {
        let at = record.offset().0 as usize * BLOCK_BYTES;
        let part = summary_from_run(&image[at..], record.offset(), &small).unwrap();
        let last = part.batches.last().unwrap();
        assert!(last.offset() >= batches.last().unwrap().offset());
    }
    let _ = summary_from_run(&image, Offset(0), &small);
    !batches.is_empty()
}

/// A summary that is made again from headers is one.
fn readable(made: &Summary, volume: &Superblock) {
    let bytes = summary::encoded(made);
    let within = |entry: &Entry| match entry.kind().unwrap() {
        EntryKind::Trim | EntryKind::Zero => entry.block().0 + u64::from(entry.count()) <= made.volume_blocks,
        EntryKind::Write | EntryKind::Copy | EntryKind::Lost => entry.block().0 < made.volume_blocks,
        _ => true,
    };
    // Volumes do not shrink, so no log has entries beyond what its later headers say.
    if made.entries.iter().all(within) {
        assert_eq!(Summary::parse(&bytes, volume).as_ref(), Ok(made));
    }
}

/// The section of a batch with these entries, nothing changed.
fn section(entries: &[Entry]) -> Vec<u8> {
    let mut block = vec![0; BLOCK_BYTES];
    batch::example().encode(volume(), entries, &mut block);
    [&[0, 0], &block[batch::HEAD..batch::HEAD + entries.len() * 16]].concat()
}

/// Sections of a segment with batches of every kind.
pub fn sections(sealed: bool, batches: &[Vec<Entry>]) -> Vec<Vec<u8>> {
    let head = [vec![u8::from(sealed)], Vec::new()];
    head.into_iter().chain(batches.iter().map(|entries| section(entries))).chain([Vec::new()]).collect()
}

/// Batches that are all a small volume's.
pub fn batches() -> Vec<Vec<Entry>> {
    vec![
        vec![Entry::open(4)],
        vec![Entry::write(Block(17), 0), Entry::copy(Block(5), 0), Entry::range(Block(10), 20, false)],
        vec![Entry::range(Block(0), 4, true), Entry::lost(Block(9))],
        vec![Entry::synch(700, 0)],
        vec![Entry::rollback_begin(Position(1), 1), Entry::rollback_commit(Position(1))],
    ]
}

fn seeds() -> Vec<Vec<u8>> {
    let joined = |sections: Vec<Vec<u8>>| Sections::join(&sections.iter().map(Vec::as_slice).collect::<Vec<_>>());
    vec![joined(sections(true, &batches())), joined(sections(false, &batches()[..2])), joined(sections(true, &[]))]
}
