//! Programs that somebody waits for, with a limit.

use std::io::{self, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{SigSet, Signal, killpg};
use nix::unistd::Pid;

/// How often to look whether a program has ended.
const POLL: Duration = Duration::from_millis(5);
/// What is said of a program's errors at most.
const COMPLAINT_BYTES: u64 = 1024;

/// Why a program did not do what it was for.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error("`{command}` cannot be started: {source}")]
    Start { command: String, source: io::Error },
    #[error("`{command}` failed: {status}{complaint}")]
    Failed { command: String, status: ExitStatus, complaint: String },
    #[error("`{command}` did not end within {limit:?}, and was killed")]
    Limit { command: String, limit: Duration },
}

/// Runs `text` by the shell, with `facts` in its environment; its output is the caller's. It gets `limit`.
///
/// # Errors
/// When it fails, or does not end.
pub fn shell(text: &str, facts: &[(&str, String)], limit: Duration) -> Result<(), CommandError> {
    let mut command = Command::new("/bin/sh");
    command.args(["-c", text]).envs(facts.iter().map(|(name, value)| (name, value)));
    let mut child = start(&mut command, text)?;
    succeeded(wait(&mut child, text, limit)?, text, String::new)
}

/// Runs `command` and returns the first `bytes` bytes of what it prints.
pub(super) fn output(mut command: Command, limit: Duration, bytes: usize) -> Result<String, CommandError> {
    let text = match command.get_args().last() {
        Some(last) if command.get_program() == "/bin/sh" => last.to_string_lossy().into_owned(),
        _ => command.get_program().to_string_lossy().into_owned(),
    };
    command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = start(&mut command, &text)?;
    // Each pipe is emptied, however much comes, so that nobody waits for the other.
    let printed = child.stdout.take().map(|pipe| std::thread::spawn(move || beginning(pipe, bytes as u64)));
    let complained = child.stderr.take().map(|pipe| std::thread::spawn(move || beginning(pipe, COMPLAINT_BYTES)));
    let status = wait(&mut child, &text, limit)?;
    // Something that it left in the background may hold a pipe open for ever; what has been read by now is what there is.
    let told = |pipe: Option<std::thread::JoinHandle<String>>| {
        let pipe = pipe?;
        let deadline = Instant::now() + Duration::from_secs(1);
        while !pipe.is_finished() && Instant::now() < deadline {
            std::thread::sleep(POLL);
        }
        if pipe.is_finished() { pipe.join().ok() } else { None }
    };
    let (printed, complained) = (told(printed), told(complained));
    succeeded(status, &text, || {
        complained.filter(|said| !said.is_empty()).map_or_else(String::new, |said| format!(": {}", said.trim()))
    })?;
    Ok(printed.unwrap_or_default())
}

fn beginning(mut pipe: impl Read, bytes: u64) -> String {
    let mut text = Vec::new();
    let _ = pipe.by_ref().take(bytes).read_to_end(&mut text);
    let _ = io::copy(&mut pipe, &mut io::sink());
    String::from_utf8_lossy(&text).into_owned()
}

/// In a process group of its own, so that it is killed with all that it started; without the signals that this process may
/// have put off; and not for longer than this process.
fn start(command: &mut Command, text: &str) -> Result<Child, CommandError> {
    alone(command).spawn().map_err(|source| CommandError::Start { command: text.to_owned(), source })
}

#[expect(unsafe_code, reason = "what is done between fork and exec must be")]
fn alone(command: &mut Command) -> &mut Command {
    let prepare = || {
        SigSet::empty().thread_set_mask()?;
        Ok(nix::sys::prctl::set_pdeathsig(Signal::SIGKILL)?)
    };
    // SAFETY: both are system calls and allocate nothing.
    unsafe { command.process_group(0).pre_exec(prepare) }
}

fn succeeded(status: ExitStatus, text: &str, complaint: impl FnOnce() -> String) -> Result<(), CommandError> {
    if status.success() {
        return Ok(());
    }
    Err(CommandError::Failed { command: text.to_owned(), status, complaint: complaint() })
}

fn wait(child: &mut Child, text: &str, limit: Duration) -> Result<ExitStatus, CommandError> {
    let deadline = Instant::now() + limit;
    loop {
        match child.try_wait() {
            Ok(Some(status)) => return Ok(status),
            Ok(None) if Instant::now() < deadline => std::thread::sleep(POLL),
            Ok(None) => {
                kill(child);
                return Err(CommandError::Limit { command: text.to_owned(), limit });
            }
            Err(source) => return Err(CommandError::Start { command: text.to_owned(), source }),
        }
    }
}

/// Kills the process and its group.
pub(super) fn kill(child: &mut Child) {
    if let Ok(id) = i32::try_from(child.id()) {
        let _ = killpg(Pid::from_raw(id), Signal::SIGKILL);
    }
    let _ = child.kill();
    let _ = child.wait();
}

#[cfg(test)]
mod tests {
    use super::*;

    fn run(text: &str, limit: u64) -> Result<String, CommandError> {
        let mut command = Command::new("/bin/sh");
        command.args(["-c", text]);
        output(command, Duration::from_millis(limit), 16)
    }

    #[test]
    fn what_is_printed_comes_back_up_to_a_bound() {
        assert_eq!(run("echo hello", 5000).expect("runs"), "hello\n");
        // More than a pipe holds, on both.
        assert_eq!(run("yes | head -c 1000000 | tee /dev/stderr", 20_000).expect("runs").len(), 16);
    }

    #[test]
    fn failures_say_what_the_program_said() {
        let error = run("echo no room >&2; exit 3", 5000).expect_err("fails").to_string();
        assert!(error.contains("exit status: 3") && error.contains("no room"), "{error}");
        assert!(matches!(shell("exit 1", &[], Duration::from_secs(5)), Err(CommandError::Failed { .. })));
    }

    #[test]
    fn whoever_hangs_is_killed_with_all_that_it_started() {
        let began = Instant::now();
        assert!(matches!(run("sleep 60 & sleep 60", 100), Err(CommandError::Limit { .. })));
        assert!(matches!(shell("sleep 60", &[], Duration::from_millis(50)), Err(CommandError::Limit { .. })));
        // What is left behind holds the pipes, and nobody waits for it.
        assert_eq!(run("echo x; sleep 7 &", 5000).ok(), Some(String::new()));
        assert!(began.elapsed() < Duration::from_secs(5));
    }

    #[test]
    fn facts_are_in_the_environment() {
        let facts = [("SALVOL_POINT", "p42".to_owned())];
        shell("test \"$SALVOL_POINT\" = p42", &facts, Duration::from_secs(5)).expect("is there");
    }
}
