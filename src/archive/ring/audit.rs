//! What is damaged of a ring itself: what it has two or three times over, so that no reader would notice before the last of
//! them is gone. Never writes; a writer puts right what it finds.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use super::catalogue;
use super::disk::{Disk, read_block};
use super::entry::Entry;
use super::superblock::{BLOCK_ENTRIES, ENTRY_BYTES, RingSuperblock};

/// What is wrong at this moment; a writer that is at work may be part of it.
pub(super) fn look(disk: &Arc<dyn Disk>, ring: &RingSuperblock) -> io::Result<BTreeSet<String>> {
    let mut wrong = BTreeSet::new();
    for at in [0, ring.blocks - 1] {
        let what = match read_block(&**disk, at).map(|block| RingSuperblock::parse(block.bytes())) {
            Ok(Ok(found)) if found == *ring => continue,
            Ok(Ok(_)) => "it is another store's".to_owned(),
            Ok(Err(error)) => error.to_string(),
            Err(error) => format!("cannot be read: {error}"),
        };
        wrong.insert(format!("the store's superblock in block {at}: {what}"));
    }
    for (copy, first) in ["first", "second"].iter().zip(ring.catalogues()) {
        for rank in 0..ring.catalogue_blocks() {
            let at = first + rank;
            let what = match read_block(&**disk, at) {
                Ok(block) => {
                    let entries = block.bytes().chunks_exact(ENTRY_BYTES).zip(rank * BLOCK_ENTRIES..);
                    match entries.filter(|(bytes, slot)| Entry::parse(bytes, ring, *slot as u32).is_none()).count() {
                        0 => continue,
                        count => format!("{count} of {BLOCK_ENTRIES} entries are damaged"),
                    }
                }
                Err(error) => format!("cannot be read: {error}"),
            };
            wrong.insert(format!("the {copy} copy of the store's catalogue, in block {at}: {what}"));
        }
    }
    for held in catalogue::load(disk, ring, false)?.objects.values() {
        let (name, at) = (held.record.name, held.record.header());
        let what = match read_block(&**disk, at).map(|block| Entry::parse_record(block.bytes(), ring, at)) {
            Ok(found) if found == Some((held.slot, held.entry())) => continue,
            Ok(_) => "is damaged".to_owned(),
            Err(error) => format!("cannot be read: {error}"),
        };
        wrong.insert(format!("the record header of object {name}, in block {at}, {what}"));
    }
    Ok(wrong)
}
