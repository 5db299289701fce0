//! The open segment in parts: what is safe in the store, and when.

use std::collections::BTreeMap;
use std::rc::Rc;
use std::time::Duration;

use super::common::*;
use salvol::archive::{MemoryStore, Mood, Store};
use salvol::format::{BLOCK_BYTES, BatchHeader, Block, Position, SegmentNumber};
use salvol::history::{Progress, Source, verify};
use salvol::index::Mapping;
use salvol::io::Platform;
use salvol::io::simulated::{Dice, Ended, SimulatedPlatform};
use salvol::log::Archiving;
use salvol::log::limits::PARTS_MAX;
use salvol::volume::{OpenError, OpenOptions, Volume};

/// Large segments, so that the newest is open for long.
const LONG: Shape = Shape { segment_blocks: 512, working_set: 4, slots: 8, volume_blocks: 800, ..SHAPE };

fn parts(store: &Option<std::sync::Arc<MemoryStore>>) -> Vec<SegmentNumber> {
    let names = store.as_ref().unwrap().list().unwrap();
    names.into_iter().filter(|(name, _)| name.part > 0).map(|(name, _)| name.segment).collect()
}

/// Lets `seconds` pass.
fn pass(platform: &SimulatedPlatform, seconds: u64) {
    let sleeper = platform.clone();
    platform.block_on(async move { sleeper.sleep(Duration::from_secs(seconds)).await }).unwrap();
}

/// Marks a point and waits until it is in the store; the point's number.
fn mark(platform: &SimulatedPlatform, volume: &SimVolume) -> u64 {
    let volume = volume.clone();
    let marked = platform.block_on(async move {
        let point = volume.synch(String::new(), String::new()).await.unwrap();
        volume.archived(point.position).await.unwrap();
        point.point
    });
    marked.unwrap()
}

#[test]
fn every_point_that_is_said_to_be_archived_is() {
    for seed in 0..30 {
        let (disk, store) = (LONG.disk(), store_of(&LONG));
        let mut dice = Dice::new(seed);
        let model = Rc::new(Model::default());
        let mut safe: Vec<(u64, BTreeMap<u64, u64>)> = Vec::new();
        for round in 0..6 {
            let platform = SimulatedPlatform::new(100 * seed + round, disk.clone());
            let volume = open(&platform, &store).unwrap().unwrap();
            for turn in 0..dice.below(6) {
                let ended = hammer(&platform, &volume, &model, 7 * seed + turn, 3, dice.below(40), Mix::default());
                assert_eq!(ended, Ended::Done);
                let state = model.state();
                safe.push((mark(&platform, &volume), state.clone()));
                archive_has(&store, &LONG, safe.last().unwrap().0, &state);
                assert!(parts(&store).len() <= PARTS_MAX + 2);
            }
            let end = dice.below(3);
            if end == 0 {
                let closing = volume.clone();
                platform.block_on(async move { closing.close().await.unwrap() }).unwrap();
            }
            platform.halt();
            match end {
                0 | 1 => disk.stop_machine(),
                _ => disk.lose_power(&mut dice),
            }
            let platform = SimulatedPlatform::new(100 * seed + 50 + round, disk.clone());
            let volume = open(&platform, &store).unwrap().unwrap();
            let all = platform.block_on(async move { read_all(&volume).await.unwrap() }).unwrap();
            model.settle(&all, end < 2);
            platform.halt();
            disk.stop_machine();
        }
        // The primary is gone.
        safe.iter().for_each(|(point, state)| archive_has(&store, &LONG, *point, state));
    }
}

#[test]
fn a_change_waits_no_longer_than_the_interval() {
    let (disk, store, model) = (LONG.disk(), store_of(&LONG), Rc::new(Model::default()));
    let platform = SimulatedPlatform::new(1, disk.clone());
    let volume = open(&platform, &store).unwrap().unwrap();
    for turn in 0..5 {
        let mix = Mix { synchs: 0, flushes: 0, fua: 0, ..Mix::default() };
        assert_eq!(hammer(&platform, &volume, &model, turn, 2, 20, mix), Ended::Done);
        let status = volume.status().archive;
        assert!(status.exposed_seconds > 0.0 || status.position >= volume.log().last_change().0);
        pass(&platform, 12);
        let status = volume.status().archive;
        assert_eq!((status.exposed_seconds, status.position), (0.0, volume.log().last_change().0));
        // An idle volume puts nothing more.
        let count = store.as_ref().unwrap().len();
        pass(&platform, 100);
        assert_eq!(store.as_ref().unwrap().len(), count);
    }
    // What is archived is what was written: a mark in it says at which position to look.
    let state = model.state();
    archive_has(&store, &LONG, mark(&platform, &volume), &state);
}

#[test]
fn without_an_interval_there_are_no_parts() {
    let (disk, store) = (LONG.disk(), store_of(&LONG));
    let platform = SimulatedPlatform::new(1, disk.clone());
    let (machine, device, held) = (platform.clone(), platform.device(), as_store(&store));
    let archiving = Archiving { interval: None, ..Archiving::default() };
    let options = OpenOptions { archiving, ..OpenOptions::default() };
    let opened = platform.block_on(async move { Volume::open(machine, device, held, options).await });
    let volume = opened.unwrap().unwrap();
    let marking = volume.clone();
    platform.block_on(async move { marking.synch("x".to_owned(), String::new()).await.unwrap() }).unwrap();
    pass(&platform, 60);
    assert!(store.as_ref().unwrap().is_empty());
    // Who waits for the archive waits for the segment to be full.
    let (waiting, churning) = (volume.clone(), volume.clone());
    platform.block_on(async move { churn(&churning, 1).await }).unwrap();
    let position = volume.log().look(|_, table| table.get(table.slot_of(SegmentNumber(1)).unwrap()).last_position);
    platform.block_on(async move { waiting.archived(position).await.unwrap() }).unwrap();
}

#[test]
fn who_cannot_have_it_archived_is_told() {
    for shape in [Shape { backing: false, ..SHAPE }, Shape { archive_at: salvol::format::ArchiveAt::Inactive, ..SHAPE }]
    {
        let store = store_of(&shape);
        let platform = SimulatedPlatform::new(1, shape.disk());
        let volume = open(&platform, &store).unwrap().unwrap();
        let refused = platform.block_on(async move { volume.archived(Position(1)).await }).unwrap();
        assert!(refused.unwrap_err().to_string().contains("archive"));
    }
}

/// Who hangs up is not waited for, however long the store is away.
#[test]
fn who_does_not_want_to_know_any_more_is_forgotten() {
    let (disk, store) = (LONG.disk(), store_of(&LONG));
    let platform = SimulatedPlatform::new(1, disk.clone());
    let volume = open(&platform, &store).unwrap().unwrap();
    store.as_ref().unwrap().set_error(Some("away".to_owned()));
    let asker = std::rc::Rc::new(());
    let (waiting, weak) = (volume.clone(), Rc::downgrade(&asker));
    let ended = Rc::new(std::cell::Cell::new(false));
    let told = Rc::clone(&ended);
    platform.spawn(async move {
        let point = waiting.synch(String::new(), String::new()).await.unwrap();
        let archived = waiting.archived_while(point.position, || weak.strong_count() > 0).await;
        told.set(archived.is_err());
    });
    pass(&platform, 60);
    assert!(!ended.get());
    drop(asker);
    pass(&platform, 60);
    assert!(ended.get());
}

/// The whole segment stands for its parts, also when the daemon died between the two.
#[test]
fn parts_go_when_their_segment_is_archived() {
    let (disk, store) = (LONG.disk(), store_of(&LONG));
    for round in 0..6 {
        let platform = SimulatedPlatform::new(round, disk.clone());
        let volume = open(&platform, &store).unwrap().unwrap();
        for _ in 0..3 {
            mark(&platform, &volume);
        }
        let current = volume.log().current_segment();
        assert!(parts(&store).contains(&current));
        let churning = volume.clone();
        platform.block_on(async move { churn(&churning, 1).await }).unwrap();
        if round % 2 == 0 {
            pass(&platform, 30);
            assert!(!parts(&store).contains(&current), "{:?}", parts(&store));
            let names = store.as_ref().unwrap().list().unwrap();
            assert!(names.iter().any(|(name, _)| name.segment == current && name.part == 0));
        }
        platform.halt();
        disk.stop_machine();
    }
    let platform = SimulatedPlatform::new(50, disk.clone());
    let volume = open(&platform, &store).unwrap().unwrap();
    mark(&platform, &volume);
    pass(&platform, 30);
    let current = volume.log().current_segment();
    assert!(parts(&store).iter().all(|segment| *segment == current), "{:?} {current}", parts(&store));
}

#[test]
fn many_points_make_few_parts() {
    let (disk, store, model) = (LONG.disk(), store_of(&LONG), Rc::new(Model::default()));
    let mut safe = Vec::new();
    for round in 0..3 {
        let platform = SimulatedPlatform::new(round, disk.clone());
        let volume = open(&platform, &store).unwrap().unwrap();
        for turn in 0..40 {
            let mix = Mix { synchs: 0, write_blocks: 1, ..Mix::default() };
            assert_eq!(hammer(&platform, &volume, &model, 100 * round + turn, 1, 2, mix), Ended::Done);
            let state = model.state();
            safe.push((mark(&platform, &volume), state));
            assert!(parts(&store).len() <= PARTS_MAX + 1, "{}", parts(&store).len());
        }
        platform.halt();
        disk.stop_machine();
    }
    safe.iter().for_each(|(point, state)| archive_has(&store, &LONG, *point, state));
}

/// A put that fails, or is done and says that it failed, or keeps rubbish, delays parts and spoils nothing.
#[test]
fn a_store_that_stumbles_gets_every_part_in_the_end() {
    let (disk, store, model) = (LONG.disk(), store_of(&LONG), Rc::new(Model::default()));
    let memory = store.clone().unwrap();
    let platform = SimulatedPlatform::new(1, disk.clone());
    let volume = open(&platform, &store).unwrap().unwrap();
    let mut safe = Vec::new();
    for turn in 0..12 {
        assert_eq!(hammer(&platform, &volume, &model, turn, 2, 10, Mix::default()), Ended::Done);
        match turn % 3 {
            0 => memory.set_error(Some("gone".to_owned())),
            1 => memory.set_corruption(Some(Box::new(|_, bytes| bytes.truncate(100)))),
            _ => {}
        }
        let marking = volume.clone();
        let marked = platform.block_on(async move { marking.synch(String::new(), String::new()).await.unwrap() });
        let point = marked.unwrap();
        safe.push((point.point, model.state()));
        pass(&platform, 5);
        assert_eq!(volume.status().archive.error.is_some(), turn % 3 < 2);
        assert_eq!(hammer(&platform, &volume, &model, 50 + turn, 2, 5, Mix::default()), Ended::Done);
        memory.set_error(None);
        memory.set_corruption(None);
        let waiting = volume.clone();
        platform.block_on(async move { waiting.archived(point.position).await.unwrap() }).unwrap();
        assert_eq!(volume.status().archive.error, None);
        safe.iter().for_each(|(point, state)| archive_has(&store, &LONG, *point, state));
    }
}

/// The primary is put back to what it was before; its store knows better, at once or when it is back.
#[test]
fn a_primary_that_was_rolled_back_is_found_out() {
    let (disk, store) = (LONG.disk(), store_of(&LONG));
    let memory = store.clone().unwrap();
    let platform = SimulatedPlatform::new(1, disk.clone());
    let volume = open(&platform, &store).unwrap().unwrap();
    mark(&platform, &volume);
    platform.halt();
    disk.stop_machine();
    let before = disk.fork();
    let platform = SimulatedPlatform::new(2, disk.clone());
    let volume = open(&platform, &store).unwrap().unwrap();
    let last = mark(&platform, &volume);
    platform.halt();

    let platform = SimulatedPlatform::new(3, before.fork());
    let refused = open(&platform, &store).unwrap().map(drop).unwrap_err();
    assert!(matches!(refused, OpenError::ArchiveAhead { position: Position(at), .. } if at == last), "{refused}");
    platform.halt();

    memory.set_error(Some("away".to_owned()));
    let platform = SimulatedPlatform::new(4, before.fork());
    let volume = open(&platform, &store).unwrap().unwrap();
    let marking = volume.clone();
    platform.block_on(async move { marking.synch("other".to_owned(), String::new()).await.unwrap() }).unwrap();
    memory.set_error(None);
    let count = memory.len();
    let churning = volume.clone();
    platform.block_on(async move { churn(&churning, 2).await }).unwrap();
    pass(&platform, 60);
    assert_eq!(memory.len(), count, "nothing is put into the archive of another past");
    let error = volume.status().archive.error.unwrap();
    assert!(error.contains("archive"), "{error}");
}

/// What is archived was durable on the primary before: a power cut at any I/O never leaves the archive ahead.
#[test]
fn the_archive_is_never_ahead() {
    let mix = Mix { synchs: 30, flushes: 5, ..Mix::default() };
    for ios in 1..160 {
        let (disk, store, model) = (LONG.disk(), store_of(&LONG), Rc::new(Model::default()));
        let mut dice = Dice::new(ios);
        let platform = SimulatedPlatform::new(ios, disk.clone());
        platform.crash_after(ios);
        if let Some(volume) = open(&platform, &store) {
            hammer(&platform, &volume.unwrap(), &model, ios, 3, 60, mix);
        }
        platform.halt();
        disk.lose_power(&mut dice);
        let platform = SimulatedPlatform::new(ios, disk.clone());
        let volume = open(&platform, &store).unwrap().unwrap_or_else(|error| panic!("{ios}: {error}"));
        mark(&platform, &volume);
        platform.halt();
    }
}

/// Opens after the primary lost what is behind `last`, which is given up.
fn open_at(platform: &SimulatedPlatform, store: &Option<std::sync::Arc<MemoryStore>>, last: u64) -> SimVolume {
    let (machine, device, held) = (platform.clone(), platform.device(), as_store(store));
    let options = OpenOptions { accept_loss: Some(Position(last)), ..OpenOptions::default() };
    platform.block_on(async move { Volume::open(machine, device, held, options).await }).unwrap().unwrap()
}

/// What an accepted loss leaves in the open segment is of an epoch that was given up: it is archived again under the new one,
/// even when nothing is written any more. (This once hung the volume's thread at the next detach.)
#[test]
fn what_an_accepted_loss_leaves_is_archived() {
    let (disk, store, model) = (LONG.disk(), store_of(&LONG), Rc::new(Model::default()));
    let platform = SimulatedPlatform::new(1, disk.clone());
    let volume = open(&platform, &store).unwrap().unwrap();
    assert_eq!(hammer(&platform, &volume, &model, 1, 2, 10, Mix::default()), Ended::Done);
    let (kept, state) = (mark(&platform, &volume), model.state());
    platform.halt();
    disk.stop_machine();
    let before = disk.fork();
    let platform = SimulatedPlatform::new(2, disk);
    let volume = open(&platform, &store).unwrap().unwrap();
    assert_eq!(hammer(&platform, &volume, &model, 2, 2, 10, Mix::default()), Ended::Done);
    let lost = mark(&platform, &volume);
    platform.halt();

    let platform = SimulatedPlatform::new(3, before.clone());
    let volume = open_at(&platform, &store, kept);
    let (waiting, closing) = (volume.clone(), volume.clone());
    platform.block_on(async move { waiting.archived(Position(kept)).await.unwrap() }).unwrap();
    assert_eq!(volume.status().archive.exposed_seconds, 0.0);
    archive_has(&store, &LONG, kept, &state);
    let source = salvol::history::Source::open_store(LONG.superblock(), as_store(&store)).unwrap();
    assert!(source.resolve(&format!("p{lost}")).is_err(), "it was given up");
    platform.block_on(async move { closing.close().await.unwrap() }).unwrap();
    platform.halt();
    before.stop_machine();
    // The noop behind the open entry stays where it is.
    let platform = SimulatedPlatform::new(4, before);
    let volume = open(&platform, &store).unwrap().unwrap();
    mark(&platform, &volume);
    archive_has(&store, &LONG, kept, &state);
}

/// What a store spoilt is there when the daemon is killed before it could put it again. It stands for nothing, and stops
/// nothing. (The archiver once compared its newest object, found it damaged, and put nothing for ever; a part with a
/// damaged frame was taken for one that is safe.)
#[test]
fn what_was_spoilt_before_a_crash_is_put_again() {
    for seed in 0..60 {
        let shape = if seed % 2 == 0 { LONG } else { Shape { slots: 11, ..SHAPE } };
        let (disk, store, model) = (shape.disk(), store_of(&shape), Rc::new(Model::default()));
        let memory = store.clone().unwrap();
        let mut dice = Dice::new(seed);
        let mut safe = Vec::new();
        for life in 0..3 {
            let platform = SimulatedPlatform::new(10 * seed + life, disk.clone());
            let volume = open(&platform, &store).unwrap().unwrap();
            assert_eq!(hammer(&platform, &volume, &model, seed + life, 2, 8, Mix::default()), Ended::Done);
            safe.push((mark(&platform, &volume), model.state()));
            // Data in the middle of an object, or all that is behind it.
            let mut at = Dice::new(dice.bits());
            memory.set_corruption(Some(Box::new(move |_, bytes| {
                let from = 4400 + at.below(bytes.len() as u64 - 4400) as usize;
                if at.percent(50) { bytes.truncate(from) } else { bytes[from] ^= 1 }
            })));
            let ended = hammer(&platform, &volume, &model, 50 + seed + life, 2, dice.below(40), Mix::default());
            assert_eq!(ended, Ended::Done);
            let marking = volume.clone();
            platform.block_on(async move { marking.synch(String::new(), String::new()).await.unwrap() }).unwrap();
            let ios = platform.device_ios() + 1 + dice.below(12);
            platform.crash_after(ios);
            pass_until(&platform, 2);
            platform.halt();
            disk.stop_machine();
            memory.set_corruption(None);
        }
        let platform = SimulatedPlatform::new(10 * seed + 5, disk.clone());
        let volume = open(&platform, &store).unwrap().unwrap();
        safe.push((mark(&platform, &volume), model.state()));
        assert_eq!(volume.status().archive.error, None);
        platform.halt();
        disk.stop_machine();
        let store: std::sync::Arc<dyn Store> = memory;
        let source = salvol::history::Source::open_store(shape.superblock(), Some(store)).unwrap();
        for (point, state) in &safe {
            restored(&source, *point, state);
        }
    }
}

/// Lets `seconds` pass, or less when the machine crashes before.
fn pass_until(platform: &SimulatedPlatform, seconds: u64) {
    let sleeper = platform.clone();
    let _ = platform.block_on(async move { sleeper.sleep(Duration::from_secs(seconds)).await });
}

/// Restores a point from the archive, data and all.
fn restored(source: &salvol::history::Source, point: u64, state: &BTreeMap<u64, u64>) {
    let scratch = tempfile::tempdir().unwrap();
    let path = scratch.path().join("volume");
    let moment = source.resolve(&format!("p{point}")).unwrap();
    let report = salvol::history::restore(source, &moment, &path, false, &salvol::history::Progress::none()).unwrap();
    assert_eq!(report.damaged, [], "p{point}");
    let bytes = std::fs::read(&path).unwrap();
    for (block, bytes) in bytes.chunks(salvol::format::BLOCK_BYTES).enumerate() {
        let block = block as u64;
        assert_eq!(stamp_of(block, bytes), state.get(&block).copied().unwrap_or(0), "p{point} block {block}");
    }
}

/// The archive has whole segments of a past that was given up; of the one that goes on only parts. Who has nothing but the
/// archive goes on with the parts.
#[test]
fn parts_of_the_new_past_count_for_more_than_segments_of_the_old() {
    let (disk, store, model) = (LONG.disk(), store_of(&LONG), Rc::new(Model::default()));
    let platform = SimulatedPlatform::new(1, disk.clone());
    let volume = open(&platform, &store).unwrap().unwrap();
    assert_eq!(hammer(&platform, &volume, &model, 1, 2, 10, Mix::default()), Ended::Done);
    let (kept, state) = (mark(&platform, &volume), model.state());
    platform.halt();
    disk.stop_machine();
    let before = disk.fork();
    let platform = SimulatedPlatform::new(2, disk);
    let volume = open(&platform, &store).unwrap().unwrap();
    let churning = volume.clone();
    platform.block_on(async move { churn(&churning, 2).await }).unwrap();
    mark(&platform, &volume);
    platform.halt();

    let platform = SimulatedPlatform::new(3, before.clone());
    let volume = open_at(&platform, &store, kept);
    let new = mark(&platform, &volume);
    archive_has(&store, &LONG, kept, &state);
    archive_has(&store, &LONG, new, &state);
    let source = salvol::history::Source::open_store(LONG.superblock(), as_store(&store)).unwrap();
    let listed: Vec<u64> = source.points().unwrap().points.iter().map(|info| info.position).collect();
    assert_eq!(listed, [kept, new], "and none of the past that was given up");
}

/// Parts are merged and deleted, and segments archived whole, under a reader that has listed them.
#[test]
fn a_reader_finds_what_took_the_place_of_parts() {
    let (disk, store) = (LONG.disk(), store_of(&LONG));
    let platform = SimulatedPlatform::new(1, disk);
    let volume = open(&platform, &store).unwrap().unwrap();
    let reader = || salvol::history::Source::open_store(LONG.superblock(), as_store(&store)).unwrap();
    let points: Vec<u64> = (0..20).map(|_| mark(&platform, &volume)).collect();
    let sources = [reader(), reader(), reader()];
    for _ in 0..PARTS_MAX {
        mark(&platform, &volume);
    }
    let listed = |source: &salvol::history::Source| {
        let listed: Vec<u64> = source.points().unwrap().points.iter().map(|info| info.position).collect();
        points.iter().all(|point| listed.contains(point))
    };
    assert!(listed(&sources[0]), "when they were merged");
    let churning = volume.clone();
    platform.block_on(async move { churn(&churning, 1).await }).unwrap();
    pass(&platform, 30);
    assert!(listed(&sources[1]), "when the segment was archived");
    assert!(points.iter().all(|point| sources[2].resolve(&format!("p{point}")).is_ok()));
}

/// What losing the primary would lose is counted from the first change that is not archived: not from the last sign of life
/// of a volume that rested, and not from the start of a segment that is in the store in parts.
#[test]
fn only_changes_are_exposed() {
    let (disk, store) = (LONG.disk(), store_of(&LONG));
    let platform = SimulatedPlatform::new(1, disk);
    let volume = open(&platform, &store).unwrap().unwrap();
    for _ in 0..2 {
        mark(&platform, &volume);
        pass(&platform, 3600);
        let writing = volume.clone();
        platform.block_on(async move { put(&writing, 0..4, 7).await }).unwrap();
        let exposed = volume.status().archive.exposed_seconds;
        assert!(exposed > 0.0 && exposed < 1.0, "{exposed}");
    }
    let safe = mark(&platform, &volume);
    pass(&platform, 3600);
    store.as_ref().unwrap().set_error(Some("away".to_owned()));
    for segments in 1..3 {
        let churning = volume.clone();
        platform.block_on(async move { churn(&churning, 1).await }).unwrap();
        let status = volume.status().archive;
        assert!(status.position >= safe, "{segments} segments later only {} is archived", status.position);
        assert!(status.exposed_seconds < 60.0, "{segments} segments later: {}", status.exposed_seconds);
    }
    store.as_ref().unwrap().set_error(None);
    pass(&platform, 60);
    assert_eq!(volume.status().archive.exposed_seconds, 0.0);
}

/// Writes blocks 0 to 4.
fn write(platform: &SimulatedPlatform, volume: &SimVolume, stamp: u64) {
    let volume = volume.clone();
    platform.block_on(async move { put(&volume, 0..4, stamp).await }).unwrap();
}

/// Churns until the log is `segments` segments further.
fn churned(platform: &SimulatedPlatform, volume: &SimVolume, segments: u64) {
    let volume = volume.clone();
    platform.block_on(async move { churn(&volume, segments).await }).unwrap();
}

/// The newest that is archived is a batch in the middle of a segment that is sealed now, and its header has rotted. (The
/// archive was once said to be of another past.)
#[test]
fn a_rotten_header_is_held_against_nobody() {
    let (disk, store) = (LONG.disk(), store_of(&LONG));
    let platform = SimulatedPlatform::new(1, disk.clone());
    let volume = open(&platform, &store).unwrap().unwrap();
    write(&platform, &volume, 1);
    let safe = mark(&platform, &volume);
    let segment = volume.log().current_segment();
    store.as_ref().unwrap().set_mood(Mood::ReadOnly);
    churned(&platform, &volume, 2);
    let slot = volume.log().look(|_, table| table.slot_of(segment).unwrap());
    let place = LONG.superblock().geometry.slot_place(slot).bytes();
    let closing = volume.clone();
    let _ = platform.block_on(async move { closing.close().await });
    platform.halt();
    disk.stop_machine();
    let mut safe_at = None;
    for at in (1..LONG.segment_blocks).map(|block| place + u64::from(block) * BLOCK_BYTES as u64) {
        let mut bytes = vec![0; BLOCK_BYTES];
        disk.peek(at, &mut bytes);
        if BatchHeader::parse(&bytes, &LONG.superblock()).is_ok_and(|batch| batch.header.position == Position(safe)) {
            safe_at = Some(at);
        }
    }
    let rot = |at: u64| {
        let mut bytes = vec![0; BLOCK_BYTES];
        disk.peek(at, &mut bytes);
        bytes[100] ^= 1;
        disk.poke(at, &bytes);
    };
    // The header; then the summary's last block as well, so that nothing says any more what the slot holds.
    for at in [safe_at.unwrap(), place + LONG.superblock().geometry.segment_bytes() as u64 - BLOCK_BYTES as u64] {
        rot(at);
        let platform = SimulatedPlatform::new(3, disk.fork());
        let opened = open(&platform, &store).unwrap();
        assert!(!matches!(opened, Err(OpenError::ArchiveDiffers { .. })), "{}", opened.err().unwrap());
        platform.halt();
    }
}

/// The store lost every part while it was away. What it does not have is not archived, whatever was said before. (It once
/// was, and who waited for a point behind it was told that it is safe.)
#[test]
fn parts_that_the_store_has_lost_are_not_archived() {
    let (disk, store) = (LONG.disk(), store_of(&LONG));
    let memory = store.clone().unwrap();
    let platform = SimulatedPlatform::new(1, disk);
    let volume = open(&platform, &store).unwrap().unwrap();
    write(&platform, &volume, 1);
    let safe = mark(&platform, &volume);
    memory.set_error(Some("away".to_owned()));
    write(&platform, &volume, 2);
    pass(&platform, 30);
    memory.set_error(None);
    for (name, _) in memory.list().unwrap() {
        memory.delete(&name).unwrap();
    }
    memory.set_mood(Mood::ReadOnly);
    pass(&platform, 60);
    assert!(memory.is_empty());
    let position = volume.log().archived_position();
    assert!(position < Position(safe), "the archive is empty, and {position} is said to be in it");
    memory.set_mood(Mood::Well);
    pass(&platform, 60);
    assert_eq!(volume.log().archived_position(), volume.log().last_change());
}

/// What cannot be deleted takes up room, and nothing else waits for it. (Nothing was archived any more in parts, once one
/// could not be deleted.)
#[test]
fn a_store_that_deletes_nothing_gets_parts_all_the_same() {
    let store = std::sync::Arc::new(WornStore::default());
    let platform = SimulatedPlatform::new(1, LONG.disk());
    let volume = open_worn(&platform, &store);
    store.no_delete.store(true, std::sync::atomic::Ordering::Relaxed);
    write(&platform, &volume, 1);
    mark(&platform, &volume);
    churned(&platform, &volume, 1);
    pass(&platform, 30);
    for stamp in 0..10 {
        write(&platform, &volume, stamp);
        pass(&platform, 600);
        let status = volume.status().archive;
        assert!(status.exposed_seconds < 60.0, "exposed for {} s", status.exposed_seconds);
        assert!(status.error.is_some_and(|error| error.contains("stay")));
    }
    store.no_delete.store(false, std::sync::atomic::Ordering::Relaxed);
    pass(&platform, 60);
    assert_eq!(volume.status().archive.error, None);
    let current = volume.log().current_segment();
    assert!(store.list().unwrap().iter().all(|(name, _)| name.part == 0 || name.segment == current));
}

/// A primary that was rolled back, and went on while its store was away, filled segments that the archive has otherwise. No
/// accepted loss makes one past of the two: attach says so at once, and changes nothing. (It once named a command that came
/// back to the same.)
#[test]
fn who_went_on_in_another_past_is_told_what_to_do() {
    let (disk, store) = (LONG.disk(), store_of(&LONG));
    let memory = store.clone().unwrap();
    let platform = SimulatedPlatform::new(1, disk.clone());
    let volume = open(&platform, &store).unwrap().unwrap();
    mark(&platform, &volume);
    platform.halt();
    disk.stop_machine();
    let before = disk.fork();
    let platform = SimulatedPlatform::new(2, disk);
    let volume = open(&platform, &store).unwrap().unwrap();
    churned(&platform, &volume, 3);
    mark(&platform, &volume);
    platform.halt();
    memory.set_error(Some("away".to_owned()));
    let platform = SimulatedPlatform::new(4, before.clone());
    let volume = open(&platform, &store).unwrap().unwrap();
    churned(&platform, &volume, 1);
    memory.set_error(None);
    let archived = memory.list().unwrap();
    pass(&platform, 60);
    assert!(volume.status().archive.error.is_some());
    let last = volume.log().tail().0;
    platform.halt();
    before.stop_machine();
    let superblock = || {
        let mut bytes = vec![0; BLOCK_BYTES];
        before.peek(0, &mut bytes);
        bytes
    };
    let found = superblock();
    for accept_loss in [None, Some(last), None] {
        let platform = SimulatedPlatform::new(5, before.clone());
        let (machine, device, held) = (platform.clone(), platform.device(), as_store(&store));
        let options = OpenOptions { accept_loss, ..OpenOptions::default() };
        let opened = platform.block_on(async move { Volume::open(machine, device, held, options).await }).unwrap();
        let refused = opened.map(drop).unwrap_err();
        assert!(matches!(refused, OpenError::ArchiveApart { segment: SegmentNumber(1) }), "{refused}");
        let text = refused.to_string();
        assert!(text.contains("rebuild") && !text.contains("--accept-loss"), "{text}");
        assert!(superblock() == found && memory.list().unwrap() == archived);
        platform.halt();
        before.stop_machine();
    }
    // What the primary has can be had while the store is away.
    memory.set_error(Some("away".to_owned()));
    let platform = SimulatedPlatform::new(6, before);
    let volume = open(&platform, &store).unwrap().unwrap();
    assert!(!platform.block_on(async move { read_all(&volume).await.unwrap() }).unwrap().is_empty());
}

/// A sector of the open segment that goes bad loses nothing that is in a part: it is read from there, and goes from there into the part that takes
/// the place of many, and into the whole segment. (It read as an error, and was lost when the parts were deleted.)
#[test]
fn a_bad_sector_of_the_open_segment_is_read_from_a_part() {
    for merges in [false, true] {
        let (disk, store) = (LONG.disk(), store_of(&LONG));
        let platform = SimulatedPlatform::new(1, disk.clone());
        let volume = open(&platform, &store).unwrap().unwrap();
        let user = volume.clone();
        let place = platform
            .block_on(async move {
                put(&user, 7..8, 1).await;
                user.log().look(|index, _| index.get(Block(7)))
            })
            .unwrap();
        let Mapping::At(place, _) = place else { panic!("{place:?}") };
        // The second says that the first is durable: what cannot be read is no end of the log then.
        mark(&platform, &volume);
        mark(&platform, &volume);
        drop(volume);
        platform.halt();
        disk.stop_machine();
        disk.fail_reads(place.bytes(), 1);
        let platform = SimulatedPlatform::new(2, disk.clone());
        let volume = open(&platform, &store).unwrap().unwrap();
        let read = |volume: &SimVolume| {
            let reader = volume.clone();
            platform.block_on(async move { get(&reader, 7).await }).unwrap()
        };
        assert_eq!(read(&volume).unwrap(), 1);
        let writer = volume.clone();
        let point = if merges {
            for stamp in 2..PARTS_MAX as u64 + 6 {
                let writer = volume.clone();
                platform.block_on(async move { put(&writer, 9..10, stamp).await }).unwrap();
                mark(&platform, &volume);
            }
            assert!(parts(&store).len() < PARTS_MAX, "they were merged");
            mark(&platform, &volume)
        } else {
            platform.block_on(async move {
                let segment = writer.log().current_segment();
                for stamp in 2.. {
                    put(&writer, 9..10, stamp).await;
                    if writer.log().current_segment() > segment {
                        break;
                    }
                }
            });
            let point = mark(&platform, &volume);
            pass(&platform, 30);
            assert!(parts(&store).iter().all(|segment| *segment > SegmentNumber(1)));
            point
        };
        let source = Source::open_store(LONG.superblock(), as_store(&store)).unwrap();
        let report = verify(&source, &Progress::none()).unwrap();
        assert!(report.ok, "{:?}", report.findings);
        assert!(source.resolve(&format!("p{point}")).is_ok());
        assert_eq!(read(&volume).unwrap(), 1);
        platform.halt();
    }
}
