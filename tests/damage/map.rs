//! What each byte is: a primary, an object and a ring walked with the project's own parsers. Every byte is of exactly one
//! region; what no structure claims is unused.

use std::ops::Range;

use salvol::archive::{ForkRecord, ObjectName, PinRecord};
use salvol::format::{
    BLOCK_BYTES, BatchHeader, EntryKind, Position, SegmentHeader, SegmentNumber, Slot, SummaryTrailer, Superblock,
    SynchMark,
};

/// How much is to be done to a region.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Class {
    /// Says something: each of its bits, and each byte made 00 and FF.
    Meta,
    /// Is covered by a checksum, and always the same: each byte once.
    Padded,
    /// Each byte once.
    Data,
    /// Nobody reads it, or nobody minds what is there: now and then a byte.
    Unused,
}

#[derive(Debug, Clone)]
pub struct Region {
    pub range: Range<usize>,
    pub structure: &'static str,
    pub class: Class,
}

/// A structure as a whole: what is zeroed, swapped, torn.
#[derive(Debug, Clone)]
pub struct Unit {
    pub range: Range<usize>,
    pub structure: &'static str,
}

/// A header that says what is durable.
#[derive(Debug, Clone)]
pub struct Claim {
    pub range: Range<usize>,
    pub durable: u64,
}

#[derive(Debug, Default)]
pub struct Map {
    pub regions: Vec<Region>,
    pub units: Vec<Unit>,
    pub claims: Vec<Claim>,
    /// Where each batch is, and its position.
    pub batches: Vec<(Range<usize>, u64)>,
    /// Where each summary is, and the number of its segment.
    pub summaries: Vec<(Range<usize>, u64)>,
}

impl Map {
    fn region(&mut self, range: Range<usize>, structure: &'static str, class: Class) {
        if !range.is_empty() {
            self.regions.push(Region { range, structure, class });
        }
    }

    fn unit(&mut self, range: Range<usize>, structure: &'static str) {
        self.units.push(Unit { range, structure });
    }

    /// The slot of the segment that is open: it has no summary.
    pub fn open_slot(&self) -> Range<usize> {
        let slots = self.units.iter().filter(|unit| unit.structure == "slot").map(|unit| unit.range.clone());
        let has = |slot: &Range<usize>, name| {
            self.regions.iter().any(|region| region.structure == name && slot.contains(&region.range.start))
        };
        let mut open = slots.filter(|slot| has(slot, "segment header") && !has(slot, "summary"));
        open.next().expect("there is always one")
    }

    /// What may be a torn tail: the open segment, what no header says to be durable, and the newest summary, which a crash may
    /// have kept from the disk.
    pub fn unknown(&self) -> Vec<Range<usize>> {
        let durable = self.claims.iter().map(|claim| claim.durable).max().unwrap_or(0);
        let newest = self.summaries.iter().map(|(_, segment)| *segment).max().unwrap_or(0);
        let batches = self.batches.iter().filter(|(_, position)| *position > durable).map(|(range, _)| range.clone());
        let summaries = self.summaries.iter().filter(|(_, segment)| *segment == newest).map(|(range, _)| range.clone());
        batches.chain(summaries).chain([self.open_slot()]).collect()
    }

    /// Nothing is left out, and nothing is there twice.
    fn checked(mut self, bytes: usize) -> Self {
        self.regions.sort_by_key(|region| region.range.start);
        let mut at = 0;
        for region in &self.regions {
            assert_eq!(region.range.start, at, "{region:?} does not follow what is before it");
            at = region.range.end;
        }
        assert_eq!(at, bytes, "the regions are all of it");
        self
    }
}

/// The name of a structure in a slot that the volume needs, or in one that it does not.
fn named(needed: bool, name: &'static str) -> &'static str {
    let pairs = [
        ("segment header", "old slot: segment header"),
        ("batch header", "old slot: batch header"),
        ("batch entries", "old slot: batch entries"),
        ("data block", "old slot: data block"),
        ("synch mark", "old slot: synch mark"),
        ("synch mark, padding", "old slot: synch mark, padding"),
        ("summary", "old slot: summary"),
        ("summary, zeros", "old slot: summary, zeros"),
        ("summary trailer", "old slot: summary trailer"),
        ("slot", "old slot: all of it"),
    ];
    let pair = pairs.into_iter().find(|(here, _)| *here == name).unwrap_or((name, name));
    if needed { pair.0 } else { pair.1 }
}

/// Every byte of a primary.
pub fn primary(bytes: &[u8], volume: &Superblock) -> Map {
    let mut map = Map::default();
    let geometry = &volume.geometry;
    let copy = geometry.copy_at() as usize;
    let close = volume.clean_close.map_or(0, |close| close.position.0);
    for (at, names) in
        [(0, ["superblock", "superblock, padding"]), (copy, ["superblock copy", "superblock copy, padding"])]
    {
        superblock(&mut map, at, volume, names);
        map.unit(at..at + BLOCK_BYTES, names[0]);
        map.claims.push(Claim { range: at..at + BLOCK_BYTES, durable: close });
    }
    let first = geometry.slot_place(Slot(0)).bytes() as usize;
    map.region(BLOCK_BYTES..first, "reserved blocks", Class::Unused);
    let slot_bytes = geometry.segment_bytes();
    let headers = (0..geometry.slots).filter_map(|slot| {
        let at = first + slot as usize * slot_bytes;
        SegmentHeader::parse(&bytes[at..at + BLOCK_BYTES], volume).ok().map(|header| (header.segment, header))
    });
    let newest = headers.max_by_key(|(segment, _)| *segment).map(|(_, header)| header).unwrap();
    for slot in 0..geometry.slots {
        let at = first + slot as usize * slot_bytes;
        self::slot(&mut map, at, &bytes[at..at + slot_bytes], volume, newest.oldest_needed);
    }
    map.region(first + geometry.slots as usize * slot_bytes..copy, "reserved blocks", Class::Unused);
    map.checked(bytes.len())
}

fn superblock(map: &mut Map, at: usize, volume: &Superblock, [name, padding]: [&'static str; 2]) {
    let mut from = at;
    for (meta, end) in [(256 + volume.name.len(), 320), (320 + volume.backing.len(), 4080), (4096, 4096)] {
        map.region(from..at + meta, name, Class::Meta);
        map.region(at + meta..at + end, padding, Class::Padded);
        from = at + end;
    }
}

fn slot(map: &mut Map, at: usize, bytes: &[u8], volume: &Superblock, oldest_needed: SegmentNumber) {
    let header = SegmentHeader::parse(bytes, volume).unwrap();
    let needed = header.segment >= oldest_needed;
    let block = |offset: u32| at + offset as usize * BLOCK_BYTES;
    let class = |class| if needed { class } else { Class::Padded };
    map.unit(at..at + bytes.len(), named(needed, "slot"));
    map.region(at..at + 160, named(needed, "segment header"), class(Class::Meta));
    map.region(at + 160..block(1), "padding of headers", Class::Unused);
    map.unit(at..block(1), named(needed, "segment header"));
    map.claims.push(Claim { range: at..at + 160, durable: header.durable_through.0 });
    let (mut end, mut position) = (1, header.first_position);
    while let Ok(batch) = BatchHeader::parse(&bytes[end as usize * BLOCK_BYTES..], volume)
        && batch.header.segment == header.segment
        && batch.header.position == position
    {
        let (start, entries) = (block(end), batch.entries.len() * 16);
        map.region(start..start + 160, named(needed, "batch header"), class(Class::Meta));
        map.region(start + 160..start + 160 + entries, named(needed, "batch entries"), class(Class::Meta));
        map.region(start + 160 + entries..start + BLOCK_BYTES, "padding of headers", Class::Unused);
        map.unit(start..start + BLOCK_BYTES, named(needed, "batch header"));
        map.claims.push(Claim { range: start..start + 160 + entries, durable: batch.header.durable_through.0 });
        let blocks = batch.blocks() as usize * BLOCK_BYTES;
        map.batches.push((start..start + blocks, position.0));
        end += 1;
        for kind in batch.entries.iter().map(|entry| entry.kind().unwrap()).filter(|kind| kind.has_data()) {
            let start = block(end);
            let name = named(needed, if kind == EntryKind::Synch { "synch mark" } else { "data block" });
            if kind == EntryKind::Synch {
                let (_, used) = SynchMark::parse(&bytes[end as usize * BLOCK_BYTES..][..BLOCK_BYTES]).unwrap();
                map.region(start..start + used, name, class(Class::Meta));
                map.region(start + used..start + BLOCK_BYTES, named(needed, "synch mark, padding"), Class::Padded);
            } else {
                map.region(start..start + BLOCK_BYTES, name, if needed { Class::Data } else { Class::Unused });
            }
            map.unit(start..start + BLOCK_BYTES, name);
            end += 1;
        }
        position = Position(position.0 + 1);
    }
    let last = &bytes[bytes.len() - BLOCK_BYTES..];
    let trailer = SummaryTrailer::peek(last, volume).ok().filter(|trailer| trailer.segment == header.segment);
    let blocks = trailer.map_or(0, |trailer| trailer.blocks);
    let summary = volume.geometry.segment_blocks - blocks;
    map.region(block(end)..block(summary), "unused blocks of a slot", Class::Unused);
    if blocks > 0 {
        let word = |from: usize| u32::from_le_bytes(last[BLOCK_BYTES - 184 + from..][..4].try_into().unwrap()) as usize;
        let used = word(80) * 32 + word(84) * 16 + word(92);
        let (start, end) = (block(summary), at + bytes.len());
        map.region(start..start + used, named(needed, "summary"), class(Class::Meta));
        map.region(start + used..end - 184, named(needed, "summary, zeros"), Class::Padded);
        map.region(end - 184..end, named(needed, "summary trailer"), class(Class::Meta));
        map.unit(start..end, named(needed, "summary"));
        map.summaries.push((start..end, header.segment.0));
    }
}

/// Every byte of an object; `thorough` for one whose bits are all to be tried.
pub fn object(name: &ObjectName, bytes: &[u8], thorough: bool) -> Map {
    let mut map = Map::default();
    let meta = if thorough { Class::Meta } else { Class::Padded };
    if ForkRecord::is_name(name) {
        map.region(0..240, "fork record", meta);
        map.region(240..4336, "fork record, superblock in it", Class::Padded);
        map.region(4336..4352, "fork record", meta);
        map.unit(0..bytes.len(), "fork record");
        return map.checked(bytes.len());
    }
    if PinRecord::is_name(name) {
        map.region(0..bytes.len(), "pin record", meta);
        map.unit(0..bytes.len(), "pin record");
        return map.checked(bytes.len());
    }
    let part = name.part > 0;
    let pick = |whole, of_part| if part { of_part } else { whole };
    let header = pick("object header", "part: object header");
    let outline = pick("object header, outline", "part: object header, outline");
    map.region(0..140, header, meta);
    map.region(140..168, outline, meta);
    map.region(168..240, header, Class::Padded);
    map.region(240..4336, pick("object header, superblock in it", "part: superblock in the header"), Class::Padded);
    map.region(4336..4352, header, meta);
    map.unit(0..4352, header);
    let word = |at: usize| u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap()) as usize;
    let frames = word(bytes.len() - 48);
    let table = bytes.len() - 56 - 12 * frames;
    let mut at = 4352;
    for rank in 0..frames {
        let end = at + word(table + 12 * rank);
        let whole = if rank + 1 == frames { "summary frame" } else { "data frame" };
        let name = pick(whole, if rank + 1 == frames { "part: summary frame" } else { "part: data frame" });
        map.region(at..end, name, Class::Data);
        map.unit(at..end, name);
        at = end;
    }
    let name = pick("frame table and footer", "part: frame table and footer");
    map.region(at..bytes.len(), name, meta);
    map.unit(at..bytes.len(), name);
    map.checked(bytes.len())
}

/// Every byte of a ring.
pub fn ring(bytes: &[u8]) -> Map {
    let mut map = Map::default();
    let long = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let (blocks, entries, data, second) = (long(56), long(64), long(80), long(88));
    for (block, names) in [
        (0, ["ring superblock", "ring superblock, padding"]),
        (blocks - 1, ["ring superblock copy", "ring superblock copy, padding"]),
    ] {
        let at = block * BLOCK_BYTES;
        map.region(at..at + 96, names[0], Class::Meta);
        map.region(at + 96..at + 256, names[1], Class::Padded);
        map.region(at + 256..at + 256 + 512, names[0], Class::Padded);
        map.region(at + 768..at + 4080, names[1], Class::Padded);
        map.region(at + 4080..at + 4096, names[0], Class::Meta);
        map.unit(at..at + BLOCK_BYTES, names[0]);
    }
    let mut objects = Vec::new();
    for (first, [live, free]) in [
        (1, ["catalogue entry, live", "catalogue entry, free"]),
        (second, ["catalogue copy: entry, live", "catalogue copy: entry, free"]),
    ] {
        for entry in 0..entries {
            let at = first * BLOCK_BYTES + entry * 128;
            let is_live = bytes[at] == 2;
            // They are all alike: each byte of all, each bit of a few.
            let class = if is_live && entry % 6 == 1 { Class::Meta } else { Class::Padded };
            let name = if is_live { live } else { free };
            map.region(at..at + 128, name, class);
            if is_live || entry % 32 == 31 {
                map.unit(at..at + 128, name);
            }
            if is_live && first == 1 {
                let extents = usize::from(u16::from_le_bytes([bytes[at + 2], bytes[at + 3]]));
                objects.push((at, extents));
            }
        }
    }
    for (at, extents) in objects {
        let mut left = long(at + 48);
        for extent in 0..extents {
            let piece = at + 64 + 12 * extent;
            let count = u32::from_le_bytes(bytes[piece + 8..piece + 12].try_into().unwrap()) as usize;
            let (mut from, end) = (long(piece) * BLOCK_BYTES, (long(piece) + count) * BLOCK_BYTES);
            if extent == 0 {
                let class = if at % 768 == 128 { Class::Meta } else { Class::Padded };
                map.region(from..from + 28, "record header", class);
                map.region(from + 28..from + 32, "record header, padding", Class::Unused);
                map.region(from + 32..from + 160, "record header", class);
                map.region(from + 160..from + BLOCK_BYTES, "record header, padding", Class::Unused);
                map.unit(from..from + BLOCK_BYTES, "record header");
                from += BLOCK_BYTES;
            }
            let used = left.min(end - from);
            map.region(from..from + used, "object in a ring", Class::Unused);
            map.region(from + used..end, "zeros behind an object", Class::Unused);
            map.unit(from..end, "object in a ring");
            left -= used;
        }
    }
    // What is left of the data.
    map.regions.sort_by_key(|region| region.range.start);
    let mut at = data * BLOCK_BYTES;
    let inside = |region: &&Region| (data * BLOCK_BYTES..second * BLOCK_BYTES).contains(&region.range.start);
    let taken: Vec<Range<usize>> = map.regions.iter().filter(inside).map(|region| region.range.clone()).collect();
    for range in taken {
        map.region(at..range.start, "free blocks of a ring", Class::Unused);
        at = range.end;
    }
    map.region(at..second * BLOCK_BYTES, "free blocks of a ring", Class::Unused);
    map.checked(bytes.len())
}
