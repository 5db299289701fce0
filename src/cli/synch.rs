//! `salvol synch`: marks a moment at which the application says that the blocks are consistent.

use std::process::Command;

use salvol::control::{Request, RunDir, Wait};
use salvol::history::check_label;

use super::running::{connect, find};
use super::{Failure, Outcome, table};

/// Mark a synch point; durable when this returns.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// NAME of the volume
    volume: String,
    /// What to call the point
    #[arg(long, default_value = "")]
    label: String,
    /// More about it, kept with it
    #[arg(long, default_value = "")]
    info: String,
    /// Shell command that makes the application consistent; when it fails no point is marked
    #[arg(long, value_name = "CMD")]
    before: Option<String>,
    /// Shell command for afterwards; it runs whatever happened
    #[arg(long, value_name = "CMD")]
    after: Option<String>,
    /// When to return
    #[arg(long, value_enum, default_value = "durable")]
    wait: Wait,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    check_label(&arguments.label).map_err(Failure::usage)?;
    let runs = RunDir::from_environment();
    let run = find(&runs, &arguments.volume)?;
    let mut client = connect(&runs, &run)?;
    let request = Request::Synch { label: arguments.label.clone(), info: arguments.info.clone(), wait: arguments.wait };
    let before = arguments.before.as_deref().map_or(Ok(()), |command| shell("--before", command));
    let point = before.and_then(|()| {
        client.ask(&request).map_err(|error| Failure::new(format_args!("{}: no point was marked: {error}", run.name)))
    });
    let after = arguments.after.as_deref().map_or(Ok(()), |command| shell("--after", command));
    let point = point?;
    after?;
    if arguments.json {
        table::print_json(&point)?;
    } else {
        let text = |field: &str| point.get(field).and_then(|value| value.as_str()).unwrap_or_default().to_owned();
        table::say!("{} at {}, log position {}", text("id"), text("time"), point.get("position").unwrap_or_default());
    }
    Ok(())
}

fn shell(which: &str, command: &str) -> Outcome {
    let status = Command::new("/bin/sh").arg("-c").arg(command).status()?;
    if status.success() { Ok(()) } else { Err(Failure::new(format_args!("{which}: `{command}` failed: {status}"))) }
}
