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
    let parts = parts(device);
    let numbers = numbers(&parts);
    let mut users: Vec<User> = mounts(&mountinfo(), &numbers).into_iter().map(User::Mount).collect();
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

/// Devices on top of devices that are looked through: a volume group, an encrypted disk in it, and so on.
const LAYERS_MAX: usize = 8;

/// Whether `path` is where a file system is mounted that is on `device`: on the device itself, a partition of it, or what
/// device-mapper or md made of these.
pub fn is_mounted_from(path: &Path, device: &Path) -> bool {
    let mut layer = parts(device);
    for _ in 0..LAYERS_MAX {
        if mounts(&mountinfo(), &numbers(&layer)).iter().any(|point| point == path) {
            return true;
        }
        let above = layer.iter().flat_map(|part| fs::read_dir(part.join("holders")).into_iter().flatten().flatten());
        layer = above.flat_map(|holder| parts(Path::new(&holder.file_name()))).collect();
    }
    false
}

fn mountinfo() -> String {
    fs::read_to_string("/proc/self/mountinfo").unwrap_or_default()
}

/// Where sysfs has the device and its partitions.
fn parts(device: &Path) -> Vec<PathBuf> {
    let Some(name) = device.file_name() else { return Vec::new() };
    let disk = Path::new("/sys/class/block").join(name);
    let entries = fs::read_dir(&disk).into_iter().flatten().flatten().map(|entry| entry.path());
    let partitions: Vec<PathBuf> = entries.filter(|path| path.join("partition").exists()).collect();
    [vec![disk], partitions].concat()
}

/// Their `MAJOR:MINOR`.
fn numbers(parts: &[PathBuf]) -> BTreeSet<String> {
    parts.iter().filter_map(|part| Some(fs::read_to_string(part.join("dev")).ok()?.trim().to_owned())).collect()
}

/// The mount points in `mountinfo` of devices with these `MAJOR:MINOR`.
fn mounts(mountinfo: &str, numbers: &BTreeSet<String>) -> Vec<PathBuf> {
    let mount = |line: &str| {
        let mut fields = line.split(' ');
        let number = fields.nth(2)?;
        let point = fields.nth(1)?;
        // Some file systems, btrfs among them, have a number of their own: then the source says which device it is.
        let source = || line.split_once(" - ")?.1.split(' ').nth(1).map(unescape);
        let ours = numbers.contains(number)
            || number.starts_with("0:")
                && source().and_then(|source| number_of(Path::new(&source))).is_some_and(|it| numbers.contains(&it));
        ours.then(|| PathBuf::from(unescape(point)))
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
