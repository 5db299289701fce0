//! What the levels cost, for the ladder: `cargo test --release --lib what_levels_cost -- --ignored --nocapture`.

use std::time::Instant;

use fastrand::Rng;

use super::{segment, volume};
use crate::archive::{Extent, Packing, encode_object};
use crate::format::BLOCK_BYTES;

/// Half of each block random, half words that come again.
fn half_compressible(image: &mut [u8], rng: &mut Rng) {
    let words: Vec<Vec<u8>> = (0..500).map(|_| (0..rng.usize(3..12)).map(|_| rng.u8(b'a'..=b'z')).collect()).collect();
    for block in image.chunks_mut(BLOCK_BYTES) {
        let (random, mut text) = block.split_at_mut(BLOCK_BYTES / 2);
        rng.fill(random);
        while !text.is_empty() {
            // Some words come often, most seldom.
            let word = &words[rng.usize(..500) * rng.usize(..500) / 500];
            let length = word.len().min(text.len());
            text[..length].copy_from_slice(&word[..length]);
            text = &mut text[length..];
        }
    }
}

#[test]
#[ignore = "a measurement"]
fn what_levels_cost() {
    let volume = volume(8192);
    let mut rng = Rng::with_seed(1);
    let (mut image, summary) = segment(&volume, &mut rng, 1);
    let data = image.len() - summary.blocks() as usize * BLOCK_BYTES;
    half_compressible(&mut image[..data], &mut rng);
    for level in [-5, -3, -1, 1, 2, 3, 4, 5, 6, 9, 12] {
        let best = (0..3).map(|_| {
            let started = Instant::now();
            let bytes = encode_object(&volume, &summary, Extent::WHOLE, &image, Packing::Zstd(level)).unwrap().len();
            (started.elapsed(), bytes)
        });
        let (took, bytes) = best.min().unwrap();
        let (speed, ratio) = (image.len() as f64 / took.as_secs_f64() / 1e6, image.len() as f64 / bytes as f64);
        println!("level {level:3}: {speed:6.0} MB/s, {ratio:.2} to 1");
    }
}
