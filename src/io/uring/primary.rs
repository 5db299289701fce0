//! Opening a primary: a raw block device, or a regular file on a file system that does O_DIRECT.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, FileTypeExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;

use crate::format::BLOCK_BYTES;
use crate::io::Buffer;

nix::ioctl_read!(block_device_bytes, 0x12, 114, u64);

/// Why a primary cannot be opened.
#[derive(Debug, thiserror::Error)]
pub enum PrimaryError {
    #[error("{path}: there is no such file or device; `salvol create {path} --size SIZE --backing SPEC` makes a file")]
    Missing { path: PathBuf },
    #[error("{path}: is neither a block device nor a regular file")]
    Kind { path: PathBuf },
    #[error(
        "{path}: its file system does not do O_DIRECT, which the log needs; use a raw device, or a file on ext4 or XFS"
    )]
    NoDirect { path: PathBuf },
    #[error("{path}: in use: mounted, part of another device, or held by another salvol; unmount or detach it first")]
    Busy { path: PathBuf },
    #[error("{path}: permission denied; run as root, or give this user the device")]
    Denied { path: PathBuf },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

/// How a primary is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Access {
    /// For its one owner: locked, by O_EXCL on a device and by flock on the open file.
    Own,
    /// To read it while nobody owns it: locked, and write-protected disks will do.
    Hold,
    /// To look at, whoever owns it.
    Look,
}

/// An open primary.
#[derive(Debug)]
pub struct Primary {
    path: PathBuf,
    file: OwnedFd,
    bytes: u64,
    device: bool,
}

impl Primary {
    /// Opens the primary at `path` for its owner and takes its lock, waiting up to `patience` for a dead owner's last
    /// I/O to end: the kernel does not wait for it, and holds the file open until then.
    ///
    /// # Errors
    /// See [`PrimaryError`]; `Busy` when the lock stays taken.
    pub fn own(path: &Path, patience: Duration) -> Result<Self, PrimaryError> {
        let deadline = Instant::now() + patience;
        loop {
            match Self::open(path, Access::Own) {
                Err(PrimaryError::Busy { .. }) if Instant::now() < deadline => {
                    std::thread::sleep(Duration::from_millis(20));
                }
                other => return other,
            }
        }
    }

    /// Opens the primary at `path` to read it, and takes its lock.
    ///
    /// # Errors
    /// See [`PrimaryError`]; `Busy` when somebody owns it.
    pub fn hold(path: &Path) -> Result<Self, PrimaryError> {
        Self::open(path, Access::Hold)
    }

    /// Opens the primary at `path` to read it, without a lock.
    ///
    /// # Errors
    /// See [`PrimaryError`].
    pub fn look(path: &Path) -> Result<Self, PrimaryError> {
        Self::open(path, Access::Look)
    }

    fn open(path: &Path, access: Access) -> Result<Self, PrimaryError> {
        let fail = |source: io::Error| {
            let path = path.to_owned();
            match source.raw_os_error().map(Errno::from_raw) {
                Some(Errno::ENOENT) => PrimaryError::Missing { path },
                Some(Errno::EBUSY | Errno::EWOULDBLOCK) => PrimaryError::Busy { path },
                Some(Errno::EACCES | Errno::EPERM) => PrimaryError::Denied { path },
                _ => PrimaryError::Io { path, source },
            }
        };
        let kind = std::fs::metadata(path).map_err(fail)?.file_type();
        if !kind.is_block_device() && !kind.is_file() {
            return Err(PrimaryError::Kind { path: path.to_owned() });
        }
        let device = kind.is_block_device();
        let exclusive = if device && access != Access::Look { libc::O_EXCL } else { 0 };
        let file = OpenOptions::new()
            .read(true)
            .write(access == Access::Own)
            .custom_flags(libc::O_DIRECT | libc::O_CLOEXEC | exclusive)
            .open(path)
            .map_err(|source| match source.raw_os_error() {
                Some(libc::EINVAL) => PrimaryError::NoDirect { path: path.to_owned() },
                _ => fail(source),
            })?;
        let bytes = size(&file, device).map_err(fail)? / BLOCK_BYTES as u64 * BLOCK_BYTES as u64;
        let file = match access {
            Access::Own | Access::Hold => lock(file).map_err(|error| fail(error.into()))?,
            Access::Look => file.into(),
        };
        let primary = Self { path: path.to_owned(), file, bytes, device };
        primary.try_direct()?;
        Ok(primary)
    }

    /// Some file systems take the flag and refuse the I/O.
    fn try_direct(&self) -> Result<(), PrimaryError> {
        let path = || self.path.clone();
        let io = |source| PrimaryError::Io { path: path(), source };
        if self.bytes < BLOCK_BYTES as u64 {
            return Ok(());
        }
        let block = Buffer::new(BLOCK_BYTES).map_err(io)?;
        let file = File::from(self.file.try_clone().map_err(io)?);
        match block.write(|bytes| file.read_at(bytes, 0)) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => Err(PrimaryError::NoDirect { path: path() }),
            Err(source) => Err(io(source)),
            Ok(_) => Ok(()),
        }
    }

    /// Bytes of the primary, rounded down to whole blocks.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether it is a block device; otherwise a file.
    pub fn is_device(&self) -> bool {
        self.device
    }

    /// Fills `buffer` from byte `offset`, and waits for it: for threads that have no ring.
    ///
    /// # Errors
    /// The I/O error; a read that ends early is one.
    pub fn read_at(&self, offset: u64, buffer: &Buffer) -> io::Result<()> {
        let mut done = 0;
        while done < buffer.len() {
            let read = buffer.write(|bytes| {
                let at = i64::try_from(offset + done as u64).map_err(|_| Errno::EINVAL)?;
                nix::sys::uio::pread(&self.file, &mut bytes[done..], at)
            });
            match read {
                Ok(0) => return Err(io::ErrorKind::UnexpectedEof.into()),
                Ok(count) => done += count,
                Err(Errno::EINTR | Errno::EAGAIN) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Where it was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The open file with its lock.
    pub(super) fn into_file(self) -> OwnedFd {
        self.file
    }
}

fn size(file: &File, device: bool) -> io::Result<u64> {
    if !device {
        return Ok(file.metadata()?.len());
    }
    let mut bytes = 0;
    // SAFETY: the ioctl writes one u64 to where it is told, which is ours.
    unsafe { block_device_bytes(file.as_raw_fd(), &mut bytes) }?;
    Ok(bytes)
}

/// The lock belongs to the open file description, which I/O in flight keeps alive after its process has died.
fn lock(file: File) -> Result<OwnedFd, Errno> {
    // SAFETY: a plain call on a descriptor that is open. A guard that unlocks when dropped would be wrong here.
    Errno::result(unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) })?;
    Ok(file.into())
}
