//! `salvol detach`: the device goes away, the volume is closed.

use std::time::{Duration, Instant};

use salvol::control::{ClientError, Request, RunDir, RunFile};
use salvol::ublk;

use super::running::{Life, clean, connect, every, exists, find, life, settled};
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
    /// Although it is in use: what its users write fails from then on
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(arguments: &Arguments, manner: Manner) -> Outcome {
    let runs = RunDir::from_environment();
    let Some(volume) = &arguments.volume else {
        return every(&runs, |run| detach(&runs, run, arguments.force, manner));
    };
    let run = find(&runs, volume)?;
    detach(&runs, &run, arguments.force, manner)
}

fn detach(runs: &RunDir, run: &RunFile, force: bool, manner: Manner) -> Outcome {
    let name = &run.name;
    if life(runs, run) == Life::Served {
        match connect(runs, run)?.ask(&Request::Detach { force }) {
            Ok(_) => {
                wait_for_end(run);
                return Ok(());
            }
            // Killed a moment ago: it listened until its last thread had ended.
            Err(ClientError::Gone) if settled(runs, run) != Life::Served => {}
            Err(error) => return Err(Failure::new(format_args!("{name}: {error}"))),
        }
    }
    match life(runs, run) {
        Life::Served => Err(Failure::new(format_args!("{name}: a new daemon serves it by now"))),
        Life::Gone => {
            clean(runs, run);
            manner.note(format_args!("{name}: its daemon and device were gone; cleaned up"));
            Ok(())
        }
        Life::Recoverable if force => {
            ublk::delete(run.id)?;
            runs.remove(name);
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
    while exists(run.pid) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
}
