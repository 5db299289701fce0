//! A volume on a file of the real file system, its engine in this process, and a model of its blocks.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use fastrand::Rng;
use salvol::archive::{Spec, Store, create_store, open_store};
use salvol::format::{
    ArchiveAt, BLOCK_BYTES, Block, Compression, FIRST_SLOT_BLOCK, Geometry, Key, Position, Superblock, Uuid,
};
use salvol::history::{Moment, Past, Scene, Source, Writable};
use salvol::io::{Buffer, OwnRing, Primary, PrimaryError, UringDevice, UringPlatform};
use salvol::volume::{
    Aim, OpenError, OpenOptions as VolumeOptions, Operation, Point, Request, RolledBack, Serve, Status, Volume,
};

pub type Engine = Volume<UringPlatform<OwnRing>>;

/// What each block holds: 0 is zeros, anything else the seed of its bytes.
pub type Model = Vec<u64>;

pub struct Rig {
    pub directory: tempfile::TempDir,
    pub volume: Superblock,
    pub spec: Spec,
    pub rng: Rng,
    pub model: Model,
    pub points: Vec<(Point, Model)>,
    platform: UringPlatform<OwnRing>,
    engine: Option<Engine>,
    /// The store that the engine has.
    pub served: Option<Arc<dyn Store>>,
    next_seed: u64,
}

pub const SEGMENT_BLOCKS: u32 = 64;
pub const WORKING_SET: u32 = 8;
const SLOTS: u32 = 14;
pub const BLOCKS: u64 = 280;

pub fn content(seed: u64) -> Vec<u8> {
    if seed == 0 {
        return vec![0; BLOCK_BYTES];
    }
    // Half of it compresses.
    let mut bytes = vec![seed as u8 | 1; BLOCK_BYTES];
    Rng::with_seed(seed).fill(&mut bytes[..BLOCK_BYTES / 2]);
    bytes
}

impl Rig {
    /// A new volume, attached; `None`, loudly, where the file system does not do O_DIRECT.
    pub fn new(archive_at: ArchiveAt, backing: bool, seed: u64) -> Option<Self> {
        Self::with(
            archive_at,
            seed,
            |directory| {
                if backing { Spec::Directory(directory.join("archive")) } else { Spec::None }
            },
        )
    }

    /// The same, with an archive in a ring of so many bytes.
    pub fn on_ring(archive_at: ArchiveAt, seed: u64, bytes: u64) -> Option<Self> {
        Self::with(archive_at, seed, |directory| {
            let path = directory.join("ring");
            File::create(&path).unwrap().set_len(bytes).unwrap();
            Spec::File(path)
        })
    }

    fn with(archive_at: ArchiveAt, seed: u64, spec: impl FnOnce(&std::path::Path) -> Spec) -> Option<Self> {
        let base = std::env::var_os("SALVOL_TEST_DIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        let mut directory = tempfile::Builder::new().prefix("salvol-history-test").tempdir_in(base).unwrap();
        directory.disable_cleanup(std::env::var_os("SALVOL_TEST_KEEP").is_some());
        // Other seeds: SALVOL_TEST_SEED=100 cargo test --test history
        let more: u64 = std::env::var("SALVOL_TEST_SEED").map_or(0, |text| text.parse().unwrap());
        let mut rng = Rng::with_seed(seed + more);
        let mut random = || -> [u8; 16] { std::array::from_fn(|_| rng.u8(..)) };
        let primary_blocks = u64::from(FIRST_SLOT_BLOCK + SLOTS * SEGMENT_BLOCKS) + 1;
        let spec = spec(directory.path());
        let volume = Superblock {
            uuid: Uuid(random()),
            history: Uuid(random()),
            parent_history: Uuid::default(),
            fork_position: Position(0),
            key: Key(std::array::from_fn(|at| at as u8)),
            generation: 1,
            epoch: 0,
            created_ns: 1_700_000_000_000_000_000,
            geometry: Geometry {
                primary_blocks,
                volume_blocks: BLOCKS,
                segment_blocks: SEGMENT_BLOCKS,
                slots: SLOTS,
                working_set: WORKING_SET,
            },
            archive_at,
            compression: Compression::Auto,
            clean_close: None,
            accepted_loss: None,
            name: "test".to_owned(),
            backing: spec.to_string(),
        };
        volume.geometry.check().unwrap();
        let file = File::create(directory.path().join("primary")).unwrap();
        file.write_all_at(&vec![0; primary_blocks as usize * BLOCK_BYTES], 0).unwrap();
        for at in [0, volume.geometry.copy_at()] {
            file.write_all_at(&volume.encode(), at).unwrap();
        }
        file.sync_all().unwrap();
        create_store(&spec, &volume).unwrap();
        let platform = UringPlatform::new(OwnRing::new(64).unwrap(), 2).unwrap();
        let model = vec![0; BLOCKS as usize];
        let (points, engine, served) = (Vec::new(), None, None);
        let mut rig = Self { directory, volume, spec, rng, model, points, platform, engine, served, next_seed: 1 };
        match Primary::look(&rig.primary()) {
            Err(PrimaryError::NoDirect { path }) => {
                eprintln!("SKIPPED: {} has no O_DIRECT; set SALVOL_TEST_DIR", path.display());
                return None;
            }
            other => drop(other.unwrap()),
        }
        rig.attach();
        Some(rig)
    }

    pub fn primary(&self) -> PathBuf {
        self.directory.path().join("primary")
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    pub fn primary_file(&self) -> File {
        OpenOptions::new().read(true).write(true).open(self.primary()).unwrap()
    }

    pub fn store(&self) -> Arc<dyn Store> {
        open_store(&self.spec, Some(&self.volume)).unwrap().unwrap()
    }

    pub fn engine(&self) -> Engine {
        self.engine.clone().unwrap()
    }

    pub fn attach(&mut self) {
        let primary = Primary::own(&self.primary(), Duration::from_secs(20)).unwrap();
        let device = UringDevice::new(self.platform.clone(), primary);
        let store = open_store(&self.spec, Some(&self.volume)).unwrap();
        self.served = store.clone();
        let opened = Volume::open(self.platform.clone(), device, store, VolumeOptions::default());
        self.engine = Some(self.platform.block_on(opened).unwrap().unwrap());
    }

    /// Why the volume cannot be attached.
    pub fn refused(&mut self) -> OpenError {
        let primary = Primary::own(&self.primary(), Duration::from_secs(20)).unwrap();
        let device = UringDevice::new(self.platform.clone(), primary);
        let store = open_store(&self.spec, Some(&self.volume)).unwrap();
        let opened = Volume::open(self.platform.clone(), device, store, VolumeOptions::default());
        let error = self.platform.block_on(opened).unwrap().err().unwrap();
        self.shut_down();
        error
    }

    /// Blocks that the running volume does not read as the model has them; those that fail are there as well.
    pub fn wrong_blocks(&self) -> Vec<u64> {
        let wrong = |block: &u64| {
            let (engine, buffer) = (self.engine(), Buffer::new(BLOCK_BYTES).unwrap());
            let request = Request { operation: Operation::Read, block: Block(*block), blocks: 1, buffer };
            let read = async move { engine.serve(&request).await.map(|_| request.buffer.bytes().to_vec()) };
            let read = self.platform.block_on(read).unwrap();
            !read.is_ok_and(|bytes| bytes == content(self.model[*block as usize]))
        };
        (0..BLOCKS).filter(wrong).collect()
    }

    pub fn close(&mut self) {
        let engine = self.engine.take().unwrap();
        self.platform.block_on(async move { engine.close().await }).unwrap().unwrap();
        self.served = None;
        self.shut_down();
    }

    /// As if the daemon had been killed.
    pub fn kill(&mut self) {
        drop(self.engine.take());
        self.served = None;
        self.shut_down();
    }

    fn shut_down(&mut self) {
        self.platform.shut_down().unwrap();
        self.platform = UringPlatform::new(OwnRing::new(64).unwrap(), 2).unwrap();
    }

    pub fn serve(&self, operation: Operation, block: u64, blocks: u32, data: Option<&[u8]>) {
        let buffer = Buffer::new(data.map_or(BLOCK_BYTES, <[u8]>::len)).unwrap();
        let buffer = buffer.part(0, data.map_or(0, <[u8]>::len));
        if let Some(data) = data {
            buffer.copy_from(0, data);
        }
        let (engine, request) = (self.engine(), Request { operation, block: Block(block), blocks, buffer });
        self.platform.block_on(async move { engine.serve(&request).await }).unwrap().unwrap();
    }

    /// A random write, now and then a trim.
    pub fn step(&mut self) {
        let first = self.rng.u64(..BLOCKS);
        let count = self.rng.u64(1..=8).min(BLOCKS - first);
        let blocks = first as usize..(first + count) as usize;
        if self.rng.u8(..10) == 0 {
            self.model[blocks].fill(0);
            let operation = if self.rng.bool() { Operation::Discard } else { Operation::WriteZeroes { fua: false } };
            self.serve(operation, first, count as u32, None);
            return;
        }
        let mut data = Vec::new();
        for block in blocks {
            self.model[block] = self.next_seed;
            data.extend(content(self.next_seed));
            self.next_seed += 1;
        }
        self.serve(Operation::Write { fua: false }, first, count as u32, Some(&data));
    }

    pub fn steps(&mut self, count: usize) {
        (0..count).for_each(|_| self.step());
    }

    pub fn synch(&mut self, label: &str) -> Point {
        let (engine, label) = (self.engine(), label.to_owned());
        let marked = self.platform.block_on(async move { engine.synch(label, "by the test".to_owned()).await });
        let point = marked.unwrap().unwrap();
        self.points.push((point.clone(), self.model.clone()));
        point
    }

    fn past(&self, at: &str) -> (Past<UringPlatform<OwnRing>>, Aim) {
        let source = Source::open_primary(&self.primary()).unwrap();
        let scene = Scene::new(&source, source.resolve(at).unwrap()).unwrap();
        let aim = scene.aim();
        (Past::open(self.platform.clone(), scene, &Writable::No, String::new()).unwrap(), aim)
    }

    /// Every block of a view of `moment`.
    pub fn view(&self, source: &Source, moment: &Moment) -> Vec<u8> {
        let scene = Scene::new(source, moment.clone()).unwrap();
        let past = Past::open(self.platform.clone(), scene, &Writable::No, String::new()).unwrap();
        let buffer = Buffer::new(BLOCKS as usize * BLOCK_BYTES).unwrap();
        let request = Request { operation: Operation::Read, block: Block(0), blocks: BLOCKS as u32, buffer };
        let read = async move { past.serve(&request).await.map(|()| request.buffer.bytes().to_vec()) };
        self.platform.block_on(read).unwrap().unwrap()
    }

    /// Rolls the volume back; the model is the test's to set.
    pub fn roll_back(&self, at: &str) -> RolledBack {
        let (engine, (past, aim)) = (self.engine(), self.past(at));
        let done = async move { engine.roll_back(&past, &aim).await };
        self.platform.block_on(done).unwrap().unwrap()
    }

    /// The same, and kills the engine after so long. Whether that was midway.
    pub fn roll_back_killed(&mut self, at: &str, after: Duration) -> bool {
        use salvol::io::Platform;
        let (engine, (past, aim)) = (self.engine(), self.past(at));
        let clock = self.platform.clone();
        let done = async move {
            let done = engine.roll_back(&past, &aim);
            futures_util::future::select(std::pin::pin!(done), std::pin::pin!(clock.sleep(after))).await;
            engine.unfinished_rollback().is_some()
        };
        let midway = self.platform.block_on(done).unwrap();
        self.kill();
        midway
    }

    /// What the daemon does when it opens a volume.
    pub fn finish_rollback(&self) -> bool {
        let engine = self.engine();
        let Some(unfinished) = engine.unfinished_rollback() else { return false };
        let (past, aim) = self.past(&unfinished.to.to_string());
        let done = async move { engine.finish_rollback(&past, &aim).await };
        self.platform.block_on(done).unwrap().unwrap();
        true
    }

    pub fn segment(&self) -> u64 {
        self.engine().log().current_segment().0
    }

    /// Goes on until the current segment is this one, and everything older than it has been archived.
    pub fn run_to_segment(&mut self, segment: u64) {
        while self.segment() < segment {
            self.step();
        }
        self.serve(Operation::Flush, 0, 0, None);
    }

    /// Lets the engine's own tasks go on for a while.
    pub fn idle(&self) {
        use salvol::io::Platform;
        let platform = self.platform.clone();
        self.platform.block_on(async move { platform.sleep(Duration::from_millis(10)).await }).unwrap();
    }

    /// Lets the archiver finish what it may.
    pub fn settle(&mut self) {
        self.wait(|status| status.archive.queue == 0);
    }

    /// Lets the archiver go on until the store alone has the newest point. With `ArchiveAt::Seal` only: in parts.
    pub fn settle_points(&mut self) {
        let newest = self.points.last().map_or(0, |(point, _)| point.point);
        self.wait(|status| status.archive.queue == 0 && status.archive.position >= newest);
    }

    fn wait(&self, settled: impl Fn(&Status) -> bool) {
        for _ in 0..500 {
            if settled(&self.engine().status()) {
                return;
            }
            self.idle();
        }
        panic!("the archiver does not finish: {:?}", self.engine().status().archive);
    }
}

/// Where a restored file differs from the model.
pub fn differences(path: &std::path::Path, model: &Model) -> Vec<u64> {
    differing(&std::fs::read(path).unwrap(), model)
}

/// Where a volume's bytes differ from the model.
pub fn differing(bytes: &[u8], model: &Model) -> Vec<u64> {
    assert_eq!(bytes.len(), model.len() * BLOCK_BYTES);
    let mut contents: BTreeMap<u64, Vec<u8>> = BTreeMap::new();
    let differs = |(block, seed): (usize, &u64)| {
        let wanted = contents.entry(*seed).or_insert_with(|| content(*seed));
        (bytes[block * BLOCK_BYTES..(block + 1) * BLOCK_BYTES] != wanted[..]).then_some(block as u64)
    };
    model.iter().enumerate().filter_map(differs).collect()
}
