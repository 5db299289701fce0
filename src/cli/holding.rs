//! What a primary holds already, so that `create` overwrites nothing by mistake.

use std::path::Path;

use salvol::archive::{RingStore, Spec};
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
    RingStore::recognise(path).or_else(|| recognise(path)).map_or(Ok(()), |what| refuse(&what))
}

/// Refuses a file or device with something on it that util-linux recognises, when it is to be the store. What salvol itself
/// put there, the store finds.
pub(super) fn refuse_what_the_store_holds(spec: &Spec) -> Outcome {
    let (Spec::File(path) | Spec::Device(path)) = spec else { return Ok(()) };
    match recognise(path).filter(|_| path.exists()) {
        None => Ok(()),
        Some(what) => {
            Err(Failure::new(format_args!("{spec}: holds {what}: --force overwrites it, and nothing brings it back")))
        }
    }
}
