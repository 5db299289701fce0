//! `salvol destroy`: wipes the superblocks. The archive stays.

use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use salvol::control::{SuperblockError, wipe_superblocks};
use salvol::format::BLOCK_BYTES;
use salvol::io::{Bench, Device, Primary};

use super::primary::{canonical, superblock};
use super::{Failure, Outcome, table};

/// Wipe the superblocks of a volume, so that PRIMARY is free; its archive stays.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A block device or a file that holds a volume
    primary: PathBuf,
    /// Do not ask; also when the superblocks are damaged or of another version
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let path = canonical(&arguments.primary);
    // Taking the lock refuses a volume that is attached.
    let bench = Bench::new(Primary::own(&path, Duration::ZERO)?)?;
    let (what, copy_at) = match superblock(&bench)? {
        Ok(superblock) => (format!("volume {} ({})", superblock.name, superblock.uuid), superblock.geometry.copy_at()),
        // What was never a volume is somebody else's, whatever is said.
        Err(error @ (SuperblockError::None | SuperblockError::Io(_))) => {
            return Err(Failure::from(error).of(path.display()));
        }
        Err(error) if arguments.force => {
            table::aside!("{}: {error}; wiped as told", path.display());
            ("what is left of the volume".to_owned(), bench.device.bytes() - BLOCK_BYTES as u64)
        }
        Err(error) => return Err(Failure::from(error).of(path.display())),
    };
    if !arguments.force
        && !agreed(&format!("{what} on {} will be gone; its archive stays. Go on? [y/N] ", path.display()))?
    {
        return Err(Failure::new(format_args!("{}: not destroyed", path.display())));
    }
    let device = bench.device.clone();
    bench.wait(async move { wipe_superblocks(&device, copy_at).await })??;
    Ok(())
}

/// Asks on a terminal; nobody there agrees to nothing.
fn agreed(question: &str) -> Result<bool, Failure> {
    if !std::io::stdin().is_terminal() {
        return Err(Failure::usage("destroy asks before it wipes and nobody is there to answer: add --force"));
    }
    eprint!("{question}");
    std::io::stderr().flush()?;
    let mut answer = String::new();
    std::io::stdin().lock().read_line(&mut answer)?;
    Ok(matches!(answer.trim(), "y" | "Y" | "yes"))
}
