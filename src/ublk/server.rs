//! A volume under a block device, seen from the main thread: open, go live, stop or leave.

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, MetadataExt};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::{Duration, Instant};

use libublk::ctrl::{UblkCtrl, UblkCtrlBuilder};
use libublk::io::UblkDev;
use libublk::{UblkError, UblkFlags, sys};
use nix::sys::mman::{MlockAllFlags, mlockall};

use super::driver::{self, describe, errno, mark};
use super::owner::{self, News, Opened, Plan};
use super::{DeviceState, DriverError};
use crate::archive::{Lease, Spec, SpecError, StoreError};
use crate::control::{Mailbox, Message, Order, ServedArchive, SuperblockError, view_uuid};
use crate::format::{BLOCK_BYTES, Position, SegmentNumber, Superblock};
use crate::history::{HistoryError, Source, Writable};
use crate::io::PrimaryError;
use crate::volume::{OpenError, OpenOptions, RequestError};

/// Bytes that one request can carry: the size of each tag's buffer.
const IO_BUF_BYTES: u32 = 256 * 1024;
/// Blocks that one discard or write-zeroes can cover. Larger ones are split by the kernel, so that none takes long.
const DISCARD_SECTORS_MAX: u32 = (256 << 20) / 512;
/// How long the kernel may take to show or remove a device's node.
const NODE_PATIENCE: Duration = Duration::from_secs(10);
/// How long the kernel may take to notice that a daemon is dead: 30 s, the block layer's timeout, when every tag was with
/// the daemon.
const QUIESCE_PATIENCE: Duration = Duration::from_secs(60);
const POLL: Duration = Duration::from_millis(10);

/// What is served.
#[derive(Debug, Clone)]
pub enum What {
    /// The volume on this primary.
    Volume { primary: PathBuf, open: OpenOptions },
    /// A volume as it was, called `name`.
    Past { source: PastSource, at: String, writable: Writable, name: String },
}

/// What a view of the past shows.
#[derive(Debug, Clone)]
pub struct Shown {
    /// The moment, for people.
    pub at: String,
    /// The oldest segment that it may read.
    pub needs_from: SegmentNumber,
}

/// Where a past is read from.
#[derive(Debug, Clone)]
pub enum PastSource {
    /// A primary, whoever uses it, and its store.
    Primary(PathBuf),
    /// A store alone.
    Store(Spec),
}

impl PastSource {
    /// Opens it.
    ///
    /// # Errors
    /// When there is none, or it cannot be read.
    pub fn open(&self) -> Result<Source, HistoryError> {
        match self {
            Self::Primary(path) => Source::open_primary(path),
            Self::Store(spec) => Source::open_spec(spec),
        }
    }
}

/// How it is served.
#[derive(Debug, Clone)]
pub struct Options {
    pub what: What,
    /// The device's number; the driver chooses when there is none.
    pub id: Option<u32>,
    /// Take over device `id` from a daemon that died.
    pub recover: bool,
    /// Requests that the device takes at once.
    pub depth: u16,
    /// How long to wait for the primary's lock.
    pub patience: Duration,
}

/// Why a volume could not be served, or how its service ended badly.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
    #[error(transparent)]
    NoDriver(#[from] DriverError),
    #[error(transparent)]
    Primary(#[from] PrimaryError),
    #[error(transparent)]
    Superblock(#[from] SuperblockError),
    #[error("the superblock names no store that can be opened: {0}")]
    Spec(#[from] SpecError),
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Past(#[from] HistoryError),
    #[error("a rollback to position {to} was interrupted: attach it writable once, which finishes it")]
    Unfinished { to: Position },
    #[error("a rollback was interrupted, and cannot be finished: {what}")]
    Rollback { what: String, is_corruption: bool },
    #[error("the volume was not closed cleanly: {0}")]
    Close(#[source] RequestError),
    #[error("io_uring: {0}")]
    Ring(#[source] io::Error),
    #[error("ublk driver: {step}: {what}")]
    Driver { step: &'static str, what: String },
    #[error("{0}")]
    Announce(#[source] io::Error),
    #[error("no thread for the volume: {0}")]
    Thread(#[source] io::Error),
    #[error("the owner's thread died; its last words are in the log")]
    Owner,
}

impl ServerError {
    /// Whether the reason is damage, rather than a mistake of the caller or a failing machine.
    pub fn is_corruption(&self) -> bool {
        match self {
            Self::Superblock(error) => error.is_corruption(),
            Self::Open(error) => error.is_corruption(),
            Self::Past(error) => error.is_corruption(),
            Self::Rollback { is_corruption, .. } => *is_corruption,
            _ => false,
        }
    }
}

/// A volume that is open and has no device yet.
pub struct Server {
    options: Options,
    opened: Opened,
    mailbox: Arc<Mailbox>,
    devices: Sender<Arc<UblkDev>>,
    news: Receiver<News>,
}

impl Server {
    /// Starts the owner's thread, which takes the primary's lock and opens the volume. `mailbox` is how to ask the
    /// owner; an [`Order::Ended`] goes to `orders` when the owner is done.
    ///
    /// # Errors
    /// When the volume cannot be opened.
    pub fn open(options: Options, mailbox: Arc<Mailbox>, orders: Sender<Order>) -> Result<Self, ServerError> {
        let (news_sender, news) = channel();
        let (devices, devices_receiver) = channel();
        let plan = Plan {
            what: options.what.clone(),
            patience: options.patience,
            mailbox: Arc::clone(&mailbox),
            news: news_sender,
            devices: devices_receiver,
            orders,
        };
        let thread = std::thread::Builder::new().name("volume".to_owned());
        let last_words = plan.orders.clone();
        let life = move || {
            if catch_unwind(AssertUnwindSafe(|| owner::run(plan))).is_err() {
                let _ = last_words.send(Order::Ended { stopped: false });
            }
        };
        thread.spawn(life).map_err(ServerError::Thread)?;
        match news.recv() {
            Ok(News::Opened(opened)) => Ok(Self { options, opened: opened?, mailbox, devices, news }),
            _ => Err(ServerError::Owner),
        }
    }

    /// The volume's superblock.
    pub fn superblock(&self) -> &Superblock {
        &self.opened.superblock
    }

    /// What is shown, when it is a view of the past.
    pub fn view(&self) -> Option<&Shown> {
        self.opened.view.as_ref()
    }

    /// Whom the store is to ask before it expires anything, rollbacks of the volume aside. Until then it expires nothing.
    /// Returns the store, and the whole of who is to be asked, for whoever prunes.
    pub fn lease(&self, lease: Lease) -> Option<ServedArchive> {
        let store = Arc::clone(self.opened.store.as_ref()?);
        let rollback = self.opened.lease.clone();
        let lease: Lease = Arc::new(move || [lease(), rollback.needs_from()].into_iter().flatten().min());
        store.lease(Arc::clone(&lease));
        Some(ServedArchive { store, lease })
    }

    /// Adds the device, or takes it over, and starts it. `announce` is told its number in between: when this process dies
    /// after the start, the device needs somebody who knows of it. On failure no device is left behind; a device that was
    /// to be taken over stays as it was.
    ///
    /// # Errors
    /// When the driver refuses, or `announce` fails; the volume is closed then.
    pub fn go_live(self, announce: impl FnOnce(u32) -> io::Result<()>) -> Result<Live, ServerError> {
        let Self { options, opened, mailbox, devices, news } = self;
        let control = match add(&options, &opened.superblock) {
            Ok(control) => control,
            Err(error) => {
                drop(devices);
                wait_for_end(&news)?;
                return Err(error);
            }
        };
        let live = Live { id: control.dev_info().dev_id, control, device: None, mailbox, news };
        let live = live.start(&options, &opened, devices, announce)?;
        // Rule 13: the store must not be on the volume's own file system, which can be mounted only from now on.
        if let (Some(store), Ok(node)) = (opened.store, fs::metadata(live.path())) {
            store.forbid_device(node.rdev());
        }
        Ok(live)
    }
}

/// A volume that is served as a block device.
pub struct Live {
    id: u32,
    control: UblkCtrl,
    device: Option<Arc<UblkDev>>,
    mailbox: Arc<Mailbox>,
    news: Receiver<News>,
}

impl Live {
    /// The device's node.
    pub fn path(&self) -> PathBuf {
        driver::node(self.id)
    }

    fn start(
        mut self,
        options: &Options,
        opened: &Opened,
        devices: Sender<Arc<UblkDev>>,
        announce: impl FnOnce(u32) -> io::Result<()>,
    ) -> Result<Self, ServerError> {
        let started = announce(self.id).map_err(ServerError::Announce).and_then(|()| self.try_start(opened, devices));
        // From now on it goes only by `delete`. libublk would delete it whenever the handle is dropped, by a panic too,
        // and wait for its users meanwhile.
        self.control.disown();
        match started {
            Ok(()) => Ok(self),
            Err(error) if options.recover => {
                // Stopping would remove the device under its users.
                self.mailbox.send(Message::Leave);
                let _ = wait_for_end(&self.news);
                Err(error)
            }
            Err(error) => {
                let _ = self.control.kill_dev();
                let _ = wait_for_end(&self.news);
                self.delete();
                Err(error)
            }
        }
    }

    fn try_start(&mut self, opened: &Opened, devices: Sender<Arc<UblkDev>>) -> Result<(), ServerError> {
        let failed = |step| move |error: UblkError| ServerError::Driver { step, what: describe(&error) };
        let set_parameters = |device: &mut UblkDev| {
            set_parameters(device, opened.blocks, opened.read_only);
            Ok(())
        };
        let device =
            UblkDev::new("salvol".to_owned(), set_parameters, &self.control).map_err(failed("opening the device"))?;
        let device = Arc::new(device);
        devices.send(Arc::clone(&device)).map_err(|_| ServerError::Owner)?;
        self.device = Some(Arc::clone(&device));
        drop(devices);
        let thread = match self.news.recv() {
            Ok(News::Fetching(fetching)) => fetching?,
            _ => return Err(ServerError::Owner),
        };
        self.control.set_thread_affinity(0, thread);
        self.control.configure_queue(&device, 0, thread).map_err(failed("configuring the queue"))?;
        driver::done(self.control.start_dev(&device)).map_err(failed("starting the device"))?;
        if !wait_until(|| self.path().exists()) {
            log::warn!("{}: the node has not appeared; udev or devtmpfs should make it", self.path().display());
        }
        Ok(())
    }

    /// Stops the device: requests under way end first, then the queue goes down and the owner closes the volume, which
    /// it tells by [`Order::Ended`].
    ///
    /// # Errors
    /// When the driver refuses.
    pub fn stop(&self) -> Result<(), ServerError> {
        match driver::done(self.control.kill_dev()) {
            Ok(()) => Ok(()),
            Err(error) if errno(&error) == Some(libc::ENODEV) => Ok(()),
            Err(error) => Err(ServerError::Driver { step: "stopping the device", what: describe(&error) }),
        }
    }

    /// Deletes the device, after [`Order::Ended`].
    ///
    /// # Errors
    /// How the owner ended, when it ended badly.
    pub fn finish(mut self) -> Result<(), ServerError> {
        let ended = wait_for_end(&self.news);
        self.delete();
        ended
    }

    /// Gives the device up without touching it, after [`Order::Ended`]: it waits for `recover` once the process ends.
    ///
    /// # Errors
    /// How the owner ended, when it ended badly.
    pub fn leave(self) -> Result<(), ServerError> {
        wait_for_end(&self.news)
    }

    fn delete(&mut self) {
        // The driver waits for the last reference.
        self.device = None;
        match driver::remove(&self.control) {
            Ok(()) => {}
            Err(error) if matches!(errno(&error), Some(libc::ENODEV | libc::ENOENT)) => {}
            Err(error) => log::error!("device {} could not be deleted: {}", self.id, describe(&error)),
        }
        let node = self.path();
        wait_until(|| !node.exists());
    }
}

/// Adds a device, or takes over the one that a dead daemon left.
fn add(options: &Options, superblock: &Superblock) -> Result<UblkCtrl, ServerError> {
    // libublk makes this directory for its notes, with mode 0777, when it is missing.
    let _ = fs::DirBuilder::new().mode(0o755).create(UblkCtrl::run_dir());
    let mut depth = options.depth;
    let mut buffer = IO_BUF_BYTES;
    let mut flags = UblkFlags::UBLK_DEV_F_ADD_DEV;
    if options.recover {
        let id = options.id.unwrap_or_default();
        let found = take_over(id)?;
        (depth, buffer) = (found.depth, found.io_buf_bytes);
        flags = UblkFlags::UBLK_DEV_F_RECOVER_DEV;
    }
    let taken = |id: u32| ServerError::Driver {
        step: "adding the device",
        what: format!("number {id} is taken; give another --id, or none"),
    };
    let id = match options.id {
        // libublk deletes the device of this number when adding one fails, whoever's it is: so ask first.
        Some(id) if !options.recover && driver::devices().contains(&id) => return Err(taken(id)),
        Some(id) => i32::try_from(id).map_err(|_| taken(id))?,
        None => -1,
    };
    // What a view of the past has been written to may be gone with its daemon: its device ends with it.
    let (recovery, identity) = match &options.what {
        What::Volume { .. } => (sys::UBLK_F_USER_RECOVERY | sys::UBLK_F_USER_RECOVERY_REISSUE, superblock.uuid),
        What::Past { name, .. } => (0, view_uuid(name)),
    };
    let builder = UblkCtrlBuilder::default()
        .name("salvol")
        .id(id)
        .nr_queues(1)
        .depth(depth)
        .io_buf_bytes(buffer)
        .ctrl_flags(u64::from(recovery))
        .ctrl_target_flags(mark(identity))
        .dev_flags(flags);
    builder.build().map_err(|error| ServerError::Driver { step: "adding the device", what: describe(&error) })
}

/// Starts the recovery of device `id`, waiting until the kernel has noticed that its daemon is dead.
fn take_over(id: u32) -> Result<super::DeviceInfo, ServerError> {
    let deadline = Instant::now() + QUIESCE_PATIENCE;
    let late = |what: &str| ServerError::Driver { step: "taking over the device", what: what.to_owned() };
    let info = loop {
        let info = driver::device(id)?.ok_or_else(|| late("there is no such device any more"))?;
        match info.state {
            DeviceState::Quiesced => break info,
            DeviceState::Live if Instant::now() < deadline => std::thread::sleep(POLL),
            DeviceState::Live => return Err(late(&format!("process {} still serves it", info.pid))),
            DeviceState::Dead | DeviceState::FailIo => return Err(late("it was stopped")),
        }
    };
    let control = driver::control(id).map_err(|error| late(&describe(&error)))?;
    loop {
        match driver::done(control.start_user_recover()) {
            Ok(()) => return Ok(info),
            // The dead daemon's descriptors are still being closed.
            Err(error) if errno(&error) == Some(libc::EBUSY) && Instant::now() < deadline => std::thread::sleep(POLL),
            Err(error) => return Err(late(&describe(&error))),
        }
    }
}

/// What the kernel may ask of the device.
fn set_parameters(device: &mut UblkDev, blocks: u64, read_only: bool) {
    let bytes = blocks * BLOCK_BYTES as u64;
    let buffer = device.dev_info.max_io_buf_bytes;
    device.tgt.dev_size = bytes;
    let mut attrs = sys::UBLK_ATTR_VOLATILE_CACHE | sys::UBLK_ATTR_FUA;
    if read_only {
        attrs |= sys::UBLK_ATTR_READ_ONLY;
    }
    device.tgt.params = sys::ublk_params {
        types: sys::UBLK_PARAM_TYPE_BASIC | sys::UBLK_PARAM_TYPE_DISCARD,
        basic: sys::ublk_param_basic {
            attrs,
            logical_bs_shift: 12,
            physical_bs_shift: 12,
            io_min_shift: 12,
            // 128 KiB: the most that one batch of copies, and one frame of the archive, hold.
            io_opt_shift: 17,
            max_sectors: buffer / 512,
            dev_sectors: bytes / 512,
            ..Default::default()
        },
        discard: sys::ublk_param_discard {
            discard_granularity: BLOCK_BYTES as u32,
            max_discard_sectors: DISCARD_SECTORS_MAX,
            max_write_zeroes_sectors: DISCARD_SECTORS_MAX,
            max_discard_segments: 1,
            ..Default::default()
        },
        ..Default::default()
    };
}

/// Waits until the owner has closed the volume.
fn wait_for_end(news: &Receiver<News>) -> Result<(), ServerError> {
    loop {
        match news.recv() {
            Ok(News::Ended(ended)) => return ended,
            Ok(_) => {}
            Err(_) => return Err(ServerError::Owner),
        }
    }
}

fn wait_until(done: impl Fn() -> bool) -> bool {
    let deadline = Instant::now() + NODE_PATIENCE;
    while !done() {
        if Instant::now() > deadline {
            return false;
        }
        std::thread::sleep(POLL);
    }
    true
}

/// Marks the calling thread as part of the write-back path, so that its memory allocation never waits for write-back to
/// its own device. Threads that it starts inherit it. Without the privilege nothing happens.
pub fn be_io_flusher() {
    UblkCtrl::init_queue_thread();
}

/// Keeps the daemon's memory from being swapped out, page by page as it is touched: to swap in it could need the device
/// that it serves. Best effort.
pub fn lock_memory() {
    let on_fault = MlockAllFlags::from_bits_retain(libc::MCL_ONFAULT);
    if let Err(error) = mlockall(MlockAllFlags::MCL_CURRENT | MlockAllFlags::MCL_FUTURE | on_fault) {
        log::warn!("memory is not locked ({error}): do not swap to this device");
    }
    // Killed for want of memory, the daemon would stop every writer that could be killed instead.
    let _ = fs::write(Path::new("/proc/self/oom_score_adj"), "-1000");
}
