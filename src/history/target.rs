//! Where a restored volume goes: a new sparse file, or a block device.
//!
//! A file gets its name when it is whole; until then it is `.NAME.partial` beside it. Either gets its first block last:
//! until then that says how far the restore is (`unfinished.rs`), so half a volume is nothing that could be mounted, and a
//! restore that was interrupted goes on. So whatever ends a restore leaves no wreck.
//!
//! Nothing that anybody might still want is overwritten without being told to: an existing file, also one that appears
//! meanwhile, a `.NAME.partial` that no restore has left, a device that holds something recognised. What is in use, or is
//! the source itself, is not overwritten at all. An image holds everything, so a file can be read by its owner only.

use std::ffi::OsString;
use std::fs::{File, OpenOptions, Permissions, TryLockError};
use std::io::{self, IoSlice, Seek, SeekFrom};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, FallocateFlags, RenameFlags, fallocate, renameat2};
use nix::sys::uio::pwritev;

use super::occupied::{is_one_of, is_superblock, recognised};
use super::unfinished::Unfinished;
use crate::format::{BLOCK_BYTES, Block, Superblock};

/// Blocks that are written together.
const RUN_BLOCKS: usize = 256;
/// Fewer blocks in a row are not worth a system call of their own to set room aside.
const RESERVE_BLOCKS: u64 = 8;
const ZEROS: &[u8] = &[0; BLOCK_BYTES];
/// Who may read an image.
const MODE: u32 = 0o600;
/// Segments of another restore that was interrupted here, at most; more is nothing that was written by us.
const MANY_SEGMENTS: usize = 1 << 24;

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
    #[error("{path}: is what is restored from, or in it")]
    Itself { path: PathBuf },
    #[error("{path}: is there, and no restore says that it is its own; remove it, or overwrite it with --force")]
    Partial { path: PathBuf },
    #[error("{path}: is a directory's name; give the name of a file")]
    Directory { path: PathBuf },
    #[error("{path}: has {have} bytes, the volume has {need}")]
    Small { path: PathBuf, have: u64, need: u64 },
    #[error("{path}: is neither a file nor a block device")]
    Kind { path: PathBuf },
    #[error("{path}: {source}")]
    Io { path: PathBuf, source: io::Error },
}

/// A change of a target, before it is made.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// Data, or zeros.
    Write { at: u64, bytes: u64 },
    /// What has been written is made durable.
    Sync,
    /// The first block is written: what is done so far, or at the end its own data.
    First,
    /// A file gets its name.
    Name,
    /// An unfinished target that is of no use goes.
    Remove,
}

/// Is told of every change, and may forbid it: so a test can end a restore anywhere.
pub type Watch = Arc<dyn Fn(Change) -> io::Result<()> + Send + Sync>;

/// What is to be written to a target.
pub(super) struct Writing<'a> {
    /// Bytes of the volume.
    pub bytes: u64,
    pub identity: [u8; 32],
    /// Segments that the point needs.
    pub segments: usize,
    /// What is restored from: primary, store.
    pub sources: &'a [PathBuf],
    pub force: bool,
    pub watch: Option<Watch>,
}

/// A target that is being written, by any number of threads. One that is dropped stays as it is, as if the process had died.
pub struct Target {
    path: PathBuf,
    file: File,
    bytes: u64,
    kind: Kind,
    /// Whether what has the file's name may be replaced.
    force: bool,
    identity: [u8; 32],
    /// What the first block will be.
    first: Mutex<Vec<u8>>,
    /// What an earlier restore of the same identity has recorded.
    resumed: Option<Vec<bool>>,
    /// Something has been recorded, now or before.
    recorded: AtomicBool,
    /// The kernel has failed to make something durable, and does not say again what: nothing is recorded any more.
    unsure: AtomicBool,
    /// Room has been set aside, so what was never written may be no hole.
    reserved: AtomicBool,
    watch: Option<Watch>,
}

enum Kind {
    /// A file, sparse: what was never written is zeros. It has this name until it is finished.
    File {
        partial: PathBuf,
    },
    Device,
}

impl Target {
    /// What can be refused before anything is read.
    ///
    /// # Errors
    /// See [`TargetError`].
    pub(super) fn admit(path: &Path, force: bool, sources: &[PathBuf]) -> Result<(), TargetError> {
        match std::fs::metadata(path) {
            Ok(found) if found.is_file() => check_existing(path, force, sources),
            Ok(_) => Ok(()),
            Err(_) if path.as_os_str().as_bytes().ends_with(b"/") => {
                Err(TargetError::Directory { path: path.to_owned() })
            }
            Err(_) if is_one_of(path, sources) => Err(TargetError::Itself { path: path.to_owned() }),
            Err(_) => Ok(()),
        }
    }

    /// Opens `path`. When an earlier restore of the same identity was interrupted there, goes on from what it had recorded.
    ///
    /// # Errors
    /// See [`TargetError`]; nothing has been changed then.
    pub(super) fn open(path: &Path, writing: &Writing<'_>) -> Result<Self, TargetError> {
        let failed = |source| TargetError::Io { path: path.to_owned(), source };
        Self::admit(path, writing.force, writing.sources)?;
        let (path, file, kind) = match std::fs::metadata(path) {
            Ok(found) if found.file_type().is_block_device() => (path.to_owned(), device(path, writing)?, Kind::Device),
            Ok(found) if !found.is_file() => return Err(TargetError::Kind { path: path.to_owned() }),
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed(error)),
            _ => {
                // A link stays a link.
                let path = std::fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
                let partial = partial_name(&path)?;
                (path, partial_file(&partial)?, Kind::File { partial })
            }
        };
        Self::begin(path, file, kind, writing)
    }

    /// Goes on with what is in `file`, or starts over.
    fn begin(path: PathBuf, file: File, kind: Kind, writing: &Writing<'_>) -> Result<Self, TargetError> {
        let found = unfinished(&file, writing.segments);
        let length =
            if matches!(kind, Kind::Device) { writing.bytes } else { file.metadata().map_or(0, |file| file.len()) };
        let ours = found.as_ref().filter(|found| {
            found.identity == writing.identity && found.done.len() == writing.segments && length == writing.bytes
        });
        if let Kind::File { partial } = &kind {
            let failed = |source| TargetError::Io { path: partial.clone(), source };
            // A run that was killed before its first record has left a hole.
            let anybody = found.is_none() && length > 0 && file.metadata().map_err(failed)?.blocks() > 0;
            if anybody && !writing.force {
                return Err(TargetError::Partial { path: partial.clone() });
            }
            file.set_permissions(Permissions::from_mode(MODE)).map_err(failed)?;
        }
        let mut target = Self {
            path,
            file,
            bytes: writing.bytes,
            kind,
            force: writing.force,
            identity: writing.identity,
            first: Mutex::new(vec![0; BLOCK_BYTES]),
            resumed: ours.map(|found| found.done.clone()),
            recorded: AtomicBool::new(false),
            unsure: AtomicBool::new(false),
            reserved: AtomicBool::new(false),
            watch: writing.watch.clone(),
        };
        if let Some(done) = &target.resumed {
            target.recorded = AtomicBool::new(done.contains(&true));
            return Ok(target);
        }
        let place = target.place().display();
        if found.is_some() {
            log::warn!("{place}: a restore of another point, volume or size was interrupted here; starting over");
        } else if !target.is_device() && length > 0 {
            log::warn!("{place}: an interrupted restore does not say what it had done; starting over");
        }
        let record = target.record_of(&vec![false; writing.segments]);
        if let Err(source) =
            target.clear().and_then(|()| target.forget_superblocks()).and_then(|()| target.write_first(&record))
        {
            target.remove();
            return Err(target.failed(source));
        }
        Ok(target)
    }

    /// Makes a file zeros.
    fn clear(&self) -> io::Result<()> {
        if self.is_device() {
            return Ok(());
        }
        self.file.set_len(0)?;
        self.file.set_len(self.bytes)
    }

    /// Overwrites the superblocks of a volume or a store that was on the device, which could be found again by the one at its
    /// end: opening that volume would overwrite what is restored.
    fn forget_superblocks(&self) -> io::Result<()> {
        if !self.is_device() {
            return Ok(());
        }
        let end = (&self.file).seek(SeekFrom::End(0))? / BLOCK_BYTES as u64;
        let mut block = vec![0; BLOCK_BYTES];
        let mut read = |at: u64| match self.file.read_exact_at(&mut block, at * BLOCK_BYTES as u64) {
            Ok(()) => Some(block.clone()),
            Err(_) => None,
        };
        let Some(last) = end.checked_sub(1) else { return Ok(()) };
        let first = read(0);
        let volume = first.as_ref().and_then(|block| Superblock::parse(block).ok());
        let copy = volume.map_or(last, |volume| volume.geometry.copy_at() / BLOCK_BYTES as u64).min(last);
        for at in [0, copy, last] {
            if read(at).is_some_and(|block| is_superblock(&block)) {
                let at = at * BLOCK_BYTES as u64;
                log::info!("{}: the salvol superblock at {at:#x} is overwritten", self.path.display());
                self.may(Change::Write { at, bytes: BLOCK_BYTES as u64 })?;
                self.file.write_all_at(ZEROS, at)?;
            }
        }
        self.sync(false)
    }

    /// Which segments an earlier restore says are there.
    pub(super) fn resumed(&self) -> Option<&[bool]> {
        self.resumed.as_deref()
    }

    /// Where the data is until it is finished.
    pub(super) fn place(&self) -> &Path {
        match &self.kind {
            Kind::File { partial } => partial,
            Kind::Device => &self.path,
        }
    }

    /// Whether it is a block device; otherwise a file.
    pub fn is_device(&self) -> bool {
        matches!(self.kind, Kind::Device)
    }

    /// Writes blocks; neighbours go together. In a file zeros are holes.
    pub(super) fn write(&self, blocks: &mut [(Block, &[u8])]) -> Result<(), TargetError> {
        blocks.sort_unstable_by_key(|(block, _)| *block);
        let mut rest = &blocks[..];
        if let Some((Block(0), data)) = rest.first() {
            self.first().copy_from_slice(data);
            rest = &rest[1..];
        }
        let hole = |data: &[u8]| !self.is_device() && data == ZEROS;
        while let Some((first, data)) = rest.first() {
            if hole(data) {
                self.zero(*first, 1)?;
                rest = &rest[1..];
                continue;
            }
            let goes_with = |(rank, (block, data)): (usize, &(Block, &[u8]))| {
                block.0 == first.0 + rank as u64 && (rank == 0 || !hole(data))
            };
            let run = rest.iter().enumerate().take(RUN_BLOCKS).take_while(|entry| goes_with(*entry)).count();
            self.write_run(*first, &rest[..run]).map_err(|source| self.failed(source))?;
            rest = &rest[run..];
        }
        Ok(())
    }

    /// Writes blocks that follow each other.
    fn write_run(&self, first: Block, blocks: &[(Block, &[u8])]) -> io::Result<()> {
        let mut at = first.0 * BLOCK_BYTES as u64;
        self.may(Change::Write { at, bytes: (blocks.len() * BLOCK_BYTES) as u64 })?;
        if let [(_, data)] = blocks {
            return self.file.write_all_at(data, at);
        }
        let mut slices: Vec<IoSlice<'_>> = blocks.iter().map(|(_, data)| IoSlice::new(data)).collect();
        let mut left = &mut slices[..];
        while !left.is_empty() {
            match pwritev(&self.file, left, at.cast_signed()) {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Ok(written) => {
                    at += written as u64;
                    IoSlice::advance_slices(&mut left, written);
                }
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Ok(())
    }

    /// Makes `count` blocks from `block` zeros. A new file has them already.
    pub(super) fn zero(&self, mut block: Block, mut count: u64) -> Result<(), TargetError> {
        if block.0 == 0 && count > 0 {
            self.first().fill(0);
            (block, count) = (Block(1), count - 1);
        }
        let holes = !self.is_device() && self.resumed.is_none() && !self.reserved.load(Ordering::Relaxed);
        if count == 0 || holes {
            return Ok(());
        }
        let (at, bytes) = (block.0 * BLOCK_BYTES as u64, count * BLOCK_BYTES as u64);
        self.may(Change::Write { at, bytes })
            .and_then(|()| self.zero_bytes(at, bytes))
            .map_err(|source| self.failed(source))
    }

    fn zero_bytes(&self, at: u64, bytes: u64) -> io::Result<()> {
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
            self.file.write_all_at(&zeros[..piece], at + done)?;
        }
        Ok(())
    }

    /// Sets aside room in a file for `count` blocks from `block`, when they are many: then the room is one piece, whatever
    /// the order in which they come, each write is cheaper, and a disk that is too small is known at once.
    pub(super) fn reserve(&self, block: Block, count: u64) -> Result<(), TargetError> {
        if self.is_device() || count < RESERVE_BLOCKS {
            return Ok(());
        }
        let (at, bytes) = (block.0 * BLOCK_BYTES as u64, count * BLOCK_BYTES as u64);
        self.reserved.store(true, Ordering::Relaxed);
        match fallocate(&self.file, FallocateFlags::FALLOC_FL_KEEP_SIZE, at.cast_signed(), bytes.cast_signed()) {
            Err(error @ (Errno::ENOSPC | Errno::EDQUOT | Errno::EFBIG)) => Err(self.failed(error.into())),
            // A file system that cannot does without.
            _ => Ok(()),
        }
    }

    /// Reads what is there, to be compared with what should be.
    pub(super) fn read(&self, block: Block, into: &mut [u8]) -> io::Result<()> {
        self.file.read_exact_at(into, block.0 * BLOCK_BYTES as u64)
    }

    /// Records that all blocks of the segments that are `done` have been written, once they are durable.
    pub(super) fn record(&self, done: &[bool]) -> Result<(), TargetError> {
        let recorded = self.sync(false).and_then(|()| self.write_first(&self.record_of(done)));
        recorded.map_err(|source| self.failed(source))?;
        self.recorded.fetch_or(done.contains(&true), Ordering::Relaxed);
        Ok(())
    }

    fn record_of(&self, done: &[bool]) -> Vec<u8> {
        Unfinished { identity: self.identity, done: done.to_vec() }.encode()
    }

    /// Makes everything durable, and then the target what it is to be.
    pub(super) fn finish(&self) -> Result<(), TargetError> {
        let finished = self.sync(true).and_then(|()| self.write_first(&self.first()));
        finished.map_err(|source| self.failed(source))?;
        let Kind::File { partial } = &self.kind else { return Ok(()) };
        if self.force && std::fs::symlink_metadata(&self.path).is_ok() {
            // It may be another file than the one that was looked at in the beginning.
            check_replaceable(&self.path)?;
        }
        self.name(partial).map_err(|source| match source.kind() {
            io::ErrorKind::AlreadyExists => TargetError::Exists { path: self.path.clone() },
            _ => self.failed(source),
        })
    }

    /// Gives a file its name.
    fn name(&self, partial: &Path) -> io::Result<()> {
        self.may(Change::Name)?;
        if self.force {
            std::fs::rename(partial, &self.path)?
        } else {
            rename_new(partial, &self.path)?
        }
        let parent = self.path.parent().filter(|parent| !parent.as_os_str().is_empty());
        File::open(parent.unwrap_or(Path::new(".")))?.sync_all()
    }

    /// Whether a restore of the same identity could go on from something.
    pub(super) fn is_recorded(&self) -> bool {
        self.recorded.load(Ordering::Relaxed)
    }

    /// Whether what is written can still be recorded.
    pub(super) fn is_sure(&self) -> bool {
        !self.unsure.load(Ordering::Relaxed)
    }

    /// Removes what has been written: a file is not there, a device has zeros in its first block.
    pub(super) fn remove(&self) {
        // Best effort: there is an error to be told already.
        let _ = self.may(Change::Remove).and_then(|()| match &self.kind {
            Kind::File { partial } => std::fs::remove_file(partial),
            Kind::Device => self.write_first(ZEROS),
        });
    }

    fn first(&self) -> MutexGuard<'_, Vec<u8>> {
        self.first.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Writes the first block, durably.
    fn write_first(&self, block: &[u8]) -> io::Result<()> {
        self.may(Change::First)?;
        let hole = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let is_hole = !self.is_device() && block == ZEROS && fallocate(&self.file, hole, 0, BLOCK_BYTES as i64).is_ok();
        if !is_hole {
            self.file.write_all_at(block, 0)?;
        }
        self.sync(false)
    }

    fn sync(&self, all: bool) -> io::Result<()> {
        self.may(Change::Sync)?;
        let synched = if all { self.file.sync_all() } else { self.file.sync_data() };
        self.unsure.fetch_or(synched.is_err(), Ordering::Relaxed);
        if self.is_sure() { synched } else { Err(synched.err().unwrap_or_else(|| io::ErrorKind::Other.into())) }
    }

    fn may(&self, change: Change) -> io::Result<()> {
        self.watch.as_ref().map_or(Ok(()), |watch| watch(change))
    }

    /// Bytes of the volume.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    fn failed(&self, source: io::Error) -> TargetError {
        TargetError::Io { path: self.path.clone(), source }
    }
}

/// Renames a file, unless the name is taken.
fn rename_new(from: &Path, to: &Path) -> io::Result<()> {
    match renameat2(AT_FDCWD, from, AT_FDCWD, to, RenameFlags::RENAME_NOREPLACE) {
        // Not every file system can do that. A link never replaces anything either.
        Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => {}
        other => return Ok(other?),
    }
    match std::fs::hard_link(from, to) {
        Ok(()) => return std::fs::remove_file(from),
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Err(error),
        Err(_) => {}
    }
    match std::fs::symlink_metadata(to) {
        Ok(_) => Err(io::ErrorKind::AlreadyExists.into()),
        Err(_) => std::fs::rename(from, to),
    }
}

fn partial_name(path: &Path) -> Result<PathBuf, TargetError> {
    let mut name = OsString::from(".");
    name.push(path.file_name().ok_or_else(|| TargetError::Kind { path: path.to_owned() })?);
    name.push(".partial");
    Ok(path.with_file_name(name))
}

/// What the first block of `file` says of a restore that is not finished.
fn unfinished(file: &File, segments_max: usize) -> Option<Unfinished> {
    let mut block = vec![0; BLOCK_BYTES];
    file.read_exact_at(&mut block, 0).ok()?;
    Unfinished::parse(&block, segments_max.max(MANY_SEGMENTS))
}

/// Opens the file that will be the target, as a dead run has left it.
fn partial_file(partial: &Path) -> Result<File, TargetError> {
    let failed = |source: io::Error| TargetError::Io { path: partial.to_owned(), source };
    let mut options = OpenOptions::new();
    options.read(true).write(true).create(true).truncate(false).mode(MODE);
    options.custom_flags(libc::O_NOFOLLOW | libc::O_CLOEXEC);
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
    Ok(file)
}

/// Whether a file that is there may be replaced.
fn check_existing(path: &Path, force: bool, sources: &[PathBuf]) -> Result<(), TargetError> {
    if is_one_of(path, sources) {
        return Err(TargetError::Itself { path: path.to_owned() });
    }
    if !force {
        return Err(TargetError::Exists { path: path.to_owned() });
    }
    check_replaceable(path)
}

/// Whether what has the name is a file that nobody uses.
fn check_replaceable(path: &Path) -> Result<(), TargetError> {
    let failed = |source| TargetError::Io { path: path.to_owned(), source };
    if !std::fs::metadata(path).map_err(failed)?.is_file() {
        return Err(TargetError::Kind { path: path.to_owned() });
    }
    // The primary of a volume that is attached is locked by its daemon.
    match File::open(path).map_err(failed)?.try_lock() {
        Ok(()) => Ok(()),
        Err(TryLockError::WouldBlock) => Err(TargetError::InUse { path: path.to_owned() }),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

fn device(path: &Path, writing: &Writing<'_>) -> Result<File, TargetError> {
    let (bytes, sources) = (writing.bytes, writing.sources);
    let failed = |source: io::Error| match source.raw_os_error() {
        Some(libc::EBUSY) => TargetError::InUse { path: path.to_owned() },
        _ => TargetError::Io { path: path.to_owned(), source },
    };
    if is_one_of(path, sources) {
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
    // Half of what is restored may look like something by now; it is ours while its first block says so.
    let ours = unfinished(&file, writing.segments).is_some_and(|found| found.identity == writing.identity);
    if let Some(what) = recognised(path, &file, have).filter(|_| !writing.force && !ours) {
        return Err(TargetError::Holds { path: path.to_owned(), what });
    }
    Ok(file)
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is the failure")]
mod tests {
    use super::*;

    fn writing(identity: u8) -> Writing<'static> {
        let bytes = 3 * BLOCK_BYTES as u64;
        Writing { bytes, identity: [identity; 32], segments: 2, sources: &[], force: true, watch: None }
    }

    #[test]
    fn a_file_has_its_name_only_when_it_is_whole() {
        let scratch = tempfile::tempdir().unwrap();
        let (path, partial) = (scratch.path().join("out"), scratch.path().join(".out.partial"));
        std::fs::write(&path, "precious").unwrap();
        // Left by a run that was killed.
        std::fs::write(&partial, vec![9; 100_000]).unwrap();
        let data = vec![1; BLOCK_BYTES];
        for finished in [false, true] {
            let target = Target::open(&path, &writing(1)).unwrap();
            assert!(target.resumed().is_none_or(|done| done == [false; 2]));
            let second = Target::open(&path, &writing(1));
            assert!(matches!(second, Err(TargetError::Restoring { .. })));
            target.write(&mut [(Block(1), &data)]).unwrap();
            assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
            if finished {
                target.finish().unwrap();
            }
            assert!(!partial.exists() || !finished);
        }
        let zeros = vec![0; BLOCK_BYTES];
        assert_eq!(std::fs::read(&path).unwrap(), [zeros.clone(), data, zeros].concat());
    }

    #[test]
    fn nothing_that_appeared_meanwhile_is_replaced_unasked() {
        let scratch = tempfile::tempdir().unwrap();
        let (path, partial) = (scratch.path().join("out"), scratch.path().join(".out.partial"));
        let asked = |force| Writing { force, ..writing(1) };
        // What is not a restore's own is left alone.
        std::fs::write(&partial, "mine").unwrap();
        assert!(matches!(Target::open(&path, &asked(false)), Err(TargetError::Partial { .. })));
        assert_eq!(std::fs::read_to_string(&partial).unwrap(), "mine");
        std::fs::remove_file(&partial).unwrap();
        // A file appears while the restore runs.
        let target = Target::open(&path, &asked(false)).unwrap();
        std::fs::write(&path, "precious").unwrap();
        assert!(matches!(target.finish(), Err(TargetError::Exists { .. })));
        assert_eq!(std::fs::read_to_string(&path).unwrap(), "precious");
        drop(target);
        std::fs::remove_file(&partial).unwrap();
        // One that is in use by then is not replaced with force either.
        let target = Target::open(&path, &asked(true)).unwrap();
        let user = File::open(&path).unwrap();
        user.lock().unwrap();
        assert!(matches!(target.finish(), Err(TargetError::InUse { .. })));
        drop(user);
        target.finish().unwrap();
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, MODE);
        // Two ways to the same end, for file systems that know no other.
        let taken = scratch.path().join("taken");
        std::fs::write(&taken, "").unwrap();
        assert_eq!(rename_new(&path, &taken).unwrap_err().kind(), io::ErrorKind::AlreadyExists);
        rename_new(&path, &scratch.path().join("free")).unwrap();
        for name in ["newimg/", "taken/"] {
            let error = Target::open(&scratch.path().join(name), &asked(true)).err().unwrap();
            assert!(!matches!(error, TargetError::Exists { .. }), "{error}");
        }
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 2, "nothing was made");
    }

    #[test]
    fn only_the_same_restore_goes_on() {
        let scratch = tempfile::tempdir().unwrap();
        let (path, partial) = (scratch.path().join("out"), scratch.path().join(".out.partial"));
        let data = vec![1; BLOCK_BYTES];
        let leave = || {
            let target = Target::open(&path, &writing(1)).unwrap();
            target.write(&mut [(Block(2), &data), (Block(0), &data)]).unwrap();
            target.record(&[true, false]).unwrap();
        };
        leave();
        let target = Target::open(&path, &writing(1)).unwrap();
        assert_eq!(target.resumed(), Some(&[true, false][..]));
        let mut there = vec![0; BLOCK_BYTES];
        target.read(Block(2), &mut there).unwrap();
        assert_eq!(there, data);
        drop(target);
        let damage: [&dyn Fn(&File); 3] =
            [&|file| file.write_all_at(&[9], 2000).unwrap(), &|file| file.set_len(5000).unwrap(), &|file| {
                file.write_all_at(&[0; BLOCK_BYTES], 0).unwrap()
            }];
        for damage in damage {
            leave();
            damage(&OpenOptions::new().write(true).open(&partial).unwrap());
            assert_eq!(Target::open(&path, &writing(1)).unwrap().resumed(), None);
        }
        for other in [writing(2), Writing { segments: 3, ..writing(1) }, Writing { bytes: 8192, ..writing(1) }] {
            leave();
            let target = Target::open(&path, &other).unwrap();
            assert_eq!(target.resumed(), None);
            target.finish().unwrap();
            assert!(std::fs::read(&path).unwrap().iter().all(|byte| *byte == 0), "nothing of the other stays");
        }
    }

    #[test]
    fn a_device_forgets_whose_it_was() {
        let mut stand_in = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut stand_in, &[9; 6 * BLOCK_BYTES]).unwrap();
        let (last, behind) = (5 * BLOCK_BYTES as u64, 4 * BLOCK_BYTES as u64);
        let starts = |at| {
            let mut bytes = [0; 8];
            stand_in.read_exact_at(&mut bytes, at).unwrap();
            bytes
        };
        for magic in [*b"SALVOLSB", *b"SALVOLRS"] {
            stand_in.write_all_at(&magic, last).unwrap();
            let open =
                || Target::begin(PathBuf::new(), stand_in.try_clone().unwrap(), Kind::Device, &writing(1)).unwrap();
            let target = open();
            assert_eq!(
                (starts(last), starts(behind)),
                ([0; 8], [9; 8]),
                "the superblock goes, what lies beside it stays"
            );
            target.record(&[true, false]).unwrap();
            drop(target);
            // What was restored is not taken for one.
            stand_in.write_all_at(&magic, last).unwrap();
            drop(open());
            assert_eq!(starts(last), magic);
            stand_in.write_all_at(ZEROS, 0).unwrap();
        }
    }

    #[test]
    fn a_device_gets_its_first_block_last_and_its_zeros_after_a_resume() {
        let mut stand_in = tempfile::tempfile().unwrap();
        std::io::Write::write_all(&mut stand_in, &[9; 4 * BLOCK_BYTES]).unwrap();
        let open = || Target::begin(PathBuf::new(), stand_in.try_clone().unwrap(), Kind::Device, &writing(1)).unwrap();
        let there = |block: usize| {
            let mut byte = [0];
            stand_in.read_exact_at(&mut byte, (block * BLOCK_BYTES) as u64).unwrap();
            byte[0]
        };
        let data = vec![1; BLOCK_BYTES];
        let target = open();
        target.write(&mut [(Block(1), &data), (Block(0), &data)]).unwrap();
        assert_eq!([there(0), there(1), there(2)], [b'S', 1, 9]);
        target.record(&[true, false]).unwrap();
        drop(target);
        let target = open();
        assert_eq!(target.resumed(), Some(&[true, false][..]));
        target.zero(Block(2), 1).unwrap();
        target.write(&mut [(Block(0), &data)]).unwrap();
        target.finish().unwrap();
        assert_eq!([there(0), there(1), there(2), there(3)], [1, 1, 0, 9], "what lies behind the volume stays");
        let target = open();
        assert_eq!(target.resumed(), None, "it is whole");
        target.remove();
        assert_eq!(there(0), 0);
    }
}
