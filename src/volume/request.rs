//! A request of a user of the volume, and how it can end.

use std::io;
use std::sync::Arc;

use crate::format::Block;
use crate::io::Buffer;

/// What is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    Read,
    /// With `fua`, durable when it ends.
    Write {
        fua: bool,
    },
    /// Makes everything acknowledged before durable.
    Flush,
    /// Discards blocks; they read as zeros afterwards.
    Discard,
    /// Zeroes blocks.
    WriteZeroes {
        fua: bool,
    },
}

/// A request for `blocks` blocks from `block`. `buffer` has room for them when data moves, and is empty otherwise.
#[derive(Debug, Clone)]
pub struct Request {
    pub operation: Operation,
    pub block: Block,
    pub blocks: u32,
    pub buffer: Buffer,
}

/// What serves the requests of a block device.
pub trait Serve: Clone + 'static {
    /// Serves one request; ends when it may be acknowledged. A read fills its buffer or fails.
    ///
    /// # Errors
    /// See [`RequestError`].
    fn serve(&self, request: &Request) -> impl Future<Output = Result<(), RequestError>>;
}

/// Why a request failed.
#[derive(Debug, Clone, thiserror::Error)]
pub enum RequestError {
    #[error("blocks {block}+{blocks} lie outside the volume")]
    OutOfRange { block: Block, blocks: u32 },
    #[error("it is attached read-only")]
    ReadOnly,
    #[error("block {block} cannot be read: {cause}")]
    Unreadable { block: Block, cause: Arc<io::Error> },
    #[error("block {block} does not match its checksum")]
    Corrupt { block: Block },
    #[error("block {block} was lost: its only copy became unreadable; overwriting it heals it")]
    Lost { block: Block },
    #[error("the volume has stopped taking writes: {cause}")]
    Stopped { cause: Arc<str> },
    #[error("the volume is being detached")]
    Closing,
    #[error("{what}")]
    Refused { what: Arc<str> },
}

impl RequestError {
    /// Makes sure that `blocks` blocks from `block` are in a volume of `size` blocks.
    pub(crate) fn check_range(block: Block, blocks: u32, size: u64) -> Result<(), Self> {
        match block.0.checked_add(u64::from(blocks)) {
            Some(end) if blocks > 0 && end <= size => Ok(()),
            _ => Err(Self::OutOfRange { block, blocks }),
        }
    }

    /// The errno that the kernel's users see.
    pub fn errno(&self) -> i32 {
        match self {
            Self::OutOfRange { .. } | Self::Refused { .. } => libc::EINVAL,
            Self::ReadOnly => libc::EROFS,
            _ => libc::EIO,
        }
    }
}
