//! What is pruned is what no rule, pin or reader needs: all else comes back bit for bit, from primary and store and from the
//! store alone, whatever interrupted a prune, and after the volume went on, was rebuilt, or had its ring turned over.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use super::rig::{Model, Rig, WORKING_SET, differences};
use salvol::archive::{Fill, Lease, ObjectName, PinRecord, Store, StoreError};
use salvol::format::{ArchiveAt, BLOCK_BYTES, SegmentNumber, Uuid};
use salvol::history::{
    HistoryError, Keep, Pinned, Progress, PruneReport, RebuildOptions, RebuildPlan, Source, pin, pinned_as, prune,
    restore, rfc3339, unpin, verify,
};
use salvol::io::{Bench, Primary};
use salvol::volume::Point;

/// A volume at rest whose log turned over several times, with points all along.
fn volume(points: usize, archive_at: ArchiveAt, seed: u64) -> Option<Rig> {
    let mut rig = Rig::new(archive_at, true, seed)?;
    add_points(&mut rig, points);
    Some(rig)
}

fn add_points(rig: &mut Rig, points: usize) {
    let before = rig.points.len();
    for point in 0..points {
        let steps = rig.rng.usize(18..26);
        rig.steps(steps);
        rig.synch(&format!("point {}", before + point));
    }
    rig.settle();
}

fn nobody() -> Option<SegmentNumber> {
    None
}

fn pruned(source: &Source, keep: Keep) -> PruneReport {
    prune(source, keep, &nobody, false).unwrap()
}

fn sources(rig: &Rig) -> [Source; 2] {
    let served = rig.served.clone();
    [Source::open_primary_with(&rig.primary(), served).unwrap(), Source::open_spec(&rig.spec).unwrap()]
}

fn alone(rig: &Rig) -> Source {
    Source::open_spec(&rig.spec).unwrap()
}

/// Restores the point and compares it with the model.
fn comes_back(source: &Source, to: &std::path::Path, (mark, model): &(Point, Model)) -> Result<(), HistoryError> {
    let moment = source.resolve(&format!("p{}", mark.point))?;
    let report = restore(source, &moment, to, true, &Progress::none())?;
    assert_eq!(report.damaged, [], "{moment}");
    assert_eq!(differences(to, model), [0; 0], "{moment}");
    Ok(())
}

/// Those of the rig's points that come back, each right; all others are gone, and say so. So says the list.
fn there(rig: &Rig, source: &Source) -> BTreeSet<usize> {
    let mut there = BTreeSet::new();
    for (rank, point) in rig.points.iter().enumerate() {
        match comes_back(source, &rig.path("out"), point) {
            Ok(()) => assert!(there.insert(rank)),
            Err(error) => assert!(error.is_no_point(), "p{}: {error}", point.0.point),
        }
    }
    let listed: Vec<u64> = source.points().unwrap().points.iter().map(|info| info.position).collect();
    let found: Vec<u64> = there.iter().map(|rank| rig.points[*rank].0.point).collect();
    assert_eq!(listed, found);
    there
}

#[track_caller]
fn clean(source: &Source) {
    let report = verify(source, &Progress::none()).unwrap();
    assert!(report.ok, "{:?}", report.findings.iter().map(ToString::to_string).collect::<Vec<_>>());
}

fn segments(store: &dyn Store) -> Vec<u64> {
    let list = store.list().unwrap().into_iter().map(|(name, _)| name.segment.0).filter(|number| *number > 0);
    list.collect::<BTreeSet<u64>>().into_iter().collect()
}

fn pin_in(source: &Source, point: &Point) -> Result<Pinned, HistoryError> {
    pin(source, &source.resolve(&format!("p{}", point.point))?, 1_700_000_000_000_000_000)
}

fn pinned(source: &Source) -> Vec<u64> {
    source.points().unwrap().points.iter().filter(|info| info.pinned).map(|info| info.position).collect()
}

#[test]
fn a_number_of_points_is_kept_and_what_they_need() {
    for (archive_at, seed) in [(ArchiveAt::Seal, 80), (ArchiveAt::Inactive, 81)] {
        let Some(mut rig) = volume(70, archive_at, seed) else { return };
        rig.close();
        let mut left = there(&rig, &alone(&rig)).len();
        for count in [25, 6, 1] {
            let [both, store] = sources(&rig);
            let before = segments(&*rig.store());
            let would = prune(&both, Keep::Points(count), &nobody, true).unwrap();
            assert_eq!(segments(&*rig.store()), before, "a dry run removes nothing");
            let did = pruned(&both, Keep::Points(count));
            assert_eq!(PruneReport { dry_run: true, ..did.clone() }, would);
            assert_eq!(did.segments as usize, before.len() - segments(&*rig.store()).len());
            assert!(did.segments > 0 || count == 1, "{did:?}");
            let newest: BTreeSet<usize> = (70 - count as usize..70).collect();
            assert!(there(&rig, &both).is_superset(&newest), "{count}");
            store.points().unwrap();
            let store = alone(&rig);
            let now = there(&rig, &store);
            assert!(now.len() < left || count == 1, "{} points are left", now.len());
            left = now.len();
            // No more than the segments of what is asked for, and those that rebuilding needs.
            let segment = |rank: usize| both.resolve(&format!("p{}", rig.points[rank].0.point)).unwrap().segment.0;
            let first = segments(&*rig.store())[0];
            let newest_archived = segments(&*rig.store()).last().copied().unwrap();
            let bound = segment(70 - count as usize).min(newest_archived).saturating_sub(u64::from(WORKING_SET));
            assert_eq!(first, bound);
            if archive_at == ArchiveAt::Seal {
                assert!(now.is_superset(&newest));
                assert_eq!(did.oldest_restorable, store.points().unwrap().oldest_restorable);
            }
            clean(&both);
            clean(&store);
            assert_eq!(pruned(&both, Keep::Points(count)).objects, 0, "again, there is nothing to do");
        }
        rig.attach();
        add_points(&mut rig, 20);
        assert!(there(&rig, &sources(&rig)[0]).is_superset(&(70..90).collect()));
        rig.close();
        clean(&sources(&rig)[0]);
    }
}

#[test]
fn every_moment_since_a_time_is_kept() {
    let Some(mut rig) = volume(60, ArchiveAt::Seal, 82) else { return };
    rig.close();
    let since = rig.points[40].0.time_ns;
    let [both, store] = sources(&rig);
    let before = rig.points[39].0.position.0 + 1;
    let last = rig.points[59].0.position.0;
    let view = |source: &Source, position: u64| {
        let moment = source.resolve(&position.to_string()).unwrap();
        restore(source, &moment, &rig.path("moment"), true, &Progress::none()).unwrap();
        fs::read(rig.path("moment")).unwrap()
    };
    let positions: Vec<u64> = (before..last).step_by(7).collect();
    let was: Vec<Vec<u8>> = positions.iter().map(|position| view(&store, *position)).collect();
    let report = pruned(&both, Keep::Since(since));
    assert!(report.objects > 0 && report.oldest_restorable_ns.unwrap() <= since, "{report:?}");
    let store = alone(&rig);
    let first = store.resolve(&rfc3339(since)).unwrap();
    assert!(first.position <= rig.points[40].0.position);
    restore(&store, &first, &rig.path("moment"), true, &Progress::none()).unwrap();
    for (position, was) in positions.iter().zip(&was).filter(|(position, _)| **position >= first.position.0) {
        assert!(view(&store, *position) == *was, "position {position}");
    }
    assert!(there(&rig, &store).is_superset(&(40..60).collect()));
    assert!(!there(&rig, &store).contains(&0));
    clean(&both);
    clean(&store);
    // From before the first position on: everything; from after the last one on: what the newest needs.
    assert_eq!(pruned(&both, Keep::Since(0)).objects, 0);
    assert!(pruned(&both, Keep::Since(i64::MAX)).objects > 0);
    assert_eq!(segments(&*rig.store()).len() as u64, u64::from(WORKING_SET) + 1);
    assert!(there(&rig, &alone(&rig)).contains(&59));
    clean(&alone(&rig));
}

/// A store whose deletes fail after so many.
struct Interrupted {
    inner: Arc<dyn Store>,
    left: AtomicI64,
}

impl Store for Interrupted {
    fn put(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
        self.inner.put(name, bytes)
    }
    fn get(&self, name: &ObjectName, range: Range<u64>) -> Result<Vec<u8>, StoreError> {
        self.inner.get(name, range)
    }
    fn length(&self, name: &ObjectName) -> Result<u64, StoreError> {
        self.inner.length(name)
    }
    fn list(&self) -> Result<Vec<(ObjectName, u64)>, StoreError> {
        self.inner.list()
    }
    fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        if self.left.fetch_sub(1, Ordering::SeqCst) <= 0 {
            return Err(StoreError::Refused { store: self.spec(), what: "the power is gone".to_owned() });
        }
        self.inner.delete(name)
    }
    fn fill(&self) -> Result<Option<Fill>, StoreError> {
        self.inner.fill()
    }
    fn lease(&self, lease: Lease) {
        self.inner.lease(lease);
    }
    fn spec(&self) -> String {
        self.inner.spec()
    }
}

#[test]
fn an_interrupted_prune_leaves_an_archive_in_one_piece() {
    let Some(mut rig) = volume(32, ArchiveAt::Seal, 83) else { return };
    let mark = rig.points[4].0.clone();
    rig.close();
    pin_in(&alone(&rig), &mark).unwrap();
    let count = segments(&*rig.store()).len();
    let mut interruptions = 0;
    loop {
        let inner = rig.store();
        let store: Arc<dyn Store> = Arc::new(Interrupted { inner, left: AtomicI64::new(1) });
        let source = Source::open_store(rig.volume.clone(), Some(store)).unwrap();
        match prune(&source, Keep::Points(3), &nobody, false) {
            Ok(report) => {
                assert!(report.objects <= 1);
                break;
            }
            Err(error) => assert!(error.to_string().contains("the power is gone"), "{error}"),
        }
        interruptions += 1;
        let store = alone(&rig);
        clean(&store);
        for rank in [4, 29, 31] {
            comes_back(&store, &rig.path("out"), &rig.points[rank]).unwrap();
        }
    }
    assert!(interruptions > 5, "{interruptions} of {count} segments");
    assert_eq!(pinned(&alone(&rig)), [mark.point]);
    // The same of an unpin: the record goes last.
    let id = format!("p{}", mark.point);
    let mut steps = 0;
    loop {
        let store: Arc<dyn Store> = Arc::new(Interrupted { inner: rig.store(), left: AtomicI64::new(1) });
        let source = Source::open_store(rig.volume.clone(), Some(store)).unwrap();
        match unpin(&source, &pinned_as(&source, &id).unwrap(), &nobody) {
            Ok(_) => break,
            Err(error) => assert!(error.to_string().contains("the power is gone"), "{error}"),
        }
        steps += 1;
        comes_back(&alone(&rig), &rig.path("out"), &rig.points[31]).unwrap();
    }
    assert!(steps > 3, "{steps}");
    clean(&alone(&rig));
}

#[test]
fn what_is_pinned_stays_an_island_until_it_is_unpinned() {
    let Some(mut rig) = volume(70, ArchiveAt::Seal, 84) else { return };
    let ranks = [8, 9, 30];
    let [both, _] = sources(&rig);
    for rank in ranks {
        let made = pin_in(&both, &rig.points[rank].0).unwrap();
        assert_eq!((made.position, made.already), (rig.points[rank].0.point, false));
        assert!(made.segments <= u64::from(WORKING_SET) + 1);
    }
    assert!(pin_in(&both, &rig.points[9].0).unwrap().already, "twice is fine");
    rig.close();
    let whole = segments(&*rig.store());
    pruned(&alone(&rig), Keep::Points(5));
    let kept: Vec<u64> = ranks.iter().map(|rank| rig.points[*rank].0.point).collect();
    let left = segments(&*rig.store());
    assert!(left.len() < whole.len() && left.windows(2).filter(|pair| pair[1] > pair[0] + 1).count() >= 2, "{left:?}");
    for source in &sources(&rig) {
        assert_eq!(pinned(source), kept);
        let there = there(&rig, source);
        assert!(there.is_superset(&BTreeSet::from(ranks)) && there.is_superset(&(65..70).collect()));
        assert!(!there.contains(&0) && !there.contains(&20) && !there.contains(&45), "{there:?}");
        clean(source);
        // In a gap there is nothing, and what is near is named.
        let lost = &rig.points[20].0;
        for text in [lost.position.0.to_string(), format!("p{}", lost.point), rfc3339(lost.time_ns)] {
            let error = source
                .resolve(&text)
                .and_then(|moment| restore(source, &moment, &rig.path("out"), true, &Progress::none()).map(drop));
            let error = error.unwrap_err();
            assert!(error.is_no_point(), "{text}: {error}");
            let near = source.nearest(&text).unwrap();
            assert!(near.contains(&format!("p{} ", kept[1])) && near.contains(" and "), "{text}: {near}");
        }
        let oldest = source.points().unwrap().oldest_restorable.unwrap();
        assert!(oldest > rfc3339(rig.points[40].0.time_ns), "an island is no beginning: {oldest}");
    }
    assert_eq!(pruned(&alone(&rig), Keep::Points(5)).objects, 0);
    // The volume goes on: nothing is taken for lost, or archived again.
    rig.attach();
    assert!(rig.engine().status().oldest_restorable.unwrap() > rfc3339(rig.points[40].0.time_ns));
    add_points(&mut rig, 10);
    assert_eq!(segments(&*rig.store())[..left.len()], left);
    rig.close();
    clean(&alone(&rig));
    pruned(&alone(&rig), Keep::Points(5));
    let source = alone(&rig);
    ranks.iter().for_each(|rank| comes_back(&source, &rig.path("out"), &rig.points[*rank]).unwrap());
    // Two of them share segments: those go with the last.
    let before = segments(&*rig.store());
    let id = format!("p{}", kept[0]);
    assert_eq!(pinned_as(&source, "point 8").unwrap(), id);
    unpin(&source, &id, &nobody).unwrap();
    comes_back(&source, &rig.path("out"), &rig.points[9]).unwrap();
    clean(&alone(&rig));
    assert!(matches!(pinned_as(&alone(&rig), "point 79"), Err(HistoryError::NotPinned { .. })));
    assert!(matches!(pinned_as(&alone(&rig), &id), Err(HistoryError::NotPinned { .. } | HistoryError::NoPoint { .. })));
    let source = alone(&rig);
    let leased = || Some(SegmentNumber(1));
    assert!(matches!(unpin(&source, &format!("p{}", kept[1]), &leased), Err(HistoryError::Leased { .. })));
    let did = unpin(&source, &format!("p{}", kept[1]), &nobody).unwrap();
    let now = segments(&*rig.store());
    assert!(did.segments > 0 && now[0] > before[0], "{did:?}");
    assert_eq!(pinned(&alone(&rig)), [kept[2]]);
    clean(&alone(&rig));
    unpin(&alone(&rig), &format!("p{}", kept[2]), &nobody).unwrap();
    assert!(segments(&*rig.store()).windows(2).all(|pair| pair[1] == pair[0] + 1), "one piece");
    clean(&alone(&rig));
}

#[test]
fn a_rebuilt_volume_has_its_pins() {
    let Some(mut rig) = volume(60, ArchiveAt::Seal, 85) else { return };
    let marks = [rig.points[10].0.clone(), rig.points[35].0.clone()];
    let [both, _] = sources(&rig);
    marks.iter().for_each(|mark| drop(pin_in(&both, mark).unwrap()));
    rig.close();
    pruned(&alone(&rig), Keep::Points(2));
    let old_primary = fs::read(rig.primary()).unwrap();
    fs::remove_file(rig.primary()).unwrap();
    let history = Uuid([9; 16]);
    let backing = rig.spec.to_string();
    let options = RebuildOptions { history, time_ns: 1, name: None, backing, accept_loss: None };
    let plan = RebuildPlan::new(alone(&rig), options).unwrap();
    rig.volume = plan.volume().clone();
    File::create(rig.primary()).unwrap().set_len(rig.volume.geometry.primary_blocks * BLOCK_BYTES as u64).unwrap();
    let bench = Bench::new(Primary::own(&rig.primary(), Duration::from_secs(2)).unwrap()).unwrap();
    let device = bench.device.clone();
    bench.wait(async move { plan.write(&device, &Progress::none()).await }).unwrap().unwrap();
    drop(bench);
    rig.attach();
    // Behind the last point nothing was written.
    assert_eq!(rig.wrong_blocks(), [0; 0]);
    let kept: Vec<u64> = marks.iter().map(|mark| mark.point).collect();
    assert_eq!(pinned(&sources(&rig)[0]), kept);
    add_points(&mut rig, 30);
    // An ancestor's point can be pinned as well.
    let old = rig.points[59].0.clone();
    pin_in(&sources(&rig)[0], &old).unwrap();
    let kept_segment = alone(&rig).resolve(&format!("p{}", old.point)).unwrap().segment.0;
    rig.close();
    pruned(&sources(&rig)[0], Keep::Points(2));
    for source in &sources(&rig) {
        assert_eq!(pinned(source), [kept[0], kept[1], old.point]);
        let there = there(&rig, source);
        assert!(there.is_superset(&BTreeSet::from([10, 35, 59, 88, 89])) && !there.contains(&50), "{there:?}");
        clean(source);
    }
    // With a fork record that has rotted nobody knows that the ancestor is one; its pins keep what they kept.
    let fork = records(&rig).into_iter().find(|path| path.to_str().unwrap().ends_with(".p0.zst")).unwrap();
    let (sound, before) = (fs::read(&fork).unwrap(), segments(&*rig.store()));
    fs::write(&fork, [&sound[..100], &[!sound[100]], &sound[101..]].concat()).unwrap();
    pruned(&Source::open_primary(&rig.primary()).unwrap(), Keep::Points(1));
    fs::write(&fork, sound).unwrap();
    let islands: Vec<u64> = before.iter().copied().filter(|segment| *segment <= kept_segment).collect();
    assert!(segments(&*rig.store()).starts_with(&islands), "{islands:?}");
    for (rank, source) in [10, 35, 59].into_iter().zip(std::iter::repeat_with(|| alone(&rig))) {
        comes_back(&source, &rig.path("out"), &rig.points[rank]).unwrap();
    }
    // The primary of before has nothing to say any more.
    fs::write(rig.path("primary"), &old_primary).unwrap();
    let stranger = Source::open_primary(&rig.primary()).unwrap();
    let error = prune(&stranger, Keep::Points(1), &nobody, false).unwrap_err();
    assert!(error.to_string().contains("continues it"), "{error}");
    assert!(unpin(&stranger, &format!("p{}", kept[0]), &nobody).is_err());
    for id in [kept[0], kept[1], old.point] {
        unpin(&alone(&rig), &format!("p{id}"), &nobody).unwrap();
        clean(&alone(&rig));
    }
}

/// The archive may have a segment before the one in front of it.
#[test]
fn a_gap_near_the_end_is_waited_for() {
    let Some(mut rig) = volume(60, ArchiveAt::Seal, 97) else { return };
    rig.close();
    let newest = *segments(&*rig.store()).last().unwrap();
    let late = newest - 2;
    let is_late = |name: &ObjectName| name.segment.0 == late;
    let name = rig.store().list().unwrap().into_iter().map(|(name, _)| name).find(is_late).unwrap();
    let file = format!("archive/{}/{late:016}.e{:08}.p0.zst", name.history, name.epoch);
    let aside = rig.path("aside");
    fs::rename(rig.path(&file), &aside).unwrap();
    for source in &sources(&rig) {
        pruned(source, Keep::Points(1));
    }
    // A rebuild begins before the gap, and needs what it needs.
    let before = late - 1;
    assert_eq!(segments(&*rig.store())[0], before - u64::from(WORKING_SET));
    fs::rename(&aside, rig.path(&file)).unwrap();
    clean(&alone(&rig));
    clean(&sources(&rig)[0]);
}

/// What has left the archive is still in slots for a while; that is nothing to rely on.
#[test]
fn what_is_in_old_slots_only_cannot_be_pinned() {
    let Some(mut rig) = volume(60, ArchiveAt::Seal, 98) else { return };
    rig.close();
    pruned(&sources(&rig)[0], Keep::Points(1));
    let there = there(&rig, &alone(&rig));
    let [both, _] = sources(&rig);
    let (mut refused, mut pinned) = (0, 0);
    for info in both.points().unwrap().points {
        let rank = rig.points.iter().position(|(point, _)| point.position.0 == info.position).unwrap();
        match pin_in(&both, &rig.points[rank].0) {
            Ok(_) => pinned += usize::from(there.contains(&rank) || info.segment.0 >= newest_of(&rig)),
            Err(error) => {
                assert!(matches!(error, HistoryError::NotArchived { .. }), "{error}");
                assert!(!there.contains(&rank), "{info:?}");
                refused += 1;
            }
        }
    }
    assert!(refused > 0 && pinned > 0, "{refused} refused, {pinned} pinned");
}

fn newest_of(rig: &Rig) -> u64 {
    *segments(&*rig.store()).last().unwrap()
}

#[test]
fn what_cannot_be_pinned_is_said() {
    let Some(mut rig) = volume(40, ArchiveAt::Seal, 86) else { return };
    rig.close();
    let source = alone(&rig);
    let between = source.resolve(&(rig.points[20].0.position.0 - 1).to_string()).unwrap();
    assert!(pin(&source, &between, 0).unwrap_err().is_usage());
    let gone = source.resolve("point 0").unwrap();
    pruned(&source, Keep::Points(5));
    assert!(pin(&alone(&rig), &gone, 0).unwrap_err().is_no_point());
    assert_eq!(pinned(&alone(&rig)), [0; 0]);
    assert!(rig.store().list().unwrap().iter().all(|(name, _)| name.segment.0 > 0), "no record is left");
    let Some(mut plain) = Rig::new(ArchiveAt::Seal, false, 87) else { return };
    let mark = plain.synch("here");
    plain.close();
    let source = Source::open_primary(&plain.primary()).unwrap();
    assert!(matches!(pin_in(&source, &mark), Err(HistoryError::NoArchive { .. })));
    let refused = prune(&source, Keep::Points(1), &nobody, false).unwrap_err();
    assert!(refused.to_string().contains("--backing none"), "{refused}");
}

/// The files of the pin records in a directory store.
fn records(rig: &Rig) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for history in fs::read_dir(rig.path("archive")).unwrap().flatten().filter(|entry| entry.path().is_dir()) {
        let inside = fs::read_dir(history.path()).unwrap().flatten().map(|entry| entry.path());
        found
            .extend(inside.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with("0000000000000000.")));
    }
    found.sort();
    found
}

#[test]
fn a_pin_that_rots_stops_pruning_and_nothing_else() {
    let Some(mut rig) = volume(50, ArchiveAt::Seal, 88) else { return };
    let marks = [rig.points[10].0.clone(), rig.points[25].0.clone()];
    marks.iter().for_each(|mark| drop(pin_in(&sources(&rig)[0], mark).unwrap()));
    rig.close();
    pruned(&alone(&rig), Keep::Points(3));
    let path = records(&rig)[0].clone();
    let whole = fs::read(&path).unwrap();
    let mut rotten = whole.clone();
    rotten[70] ^= 4;
    fs::write(&path, &rotten).unwrap();
    let source = alone(&rig);
    let name = match prune(&source, Keep::Points(2), &nobody, false).unwrap_err() {
        HistoryError::DamagedPin { name, .. } => name,
        other => panic!("{other}"),
    };
    assert!(PinRecord::is_name(&name));
    let report = verify(&source, &Progress::none()).unwrap();
    let found = report.findings.iter().find(|finding| finding.place.contains(&name.to_string())).unwrap();
    assert!(!found.covered && found.what.contains("pin record"), "{found}");
    // Points still come back, and the volume goes on.
    comes_back(&source, &rig.path("out"), &rig.points[10]).unwrap();
    comes_back(&source, &rig.path("out"), &rig.points[25]).unwrap();
    rig.attach();
    add_points(&mut rig, 5);
    rig.close();
    // Pinned again, the damaged record removed by its name: all is well.
    let source = alone(&rig);
    assert_eq!(source.points().unwrap().points.iter().filter(|info| info.pinned).count(), 1);
    assert!(!pin_in(&source, &marks[0]).unwrap().already);
    let did = unpin(&source, &pinned_as(&source, &name.to_string()).unwrap(), &nobody).unwrap();
    assert_eq!(did.objects, 0);
    clean(&alone(&rig));
    pruned(&alone(&rig), Keep::Points(2));
    assert_eq!(pinned(&alone(&rig)), [marks[0].point, marks[1].point]);
    clean(&alone(&rig));
}

#[test]
fn a_pin_whose_segments_are_gone_is_found_and_can_go() {
    let Some(mut rig) = volume(40, ArchiveAt::Seal, 89) else { return };
    let mark = rig.points[12].0.clone();
    rig.close();
    pin_in(&alone(&rig), &mark).unwrap();
    pruned(&alone(&rig), Keep::Points(3));
    let store = rig.store();
    let oldest = store.list().unwrap().into_iter().map(|(name, _)| name).find(|name| name.segment.0 > 0).unwrap();
    store.delete(&oldest).unwrap();
    let id = format!("p{}", mark.point);
    let report = verify(&alone(&rig), &Progress::none()).unwrap();
    assert_eq!(report.points_affected.join(" "), id);
    assert!(alone(&rig).resolve(&id).is_ok_and(|moment| pin(&alone(&rig), &moment, 0).is_err()));
    assert_eq!(pinned_as(&alone(&rig), &id).unwrap(), id);
    unpin(&alone(&rig), &id, &nobody).unwrap();
    clean(&alone(&rig));
    // Nothing of it left at all.
    let mark = rig.points[39].0.clone();
    pin_in(&alone(&rig), &mark).unwrap();
    let id = format!("p{}", mark.point);
    for (name, _) in store.list().unwrap().into_iter().filter(|(name, _)| name.segment.0 > 0) {
        store.delete(&name).unwrap();
    }
    assert_eq!(pinned_as(&alone(&rig), &id).unwrap(), id);
    unpin(&alone(&rig), &id, &nobody).unwrap();
    assert_eq!(store.list().unwrap(), []);
}

#[test]
fn what_somebody_reads_stays() {
    let Some(mut rig) = volume(60, ArchiveAt::Seal, 90) else { return };
    rig.close();
    let source = alone(&rig);
    let moment = source.resolve("point 20").unwrap();
    let needs = moment.segment.0.saturating_sub(u64::from(WORKING_SET));
    let leased = || Some(SegmentNumber(needs));
    let report = prune(&source, Keep::Points(2), &leased, false).unwrap();
    assert!(report.objects > 0);
    assert_eq!(segments(&*rig.store())[0], needs);
    comes_back(&alone(&rig), &rig.path("out"), &rig.points[20]).unwrap();
    // A lease that begins midway ends it.
    let asked = AtomicI64::new(0);
    let midway = || (asked.fetch_add(1, Ordering::SeqCst) > 3).then_some(SegmentNumber(needs));
    let error = prune(&alone(&rig), Keep::Points(2), &midway, false).unwrap_err();
    assert!(matches!(error, HistoryError::Leased { .. }), "{error}");
    clean(&alone(&rig));
    assert!(pruned(&alone(&rig), Keep::Points(2)).objects > 0);
    clean(&alone(&rig));
}

#[test]
fn an_unfinished_rollback_finds_what_it_needs() {
    let Some(mut rig) = volume(60, ArchiveAt::Seal, 91) else { return };
    let (mark, model) = rig.points[5].clone();
    let at = format!("p{}", mark.point);
    pin_in(&sources(&rig)[0], &mark).unwrap();
    pruned(&sources(&rig)[0], Keep::Points(1));
    let midway = (0..200).any(|round| {
        let midway = rig.roll_back_killed(&at, Duration::from_micros(400 * round));
        if !midway {
            rig.attach();
            rig.finish_rollback();
            rig.steps(30);
        }
        midway
    });
    assert!(midway, "no kill was midway");
    pruned(&sources(&rig)[0], Keep::Points(1));
    let error = unpin(&sources(&rig)[0], &at, &nobody).unwrap_err();
    assert!(matches!(error, HistoryError::Leased { .. }), "{error}");
    comes_back(&sources(&rig)[0], &rig.path("out"), &(mark, model.clone())).unwrap();
    rig.attach();
    assert!(rig.finish_rollback());
    rig.model = model;
    assert_eq!(rig.wrong_blocks(), [0; 0]);
    rig.settle();
    rig.close();
    assert!(pruned(&sources(&rig)[0], Keep::Points(1)).objects > 0, "it needs nothing any more");
    clean(&sources(&rig)[0]);
    assert!(unpin(&sources(&rig)[0], &at, &nobody).unwrap().objects > 0);
    clean(&sources(&rig)[0]);
}

#[test]
fn a_ring_expires_around_what_is_pinned() {
    let Some(mut rig) = Rig::on_ring(ArchiveAt::Seal, 92, 8 << 20) else { return };
    add_points(&mut rig, 12);
    let mark = rig.points[6].0.clone();
    pin_in(&sources(&rig)[0], &mark).unwrap();
    let first = rig.segment();
    // The ring turns over twice.
    while rig.segment() < first + 120 {
        add_points(&mut rig, 10);
    }
    rig.settle_points();
    let left = segments(&**rig.served.as_ref().unwrap());
    assert!(left.windows(2).any(|pair| pair[1] > pair[0] + 1) && left[0] < 10, "{left:?}");
    let last = rig.points.len() - 1;
    for source in &sources(&rig) {
        assert_eq!(pinned(source), [mark.point]);
        let (there, wanted) = (there(&rig, source), BTreeSet::from([6, last]));
        assert!(there.is_superset(&wanted), "{there:?} are there, not all of {wanted:?}, of {left:?}");
        clean(source);
    }
    // Pruned and unpinned by whoever has the store.
    let report = pruned(&sources(&rig)[0], Keep::Points(3));
    assert!(report.objects > 0);
    comes_back(&sources(&rig)[0], &rig.path("out"), &rig.points[6]).unwrap();
    let other = Source::open_primary(&rig.primary()).unwrap();
    let refused = unpin(&other, &format!("p{}", mark.point), &nobody).unwrap_err();
    assert!(refused.to_string().contains("in use"), "{refused}");
    unpin(&sources(&rig)[0], &format!("p{}", mark.point), &nobody).unwrap();
    for source in &sources(&rig) {
        clean(source);
    }
    rig.close();
    clean(&alone(&rig));
}

#[test]
fn pins_that_fill_a_ring_are_named_and_let_go_of() {
    let Some(mut rig) = Rig::on_ring(ArchiveAt::Seal, 93, 8 << 20) else { return };
    let mut pins = Vec::new();
    // Written slowly, since at last writers wait.
    let writes = |rig: &mut Rig| {
        (0..40).find_map(|_| {
            rig.steps(2);
            rig.idle();
            rig.engine().status().archive.error
        })
    };
    let error = loop {
        if let Some(error) = writes(&mut rig) {
            break error;
        }
        let mark = rig.synch("");
        // So that segment after segment is in some window.
        if let Ok(made) = pin_in(&sources(&rig)[0], &mark) {
            pins.push(made.id);
        }
        assert!(pins.len() < 200, "the ring never fills");
    };
    assert!(error.contains("pinned") && error.contains("salvol unpin"), "{error}");
    for id in &pins {
        unpin(&sources(&rig)[0], id, &nobody).unwrap();
    }
    rig.steps(20);
    for _ in 0..1000 {
        if rig.engine().status().archive.error.is_none() && rig.engine().status().archive.queue == 0 {
            break;
        }
        rig.idle();
    }
    rig.settle();
    assert_eq!(rig.engine().status().archive.error, None);
    let point = rig.points.last().unwrap().clone();
    comes_back(&sources(&rig)[0], &rig.path("out"), &point).unwrap();
    rig.close();
    clean(&sources(&rig)[0]);
}
