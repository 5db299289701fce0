//! Every bound of the engine, with its reason.

use std::time::Duration;

/// Batches in flight. Two larger ones beat many small ones: 1 × 132 KiB writes 5.1 GB/s where 8 × 20 KiB writes 3.
pub const BATCHES_IN_FLIGHT: usize = 2;
/// Batches in flight when each further one is as large as all before it together: then the device works while the owner places what
/// comes next, instead of waiting for everything that is ready.
pub const LARGE_BATCHES_IN_FLIGHT: usize = 3;
/// Blocks from which on a batch may be called large: a header for each 15.
pub const LARGE_BATCH_BLOCKS: u32 = 16;
/// Blocks of a group of copies: 128 KiB, the longest that a user's write waits behind.
pub const COPY_GROUP_BLOCKS: usize = 32;
/// Groups of copies that are read or wait for their place: enough to keep the device busy behind one group's turn.
pub const COPY_GROUPS_AHEAD: usize = 8;
/// Dead blocks that a cleaning read runs over rather than start another: the price of an I/O is about that of 12 KiB.
pub const COPY_GAP_BLOCKS: u32 = 3;
/// Blocks that copies may be behind their plan before users wait for them: one group, and one that is being read.
pub const COPY_DEBT_BLOCKS: u32 = 2 * COPY_GROUP_BLOCKS as u32;
/// Blocks of the index that are looked through at a time for what is in a slot, a millisecond or so.
pub const INDEX_PIECE: u64 = 1 << 20;
/// Sealed segments that are kept in memory for the archiver; beyond that it reads the primary.
pub const SEALED_BUFFERS: usize = 2;
/// Segments that the archiver works on at a time when nobody says how many. Each needs the memory of two: its image and its
/// object.
pub const ARCHIVERS: usize = 2;
/// Reads of one request, of a scan or of a cleaning group that are in flight together.
pub const READS_IN_FLIGHT: usize = 32;
/// Bytes of one sequential read of a segment.
pub const SCAN_BYTES: usize = 1 << 20;
/// An idle volume flushes and records its last flush within this time.
pub const IDLE_RECORD: Duration = Duration::from_millis(500);
/// First and longest pause before a failed archiving is tried again.
pub const ARCHIVE_RETRY: (Duration, Duration) = (Duration::from_millis(200), Duration::from_secs(10));
/// Readings of a segment of which something is damaged, before it is archived like that.
pub const READ_TRIES: u32 = 4;
/// Readings of a block that the cleaner found wrong, as long as each is wrong in another way.
pub const COPY_READ_TRIES: u32 = 16;
/// Before a block that could not be read is read once more, and so much longer each time. Writers may wait for it, and for each of many.
pub const COPY_READ_PAUSE: Duration = Duration::from_millis(5);
/// How long a store is waited for that is asked what it has: one that hangs must keep neither an opening nor slots.
pub const STORE_PATIENCE: Duration = Duration::from_secs(5);
/// Parts of the open segment in the store, before one more stands for all of them.
pub const PARTS_MAX: usize = 32;
// A ring has room for those, for the one more, and for one whose put failed after it was there.
const _: () = assert!(PARTS_MAX as u64 + 2 <= crate::archive::RING_PARTS);
/// Free slots that an opening leaves when it takes up again what the store has lost: the next segment's, and one to spare.
pub const MISSING_LEAVE: usize = 2;
/// The longest that the archiver sleeps without looking whether it still has to: a detach waits for it.
pub const ARCHIVE_NAP: Duration = Duration::from_secs(1);
/// While a store is in trouble the log says so this often.
pub const TROUBLE_REMINDER: Duration = Duration::from_secs(60);
/// The longest that a write is held back without looking whether it still has to be, so that speed follows the store's.
pub const THROTTLE_STEP: Duration = Duration::from_millis(100);

/// Writes that are held back go on together this often, in one batch.
pub const THROTTLE_TICK: Duration = Duration::from_millis(4);

/// Blocks that a close entry leaves: one for the next opening, and one for a header that says that a slot is free. An
/// opening behind an opening takes none, so attach and detach go on for ever without the store.
pub const KEPT_AT_CLOSE: u32 = 2;

/// Blocks of a segment that only open, close and the header that frees a slot may use, while there is no slot to go on to.
pub fn control_reserve(segment_blocks: u32) -> u32 {
    (segment_blocks / 256).clamp(3, 16)
}
