//! The catalogue: which objects there are and where, in two copies, with a third in front of each object.
//!
//! ```text
//! 1. first copy ── flush ── 2. record header ── flush ── 3. second copy ── flush
//! ```
//!
//! Every change, of an entry to live or to free, is made in this order. So:
//!
//! - The change has happened when the first copy has it. Whoever finds the copies unequal takes the newer one; a writer
//!   does steps 2 and 3 again before anything else.
//! - A record header is on the disk only while an entry for it is in at least one copy. What is found by record headers,
//!   when an entry is damaged in both copies, is therefore what the entry said: nothing that was deleted comes back.
//! - The place of a deleted object is free only after step 3. As long as a copy has its entry, its bytes are untouched.
//! - A record header that cannot be read is written over when its block is nobody's, and stops no change: a disk with a bad
//!   block would be full for ever, as everything that is expired has a record header.

use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::sync::Arc;

use super::content::TRANSFER_BYTES;
use super::disk::{BLOCK, Disk, read_block, write_block};
use super::entry::{Entry, Record};
use super::space::Space;
use super::superblock::{BLOCK_ENTRIES, ENTRY_BYTES, RingSuperblock};
use crate::archive::ObjectName;
use crate::format::BLOCK_BYTES;
use crate::io::Buffer;

/// How often a catalogue is read before what is damaged in both copies is believed: its writer may be at work.
const READS: usize = 3;

/// An object of the catalogue.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Held {
    pub(super) slot: u32,
    pub(super) sequence: u64,
    pub(super) record: Record,
}

impl Held {
    /// Its entry.
    pub(super) fn entry(&self) -> Entry {
        Entry::live(self.sequence, self.record.clone())
    }
}

/// Entries to be written, by their numbers.
pub(super) type Changes = BTreeMap<u32, Entry>;

/// The objects of a catalogue.
pub(super) type Objects = BTreeMap<ObjectName, Held>;

/// What a catalogue says.
#[derive(Debug, Default)]
pub(super) struct Found {
    pub(super) objects: Objects,
    pub(super) free: BTreeSet<u32>,
    /// The largest sequence number in it.
    pub(super) sequence: u64,
    /// Entries whose change was not finished, or of which a copy is damaged.
    pub(super) unsettled: Changes,
    /// Entries that are damaged in both copies.
    pub(super) lost: BTreeSet<u32>,
}

impl Found {
    /// Adds an entry. Of two objects of one name the newer one counts, and the other one's entry is to be freed.
    pub(super) fn add(&mut self, slot: u32, entry: Entry) {
        self.sequence = self.sequence.max(entry.sequence);
        let Some(record) = entry.record else {
            self.free.insert(slot);
            return;
        };
        let mut held = Held { slot, sequence: entry.sequence, record };
        if let Some(there) = self.objects.get_mut(&held.record.name) {
            if there.sequence < held.sequence {
                std::mem::swap(there, &mut held);
            }
            self.free.insert(held.slot);
            self.unsettled.insert(held.slot, Entry::free(held.sequence + 1, held.record.header()));
            return;
        }
        self.objects.insert(held.record.name, held);
    }
}

/// Makes changes in the order that the module's head gives; `space` is what will be free then. Durable when it returns.
pub(super) fn commit(disk: &Arc<dyn Disk>, ring: &RingSuperblock, changes: &Changes, space: &Space) -> io::Result<()> {
    if changes.is_empty() {
        return Ok(());
    }
    let [first, second] = ring.catalogues();
    write_entries(&**disk, ring, first, changes)?;
    disk.sync()?;
    for (slot, entry) in changes {
        write_header(&**disk, ring, *slot, entry, space)?;
    }
    disk.sync()?;
    write_entries(&**disk, ring, second, changes)?;
    disk.sync()
}

/// Writes the record header of an object, or erases the one that a free entry left, if it is still there.
fn write_header(disk: &dyn Disk, ring: &RingSuperblock, slot: u32, entry: &Entry, space: &Space) -> io::Result<()> {
    match &entry.record {
        Some(record) => write_block(disk, record.header(), &entry.encode_record(ring, slot)),
        None if entry.vacated == 0 => Ok(()),
        None => match read_block(disk, entry.vacated) {
            Ok(block) => match Entry::parse_record(block.bytes(), ring, entry.vacated) {
                Some((its, old)) if its == slot && old.sequence < entry.sequence => {
                    write_block(disk, entry.vacated, &[])
                }
                _ => Ok(()),
            },
            Err(error) => {
                log::warn!("block {} cannot be read, where a record header is to be erased: {error}", entry.vacated);
                // In an object's place there is none any more. Elsewhere it may come back, unless it is written over.
                if space.is_free(entry.vacated)
                    && let Err(error) = write_block(disk, entry.vacated, &[])
                {
                    log::warn!("nor can it be written: {error}");
                }
                Ok(())
            }
        },
    }
}

/// Writes entries into the copy that starts at block `copy`.
fn write_entries(disk: &dyn Disk, ring: &RingSuperblock, copy: u64, changes: &Changes) -> io::Result<()> {
    let changes: Vec<_> = changes.iter().collect();
    let block_of = |slot: u32| copy + u64::from(slot) / BLOCK_ENTRIES;
    for group in changes.chunk_by(|a, b| block_of(*a.0) == block_of(*b.0)) {
        let at = block_of(*group[0].0);
        // A block that is written whole need not be readable.
        let block = if group.len() as u64 == BLOCK_ENTRIES { Buffer::new(BLOCK_BYTES)? } else { read_block(disk, at)? };
        for (slot, entry) in group {
            let rank = (u64::from(**slot) % BLOCK_ENTRIES) as usize;
            block.copy_from(rank * ENTRY_BYTES, &entry.encode(ring, **slot));
        }
        disk.write_at(at * BLOCK, &block)?;
    }
    Ok(())
}

/// Reads the catalogue. A reader takes the first copy and looks at the second where that is damaged; with `settle`
/// both are read, and what is to be done before the next change is found out.
///
/// # Errors
/// When a block cannot be read in either copy.
pub(super) fn load(disk: &Arc<dyn Disk>, ring: &RingSuperblock, settle: bool) -> io::Result<Found> {
    let mut found = Found::default();
    for _ in 0..READS {
        found = load_once(&**disk, ring, settle)?;
        if found.lost.is_empty() {
            break;
        }
    }
    Ok(found)
}

fn load_once(disk: &dyn Disk, ring: &RingSuperblock, settle: bool) -> io::Result<Found> {
    let mut found = Found::default();
    let [first, second] = ring.catalogues();
    let chunk = TRANSFER_BYTES / BLOCK;
    for from in (0..ring.catalogue_blocks()).step_by(chunk as usize) {
        let blocks = chunk.min(ring.catalogue_blocks() - from);
        let firsts = read_copy(disk, first + from, blocks)?;
        let seconds = if settle { Some(read_copy(disk, second + from, blocks)?) } else { None };
        for block in 0..blocks {
            let a = firsts.block(block);
            let mut b = seconds.as_ref().map(|copy| copy.block(block));
            for rank in 0..BLOCK_ENTRIES {
                let slot = ((from + block) * BLOCK_ENTRIES + rank) as u32;
                let at = (rank as usize) * ENTRY_BYTES..(rank as usize + 1) * ENTRY_BYTES;
                let parse = |copy: &io::Result<Buffer>| {
                    copy.as_ref().ok().and_then(|block| Entry::parse(&block.bytes()[at.clone()], ring, slot))
                };
                let one = parse(&a);
                if one.is_none() {
                    b.get_or_insert_with(|| read_block(disk, second + from + block));
                }
                if let (Err(error), Some(Err(_))) = (&a, &b) {
                    return Err(io::Error::new(
                        error.kind(),
                        format!("block {} of the catalogue cannot be read in either copy: {error}", from + block),
                    ));
                }
                let other = b.as_ref().and_then(parse);
                choose(&mut found, slot, one, other, settle);
            }
        }
    }
    Ok(found)
}

/// Takes the newer of the two copies of an entry.
fn choose(found: &mut Found, slot: u32, one: Option<Entry>, other: Option<Entry>, settle: bool) {
    let unequal = one != other;
    let newer = match (one, other) {
        (None, None) => {
            found.lost.insert(slot);
            return;
        }
        (Some(one), Some(other)) => {
            if one.sequence >= other.sequence {
                one
            } else {
                other
            }
        }
        (Some(one), None) | (None, Some(one)) => one,
    };
    if settle && unequal {
        found.unsettled.insert(slot, newer.clone());
    }
    found.add(slot, newer);
}

/// Blocks of a copy of the catalogue. When they cannot be read together they are read one by one.
enum Copy {
    Whole(Buffer),
    Blocks(Vec<io::Result<Buffer>>),
}

impl Copy {
    fn block(&self, rank: u64) -> io::Result<Buffer> {
        match self {
            Self::Whole(buffer) => Ok(buffer.part(rank as usize * BLOCK_BYTES, BLOCK_BYTES)),
            Self::Blocks(blocks) => match &blocks[rank as usize] {
                Ok(block) => Ok(block.clone()),
                Err(error) => Err(io::Error::new(error.kind(), error.to_string())),
            },
        }
    }
}

fn read_copy(disk: &dyn Disk, first: u64, blocks: u64) -> io::Result<Copy> {
    let buffer = Buffer::new((blocks * BLOCK) as usize)?;
    match disk.read_at(first * BLOCK, &buffer) {
        Ok(()) => Ok(Copy::Whole(buffer)),
        Err(_) => Ok(Copy::Blocks((0..blocks).map(|rank| read_block(disk, first + rank)).collect())),
    }
}

/// Whether the object that `held` was is still where it was: while that is so its bytes have not been overwritten.
///
/// # Errors
/// When neither copy of its entry can be read.
pub(super) fn is_current(disk: &Arc<dyn Disk>, ring: &RingSuperblock, held: &Held) -> io::Result<bool> {
    let rank = (u64::from(held.slot) % BLOCK_ENTRIES) as usize;
    let mut failure = None;
    for copy in ring.catalogues() {
        match read_block(&**disk, copy + u64::from(held.slot) / BLOCK_ENTRIES) {
            Ok(block) => {
                let bytes = &block.bytes()[rank * ENTRY_BYTES..(rank + 1) * ENTRY_BYTES];
                if let Some(entry) = Entry::parse(bytes, ring, held.slot) {
                    return Ok(entry == held.entry());
                }
            }
            Err(error) => failure = Some(error),
        }
    }
    if let Some(error) = failure {
        return Err(error);
    }
    let header = read_block(&**disk, held.record.header())?;
    let there = Entry::parse_record(header.bytes(), ring, held.record.header());
    Ok(there == Some((held.slot, held.entry())))
}

/// Writes both copies of an empty catalogue.
pub(super) fn format(disk: &Arc<dyn Disk>, ring: &RingSuperblock) -> io::Result<()> {
    let empty = Entry::free(0, 0);
    let chunk = TRANSFER_BYTES / BLOCK;
    let buffer = Buffer::new(TRANSFER_BYTES as usize)?;
    for from in (0..ring.catalogue_blocks()).step_by(chunk as usize) {
        let blocks = chunk.min(ring.catalogue_blocks() - from);
        for rank in 0..blocks * BLOCK_ENTRIES {
            let slot = (from * BLOCK_ENTRIES + rank) as u32;
            buffer.copy_from(rank as usize * ENTRY_BYTES, &empty.encode(ring, slot));
        }
        let part = buffer.part(0, (blocks * BLOCK) as usize);
        for copy in ring.catalogues() {
            disk.write_at((copy + from) * BLOCK, &part)?;
        }
    }
    disk.sync()
}
