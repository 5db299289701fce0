//! Mutations of an input, by a seed: what cargo-fuzz does by the million, a few thousand times.

use fastrand::Rng;

/// `seeds[rank]`, changed one to four times.
pub fn mutated(rng: &mut Rng, seeds: &[Vec<u8>], bytes_max: usize) -> Vec<u8> {
    let mut bytes = rng.choice(seeds).cloned().unwrap_or_default();
    for _ in 0..rng.u8(1..5) {
        change(rng, seeds, &mut bytes);
    }
    bytes.truncate(bytes_max);
    bytes
}

fn change(rng: &mut Rng, seeds: &[Vec<u8>], bytes: &mut Vec<u8>) {
    if bytes.is_empty() {
        bytes.push(rng.u8(..));
    }
    let at = rng.usize(..bytes.len());
    match rng.u8(..7) {
        0 => bytes[at] ^= 1 << rng.u8(..8),
        1 => bytes[at] = rng.u8(..),
        2 => bytes.truncate(at),
        3 => {
            bytes.insert(at, rng.u8(..));
        }
        // The end of another one.
        4 => {
            let other = rng.choice(seeds).map_or(&[][..], Vec::as_slice);
            let from = rng.usize(..=other.len());
            bytes.truncate(at);
            bytes.extend_from_slice(&other[from..]);
        }
        _ => field(rng, bytes, at),
    }
}

/// Makes a number of one to eight bytes, where one may be, nothing, all ones, one more or less, or large.
fn field(rng: &mut Rng, bytes: &mut [u8], at: usize) {
    let width = 1_usize << rng.u8(..4);
    let at = at / width * width;
    let Some(field) = bytes.get_mut(at..at + width) else { return };
    let mut word = [0; 8];
    word[..width].copy_from_slice(field);
    let value = u64::from_le_bytes(word);
    let value = match rng.u8(..7) {
        0 => 0,
        1 => u64::MAX,
        2 => value.wrapping_add(1),
        3 => value.wrapping_sub(1),
        4 => 1 << rng.u8(..64),
        5 => (1 << rng.u8(..64)) - 1,
        _ => u64::MAX - value,
    };
    field.copy_from_slice(&value.to_le_bytes()[..width]);
}
