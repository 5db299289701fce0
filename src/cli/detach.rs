//! `salvol detach`: the device goes away, the volume is closed.

use std::time::{Duration, Instant};

use salvol::control::{Request, RunDir, RunFile};
use salvol::ublk;

use super::running::{Life, connect, exists, find, life};
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

/// Does `action` for every run file. All are tried; the first failure is the outcome, the others are printed.
pub(crate) fn every(runs: &RunDir, action: impl Fn(&RunFile) -> Outcome) -> Outcome {
    let mut failures = runs.all().iter().filter_map(|run| action(run).err()).collect::<Vec<_>>().into_iter();
    let first = failures.next();
    for failure in failures {
        failure.report();
    }
    first.map_or(Ok(()), Err)
}

fn detach(runs: &RunDir, run: &RunFile, force: bool, manner: Manner) -> Outcome {
    let name = &run.name;
    match life(runs, run) {
        Life::Served => {}
        Life::Gone => {
            runs.remove(name);
            manner.note(format_args!("{name}: its daemon and device were gone; cleaned up"));
            return Ok(());
        }
        Life::Recoverable if force => {
            ublk::delete(run.id)?;
            runs.remove(name);
            manner.note(format_args!(
                "{name}: its daemon was dead; the device is deleted, requests that waited have failed"
            ));
            return Ok(());
        }
        Life::Recoverable => {
            return Err(Failure::new(format_args!(
                "{name}: its daemon (pid {}) is dead: `salvol recover {name}` first, or --force fails what waits for it",
                run.pid
            )));
        }
    }
    let mut client = connect(runs, run)?;
    client.ask(&Request::Detach { force }).map_err(|error| Failure::new(format_args!("{name}: {error}")))?;
    let deadline = Instant::now() + END_PATIENCE;
    while exists(run.pid) && Instant::now() < deadline {
        std::thread::sleep(Duration::from_millis(2));
    }
    Ok(())
}
