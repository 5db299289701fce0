//! `salvol dump`.

use std::path::Path;

use salvol::control::RunDir;
use salvol::format::SegmentNumber;
use salvol::history::{DumpSection, HistoryError, Source as History, dump, dump_object};

use super::parse::Source;
use super::points::{failure, open};
use super::running::find;
use super::{Failure, Outcome, table};

/// Show the log as text.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A PRIMARY, an archive's SPEC, or the file of an archive object (.zst)
    source: String,
    /// Only this segment
    #[arg(long, value_name = "N")]
    segment: Option<u64>,
    /// As JSON, one object a line
    #[arg(long)]
    json: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let only = arguments.segment.map(SegmentNumber);
    let mut shown = 0;
    let mut show = |section: DumpSection| -> Result<(), HistoryError> {
        shown += 1;
        match serde_json::to_string(&section).ok().filter(|_| arguments.json) {
            Some(line) => table::say!("{line}"),
            None => table::line(format_args!("{}", section.to_string().trim_end())),
        }
        Ok(())
    };
    let object = match Source::parse(&arguments.source) {
        Ok(Source::Path(path)) if path.extension().is_some_and(|kind| kind == "zst") => Some(path),
        _ if arguments.source.ends_with(".zst") => Some(Path::new(&arguments.source).to_owned()),
        _ => None,
    };
    match object {
        Some(path) => dump_object(&path, &mut show).map_err(failure)?,
        None => dump(&source(&arguments.source)?, only, &mut show).map_err(failure)?,
    }
    match (shown, only) {
        (0, Some(segment)) => Err(Failure::no_point(format_args!("{}: has no segment {segment}", arguments.source))),
        _ => Ok(()),
    }
}

/// A primary is shown as it is, with its store away or not.
fn source(text: &str) -> Result<History, Failure> {
    match Source::parse(text).map_err(Failure::usage)? {
        Source::Path(path) => History::open_primary_alone(&path).map_err(failure),
        Source::Name(_) => {
            History::open_primary_alone(&find(&RunDir::from_environment(), text)?.primary).map_err(failure)
        }
        Source::Spec(_) => open(text),
    }
}
