//! A history: a volume of a random shape lives a few lives, each of which ends by a close, a kill or a power cut, at any I/O, while opening too.
//!
//! There are three kinds. Whatever the store does, none of them may lose to it.
//!
//! - **Honest**: the disk does what disks promise. P1 in full: everything that was flushed is there, everything
//!   acknowledged when only the daemon died, and always a prefix. Nobody is ever told of an error, and every synch point that was
//!   acknowledged stays what it was.
//! - **Failing**: reads, writes and flushes fail, and say so. The same; but users may be told of errors, and the log may stop until the next life.
//! - **Lying**: writes are dropped, misdirected, duplicated or have flipped bits, reads give flipped bits, and between two lives
//!   something rots. What is read is right or an error. An opening may be refused; where the refusal names a position to go on from, it is accepted.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::rc::Rc;
use std::sync::Arc;
use std::time::Duration;

use salvol::archive::{Mood, Store};
use salvol::format::{ArchiveAt, Position};
use salvol::io::Platform;
use salvol::io::simulated::{Dice, Ended, Faults, SimulatedDisk, SimulatedPlatform};
use salvol::log::Archiving;
use salvol::volume::{OpenError, OpenOptions, RequestError, Volume};

use super::common::*;
use super::coverage::Coverage;
use super::judges;
use super::store::{Trouble, UnreliableStore, never_ahead_of};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    Honest,
    Failing,
    Lying,
}

/// Lives through the history of `seed`. A number for all that was done to disk and store.
pub fn live(seed: u64, met: &mut Coverage) -> u64 {
    let mut history = History::new(seed, met);
    let lives = 1 + history.dice.below(4);
    history.say(|| history.what());
    // What a disk that lies has made durable nobody knows.
    never_ahead_of((history.kind != Kind::Lying).then(|| (history.disk.clone(), history.shape.superblock())));
    for life in 0..lives {
        if history.life(life).is_none() {
            break;
        }
    }
    never_ahead_of(None);
    history.end();
    let store = history.store.as_ref().map_or(0, |store| store.trace());
    history.disk.trace() ^ store.rotate_left(17)
}

struct History<'a> {
    seed: u64,
    kind: Kind,
    dice: Dice,
    shape: Shape,
    disk: SimulatedDisk,
    store: Option<Arc<UnreliableStore>>,
    archiving: Archiving,
    model: Rc<Model>,
    /// Where rollbacks went, and the volume then. A loss that is accepted may leave one unfinished that was finished.
    rollbacks: BTreeMap<Position, BTreeMap<u64, u64>>,
    /// Segments since the volume was made.
    segments: u64,
    /// Whether something at rest was damaged.
    rotted: bool,
    /// Labels of synch events that were under way when a machine ended.
    in_flight: Vec<String>,
    met: &'a mut Coverage,
}

/// How a life ended.
enum End {
    Closed,
    Killed,
    PowerCut,
}

fn a_shape(dice: &mut Dice) -> Shape {
    let segment_blocks = dice.pick(&[16, 24, 32, 64]);
    let working_set = 3 + dice.below(6) as u32;
    // What headers, a summary and the reserve leave, and room for the cleaner.
    let usable = u64::from((segment_blocks - 8) * (working_set - 1));
    let fill = 15 + dice.below(45);
    Shape {
        segment_blocks,
        working_set,
        slots: working_set + 2 + dice.below(6) as u32,
        volume_blocks: (usable * fill / 100).max(4),
        archive_at: dice.pick(&[ArchiveAt::Seal, ArchiveAt::Inactive]),
        backing: dice.percent(85),
    }
}

impl<'a> History<'a> {
    fn new(seed: u64, met: &'a mut Coverage) -> Self {
        let mut dice = Dice::new(seed);
        let kind = [Kind::Honest, Kind::Honest, Kind::Failing, Kind::Lying][(seed % 4) as usize];
        let shape = a_shape(&mut dice);
        let interval = dice.percent(40).then(|| Duration::from_millis(1 + dice.below(300)));
        let archiving = Archiving { threads: 1 + dice.below(3) as usize, rate: None, interval };
        Self {
            seed,
            kind,
            shape,
            disk: shape.disk(),
            store: shape.backing.then(|| Arc::new(UnreliableStore::new(dice.bits()))),
            archiving,
            model: Rc::default(),
            rollbacks: BTreeMap::new(),
            segments: 0,
            rotted: false,
            in_flight: Vec::new(),
            met,
            dice,
        }
    }

    fn what(&self) -> String {
        format!("seed {} {:?} {:?} {:?}", self.seed, self.kind, self.shape, self.archiving)
    }

    /// What may go wrong in the next life.
    fn set_faults(&mut self) {
        let dice = &mut self.dice;
        let mut faults = Faults { garbage: dice.percent(30), ..Faults::default() };
        let mut some = |rates: &[u64]| if dice.percent(50) { dice.pick(rates) } else { 0 };
        faults.stalls = some(&[10, 100]);
        if self.kind != Kind::Honest {
            faults.read_errors = some(&[20, 200, 2000]);
        }
        if self.kind == Kind::Failing {
            faults.write_errors = some(&[10, 50]);
            faults.flush_errors = some(&[50, 300]);
        }
        if self.kind == Kind::Lying {
            faults.read_flips = some(&[20, 200]);
            faults.flips = some(&[20, 100]);
            faults.misdirected = some(&[20, 100]);
            faults.duplicated = some(&[20, 100]);
            faults.dropped = some(&[20, 100]);
        }
        self.disk.set_faults(faults);
        let Some(store) = &self.store else { return };
        let trouble = Trouble {
            fails: some(&[5, 30, 100]),
            fails_late: some(&[20, 100]),
            spoils: some(&[20, 200]),
            flips: some(&[5, 50]),
        };
        store.set_trouble(trouble);
    }

    /// Nothing goes wrong from now on.
    fn heal(&mut self) {
        self.disk.set_faults(Faults::default());
        if let Some(store) = &self.store {
            store.set_trouble(Trouble::default());
            store.inner.set_mood(Mood::Well);
        }
    }

    fn machine(&mut self) -> SimulatedPlatform {
        SimulatedPlatform::new(self.dice.bits(), self.disk.clone())
    }

    fn open(
        &self,
        platform: &SimulatedPlatform,
        accept_loss: Option<Position>,
    ) -> Option<Result<SimVolume, OpenError>> {
        let store = self.store.clone().map(|store| store as Arc<dyn Store>);
        let options = OpenOptions { accept_loss, archiving: self.archiving, ..OpenOptions::default() };
        let (machine, device) = (platform.clone(), platform.device());
        platform.block_on(async move { Volume::open(machine, device, store, options).await })
    }

    /// One life. None when there is no other one.
    fn life(&mut self, number: u64) -> Option<()> {
        self.set_faults();
        let platform = self.machine();
        let crash = match self.dice.below(10) {
            0..3 => u64::MAX,
            3..5 => 1 + self.dice.below(8),
            _ => 5 + self.dice.below(300),
        };
        platform.crash_after(crash);
        let end = match self.open(&platform, None) {
            Some(Ok(volume)) => {
                if number > 0 {
                    self.compare(&platform, &volume);
                }
                self.say(|| format!("opened {:?} {}", volume.log().positions(), volume.log().epoch()));
                self.use_it(&platform, &volume)
            }
            Some(Err(error)) => {
                self.say(|| format!("life {number} refused: {error}"));
                assert!(self.kind != Kind::Honest, "{}: {error}", self.what());
                End::Killed
            }
            None => {
                self.met.meet("crash while opening");
                if self.dice.percent(50) { End::PowerCut } else { End::Killed }
            }
        };
        platform.halt();
        self.say(|| format!("life {number} ended, {:?}", self.disk.met()));
        let everything = match end {
            End::PowerCut => {
                self.met.meet("power cut");
                self.disk.lose_power(&mut self.dice);
                false
            }
            End::Killed | End::Closed => {
                self.met.meet(if matches!(end, End::Closed) { "clean close" } else { "daemon killed" });
                self.disk.stop_machine();
                true
            }
        };
        if self.kind == Kind::Lying && self.dice.percent(30) {
            self.rot();
        }
        self.settle(everything)
    }

    /// Compares what is there with what was found after the last life.
    fn compare(&mut self, platform: &SimulatedPlatform, volume: &SimVolume) {
        self.finish_rollback(platform, volume);
        if self.was_lied_to() {
            // What was read wrong may have looked like a torn tail.
            let reader = volume.clone();
            if let Some((found, failed)) = platform.block_on(async move { read_each(&reader).await }) {
                self.model.lose_durability();
                self.model.settle_some(&found, &failed, false);
                self.model.lose_durability();
            }
            return;
        }
        let (reader, model, honest) = (volume.clone(), Rc::clone(&self.model), self.kind == Kind::Honest);
        platform.block_on(async move {
            for block in 0..reader.geometry().volume_blocks {
                match get(&reader, block).await {
                    Ok(stamp) => model.expect(block, stamp),
                    Err(error) => assert!(!honest, "block {block}: {error}"),
                }
            }
        });
    }

    /// What a daemon does when it has opened a volume.
    fn finish_rollback(&mut self, platform: &SimulatedPlatform, volume: &SimVolume) {
        let Some(unfinished) = volume.unfinished_rollback() else { return };
        let to = unfinished.to;
        let state = self.rollbacks.get(&to).expect("a rollback that was never asked for");
        let (finisher, past) = (volume.clone(), Known::new(state, self.shape.volume_blocks));
        let done = platform.block_on(async move { finisher.finish_rollback(&past, &aim(to)).await });
        match done {
            Some(Ok(())) => self.met.meet("rollback finished by an opening"),
            Some(Err(error)) => assert!(self.kind != Kind::Honest, "{}: {error}", self.what()),
            None => {}
        }
    }

    /// Users, weather, perhaps a rollback; until the machine ends, or they do.
    fn use_it(&mut self, platform: &SimulatedPlatform, volume: &SimVolume) -> End {
        let marks = Rc::new(RefCell::new(None));
        let ended = self.days(platform, volume, &marks);
        let log = volume.log();
        let counters = log.counters();
        self.met.count("copies made", counters.copied_blocks);
        self.met.count("copy outrun by a newer entry", counters.outrun_copies);
        self.met.count("block repaired from the archive", counters.repaired_blocks);
        self.met.count("block lost", counters.lost_blocks);
        self.met.count("writers throttled", u64::from(!counters.throttled.is_zero()));
        let stopped = log.stopped().is_some();
        self.met.count("log stopped", u64::from(stopped));
        let segment = log.current_segment().0;
        self.met.count("segment sealed", segment.saturating_sub(self.segments));
        self.met.count("log turned over", u64::from(segment > u64::from(self.shape.slots)));
        self.segments = segment;
        match ended {
            // A segment whose very header never arrived cannot be archived, and its slot not be used.
            Ended::Stuck if self.was_lied_to() && volume.status().state == "waiting" => {
                self.met.meet("writers waiting for ever after a lie");
                self.a_crash()
            }
            Ended::Stuck => {
                // The store is well again after a while, and then nobody may wait.
                panic!("{}: stuck: {:#?}", self.what(), volume.status());
            }
            Ended::Done if !stopped && self.dice.percent(50) => {
                let closing = volume.clone();
                match platform.block_on(async move { closing.close().await }) {
                    Some(Ok(())) => End::Closed,
                    Some(Err(error)) => {
                        assert!(self.kind != Kind::Honest, "{}: {error}", self.what());
                        End::Killed
                    }
                    None => self.a_crash(),
                }
            }
            Ended::Done | Ended::Crashed => {
                self.in_flight.extend(marks.take());
                self.a_crash()
            }
        }
    }

    fn a_crash(&mut self) -> End {
        if self.dice.percent(60) { End::PowerCut } else { End::Killed }
    }

    fn days(&mut self, platform: &SimulatedPlatform, volume: &SimVolume, marks: &Rc<RefCell<Option<String>>>) -> Ended {
        let users = 1 + self.dice.below(5);
        let mix = Mix {
            reads: 10,
            trims: self.dice.pick(&[2, 10, 30]),
            flushes: self.dice.pick(&[1, 5, 20]),
            fua: self.dice.pick(&[0, 5, 30]),
            synchs: self.dice.pick(&[1, 4]),
            write_blocks: self.dice.pick(&[1, 4, 8]).min(self.shape.volume_blocks),
        };
        let operations = 5 + self.dice.below(60);
        let left = Rc::new(Cell::new(users));
        let failures = Rc::new(RefCell::new(Vec::new()));
        for _ in 0..users {
            let (volume, model, left) = (volume.clone(), Rc::clone(&self.model), Rc::clone(&left));
            let (failures, mut dice) = (Rc::clone(&failures), Dice::new(self.dice.bits()));
            platform.spawn(async move {
                for _ in 0..operations {
                    let Err(error) = operate(&volume, &model, &mut dice, mix).await else { continue };
                    let over = matches!(error, RequestError::Stopped { .. } | RequestError::Closing);
                    failures.borrow_mut().push(error);
                    if over {
                        break;
                    }
                }
                left.set(left.get() - 1);
            });
        }
        let marker = (volume.clone(), Rc::clone(marks), Dice::new(self.dice.bits()), platform.clone());
        platform.spawn(async move {
            let (volume, marks, mut dice, clock) = marker;
            for _ in 0..4 {
                clock.sleep(Duration::from_micros(dice.below(60_000))).await;
                let label = format!("marked {:x}", dice.bits());
                marks.replace(Some(label.clone()));
                let marked = volume.synch(label, String::new()).await;
                marks.take();
                if marked.is_err() {
                    break;
                }
            }
        });
        let over = Rc::new(Cell::new(false));
        let seen = self.weather(platform, volume, &over);
        let ended = platform.run(|| left.get() == 0);
        over.set(true);
        let (waited, retried) = seen.get();
        self.met.count("writers waiting for a slot", u64::from(waited));
        self.met.count("archiving retried", u64::from(retried));
        if self.kind == Kind::Honest {
            assert!(failures.borrow().is_empty(), "{}: {:?}", self.what(), failures.borrow());
        }
        if ended == Ended::Done && failures.borrow().is_empty() && self.dice.percent(25) {
            self.roll_back(platform, volume)
        } else {
            ended
        }
    }

    /// The store has its moods, but none lasts. Whether writers had to wait, and whether archiving failed.
    fn weather(
        &mut self,
        platform: &SimulatedPlatform,
        volume: &SimVolume,
        over: &Rc<Cell<bool>>,
    ) -> Rc<Cell<(bool, bool)>> {
        let seen = Rc::new(Cell::new((false, false)));
        let Some(store) = self.store.clone() else { return seen };
        let bad = self.dice.below(100);
        let (clock, volume, notes) = (platform.clone(), volume.clone(), Rc::clone(&seen));
        let (mut dice, over) = (Dice::new(self.dice.bits()), Rc::clone(over));
        platform.spawn(async move {
            let until = clock.elapsed() + Duration::from_secs(60);
            while !over.get() && clock.elapsed() < until {
                clock.set_job_time(Duration::from_millis(dice.pick(&[0, 0, 5, 100])));
                let mood = match dice.below(100) < bad {
                    true => dice.pick(&[0, 1, 2]),
                    false => 3,
                };
                store.inner.set_mood([Mood::Absent, Mood::ReadOnly, Mood::Full(0), Mood::Well][mood].clone());
                for _ in 0..20 {
                    clock.sleep(Duration::from_millis(dice.pick(&[1, 10, 50]))).await;
                    let (waited, retried) = notes.get();
                    let log = volume.log();
                    let trouble = log.archive_state(|archive| archive.trouble.is_some());
                    notes.set((waited || log.is_out_of_slots(), retried || trouble));
                }
            }
            store.inner.set_mood(Mood::Well);
            store.set_trouble(Trouble::default());
            clock.set_job_time(Duration::ZERO);
        });
        seen
    }

    fn roll_back(&mut self, platform: &SimulatedPlatform, volume: &SimVolume) -> Ended {
        let points = self.model.points.borrow().clone();
        let (Some(_), false) = (&self.store, points.is_empty()) else { return Ended::Done };
        let (point, state) = self.dice.pick(&points.iter().collect::<Vec<_>>()).clone();
        let now = self.model.state();
        let differing: Vec<u64> =
            (0..self.shape.volume_blocks).filter(|block| state.get(block) != now.get(block)).collect();
        for block in &differing {
            self.model.begin(*block..*block + 1, state.get(block).copied().unwrap_or(0));
        }
        self.rollbacks.insert(point.position, state.clone());
        let (roller, past, to) = (volume.clone(), Known::new(&state, self.shape.volume_blocks), aim(point.position));
        let done = platform.block_on(async move { roller.roll_back(&past, &to).await });
        match done {
            Some(Ok(_)) => {
                self.met.meet("rollback");
                differing.iter().for_each(|block| self.model.end(*block..*block + 1));
                Ended::Done
            }
            // For one that begins the store must work.
            Some(Err(RequestError::Refused { .. })) => Ended::Done,
            Some(Err(error)) => {
                assert!(self.kind != Kind::Honest, "{}: {error}", self.what());
                Ended::Done
            }
            None => Ended::Crashed,
        }
    }

    /// Tells whoever looks at one history.
    fn say(&self, what: impl FnOnce() -> String) {
        if std::env::var_os("SALVOL_TELL").is_some() {
            println!("{}", what());
        }
    }

    /// Something at rest rots.
    fn rot(&mut self) {
        let blocks = self.shape.superblock().geometry.primary_blocks;
        for _ in 0..1 + self.dice.below(4) {
            let offset = self.dice.below(blocks * 4096);
            if self.dice.percent(70) {
                self.met.meet("block rotted");
                self.disk.corrupt(offset, 1 << self.dice.below(8));
            } else {
                self.met.meet("block unreadable");
                self.disk.fail_reads(offset, 1);
            }
        }
        self.rotted = true;
    }

    /// Whether what was durable may be gone.
    fn was_lied_to(&self) -> bool {
        self.disk.lies() > 0 || self.rotted
    }

    /// Opens the volume on a machine that does nothing wrong, and takes from there what is. None when it stays closed.
    fn settle(&mut self, everything: bool) -> Option<()> {
        self.heal();
        let lied = self.was_lied_to();
        if lied {
            self.model.lose_durability();
        }
        let platform = self.machine();
        let before = self.model.state();
        let mut opened = self.open(&platform, None).unwrap();
        if let Err(error) = &opened {
            assert!(lied, "{}: {error}", self.what());
            self.met.meet("opening refused");
            if let Some(last) = go_on_at(error) {
                opened = self.open(&platform, Some(last)).unwrap();
                self.met.count("loss accepted", u64::from(opened.is_ok()));
            }
        }
        self.say(|| match &opened {
            Ok(volume) => format!("settled {:?} {}", volume.log().positions(), volume.log().epoch()),
            Err(error) => format!("refused: {error}"),
        });
        let Ok(volume) = opened else {
            platform.halt();
            self.disk.stop_machine();
            return None;
        };
        self.finish_rollback(&platform, &volume);
        let reader = volume.clone();
        let (found, failed) = platform.block_on(async move { read_each(&reader).await }).unwrap();
        if !lied && self.kind == Kind::Honest {
            assert!(failed.is_empty(), "{}: {failed:?} cannot be read", self.what());
        }
        self.met.count("acknowledged write lost", u64::from(!everything && !lied && found != before));
        self.met.count("lived on after a lie", u64::from(lied));
        self.model.settle_some(&found, &failed, everything && !lied);
        if lied {
            self.model.lose_durability();
        }
        let ended = self.dice.percent(50);
        if ended && volume.log().stopped().is_none() {
            let closing = volume.clone();
            platform.block_on(async move { closing.close().await.unwrap() }).unwrap();
        }
        drop(volume);
        platform.halt();
        if ended {
            self.disk.stop_machine();
        } else {
            // What an opening has found it has made durable.
            self.disk.lose_power(&mut self.dice);
        }
        Some(())
    }

    /// The last judges: everything is archived, every position is what the log's rules say, every synch point what it was.
    fn end(&mut self) {
        self.heal();
        let lied = self.was_lied_to();
        if !lied {
            self.archive_all();
            let judge =
                judges::Judge { disk: &self.disk, shape: &self.shape, store: self.store.clone(), model: &self.model };
            judge.every_position(&self.in_flight, self.met);
            if self.seed.is_multiple_of(24) {
                judge.restored(self.met);
            }
        }
        for (what, times) in self.disk.met() {
            self.met.count(what, times);
        }
        if let Some(store) = &self.store {
            store.met().into_iter().for_each(|(what, times)| self.met.count(what, times));
            let parts = store.inner.puts().iter().filter(|name| name.part > 0).count();
            self.met.count("part archived", parts as u64);
        }
    }

    /// When nothing goes wrong any more, the archive gets everything.
    fn archive_all(&mut self) {
        let platform = self.machine();
        let volume = self.open(&platform, None).unwrap().unwrap_or_else(|error| panic!("{}: {error}", self.what()));
        self.finish_rollback(&platform, &volume);
        let idle = volume.clone();
        let ended = platform.run(|| idle.status().archive.queue == 0);
        assert_eq!(ended, Ended::Done, "{}: {:#?}", self.what(), volume.status());
        self.met.meet("everything archived at last");
        let closing = volume.clone();
        platform.block_on(async move { closing.close().await.unwrap() }).unwrap();
        platform.halt();
        self.disk.stop_machine();
    }
}

/// The position that a refusal names to go on from.
fn go_on_at(error: &OpenError) -> Option<Position> {
    match error {
        OpenError::ArchiveAhead { last, .. } | OpenError::ArchiveDiffers { last, .. } => Some(*last),
        OpenError::Replay(error) => error.last_readable(),
        _ => None,
    }
}
