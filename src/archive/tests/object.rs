//! The object: what goes in comes out, by our reader and by anyone's zstd; and what is damaged never comes out.

use std::io::Write;
use std::process::{Command, Stdio};
use std::sync::Arc;

use fastrand::Rng;

use super::{PACKINGS, Sample, sample, segment, store_with, volume};
use crate::archive::frame::stored_bytes;
use crate::archive::{
    ArchiveError, ArchivedSegment, Extent, FRAME_BYTES, Frame, FrameTable, MemoryStore, OBJECT_HEADER_BYTES,
    ObjectHeader, Outline, Packing, Store, encode_object,
};
use crate::format::{BLOCK_BYTES, Checksum, Key, Offset, Superblock, Uuid, summary_from_image};

fn open(sample: &Sample, object: &[u8]) -> Result<ArchivedSegment, ArchiveError> {
    let (_, store) = store_with(&sample.name, object);
    ArchivedSegment::open(&store, &sample.name, Some(&sample.volume))
}

/// Everything that can be read from `object` is what it should be; says whether all of it could be read.
fn whole(sample: &Sample, object: &[u8]) -> bool {
    let Ok(mut opened) = open(sample, object) else {
        return false;
    };
    assert_eq!(opened.summary(), &sample.summary);
    let mut block = [0; BLOCK_BYTES];
    for (offset, wanted) in sample.image.chunks(BLOCK_BYTES).enumerate() {
        if opened.read_block(Offset(offset as u32), &mut block).is_ok() {
            assert_eq!(block, *wanted);
        }
    }
    let image = opened.read_image();
    image.is_ok_and(|image| {
        assert!(image == sample.image);
        true
    })
}

#[test]
fn round_trips() {
    for seed in 0..24 {
        for segment_blocks in [16, 31, 64, 65, 200, 1024] {
            let sample = sample(segment_blocks, seed, PACKINGS[seed as usize % PACKINGS.len()]);
            assert!(whole(&sample, &sample.object), "seed {seed}, {segment_blocks} blocks");
            assert!(zstd::stream::decode_all(&sample.object[..]).unwrap() == sample.image);
            assert!(summary_from_image(&sample.image, &sample.volume).unwrap() == sample.summary);
        }
    }
}

#[test]
fn the_plain_tool_decodes_it() {
    for packing in PACKINGS {
        let sample = sample(300, 1, packing);
        let tool = Command::new("zstd").args(["-dc"]).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let Ok(mut tool) = tool else {
            eprintln!("no zstd tool here: not tested");
            return;
        };
        let mut input = tool.stdin.take().unwrap();
        let object = sample.object.clone();
        let writer = std::thread::spawn(move || input.write_all(&object));
        let output = tool.wait_with_output().unwrap();
        writer.join().unwrap().unwrap();
        assert!(output.status.success() && output.stdout == sample.image, "{packing:?}");
    }
}

#[test]
fn frames_are_small_and_stored_when_that_is_better() {
    let raw = sample(1024, 4, Packing::Raw);
    let packed = sample(1024, 4, Packing::Zstd(1));
    assert!(packed.object.len() < raw.object.len());
    let frames = |sample: &Sample| {
        let header = ObjectHeader::parse(&sample.object[..OBJECT_HEADER_BYTES]).unwrap();
        FrameTable::parse(&sample.object, sample.object.len() as u64, &header).unwrap().frames().to_vec()
    };
    for frame in frames(&raw) {
        assert!(frame.raw_bytes <= FRAME_BYTES && frame.bytes == stored_bytes(frame.raw_bytes));
    }
    // Random bytes: no frame of data compresses.
    let mut sample = sample(1024, 4, Packing::Zstd(3));
    Rng::with_seed(1).fill(&mut sample.image);
    let object =
        encode_object(&sample.volume, &sample.summary, Extent::WHOLE, &sample.image, Packing::Zstd(3)).unwrap();
    assert!(zstd::stream::decode_all(&object[..]).unwrap() == sample.image);
    assert!(object.len() - sample.image.len() < 6000);
    // Zeros cost next to nothing.
    sample.image.fill(0);
    let object =
        encode_object(&sample.volume, &sample.summary, Extent::WHOLE, &sample.image, Packing::Zstd(3)).unwrap();
    assert!(object.len() < OBJECT_HEADER_BYTES + 33 * 40 + 100, "{}", object.len());
}

#[test]
fn a_summary_of_many_frames_is_one_frame() {
    // Batches without data: the summary takes almost as much as they do, more than one raw block of zstd.
    let mut sample = sample(1024, 4, Packing::Raw);
    for _ in 0..9000 {
        sample.summary.entries.push(crate::format::Entry::noop());
    }
    assert!(sample.summary.blocks() as usize * BLOCK_BYTES > FRAME_BYTES);
    let object = encode_object(&sample.volume, &sample.summary, Extent::WHOLE, &sample.image, Packing::Raw).unwrap();
    assert!(zstd::stream::decode_all(&object[..]).unwrap() == sample.image);
}

#[test]
fn bytes_do_not_depend_on_the_opening() {
    let sample = sample(64, 9, Packing::Zstd(1));
    let later = Superblock { generation: 99, epoch: 12, ..sample.volume.clone() };
    assert!(
        encode_object(&later, &sample.summary, Extent::WHOLE, &sample.image, Packing::Zstd(1)).unwrap()
            == sample.object
    );
}

#[test]
fn every_flipped_bit_is_found() {
    let mut rng = Rng::with_seed(5);
    let sample = sample(64, 2, Packing::Zstd(1));
    let footer = sample.object.len() - 4 * 12 - 56 - 8;
    for at in 0..sample.object.len() {
        // Header, table and footer byte by byte, of the frames a sample.
        if at >= OBJECT_HEADER_BYTES && at < footer && rng.u32(..97) != 0 {
            continue;
        }
        let mut object = sample.object.clone();
        object[at] ^= 1 << rng.u32(..8);
        assert!(!whole(&sample, &object), "byte {at:#x}");
    }
}

#[test]
fn every_cut_is_found() {
    let sample = sample(32, 3, Packing::Zstd(1));
    for length in (0..sample.object.len()).filter(|length| length % 61 == 0 || length + 300 > sample.object.len()) {
        assert!(!whole(&sample, &sample.object[..length]), "length {length}");
    }
    let longer = [&sample.object[..], &[0; 5]].concat();
    assert!(!whole(&sample, &longer));
}

#[test]
fn ends_of_two_objects_do_not_mix() {
    let (a, b) = (sample(32, 3, Packing::Raw), sample(32, 4, Packing::Raw));
    let mixed = [&a.object[..OBJECT_HEADER_BYTES], &b.object[OBJECT_HEADER_BYTES..]].concat();
    assert!(open(&a, &mixed).is_err());
    // Same segment, another header that is whole.
    let mut header = ObjectHeader::parse(&a.object[..OBJECT_HEADER_BYTES]).unwrap();
    header.predecessor = Checksum([7; 16]);
    let mixed = [&header.encode()[..], &a.object[OBJECT_HEADER_BYTES..]].concat();
    let error = open(&a, &mixed).err().unwrap().to_string();
    assert!(error.contains("footer") && error.contains("another"), "{error}");
}

#[test]
fn a_hostile_table_is_refused_although_its_checksum_holds() {
    let sample = sample(100, 6, Packing::Zstd(1));
    let header = ObjectHeader::parse(&sample.object[..OBJECT_HEADER_BYTES]).unwrap();
    let table = FrameTable::parse(&sample.object, sample.object.len() as u64, &header).unwrap();
    let end = table.frames().last().unwrap().end() as usize;
    let with = |change: &dyn Fn(usize, &mut Frame)| {
        let mut changed = FrameTable::default();
        for (rank, frame) in table.frames().iter().enumerate() {
            let mut frame = *frame;
            change(rank, &mut frame);
            changed.push(frame);
        }
        let mut object = sample.object[..end].to_vec();
        changed.encode(&header, &mut object);
        object
    };
    assert!(whole(&sample, &with(&|_, _| ())));
    let values = [0, 1, 4095, 4096, 8192, FRAME_BYTES, FRAME_BYTES + 4096, 1 << 30, u32::MAX as usize];
    for rank in 0..table.frames().len() {
        for value in values {
            let frame = table.frames()[rank];
            let longer = with(&|at, frame| {
                if at == rank {
                    frame.bytes = value
                }
            });
            assert_eq!(whole(&sample, &longer), value == frame.bytes, "frame {rank}: {value}");
            let larger = with(&|at, frame| {
                if at == rank {
                    frame.raw_bytes = value
                }
            });
            assert_eq!(whole(&sample, &larger), value == frame.raw_bytes, "frame {rank}: {value}");
        }
    }
}

#[test]
fn an_outline_may_be_absent_and_may_not_be_wrong() {
    let sample = sample(64, 6, Packing::Zstd(1));
    let header = ObjectHeader::parse(&sample.object[..OBJECT_HEADER_BYTES]).unwrap();
    let table = FrameTable::parse(&sample.object, sample.object.len() as u64, &header).unwrap();
    let end = table.frames().last().unwrap().end() as usize;
    let with = |outline| {
        let header = ObjectHeader { outline, ..header.clone() };
        let mut object = [&header.encode()[..], &sample.object[OBJECT_HEADER_BYTES..end]].concat();
        table.encode(&header, &mut object);
        object
    };
    let outline = header.outline.unwrap();
    assert!(with(Some(outline)) == sample.object);
    assert!(whole(&sample, &with(None)));
    assert!(!whole(&sample, &with(Some(Outline { synchs: outline.synchs + 1, ..outline }))));
    assert!(!whole(&sample, &with(Some(Outline { first_time_ns: outline.first_time_ns - 1, ..outline }))));
    assert!(!whole(&sample, &with(Some(Outline { last_time_ns: outline.last_time_ns + 1, ..outline }))));
}

#[test]
fn a_frame_that_decodes_to_another_length_is_refused() {
    let sample = sample(1024, 6, Packing::Zstd(1));
    let header = ObjectHeader::parse(&sample.object[..OBJECT_HEADER_BYTES]).unwrap();
    let table = FrameTable::parse(&sample.object, sample.object.len() as u64, &header).unwrap();
    let frames = table.frames();
    assert!(sample.summary.blocks() > 1);
    // The lengths add up, but not to what the frames decode to: the last of the data has one block more, or less.
    for more in [true, false] {
        let mut changed = FrameTable::default();
        for (rank, frame) in frames.iter().enumerate() {
            let mut frame = *frame;
            match (frames.len() - rank, more) {
                (1, true) | (2, false) => frame.raw_bytes -= BLOCK_BYTES,
                (2, true) | (1, false) => frame.raw_bytes += BLOCK_BYTES,
                _ => {}
            }
            changed.push(frame);
        }
        let mut object = sample.object[..frames[frames.len() - 1].end() as usize].to_vec();
        changed.encode(&header, &mut object);
        assert!(!whole(&sample, &object));
        let error = format!("{:?}", open(&sample, &object).and_then(|mut opened| opened.read_image()).err());
        assert!(error.contains("Decoded") || error.contains("Decode"), "{error}");
    }
}

#[test]
fn a_rotten_summary_is_made_again() {
    let mut sample = sample(200, 8, Packing::Zstd(1));
    let good = sample.object.clone();
    // Rotten already on the primary: the object keeps what was there.
    let last = sample.image.len() - 1;
    sample.image[last] ^= 1;
    sample.object =
        encode_object(&sample.volume, &sample.summary, Extent::WHOLE, &sample.image, Packing::Zstd(1)).unwrap();
    assert!(whole(&sample, &sample.object));
    // Rotten in the store: all but the summary's own frame can be read.
    sample.image[last] ^= 1;
    let header = ObjectHeader::parse(&good[..OBJECT_HEADER_BYTES]).unwrap();
    let table = FrameTable::parse(&good, good.len() as u64, &header).unwrap();
    let mut object = good;
    object[table.frames().last().unwrap().at as usize + 9] ^= 4;
    let mut opened = open(&sample, &object).unwrap();
    assert_eq!(opened.summary(), &sample.summary);
    assert!(opened.read_image().is_err());
    assert!(opened.read_block(Offset(1), &mut [0; BLOCK_BYTES]).is_ok());
    // Headers damaged too: the summary would be short, and the object's header knows it.
    let second = sample.summary.batches[1].offset().0 as usize * BLOCK_BYTES;
    sample.image[second] ^= 1;
    sample.image[last] ^= 1;
    let object =
        encode_object(&sample.volume, &sample.summary, Extent::WHOLE, &sample.image, Packing::Zstd(1)).unwrap();
    assert!(open(&sample, &object).is_err());
    assert_eq!(summary_from_image(&sample.image, &sample.volume).unwrap().batches.len(), 1);
}

#[test]
fn objects_of_others_are_refused() {
    let sample = sample(32, 3, Packing::Zstd(1));
    let (_, store) = store_with(&sample.name, &sample.object);
    let other = Superblock { uuid: Uuid([9; 16]), ..sample.volume.clone() };
    let rekeyed = Superblock { key: Key([9; 32]), ..sample.volume.clone() };
    let forked = Superblock { history: Uuid([9; 16]), ..sample.volume.clone() };
    for volume in [&other, &rekeyed] {
        let refused = ArchivedSegment::open(&store, &sample.name, Some(volume));
        assert!(matches!(refused, Err(ArchiveError::Volume { .. })));
    }
    assert!(ArchivedSegment::open(&store, &sample.name, Some(&forked)).is_ok());
    // Alone, an object says whose it is.
    let alone = ArchivedSegment::open(&store, &sample.name, None).unwrap();
    assert_eq!((alone.volume().uuid, alone.volume().key), (sample.volume.uuid, sample.volume.key));
    // Under another name, it is not that segment's.
    let misnamed = crate::archive::ObjectName { epoch: sample.name.epoch + 1, ..sample.name };
    let (_, store) = store_with(&misnamed, &sample.object);
    assert!(ArchivedSegment::open(&store, &misnamed, None).is_err());
}

#[test]
fn misuse_is_an_error() {
    let sample = sample(32, 3, Packing::Zstd(1));
    let mut opened = open(&sample, &sample.object).unwrap();
    assert!(matches!(opened.read_block(Offset(32), &mut [0; BLOCK_BYTES]), Err(ArchiveError::Offset { .. })));
    assert!(matches!(opened.read_block(Offset(0), &mut [0; 9]), Err(ArchiveError::Buffer { .. })));
    assert!(encode_object(&sample.volume, &sample.summary, Extent::WHOLE, &sample.image[1..], Packing::Raw).is_err());
    assert!(summary_from_image(&sample.image[1..], &sample.volume).is_err());
}

#[test]
fn a_block_costs_one_frame() {
    let volume = volume(1024);
    let (image, summary) = segment(&volume, &mut Rng::with_seed(77), 3);
    let name = super::name_of(&volume, &summary);
    let memory = Arc::new(MemoryStore::new());
    memory.put(&name, &encode_object(&volume, &summary, Extent::WHOLE, &image, Packing::Zstd(1)).unwrap()).unwrap();
    let store: Arc<dyn Store> = memory.clone();
    let mut opened = ArchivedSegment::open(&store, &name, None).unwrap();
    let mut block = [0; BLOCK_BYTES];
    opened.read_block(Offset(33), &mut block).unwrap();
    // The rest of the frame comes from the cache, even when the store is gone.
    memory.set_error(Some("gone".to_owned()));
    opened.read_block(Offset(63), &mut block).unwrap();
    assert!(block == image[63 * BLOCK_BYTES..64 * BLOCK_BYTES]);
    assert!(opened.read_block(Offset(64), &mut block).is_err());
}
