//! The report of `scripts/bench`: lines of JSON in, `docs/benchmarks.md` and its plots out.
//!
//! ```text
//! cargo bench --bench report -- LINES DIRECTORY
//! ```
//!
//! Each line has a `section`, and what was measured under the names that `engine.rs`, `device.sh` and `cost.sh` give it. Of several
//! rounds the median counts; ratios are taken pair by pair, within a round, and the median of those is shown.
#![allow(clippy::unwrap_used, reason = "a benchmark that cannot go on ends")]

use std::fmt::Write as _;
use std::path::Path;

use plotters::prelude::*;
use serde_json::Value;

fn main() {
    let mut arguments = std::env::args().skip(1).filter(|argument| argument != "--bench");
    let (Some(lines), Some(directory)) = (arguments.next(), arguments.next()) else {
        println!("usage: cargo bench --bench report -- LINES DIRECTORY");
        return;
    };
    let text = std::fs::read_to_string(lines).unwrap();
    let report = Report(text.lines().map(|line| serde_json::from_str(line).unwrap()).collect());
    let directory = Path::new(&directory);
    let mut out = String::new();
    report.head(&mut out);
    report.overwrites(&mut out, directory);
    report.others(&mut out);
    report.patterns(&mut out);
    report.latency(&mut out);
    report.amplification(&mut out);
    report.cost(&mut out);
    report.openings(&mut out);
    report.device(&mut out, directory);
    report.pgbench(&mut out);
    report.as_they_are(&mut out);
    std::fs::write(directory.join("benchmarks.md"), out).unwrap();
}

struct Report(Vec<Value>);

/// What several rounds measured of the same thing.
type Rounds<'a> = Vec<&'a Value>;

fn number(line: &Value, name: &str) -> f64 {
    line[name].as_f64().unwrap_or(f64::NAN)
}

/// The median of what is a number.
fn middle(values: impl Iterator<Item = f64>) -> f64 {
    let mut all: Vec<f64> = values.filter(|value| value.is_finite()).collect();
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied().unwrap_or(f64::NAN)
}

/// The median of `of` over the rounds.
fn median(rounds: &Rounds, of: impl Fn(&Value) -> f64) -> f64 {
    middle(rounds.iter().map(|line| of(line)))
}

/// The ratios of what was measured in the same round.
fn ratios(ours: &Rounds, theirs: &Rounds, name: &str) -> Vec<f64> {
    ours.iter().zip(theirs).map(|(ours, theirs)| number(ours, name) / number(theirs, name)).collect()
}

/// The median of those ratios.
fn paired(ours: &Rounds, theirs: &Rounds, name: &str) -> f64 {
    middle(ratios(ours, theirs, name).into_iter())
}

/// A rate, or that there is none.
fn shown(rate: f64) -> String {
    if rate.is_nan() { "–".to_owned() } else { format!("{rate:.0}") }
}

fn field(rounds: &Rounds, name: &str) -> f64 {
    median(rounds, |line| number(line, name))
}

/// Where the archiver's objects go.
const ARCHIVERS: [&str; 3] = ["off", "to the disk", "to memory"];

/// What the lines of one of those have.
fn archiver_is(archiver: &str) -> [(&'static str, Value); 2] {
    [("store", (archiver != "off").into()), ("store_shares_disk", (archiver == "to the disk").into())]
}

/// The least and the largest.
fn range(values: &[f64]) -> String {
    let all = || values.iter().copied().filter(|value| value.is_finite());
    format!("{:.2} to {:.2}", all().fold(f64::INFINITY, f64::min), all().fold(0.0, f64::max))
}

/// The least and the largest of `of` over the rounds.
fn spread(rounds: &Rounds, of: impl Fn(&Value) -> f64) -> String {
    range(&rounds.iter().map(|line| of(line)).collect::<Vec<_>>())
}

impl Report {
    /// The lines of a section for which `fields` are as given.
    fn of(&self, section: &str, fields: &[(&str, Value)]) -> Rounds<'_> {
        let fits =
            |line: &&Value| line["section"] == section && fields.iter().all(|(name, value)| line[*name] == *value);
        self.0.iter().filter(fits).collect()
    }

    /// The different values of a field in a section, in their order.
    fn values(&self, section: &str, name: &str) -> Vec<Value> {
        let mut values = Vec::new();
        for line in self.of(section, &[]) {
            if !values.contains(&line[name]) {
                values.push(line[name].clone());
            }
        }
        values
    }

    fn head(&self, out: &mut String) {
        let machine = self.of("machine", &[])[0];
        let text = |name: &str| machine[name].as_str().unwrap_or("?").to_owned();
        writeln!(
            out,
            "# Benchmarks\n\n`{}` wrote this page on {}, of commit {}: {} processors ({}), {} GiB, Linux {}, a file on {} with O_DIRECT; {} round(s) of {} s each. \
             The machine is a virtual one that others share, so ratios say more than rates: what is compared ran in turns, in one run.\n\n\
             In process means the engine on a file, without a kernel driver; raw is fio with io_uring on the same file. Segments of 16 MiB, a working set \
             of 128 of them (32 at depth 1); u is the share of the working set that the volume's blocks take. Data is half compressible.",
            text("command"),
            text("date"),
            text("commit"),
            machine["processors"],
            text("model"),
            machine["memory_gib"],
            text("kernel"),
            text("file_system"),
            machine["rounds"],
            machine["seconds"]
        )
        .unwrap();
    }

    fn overwrites(&self, out: &mut String, directory: &Path) {
        let section = "overwrite";
        let depths = self.values(section, "depth");
        if depths.is_empty() {
            return;
        }
        writeln!(
            out,
            "\n## 4 KiB random overwrites, in process\n\nThe budget of a log on a half-duplex disk is 1/X = A(1+h)/B_w + (A−1)/B_r: A is the \
             write amplification, h the share of headers and summaries, B_w and B_r what the same file does at the workload's own bytes in flight, \
             measured right behind each run. With the archiver on, its objects go to the same disk and are read back from it, which the budget \
             then counts at the rates of the store alone (*of the log's alone* leaves them out), or to memory, which stands for a store elsewhere. A segment that waited in a queue is read \
             back from the log first; that is in no budget. *Processors* is the share of all of them that was busy, the generator and the kernel \
             included: the other bound, when all has to be compressed. *Archived* is the share of what the log took meanwhile that the archiver \
             got done: below 1, more waits at the end than at the beginning, and the rate would not last.\n\n\
             | archiver | depth | u | IOPS | of the budget | (rounds) | of the log's alone | processors | archived | of raw 4 KiB | A | p50 / p99 / longest µs | raw's longest | CPU µs |\n\
             |---|---:|---:|---:|---:|---|---:|---:|---:|---:|---:|---:|---:|---:|"
        )
        .unwrap();
        let mut plots: Vec<(String, Vec<(f64, f64)>)> = Vec::new();
        let processors = number(self.of("machine", &[])[0], "processors");
        for archiver in ARCHIVERS {
            for depth in &depths {
                let mut line = Vec::new();
                for utilisation in self.values(section, "utilisation") {
                    let mut fields = archiver_is(archiver).to_vec();
                    fields.extend([("depth", depth.clone()), ("utilisation", utilisation.clone())]);
                    let rounds = self.of(section, &fields);
                    if rounds.is_empty() {
                        continue;
                    }
                    let ratio = |line: &Value| number(line, "iops") / number(line, "raw_iops");
                    let (budget, raw) = (field(&rounds, "of_budget"), median(&rounds, ratio));
                    let busy = median(&rounds, |line| number(line, "iops") * number(line, "cpu_us") / 1e6 / processors);
                    let log = field(&rounds, "of_log_budget");
                    let archived = match archiver {
                        "off" => "–".to_owned(),
                        _ => format!("{:.2}", field(&rounds, "archived_of_logged")),
                    };
                    writeln!(
                        out,
                        "| {archiver} | {depth} | {utilisation} | {:.0} | {budget:.2} | {} | {log:.2} | {busy:.2} | {archived} | {raw:.2} | {:.3} | {:.0} / {:.0} / {:.0} | {:.0} | {:.1} |",
                        field(&rounds, "iops"),
                        spread(&rounds, |line| number(line, "of_budget")),
                        field(&rounds, "amplification"),
                        field(&rounds, "p50_us"),
                        field(&rounds, "p99_us"),
                        field(&rounds, "max_us"),
                        field(&rounds, "raw_max_us"),
                        field(&rounds, "cpu_us"),
                    )
                    .unwrap();
                    line.push((utilisation.as_f64().unwrap(), raw));
                }
                plots.push((format!("depth {depth}, archiver {archiver}"), line));
            }
        }
        // One writer's curves say nothing of the archiver.
        plots.retain(|(name, line)| line.len() > 1 && !name.starts_with("depth 1, archiver to"));
        if !plots.is_empty() {
            curves(&directory.join("benchmarks-overwrite.svg"), &plots, "u", "of raw 4 KiB random writes");
            writeln!(out, "\n![throughput against u](benchmarks-overwrite.svg)").unwrap();
        }
    }

    fn others(&self, out: &mut String) {
        let workloads = self.values("other", "workload");
        if workloads.is_empty() {
            return;
        }
        writeln!(
            out,
            "\n## Sequential writes, reads, and writes with a flush, in process\n\nu = 0.5, archiver off.\n\n\
             | | depth | requests/s | MB/s | of raw | (rounds) | p50 µs | raw p50 µs |\n|---|---:|---:|---:|---:|---|---:|---:|"
        )
        .unwrap();
        for workload in workloads {
            for depth in self.values("other", "depth") {
                let rounds = self.of("other", &[("workload", workload.clone()), ("depth", depth.clone())]);
                if rounds.is_empty() {
                    continue;
                }
                let ratio = |line: &Value| number(line, "iops") / number(line, "raw_iops");
                let name = match workload.as_str().unwrap() {
                    "sequential" => "writes of 1 MiB in sequence",
                    "read" => "random reads of 4 KiB",
                    _ => "4 KiB random writes, a flush behind each",
                };
                writeln!(
                    out,
                    "| {name} | {depth} | {:.0} | {:.0} | {:.2} | {} | {:.0} | {:.0} |",
                    field(&rounds, "iops"),
                    field(&rounds, "mb_s"),
                    median(&rounds, ratio),
                    spread(&rounds, ratio),
                    field(&rounds, "p50_us"),
                    field(&rounds, "raw_p50_us"),
                )
                .unwrap();
            }
        }
    }

    fn patterns(&self, out: &mut String) {
        let patterns = self.values("pattern", "pattern");
        if patterns.is_empty() {
            return;
        }
        writeln!(
            out,
            "\n## Other patterns, in process\n\nu = 0.7, depth 32, archiver off. *cold*: filled once in order, then one block in a hundred overwritten; \
             the longest wait is what a run of segments that are all live costs a writer.\n\n\
             | pattern | IOPS | of the budget | A | p50 / p99 / longest µs |\n|---|---:|---:|---:|---:|"
        )
        .unwrap();
        for pattern in patterns {
            let rounds = self.of("pattern", &[("pattern", pattern.clone())]);
            writeln!(
                out,
                "| {} | {:.0} | {:.2} | {:.3} | {:.0} / {:.0} / {:.0} |",
                match pattern.as_str().unwrap() {
                    "skewed" => "nine of ten to a tenth of the blocks",
                    "zipf" => "Zipf 0.99",
                    other => other,
                },
                field(&rounds, "iops"),
                field(&rounds, "of_budget"),
                field(&rounds, "amplification"),
                field(&rounds, "p50_us"),
                field(&rounds, "p99_us"),
                field(&rounds, "max_us"),
            )
            .unwrap();
        }
    }

    fn latency(&self, out: &mut String) {
        if self.of("latency", &[]).is_empty() {
            return;
        }
        writeln!(
            out,
            "\n## Waits at an even load, in process\n\n4 KiB random overwrites at a rate that leaves the archiver a processor to itself, depth 8, u = 0.5; \
             raw is fio at the same rate.\n\n\
             | archiver | writes/s | p50 / p90 / p99 / p99.99 / longest µs |\n|---|---:|---:|"
        )
        .unwrap();
        let waits =
            |rounds: &Rounds, names: [&str; 5]| names.map(|name| format!("{:.0}", field(rounds, name))).join(" / ");
        for archiver in ARCHIVERS {
            let rounds = self.of("latency", &archiver_is(archiver));
            if !rounds.is_empty() {
                let waits = waits(&rounds, ["p50_us", "p90_us", "p99_us", "p9999_us", "max_us"]);
                writeln!(out, "| {archiver} | {:.0} | {waits} |", field(&rounds, "iops")).unwrap();
            }
        }
        let off = self.of("latency", &archiver_is("off"));
        let raw = waits(&off, ["raw_p50_us", "raw_p90_us", "raw_p99_us", "raw_p9999_us", "raw_max_us"]);
        writeln!(out, "| raw | {:.0} | {raw} |\n", field(&off, "raw_iops")).unwrap();
        for archiver in &ARCHIVERS[1..] {
            let on = self.of("latency", &archiver_is(archiver));
            if !on.is_empty() {
                let ratios = ratios(&on, &off, "p99_us");
                let middle = middle(ratios.iter().copied());
                writeln!(
                    out,
                    "p99 with the archiver on, {archiver}, against off, pair by pair: {middle:.2} ({}).",
                    range(&ratios)
                )
                .unwrap();
            }
        }
    }

    fn amplification(&self, out: &mut String) {
        let mut rows = self.of("overwrite", &[("store", false.into()), ("depth", 32.into())]);
        rows.extend(self.of("amplification", &[]));
        if rows.is_empty() {
            return;
        }
        writeln!(
            out,
            "\n## Write amplification\n\nUniform overwrites at depth 32, data blocks; the formula of `design.md` counts headers and summaries.\n\n\
             | planning | u | A | formula | |\n|---|---:|---:|---:|---:|"
        )
        .unwrap();
        for planning in [true, false] {
            let mut done = Vec::new();
            for row in rows.iter().filter(|row| row["planning"] == planning) {
                let utilisation = &row["utilisation"];
                if done.contains(&utilisation) {
                    continue;
                }
                done.push(utilisation);
                let same: Rounds = rows
                    .iter()
                    .copied()
                    .filter(|row| row["planning"] == planning && row["utilisation"] == *utilisation)
                    .collect();
                let (measured, formula) = (field(&same, "amplification"), field(&same, "formula"));
                let name = if planning { "on" } else { "off" };
                let off = (measured / formula - 1.0) * 100.0;
                writeln!(out, "| {name} | {utilisation} | {measured:.3} | {formula:.3} | {off:+.2} % |").unwrap();
            }
        }
    }

    fn cost(&self, out: &mut String) {
        let rows = self.of("cost", &[]);
        if rows.is_empty() {
            return;
        }
        writeln!(
            out,
            "\n## What a request costs\n\nIn process, depth 32, the generator included. Instructions are callgrind's, of user space, as the difference between \
             runs of 20 000 and 60 000 requests; allocations are those of the owner's thread. A write's data is copied once, into the segment's \
             memory, and a read's not at all: the device's bytes go to where the reader wants them.\n\n\
             | | instructions | allocations | CPU µs, kernel included |\n|---|---:|---:|---:|"
        )
        .unwrap();
        for row in rows {
            writeln!(
                out,
                "| 4 KiB {} | {} | {:.2} | {:.1} |",
                row["workload"].as_str().unwrap(),
                row["instructions"],
                number(row, "allocations"),
                number(row, "cpu_us")
            )
            .unwrap();
        }
        let [off, on] = [false, true].map(|store| {
            let memory = self.of("overwrite", &[("store", store.into())]);
            memory.iter().map(|line| number(line, "resident_mib")).fold(f64::NAN, f64::max)
        });
        writeln!(
            out,
            "\nMemory: at most {} MiB with the archiver off and {} MiB with it on, of processes whose indexes take up to 3 MiB, 8 bytes a block \
             (2 GiB for each TiB of volume).",
            shown(off),
            shown(on)
        )
        .unwrap();
    }

    fn openings(&self, out: &mut String) {
        let rows = self.of("open", &[]);
        if rows.is_empty() {
            return;
        }
        writeln!(
            out,
            "\n## Opening, in process\n\n| working set | after a crash, ms | after a close, ms |\n|---:|---:|---:|"
        )
        .unwrap();
        for gib in self.values("open", "working_set_gib") {
            let rounds = self.of("open", &[("working_set_gib", gib.clone())]);
            let (crash, close) = (field(&rounds, "open_after_crash_ms"), field(&rounds, "open_after_close_ms"));
            writeln!(out, "| {gib} GiB | {crash:.0} | {close:.0} |").unwrap();
        }
    }

    fn device(&self, out: &mut String, directory: &Path) {
        let rivals = self.values("device", "rival");
        if rivals.is_empty() {
            return;
        }
        writeln!(
            out,
            "\n## Through the device, beside what people would use instead\n\nsalvol on one disk and each rival on another, both files of the host behind {}, \
             under one kernel, loaded in turns of a few seconds: {} each, and the median of the ratios of neighbours counts. 1 GiB, written once before; archiver \
             off. Writes and reads of 4 KiB at depth 32; *flush* is a 4 KiB write with a flush behind it, one writer. On NILFS2 direct writes go to the \
             page cache, and fio's time ends before they are on the disk. CPU is the guest's, all of it.\n\n\
             | | its write / read / flush IOPS | salvol's | salvol's, as a ratio (turns) | CPU µs for a write: it, salvol |\n|---|---|---|---|---|",
            self.of("machine", &[])[0]["guest"].as_str().unwrap_or("a guest"),
            self.values("device", "round").len(),
        )
        .unwrap();
        let mut bars = Vec::new();
        for rival in &rivals {
            let turns = |target: &Value, workload: &str| {
                self.of(
                    "device",
                    &[("rival", rival.clone()), ("target", target.clone()), ("workload", workload.into())],
                )
            };
            let (name, salvol) = (rival.as_str().unwrap(), Value::from("salvol"));
            let rates =
                |target: &Value| ["write", "read", "flush"].map(|workload| field(&turns(target, workload), "iops"));
            let show = |rates: [f64; 3]| rates.map(shown).join(" / ");
            let ratios = ["write", "read", "flush"].map(|workload| {
                let (ours, its) = (turns(&salvol, workload), turns(rival, workload));
                if its.is_empty() {
                    return "–".to_owned();
                }
                format!("**{:.2}** ({})", paired(&ours, &its, "iops"), range(&ratios(&ours, &its, "iops")))
            });
            let cpu = |target: &Value| field(&turns(target, "write"), "cpu_us");
            writeln!(
                out,
                "| {name} | {} | {} | {} | {:.0}, {:.0} |",
                show(rates(rival)),
                show(rates(&salvol)),
                ratios.join(", "),
                cpu(rival),
                cpu(&salvol)
            )
            .unwrap();
            let ratio = |workload: &str| paired(&turns(rival, workload), &turns(&salvol, workload), "iops");
            bars.push((name.to_owned(), ratio("write"), ratio("read")));
        }
        bars_beside(&directory.join("benchmarks-device.svg"), &bars);
        writeln!(out, "\n![rivals, as a ratio to salvol](benchmarks-device.svg)").unwrap();
    }

    fn pgbench(&self, out: &mut String) {
        let rivals = self.values("pgbench", "rival");
        if rivals.is_empty() {
            return;
        }
        writeln!(
            out,
            "\n## PostgreSQL\n\npgbench, scale 20, eight clients, ext4 on each, in turns as above. On salvol a synch point, and on dm-thin a snapshot, every 5 s.\n\n\
             | | its transactions/s | salvol's | as a ratio (turns) |\n|---|---:|---:|---|"
        )
        .unwrap();
        for rival in rivals {
            let turns = |target: Value| self.of("pgbench", &[("rival", rival.clone()), ("target", target)]);
            let (ours, its) = (turns("salvol".into()), turns(rival.clone()));
            writeln!(
                out,
                "| {} | {:.0} | {:.0} | **{:.2}** ({}) |",
                rival.as_str().unwrap(),
                field(&its, "tps"),
                field(&ours, "tps"),
                paired(&ours, &its, "tps"),
                range(&ratios(&ours, &its, "tps"))
            )
            .unwrap();
        }
    }

    /// Sections that are tables already.
    fn as_they_are(&self, out: &mut String) {
        for line in self.of("text", &[]) {
            writeln!(out, "\n## {}\n\n{}", line["title"].as_str().unwrap(), line["text"].as_str().unwrap().trim_end())
                .unwrap();
        }
    }
}

const COLORS: [RGBColor; 7] = [RED, BLUE, GREEN, MAGENTA, BLACK, CYAN, YELLOW];

fn curves(path: &Path, lines: &[(String, Vec<(f64, f64)>)], x: &str, y: &str) {
    let points = || lines.iter().flat_map(|(_, line)| line);
    let (left, right) = points().fold((1.0, 0.0), |(least, most), (x, _)| (f64::min(least, *x), f64::max(most, *x)));
    let most = points().map(|(_, y)| *y).fold(0.0, f64::max) * 1.2;
    let area = SVGBackend::new(path, (800, 380)).into_drawing_area();
    area.fill(&WHITE).unwrap();
    let mut chart = ChartBuilder::on(&area)
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(60)
        .build_cartesian_2d(left..right, 0.0..most)
        .unwrap();
    chart.configure_mesh().x_desc(x).y_desc(y).draw().unwrap();
    for ((name, line), color) in lines.iter().zip(COLORS) {
        let drawn = chart.draw_series(LineSeries::new(line.iter().copied(), color.stroke_width(2))).unwrap();
        drawn.label(name).legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color));
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3)).draw().unwrap();
    area.present().unwrap();
}

/// Two bars for each name: writes and reads.
fn bars_beside(path: &Path, bars: &[(String, f64, f64)]) {
    let most = bars.iter().map(|(_, write, read)| write.max(*read)).fold(1.2, f64::max) * 1.15;
    let area = SVGBackend::new(path, (800, 380)).into_drawing_area();
    area.fill(&WHITE).unwrap();
    let mut chart = ChartBuilder::on(&area)
        .margin(12)
        .x_label_area_size(40)
        .y_label_area_size(80)
        .build_cartesian_2d(0.0..bars.len() as f64, 0.0..most)
        .unwrap();
    let label = |at: &f64| bars.get(*at as usize).map_or(String::new(), |(name, ..)| name.clone());
    let mesh = &mut chart.configure_mesh();
    mesh.disable_x_mesh()
        .x_labels(bars.len())
        .x_label_formatter(&label)
        .x_label_offset(40)
        .y_desc("as a ratio to salvol")
        .draw()
        .unwrap();
    for (rank, name, color) in [(0, "4 KiB random writes", RED), (1, "4 KiB random reads", BLUE)] {
        let bar = |(at, (_, write, read)): (usize, &(String, f64, f64))| {
            let (from, height) = (at as f64 + 0.15 + 0.35 * f64::from(rank), if rank == 0 { *write } else { *read });
            Rectangle::new([(from, 0.0), (from + 0.35, height)], color.mix(0.6).filled())
        };
        let drawn = chart.draw_series(bars.iter().enumerate().map(bar)).unwrap();
        drawn.label(name).legend(move |(x, y)| Rectangle::new([(x, y - 5), (x + 14, y + 5)], color.mix(0.6).filled()));
    }
    chart.configure_series_labels().background_style(WHITE.mix(0.8)).border_style(BLACK.mix(0.3)).draw().unwrap();
    area.present().unwrap();
}
