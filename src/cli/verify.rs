//! `salvol verify`.

use salvol::history::{Progress, VerifyReport, verify, verify_at};

use super::parse::Size;
use super::points::{failure, open};
use super::{Failure, Manner, Outcome, table};

/// Points that are named in one line.
const NAMED_MAX: usize = 20;

/// Read, decode and check every byte of primary and archive; never writes.
///
/// Reads past the page cache: every superblock, segment header, batch, data block and summary on the primary, every
/// header, frame, block and table in the archive, both copies of a ring's superblock and catalogue, and the chain from
/// segment to segment. The volume may be in use.
///
/// Each finding says where it is (slot or object, segment, frame, block of the segment, log position, block of the
/// volume) and which synch points do not come back because of it; all others still restore. What has another good copy
/// is `covered`: it is repaired when it is read, and is a finding all the same.
///
/// The JSON has: ok, name, uuid, at, segments, objects, bytes, blocks, points (how many are proven to come back),
/// points_affected (ids), segments_unknown (nobody knows which points were marked in them), objects_unused (of a past
/// that was given up), cut, seconds, and findings, each with where, segment, frame, offset, offset_end, block, blocks,
/// position, position_end, what, covered, points (ids), points_unknown.
///
/// Exit codes: 0 clean; 3 something was found; 4 no such point; 1 primary or archive cannot be read.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// NAME of a running volume, a PRIMARY, or a SPEC when the primary is gone
    source: String,
    /// Only what this point needs: its id (p42), its label, `latest`, an RFC 3339 time, or a log position
    #[arg(long, value_name = "POINT")]
    at: Option<String>,
    /// Everything (the default)
    #[arg(long, conflicts_with = "at")]
    all: bool,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments, manner: Manner) -> Outcome {
    let source = open(&arguments.source)?;
    let progress = if manner.draws() { Progress::bar() } else { Progress::none() };
    let report = match &arguments.at {
        Some(at) => {
            let moment = source.resolve(at).map_err(failure)?;
            manner.note(format_args!("verifying {moment}"));
            verify_at(&source, &moment, &progress)
        }
        None => verify(&source, &progress),
    };
    let report = report.map_err(failure)?;
    if arguments.json {
        table::print_json(&report)?;
    } else {
        print(&report);
    }
    if report.ok {
        return Ok(());
    }
    let covered = report.findings.iter().filter(|finding| finding.covered).count();
    Err(Failure::corrupt(format_args!(
        "{}: {} findings, {covered} of them covered by another good copy; {} synch points affected, {} proven to come back",
        arguments.source,
        report.findings.len(),
        report.points_affected.len(),
        report.points
    )))
}

fn print(report: &VerifyReport) {
    for finding in &report.findings {
        table::say!("{}", table::plain(&finding.to_string()));
    }
    let shown = report.points_affected.iter().take(NAMED_MAX).cloned().collect::<Vec<_>>().join(" ");
    let more = report.points_affected.len().saturating_sub(NAMED_MAX);
    let affected = match (report.points_affected.len(), more) {
        (0, _) => String::new(),
        (count, 0) => format!("{count}: {shown}"),
        (count, more) => format!("{count}: {shown} and {more} more"),
    };
    let unused = match report.objects_unused.len() {
        0 => String::new(),
        count => format!(", {count} of them of a past that was given up"),
    };
    let cut = if report.cut { "so much that points were not told apart" } else { "" };
    table::print(&[
        ("volume", format!("{} ({})", report.name, report.uuid)),
        ("point", report.at.clone().unwrap_or_default()),
        ("read", format!("{} in {:.1} s", Size(report.bytes), report.seconds)),
        ("segments", report.segments.to_string()),
        ("objects", format!("{}{unused}", report.objects)),
        ("blocks", format!("{} held against their checksums", report.blocks)),
        ("points", format!("{} proven to come back", report.points)),
        ("affected", affected),
        ("damage", cut.to_owned()),
        ("result", if report.ok { "clean" } else { "FINDINGS" }.to_owned()),
    ]);
}
