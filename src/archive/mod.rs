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
//!    segment *archived*, and only an archived segment's slot may be used again. An object that is damaged is put again.
//! 5. Later, [`ArchivedSegment`] reads single blocks or the whole image out of the object, for repair, restore and views
//!    of the past. If the object's summary is rotten, it is made again from the batch headers.
//!
//! ```text
//! store.rs      the trait and the names          object.rs  table.rs  frame.rs   the bytes
//! directory.rs  dir:PATH                         reader.rs            a block out of an object
//! ring/         file:PATH and dev:PATH           devices.rs           which device rests on which
//! patient.rs    one that is not there yet, or again
//! memory.rs     for tests and the simulator      job.rs               one segment, start to end
//! fork.rs       where a history ends             verify.rs            whether an object is the segment
//! lineage.rs    whose objects are a volume's past     pin.rs   points that are kept
//! ```

mod audit;
mod devices;
mod directory;
mod error;
mod file;
mod fork;
mod frame;
mod job;
mod lineage;
mod memory;
mod object;
mod patient;
mod pin;
mod reader;
mod ring;
mod spec;
mod store;
mod table;
#[cfg(test)]
mod tests;
mod verify;

pub use audit::{Audit, BadFrame, audit_object};
pub(crate) use devices::rests_on;
pub use directory::DirectoryStore;
pub use error::{ArchiveError, ObjectError};
pub use fork::{FORK_RECORD_BYTES, ForkRecord};
pub use frame::{FRAME_BYTES, Packing};
pub use job::{ArchiveJob, Archived, archive_segment};
pub use lineage::{Lineage, one_past};
pub use memory::{MemoryStore, Mood};
pub use object::{Extent, OBJECT_HEADER_BYTES, ObjectHeader, Outline, encode_object};
pub use patient::PatientStore;
pub use pin::{PIN_RECORD_BYTES, PinRecord, Pins, one_piece_from};
pub use reader::{ArchivedSegment, header_of};
pub(crate) use ring::RING_PARTS;
pub use ring::{Provision, RingKind, RingStore};
pub use spec::{Spec, SpecError, create_store, open_store, prepare_store, store_identity};
pub use store::{Ends, Fill, Lease, ObjectName, Store, StoreError};
pub use table::{Frame, FrameTable};
pub use verify::damaged_blocks;
pub(crate) use verify::is_unreadable;

use crate::format::Superblock;

/// Bytes of an object at most, of a segment of so many bytes.
#[doc(hidden)]
pub fn object_bytes_max(segment_bytes: usize) -> u64 {
    // Data and summary each end with a frame that is not full; the summary's may be as large as the segment.
    let frames = segment_bytes.div_ceil(FRAME_BYTES) + 1;
    let stored = segment_bytes + 2 * frames * frame::stored_bytes(1);
    (OBJECT_HEADER_BYTES + stored + table::bytes_of(frames)) as u64
}

/// The superblock as archives carry it: identity, key and geometry, without what changes from one opening to the next.
/// So the bytes of an object do not depend on when it was made.
#[doc(hidden)]
pub fn canonical(volume: &Superblock) -> Superblock {
    Superblock { generation: 0, epoch: 0, clean_close: None, accepted_loss: None, ..volume.clone() }
}
