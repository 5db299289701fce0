//! A primary that no daemon serves, for the commands that read or write it themselves.

use std::io;
use std::path::{Path, PathBuf};

use salvol::control::{SuperblockError, read_superblock};
use salvol::format::Superblock;
use salvol::io::{Bench, Primary};

use super::Failure;

/// The superblock of a primary, or why there is none.
pub(crate) fn superblock(bench: &Bench) -> io::Result<Result<Superblock, SuperblockError>> {
    let device = bench.device.clone();
    bench.wait(async move { read_superblock(&device).await })
}

/// The superblock of the primary at `path`, without taking its lock.
pub(crate) fn look(path: &Path) -> Result<Superblock, Failure> {
    let bench = Bench::new(Primary::look(path)?)?;
    superblock(&bench)?.map_err(|error| Failure::from(error).of(path.display()))
}

/// The path that names a primary for good: absolute, links resolved. A path that leads nowhere stays as it is.
pub(crate) fn canonical(path: &Path) -> PathBuf {
    std::fs::canonicalize(path).or_else(|_| std::path::absolute(path)).unwrap_or_else(|_| path.to_owned())
}
