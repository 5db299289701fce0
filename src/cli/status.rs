//! `salvol status`: what a volume is doing.

use std::io::{IsTerminal, Write};
use std::time::Duration;

use salvol::control::{Request, RunDir};
use salvol::format::{ArchiveAt, BLOCK_BYTES, Superblock};
use salvol::volume::{AgentStatus, ArchiveStatus, Status};

use super::parse::{Size, Source};
use super::primary::look;
use super::running::{connect, find, lookup};
use super::{Failure, Outcome, table};

/// Show what a volume is doing: segments, rates, archive lag, what can be restored.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// NAME of a running volume, or a PRIMARY
    volume: String,
    /// As JSON
    #[arg(long)]
    json: bool,
    /// Again every second
    #[arg(long)]
    watch: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    loop {
        let status = status(&arguments.volume)?;
        if arguments.watch && !arguments.json && std::io::stdout().is_terminal() {
            // Clears the screen.
            print!("\x1b[H\x1b[2J");
        }
        if arguments.json && arguments.watch {
            table::say!("{}", serde_json::to_string(&status)?);
        } else if arguments.json {
            table::print_json(&status)?;
        } else {
            print(&status);
        }
        if !arguments.watch || table::is_closed() {
            return Ok(());
        }
        let _ = std::io::stdout().flush();
        std::thread::sleep(Duration::from_secs(1));
    }
}

fn status(volume: &str) -> Result<Status, Failure> {
    let runs = RunDir::from_environment();
    if let Source::Path(path) = Source::parse(volume).map_err(Failure::usage)?
        && lookup(&runs, volume)?.is_none()
    {
        return Ok(detached(&look(&path)?));
    }
    let run = find(&runs, volume)?;
    let answer = connect(&runs, &run)?.ask(&Request::Status {});
    let answer = answer.map_err(|error| Failure::new(format_args!("{}: {error}", run.name)))?;
    Ok(serde_json::from_value(answer)?)
}

/// What the superblock alone tells.
fn detached(superblock: &Superblock) -> Status {
    let geometry = &superblock.geometry;
    Status {
        name: superblock.name.clone(),
        uuid: superblock.uuid.to_string(),
        state: "detached".to_owned(),
        size_bytes: geometry.volume_blocks * BLOCK_BYTES as u64,
        block_size: BLOCK_BYTES as u64,
        segment_size: geometry.segment_bytes() as u64,
        slots: u64::from(geometry.slots),
        working_set_segments: u64::from(geometry.working_set),
        archive_at: archive_at(superblock.archive_at).to_owned(),
        archive: ArchiveStatus { store: superblock.backing.clone(), ..ArchiveStatus::default() },
        epoch: superblock.epoch,
        ..Status::default()
    }
}

pub(crate) fn archive_at(when: ArchiveAt) -> &'static str {
    match when {
        ArchiveAt::Seal => "seal",
        ArchiveAt::Inactive => "inactive",
    }
}

fn print(status: &Status) {
    let size = |bytes: u64| Size(bytes).to_string();
    let segments = &status.segments;
    let running = status.state != "detached" && status.at.is_none();
    let archive = &status.archive;
    let store = match archive.store.as_str() {
        "none" => "none: no history is kept".to_owned(),
        store => format!("{store}, at {}", status.archive_at),
    };
    let when = |rows: Vec<(&'static str, String)>| if running { rows } else { Vec::new() };
    let mut rows = vec![
        ("volume", format!("{} ({})", status.name, status.uuid)),
        ("state", status.state.clone()),
        ("shows", status.at.clone().unwrap_or_default()),
        ("device", status.device.clone().unwrap_or_default()),
        ("size", size(status.size_bytes)),
        (
            "segments",
            if status.at.is_some() {
                String::new()
            } else {
                format!(
                    "{} of {}, {} in the working set",
                    status.slots,
                    size(status.segment_size),
                    status.working_set_segments
                )
            },
        ),
        ("archive", store),
    ];
    rows.extend(when(vec![
        (
            "now",
            format!(
                "{} current, {} active, {} inactive, {} recycle; {} archived",
                segments.current, segments.active, segments.inactive, segments.recycle, segments.archived
            ),
        ),
        (
            "log position",
            format!("{} (durable {}), segment {}", status.position, status.durable_position, status.current_segment),
        ),
        (
            "written",
            format!(
                "{} by users, {} to the log; amplification {:.2}",
                size(status.user_bytes_written),
                size(status.log_bytes_written),
                status.write_amplification
            ),
        ),
        ("archived", format!("{}, compressed {:.2} to 1", size(status.bytes_archived), status.compression_ratio)),
        (
            "archive lag",
            format!("{} segments, {}, {:.0} s", archive.queue, size(archive.lag_bytes), archive.lag_seconds),
        ),
        ("exposed", exposed(archive)),
        ("store", fill(archive)),
        ("archiver", archiver(archive)),
        ("STORE TROUBLE", trouble(status)),
        ("synch points", status.points.to_string()),
        ("restorable", restorable(status)),
        ("throttled", format!("{:.1} s", status.throttled_seconds)),
        ("read errors", status.read_errors.to_string()),
    ]));
    rows.extend(status.agents.iter().map(|agent| ("agent", self::agent(agent))));
    table::print(&rows);
}

/// How an agent is doing.
fn agent(agent: &AgentStatus) -> String {
    let last = match (&agent.point, agent.last_success_seconds) {
        (Some(point), Some(seconds)) => format!("{point} {seconds:.0} s ago"),
        _ => "no point yet".to_owned(),
    };
    let every = if agent.every_seconds > 0.0 { format!(", every {:.0} s", agent.every_seconds) } else { String::new() };
    let fails = agent.error.as_ref().map(|error| format!("; FAILS, {} times in a row: {error}", agent.failures));
    format!("{}: {last}{every}{}", agent.name, fails.unwrap_or_default())
}

/// What losing the primary now would lose.
fn exposed(archive: &ArchiveStatus) -> String {
    match archive.store.as_str() {
        "none" => "everything: there is no archive".to_owned(),
        _ if archive.exposed_seconds == 0.0 => "nothing: all changes are in the archive".to_owned(),
        _ => format!("{:.0} s of changes would be lost with the primary", archive.exposed_seconds.ceil()),
    }
}

/// How full the store is.
fn fill(archive: &ArchiveStatus) -> String {
    let full = archive.store_used_bytes.zip(archive.store_capacity_bytes);
    full.map_or_else(String::new, |(used, capacity)| format!("{} of {} in use", Size(used), Size(capacity)))
}

/// How the archiver works.
fn archiver(archive: &ArchiveStatus) -> String {
    if archive.store == "none" {
        return String::new();
    }
    let threads = format!("{} at once", archive.threads);
    let level = archive.level.map(|level| format!("level {level}"));
    let rate = archive.rate_limit.map(|rate| format!("at most {}/s", Size(rate)));
    [Some(threads), level, rate].into_iter().flatten().collect::<Vec<_>>().join(", ")
}

/// What is wrong with the store, since when, what waits for it, and what comes next.
fn trouble(status: &Status) -> String {
    let archive = &status.archive;
    let Some(error) = &archive.error else { return String::new() };
    let next = match status.state.as_str() {
        "waiting" => "writers wait until it is back",
        "throttled" => "writers are slowed down, and will wait when the last slot is used",
        _ => "writers go on while there are slots",
    };
    format!(
        "{error}; since {} ({:.0} s), {} segments ({}) wait, {} slots are left: {next}; it is tried again",
        archive.error_since.as_deref().unwrap_or("a while"),
        archive.error_seconds.unwrap_or_default(),
        archive.queue,
        Size(archive.lag_bytes),
        status.segments.recycle
    )
}

fn restorable(status: &Status) -> String {
    match (&status.oldest_restorable, &status.newest_restorable) {
        (Some(oldest), Some(newest)) => format!("from {oldest} to {newest}"),
        _ => "nothing yet".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn trouble_says_what_since_when_and_what_comes_next() {
        let mut status = Status { state: "live".to_owned(), ..Status::default() };
        assert_eq!(trouble(&status), "");
        status.segments.recycle = 3;
        status.archive = ArchiveStatus {
            queue: 12,
            lag_bytes: 12 << 26,
            error: Some("segment 7: dir:/b: No space left on device".to_owned()),
            error_since: Some("2026-01-02T03:04:05Z".to_owned()),
            error_seconds: Some(61.4),
            threads: 2,
            level: Some(4),
            rate_limit: Some(50 << 20),
            ..ArchiveStatus::default()
        };
        assert_eq!(
            trouble(&status),
            "segment 7: dir:/b: No space left on device; since 2026-01-02T03:04:05Z (61 s), 12 segments (768M) wait, 3 slots \
             are left: writers go on while there are slots; it is tried again"
        );
        status.state = "waiting".to_owned();
        assert!(trouble(&status).contains("writers wait"));
        assert_eq!(archiver(&status.archive), "2 at once, level 4, at most 50M/s");
    }
}
