//! Every moment comes back: all synch points, and any other position or time, restored and viewed, from primary and store and from the
//! store alone, equal bit for bit to a model.
//!
//! `SALVOL_POINTS` says how many points (`make moments POINTS=1000`).

use std::collections::BTreeMap;

use super::rig::{BLOCKS, Model, Rig, SEGMENT_BLOCKS, WORKING_SET, content, differences, differing};
use salvol::format::{ArchiveAt, BLOCK_BYTES, Position};
use salvol::history::{Moment, Progress, Source, restore};
use salvol::volume::Operation;

/// What the volume was at positions, as its user knows it.
#[derive(Default)]
struct Known(BTreeMap<Position, Model>);

impl Known {
    /// The volume is this now.
    fn note(&mut self, rig: &Rig) {
        self.0.insert(rig.engine().log().positions().0, rig.model.clone());
    }

    /// Blocks that hold at `position` neither what they held before it nor what they held after it.
    fn wrong(&self, position: Position, bytes: &[u8]) -> Vec<u64> {
        let zeros = vec![0; BLOCKS as usize];
        let before = self.0.range(..=position).next_back().map_or(&zeros, |(_, model)| model);
        // While one request was under way a block may be either; at a position that is known there is one truth.
        let after = if self.0.contains_key(&position) { before } else { self.0.range(position..).next().unwrap().1 };
        let is = |block: &u64, model: &Model| {
            let at = *block as usize * BLOCK_BYTES;
            bytes[at..at + BLOCK_BYTES] == content(model[*block as usize])[..]
        };
        (0..BLOCKS).filter(|block| !is(block, before) && !is(block, after)).collect()
    }
}

fn check(rig: &Rig, source: &Source, moment: &Moment, judge: impl Fn(&[u8]) -> Vec<u64>, what: &str) {
    let out = rig.path("out");
    let report = restore(source, moment, &out, true, &Progress::none()).unwrap();
    assert!(report.segments <= u64::from(WORKING_SET) + 1, "{what}: {} segments were read", report.segments);
    assert_eq!(report.damaged, [], "{what}");
    assert_eq!(judge(&std::fs::read(&out).unwrap()), [0; 0], "{what}, restored");
    assert_eq!(judge(&rig.view(source, moment)), [0; 0], "{what}, viewed");
}

#[test]
fn every_moment_comes_back() {
    let points = std::env::var("SALVOL_POINTS").map_or(60, |text| text.parse().unwrap());
    let Some(mut rig) = Rig::new(ArchiveAt::Seal, true, 11) else { return };
    let mut known = Known::default();
    let mut undone = 0;
    for point in 0..points {
        for _ in 0..rig.rng.usize(4..9) {
            rig.step();
            known.note(&rig);
        }
        match rig.rng.u8(..8) {
            0 => rig.serve(Operation::Flush, 0, 0, None),
            1 => {
                rig.model[7] = 1_000_000 + point;
                rig.serve(Operation::Write { fua: true }, 7, 1, Some(&content(1_000_000 + point)));
                known.note(&rig);
            }
            _ => {}
        }
        rig.synch(&format!("point {point}"));
        known.note(&rig);
        if point % 20 == 19 {
            let (to, then) = rig.points[rig.rng.usize(..rig.points.len())].clone();
            let before = rig.model.clone();
            let done = rig.roll_back(&format!("p{}", to.point));
            rig.model = then;
            known.note(&rig);
            if point % 40 == 39 {
                rig.roll_back(&format!("p{}", done.before));
                rig.model = before;
                known.note(&rig);
                undone += 1;
            }
            assert_eq!(rig.wrong_blocks(), [0; 0]);
        }
        match point % 25 {
            12 => rig.kill(),
            20 => rig.close(),
            _ => continue,
        }
        rig.attach();
    }
    let last = rig.segment();
    rig.run_to_segment(last + u64::from(WORKING_SET) + 2);
    rig.settle();
    let turns = last / (rig.volume.geometry.slots as u64);
    println!(
        "{points} points, {last} segments of {SEGMENT_BLOCKS} blocks, the log turned over {turns} times, {undone} rollbacks undone"
    );
    let end = rig.points.last().unwrap().0.position;
    for source in [Source::open_primary(&rig.primary()).unwrap(), Source::open_spec(&rig.spec).unwrap()] {
        for (point, model) in &rig.points {
            let moment = source.resolve(&format!("p{}", point.point)).unwrap();
            check(&rig, &source, &moment, |bytes| differing(bytes, model), &moment.to_string());
        }
        for _ in 0..points {
            let position = Position(rig.rng.u64(1..end.0));
            let moment = source.resolve(&position.to_string()).unwrap();
            // Within a rollback it is the one before.
            assert!(moment.position <= position);
            check(&rig, &source, &moment, |bytes| known.wrong(moment.position, bytes), &moment.to_string());
            let time = salvol::history::rfc3339(moment.time_ns);
            let at_time = source.resolve(&time).unwrap();
            assert!(at_time.position >= moment.position, "{time}: {at_time}");
            check(&rig, &source, &at_time, |bytes| known.wrong(at_time.position, bytes), &time);
        }
    }
    let (point, model) = rig.points[0].clone();
    rig.close();
    let source = Source::open_spec(&rig.spec).unwrap();
    restore(
        &source,
        &source.resolve(&format!("p{}", point.point)).unwrap(),
        &rig.path("last"),
        false,
        &Progress::none(),
    )
    .unwrap();
    assert_eq!(differences(&rig.path("last"), &model), [0; 0]);
}
