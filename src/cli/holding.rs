//! What a primary holds already, so that `create` overwrites nothing by mistake.

use std::path::Path;

use salvol::control::SuperblockError;
use salvol::history::recognise;
use salvol::io::Bench;

use super::primary::superblock;
use super::{Failure, Outcome};

/// Refuses a primary with something on it that salvol or util-linux recognises.
pub(super) fn refuse_what_it_holds(path: &Path, bench: &Bench) -> Outcome {
    let refuse = |what: &str| {
        Err(Failure::new(format_args!(
            "{}: holds {what}: --force overwrites it, and nothing brings it back",
            path.display()
        )))
    };
    match superblock(bench)? {
        Ok(superblock) => return refuse(&format!("the salvol volume {} ({})", superblock.name, superblock.uuid)),
        Err(SuperblockError::None) => {}
        Err(error) => return refuse(&format!("a salvol volume ({error})")),
    }
    recognise(path).map_or(Ok(()), |what| refuse(&what))
}
