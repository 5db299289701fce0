//! What is damaged: a volume that is small and has everything. Two histories, for it was rebuilt from its archive once; several
//! epochs; trims, copies, points with and without a label; parts, a pin and a fork record in the store. Its two states are
//! one that was closed, and one whose power went while something was not flushed.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use salvol::archive::{MemoryStore, ObjectName, Store};
use salvol::format::{ArchiveAt, BLOCK_BYTES, Block, Key, Superblock, Uuid};
use salvol::history::{Progress, RebuildOptions, RebuildPlan, Source, pin};
use salvol::io::simulated::{SimulatedDisk, SimulatedPlatform};
use salvol::io::{Buffer, Platform};
use salvol::log::scan;
use salvol::volume::{OpenOptions, Operation, Request, Volume};

use super::common::{SHAPE, Shape, SimVolume, bytes_of, put};

/// The stamp of each block; 0 is zeros.
pub type State = Vec<u64>;

pub type Objects = BTreeMap<ObjectName, Vec<u8>>;

/// A volume as bytes, and what it may be.
pub struct Base {
    pub name: &'static str,
    /// Its superblock now, and that of its first history, which a store knows it by.
    pub volume: Superblock,
    pub identity: Superblock,
    pub primary: Vec<u8>,
    pub objects: Objects,
    /// What the volume was behind each position at which something had been acknowledged, oldest first. Of the blocks of one write any
    /// number may have come: each has its own state.
    pub states: Vec<(u64, State)>,
    /// Its synch points.
    pub points: Vec<(u64, State)>,
    /// Whether it was closed: all of it is known to be durable.
    pub closed: bool,
    /// The primary and the store as they were some time before: what is stale.
    pub stale: Vec<u8>,
    pub stale_objects: Objects,
}

/// As small as a volume can be that cleans and archives.
pub const TINY: Shape =
    Shape { segment_blocks: 12, working_set: 2, slots: 5, volume_blocks: 5, archive_at: ArchiveAt::Seal, ..SHAPE };

/// The image of a state.
pub fn image_of(state: &State) -> Vec<u8> {
    state.iter().zip(0..).flat_map(|(stamp, block)| bytes_of(block, *stamp)).collect()
}

/// Somebody who writes one thing after the other, and notes what the volume is.
struct Story {
    volume_blocks: u64,
    state: State,
    stamp: u64,
    states: Vec<(u64, State)>,
    points: Vec<(u64, State)>,
}

impl Story {
    fn new(shape: &Shape) -> Self {
        let state = vec![0; shape.volume_blocks as usize];
        let states = vec![(0, state.clone())];
        Self { volume_blocks: shape.volume_blocks, state, stamp: 0, states, points: Vec::new() }
    }

    async fn write(&mut self, volume: &SimVolume, first: u64, count: u64) {
        self.stamp += 1;
        let end = (first + count).min(self.volume_blocks);
        put(volume, first..end, self.stamp).await;
        for block in first..end {
            self.state[block as usize] = self.stamp;
            self.note(volume);
        }
    }

    async fn trim(&mut self, volume: &SimVolume, block: u64, zero: bool) {
        let operation = if zero { Operation::WriteZeroes { fua: false } } else { Operation::Discard };
        let request = Request { operation, block: Block(block), blocks: 1, buffer: Buffer::new(0).unwrap() };
        volume.serve(&request).await.unwrap();
        self.state[block as usize] = 0;
        self.note(volume);
    }

    async fn synch(&mut self, volume: &SimVolume, label: &str, info: &str) {
        let point = volume.synch(label.to_owned(), info.to_owned()).await.unwrap();
        self.points.push((point.point, self.state.clone()));
        self.note(volume);
    }

    async fn flush(&self, volume: &SimVolume) {
        let buffer = Buffer::new(0).unwrap();
        volume.serve(&Request { operation: Operation::Flush, block: Block(0), blocks: 0, buffer }).await.unwrap();
    }

    fn note(&mut self, volume: &SimVolume) {
        self.states.push((volume.status().position, self.state.clone()));
    }

    /// Overwrites here and there until the log is so many segments further.
    async fn run(&mut self, volume: &SimVolume, segments: u64) {
        let until = volume.log().current_segment().0 + segments;
        for turn in 0_u64.. {
            if volume.log().current_segment().0 >= until {
                return;
            }
            match turn % 7 {
                3 => self.trim(volume, turn % self.volume_blocks, turn % 2 == 0).await,
                5 => self.flush(volume).await,
                _ => self.write(volume, turn * 3 % self.volume_blocks, 1 + turn % 2).await,
            }
        }
    }
}

fn open(platform: &SimulatedPlatform, store: &Arc<MemoryStore>) -> SimVolume {
    let (machine, device, store) = (platform.clone(), platform.device(), Arc::clone(store) as Arc<dyn Store>);
    let opened =
        platform.block_on(async move { Volume::open(machine, device, Some(store), OpenOptions::default()).await });
    opened.unwrap().unwrap()
}

/// Runs a part of the story on a machine with `disk`.
fn tell<F: Future<Output = Story> + 'static>(
    seed: u64,
    disk: &SimulatedDisk,
    store: &Arc<MemoryStore>,
    part: impl FnOnce(SimulatedPlatform, SimVolume) -> F,
) -> Story {
    let platform = SimulatedPlatform::new(seed, disk.clone());
    let volume = open(&platform, store);
    let story = platform.block_on(part(platform.clone(), volume)).unwrap();
    platform.halt();
    disk.stop_machine();
    story
}

fn bytes_of_disk(disk: &SimulatedDisk, volume: &Superblock) -> Vec<u8> {
    let mut bytes = vec![0; volume.geometry.primary_blocks as usize * BLOCK_BYTES];
    disk.peek(0, &mut bytes);
    bytes
}

pub fn objects_of(store: &MemoryStore) -> Objects {
    store.list().unwrap().into_iter().map(|(name, _)| (name, store.get(&name, 0..u64::MAX).unwrap())).collect()
}

pub fn store_with(objects: &Objects) -> MemoryStore {
    let store = MemoryStore::new();
    objects.iter().for_each(|(name, bytes)| store.put(name, bytes).unwrap());
    store
}

/// Makes the volume's primary again from its archive, under another history.
fn rebuild(shape: &Shape, volume: Superblock, store: &Arc<MemoryStore>, seed: u64) -> SimulatedDisk {
    let backing = volume.backing.clone();
    let source = Source::open_store(volume, Some(Arc::clone(store) as Arc<dyn Store>)).unwrap();
    let history = Uuid([0xb2; 16]);
    let options =
        RebuildOptions { history, time_ns: 1_700_000_000_000_000_000, name: None, backing, accept_loss: None };
    let plan = RebuildPlan::new(source, options).unwrap();
    let disk = SimulatedDisk::new(shape.superblock().geometry.primary_blocks * BLOCK_BYTES as u64);
    let platform = SimulatedPlatform::new(seed, disk.clone());
    let device = platform.device();
    platform.block_on(async move { plan.write(&device, &Progress::none()).await.unwrap() }).unwrap();
    platform.halt();
    disk.stop_machine();
    disk
}

fn superblock_on(disk: &SimulatedDisk) -> Superblock {
    let platform = SimulatedPlatform::new(1, disk.clone());
    let device = platform.device();
    platform.block_on(async move { scan::superblock(&device).await.unwrap().unwrap().0 }).unwrap()
}

/// Lets the volume's own tasks go on.
async fn rest(platform: &SimulatedPlatform, volume: &SimVolume) {
    for _ in 0..100 {
        platform.sleep(Duration::from_millis(200)).await;
        if volume.status().archive.queue == 0 {
            break;
        }
    }
    platform.sleep(Duration::from_secs(2)).await;
}

/// A volume with this key: the one that is damaged, or another one of the same story.
pub fn bases(seed: u64, key: Option<Key>) -> [Base; 2] {
    let shape = TINY;
    let first = Superblock {
        name: "tiny".to_owned(),
        key: key.unwrap_or_else(|| shape.superblock().key),
        uuid: if key.is_some() { Uuid([0xee; 16]) } else { shape.superblock().uuid },
        ..shape.superblock()
    };
    let disk = SimulatedDisk::new(first.geometry.primary_blocks * BLOCK_BYTES as u64);
    disk.poke(0, &first.encode());
    disk.poke(first.geometry.copy_at(), &first.encode());
    let store = Arc::new(MemoryStore::new());
    let story = tell(seed, &disk, &store, |platform, volume| async move {
        let mut story = Story::new(&shape);
        story.run(&volume, 1).await;
        story.synch(&volume, "before the upgrade", "wal 0/16B3748").await;
        story.run(&volume, 1).await;
        rest(&platform, &volume).await;
        volume.close().await.unwrap();
        story
    });
    let story = tell(seed + 1, &disk, &store, |platform, volume| async move {
        let mut story = story;
        story.write(&volume, 1, 2).await;
        story.synch(&volume, "", "").await;
        rest(&platform, &volume).await;
        volume.close().await.unwrap();
        story
    });
    // The primary is lost.
    let disk = rebuild(&shape, superblock_on(&disk), &store, seed + 2);
    let story = tell(seed + 3, &disk, &store, |platform, volume| async move {
        let mut story = story;
        story.run(&volume, 2).await;
        story.synch(&volume, "after the rebuild", "").await;
        rest(&platform, &volume).await;
        story
    });
    let (stale, stale_objects) = (bytes_of_disk(&disk, &first), objects_of(&store));
    let story = tell(seed + 4, &disk, &store, |platform, volume| async move {
        let mut story = story;
        story.run(&volume, 3).await;
        rest(&platform, &volume).await;
        story.write(&volume, 3, 1).await;
        story.synch(&volume, "the last", "of all").await;
        rest(&platform, &volume).await;
        story
    });
    let source = Source::open_store(superblock_on(&disk), Some(Arc::clone(&store) as Arc<dyn Store>)).unwrap();
    let moment = source.resolve("before the upgrade").unwrap();
    pin(&source, &moment, 1_700_000_000_000_000_000).unwrap();
    // The power goes: three writes have arrived, of which no header says that they are durable.
    let (fork, kept) = (disk.fork(), Arc::new(store_with(&objects_of(&store))));
    let cut = tell(seed + 5, &fork, &kept, |_, volume| async move {
        let mut story = Story { points: story.points.clone(), states: story.states.clone(), ..story };
        for block in [0, 2, 4] {
            story.write(&volume, block, 1).await;
        }
        story
    });
    let base = |name, disk: &SimulatedDisk, store: &Rc<Objects>, states, points, closed| Base {
        name,
        volume: superblock_on(disk),
        identity: Superblock { epoch: 0, generation: 0, ..first.clone() },
        primary: bytes_of_disk(disk, &first),
        objects: Objects::clone(store),
        states,
        points,
        closed,
        stale: stale.clone(),
        stale_objects: stale_objects.clone(),
    };
    let killed = base("cut", &fork, &Rc::new(objects_of(&kept)), cut.states.clone(), cut.points.clone(), false);
    // Or it is closed.
    let done = Rc::new(std::cell::RefCell::new(None));
    let slot = Rc::clone(&done);
    let platform = SimulatedPlatform::new(seed + 6, fork.clone());
    let volume = open(&platform, &kept);
    platform
        .block_on(async move {
            let mut story = cut;
            story.write(&volume, 1, 1).await;
            volume.close().await.unwrap();
            *slot.borrow_mut() = Some(story);
        })
        .unwrap();
    platform.halt();
    fork.stop_machine();
    let story = done.take().unwrap();
    let closed = base("closed", &fork, &Rc::new(objects_of(&kept)), story.states, story.points, true);
    [closed, killed]
}
