//! The archive: every object read past the page cache, decoded and inspected, by a few threads with one image each.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::Sender;

use super::image::{Flaw, Image, Seen, inspect};
use super::{Kind, SegmentCopy, Survey};
use crate::archive::{ArchiveError, ObjectError, ObjectName, Store, StoreError, audit_object};
use crate::format::Superblock;
use crate::history::{HistoryError, Progress};

/// Objects that are decoded at a time: each takes the memory of a segment.
const READERS_MAX: usize = 4;

/// An object that is to be read.
#[derive(Debug, Clone, Copy)]
pub(super) struct Job {
    pub name: ObjectName,
    pub bytes: u64,
    /// Whether any reader would take it for the volume's past.
    pub used: bool,
}

/// What an object gave.
pub(super) struct Audited {
    job: Job,
    outcome: Result<(u64, Seen), ArchiveError>,
}

/// How many threads there should be.
pub(super) fn readers(jobs: usize) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    cores.min(READERS_MAX).min(jobs)
}

/// Reads those of `jobs` that nobody has taken yet.
pub(super) fn work(
    store: &Arc<dyn Store>,
    volume: &Superblock,
    jobs: &[Job],
    next: &AtomicUsize,
    progress: &Progress,
    done: &Sender<Audited>,
) {
    let mut image = Vec::new();
    while let Some(job) = jobs.get(next.fetch_add(1, Ordering::Relaxed)) {
        let outcome = examine(store, volume, job, &mut image);
        progress.add_bytes(job.bytes);
        if done.send(Audited { job: *job, outcome }).is_err() {
            return;
        }
    }
}

fn examine(
    store: &Arc<dyn Store>,
    volume: &Superblock,
    job: &Job,
    image: &mut Vec<u8>,
) -> Result<(u64, Seen), ArchiveError> {
    let audit = audit_object(store, &job.name, volume, image)?;
    let header = &audit.header;
    if header.volume.geometry.segment_blocks != volume.geometry.segment_blocks {
        return Err(ArchiveError::Object { name: job.name, source: ObjectError::Summary });
    }
    let missing = audit.bad.iter().map(|bad| {
        let first = header.first.0;
        let what = match &bad.error {
            ArchiveError::Object { source, .. } => source.to_string(),
            other => other.to_string(),
        };
        let offsets = first.saturating_add(bad.blocks.start)..first.saturating_add(bad.blocks.end);
        Flaw { frame: u32::try_from(bad.rank).ok(), ..Flaw::new(Some(offsets), what) }
    });
    let looked_at = Image {
        bytes: image,
        first: header.first,
        volume: &header.volume,
        segment: job.name.segment,
        open: None,
        may_lack_summary: false,
    };
    let mut seen = inspect(&looked_at, missing.collect());
    if seen.summary.as_ref().is_some_and(|summary| !header.agrees(summary)) {
        seen.flaws.push(Flaw::new(None, ObjectError::Summary));
        seen.summary = None;
    }
    Ok((audit.bytes, seen))
}

/// Takes what an object gave. What is gone from the store was deleted: for one that others stand for, that is right.
pub(super) fn take(survey: &mut Survey<'_>, store: &Arc<dyn Store>, audited: Audited) -> Result<(), HistoryError> {
    let Job { name, used, .. } = audited.job;
    let segment = name.segment;
    let place = if used { format!("object {name}") } else { format!("object {name}, which no reader takes") };
    let seen = match audited.outcome {
        Ok((bytes, seen)) => {
            survey.bytes += bytes;
            seen
        }
        Err(ArchiveError::Store(error)) => {
            // When the store as a whole fails, nothing is known of what is in it.
            let listed: BTreeSet<ObjectName> = store.names()?.into_iter().collect();
            if !listed.contains(&name) {
                return Ok(());
            }
            if let StoreError::Refused { .. } = error {
                return Err(error.into());
            }
            Seen { flaws: vec![Flaw::new(None, error)], ..Seen::default() }
        }
        Err(ArchiveError::Object { source, .. }) => Seen { flaws: vec![Flaw::new(None, source)], ..Seen::default() },
        Err(error) => Seen { flaws: vec![Flaw::new(None, error)], ..Seen::default() },
    };
    survey.objects += 1;
    survey.blocks += seen.blocks;
    if used {
        let kind = if name.part == 0 { Kind::Whole } else { Kind::Part };
        survey.copies.push(SegmentCopy::new(segment, seen.summary.as_ref(), kind));
    } else {
        survey.unused.push(name.to_string());
    }
    for flaw in seen.flaws {
        if used {
            survey.flaw(place.clone(), Some(segment), flaw);
        } else {
            survey.harmless(place.clone(), Some(segment), flaw);
        }
    }
    Ok(())
}
