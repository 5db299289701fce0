//! How a command fails: an error and an exit code.

use std::fmt;
use std::process::ExitCode;

use salvol::control::SuperblockError;
use salvol::ublk::ServerError;

use super::table;

/// What every command returns.
pub(crate) type Outcome = Result<(), Failure>;

const FAILED: u8 = 1;
const USAGE: u8 = 2;
const CORRUPT: u8 = 3;
const NO_POINT: u8 = 4;

/// An error with the exit code it deserves.
#[derive(Debug)]
pub(crate) struct Failure {
    code: u8,
    error: anyhow::Error,
}

impl Failure {
    /// Wrong usage that the argument parser could not see.
    pub(crate) fn usage(what: impl fmt::Display) -> Self {
        Self { code: USAGE, error: anyhow::anyhow!("{what}") }
    }

    /// A plain failure.
    pub(crate) fn new(what: impl fmt::Display) -> Self {
        Self { code: FAILED, error: anyhow::anyhow!("{what}") }
    }

    /// Damage was found.
    pub(crate) fn corrupt(what: impl fmt::Display) -> Self {
        Self { code: CORRUPT, error: anyhow::anyhow!("{what}") }
    }

    /// There is no such point, or it can no longer be restored.
    pub(crate) fn no_point(what: impl fmt::Display) -> Self {
        Self { code: NO_POINT, error: anyhow::anyhow!("{what}") }
    }

    /// The failure that a daemon reported through its pipe.
    pub(crate) fn reported(code: u8, what: &str) -> Self {
        Self { code, error: anyhow::anyhow!("{what}") }
    }

    pub(crate) fn code(&self) -> u8 {
        self.code
    }

    /// The same failure, of `what`.
    pub(crate) fn of(self, what: impl fmt::Display) -> Self {
        Self { code: self.code, error: anyhow::anyhow!("{what}: {self}") }
    }

    /// Prints the error, one line first, and gives the exit code.
    pub(crate) fn report(&self) -> ExitCode {
        for line in self.to_string().lines() {
            table::aside!("{}", table::plain(line));
        }
        ExitCode::from(self.code)
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        // Some errors print their source themselves, some do not.
        let mut text = self.error.to_string();
        for source in self.error.chain().skip(1).map(ToString::to_string) {
            if !text.contains(&source) {
                text = format!("{text}: {source}");
            }
        }
        f.write_str(&text)
    }
}

impl<E: Into<anyhow::Error>> From<E> for Failure {
    fn from(error: E) -> Self {
        let error = error.into();
        let code = match is_corruption(&error) {
            true => CORRUPT,
            false if is_no_point(&error) => NO_POINT,
            false => FAILED,
        };
        Self { code, error }
    }
}

fn is_no_point(error: &anyhow::Error) -> bool {
    matches!(error.downcast_ref(), Some(ServerError::Past(error)) if error.is_no_point())
}

fn is_corruption(error: &anyhow::Error) -> bool {
    error.downcast_ref().is_some_and(ServerError::is_corruption)
        || error.downcast_ref().is_some_and(SuperblockError::is_corruption)
}
