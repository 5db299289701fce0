//! The ring that libublk owns, as the platform's: one for each thread, shared by the kernel's commands and the log's I/O.
#![expect(unsafe_code, reason = "submission entries point at buffers, which the platform's table keeps alive")]

use std::cell::RefCell;
use std::io;

use io_uring::{IoUring, squeue};
use libublk::UblkError;
use libublk::io::{ublk_init_task_ring, with_task_io_ring_mut};

use crate::io::{Ring, is_temporary};

/// Submissions that fit before they are handed to the kernel.
const SUBMISSIONS: u32 = 1024;
/// Completions that fit before the kernel has to keep them elsewhere.
const COMPLETIONS: u32 = 4096;

/// The calling thread's ring. Not for another thread: each has its own.
pub struct UblkRing(());

impl UblkRing {
    /// Makes the thread's ring. Comes before anything else of libublk on this thread, which would make a smaller one.
    ///
    /// # Errors
    /// When the kernel has no io_uring or forbids it.
    pub fn new() -> io::Result<Self> {
        let made = ublk_init_task_ring(|cell| {
            let ring = IoUring::builder().setup_cqsize(COMPLETIONS).setup_coop_taskrun().build(SUBMISSIONS)?;
            cell.set(RefCell::new(ring)).map_err(|_| UblkError::OtherError(-libc::EEXIST))
        });
        match made {
            Ok(()) => Ok(Self(())),
            Err(UblkError::IOError(error)) => Err(error),
            Err(other) => Err(io::Error::other(other)),
        }
    }
}

impl Ring for UblkRing {
    fn push(&self, entry: &squeue::Entry) -> io::Result<()> {
        with_task_io_ring_mut(|ring| {
            loop {
                // SAFETY: what the entry points at is kept in the platform's table until its completion.
                if unsafe { ring.submission().push(entry) }.is_ok() {
                    return Ok(());
                }
                match ring.submit() {
                    Err(error) if is_temporary(&error) => {}
                    other => drop(other?),
                }
            }
        })
    }

    fn submit(&self) -> io::Result<()> {
        with_task_io_ring_mut(|ring| match ring.submit() {
            Err(error) if !is_temporary(&error) => Err(error),
            _ => Ok(()),
        })
    }

    fn queued(&self) -> usize {
        with_task_io_ring_mut(|ring| ring.submission().len())
    }

    fn enter(&self, want: usize, seen: &mut dyn FnMut(u64, i32)) -> io::Result<()> {
        with_task_io_ring_mut(|ring| {
            match ring.submit_and_wait(want) {
                Err(error) if is_temporary(&error) => {}
                other => drop(other?),
            }
            ring.completion().for_each(|entry| seen(entry.user_data(), entry.result()));
            Ok(())
        })
    }
}
