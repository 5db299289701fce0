//! Whether a process still runs.

use std::fs;

/// Whether process `pid` runs. One that was killed may take a while to end: its first thread is a zombie until the last
/// has ended.
pub fn is_running(pid: u32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| runs(&stat))
}

/// The state follows the name, which may hold blanks and parentheses.
fn runs(stat: &str) -> bool {
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with(['Z', 'X']))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zombie_does_not_run() {
        assert!(is_running(std::process::id()));
        assert!(runs("7 (a) Z) S 1 7 7"));
        assert!(!runs("7 (salvol) Z 1 7 7"));
    }
}
