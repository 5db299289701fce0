//! The index: where the newest version of each block is, and its checksum.
//!
//! Eight bytes a block, in one flat array of lazily populated memory: an empty volume costs nothing, a look-up is one
//! cache miss. It belongs to the owner's thread, so nothing locks it; several may look at one that is at rest. It knows nothing of segments; callers keep count
//! of what is live by the places that each change returns.
#![expect(unsafe_code, reason = "an array of plain words in memory that is mapped, not allocated")]

use std::io;
use std::ptr::NonNull;

use crate::format::{Block, Place, Slot};
use crate::io::Arena;

/// Stands in for the place of a block that was lost.
const LOST: u32 = u32::MAX;

/// What the index says of a block.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mapping {
    /// Never written, or trimmed or zeroed since: reads as zeros.
    Unmapped,
    /// Its newest version is at this place and has this CRC32C.
    At(Place, u32),
    /// Its only copy became unreadable; the newest entry that says so is in the segment in this slot.
    Lost(Slot),
}

impl Mapping {
    /// The place, when there is one.
    pub fn place(self) -> Option<Place> {
        match self {
            Self::At(place, _) => Some(place),
            Self::Unmapped | Self::Lost(_) => None,
        }
    }

    fn from_word(word: u64) -> Self {
        match word as u32 {
            0 => Self::Unmapped,
            LOST => Self::Lost(Slot((word >> 32) as u32)),
            place => Self::At(Place(place), (word >> 32) as u32),
        }
    }

    fn word(self) -> u64 {
        match self {
            Self::Unmapped => 0,
            Self::Lost(slot) => u64::from(slot.0) << 32 | u64::from(LOST),
            Self::At(place, crc) => u64::from(crc) << 32 | u64::from(place.0),
        }
    }
}

/// Block number → place and checksum.
#[derive(Debug)]
pub struct Index {
    memory: Arena,
    blocks: u64,
    mapped: u64,
}

impl Index {
    /// An index of `blocks` unmapped blocks.
    ///
    /// # Errors
    /// When the system gives no memory.
    pub fn new(blocks: u64) -> io::Result<Self> {
        let bytes = usize::try_from(blocks).ok().and_then(|blocks| blocks.checked_mul(8));
        let memory = Arena::new(bytes.ok_or(io::ErrorKind::OutOfMemory)?)?;
        Ok(Self { memory, blocks, mapped: 0 })
    }

    /// Blocks of the volume.
    pub fn blocks(&self) -> u64 {
        self.blocks
    }

    /// Blocks that are mapped or lost.
    pub fn mapped(&self) -> u64 {
        self.mapped
    }

    fn word(&self, block: Block) -> NonNull<u64> {
        assert!(block.0 < self.blocks, "the caller checks ranges");
        // SAFETY: the array has `blocks` words, page-aligned, and the block was just checked.
        unsafe { self.memory.start().cast::<u64>().add(block.0 as usize) }
    }

    /// Where `block` is.
    pub fn get(&self, block: Block) -> Mapping {
        // SAFETY: the word is in the array, initialised by the mapping, and whoever changes it has borrowed all of it.
        Mapping::from_word(unsafe { self.word(block).read() })
    }

    /// Has the word of `block`, which may be any number, on its way to the processor before it is needed.
    pub fn prefetch(&self, block: Block) {
        #[cfg(target_arch = "x86_64")]
        if block.0 < self.blocks {
            use std::arch::x86_64::{_MM_HINT_T0, _mm_prefetch};
            // SAFETY: the instruction only hints; the address is that of a word of the array.
            unsafe { _mm_prefetch::<_MM_HINT_T0>(self.word(block).as_ptr().cast::<i8>()) }
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = block;
    }

    /// Puts `block` somewhere else and returns where it was.
    pub fn set(&mut self, block: Block, mapping: Mapping) -> Mapping {
        let word = self.word(block);
        // SAFETY: as in `get`, and we are borrowed mutably.
        let old = Mapping::from_word(unsafe { word.replace(mapping.word()) });
        self.mapped += u64::from(mapping != Mapping::Unmapped);
        self.mapped -= u64::from(old != Mapping::Unmapped);
        old
    }

    /// Unmaps `count` blocks from `block`; `left` gets what each was that was not unmapped.
    pub fn unmap(&mut self, block: Block, count: u64, mut left: impl FnMut(Mapping)) {
        for number in block.0..block.0 + count {
            // Looked at before it is touched: a page that was never written to stays without memory.
            if self.get(Block(number)) != Mapping::Unmapped {
                left(self.set(Block(number), Mapping::Unmapped));
            }
        }
    }

    /// Whether nothing is mapped in `count` blocks from `block`.
    pub fn is_unmapped(&self, block: Block, count: u64) -> bool {
        (block.0..block.0 + count).all(|number| self.get(Block(number)) == Mapping::Unmapped)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_block_is_where_it_was_last_put() {
        let mut index = Index::new(10).unwrap();
        assert_eq!(index.get(Block(9)), Mapping::Unmapped);
        assert_eq!(index.set(Block(9), Mapping::At(Place(5), 7)), Mapping::Unmapped);
        assert_eq!(index.set(Block(9), Mapping::Lost(Slot(4))), Mapping::At(Place(5), 7));
        assert_eq!((index.get(Block(9)), index.mapped()), (Mapping::Lost(Slot(4)), 1));
        index.set(Block(3), Mapping::At(Place(8), 1));
        let mut left = Vec::new();
        index.unmap(Block(0), 10, |mapping| left.push(mapping));
        assert_eq!((left, index.mapped()), (vec![Mapping::At(Place(8), 1), Mapping::Lost(Slot(4))], 0));
        assert!(index.is_unmapped(Block(0), 10));
    }
}
