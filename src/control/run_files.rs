//! What a running volume leaves in `/run/salvol`: `NAME.json` says who serves what, `NAME.sock` is its control socket,
//! `NAME.log` its log. `/dev/salvol/NAME` links to the device.
//!
//! The files outlive a daemon that dies; then they are what `recover` goes by. Whether it lives is told by `NAME.lock`,
//! which it holds from before it opens the volume until its last thread has ended.

use std::fs::{self, DirBuilder, File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

use crate::format::{SegmentNumber, Uuid};

/// Names the directory of run files in place of `/run/salvol`, for tests.
const DIRECTORY_VARIABLE: &str = "SALVOL_RUN_DIR";
const DIRECTORY: &str = "/run/salvol";
const LINKS: &str = "/dev/salvol";
const POLL: Duration = Duration::from_millis(10);

/// Who serves a volume. Written before the device can be used, so that no device is without one.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RunFile {
    pub name: String,
    pub uuid: String,
    pub pid: u32,
    /// Absolute.
    pub primary: PathBuf,
    /// The number of the ublk device.
    pub id: u32,
    /// Its node.
    pub device: PathBuf,
    pub backing: String,
    /// When the daemon was started, RFC 3339.
    pub started: String,
    /// How it was attached, for `recover`.
    pub read_only: bool,
    #[serde(default)]
    pub archive_interval_ms: u64,
    #[serde(default)]
    pub socket_group: Option<String>,
    #[serde(default)]
    pub archive_threads: Option<u16>,
    #[serde(default)]
    pub archive_rate: Option<u64>,
    /// Of a view of the past: the moment that it shows.
    #[serde(default)]
    pub at: Option<String>,
    /// The oldest segment that it may read: a lease on it and all that are newer.
    #[serde(default)]
    pub needs_from: Option<u64>,
}

impl RunFile {
    /// What the device bears as its server's mark: the volume, or the view, which must never be taken for it.
    pub fn device_uuid(&self) -> String {
        if self.at.is_some() { view_uuid(&self.name).to_string() } else { self.uuid.clone() }
    }
}

/// The identity of the view of the past that is called `name`.
pub fn view_uuid(name: &str) -> Uuid {
    let mut bytes = [0; 16];
    bytes.copy_from_slice(&blake3::hash(name.as_bytes()).as_bytes()[..16]);
    Uuid(bytes)
}

/// The directory of run files.
#[derive(Debug, Clone)]
pub struct RunDir(PathBuf);

impl RunDir {
    /// `/run/salvol`, or what `SALVOL_RUN_DIR` says.
    pub fn from_environment() -> Self {
        Self(std::env::var_os(DIRECTORY_VARIABLE).map_or_else(|| PathBuf::from(DIRECTORY), PathBuf::from))
    }

    /// Makes the directory, 0755, when it is missing.
    ///
    /// # Errors
    /// When it cannot be made.
    pub fn make(&self) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o755).create(&self.0)
    }

    /// The control socket of volume `name`.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.sock"))
    }

    /// The log of the daemon of volume `name`.
    pub fn log(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.log"))
    }

    /// Takes the lock of volume `name`, waiting up to `patience` for one who looks at it or ends. None when it stays taken.
    ///
    /// # Errors
    /// When there can be no lock.
    pub fn lock(&self, name: &str, patience: Duration) -> io::Result<Option<File>> {
        let deadline = Instant::now() + patience;
        let file = self.lock_file(name)?;
        loop {
            match file.try_lock() {
                Ok(()) => return Ok(Some(file)),
                Err(TryLockError::WouldBlock) if Instant::now() < deadline => std::thread::sleep(POLL),
                Err(TryLockError::WouldBlock) => return Ok(None),
                Err(TryLockError::Error(error)) => return Err(error),
            }
        }
    }

    /// Whether a daemon holds the lock of volume `name`.
    ///
    /// # Errors
    /// When there can be no lock.
    pub fn is_locked(&self, name: &str) -> io::Result<bool> {
        match self.lock_file(name)?.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// The right to pin, unpin and prune of the archive of volume `uuid`: one at a time on this machine. None for a user who
    /// can have no lock here, as no daemon of root's does what he does.
    pub fn lock_archive(&self, uuid: &str) -> Option<File> {
        self.make().ok()?;
        // No volume is called so.
        let file = self.lock_file(&format!("#{uuid}")).ok()?;
        file.lock().ok().map(|()| file)
    }

    /// Lock files stay: one that is removed could be locked twice.
    fn lock_file(&self, name: &str) -> io::Result<File> {
        OpenOptions::new().append(true).create(true).mode(0o600).open(self.0.join(format!("{name}.lock")))
    }

    /// The right to add a device: only one daemon at a time looks for a free number and takes it.
    ///
    /// # Errors
    /// When the directory cannot be locked.
    pub fn lock_numbers(&self) -> io::Result<File> {
        let directory = File::open(&self.0)?;
        directory.lock()?;
        Ok(directory)
    }

    fn json(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}.json"))
    }

    /// Writes a run file, at once or not at all, and the link to the device.
    ///
    /// # Errors
    /// When the file cannot be written; the link is best effort.
    pub fn write(&self, run: &RunFile) -> io::Result<()> {
        let path = self.json(&run.name);
        let aside = path.with_extension("json.new");
        let _ = fs::remove_file(&aside);
        let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&aside)?;
        serde_json::to_writer_pretty(&mut file, run)?;
        file.write_all(b"\n")?;
        fs::rename(&aside, &path)?;
        let link = Path::new(LINKS).join(&run.name);
        let linked = DirBuilder::new().recursive(true).mode(0o755).create(LINKS).and_then(|()| {
            let _ = fs::remove_file(&link);
            std::os::unix::fs::symlink(&run.device, &link)
        });
        if let Err(error) = linked {
            log::warn!("{}: no link to the device: {error}", link.display());
        }
        Ok(())
    }

    /// Removes what [`Self::write`] wrote, and the socket of a dead daemon. The log stays.
    pub fn remove(&self, name: &str) {
        let _ = fs::remove_file(self.json(name));
        let _ = fs::remove_file(self.socket(name));
        let _ = fs::remove_file(Path::new(LINKS).join(name));
    }

    /// Every run file that can be read, by name.
    pub fn all(&self) -> Vec<RunFile> {
        let entries = fs::read_dir(&self.0).into_iter().flatten().flatten();
        let read = |entry: fs::DirEntry| {
            let path = entry.path();
            if path.extension()? != "json" {
                return None;
            }
            let run = File::open(&path).and_then(|file| Ok(serde_json::from_reader::<_, RunFile>(file)?));
            match run {
                // A file that lies about its name would lead `remove` astray.
                Ok(run) if path.file_stem()? == run.name.as_str() => Some(run),
                Ok(_) => None,
                // Another user's: that user may not look, and whatever is done with the volume will say so.
                Err(error) if error.kind() == io::ErrorKind::PermissionDenied => None,
                Err(error) => {
                    log::warn!("{}: {error}", path.display());
                    None
                }
            }
        };
        let mut all: Vec<RunFile> = entries.filter_map(read).collect();
        all.sort_by(|a, b| a.name.cmp(&b.name));
        all
    }
}

impl RunDir {
    /// The oldest segment that a live view of the past of volume `uuid` may read. Views of which that cannot be told count.
    pub fn leased_from(&self, uuid: &str) -> Option<SegmentNumber> {
        let views = self.all().into_iter().filter(|run| run.uuid == uuid && self.is_locked(&run.name).unwrap_or(true));
        views.filter_map(|run| run.needs_from).min().map(SegmentNumber)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(name: &str) -> RunFile {
        RunFile {
            name: name.to_owned(),
            uuid: String::new(),
            pid: 1,
            primary: PathBuf::from("/p"),
            id: 0,
            device: PathBuf::from("/dev/ublkb0"),
            backing: "none".to_owned(),
            started: String::new(),
            read_only: false,
            archive_interval_ms: 10_000,
            socket_group: None,
            archive_threads: None,
            archive_rate: None,
            at: None,
            needs_from: None,
        }
    }

    #[test]
    fn what_is_not_a_run_file_is_passed_over() {
        let directory = tempfile::tempdir().expect("a directory");
        let runs = RunDir(directory.path().to_owned());
        for (name, text) in [
            ("half.json", "{\"name\":".to_owned()),
            ("liar.json", serde_json::to_string(&run("../../etc/x")).expect("json")),
            ("good.json", serde_json::to_string(&run("good")).expect("json")),
            ("good.sock", String::new()),
        ] {
            fs::write(directory.path().join(name), text).expect("written");
        }
        assert_eq!(runs.all(), [run("good")]);
    }

    #[test]
    fn a_view_leases_what_it_needs_while_it_lives() {
        let directory = tempfile::tempdir().expect("a directory");
        let runs = RunDir(directory.path().to_owned());
        for (name, uuid, needs_from) in
            [("v@p9", "a", Some(9)), ("v@p4", "a", Some(4)), ("w@p1", "b", Some(1)), ("v", "a", None)]
        {
            let run = RunFile { uuid: uuid.to_owned(), needs_from, ..run(name) };
            fs::write(runs.json(name), serde_json::to_string(&run).expect("json")).expect("written");
        }
        assert_eq!(runs.leased_from("a"), None, "none of them lives");
        let [nine, four, _volume] =
            ["v@p9", "v@p4", "v"].map(|name| runs.lock(name, Duration::ZERO).expect("possible"));
        assert_eq!(runs.leased_from("a"), Some(SegmentNumber(4)));
        drop(four);
        assert_eq!(runs.leased_from("a"), Some(SegmentNumber(9)));
        drop(nine);
        assert_eq!(runs.leased_from("a"), None);
    }

    #[test]
    fn a_lock_is_held_by_one_daemon_until_it_ends() {
        let directory = tempfile::tempdir().expect("a directory");
        let runs = RunDir(directory.path().to_owned());
        assert!(!runs.is_locked("vol").expect("known"));
        let held = runs.lock("vol", Duration::ZERO).expect("possible").expect("free");
        assert!(runs.is_locked("vol").expect("known"));
        assert!(runs.lock("vol", Duration::ZERO).expect("possible").is_none());
        assert!(!runs.is_locked("other").expect("known"));
        drop(held);
        assert!(!runs.is_locked("vol").expect("known"));
    }
}
