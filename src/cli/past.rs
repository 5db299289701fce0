//! `salvol attach SOURCE --at POINT`: a volume as it was becomes a second device.

use std::fs::File;
use std::path::{Path, PathBuf};

use salvol::archive::{Spec, store_identity};
use salvol::control::RunDir;
use salvol::history::{Moment, Writable};
use salvol::ublk::{self, PastSource, What};

use super::attach::{Arguments, in_background, refuse_if_attached};
use super::daemon::{self, Ready};
use super::parse::Source;
use super::points::{failure, failure_at};
use super::primary::{canonical, look};
use super::running::find;
use super::{Failure, Manner, Outcome, table};

/// Bytes of a volume's name and of what its view shows: the path of the control socket has 107 at most.
const NAME_BYTES: usize = 85;

pub(crate) fn run(mut arguments: Arguments, manner: Manner) -> Outcome {
    if arguments.background_child {
        return daemon::background(&arguments);
    }
    ublk::require(arguments.force_kernel)?;
    let source = source(&arguments.primary)?;
    let past = source.open().map_err(failure)?;
    let text = arguments.at.clone().unwrap_or_default();
    let moment = past.resolve(&text).map_err(|error| failure_at(&past, &text, error))?;
    let volume = past.volume();
    if volume.backing == "none" {
        manner.note(format_args!(
            "{}: keeps no archive: what is overwritten from now on can no longer be read in the view",
            volume.name
        ));
    }
    let name = format!("{}@{}", volume.name, called(&text, &moment, &volume.name));
    let runs = RunDir::from_environment();
    if let Some(run) = runs.all().iter().find(|run| run.name == name) {
        refuse_if_attached(&runs, run)?;
    }
    // The daemon works in another directory, and is told what has been found.
    arguments.overlay = arguments.overlay.as_deref().map(canonical);
    arguments.at = Some(moment.position.to_string());
    arguments.view = Some(name.clone());
    arguments.primary = match &source {
        PastSource::Primary(path) => path.clone(),
        PastSource::Store(spec) => PathBuf::from(spec.to_string()),
    };
    if arguments.foreground {
        return daemon::serve(&arguments, Ready::Foreground);
    }
    manner.note(format_args!("{name} is {moment}"));
    table::say!("{}", in_background(&arguments, &name, manner)?.display());
    Ok(())
}

/// What a daemon with these arguments serves.
pub(crate) fn what(arguments: &Arguments, name: &str) -> Result<What, Failure> {
    let writable = match (&arguments.overlay, arguments.writable) {
        (Some(file), _) => Writable::Kept(file.clone()),
        (None, true) => {
            Writable::Discarded(std::env::var_os("TMPDIR").map_or_else(|| "/var/tmp".into(), PathBuf::from))
        }
        (None, false) => Writable::No,
    };
    let at = arguments.at.clone().unwrap_or_default();
    Ok(What::Past { source: source(&arguments.primary)?, at, writable, name: name.to_owned() })
}

/// Keeps what the view reads from being pruned while this lives; `None` where there can be no lock.
pub(crate) fn turn(arguments: &Arguments, runs: &RunDir) -> Result<Option<File>, Failure> {
    let uuid = match source(&arguments.primary)? {
        PastSource::Primary(path) => look(&path)?.uuid,
        PastSource::Store(spec) => store_identity(&spec)?.uuid,
    };
    Ok(runs.lock_archive(&uuid.to_string()))
}

/// What a view of the moment is called: as it was asked for, when that names a file and always means the same.
fn called(text: &str, moment: &Moment, volume: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "._-:+".contains(c);
    match &moment.mark {
        _ if text != "latest" && volume.len() + text.len() <= NAME_BYTES && text.chars().all(plain) => text.to_owned(),
        _ => moment.name(),
    }
}

fn source(path: &Path) -> Result<PastSource, Failure> {
    let text = path.to_str().ok_or_else(|| Failure::usage(format_args!("{}: is not UTF-8", path.display())))?;
    Ok(match Source::parse(text).map_err(Failure::usage)? {
        Source::Path(path) => PastSource::Primary(canonical(&path)),
        Source::Spec(spec) => PastSource::Store(Spec::parse(&super::parse::spec(&spec).map_err(Failure::usage)?)?),
        Source::Name(_) => {
            let run = find(&RunDir::from_environment(), text)?;
            if let Some(at) = &run.at {
                return Err(Failure::usage(format_args!("{text}: is itself a view of the past ({at})")));
            }
            PastSource::Primary(run.primary)
        }
    })
}
