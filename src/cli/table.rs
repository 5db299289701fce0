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

/// Prints `rows` with their values aligned. Rows without a value are left out.
pub(crate) fn print(rows: &[(&str, String)]) {
    let width = rows.iter().map(|(what, _)| what.len()).max().unwrap_or_default();
    for (what, value) in rows.iter().filter(|(_, value)| !value.is_empty()) {
        say!("{what:width$}  {value}");
    }
}

/// Prints `value` as JSON.
pub(crate) fn print_json(value: &impl serde::Serialize) -> Result<(), serde_json::Error> {
    say!("{}", serde_json::to_string_pretty(value)?);
    Ok(())
}
