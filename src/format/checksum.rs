//! Two checksums. CRC32C, a word a block, finds rot. The keyed one, 16 bytes a header, also keeps user data and old
//! tenants of a slot from being taken for a header: nobody without the superblock can make one.

use std::fmt;

use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout, Unaligned};

/// The secret of a volume, 32 random bytes in its superblock.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Key(pub [u8; 32]);

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Key(..)")
    }
}

/// The first 16 bytes of BLAKE3, keyed by [`Key`] or, where there is no key yet, plain.
#[derive(Clone, Copy, PartialEq, Eq, Default, FromBytes, IntoBytes, Immutable, KnownLayout, Unaligned, Hash)]
#[repr(transparent)]
pub struct Checksum(pub [u8; 16]);

impl Checksum {
    /// Keyed checksum of `parts`, one after the other.
    pub fn keyed(key: &Key, parts: &[&[u8]]) -> Self {
        let mut hasher = blake3::Hasher::new_keyed(&key.0);
        for part in parts {
            hasher.update(part);
        }
        Self::first_half(&hasher)
    }

    /// Checksum of `bytes` that anyone can compute.
    pub fn plain(bytes: &[u8]) -> Self {
        let mut hasher = blake3::Hasher::new();
        hasher.update(bytes);
        Self::first_half(&hasher)
    }

    fn first_half(hasher: &blake3::Hasher) -> Self {
        let mut sum = [0; 16];
        sum.copy_from_slice(&hasher.finalize().as_bytes()[..16]);
        Self(sum)
    }
}

impl fmt::Display for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Checksum {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// CRC32C (Castagnoli) of a block.
pub fn block_crc(block: &[u8]) -> u32 {
    crc_fast::crc32_iscsi(block)
}
