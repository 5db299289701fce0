//! What a list of points needs of a segment. Of an archived one without marks the header of its object says it, so that
//! thousands of objects are listed without their summaries.

use std::collections::HashMap;
use std::sync::Arc;

use super::scan::sound;
use super::source::{Archived, open_in, same_blocks};
use super::{HistoryError, Source};
use crate::archive::{ObjectHeader, Outline, Store, header_of};
use crate::format::{Checksum, Position, SegmentNumber, Summary, Superblock, SynchMark};

/// How much is read of an archived segment to list it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Depth {
    /// The header of its object, as far as that says it.
    Headers,
    /// Its summary, whose damage then shows.
    Summaries,
}

/// Links, times and marks of a segment.
#[derive(Debug, Clone)]
pub(super) struct Digest {
    pub segment: SegmentNumber,
    pub epoch: u64,
    pub oldest_needed: SegmentNumber,
    pub first_position: Position,
    pub last_position: Position,
    pub predecessor: Checksum,
    pub last_checksum: Checksum,
    pub first_time_ns: i64,
    pub last_time_ns: i64,
    pub marks: Vec<SynchMark>,
}

/// Digests of archived segments, as far as they could be read.
pub(super) type Digests = HashMap<Archived, Arc<Digest>>;

impl Digest {
    /// None when the summary cannot be counted with, see [`sound`].
    pub fn of(summary: &Summary, segment: SegmentNumber) -> Option<Self> {
        let outline = Outline::of(summary);
        sound(summary, segment).then(|| Self {
            segment,
            epoch: summary.epoch,
            oldest_needed: outline.oldest_needed,
            first_position: summary.first_position,
            last_position: summary.last_position(),
            predecessor: summary.predecessor,
            last_checksum: summary.last_checksum,
            first_time_ns: outline.first_time_ns,
            last_time_ns: outline.last_time_ns,
            marks: summary.synchs.clone(),
        })
    }

    /// None when the header does not say enough, or what cannot be: of marks it has only the number.
    fn of_header(header: &ObjectHeader) -> Option<Self> {
        let outline = header.outline.filter(|outline| outline.synchs == 0)?;
        let is_sound = header.last_position >= header.first_position && outline.oldest_needed <= header.name.segment;
        is_sound.then(|| Self {
            segment: header.name.segment,
            epoch: header.name.epoch,
            oldest_needed: outline.oldest_needed,
            first_position: header.first_position,
            last_position: header.last_position,
            predecessor: header.predecessor,
            last_checksum: header.last_checksum,
            first_time_ns: outline.first_time_ns,
            last_time_ns: outline.last_time_ns,
            marks: Vec::new(),
        })
    }
}

impl Source {
    /// Digests of the objects of `segments` that are in no slot.
    pub(super) fn digests_of(&self, segments: &[SegmentNumber], depth: Depth) -> Digests {
        let volume = self.volume();
        self.read_together(segments, |store, archived| read_digest(store, volume, archived, depth).ok().flatten())
    }

    /// The digest of `segment`, from its slot or else from its object, and whether it is in a slot; with `successor` that of
    /// the right candidate. `read` has what has been read already.
    pub(super) fn digest(
        &self,
        segment: SegmentNumber,
        successor: Option<Checksum>,
        read: &Digests,
    ) -> Result<Option<(Arc<Digest>, bool)>, HistoryError> {
        let of = |summary: &Summary| Digest::of(summary, segment).map(Arc::new);
        let found = self.pick(
            segment,
            |summary| of(&summary),
            |archived| match read.get(archived) {
                Some(digest) => Ok(Some(Arc::clone(digest))),
                None => self.open_archived(archived).map(|object| of(object.summary())),
            },
            |digest| successor.is_none_or(|checksum| checksum == digest.last_checksum),
        )?;
        Ok(found.map(|(digest, slot)| (digest, slot.is_some())))
    }
}

fn read_digest(
    store: &Arc<dyn Store>,
    volume: &Superblock,
    archived: &Archived,
    depth: Depth,
) -> Result<Option<Digest>, HistoryError> {
    if let (Archived::Whole(name), Depth::Headers) = (archived, depth) {
        let damaged = |source| HistoryError::DamagedObject { segment: name.segment, source };
        let header = header_of(store, name, volume).map_err(damaged)?;
        same_blocks(volume, &header)?;
        if let Some(digest) = Digest::of_header(&header) {
            return Ok(Some(digest));
        }
    }
    let object = open_in(store, volume, archived)?;
    Ok(Digest::of(object.summary(), object.header().name.segment))
}
