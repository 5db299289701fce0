//! How large everything is: from what was asked for to sizes that fit together. Pure arithmetic.
//!
//! ```text
//! primary = 1 MiB (superblock) + slots × segment + copy of the superblock
//! slots   = working set + one being cleaned + one next + spare
//! volume  = u × working set × blocks of a segment that can hold data
//! ```
//!
//! **Segment.** The default is the largest of 16, 8, 4, 2 and 1 MiB with which the working set has at least 128
//! segments: few segments make cleaning coarse. On a toy that has none of these it is 1 MiB while the working set keeps
//! 32 segments, then 512 and 256 KiB, as long as it keeps 8.
//!
//! **Spare.** Slots for what is inactive and waits for the archiver: 5 % of the slots, at least 4. Without an archive
//! nothing waits, 2 are enough.

use salvol::format::{BATCH_ENTRIES_MAX, BLOCK_BYTES, FIRST_SLOT_BLOCK, FormatError, Geometry, summary_blocks};

use super::parse::Size;

/// The working set's default utilisation: cleaning costs 1.7 times the user's writes.
pub(crate) const UTILISATION: f64 = 0.67;
/// Below this the working set is too coarse to clean.
const WORKING_SET_MIN: u64 = 8;
const WORKING_SET_GOOD: u64 = 128;
const WORKING_SET_FAIR: u64 = 32;
/// Beside the working set: the segment that is being cleaned, and the next one.
const BESIDE: u64 = 2;
/// Blocks beside the slots: everything before the first, and the superblock's copy.
const FIXED_BLOCKS: u64 = FIRST_SLOT_BLOCK as u64 + 1;
const UTILISATION_MAX: f64 = 0.95;
/// What the estimates take for a user's batch.
const BATCH_BLOCKS: u64 = 32;

/// What was asked for. Everything that is absent follows from the rest.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct Wish {
    /// Blocks of a primary that exists; a file that does not exist is made as large as it must be.
    pub(crate) primary_blocks: Option<u64>,
    pub(crate) volume_bytes: Option<u64>,
    pub(crate) segment_bytes: Option<u64>,
    pub(crate) utilisation: Option<f64>,
    pub(crate) working_set: Option<u32>,
    pub(crate) spare: Option<u32>,
    /// Whether there is a backing store.
    pub(crate) archived: bool,
}

/// Sizes that fit together.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Plan {
    pub(crate) geometry: Geometry,
    /// Slots beyond the working set, the one being cleaned and the next one.
    pub(crate) spare: u32,
    /// Blocks of the primary that nothing will use.
    pub(crate) unused_blocks: u64,
    pub(crate) utilisation: f64,
    /// Data blocks appended for each block written, for random overwrites in batches of 32.
    pub(crate) write_amplification: f64,
}

/// Why there is no plan: numbers and remedy.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum GeometryError {
    #[error("--size says how large the volume of a new file is to be, like --size 10G")]
    NoSize,
    #[error("a volume's size is a multiple of 4096 bytes, {0} is not")]
    Ragged(u64),
    #[error("a segment is a multiple of 4096 bytes from 256K to 256M, {0} is not")]
    Segment(u64),
    #[error(
        "the primary has {have}, too small for {need} (a working set of {WORKING_SET_MIN} segments): use a larger one"
    )]
    TooSmall { have: Size, need: Size },
    #[error("a working set has at least {WORKING_SET_MIN} segments, not {0}")]
    WorkingSet(u64),
    #[error("--spare {have} is too few: {need} are needed")]
    Spare { have: u32, need: u64 },
    #[error(
        "a volume of {size} needs a primary of {need}, it has {have}: at most --size {fits} fits here, or a higher \
         --utilisation, or a larger primary"
    )]
    DoesNotFit { size: Size, need: Size, have: Size, fits: Size },
    #[error(
        "a working set of {working_set} segments needs {need}, the primary has {have}: make it smaller, or the segments"
    )]
    WorkingSetDoesNotFit { working_set: u64, need: Size, have: Size },
    #[error(
        "a volume of {size} would fill {percent} % of its working set of {places}; more than 95 % cannot be cleaned: \
         make it smaller, or the working set larger"
    )]
    TooFull { size: Size, percent: u64, places: Size },
    #[error("{0}")]
    Format(#[from] FormatError),
}

/// Finds the sizes.
///
/// # Errors
/// When what was asked for does not fit together.
pub(crate) fn solve(wish: &Wish) -> Result<Plan, GeometryError> {
    if let Some(bytes) = wish.volume_bytes
        && bytes % BLOCK_BYTES as u64 != 0
    {
        return Err(GeometryError::Ragged(bytes));
    }
    if wish.primary_blocks.is_none() && wish.volume_bytes.is_none() {
        return Err(GeometryError::NoSize);
    }
    if let Some(segment) = wish.segment_bytes {
        let blocks = segment / BLOCK_BYTES as u64;
        if segment % BLOCK_BYTES as u64 != 0 || !(64..=65536).contains(&blocks) {
            return Err(GeometryError::Segment(segment));
        }
        return with_segment(wish, blocks);
    }
    let choices =
        [(4096, WORKING_SET_GOOD), (2048, WORKING_SET_GOOD), (1024, WORKING_SET_GOOD), (512, WORKING_SET_GOOD)];
    let small = [(256, WORKING_SET_FAIR), (128, WORKING_SET_FAIR), (64, WORKING_SET_MIN)];
    let mut last = None;
    for (segment_blocks, least) in choices.into_iter().chain(small) {
        let plan = with_segment(wish, segment_blocks);
        match &plan {
            Ok(plan) if u64::from(plan.geometry.working_set) >= least => return Ok(*plan),
            // A working set in segments was asked for: it is what it is.
            Ok(plan) if wish.working_set.is_some() => return Ok(*plan),
            _ => {}
        }
        last = Some(plan);
    }
    last.unwrap_or(Err(GeometryError::NoSize))
}

/// Blocks of a segment that can hold data: all but its header and its summary, and a header for each full batch.
fn usable(segment_blocks: u64) -> u64 {
    let batches = segment_blocks.div_ceil(BATCH_ENTRIES_MAX as u64 + 1);
    let summary = u64::from(summary_blocks(batches as usize, segment_blocks as usize, 0));
    segment_blocks - 1 - summary - batches
}

fn with_segment(wish: &Wish, segment_blocks: u64) -> Result<Plan, GeometryError> {
    let usable = usable(segment_blocks);
    let size = |slots: u64| Size::of_blocks(FIXED_BLOCKS + slots * segment_blocks);
    let volume_blocks = wish.volume_bytes.map(|bytes| bytes / BLOCK_BYTES as u64);
    let share = wish.utilisation.unwrap_or(UTILISATION);
    let spare_min = if wish.archived { 2 } else { 1 };
    if let Some(spare) = wish.spare
        && u64::from(spare) < spare_min
    {
        return Err(GeometryError::Spare { have: spare, need: spare_min });
    }
    if let Some(working_set) = wish.working_set
        && u64::from(working_set) < WORKING_SET_MIN
    {
        return Err(GeometryError::WorkingSet(u64::from(working_set)));
    }
    let spare_for = |slots: u64| match wish.spare {
        Some(spare) => u64::from(spare),
        None if wish.archived => (slots / 20).max(4),
        None => 2,
    };
    // Slots that the primary has; without one, that this working set needs.
    let wanted = wish.working_set.map(u64::from).or_else(|| {
        let blocks = volume_blocks.filter(|_| wish.utilisation.is_some() || wish.primary_blocks.is_none())?;
        Some(((blocks as f64 / (share * usable as f64)).ceil() as u64).max(WORKING_SET_MIN))
    });
    let available = wish.primary_blocks.map(|blocks| blocks.saturating_sub(FIXED_BLOCKS) / segment_blocks);
    let (working_set, slots) = match (available, wanted) {
        (None, None) => return Err(GeometryError::NoSize),
        (None, Some(working_set)) => {
            // Of the slots that result, the spare ones are a twentieth.
            let around = (working_set + BESIDE) * 20 / 19;
            (working_set, working_set + BESIDE + spare_for(around))
        }
        (Some(available), None) => {
            let reserve = BESIDE + spare_for(available);
            if available < WORKING_SET_MIN + reserve {
                return Err(GeometryError::TooSmall { have: size(available), need: size(WORKING_SET_MIN + reserve) });
            }
            (available - reserve, available)
        }
        (Some(available), Some(working_set)) => {
            let least = working_set + BESIDE + wish.spare.map_or(spare_min, u64::from);
            if available < least {
                return Err(does_not_fit(wish, size(least), size(available), available, usable, share));
            }
            // Slots that were not forbidden serve the archiver's queue.
            (working_set, if wish.spare.is_some() { least } else { available })
        }
    };
    let volume_blocks = volume_blocks.unwrap_or((share * working_set as f64 * usable as f64) as u64);
    let places = working_set * usable;
    if volume_blocks as f64 > UTILISATION_MAX * places as f64 {
        return Err(match (wish.primary_blocks, wish.working_set) {
            (Some(_), None) => {
                let need = (volume_blocks as f64 / (share * usable as f64)).ceil() as u64 + slots - working_set;
                does_not_fit(wish, size(need), size(slots), slots, usable, share)
            }
            _ => {
                let (size, percent) = (Size::of_blocks(volume_blocks), volume_blocks * 100 / places.max(1));
                GeometryError::TooFull { size, percent, places: Size::of_blocks(places) }
            }
        });
    }
    let primary_blocks = wish.primary_blocks.unwrap_or(FIXED_BLOCKS + slots * segment_blocks);
    let [segment, slot_count, working] =
        [segment_blocks, slots, working_set].map(|n| u32::try_from(n).unwrap_or(u32::MAX));
    let geometry =
        Geometry { primary_blocks, volume_blocks, segment_blocks: segment, slots: slot_count, working_set: working };
    geometry.check()?;
    Ok(Plan {
        geometry,
        spare: slot_count - working - BESIDE as u32,
        unused_blocks: primary_blocks - FIXED_BLOCKS - slots * segment_blocks,
        utilisation: volume_blocks as f64 / places as f64,
        write_amplification: estimate(&geometry),
    })
}

fn does_not_fit(wish: &Wish, need: Size, have: Size, slots: u64, usable: u64, share: f64) -> GeometryError {
    match (wish.volume_bytes, wish.working_set) {
        (Some(bytes), None) => {
            let spare = wish.spare.map_or(if wish.archived { 4 } else { 2 }, u64::from);
            let working_set = slots.saturating_sub(BESIDE + spare);
            let fits = Size::of_blocks((share * working_set as f64 * usable as f64) as u64);
            GeometryError::DoesNotFit { size: Size(bytes), need, have, fits }
        }
        (_, working_set) => {
            GeometryError::WorkingSetDoesNotFit { working_set: working_set.map_or(0, u64::from), need, have }
        }
    }
}

/// The write amplification of `geometry` under random overwrites in batches of 32 blocks.
fn estimate(geometry: &Geometry) -> f64 {
    let blocks = f64::from(geometry.segment_blocks);
    let places = f64::from(geometry.working_set) * blocks;
    // The segment's header and its summary, shared by its blocks.
    let fixed = (blocks - usable(u64::from(geometry.segment_blocks)) as f64) / blocks;
    let header = 1.0 / BATCH_BLOCKS as f64;
    write_amplification(geometry.volume_blocks as f64 / places, header + fixed, header + fixed)
}

/// Data blocks appended for each block that users write, when blocks are overwritten uniformly at random and segments
/// are cleaned oldest first: x·((1+h_u) + (1+h_c)·q/(1−q)) = 1 with q = e^(−x/u), A = 1/(1−q).
///
/// `u` is volume blocks ÷ places of the working set, `h_user` and `h_copy` are header and summary places for each block
/// that is written and each that is copied. x is user blocks a turn ÷ places.
pub(crate) fn write_amplification(u: f64, h_user: f64, h_copy: f64) -> f64 {
    let surviving = |x: f64| (-x / u).exp();
    let free = |x: f64| {
        let q = surviving(x);
        1.0 - x * ((1.0 + h_user) + (1.0 + h_copy) * q / (1.0 - q))
    };
    let (mut low, mut high) = (1e-9, 1.0);
    for _ in 0..100 {
        let middle = (low + high) / 2.0;
        if free(middle) > 0.0 { low = middle } else { high = middle }
    }
    1.0 / (1.0 - surviving(low))
}

#[cfg(test)]
#[path = "geometry_tests.rs"]
mod tests;
