//! Which room an object gets. No I/O.
//!
//! - Whole segments have the ring to themselves, but for its end. They come and are expired in their order, so
//!   what is free there is in one piece, or nearly.
//! - At the end is room for the most that the parts of an open segment ever take. All of them go when their segment is
//!   there whole, so nothing that stays is ever between them but
//!   fork and pin records, of two blocks each.
//! - A part that finds no room there, because an ancestor's last parts are in it or the ring was made before there was
//!   such room, gets other room only while a whole segment would find room behind it, and an entry. So whatever the parts
//!   did, the segment that they are of can be archived: were it refused, nothing would ever make room again.

use std::ops::Range;

use super::entry::Extent;
use super::space::Space;
use super::superblock::{RingSuperblock, object_blocks_max};
use crate::archive::ObjectName;

/// Whether it is a whole segment: the others are parts of one, and fork and pin records.
pub(super) fn is_whole(name: &ObjectName) -> bool {
    name.part == 0 && name.segment.0 > 0
}

/// Room for the object, while so many entries are free. When nothing more can be expired, `at_last`, any room will do.
pub(super) fn room_for(
    ring: &RingSuperblock,
    space: &Space,
    name: &ObjectName,
    blocks: u64,
    entries: usize,
    at_last: bool,
) -> Option<Vec<Extent>> {
    if is_whole(name) {
        let within = if at_last { ring.data() } else { wholes(ring) };
        return space.find(blocks, &within).filter(|_| entries > 0);
    }
    let room = space.find_last(blocks, &parts(ring)).or_else(|| room_between(ring, space, blocks));
    room.filter(|_| entries > 1)
}

/// Where parts are.
fn parts(ring: &RingSuperblock) -> Range<u64> {
    let data = ring.data();
    data.end - ring.parts_blocks()..data.end
}

/// Where whole segments are.
fn wholes(ring: &RingSuperblock) -> Range<u64> {
    let data = ring.data();
    data.start..data.end - ring.parts_blocks()
}

/// Room for a part anywhere, that leaves room for a whole segment.
fn room_between(ring: &RingSuperblock, space: &Space, blocks: u64) -> Option<Vec<Extent>> {
    let extents = space.find_last(blocks, &ring.data())?;
    let mut then = space.clone();
    let taken = extents.iter().all(|extent| then.take(extent));
    let whole = then.find(object_blocks_max(&ring.volume.geometry), &ring.data());
    whole.filter(|_| taken).map(|_| extents)
}
