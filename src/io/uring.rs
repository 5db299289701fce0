//! The real platform: io_uring, the system's clocks, a pool of threads.
//!
//! One ring carries everything the owner waits for. [`Ring`] is what differs between the in-process queue, which has
//! a ring of its own, and the kernel's block driver, whose ring libublk owns.
#![expect(unsafe_code, reason = "submission entries point at buffers, which the table of operations keeps alive")]

use std::cell::{Cell, RefCell};
use std::future::{Future, poll_fn};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::rc::Rc;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::{Duration, Instant, SystemTime};

use io_uring::{IoUring, opcode, squeue, types};
use nix::sys::eventfd::{EfdFlags, EventFd};

use super::{Buffer, Device, Executor, Platform};

mod bench;
mod pool;
mod primary;
pub use bench::Bench;
use pool::{Pool, be_background, be_io_flusher};
pub use primary::{Primary, PrimaryError};

/// Marks our own completions in the 64 bits of user data; libublk calls it the target bit.
const OURS: u64 = 1 << 63;
/// Threads for urgent jobs: a read from the store that hangs keeps no other waiting.
const READERS: usize = 2;
/// Fewer entries than these wait for the next time that the ring is entered: each time costs a system call.
const SUBMIT_TOGETHER: usize = 8;
/// A write of so many bytes does not wait for others, nor for the next time that the ring is entered, when there is other work before.
const SUBMIT_AT_ONCE: usize = 64 << 10;

/// A submission and a completion queue, of the thread that uses it.
pub trait Ring: 'static {
    /// Queues an entry, submitting what is queued when there is no room.
    fn push(&self, entry: &squeue::Entry) -> io::Result<()>;

    /// Submits what is queued.
    fn submit(&self) -> io::Result<()>;

    /// Entries that are queued and not submitted.
    fn queued(&self) -> usize;

    /// Submits what is queued, waits for `want` completions and gives each one's user data and result to `seen`.
    fn enter(&self, want: usize, seen: &mut dyn FnMut(u64, i32)) -> io::Result<()>;
}

/// Whether entering a ring again is all it takes.
pub fn is_temporary(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN))
}

/// A ring of our own.
pub struct OwnRing(RefCell<IoUring>);

impl OwnRing {
    /// A ring with room for `entries` submissions and four times the completions.
    ///
    /// # Errors
    /// When the kernel has no io_uring or forbids it.
    pub fn new(entries: u32) -> io::Result<Self> {
        let ring = IoUring::builder().setup_cqsize(entries * 4).setup_coop_taskrun().build(entries)?;
        Ok(Self(RefCell::new(ring)))
    }
}

impl Ring for OwnRing {
    fn push(&self, entry: &squeue::Entry) -> io::Result<()> {
        let mut ring = self.0.borrow_mut();
        loop {
            // SAFETY: what the entry points at is kept in the table of operations until its completion.
            if unsafe { ring.submission().push(entry) }.is_ok() {
                return Ok(());
            }
            match ring.submit() {
                Err(error) if is_temporary(&error) => {}
                other => drop(other?),
            }
        }
    }

    fn submit(&self) -> io::Result<()> {
        match self.0.borrow_mut().submit() {
            Err(error) if !is_temporary(&error) => Err(error),
            _ => Ok(()),
        }
    }

    fn queued(&self) -> usize {
        self.0.borrow_mut().submission().len()
    }

    fn enter(&self, want: usize, seen: &mut dyn FnMut(u64, i32)) -> io::Result<()> {
        let mut ring = self.0.borrow_mut();
        match ring.submit_and_wait(want) {
            Err(error) if is_temporary(&error) => {}
            other => drop(other?),
        }
        ring.completion().for_each(|entry| seen(entry.user_data(), entry.result()));
        Ok(())
    }
}

/// What an operation in flight needs until its completion.
enum Held {
    Nothing,
    #[expect(dead_code, reason = "held for the kernel")]
    Buffer(Buffer),
    #[expect(dead_code, reason = "held for the kernel")]
    Time(Box<types::Timespec>),
}

struct Operation {
    held: Held,
    waker: Option<Waker>,
    result: Option<i32>,
    abandoned: bool,
}

#[derive(Default)]
struct Operations {
    table: Vec<Option<Operation>>,
    free: Vec<usize>,
    in_flight: usize,
}

struct Shared<R> {
    ring: R,
    operations: RefCell<Operations>,
    executor: Executor,
    bell: Arc<EventFd>,
    /// Where the bell's count is read to.
    bell_count: Buffer,
    bell_armed: Cell<bool>,
    started: Instant,
    archivers: Pool,
    readers: Pool,
}

/// The platform of a thread that owns a volume.
pub struct UringPlatform<R>(Rc<Shared<R>>);

impl<R> Clone for UringPlatform<R> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<R: Ring> UringPlatform<R> {
    /// A platform on `ring` with `threads` for the archiver. They start with its first job, as others do with the first
    /// that is urgent.
    ///
    /// # Errors
    /// When the system gives no event descriptor, or no memory.
    pub fn new(ring: R, threads: usize) -> io::Result<Self> {
        let bell = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
        let ringer = Arc::clone(&bell);
        let executor = Executor::new(Box::new(move || {
            // A write to an event counter fails only when it is about to overflow, and then the bell is ringing already.
            let _ = ringer.write(1);
        }));
        Ok(Self(Rc::new(Shared {
            ring,
            operations: RefCell::default(),
            executor,
            bell,
            bell_count: Buffer::new(size_of::<u64>())?,
            bell_armed: Cell::new(false),
            started: Instant::now(),
            archivers: Pool::new("archiver", threads, be_background),
            readers: Pool::new("reader", READERS, be_io_flusher),
        })))
    }

    /// The ring, for requests of the kernel's driver.
    pub fn ring(&self) -> &R {
        &self.0.ring
    }

    /// Runs everything that is ready, until all tasks wait.
    pub fn run(&self) {
        self.arm_bell();
        self.0.executor.run();
    }

    /// Takes a completion that [`Ring::enter`] saw. Returns false when it is not one of ours.
    pub fn complete(&self, user_data: u64, result: i32) -> bool {
        if user_data & OURS == 0 {
            return false;
        }
        let slot = (user_data & !OURS) as usize;
        let mut operations = self.0.operations.borrow_mut();
        operations.in_flight -= 1;
        let done = operations.table[slot].as_mut().map(|operation| {
            operation.result = Some(result);
            operation.held = Held::Nothing;
            (operation.abandoned, operation.waker.take())
        });
        match done {
            Some((true, _)) => operations.remove(slot),
            Some((false, Some(waker))) => {
                drop(operations);
                waker.wake();
            }
            _ => {}
        }
        true
    }

    /// Runs `future` to its end on this thread, and whatever else is ready meanwhile.
    ///
    /// # Errors
    /// When the ring fails.
    pub fn block_on<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> io::Result<T> {
        let outcome = Rc::new(RefCell::new(None));
        let slot = Rc::clone(&outcome);
        self.spawn(async move {
            let value = future.await;
            *slot.borrow_mut() = Some(value);
        });
        loop {
            self.run();
            if let Some(value) = outcome.borrow_mut().take() {
                return Ok(value);
            }
            self.0.ring.enter(1, &mut |user_data, result| {
                self.complete(user_data, result);
            })?;
        }
    }

    /// Waits until the kernel holds no buffer of ours any more, bell excepted.
    ///
    /// # Errors
    /// When the ring fails.
    pub fn drain(&self) -> io::Result<()> {
        loop {
            self.run();
            if self.0.operations.borrow().in_flight <= usize::from(self.0.bell_armed.get()) {
                return Ok(());
            }
            self.0.ring.enter(1, &mut |user_data, result| {
                self.complete(user_data, result);
            })?;
        }
    }

    /// Drops every task where it is, and what it holds, and waits for the kernel to let go of our buffers.
    ///
    /// # Errors
    /// When the ring fails.
    pub fn shut_down(&self) -> io::Result<()> {
        self.cancel_tasks()?;
        while self.0.operations.borrow().in_flight > 0 {
            self.0.ring.enter(1, &mut |user_data, result| {
                self.complete(user_data, result);
            })?;
        }
        Ok(())
    }

    /// The same for somebody who cannot wait for ever; false when the kernel has not let go within `limit`. What it may still write to is
    /// then never given back.
    ///
    /// # Errors
    /// When the ring fails.
    pub(super) fn shut_down_within(&self, limit: Duration) -> io::Result<bool> {
        let ended = self.cancel_tasks().and_then(|()| self.lets_go_within(limit));
        if !matches!(ended, Ok(true)) {
            let _stays = Rc::into_raw(Rc::clone(&self.0));
        }
        ended
    }

    fn lets_go_within(&self, limit: Duration) -> io::Result<bool> {
        let started = Instant::now();
        loop {
            self.0.ring.enter(0, &mut |user_data, result| {
                self.complete(user_data, result);
            })?;
            match self.0.operations.borrow().in_flight {
                0 => return Ok(true),
                _ if started.elapsed() > limit => return Ok(false),
                _ => std::thread::sleep(Duration::from_micros(50)),
            }
        }
    }

    /// Drops every task, and ends the read of the bell that one of them may have left in flight.
    fn cancel_tasks(&self) -> io::Result<()> {
        self.0.executor.cancel_all();
        self.0.bell.write(1)?;
        Ok(())
    }

    fn arm_bell(&self) {
        if self.0.bell_armed.replace(true) {
            return;
        }
        let platform = Rc::downgrade(&self.0);
        let (bell, count) = (Arc::clone(&self.0.bell), self.0.bell_count.clone());
        self.0.executor.spawn(async move {
            while let Some(shared) = platform.upgrade() {
                let entry = opcode::Read::new(types::Fd(bell.as_raw_fd()), count.as_ptr(), count.len() as u32).build();
                let read = UringPlatform(shared).operate(entry, Held::Buffer(count.clone()));
                read.await;
            }
        });
    }

    /// Hands the kernel what is queued when that is as much as it has already.
    fn keep_busy(&self) {
        let (queued, in_flight) = (self.0.ring.queued(), self.0.operations.borrow().in_flight);
        if queued >= SUBMIT_TOGETHER.max(in_flight / 2) {
            self.submit_early();
        }
    }

    /// The device works while what is ready runs. An error comes again when the ring is entered.
    fn submit_early(&self) {
        let Shared { ring, executor, .. } = &*self.0;
        if ring.queued() > 0 && executor.has_ready() {
            let _ = ring.submit();
        }
    }

    /// Submits `entry` and waits for its result. What it points at is in `held`, which outlives the operation even when
    /// the future is dropped.
    fn operate(&self, entry: squeue::Entry, held: Held) -> impl Future<Output = i32> + use<R> {
        let slot = self.0.operations.borrow_mut().insert(held);
        let entry = entry.user_data(OURS | slot as u64);
        if let Err(error) = self.0.ring.push(&entry) {
            let code = error.raw_os_error().unwrap_or(libc::EIO);
            let mut operations = self.0.operations.borrow_mut();
            operations.in_flight -= 1;
            if let Some(operation) = operations.table[slot].as_mut() {
                operation.result = Some(-code);
            }
        }
        self.keep_busy();
        let flight = Flight { shared: Rc::downgrade(&self.0), slot };
        async move { poll_fn(|context| flight.poll(context)).await }
    }
}

/// An operation that a future waits for.
struct Flight<R: Ring> {
    shared: std::rc::Weak<Shared<R>>,
    slot: usize,
}

impl<R: Ring> Flight<R> {
    fn poll(&self, context: &Context<'_>) -> Poll<i32> {
        let Some(shared) = self.shared.upgrade() else { return Poll::Ready(-libc::ECANCELED) };
        let mut operations = shared.operations.borrow_mut();
        match operations.table[self.slot].as_mut() {
            Some(Operation { result: Some(result), .. }) => Poll::Ready(*result),
            Some(operation) => {
                operation.waker = Some(context.waker().clone());
                Poll::Pending
            }
            None => Poll::Ready(-libc::ECANCELED),
        }
    }
}

impl<R: Ring> Drop for Flight<R> {
    fn drop(&mut self) {
        let Some(shared) = self.shared.upgrade() else { return };
        let mut operations = shared.operations.borrow_mut();
        match operations.table[self.slot].as_mut() {
            Some(Operation { result: Some(_), .. }) | None => operations.remove(self.slot),
            Some(operation) => {
                operation.abandoned = true;
                if matches!(operation.held, Held::Time(_)) {
                    drop(operations);
                    shared.cancel_timer(self.slot);
                }
            }
        }
    }
}

impl<R: Ring> Shared<R> {
    /// Ends a timer that nobody waits for, so that whoever waits for the last operation, as a detach does, need not either.
    fn cancel_timer(&self, timer: usize) {
        let mut operations = self.operations.borrow_mut();
        let slot = operations.insert(Held::Nothing);
        if let Some(operation) = operations.table[slot].as_mut() {
            operation.abandoned = true;
        }
        drop(operations);
        let entry = opcode::TimeoutRemove::new(OURS | timer as u64).build().user_data(OURS | slot as u64);
        if self.ring.push(&entry).is_err() {
            let mut operations = self.operations.borrow_mut();
            operations.in_flight -= 1;
            operations.remove(slot);
        }
    }
}

impl Operations {
    fn insert(&mut self, held: Held) -> usize {
        let operation = Some(Operation { held, waker: None, result: None, abandoned: false });
        self.in_flight += 1;
        match self.free.pop() {
            Some(slot) => {
                self.table[slot] = operation;
                slot
            }
            None => {
                self.table.push(operation);
                self.table.len() - 1
            }
        }
    }

    fn remove(&mut self, slot: usize) {
        if self.table[slot].take().is_some() {
            self.free.push(slot);
        }
    }
}

impl<R: Ring> Platform for UringPlatform<R> {
    type Device = UringDevice<R>;

    fn wall_ns(&self) -> i64 {
        let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        i64::try_from(since.as_nanos()).unwrap_or(i64::MAX)
    }

    fn elapsed(&self) -> Duration {
        self.0.started.elapsed()
    }

    fn random(&self, bytes: &mut [u8]) {
        for chunk in bytes.chunks_mut(16) {
            chunk.copy_from_slice(&uuid_bytes()[..chunk.len()]);
        }
    }

    fn spawn(&self, task: impl Future<Output = ()> + 'static) {
        self.0.executor.spawn(task);
    }

    fn spawn_urgent(&self, task: impl Future<Output = ()> + 'static) {
        self.0.executor.spawn_urgent(task);
    }

    async fn sleep(&self, duration: Duration) {
        let time = Box::new(types::Timespec::new().sec(duration.as_secs()).nsec(duration.subsec_nanos()));
        let entry = opcode::Timeout::new(&raw const *time).build();
        self.operate(entry, Held::Time(time)).await;
    }

    async fn offload<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        self.0.archivers.answer(job).await
    }

    async fn offload_urgent<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        self.0.readers.answer(job).await
    }

    async fn settle(&self) {
        self.0.executor.settle().await;
    }
}

/// Sixteen bytes from the system's random number generator.
fn uuid_bytes() -> [u8; 16] {
    let mut bytes = [0; 16];
    // SAFETY: the buffer is ours and as long as we say.
    let got = unsafe { libc::getrandom(bytes.as_mut_ptr().cast(), bytes.len(), 0) };
    assert_eq!(got, 16, "getrandom of so few bytes never fails");
    bytes
}

/// The primary, by its open file. The file carries the lock: the kernel keeps it open until the last I/O has ended.
pub struct UringDevice<R> {
    platform: UringPlatform<R>,
    file: Rc<OwnedFd>,
    bytes: u64,
    punches: bool,
}

impl<R> Clone for UringDevice<R> {
    fn clone(&self) -> Self {
        Self { platform: self.platform.clone(), file: Rc::clone(&self.file), bytes: self.bytes, punches: self.punches }
    }
}

impl<R: Ring> UringDevice<R> {
    /// The device behind `primary`, reached through the ring of `platform`.
    pub fn new(platform: UringPlatform<R>, primary: Primary) -> Self {
        let (bytes, punches) = (primary.bytes(), primary.is_device());
        Self { platform, file: Rc::new(primary.into_file()), bytes, punches }
    }

    fn fd(&self) -> types::Fd {
        let fd: RawFd = self.file.as_raw_fd();
        types::Fd(fd)
    }

    /// Repeats `entry` until it ends in something else than "try again"; checks that `bytes` were moved. One that goes `at_once` does
    /// not wait for what is ready.
    async fn transfer(&self, entry: squeue::Entry, held: &Buffer, at_once: bool) -> io::Result<()> {
        loop {
            let operation = self.platform.operate(entry.clone(), Held::Buffer(held.clone()));
            if at_once {
                self.platform.submit_early();
            }
            match operation.await {
                result if result == -libc::EAGAIN || result == -libc::EINTR => {}
                result if result < 0 => return Err(io::Error::from_raw_os_error(-result)),
                result if result as usize == held.len() => return Ok(()),
                result => {
                    let what = format!("{result} of {} bytes were transferred", held.len());
                    return Err(io::Error::new(io::ErrorKind::UnexpectedEof, what));
                }
            }
        }
    }
}

impl<R: Ring> Device for UringDevice<R> {
    fn bytes(&self) -> u64 {
        self.bytes
    }

    async fn read(&self, offset: u64, buffer: Buffer) -> io::Result<()> {
        let entry = opcode::Read::new(self.fd(), buffer.as_ptr(), buffer.len() as u32).offset(offset).build();
        self.transfer(entry, &buffer, false).await
    }

    async fn write(&self, offset: u64, buffer: Buffer) -> io::Result<()> {
        let entry = opcode::Write::new(self.fd(), buffer.as_ptr(), buffer.len() as u32).offset(offset).build();
        self.transfer(entry, &buffer, buffer.len() >= SUBMIT_AT_ONCE).await
    }

    async fn flush(&self) -> io::Result<()> {
        let entry = opcode::Fsync::new(self.fd()).flags(types::FsyncFlags::DATASYNC).build();
        loop {
            match self.platform.operate(entry.clone(), Held::Nothing).await {
                // Interrupted. Any other failure is final: the kernel reports what could not be written only once.
                result if result == -libc::EAGAIN || result == -libc::EINTR => {}
                result if result < 0 => return Err(io::Error::from_raw_os_error(-result)),
                _ => return Ok(()),
            }
        }
    }

    async fn discard(&self, offset: u64, bytes: u64) -> io::Result<()> {
        if !self.punches {
            // A hole in a file would have to be allocated again: a quarter of the flush rate, measured on ext4.
            return Ok(());
        }
        let entry = opcode::Fallocate::new(self.fd(), bytes)
            .offset(offset)
            .mode(libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_KEEP_SIZE)
            .build();
        match self.platform.operate(entry, Held::Nothing).await {
            result if result < 0 => Err(io::Error::from_raw_os_error(-result)),
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_that_nobody_waits_for_holds_nobody_up() {
        for end in [UringPlatform::drain, UringPlatform::shut_down] {
            let platform = UringPlatform::new(OwnRing::new(8).unwrap(), 1).unwrap();
            let (inner, started) = (platform.clone(), Instant::now());
            let nap = async move {
                let short = inner.sleep(Duration::from_millis(1));
                let long = std::pin::pin!(inner.sleep(Duration::from_secs(100)));
                futures_util::future::select(std::pin::pin!(short), long).await;
            };
            platform.block_on(nap).unwrap();
            end(&platform).unwrap();
            assert!(started.elapsed() < Duration::from_secs(10));
        }
    }
}
