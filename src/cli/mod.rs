//! The commands: a file a verb. They read arguments, call the library and print; `run` turns their ends into exit codes.

mod agent;
mod attach;
mod check;
mod create;
mod daemon;
mod destroy;
mod detach;
mod dump;
mod failure;
mod features;
mod file;
mod geometry;
mod holding;
mod list;
mod manual;
mod marking;
mod parse;
mod past;
mod pin;
mod points;
mod primary;
mod prune;
mod rebuild;
mod recover;
mod restore;
mod rollback;
mod running;
mod status;
mod synch;
mod table;
mod verify;

use std::io::IsTerminal;
use std::process::ExitCode;

use clap::{Parser, Subcommand};

pub(crate) use failure::{Failure, Outcome};

/// A fast block device that is its own continuous backup.
///
/// `salvol` makes /dev/ublkbN, a block device whose every write is appended to a log of equal segments on a primary
/// device. Old segments are compressed and drained to a backing store while the device is in use, and then reused. Any
/// marked moment comes back.
///
/// Exit codes: 0 done; 1 failed; 2 wrong usage; 3 corruption found; 4 point not found or no longer restorable.
/// SALVOL_LOG sets what is logged (error, warn, info, debug, or by module).
#[derive(Debug, Parser)]
#[command(name = "salvol", version, arg_required_else_help = true, max_term_width = 110)]
pub(crate) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
    /// Say only what is asked for: no notes, no progress
    #[arg(short, long, global = true, conflicts_with = "verbose")]
    quiet: bool,
    /// Say more; twice for everything
    #[arg(short, long, global = true, action = clap::ArgAction::Count)]
    verbose: u8,
}

#[derive(Debug, Subcommand)]
enum Verb {
    Create(create::Arguments),
    Destroy(destroy::Arguments),
    Attach(attach::Arguments),
    Detach(detach::Arguments),
    Recover(recover::Arguments),
    Rebuild(rebuild::Arguments),
    List(list::Arguments),
    Status(status::Arguments),
    Synch(synch::Arguments),
    Agent(agent::Arguments),
    #[command(hide = true)]
    FreezeHelper(marking::FreezeHelper),
    Points(points::Arguments),
    Restore(restore::Arguments),
    Rollback(rollback::Arguments),
    Check(check::Arguments),
    Verify(verify::Arguments),
    Dump(dump::Arguments),
    Prune(prune::Arguments),
    Pin(pin::Pin),
    Unpin(pin::Unpin),
    Features(features::Arguments),
    Completions(manual::Completions),
    Man(manual::Man),
}

/// How much a command says beside its result.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Manner {
    pub(crate) quiet: bool,
    pub(crate) verbose: u8,
}

impl Manner {
    /// Says something for a person, on stderr, so that a script's stdout holds results only.
    pub(crate) fn note(self, text: impl std::fmt::Display) {
        if !self.quiet {
            table::aside!("{text}");
        }
    }

    /// Whether to draw progress bars.
    pub(crate) fn draws(self) -> bool {
        !self.quiet && std::io::stderr().is_terminal()
    }
}

/// Parses the command line and runs the command.
pub(crate) fn run() -> ExitCode {
    let arguments = Arguments::parse();
    let manner = Manner { quiet: arguments.quiet, verbose: arguments.verbose };
    let level = match (manner.quiet, manner.verbose) {
        (true, _) => "error",
        (false, 0) => "warn",
        (false, 1) => "info",
        (false, _) => "debug",
    };
    let environment = env_logger::Env::new().filter_or("SALVOL_LOG", level);
    env_logger::Builder::from_env(environment).format_target(false).init();
    let outcome = match arguments.verb {
        Verb::Create(arguments) => create::run(arguments, manner),
        Verb::Destroy(arguments) => destroy::run(&arguments),
        Verb::Attach(arguments) => attach::run(arguments, manner),
        Verb::Detach(arguments) => detach::run(&arguments, manner),
        Verb::Recover(arguments) => recover::run(&arguments, manner),
        Verb::Rebuild(arguments) => rebuild::run(&arguments, manner),
        Verb::List(arguments) => list::run(&arguments),
        Verb::Status(arguments) => status::run(&arguments),
        Verb::Synch(arguments) => synch::run(&arguments),
        Verb::Agent(arguments) => agent::run(&arguments, manner),
        Verb::FreezeHelper(arguments) => marking::freeze_helper(&arguments),
        Verb::Points(arguments) => points::run(&arguments),
        Verb::Restore(arguments) => restore::run(&arguments),
        Verb::Rollback(arguments) => rollback::run(&arguments, manner),
        Verb::Check(arguments) => check::run(&arguments),
        Verb::Verify(arguments) => verify::run(&arguments, manner),
        Verb::Dump(arguments) => dump::run(&arguments),
        Verb::Prune(arguments) => prune::run(&arguments),
        Verb::Pin(arguments) => pin::pin(&arguments),
        Verb::Unpin(arguments) => pin::unpin(&arguments),
        Verb::Features(arguments) => features::run(&arguments),
        Verb::Completions(arguments) => manual::completions(&arguments),
        Verb::Man(arguments) => manual::man(&arguments),
    };
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => failure.report(),
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_well_formed() {
        super::Arguments::command().debug_assert();
    }
}
