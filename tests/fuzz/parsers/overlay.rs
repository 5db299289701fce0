//! The file of a view's writes. Its header is compared, not read, and each byte of its map stands for itself; so what can go wrong is
//! that another file is taken, or an unknown byte for a state. Input: a mask over the right header in 80 bytes, then the map.

#[path = "../../../src/history/past/overlay.rs"]
#[allow(dead_code, reason = "compiled for its header and its map")]
mod file;

use std::fs::File;
use std::os::fd::AsRawFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use file::{Has, Overlay};
use salvol::format::*;
use salvol::history::{Consistency, Moment, Writable};

use super::Target;
use super::seal::{grown, plain, xor};
use super::walk::small;

pub const TARGET: Target = Target { name: "overlay", run, seeds, bytes_max: 256, mutations: 1000 };

const HEADER: usize = 80;
const BLOCKS: u64 = 30;

thread_local! {
    /// A file in memory, where that can be had, which goes with the process.
    static FILE: File = tempfile::tempfile_in("/dev/shm").or_else(|_| tempfile::tempfile()).unwrap();
}

fn run(data: &[u8]) -> bool {
    let small = small();
    let time_ns = 1_700_000_000_000_000_000;
    let (position, segment) = (Position(700), SegmentNumber(9));
    let moment = Moment { position, segment, time_ns, consistency: Consistency::Crash, mark: None };
    let (mask, map) = data.split_at(data.len().min(HEADER));
    let mut header = vec![0; BLOCK_BYTES];
    header[..8].copy_from_slice(b"SALVOLOV");
    for (at, word) in [(8, 1), (12, 4096_u32)] {
        header[at..at + 4].copy_from_slice(&word.to_le_bytes());
    }
    header[16..32].copy_from_slice(&small.uuid.0);
    header[32..48].copy_from_slice(&small.history.0);
    for (at, word) in [(48, 700), (56, BLOCKS), (64, time_ns as u64)] {
        header[at..at + 8].copy_from_slice(&word.to_le_bytes());
    }
    xor(&mut header, mask);
    plain(&mut header, BLOCK_BYTES - 16);
    FILE.with(|file| {
        file.write_all_at(&header, 0).unwrap();
        file.write_all_at(&grown(map, BLOCK_BYTES), BLOCK_BYTES as u64).unwrap();
        let wanted = Writable::Kept(PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd())));
        let opened = Overlay::open(&wanted, &small, &moment, BLOCKS);
        assert_eq!(opened.is_ok(), mask.iter().all(|byte| *byte == 0), "the file of another point, or not this one's");
        let Ok(Some(overlay)) = opened else { return false };
        for block in 0..BLOCKS {
            let has = match map.get(block as usize) {
                Some(1) => Has::Data,
                Some(2) => Has::Zeros,
                None | Some(0) => Has::Nothing,
                Some(_) => Has::Damaged,
            };
            assert_eq!(overlay.has(Block(block)), has);
        }
        true
    })
}

fn seeds() -> Vec<Vec<u8>> {
    let other = [vec![0; 48], vec![1], vec![0; 31]].concat();
    vec![vec![0; HEADER], [vec![0; HEADER], vec![1, 2, 0, 3, 1]].concat(), other]
}
