//! A file as a primary: allocated at once, and written through once, since extents that were never written cost a quarter
//! of the flush rate later.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::Path;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use nix::sys::statfs::{self, FsType};
use salvol::io::{Bench, Buffer, Device, Primary};

use super::parse::Size;
use super::{Failure, Manner, Outcome};

/// Bytes of one write while a file is written through.
const FILL_BYTES: usize = 4 << 20;

/// Allocates a file of `bytes`, opens it as a primary, and has `work` done on it; when that fails the file goes again, since half of
/// one would be taken for a primary by the next try. `advice` is for a file system without the room.
pub(super) fn in_new_file<T>(
    path: &Path,
    bytes: u64,
    advice: &str,
    work: impl FnOnce(&Bench) -> Result<T, Failure>,
) -> Result<T, Failure> {
    let failed = |error: std::io::Error| Failure::new(format_args!("{}: {error}", path.display()));
    // The key of the volume and all its data are in it.
    let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path).map_err(failed)?;
    let made = || {
        let length = i64::try_from(bytes).map_err(|_| failed(std::io::ErrorKind::FileTooLarge.into()))?;
        nix::fcntl::posix_fallocate(&file, 0, length).map_err(|error| match error {
            nix::errno::Errno::ENOSPC => Failure::new(format_args!(
                "{}: its file system has no room for a primary of {}{advice}",
                path.display(),
                Size(bytes)
            )),
            error => failed(error.into()),
        })?;
        drop(file);
        work(&Bench::new(Primary::own(path, Duration::ZERO)?)?)
    };
    made().inspect_err(|_| {
        let _ = std::fs::remove_file(path);
    })
}

/// Refuses to make a file where a device was meant: it would be one in memory.
pub(super) fn refuse_device_name(path: &Path) -> Outcome {
    let directory = path.parent().map(super::primary::canonical).unwrap_or_default();
    let among_devices = directory.starts_with("/dev") && !directory.starts_with("/dev/shm");
    if among_devices && !path.exists() {
        return Err(Failure::new(format_args!("{}: there is no such device", path.display())));
    }
    Ok(())
}

/// Whether a file has holes or extents that were never written; both cost a quarter of the flush rate later. Extents
/// that are allocated and unwritten cannot be told from written ones here, so a file that was just made always counts.
pub(super) fn has_holes(path: &Path) -> Result<bool, Failure> {
    let metadata = std::fs::metadata(path)?;
    let fresh =
        metadata.modified().ok().and_then(|time| time.elapsed().ok()).is_some_and(|age| age < Duration::from_secs(600));
    Ok(metadata.is_file() && (fresh || metadata.blocks() * 512 < metadata.len()))
}

/// Overwrites the whole file with zeros.
pub(super) fn write_through(bench: &Bench, manner: Manner) -> std::io::Result<()> {
    let device = bench.device.clone();
    let bytes = device.bytes();
    let bar = if manner.draws() { ProgressBar::new(bytes) } else { ProgressBar::hidden() };
    if let Ok(style) = ProgressStyle::with_template("writing the file through {wide_bar} {bytes}/{total_bytes} {eta}") {
        bar.set_style(style);
    }
    let zeros = Buffer::new(FILL_BYTES)?;
    let shown = bar.clone();
    bench.wait(async move {
        let mut offset = 0;
        while offset < bytes {
            let length = FILL_BYTES.min((bytes - offset) as usize);
            device.write(offset, zeros.part(0, length)).await?;
            offset += length as u64;
            shown.set_position(offset);
        }
        device.flush().await
    })??;
    bar.finish_and_clear();
    Ok(())
}

/// Makes the name of a file durable.
pub(super) fn sync_directory(path: &Path) {
    if let Some(directory) = path.parent().and_then(|parent| File::open(parent).ok()) {
        let _ = directory.sync_all();
    }
}

/// Says when the file system is not one for a primary: it copies on write, or is gone with the machine.
pub(super) fn warn_of_file_system(path: &Path, manner: Manner) {
    const IN_MEMORY: [i64; 2] = [0x0102_1994, 0x8584_58f6];
    const COPY_ON_WRITE: [(i64, &str); 3] = [(0x9123_683e, "btrfs"), (0x2fc1_2fc1, "ZFS"), (0xca45_1a4e, "bcachefs")];
    let directory = if path.exists() { path } else { path.parent().unwrap_or(path) };
    let Ok(found) = statfs::statfs(directory) else { return };
    if path.exists() && !path.is_file() {
        return;
    }
    if IN_MEMORY.iter().any(|magic| FsType(*magic) == found.filesystem_type()) {
        manner.note(format_args!("{}: a file in memory, which is gone when the machine stops", path.display()));
    }
    if let Some((_, name)) = COPY_ON_WRITE.iter().find(|(magic, _)| FsType(*magic) == found.filesystem_type()) {
        manner.note(format_args!(
            "{}: a file on {name}, which copies on write: a log on a log, slow and larger than it seems; better a raw \
             device, or a file on ext4 or XFS",
            path.display()
        ));
    }
}
