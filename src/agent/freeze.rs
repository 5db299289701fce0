//! A file system frozen for the moment of a mark, and thawed on every way out.
//!
//! A helper process freezes and thaws; its input and output are pipes to whoever wants the freeze.
//!
//! ```text
//! whoever marks                              the helper, a session of its own
//! -------------                              --------------------------------
//! Freeze::begin   ────── started ─────────►  writes the file system back; FIFREEZE: stops writers, writes back the rest
//!                 ◄───── "frozen" ─────────
//! marks                                      waits for the end of its input, at most the limit
//! Freeze::end     ────── closes the pipe ─►  FITHAW
//!                 ◄───── "thawed" / "late" ─
//! ```
//!
//! Whoever marks and dies closes the pipe: the helper thaws. The helper dies: the other end sees that and thaws. Neither
//! ends: the helper thaws at the limit, and says that it was late, since what was marked then may not be consistent.

use std::fs::File;
use std::io::{self, BufRead, BufReader, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{SigSet, Signal};

/// How often a thaw that fails is tried.
const THAWS: usize = 50;
/// What the helper says when the file system is frozen.
const FROZEN: &str = "frozen";
/// When it has thawed it because it was told to.
const THAWED: &str = "thawed";
/// When it has thawed it because nobody told it to in time.
const LATE: &str = "late";

/// Why a file system was not frozen, or not for as long as it should have been.
#[derive(Debug, thiserror::Error)]
pub enum FreezeError {
    #[error("{path}: {source}")]
    Open { path: PathBuf, source: io::Error },
    #[error("{path}: cannot be frozen: {what}")]
    Refused { path: PathBuf, what: String },
    #[error("{path}: the process that freezes it cannot be started: {source}")]
    Helper { path: PathBuf, source: io::Error },
    #[error(
        "{path}: was thawed after {limit:?}, before the mark was durable: the point, if there is one, is no better than a crash"
    )]
    Late { path: PathBuf, limit: Duration },
    #[error("{path}: cannot be thawed: {source}: `fsfreeze --unfreeze {path}`")]
    Thaw { path: PathBuf, source: io::Error },
}

mod ioctl {
    #![expect(
        unsafe_code,
        reason = "nix makes unsafe functions of ioctl numbers; both take a number that is not looked at"
    )]
    nix::ioctl_readwrite!(fifreeze, b'X', 119, libc::c_int);
    nix::ioctl_readwrite!(fithaw, b'X', 120, libc::c_int);

    pub(super) fn freeze(file: &std::fs::File) -> nix::Result<()> {
        let mut unused = 0;
        // SAFETY: the descriptor is open, and the number lives until the call returns.
        unsafe { fifreeze(std::os::fd::AsRawFd::as_raw_fd(file), &raw mut unused) }.map(drop)
    }

    pub(super) fn thaw(file: &std::fs::File) -> nix::Result<()> {
        let mut unused = 0;
        // SAFETY: as above.
        unsafe { fithaw(std::os::fd::AsRawFd::as_raw_fd(file), &raw mut unused) }.map(drop)
    }
}

/// A file system that is frozen; dropped, it is thawed.
#[derive(Debug)]
pub struct Freeze {
    path: PathBuf,
    limit: Duration,
    file: File,
    /// Taken when it has ended.
    helper: Option<(Child, BufReader<ChildStdout>)>,
}

impl Freeze {
    /// Freezes the file system at `path`, for `limit` at most, by a process that `helper` makes of the two: it must call
    /// [`help`]. Freezing writes the file system back first, however long that takes.
    ///
    /// # Errors
    /// When it cannot be frozen, or somebody else has frozen it.
    pub fn begin(
        path: &Path,
        limit: Duration,
        helper: impl FnOnce(&Path, Duration) -> Command,
    ) -> Result<Self, FreezeError> {
        let file = open(path)?;
        let started = helper(path, limit).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let wrong = |source| FreezeError::Helper { path: path.to_owned(), source };
        let mut child = started.map_err(wrong)?;
        let said = child.stdout.take().ok_or_else(|| wrong(io::Error::from(io::ErrorKind::BrokenPipe)))?;
        let mut freeze = Self { path: path.to_owned(), limit, file, helper: Some((child, BufReader::new(said))) };
        match freeze.hear() {
            line if line == FROZEN => Ok(freeze),
            mut what => {
                if let Some((mut child, _)) = freeze.helper.take() {
                    let _ = child.kill();
                    let _ = child.wait();
                }
                if what.is_empty() {
                    // Killed, perhaps when it had frozen it.
                    let _ = ioctl::thaw(&freeze.file);
                    "its helper has gone".clone_into(&mut what);
                }
                Err(FreezeError::Refused { path: path.to_owned(), what })
            }
        }
    }

    /// Thaws it.
    ///
    /// # Errors
    /// When the limit came first, or it cannot be thawed.
    pub fn end(mut self) -> Result<(), FreezeError> {
        self.thaw()
    }

    fn hear(&mut self) -> String {
        let mut line = String::new();
        if let Some((_, said)) = &mut self.helper {
            let _ = said.read_line(&mut line);
        }
        line.trim_end().to_owned()
    }

    fn thaw(&mut self) -> Result<(), FreezeError> {
        if let Some((child, _)) = &mut self.helper {
            drop(child.stdin.take());
        }
        let said = self.hear();
        if let Some((mut child, _)) = self.helper.take() {
            let _ = child.wait();
        }
        match said.as_str() {
            THAWED => Ok(()),
            LATE => Err(FreezeError::Late { path: self.path.clone(), limit: self.limit }),
            // Killed: then it is frozen still, or was thawed by somebody.
            _ => match ioctl::thaw(&self.file) {
                Ok(()) => Ok(()),
                Err(Errno::EINVAL) => Err(FreezeError::Late { path: self.path.clone(), limit: self.limit }),
                Err(error) => Err(FreezeError::Thaw { path: self.path.clone(), source: error.into() }),
            },
        }
    }
}

impl Drop for Freeze {
    fn drop(&mut self) {
        if self.helper.is_some()
            && let Err(error) = self.thaw()
        {
            log::error!("{error}");
        }
    }
}

/// The helper's whole life: freezes, says so, waits for the end of its input or the limit, thaws.
///
/// # Errors
/// When nobody hears it: by then the file system is thawed.
pub fn help(path: &Path, limit: Duration) -> io::Result<()> {
    // Whatever ends the one who marks, a terminal's interrupt too, must not end this one.
    let _ = nix::unistd::setsid();
    let _ = SigSet::from_iter([Signal::SIGINT, Signal::SIGTERM, Signal::SIGHUP, Signal::SIGQUIT, Signal::SIGPIPE])
        .thread_block();
    let file = match open(path) {
        Ok(file) => file,
        Err(error) => return say(&error.to_string()),
    };
    // A freeze stops writers first and then writes back what is dirty: so that this is little, most of it goes before.
    if let Err(error) = nix::unistd::syncfs(&file) {
        return say(error.desc());
    }
    if input_ends_within(Duration::from_millis(1)) {
        return Ok(());
    }
    match ioctl::freeze(&file) {
        Ok(()) => {}
        Err(Errno::EBUSY) => return say("it is frozen already"),
        Err(Errno::EOPNOTSUPP) => return say("its file system cannot do that"),
        Err(Errno::EPERM) => return say("that takes root"),
        Err(error) => return say(error.desc()),
    }
    // Nobody to hear it is the end of the input, too.
    let heard = say(FROZEN);
    let in_time = heard.is_ok() && input_ends_within(limit);
    for _ in 0..THAWS {
        match ioctl::thaw(&file) {
            Ok(()) => return say(if in_time { THAWED } else { LATE }),
            // Somebody else has thawed it meanwhile.
            Err(Errno::EINVAL) => return say(LATE),
            Err(_) => std::thread::sleep(Duration::from_millis(100)),
        }
    }
    // The other end tries once more, and says why not.
    Ok(())
}

fn input_ends_within(limit: Duration) -> bool {
    let (stdin, deadline) = (io::stdin(), Instant::now() + limit);
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return false;
        }
        let mut polled = [PollFd::new(stdin.as_fd(), PollFlags::empty())];
        let millis = i32::try_from(left.as_millis().max(1)).unwrap_or(i32::MAX);
        match poll(&mut polled, PollTimeout::try_from(millis).unwrap_or(PollTimeout::MAX)) {
            Ok(0) | Err(Errno::EINTR) => {}
            _ => return true,
        }
    }
}

fn say(what: &str) -> io::Result<()> {
    let mut stdout = io::stdout();
    writeln!(stdout, "{what}").and_then(|()| stdout.flush())
}

fn open(path: &Path) -> Result<File, FreezeError> {
    File::open(path).map_err(|source| FreezeError::Open { path: path.to_owned(), source })
}
