//! Archiving one segment: a plain blocking function, for a thread of the archiver's pool.

use std::sync::Arc;

use super::reader::Object;
use super::{ArchiveError, ObjectError, ObjectHeader, ObjectName, Packing, Store, StoreError, encode_object};
use crate::format::{Summary, Superblock};
use crate::io::Buffer;

/// A segment to be archived.
pub struct ArchiveJob {
    pub store: Arc<dyn Store>,
    pub volume: Superblock,
    pub summary: Arc<Summary>,
    /// The whole slot, the summary encoded at its end, zeros where nothing was written. Nobody writes to it any more.
    pub image: Buffer,
    /// See [`Packing::choose`].
    pub packing: Packing,
}

/// An archived segment.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Archived {
    pub name: ObjectName,
    pub object_bytes: u64,
    pub image_bytes: u64,
}

/// Packs the segment, puts it into the store, reads it back and compares every byte. When it returns, the segment is
/// archived: durable in the store, and known to come back.
///
/// May be called again for the same segment, after an error or a crash, also with another packing: an object that is
/// there already and decodes to the same image is as good as a new one.
///
/// # Errors
/// When the store fails, holds another segment under the name, or does not give back what it was given.
pub fn archive_segment(job: ArchiveJob) -> Result<Archived, ArchiveError> {
    let image = job.image.bytes();
    let header = ObjectHeader::new(&job.volume, &job.summary);
    let name = header.name;
    let put = {
        let object = encode_object(&job.volume, &job.summary, image, job.packing)?;
        job.store.put(&name, &object)
    };
    let object_bytes = match put {
        Ok(()) => verify(&job.store, &header, image)?,
        Err(StoreError::Conflict { .. }) => match verify(&job.store, &header, image) {
            Ok(object_bytes) => object_bytes,
            // That the store fails now says nothing about the object that is there.
            Err(error @ ArchiveError::Store(_)) => return Err(error),
            Err(error) => return Err(ArchiveError::Conflict { name, source: Box::new(error) }),
        },
        Err(error) => return Err(error.into()),
    };
    Ok(Archived { name, object_bytes, image_bytes: image.len() as u64 })
}

/// Reads the object back, past every cache that the store can pass, decodes each frame and compares it with the image.
/// Returns the object's length.
fn verify(store: &Arc<dyn Store>, header: &ObjectHeader, image: &[u8]) -> Result<u64, ArchiveError> {
    let name = header.name;
    let mut object = Object::open(store, &name)?;
    if !object.header.is_of(&header.volume) {
        let (found, expected) = (object.header.volume.uuid, header.volume.uuid);
        return Err(ArchiveError::Volume { name, found, expected });
    }
    // Name or size of the volume may have changed since another attempt; what the segment is may not.
    let same = ObjectHeader { volume: header.volume.clone(), ..object.header.clone() };
    if same != *header {
        return Err(ArchiveError::object(&name, ObjectError::Summary));
    }
    if object.header.image_bytes() != image.len() {
        return Err(ArchiveError::Buffer { name, have: image.len(), need: object.header.image_bytes() });
    }
    object.each_frame(0..object.table.frames().len(), |from, raw| {
        let wanted = &image[from..from + raw.len()];
        if raw == wanted {
            return Ok(());
        }
        let differs = raw.iter().zip(wanted).position(|(a, b)| a != b).unwrap_or(0);
        Err(ArchiveError::Differs { name, at: from + differs })
    })?;
    Ok(object.bytes)
}
