//! The past of a volume: its synch points, its index at any position, and the way back.
//!
//! 1. A [`Source`] is where the log is: a primary, in use or not, its archive, or the archive alone. It lists segments
//!    and hands out their summaries, of several candidates always the one that continues the chain of checksums.
//! 2. [`Source::points`] lists the synch points that can be restored, [`Source::resolve`] finds the one that a person
//!    means, or any other position.
//! 3. [`index_at`] scans backward from there, through at most W+1 segments, and keeps for each block the newest place.
//! 4. [`restore`](restore()) reads every segment once, several at a time, and writes the blocks to a file or a device; one
//!    that was interrupted goes on. [`RebuildPlan`] makes a new primary, which continues the volume, out of the archive.
//! 5. [`Past`] serves the volume as it was, read-only or with an overlay, while the volume goes on.
//! 6. [`verify`](verify()) reads every byte of primary and archive and names what is damaged, and which points need it.
//! 7. [`pin`](pin()) keeps a point for good, [`prune`](prune()) removes what neither a pin nor a rule keeps.
//! 8. [`check`](check()) looks at the structure of a primary at rest, [`dump`](dump()) shows a log as text.
//!
//! ```text
//! segment      s-W   s-W+1   ...    s-1      s
//!            +-----+-------+-----+-------+--------+
//!            |     |       |     |       |   p    |     batches behind p are ignored
//!            +-----+-------+-----+-------+---|----+
//!               ^------------- scan ---------+
//! ```

mod check;
mod damage;
mod digest;
mod dump;
mod dump_text;
mod error;
mod fetch;
mod interrupt;
mod occupied;
mod past;
mod pins;
mod pipeline;
mod plan;
mod point;
mod primary;
mod progress;
mod prune;
mod rebuild;
mod restore;
mod salvage;
mod scan;
mod slots;
mod source;
mod target;
mod text;
mod unfinished;
mod verify;

pub use check::{CheckReport, Finding, Severity, check, check_path};
pub use damage::Damage;
pub use dump::{
    BatchDump, DumpSection, EntryDump, SegmentDump, SummaryDump, SuperblockDump, TakeSection, dump, dump_object,
    superblock_section,
};
pub use error::HistoryError;
pub use interrupt::Interrupt;
pub use occupied::recognise;
pub use past::{Past, Scene, Writable};
pub use pins::{Leased, Pinned, Unpinned, check_pin, pin, pinned_as, unpin};
pub use point::{Consistency, Moment, PointInfo, Points, Whereabouts, check_label};
pub use progress::Progress;
pub use prune::{Keep, PruneReport, prune};
pub use rebuild::{GivenUp, RebuildOptions, RebuildPlan, RebuildReport};
pub use restore::{RestoreOptions, RestoreReport, restore, restore_with};
pub use scan::{PointIndex, Segments, Sited, index_at};
pub use slots::summaries_on;
pub use source::Source;
pub use target::{Change, Target, TargetError, Watch};
pub use text::{parse_time, rfc3339};
pub use verify::{VerifyFinding, VerifyReport, verify, verify_at};
