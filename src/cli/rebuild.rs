//! `salvol rebuild`: a new primary that continues a volume from its archive.

use std::path::{Path, PathBuf};
use std::time::Duration;

use salvol::archive::Spec;
use salvol::control::RunDir;
use salvol::format::{BLOCK_BYTES, Position, Superblock, Uuid};
use salvol::history::{Progress, RebuildOptions, RebuildPlan, RebuildReport, Source};
use salvol::io::{Bench, OwnRing, Platform, Primary, UringPlatform};
use serde_json::json;

use super::file::{has_holes, in_new_file, refuse_device_name, sync_directory, warn_of_file_system, write_through};
use super::holding::refuse_what_it_holds;
use super::parse::{self, Size};
use super::points::failure;
use super::primary::canonical;
use super::running::{Life, life};
use super::{Failure, Manner, Outcome, table};

/// Damaged blocks that are named one by one.
const NAMED_MAX: usize = 20;

/// Make a new primary that continues a volume from its archive, after the old one was lost.
///
/// The new primary starts a new history, which names the old one and the position where it forks; the store records that.
/// Every point of the old history can still be restored. An old primary that comes back is refused by the store.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A block device, or a file; one that does not exist is made. At least as large as the old one
    primary: PathBuf,
    /// The archive of the volume
    #[arg(long, value_name = "SPEC", value_parser = parse::spec)]
    from: String,
    /// Another name for the volume [default: the one it had]
    #[arg(long, value_parser = parse::name)]
    name: Option<String>,
    /// Go on from this position although the archive lists something newer, which is given up for good
    #[arg(long, value_name = "POSITION")]
    accept_loss: Option<u64>,
    /// Overwrite what PRIMARY holds
    #[arg(long)]
    force: bool,
    /// Only show where the volume would go on
    #[arg(long)]
    dry_run: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments, manner: Manner) -> Outcome {
    let path = canonical(&arguments.primary);
    refuse_device_name(&path)?;
    let spec = Spec::parse(&arguments.from).map_err(Failure::usage)?;
    if spec == Spec::None {
        return Err(Failure::usage("--from none: a volume without an archive cannot be rebuilt; give the SPEC of one"));
    }
    let source = Source::open_spec(&spec).map_err(failure)?;
    if source.reads_from(&path) {
        return Err(Failure::new(format_args!(
            "{}: is the archive itself, or in it, and would be lost; give another file or device",
            path.display()
        )));
    }
    let need = source.volume().geometry.primary_blocks * BLOCK_BYTES as u64;
    let primary = if path.exists() { Some(open(&path, need, arguments.force)?) } else { None };
    refuse_running(source.volume())?;
    let plan = plan(arguments, source)?;
    if arguments.dry_run {
        return report(arguments, &path, need, &plan.report());
    }
    warn_of_file_system(&path, manner);
    let written = match primary {
        Some(bench) => write(&path, &bench, plan, manner)?,
        None => in_new_file(&path, need, "", |bench| write(&path, bench, plan, manner))?,
    };
    report(arguments, &path, need, &written)?;
    for damage in written.damaged.iter().take(NAMED_MAX) {
        table::aside!("{damage}");
    }
    match written.damaged.len() {
        0 => Ok(()),
        count => Err(Failure::corrupt(format_args!(
            "{count} of {} blocks are lost or damaged in the archive and read as errors until they are overwritten; the volume \
             on {} is rebuilt and can be attached",
            written.bytes / BLOCK_BYTES as u64,
            path.display()
        ))),
    }
}

/// A primary that exists, large enough and with nothing on it that anybody would miss.
fn open(path: &Path, need: u64, force: bool) -> Result<Bench, Failure> {
    let primary = Primary::own(path, Duration::ZERO)?;
    let have = primary.bytes();
    if have < need {
        return Err(Failure::new(format_args!(
            "{}: the volume needs a primary of at least {need} bytes ({}), and this one has {have}",
            path.display(),
            Size(need)
        )));
    }
    let bench = Bench::new(primary)?;
    if !force {
        refuse_what_it_holds(path, &bench)?;
    }
    Ok(bench)
}

/// The old primary may not be lost after all.
fn refuse_running(volume: &Superblock) -> Outcome {
    let runs = RunDir::from_environment();
    let uuid = volume.uuid.to_string();
    for run in runs.all().iter().filter(|run| run.uuid == uuid && run.at.is_none()) {
        if matches!(life(&runs, run)?, Life::Served | Life::Dying) {
            return Err(Failure::new(format_args!(
                "{}: is attached on {} (primary {}): detach it first, or there would be two of it",
                run.name,
                run.device.display(),
                run.primary.display()
            )));
        }
    }
    Ok(())
}

fn plan(arguments: &Arguments, source: Source) -> Result<RebuildPlan, Failure> {
    let platform = UringPlatform::new(OwnRing::new(1)?, 1)?;
    let mut history = [0; 16];
    platform.random(&mut history);
    let options = RebuildOptions {
        history: Uuid::from_random(history),
        time_ns: platform.wall_ns(),
        name: arguments.name.clone(),
        backing: arguments.from.clone(),
        accept_loss: arguments.accept_loss.map(Position),
    };
    RebuildPlan::new(source, options).map_err(failure)
}

fn write(path: &Path, bench: &Bench, plan: RebuildPlan, manner: Manner) -> Result<RebuildReport, Failure> {
    if has_holes(path)? {
        write_through(bench, manner).map_err(|error| Failure::new(format_args!("{}: {error}", path.display())))?;
    }
    let device = bench.device.clone();
    let progress = if manner.draws() { Progress::bar() } else { Progress::none() };
    let report = bench.wait(async move { plan.write(&device, &progress).await })?;
    sync_directory(path);
    report.map_err(|error| failure(error).of(path.display()))
}

fn report(arguments: &Arguments, path: &Path, need: u64, report: &RebuildReport) -> Outcome {
    if arguments.json {
        return Ok(table::print_json(&json!({
            "name": report.name,
            "uuid": report.uuid,
            "primary": path,
            "backing": arguments.from,
            "history": report.history,
            "parent_history": report.parent_history,
            "fork_position": report.fork_position,
            "fork_time": report.fork_time,
            "size_bytes": report.bytes,
            "primary_bytes": need,
            "segments": report.segments,
            "seconds": report.seconds,
            "given_up": report.given_up,
            "damaged": report.damaged,
            "dry_run": arguments.dry_run,
        }))?);
    }
    let made = if arguments.dry_run { " (dry run: nothing was made)" } else { "" };
    let given_up = report.given_up.as_ref().map_or_else(String::new, |given_up| {
        let points =
            if given_up.points.is_empty() { String::new() } else { format!(" ({})", given_up.points.join(" ")) };
        format!("what is newer, up to segment {}{points}: {}", given_up.segment, given_up.cause)
    });
    table::print(&[
        ("volume", format!("{} ({}){made}", report.name, report.uuid)),
        ("size", Size(report.bytes).to_string()),
        ("primary", format!("{}, {}", path.display(), Size(need))),
        ("goes on", format!("from position {}, {}", report.fork_position, report.fork_time)),
        ("given up", given_up),
        ("history", format!("{}, which continues {}", report.history, report.parent_history)),
        ("segments", report.segments.to_string()),
    ]);
    Ok(())
}
