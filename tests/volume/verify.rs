//! Verify: a sound volume is clean, also while it is written to; each kind of damage is named where it is, and the points
//! that it costs are exactly those that do not come back.

use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::rig::{Rig, SEGMENT_BLOCKS, WORKING_SET, differences};
use fastrand::Rng;
use salvol::archive::{
    ArchiveJob, ArchivedSegment, Extent, ObjectName, Packing, RingKind, RingStore, Spec, Store, StoreError,
    archive_segment,
};
use salvol::format::{ArchiveAt, BLOCK_BYTES, BatchHeader, FIRST_SLOT_BLOCK, Offset, SegmentNumber, Slot};
use salvol::history::{
    DumpSection, HistoryError, PointInfo, Progress, SegmentDump, Source, VerifyFinding, VerifyReport, dump, restore,
    verify, verify_at,
};
use salvol::io::Buffer;
use salvol::log::Life;
use salvol::volume::Operation;

const HEADER_BYTES: u64 = 4352;

/// A volume with points in the archive and on the primary, at rest.
fn volume(archive_at: ArchiveAt, seed: u64) -> Option<Rig> {
    let mut rig = Rig::new(archive_at, true, seed)?;
    for point in 0..36 {
        let steps = rig.rng.usize(14..24);
        rig.steps(steps);
        rig.synch(&format!("point {point}"));
        if point == 20 {
            rig.kill();
            rig.attach();
        }
    }
    rig.run_to_segment(rig.segment() + 1);
    rig.steps(3);
    rig.synch("in the last segment");
    rig.settle();
    rig.close();
    Some(rig)
}

fn run(source: &Source) -> VerifyReport {
    verify(source, &Progress::none()).unwrap()
}

#[track_caller]
fn is_clean(report: &VerifyReport, points: usize) {
    assert!(report.ok && report.findings.is_empty() && report.points_affected.is_empty(), "{:#?}", report.findings);
    assert_eq!(report.points, points as u64);
}

fn file_of(rig: &Rig, name: &ObjectName) -> PathBuf {
    let file = format!("{:016}.e{:08}.p{}.zst", name.segment.0, name.epoch, name.part);
    rig.path("archive").join(name.history.to_string()).join(file)
}

fn segments_of(source: &Source) -> Vec<SegmentDump> {
    let mut segments = Vec::new();
    dump(source, None, &mut |section| {
        if let DumpSection::Segment(segment) = section {
            segments.push(*segment);
        }
        Ok(())
    })
    .unwrap();
    segments.sort_by_key(|segment| segment.segment);
    segments
}

/// What was there before damage, to know it by.
struct Scene<'a> {
    rig: &'a Rig,
    infos: Vec<PointInfo>,
    open: &'a dyn Fn(&Rig) -> Result<Source, HistoryError>,
}

impl<'a> Scene<'a> {
    fn new(rig: &'a Rig, open: &'a dyn Fn(&Rig) -> Result<Source, HistoryError>) -> Self {
        let source = open(rig).unwrap();
        let infos = source.points().unwrap().points;
        is_clean(&run(&source), infos.len());
        Self { rig, infos, open }
    }

    /// Verifies, and restores every point: exactly those that are listed do not come back.
    fn judge(&self, what: &str) -> VerifyReport {
        let source = (self.open)(self.rig).unwrap();
        let report = run(&source);
        assert!(!report.ok, "{what}: nothing was found");
        let mut unnamed = 0;
        for info in &self.infos {
            let (_, model) = self.rig.points.iter().find(|(mark, _)| mark.position.0 == info.position).unwrap();
            let to = self.rig.path("out");
            let _ = std::fs::remove_file(&to);
            let moment = source.resolve(&info.id);
            let restored = moment.and_then(|moment| restore(&source, &moment, &to, true, &Progress::none()));
            let sound = restored.as_ref().is_ok_and(|report| report.damaged.is_empty());
            assert!(!sound || differences(&to, model).is_empty(), "{what}: {}", info.id);
            let listed = report.points_affected.contains(&info.id);
            let own = |finding: &VerifyFinding| finding.segment == Some(info.segment.0) && !finding.covered;
            if !sound && !listed && report.segments_unknown.contains(&info.segment.0) {
                // Its own segment is what cannot be read: nobody knows any more that it was there.
                assert!(report.findings.iter().any(own), "{what}: {}: {restored:?}", info.id);
                unnamed += 1;
                continue;
            }
            assert_eq!(!sound, listed, "{what}: {} in segment {}: {restored:?} {:#?}", info.id, info.segment, report);
        }
        let listed = report.points_affected.len() + unnamed;
        assert_eq!(report.points as usize + listed, self.infos.len(), "{what}: {report:#?}");
        let mut named: Vec<&String> = report.findings.iter().flat_map(|finding| &finding.points).collect();
        named.sort_unstable();
        named.dedup();
        assert_eq!(named.len(), report.points_affected.len(), "{what}");
        report
    }
}

#[track_caller]
fn one(report: &VerifyReport) -> &VerifyFinding {
    assert_eq!(report.findings.len(), 1, "{:#?}", report.findings);
    &report.findings[0]
}

/// Flips a bit of the file while `look` looks.
fn spoilt<T>(path: &std::path::Path, at: u64, look: impl FnOnce() -> T) -> T {
    let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
    let seen = look();
    file.write_all_at(&byte, at).unwrap();
    seen
}

fn primary(rig: &Rig) -> Result<Source, HistoryError> {
    Source::open_primary(&rig.primary())
}

fn archive(rig: &Rig) -> Result<Source, HistoryError> {
    Source::open_spec(&rig.spec)
}

fn place(segment: &SegmentDump, offset: u32) -> u64 {
    u64::from(FIRST_SLOT_BLOCK + segment.slot * SEGMENT_BLOCKS + offset) * BLOCK_BYTES as u64
}

/// A random data block of `segment`: offset, block, position.
fn data_block(rng: &mut Rng, segment: &SegmentDump) -> (u32, u64, u64) {
    let entries = segment.batches.iter().flat_map(|batch| batch.entries.iter().map(|entry| (entry, batch.position)));
    let data = entries.filter(|(entry, _)| matches!(entry.kind, "write" | "copy"));
    let data: Vec<_> = data.map(|(entry, position)| (entry.offset.unwrap(), entry.block, position)).collect();
    data[rng.usize(..data.len())]
}

fn damage_on_the_primary(archive_at: ArchiveAt, seed: u64) {
    let Some(rig) = volume(archive_at, seed) else { return };
    let scene = Scene::new(&rig, &primary);
    let mut rng = Rng::with_seed(seed);
    let segments = segments_of(&primary(&rig).unwrap());
    let tail = segments.last().unwrap().segment;
    let archived = |segment: u64| rig.store().list().unwrap().iter().any(|(name, _)| name.segment.0 == segment);
    let is_data = |kind| matches!(kind, "write" | "copy");
    let holds_data = |segment: &&SegmentDump| {
        segment.batches.iter().any(|batch| batch.entries.iter().any(|entry| is_data(entry.kind)))
    };
    let filled: Vec<&SegmentDump> = segments.iter().filter(holds_data).collect();
    let path = rig.primary();
    let (mut covered, mut cost) = (0, 0);
    for _ in 0..6 {
        let segment = filled[rng.usize(..filled.len())];
        let (offset, block, position) = data_block(&mut rng, segment);
        let report = spoilt(&path, place(segment, offset) + rng.u64(..4096), || scene.judge("data in a slot"));
        let found = one(&report);
        let at = (found.segment, found.offset, found.offset_end, found.block, found.position);
        assert_eq!(at, (Some(segment.segment), Some(offset), Some(offset + 1), Some(block), Some(position)));
        assert!(found.place.contains(&format!("slot {} at {:#x}", segment.slot, place(segment, offset))));
        assert_eq!(found.covered, archived(segment.segment), "{found}");
        covered += u32::from(found.covered);
        cost += found.points.len();
    }
    assert!(archive_at == ArchiveAt::Inactive || covered > 0);
    assert!(archive_at == ArchiveAt::Seal || cost > 0, "damage of what is nowhere else costs points");
    for _ in 0..2 {
        // The last one has no summary: damage of a header there ends the log.
        let segment = &segments[rng.usize(..segments.len() - 1)];
        assert!(segment.segment < tail);
        let batch = &segment.batches[rng.usize(1..segment.batches.len())];
        let report = spoilt(&path, place(segment, batch.offset) + rng.u64(8..160), || scene.judge("batch header"));
        let found = one(&report);
        let at = (found.segment, found.offset, found.position, found.covered);
        assert_eq!(at, (Some(segment.segment), Some(batch.offset), Some(batch.position), true), "{found}");
        let report = spoilt(&path, place(segment, 0) + rng.u64(8..160), || scene.judge("segment header"));
        let found = one(&report);
        assert_eq!((found.segment, found.offset, found.covered), (Some(segment.segment), Some(0), true), "{found}");
        let at = place(segment, SEGMENT_BLOCKS) - rng.u64(1..180);
        let report = spoilt(&path, at, || scene.judge("summary in a slot"));
        let found = one(&report);
        let at = (found.segment, found.offset, found.covered);
        assert_eq!(at, (Some(segment.segment), Some(SEGMENT_BLOCKS - 1), true), "{found}");
    }
    for (at, which) in
        [(rng.u64(..4096), "superblock at"), (rig.volume.geometry.copy_at() + 300, "copy of the superblock")]
    {
        let report = spoilt(&path, at, || scene.judge("superblock"));
        let found = one(&report);
        assert!(found.place.starts_with(which) && found.covered && found.points.is_empty(), "{found}");
    }
    // Damage of the last segment's headers ends the log: points behind it are gone, and named.
    let last = segments.last().unwrap();
    for (rank, lost) in [(1, 1), (last.batches.len() - 1, 0)] {
        let batch = &last.batches[rank];
        let report = spoilt(&path, place(last, batch.offset) + rng.u64(8..160), || scene.judge("the end of the log"));
        let found = one(&report);
        assert!(!found.covered && found.what.contains(&format!("position {}", batch.position)), "{found}");
        assert_eq!(found.points.len(), lost, "{found}");
    }
    // What was archived and is there no more.
    let victim = segments.iter().rev().find(|segment| archived(segment.segment)).unwrap().segment;
    let name = rig.store().list().unwrap().into_iter().find(|(name, _)| name.segment.0 == victim).unwrap().0;
    let aside = rig.path("aside");
    if archive_at == ArchiveAt::Seal && victim < tail - 1 {
        std::fs::rename(file_of(&rig, &name), &aside).unwrap();
        let report = scene.judge("object of a segment that is in its slot");
        let found = one(&report);
        assert!(found.covered && found.what.contains("is not in the archive"), "{found}");
        std::fs::rename(&aside, file_of(&rig, &name)).unwrap();
    }
    is_clean(&run(&primary(&rig).unwrap()), scene.infos.len());
}

#[test]
fn damage_on_the_primary_is_named_and_costs_what_is_not_archived() {
    damage_on_the_primary(ArchiveAt::Inactive, 31);
}

#[test]
fn damage_on_the_primary_is_covered_by_the_archive() {
    damage_on_the_primary(ArchiveAt::Seal, 32);
}

/// The object's frames: where each is in the file, and the blocks that it has.
fn frames(path: &std::path::Path) -> Vec<(u64, u64)> {
    let bytes = std::fs::read(path).unwrap();
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let count = word(bytes.len() - 48);
    let mut at = HEADER_BYTES;
    let table = bytes.len() - 56 - 12 * count;
    (0..count)
        .map(|rank| {
            let length = word(table + 12 * rank) as u64;
            at += length;
            (at - length, length)
        })
        .collect()
}

fn damage_in_the_archive(open: &dyn Fn(&Rig) -> Result<Source, HistoryError>, seed: u64) {
    let Some(rig) = volume(ArchiveAt::Seal, seed) else { return };
    let scene = Scene::new(&rig, open);
    let mut rng = Rng::with_seed(seed);
    let names: Vec<ObjectName> = rig.store().list().unwrap().into_iter().map(|(name, _)| name).collect();
    let mut cost = 0;
    for _ in 0..3 {
        // Not the oldest: without it the archive would only begin later.
        let name = names[rng.usize(1..names.len())];
        let path = file_of(&rig, &name);
        let length = std::fs::metadata(&path).unwrap().len();
        let frames = frames(&path);
        let rank = rng.usize(..frames.len() - 1);
        let (at, bytes) = frames[rank];
        let report = spoilt(&path, at + rng.u64(..bytes), || scene.judge("data frame"));
        let found = one(&report);
        assert_eq!((found.segment, found.frame), (Some(name.segment.0), Some(rank as u32)), "{found}");
        assert!(found.place.contains(&name.to_string()) && found.what.contains("CRC32C") && found.block.is_some());
        assert_eq!(found.offset, Some(rank as u32 * 32));
        cost += found.points.len();

        let (at, bytes) = frames[frames.len() - 1];
        let report = spoilt(&path, at + rng.u64(..bytes), || scene.judge("summary frame"));
        let found = one(&report);
        assert_eq!(found.frame, Some(frames.len() as u32 - 1), "{found}");
        assert!(found.covered, "it is made again from the headers: {found}");

        for (what, at) in [("header", rng.u64(8..HEADER_BYTES)), ("footer", length - rng.u64(1..56))] {
            let report = spoilt(&path, at, || scene.judge(what));
            let found = one(&report);
            assert_eq!((found.segment, found.frame), (Some(name.segment.0), None), "{what}: {found}");
            assert!(found.place.contains(&name.to_string()), "{what}: {found}");
            cost += found.points.len();
        }
        // Of the newest nothing says any more that it was there.
        if name != names[names.len() - 1] {
            let aside = rig.path("aside");
            std::fs::rename(&path, &aside).unwrap();
            let report = scene.judge("missing object");
            assert_eq!(one(&report).segment, Some(name.segment.0));
            assert!(
                report.findings[0].what.contains("missing") || report.findings[0].what.contains("not in the archive")
            );
            std::fs::rename(&aside, &path).unwrap();
        }
    }
    assert!(cost > 0, "some of it costs points");
    is_clean(&run(&open(&rig).unwrap()), scene.infos.len());
}

#[test]
fn damage_in_an_archive_alone_is_named() {
    damage_in_the_archive(&archive, 33);
}

#[test]
fn damage_in_the_archive_beside_its_primary_is_named() {
    damage_in_the_archive(&primary, 34);
}

/// Several at once: the points are those of all of it, and no others.
#[test]
fn damage_of_both_copies_is_told_from_damage_of_one() {
    let Some(rig) = volume(ArchiveAt::Seal, 35) else { return };
    let scene = Scene::new(&rig, &primary);
    let mut rng = Rng::with_seed(35);
    let segments = segments_of(&primary(&rig).unwrap());
    let mut cost = 0;
    for segment in segments.iter().rev().skip(1).take(4) {
        let name = rig.store().list().unwrap().into_iter().find(|(name, _)| name.segment.0 == segment.segment);
        let Some((name, _)) = name else { continue };
        let path = file_of(&rig, &name);
        let (offset, block, _) = data_block(&mut rng, segment);
        let (at, _) = frames(&path)[offset as usize / 32];
        let report = spoilt(&rig.primary(), place(segment, offset), || spoilt(&path, at + 20, || scene.judge("both")));
        assert_eq!(report.findings.len(), 2);
        for found in &report.findings {
            assert!(!found.covered && found.blocks.contains(&block), "{found}");
        }
        cost += report.points_affected.len();
        for info in &scene.infos {
            let source = primary(&rig).unwrap();
            let moment = source.resolve(&info.id).unwrap();
            let look = || verify_at(&source, &moment, &Progress::none()).unwrap();
            let alone = spoilt(&rig.primary(), place(segment, offset), || spoilt(&path, at + 20, look));
            assert_eq!(!alone.points_affected.is_empty(), report.points_affected.contains(&info.id), "{alone:#?}");
            assert_eq!(alone.points, u64::from(alone.points_affected.is_empty()));
        }
    }
    assert!(cost > 0);
    for info in &scene.infos {
        let source = primary(&rig).unwrap();
        let moment = source.resolve(&info.id).unwrap();
        let report = verify_at(&source, &moment, &Progress::none()).unwrap();
        is_clean(&report, 1);
        assert_eq!(report.segments, info.segments);
        assert!(report.blocks > 0 && report.segments <= u64::from(WORKING_SET) + 1);
    }
}

/// Puts the newest whole segment of the archive there in parts instead.
fn into_parts(rig: &Rig) -> Vec<ObjectName> {
    let store: Arc<dyn Store> = rig.store();
    let names: Vec<ObjectName> = store.list().unwrap().into_iter().map(|(name, _)| name).collect();
    let (parts, wholes): (Vec<_>, Vec<_>) = names.into_iter().partition(|name| name.part > 0);
    // Those of the segment that was open when the volume was closed.
    parts.iter().for_each(|part| store.delete(part).unwrap());
    let whole = *wholes.last().unwrap();
    let mut object = ArchivedSegment::open(&store, &whole, Some(&rig.volume)).unwrap();
    let (image, summary) = (object.read_image().unwrap(), object.summary().clone());
    let volume = object.volume().clone();
    let batch = |rank: usize| {
        let at = summary.batches[rank].offset().0 as usize * BLOCK_BYTES;
        BatchHeader::parse(&image[at..], &volume).unwrap()
    };
    let count = summary.batches.len();
    // The first has a point, when the segment has one.
    let marked = summary.synchs.first().map_or(0, |mark| (mark.point + 1 - summary.first_position.0) as usize);
    let first = marked.max(count / 3).clamp(1, count - 2);
    let cuts = [0, first, first + (count - first) / 2, count];
    let names = (0..3).map(|part| {
        let (from, to) = (cuts[part], cuts[part + 1]);
        let last = batch(to - 1);
        let own = summary.part(from..to, batch(from).header.predecessor, last.checksum);
        let first = if from == 0 { Offset(0) } else { summary.batches[from].offset() };
        let end = last.header.offset.0 + last.blocks();
        let mut bytes = image[first.0 as usize * BLOCK_BYTES..end as usize * BLOCK_BYTES].to_vec();
        let at = bytes.len();
        bytes.resize(at + own.blocks() as usize * BLOCK_BYTES, 0);
        own.encode(&volume, &mut bytes[at..]);
        let buffer = Buffer::new(bytes.len()).unwrap();
        buffer.copy_from(0, &bytes);
        let job = ArchiveJob {
            store: Arc::clone(&store),
            volume: volume.clone(),
            summary: Arc::new(own),
            extent: Extent { part: part as u32 + 1, first },
            image: buffer,
            packing: Packing::Zstd(1),
        };
        archive_segment(job).unwrap().name
    });
    let names = names.collect();
    store.delete(&whole).unwrap();
    names
}

#[test]
fn damage_in_a_part_of_an_open_segment_is_named() {
    // A seed with points in several parts.
    let Some(rig) = volume(ArchiveAt::Seal, 36) else { return };
    let names = into_parts(&rig);
    let scene = Scene::new(&rig, &archive);
    let mut hurt = 0;
    for (rank, name) in names.iter().enumerate() {
        let path = file_of(&rig, name);
        let report = spoilt(&path, HEADER_BYTES + 40, || scene.judge("frame of a part"));
        let found = one(&report);
        assert_eq!((found.segment, found.frame), (Some(name.segment.0), Some(0)), "{found}");
        // A part may have marks and trims only, which its summary knows as well.
        let part = ArchivedSegment::open(&rig.store(), name, None).unwrap();
        let has_data = part.summary().entries.iter().any(|entry| entry.kind().is_ok_and(|kind| kind.has_data()));
        // Nor does data cost anything that no point needs: the judge has restored them all.
        assert!(found.place.contains(&name.to_string()) && (has_data || found.covered), "{found}");
        hurt += usize::from(!found.covered);
        let report = spoilt(&path, 1000, || scene.judge("header of a part"));
        let found = one(&report);
        assert!(found.place.contains(&name.to_string()), "{rank}: {found}");
    }
    assert!(hurt > 0, "no part had anything that a point needs");
}

#[test]
fn a_running_volume_raises_no_alarm() {
    for (backing, archive_at, seed) in
        [(true, ArchiveAt::Seal, 37), (true, ArchiveAt::Inactive, 38), (false, ArchiveAt::Seal, 39)]
    {
        let Some(mut rig) = Rig::new(archive_at, backing, seed) else { return };
        rig.steps(300);
        rig.synch("first");
        // In a segment that is full: of the one that is open a point may be too new to be proven.
        rig.steps(200);
        let path = rig.primary();
        let written = Arc::new(AtomicU64::new(0));
        let reached = Arc::clone(&written);
        let reader = std::thread::spawn(move || {
            let (mut segments, mut round) = (0, 0);
            // However slow the writer is: until the log has turned over.
            while round < 20 || segments <= u64::from(WORKING_SET) || reached.load(Ordering::Relaxed) <= 30 {
                let source = Source::open_primary(&path).unwrap();
                let report = run(&source);
                assert!(report.ok, "round {round}: {:#?}", report.findings);
                if backing {
                    assert!(report.points > 0, "round {round}");
                }
                segments = report.segments;
                round += 1;
            }
        });
        let mut turn = 0;
        while !reader.is_finished() {
            written.store(rig.segment(), Ordering::Relaxed);
            rig.steps(20);
            rig.synch("");
            turn += 1;
            if turn % 40 == 0 {
                rig.kill();
                rig.attach();
            }
        }
        reader.join().unwrap();
    }
}

#[test]
fn a_slot_that_is_let_go_while_everything_is_read_is_no_damage() {
    let Some(mut rig) = Rig::new(ArchiveAt::Seal, true, 40) else { return };
    rig.steps(300);
    rig.settle();
    let last = rig.segment();
    let source = Source::open_primary(&rig.primary()).unwrap();
    let slot = segments_of(&source).into_iter().find(|segment| segment.segment == last).unwrap();
    // The log goes on while the source is read: the segment is archived, leaves the working set, and half of it is discarded.
    let is_free = |rig: &Rig| rig.engine().log().look(|_, table| table.get(Slot(slot.slot)).life == Life::Recycle);
    while !is_free(&rig) {
        rig.step();
        rig.serve(Operation::Flush, 0, 0, None);
        rig.idle();
    }
    assert!(rig.segment() > last + u64::from(WORKING_SET));
    let zeros = vec![0; (SEGMENT_BLOCKS as usize - 1) * BLOCK_BYTES];
    rig.primary_file().write_all_at(&zeros, place(&slot, 1)).unwrap();
    let report = run(&source);
    assert!(report.findings.is_empty(), "{:#?}", report.findings);
}

#[test]
fn objects_that_no_reader_takes_are_read_and_named() {
    let Some(rig) = volume(ArchiveAt::Seal, 40) else { return };
    let scene = Scene::new(&rig, &archive);
    // A copy of an older segment under a smaller epoch: of a past that was given up.
    let names: Vec<ObjectName> = rig.store().list().unwrap().into_iter().map(|(name, _)| name).collect();
    let last = names[names.len() - 1];
    assert!(last.epoch > names[0].epoch, "it was attached twice");
    let given_up = ObjectName { epoch: 1, ..last };
    std::fs::copy(file_of(&rig, &last), file_of(&rig, &given_up)).unwrap();
    let report = scene.judge("given up");
    assert_eq!(report.objects_unused, [given_up.to_string()]);
    let found = one(&report);
    assert!(
        found.covered && found.place.contains("no reader takes") && found.what.contains("another segment"),
        "{found}"
    );
    std::fs::remove_file(file_of(&rig, &given_up)).unwrap();
    assert!(rig.store().list().unwrap().iter().all(|(name, _)| name.segment >= SegmentNumber(1)));
}

#[test]
fn damage_of_a_ring_itself_is_named_before_it_costs_anything() {
    let Some(rig) = volume(ArchiveAt::Seal, 61) else { return };
    let path = rig.path("ring");
    std::fs::File::create(&path).unwrap().set_len(64 << 20).unwrap();
    let ring = RingStore::create(RingKind::File, &path, &rig.volume).unwrap();
    let from = rig.store();
    for (name, _) in from.list().unwrap() {
        ring.put(&name, &from.get(&name, 0..u64::MAX).unwrap()).unwrap();
    }
    let open = || Source::open_spec(&Spec::File(path.clone())).unwrap();
    let points = open().points().unwrap().points.len();
    assert!(points > 10);
    is_clean(&run(&open()), points);
    let blocks = (64 << 20) / BLOCK_BYTES as u64;
    // Where data begins the first object's record header is.
    let data = u64::from_le_bytes(std::fs::read(&path).unwrap()[80..88].try_into().unwrap());
    let places =
        [(0, "superblock in block 0"), (blocks - 1, "superblock"), (1, "first copy"), (blocks - data, "second copy")];
    for (block, what) in places.into_iter().chain([(data, "record header")]) {
        spoilt(&path, block * BLOCK_BYTES as u64 + 40, || {
            let report = run(&open());
            let finding = one(&report);
            let found = finding.what.contains(what) && finding.what.contains(&format!("block {block}"));
            assert!(found && finding.covered && finding.place == format!("file:{}", path.display()), "{finding}");
            assert!(!report.ok && report.points as usize == points && report.points_affected.is_empty());
        });
    }
}

#[test]
fn an_archive_that_is_away_cannot_be_verified() {
    let Some(rig) = volume(ArchiveAt::Seal, 41) else { return };
    std::fs::rename(rig.path("archive"), rig.path("aside")).unwrap();
    let source = primary(&rig).unwrap();
    let error = verify(&source, &Progress::none()).unwrap_err();
    assert!(matches!(error, HistoryError::Store(StoreError::Refused { .. } | StoreError::Io { .. })), "{error:?}");
    assert!(!error.is_corruption() && !error.is_no_point());
}

/// A whole object of which nothing can be read: what was marked in it cannot be named, and is not nothing.
#[test]
fn an_object_that_cannot_be_read_hides_its_points_and_says_so() {
    let Some(rig) = volume(ArchiveAt::Seal, 90) else { return };
    let infos = Source::open_spec(&rig.spec).unwrap().points().unwrap().points;
    let victim = infos.last().unwrap().segment;
    let names = rig.store().list().unwrap().into_iter().map(|(name, _)| name);
    for name in names.filter(|name| name.segment == victim) {
        let mut bytes = std::fs::read(file_of(&rig, &name)).unwrap();
        bytes[100] ^= 1;
        std::fs::write(file_of(&rig, &name), bytes).unwrap();
    }
    let report = run(&Source::open_spec(&rig.spec).unwrap());
    assert_eq!(report.segments_unknown, [victim.0]);
    let finding = report.findings.iter().find(|finding| finding.segment == Some(victim.0)).unwrap();
    assert!(finding.points_unknown && !finding.covered, "{finding}");
    let says = finding.to_string();
    assert!(says.contains("the points inside it are unknown") && !says.contains("no synch point needs it"), "{says}");
    // While its slot is there, nothing is hidden.
    let report = run(&Source::open_primary(&rig.primary()).unwrap());
    assert!(report.segments_unknown.is_empty() && !report.ok, "{:#?}", report.findings);
}
