//! The platform: everything the engine needs of a machine, behind one trait.
//!
//! The same engine runs on io_uring under the kernel's block driver, on io_uring in an in-process queue, and in a
//! simulator whose disk is faulty and whose time is made up. io_uring cannot be intercepted from outside, so this seam
//! is the only place for faults.

mod buffer;
mod executor;
mod signal;
pub mod simulated;
mod uring;

use std::future::Future;
use std::io;
use std::time::Duration;

pub use buffer::{Arena, Buffer};
pub use executor::Executor;
pub use signal::Signal;
pub use uring::{Bench, OwnRing, Primary, PrimaryError, Ring, UringDevice, UringPlatform, is_temporary};

/// A raw device: reads and writes of whole blocks at byte offsets that are multiples of the block size.
///
/// The device keeps its buffers until the I/O has ended, so a future may be dropped at any time. A short transfer is an
/// error. An I/O that fails with `EAGAIN` or `EINTR` is retried inside.
pub trait Device: Clone + 'static {
    /// Bytes of the device.
    fn bytes(&self) -> u64;

    /// Fills `buffer` from byte `offset`.
    fn read(&self, offset: u64, buffer: Buffer) -> impl Future<Output = io::Result<()>>;

    /// Writes all of `buffer` at byte `offset`. Volatile until a [`Self::flush`] that was started after it ended.
    fn write(&self, offset: u64, buffer: Buffer) -> impl Future<Output = io::Result<()>>;

    /// Makes every write that had ended when the flush started durable.
    fn flush(&self) -> impl Future<Output = io::Result<()>>;

    /// Tells the device that a range is no longer needed. Best effort: its content is undefined afterwards.
    fn discard(&self, offset: u64, bytes: u64) -> impl Future<Output = io::Result<()>>;
}

/// What the engine runs on. One value a volume, cheap to clone, used by the owner's thread only.
pub trait Platform: Clone + 'static {
    type Device: Device;

    /// Wall-clock time, nanoseconds since 1970, UTC; may go backward.
    fn wall_ns(&self) -> i64;

    /// Time that only goes forward, from an arbitrary start.
    fn elapsed(&self) -> Duration;

    /// Fills `bytes` with randomness good enough for keys.
    fn random(&self, bytes: &mut [u8]);

    /// Runs `task` on the owner's thread until it ends.
    fn spawn(&self, task: impl Future<Output = ()> + 'static);

    /// The same; whenever it is ready it goes before what is not urgent.
    fn spawn_urgent(&self, task: impl Future<Output = ()> + 'static) {
        self.spawn(task);
    }

    /// Lets at least `duration` pass.
    fn sleep(&self, duration: Duration) -> impl Future<Output = ()>;

    /// Runs a blocking `job` on a thread of the archiver's pool, which yields to everything else.
    fn offload<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> impl Future<Output = T>;

    /// Runs a blocking `job` that a request waits for: not behind the archiver's, and not as slow.
    fn offload_urgent<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> impl Future<Output = T> {
        self.offload(job)
    }

    /// Lets everything that is ready run first, so that requests that arrived together leave together.
    fn settle(&self) -> impl Future<Output = ()>;
}
