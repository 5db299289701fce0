//! The tags of the queue: what the kernel asked for, task by task, and what it is to be told.
//!
//! One task a tag runs for the life of the device: fetch, serve, commit. The queue's loop is the other side: it lets
//! requests [`arrive`](Tags::arrive), runs the tasks, and takes the [`outcomes`](Tags::take_outcomes).

use std::cell::{Cell, RefCell};
use std::future::poll_fn;
use std::io;
use std::rc::Rc;
use std::task::{Poll, Waker};

use libublk::sys;

use crate::format::{BLOCK_BYTES, Block};
use crate::io::{Buffer, Platform};
use crate::volume::{Operation, Request, Serve};

const SECTOR_BYTES: u64 = 512;
const SECTORS_PER_BLOCK: u64 = BLOCK_BYTES as u64 / SECTOR_BYTES;

/// A request as the kernel describes it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Descriptor {
    pub(super) op_flags: u32,
    pub(super) sectors: u32,
    pub(super) start_sector: u64,
}

struct Tag {
    /// Where the kernel puts what is written and takes what was read.
    buffer: Buffer,
    arrived: Cell<Option<Descriptor>>,
    waiting: Cell<Option<Waker>>,
}

/// All tags of the queue.
pub(super) struct Tags {
    tags: Vec<Tag>,
    outcomes: RefCell<Vec<(u16, i32)>>,
    closed: Cell<bool>,
    failures: Cell<u64>,
}

impl Tags {
    /// `depth` tags with a buffer of `buffer_bytes` each.
    ///
    /// # Errors
    /// When the system gives no memory.
    pub(super) fn new(depth: u16, buffer_bytes: usize) -> io::Result<Self> {
        let all = Buffer::new(buffer_bytes * usize::from(depth))?;
        let tag = |number: usize| Tag {
            buffer: all.part(number * buffer_bytes, buffer_bytes),
            arrived: Cell::new(None),
            waiting: Cell::new(None),
        };
        Ok(Self {
            tags: (0..usize::from(depth)).map(tag).collect(),
            outcomes: RefCell::default(),
            closed: Cell::new(false),
            failures: Cell::new(0),
        })
    }

    /// Starts the task of every tag.
    pub(super) fn start<P: Platform>(self: &Rc<Self>, platform: &P, served: &impl Serve) {
        for tag in 0..self.tags.len() as u16 {
            platform.spawn(serve(Rc::clone(self), served.clone(), tag));
        }
    }

    pub(super) fn buffer_address(&self, tag: u16) -> *mut u8 {
        self.tags[usize::from(tag)].buffer.as_ptr()
    }

    /// A request has been fetched for `tag`.
    pub(super) fn arrive(&self, tag: u16, descriptor: Descriptor) {
        let slot = &self.tags[usize::from(tag)];
        slot.arrived.set(Some(descriptor));
        if let Some(waker) = slot.waiting.take() {
            waker.wake();
        }
    }

    /// What ended since the last call, for the kernel. The vector is taken back with [`Self::give_back`], so that no
    /// batch allocates.
    pub(super) fn take_outcomes(&self) -> Vec<(u16, i32)> {
        std::mem::take(&mut *self.outcomes.borrow_mut())
    }

    pub(super) fn give_back(&self, mut outcomes: Vec<(u16, i32)>) {
        outcomes.clear();
        let mut kept = self.outcomes.borrow_mut();
        if kept.is_empty() {
            *kept = outcomes;
        }
    }

    /// No request will arrive any more: the tasks end.
    pub(super) fn close(&self) {
        self.closed.set(true);
        self.tags.iter().filter_map(|tag| tag.waiting.take()).for_each(Waker::wake);
    }

    async fn fetch(&self, tag: u16) -> Option<Descriptor> {
        let slot = &self.tags[usize::from(tag)];
        poll_fn(|context| match slot.arrived.take() {
            Some(descriptor) => Poll::Ready(Some(descriptor)),
            None if self.closed.get() => Poll::Ready(None),
            None => {
                slot.waiting.set(Some(context.waker().clone()));
                Poll::Pending
            }
        })
        .await
    }

    fn commit(&self, tag: u16, result: i32) {
        self.outcomes.borrow_mut().push((tag, result));
    }

    /// Says why a request failed; a device that fails every request must not fill the log file, so the first ten are
    /// told, and then the 16th, 32nd, 64th, ...
    fn tell(&self, request: &Request, error: &dyn std::fmt::Display) {
        let failures = self.failures.get() + 1;
        self.failures.set(failures);
        if failures <= 10 || failures.is_power_of_two() {
            let Request { operation, block, blocks, .. } = request;
            log::warn!(
                "request failed: {operation:?} of {blocks} blocks at block {block}: {error} (failure {failures})"
            );
        }
    }
}

/// The life of a tag.
async fn serve(tags: Rc<Tags>, served: impl Serve, tag: u16) {
    while let Some(descriptor) = tags.fetch(tag).await {
        let request = request(descriptor, &tags.tags[usize::from(tag)].buffer);
        let result = match request {
            Err(errno) => -errno,
            Ok(request) => match served.serve(&request).await {
                Ok(()) => request.buffer.len() as i32,
                Err(error) => {
                    tags.tell(&request, &error);
                    -error.errno()
                }
            },
        };
        tags.commit(tag, result);
    }
}

/// What the kernel asks for, in the volume's words; an errno when it cannot be asked. The operation comes before any
/// arithmetic: a FLUSH has the largest possible start sector.
fn request(descriptor: Descriptor, buffer: &Buffer) -> Result<Request, i32> {
    let fua = descriptor.op_flags & sys::UBLK_IO_F_FUA != 0;
    let (operation, moves_data) = match descriptor.op_flags & 0xff {
        sys::UBLK_IO_OP_FLUSH => {
            let operation = Operation::Flush;
            return Ok(Request { operation, block: Block(0), blocks: 0, buffer: buffer.part(0, 0) });
        }
        sys::UBLK_IO_OP_READ => (Operation::Read, true),
        sys::UBLK_IO_OP_WRITE => (Operation::Write { fua }, true),
        sys::UBLK_IO_OP_DISCARD => (Operation::Discard, false),
        sys::UBLK_IO_OP_WRITE_ZEROES => (Operation::WriteZeroes { fua }, false),
        _ => return Err(libc::EOPNOTSUPP),
    };
    let sectors = u64::from(descriptor.sectors);
    let aligned =
        descriptor.start_sector.is_multiple_of(SECTORS_PER_BLOCK) && sectors.is_multiple_of(SECTORS_PER_BLOCK);
    if !aligned || sectors == 0 {
        return Err(libc::EINVAL);
    }
    let blocks = descriptor.sectors / SECTORS_PER_BLOCK as u32;
    let bytes = if moves_data { sectors * SECTOR_BYTES } else { 0 };
    if bytes > buffer.len() as u64 {
        return Err(libc::EINVAL);
    }
    let block = Block(descriptor.start_sector / SECTORS_PER_BLOCK);
    Ok(Request { operation, block, blocks, buffer: buffer.part(0, bytes as usize) })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn asked(op_flags: u32, start_sector: u64, sectors: u32) -> Result<Request, i32> {
        let buffer = Buffer::new(64 * 1024).expect("memory");
        request(Descriptor { op_flags, sectors, start_sector }, &buffer)
    }

    #[test]
    fn reads_and_writes_become_blocks() {
        let read = asked(sys::UBLK_IO_OP_READ, 16, 24).expect("aligned");
        assert_eq!((read.operation, read.block, read.blocks), (Operation::Read, Block(2), 3));
        assert_eq!(read.buffer.len(), 3 * BLOCK_BYTES);
        let write = asked(sys::UBLK_IO_OP_WRITE | sys::UBLK_IO_F_FUA, 0, 8).expect("aligned");
        assert_eq!(write.operation, Operation::Write { fua: true });
    }

    #[test]
    fn a_flush_has_no_place() {
        let flush = asked(sys::UBLK_IO_OP_FLUSH, u64::MAX, 0).expect("a flush is always fine");
        assert_eq!((flush.operation, flush.blocks, flush.buffer.len()), (Operation::Flush, 0, 0));
    }

    #[test]
    fn discards_move_nothing_and_may_be_larger_than_the_buffer() {
        let discard = asked(sys::UBLK_IO_OP_DISCARD, 8, 1 << 19).expect("aligned");
        assert_eq!((discard.blocks, discard.buffer.len()), (1 << 16, 0));
    }

    #[test]
    fn what_is_not_whole_blocks_or_too_long_is_refused() {
        assert_eq!(asked(sys::UBLK_IO_OP_READ, 1, 8).err(), Some(libc::EINVAL));
        assert_eq!(asked(sys::UBLK_IO_OP_READ, 8, 1).err(), Some(libc::EINVAL));
        assert_eq!(asked(sys::UBLK_IO_OP_READ, 8, 0).err(), Some(libc::EINVAL));
        assert_eq!(asked(sys::UBLK_IO_OP_WRITE, 0, 136).err(), Some(libc::EINVAL));
        assert_eq!(asked(sys::UBLK_IO_OP_ZONE_RESET, 0, 8).err(), Some(libc::EOPNOTSUPP));
    }
}
