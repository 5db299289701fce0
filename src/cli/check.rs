//! `salvol check`.

use salvol::history::{CheckReport, check_path};

use super::points::failure;
use super::{Failure, Outcome, table};

/// Check the structure of a primary: offline, in seconds; decodes no data, never writes.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A block device or a file that holds a volume
    primary: std::path::PathBuf,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let report = check_path(&arguments.primary).map_err(failure)?;
    if arguments.json {
        table::print_json(&report)?;
    } else {
        print(&report);
    }
    if report.ok {
        return Ok(());
    }
    Err(Failure::corrupt(format_args!("{}: damage was found", arguments.primary.display())))
}

fn print(report: &CheckReport) {
    for finding in &report.findings {
        table::say!("{finding}");
    }
    table::print(&[
        ("volume", format!("{} ({}), epoch {}", report.name, report.uuid, report.epoch)),
        ("log", format!("ends at position {} in segment {}", report.position, report.segment)),
        ("segments", format!("{} checked in {} slots", report.segments_checked, report.slots)),
        ("index", format!("from {} segments", report.segments_needed)),
        ("entries", format!("{} in {} batches, {} synch points", report.entries, report.batches, report.synch_points)),
        ("blocks", format!("{} of {} with data, {} lost", report.blocks_live, report.blocks, report.blocks_lost)),
        ("result", format!("{}, in {:.1} s", if report.ok { "clean" } else { "DAMAGED" }, report.seconds)),
    ]);
}
