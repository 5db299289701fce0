//! Check: the structure of a primary at rest. Offline, in seconds: reads headers and summaries, decodes no data, writes
//! nothing.
//!
//! 1. Both superblocks, and that they agree.
//! 2. The header of every slot; which segment is where.
//! 3. The tail of the log, by the rule that opening it uses: a torn tail is normal, rot before a durable mark is not.
//! 4. Of each segment up to the tail: its summary against its batch headers, one by one.
//! 5. The chain through the working set: nothing missing, every link right, copies equal to what they copy.
//! 6. Live blocks only in the working set: no older segment on the primary still has the newest version of a block.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;

use super::scan::{oldest_needed, sound};
use super::{HistoryError, PointIndex, Sited};
use crate::format::{
    BLOCK_BYTES, BatchHeader, Block, Entry, EntryKind, FormatError, SegmentHeader, SegmentNumber, Slot, Summary,
    Superblock,
};
use crate::io::{Bench, Buffer, Device, Primary};
use crate::log::replay::ReplayError;
use crate::log::scan::{self, Found};
use crate::log::tail::{Tail, find_tail};

/// How bad a finding is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Worth knowing; repaired at the next attach, or harmless.
    Note,
    /// Something that was durable is damaged.
    Damage,
}

/// Something that was found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Finding {
    pub severity: Severity,
    /// Byte offset on the primary, where there is one to name.
    pub offset: Option<u64>,
    pub segment: Option<u64>,
    pub what: String,
}

impl std::fmt::Display for Finding {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(if self.severity == Severity::Damage { "damage: " } else { "note: " })?;
        if let Some(segment) = self.segment {
            write!(f, "segment {segment}")?;
            if let Some(offset) = self.offset {
                write!(f, " at {offset:#x}")?;
            }
            f.write_str(": ")?;
        } else if let Some(offset) = self.offset {
            write!(f, "at {offset:#x}: ")?;
        }
        f.write_str(&self.what)
    }
}

/// The outcome of a check: the JSON of `salvol check`.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct CheckReport {
    /// Whether no damage was found.
    pub ok: bool,
    pub name: String,
    pub uuid: String,
    pub epoch: u64,
    /// The last valid position, and the segment it is in.
    pub position: u64,
    pub segment: u64,
    /// Whether the volume was closed cleanly, exactly there.
    pub clean_close: bool,
    pub slots: u32,
    /// Slots that hold a segment of the log.
    pub slots_used: u32,
    /// Segments whose summary was held against its headers.
    pub segments_checked: u32,
    /// Segments that an index at the tail is built from.
    pub segments_needed: u32,
    pub batches: u64,
    pub entries: u64,
    pub synch_points: u64,
    /// Blocks of the volume: all, those with data, those lost.
    pub blocks: u64,
    pub blocks_live: u64,
    pub blocks_lost: u64,
    pub seconds: f64,
    pub findings: Vec<Finding>,
}

impl CheckReport {
    fn add(&mut self, severity: Severity, segment: Option<SegmentNumber>, offset: Option<u64>, what: impl ToString) {
        let segment = segment.map(|segment| segment.0);
        self.findings.push(Finding { severity, offset, segment, what: what.to_string() });
    }

    fn damage(&mut self, segment: SegmentNumber, offset: Option<u64>, what: impl ToString) {
        self.add(Severity::Damage, Some(segment), offset, what);
    }
}

/// Checks the primary at `path`, which nobody may be using: its lock is taken.
///
/// # Errors
/// When it is in use, is no volume, or cannot be read at all.
pub fn check_path(path: &Path) -> Result<CheckReport, HistoryError> {
    let bench = Bench::new(Primary::hold(path)?)?;
    let device = bench.device.clone();
    let report = bench.wait(async move { check(&device).await })??;
    report.map_err(|source| HistoryError::Superblock { path: path.display().to_string(), source })
}

/// Checks the primary behind `device`.
///
/// # Errors
/// `Ok(Err)` when there is no superblock to go by; `Err` when the device cannot be read.
pub async fn check<D: Device>(device: &D) -> io::Result<Result<CheckReport, FormatError>> {
    let started = Instant::now();
    let volume = match scan::superblock(device).await? {
        Ok((volume, _)) => volume,
        Err(error) => return Ok(Err(error)),
    };
    let mut report = CheckReport {
        name: volume.name.clone(),
        uuid: volume.uuid.to_string(),
        epoch: volume.epoch,
        slots: volume.geometry.slots,
        blocks: volume.geometry.volume_blocks,
        ..CheckReport::default()
    };
    check_superblocks(device, &volume, &mut report).await;
    check_headers(device, &volume, &mut report).await;
    let found = scan::headers(device, &volume).await?.found;
    report.slots_used = found.len() as u32;
    let tail = match find_tail(device, &volume, None).await {
        Ok(tail) => tail,
        Err(ReplayError::Io(error)) => return Err(error),
        Err(error) => {
            report.add(Severity::Damage, None, None, &error);
            match error.last_readable() {
                Some(last) => find_tail(device, &volume, Some(last)).await.ok().flatten(),
                None => None,
            }
        }
    };
    check_remade(&volume, &found, tail.as_ref(), &mut report);
    let summaries = check_segments(device, &volume, &found, tail.as_ref(), &mut report).await;
    if let Some(tail) = &tail {
        check_tail(&volume, tail, &mut report);
        check_working_set(&volume, tail, &summaries, &mut report);
    }
    report.ok = report.findings.iter().all(|finding| finding.severity < Severity::Damage);
    report.seconds = started.elapsed().as_secs_f64();
    Ok(Ok(report))
}

/// Headers that were made again from the first batch. A power cut may tear one that no flush covered, and behind the end of the log there
/// is nothing else.
fn check_remade(volume: &Superblock, found: &[Found], tail: Option<&Tail>, report: &mut CheckReport) {
    for Found { slot, header, .. } in found.iter().filter(|found| found.remade) {
        let (severity, what) = match tail.map(|tail| (tail.last.header.segment, tail.durable)) {
            Some((last, _)) if header.segment > last => {
                (Severity::Note, "the segment's header was torn, and all of it is given up: the log ends before it")
            }
            Some((last, durable)) if header.segment == last && header.first_position > durable => (
                Severity::Note,
                "the segment's header is torn; its first batch is whole, and attaching writes the header again",
            ),
            _ => (
                Severity::Damage,
                "the segment's header is damaged; its first batch is whole, and attaching writes the header again",
            ),
        };
        report.add(severity, Some(header.segment), Some(volume.geometry.slot_place(*slot).bytes()), what);
    }
}

async fn read_block<D: Device>(device: &D, offset: u64) -> io::Result<Buffer> {
    let block = Buffer::new(BLOCK_BYTES)?;
    device.read(offset, block.clone()).await?;
    Ok(block)
}

async fn check_superblocks<D: Device>(device: &D, volume: &Superblock, report: &mut CheckReport) {
    for (which, offset) in [("superblock", 0), ("copy of the superblock", volume.geometry.copy_at())] {
        let block = read_block(device, offset).await;
        let torn = block.as_ref().is_ok_and(|block| volume.may_be_torn(block.bytes()));
        match block.map(|block| Superblock::parse(block.bytes())) {
            Ok(Ok(found)) if found == *volume => {}
            Ok(Ok(found)) => {
                let what = format!(
                    "the {which} is older than the other (generation {} and {}); attach writes it again",
                    found.generation, volume.generation
                );
                report.add(Severity::Note, None, Some(offset), what);
            }
            Ok(Err(error)) if torn => {
                let what = format!(
                    "the {which}: {error}: it is as a power cut leaves it while it is written; attach writes it again from the other"
                );
                report.add(Severity::Note, None, Some(offset), what);
            }
            Ok(Err(error)) => {
                let what = format!("the {which}: {error}; attach writes it again from the other");
                report.add(Severity::Damage, None, Some(offset), what);
            }
            Err(error) => report.add(Severity::Damage, None, Some(offset), format!("the {which}: {error}")),
        }
    }
    let need = volume.geometry.primary_blocks * BLOCK_BYTES as u64;
    if device.bytes() < need {
        let what = format!("the volume was made for {need} bytes, the primary has {}", device.bytes());
        report.add(Severity::Damage, None, None, what);
    }
}

/// What the first block of a slot holds that is no segment of this log. That something is missing shows in the chain;
/// here it is only told where to look.
async fn check_headers<D: Device>(device: &D, volume: &Superblock, report: &mut CheckReport) {
    for slot in (0..volume.geometry.slots).map(Slot) {
        let offset = volume.geometry.slot_place(slot).bytes();
        match read_block(device, offset).await.map(|block| SegmentHeader::parse(block.bytes(), volume)) {
            Err(error) => {
                report.add(Severity::Damage, None, Some(offset), format!("slot {slot} cannot be read: {error}"));
            }
            Ok(Ok(header)) if header.slot != slot => {
                let what = format!("slot {slot} has the header of slot {}; it counts as free", header.slot);
                report.add(Severity::Note, None, Some(offset), what);
            }
            Ok(Ok(_) | Err(FormatError::Magic { .. } | FormatError::Identity { .. })) => {}
            Ok(Err(error)) => {
                let what = format!("slot {slot}: {error}, or it is of a volume that was here before");
                report.add(Severity::Note, None, Some(offset), what);
            }
        }
    }
}

fn check_tail(volume: &Superblock, tail: &Tail, report: &mut CheckReport) {
    let position = tail.position();
    report.position = position.0;
    report.segment = tail.last.header.segment.0;
    report.clean_close = volume
        .clean_close
        .is_some_and(|close| close.position == position && close.checksum == tail.walk.summary.last_checksum);
    if !report.clean_close {
        let what = format!("the volume was not closed cleanly; attach recovers it up to position {position}");
        report.add(Severity::Note, None, None, what);
    }
}

/// Holds the summaries of all segments before the last against their headers; returns them and the last one's, oldest
/// first.
async fn check_segments<D: Device>(
    device: &D,
    volume: &Superblock,
    found: &[Found],
    tail: Option<&Tail>,
    report: &mut CheckReport,
) -> Vec<Arc<Summary>> {
    let last = tail.map_or(SegmentNumber(u64::MAX), |tail| tail.last.header.segment);
    let mut summaries = Vec::new();
    for found in found.iter().filter(|found| found.header.segment < last) {
        let before = report.findings.len();
        if let Some(summary) = summary_of(device, volume, found, last, report).await {
            check_summary(device, volume, found, &summary, report).await;
            summaries.push(Arc::new(summary));
        }
        if tail.is_some_and(|tail| is_disposable(volume, tail, found.header.segment)) {
            // Its slot may be discarded at any time, and in part: that loses nothing.
            report.findings[before..].iter_mut().for_each(|finding| finding.severity = Severity::Note);
        }
    }
    if let Some(tail) = tail {
        summaries.push(Arc::new(tail.walk.summary.clone()));
    }
    for summary in &summaries {
        report.segments_checked += 1;
        report.batches += summary.batches.len() as u64;
        report.entries += summary.entries.len() as u64;
        report.synch_points += summary.synchs.len() as u64;
    }
    summaries
}

/// The summary of a sealed segment; one that has to be made again from the headers is worth a finding.
async fn summary_of<D: Device>(
    device: &D,
    volume: &Superblock,
    found: &Found,
    last: SegmentNumber,
    report: &mut CheckReport,
) -> Option<Summary> {
    let segment = found.header.segment;
    let offset = volume.geometry.slot_place(found.slot).bytes();
    if let Ok(summary) = scan::stored_summary(device, volume, found.slot).await
        && sound(&summary, segment)
    {
        return Some(summary);
    }
    match scan::summary(device, volume, found.slot, segment).await {
        Ok(summary) if !sound(&summary, segment) => {
            report.damage(segment, Some(offset), "its summary cannot be");
            None
        }
        Ok(summary) => {
            // A crash can keep the summary of the last full segment from the device; attach writes it then.
            let severity = if segment.plus(1) == last { Severity::Note } else { Severity::Damage };
            report.add(
                severity,
                Some(segment),
                Some(offset),
                "its summary is damaged or missing; its headers are there",
            );
            Some(summary)
        }
        Err(error) => {
            report.damage(segment, Some(offset), error);
            None
        }
    }
}

/// Whether `segment` is needed by nobody any more: behind the working set, and archived if there is an archive.
fn is_disposable(volume: &Superblock, tail: &Tail, segment: SegmentNumber) -> bool {
    let archived = tail.walk.last.map_or(SegmentNumber(0), |header| header.archived_through);
    segment < tail.oldest_needed() && (volume.backing == "none" || segment <= archived)
}

/// Each batch header must say what the summary says of it, and continue the chain.
async fn check_summary<D: Device>(
    device: &D,
    volume: &Superblock,
    found: &Found,
    summary: &Summary,
    report: &mut CheckReport,
) {
    let place = volume.geometry.slot_place(found.slot);
    let header = &found.header;
    let heads = (header.first_position, header.predecessor, header.oldest_needed);
    if heads != (summary.first_position, summary.predecessor, summary.oldest_needed) {
        report.damage(summary.segment, Some(place.bytes()), "summary and segment header do not belong together");
        return;
    }
    let mut chain = summary.predecessor;
    for (position, record, entries) in summary.walk() {
        let offset = place.plus(record.offset().0).bytes();
        let batch = match read_block(device, offset).await.map(|block| BatchHeader::parse(block.bytes(), volume)) {
            Ok(Ok(batch)) => batch,
            Ok(Err(error)) => {
                return report.damage(summary.segment, Some(offset), format!("position {position}: {error}"));
            }
            Err(error) => return report.damage(summary.segment, Some(offset), format!("position {position}: {error}")),
        };
        let agrees = batch.header.position == position
            && batch.header.segment == summary.segment
            && batch.header.offset == record.offset()
            && batch.header.epoch == record.epoch()
            && batch.data_blocks == record.data_blocks()
            && batch.entries == entries;
        if !agrees || batch.header.predecessor != chain {
            let what = format!("position {position}: its header is not what the summary and the batch before it say");
            return report.damage(summary.segment, Some(offset), what);
        }
        chain = batch.checksum;
    }
    if chain != summary.last_checksum {
        report.damage(summary.segment, None, "the summary names another last checksum than its last header has");
    }
}

/// Scans backward from the tail as a restore would, then goes on through what is older.
fn check_working_set(volume: &Superblock, tail: &Tail, summaries: &[Arc<Summary>], report: &mut CheckReport) {
    let last = &tail.walk.summary;
    if last.batches.is_empty() {
        return;
    }
    let mut index = match PointIndex::begin(volume, last, last.last_position()) {
        Ok(index) => index,
        Err(error) => return report.damage(last.segment, None, error),
    };
    let oldest = oldest_needed(last);
    let mut expected = last.segment;
    let mut older = Vec::new();
    for summary in summaries.iter().rev() {
        if summary.segment > expected {
            // Two slots with one number: the chain has decided.
            continue;
        }
        if summary.segment < oldest {
            // Behind a slot that was used again there may have been a trim of anything.
            if summary.segment.plus(1 + older.len() as u64) == oldest {
                older.push(summary);
            }
            continue;
        }
        while summary.segment < expected {
            report.damage(expected, None, "it is needed and is missing on the primary; restore from the archive");
            expected = expected.minus(1);
        }
        if let Err(error) = index.take(summary) {
            return report.damage(summary.segment, None, error);
        }
        expected = SegmentNumber(summary.segment.0 - 1);
    }
    if expected >= oldest {
        let what = format!("it and what follows up to {expected} is needed and is missing on the primary");
        return report.damage(oldest, None, what);
    }
    report.segments_needed = index.segments_read();
    for number in 0..index.blocks() {
        match index.get(Block(number)) {
            Sited::At(..) => report.blocks_live += 1,
            Sited::Lost => report.blocks_lost += 1,
            Sited::Zeros => {}
        }
    }
    if report.blocks_lost > 0 {
        let what = format!("{} blocks are lost: they read as errors until they are overwritten", report.blocks_lost);
        report.add(Severity::Note, None, None, what);
    }
    check_older(&index, &older, report);
}

/// No entry older than the working set may be the newest of its block. `older` are the segments right before it, newest first.
fn check_older(index: &PointIndex, older: &[&Arc<Summary>], report: &mut CheckReport) {
    // One bit a block.
    let mut settled = vec![0u64; index.blocks().div_ceil(64) as usize];
    for summary in older {
        let entries: Vec<(EntryKind, &Entry)> =
            summary.entries.iter().filter_map(|entry| entry.kind().ok().map(|kind| (kind, entry))).collect();
        for (kind, entry) in entries.into_iter().rev() {
            let first = entry.block().0;
            let count = match kind {
                EntryKind::Write | EntryKind::Copy | EntryKind::Lost => 1,
                EntryKind::Trim | EntryKind::Zero => u64::from(entry.count()),
                _ => continue,
            };
            for number in first..first.saturating_add(count).min(index.blocks()) {
                let (word, bit) = (&mut settled[number as usize / 64], 1 << (number % 64));
                if index.is_known(Block(number)) || *word & bit != 0 {
                    continue;
                }
                *word |= bit;
                if matches!(kind, EntryKind::Write | EntryKind::Copy | EntryKind::Lost) {
                    let what = format!("block {number} lives here, outside the working set of the tail");
                    report.damage(summary.segment, None, what);
                }
            }
        }
    }
}
