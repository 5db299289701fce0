//! The volume: what a block device asks for, in terms of the log.
//!
//! A file a verb: [`open`], `read`, `write` with flush, discard and synch, `rollback`. Each request is one async function from top
//! to bottom, served on the owner's thread. Errors leave here as [`RequestError`], which knows its errno.

mod gate;
mod open;
mod read;
mod request;
mod rollback;
mod status;
mod write;

use std::cell::Cell;
use std::rc::Rc;

pub use open::{OpenError, OpenOptions};
pub use request::{Operation, Request, RequestError, Serve};
pub use rollback::{Aim, Recall, RollbackLease, RolledBack};
pub use status::{AgentStatus, ArchiveStatus, SegmentCounts, Status};

use gate::Gate;

use crate::format::{Block, Geometry, Position, Superblock, SynchMark};
use crate::io::Platform;
use crate::log::{Log, LogError};

/// A synch point, as the application is told.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Point {
    /// The point's number, which is the log position of its mark: `p42` is 42.
    pub point: u64,
    pub position: Position,
    /// Wall-clock time, nanoseconds since 1970, UTC.
    pub time_ns: i64,
    pub label: String,
    pub info: String,
}

impl From<SynchMark> for Point {
    fn from(mark: SynchMark) -> Self {
        let SynchMark { point, time_ns, label, info } = mark;
        Self { point, position: Position(point), time_ns, label, info }
    }
}

/// An open volume; clones are the same volume.
pub struct Volume<P: Platform>(Rc<Shared<P>>);

struct Shared<P: Platform> {
    log: Log<P>,
    read_only: bool,
    closing: Cell<bool>,
    gate: Gate,
    lease: RollbackLease,
    read_errors: Cell<u64>,
    read_bytes: Cell<u64>,
    /// Time of the oldest position that the archive can restore, when it could be asked at open or has been pruned since.
    archived_from_ns: Cell<Option<i64>>,
}

impl<P: Platform> Clone for Volume<P> {
    fn clone(&self) -> Self {
        Self(Rc::clone(&self.0))
    }
}

impl<P: Platform> Volume<P> {
    /// The superblock under which the volume runs: its epoch is that of this opening.
    pub fn superblock(&self) -> &Superblock {
        self.0.log.volume()
    }

    /// The volume's sizes.
    pub fn geometry(&self) -> &Geometry {
        &self.superblock().geometry
    }

    /// The log under the volume, for measurements.
    pub fn log(&self) -> &Log<P> {
        &self.0.log
    }

    /// Whether the volume was opened read-only.
    pub fn is_read_only(&self) -> bool {
        self.0.read_only
    }

    /// Serves one request; ends when it may be acknowledged. A read fills its buffer or fails.
    ///
    /// # Errors
    /// See [`RequestError`].
    pub async fn serve(&self, request: &Request) -> Result<(), RequestError> {
        let Request { operation, block, blocks, buffer } = request;
        if *operation == Operation::Flush {
            // It shows nobody anything.
            return self.flush().await;
        }
        let _inside = self.0.gate.enter().await?;
        self.check_range(*block, *blocks)?;
        match operation {
            Operation::Read => self.read(*block, buffer).await,
            Operation::Write { fua } => self.write(*block, buffer, *fua).await,
            Operation::Discard => self.unmap(*block, *blocks, false, false).await,
            Operation::WriteZeroes { fua } => self.unmap(*block, *blocks, true, *fua).await,
            Operation::Flush => Ok(()),
        }
    }

    /// Fails the writes that wait for space from now on, so that a forced detach can end.
    pub fn fail_waiting(&self) {
        self.0.log.fail_waiting();
    }

    /// The archive has been pruned, and can restore from this time on.
    pub fn set_archived_from(&self, time_ns: i64) {
        self.0.archived_from_ns.set(Some(time_ns));
    }

    fn check_range(&self, block: Block, blocks: u32) -> Result<(), RequestError> {
        RequestError::check_range(block, blocks, self.geometry().volume_blocks)
    }

    fn check_writable(&self) -> Result<(), RequestError> {
        if self.0.read_only {
            return Err(RequestError::ReadOnly);
        }
        if self.0.closing.get() { Err(RequestError::Closing) } else { Ok(()) }
    }
}

impl<P: Platform> Serve for Volume<P> {
    async fn serve(&self, request: &Request) -> Result<(), RequestError> {
        self.serve(request).await
    }
}

impl From<LogError> for RequestError {
    fn from(error: LogError) -> Self {
        match error {
            LogError::Stopped(cause) => Self::Stopped { cause },
            LogError::Closing => Self::Closing,
        }
    }
}
