//! The damage table: every structure of `docs/format.md` on a small but complete volume, damaged in every way that is thought of,
//! and what comes of it. Never other data than the model's, never a panic, never for ever; and what costs something is
//! reported.
//!
//! `make damage` tries every byte and writes `docs/testing-damage.md`; otherwise a part of each kind of case is tried.
//!
//! ```text
//! base.rs   what is damaged     map.rs    what each byte of it is    cases.rs   what is done to it
//! judge.rs  what comes of it    run.rs    on many machines           table.rs   in all
//! overlay.rs  unfinished.rs  directory.rs   what is in no volume     findings.rs  notices.rs  this can fail
//! ```

#![allow(clippy::unwrap_used, reason = "in a test a panic is the failure")]

mod base;
mod cases;
#[path = "../volume/common.rs"]
mod common;
mod directory;
mod findings;
mod judge;
mod map;
mod notices;
mod overlay;
mod run;
mod table;
mod unfinished;

use base::bases;
use cases::{of_objects, of_primary, of_ring, some};
use salvol::format::Key;
use table::Table;

/// Of each kind of damage to each structure, when nobody asks for all.
const EACH: usize = 8;

#[test]
fn every_damage_is_harmless_or_detected() {
    let asked = std::env::var("SALVOL_DAMAGE").unwrap_or_default();
    let whole = asked == "all";
    let only = std::env::var("SALVOL_DAMAGE_ONLY").unwrap_or_default();
    let each = asked.parse().unwrap_or(EACH);
    let (ours, others) = (bases(1, None), bases(50, Some(Key([9; 32]))));
    let started = std::time::Instant::now();
    let mut table = Table::default();
    for (base, other) in ours.iter().zip(&others) {
        let (ring, other_ring) = (run::ring_of(base), run::ring_of(other));
        let mut cases = of_primary(base, other);
        if base.closed {
            cases.extend(of_objects(base, other));
            cases.extend(of_ring(&ring, &other_ring));
        }
        let mut cases = if whole { cases } else { some(cases, each) };
        // Only of one structure, to look closer.
        cases.retain(|case| only.is_empty() || case.structure.contains(&only));
        println!("{}: {} cases", base.name, cases.len());
        table.merge(run::judge_all(base, &ring, &cases));
        println!("{:?}", started.elapsed());
    }
    let [closed, _] = &ours;
    let every = if whole { 1 } else { 37 };
    table.merge(overlay::table(closed, if whole { 1 } else { 5 }));
    table.merge(unfinished::table(closed, every));
    table.merge(directory::table(closed, every));
    println!("{}", table.text());
    println!("{} cases in {:?}, memory at most {} KiB", table.cases(), started.elapsed(), run::peak_kib());
    for (what, list) in [("WRONG", &table.wrong), ("SILENT", &table.silent), ("UNREPORTED", &table.unreported)] {
        println!("{what}: {}", list.len());
        list.iter().for_each(|line| println!("  {line}"));
    }
    if let Some(path) = std::env::var_os("SALVOL_DAMAGE_TABLE") {
        std::fs::write(path, table.chapter(started.elapsed().as_secs(), run::peak_kib())).unwrap();
    }
    assert!(run::peak_kib() < run::MEMORY_MAX_KIB, "damage must not decide how much memory is taken");
    assert!(table.wrong.is_empty() && table.silent.is_empty() && table.unreported.is_empty());
}
