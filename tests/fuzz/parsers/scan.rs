//! The index at a point, out of summaries that anybody may have signed. Input: a section for each, as in `summary.rs`.

use std::collections::BTreeMap;
use std::sync::Arc;

use salvol::format::*;
use salvol::history::{Sited, index_at};
use salvol::log::Rollback;

use super::seal::{Sections, volume};
use super::{Target, batch, summary};

pub const TARGET: Target = Target { name: "scan", run, seeds, bytes_max: 4096, mutations: 1000 };

/// Segments of an input at most.
const SEGMENTS_MAX: usize = 8;

fn run(data: &[u8]) -> bool {
    let volume = volume();
    let mut sections = Sections(data);
    let (mut segments, mut scanned) = (BTreeMap::new(), false);
    while !sections.is_empty() && segments.len() < SEGMENTS_MAX {
        if let Ok(summary) = Summary::parse(&summary::grown(sections.next()), volume) {
            segments.insert(summary.segment, Arc::new(summary));
        }
    }
    for (segment, newest) in &segments {
        for position in [newest.first_position, newest.last_position(), newest.last_position().next()] {
            let Ok(index) = index_at(&segments, volume, *segment, position) else { continue };
            scanned = true;
            assert!(index.segments_read() <= volume.geometry.working_set + 1);
            for block in 0..index.blocks() {
                if let Sited::At(its, offset, crc) = index.get(Block(block)) {
                    assert!(index.segments().contains(&its.0));
                    let found = segments[&its].walk().any(|(_, record, entries)| {
                        let data = entries.iter().filter(|entry| entry.kind().unwrap().has_data());
                        let rank = offset.0.wrapping_sub(record.offset().0 + 1) as usize;
                        let entry = data.into_iter().nth(rank);
                        record.holds_data_at(offset)
                            && entry.is_some_and(|entry| entry.block() == Block(block) && entry.crc() == crc)
                    });
                    assert!(found, "a place where no entry put the block");
                }
            }
        }
        let _ = Rollback::at(newest, newest.last_position());
    }
    scanned
}

fn seeds() -> Vec<Vec<u8>> {
    let chain = |blocks: &[u64]| {
        let mut made: Vec<Vec<u8>> = Vec::new();
        let mut before: Option<Summary> = None;
        for block in blocks {
            let batches = [vec![Entry::write(Block(*block), 7), Entry::copy(Block(3), 8)], batch::kinds()[2].clone()];
            let mut next = summary::example(if before.is_some() { &batches[..1] } else { &batches });
            if let Some(before) = &before {
                (next.segment, next.first_position) = (before.segment.plus(1), before.last_position().next());
                (next.predecessor, next.oldest_needed) = (before.last_checksum, SegmentNumber(9));
            } else {
                next.oldest_needed = SegmentNumber(9);
            }
            next.last_checksum = Checksum([*block as u8; 16]);
            made.push(summary::shrunk(&summary::encoded(&next)));
            before = Some(next);
        }
        Sections::join(&made.iter().map(Vec::as_slice).collect::<Vec<_>>())
    };
    vec![chain(&[17]), chain(&[17, 18, 17])]
}
