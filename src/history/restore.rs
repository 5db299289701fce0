//! Restore: the volume as it was at a moment, written to a file or a device.
//!
//! One backward scan, then each segment once, in the order of the log: what lives in it is read, verified and written.
//! A block that is lost or damaged is reported and becomes zeros; the rest is restored.

use std::path::Path;
use std::time::Instant;

use serde::Serialize;

use super::fetch::{Want, fetch};
use super::source::Located;
use super::{Damage, HistoryError, Moment, PointIndex, Progress, Sited, Source, Target, index_at};
use crate::format::{BLOCK_BYTES, Block, Checksum, Position, SegmentNumber, Summary};

/// What a restore did.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct RestoreReport {
    /// `p42`, or the position.
    pub point: String,
    pub position: u64,
    pub consistency: super::Consistency,
    /// Size of the volume.
    pub bytes: u64,
    /// Blocks with data.
    pub blocks: u64,
    /// Segments that the scan read.
    pub segments: u64,
    /// Blocks from the primary, and from the archive.
    pub from_primary: u64,
    pub from_archive: u64,
    pub seconds: f64,
    /// Blocks that are zeros in the target and were not in the volume.
    pub damaged: Vec<Damage>,
}

/// Writes the volume as it was at `moment` to `to`.
///
/// # Errors
/// When the moment cannot be restored, or the target cannot be written. Damage of single blocks is in the report.
pub fn restore(
    source: &Source,
    moment: &Moment,
    to: &Path,
    force: bool,
    progress: &Progress,
) -> Result<RestoreReport, HistoryError> {
    let started = Instant::now();
    let index =
        index_at(source, source.volume(), moment.segment, moment.position).map_err(|error| source.judged(error))?;
    let bytes = index.blocks() * BLOCK_BYTES as u64;
    let mut target = Target::open(to, bytes, force, source.primary_path())?;
    let mut report = RestoreReport {
        point: moment.mark.as_ref().map_or_else(|| moment.position.to_string(), |mark| format!("p{}", mark.point)),
        position: moment.position.0,
        consistency: moment.consistency,
        bytes,
        blocks: 0,
        segments: u64::from(index.segments_read()),
        from_primary: 0,
        from_archive: 0,
        seconds: 0.0,
        damaged: Vec::new(),
    };
    progress.begin("restoring", index.mapped());
    for (segment, checksum) in index.chain().iter().rev() {
        let restored = restore_segment(source, &index, (*segment, *checksum), &mut target, &mut report, progress);
        restored.map_err(|error| source.judged(error))?;
    }
    zero_the_rest(&index, &mut target, &mut report)?;
    target.finish()?;
    progress.end();
    report.damaged.sort_by_key(|damage| damage.block);
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

fn restore_segment(
    source: &Source,
    index: &PointIndex,
    (segment, checksum): (SegmentNumber, Checksum),
    target: &mut Target,
    report: &mut RestoreReport,
    progress: &Progress,
) -> Result<(), HistoryError> {
    let located = located(source, segment, checksum, index.position())?;
    let wants = wants(index, &located.summary);
    if wants.is_empty() {
        return Ok(());
    }
    let fetched = fetch(source, &located, wants, &mut |arrived| {
        target.write(arrived)?;
        progress.add(arrived.len() as u64);
        Ok(())
    })?;
    for damage in &fetched.damaged {
        target.zero(Block(damage.block), 1)?;
    }
    report.blocks += fetched.from_primary + fetched.from_archive;
    report.from_primary += fetched.from_primary;
    report.from_archive += fetched.from_archive;
    report.damaged.extend(fetched.damaged);
    Ok(())
}

/// The segment that the scan has read, wherever it is by now.
fn located(
    source: &Source,
    segment: SegmentNumber,
    checksum: Checksum,
    position: Position,
) -> Result<Located, HistoryError> {
    if let Some(located) = source.locate(segment, Some(checksum))? {
        return Ok(located);
    }
    source.refresh()?;
    let gone = HistoryError::Gone { position, segment, archive: source.archive_word() };
    source.locate(segment, Some(checksum))?.ok_or(gone)
}

/// The blocks whose newest version at the index's position is in the segment of `summary`, in the order of offsets.
fn wants(index: &PointIndex, summary: &Summary) -> Vec<Want> {
    let mut wants = Vec::new();
    for (position, batch, entries) in summary.walk().take_while(|(position, ..)| *position <= index.position()) {
        let mut offset = batch.offset();
        for entry in entries {
            if entry.kind().is_ok_and(|kind| kind.has_data()) {
                offset = offset.plus(1);
                let (block, crc) = (entry.block(), entry.crc());
                // The entry of a synch point has a number there that may be any block's; its place is none's.
                if block.0 < index.blocks() && index.get(block) == Sited::At(summary.segment, offset, crc) {
                    wants.push(Want { offset, block, crc, position });
                }
            }
        }
    }
    wants
}

/// Zeros where nothing was mapped, or what was is lost.
fn zero_the_rest(index: &PointIndex, target: &mut Target, report: &mut RestoreReport) -> Result<(), HistoryError> {
    let mut run = 0;
    for number in 0..index.blocks() {
        let block = Block(number);
        let sited = index.get(block);
        if sited == Sited::Lost {
            let cause = "lost: its only copy had become unreadable before this point".to_owned();
            let lost = Damage { block: number, position: None, segment: None, offset: None, frame: None, cause };
            report.damaged.push(lost);
        }
        if matches!(sited, Sited::At(..)) {
            target.zero(Block(number - run), run)?;
            run = 0;
        } else {
            run += 1;
        }
    }
    target.zero(Block(index.blocks() - run), run)?;
    Ok(())
}
