//! What must be true of a volume at rest that nobody lied to.

use std::collections::BTreeMap;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use salvol::archive::Store;
use salvol::format::{BLOCK_BYTES, Block, EntryKind, Position, SegmentNumber, Summary};
use salvol::history::{HistoryError, Progress, Severity, Source, VerifyFinding, check_path, restore, verify};
use salvol::io::simulated::SimulatedDisk;

use super::common::*;
use super::coverage::Coverage;
use super::store::UnreliableStore;

pub struct Judge<'a> {
    pub disk: &'a SimulatedDisk,
    pub shape: &'a Shape,
    pub store: Option<Arc<UnreliableStore>>,
    pub model: &'a Model,
}

impl Judge<'_> {
    fn store(&self) -> Option<Arc<dyn Store>> {
        self.store.clone().map(|store| store as Arc<dyn Store>)
    }

    /// The log's rules hold at every position, and each acknowledged synch point is there with the volume that it marks: by the
    /// entries of the log, read one after the other, and by the archive alone where it has the point.
    pub fn every_position(&self, in_flight: &[String], met: &mut Coverage) {
        let log = whole_log_of(self.disk, self.shape, self.store());
        if std::env::var_os("SALVOL_TELL").is_some() {
            for (number, summary) in &log {
                println!(
                    "segment {number} of epoch {}: {}..={}",
                    summary.epoch,
                    summary.first_position,
                    summary.last_position()
                );
            }
            println!("{:?}", self.store.as_ref().map(|store| store.inner.puts()));
        }
        check_every_position(&self.unbroken(&log), self.shape.working_set);
        let marks: BTreeMap<u64, &str> =
            log.values().flat_map(|summary| &summary.synchs).map(|mark| (mark.point, mark.label.as_str())).collect();
        for (point, state) in self.model.points.borrow().iter() {
            let Some(label) = marks.get(&point.point) else {
                assert!(self.store.is_none(), "p{} is gone", point.point);
                continue;
            };
            assert_eq!(*label, point.label, "p{} is another point", point.point);
            if self.store.is_some() {
                assert_eq!(crcs_at(&log, point.position), crcs_of(state), "p{}", point.point);
                met.meet("synch point compared");
            }
        }
        for label in in_flight {
            let survived = marks.values().any(|mark| mark == label);
            met.meet("synch in flight at a crash");
            met.meet(if survived { "synch in flight survived" } else { "synch in flight lost" });
        }
    }

    /// The log as far back as it is all there: with no store slots are used again in any order.
    fn unbroken(&self, log: &BTreeMap<SegmentNumber, Summary>) -> BTreeMap<SegmentNumber, Summary> {
        let mut links = log.keys().zip(log.keys().skip(1));
        let gap = links.rfind(|(one, next)| one.plus(1) != **next);
        let from = gap.map_or(SegmentNumber(0), |(_, next)| *next);
        assert!(gap.is_none() || self.store.is_none(), "segment {} is missing", from.minus(1));
        log.range(from..).map(|(number, summary)| (*number, summary.clone())).collect()
    }

    /// The judges that users have say that nothing is wrong, and restores are bit for bit what the model says.
    pub fn restored(&self, met: &mut Coverage) {
        let base = std::env::var_os("SALVOL_TEST_DIR").unwrap_or_else(|| env!("CARGO_TARGET_TMPDIR").into());
        let directory = tempfile::tempdir_in(base).unwrap();
        let (primary, out) = (directory.path().join("primary"), directory.path().join("out"));
        self.write_to(&primary);
        let checked = check_path(&primary).unwrap();
        let damage: Vec<_> = checked.findings.iter().filter(|finding| finding.severity == Severity::Damage).collect();
        assert!(damage.is_empty(), "{damage:?}");
        let both = Source::open_primary_with(&primary, self.store()).unwrap();
        let oldest = whole_log_of(self.disk, self.shape, self.store()).values().next_back().unwrap().oldest_needed;
        let mut affected = Vec::new();
        let mut sources = vec![both];
        sources.extend(self.store.as_ref().map(|_| Source::open_store(self.shape.superblock(), self.store()).unwrap()));
        for source in &sources {
            let report = verify(source, &Progress::none()).unwrap();
            // A power cut may leave half of a segment in a slot that was free, under the header of the one before: that is in the archive,
            // or, where there is none, is there by chance, with the points that need it.
            let by_chance = |segment: Option<u64>| {
                self.store.is_none() && segment.is_some_and(|segment| SegmentNumber(segment) < oldest)
            };
            let harms = |finding: &&VerifyFinding| finding.points_unknown || !finding.points.is_empty();
            let harm: Vec<_> =
                report.findings.iter().filter(harms).filter(|finding| !by_chance(finding.segment)).collect();
            assert!(harm.is_empty(), "{harm:?}");
            affected.extend(report.points_affected);
        }
        let points = self.model.points.borrow();
        let whole = points.iter().filter(|(point, _)| !affected.contains(&format!("p{}", point.point)));
        for (point, state) in whole.rev().take(6) {
            for source in &sources {
                // The newest segments are not in the archive, and without one the oldest points have gone.
                let Ok(moment) = source.resolve(&format!("p{}", point.point)) else { continue };
                let report = match restore(source, &moment, &out, true, &Progress::none()) {
                    Err(HistoryError::Gone { .. }) if self.store.is_none() => continue,
                    report => report.unwrap(),
                };
                assert_eq!(report.damaged, []);
                let bytes = std::fs::read(&out).unwrap();
                for (block, bytes) in bytes.chunks(BLOCK_BYTES).enumerate() {
                    let expected = state.get(&(block as u64)).copied().unwrap_or(0);
                    assert_eq!(stamp_of(block as u64, bytes), expected, "p{} block {block}", point.point);
                }
                met.meet("restored and verified");
            }
        }
    }

    fn write_to(&self, path: &std::path::Path) {
        let blocks = self.shape.superblock().geometry.primary_blocks;
        let file = std::fs::File::create(path).unwrap();
        let mut bytes = vec![0; BLOCK_BYTES];
        for block in 0..blocks {
            self.disk.peek(block * BLOCK_BYTES as u64, &mut bytes);
            file.write_all_at(&bytes, block * BLOCK_BYTES as u64).unwrap();
        }
    }
}

/// The checksum of each block at `position`, by reading the log from its beginning.
fn crcs_at(log: &BTreeMap<SegmentNumber, Summary>, position: Position) -> BTreeMap<u64, u32> {
    let mut crcs = BTreeMap::new();
    for summary in log.values() {
        for (_, _, entries) in summary.walk().filter(|(at, ..)| *at <= position) {
            for entry in entries {
                let Block(block) = entry.block();
                match entry.kind().unwrap() {
                    EntryKind::Write | EntryKind::Copy => drop(crcs.insert(block, entry.crc())),
                    EntryKind::Trim | EntryKind::Zero => {
                        (block..block + u64::from(entry.count())).for_each(|block| {
                            crcs.remove(&block);
                        });
                    }
                    _ => {}
                }
            }
        }
    }
    crcs
}

fn crcs_of(state: &BTreeMap<u64, u64>) -> BTreeMap<u64, u32> {
    state.iter().map(|(block, stamp)| (*block, crc_of(*block, *stamp))).collect()
}
