//! `salvol rollback`: the volume returns to what it was.

use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use salvol::control::{Request, RunDir, RunFile};
use salvol::history::Source;
use serde::{Deserialize, Serialize};

use super::daemon::used_for_long;
use super::points::{failure, failure_at};
use super::running::{connect, find};
use super::{Failure, Manner, Outcome, table};

mod ioctl {
    #![expect(unsafe_code, reason = "nix makes unsafe functions of ioctl numbers; this one takes only the descriptor")]
    nix::ioctl_none!(blkflsbuf, 0x12, 97);

    /// Drops what the kernel has cached of a block device.
    pub(super) fn flush_cache(device: &std::fs::File) -> nix::Result<()> {
        // SAFETY: the descriptor is open.
        unsafe { blkflsbuf(std::os::fd::AsRawFd::as_raw_fd(device)) }.map(drop)
    }
}

/// Make a volume what it was at a synch point, or any moment.
///
/// It stays attached, and nobody may have it open. The volume as it is now is marked as a synch point before, and all of its history
/// stays: so a rollback can be undone by another one. What differs between the two moments is written to the log; nobody sees the
/// volume meanwhile, and after a crash midway the next attach finishes it first.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// NAME of the volume
    volume: String,
    /// POINT: an id (p42), a label, `latest`, a time or a log position
    #[arg(long, value_name = "POINT")]
    to: String,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// What the daemon says it did.
#[derive(Debug, Serialize, Deserialize)]
struct Done {
    before: String,
    position: u64,
    bytes: u64,
}

pub(crate) fn run(arguments: &Arguments, manner: Manner) -> Outcome {
    let runs = RunDir::from_environment();
    let run = find(&runs, &arguments.volume)?;
    if let Some(at) = &run.at {
        return Err(Failure::usage(format_args!("{}: is a view of the past ({at}); name the volume", run.name)));
    }
    let past = Source::open_primary(&run.primary).map_err(failure)?;
    let moment = past.resolve(&arguments.to).map_err(|error| failure_at(&past, &arguments.to, error))?;
    let mut client = connect(&runs, &run)?;
    let device = hold(&run)?;
    let request = Request::Rollback { to: moment.position.to_string() };
    let answer = client.ask(&request).map_err(|error| Failure::new(error).of(&run.name));
    // What was cached is of before; when the answer did not come it may be.
    let flushed = flush(&device, &run.device);
    let done: Done = serde_json::from_value(answer?)
        .map_err(|error| Failure::new(format_args!("{}: its answer: {error}", run.name)))?;
    flushed?;
    if arguments.json {
        return Ok(table::print_json(&done)?);
    }
    table::say!("{} is {moment}", run.name);
    manner.note(format_args!(
        "{} bytes differed; `salvol rollback {} --to {}` undoes it",
        done.bytes, run.name, done.before
    ));
    Ok(())
}

/// Opens the device so that nobody can mount it meanwhile. What somebody wrote and left in the kernel's cache is written back:
/// it is part of what the volume is now.
fn hold(run: &RunFile) -> Result<File, Failure> {
    let failed = |error: std::io::Error| Failure::new(format_args!("{}: {error}", run.device.display()));
    if let Some(users) = used_for_long(&run.device) {
        return Err(Failure::new(format_args!("{}: it is in use: {users}; nothing has been changed", run.name)));
    }
    let device = OpenOptions::new().read(true).custom_flags(libc::O_EXCL | libc::O_CLOEXEC).open(&run.device);
    let device = device.map_err(failed)?;
    device.sync_all().map_err(failed)?;
    Ok(device)
}

fn flush(device: &File, path: &Path) -> Outcome {
    ioctl::flush_cache(device)
        .map_err(|error| Failure::new(format_args!("{}: its cache may show the past: {error}", path.display())))
}
