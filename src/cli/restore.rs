//! `salvol restore`.

use std::io::IsTerminal;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use nix::sys::signal::{SigSet, Signal};
use salvol::control::RunDir;
use salvol::format::Superblock;
use salvol::history::{Interrupt, Progress, RestoreOptions, RestoreReport, restore_with};

use super::file::refuse_device_name;
use super::parse::Size;
use super::points::{failure_at, open};
use super::{Failure, Outcome, table};

/// Damaged blocks that are named one by one.
const NAMED_MAX: usize = 20;

/// Write the volume as it was at a point to a file or a device.
///
/// A file is there when it is whole; until then it is .NAME.partial beside it. A restore that was interrupted, by a signal, a
/// full disk or a power cut, goes on when the same command is given again: what it had recorded as written is read and
/// compared, and only the rest is restored. Another point, volume or size starts over.
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
    refuse_device_name(&arguments.to)?;
    let stop = Arc::new(Interrupt::default());
    stop_on_signals(&stop)?;
    let source = open(&arguments.source)?;
    refuse_itself(source.volume(), &arguments.to)?;
    let moment = source.resolve(&arguments.at).map_err(|error| failure_at(&source, &arguments.at, error))?;
    // With --quiet only errors are logged.
    let quiet = !log::log_enabled!(log::Level::Warn);
    if !quiet {
        table::aside!("restoring {moment}");
    }
    let draws = !quiet && std::io::stderr().is_terminal();
    let progress = if draws { Progress::bar() } else { Progress::none() };
    let options = RestoreOptions { force: arguments.force, stop: Arc::clone(&stop), ..RestoreOptions::default() };
    let report = restore_with(&source, &moment, &arguments.to, &options, &progress).map_err(|error| {
        let failure = failure_at(&source, &arguments.at, error);
        match stop.asked() {
            Some(signal) => Failure::reported(128 + signal as u8, &failure.to_string()),
            None => failure,
        }
    })?;
    if arguments.json {
        table::print_json(&report)?;
    } else {
        print(&report, &arguments.to);
    }
    for damage in report.damaged.iter().take(NAMED_MAX) {
        table::aside!("{damage}");
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

/// A restore that is told to end records how far it is; told twice, or while there is nothing to record, it ends at once.
/// To be called before there are threads.
fn stop_on_signals(stop: &Arc<Interrupt>) -> Outcome {
    let signals = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP]);
    signals.thread_block()?;
    let stop = Arc::clone(stop);
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        while let Ok(signal) = signals.wait() {
            let again = stop.asked().is_some();
            if !stop.ask(signal as i32) || again {
                std::process::exit(128 + signal as i32);
            }
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
    if report.resumed > 0 {
        table::say!("{} of the blocks had been written by a restore that was interrupted", report.resumed);
    }
}
