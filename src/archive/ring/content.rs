//! The bytes of an object, in its pieces on the disk.

use std::io;
use std::ops::Range;
use std::sync::Arc;

use super::disk::{BLOCK, Disk};
use super::entry::Record;
use crate::io::Buffer;

/// Bytes of one transfer at most.
pub(super) const TRANSFER_BYTES: u64 = 1 << 20;
const TRANSFER_BLOCKS: u64 = TRANSFER_BYTES / BLOCK;

/// Where the blocks `wanted` of an object are, the record header being block 0: first block on the disk and number of
/// blocks of each run, none longer than a transfer.
fn runs(record: &Record, wanted: Range<u64>) -> Vec<(u64, u64)> {
    let mut runs = Vec::new();
    let mut passed = 0;
    for extent in &record.extents {
        let blocks = u64::from(extent.blocks);
        let (mut from, to) = (wanted.start.max(passed), wanted.end.min(passed + blocks));
        while from < to {
            let count = TRANSFER_BLOCKS.min(to - from);
            runs.push((extent.first + from - passed, count));
            from += count;
        }
        passed += blocks;
    }
    runs
}

/// The bytes of `range` of an object, fewer when it ends before.
pub(super) fn read(disk: &dyn Disk, record: &Record, range: Range<u64>) -> io::Result<Vec<u8>> {
    let end = range.end.min(record.bytes);
    let start = range.start.min(end);
    if start == end {
        return Ok(Vec::new());
    }
    let first = start / BLOCK;
    let mut skip = (start - first * BLOCK) as usize;
    let mut missing = (end - start) as usize;
    let mut bytes = Vec::with_capacity(missing);
    let runs = runs(record, 1 + first..1 + end.div_ceil(BLOCK));
    let most = runs.iter().map(|(_, count)| *count).max().unwrap_or(0);
    let buffer = Buffer::new((most * BLOCK) as usize)?;
    for (at, count) in runs {
        let part = buffer.part(0, (count * BLOCK) as usize);
        disk.read_at(at * BLOCK, &part)?;
        let taken = missing.min(part.len() - skip);
        bytes.extend_from_slice(&part.bytes()[skip..skip + taken]);
        (missing, skip) = (missing - taken, 0);
    }
    Ok(bytes)
}

/// Writes the bytes of an object, zeros up to a whole block behind them, and makes them durable.
pub(super) fn write(disk: &Arc<dyn Disk>, record: &Record, bytes: &[u8]) -> io::Result<()> {
    let buffer = Buffer::new(TRANSFER_BYTES as usize)?;
    let mut rest = bytes;
    for (at, count) in runs(record, 1..record.blocks()) {
        let part = buffer.part(0, (count * BLOCK) as usize);
        let (now, later) = rest.split_at(part.len().min(rest.len()));
        if now.len() < part.len() {
            part.zero();
        }
        part.copy_from(0, now);
        disk.write_at(at * BLOCK, &part)?;
        rest = later;
    }
    disk.sync()
}
