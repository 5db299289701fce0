//! What the table has found, each by itself.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use salvol::archive::{ForkRecord, Store};
use salvol::format::{BLOCK_BYTES, SegmentHeader, SegmentNumber, Slot};
use salvol::history::{Progress, Source, VerifyReport, verify};

use super::base::{Base, bases, store_with};
use super::run::scratch;

fn place(base: &Base, slot: u32) -> usize {
    base.volume.geometry.slot_place(Slot(slot)).bytes() as usize
}

fn segment_in(base: &Base, slot: u32) -> SegmentHeader {
    let at = place(base, slot);
    SegmentHeader::parse(&base.primary[at..at + BLOCK_BYTES], &base.volume).unwrap()
}

fn verified(path: &Path, base: &Base, bytes: &[u8]) -> VerifyReport {
    std::fs::File::create(path).unwrap().write_all_at(bytes, 0).unwrap();
    let store: Arc<dyn Store> = Arc::new(store_with(&base.objects));
    verify(&Source::open_primary_with(path, Some(store)).unwrap(), &Progress::none()).unwrap()
}

/// The volume cannot be attached then, though every point comes back from the archive.
#[test]
fn a_segment_that_the_log_needs_and_no_slot_has_is_reported() {
    let [base, _] = bases(1, None);
    let directory = scratch();
    let newest =
        (0..base.volume.geometry.slots).map(|slot| segment_in(&base, slot)).max_by_key(|header| header.segment);
    let newest = newest.unwrap();
    for slot in 0..base.volume.geometry.slots {
        let segment = segment_in(&base, slot).segment;
        let mut bytes = base.primary.clone();
        bytes[place(&base, slot)..][..base.volume.geometry.segment_bytes()].fill(0);
        let report = verified(&directory.path().join("primary"), &base, &bytes);
        let needed = segment >= newest.oldest_needed;
        assert_eq!(report.ok, !needed, "segment {segment}: {:#?}", report.findings);
        if needed && segment < newest.segment {
            assert!(report.findings.iter().any(|found| found.segment == Some(segment.0)), "{:#?}", report.findings);
            assert!(report.points_affected.is_empty(), "the archive has it");
        }
    }
}

/// A write that went astray: the slot has the header of another one, and its batches are its own.
#[test]
fn a_slot_with_the_header_of_another_slot_is_reported() {
    let [base, _] = bases(1, None);
    let directory = scratch();
    for (slot, other) in [(0, 1), (1, 2), (3, 4)] {
        let mut bytes = base.primary.clone();
        let header = base.primary[place(&base, other)..][..BLOCK_BYTES].to_vec();
        bytes[place(&base, slot)..][..BLOCK_BYTES].copy_from_slice(&header);
        let report = verified(&directory.path().join("primary"), &base, &bytes);
        let SegmentNumber(segment) = segment_in(&base, slot).segment;
        let found = report.findings.iter().any(|found| found.segment == Some(segment) && found.offset == Some(0));
        assert!(found, "slot {slot}: {:#?}", report.findings);
    }
}

/// Without it nobody finds what was written since the rebuild.
#[test]
fn an_archive_whose_fork_record_is_gone_is_reported() {
    let [base, _] = bases(1, None);
    let mut objects = base.objects.clone();
    objects.retain(|name, _| !ForkRecord::is_name(name));
    let store: Arc<dyn Store> = Arc::new(store_with(&objects));
    let report = verify(&Source::open_store(base.identity.clone(), Some(store)).unwrap(), &Progress::none()).unwrap();
    let history = base.volume.history.to_string();
    let says = |found: &&salvol::history::VerifyFinding| found.place.contains(&history) && !found.covered;
    assert_eq!(report.findings.iter().filter(says).count(), 1, "{:#?}", report.findings);
    let whole: Arc<dyn Store> = Arc::new(store_with(&base.objects));
    assert!(verify(&Source::open_store(base.volume, Some(whole)).unwrap(), &Progress::none()).unwrap().ok);
}

/// Each left a descriptor and a page behind, until a process that looks often had no more.
#[test]
fn a_primary_that_is_looked_at_leaves_no_descriptors() {
    let [base, _] = bases(1, None);
    let directory = scratch();
    let path = directory.path().join("primary");
    std::fs::write(&path, &base.primary).unwrap();
    let open = || std::fs::read_dir("/proc/self/fd").unwrap().count();
    let before = open();
    (0..1000).for_each(|_| drop(Source::open_primary_alone(&path).unwrap()));
    let after = open();
    // Other tests have some as well.
    assert!(after < before + 500, "{before} became {after}");
}
