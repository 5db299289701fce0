//! Blocks out of an archived segment: only the frames that are needed are fetched and decoded.
//!
//! Opening reads the header, the table and the summary's frame. Every byte is checked before it is used: header and
//! table by keyed checksums, a frame by its CRC32C in the table, and a buffer is as large as the table says.

use std::cmp::Reverse;
use std::ops::Range;
use std::sync::Arc;

use super::frame::Unpacker;
use super::{
    ArchiveError, Ends, FRAME_BYTES, Frame, FrameTable, OBJECT_HEADER_BYTES, ObjectError, ObjectHeader, ObjectName,
    Store, StoreError,
};
use crate::format::{
    BLOCK_BYTES, FormatError, Offset, Summary, Superblock, block_crc, summary_from_image, summary_from_run,
};

/// Frames are fetched together up to so many bytes, unless one alone has more.
const FETCH_BYTES: usize = 2 * 1024 * 1024;
/// What lies between two frames that are wanted is fetched with them up to so many bytes: cheaper than to ask again.
const FETCH_GAP_BYTES: u64 = FRAME_BYTES as u64;
/// What is fetched of an object's end when it is opened: the table, and mostly the summary.
const TAIL_BYTES: u64 = 64 * 1024;

/// A segment in its archive object, or what there is of it in parts.
pub struct ArchivedSegment {
    /// In the order of the slot; one for a whole segment.
    pieces: Vec<Piece>,
    summary: Summary,
    /// The last frame that a block was read from, decoded: its piece, its rank.
    cached: Option<(usize, usize, Vec<u8>)>,
}

/// An object and the blocks of the slot that its image has, without its summary when it is a part.
struct Piece {
    object: Object,
    blocks: Range<u32>,
}

impl Piece {
    fn new(object: Object, summary: &Summary) -> Self {
        let header = &object.header;
        let summary_blocks = if header.name.part == 0 { 0 } else { summary.blocks() };
        let blocks = header.first.0..(header.first.0 + header.blocks).saturating_sub(summary_blocks);
        Self { object, blocks }
    }

    /// See [`ArchivedSegment::read_blocks`]; `offsets` are of this piece, the first of them has the rank `base`.
    fn read_blocks<E: From<StoreError>>(
        &mut self,
        offsets: &[Offset],
        base: usize,
        take: &mut impl FnMut(Range<usize>, Result<(Offset, &[u8]), ArchiveError>) -> Result<(), E>,
    ) -> Result<(), E> {
        let Self { object, blocks } = self;
        let (name, begin) = (object.name, blocks.start);
        let frames = object.table.frames();
        let mut wanted: Vec<(usize, Range<usize>)> = Vec::new();
        for (at, offset) in offsets.iter().enumerate().map(|(at, offset)| (base + at, offset)) {
            let rank = object.table.frame_of(Offset(offset.0 - begin));
            match wanted.last_mut() {
                Some((last, range)) if *last == rank => range.end = at + 1,
                _ => wanted.push((rank, at..at + 1)),
            }
        }
        let mut raw = Vec::new();
        let mut rest = &wanted[..];
        while let Some((first, _)) = rest.first() {
            let (start, mut end) = (frames[*first].at, frames[*first].end());
            let near = |frame: &Frame, end: u64| {
                frame.at - end <= FETCH_GAP_BYTES && frame.end() - start <= FETCH_BYTES as u64
            };
            let mut count = 1;
            while let Some((rank, _)) = rest.get(count).filter(|(rank, _)| near(&frames[*rank], end)) {
                end = frames[*rank].end();
                count += 1;
            }
            let bytes = object.store.get(&name, start..end)?;
            let (group, later) = rest.split_at(count);
            for (rank, range) in group {
                let frame = &frames[*rank];
                raw.resize(raw.len().max(frame.raw_bytes), 0);
                let raw = &mut raw[..frame.raw_bytes];
                let packed = &bytes[bytes.len().min((frame.at - start) as usize)..];
                let decoded = unpack(&mut object.unpacker, *rank, frame, packed, raw);
                let begins = Offset(begin + (frame.raw_at / BLOCK_BYTES) as u32);
                take(
                    range.clone(),
                    decoded.map(|()| (begins, &*raw)).map_err(|error| ArchiveError::object(&name, error)),
                )?;
            }
            rest = later;
        }
        Ok(())
    }
}

impl ArchivedSegment {
    /// Opens the object `name`: a whole segment, or one part alone. When `expected` is given, it must be of that volume, in whatever history.
    ///
    /// # Errors
    /// When the store fails, the object is not there, is damaged, or is another volume's or segment's.
    pub fn open(
        store: &Arc<dyn Store>,
        name: &ObjectName,
        expected: Option<&Superblock>,
    ) -> Result<Self, ArchiveError> {
        let mut object = Object::open_of(store, name, expected)?;
        let summary = object.sound_summary()?;
        Ok(Self { pieces: vec![Piece::new(object, &summary)], summary, cached: None })
    }

    /// Opens an open segment's parts `names`: the chain from the segment's start that is of the newest past and goes
    /// furthest. A part that is damaged is left out with a warning.
    ///
    /// # Errors
    /// When the store fails, a part is another volume's or was deleted since it was listed, so that something else stands
    /// for it, or none begins the segment.
    pub fn open_parts(
        store: &Arc<dyn Store>,
        names: &[ObjectName],
        expected: Option<&Superblock>,
    ) -> Result<Self, ArchiveError> {
        let mut parts = Vec::new();
        for name in names {
            let part = Object::open_of(store, name, expected)
                .and_then(|mut object| object.sound_summary().map(|summary| (object, summary)));
            match part {
                Ok(part) => parts.push(part),
                Err(error @ ArchiveError::Object { .. }) => log::warn!("{error}"),
                Err(error) => return Err(error),
            }
        }
        // Of several that go on from one place, the newest past's, and of those the longest, and the last that was put: one
        // before it did not come back.
        parts.sort_by_key(|(object, _)| Reverse((object.name.epoch, object.header.last_position, object.name.part)));
        let mut segment: Option<Self> = None;
        while let Some(rank) = parts.iter().position(|(object, _)| match &segment {
            None => object.header.first == Offset(0),
            Some(segment) => segment.continued_by(&object.header),
        }) {
            let (object, summary) = parts.remove(rank);
            let piece = Piece::new(object, &summary);
            match &mut segment {
                Some(segment) => {
                    segment.pieces.push(piece);
                    segment.summary.append(summary);
                }
                None => segment = Some(Self { pieces: vec![piece], summary, cached: None }),
            }
        }
        let first = names.first().copied().unwrap_or_default();
        segment.ok_or_else(|| ArchiveError::object(&first, ObjectError::Parts))
    }

    fn continued_by(&self, next: &ObjectHeader) -> bool {
        next.first_position == self.summary.last_position().next()
            && next.predecessor == self.summary.last_checksum
            && next.name.epoch >= self.summary.epoch
            && self.pieces.last().is_some_and(|last| last.blocks.end == next.first.0)
    }

    /// The volume as it was when the segment was archived: identity, key and geometry.
    pub fn volume(&self) -> &Superblock {
        &self.pieces[self.pieces.len() - 1].object.header.volume
    }

    /// What the header of the object, of parts the last, says of the segment.
    pub fn header(&self) -> &ObjectHeader {
        &self.pieces[self.pieces.len() - 1].object.header
    }

    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// The objects: one, or the parts in their order.
    pub fn names(&self) -> Vec<ObjectName> {
        self.pieces.iter().map(|piece| piece.object.name).collect()
    }

    /// The first block of the slot that is here: 0, but for a part alone.
    pub fn start(&self) -> Offset {
        Offset(self.pieces.first().map_or(0, |piece| piece.blocks.start))
    }

    /// The first block of the slot that is in no part; the end of the slot for a whole segment.
    pub fn end(&self) -> Offset {
        Offset(self.pieces.last().map_or(0, |piece| piece.blocks.end))
    }

    /// Bytes of the objects.
    pub fn object_bytes(&self) -> u64 {
        self.pieces.iter().map(|piece| piece.object.bytes).sum()
    }

    /// Copies the block at `offset` of the segment to `out`, which has the length of a block. Decodes the frame that
    /// holds it, unless that was the last one asked for.
    ///
    /// # Errors
    /// When the store fails, the frame is damaged, or `offset` or `out` cannot be.
    pub fn read_block(&mut self, offset: Offset, out: &mut [u8]) -> Result<(), ArchiveError> {
        let Some(at) = self.pieces.iter().position(|piece| piece.blocks.contains(&offset.0)) else {
            return Err(ArchiveError::Offset { name: self.header().name, offset, blocks: self.end().0 });
        };
        let piece = &mut self.pieces[at];
        if out.len() != BLOCK_BYTES {
            return Err(ArchiveError::Buffer { name: piece.object.name, have: out.len(), need: BLOCK_BYTES });
        }
        let inside = Offset(offset.0 - piece.blocks.start);
        let rank = piece.object.table.frame_of(inside);
        let raw = match self.cached.take() {
            Some((cached_at, cached, raw)) if (cached_at, cached) == (at, rank) => raw,
            _ => piece.object.decode(rank)?,
        };
        let from = inside.0 as usize * BLOCK_BYTES - piece.object.table.frames()[rank].raw_at;
        out.copy_from_slice(&raw[from..from + BLOCK_BYTES]);
        self.cached = Some((at, rank, raw));
        Ok(())
    }

    /// Decodes the frames that hold any of the blocks at `offsets`, which ascend, each once, and gives them to `take`:
    /// which of the offsets are in the frame, and its first offset and its bytes, or why it cannot be read. At no time
    /// is more in memory than what is fetched together and one decoded frame.
    ///
    /// # Errors
    /// When the store fails, and those of `take`.
    pub fn read_blocks<E: From<StoreError>>(
        &mut self,
        offsets: &[Offset],
        mut take: impl FnMut(Range<usize>, Result<(Offset, &[u8]), ArchiveError>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut from = 0;
        for piece in &mut self.pieces {
            let inside = offsets.partition_point(|offset| offset.0 < piece.blocks.end);
            piece.read_blocks(&offsets[from..inside], from, &mut take)?;
            from = inside;
        }
        match offsets.get(from) {
            Some(offset) => {
                let (name, blocks) = (self.header().name, self.end().0);
                take(from..offsets.len(), Err(ArchiveError::Offset { name, offset: *offset, blocks }))
            }
            None => Ok(()),
        }
    }

    /// The whole image of the segment's slot; of parts what there is, and zeros.
    ///
    /// # Errors
    /// When the store fails or any frame is damaged.
    pub fn read_image(&mut self) -> Result<Vec<u8>, ArchiveError> {
        let mut image = vec![0; self.volume().geometry.segment_bytes()];
        self.read_image_into(&mut image)?;
        Ok(image)
    }

    /// The same into `image`, which has its length and holds zeros. After an error its content is anything.
    ///
    /// # Errors
    /// As for [`Self::read_image`].
    pub fn read_image_into(&mut self, image: &mut [u8]) -> Result<(), ArchiveError> {
        let (name, need) = (self.header().name, self.volume().geometry.segment_bytes());
        if image.len() != need {
            return Err(ArchiveError::Buffer { name, have: image.len(), need });
        }
        for Piece { object, blocks } in &mut self.pieces {
            let (start, end) = (blocks.start as usize * BLOCK_BYTES, blocks.end as usize * BLOCK_BYTES);
            object.each_frame(0..object.table.frames().len(), |at, raw| {
                // A part's summary is not of the slot.
                let to = (start + at).min(end)..(start + at + raw.len()).min(end);
                image[to.clone()].copy_from_slice(&raw[..to.len()]);
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// An object of which header and table are known.
pub(super) struct Object {
    store: Arc<dyn Store>,
    name: ObjectName,
    pub(super) header: ObjectHeader,
    pub(super) table: FrameTable,
    pub(super) bytes: u64,
    /// Its end, until the summary has been looked for in it.
    tail: Vec<u8>,
    unpacker: Unpacker,
}

impl Object {
    /// Reads header and table, and checks that the object is the one of its name.
    pub(super) fn open(store: &Arc<dyn Store>, name: &ObjectName) -> Result<Self, ArchiveError> {
        let (header, bytes, tail) = match store.ends(name, OBJECT_HEADER_BYTES as u64, TAIL_BYTES) {
            Ok(Ends { bytes, head, tail }) => (parse_header(&head, name)?, bytes, tail),
            // In a frame, as it may be: that one costs no more than itself.
            Err(error) if error.is_bad_sector() => (read_header(store, name)?, store.length(name)?, Vec::new()),
            Err(error) => return Err(error.into()),
        };
        let table_bytes = FrameTable::tail_bytes_max(&header) as u64;
        let tail = match (tail.len() as u64) < table_bytes.min(bytes) {
            true => store.get(name, bytes.saturating_sub(table_bytes)..bytes)?,
            false => tail,
        };
        let table = FrameTable::parse(&tail, bytes, &header).map_err(|error| ArchiveError::object(name, error))?;
        let unpacker = Unpacker::new().map_err(ArchiveError::Memory)?;
        Ok(Self { store: Arc::clone(store), name: *name, header, table, bytes, tail, unpacker })
    }

    /// Opens it, and checks that it is of `expected`, in whatever history.
    pub(super) fn open_of(
        store: &Arc<dyn Store>,
        name: &ObjectName,
        expected: Option<&Superblock>,
    ) -> Result<Self, ArchiveError> {
        let object = Self::open(store, name)?;
        expected.map_or(Ok(()), |volume| of_volume(&object.header, volume))?;
        Ok(object)
    }

    /// The summary, or what the batch headers say when it is damaged.
    fn sound_summary(&mut self) -> Result<Summary, ArchiveError> {
        match self.summary() {
            Err(ArchiveError::Object { name, source }) => {
                log::warn!("object {name}: no summary ({source}); it is made again from the batch headers");
                self.rebuilt_summary()
            }
            other => other,
        }
    }

    /// The summary out of its frame, which the end of the object holds unless it is long.
    fn summary(&mut self) -> Result<Summary, ArchiveError> {
        let tail = std::mem::take(&mut self.tail);
        let rank = self.table.frames().len() - 1;
        let frame = &self.table.frames()[rank];
        let raw = match frame.at.checked_sub(self.bytes - tail.len() as u64) {
            Some(at) => {
                let mut raw = vec![0; frame.raw_bytes];
                unpack(&mut self.unpacker, rank, frame, &tail[at as usize..], &mut raw)
                    .map_err(|error| ArchiveError::object(&self.name, error))?;
                raw
            }
            None => self.decode(rank)?,
        };
        let summary = Summary::parse(&raw, &self.header.volume);
        self.agreed(summary)
    }

    /// The summary made again from the batch headers; the image's own is left out, it may be what is damaged.
    fn rebuilt_summary(&mut self) -> Result<Summary, ArchiveError> {
        let mut image = vec![0; self.header.image_bytes()];
        self.each_frame(0..self.table.frames().len() - 1, |at, raw| {
            image[at..at + raw.len()].copy_from_slice(raw);
            Ok(())
        })?;
        let volume = &self.header.volume;
        self.agreed(match self.name.part {
            0 => summary_from_image(&image, volume),
            _ => summary_from_run(&image, self.header.first, volume),
        })
    }

    fn agreed(&self, summary: Result<Summary, FormatError>) -> Result<Summary, ArchiveError> {
        let summary = summary.map_err(|error| ArchiveError::object(&self.name, error))?;
        if self.header.agrees(&summary) {
            return Ok(summary);
        }
        Err(ArchiveError::object(&self.name, ObjectError::Summary))
    }

    /// The frame of that rank, decoded.
    fn decode(&mut self, rank: usize) -> Result<Vec<u8>, ArchiveError> {
        let mut decoded = Vec::new();
        self.each_frame(rank..rank + 1, |_, raw| {
            decoded.extend_from_slice(raw);
            Ok(())
        })?;
        Ok(decoded)
    }

    /// Fetches, checks and decodes the frames of those ranks, and gives each with its place in the image to `take`.
    pub(super) fn each_frame(
        &mut self,
        ranks: Range<usize>,
        mut take: impl FnMut(usize, &[u8]) -> Result<(), ArchiveError>,
    ) -> Result<(), ArchiveError> {
        let frames = &self.table.frames()[ranks.clone()];
        let mut raw = vec![0; FRAME_BYTES];
        let mut rank = ranks.start;
        for group in groups(frames) {
            let (start, end) = (group[0].at, group[group.len() - 1].end());
            let bytes = self.store.get(&self.name, start..end)?;
            for frame in group {
                raw.resize(raw.len().max(frame.raw_bytes), 0);
                let raw = &mut raw[..frame.raw_bytes];
                unpack(&mut self.unpacker, rank, frame, &bytes[bytes.len().min((frame.at - start) as usize)..], raw)
                    .map_err(|error| ArchiveError::object(&self.name, error))?;
                take(frame.raw_at, raw)?;
                rank += 1;
            }
        }
        Ok(())
    }
}

/// The header of the object `name` of `volume`, in whatever history; nothing else of it is read.
///
/// # Errors
/// When the store fails, the object is not there, its header is damaged, or is another volume's or segment's.
pub fn header_of(store: &Arc<dyn Store>, name: &ObjectName, volume: &Superblock) -> Result<ObjectHeader, ArchiveError> {
    let header = read_header(store, name)?;
    of_volume(&header, volume)?;
    Ok(header)
}

fn read_header(store: &Arc<dyn Store>, name: &ObjectName) -> Result<ObjectHeader, ArchiveError> {
    parse_header(&store.get(name, 0..OBJECT_HEADER_BYTES as u64)?, name)
}

fn parse_header(head: &[u8], name: &ObjectName) -> Result<ObjectHeader, ArchiveError> {
    let header = ObjectHeader::parse(head).map_err(|error| ArchiveError::object(name, error))?;
    if header.name != *name {
        return Err(ArchiveError::object(name, ObjectError::Name { found: header.name }));
    }
    Ok(header)
}

fn of_volume(header: &ObjectHeader, volume: &Superblock) -> Result<(), ArchiveError> {
    if header.is_of(volume) {
        return Ok(());
    }
    Err(ArchiveError::Volume { name: header.name, found: header.volume.uuid, expected: volume.uuid })
}

/// Runs of frames that are fetched together.
fn groups(frames: &[Frame]) -> impl Iterator<Item = &[Frame]> {
    let mut rest = frames;
    std::iter::from_fn(move || {
        let first = rest.first()?;
        let count = rest.iter().take_while(|frame| frame.end() - first.at <= FETCH_BYTES as u64).count().max(1);
        let (group, later) = rest.split_at(count);
        rest = later;
        Some(group)
    })
}

/// Checks the frame at the start of `bytes` and decodes it into exactly `raw`.
fn unpack(
    unpacker: &mut Unpacker,
    rank: usize,
    frame: &Frame,
    bytes: &[u8],
    raw: &mut [u8],
) -> Result<(), ObjectError> {
    let at = frame.at;
    let Some(bytes) = bytes.get(..frame.bytes) else {
        return Err(ObjectError::Short { frame: rank, at, have: bytes.len(), need: frame.bytes });
    };
    let found = block_crc(bytes);
    if found != frame.crc {
        return Err(ObjectError::Checksum { frame: rank, at, found, expected: frame.crc });
    }
    let decoded = unpacker.unpack(bytes, raw).map_err(|source| ObjectError::Decode { frame: rank, at, source })?;
    if decoded != raw.len() {
        return Err(ObjectError::Decoded { frame: rank, at, have: decoded, need: raw.len() });
    }
    Ok(())
}
