//! A store in trouble: what keeps segments from being archived, since when, and what the log says of it.

use std::collections::BTreeSet;
use std::time::Duration;

use super::limits::TROUBLE_REMINDER;
use crate::format::SegmentNumber;

/// What keeps the archiver from archiving.
#[derive(Debug)]
pub struct Trouble {
    /// The last error.
    pub what: String,
    pub since: Duration,
    /// The same by the wall clock, nanoseconds since 1970, UTC.
    pub since_ns: i64,
    /// Segments that failed and are not archived yet; 0 while parts cannot be deleted. The trouble ends with the last of them, so that one segment that
    /// cannot be archived is not forgotten at each one that can.
    segments: BTreeSet<SegmentNumber>,
    said: Duration,
}

/// What to log of it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Say {
    Nothing,
    Began,
    /// It still lasts, after so long.
    Lasts(Duration),
    Ended(Duration),
}

/// Segment `segment` could not be archived.
pub(super) fn failed(
    trouble: &mut Option<Trouble>,
    segment: SegmentNumber,
    what: String,
    now: Duration,
    wall_ns: i64,
) -> Say {
    let Some(known) = trouble else {
        *trouble = Some(Trouble { what, since: now, since_ns: wall_ns, segments: [segment].into(), said: now });
        return Say::Began;
    };
    known.what = what;
    known.segments.insert(segment);
    if now.saturating_sub(known.said) < TROUBLE_REMINDER {
        return Say::Nothing;
    }
    known.said = now;
    Say::Lasts(now.saturating_sub(known.since))
}

/// Segment `segment` has been archived.
pub(super) fn succeeded(trouble: &mut Option<Trouble>, segment: SegmentNumber, now: Duration) -> Say {
    let Some(known) = trouble else { return Say::Nothing };
    known.segments.remove(&segment);
    if !known.segments.is_empty() {
        return Say::Nothing;
    }
    let lasted = now.saturating_sub(known.since);
    *trouble = None;
    Say::Ended(lasted)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn it_is_said_when_it_begins_each_minute_and_when_it_ends() {
        let seconds = Duration::from_secs;
        let (mut trouble, mut said) = (None, Vec::new());
        for second in 1..=150 {
            let what = format!("away {second}");
            let say = failed(&mut trouble, SegmentNumber(7 + second % 2), what, seconds(second), second as i64);
            if say != Say::Nothing {
                said.push((second, say));
            }
        }
        assert_eq!(said, [(1, Say::Began), (61, Say::Lasts(seconds(60))), (121, Say::Lasts(seconds(120)))]);
        let known = trouble.as_ref().map(|known| (known.what.as_str(), known.since_ns));
        assert_eq!(known, Some(("away 150", 1)));
        // One that never failed ends nothing, nor does the first of two.
        assert_eq!(succeeded(&mut trouble, SegmentNumber(6), seconds(160)), Say::Nothing);
        assert_eq!(succeeded(&mut trouble, SegmentNumber(7), seconds(160)), Say::Nothing);
        assert_eq!(succeeded(&mut trouble, SegmentNumber(8), seconds(161)), Say::Ended(seconds(160)));
        assert!(trouble.is_none());
        assert_eq!(succeeded(&mut trouble, SegmentNumber(9), seconds(162)), Say::Nothing);
    }
}
