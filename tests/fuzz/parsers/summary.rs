//! The summary of a segment. Input: the trailer up to its checksum, then the batch records, entries and marks; zeros fill the
//! last block, and the checksum is put right.

use salvol::archive::{Extent, ObjectHeader};
use salvol::format::*;

use super::seal::{clear, volume, word};
use super::{Target, batch, mark};

pub const TARGET: Target = Target { name: "summary", run, seeds, bytes_max: 2 * BLOCK_BYTES, mutations: 4000 };

const CHECKED: usize = SUMMARY_TRAILER_BYTES - 16;

/// The run of blocks that an input is, sealed.
pub fn grown(data: &[u8]) -> Vec<u8> {
    let (trailer, body) = data.split_at(data.len().min(CHECKED));
    let blocks = (body.len() + SUMMARY_TRAILER_BYTES).div_ceil(BLOCK_BYTES);
    let mut bytes = super::seal::grown(body, blocks * BLOCK_BYTES);
    let at = bytes.len() - SUMMARY_TRAILER_BYTES;
    bytes[at..at + trailer.len()].copy_from_slice(trailer);
    seal(&mut bytes);
    bytes
}

pub fn seal(bytes: &mut [u8]) {
    let at = bytes.len() - 16;
    let sum = Checksum::keyed(&volume().key, &[&bytes[..at]]);
    bytes[at..].copy_from_slice(&sum.0);
}

/// The input that [`grown`] makes `bytes` of.
pub fn shrunk(bytes: &[u8]) -> Vec<u8> {
    let (body, trailer) = bytes.split_at(bytes.len() - SUMMARY_TRAILER_BYTES);
    let end = body.iter().rposition(|byte| *byte != 0).map_or(0, |last| last + 1);
    [&trailer[..CHECKED], &body[..end]].concat()
}

fn run(data: &[u8]) -> bool {
    let volume = volume();
    let _ = Summary::parse(data, volume);
    let mut bytes = grown(data);
    let _ = SummaryTrailer::peek(&bytes[bytes.len() - BLOCK_BYTES..], volume);
    let Ok(summary) = Summary::parse(&bytes, volume) else { return false };
    check(&summary, volume);
    let mut encoded = vec![0xff; summary.blocks() as usize * BLOCK_BYTES];
    summary.encode(volume, &mut encoded);
    assert_eq!(Summary::parse(&encoded, volume).as_ref(), Ok(&summary));
    let trailer = SummaryTrailer::peek(&encoded[encoded.len() - BLOCK_BYTES..], volume);
    if summary.blocks() < volume.geometry.segment_blocks {
        assert_eq!(trailer, Ok(SummaryTrailer { segment: summary.segment, blocks: summary.blocks() }));
    }
    if unread_as_zeros(&mut bytes, &summary) {
        assert_eq!(Summary::parse(&bytes, volume).as_ref(), Ok(&summary), "what is not read says nothing");
        assert!(encoded == bytes, "one summary, two encodings");
    }
    true
}

/// What everything else counts on.
pub fn check(summary: &Summary, volume: &Superblock) {
    let mut end = 1;
    let mut entries = 0;
    for (rank, (position, record, listed)) in summary.walk().enumerate() {
        assert_eq!(position.0, summary.first_position.0 + rank as u64);
        assert!(record.offset().0 >= end, "batches overlap");
        end = record.offset().0 + 1 + record.data_blocks();
        entries += listed.len();
        assert!(!record.holds_data_at(record.offset()) && !record.holds_data_at(Offset(end)));
    }
    assert!(end <= volume.geometry.segment_blocks && entries == summary.entries.len());
    assert!(summary.last_position().next() > summary.last_position());
    // What becomes of it on the way to the archive and back.
    let ranks = summary.batches.len();
    if ranks == 0 {
        return;
    }
    let (first, later) = (summary.part(0..1, summary.predecessor, Checksum([1; 16])), 1..ranks);
    if !later.is_empty() {
        let mut whole = first;
        whole.append(summary.part(later, Checksum([1; 16]), summary.last_checksum));
        let marks = std::mem::replace(&mut whole.synchs, summary.synchs.clone());
        assert!(marks.len() <= summary.synchs.len());
        let epoch = summary.batches[ranks - 1].epoch();
        assert_eq!(whole, Summary { epoch, ..summary.clone() });
    }
    let header = ObjectHeader::new(volume, summary, Extent::WHOLE, volume.geometry.segment_blocks);
    assert_eq!(ObjectHeader::parse(&header.encode()).as_ref(), Ok(&header));
}

/// Makes zeros of all that no parser reads; false when the summary has more blocks than it needs, or says so.
fn unread_as_zeros(bytes: &mut [u8], summary: &Summary) -> bool {
    let at = bytes.len() - SUMMARY_TRAILER_BYTES;
    let marks: usize = summary.synchs.iter().map(|mark| mark.encode().len()).sum();
    let listed = summary.batches.len() * 32 + summary.entries.len() * 16;
    let honest = bytes.len() == summary.blocks() as usize * BLOCK_BYTES
        && word(bytes, at + 96) == summary.blocks()
        && word(bytes, at + 92) as usize == marks
        && bytes[at + 24..at + 40] == volume().history.0;
    if !honest {
        return false;
    }
    clear(bytes, &[listed + marks..at, at + 100..at + 104, at + 136..at + CHECKED]);
    let mut mark_at = listed;
    for mark in &summary.synchs {
        bytes[mark_at + 28..mark_at + 32].fill(0);
        mark_at += mark.encode().len();
    }
    seal(bytes);
    true
}

/// The summary of a segment with these batches, one after the other.
pub fn example(batches: &[Vec<Entry>]) -> Summary {
    let header = batch::example();
    let mut offset = header.offset;
    let mut summary = Summary {
        segment: header.segment,
        epoch: header.epoch,
        first_position: header.position,
        oldest_needed: header.oldest_needed,
        predecessor: header.predecessor,
        last_checksum: Checksum([0x45; 16]),
        volume_blocks: header.volume_blocks,
        batches: Vec::new(),
        entries: Vec::new(),
        synchs: Vec::new(),
    };
    for entries in batches {
        let data = entries.iter().filter(|entry| entry.kind().unwrap().has_data()).count() as u32;
        let times = (header.time_ns, header.wall_ns);
        summary.batches.push(BatchRecord::new(offset, entries.len(), data, header.epoch, times.0, times.1));
        let marks = entries.iter().filter(|entry| entry.kind() == Ok(EntryKind::Synch));
        summary.synchs.extend(marks.map(|entry| SynchMark { point: entry.point(), ..mark::example() }));
        summary.entries.extend(entries);
        offset = offset.plus(1 + data);
    }
    summary
}

pub fn encoded(summary: &Summary) -> Vec<u8> {
    let mut bytes = vec![0; summary.blocks() as usize * BLOCK_BYTES];
    summary.encode(volume(), &mut bytes);
    bytes
}

fn seeds() -> Vec<Vec<u8>> {
    let full = vec![vec![Entry::range(Block(3), 1, false); 120]; 2];
    let all = [example(&batch::kinds()), example(&batch::kinds()[..1]), example(&full)];
    all.iter().map(|summary| shrunk(&encoded(summary))).collect()
}
