//! The engine in process, without a kernel driver: 4 KiB random overwrites on a real file with O_DIRECT.
//!
//! `scripts/bench` runs this beside fio on the same file and puts both in a table; alone:
//! `cargo bench --bench engine -- --primary FILE --utilisation 0.5 --depth 32`.
//!
//! The budget of a log on a half-duplex device: 1/X = A(1+h)/B_w + (A−1)/B_r, with the bandwidths measured on the same
//! file at the workload's own sizes and bytes in flight.
#![allow(clippy::unwrap_used, reason = "a measurement that fails should say where")]

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use clap::Parser;
use salvol::archive::{DirectoryStore, Store};
use salvol::format::*;
use salvol::io::simulated::Dice;
use salvol::io::{Buffer, Device, OwnRing, Platform, Primary, UringDevice, UringPlatform};
use salvol::log::Counters;
use salvol::volume::{OpenOptions, Operation, Request, Volume};

type Machine = UringPlatform<OwnRing>;

#[derive(Parser, Clone)]
#[command(args_override_self = true)]
struct Arguments {
    /// The file to use; made, and written through, when it is missing or too small.
    #[arg(long)]
    primary: PathBuf,
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
    /// Turns of the log before measuring.
    #[arg(long, default_value_t = 2.0)]
    turns: f64,
    /// `uniform`, or `90/10`: nine writes of ten go to a tenth of the blocks.
    #[arg(long, default_value = "uniform")]
    pattern: String,
    /// Fill once in order, then overwrite one block in a hundred, and report the longest wait.
    #[arg(long)]
    cold: bool,
    /// Archive to this directory.
    #[arg(long)]
    store: Option<PathBuf>,
    /// Copy nothing ahead of need.
    #[arg(long)]
    no_planning: bool,
    #[arg(long, hide = true)]
    bench: bool,
}

/// Where the next write goes.
#[derive(Clone, Copy)]
enum Pattern {
    Uniform,
    Skewed,
    Cold,
}

impl Pattern {
    fn block(self, dice: &mut Dice, blocks: u64) -> u64 {
        match self {
            Self::Uniform => dice.below(blocks),
            Self::Skewed if dice.percent(90) => dice.below(blocks / 10),
            Self::Skewed => blocks / 10 + dice.below(blocks - blocks / 10),
            Self::Cold => dice.below(blocks / 100),
        }
    }
}

struct Run {
    volume: Volume<Machine>,
    machine: Machine,
    blocks: u64,
    stop: Cell<bool>,
    /// Writes still to do, when counted.
    budget: Cell<u64>,
    done: Cell<u64>,
    latencies: std::cell::RefCell<Vec<u32>>,
}

async fn writer(run: Rc<Run>, mut dice: Dice, pattern: Pattern, left: Rc<Cell<usize>>) {
    let buffer = Buffer::new(BLOCK_BYTES).unwrap();
    // Half compressible, as a database's pages are.
    buffer.write(|bytes| bytes[..2048].fill_with(|| dice.bits() as u8));
    let mut request =
        Request { operation: Operation::Write { fua: false }, block: Block(0), blocks: 1, buffer: buffer.clone() };
    while !run.stop.get() && run.budget.get() > 0 {
        run.budget.set(run.budget.get() - 1);
        request.block = Block(pattern.block(&mut dice, run.blocks));
        let stamp = dice.bits().to_le_bytes();
        buffer.copy_from(0, &stamp);
        let start = Instant::now();
        run.volume.serve(&request).await.unwrap();
        run.latencies.borrow_mut().push(start.elapsed().as_micros().min(u128::from(u32::MAX)) as u32);
        run.done.set(run.done.get() + 1);
    }
    left.set(left.get() - 1);
}

/// Runs `depth` writers until `seconds` are over or `writes` are done; returns writes a second.
fn drive(run: &Rc<Run>, depth: usize, pattern: Pattern, seconds: Option<u64>, writes: u64) -> f64 {
    run.stop.set(false);
    run.budget.set(writes);
    run.done.set(0);
    run.latencies.borrow_mut().clear();
    let left = Rc::new(Cell::new(depth));
    for number in 0..depth {
        run.machine.spawn(writer(Rc::clone(run), Dice::new(number as u64 + 1), pattern, Rc::clone(&left)));
    }
    let start = Instant::now();
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
    run.done.get() as f64 / start.elapsed().as_secs_f64()
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
    let slots = arguments.working_set + arguments.spare;
    let primary_blocks = u64::from(FIRST_SLOT_BLOCK) + u64::from(slots) * u64::from(arguments.segment_blocks) + 1;
    let places = f64::from(arguments.working_set) * f64::from(arguments.segment_blocks);
    let volume_blocks = (places * arguments.utilisation) as u64;
    prepare(&arguments.primary, primary_blocks * BLOCK_BYTES as u64);
    let machine = UringPlatform::new(OwnRing::new(1024).unwrap(), 2).unwrap();
    let device = UringDevice::new(machine.clone(), Primary::own(&arguments.primary, Duration::ZERO).unwrap());
    let block = superblock(&arguments, primary_blocks, volume_blocks);
    block.geometry.check().unwrap();
    let bytes = Buffer::new(BLOCK_BYTES).unwrap();
    bytes.copy_from(0, &block.encode());
    let (first, copy, at) = (device.clone(), device.clone(), block.geometry.copy_at());
    let both = bytes.clone();
    machine
        .block_on(async move {
            first.write(0, both.clone()).await.unwrap();
            copy.write(at, both).await.unwrap();
        })
        .unwrap();
    let store =
        arguments.store.as_ref().map(|path| Arc::new(DirectoryStore::create(path, &block).unwrap()) as Arc<dyn Store>);
    let (opener, opened) = (machine.clone(), device.clone());
    let volume = machine
        .block_on(async move { Volume::open(opener, opened, store, OpenOptions::default()).await.unwrap() })
        .unwrap();
    volume.log().set_planning(!arguments.no_planning);
    let run = Rc::new(Run {
        volume: volume.clone(),
        machine: machine.clone(),
        blocks: volume_blocks,
        stop: Cell::new(false),
        budget: Cell::new(0),
        done: Cell::new(0),
        latencies: std::cell::RefCell::default(),
    });
    fill(&run);
    let pattern = match (arguments.cold, arguments.pattern.as_str()) {
        (true, _) => Pattern::Cold,
        (false, "90/10") => Pattern::Skewed,
        _ => Pattern::Uniform,
    };
    if !arguments.cold {
        drive(&run, arguments.depth, pattern, None, (places * arguments.turns) as u64);
    }
    let first = volume.log().current_segment();
    let before = volume.log().counters();
    let rate = drive(&run, arguments.depth, pattern, Some(arguments.seconds), u64::MAX);
    let after = volume.log().counters();
    let segments = volume.log().current_segment().0 - first.0;
    report(&arguments, &run, &device, rate, before, after, segments);
    let closing = volume.clone();
    machine.block_on(async move { closing.close().await.unwrap() }).unwrap();
}

/// Writes every block once, in order, in requests of 256 KiB.
fn fill(run: &Rc<Run>) {
    let filler = Rc::clone(run);
    run.machine
        .block_on(async move {
            let buffer = Buffer::new(64 * BLOCK_BYTES).unwrap();
            let mut dice = Dice::new(7);
            let mut at = 0;
            while at < filler.blocks {
                let count = 64.min(filler.blocks - at) as u32;
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

fn report(
    arguments: &Arguments,
    run: &Run,
    device: &UringDevice<OwnRing>,
    rate: f64,
    before: Counters,
    after: Counters,
    segments: u64,
) {
    let user = (after.user_blocks - before.user_blocks) as f64;
    let copied = (after.copied_blocks - before.copied_blocks) as f64;
    let overhead = (after.overhead_blocks - before.overhead_blocks) as f64;
    let reads = (after.cleaning_reads - before.cleaning_reads) as f64;
    let batches = (after.batches - before.batches) as f64;
    let amplification = (user + copied) / user;
    let header = overhead / (user + copied);
    // Places of the segments that hold nothing: what a segment has left when it is sealed.
    let places = (segments * u64::from(arguments.segment_blocks)) as f64;
    let unused = (places - user - copied - overhead) / (user + copied);
    let expected = formula(arguments.utilisation, header, header);
    // The workload's own bytes in flight, as two writes; cleaning reads as long as they were, four groups in flight.
    let flight = arguments.depth as f64 * amplification * (1.0 + header);
    let batch = (flight / 2.0).round().max(1.0) as usize * BLOCK_BYTES;
    let read = (copied / reads.max(1.0)).round().max(1.0) as usize * BLOCK_BYTES;
    let flight = (copied / reads.max(1.0)).recip() * 32.0 * 4.0;
    let write_rate = bandwidth(&run.machine, device, batch, 2, true);
    let read_rate = if copied > 0.0 {
        bandwidth(&run.machine, device, read, flight.clamp(1.0, 128.0) as usize, false)
    } else {
        f64::INFINITY
    };
    let cost = amplification * (1.0 + header) / write_rate + (amplification - 1.0) / read_rate;
    let budget = 1.0 / cost / BLOCK_BYTES as f64;
    let mut latencies = run.latencies.borrow().clone();
    latencies.sort_unstable();
    let line = serde_json::json!({
        "pattern": if arguments.cold { "cold 1 %" } else { &arguments.pattern },
        "utilisation": arguments.utilisation,
        "depth": arguments.depth,
        "store": arguments.store.is_some(),
        "planning": !arguments.no_planning,
        "iops": rate.round(),
        "budget_iops": budget.round(),
        "of_budget": rate / budget,
        "amplification": amplification,
        "formula": expected,
        "header_share": header,
        "unused_share": unused,
        "batch_bytes": ((user + copied) / batches + 1.0).round() * BLOCK_BYTES as f64,
        "measured_write_bytes": batch,
        "write_mb_s": write_rate / 1e6,
        "cleaning_read_bytes": read,
        "read_mb_s": if read_rate.is_finite() { read_rate / 1e6 } else { 0.0 },
        "p50_us": percentile(&latencies, 0.5),
        "p90_us": percentile(&latencies, 0.9),
        "p99_us": percentile(&latencies, 0.99),
        "p9999_us": percentile(&latencies, 0.9999),
        "max_us": percentile(&latencies, 1.0),
        "resident_mib": resident_kib() / 1024,
        "index_mib": run.blocks * 8 / (1 << 20),
        "throttled_s": after.throttled.as_secs_f64() - before.throttled.as_secs_f64(),
    });
    println!("{line}");
}
