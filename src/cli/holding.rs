//! What a primary holds already, so that `create` overwrites nothing by mistake.

use std::path::Path;
use std::process::Command;

use salvol::control::SuperblockError;

use super::primary::Bench;
use super::{Failure, Outcome};

/// Refuses a primary with something on it that salvol or util-linux recognises.
pub(super) fn refuse_what_it_holds(path: &Path, bench: &Bench) -> Outcome {
    let refuse = |what: &str| {
        Err(Failure::new(format_args!(
            "{}: holds {what}: --force overwrites it, and nothing brings it back",
            path.display()
        )))
    };
    match bench.read_superblock()? {
        Ok(superblock) => return refuse(&format!("the salvol volume {} ({})", superblock.name, superblock.uuid)),
        Err(SuperblockError::None) => {}
        Err(error) => return refuse(&format!("a salvol volume ({error})")),
    }
    let blkid = ["blkid", "/sbin/blkid", "/usr/sbin/blkid"]
        .iter()
        .find_map(|program| Command::new(program).args(["-p", "-o", "export", "--"]).arg(path).output().ok());
    let Some(output) = blkid else {
        log::warn!("{}: there is no blkid (util-linux), so only salvol volumes are recognised", path.display());
        return Ok(());
    };
    let text = String::from_utf8_lossy(&output.stdout);
    let field = |name: &str| text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix('='));
    match (field("TYPE"), field("PTTYPE")) {
        (Some(kind), _) => refuse(&format!("{kind} (says blkid)")),
        (None, Some(kind)) => refuse(&format!("a partition table ({kind}, says blkid)")),
        // Code 8: several things at once.
        (None, None) if output.status.code() == Some(8) => refuse("several things at once (says blkid)"),
        (None, None) => Ok(()),
    }
}
