//! Where a restored volume goes: a new sparse file, or a block device.
//!
//! A file gets its name when it is whole; until then it is `.NAME.partial` beside it. A device gets its first block last,
//! and zeros there first: half a volume is nothing that could be mounted. So whatever ends a restore leaves no wreck.
//!
//! Nothing that anybody might still want is overwritten without being told to: an existing file, a device that holds
//! something recognised. What is in use, or is the source itself, is not overwritten at all.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Seek, SeekFrom};
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, MutexGuard, PoisonError};

use nix::fcntl::{FallocateFlags, fallocate};

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
    #[error("{path}: is being written by another restore")]
    Restoring { path: PathBuf },
    #[error("{path}: is the primary that is restored from")]
    Itself { path: PathBuf },
    #[error("{path}: has {have} bytes, the volume has {need}")]
    Small { path: PathBuf, have: u64, need: u64 },
    #[error("{path}: is neither a file nor a block device")]
    Kind { path: PathBuf },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

/// The partial files that this process is writing.
static PARTIALS: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

fn partials() -> MutexGuard<'static, BTreeSet<PathBuf>> {
    PARTIALS.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Ends the process with `code`, having removed what it has not finished: for the thread that waits for signals.
pub fn exit_unfinished(code: i32) -> ! {
    // Held to the end, so that nothing becomes finished meanwhile.
    let partials = partials();
    for path in partials.iter() {
        let _ = std::fs::remove_file(path);
    }
    std::process::exit(code)
}

/// A target that is being written. What was written to a file and not [finished](Self::finish) is removed.
pub struct Target {
    path: PathBuf,
    file: File,
    bytes: u64,
    kind: Kind,
    scratch: Vec<u8>,
}

enum Kind {
    /// A file, sparse: what is not written is zeros. It has this name until it is finished.
    File { partial: PathBuf },
    /// A device, and what its first block will be.
    Device { first: Vec<u8> },
}

impl Target {
    /// Opens `path` for a volume of `bytes` bytes. `primary` is the one that is restored from.
    ///
    /// # Errors
    /// See [`TargetError`]; nothing has been changed then.
    pub fn open(path: &Path, bytes: u64, force: bool, primary: Option<&Path>) -> Result<Self, TargetError> {
        let failed = |source| TargetError::Io { path: path.to_owned(), source };
        let target = |path: PathBuf, file, kind| Self { path, file, bytes, kind, scratch: Vec::new() };
        match std::fs::metadata(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            Err(error) => return Err(failed(error)),
            Ok(found) if found.is_file() => check_existing(path, force, primary)?,
            Ok(found) if found.file_type().is_block_device() => {
                let target = target(path.to_owned(), device(path, bytes, force, primary)?, Kind::device());
                target.write_first().map_err(failed)?;
                return Ok(target);
            }
            Ok(_) => return Err(TargetError::Kind { path: path.to_owned() }),
        }
        // A link stays a link.
        let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        let mut name = OsString::from(".");
        name.push(path.file_name().ok_or_else(|| TargetError::Kind { path: path.clone() })?);
        name.push(".partial");
        let partial = path.with_file_name(name);
        let file = partial_file(&partial, bytes)?;
        partials().insert(partial.clone());
        Ok(target(path, file, Kind::File { partial }))
    }

    /// Whether it is a block device; otherwise a file.
    pub fn is_device(&self) -> bool {
        matches!(self.kind, Kind::Device { .. })
    }

    /// Writes blocks; neighbours go together. Zeros are left out where zeros are.
    pub(super) fn write(&mut self, blocks: &mut [(Block, &[u8])]) -> Result<(), TargetError> {
        blocks.sort_unstable_by_key(|(block, _)| *block);
        let mut rest = &blocks[..];
        if let (Kind::Device { first }, Some((Block(0), data))) = (&mut self.kind, rest.first()) {
            first.copy_from_slice(data);
            rest = &rest[1..];
        }
        while let Some((first, data)) = rest.first() {
            if !self.is_device() && data.iter().all(|byte| *byte == 0) {
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
    pub(super) fn zero(&mut self, mut block: Block, mut count: u64) -> Result<(), TargetError> {
        let Kind::Device { first } = &mut self.kind else { return Ok(()) };
        if block.0 == 0 && count > 0 {
            first.fill(0);
            (block, count) = (Block(1), count - 1);
        }
        if count == 0 {
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

    /// Makes everything durable, and then the target what it is to be.
    pub(super) fn finish(self) -> Result<(), TargetError> {
        let finished = self.file.sync_all().and_then(|()| match &self.kind {
            Kind::Device { .. } => self.write_first(),
            Kind::File { partial } => {
                let mut partials = partials();
                std::fs::rename(partial, &self.path)?;
                partials.remove(partial);
                let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
                File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
            }
        });
        finished.map_err(|source| self.failed(source))
    }

    /// Writes a device's first block as it is known by now, durably.
    fn write_first(&self) -> io::Result<()> {
        let Kind::Device { first } = &self.kind else { return Ok(()) };
        self.file.write_all_at(first, 0)?;
        self.file.sync_all()
    }

    /// Bytes of the volume.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn failed(&self, source: io::Error) -> TargetError {
        TargetError::Io { path: self.path.clone(), source }
    }
}

impl Kind {
    fn device() -> Self {
        Self::Device { first: vec![0; BLOCK_BYTES] }
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        if let Kind::File { partial } = &self.kind
            && partials().remove(partial)
        {
            let _ = std::fs::remove_file(partial);
        }
    }
}

/// Makes the file that will be the target; what a dead run left under its name is overwritten.
fn partial_file(partial: &Path, bytes: u64) -> Result<File, TargetError> {
    let failed = |source: io::Error| TargetError::Io { path: partial.to_owned(), source };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC);
    let file = options.open(partial).map_err(failed)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => return Err(TargetError::Restoring { path: partial.to_owned() }),
        Err(TryLockError::Error(error)) => return Err(failed(error)),
    }
    // Whoever had the lock a moment ago may have finished the file.
    let ours = file.metadata().map_err(failed)?.ino();
    if std::fs::symlink_metadata(partial).ok().map(|found| found.ino()) != Some(ours) {
        return Err(TargetError::Restoring { path: partial.to_owned() });
    }
    file.set_len(0).and_then(|()| file.set_len(bytes)).map_err(failed)?;
    Ok(file)
}

/// Whether a file that is there may be replaced.
fn check_existing(path: &Path, force: bool, primary: Option<&Path>) -> Result<(), TargetError> {
    let failed = |source| TargetError::Io { path: path.to_owned(), source };
    if is_same(path, primary) {
        return Err(TargetError::Itself { path: path.to_owned() });
    }
    if !force {
        return Err(TargetError::Exists { path: path.to_owned() });
    }
    // The primary of a volume that is attached is locked by its daemon.
    match File::open(path).map_err(failed)?.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(TargetError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(error)) => Err(failed(error)),
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

/// Whether both are one and the same, or one is the file behind the other, a loop device.
fn is_same(path: &Path, primary: Option<&Path>) -> bool {
    let identity = |path: &Path| {
        let found = std::fs::metadata(path).ok()?;
        let device = found.file_type().is_block_device();
        Some(if device { (0, found.rdev()) } else { (found.dev(), found.ino()) })
    };
    let identities = |path: &Path| [Some(path.to_owned()), behind_loop(path)].map(|path| identity(&path?));
    let (target, primary) = (identities(path), primary.map(identities));
    primary.is_some_and(|primary| target.iter().flatten().any(|one| primary.contains(&Some(*one))))
}

fn behind_loop(path: &Path) -> Option<PathBuf> {
    let found = std::fs::metadata(path).ok().filter(|found| found.file_type().is_block_device())?;
    let number = found.rdev();
    let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
    let file = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/loop/backing_file")).ok()?;
    Some(PathBuf::from(file.trim_end_matches('\n')))
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

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is the failure")]
mod tests {
    use super::*;

    #[test]
    fn a_file_has_its_name_only_when_it_is_whole() {
        let scratch = tempfile::tempdir().unwrap();
        let (path, partial) = (scratch.path().join("out"), scratch.path().join(".out.partial"));
        std::fs::write(&path, "precious").unwrap();
        // Left by a run that was killed.
        std::fs::write(&partial, vec![9; 100_000]).unwrap();
        let data = vec![1; BLOCK_BYTES];
        for finished in [false, true] {
            let mut target = Target::open(&path, 2 * BLOCK_BYTES as u64, true, None).unwrap();
            let second = Target::open(&path, 2 * BLOCK_BYTES as u64, true, None);
            assert!(matches!(second, Err(TargetError::Restoring { .. })));
            target.write(&mut [(Block(1), &data)]).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
            if finished {
                target.finish().unwrap();
            }
            assert!(!partial.exists() || !finished);
        }
        assert!(!partial.exists());
        assert_eq!(std::fs::read(&path).unwrap(), [vec![0; BLOCK_BYTES], data].concat());
    }

    #[test]
    fn a_device_gets_its_first_block_last() {
        let mut stand_in = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut stand_in, &[9; 2 * BLOCK_BYTES]).unwrap();
        let (file, path) = (stand_in.try_clone().unwrap(), PathBuf::new());
        let bytes = 2 * BLOCK_BYTES as u64;
        let mut target = Target { path, file, bytes, kind: Kind::device(), scratch: Vec::new() };
        let there = |at: u64| {
            let mut byte = [0];
            stand_in.read_exact_at(&mut byte, at).unwrap();
            byte[0]
        };
        target.write_first().unwrap();
        let data = vec![1; BLOCK_BYTES];
        target.write(&mut [(Block(1), &data), (Block(0), &data)]).unwrap();
        assert_eq!((there(0), there(BLOCK_BYTES as u64)), (0, 1));
        target.finish().unwrap();
        assert_eq!(there(0), 1);
    }
}
