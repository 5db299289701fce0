//! The engine on a simulated disk, compared with a model: ordinary days, power cuts, dead daemons.
#![allow(clippy::unwrap_used, reason = "a panic is the failure")]

mod common;

use std::rc::Rc;

use common::*;
use salvol::format::ArchiveAt;
use salvol::io::simulated::{Dice, Ended, SimulatedPlatform};

fn shapes() -> Vec<Shape> {
    vec![
        SHAPE,
        Shape { archive_at: ArchiveAt::Inactive, ..SHAPE },
        Shape { backing: false, slots: 10, ..SHAPE },
        Shape { segment_blocks: 32, working_set: 4, slots: 7, volume_blocks: 60, ..SHAPE },
        Shape { volume_blocks: 380, slots: 11, ..SHAPE },
        Shape { segment_blocks: 300, working_set: 3, slots: 6, volume_blocks: 500, ..SHAPE },
    ]
}

/// Ordinary days: the log turns over many times, the volume is closed and opened, nothing is lost.
#[test]
fn days_without_accidents() {
    for (number, shape) in shapes().into_iter().enumerate() {
        let disk = shape.disk();
        let store = store_of(&shape);
        let model = Rc::new(Model::default());
        for day in 0..3 {
            let seed = number as u64 * 100 + day;
            let platform = SimulatedPlatform::new(seed, disk.clone());
            let volume = open(&platform, &store).unwrap().unwrap();
            assert_eq!(
                hammer(&platform, &volume, &model, seed, 6, 700, Mix::default()),
                Ended::Done,
                "{shape:?} {:?}",
                volume.status()
            );
            let check = volume.clone();
            let found = platform.block_on(async move { read_all(&check).await.unwrap() }).unwrap();
            assert_eq!(found, model.state());
            let closing = volume.clone();
            platform.block_on(async move { closing.close().await.unwrap() }).unwrap();
            drop(volume);
            platform.halt();
        }
        let segments = whole_log(&disk, &shape, &store);
        check_every_position(&segments, shape.working_set);
        assert!(segments.last_key_value().unwrap().0.0 > 3 * u64::from(shape.slots), "the log turned over");
    }
}

fn accidents(seed: u64, shape: Shape) {
    let mut dice = Dice::new(seed);
    let disk = shape.disk();
    let store = store_of(&shape);
    let model = Rc::new(Model::default());
    for round in 0..6 {
        let platform = SimulatedPlatform::new(dice.bits(), disk.clone());
        platform.crash_after(5 + dice.below(400));
        let opened = open(&platform, &store);
        let everything = dice.percent(40);
        if let Some(volume) = opened {
            let volume = volume.unwrap_or_else(|error| panic!("seed {seed} round {round} {shape:?}: {error}"));
            let check = volume.clone();
            if let Some(found) = platform.block_on(async move { read_all(&check).await.unwrap() }) {
                assert_eq!(found, model.state(), "seed {seed} round {round}");
            }
            let ended = hammer(&platform, &volume, &model, dice.bits(), 5, 200, Mix::default());
            assert_ne!(ended, Ended::Stuck, "seed {seed} round {round} {shape:?} {:#?}", volume.status());
        }
        platform.halt();
        if everything {
            disk.stop_machine();
        } else {
            disk.lose_power(&mut dice);
        }
        // What is found now is what must be found from now on.
        let platform = SimulatedPlatform::new(dice.bits(), disk.clone());
        let volume = open(&platform, &store)
            .unwrap()
            .unwrap_or_else(|error| panic!("seed {seed} round {round} {shape:?}: {error}"));
        let check = volume.clone();
        let found = platform.block_on(async move { read_all(&check).await.unwrap() }).unwrap();
        model.settle(&found, everything);
        assert_eq!(found, model.state(), "seed {seed} round {round}");
        drop(volume);
        platform.halt();
        disk.lose_power(&mut dice);
        if shape.backing {
            check_every_position(&whole_log(&disk, &shape, &store), shape.working_set);
        }
    }
}

/// Power cuts and dead daemons at random moments, some while recovering: what is left is a prefix that holds everything
/// flushed, or everything acknowledged when only the daemon died.
#[test]
fn accidents_at_random() {
    let seeds: u64 = std::env::var("SALVOL_SEEDS").ok().and_then(|seeds| seeds.parse().ok()).unwrap_or(60);
    let first: u64 = std::env::var("SALVOL_SEED").ok().and_then(|seed| seed.parse().ok()).unwrap_or(0);
    for seed in first..first + seeds {
        for (number, shape) in shapes().into_iter().enumerate() {
            println!("SALVOL_SEED={seed} SALVOL_SEEDS=1, shape {number}");
            accidents(seed, shape);
        }
    }
}

/// A crash at every I/O of a small workload, and again while recovering from it.
#[test]
fn a_crash_at_every_io() {
    let shape = Shape { segment_blocks: 32, working_set: 4, slots: 8, volume_blocks: 60, ..SHAPE };
    let mix = Mix { flushes: 10, fua: 10, ..Mix::default() };
    for mode in 0..2 {
        for ios in 1.. {
            let mut dice = Dice::new(ios * 2 + mode);
            let disk = shape.disk();
            let store = store_of(&shape);
            let model = Rc::new(Model::default());
            let platform = SimulatedPlatform::new(4711, disk.clone());
            platform.crash_after(ios);
            let mut ended = Ended::Crashed;
            if let Some(volume) = open(&platform, &store) {
                ended = hammer(&platform, &volume.unwrap(), &model, 5, 3, 60, mix);
            }
            platform.halt();
            if mode == 0 {
                disk.lose_power(&mut dice)
            } else {
                disk.stop_machine()
            }
            // Recovery crashes too, then succeeds.
            let platform = SimulatedPlatform::new(4712, disk.clone());
            platform.crash_after(1 + dice.below(6));
            drop(open(&platform, &store));
            platform.halt();
            disk.lose_power(&mut dice);
            let platform = SimulatedPlatform::new(4713, disk.clone());
            let volume = open(&platform, &store).unwrap().unwrap();
            let check = volume.clone();
            let found = platform.block_on(async move { read_all(&check).await.unwrap() }).unwrap();
            model.settle(&found, mode == 1);
            drop(volume);
            platform.halt();
            if ended == Ended::Done {
                assert!(ios > 100, "the workload is not trivial");
                break;
            }
        }
    }
}

/// Trims go on while writers wait for the archiver, and use the room kept for control entries; the header that lets a slot
/// be used again must still find its own. (On the real driver this once hung for ever.)
#[test]
fn trims_while_the_archiver_is_behind() {
    for seed in 0..40 {
        for archive_at in [ArchiveAt::Seal, ArchiveAt::Inactive] {
            let shape = Shape { archive_at, slots: 11, ..SHAPE };
            let disk = shape.disk();
            let store = store_of(&shape);
            let model = Rc::new(Model::default());
            for day in 0..3 {
                let platform = SimulatedPlatform::new(seed, disk.clone());
                let volume = open(&platform, &store).unwrap().unwrap();
                let mix = Mix { reads: 0, trims: 40, flushes: 2, write_blocks: 12, ..Mix::default() };
                let ended = hammer(&platform, &volume, &model, seed * 7 + day, 8, 250, mix);
                assert_eq!(ended, Ended::Done, "seed {seed} {:#?}", volume.status());
                let closing = volume.clone();
                platform.block_on(async move { closing.close().await.unwrap() }).unwrap();
                platform.halt();
                disk.stop_machine();
            }
        }
    }
}
