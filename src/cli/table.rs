//! Text on standard output.

use std::io::Write;

/// Prints a line on standard output. Whoever closes the pipe has read enough: that ends the command, quietly.
pub(crate) fn line(text: std::fmt::Arguments<'_>) {
    let mut stdout = std::io::stdout();
    if let Err(error) = stdout.write_fmt(text).and_then(|()| stdout.write_all(b"\n")) {
        let code = if error.kind() == std::io::ErrorKind::BrokenPipe { 0 } else { 1 };
        std::process::exit(code);
    }
}

/// `println!` that survives a closed pipe.
macro_rules! say {
    ($($text:tt)*) => { $crate::cli::table::line(format_args!($($text)*)) };
}
pub(crate) use say;

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
