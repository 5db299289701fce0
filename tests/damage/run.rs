//! All cases on a few threads, each with its own machine, and a watchdog over them.

use std::cell::Cell;
use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use nix::sys::resource::{Resource, setrlimit};
use salvol::archive::{RingKind, RingStore, Store};

use super::base::Base;
use super::cases::Case;
use super::judge::{Bench, TIME_MAX};
use super::table::Table;

/// Most of a verify of something damaged is waiting: it looks three times.
const THREADS: usize = 16;
/// Memory that can be asked for: damaged lengths must not decide how much is taken.
const ADDRESSES_MAX: u64 = 8 << 30;
/// Memory that all machines together may have had.
pub const MEMORY_MAX_KIB: u64 = 1 << 20;
const RING_BYTES: u64 = 160 * 4096;

thread_local! {
    /// Whether a panic on this thread is one of the case that it judges.
    static JUDGING: Cell<bool> = const { Cell::new(false) };
}

/// Where files that are judged are: in memory where that does O_DIRECT.
pub fn scratch() -> tempfile::TempDir {
    let bases = std::env::var_os("SALVOL_TEST_DIR").map(PathBuf::from).into_iter();
    let bases = bases.chain([PathBuf::from("/dev/shm"), PathBuf::from("/var/tmp")]);
    let does = |base: &PathBuf| -> Option<tempfile::TempDir> {
        let directory = tempfile::Builder::new().prefix("salvol-damage-test").tempdir_in(base).ok()?;
        let path = directory.path().join("probe");
        File::create(&path).ok()?.set_len(1 << 20).ok()?;
        salvol::io::Primary::look(&path).ok().map(|_| directory)
    };
    bases.into_iter().find_map(|base| does(&base)).expect("a directory whose file system does O_DIRECT")
}

/// A ring with the objects of `base`.
pub fn ring_of(base: &Base) -> Vec<u8> {
    let directory = scratch();
    let path = directory.path().join("ring");
    File::create(&path).unwrap().set_len(RING_BYTES).unwrap();
    let ring = RingStore::create(RingKind::File, &path, &base.identity).unwrap();
    base.objects.iter().for_each(|(name, bytes)| ring.put(name, bytes).unwrap());
    assert_eq!(ring.names().unwrap().len(), base.objects.len(), "nothing had to go");
    drop(ring);
    std::fs::read(&path).unwrap()
}

pub fn peak_kib() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    line.trim().trim_end_matches(" kB").parse().unwrap()
}

/// Judges all `cases`. A case that does not end ends the test.
pub fn judge_all(base: &Base, ring: &[u8], cases: &[Case]) -> Table {
    setrlimit(Resource::RLIMIT_AS, ADDRESSES_MAX, ADDRESSES_MAX).unwrap();
    let (directory, started) = (scratch(), Instant::now());
    let (next, done, table) = (AtomicUsize::new(0), AtomicBool::new(false), Mutex::new(Table::default()));
    let doing: Vec<Mutex<Option<(Instant, usize)>>> = (0..THREADS).map(|_| Mutex::new(None)).collect();
    let hook = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        // Those of a case are its verdict; any other is one of this test.
        if !JUDGING.get() {
            hook(panic);
        }
    }));
    std::thread::scope(|scope| {
        let workers: Vec<_> = doing
            .iter()
            .enumerate()
            .map(|(rank, doing)| {
                let (next, directory) = (&next, directory.path().join(rank.to_string()));
                scope.spawn(move || {
                    let bench = Bench::new(base, ring, directory);
                    let mut own = Table::default();
                    loop {
                        let rank = next.fetch_add(1, Ordering::Relaxed);
                        let Some(case) = cases.get(rank) else { return own };
                        *doing.lock().unwrap() = Some((Instant::now(), rank));
                        if rank.is_multiple_of(10_000) && rank > 0 {
                            println!("{rank} of {} in {:?}", cases.len(), started.elapsed());
                        }
                        JUDGING.set(true);
                        let verdict = bench.judge(case);
                        JUDGING.set(false);
                        own.take(base.name, case, &verdict);
                        *doing.lock().unwrap() = None;
                    }
                })
            })
            .collect();
        scope.spawn(|| {
            let mut told = BTreeSet::new();
            while !done.load(Ordering::Relaxed) {
                std::thread::sleep(Duration::from_millis(200));
                for doing in &doing {
                    let busy = *doing.lock().unwrap_or_else(PoisonError::into_inner);
                    let Some((since, rank)) = busy else { continue };
                    if since.elapsed() > TIME_MAX && told.insert(rank) {
                        eprintln!("this takes long: {:?}", cases[rank]);
                    }
                    if since.elapsed() > 6 * TIME_MAX {
                        eprintln!("this does not end: {:?}", cases[rank]);
                        std::process::abort();
                    }
                }
            }
        });
        let tables: Vec<_> = workers.into_iter().map(std::thread::ScopedJoinHandle::join).collect();
        done.store(true, Ordering::Relaxed);
        for own in tables {
            table.lock().unwrap().merge(own.unwrap_or_else(|panic| std::panic::resume_unwind(panic)));
        }
    });
    let _ = std::panic::take_hook();
    table.into_inner().unwrap()
}
