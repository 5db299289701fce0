//! The record of a restore that is not finished. Input: a number of segments in two bytes, then the record's beginning.

#[path = "../../../src/history/unfinished.rs"]
#[allow(dead_code, reason = "compiled for its parser")]
mod record;

use record::Unfinished;
use salvol::format::BLOCK_BYTES;

use super::Target;
use super::seal::{grown, half, plain};

pub const TARGET: Target = Target { name: "unfinished", run, seeds, bytes_max: BLOCK_BYTES, mutations: 4000 };

fn run(data: &[u8]) -> bool {
    let (number, data) = data.split_at(data.len().min(2));
    let segments_max = half(&grown(number, 2), 0);
    assert!(data.len() == BLOCK_BYTES || Unfinished::parse(data, segments_max).is_none());
    let mut block = grown(data, BLOCK_BYTES);
    let _ = Unfinished::parse(&block, segments_max);
    plain(&mut block, BLOCK_BYTES - 16);
    let Some(found) = Unfinished::parse(&block, segments_max) else { return false };
    assert!(found.done.len() <= segments_max, "more memory than the point has segments");
    let encoded = found.encode();
    assert_eq!(Unfinished::parse(&encoded, segments_max).as_ref(), Some(&found));
    // Bits behind the last segment say nothing; the others are what the encoder would write.
    let bits = found.done.len().div_ceil(found.done.len().div_ceil(4032 * 8).max(1));
    let (whole, rest) = (bits / 8, bits % 8);
    assert!(encoded[..48 + whole] == block[..48 + whole]);
    assert!(rest == 0 || (encoded[48 + whole] ^ block[48 + whole]) & ((1 << rest) - 1) == 0);
    true
}

fn seeds() -> Vec<Vec<u8>> {
    let encoded = |segments: usize, every: usize| {
        let done = (0..segments).map(|rank| rank % every != 0).collect();
        let record = Unfinished { identity: [7; 32], done }.encode();
        let end = 48 + segments.div_ceil(8).min(64);
        [&(segments as u16).to_le_bytes()[..], &record[..end]].concat()
    };
    vec![encoded(0, 1), encoded(9, 3), encoded(300, 2), encoded(60_000, 5)]
}
