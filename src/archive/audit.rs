//! All bytes of an object, for whoever wants to know what is wrong with it: a frame that is damaged costs its own blocks
//! and not the answer.

use std::ops::Range;
use std::sync::Arc;

use super::reader::Object;
use super::{ArchiveError, ObjectHeader, ObjectName, Store};
use crate::format::{BLOCK_BYTES, Superblock};

/// What reading a whole object gave.
pub struct Audit {
    pub header: ObjectHeader,
    /// Bytes of the object.
    pub bytes: u64,
    pub bad: Vec<BadFrame>,
}

/// A frame that did not come back.
pub struct BadFrame {
    pub rank: usize,
    /// Blocks of the image, which are zeros there.
    pub blocks: Range<u32>,
    pub error: ArchiveError,
}

/// Reads the object `name`, which must be one of `volume`, checks header, table and every frame, and makes `image` its
/// image.
///
/// # Errors
/// When header or table are damaged, the object is not there or is another's.
pub fn audit_object(
    store: &Arc<dyn Store>,
    name: &ObjectName,
    volume: &Superblock,
    image: &mut Vec<u8>,
) -> Result<Audit, ArchiveError> {
    let mut object = Object::open_of(store, name, Some(volume))?;
    image.clear();
    image.resize(object.header.image_bytes(), 0);
    let count = object.table.frames().len();
    let (mut rank, mut bad) = (0, Vec::new());
    // Where many frames are fetched together, an error of the store may be of any of them.
    let mut together = true;
    while rank < count {
        let ranks = if together { rank..count } else { rank..rank + 1 };
        let read = object.each_frame(ranks.clone(), |at, raw| {
            image[at..at + raw.len()].copy_from_slice(raw);
            rank += 1;
            Ok(())
        });
        match read {
            Ok(()) => {}
            Err(ArchiveError::Store(_)) if ranks.len() > 1 => together = false,
            Err(error @ (ArchiveError::Object { .. } | ArchiveError::Store(_))) => {
                let frame = &object.table.frames()[rank];
                let (from, to) = (frame.raw_at / BLOCK_BYTES, (frame.raw_at + frame.raw_bytes) / BLOCK_BYTES);
                bad.push(BadFrame { rank, blocks: from as u32..to as u32, error });
                rank += 1;
                together = true;
            }
            Err(error) => return Err(error),
        }
    }
    Ok(Audit { header: object.header.clone(), bytes: object.bytes, bad })
}
