//! The engine on a simulated disk, compared with a model: ordinary days, power cuts, dead daemons.

use std::rc::Rc;

use super::common::*;
use salvol::format::{ArchiveAt, Block};
use salvol::index::Mapping;
use salvol::io::Platform;
use salvol::io::simulated::{Dice, Ended, SimulatedPlatform};
use salvol::log::scan;

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

/// Spells of random and of sequential overwriting: what the cleaner has read ahead may wait for a whole turn of the log,
/// until its segment's slot holds another segment, whose blocks may be at the very same places.
#[test]
fn copies_that_waited_too_long_are_not_placed() {
    for seed in 0..24 {
        let shape = Shape {
            backing: false,
            slots: 10 + (seed / 4 % 3) as u32,
            volume_blocks: [128, 192, 250, 320][seed as usize % 4],
            ..SHAPE
        };
        let blocks = shape.volume_blocks;
        let disk = shape.disk();
        let platform = SimulatedPlatform::new(seed, disk.clone());
        let volume = open(&platform, &None).unwrap().unwrap();
        let spells = async move {
            let mut dice = Dice::new(seed);
            let mut crcs = vec![None; blocks as usize];
            let mut stamp = 0;
            for spell in 0..60 {
                let random = spell % 2 == 0;
                let stride = 1 + dice.below(16);
                let writes = if random { 20 + dice.below(60) } else { 100 + dice.below(1200 / stride) };
                let mut next = 0;
                for _ in 0..writes {
                    let count = if random { 1 + dice.below(6) } else { stride };
                    let first = if random { dice.below(blocks - count) } else { next };
                    next = (first + count) % (blocks - count);
                    stamp += 1;
                    put(&volume, first..first + count, stamp).await;
                    for block in first..first + count {
                        crcs[block as usize] = Some(crc_of(block, stamp));
                    }
                    volume.log().look(|index, _| {
                        for (block, crc) in crcs.iter().enumerate() {
                            let found = match index.get(Block(block as u64)) {
                                Mapping::At(_, crc) => Some(crc),
                                _ => None,
                            };
                            assert_eq!(found, *crc, "seed {seed} spell {spell} block {block}");
                        }
                    });
                }
            }
            volume.close().await.unwrap();
        };
        platform.block_on(spells).unwrap_or_else(|| panic!("seed {seed}: stuck"));
        platform.halt();
        disk.stop_machine();
        // Replay compares every copy with what it copies.
        open(&SimulatedPlatform::new(seed, disk), &None).unwrap().unwrap();
    }
}

/// Trims that are on their way while the volume is closed: the record of the clean close names nothing that a power cut
/// can take away.
#[test]
fn a_clean_close_is_durable() {
    let shape = Shape { backing: false, ..SHAPE };
    for seed in 0..40 {
        let disk = shape.disk();
        let platform = SimulatedPlatform::new(seed, disk.clone());
        let volume = open(&platform, &None).unwrap().unwrap();
        let writer = volume.clone();
        platform.block_on(async move { put(&writer, 0..200, 5).await }).unwrap();
        for parity in 0..2 {
            let log = volume.log().clone();
            platform.spawn(async move {
                for block in 0..100 {
                    let Ok(position) = log.unmap(Block(block * 2 + parity), 1, false).await else { return };
                    if log.acknowledged(position).await.is_err() {
                        return;
                    }
                }
            });
        }
        let closing = volume.clone();
        platform.block_on(async move { closing.close().await.unwrap() }).unwrap();
        let device = platform.device();
        let superblock = platform.block_on(async move { scan::superblock(&device).await.unwrap().unwrap().0 });
        let recorded = superblock.unwrap().clean_close.unwrap().position;
        assert!(recorded <= volume.log().positions().1, "seed {seed}: {recorded} is not durable");
        platform.halt();
        disk.lose_power(&mut Dice::new(seed));
        if let Err(error) = open(&SimulatedPlatform::new(seed + 1, disk), &None).unwrap() {
            panic!("seed {seed}: {error}");
        }
    }
}

/// Attaching and detaching take up the log too, and may do so when hardly any room is left for the copies that are due: at
/// every offset in a segment, more often than control entries fit behind it.
#[test]
fn attaching_and_detaching_at_every_offset() {
    for shape in [SHAPE, Shape { backing: false, slots: 10, ..SHAPE }, Shape { slots: 10, ..SHAPE }] {
        let disk = shape.disk();
        let store = store_of(&shape);
        let model = Rc::new(Model::default());
        let platform = SimulatedPlatform::new(1, disk.clone());
        let volume = open(&platform, &store).unwrap().unwrap();
        assert_eq!(hammer(&platform, &volume, &model, 1, 4, 200, Mix::default()), Ended::Done);
        let closing = volume.clone();
        platform.block_on(async move { closing.close().await.unwrap() }).unwrap();
        platform.halt();
        for round in 0..700 {
            let platform = SimulatedPlatform::new(round, disk.clone());
            let volume = open(&platform, &store).unwrap().unwrap();
            let visit = async move {
                if round % 12 == 0 {
                    put(&volume, round % 250..round % 250 + 1, round + 1).await;
                }
                volume.close().await.unwrap();
            };
            platform.block_on(visit).unwrap_or_else(|| panic!("{shape:?} round {round}: stuck"));
            platform.halt();
            disk.stop_machine();
        }
    }
}
