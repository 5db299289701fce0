//! The simulated platform: made-up time, a seed for everything that chance decides, and a disk that loses power.
//!
//! # Fault model
//!
//! - A write takes effect for readers when it ends. Until a flush that was started after that has ended, a power cut may
//!   keep it, lose it, or tear it: any subset of its 512-byte sectors arrives. Writes in flight fare the same. Each write
//!   is decided on its own, so what arrives is any subset, in no order.
//! - A flush that is in flight when the power goes has made nothing durable, or everything it covers.
//! - I/O ends in an order that the seed decides, after delays that the seed decides.
//! - What is durable stays as it is: rot is for tests to add, with [`SimulatedDisk::corrupt`].
//!
//! One seed is one history: tasks run in an order that the seed decides, and nothing reads the real clock.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::io;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

use super::{Buffer, Device, Executor, Platform};

const SECTOR: usize = 512;

/// Seeded chance: SplitMix64 (Steele, Lea, Flood: Fast Splittable Pseudorandom Number Generators, 2014).
#[derive(Debug, Clone)]
pub struct Dice(u64);

impl Dice {
    pub fn new(seed: u64) -> Self {
        Self(seed)
    }

    /// 64 random bits.
    pub fn bits(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    /// A number below `limit`, which is not 0.
    pub fn below(&mut self, limit: u64) -> u64 {
        self.bits() % limit
    }

    /// True `percent` times out of a hundred.
    pub fn percent(&mut self, percent: u64) -> bool {
        self.below(100) < percent
    }
}

/// A write that no flush covers yet.
struct Volatile {
    offset: u64,
    bytes: Vec<u8>,
    /// The flush started last when the write ended.
    after_flush: u64,
}

struct Disk {
    bytes: u64,
    durable: BTreeMap<u64, Vec<u8>>,
    volatile: Vec<Volatile>,
    in_flight: BTreeMap<u64, (u64, Vec<u8>)>,
    flushes_started: u64,
    unreadable: Vec<(u64, u64)>,
}

/// A disk that outlives the machines that use it.
#[derive(Clone)]
pub struct SimulatedDisk(Rc<RefCell<Disk>>);

impl SimulatedDisk {
    /// A disk of `bytes` zeros.
    pub fn new(bytes: u64) -> Self {
        Self(Rc::new(RefCell::new(Disk {
            bytes,
            durable: BTreeMap::new(),
            volatile: Vec::new(),
            in_flight: BTreeMap::new(),
            flushes_started: 0,
            unreadable: Vec::new(),
        })))
    }

    /// A copy with a life of its own.
    pub fn fork(&self) -> Self {
        let disk = self.0.borrow();
        assert!(disk.volatile.is_empty() && disk.in_flight.is_empty(), "a disk is copied when it is at rest");
        let copy = Self::new(disk.bytes);
        copy.0.borrow_mut().durable = disk.durable.clone();
        copy
    }

    /// The power goes: what no flush covered is kept, lost or torn as `dice` decides.
    pub fn lose_power(&self, dice: &mut Dice) {
        let mut disk = self.0.borrow_mut();
        let volatile = std::mem::take(&mut disk.volatile).into_iter().map(|write| (write.offset, write.bytes));
        let in_flight = std::mem::take(&mut disk.in_flight).into_values();
        let writes: Vec<_> = volatile.chain(in_flight).collect();
        let mood = dice.below(4);
        for (offset, bytes) in writes {
            let (keep, tear) = match mood {
                0 => (0, 0),
                1 => (100, 0),
                2 => (50, 20),
                _ => (80, 60),
            };
            if !dice.percent(keep) {
                continue;
            }
            let torn = dice.percent(tear);
            for (rank, sector) in bytes.chunks(SECTOR).enumerate() {
                if !torn || dice.percent(50) {
                    disk.put(offset + (rank * SECTOR) as u64, sector);
                }
            }
        }
    }

    /// The machine stops, the disk goes on: everything that was sent arrives.
    pub fn stop_machine(&self) {
        let mut disk = self.0.borrow_mut();
        let volatile = std::mem::take(&mut disk.volatile).into_iter().map(|write| (write.offset, write.bytes));
        let in_flight = std::mem::take(&mut disk.in_flight).into_values();
        let writes: Vec<_> = volatile.chain(in_flight).collect();
        writes.into_iter().for_each(|(offset, bytes)| disk.put(offset, &bytes));
    }

    /// Flips bits of the byte at `offset`.
    pub fn corrupt(&self, offset: u64, mask: u8) {
        let mut disk = self.0.borrow_mut();
        let mut sector = vec![0; SECTOR];
        let start = offset / SECTOR as u64 * SECTOR as u64;
        disk.get(start, &mut sector);
        sector[(offset - start) as usize] ^= mask;
        disk.put(start, &sector);
    }

    /// Makes reads that touch the range fail, until it is written.
    pub fn fail_reads(&self, offset: u64, bytes: u64) {
        self.0.borrow_mut().unreadable.push((offset, bytes));
    }

    /// What a reader sees now.
    pub fn peek(&self, offset: u64, into: &mut [u8]) {
        self.0.borrow().get(offset, into);
    }

    /// Writes durably, as a tool would on a disk at rest.
    pub fn poke(&self, offset: u64, bytes: &[u8]) {
        self.0.borrow_mut().put(offset, bytes);
    }
}

impl Disk {
    fn put(&mut self, offset: u64, bytes: &[u8]) {
        for (rank, sector) in bytes.chunks(SECTOR).enumerate() {
            self.durable.insert(offset / SECTOR as u64 + rank as u64, sector.to_vec());
        }
    }

    fn get(&self, offset: u64, into: &mut [u8]) {
        let first = offset / SECTOR as u64;
        for (rank, sector) in into.chunks_mut(SECTOR).enumerate() {
            match self.durable.get(&(first + rank as u64)) {
                Some(bytes) => sector.copy_from_slice(bytes),
                None => sector.fill(0),
            }
        }
        for write in &self.volatile {
            let (from, to) =
                (write.offset.max(offset), (write.offset + write.bytes.len() as u64).min(offset + into.len() as u64));
            if from < to {
                let source = &write.bytes[(from - write.offset) as usize..(to - write.offset) as usize];
                into[(from - offset) as usize..(to - offset) as usize].copy_from_slice(source);
            }
        }
    }

    fn flushed(&mut self, number: u64) {
        let (done, left): (Vec<_>, Vec<_>) =
            std::mem::take(&mut self.volatile).into_iter().partition(|write| write.after_flush < number);
        done.into_iter().for_each(|write| self.put(write.offset, &write.bytes));
        self.volatile = left;
    }
}

struct World {
    disk: SimulatedDisk,
    executor: Executor,
    dice: RefCell<Dice>,
    now: Cell<Duration>,
    /// What will happen, by time and a number that makes times unique.
    events: RefCell<BTreeMap<(Duration, u64), Waker>>,
    numbers: Cell<u64>,
    device_ios: Cell<u64>,
    ios_allowed: Cell<u64>,
    job_time: Cell<Duration>,
}

/// How a run of the simulation ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ended {
    /// What was waited for has happened.
    Done,
    /// The machine was stopped at the I/O that was asked for.
    Crashed,
    /// Nothing can happen any more, or nothing did in an hour of simulated time.
    Stuck,
}

/// A machine with a simulated disk.
#[derive(Clone)]
pub struct SimulatedPlatform(Rc<World>);

impl SimulatedPlatform {
    /// A machine that lives by `seed` on `disk`.
    pub fn new(seed: u64, disk: SimulatedDisk) -> Self {
        Self(Rc::new(World {
            disk,
            executor: Executor::new(Box::new(|| {})),
            dice: RefCell::new(Dice::new(seed)),
            now: Cell::new(Duration::from_secs(1)),
            events: RefCell::default(),
            numbers: Cell::new(0),
            device_ios: Cell::new(0),
            ios_allowed: Cell::new(u64::MAX),
            job_time: Cell::new(Duration::ZERO),
        }))
    }

    /// The machine's disk as the engine's device.
    pub fn device(&self) -> SimulatedDevice {
        SimulatedDevice(self.clone())
    }

    /// Device I/Os that have ended so far.
    pub fn device_ios(&self) -> u64 {
        self.0.device_ios.get()
    }

    /// Stops the machine when so many device I/Os have ended.
    pub fn crash_after(&self, ios: u64) {
        self.0.ios_allowed.set(ios);
    }

    /// Each blocking job of the archiver that begins from now on takes so long: the store is slow.
    pub fn set_job_time(&self, time: Duration) {
        self.0.job_time.set(time);
    }

    /// Runs until `done`, or the crash that was asked for.
    pub fn run(&self, mut done: impl FnMut() -> bool) -> Ended {
        let world = &self.0;
        let deadline = world.now.get() + Duration::from_secs(3600);
        loop {
            while world.executor.run_one(|count| world.dice.borrow_mut().below(count as u64) as usize) {}
            if done() {
                return Ended::Done;
            }
            if world.device_ios.get() >= world.ios_allowed.get() {
                return Ended::Crashed;
            }
            let next = world.events.borrow_mut().pop_first();
            let Some(((time, _), waker)) = next else { return Ended::Stuck };
            if time > deadline {
                return Ended::Stuck;
            }
            world.now.set(world.now.get().max(time));
            waker.wake();
        }
    }

    /// Runs `future` to its end. `None` when the machine crashed or got stuck before.
    pub fn block_on<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> Option<T> {
        let outcome = Rc::new(RefCell::new(None));
        let slot = Rc::clone(&outcome);
        self.spawn(async move {
            let value = future.await;
            *slot.borrow_mut() = Some(value);
        });
        self.run(|| outcome.borrow().is_some());
        outcome.take()
    }

    /// The machine is gone: its tasks are dropped where they are.
    pub fn halt(self) {
        self.0.events.borrow_mut().clear();
        self.0.executor.cancel_all();
    }

    async fn pass(&self, limit_micros: u64) {
        let delay = Duration::from_micros(1 + self.0.dice.borrow_mut().below(limit_micros));
        self.sleep(delay).await;
    }

    fn count_io(&self) {
        self.0.device_ios.set(self.0.device_ios.get() + 1);
    }
}

impl Platform for SimulatedPlatform {
    type Device = SimulatedDevice;

    fn wall_ns(&self) -> i64 {
        1_700_000_000_000_000_000 + self.0.now.get().as_nanos() as i64
    }

    fn elapsed(&self) -> Duration {
        self.0.now.get()
    }

    fn random(&self, bytes: &mut [u8]) {
        let mut dice = self.0.dice.borrow_mut();
        bytes.fill_with(|| dice.bits() as u8);
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.0.executor.spawn(task);
    }

    async fn sleep(&self, duration: Duration) {
        let number = self.0.numbers.get() + 1;
        self.0.numbers.set(number);
        let when = (self.0.now.get() + duration, number);
        poll_fn(|context| {
            if self.0.now.get() >= when.0 {
                self.0.events.borrow_mut().remove(&when);
                return Poll::Ready(());
            }
            self.0.events.borrow_mut().insert(when, context.waker().clone());
            Poll::Pending
        })
        .await;
    }

    async fn offload<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        self.pass(2000).await;
        self.sleep(self.0.job_time.get()).await;
        job()
    }

    async fn settle(&self) {
        self.sleep(Duration::from_nanos(1)).await;
    }
}

/// The disk of a simulated machine.
#[derive(Clone)]
pub struct SimulatedDevice(SimulatedPlatform);

impl SimulatedDevice {
    fn disk(&self) -> std::cell::RefMut<'_, Disk> {
        self.0.0.disk.0.borrow_mut()
    }
}

impl Device for SimulatedDevice {
    fn bytes(&self) -> u64 {
        self.disk().bytes
    }

    async fn read(&self, offset: u64, buffer: Buffer) -> io::Result<()> {
        self.0.pass(100).await;
        let disk = self.disk();
        let end = offset + buffer.len() as u64;
        assert!(end <= disk.bytes, "the engine reads inside the device");
        if disk.unreadable.iter().any(|(from, bytes)| *from < end && offset < from + bytes) {
            return Err(io::Error::from_raw_os_error(libc::EIO));
        }
        buffer.write(|into| disk.get(offset, into));
        Ok(())
    }

    async fn write(&self, offset: u64, buffer: Buffer) -> io::Result<()> {
        let number = self.0.0.numbers.get() + 1;
        self.0.0.numbers.set(number);
        let bytes = buffer.bytes().to_vec();
        assert!(offset + bytes.len() as u64 <= self.disk().bytes, "the engine writes inside the device");
        self.disk().in_flight.insert(number, (offset, bytes));
        self.0.pass(200).await;
        let mut disk = self.disk();
        if let Some((offset, bytes)) = disk.in_flight.remove(&number) {
            let end = offset + bytes.len() as u64;
            disk.unreadable.retain(|(from, length)| !(*from < end && offset < from + length));
            let after_flush = disk.flushes_started;
            disk.volatile.push(Volatile { offset, bytes, after_flush });
        }
        drop(disk);
        self.0.count_io();
        Ok(())
    }

    async fn flush(&self) -> io::Result<()> {
        let number = {
            let mut disk = self.disk();
            disk.flushes_started += 1;
            disk.flushes_started
        };
        self.0.pass(500).await;
        self.disk().flushed(number);
        self.0.count_io();
        Ok(())
    }

    async fn discard(&self, _offset: u64, _bytes: u64) -> io::Result<()> {
        self.0.pass(50).await;
        Ok(())
    }
}
