//! Tests of the archive, and the segments that they are made with.

mod directory;
mod document;
mod faulty;
mod job;
mod levels;
mod object;
mod parts;
mod ring;
mod ring_crash;
mod ring_hostile;
mod ring_space;
mod ring_trouble;
mod stores;

use std::sync::Arc;

use fastrand::Rng;

use super::{Extent, MemoryStore, ObjectName, Packing, Store, encode_object};
use crate::format::{
    ArchiveAt, BLOCK_BYTES, BatchHeader, BatchRecord, Block, Checksum, Compression, Entry, Geometry, Key, Offset,
    Position, SegmentHeader, SegmentNumber, Slot, Summary, Superblock, SynchMark, Uuid, block_crc, summary_blocks,
};

pub(super) const PACKINGS: [Packing; 4] = [Packing::Raw, Packing::Zstd(1), Packing::Zstd(3), Packing::Zstd(12)];

/// A volume with segments of so many blocks.
pub(super) fn volume(segment_blocks: u32) -> Superblock {
    Superblock {
        uuid: Uuid([0x11; 16]),
        history: Uuid([0x22; 16]),
        parent_history: Uuid::default(),
        fork_position: Position(0),
        key: Key([0x33; 32]),
        generation: 7,
        epoch: 3,
        created_ns: 1_700_000_000_000_000_000,
        geometry: Geometry {
            primary_blocks: 512 + 8 * u64::from(segment_blocks),
            volume_blocks: 2 * u64::from(segment_blocks),
            segment_blocks,
            slots: 8,
            working_set: 4,
        },
        archive_at: ArchiveAt::Seal,
        compression: Compression::Auto,
        clean_close: None,
        accepted_loss: None,
        name: "test".to_owned(),
        backing: "dir:/backup/test".to_owned(),
    }
}

/// A full segment with random batches: its image, and its summary, which is encoded at the image's end.
pub(super) fn segment(volume: &Superblock, rng: &mut Rng, number: u64) -> (Vec<u8>, Summary) {
    let blocks = volume.geometry.segment_blocks;
    let mut image = vec![0; volume.geometry.segment_bytes()];
    let mut summary = Summary {
        segment: SegmentNumber(number),
        epoch: 2,
        first_position: Position(1000 * number),
        oldest_needed: SegmentNumber(1),
        predecessor: Checksum([number as u8; 16]),
        last_checksum: Checksum([number as u8; 16]),
        volume_blocks: volume.geometry.volume_blocks,
        batches: Vec::new(),
        entries: Vec::new(),
        synchs: Vec::new(),
    };
    let header = SegmentHeader {
        segment: summary.segment,
        slot: Slot(2),
        epoch: summary.epoch,
        first_position: summary.first_position,
        predecessor: summary.predecessor,
        oldest_needed: summary.oldest_needed,
        durable_through: Position(1),
        archived_through: SegmentNumber(0),
        volume_blocks: summary.volume_blocks,
        working_set: volume.geometry.working_set,
        time_ns: 5,
    };
    header.encode(volume, &mut image[..BLOCK_BYTES]);
    let mut offset = Offset(1);
    loop {
        let want = rng.u32(1..12);
        let bytes: usize = summary.synchs.iter().map(|mark| mark.encode().len()).sum();
        let tail = summary_blocks(summary.batches.len() + 1, summary.entries.len() + 16, bytes + 64);
        if !summary.batches.is_empty() && offset.0 + 1 + want + 1 + tail > blocks {
            break;
        }
        offset = batch(volume, rng, &mut summary, &mut image, offset, want.min(blocks.saturating_sub(offset.0 + 3)));
    }
    let at = image.len() - summary.blocks() as usize * BLOCK_BYTES;
    summary.encode(volume, &mut image[at..]);
    (image, summary)
}

/// Appends a batch with `writes` written blocks, and sometimes a trim, a new epoch, a synch point.
fn batch(
    volume: &Superblock,
    rng: &mut Rng,
    summary: &mut Summary,
    image: &mut [u8],
    offset: Offset,
    writes: u32,
) -> Offset {
    let mut entries = Vec::new();
    let mut data = Vec::new();
    for _ in 0..writes {
        let block = Block(rng.u64(0..volume.geometry.volume_blocks));
        let mut bytes = vec![rng.u8(..); BLOCK_BYTES];
        if rng.bool() {
            rng.fill(&mut bytes);
        }
        entries.push(Entry::write(block, block_crc(&bytes)));
        data.extend(bytes);
    }
    if rng.u8(..4) == 0 {
        entries.push(Entry::range(Block(0), 2, false));
    }
    if rng.u8(..4) == 0 {
        summary.epoch += 1;
        entries.push(Entry::open(summary.epoch));
    }
    if writes < 11 && !summary.batches.is_empty() && rng.u8(..4) == 0 {
        let point = summary.last_position().next().0;
        let mark = SynchMark { point, time_ns: 9, label: "nightly".to_owned(), info: String::new() };
        let mut bytes = mark.encode();
        bytes.resize(BLOCK_BYTES, 0);
        entries.push(Entry::synch(point, block_crc(&bytes)));
        data.extend(bytes);
        summary.synchs.push(mark);
    }
    let header = BatchHeader {
        segment: summary.segment,
        offset,
        position: summary.last_position().next(),
        epoch: summary.epoch,
        wall_ns: 40,
        time_ns: 41,
        durable_through: Position(2),
        oldest_needed: summary.oldest_needed,
        archived_through: SegmentNumber(0),
        volume_blocks: summary.volume_blocks,
        working_set: volume.geometry.working_set,
        predecessor: summary.last_checksum,
    };
    let at = offset.0 as usize * BLOCK_BYTES;
    summary.last_checksum = header.encode(volume, &entries, &mut image[at..at + BLOCK_BYTES]);
    image[at + BLOCK_BYTES..at + BLOCK_BYTES + data.len()].copy_from_slice(&data);
    let data_blocks = (data.len() / BLOCK_BYTES) as u32;
    summary.batches.push(BatchRecord::new(offset, entries.len(), data_blocks, summary.epoch, 41, 40));
    summary.entries.extend(entries);
    offset.plus(1 + data_blocks)
}

/// A store in memory that holds one object.
pub(super) fn store_with(name: &ObjectName, object: &[u8]) -> (Arc<MemoryStore>, Arc<dyn Store>) {
    let memory = Arc::new(MemoryStore::new());
    memory.put(name, object).unwrap();
    (Arc::clone(&memory), memory)
}

pub(super) fn name_of(volume: &Superblock, summary: &Summary) -> ObjectName {
    ObjectName { history: volume.history, segment: summary.segment, epoch: summary.epoch, part: 0 }
}

/// A volume, one of its segments, and the object of it.
pub(super) struct Sample {
    pub(super) volume: Superblock,
    pub(super) summary: Summary,
    pub(super) image: Vec<u8>,
    pub(super) object: Vec<u8>,
    pub(super) name: ObjectName,
}

pub(super) fn sample(segment_blocks: u32, seed: u64, packing: Packing) -> Sample {
    let volume = volume(segment_blocks);
    let (image, summary) = segment(&volume, &mut Rng::with_seed(seed), 3);
    let object = encode_object(&volume, &summary, Extent::WHOLE, &image, packing).unwrap();
    let name = name_of(&volume, &summary);
    Sample { volume, summary, image, object, name }
}
