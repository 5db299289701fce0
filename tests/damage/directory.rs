//! The store in a directory: whose it is, its names, its unfinished files. Its objects are judged with the others.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use salvol::archive::{DirectoryStore, ObjectName, Spec, Store};
use salvol::history::{Progress, RestoreOptions, Source, restore_with, verify};

use super::base::{Base, image_of};
use super::cases::{Case, Change, Target};
use super::judge::Verdict;
use super::run::scratch;
use super::table::Table;

fn file_of(root: &Path, name: &ObjectName) -> PathBuf {
    let file = format!("{:016}.e{:08}.p{}.zst", name.segment.0, name.epoch, name.part);
    root.join(name.history.to_string()).join(file)
}

/// Restores each point from the directory alone, and verifies it.
fn judge(base: &Base, root: &Path, out: &Path) -> Verdict {
    let mut verdict = Verdict::default();
    let source = match Source::open_spec(&Spec::Directory(root.to_owned())) {
        Ok(source) if (source.volume().uuid, &source.volume().key) == (base.volume.uuid, &base.volume.key) => source,
        Ok(_) => return Verdict { wrong: Some("it is another volume's".to_owned()), ..verdict },
        Err(_) => return Verdict { verified: Some(true), unrestored: Some(true), unrestored_durable: true, ..verdict },
    };
    verdict.unrestored = Some(false);
    let options = RestoreOptions { force: true, threads: 1, ..RestoreOptions::default() };
    for (point, state) in &base.points {
        let _ = fs::remove_file(out);
        let moment = source.resolve(&format!("p{point}"));
        match moment.and_then(|moment| restore_with(&source, &moment, out, &options, &Progress::none())) {
            Ok(report) if report.damaged.is_empty() => {
                if fs::read(out).unwrap() != image_of(state) {
                    verdict.wrong = Some(format!("p{point} is other data"));
                }
            }
            _ => (verdict.unrestored, verdict.unrestored_durable) = (Some(true), true),
        }
    }
    verdict.verified = Some(verify(&source, &Progress::none()).map_or(true, |report| !report.ok));
    verdict
}

pub fn table(base: &Base, every: usize) -> Table {
    let directory = scratch();
    let (root, out) = (directory.path().join("store"), directory.path().join("out"));
    let store: Arc<dyn Store> = Arc::new(DirectoryStore::create(&root, &base.identity).unwrap());
    base.objects.iter().for_each(|(name, bytes)| store.put(name, bytes).unwrap());
    let mut table = Table::default();
    let mut number = 0;
    let mut take = |structure, damage, change: Change, verdict: Verdict| {
        number += 1;
        let case = Case { structure, damage, target: Target::Primary, change, covered: false, light: false, number };
        table.take("directory", &case, &verdict);
    };
    // Whose it is: every bit of what says something.
    let identity = root.join("salvol-store");
    let whole = fs::read(&identity).unwrap();
    let mut rank = 0;
    for at in 0..whole.len() {
        for bit in 0..if at < 24 + 400 { 8 } else { 1 } {
            rank += 1;
            if rank % every == 0 {
                let change = Change::Xor { at, mask: 1 << (if bit == 0 { at % 8 } else { (at + bit) % 8 }) };
                let mut bytes = whole.clone();
                change.apply(&mut bytes);
                fs::write(&identity, &bytes).unwrap();
                take("directory: identity", "bit flipped", change, judge(base, &root, &out));
            }
        }
    }
    for length in (0..whole.len()).step_by(97) {
        fs::write(&identity, &whole[..length]).unwrap();
        take("directory: identity", "cut short", Change::Cut(length), judge(base, &root, &out));
    }
    fs::remove_file(&identity).unwrap();
    take("directory: identity", "removed", Change::Remove, judge(base, &root, &out));
    fs::write(&identity, &whole).unwrap();
    // Names: each byte of each.
    for name in base.objects.keys() {
        let path = file_of(&root, name);
        let file = path.file_name().unwrap().to_str().unwrap().as_bytes().to_vec();
        for at in 0..file.len() {
            let mut other = file.clone();
            other[at] = match file[at] {
                digit @ b'0'..=b'9' => b'0' + (digit - b'0' + 1) % 10,
                b'.' => b'_',
                letter => letter ^ 1,
            };
            let other = path.with_file_name(String::from_utf8(other).unwrap());
            if other.exists() || at % every.min(7) != 0 {
                continue;
            }
            fs::rename(&path, &other).unwrap();
            let mut verdict = judge(base, &root, &out);
            if !other.to_str().unwrap().ends_with(".zst") || verdict.verified == Some(false) {
                // It is none of ours then: as if it had been removed, which nobody may know of.
                verdict.unrestored_durable = false;
            }
            take("directory: name of an object", "byte changed", Change::Remove, verdict);
            fs::rename(&other, &path).unwrap();
        }
    }
    let history = root.join(base.volume.history.to_string());
    fs::rename(&history, root.join("aside")).unwrap();
    let mut verdict = judge(base, &root, &out);
    verdict.unrestored_durable = verdict.verified == Some(true);
    take("directory: name of a history", "renamed", Change::Remove, verdict);
    fs::rename(root.join("aside"), &history).unwrap();
    // Leftovers, and what is none of ours.
    for (place, structure) in [
        (history.join(".0000000000000005.e00000003.p0.zst.17.tmp"), "directory: unfinished file"),
        (root.join(".salvol-store.17.tmp"), "directory: unfinished file"),
        (history.join("notes.txt"), "directory: foreign file"),
        (root.join("lost+found"), "directory: foreign file"),
    ] {
        for bytes in [&b""[..], b"half an obj", &whole] {
            fs::write(&place, bytes).unwrap();
            take(structure, "there", Change::Grow(bytes.len()), judge(base, &root, &out));
        }
        fs::remove_file(&place).unwrap();
    }
    let verdict = judge(base, &root, &out);
    assert!(verdict.is_harmless() && verdict.verified == Some(false), "all of it is as it was: {verdict:?}");
    table
}
