//! `salvol restore`.

use std::io::IsTerminal;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use nix::sys::signal::{SigSet, Signal};
use salvol::control::RunDir;
use salvol::format::Superblock;
use salvol::history::{Progress, RestoreReport, exit_unfinished, restore};

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
    to: PathBuf,
    /// Overwrite a file that exists, or a device that holds something
    #[arg(long)]
    force: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    clean_up_on_signals()?;
    let source = open(&arguments.source)?;
    refuse_itself(source.volume(), &arguments.to)?;
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

/// A restore that is told to end leaves nothing unfinished behind. To be called before there are threads.
fn clean_up_on_signals() -> Outcome {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block()?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        if let Ok(signal) = signals.wait() {
            exit_unfinished(128 + signal as i32);
        }
    })?;
    Ok(())
}

/// The volume's own device would change what is read while it is read.
fn refuse_itself(volume: &Superblock, to: &Path) -> Outcome {
    let number = |path: &Path| {
        let found = std::fs::metadata(path).ok().filter(|found| found.file_type().is_block_device());
        found.map(|found| found.rdev())
    };
    let uuid = volume.uuid.to_string();
    let runs = RunDir::from_environment().all();
    match runs.iter().find(|run| run.uuid == uuid && number(to).is_some() && number(&run.device) == number(to)) {
        Some(run) => Err(Failure::new(format_args!(
            "{}: is the volume {} itself; restore to a file or to another device",
            to.display(),
            run.name
        ))),
        None => Ok(()),
    }
}

fn print(report: &RestoreReport, to: &Path) {
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
