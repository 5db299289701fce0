//! What histories met, and what a campaign must have met.

use std::collections::BTreeMap;
use std::fmt;

/// The states that a thousand histories meet. What is missing was not tested.
const MUST: &[&str] = &[
    // The log.
    "segment sealed",
    "log turned over",
    "copies made",
    "copy outrun by a newer entry",
    "writers throttled",
    "writers waiting for a slot",
    "rollback",
    "synch point compared",
    "restored and verified",
    "part archived",
    // Crashes.
    "power cut",
    "daemon killed",
    "crash while opening",
    "clean close",
    "unflushed write lost",
    "unflushed write torn",
    "sector of garbage",
    "acknowledged write lost",
    "synch in flight at a crash",
    "synch in flight survived",
    "synch in flight lost",
    // Failures.
    "read failed",
    "write failed",
    "flush failed",
    "log stopped",
    "stall",
    "block repaired from the archive",
    // Lies.
    "bit flipped",
    "read flipped",
    "write misdirected",
    "write duplicated",
    "write dropped",
    "block rotted",
    "block unreadable",
    "opening refused",
    "loss accepted",
    "lived on after a lie",
    // The store.
    "store failed",
    "store failed after it was done",
    "store spoiled what it was given",
    "store read wrong",
    "archiving retried",
    "everything archived at last",
];

/// What ten thousand do.
const RARE: &[&str] = &["rollback finished by an opening"];

/// How often what happened.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Coverage(BTreeMap<&'static str, u64>);

impl Coverage {
    pub fn meet(&mut self, what: &'static str) {
        self.count(what, 1);
    }

    pub fn count(&mut self, what: &'static str, times: u64) {
        if times > 0 {
            *self.0.entry(what).or_default() += times;
        }
    }

    /// What a campaign of so many histories should have met and did not.
    pub fn missing(&self, seeds: u64) -> Vec<&'static str> {
        let must = MUST.iter().filter(|_| seeds >= 1000).chain(RARE.iter().filter(|_| seeds >= 10_000));
        must.copied().filter(|what| !self.0.contains_key(what)).collect()
    }
}

impl fmt::Display for Coverage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|(what, times)| writeln!(f, "{times:>12}  {what}"))
    }
}
