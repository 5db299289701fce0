//! The judges: opening and reading on a simulated disk; `check`; `verify`; each synch point restored. Whatever comes must be
//! what the model says, or an error.

use std::cell::RefCell;
use std::collections::BTreeMap;
use std::fs::File;
use std::ops::Range;
use std::os::unix::fs::FileExt;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use nix::sys::resource::{UsageWho, getrusage};
use nix::sys::time::TimeValLike;
use salvol::archive::{Lineage, ObjectName, RingKind, RingStore, Spec, Store};
use salvol::format::{BLOCK_BYTES, Block};
use salvol::history::{Finding, Moment, Progress, RestoreOptions, Source, check, check_path, restore_with, verify};
use salvol::io::Buffer;
use salvol::io::simulated::{SimulatedDisk, SimulatedPlatform};
use salvol::volume::{OpenOptions, Operation, Request, Volume};

use super::base::{Base, State, image_of, store_with};
use super::cases::{Case, Change, Target};
use super::common::bytes_of;
use super::map::{self, Claim};

/// More of the processor's time than this nothing may take; and never six times as long by the clock, which counts what others do.
pub const TIME_MAX: Duration = Duration::from_secs(20);

/// What this thread has had of the processor.
fn processor_time() -> Duration {
    let usage = getrusage(UsageWho::RUSAGE_THREAD).unwrap();
    Duration::from_micros((usage.user_time().num_microseconds() + usage.system_time().num_microseconds()) as u64)
}
/// What is written in the volume's second life.
const NEW_STAMP: u64 = 900_000;

/// What came of a damage. What was not asked is none.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Verdict {
    /// The volume was not opened.
    pub refused: Option<bool>,
    /// A block reads as an error.
    pub unreadable: Option<bool>,
    /// The log ends earlier than it did, with nothing gone that was known to be durable.
    pub torn: bool,
    /// `check` says something that it did not say before.
    pub checked: Option<bool>,
    /// `verify` reports something.
    pub verified: Option<bool>,
    /// A point does not come back, or not all of it, and the restore says so.
    pub unrestored: Option<bool>,
    /// Those of them that were known to be durable.
    pub unrestored_durable: bool,
    /// What must never be.
    pub wrong: Option<String>,
}

impl Verdict {
    /// Everything reads and comes back as the model says.
    pub fn is_harmless(&self) -> bool {
        let yes = |found: Option<bool>| found == Some(true);
        !yes(self.refused) && !yes(self.unreadable) && !yes(self.unrestored) && !self.torn && self.wrong.is_none()
    }

    /// Something does not, and nothing but the attempt would have told: `verify` says that all is well.
    pub fn is_silent(&self) -> bool {
        let yes = |found: Option<bool>| found == Some(true);
        let costs = yes(self.refused) || yes(self.unreadable) || (yes(self.unrestored) && self.unrestored_durable);
        costs && self.verified == Some(false)
    }
}

/// Where a worker judges: its own copies of all that is damaged.
pub struct Bench<'a> {
    base: &'a Base,
    ring: &'a [u8],
    directory: PathBuf,
    primary: PathBuf,
    primary_file: File,
    ring_path: PathBuf,
    ring_file: File,
    disk: SimulatedDisk,
    /// The primary, to be damaged and put right.
    bytes: RefCell<Vec<u8>>,
    ring_bytes: RefCell<Vec<u8>>,
    images: Vec<Vec<u8>>,
    claims: Vec<Claim>,
    /// The last position of the archive.
    archived: u64,
    /// The points that do not come back without an object, of those that any needs.
    needing: BTreeMap<ObjectName, Vec<usize>>,
    /// Points that come back from the primary alone.
    on_primary: Vec<usize>,
    check_findings: Vec<Finding>,
    /// What the volume may be, see [`Base::states`].
    states: Vec<(u64, State)>,
}

fn disk_with(bytes: &[u8]) -> SimulatedDisk {
    let disk = SimulatedDisk::new(bytes.len() as u64);
    for (rank, block) in bytes.chunks(BLOCK_BYTES).enumerate().filter(|(_, block)| block.iter().any(|byte| *byte != 0))
    {
        disk.poke((rank * BLOCK_BYTES) as u64, block);
    }
    disk
}

fn file_with(path: &Path, bytes: &[u8]) -> File {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path).unwrap();
    file.write_all_at(bytes, 0).unwrap();
    file
}

/// What opening and reading gave.
struct Opened {
    refused: bool,
    unreadable: bool,
    torn: bool,
    wrong: Option<String>,
}

enum Restored {
    Whole,
    Short,
    Wrong(String),
}

impl<'a> Bench<'a> {
    pub fn new(base: &'a Base, ring: &'a [u8], directory: PathBuf) -> Self {
        std::fs::create_dir_all(&directory).unwrap();
        let (primary, ring_path) = (directory.join("primary"), directory.join("ring"));
        let map = map::primary(&base.primary, &base.volume);
        let mut bench = Self {
            base,
            ring,
            primary_file: file_with(&primary, &base.primary),
            ring_file: file_with(&ring_path, ring),
            directory,
            primary,
            ring_path,
            disk: disk_with(&base.primary),
            bytes: RefCell::new(base.primary.clone()),
            ring_bytes: RefCell::new(ring.to_vec()),
            images: base.points.iter().map(|(_, state)| image_of(state)).collect(),
            claims: map.claims,
            archived: 0,
            needing: BTreeMap::new(),
            on_primary: Vec::new(),
            check_findings: Vec::new(),
            states: base.states.clone(),
        };
        bench.learn();
        bench
    }

    /// What is true without any damage.
    fn learn(&mut self) {
        let whole: Arc<dyn Store> = Arc::new(store_with(&self.base.objects));
        let both = Source::open_primary_with(&self.primary, Some(Arc::clone(&whole))).unwrap();
        let store = self.store_alone(&whole).unwrap();
        self.archived = store.points().unwrap().points.iter().map(|point| point.position).max().unwrap_or(0);
        for (source, what) in [(&both, "both"), (&store, "store")] {
            let report = verify(source, &Progress::none()).unwrap();
            assert!(report.ok, "{what}: {:#?}", report.findings);
            for point in 0..self.base.points.len() {
                let restored = self.restore(source, point);
                assert!(matches!(restored, Restored::Whole), "{} {what}: point {point}", self.base.name);
            }
        }
        let alone = Source::open_primary_alone(&self.primary).unwrap();
        let comes = |point: &usize| matches!(self.restore(&alone, *point), Restored::Whole);
        self.on_primary = (0..self.base.points.len()).filter(comes).collect();
        assert!(!self.on_primary.is_empty());
        for name in self.base.objects.keys() {
            let mut without = self.base.objects.clone();
            without.remove(name);
            let store: Arc<dyn Store> = Arc::new(store_with(&without));
            let source = self.store_alone(&store);
            let short = |point: &usize| match &source {
                Ok(source) => !matches!(self.restore(source, *point), Restored::Whole),
                Err(_) => true,
            };
            let points: Vec<usize> = (0..self.base.points.len()).filter(short).collect();
            if !points.is_empty() {
                self.needing.insert(*name, points);
            }
        }
        self.check_findings = self.check(self.disk.fork()).expect("it is a volume");
        assert!(self.base.closed == self.check_findings.is_empty(), "{:?}", self.check_findings);
        for store in [None, Some(whole)] {
            let opened = self.open_and_read(self.disk.fork(), store, self.states.len() - 1, true, 1);
            assert!(
                !opened.refused && !opened.unreadable && !opened.torn && opened.wrong.is_none(),
                "{:?}",
                opened.wrong
            );
        }
    }

    /// From now on it is told other data than what was written, to see that it notices.
    pub fn lie(&mut self) {
        self.images.iter_mut().for_each(|image| image[100] ^= 1);
        self.states.iter_mut().for_each(|(_, state)| state[1] += 1000);
    }

    fn store_alone(&self, store: &Arc<dyn Store>) -> Result<Source, String> {
        let volume = Lineage::newest(store, self.base.identity.clone()).map_err(|error| error.to_string())?;
        Source::open_store(volume, Some(Arc::clone(store))).map_err(|error| error.to_string())
    }

    /// The last state that must be there when `case` has damaged something: what is known to be durable elsewhere.
    fn known(&self, case: &Case, with_store: bool) -> (usize, u64) {
        let base = self.base;
        let hit = if case.target == Target::Primary { case.change.range(base.primary.len()) } else { 0..0 };
        let spared = |claim: &&Claim| claim.range.end <= hit.start || claim.range.start >= hit.end;
        let claimed = self.claims.iter().filter(spared).map(|claim| claim.durable).max().unwrap_or(0);
        let archived = if with_store && case.target == Target::Primary { self.archived } else { 0 };
        let durable = claimed.max(archived);
        (self.states.iter().rposition(|(position, _)| *position <= durable).unwrap_or(0), durable)
    }

    pub fn judge(&self, case: &Case) -> Verdict {
        let started = processor_time();
        let judged = catch_unwind(AssertUnwindSafe(|| match case.target {
            Target::Primary => self.judge_primary(case),
            Target::Object(_) => self.judge_object(case),
            Target::Ring => self.judge_ring(case),
        }));
        let mut verdict = judged.unwrap_or_else(|panic| {
            // All of it as it was.
            *self.bytes.borrow_mut() = self.base.primary.clone();
            *self.ring_bytes.borrow_mut() = self.ring.to_vec();
            file_with(&self.primary, &self.base.primary);
            file_with(&self.ring_path, self.ring);
            let text = panic.downcast_ref::<String>().cloned();
            let text = text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned()));
            Verdict { wrong: Some(format!("a panic: {}", text.unwrap_or_default())), ..Verdict::default() }
        });
        let took = processor_time() - started;
        if took > TIME_MAX {
            verdict.wrong = Some(format!("it took {took:?}"));
        }
        verdict
    }

    fn judge_primary(&self, case: &Case) -> Verdict {
        let base = self.base;
        let resized = matches!(case.change, Change::Cut(_) | Change::Grow(_));
        let hit = case.change.range(base.primary.len());
        let mut bytes = self.bytes.borrow_mut();
        case.change.apply(&mut bytes);
        let disk = if resized {
            file_with(&self.primary, &bytes);
            disk_with(&bytes)
        } else {
            let disk = self.disk.fork();
            let (start, end) = (hit.start / 512 * 512, hit.end.next_multiple_of(512));
            disk.poke(start as u64, &bytes[start..end]);
            self.primary_file.write_all_at(&bytes[hit.clone()], hit.start as u64).unwrap();
            disk
        };
        let mut verdict = Verdict::default();
        // Every other time the primary has to do alone.
        let alone = case.number % 2 == 1;
        let store: Arc<dyn Store> = Arc::new(store_with(&base.objects));
        let whole = bytes.len() >= base.primary.len();
        if !whole {
            // A simulated disk is never read behind its end.
            let report = check_path(&self.primary);
            verdict.checked = Some(report.map_or(true, |report| report.findings != self.check_findings));
        } else if !case.light || case.number.is_multiple_of(4) {
            verdict.checked = Some(self.check(disk.fork()) != Some(self.check_findings.clone()));
        }
        let (known, durable) = self.known(case, !alone);
        let given = if alone { None } else { Some(Arc::new(store_with(&base.objects)) as Arc<dyn Store>) };
        self.take(
            &mut verdict,
            self.open_and_read(disk, given, known, case.number.is_multiple_of(16), case.number as u64),
        );
        // Reading has seen every block: a restore of every fifth will do.
        if case.light && !case.number.is_multiple_of(5) {
            self.put_right(&mut bytes, resized, hit);
            return verdict;
        }
        let source = if alone {
            Source::open_primary_alone(&self.primary)
        } else {
            Source::open_primary_with(&self.primary, Some(Arc::clone(&store)))
        };
        let all: Vec<usize> = (0..base.points.len()).collect();
        let points = if alone { &self.on_primary } else { &all };
        let source = source.map_err(|error| error.to_string());
        self.restore_all(&mut verdict, &source, points, case, durable);
        // What the primary alone lacks, the archive has: no news.
        verdict.unrestored_durable &= !alone;
        if !case.light {
            // With the archive: without one damage costs more, and is no less to be reported.
            let source = if alone {
                Source::open_primary_with(&self.primary, Some(store)).map_err(|e| e.to_string())
            } else {
                source
            };
            verdict.verified = Some(reports(&source));
        }
        self.put_right(&mut bytes, resized, hit);
        verdict
    }

    /// The primary is as it was.
    fn put_right(&self, bytes: &mut Vec<u8>, resized: bool, hit: Range<usize>) {
        if resized {
            bytes.clone_from(&self.base.primary);
            file_with(&self.primary, bytes);
        } else {
            let was = &self.base.primary[hit.clone()];
            bytes[hit.clone()].copy_from_slice(was);
            self.primary_file.write_all_at(was, hit.start as u64).unwrap();
        }
    }

    fn judge_object(&self, case: &Case) -> Verdict {
        let Target::Object(name) = case.target else { unreachable!("it is an object's") };
        let mut objects = self.base.objects.clone();
        let mut bytes = objects.remove(&name).unwrap();
        case.change.apply(&mut bytes);
        match &case.change {
            Change::Remove => {}
            Change::Rename(other) => drop(objects.insert(*other, bytes)),
            Change::Swap(other) => {
                let theirs = objects.insert(*other, bytes).unwrap();
                objects.insert(name, theirs);
            }
            Change::Again(other) => {
                objects.insert(name, bytes.clone());
                objects.insert(*other, bytes);
            }
            _ => drop(objects.insert(name, bytes)),
        }
        let mut verdict = Verdict::default();
        let store: Arc<dyn Store> = Arc::new(store_with(&objects));
        let (known, durable) = self.known(case, false);
        // A light judge asks the one reader that has nothing else.
        let source = if case.light || case.number % 2 == 1 {
            self.store_alone(&store)
        } else {
            let given = Arc::new(store_with(&objects)) as Arc<dyn Store>;
            let again = case.number.is_multiple_of(16);
            self.take(
                &mut verdict,
                self.open_and_read(self.disk.fork(), Some(given), known, again, case.number as u64),
            );
            Source::open_primary_with(&self.primary, Some(store)).map_err(|error| error.to_string())
        };
        let all: Vec<usize> = (0..self.base.points.len()).collect();
        let points = self.needing.get(&name).filter(|_| case.light).unwrap_or(&all);
        self.restore_all(&mut verdict, &source, points, case, durable);
        if !case.light {
            verdict.verified = Some(reports(&source));
        }
        verdict
    }

    fn judge_ring(&self, case: &Case) -> Verdict {
        let resized = matches!(case.change, Change::Cut(_) | Change::Grow(_));
        let hit = case.change.range(self.ring.len());
        let mut bytes = self.ring_bytes.borrow_mut();
        case.change.apply(&mut bytes);
        if resized {
            self.ring_file.set_len(0).unwrap();
            self.ring_file.write_all_at(&bytes, 0).unwrap();
        } else {
            self.ring_file.write_all_at(&bytes[hit.clone()], hit.start as u64).unwrap();
        }
        let mut verdict = Verdict::default();
        let volume = &self.base.volume;
        let open = || {
            RingStore::open(RingKind::File, &self.ring_path, Some(volume)).map(|ring| Arc::new(ring) as Arc<dyn Store>)
        };
        let (known, durable) = self.known(case, false);
        let source = if case.number % 2 == 1 {
            let identity = || -> Result<Source, String> {
                let store =
                    RingStore::open(RingKind::File, &self.ring_path, None).map_err(|error| error.to_string())?;
                if store.identity().uuid != volume.uuid || store.identity().key != volume.key {
                    return Err("it is another volume's".to_owned());
                }
                Source::open_spec(&Spec::File(self.ring_path.clone())).map_err(|error| error.to_string())
            };
            identity()
        } else {
            match open() {
                Ok(store) => Source::open_primary_with(&self.primary, Some(store)).map_err(|error| error.to_string()),
                Err(error) => Err(error.to_string()),
            }
        };
        let all: Vec<usize> = (0..self.base.points.len()).collect();
        self.restore_all(&mut verdict, &source, &all, case, durable);
        if !case.light {
            verdict.verified = Some(reports(&source));
        }
        drop(source);
        if case.number.is_multiple_of(2) {
            match open() {
                Ok(store) => {
                    let again = case.number.is_multiple_of(16);
                    self.take(
                        &mut verdict,
                        self.open_and_read(self.disk.fork(), Some(store), known, again, case.number as u64),
                    );
                }
                Err(_) => verdict.refused = Some(true),
            }
        }
        if resized || case.number.is_multiple_of(2) {
            // Whoever opened it has repaired it, and may have written more.
            bytes.clone_from(&self.ring.to_vec());
            self.ring_file.set_len(self.ring.len() as u64).unwrap();
            self.ring_file.write_all_at(self.ring, 0).unwrap();
        } else {
            bytes[hit.clone()].copy_from_slice(&self.ring[hit.clone()]);
            self.ring_file.write_all_at(&self.ring[hit.clone()], hit.start as u64).unwrap();
        }
        verdict
    }

    fn take(&self, verdict: &mut Verdict, opened: Opened) {
        (verdict.refused, verdict.torn) = (Some(opened.refused), opened.torn);
        verdict.unreadable = (!opened.refused).then_some(opened.unreadable);
        verdict.wrong = verdict.wrong.take().or(opened.wrong);
    }

    /// What `check` finds; none when it says that there is no volume.
    fn check(&self, disk: SimulatedDisk) -> Option<Vec<Finding>> {
        let platform = SimulatedPlatform::new(1, disk);
        let device = platform.device();
        let report = platform.block_on(async move { check(&device).await }).expect("it ends");
        platform.halt();
        report.ok()?.ok().map(|report| report.findings)
    }

    /// Opens the volume as a daemon does and reads every block; `again`: writes one, closes, and looks once more.
    fn open_and_read(
        &self,
        disk: SimulatedDisk,
        store: Option<Arc<dyn Store>>,
        known: usize,
        again: bool,
        seed: u64,
    ) -> Opened {
        let mut opened = Opened { refused: false, unreadable: false, torn: false, wrong: None };
        let platform = SimulatedPlatform::new(seed, disk.clone());
        let open = |platform: &SimulatedPlatform| {
            let (machine, device, store) = (platform.clone(), platform.device(), store.clone());
            platform.block_on(async move { Volume::open(machine, device, store, OpenOptions::default()).await })
        };
        let volume = match open(&platform) {
            None => {
                opened.wrong = Some("opening it does not end".to_owned());
                return opened;
            }
            Some(Err(error)) => {
                assert!(!error.to_string().is_empty());
                opened.refused = true;
                platform.halt();
                return opened;
            }
            Some(Ok(volume)) => volume,
        };
        let found = match self.read_all(&platform, &volume) {
            Ok(found) => found,
            Err(what) => {
                opened.wrong = Some(what);
                return opened;
            }
        };
        opened.unreadable = found.contains(&None);
        let fits =
            |state: &State| state.iter().zip(&found).all(|(stamp, found)| found.is_none_or(|found| found == *stamp));
        let last = self.states.iter().rposition(|(_, state)| fits(state));
        match last {
            Some(last) if last >= known => {
                // States that are alike are one.
                opened.torn = !fits(&self.states.last().unwrap().1);
            }
            Some(last) => {
                let (is, must) = (self.states[last].0, self.states[known].0);
                opened.wrong = Some(format!("it is what it was at position {is}, and {must} was known to be durable"));
            }
            None => opened.wrong = Some(format!("{found:?} is no state that it ever had")),
        }
        if !again || opened.wrong.is_some() {
            platform.halt();
            return opened;
        }
        let (writer, buffer) = (volume.clone(), Buffer::new(BLOCK_BYTES).unwrap());
        buffer.copy_from(0, &bytes_of(0, NEW_STAMP));
        let wrote = platform.block_on(async move {
            let request = Request { operation: Operation::Write { fua: true }, block: Block(0), blocks: 1, buffer };
            writer.serve(&request).await?;
            writer.close().await
        });
        drop(volume);
        platform.halt();
        disk.stop_machine();
        match wrote {
            None => opened.wrong = Some("a write or the close does not end".to_owned()),
            // It says so.
            Some(Err(_)) => opened.unreadable = true,
            Some(Ok(())) => {
                let platform = SimulatedPlatform::new(seed + 1, disk);
                match open(&platform) {
                    Some(Ok(volume)) => match self.read_all(&platform, &volume) {
                        Ok(mut now) => {
                            let first = std::mem::replace(&mut now[0], found[0]);
                            // What could be read before can be read now, and is the same.
                            let same = now.iter().zip(&found).all(|(now, before)| before.is_none() || now == before);
                            if first != Some(NEW_STAMP) || !same {
                                opened.wrong = Some(format!("{found:?} became {first:?} {now:?}"));
                            }
                        }
                        Err(what) => opened.wrong = Some(what),
                    },
                    Some(Err(error)) => opened.wrong = Some(format!("opened, written to, closed, and then: {error}")),
                    None => opened.wrong = Some("the second opening does not end".to_owned()),
                }
                platform.halt();
            }
        }
        opened
    }

    /// The stamp of each block; none of one that reads as an error.
    fn read_all(
        &self,
        platform: &SimulatedPlatform,
        volume: &super::common::SimVolume,
    ) -> Result<Vec<Option<u64>>, String> {
        let mut stamps = Vec::new();
        for block in 0..self.base.volume.geometry.volume_blocks {
            let (reader, buffer) = (volume.clone(), Buffer::new(BLOCK_BYTES).unwrap());
            buffer.write(|bytes| bytes.fill(0xee));
            let read = platform.block_on(async move {
                let request = Request { operation: Operation::Read, block: Block(block), blocks: 1, buffer };
                reader.serve(&request).await.map(|()| request.buffer.bytes().to_vec())
            });
            match read {
                None => return Err(format!("reading block {block} does not end")),
                Some(Err(_)) => stamps.push(None),
                Some(Ok(bytes)) => {
                    let zeros = bytes.iter().all(|byte| *byte == 0);
                    let stamp = if zeros { 0 } else { u64::from_le_bytes(bytes[8..16].try_into().unwrap()) };
                    if bytes != bytes_of(block, stamp) {
                        return Err(format!("block {block} holds bytes that nobody wrote"));
                    }
                    stamps.push(Some(stamp));
                }
            }
        }
        Ok(stamps)
    }

    fn restore_all(
        &self,
        verdict: &mut Verdict,
        source: &Result<Source, String>,
        points: &[usize],
        case: &Case,
        durable: u64,
    ) {
        let Ok(source) = source else {
            (verdict.unrestored, verdict.unrestored_durable) = (Some(true), true);
            return;
        };
        let one = [points[case.number / 2 % points.len()]];
        let points = if case.light { &one[..] } else { points };
        let mut short = false;
        for point in points {
            match self.restore(source, *point) {
                Restored::Whole => {}
                Restored::Short => {
                    short = true;
                    verdict.unrestored_durable |= self.base.points[*point].0 <= durable;
                }
                Restored::Wrong(what) => {
                    verdict.wrong = verdict.wrong.take().or(Some(format!("p{}: {what}", self.base.points[*point].0)));
                }
            }
        }
        verdict.unrestored = Some(short);
    }

    fn restore(&self, source: &Source, point: usize) -> Restored {
        let (to, partial) = (self.directory.join("out"), self.directory.join(".out.partial"));
        let _ = std::fs::remove_file(&to);
        let moment: Result<Moment, _> = source.resolve(&format!("p{}", self.base.points[point].0));
        let options = RestoreOptions { force: true, threads: 1, ..RestoreOptions::default() };
        let Ok(report) = moment.and_then(|moment| restore_with(source, &moment, &to, &options, &Progress::none()))
        else {
            let _ = std::fs::remove_file(&partial);
            if to.exists() {
                return Restored::Wrong("a restore that failed left a file".to_owned());
            }
            return Restored::Short;
        };
        let bytes = std::fs::read(&to).unwrap();
        let wanted = &self.images[point];
        if bytes.len() != wanted.len() {
            return Restored::Wrong(format!("{} bytes, not {}", bytes.len(), wanted.len()));
        }
        for (block, (is, must)) in bytes.chunks(BLOCK_BYTES).zip(wanted.chunks(BLOCK_BYTES)).enumerate() {
            let damaged = report.damaged.iter().any(|damage| damage.block == block as u64);
            let right = if damaged { is.iter().all(|byte| *byte == 0) } else { is == must };
            if !right {
                return Restored::Wrong(format!("block {block} is not what it was"));
            }
        }
        if report.damaged.is_empty() { Restored::Whole } else { Restored::Short }
    }
}

/// Whether `verify` finds anything, or cannot even begin.
fn reports(source: &Result<Source, String>) -> bool {
    match source {
        Ok(source) => verify(source, &Progress::none()).map_or(true, |report| !report.ok),
        Err(_) => true,
    }
}
