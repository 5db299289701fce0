//! A block that the primary cannot give back may still be in the archive.

use super::Log;
use crate::archive::{ArchivedSegment, ObjectName};
use crate::format::{BLOCK_BYTES, Block, Offset, Place, block_crc};
use crate::io::{Buffer, Platform};

impl<P: Platform> Log<P> {
    /// Fills `into` with `block`, whose place on the primary is unreadable or damaged, from the archived segment. Says
    /// whether it could: then `into` matches `crc`.
    pub async fn repair(&self, block: Block, place: Place, crc: u32, into: &Buffer) -> bool {
        let volume = &self.0.volume;
        let (name, offset) = {
            let state = self.0.state.borrow();
            let slot = volume.geometry.slot_of(place);
            let info = state.table.get(slot);
            let offset = Offset(place.0 - volume.geometry.slot_place(slot).0);
            let name = ObjectName { history: volume.history, segment: info.segment, epoch: info.epoch, part: 0 };
            if !info.archived {
                log::error!("block {block} cannot be read at {:#x}, and is not archived yet", place.bytes());
                return false;
            }
            (name, offset)
        };
        let Some(store) = self.0.store.clone() else { return false };
        let volume = volume.clone();
        let read = self.0.platform.offload(move || {
            let mut segment = ArchivedSegment::open(&store, &name, Some(&volume))?;
            let mut bytes = vec![0; BLOCK_BYTES];
            segment.read_block(offset, &mut bytes).map(|()| bytes)
        });
        match read.await {
            Ok(bytes) if block_crc(&bytes) == crc => {
                log::warn!("block {block} is damaged at {:#x}; it was read from the archive", place.bytes());
                into.copy_from(0, &bytes);
                true
            }
            Ok(_) => {
                log::error!("block {block} is damaged at {:#x}, and in archive object {name}", place.bytes());
                false
            }
            Err(error) => {
                log::error!("block {block} is damaged at {:#x}, and not in the archive: {error}", place.bytes());
                false
            }
        }
    }
}
