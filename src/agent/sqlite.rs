//! The write locks of SQLite databases, held by the sqlite3 tool: one process a database, which rolls back and lets go
//! when its input ends, whatever ended it.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

/// What the tool says when it has the lock, and when it is asked whether it still has it.
const LOCKED: &str = "locked";

/// Why a database is not locked.
#[derive(Debug, thiserror::Error)]
pub enum LockError {
    #[error("{path}: {source}")]
    Open { path: PathBuf, source: io::Error },
    #[error("{path}: the sqlite3 tool cannot be started: {source}")]
    Start { path: PathBuf, source: io::Error },
    #[error("{path}: cannot be locked: {what}")]
    Refused { path: PathBuf, what: String },
    #[error("{path}: its write lock is not to be had within {limit:?}")]
    Busy { path: PathBuf, limit: Duration },
    #[error("{path}: its lock was lost before the mark was durable: the point is no better than a crash")]
    Lost { path: PathBuf },
}

/// Locks on databases; dropped, they are let go.
#[derive(Debug)]
pub struct Locks(Vec<Lock>);

#[derive(Debug)]
struct Lock {
    path: PathBuf,
    tool: Child,
    said: Receiver<String>,
}

impl Locks {
    /// Takes the write locks of all `files`, always in one order, and has what was committed written to disk. Until
    /// they are let go nobody else writes to any of them.
    ///
    /// # Errors
    /// When one cannot be locked within `limit`, all in all; then none is.
    pub fn take(files: &[PathBuf], limit: Duration) -> Result<Self, LockError> {
        let deadline = Instant::now() + limit;
        let mut sorted: Vec<&PathBuf> = files.iter().collect();
        sorted.sort();
        sorted.dedup();
        // A commit may be in the page cache alone: with a write-ahead log most are. Most of it is written before anybody waits.
        for path in &sorted {
            write_back(path)?;
        }
        let mut locks = Self(Vec::new());
        for path in &sorted {
            locks.0.push(Lock::take(path, deadline, limit)?);
        }
        for path in &sorted {
            write_back(path)?;
        }
        if Instant::now() > deadline {
            return Err(LockError::Busy { path: sorted[0].clone(), limit });
        }
        Ok(locks)
    }

    /// The files' names.
    pub fn names(&self) -> String {
        let names = self.0.iter().map(|lock| lock.path.file_name().unwrap_or(lock.path.as_os_str()).to_string_lossy());
        names.collect::<Vec<_>>().join(", ")
    }

    /// Makes sure that they are still held.
    ///
    /// # Errors
    /// Which one is not.
    pub fn still_held(&mut self) -> Result<(), LockError> {
        for lock in &mut self.0 {
            let asked = lock.tell("SELECT 'locked';\n");
            if asked.is_err() || lock.said.recv_timeout(Duration::from_secs(5)).as_deref() != Ok(LOCKED) {
                return Err(LockError::Lost { path: lock.path.clone() });
            }
        }
        Ok(())
    }
}

/// Makes the database and its logs durable, as far as they have been written.
fn write_back(path: &Path) -> Result<(), LockError> {
    for suffix in ["", "-wal", "-journal"] {
        let mut name = path.as_os_str().to_owned();
        name.push(suffix);
        let synced = File::open(&name).and_then(|file| file.sync_all());
        match synced {
            Err(error) if suffix.is_empty() || error.kind() != io::ErrorKind::NotFound => {
                return Err(LockError::Open { path: name.into(), source: error });
            }
            _ => {}
        }
    }
    Ok(())
}

impl Lock {
    fn take(path: &Path, deadline: Instant, limit: Duration) -> Result<Self, LockError> {
        // The tool makes a database of whatever is not there.
        File::open(path).map_err(|source| LockError::Open { path: path.to_owned(), source })?;
        let mut command = Command::new("sqlite3");
        command.args(["-batch", "-bail", "-noheader", "-list", "-init", "/dev/null"]).arg(path);
        command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let wrong = |source| LockError::Start { path: path.to_owned(), source };
        let mut tool = command.spawn().map_err(wrong)?;
        let (sender, said) = channel();
        for pipe in [tool.stdout.take().map(Pipe::Out), tool.stderr.take().map(Pipe::Err)].into_iter().flatten() {
            let sender = sender.clone();
            std::thread::spawn(move || pipe.lines(|line| sender.send(line).is_ok()));
        }
        drop(sender);
        let mut lock = Self { path: path.to_owned(), tool, said };
        let patience = deadline.saturating_duration_since(Instant::now());
        let wish = format!(".timeout {}\nBEGIN IMMEDIATE;\nSELECT 'locked';\n", patience.as_millis().max(1));
        let told = lock.tell(&wish);
        // The tool waits for the lock as long as this does.
        match lock.said.recv_timeout(patience + Duration::from_secs(1)) {
            Ok(line) if line == LOCKED => Ok(lock),
            Ok(line) if line.contains("locked") => Err(LockError::Busy { path: path.to_owned(), limit }),
            Ok(what) => Err(LockError::Refused { path: path.to_owned(), what }),
            Err(RecvTimeoutError::Timeout) => Err(LockError::Busy { path: path.to_owned(), limit }),
            Err(RecvTimeoutError::Disconnected) => {
                let what = told.map_or_else(|error| error.to_string(), |()| "the sqlite3 tool has gone".to_owned());
                Err(LockError::Refused { path: path.to_owned(), what })
            }
        }
    }

    fn tell(&mut self, what: &str) -> io::Result<()> {
        let Some(input) = &mut self.tool.stdin else { return Err(io::ErrorKind::BrokenPipe.into()) };
        input.write_all(what.as_bytes()).and_then(|()| input.flush())
    }
}

enum Pipe {
    Out(ChildStdout),
    Err(std::process::ChildStderr),
}

impl Pipe {
    fn lines(self, take: impl Fn(String) -> bool) {
        let reader: Box<dyn BufRead> = match self {
            Self::Out(pipe) => Box::new(BufReader::new(pipe)),
            Self::Err(pipe) => Box::new(BufReader::new(pipe)),
        };
        for line in reader.lines().map_while(Result::ok) {
            if !take(line) {
                return;
            }
        }
    }
}

impl Drop for Lock {
    fn drop(&mut self) {
        // The end of its input ends it, and rolls back nothing that anybody wrote.
        drop(self.tool.stdin.take());
        let deadline = Instant::now() + Duration::from_secs(1);
        while matches!(self.tool.try_wait(), Ok(None)) && Instant::now() < deadline {
            std::thread::sleep(Duration::from_millis(2));
        }
        let _ = self.tool.kill();
        let _ = self.tool.wait();
    }
}
