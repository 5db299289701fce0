//! Files of a directory store: made whole or not at all, and read past the page cache.
//!
//! Everything goes through the descriptor of the directory, so that what was checked there is what is written there,
//! whatever is mounted or renamed meanwhile. The descriptor lives no longer than one call: a store must not keep its
//! file system from being unmounted.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::ops::Range;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, PosixFadviseAdvice, RenameFlags, openat, posix_fadvise, renameat2};
use nix::sys::stat::{Mode, fstat, major, mkdirat};
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};

use super::Ends;
use crate::format::BLOCK_BYTES;
use crate::io::Buffer;

/// What direct I/O is aligned to; a file system that wants more says so, and is read through the cache.
const ALIGNMENT: u64 = 4096;
/// Temporary names that are tried before giving up: leftovers of a dead process may have the same number.
const NAMES_TRIED: usize = 16;
/// Bytes of an object that are on their way to or from the disk at a time, where it may be the volume's own.
const PIECE: usize = 256 << 10;
const TEMPORARY: &str = ".tmp";

/// A directory, open.
pub(super) struct Directory(OwnedFd);

impl Directory {
    pub(super) fn open(path: &Path) -> io::Result<Self> {
        // The path's last part may be a link: it is the user's own. Inside the store no link is followed.
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self(nix::fcntl::open(path, flags, Mode::empty())?))
    }

    /// What is in it. A name that is not text is none of ours.
    pub(super) fn entries(&self) -> io::Result<Vec<(String, fs::DirEntry)>> {
        // Not by its path, where another directory may be by now.
        let named = |entry: fs::DirEntry| (entry.file_name().to_string_lossy().into_owned(), entry);
        fs::read_dir(format!("/proc/self/fd/{}", self.0.as_raw_fd()))?.map(|entry| entry.map(named)).collect()
    }

    /// The directory `name` in this one.
    pub(super) fn inner(&self, name: &str) -> io::Result<Self> {
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        Ok(Self(openat(&self.0, name, flags, Mode::empty())?))
    }

    /// The same, made if it is missing; its name is durable when this returns.
    pub(super) fn inner_or_new(&self, name: &str) -> io::Result<Self> {
        match mkdirat(&self.0, name, Mode::S_IRWXU) {
            // Also when it was there: whoever made it may have died before this.
            Ok(()) | Err(Errno::EEXIST) => self.sync()?,
            Err(error) => return Err(error.into()),
        }
        self.inner(name)
    }

    /// The device of the file system that the directory is on.
    pub(super) fn device(&self) -> io::Result<u64> {
        Ok(fstat(&self.0)?.st_dev)
    }

    /// Bytes of its file system that are used, and all that its users can have.
    pub(super) fn fill(&self) -> io::Result<(u64, u64)> {
        let found = nix::sys::statvfs::fstatvfs(&self.0)?;
        let unit = found.fragment_size();
        let used = found.blocks().saturating_sub(found.blocks_free());
        Ok((used.saturating_mul(unit), used.saturating_add(found.blocks_available()).saturating_mul(unit)))
    }

    /// Makes the names in the directory durable.
    pub(super) fn sync(&self) -> io::Result<()> {
        Ok(nix::unistd::fsync(&self.0)?)
    }

    /// Opens a file for reading.
    pub(super) fn file(&self, name: &str) -> io::Result<File> {
        self.file_with(name, OFlag::empty())
    }

    fn file_with(&self, name: &str, flag: OFlag) -> io::Result<File> {
        // Not blocking: a FIFO under the name must not hold an archiver thread for ever.
        let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | flag;
        let file = File::from(openat(&self.0, name, flags, Mode::empty())?);
        if !file.metadata()?.is_file() {
            return Err(io::Error::other("is not a regular file"));
        }
        Ok(file)
    }

    /// Removes a file; one that is not there is fine.
    pub(super) fn remove(&self, name: &str) -> io::Result<()> {
        match unlinkat(&self.0, name, UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    /// Makes the file `name` with these bytes, durable, all or nothing. Says whether it did: `false` when there is one of
    /// that name already, which is left alone.
    pub(super) fn place(&self, name: &str, bytes: &[u8]) -> io::Result<bool> {
        let (temporary, file) = self.temporary(name)?;
        let placed = fill(&file, bytes).and_then(|()| self.rename(&temporary, name));
        if !matches!(placed, Ok(true)) {
            // Best effort: what stays behind is removed by the next process that puts.
            let _ = self.remove(&temporary);
        }
        let placed = placed?;
        self.sync()?;
        Ok(placed)
    }

    /// Makes and removes a file, to know whether that is possible.
    pub(super) fn probe(&self) -> io::Result<()> {
        let (temporary, _file) = self.temporary("probe")?;
        self.remove(&temporary)
    }

    /// A new empty file, locked for as long as it is open, so that nobody takes it for a leftover.
    fn temporary(&self, name: &str) -> io::Result<(String, File)> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        for _ in 0..NAMES_TRIED {
            let count = COUNT.fetch_add(1, Ordering::Relaxed);
            let temporary = format!(".{name}.{}-{count}{TEMPORARY}", std::process::id());
            match openat(&self.0, temporary.as_str(), flags, Mode::S_IRUSR | Mode::S_IWUSR) {
                Ok(file) => {
                    let file = File::from(file);
                    // Where the file system has no locks, leftovers stay: see `leftover`.
                    let _ = file.try_lock();
                    return Ok((temporary, file));
                }
                Err(Errno::EEXIST) => {}
                Err(error) => return Err(error.into()),
            }
        }
        Err(io::ErrorKind::AlreadyExists.into())
    }

    /// Gives the file its name, unless there is one of that name.
    fn rename(&self, temporary: &str, name: &str) -> io::Result<bool> {
        match renameat2(&self.0, temporary, &self.0, name, RenameFlags::RENAME_NOREPLACE) {
            Ok(()) => Ok(true),
            Err(Errno::EEXIST) => Ok(false),
            Err(Errno::EINVAL | Errno::ENOSYS | Errno::EOPNOTSUPP) => self.link(temporary, name),
            Err(error) => Err(error.into()),
        }
    }

    /// The same on file systems that cannot rename without replacing.
    fn link(&self, temporary: &str, name: &str) -> io::Result<bool> {
        match linkat(&self.0, temporary, &self.0, name, AtFlags::empty()) {
            Ok(()) => self.remove(temporary).map(|()| true),
            Err(Errno::EEXIST) => Ok(false),
            Err(error) => Err(error.into()),
        }
    }

    /// Removes the file `name` when it is the temporary file of a process that died. Says whether it did.
    pub(super) fn remove_leftover(&self, name: &str) -> io::Result<bool> {
        if !is_temporary(name) {
            return Ok(false);
        }
        let file = self.file(name)?;
        let dead = file.try_lock().is_ok();
        if dead {
            self.remove(name)?;
        }
        Ok(dead)
    }

    /// The bytes of `range` of a file, fewer when it ends before, from the device and not from the page cache, where
    /// that is possible.
    pub(super) fn read(&self, name: &str, range: Range<u64>) -> io::Result<Vec<u8>> {
        self.read_with(name, |_, read| read(range.clone()))
    }

    /// The same of both ends of a file.
    pub(super) fn read_ends(&self, name: &str, head: u64, tail: u64) -> io::Result<Ends> {
        self.read_with(name, |bytes, read| {
            Ok(Ends { bytes, head: read(0..head)?, tail: read(bytes.saturating_sub(tail)..bytes)? })
        })
    }

    /// Gives `take` the length of a file and what reads it.
    fn read_with<T>(
        &self,
        name: &str,
        take: impl Fn(u64, &dyn Fn(Range<u64>) -> io::Result<Vec<u8>>) -> io::Result<T>,
    ) -> io::Result<T> {
        let attempt = |flag, read: fn(&File, u64, Range<u64>) -> io::Result<Vec<u8>>| {
            let file = self.file_with(name, flag)?;
            let bytes = file.metadata()?.len();
            take(bytes, &|range| read(&file, bytes, range))
        };
        match attempt(OFlag::O_DIRECT, read_direct) {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => attempt(OFlag::empty(), read_dropped),
            other => other,
        }
    }
}

/// Whether `name` is one that [`Directory::place`] gives to a file that is not finished.
pub(super) fn is_temporary(name: &str) -> bool {
    name.starts_with('.') && name.ends_with(TEMPORARY)
}

fn fill(mut file: &File, bytes: &[u8]) -> io::Result<()> {
    let mut at = 0;
    for piece in bytes.chunks(piece(file)?) {
        file.write_all(piece)?;
        if piece.len() < bytes.len() {
            write_out(file, at, piece.len() as i64)?;
        }
        at += piece.len() as i64;
    }
    file.sync_all()?;
    drop_cache(file);
    Ok(())
}

/// How many bytes of the file are on their way at a time. A file system that is on no block device of this machine, as NFS, has a number
/// without a major: there each piece would only cost a round trip. btrfs has none either.
fn piece(file: &File) -> io::Result<usize> {
    Ok(if major(fstat(file)?.st_dev) == 0 { usize::MAX } else { PIECE })
}

/// Has bytes that were just written on the disk, though not durable, before it returns: an fsync of all would put everything into the
/// disk's queue at once, and what the volume's users wait for behind it.
#[expect(unsafe_code, reason = "nix does not wrap this call")]
fn write_out(file: &File, at: i64, bytes: i64) -> io::Result<()> {
    let flags = libc::SYNC_FILE_RANGE_WRITE | libc::SYNC_FILE_RANGE_WAIT_AFTER;
    // SAFETY: the call takes numbers only, and a descriptor that is open.
    let written = unsafe { libc::sync_file_range(file.as_raw_fd(), at, bytes, flags) };
    match Errno::result(written) {
        // Without the call the fsync does it all.
        Ok(_) | Err(Errno::ENOSYS) => Ok(()),
        // An error of write-back is told only once, here or by the fsync.
        Err(error) => Err(error.into()),
    }
}

/// Asks the kernel to forget what it has cached of the file. What is dirty stays, so this goes after an fsync.
fn drop_cache(file: &File) {
    // Advice: where it is not taken, the read-back proves less, and nothing is wrong with the object.
    let _ = posix_fadvise(file.as_fd(), 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED);
}

fn clamp(length: u64, range: &Range<u64>) -> Range<u64> {
    let end = range.end.min(length);
    range.start.min(end)..end
}

fn length(range: &Range<u64>) -> io::Result<usize> {
    usize::try_from(range.end - range.start).map_err(|_| io::ErrorKind::InvalidInput.into())
}

fn read_direct(file: &File, file_bytes: u64, range: Range<u64>) -> io::Result<Vec<u8>> {
    let range = clamp(file_bytes, &range);
    if range.is_empty() {
        return Ok(Vec::new());
    }
    let first = range.start / ALIGNMENT * ALIGNMENT;
    let aligned = first..range.end.next_multiple_of(ALIGNMENT);
    let buffer = Buffer::new(length(&aligned)?)?;
    let have = buffer.write(|bytes| read_blocks(file, bytes, first))?;
    let end = length(&(first..range.end))?.min(have);
    let start = length(&(first..range.start))?.min(end);
    Ok(buffer.bytes()[start..end].to_vec())
}

/// Fills `bytes` from byte `at` on and says how many the file had.
fn read_blocks(file: &File, bytes: &mut [u8], at: u64) -> io::Result<usize> {
    let (mut have, piece) = (0, piece(file)?);
    while have < bytes.len() {
        let end = bytes.len().min(have.saturating_add(piece));
        match file.read_at(&mut bytes[have..end], at + have as u64) {
            Ok(0) => break,
            Ok(count) => {
                have += count;
                // Only the end of the file is not a multiple, and a direct read could not go on from there.
                if !count.is_multiple_of(ALIGNMENT as usize) {
                    break;
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(have)
}

fn read_dropped(file: &File, file_bytes: u64, range: Range<u64>) -> io::Result<Vec<u8>> {
    let range = clamp(file_bytes, &range);
    drop_cache(file);
    let mut bytes = vec![0; length(&range)?];
    file.read_exact_at(&mut bytes, range.start)?;
    Ok(bytes)
}

/// All of a small file, and not more than `most` bytes of it.
pub(super) fn read_small(file: &File, most: u64) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::with_capacity(usize::try_from(most).map_or(BLOCK_BYTES, |most| most.min(2 * BLOCK_BYTES)));
    file.take(most).read_to_end(&mut bytes)?;
    Ok(bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_given_once_with_and_without_the_rename() {
        let scratch = tempfile::tempdir().unwrap();
        let directory = Directory::open(scratch.path()).unwrap();
        for (name, link) in [("renamed", false), ("linked", true)] {
            let give = |content: &[u8]| {
                let (temporary, file) = directory.temporary(name).unwrap();
                fill(&file, content).unwrap();
                let placed = if link { directory.link(&temporary, name) } else { directory.rename(&temporary, name) };
                drop(file);
                directory.remove(&temporary).unwrap();
                placed.unwrap()
            };
            assert!(give(b"first") && !give(b"second"));
            assert_eq!(std::fs::read(scratch.path().join(name)).unwrap(), b"first");
        }
        assert_eq!(std::fs::read_dir(scratch.path()).unwrap().count(), 2);
    }

    #[test]
    fn both_ways_of_reading_agree() {
        let scratch = tempfile::tempdir().unwrap();
        let content: Vec<u8> = (0..10_000_u32).map(|at| (at * 7 / 5) as u8).collect();
        std::fs::write(scratch.path().join("f"), &content).unwrap();
        let file = File::open(scratch.path().join("f")).unwrap();
        for range in [0..10_000, 1..2, 4095..8193, 9_999..20_000, 10_000..10_001, 30_000..40_000] {
            // An unaligned length is no matter to a file that is not opened for direct I/O.
            let direct = read_direct(&file, 10_000, range.clone()).unwrap();
            assert_eq!(direct, read_dropped(&file, 10_000, range).unwrap());
        }
    }
}
