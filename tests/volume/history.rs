//! The past of a volume on a real file: every point comes back, from primary and archive and from the archive alone;
//! what cannot come back says so; damage is found, and costs only what it hit.

use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use super::rig::{Model, Rig, SEGMENT_BLOCKS, WORKING_SET, differences};
use salvol::archive::{
    ArchiveJob, ArchivedSegment, Extent, OBJECT_HEADER_BYTES, ObjectName, Packing, Spec, Store, StoreError,
    archive_segment,
};
use salvol::format::{ArchiveAt, BLOCK_BYTES, FIRST_SLOT_BLOCK, Position, SegmentNumber};
use salvol::history::{
    CheckReport, Consistency, DumpSection, HistoryError, Progress, RestoreReport, Severity, Source, TargetError,
    Whereabouts, check_label, check_path, dump, dump_object, index_at, restore, verify,
};
use salvol::io::Buffer;

/// Restores the point and compares it with the model.
fn comes_back(source: &Source, at: &str, to: &Path, model: &Model) -> RestoreReport {
    let moment = source.resolve(at).unwrap();
    let report = restore(source, &moment, to, false, &Progress::none()).unwrap();
    assert_eq!(report.damaged, [], "{at}");
    assert_eq!(differences(to, model), [0; 0], "{at}");
    assert!(report.segments <= u64::from(WORKING_SET) + 1);
    std::fs::remove_file(to).unwrap();
    report
}

fn a_hundred_points_come_back(archive_at: ArchiveAt, seed: u64) {
    let Some(mut rig) = Rig::new(archive_at, true, seed) else { return };
    // Ten turns of the log's fourteen slots.
    for point in 0..100 {
        let steps = rig.rng.usize(18..26);
        rig.steps(steps);
        rig.synch(&format!("point {point}"));
        let (mark, model) = rig.points.last().unwrap().clone();
        if point % 10 == 3 {
            // While the volume is attached, from what another process sees.
            let source = Source::open_primary(&rig.primary()).unwrap();
            comes_back(&source, &format!("p{}", mark.point), &rig.path("live"), &model);
        }
        match point % 25 {
            12 => rig.kill(),
            20 => rig.close(),
            _ => continue,
        }
        rig.attach();
    }
    let last = rig.segment() + 1;
    assert!(last >= 140, "the log has turned over ten times: segment {last}");
    rig.run_to_segment(last + u64::from(WORKING_SET) + 2);
    rig.settle();
    let source = Source::open_primary(&rig.primary()).unwrap();
    let listed = source.points().unwrap();
    assert_eq!(listed.points.len(), 100);
    let (mut primary, mut archive) = (0, 0);
    for ((mark, model), info) in rig.points.iter().zip(&listed.points) {
        assert_eq!((info.position, &info.label), (mark.position.0, &mark.label));
        let report = comes_back(&source, &info.id, &rig.path("both"), model);
        (primary, archive) = (primary + report.from_primary, archive + report.from_archive);
    }
    assert!(primary > 0 && archive > 0, "{primary} {archive}");
    rig.close();
    std::fs::remove_file(rig.primary()).unwrap();
    let source = Source::open_spec(&rig.spec).unwrap();
    assert_eq!(source.points().unwrap().points.len(), 100);
    for (mark, model) in &rig.points {
        let report = comes_back(&source, &mark.label, &rig.path("alone"), model);
        assert_eq!(report.from_primary, 0);
    }
    let infos = source.points().unwrap().points;
    assert!(infos.iter().all(|info| info.whereabouts == Whereabouts::Archive));
    assert!(infos.iter().all(|info| info.segments <= u64::from(WORKING_SET) + 1));
}

#[test]
fn a_hundred_points_come_back_archived_at_seal() {
    a_hundred_points_come_back(ArchiveAt::Seal, 1);
}

#[test]
fn a_hundred_points_come_back_archived_when_inactive() {
    a_hundred_points_come_back(ArchiveAt::Inactive, 2);
}

fn resolve_error(source: &Source, at: &str) -> String {
    let error = source.resolve(at).unwrap_err();
    assert!(error.is_no_point(), "{error}");
    error.to_string()
}

fn file_of(rig: &Rig, name: &ObjectName) -> std::path::PathBuf {
    let file = format!("{:016}.e{:08}.p{}.zst", name.segment.0, name.epoch, name.part);
    rig.path("archive").join(name.history.to_string()).join(file)
}

fn object(rig: &Rig, segment: u64) -> ObjectName {
    let list = rig.store().list().unwrap();
    list.into_iter().map(|(name, _)| name).find(|name| name.segment.0 == segment).unwrap()
}

#[test]
fn points_are_found_by_every_name_they_have() {
    let Some(mut rig) = Rig::new(ArchiveAt::Seal, true, 3) else { return };
    rig.steps(30);
    let first = rig.synch("before");
    let between = rig.model.clone();
    rig.steps(60);
    let twin = rig.synch("twin");
    rig.steps(60);
    rig.synch("twin");
    rig.steps(5);
    let source = Source::open_primary(&rig.primary()).unwrap();

    for at in ["before", &format!("p{}", first.point), &first.position.to_string()] {
        let moment = source.resolve(at).unwrap();
        assert_eq!((moment.position, moment.consistency), (first.position, Consistency::Application), "{at}");
    }
    let latest = source.resolve("latest").unwrap();
    assert_eq!(latest.position, rig.points[2].0.position);
    let infos = source.points().unwrap().points;
    let time = source.resolve(&infos[1].time).unwrap();
    assert!(time.position >= twin.position, "the newest batch at or before the time");

    let crash = source.resolve(&(first.position.0 + 1).to_string()).unwrap();
    assert_eq!(crash.consistency, Consistency::Crash);
    assert!(crash.to_string().ends_with("crash-consistent"));
    let report = restore(&source, &crash, &rig.path("crash"), false, &Progress::none()).unwrap();
    assert_eq!(report.damaged, []);
    assert_ne!(differences(&rig.path("crash"), &between), [0; 0], "one more write is in it");

    let two = resolve_error(&source, "twin");
    assert!(two.contains("2 synch points") && two.contains(&infos[1].id) && two.contains(&infos[2].id), "{two}");
    assert!(resolve_error(&source, "nobody").contains("no synch point is called so"));
    assert!(resolve_error(&source, "p999999").contains("the log ends at position"));
    assert!(resolve_error(&source, &format!("p{}", first.point + 1)).contains("no synch point was marked there"));
    assert!(resolve_error(&source, "1999-01-01T00:00:00Z").contains("before everything"));
    assert!(resolve_error(&source, "99999999999999999999999").contains("called so"));
}

#[test]
fn a_pruned_segment_takes_its_points_with_it_and_no_others() {
    let Some(mut rig) = Rig::new(ArchiveAt::Seal, true, 4) else { return };
    for _ in 0..40 {
        rig.steps(20);
        rig.synch("");
    }
    rig.run_to_segment(rig.segment() + u64::from(WORKING_SET) + 8);
    rig.settle();
    rig.close();
    let before = Source::open_spec(&rig.spec).unwrap().points().unwrap().points;
    assert_eq!(before.len(), 40);
    let victim = before[20].segment.0;
    rig.store().delete(&object(&rig, victim)).unwrap();

    let source = Source::open_spec(&rig.spec).unwrap();
    let after = source.points().unwrap().points;
    let needs = |segment: SegmentNumber| (victim..=victim + u64::from(WORKING_SET)).contains(&segment.0);
    for ((info, (_, model)), rank) in before.iter().zip(&rig.points).zip(0..) {
        assert_eq!(after.iter().any(|left| left.id == info.id), !needs(info.segment), "{}", info.id);
        if needs(info.segment) {
            let gone = source
                .resolve(&info.id)
                .and_then(|moment| restore(&source, &moment, &rig.path("gone"), false, &Progress::none()));
            assert!(gone.unwrap_err().is_no_point());
            assert!(!rig.path("gone").exists());
        } else if rank % 5 == 0 {
            comes_back(&source, &info.id, &rig.path("there"), model);
        }
    }
}

#[test]
fn a_damaged_frame_costs_its_own_blocks_and_is_reported() {
    let Some(mut rig) = Rig::new(ArchiveAt::Seal, true, 5) else { return };
    for _ in 0..30 {
        rig.steps(20);
        rig.synch("");
    }
    rig.run_to_segment(rig.segment() + u64::from(WORKING_SET) + 8);
    rig.settle();
    rig.close();
    let infos = Source::open_spec(&rig.spec).unwrap().points().unwrap().points;
    let victim = infos[15].segment.0;
    let path = file_of(&rig, &object(&rig, victim));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[4352 + 1000] ^= 1;
    std::fs::write(&path, &bytes).unwrap();

    let source = Source::open_spec(&rig.spec).unwrap();
    let mut hit = 0;
    for (info, (_, model)) in infos.iter().zip(&rig.points) {
        let moment = source.resolve(&info.id).unwrap();
        let to = rig.path("out");
        let report = restore(&source, &moment, &to, true, &Progress::none()).unwrap();
        let reported: Vec<u64> = report.damaged.iter().map(|damage| damage.block).collect();
        assert_eq!(differences(&to, model), reported, "exactly what is reported differs");
        for damage in &report.damaged {
            assert_eq!((damage.segment, damage.frame), (Some(victim), Some(0)), "{damage}");
            assert!(damage.offset.unwrap() < 32 && damage.position.is_some(), "{damage}");
        }
        hit += usize::from(!reported.is_empty());
    }
    assert!(hit > 0 && hit < 30, "{hit}");
}

#[test]
fn damage_on_the_primary_is_made_good_from_the_archive() {
    let Some(mut rig) = Rig::new(ArchiveAt::Seal, true, 6) else { return };
    rig.steps(400);
    let mark = rig.synch("here");
    rig.run_to_segment(rig.segment() + 2);
    rig.settle();
    rig.close();
    // Every second data place of every slot, but no header.
    let source = Source::open_primary(&rig.primary()).unwrap();
    let file = rig.primary_file();
    let mut spoilt = 0;
    dump(&source, None, &mut |section| {
        if let DumpSection::Segment(segment) = section {
            for entry in segment.batches.iter().flat_map(|batch| &batch.entries) {
                if let (Some(offset), true) = (entry.offset, segment.segment < rig_segment(&source)) {
                    let place = FIRST_SLOT_BLOCK + segment.slot * SEGMENT_BLOCKS + offset;
                    if entry.kind != "synch" && offset % 2 == 0 {
                        file.write_all_at(&[0xaa; BLOCK_BYTES], u64::from(place) * BLOCK_BYTES as u64).unwrap();
                        spoilt += 1;
                    }
                }
            }
        }
        Ok(())
    })
    .unwrap();
    assert!(spoilt > 100);
    let model = rig.points[0].1.clone();
    let report = comes_back(&source, &mark.label, &rig.path("out"), &model);
    assert!(report.from_primary > 0 && report.from_archive > 0, "{report:?}");
}

/// The newest segment that is surely archived.
fn rig_segment(source: &Source) -> u64 {
    source.points().unwrap().points.last().map_or(0, |point| point.segment.0) + 1
}

#[test]
fn without_an_archive_only_the_working_set_comes_back() {
    let Some(mut rig) = Rig::new(ArchiveAt::Seal, false, 7) else { return };
    for _ in 0..40 {
        rig.steps(20);
        rig.synch("");
    }
    let source = Source::open_primary(&rig.primary()).unwrap();
    let listed = source.points().unwrap().points;
    assert!(!listed.is_empty() && listed.len() < 40, "{}", listed.len());
    for info in &listed {
        assert_eq!(info.whereabouts, Whereabouts::Primary);
        let (_, model) = rig.points.iter().find(|(mark, _)| mark.position.0 == info.position).unwrap();
        comes_back(&source, &info.id, &rig.path("out"), model);
    }
    let old = format!("p{}", rig.points[0].0.point);
    let error = resolve_error(&source, &old);
    assert!(error.contains("keeps no archive"), "{error}");
}

/// A store that counts the headers that are read.
struct Counting(Arc<dyn Store>, AtomicUsize);

impl Store for Counting {
    fn put(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
        self.0.put(name, bytes)
    }
    fn get(&self, name: &ObjectName, range: std::ops::Range<u64>) -> Result<Vec<u8>, StoreError> {
        self.1.fetch_add(usize::from(range == (0..OBJECT_HEADER_BYTES as u64)), Ordering::Relaxed);
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

/// A store that does not give some of its objects.
struct Denying(Arc<dyn Store>, Vec<SegmentNumber>);

impl Denying {
    fn allow(&self, name: &ObjectName) -> Result<(), StoreError> {
        let source = std::io::Error::from_raw_os_error(13);
        let denied = StoreError::Io { store: self.spec(), what: format!("cannot read object {name}"), source };
        if self.1.contains(&name.segment) { Err(denied) } else { Ok(()) }
    }
}

impl Store for Denying {
    fn put(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
        self.0.put(name, bytes)
    }
    fn get(&self, name: &ObjectName, range: std::ops::Range<u64>) -> Result<Vec<u8>, StoreError> {
        self.allow(name).and_then(|()| self.0.get(name, range))
    }
    fn length(&self, name: &ObjectName) -> Result<u64, StoreError> {
        self.allow(name).and_then(|()| self.0.length(name))
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

/// Makes the header of an object what no reader takes.
fn spoil(rig: &Rig, segment: u64) {
    let path = file_of(rig, &object(rig, segment));
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[100] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
}

/// A volume at rest with a labelled point in each segment or so, all of it archived.
fn labelled(seed: u64) -> Option<Rig> {
    let mut rig = Rig::new(ArchiveAt::Seal, true, seed)?;
    for point in 0..40 {
        rig.steps(20);
        rig.synch(&format!("point {point}"));
    }
    rig.settle();
    rig.close();
    Some(rig)
}

const FUTURE: &str = "2999-01-01T00:00:00Z";

#[test]
fn what_cannot_be_had_has_neighbours() {
    let Some(rig) = labelled(30) else { return };
    let source = Source::open_spec(&rig.spec).unwrap();
    let points = source.points().unwrap().points;
    let (before, after) = (&points[10], &points[11]);
    let both = format!(
        "the nearest points are {} ({:?}, {}) before and {} ({:?}, {}) after",
        before.id, before.label, before.time, after.id, after.label, after.time
    );
    for between in [format!("p{}", before.position + 1), (before.position + 1).to_string()] {
        assert_eq!(source.nearest(&between).as_ref(), Some(&both));
    }
    let first = source.nearest("1970-01-01T00:00:00Z").unwrap();
    assert!(first.contains(&points[0].id) && first.ends_with("after") && !first.contains("before"), "{first}");
    let last = source.nearest(FUTURE).unwrap();
    assert!(last.contains(&points.last().unwrap().id) && last.ends_with("before"), "{last}");
    assert_eq!(source.nearest("nobody"), None, "nothing says when that was");
}

#[test]
fn nobody_gets_an_older_state_than_he_asked_for() {
    let Some(rig) = labelled(30) else { return };
    let open = || Source::open_spec(&rig.spec).unwrap();
    let infos = open().points().unwrap().points;
    let newest = infos.last().unwrap().clone();
    let victim = newest.segment;
    // The last one that is before the damage.
    let whole = infos.iter().rfind(|info| info.segment < victim).unwrap().clone();
    let rank = infos.iter().position(|info| info.id == whole.id).unwrap();
    assert_eq!(open().resolve("latest").unwrap().position.0, newest.position);
    let asked = ["latest", FUTURE, &newest.label, &newest.id, &newest.position.to_string(), &newest.time, "nobody"];

    // The store does not give it: nothing is known of what is in it.
    let store: Arc<dyn Store> = Arc::new(Denying(rig.store(), vec![victim]));
    let source = Source::open_store(rig.volume.clone(), Some(store)).unwrap();
    for at in asked {
        let error = source.resolve(at).unwrap_err();
        assert!(!error.is_no_point() && !error.is_corruption(), "{at}: {error}");
        assert!(
            error.to_string().contains("Permission denied") && !error.to_string().contains("damaged"),
            "{at}: {error}"
        );
    }
    assert!(source.points().is_err());
    comes_back(&source, &whole.id, &rig.path("out"), &rig.points[rank].1);

    // It is damaged.
    let good = std::fs::read(file_of(&rig, &object(&rig, victim.0))).unwrap();
    spoil(&rig, victim.0);
    let source = open();
    for at in asked {
        let error = source.resolve(at).unwrap_err();
        assert!(error.is_corruption() && !error.is_no_point(), "{at}: {error}");
        assert!(error.to_string().contains(&format!("segment {victim} is damaged in the archive")), "{at}: {error}");
    }
    let listed = source.points().unwrap().points;
    assert!(
        listed.iter().all(|info| info.segment != victim) && listed.contains(&whole),
        "what can be restored is listed"
    );
    for at in [&whole.id, &whole.label] {
        comes_back(&source, at, &rig.path("out"), &rig.points[rank].1);
    }
    assert_eq!(source.resolve(&infos[0].time).unwrap().segment, infos[0].segment);
    std::fs::write(file_of(&rig, &object(&rig, victim.0)), good).unwrap();

    // One in the middle is damaged, and one is missing: what lies in it, or behind it within its reach, says so.
    let middle = infos[20].clone();
    let after = infos.iter().find(|info| info.segment > middle.segment).unwrap();
    spoil(&rig, middle.segment.0);
    let source = open();
    for at in [&middle.id, &middle.label, &middle.time] {
        assert!(source.resolve(at).unwrap_err().is_corruption(), "{at}");
    }
    assert_eq!(source.resolve("latest").unwrap().position.0, newest.position, "it does not need it");
    assert_eq!(source.resolve(&after.position.to_string()).unwrap().position.0, after.position);
    rig.store().delete(&object(&rig, middle.segment.0)).unwrap();
    let source = open();
    for at in [&middle.id, &middle.position.to_string(), &middle.time] {
        let error = source.resolve(at).unwrap_err();
        assert!(matches!(error, HistoryError::Gone { segment, .. } if segment == middle.segment), "{at}: {error}");
    }

    // What the newest point needs is damaged: it is not another one that is meant.
    spoil(&rig, victim.0 - 2);
    let error = open().resolve("latest").unwrap_err();
    assert!(error.is_corruption() && error.to_string().contains(&format!("segment {} is", victim.0 - 2)), "{error}");
    rig.store().delete(&object(&rig, victim.0 - 2)).unwrap();
    let error = open().resolve("latest").unwrap_err();
    assert!(matches!(error, HistoryError::Gone { segment, .. } if segment.0 == victim.0 - 2), "{error}");

    // Nothing can be read.
    for (name, _) in rig.store().list().unwrap() {
        spoil(&rig, name.segment.0);
    }
    let source = open();
    for at in [&infos[0].id, "latest", "1", &infos[0].time, &infos[0].label] {
        let error = source.resolve(at).unwrap_err();
        assert!(error.is_corruption() && !error.is_no_point(), "{at}: {error}");
    }
}

#[test]
fn what_names_no_point_is_wrong_usage() {
    let Some(mut rig) = Rig::new(ArchiveAt::Seal, true, 31) else { return };
    rig.steps(10);
    rig.synch("");
    let source = Source::open_primary(&rig.primary()).unwrap();
    for (at, says) in [("", "an empty POINT"), ("2026-11-25T02:29:39", "add Z or an offset"), ("2026-11-25", "add Z")] {
        let error = source.resolve(at).unwrap_err();
        assert!(error.is_usage() && !error.is_no_point() && error.to_string().contains(says), "{at}: {error}");
    }
    let last = source.resolve(FUTURE).unwrap();
    assert!(last.position >= rig.points[0].0.position, "the newest position there is");
}

/// The newest point is found without reading the whole archive.
#[test]
fn latest_reads_only_the_newest_segments() {
    let Some(mut rig) = Rig::new(ArchiveAt::Seal, true, 16) else { return };
    while rig.segment() < 80 {
        rig.steps(20);
        rig.synch("");
    }
    rig.run_to_segment(rig.segment() + 1);
    rig.settle();
    rig.close();
    let store = Arc::new(Counting(rig.store(), AtomicUsize::new(0)));
    let source = Source::open_store(rig.volume.clone(), Some(Arc::clone(&store) as Arc<dyn Store>)).unwrap();
    assert_eq!(source.points().unwrap().points.len(), rig.points.len());
    assert!(store.1.swap(0, Ordering::Relaxed) >= 80);
    assert_eq!(source.resolve("latest").unwrap().position, rig.points.last().unwrap().0.position);
    // A round of reading ahead, of those with marks also the summary, and a search by position.
    let read = store.1.load(Ordering::Relaxed);
    assert!(read <= 2 * 32 + 2 * 8, "{read} headers were read");
}

/// What status says of the window is what `points` says; without an archive it promises no more than is there for sure,
/// while `points` also finds what recycled slots still happen to hold.
#[test]
fn status_and_points_agree_on_what_can_be_restored() {
    for (backing, seed) in [(true, 13), (false, 14)] {
        let Some(mut rig) = Rig::new(ArchiveAt::Seal, backing, seed) else { return };
        for round in 0..60 {
            rig.steps(20);
            rig.synch("");
            rig.idle();
            if round == 40 && backing {
                rig.settle();
                rig.close();
                rig.attach();
            }
            let status = rig.engine().status();
            let source = Source::open_primary(&rig.primary()).unwrap();
            let listed = source.points().unwrap();
            assert_eq!(status.newest_restorable, listed.newest_restorable, "round {round}");
            if backing {
                assert_eq!(status.oldest_restorable, listed.oldest_restorable, "round {round}");
                assert!(round >= 40 || status.points == listed.points.len() as u64, "round {round}");
            } else {
                let oldest = source.resolve(&status.oldest_restorable.unwrap()).unwrap();
                restore(&source, &oldest, &rig.path("out"), true, &Progress::none()).unwrap();
                let promised = listed.points.iter().filter(|point| point.position >= oldest.position.0).count();
                assert_eq!(status.points, promised as u64, "round {round}");
            }
        }
        assert!(rig.segment() > 30, "the log has turned over");
        assert!(backing || rig.engine().status().points < 30, "recycled points are gone");
    }
}

/// A store that is away, unmounted for one, does not mean that a point is gone.
#[test]
fn a_store_that_is_away_hides_points_and_loses_none() {
    let Some(mut rig) = Rig::new(ArchiveAt::Seal, true, 15) else { return };
    rig.steps(10);
    let old = rig.synch("old");
    rig.run_to_segment(rig.segment() + u64::from(WORKING_SET) + 12);
    rig.settle();
    rig.close();
    let aside = rig.path("aside");
    std::fs::rename(rig.path("archive"), &aside).unwrap();
    let source = Source::open_primary(&rig.primary()).unwrap();
    for at in ["old", &format!("p{}", old.point), &old.position.to_string(), "1999-01-01T00:00:00Z"] {
        let error = source.resolve(at).unwrap_err();
        assert!(matches!(error, HistoryError::Unreachable { .. }) && !error.is_no_point(), "{at}: {error}");
    }
    let alone = Source::open_primary_alone(&rig.primary()).unwrap();
    dump(&alone, None, &mut |_| Ok(())).unwrap();
    std::fs::rename(&aside, rig.path("archive")).unwrap();
    let source = Source::open_primary(&rig.primary()).unwrap();
    let model = rig.points[0].1.clone();
    comes_back(&source, "old", &rig.path("out"), &model);
}

#[test]
fn labels_that_could_not_be_asked_for_are_refused() {
    for label in ["42", "p7", "latest"] {
        assert!(check_label(label).unwrap_err().contains("means"), "{label}");
    }
    for label in ["", "p", "latest backup", "p7a", "-42", "99999999999999999999999"] {
        check_label(label).unwrap();
    }
}

#[test]
fn a_running_volume_is_restored_while_it_is_written_to() {
    let Some(mut rig) = Rig::new(ArchiveAt::Seal, true, 8) else { return };
    rig.steps(300);
    let mark = rig.synch("live");
    let model = rig.model.clone();
    let (primary, out) = (rig.primary(), rig.path("live"));
    let reader = std::thread::spawn(move || {
        for _ in 0..30 {
            let source = Source::open_primary(&primary).unwrap();
            comes_back(&source, &format!("p{}", mark.point), &out, &model);
        }
    });
    while !reader.is_finished() {
        rig.steps(20);
    }
    reader.join().unwrap();
}

#[test]
fn the_scan_needs_no_more_and_misses_nothing() {
    let Some(mut rig) = Rig::new(ArchiveAt::Seal, true, 9) else { return };
    let mut moments = Vec::new();
    for _ in 0..1200 {
        rig.step();
        moments.push((rig.engine().log().positions().0, rig.model.clone()));
    }
    rig.run_to_segment(rig.segment() + 1);
    rig.settle();
    let source = Source::open_primary(&rig.primary()).unwrap();
    // Every position of three segments, in the middle of cleaning too.
    let newest = source.resolve(&source.points().unwrap().newest_restorable.unwrap()).unwrap();
    for position in (newest.position.0 - 60)..=newest.position.0 {
        let moment = source.resolve(&position.to_string()).unwrap();
        let index = index_at(&source, source.volume(), moment.segment, Position(position)).unwrap();
        assert_eq!(index.segments_read(), WORKING_SET + 1);
    }
    // Any moment comes back, not only the marked ones.
    for (position, model) in moments.iter().step_by(11) {
        comes_back(&source, &position.to_string(), &rig.path("out"), model);
    }
    rig.close();
    let report = check_path(&rig.primary()).unwrap();
    assert!(report.ok && report.clean_close, "{:?}", report.findings);
}

#[test]
fn a_target_is_not_overwritten_unasked() {
    let Some(mut rig) = Rig::new(ArchiveAt::Seal, true, 10) else { return };
    rig.steps(50);
    rig.synch("x");
    let source = Source::open_primary(&rig.primary()).unwrap();
    let moment = source.resolve("x").unwrap();
    let to = |path: &Path, force| restore(&source, &moment, path, force, &Progress::none());
    let path = rig.path("precious");
    std::fs::write(&path, "precious").unwrap();
    assert!(matches!(to(&path, false), Err(HistoryError::Target(TargetError::Exists { .. }))));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
    assert!(matches!(to(&rig.primary(), true), Err(HistoryError::Target(TargetError::Itself { .. }))));
    // The store's directory: what says whose it is, and an object.
    let Ok(Spec::Directory(store)) = Spec::parse(&rig.store().spec()) else { panic!("a directory") };
    assert!(matches!(to(&store.join("salvol-store"), true), Err(HistoryError::Target(TargetError::Itself { .. }))));
    assert!(matches!(to(&store.join("new"), true), Err(HistoryError::Target(TargetError::Itself { .. }))));
    assert!(!store.join("new").exists() && !store.join(".new.partial").exists());
    assert!(matches!(to(&rig.path(""), true), Err(HistoryError::Target(TargetError::Kind { .. }))));
    assert!(matches!(to(&rig.path("new/"), true), Err(HistoryError::Target(TargetError::Directory { .. }))));
    assert!(!rig.path("new").exists() && !rig.path(".new.partial").exists());
    to(&path, true).unwrap();
    assert_eq!(differences(&path, &rig.model), [0; 0]);
    to(&rig.path("image"), false).unwrap();
    let mode = |path: &Path| std::os::unix::fs::PermissionsExt::mode(&std::fs::metadata(path).unwrap().permissions());
    assert_eq!((mode(&rig.path("image")) & 0o777, mode(&path) & 0o777), (0o600, 0o600), "an image holds everything");
}

/// A disk that was a primary, and onto which an image was restored: by its last block it is a primary still.
#[test]
fn an_attach_that_is_refused_leaves_the_disk_as_it_was() {
    let Some(mut rig) = Rig::new(ArchiveAt::Seal, true, 32) else { return };
    rig.steps(60);
    rig.synch("x");
    rig.settle();
    rig.close();
    let source = Source::open_primary(&rig.primary()).unwrap();
    restore(&source, &source.resolve("x").unwrap(), &rig.path("image"), false, &Progress::none()).unwrap();
    drop(source);
    rig.primary_file().write_all_at(&std::fs::read(rig.path("image")).unwrap(), 0).unwrap();
    let before = std::fs::read(rig.primary()).unwrap();
    let error = rig.refused();
    assert!(error.is_corruption(), "{error}");
    assert!(std::fs::read(rig.primary()).unwrap() == before, "nothing was overwritten");
}

/// A segment whose header, signed with the right key, says that it needs one that is newer than itself.
#[test]
fn a_segment_that_needs_a_newer_one_is_damage() {
    let Some(rig) = labelled(33) else { return };
    let infos = Source::open_spec(&rig.spec).unwrap().points().unwrap().points;
    let victim = infos.last().unwrap().segment;
    let (store, name) = (rig.store(), object(&rig, victim.0));
    let mut opened = ArchivedSegment::open(&store, &name, None).unwrap();
    let (mut summary, bytes) = (opened.summary().clone(), opened.read_image().unwrap());
    let image = Buffer::new(bytes.len()).unwrap();
    image.copy_from(0, &bytes);
    summary.oldest_needed = SegmentNumber(victim.0 + 5);
    let mut block = vec![0; summary.blocks() as usize * BLOCK_BYTES];
    summary.encode(&rig.volume, &mut block);
    image.copy_from(bytes.len() - block.len(), &block);
    store.delete(&name).unwrap();
    let job = ArchiveJob {
        store: Arc::clone(&store),
        volume: opened.volume().clone(),
        summary: Arc::new(summary),
        extent: Extent::WHOLE,
        image,
        packing: Packing::Raw,
    };
    archive_segment(job).unwrap();
    let source = Source::open_spec(&rig.spec).unwrap();
    assert!(source.points().unwrap().points.iter().all(|info| info.segment != victim));
    for at in ["latest", &infos.last().unwrap().id, FUTURE] {
        assert!(source.resolve(at).unwrap_err().is_corruption(), "{at}");
    }
    assert!(!verify(&source, &Progress::none()).unwrap().ok);
    source.resolve(&infos[0].id).unwrap();
}

fn damage(report: &CheckReport) -> Vec<String> {
    let damage = report.findings.iter().filter(|finding| finding.severity == Severity::Damage);
    damage.map(ToString::to_string).collect()
}

#[test]
fn check_finds_what_is_damaged_and_nothing_else() {
    let Some(mut rig) = Rig::new(ArchiveAt::Seal, true, 11) else { return };
    rig.steps(500);
    rig.synch("x");
    assert!(matches!(check_path(&rig.primary()), Err(HistoryError::Primary(_))), "it is attached");
    rig.kill();
    let report = check_path(&rig.primary()).unwrap();
    assert!(report.ok && !report.clean_close, "{:?}", report.findings);
    rig.attach();
    rig.close();
    let before = std::fs::read(rig.primary()).unwrap();
    let writable = std::fs::metadata(rig.primary()).unwrap().permissions();
    let mut protected = writable.clone();
    protected.set_readonly(true);
    std::fs::set_permissions(rig.primary(), protected).unwrap();
    assert!(check_path(&rig.primary()).unwrap().ok, "it writes nothing, so it may not ask to");
    std::fs::set_permissions(rig.primary(), writable).unwrap();
    let report = check_path(&rig.primary()).unwrap();
    assert!(report.ok && report.clean_close, "{:?}", report.findings);
    assert_eq!(report.findings, []);
    assert_eq!(report.segments_needed, WORKING_SET + 1);
    let live = rig.model.iter().filter(|seed| **seed != 0).count() as u64;
    assert_eq!((report.blocks_live, report.blocks_lost), (live, 0));
    assert!(std::fs::read(rig.primary()).unwrap() == before, "a check writes nothing");

    let source = Source::open_primary(&rig.primary()).unwrap();
    let mut segments = Vec::new();
    dump(&source, None, &mut |section| {
        if let DumpSection::Segment(segment) = section {
            segments.push(*segment);
        }
        Ok(())
    })
    .unwrap();
    let active = segments.iter().find(|segment| segment.segment == report.segment - 3).unwrap();
    let slot_at = u64::from(FIRST_SLOT_BLOCK + active.slot * SEGMENT_BLOCKS) * BLOCK_BYTES as u64;
    let header_at = slot_at + u64::from(active.batches[1].offset) * BLOCK_BYTES as u64;
    let last_at = slot_at + u64::from(SEGMENT_BLOCKS) * BLOCK_BYTES as u64 - 200;
    for (at, expected) in [
        (0, "the superblock:"),
        (header_at + 20, "position "),
        (last_at, "its summary is damaged"),
        (slot_at + 20, "the segment's header is damaged"),
    ] {
        let file = rig.primary_file();
        file.write_all_at(&[before[at as usize] ^ 1], at).unwrap();
        let found = damage(&check_path(&rig.primary()).unwrap());
        assert!(found.iter().any(|what| what.contains(expected)), "{expected}: {found:?}");
        file.write_all_at(&[before[at as usize]], at).unwrap();
    }
    assert!(check_path(&rig.primary()).unwrap().ok);
}

#[test]
fn a_dump_shows_everything_and_the_same_from_both_places() {
    let Some(mut rig) = Rig::new(ArchiveAt::Seal, true, 12) else { return };
    rig.steps(40);
    let mark = rig.synch("the mark");
    // Segment 2 is sealed, archived, and still in its slot.
    rig.run_to_segment(rig.segment().max(2) + 2);
    rig.settle();
    rig.close();
    let source = Source::open_primary(&rig.primary()).unwrap();
    let text = |source: &Source, only| {
        let mut text = String::new();
        dump(source, only, &mut |section| {
            text.push_str(&section.to_string());
            assert!(serde_json::to_string(&section).is_ok());
            Ok(())
        })
        .unwrap();
        text
    };
    let all = text(&source, None);
    assert_eq!(all.matches("superblock at").count(), 2);
    assert!(all.contains(&format!("synch p{}", mark.point)) && all.contains("label \"the mark\" info \"by the test\""));
    assert!(all.contains("agrees with the headers") && all.contains("close") && !all.contains("DAMAGED"));
    assert!(!all.contains("differs from the headers"));

    let body = |text: &str| -> Vec<String> {
        text.lines().skip_while(|line| !line.ends_with(": segment 2")).skip(1).map(String::from).collect()
    };
    let archive = Source::open_spec(&rig.spec).unwrap();
    let second = Some(SegmentNumber(2));
    let from_primary = body(&text(&source, second));
    assert!(from_primary.len() > 10);
    assert_eq!(from_primary, body(&text(&archive, second)));
    let mut from_file = String::new();
    dump_object(&file_of(&rig, &object(&rig, 2)), &mut |section| {
        from_file.push_str(&section.to_string());
        Ok(())
    })
    .unwrap();
    assert_eq!(from_primary, body(&from_file));
}
