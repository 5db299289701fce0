//! What all cases came to, as a table.

use std::collections::BTreeMap;
use std::fmt::Write;

use super::cases::Case;
use super::judge::Verdict;

/// How often each thing came of a damage to a structure.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
pub struct Row {
    pub cases: u64,
    pub refused: u64,
    pub unreadable: u64,
    pub torn: u64,
    pub checked: Asked,
    pub verified: Asked,
    pub unrestored: u64,
    pub harmless: u64,
    /// It costs something, and `verify` finds nothing.
    pub silent: u64,
    /// A checksum covers it, and `verify` finds nothing.
    pub unreported: u64,
    pub wrong: u64,
}

/// Of so many cases that a judge was asked about.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub struct Asked {
    pub yes: u64,
    pub asked: u64,
}

impl Asked {
    fn take(&mut self, answer: Option<bool>) {
        self.yes += u64::from(answer == Some(true));
        self.asked += u64::from(answer.is_some());
    }
}

impl std::fmt::Display for Asked {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self.asked {
            0 => f.write_str("–"),
            asked => write!(f, "{}/{asked}", self.yes),
        }
    }
}

#[derive(Debug, Default)]
pub struct Table {
    pub rows: BTreeMap<(&'static str, &'static str), Row>,
    /// The first few of what must not be, with all that is needed to see it again.
    pub wrong: Vec<String>,
    pub silent: Vec<String>,
    /// What is documented to be without a checksum, and was other data.
    pub unprotected: u64,
    pub unreported: Vec<String>,
}

const EXAMPLES: usize = 400;
/// Has no checksums, and `docs/operating.md` says so: damage there is other data.
const UNPROTECTED: [&str; 2] = ["view overlay: map", "view overlay: data"];

impl Table {
    pub fn take(&mut self, base: &str, case: &Case, verdict: &Verdict) {
        let row = self.rows.entry((case.structure, case.damage)).or_default();
        let count = |answer: Option<bool>| u64::from(answer == Some(true));
        row.cases += 1;
        row.refused += count(verdict.refused);
        row.unreadable += count(verdict.unreadable);
        row.torn += u64::from(verdict.torn);
        row.checked.take(verdict.checked);
        row.verified.take(verdict.verified);
        row.unrestored += count(verdict.unrestored);
        row.harmless += u64::from(verdict.is_harmless());
        let tell = |list: &mut Vec<String>| {
            if list.len() < EXAMPLES {
                let change: String = format!("{:?}", case.change).chars().take(120).collect();
                list.push(format!(
                    "{base}: {}, {}, number {} of {:?}: {change}: {verdict:?}",
                    case.structure, case.damage, case.number, case.target
                ));
            }
        };
        if verdict.wrong.is_some() {
            row.wrong += 1;
            if UNPROTECTED.contains(&case.structure) {
                self.unprotected += 1;
            } else {
                tell(&mut self.wrong);
            }
        }
        if verdict.is_silent() {
            row.silent += 1;
            tell(&mut self.silent);
        }
        if case.covered && verdict.verified == Some(false) {
            row.unreported += 1;
            tell(&mut self.unreported);
        }
    }

    pub fn merge(&mut self, other: Self) {
        for (key, row) in other.rows {
            let sum = self.rows.entry(key).or_default();
            sum.cases += row.cases;
            sum.refused += row.refused;
            sum.unreadable += row.unreadable;
            sum.torn += row.torn;
            for (sum, more) in [(&mut sum.checked, row.checked), (&mut sum.verified, row.verified)] {
                (sum.yes, sum.asked) = (sum.yes + more.yes, sum.asked + more.asked);
            }
            sum.unrestored += row.unrestored;
            sum.harmless += row.harmless;
            sum.silent += row.silent;
            sum.unreported += row.unreported;
            sum.wrong += row.wrong;
        }
        self.wrong.extend(other.wrong);
        self.unprotected += other.unprotected;
        self.silent.extend(other.silent);
        self.unreported.extend(other.unreported);
    }

    pub fn cases(&self) -> u64 {
        self.rows.values().map(|row| row.cases).sum()
    }

    /// As Markdown.
    pub fn text(&self) -> String {
        let mut out = String::from(
            "| structure | damage | cases | not opened | read error | torn tail | check says | verify says | restore says | harmless | silent | wrong |\n\
             |---|---|---:|---:|---:|---:|---:|---:|---:|---:|---:|---:|\n",
        );
        let mut before = "";
        for ((structure, damage), row) in &self.rows {
            let Row {
                cases, refused, unreadable, torn, checked, verified, unrestored, harmless, silent, wrong, ..
            } = row;
            let name = if before == *structure { "" } else { *structure };
            before = structure;
            let _ = writeln!(
                out,
                "| {name} | {damage} | {cases} | {refused} | {unreadable} | {torn} | {checked} | {verified} | {unrestored} | {harmless} | {silent} | {wrong} |"
            );
        }
        out
    }

    /// The chapter of the docs.
    pub fn chapter(&self, seconds: u64, peak_kib: u64) -> String {
        let sum = |of: fn(&Row) -> u64| self.rows.values().map(of).sum::<u64>();
        let (harmless, verified) = (sum(|row| row.harmless), sum(|row| row.verified.asked));
        format!(
            "# What damage does\n\n\
             `make damage` wrote this page: {} cases in {seconds} s, {} MiB of memory at most. Each is one damage to one structure of `format.md` on a \
             small volume with everything in it (two histories, {} structures), or to its store. A judge opens the volume as a daemon does and reads \
             every block, every other time without its store; `check` and `verify` look; synch points are restored, from primary and store or from one of them \
             alone. *Not opened* is an error that says why, *read error* an I/O error of a block, *torn tail* a log that ends earlier, with nothing gone that \
             was known to be durable. *Restore says* that a point does not come back, or which of its blocks do not. *Harmless*: everything reads and comes back \
             as it was. *Silent* would be damage that costs something and that `verify` does not report; *wrong* other data, a panic, a file that should not be there, or \
             20 s of the processor. `check` and `verify` were asked in some of the cases: the second number says in how many.\n\n\
             {harmless} of the cases are harmless. `verify` was asked about {verified}. Other data came of {} cases, all in the overlay of a view, which has no \
             checksums (`operating.md` says so).\n\n\
             Of bytes that say something each bit was flipped and each byte made 00 and FF; of those that are covered by a checksum and never change, and of data, one \
             bit of each byte; of those that nobody reads every 61st. An *old slot* is one whose segment is archived and no longer needed: its damage costs nothing, and it may be \
             discarded at any time.\n\n{}",
            self.cases(),
            peak_kib / 1024,
            self.rows.keys().map(|(structure, _)| structure).collect::<std::collections::BTreeSet<_>>().len(),
            self.unprotected,
            self.text()
        )
    }
}
