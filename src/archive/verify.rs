//! Whether the object in the store is the segment: read back past every cache, decoded and compared.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::sync::Arc;

use super::reader::Object;
use super::{ArchiveError, OBJECT_HEADER_BYTES, ObjectError, ObjectHeader, ObjectName, Store};
use crate::format::{
    BLOCK_BYTES, BatchHeader, FormatError, Offset, Position, SegmentNumber, Summary, Superblock, block_crc,
};

/// Why an object is not good enough to stand for the segment.
pub(super) enum Unfit {
    /// Its own checksums say so, or bad sectors. Whatever it was, nobody can use it: it may be replaced.
    Damaged(ArchiveError),
    /// It is whole, and something else; or it could not be read now. Never a reason to delete it.
    Other(ArchiveError),
}

/// How often an object must fail to be read, while the store can be read otherwise, before it counts as unreadable.
const READS: usize = 3;

/// Whether the object `name` lies on bad sectors, after `error` of a call in which it was read: it fails as such each time
/// that it is read `again`, and each time the store has it in its list and something else of it can be read. A store that
/// fails as a whole says nothing about any one object.
pub(crate) fn is_unreadable(
    store: &Arc<dyn Store>,
    name: &ObjectName,
    error: &ArchiveError,
    mut again: impl FnMut() -> Option<ArchiveError>,
) -> bool {
    let bad = |error: &ArchiveError| matches!(error, ArchiveError::Store(error) if error.is_bad_sector());
    let answers = || {
        let list = store.list().ok().filter(|list| list.iter().any(|(there, _)| there == name));
        // A neighbour's header, or, when the object is alone, its own.
        let read = |of: &ObjectName| store.get(of, 0..OBJECT_HEADER_BYTES as u64).is_ok_and(|head| !head.is_empty());
        list.is_some_and(|list| match list.len() {
            1 => read(name),
            _ => list.iter().rev().filter(|(there, _)| there != name).take(READS).any(|(other, _)| read(other)),
        })
    };
    bad(error) && (1..READS).all(|_| answers() && again().is_some_and(|error| bad(&error))) && answers()
}

/// The data blocks of an image that begins with the slot's block `first`: where they are in it, each with the CRC32C that
/// its entry has.
fn data_blocks(summary: &Summary, first: Offset) -> impl Iterator<Item = (Offset, u32)> {
    summary.walk().flat_map(move |(_, batch, entries)| {
        let with_data = entries.iter().filter(|entry| entry.kind().is_ok_and(|kind| kind.has_data()));
        let at = batch.offset().0 - first.0 + 1;
        with_data.enumerate().map(move |(rank, entry)| (Offset(at + rank as u32), entry.crc()))
    })
}

fn block_at(image: &[u8], offset: Offset) -> &[u8] {
    &image[offset.0 as usize * BLOCK_BYTES..][..BLOCK_BYTES]
}

/// The data blocks of `image`, which begins with the slot's block `first`, that are not what their entries say, and the
/// checksums that they should have.
pub fn damaged_blocks(image: &[u8], summary: &Summary, first: Offset) -> Vec<(Offset, u32)> {
    let wrong = |(offset, crc): &(Offset, u32)| block_crc(block_at(image, *offset)) != *crc;
    data_blocks(summary, first).filter(wrong).collect()
}

/// The same as [`compare`], but an object on bad sectors, in a store that can be read otherwise, is a damaged one.
pub(super) fn verify(
    store: &Arc<dyn Store>,
    header: &ObjectHeader,
    summary: &Summary,
    image: &[u8],
) -> Result<u64, Unfit> {
    let read = || compare(store, header, summary, image);
    let again = || match read() {
        Err(Unfit::Other(error)) => Some(error),
        _ => None,
    };
    match read() {
        Err(Unfit::Other(error)) if is_unreadable(store, &header.name, &error, again) => Err(Unfit::Damaged(error)),
        result => result,
    }
}

/// Reads the object back and compares it with the image. Returns the object's length.
///
/// Where they differ, a data block that is damaged in the image may be anything in the object: the primary rotted after
/// the object was made, or before, and either way the object has what there is to have. So it has when a batch's header is damaged in one of
/// both: the summary says the same. An object that has a data block as it could not be read then, where the image has it whole,
/// is damaged.
fn compare(store: &Arc<dyn Store>, header: &ObjectHeader, summary: &Summary, image: &[u8]) -> Result<u64, Unfit> {
    let name = header.name;
    check_header(store, header)?;
    // With a header that is ours, what does not parse now is damage.
    let mut object = Object::open(store, &name).map_err(by_its_checksums)?;
    let mut crcs = None;
    let mut rotten = 0;
    object
        .each_frame(0..object.table.frames().len(), |from, raw| {
            let wanted = &image[from..from + raw.len()];
            if raw == wanted {
                return Ok(());
            }
            let crcs: &BTreeMap<Offset, u32> = crcs.get_or_insert_with(|| data_blocks(summary, header.first).collect());
            for (rank, (is, wanted)) in raw.chunks(BLOCK_BYTES).zip(wanted.chunks(BLOCK_BYTES)).enumerate() {
                let Some(differs) = is.iter().zip(wanted).position(|(a, b)| a != b) else { continue };
                let at = from + rank * BLOCK_BYTES;
                let offset = Offset((at / BLOCK_BYTES) as u32);
                let excused = match crcs.get(&offset) {
                    Some(crc) if block_crc(wanted) == *crc && block_crc(is) != *crc => {
                        return Err(ArchiveError::object(&name, ObjectError::Block { offset }));
                    }
                    Some(crc) => block_crc(wanted) != *crc,
                    // The segment's own header may have been made again out of its first batch.
                    None if at == 0 && header.first == Offset(0) => true,
                    None => {
                        let block = Offset(offset.0 + header.first.0);
                        let batch = summary.walk().find(|(_, batch, _)| batch.offset() == block);
                        batch.map_or(is_hole(is) || is_hole(wanted), |(position, ..)| {
                            let is_it = |block| is_header_of(block, &header.volume, summary.segment, position);
                            !is_it(is) || !is_it(wanted)
                        })
                    }
                };
                if !excused {
                    return Err(ArchiveError::Differs { name, at: at + differs });
                }
                rotten += 1;
            }
            Ok(())
        })
        .map_err(by_its_checksums)?;
    if rotten > 0 {
        log::warn!(
            "object {name}: {rotten} blocks differ from the primary, damaged or made again on one side; the object is kept"
        );
    }
    Ok(object.bytes)
}

/// Whether the block is what stands for one that cannot be read.
fn is_hole(block: &[u8]) -> bool {
    block.iter().all(|byte| *byte == 0)
}

/// Whether the object says of itself that it is the segment.
fn check_header(store: &Arc<dyn Store>, header: &ObjectHeader) -> Result<(), Unfit> {
    let name = header.name;
    let head = store.get(&name, 0..OBJECT_HEADER_BYTES as u64).map_err(|error| Unfit::Other(error.into()))?;
    let found = ObjectHeader::parse(&head).map_err(|error| match error {
        // The header's own checksum may hold: it is somebody's, perhaps a newer salvol's.
        FormatError::Version { .. }
        | FormatError::Features { .. }
        | FormatError::Identity { .. }
        | FormatError::Field { .. } => Unfit::Other(ArchiveError::object(&name, error)),
        FormatError::Length { .. } | FormatError::Magic { .. } | FormatError::Checksum { .. } => {
            Unfit::Damaged(ArchiveError::object(&name, error))
        }
    })?;
    let other = |error| Err(Unfit::Other(error));
    if found.name != name {
        return other(ArchiveError::object(&name, ObjectError::Name { found: found.name }));
    }
    if !found.is_of(&header.volume) {
        return other(ArchiveError::Volume { name, found: found.volume.uuid, expected: header.volume.uuid });
    }
    if found.image_bytes() != header.image_bytes() {
        return other(ArchiveError::Buffer { name, have: header.image_bytes(), need: found.image_bytes() });
    }
    // Name or size of the volume may have changed since another attempt, and the salvol; what the segment is may not.
    let outline = found.outline.or(header.outline);
    if (ObjectHeader { volume: header.volume.clone(), outline, ..found }) != *header {
        return other(ArchiveError::object(&name, ObjectError::Summary));
    }
    Ok(())
}

fn is_header_of(block: &[u8], volume: &Superblock, segment: SegmentNumber, position: Position) -> bool {
    BatchHeader::parse(block, volume)
        .is_ok_and(|batch| (batch.header.segment, batch.header.position) == (segment, position))
}

fn by_its_checksums(error: ArchiveError) -> Unfit {
    match error {
        ArchiveError::Object { .. } => Unfit::Damaged(error),
        error => Unfit::Other(error),
    }
}

/// The image, with those of its damaged blocks that a damaged object still has: before the object goes, what only it has
/// is saved.
pub(super) fn rescue<'a>(
    store: &Arc<dyn Store>,
    header: &ObjectHeader,
    summary: &Summary,
    mut image: Cow<'a, [u8]>,
) -> Cow<'a, [u8]> {
    let lost = damaged_blocks(&image, summary, header.first);
    if lost.is_empty() {
        return image;
    }
    let Ok(mut object) = Object::open(store, &header.name) else { return image };
    let mut saved = 0;
    for rank in 0..object.table.frames().len() {
        // A frame that is damaged itself gives nothing.
        let _ = object.each_frame(rank..rank + 1, |from, raw| {
            for (offset, crc) in &lost {
                let at = offset.0 as usize * BLOCK_BYTES;
                if !(from..from + raw.len()).contains(&at) {
                    continue;
                }
                let block = &raw[at - from..][..BLOCK_BYTES];
                if block_crc(block) == *crc {
                    image.to_mut()[at..at + BLOCK_BYTES].copy_from_slice(block);
                    saved += 1;
                }
            }
            Ok(())
        });
    }
    log::warn!("object {}: {saved} of {} blocks that the primary lost are saved from it", header.name, lost.len());
    image
}
