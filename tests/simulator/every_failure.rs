//! A reference workload, in which every single call to the disk and to the store fails once, with each error that it can give.
//!
//! - A read that fails once is seen by nobody.
//! - A write or a flush that fails stops the log: nothing more is acknowledged, everything acknowledged can still be read, and the next
//!   opening finds it; after a power cut everything that was flushed.
//! - While opening, a failure is an error of the opening, and the next one succeeds.
//! - A call to the store that fails is tried again, and nobody but the status tells of it.
//!
//! `SALVOL_ALL=1` takes each error for each call, otherwise one of them.

use std::ops::Range;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::common::*;
use salvol::archive::{MemoryStore, ObjectName, Store, StoreError};
use salvol::format::ArchiveAt;
use salvol::io::Platform;
use salvol::io::simulated::{Dice, Ended, SimulatedDisk, SimulatedPlatform};
use salvol::log::Archiving;
use salvol::volume::{OpenError, OpenOptions, RequestError, Volume};

const SMALL: Shape = Shape { segment_blocks: 32, working_set: 4, slots: 7, volume_blocks: 50, ..SHAPE };
const OPERATIONS: u64 = 160;
/// A short transfer is 0.
const ERRORS: [i32; 5] = [libc::EIO, libc::ENOSPC, libc::ETIMEDOUT, libc::ENODEV, 0];

/// What a store can say.
#[derive(Debug, Clone, Copy)]
enum Says {
    Io(i32),
    Refused,
    Missing,
    Conflict,
}

/// A store of which one call fails.
struct OneFailure {
    inner: MemoryStore,
    calls: AtomicU64,
    fails: u64,
    says: Says,
}

impl OneFailure {
    fn new(fails: u64, says: Says) -> Arc<Self> {
        Arc::new(Self { inner: MemoryStore::new(), calls: AtomicU64::new(0), fails, says })
    }

    fn call(&self, name: Option<&ObjectName>, is_put: bool) -> Result<(), StoreError> {
        if self.calls.fetch_add(1, Ordering::Relaxed) + 1 != self.fails {
            return Ok(());
        }
        let store = self.spec();
        Err(match (self.says, name) {
            (Says::Missing, Some(name)) if !is_put => StoreError::Missing { store, name: *name },
            (Says::Conflict, Some(name)) if is_put => StoreError::Conflict { store, name: *name },
            (Says::Io(errno), _) => {
                StoreError::Io { store, what: "cannot".to_owned(), source: std::io::Error::from_raw_os_error(errno) }
            }
            _ => StoreError::Refused { store, what: "not now".to_owned() },
        })
    }
}

impl Store for OneFailure {
    fn put(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
        self.call(Some(name), true)?;
        self.inner.put(name, bytes)
    }

    fn get(&self, name: &ObjectName, range: Range<u64>) -> Result<Vec<u8>, StoreError> {
        self.call(Some(name), false)?;
        self.inner.get(name, range)
    }

    fn length(&self, name: &ObjectName) -> Result<u64, StoreError> {
        self.call(Some(name), false)?;
        self.inner.length(name)
    }

    fn list(&self) -> Result<Vec<(ObjectName, u64)>, StoreError> {
        self.call(None, false)?;
        self.inner.list()
    }

    fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        self.call(Some(name), false)?;
        self.inner.delete(name)
    }

    fn spec(&self) -> String {
        "fails once".to_owned()
    }
}

/// What the workload met.
#[derive(Debug, Default, PartialEq, Eq)]
struct Outcome {
    refused: bool,
    stopped: bool,
    not_closed: bool,
}

struct Scene {
    archive_at: ArchiveAt,
    disk: SimulatedDisk,
    store: Arc<OneFailure>,
    model: Rc<Model>,
    what: String,
}

impl Scene {
    fn new(archive_at: ArchiveAt, store: Arc<OneFailure>, what: String) -> Self {
        let disk = Shape { archive_at, ..SMALL }.disk();
        Self { archive_at, disk, store, model: Rc::default(), what }
    }

    fn open(&self, platform: &SimulatedPlatform) -> Result<SimVolume, OpenError> {
        let (machine, device) = (platform.clone(), platform.device());
        let store = Arc::clone(&self.store) as Arc<dyn Store>;
        let archiving = Archiving { interval: Some(Duration::from_millis(20)), ..Archiving::default() };
        let options = OpenOptions { archiving, ..OpenOptions::default() };
        let opened = platform.block_on(async move { Volume::open(machine, device, Some(store), options).await });
        opened.unwrap_or_else(|| panic!("{}: opening got stuck", self.what))
    }

    /// The workload on a machine of which one I/O may fail: how many I/Os it took, and what it met.
    fn work(&self, fails: Option<(u64, i32)>) -> (u64, Outcome) {
        let mut outcome = Outcome::default();
        let platform = SimulatedPlatform::new(5, self.disk.clone());
        if let Some((number, errno)) = fails {
            platform.fail_io(number, errno);
        }
        let volume = match self.open(&platform) {
            Ok(volume) => volume,
            Err(_) => {
                outcome.refused = true;
                platform.halt();
                self.disk.stop_machine();
                return (0, outcome);
            }
        };
        let (user, model, what, clock) = (volume.clone(), Rc::clone(&self.model), self.what.clone(), platform.clone());
        let done = platform.block_on(async move {
            let (mut dice, mix) = (Dice::new(9), Mix { synchs: 3, flushes: 8, fua: 10, ..Mix::default() });
            for _ in 0..OPERATIONS {
                match operate(&user, &model, &mut dice, mix).await {
                    Ok(()) => {}
                    Err(RequestError::Stopped { .. }) => return true,
                    Err(error) => panic!("{what}: {error}"),
                }
            }
            clock.sleep(Duration::from_millis(1500)).await;
            user.log().stopped().is_some()
        });
        outcome.stopped = done.unwrap_or_else(|| panic!("{}: stuck: {:#?}", self.what, volume.status()));
        let reader = volume.clone();
        let (found, failed) = platform.block_on(async move { read_each(&reader).await }).unwrap();
        assert!(failed.is_empty(), "{}: {failed:?} cannot be read", self.what);
        if outcome.stopped {
            // What was not acknowledged may be seen, as on any disk with a cache.
            for (block, stamp) in self.model.state() {
                assert!(found.get(&block).is_none_or(|found| *found >= stamp), "{}", self.what);
            }
        } else {
            assert_eq!(found, self.model.state(), "{}", self.what);
            let idle = volume.clone();
            assert_eq!(platform.run(|| idle.status().archive.queue == 0), Ended::Done, "{}: not archived", self.what);
        }
        let closing = volume.clone();
        let closed = platform.block_on(async move { closing.close().await });
        outcome.not_closed = closed.unwrap_or_else(|| panic!("{}: closing got stuck", self.what)).is_err();
        let ios = platform.begun_ios();
        platform.halt();
        (ios, outcome)
    }

    /// The next opening, when nothing fails any more.
    fn find(&self, power_cut: bool, seed: u64) {
        if power_cut {
            self.disk.lose_power(&mut Dice::new(seed));
        } else {
            self.disk.stop_machine();
        }
        let platform = SimulatedPlatform::new(6, self.disk.clone());
        let volume = self.open(&platform).unwrap_or_else(|error| panic!("{}: {error}", self.what));
        let reader = volume.clone();
        let (found, failed) = platform.block_on(async move { read_each(&reader).await }).unwrap();
        assert!(failed.is_empty(), "{}: {failed:?} cannot be read", self.what);
        self.model.settle(&found, !power_cut);
        let idle = volume.clone();
        assert_eq!(platform.run(|| idle.status().archive.queue == 0), Ended::Done, "{}: not archived", self.what);
        platform.halt();
        self.disk.stop_machine();
        let shape = Shape { archive_at: self.archive_at, ..SMALL };
        let store = Arc::clone(&self.store) as Arc<dyn Store>;
        check_every_position(&whole_log_of(&self.disk, &shape, Some(store)), shape.working_set);
    }
}

const SAYS: [Says; 5] = [Says::Io(libc::EIO), Says::Io(libc::ENOSPC), Says::Refused, Says::Missing, Says::Conflict];

fn all() -> bool {
    std::env::var_os("SALVOL_ALL").is_some()
}

/// One error for each call, all of them in turn; with `SALVOL_ALL` all of them for each.
fn is_due(call: u64, rank: usize, errors: usize) -> bool {
    all() || call % errors as u64 == rank as u64
}

const WELL: (u64, Says) = (u64::MAX, Says::Refused);

#[test]
fn every_io_fails_once() {
    let (mut cases, mut stops, mut refusals, mut unseen) = (0, 0, 0, 0);
    for archive_at in [ArchiveAt::Seal, ArchiveAt::Inactive] {
        let new = |what: String| Scene::new(archive_at, OneFailure::new(WELL.0, WELL.1), what);
        let (ios, outcome) = new("the reference".to_owned()).work(None);
        assert_eq!(outcome, Outcome::default());
        for number in 1..=ios {
            for (rank, errno) in ERRORS.iter().enumerate().filter(|(rank, _)| is_due(number, *rank, ERRORS.len())) {
                for power_cut in
                    [false, true].into_iter().filter(|cut| all() || (number + rank as u64) % 2 == u64::from(*cut))
                {
                    let scene =
                        new(format!("{archive_at:?}, I/O {number} of {ios} fails with {errno}, power cut {power_cut}"));
                    let (_, outcome) = scene.work(Some((number, *errno)));
                    scene.find(power_cut, number);
                    cases += 1;
                    stops += u64::from(outcome.stopped);
                    refusals += u64::from(outcome.refused);
                    unseen += u64::from(outcome == Outcome::default());
                }
            }
        }
    }
    println!("{cases} cases: {stops} stopped the log, {refusals} were refusals to open, {unseen} were seen by nobody");
    assert!(stops > 100 && refusals > 2 && unseen > 100);
}

#[test]
fn every_call_to_the_store_fails_once() {
    let (mut cases, mut refusals) = (0, 0);
    for archive_at in [ArchiveAt::Seal, ArchiveAt::Inactive] {
        let reference = Scene::new(archive_at, OneFailure::new(WELL.0, WELL.1), "the reference".to_owned());
        assert_eq!(reference.work(None).1, Outcome::default());
        let calls = reference.store.calls.load(Ordering::Relaxed);
        assert!(calls > 50, "{calls} calls are no workload");
        for number in 1..=calls {
            for (_, says) in SAYS.iter().enumerate().filter(|(rank, _)| is_due(number, *rank, SAYS.len())) {
                let what = format!("{archive_at:?}, call {number} of {calls} to the store is answered with {says:?}");
                let scene = Scene::new(archive_at, OneFailure::new(number, *says), what);
                let (_, outcome) = scene.work(None);
                assert!(!outcome.stopped && !outcome.not_closed, "{}: {outcome:?}", scene.what);
                scene.find(number % 2 == 0, number);
                cases += 1;
                refusals += u64::from(outcome.refused);
            }
        }
    }
    println!("{cases} cases, of which {refusals} were refusals to open; everything was archived in all of them");
}
