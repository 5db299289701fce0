//! Archiving a segment, start to end, on stores that keep it and on stores that do not.

use std::sync::Arc;

use super::{Sample, sample, volume};
use crate::archive::{
    ArchiveError, ArchiveJob, Archived, ArchivedSegment, DirectoryStore, MemoryStore, Packing, Store, archive_segment,
};
use crate::format::Superblock;
use crate::io::Buffer;

fn archive(store: &Arc<dyn Store>, sample: &Sample, packing: Packing) -> Result<Archived, ArchiveError> {
    let image = Buffer::new(sample.image.len()).unwrap();
    image.copy_from(0, &sample.image);
    let (volume, summary) = (sample.volume.clone(), Arc::new(sample.summary.clone()));
    archive_segment(ArchiveJob { store: Arc::clone(store), volume, summary, image, packing })
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
    sample.image[5 * 4096 + 7] ^= 1;
    let error = archive(&store, &sample, Packing::Zstd(3)).unwrap_err();
    assert!(matches!(error, ArchiveError::Conflict { .. }) && error.to_string().contains("0x5007"), "{error}");
}

#[test]
fn a_store_that_spoils_objects_is_found_out() {
    let sample = sample(128, 1, Packing::Zstd(1));
    let mut rng = fastrand::Rng::with_seed(3);
    for at in (0..sample.object.len()).filter(|at| at % 999 == 0 || at + 130 > sample.object.len()) {
        let memory = Arc::new(MemoryStore::new());
        let bit = rng.u8(..8);
        memory.set_corruption(Some(Box::new(move |_, bytes| bytes[at] ^= 1 << bit)));
        let store: Arc<dyn Store> = memory.clone();
        assert!(archive(&store, &sample, Packing::Zstd(1)).is_err(), "byte {at:#x}");
        // Nor is what it kept accepted later.
        memory.set_corruption(None);
        assert!(matches!(archive(&store, &sample, Packing::Zstd(1)), Err(ArchiveError::Conflict { .. })));
    }
    // A whole object, of other bytes.
    let memory = Arc::new(MemoryStore::new());
    let other = super::sample(128, 2, Packing::Zstd(1));
    memory.set_corruption(Some(Box::new(move |_, bytes| bytes.clone_from(&other.object))));
    let store: Arc<dyn Store> = memory;
    assert!(archive(&store, &sample, Packing::Zstd(1)).is_err());
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
    bytes[20_000] ^= 1;
    std::fs::write(scratch.path().join(&name), bytes).unwrap();
    let error = archive(&store, &sample, Packing::Zstd(1)).unwrap_err().to_string();
    assert!(error.contains("frame 0") && error.contains("CRC32C"), "{error}");
}
