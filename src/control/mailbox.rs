//! The owner's mailbox: other threads leave a message, a task of the owner answers it.

use std::cell::Cell;
use std::collections::VecDeque;
use std::future::poll_fn;
use std::rc::Rc;
use std::sync::mpsc::Sender;
use std::sync::{Mutex, PoisonError, Weak};
use std::task::{Poll, Waker};

use crate::format::{Position, SegmentNumber, SynchMark};
use crate::history::{Past, PointInfo, Scene, Whereabouts, Writable, check_label};
use crate::io::Platform;
use crate::volume::{Aim, Point, RolledBack, Status, Volume};

/// Messages that may wait. There are fewer connections than this.
const MESSAGES_MAX: usize = 64;

/// What the owner can be asked. An answer's sender that is dropped means that the volume is going away.
pub enum Message {
    Status {
        answer: Sender<Status>,
    },
    Synch {
        label: String,
        info: String,
        answer: Sender<Result<PointInfo, String>>,
        /// Gone when nobody waits for the answer any more: then no point is marked.
        asker: Weak<()>,
    },
    /// Tell when everything up to a position is in the archive.
    Archived {
        position: Position,
        answer: Sender<Result<(), String>>,
        /// Gone when nobody waits for the answer any more.
        asker: Weak<()>,
    },
    /// Make the volume what it was.
    RollBack {
        scene: Box<Scene>,
        aim: Aim,
        answer: Sender<Result<RolledBack, String>>,
    },
    /// The archive has been pruned: it can restore from this time on, nanoseconds since 1970.
    Pruned {
        archived_from_ns: i64,
    },
    /// Fail the writes that wait for space.
    FailWaiting,
    /// Stop serving and close the volume, leaving the device to a later daemon.
    Leave,
}

#[derive(Default)]
struct Inner {
    messages: VecDeque<Message>,
    waker: Option<Waker>,
    closed: bool,
}

/// Messages for the owner.
#[derive(Default)]
pub struct Mailbox(Mutex<Inner>);

impl Mailbox {
    /// Leaves a message. False when the box is closed or full: then the answer will not come.
    pub fn send(&self, message: Message) -> bool {
        let waker = {
            let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            if inner.closed || inner.messages.len() >= MESSAGES_MAX {
                return false;
            }
            inner.messages.push_back(message);
            inner.waker.take()
        };
        if let Some(waker) = waker {
            waker.wake();
        }
        true
    }

    /// The next message; none when the box has been closed.
    pub async fn next(&self) -> Option<Message> {
        poll_fn(|context| {
            let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            match inner.messages.pop_front() {
                Some(message) => Poll::Ready(Some(message)),
                None if inner.closed => Poll::Ready(None),
                None => {
                    inner.waker = Some(context.waker().clone());
                    Poll::Pending
                }
            }
        })
        .await
    }

    /// Takes no more messages and drops those that wait, which tells their senders.
    pub fn close(&self) {
        let (waker, messages) = {
            let mut inner = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            inner.closed = true;
            (inner.waker.take(), std::mem::take(&mut inner.messages))
        };
        drop(messages);
        if let Some(waker) = waker {
            waker.wake();
        }
    }
}

/// Whatever a daemon serves, as far as it can be asked for something.
pub trait Attended: Clone + 'static {
    /// How it is now.
    fn status(&self) -> Status;

    /// Marks a synch point, unless nobody `wants` it any more when that can be done.
    ///
    /// # Errors
    /// Why there is none, for people.
    fn mark(
        &self,
        label: String,
        info: String,
        wants: impl Fn() -> bool,
    ) -> impl Future<Output = Result<PointInfo, String>>;

    /// Waits until everything up to `position` is archived, for as long as somebody `wants` to know.
    ///
    /// # Errors
    /// Why that will not be, for people.
    fn archived(&self, position: Position, wants: impl Fn() -> bool) -> impl Future<Output = Result<(), String>>;

    /// Makes the volume what it was in `scene`.
    ///
    /// # Errors
    /// Why it is not, for people.
    fn roll_back(
        &self,
        platform: impl Platform,
        scene: Scene,
        aim: &Aim,
    ) -> impl Future<Output = Result<RolledBack, String>>;

    /// From now on the archive can restore from this time on.
    fn pruned(&self, archived_from_ns: i64);

    /// Fails the writes that wait for space.
    fn fail_waiting(&self);
}

impl<P: Platform> Attended for Volume<P> {
    fn status(&self) -> Status {
        self.status()
    }

    async fn mark(&self, label: String, info: String, wants: impl Fn() -> bool) -> Result<PointInfo, String> {
        check_label(&label)?;
        let point = self.synch_while(label, info, wants).await.map_err(|error| error.to_string())?;
        Ok(describe(self, point))
    }

    async fn archived(&self, position: Position, wants: impl Fn() -> bool) -> Result<(), String> {
        self.archived_while(position, wants).await.map_err(|error| error.to_string())
    }

    async fn roll_back(&self, platform: impl Platform, scene: Scene, aim: &Aim) -> Result<RolledBack, String> {
        let past = Past::open(platform, scene, &Writable::No, String::new()).map_err(|error| error.to_string())?;
        self.roll_back(&past, aim).await.map_err(|error| error.to_string())
    }

    fn pruned(&self, archived_from_ns: i64) {
        self.set_archived_from(archived_from_ns);
    }

    fn fail_waiting(&self) {
        self.fail_waiting();
    }
}

impl<P: Platform> Attended for Past<P> {
    fn status(&self) -> Status {
        self.status()
    }

    async fn mark(&self, _label: String, _info: String, _wants: impl Fn() -> bool) -> Result<PointInfo, String> {
        Err("a view of the past has no points of its own".to_owned())
    }

    async fn archived(&self, _position: Position, _wants: impl Fn() -> bool) -> Result<(), String> {
        Err("a view of the past archives nothing".to_owned())
    }

    async fn roll_back(&self, _platform: impl Platform, _scene: Scene, _aim: &Aim) -> Result<RolledBack, String> {
        Err("a view of the past stays what it is".to_owned())
    }

    fn pruned(&self, _archived_from_ns: i64) {}

    fn fail_waiting(&self) {}
}

/// The owner's side: answers messages until the mailbox is closed. Sets `leaving` when told to leave. A synch runs as a
/// task of its own, since it waits for the disk and status must not.
pub async fn attend<P: Platform>(
    platform: P,
    served: impl Attended,
    mailbox: std::sync::Arc<Mailbox>,
    leaving: Rc<Cell<bool>>,
) {
    while let Some(message) = mailbox.next().await {
        match message {
            Message::Status { answer } => {
                let _ = answer.send(served.status());
            }
            Message::Synch { label, info, answer, asker } => {
                let served = served.clone();
                platform.spawn(async move {
                    let _ = answer.send(served.mark(label, info, || asker.strong_count() > 0).await);
                });
            }
            Message::Archived { position, answer, asker } => {
                let served = served.clone();
                platform.spawn(async move {
                    let _ = answer.send(served.archived(position, || asker.strong_count() > 0).await);
                });
            }
            Message::RollBack { scene, aim, answer } => {
                let (served, platform) = (served.clone(), platform.clone());
                let machine = platform.clone();
                platform.spawn(async move {
                    let _ = answer.send(served.roll_back(machine, *scene, &aim).await);
                });
            }
            Message::Pruned { archived_from_ns } => served.pruned(archived_from_ns),
            Message::FailWaiting => served.fail_waiting(),
            Message::Leave => leaving.set(true),
        }
    }
}

/// A point that was marked just now: all that it needs is on the primary, and its own segment is not archived yet.
fn describe<P: Platform>(volume: &Volume<P>, point: Point) -> PointInfo {
    let segment = volume.log().look(|_, table| {
        let its = table.segments().rev().find(|(_, info)| info.first_position <= point.position);
        its.map_or(SegmentNumber(0), |(segment, _)| segment)
    });
    let segments = segment.0.min(u64::from(volume.geometry().working_set) + 1);
    let Point { point, time_ns, label, info, .. } = point;
    PointInfo::new(&SynchMark { point, time_ns, label, info }, segment, segments, Whereabouts::Primary)
}
