//! What a restore has to do, counted out of the index in one pass: blocks in each segment, what is lost, and an identity.
//!
//! The identity is a BLAKE3 of all that decides the target's content: volume, history, position, the chain of checksums
//! and, for every block, where its version is and its CRC32C. Two restores of one identity write the same bytes.

use super::{Damage, PointIndex, Sited};
use crate::format::{Block, SegmentNumber, Superblock};

/// Bytes that are hashed together.
const HASH_BYTES: usize = 64 * 1024;

/// What a restore has to do. Segments are known by rank, the oldest first.
pub(super) struct Plan {
    pub identity: [u8; 32],
    /// Blocks of the point that are in each segment.
    pub live: Vec<u64>,
    /// The segment that has the first block.
    pub first: Option<usize>,
    pub lost: Vec<Damage>,
    oldest: SegmentNumber,
}

impl Plan {
    pub(super) fn new(volume: &Superblock, index: &PointIndex) -> Self {
        let oldest = index.chain().last().map_or(SegmentNumber(0), |(segment, _)| *segment);
        let mut plan =
            Self { identity: [0; 32], live: vec![0; index.chain().len()], first: None, lost: Vec::new(), oldest };
        let mut hasher = blake3::Hasher::new();
        hasher.update(&volume.uuid.0).update(&volume.history.0);
        hasher.update(&index.position().0.to_le_bytes()).update(&index.blocks().to_le_bytes());
        // The newest one's own checksum is left out: while it is the volume's current segment it goes on.
        for (segment, checksum) in index.chain().iter().skip(1) {
            hasher.update(&segment.0.to_le_bytes()).update(&checksum.0);
        }
        let mut bytes = Vec::with_capacity(HASH_BYTES + 16);
        for number in 0..index.blocks() {
            let (segment, offset, crc) = match index.get(Block(number)) {
                Sited::Zeros => (0, 0, 0),
                Sited::Lost => (u64::MAX, 0, 0),
                Sited::At(segment, offset, crc) => (segment.0, offset.0, crc),
            };
            bytes.extend_from_slice(&segment.to_le_bytes());
            bytes.extend_from_slice(&offset.to_le_bytes());
            bytes.extend_from_slice(&crc.to_le_bytes());
            if bytes.len() >= HASH_BYTES {
                hasher.update(&bytes);
                bytes.clear();
            }
            plan.count(number, index.get(Block(number)));
        }
        hasher.update(&bytes);
        plan.identity = *hasher.finalize().as_bytes();
        plan
    }

    fn count(&mut self, number: u64, sited: Sited) {
        match sited {
            Sited::Zeros => {}
            Sited::Lost => {
                let cause = "lost: its only copy had become unreadable before this point".to_owned();
                let lost = Damage { block: number, position: None, segment: None, offset: None, frame: None, cause };
                self.lost.push(lost);
            }
            Sited::At(segment, ..) => {
                let rank = self.rank(segment);
                self.live[rank] += 1;
                if number == 0 {
                    self.first = Some(rank);
                }
            }
        }
    }

    /// The rank of a segment of the scan.
    pub(super) fn rank(&self, segment: SegmentNumber) -> usize {
        (segment.0 - self.oldest.0) as usize
    }

    /// Blocks with data.
    pub(super) fn blocks(&self) -> u64 {
        self.live.iter().sum()
    }
}
