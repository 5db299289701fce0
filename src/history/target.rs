//! Where a restored volume goes: a new sparse file, or a block device.
//!
//! Nothing that anybody might still want is overwritten without being told to: an existing file, a device that holds
//! something recognised. What is in use, or is the source itself, is not overwritten at all.

use std::fs::{File, OpenOptions};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, Flock, FlockArg, fallocate};

use crate::format::{BLOCK_BYTES, Block, FormatError, Superblock};

/// Blocks that are written together.
const RUN_BLOCKS: usize = 256;

/// Why a target cannot be written.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    #[error("{path}: is there already; give another name, or overwrite it with --force")]
    Exists { path: PathBuf },
    #[error("{path}: holds {what}; --force overwrites it")]
    Holds { path: PathBuf, what: String },
    #[error("{path}: is in use: mounted, part of another device, or a volume that is attached")]
    InUse { path: PathBuf },
    #[error("{path}: is the primary that is restored from")]
    Itself { path: PathBuf },
    #[error("{path}: has {have} bytes, the volume has {need}")]
    Small { path: PathBuf, have: u64, need: u64 },
    #[error("{path}: is neither a file nor a block device")]
    Kind { path: PathBuf },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

/// A target that is being written. One that is dropped before [`Self::finish`] and was made here is removed.
pub struct Target {
    path: PathBuf,
    file: File,
    device: bool,
    bytes: u64,
    /// The file was made here: what is not written is zeros, and a failure leaves nothing behind.
    created: bool,
    finished: bool,
    scratch: Vec<u8>,
}

impl Target {
    /// Opens `path` for a volume of `bytes` bytes. `primary` is the one that is restored from.
    ///
    /// # Errors
    /// See [`TargetError`]; nothing has been changed then.
    pub fn open(path: &Path, bytes: u64, force: bool, primary: Option<&Path>) -> Result<Self, TargetError> {
        let failed = |source| TargetError::Io { path: path.to_owned(), source };
        let (file, device, created) = match std::fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                let file = OpenOptions::new().read(true).write(true).create_new(true).open(path).map_err(failed)?;
                (file, false, true)
            }
            Err(error) => return Err(failed(error)),
            Ok(found) if found.is_file() => (existing_file(path, force, primary)?, false, false),
            Ok(found) if found.file_type().is_block_device() => (device(path, bytes, force, primary)?, true, false),
            Ok(_) => return Err(TargetError::Kind { path: path.to_owned() }),
        };
        let target = Self { path: path.to_owned(), file, device, bytes, created, finished: false, scratch: Vec::new() };
        if !device {
            target.file.set_len(0).and_then(|()| target.file.set_len(bytes)).map_err(failed)?;
        }
        Ok(target)
    }

    /// Whether it is a block device; otherwise a file.
    pub fn is_device(&self) -> bool {
        self.device
    }

    /// Writes blocks; neighbours go together. Zeros are left out where zeros are.
    pub(super) fn write(&mut self, blocks: &mut [(Block, &[u8])]) -> Result<(), TargetError> {
        blocks.sort_unstable_by_key(|(block, _)| *block);
        let mut rest = &blocks[..];
        while let Some((first, data)) = rest.first() {
            if !self.device && data.iter().all(|byte| *byte == 0) {
                rest = &rest[1..];
                continue;
            }
            let follows = |(rank, (block, _)): (usize, &(Block, &[u8]))| block.0 == first.0 + rank as u64;
            let run = rest.iter().enumerate().take(RUN_BLOCKS).take_while(|entry| follows(*entry)).count();
            self.scratch.clear();
            for (_, data) in &rest[..run] {
                self.scratch.extend_from_slice(data);
            }
            let at = first.0 * BLOCK_BYTES as u64;
            self.file.write_all_at(&self.scratch, at).map_err(|source| self.failed(source))?;
            rest = &rest[run..];
        }
        Ok(())
    }

    /// Makes `count` blocks from `block` zeros. A file has them already.
    pub(super) fn zero(&mut self, block: Block, count: u64) -> Result<(), TargetError> {
        if !self.device || count == 0 {
            return Ok(());
        }
        let (at, bytes) = (block.0 * BLOCK_BYTES as u64, count * BLOCK_BYTES as u64);
        let by_hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let by_zeroing = FallocateFlags::FALLOC_FL_ZERO_RANGE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        for how in [by_hole, by_zeroing] {
            // Both leave zeros or fail: the kernel does not take a discard for a zeroing.
            if fallocate(&self.file, how, at.cast_signed(), bytes.cast_signed()).is_ok() {
                return Ok(());
            }
        }
        let zeros = vec![0; RUN_BLOCKS * BLOCK_BYTES];
        for done in (0..bytes).step_by(zeros.len()) {
            let piece = usize::try_from(bytes - done).unwrap_or(usize::MAX).min(zeros.len());
            self.file.write_all_at(&zeros[..piece], at + done).map_err(|source| self.failed(source))?;
        }
        Ok(())
    }

    /// Makes everything durable.
    pub(super) fn finish(mut self) -> Result<(), TargetError> {
        self.file.sync_all().map_err(|source| self.failed(source))?;
        if self.created {
            let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
            let directory = File::open(parent.unwrap_or(Path::new(".")));
            directory.and_then(|directory| directory.sync_all()).map_err(|source| self.failed(source))?;
        }
        self.finished = true;
        Ok(())
    }

    /// Bytes of the volume.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn failed(&self, source: io::Error) -> TargetError {
        TargetError::Io { path: self.path.clone(), source }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if self.created && !self.finished {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn existing_file(path: &Path, force: bool, primary: Option<&Path>) -> Result<File, TargetError> {
    let failed = |source| TargetError::Io { path: path.to_owned(), source };
    if is_same(path, primary) {
        return Err(TargetError::Itself { path: path.to_owned() });
    }
    if !force {
        return Err(TargetError::Exists { path: path.to_owned() });
    }
    let file = OpenOptions::new().read(true).write(true).open(path).map_err(failed)?;
    // The primary of a volume that is attached is locked by its daemon.
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => lock.unlock().map_err(|(_, error)| failed(error.into())),
        Err((_, Errno::EWOULDBLOCK)) => Err(TargetError::InUse { path: path.to_owned() }),
        Err((_, error)) => Err(failed(error.into())),
    }
}

fn device(path: &Path, bytes: u64, force: bool, primary: Option<&Path>) -> Result<File, TargetError> {
    let failed = |source: io::Error| match source.raw_os_error() {
        Some(libc::EBUSY) => TargetError::InUse { path: path.to_owned() },
        _ => TargetError::Io { path: path.to_owned(), source },
    };
    if is_same(path, primary) {
        return Err(TargetError::Itself { path: path.to_owned() });
    }
    // Exclusively: the kernel refuses what is mounted, or part of something else.
    let exclusive = libc::O_EXCL | libc::O_CLOEXEC;
    let mut file = OpenOptions::new().read(true).write(true).custom_flags(exclusive).open(path).map_err(failed)?;
    let have = file.seek(SeekFrom::End(0)).map_err(failed)?;
    if have < bytes {
        return Err(TargetError::Small { path: path.to_owned(), have, need: bytes });
    }
    if have > bytes {
        log::warn!("{}: is larger than the volume; what lies behind {bytes} bytes stays as it is", path.display());
    }
    if let Some(what) = recognised(path, &file, have).filter(|_| !force) {
        return Err(TargetError::Holds { path: path.to_owned(), what });
    }
    Ok(file)
}

fn is_same(path: &Path, primary: Option<&Path>) -> bool {
    let identity = |path: &Path| {
        let found = std::fs::metadata(path).ok()?;
        let device = found.file_type().is_block_device();
        Some(if device { (0, found.rdev()) } else { (found.dev(), found.ino()) })
    };
    primary.is_some_and(|primary| identity(primary).is_some_and(|one| identity(path) == Some(one)))
}

/// What is on the device, when it is something: a salvol volume, or anything that blkid knows.
fn recognised(path: &Path, file: &File, bytes: u64) -> Option<String> {
    for at in [0, bytes.saturating_sub(BLOCK_BYTES as u64)] {
        let mut block = vec![0; BLOCK_BYTES];
        if file.read_exact_at(&mut block, at).is_ok()
            && !matches!(Superblock::parse(&block), Err(FormatError::Magic { .. } | FormatError::Length { .. }))
        {
            return Some("a salvol volume".to_owned());
        }
    }
    recognise(path)
}

/// What util-linux finds on `path`, as a phrase. Where it cannot be asked, anything may be there.
pub fn recognise(path: &Path) -> Option<String> {
    // /sbin is not in everybody's PATH.
    let probe = ["blkid", "/sbin/blkid", "/usr/sbin/blkid"].iter().find_map(|program| {
        let mut command = Command::new(program);
        command.args(["-p", "-o", "value", "-s", "TYPE", "-s", "PTTYPE", "--"]).arg(path).output().ok()
    });
    let Some(probe) = probe else {
        return Some("who knows what: there is no blkid to look at it; install util-linux".to_owned());
    };
    match probe.status.code() {
        Some(0) => {
            let kinds = String::from_utf8_lossy(&probe.stdout).split_whitespace().collect::<Vec<_>>().join(", ");
            Some(if kinds.is_empty() { "something (says blkid)".to_owned() } else { format!("{kinds} (says blkid)") })
        }
        Some(2) => None,
        Some(8) => Some("several things at once (says blkid)".to_owned()),
        _ => Some(format!("who knows what: blkid failed ({})", probe.status)),
    }
}
