//! Synch points: which can be restored, and which one a person means.
//!
//! A point is restorable when every segment that its scan needs is there, in one chain: on the primary, in the archive,
//! or some here and some there.

use serde::{Deserialize, Serialize};

use super::scan::oldest_needed;
use super::source::Summaries;
use super::text::{parse_time, rfc3339};
use super::{HistoryError, Source};
use crate::format::{BatchRecord, Checksum, Position, SegmentNumber, Summary, SynchMark};

/// Segments whose summaries are read together.
const READ_AHEAD: usize = 32;

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
    /// Reserved: no policy removes points yet.
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
    last_position: Position,
    /// The archive has the segment up to here.
    archived_to: Position,
    first_time_ns: i64,
    last_time_ns: i64,
    pub marks: Vec<SynchMark>,
}

impl Stop {
    pub fn is_restorable(&self) -> bool {
        self.chained_from <= self.oldest_needed
    }
}

impl Source {
    /// Every synch point that can be restored.
    ///
    /// # Errors
    /// When the store cannot be listed. A damaged segment is a warning, and its points are left out.
    pub fn points(&self) -> Result<Points, HistoryError> {
        self.points_until(|_| false)
    }

    /// The same from the newest back, up to where `enough` holds of the unbroken chain that has been read, newest first.
    fn points_until(&self, enough: impl Fn(&[Stop]) -> bool) -> Result<Points, HistoryError> {
        let stops = self.stops(enough)?;
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
        Ok(Points {
            points: points.collect(),
            oldest_restorable: restorable.first().map(|stop| rfc3339(stop.first_time_ns)),
            newest_restorable: restorable.last().map(|stop| rfc3339(stop.last_time_ns)),
        })
    }

    /// Every segment there is, oldest first, with its part of the chain; no older ones once `enough` holds.
    pub(super) fn stops(&self, enough: impl Fn(&[Stop]) -> bool) -> Result<Vec<Stop>, HistoryError> {
        let mut stops: Vec<Stop> = Vec::new();
        let mut next: Option<(SegmentNumber, Checksum, Position)> = None;
        let (mut chain, mut read) = (0, Summaries::new());
        let numbers: Vec<SegmentNumber> = self.numbers().into_iter().rev().collect();
        for (rank, segment) in numbers.iter().copied().enumerate() {
            if enough(&stops[chain..]) {
                break;
            }
            if rank % READ_AHEAD == 0 {
                read = self.summaries_of(&numbers[rank..numbers.len().min(rank + READ_AHEAD)]);
            }
            let successor = next.filter(|(above, ..)| *above == segment.plus(1)).map(|(_, checksum, _)| checksum);
            let found = match self.locate_among(segment, successor, &read) {
                // Of another past: the chain is broken here, and begins anew.
                Err(HistoryError::Chain { .. }) => self.locate_among(segment, None, &read),
                other => other,
            };
            let found = match found {
                Ok(Some(found)) => found,
                Ok(None) => continue,
                Err(error @ HistoryError::Store(_)) => return Err(error),
                Err(error) => {
                    log::warn!("{error}");
                    continue;
                }
            };
            let summary = &found.summary;
            let continues = successor == Some(summary.last_checksum)
                && next.is_some_and(|(_, _, first)| first == summary.last_position().next());
            if !continues {
                close_chain(&mut stops);
                chain = stops.len();
            }
            next = Some((segment, summary.predecessor, summary.first_position));
            stops.push(Stop {
                segment,
                oldest_needed: oldest_needed(summary),
                // Where it begins is known when it is closed.
                chained_from: SegmentNumber(0),
                last_checksum: summary.last_checksum,
                on_primary: found.slot.is_some(),
                last_position: summary.last_position(),
                archived_to: self.archived_to(summary),
                first_time_ns: summary.batches.first().map_or(0, |batch| batch.time_ns()),
                last_time_ns: summary.batches.last().map_or(0, |batch| batch.time_ns()),
                marks: summary.synchs.clone(),
            });
        }
        close_chain(&mut stops);
        stops.reverse();
        Ok(stops)
    }

    /// The moment that `text` names: an id (`p42`), a label, `latest`, an RFC 3339 time, or a log position.
    ///
    /// # Errors
    /// When there is none, or a label is not unique; see [`HistoryError::is_no_point`].
    pub fn resolve(&self, text: &str) -> Result<Moment, HistoryError> {
        self.find(text).map_err(|error| self.judged(error))
    }

    fn find(&self, text: &str) -> Result<Moment, HistoryError> {
        if let Some(point) = text.strip_prefix('p').and_then(number) {
            let moment = self.at_position(Position(point), text)?;
            return match moment.mark {
                Some(_) => Ok(moment),
                None => {
                    no_point(format!("{text}: no synch point was marked there; --at {point} restores the position"))
                }
            };
        }
        if let Some(position) = number(text) {
            return self.at_position(Position(position), text);
        }
        if text == LATEST {
            // The newest point is known once all that it needs has been read.
            let enough = |chain: &[Stop]| {
                let marked = chain.iter().find(|stop| !stop.marks.is_empty());
                marked.is_some_and(|stop| chain.last().is_some_and(|oldest| oldest.segment <= stop.oldest_needed))
            };
            let points = self.points_until(enough)?.points;
            let Some(point) = points.last() else {
                return no_point("latest: there is no synch point that can be restored".to_owned());
            };
            return self.at_position(Position(point.position), text);
        }
        let points: Vec<PointInfo> = self.points()?.points.into_iter().filter(|point| point.label == text).collect();
        match points.as_slice() {
            [point] => self.at_position(Position(point.position), text),
            [] => match parse_time(text) {
                Some(time_ns) => self.at_time(time_ns, text),
                None => no_point(format!("{text}: no synch point is called so; `salvol points` lists them")),
            },
            several => {
                let list: Vec<String> = several.iter().map(|point| format!("{} ({})", point.id, point.time)).collect();
                no_point(format!("{text}: {} synch points are called so: {}", several.len(), list.join(", ")))
            }
        }
    }

    fn at_position(&self, position: Position, text: &str) -> Result<Moment, HistoryError> {
        let found = self.newest_where(|summary| summary.first_position <= position)?;
        let Some(summary) = found else {
            return no_point(format!("{text}: older than everything that is kept{}", self.archive_note()));
        };
        if position > summary.last_position() {
            let (last, segment) = (summary.last_position(), summary.segment);
            let kept = self.numbers().last().is_some_and(|newest| *newest > segment);
            let why = if kept { "its segment is gone".to_owned() } else { format!("the log ends at position {last}") };
            return no_point(format!("{text}: {why}{}", self.archive_note()));
        }
        Ok(moment(&summary, position))
    }

    fn at_time(&self, time_ns: i64, text: &str) -> Result<Moment, HistoryError> {
        let first = |summary: &Summary| {
            summary.batches.first().map_or(i64::MAX, |batch| time_of(summary, summary.first_position, batch))
        };
        let Some(summary) = self.newest_where(|summary| first(summary) <= time_ns)? else {
            return no_point(format!("{text}: before everything that is kept{}", self.archive_note()));
        };
        let newest = summary.walk().rev().find(|(at, batch, _)| time_of(&summary, *at, batch) <= time_ns);
        let position = newest.map_or(summary.first_position, |(position, ..)| position);
        Ok(moment(&summary, position))
    }

    fn archive_note(&self) -> String {
        match &self.store {
            Some(store) => format!(" (primary and {} were searched)", store.spec()),
            None => self.archive_word().to_owned(),
        }
    }

    /// The newest segment for which `begins` holds, which holds for all older ones: positions and times only grow.
    fn newest_where(&self, begins: impl Fn(&Summary) -> bool) -> Result<Option<Summary>, HistoryError> {
        let numbers = self.numbers();
        let (mut low, mut high) = (0, numbers.len());
        let mut best = None;
        while low < high {
            let middle = low + (high - low) / 2;
            // A segment that cannot be read says nothing: the next older one is asked instead.
            let readable = (low..=middle).rev().find_map(|at| self.read_at(numbers[at]).map(|summary| (at, summary)));
            match readable {
                None => low = middle + 1,
                Some((at, summary)) if begins(&summary) => {
                    best = Some(summary);
                    // What is between was not readable.
                    low = middle.max(at) + 1;
                }
                Some((at, _)) => high = at,
            }
        }
        Ok(best)
    }

    /// The summary of a segment in the chain with the next one.
    fn read_at(&self, segment: SegmentNumber) -> Option<Summary> {
        let successor = self.locate(segment.plus(1), None).ok().flatten().map(|next| next.summary.predecessor);
        let found = match self.locate(segment, successor) {
            Ok(Some(found)) => Some(found),
            _ => self.locate(segment, None).ok().flatten(),
        };
        found.map(|found| found.summary.as_ref().clone())
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
