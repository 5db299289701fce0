//! An open segment in parts: any cut of it reads like the segment as far as the parts go.

use std::ops::Range;
use std::sync::Arc;

use fastrand::Rng;

use super::{Sample, sample};
use crate::archive::{
    ArchiveError, ArchiveJob, ArchivedSegment, Extent, MemoryStore, ObjectName, Packing, Store, StoreError,
    archive_segment,
};
use crate::format::{BLOCK_BYTES, BatchHeader, Checksum, Offset, Summary, Superblock};
use crate::io::Buffer;

/// Archives the batches of those ranks as part `part`, under another epoch when one is given.
fn put(store: &Arc<dyn Store>, sample: &Sample, part: u32, ranks: Range<usize>) -> ObjectName {
    let (summary, first, image) = cut(sample, ranks);
    let buffer = Buffer::new(image.len()).unwrap();
    buffer.copy_from(0, &image);
    let job = ArchiveJob {
        store: Arc::clone(store),
        volume: sample.volume.clone(),
        summary: Arc::new(summary),
        extent: Extent { part, first },
        image: buffer,
        packing: Packing::Zstd(1),
    };
    archive_segment(job).unwrap().name
}

fn batch(sample: &Sample, rank: usize) -> crate::format::ParsedBatch {
    let at = sample.summary.batches[rank].offset().0 as usize * BLOCK_BYTES;
    BatchHeader::parse(&sample.image[at..], &sample.volume).unwrap()
}

fn cut(sample: &Sample, ranks: Range<usize>) -> (Summary, Offset, Vec<u8>) {
    let Sample { volume, summary, image, .. } = sample;
    let predecessor = batch(sample, ranks.start).header.predecessor;
    let last = batch(sample, ranks.end - 1);
    let part = summary.part(ranks.clone(), predecessor, last.checksum);
    let first = if ranks.start == 0 { Offset(0) } else { summary.batches[ranks.start].offset() };
    let end = last.header.offset.0 + last.blocks();
    let mut bytes = image[first.0 as usize * BLOCK_BYTES..end as usize * BLOCK_BYTES].to_vec();
    let at = bytes.len();
    bytes.resize(at + part.blocks() as usize * BLOCK_BYTES, 0);
    part.encode(volume, &mut bytes[at..]);
    (part, first, bytes)
}

/// What the segment is up to the batch before rank `end`.
fn until(sample: &Sample, end: usize) -> (Summary, Vec<u8>) {
    let summary = sample.summary.part(0..end, sample.summary.predecessor, batch(sample, end - 1).checksum);
    let last = batch(sample, end - 1);
    let mut image = sample.image.clone();
    image[(last.header.offset.0 + last.blocks()) as usize * BLOCK_BYTES..].fill(0);
    (summary, image)
}

fn is_until(found: &mut ArchivedSegment, sample: &Sample, end: usize) -> bool {
    let (summary, image) = until(sample, end);
    let mut block = vec![0; BLOCK_BYTES];
    let blocks = (0..found.end().0).all(|offset| {
        found.read_block(Offset(offset), &mut block).unwrap();
        block == image[offset as usize * BLOCK_BYTES..][..BLOCK_BYTES]
    });
    blocks && *found.summary() == summary && found.read_image().unwrap() == image
}

#[test]
fn any_cut_reads_as_far_as_it_goes() {
    for seed in 0..20 {
        let mut rng = Rng::with_seed(seed);
        let sample = sample(512, seed, Packing::Raw);
        let count = sample.summary.batches.len();
        let (mut names, mut from, mut part) = (Vec::new(), 0, 0);
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        while from < count {
            let to = rng.usize(from + 1..=count);
            part += 1;
            names.push(put(&store, &sample, part, from..to));
            rng.shuffle(&mut names);
            let mut found = ArchivedSegment::open_parts(&store, &names, Some(&sample.volume)).unwrap();
            assert!(is_until(&mut found, &sample, to), "seed {seed}, to {to} of {count}");
            from = to;
        }
        // One that holds all of them, and they are gone.
        let whole = put(&store, &sample, part + 1, 0..count);
        names.push(whole);
        let found = ArchivedSegment::open_parts(&store, &names, Some(&sample.volume)).unwrap();
        assert_eq!(found.names(), vec![whole]);
    }
}

#[test]
fn a_part_alone_is_the_blocks_it_has() {
    let sample = sample(512, 3, Packing::Raw);
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let name = put(&store, &sample, 2, 3..7);
    let (summary, first, bytes) = cut(&sample, 3..7);
    let mut part = ArchivedSegment::open(&store, &name, Some(&sample.volume)).unwrap();
    assert_eq!((part.start(), part.summary()), (first, &summary));
    let image = part.read_image().unwrap();
    let run = bytes.len() - summary.blocks() as usize * BLOCK_BYTES;
    assert!(image[first.0 as usize * BLOCK_BYTES..][..run] == bytes[..run]);
    assert!(image[..first.0 as usize * BLOCK_BYTES].iter().all(|byte| *byte == 0));
    // Plain zstd gives the run and its summary.
    let object = store.get(&name, 0..u64::MAX).unwrap();
    assert!(zstd::stream::decode_all(&object[..]).unwrap() == bytes);
    // Without the first part there is no segment.
    assert!(ArchivedSegment::open_parts(&store, &[name], None).is_err());
}

#[test]
fn a_missing_or_damaged_part_ends_what_is_there() {
    let sample = sample(512, 4, Packing::Raw);
    let memory = Arc::new(MemoryStore::new());
    let store: Arc<dyn Store> = memory.clone();
    let names = [put(&store, &sample, 1, 0..3), put(&store, &sample, 2, 3..6), put(&store, &sample, 3, 6..9)];
    for broken in 0..3 {
        let ends = |names: &[ObjectName]| {
            ArchivedSegment::open_parts(&store, names, None).map(|mut found| is_until(&mut found, &sample, 3 * broken))
        };
        let others: Vec<ObjectName> = names.iter().filter(|name| **name != names[broken]).copied().collect();
        assert_eq!(ends(&others).ok(), (broken > 0).then_some(true));
        let bytes = store.get(&names[broken], 0..u64::MAX).unwrap();
        for at in [9, 5000, bytes.len() - 3] {
            memory.alter(&names[broken], |bytes| bytes[at] ^= 1);
            // A damaged block of data is found when it is read; what the part says of itself is whole.
            assert!(at == 5000 || ends(&names).ok() == (broken > 0).then_some(true), "part {broken}, byte {at}");
            memory.alter(&names[broken], |bytes| bytes[at] ^= 1);
        }
        store.delete(&names[broken]).unwrap();
        assert!(matches!(
            ArchivedSegment::open_parts(&store, &names, None).map(drop),
            Err(ArchiveError::Store(StoreError::Missing { .. }))
        ));
        store.put(&names[broken], &bytes).unwrap();
    }
}

#[test]
fn a_rotten_summary_is_made_again() {
    let sample = sample(512, 5, Packing::Raw);
    for ranks in [0..4, 2..6] {
        let (mut summary, first, bytes) = cut(&sample, ranks);
        let mut rotten = bytes.clone();
        *rotten.last_mut().unwrap() ^= 1;
        let extent = Extent { part: 1, first };
        let object = crate::archive::encode_object(&sample.volume, &summary, extent, &rotten, Packing::Raw).unwrap();
        let name = ObjectName { part: 1, epoch: summary.epoch, ..sample.name };
        let (_, store) = super::store_with(&name, &object);
        let found = ArchivedSegment::open(&store, &name, None).unwrap();
        assert_eq!(*found.summary(), summary);
        // One that is of other batches is not accepted.
        summary.last_checksum = Checksum([9; 16]);
        let object = crate::archive::encode_object(&sample.volume, &summary, extent, &bytes, Packing::Raw).unwrap();
        let (_, store) = super::store_with(&name, &object);
        assert!(ArchivedSegment::open(&store, &name, None).is_err());
    }
}

#[test]
fn a_past_that_was_given_up_is_not_gone_on_with() {
    // The same first batches; then, after a loss that was accepted, others.
    let sample = sample(512, 6, Packing::Raw);
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let old = [put(&store, &sample, 1, 0..4), put(&store, &sample, 2, 4..9)];
    let mut other = super::sample(512, 6, Packing::Raw);
    let mut chain = batch(&other, 2).checksum;
    let mut kept = other.summary.part(0..3, other.summary.predecessor, chain);
    for rank in 3..6 {
        let parsed = batch(&other, rank);
        let at = parsed.header.offset.0 as usize * BLOCK_BYTES;
        let header = BatchHeader { epoch: parsed.header.epoch + 1000, predecessor: chain, ..parsed.header };
        chain = header.encode(&other.volume, &parsed.entries, &mut other.image[at..at + BLOCK_BYTES]);
        let record = other.summary.batches[rank];
        let mut next = other.summary.part(rank..rank + 1, header.predecessor, chain);
        next.batches = vec![crate::format::BatchRecord::new(
            record.offset(),
            record.entries(),
            record.data_blocks(),
            header.epoch,
            record.time_ns(),
            record.wall_ns(),
        )];
        next.epoch = header.epoch;
        kept.append(next);
    }
    kept.last_checksum = chain;
    other.summary = kept;
    let new = put(&store, &other, 1, 0..6);
    let mut found = ArchivedSegment::open_parts(&store, &[old[0], old[1], new], None).unwrap();
    assert_eq!(found.names(), vec![new]);
    assert!(is_until(&mut found, &other, 6));
}

#[test]
fn hostile_extents_are_refused() {
    let sample = sample(64, 7, Packing::Raw);
    let (summary, first, bytes) = cut(&sample, 1..3);
    let blocks = (bytes.len() / BLOCK_BYTES) as u32;
    let with = |volume: &Superblock, extent, blocks| {
        let header = crate::archive::ObjectHeader::new(volume, &summary, extent, blocks);
        crate::archive::ObjectHeader::parse(&header.encode()).map(drop)
    };
    assert!(with(&sample.volume, Extent { part: 1, first }, blocks).is_ok());
    for (part, first, blocks) in
        [(1, 0, 1), (1, 0, 65), (1, 60, 5), (1, u32::MAX, 4), (1, 4, u32::MAX), (0, 0, 63), (0, 1, 64), (0, 0, 65)]
    {
        assert!(
            with(&sample.volume, Extent { part, first: Offset(first) }, blocks).is_err(),
            "{part} {first} {blocks}"
        );
    }
    let outside = Extent { part: 1, first: Offset(62) };
    assert!(crate::archive::encode_object(&sample.volume, &summary, outside, &bytes, Packing::Raw).is_err());
}
