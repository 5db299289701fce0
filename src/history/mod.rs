//! The past of a volume: its synch points, its index at any position, and the way back.
//!
//! 1. A [`Source`] is where the log is: a primary, in use or not, its archive, or the archive alone. It lists segments
//!    and hands out their summaries, of several candidates always the one that continues the chain of checksums.
//! 2. [`Source::points`] lists the synch points that can be restored, [`Source::resolve`] finds the one that a person
//!    means, or any other position.
//! 3. [`index_at`] scans backward from there, through at most W+1 segments, and keeps for each block the newest place.
//! 4. [`restore`](restore()) reads every segment once and writes the blocks to a file or a device.
//! 5. [`check`](check()) looks at the structure of a primary at rest, [`dump`](dump()) shows a log as text.
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
mod dump;
mod dump_text;
mod error;
mod fetch;
mod point;
mod primary;
mod progress;
mod restore;
mod scan;
mod slots;
mod source;
mod target;
mod text;

pub use check::{CheckReport, Finding, Severity, check, check_path};
pub use damage::Damage;
pub use dump::{
    BatchDump, DumpSection, EntryDump, SegmentDump, SummaryDump, SuperblockDump, TakeSection, dump, dump_object,
    superblock_section,
};
pub use error::HistoryError;
pub use point::{Consistency, Moment, PointInfo, Points, Whereabouts, check_label};
pub use progress::Progress;
pub use restore::{RestoreReport, restore};
pub use scan::{PointIndex, Segments, Sited, index_at};
pub use slots::summaries_on;
pub use source::Source;
pub use target::{Target, TargetError, exit_unfinished, recognise};
pub use text::rfc3339;
