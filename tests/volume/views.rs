//! Views of the past on a real file: every point is a volume, from primary and archive and from the archive alone, while the
//! volume goes on; what is written to one stays in its overlay.

use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::rig::{BLOCKS, Model, Rig, WORKING_SET, content};
use salvol::format::{ArchiveAt, BLOCK_BYTES, Block};
use salvol::history::{HistoryError, Past, Scene, Source, Writable};
use salvol::io::Buffer;
use salvol::io::simulated::{SimulatedDisk, SimulatedPlatform};
use salvol::volume::{Operation, Request, RequestError, Serve};

/// A view, and a thread's worth of machine for it.
struct Seen {
    machine: SimulatedPlatform,
    past: Past<SimulatedPlatform>,
}

impl Seen {
    fn open(source: &Source, at: &str, writable: &Writable) -> Result<Self, HistoryError> {
        let machine = SimulatedPlatform::new(1, SimulatedDisk::new(BLOCK_BYTES as u64));
        let past = Past::open(machine.clone(), Scene::new(source, source.resolve(at)?)?, writable, format!("v@{at}"))?;
        Ok(Self { machine, past })
    }

    fn at(source: &Source, at: &str) -> Self {
        Self::open(source, at, &Writable::No).unwrap_or_else(|error| panic!("{at}: {error}"))
    }

    fn serve(&self, operation: Operation, block: u64, blocks: u32, buffer: &Buffer) -> Result<(), RequestError> {
        let request = Request { operation, block: Block(block), blocks, buffer: buffer.clone() };
        let past = self.past.clone();
        self.machine.block_on(async move { past.serve(&request).await }).unwrap()
    }

    fn read(&self, block: u64, blocks: u32) -> Vec<u8> {
        let buffer = Buffer::new(blocks as usize * BLOCK_BYTES).unwrap();
        // What is not filled must show.
        buffer.write(|bytes| bytes.fill(0xee));
        self.serve(Operation::Read, block, blocks, &buffer).unwrap_or_else(|error| panic!("block {block}: {error}"));
        buffer.bytes().to_vec()
    }

    fn write(&self, block: u64, data: &[u8], fua: bool) {
        let buffer = Buffer::new(data.len()).unwrap();
        buffer.copy_from(0, data);
        self.serve(Operation::Write { fua }, block, (data.len() / BLOCK_BYTES) as u32, &buffer).unwrap();
    }

    fn order(&self, operation: Operation, block: u64, blocks: u32) {
        self.serve(operation, block, blocks, &Buffer::new(BLOCK_BYTES).unwrap().part(0, 0)).unwrap();
    }

    /// Compares everything with the model, in requests of many blocks.
    fn is(&self, model: &Model) {
        for first in (0..BLOCKS).step_by(64) {
            let blocks = 64.min(BLOCKS - first) as u32;
            for (rank, data) in self.read(first, blocks).chunks(BLOCK_BYTES).enumerate() {
                let block = first + rank as u64;
                assert!(data == content(model[block as usize]), "block {block}");
            }
        }
    }
}

/// A volume with points, at rest.
fn volume(points: usize, archive_at: ArchiveAt, seed: u64) -> Option<Rig> {
    let mut rig = Rig::new(archive_at, true, seed)?;
    for point in 0..points {
        let steps = rig.rng.usize(18..26);
        rig.steps(steps);
        rig.synch(&format!("point {point}"));
        if point % 11 == 7 {
            rig.kill();
            rig.attach();
        }
    }
    rig.settle();
    Some(rig)
}

#[test]
fn every_point_is_a_volume() {
    for (archive_at, seed) in [(ArchiveAt::Seal, 60), (ArchiveAt::Inactive, 61)] {
        let Some(mut rig) = volume(60, archive_at, seed) else { return };
        let source = Source::open_primary(&rig.primary()).unwrap();
        for (mark, model) in &rig.points {
            Seen::at(&source, &format!("p{}", mark.point)).is(model);
        }
        rig.close();
        std::fs::remove_file(rig.primary()).unwrap();
        let source = Source::open_spec(&rig.spec).unwrap();
        let mut seen = 0;
        for (mark, model) in &rig.points {
            match Seen::open(&source, &format!("p{}", mark.point), &Writable::No) {
                Ok(view) => {
                    view.is(model);
                    seen += 1;
                }
                // The newest are on the primary only.
                Err(error) => assert!(archive_at == ArchiveAt::Inactive && error.is_no_point(), "{error}"),
            }
        }
        assert!(seen > 30, "{seen}");
    }
}

#[test]
fn a_view_stays_what_it_is_while_its_slots_get_other_segments() {
    let Some(mut rig) = volume(20, ArchiveAt::Seal, 62) else { return };
    let source = Source::open_primary(&rig.primary()).unwrap();
    let views: Vec<(Seen, Model)> = rig.points[10..]
        .iter()
        .map(|(mark, model)| (Seen::at(&source, &format!("p{}", mark.point)), model.clone()))
        .collect();
    drop(source);
    // Half of them have read something before, the others nothing.
    for (view, _) in views.iter().step_by(2) {
        view.read(0, 16);
    }
    for _ in 0..4 {
        rig.run_to_segment(rig.segment() + u64::from(WORKING_SET));
        rig.settle();
        for (view, model) in &views {
            view.is(model);
        }
    }
    assert!(views.iter().all(|(view, _)| view.past.status().read_errors == 0));
}

#[test]
fn what_rots_under_a_view_comes_from_the_archive_or_is_an_error() {
    let Some(mut rig) = volume(20, ArchiveAt::Seal, 63) else { return };
    rig.close();
    let (mark, model) = rig.points.last().unwrap().clone();
    let source = Source::open_primary(&rig.primary()).unwrap();
    let view = Seen::at(&source, &format!("p{}", mark.point));
    // All of the log, headers and data.
    let length = std::fs::metadata(rig.primary()).unwrap().len();
    let log = salvol::format::FIRST_SLOT_BLOCK as u64 * BLOCK_BYTES as u64;
    for at in (log..length - BLOCK_BYTES as u64).step_by(BLOCK_BYTES) {
        rig.primary_file().write_all_at(&[0x5a], at + 77).unwrap();
    }
    view.is(&model);
    std::fs::remove_dir_all(rig.path("archive")).unwrap();
    let fresh = Seen { machine: view.machine.clone(), past: view.past.clone() };
    let buffer = Buffer::new(BLOCK_BYTES).unwrap();
    let failed = (0..BLOCKS).filter(|block| fresh.serve(Operation::Read, *block, 1, &buffer).is_err()).count();
    assert!(failed > 0 && fresh.past.status().read_errors == failed as u64, "{failed}");
}

fn overlays(rig: &Rig) -> Vec<Writable> {
    let directory = rig.path("overlays");
    std::fs::create_dir_all(&directory).unwrap();
    vec![Writable::Discarded(directory.clone()), Writable::Kept(directory.join("kept"))]
}

/// Random requests to a view and a model; returns what was flushed last.
fn scribble(view: &Seen, model: &mut Model, rng: &mut fastrand::Rng, count: usize) -> Model {
    let mut flushed = model.clone();
    for _ in 0..count {
        let blocks = rng.u64(1..20);
        let block = rng.u64(0..BLOCKS - blocks);
        match rng.u32(0..10) {
            0..5 => {
                let seeds: Vec<u64> = (0..blocks).map(|_| rng.u64(1..)).collect();
                let data: Vec<u8> = seeds.iter().flat_map(|seed| content(*seed)).collect();
                let fua = rng.u32(0..8) == 0;
                view.write(block, &data, fua);
                model[block as usize..][..seeds.len()].copy_from_slice(&seeds);
                if fua {
                    flushed = model.clone();
                }
            }
            5..8 => {
                let zeroes = rng.bool();
                let operation = if zeroes { Operation::WriteZeroes { fua: false } } else { Operation::Discard };
                view.order(operation, block, blocks as u32);
                model[block as usize..][..blocks as usize].fill(0);
            }
            8 => {
                view.order(Operation::Flush, 0, 0);
                flushed = model.clone();
            }
            _ => {
                let data = view.read(block, blocks as u32);
                for (rank, data) in data.chunks(BLOCK_BYTES).enumerate() {
                    assert!(data == content(model[block as usize + rank]));
                }
            }
        }
    }
    flushed
}

#[test]
fn what_is_written_stays_in_the_overlay() {
    let Some(rig) = volume(12, ArchiveAt::Seal, 64) else { return };
    let source = Source::open_primary(&rig.primary()).unwrap();
    let (mark, model) = rig.points[5].clone();
    let at = format!("p{}", mark.point);
    let mut rng = fastrand::Rng::with_seed(7);
    for writable in overlays(&rig) {
        let view = Seen::open(&source, &at, &writable).unwrap();
        view.is(&model);
        let mut written = model.clone();
        scribble(&view, &mut written, &mut rng, 400);
        view.is(&written);
        view.order(Operation::Flush, 0, 0);
        drop(view);
        // The point is what it was.
        Seen::at(&source, &at).is(&model);
        let again = Seen::open(&source, &at, &writable).unwrap();
        again.is(if matches!(writable, Writable::Kept(_)) { &written } else { &model });
    }
    let left: Vec<PathBuf> =
        std::fs::read_dir(rig.path("overlays")).unwrap().map(|entry| entry.unwrap().path()).collect();
    assert_eq!(left, [rig.path("overlays").join("kept")], "the discarded one leaves nothing");
}

/// A daemon that dies leaves the file as it is, with the map as it was at the last flush.
#[test]
fn an_overlay_has_what_was_flushed() {
    let Some(rig) = volume(12, ArchiveAt::Seal, 65) else { return };
    let source = Source::open_primary(&rig.primary()).unwrap();
    let (mark, model) = rig.points[5].clone();
    let at = format!("p{}", mark.point);
    let kept = Writable::Kept(rig.path("kept"));
    let mut rng = fastrand::Rng::with_seed(8);
    let mut written = model;
    for round in 0..20 {
        let view = Seen::open(&source, &at, &kept).unwrap();
        view.is(&written);
        scribble(&view, &mut written, &mut rng, 40);
        view.order(Operation::Flush, 0, 0);
        // Written and not flushed: it may be there or not. Nothing else changes.
        let block = rng.u64(0..BLOCKS);
        view.write(block, &content(1 + round), false);
        drop(view);
        let view = Seen::open(&source, &at, &kept).unwrap();
        if view.read(block, 1) == content(1 + round) {
            written[block as usize] = 1 + round;
        }
        view.is(&written);
    }
}

#[test]
fn overlays_of_anything_are_refused() {
    let Some(rig) = volume(12, ArchiveAt::Seal, 66) else { return };
    let source = Source::open_primary(&rig.primary()).unwrap();
    let [one, other] = [3, 7].map(|rank: usize| format!("p{}", rig.points[rank].0.point));
    let file = rig.path("kept");
    let kept = Writable::Kept(file.clone());
    let refused = |at: &str| Seen::open(&source, at, &kept).err().map(|error| error.to_string());
    let held = Seen::open(&source, &one, &kept).unwrap();
    assert!(refused(&one).is_some_and(|error| error.contains("in use by another view")));
    drop(held);
    assert!(refused(&other).is_some_and(|error| error.contains("another volume, history or point")));
    let header = std::fs::read(&file).unwrap()[..BLOCK_BYTES].to_vec();
    let put = |bytes: &[u8]| rig_file(&file).write_all_at(bytes, 0).unwrap();
    for at in (0..128).chain(BLOCK_BYTES - 16..BLOCK_BYTES) {
        let mut damaged = header.clone();
        damaged[at] ^= 1;
        put(&damaged);
        assert!(refused(&one).is_some(), "byte {at}");
    }
    put(&header);
    // A map that says nothing known of a block makes it an error, until it is written: it may have been written before.
    rig_file(&file).write_all_at(&vec![0xff; BLOCKS as usize], BLOCK_BYTES as u64).unwrap();
    let seen = Seen::open(&source, &one, &kept).unwrap();
    let buffer = Buffer::new(BLOCK_BYTES).unwrap();
    for block in 0..BLOCKS {
        let read = seen.serve(Operation::Read, block, 1, &buffer);
        assert!(matches!(read, Err(RequestError::Unreadable { .. })), "block {block}: {read:?}");
    }
    buffer.write(|bytes| bytes.fill(7));
    seen.serve(Operation::Write { fua: false }, 3, 1, &buffer).unwrap();
    assert_eq!(seen.read(3, 1), [7; BLOCK_BYTES]);
    drop(seen);
    rig_file(&file).set_len(BLOCK_BYTES as u64 + 10).unwrap();
    assert!(refused(&one).is_some(), "cut short");
    std::fs::write(&file, b"somebody's notes").unwrap();
    assert!(refused(&one).is_some_and(|error| error.contains("no overlay")));
    assert_eq!(std::fs::read(&file).unwrap(), b"somebody's notes");
}

fn rig_file(path: &Path) -> std::fs::File {
    std::fs::OpenOptions::new().write(true).open(path).unwrap()
}
