//! Volumes that run here, or did until their daemon died: found by name, primary or device.

use std::time::{Duration, Instant};

use salvol::control::{Client, RunDir, RunFile, is_running};
use salvol::ublk::{self, DeviceState};

use super::parse::Source;
use super::primary::canonical;
use super::{Failure, Outcome};

/// How long a killed daemon may take to end: the kernel waits for some of its I/O.
const DYING: Duration = Duration::from_secs(30);
/// How long a killed daemon may look alive.
pub(crate) const KILLED: Duration = Duration::from_secs(5);
/// How long to wait for somebody who only looks whether a lock is free.
const LOOKING: Duration = Duration::from_secs(1);

/// What has become of a run file's daemon and device.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Life {
    /// A daemon serves the volume, or starts to.
    Served,
    /// The daemon was killed and has not quite ended, or a later one starts and has no run file yet.
    Dying,
    /// The daemon is dead, the device waits for `recover`.
    Recoverable,
    /// Daemon and device are gone, or what is left of them is of no use.
    Gone,
}

/// What became of `run`. An error when the driver cannot be asked: then nothing may be done about it.
pub(crate) fn life(runs: &RunDir, run: &RunFile) -> Result<Life, Failure> {
    if !runs.is_locked(&run.name).map_err(|error| Failure::from(error).of(&run.name))? {
        return left(run);
    }
    Ok(if is_running(run.pid) { Life::Served } else { Life::Dying })
}

/// What a daemon left that is known to be dead.
pub(crate) fn left(run: &RunFile) -> Result<Life, Failure> {
    // What was written to a view may be gone with its daemon: nobody takes its device over.
    if run.at.is_some() {
        return Ok(Life::Gone);
    }
    Ok(match ublk::device(run.id)? {
        // Otherwise a device of somebody else has the number now.
        Some(device) if device.is_of(&run.device_uuid()) && device.state != DeviceState::Dead => Life::Recoverable,
        _ => Life::Gone,
    })
}

/// What became of `run`, once it is certain: a daemon that was killed may not have ended yet, and may look alive for
/// `killed`.
pub(crate) fn settled(runs: &RunDir, run: &RunFile, killed: Duration) -> Result<Life, Failure> {
    let start = Instant::now();
    loop {
        let life = life(runs, run)?;
        let patience = match life {
            Life::Served => killed,
            Life::Dying => DYING,
            Life::Recoverable | Life::Gone => return Ok(life),
        };
        if start.elapsed() >= patience {
            return Ok(life);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Removes what is left of a volume without a daemon: its device and its run file. Requests that waited fail.
pub(crate) fn clean(runs: &RunDir, run: &RunFile) -> Outcome {
    let Some(_lock) = runs.lock(&run.name, LOOKING)? else {
        return Err(Failure::new(format_args!("{}: a new daemon serves it by now", run.name)));
    };
    if ublk::device(run.id)?.is_some_and(|device| device.is_of(&run.device_uuid())) {
        ublk::delete(run.id)?;
    }
    runs.remove(&run.name);
    Ok(())
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
            all.into_iter().find(|run| run.device == path || run.primary == path && run.at.is_none())
        }
        Source::Spec(_) => None,
    })
}

/// A connection to the daemon of `run`.
pub(crate) fn connect(runs: &RunDir, run: &RunFile) -> Result<Client, Failure> {
    match life(runs, run)? {
        // It takes connections until its last thread has ended, and answers nothing.
        Life::Dying => Err(Failure::new(format_args!(
            "{}: its daemon (pid {}) has not quite ended, or a new one is starting: try again",
            run.name, run.pid
        ))),
        Life::Recoverable => Err(Failure::new(format_args!(
            "{}: its daemon (pid {}) is dead, {} waits: run `salvol recover {}`",
            run.name,
            run.pid,
            run.device.display(),
            run.name
        ))),
        Life::Served | Life::Gone => Client::connect(&runs.socket(&run.name))
            .map_err(|error| Failure::new(format_args!("{}: {error}", run.name))),
    }
}
