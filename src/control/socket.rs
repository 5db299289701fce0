//! The control socket: a thread that listens, a thread for each connection, a bound on both.

use std::fs;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{getsockopt, sockopt};
use serde_json::Value;

use super::agents::Agents;
use super::protocol::{self, AgentName, LINE_BYTES_MAX, Reply, Request, Wait};
use super::retention::{Retention, ServedArchive};
use super::{Mailbox, Message, RunDir, User, users};
use crate::format::{BLOCK_BYTES, Position};
use crate::history::{HistoryError, PointInfo, Scene, Source};
use crate::volume::{Aim, RolledBack};

/// Connections at a time. Agents keep one each; more than this is somebody's mistake.
const CONNECTIONS_MAX: usize = 32;
/// A connection that takes nothing for so long is closed.
const WRITE_PATIENCE: Duration = Duration::from_secs(10);
/// How long somebody who only looks what is on a device, as udev does, may have it open.
pub const LOOKING: Duration = Duration::from_secs(1);
/// How often a connection that waits for long looks whether anybody still does.
const LISTENING: Duration = Duration::from_millis(500);
/// How long the end of the process waits for the last replies.
const SETTLE_PATIENCE: Duration = Duration::from_secs(2);

/// What the main thread is told to do.
#[derive(Debug)]
pub enum Order {
    /// Stop the device and end. The answer comes at the end.
    Detach { force: bool, answer: Sender<Result<(), String>> },
    /// A signal asks the process to end.
    Signal(i32),
    /// The owner has closed the volume: because its queue was stopped, or else because it could not go on.
    Ended { stopped: bool },
}

/// A socket that listens; removed when dropped.
pub struct Socket {
    path: PathBuf,
    desk: Arc<Desk>,
}

/// What a connection needs to do its work.
struct Desk {
    mailbox: Arc<Mailbox>,
    orders: Sender<Order>,
    device: String,
    /// The primary of a volume; a view of the past has none of its own.
    primary: Option<PathBuf>,
    /// The archive of a volume that has one.
    archive: Option<ServedArchive>,
    connections: AtomicUsize,
    /// Requests that have no reply yet.
    busy: AtomicUsize,
    agents: Agents,
}

impl Socket {
    /// Listens at `path`, mode 0600, or 0660 with `group`. Requests go to `mailbox` and `orders`.
    ///
    /// # Errors
    /// When the socket cannot be made.
    pub fn listen(
        path: &Path,
        group: Option<u32>,
        device: String,
        primary: Option<PathBuf>,
        archive: Option<ServedArchive>,
        mailbox: Arc<Mailbox>,
        orders: Sender<Order>,
    ) -> io::Result<Self> {
        // Whoever listened here is dead: the primary's lock is ours.
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        // Made aside and renamed, so that nobody connects before the mode is right.
        let aside = path.with_extension("sock.new");
        let _ = fs::remove_file(&aside);
        let listener = UnixListener::bind(&aside)?;
        let mode = if group.is_some() { 0o660 } else { 0o600 };
        if group.is_some() {
            std::os::unix::fs::chown(&aside, None, group)?;
        }
        fs::set_permissions(&aside, fs::Permissions::from_mode(mode))?;
        fs::rename(&aside, path)?;
        let (connections, busy) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let desk =
            Arc::new(Desk { mailbox, orders, device, primary, archive, connections, busy, agents: Agents::default() });
        let its_desk = Arc::clone(&desk);
        std::thread::Builder::new().name("control".to_owned()).spawn(move || accept(&listener, &its_desk))?;
        Ok(Self { path: path.to_owned(), desk })
    }

    /// Lets replies that are on their way arrive before the process ends.
    pub fn settle(&self) {
        let deadline = Instant::now() + SETTLE_PATIENCE;
        while self.desk.busy.load(Ordering::Acquire) > 0 && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(1));
        }
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        let _ = fs::remove_file(&self.path);
    }
}

fn accept(listener: &UnixListener, desk: &Arc<Desk>) {
    for stream in listener.incoming() {
        let mut stream = match stream {
            Ok(stream) => stream,
            Err(error) => {
                log::warn!("control socket: {error}");
                std::thread::sleep(Duration::from_millis(100));
                continue;
            }
        };
        let _ = stream.set_write_timeout(Some(WRITE_PATIENCE));
        if desk.connections.fetch_add(1, Ordering::Relaxed) >= CONNECTIONS_MAX {
            desk.connections.fetch_sub(1, Ordering::Relaxed);
            let _ = stream.write_all(&Reply::Error("too many connections".to_owned()).line());
            continue;
        }
        let its_desk = Arc::clone(desk);
        let spawned = std::thread::Builder::new().name("connection".to_owned()).spawn(move || {
            converse(stream, &its_desk);
            its_desk.connections.fetch_sub(1, Ordering::Relaxed);
        });
        if let Err(error) = spawned {
            log::warn!("control socket: no thread for a connection: {error}");
            desk.connections.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

/// Answers the requests of one connection until it ends or breaks the rules.
fn converse(mut stream: UnixStream, desk: &Desk) {
    let Ok(reading) = stream.try_clone() else { return };
    let mut reader = BufReader::new(reading);
    loop {
        let mut line = Vec::new();
        match reader.by_ref().take(LINE_BYTES_MAX as u64).read_until(b'\n', &mut line) {
            Ok(0) | Err(_) => return,
            Ok(_) => {}
        }
        let whole = line.last() == Some(&b'\n');
        desk.busy.fetch_add(1, Ordering::AcqRel);
        let reply = if whole || line.len() < LINE_BYTES_MAX {
            Request::parse(&line).and_then(|request| answer(request, &stream, desk))
        } else {
            Err(format!("a line has more than {LINE_BYTES_MAX} bytes"))
        };
        let reply = reply.map_or_else(Reply::Error, Reply::Ok);
        let written = stream.write_all(&reply.line());
        desk.busy.fetch_sub(1, Ordering::AcqRel);
        if written.is_err() || !whole {
            return;
        }
    }
}

/// The next message, for as long as the asker is there to hear of it: a store may be away for days.
fn while_connected<T>(receiver: &Receiver<T>, stream: &UnixStream) -> Option<T> {
    loop {
        match receiver.recv_timeout(LISTENING) {
            Ok(message) => return Some(message),
            Err(RecvTimeoutError::Disconnected) => return None,
            Err(RecvTimeoutError::Timeout) => {}
        }
        let mut polled = [PollFd::new(stream.as_fd(), PollFlags::empty())];
        if poll(&mut polled, PollTimeout::ZERO).is_ok_and(|ready| ready > 0) {
            return None;
        }
    }
}

fn gone() -> String {
    "the volume is being detached".to_owned()
}

fn answer(request: Request, stream: &UnixStream, desk: &Desk) -> Result<Value, String> {
    match request {
        Request::Status {} => {
            let (sender, receiver) = channel();
            if !desk.mailbox.send(Message::Status { answer: sender }) {
                return Err(gone());
            }
            let mut status = receiver.recv().map_err(|_| gone())?;
            status.device = Some(desk.device.clone());
            status.agents = desk.agents.statuses();
            serde_json::to_value(status).map_err(|error| error.to_string())
        }
        Request::Synch { label, info, wait, agent } => {
            let point = mark(label, info, agent.as_ref(), stream, desk)?;
            if wait == Wait::Archived {
                archived(point.position, stream, desk)
                    .map_err(|error| format!("{} is marked and durable, but not in the archive: {error}", point.id))?;
            }
            Ok(protocol::point(&point))
        }
        Request::Archived { position } => {
            archived(position, stream, desk).map(|()| serde_json::json!({ "position": position }))
        }
        Request::Report { agent, error } => {
            desk.agents.note(&agent, Err(&error));
            Ok(serde_json::json!({}))
        }
        Request::Rollback { to } => {
            refuse_users(stream, desk)?;
            let RolledBack { before, position, blocks } = roll_back(&to, desk)?;
            let bytes = blocks * BLOCK_BYTES as u64;
            Ok(serde_json::json!({ "before": format!("p{before}"), "position": position.0, "bytes": bytes }))
        }
        Request::Pin { point } => told(retention(desk)?.pin(&point)?),
        Request::Unpin { point } => told(retention(desk)?.unpin(&point)?),
        Request::Prune { keep_since, keep_points, dry_run } => {
            let report = retention(desk)?.prune(keep_since.as_deref(), keep_points, dry_run)?;
            if let Some(archived_from_ns) = report.oldest_restorable_ns.filter(|_| !dry_run) {
                desk.mailbox.send(Message::Pruned { archived_from_ns });
            }
            told(report)
        }
        Request::Detach { force } => {
            let (sender, receiver) = channel();
            desk.orders.send(Order::Detach { force, answer: sender }).map_err(|_| gone())?;
            receiver.recv().map_err(|_| gone())??;
            Ok(serde_json::json!({ "detached": desk.device }))
        }
    }
}

fn told(outcome: impl serde::Serialize) -> Result<Value, String> {
    serde_json::to_value(outcome).map_err(|error| error.to_string())
}

fn retention(desk: &Desk) -> Result<Retention<'_>, String> {
    let primary = desk.primary.as_ref().ok_or("a view of the past has no archive of its own; name the volume")?;
    Ok(Retention { primary, archive: desk.archive.as_ref() })
}

/// Has a point marked, durably.
fn mark(
    label: String,
    info: String,
    agent: Option<&AgentName>,
    stream: &UnixStream,
    desk: &Desk,
) -> Result<PointInfo, String> {
    let (sender, receiver) = channel();
    let here = Arc::new(());
    if !desk.mailbox.send(Message::Synch { label, info, answer: sender, asker: Arc::downgrade(&here) }) {
        return Err(gone());
    }
    let marked = while_connected(&receiver, stream).unwrap_or_else(|| Err(gone()));
    if let Some(agent) = agent {
        desk.agents.note(agent, marked.as_ref().map_err(String::as_str));
    }
    marked
}

/// Refuses while anybody but the asker has the device open for longer than a look takes: what the kernel has cached of it would
/// be of another time.
fn refuse_users(stream: &UnixStream, desk: &Desk) -> Result<(), String> {
    let asker = getsockopt(stream, sockopt::PeerCredentials).map_err(|error| format!("who asks: {error}"))?.pid();
    let is_other = |user: &User| !matches!(user, User::Process { pid, .. } if i64::from(*pid) == i64::from(asker));
    let deadline = Instant::now() + LOOKING;
    loop {
        let users = users(Path::new(&desk.device));
        let others: Vec<String> = users.iter().filter(|user| is_other(user)).map(ToString::to_string).collect();
        if others.is_empty() {
            return Ok(());
        }
        if Instant::now() > deadline {
            return Err(format!("it is in use: {}; nothing has been changed", others.join(", ")));
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// Has the volume made what it was. It goes on with that although the asker may be gone: what has begun must end.
fn roll_back(to: &str, desk: &Desk) -> Result<RolledBack, String> {
    let primary = desk.primary.as_ref().ok_or("a view of the past stays what it is")?;
    let look = || -> Result<_, HistoryError> {
        let source = Source::open_primary(primary)?;
        // Until it is done, or has failed, nobody prunes what it reads.
        let turn = RunDir::from_environment().lock_archive(&source.volume().uuid.to_string());
        source.refresh()?;
        let scene = Scene::new(&source, source.resolve(to)?)?;
        let aim = scene.aim();
        let room = source.room_before(aim.needs_from)?;
        Ok((Box::new(scene), Aim { room, ..aim }, turn))
    };
    let (scene, aim, _turn) = look().map_err(|error| error.to_string())?;
    let (sender, receiver) = channel();
    if !desk.mailbox.send(Message::RollBack { scene, aim, answer: sender }) {
        return Err(gone());
    }
    receiver.recv().unwrap_or_else(|_| Err(gone()))
}

/// Waits until everything up to `position` is in the store.
fn archived(position: u64, stream: &UnixStream, desk: &Desk) -> Result<(), String> {
    let (sender, receiver) = channel();
    let here = Arc::new(());
    let (position, asker) = (Position(position), Arc::downgrade(&here));
    if !desk.mailbox.send(Message::Archived { position, answer: sender, asker }) {
        return Err(gone());
    }
    while_connected(&receiver, stream).unwrap_or_else(|| Err(gone()))
}
