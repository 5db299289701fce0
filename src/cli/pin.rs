//! `salvol pin` and `salvol unpin`. Also: who changes an archive, a daemon or the command itself.

use salvol::archive::Spec;
use salvol::control::{Client, Request, RunDir, RunFile};
use salvol::format::SegmentNumber;
use salvol::history::{Pinned, Source as History, Unpinned, check_pin, pin as pin_in, pinned_as, unpin as unpin_in};
use serde::de::DeserializeOwned;

use super::parse::{Size, Source};
use super::points::{failure, failure_at, open};
use super::running::{Life, connect, find, life, lookup};
use super::{Failure, Outcome, table};

/// Keep a synch point for good: no pruning, and no ring that is full, removes it.
///
/// What is around it may go, so the archive may have gaps before and behind it. A pin costs the segments that the point needs, at
/// most the working set and one more, for as long as it is there.
#[derive(Debug, clap::Args)]
pub(crate) struct Pin {
    /// NAME of a running volume, a PRIMARY, or a SPEC when the primary is gone
    source: String,
    /// The synch point: its id (p42), its label, `latest`, or a time or log position that is a point's
    #[arg(value_name = "POINT")]
    point: String,
    /// As JSON
    #[arg(long)]
    json: bool,
}

/// Let go of a synch point that was pinned, and remove what only it kept.
///
/// Segments that are in one piece with newer ones stay, until they are pruned. A pin whose record is damaged goes by the name that
/// `prune` and `verify` give; what it kept stays.
#[derive(Debug, clap::Args)]
pub(crate) struct Unpin {
    /// NAME of a running volume, a PRIMARY, or a SPEC when the primary is gone
    source: String,
    /// The synch point, as for `pin`
    #[arg(value_name = "POINT")]
    point: String,
    /// As JSON
    #[arg(long)]
    json: bool,
}

pub(crate) fn pin(arguments: &Pin) -> Outcome {
    let archive = Archive::of(&arguments.source)?;
    let past = &archive.past;
    let failed = |error| failure_at(past, &arguments.point, error);
    let moment = past.resolve(&arguments.point).map_err(failed)?;
    check_pin(past, &moment).map_err(failed)?;
    let now = i64::try_from(jiff::Timestamp::now().as_nanosecond())?;
    let pinned: Pinned = match archive.daemon()? {
        Some(daemon) => daemon.ask(&Request::Pin { point: moment.name() })?,
        None => {
            let _turn = archive.turn();
            pin_in(past, &moment, now).map_err(failed)?
        }
    };
    if arguments.json {
        return Ok(table::print_json(&pinned)?);
    }
    let label = if pinned.label.is_empty() { String::new() } else { format!(" ({})", table::plain(&pinned.label)) };
    let how = if pinned.already { "was pinned already" } else { "is pinned" };
    table::say!("{}{label} {how}: {} segments stay for it", pinned.id, pinned.segments);
    Ok(())
}

pub(crate) fn unpin(arguments: &Unpin) -> Outcome {
    let archive = Archive::of(&arguments.source)?;
    let past = &archive.past;
    let id = pinned_as(past, &arguments.point).map_err(|error| failure_at(past, &arguments.point, error))?;
    let unpinned: Unpinned = match archive.daemon()? {
        Some(daemon) => daemon.ask(&Request::Unpin { point: id })?,
        None => {
            let _turn = archive.turn();
            unpin_in(past, &id, &|| archive.leased()).map_err(failure)?
        }
    };
    if arguments.json {
        return Ok(table::print_json(&unpinned)?);
    }
    match unpinned.objects {
        0 => table::say!(
            "{} is no longer pinned; what it kept is needed by others, or goes with the next prune",
            unpinned.id
        ),
        objects => table::say!(
            "{} is no longer pinned; {} segments were removed: {objects} objects, {}",
            unpinned.id,
            unpinned.segments,
            Size(unpinned.bytes)
        ),
    }
    Ok(())
}

/// An archive that is to be changed: its past, and the daemon that serves its volume, if there is one.
pub(super) struct Archive {
    pub(super) past: History,
    runs: RunDir,
    run: Option<RunFile>,
}

/// A daemon, and what its volume is called.
pub(super) struct Daemon {
    client: Client,
    name: String,
}

impl Archive {
    /// The archive of the volume that `text` names.
    pub(super) fn of(text: &str) -> Result<Self, Failure> {
        let runs = RunDir::from_environment();
        let run = match Source::parse(text).map_err(Failure::usage)? {
            Source::Name(_) => Some(find(&runs, text)?),
            Source::Path(_) => lookup(&runs, text)?,
            Source::Spec(spec) => {
                let past = open(text)?;
                let (uuid, spec) = (past.volume().uuid.to_string(), super::parse::spec(&spec).map_err(Failure::usage)?);
                let serves = |run: &RunFile| run.at.is_none() && run.uuid == uuid && is_one_place(&run.backing, &spec);
                let run = runs.all().into_iter().find(serves);
                return Ok(Self { past, runs, run });
            }
        };
        if let Some((run, at)) = run.as_ref().and_then(|run| Some((run, run.at.as_ref()?))) {
            return Err(Failure::usage(format_args!("{}: is a view of the past ({at}); name the volume", run.name)));
        }
        let past = match &run {
            Some(run) => History::open_primary(&run.primary).map_err(failure)?,
            None => open(text)?,
        };
        Ok(Self { past, runs, run })
    }

    /// The daemon that has the store, and alone knows what it needs of it. One that is dead may have left a rollback
    /// unfinished, so first somebody takes over.
    pub(super) fn daemon(&self) -> Result<Option<Daemon>, Failure> {
        let Some(run) = &self.run else { return Ok(None) };
        match life(&self.runs, run)? {
            Life::Gone => Ok(None),
            _ => Ok(Some(Daemon { client: connect(&self.runs, run)?, name: run.name.clone() })),
        }
    }

    /// Nobody else on this machine pins or prunes while this lives.
    pub(super) fn turn(&self) -> Option<std::fs::File> {
        self.runs.lock_archive(&self.past.volume().uuid.to_string())
    }

    /// From which segment on views of the past read.
    pub(super) fn leased(&self) -> Option<SegmentNumber> {
        self.runs.leased_from(&self.past.volume().uuid.to_string())
    }
}

/// Whether two SPECs lead to one store, whatever links are on the way.
fn is_one_place(one: &str, other: &str) -> bool {
    let place = |spec: &str| match Spec::parse(spec).ok()? {
        Spec::Directory(path) | Spec::File(path) | Spec::Device(path) => path.canonicalize().ok(),
        Spec::None => None,
    };
    one == other || place(one).is_some_and(|place_of_one| Some(place_of_one) == place(other))
}

impl Daemon {
    pub(super) fn ask<T: DeserializeOwned>(mut self, request: &Request) -> Result<T, Failure> {
        let answer = self.client.ask(request).map_err(|error| Failure::new(error).of(&self.name))?;
        serde_json::from_value(answer).map_err(|error| Failure::new(format_args!("{}: its answer: {error}", self.name)))
    }
}
