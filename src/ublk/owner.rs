//! The owner's thread: it opens the volume, serves the queue until it is down, and closes the volume.
#![expect(deprecated, reason = "of libublk 0.4 only the deprecated call fetches into memory that is not libublk's own")]

use std::cell::Cell;
use std::io;
use std::mem::ManuallyDrop;
use std::path::Path;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, Sender};
use std::time::Duration;

use libublk::ctrl::UblkCtrl;
use libublk::io::{BufDesc, UblkDev, UblkQueue};
use libublk::{UblkError, UblkIORes, sys};

use super::driver::describe;
use super::ring::UblkRing;
use super::server::{ServerError, Shown, What};
use super::tags::{Descriptor, Tags};
use crate::archive::{self, Store};
use crate::control::{Mailbox, Order, RunDir, attend, read_superblock};
use crate::format::{SegmentNumber, Superblock};
use crate::history::{HistoryError, Past, Scene, Source, Writable};
use crate::io::{Platform, Primary, UringDevice, UringPlatform, is_temporary};
use crate::log::Rollback;
use crate::volume::{OpenOptions, Request, RequestError, RollbackLease, Serve, Volume};

/// What the owner is told when it is born.
pub(super) struct Plan {
    pub(super) what: What,
    /// How long to wait for a dead owner's last I/O to end.
    pub(super) patience: Duration,
    pub(super) mailbox: Arc<Mailbox>,
    pub(super) news: Sender<News>,
    pub(super) devices: Receiver<Arc<UblkDev>>,
    pub(super) orders: Sender<Order>,
}

/// What the owner tells, in this order.
pub(super) enum News {
    Opened(Result<Opened, ServerError>),
    /// Every tag has been fetched: START_DEV cannot hang. With the owner's thread id.
    Fetching(Result<i32, ServerError>),
    /// The volume is closed.
    Ended(Result<(), ServerError>),
}

/// What has been opened, as the main thread needs to know it.
pub(super) struct Opened {
    pub(super) superblock: Box<Superblock>,
    /// Blocks of the device.
    pub(super) blocks: u64,
    pub(super) read_only: bool,
    /// To be told which device it must not be on.
    pub(super) store: OurStore,
    /// What a rollback of it needs of the store.
    pub(super) lease: RollbackLease,
    /// When it is a view of the past.
    pub(super) view: Option<Shown>,
}

/// What is served.
#[derive(Clone)]
enum Served {
    Volume(Volume<OurPlatform>),
    Past(Past<OurPlatform>),
}

impl Serve for Served {
    async fn serve(&self, request: &Request) -> Result<(), RequestError> {
        match self {
            Self::Volume(volume) => volume.serve(request).await,
            Self::Past(past) => past.serve(request).await,
        }
    }
}

impl Served {
    async fn close(&self) -> Result<(), RequestError> {
        match self {
            Self::Volume(volume) => volume.close().await,
            Self::Past(past) => past.close().await,
        }
    }

    fn fail_waiting(&self) {
        if let Self::Volume(volume) = self {
            volume.fail_waiting();
        }
    }

    /// Has messages answered until the mailbox is closed.
    fn attend(&self, platform: &OurPlatform, mailbox: &Arc<Mailbox>, leaving: &Rc<Cell<bool>>) {
        let (mailbox, leaving) = (Arc::clone(mailbox), Rc::clone(leaving));
        match self {
            Self::Volume(volume) => platform.spawn(attend(platform.clone(), volume.clone(), mailbox, leaving)),
            Self::Past(past) => platform.spawn(attend(platform.clone(), past.clone(), mailbox, leaving)),
        }
    }
}

type OurPlatform = UringPlatform<UblkRing>;
/// The store, to be told which device it must not be on; none for a volume that keeps no history.
pub(super) type OurStore = Option<Arc<dyn Store>>;

/// The thread's whole life.
pub(super) fn run(plan: Plan) {
    let thread = UblkCtrl::init_queue_thread();
    let (platform, served, opened) = match open(&plan) {
        Ok(opened) => opened,
        Err(error) => {
            let _ = plan.news.send(News::Opened(Err(error)));
            return;
        }
    };
    let _ = plan.news.send(News::Opened(Ok(opened)));
    let leaving = Rc::new(Cell::new(false));
    served.attend(&platform, &plan.mailbox, &leaving);
    // The sender is gone when main could not make a device.
    let ended = match plan.devices.recv() {
        Ok(device) => serve(&plan, &platform, &served, &device, thread, &leaving),
        Err(_) => Ok(()),
    };
    plan.mailbox.close();
    let stopped = ended.is_ok();
    // Writes that wait for space could wait for ever. The kernel has given up on them, or issues them again to the next
    // daemon; either way nobody is told that they failed here.
    served.fail_waiting();
    let closed = match platform.block_on(async move { served.close().await }) {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => Err(ServerError::Close(error)),
        Err(error) => Err(ServerError::Ring(error)),
    };
    let drained = platform.drain().map_err(ServerError::Ring);
    let _ = plan.news.send(News::Ended(ended.and(closed).and(drained)));
    let _ = plan.orders.send(Order::Ended { stopped });
    // The ring and the memory that the kernel may still write to (the bell's count) stay until the process ends.
    loop {
        std::thread::park();
    }
}

fn open(plan: &Plan) -> Result<(OurPlatform, Served, Opened), ServerError> {
    let ring = UblkRing::new().map_err(ServerError::Ring)?;
    match &plan.what {
        What::Volume { primary, open } => {
            let platform = UringPlatform::new(ring, open.archiving.threads).map_err(ServerError::Ring)?;
            open_volume(platform, primary, open, plan.patience)
        }
        What::Past { source, at, writable, name } => {
            let platform = UringPlatform::new(ring, 1).map_err(ServerError::Ring)?;
            let source = source.open()?;
            let moment = source.resolve(at)?;
            let scene = Scene::new(&source, moment.clone())?;
            let past = Past::open(platform.clone(), scene, writable, name.clone())?;
            let opened = Opened {
                superblock: Box::new(past.superblock().clone()),
                blocks: past.blocks(),
                read_only: *writable == Writable::No,
                store: None,
                lease: RollbackLease::default(),
                view: Some(Shown { at: moment.to_string(), needs_from: past.oldest_needed() }),
            };
            Ok((platform, Served::Past(past), opened))
        }
    }
}

/// Takes the primary's lock, opens its store and the volume.
fn open_volume(
    platform: OurPlatform,
    path: &Path,
    open: &OpenOptions,
    patience: Duration,
) -> Result<(OurPlatform, Served, Opened), ServerError> {
    let primary = Primary::own(path, patience)?;
    let device = UringDevice::new(platform.clone(), primary);
    let read = platform.block_on({
        let device = device.clone();
        async move { read_superblock(&device).await }
    });
    let superblock = read.map_err(ServerError::Ring)??;
    let spec = archive::Spec::parse(&superblock.backing)?;
    let store = archive::PatientStore::new(spec, superblock).map(|store| Arc::new(store) as Arc<dyn Store>);
    if let Some(store) = &store {
        // Nothing expires before it is known what a view, or a rollback that was interrupted, needs: see `Server::lease`.
        store.lease(Arc::new(|| Some(SegmentNumber(0))));
    }
    let volume = Volume::open(platform.clone(), device, store.clone(), open.clone());
    let volume = platform.block_on(volume).map_err(ServerError::Ring)??;
    if let Some(unfinished) = volume.unfinished_rollback() {
        finish(&platform, path, &volume, store.as_ref(), unfinished)?;
    }
    let superblock = volume.superblock().clone();
    let opened = Opened {
        blocks: superblock.geometry.volume_blocks,
        superblock: Box::new(superblock),
        read_only: open.read_only,
        store,
        lease: volume.rollback_lease(),
        view: None,
    };
    Ok((platform, Served::Volume(volume), opened))
}

/// Finishes a rollback that a crash has interrupted.
fn finish(
    platform: &OurPlatform,
    path: &Path,
    volume: &Volume<OurPlatform>,
    store: Option<&Arc<dyn Store>>,
    unfinished: Rollback,
) -> Result<(), ServerError> {
    if volume.is_read_only() {
        return Err(ServerError::Unfinished { to: unfinished.to });
    }
    log::warn!("{}: a rollback to position {} was interrupted; it is finished now", path.display(), unfinished.to);
    let look = || {
        let source = Source::open_primary(path)?;
        let scene = Scene::new(&source, source.resolve(&unfinished.to.to_string())?)?;
        let aim = scene.aim();
        Ok((Past::open(platform.clone(), scene, &Writable::No, String::new())?, aim))
    };
    let unreadable =
        |error: HistoryError| ServerError::Rollback { what: error.to_string(), is_corruption: error.is_corruption() };
    let finished = look().map_err(unreadable).and_then(|(past, aim)| {
        if let Some(store) = store {
            // What is older than it and any view may go now, or a full ring would take nothing.
            let (views, uuid, needs_from) =
                (RunDir::from_environment(), volume.superblock().uuid.to_string(), aim.needs_from);
            store.lease(Arc::new(move || [Some(needs_from), views.leased_from(&uuid)].into_iter().flatten().min()));
        }
        let volume = volume.clone();
        let finished = platform.block_on(async move { volume.finish_rollback(&past, &aim).await });
        let failed = |error: RequestError| ServerError::Rollback { what: error.to_string(), is_corruption: false };
        finished.map_err(ServerError::Ring)?.map_err(failed)
    });
    if finished.is_err() {
        let volume = volume.clone();
        let _ = platform.block_on(async move { volume.close().await });
    }
    finished
}

/// Fetches every tag, says so, and serves until the queue is down or it is told to leave.
fn serve(
    plan: &Plan,
    platform: &OurPlatform,
    served: &Served,
    device: &UblkDev,
    thread: i32,
    leaving: &Cell<bool>,
) -> Result<(), ServerError> {
    let info = &device.dev_info;
    let prepared = Tags::new(info.queue_depth, info.max_io_buf_bytes as usize)
        .map_err(ServerError::Ring)
        .and_then(|tags| Ok((Rc::new(tags), UblkQueue::new(0, device).map_err(|error| queue_error(&error))?)));
    let (tags, queue) = match prepared {
        Ok(prepared) => prepared,
        Err(error) => {
            let _ = plan.news.send(News::Fetching(Err(error)));
            return Ok(());
        }
    };
    tags.start(platform, served);
    let queue = ManuallyDrop::new(Queue { queue, tags: Rc::clone(&tags), refused: Cell::new(0) });
    let fetching = queue.fetch_all(platform).map(|()| thread);
    let failed = fetching.is_err();
    let _ = plan.news.send(News::Fetching(fetching));
    // After a failure main stops the device, which takes the fetched tags back.
    let ended = queue.run(platform, leaving);
    tags.close();
    platform.run();
    if matches!(ended, Ok(End::Down)) {
        drop(ManuallyDrop::into_inner(queue));
    }
    // Otherwise the kernel still holds the tags: it would put new requests into their buffers, and would not let go of
    // the queue's files before they are answered. All of it stays until the process ends.
    if failed { Ok(()) } else { ended.map(drop) }
}

/// How serving ended well.
enum End {
    /// The queue was stopped; the kernel has given every tag back.
    Down,
    /// The daemon was told to leave.
    Left,
}

struct Queue<'a> {
    queue: UblkQueue<'a>,
    tags: Rc<Tags>,
    /// The errno of a command that the kernel refused; 0 when it refused none.
    refused: Cell<i32>,
}

impl Queue<'_> {
    /// Hands the kernel a buffer for every tag. A refusal is known when this returns.
    fn fetch_all(&self, platform: &OurPlatform) -> Result<(), ServerError> {
        for tag in self.queue.tags() {
            // The completion comes to `turn`; the future is for libublk's own executor.
            let _submitted = self.queue.submit_io_cmd(tag, sys::UBLK_U_IO_FETCH_REQ, self.tags.buffer_address(tag), -1);
        }
        // What libublk counts before it starts the device; it counts only its own kind of buffer.
        self.queue.dev.notify_buffer_registration_complete(false);
        let _ = self.turn(platform, 0)?;
        match self.refused.get() {
            0 => Ok(()),
            errno => Err(ServerError::Ring(io::Error::from_raw_os_error(errno))),
        }
    }

    /// Serves until the queue is down, or `leaving`.
    fn run(&self, platform: &OurPlatform, leaving: &Cell<bool>) -> Result<End, ServerError> {
        loop {
            // While the queue stops there may be nothing left to wait for but the idle bell.
            let want = usize::from(!self.queue.is_stopping());
            if self.turn(platform, want)?.is_break() {
                return Ok(End::Down);
            }
            if leaving.get() {
                return Ok(End::Left);
            }
            if self.refused.get() != 0 && !self.queue.is_stopping() {
                return Err(ServerError::Ring(io::Error::from_raw_os_error(self.refused.get())));
            }
        }
    }

    /// Submits what is queued, waits for `want` completions, runs what became ready, queues what it led to.
    fn turn(&self, platform: &OurPlatform, want: usize) -> Result<std::ops::ControlFlow<()>, ServerError> {
        let waited = self.queue.flush_and_wake_io_tasks(
            |user_data, entry, _| {
                if !platform.complete(user_data, entry.result()) {
                    self.fetched((user_data & 0xffff) as u16, entry.result());
                }
            },
            want,
        );
        match waited {
            Ok(_) => {}
            Err(UblkError::QueueIsDown) => return Ok(std::ops::ControlFlow::Break(())),
            Err(UblkError::IOError(error)) if is_temporary(&error) => {}
            Err(error) => return Err(queue_error(&error)),
        }
        platform.run();
        let outcomes = self.tags.take_outcomes();
        for &(tag, result) in &outcomes {
            let buffer = BufDesc::RawAddress(self.tags.buffer_address(tag));
            let committed = self.queue.complete_io_cmd_unified(tag, buffer, Ok(UblkIORes::Result(result)));
            committed.map_err(|error| queue_error(&error))?;
        }
        self.tags.give_back(outcomes);
        Ok(std::ops::ControlFlow::Continue(()))
    }

    fn fetched(&self, tag: u16, result: i32) {
        match result {
            sys::UBLK_IO_RES_ABORT => {}
            result if result == sys::UBLK_IO_RES_OK as i32 => {
                let iod = self.queue.get_iod(tag);
                let (op_flags, sectors, start_sector) = (iod.op_flags, iod.nr_sectors, iod.start_sector);
                self.tags.arrive(tag, Descriptor { op_flags, sectors, start_sector });
            }
            refused => {
                log::error!("the driver refused a command for tag {tag}: {}", io::Error::from_raw_os_error(-refused));
                self.refused.set(-refused);
            }
        }
    }
}

fn queue_error(error: &UblkError) -> ServerError {
    ServerError::Driver { step: "the queue", what: describe(error) }
}
