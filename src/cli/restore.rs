//! `salvol restore`.

use std::io::IsTerminal;

use salvol::history::{Progress, RestoreReport, restore};

use super::parse::Size;
use super::points::{failure, open};
use super::{Failure, Outcome, table};

/// Damaged blocks that are named one by one.
const NAMED_MAX: usize = 20;

/// Write the volume as it was at a point to a file or a device.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// NAME of a running volume, a PRIMARY, or a SPEC when the primary is gone
    source: String,
    /// The point: its id (p42), its label, `latest`, an RFC 3339 time, or a log position
    #[arg(long, value_name = "POINT")]
    at: String,
    /// A file, which becomes sparse, or a block device
    #[arg(long, value_name = "TARGET")]
    to: std::path::PathBuf,
    /// Overwrite a file that exists, or a device that holds something
    #[arg(long)]
    force: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let source = open(&arguments.source)?;
    let moment = source.resolve(&arguments.at).map_err(failure)?;
    // With --quiet only errors are logged.
    let quiet = !log::log_enabled!(log::Level::Warn);
    if !quiet {
        eprintln!("salvol: restoring {moment}");
    }
    let draws = !quiet && std::io::stderr().is_terminal();
    let progress = if draws { Progress::bar() } else { Progress::none() };
    let report = restore(&source, &moment, &arguments.to, arguments.force, &progress).map_err(failure)?;
    if arguments.json {
        table::print_json(&report)?;
    } else {
        print(&report, &arguments.to);
    }
    for damage in report.damaged.iter().take(NAMED_MAX) {
        eprintln!("salvol: {damage}");
    }
    match report.damaged.len() {
        0 => Ok(()),
        count => Err(Failure::corrupt(format_args!(
            "{count} of {} blocks are lost or damaged and are zeros in {}; the rest is restored",
            report.bytes / salvol::format::BLOCK_BYTES as u64,
            arguments.to.display()
        ))),
    }
}

fn print(report: &RestoreReport, to: &std::path::Path) {
    table::say!(
        "{}: {} in {} blocks ({} from the primary, {} from the archive), {} segments scanned, {:.1} s, to {}",
        report.point,
        Size(report.bytes),
        report.blocks,
        report.from_primary,
        report.from_archive,
        report.segments,
        report.seconds,
        to.display()
    );
}
