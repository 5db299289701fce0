//! `salvol prune`.

use std::time::Duration;

use salvol::control::Request;
use salvol::history::{Keep, PruneReport, prune, rfc3339};

use super::parse::{self, Size};
use super::pin::Archive;
use super::points::failure;
use super::{Failure, Outcome, table};

/// Remove from the archive what no rule keeps. Without a rule nothing is removed.
///
/// Beside what the rule keeps there stays: what a rebuild needs, what is pinned (`salvol pin`), and what a view of the past or a
/// rollback reads. The oldest goes first, so a prune that is interrupted leaves an archive in one piece.
///
/// The JSON has: dry_run, segments, objects, bytes (what was removed, or would be), oldest_restorable (since when every moment can be
/// restored).
#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("rule").required(true)))]
pub(crate) struct Arguments {
    /// NAME of a running volume, a PRIMARY, or a SPEC when the primary is gone
    source: String,
    /// Keep every moment of this long, like 7d
    #[arg(long, value_name = "DURATION", group = "rule", value_parser = parse::age)]
    keep_for: Option<Duration>,
    /// Keep so many of the newest synch points, and every moment since
    #[arg(long, value_name = "N", group = "rule", value_parser = clap::value_parser!(u64).range(1..))]
    keep_points: Option<u64>,
    /// Only show what would be removed
    #[arg(long)]
    dry_run: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let archive = Archive::of(&arguments.source)?;
    let now = jiff::Timestamp::now().as_nanosecond();
    let since = |age: Duration| i64::try_from(now.saturating_sub_unsigned(age.as_nanos())).unwrap_or(i64::MIN);
    let keep = match (arguments.keep_for, arguments.keep_points) {
        (Some(age), _) => Keep::Since(since(age)),
        (None, Some(count)) => Keep::Points(count),
        (None, None) => return Err(Failure::usage("give --keep-for or --keep-points")),
    };
    let dry_run = arguments.dry_run;
    let report: PruneReport = match archive.daemon()? {
        Some(daemon) => {
            let (keep_since, keep_points) = match keep {
                Keep::Since(time_ns) => (Some(rfc3339(time_ns)), None),
                Keep::Points(count) => (None, Some(count)),
            };
            daemon.ask(&Request::Prune { keep_since, keep_points, dry_run })?
        }
        None => {
            let _turn = archive.turn();
            prune(&archive.past, keep, &|| archive.leased(), dry_run).map_err(failure)?
        }
    };
    if arguments.json {
        return Ok(table::print_json(&report)?);
    }
    print(&report);
    Ok(())
}

fn print(report: &PruneReport) {
    let how = if report.dry_run { "would be removed" } else { "were removed" };
    match report.objects {
        0 => table::say!("everything in the archive is kept"),
        objects => table::say!("{} segments {how}: {objects} objects, {}", report.segments, Size(report.bytes)),
    }
    if let Some(oldest) = &report.oldest_restorable {
        table::say!("any moment since {oldest} can be restored");
    }
}
