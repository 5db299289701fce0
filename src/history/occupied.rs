//! What a place holds, and who else it is: nothing that anybody might still want is overwritten unasked, and what is read from
//! never.

use std::fs::File;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::process::Command;

use crate::archive::{RingStore, rests_on};
use crate::format::{BLOCK_BYTES, FormatError, Superblock};

/// What a ring store's superblock begins with.
const RING_MAGIC: &[u8] = b"SALVOLRS";

/// Whether `block` is the superblock of a volume or of a ring, damaged or not.
pub(super) fn is_superblock(block: &[u8]) -> bool {
    is_volume(block) || block.starts_with(RING_MAGIC)
}

fn is_volume(block: &[u8]) -> bool {
    !matches!(Superblock::parse(block), Err(FormatError::Magic { .. } | FormatError::Length { .. }))
}

/// Whether writing to `path` would write to one of `sources`: it is one, the file behind one that is a loop device, or
/// the other way round, a disk of which one is a partition, or a file, there or not, in a directory that is one.
pub(super) fn is_one_of(path: &Path, sources: &[PathBuf]) -> bool {
    let identity = |path: &Path| {
        let found = std::fs::metadata(path).ok()?;
        let device = found.file_type().is_block_device();
        Some(if device { (0, found.rdev()) } else { (found.dev(), found.ino()) })
    };
    let identities = |path: &Path| -> Vec<(u64, u64)> {
        [Some(path.to_owned()), behind_loop(path)].into_iter().filter_map(|path| identity(&path?)).collect()
    };
    let shared = |one: &(u64, u64), other: &(u64, u64)| match (one, other) {
        ((0, one), (0, other)) => rests_on(*one, *other) || rests_on(*other, *one),
        _ => one == other,
    };
    let inside = |directory: &Path| {
        let parent = path.parent().map(|parent| if parent.as_os_str().is_empty() { Path::new(".") } else { parent });
        let path = std::fs::canonicalize(path).or_else(|error| parent.map_or(Err(error), std::fs::canonicalize));
        let directory = std::fs::canonicalize(directory);
        directory.is_ok_and(|directory| directory.is_dir() && path.is_ok_and(|path| path.starts_with(directory)))
    };
    let target = identities(path);
    sources.iter().any(|source| {
        inside(source) || identities(source).iter().any(|source| target.iter().any(|target| shared(target, source)))
    })
}

fn behind_loop(path: &Path) -> Option<PathBuf> {
    let found = std::fs::metadata(path).ok().filter(|found| found.file_type().is_block_device())?;
    let number = found.rdev();
    let (major, minor) = (nix::sys::stat::major(number), nix::sys::stat::minor(number));
    let file = std::fs::read_to_string(format!("/sys/dev/block/{major}:{minor}/loop/backing_file")).ok()?;
    Some(PathBuf::from(file.trim_end_matches('\n')))
}

/// What is on the device, when it is something: a salvol volume, or anything that blkid knows.
pub(super) fn recognised(path: &Path, file: &File, bytes: u64) -> Option<String> {
    for at in [0, bytes.saturating_sub(BLOCK_BYTES as u64)] {
        let mut block = vec![0; BLOCK_BYTES];
        if file.read_exact_at(&mut block, at).is_ok() && is_volume(&block) {
            return Some("a salvol volume".to_owned());
        }
    }
    RingStore::recognise(path).or_else(|| recognise(path))
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
    fn a_new_file_in_a_source_is_refused() {
        let scratch = tempfile::tempdir().unwrap();
        let sources = [scratch.path().to_owned()];
        for name in ["new", "./new"] {
            assert!(is_one_of(&scratch.path().join(name), &sources), "{name}");
        }
        assert!(!is_one_of(&std::env::temp_dir().join("salvol-elsewhere"), &sources));
    }
}
