//! What was written to a volume of the past: a sparse file, and a map of which blocks are in it.
//!
//! ```text
//! header (1 block) | map: one byte a block, in whole blocks | the volume's blocks, where they are written
//! ```
//!
//! The map is in memory, and in the file as it was at the last flush: data is made durable first, then the map's blocks that changed, then the
//! answer. So after a crash the file has what a disk would have. A byte of the map never goes back to *nothing*, and each is
//! valid alone, so a torn block of it is a mixture of before and after. Blocks have no checksums here; a byte of the map that is
//! none of them makes its block an error until it is written.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;

use futures_util::lock::Mutex;
use zerocopy::little_endian::{I64, U32, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::Writable;
use crate::format::{BLOCK_BYTES, Block, Checksum, Superblock};
use crate::history::Moment;
use crate::io::{Buffer, Platform};
use crate::volume::RequestError;

const MAGIC: [u8; 8] = *b"SALVOLOV";
const VERSION: u32 = 1;

/// What an overlay has of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Has {
    Nothing = 0,
    Data = 1,
    Zeros = 2,
    /// Its byte of the map is none that was ever written.
    Damaged = 3,
}

impl Has {
    fn of(byte: u8) -> Self {
        match byte {
            0 => Self::Nothing,
            1 => Self::Data,
            2 => Self::Zeros,
            _ => Self::Damaged,
        }
    }
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Header {
    magic: [u8; 8],
    version: U32,
    block_bytes: U32,
    volume: [u8; 16],
    history: [u8; 16],
    position: U64,
    blocks: U64,
    /// Time of the batch at the position, nanoseconds since 1970: positions that were given up recur.
    time_ns: I64,
    reserved: [u8; 4008],
    checksum: Checksum,
}

const _: () = assert!(size_of::<Header>() == BLOCK_BYTES);

/// What was written.
pub(super) struct Overlay {
    file: Arc<File>,
    map: RefCell<Vec<u8>>,
    /// Blocks of the map that changed since the last flush; only of a file that is kept.
    changed: RefCell<BTreeSet<usize>>,
    kept: bool,
    data_at: u64,
    flushing: Mutex<()>,
    failed: Cell<bool>,
}

impl Overlay {
    /// The overlay that is wanted, if any, over a volume of `blocks` blocks at `moment`.
    ///
    /// # Errors
    /// When it cannot be made, or is one over something else.
    pub(super) fn open(
        wanted: &Writable,
        volume: &Superblock,
        moment: &Moment,
        blocks: u64,
    ) -> io::Result<Option<Self>> {
        let header = header(volume, moment, blocks);
        let map_bytes = usize::try_from(blocks.next_multiple_of(BLOCK_BYTES as u64)).map_err(io::Error::other)?;
        let (file, map, kept) = match wanted {
            Writable::No => return Ok(None),
            Writable::Discarded(directory) => (unnamed(directory)?, vec![0; map_bytes], false),
            Writable::Kept(path) => {
                let (file, map) = named(path, &header, map_bytes)
                    .map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", path.display())))?;
                (file, map, true)
            }
        };
        let data_at = (BLOCK_BYTES + map_bytes) as u64;
        let (map, changed) = (RefCell::new(map), RefCell::default());
        let (flushing, failed) = (Mutex::default(), Cell::new(false));
        Ok(Some(Self { file: Arc::new(file), map, changed, kept, data_at, flushing, failed }))
    }

    pub(super) fn has(&self, block: Block) -> Has {
        Has::of(self.map.borrow()[block.0 as usize])
    }

    /// The error that a block is whose byte of the map is damaged.
    pub(super) fn damaged(block: Block) -> RequestError {
        unreadable(block, io::Error::new(io::ErrorKind::InvalidData, "its map is damaged"))
    }

    fn set(&self, block: Block, blocks: u32, has: Has) {
        let (first, end) = (block.0 as usize, block.0 as usize + blocks as usize);
        self.map.borrow_mut()[first..end].fill(has as u8);
        if self.kept {
            self.changed.borrow_mut().extend(first / BLOCK_BYTES..=(end - 1) / BLOCK_BYTES);
        }
    }

    fn place(&self, block: Block) -> u64 {
        self.data_at + block.0 * BLOCK_BYTES as u64
    }

    /// Reads `blocks`, each with its place in the buffer.
    pub(super) async fn read<P: Platform>(
        &self,
        platform: &P,
        blocks: Vec<(Block, u32)>,
        buffer: &Buffer,
    ) -> Result<(), RequestError> {
        if blocks.is_empty() {
            return Ok(());
        }
        let (file, buffer) = (Arc::clone(&self.file), buffer.clone());
        let places: Vec<_> = blocks.iter().map(|(block, to)| (*block, self.place(*block), *to)).collect();
        let job = move || {
            for run in places.chunk_by(|a, b| b.0.0 == a.0.0 + 1 && b.2 == a.2 + 1) {
                let into = buffer.part(run[0].2 as usize * BLOCK_BYTES, run.len() * BLOCK_BYTES);
                into.write(|bytes| file.read_exact_at(bytes, run[0].1)).map_err(|error| unreadable(run[0].0, error))?;
            }
            Ok(())
        };
        platform.offload_urgent(job).await
    }

    /// Writes the blocks in `buffer` from `block` on.
    pub(super) async fn write<P: Platform>(
        &self,
        platform: &P,
        block: Block,
        buffer: &Buffer,
    ) -> Result<(), RequestError> {
        self.check()?;
        let (file, data, at) = (Arc::clone(&self.file), buffer.clone(), self.place(block));
        platform.offload_urgent(move || file.write_all_at(data.bytes(), at)).await.map_err(|error| refused(&error))?;
        self.set(block, (buffer.len() / BLOCK_BYTES) as u32, Has::Data);
        Ok(())
    }

    /// Makes blocks read as zeros.
    pub(super) fn zero(&self, block: Block, blocks: u32) {
        self.set(block, blocks, Has::Zeros);
    }

    /// Makes durable everything that has been answered, if the file is kept: what is discarded needs to survive nothing.
    pub(super) async fn flush<P: Platform>(&self, platform: &P) -> Result<(), RequestError> {
        self.check()?;
        if !self.kept {
            return Ok(());
        }
        // One after the other: what one flush has taken from `changed` the next must not answer for before it is there.
        let _turn = self.flushing.lock().await;
        self.check()?;
        let (file, pieces) = (Arc::clone(&self.file), self.take_changed());
        let job = move || {
            file.sync_data()?;
            if pieces.is_empty() {
                return Ok(());
            }
            for (at, bytes) in pieces {
                file.write_all_at(&bytes, at)?;
            }
            file.sync_data()
        };
        platform.offload_urgent(job).await.map_err(|error| {
            // A failed flush is never made good by another one.
            self.failed.set(true);
            refused(&error)
        })
    }

    /// The blocks of the map that changed, as they are now, with their places in the file.
    fn take_changed(&self) -> Vec<(u64, Vec<u8>)> {
        let (map, changed) = (self.map.borrow(), std::mem::take(&mut *self.changed.borrow_mut()));
        let piece = |rank: usize| {
            let at = rank * BLOCK_BYTES;
            ((BLOCK_BYTES + at) as u64, map[at..at + BLOCK_BYTES].to_vec())
        };
        changed.into_iter().map(piece).collect()
    }

    fn check(&self) -> Result<(), RequestError> {
        if self.failed.get() {
            return Err(RequestError::Stopped { cause: "a flush of the overlay failed".into() });
        }
        Ok(())
    }
}

fn unreadable(block: Block, error: io::Error) -> RequestError {
    RequestError::Unreadable { block, cause: Arc::new(io::Error::new(error.kind(), format!("the overlay: {error}"))) }
}

fn refused(error: &io::Error) -> RequestError {
    RequestError::Stopped { cause: format!("the overlay: {error}").into() }
}

fn header(volume: &Superblock, moment: &Moment, blocks: u64) -> Header {
    let mut header = Header {
        magic: MAGIC,
        version: U32::new(VERSION),
        block_bytes: U32::new(BLOCK_BYTES as u32),
        volume: volume.uuid.0,
        history: volume.history.0,
        position: U64::new(moment.position.0),
        blocks: U64::new(blocks),
        time_ns: I64::new(moment.time_ns),
        reserved: [0; 4008],
        checksum: Checksum::default(),
    };
    header.checksum = Checksum::plain(&header.as_bytes()[..BLOCK_BYTES - 16]);
    header
}

/// A file that is gone when it is closed.
fn unnamed(directory: &Path) -> io::Result<File> {
    let options = |flags| {
        let mut options = OpenOptions::new();
        options.read(true).write(true).mode(0o600).custom_flags(flags | libc::O_CLOEXEC);
        options
    };
    let made = match options(libc::O_TMPFILE).open(directory) {
        // Not every file system can do that at once.
        Err(error) if matches!(error.raw_os_error(), Some(libc::EOPNOTSUPP | libc::EISDIR)) => {
            let path = directory.join(format!(".salvol-view-{}", std::process::id()));
            options(0).create_new(true).open(&path).and_then(|file| std::fs::remove_file(&path).map(|()| file))
        }
        other => other,
    };
    made.map_err(|error| io::Error::new(error.kind(), format!("{}: {error}", directory.display())))
}

/// The file at `path` with its map; made when it is not there.
fn named(path: &Path, wanted: &Header, map_bytes: usize) -> io::Result<(File, Vec<u8>)> {
    if path.exists() && !std::fs::metadata(path)?.is_file() {
        return Err(io::Error::other("is not a regular file"));
    }
    let file = OpenOptions::new().read(true).write(true).create(true).truncate(false).mode(0o600).open(path)?;
    // One that serves it at a time.
    file.try_lock().map_err(|_| io::Error::other("is in use by another view"))?;
    let mut map = vec![0; map_bytes];
    if file.metadata()?.len() == 0 {
        // The header last: until then the file is nobody's.
        file.write_all_at(&map, BLOCK_BYTES as u64)?;
        file.sync_data()?;
        file.write_all_at(wanted.as_bytes(), 0)?;
        file.sync_all()?;
        if let Some(directory) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            File::open(directory)?.sync_all()?;
        }
        return Ok((file, map));
    }
    let mut found = [0; BLOCK_BYTES];
    file.read_exact_at(&mut found, 0).map_err(|_| io::Error::other("is no overlay; give a new file"))?;
    if found[..8] != MAGIC {
        return Err(io::Error::other("is no overlay; give a new file"));
    }
    if found != wanted.as_bytes() {
        return Err(io::Error::other(
            "is the overlay of another volume, history or point, or damaged; give a new file",
        ));
    }
    file.read_exact_at(&mut map, BLOCK_BYTES as u64)?;
    Ok((file, map))
}
