//! Rollback: the volume becomes what it was, all of it or nothing, and becomes again what it was before that.
//!
//! `SALVOL_SEED` is the first seed, and there is one for every 20 of `SALVOL_SEEDS`.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use super::common::*;
use super::rig::{Model as RigModel, Rig, differences};
use salvol::format::{ArchiveAt, Position, SegmentNumber};
use salvol::history::{Consistency, Progress, Source, restore};
use salvol::io::Platform;
use salvol::io::simulated::{Dice, Ended, SimulatedDisk, SimulatedPlatform};
use salvol::volume::{Aim, RequestError};

/// A disk on which a volume has become one thing and then another.
struct Then {
    disk: SimulatedDisk,
    store: Option<std::sync::Arc<salvol::archive::MemoryStore>>,
    then: BTreeMap<u64, u64>,
    now: BTreeMap<u64, u64>,
    at: Position,
}

fn then(seed: u64, shape: &Shape) -> Then {
    let (disk, store) = (shape.disk(), store_of(shape));
    let platform = SimulatedPlatform::new(seed, disk.clone());
    let volume = open(&platform, &store).unwrap().unwrap();
    let model = Rc::new(Model::default());
    let mix = Mix { write_blocks: 4, ..Mix::default() };
    assert_eq!(hammer(&platform, &volume, &model, seed, 3, 120, mix), Ended::Done);
    let (marker, then) = (volume.clone(), model.state());
    let at = platform.block_on(async move { marker.synch("then".to_owned(), String::new()).await.unwrap() }).unwrap();
    assert_eq!(hammer(&platform, &volume, &model, seed + 1, 3, 120, mix), Ended::Done);
    let (closing, now) = (volume.clone(), model.state());
    platform.block_on(async move { closing.close().await.unwrap() }).unwrap();
    platform.halt();
    disk.stop_machine();
    assert_ne!(then, now);
    Then { disk, store, then, now, at: at.position }
}

fn known(state: &BTreeMap<u64, u64>) -> Known {
    Known::new(state, SHAPE.volume_blocks)
}

fn all(platform: &SimulatedPlatform, volume: &SimVolume) -> BTreeMap<u64, u64> {
    let volume = volume.clone();
    platform.block_on(async move { read_all(&volume).await.unwrap() }).unwrap()
}

/// A rollback that the power ends at I/O `ios`; and after that a few openings, which the power ends as well. False when it was
/// done before.
fn interrupted(seed: u64, shape: &Shape, ios: u64) -> bool {
    let Then { disk, store, then, now, at } = then(seed, shape);
    let past = known(&then);
    let mut dice = Dice::new(seed * 1000 + ios);
    let platform = SimulatedPlatform::new(seed + ios, disk.clone());
    let volume = open(&platform, &store).unwrap().unwrap();
    platform.crash_after(platform.device_ios() + ios);
    let (roller, its_past) = (volume.clone(), past.clone());
    let done = platform.block_on(async move { roller.roll_back(&its_past, &aim(at)).await.unwrap() });
    assert!(done.is_some() || platform.device_ios() >= ios, "seed {seed}: stuck at {ios}");
    platform.halt();
    disk.lose_power(&mut dice);
    let mut began = false;
    for life in 0.. {
        let platform = SimulatedPlatform::new(dice.bits(), disk.clone());
        if life < 3 {
            platform.crash_after(1 + dice.below(60));
        }
        let Some(volume) = open(&platform, &store) else {
            platform.halt();
            disk.lose_power(&mut dice);
            continue;
        };
        let volume = volume.unwrap();
        let unfinished = volume.unfinished_rollback();
        assert!(unfinished.is_none_or(|rollback| rollback.to == at), "{unfinished:?}");
        assert!(done.is_none() || unfinished.is_none(), "seed {seed} {ios}: it was done, and is not");
        let was = began || unfinished.is_some();
        began |= unfinished.is_some();
        let (finisher, its_past) = (volume.clone(), past.clone());
        let finish = async move { finisher.finish_rollback(&its_past, &aim(at)).await.unwrap() };
        if platform.block_on(finish).is_none() {
            platform.halt();
            disk.lose_power(&mut dice);
            continue;
        }
        platform.crash_after(u64::MAX);
        let found = all(&platform, &volume);
        let expected = if done.is_some() || was { &then } else { &now };
        // Committed and durable, and the answer was not given any more.
        assert!(found == *expected || (done.is_none() && found == then), "seed {seed} {ios}: neither then nor now");
        // And back again, to what it is for whoever asks for it now.
        assert!(volume.unfinished_rollback().is_none());
        platform.halt();
        disk.stop_machine();
        break;
    }
    done.is_none()
}

#[test]
fn a_rollback_that_ends_at_any_io_is_finished() {
    let number = |name: &str| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (first, seeds) =
        (number("SALVOL_SEED").unwrap_or(0), number("SALVOL_SEEDS").map_or(2, |seeds| seeds.div_ceil(20)));
    for seed in first..first + seeds {
        let archive_at = if seed % 2 == 0 { ArchiveAt::Seal } else { ArchiveAt::Inactive };
        let shape = Shape { archive_at, segment_blocks: 32, working_set: 16, slots: 24, ..SHAPE };
        let mut ios = 1;
        while interrupted(seed, &shape, ios) {
            ios += 1;
        }
        assert!(ios > 40, "a rollback of {ios} I/Os is none");
    }
}

/// A past that cannot be read the first time changes nothing. One that cannot be read the second time leaves a volume that
/// serves nobody, until the same rollback is given again.
#[test]
fn a_past_that_cannot_be_read_is_seen_by_nobody() {
    let shape = Shape { segment_blocks: 32, working_set: 16, slots: 24, ..SHAPE };
    let pieces = SHAPE.volume_blocks.div_ceil(64) as u32;
    let (mut untouched, mut midway) = (0, 0);
    for reads in 0..2 * pieces {
        let Then { disk, store, then, now, at } = then(3, &shape);
        let platform = SimulatedPlatform::new(u64::from(reads), disk.clone());
        let volume = open(&platform, &store).unwrap().unwrap();
        let past = known(&then);
        past.left.set(reads);
        let roll = |past: &Known, to: u64| {
            let (volume, past) = (volume.clone(), past.clone());
            let roll = async move { volume.roll_back(&past, &aim(Position(to))).await };
            platform.block_on(roll).unwrap()
        };
        assert!(matches!(roll(&past, at.0), Err(RequestError::Corrupt { .. })), "{reads} reads");
        if volume.unfinished_rollback().is_none() {
            assert_eq!(all(&platform, &volume), now, "nothing was changed");
            untouched += 1;
        } else {
            assert_eq!(volume.rollback_lease().needs_from(), Some(SegmentNumber(1)), "nothing of it may go yet");
            let reader = volume.clone();
            let read = platform.block_on(async move { get(&reader, 0).await }).unwrap();
            assert!(matches!(read, Err(RequestError::Stopped { .. })), "{read:?}");
            assert!(matches!(roll(&known(&then), at.0 - 1), Err(RequestError::Refused { .. })), "another one");
            midway += 1;
        }
        let clock = platform.clone();
        platform.block_on(async move { clock.sleep(Duration::from_secs(2)).await }).unwrap();
        let idle = volume.log().look(|_, table| table.segments().all(|(_, info)| info.readers == 0));
        assert!(idle, "no slot is held by a read that has ended");
        roll(&known(&then), at.0).unwrap();
        assert_eq!(volume.rollback_lease().needs_from(), None);
        assert_eq!(all(&platform, &volume), then);
        platform.halt();
        disk.stop_machine();
    }
    assert!(untouched > 1 && midway > 1, "{untouched} {midway}");
}

/// A store that would have to expire what the rollback needs, before it could take what the rollback writes, is known before.
#[test]
fn a_rollback_that_has_no_room_in_the_store_does_not_begin() {
    let shape = Shape { segment_blocks: 32, working_set: 16, slots: 24, ..SHAPE };
    let Then { disk, store, then, now, at } = then(5, &shape);
    let platform = SimulatedPlatform::new(5, disk.clone());
    let volume = open(&platform, &store).unwrap().unwrap();
    for (room, fits) in [(0, false), (100_000, false), (100_000_000, true)] {
        let (roller, past, aim) = (volume.clone(), known(&then), Aim { room: Some(room), ..aim(at) });
        let done = platform.block_on(async move { roller.roll_back(&past, &aim).await }).unwrap();
        assert_eq!(done.is_ok(), fits, "{done:?}");
        assert!(fits || matches!(done, Err(RequestError::Refused { .. })), "{done:?}");
        assert_eq!(all(&platform, &volume), if fits { then.clone() } else { now.clone() });
    }
    assert_eq!(volume.rollback_lease().needs_from(), None);
    platform.halt();
}

/// Restores a moment and compares it.
fn comes_back(rig: &Rig, source: &Source, at: &str, model: &RigModel) {
    let out = rig.path("out");
    restore(source, &source.resolve(at).unwrap(), &out, true, &Progress::none()).unwrap();
    assert_eq!(differences(&out, model), [0; 0], "{at}");
}

/// Every point comes back, those before a rollback, its own, and those after; and what was undone.
#[test]
fn history_goes_on_through_rollbacks_and_can_undo_them() {
    for (seed, archive_at) in [(1, ArchiveAt::Seal), (2, ArchiveAt::Inactive)] {
        let Some(mut rig) = Rig::new(archive_at, true, seed) else { return };
        for turn in 0..12 {
            for part in 0..3 {
                rig.steps(20);
                rig.synch(&format!("{turn}.{part}"));
            }
            // To any point there is, also to one that was marked before an earlier rollback.
            let (point, then) = rig.points[rig.rng.usize(..rig.points.len())].clone();
            let before = rig.model.clone();
            let midway = match turn % 3 {
                0 => {
                    let done = rig.roll_back(&point.position.to_string());
                    let mark = format!("p{}", done.before);
                    comes_back(&rig, &Source::open_primary(&rig.primary()).unwrap(), &mark, &before);
                    assert!(rig.roll_back(&mark).before > done.before);
                    comes_back(&rig, &Source::open_primary(&rig.primary()).unwrap(), "latest", &before);
                    rig.model = before.clone();
                    assert_eq!(rig.wrong_blocks(), [0; 0], "undone");
                    rig.roll_back(&point.position.to_string());
                    false
                }
                _ => {
                    let after = Duration::from_micros(rig.rng.u64(200..20_000));
                    let midway = rig.roll_back_killed(&point.position.to_string(), after);
                    if midway {
                        // Nobody sees it half done, whatever is left.
                        let source = Source::open_primary(&rig.primary()).unwrap();
                        let last = source.resolve("2100-01-01T00:00:00Z").unwrap();
                        assert_eq!(last.consistency, Consistency::Application, "the mark before it: {last}");
                        comes_back(&rig, &source, &last.position.to_string(), &before);
                    }
                    rig.attach();
                    let unfinished = rig.finish_rollback();
                    assert!(!unfinished || midway);
                    if !unfinished && rig.wrong_blocks().is_empty() {
                        // It had not begun, or what had begun was lost with what was not durable.
                        rig.roll_back(&point.position.to_string());
                    }
                    midway
                }
            };
            rig.model = then;
            assert_eq!(rig.wrong_blocks(), [0; 0], "turn {turn}, midway: {midway}");
        }
        rig.synch("end");
        let last = rig.segment();
        rig.run_to_segment(last + u64::from(super::rig::WORKING_SET) + 2);
        rig.settle();
        for source in [Source::open_primary(&rig.primary()).unwrap(), Source::open_spec(&rig.spec).unwrap()] {
            for (point, model) in &rig.points {
                comes_back(&rig, &source, &format!("p{}", point.point), model);
            }
            // Any position comes back, those between begin and commit too.
            let end = source.resolve("end").unwrap().position.0;
            for _ in 0..60 {
                let position = rig.rng.u64(1..end);
                let moment = source.resolve(&position.to_string()).unwrap();
                assert!(moment.position.0 <= position);
                restore(&source, &moment, &rig.path("out"), true, &Progress::none()).unwrap();
            }
        }
        assert!(rig.store().list().unwrap().len() > 20);
        rig.close();
    }
}
