//! The archiver's pace: how many segments at once, compressed how well, and how many bytes a second for the store.

use std::time::Duration;

use super::limits::ARCHIVERS;
use crate::archive::Packing;
use crate::format::Compression;

/// How the archiver may use the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Archiving {
    /// Segments that are archived at once; each needs the memory of two.
    pub threads: usize,
    /// Bytes a second that the store is given at most.
    pub rate: Option<u64>,
    /// The longest that a change waits to be archived with a part of its segment, while the store keeps up; none: segments
    /// are archived when they are full.
    pub interval: Option<Duration>,
}

impl Default for Archiving {
    fn default() -> Self {
        Self { threads: ARCHIVERS, rate: None, interval: Some(Duration::from_secs(10)) }
    }
}

/// What compression has to hurry for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Haste {
    /// Nothing else waits. With the time between the last two seals, when there were two.
    None(Option<Duration>),
    /// Other segments wait for an archiver.
    Behind,
    /// Writers are held back because of it.
    Slowing,
}

/// The levels of `--compression auto`: each gains something, for up to about twice the time of the one below.
const RUNGS: [i32; 4] = [1, 4, 6, 9];
/// The level while writers are held back: a fifth faster than level 1, for hardly more bytes.
const SLOWING: i32 = -1;
/// The next rung surely takes less than so many times as long.
const STEP: u32 = 4;

/// The level of `--compression auto`:
///
/// - Something waits: the lowest rung; writers are held back: below all rungs.
/// - Nothing waits, and the last segment took less than a quarter of the time between two seals: one rung up.
/// - Nothing waits, and it took more than that time: one rung down.
#[derive(Debug, Default)]
pub(super) struct Ladder {
    rung: usize,
    /// What the last segment took on this rung, store and read-back included.
    took: Option<Duration>,
}

impl Ladder {
    /// The level for the next segment.
    fn level(&mut self, haste: Haste) -> i32 {
        let (rung, level) = match (haste, self.took) {
            (Haste::Slowing, _) => (0, Some(SLOWING)),
            (Haste::Behind, _) => (0, None),
            (Haste::None(Some(seals)), Some(took)) if took * STEP < seals => {
                ((self.rung + 1).min(RUNGS.len() - 1), None)
            }
            (Haste::None(Some(seals)), Some(took)) if took > seals => (self.rung.saturating_sub(1), None),
            (Haste::None(_), _) => (self.rung, None),
        };
        if rung != self.rung {
            (self.rung, self.took) = (rung, None);
        }
        level.unwrap_or(RUNGS[rung])
    }

    /// The packing for the next segment.
    pub(super) fn packing(&mut self, compression: Compression, haste: Haste) -> Packing {
        match compression {
            Compression::None => Packing::Raw,
            Compression::Zstd(level) => Packing::Zstd(i32::from(level)),
            Compression::Auto => Packing::Zstd(self.level(haste)),
        }
    }

    /// A segment has been archived so.
    pub(super) fn archived(&mut self, packing: Packing, took: Duration) {
        if packing == Packing::Zstd(RUNGS[self.rung]) {
            self.took = Some(took);
        }
    }
}

/// The packing of what must be in the store soon.
pub(super) fn at_once(compression: Compression) -> Packing {
    match compression {
        Compression::None => Packing::Raw,
        Compression::Zstd(level) => Packing::Zstd(i32::from(level)),
        Compression::Auto => Packing::Zstd(RUNGS[0]),
    }
}

/// What the store is given a second: objects go one by one, each when those before it have been paid for. A segment that
/// must wait does so before it is read, and is archived as soon as its object is there, whatever is owed then.
#[derive(Debug, Default)]
pub(super) struct Pace {
    rate: Option<u64>,
    /// When the next object may go.
    next: Duration,
    /// Bytes of the last object: the next one is charged so many before it is known.
    last: u64,
}

impl Pace {
    pub(super) fn new(rate: Option<u64>) -> Self {
        Self { rate, ..Self::default() }
    }

    fn time(&self, bytes: u64) -> Duration {
        self.rate.map_or(Duration::ZERO, |rate| Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64))
    }

    /// How long the next object must wait.
    pub(super) fn wait(&self, now: Duration) -> Duration {
        self.next.saturating_sub(now)
    }

    /// An object is on its way; gives what it has been charged.
    pub(super) fn begin(&mut self, now: Duration) -> u64 {
        // What was not used is gone: no burst after a rest.
        self.next = self.next.max(now) + self.time(self.last);
        self.last
    }

    /// An object went that could not wait.
    pub(super) fn owe(&mut self, now: Duration, bytes: u64) {
        self.next = self.next.max(now) + self.time(bytes);
    }

    /// It was so large; nothing when it did not get there.
    pub(super) fn end(&mut self, charged: u64, bytes: Option<u64>) {
        self.next = (self.next + self.time(bytes.unwrap_or(0))).saturating_sub(self.time(charged));
        self.last = bytes.unwrap_or(self.last);
    }

    /// Seconds a segment that the rate alone takes.
    pub(super) fn seconds(&self) -> f64 {
        self.time(self.last).as_secs_f64()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Archives `segments` one by one, each taking what `took` says of its level.
    fn climb(ladder: &mut Ladder, haste: Haste, segments: usize, took: impl Fn(i32) -> Duration) -> Vec<i32> {
        let one = |_| {
            let level = ladder.level(haste);
            ladder.archived(Packing::Zstd(level), took(level));
            level
        };
        (0..segments).map(one).collect()
    }

    #[test]
    fn the_level_climbs_while_there_is_time_and_falls_when_something_waits() {
        let mut ladder = Ladder::default();
        let plenty = Haste::None(Some(100 * SECOND));
        assert_eq!(climb(&mut ladder, plenty, 6, |_| SECOND), [1, 4, 6, 9, 9, 9]);
        assert_eq!(climb(&mut ladder, Haste::Behind, 2, |_| SECOND), [1, 1]);
        assert_eq!(climb(&mut ladder, plenty, 2, |_| SECOND), [4, 6]);
        assert_eq!(climb(&mut ladder, Haste::Slowing, 2, |_| SECOND), [SLOWING, SLOWING]);
        // The time of another level says nothing of this one.
        assert_eq!(climb(&mut ladder, plenty, 2, |_| SECOND), [1, 4]);
    }

    #[test]
    fn the_level_stays_where_the_time_between_seals_allows_no_more() {
        let took = |level: i32| Duration::from_millis(100 * level as u64);
        let seals = |tenths: u64| Haste::None(Some(Duration::from_millis(100 * tenths)));
        let mut ladder = Ladder::default();
        assert_eq!(climb(&mut ladder, seals(10), 4, took), [1, 4, 4, 4]);
        assert_eq!(climb(&mut ladder, seals(20), 3, took), [6, 6, 6]);
        assert_eq!(climb(&mut ladder, seals(5), 4, took), [4, 4, 4, 4]);
        // Before two segments have been sealed nothing is known.
        assert_eq!(climb(&mut Ladder::default(), Haste::None(None), 3, took), [1, 1, 1]);
    }

    #[test]
    fn a_level_that_was_asked_for_stays() {
        let mut ladder = Ladder::default();
        for haste in [Haste::Slowing, Haste::Behind, Haste::None(Some(SECOND))] {
            assert_eq!(ladder.packing(Compression::Zstd(-4), haste), Packing::Zstd(-4));
            assert_eq!(ladder.packing(Compression::None, haste), Packing::Raw);
        }
        let at_once = [Compression::Zstd(-4), Compression::None, Compression::Auto].map(at_once);
        assert_eq!(at_once, [Packing::Zstd(-4), Packing::Raw, Packing::Zstd(1)]);
    }

    #[test]
    fn objects_go_at_the_rate_without_bursts() {
        let mut pace = Pace::new(Some(1000));
        let mut now = 5 * SECOND;
        let (started, mut put) = (now, 0);
        for turn in 0..100 {
            now += pace.wait(now);
            let charged = pace.begin(now);
            let bytes = 500 + turn % 7 * 300;
            pace.end(charged, Some(bytes));
            put += bytes;
            if turn == 50 {
                // A rest is no credit.
                let before = now;
                now += 1000 * SECOND;
                assert_eq!(pace.wait(now), Duration::ZERO);
                now = before + pace.wait(before);
                pace.next = now;
            }
        }
        now += pace.wait(now);
        let rate = put as f64 / (now - started).as_secs_f64();
        assert!((999.0..1001.0).contains(&rate), "{rate}");
    }

    #[test]
    fn a_second_object_beside_the_first_waits_for_it_and_what_fails_costs_nothing() {
        let mut pace = Pace::new(Some(1000));
        let charged = pace.begin(SECOND);
        pace.end(charged, Some(2000));
        assert_eq!(pace.wait(SECOND), 2 * SECOND);
        let charged = pace.begin(3 * SECOND);
        assert_eq!((charged, pace.wait(3 * SECOND)), (2000, 2 * SECOND));
        pace.end(charged, None);
        assert_eq!(pace.wait(3 * SECOND), Duration::ZERO);
        let free = Pace::new(None);
        assert_eq!((free.wait(SECOND), free.seconds()), (Duration::ZERO, 0.0));
    }
}
