//! A block that the primary does not give back at once: asked for in another way, or taken from the archive.

use std::io;
use std::sync::Arc;

use super::Log;
use crate::archive::{ArchiveError, ArchivedSegment, Lineage, ObjectName, Store, StoreError};
use crate::format::{BLOCK_BYTES, Block, Offset, Place, SegmentNumber, Superblock, block_crc};
use crate::io::{Buffer, Device, Platform};

impl<P: Platform> Log<P> {
    /// Reads the block at `place` by itself, alone and, when that is wrong, behind the block before it. Whether `into` matches `crc`.
    ///
    /// # Errors
    /// When the device cannot read it; it is not asked a second time then.
    pub async fn read_again(&self, place: Place, crc: u32, into: &Buffer) -> io::Result<bool> {
        let alone = self.read_alone(place, into).await?;
        Ok(alone == crc || self.read_behind(place, into).await.is_ok_and(|found| found == crc))
    }

    /// Reads the block at `place` alone. Gives its checksum.
    pub(super) async fn read_alone(&self, place: Place, into: &Buffer) -> io::Result<u32> {
        self.0.device.read(place.bytes(), into.clone()).await?;
        Ok(block_crc(into.bytes()))
    }

    /// Reads the block at `place` behind the block before it: what is answered wrong each time may be answered right when it is asked
    /// in another way. Gives its checksum.
    ///
    /// # Errors
    /// When the device fails, or there is no memory.
    pub(super) async fn read_behind(&self, place: Place, into: &Buffer) -> io::Result<u32> {
        let both = Buffer::new(2 * BLOCK_BYTES)?;
        self.0.device.read(place.bytes() - BLOCK_BYTES as u64, both.clone()).await?;
        into.copy_from(0, both.part(BLOCK_BYTES, BLOCK_BYTES).bytes());
        Ok(block_crc(into.bytes()))
    }

    /// Fills `into` with `block`, whose place on the primary is unreadable or damaged, from the archived segment. Says
    /// whether it could: then `into` matches `crc`.
    pub async fn repair(&self, block: Block, place: Place, crc: u32, into: &Buffer) -> bool {
        let volume = &self.0.volume;
        let (name, offset, whole) = {
            let state = self.0.state.borrow();
            let slot = volume.geometry.slot_of(place);
            let info = state.table.get(slot);
            let offset = Offset(place.0 - volume.geometry.slot_place(slot).0);
            let name = ObjectName { history: volume.history, segment: info.segment, epoch: info.epoch, part: 0 };
            // What the volume was rebuilt from came from the archive, whatever the headers could know of that.
            (name, offset, info.archived || info.first_position <= volume.fork_position)
        };
        if !whole {
            let Some((_, bytes)) = self.read_unrecorded(name.segment, vec![(offset, crc)]).await.pop() else {
                log::error!("block {block} cannot be read at {:#x}, and is not archived yet", place.bytes());
                return false;
            };
            log::warn!("block {block} is damaged at {:#x}; it was read from the archive", place.bytes());
            into.copy_from(0, &bytes);
            self.0.state.borrow_mut().counters.repaired_blocks += 1;
            return true;
        }
        let Some(store) = self.0.store.clone() else { return false };
        let volume = volume.clone();
        let read = self.0.platform.offload_urgent(move || read_archived(&store, &volume, name, offset, crc));
        match read.await {
            Ok(Some(bytes)) => {
                log::warn!("block {block} is damaged at {:#x}; it was read from the archive", place.bytes());
                into.copy_from(0, &bytes);
                self.0.state.borrow_mut().counters.repaired_blocks += 1;
                true
            }
            Ok(None) => {
                log::error!("block {block} is damaged at {:#x}, and in archive object {name}", place.bytes());
                false
            }
            Err(error) => {
                log::error!("block {block} is damaged at {:#x}, and not in the archive: {error}", place.bytes());
                false
            }
        }
    }

    /// Reads blocks of `segment`, each with its checksum, from what the store has of it although no header says that it is archived: its
    /// parts, or the whole, put a moment before a crash. Gives those that are there, and whole.
    pub(super) async fn read_unrecorded(
        &self,
        segment: SegmentNumber,
        wanted: Vec<(Offset, u32)>,
    ) -> Vec<(Offset, Vec<u8>)> {
        let Some(store) = self.0.store.clone().filter(|_| self.archives_parts() && !wanted.is_empty()) else {
            return Vec::new();
        };
        let volume = self.0.volume.clone();
        let read = self.0.platform.offload_urgent(move || read_unrecorded(&store, &volume, segment, wanted)).await;
        read.unwrap_or_else(|error| {
            log::info!("segment {segment}: {error}");
            Vec::new()
        })
    }
}

fn read_unrecorded(
    store: &Arc<dyn Store>,
    volume: &Superblock,
    segment: SegmentNumber,
    mut wanted: Vec<(Offset, u32)>,
) -> Result<Vec<(Offset, Vec<u8>)>, ArchiveError> {
    let names = Lineage::read(store, volume)?.names.into_iter().filter(|name| name.segment == segment);
    let (parts, whole): (Vec<_>, Vec<_>) = names.partition(|name| name.part > 0);
    let whole = whole.iter().map(|name| ArchivedSegment::open(store, name, Some(volume)));
    let parts = (!parts.is_empty()).then(|| ArchivedSegment::open_parts(store, &parts, Some(volume)));
    let mut found = Vec::new();
    for archived in whole.chain(parts) {
        let mut archived = match archived {
            Err(ArchiveError::Object { .. }) => continue,
            archived => archived?,
        };
        wanted.retain(|(offset, crc)| {
            let mut bytes = vec![0; BLOCK_BYTES];
            let whole = archived.read_block(*offset, &mut bytes).is_ok() && block_crc(&bytes) == *crc;
            if whole {
                found.push((*offset, bytes));
            }
            !whole
        });
    }
    Ok(found)
}

/// The block at `offset` of the segment called `name`, or called so in an older history of the volume, if it is whole
/// anywhere.
fn read_archived(
    store: &Arc<dyn Store>,
    volume: &Superblock,
    name: ObjectName,
    offset: Offset,
    crc: u32,
) -> Result<Option<Vec<u8>>, ArchiveError> {
    let read = |name: &ObjectName| {
        let mut bytes = vec![0; BLOCK_BYTES];
        ArchivedSegment::open(store, name, Some(volume))?.read_block(offset, &mut bytes)?;
        Ok((block_crc(&bytes) == crc).then_some(bytes))
    };
    let own = read(&name);
    if matches!(own, Ok(Some(_))) || volume.fork_position.0 == 0 {
        return own;
    }
    let same = |other: &&ObjectName| (other.segment, other.part) == (name.segment, 0) && **other != name;
    for other in Lineage::read(store, volume)?.names.iter().filter(same) {
        match read(other) {
            Ok(None) | Err(ArchiveError::Object { .. }) => {}
            found => return found,
        }
    }
    match own {
        Err(ArchiveError::Store(StoreError::Missing { .. })) => Ok(None),
        own => own,
    }
}
