//! `salvol detach`: the device goes away, the volume is closed.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use salvol::control::{Client, ClientError, Request, RunDir, RunFile, is_running};
use salvol::ublk;

use super::running::{KILLED, Life, clean, every, find, lookup, settled};
use super::{Failure, Manner, Outcome};

/// How long a daemon that has answered may take to end.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// End the block device of a volume. One that is in use stays, and its users are named.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// NAME of the volume, or its device
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    volume: Option<String>,
    /// All volumes that are attached here
    #[arg(long)]
    all: bool,
    /// Although it is in use: what its users write fails from then on. Also a device that has lost its daemon and run file
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(arguments: &Arguments, manner: Manner) -> Outcome {
    let runs = RunDir::from_environment();
    let Some(volume) = &arguments.volume else {
        return every(&runs, |run| detach(&runs, run, arguments.force, manner));
    };
    match orphan(volume) {
        Some(id) if arguments.force && lookup(&runs, volume)?.is_none() => delete(id, volume, manner),
        _ => detach(&runs, &find(&runs, volume)?, arguments.force, manner),
    }
}

/// The number in `/dev/ublkbN`, which may be a device that no run file tells of.
fn orphan(device: &str) -> Option<u32> {
    device.strip_prefix("/dev/ublkb")?.parse().ok()
}

/// Deletes a device of salvol that no run file tells of.
fn delete(id: u32, name: &str, manner: Manner) -> Outcome {
    match ublk::device(id)? {
        Some(device) if !device.is_ours() => Err(Failure::new(format_args!("{name}: not a device of salvol"))),
        Some(device) if u32::try_from(device.pid).is_ok_and(is_running) => Err(Failure::new(format_args!(
            "{name}: process {} serves it, with run files elsewhere: see SALVOL_RUN_DIR",
            device.pid
        ))),
        Some(_) => {
            ublk::delete(id)?;
            manner.note(format_args!("{name}: it had no daemon and no run file; deleted"));
            Ok(())
        }
        None => Err(Failure::new(format_args!("{name}: there is no such device"))),
    }
}

fn detach(runs: &RunDir, run: &RunFile, force: bool, manner: Manner) -> Outcome {
    let name = &run.name;
    let mut life = settled(runs, run, Duration::ZERO)?;
    if life == Life::Served {
        match Client::connect(&runs.socket(name)).and_then(|mut daemon| daemon.ask(&Request::Detach { force })) {
            Ok(_) => {
                wait_for_end(run);
                return Ok(());
            }
            // Killed a moment ago: it listened until its last thread had ended.
            Err(error @ (ClientError::Connect(_) | ClientError::Gone)) => {
                life = settled(runs, run, KILLED)?;
                if life == Life::Served {
                    return Err(Failure::new(format_args!("{name}: {error}")));
                }
            }
            Err(error) => return Err(Failure::new(format_args!("{name}: {error}"))),
        }
    }
    match life {
        Life::Served | Life::Dying => {
            Err(Failure::new(format_args!("{name}: its daemon (pid {}) does not end", run.pid)))
        }
        Life::Gone => {
            clean(runs, run)?;
            manner.note(format_args!("{name}: its daemon and device were gone; cleaned up"));
            Ok(())
        }
        Life::Recoverable if force => {
            clean(runs, run)?;
            manner.note(format_args!(
                "{name}: its daemon was dead; the device is deleted, requests that waited have failed"
            ));
            Ok(())
        }
        Life::Recoverable => Err(Failure::new(format_args!(
            "{name}: its daemon (pid {}) is dead: `salvol recover {name}` first, or --force fails what waits for it",
            run.pid
        ))),
    }
}

fn wait_for_end(run: &RunFile) {
    let deadline = Instant::now() + END_PATIENCE;
    let process = PathBuf::from(format!("/proc/{}", run.pid));
    while process.exists() && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
}
