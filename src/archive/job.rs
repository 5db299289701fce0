//! Archiving one segment: a plain blocking function, for a thread of the archiver's pool.

use std::borrow::Cow;
use std::sync::Arc;

use super::verify::{Unfit, rescue, verify};
use super::{ArchiveError, Extent, ForkRecord, ObjectHeader, ObjectName, Packing, Store, StoreError, encode_object};
use crate::format::{BLOCK_BYTES, Summary, Superblock};
use crate::io::Buffer;

/// A segment to be archived, or a part of one.
pub struct ArchiveJob {
    pub store: Arc<dyn Store>,
    pub volume: Superblock,
    pub summary: Arc<Summary>,
    pub extent: Extent,
    /// The whole slot, the summary encoded at its end, zeros where nothing was written; for a part its run of blocks, the
    /// summary behind them. Nobody writes to it any more.
    pub image: Buffer,
    pub packing: Packing,
}

/// An archived segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Archived {
    pub name: ObjectName,
    pub object_bytes: u64,
    pub image_bytes: u64,
}

/// How often an object that comes back damaged is put, before that is an error and the archiver comes back later.
const PUTS: u32 = 3;

/// Packs the segment, puts it into the store, reads it back and compares every byte. When it returns, the segment is
/// archived: durable in the store, and known to come back.
///
/// An object that is damaged by its own checksums, or lies on bad sectors, whether it was there or has just been put, is
/// deleted and put again: the segment is still on the primary, and nobody can use the object. One that is whole and is not this segment stays.
///
/// May be called again for the same segment, after an error or a crash, also with another packing: an object that is
/// there already and decodes to the same image is as good as a new one.
///
/// # Errors
/// When the volume was rebuilt meanwhile, and when the store fails, holds another segment under the name, or does not give back what it was given.
pub fn archive_segment(job: ArchiveJob) -> Result<Archived, ArchiveError> {
    let mut image = Cow::Borrowed(job.image.bytes());
    let blocks = (image.len() / BLOCK_BYTES) as u32;
    let header = ObjectHeader::new(&job.volume, &job.summary, job.extent, blocks);
    let name = header.name;
    ForkRecord::refuse_superseded(&job.store, &job.volume)?;
    let mut puts = 0;
    loop {
        puts += 1;
        let put = {
            let object = encode_object(&job.volume, &job.summary, job.extent, &image, job.packing)?;
            job.store.put(&name, &object)
        };
        let was_there = match put {
            Ok(()) => false,
            Err(StoreError::Conflict { .. }) => true,
            Err(error) => return Err(error.into()),
        };
        let error = match verify(&job.store, &header, &job.summary, &image) {
            Ok(object_bytes) => {
                // A rebuild looks for new objects after it has put its record: one of the two sees the other.
                ForkRecord::refuse_superseded(&job.store, &job.volume)?;
                return Ok(Archived { name, object_bytes, image_bytes: image.len() as u64 });
            }
            // That the store fails now says nothing about the object that is there.
            Err(Unfit::Other(error @ ArchiveError::Store(_))) => return Err(error),
            Err(Unfit::Damaged(error)) if puts < PUTS => {
                log::warn!("{error}; it is deleted, and put again from the primary");
                image = rescue(&job.store, &header, &job.summary, image);
                job.store.delete(&name)?;
                continue;
            }
            Err(Unfit::Damaged(error)) => {
                // A reader might take it for what is there as well. What was saved from it is nowhere else.
                if matches!(image, Cow::Borrowed(_)) {
                    let _ = job.store.delete(&name);
                }
                error
            }
            Err(Unfit::Other(error)) => error,
        };
        return Err(if was_there { ArchiveError::Conflict { name, source: Box::new(error) } } else { error });
    }
}
