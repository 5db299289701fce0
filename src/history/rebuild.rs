//! Rebuild: a new primary that continues a volume from its archive, under a new history.
//!
//! 1. **Where it forks.** The newest segment of the archive, if all that it needs is there; its last position is the
//!    fork. The segment may be one that was open, and is there in parts. An older fork gives up what is newer for good, so
//!    it is refused unless just that position was named by the user.
//! 2. **The slots.** These segments are written as they were, to the slots that their headers name; whatever else could be
//!    taken for a segment is overwritten with zeros. Then a flush.
//! 3. **The record.** The store says from now on that the old history ends at the fork. If the old primary has archived
//!    anything since the rebuild began, it is still in use, and nothing is recorded.
//! 4. **The superblocks.** Until then there is no volume on the new primary. When this ends after the record, another
//!    rebuild continues the history of that record, which has nothing of its own.
//!
//! Reads of the store block: the device's thread has nothing else to do.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use super::digest::Depth;
use super::salvage::{Salvaged, slot_of};
use super::{Damage, HistoryError, PointIndex, Progress, Segments, Sited, Source, index_at, rfc3339};
use crate::archive::{ArchiveError, FRAME_BYTES, ForkRecord, ObjectError, ObjectName, Store, StoreError};
use crate::format::{
    BLOCK_BYTES, Block, Checksum, CleanClose, FormatError, Offset, Position, SegmentHeader, SegmentNumber, Slot,
    Summary, Superblock, Uuid, walk_segment,
};
use crate::io::{Buffer, Device};
use crate::log::limits::SCAN_BYTES;
use crate::log::scan;
use crate::log::scan::write_superblock;

const FRAME_BLOCKS: u32 = (FRAME_BYTES / BLOCK_BYTES) as u32;

/// What a rebuilt volume is called, and whence it comes.
#[derive(Debug, Clone)]
pub struct RebuildOptions {
    /// The new history: random.
    pub history: Uuid,
    /// The time, nanoseconds since 1970, UTC.
    pub time_ns: i64,
    /// The volume's name, if it gets another.
    pub name: Option<String>,
    /// The SPEC of the archive, as the superblock remembers it.
    pub backing: String,
    /// Goes on at this position although the archive has, or had, a later one.
    pub accept_loss: Option<Position>,
}

/// What of the archive a rebuild gives up.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct GivenUp {
    /// The newest segment that the archive lists.
    pub segment: u64,
    /// The synch points behind the fork that are known.
    pub points: Vec<String>,
    /// Why the volume cannot go on from there.
    pub cause: String,
}

/// What a rebuild did, or would do.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RebuildReport {
    pub name: String,
    pub uuid: String,
    pub history: String,
    pub parent_history: String,
    /// The last position of the parent that the volume has.
    pub fork_position: u64,
    pub fork_time: String,
    /// Size of the volume.
    pub bytes: u64,
    /// Segments that were written.
    pub segments: u64,
    pub seconds: f64,
    /// What was given up with `--accept-loss`.
    pub given_up: Option<GivenUp>,
    /// Blocks that read as errors until they are overwritten.
    pub damaged: Vec<Damage>,
}

/// A rebuild that is known to be possible.
pub struct RebuildPlan {
    source: Source,
    store: Arc<dyn Store>,
    options: RebuildOptions,
    /// The volume as it will be.
    volume: Superblock,
    fork: Fork,
    /// What was in the store before anything was read from it.
    known: BTreeSet<ObjectName>,
    given_up: Option<GivenUp>,
    damaged: Vec<Damage>,
}

/// The position from which the volume goes on.
struct Fork {
    position: Position,
    checksum: Checksum,
    time_ns: i64,
    /// The segment of the position, and what its slot will hold, until it is written.
    segment: SegmentNumber,
    image: Option<Salvaged>,
    index: PointIndex,
    /// The last checksum of the segment as it was read, before damage cut it off.
    read: Checksum,
}

impl RebuildPlan {
    /// Finds out how to continue the volume of `source`, an archive alone.
    ///
    /// # Errors
    /// When the store fails, nothing in it can be restored, or what can be is not its newest position, see
    /// [`HistoryError::Loss`].
    pub fn new(source: Source, options: RebuildOptions) -> Result<Self, HistoryError> {
        let Some(store) = source.store.clone() else {
            let what = "there is no archive".to_owned();
            return Err(StoreError::Refused { store: source.volume().backing.clone(), what }.into());
        };
        let known: BTreeSet<ObjectName> = store.names()?.into_iter().collect();
        source.refresh()?;
        let parent = source.volume();
        let mut volume = Superblock {
            history: options.history,
            parent_history: parent.history,
            generation: 1,
            epoch: known.iter().map(|name| name.epoch).max().unwrap_or(0),
            clean_close: None,
            accepted_loss: None,
            name: options.name.clone().unwrap_or_else(|| parent.name.clone()),
            backing: options.backing.clone(),
            ..parent.clone()
        };
        let mut damaged = Vec::new();
        let (fork, trouble) = find_fork(&source, &volume, &mut damaged)?;
        let given_up = match trouble {
            Some(trouble) => Some(give_up(&source, &fork, trouble, options.accept_loss)?),
            None => None,
        };
        volume.fork_position = fork.position;
        // The log ends here and all of it is durable. Without this, damage in data behind the last position that a header
        // knows to be durable would be taken for a torn tail.
        volume.clean_close =
            Some(CleanClose { segment: fork.segment, position: fork.position, checksum: fork.checksum });
        Ok(Self { source, store, options, volume, fork, known, given_up, damaged })
    }

    /// The volume as it will be.
    pub fn volume(&self) -> &Superblock {
        &self.volume
    }

    /// What would be done. Damage is known only when all has been read.
    pub fn report(&self) -> RebuildReport {
        let volume = &self.volume;
        RebuildReport {
            name: volume.name.clone(),
            uuid: volume.uuid.to_string(),
            history: volume.history.to_string(),
            parent_history: volume.parent_history.to_string(),
            fork_position: self.fork.position.0,
            fork_time: rfc3339(self.fork.time_ns),
            bytes: self.fork.index.blocks() * BLOCK_BYTES as u64,
            segments: u64::from(self.fork.index.segments_read()),
            seconds: 0.0,
            given_up: self.given_up.clone(),
            damaged: self.damaged.clone(),
        }
    }

    /// Makes `device` the volume's primary. What it holds is lost.
    ///
    /// # Errors
    /// When the store or the device fails, or the old primary is still in use. Then there is no volume on `device`.
    pub async fn write<D: Device>(mut self, device: &D, progress: &Progress) -> Result<RebuildReport, HistoryError> {
        let started = Instant::now();
        let need = self.volume.geometry.primary_blocks * BLOCK_BYTES as u64;
        if device.bytes() < need {
            return Err(HistoryError::TooSmall { need, have: device.bytes() });
        }
        // Whether the store can be written to, and nobody else does, would be known only behind all the work: nothing has
        // this name yet.
        self.store.delete(&ForkRecord::name_of(self.volume.history))?;
        forget_superblocks(device, &self.volume).await?;
        self.write_slots(device, progress).await?;
        device.flush().await?;
        self.record()?;
        write_superblock(device, &self.volume).await?;
        progress.end();
        self.report_lost();
        self.damaged.sort_by_key(|damage| damage.block);
        Ok(RebuildReport { seconds: started.elapsed().as_secs_f64(), ..self.report() })
    }

    async fn write_slots<D: Device>(&mut self, device: &D, progress: &Progress) -> Result<(), HistoryError> {
        let volume = self.volume.clone();
        let chain: Vec<(SegmentNumber, Checksum)> = self.fork.index.chain().iter().rev().copied().collect();
        let slots = self.slots(&chain)?;
        progress.begin("rebuilding", chain.len() as u64 * u64::from(volume.geometry.segment_blocks), 0);
        for ((segment, checksum), slot) in chain.iter().zip(&slots) {
            let mut found = match self.fork.image.take_if(|_| *segment == self.fork.segment) {
                Some(found) => found,
                None => Salvaged::find(&self.source, &volume, *segment, *checksum)?,
            };
            found.settle_in(*slot, &volume);
            self.damaged.extend(damage(&found, &self.fork.index, *segment));
            write_slot(device, &volume, *slot, &found.image).await?;
            progress.add(u64::from(volume.geometry.segment_blocks));
        }
        let zeros = Buffer::new(2 * BLOCK_BYTES)?;
        for slot in (0..volume.geometry.slots).map(Slot).filter(|slot| !slots.contains(slot)) {
            let place = volume.geometry.slot_place(slot);
            device.write(place.bytes(), zeros.clone()).await?;
            let last = place.plus(volume.geometry.segment_blocks - 1);
            device.write(last.bytes(), zeros.part(0, BLOCK_BYTES)).await?;
        }
        Ok(())
    }

    /// A slot for each segment of the chain: the one that its header names, or, when that cannot be read, any.
    fn slots(&self, chain: &[(SegmentNumber, Checksum)]) -> Result<Vec<Slot>, HistoryError> {
        let mut named = Vec::new();
        for (segment, checksum) in chain {
            let slot = match self.fork.image.as_ref().filter(|_| *segment == self.fork.segment) {
                Some(image) => image.slot(&self.volume),
                None => slot_of(&self.source, &self.volume, *segment, *checksum)?,
            };
            named.push(slot.filter(|slot| !named.contains(&Some(*slot))));
        }
        let mut free = (0..self.volume.geometry.slots).map(Slot).filter(|slot| !named.contains(&Some(*slot)));
        let slots = named.iter().map(|slot| slot.or_else(|| free.next()));
        Ok(slots.map(|slot| slot.expect("W+1 segments, and more slots than that")).collect())
    }

    /// Says in the store that the old history ends at the fork.
    fn record(&self) -> Result<(), HistoryError> {
        let record = ForkRecord {
            successor: self.volume.clone(),
            segment: self.fork.segment,
            checksum: self.fork.checksum,
            epoch: self.volume.epoch,
            time_ns: self.options.time_ns,
        };
        let name = record.name();
        self.refuse_in_use()?;
        match self.store.put(&name, &record.encode()) {
            Err(StoreError::Conflict { .. }) => return Err(HistoryError::OtherRebuild { store: self.store.spec() }),
            other => other?,
        }
        let kept = ForkRecord::read(&self.store, self.volume.parent_history, &self.volume)?;
        if kept.is_none_or(|kept| kept.encode() != record.encode()) {
            let error = FormatError::Checksum { what: "fork record as it reads back" };
            return Err(ArchiveError::Object { name, source: ObjectError::Format(error) }.into());
        }
        // The archiver asks for the record behind each put: one of the two sees the other.
        self.refuse_in_use().or_else(|error| {
            self.store.delete(&name)?;
            Err(error)
        })
    }

    /// Whether the old history has got anything since the rebuild began.
    fn refuse_in_use(&self) -> Result<(), HistoryError> {
        let parent = self.volume.parent_history;
        let is_new = |name: &ObjectName| name.history == parent && name.segment.0 > 0 && !self.known.contains(name);
        match self.store.names()?.into_iter().find(is_new) {
            Some(name) => Err(HistoryError::InUse { segment: name.segment }),
            None => Ok(()),
        }
    }

    /// Blocks that were lost before.
    fn report_lost(&mut self) {
        let index = &self.fork.index;
        let lost = (0..index.blocks()).filter(|block| index.get(Block(*block)) == Sited::Lost);
        let cause = "lost: its only copy had become unreadable before";
        self.damaged.extend(lost.map(|block| Damage {
            block,
            position: None,
            segment: None,
            offset: None,
            frame: None,
            cause: cause.to_owned(),
        }));
    }
}

/// The newest position that the archive can restore, and why none that is newer, if there is anything newer.
fn find_fork(
    source: &Source,
    volume: &Superblock,
    damaged: &mut Vec<Damage>,
) -> Result<(Fork, Option<HistoryError>), HistoryError> {
    let mut trouble: Option<HistoryError> = None;
    for segment in source.numbers().into_iter().rev() {
        let error = match fork_in(source, volume, segment, damaged) {
            Ok(Some(fork)) => {
                if trouble.is_none()
                    && let Some(found) = source.locate(segment, Some(fork.read))?
                {
                    trouble = source.cut_off(&found);
                }
                return match trouble {
                    Some(error) if error.is_of_store() => Err(error),
                    trouble => Ok((fork, trouble)),
                };
            }
            Ok(None) => HistoryError::NoPoint { what: format!("segment {segment} has no batch that is whole") },
            Err(error) if error.is_of_store() => return Err(error),
            Err(error @ HistoryError::Io(_)) => return Err(error),
            Err(error) => error,
        };
        log::warn!("the volume cannot go on from segment {segment}: {error}");
        trouble.get_or_insert(error);
    }
    let what = format!(
        "{}: there is no position of the volume that can be restored, so there is nothing to go on from",
        source.store.as_ref().map_or_else(String::new, |store| store.spec())
    );
    Err(match trouble {
        Some(source) if source.is_corruption() => HistoryError::Unread { what, source: Box::new(source) },
        _ => HistoryError::NoPoint { what },
    })
}

/// What a rebuild gives up that goes on from `fork`, when the user has said that it may.
fn give_up(
    source: &Source,
    fork: &Fork,
    trouble: HistoryError,
    accepted: Option<Position>,
) -> Result<GivenUp, HistoryError> {
    let newest = source.numbers().last().copied().unwrap_or(fork.segment);
    if accepted != Some(fork.position) {
        let (position, segment) = (fork.position, fork.segment);
        return Err(HistoryError::Loss { newest, position, segment, source: Box::new(trouble) });
    }
    let stops =
        source.stops(Depth::Headers, |read| read.last().is_some_and(|oldest| oldest.segment <= fork.segment))?.stops;
    let marks = stops.iter().flat_map(|stop| &stop.marks).filter(|mark| mark.point > fork.position.0);
    let points: Vec<String> = marks.map(|mark| format!("p{}", mark.point)).collect();
    log::warn!("what is newer than position {} is given up: {trouble}", fork.position);
    Ok(GivenUp { segment: newest.0, points, cause: trouble.to_string() })
}

/// The last position of `segment` from which the volume can go on, if it has one.
fn fork_in(
    source: &Source,
    volume: &Superblock,
    segment: SegmentNumber,
    damaged: &mut Vec<Damage>,
) -> Result<Option<Fork>, HistoryError> {
    let summary = source.summary(segment, None)?;
    // All of it is of the past that is continued.
    let volume = &Superblock { fork_position: summary.last_position(), ..volume.clone() };
    let mut image = Salvaged::find(source, volume, segment, summary.last_checksum)?;
    if image.slot(volume).is_none() {
        image.settle_in(Slot(0), volume);
    }
    if !image.sealed {
        cut_at_damage(&mut image, volume, damaged);
    }
    let Some(last) = image.summary.batches.last() else { return Ok(None) };
    let position = image.summary.last_position();
    let (checksum, time_ns) = (image.summary.last_checksum, last.time_ns());
    let index = index_at(source, source.volume(), segment, position)?;
    Ok(Some(Fork { position, checksum, time_ns, segment, image: Some(image), index, read: summary.last_checksum }))
}

/// An open segment goes on behind its last batch. Its headers are all that says where that is: what follows a damaged one
/// is lost. The last batch must be there with its data as well, as everywhere: the newest part may be one that was put
/// and never came back whole.
fn cut_at_damage(image: &mut Salvaged, volume: &Superblock, damaged: &mut Vec<Damage>) {
    let Ok(header) = SegmentHeader::parse(&image.image, volume) else { return };
    let mut walk = walk_segment(&image.image, volume, &header, Position(u64::MAX));
    let batches = walk.summary.batches.iter().rev();
    let torn =
        batches.take_while(|batch| image.spoilt.iter().any(|(part, _)| batch.holds_data_at(part.offset))).count();
    if torn > 0 {
        let from = Position(walk.next_position().0 - torn as u64);
        walk = walk_segment(&image.image, volume, &header, from);
    }
    let (was, position) = (image.summary.clone(), walk.next_position().previous());
    if position >= was.last_position() {
        return;
    }
    let cause = image.spoilt.iter().find(|(part, _)| part.offset >= walk.end).map_or("", |(_, cause)| cause.as_str());
    log::error!("segment {}: what follows position {position} is lost: {cause}", was.segment);
    for (at, batch, entries) in was.walk().filter(|(at, ..)| *at > position) {
        let mut offset = batch.offset();
        for entry in entries.iter().filter(|entry| entry.kind().is_ok_and(|kind| kind.has_data())) {
            offset = offset.plus(1);
            damaged.push(Damage {
                block: entry.block().0,
                position: Some(at.0),
                segment: Some(was.segment.0),
                offset: Some(offset.0),
                frame: None,
                cause: format!("written behind damage in an open segment, and lost: {cause}"),
            });
        }
    }
    let end = walk.end.0 as usize * BLOCK_BYTES;
    image.image[end..].fill(0);
    image.spoilt.retain(|(part, _)| part.offset < walk.end);
    image.summary = walk.summary;
}

/// What is damaged of the blocks that live in a segment.
fn damage(found: &Salvaged, index: &PointIndex, segment: SegmentNumber) -> Vec<Damage> {
    let mut damaged = Vec::new();
    for (part, cause) in &found.spoilt {
        let entry = entry_at(&found.summary, part.offset);
        match entry {
            Some((position, block, crc))
                if block.0 < index.blocks() && index.get(block) == Sited::At(segment, part.offset, crc) =>
            {
                damaged.push(Damage {
                    block: block.0,
                    position: Some(position.0),
                    segment: Some(segment.0),
                    offset: Some(part.offset.0),
                    frame: found.sealed.then_some(part.offset.0 / FRAME_BLOCKS),
                    cause: cause.clone(),
                });
            }
            _ => log::warn!("segment {segment}: block {} of its slot: {cause}", part.offset),
        }
    }
    damaged
}

/// The entry whose data is at `offset`.
fn entry_at(summary: &Summary, offset: Offset) -> Option<(Position, Block, u32)> {
    let (position, batch, entries) = summary.walk().find(|(_, batch, _)| batch.holds_data_at(offset))?;
    let mut with_data = entries.iter().filter(|entry| entry.kind().is_ok_and(|kind| kind.has_data()));
    let entry = with_data.nth((offset.0 - batch.offset().0 - 1) as usize)?;
    Some((position, entry.block(), entry.crc()))
}

async fn write_slot<D: Device>(device: &D, volume: &Superblock, slot: Slot, image: &[u8]) -> Result<(), HistoryError> {
    let start = volume.geometry.slot_place(slot).bytes();
    let buffer = Buffer::new(SCAN_BYTES.min(image.len()))?;
    for (rank, piece) in image.chunks(SCAN_BYTES).enumerate() {
        buffer.copy_from(0, piece);
        device.write(start + (rank * SCAN_BYTES) as u64, buffer.part(0, piece.len())).await?;
    }
    Ok(())
}

/// Overwrites the superblocks of whatever volume is there, durably: half of a rebuild must not look like that volume.
async fn forget_superblocks<D: Device>(device: &D, volume: &Superblock) -> Result<(), HistoryError> {
    let last = device.bytes() / BLOCK_BYTES as u64 * BLOCK_BYTES as u64 - BLOCK_BYTES as u64;
    let mut places = BTreeSet::from([0, last, volume.geometry.copy_at()]);
    if let Ok(Ok((old, _))) = scan::superblock(device).await {
        places.insert(old.geometry.copy_at().min(last));
    }
    let zeros = Buffer::new(BLOCK_BYTES)?;
    for place in places {
        device.write(place, zeros.clone()).await?;
    }
    device.flush().await?;
    Ok(())
}
