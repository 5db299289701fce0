//! A volume on a simulated disk, users that hammer it, and a model that knows what it may contain.
#![allow(dead_code, reason = "shared by several test programs")]

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Range;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

use salvol::archive::{ArchivedSegment, MemoryStore, ObjectName, Store, StoreError};
use salvol::format::*;
use salvol::history::{Sited, Source, index_at};
use salvol::io::simulated::{Dice, Ended, SimulatedDisk, SimulatedPlatform};
use salvol::io::{Buffer, Platform};
use salvol::log::{scan, tail};
use salvol::volume::{Aim, OpenOptions, Operation, Point, Recall, Request, RequestError, Volume};

/// A volume's shape for a test.
#[derive(Debug, Clone, Copy)]
pub struct Shape {
    pub segment_blocks: u32,
    pub working_set: u32,
    pub slots: u32,
    pub volume_blocks: u64,
    pub archive_at: ArchiveAt,
    /// Whether there is a store.
    pub backing: bool,
}

/// The shape that most tests use.
pub const SHAPE: Shape = Shape {
    segment_blocks: 64,
    working_set: 8,
    slots: 14,
    volume_blocks: 250,
    archive_at: ArchiveAt::Seal,
    backing: true,
};

impl Shape {
    pub fn superblock(&self) -> Superblock {
        let mut dice = Dice::new(77);
        let mut random = || {
            let mut bytes = [0; 32];
            bytes.fill_with(|| dice.bits() as u8);
            bytes
        };
        let id = |bytes: [u8; 32]| Uuid::from_random(bytes[..16].try_into().unwrap());
        let slots_end = u64::from(FIRST_SLOT_BLOCK) + u64::from(self.slots) * u64::from(self.segment_blocks);
        Superblock {
            uuid: id(random()),
            history: id(random()),
            parent_history: Uuid::default(),
            fork_position: Position(0),
            key: Key(random()),
            generation: 1,
            epoch: 0,
            created_ns: 0,
            geometry: Geometry {
                primary_blocks: slots_end + 1,
                volume_blocks: self.volume_blocks,
                segment_blocks: self.segment_blocks,
                slots: self.slots,
                working_set: self.working_set,
            },
            archive_at: self.archive_at,
            compression: Compression::Auto,
            clean_close: None,
            accepted_loss: None,
            name: "test".to_owned(),
            backing: if self.backing { "dir:/memory" } else { "none" }.to_owned(),
        }
    }

    /// A disk with a new volume on it.
    pub fn disk(&self) -> SimulatedDisk {
        let superblock = self.superblock();
        superblock.geometry.check().unwrap();
        let disk = SimulatedDisk::new(superblock.geometry.primary_blocks * BLOCK_BYTES as u64);
        disk.poke(0, &superblock.encode());
        disk.poke(superblock.geometry.copy_at(), &superblock.encode());
        disk
    }
}

/// Where a test keeps its archive.
pub fn store_of(shape: &Shape) -> Option<Arc<MemoryStore>> {
    shape.backing.then(|| Arc::new(MemoryStore::new()))
}

pub fn as_store(store: &Option<Arc<MemoryStore>>) -> Option<Arc<dyn Store>> {
    store.clone().map(|store| store as Arc<dyn Store>)
}

/// One version of a block: what a write, trim or zeroing made of it.
#[derive(Debug, Clone, Copy)]
struct Version {
    /// 0 is zeros.
    stamp: u64,
    issued: u64,
    acknowledged: Option<u64>,
}

/// What the users did, by a clock of its own that ticks with each event.
#[derive(Default)]
pub struct Model {
    clock: Cell<u64>,
    stamps: Cell<u64>,
    versions: RefCell<HashMap<u64, Vec<Version>>>,
    busy: RefCell<HashSet<u64>>,
    /// Blocks that could not be read when the volume was found: any of their versions may be there.
    doubt: RefCell<HashSet<u64>>,
    /// Everything acknowledged before this moment is durable.
    durable_before: Cell<u64>,
    pub points: RefCell<Vec<(Point, BTreeMap<u64, u64>)>>,
    pub operations: Cell<u64>,
}

fn fill(block: u64, stamp: u64, bytes: &mut [u8]) {
    if stamp == 0 {
        return bytes.fill(0);
    }
    let mut dice = Dice::new(block << 32 ^ stamp);
    for chunk in bytes[16..].chunks_mut(64) {
        let word = dice.bits().to_le_bytes();
        chunk.chunks_exact_mut(8).for_each(|bytes| bytes.copy_from_slice(&word));
    }
    bytes[..8].copy_from_slice(&block.to_le_bytes());
    bytes[8..16].copy_from_slice(&stamp.to_le_bytes());
}

/// The stamp in a block's bytes; panics when the bytes are not those that belong to it.
pub fn stamp_of(block: u64, bytes: &[u8]) -> u64 {
    let stamp =
        if bytes.iter().all(|byte| *byte == 0) { 0 } else { u64::from_le_bytes(bytes[8..16].try_into().unwrap()) };
    let mut expected = vec![0; BLOCK_BYTES];
    fill(block, stamp, &mut expected);
    assert!(bytes == expected, "block {block} holds bytes that nobody wrote to it");
    stamp
}

impl Model {
    fn tick(&self) -> u64 {
        self.clock.set(self.clock.get() + 1);
        self.clock.get()
    }

    /// Somebody asks for `blocks` to become `stamp`.
    pub fn begin(&self, blocks: std::ops::Range<u64>, stamp: u64) {
        let issued = self.tick();
        for block in blocks {
            let version = Version { stamp, issued, acknowledged: None };
            self.versions.borrow_mut().entry(block).or_default().push(version);
        }
    }

    /// And is told that it was done.
    pub fn end(&self, blocks: std::ops::Range<u64>) {
        let now = self.tick();
        for block in blocks {
            self.doubt.borrow_mut().remove(&block);
            self.versions.borrow_mut().get_mut(&block).unwrap().last_mut().unwrap().acknowledged = Some(now);
        }
    }

    /// What was durable may be gone: the primary was damaged, or is another one.
    pub fn lose_durability(&self) {
        self.durable_before.set(0);
    }

    /// The newest acknowledged stamp of every block.
    pub fn state(&self) -> BTreeMap<u64, u64> {
        let versions = self.versions.borrow();
        let newest = |list: &Vec<Version>| {
            list.iter().rev().find(|version| version.acknowledged.is_some()).map_or(0, |v| v.stamp)
        };
        versions.iter().map(|(block, list)| (*block, newest(list))).filter(|(_, stamp)| *stamp != 0).collect()
    }

    fn take(&self, dice: &mut Dice, volume_blocks: u64, most: u64) -> Option<std::ops::Range<u64>> {
        let count = 1 + dice.below(most.min(volume_blocks));
        let first = dice.below(volume_blocks - count + 1);
        let blocks = first..first + count;
        let mut busy = self.busy.borrow_mut();
        if blocks.clone().any(|block| busy.contains(&block)) {
            return None;
        }
        busy.extend(blocks.clone());
        Some(blocks)
    }

    fn give(&self, blocks: std::ops::Range<u64>) {
        let mut busy = self.busy.borrow_mut();
        blocks.for_each(|block| {
            busy.remove(&block);
        });
    }

    /// Checks what a machine finds after the power went (`everything` false) or only the daemon died (true), and goes
    /// on from there: versions that did not survive are forgotten.
    pub fn settle(&self, found: &BTreeMap<u64, u64>, everything: bool) {
        self.settle_some(found, &HashSet::new(), everything);
    }

    /// The same, when some blocks could not be read.
    pub fn settle_some(&self, found: &BTreeMap<u64, u64>, failed: &HashSet<u64>, everything: bool) {
        let now = self.tick();
        let mut versions = self.versions.borrow_mut();
        let mut horizon = self.durable_before.get();
        let mut kept = HashMap::new();
        let settled = |block: &u64| !failed.contains(block);
        for (block, list) in versions.iter().filter(|(block, _)| settled(block)) {
            let stamp = found.get(block).copied().unwrap_or(0);
            // Zeros may be any zeroing, or the state before everything: take the newest that fits.
            let rank = list.iter().rposition(|version| version.stamp == stamp);
            if let Some(rank) = rank {
                // A rollback brings old stamps back: the first of them is all that this one proves.
                if stamp != 0 {
                    let first = list.iter().position(|version| version.stamp == stamp).unwrap();
                    horizon = horizon.max(list[first].issued);
                }
                kept.insert(*block, rank as i64);
            } else {
                assert_eq!(stamp, 0, "block {block} holds a stamp that was never written");
                kept.insert(*block, -1);
            }
        }
        for (block, list) in versions.iter_mut().filter(|(block, _)| settled(block)) {
            let rank = kept[block];
            for (number, version) in list.iter().enumerate() {
                let Some(acknowledged) = version.acknowledged else { continue };
                let must = everything || acknowledged < horizon;
                assert!(
                    !must || number as i64 <= rank,
                    "block {block}: version {number} (acknowledged at {acknowledged}, horizon {horizon}) is gone, rank {rank} of {list:?}"
                );
            }
            list.truncate((rank + 1) as usize);
            list.iter_mut().for_each(|version| version.acknowledged = Some(version.acknowledged.unwrap_or(now)));
        }
        // Of a block that could not be read any version may be there that is not too old; a later look must not miss the others.
        for (_, list) in versions.iter_mut().filter(|(block, _)| !settled(block)) {
            let must = |version: &Version| version.acknowledged.is_some_and(|at| everything || at < horizon);
            let sure = list.iter().rposition(must).map_or(0, |rank| rank + 1);
            list[sure..].iter_mut().for_each(|version| version.acknowledged = None);
        }
        // What an opening found it has made durable.
        self.durable_before.set(now + 1);
        self.busy.borrow_mut().clear();
        *self.doubt.borrow_mut() = failed.clone();
    }

    /// Checks what is read of `block`.
    pub fn expect(&self, block: u64, stamp: u64) {
        if self.doubt.borrow().contains(&block) {
            let versions = self.versions.borrow();
            let known = versions.get(&block).is_some_and(|list| list.iter().any(|version| version.stamp == stamp));
            assert!(known || stamp == 0, "block {block} holds a stamp that was never written");
            return;
        }
        let versions = self.versions.borrow();
        let newest = versions.get(&block).and_then(|list| list.iter().rev().find(|v| v.acknowledged.is_some()));
        assert_eq!(stamp, newest.map_or(0, |version| version.stamp), "block {block} reads as something else");
    }
}

pub type SimVolume = Volume<SimulatedPlatform>;

/// How often users do what, in percent; the rest are writes of one to a few blocks.
#[derive(Debug, Clone, Copy)]
pub struct Mix {
    pub reads: u64,
    pub trims: u64,
    pub flushes: u64,
    pub fua: u64,
    pub synchs: u64,
    pub write_blocks: u64,
}

impl Default for Mix {
    fn default() -> Self {
        Self { reads: 15, trims: 8, flushes: 4, fua: 4, synchs: 1, write_blocks: 6 }
    }
}

/// One user: does `operations` operations, one after the other.
pub async fn user(
    volume: SimVolume,
    model: Rc<Model>,
    mut dice: Dice,
    operations: u64,
    mix: Mix,
) -> Result<(), RequestError> {
    for _ in 0..operations {
        operate(&volume, &model, &mut dice, mix).await?;
    }
    Ok(())
}

/// One operation.
pub async fn operate(volume: &SimVolume, model: &Model, dice: &mut Dice, mix: Mix) -> Result<(), RequestError> {
    let blocks = volume.geometry().volume_blocks;
    let kind = dice.below(100);
    let mut edge = 0;
    let mut is = |percent: u64| {
        edge += percent;
        kind < edge
    };
    if is(mix.reads) {
        read(volume, model, dice, blocks).await?;
    } else if is(mix.trims) {
        trim(volume, model, dice, blocks).await?;
    } else if is(mix.flushes) {
        flush(volume, model).await?;
    } else if is(mix.synchs) {
        let label = format!("label {}", model.tick());
        let before = model.tick();
        let quiet = model.busy.borrow().is_empty();
        let state = model.state();
        let point = volume.synch(label, String::new()).await?;
        model.durable_before.set(model.durable_before.get().max(before));
        // Nobody did anything meanwhile, not even to undo it.
        if quiet && model.clock.get() == before {
            model.points.borrow_mut().push((point, state));
        }
    } else {
        write(volume, model, dice, blocks, mix).await?;
    }
    model.operations.set(model.operations.get() + 1);
    Ok(())
}

async fn write(volume: &SimVolume, model: &Model, dice: &mut Dice, blocks: u64, mix: Mix) -> Result<(), RequestError> {
    let Some(range) = model.take(dice, blocks, mix.write_blocks) else { return Ok(()) };
    model.stamps.set(model.stamps.get() + 1);
    let stamp = model.stamps.get();
    let count = (range.end - range.start) as u32;
    let buffer = Buffer::new(count as usize * BLOCK_BYTES).unwrap();
    for rank in 0..count {
        buffer
            .part(rank as usize * BLOCK_BYTES, BLOCK_BYTES)
            .write(|bytes| fill(range.start + u64::from(rank), stamp, bytes));
    }
    let fua = dice.percent(mix.fua);
    model.begin(range.clone(), stamp);
    let before = model.tick();
    let request = Request { operation: Operation::Write { fua }, block: Block(range.start), blocks: count, buffer };
    volume.serve(&request).await?;
    model.end(range.clone());
    if fua {
        model.durable_before.set(model.durable_before.get().max(before));
    }
    model.give(range);
    Ok(())
}

async fn trim(volume: &SimVolume, model: &Model, dice: &mut Dice, blocks: u64) -> Result<(), RequestError> {
    let Some(range) = model.take(dice, blocks, 12) else { return Ok(()) };
    model.begin(range.clone(), 0);
    let operation = if dice.percent(50) { Operation::Discard } else { Operation::WriteZeroes { fua: false } };
    let count = (range.end - range.start) as u32;
    let request = Request { operation, block: Block(range.start), blocks: count, buffer: Buffer::new(0).unwrap() };
    volume.serve(&request).await?;
    model.end(range.clone());
    model.give(range);
    Ok(())
}

async fn read(volume: &SimVolume, model: &Model, dice: &mut Dice, blocks: u64) -> Result<(), RequestError> {
    let Some(range) = model.take(dice, blocks, 16) else { return Ok(()) };
    let found = read_range(volume, range.clone()).await;
    model.give(range);
    for (block, stamp) in found? {
        model.expect(block, stamp);
    }
    Ok(())
}

async fn flush(volume: &SimVolume, model: &Model) -> Result<(), RequestError> {
    let before = model.tick();
    let request = Request { operation: Operation::Flush, block: Block(0), blocks: 0, buffer: Buffer::new(0).unwrap() };
    volume.serve(&request).await?;
    model.durable_before.set(model.durable_before.get().max(before));
    Ok(())
}

async fn read_range(volume: &SimVolume, range: std::ops::Range<u64>) -> Result<Vec<(u64, u64)>, RequestError> {
    let count = (range.end - range.start) as u32;
    let buffer = Buffer::new(count as usize * BLOCK_BYTES).unwrap();
    buffer.write(|bytes| bytes.fill(0xee));
    let request =
        Request { operation: Operation::Read, block: Block(range.start), blocks: count, buffer: buffer.clone() };
    volume.serve(&request).await?;
    let stamps = buffer.bytes().chunks(BLOCK_BYTES).zip(range).map(|(bytes, block)| (block, stamp_of(block, bytes)));
    Ok(stamps.collect())
}

/// Writes `range` with one stamp, outside the model.
pub async fn put(volume: &SimVolume, range: std::ops::Range<u64>, stamp: u64) {
    let count = (range.end - range.start) as u32;
    let buffer = Buffer::new(count as usize * BLOCK_BYTES).unwrap();
    for (rank, block) in range.clone().enumerate() {
        buffer.part(rank * BLOCK_BYTES, BLOCK_BYTES).write(|bytes| fill(block, stamp, bytes));
    }
    let operation = Operation::Write { fua: false };
    let request = Request { operation, block: Block(range.start), blocks: count, buffer };
    volume.serve(&request).await.unwrap();
}

/// The bytes of a block with this stamp.
pub fn bytes_of(block: u64, stamp: u64) -> Vec<u8> {
    let mut bytes = vec![0; BLOCK_BYTES];
    fill(block, stamp, &mut bytes);
    bytes
}

/// The checksum of a block with this stamp.
pub fn crc_of(block: u64, stamp: u64) -> u32 {
    block_crc(&bytes_of(block, stamp))
}

/// The stamp of one block.
pub async fn get(volume: &SimVolume, block: u64) -> Result<u64, RequestError> {
    Ok(read_range(volume, block..block + 1).await?[0].1)
}

/// Overwrites the blocks from 100 on until the log is `segments` segments further.
pub async fn churn(volume: &SimVolume, segments: u64) {
    let until = volume.log().current_segment().0 + segments;
    for turn in 0.. {
        if volume.log().current_segment().0 >= until {
            return;
        }
        let first = 100 + turn * 8 % 128;
        put(volume, first..first + 8, turn + 1).await;
    }
}

/// Every block's stamp, zeros left out.
pub async fn read_all(volume: &SimVolume) -> Result<BTreeMap<u64, u64>, RequestError> {
    let blocks = volume.geometry().volume_blocks;
    let mut all = BTreeMap::new();
    let mut at = 0;
    while at < blocks {
        let end = (at + 16).min(blocks);
        all.extend(read_range(volume, at..end).await?.into_iter().filter(|(_, stamp)| *stamp != 0));
        at = end;
    }
    Ok(all)
}

/// The same, block by block; and the blocks that cannot be read.
pub async fn read_each(volume: &SimVolume) -> (BTreeMap<u64, u64>, HashSet<u64>) {
    let (mut all, mut failed) = (BTreeMap::new(), HashSet::new());
    for block in 0..volume.geometry().volume_blocks {
        match get(volume, block).await {
            Ok(0) => {}
            Ok(stamp) => drop(all.insert(block, stamp)),
            Err(_) => drop(failed.insert(block)),
        }
    }
    (all, failed)
}

/// Opens the volume on a new machine.
pub fn open(
    platform: &SimulatedPlatform,
    store: &Option<Arc<MemoryStore>>,
) -> Option<Result<SimVolume, salvol::volume::OpenError>> {
    let (machine, device, store) = (platform.clone(), platform.device(), as_store(store));
    platform.block_on(async move { Volume::open(machine, device, store, OpenOptions::default()).await })
}

/// A past that is known by heart, and can be recalled so many times.
#[derive(Clone)]
pub struct Known {
    state: Rc<BTreeMap<u64, u64>>,
    pub left: Rc<Cell<u32>>,
    blocks: u64,
}

impl Known {
    /// `state`, of a volume of so many blocks.
    pub fn new(state: &BTreeMap<u64, u64>, blocks: u64) -> Self {
        Self { state: Rc::new(state.clone()), left: Rc::new(Cell::new(u32::MAX)), blocks }
    }
}

impl Recall for Known {
    fn order(&self) -> Vec<u32> {
        (0..self.blocks as u32).collect()
    }

    fn site(&self, _block: Block) -> Option<(SegmentNumber, Offset)> {
        None
    }

    async fn recall(&self, blocks: &[Block], into: &Buffer) -> Result<(), RequestError> {
        let left = self.left.get().checked_sub(1);
        self.left.set(left.ok_or(RequestError::Corrupt { block: blocks[0] })?);
        for (rank, block) in blocks.iter().enumerate() {
            let stamp = self.state.get(&block.0).copied().unwrap_or(0);
            into.part(rank * BLOCK_BYTES, BLOCK_BYTES).copy_from(0, &bytes_of(block.0, stamp));
        }
        Ok(())
    }
}

/// A rollback to `to`, which is a synch point.
pub fn aim(to: Position) -> Aim {
    Aim { to, needs_from: SegmentNumber(1), name: "then".to_owned(), is_point: true, room: None }
}

/// Runs `users` users with `operations` operations each, until they end or the machine does.
pub fn hammer(
    platform: &SimulatedPlatform,
    volume: &SimVolume,
    model: &Rc<Model>,
    seed: u64,
    users: u64,
    operations: u64,
    mix: Mix,
) -> Ended {
    let left = Rc::new(Cell::new(users));
    for number in 0..users {
        let (volume, model, left) = (volume.clone(), Rc::clone(model), Rc::clone(&left));
        let dice = Dice::new(seed.wrapping_mul(1009).wrapping_add(number));
        platform.spawn(async move {
            user(volume, model, dice, operations, mix).await.unwrap();
            left.set(left.get() - 1);
        });
    }
    platform.run(|| left.get() == 0)
}

/// All that is known of the log at rest: every segment's summary, from archive and primary.
pub fn whole_log(
    disk: &SimulatedDisk,
    shape: &Shape,
    store: &Option<Arc<MemoryStore>>,
) -> BTreeMap<SegmentNumber, Summary> {
    whole_log_of(disk, shape, as_store(store))
}

/// The same, whatever the store is.
pub fn whole_log_of(
    disk: &SimulatedDisk,
    shape: &Shape,
    store: Option<Arc<dyn Store>>,
) -> BTreeMap<SegmentNumber, Summary> {
    let platform = SimulatedPlatform::new(1, disk.clone());
    let device = platform.device();
    let volume = shape.superblock();
    let superblock = {
        let device = device.clone();
        platform.block_on(async move { scan::superblock(&device).await.unwrap().unwrap().0 }).unwrap()
    };
    assert_eq!(superblock.uuid, volume.uuid);
    let (mut segments, mut unfit) = (BTreeMap::new(), Vec::new());
    if let Some(store) = store {
        for (name, _) in store.list().unwrap().into_iter().filter(|(name, _)| name.part == 0) {
            match ArchivedSegment::open(&store, &name, Some(&volume)) {
                Ok(object) => drop(segments.insert(name.segment, object.summary().clone())),
                Err(error) => unfit.push((name.segment, error)),
            }
        }
    }
    let shape = *shape;
    let tail = platform.block_on(async move {
        let tail = tail::find_tail(&device, &superblock, None).await.unwrap();
        let Some(tail) = tail else { return Vec::new() };
        for (segment, error) in unfit {
            // One that was put when its segment had left a working set that a crash then brought back: it is put again when it leaves.
            let waits = shape.archive_at == ArchiveAt::Inactive && segment >= tail.oldest_needed();
            assert!(waits, "segment {segment}: {error}");
        }
        let mut all = vec![tail.walk.summary.clone()];
        // Older ones may wait for the archiver, or be about to be overwritten: those are in the archive.
        for found in tail.found.iter().filter(|found| found.header.segment < tail.last.header.segment) {
            let summary = scan::summary(&device, &superblock, found.slot, found.header.segment).await;
            match summary {
                Ok(summary) => all.push(summary),
                Err(error) => assert!(found.header.segment < tail.oldest_needed(), "{error}"),
            }
        }
        all
    });
    for summary in tail.unwrap() {
        if let Some(archived) = segments.get(&summary.segment) {
            assert_eq!(archived.last_checksum, summary.last_checksum, "archive and primary differ");
        }
        segments.insert(summary.segment, summary);
    }
    platform.halt();
    segments
}

/// Walks the log from its first batch to its last and checks, at every position: that positions follow each other, that
/// a copy changes nothing, and that every live block lies in the working set + 1 segments that end there.
pub fn check_every_position(segments: &BTreeMap<SegmentNumber, Summary>, working_set: u32) -> u64 {
    let mut newest: HashMap<u64, (SegmentNumber, u32)> = HashMap::new();
    let mut live: BTreeMap<SegmentNumber, i64> = BTreeMap::new();
    let mut expected: Option<(SegmentNumber, Position, Checksum)> = None;
    let mut positions = 0;
    // Without a store only the end of the log is left.
    let complete = segments.first_key_value().is_none_or(|(number, _)| number.0 == 1);
    for (number, summary) in segments {
        if let Some((segment, position, checksum)) = expected {
            assert_eq!((*number, summary.first_position, summary.predecessor), (segment, position, checksum));
        }
        expected = Some((number.plus(1), summary.last_position().next(), summary.last_checksum));
        for (position, _, entries) in summary.walk() {
            for entry in entries {
                let block = entry.block().0;
                let mut supersede = |block: u64, to: Option<u32>| {
                    let old = match to {
                        Some(crc) => newest.insert(block, (*number, crc)),
                        None => newest.remove(&block),
                    };
                    if to.is_some() {
                        *live.entry(*number).or_default() += 1;
                    }
                    if let Some((segment, _)) = old {
                        let count = live.get_mut(&segment).unwrap();
                        *count -= 1;
                        if *count == 0 {
                            live.remove(&segment);
                        }
                    }
                    old
                };
                match entry.kind().unwrap() {
                    EntryKind::Write => {
                        supersede(block, Some(entry.crc()));
                    }
                    EntryKind::Copy => {
                        let old = supersede(block, Some(entry.crc()));
                        let crc = old.map(|(_, crc)| crc);
                        let before_all = crc.is_none() && !complete;
                        assert!(
                            crc == Some(entry.crc()) || before_all,
                            "position {position}: the copy of block {block} changes it"
                        );
                    }
                    EntryKind::Trim | EntryKind::Zero => {
                        (block..block + u64::from(entry.count())).for_each(|block| {
                            supersede(block, None);
                        });
                    }
                    // The volume has an error there from now on, which needs no segment.
                    EntryKind::Lost => {
                        supersede(block, None);
                    }
                    _ => {}
                }
            }
            positions += 1;
            if let Some((oldest, _)) = live.first_key_value() {
                assert!(
                    oldest.0 + u64::from(working_set) >= number.0,
                    "position {position} in segment {number} needs segment {oldest}"
                );
            }
        }
    }
    positions
}

/// Checks that the archive alone restores the volume at `point` as `state`.
pub fn archive_has(store: &Option<Arc<MemoryStore>>, shape: &Shape, point: u64, state: &BTreeMap<u64, u64>) {
    store_has(as_store(store), shape, point, state);
}

/// The same, whatever the store is.
pub fn store_has(store: Option<Arc<dyn Store>>, shape: &Shape, point: u64, state: &BTreeMap<u64, u64>) {
    let source = Source::open_store(shape.superblock(), store).unwrap();
    let moment = source.resolve(&format!("p{point}")).unwrap();
    let index = index_at(&source, source.volume(), moment.segment, moment.position).unwrap();
    for block in 0..index.blocks() {
        let sited = index.get(Block(block));
        match (sited, state.get(&block)) {
            (Sited::Zeros, None) => {}
            (Sited::At(.., crc), Some(stamp)) => assert_eq!(crc, crc_of(block, *stamp), "block {block} at p{point}"),
            (sited, stamp) => panic!("block {block} at p{point} is {sited:?}, not {stamp:?}"),
        }
    }
}

/// A store in memory on a disk that wears out: it deletes nothing while it is told so, reads nothing while it is told so, and
/// one of its objects lies on bad sectors behind its header.
#[derive(Default)]
pub struct WornStore {
    pub inner: MemoryStore,
    pub no_delete: AtomicBool,
    pub no_read: AtomicBool,
    pub bad: Mutex<Option<ObjectName>>,
}

impl WornStore {
    fn eio(&self) -> StoreError {
        let source = std::io::Error::from_raw_os_error(5);
        StoreError::Io { store: self.spec(), what: "cannot".to_owned(), source }
    }

    fn is_bad(&self, name: &ObjectName) -> bool {
        *self.bad.lock().unwrap() == Some(*name)
    }
}

impl Store for WornStore {
    fn put(&self, name: &ObjectName, bytes: &[u8]) -> Result<(), StoreError> {
        match self.inner.length(name) {
            Ok(_) if self.is_bad(name) => Err(StoreError::Conflict { store: self.spec(), name: *name }),
            _ => self.inner.put(name, bytes),
        }
    }

    fn get(&self, name: &ObjectName, range: Range<u64>) -> Result<Vec<u8>, StoreError> {
        let fails = self.no_read.load(Ordering::Relaxed) || self.is_bad(name) && range.end > 5000;
        if fails { Err(self.eio()) } else { self.inner.get(name, range) }
    }

    fn length(&self, name: &ObjectName) -> Result<u64, StoreError> {
        self.inner.length(name)
    }

    fn list(&self) -> Result<Vec<(ObjectName, u64)>, StoreError> {
        self.inner.list()
    }

    fn delete(&self, name: &ObjectName) -> Result<(), StoreError> {
        if self.no_delete.load(Ordering::Relaxed) {
            return Err(self.eio());
        }
        // Its place is another then.
        self.bad.lock().unwrap().take_if(|bad| bad == name);
        self.inner.delete(name)
    }

    fn spec(&self) -> String {
        "worn".to_owned()
    }
}

/// Opens the volume with such a store.
pub fn open_worn(platform: &SimulatedPlatform, store: &Arc<WornStore>) -> SimVolume {
    let (machine, device, store) = (platform.clone(), platform.device(), Arc::clone(store) as Arc<dyn Store>);
    let opened =
        platform.block_on(async move { Volume::open(machine, device, Some(store), OpenOptions::default()).await });
    opened.unwrap().unwrap()
}
