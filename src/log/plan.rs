//! How much of a segment goes to copies: planned ahead, so that users never wait for a whole turn.
//!
//! A volume that was filled once and is then overwritten in part has a run of segments that are all live. Cleaned one at
//! a time when each is due, they would leave no room for users for as long as the run lasts. So the cleaner looks at
//! all segments of the working set and starts early enough that users keep a floor of each segment to come.

/// The share of a segment that copies get, 0 to 1.
///
/// `needs` are the places that copies of the segments' live blocks would take, the segment that is due now first, then
/// the one that is due a segment later, and so on; `capacity` is the places of a segment. Segments to come may give at
/// most `1 - floor` to copies; what does not fit there must be copied now:
/// `share = max over k of (needs[0] + … + needs[k]) / capacity − k·(1 − floor)`.
///
/// Live counts only fall, so the share errs on the side of copying early; with uniform overwrites the first term rules
/// and nothing is copied early.
pub(super) fn copy_share(needs: impl Iterator<Item = f64>, capacity: f64, floor: f64) -> f64 {
    let mut sum = 0.0;
    let mut share = 0.0_f64;
    for (rank, need) in needs.enumerate() {
        sum += need / capacity;
        share = share.max(sum - rank as f64 * (1.0 - floor));
    }
    share.clamp(0.0, 1.0)
}

/// The floor that users keep: half of what they get in the steady state of a volume of this working-set utilisation.
pub(super) fn user_floor(utilisation: f64) -> f64 {
    ((1.0 - utilisation) / 2.0).clamp(0.02, 0.5)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn uniform_needs_are_copied_when_they_are_due() {
        let share = copy_share(std::iter::repeat_n(500.0, 100), 1000.0, 0.2);
        assert!((share - 0.5).abs() < 1e-9);
    }

    #[test]
    fn a_dense_run_ahead_starts_early_and_no_earlier() {
        // Empty segments, then ten that are all live: with a floor of 0.2 the run overflows by 10·0.2 segments. Those before
        // it can take 0.8 each: ten are more than enough; of three, this one must start with 2 − 2·0.8.
        let needs = |empty: usize| std::iter::repeat_n(0.0, empty).chain(std::iter::repeat_n(1000.0, 10));
        assert!(copy_share(needs(10), 1000.0, 0.2).abs() < 1e-9);
        assert!((copy_share(needs(3), 1000.0, 0.2) - 0.4).abs() < 1e-9);
    }

    #[test]
    fn nothing_live_needs_nothing() {
        assert!(copy_share(std::iter::empty(), 1000.0, 0.2).abs() < 1e-9);
    }
}
