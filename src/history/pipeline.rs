//! Archived segments on all cores: each thread takes the next segment, reads it from the store, decodes and verifies the
//! frames that hold wanted blocks, and writes these to the target. While one waits for the store or the target, others decode.
//!
//! **Bounds.** A thread has one segment at a time, and of it one fetch of packed frames (2 MiB, or one frame that is larger),
//! one decoded frame, and its summary: a few MiB, whatever the segments' size. There is one thread more than cores, since
//! one usually waits, and never more than [`THREADS_MAX`]: beyond that a disk gains nothing. Segments are given out oldest first.
//!
//! The ring that reads the primary is the caller's own, so segments that are there stay with the caller; so does what a
//! thread cannot find: the caller may look again, and knows what to say.

use std::num::NonZero;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;

use super::fetch::{Fetched, fetch_archived, wants};
use super::scan::sound;
use super::source::{Archived, open_in};
use super::{HistoryError, Interrupt, PointIndex, Progress, Source, Target};
use crate::archive::Store;
use crate::format::{Checksum, SegmentNumber, Superblock};

/// The most segments that are read at a time: bounds memory and what is asked of a store.
const THREADS_MAX: usize = 16;

/// What a thread tells of a segment.
pub(super) enum News {
    /// By rank; what is not damaged is in the target.
    Done(usize, Fetched),
    /// No object of it can be read.
    Unknown(usize),
    /// There is no use in going on.
    Failed(HistoryError),
}

struct Job {
    rank: usize,
    segment: SegmentNumber,
    checksum: Checksum,
    names: Vec<Archived>,
}

/// Segments that are restored by several threads.
pub(super) struct Pipeline<'a> {
    store: Option<Arc<dyn Store>>,
    volume: Superblock,
    index: &'a PointIndex,
    target: &'a Target,
    stop: &'a Interrupt,
    progress: &'a Progress,
    jobs: Vec<Job>,
    next: AtomicUsize,
    /// Somebody has failed.
    over: AtomicBool,
}

impl<'a> Pipeline<'a> {
    /// For the segments of these ranks.
    pub(super) fn new(
        source: &Source,
        index: &'a PointIndex,
        target: &'a Target,
        stop: &'a Interrupt,
        progress: &'a Progress,
        segments: Vec<(usize, (SegmentNumber, Checksum))>,
    ) -> Self {
        let job = |(rank, (segment, checksum))| Job { rank, segment, checksum, names: source.archived(segment) };
        Self {
            store: source.store.clone(),
            volume: source.volume().clone(),
            index,
            target,
            stop,
            progress,
            jobs: segments.into_iter().map(job).collect(),
            next: AtomicUsize::new(0),
            over: AtomicBool::new(false),
        }
    }

    /// Works on the segments until they are done, with so many threads, while the caller does `beside`, which hears of each.
    pub(super) fn run(
        &self,
        threads: usize,
        beside: impl FnOnce(&Receiver<News>) -> Result<(), HistoryError>,
    ) -> Result<(), HistoryError> {
        let fitting = thread::available_parallelism().map_or(2, NonZero::get) + 1;
        let threads = if threads == 0 { fitting } else { threads }.clamp(1, THREADS_MAX).min(self.jobs.len());
        thread::scope(|scope| {
            let (tell, news) = channel();
            let mut begun = Ok(());
            for _ in 0..threads {
                let tell = tell.clone();
                let builder = thread::Builder::new().name("restore".to_owned());
                begun = begun.and(builder.spawn_scoped(scope, move || self.work(&tell)).map(drop));
            }
            drop(tell);
            let done = begun.map_err(HistoryError::from).and_then(|()| beside(&news));
            self.over.store(true, Ordering::Relaxed);
            done
        })
    }

    fn work(&self, tell: &Sender<News>) {
        while !self.over.load(Ordering::Relaxed) {
            let Some(job) = self.jobs.get(self.next.fetch_add(1, Ordering::Relaxed)) else { return };
            let news = match self.segment(job) {
                Ok(Some(fetched)) => News::Done(job.rank, fetched),
                Ok(None) => News::Unknown(job.rank),
                Err(error) => News::Failed(error),
            };
            // Nobody listens when the caller has failed.
            if tell.send(news).is_err() {
                return;
            }
        }
    }

    fn segment(&self, job: &Job) -> Result<Option<Fetched>, HistoryError> {
        let Some(store) = &self.store else { return Ok(None) };
        fetch_archived(
            &|name| open_in(store, &self.volume, name),
            &job.names,
            job.segment,
            |summary| sound(summary, job.segment) && summary.last_checksum == job.checksum,
            |summary| wants(self.index, summary),
            &mut |arrived| {
                self.stop.check()?;
                if self.over.load(Ordering::Relaxed) {
                    return Err(HistoryError::Interrupted);
                }
                self.target.write(arrived)?;
                self.progress.add(arrived.len() as u64);
                Ok(())
            },
        )
    }
}
