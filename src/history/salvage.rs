//! A segment's slot out of the archive, as whole as the archive can make it.
//!
//! What does not decode, or does not match its checksum, is taken from another object of the same segment, if there is
//! one. A synch mark is made again from the summary, and the summary, the other way round, was made again from the batch
//! headers when it was opened. What stays damaged is zeros, which no checksum takes for the block that was there.

use super::{HistoryError, Source};
use crate::archive::{ArchiveError, ArchivedSegment};
use crate::format::{
    BLOCK_BYTES, BatchHeader, Checksum, EntryKind, FormatError, Offset, Position, SegmentHeader, SegmentNumber, Slot,
    Summary, SummaryTrailer, Superblock, SynchMark, block_crc,
};

/// A slot's bytes.
pub(super) struct Salvaged {
    pub summary: Summary,
    /// The whole slot.
    pub image: Vec<u8>,
    /// Whether the segment is all there, with its summary; otherwise it was open, and came in parts.
    pub sealed: bool,
    /// Blocks that are zeros and were not, in the order of their offsets, and why.
    pub spoilt: Vec<(Part, String)>,
}

/// What a block of a slot is.
#[derive(Debug, Clone)]
pub(super) struct Part {
    pub offset: Offset,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    SegmentHeader,
    BatchHeader(Position),
    Data(u32),
    Mark(u32, SynchMark),
}

impl Salvaged {
    /// The segment whose last checksum is `checksum`. `volume` is who will read it.
    ///
    /// # Errors
    /// When the store fails, or no object of the segment can be opened.
    pub(super) fn find(
        source: &Source,
        volume: &Superblock,
        segment: SegmentNumber,
        checksum: Checksum,
    ) -> Result<Self, HistoryError> {
        let mut found: Option<Self> = None;
        let mut trouble = HistoryError::Chain { segment };
        for mut object in objects(source, segment, checksum)? {
            match &mut found {
                None => match Self::read(&mut object, volume) {
                    Ok(read) => found = Some(read),
                    Err(source) => return Err(HistoryError::DamagedObject { segment, source }),
                },
                Some(found) => {
                    found.mend(&mut object, volume).map_err(|source| HistoryError::DamagedObject { segment, source })?
                }
            }
            if found.as_ref().is_some_and(|found| found.spoilt.is_empty()) {
                break;
            }
        }
        if source.archived(segment).is_empty() {
            trouble = HistoryError::Gone { position: Position(0), segment, archive: source.archive_word() };
        }
        let mut found = found.ok_or(trouble)?;
        found.make_again(volume);
        Ok(found)
    }

    fn read(object: &mut ArchivedSegment, volume: &Superblock) -> Result<Self, ArchiveError> {
        let summary = object.summary().clone();
        let sealed = object.header().name.part == 0;
        let mut image = vec![0; volume.geometry.segment_bytes()];
        if let Err(error) = object.read_image_into(&mut image) {
            if matches!(error, ArchiveError::Store(_)) {
                return Err(error);
            }
            image.fill(0);
            let mut found = Self { spoilt: Vec::new(), summary, image, sealed };
            found.spoilt = parts(&found.summary).map(|part| (part, error.to_string())).collect();
            found.mend(object, volume)?;
            return Ok(found);
        }
        let mut found = Self { spoilt: Vec::new(), summary, image, sealed };
        let cause = "does not match its checksum in the archive: it was damaged before it was archived";
        for part in parts(&found.summary) {
            let at = part.offset.0 as usize * BLOCK_BYTES;
            if !part.is(&found.image[at..at + BLOCK_BYTES], volume) {
                found.image[at..at + BLOCK_BYTES].fill(0);
                found.spoilt.push((part, cause.to_owned()));
            }
        }
        Ok(found)
    }

    /// Takes from `object` what it has of the blocks that are spoilt.
    fn mend(&mut self, object: &mut ArchivedSegment, volume: &Superblock) -> Result<(), ArchiveError> {
        let mut block = vec![0; BLOCK_BYTES];
        for (part, cause) in std::mem::take(&mut self.spoilt) {
            match object.read_block(part.offset, &mut block) {
                Ok(()) if part.is(&block, volume) => {
                    let at = part.offset.0 as usize * BLOCK_BYTES;
                    self.image[at..at + BLOCK_BYTES].copy_from_slice(&block);
                }
                Err(error @ ArchiveError::Store(_)) => return Err(error),
                Ok(()) => self.spoilt.push((part, cause)),
                Err(error) => self.spoilt.push((part, error.to_string())),
            }
        }
        Ok(())
    }

    /// Makes synch marks and the summary again where they are damaged: each is there twice.
    fn make_again(&mut self, volume: &Superblock) {
        for (part, cause) in std::mem::take(&mut self.spoilt) {
            let at = part.offset.0 as usize * BLOCK_BYTES;
            let block = &mut self.image[at..at + BLOCK_BYTES];
            if let Kind::Mark(_, mark) = &part.kind {
                let bytes = mark.encode();
                block[..bytes.len()].copy_from_slice(&bytes);
                if part.is(block, volume) {
                    continue;
                }
                block.fill(0);
            }
            self.spoilt.push((part, cause));
        }
        if self.sealed && !self.stored_summary(volume).is_ok_and(|stored| stored == self.summary) {
            let at = self.image.len() - self.summary.blocks() as usize * BLOCK_BYTES;
            self.summary.encode(volume, &mut self.image[at..]);
        }
    }

    fn stored_summary(&self, volume: &Superblock) -> Result<Summary, FormatError> {
        let trailer = SummaryTrailer::peek(&self.image[self.image.len() - BLOCK_BYTES..], volume)?;
        Summary::parse(&self.image[self.image.len() - trailer.blocks as usize * BLOCK_BYTES..], volume)
    }

    /// The slot that the segment's header names.
    pub(super) fn slot(&self, volume: &Superblock) -> Option<Slot> {
        SegmentHeader::parse(&self.image, volume).ok().map(|header| header.slot)
    }

    /// Gives the segment the header of `slot`, unless that is the one it has.
    pub(super) fn settle_in(&mut self, slot: Slot, volume: &Superblock) {
        if self.slot(volume) == Some(slot) {
            return;
        }
        let header = SegmentHeader::parse(&self.image, volume).map_or_else(
            |_| header_of(&self.summary, slot, volume.geometry.working_set),
            |header| SegmentHeader { slot, ..header },
        );
        header.encode(volume, &mut self.image[..BLOCK_BYTES]);
        self.spoilt.retain(|(part, _)| part.offset != Offset(0));
    }
}

impl Part {
    /// Whether `block` is what belongs here.
    fn is(&self, block: &[u8], volume: &Superblock) -> bool {
        match &self.kind {
            Kind::SegmentHeader => SegmentHeader::parse(block, volume).is_ok(),
            Kind::BatchHeader(position) => {
                BatchHeader::parse(block, volume).is_ok_and(|batch| batch.header.position == *position)
            }
            Kind::Data(crc) | Kind::Mark(crc, _) => block_crc(block) == *crc,
        }
    }
}

/// The blocks of a slot that a segment with this summary uses.
fn parts(summary: &Summary) -> impl Iterator<Item = Part> {
    let mut all = vec![Part { offset: Offset(0), kind: Kind::SegmentHeader }];
    for (position, batch, entries) in summary.walk() {
        let mut offset = batch.offset();
        all.push(Part { offset, kind: Kind::BatchHeader(position) });
        for entry in entries {
            let Ok(kind) = entry.kind() else { continue };
            if !kind.has_data() {
                continue;
            }
            offset = offset.plus(1);
            let mark = summary.synchs.iter().find(|mark| mark.point == position.0 && kind == EntryKind::Synch);
            let kind = mark.map_or(Kind::Data(entry.crc()), |mark| Kind::Mark(entry.crc(), mark.clone()));
            all.push(Part { offset, kind });
        }
    }
    all.into_iter()
}

/// The objects that have the segment with this last checksum.
fn objects(
    source: &Source,
    segment: SegmentNumber,
    checksum: Checksum,
) -> Result<impl Iterator<Item = ArchivedSegment>, HistoryError> {
    let mut objects = Vec::new();
    for archived in source.archived(segment) {
        match source.open_archived(&archived) {
            Ok(object) if object.summary().last_checksum == checksum => objects.push(object),
            Ok(_) => {}
            Err(HistoryError::DamagedObject { source: ArchiveError::Store(error), .. }) => return Err(error.into()),
            Err(error) => log::warn!("{error}"),
        }
    }
    Ok(objects.into_iter())
}

/// The slot that a segment's header in the archive names.
pub(super) fn slot_of(
    source: &Source,
    volume: &Superblock,
    segment: SegmentNumber,
    checksum: Checksum,
) -> Result<Option<Slot>, HistoryError> {
    let mut block = vec![0; BLOCK_BYTES];
    for mut object in objects(source, segment, checksum)? {
        match object.read_block(Offset(0), &mut block) {
            Err(ArchiveError::Store(error)) => return Err(error.into()),
            Err(error) => log::warn!("{error}"),
            Ok(()) => {
                if let Ok(header) = SegmentHeader::parse(&block, volume) {
                    return Ok(Some(header.slot));
                }
            }
        }
    }
    Ok(None)
}

/// The segment header, made again from the summary.
fn header_of(summary: &Summary, slot: Slot, working_set: u32) -> SegmentHeader {
    let first = summary.batches.first();
    SegmentHeader {
        segment: summary.segment,
        slot,
        epoch: first.map_or(summary.epoch, |batch| batch.epoch()),
        first_position: summary.first_position,
        predecessor: summary.predecessor,
        oldest_needed: summary.oldest_needed,
        durable_through: summary.first_position.previous(),
        archived_through: SegmentNumber(0),
        volume_blocks: summary.volume_blocks,
        working_set,
        time_ns: first.map_or(0, |batch| batch.time_ns()),
    }
}
