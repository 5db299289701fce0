//! The driver itself: whether it is there, what it can do, which devices it has.

use std::io;
use std::path::{Path, PathBuf};

use libublk::ctrl::UblkCtrl;
use libublk::{UblkError, sys};

use crate::format::Uuid;

const CONTROL: &str = "/dev/ublk-control";

/// Why the driver cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DriverError {
    #[error(
        "no ublk driver: /dev/ublk-control does not exist: run `modprobe ublk_drv` (on Ubuntu the module is in \
         linux-modules-extra-$(uname -r)); it needs a kernel from 6.0 on with CONFIG_BLK_DEV_UBLK"
    )]
    Missing,
    #[error("no permission for /dev/ublk-control: run as root")]
    Denied,
    #[error("/dev/ublk-control: {0}")]
    Open(io::Error),
    #[error(
        "kernel {release} is known to crash when a ublk device is added ({why}): use another kernel, or \
         --force-kernel if yours has the fix"
    )]
    Crashes { release: String, why: &'static str },
    #[error("ublk device {id}: {what}")]
    Device { id: u32, what: String },
}

/// Checks that the driver can be used, before anything depends on it. `any_kernel` skips the list of kernels that crash.
///
/// # Errors
/// See [`DriverError`]; each says what to do.
pub fn require(any_kernel: bool) -> Result<(), DriverError> {
    match std::fs::OpenOptions::new().read(true).write(true).open(CONTROL) {
        Ok(_) => {}
        Err(error) => {
            return Err(match error.kind() {
                io::ErrorKind::NotFound => DriverError::Missing,
                io::ErrorKind::PermissionDenied => DriverError::Denied,
                // The node is there, the module behind it is not.
                _ if matches!(error.raw_os_error(), Some(libc::ENXIO | libc::ENODEV)) => DriverError::Missing,
                _ => DriverError::Open(error),
            });
        }
    }
    let release = release();
    match known_crash(&release) {
        Some(why) if !any_kernel => Err(DriverError::Crashes { release, why }),
        Some(why) => {
            log::warn!("kernel {release} is known to crash when a ublk device is added ({why}); going on as told");
            Ok(())
        }
        None => Ok(()),
    }
}

fn release() -> String {
    std::fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default().trim().to_owned()
}

/// Kernels whose `ublk_init_queues` dereferences a null pointer on ADD_DEV.
fn known_crash(release: &str) -> Option<&'static str> {
    let cloud = ["azure", "aws", "gcp", "oracle", "cloud"].iter().any(|flavour| release.contains(flavour));
    if release.starts_with("6.17.0-10") && cloud {
        return Some("Ubuntu's 6.17.0-10xx cloud kernels: actions/runner-images#14175");
    }
    let is_6_18_4 = release.strip_prefix("6.18.4").is_some_and(|rest| !rest.starts_with(|c: char| c.is_ascii_digit()));
    is_6_18_4.then_some("6.18.4: zabbly/linux#52")
}

/// A feature of the driver.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Feature {
    pub name: &'static str,
    /// The kernel that brought it.
    pub since: &'static str,
    /// Whether this kernel's driver has it.
    pub available: bool,
    /// What salvol does with it; none when it does nothing.
    pub used_for: Option<&'static str>,
}

/// What this kernel's driver can do: its feature bits, and each by name.
///
/// # Errors
/// When there is no driver or no permission; a driver before 6.5 does not tell.
pub fn features() -> Result<(u64, Vec<Feature>), DriverError> {
    require(true)?;
    let bits = UblkCtrl::get_features().ok_or_else(|| {
        DriverError::Open(io::Error::other("the driver does not tell its features (a kernel before 6.5)"))
    })?;
    let known: [(u32, &str, &str, Option<&str>); 20] = [
        (sys::UBLK_F_SUPPORT_ZERO_COPY, "SUPPORT_ZERO_COPY", "6.15", None),
        (sys::UBLK_F_URING_CMD_COMP_IN_TASK, "URING_CMD_COMP_IN_TASK", "6.0", None),
        (sys::UBLK_F_NEED_GET_DATA, "NEED_GET_DATA", "6.0", None),
        (sys::UBLK_F_USER_RECOVERY, "USER_RECOVERY", "6.1", Some("`recover` after the daemon died")),
        (sys::UBLK_F_USER_RECOVERY_REISSUE, "USER_RECOVERY_REISSUE", "6.1", Some("no request fails meanwhile")),
        (sys::UBLK_F_UNPRIVILEGED_DEV, "UNPRIVILEGED_DEV", "6.3", None),
        (sys::UBLK_F_CMD_IOCTL_ENCODE, "CMD_IOCTL_ENCODE", "6.4", Some("how commands are spelt")),
        (sys::UBLK_F_USER_COPY, "USER_COPY", "6.5", None),
        (sys::UBLK_F_ZONED, "ZONED", "6.6", None),
        (sys::UBLK_F_USER_RECOVERY_FAIL_IO, "USER_RECOVERY_FAIL_IO", "6.13", None),
        (sys::UBLK_F_UPDATE_SIZE, "UPDATE_SIZE", "6.16", None),
        (sys::UBLK_F_AUTO_BUF_REG, "AUTO_BUF_REG", "6.16", None),
        (sys::UBLK_F_QUIESCE, "QUIESCE", "6.16", None),
        (sys::UBLK_F_PER_IO_DAEMON, "PER_IO_DAEMON", "6.16", None),
        (sys::UBLK_F_BUF_REG_OFF_DAEMON, "BUF_REG_OFF_DAEMON", "6.17", None),
        (sys::UBLK_F_BATCH_IO, "BATCH_IO", "7.0", None),
        (sys::UBLK_F_INTEGRITY, "INTEGRITY", "7.0", None),
        (sys::UBLK_F_SAFE_STOP_DEV, "SAFE_STOP_DEV", "7.0", None),
        (sys::UBLK_F_NO_AUTO_PART_SCAN, "NO_AUTO_PART_SCAN", "7.0", None),
        (sys::UBLK_F_SHMEM_ZC, "SHMEM_ZC", "7.1", None),
    ];
    let feature =
        |(bit, name, since, used_for)| Feature { name, since, available: bits & u64::from(bit) != 0, used_for };
    Ok((bits, known.into_iter().map(feature).collect()))
}

/// What the driver says of a device's life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DeviceState {
    /// Not started, or stopped.
    Dead,
    Live,
    /// Its daemon died: requests wait for `recover`.
    Quiesced,
    /// Its daemon died: requests fail.
    FailIo,
}

/// A device of the driver, whoever serves it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeviceInfo {
    pub id: u32,
    pub state: DeviceState,
    /// The process that serves it, or did.
    pub pid: i32,
    pub depth: u16,
    pub io_buf_bytes: u32,
    /// What its server put on it.
    mark: u64,
}

impl DeviceInfo {
    /// Whether it was made by salvol, for whichever volume.
    pub fn is_ours(&self) -> bool {
        self.mark >> 32 == MARK
    }

    /// Whether it was made for the volume `uuid`.
    pub fn is_of(&self, uuid: &str) -> bool {
        Uuid::parse(uuid).is_some_and(|uuid| self.mark == mark(uuid))
    }
}

/// The first half of the mark on our devices.
const MARK: u64 = u32::from_be_bytes(*b"salv") as u64;

/// The mark on the device of volume `uuid`, in the field that the driver keeps for servers.
pub(super) fn mark(uuid: Uuid) -> u64 {
    let [a, b, c, d, ..] = uuid.0;
    MARK << 32 | u64::from(u32::from_be_bytes([a, b, c, d]))
}

/// The device number `id`; none when there is no such device.
///
/// # Errors
/// When there is no driver, or no permission.
pub fn device(id: u32) -> Result<Option<DeviceInfo>, DriverError> {
    require(true)?;
    if !Path::new(&format!("/sys/class/ublk-char/ublkc{id}")).exists() {
        return Ok(None);
    }
    let control = match control(id) {
        Ok(control) => control,
        Err(UblkError::OtherError(errno) | UblkError::UringIOError(errno)) if errno == -libc::ENODEV => {
            return Ok(None);
        }
        Err(error) => return Err(DriverError::Device { id, what: describe(&error) }),
    };
    let info = control.dev_info();
    let state = match u32::from(info.state) {
        sys::UBLK_S_DEV_LIVE => DeviceState::Live,
        sys::UBLK_S_DEV_QUIESCED => DeviceState::Quiesced,
        sys::UBLK_S_DEV_FAIL_IO => DeviceState::FailIo,
        _ => DeviceState::Dead,
    };
    let (pid, depth, io_buf_bytes) = (info.ublksrv_pid, info.queue_depth, info.max_io_buf_bytes);
    Ok(Some(DeviceInfo { id, state, pid, depth, io_buf_bytes, mark: info.ublksrv_flags }))
}

/// Where the node of block device `id` is.
pub fn node(id: u32) -> PathBuf {
    PathBuf::from(format!("/dev/ublkb{id}"))
}

/// The numbers of all devices of the driver.
pub fn devices() -> Vec<u32> {
    let entries = std::fs::read_dir("/sys/class/ublk-char").into_iter().flatten().flatten();
    let number = |entry: std::fs::DirEntry| entry.file_name().to_str()?.strip_prefix("ublkc")?.parse().ok();
    let mut ids: Vec<u32> = entries.filter_map(number).collect();
    ids.sort_unstable();
    ids
}

/// Prints a device as `rublk list` does: libublk's own text, which test suites parse.
///
/// # Errors
/// When the device cannot be asked.
pub fn dump(id: u32) -> Result<(), DriverError> {
    require(true)?;
    let control = control(id).map_err(|error| DriverError::Device { id, what: describe(&error) })?;
    control.dump();
    Ok(())
}

/// Stops and deletes device `id`, whose daemon is dead. Its users' requests fail.
///
/// # Errors
/// When the driver refuses.
pub fn delete(id: u32) -> Result<(), DriverError> {
    let failed = |error: UblkError| DriverError::Device { id, what: describe(&error) };
    let control = control(id).map_err(failed)?;
    // A device that was never started, or was stopped already, needs no stopping.
    let _ = control.kill_dev();
    remove(&control).map_err(failed)
}

/// Deletes a stopped device, which may take until its last user lets go.
pub(super) fn remove(control: &UblkCtrl) -> Result<(), UblkError> {
    done(control.del_dev_async()).or_else(|_| done(control.del_dev()))
}

/// The outcome of a command: libublk takes EBUSY for a success.
pub(super) fn done(result: Result<i32, UblkError>) -> Result<(), UblkError> {
    match result? {
        errno if errno < 0 => Err(UblkError::UringIOError(errno)),
        _ => Ok(()),
    }
}

/// A handle for a device that exists. libublk complains on stderr when its own notes about the device are gone.
pub(super) fn control(id: u32) -> Result<UblkCtrl, UblkError> {
    UblkCtrl::new_simple(i32::try_from(id).map_err(|_| UblkError::InvalidVal)?)
}

/// libublk's errors hide the errno in their debug text.
pub(super) fn describe(error: &UblkError) -> String {
    match error {
        UblkError::OtherError(errno) | UblkError::UringIOError(errno) => {
            io::Error::from_raw_os_error(-errno).to_string()
        }
        UblkError::IOError(error) => error.to_string(),
        other => other.to_string(),
    }
}

/// The errno in libublk's error, positive.
pub(super) fn errno(error: &UblkError) -> Option<i32> {
    match error {
        UblkError::OtherError(errno) | UblkError::UringIOError(errno) => Some(-errno),
        UblkError::IOError(error) => error.raw_os_error(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_bears_the_mark_of_its_volume() {
        let uuid = "0123abcd-0000-4000-8000-000000000000";
        let marked = |mark| DeviceInfo { id: 0, state: DeviceState::Live, pid: 1, depth: 1, io_buf_bytes: 1, mark };
        let device = marked(mark(Uuid::parse(uuid).expect("a uuid")));
        assert!(device.is_ours() && device.is_of(uuid));
        assert!(!device.is_of("0123abce-0000-4000-8000-000000000000") && !device.is_of(""));
        assert!(!marked(0).is_ours());
    }

    #[test]
    fn a_busy_device_is_no_success() {
        assert_eq!(errno(&done(Ok(-libc::EBUSY)).expect_err("busy")), Some(libc::EBUSY));
        done(Ok(0)).expect("done");
    }

    #[test]
    fn kernels_that_crash_are_known_by_their_release() {
        assert!(known_crash("6.17.0-1008-azure").is_some());
        assert!(known_crash("6.18.4").is_some());
        assert!(known_crash("6.18.4-zabbly+").is_some());
        for fine in ["6.12.117", "6.17.0-14-generic", "6.18.40", "6.18.5", "6.17.1-1010-azure", "6.8.0-1010-aws"] {
            assert_eq!(known_crash(fine), None, "{fine}");
        }
    }
}
