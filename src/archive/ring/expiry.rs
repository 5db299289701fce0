//! Which objects go first when there is no room. No I/O.

use std::collections::{BTreeMap, BTreeSet};

use crate::archive::{ObjectName, PinRecord, one_piece_from};
use crate::format::{SegmentNumber, Uuid};

/// What a fork record says of the history that ended.
#[derive(Debug, Clone, Copy)]
pub(super) struct Fork {
    /// The history that continues it.
    pub(super) successor: Uuid,
    /// The segment of the fork, of which the begin may count and nothing behind it.
    pub(super) segment: SegmentNumber,
}

/// The forks of a store, by the history that ended.
pub(super) type Forks = BTreeMap<Uuid, Fork>;

/// What the pins of a ring keep.
#[derive(Debug, Default)]
pub(super) struct Pinned {
    pub(super) records: Vec<PinRecord>,
    /// Whether there is a record that cannot be read. Were nothing to go for it, the ring would take nothing more, and the
    /// volume's writers would wait for ever; so what is still in one piece with the newest segments goes in its time. What is
    /// not in one piece with them was pinned, whoever says so, and stays.
    pub(super) unknown: bool,
}

impl Pinned {
    /// Those that are of the volume's past. In the segment of a fork that is not known: they count.
    fn of_the_past<'a>(&'a self, forks: &'a Forks) -> impl Iterator<Item = &'a PinRecord> {
        self.records.iter().filter(|record| record.segment <= last_of(record.history, forks))
    }

    /// The pins that keep any of `names`.
    pub(super) fn keepers<'a>(
        &'a self,
        forks: &'a Forks,
        names: &'a [ObjectName],
    ) -> impl Iterator<Item = &'a PinRecord> {
        self.of_the_past(forks).filter(|record| names.iter().any(|name| record.window().contains(&name.segment)))
    }
}

/// The objects that may be expired, in the order in which they go: first what belongs to a past that was given up, then
/// the oldest segment. `objects` are names with their sequence numbers, in the order of the names; the newest segment and
/// the `working_set` before it are never among the result, nor are their parts, what is `pinned`, and the fork and pin records.
pub(super) fn victims(
    objects: &[(ObjectName, u64)],
    forks: &Forks,
    pinned: &Pinned,
    working_set: u32,
) -> Vec<ObjectName> {
    let given_up = given_up(objects, forks);
    let valid = objects.iter().zip(&given_up).filter(|(_, given_up)| !**given_up);
    let valid: BTreeSet<SegmentNumber> = valid.map(|((name, _), _)| name.segment).collect();
    let newest = valid.last().copied().unwrap_or(SegmentNumber(0));
    let kept_from = newest.0.saturating_sub(u64::from(working_set));
    let islands_end = if pinned.unknown { one_piece_from(&valid, SegmentNumber(kept_from)) } else { SegmentNumber(0) };
    let windows: Vec<_> = pinned.of_the_past(forks).map(PinRecord::window).collect();
    let is_pinned = |segment| segment < islands_end || windows.iter().any(|window| window.contains(&segment));
    let mut victims: Vec<_> = objects
        .iter()
        .zip(given_up)
        // Segment 0 has the fork record, without which nothing older could be found, and the pins.
        .filter(|((name, _), given_up)| name.segment.0 > 0 && (*given_up || name.segment.0 < kept_from))
        .filter(|((name, _), _)| !is_pinned(name.segment))
        .map(|((name, sequence), given_up)| (!given_up, name.segment, *sequence, *name))
        .collect();
    victims.sort_unstable();
    victims.into_iter().map(|(_, _, _, name)| name).collect()
}

/// The last segment of a history that may count: no further than its fork and those of what came after it.
fn last_of(mut history: Uuid, forks: &Forks) -> SegmentNumber {
    let mut last = SegmentNumber(u64::MAX);
    // No further than there are forks: should they lead in a circle, it ends.
    for _ in 0..forks.len() {
        let Some(fork) = forks.get(&history) else { break };
        last = last.min(fork.segment);
        history = fork.successor;
    }
    last
}

/// For each object, whether it stands behind the fork of its history, or behind one of a larger epoch of it: no reader
/// takes it for the volume's.
fn given_up(objects: &[(ObjectName, u64)], forks: &Forks) -> Vec<bool> {
    // The largest epoch of each segment, parts apart: they may be older than what the segment ended with.
    let mut whole: BTreeMap<(Uuid, SegmentNumber), u64> = BTreeMap::new();
    for (name, _) in objects.iter().filter(|(name, _)| name.part == 0) {
        let epoch = whole.entry((name.history, name.segment)).or_default();
        *epoch = name.epoch.max(*epoch);
    }
    let (mut history, mut segment) = (Uuid::default(), SegmentNumber(0));
    let mut last = last_of(history, forks);
    // The largest epoch before the segment, and of it.
    let (mut before, mut here) = (0, 0);
    let mut result = Vec::with_capacity(objects.len());
    for (name, _) in objects {
        if name.history != history {
            (before, here) = (0, 0);
            last = last_of(name.history, forks);
        } else if name.segment != segment {
            before = here.max(before);
            here = 0;
        }
        (history, segment) = (name.history, name.segment);
        let replaced = name.part == 0 && whole.get(&(history, segment)).is_some_and(|epoch| *epoch > name.epoch);
        result.push(before > name.epoch || replaced || name.segment > last);
        here = here.max(name.epoch);
    }
    result
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::Position;

    fn name(history: u8, segment: u64, epoch: u64, part: u32) -> ObjectName {
        ObjectName { history: Uuid([history; 16]), segment: SegmentNumber(segment), epoch, part }
    }

    fn order(objects: Vec<(ObjectName, u64)>, working_set: u32) -> Vec<(u64, u64, u32)> {
        order_with(&Forks::new(), objects, working_set)
    }

    fn order_with(forks: &Forks, mut objects: Vec<(ObjectName, u64)>, working_set: u32) -> Vec<(u64, u64, u32)> {
        objects.sort_unstable();
        victims(&objects, forks, &Pinned::default(), working_set)
            .iter()
            .map(|name| (name.segment.0, name.epoch, name.part))
            .collect()
    }

    #[test]
    fn the_oldest_go_first_and_the_newest_stay() {
        let plain = |segments: std::ops::RangeInclusive<u64>| segments.map(|at| (name(1, at, 1, 0), at)).collect();
        assert_eq!(order(plain(1..=6), 2), [(1, 1, 0), (2, 1, 0), (3, 1, 0)]);
        assert_eq!(order(plain(1..=3), 2), []);
        assert_eq!(order(Vec::new(), 2), []);
        let forked = [(name(1, 0, 0, 0), 4), (name(1, 2, 1, 0), 2), (name(2, 6, 2, 0), 6)];
        assert_eq!(order(forked.to_vec(), 2), [(2, 1, 0)]);
        // Across histories by segment, in one segment by when they came, parts like the rest.
        let mixed = vec![
            (name(1, 9, 1, 0), 9),
            (name(1, 2, 1, 0), 5),
            (name(2, 1, 1, 0), 8),
            (name(1, 2, 1, 1), 3),
            (name(1, 9, 1, 4), 1),
        ];
        assert_eq!(order(mixed, 2), [(1, 1, 0), (2, 1, 1), (2, 1, 0)]);
    }

    #[test]
    fn a_past_that_was_given_up_goes_before_everything_and_keeps_nothing_back() {
        let objects = vec![
            (name(1, 1, 1, 0), 1),
            (name(1, 5, 1, 0), 5),
            (name(1, 6, 1, 0), 6),
            (name(1, 90, 1, 0), 7),
            (name(1, 5, 2, 0), 8),
            (name(1, 6, 2, 1), 9),
        ];
        assert_eq!(order(objects, 2), [(5, 1, 0), (6, 1, 0), (90, 1, 0), (1, 1, 0)]);
    }

    #[test]
    fn what_is_behind_a_fork_goes_first_and_keeps_nothing_back() {
        let fork = |successor, segment| Fork { successor: Uuid([successor; 16]), segment: SegmentNumber(segment) };
        let objects = vec![
            (name(1, 0, 0, 0), 4),
            (name(1, 1, 1, 0), 1),
            (name(1, 6, 1, 0), 2),
            (name(1, 7, 1, 0), 3),
            (name(1, 8, 1, 3), 5),
            (name(1, 90, 1, 0), 6),
            (name(2, 0, 0, 0), 9),
            (name(2, 7, 2, 0), 7),
            (name(2, 9, 2, 0), 8),
        ];
        let mut forks = Forks::from([(Uuid([1; 16]), fork(2, 7))]);
        assert_eq!(order_with(&forks, objects.clone(), 2), [(8, 1, 3), (90, 1, 0), (1, 1, 0), (6, 1, 0)]);
        // The next fork is before that one: of the first history, too, no more counts.
        forks.insert(Uuid([2; 16]), fork(3, 6));
        let given_up = [(7, 1, 0), (7, 2, 0), (8, 1, 3), (9, 2, 0), (90, 1, 0)];
        assert_eq!(order_with(&forks, objects.clone(), 2), [&given_up[..], &[(1, 1, 0)]].concat());
        // Nonsense ends.
        forks.insert(Uuid([2; 16]), fork(1, 7));
        assert_eq!(order_with(&forks, objects, 200).len(), 3);
    }

    #[test]
    fn what_is_pinned_stays_and_keeps_nothing_else_back() {
        let pin = |history: u8, oldest, segment| PinRecord {
            history: Uuid([history; 16]),
            position: Position(segment),
            point_time_ns: 0,
            segment: SegmentNumber(segment),
            oldest_needed: SegmentNumber(oldest),
            time_ns: 0,
        };
        let mut objects: Vec<_> = (1..=9).map(|at| (name(1, at, 1, 0), at)).collect();
        objects.insert(0, (name(1, 0, 0, 1), 10));
        let order = |objects: &[(ObjectName, u64)], forks: &Forks, pinned: &Pinned| -> Vec<u64> {
            victims(objects, forks, pinned, 2).iter().map(|name| name.segment.0).collect()
        };
        let pinned = Pinned { records: vec![pin(1, 2, 3), pin(1, 3, 4)], unknown: false };
        assert_eq!(order(&objects, &Forks::new(), &pinned), [1, 5, 6]);
        // The working set stays, pinned or not, and a pin adds nothing to it.
        let newest = Pinned { records: vec![pin(1, 7, 9)], unknown: false };
        assert_eq!(order(&objects, &Forks::new(), &newest), [1, 2, 3, 4, 5, 6]);
        // Behind the fork a pin keeps nothing.
        let fork = Fork { successor: Uuid([2; 16]), segment: SegmentNumber(3) };
        let forks = Forks::from([(Uuid([1; 16]), fork)]);
        let forked = [&objects[..], &[(name(2, 4, 2, 0), 20), (name(2, 9, 2, 0), 21)]].concat();
        let pinned = Pinned { records: vec![pin(1, 4, 5), pin(2, 4, 4)], unknown: false };
        assert_eq!(order(&forked, &forks, &pinned), [5, 6, 7, 8, 9, 1, 2, 3]);
        let names = [name(1, 3, 1, 0)];
        assert_eq!(pinned.keepers(&forks, &names).count(), 0);
        assert_eq!(Pinned { records: vec![pin(1, 2, 3)], unknown: false }.keepers(&forks, &names).count(), 1);
    }

    #[test]
    fn a_pin_that_cannot_be_read_keeps_what_is_an_island_already() {
        let unknown = Pinned { records: Vec::new(), unknown: true };
        let island: Vec<_> = [1, 2, 5, 6, 7, 8, 9].map(|at| (name(1, at, 1, 0), at)).to_vec();
        let order = |objects: &[(ObjectName, u64)]| -> Vec<u64> {
            victims(objects, &Forks::new(), &unknown, 2).iter().map(|name| name.segment.0).collect()
        };
        assert_eq!(order(&island), [5, 6]);
        // What archivers that overtake each other leave for a moment is no island.
        let overtaken: Vec<_> = [3, 4, 5, 6, 7, 9].map(|at| (name(1, at, 1, 0), at)).to_vec();
        assert_eq!(order(&overtaken), [3, 4, 5, 6]);
    }
}
