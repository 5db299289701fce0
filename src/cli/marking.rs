//! Having a point marked, for `synch` and `agent`: the connection, what may be frozen, and what hooks are told.

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use salvol::archive::Spec;
use salvol::control::{AgentName, Client, ClientError, Request, RunDir, RunFile, Wait, is_mounted_from};
use salvol::history::PointInfo;
use salvol::volume::Status;

use super::running::connect;
use super::{Failure, Outcome};

/// How long a daemon may take to hear that something failed.
const REPORT_PATIENCE: Duration = Duration::from_secs(5);

/// How often to look whether writers are still slowed down.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// Somebody who has points marked in a volume.
pub(crate) struct Marker {
    runs: RunDir,
    run: RunFile,
    client: Client,
    label: String,
    agent: Option<AgentName>,
    /// The point that was marked last.
    point: Option<PointInfo>,
}

impl Marker {
    /// Connects to the daemon of `run`.
    pub(crate) fn new(runs: &RunDir, run: &RunFile, label: &str, agent: Option<AgentName>) -> Result<Self, Failure> {
        let client = connect(runs, run)?;
        Ok(Self { runs: runs.clone(), run: run.clone(), client, label: label.to_owned(), agent, point: None })
    }

    /// Has the moment marked; the error says why not, for a sentence that names the volume. Whoever holds an application
    /// meanwhile waits for the answer no longer than `patience`.
    pub(crate) fn mark(&mut self, info: &str, patience: Option<Duration>) -> Result<PointInfo, String> {
        self.client.set_patience(patience).map_err(|error| error.to_string())?;
        let (label, agent) = (self.label.clone(), self.agent.clone());
        let request = Request::Synch { label, info: info.to_owned(), wait: Wait::Durable, agent };
        let answer = self.client.ask(&request).map_err(|error| match error {
            ClientError::Gone => "it is not known whether a point was marked: the daemon has not answered".to_owned(),
            error => format!("no point was marked: {error}"),
        })?;
        let point: PointInfo = serde_json::from_value(answer).map_err(|error| format!("its answer: {error}"))?;
        self.point = Some(point.clone());
        Ok(point)
    }

    /// Waits until the store has the point.
    pub(crate) fn wait_archived(&mut self, point: &PointInfo) -> Result<(), String> {
        self.client.set_patience(None).map_err(|error| error.to_string())?;
        let answer = self.client.ask(&Request::Archived { position: point.position });
        answer.map(drop).map_err(|error| format!("{} is marked and durable, but not in the archive: {error}", point.id))
    }

    /// Has the status show why the agent marked nothing.
    pub(crate) fn report(&mut self, error: &str) {
        let Some(agent) = self.agent.clone() else { return };
        // On a new connection: the answer to what was asked before may come yet. That nobody hears it, the next round will say.
        if let Ok(mut client) = connect(&self.runs, &self.run) {
            let _ = client.set_patience(Some(REPORT_PATIENCE));
            let _ = client.ask(&Request::Report { agent, error: error.to_owned() });
        }
    }

    /// What hooks find in their environment.
    pub(crate) fn facts(&self) -> Vec<(&'static str, String)> {
        let of_point = |fact: fn(&PointInfo) -> String| self.point.as_ref().map(fact).unwrap_or_default();
        vec![
            ("SALVOL_NAME", self.run.name.clone()),
            ("SALVOL_DEVICE", self.run.device.display().to_string()),
            ("SALVOL_LABEL", self.label.clone()),
            ("SALVOL_POINT", of_point(|point| point.id.clone())),
            ("SALVOL_POSITION", of_point(|point| point.position.to_string())),
            ("SALVOL_TIME", of_point(|point| point.time.clone())),
        ]
    }

    /// The mount point at `path`, when freezing it can do no harm: it is on this volume, neither the store nor the log
    /// of the daemon is on it, and writers are not being held back, since freezing writes the file system back first.
    pub(crate) fn may_freeze(&mut self, path: &Path, patience: Duration) -> Result<PathBuf, Failure> {
        let refuse = |what: String| Failure::new(format_args!("{}: not frozen: {what}", path.display()));
        let mountpoint = fs::canonicalize(path).map_err(|error| refuse(error.to_string()))?;
        if !is_mounted_from(&mountpoint, &self.run.device) {
            return Err(refuse(format!(
                "nothing of {} ({}) is mounted there",
                self.run.name,
                self.run.device.display()
            )));
        }
        let here = fs::metadata(&mountpoint).map_err(|error| refuse(error.to_string()))?.dev();
        let is_here = |path: &Path| fs::metadata(path).is_ok_and(|metadata| metadata.dev() == here);
        if let Ok(Spec::Directory(store) | Spec::File(store)) = Spec::parse(&self.run.backing)
            && is_here(&store)
        {
            return Err(refuse(format!("the store {} is on it", self.run.backing)));
        }
        let log = self.runs.log(&self.run.name);
        if is_here(&log) || log.parent().is_some_and(is_here) {
            return Err(refuse(format!("the daemon's log {} is on it", log.display())));
        }
        self.not_held_back(patience).map_err(|error| error.of(path.display()))?;
        Ok(mountpoint)
    }

    /// Refuses to hold an application while its writes are held back: it would be held for as long. Writers that are only
    /// slowed down are waited for, up to `patience`.
    pub(crate) fn not_held_back(&mut self, patience: Duration) -> Outcome {
        let deadline = Instant::now() + patience;
        loop {
            let answer =
                self.client.ask(&Request::Status {}).map_err(|error| Failure::new(error).of(&self.run.name))?;
            let state = serde_json::from_value::<Status>(answer)?.state;
            match state.as_str() {
                "throttled" if Instant::now() < deadline => std::thread::sleep(LOOK_AGAIN),
                "throttled" | "waiting" | "stopped" => {
                    return Err(Failure::new(format_args!(
                        "not while the volume {} is {state}: what is written back first would wait; `salvol status {0}` says \
                         what for",
                        self.run.name
                    )));
                }
                _ => return Ok(()),
            }
        }
    }
}

/// The process that freezes and thaws.
pub(crate) fn freezer(path: &Path, limit: Duration) -> Command {
    let mut command = Command::new("/proc/self/exe");
    command.args(["freeze-helper", "--limit"]).arg(format!("{}ms", limit.as_millis())).arg("--").arg(path);
    command
}

/// Freeze a file system until the end of the input.
#[derive(Debug, clap::Args)]
pub(crate) struct FreezeHelper {
    path: PathBuf,
    #[arg(long, value_parser = super::parse::limit)]
    limit: Duration,
}

pub(crate) fn freeze_helper(arguments: &FreezeHelper) -> Outcome {
    Ok(salvol::agent::help(&arguments.path, arguments.limit)?)
}
