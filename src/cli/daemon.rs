//! The daemon: one process serves one volume, from open to detach.
//!
//! Five kinds of threads: the owner's, which does the work (`salvol::ublk`), the archiver's, the readers', which read the
//! store for somebody who waits, those of the control socket, one that waits for signals. The main thread talks to the driver and takes [`Order`]s.

use std::fs::File;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal};
use salvol::control::{LOOKING, Mailbox, Message, Order, RunDir, RunFile, Socket, users};
use salvol::format::{Position, Superblock};
use salvol::log::Archiving;
use salvol::ublk::{self, Live, Options, Server, What};
use salvol::volume::OpenOptions;

use super::attach::{Arguments, recoverable, served};
use super::parse::Size;
use super::primary::look;
use super::running::{Life, left};
use super::{Failure, Outcome, past};

/// How long to wait for the locks of the volume and of its primary: a dead daemon's last I/O holds them.
const LOCK_PATIENCE: Duration = Duration::from_secs(5);
/// The same for a daemon that takes over, and knows that one died.
const RECOVER_PATIENCE: Duration = Duration::from_secs(10);

/// Whom to tell that the device can be used.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ready {
    /// A person, or a script, that reads standard output.
    Foreground,
    /// The process that started this one and waits for a line.
    Pipe,
}

/// The background process: out of the terminal's session, with nothing open that the daemon did not open.
pub(crate) fn background(arguments: &Arguments) -> Outcome {
    let _ = nix::unistd::setsid();
    close_inherited();
    serve(arguments, Ready::Pipe).inspect_err(|failure| {
        // After the device was announced this goes nowhere.
        println!("error {} {}", failure.code(), failure.to_string().replace('\n', " "));
    })
}

/// Files that a careless parent left open would stay open for the life of the volume, a mount point among them.
fn close_inherited() {
    let entries = std::fs::read_dir("/proc/self/fd").into_iter().flatten().flatten();
    let numbers: Vec<i32> = entries.filter_map(|entry| entry.file_name().to_str()?.parse().ok()).collect();
    for number in numbers.into_iter().filter(|number| *number > 2) {
        // The directory's own descriptor is among them and gone by now.
        let _ = nix::unistd::close(number);
    }
}

/// What a daemon with these arguments serves, under which name; and the volume's superblock, when it is no view.
fn task(arguments: &Arguments) -> Result<(What, String, Option<Superblock>), Failure> {
    if let Some(view) = &arguments.view {
        return Ok((past::what(arguments, view)?, view.clone(), None));
    }
    let superblock = look(&arguments.primary)?;
    let what = What::Volume { primary: arguments.primary.clone(), open: open_options(arguments) };
    Ok((what, superblock.name.clone(), Some(superblock)))
}

/// Serves the volume until it is detached.
pub(crate) fn serve(arguments: &Arguments, ready: Ready) -> Outcome {
    let early = |failure: Failure| failure.of(arguments.primary.display());
    ublk::require(arguments.force_kernel)?;
    let runs = RunDir::from_environment();
    runs.make().map_err(|error| early(error.into()))?;
    let group = socket_group(arguments.socket_group.as_deref()).map_err(early)?;
    let (what, name, superblock) = task(arguments)?;
    let _lock = claim(arguments, &runs, &name, superblock.as_ref()).map_err(early)?;
    // What a view is about to read is not pruned before its run file says so.
    let turn = arguments.view.is_some().then(|| past::turn(arguments, &runs)).transpose()?;
    ublk::be_io_flusher();
    ublk::lock_memory();
    let mailbox = Arc::new(Mailbox::default());
    let (sender, orders) = channel();
    watch_signals(sender.clone()).map_err(early)?;
    let server =
        Server::open(options(arguments, what), Arc::clone(&mailbox), sender.clone()).map_err(|error| match error {
            // These name the primary themselves.
            ublk::ServerError::Primary(_) => error.into(),
            _ => early(error.into()),
        })?;
    let (views, uuid) = (runs.clone(), server.superblock().uuid.to_string());
    let archive = server.lease(Arc::new(move || views.leased_from(&uuid)));
    let recovers = arguments.recover.is_some();
    // Two daemons that ask for the same number could delete each other's device.
    let numbers = if recovers { None } else { Some(runs.lock_numbers().map_err(|error| early(error.into()))?) };
    let run = run_file(arguments, &server, &name);
    let announce = |id| {
        drop(numbers);
        let announced = announce(&runs, &RunFile { id, device: ublk::node(id), ..run }, ready);
        drop(turn);
        announced
    };
    let live = server.go_live(announce).map_err(|error| {
        if !recovers {
            runs.remove(&name);
        }
        early(error.into())
    })?;
    let device = live.path();
    let path = runs.socket(&name);
    let primary = arguments.view.is_none().then(|| arguments.primary.clone());
    let daemon =
        Daemon { runs, name: name.clone(), mailbox: Arc::clone(&mailbox), orders, is_view: arguments.view.is_some() };
    let socket = match Socket::listen(&path, group, device.display().to_string(), primary, archive, mailbox, sender) {
        Ok(socket) => socket,
        Err(error) => {
            let failure = Failure::new(format_args!("{}: {error}", path.display()));
            daemon.give_up(live, recovers);
            return Err(failure);
        }
    };
    tell(ready, &device);
    log::info!("{name}: live as {}", device.display());
    daemon.attend(live, &socket).map_err(|failure| failure.of(&name))
}

/// Takes the lock of the volume's name for the life of this process, and makes sure that the volume is the one that is
/// meant and has no device already.
fn claim(arguments: &Arguments, runs: &RunDir, name: &str, superblock: Option<&Superblock>) -> Result<File, Failure> {
    if let (Some(uuid), Some(superblock)) = (&arguments.recover, superblock)
        && *uuid != superblock.uuid.to_string()
    {
        return Err(Failure::new(format_args!(
            "holds the volume {name} ({}) now; the device waits for {uuid}",
            superblock.uuid
        )));
    }
    let lock = runs.lock(name, patience(arguments))?;
    let other = runs.all().into_iter().find(|run| run.name == name);
    match (lock, other) {
        (None, Some(run)) => Err(served(&run)),
        (None, None) => Err(Failure::new(format_args!("{name}: a volume of this name is being attached"))),
        (Some(_), Some(run)) if arguments.recover.is_none() && left(&run)? == Life::Recoverable => {
            Err(recoverable(&run))
        }
        (Some(lock), _) => Ok(lock),
    }
}

fn run_file(arguments: &Arguments, server: &Server, name: &str) -> RunFile {
    let (superblock, view) = (server.superblock(), server.view());
    RunFile {
        name: name.to_owned(),
        uuid: superblock.uuid.to_string(),
        pid: std::process::id(),
        primary: arguments.primary.clone(),
        // Known when there is a device.
        id: 0,
        device: ublk::node(0),
        backing: superblock.backing.clone(),
        started: jiff::Timestamp::now().to_string(),
        read_only: arguments.read_only,
        archive_interval_ms: u64::try_from(arguments.archive_interval.as_millis()).unwrap_or(u64::MAX),
        socket_group: arguments.socket_group.clone(),
        archive_threads: arguments.archive_threads,
        archive_rate: arguments.archive_rate.map(|Size(bytes)| bytes),
        at: view.map(|view| view.at.clone()),
        needs_from: view.map(|view| view.needs_from.0),
    }
}

/// Before the device can be used: makes it known, unless whoever wanted it has gone.
fn announce(runs: &RunDir, run: &RunFile, ready: Ready) -> io::Result<()> {
    if ready == Ready::Pipe {
        let mut stdout = io::stdout();
        stdout.write_all(b"\n").and_then(|()| stdout.flush())?;
    }
    runs.write(run)
}

/// How the daemon is about to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    /// The device was stopped and goes.
    Detach,
    /// The device waits for a later daemon.
    Leave,
}

struct Daemon {
    runs: RunDir,
    name: String,
    mailbox: Arc<Mailbox>,
    orders: Receiver<Order>,
    /// Whether its device ends with it, whoever uses it.
    is_view: bool,
}

impl Daemon {
    /// Takes orders until the volume is closed.
    fn attend(self, live: Live, socket: &Socket) -> Outcome {
        let mut answers: Vec<Sender<Result<(), String>>> = Vec::new();
        let mut end = None;
        let stopped = loop {
            match (self.orders.recv(), end) {
                (Ok(Order::Detach { answer, .. }), Some(End::Leave)) => answers.push(answer),
                (Ok(Order::Detach { force, answer }), _) => match self.detach(&live, force) {
                    Ok(()) => {
                        end = Some(End::Detach);
                        answers.push(answer);
                    }
                    Err(why) => drop(answer.send(Err(why))),
                },
                (Ok(Order::Signal(signal)), Some(End::Leave)) => {
                    return Err(Failure::new(format_args!(
                        "signal {signal} came again; ended without closing the volume"
                    )));
                }
                // It ends already, and its device goes with it.
                (Ok(Order::Signal(_)), Some(End::Detach)) => {}
                (Ok(Order::Signal(signal)), None) => end = Some(self.heed(signal, &live)),
                (Ok(Order::Ended { stopped }), _) => break stopped,
                (Err(_), _) => break false,
            }
        };
        if end == Some(End::Leave) || !stopped {
            // The run file stays for `recover`.
            let left = live.leave();
            for answer in answers {
                let _ = answer.send(Err("its daemon has ended meanwhile, the device waits: try again".to_owned()));
            }
            socket.settle();
            return match (stopped, left) {
                (true, Ok(())) => Ok(()),
                (_, Err(error)) => Err(error.into()),
                (false, Ok(())) => Err(Failure::new("the queue failed; `salvol recover` takes the device over")),
            };
        }
        let finished = live.finish();
        self.runs.remove(&self.name);
        for answer in answers {
            let _ = answer.send(finished.as_ref().map(drop).map_err(ToString::to_string));
        }
        socket.settle();
        log::info!("{}: detached", self.name);
        Ok(finished?)
    }

    /// Stops the device unless somebody uses it; with `force` whoever uses it.
    fn detach(&self, live: &Live, force: bool) -> Result<(), String> {
        if !force && let Some(users) = used_for_long(&live.path()) {
            return Err(format!("in use: {users}; --force detaches all the same"));
        }
        if force {
            if let Some(users) = used_by(&live.path()) {
                log::warn!("{}: detached by force while {users}", self.name);
            }
            // Also when nobody is seen: somebody in another name space may wait.
            self.mailbox.send(Message::FailWaiting);
        }
        live.stop().map_err(|error| error.to_string())
    }

    /// Ends for a signal: detaches when nobody uses the device, otherwise leaves it to a later daemon.
    fn heed(&self, signal: i32, live: &Live) -> End {
        match used_for_long(&live.path()).filter(|_| !self.is_view) {
            None => match live.stop() {
                Ok(()) => return End::Detach,
                Err(error) => log::error!("{}: {error}", self.name),
            },
            Some(users) => log::warn!(
                "{}: signal {signal} while {users}: the volume is closed, its device waits: run `salvol recover {}`",
                self.name,
                self.name
            ),
        }
        self.mailbox.send(Message::Leave);
        End::Leave
    }

    /// Ends a device that went live and cannot be announced.
    fn give_up(self, live: Live, recovered: bool) {
        if recovered {
            self.mailbox.send(Message::Leave);
        } else if live.stop().is_err() {
            return;
        }
        while let Ok(order) = self.orders.recv() {
            if matches!(order, Order::Ended { .. }) {
                break;
            }
        }
        if recovered {
            let _ = live.leave();
        } else {
            let _ = live.finish();
            self.runs.remove(&self.name);
        }
    }
}

/// Who uses the device for longer than a look takes.
pub(crate) fn used_for_long(device: &Path) -> Option<String> {
    let deadline = Instant::now() + LOOKING;
    loop {
        let users = used_by(device)?;
        if Instant::now() > deadline {
            return Some(users);
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Who uses the device, as a phrase; none when nobody does. Opening it exclusively also finds users that this process
/// cannot see, in other namespaces.
fn used_by(device: &Path) -> Option<String> {
    let users = users(device);
    if !users.is_empty() {
        return Some(users.iter().map(ToString::to_string).collect::<Vec<_>>().join(", "));
    }
    let exclusive = std::fs::OpenOptions::new().read(true).custom_flags(libc::O_EXCL | libc::O_CLOEXEC).open(device);
    match exclusive {
        Err(error) if error.raw_os_error() == Some(libc::EBUSY) => {
            Some("held by somebody who cannot be seen from here".to_owned())
        }
        _ => None,
    }
}

fn open_options(arguments: &Arguments) -> OpenOptions {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    // Each waits for the store most of its time, and gives way to the owner.
    let threads = arguments.archive_threads.map_or(cores.clamp(Archiving::default().threads, 8), usize::from);
    let interval = Some(arguments.archive_interval).filter(|interval| !interval.is_zero());
    let archiving = Archiving { threads, rate: arguments.archive_rate.map(|Size(bytes)| bytes), interval };
    OpenOptions { read_only: arguments.read_only, accept_loss: arguments.accept_loss.map(Position), archiving }
}

fn options(arguments: &Arguments, what: What) -> Options {
    Options {
        what,
        id: arguments.id,
        recover: arguments.recover.is_some(),
        depth: arguments.depth,
        patience: patience(arguments),
    }
}

fn patience(arguments: &Arguments) -> Duration {
    if arguments.recover.is_some() { RECOVER_PATIENCE } else { LOCK_PATIENCE }
}

fn socket_group(name: Option<&str>) -> Result<Option<u32>, Failure> {
    let Some(name) = name else { return Ok(None) };
    match nix::unistd::Group::from_name(name) {
        Ok(Some(group)) => Ok(Some(group.gid.as_raw())),
        _ => Err(Failure::new(format_args!("--socket-group: there is no group {name}"))),
    }
}

/// Signals that ask for an end become orders. They are blocked in every thread; this one takes them.
fn watch_signals(orders: Sender<Order>) -> Result<(), Failure> {
    let mut signals = SigSet::empty();
    for signal in [Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP] {
        signals.add(signal);
    }
    signals.thread_block()?;
    std::thread::Builder::new().name("signals".to_owned()).spawn(move || {
        while let Ok(signal) = signals.wait() {
            if orders.send(Order::Signal(signal as i32)).is_err() {
                return;
            }
        }
    })?;
    Ok(())
}

/// Says that the device can be used. Afterwards nothing more can be said to the pipe: it is closed.
fn tell(ready: Ready, device: &Path) {
    let mut stdout = io::stdout();
    let _ = match ready {
        Ready::Foreground => writeln!(stdout, "{}", device.display()),
        Ready::Pipe => writeln!(stdout, "ready {}", device.display()),
    };
    let _ = stdout.flush();
    if ready == Ready::Pipe
        && let Ok(null) = std::fs::OpenOptions::new().write(true).open("/dev/null")
    {
        let _ = nix::unistd::dup2_stdout(&null);
    }
}
