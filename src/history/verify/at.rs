//! What one point needs, and no more: its segments chained, each block that it wants read from every copy there is.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Instant;

use super::{VerifyFinding, VerifyReport, reachable};
use crate::archive::ArchiveError;
use crate::format::{BLOCK_BYTES, Block};
use crate::history::fetch::{Missing, Want, from_object, from_slot, objects, wants};
use crate::history::restore::located;
use crate::history::source::Located;
use crate::history::{HistoryError, Moment, PointIndex, Progress, Sited, Source, index_at};

/// Blocks of a frame.
const FRAME_BLOCKS: u32 = (crate::archive::FRAME_BYTES / BLOCK_BYTES) as u32;

/// Verifies what `moment` needs.
///
/// # Errors
/// When it cannot be restored at all, or primary or archive cannot be read. Damage of blocks is in the report.
pub fn verify_at(source: &Source, moment: &Moment, progress: &Progress) -> Result<VerifyReport, HistoryError> {
    let started = Instant::now();
    reachable(source)?;
    let index =
        index_at(source, source.volume(), moment.segment, moment.position).map_err(|error| source.judged(error))?;
    let id = moment.mark.as_ref().map_or_else(|| moment.position.to_string(), |mark| format!("p{}", mark.point));
    let mut report = VerifyReport {
        name: source.volume().name.clone(),
        uuid: source.volume().uuid.to_string(),
        at: Some(id.clone()),
        segments: u64::from(index.segments_read()),
        ..VerifyReport::default()
    };
    let live = (0..index.blocks()).filter(|block| matches!(index.get(Block(*block)), Sited::At(..))).count();
    progress.begin("verifying", live as u64, 0);
    for (segment, checksum) in index.chain().iter().rev() {
        let found = located(source, &index, (*segment, *checksum)).map_err(|error| source.judged(error))?;
        let wants = wants(&index, &found.summary);
        progress.add(wants.len() as u64);
        if !wants.is_empty() {
            verify_segment(source, &found, &wants, &mut report)?;
        }
    }
    lost(&index, &mut report);
    progress.end();
    for finding in report.findings.iter_mut().filter(|finding| !finding.covered) {
        finding.points.push(id.clone());
    }
    report.ok = report.findings.is_empty();
    if report.findings.iter().any(|finding| !finding.covered) {
        report.points_affected.push(id);
    } else {
        report.points = 1;
    }
    report.seconds = started.elapsed().as_secs_f64();
    Ok(report)
}

/// What a copy did not give, and why.
struct Short {
    place: String,
    archived: bool,
    missing: Vec<Missing>,
}

fn verify_segment(
    source: &Source,
    found: &Located,
    wants: &[Want],
    report: &mut VerifyReport,
) -> Result<(), HistoryError> {
    let segment = found.summary.segment;
    let mut had = BTreeSet::new();
    let mut shorts = Vec::new();
    let mut note = |report: &mut VerifyReport, asked: &[Want], short: Short| {
        report.blocks += asked.len() as u64;
        report.bytes += (asked.len() * BLOCK_BYTES) as u64;
        let missing: BTreeSet<u32> = short.missing.iter().map(|missing| missing.want.offset.0).collect();
        had.extend(asked.iter().map(|want| want.offset.0).filter(|offset| !missing.contains(offset)));
        shorts.push(short);
    };
    if let (Some(view), Some(slot)) = (&source.primary, found.slot) {
        let missing = from_slot(view, slot, segment, wants, &mut |_| Ok(()))?;
        // A segment that has left its slot is in the archive.
        if view.holds(slot, segment).unwrap_or(true) {
            let at = view.volume.geometry.slot_place(slot).bytes();
            let cause: Arc<str> = "the data does not match its checksum".into();
            let missing = missing.into_iter().map(|want| Missing { want, cause: Arc::clone(&cause) }).collect();
            note(report, wants, Short { place: format!("slot {slot} at {at:#x}"), archived: false, missing });
        }
    }
    for archived in objects(source, found)? {
        match source.open_archived(&archived) {
            Ok(object) => {
                let there = object.summary();
                let same = there.last_checksum == found.summary.last_checksum;
                let last = there.last_position();
                // Of another past. The last segment may have gone on since.
                if !same && object.header().name.part == 0 && last <= found.summary.last_position() {
                    continue;
                }
                let asked: Vec<Want> = wants.iter().filter(|want| want.position <= last).copied().collect();
                let names: Vec<String> = object.names().iter().map(ToString::to_string).collect();
                report.objects += names.len() as u64;
                let missing = from_object(object, &asked, &mut |_| Ok(()))?;
                note(report, &asked, Short { place: format!("object {}", names.join(", ")), archived: true, missing });
            }
            Err(HistoryError::DamagedObject { source: ArchiveError::Store(error), .. }) => return Err(error.into()),
            Err(error) => {
                let place = source.store.as_ref().map_or_else(String::new, |store| store.spec());
                let cause: Arc<str> = error.to_string().into();
                let missing = wants.iter().map(|want| Missing { want: *want, cause: Arc::clone(&cause) }).collect();
                note(report, &[], Short { place, archived: true, missing });
            }
        }
    }
    if shorts.is_empty() {
        let archive = source.archive_word();
        return Err(HistoryError::Gone { position: wants[0].position, segment, archive });
    }
    for short in shorts {
        report.findings.extend(short.missing.iter().map(|Missing { want, cause }| VerifyFinding {
            place: short.place.clone(),
            segment: Some(segment.0),
            frame: short.archived.then_some(want.offset.0 / FRAME_BLOCKS),
            offset: Some(want.offset.0),
            offset_end: Some(want.offset.0 + 1),
            block: Some(want.block.0),
            blocks: vec![want.block.0],
            position: Some(want.position.0),
            position_end: Some(want.position.0),
            what: cause.to_string(),
            covered: had.contains(&want.offset.0),
            points: Vec::new(),
            points_unknown: false,
        }));
    }
    Ok(())
}

/// Blocks that were lost before.
fn lost(index: &PointIndex, report: &mut VerifyReport) {
    for block in (0..index.blocks()).filter(|block| index.get(Block(*block)) == Sited::Lost) {
        report.findings.push(VerifyFinding {
            place: "log".to_owned(),
            segment: None,
            frame: None,
            offset: None,
            offset_end: None,
            block: Some(block),
            blocks: vec![block],
            position: None,
            position_end: None,
            what: "lost: its only copy had become unreadable before this point".to_owned(),
            covered: false,
            points: Vec::new(),
            points_unknown: false,
        });
    }
}
