//! I/O on a primary from a plain thread, which waits for it: for commands that no daemon serves.

use std::future::Future;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use super::{OwnRing, Primary, UringDevice, UringPlatform};
use crate::format::BLOCK_BYTES;
use crate::io::{Buffer, Device};

/// Submissions of the ring: a scan has 32 reads in flight.
const RING_ENTRIES: u32 = 64;

/// A primary on a ring of its own.
#[derive(Clone)]
pub struct Bench {
    pub platform: UringPlatform<OwnRing>,
    pub device: UringDevice<OwnRing>,
    _end: Rc<End>,
}

/// How long the kernel is waited for.
const PATIENCE: Duration = Duration::from_secs(1);

/// Ends the platform's own task when the last clone goes: one that is only dropped stays, with the bell's descriptor and its
/// buffer.
struct End(UringPlatform<OwnRing>);

impl Drop for End {
    fn drop(&mut self) {
        match self.0.shut_down_within(PATIENCE) {
            Ok(true) => {}
            Ok(false) => log::warn!("letting go of a primary: the kernel still has a buffer of ours, which stays"),
            Err(error) => log::warn!("letting go of a primary: {error}"),
        }
    }
}

impl Bench {
    /// A ring for `primary`.
    ///
    /// # Errors
    /// When the kernel has no io_uring or forbids it.
    pub fn new(primary: Primary) -> io::Result<Self> {
        let platform = UringPlatform::new(OwnRing::new(RING_ENTRIES)?, 1)?;
        let device = UringDevice::new(platform.clone(), primary);
        let end = Rc::new(End(platform.clone()));
        Ok(Self { platform, device, _end: end })
    }

    /// Runs `future` to its end.
    ///
    /// # Errors
    /// When the ring fails.
    pub fn wait<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> io::Result<T> {
        self.platform.block_on(future)
    }

    /// Reads one block.
    ///
    /// # Errors
    /// The I/O error.
    pub fn block(&self, at: u64) -> io::Result<Buffer> {
        let block = Buffer::new(BLOCK_BYTES)?;
        self.fill(at, &block).map(|()| block)
    }

    /// Fills `into` from byte `at`.
    ///
    /// # Errors
    /// The I/O error.
    pub fn fill(&self, at: u64, into: &Buffer) -> io::Result<()> {
        let (device, into) = (self.device.clone(), into.clone());
        self.wait(async move { device.read(at, into).await })?
    }
}
