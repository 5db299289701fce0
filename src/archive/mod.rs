//! The archive: what becomes of a full segment.
//!
//! The story of one segment on its way to the store:
//!
//! 1. The volume gives a sealed segment to an archiver thread as an [`ArchiveJob`]: its image, byte for byte what its
//!    slot holds, and its summary. Everything in it is durable on the primary by then; the archive never runs ahead.
//! 2. [`archive_segment`] packs the image into an *archive object* (`object`): zstd frames of 128 KiB (`frame`), each
//!    readable alone, behind a header that makes the object self-describing, and in front of a table of the frames.
//! 3. It puts the object into the [`Store`] under the segment's [`ObjectName`]. When `put` returns, it is durable.
//! 4. It reads the object back past the page cache, decodes every frame and compares it with the image. Only now is the
//!    segment *archived*, and only an archived segment's slot may be used again.
//! 5. Later, [`ArchivedSegment`] reads single blocks or the whole image out of the object, for repair, restore and views
//!    of the past. If the object's summary is rotten, it is made again from the batch headers.
//!
//! ```text
//! store.rs      the trait and the names          object.rs  table.rs  frame.rs   the bytes
//! directory.rs  dir:PATH                         reader.rs            a block out of an object
//! patient.rs    one that is not there yet, or again
//! memory.rs     for tests and the simulator      job.rs               one segment, start to end
//! ```

mod directory;
mod error;
mod file;
mod frame;
mod job;
mod memory;
mod object;
mod patient;
mod reader;
mod spec;
mod store;
mod table;
#[cfg(test)]
mod tests;

pub use directory::DirectoryStore;
pub use error::{ArchiveError, ObjectError};
pub use frame::{FRAME_BYTES, Packing};
pub use job::{ArchiveJob, Archived, archive_segment};
pub use memory::MemoryStore;
pub use object::{OBJECT_HEADER_BYTES, ObjectHeader, encode_object};
pub use patient::PatientStore;
pub use reader::ArchivedSegment;
pub use spec::{Spec, SpecError, create_store, open_store, prepare_store, store_identity};
pub use store::{ObjectName, Store, StoreError};
pub use table::{Frame, FrameTable};

use crate::format::Superblock;

/// The superblock as archives carry it: identity, key and geometry, without what changes from one opening to the next.
/// So the bytes of an object do not depend on when it was made.
fn canonical(volume: &Superblock) -> Superblock {
    Superblock { generation: 0, epoch: 0, clean_close: None, accepted_loss: None, ..volume.clone() }
}
