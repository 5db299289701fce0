//! Blocks out of an archived segment: only the frames that are needed are fetched and decoded.
//!
//! Opening reads the header, the table and the summary's frame. Every byte is checked before it is used: header and
//! table by keyed checksums, a frame by its CRC32C in the table, and a buffer is as large as the table says.

use std::ops::Range;
use std::sync::Arc;

use super::frame::Unpacker;
use super::{
    ArchiveError, FRAME_BYTES, Frame, FrameTable, OBJECT_HEADER_BYTES, ObjectError, ObjectHeader, ObjectName, Store,
};
use crate::format::{BLOCK_BYTES, FormatError, Offset, Summary, Superblock, block_crc, summary_from_image};

/// Frames are fetched together up to so many bytes, unless one alone has more.
const FETCH_BYTES: usize = 2 * 1024 * 1024;

/// A segment in its archive object.
pub struct ArchivedSegment {
    object: Object,
    summary: Summary,
    /// The last frame that a block was read from, decoded.
    cached: Option<(usize, Vec<u8>)>,
}

impl ArchivedSegment {
    /// Opens the object `name`. When `expected` is given, it must be of that volume, in whatever history.
    ///
    /// # Errors
    /// When the store fails, the object is not there, is damaged, or is another volume's or segment's.
    pub fn open(
        store: &Arc<dyn Store>,
        name: &ObjectName,
        expected: Option<&Superblock>,
    ) -> Result<Self, ArchiveError> {
        let mut object = Object::open(store, name)?;
        if let Some(volume) = expected
            && !object.header.is_of(volume)
        {
            let (found, expected) = (object.header.volume.uuid, volume.uuid);
            return Err(ArchiveError::Volume { name: *name, found, expected });
        }
        let summary = match object.summary() {
            Err(ArchiveError::Object { source, .. }) => {
                log::warn!("object {name}: no summary ({source}); it is made again from the batch headers");
                object.rebuilt_summary()?
            }
            other => other?,
        };
        Ok(Self { object, summary, cached: None })
    }

    /// The volume as it was when the segment was archived: identity, key and geometry.
    pub fn volume(&self) -> &Superblock {
        &self.object.header.volume
    }

    /// What the object's header says of the segment.
    pub fn header(&self) -> &ObjectHeader {
        &self.object.header
    }

    pub fn summary(&self) -> &Summary {
        &self.summary
    }

    /// Bytes of the object.
    pub fn object_bytes(&self) -> u64 {
        self.object.bytes
    }

    /// Copies the block at `offset` of the segment to `out`, which has the length of a block. Decodes the frame that
    /// holds it, unless that was the last one asked for.
    ///
    /// # Errors
    /// When the store fails, the frame is damaged, or `offset` or `out` cannot be.
    pub fn read_block(&mut self, offset: Offset, out: &mut [u8]) -> Result<(), ArchiveError> {
        let (name, blocks) = (self.object.name, self.volume().geometry.segment_blocks);
        if offset.0 >= blocks {
            return Err(ArchiveError::Offset { name, offset, blocks });
        }
        if out.len() != BLOCK_BYTES {
            return Err(ArchiveError::Buffer { name, have: out.len(), need: BLOCK_BYTES });
        }
        let rank = self.object.table.frame_of(offset);
        let raw = match self.cached.take() {
            Some((cached, raw)) if cached == rank => raw,
            _ => self.object.decode(rank)?,
        };
        let from = offset.0 as usize * BLOCK_BYTES - self.object.table.frames()[rank].raw_at;
        out.copy_from_slice(&raw[from..from + BLOCK_BYTES]);
        self.cached = Some((rank, raw));
        Ok(())
    }

    /// The whole image of the segment's slot.
    ///
    /// # Errors
    /// When the store fails or any frame is damaged.
    pub fn read_image(&mut self) -> Result<Vec<u8>, ArchiveError> {
        let mut image = vec![0; self.object.header.image_bytes()];
        self.read_image_into(&mut image)?;
        Ok(image)
    }

    /// The same into `image`, which has its length. After an error its content is anything.
    ///
    /// # Errors
    /// As for [`Self::read_image`].
    pub fn read_image_into(&mut self, image: &mut [u8]) -> Result<(), ArchiveError> {
        let (name, need) = (self.object.name, self.object.header.image_bytes());
        if image.len() != need {
            return Err(ArchiveError::Buffer { name, have: image.len(), need });
        }
        let frames = 0..self.object.table.frames().len();
        self.object.each_frame(frames, |at, raw| {
            image[at..at + raw.len()].copy_from_slice(raw);
            Ok(())
        })
    }
}

/// An object of which header and table are known.
pub(super) struct Object {
    store: Arc<dyn Store>,
    name: ObjectName,
    pub(super) header: ObjectHeader,
    pub(super) table: FrameTable,
    pub(super) bytes: u64,
    unpacker: Unpacker,
}

impl Object {
    /// Reads header and table, and checks that the object is the one of its name.
    pub(super) fn open(store: &Arc<dyn Store>, name: &ObjectName) -> Result<Self, ArchiveError> {
        let bytes = store.length(name)?;
        let head = store.get(name, 0..OBJECT_HEADER_BYTES as u64)?;
        let header = ObjectHeader::parse(&head).map_err(|error| ArchiveError::object(name, error))?;
        if header.name != *name {
            return Err(ArchiveError::object(name, ObjectError::Name { found: header.name }));
        }
        let tail_bytes = FrameTable::tail_bytes_max(&header) as u64;
        let tail = store.get(name, bytes.saturating_sub(tail_bytes)..bytes)?;
        let table = FrameTable::parse(&tail, bytes, &header).map_err(|error| ArchiveError::object(name, error))?;
        let unpacker = Unpacker::new().map_err(ArchiveError::Memory)?;
        Ok(Self { store: Arc::clone(store), name: *name, header, table, bytes, unpacker })
    }

    /// The summary out of its frame.
    fn summary(&mut self) -> Result<Summary, ArchiveError> {
        let raw = self.decode(self.table.frames().len() - 1)?;
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
        self.agreed(summary_from_image(&image, &self.header.volume))
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
