//! What an unfinished target says of itself: which restore is going on there, and how far it is.
//!
//! It is the target's first block until everything else is durable. So half a volume is nothing that could be mounted,
//! and how far it is cannot be taken for another target's, cannot be lost alone, and goes when anything else is made there.
//!
//! ```text
//! 0     magic       8
//! 8     identity    32    of the restore: what is to be in each block (plan.rs)
//! 40    segments    8     that the point needs
//! 48    done        4032  one bit for so many segments in a row that the bits suffice: durable in the target
//! 4080  checksum    16    BLAKE3 of what is before
//! ```
//!
//! **Durability.** A bit is set only after the data of its segments has been written and synched. A block that is torn or
//! changed is none: then the restore starts over. Whoever goes on reads what is said to be there and compares checksums.

use zerocopy::little_endian::U64;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use crate::format::{BLOCK_BYTES, Checksum};

const MAGIC: [u8; 8] = *b"SALVOLUF";
const DONE_BYTES: usize = 4032;
const CHECKED: usize = BLOCK_BYTES - 16;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Unaligned)]
#[repr(C)]
struct Record {
    magic: [u8; 8],
    identity: [u8; 32],
    segments: U64,
    done: [u8; DONE_BYTES],
    checksum: Checksum,
}

const _: () = assert!(size_of::<Record>() == BLOCK_BYTES && std::mem::offset_of!(Record, checksum) == CHECKED);

/// A restore that is not finished.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Unfinished {
    pub identity: [u8; 32],
    /// Whether the data of each segment is in the target, oldest first.
    pub done: Vec<bool>,
}

impl Unfinished {
    /// Segments that share a bit.
    fn group(segments: usize) -> usize {
        segments.div_ceil(DONE_BYTES * 8).max(1)
    }

    pub(super) fn encode(&self) -> Vec<u8> {
        let segments = U64::new(self.done.len() as u64);
        let mut record = Record {
            magic: MAGIC,
            identity: self.identity,
            segments,
            done: [0; DONE_BYTES],
            checksum: Checksum::default(),
        };
        for (bit, group) in self.done.chunks(Self::group(self.done.len())).enumerate() {
            record.done[bit / 8] |= u8::from(group.iter().all(|done| *done)) << (bit % 8);
        }
        record.checksum = Checksum::plain(&record.as_bytes()[..CHECKED]);
        record.as_bytes().to_vec()
    }

    /// What `block` says, when it is one of ours and whole. One of so many segments that nothing has them is none.
    pub(super) fn parse(block: &[u8], segments_max: usize) -> Option<Self> {
        let record = Record::ref_from_bytes(block).ok()?;
        if record.magic != MAGIC || record.checksum != Checksum::plain(&block[..CHECKED]) {
            return None;
        }
        let segments = usize::try_from(record.segments.get()).ok().filter(|segments| *segments <= segments_max)?;
        let group = Self::group(segments);
        let bit = |rank: usize| record.done[rank / group / 8] >> (rank / group % 8) & 1 == 1;
        Some(Self { identity: record.identity, done: (0..segments).map(bit).collect() })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a panic is the failure")]
mod tests {
    use super::*;

    #[test]
    fn it_comes_back_and_nothing_else_does() {
        for segments in [0, 1, 9, 32_256, 32_257, 100_000] {
            let mut record = Unfinished { identity: [7; 32], done: vec![true; segments] };
            assert_eq!(Unfinished::parse(&record.encode(), segments), Some(record.clone()), "{segments}");
            if segments > 0 {
                record.done[segments / 2] = false;
                let found = Unfinished::parse(&record.encode(), segments).unwrap();
                assert!(!found.done[segments / 2]);
                // What shares a bit with a segment that is not done is done again.
                let more = record.done.iter().zip(&found.done).filter(|(done, found)| done != found).count();
                assert!(more < 4 && found.done.iter().zip(&record.done).all(|(found, done)| *done || !found));
                assert_eq!(Unfinished::parse(&record.encode(), segments - 1), None);
            }
        }
        let bytes = Unfinished { identity: [7; 32], done: vec![true; 9] }.encode();
        for at in 0..BLOCK_BYTES {
            let mut damaged = bytes.clone();
            damaged[at] ^= 0x10;
            assert_eq!(Unfinished::parse(&damaged, 9), None, "{at}");
        }
        assert_eq!(Unfinished::parse(&[0; BLOCK_BYTES], 9), None);
    }
}
