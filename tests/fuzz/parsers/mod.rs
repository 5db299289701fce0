//! What each fuzz target does with an input, and the inputs that it begins with.
//!
//! A target is a function of bytes that panics when a promise is broken: cargo-fuzz calls it in `fuzz_targets/`, and the cargo
//! test `tests/fuzz.rs` with the seeds, with mutations of them, and with every input that ever broke one.
//!
//! **Behind the checksums.** Almost everything is covered by one, and a fuzzer does not guess those. So a target puts the right
//! one into its input (`seal.rs`, whose key is that of [`salvol::format::Superblock::example`]) and then parses: whoever has a
//! store has its key, so what a keyed checksum covers is as hostile as anything else.
//!
//! **More than no panic.** What was parsed is parsed again out of what the encoder makes of it, and is the same. Where a format
//! leaves no choice, the bytes are the same too, once all that no parser reads is zeros.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is the failure")]

pub mod arguments;
pub mod batch;
pub mod control;
pub mod log;
pub mod mark;
pub mod object;
pub mod overlay;
pub mod past;
pub mod point;
pub mod records;
pub mod ring;
pub mod scan;
pub mod seal;
pub mod segment_header;
pub mod summary;
pub mod superblock;
pub mod unfinished;
pub mod walk;

/// Paths of the crate, for the files of `src` that are compiled here once more since what is in them is private there.
pub mod paths {
    pub mod archive {
        pub use salvol::archive::*;
    }
    pub mod format {
        pub use salvol::format::*;
    }
    pub mod history {
        pub use salvol::history::*;
    }
    pub mod io {
        pub use salvol::io::*;
    }
    pub mod volume {
        pub use salvol::volume::*;
    }
}

/// A fuzz target.
pub struct Target {
    /// That of its file in `fuzz_targets`, of its corpus and of its directory in `regressions`.
    pub name: &'static str,
    /// Says whether the input was taken for what it should be: then everything was looked at.
    pub run: fn(&[u8]) -> bool,
    /// Real structures, out of the encoders.
    pub seeds: fn() -> Vec<Vec<u8>>,
    /// Bytes of an input at most.
    pub bytes_max: usize,
    /// Mutations of the seeds that the cargo test runs.
    pub mutations: u32,
}

pub const TARGETS: &[Target] = &[
    superblock::TARGET,
    segment_header::TARGET,
    batch::TARGET,
    mark::TARGET,
    summary::TARGET,
    walk::TARGET,
    scan::TARGET,
    log::TARGET,
    object::TARGET,
    past::TARGET,
    records::FORK,
    records::PIN,
    ring::SUPERBLOCK,
    ring::ENTRY,
    unfinished::TARGET,
    overlay::TARGET,
    control::REQUEST,
    control::REPLY,
    point::TARGET,
    arguments::SIZE,
    arguments::DURATION,
    arguments::SPEC,
    arguments::GEOMETRY,
];
