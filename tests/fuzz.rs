//! Every parser of hostile bytes on real structures, on a few thousand mutations of each, and on every input that ever broke one:
//! what `make fuzz` does by the million, in seconds. See `tests/fuzz/parsers`.
#![allow(clippy::unwrap_used, reason = "a panic is the failure")]

#[path = "fuzz/memory.rs"]
mod memory;
#[path = "fuzz/mutate.rs"]
mod mutate;
#[path = "fuzz/parsers/mod.rs"]
mod parsers;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;

use fastrand::Rng;
use salvol::archive::{ArchiveError, ArchivedSegment, ObjectError};

// What the files of src that are compiled here call the crate's.
use parsers::paths::{archive, format, history, io, volume};
use parsers::{TARGETS, Target};

#[global_allocator]
static ALLOCATOR: memory::Counting = memory::Counting;

/// Runs the target, and keeps the input when it breaks. Says whether its parser took it.
fn run(target: &Target, input: &[u8]) -> bool {
    catch_unwind(AssertUnwindSafe(|| (target.run)(input))).unwrap_or_else(|_| {
        let kept =
            Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("{}-{}", target.name, blake3::hash(input).to_hex()));
        std::fs::write(&kept, input).unwrap();
        panic!("{}: the input is kept in {}; it belongs in tests/fuzz/regressions", target.name, kept.display());
    })
}

/// `SALVOL_FUZZ_TIMES=100`: so many times the mutations, and others.
#[test]
fn real_structures_and_what_is_like_them() {
    let times: u32 = std::env::var("SALVOL_FUZZ_TIMES").map_or(1, |text| text.parse().unwrap());
    std::thread::scope(|scope| {
        for target in TARGETS {
            std::thread::Builder::new()
                .name(target.name.to_owned())
                .spawn_scoped(scope, || {
                    let seeds = (target.seeds)();
                    let mut rng = Rng::with_seed(6 + u64::from(times));
                    let count = target.mutations * times;
                    assert!(run(target, &seeds[0]), "{}: a real one is not taken", target.name);
                    let taken = seeds.iter().filter(|seed| run(target, seed)).count();
                    let mutations = (0..count)
                        .filter(|_| run(target, &mutate::mutated(&mut rng, &seeds, target.bytes_max)))
                        .count();
                    println!(
                        "{:16} takes {taken} of {} seeds, {mutations} of {} mutations",
                        target.name,
                        seeds.len(),
                        count
                    );
                    assert!(mutations > 0, "{}: no mutation gets behind the checks", target.name);
                })
                .unwrap();
        }
    });
}

#[test]
fn what_once_broke_a_parser() {
    let regressions = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz/regressions");
    for target in TARGETS {
        for input in std::fs::read_dir(regressions.join(target.name)).into_iter().flatten() {
            run(target, &std::fs::read(input.unwrap().path()).unwrap());
        }
    }
}

/// Targets are made for cargo-fuzz, which knows them by their files.
#[test]
fn every_target_is_one_of_cargo_fuzz() {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fuzz");
    let manifest = std::fs::read_to_string(directory.join("Cargo.toml")).unwrap();
    for target in TARGETS {
        assert!(manifest.contains(&format!("name = \"{}\"\n", target.name)), "{}", target.name);
        assert!(directory.join(format!("fuzz_targets/{}.rs", target.name)).exists(), "{}", target.name);
        assert!(
            (target.seeds)().iter().all(|seed| seed.len() <= target.bytes_max),
            "{}: a seed is too long",
            target.name
        );
    }
    assert_eq!(std::fs::read_dir(directory.join("fuzz_targets")).unwrap().count(), TARGETS.len());
    assert_eq!(manifest.matches("[[bin]]").count(), TARGETS.len());
}

/// A frame that decodes to more than the table says is an error, whatever it says itself, and takes no memory for what it holds.
#[test]
fn a_frame_never_decides_how_much_memory_it_gets() {
    let small = parsers::walk::small();
    let image_bytes = small.geometry.segment_bytes();
    for (inflated, claims) in [1 << 17, 1 << 20, 1 << 30]
        .into_iter()
        .flat_map(|inflated| [None, Some(inflated as u32), Some(0), Some(15 << 12)].map(|claims| (inflated, claims)))
    {
        let (store, name) = parsers::object::bomb(inflated, claims);
        let object_bytes = store.length(&name).unwrap() as usize;
        let mut segment = None;
        let open = memory::most(|| segment = Some(ArchivedSegment::open(&store, &name, Some(&small)).unwrap()));
        let mut image = None;
        let read = memory::most(|| image = Some(segment.as_mut().unwrap().read_image()));
        assert!(
            matches!(image, Some(Err(ArchiveError::Object { source: ObjectError::Decode { .. }, .. }))),
            "{inflated} bytes, and {claims:?} claimed: {:?}",
            image.unwrap().map(drop)
        );
        let most = 3 * image_bytes + 2 * object_bytes;
        assert!(open < most && read < most, "{inflated} bytes: opening took {open}, reading {read}, of {most}");
    }
}
