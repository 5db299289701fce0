//! Progress of long work: a bar on a terminal, nothing otherwise.

use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};

use crate::format::BLOCK_BYTES;

const TEMPLATE: &str = "{msg} {wide_bar} {bytes} of {total_bytes}, {decimal_bytes_per_sec}, {eta} left";
/// How often it is drawn while nothing arrives.
const TICK: Duration = Duration::from_millis(500);

/// Progress in blocks, from any thread.
pub struct Progress(ProgressBar);

impl Progress {
    /// Shows nothing.
    pub fn none() -> Self {
        Self(ProgressBar::hidden())
    }

    /// Draws a bar on stderr, with the rate and the time left.
    pub fn bar() -> Self {
        let bar = ProgressBar::new(0);
        if let Ok(style) = ProgressStyle::with_template(TEMPLATE) {
            bar.set_style(style);
        }
        bar.enable_steady_tick(TICK);
        Self(bar)
    }

    /// Begins `what`, `blocks` blocks of work of which some are `done` already; those count for no rate.
    pub(super) fn begin(&self, what: &'static str, blocks: u64, done: u64) {
        self.begin_bytes(what, blocks * BLOCK_BYTES as u64);
        self.0.set_position(done * BLOCK_BYTES as u64);
        self.0.reset_eta();
    }

    /// Begins `what`, so many bytes of work.
    pub(super) fn begin_bytes(&self, what: &'static str, bytes: u64) {
        self.say(what);
        self.0.set_length(bytes);
    }

    /// Says what is going on.
    pub(super) fn say(&self, what: &'static str) {
        self.0.set_message(what);
    }

    pub(super) fn add(&self, blocks: u64) {
        self.0.inc(blocks * BLOCK_BYTES as u64);
    }

    pub(super) fn add_bytes(&self, bytes: u64) {
        self.0.inc(bytes);
    }

    pub(super) fn end(&self) {
        self.0.finish_and_clear();
    }
}
