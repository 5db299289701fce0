//! Which block device rests on which: partitions, LVM, RAID, dm-crypt.

use std::fs;
use std::path::Path;

/// Devices looked at below a device: partitions and stacked devices. More is a loop.
const DEVICES_MAX: usize = 64;

/// Whether the block device `device` is `forbidden`, a partition of it, or stacked on it (LVM, RAID, dm-crypt).
pub(crate) fn rests_on(device: u64, forbidden: u64) -> bool {
    let mut queue = vec![device];
    for seen in 0..DEVICES_MAX {
        let Some(&device) = queue.get(seen) else {
            return false;
        };
        if device == forbidden {
            return true;
        }
        let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
        // No such entry: a network file system, or one that numbers itself.
        let Ok(path) = fs::canonicalize(format!("/sys/dev/block/{major}:{minor}")) else {
            continue;
        };
        if path.join("partition").exists() {
            queue.extend(path.parent().and_then(device_of));
        }
        let below = fs::read_dir(path.join("slaves")).into_iter().flatten().flatten();
        queue.extend(below.filter_map(|entry| device_of(&entry.path())));
    }
    false
}

/// The device number in sysfs.
fn device_of(path: &Path) -> Option<u64> {
    let text = fs::read_to_string(path.join("dev")).ok()?;
    let (major, minor) = text.trim().split_once(':')?;
    Some(nix::sys::stat::makedev(major.parse().ok()?, minor.parse().ok()?))
}
