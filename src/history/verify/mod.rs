//! Verify: every byte of primary and archive read past the page cache, decoded and checked; never writes.
//!
//! 1. Every slot (`slots`) and every object (`objects`) is read whole, and its image held against itself (`image`).
//! 2. What one copy says is held against the others, and against the chain from segment to segment.
//! 3. Each damaged place is asked for as a restore would ask; what is in no good copy is followed through the log to the
//!    synch points that need it (`points`).
//!
//! What is wrong and has another good copy is *covered*: reads repair it. It is a finding all the same.

mod at;
mod image;
mod objects;
mod points;
mod report;
mod slots;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::sync::mpsc;
use std::time::Instant;

pub use at::verify_at;
pub use report::{VerifyFinding, VerifyReport};

use super::{HistoryError, Progress, Source};
use crate::archive::{ArchiveError, ForkRecord, ObjectName, PinRecord, Spec, Store, StoreError, open_store};
use crate::format::{Checksum, EntryKind, SegmentNumber, Summary};
use image::Flaw;
use objects::Job;

/// Damaged places that are followed one by one to the points that need them: 128 MiB of memory at the most.
const HURTS_MAX: usize = 4 << 20;
/// How often objects that appeared meanwhile are looked for.
const ROUNDS_MAX: u32 = 3;

/// Where a copy is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Slot,
    Whole,
    Part,
}

/// A copy of a segment that was read.
struct SegmentCopy {
    segment: SegmentNumber,
    last_checksum: Option<Checksum>,
    epoch: u64,
    kind: Kind,
    /// Something in it is an entry of a loss.
    lost: bool,
    marks: Vec<u64>,
}

impl SegmentCopy {
    fn new(segment: SegmentNumber, summary: Option<&Summary>, kind: Kind) -> Self {
        let lost = |summary: &Summary| summary.entries.iter().any(|entry| entry.kind() == Ok(EntryKind::Lost));
        Self {
            segment,
            last_checksum: summary.map(|summary| summary.last_checksum),
            epoch: summary.map_or(0, |summary| summary.epoch),
            kind,
            lost: summary.is_some_and(lost),
            marks: summary.map_or_else(Vec::new, |summary| summary.synchs.iter().map(|mark| mark.point).collect()),
        }
    }
}

/// A flaw, and where it is.
struct Sighted {
    place: String,
    segment: Option<SegmentNumber>,
    flaw: Flaw,
    /// Nobody needs what is hit.
    harmless: bool,
    /// Too much was found to follow its places one by one.
    coarse: bool,
    /// There is no other copy of it.
    alone: bool,
}

/// What has been seen so far.
struct Survey<'a> {
    progress: &'a Progress,
    bytes: u64,
    blocks: u64,
    objects: u64,
    copies: Vec<SegmentCopy>,
    unused: Vec<String>,
    archived_through: SegmentNumber,
    sighted: Vec<Sighted>,
    hurts: usize,
    /// Which of the flaws cuts the log off, and the points that are marked behind it.
    behind: Option<(usize, Vec<u64>)>,
}

impl Survey<'_> {
    fn flaw(&mut self, place: String, segment: Option<SegmentNumber>, mut flaw: Flaw) {
        let coarse = self.hurts + flaw.hurts.len() > HURTS_MAX;
        if coarse {
            flaw.hurts.clear();
        }
        self.hurts += flaw.hurts.len();
        self.sighted.push(Sighted { place, segment, flaw, harmless: false, coarse, alone: false });
    }

    fn harmless(&mut self, place: String, segment: Option<SegmentNumber>, mut flaw: Flaw) {
        flaw.hurts.clear();
        self.sighted.push(Sighted { place, segment, flaw, harmless: true, coarse: false, alone: false });
    }

    fn alone(&mut self, place: String, flaw: Flaw) {
        self.sighted.push(Sighted { place, segment: None, flaw, harmless: true, coarse: false, alone: true });
    }
}

/// Verifies everything that there is of `source`.
///
/// # Errors
/// When primary or archive cannot be read at all. Damage is in the report.
pub fn verify(source: &Source, progress: &Progress) -> Result<VerifyReport, HistoryError> {
    let started = Instant::now();
    reachable(source)?;
    let mut survey = Survey {
        progress,
        bytes: 0,
        blocks: 0,
        objects: 0,
        copies: Vec::new(),
        unused: Vec::new(),
        archived_through: SegmentNumber(0),
        sighted: Vec::new(),
        hurts: 0,
        behind: None,
    };
    let mut known = BTreeSet::new();
    let mut jobs = jobs(source, &mut known)?;
    let slots = source.primary.as_ref().map_or(0, |view| view.slots.found.values().map(Vec::len).sum());
    let image_bytes = source.volume().geometry.segment_bytes() as u64;
    let bytes: u64 = jobs.iter().map(|job| job.bytes).sum();
    progress.begin_bytes("verifying", bytes + slots as u64 * image_bytes);
    read_objects(source, &mut survey, &jobs, |survey| match &source.primary {
        Some(view) => slots::survey(survey, view),
        None => Ok(()),
    })?;
    // A running volume archives meanwhile, and uses the slots again.
    for _ in 0..ROUNDS_MAX {
        source.refresh()?;
        jobs = self::jobs(source, &mut known)?;
        if source.primary.is_none() || jobs.is_empty() {
            break;
        }
        read_objects(source, &mut survey, &jobs, |_| Ok(()))?;
    }
    compare(source, &mut survey)?;
    fork_records(source, &mut survey)?;
    pin_records(source, &mut survey)?;
    the_store_itself(source, &mut survey)?;
    let mut report = points::judge(source, survey)?;
    progress.end();
    let volume = source.volume();
    (report.name, report.uuid) = (volume.name.clone(), volume.uuid.to_string());
    report.ok = report.findings.is_empty();
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// An archive that cannot be reached cannot be verified.
pub(super) fn reachable(source: &Source) -> Result<(), HistoryError> {
    let volume = source.volume();
    if source.store.is_some() || volume.backing == "none" {
        return Ok(());
    }
    open_store(&Spec::parse(&volume.backing)?, Some(volume))?;
    let (store, what) = (volume.backing.clone(), "could not be reached; try again".to_owned());
    Err(StoreError::Refused { store, what }.into())
}

/// The objects that have not been read yet.
fn jobs(source: &Source, known: &mut BTreeSet<ObjectName>) -> Result<Vec<Job>, HistoryError> {
    let Some(store) = &source.store else { return Ok(Vec::new()) };
    let used: BTreeSet<ObjectName> = source
        .numbers()
        .into_iter()
        .flat_map(|segment| source.archived(segment))
        .flat_map(|archived| match archived {
            super::source::Archived::Whole(name) => vec![name],
            super::source::Archived::Parts(names) => names,
        })
        .collect();
    let is_record = |name: &ObjectName| ForkRecord::is_name(name) || PinRecord::is_name(name);
    let objects = store.list()?.into_iter().filter(|(name, _)| !is_record(name));
    let new = objects.filter(|(name, _)| known.insert(*name));
    Ok(new.map(|(name, bytes)| Job { name, bytes, used: used.contains(&name) }).collect())
}

/// Reads `jobs` on threads of their own, while `meanwhile` runs here.
fn read_objects(
    source: &Source,
    survey: &mut Survey<'_>,
    jobs: &[Job],
    meanwhile: impl FnOnce(&mut Survey<'_>) -> Result<(), HistoryError>,
) -> Result<(), HistoryError> {
    let Some(store) = &source.store else { return meanwhile(survey) };
    let (next, volume, progress) = (AtomicUsize::new(0), source.volume(), survey.progress);
    std::thread::scope(|scope| {
        let (done, results) = mpsc::channel();
        for _ in 0..objects::readers(jobs.len()) {
            let (done, store, next) = (done.clone(), Arc::clone(store), &next);
            scope.spawn(move || objects::work(&store, volume, jobs, next, progress, &done));
        }
        drop(done);
        meanwhile(survey)?;
        results.into_iter().try_for_each(|audited| objects::take(survey, store, audited))
    })
}

/// Where histories end must be readable, and known: what is older, or newer, is found through it.
fn fork_records(source: &Source, survey: &mut Survey<'_>) -> Result<(), HistoryError> {
    let Some(store) = &source.store else { return Ok(()) };
    let list = store.list()?;
    let (mut records, mut whole) = (Vec::new(), true);
    for (name, bytes) in list.iter().filter(|(name, _)| ForkRecord::is_name(name)) {
        (survey.objects, survey.bytes) = (survey.objects + 1, survey.bytes + bytes);
        match ForkRecord::read(store, name.history, source.volume()) {
            Ok(record) => records.extend(record),
            Err(ArchiveError::Store(error)) => return Err(error.into()),
            Err(error) => {
                whole = false;
                survey.harmless(format!("object {name}"), None, Flaw::new(None, error));
            }
        }
    }
    let mut known = BTreeSet::from([source.volume().history]);
    while let Some(record) =
        records.iter().position(|record| known.contains(&record.parent()) || known.contains(&record.successor.history))
    {
        let record = records.swap_remove(record);
        known.extend([record.parent(), record.successor.history]);
    }
    let segments = list.iter().map(|(name, _)| name).filter(|name| name.segment.0 > 0);
    let apart: BTreeSet<_> = segments.map(|name| name.history).filter(|history| !known.contains(history)).collect();
    // Behind a record that is damaged, and reported, there may be anything.
    for history in apart.into_iter().filter(|_| whole) {
        let what =
            "no fork record leads to this history: the record is missing, and nobody finds what was written in it";
        survey.alone(format!("history {history}"), Flaw::new(None, what));
    }
    Ok(())
}

/// What is pinned must be known: nothing can be pruned otherwise.
fn pin_records(source: &Source, survey: &mut Survey<'_>) -> Result<(), HistoryError> {
    let Some(store) = &source.store else { return Ok(()) };
    for (_, bytes) in store.list()?.into_iter().filter(|(name, _)| PinRecord::is_name(name)) {
        (survey.objects, survey.bytes) = (survey.objects + 1, survey.bytes + bytes);
    }
    for (name, error) in source.pins()?.damaged {
        survey.alone(format!("object {name}"), Flaw::new(None, format!("{error}; what it pins is not known")));
    }
    Ok(())
}

/// What a store has more than once, to find its objects by.
fn the_store_itself(source: &Source, survey: &mut Survey<'_>) -> Result<(), HistoryError> {
    let Some(store) = &source.store else { return Ok(()) };
    for what in store.audit()? {
        survey.harmless(Store::spec(&**store), None, Flaw::new(None, what));
    }
    Ok(())
}

/// Copies of one segment must be of one past, and what was archived must be in the archive.
fn compare(source: &Source, survey: &mut Survey<'_>) -> Result<(), HistoryError> {
    let Some(store) = &source.store else { return Ok(()) };
    let mut wholes: BTreeMap<(SegmentNumber, u64), Checksum> = BTreeMap::new();
    for copy in survey.copies.iter().filter(|copy| copy.kind == Kind::Whole) {
        wholes.extend(copy.last_checksum.map(|checksum| ((copy.segment, copy.epoch), checksum)));
    }
    let is_whole = |archived: &super::source::Archived| matches!(archived, super::source::Archived::Whole(_));
    let has_whole = |segment: SegmentNumber| source.archived(segment).iter().any(is_whole);
    let let_go = source.let_go()?;
    let slots = source.primary.iter().flat_map(|view| view.slots.found.keys().copied());
    // The last one may have gone on since it was looked at.
    let tail = source.primary.as_ref().and_then(|view| view.tail()).map(|(segment, _)| segment);
    for segment in slots {
        let here = survey.copies.iter().filter(|copy| copy.segment == segment && copy.kind == Kind::Slot);
        let other = |copy: &&SegmentCopy| {
            let archived = wholes.get(&(segment, copy.epoch));
            archived.is_some() && copy.last_checksum.is_some() && archived != copy.last_checksum.as_ref()
        };
        let differs = tail != Some(segment) && here.clone().any(|copy| other(&copy));
        let missing =
            here.count() > 0 && segment <= survey.archived_through && !has_whole(segment) && !let_go.has(segment);
        let what = match (differs, missing) {
            (true, _) => "the archive's copy has another last checksum than the primary's",
            (_, true) => "the segment was archived, and is not in the archive",
            _ => continue,
        };
        survey.harmless(Store::spec(&**store), Some(segment), Flaw::new(None, what));
    }
    Ok(())
}
