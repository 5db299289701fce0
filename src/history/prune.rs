//! Pruning: what no rule, no pin and nobody else needs leaves the archive.
//!
//! What stays, besides what the rule keeps: what rebuilding the volume from the archive needs, so the window of the newest
//! segment there; what a view of the past or a rollback reads; what is pinned; and every fork record, without which nothing
//! older than a rebuild could be found. All else goes, the oldest first: what is left when a prune ends early is in one
//! piece, and the next prune goes on.

use std::collections::BTreeSet;

use serde::{Deserialize, Serialize};

use super::digest::Depth;
use super::pins::{Leased, Removal};
use super::point::Stop;
use super::scan::oldest_needed;
use super::text::rfc3339;
use super::{HistoryError, Segments, Source};
use crate::archive::{Lineage, one_piece_from};
use crate::format::{Position, SegmentNumber};
use crate::log::Rollback;

/// What a rule keeps.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Every moment from this time on, nanoseconds since 1970, UTC.
    Since(i64),
    /// So many of the newest synch points that can be restored, and every moment since.
    Points(u64),
}

/// What a prune removed, or would: the JSON of `salvol prune`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
pub struct PruneReport {
    pub dry_run: bool,
    /// What was removed.
    pub segments: u64,
    pub objects: u64,
    pub bytes: u64,
    /// RFC 3339: since then every moment can be restored, whatever becomes of the primary's old slots.
    pub oldest_restorable: Option<String>,
    #[serde(skip)]
    pub oldest_restorable_ns: Option<i64>,
}

/// Removes from the archive of `source` what `keep` and nobody else needs, whoever reads the past; `leased` is asked again before
/// each segment goes. With `dry_run` nothing goes.
///
/// # Errors
/// When there is no archive, it fails, or it is not known what must stay.
pub fn prune(source: &Source, keep: Keep, leased: &Leased<'_>, dry_run: bool) -> Result<PruneReport, HistoryError> {
    let store = source.archive()?;
    Lineage::refuse_stranger(store, source.volume())?;
    // Others may have pruned while this waited for its turn.
    source.refresh()?;
    let mut pins = source.pins()?;
    if let Some((name, error)) = pins.damaged.pop() {
        return Err(HistoryError::DamagedPin { name, source: Box::new(error) });
    }
    let reach = source.stops(Depth::Headers, |_| false)?;
    for (_, error) in reach.unread {
        match error {
            error if error.is_of_store() => return Err(error.plain()),
            error => log::warn!("{error}"),
        }
    }
    let archived = source.archived_segments();
    let rebuild_needs = rebuild_needs(&archived, source.volume().geometry.working_set);
    let bounds = [
        Some(ruled(&reach.stops, keep)),
        moment_needs(source, keep)?,
        Some(rebuild_needs),
        under_way(source)?,
        leased(),
    ];
    let kept_from = bounds.into_iter().flatten().min().unwrap_or_default();
    let removal = Removal::of(store, |segment| segment < kept_from && !pins.keep(segment))?;
    if !dry_run {
        removal.remove(store, leased)?;
        source.refresh()?;
    }
    let (segments, objects, bytes) = removal.sizes();
    let left = archived.into_iter().filter(|segment| *segment >= kept_from || pins.keep(*segment)).collect();
    let chain = one_piece_from(&left, kept_from);
    let last = reach.stops.last().map(|stop| stop.chained_from);
    let is_whole =
        |stop: &&Stop| Some(stop.chained_from) == last && stop.is_restorable() && stop.oldest_needed >= chain;
    let oldest = reach.stops.iter().find(is_whole).map(|stop| stop.first_time_ns);
    Ok(PruneReport {
        dry_run,
        segments,
        objects,
        bytes,
        oldest_restorable: oldest.map(rfc3339),
        oldest_restorable_ns: oldest,
    })
}

/// The oldest segment that the rule needs; the first there is when it keeps everything.
fn ruled(stops: &[Stop], keep: Keep) -> SegmentNumber {
    let found = match keep {
        // The volume as it was at that time is what the last position before made it.
        Keep::Since(time_ns) => stops.iter().rev().find(|stop| stop.first_time_ns <= time_ns),
        Keep::Points(count) => {
            let mut left = count;
            stops.iter().rev().filter(|stop| stop.is_restorable()).find(|stop| {
                left = left.saturating_sub(stop.marks.len() as u64);
                left == 0
            })
        }
    };
    found.map_or(SegmentNumber(0), |stop| stop.oldest_needed)
}

/// The oldest segment that the moment needs which the time of the rule names: within a rollback that is the one before it.
fn moment_needs(source: &Source, keep: Keep) -> Result<Option<SegmentNumber>, HistoryError> {
    let Keep::Since(time_ns) = keep else { return Ok(None) };
    match source.resolve(&rfc3339(time_ns)) {
        Ok(moment) => needed_by(source, moment.segment).map(Some),
        // What is damaged, or is not there, is not what can be kept.
        Err(error) if error.is_no_point() || error.is_corruption() => Ok(None),
        Err(error) => Err(error),
    }
}

/// The oldest segment that rebuilding the volume from the archive needs. Several are archived at a time, so the newest may be
/// there before one that it needs: then a rebuild goes on from an older one.
fn rebuild_needs(archived: &BTreeSet<SegmentNumber>, working_set: u32) -> SegmentNumber {
    let window = |segment: SegmentNumber| segment.minus(u64::from(working_set)).max(SegmentNumber(1));
    let is_whole = |segment: &&SegmentNumber| one_piece_from(archived, **segment) <= window(**segment);
    archived.iter().rev().find(is_whole).map_or(SegmentNumber(0), |segment| window(*segment))
}

/// The oldest segment that a rollback needs which has begun and not ended: the next opening goes on with it.
pub(super) fn under_way(source: &Source) -> Result<Option<SegmentNumber>, HistoryError> {
    let Some(newest) = source.numbers().last().copied() else { return Ok(None) };
    let summary = source.summary(newest, None).map_err(HistoryError::plain)?;
    let Some(rollback) = Rollback::at(&summary, summary.last_position()) else { return Ok(None) };
    let target = needed_by(source, source.resolve(&rollback.to.to_string())?.segment)?;
    if rollback.begin == Position(1) {
        return Ok(Some(target));
    }
    // What the volume was before is what every moment in the rollback is.
    let before = needed_by(source, source.resolve(&rollback.begin.previous().to_string())?.segment)?;
    Ok(Some(target.min(before)))
}

fn needed_by(source: &Source, segment: SegmentNumber) -> Result<SegmentNumber, HistoryError> {
    Ok(oldest_needed(&*source.summary(segment, None)?))
}
