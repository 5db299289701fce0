//! Which blocks are free, and which of them an object gets. No I/O.
//!
//! Whole segments go round the disk: the search for a hole starts where the last one ended. As they are expired in the
//! order in which they came, what is free stays in one piece. Parts come and go in no such order, so they have an end of
//! the disk to themselves. Where no hole is large enough an object is put in up to four pieces, so that space that was
//! freed here and there is space.

use std::collections::BTreeMap;
use std::ops::Range;

use super::entry::{EXTENTS_MAX, Extent};

/// The free blocks of a ring.
#[derive(Debug, Clone)]
pub(super) struct Space {
    /// First block and number of blocks of each hole; no two touch.
    holes: BTreeMap<u64, u64>,
    /// Where the next search starts.
    cursor: u64,
    total: u64,
}

impl Space {
    /// All of `data`, free.
    pub(super) fn new(data: &Range<u64>) -> Self {
        let total = data.end - data.start;
        Self { holes: BTreeMap::from([(data.start, total)]), cursor: data.start, total }
    }

    /// Blocks in all.
    pub(super) fn total(&self) -> u64 {
        self.total
    }

    /// Blocks that are free.
    pub(super) fn free(&self) -> u64 {
        self.holes.values().sum()
    }

    /// Starts the next search behind `block`.
    pub(super) fn go_on_at(&mut self, block: u64) {
        self.cursor = block;
    }

    /// Room for `blocks`, at least one, inside `within`, which is not taken yet: going round, behind the last object.
    pub(super) fn find(&self, blocks: u64, within: &Range<u64>) -> Option<Vec<Extent>> {
        let fits = |&(_, length): &(u64, u64)| length >= blocks;
        let behind = self.holes_in(within).filter(|(first, _)| *first >= self.cursor).find(fits);
        match behind.or_else(|| self.holes_in(within).find(fits)) {
            Some((first, _)) => Some(vec![Extent { first, blocks: u32::try_from(blocks).ok()? }]),
            None => self.pieces(blocks, within),
        }
    }

    /// The same, as near to the end of `within` as can be.
    pub(super) fn find_last(&self, blocks: u64, within: &Range<u64>) -> Option<Vec<Extent>> {
        match self.holes_in(within).filter(|(_, length)| *length >= blocks).last() {
            Some((first, length)) => {
                Some(vec![Extent { first: first + length - blocks, blocks: u32::try_from(blocks).ok()? }])
            }
            None => self.pieces(blocks, within),
        }
    }

    /// The largest holes, as many as it takes.
    fn pieces(&self, blocks: u64, within: &Range<u64>) -> Option<Vec<Extent>> {
        let mut largest: Vec<_> = self.holes_in(within).map(|(first, length)| (length, first)).collect();
        largest.sort_unstable_by(|a, b| b.cmp(a));
        let mut missing = blocks;
        let mut pieces = Vec::new();
        for (length, first) in largest.into_iter().take(EXTENTS_MAX) {
            let taken = length.min(missing);
            pieces.push(Extent { first, blocks: u32::try_from(taken).ok()? });
            missing -= taken;
            if missing == 0 {
                return Some(pieces);
            }
        }
        None
    }

    /// First block and number of blocks of what is free inside `within`, in the order of the disk.
    fn holes_in(&self, within: &Range<u64>) -> impl Iterator<Item = (u64, u64)> {
        let within = within.clone();
        self.holes().filter_map(move |hole| {
            let (first, end) = (hole.start.max(within.start), hole.end.min(within.end));
            (first < end).then(|| (first, end - first))
        })
    }

    /// Whether nobody has `block`.
    pub(super) fn is_free(&self, block: u64) -> bool {
        let before = self.holes.range(..=block).next_back();
        before.is_some_and(|(first, length)| block < first + length)
    }

    /// Takes an extent; `false` when it is not all free.
    pub(super) fn take(&mut self, extent: &Extent) -> bool {
        let Some((&first, &length)) = self.holes.range(..=extent.first).next_back() else {
            return false;
        };
        let end = first + length;
        if extent.end() > end {
            return false;
        }
        self.holes.remove(&first);
        if extent.first > first {
            self.holes.insert(first, extent.first - first);
        }
        if extent.end() < end {
            self.holes.insert(extent.end(), end - extent.end());
        }
        true
    }

    /// Gives back an extent that was taken.
    pub(super) fn give(&mut self, extent: &Extent) {
        let (mut first, mut end) = (extent.first, extent.end());
        if let Some((&before, &length)) = self.holes.range(..first).next_back()
            && before + length == first
        {
            first = before;
        }
        if let Some(&length) = self.holes.get(&end) {
            self.holes.remove(&end);
            end += length;
        }
        self.holes.insert(first, end - first);
    }

    /// The holes, in the order of the disk.
    pub(super) fn holes(&self) -> impl Iterator<Item = Range<u64>> {
        self.holes.iter().map(|(&first, &length)| first..first + length)
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is the failure")]
mod tests {
    use super::*;

    #[test]
    fn what_is_given_back_is_one_hole_again() {
        let mut space = Space::new(&(10..110));
        let extents: Vec<_> = (0..10).map(|rank| Extent { first: 10 + 10 * rank, blocks: 10 }).collect();
        assert!(extents.iter().all(|extent| space.take(extent)));
        assert!(space.free() == 0 && space.find(1, &(10..110)).is_none() && !space.take(&extents[3]));
        space.give(&extents[3]);
        assert_eq!([39, 40, 49, 50].map(|block| space.is_free(block)), [false, true, true, false]);
        assert!(space.take(&extents[3]));
        for rank in [4, 2, 3, 9, 0, 1, 8, 6, 7, 5] {
            space.give(&extents[rank]);
        }
        assert!(space.holes().eq(std::iter::once(10..110)));
    }

    #[test]
    fn an_object_is_cut_only_when_it_must_be_and_never_in_five() {
        let mut space = Space::new(&(0..100));
        space.take(&Extent { first: 0, blocks: 100 });
        for first in [0, 20, 40, 60, 80] {
            space.give(&Extent { first, blocks: 10 });
        }
        space.go_on_at(35);
        let find = |blocks| space.find(blocks, &(0..100));
        assert_eq!(find(10).unwrap(), [Extent { first: 40, blocks: 10 }]);
        assert_eq!(find(25).unwrap().len(), 3);
        assert_eq!(find(40).unwrap().iter().map(|extent| extent.blocks).sum::<u32>(), 40);
        assert!(find(41).is_none() && space.free() == 50);
    }

    #[test]
    fn what_is_found_is_inside_and_at_the_end_where_that_is_asked() {
        let mut space = Space::new(&(0..100));
        space.take(&Extent { first: 20, blocks: 10 });
        assert_eq!(space.find_last(7, &(50..90)).unwrap(), [Extent { first: 83, blocks: 7 }]);
        assert_eq!(space.find_last(20, &(0..35)).unwrap(), [Extent { first: 0, blocks: 20 }]);
        assert_eq!(space.find(10, &(15..60)).unwrap(), [Extent { first: 30, blocks: 10 }]);
        assert_eq!(space.find(8, &(15..33)).unwrap().len(), 2);
        assert!(space.find(9, &(15..33)).is_none() && space.find_last(1, &(22..28)).is_none());
    }
}
