//! Pin, unpin and prune of a volume that is served: in a connection's own thread, with the store that the daemon has open,
//! since a ring has one writer.

use std::path::PathBuf;
use std::sync::Arc;

use super::RunDir;
use crate::archive::{Lease, Store};
use crate::history::{
    HistoryError, Keep, Pinned, PruneReport, Source, Unpinned, parse_time, pin, pinned_as, prune, unpin,
};

/// The archive of a volume that is served, and who says what is read of it.
pub struct ServedArchive {
    pub store: Arc<dyn Store>,
    pub lease: Lease,
}

/// Where the past of a volume is that is served.
pub(super) struct Retention<'a> {
    pub(super) primary: &'a PathBuf,
    pub(super) archive: Option<&'a ServedArchive>,
}

impl Retention<'_> {
    /// Does `work` with the past, nobody else pinning or pruning meanwhile.
    fn with<T>(
        &self,
        work: impl FnOnce(&Source, &dyn Fn() -> Option<crate::format::SegmentNumber>) -> Result<T, HistoryError>,
    ) -> Result<T, String> {
        let store = self.archive.map(|archive| Arc::clone(&archive.store));
        let source = Source::open_primary_with(self.primary, store).map_err(|error| error.to_string())?;
        let _turn = RunDir::from_environment().lock_archive(&source.volume().uuid.to_string());
        let leased = || self.archive.and_then(|archive| (archive.lease)());
        work(&source, &leased).map_err(|error| error.to_string())
    }

    pub(super) fn pin(&self, point: &str) -> Result<Pinned, String> {
        let now = i64::try_from(jiff::Timestamp::now().as_nanosecond()).unwrap_or(i64::MAX);
        self.with(|source, _| pin(source, &source.resolve(point)?, now))
    }

    pub(super) fn unpin(&self, point: &str) -> Result<Unpinned, String> {
        self.with(|source, leased| unpin(source, &pinned_as(source, point)?, leased))
    }

    pub(super) fn prune(&self, since: Option<&str>, points: Option<u64>, dry_run: bool) -> Result<PruneReport, String> {
        let keep = match (since, points) {
            (Some(since), None) => {
                Keep::Since(parse_time(since).ok_or_else(|| format!("{since}: is not an RFC 3339 time"))?)
            }
            (None, Some(count)) if count > 0 => Keep::Points(count),
            _ => {
                return Err(
                    "a prune needs one rule: keep_since with a time, or keep_points with a number from 1".to_owned()
                );
            }
        };
        self.with(|source, leased| prune(source, keep, leased, dry_run))
    }
}
