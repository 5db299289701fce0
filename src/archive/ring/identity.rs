//! Whose ring a disk holds, if it holds one, and how a new one is made.

use std::io;
use std::sync::Arc;

use super::catalogue;
use super::disk::{BLOCK, Disk, read_block, write_block};
use super::entry::{Entry, looks_used};
use super::superblock::{ENTRY_BYTES, RingSuperblock};
use crate::archive::StoreError;
use crate::format::{BLOCK_BYTES, FormatError, Superblock};
use crate::io::Buffer;

/// Places where a disk may have ended before it grew that are looked at. More would take hours on a disk that turns.
const ENDS_MAX: u64 = 1 << 16;
/// The first block of the first copy of the catalogue.
const CATALOGUE: u64 = 1;

/// Why there is no ring to open on a disk.
pub(super) enum Unfit {
    /// No magic anywhere.
    None,
    /// A catalogue that was used, and no superblock.
    Lost,
    Damaged(FormatError),
    Unreadable(io::Error),
    Short {
        have: u64,
        need: u64,
    },
    Two,
}

/// The superblock at either end of a disk.
pub(super) fn superblock(disk: &Arc<dyn Disk>) -> Result<RingSuperblock, Unfit> {
    let blocks = disk.bytes() / BLOCK;
    if blocks == 0 {
        return Err(Unfit::None);
    }
    let first = read(&**disk, 0);
    let copy_at = first.as_ref().map_or(blocks, |found| found.blocks.min(blocks)) - 1;
    let found = match (first, read(&**disk, copy_at)) {
        (Ok(first), Ok(copy)) if first != copy => return Err(Unfit::Two),
        (Ok(one), _) | (Err(_), Ok(one)) => one,
        (Err(Unfit::None), Err(Unfit::None)) if has_catalogue(disk) => return Err(Unfit::Lost),
        (Err(Unfit::None), Err(unfit)) | (Err(unfit), Err(_)) => return Err(unfit),
    };
    if found.blocks > blocks {
        return Err(Unfit::Short { have: blocks * BLOCK, need: found.blocks * BLOCK });
    }
    Ok(found)
}

/// The superblock of a disk, also of one that has grown since any writer saw it and of which the first block is damaged:
/// where the copy is then, nothing says.
pub(super) fn find(disk: &Arc<dyn Disk>) -> Result<RingSuperblock, Unfit> {
    match superblock(disk) {
        Err(unfit @ (Unfit::Lost | Unfit::Damaged(_) | Unfit::Unreadable(_))) => search(disk).ok_or(unfit),
        other => other,
    }
}

/// Where superblocks are to be and are not: at both ends of the ring, and at the end of a disk that is larger.
pub(super) fn lacking(disk: &Arc<dyn Disk>, ring: &RingSuperblock) -> Vec<u64> {
    let mut places = vec![0, ring.blocks - 1, disk.bytes() / BLOCK - 1];
    places.dedup();
    places.retain(|at| !read(&**disk, *at).is_ok_and(|found| found == *ring));
    places
}

/// Writes the superblock to a place that lacks it: another one is whole, and all that is needed.
pub(super) fn write_again(disk: &Arc<dyn Disk>, ring: &RingSuperblock, at: u64, said: &Said) {
    let what = if at < ring.blocks { "is damaged" } else { "is missing: the disk has grown" };
    match write_block(&**disk, at, &ring.encode()).and_then(|()| disk.sync()) {
        Ok(()) => log::warn!("{}: the superblock in block {at} {what}: written again", said.0),
        Err(error) => log::warn!("{}: the superblock in block {at} {what}: {error}", said.0),
    }
}

fn read(disk: &dyn Disk, at: u64) -> Result<RingSuperblock, Unfit> {
    match read_block(disk, at) {
        Ok(block) => RingSuperblock::parse(block.bytes()).map_err(Unfit::from),
        Err(error) => Err(Unfit::Unreadable(error)),
    }
}

/// Whether a store's catalogue is there, whosever, in which there ever was anything.
fn has_catalogue(disk: &Arc<dyn Disk>) -> bool {
    let used = |block: Buffer| block.bytes().chunks_exact(ENTRY_BYTES).any(looks_used);
    disk.bytes() / BLOCK > CATALOGUE && read_block(&**disk, CATALOGUE).is_ok_and(used)
}

/// Looks for a superblock where the disk may have ended: at every block of a small one, at round sizes of a large one. It
/// is the one when the catalogue is that store's, which former stores' are not, nor what an object has inside.
fn search(disk: &Arc<dyn Disk>) -> Option<RingSuperblock> {
    let catalogue = read_block(&**disk, CATALOGUE).ok()?;
    let blocks = disk.bytes() / BLOCK;
    let step = blocks.div_ceil(ENDS_MAX).next_power_of_two();
    (step..=blocks).step_by(usize::try_from(step).ok()?).find_map(|end| {
        let found = read(&**disk, end - 1).ok().filter(|found| found.blocks == end)?;
        let mut entries = catalogue.bytes().chunks_exact(ENTRY_BYTES).zip(0..);
        entries.any(|(bytes, slot)| Entry::parse(bytes, &found, slot).is_some()).then_some(found)
    })
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
            Unfit::Lost => self.refused(
                "there was a store, and no superblock of it is found: if the disk has grown, give it the size that it had; \
                 erase it (blkdiscard -z, or remove the file) when nobody needs that archive",
            ),
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
