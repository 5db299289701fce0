//! The fuzz targets, see `parsers`.

pub mod parsers;

// What the files of src that are compiled here call the crate's.
use parsers::paths::{archive, format, history, io, volume};

/// Puts the seeds of a target into the directory that `SALVOL_FUZZ_CORPUS` names, before the corpus is read, and says how long an
/// input should be at most.
pub fn plant(target: &parsers::Target) {
    let Some(directory) = std::env::var_os("SALVOL_FUZZ_CORPUS") else { return };
    for (rank, seed) in (target.seeds)().iter().enumerate() {
        std::fs::write(std::path::Path::new(&directory).join(format!("seed-{rank}")), seed).expect("a corpus");
    }
    println!("bytes_max {}", target.bytes_max);
}
