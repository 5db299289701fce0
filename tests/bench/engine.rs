//! The engine in process, without a kernel driver, on a real file with O_DIRECT: one workload, one line of JSON.
//!
//! `scripts/bench` runs this beside fio on the same file and makes the tables; alone:
//! `cargo bench --bench engine -- --primary FILE --workload overwrite --utilisation 0.5 --depth 32`.
//!
//! The budget of a log on a half-duplex device: 1/X = A(1+h)/B_w + (A−1)/B_r, with the bandwidths measured on the same
//! file at the workload's own sizes and bytes in flight. With the archive on the same file system, what is put there and read back
//! is added, at the rates of the store alone.
#![allow(clippy::unwrap_used, reason = "a measurement that fails should say where")]

#[path = "../fuzz/memory.rs"]
mod memory;

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::{Parser, ValueEnum};
use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use salvol::archive::{DirectoryStore, ObjectName, Store};
use salvol::format::*;
use salvol::io::simulated::Dice;
use salvol::io::{Buffer, Device, OwnRing, Platform, Primary, UringDevice, UringPlatform};
use salvol::volume::{OpenOptions, Operation, Request, Volume};

type Machine = UringPlatform<OwnRing>;

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Workload {
    /// Writes of 4 KiB at random places.
    Overwrite,
    /// Writes of 1 MiB, one behind the other, round and round.
    Sequential,
    /// Reads of 4 KiB at random places.
    Read,
    /// Writes of 4 KiB at random places, each with a flush behind it.
    Flush,
}

impl Workload {
    /// Blocks of a request.
    fn blocks(self) -> u32 {
        if self == Self::Sequential { 256 } else { 1 }
    }
}

#[derive(Parser, Clone)]
#[command(args_override_self = true)]
struct Arguments {
    /// The file to use; made, and written through, when it is missing or too small.
    #[arg(long)]
    primary: PathBuf,
    #[arg(long, value_enum, default_value_t = Workload::Overwrite)]
    workload: Workload,
    /// Volume blocks ÷ block places of the working set.
    #[arg(long, default_value_t = 0.5)]
    utilisation: f64,
    #[arg(long, default_value_t = 32)]
    depth: usize,
    #[arg(long, default_value_t = 128)]
    working_set: u32,
    #[arg(long, default_value_t = 4096)]
    segment_blocks: u32,
    #[arg(long, default_value_t = 24)]
    spare: u32,
    /// Seconds to measure.
    #[arg(long, default_value_t = 8)]
    seconds: u64,
    /// No more than so many requests a second, evenly.
    #[arg(long)]
    rate: Option<u32>,
    /// So many requests instead, and no budget: for callgrind.
    #[arg(long)]
    requests: Option<u64>,
    /// Turns of the log before measuring.
    #[arg(long, default_value_t = 2.0)]
    turns: f64,
    #[arg(long, value_enum, default_value_t = Pattern::Uniform)]
    pattern: Pattern,
    /// Archive to this directory.
    #[arg(long)]
    store: Option<PathBuf>,
    /// Only open what an earlier run has left, so often: for perf.
    #[arg(long)]
    openings: Option<usize>,
    /// Copy nothing ahead of need.
    #[arg(long)]
    no_planning: bool,
    #[arg(long, hide = true)]
    bench: bool,
}

impl Arguments {
    /// The store, when it is on the primary's file system.
    fn shared_store(&self) -> Option<&Path> {
        let device = |path: &Path| std::os::unix::fs::MetadataExt::dev(&std::fs::metadata(path).unwrap());
        self.store.as_deref().filter(|store| device(store) == device(&self.primary))
    }
}

/// Where the next request goes.
#[derive(ValueEnum, Clone, Copy, PartialEq, Eq, Debug)]
enum Pattern {
    Uniform,
    /// Nine of ten to a tenth of the blocks.
    Skewed,
    /// The rank-th block of n with a weight of rank to the −0.99, in an order that scatters the popular ones.
    Zipf,
    /// One block in a hundred of a volume that was filled once.
    Cold,
}

/// Draws blocks of a pattern.
#[derive(Clone)]
struct Places {
    pattern: Pattern,
    blocks: u64,
    /// Of Zipf's: the sum of all weights, and the constant of its tail.
    zeta: (f64, f64),
}

const THETA: f64 = 0.99;

impl Places {
    fn new(pattern: Pattern, blocks: u64) -> Self {
        let zeta = |n: u64| (1..=n).map(|rank| (rank as f64).powf(-THETA)).sum::<f64>();
        let zeta = if pattern == Pattern::Zipf {
            let all = zeta(blocks);
            (all, (1.0 - (2.0 / blocks as f64).powf(1.0 - THETA)) / (1.0 - zeta(2) / all))
        } else {
            (0.0, 0.0)
        };
        Self { pattern, blocks, zeta }
    }

    fn draw(&self, dice: &mut Dice) -> u64 {
        let blocks = self.blocks;
        match self.pattern {
            Pattern::Uniform => dice.below(blocks),
            Pattern::Skewed if dice.percent(90) => dice.below(blocks / 10),
            Pattern::Skewed => blocks / 10 + dice.below(blocks - blocks / 10),
            Pattern::Cold => dice.below(blocks / 100),
            Pattern::Zipf => self.popular(dice).wrapping_mul(0x9e37_79b9_7f4a_7c15) % blocks,
        }
    }

    /// A rank by Zipf's law, as Gray et al. draw it (Quickly Generating Billion-Record Synthetic Databases, 1994).
    fn popular(&self, dice: &mut Dice) -> u64 {
        let (zeta, eta) = self.zeta;
        let chance = (dice.bits() >> 11) as f64 / (1_u64 << 53) as f64;
        match chance * zeta {
            at if at < 1.0 => 0,
            at if at < 1.0 + 0.5_f64.powf(THETA) => 1,
            _ => (self.blocks as f64 * (eta * chance - eta + 1.0).powf(1.0 / (1.0 - THETA))) as u64,
        }
    }
}

struct Run {
    volume: Volume<Machine>,
    machine: Machine,
    places: Places,
    workload: Cell<Workload>,
    /// Between the requests of one user.
    pace: Cell<Duration>,
    stop: Cell<bool>,
    /// Requests still to do, when counted.
    left: Cell<u64>,
    done: Cell<u64>,
    /// Where the next sequential write goes.
    next: Cell<u64>,
    latencies: std::cell::RefCell<Vec<u32>>,
}

impl Run {
    fn place(&self, dice: &mut Dice) -> u64 {
        let blocks = u64::from(self.workload.get().blocks());
        if blocks == 1 {
            return self.places.draw(dice);
        }
        let at = self.next.get();
        self.next.set(if at + 2 * blocks > self.places.blocks { 0 } else { at + blocks });
        at
    }
}

/// One user, who waits for each request before the next one.
async fn user(run: Rc<Run>, mut dice: Dice, left: Rc<Cell<usize>>) {
    let workload = run.workload.get();
    let blocks = workload.blocks();
    let buffer = Buffer::new(blocks as usize * BLOCK_BYTES).unwrap();
    // Half compressible, as a database's pages are.
    buffer.write(|bytes| bytes.chunks_mut(BLOCK_BYTES).for_each(|block| block[..2048].fill_with(|| dice.bits() as u8)));
    let operation = if workload == Workload::Read { Operation::Read } else { Operation::Write { fua: false } };
    let mut request = Request { operation, block: Block(0), blocks, buffer: buffer.clone() };
    let flush = Request { operation: Operation::Flush, block: Block(0), blocks: 0, buffer: buffer.part(0, 0) };
    let (begun, mut due) = (Instant::now(), run.pace.get().mul_f64(dice.below(1000) as f64 / 1000.0));
    while !run.stop.get() && run.left.get() > 0 {
        run.left.set(run.left.get() - 1);
        if !run.pace.get().is_zero() {
            run.machine.sleep(due.saturating_sub(begun.elapsed())).await;
            due += run.pace.get();
        }
        request.block = Block(run.place(&mut dice));
        if workload != Workload::Read {
            buffer.copy_from(0, &dice.bits().to_le_bytes());
        }
        let start = Instant::now();
        run.volume.serve(&request).await.unwrap();
        if workload == Workload::Flush {
            run.volume.serve(&flush).await.unwrap();
        }
        run.latencies.borrow_mut().push(start.elapsed().as_micros().min(u128::from(u32::MAX)) as u32);
        run.done.set(run.done.get() + 1);
    }
    left.set(left.get() - 1);
}

/// What a time has cost.
struct Driven {
    seconds: f64,
    /// Processor time of all threads, user and system, in seconds.
    cpu: f64,
    /// Of the owner's thread.
    allocations: u64,
}

fn cpu_seconds() -> f64 {
    let usage = getrusage(UsageWho::RUSAGE_SELF).unwrap();
    (usage.user_time() + usage.system_time()).num_microseconds() as f64 / 1e6
}

/// Runs `depth` users until `seconds` are over or `requests` are done.
fn drive(run: &Rc<Run>, depth: usize, seconds: Option<u64>, requests: u64) -> Driven {
    run.stop.set(false);
    run.left.set(requests);
    run.done.set(0);
    run.latencies.borrow_mut().clear();
    let left = Rc::new(Cell::new(depth));
    for number in 0..depth {
        run.machine.spawn(user(Rc::clone(run), Dice::new(number as u64 + 1), Rc::clone(&left)));
    }
    let (start, cpu, allocations) = (Instant::now(), cpu_seconds(), memory::allocations());
    let (timer, waiting) = (Rc::clone(run), Rc::clone(&left));
    if let Some(seconds) = seconds {
        let machine = run.machine.clone();
        run.machine.spawn(async move {
            machine.sleep(Duration::from_secs(seconds)).await;
            timer.stop.set(true);
        });
    }
    let machine = run.machine.clone();
    run.machine
        .block_on(async move {
            while waiting.get() > 0 {
                machine.sleep(Duration::from_millis(2)).await;
            }
        })
        .unwrap();
    Driven {
        seconds: start.elapsed().as_secs_f64(),
        cpu: cpu_seconds() - cpu,
        allocations: memory::allocations() - allocations,
    }
}

fn superblock(arguments: &Arguments, primary_blocks: u64, volume_blocks: u64) -> Superblock {
    let random = |salt: u64| {
        let mut dice = Dice::new(std::process::id().into());
        let mut bytes = [0; 32];
        bytes.fill_with(|| (dice.bits() ^ salt) as u8);
        bytes
    };
    let id = |salt| Uuid::from_random(random(salt)[..16].try_into().unwrap());
    Superblock {
        uuid: id(1),
        history: id(2),
        parent_history: Uuid::default(),
        fork_position: Position(0),
        key: Key(random(3)),
        generation: 1,
        epoch: 0,
        created_ns: 0,
        geometry: Geometry {
            primary_blocks,
            volume_blocks,
            segment_blocks: arguments.segment_blocks,
            slots: arguments.working_set + arguments.spare,
            working_set: arguments.working_set,
        },
        archive_at: ArchiveAt::Seal,
        compression: Compression::Auto,
        clean_close: None,
        accepted_loss: None,
        name: "bench".to_owned(),
        backing: if arguments.store.is_some() { "dir:/bench" } else { "none" }.to_owned(),
    }
}

/// A file whose extents have been written: unwritten ones cost a quarter of the speed.
fn prepare(path: &Path, bytes: u64) {
    if std::fs::metadata(path).is_ok_and(|file| file.len() == bytes) {
        return;
    }
    let chunk = vec![0x5a_u8; 8 << 20];
    let file = std::fs::File::create(path).unwrap();
    let mut at = 0;
    while at < bytes {
        let count = chunk.len().min((bytes - at) as usize);
        std::os::unix::fs::FileExt::write_all_at(&file, &chunk[..count], at).unwrap();
        at += count as u64;
    }
    file.sync_all().unwrap();
}

/// Bytes a second of writes of `size` bytes in sequence, or reads at random places, `flight` at a time.
fn bandwidth(machine: &Machine, device: &UringDevice<OwnRing>, size: usize, flight: usize, write: bool) -> f64 {
    let moved = Rc::new(Cell::new(0_u64));
    let stop = Rc::new(Cell::new(false));
    let left = Rc::new(Cell::new(flight));
    let next = Rc::new(Cell::new(0_u64));
    let span = device.bytes() / size as u64 - 1;
    // One piece of memory, as large as the engine's own, so that pages cost the same.
    let memory = Buffer::new((size * flight).max(16 << 20)).unwrap();
    for number in 0..flight {
        let buffer = memory.part(number * size, size);
        let (device, moved, stop, left, next) =
            (device.clone(), Rc::clone(&moved), Rc::clone(&stop), Rc::clone(&left), Rc::clone(&next));
        let mut dice = Dice::new(number as u64 + 99);
        machine.spawn(async move {
            buffer.write(|bytes| bytes.fill_with(|| dice.bits() as u8));
            while !stop.get() {
                if write {
                    let at = next.replace(next.get() + 1) % span;
                    device.write(at * size as u64, buffer.clone()).await.unwrap();
                } else {
                    device.read(dice.below(span) * size as u64, buffer.clone()).await.unwrap();
                }
                moved.set(moved.get() + size as u64);
            }
            left.set(left.get() - 1);
        });
    }
    let start = Instant::now();
    let sleeper = machine.clone();
    machine
        .block_on(async move {
            sleeper.sleep(Duration::from_millis(1500)).await;
            stop.set(true);
            while left.get() > 0 {
                sleeper.sleep(Duration::from_millis(1)).await;
            }
        })
        .unwrap();
    moved.get() as f64 / start.elapsed().as_secs_f64()
}

/// Bytes a second that a store beside `store` is given, and gives back, when nothing else uses the disk: objects of a segment's `share`, by
/// as many threads as there are archivers.
fn store_rates(store: &Path, volume: &Superblock, share: f64) -> [f64; 2] {
    const OBJECTS: u64 = 24;
    const FETCH: u64 = 2 << 20;
    let path = store.with_extension("alone");
    let store = DirectoryStore::create(&path, volume).unwrap();
    let mut dice = Dice::new(5);
    let bytes = (volume.geometry.segment_bytes() as f64 * share.clamp(0.01, 1.0)) as u64;
    let object: Vec<u8> = (0..bytes).map(|_| dice.bits() as u8).collect();
    let threads = OpenOptions::default().archiving.threads as u64;
    let timed = |call: &(dyn Fn(&ObjectName) + Sync)| {
        let start = Instant::now();
        std::thread::scope(|scope| {
            for thread in 0..threads {
                scope.spawn(move || {
                    for number in (thread..OBJECTS).step_by(threads as usize) {
                        let segment = SegmentNumber(number + 1);
                        call(&ObjectName { history: volume.history, segment, epoch: 1, part: 0 });
                    }
                });
            }
        });
        (bytes * OBJECTS) as f64 / start.elapsed().as_secs_f64()
    };
    let put = timed(&|name| store.put(name, &object).unwrap());
    let get = timed(&|name| {
        (0..bytes).step_by(FETCH as usize).for_each(|at| drop(store.get(name, at..at + FETCH).unwrap()));
    });
    drop(store);
    std::fs::remove_dir_all(path).unwrap();
    [put, get]
}

fn percentile(sorted: &[u32], share: f64) -> u32 {
    sorted.get(((sorted.len() as f64 * share) as usize).min(sorted.len().saturating_sub(1))).copied().unwrap_or(0)
}

/// A of design.md's formula for uniform overwrites, headers counted.
fn formula(utilisation: f64, header_user: f64, header_copy: f64) -> f64 {
    let free = |x: f64| {
        let q = (-x / utilisation).exp();
        1.0 - x * ((1.0 + header_user) + (1.0 + header_copy) * q / (1.0 - q))
    };
    let (mut low, mut high) = (1e-9, 1.0);
    for _ in 0..200 {
        let middle = (low + high) / 2.0;
        if free(middle) > 0.0 { low = middle } else { high = middle }
    }
    1.0 / (1.0 - (-low / utilisation).exp())
}

fn resident_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find(|line| line.starts_with("VmHWM:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse().unwrap()
}

fn main() {
    env_logger::init();
    let arguments = Arguments::parse();
    if let Some(count) = arguments.openings {
        let milliseconds: Vec<f64> = (0..count).map(|_| open_and_close(&arguments)).collect();
        println!("{}", serde_json::json!({ "open_ms": milliseconds }));
        return;
    }
    let slots = arguments.working_set + arguments.spare;
    let primary_blocks = u64::from(FIRST_SLOT_BLOCK) + u64::from(slots) * u64::from(arguments.segment_blocks) + 1;
    let places = f64::from(arguments.working_set) * f64::from(arguments.segment_blocks);
    let volume_blocks = (places * arguments.utilisation) as u64;
    prepare(&arguments.primary, primary_blocks * BLOCK_BYTES as u64);
    let block = superblock(&arguments, primary_blocks, volume_blocks);
    block.geometry.check().unwrap();
    let bytes = Buffer::new(BLOCK_BYTES).unwrap();
    bytes.copy_from(0, &block.encode());
    let (machine, device) = start(&arguments);
    let (first, copy, at) = (device.clone(), device.clone(), block.geometry.copy_at());
    machine
        .block_on(async move {
            first.write(0, bytes.clone()).await.unwrap();
            copy.write(at, bytes).await.unwrap();
        })
        .unwrap();
    let store =
        arguments.store.as_ref().map(|path| Arc::new(DirectoryStore::create(path, &block).unwrap()) as Arc<dyn Store>);
    let volume = open(&machine, &device, store);
    volume.log().set_planning(!arguments.no_planning);
    let run = Rc::new(Run {
        volume: volume.clone(),
        machine: machine.clone(),
        places: Places::new(arguments.pattern, volume_blocks),
        workload: Cell::new(Workload::Overwrite),
        pace: Cell::new(Duration::ZERO),
        stop: Cell::new(false),
        left: Cell::new(0),
        done: Cell::new(0),
        next: Cell::new(0),
        latencies: std::cell::RefCell::default(),
    });
    fill(&run);
    if arguments.workload == Workload::Sequential {
        run.workload.set(Workload::Sequential);
    }
    if arguments.pattern != Pattern::Cold {
        let blocks = u64::from(run.workload.get().blocks());
        drive(&run, arguments.depth, None, (places * arguments.turns) as u64 / blocks);
    }
    run.workload.set(arguments.workload);
    run.pace.set(
        arguments.rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(arguments.depth as f64 / f64::from(rate))),
    );
    let segment = volume.log().current_segment();
    let before = volume.log().counters();
    let seconds = arguments.requests.is_none().then_some(arguments.seconds);
    let driven = drive(&run, arguments.depth, seconds, arguments.requests.unwrap_or(u64::MAX));
    let counted = Counted {
        user: (volume.log().counters().user_blocks - before.user_blocks) as f64,
        copied: (volume.log().counters().copied_blocks - before.copied_blocks) as f64,
        overhead: (volume.log().counters().overhead_blocks - before.overhead_blocks) as f64,
        reads: (volume.log().counters().cleaning_reads - before.cleaning_reads) as f64,
        batches: (volume.log().counters().batches - before.batches) as f64,
        segments: volume.log().current_segment().0 - segment.0,
        throttled: volume.log().counters().throttled.as_secs_f64() - before.throttled.as_secs_f64(),
        archived: (volume.log().counters().archived_bytes - before.archived_bytes) as f64,
        archived_images: (volume.log().counters().archived_image_bytes - before.archived_image_bytes) as f64,
    };
    let mut line = run.measured(&arguments, &driven, &counted);
    drop(run);
    if arguments.requests.is_none() {
        merge(&mut line, openings(&arguments, machine, device, volume));
    }
    // Last, since it writes all over the log.
    if arguments.workload == Workload::Overwrite && arguments.requests.is_none() {
        let rate = line["iops"].as_f64().unwrap();
        merge(&mut line, counted.budget(&arguments, &block, rate));
    }
    println!("{line}");
}

fn merge(line: &mut serde_json::Value, more: serde_json::Value) {
    let (Some(line), serde_json::Value::Object(mut more)) = (line.as_object_mut(), more) else { unreachable!() };
    line.append(&mut more);
}

/// A machine of its own, with the primary.
fn start(arguments: &Arguments) -> (Machine, UringDevice<OwnRing>) {
    let machine = UringPlatform::new(OwnRing::new(1024).unwrap(), 2).unwrap();
    let device = UringDevice::new(machine.clone(), Primary::own(&arguments.primary, Duration::ZERO).unwrap());
    (machine, device)
}

fn open(machine: &Machine, device: &UringDevice<OwnRing>, store: Option<Arc<dyn Store>>) -> Volume<Machine> {
    let (opener, device) = (machine.clone(), device.clone());
    let opened = async move { Volume::open(opener, device, store, OpenOptions::default()).await.unwrap() };
    machine.block_on(opened).unwrap()
}

/// How long opening takes after the end of everything where it is, and after a clean close.
fn openings(
    arguments: &Arguments,
    machine: Machine,
    device: UringDevice<OwnRing>,
    volume: Volume<Machine>,
) -> serde_json::Value {
    drop((volume, device));
    machine.shut_down().unwrap();
    drop(machine);
    let milliseconds = [(); 2].map(|()| open_and_close(arguments));
    serde_json::json!({ "open_after_crash_ms": milliseconds[0], "open_after_close_ms": milliseconds[1] })
}

/// Milliseconds that opening takes.
fn open_and_close(arguments: &Arguments) -> f64 {
    let (machine, device) = start(arguments);
    let before = Instant::now();
    let volume = open(&machine, &device, None);
    let taken = before.elapsed().as_secs_f64() * 1e3;
    machine.block_on(async move { volume.close().await.unwrap() }).unwrap();
    drop(device);
    machine.shut_down().unwrap();
    taken
}

/// Writes every block once, in order, in requests of 256 KiB.
fn fill(run: &Rc<Run>) {
    let filler = Rc::clone(run);
    run.machine
        .block_on(async move {
            let buffer = Buffer::new(64 * BLOCK_BYTES).unwrap();
            let mut dice = Dice::new(7);
            let mut at = 0;
            while at < filler.places.blocks {
                let count = 64.min(filler.places.blocks - at) as u32;
                buffer.write(|bytes| {
                    bytes.chunks_mut(64).for_each(|chunk| chunk[..8].copy_from_slice(&dice.bits().to_le_bytes()))
                });
                let part = buffer.part(0, count as usize * BLOCK_BYTES);
                let request = Request {
                    operation: Operation::Write { fua: false },
                    block: Block(at),
                    blocks: count,
                    buffer: part,
                };
                filler.volume.serve(&request).await.unwrap();
                at += u64::from(count);
            }
        })
        .unwrap();
}

/// What the log counted meanwhile, in blocks.
struct Counted {
    user: f64,
    copied: f64,
    overhead: f64,
    reads: f64,
    batches: f64,
    segments: u64,
    throttled: f64,
    /// Bytes of objects, and of the segments they are of.
    archived: f64,
    archived_images: f64,
}

impl Run {
    fn measured(&self, arguments: &Arguments, driven: &Driven, counted: &Counted) -> serde_json::Value {
        let mut latencies = self.latencies.borrow().clone();
        latencies.sort_unstable();
        let done = self.done.get() as f64;
        let rate = done / driven.seconds;
        serde_json::json!({
            "workload": format!("{:?}", arguments.workload).to_lowercase(),
            "pattern": format!("{:?}", arguments.pattern).to_lowercase(),
            "utilisation": arguments.utilisation,
            "depth": arguments.depth,
            "rate": arguments.rate,
            "store": arguments.store.is_some(),
            "store_shares_disk": arguments.shared_store().is_some(),
            "planning": !arguments.no_planning,
            "iops": rate.round(),
            "mb_s": rate * f64::from(arguments.workload.blocks()) * BLOCK_BYTES as f64 / 1e6,
            "p50_us": percentile(&latencies, 0.5),
            "p90_us": percentile(&latencies, 0.9),
            "p99_us": percentile(&latencies, 0.99),
            "p9999_us": percentile(&latencies, 0.9999),
            "max_us": percentile(&latencies, 1.0),
            "cpu_us": driven.cpu * 1e6 / done,
            "allocations": driven.allocations as f64 / done,
            "resident_mib": resident_kib() / 1024,
            "index_mib": self.places.blocks * 8 / (1 << 20),
            "throttled_s": counted.throttled,
        })
    }
}

impl Counted {
    /// What the disk would allow, see the head of the file.
    fn budget(&self, arguments: &Arguments, volume: &Superblock, rate: f64) -> serde_json::Value {
        let (machine, device) = start(arguments);
        let amplification = (self.user + self.copied) / self.user;
        let header = self.overhead / (self.user + self.copied);
        // Places of the segments that hold nothing: what a segment has left when it is sealed.
        let places = (self.segments * u64::from(arguments.segment_blocks)) as f64;
        let unused = (places - self.user - self.copied - self.overhead) / (self.user + self.copied);
        // The workload's own bytes in flight, as two writes; cleaning reads as long as they were, four groups in flight.
        let flight = arguments.depth as f64 * amplification * (1.0 + header);
        let batch = (flight / 2.0).round().max(1.0) as usize * BLOCK_BYTES;
        let read = (self.copied / self.reads.max(1.0)).round().max(1.0) as usize * BLOCK_BYTES;
        let flight = (self.copied / self.reads.max(1.0)).recip() * 32.0 * 4.0;
        let write_rate = bandwidth(&machine, &device, batch, 2, true);
        let read_rate = if self.copied > 0.0 {
            bandwidth(&machine, &device, read, flight.clamp(1.0, 128.0) as usize, false)
        } else {
            f64::INFINITY
        };
        let log_cost = amplification * (1.0 + header) / write_rate + (amplification - 1.0) / read_rate;
        let compressed = self.archived / self.archived_images.max(1.0);
        let store_rates = arguments.shared_store().map(|store| store_rates(store, volume, compressed));
        let store_cost = store_rates
            .map_or(0.0, |[put, get]| compressed * amplification * (1.0 + header + unused) * (1.0 / put + 1.0 / get));
        let budget = |cost: f64| 1.0 / cost / BLOCK_BYTES as f64;
        let (log_budget, budget) = (budget(log_cost), budget(log_cost + store_cost));
        serde_json::json!({
            "budget_iops": budget.round(),
            "of_budget": rate / budget,
            "of_log_budget": rate / log_budget,
            "amplification": amplification,
            "formula": formula(arguments.utilisation, header, header),
            "header_share": header,
            "unused_share": unused,
            "batch_bytes": ((self.user + self.copied) / self.batches + 1.0).round() * BLOCK_BYTES as f64,
            "measured_write_bytes": batch,
            "write_mb_s": write_rate / 1e6,
            "cleaning_read_bytes": read,
            "store_put_mb_s": store_rates.map(|[put, _]| put / 1e6),
            "store_get_mb_s": store_rates.map(|[_, get]| get / 1e6),
            "archived_of_logged": self.archived_images / (places * BLOCK_BYTES as f64).max(1.0),
            "read_mb_s": if read_rate.is_finite() { read_rate / 1e6 } else { 0.0 },
        })
    }
}
