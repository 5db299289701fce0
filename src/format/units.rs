//! The numbers of the format, one type each, with only the arithmetic that means something.

use std::fmt;

use zerocopy::little_endian::U64;

use super::FormatError;

macro_rules! number {
    ($(#[$doc:meta])* $name:ident($inner:ty)) => {
        $(#[$doc])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
        pub struct $name(pub $inner);

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                self.0.fmt(f)
            }
        }
    };
}

number! {
    /// A block of the volume, numbered from 0.
    Block(u64)
}
number! {
    /// A segment's sequence number. Numbers start at 1 and only grow.
    SegmentNumber(u64)
}
number! {
    /// A log position: the number of a batch, from 1, across segments and restarts. 0 is "before the log".
    Position(u64)
}
number! {
    /// A slot of the primary, numbered from 0.
    Slot(u32)
}
number! {
    /// A block inside a segment, counted from the segment header, which is 0.
    Offset(u32)
}
number! {
    /// A block of the primary, counted from the start of the device; 32 bits reach 16 TiB. 0 is never a data block.
    Place(u32)
}

/// Segments, positions, epochs and generations count from 1 and never get here. Whoever reads one from a disk, where
/// anything may stand, refuses larger ones, so that counting on from them cannot overflow.
pub(crate) const COUNT_MAX: u64 = 1 << 62;

/// Refuses a structure whose counts, given by name, are none of a log's.
pub(crate) fn check_counts(what: &'static str, counts: [(&'static str, U64); 3]) -> Result<(), FormatError> {
    match counts.into_iter().find(|(_, value)| !(1..=COUNT_MAX).contains(&value.get())) {
        Some((field, value)) => Err(FormatError::Field { what, field, value: value.get() }),
        None => Ok(()),
    }
}

impl SegmentNumber {
    /// The segment `count` later.
    pub fn plus(self, count: u64) -> Self {
        Self(self.0.saturating_add(count))
    }

    /// The segment `count` earlier, at the least segment 1, the first there is.
    pub fn minus(self, count: u64) -> Self {
        Self(self.0.saturating_sub(count).max(1))
    }

    /// The segment before; 0, which is none, before the first. For "up to here": nothing, then.
    pub fn before(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl Position {
    /// The position after this one.
    pub fn next(self) -> Self {
        Self(self.0.saturating_add(1))
    }

    /// The position before this one; 0 stays 0.
    pub fn previous(self) -> Self {
        Self(self.0.saturating_sub(1))
    }
}

impl Block {
    /// The block `count` further on.
    pub fn plus(self, count: u64) -> Self {
        Self(self.0 + count)
    }
}

impl Offset {
    /// The block `count` further on in the segment.
    pub fn plus(self, count: u32) -> Self {
        Self(self.0 + count)
    }
}

impl Place {
    /// Byte offset of this place on the primary.
    pub fn bytes(self) -> u64 {
        u64::from(self.0) * super::BLOCK_BYTES as u64
    }

    /// The place `count` blocks further on.
    pub fn plus(self, count: u32) -> Self {
        Self(self.0 + count)
    }
}

/// 128 random bits that name a volume or a history, printed as a UUID.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Default)]
pub struct Uuid(pub [u8; 16]);

impl Uuid {
    /// A version 4 UUID out of sixteen random bytes.
    pub fn from_random(bytes: [u8; 16]) -> Self {
        Self(uuid::Builder::from_random_bytes(bytes).into_uuid().into_bytes())
    }

    /// The UUID that `text` spells, in any of the usual forms.
    pub fn parse(text: &str) -> Option<Self> {
        uuid::Uuid::parse_str(text).ok().map(|id| Self(id.into_bytes()))
    }
}

impl fmt::Display for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        uuid::Uuid::from_bytes(self.0).hyphenated().fmt(f)
    }
}

impl fmt::Debug for Uuid {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}
