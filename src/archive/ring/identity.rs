//! Whose ring a disk holds, if it holds one, and how a new one is made.

use std::io;
use std::sync::Arc;

use super::catalogue;
use super::disk::{BLOCK, Disk, read_block};
use super::superblock::RingSuperblock;
use crate::archive::StoreError;
use crate::format::{BLOCK_BYTES, FormatError, Superblock};
use crate::io::Buffer;

/// Why there is no ring to open on a disk.
pub(super) enum Unfit {
    /// No magic anywhere.
    None,
    Damaged(FormatError),
    Unreadable(io::Error),
    Short {
        have: u64,
        need: u64,
    },
    Two,
}

/// The superblock of a disk, and the blocks where it is damaged.
pub(super) fn superblocks(disk: &Arc<dyn Disk>) -> Result<(RingSuperblock, Vec<u64>), Unfit> {
    let blocks = disk.bytes() / BLOCK;
    if blocks == 0 {
        return Err(Unfit::None);
    }
    let read = |at| match read_block(&**disk, at) {
        Ok(block) => RingSuperblock::parse(block.bytes()).map_err(Unfit::from),
        Err(error) => Err(Unfit::Unreadable(error)),
    };
    let first = read(0);
    let copy_at = first.as_ref().map_or(blocks, |found| found.blocks.min(blocks)) - 1;
    let (found, damaged) = match (first, read(copy_at)) {
        (Ok(first), Ok(copy)) if first == copy => (first, Vec::new()),
        (Ok(_), Ok(_)) => return Err(Unfit::Two),
        (Ok(one), Err(_)) => (one, vec![copy_at]),
        (Err(_), Ok(one)) => (one, vec![0]),
        (Err(Unfit::None), Err(unfit)) | (Err(unfit), Err(_)) => return Err(unfit),
    };
    if found.blocks > blocks {
        return Err(Unfit::Short { have: blocks * BLOCK, need: found.blocks * BLOCK });
    }
    Ok((found, damaged))
}

impl From<FormatError> for Unfit {
    fn from(error: FormatError) -> Self {
        match error {
            FormatError::Magic { .. } => Self::None,
            error => Self::Damaged(error),
        }
    }
}

/// Checks that the store of `found` is the one of `wanted`, in whatever history.
pub(super) fn check(said: &Said, found: &Superblock, wanted: &Superblock) -> Result<(), StoreError> {
    if found.uuid != wanted.uuid {
        let (found, wanted) = (found.uuid, wanted.uuid);
        return Err(said.refused(format!("the store belongs to volume {found}, not to {wanted}")));
    }
    if found.key != wanted.key {
        return Err(said.refused(format!("the store belongs to a volume {} with another key", found.uuid)));
    }
    Ok(())
}

/// Writes an empty ring, the superblocks last: until then there is none.
pub(super) fn format(disk: &Arc<dyn Disk>, ring: &RingSuperblock) -> io::Result<()> {
    let block = Buffer::new(BLOCK_BYTES)?;
    let places = [ring.blocks - 1, 0];
    for at in places {
        disk.write_at(at * BLOCK, &block)?;
    }
    disk.sync()?;
    catalogue::format(disk, ring)?;
    block.copy_from(0, &ring.encode());
    for at in places {
        disk.write_at(at * BLOCK, &block)?;
        disk.sync()?;
    }
    Ok(())
}

/// A store's SPEC, in errors.
pub(super) struct Said(pub(super) String);

impl Said {
    pub(super) fn io(&self, what: &str, source: io::Error) -> StoreError {
        StoreError::Io { store: self.0.clone(), what: what.to_owned(), source }
    }

    pub(super) fn refused(&self, what: impl Into<String>) -> StoreError {
        StoreError::Refused { store: self.0.clone(), what: what.into() }
    }

    pub(super) fn too_small(&self, have: u64, need: u64) -> StoreError {
        self.refused(format!(
            "too small: {have} bytes, and it has to hold two segments more than the working set, uncompressed, and the parts of \
             an open one, which takes {} bytes",
            need * BLOCK
        ))
    }

    pub(super) fn unfit(&self, unfit: Unfit) -> StoreError {
        match unfit {
            Unfit::None => self.refused("there is no store: neither the first block nor the last is a superblock"),
            Unfit::Damaged(error) => {
                self.refused(format!("there is a store, both of whose superblocks are damaged: {error}"))
            }
            Unfit::Unreadable(error) => self.io("neither of its superblocks can be read", error),
            Unfit::Short { have, need } => {
                self.refused(format!("has {have} bytes, and the store was made for {need}: the rest is missing"))
            }
            Unfit::Two => self.refused("the superblocks at its two ends are of different stores"),
        }
    }
}
