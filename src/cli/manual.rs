//! `salvol completions` and `salvol man`: made from the command line's own definition.

use std::fs;
use std::io::{self, Write};
use std::path::PathBuf;

use clap::CommandFactory;
use clap_complete::Shell;

use super::{Failure, Outcome};

/// Print a shell's completions for salvol.
#[derive(Debug, clap::Args)]
pub(crate) struct Completions {
    shell: Shell,
}

/// Print the manual page, or write one for each command to a directory.
#[derive(Debug, clap::Args)]
pub(crate) struct Man {
    /// Where to write salvol.1, salvol-create.1, ...
    directory: Option<PathBuf>,
}

pub(crate) fn completions(arguments: &Completions) -> Outcome {
    let mut text = Vec::new();
    clap_complete::generate(arguments.shell, &mut super::Arguments::command(), "salvol", &mut text);
    io::stdout().write_all(&text)?;
    Ok(())
}

pub(crate) fn man(arguments: &Man) -> Outcome {
    let command = super::Arguments::command();
    match &arguments.directory {
        None => clap_mangen::Man::new(command).render(&mut io::stdout())?,
        Some(directory) => {
            let failed = |error| Failure::new(format_args!("{}: {error}", directory.display()));
            fs::create_dir_all(directory).map_err(failed)?;
            clap_mangen::generate_to(command, directory).map_err(failed)?;
        }
    }
    Ok(())
}
