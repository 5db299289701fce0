//! A primary that no daemon serves, for the commands that read or write it themselves.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};

use salvol::control::{SuperblockError, read_superblock};
use salvol::format::Superblock;
use salvol::io::{OwnRing, Primary, UringDevice, UringPlatform};

use super::Failure;

/// I/O on a primary from a plain thread.
pub(crate) struct Bench {
    pub(crate) platform: UringPlatform<OwnRing>,
    pub(crate) device: UringDevice<OwnRing>,
}

impl Bench {
    pub(crate) fn new(primary: Primary) -> io::Result<Self> {
        let platform = UringPlatform::new(OwnRing::new(64)?, 1)?;
        let device = UringDevice::new(platform.clone(), primary);
        Ok(Self { platform, device })
    }

    /// Runs `future` to its end.
    pub(crate) fn wait<T: 'static>(&self, future: impl Future<Output = T> + 'static) -> io::Result<T> {
        self.platform.block_on(future)
    }

    /// The primary's superblock.
    pub(crate) fn superblock(&self) -> Result<Superblock, Failure> {
        Ok(self.read_superblock()??)
    }

    /// The same, with the reason why there is none.
    pub(crate) fn read_superblock(&self) -> io::Result<Result<Superblock, SuperblockError>> {
        let device = self.device.clone();
        self.wait(async move { read_superblock(&device).await })
    }
}

/// The superblock of the primary at `path`, without taking its lock.
pub(crate) fn look(path: &Path) -> Result<Superblock, Failure> {
    let bench = Bench::new(Primary::look(path)?)?;
    bench.superblock().map_err(|failure| failure.of(path.display()))
}

/// The path that names a primary for good: absolute, links resolved. A path that leads nowhere stays as it is.
pub(crate) fn canonical(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_owned())
}
