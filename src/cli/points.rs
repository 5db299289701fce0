//! `salvol points`: what can be restored. Also: where the past is, for the other commands that read it.

use salvol::archive::Spec;
use salvol::control::RunDir;
use salvol::history::{HistoryError, Points, Source as History, Whereabouts};

use super::parse::Source;
use super::running::find;
use super::{Failure, Outcome, table};

/// Show every synch point that can be restored, and from where.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// NAME of a running volume, a PRIMARY, or a SPEC when the primary is gone
    source: String,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let points = open(&arguments.source)?.points().map_err(failure)?;
    if arguments.json {
        return Ok(table::print_json(&points)?);
    }
    print(&points);
    Ok(())
}

fn print(points: &Points) {
    if !points.points.is_empty() {
        table::say!("{:<8} {:<30} {:>8}  {:<8} {:<6} LABEL", "ID", "TIME", "SEGMENTS", "WHERE", "PINNED");
    }
    for point in &points.points {
        let place = match point.whereabouts {
            Whereabouts::Primary => "primary",
            Whereabouts::Archive => "archive",
            Whereabouts::Both => "both",
            Whereabouts::Mixed => "mixed",
        };
        let label = table::plain(&point.label);
        let pinned = if point.pinned { "pinned" } else { "" };
        table::say!("{:<8} {:<30} {:>8}  {place:<8} {pinned:<6} {label}", point.id, point.time, point.segments);
    }
    if let (Some(oldest), Some(newest)) = (&points.oldest_restorable, &points.newest_restorable) {
        table::say!("any moment from {oldest} to {newest} can be restored");
    }
}

/// The past that `text` names: a running volume, a primary, or an archive alone.
pub(super) fn open(text: &str) -> Result<History, Failure> {
    match Source::parse(text).map_err(Failure::usage)? {
        Source::Path(path) => History::open_primary(&path),
        Source::Spec(spec) => {
            let spec = Spec::parse(&spec).map_err(Failure::usage)?;
            History::open_spec(&spec)
        }
        Source::Name(_) => {
            let run = find(&RunDir::from_environment(), text)?;
            if let Some(at) = &run.at {
                return Err(Failure::usage(format_args!("{text}: is a view of the past ({at}); name the volume")));
            }
            History::open_primary(&run.primary)
        }
    }
    .map_err(failure)
}

/// The same, of the moment in `past` that `text` names: says what is near when it cannot be had.
pub(super) fn failure_at(past: &History, text: &str, error: HistoryError) -> Failure {
    match past.nearest(text).filter(|_| error.is_no_point()) {
        Some(nearest) => Failure::no_point(format_args!("{error}; {nearest}")),
        None => failure(error),
    }
}

/// The exit code that an error of the past deserves.
pub(super) fn failure(error: HistoryError) -> Failure {
    if error.is_usage() {
        Failure::usage(error)
    } else if error.is_no_point() {
        Failure::no_point(error)
    } else if error.is_corruption() {
        Failure::corrupt(error)
    } else {
        Failure::new(error)
    }
}
