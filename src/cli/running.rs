//! Volumes that run here, or did until their daemon died: found by name, primary or device.

use std::path::Path;

use salvol::control::{Client, RunDir, RunFile};
use salvol::ublk::{self, DeviceState};

use super::Failure;
use super::parse::Source;
use super::primary::canonical;

/// What has become of a run file's daemon and device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// The daemon answers.
    Served,
    /// The daemon is dead, the device waits for `recover`.
    Recoverable,
    /// Daemon and device are gone, or what is left of them is of no use.
    Gone,
}

/// What became of `run`.
pub(crate) fn life(runs: &RunDir, run: &RunFile) -> Life {
    if runs.is_served(run) {
        return Life::Served;
    }
    match ublk::device(run.id) {
        // A device of somebody else has the number now.
        Ok(Some(device)) if device.pid != run.pid as i32 => Life::Gone,
        Ok(Some(device)) if device.state != DeviceState::Dead => Life::Recoverable,
        _ => Life::Gone,
    }
}

/// The run file of the volume that `text` names: by name, by primary or by device.
pub(crate) fn find(runs: &RunDir, text: &str) -> Result<RunFile, Failure> {
    lookup(runs, text)?.ok_or_else(|| {
        let hint = if nix::unistd::geteuid().is_root() { "" } else { ", to root: permission to see them is root's" };
        Failure::new(format_args!("{text}: no such volume is attached; `salvol list` shows them{hint}"))
    })
}

/// The same; none when there is none.
pub(crate) fn lookup(runs: &RunDir, text: &str) -> Result<Option<RunFile>, Failure> {
    let all = runs.all();
    Ok(match Source::parse(text).map_err(Failure::usage)? {
        Source::Name(name) => all.into_iter().find(|run| run.name == name),
        Source::Path(path) => {
            let path = canonical(&path);
            all.into_iter().find(|run| run.device == path || run.primary == path)
        }
        Source::Spec(_) => None,
    })
}

/// A connection to the daemon of `run`.
pub(crate) fn connect(runs: &RunDir, run: &RunFile) -> Result<Client, Failure> {
    Client::connect(&runs.socket(&run.name)).map_err(|error| match life(runs, run) {
        Life::Recoverable => Failure::new(format_args!(
            "{}: its daemon (pid {}) is dead, {} waits: run `salvol recover {}`",
            run.name,
            run.pid,
            run.device.display(),
            run.name
        )),
        _ => Failure::new(format_args!("{}: {error}", run.name)),
    })
}

/// Whether process `pid` still exists.
pub(crate) fn exists(pid: u32) -> bool {
    Path::new(&format!("/proc/{pid}")).exists()
}
