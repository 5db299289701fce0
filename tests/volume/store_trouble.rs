//! A store in trouble while writers go on: slow, away, full, read-only, another volume's, and well again.
//!
//! `SALVOL_SEED` is the first seed and `SALVOL_SEEDS` how many.

use std::cell::{Cell, RefCell};
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use super::common::*;
use salvol::archive::{MemoryStore, Mood, ObjectName, Store};
use salvol::format::{ArchiveAt, Block, SegmentNumber};
use salvol::io::simulated::{Dice, Ended, SimulatedDisk, SimulatedPlatform};
use salvol::io::{Buffer, Platform};
use salvol::log::{Archiving, Life, limits};
use salvol::volume::{OpenOptions, Operation, Request, Volume};

const SHAPE_OF_TROUBLE: Shape = Shape { slots: 30, ..SHAPE };

fn seeds() -> std::ops::Range<u64> {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let first = number("SALVOL_SEED").unwrap_or(0);
    first..first + number("SALVOL_SEEDS").unwrap_or(6)
}

/// The shape, the number of archivers and the store of a seed.
fn machine(seed: u64, rate: Option<u64>) -> (Shape, SimulatedPlatform, SimVolume, Arc<MemoryStore>, usize) {
    let archive_at = if seed.is_multiple_of(2) { ArchiveAt::Seal } else { ArchiveAt::Inactive };
    let threads = 1 + (seed / 2 % 3) as usize;
    let shape = Shape { archive_at, ..SHAPE_OF_TROUBLE };
    let platform = SimulatedPlatform::new(seed, shape.disk());
    let store = Arc::new(MemoryStore::new());
    let options =
        OpenOptions { archiving: Archiving { threads, rate, ..Archiving::default() }, ..OpenOptions::default() };
    let (machine, device, shelf) = (platform.clone(), platform.device(), Arc::clone(&store) as Arc<dyn Store>);
    let opened = platform.block_on(async move { Volume::open(machine, device, Some(shelf), options).await });
    (shape, platform, opened.unwrap().unwrap(), store, threads)
}

/// Looks ten times a second whether a segment counts as archived that is not in the store, and whether more segments are in memory
/// than there may be.
fn watch(platform: &SimulatedPlatform, volume: &SimVolume, store: &Arc<MemoryStore>, threads: usize) {
    let (platform, volume, store) = (platform.clone(), volume.clone(), Arc::clone(store));
    let sleeper = platform.clone();
    platform.spawn(async move {
        let mut known = SegmentNumber(0);
        loop {
            sleeper.sleep(Duration::from_millis(100)).await;
            let through = volume.log().archive_state(|archive| archive.through);
            if through > known {
                let put: BTreeSet<SegmentNumber> = store.puts().iter().map(|name| name.segment).collect();
                let mut all = known.0 + 1..=through.0;
                assert!(all.all(|segment| put.contains(&SegmentNumber(segment))), "{through} is not archived");
                known = through;
            }
            let (buffers, busy) = volume.log().look(|_, table| {
                let infos = || table.segments().map(|(_, info)| info);
                let buffers = infos().filter(|info| info.life != Life::Current && info.buffer.is_some()).count();
                (buffers, infos().filter(|info| info.archiving).count())
            });
            assert!(buffers <= limits::SEALED_BUFFERS, "{buffers} sealed segments are in memory");
            assert!(busy <= threads, "{busy} segments are with {threads} archivers");
        }
    });
}

/// Each segment was put once, and no more than the other archivers' before an older one.
fn check_order(store: &MemoryStore, threads: usize) {
    let puts: Vec<u64> = store.puts().iter().map(|name| name.segment.0).collect();
    let all: BTreeSet<u64> = puts.iter().copied().collect();
    assert_eq!(all.len(), puts.len(), "each is put once: {puts:?}");
    assert_eq!(all, (1..=puts.len() as u64).collect(), "none is left out");
    for (rank, segment) in puts.iter().enumerate() {
        let older = puts[rank + 1..].iter().filter(|later| *later < segment).count();
        assert!(older < threads, "segment {segment} went before {older} older ones: {puts:?}");
    }
}

/// Waits until everything sealed is archived.
fn archive_all(platform: &SimulatedPlatform, volume: &SimVolume) {
    let idle = volume.clone();
    assert_eq!(platform.run(|| idle.status().archive.queue == 0), Ended::Done, "{:#?}", volume.status());
}

/// What the writers got done while the store took so long for a segment.
#[derive(Debug)]
struct Spell {
    /// Time for a segment with one archiver, and between two with all of them.
    speed: Duration,
    pace: Duration,
    blocks: u64,
    longest: Duration,
    /// The longest time without a write that ended.
    gap: Duration,
}

/// Writers write for 30 s, and 30 s before, at each speed of the store.
fn slow_spells(seed: u64, speeds: &[Duration], writers: u64) -> (Vec<Spell>, Arc<MemoryStore>, usize) {
    let (_, platform, volume, store, threads) = machine(seed, None);
    watch(&platform, &volume, &store, threads);
    // Ends of writes with their latencies.
    let writes: Rc<RefCell<Vec<(Duration, Duration)>>> = Rc::default();
    let over = Rc::new(Cell::new(false));
    let left = Rc::new(Cell::new(writers));
    for number in 0..writers {
        let (volume, writes, over, left) = (volume.clone(), Rc::clone(&writes), Rc::clone(&over), Rc::clone(&left));
        let clock = platform.clone();
        platform.spawn(async move {
            let mut dice = Dice::new(seed * 100 + number);
            while !over.get() {
                let first = dice.below(volume.geometry().volume_blocks - 4);
                let before = clock.elapsed();
                put(&volume, first..first + 4, 1 + dice.below(1000)).await;
                let after = clock.elapsed();
                writes.borrow_mut().push((after, after - before));
                // A machine that makes something to write.
                clock.sleep(Duration::from_millis(20)).await;
            }
            left.set(left.get() - 1);
        });
    }
    let mut spells = Vec::new();
    for speed in speeds {
        platform.set_job_time(*speed);
        let sleeper = platform.clone();
        // The queue gets as long as it does at this speed.
        platform.block_on(async move { sleeper.sleep(Duration::from_secs(30)).await }).unwrap();
        writes.borrow_mut().clear();
        let (sleeper, from) = (platform.clone(), platform.elapsed());
        platform.block_on(async move { sleeper.sleep(Duration::from_secs(30)).await }).unwrap();
        let writes = writes.borrow();
        let ends = || writes.iter().map(|(end, _)| *end);
        let gap = [from].into_iter().chain(ends()).zip(ends().chain([platform.elapsed()])).map(|(a, b)| b - a).max();
        let longest = writes.iter().map(|(_, took)| *took).max();
        spells.push(Spell {
            speed: *speed,
            pace: *speed / threads as u32,
            blocks: writes.len() as u64 * 4,
            longest: longest.unwrap(),
            gap: gap.unwrap(),
        });
    }
    over.set(true);
    platform.set_job_time(Duration::ZERO);
    assert_eq!(platform.run(|| left.get() == 0), Ended::Done);
    archive_all(&platform, &volume);
    platform.halt();
    (spells, store, threads)
}

/// While the store is merely slow, writers get what it takes, and never stand still for as long as it takes for a segment.
/// No write waits longer than the store takes for one segment and five times what all writers want to write: a block takes
/// up to two and a half of log here, with copies and headers, and the last slots are given out at half of the store's speed.
#[test]
fn a_slow_store_slows_writers_down_smoothly() {
    for seed in seeds() {
        for writers in [4, 16] {
            let speeds = [200, 600, 2000].map(Duration::from_millis);
            let (spells, store, threads) = slow_spells(seed, &speeds, writers);
            let what = format!("seed {seed}, {writers} writers, {threads} archivers: {spells:#?}");
            println!("{what}");
            check_order(&store, threads);
            for spell in &spells {
                let wanted = writers as f64 * 4.0 / f64::from(SHAPE.segment_blocks);
                let bound = spell.speed.max(spell.pace.mul_f64(1.0 + 5.0 * wanted)) + Duration::from_millis(100);
                assert!(spell.longest < bound, "{bound:?}: {what}");
                assert!(spell.gap < spell.speed, "{what}");
            }
            for (faster, slower) in spells.iter().zip(&spells[1..]) {
                let share = |spell: &Spell| spell.blocks as f64 * spell.pace.as_secs_f64();
                assert!((0.6..1.6).contains(&(share(slower) / share(faster))), "{what}");
            }
        }
    }
}

/// Whatever the store's trouble, writers go on while there are slots, then wait; reads, flushes and synch points go on, and
/// when it is over everything is archived, in order, and nobody was told of a failure.
#[test]
fn a_store_in_trouble_fails_nobody_and_is_forgiven() {
    let troubles = [
        (Mood::Absent, "away"),
        (Mood::ReadOnly, "read-only"),
        (Mood::Full(0), "full"),
        (Mood::Wrong, "another volume"),
    ];
    for seed in seeds() {
        for (mood, word) in troubles.clone() {
            trouble(seed, mood, word);
        }
    }
}

async fn patiently<T>(platform: &SimulatedPlatform, what: &str, action: impl Future<Output = T>) -> T {
    let before = platform.elapsed();
    let value = action.await;
    let took = platform.elapsed() - before;
    assert!(took < Duration::from_secs(1), "{what} took {took:?} while writers wait");
    value
}

fn trouble(seed: u64, mood: Mood, word: &'static str) {
    let (_, platform, volume, store, threads) = machine(seed, None);
    watch(&platform, &volume, &store, threads);
    platform.set_job_time(Duration::from_millis(5));
    let model = Rc::new(Model::default());
    let seen = Rc::new(Cell::new(false));
    let (clock, observed, shelf, done) = (platform.clone(), volume.clone(), Arc::clone(&store), Rc::clone(&seen));
    platform.spawn(async move {
        let volume = observed;
        clock.sleep(Duration::from_millis(500)).await;
        let before = volume.counters_of_users();
        shelf.set_mood(mood);
        while volume.status().state != "waiting" {
            clock.sleep(Duration::from_millis(100)).await;
        }
        // What is left of the last segment fills up.
        clock.sleep(Duration::from_secs(60)).await;
        let stuck = volume.counters_of_users();
        assert!(stuck > before, "writers went on for a while");
        for block in 0..8 {
            patiently(&clock, "a read", get(&volume, block * 20)).await.unwrap();
        }
        let empty = Buffer::new(0).unwrap();
        let request = Request { operation: Operation::Flush, block: Block(0), blocks: 0, buffer: empty };
        patiently(&clock, "a flush", volume.serve(&request)).await.unwrap();
        patiently(&clock, "synch", volume.synch("while it waits".to_owned(), String::new())).await.unwrap();
        clock.sleep(Duration::from_secs(60)).await;
        assert_eq!(volume.counters_of_users(), stuck, "writers wait");
        let status = volume.status().archive;
        assert!(status.error.as_ref().unwrap().contains(word), "{status:?}");
        assert!(status.error_since.is_some() && status.error_seconds.unwrap() > 120.0, "{status:?}");
        assert!(status.queue > 0 && status.lag_seconds > 120.0 && status.threads == threads as u64, "{status:?}");
        shelf.set_mood(Mood::Well);
        done.set(true);
    });
    let mix = Mix { trims: 0, synchs: 0, ..Mix::default() };
    let ended = hammer(&platform, &volume, &model, seed, 6, 1200, mix);
    assert_eq!(ended, Ended::Done, "seed {seed} {word} {:#?}", volume.status());
    assert!(seen.get(), "seed {seed}: the users were done before the store was well again: they did not wait");
    let check = volume.clone();
    let found = platform.block_on(async move { read_all(&check).await.unwrap() }).unwrap();
    assert_eq!(found, model.state(), "seed {seed} {word}");
    archive_all(&platform, &volume);
    let status = volume.status().archive;
    assert_eq!((status.error, status.error_since, status.error_seconds), (None, None, None));
    check_order(&store, threads);
    platform.halt();
}

trait Written {
    fn counters_of_users(&self) -> u64;
}

impl Written for SimVolume {
    fn counters_of_users(&self) -> u64 {
        self.log().counters().user_blocks
    }
}

/// Segments that are all live leave no room in the one that takes their copies: when that is the last one for which there is a
/// slot, the header that says which slots are free must fit all the same. (Writers once waited for ever, with every segment
/// archived: copies left the room to the header, and the header to the copies.)
#[test]
fn segments_that_are_all_live_stop_no_writer() {
    let waits: Vec<bool> = seeds().step_by(3).flat_map(DenseDays::live).collect();
    let marked = waits.iter().filter(|marked| **marked).count();
    assert!(marked * 10 > waits.len() * 9, "synch events found room in {marked} of {} waits", waits.len());
}

/// A volume whose segments are all live, or nearly, and that waits for its store again and again.
struct DenseDays {
    dice: Dice,
    shape: Shape,
    disk: SimulatedDisk,
    store: Option<Arc<MemoryStore>>,
}

impl DenseDays {
    /// Ten days; whether a synch event found room each time that writers waited.
    fn live(seed: u64) -> Vec<bool> {
        let mut dice = Dice::new(seed);
        let (working_set, segment_blocks) = (6 + dice.below(4) as u32, [64, 256][(seed % 2) as usize]);
        let slots = working_set + 3 + dice.below(4) as u32;
        let volume_blocks = u64::from(working_set * segment_blocks) * (50 + dice.below(25)) / 100;
        let shape = Shape { segment_blocks, working_set, slots, volume_blocks, ..SHAPE };
        let mut days = Self { dice, shape, disk: shape.disk(), store: store_of(&shape) };
        (0..10).map(|day| days.day(&format!("seed {seed} day {day}"))).collect()
    }

    fn set_mood(&self, mood: Mood) {
        self.store.as_ref().unwrap().set_mood(mood);
    }

    fn machine(&mut self) -> SimulatedPlatform {
        let platform = SimulatedPlatform::new(self.dice.bits(), self.disk.clone());
        platform.set_job_time(Duration::from_millis(self.dice.below(20)));
        platform
    }

    /// Writes without end, whole segments together, and now and then something that shifts what comes after. Counts blocks.
    fn write(&mut self, platform: &SimulatedPlatform, volume: &SimVolume) -> Rc<Cell<u64>> {
        let written = Rc::new(Cell::new(0));
        let (size, volume_blocks) = (u64::from(self.shape.segment_blocks) * 2, self.shape.volume_blocks);
        let (writer, sum, mut dice) = (volume.clone(), Rc::clone(&written), Dice::new(self.dice.bits()));
        platform.spawn(async move {
            loop {
                let first = dice.below(volume_blocks / size + 1) * size % volume_blocks;
                let blocks = if dice.percent(3) { 1 + dice.below(3) } else { size };
                let end = (first + blocks).min(volume_blocks);
                put(&writer, first..end, 1 + sum.get()).await;
                sum.set(sum.get() + end - first);
            }
        });
        written
    }

    fn day(&mut self, when: &str) -> bool {
        self.set_mood(Mood::Absent);
        for _ in 0..self.dice.below(4) {
            self.crash(when);
        }
        self.set_mood(Mood::Well);
        let platform = self.machine();
        let volume = open(&platform, &self.store).unwrap().unwrap();
        let written = self.write(&platform, &volume);
        let turn = u64::from(self.shape.slots * self.shape.segment_blocks);
        let go_on = |blocks: u64| {
            let goal = written.get() + blocks;
            let ended = platform.run(|| written.get() >= goal);
            assert_eq!(ended, Ended::Done, "{when}: {:#?}", volume.status());
        };
        go_on(turn / 2 + self.dice.below(turn));
        self.set_mood(Mood::Absent);
        let waits = volume.clone();
        pass_until(&platform, move || waits.status().state == "waiting");
        pass(&platform, 10);
        let marked = self.mark(&platform, &volume, when);
        if self.dice.percent(70) {
            self.set_mood(Mood::Well);
            go_on(turn);
        }
        platform.halt();
        self.disk.stop_machine();
        marked
    }

    /// A life without the store that ends at any I/O, or a while after nothing happens any more.
    fn crash(&mut self, when: &str) {
        let platform = self.machine();
        let ios = 1 + self.dice.below(80);
        platform.crash_after(ios);
        match open(&platform, &self.store) {
            Some(opened) => {
                self.write(&platform, &opened.unwrap());
                let until = platform.elapsed() + Duration::from_secs(20);
                let clock = platform.clone();
                platform.run(move || clock.elapsed() > until);
            }
            None => assert!(platform.device_ios() >= ios, "{when}: opening does not end"),
        }
        platform.halt();
        self.disk.lose_power(&mut self.dice);
    }

    /// Whether a synch event finds room. It does, unless copies fill the last segment.
    fn mark(&self, platform: &SimulatedPlatform, volume: &SimVolume, when: &str) -> bool {
        let marked = Rc::new(Cell::new(false));
        let (marker, done) = (volume.clone(), Rc::clone(&marked));
        platform.spawn(async move { done.set(marker.synch("while it waits".to_owned(), String::new()).await.is_ok()) });
        pass(platform, 1);
        let current =
            |table: &salvol::log::Table| table.segments().find(|(_, info)| info.life == Life::Current).unwrap().1.live;
        let live = volume.log().look(|_, table| current(table));
        let full = live >= self.shape.segment_blocks - self.shape.segment_blocks / 8;
        assert!(marked.get() || full, "{when}: {live} live, {:#?}", volume.status());
        marked.get()
    }
}

/// The store is given no more bytes than the rate allows, and segments go one by one.
#[test]
fn the_rate_is_kept() {
    for seed in seeds() {
        let rate = 200_000;
        let (_, platform, volume, store, threads) = machine(seed, Some(rate));
        watch(&platform, &volume, &store, threads);
        let started = platform.elapsed();
        let model = Rc::new(Model::default());
        assert_eq!(hammer(&platform, &volume, &model, seed, 4, 1000, Mix::default()), Ended::Done, "seed {seed}");
        archive_all(&platform, &volume);
        let (put, took) = (volume.status().bytes_archived, (platform.elapsed() - started).as_secs_f64());
        // The first objects of each archiver go before anything is known of their size.
        let first = threads as u64 * volume.geometry().segment_bytes() as u64;
        assert!(put.saturating_sub(first) as f64 <= took * rate as f64, "seed {seed}: {put} bytes in {took} s");
        assert_eq!(volume.status().archive.rate_limit, Some(rate));
        check_order(&store, threads);
        platform.halt();
    }
}

/// An object that lies on bad sectors is damaged, and is put again. (Writers once waited for ever, because the archiver took
/// it for a store that fails now.)
#[test]
fn one_bad_sector_in_the_store_stops_no_writer() {
    for segment in [1, 3] {
        let store = Arc::new(WornStore::default());
        let platform = SimulatedPlatform::new(1, SHAPE.disk());
        let volume = open_worn(&platform, &store);
        let history = SHAPE.superblock().history;
        let bad = ObjectName { history, segment: SegmentNumber(segment), epoch: 1, part: 0 };
        *store.bad.lock().unwrap() = Some(bad);
        let done = Rc::new(Cell::new(false));
        let (churning, told) = (volume.clone(), Rc::clone(&done));
        platform.spawn(async move {
            churn(&churning, 20).await;
            told.set(true);
        });
        pass(&platform, 600);
        assert!(done.get(), "writers wait for ever: {:?}", volume.status().archive.error);
        assert!(store.length(&bad).is_ok() && store.bad.lock().unwrap().is_none(), "it was put again");
        platform.halt();
    }
}

/// The same with a part that a daemon which died has left, before and after the store was compared.
#[test]
fn one_bad_sector_under_a_part_costs_the_part() {
    let (disk, store) = (SHAPE.disk(), Arc::new(WornStore::default()));
    for life in 0..3 {
        let platform = SimulatedPlatform::new(life, disk.clone());
        let volume = open_worn(&platform, &store);
        let (writing, reading) = (volume.clone(), volume.clone());
        platform.block_on(async move { put(&writing, 0..4, life + 1).await }).unwrap();
        pass(&platform, 60);
        assert_eq!(reading.status().archive.error, None);
        assert_eq!(volume.log().archived_position(), volume.log().last_change());
        assert!(store.bad.lock().unwrap().is_none(), "it was put again");
        let newest = store.list().unwrap().into_iter().rfind(|(name, _)| name.part > 0);
        *store.bad.lock().unwrap() = newest.map(|(name, _)| name);
        platform.halt();
        disk.stop_machine();
    }
}

/// A disk that reads nothing at all says nothing about the objects on it: none is deleted.
#[test]
fn a_store_that_reads_nothing_keeps_what_it_has() {
    let (disk, store) = (SHAPE.disk(), Arc::new(WornStore::default()));
    let platform = SimulatedPlatform::new(1, disk);
    let volume = open_worn(&platform, &store);
    let churning = volume.clone();
    platform.block_on(async move { churn(&churning, 4).await }).unwrap();
    pass(&platform, 60);
    store.no_read.store(true, Ordering::Relaxed);
    let before = store.list().unwrap();
    let churning = volume.clone();
    platform.block_on(async move { churn(&churning, 3).await }).unwrap();
    pass(&platform, 600);
    let after = store.list().unwrap();
    assert!(after.len() > before.len() && before.iter().all(|object| after.contains(object)), "{before:?} {after:?}");
    assert!(volume.status().archive.error.is_some());
    store.no_read.store(false, Ordering::Relaxed);
    pass(&platform, 60);
    assert_eq!(volume.status().archive.error, None);
}

/// Lets `seconds` pass.
fn pass_until(platform: &SimulatedPlatform, is_so: impl Fn() -> bool + 'static) {
    let clock = platform.clone();
    let wait = async move {
        while !is_so() {
            clock.sleep(Duration::from_millis(100)).await;
        }
    };
    platform.block_on(wait).unwrap();
}

fn pass(platform: &SimulatedPlatform, seconds: u64) {
    let sleeper = platform.clone();
    platform.block_on(async move { sleeper.sleep(Duration::from_secs(seconds)).await }).unwrap();
}

/// Takes from the store what an older copy of it does not have: everything behind segment `last`.
fn grow_older(store: &MemoryStore, last: u64) {
    for (name, _) in store.list().unwrap().into_iter().filter(|(name, _)| name.segment.0 > last) {
        store.delete(&name).unwrap();
    }
}

fn has(store: &MemoryStore, mut segments: std::ops::RangeInclusive<u64>) -> bool {
    let names = store.list().unwrap();
    segments.all(|segment| names.iter().any(|(name, _)| name.part == 0 && name.segment.0 == segment))
}

fn churned(platform: &SimulatedPlatform, volume: &SimVolume, segments: u64) {
    let volume = volume.clone();
    platform.block_on(async move { churn(&volume, segments).await }).unwrap();
}

/// The store was away, and an older copy of it comes back: a disk of a rotation, a share that was restored. What it lacks and
/// the primary has is archived again before its slot is used. (The slots once were, and the segments were nowhere.)
#[test]
fn an_older_copy_of_the_store_gets_what_it_lacks() {
    for kept in [0, 2, 5] {
        let (disk, store) = (SHAPE.disk(), store_of(&SHAPE));
        let memory = store.clone().unwrap();
        let platform = SimulatedPlatform::new(1, disk);
        let volume = open(&platform, &store).unwrap().unwrap();
        churned(&platform, &volume, 6);
        pass(&platform, 30);
        assert!(has(&memory, 1..=6));
        memory.set_error(Some("away".to_owned()));
        churned(&platform, &volume, 1);
        pass(&platform, 30);
        memory.set_error(None);
        grow_older(&memory, kept);
        churned(&platform, &volume, 20);
        pass(&platform, 60);
        assert!(has(&memory, 1..=26), "{kept}: {:?}", memory.list());
        let status = volume.status().archive;
        assert_eq!((status.error, status.exposed_seconds), (None, 0.0));
        assert_eq!(volume.log().archived_position(), volume.log().last_change());
        platform.halt();
    }
}

/// The same while the volume is detached, or crashed. With the last archived the headers say that everything is.
#[test]
fn an_older_copy_of_the_store_is_noticed_at_attach() {
    for (closes, away, kept) in [(true, false, 2), (false, false, 2), (true, true, 3), (false, true, 0)] {
        let (disk, store) = (SHAPE.disk(), store_of(&SHAPE));
        let memory = store.clone().unwrap();
        let platform = SimulatedPlatform::new(1, disk.clone());
        let volume = open(&platform, &store).unwrap().unwrap();
        churned(&platform, &volume, 6);
        pass(&platform, 30);
        if closes {
            let closing = volume.clone();
            platform.block_on(async move { closing.close().await.unwrap() }).unwrap();
        }
        platform.halt();
        disk.stop_machine();
        grow_older(&memory, kept);
        memory.set_error(away.then(|| "away".to_owned()));
        let platform = SimulatedPlatform::new(2, disk.clone());
        let volume = open(&platform, &store).unwrap().unwrap();
        if away {
            churned(&platform, &volume, 1);
            pass(&platform, 30);
            memory.set_error(None);
        }
        churned(&platform, &volume, 20);
        pass(&platform, 60);
        assert!(has(&memory, 1..=26), "{closes} {away} {kept}: {:?}", memory.list());
        assert_eq!(volume.status().archive.error, None);
        platform.halt();
    }
}

/// Segments that have left the working set, so that their slots were free, are taken up again while they are whole; and a
/// daemon that dies while it archives again does not believe the older headers at the next attach, nor does it need the store.
#[test]
fn what_an_older_copy_lacks_is_not_forgotten_by_a_crash() {
    let (disk, store) = (SHAPE.disk(), store_of(&SHAPE));
    let memory = store.clone().unwrap();
    let platform = SimulatedPlatform::new(1, disk.clone());
    let volume = open(&platform, &store).unwrap().unwrap();
    churned(&platform, &volume, 20);
    pass(&platform, 30);
    platform.halt();
    disk.stop_machine();
    grow_older(&memory, 14);
    memory.set_mood(Mood::ReadOnly);
    let platform = SimulatedPlatform::new(2, disk.clone());
    let volume = open(&platform, &store).unwrap().unwrap();
    assert_eq!(volume.log().archive_state(|archive| archive.through), SegmentNumber(14));
    let writing = volume.clone();
    platform.block_on(async move { put(&writing, 0..4, 1).await }).unwrap();
    pass(&platform, 30);
    platform.halt();
    disk.stop_machine();
    memory.set_mood(Mood::Absent);
    let platform = SimulatedPlatform::new(3, disk);
    let volume = open(&platform, &store).unwrap().unwrap();
    assert_eq!(volume.log().archive_state(|archive| archive.through), SegmentNumber(14));
    memory.set_mood(Mood::Well);
    churned(&platform, &volume, 20);
    pass(&platform, 60);
    assert!(has(&memory, 1..=40), "{:?}", memory.list());
}
