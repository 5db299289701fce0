//! `salvol destroy`: wipes the superblocks. The archive stays.

use std::io::{BufRead, IsTerminal, Write};
use std::path::PathBuf;
use std::time::Duration;

use salvol::control::wipe_superblocks;
use salvol::io::{Device, Primary};

use super::primary::{Bench, canonical};
use super::{Failure, Outcome};

/// Wipe the superblocks of a volume, so that PRIMARY is free; its archive stays.
#[derive(Debug, clap::Args)]
pub(crate) struct Arguments {
    /// A block device or a file that holds a volume
    primary: PathBuf,
    /// Do not ask; also when the superblocks are damaged
    #[arg(long)]
    force: bool,
}

pub(crate) fn run(arguments: &Arguments) -> Outcome {
    let path = canonical(&arguments.primary);
    // Taking the lock refuses a volume that is attached.
    let bench = Bench::new(Primary::own(&path, Duration::ZERO)?)?;
    let (what, copy_at) = match bench.superblock() {
        Ok(superblock) => (format!("volume {} ({})", superblock.name, superblock.uuid), superblock.geometry.copy_at()),
        Err(failure) if arguments.force => {
            eprintln!("salvol: {}: {failure}; wiped as told", path.display());
            ("what is left of the volume".to_owned(), bench.device.bytes().saturating_sub(4096))
        }
        Err(failure) => return Err(failure.of(path.display())),
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
