//! `salvol list`: volumes and devices here.

use std::time::Duration;

use salvol::control::{Client, Request, RunDir, RunFile};
use salvol::ublk;
use serde_json::{Value, json};

use super::running::{Life, life};
use super::{Outcome, table};

/// How long a daemon may take to say how it is.
const PATIENCE: Duration = Duration::from_secs(5);

/// Show the volumes that are attached here.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// As JSON
    #[arg(long, conflicts_with = "format")]
    json: bool,
    /// `rublk`: every ublk device, as `rublk list` prints it
    #[arg(long, value_enum)]
    format: Option<Format>,
    /// Only the device of this number, with --format
    #[arg(short = 'n', long = "number", hide = true, requires = "format")]
    number: Option<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
enum Format {
    Rublk,
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    if arguments.format == Some(Format::Rublk) {
        for id in ublk::devices().into_iter().filter(|id| arguments.number.is_none_or(|number| number == *id)) {
            ublk::dump(id)?;
        }
        return Ok(());
    }
    let runs = RunDir::from_environment();
    let volumes: Vec<(RunFile, String)> = runs.all().into_iter().map(|run| (run.clone(), state(&runs, &run))).collect();
    if arguments.json {
        let volumes: Vec<Value> = volumes.iter().map(|(run, state)| describe(run, state)).collect();
        return Ok(table::print_json(&json!({ "volumes": volumes }))?);
    }
    let width = volumes.iter().map(|(run, _)| run.name.len()).max().unwrap_or_default().max(4);
    if !volumes.is_empty() {
        table::say!("{:width$}  {:14} {:8} {:12} PRIMARY, OR MOMENT", "NAME", "DEVICE", "PID", "STATE");
    }
    for (run, state) in &volumes {
        table::say!(
            "{:width$}  {:14} {:<8} {state:12} {}",
            run.name,
            run.device.display(),
            run.pid,
            run.at.clone().unwrap_or_else(|| run.primary.display().to_string())
        );
    }
    Ok(())
}

fn describe(run: &RunFile, state: &str) -> Value {
    json!({
        "name": run.name,
        "uuid": run.uuid,
        "device": run.device,
        "pid": run.pid,
        "state": state,
        "primary": run.primary,
        "backing": run.backing,
        "at": run.at,
    })
}

/// What the daemon says, `silent` when it says nothing; without a daemon `dying`, `recoverable` or `gone`; `unknown` when
/// the driver cannot be asked.
fn state(runs: &RunDir, run: &RunFile) -> String {
    let state = match life(runs, run) {
        Ok(Life::Served) => return said(runs, run).unwrap_or_else(|| "silent".to_owned()),
        Ok(Life::Dying) => "dying",
        Ok(Life::Recoverable) => "recoverable",
        Ok(Life::Gone) => "gone",
        Err(_) => "unknown",
    };
    state.to_owned()
}

fn said(runs: &RunDir, run: &RunFile) -> Option<String> {
    let mut daemon = Client::connect(&runs.socket(&run.name)).ok()?;
    daemon.set_patience(Some(PATIENCE)).ok()?;
    Some(daemon.ask(&Request::Status {}).ok()?.get("state")?.as_str()?.to_owned())
}
