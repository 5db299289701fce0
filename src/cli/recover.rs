//! `salvol recover`: a new daemon takes over the device of one that died. Requests that waited go on.

use std::time::{Duration, Instant};

use salvol::control::{RunDir, RunFile};
use salvol::ublk::{self, DeviceState};

use super::attach;
use super::parse::Size;
use super::running::{KILLED, Life, clean, every, find, settled};
use super::{Failure, Manner, Outcome, table};

/// How long to wait before saying what for.
const SILENCE: Duration = Duration::from_secs(3);

/// Take over the device of a daemon that died; what waits for it goes on.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// NAME of the volume, or its PRIMARY, or its device
    #[arg(required_unless_present = "all", conflicts_with = "all")]
    volume: Option<String>,
    /// All volumes whose daemon died
    #[arg(long)]
    all: bool,
    /// Even on a kernel that is known to crash with ublk devices
    #[arg(long)]
    force_kernel: bool,
}

pub(crate) fn run(arguments: &Arguments, manner: Manner) -> Outcome {
    let runs = RunDir::from_environment();
    ublk::require(arguments.force_kernel)?;
    let Some(volume) = &arguments.volume else {
        return every(&runs, |run| match settled(&runs, run, Duration::ZERO)? {
            Life::Served => Ok(()),
            Life::Dying => Err(dying(run)),
            Life::Recoverable => recover(run, arguments, manner),
            Life::Gone => {
                clean(&runs, run)?;
                manner.note(format_args!("{}: its device is gone; cleaned up", run.name));
                Ok(())
            }
        });
    };
    let run = find(&runs, volume)?;
    match settled(&runs, &run, KILLED)? {
        Life::Dying => Err(dying(&run)),
        Life::Recoverable => recover(&run, arguments, manner),
        Life::Served => {
            Err(Failure::new(format_args!("{}: nothing to recover: its daemon (pid {}) is alive", run.name, run.pid)))
        }
        Life::Gone => {
            clean(&runs, &run)?;
            Err(Failure::new(format_args!(
                "{}: {} is gone: nothing to take over; `salvol attach {}` makes a new device",
                run.name,
                run.device.display(),
                run.primary.display()
            )))
        }
    }
}

fn dying(run: &RunFile) -> Failure {
    Failure::new(format_args!("{}: its daemon (pid {}) was killed and has not ended yet: try again", run.name, run.pid))
}

fn recover(run: &RunFile, arguments: &Arguments, manner: Manner) -> Outcome {
    let deadline = Instant::now() + SILENCE;
    while is_live(run.id) {
        if Instant::now() > deadline {
            manner.note(format_args!(
                "{}: the kernel has not noticed yet that the daemon is dead; with every request at the daemon that takes 30 s",
                run.name
            ));
            break;
        }
        std::thread::sleep(Duration::from_millis(20));
    }
    let attach = attach::Arguments {
        primary: run.primary.clone(),
        at: None,
        writable: false,
        overlay: None,
        view: None,
        id: Some(run.id),
        // The device keeps the depth it has.
        depth: 128,
        read_only: run.read_only,
        foreground: false,
        accept_loss: None,
        archive_interval: Duration::from_millis(run.archive_interval_ms),
        socket_group: run.socket_group.clone(),
        archive_threads: run.archive_threads,
        archive_rate: run.archive_rate.map(Size),
        force_kernel: arguments.force_kernel,
        recover: Some(run.uuid.clone()),
        background_child: false,
    };
    table::say!("{}", attach::in_background(&attach, &run.name, manner)?.display());
    Ok(())
}

/// Whether the kernel takes the device for one that is served.
fn is_live(id: u32) -> bool {
    matches!(ublk::device(id), Ok(Some(device)) if device.state == DeviceState::Live)
}
