//! A lost primary is made again from the archive, and the volume goes on under a new history: old points and new ones come
//! back, the old primary does not, and nothing that goes wrong on the way leaves half a volume.

use std::cell::Cell;
use std::fs::File;
use std::io;
use std::path::Path;
use std::rc::Rc;
use std::sync::{Arc, Mutex};

use super::rig::{Model, Rig, SEGMENT_BLOCKS, WORKING_SET, differences};
use salvol::archive::{
    ArchiveError, ArchiveJob, ArchivedSegment, Extent, ForkRecord, ObjectName, Packing, RingKind, RingStore, Spec,
    Store, StoreError, archive_segment,
};
use salvol::format::{ArchiveAt, BLOCK_BYTES, BatchHeader, Offset, Position, SegmentNumber, Summary, Superblock, Uuid};
use salvol::history::{
    HistoryError, Progress, RebuildOptions, RebuildPlan, RebuildReport, Source, check_path, restore,
};
use salvol::io::{Bench, Buffer, Device, Primary};
use salvol::volume::OpenError;

/// Restores the point and compares it with the model.
fn comes_back(source: &Source, at: &str, to: &Path, model: &Model) {
    let moment = source.resolve(at).unwrap_or_else(|error| panic!("{at}: {error}"));
    let report = restore(source, &moment, to, false, &Progress::none()).unwrap_or_else(|error| panic!("{at}: {error}"));
    assert_eq!(report.damaged, [], "{at}");
    assert_eq!(differences(to, model), [0; 0], "{at}");
    assert!(report.segments <= u64::from(WORKING_SET) + 1);
    std::fs::remove_file(to).unwrap();
}

/// Every point, from the archive alone and, when the volume has a primary, from both.
fn all_come_back(rig: &Rig, primary: bool) {
    let mut sources = vec![Source::open_spec(&rig.spec).unwrap()];
    if primary {
        sources.push(Source::open_primary(&rig.primary()).unwrap());
    }
    for source in &sources {
        let listed = source.points().unwrap().points;
        for (mark, model) in &rig.points {
            // What the fork left behind is gone; it is taken out of `rig.points` by whoever forks.
            assert!(listed.iter().any(|info| info.position == mark.position.0), "p{} is listed", mark.point);
            comes_back(source, &format!("p{}", mark.point), &rig.path("out"), model);
        }
        assert_eq!(listed.len(), rig.points.len(), "and no others");
    }
}

fn options(rig: &Rig) -> RebuildOptions {
    let history = Uuid(std::array::from_fn(|_| fastrand::u8(..)));
    let backing = rig.spec.to_string();
    RebuildOptions { history, time_ns: 1_700_000_000_000_000_000, name: None, backing, accept_loss: None }
}

fn plan(rig: &Rig) -> Result<RebuildPlan, HistoryError> {
    RebuildPlan::new(Source::open_spec(&rig.spec)?, options(rig))
}

fn blank(rig: &Rig) -> Bench {
    let path = rig.primary();
    let _ = std::fs::remove_file(&path);
    File::create(&path).unwrap().set_len(rig.volume.geometry.primary_blocks * BLOCK_BYTES as u64).unwrap();
    Bench::new(Primary::own(&path, std::time::Duration::from_secs(2)).unwrap()).unwrap()
}

fn rebuild_on(bench: &Bench, plan: RebuildPlan) -> Result<RebuildReport, HistoryError> {
    let device = bench.device.clone();
    bench.wait(async move { plan.write(&device, &Progress::none()).await }).unwrap()
}

/// Loses the primary, makes another one, attaches it, and sets model and points back to the fork.
fn rebuild(rig: &mut Rig, moments: &mut Vec<(Position, Model)>) -> RebuildReport {
    let planned = plan(rig).unwrap();
    rebuild_as(rig, moments, planned)
}

fn rebuild_as(rig: &mut Rig, moments: &mut Vec<(Position, Model)>, planned: RebuildPlan) -> RebuildReport {
    rig.volume = planned.volume().clone();
    let fork = planned.volume().fork_position;
    rig.model = at(&Source::open_spec(&rig.spec).unwrap(), rig, moments, fork);
    moments.retain(|(at, _)| *at <= fork);
    moments.push((fork, rig.model.clone()));
    let report = rebuild_on(&blank(rig), planned).unwrap();
    assert_eq!(report.fork_position, fork.0);
    rig.points.retain(|(mark, _)| mark.position <= fork);
    report
}

/// The volume at a position, from what was noted behind each write. A write that was under way there is told by what a
/// restore finds.
fn at(source: &Source, rig: &Rig, moments: &[(Position, Model)], position: Position) -> Model {
    let before = moments.iter().rev().find(|(at, _)| *at <= position).map(|(_, model)| model.clone());
    let before = before.unwrap_or_else(|| vec![0; moments[0].1.len()]);
    let after =
        moments.iter().find(|(at, _)| *at >= position).map_or_else(|| before.clone(), |(_, model)| model.clone());
    let moment = source.resolve(&position.to_string()).unwrap();
    restore(source, &moment, &rig.path("fork"), true, &Progress::none()).unwrap();
    let differ = |model: &Model| differences(&rig.path("fork"), model);
    let (not_before, not_after) = (differ(&before), differ(&after));
    let model = before.iter().zip(&after).enumerate().map(|(block, (before, after))| {
        let later = not_before.contains(&(block as u64)) && !not_after.contains(&(block as u64));
        if later { *after } else { *before }
    });
    model.collect()
}

/// Writes and marks points; notes what the volume is at each position.
fn work(rig: &mut Rig, rounds: usize, moments: &mut Vec<(Position, Model)>) {
    for _ in 0..rounds {
        for _ in 0..20 {
            rig.step();
            moments.push((rig.engine().log().positions().0, rig.model.clone()));
        }
        rig.synch("");
        moments.push((rig.engine().log().positions().0, rig.model.clone()));
    }
}

/// Goes on for so many segments, so that everything marked is archived.
fn run_on(rig: &mut Rig, segments: u64, moments: &mut Vec<(Position, Model)>) {
    let until = rig.segment() + segments;
    while rig.segment() < until {
        rig.step();
        moments.push((rig.engine().log().positions().0, rig.model.clone()));
    }
    rig.serve(salvol::volume::Operation::Flush, 0, 0, None);
    rig.settle();
}

#[test]
fn a_rebuilt_volume_goes_on_and_keeps_its_past() {
    for (archive_at, seed) in [(ArchiveAt::Seal, 21), (ArchiveAt::Inactive, 22)] {
        let Some(mut rig) = Rig::new(archive_at, true, seed) else { return };
        let mut moments = Vec::new();
        work(&mut rig, 25, &mut moments);
        rig.settle();
        rig.close();
        for turn in 0..3 {
            let report = rebuild(&mut rig, &mut moments);
            assert_eq!(report.damaged, []);
            assert!(check_path(&rig.primary()).unwrap().ok, "{:?}", check_path(&rig.primary()).unwrap().findings);
            all_come_back(&rig, true);
            rig.attach();
            assert_eq!(rig.wrong_blocks(), [0; 0], "turn {turn}");
            // The log turns over three times.
            work(&mut rig, 42, &mut moments);
            match turn {
                0 => rig.kill(),
                _ => {
                    rig.settle();
                    rig.close();
                }
            }
            rig.attach();
            assert_eq!(rig.wrong_blocks(), [0; 0], "turn {turn}");
            run_on(&mut rig, u64::from(WORKING_SET) + 2, &mut moments);
            rig.close();
            assert!(check_path(&rig.primary()).unwrap().ok);
            all_come_back(&rig, true);
        }
        std::fs::remove_file(rig.primary()).unwrap();
        all_come_back(&rig, false);
        assert!(rig.points.len() > 100, "{}", rig.points.len());
    }
}

#[test]
fn an_old_primary_that_comes_back_is_refused() {
    let Some(mut rig) = Rig::new(ArchiveAt::Seal, true, 23) else { return };
    let mut moments = Vec::new();
    work(&mut rig, 30, &mut moments);
    rig.settle();
    rig.close();
    std::fs::copy(rig.primary(), rig.path("old")).unwrap();
    let first = rig.volume.clone();
    rebuild(&mut rig, &mut moments);
    std::fs::copy(rig.primary(), rig.path("middle")).unwrap();
    let second = rig.volume.clone();
    // It has never been used, and is lost in turn.
    let report = rebuild(&mut rig, &mut moments);
    assert_eq!((report.fork_position, second.fork_position.0), (second.fork_position.0, report.fork_position));
    std::fs::rename(rig.primary(), rig.path("new")).unwrap();
    for (name, volume) in [("old", &first), ("middle", &second)] {
        std::fs::copy(rig.path(name), rig.primary()).unwrap();
        let before = std::fs::read(rig.primary()).unwrap();
        let error = rig.refused();
        assert!(matches!(error, OpenError::Superseded(ArchiveError::Superseded { .. })), "{error}");
        let says = error.to_string();
        assert!(says.contains("was rebuilt") && says.contains("from position"), "{says}");
        assert!(says.contains(&volume.history.to_string()), "{says}");
        assert!(std::fs::read(rig.primary()).unwrap() == before, "it is left as it was");
    }
    // A history that the store has never heard of.
    let stranger = Superblock { history: Uuid([9; 16]), generation: 9, ..rig.volume.clone() };
    std::fs::copy(rig.path("new"), rig.primary()).unwrap();
    for offset in [0, stranger.geometry.copy_at()] {
        std::os::unix::fs::FileExt::write_all_at(&rig.primary_file(), &stranger.encode(), offset).unwrap();
    }
    assert!(matches!(rig.refused(), OpenError::Superseded(_)));
    std::fs::copy(rig.path("new"), rig.primary()).unwrap();
    let record = ForkRecord::name_of(second.history);
    let bytes = rig.store().get(&record, 0..u64::MAX).unwrap();
    rig.store().delete(&record).unwrap();
    assert!(matches!(rig.refused(), OpenError::Superseded(ArchiveError::Unrecorded { .. })));
    rig.store().put(&record, &bytes).unwrap();
    rig.attach();
    assert_eq!(rig.wrong_blocks(), [0; 0]);
    rig.close();
}

#[test]
fn an_old_primary_that_still_runs_archives_nothing_more() {
    let Some(mut rig) = Rig::new(ArchiveAt::Seal, true, 24) else { return };
    let mut moments = Vec::new();
    work(&mut rig, 30, &mut moments);
    rig.settle();
    // The last part is put by a thread that no queue counts.
    for _ in 0..50 {
        rig.idle();
    }
    // The old one runs on, idle, while the volume is rebuilt elsewhere.
    let path = rig.path("elsewhere");
    File::create(&path).unwrap().set_len(rig.volume.geometry.primary_blocks * BLOCK_BYTES as u64).unwrap();
    let bench = Bench::new(Primary::own(&path, std::time::Duration::ZERO).unwrap()).unwrap();
    rebuild_on(&bench, plan(&rig).unwrap()).unwrap();
    let before = rig.store().list().unwrap();
    let segment = rig.segment();
    while rig.segment() < segment + 2 {
        rig.step();
    }
    rig.serve(salvol::volume::Operation::Flush, 0, 0, None);
    for _ in 0..50 {
        rig.idle();
    }
    let error = rig.engine().status().archive.error.unwrap();
    assert!(error.contains("was rebuilt"), "{error}");
    assert_eq!(rig.store().list().unwrap(), before, "nothing was put");
    // What it marks from now on is on the old primary only, and none of the volume's.
    let points = Source::open_spec(&rig.spec).unwrap().points().unwrap().points.len();
    rig.synch("nobody's");
    assert_eq!(Source::open_spec(&rig.spec).unwrap().points().unwrap().points.len(), points);
    rig.kill();
}

/// What the old primary put between two looks is not taken for the volume's, and a rebuild that sees it records nothing.
#[test]
fn a_rebuild_sees_that_the_old_primary_is_in_use() {
    let Some(mut rig) = Rig::new(ArchiveAt::Seal, true, 25) else { return };
    let mut moments = Vec::new();
    work(&mut rig, 30, &mut moments);
    rig.settle();
    let planned = plan(&rig).unwrap();
    run_on(&mut rig, 2, &mut moments);
    rig.close();
    std::fs::rename(rig.primary(), rig.path("old")).unwrap();
    let error = rebuild_on(&blank(&rig), planned).unwrap_err();
    assert!(matches!(error, HistoryError::InUse { .. }), "{error}");
    assert!(matches!(rig.store().length(&ForkRecord::name_of(rig.volume.history)), Err(StoreError::Missing { .. })));
    let source = Source::open_primary(&rig.primary());
    assert!(matches!(source, Err(HistoryError::Superblock { .. })), "there is no volume on the new primary");
    std::fs::rename(rig.path("old"), rig.primary()).unwrap();
    rig.attach();
    rig.close();
}

/// A device that fails from its write number `left` on.
#[derive(Clone)]
struct Failing<D>(D, Rc<Cell<u64>>);

impl<D: Device> Failing<D> {
    fn tick(&self) -> io::Result<()> {
        let left = self.1.get().checked_sub(1).ok_or(io::Error::from_raw_os_error(5))?;
        self.1.set(left);
        Ok(())
    }
}

impl<D: Device> Device for Failing<D> {
    fn bytes(&self) -> u64 {
        self.0.bytes()
    }
    async fn read(&self, offset: u64, buffer: Buffer) -> io::Result<()> {
        self.0.read(offset, buffer).await
    }
    async fn write(&self, offset: u64, buffer: Buffer) -> io::Result<()> {
        self.tick()?;
        self.0.write(offset, buffer).await
    }
    async fn flush(&self) -> io::Result<()> {
        self.tick()?;
        self.0.flush().await
    }
    async fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        self.0.discard(offset, bytes).await
    }
}

#[test]
fn a_rebuild_that_ends_at_any_step_is_done_again() {
    let Some(mut rig) = Rig::new(ArchiveAt::Seal, true, 26) else { return };
    let mut moments = Vec::new();
    work(&mut rig, 30, &mut moments);
    rig.settle();
    rig.close();
    let old = std::fs::read(rig.primary()).unwrap();
    let mut recorded = 0;
    for steps in 0.. {
        // The old primary's bytes are still there when the new one is its place.
        std::fs::write(rig.primary(), &old).unwrap();
        let bench = Bench::new(Primary::own(&rig.primary(), std::time::Duration::ZERO).unwrap()).unwrap();
        let planned = plan(&rig).unwrap();
        let parent = planned.volume().parent_history;
        let device = Failing(bench.device.clone(), Rc::new(Cell::new(steps)));
        let outcome = bench.wait(async move { planned.write(&device, &Progress::none()).await }).unwrap();
        drop(bench);
        let has_record = rig.store().length(&ForkRecord::name_of(parent)).is_ok();
        recorded += u64::from(has_record);
        if outcome.is_ok() {
            assert!(steps > 20);
            break;
        }
        let found = Source::open_primary(&rig.primary());
        match (has_record, found) {
            (_, Err(_)) => {}
            // One of its superblocks was left, and nothing else was touched.
            (false, Ok(source)) => assert!(steps < 2 && source.volume().history == rig.volume.history),
            // One superblock is enough.
            (true, Ok(source)) => assert_eq!(source.volume().parent_history, parent),
        }
    }
    assert!(recorded >= 3, "before, between and after the superblocks: {recorded}");
    let fork = Source::open_primary(&rig.primary()).unwrap().volume().fork_position;
    rig.model = at(&Source::open_primary(&rig.primary()).unwrap(), &rig, &moments, fork);
    rig.points.retain(|(mark, _)| mark.position <= fork);
    rig.attach();
    assert_eq!(rig.wrong_blocks(), [0; 0]);
    work(&mut rig, 10, &mut moments);
    rig.settle();
    rig.close();
    all_come_back_from_primary(&rig);
}

fn all_come_back_from_primary(rig: &Rig) {
    let source = Source::open_primary(&rig.primary()).unwrap();
    for (mark, model) in &rig.points {
        comes_back(&source, &format!("p{}", mark.point), &rig.path("out"), model);
    }
}

/// Cuts the archived segment into parts of some batches each, without the last `left_out`, and takes the whole one away.
fn cut(rig: &Rig, name: &ObjectName, parts: usize, left_out: usize) -> Vec<ObjectName> {
    let store = rig.store();
    let mut object = ArchivedSegment::open(&store, name, None).unwrap();
    let (volume, summary, image) = (object.volume().clone(), object.summary().clone(), object.read_image().unwrap());
    let batch = |rank: usize| {
        let at = summary.batches[rank].offset().0 as usize * BLOCK_BYTES;
        BatchHeader::parse(&image[at..], &volume).unwrap()
    };
    let count = summary.batches.len() - left_out;
    assert!(count >= parts);
    nothing_behind(rig, name);
    let mut names = Vec::new();
    for part in 0..parts {
        let ranks = count * part / parts..count * (part + 1) / parts;
        let last = batch(ranks.end - 1);
        let first = if part == 0 { Offset(0) } else { summary.batches[ranks.start].offset() };
        let run: Summary = summary.part(ranks.clone(), batch(ranks.start).header.predecessor, last.checksum);
        let end = (last.header.offset.0 + last.blocks()) as usize * BLOCK_BYTES;
        let mut bytes = image[first.0 as usize * BLOCK_BYTES..end].to_vec();
        let at = bytes.len();
        bytes.resize(at + run.blocks() as usize * BLOCK_BYTES, 0);
        run.encode(&volume, &mut bytes[at..]);
        let buffer = Buffer::new(bytes.len()).unwrap();
        buffer.copy_from(0, &bytes);
        let job = ArchiveJob {
            store: Arc::clone(&store),
            volume: volume.clone(),
            summary: Arc::new(run),
            extent: Extent { part: part as u32 + 1, first },
            image: buffer,
            packing: Packing::Zstd(1),
        };
        names.push(archive_segment(job).unwrap().name);
    }
    store.delete(name).unwrap();
    names
}

/// Removes what is newer than the segment of `name`, as if the primary had been lost then.
fn nothing_behind(rig: &Rig, name: &ObjectName) {
    let names = rig.store().list().unwrap().into_iter().map(|(name, _)| name);
    names.filter(|newer| newer.segment > name.segment).for_each(|name| rig.store().delete(&name).unwrap());
}

fn newest(rig: &Rig) -> ObjectName {
    let history = rig.volume.history;
    let own = |name: &ObjectName| name.history == history && name.part == 0 && name.segment.0 > 0;
    rig.store().list().unwrap().into_iter().map(|(name, _)| name).filter(own).max().unwrap()
}

fn file_of(rig: &Rig, name: &ObjectName) -> std::path::PathBuf {
    let file = format!("{:016}.e{:08}.p{}.zst", name.segment.0, name.epoch, name.part);
    rig.path("archive").join(name.history.to_string()).join(file)
}

#[test]
fn a_volume_goes_on_in_a_segment_that_was_open() {
    for seed in 27..30 {
        let Some(mut rig) = Rig::new(ArchiveAt::Seal, true, seed) else { return };
        let mut moments = Vec::new();
        work(&mut rig, 30, &mut moments);
        run_on(&mut rig, 1, &mut moments);
        rig.close();
        let parts = cut(&rig, &newest(&rig), 1 + seed as usize % 3, 1 + seed as usize % 4);
        for turn in 0..2 {
            let report = rebuild(&mut rig, &mut moments);
            assert_eq!(report.damaged, []);
            assert!(check_path(&rig.primary()).unwrap().ok);
            let tail = Source::open_primary(&rig.primary()).unwrap();
            assert_eq!(tail.resolve(&report.fork_position.to_string()).unwrap().segment, parts[0].segment);
            all_come_back(&rig, true);
            if turn == 0 {
                continue;
            }
            rig.attach();
            assert_eq!(rig.wrong_blocks(), [0; 0]);
            rig.kill();
            rig.attach();
            work(&mut rig, 30, &mut moments);
            run_on(&mut rig, u64::from(WORKING_SET) + 2, &mut moments);
            rig.close();
            assert!(check_path(&rig.primary()).unwrap().ok);
        }
        // What the old primary archives of that segment behind the fork is none of the volume's.
        all_come_back(&rig, true);
        std::fs::remove_file(rig.primary()).unwrap();
        all_come_back(&rig, false);
    }
}

/// The whole segment, put by the old primary behind a fork in the middle of it, is left out.
#[test]
fn what_an_old_primary_put_behind_the_fork_is_nobodys() {
    let Some(mut rig) = Rig::new(ArchiveAt::Seal, true, 34) else { return };
    let mut moments = Vec::new();
    work(&mut rig, 30, &mut moments);
    run_on(&mut rig, 1, &mut moments);
    rig.close();
    let whole = newest(&rig);
    let bytes = rig.store().get(&whole, 0..u64::MAX).unwrap();
    cut(&rig, &whole, 2, 3);
    rebuild(&mut rig, &mut moments);
    let later = ObjectName { segment: SegmentNumber(whole.segment.0 + 1), ..whole };
    rig.store().put(&whole, &bytes).unwrap();
    rig.store().put(&later, b"whatever").unwrap();
    all_come_back(&rig, true);
    rig.attach();
    assert_eq!(rig.wrong_blocks(), [0; 0]);
    work(&mut rig, 20, &mut moments);
    run_on(&mut rig, 2, &mut moments);
    rig.close();
    all_come_back(&rig, true);
}

/// Damage in the archive costs the blocks it hit: they read as errors, and are reported.
#[test]
fn damage_in_the_archive_costs_its_blocks() {
    let mut hit = 0;
    for (seed, back, frame) in [(40, 0, 0), (41, 0, 1), (42, 1, 0), (43, 4, 1), (44, 5, 0)] {
        let Some(mut rig) = Rig::new(ArchiveAt::Seal, true, seed) else { return };
        let mut moments = Vec::new();
        work(&mut rig, 25, &mut moments);
        run_on(&mut rig, 1, &mut moments);
        rig.close();
        let victim = newest(&rig).segment.0 - back;
        let name = rig.store().list().unwrap().into_iter().map(|(name, _)| name).find(|n| n.segment.0 == victim);
        let path = file_of(&rig, &name.unwrap());
        let mut bytes = std::fs::read(&path).unwrap();
        // In the first frame or the second: the first has the segment header too.
        let at = if frame == 0 { 4352 + 1000 } else { bytes.len() - bytes.len() / 3 };
        bytes[at] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let report = rebuild(&mut rig, &mut moments);
        let mut damaged: Vec<u64> = report.damaged.iter().map(|damage| damage.block).collect();
        damaged.dedup();
        for damage in &report.damaged {
            assert_eq!(damage.segment, Some(victim), "{damage}");
        }
        assert!(report.fork_position >= moments.last().unwrap().0.0.saturating_sub(100));
        rig.attach();
        assert_eq!(rig.wrong_blocks(), damaged, "exactly what is reported fails");
        hit += damaged.len();
        // They are lost when they are due to be copied, and the volume goes on.
        for _ in 0..200 {
            rig.step();
        }
        let wrong = rig.wrong_blocks();
        assert!(wrong.iter().all(|block| damaged.contains(block)), "{wrong:?} {damaged:?}");
        rig.settle();
        rig.close();
        rig.attach();
        rig.close();
    }
    assert!(hit > 20, "{hit}");
}

/// An open segment in parts goes on behind the last header that is whole.
#[test]
fn a_damaged_part_ends_what_is_gone_on_with() {
    for (seed, victim) in [(50, 0), (51, 1), (52, 2)] {
        let Some(mut rig) = Rig::new(ArchiveAt::Seal, true, seed) else { return };
        let mut moments = Vec::new();
        work(&mut rig, 25, &mut moments);
        run_on(&mut rig, 1, &mut moments);
        rig.close();
        let names = cut(&rig, &newest(&rig), 3, 1);
        let path = file_of(&rig, &names[victim]);
        let mut bytes = std::fs::read(&path).unwrap();
        bytes[4352 + 300] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let planned = match plan(&rig) {
            // Nothing of the segment is left.
            Err(HistoryError::Loss { position, .. }) if victim == 0 => {
                let accepting = RebuildOptions { accept_loss: Some(position), ..options(&rig) };
                RebuildPlan::new(Source::open_spec(&rig.spec).unwrap(), accepting)
            }
            planned => planned,
        };
        let report = rebuild_as(&mut rig, &mut moments, planned.unwrap());
        assert_eq!(report.given_up.is_some(), victim == 0);
        assert!(!report.damaged.is_empty(), "what is lost is said");
        assert!(check_path(&rig.primary()).unwrap().ok);
        rig.attach();
        assert_eq!(rig.wrong_blocks(), [0; 0]);
        work(&mut rig, 10, &mut moments);
        run_on(&mut rig, 2, &mut moments);
        rig.close();
        rig.attach();
        assert_eq!(rig.wrong_blocks(), [0; 0]);
        rig.close();
        all_come_back_from_primary(&rig);
    }
}

/// Flips a bit in the header of an object, so that no reader takes it.
fn spoil(rig: &Rig, name: &ObjectName) {
    let mut bytes = std::fs::read(file_of(rig, name)).unwrap();
    bytes[100] ^= 1;
    std::fs::write(file_of(rig, name), bytes).unwrap();
}

/// A rebuild is for good, so it gives up nothing that the archive lists unless it is told to.
#[test]
fn a_rebuild_gives_up_nothing_newer_unasked() {
    // The newest object is damaged; one that it needs is missing; the last of three parts is damaged; one in the middle is
    // missing.
    for (seed, case) in [(70, 0), (71, 1), (72, 2), (73, 3)] {
        let Some(mut rig) = Rig::new(ArchiveAt::Seal, true, seed) else { return };
        let mut moments = Vec::new();
        work(&mut rig, 25, &mut moments);
        run_on(&mut rig, 1, &mut moments);
        rig.close();
        let last = newest(&rig);
        nothing_behind(&rig, &last);
        let before = plan(&rig).unwrap().volume().fork_position;
        match case {
            0 => spoil(&rig, &last),
            1 => {
                let names = rig.store().list().unwrap().into_iter().map(|(name, _)| name);
                let names: Vec<ObjectName> = names.filter(|name| name.segment.0 + 2 == last.segment.0).collect();
                names.iter().for_each(|name| rig.store().delete(name).unwrap());
            }
            2 => spoil(&rig, &cut(&rig, &last, 3, 0)[2]),
            _ => rig.store().delete(&cut(&rig, &last, 3, 0)[1]).unwrap(),
        }
        let error = plan(&rig).err().unwrap();
        let says = error.to_string();
        let HistoryError::Loss { newest, position, .. } = error else { panic!("case {case}: {says}") };
        assert!(newest == last.segment && position < before && error.is_corruption(), "case {case}: {says}");
        for what in [format!("segment in the archive, {newest}"), format!("--accept-loss {position}")] {
            assert!(says.contains(&what), "case {case}: {says}");
        }
        let other = RebuildOptions { accept_loss: Some(before), ..options(&rig) };
        let refused = RebuildPlan::new(Source::open_spec(&rig.spec).unwrap(), other).err().unwrap();
        assert!(matches!(refused, HistoryError::Loss { .. }), "case {case}: {refused}");

        let accepting = RebuildOptions { accept_loss: Some(position), ..options(&rig) };
        let planned = RebuildPlan::new(Source::open_spec(&rig.spec).unwrap(), accepting).unwrap();
        let given_up = planned.report().given_up.unwrap();
        assert_eq!(given_up.segment, last.segment.0, "case {case}");
        assert!(case != 1 || !given_up.points.is_empty(), "the points that are known are named");
        assert_eq!(planned.volume().fork_position, position);
        let report = rebuild_as(&mut rig, &mut moments, planned);
        assert_eq!(report.given_up.map(|given_up| given_up.segment), Some(last.segment.0));
        rig.attach();
        assert_eq!(rig.wrong_blocks(), [0; 0], "case {case}");
        rig.close();
        assert!(plan(&rig).unwrap().report().given_up.is_none(), "what was given up is no longer of the volume's past");
    }
}

#[test]
fn records_that_are_damaged_or_hostile_are_named() {
    let Some(mut rig) = Rig::new(ArchiveAt::Seal, true, 60) else { return };
    let mut moments = Vec::new();
    work(&mut rig, 20, &mut moments);
    rig.settle();
    rig.close();
    let first = rig.volume.history;
    rebuild(&mut rig, &mut moments);
    let name = ForkRecord::name_of(first);
    let store = rig.store();
    let good = store.get(&name, 0..u64::MAX).unwrap();
    let with = |bytes: &[u8]| {
        store.delete(&name).unwrap();
        store.put(&name, bytes).unwrap();
    };
    let mut rng = fastrand::Rng::with_seed(1);
    let mut hostile: Vec<Vec<u8>> = vec![Vec::new(), vec![0; 4352], good[..100].to_vec(), [&good[..], b"x"].concat()];
    for _ in 0..100 {
        let mut bytes = good.clone();
        bytes[rng.usize(..good.len())] ^= 1 << rng.u8(..8);
        hostile.push(bytes);
    }
    for bytes in hostile {
        with(&bytes);
        let error = Source::open_spec(&rig.spec).err().unwrap();
        assert!(error.is_corruption() && error.to_string().contains(&name.to_string()), "{error}");
        // Its successor's own primary knows where it forked.
        Source::open_primary(&rig.primary()).unwrap().points().unwrap();
        let old = Superblock { history: first, parent_history: Uuid::default(), ..rig.volume.clone() };
        let error = ForkRecord::refuse_superseded(&store, &old).unwrap_err();
        assert!(matches!(error, ArchiveError::Superseded { .. }), "{error}");
    }
    // Its own ancestor, signed with the right key.
    with(&good);
    let volume = Superblock { history: first, parent_history: rig.volume.history, ..rig.volume.clone() };
    let circle = ForkRecord {
        successor: volume,
        segment: SegmentNumber(3),
        checksum: Default::default(),
        epoch: 1 << 62,
        time_ns: i64::MAX,
    };
    store.put(&circle.name(), &circle.encode()).unwrap();
    let error = Source::open_spec(&rig.spec).err().unwrap();
    assert!(error.is_corruption() && error.to_string().contains("circle"), "{error}");
    assert!(plan(&rig).is_err());
    // A primary beside it shows what it has.
    Source::open_primary(&rig.primary()).unwrap().points().unwrap();
    store.delete(&circle.name()).unwrap();
    rig.attach();
    rig.close();
}

/// What happens to a store while nobody looks.
type Event = Box<dyn FnOnce(&Arc<dyn Store>) + Send>;

/// A store in which something happens at a put.
struct Between(Arc<dyn Store>, Mutex<Option<Event>>);

impl Store for Between {
    fn put(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
        if let Some(happens) = self.1.lock().unwrap().take() {
            happens(&self.0);
        }
        self.0.put(name, bytes)
    }
    fn get(&self, name: &ObjectName, range: std::ops::Range<u64>) -> Result<Vec<u8>, StoreError> {
        self.0.get(name, range)
    }
    fn length(&self, name: &ObjectName) -> Result<u64, StoreError> {
        self.0.length(name)
    }
    fn list(&self) -> Result<Vec<(ObjectName, u64)>, StoreError> {
        self.0.list()
    }
    fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.0.delete(name)
    }
    fn spec(&self) -> String {
        self.0.spec()
    }
}

fn plan_between(rig: &Rig, happens: impl FnOnce(&Arc<dyn Store>) + Send + 'static) -> RebuildPlan {
    let store: Arc<dyn Store> = Arc::new(Between(rig.store(), Mutex::new(Some(Box::new(happens)))));
    let source = Source::open_store(rig.volume.clone(), Some(store)).unwrap();
    RebuildPlan::new(source, options(rig)).unwrap()
}

#[test]
fn of_a_put_and_a_record_at_one_time_one_gives_way() {
    let Some(mut rig) = Rig::new(ArchiveAt::Seal, true, 61) else { return };
    let mut moments = Vec::new();
    work(&mut rig, 20, &mut moments);
    rig.settle();
    rig.close();
    let name = ForkRecord::name_of(rig.volume.history);
    let missing = |rig: &Rig| matches!(rig.store().length(&name), Err(StoreError::Missing { .. }));
    // The old primary puts a segment just before the record.
    let late = ObjectName { segment: SegmentNumber(newest(&rig).segment.0 + 1), ..newest(&rig) };
    let planned = plan_between(&rig, move |store| store.put(&late, b"a segment").unwrap());
    let error = rebuild_on(&blank(&rig), planned).unwrap_err();
    assert!(matches!(error, HistoryError::InUse { .. }) && missing(&rig), "{error}");
    rig.store().delete(&late).unwrap();
    // Another rebuild is faster.
    let other = plan(&rig).unwrap();
    let record = ForkRecord {
        successor: other.volume().clone(),
        segment: newest(&rig).segment,
        checksum: Default::default(),
        epoch: 1,
        time_ns: 0,
    };
    let planned = plan_between(&rig, move |store| store.put(&record.name(), &record.encode()).unwrap());
    let error = rebuild_on(&blank(&rig), planned).unwrap_err();
    assert!(matches!(error, HistoryError::OtherRebuild { .. }) && !missing(&rig), "{error}");
    // The record comes between put and read-back: the segment does not count.
    rig.store().delete(&name).unwrap();
    let store = rig.store();
    let mut object = ArchivedSegment::open(&store, &newest(&rig), None).unwrap();
    let image = Buffer::new(SEGMENT_BLOCKS as usize * BLOCK_BYTES).unwrap();
    image.copy_from(0, &object.read_image().unwrap());
    let job = |store: Arc<dyn Store>| ArchiveJob {
        store,
        volume: object.volume().clone(),
        summary: Arc::new(object.summary().clone()),
        extent: Extent::WHOLE,
        image: image.clone(),
        packing: Packing::Raw,
    };
    let record = ForkRecord {
        successor: other.volume().clone(),
        segment: newest(&rig).segment,
        checksum: Default::default(),
        epoch: 1,
        time_ns: 0,
    };
    let happens: Event = Box::new(move |store| store.put(&record.name(), &record.encode()).unwrap());
    let between: Arc<dyn Store> = Arc::new(Between(Arc::clone(&store), Mutex::new(Some(happens))));
    let error = archive_segment(job(between)).unwrap_err();
    assert!(matches!(error, ArchiveError::Superseded { .. }), "{error}");
    store.delete(&name).unwrap();
    archive_segment(job(store)).unwrap();
}

#[test]
fn a_store_that_somebody_writes_to_ends_a_rebuild_before_it_begins() {
    let Some(mut rig) = Rig::new(ArchiveAt::Seal, true, 63) else { return };
    work(&mut rig, 20, &mut Vec::new());
    rig.settle();
    rig.close();
    let path = rig.path("ring");
    std::fs::File::create(&path).unwrap().set_len(64 << 20).unwrap();
    let ring = RingStore::create(RingKind::File, &path, &rig.volume).unwrap();
    for (name, _) in rig.store().list().unwrap() {
        ring.put(&name, &rig.store().get(&name, 0..u64::MAX).unwrap()).unwrap();
    }
    let bench = blank(&rig);
    let before = std::fs::read(rig.primary()).unwrap();
    let planned = || RebuildPlan::new(Source::open_spec(&Spec::File(path.clone()))?, options(&rig));
    let error = rebuild_on(&bench, planned().unwrap()).unwrap_err().to_string();
    assert!(error.contains("in use"), "{error}");
    assert!(std::fs::read(rig.primary()).unwrap() == before, "nothing has been written");
    drop(ring);
    rebuild_on(&bench, planned().unwrap()).unwrap();
}

#[test]
fn an_archive_with_nothing_in_it_is_not_gone_on_with() {
    let Some(mut rig) = Rig::new(ArchiveAt::Seal, true, 62) else { return };
    // A close would archive what there is.
    rig.steps(3);
    rig.kill();
    let error = plan(&rig).err().unwrap();
    assert!(error.is_no_point() && error.to_string().contains("nothing to go on from"), "{error}");
}

/// The command itself, from an archive with a past to a volume that goes on.
#[test]
fn the_command_says_what_it_did() {
    let Some(mut rig) = Rig::new(ArchiveAt::Seal, true, 63) else { return };
    let mut moments = Vec::new();
    work(&mut rig, 20, &mut moments);
    rig.settle();
    rig.close();
    std::fs::rename(rig.primary(), rig.path("old")).unwrap();
    let fork = plan(&rig).unwrap().volume().fork_position;
    rig.model = at(&Source::open_spec(&rig.spec).unwrap(), &rig, &moments, fork);
    let salvol = |arguments: &[&str]| {
        let mut command = std::process::Command::new(env!("CARGO_BIN_EXE_salvol"));
        command.args(arguments).current_dir(rig.directory.path()).env("SALVOL_RUN_DIR", rig.path("run"));
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        (output.status.code().unwrap(), text(&output.stdout), text(&output.stderr))
    };
    let (code, out, _) = salvol(&["rebuild", "primary", "--from", "dir:archive", "--dry-run"]);
    assert!(code == 0 && out.contains("dry run") && !rig.primary().exists(), "{out}");
    assert!(out.contains(&format!("from position {fork}")), "{out}");
    let (code, out, err) = salvol(&["rebuild", "primary", "--from", "dir:archive", "--json", "--name", "other"]);
    assert_eq!(code, 0, "{err}");
    let made: serde_json::Value = serde_json::from_str(&out).unwrap();
    assert_eq!((made["fork_position"].as_u64(), made["name"].as_str()), (Some(fork.0), Some("other")));
    assert_eq!(made["parent_history"], rig.volume.history.to_string());
    assert_eq!(made["damaged"], serde_json::json!([]));
    let (code, _, err) = salvol(&["rebuild", "primary", "--from", "dir:archive"]);
    assert!(code == 1 && err.contains("holds the salvol volume other") && err.contains("--force"), "{err}");
    rig.attach();
    assert_eq!(rig.wrong_blocks(), [0; 0]);
    rig.close();
    // A damaged frame is exit code 3, and the volume is there all the same.
    // The new history may have archived the segment once more.
    let segment = newest(&rig).segment;
    for (name, _) in rig.store().list().unwrap().into_iter().filter(|(name, _)| name.segment == segment) {
        let mut bytes = std::fs::read(file_of(&rig, &name)).unwrap();
        bytes[4352 + 1000] ^= 1;
        std::fs::write(file_of(&rig, &name), &bytes).unwrap();
    }
    let arguments = ["rebuild", "primary", "--from", "dir:archive", "--force"];
    let run = std::process::Command::new(env!("CARGO_BIN_EXE_salvol"))
        .args(arguments)
        .current_dir(rig.directory.path())
        .env("SALVOL_RUN_DIR", rig.path("run"))
        .output()
        .unwrap();
    let err = String::from_utf8_lossy(&run.stderr).into_owned();
    assert_eq!(run.status.code(), Some(3), "{err}");
    assert!(err.contains("read as errors until they are overwritten") && err.contains("block "), "{err}");
    rig.attach();
    assert!(!rig.wrong_blocks().is_empty());
    rig.close();
}
