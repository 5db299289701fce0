//! Who uses a block device: mounts, swap, other devices on top, processes that have it open.

use std::collections::BTreeSet;
use std::fmt;
use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// A user of a device.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum User {
    Mount(PathBuf),
    Swap,
    /// A device on top of it, such as `dm-0`.
    Device(String),
    Process {
        pid: u32,
        name: String,
    },
}

impl fmt::Display for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Mount(path) => write!(f, "mounted at {}", path.display()),
            Self::Swap => write!(f, "used as swap"),
            Self::Device(name) => write!(f, "part of /dev/{name}"),
            Self::Process { pid, name } => write!(f, "open in process {pid} ({name})"),
        }
    }
}

/// Everyone who uses `device` or one of its partitions, as far as this process may see.
pub fn users(device: &Path) -> Vec<User> {
    let Some(name) = device.file_name().and_then(|name| name.to_str()) else { return Vec::new() };
    let disk = Path::new("/sys/class/block").join(name);
    let mut parts = vec![disk.clone()];
    let entries = fs::read_dir(&disk).into_iter().flatten().flatten().map(|entry| entry.path());
    parts.extend(entries.filter(|path| path.join("partition").exists()));
    let numbers: BTreeSet<String> =
        parts.iter().filter_map(|part| Some(fs::read_to_string(part.join("dev")).ok()?.trim().to_owned())).collect();
    let mountinfo = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
    let mut users: Vec<User> = mounts(&mountinfo, &numbers).into_iter().map(User::Mount).collect();
    let swaps = fs::read_to_string("/proc/swaps").unwrap_or_default();
    users.extend(swaps.lines().filter_map(|line| line.split_whitespace().next()).filter_map(|path| {
        number_of(Path::new(path)).is_some_and(|number| numbers.contains(&number)).then_some(User::Swap)
    }));
    for part in &parts {
        let holders = fs::read_dir(part.join("holders")).into_iter().flatten().flatten();
        users.extend(holders.filter_map(|holder| holder.file_name().into_string().ok()).map(User::Device));
    }
    users.extend(processes(&numbers));
    users
}

/// The mount points in `mountinfo` of devices with these `MAJOR:MINOR`.
fn mounts(mountinfo: &str, numbers: &BTreeSet<String>) -> Vec<PathBuf> {
    let mount = |line: &str| {
        let mut fields = line.split(' ');
        let number = fields.nth(2)?;
        let point = fields.nth(1)?;
        numbers.contains(number).then(|| PathBuf::from(unescape(point)))
    };
    mountinfo.lines().filter_map(mount).collect()
}

/// The kernel writes blanks, tabs, line ends and backslashes of a path as three octal digits.
fn unescape(text: &str) -> String {
    let escapes = [("\\040", " "), ("\\011", "\t"), ("\\012", "\n"), ("\\134", "\\")];
    escapes.iter().fold(text.to_owned(), |text, (from, to)| text.replace(from, to))
}

/// Processes other than this one that have a device of these numbers open.
fn processes(numbers: &BTreeSet<String>) -> Vec<User> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = entries.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let has_open = |pid: u32| {
        let files = fs::read_dir(format!("/proc/{pid}/fd")).into_iter().flatten().flatten();
        files.into_iter().any(|file| number_of(&file.path()).is_some_and(|number| numbers.contains(&number)))
    };
    pids.filter(|pid| *pid != std::process::id() && has_open(*pid))
        .map(|pid| {
            let name = fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default().trim().to_owned();
            User::Process { pid, name }
        })
        .collect()
}

/// `MAJOR:MINOR` of the block device that `path` leads to.
fn number_of(path: &Path) -> Option<String> {
    let metadata = fs::metadata(path).ok()?;
    let number = metadata.rdev();
    metadata
        .file_type()
        .is_block_device()
        .then(|| format!("{}:{}", nix::sys::stat::major(number), nix::sys::stat::minor(number)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mounts_are_found_by_number_whatever_their_name() {
        let mountinfo = "22 1 8:1 / / rw,relatime shared:1 - ext4 /dev/sda1 rw\n\
                         40 22 259:3 /sub /mnt/a\\040b rw - ext4 /dev/renamed rw\n\
                         41 22 259:33 / /mnt/c rw - ext4 /dev/ublkb0 rw\n";
        let numbers = BTreeSet::from(["259:3".to_owned()]);
        assert_eq!(mounts(mountinfo, &numbers), [PathBuf::from("/mnt/a b")]);
    }
}
