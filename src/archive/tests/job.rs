//! Archiving a segment, start to end, on stores that keep it and on stores that do not.

use std::sync::Arc;

use super::{Sample, sample, volume};
use crate::archive::{
    ArchiveError, ArchiveJob, Archived, ArchivedSegment, DirectoryStore, Extent, MemoryStore, OBJECT_HEADER_BYTES,
    Packing, Store, archive_segment,
};
use crate::format::{BatchHeader, Checksum, SegmentHeader, Superblock};
use crate::io::Buffer;

fn archive(store: &Arc<dyn Store>, sample: &Sample, packing: Packing) -> Result<Archived, ArchiveError> {
    let image = Buffer::new(sample.image.len()).unwrap();
    image.copy_from(0, &sample.image);
    let (volume, summary) = (sample.volume.clone(), Arc::new(sample.summary.clone()));
    archive_segment(ArchiveJob { store: Arc::clone(store), volume, summary, extent: Extent::WHOLE, image, packing })
}

#[test]
fn a_segment_is_archived_and_read_from_a_directory() {
    let scratch = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(DirectoryStore::create(scratch.path(), &volume(4096)).unwrap());
    let sample = sample(4096, 1, Packing::Zstd(3));
    let archived = archive(&store, &sample, Packing::Zstd(3)).unwrap();
    assert_eq!(archived.image_bytes, sample.image.len() as u64);
    assert_eq!(store.list().unwrap(), vec![(sample.name, archived.object_bytes)]);
    let mut opened = ArchivedSegment::open(&store, &archived.name, Some(&sample.volume)).unwrap();
    assert!(opened.read_image().unwrap() == sample.image);
}

#[test]
fn again_and_at_another_level_is_the_same_segment() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let mut sample = sample(128, 1, Packing::Zstd(3));
    let first = archive(&store, &sample, Packing::Zstd(3)).unwrap();
    for packing in super::PACKINGS {
        assert_eq!(archive(&store, &sample, packing).unwrap(), first);
    }
    // Renamed since.
    sample.volume = Superblock { name: "other".to_owned(), generation: 50, ..sample.volume };
    assert_eq!(archive(&store, &sample, Packing::Zstd(3)).unwrap(), first);
    // Another segment of that name is not accepted, and says where it differs.
    let before = sample.image.clone();
    let first = BatchHeader::parse(&sample.image[4096..], &sample.volume).unwrap();
    let other = BatchHeader { time_ns: first.header.time_ns ^ 1, ..first.header };
    other.encode(&sample.volume, &first.entries, &mut sample.image[4096..8192]);
    let error = archive(&store, &sample, Packing::Zstd(3)).unwrap_err();
    let at = sample.image.iter().zip(&before).position(|(is, was)| is != was).unwrap();
    let named = error.to_string().contains(&format!("byte {at:#x} of"));
    assert!(matches!(error, ArchiveError::Conflict { .. }) && named, "{error}");
}

/// A header that could not be read when the segment was archived, or cannot be read any more: it is the same segment. (One that
/// came back kept the archiver from everything behind it.)
#[test]
fn a_header_that_could_not_be_read_once_is_no_other_segment() {
    let whole = sample(128, 1, Packing::Zstd(3));
    let mut holed = sample(128, 1, Packing::Zstd(3));
    let block = whole.summary.batches[1].offset().0 as usize;
    holed.image[block * 4096..(block + 1) * 4096].fill(0);
    // What an opening makes out of the first batch: it does not know when the segment was begun.
    let mut remade = sample(128, 1, Packing::Zstd(3));
    let header = SegmentHeader::parse(&whole.image, &whole.volume).unwrap();
    SegmentHeader { time_ns: 77, ..header }.encode(&whole.volume, &mut remade.image[..4096]);
    for [first, second] in [[&holed, &whole], [&whole, &holed], [&whole, &remade], [&remade, &whole]] {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let archived = archive(&store, first, Packing::Zstd(3)).unwrap();
        assert_eq!(archive(&store, second, Packing::Zstd(3)).unwrap(), archived);
        let mut opened = ArchivedSegment::open(&store, &archived.name, Some(&whole.volume)).unwrap();
        assert!(*opened.summary() == whole.summary && opened.read_image().unwrap() == first.image);
    }
}

#[test]
fn a_store_that_spoils_objects_is_found_out() {
    let sample = sample(128, 1, Packing::Zstd(1));
    let mut rng = fastrand::Rng::with_seed(3);
    // All that the header says of itself, the end of the table, and samples of what is between.
    for at in (0..sample.object.len()).filter(|at| *at < 240 || at % 999 == 0 || at + 130 > sample.object.len()) {
        let memory = Arc::new(MemoryStore::new());
        let bit = rng.u8(..8);
        memory.set_corruption(Some(Box::new(move |_, bytes| bytes[at] ^= 1 << bit)));
        let store: Arc<dyn Store> = memory.clone();
        let error = archive(&store, &sample, Packing::Zstd(1)).unwrap_err();
        assert!(matches!(error, ArchiveError::Object { .. }), "byte {at:#x}: {error}");
        // Nor is what it kept accepted later: it is replaced.
        memory.set_corruption(None);
        archive(&store, &sample, Packing::Zstd(1)).unwrap_or_else(|error| panic!("byte {at:#x}: {error}"));
        assert!(kept(&store, &sample) == sample.object);
    }
    // Cut short, anywhere.
    for bytes in (0..sample.object.len()).filter(|bytes| bytes % 777 == 0) {
        let (memory, store) = super::store_with(&sample.name, &sample.object);
        assert!(memory.alter(&sample.name, |object| object.truncate(bytes)));
        archive(&store, &sample, Packing::Zstd(1)).unwrap_or_else(|error| panic!("{bytes} bytes: {error}"));
        assert!(kept(&store, &sample) == sample.object);
    }
}

fn kept(store: &Arc<dyn Store>, sample: &Sample) -> Vec<u8> {
    store.get(&sample.name, 0..store.length(&sample.name).unwrap()).unwrap()
}

#[test]
fn a_store_that_spoils_now_and_then_gets_the_segment_again() {
    let sample = sample(128, 1, Packing::Zstd(1));
    let memory = Arc::new(MemoryStore::new());
    let mut puts = 0;
    memory.set_corruption(Some(Box::new(move |_, bytes| {
        puts += 1;
        if puts < 3 {
            bytes[9000] ^= 1;
        }
    })));
    let store: Arc<dyn Store> = memory;
    archive(&store, &sample, Packing::Zstd(1)).unwrap();
    assert!(kept(&store, &sample) == sample.object);
}

#[test]
fn a_whole_object_that_is_something_else_is_never_deleted() {
    let sample = sample(128, 1, Packing::Zstd(1));
    // Another segment's, under this name.
    let segment = super::sample(128, 2, Packing::Zstd(1));
    // Another volume's: the same segment but for the uuid, or the key.
    let uuid = Superblock { uuid: crate::format::Uuid([0x77; 16]), ..sample.volume.clone() };
    let key = Superblock { key: crate::format::Key([0x77; 32]), ..sample.volume.clone() };
    let volumes = [uuid, key].map(|volume| {
        crate::archive::encode_object(&volume, &sample.summary, Extent::WHOLE, &sample.image, Packing::Zstd(1)).unwrap()
    });
    // A version to come.
    let mut newer = sample.object.clone();
    newer[16] = 2;
    let checked = OBJECT_HEADER_BYTES - 16;
    let checksum = Checksum::keyed(&sample.volume.key, &[&newer[..checked]]);
    newer[checked..][..16].copy_from_slice(&checksum.0);
    for other in [segment.object, newer].into_iter().chain(volumes) {
        let (_, store) = super::store_with(&sample.name, &other);
        let error = archive(&store, &sample, Packing::Zstd(1)).unwrap_err();
        assert!(matches!(error, ArchiveError::Conflict { .. }), "{error}");
        assert!(kept(&store, &sample) == other, "{error}");
        // Damaged as well, but not in the header that says whose it is.
        let mut damaged = other.clone();
        damaged[10_000] ^= 1;
        let (_, store) = super::store_with(&sample.name, &damaged);
        assert!(archive(&store, &sample, Packing::Zstd(1)).is_err());
        assert!(kept(&store, &sample) == damaged);
    }
    // Put by us, kept as something else.
    let memory = Arc::new(MemoryStore::new());
    let other = super::sample(128, 2, Packing::Zstd(1)).object;
    memory.set_corruption(Some(Box::new(move |_, bytes| bytes.clone_from(&other))));
    let store: Arc<dyn Store> = memory;
    assert!(archive(&store, &sample, Packing::Zstd(1)).is_err());
}

/// Offsets in bytes of data blocks, and of a batch header.
fn places(sample: &Sample) -> (Vec<usize>, usize) {
    let batch = &sample.summary.batches[2];
    let first = batch.offset().0 as usize * 4096;
    ((1..=batch.data_blocks() as usize).map(|rank| first + rank * 4096).collect(), first)
}

#[test]
fn what_rots_on_the_primary_after_it_was_archived_stays_as_it_is_in_the_archive() {
    let mut sample = sample(128, 1, Packing::Zstd(1));
    let (data, header) = places(&sample);
    let (_, store) = super::store_with(&sample.name, &sample.object);
    sample.image[data[0] + 77] ^= 4;
    archive(&store, &sample, Packing::Zstd(3)).unwrap();
    assert!(kept(&store, &sample) == sample.object);
    // Nor does it matter that a header rots, which the summary stands for: seed 10 147 923 of the simulator, whose archiver waited for ever.
    let whole = sample.image.clone();
    sample.image[header + 9] ^= 4;
    archive(&store, &sample, Packing::Zstd(3)).unwrap();
    assert!(kept(&store, &sample) == sample.object);
    // It is not only rot when the header is whole and says something else.
    sample.image = whole;
    let parsed = BatchHeader::parse(&sample.image[header..], &sample.volume).unwrap();
    let other = BatchHeader { wall_ns: parsed.header.wall_ns + 1, ..parsed.header };
    other.encode(&sample.volume, &parsed.entries, &mut sample.image[header..header + 4096]);
    assert!(matches!(archive(&store, &sample, Packing::Zstd(3)), Err(ArchiveError::Conflict { .. })));
}

/// A block that could not be read when the object was put, and can be read when it is put again: seed 10 108 354 of the simulator, whose
/// archiver waited for ever.
#[test]
fn what_could_not_be_read_once_is_archived_when_it_can_be() {
    let mut sample = sample(128, 1, Packing::Zstd(1));
    let (data, _) = places(&sample);
    let whole = sample.image.clone();
    sample.image[data[0]..][..4096].fill(0);
    let object =
        super::encode_object(&sample.volume, &sample.summary, Extent::WHOLE, &sample.image, Packing::Raw).unwrap();
    let (_, store) = super::store_with(&sample.name, &object);
    // Meanwhile another rots, which only the object has.
    sample.image.clone_from(&whole);
    sample.image[data[1] + 77] ^= 4;
    archive(&store, &sample, Packing::Zstd(3)).unwrap();
    let mut opened = ArchivedSegment::open(&store, &sample.name, None).unwrap();
    assert!(opened.read_image().unwrap() == whole);
}

#[test]
fn a_damaged_object_gives_what_the_primary_lost_before_it_goes() {
    let mut sample = sample(4096, 1, Packing::Raw);
    let whole = sample.image.clone();
    let (data, _) = places(&sample);
    let (memory, store) = super::store_with(&sample.name, &sample.object);
    sample.image[data[0] + 77] ^= 4;
    // Rot in a frame that has nothing to do with it.
    let middle = sample.object.len() / 2;
    assert!(memory.alter(&sample.name, |object| object[middle] ^= 1));
    archive(&store, &sample, Packing::Zstd(1)).unwrap();
    let mut opened = ArchivedSegment::open(&store, &sample.name, None).unwrap();
    assert!(opened.read_image().unwrap() == whole);
}

#[test]
fn a_store_that_fails_is_tried_again() {
    let memory = Arc::new(MemoryStore::new());
    let store: Arc<dyn Store> = memory.clone();
    let sample = sample(64, 1, Packing::Zstd(1));
    memory.set_error(Some("gone".to_owned()));
    assert!(matches!(archive(&store, &sample, Packing::Zstd(1)), Err(ArchiveError::Store(_))));
    memory.set_error(None);
    archive(&store, &sample, Packing::Zstd(1)).unwrap();
    assert!(memory.alter(&sample.name, |bytes| bytes.truncate(9000)));
    assert!(ArchivedSegment::open(&store, &sample.name, None).is_err());
}

#[test]
fn what_rots_on_disk_is_found() {
    let scratch = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(DirectoryStore::create(scratch.path(), &volume(128)).unwrap());
    let sample = sample(128, 1, Packing::Zstd(1));
    archive(&store, &sample, Packing::Zstd(1)).unwrap();
    let name = format!("{}.zst", sample.name);
    let mut bytes = std::fs::read(scratch.path().join(&name)).unwrap();
    let whole = bytes.clone();
    bytes[20_000] ^= 1;
    std::fs::write(scratch.path().join(&name), bytes).unwrap();
    let error = ArchivedSegment::open(&store, &sample.name, None).and_then(|mut kept| kept.read_image()).unwrap_err();
    let error = error.to_string();
    assert!(error.contains("frame 0") && error.contains("CRC32C"), "{error}");
    // While the segment is still there it is put again.
    archive(&store, &sample, Packing::Zstd(1)).unwrap();
    assert!(std::fs::read(scratch.path().join(&name)).unwrap() == whole);
}
