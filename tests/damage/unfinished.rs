//! A restore that was interrupted: whatever its record says by then, the same restore ends with the point's bytes, or says why not.

use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use salvol::archive::Store;
use salvol::format::BLOCK_BYTES;
use salvol::history::{Progress, RestoreOptions, Source, Watch, restore_with};

use super::base::{Base, image_of, store_with};
use super::cases::{Case, Change, Target};
use super::judge::Verdict;
use super::run::scratch;
use super::table::Table;

fn restore(source: &Source, at: &str, to: &Path, watch: Option<Watch>) -> Result<bool, String> {
    let options = RestoreOptions {
        threads: 1,
        record_every: Duration::ZERO,
        force: watch.is_some(),
        watch,
        ..RestoreOptions::default()
    };
    let report = restore_with(source, &source.resolve(at).unwrap(), to, &options, &Progress::none());
    report.map(|report| report.damaged.is_empty()).map_err(|error| error.to_string())
}

/// Every byte of the record, and every 61st of what was restored by then.
pub fn table(base: &Base, every: usize) -> Table {
    let directory = scratch();
    let (to, partial) = (directory.path().join("out"), directory.path().join(".out.partial"));
    let store: Arc<dyn Store> = Arc::new(store_with(&base.objects));
    let source = Source::open_store(base.volume.clone(), Some(store)).unwrap();
    let (point, state) = base.points.last().unwrap();
    let (at, wanted) = (format!("p{point}"), image_of(state));
    // Dies at its last changes, where the most is recorded.
    let record_of = |deaths: usize| -> Option<Vec<u8>> {
        let (left, _) = (AtomicUsize::new(deaths), std::fs::remove_file(&partial));
        let watch: Watch = Arc::new(move |_| {
            let dead = left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)).is_err();
            if dead { Err(io::Error::other("the power is gone")) } else { Ok(()) }
        });
        let _ = std::fs::remove_file(&to);
        restore(&source, &at, &to, Some(watch)).err()?;
        std::fs::read(&partial).ok()
    };
    let records: Vec<Vec<u8>> = (0..64).map_while(|deaths| Some(record_of(deaths))).flatten().collect();
    let says = |record: &&Vec<u8>| record.starts_with(b"SALVOLUF") && record[48..4080].iter().any(|byte| *byte != 0);
    let record = records.iter().rfind(says).expect("a record that says something").clone();
    let mut table = Table::default();
    let mut number = 0;
    let mut judge = |structure, damage, change: Change| {
        number += 1;
        if number % every != 0 {
            return;
        }
        let mut bytes = record.clone();
        change.apply(&mut bytes);
        std::fs::write(&partial, &bytes).unwrap();
        let _ = std::fs::remove_file(&to);
        let mut verdict = Verdict::default();
        match restore(&source, &at, &to, None) {
            Ok(true) if std::fs::read(&to).unwrap() == wanted => verdict.unrestored = Some(false),
            Ok(true) => verdict.wrong = Some("it ends with other bytes".to_owned()),
            Ok(false) => verdict.wrong = Some("nothing of the archive is damaged".to_owned()),
            Err(_) if to.exists() => verdict.wrong = Some("it failed, and left a file".to_owned()),
            Err(_) => verdict.unrestored = Some(true),
        }
        let case = Case { structure, damage, target: Target::Primary, change, covered: false, light: true, number };
        table.take("unfinished", &case, &verdict);
    };
    for at in 0..record.len() {
        let flip = |bit: usize| Change::Xor { at, mask: 1 << bit };
        match at {
            _ if !(56..4080).contains(&at) && at < BLOCK_BYTES => {
                (0..8).for_each(|bit| judge("unfinished restore: record", "bit flipped", flip(bit)));
            }
            _ if at < BLOCK_BYTES => judge("unfinished restore: record", "bit flipped", flip(at % 8)),
            _ if at % 61 == 0 => judge("unfinished restore: data", "bit flipped", flip(at % 8)),
            _ => {}
        }
    }
    for (damage, value) in [("zeroed", 0), ("all FF", 0xff)] {
        for start in (0..record.len()).step_by(512) {
            judge("unfinished restore: record", damage, Change::Fill { range: start..start + 512, value });
        }
    }
    for length in (0..record.len()).step_by(513) {
        judge("unfinished restore", "cut short", Change::Cut(length));
    }
    judge("unfinished restore", "longer", Change::Grow(4096));
    table
}
