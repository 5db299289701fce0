//! Text on standard output and standard error.

use std::io::Write;
use std::sync::atomic::{AtomicBool, Ordering};

/// Whoever read standard output has read enough.
static CLOSED: AtomicBool = AtomicBool::new(false);

/// Prints a line on standard output. When whoever reads it has gone, nothing more is printed; what the command finds is
/// still its exit code, so that `verify | head` does not hide damage.
pub(crate) fn line(text: std::fmt::Arguments<'_>) {
    if is_closed() {
        return;
    }
    let mut stdout = std::io::stdout();
    match stdout.write_fmt(text).and_then(|()| stdout.write_all(b"\n")) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => CLOSED.store(true, Ordering::Relaxed),
        Err(error) => {
            say_aside(format_args!("standard output: {error}"));
            std::process::exit(1);
        }
        Ok(()) => {}
    }
}

/// Whether nobody reads standard output any more: commands that only print end then.
pub(crate) fn is_closed() -> bool {
    CLOSED.load(Ordering::Relaxed)
}

/// Prints a line for a person on standard error, if anybody reads it.
pub(crate) fn say_aside(text: std::fmt::Arguments<'_>) {
    let _ = writeln!(std::io::stderr(), "salvol: {text}");
}

/// `println!` that survives a closed pipe.
macro_rules! say {
    ($($text:tt)*) => { $crate::cli::table::line(format_args!($($text)*)) };
}
pub(crate) use say;

/// `eprintln!` that survives a closed pipe, and says who speaks.
macro_rules! aside {
    ($($text:tt)*) => { $crate::cli::table::say_aside(format_args!($($text)*)) };
}
pub(crate) use aside;

/// `text` in one line, its control characters spelt out: what a label or a SPEC says must not steer the terminal.
pub(crate) fn plain(text: &str) -> String {
    let spelt = |c: char| if c.is_control() { c.escape_default().collect() } else { String::from(c) };
    text.chars().map(spelt).collect()
}

/// Prints `rows` with their values aligned. Rows without a value are left out.
pub(crate) fn print(rows: &[(&str, String)]) {
    let width = rows.iter().map(|(what, _)| what.len()).max().unwrap_or_default();
    for (what, value) in rows.iter().filter(|(_, value)| !value.is_empty()) {
        say!("{what:width$}  {}", plain(value));
    }
}

/// Prints `value` as JSON.
pub(crate) fn print_json(value: &impl serde::Serialize) -> Result<(), serde_json::Error> {
    say!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}

#[cfg(test)]
mod tests {
    #[test]
    fn control_characters_do_not_reach_the_terminal() {
        assert_eq!(super::plain("before \u{1b}[2J\nthe \u{9b}upgrade ü"), "before \\u{1b}[2J\\nthe \\u{9b}upgrade ü");
    }
}
