//! Progress of long work: a bar on a terminal, nothing otherwise.

use indicatif::{ProgressBar, ProgressStyle};

use crate::format::BLOCK_BYTES;

/// Progress in blocks.
pub struct Progress(ProgressBar);

impl Progress {
    /// Shows nothing.
    pub fn none() -> Self {
        Self(ProgressBar::hidden())
    }

    /// Draws a bar on stderr.
    pub fn bar() -> Self {
        let style = ProgressStyle::with_template("{msg} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
        let bar = ProgressBar::new(0);
        if let Ok(style) = style {
            bar.set_style(style);
        }
        Self(bar)
    }

    pub(super) fn begin(&self, what: &'static str, blocks: u64) {
        self.0.set_message(what);
        self.0.set_length(blocks * BLOCK_BYTES as u64);
    }

    pub(super) fn add(&self, blocks: u64) {
        self.0.inc(blocks * BLOCK_BYTES as u64);
    }

    pub(super) fn end(&self) {
        self.0.finish_and_clear();
    }
}
