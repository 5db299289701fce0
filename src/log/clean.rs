//! Cleaning: the live blocks of the oldest segments are copied to the head, oldest first.
//!
//! Readers list a segment's live entries from its summary (from the index, when that is damaged and its headers too), read them in groups of 128 KiB and verify them; the placer
//! puts a group into the open batch when the plan says that it is due, or when the segment cannot be sealed without it.
//! **Rule 6:** at the instant of placing, a block is copied only if the index still points where it was read.

use std::collections::{HashMap, VecDeque};

use futures_util::future::join_all;

use super::limits::{
    COPY_GAP_BLOCKS, COPY_GROUP_BLOCKS, COPY_GROUPS_AHEAD, COPY_READ_PAUSE, COPY_READ_TRIES, INDEX_PIECE, READ_TRIES,
};
use super::{Log, Promise, State, scan};
use crate::format::{
    BATCH_ENTRIES_MAX, BLOCK_BYTES, Block, Entry, Place, SegmentNumber, Slot, Summary, Superblock, block_crc,
};
use crate::index::Mapping;
use crate::io::{Buffer, Device, Platform};

/// A live block that is due to be copied.
#[derive(Debug, Clone, Copy)]
struct Candidate {
    block: Block,
    /// What the index said of it; it is copied only while the index says the same.
    found: Mapping,
    /// Block of the group's buffer; `None` when the block is lost, or its data could not be read.
    at: Option<u32>,
}

/// Blocks that are read together and placed together.
#[derive(Debug)]
struct Group {
    segment: SegmentNumber,
    slot: Slot,
    candidates: VecDeque<Candidate>,
    data: Buffer,
    /// Of [`Cleaner::round`].
    round: u64,
}

/// Where the cleaner is.
#[derive(Debug)]
pub(super) struct Cleaner {
    /// The share of the current segment that goes to copies.
    share: f64,
    /// Blocks of the current segment that went to copies and their headers.
    copied: f64,
    /// The newest segment that may be cleaned.
    limit: SegmentNumber,
    /// The segment whose live entries are in `list`.
    segment: SegmentNumber,
    list: VecDeque<(Block, Mapping)>,
    listing: bool,
    reading: usize,
    ready: VecDeque<Group>,
    /// How often what had been listed was given up: groups that were being read then are listed again.
    round: u64,
    /// Memory for the groups that there may be.
    spare: Vec<Buffer>,
}

/// Blocks of a group's memory: the gaps that its reads run over are read too.
const GROUP_BUFFER_BLOCKS: usize = 2 * COPY_GROUP_BLOCKS;

impl Cleaner {
    /// A cleaner that has nothing to do yet.
    ///
    /// # Errors
    /// When the system gives no memory.
    pub(super) fn new() -> std::io::Result<Self> {
        let bytes = GROUP_BUFFER_BLOCKS * BLOCK_BYTES;
        let memory = Buffer::new(COPY_GROUPS_AHEAD * bytes)?;
        Ok(Self {
            share: 0.0,
            copied: 0.0,
            limit: SegmentNumber(0),
            segment: SegmentNumber(0),
            list: VecDeque::new(),
            listing: false,
            reading: 0,
            ready: VecDeque::new(),
            round: 0,
            spare: (0..COPY_GROUPS_AHEAD).map(|rank| memory.part(rank * bytes, bytes)).collect(),
        })
    }

    /// A new segment begins, of which `share` goes to copies of segments up to `limit`.
    pub(super) fn begin_segment(&mut self, share: f64, limit: SegmentNumber) {
        (self.share, self.copied, self.limit) = (share, 0.0, limit);
    }

    /// Blocks that copies are behind their plan when the current segment has `used` blocks.
    pub(super) fn debt(&self, used: u32) -> u32 {
        if self.ready.is_empty() && self.reading == 0 && !self.listing && self.list.is_empty() {
            return 0;
        }
        (self.share * f64::from(used) - self.copied).max(0.0) as u32
    }

    fn has_groups(&self) -> bool {
        !self.ready.is_empty() || self.reading > 0
    }
}

/// What a reader found to do.
enum Next {
    End,
    List(SegmentNumber, Slot),
    Read(Group),
}

impl<P: Platform> Log<P> {
    /// Lists and reads groups of live blocks, one at a time; several of these run.
    pub(super) async fn read_copies(self) {
        loop {
            match self.0.clean.until(|| self.next_group()).await {
                Next::End => return,
                Next::List(segment, slot) => self.list_live(segment, slot).await,
                Next::Read(group) => {
                    let group = self.read_group(group).await;
                    let slot = group.slot;
                    {
                        let mut state = self.0.state.borrow_mut();
                        let cleaner = &mut state.cleaner;
                        cleaner.reading -= 1;
                        if group.round == cleaner.round {
                            cleaner.ready.push_back(group);
                        } else {
                            cleaner.spare.push(group.data);
                        }
                    }
                    self.reader_left(slot);
                }
            }
            self.0.clean.notify();
            self.0.space.notify();
        }
    }

    fn next_group(&self) -> Option<Next> {
        let mut state = self.0.state.borrow_mut();
        if state.ended() {
            return Some(Next::End);
        }
        let cleaner = &state.cleaner;
        if cleaner.listing || cleaner.ready.len() + cleaner.reading >= COPY_GROUPS_AHEAD {
            return None;
        }
        let listed = !cleaner.list.is_empty();
        if let Some(group) = state.take_group() {
            return Some(Next::Read(group));
        }
        if listed && state.cleaner.list.is_empty() {
            // Nothing of what was listed is live any more, so nobody need wait for it.
            self.0.space.notify();
        }
        let (segment, slot) = state.next_to_list(&self.0.volume)?;
        state.cleaner.listing = true;
        state.cleaner.segment = segment;
        state.table.get_mut(slot).readers += 1;
        Some(Next::List(segment, slot))
    }

    async fn list_live(&self, segment: SegmentNumber, slot: Slot) {
        let listed = match self.whole_summary(segment, slot).await {
            Ok(summary) => {
                let mappings = scan::mappings(&summary, &self.0.volume.geometry, slot);
                mappings.map(|(entry, _, mapping)| (entry.block(), mapping)).collect()
            }
            Err(error) => {
                log::error!("segment {segment}: its headers are damaged, its blocks are found by the index: {error}");
                self.live_by_index(slot).await
            }
        };
        {
            let cleaner = &mut self.0.state.borrow_mut().cleaner;
            cleaner.listing = false;
            // A new segment may have begun meanwhile, and with it a new plan.
            if cleaner.segment == segment {
                let of_it = cleaner.ready.iter().filter(|group| group.segment == segment);
                let candidates = of_it.flat_map(|group| &group.candidates);
                let ready: HashMap<Block, Mapping> = candidates.map(|ready| (ready.block, ready.found)).collect();
                let unread = |(block, mapping): &(Block, Mapping)| {
                    *mapping != Mapping::Unmapped && ready.get(block) != Some(mapping)
                };
                cleaner.list = listed.into_iter().filter(unread).collect();
            }
        }
        self.reader_left(slot);
    }

    /// The summary of all of the segment.
    async fn whole_summary(&self, segment: SegmentNumber, slot: Slot) -> Result<Summary, String> {
        let (memory, end) = {
            let state = self.0.state.borrow();
            (state.table.get(slot).buffer.clone(), state.end_of(segment))
        };
        let summary = match memory {
            Some(image) => {
                scan::summary_in(image.bytes(), &self.0.volume, segment).map_err(|error| error.to_string())?
            }
            None => {
                let summary = scan::summary(&self.0.device, &self.0.volume, slot, segment).await;
                summary.map_err(|error| error.to_string())?
            }
        };
        match end {
            Some(end) if end != summary.last_position() => {
                Err(format!("they end at {}, it ended at {end}", summary.last_position()))
            }
            _ => Ok(summary),
        }
    }

    /// What is live in `slot` by the index, in the order of its places.
    async fn live_by_index(&self, slot: Slot) -> Vec<(Block, Mapping)> {
        let geometry = &self.0.volume.geometry;
        let is_here = |mapping: &Mapping| match mapping {
            Mapping::Unmapped => false,
            Mapping::At(place, _) => geometry.slot_of(*place) == slot,
            Mapping::Lost(lost) => *lost == slot,
        };
        let mut live = Vec::new();
        let mut from = 0;
        while from < geometry.volume_blocks {
            let to = geometry.volume_blocks.min(from + INDEX_PIECE);
            {
                let index = &self.0.state.borrow().index;
                let mappings = (from..to).map(|block| (Block(block), index.get(Block(block))));
                live.extend(mappings.filter(|(_, mapping)| is_here(mapping)));
            }
            from = to;
            self.0.platform.settle().await;
        }
        live.sort_by_key(|(_, mapping)| mapping.place());
        live
    }

    /// Reads the blocks of a group, near ones together, and verifies them.
    async fn read_group(&self, mut group: Group) -> Group {
        let memory = self.0.state.borrow().table.get(group.slot).buffer.clone();
        let first = self.0.volume.geometry.slot_place(group.slot);
        let runs = runs(&group.candidates);
        self.0.state.borrow_mut().counters.cleaning_reads += runs.len() as u64;
        let reads = runs.iter().map(|run| {
            let (from, blocks) = (run.place, run.blocks as usize);
            let into = group.data.part(run.at as usize * BLOCK_BYTES, blocks * BLOCK_BYTES);
            let memory = memory.as_ref();
            async move {
                match memory {
                    Some(image) => {
                        let start = (from.0 - first.0) as usize * BLOCK_BYTES;
                        into.copy_from(0, image.part(start, into.len()).bytes());
                        Ok(())
                    }
                    None => self.0.device.read(from.bytes(), into).await,
                }
            }
        });
        let results = join_all(reads).await;
        for candidate in &mut group.candidates {
            let Mapping::At(place, crc) = candidate.found else { continue };
            let Some(rank) = runs.iter().position(|run| run.holds(place)) else { continue };
            let at = runs[rank].at + (place.0 - runs[rank].place.0);
            let block = group.data.part(at as usize * BLOCK_BYTES, BLOCK_BYTES);
            let whole = (results[rank].is_ok() && block_crc(block.bytes()) == crc)
                || self.read_at_last(candidate.block, place, crc, &block).await;
            candidate.at = whole.then_some(at);
        }
        group
    }

    /// Reads one block that could not be read with its neighbours; from the archive, when the primary has lost it. What is in
    /// neither is read again while that may help: a block that is given up here is lost for good.
    async fn read_at_last(&self, block: Block, place: Place, crc: u32, into: &Buffer) -> bool {
        let mut before = self.read_alone(place, into).await.ok();
        if before == Some(crc)
            || before.is_some() && self.read_behind(place, into).await.is_ok_and(|found| found == crc)
            || self.repair(block, place, crc, into).await
        {
            return true;
        }
        let mut failed = u32::from(before.is_none());
        for _ in 0..COPY_READ_TRIES {
            if before.is_none() {
                self.0.platform.sleep(COPY_READ_PAUSE * failed).await;
            }
            match self.read_alone(place, into).await.ok() {
                Some(found) if found == crc => return true,
                // Rot reads the same each time.
                Some(found) if before == Some(found) => return false,
                found => before = found,
            }
            failed += u32::from(before.is_none());
            if failed >= READ_TRIES || self.0.state.borrow().ended() {
                return false;
            }
        }
        false
    }

    /// Puts groups into the open batch when they are due.
    pub(super) async fn place_copies(self) {
        loop {
            let ended = self
                .0
                .clean
                .until(|| {
                    let mut state = self.0.state.borrow_mut();
                    if state.ended() { Some(true) } else { state.place_due(&self.0.volume).then_some(false) }
                })
                .await;
            if ended {
                return;
            }
            self.wake_everybody();
        }
    }
}

/// Blocks next to each other, or nearly, on the primary: one read.
struct Run {
    place: Place,
    blocks: u32,
    /// Where in the group's buffer.
    at: u32,
}

impl Run {
    fn holds(&self, place: Place) -> bool {
        (self.place.0..self.place.0 + self.blocks).contains(&place.0)
    }
}

fn runs(candidates: &VecDeque<Candidate>) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for place in candidates.iter().filter_map(|candidate| candidate.found.place()) {
        match runs.last_mut() {
            Some(run) if place.0 - (run.place.0 + run.blocks) <= COPY_GAP_BLOCKS => {
                run.blocks = place.0 - run.place.0 + 1;
            }
            last => {
                let at = last.map_or(0, |run| run.at + run.blocks);
                runs.push(Run { place, blocks: 1, at });
            }
        }
    }
    runs
}

impl State {
    fn next_to_list(&self, volume: &Superblock) -> Option<(SegmentNumber, Slot)> {
        let cleaner = &self.cleaner;
        let must = self.must_copy(volume);
        let through = if must > 0 { self.leaving(volume)? } else { cleaner.limit };
        if cleaner.share <= 0.0 && must == 0 {
            return None;
        }
        // The first with live blocks; or again the one just listed, when its groups are read and some were missed.
        let missed = match must {
            0 => !cleaner.has_groups(),
            must => cleaner.reading == 0 && self.ready_blocks(through) < must as usize,
        };
        let again = missed && cleaner.list.is_empty();
        let first = if again { self.leaving(volume).unwrap_or_default() } else { cleaner.segment.plus(1) };
        let is_live = |info: &super::SlotInfo| info.live > 0 && info.life != super::Life::Current;
        let (next, _) = self.table.between(first, through).find(|(_, info)| is_live(info))?;
        Some((next, self.table.slot_of(next)?))
    }

    /// The next group of the listed segment's live blocks.
    fn take_group(&mut self) -> Option<Group> {
        let Some(slot) = self.table.slot_of(self.cleaner.segment) else {
            self.cleaner.list.clear();
            return None;
        };
        let data = self.cleaner.spare.pop()?;
        let mut candidates: VecDeque<Candidate> = VecDeque::new();
        let (mut span, mut before) = (0, None);
        while candidates.len() < COPY_GROUP_BLOCKS {
            let Some(&(block, found)) = self.cleaner.list.front() else { break };
            if self.index.get(block) == found {
                if let Some(place) = found.place() {
                    let gap = before.map_or(0, |before: Place| place.0 - before.0 - 1);
                    span += 1 + if gap <= COPY_GAP_BLOCKS { gap } else { 0 };
                    if span > GROUP_BUFFER_BLOCKS as u32 {
                        break;
                    }
                    before = Some(place);
                }
                candidates.push_back(Candidate { block, found, at: None });
            }
            self.cleaner.list.pop_front();
        }
        if candidates.is_empty() {
            self.cleaner.spare.push(data);
            return None;
        }
        self.table.get_mut(slot).readers += 1;
        self.cleaner.reading += 1;
        Some(Group { segment: self.cleaner.segment, slot, candidates, data, round: self.cleaner.round })
    }

    /// Places what is due; whether anything was placed or thrown away.
    fn place_due(&mut self, volume: &Superblock) -> bool {
        if self.drop_outlived() {
            return true;
        }
        let Some(group) = self.cleaner.ready.front() else { return false };
        let must = self.must_copy(volume);
        let leaving = self.leaving(volume);
        let hard = leaving.is_some_and(|leaving| group.segment <= leaving);
        let due = self.cleaner.debt(self.head.used()) >= COPY_GROUP_BLOCKS as u32 || (self.roll_wanted && must > 0);
        if !due {
            return false;
        }
        let reserve = self.reserve(volume);
        if let Some(leaving) = leaving.filter(|_| hard)
            && !self.head.fits_loosely(Promise { copies: must, control: reserve })
        {
            return self.place_densely(leaving, must as usize);
        }
        let want = group.candidates.len() as u32;
        if hard {
            let room = self.head.room(want, Promise { copies: 0, control: reserve });
            self.place_front(room);
            return room > 0;
        }
        if self.head.room(want, self.promise(volume)) == want {
            self.place_front(want);
            return true;
        }
        // No room for copying ahead in this segment; what must be copied comes first.
        self.cleaner.share = 0.0;
        self.give_way(leaving.unwrap_or_default());
        true
    }

    /// Live blocks of segments up to `through` that have been read.
    fn ready_blocks(&self, through: SegmentNumber) -> usize {
        let due = self.cleaner.ready.iter().filter(|group| group.segment <= through);
        let is_live = |candidate: &&Candidate| self.index.get(candidate.block) == candidate.found;
        due.flat_map(|group| &group.candidates).filter(is_live).count()
    }

    /// Drops the groups of which nothing is live any more, or whose segment has left the primary since they were read: a
    /// block that is found at the same place again is another one. Whether there were any.
    fn drop_outlived(&mut self) -> bool {
        let before = self.cleaner.ready.len();
        let Self { table, index, cleaner, .. } = self;
        let Cleaner { ready, spare, .. } = cleaner;
        ready.retain(|group| {
            let live = |candidate: &Candidate| index.get(candidate.block) == candidate.found;
            let there = table.slot_of(group.segment) == Some(group.slot) && group.candidates.iter().any(live);
            if !there {
                spare.push(group.data.clone());
            }
            there
        });
        self.cleaner.ready.len() < before
    }

    /// A segment that is nearly all live fits into another only in full batches: no header is spent on less. They may take
    /// the reserve: the two blocks that writes always leave are over in the segment with the copies as well, for an open
    /// entry and for the header that frees a slot.
    fn place_densely(&mut self, leaving: SegmentNumber, must: usize) -> bool {
        if self.head.has_open_data() || self.cleaner.reading > 0 {
            return false;
        }
        let full = self.ready_blocks(leaving) >= must.min(BATCH_ENTRIES_MAX);
        if !full && self.cleaner.ready.iter().any(|group| group.segment > leaving) {
            self.give_way(leaving);
            return true;
        }
        if !full && self.cleaner.ready.len() < COPY_GROUPS_AHEAD {
            return false;
        }
        // Those that were read ahead may have come between.
        self.cleaner.ready.make_contiguous().sort_by_key(|group| group.segment);
        let mut placed = false;
        while let Some(group) = self.cleaner.ready.front()
            && group.segment <= leaving
        {
            let room = self.head.room(group.candidates.len() as u32, Promise::default());
            if room == 0 {
                break;
            }
            self.place_front(room);
            placed = true;
        }
        placed
    }

    /// Throws away the groups that were read ahead, so that those up to `leaving`, which are due, can be read.
    fn give_way(&mut self, leaving: SegmentNumber) {
        let (due, ahead) =
            std::mem::take(&mut self.cleaner.ready).into_iter().partition(|group| group.segment <= leaving);
        self.cleaner.ready = due;
        let ahead: VecDeque<Group> = ahead;
        self.cleaner.spare.extend(ahead.into_iter().map(|group| group.data));
        self.cleaner.segment = SegmentNumber(0);
        self.cleaner.list.clear();
        self.cleaner.round += 1;
    }

    /// Places up to `count` blocks of the first group, those that are still where they were read.
    fn place_front(&mut self, count: u32) {
        let Some(mut group) = self.cleaner.ready.pop_front() else { return };
        let opened = !self.head.has_open();
        let mut placed = 0;
        while placed < count
            && let Some(candidate) = group.candidates.pop_front()
        {
            if self.index.get(candidate.block) != candidate.found {
                self.counters.outrun_copies += 1;
                continue;
            }
            placed += 1;
            match candidate {
                Candidate { block, found: Mapping::At(_, crc), at: Some(at) } => {
                    let data = group.data.part(at as usize * BLOCK_BYTES, BLOCK_BYTES);
                    // The checksum that it was verified by goes with it: what happens to memory since then is found by a reader.
                    let place = self.head.place_known(data.bytes(), Entry::copy(block, crc));
                    self.map(block, Mapping::At(place, crc));
                    self.counters.copied_blocks += 1;
                }
                _ => {
                    self.head.place(Entry::lost(candidate.block));
                    self.map(candidate.block, Mapping::Lost(self.head.slot));
                    self.counters.lost_blocks += 1;
                }
            }
        }
        self.cleaner.copied += f64::from(placed) + f64::from(u8::from(opened && placed > 0));
        if group.candidates.is_empty() {
            self.cleaner.spare.push(group.data);
        } else {
            self.cleaner.ready.push_front(group);
        }
    }
}
