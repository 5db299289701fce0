//! Restore: the volume as it was at a moment, written to a file or a device.
//!
//! One backward scan, then each segment once: what lives in it is read, verified and written. Segments that are on the
//! primary are read here, one after the other; the others are decoded on all cores meanwhile (`pipeline.rs`). A block that
//! is lost or damaged is reported and becomes zeros; the rest is restored.
//!
//! **Interrupted.** Every few seconds what is done is made durable and then recorded in the target (`unfinished.rs`). The
//! same restore goes on from there: it reads what was recorded and compares checksums, does again any segment of which
//! something is not there, and makes zeros again what is to be zeros. A segment with damage is never recorded, so
//! that its damage is reported by whichever run finishes.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::fetch::{Fetched, fetch, wants};
use super::pipeline::{News, Pipeline};
use super::plan::Plan;
use super::source::Located;
use super::target::{Watch, Writing};
use super::{Damage, HistoryError, Interrupt, Moment, PointIndex, Progress, Sited, Source, Target, index_at};
use crate::archive::{ArchiveError, StoreError};
use crate::format::{BLOCK_BYTES, Block, Checksum, SegmentNumber, block_crc};

/// How often it is recorded what is done: what a power cut costs, and what a synch now and then costs the disk.
const RECORD_EVERY: Duration = Duration::from_secs(5);
/// Blocks that are read together to compare them with what was recorded.
const COMPARE_BLOCKS: u64 = 256;

/// What a restore did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RestoreReport {
    /// `p42`, or the position.
    pub point: String,
    pub position: u64,
    pub consistency: super::Consistency,
    /// Size of the volume.
    pub bytes: u64,
    /// Blocks with data that are in the target.
    pub blocks: u64,
    /// Segments that the scan read.
    pub segments: u64,
    /// Blocks from the primary, and from the archive.
    pub from_primary: u64,
    pub from_archive: u64,
    /// Blocks that an interrupted run of this restore had written.
    pub resumed: u64,
    /// Blocks that it had recorded and that were not there: the target has lost them. They have been written again.
    pub rewritten: u64,
    pub seconds: f64,
    /// Blocks that are zeros in the target and were not in the volume.
    pub damaged: Vec<Damage>,
}

/// How to restore.
#[derive(Clone)]
pub struct RestoreOptions {
    /// Overwrite what is there.
    pub force: bool,
    /// Threads that read the archive; 0 for one more than there are cores.
    pub threads: usize,
    pub record_every: Duration,
    pub stop: Arc<Interrupt>,
    pub watch: Option<Watch>,
}

impl Default for RestoreOptions {
    fn default() -> Self {
        Self { force: false, threads: 0, record_every: RECORD_EVERY, stop: Arc::default(), watch: None }
    }
}

/// Writes the volume as it was at `moment` to `to`.
///
/// # Errors
/// As for [`restore_with`].
pub fn restore(
    source: &Source,
    moment: &Moment,
    to: &Path,
    force: bool,
    progress: &Progress,
) -> Result<RestoreReport, HistoryError> {
    restore_with(source, moment, to, &RestoreOptions { force, ..RestoreOptions::default() }, progress)
}

/// The same, with options.
///
/// # Errors
/// When the moment cannot be restored, or the target cannot be written; [`HistoryError::Unfinished`] when the same restore
/// can go on. Damage of single blocks is in the report.
pub fn restore_with(
    source: &Source,
    moment: &Moment,
    to: &Path,
    options: &RestoreOptions,
    progress: &Progress,
) -> Result<RestoreReport, HistoryError> {
    let started = Instant::now();
    let sources = source.places();
    Target::admit(to, options.force, &sources)?;
    let index =
        index_at(source, source.volume(), moment.segment, moment.position).map_err(|error| source.judged(error))?;
    let plan = Plan::new(source.volume(), &index);
    let writing = Writing {
        bytes: index.blocks() * BLOCK_BYTES as u64,
        identity: plan.identity,
        segments: plan.live.len(),
        sources: &sources,
        force: options.force,
        watch: options.watch.clone(),
    };
    let mut report = RestoreReport {
        point: moment.mark.as_ref().map_or_else(|| moment.position.to_string(), |mark| format!("p{}", mark.point)),
        position: moment.position.0,
        consistency: moment.consistency,
        bytes: writing.bytes,
        blocks: 0,
        segments: u64::from(index.segments_read()),
        from_primary: 0,
        from_archive: 0,
        resumed: 0,
        rewritten: 0,
        seconds: 0.0,
        damaged: plan.lost.clone(),
    };
    options.stop.writing.store(true, Ordering::SeqCst);
    let restored = Target::open(to, &writing).map_err(HistoryError::from).and_then(|target| {
        let done = vec![false; plan.live.len()];
        let (index, plan, target) = (&index, &plan, &target);
        Restore { source, index, plan, target, options, progress, report: &mut report, done, recorded: Instant::now() }
            .run()
    });
    options.stop.writing.store(false, Ordering::SeqCst);
    progress.end();
    restored?;
    report.blocks = report.from_primary + report.from_archive + report.resumed;
    report.damaged.sort_by_key(|damage| damage.block);
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// A restore whose target is open.
struct Restore<'a> {
    source: &'a Source,
    index: &'a PointIndex,
    plan: &'a Plan,
    target: &'a Target,
    options: &'a RestoreOptions,
    progress: &'a Progress,
    report: &'a mut RestoreReport,
    /// Segments of which every block is written, oldest first.
    done: Vec<bool>,
    /// When that was last recorded.
    recorded: Instant,
}

impl Restore<'_> {
    fn run(mut self) -> Result<(), HistoryError> {
        let restored = self.fill().and_then(|()| {
            self.progress.say("making it durable");
            Ok(self.target.finish()?)
        });
        restored.map_err(|error| self.give_up(self.source.judged(error)))
    }

    /// Writes everything.
    fn fill(&mut self) -> Result<(), HistoryError> {
        if let Some(recorded) = self.target.resumed() {
            self.done = recorded.to_vec();
            self.compare()?;
        }
        self.progress.begin("restoring", self.plan.blocks(), self.report.resumed);
        self.zero_the_rest()?;
        self.reserve()?;
        let ranks = |wanted: &dyn Fn(usize) -> bool| -> Vec<usize> {
            (0..self.done.len())
                .filter(|rank| !self.done[*rank] && self.plan.live[*rank] > 0 && wanted(*rank))
                .collect()
        };
        let here = |rank: &usize| self.source.is_here(self.segment(*rank).0);
        let own = ranks(&|rank| here(&rank));
        let others = ranks(&|rank| !here(&rank)).into_iter().map(|rank| (rank, self.segment(rank))).collect();
        let pipeline = Pipeline::new(self.source, self.index, self.target, &self.options.stop, self.progress, others);
        pipeline.run(self.options.threads, |news| self.gather(&own, news))?;
        let came = self.report.resumed + self.report.from_primary + self.report.from_archive;
        let damaged = self.report.damaged.iter().filter(|damage| damage.segment.is_some()).count() as u64;
        assert_eq!(came + damaged, self.plan.blocks(), "every block is in the target or reported");
        Ok(())
    }

    /// A segment of the scan, by rank, and the checksum that tells it from others of its number.
    fn segment(&self, rank: usize) -> (SegmentNumber, Checksum) {
        let chain = self.index.chain();
        chain[chain.len() - 1 - rank]
    }

    /// Restores the segments `own`, and takes the news of the others until there is none.
    fn gather(&mut self, own: &[usize], news: &std::sync::mpsc::Receiver<News>) -> Result<(), HistoryError> {
        for rank in own {
            self.here(*rank)?;
            while let Ok(told) = news.try_recv() {
                self.told(told)?;
            }
            self.record_now_and_then()?;
        }
        loop {
            match news.recv_timeout(self.options.record_every.max(Duration::from_millis(1))) {
                Ok(told) => self.told(told)?,
                Err(std::sync::mpsc::RecvTimeoutError::Timeout) => {}
                Err(std::sync::mpsc::RecvTimeoutError::Disconnected) => return self.options.stop.check(),
            }
            self.record_now_and_then()?;
        }
    }

    fn told(&mut self, news: News) -> Result<(), HistoryError> {
        match news {
            News::Done(rank, fetched) => self.take(rank, fetched),
            News::Unknown(rank) => self.here(rank),
            News::Failed(error) => Err(error),
        }
    }

    /// Restores a segment on this thread, from wherever it is.
    fn here(&mut self, rank: usize) -> Result<(), HistoryError> {
        let (target, progress, stop) = (self.target, self.progress, &self.options.stop);
        let located = located(self.source, self.index, self.segment(rank))?;
        let fetched = fetch(self.source, &located, wants(self.index, &located.summary), &mut |arrived| {
            stop.check()?;
            target.write(arrived)?;
            progress.add(arrived.len() as u64);
            Ok(())
        })?;
        self.take(rank, fetched)
    }

    /// Takes what a segment gave.
    fn take(&mut self, rank: usize, fetched: Fetched) -> Result<(), HistoryError> {
        let came = fetched.from_primary + fetched.from_archive;
        if came + fetched.damaged.len() as u64 != self.plan.live[rank] {
            return Err(HistoryError::Chain { segment: self.segment(rank).0 });
        }
        for damage in &fetched.damaged {
            self.target.zero(Block(damage.block), 1)?;
        }
        self.done[rank] = fetched.damaged.is_empty();
        self.report.from_primary += fetched.from_primary;
        self.report.from_archive += fetched.from_archive;
        self.report.damaged.extend(fetched.damaged);
        Ok(())
    }

    /// Zeros where nothing was mapped, or what was is lost.
    fn zero_the_rest(&self) -> Result<(), HistoryError> {
        let mut run = 0;
        for number in 0..self.index.blocks() {
            if matches!(self.index.get(Block(number)), Sited::At(..)) {
                if run > 0 {
                    self.options.stop.check()?;
                    self.target.zero(Block(number - run), run)?;
                }
                run = 0;
            } else {
                run += 1;
            }
        }
        self.target.zero(Block(self.index.blocks() - run), run)?;
        Ok(())
    }

    /// Has the file system set aside what will be written: it comes in no order.
    fn reserve(&self) -> Result<(), HistoryError> {
        let mut run = 0;
        for number in 0..=self.index.blocks() {
            if number < self.index.blocks() && matches!(self.index.get(Block(number)), Sited::At(..)) {
                run += 1;
                continue;
            }
            if run > 0 {
                self.target.reserve(Block(number - run), run)?;
            }
            run = 0;
        }
        Ok(())
    }

    /// Looks whether what an earlier run has recorded is there. A segment of which a block is not is not done.
    fn compare(&mut self) -> Result<(), HistoryError> {
        let recorded = (0..self.done.len()).filter(|rank| self.done[*rank]).map(|rank| self.plan.live[rank]).sum();
        self.progress.begin("reading what is there", recorded, 0);
        let (mut intact, mut bytes) = (self.done.clone(), vec![0; COMPARE_BLOCKS as usize * BLOCK_BYTES]);
        for first in (0..self.index.blocks()).step_by(COMPARE_BLOCKS as usize) {
            self.options.stop.check()?;
            let last = (first + COMPARE_BLOCKS).min(self.index.blocks());
            let recorded = |number: &u64| match self.index.get(Block(*number)) {
                Sited::At(segment, _, crc) => Some((self.plan.rank(segment), crc)).filter(|(rank, _)| self.done[*rank]),
                _ => None,
            };
            let Some(first) = (first..last).find(|number| recorded(number).is_some()) else { continue };
            let bytes = &mut bytes[..(last - first) as usize * BLOCK_BYTES];
            let read = self.target.read(Block(first), bytes).is_ok();
            let mut compared = 0;
            for (number, data) in (first..last).zip(bytes.chunks(BLOCK_BYTES)) {
                let Some((rank, crc)) = recorded(&number) else { continue };
                compared += 1;
                if !read || block_crc(data) != crc {
                    self.report.rewritten += 1;
                    intact[rank] = false;
                }
            }
            self.progress.add(compared);
        }
        self.done = intact;
        self.report.resumed =
            (0..self.done.len()).filter(|rank| self.done[*rank]).map(|rank| self.plan.live[rank]).sum();
        log::info!("going on: {} blocks are there of {}", self.report.resumed, self.plan.blocks());
        if self.report.rewritten > 0 {
            let place = self.target.place().display();
            log::warn!(
                "{place}: {} blocks that had been written are not there; they are written again",
                self.report.rewritten
            );
        }
        Ok(())
    }

    fn record_now_and_then(&mut self) -> Result<(), HistoryError> {
        if self.recorded.elapsed() >= self.options.record_every {
            self.record()?;
            self.recorded = Instant::now();
        }
        Ok(())
    }

    fn record(&mut self) -> Result<(), HistoryError> {
        let mut done = self.done.clone();
        // Its block is not in the target yet: the record is in its place.
        if let Some(first) = self.plan.first {
            done[first] = false;
        }
        // What has no data needs no work; so neighbours that share its bit can be recorded.
        done.iter_mut().zip(&self.plan.live).for_each(|(done, live)| *done |= *live == 0);
        Ok(self.target.record(&done)?)
    }

    /// Keeps what has been done when the same restore can go on from it, and removes it otherwise.
    fn give_up(&mut self, error: HistoryError) -> HistoryError {
        let hopeless = error.is_no_point() || error.is_corruption();
        let anything = (0..self.done.len()).any(|rank| self.done[rank] && self.plan.live[rank] > 0);
        if !hopeless && anything && self.target.is_sure() {
            self.progress.say("recording how far it is");
            // Best effort: what was recorded before still holds.
            if let Err(error) = self.record() {
                log::warn!("{error}");
            }
        }
        if hopeless || !self.target.is_recorded() {
            self.target.remove();
            return error;
        }
        let kept: PathBuf = self.target.place().to_owned();
        HistoryError::Unfinished { source: Box::new(error), kept }
    }
}

/// The segment that the scan has read, wherever it is by now: archived, pruned, or, the newest, gone on with in more parts or
/// as a whole since the objects were listed.
pub(super) fn located(
    source: &Source,
    index: &PointIndex,
    (segment, checksum): (SegmentNumber, Checksum),
) -> Result<Located, HistoryError> {
    let position = index.position();
    let newest = segment.0 == *index.segments().end();
    match source.locate(segment, Some(checksum)) {
        Ok(Some(located)) => return Ok(located),
        Ok(None) | Err(HistoryError::DamagedObject { source: ArchiveError::Store(StoreError::Missing { .. }), .. }) => {
        }
        Err(_) if newest => {}
        Err(error) => return Err(error),
    }
    source.refresh()?;
    let found = match source.locate(segment, Some(checksum)) {
        // Whether it is still what the scan read is seen by what it gives.
        Ok(None) | Err(_) if newest => {
            source.locate(segment, None)?.filter(|located| located.summary.last_position() >= position)
        }
        found => found?,
    };
    found.ok_or(HistoryError::Gone { position, segment, archive: source.archive_word() })
}
