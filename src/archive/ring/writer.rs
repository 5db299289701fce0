//! The one process that writes to a ring: where an object goes, what goes for it, and what was left unfinished.

use std::collections::BTreeSet;
use std::io;
use std::sync::Arc;

use super::catalogue::{self, Changes, Found, Held, Objects};
use super::content;
use super::disk::Disk;
use super::entry::{Entry, Record, blocks_for};
use super::expiry::{Fork, Forks, Pinned, victims};
use super::rescue::{self, Rescued};
use super::room::{is_whole, room_for};
use super::space::Space;
use super::superblock::RingSuperblock;
use crate::archive::{FORK_RECORD_BYTES, ForkRecord, ObjectName};
use crate::format::{SegmentNumber, block_crc};

/// What a writer knows of a ring while everything on the disk is settled. After any error it is made again from the disk.
pub(super) struct Writer {
    space: Space,
    free: BTreeSet<u32>,
    sequence: u64,
}

/// Where an object goes, and the objects that go for it.
pub(super) struct Plan {
    pub(super) held: Held,
    pub(super) expired: Vec<Held>,
    space: Space,
}

/// The catalogue, with what its damaged entries said as far as record headers know. `known` is what was found before.
/// Beside a writer an object that goes and one that gets its place may both be there.
pub(super) fn load(
    disk: &Arc<dyn Disk>,
    ring: &RingSuperblock,
    settle: bool,
    known: &mut Rescued,
) -> io::Result<Found> {
    let mut found = catalogue::load(disk, ring, settle)?;
    if !found.lost.iter().all(|slot| known.contains_key(slot)) {
        log::warn!("{} entries of the catalogue are damaged in both copies", found.lost.len());
        let space = rescue::space_of(ring, &found).map_err(io::Error::other)?;
        *known = rescue::scan(disk, ring, &found, &space)?;
    }
    for slot in found.lost.clone() {
        if let Some(entry) = known.get(&slot).cloned().flatten() {
            found.add(slot, entry);
        } else {
            found.free.insert(slot);
        }
    }
    Ok(found)
}

/// What fork records say. One that is damaged is none: what is behind its fork goes later then, and
/// keeps back what it keeps back.
pub(super) fn forks(disk: &Arc<dyn Disk>, ring: &RingSuperblock, records: &[Held]) -> Forks {
    let mut forks = Forks::new();
    for held in records {
        let name = held.record.name;
        let bytes = content::read(&**disk, &held.record, 0..FORK_RECORD_BYTES as u64 + 1);
        match bytes.map(|bytes| ForkRecord::parse(&bytes, &ring.volume)) {
            Ok(Ok(record)) if record.parent() == name.history => {
                forks.insert(name.history, Fork { successor: record.successor.history, segment: record.segment });
            }
            Ok(Ok(record)) => log::warn!("fork record {name} is that of history {}", record.parent()),
            Ok(Err(error)) => log::warn!("fork record {name}: {error}"),
            Err(error) => log::warn!("fork record {name} cannot be read: {error}"),
        }
    }
    forks
}

impl Writer {
    /// Reads the ring, finishes what a writer before left unfinished, and writes again what is damaged.
    pub(super) fn settle(disk: &Arc<dyn Disk>, ring: &RingSuperblock) -> io::Result<(Self, Objects)> {
        // Never what was found before: this process may have changed it.
        let mut found = load(disk, ring, true, &mut Rescued::default())?;
        let space = rescue::space_of(ring, &found).map_err(io::Error::other)?;
        let sequence = found.sequence + 1;
        for slot in &found.lost {
            // The older of two that have one name is there to be freed already, with the record header it was found by.
            found.unsettled.entry(*slot).or_insert(Entry::free(sequence, 0));
        }
        for held in found.objects.values().filter(|held| found.lost.contains(&held.slot)) {
            found.unsettled.insert(held.slot, held.entry());
        }
        if !found.unsettled.is_empty() {
            log::info!("{} entries of the catalogue are written again", found.unsettled.len());
        }
        catalogue::commit(disk, ring, &found.unsettled, &space)?;
        Ok((Self { space, free: found.free, sequence }, found.objects))
    }

    /// Room for an object of these bytes; `None` when there would be none if everything went that may. `forks` say what may go
    /// first, and what is `pinned` does not; from segment `leased` on nothing goes.
    pub(super) fn plan(
        &self,
        ring: &RingSuperblock,
        objects: &Objects,
        (forks, pinned): (&Forks, &Pinned),
        leased: Option<SegmentNumber>,
        name: &ObjectName,
        bytes: &[u8],
    ) -> Option<Plan> {
        let blocks = blocks_for(bytes.len() as u64);
        let mut space = self.space.clone();
        let mut expired: Vec<Held> = Vec::new();
        let mut rest = None;
        loop {
            let entries = self.free.len() + expired.len();
            let mut room = room_for(ring, &space, name, blocks, entries, false);
            let mut next = None;
            if room.is_none() {
                let rest = rest.get_or_insert_with(|| {
                    let names: Vec<_> = objects.iter().map(|(name, held)| (*name, held.sequence)).collect();
                    let victims = victims(&names, forks, pinned, ring.volume.geometry.working_set).into_iter();
                    victims.filter(|name| leased.is_none_or(|from| name.segment < from)).collect::<Vec<_>>().into_iter()
                });
                next = rest.next();
                if next.is_none() {
                    room = Some(room_for(ring, &space, name, blocks, entries, true)?);
                }
            }
            if let Some(extents) = room {
                let slot = self.free.first().copied().or_else(|| expired.first().map(|held| held.slot))?;
                let record = Record { name: *name, bytes: bytes.len() as u64, crc: block_crc(bytes), extents };
                // Expiring takes a number too.
                let held = Held { slot, sequence: self.sequence + 2, record };
                return Some(Plan { held, expired, space });
            }
            let victim = objects.get(&next?)?;
            victim.record.extents.iter().for_each(|extent| space.give(extent));
            expired.push(victim.clone());
        }
    }

    /// Deletes objects, durably, and frees their places.
    pub(super) fn remove(&mut self, disk: &Arc<dyn Disk>, ring: &RingSuperblock, gone: &[Held]) -> io::Result<()> {
        self.sequence += 1;
        let free = |held: &Held| (held.slot, Entry::free(self.sequence, held.record.header()));
        let changes: Changes = gone.iter().map(free).collect();
        // When the change fails, this writer is not used any more.
        for held in gone {
            held.record.extents.iter().for_each(|extent| self.space.give(extent));
            self.free.insert(held.slot);
        }
        catalogue::commit(disk, ring, &changes, &self.space)
    }

    /// Writes an object where it was planned, everything expired being gone. Durable when it returns.
    pub(super) fn place(
        &mut self,
        disk: &Arc<dyn Disk>,
        ring: &RingSuperblock,
        plan: Plan,
        bytes: &[u8],
    ) -> io::Result<Held> {
        let Plan { held, mut space, .. } = plan;
        if !held.record.extents.iter().all(|extent| space.take(extent)) {
            return Err(io::Error::other("the place of an object is taken"));
        }
        if let Some(last) = held.record.extents.last().filter(|_| is_whole(&held.record.name)) {
            space.go_on_at(last.end());
        }
        content::write(disk, &held.record, bytes)?;
        catalogue::commit(disk, ring, &Changes::from([(held.slot, held.entry())]), &space)?;
        self.space = space;
        self.free.remove(&held.slot);
        self.sequence = held.sequence;
        Ok(held)
    }

    /// Blocks for objects that are in use, and blocks for objects in all.
    pub(super) fn fill(&self) -> (u64, u64) {
        (self.space.total() - self.space.free(), self.space.total())
    }
}
