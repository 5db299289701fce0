//! The simulated platform: made-up time, a seed for everything that chance decides, and a disk that loses power and worse.
//!
//! One seed is one history: I/O ends in an order and after delays that the seed decides, tasks run in an order that the seed
//! decides, and nothing reads the real clock. What the disk may do is said where it is: [`disk`].

mod dice;
mod disk;

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::future::{Future, poll_fn};
use std::io;
use std::rc::Rc;
use std::task::{Poll, Waker};
use std::time::Duration;

pub use dice::Dice;
use disk::Disk;
pub use disk::{Event, Faults, SimulatedDisk};

use super::{Buffer, Device, Executor, Platform};

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
    /// I/Os that have begun, reads and discards too.
    begun: Cell<u64>,
    fails: Cell<Option<(u64, i32)>>,
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
            begun: Cell::new(0),
            fails: Cell::new(None),
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

    /// I/Os that have begun so far, of every kind.
    pub fn begun_ios(&self) -> u64 {
        self.0.begun.get()
    }

    /// The I/O of this number, counted from 1 in the order in which they begin, fails with `errno`; 0 stands for a short transfer.
    pub fn fail_io(&self, number: u64, errno: i32) {
        self.0.fails.set(Some((number, errno)));
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

    fn number(&self) -> u64 {
        self.0.numbers.set(self.0.numbers.get() + 1);
        self.0.numbers.get()
    }

    fn now_ns(&self) -> u64 {
        self.0.now.get().as_nanos() as u64
    }

    /// Counts an I/O that begins, and lets it take its time. The error that it was chosen for.
    async fn begin_io(&self, limit_micros: u64) -> io::Result<()> {
        let begun = self.0.begun.get() + 1;
        self.0.begun.set(begun);
        let stall = self.0.disk.0.borrow_mut().stall(&mut self.0.dice.borrow_mut());
        self.pass(limit_micros + stall).await;
        match self.0.fails.get() {
            Some((number, 0)) if number == begun => Err(io::ErrorKind::UnexpectedEof.into()),
            Some((number, errno)) if number == begun => Err(io::Error::from_raw_os_error(errno)),
            _ => Ok(()),
        }
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
        let number = self.number();
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
        self.0.begin_io(100).await?;
        let mut dice = self.0.0.dice.borrow_mut();
        buffer.write(|into| self.disk().end_read(&mut dice, self.0.now_ns(), offset, into))
    }

    async fn write(&self, offset: u64, buffer: Buffer) -> io::Result<()> {
        let number = self.0.number();
        self.disk().begin_write(number, offset, buffer.bytes());
        let begun = self.0.begin_io(200).await;
        self.0.count_io();
        let mut dice = self.0.0.dice.borrow_mut();
        if begun.is_err() {
            self.disk().abandon_write(&mut dice, number);
            return begun;
        }
        self.disk().end_write(&mut dice, self.0.now_ns(), number)
    }

    async fn flush(&self) -> io::Result<()> {
        let number = self.disk().begin_flush();
        let begun = self.0.begin_io(500).await;
        self.0.count_io();
        if begun.is_err() {
            self.disk().fail_flush(number);
            return begun;
        }
        self.disk().end_flush(&mut self.0.0.dice.borrow_mut(), self.0.now_ns(), number)
    }

    async fn discard(&self, _offset: u64, _bytes: u64) -> io::Result<()> {
        self.0.begin_io(50).await
    }
}
