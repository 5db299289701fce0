//! The ring after a crash at every single I/O, and after every single I/O that fails.

use std::collections::{BTreeMap, BTreeSet};

use fastrand::Rng;

use super::faulty::{Fate, FaultyDisk, Plan};
use crate::archive::ring::Disk;
use crate::archive::{ObjectName, RingStore, Store, StoreError};
use crate::format::{Geometry, SegmentNumber, Superblock, Uuid};

/// A volume with segments of 32 KiB, of which three are never expired.
pub(super) fn tiny() -> Superblock {
    let geometry =
        Geometry { primary_blocks: 256 + 8 * 8 + 1, volume_blocks: 10, segment_blocks: 8, slots: 8, working_set: 2 };
    Superblock { geometry, ..super::volume(32) }
}

/// The smallest ring of the tiny volume, in bytes: 4 objects of 11 blocks with header, the room of the parts (two such objects,
/// and five blocks for each of eight), two superblocks, twice two blocks of catalogue.
pub(super) const TINY_BYTES: usize = (4 * 11 + 2 * 11 + 8 * 5 + 2 + 2 * 2) * 4096;

pub(super) fn name(segment: u64, part: u32) -> ObjectName {
    ObjectName { history: Uuid([0x22; 16]), segment: SegmentNumber(segment), epoch: 1, part }
}

/// Bytes of an object, other ones for each name and seed.
pub(super) fn content(name: &ObjectName, bytes: usize, seed: u64) -> Vec<u8> {
    let mut rng = Rng::with_seed(name.segment.0 << 8 | u64::from(name.part) | seed << 40);
    (0..bytes).map(|_| rng.u8(..)).collect()
}

#[derive(Debug, Clone, Copy)]
enum Step {
    Put(ObjectName, usize),
    Delete(ObjectName),
}

/// Segments with their parts, which are deleted when the whole is there; the ring is gone round several times.
fn workload(segments: u64) -> Vec<Step> {
    let mut rng = Rng::with_seed(9);
    let mut steps = Vec::new();
    for segment in 1..=segments {
        let parts = rng.u32(0..3);
        for part in 1..=parts {
            steps.push(Step::Put(name(segment, part), rng.usize(0..6000)));
        }
        steps.push(Step::Put(name(segment, 0), rng.usize(1..36_000)));
        for part in 1..=parts {
            steps.push(Step::Delete(name(segment, part)));
        }
        if rng.u8(..5) == 0 {
            steps.push(Step::Delete(name(segment, 0)));
        }
    }
    steps
}

/// What must be in a ring, may be, and must not.
#[derive(Default, Clone)]
struct Model {
    /// Length of each object whose put was begun, by name: the bytes follow from both.
    begun: BTreeMap<ObjectName, usize>,
    done: BTreeSet<ObjectName>,
    /// Those whose deletion returned: they never come back.
    deleted: BTreeSet<ObjectName>,
    /// Those whose deletion was begun.
    leaving: BTreeSet<ObjectName>,
}

impl Model {
    fn take(&mut self, store: &RingStore, step: Step) -> Result<(), StoreError> {
        match step {
            Step::Put(name, bytes) => {
                self.begun.insert(name, bytes);
                store.put(&name, &content(&name, bytes, 0))?;
                self.done.insert(name);
            }
            Step::Delete(name) => {
                self.leaving.insert(name);
                store.delete(&name)?;
                self.deleted.insert(name);
            }
        }
        Ok(())
    }

    /// The segments that are never expired: the newest of those that are there, and two before.
    fn kept(&self, name: &ObjectName, listed: &[(ObjectName, u64)]) -> bool {
        let newest = self.done.iter().filter(|name| !self.deleted.contains(name)).map(|name| name.segment.0).max();
        let there = listed.iter().map(|(name, _)| name.segment.0).max();
        name.segment.0 + 2 >= newest.max(there).unwrap_or(0)
    }

    fn check(&self, store: &RingStore, context: &str) {
        let listed = store.list().unwrap();
        for (name, bytes) in &listed {
            let begun = self.begun.get(name).unwrap_or_else(|| panic!("{context}: {name} was never put"));
            assert!(!self.deleted.contains(name), "{context}: {name} was deleted and is back");
            assert_eq!(*bytes, *begun as u64, "{context}: {name}");
            assert!(store.get(name, 0..u64::MAX).unwrap() == content(name, *begun, 0), "{context}: bytes of {name}");
        }
        let there: BTreeSet<_> = listed.iter().map(|(name, _)| *name).collect();
        for name in self.done.iter().filter(|name| !self.leaving.contains(name)) {
            assert!(there.contains(name) || !self.kept(name, &listed), "{context}: {name} is lost");
        }
    }
}

fn fates(point: u64) -> [Fate; 4] {
    [Fate::Lost, Fate::Kept, Fate::Mixed(point), Fate::Mixed(point + (1 << 32))]
}

/// What was expired, exactly, as the store itself says while nothing fails: `there[n]` after step n.
fn undisturbed(steps: &[Step]) -> (Vec<BTreeSet<ObjectName>>, u64) {
    let disk = FaultyDisk::new(TINY_BYTES);
    let store = RingStore::create_on(disk.medium(), &tiny(), [1; 16]).unwrap();
    disk.set(Plan::Work);
    let mut model = Model::default();
    let mut there = vec![BTreeSet::new()];
    for step in steps {
        model.take(&store, *step).unwrap();
        model.check(&store, "undisturbed");
        there.push(store.list().unwrap().into_iter().map(|(name, _)| name).collect());
    }
    // Reads of the checks, too: more points than are needed.
    (there, disk.count())
}

/// Runs the workload to a crash at I/O `point`; `None` when it ends before.
fn run_to(steps: &[Step], point: u64) -> Option<(FaultyDisk, Model, usize)> {
    let disk = FaultyDisk::new(TINY_BYTES);
    let store = RingStore::create_on(disk.medium(), &tiny(), [1; 16]).unwrap();
    disk.set(Plan::Crash(point));
    let mut model = Model::default();
    for (at, step) in steps.iter().enumerate() {
        if model.take(&store, *step).is_err() {
            return Some((disk, model, at));
        }
    }
    None
}

#[test]
fn nothing_is_lost_and_nothing_comes_back_whatever_io_a_crash_hits() {
    let steps = workload(14);
    let (there, _) = undisturbed(&steps);
    for point in 0.. {
        let Some((disk, model, at)) = run_to(&steps, point) else {
            assert!(point > 300, "{point} points");
            break;
        };
        for fate in fates(point) {
            let context = format!("crash at {point} in {:?}, {fate:?}", steps[at]);
            let after = disk.after_crash(fate);
            // A reader first, who changes nothing.
            let before = after.writes();
            let reader = RingStore::open_on(after.medium(), Some(&tiny())).unwrap();
            model.check(&reader, &context);
            assert_eq!(after.writes(), before);
            let listed: BTreeSet<_> = reader.list().unwrap().into_iter().map(|(name, _)| name).collect();
            // Exactly: what was there before the step or is there after it is there, unless the step takes it.
            for name in there[at].intersection(&there[at + 1]) {
                assert!(listed.contains(name), "{context}: {name} is lost");
            }
            for name in &listed {
                assert!(there[at].contains(name) || there[at + 1].contains(name), "{context}: {name} is back");
            }
            // Then it goes on, from that very step.
            let store = RingStore::open_on(after.medium(), Some(&tiny())).unwrap();
            let mut model = model.clone();
            for step in steps[at..].iter().take(6) {
                model.take(&store, *step).unwrap_or_else(|error| panic!("{context}: {error}"));
                model.check(&store, &context);
            }
            drop(store);
            model.check(&RingStore::open_on(after.medium(), None).unwrap(), &context);
        }
    }
}

#[test]
fn a_crash_while_a_crash_is_put_right_is_put_right() {
    let steps = workload(9);
    let mut again = 0;
    for point in (0..).step_by(3) {
        let Some((disk, model, at)) = run_to(&steps, point) else { break };
        let first = disk.after_crash(Fate::Mixed(point));
        for second in 0..12 {
            let after = first.after_crash(Fate::Lost);
            let store = RingStore::open_on(after.medium(), None).unwrap();
            after.set(Plan::Crash(second));
            // Settles first.
            if store.delete(&name(999, 0)).is_ok() {
                break;
            }
            again += 1;
            for fate in [Fate::Lost, Fate::Kept, Fate::Mixed(second)] {
                let context =
                    format!("crash at {point} in {:?}, and at {second} of the next opening, {fate:?}", steps[at]);
                let disk = after.after_crash(fate);
                model.check(&RingStore::open_on(disk.medium(), None).unwrap(), &context);
                let store = RingStore::open_on(disk.medium(), None).unwrap();
                let mut model = model.clone();
                model.take(&store, steps[at]).unwrap();
                model.check(&store, &context);
            }
        }
    }
    assert!(again > 500, "{again} second crashes");
}

/// Two faults: a crash, and a catalogue that rots before anybody has put the crash right.
#[test]
fn a_crash_and_a_catalogue_that_rots_lose_nothing() {
    let steps = workload(14);
    let (first, second) = (4096..12288, TINY_BYTES - 12288..TINY_BYTES - 4096);
    for point in 0.. {
        let Some((disk, model, at)) = run_to(&steps, point) else { break };
        for fate in fates(point) {
            for rotten in [vec![first.clone()], vec![second.clone()], vec![first.clone(), second.clone()]] {
                let after = disk.after_crash(fate);
                after.alter(|bytes| rotten.iter().for_each(|range| bytes[range.clone()].fill(0)));
                let context = format!("crash at {point} in {:?}, {fate:?}, {rotten:?} rotten", steps[at]);
                model.check(&RingStore::open_on(after.medium(), None).unwrap(), &context);
                let store = RingStore::open_on(after.medium(), None).unwrap();
                let mut model = model.clone();
                model.take(&store, steps[at]).unwrap();
                model.check(&store, &context);
            }
        }
    }
}

#[test]
fn an_io_that_fails_is_an_error_and_no_more() {
    let steps = workload(14);
    let mut failures = 0;
    for point in 0.. {
        let disk = FaultyDisk::new(TINY_BYTES);
        let store = RingStore::create_on(disk.medium(), &tiny(), [1; 16]).unwrap();
        disk.set(Plan::Fail(point));
        let mut model = Model::default();
        let mut failed = false;
        for step in &steps {
            if let Err(error) = model.take(&store, *step) {
                assert!(!failed && matches!(error, StoreError::Io { .. }), "{error}");
                failed = true;
                // What the store says after it, and another process, and the same step again.
                disk.outside_the_plan(|| {
                    model.check(&store, &format!("I/O {point} of {step:?} failed"));
                    model.check(&RingStore::open_on(disk.medium(), None).unwrap(), "opened again");
                });
                model.take(&store, *step).unwrap();
                // And durably so, not only as far as this store knows.
                disk.outside_the_plan(|| {
                    let after = disk.after_crash(Fate::Lost);
                    model.check(&RingStore::open_on(after.medium(), None).unwrap(), &format!("{step:?} again"));
                });
            }
            disk.outside_the_plan(|| model.check(&store, &format!("I/O {point} failed, before {step:?} ended")));
        }
        failures += u64::from(failed);
        if disk.count() <= point {
            break;
        }
    }
    assert!(failures > 250, "{failures} failures");
}

#[test]
fn a_crash_while_the_store_is_made_leaves_one_or_none() {
    for point in 0.. {
        let disk = FaultyDisk::new(TINY_BYTES);
        disk.set(Plan::Crash(point));
        if RingStore::create_on(disk.medium(), &tiny(), [1; 16]).is_ok() {
            assert!(point > 5 && disk.bytes() == TINY_BYTES as u64);
            break;
        }
        for fate in fates(point) {
            let after = disk.after_crash(fate);
            let store = match RingStore::create_on(after.medium(), &tiny(), [2; 16]) {
                Ok(store) => store,
                // A torn superblock may be what is left of a store that was full: nobody overwrites it by mistake.
                Err(error) => {
                    assert!(
                        fate != Fate::Lost && fate != Fate::Kept && error.to_string().contains("damaged"),
                        "{error}"
                    );
                    continue;
                }
            };
            assert!(store.list().unwrap().is_empty());
            store.put(&name(1, 0), b"one").unwrap();
            assert_eq!(RingStore::open_on(after.medium(), None).unwrap().list().unwrap().len(), 1);
        }
    }
}
