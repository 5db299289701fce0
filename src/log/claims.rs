//! What headers claim of the archive: every segment up to one that they name is archived, so that its slot may be used again.
//!
//! Of several headers the newest counts, when it is durable. It may say less than those before: the store has lost something.

use std::collections::VecDeque;

use crate::format::{Position, SegmentNumber};

/// The claims of the headers that this opening has placed.
#[derive(Debug, Default)]
pub(super) struct Claims {
    recorded: SegmentNumber,
    /// Those that are not durable yet, each larger than the one before.
    placed: VecDeque<(Position, SegmentNumber)>,
}

impl Claims {
    /// Every segment up to here is archived, and a durable header says so that no later one takes back.
    pub fn recorded(&self) -> SegmentNumber {
        self.recorded
    }

    /// The header at `position` says that all segments up to `through` are archived.
    pub fn place(&mut self, position: Position, through: SegmentNumber) {
        let newest = self.placed.back().map_or(self.recorded, |(_, claimed)| *claimed);
        if newest < through {
            self.placed.push_back((position, through));
        } else if newest > through {
            self.recorded = self.recorded.min(through);
            self.placed.iter_mut().for_each(|(_, claimed)| *claimed = (*claimed).min(through));
        }
    }

    /// Everything up to `position` is durable.
    pub fn durable(&mut self, position: Position) {
        while let Some((at, through)) = self.placed.front().copied()
            && at <= position
        {
            self.recorded = self.recorded.max(through);
            self.placed.pop_front();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_claim_counts_once_it_is_durable() {
        let mut claims = Claims::default();
        claims.place(Position(1), SegmentNumber(3));
        claims.place(Position(2), SegmentNumber(3));
        claims.place(Position(3), SegmentNumber(5));
        assert_eq!(claims.recorded(), SegmentNumber(0));
        claims.durable(Position(2));
        assert_eq!(claims.recorded(), SegmentNumber(3));
        claims.durable(Position(9));
        assert_eq!((claims.recorded(), claims.placed.len()), (SegmentNumber(5), 0));
    }

    /// While no header says less, the one that says more stays true of what is archived again. (It had to be said anew each time, for which a full log
    /// may have no room: it stood still, seed 40 233 403 of the simulator.)
    #[test]
    fn only_a_header_that_says_less_takes_a_claim_back() {
        let mut claims = Claims::default();
        claims.place(Position(1), SegmentNumber(5));
        claims.durable(Position(1));
        claims.place(Position(2), SegmentNumber(7));
        claims.place(Position(3), SegmentNumber(2));
        assert_eq!(claims.recorded(), SegmentNumber(2));
        claims.durable(Position(2));
        assert_eq!(claims.recorded(), SegmentNumber(2), "the header behind it may be there as well");
        claims.place(Position(4), SegmentNumber(5));
        claims.durable(Position(4));
        assert_eq!(claims.recorded(), SegmentNumber(5));
    }
}
