//! `salvol synch`: marks a moment at which the application says that the blocks are consistent.

use std::path::PathBuf;
use std::time::Duration;

use nix::sys::signal::{SigSet, Signal};
use salvol::agent::{self, AgentError};
use salvol::control::{RunDir, Wait};
use salvol::history::check_label;

use super::marking::{Marker, freezer};
use super::parse;
use super::running::find;
use super::{Failure, Outcome, table};

/// Mark a synch point; durable when this returns.
///
/// The order is: --before, freeze, mark, thaw, --after, and then, with --wait archived, waiting for the store. --after runs and the
/// file system is thawed whatever happened. Both commands find SALVOL_NAME, SALVOL_DEVICE and SALVOL_LABEL in their environment;
/// --after also SALVOL_POINT, SALVOL_POSITION and SALVOL_TIME, empty when no point was marked.
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
    /// Freeze the file system mounted here, which is on the volume, while the point is marked
    #[arg(long, value_name = "MOUNTPOINT")]
    freeze: Option<PathBuf>,
    /// The longest that it stays frozen, and that writers which are being slowed down are waited for before
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse::limit, requires = "freeze")]
    freeze_limit: Duration,
    /// Shell command that makes the application consistent; when it fails no point is marked
    #[arg(long, value_name = "CMD")]
    before: Option<String>,
    /// Shell command for afterwards; it runs whatever happened
    #[arg(long, value_name = "CMD")]
    after: Option<String>,
    /// The longest that --before, --after, and with --after the mark, may take, each; commands are killed then
    #[arg(long, value_name = "DURATION", default_value = "1m", value_parser = parse::limit)]
    hook_limit: Duration,
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
    let mut marker = Marker::new(&runs, &run, &arguments.label, None)?;
    let mountpoint =
        arguments.freeze.as_deref().map(|path| marker.may_freeze(path, arguments.freeze_limit)).transpose()?;
    let hook = |which: &str, command: Option<&str>, facts: &[(&str, String)]| {
        let run = |command| agent::shell(command, facts, arguments.hook_limit);
        command.map_or(Ok(()), run).map_err(|error| Failure::new(format_args!("{which}: {error}")))
    };
    // Signals that would end this wait until the application is let go of, which takes no longer than the limits.
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    if arguments.after.is_some() {
        signals.thread_block()?;
    }
    let before = hook("--before", arguments.before.as_deref(), &marker.facts());
    let point = before.and_then(|()| {
        let marked = match &mountpoint {
            None => {
                let patience = arguments.after.is_some().then_some(arguments.hook_limit);
                marker.mark(&arguments.info, patience).map_err(AgentError::Mark)
            }
            Some(path) => agent::fs(path, arguments.freeze_limit, freezer, &mut |frozen| {
                marker.mark(
                    if arguments.info.is_empty() { frozen } else { &arguments.info },
                    Some(arguments.freeze_limit),
                )
            }),
        };
        marked.map_err(|error| Failure::new(error).of(&run.name))
    });
    let after = hook("--after", arguments.after.as_deref(), &marker.facts());
    signals.thread_unblock()?;
    let point = point?;
    after?;
    if arguments.wait == Wait::Archived {
        marker.wait_archived(&point).map_err(|error| Failure::new(error).of(&run.name))?;
    }
    if arguments.json {
        table::print_json(&point)?;
    } else {
        table::say!("{} at {}, log position {}", point.id, point.time, point.position);
    }
    Ok(())
}
