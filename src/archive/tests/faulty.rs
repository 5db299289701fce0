//! A simulated disk for the ring: a volatile write cache that a crash empties as it likes, and I/O that fails.

use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex};

use fastrand::Rng;

use crate::archive::StoreError;
use crate::archive::ring::{Disk, Medium};
use crate::io::Buffer;

pub(super) const SECTOR: usize = 512;

/// What a crash makes of the sectors that were written and not made durable.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fate {
    Lost,
    Kept,
    /// Each kept, lost or torn, by this seed.
    Mixed(u64),
}

/// What the I/O of some number does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Plan {
    Work,
    /// The I/O of this number fails, and does nothing.
    Fail(u64),
    /// From the I/O of this number on nothing works: the machine is gone. A write of this number is in the cache.
    Crash(u64),
}

struct Inside {
    durable: Vec<u8>,
    /// What was written to sectors since they were made durable, in order.
    cache: BTreeMap<usize, Vec<[u8; SECTOR]>>,
    count: u64,
    writes: u64,
    plan: Plan,
}

/// A simulated disk. Clones are the same disk.
#[derive(Clone)]
pub(super) struct FaultyDisk(Arc<Mutex<Inside>>);

impl FaultyDisk {
    pub(super) fn new(bytes: usize) -> Self {
        let durable = vec![0xA5; bytes];
        Self(Arc::new(Mutex::new(Inside { durable, cache: BTreeMap::new(), count: 0, writes: 0, plan: Plan::Work })))
    }

    /// What a crash leaves, as a new disk that works.
    pub(super) fn after_crash(&self, fate: Fate) -> Self {
        let inside = self.0.lock().unwrap();
        let mut durable = inside.durable.clone();
        let mut rng = Rng::with_seed(if let Fate::Mixed(seed) = fate { seed } else { 0 });
        for (sector, written) in &inside.cache {
            let at = sector * SECTOR..(sector + 1) * SECTOR;
            match (fate, rng.u8(..4)) {
                (Fate::Lost, _) | (Fate::Mixed(_), 0) => {}
                (Fate::Kept, _) | (Fate::Mixed(_), 1) => durable[at].copy_from_slice(written.last().unwrap()),
                (Fate::Mixed(_), 2) => durable[at].copy_from_slice(rng.choice(written).unwrap()),
                // Torn: some bytes of the new, then the old.
                _ => {
                    let torn = rng.usize(..SECTOR);
                    let new = rng.choice(written).unwrap();
                    durable[at.start..at.start + torn].copy_from_slice(&new[..torn]);
                }
            }
        }
        drop(inside);
        let disk = Self::new(0);
        disk.0.lock().unwrap().durable = durable;
        disk
    }

    pub(super) fn set(&self, plan: Plan) {
        let mut inside = self.0.lock().unwrap();
        (inside.plan, inside.count) = (plan, 0);
    }

    /// Runs `check` outside the plan: its I/O works and is not counted.
    pub(super) fn outside_the_plan(&self, check: impl FnOnce()) {
        let set = |plan, count| {
            let mut inside = self.0.lock().unwrap();
            let before = (inside.plan, inside.count);
            (inside.plan, inside.count) = (plan, count);
            before
        };
        let (plan, count) = set(Plan::Work, 0);
        check();
        set(plan, count);
    }

    /// I/Os since the plan was set.
    pub(super) fn count(&self) -> u64 {
        self.0.lock().unwrap().count
    }

    /// Writes since the disk was made.
    pub(super) fn writes(&self) -> u64 {
        self.0.lock().unwrap().writes
    }

    /// Changes what is on the disk, behind everybody's back.
    pub(super) fn alter(&self, change: impl FnOnce(&mut [u8])) {
        let mut inside = self.0.lock().unwrap();
        inside.flush();
        change(&mut inside.durable);
    }

    pub(super) fn medium(&self) -> Box<dyn Medium> {
        Box::new(self.clone())
    }
}

impl Inside {
    /// Counts an I/O. `Err` when it fails; `Ok(true)` when the machine is gone behind it.
    fn step(&mut self) -> io::Result<bool> {
        let number = self.count;
        self.count += 1;
        match self.plan {
            Plan::Fail(fails) if number == fails => Err(io::Error::from_raw_os_error(libc::EIO)),
            Plan::Crash(crash) if number > crash => Err(io::Error::from_raw_os_error(libc::ENXIO)),
            Plan::Crash(crash) => Ok(number == crash),
            _ => Ok(false),
        }
    }

    fn flush(&mut self) {
        for (sector, written) in std::mem::take(&mut self.cache) {
            self.durable[sector * SECTOR..(sector + 1) * SECTOR].copy_from_slice(written.last().unwrap());
        }
    }
}

impl Disk for FaultyDisk {
    fn read_at(&self, offset: u64, buffer: &Buffer) -> io::Result<()> {
        let mut inside = self.0.lock().unwrap();
        inside.step()?;
        let at = offset as usize..offset as usize + buffer.len();
        let mut bytes = inside.durable.get(at.clone()).expect("reads are inside the disk").to_vec();
        for (sector, written) in inside.cache.range(at.start / SECTOR..at.end / SECTOR) {
            let from = sector * SECTOR - at.start;
            bytes[from..from + SECTOR].copy_from_slice(written.last().unwrap());
        }
        buffer.copy_from(0, &bytes);
        Ok(())
    }

    fn write_at(&self, offset: u64, buffer: &Buffer) -> io::Result<()> {
        let mut inside = self.0.lock().unwrap();
        inside.writes += 1;
        let crashes = inside.step()?;
        assert!(offset.is_multiple_of(4096) && buffer.len().is_multiple_of(4096));
        assert!(offset as usize + buffer.len() <= inside.durable.len());
        for (rank, sector) in buffer.bytes().chunks(SECTOR).enumerate() {
            let written = inside.cache.entry(offset as usize / SECTOR + rank).or_default();
            written.push(sector.try_into().unwrap());
        }
        if crashes { Err(io::Error::from_raw_os_error(libc::ENXIO)) } else { Ok(()) }
    }

    fn sync(&self) -> io::Result<()> {
        let mut inside = self.0.lock().unwrap();
        if inside.step()? {
            // The machine went before the flush did anything; one that did all of it is the next number.
            return Err(io::Error::from_raw_os_error(libc::ENXIO));
        }
        inside.flush();
        Ok(())
    }

    fn bytes(&self) -> u64 {
        self.0.lock().unwrap().durable.len() as u64
    }

    fn device(&self) -> Option<u64> {
        None
    }
}

impl Medium for FaultyDisk {
    fn look(&self) -> Result<Arc<dyn Disk>, StoreError> {
        Ok(Arc::new(self.clone()))
    }

    fn own(&self) -> Result<Arc<dyn Disk>, StoreError> {
        Ok(Arc::new(self.clone()))
    }

    fn spec(&self) -> String {
        "simulated".to_owned()
    }
}
