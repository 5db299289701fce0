//! An archive object: header, frames, table, and everything that is read out of it. Input: sections.
//!
//! ```text
//! control, number of the part, rank of its first batch | what is changed of the header, and of the superblock in it
//!   | what is changed of the summary's trailer | what is changed of table and footer | a frame in place of the data's, or nothing
//!   | the sections of the segment, as in walk.rs
//! ```
//!
//! The object is made of the segment; then it is changed by the masks, and every checksum is put right.

use std::sync::Arc;

use salvol::archive::{
    ArchivedSegment, Extent, FRAME_BYTES, MemoryStore, OBJECT_HEADER_BYTES, ObjectHeader, ObjectName, Store,
    StoreError, audit_object,
};
use salvol::format::*;

use super::seal::{Sections, clear, plain, volume, word, xor};
use super::walk::{Built, Start, batches, build, sections, small};
use super::{Target, summary};

pub const TARGET: Target = Target { name: "object", run, seeds, bytes_max: 3072, mutations: 300 };

/// The summary is damaged: it is made again from the headers.
const NO_SUMMARY: u8 = 1;
/// The summary's frame is compressed.
const PACKED: u8 = 2;
/// The CRC32C of the frames are not put right.
const ROTTEN: u8 = 4;

const SUPERBLOCK_AT: usize = 240;
const SUPERBLOCK_BYTES: usize = 352;
const RECORD: usize = 12;
const FOOTER: usize = 56;
/// The object header's reserved bytes.
const UNREAD: [std::ops::Range<usize>; 3] = [32..40, 132..136, 168..240];

/// An object, and the name that its header gives it; none when the header is not one.
pub struct Made {
    pub bytes: Vec<u8>,
    pub name: Option<ObjectName>,
    pub next: Start,
    /// The frame of the data.
    data: Vec<u8>,
}

/// The object that the sections describe, of the segment that begins at `start`.
pub fn make(start: Start, sections: &mut Sections<'_>) -> Made {
    let [flags, header_mask, trailer_mask, table_mask, given] = std::array::from_fn(|_| sections.next());
    let flag = |at: usize| flags.get(at).copied().unwrap_or(0);
    let (control, part) = (flag(0), u32::from(flag(1)));
    let Built { image, walk, next, .. } = build(start, sections);
    let small = small();
    let whole = if walk.summary.batches.is_empty() { summary::example(&[vec![Entry::noop()]]) } else { walk.summary };
    let (extent, described) = match part {
        0 => (Extent::WHOLE, whole),
        part => part_of(&image, &whole, part, usize::from(flag(2))),
    };
    let mut tail = summary::encoded(&described);
    let trailer = tail.len() - SUMMARY_TRAILER_BYTES;
    xor(&mut tail[trailer..], trailer_mask);
    summary::seal(&mut tail);
    if control & NO_SUMMARY != 0 {
        tail[trailer] ^= 1;
    }
    let first = extent.first.0 as usize * BLOCK_BYTES;
    let mut end = match described.batches.last() {
        Some(last) if part > 0 => (last.offset().0 + 1 + last.data_blocks()) as usize * BLOCK_BYTES,
        _ => image.len() - tail.len(),
    };
    end = end.clamp(first + BLOCK_BYTES, image.len() - tail.len().min(image.len() - first - BLOCK_BYTES));
    let data = &image[first..end];
    let blocks = ((data.len() + tail.len()) / BLOCK_BYTES) as u32;
    let packed = match given {
        [] => zstd::bulk::compress(data, 1).unwrap(),
        given => given.to_vec(),
    };
    let last = if control & PACKED != 0 { zstd::bulk::compress(&tail, 1).unwrap() } else { stored(&tail) };
    let mut header = ObjectHeader::new(&small, &described, extent, blocks).encode();
    let (head, rest) = header_mask.split_at(header_mask.len().min(SUPERBLOCK_AT));
    xor(&mut header, head);
    xor(&mut header[SUPERBLOCK_AT..SUPERBLOCK_AT + SUPERBLOCK_BYTES], rest);
    plain(&mut header[SUPERBLOCK_AT..SUPERBLOCK_AT + BLOCK_BYTES], BLOCK_BYTES - 16);
    let name = seal_header(&mut header).ok().map(|header| header.name);
    let frames = [(data.len(), &packed[..]), (tail.len(), &last[..])];
    let bytes = assemble(&header, &frames, table_mask, control & ROTTEN == 0);
    Made { bytes, name, next, data: packed }
}

/// A part of the segment with that summary, from the batch of that rank on.
fn part_of(image: &[u8], whole: &Summary, part: u32, rank: usize) -> (Extent, Summary) {
    let rank = rank.min(whole.batches.len() - 1);
    let first = match rank {
        0 => Offset(0),
        rank => whole.batches[rank].offset(),
    };
    let at = whole.batches[rank].offset().0 as usize * BLOCK_BYTES;
    let (predecessor, _) = BatchHeader::chain_in(&image[at..]);
    let predecessor = if rank == 0 { whole.predecessor } else { predecessor };
    (Extent { part, first }, whole.part(rank..whole.batches.len(), predecessor, whole.last_checksum))
}

/// A zstd frame of raw blocks.
fn stored(raw: &[u8]) -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0b1010_0000];
    frame.extend_from_slice(&(raw.len() as u32).to_le_bytes());
    let blocks = raw.chunks(128 * 1024);
    let last = blocks.len() - 1;
    for (rank, block) in blocks.enumerate() {
        let head = u32::from(rank == last) | (block.len() as u32) << 3;
        frame.extend_from_slice(&head.to_le_bytes()[..3]);
        frame.extend_from_slice(block);
    }
    frame
}

/// Puts the header's checksum right, under the key that it has, and says what it is then.
fn seal_header(header: &mut [u8]) -> Result<ObjectHeader, FormatError> {
    let key = Key(header[SUPERBLOCK_AT + 72..SUPERBLOCK_AT + 104].try_into().unwrap());
    let at = OBJECT_HEADER_BYTES - 16;
    let sum = Checksum::keyed(&key, &[&header[..at]]);
    header[at..].copy_from_slice(&sum.0);
    ObjectHeader::parse(header)
}

/// The object of a header and frames: a table of the frames, changed by the mask, and a footer, both sealed.
pub fn assemble(header: &[u8], frames: &[(usize, &[u8])], mask: &[u8], sound: bool) -> Vec<u8> {
    let mut object = header.to_vec();
    let mut table = Vec::new();
    for (raw_bytes, frame) in frames {
        object.extend_from_slice(frame);
        let crc = if sound { block_crc(frame) } else { 7 };
        for word in [frame.len() as u32, *raw_bytes as u32, crc] {
            table.extend_from_slice(&word.to_le_bytes());
        }
    }
    object.extend_from_slice(&0x184D_2A5A_u32.to_le_bytes());
    object.extend_from_slice(&((table.len() + FOOTER) as u32).to_le_bytes());
    let at = object.len();
    object.extend_from_slice(&table);
    object.extend_from_slice(b"SALVOLAF");
    object.extend_from_slice(&(frames.len() as u32).to_le_bytes());
    object.extend_from_slice(&(frames.len() as u32 - 1).to_le_bytes());
    object.extend_from_slice(&(at as u64).to_le_bytes());
    object.extend_from_slice(&header[OBJECT_HEADER_BYTES - 16..]);
    xor(&mut object[at..], mask);
    seal_footer(object, Key(header[SUPERBLOCK_AT + 72..SUPERBLOCK_AT + 104].try_into().unwrap()))
}

/// Appends the checksum of the footer that ends `object`, which says itself how many records it covers.
fn seal_footer(mut object: Vec<u8>, key: Key) -> Vec<u8> {
    let end = object.len();
    let footer = end - (FOOTER - 16);
    let records = (word(&object, footer + 8) as usize).saturating_mul(RECORD);
    let from = footer.saturating_sub(records.min(footer));
    let sum = Checksum::keyed(&key, &[&object[from..end]]);
    object.extend_from_slice(&sum.0);
    object
}

/// A store with one object.
pub fn store_with(name: &ObjectName, object: &[u8]) -> Arc<dyn Store> {
    let store = MemoryStore::new();
    store.put(name, object).unwrap();
    Arc::new(store)
}

/// A store with an object whose frame of data decodes to `inflated` bytes, a whole number of blocks of 128 KiB, while the table
/// says what there is room for. The frame itself `claims` how many it has, or says nothing.
pub fn bomb(inflated: usize, claims: Option<u32>) -> (Arc<dyn Store>, ObjectName) {
    const BLOCK: usize = 128 * 1024;
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd];
    match claims {
        // A single segment, with its size.
        Some(bytes) => frame.extend([&[0b1010_0000][..], &bytes.to_le_bytes()].concat()),
        // A window of 128 KiB.
        None => frame.extend([0, 7 << 3]),
    }
    for rank in 1..=inflated / BLOCK {
        // One byte, so many times.
        let head = u32::from(rank == inflated / BLOCK) | 1 << 1 | (BLOCK as u32) << 3;
        frame.extend(&head.to_le_bytes()[..3]);
        frame.push(7);
    }
    let sections = object_sections([0, 0, 0], &frame, &batches());
    let bytes = sections.iter().map(Vec::as_slice).collect::<Vec<_>>();
    let made = make(Start::FIRST, &mut Sections(&Sections::join(&bytes)));
    let name = made.name.unwrap();
    (store_with(&name, &made.bytes), name)
}

fn run(data: &[u8]) -> bool {
    let made = make(Start { segment: SegmentNumber(9), position: Position(700), ..Start::FIRST }, &mut Sections(data));
    let Some(name) = made.name else {
        let store = store_with(&ObjectName::default(), &made.bytes);
        assert!(ArchivedSegment::open(&store, &ObjectName::default(), None).is_err());
        return false;
    };
    let header = ObjectHeader::parse(&made.bytes[..OBJECT_HEADER_BYTES]).unwrap();
    header_is_one(&header, &made.bytes);
    let store = store_with(&name, &made.bytes);
    let small = small();
    let mut image = Vec::new();
    let audit = audit_object(&store, &name, &small, &mut image);
    assert!(image.capacity() <= header.image_bytes() * 2 + BLOCK_BYTES, "more memory than the header says");
    let (open, ours) = (ArchivedSegment::open(&store, &name, None), ArchivedSegment::open(&store, &name, Some(&small)));
    assert_eq!(ours.is_ok(), open.is_ok() && header.is_of(&small));
    assert!(ours.is_err() || audit.is_ok(), "what can be opened can be looked at");
    let Ok(segment) = open else { return false };
    read(segment, &header, &made);
    let parts = ArchivedSegment::open_parts(&store, &[name], None);
    assert_eq!(parts.is_ok(), header.first == Offset(0));
    true
}

/// The header comes back, and says all that its bytes say.
fn header_is_one(header: &ObjectHeader, bytes: &[u8]) {
    assert_eq!(ObjectHeader::parse(&header.encode()).as_ref(), Ok(header));
    let counts = [header.name.segment.0, header.name.epoch, header.first_position.0];
    assert!(counts.iter().all(|count| (1..=1 << 62).contains(count)), "what no log reaches");
    assert!(header.last_position.0 <= 1 << 62);
    let mut head = bytes[..SUPERBLOCK_AT].to_vec();
    clear(&mut head, &UNREAD);
    if head[140..148] == [0; 8] {
        head[148..168].fill(0);
    }
    assert!(header.encode()[..SUPERBLOCK_AT] == head[..], "one header, two encodings");
}

/// Everything that can be read of it, block by block and at once.
fn read(mut segment: ArchivedSegment, header: &ObjectHeader, made: &Made) {
    let geometry = segment.volume().geometry;
    assert!(segment.end().0 <= geometry.segment_blocks && segment.start() == header.first);
    assert_eq!(segment.summary().last_position(), header.last_position);
    if segment.volume().key == volume().key {
        summary::check(segment.summary(), segment.volume());
    }
    if geometry.segment_blocks > 256 {
        return;
    }
    let (start, end) = (segment.start().0, segment.end().0);
    let offsets: Vec<Offset> = (start..end).map(Offset).collect();
    let mut taken = vec![0; geometry.segment_bytes()];
    let mut sound = true;
    let walked = segment.read_blocks(&offsets, |range, frame| {
        let Ok((first, raw)) = frame else {
            sound = false;
            return Ok::<(), StoreError>(());
        };
        assert!(raw.len() <= FRAME_BYTES.max(header.image_bytes()), "a frame larger than its table may say");
        for offset in &offsets[range] {
            let (from, to) = ((offset.0 - first.0) as usize * BLOCK_BYTES, offset.0 as usize * BLOCK_BYTES);
            taken[to..to + BLOCK_BYTES].copy_from_slice(&raw[from..from + BLOCK_BYTES]);
        }
        Ok(())
    });
    assert!(walked.is_ok());
    let image = segment.read_image();
    let mut block = vec![0; BLOCK_BYTES];
    assert!(segment.read_block(Offset(end), &mut block).is_err());
    if !sound {
        return;
    }
    if let Ok(image) = image {
        assert!(image == taken, "block by block it is something else");
        let at = (end - 1) as usize * BLOCK_BYTES;
        assert!(segment.read_block(Offset(end - 1), &mut block).is_ok() && block == taken[at..at + BLOCK_BYTES]);
        // Whatever decodes the frame alone must get as many bytes as the table says: one more would be an error.
        let record = made.bytes.len() - FOOTER - 2 * RECORD;
        let raw_bytes = word(&made.bytes, record + 4) as usize;
        let alone = zstd::bulk::decompress(&made.data, raw_bytes).map(|raw| raw.len());
        assert!(alone.is_ok_and(|bytes| bytes == raw_bytes), "a frame of another length");
    }
}

/// Sections of an object of a segment with these batches.
pub fn object_sections(flags: [u8; 3], given: &[u8], batches: &[Vec<Entry>]) -> Vec<Vec<u8>> {
    let own = [flags.to_vec(), Vec::new(), Vec::new(), Vec::new(), given.to_vec()];
    own.into_iter().chain(sections(true, batches)).collect()
}

fn seeds() -> Vec<Vec<u8>> {
    let joined = |flags, given: &[u8]| {
        let sections = object_sections(flags, given, &batches());
        Sections::join(&sections.iter().map(Vec::as_slice).collect::<Vec<_>>())
    };
    let data = vec![0; 15 * BLOCK_BYTES];
    let larger = zstd::bulk::compress(&vec![0; 16 << 20], 1).unwrap();
    vec![
        joined([0, 0, 0], &[]),
        joined([PACKED, 0, 0], &[]),
        joined([NO_SUMMARY, 0, 0], &[]),
        joined([0, 1, 0], &[]),
        joined([PACKED, 2, 2], &[]),
        joined([0, 0, 0], &zstd::bulk::compress(&data, 19).unwrap()),
        joined([0, 0, 0], &larger),
    ]
}
