//! The file or block device that a ring is on.

use std::fs::{File, Metadata, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::fd::AsFd;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};

use super::disk::{BLOCK, Disk, Displaced, Medium, read_block};
use super::identity::{Said, Unfit, superblock};
use super::superblock::RingSuperblock;
use crate::archive::StoreError;
use crate::archive::devices::rests_on;
use crate::format::{FormatError, Geometry, Superblock};
use crate::io::Buffer;

/// How long a writer waits for the lock: a dead one's last I/O holds it until it has ended.
const PATIENCE: Duration = Duration::from_secs(2);
const PAUSE: Duration = Duration::from_millis(20);

/// On what a ring is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RingKind {
    /// A regular file.
    File,
    /// A block device.
    Device,
}

/// What a new volume says of the store that it is to get.
#[derive(Debug, Clone, Copy)]
pub struct Provision<'a> {
    /// Of the volume that is to be made: a ring too small for it is refused.
    pub geometry: &'a Geometry,
    /// Its primary, which is there.
    pub primary: &'a Path,
    /// The size of a file that does not exist yet, in bytes.
    pub bytes: Option<u64>,
    /// Whether a volume that the place holds may be overwritten. Another volume's store never is.
    pub force: bool,
}

/// Where a ring is.
pub(super) struct Place {
    kind: RingKind,
    path: PathBuf,
}

impl Place {
    pub(super) fn new(kind: RingKind, path: &Path) -> Self {
        Self { kind, path: path.to_owned() }
    }

    fn said(&self) -> Said {
        Said(self.spec())
    }

    /// Looks at what is there, and makes a file that is not.
    pub(super) fn prepare(&self, provision: &Provision) -> Result<(), StoreError> {
        let said = self.said();
        let made = self.kind == RingKind::File && !self.path.exists();
        if made {
            let bytes = provision.bytes.ok_or_else(|| {
                said.refused("the file does not exist: give --backing-size SIZE to make it, or make it yourself")
            })?;
            self.make(bytes)?;
        }
        let checked = self.check(provision);
        if checked.is_err() && made {
            // Not even half a store: the next try may want another size.
            let _ = std::fs::remove_file(&self.path);
        }
        checked
    }

    /// Makes the file, all of it allocated.
    fn make(&self, bytes: u64) -> Result<(), StoreError> {
        let said = self.said();
        let failed = |error| said.io("cannot make the file", error);
        let length = i64::try_from(bytes / BLOCK * BLOCK).map_err(|_| failed(io::ErrorKind::FileTooLarge.into()))?;
        let mut options = OpenOptions::new();
        let file = options.write(true).create_new(true).mode(0o600).open(&self.path).map_err(failed)?;
        let made = nix::fcntl::posix_fallocate(&file, 0, length.max(BLOCK as i64)).map_err(io::Error::from);
        made.and_then(|()| file.sync_all()).and_then(|()| self.sync_parent()).map_err(|error| {
            // Best effort: without its space it is no use.
            let _ = std::fs::remove_file(&self.path);
            failed(error)
        })
    }

    fn sync_parent(&self) -> io::Result<()> {
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
    }

    fn check(&self, provision: &Provision) -> Result<(), StoreError> {
        let said = self.said();
        self.refuse_primary(provision.primary)?;
        let disk = self.own()?;
        if let Some(bytes) = provision.bytes
            && disk.bytes() != bytes / BLOCK * BLOCK
        {
            let have = disk.bytes();
            return Err(said.refused(format!("exists, with {have} bytes: a --backing-size must be that, or left out")));
        }
        match superblock(&disk) {
            Err(Unfit::None) => {}
            Ok(found) => {
                let Superblock { uuid, name, .. } = &found.volume;
                return Err(said.refused(format!(
                    "the store belongs to volume {uuid} ({name}): give another {}",
                    match self.kind {
                        RingKind::File => "file, or remove this one first when nobody needs that archive",
                        RingKind::Device =>
                            "device, or erase this one first (blkdiscard -z) when nobody needs that archive",
                    }
                )));
            }
            Err(unfit) => return Err(said.unfit(unfit)),
        }
        if !provision.force && holds_a_volume(&disk) {
            return Err(said.refused("holds a salvol volume: --force overwrites it, and nothing brings it back"));
        }
        let blocks = disk.bytes() / BLOCK;
        let planned = RingSuperblock::entries_for(provision.geometry, blocks);
        planned.map(drop).map_err(|need| said.too_small(disk.bytes(), need))
    }

    /// Refuses a place that is the volume's own primary, is below it, or rests on it.
    fn refuse_primary(&self, primary: &Path) -> Result<(), StoreError> {
        let said = self.said();
        let metadata = self.metadata()?;
        let Ok(primary) = std::fs::metadata(primary) else {
            return Ok(());
        };
        let (ours, its) = (device(&metadata), device(&primary));
        let same = metadata.dev() == primary.dev() && metadata.ino() == primary.ino();
        let on_primary = primary.file_type().is_block_device() && rests_on(ours, its);
        let below_primary = self.kind == RingKind::Device && rests_on(its, ours);
        if same || on_primary || below_primary {
            return Err(said.refused(
                "is the volume's own primary, or on it, or below it: an archive there would be lost with the volume",
            ));
        }
        Ok(())
    }

    /// What the path leads to, when it is of the kind that it was said to be: nothing is guessed.
    fn metadata(&self) -> Result<Metadata, StoreError> {
        let said = self.said();
        let metadata = std::fs::metadata(&self.path).map_err(|error| said.io("cannot look at it", error))?;
        let kind = metadata.file_type();
        match self.kind {
            RingKind::File if !kind.is_file() => Err(said.refused("is not a regular file")),
            RingKind::Device if !kind.is_block_device() => Err(said.refused("is not a block device")),
            _ => Ok(metadata),
        }
    }

    /// Opens the disk; `None` when it is a device that somebody has to himself.
    fn open(&self, write: bool) -> Result<Option<DirectDisk>, StoreError> {
        let said = self.said();
        self.metadata()?;
        let failed = |error| said.io("cannot open it", error);
        let exclusive = if write && self.kind == RingKind::Device { libc::O_EXCL } else { 0 };
        let open = |direct: i32| {
            let mut options = OpenOptions::new();
            options.read(true).write(write).custom_flags(libc::O_CLOEXEC | exclusive | direct).open(&self.path)
        };
        let (mut file, direct) = match open(libc::O_DIRECT) {
            Ok(file) => (file, true),
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => (open(0).map_err(failed)?, false),
            Err(error) if error.raw_os_error() == Some(libc::EBUSY) => return Ok(None),
            Err(error) => return Err(failed(error)),
        };
        // Also the size of a device.
        let bytes = file.seek(SeekFrom::End(0)).map_err(failed)? / BLOCK * BLOCK;
        let metadata = file.metadata().map_err(failed)?;
        let mut disk = DirectDisk { file, path: self.path.clone(), bytes, device: device(&metadata), direct };
        disk.try_direct().map_err(failed)?;
        Ok(Some(disk))
    }

    /// Opens the disk for writing and takes the lock; `None` while somebody else has it.
    fn try_own(&self) -> Result<Option<DirectDisk>, StoreError> {
        let Some(disk) = self.open(true)? else { return Ok(None) };
        // The lock is of the open file, which its I/O in flight keeps alive.
        match disk.file.try_lock() {
            Ok(()) => Ok(Some(disk)),
            Err(TryLockError::WouldBlock) => Ok(None),
            Err(TryLockError::Error(error)) => Err(self.said().io("cannot lock it", error)),
        }
    }

    fn busy(&self) -> StoreError {
        self.said().refused("in use: mounted, part of another device, or written to by another salvol")
    }
}

impl Medium for Place {
    fn look(&self) -> Result<Arc<dyn Disk>, StoreError> {
        Ok(Arc::new(self.open(false)?.ok_or_else(|| self.busy())?))
    }

    fn own(&self) -> Result<Arc<dyn Disk>, StoreError> {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Some(disk) = self.try_own()? {
                return Ok(Arc::new(disk));
            }
            if Instant::now() >= deadline {
                return Err(self.busy());
            }
            std::thread::sleep(PAUSE);
        }
    }

    fn spec(&self) -> String {
        let scheme = match self.kind {
            RingKind::File => "file",
            RingKind::Device => "dev",
        };
        format!("{scheme}:{}", self.path.display())
    }
}

/// Whether the disk has a volume's superblock, whole or damaged.
fn holds_a_volume(disk: &Arc<dyn Disk>) -> bool {
    let blocks = disk.bytes() / BLOCK;
    let holds = |block: Buffer| !matches!(Superblock::parse(block.bytes()), Err(FormatError::Magic { .. }));
    [0, blocks.saturating_sub(1)].iter().any(|at| read_block(&**disk, *at).is_ok_and(holds))
}

/// The device that it is, or is on.
fn device(metadata: &Metadata) -> u64 {
    if metadata.file_type().is_block_device() { metadata.rdev() } else { metadata.dev() }
}

/// What tells a file or device from every other one that exists at the same time. A device has many nodes.
fn identity(metadata: &Metadata) -> (bool, u64, u64) {
    let is_device = metadata.file_type().is_block_device();
    (is_device, device(metadata), if is_device { 0 } else { metadata.ino() })
}

/// A file or device, open for direct I/O where that can be had.
struct DirectDisk {
    file: File,
    /// Where it was when it was opened.
    path: PathBuf,
    bytes: u64,
    device: u64,
    direct: bool,
}

impl DirectDisk {
    /// Some file systems take the flag and refuse the I/O.
    fn try_direct(&mut self) -> io::Result<()> {
        if !self.direct || self.bytes < BLOCK {
            return Ok(());
        }
        match read_block(self, 0) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                let flags = nix::fcntl::fcntl(&self.file, nix::fcntl::F_GETFL)?;
                let flags = nix::fcntl::OFlag::from_bits_retain(flags) & !nix::fcntl::OFlag::O_DIRECT;
                nix::fcntl::fcntl(&self.file, nix::fcntl::F_SETFL(flags))?;
                self.direct = false;
                Ok(())
            }
            // Of other errors the reader tells, who may have another copy.
            _ => Ok(()),
        }
    }
}

impl Disk for DirectDisk {
    fn read_at(&self, offset: u64, buffer: &Buffer) -> io::Result<()> {
        if !self.direct {
            let (from, length) = (offset as i64, buffer.len() as i64);
            // Advice: where it is not taken a read-back proves less, and nothing is wrong with what is read.
            let _ = posix_fadvise(self.file.as_fd(), from, length, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
        }
        buffer.write(|bytes| self.file.read_exact_at(bytes, offset))
    }

    fn write_at(&self, offset: u64, buffer: &Buffer) -> io::Result<()> {
        self.file.write_all_at(buffer.bytes(), offset)
    }

    fn sync(&self) -> io::Result<()> {
        loop {
            match nix::unistd::fdatasync(&self.file) {
                Err(Errno::EINTR) => {}
                other => return Ok(other?),
            }
        }
    }

    fn bytes(&self) -> u64 {
        self.bytes
    }

    fn device(&self) -> Option<u64> {
        Some(self.device)
    }

    fn displaced(&self) -> io::Result<Option<Displaced>> {
        match std::fs::metadata(&self.path) {
            Ok(there) if identity(&there) == identity(&self.file.metadata()?) => Ok(None),
            Ok(_) => Ok(Some(Displaced::Replaced)),
            Err(error) if matches!(error.kind(), io::ErrorKind::NotFound | io::ErrorKind::NotADirectory) => {
                Ok(Some(Displaced::Removed))
            }
            Err(error) => Err(error),
        }
    }
}
