//! What is on a primary, found once: the valid tail, and the slots whose segments may be part of its past.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use crate::format::{Position, SegmentNumber, Slot, Summary, Superblock};
use crate::io::{Device, Platform};
use crate::log::replay::ReplayError;
use crate::log::scan::{self, Found, ScanError};
use crate::log::tail::{Tail, find_tail};

/// A break that stays where it is between two looks is damage; one that moves is a write that was under way.
const LOOKS_MAX: u32 = 20;
const BETWEEN_LOOKS: Duration = Duration::from_millis(20);

/// The tail of the log on a primary: the last segment, as far as it is valid.
#[derive(Clone)]
pub(super) struct LastSegment {
    pub slot: Slot,
    pub summary: Arc<Summary>,
}

/// The slots of a primary.
pub(super) struct Slots {
    pub tail: Option<LastSegment>,
    /// Segments up to the tail, and the slots whose headers say that they hold them.
    pub found: BTreeMap<SegmentNumber, Vec<Slot>>,
    /// What keeps the tail from being found, or cuts it short.
    pub trouble: Option<String>,
}

impl Slots {
    /// Looks at the primary behind `device`, which may be in use.
    pub async fn find<P: Platform>(platform: P, device: P::Device, volume: Superblock) -> std::io::Result<Self> {
        let mut broken = None;
        let mut trouble = None;
        let mut tail = None;
        for _ in 0..LOOKS_MAX {
            match find_tail(&device, &volume, None).await {
                Ok(found) => {
                    (tail, trouble) = (found, None);
                    break;
                }
                Err(ReplayError::Io(error)) => return Err(error),
                Err(error) => {
                    let last = error.last_readable();
                    trouble = Some(error.to_string());
                    if broken == Some(last) {
                        tail = before_the_break(&device, &volume, last).await;
                        break;
                    }
                    broken = Some(last);
                }
            }
            platform.sleep(BETWEEN_LOOKS).await;
        }
        let headers: Vec<Found> = match &tail {
            Some(tail) => tail.found.clone(),
            None => scan::headers(&device, &volume).await?.found,
        };
        let tail = tail.map(|tail| LastSegment { slot: tail.last.slot, summary: Arc::new(tail.walk.summary) });
        // The tail's first batch may be all that is there, and torn.
        let last = tail.as_ref().map_or(SegmentNumber(u64::MAX), |tail| match tail.summary.batches.is_empty() {
            true => SegmentNumber(tail.summary.segment.0.saturating_sub(1)),
            false => tail.summary.segment,
        });
        let tail = tail.filter(|tail| !tail.summary.batches.is_empty());
        let mut found: BTreeMap<SegmentNumber, Vec<Slot>> = BTreeMap::new();
        // Newest epoch first: `headers` are in the order of segment and epoch.
        for header in headers.iter().rev().filter(|found| found.header.segment <= last) {
            found.entry(header.header.segment).or_default().push(header.slot);
        }
        Ok(Self { tail, found, trouble })
    }

    /// The summary of the segment in `slot`. The last one's is what was found valid; without a valid tail only what was
    /// sealed is trusted.
    pub async fn summary<D: Device>(
        &self,
        device: &D,
        volume: &Superblock,
        slot: Slot,
        segment: SegmentNumber,
    ) -> Result<Arc<Summary>, ScanError> {
        match &self.tail {
            Some(tail) if tail.summary.segment == segment && tail.slot == slot => Ok(Arc::clone(&tail.summary)),
            Some(_) => scan::summary(device, volume, slot, segment).await.map(Arc::new),
            None => scan::stored_summary(device, volume, slot).await.map(Arc::new),
        }
    }
}

async fn before_the_break<D: Device>(device: &D, volume: &Superblock, last: Option<Position>) -> Option<Tail> {
    find_tail(device, volume, Some(last?)).await.ok().flatten()
}

/// All summaries that are on the device, up to its valid tail: for simulators, which have a device and no thread that
/// may wait. They all stay in memory.
///
/// # Errors
/// When the device cannot be read.
pub async fn summaries_on<P: Platform>(
    platform: P,
    device: P::Device,
    volume: Superblock,
) -> std::io::Result<BTreeMap<SegmentNumber, Arc<Summary>>> {
    let slots = Slots::find(platform, device.clone(), volume.clone()).await?;
    let mut summaries: BTreeMap<SegmentNumber, Arc<Summary>> = BTreeMap::new();
    for (segment, candidates) in slots.found.iter().rev() {
        let successor = summaries.get(&segment.plus(1)).map(|next| next.predecessor);
        for slot in candidates {
            if let Ok(summary) = slots.summary(&device, &volume, *slot, *segment).await
                && successor.is_none_or(|checksum| checksum == summary.last_checksum)
            {
                summaries.insert(*segment, summary);
                break;
            }
        }
    }
    Ok(summaries)
}
