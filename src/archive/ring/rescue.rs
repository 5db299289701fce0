//! Entries that are damaged in both copies of the catalogue: their objects are found again by their record headers.

use std::collections::BTreeMap;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::catalogue::Found;
use super::content::{self, TRANSFER_BYTES};
use super::disk::{BLOCK, Disk, read_block};
use super::entry::{Entry, Record};
use super::room::is_whole;
use super::space::Space;
use super::superblock::RingSuperblock;
use crate::format::{BLOCK_BYTES, block_crc};
use crate::io::Buffer;

/// What was found for entries that are damaged in both copies; `None` for nothing.
pub(super) type Rescued = BTreeMap<u32, Option<Entry>>;

/// The blocks that no object has.
///
/// # Errors
/// When two objects claim one block, which no writer makes: nothing may be written then.
pub(super) fn space_of(ring: &RingSuperblock, found: &Found) -> Result<Space, String> {
    let mut space = Space::new(&ring.data());
    for held in found.objects.values() {
        if !held.record.extents.iter().all(|extent| space.take(extent)) {
            return Err(format!("two objects have one place, and one of them is {}", held.record.name));
        }
    }
    let wholes = found.objects.values().filter(|held| is_whole(&held.record.name));
    let last = wholes.max_by_key(|held| held.sequence);
    let end = last.and_then(|held| held.record.extents.last()).map_or(ring.data().start, |extent| extent.end());
    space.go_on_at(end);
    Ok(space)
}

/// Reads all of the disk that no object is known to be in, for the record headers of the damaged entries.
pub(super) fn scan(disk: &Arc<dyn Disk>, ring: &RingSuperblock, found: &Found, space: &Space) -> io::Result<Rescued> {
    let mut rescued: Rescued = found.lost.iter().map(|slot| (*slot, None)).collect();
    let mut unread = 0;
    for hole in space.holes() {
        let mut at = hole.start;
        while at < hole.end {
            let end = hole.end.min(at + TRANSFER_BYTES / BLOCK);
            unread += scan_part(&**disk, ring, at..end, &mut rescued)?;
            at = end;
        }
    }
    if unread > 0 {
        log::warn!("{unread} blocks cannot be read, in which there may be objects whose entries are damaged");
    }
    for entry in rescued.values().flatten() {
        if let Some(record) = &entry.record {
            report(disk, record);
        }
    }
    Ok(rescued)
}

/// Looks at some blocks. Returns how many could not be read.
fn scan_part(disk: &dyn Disk, ring: &RingSuperblock, part: Range<u64>, rescued: &mut Rescued) -> io::Result<u64> {
    let buffer = Buffer::new(((part.end - part.start) * BLOCK) as usize)?;
    let whole = disk.read_at(part.start * BLOCK, &buffer).is_ok();
    let mut unread = 0;
    for at in part.clone() {
        let block = if whole {
            buffer.part((at - part.start) as usize * BLOCK_BYTES, BLOCK_BYTES)
        } else {
            match read_block(disk, at) {
                Ok(block) => block,
                Err(_) => {
                    unread += 1;
                    continue;
                }
            }
        };
        if let Some((slot, entry)) = Entry::parse_record(block.bytes(), ring, at)
            && let Some(known) = rescued.get_mut(&slot)
            && known.as_ref().is_none_or(|known| known.sequence < entry.sequence)
        {
            *known = Some(entry);
        }
    }
    Ok(unread)
}

fn report(disk: &Arc<dyn Disk>, record: &Record) {
    let name = record.name;
    match content::read(&**disk, record, 0..record.bytes) {
        Ok(bytes) if block_crc(&bytes) == record.crc => {
            log::warn!("the catalogue lost object {name}; it was found again by its record header");
        }
        Ok(_) => log::warn!("the catalogue lost object {name}; it was found again by its record header, damaged"),
        Err(error) => log::warn!("the catalogue lost object {name}; found again, but cannot be read: {error}"),
    }
}
