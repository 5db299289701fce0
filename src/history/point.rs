//! Synch points: which can be restored, and which one a person means.
//!
//! A point is restorable when every segment that its scan needs is there, in one chain: on the primary, in the archive,
//! or some here and some there.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::digest::{Depth, Digest, Digests};
use super::scan::READ_AHEAD;
use super::source::Located;
use super::text::{lacks_offset, parse_time, rfc3339};
use super::{HistoryError, Source};
use crate::format::{BatchRecord, Checksum, Position, SegmentNumber, Summary, SynchMark};
use crate::log::Rollback;

/// What the newest point is called.
const LATEST: &str = "latest";

fn number(digits: &str) -> Option<u64> {
    digits.parse().ok().filter(|_| digits.bytes().all(|c| c.is_ascii_digit()))
}

/// Refuses a label that means something else where a point is named, so that it could never be asked for.
///
/// # Errors
/// What it means, for the one who gave it.
pub fn check_label(label: &str) -> Result<(), String> {
    let means = match label {
        LATEST => "the newest point",
        _ if label.strip_prefix('p').and_then(number).is_some() => "a point's id",
        _ if number(label).is_some() => "a log position",
        _ => return Ok(()),
    };
    Err(format!("a point labelled `{label}` could not be found again: `{label}` means {means}; give another label"))
}

/// What a moment is good for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Consistency {
    /// A synch point: the application said so.
    Application,
    /// Any other position: as after a power cut.
    Crash,
}

/// Where the segments of a point are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Whereabouts {
    /// All on the primary.
    Primary,
    /// All in the archive.
    Archive,
    /// All on the primary, and all in the archive as well.
    Both,
    /// Some only on the primary, others only in the archive.
    Mixed,
}

/// A synch point that can be restored, as `salvol points --json` shows it.
#[derive(Debug, Clone, PartialEq, Eq, Deserialize, Serialize)]
pub struct PointInfo {
    pub id: String,
    pub label: String,
    /// RFC 3339.
    pub time: String,
    pub position: u64,
    pub consistency: Consistency,
    pub info: String,
    /// Segments that restoring it reads.
    pub segments: u64,
    #[serde(rename = "where")]
    pub whereabouts: Whereabouts,
    /// Whether no policy removes it.
    pub pinned: bool,
    #[serde(skip)]
    pub segment: SegmentNumber,
}

impl PointInfo {
    /// The point of `mark` in `segment`, whose restoring reads `segments` segments that are at `whereabouts`.
    pub fn new(mark: &SynchMark, segment: SegmentNumber, segments: u64, whereabouts: Whereabouts) -> Self {
        Self {
            id: format!("p{}", mark.point),
            label: mark.label.clone(),
            time: rfc3339(mark.time_ns),
            position: mark.point,
            consistency: Consistency::Application,
            info: mark.info.clone(),
            segments,
            whereabouts,
            pinned: false,
            segment,
        }
    }
}

/// Everything that can be restored: the JSON of `salvol points`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Points {
    /// Oldest first.
    pub points: Vec<PointInfo>,
    /// RFC 3339 times of the oldest and the newest position that can be restored.
    pub oldest_restorable: Option<String>,
    pub newest_restorable: Option<String>,
}

/// A moment of the past that can be asked for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Moment {
    pub position: Position,
    pub segment: SegmentNumber,
    /// Time of the batch at the position.
    pub time_ns: i64,
    pub consistency: Consistency,
    /// The mark, when it is a synch point.
    pub mark: Option<SynchMark>,
}

impl Moment {
    /// What it can be asked for by, shortly: `p42`, or the position.
    pub fn name(&self) -> String {
        match &self.mark {
            Some(mark) => format!("p{}", mark.point),
            None => self.position.to_string(),
        }
    }
}

impl std::fmt::Display for Moment {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.mark {
            Some(mark) => {
                write!(f, "p{}", mark.point)?;
                if !mark.label.is_empty() {
                    write!(f, " ({:?})", mark.label)?;
                }
                write!(f, ", {}, application-consistent", rfc3339(mark.time_ns))
            }
            None => write!(f, "position {}, {}, crash-consistent", self.position, rfc3339(self.time_ns)),
        }
    }
}

/// What is kept of a segment while points are listed: its links, its marks, its places.
pub(super) struct Stop {
    pub segment: SegmentNumber,
    pub oldest_needed: SegmentNumber,
    /// The oldest segment of the unbroken chain that ends here.
    pub chained_from: SegmentNumber,
    pub last_checksum: Checksum,
    on_primary: bool,
    first_position: Position,
    last_position: Position,
    /// The archive has the segment up to here.
    archived_to: Position,
    pub first_time_ns: i64,
    last_time_ns: i64,
    pub marks: Vec<SynchMark>,
}

impl Stop {
    pub fn is_restorable(&self) -> bool {
        self.chained_from <= self.oldest_needed
    }
}

/// The chain as far as it could be read.
pub(super) struct Reach {
    /// Oldest first.
    pub stops: Vec<Stop>,
    /// Segments that could not be read, or not to their end, and why, newest first.
    pub unread: Vec<(SegmentNumber, HistoryError)>,
}

impl Source {
    /// Every synch point that can be restored.
    ///
    /// # Errors
    /// When the store fails. A damaged segment is a warning, and its points are left out.
    pub fn points(&self) -> Result<Points, HistoryError> {
        Ok(self.listed()?.0)
    }

    /// The same, and what could not be read.
    fn listed(&self) -> Result<(Points, Vec<(SegmentNumber, HistoryError)>), HistoryError> {
        let Reach { stops, mut unread } = self.stops(Depth::Headers, |_| false)?;
        if let Some(rank) = unread.iter().position(|(_, error)| error.is_of_store()) {
            return Err(unread.swap_remove(rank).1.plain());
        }
        unread.iter().for_each(|(_, error)| log::warn!("{error}"));
        let restorable: Vec<&Stop> = stops.iter().filter(|stop| stop.is_restorable()).collect();
        let points = restorable.iter().flat_map(|stop| {
            // The chain is unbroken, so the window is a slice.
            let end = stops.partition_point(|other| other.segment <= stop.segment);
            let start = stops.partition_point(|other| other.segment < stop.oldest_needed);
            let window = &stops[start..end];
            let point = |mark: &SynchMark| {
                let whereabouts = whereabouts(window, Position(mark.point));
                PointInfo::new(mark, stop.segment, window.len() as u64, whereabouts)
            };
            stop.marks.iter().map(point).collect::<Vec<_>>()
        });
        let mut points: Vec<PointInfo> = points.collect();
        self.mark_pinned(&mut points)?;
        // What is pinned may be an island before a gap: the chain that ends now is asked for.
        let chain = restorable.last().map(|stop| stop.chained_from);
        let oldest = restorable.iter().find(|stop| Some(stop.chained_from) == chain);
        let points = Points {
            points,
            oldest_restorable: oldest.map(|stop| rfc3339(stop.first_time_ns)),
            newest_restorable: restorable.last().map(|stop| rfc3339(stop.last_time_ns)),
        };
        Ok((points, unread))
    }

    /// Every segment there is, each with its part of the chain; no older ones once `enough` holds of those that have been
    /// read, newest first.
    pub(super) fn stops(&self, depth: Depth, enough: impl Fn(&[Stop]) -> bool) -> Result<Reach, HistoryError> {
        let (mut stops, mut unread): (Vec<Stop>, Vec<(SegmentNumber, HistoryError)>) = (Vec::new(), Vec::new());
        let mut next: Option<Arc<Digest>> = None;
        let mut read = Digests::new();
        let numbers: Vec<SegmentNumber> = self.numbers().into_iter().rev().collect();
        for (rank, segment) in numbers.iter().copied().enumerate() {
            if enough(&stops) {
                break;
            }
            if rank % READ_AHEAD as usize == 0 {
                read = self.digests_of(&numbers[rank..numbers.len().min(rank + READ_AHEAD as usize)], depth);
            }
            let above = next.as_ref().filter(|above| above.segment == segment.plus(1));
            let successor = above.map(|above| above.predecessor);
            let found = match self.digest(segment, successor, &read) {
                // Of another past: the chain is broken here, and begins anew.
                Err(HistoryError::Chain { .. }) => self.digest(segment, None, &read),
                other => other,
            };
            let (found, on_primary) = match found {
                Ok(Some(found)) => found,
                Ok(None) => continue,
                Err(error) => {
                    unread.push((segment, error));
                    continue;
                }
            };
            if successor != Some(found.last_checksum) && !on_primary {
                let cut_off = self.cut_off_behind(segment, found.last_checksum, found.last_position);
                unread.extend(cut_off.map(|error| (segment, error)));
            }
            let continues = successor == Some(found.last_checksum)
                && above.is_some_and(|above| above.first_position == found.last_position.next());
            if !continues {
                close_chain(&mut stops);
            }
            stops.push(Stop {
                segment,
                oldest_needed: found.oldest_needed,
                // Where it begins is known when it is closed.
                chained_from: SegmentNumber(0),
                last_checksum: found.last_checksum,
                on_primary,
                first_position: found.first_position,
                last_position: found.last_position,
                archived_to: self.archived_to(&found),
                first_time_ns: found.first_time_ns,
                last_time_ns: found.last_time_ns,
                marks: found.marks.clone(),
            });
            next = Some(found);
        }
        close_chain(&mut stops);
        stops.reverse();
        Ok(Reach { stops, unread })
    }

    /// The moment that `text` names: an id (`p42`), a label, `latest`, an RFC 3339 time, or a log position.
    ///
    /// # Errors
    /// When there is none, or a label is not unique, see [`HistoryError::is_no_point`]; when `text` can name none,
    /// [`HistoryError::NotAPoint`]; and when what could not be read may be what is asked for: nobody gets an older state
    /// than he asked for.
    pub fn resolve(&self, text: &str) -> Result<Moment, HistoryError> {
        let found = match self.find(text) {
            // A running volume has moved segments to the archive since the objects were listed.
            Err(error) if self.primary.is_some() && !matches!(error, HistoryError::NoPoint { .. }) => {
                self.refresh()?;
                self.find(text)
            }
            found => found,
        };
        found.map_err(|error| self.judged(error.plain()))
    }

    /// The synch points that can be restored before and after what `text` names, for a person who cannot have that. None when
    /// it says nothing of when that was, or there are no such points.
    pub fn nearest(&self, text: &str) -> Option<String> {
        let position = number(text.strip_prefix('p').unwrap_or(text));
        let time_ns = parse_time(text);
        let is_before = |point: &PointInfo| match position {
            Some(position) => point.position < position,
            None => parse_time(&point.time) < time_ns,
        };
        position.or(time_ns.map(|_| 0))?;
        let points = self.points().ok()?.points;
        let (before, after) = points.split_at(points.partition_point(is_before));
        let describe = |point: &PointInfo, side: &str| match point.label.as_str() {
            "" => format!("{} ({}) {side}", point.id, point.time),
            label => format!("{} ({label:?}, {}) {side}", point.id, point.time),
        };
        let sides =
            [before.last().map(|point| describe(point, "before")), after.first().map(|point| describe(point, "after"))];
        let sides: Vec<String> = sides.into_iter().flatten().collect();
        (!sides.is_empty()).then(|| format!("the nearest points are {}", sides.join(" and ")))
    }

    fn find(&self, text: &str) -> Result<Moment, HistoryError> {
        if text.is_empty() {
            let what = "an empty POINT: give the id of a point, its label, `latest`, a time or a log position";
            return Err(HistoryError::NotAPoint { what: what.to_owned() });
        }
        if let Some(point) = text.strip_prefix('p').and_then(number) {
            let moment = self.at_position(Position(point), text)?;
            return match moment.mark {
                Some(_) if moment.position.0 == point => Ok(moment),
                _ => no_point(format!("{text}: no synch point was marked there; --at {point} restores the position")),
            };
        }
        if let Some(position) = number(text) {
            return self.at_position(Position(position), text);
        }
        if text == LATEST {
            return self.latest();
        }
        let (points, unread) = self.listed()?;
        let points: Vec<PointInfo> = points.points.into_iter().filter(|point| point.label == text).collect();
        let what = match points.as_slice() {
            [point] => return self.at_position(Position(point.position), text),
            [] => match parse_time(text) {
                Some(time_ns) => return self.at_time(time_ns, text),
                None if lacks_offset(text) => {
                    let what = format!("{text}: a time needs its offset from UTC: add Z or an offset like +01:00");
                    return Err(HistoryError::NotAPoint { what });
                }
                None => format!("{text}: no synch point is called so; `salvol points` lists them"),
            },
            several => {
                let list: Vec<String> = several.iter().map(|point| format!("{} ({})", point.id, point.time)).collect();
                format!("{text}: {} synch points are called so: {}", several.len(), list.join(", "))
            }
        };
        match unread.into_iter().next() {
            Some((_, source)) => Err(HistoryError::Unread { what, source: Box::new(source) }),
            None => no_point(what),
        }
    }

    /// The newest synch point of all; when that cannot be known, or restored, no older one.
    fn latest(&self) -> Result<Moment, HistoryError> {
        // It is known once all that it needs has been read, or something of that is missing.
        let enough = |read: &[Stop]| {
            let marked = read.iter().find(|stop| !stop.marks.is_empty());
            marked.is_some_and(|marked| {
                let broken = marked.chained_from > SegmentNumber(0);
                broken || read.last().is_some_and(|oldest| oldest.segment <= marked.oldest_needed)
            })
        };
        let Reach { stops, unread } = self.stops(Depth::Headers, enough)?;
        let marked = stops.iter().rposition(|stop| !stop.marks.is_empty());
        let (segment, oldest) =
            marked.map_or_else(Default::default, |rank| (stops[rank].segment, stops[rank].oldest_needed));
        // What lies behind it, then what it needs.
        let mut hidden = unread.into_iter().filter(|(unread, _)| *unread >= oldest);
        if let Some((_, error)) = hidden.next() {
            return Err(error);
        }
        if let Some(newest) = stops.last().filter(|newest| newest.on_primary) {
            self.primary_ends_in(newest.segment)?;
        }
        let newer = &stops[marked.map_or(0, |rank| rank + 1)..];
        let gap = newer.windows(2).find(|pair| pair[1].segment > pair[0].segment.plus(1)).map(|pair| &pair[1]);
        let gap = gap.or(newer.first().filter(|first| marked.is_some() && first.segment > segment.plus(1)));
        if let Some(behind) = gap {
            return Err(self.gone(behind.segment.minus(1), behind.first_position.previous()));
        }
        let Some(marked) = marked.map(|rank| &stops[rank]) else {
            return no_point("latest: there is no synch point that can be restored".to_owned());
        };
        let mark = marked.marks.last().map_or(marked.last_position, |mark| Position(mark.point));
        if !marked.is_restorable() {
            let missing = marked.chained_from.minus(1);
            let there = stops.iter().any(|stop| stop.segment == missing);
            return Err(if there { HistoryError::Chain { segment: missing } } else { self.gone(missing, mark) });
        }
        self.at_position(mark, LATEST)
    }

    fn gone(&self, segment: SegmentNumber, position: Position) -> HistoryError {
        HistoryError::Gone { position, segment, archive: self.archive_word() }
    }

    /// That the log on the primary does not go on behind `segment`, where it seems to end.
    fn primary_ends_in(&self, segment: SegmentNumber) -> Result<(), HistoryError> {
        match self.primary.as_ref().and_then(|view| view.slots.trouble.clone()) {
            Some(what) => Err(HistoryError::CutShort { segment, what }),
            None => Ok(()),
        }
    }

    fn at_position(&self, position: Position, text: &str) -> Result<Moment, HistoryError> {
        let found = self.newest_where(|summary| summary.first_position <= position)?;
        let Some(found) = found else {
            self.kept_is_readable()?;
            return no_point(format!("{text}: older than everything that is kept{}", self.archive_note()));
        };
        let last = found.summary.last_position();
        if position <= last {
            return self.settled(&found.summary, position, text);
        }
        match self.next(&found, position)? {
            Some(_) => Err(HistoryError::Chain { segment: found.summary.segment }),
            None => no_point(format!("{text}: the log ends at position {last}{}", self.archive_note())),
        }
    }

    fn at_time(&self, time_ns: i64, text: &str) -> Result<Moment, HistoryError> {
        let first = |summary: &Summary| {
            summary.batches.first().map_or(i64::MAX, |batch| time_of(summary, summary.first_position, batch))
        };
        let Some(found) = self.newest_where(|summary| first(summary) <= time_ns)? else {
            self.kept_is_readable()?;
            return no_point(format!("{text}: before everything that is kept{}", self.archive_note()));
        };
        let summary = &found.summary;
        let newest = summary.walk().rev().find(|(at, batch, _)| time_of(summary, *at, batch) <= time_ns);
        let position = newest.map_or(summary.first_position, |(position, ..)| position);
        if position == summary.last_position() {
            // What came next may have been before that time as well.
            self.next(&found, position.next())?;
        }
        self.settled(summary, position, text)
    }

    /// The moment at `position` of a segment. While a rollback was under way the volume was what it was before.
    fn settled(&self, summary: &Summary, position: Position, text: &str) -> Result<Moment, HistoryError> {
        match Rollback::at(summary, position) {
            Some(rollback) if rollback.begin > Position(1) => self.at_position(rollback.begin.previous(), text),
            _ => Ok(moment(summary, position)),
        }
    }

    fn archive_note(&self) -> String {
        match &self.store {
            Some(store) => format!(" (primary and {} were searched)", store.spec()),
            None => self.archive_word().to_owned(),
        }
    }

    /// The newest segment for which `begins` holds, which holds for all older ones: positions and times only grow. One that
    /// is damaged says nothing: the next older one is asked instead, and whoever wants what is behind it asks
    /// [`Self::next`].
    fn newest_where(&self, begins: impl Fn(&Summary) -> bool) -> Result<Option<Located>, HistoryError> {
        let numbers = self.numbers();
        let (mut low, mut high) = (0, numbers.len());
        let mut best = None;
        while low < high {
            let middle = low + (high - low) / 2;
            let (mut readable, mut denied) = (None, false);
            for at in (low..=middle).rev() {
                match self.read_at(numbers[at]) {
                    Ok(Some(found)) => {
                        readable = Some((at, found));
                        break;
                    }
                    // One may lie on a bad sector; a store that is away is not asked for everything it has.
                    Err(error) if error.is_of_store() && std::mem::replace(&mut denied, true) => return Err(error),
                    Ok(None) | Err(_) => {}
                }
            }
            match readable {
                None => low = middle + 1,
                Some((_, found)) if begins(&found.summary) => {
                    best = Some(found);
                    // What is between was not readable.
                    low = middle + 1;
                }
                Some((at, _)) => high = at,
            }
        }
        Ok(best)
    }

    /// The segment behind `found`, from which `position` is asked for; none when the log ends there for all that anybody
    /// can know.
    fn next(&self, found: &Located, position: Position) -> Result<Option<Located>, HistoryError> {
        let segment = found.summary.segment;
        let next = self.read_at(segment.plus(1))?;
        let is_next = |next: &Located| next.summary.predecessor == found.summary.last_checksum;
        if !next.as_ref().is_some_and(is_next)
            && let Some(error) = self.cut_off(found)
        {
            return Err(error);
        }
        if next.is_some() {
            return Ok(next);
        }
        let goes_on = self.numbers().last().is_some_and(|newest| *newest > segment);
        match goes_on {
            true => Err(self.gone(segment.plus(1), position)),
            false if found.slot.is_some() => self.primary_ends_in(segment).map(|()| None),
            false => Ok(None),
        }
    }

    /// That nothing older than the oldest segment that can be read is there.
    fn kept_is_readable(&self) -> Result<(), HistoryError> {
        let mut unread = None;
        for segment in self.numbers() {
            match self.read_at(segment) {
                Ok(Some(_)) => break,
                Ok(None) => {}
                Err(error) => unread = Some(error),
            }
        }
        unread.map_or(Ok(()), Err)
    }

    /// A segment; when several things could be it, the one in the chain with the next, if there is one.
    fn read_at(&self, segment: SegmentNumber) -> Result<Option<Located>, HistoryError> {
        let found = self.locate(segment, None);
        if let Ok(Some(located)) = &found
            && self.is_alone(&located.summary)
        {
            return found;
        }
        let successor = match self.locate(segment.plus(1), None) {
            Err(error) if error.is_of_store() => return Err(error),
            next => next.ok().flatten().map(|next| next.summary.predecessor),
        };
        match self.locate(segment, successor) {
            Ok(Some(chained)) => Ok(Some(chained)),
            _ => found,
        }
    }
}

fn close_chain(stops: &mut [Stop]) {
    let Some(oldest) = stops.last().map(|stop| stop.segment) else { return };
    for stop in stops.iter_mut().rev().take_while(|stop| stop.chained_from == SegmentNumber(0)) {
        stop.chained_from = oldest;
    }
}

fn whereabouts(window: &[Stop], position: Position) -> Whereabouts {
    let primary = window.iter().all(|stop| stop.on_primary);
    let archive = window.iter().all(|stop| stop.archived_to >= stop.last_position.min(position));
    match (primary, archive) {
        (true, true) => Whereabouts::Both,
        (true, false) => Whereabouts::Primary,
        (false, true) => Whereabouts::Archive,
        (false, false) => Whereabouts::Mixed,
    }
}

/// The time from which a batch counts. A batch is stamped when it is closed, a mark in it when it is placed, not before
/// any earlier batch: the time that is listed for a point must find that point.
fn time_of(summary: &Summary, position: Position, batch: &BatchRecord) -> i64 {
    let mark = summary.synchs.iter().find(|mark| mark.point == position.0);
    mark.map_or(batch.time_ns(), |mark| mark.time_ns.min(batch.time_ns()))
}

fn moment(summary: &Summary, position: Position) -> Moment {
    let mark = summary.synchs.iter().find(|mark| mark.point == position.0).cloned();
    let time = summary.walk().find(|(at, ..)| *at == position).map_or(0, |(_, batch, _)| batch.time_ns());
    Moment {
        position,
        segment: summary.segment,
        time_ns: time,
        consistency: if mark.is_some() { Consistency::Application } else { Consistency::Crash },
        mark,
    }
}

fn no_point<T>(what: String) -> Result<T, HistoryError> {
    Err(HistoryError::NoPoint { what })
}
