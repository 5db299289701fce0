//! `salvol agent`: has points marked again and again, each at a moment at which an application is consistent.
//!
//! A round finds the volume and connects anew, so that it goes on after a detach and an attach, and after a daemon that was
//! recovered. What fails is logged, shows in the volume's status, and is tried again in the next round.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use jiff::Timestamp;
use salvol::agent::{self, AgentError, Mark};
use salvol::control::{AgentName, RunDir, Wait};
use salvol::history::{PointInfo, check_label};

use super::marking::{Marker, freezer};
use super::parse;
use super::running::find;
use super::{Failure, Manner, Outcome, table};

/// Have points marked at regular moments of an application.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// NAME of the volume
    volume: String,
    #[command(subcommand)]
    application: Application,
    /// How often
    #[arg(long, value_name = "DURATION", default_value = "30s", value_parser = parse::limit, global = true)]
    every: Duration,
    /// Label of the points: PREFIX-YYYYMMDDTHHMMSSZ [default: none]
    #[arg(long, value_name = "PREFIX", global = true)]
    label: Option<String>,
    /// End after so many rounds, with the outcome of the last
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..), global = true)]
    rounds: Option<u64>,
    /// When a round is done
    #[arg(long, value_enum, default_value = "durable", global = true)]
    wait: Wait,
    /// The longest that the application is waited for, or held, in a round
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse::limit, global = true)]
    limit: Duration,
}

#[derive(Debug, clap::Subcommand)]
enum Application {
    /// A file system on the volume, frozen at the moment
    Fs { mountpoint: PathBuf },
    /// A PostgreSQL server (by psql): points carry its WAL position and system identifier
    Postgres {
        /// What psql connects to: a URI, a connection string, or a database
        uri: String,
        /// Have it write a checkpoint before each point, so that recovery from it is short
        #[arg(long)]
        checkpoint: bool,
    },
    /// SQLite databases (by sqlite3), whose write locks are held at the moment
    Sqlite {
        #[arg(required = true)]
        files: Vec<PathBuf>,
    },
    /// A shell command; the moment is when it has succeeded, and what it prints is kept with the point
    Exec { command: String },
}

impl Application {
    /// What the status calls the agent.
    fn name(&self) -> String {
        match self {
            Self::Fs { mountpoint } => format!("fs {}", mountpoint.display()),
            // A URI may have a password in it.
            Self::Postgres { .. } => "postgres".to_owned(),
            Self::Sqlite { files } => {
                let names: Vec<String> = files.iter().map(|file| file.display().to_string()).collect();
                format!("sqlite {}", names.join(" "))
            }
            Self::Exec { command } => format!("exec {command}"),
        }
    }

    /// Has a moment of the application marked.
    fn hold(&self, limit: Duration, marker: &mut Marker) -> Result<PointInfo, Failure> {
        let held = match self {
            Self::Fs { mountpoint } => {
                let path = marker.may_freeze(mountpoint, limit)?;
                agent::fs(&path, limit, freezer, &mut mark(marker, limit))
            }
            Self::Postgres { uri, checkpoint } => agent::postgres(uri, *checkpoint, limit, &mut mark(marker, limit)),
            Self::Sqlite { files } => {
                marker.not_held_back(limit)?;
                agent::sqlite(files, limit, &mut mark(marker, limit))
            }
            Self::Exec { command } => {
                let facts = marker.facts();
                agent::exec(command, &facts, limit, &mut mark(marker, limit))
            }
        };
        held.map_err(|error: AgentError| Failure::new(error))
    }
}

fn mark(marker: &mut Marker, limit: Duration) -> Box<Mark<'_, PointInfo>> {
    Box::new(move |info| marker.mark(info, Some(limit)))
}

pub(crate) fn run(arguments: &Arguments, manner: Manner) -> Outcome {
    if let Some(prefix) = &arguments.label {
        check_label(&label(prefix)).map_err(Failure::usage)?;
    }
    let runs = RunDir::from_environment();
    // A name that is mistyped should be found out at once.
    find(&runs, &arguments.volume)?;
    let (mut round, mut due) = (0, Instant::now());
    let mut failing: Option<String> = None;
    loop {
        let outcome = one_round(&runs, arguments, manner);
        round += 1;
        match (&outcome, &failing) {
            (Ok(()), Some(_)) => log::warn!("{}: points are marked again", arguments.volume),
            (Err(failure), before) if before.as_ref() != Some(&failure.to_string()) => {
                log::error!("{}: no point: {failure}", arguments.volume);
            }
            _ => {}
        }
        failing = outcome.as_ref().err().map(ToString::to_string);
        if arguments.rounds == Some(round) {
            return outcome;
        }
        // Rounds that are missed are not made up for.
        while due <= Instant::now() {
            due += arguments.every;
        }
        std::thread::sleep(due.saturating_duration_since(Instant::now()));
    }
}

fn one_round(runs: &RunDir, arguments: &Arguments, manner: Manner) -> Outcome {
    let run = find(runs, &arguments.volume)?;
    let every_ms = u64::try_from(arguments.every.as_millis()).unwrap_or(u64::MAX);
    let name = AgentName { name: arguments.application.name(), every_ms };
    let label = arguments.label.as_deref().map(label).unwrap_or_default();
    let mut marker = Marker::new(runs, &run, &label, Some(name))?;
    let point = arguments.application.hold(arguments.limit, &mut marker);
    let point = point.inspect_err(|failure| marker.report(&failure.to_string()))?;
    if arguments.wait == Wait::Archived {
        marker.wait_archived(&point).map_err(Failure::new)?;
    }
    if !manner.quiet {
        table::say!("{} at {}, log position {}{}", point.id, point.time, point.position, told(&point.info));
    }
    Ok(())
}

fn told(info: &str) -> String {
    if info.is_empty() { String::new() } else { format!(": {}", table::plain(info)) }
}

fn label(prefix: &str) -> String {
    format!("{prefix}-{}", Timestamp::now().strftime("%Y%m%dT%H%M%SZ"))
}
