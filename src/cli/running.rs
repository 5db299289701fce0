//! Volumes that run here, or did until their daemon died: found by name, primary or device.

use std::path::Path;
use std::time::{Duration, Instant};

use salvol::control::{Client, RunDir, RunFile};
use salvol::ublk::{self, DeviceState};

use super::parse::Source;
use super::primary::canonical;
use super::{Failure, Outcome};

/// How long a killed daemon may take to end: the kernel waits for some of its I/O.
const DYING: Duration = Duration::from_secs(5);

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

/// What became of `run`, once it is certain: a daemon that was killed a moment ago may not have ended yet.
pub(crate) fn settled(runs: &RunDir, run: &RunFile) -> Life {
    let deadline = Instant::now() + DYING;
    loop {
        match life(runs, run) {
            Life::Served if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(20)),
            life => return life,
        }
    }
}

/// Removes what is left of a volume that is [`Life::Gone`].
pub(crate) fn clean(runs: &RunDir, run: &RunFile) {
    // A device that was stopped before its daemon died is of no use to anybody.
    if matches!(ublk::device(run.id), Ok(Some(device)) if device.pid == run.pid as i32)
        && let Err(error) = ublk::delete(run.id)
    {
        log::warn!("{error}");
    }
    runs.remove(&run.name);
}

/// Does `action` for every run file. All are tried; the first failure is the outcome, the others are printed.
pub(crate) fn every(runs: &RunDir, action: impl Fn(&RunFile) -> Outcome) -> Outcome {
    let mut failures = runs.all().iter().filter_map(|run| action(run).err()).collect::<Vec<_>>().into_iter();
    let first = failures.next();
    for failure in failures {
        failure.report();
    }
    first.map_or(Ok(()), Err)
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
