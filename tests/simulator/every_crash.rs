//! Every short history of a tiny volume, and every crash of it that can be told apart.
//!
//! A history is a sequence of operations out of [`OPERATIONS`], each of which ends before the next begins. The disk is recorded; the power then goes
//! after each of its events, and any subset of what no flush covers has arrived, the last of it whole or torn. Each image that was not
//! seen before is opened and read: it must be the volume after some prefix of the writes, with everything that
//! was flushed (P1), and with everything acknowledged when everything has arrived. Some openings are recorded themselves, and crash too.
//!
//! `SALVOL_LENGTH` says how long histories are (2, all of them), `SALVOL_SAMPLE` of how many one is tried (4), `SALVOL_SEED` which ones.

use std::collections::HashSet;
use std::rc::Rc;
use std::sync::Arc;
use std::time::{Duration, Instant};

use super::common::*;
use salvol::archive::{MemoryStore, Mood, Store};
use salvol::format::{ArchiveAt, BLOCK_BYTES, Block};
use salvol::history::Source;
use salvol::io::simulated::{Dice, Ended, Event, SimulatedDisk, SimulatedPlatform};
use salvol::io::{Buffer, Platform};
use salvol::log::Archiving;
use salvol::volume::{OpenOptions, Operation, Request, Volume};

const TINY: Shape = Shape {
    segment_blocks: 16,
    working_set: 3,
    slots: 5,
    volume_blocks: 6,
    archive_at: ArchiveAt::Seal,
    backing: true,
};

/// Images that are remembered.
const SEEN_MAX: usize = 20_000_000;

/// Unflushed writes of which all subsets are tried; of more, a choice.
const ALL_SUBSETS: usize = 12;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Step {
    Write,
    Overwrite,
    Fua,
    Flush,
    Trim,
    WriteZeroes,
    Synch,
    FillSegment,
    Archive,
    Clean,
    Restore,
}

const OPERATIONS: [Step; 11] = [
    Step::Write,
    Step::Overwrite,
    Step::Fua,
    Step::Flush,
    Step::Trim,
    Step::WriteZeroes,
    Step::Synch,
    Step::FillSegment,
    Step::Archive,
    Step::Clean,
    Step::Restore,
];

type State = Vec<u64>;

/// A change of the volume, by the disk's events before which it was asked for and acknowledged.
#[derive(Debug, Clone)]
struct Change {
    state: State,
    issued: usize,
    acknowledged: usize,
}

/// What a history did.
struct Told {
    changes: Vec<Change>,
    /// So many changes must survive from this event on.
    durable: Vec<(usize, usize)>,
    events: Vec<(Event, u64)>,
    puts: Vec<(salvol::archive::ObjectName, Vec<u8>)>,
}

impl Told {
    /// The fewest and the most changes that an image may show of which the power went before event `at`.
    fn allowed(&self, at: usize) -> (usize, usize) {
        let least =
            self.durable.iter().filter(|(event, _)| *event <= at).map(|(_, changes)| *changes).max().unwrap_or(0);
        (least, self.changes.iter().filter(|change| change.issued <= at).count() - 1)
    }

    fn acknowledged(&self, at: usize) -> usize {
        self.changes.iter().filter(|change| change.acknowledged <= at).count()
    }

    /// The store as it was when it had taken so many objects. It takes no more.
    fn store(&self, puts: u64) -> Option<Arc<MemoryStore>> {
        let store = MemoryStore::new();
        self.puts[..puts as usize].iter().for_each(|(name, bytes)| store.put(name, bytes).unwrap());
        store.set_mood(Mood::ReadOnly);
        Some(Arc::new(store))
    }
}

/// A user who does one thing after the other.
struct User {
    platform: SimulatedPlatform,
    disk: SimulatedDisk,
    volume: SimVolume,
    stamp: u64,
    told: Told,
    store: Arc<MemoryStore>,
    /// The last synch point, and the volume then.
    point: Option<(u64, State)>,
}

impl User {
    fn state(&self) -> State {
        self.told.changes.last().unwrap().state.clone()
    }

    fn serve(&self, operation: Operation, block: u64, buffer: Buffer) {
        let (volume, empty) = (self.volume.clone(), buffer.is_empty());
        let blocks = u32::from(!empty || !matches!(operation, Operation::Flush));
        let request = Request { operation, block: Block(block), blocks, buffer };
        self.platform.block_on(async move { volume.serve(&request).await.unwrap() }).unwrap();
    }

    fn change(&mut self, operation: Operation, block: u64) {
        let is_write = matches!(operation, Operation::Write { .. });
        let issued = self.disk.events();
        let mut state = self.state();
        let buffer = if is_write {
            self.stamp += 1;
            let buffer = Buffer::new(BLOCK_BYTES).unwrap();
            buffer.copy_from(0, &bytes_of(block, self.stamp));
            buffer
        } else {
            Buffer::new(0).unwrap()
        };
        state[block as usize] = if is_write { self.stamp } else { 0 };
        // Known before it is done: the power may go in between.
        let change = Change { state, issued, acknowledged: usize::MAX };
        self.told.changes.push(change);
        self.serve(operation, block, buffer);
        self.told.changes.last_mut().unwrap().acknowledged = self.disk.events();
        if operation == (Operation::Write { fua: true }) {
            self.told.durable.push((self.disk.events(), self.told.changes.len() - 1));
        }
    }

    fn flushed(&mut self) {
        self.told.durable.push((self.disk.events(), self.told.changes.len() - 1));
    }

    fn fill(&mut self, segments: u64) {
        let until = self.volume.log().current_segment().0 + segments;
        while self.volume.log().current_segment().0 < until {
            self.change(Operation::Write { fua: false }, 3);
        }
    }

    /// The archive gives the last synch point as it was, if it has it yet.
    fn restore(&self) {
        let Some((point, state)) = &self.point else { return };
        let store = as_store(&Some(Arc::clone(&self.store)));
        let source = Source::open_store(TINY.superblock(), store.clone()).unwrap();
        if source.resolve(&format!("p{point}")).is_ok() {
            let blocks = (0..).zip(state.iter().copied()).filter(|(_, stamp)| *stamp != 0);
            store_has(store, &TINY, *point, &blocks.collect());
        }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Write => self.change(Operation::Write { fua: false }, 4),
            Step::Overwrite => self.change(Operation::Write { fua: false }, 0),
            Step::Fua => self.change(Operation::Write { fua: true }, 1),
            Step::Flush => {
                self.serve(Operation::Flush, 0, Buffer::new(0).unwrap());
                self.flushed();
            }
            Step::Trim => self.change(Operation::Discard, 0),
            Step::WriteZeroes => self.change(Operation::WriteZeroes { fua: false }, 1),
            Step::Synch => {
                let marker = self.volume.clone();
                let marked = async move { marker.synch("here".to_owned(), String::new()).await.unwrap() };
                self.point = Some((self.platform.block_on(marked).unwrap().point, self.state()));
                self.flushed();
            }
            Step::FillSegment => self.fill(1),
            Step::Archive => {
                let volume = self.volume.clone();
                assert_eq!(self.platform.run(|| volume.status().archive.queue == 0), Ended::Done);
            }
            Step::Clean => self.fill(u64::from(TINY.working_set)),
            Step::Restore => {
                let reader = self.volume.clone();
                let (found, failed) = self.platform.block_on(async move { read_each(&reader).await }).unwrap();
                assert!(failed.is_empty());
                assert_eq!(as_state(&found), self.state());
                self.restore();
            }
        }
    }
}

fn as_state(found: &std::collections::BTreeMap<u64, u64>) -> State {
    (0..TINY.volume_blocks).map(|block| found.get(&block).copied().unwrap_or(0)).collect()
}

fn archiving() -> OpenOptions {
    OpenOptions { archiving: Archiving { threads: 1, rate: None, interval: None }, ..OpenOptions::default() }
}

fn open_tiny(platform: &SimulatedPlatform, store: &Option<Arc<MemoryStore>>) -> SimVolume {
    let (machine, device, store) = (platform.clone(), platform.device(), as_store(store));
    let opening = async move { Volume::open(machine, device, store, archiving()).await };
    platform.block_on(opening).unwrap().unwrap_or_else(|error| panic!("{error}"))
}

/// A volume that has been used for a while: disk, store and state.
struct Base {
    disk: SimulatedDisk,
    store: Arc<MemoryStore>,
    state: State,
}

fn base() -> Base {
    let (disk, store) = (TINY.disk(), Arc::new(MemoryStore::new()));
    let mut user =
        user(SimulatedPlatform::new(1, disk.clone()), &disk, &store, vec![0; TINY.volume_blocks as usize], 0);
    (0..4).for_each(|block| user.change(Operation::Write { fua: false }, block));
    user.fill(7);
    user.step(Step::Archive);
    let state = user.state();
    let closing = user.volume.clone();
    user.platform.block_on(async move { closing.close().await.unwrap() }).unwrap();
    user.platform.clone().halt();
    disk.stop_machine();
    Base { disk, store, state }
}

fn user(platform: SimulatedPlatform, disk: &SimulatedDisk, store: &Arc<MemoryStore>, state: State, stamp: u64) -> User {
    let changes = vec![Change { state, issued: 0, acknowledged: 0 }];
    let told = Told { changes, durable: vec![(0, 0)], events: Vec::new(), puts: Vec::new() };
    let volume = open_tiny(&platform, &Some(Arc::clone(store)));
    User { platform, disk: disk.clone(), volume, stamp, told, store: Arc::clone(store), point: None }
}

/// Lives through the history, with its disk recorded from the opening on.
fn tell(base: &Base, steps: &[Step], seed: u64) -> Told {
    let disk = base.disk.fork();
    let store = Arc::new(MemoryStore::new());
    let mut puts = Vec::new();
    for name in base.store.puts() {
        let bytes = base.store.get(&name, 0..u64::MAX).unwrap();
        store.put(&name, &bytes).unwrap();
        puts.push((name, bytes));
    }
    let clock = Arc::clone(&store);
    disk.record(move || clock.puts().len() as u64);
    let platform = SimulatedPlatform::new(seed, disk.clone());
    let mut user = user(platform, &disk, &store, base.state.clone(), 1 << 20);
    steps.iter().for_each(|step| user.step(*step));
    // What an idle volume does.
    let clock = user.platform.clone();
    user.platform.block_on(async move { clock.sleep(Duration::from_millis(1200)).await }).unwrap();
    user.platform.clone().halt();
    let mut told = user.told;
    told.events = disk.take_events();
    for name in &store.puts()[puts.len()..] {
        puts.push((*name, store.get(name, 0..u64::MAX).unwrap()));
    }
    told.puts = puts;
    told
}

/// A write that no flush covers.
#[derive(Clone)]
struct Pending {
    number: u64,
    offset: u64,
    bytes: Rc<[u8]>,
    /// Flushes that had begun when it ended; none when it has not.
    ended: Option<u64>,
}

/// The power goes at each event: calls `judge` with every image that there may be, where in the events that is, and whether everything
/// has arrived.
fn crashes(
    base: &SimulatedDisk,
    events: &[(Event, u64)],
    dice: &mut Dice,
    mut judge: impl FnMut(&SimulatedDisk, usize, bool),
) {
    let (durable, mut pending, mut flushes) = (base.fork(), Vec::<Pending>::new(), 0);
    for (at, (event, _)) in events.iter().enumerate() {
        match event {
            Event::Write { number, offset, bytes } => {
                pending.push(Pending { number: *number, offset: *offset, bytes: bytes.clone(), ended: None });
            }
            Event::Written(number) => {
                let write = pending.iter_mut().find(|write| write.number == *number);
                write.unwrap().ended = Some(flushes);
            }
            // Nothing has arrived by that.
            Event::Flush(number) => {
                flushes = *number;
                continue;
            }
            Event::Flushed(number) => {
                let covered = |write: &Pending| write.ended.is_some_and(|after| after < *number);
                for write in pending.extract_if(.., |write| covered(write)) {
                    durable.poke(write.offset, &write.bytes);
                }
            }
        }
        for subset in subsets(pending.len(), dice) {
            let image = durable.fork();
            let kept: Vec<&Pending> =
                pending.iter().zip(&subset).filter_map(|(write, kept)| kept.then_some(write)).collect();
            let Some((last, before)) = kept.split_last() else {
                judge(&image, at + 1, pending.is_empty());
                continue;
            };
            before.iter().for_each(|write| image.poke(write.offset, &write.bytes));
            for torn in tears(last.bytes.len() / 512, dice) {
                let image = image.fork();
                for (rank, sector) in last.bytes.chunks(512).enumerate().filter(|(rank, _)| torn(*rank)) {
                    image.poke(last.offset + rank as u64 * 512, sector);
                }
                judge(&image, at + 1, false);
            }
            image.poke(last.offset, &last.bytes);
            judge(&image, at + 1, kept.len() == pending.len());
        }
    }
}

/// Which of so many writes arrive.
fn subsets(writes: usize, dice: &mut Dice) -> Vec<Vec<bool>> {
    if writes <= ALL_SUBSETS {
        return (0..1u32 << writes).map(|mask| (0..writes).map(|bit| mask >> bit & 1 == 1).collect()).collect();
    }
    let singles =
        (0..writes).flat_map(|one| [true, false].map(|kept| (0..writes).map(|w| (w == one) == kept).collect()));
    let random = (0..64).map(|_| (0..writes).map(|_| dice.percent(50)).collect::<Vec<bool>>());
    singles.chain(random.collect::<Vec<_>>()).chain([vec![true; writes], vec![false; writes]]).collect()
}

/// Ways in which a write of so many sectors is torn: its beginning, its end, any of it.
fn tears(sectors: usize, dice: &mut Dice) -> [Box<dyn Fn(usize) -> bool>; 3] {
    let cut = 1 + dice.below(sectors.max(2) as u64 - 1) as usize;
    let (mut any, seed) = (Dice::new(dice.bits()), dice.bits());
    let mask: Vec<bool> = (0..sectors).map(|_| any.percent(50)).collect();
    let other = 1 + (seed % (sectors.max(2) as u64 - 1)) as usize;
    [Box::new(move |rank| rank < cut), Box::new(move |rank| rank >= other), Box::new(move |rank| mask[rank])]
}

#[derive(Default)]
struct Sum {
    histories: u64,
    events: u64,
    images: u64,
    judged: u64,
    openings: u64,
}

/// Judges every crash of one history.
fn judge(base: &Base, steps: &[Step], seed: u64, seen: &mut HashSet<(u64, usize, usize, u64)>, sum: &mut Sum) {
    let told = tell(base, steps, seed);
    let mut dice = Dice::new(seed);
    let mut again = Dice::new(seed + 1);
    sum.histories += 1;
    sum.events += told.events.len() as u64;
    let mut stores: std::collections::HashMap<u64, Option<Arc<MemoryStore>>> = std::collections::HashMap::new();
    crashes(&base.disk, &told.events, &mut dice, |image, at, everything| {
        sum.images += 1;
        let (mut least, most) = told.allowed(at);
        if everything {
            least = told.acknowledged(at) - 1;
        }
        let puts = told.events[at - 1].1;
        if !seen.insert((image.fingerprint(), least, most, puts)) {
            return;
        }
        let store = stores.entry(puts).or_insert_with(|| told.store(puts)).clone();
        sum.judged += 1;
        let what = format!("{steps:?} seed {seed}: crash at event {at} of {}", told.events.len());
        // Of one opening in so many each crash is tried too.
        let recorded = again.below(64) == 0;
        let disk = image.fork();
        if recorded {
            disk.record(|| 0);
        }
        let allowed = &told.changes[least..=most];
        open_and_judge(&disk, &store, allowed, &what);
        if recorded {
            let events = disk.take_events();
            crashes(image, &events, &mut again.clone(), |image, at, _| {
                sum.images += 1;
                if seen.insert((image.fingerprint(), least, most, puts)) {
                    sum.judged += 1;
                    sum.openings += 1;
                    open_and_judge(
                        &image.fork(),
                        &store,
                        allowed,
                        &format!("{what}, and at event {at} of the next opening"),
                    );
                }
            });
        }
    });
}

fn open_and_judge(disk: &SimulatedDisk, store: &Option<Arc<MemoryStore>>, allowed: &[Change], what: &str) {
    let platform = SimulatedPlatform::new(3, disk.clone());
    let (machine, device, shelf) = (platform.clone(), platform.device(), as_store(store));
    let opened = platform.block_on(async move { Volume::open(machine, device, shelf, archiving()).await });
    let volume = opened.unwrap_or_else(|| panic!("{what}: stuck")).unwrap_or_else(|error| panic!("{what}: {error}"));
    let reader = volume.clone();
    let (found, failed) = platform.block_on(async move { read_each(&reader).await }).unwrap();
    assert!(failed.is_empty(), "{what}: {failed:?} cannot be read");
    let found = as_state(&found);
    assert!(allowed.iter().any(|change| change.state == found), "{what}: {found:?} is none of {allowed:#?}");
    drop(volume);
    platform.halt();
    disk.stop_machine();
}

fn number(name: &str, default: u64) -> u64 {
    std::env::var(name).map_or(default, |text| text.parse().unwrap())
}

#[test]
fn every_crash_of_every_short_history() {
    let (length, sample, seed) = (number("SALVOL_LENGTH", 2), number("SALVOL_SAMPLE", 4), number("SALVOL_SEED", 0));
    let (histories, started) = (11u64.pow(length as u32), Instant::now());
    // Neighbours have their beginnings in common, so what was seen is forgotten where there are too many to remember.
    let (base, mut seen, mut sum) = (base(), HashSet::new(), Sum::default());
    for history in 0..histories {
        if sample > 1 && Dice::new(seed ^ history).below(sample) > 0 {
            continue;
        }
        let digits = (0..length as u32).rev().map(|rank| history / 11u64.pow(rank) % 11);
        let steps: Vec<Step> = digits.map(|digit| OPERATIONS[digit as usize]).collect();
        judge(&base, &steps, seed + 7, &mut seen, &mut sum);
        if seen.len() > SEEN_MAX {
            seen.clear();
        }
    }
    println!(
        "{} histories of {length} operations, {} events, {} crash states, {} of them different and judged, {} of those behind a \
         crash while opening; {:.1} s",
        sum.histories,
        sum.events,
        sum.images,
        sum.judged,
        sum.openings,
        started.elapsed().as_secs_f64()
    );
    assert!(sum.judged > 1000);
}
