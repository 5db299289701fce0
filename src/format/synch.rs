//! The mark of a synch point: the special block of the log with date, time and other information.

use zerocopy::little_endian::{I64, U16, U64};
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

use super::{BLOCK_BYTES, FormatError};

/// Bytes of UTF-8 that a label may have.
pub const LABEL_BYTES_MAX: usize = 255;
/// Bytes of UTF-8 that a point's information may have.
pub const INFO_BYTES_MAX: usize = 2048;

const MAGIC: [u8; 8] = *b"SALVOLSY";
const WHAT: &str = "synch mark";

/// A synch point as it was marked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SynchMark {
    /// The point's number: `p42` is 42. Numbers grow within a history.
    pub point: u64,
    /// Wall-clock time of the mark, nanoseconds since 1970, UTC.
    pub time_ns: i64,
    pub label: String,
    pub info: String,
}

#[derive(FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned)]
#[repr(C)]
struct Head {
    magic: [u8; 8],
    point: U64,
    time_ns: I64,
    label_bytes: U16,
    info_bytes: U16,
    reserved: [u8; 4],
}

const _: () = assert!(size_of::<Head>() == 32);
const _: () = assert!(size_of::<Head>() + LABEL_BYTES_MAX + INFO_BYTES_MAX <= BLOCK_BYTES);

impl SynchMark {
    /// The mark without padding: at most a block.
    ///
    /// # Panics
    /// When label or information is longer than its limit: the volume checks both before it appends.
    pub fn encode(&self) -> Vec<u8> {
        assert!(self.label.len() <= LABEL_BYTES_MAX && self.info.len() <= INFO_BYTES_MAX);
        let head = Head {
            magic: MAGIC,
            point: U64::new(self.point),
            time_ns: I64::new(self.time_ns),
            label_bytes: U16::new(self.label.len() as u16),
            info_bytes: U16::new(self.info.len() as u16),
            reserved: [0; 4],
        };
        [head.as_bytes(), self.label.as_bytes(), self.info.as_bytes()].concat()
    }

    /// The mark at the start of `bytes`, and how many bytes it has.
    pub fn parse(bytes: &[u8]) -> Result<(Self, usize), FormatError> {
        let (head, rest) = Head::ref_from_prefix(bytes).map_err(|_| FormatError::Length {
            what: WHAT,
            have: bytes.len(),
            need: size_of::<Head>(),
        })?;
        if head.magic != MAGIC {
            return Err(FormatError::Magic { what: WHAT });
        }
        let (label_bytes, info_bytes) = (usize::from(head.label_bytes.get()), usize::from(head.info_bytes.get()));
        let field = |field, value: usize| FormatError::Field { what: WHAT, field, value: value as u64 };
        if label_bytes > LABEL_BYTES_MAX {
            return Err(field("label length", label_bytes));
        }
        if info_bytes > INFO_BYTES_MAX || label_bytes + info_bytes > rest.len() {
            return Err(field("information length", info_bytes));
        }
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(|_| field("text", bytes.len()));
        let mark = Self {
            point: head.point.get(),
            time_ns: head.time_ns.get(),
            label: text(&rest[..label_bytes])?,
            info: text(&rest[label_bytes..label_bytes + info_bytes])?,
        };
        Ok((mark, size_of::<Head>() + label_bytes + info_bytes))
    }
}
