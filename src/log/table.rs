//! The segment table: which segment is in which slot, and where it is in its life.
//!
//! ```text
//! recycle ──start──▶ current ──seal──▶ active ──clean──▶ inactive ──reuse──▶ recycle
//!                                        └── archived: a property, set once, from seal on ──┘
//! ```

use std::collections::{BTreeMap, VecDeque};
use std::time::Duration;

use crate::format::{Geometry, Position, SegmentNumber, Slot};
use crate::index::Mapping;
use crate::io::Buffer;

/// Where a slot's segment is in its life.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    Recycle,
    Current,
    Active,
    Inactive,
    /// Contents are being discarded.
    Leaving,
}

/// A slot and the segment in it.
#[derive(Debug)]
pub struct SlotInfo {
    pub life: Life,
    pub segment: SegmentNumber,
    /// Epoch of the segment's last batch.
    pub epoch: u64,
    /// Entries that are the newest version of their block.
    pub live: u32,
    pub first_position: Position,
    pub last_position: Position,
    /// Time of the segment's first batch, nanoseconds since 1970; without one the end of time.
    pub first_time_ns: i64,
    pub archived: bool,
    /// With an archiver now.
    pub archiving: bool,
    /// Its summary has been written.
    pub sealed: bool,
    /// Every byte of it, summary included, is durable.
    pub durable: bool,
    /// Reads of the slot that are in flight.
    pub readers: u32,
    /// The segment's bytes, while they are in memory.
    pub buffer: Option<Buffer>,
    /// Some of them could not be read by the opening that has them in memory, or are damaged.
    pub damaged: bool,
    pub sealed_at: Duration,
}

impl SlotInfo {
    fn new(life: Life, segment: SegmentNumber, first_position: Position) -> Self {
        Self {
            life,
            segment,
            epoch: 0,
            live: 0,
            first_position,
            last_position: first_position.previous(),
            first_time_ns: i64::MAX,
            archived: false,
            archiving: false,
            sealed: false,
            durable: false,
            readers: 0,
            buffer: None,
            damaged: false,
            sealed_at: Duration::ZERO,
        }
    }

    /// Whether nobody needs the slot's contents, headers aside.
    pub(super) fn is_recyclable(&self) -> bool {
        self.life == Life::Inactive && self.archived && !self.archiving && self.readers == 0
    }
}

/// All slots.
#[derive(Debug)]
pub struct Table {
    geometry: Geometry,
    slots: Vec<SlotInfo>,
    by_segment: BTreeMap<SegmentNumber, Slot>,
    free: VecDeque<Slot>,
    /// Every segment before it is durable.
    volatile_from: SegmentNumber,
}

impl Table {
    /// A table of free slots.
    pub fn new(geometry: Geometry) -> Self {
        let slots = (0..geometry.slots).map(|_| SlotInfo::new(Life::Recycle, SegmentNumber(0), Position(0))).collect();
        let free = (0..geometry.slots).map(Slot).collect();
        Self { geometry, slots, by_segment: BTreeMap::new(), free, volatile_from: SegmentNumber(0) }
    }

    pub fn get(&self, slot: Slot) -> &SlotInfo {
        &self.slots[slot.0 as usize]
    }

    pub fn get_mut(&mut self, slot: Slot) -> &mut SlotInfo {
        &mut self.slots[slot.0 as usize]
    }

    /// Counts an entry that is the newest version of its block.
    pub fn add_live(&mut self, mapping: Mapping) {
        if let Some(slot) = self.slot_holding(mapping) {
            self.get_mut(slot).live += 1;
        }
    }

    /// Counts an entry that is not the newest version of its block any more.
    pub fn remove_live(&mut self, mapping: Mapping) {
        if let Some(slot) = self.slot_holding(mapping) {
            let info = self.get_mut(slot);
            assert!(info.live > 0, "what the index points at is counted");
            info.live -= 1;
        }
    }

    fn slot_holding(&self, mapping: Mapping) -> Option<Slot> {
        match mapping {
            Mapping::Unmapped => None,
            Mapping::At(place, _) => Some(self.geometry.slot_of(place)),
            Mapping::Lost(slot) => Some(slot),
        }
    }

    /// The slot of `segment`, when it is on the primary.
    pub fn slot_of(&self, segment: SegmentNumber) -> Option<Slot> {
        self.by_segment.get(&segment).copied()
    }

    /// The segments on the primary, oldest first.
    pub fn segments(&self) -> impl DoubleEndedIterator<Item = (SegmentNumber, &SlotInfo)> {
        self.by_segment.iter().map(|(segment, slot)| (*segment, self.get(*slot)))
    }

    /// Those from `first` to `last`, oldest first.
    pub fn between(
        &self,
        first: SegmentNumber,
        last: SegmentNumber,
    ) -> impl Iterator<Item = (SegmentNumber, &SlotInfo)> {
        let newer = self.by_segment.range(first..).take_while(move |(segment, _)| **segment <= last);
        newer.map(|(segment, slot)| (*segment, self.get(*slot)))
    }

    /// Those that are not durable, and some that are, oldest first.
    pub fn volatile(&mut self) -> impl Iterator<Item = (SegmentNumber, &SlotInfo)> {
        let mut newer = self.by_segment.range(self.volatile_from..);
        if let Some((segment, _)) = newer.find(|(_, slot)| !self.get(**slot).durable) {
            self.volatile_from = *segment;
        }
        self.by_segment.range(self.volatile_from..).map(|(segment, slot)| (*segment, self.get(*slot)))
    }

    /// The oldest segment of which every position can be rebuilt from what is on the primary: W segments before it are
    /// there, or all there ever were.
    pub fn restorable_from(&self) -> Option<(SegmentNumber, &SlotInfo)> {
        let kept = self.segments().rev().take_while(|(_, info)| info.life != Life::Leaving);
        let mut next = None;
        let unbroken = kept.take_while(|(segment, _)| {
            let follows = next.is_none_or(|next| segment.plus(1) == next);
            next = Some(*segment);
            follows
        });
        let oldest = unbroken.last()?.0;
        let first = if oldest.0 == 1 { oldest } else { oldest.plus(u64::from(self.geometry.working_set)) };
        self.slot_of(first).map(|slot| (first, self.get(slot)))
    }

    /// Slots that are free.
    pub fn free_slots(&self) -> usize {
        self.free.len()
    }

    /// Live entries in segments up to `segment`: none in those that have left the working set, however many wait there.
    pub fn live_through(&self, segment: SegmentNumber) -> u32 {
        let newest_first = self.by_segment.range(..=segment).rev().map(|(_, slot)| self.get(*slot));
        newest_first.take_while(|info| matches!(info.life, Life::Active | Life::Current)).map(|info| info.live).sum()
    }

    /// recycle → current: takes a free slot for a new segment.
    ///
    /// # Panics
    /// When none is free: the caller has looked.
    pub fn start(&mut self, segment: SegmentNumber, first_position: Position) -> Slot {
        let slot = self.free.pop_front().expect("the caller waited for a free slot");
        self.put(slot, segment, Life::Current, first_position);
        slot
    }

    /// Enters a segment that was found on the primary. Before any slot is recycled: the free ones are in order till then.
    pub fn adopt(&mut self, slot: Slot, segment: SegmentNumber, life: Life, first_position: Position) {
        if let Ok(at) = self.free.binary_search(&slot) {
            self.free.remove(at);
        }
        self.put(slot, segment, life, first_position);
    }

    fn put(&mut self, slot: Slot, segment: SegmentNumber, life: Life, first_position: Position) {
        let info = self.get_mut(slot);
        assert_eq!(info.life, Life::Recycle, "only a free slot gets a segment");
        *info = SlotInfo::new(life, segment, first_position);
        let before = self.by_segment.insert(segment, slot);
        assert!(before.is_none(), "a segment is in one slot");
    }

    /// current → active: the segment is full.
    pub fn seal(&mut self, slot: Slot, epoch: u64, last_position: Position, at: Duration) {
        let info = self.get_mut(slot);
        assert_eq!(info.life, Life::Current);
        (info.life, info.epoch, info.last_position, info.sealed_at) = (Life::Active, epoch, last_position, at);
    }

    /// active → inactive, for every segment up to `through`, whose entries are all superseded.
    pub fn leave_working_set(&mut self, through: SegmentNumber) {
        let slots: Vec<Slot> = self.by_segment.range(..=through).map(|(_, slot)| *slot).collect();
        for slot in slots {
            let info = self.get_mut(slot);
            if info.life == Life::Active {
                assert_eq!(info.live, 0, "segment {} left the working set with live blocks", info.segment);
                info.life = Life::Inactive;
            }
        }
    }

    /// inactive → leaving, for the segments up to `through` that are archived and that nobody reads; returns their slots.
    pub fn take_recyclable(&mut self, through: SegmentNumber) -> Vec<Slot> {
        let slots: Vec<Slot> = self.by_segment.range(..=through).map(|(_, slot)| *slot).collect();
        slots
            .into_iter()
            .filter(|slot| {
                let info = self.get_mut(*slot);
                let may = info.is_recyclable();
                if may {
                    info.life = Life::Leaving;
                    info.buffer = None;
                }
                may
            })
            .collect()
    }

    /// leaving → recycle: the slot is free.
    pub fn recycle(&mut self, slot: Slot) {
        let info = self.get_mut(slot);
        assert_eq!((info.life, info.live, info.readers), (Life::Leaving, 0, 0));
        info.life = Life::Recycle;
        let segment = info.segment;
        self.by_segment.remove(&segment);
        self.free.push_back(slot);
    }
}
