//! Restores that are cut short: whatever ends one, wherever, the same restore goes on and ends with the same bytes; what
//! was recorded was durable; nothing is taken from another restore. And how the archive is read: each frame once, by a
//! bounded number of threads.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::Duration;

use super::rig::{Model, Rig, WORKING_SET, differences};
use salvol::archive::{OBJECT_HEADER_BYTES, ObjectName, Store, StoreError};
use salvol::format::{ArchiveAt, BLOCK_BYTES};
use salvol::history::{
    Change, HistoryError, Interrupt, Progress, RestoreOptions, RestoreReport, Source, Watch, restore_with,
};

/// Ends the process, as it were, at a change; nothing is written any more then, and nothing is removed.
#[derive(Default)]
struct Death {
    at: usize,
    changes: usize,
    /// What was written since the last time that it was made durable.
    unsafe_writes: Vec<(u64, u64)>,
    /// What the last synch covers, once it has ended.
    synching: usize,
    /// How often something was recorded.
    firsts: usize,
}

/// Of so many writes of the restore's threads one waits until something has been recorded: on a slow or a busy disk they would
/// have written everything before the first record.
const WRITES_WITHOUT_RECORD: usize = 8;

impl Death {
    fn watch(at: usize) -> (Arc<Mutex<Self>>, Watch) {
        let death = Arc::new(Mutex::new(Self { at, ..Self::default() }));
        let its = Arc::clone(&death);
        let recorded = Condvar::new();
        let watch = move |change| {
            let mut death = its.lock().unwrap();
            let waits =
                thread::current().name() == Some("restore") && death.changes.is_multiple_of(WRITES_WITHOUT_RECORD);
            if waits && death.changes <= death.at {
                let firsts = death.firsts;
                let waits = |death: &mut Death| death.firsts == firsts && death.changes <= death.at;
                death = recorded.wait_timeout_while(death, Duration::from_secs(1), waits).unwrap().0;
            }
            // Changes of the caller's thread come after its synch has ended; those of others may be meanwhile.
            if matches!(change, Change::First | Change::Name) {
                let covered = std::mem::take(&mut death.synching);
                death.unsafe_writes.drain(..covered);
            }
            death.changes += 1;
            if death.changes > death.at {
                recorded.notify_all();
                return Err(io::Error::other("the power is gone"));
            }
            match change {
                Change::Write { at, bytes } => death.unsafe_writes.push((at, bytes)),
                Change::Sync => death.synching = death.unsafe_writes.len(),
                Change::First => {
                    death.firsts += 1;
                    recorded.notify_all();
                }
                Change::Name | Change::Remove => {}
            }
            Ok(())
        };
        (death, Arc::new(watch))
    }
}

fn options(watch: Option<Watch>) -> RestoreOptions {
    RestoreOptions { force: true, threads: 3, record_every: Duration::ZERO, watch, ..RestoreOptions::default() }
}

fn run(source: &Source, at: &str, to: &Path, options: &RestoreOptions) -> Result<RestoreReport, HistoryError> {
    restore_with(source, &source.resolve(at).unwrap(), to, options, &Progress::none())
}

/// A volume with two points in the archive, closed, and another that is on the primary in part.
fn written(seed: u64) -> Option<Rig> {
    let mut rig = Rig::new(ArchiveAt::Seal, true, seed)?;
    rig.steps(300);
    rig.synch("first");
    rig.steps(40);
    rig.synch("second");
    let segment = rig.segment() + u64::from(WORKING_SET) + 4;
    rig.run_to_segment(segment);
    rig.synch("third");
    rig.steps(10);
    rig.settle();
    rig.close();
    Some(rig)
}

fn model<'a>(rig: &'a Rig, label: &str) -> &'a Model {
    &rig.points.iter().find(|(mark, _)| mark.label == label).unwrap().1
}

/// Dies at every change, loses what was not durable, and goes on.
fn interrupted_everywhere(rig: &Rig, source: &Source, at: &str) {
    let (to, partial) = (rig.path("out"), rig.path(".out.partial"));
    let (whole, watch) = Death::watch(usize::MAX);
    run(source, at, &to, &options(Some(watch))).unwrap();
    let changes = whole.lock().unwrap().changes;
    let (mut resumed, mut most) = (0, 0);
    // How often something is recorded depends on the threads, so the number of changes is not always the same.
    for dies in (0..changes).step_by(if at == "first" { 1 } else { 7 }) {
        std::fs::remove_file(&to).unwrap();
        let (death, watch) = Death::watch(dies);
        let Err(error) = run(source, at, &to, &options(Some(watch))) else {
            assert!(dies > changes / 2, "records are more or fewer, data is not");
            continue;
        };
        assert!(!to.exists(), "{error}");
        let death = death.lock().unwrap();
        let file = OpenOptions::new().write(true).open(&partial).unwrap();
        for (at, bytes) in &death.unsafe_writes {
            file.write_all_at(&vec![0xee; *bytes as usize], *at).unwrap();
        }
        if dies % 16 == 3 {
            // The record was being written, too.
            file.write_all_at(&[0xee; 512], 512).unwrap();
        }
        drop(file);
        let report = run(source, at, &to, &options(None)).unwrap();
        assert_eq!(differences(&to, model(rig, at)), [0; 0], "ended at change {dies} of {changes}");
        assert_eq!(
            (report.rewritten, &report.damaged),
            (0, &vec![]),
            "what is recorded is durable: {dies} of {changes}"
        );
        assert!(dies % 16 != 3 || report.resumed == 0, "{report:?}");
        assert!(!partial.exists());
        resumed += usize::from(report.resumed > 0);
        most = most.max(report.resumed * 100 / report.blocks);
    }
    assert!(resumed > 0 && most > 0, "{resumed} of {changes} went on, with {most} % at most");
}

#[test]
fn a_restore_from_the_archive_is_interrupted_everywhere_and_goes_on() {
    let Some(rig) = written(31) else { return };
    interrupted_everywhere(&rig, &Source::open_spec(&rig.spec).unwrap(), "first");
}

#[test]
fn a_restore_from_both_places_is_interrupted_and_goes_on() {
    let Some(rig) = written(32) else { return };
    let source = Source::open_primary(&rig.primary()).unwrap();
    for at in ["second", "third"] {
        interrupted_everywhere(&rig, &source, at);
    }
}

/// Leaves a restore that has recorded part of what it is to do: its disk is full after some writes.
fn leave(source: &Source, at: &str, to: &Path) {
    let count = |full: usize| -> (Arc<AtomicUsize>, Watch) {
        let writes = Arc::new(AtomicUsize::new(0));
        let its = Arc::clone(&writes);
        let watch: Watch = Arc::new(move |change| match change {
            Change::Write { .. } if its.fetch_add(1, Ordering::SeqCst) >= full => Err(io::Error::other("full")),
            _ => Ok(()),
        });
        (writes, watch)
    };
    let (writes, watch) = count(usize::MAX);
    run(source, at, to, &options(Some(watch))).unwrap();
    std::fs::remove_file(to).unwrap();
    let (_, watch) = count(writes.load(Ordering::SeqCst) * 3 / 4);
    let error = run(source, at, to, &options(Some(watch))).unwrap_err();
    assert!(matches!(error, HistoryError::Unfinished { .. }), "{error}");
}

#[test]
fn nothing_is_taken_from_another_restore() {
    let Some(rig) = written(33) else { return };
    let Some(other) = written(34) else { return };
    let source = Source::open_spec(&rig.spec).unwrap();
    let others = Source::open_spec(&other.spec).unwrap();
    let to = rig.path("out");
    for (next, at, model) in [(&source, "second", model(&rig, "second")), (&others, "first", model(&other, "first"))] {
        leave(&source, "first", &to);
        let report = run(next, at, &to, &options(None)).unwrap();
        assert_eq!((report.resumed, differences(&to, model)), (0, vec![]), "{at}");
        std::fs::remove_file(&to).unwrap();
    }
    leave(&source, "first", &to);
    // The source matters as little as the time: the same point, from the primary and the archive.
    let both = Source::open_primary(&rig.primary()).unwrap();
    assert!(run(&both, "first", &to, &options(None)).unwrap().resumed > 0);
    assert_eq!(differences(&to, model(&rig, "first")), [0; 0]);
}

/// A target that lost what it had said was durable, or was written to by somebody else.
#[test]
fn what_was_recorded_and_is_not_there_is_written_again() {
    let Some(rig) = written(35) else { return };
    let source = Source::open_spec(&rig.spec).unwrap();
    let (to, partial) = (rig.path("out"), rig.path(".out.partial"));
    leave(&source, "first", &to);
    let file = OpenOptions::new().read(true).write(true).open(&partial).unwrap();
    let mut record = vec![0; BLOCK_BYTES];
    file.read_exact_at(&mut record, 0).unwrap();
    file.write_all_at(&vec![0xee; file.metadata().unwrap().len() as usize], 0).unwrap();
    file.write_all_at(&record, 0).unwrap();
    let report = run(&source, "first", &to, &options(None)).unwrap();
    assert!(report.rewritten > 0 && report.resumed == 0, "{report:?}");
    // Also what is zeros: nothing of the junk is left.
    assert_eq!(differences(&to, model(&rig, "first")), [0; 0]);
}

#[test]
fn damage_is_reported_by_the_run_that_finishes() {
    let Some(rig) = written(36) else { return };
    let source = Source::open_spec(&rig.spec).unwrap();
    let to = rig.path("out");
    let moment = source.resolve("first").unwrap();
    let list = rig.store().list().unwrap();
    let (victim, _) = list.iter().find(|(name, _)| name.segment.0 + 1 == moment.segment.0).unwrap();
    let file = format!("{:016}.e{:08}.p{}.zst", victim.segment.0, victim.epoch, victim.part);
    let path = rig.path("archive").join(victim.history.to_string()).join(file);
    let mut bytes = std::fs::read(&path).unwrap();
    bytes[OBJECT_HEADER_BYTES + 1000] ^= 1;
    std::fs::write(&path, &bytes).unwrap();
    let damaged = run(&source, "first", &to, &options(None)).unwrap().damaged;
    assert!(!damaged.is_empty());
    assert!(damaged.iter().all(|damage| damage.segment == Some(victim.segment.0) && damage.frame == Some(0)));
    leave(&source, "first", &to);
    let report = run(&source, "first", &to, &options(None)).unwrap();
    assert!(report.resumed > 0);
    assert_eq!(report.damaged, damaged);
    let blocks: Vec<u64> = damaged.iter().map(|damage| damage.block).collect();
    assert_eq!(differences(&to, model(&rig, "first")), blocks, "exactly what is reported differs");
}

#[test]
fn one_that_is_told_to_stop_says_how_to_go_on_and_a_point_that_is_gone_leaves_nothing() {
    let Some(rig) = written(37) else { return };
    let (to, partial) = (rig.path("out"), rig.path(".out.partial"));
    let source = Source::open_spec(&rig.spec).unwrap();
    let stop = Arc::new(Interrupt::default());
    assert!(!stop.ask(0), "nothing would end");
    let (asked, count) = (Arc::clone(&stop), AtomicUsize::new(0));
    let watch: Watch = Arc::new(move |change| {
        if matches!(change, Change::Write { .. }) && count.fetch_add(1, Ordering::Relaxed) == 60 {
            assert!(asked.ask(2));
        }
        Ok(())
    });
    let told = RestoreOptions { stop, record_every: Duration::from_secs(60), ..options(Some(watch)) };
    let error = run(&source, "first", &to, &told).unwrap_err();
    assert!(matches!(&error, HistoryError::Unfinished { kept, .. } if *kept == partial), "{error}");
    assert!(error.to_string().contains("interrupted\n") && error.to_string().contains("the same command again"));
    assert!(run(&source, "first", &to, &options(None)).unwrap().resumed > 0);
    assert_eq!(differences(&to, model(&rig, "first")), [0; 0]);
    std::fs::remove_file(&to).unwrap();

    // An object goes while the restore is going on.
    let moment = source.resolve("first").unwrap();
    let (victim, _) =
        *rig.store().list().unwrap().iter().find(|(name, _)| name.segment.0 + 1 == moment.segment.0).unwrap();
    let (store, count) = (rig.store(), AtomicUsize::new(0));
    let watch: Watch = Arc::new(move |_| {
        if count.fetch_add(1, Ordering::Relaxed) == 5 {
            store.delete(&victim).unwrap();
        }
        Ok(())
    });
    let one = RestoreOptions { threads: 1, ..options(Some(watch)) };
    let error = run(&source, "first", &to, &one).unwrap_err();
    assert!(error.is_no_point(), "{error}");
    assert!(!to.exists() && !partial.exists());
}

#[test]
fn a_file_has_holes_where_the_volume_has_zeros() {
    let Some(mut rig) = Rig::new(ArchiveAt::Seal, true, 38) else { return };
    // Zeros that were written as data, among other data and in the first block.
    let zeros = vec![0; 8 * BLOCK_BYTES];
    rig.serve(salvol::volume::Operation::Write { fua: false }, 100, 8, Some(&vec![7; 8 * BLOCK_BYTES]));
    rig.serve(salvol::volume::Operation::Write { fua: false }, 102, 4, Some(&zeros[..4 * BLOCK_BYTES]));
    rig.serve(salvol::volume::Operation::Write { fua: false }, 0, 8, Some(&zeros));
    rig.synch("holes");
    let source = Source::open_primary(&rig.primary()).unwrap();
    let to = rig.path("out");
    let report = run(&source, "holes", &to, &options(None)).unwrap();
    assert_eq!(report.blocks, 16);
    let bytes = std::fs::read(&to).unwrap();
    for (block, data) in bytes.chunks(BLOCK_BYTES).enumerate() {
        let wanted = if matches!(block, 100..102 | 106..108) { 7 } else { 0 };
        assert!(data.iter().all(|byte| *byte == wanted), "{block}");
    }
    let allocated = std::fs::metadata(&to).unwrap().blocks() * 512;
    assert!(allocated <= 6 * BLOCK_BYTES as u64, "{allocated} bytes are allocated for 4 blocks");
}

/// A store that knows what is read of the data, and by how many at a time.
struct Watching {
    store: Arc<dyn Store>,
    reads: Mutex<BTreeMap<ObjectName, Vec<std::ops::Range<u64>>>>,
    now: AtomicUsize,
    most: AtomicUsize,
}

impl Store for Watching {
    fn put(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
        self.store.put(name, bytes)
    }
    fn get(&self, name: &ObjectName, range: std::ops::Range<u64>) -> Result<Vec<u8>, StoreError> {
        // The ends, with header, table and summary, are read by whoever opens the object; what is between is the data.
        if range.start < OBJECT_HEADER_BYTES as u64 || range.end >= self.store.length(name)? {
            return self.store.get(name, range);
        }
        self.reads.lock().unwrap().entry(*name).or_default().push(range.clone());
        self.most.fetch_max(self.now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        std::thread::sleep(Duration::from_millis(2));
        let got = self.store.get(name, range);
        self.now.fetch_sub(1, Ordering::SeqCst);
        got
    }
    fn length(&self, name: &ObjectName) -> Result<u64, StoreError> {
        self.store.length(name)
    }
    fn list(&self) -> Result<Vec<(ObjectName, u64)>, StoreError> {
        self.store.list()
    }
    fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.store.delete(name)
    }
    fn spec(&self) -> String {
        self.store.spec()
    }
}

#[test]
fn each_frame_is_read_once_by_a_bounded_number_of_threads() {
    let Some(rig) = written(39) else { return };
    let (reads, now, most) = (Mutex::default(), AtomicUsize::new(0), AtomicUsize::new(0));
    let store = Arc::new(Watching { store: rig.store(), reads, now, most });
    let source = Source::open_store(rig.volume.clone(), Some(Arc::clone(&store) as Arc<dyn Store>)).unwrap();
    let moment = source.resolve("first").unwrap();
    for threads in [1, 3] {
        store.reads.lock().unwrap().clear();
        store.most.store(0, Ordering::SeqCst);
        let options = RestoreOptions { threads, ..options(None) };
        let report = restore_with(&source, &moment, &rig.path("out"), &options, &Progress::none()).unwrap();
        assert_eq!((report.damaged, differences(&rig.path("out"), model(&rig, "first"))), (vec![], vec![]));
        let most = store.most.load(Ordering::SeqCst);
        assert!((threads..=threads).contains(&most), "{most} reads at a time by {threads} threads");
        assert!(!store.reads.lock().unwrap().is_empty());
        for (name, reads) in store.reads.lock().unwrap().iter() {
            let mut frames = reads.clone();
            frames.sort_by_key(|range| range.start);
            assert!(frames.windows(2).all(|pair| pair[0].end <= pair[1].start), "{name}: {frames:?}");
        }
    }
}
