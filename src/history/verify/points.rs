//! From damage to the points that need it.
//!
//! A damaged place is asked for as a restore would ask, of the slot and then of the archive; what comes back is covered.
//! The others are followed through the log, oldest first: a place is needed from its entry on until the next entry of
//! its block. A segment that cannot be had, or breaks the chain, costs all points whose windows reach over it.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::time::Duration;

use super::image::{Flaw, Hurt};
use super::{Kind, SegmentCopy, Sighted, Survey, VerifyFinding, VerifyReport};
use crate::format::{EntryKind, Offset, SegmentNumber, Summary};
use crate::history::digest::Depth;
use crate::history::fetch::{Want, fetch};
use crate::history::pins::LetGo;
use crate::history::point::Stop;
use crate::history::scan::oldest_needed;
use crate::history::{HistoryError, Source};

/// A chain that is broken is looked at again: a running volume moves segments from slots to the archive.
const LOOKS_MAX: u32 = 3;
const BETWEEN_LOOKS: Duration = Duration::from_millis(50);

/// Makes the report of what was sighted.
pub(super) fn judge(source: &Source, survey: Survey<'_>) -> Result<VerifyReport, HistoryError> {
    let (stops, broken, let_go) = chained(source)?;
    let mut judge =
        Judge { source, stops, let_go, costs: Vec::new(), sighted: survey.sighted, window: BTreeMap::new() };
    judge.costs.resize_with(judge.sighted.len(), Cost::default);
    judge.breaks(&broken, &survey.copies);
    if let Some((rank, points)) = &survey.behind {
        let there = judge.stops.iter().filter(|stop| stop.is_restorable()).flat_map(|stop| &stop.marks);
        let there: BTreeSet<u64> = there.map(|mark| mark.point).collect();
        judge.costs[*rank].uncovered = true;
        judge.costs[*rank].points.extend(points.iter().filter(|point| !there.contains(point)));
    }
    for (rank, sighted) in judge.sighted.iter().enumerate() {
        judge.costs[rank].uncovered |= sighted.alone;
        // What cannot be told apart costs every point that reaches into the segment.
        if let (true, Some(segment)) = (sighted.coarse, sighted.segment) {
            judge.costs[rank].uncovered = true;
            judge.costs[rank].points.extend(reaching(&judge.stops, &judge.let_go, segment));
        }
    }
    let uncovered = judge.uncovered()?;
    let lost = survey.copies.iter().filter(|copy| copy.lost).map(|copy| copy.segment).min();
    judge.follow(&uncovered, lost)?;
    judge.hidden(&survey.copies);

    let read: HashSet<(SegmentNumber, _)> =
        survey.copies.iter().filter_map(|copy| Some((copy.segment, copy.last_checksum?))).collect();
    let cut = judge.sighted.iter().any(|sighted| sighted.coarse);
    let affected: BTreeSet<u64> = judge.costs.iter().flat_map(|cost| &cost.points).copied().collect();
    // All segments of a window must be chained, and have been read.
    let mut unread = SegmentNumber(0);
    let mut points = 0;
    for stop in &judge.stops {
        if !read.contains(&(stop.segment, stop.last_checksum)) {
            log::debug!("segment {} was not read as the chain has it", stop.segment);
            unread = stop.segment;
        }
        if stop.is_restorable() && stop.oldest_needed > unread {
            points += stop.marks.iter().filter(|mark| !affected.contains(&mark.point)).count() as u64;
        }
    }
    let segments: BTreeSet<SegmentNumber> = survey.copies.iter().map(|copy| copy.segment).collect();
    let unknown = judge.sighted.iter().zip(&judge.costs).filter(|(_, cost)| cost.unknown);
    let unknown: BTreeSet<u64> = unknown.filter_map(|(sighted, _)| Some(sighted.segment?.0)).collect();
    let findings = judge.sighted.into_iter().zip(judge.costs).map(|(sighted, cost)| finding(sighted, &cost));
    Ok(VerifyReport {
        segments: segments.len() as u64,
        objects: survey.objects,
        bytes: survey.bytes,
        blocks: survey.blocks,
        points,
        points_affected: affected.iter().map(|point| format!("p{point}")).collect(),
        segments_unknown: unknown.into_iter().collect(),
        objects_unused: survey.unused,
        cut,
        findings: findings.collect(),
        ..VerifyReport::default()
    })
}

fn finding(sighted: Sighted, cost: &Cost) -> VerifyFinding {
    let flaw = sighted.flaw;
    let blocks: BTreeSet<u64> = flaw.hurts.iter().map(|hurt| hurt.block.0).chain(cost.lost).collect();
    VerifyFinding {
        place: sighted.place,
        segment: sighted.segment.map(|segment| segment.0),
        frame: flaw.frame,
        offset: flaw.offsets.as_ref().map(|offsets| offsets.start),
        offset_end: flaw.offsets.as_ref().map(|offsets| offsets.end),
        block: blocks.first().copied(),
        blocks: blocks.into_iter().collect(),
        position: flaw.positions.map(|(first, _)| first.0),
        position_end: flaw.positions.map(|(_, last)| last.0),
        what: flaw.what,
        covered: !cost.uncovered && !cost.unknown && cost.points.is_empty(),
        points: cost.points.iter().map(|point| format!("p{point}")).collect(),
        points_unknown: cost.unknown,
    }
}

/// The chain as it is, the segments that are missing in it or break it, and those that have gone on purpose.
fn chained(source: &Source) -> Result<(Vec<Stop>, BTreeSet<SegmentNumber>, LetGo), HistoryError> {
    let mut looks = 0;
    loop {
        source.refresh()?;
        let stops = source.stops(Depth::Summaries, |_| false)?.stops;
        let let_go = source.let_go()?;
        let broken = broken(source, &stops, &let_go);
        looks += 1;
        if broken.is_empty() || source.primary.is_none() || looks == LOOKS_MAX {
            return Ok((stops, broken, let_go));
        }
        std::thread::sleep(BETWEEN_LOOKS);
    }
}

fn broken(source: &Source, stops: &[Stop], let_go: &LetGo) -> BTreeSet<SegmentNumber> {
    let numbers = source.numbers();
    let (Some(oldest), Some(newest)) = (numbers.first(), numbers.last()) else { return BTreeSet::new() };
    let mut oldest = *oldest;
    if source.store.is_none() {
        // What is older than the working set is there by chance.
        let tail = source.primary.as_ref().and_then(|view| view.slots.tail.as_ref());
        oldest = tail.map_or(*newest, |tail| oldest_needed(&tail.summary));
    }
    let mut broken = BTreeSet::new();
    let mut expected = oldest;
    for stop in stops.iter().filter(|stop| stop.segment >= oldest) {
        broken.extend((expected.0..stop.segment.0).take(numbers.len() + 1).map(SegmentNumber));
        if stop.chained_from == stop.segment && stop.segment > oldest {
            broken.insert(stop.segment.minus(1));
        }
        expected = stop.segment.plus(1);
    }
    broken.extend((expected.0..=newest.0).take(numbers.len() + 1).map(SegmentNumber));
    broken.extend(let_go.pinned().filter(|segment| segment < newest && numbers.binary_search(segment).is_err()));
    // What was pruned or expired is missed by nobody.
    broken.retain(|segment| !let_go.has(*segment) || numbers.binary_search(segment).is_ok());
    // Without an archive, what has left its slot since is nowhere, and is needed nowhere.
    broken.retain(|segment| source.store.is_some() || !has_left(source, *segment));
    broken
}

fn has_left(source: &Source, segment: SegmentNumber) -> bool {
    let Some(view) = &source.primary else { return false };
    let slots = view.slots.found.get(&segment);
    slots.is_some_and(|slots| !slots.iter().any(|slot| view.holds(*slot, segment).unwrap_or(true)))
}

/// The points whose windows reach over `segment`.
fn reaching(stops: &[Stop], let_go: &LetGo, segment: SegmentNumber) -> Vec<u64> {
    let mut points = Vec::new();
    let mut oldest = stops.first().map_or(SegmentNumber(0), |stop| stop.segment);
    let mut expected = oldest;
    for stop in stops {
        if stop.segment > expected && let_go.has(stop.segment.minus(1)) {
            oldest = stop.segment;
        }
        expected = stop.segment.plus(1);
        // What needs something older than everything there is, or than a gap before it, has gone with its time.
        if (stop.oldest_needed..=stop.segment).contains(&segment) && stop.oldest_needed >= oldest {
            points.extend(stop.marks.iter().map(|mark| mark.point));
        }
    }
    points
}

/// What a flaw costs.
#[derive(Debug, Default)]
struct Cost {
    uncovered: bool,
    points: BTreeSet<u64>,
    /// Points that were marked in the segment, and cannot be named.
    unknown: bool,
    lost: Option<u64>,
}

/// Places that are in no good copy: the flaws that hit them, by segment and offset.
type Uncovered = BTreeMap<(SegmentNumber, u32), (Hurt, Vec<usize>)>;

struct Judge<'a> {
    source: &'a Source,
    stops: Vec<Stop>,
    let_go: LetGo,
    sighted: Vec<Sighted>,
    /// In the order of `sighted`.
    costs: Vec<Cost>,
    /// Blocks that cannot be had as of now: since which segment, and which flaws say so.
    window: BTreeMap<u64, (SegmentNumber, Vec<usize>)>,
}

impl Judge<'_> {
    fn sight(&mut self, place: String, segment: SegmentNumber, flaw: Flaw) -> usize {
        self.sighted.push(Sighted {
            place,
            segment: Some(segment),
            flaw,
            harmless: false,
            coarse: false,
            alone: false,
        });
        self.costs.push(Cost { uncovered: true, ..Cost::default() });
        self.costs.len() - 1
    }

    fn flaws_of(&self, segment: SegmentNumber) -> Vec<usize> {
        let of = |sighted: &Sighted| sighted.segment == Some(segment) && !sighted.harmless;
        (0..self.sighted.len()).filter(|rank| of(&self.sighted[*rank])).collect()
    }

    /// Segments that cannot be had.
    fn breaks(&mut self, broken: &BTreeSet<SegmentNumber>, copies: &[SegmentCopy]) {
        for segment in broken {
            let mut ranks = self.flaws_of(*segment);
            ranks.retain(|rank| self.sighted[*rank].flaw.hurts.is_empty());
            if ranks.is_empty() {
                let there = self.source.numbers().contains(segment);
                let what = match (there, &self.source.primary, &self.source.store) {
                    (true, ..) => "it does not continue the chain of checksums to the next segment",
                    (_, Some(_), Some(_)) => "it is missing: it is in no slot, and not in the archive",
                    (_, None, _) => "it is missing in the archive",
                    (_, _, None) => "it is missing: it is in no slot",
                };
                let place = match &self.source.store {
                    Some(store) => store.spec(),
                    None => "primary".to_owned(),
                };
                ranks = vec![self.sight(place, *segment, Flaw::new(None, what))];
            }
            let mut points = reaching(&self.stops, &self.let_go, *segment);
            points.extend(self.let_go.pinned_over(*segment));
            // Of one that is not in the chain, the marks are those of a copy whose batches could be read all the same.
            let outside = !self.stops.iter().any(|stop| stop.segment == *segment);
            let (readable, unreadable): (Vec<_>, Vec<_>) =
                copies.iter().filter(|copy| copy.segment == *segment).partition(|copy| copy.last_checksum.is_some());
            // Parts say nothing of what is in another.
            let whole = readable.iter().any(|copy| copy.kind != Kind::Part);
            let unknown = outside && !whole && (readable.is_empty() || !unreadable.is_empty());
            if outside {
                points.extend(readable.iter().flat_map(|copy| &copy.marks));
            }
            for rank in ranks {
                let cost = &mut self.costs[rank];
                (cost.uncovered, cost.unknown) = (true, unknown);
                cost.points.extend(&points);
            }
        }
    }

    /// The damaged places of which a restore would get no good copy.
    fn uncovered(&mut self) -> Result<Uncovered, HistoryError> {
        let mut hurt: Uncovered = BTreeMap::new();
        for (rank, sighted) in self.sighted.iter().enumerate().filter(|(_, sighted)| !sighted.harmless) {
            for place in &sighted.flaw.hurts {
                let Some(segment) = sighted.segment else { continue };
                hurt.entry((segment, place.offset.0)).or_insert((*place, Vec::new())).1.push(rank);
            }
        }
        let segments: BTreeSet<SegmentNumber> = hurt.keys().map(|(segment, _)| *segment).collect();
        let mut uncovered = Uncovered::new();
        for segment in segments {
            let places: Vec<Hurt> =
                hurt.range((segment, 0)..=(segment, u32::MAX)).map(|(_, (place, _))| *place).collect();
            for offset in self.not_had(segment, &places) {
                if let Some((place, ranks)) = hurt.remove(&(segment, offset)) {
                    ranks.iter().for_each(|rank| self.costs[*rank].uncovered = true);
                    uncovered.insert((segment, offset), (place, ranks));
                }
            }
        }
        Ok(uncovered)
    }

    /// Asks for `places`, which are in order, as a restore would; returns the offsets that it would not get.
    fn not_had(&self, segment: SegmentNumber, places: &[Hurt]) -> Vec<u32> {
        let all = || places.iter().map(|place| place.offset.0).collect();
        let checksum = self.stops.iter().find(|stop| stop.segment == segment).map(|stop| stop.last_checksum);
        let located = match checksum.map(|checksum| self.source.locate(segment, Some(checksum))) {
            Some(Ok(Some(located))) => located,
            _ => return all(),
        };
        // Of a copy of another past nothing is needed.
        let said = places_of(&located.summary);
        let needed = places.iter().filter(|place| said.get(&place.offset.0) == Some(&(place.block.0, place.crc)));
        let wants = needed.map(|place| {
            let Hurt { offset, block, crc, position } = *place;
            Want { offset, block, crc, position }
        });
        let wants: Vec<Want> = wants.collect();
        if wants.is_empty() {
            return Vec::new();
        }
        match fetch(self.source, &located, wants, &mut |_| Ok(())) {
            Ok(fetched) => fetched.damaged.iter().filter_map(|damage| damage.offset).collect(),
            Err(error) => {
                log::info!("segment {segment}: {error}");
                all()
            }
        }
    }

    /// Follows the log from the oldest damage on.
    fn follow(&mut self, uncovered: &Uncovered, lost: Option<SegmentNumber>) -> Result<(), HistoryError> {
        let first = uncovered.keys().next().map(|(segment, _)| *segment);
        let Some(from) = first.into_iter().chain(lost).min() else { return Ok(()) };
        let last = uncovered.keys().next_back().map(|(segment, _)| *segment);
        let mut told = HashMap::new();
        for rank in 0..self.stops.len() {
            let stop = &self.stops[rank];
            let (segment, checksum) = (stop.segment, stop.last_checksum);
            let over = self.window.is_empty() && lost.is_none() && last.is_none_or(|last| segment > last);
            if segment < from || over {
                continue;
            }
            let Some(located) = self.source.locate(segment, Some(checksum))? else { continue };
            self.walk(rank, &located.summary, uncovered, &mut told);
        }
        Ok(())
    }

    fn walk(&mut self, rank: usize, summary: &Summary, uncovered: &Uncovered, told: &mut HashMap<u64, usize>) {
        let segment = summary.segment;
        for (position, batch, entries) in summary.walk() {
            let mut offset = batch.offset();
            for entry in entries {
                let Ok(kind) = entry.kind() else { continue };
                if kind.has_data() {
                    offset = offset.plus(1);
                }
                let block = entry.block().0;
                match kind {
                    EntryKind::Write | EntryKind::Copy => {
                        self.window.remove(&block);
                        let hit = uncovered.get(&(segment, offset.0));
                        if let Some((_, ranks)) = hit.filter(|(hurt, _)| hurt.block.0 == block) {
                            self.window.insert(block, (segment, ranks.clone()));
                        }
                    }
                    EntryKind::Trim | EntryKind::Zero => {
                        let range = block..block.saturating_add(u64::from(entry.count()));
                        let gone: Vec<u64> = self.window.range(range).map(|(block, _)| *block).collect();
                        gone.iter().for_each(|block| drop(self.window.remove(block)));
                    }
                    EntryKind::Lost => {
                        let known = told.get(&block).copied();
                        let finding = known.unwrap_or_else(|| {
                            let what = "lost: its only copy had become unreadable when it was due to be copied";
                            let flaw = Flaw { positions: Some((position, position)), ..Flaw::new(None, what) };
                            let finding = self.sight(format!("position {position}"), segment, flaw);
                            self.costs[finding].lost = Some(block);
                            finding
                        });
                        told.insert(block, finding);
                        self.window.insert(block, (segment, vec![finding]));
                    }
                    _ => {}
                }
            }
            let stop = &self.stops[rank];
            if stop.is_restorable() && stop.marks.iter().any(|mark| mark.point == position.0) {
                let needed = self.window.values().filter(|(since, _)| *since >= stop.oldest_needed);
                for finding in needed.flat_map(|(_, ranks)| ranks) {
                    self.costs[*finding].points.insert(position.0);
                }
            }
        }
    }

    /// An open segment that there is in parts only: where one cannot be read, the chain ends before it, and the points that
    /// the later ones know are not reached.
    fn hidden(&mut self, copies: &[SegmentCopy]) {
        let parts = copies.iter().filter(|copy| copy.kind == Kind::Part);
        let segments: BTreeSet<SegmentNumber> = parts.map(|copy| copy.segment).collect();
        for segment in segments {
            let copies: Vec<&SegmentCopy> = copies.iter().filter(|copy| copy.segment == segment).collect();
            if copies.iter().any(|copy| copy.kind != Kind::Part && copy.last_checksum.is_some()) {
                continue;
            }
            let mut ranks = self.flaws_of(segment);
            ranks.retain(|rank| self.sighted[*rank].flaw.offsets.is_none());
            let stop = self.stops.iter().find(|stop| stop.segment == segment);
            let known = |point: &u64| stop.is_some_and(|stop| stop.marks.iter().any(|mark| mark.point == *point));
            let marks = copies.iter().flat_map(|copy| &copy.marks);
            let hidden: Vec<u64> = marks.copied().filter(|point| !known(point)).collect();
            let found = stop.map(|stop| self.source.locate(segment, Some(stop.last_checksum)));
            let found = found.and_then(|found| found.ok().flatten());
            let cut_off = found.is_some_and(|found| self.source.cut_off(&found).is_some());
            for rank in ranks {
                self.costs[rank].uncovered = true;
                self.costs[rank].unknown |= cut_off;
                self.costs[rank].points.extend(&hidden);
            }
        }
    }
}

/// What the entries of a segment say of its data blocks.
fn places_of(summary: &Summary) -> HashMap<u32, (u64, u32)> {
    let mut places = HashMap::new();
    for (_, batch, entries) in summary.walk() {
        let mut offset: Offset = batch.offset();
        for entry in entries {
            if entry.kind().is_ok_and(|kind| kind.has_data()) {
                offset = offset.plus(1);
                places.insert(offset.0, (entry.block().0, entry.crc()));
            }
        }
    }
    places
}
