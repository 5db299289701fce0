//! `salvol attach`: a volume becomes a block device, served by a daemon in the background or by this process.

use std::fs::OpenOptions;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use salvol::control::{RunDir, RunFile};
use salvol::format::Superblock;
use salvol::ublk;

use super::daemon::{self, Ready};
use super::parse::{self, Size};
use super::primary::{canonical, look};
use super::running::{Life, clean, settled};
use super::{Failure, Manner, Outcome, past, table};

/// Make the volume on PRIMARY a block device; prints its path when it can be used.
///
/// With --at, a volume as it was becomes a second device, called NAME@POINT: read-only, or, with --writable, to be written to. The
/// volume itself goes on meanwhile. SOURCE is then a running volume's NAME, a PRIMARY, or a SPEC when the primary is gone.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct Arguments {
    /// A block device or a file that `salvol create` made a volume; with --at also a NAME or a SPEC
    #[arg(value_name = "PRIMARY|SOURCE")]
    pub(crate) primary: PathBuf,
    /// The volume as it was: a point's id (p42), its label, `latest`, an RFC 3339 time, or a log position
    #[arg(long, value_name = "POINT", conflicts_with_all = ["accept_loss", "read_only", "archive_threads", "archive_rate"])]
    pub(crate) at: Option<String>,
    /// Take writes, which the volume never sees; they are discarded at detach
    #[arg(long, requires = "at")]
    pub(crate) writable: bool,
    /// Keep what is written in FILE, for a later attach at the same point
    #[arg(long, value_name = "FILE", requires = "writable")]
    pub(crate) overlay: Option<PathBuf>,
    /// What the view is called, from the process that found the point
    #[arg(long, hide = true, requires = "at", value_name = "NAME")]
    pub(crate) view: Option<String>,
    /// The device's number: N of /dev/ublkbN [default: the first free one]
    #[arg(long, value_name = "N")]
    pub(crate) id: Option<u32>,
    /// Requests that the device takes at once
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u16).range(1..=4096))]
    pub(crate) depth: u16,
    /// Take no writes
    #[arg(long)]
    pub(crate) read_only: bool,
    /// Serve in this process instead of the background
    #[arg(long)]
    pub(crate) foreground: bool,
    /// Go on at this log position although something later was durable once, and is damaged now
    #[arg(long, value_name = "POSITION")]
    pub(crate) accept_loss: Option<u64>,
    /// The longest that a change waits to be archived with a part of its segment; 0 archives full segments only
    #[arg(long, value_name = "DURATION", default_value = "10s", value_parser = parse::duration)]
    pub(crate) archive_interval: Duration,
    /// Let this group use the control socket
    #[arg(long, value_name = "GROUP")]
    pub(crate) socket_group: Option<String>,
    /// Segments that are archived at once, each with the memory of two [default: the cores, 2 to 8]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u16).range(1..=64))]
    pub(crate) archive_threads: Option<u16>,
    /// Put at most so many bytes a second into the store, like 50M
    #[arg(long, value_name = "SIZE", value_parser = parse::size)]
    pub(crate) archive_rate: Option<Size>,
    /// Even on a kernel that is known to crash when a device is added
    #[arg(long)]
    pub(crate) force_kernel: bool,
    /// Take over the device from a daemon that died; the volume must be this one
    #[arg(long, hide = true, requires = "id", value_name = "UUID")]
    pub(crate) recover: Option<String>,
    /// This is the background process: standard output is a pipe to the one that waits
    #[arg(long, hide = true, requires = "foreground")]
    pub(crate) background_child: bool,
}

pub(crate) fn run(mut arguments: Arguments, manner: Manner) -> Outcome {
    if arguments.at.is_some() {
        return past::run(arguments, manner);
    }
    arguments.primary = canonical(&arguments.primary);
    if arguments.background_child {
        return daemon::background(&arguments);
    }
    let superblock = prepare(&arguments)?;
    if arguments.foreground {
        return daemon::serve(&arguments, Ready::Foreground);
    }
    table::say!("{}", in_background(&arguments, &superblock.name, manner)?.display());
    Ok(())
}

/// Everything that can be known to fail before a daemon is started.
fn prepare(arguments: &Arguments) -> Result<Superblock, Failure> {
    let runs = RunDir::from_environment();
    let all = runs.all();
    if let Some(run) = all.iter().find(|run| run.primary == arguments.primary && run.at.is_none()) {
        refuse_if_attached(&runs, run)?;
    }
    let superblock = look(&arguments.primary)?;
    if let Some(run) = all.iter().find(|run| run.name == superblock.name) {
        refuse_if_attached(&runs, run)?;
    }
    ublk::require(arguments.force_kernel)?;
    Ok(superblock)
}

pub(crate) fn refuse_if_attached(runs: &RunDir, run: &RunFile) -> Outcome {
    match settled(runs, run, Duration::ZERO)? {
        Life::Served | Life::Dying => Err(served(run)),
        Life::Recoverable => Err(recoverable(run)),
        Life::Gone => clean(runs, run),
    }
}

/// Why a volume cannot be attached that is.
pub(crate) fn served(run: &RunFile) -> Failure {
    Failure::new(format_args!(
        "{0}: attached already: {1} on {2}, served by process {3}; `salvol detach {0}` ends that",
        run.name,
        run.device.display(),
        run.primary.display(),
        run.pid
    ))
}

/// Why a volume cannot be attached whose device waits.
pub(crate) fn recoverable(run: &RunFile) -> Failure {
    Failure::new(format_args!(
        "{0}: its daemon (pid {1}) is dead and {2} waits for it: run `salvol recover {0}`",
        run.name,
        run.pid,
        run.device.display()
    ))
}

/// Starts a daemon and waits until its device can be used; gives the device's path.
pub(crate) fn in_background(arguments: &Arguments, name: &str, manner: Manner) -> Result<PathBuf, Failure> {
    let runs = RunDir::from_environment();
    runs.make().map_err(|error| Failure::new(format_args!("{}: {error}", runs.log(name).display())))?;
    let log = runs.log(name);
    let mut command = Command::new("/proc/self/exe");
    command.args(child_arguments(arguments, manner)).current_dir("/").stdin(Stdio::null()).stdout(Stdio::piped());
    if !logs_to_journal() {
        let file = OpenOptions::new().append(true).create(true).mode(0o600).open(&log);
        let file = file.map_err(|error| Failure::new(format_args!("{}: {error}", log.display())))?;
        command.stderr(file);
    }
    let mut child =
        command.spawn().map_err(|error| Failure::new(format_args!("the daemon cannot be started: {error}")))?;
    // Empty lines only try whether somebody listens.
    let lines = child.stdout.take().into_iter().flat_map(|pipe| BufReader::new(pipe).lines().map_while(Result::ok));
    let word = lines.into_iter().find(|line| !line.is_empty()).unwrap_or_default();
    if let Some(device) = word.strip_prefix("ready ") {
        return Ok(PathBuf::from(device));
    }
    let _ = child.wait();
    Err(match word.strip_prefix("error ").and_then(|error| error.split_once(' ')) {
        Some((code, what)) => Failure::reported(code.parse().unwrap_or(1), what),
        None => Failure::new(format_args!("{name}: the daemon ended before it was ready: see {}", log.display())),
    })
}

/// Whether standard error is the journal: systemd names its device and inode, to whatever was started since.
fn logs_to_journal() -> bool {
    let journal = std::env::var("JOURNAL_STREAM").unwrap_or_default();
    nix::sys::stat::fstat(std::io::stderr()).is_ok_and(|file| journal == format!("{}:{}", file.st_dev, file.st_ino))
}

fn child_arguments(arguments: &Arguments, manner: Manner) -> Vec<std::ffi::OsString> {
    let mut list: Vec<std::ffi::OsString> = vec!["attach".into(), "--foreground".into(), "--background-child".into()];
    let flags =
        [("--read-only", arguments.read_only), ("--force-kernel", arguments.force_kernel), ("--quiet", manner.quiet)];
    list.extend(flags.into_iter().filter(|(_, given)| *given).map(|(flag, _)| flag.into()));
    list.extend((0..manner.verbose).map(|_| "--verbose".into()));
    let values = [
        ("--at", arguments.at.clone()),
        ("--view", arguments.view.clone()),
        ("--id", arguments.id.map(|id| id.to_string())),
        ("--recover", arguments.recover.clone()),
        ("--depth", Some(arguments.depth.to_string())),
        ("--accept-loss", arguments.accept_loss.map(|position| position.to_string())),
        ("--archive-interval", Some(format!("{}ms", arguments.archive_interval.as_millis()))),
        ("--socket-group", arguments.socket_group.clone()),
        ("--archive-threads", arguments.archive_threads.map(|threads| threads.to_string())),
        ("--archive-rate", arguments.archive_rate.map(|Size(bytes)| bytes.to_string())),
    ];
    for (flag, value) in values {
        list.extend(value.map(|value| format!("{flag}={value}").into()));
    }
    list.extend(arguments.writable.then(|| "--writable".into()));
    list.extend(arguments.overlay.iter().flat_map(|file| ["--overlay".into(), file.into()]));
    list.push("--".into());
    list.push(Path::new(&arguments.primary).into());
    list
}
