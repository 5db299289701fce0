//! Agents: programs that make an application's blocks consistent for the moment of a mark.
//!
//! Four kinds, each a function that gets the application ready, has the moment marked, and lets go of the application on
//! every way out: [`fs`] freezes a file system, [`postgres`] says how far a server's WAL is, [`sqlite`] holds the write
//! locks of databases, [`exec`] runs a command. What they say about the moment is kept with the point as its information.
//!
//! Every program that is waited for has a limit, and is killed with all that it started when it reaches it.

mod command;
mod freeze;
mod sqlite;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

pub use command::{CommandError, shell};
pub use freeze::{Freeze, FreezeError, help};
pub use sqlite::{LockError, Locks};

/// Bytes of a point's information that an agent keeps of what a program prints.
const INFO_BYTES: usize = 1024;

/// Why a moment was not marked, or is not what it should be.
#[derive(Debug, thiserror::Error)]
pub enum AgentError {
    #[error(transparent)]
    Freeze(#[from] FreezeError),
    #[error(transparent)]
    Command(#[from] CommandError),
    #[error(transparent)]
    Lock(#[from] LockError),
    #[error("{0}")]
    Mark(String),
}

/// Marks the moment, with this information; an error says why not.
pub type Mark<'a, T> = dyn FnMut(&str) -> Result<T, String> + 'a;

/// Freezes the file system at `path` for the moment.
///
/// # Errors
/// When it cannot be frozen, the moment cannot be marked, or the freeze ended before it was.
pub fn fs<T>(
    path: &Path,
    limit: Duration,
    helper: impl FnOnce(&Path, Duration) -> Command,
    mark: &mut Mark<'_, T>,
) -> Result<T, AgentError> {
    let freeze = Freeze::begin(path, limit, helper)?;
    let marked = mark(&format!("frozen {}", path.display()));
    let ended = freeze.end();
    let marked = marked.map_err(AgentError::Mark)?;
    ended?;
    Ok(marked)
}

/// What a server says of the moment. Marks need no more: any moment of a server that logs ahead is one that it recovers from.
const POSTGRES: &str = "SELECT 'wal=' || CASE WHEN pg_is_in_recovery() THEN pg_last_wal_replay_lsn() ELSE pg_current_wal_flush_lsn() END \
     || ' system=' || system_identifier || ' version=' || current_setting('server_version') FROM pg_control_system()";

/// Asks the PostgreSQL server at `uri`, by its own client, how far its log is on disk; with `checkpoint` has it write one
/// before, so that recovery from the point is short.
///
/// # Errors
/// When the server does not answer within `limit`, or the moment cannot be marked.
pub fn postgres<T>(uri: &str, checkpoint: bool, limit: Duration, mark: &mut Mark<'_, T>) -> Result<T, AgentError> {
    let mut psql = Command::new("psql");
    psql.args(["-X", "-q", "-t", "-A", "-v", "ON_ERROR_STOP=1"]).env("PGCONNECT_TIMEOUT", "10");
    if checkpoint {
        psql.args(["-c", "CHECKPOINT"]);
    }
    psql.args(["-c", POSTGRES, "-d", uri]);
    let info = command::output(psql, limit, INFO_BYTES)?;
    mark(info.trim()).map_err(AgentError::Mark)
}

/// Holds the write locks of the SQLite databases `files` for the moment; all that was committed is on disk then.
///
/// # Errors
/// When a lock is not to be had within `limit`, or the moment cannot be marked.
pub fn sqlite<T>(files: &[PathBuf], limit: Duration, mark: &mut Mark<'_, T>) -> Result<T, AgentError> {
    let mut locks = Locks::take(files, limit)?;
    let marked = mark(&format!("locked {}", locks.names())).map_err(AgentError::Mark)?;
    locks.still_held()?;
    Ok(marked)
}

/// Runs `command` by the shell, and marks the moment when it succeeds. What it prints is the point's information.
///
/// # Errors
/// When it fails or takes longer than `limit`, or the moment cannot be marked.
pub fn exec<T>(
    command: &str,
    facts: &[(&str, String)],
    limit: Duration,
    mark: &mut Mark<'_, T>,
) -> Result<T, AgentError> {
    let mut shell = Command::new("/bin/sh");
    shell.args(["-c", command]).envs(facts.iter().map(|(name, value)| (name, value)));
    let info = command::output(shell, limit, INFO_BYTES)?;
    mark(info.trim()).map_err(AgentError::Mark)
}
