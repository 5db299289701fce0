//! The `salvol` command: see `cli/` for what each of its verbs does.
mod cli;

use std::process::ExitCode;

fn main() -> ExitCode {
    cli::run()
}
