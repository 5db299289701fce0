//! The way behind the checksums, and inputs in sections.

use salvol::format::{Checksum, Superblock};

/// The volume of every target: what it signs with its key is parsed.
pub fn volume() -> &'static Superblock {
    static VOLUME: std::sync::OnceLock<Superblock> = std::sync::OnceLock::new();
    VOLUME.get_or_init(Superblock::example)
}

/// `data` as the beginning of a structure of so many bytes; the rest is zeros.
pub fn grown(data: &[u8], bytes: usize) -> Vec<u8> {
    let mut grown = data[..data.len().min(bytes)].to_vec();
    grown.resize(bytes, 0);
    grown
}

/// Puts the plain checksum of what is before it to `at`.
pub fn plain(bytes: &mut [u8], at: usize) {
    let sum = Checksum::plain(&bytes[..at]);
    bytes[at..at + 16].copy_from_slice(&sum.0);
}

/// Puts the checksum under the volume's key of what is before it to `at`.
pub fn keyed(bytes: &mut [u8], at: usize) {
    let sum = Checksum::keyed(&volume().key, &[&bytes[..at]]);
    bytes[at..at + 16].copy_from_slice(&sum.0);
}

/// Makes those bytes zeros.
pub fn clear(bytes: &mut [u8], ranges: &[std::ops::Range<usize>]) {
    ranges.iter().for_each(|range| bytes[range.clone()].fill(0));
}

pub fn word(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub fn half(bytes: &[u8], at: usize) -> usize {
    usize::from(u16::from_le_bytes(bytes[at..at + 2].try_into().unwrap()))
}

/// An input of several parts: in front of each its length in two bytes.
pub struct Sections<'a>(pub &'a [u8]);

impl<'a> Sections<'a> {
    /// The next section, as much of it as there is; empty behind the last.
    pub fn next(&mut self) -> &'a [u8] {
        let Some((length, rest)) = self.0.split_first_chunk::<2>() else {
            return std::mem::take(&mut self.0);
        };
        let (section, rest) = rest.split_at(usize::from(u16::from_le_bytes(*length)).min(rest.len()));
        self.0 = rest;
        section
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// An input of these sections.
    pub fn join(sections: &[&[u8]]) -> Vec<u8> {
        let section = |bytes: &&[u8]| [&(bytes.len() as u16).to_le_bytes()[..], bytes].concat();
        sections.iter().flat_map(section).collect()
    }
}

/// Changes `bytes` by `mask`, as far as both go: a mask of zeros leaves what is valid valid.
pub fn xor(bytes: &mut [u8], mask: &[u8]) {
    bytes.iter_mut().zip(mask).for_each(|(byte, mask)| *byte ^= mask);
}
